"""Unions of intervals per row: the disjunctive normal form of a solved predicate.

A `Piece` is the interval ``[max(lows), min(highs))`` of keys of one row, present where all gates hold; a
union is a list of pieces. Rows are described exactly: only an opaque leaf or too many pieces widen or
narrow, as `outward` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

from attngen.ir.expr import Apply, Const, Expr, apply, symbols
from attngen.ir.linear import Facts
from attngen.ir.proofs import at_most, nodes
from attngen.passes.half_lines import Bound, Gate, Join, Opaque, Tree, negated

MAX_WORKING = 8  # pieces kept while a predicate is combined
MAX_BOUND = 60  # operators and leaves of one bound


@dataclass(frozen=True, slots=True)
class Piece:
    """``[max(lows), min(highs))`` where all gates hold; no low or no high means no bound on that side."""

    lows: tuple[Expr, ...] = ()
    highs: tuple[Expr, ...] = ()
    gates: tuple[Expr, ...] = ()


def fold(op: str, parts: tuple[Expr, ...]) -> Expr:
    """Return the minimum or maximum of at least one part; equal parts count once, constants come last."""
    ordered = sorted(dict.fromkeys(parts), key=lambda p: isinstance(p, Const))
    return reduce(lambda a, b: apply(op, a, b), ordered)


@dataclass(slots=True)
class Union:
    """Builds unions. ``outward`` says what becomes of what cannot be said: widened, or left out.

    ``exact`` turns false when something was, and the `notes` say why. A ``plain`` union only distributes:
    nothing is dropped or merged.
    """

    tile: str
    key_size: Expr
    facts: Facts
    outward: bool
    limit: int
    plain: bool = False
    exact: bool = True
    notes: list[str] = field(default_factory=list[str])

    def of(self, tree: Tree) -> list[Piece]:
        """Return the pieces of a tree."""
        match tree:
            case Bound("ge", at):
                return [Piece(lows=(at,))]
            case Bound(_, at):
                return [Piece(highs=(at,))]
            case Gate(condition):
                return [Piece(gates=(condition,))]
            case Opaque():
                self.exact = False
                return [Piece()] if self.outward else []
            case Join("or", parts):
                return self.joined([piece for part in parts for piece in self.of(part)], MAX_WORKING)
            case Join(_, parts):
                return reduce(self._meet_all, (self.of(part) for part in parts), [Piece()])

    def _meet_all(self, a: list[Piece], b: list[Piece]) -> list[Piece]:
        met = (self.meet(x, y) for x in a for y in b)
        return self.joined([p for p in met if p is not None], MAX_WORKING)

    def final(self, tree: Tree) -> list[Piece]:
        """Return the pieces of a tree, not more than the limit, each of short bounds."""
        pieces = (self._short(p) for p in self.joined(self.of(tree), self.limit))
        return [p for p in pieces if p is not None]

    def _short(self, piece: Piece) -> Piece | None:
        """Give up bounds that would cost more than they save."""
        lows, highs, gates = (
            tuple(e for e in ends if nodes(e) <= MAX_BOUND) for ends in (piece.lows, piece.highs, piece.gates)
        )
        short = Piece(lows, highs, gates)
        if short != piece:
            self._inexact(f"a bound of more than {MAX_BOUND} operators is given up")
        return short if self.outward or short == piece else None

    def _inexact(self, note: str) -> None:
        self.exact = False
        self.notes.append(note)

    # ---- and

    def meet(self, a: Piece, b: Piece) -> Piece | None:
        """Return the intersection, None where it is proved empty."""
        if self.plain:
            return Piece(a.lows + b.lows, a.highs + b.highs, a.gates + b.gates)
        lows = self._strongest((*a.lows, *b.lows), up=True)
        highs = self._strongest((*a.highs, *b.highs), up=False)
        gates = tuple(dict.fromkeys((*a.gates, *b.gates)))
        if any(negated(g) in gates for g in gates):
            return None
        if any(at_most(h, lo, self.facts) for h in highs for lo in lows):
            return None
        return Piece(lows, highs, gates)

    def _strongest(self, ends: tuple[Expr, ...], *, up: bool) -> tuple[Expr, ...]:
        """Drop bounds that another one implies."""
        kept: list[Expr] = []
        for end in dict.fromkeys(ends):
            if any(self._implies(k, end, up) for k in kept):
                continue
            kept = [k for k in kept if not self._implies(end, k, up)] + [end]
        return tuple(kept)

    def _implies(self, a: Expr, b: Expr, up: bool) -> bool:
        return at_most(b, a, self.facts) if up else at_most(a, b, self.facts)

    # ---- or

    def joined(self, pieces: list[Piece], limit: int) -> list[Piece]:
        """Return the union, pieces merged wherever two are one interval, at most ``limit`` of them."""
        result: list[Piece] = pieces if self.plain else []
        for piece in () if self.plain else pieces:
            result = self._insert(result, piece)
        if len(result) <= limit:
            return result
        effect = "the last ones became their hull" if self.outward else "the last ones count as partial"
        self._inexact(f"more than {limit} intervals {'may' if self.outward else 'must'} be met: {effect}")
        if not self.outward:
            return result[:limit]
        return [*result[: limit - 1], reduce(self._hull, result[limit - 1 :])]

    def _insert(self, pieces: list[Piece], new: Piece) -> list[Piece]:
        for k, old in enumerate(pieces):
            merged = self._merge(old, new)
            if merged is not None:
                return self._insert(pieces[:k] + pieces[k + 1 :], merged)
        return [*pieces, new]

    def _merge(self, a: Piece, b: Piece) -> Piece | None:
        if self._contains(a, b):
            return a
        if self._contains(b, a):
            return b
        if set(a.gates) == set(b.gates):
            return self._share_an_end(a, b) or self._overlap(a, b)
        return self._choice(a, b) or self._extended(a, b) or self._extended(b, a)

    def _contains(self, a: Piece, b: Piece) -> bool:
        return (
            set(a.gates) <= set(b.gates)
            and all(any(at_most(x, y, self.facts) for y in b.lows) for x in a.lows)
            and all(any(at_most(y, x, self.facts) for y in b.highs) for x in a.highs)
        )

    def _share_an_end(self, a: Piece, b: Piece) -> Piece | None:
        """``[l, x) or [l, y)`` is ``[l, max(x, y))``, even where one of them is empty."""
        if set(a.lows) == set(b.lows):
            return Piece(a.lows, _common(a.highs, b.highs, "min", "max"), a.gates)
        if set(a.highs) == set(b.highs):
            return Piece(_common(a.lows, b.lows, "max", "min"), a.highs, a.gates)
        return None

    def _overlap(self, a: Piece, b: Piece) -> Piece | None:
        """``[k, l) or [m, n)`` is its hull where m <= l and k <= n is proved, even where one of them is empty.

        If one is, say l <= k, then m <= l <= k <= n and the hull is the other. Ends count as at least 0.
        """
        proved = all(
            at_most(low, apply("max", high, Const(0)), self.facts)
            for one, other in ((a, b), (b, a))
            for low in one.lows
            for high in other.highs
        )
        return self._hull(a, b) if proved else None

    def _choice(self, a: Piece, b: Piece) -> Piece | None:
        """Two pieces under opposite conditions of scalars are one whose ends are chosen."""
        only_a = [g for g in a.gates if g not in b.gates]
        only_b = [g for g in b.gates if g not in a.gates]
        if len(only_a) != 1 or only_b != [negated(only_a[0])]:
            return None
        gates = tuple(g for g in a.gates if g in b.gates)
        if set(a.lows) == set(b.lows) and set(a.highs) == set(b.highs):
            return Piece(a.lows, a.highs, gates)
        if self.tile in symbols(only_a[0]):
            return None
        lows = _choose(only_a[0], a.lows, b.lows, "max", Const(0))
        return Piece(lows, _choose(only_a[0], a.highs, b.highs, "min", self.key_size), gates)

    def _extended(self, a: Piece, b: Piece) -> Piece | None:
        """``[l, x)`` and, under a further gate, ``[l, y)``: the end is ``max(x, y)`` if it holds, else x."""
        more = [g for g in b.gates if g not in a.gates]
        chosen = any(isinstance(x, Apply) and x.op == "where" for x in (*a.lows, *a.highs))
        if chosen or len(more) != 1 or len(b.gates) != len(a.gates) + 1:
            return None
        if set(a.lows) == set(b.lows):
            high = self._under(more[0], a.highs, b.highs, ("min", "max"), self.key_size)
            return Piece(a.lows, high, a.gates)
        if set(a.highs) == set(b.highs):
            return Piece(self._under(more[0], a.lows, b.lows, ("max", "min"), Const(0)), a.highs, a.gates)
        return None

    def _under(
        self, gate: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...], ops: tuple[str, str], none: Expr
    ) -> tuple[Expr, ...]:
        """The bound of ``a``; where the gate holds, the looser of both. Clipped: "none" is the loosest."""
        tighten, loosen = ops
        shared = tuple(x for x in a if x in b)
        rest_a, rest_b = (tuple(x for x in part if x not in shared) for part in (a, b))
        own = fold(tighten, (*rest_a, none))
        other = fold(loosen, (own, fold(tighten, rest_b))) if rest_b else none
        return (apply("where", gate, other, own), *shared)

    def _hull(self, a: Piece, b: Piece) -> Piece:
        gates = tuple(g for g in a.gates if g in b.gates)
        return Piece(_common(a.lows, b.lows, "max", "min"), _common(a.highs, b.highs, "min", "max"), gates)


def _common(a: tuple[Expr, ...], b: tuple[Expr, ...], tighten: str, loosen: str) -> tuple[Expr, ...]:
    """``loosen(tighten(a), tighten(b))``, what both share kept apart; no bound if one side has no other."""
    shared = tuple(x for x in a if x in b)
    rest_a, rest_b = (tuple(x for x in part if x not in shared) for part in (a, b))
    if not rest_a or not rest_b:
        return shared
    return (fold(loosen, (fold(tighten, rest_a), fold(tighten, rest_b))), *shared)


def _choose(
    condition: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...], tighten: str, none: Expr
) -> tuple[Expr, ...]:
    """The bound of ``a`` where the condition holds, else that of ``b``; what both share is kept apart."""
    shared = tuple(x for x in a if x in b)
    rest_a, rest_b = (tuple(x for x in part if x not in shared) for part in (a, b))
    if not rest_a and not rest_b:
        return shared
    then, other = (fold(tighten, rest) if rest else none for rest in (rest_a, rest_b))
    return (apply("where", condition, then, other), *shared)
