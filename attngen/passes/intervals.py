"""Plan a mask in closed form: which keys a tile of rows may meet, and which it must.

The predicate is solved for the key (`half_lines`), written as a union of intervals per row (`pieces`), and
each end is bounded over the rows of a tile (`tile_bounds`). A conjunct that cannot be solved is taken as
true for ``may`` and as false for ``must``: the plan stays sound, and the residual predicate decides inside
the tiles that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attngen.ir.expr import (
    TRUE,
    Apply,
    Const,
    Expr,
    Search,
    Symbol,
    apply,
    conjunction,
    substitute,
    symbols,
    text,
    walk,
)
from attngen.ir.linear import Facts, least
from attngen.ir.proofs import at_most
from attngen.ir.tiles import Interval, Tiles
from attngen.passes.half_lines import Join, Opaque, Solver, Tree, opposite
from attngen.passes.pieces import MAX_WORKING, Piece, Union, fold
from attngen.passes.tile_bounds import TileBounds, same_way

MAX_INTERVALS = 4
SIZES = ("b", "h", "hk", "seqlen_q", "seqlen_k")


def plan(
    predicate: Expr,
    *,
    key: str = "j",
    tile: str = "i",
    key_size: Expr | None = None,
    sorted_tensors: Mapping[str, Expr] | None = None,
    known_least: Mapping[str, int] | None = None,
) -> Tiles:
    """Return the plan of a mask.

    Args:
        predicate: the mask, over ``key``, ``tile`` and scalars.
        key: the folded axis; its positions are 0 to key_size - 1.
        tile: the other axis; a tile covers the positions ``{tile}_lo`` to ``{tile}_hi``, both included and
            both of rows that exist.
        key_size: the length of the folded axis; seqlen_k by default.
        sorted_tensors: captured tensors whose last axis ascends, with the size of that axis.
        known_least: proved lower bounds of symbols, such as a window that is at least 1; of a compiled-in
            parameter, its value.
    """
    planner = _Planner(
        key=key,
        tile=tile,
        key_size=Symbol("seqlen_k") if key_size is None else key_size,
        sorted_tensors=sorted_tensors or {},
        facts=Facts(least={**dict.fromkeys((*SIZES, key), 0), **(known_least or {})}),
    )
    return planner.plan(predicate)


@dataclass(frozen=True, slots=True)
class _Planner:
    key: str
    tile: str
    key_size: Expr
    sorted_tensors: Mapping[str, Expr]
    facts: Facts

    def plan(self, predicate: Expr) -> Tiles:
        tree = self._solve(predicate)
        notes = [f"{text(o.condition)} stays in the residual: {o.reason}" for o in _opaque(tree)]
        may, must = self._union(outward=True), self._union(outward=False)
        may_pieces, must_pieces = may.final(tree), must.final(tree)
        notes += [*may.notes, *must.notes]
        row, residual = self._row(predicate)
        exact = may.exact and must.exact and self._exact(tree, may_pieces)
        return Tiles(
            may=self._intervals(may_pieces, outward=True),
            must=self._intervals(must_pieces, outward=False),
            row=row,
            residual=residual,
            exact=exact,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _solve(self, predicate: Expr) -> Tree:
        return Solver(self.key, self.tile, self.sorted_tensors, self.facts).solve(predicate)

    def _union(self, *, outward: bool) -> Union:
        return Union(self.tile, self.key_size, self.facts, outward, MAX_INTERVALS)

    def _bounds(self) -> TileBounds:
        first, last = Symbol(f"{self.tile}_lo"), Symbol(f"{self.tile}_hi")
        return TileBounds(self.tile, first, last, self.sorted_tensors, self.facts)

    # ---- tiles

    def _intervals(self, pieces: list[Piece], *, outward: bool) -> tuple[Interval, ...]:
        found = (self._interval(p, outward) for p in pieces)
        return tuple(dict.fromkeys(f for f in found if f is not None))

    def _interval(self, piece: Piece, outward: bool) -> Interval | None:
        """``may`` takes the least low and the greatest high over the tile, ``must`` the opposite ends."""
        bounds = self._bounds()
        lows = [e.lo if outward else e.hi for e in map(bounds.extent, piece.lows)]
        highs = [e.hi if outward else e.lo for e in map(bounds.extent, piece.highs)]
        gates = [c.may if outward else c.must for c, _ in map(bounds.condition, piece.gates)]
        if not outward and None in [*lows, *highs]:
            return None
        gate = conjunction(gates)
        if gate == Const(False):
            return None
        interval = self._clipped([x for x in lows if x is not None], [x for x in highs if x is not None])
        return Interval(interval.lo, apply("where", gate, interval.hi, Const(0)))

    def _clipped(self, lows: list[Expr], highs: list[Expr]) -> Interval:
        """``[max(lows), min(highs))`` within [0, key_size)."""
        lo = fold("max", tuple(lows)) if lows else Const(0)
        bound = least(lo, self.facts)
        lo = lo if bound is not None and bound >= 0 else apply("max", lo, Const(0))
        return Interval(lo, self._below_size(highs))

    def _below_size(self, highs: list[Expr]) -> Expr:
        hi = fold("min", tuple(highs)) if highs else self.key_size
        return hi if at_most(hi, self.key_size, self.facts) else apply("min", hi, self.key_size)

    # ---- rows

    def _row(self, predicate: Expr) -> tuple[Interval, Expr]:
        """Split the predicate into bounds of the row and what is left for each element."""
        row, rest = Piece(), list[Expr]()
        union = self._union(outward=True)
        for part in _conjuncts(predicate):
            piece = self._single(part)
            met = union.meet(row, piece) if isinstance(piece, Piece) else None
            if piece is None:
                rest.append(part)
            elif met is None:
                return Interval(Const(0), Const(0)), TRUE
            else:
                row = met
        lo = fold("max", row.lows) if row.lows else Const(0)
        hi = self._below_size(list(row.highs))
        return Interval(lo, apply("where", conjunction(list(row.gates)), hi, Const(0))), conjunction(rest)

    def _single(self, conjunct: Expr) -> Piece | Join | None:
        """The one interval of a conjunct, or an empty join if it is false everywhere, or None."""
        tree = self._solve(conjunct)
        union = self._union(outward=True)
        pieces = union.final(tree)
        if not union.exact or len(pieces) > 1:
            return None
        if not pieces:
            return Join("or", ())
        ends = (*pieces[0].lows, *pieces[0].highs, *pieces[0].gates)
        searches = any(isinstance(x, Search) for end in ends for x in walk(end))
        return None if searches else pieces[0]

    # ---- exactness

    def _exact(self, tree: Tree, pieces: list[Piece]) -> bool:
        """Whether tiles are classified exactly.

        ``may`` is exact where each piece sweeps an interval. ``must`` is exact where one piece at most
        varies with the row (the others are met or missed by all rows). It is also exact where every
        interval of the complement sweeps: each bound that must hold is the opposite of one that may not, so
        ``must`` is all that ``may`` of the complement leaves, as long as that is written out plainly.
        """
        if not all(self._sweeps(p) for p in pieces):
            return False
        if sum(self._varies(p) for p in pieces) <= 1:
            return True
        union = Union(self.tile, self.key_size, self.facts, outward=True, limit=MAX_WORKING, plain=True)
        complement = union.final(opposite(tree))
        return union.exact and all(self._sweeps(p) for p in complement)

    def _varies(self, piece: Piece) -> bool:
        return any(self.tile in symbols(e) for e in (*piece.lows, *piece.highs, *piece.gates))

    def _sweeps(self, piece: Piece) -> bool:
        """Whether the union of the piece over consecutive rows is the interval between its extreme ends.

        It is if at most one end moves, or the ends move apart or together, or both move alike and the
        intervals of neighbouring rows touch within the axis: ``lo(i + 1) <= max(hi(i), 0)`` where they rise.
        Ends that do not vary with the row clip the union as they clip each interval: they do not matter.
        """
        if any(self.tile in symbols(g) for g in piece.gates):
            return False
        lows, highs = ([x for x in ends if self.tile in symbols(x)] for ends in (piece.lows, piece.highs))
        bounds = self._bounds()
        low, high = (same_way([bounds.extent(x).way for x in ends]) for ends in (lows, highs))
        if low is None or high is None:
            return False
        return low != high or low == 0 or self._touches(lows, highs, low)

    def _touches(self, lows: list[Expr], highs: list[Expr], way: int) -> bool:
        following = {self.tile: apply("add", Symbol(self.tile), Const(1))}
        lows = [substitute(x, following) if way > 0 else x for x in lows]
        highs = [x if way > 0 else substitute(x, following) for x in highs]
        return all(at_most(lo, apply("max", hi, Const(0)), self.facts) for lo in lows for hi in highs)


def _opaque(tree: Tree) -> list[Opaque]:
    if isinstance(tree, Opaque):
        return [tree]
    return [o for part in tree.parts for o in _opaque(part)] if isinstance(tree, Join) else []


def _conjuncts(predicate: Expr) -> list[Expr]:
    """The parts of a conjunction; ``not (a or b)`` is one too."""
    match predicate:
        case Apply("and", (a, b)):
            return _conjuncts(a) + _conjuncts(b)
        case Apply("not", (Apply("or", (a, b)),)):
            return _conjuncts(apply("not", a)) + _conjuncts(apply("not", b))
        case Apply("not", (Apply("not", (a,)),)):
            return _conjuncts(a)
        case Const(True):
            return []
        case _:
            return [predicate]
