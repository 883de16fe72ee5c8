"""From intervals of positions to ranges of tiles: what the loops of a kernel walk.

A tile of ``block`` keys is full if the union of the ``must`` intervals covers it, empty if no ``may``
interval meets it, else partial. The ranges returned are disjoint and ascending for all values, so that no
tile is visited twice: starts and ends are sorted apart from each other, which keeps the union of the
intervals (a point is covered iff more starts than ends lie at or before it), and ``partial = may - must``
pairs the sorted starts {may.lo, must.hi} with the sorted ends {may.hi, must.lo}. What is proved is not
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from attngen.ir.bindings import Bindings
from attngen.ir.expr import Apply, Const, Expr, Symbol, apply, substitute, symbols, tensors, text
from attngen.ir.linear import Facts, least, most
from attngen.ir.proofs import at_most, tile_facts
from attngen.ir.tile_order import TileOrder
from attngen.ir.tiles import Interval, Tiles

ZERO, ONE = Const(0), Const(1)
LARGEST_BLOCK = 128  # of a backward: statistics per row are padded to a multiple of it
SMALLEST_BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 16}  # tiles of kernels: the least that tl.dot takes


@dataclass(frozen=True, slots=True)
class Range:
    """Tiles lo to hi - 1; ``0 <= lo <= hi`` for all values."""

    lo: Expr
    hi: Expr

    def __str__(self) -> str:
        return f"[{text(self.lo)}, {text(self.hi)})"


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of full and of partial tiles, with the assignments that name what they use, in order."""

    bindings: tuple[tuple[str, Expr], ...]
    full: tuple[Range, ...]
    partial: tuple[Range, ...]

    def __str__(self) -> str:
        lines = [f"{name} = {text(value)}" for name, value in self.bindings]
        lines += [f"full    {' '.join(map(str, self.full)) or 'none'}"]
        return "\n".join([*lines, f"partial {' '.join(map(str, self.partial)) or 'none'}"])


def tile_ranges(
    tiles: Tiles,
    *,
    block: Expr | None = None,
    tile: str = "i",
    tile_end: Expr | None = None,
    known_least: Mapping[str, int] | None = None,
) -> Ranges:
    """Return the ranges of tiles that a tile of rows visits.

    Args:
        tiles: the plan; its intervals lie within [0, key_size).
        block: the size of a tile of keys; BLOCK_N by default.
        tile: the axis of the rows. When the ranges are evaluated, ``{tile}_lo <= {tile}_hi < tile_end`` must
            hold: the tile's last row is one that exists.
        tile_end: what all row positions lie below; seqlen_k by default, true of bottom-right aligned rows.
        known_least: proved lower bounds of symbols, such as a window that is at least 1.
    """
    size = Symbol("BLOCK_N") if block is None else block
    end = Symbol("seqlen_k") if tile_end is None else tile_end
    ends = [x for part in (*tiles.may, *tiles.must) for x in (part.lo, part.hi)]
    taken = frozenset(name for x in [*ends, size] for name in (*symbols(x), *tensors(x)))
    builder = _Builder(size, tile_facts(tile, end, size, known_least or {}), Bindings(taken))
    full, partial = builder.ranges(tiles)
    return builder.finished(full, partial)


def ranges_along(axis: str, tiles: Tiles, known_least: Mapping[str, int] | None = None) -> Ranges:
    """Return the ranges of tiles that a program walks along an axis: keys (Sk) for a tile of rows, or rows (Sq) for a
    tile of keys, whose positions are ``j_lo`` to ``j_hi``."""
    if axis == "Sk":
        return tile_ranges(tiles, known_least=known_least)
    known = {"j_lo": 0, "j_hi": 0, **(known_least or {})}
    return tile_ranges(
        tiles, block=Symbol("BLOCK_M"), tile="j", tile_end=Symbol("seqlen_k"), known_least=known
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of tiles, and positions that bound what it was rounded from, where they are known."""

    range: Range
    lo: Expr | None
    hi: Expr | None


@dataclass(slots=True)
class _Builder:
    block: Expr
    facts: Facts
    bindings: Bindings
    order: TileOrder = field(default_factory=TileOrder)

    def ranges(self, tiles: Tiles) -> tuple[list[Range], list[Range]]:
        if not tiles.may:
            return [], []
        if len(tiles.may) == 1 and len(tiles.must) <= 1:
            return self._one(tiles.may[0], tiles.must[0] if tiles.must else None)
        visited, full = self._visited(tiles.may), self._full(tiles.must)
        self._relate(visited, full)
        walked, unmasked = [v.range for v in visited], [f.range for f in full]
        return unmasked, self._difference(walked, unmasked) if full else walked

    def bind(self, name: str, value: Expr) -> Expr:
        return self.bindings.bind(name, value)

    def bind_key(self, name: str, value: Expr) -> Expr:
        """Name a position; proofs look through the name."""
        bound = self.bind(name, value)
        if isinstance(bound, Symbol) and bound != value:
            self.facts.definitions[bound.name] = substitute(value, self.facts.definitions)
        return bound

    def finished(self, full: list[Range], partial: list[Range]) -> Ranges:
        """Drop ranges that are empty as they stand and bindings that nothing uses."""
        full, partial = ([r for r in ranges if r.lo != r.hi] for ranges in (full, partial))
        ends = [e for r in (*full, *partial) for e in (r.lo, r.hi)]
        return Ranges(self.bindings.used_by(ends), tuple(full), tuple(partial))

    # ---- arithmetic that knows the facts

    def at_most(self, x: Expr, y: Expr) -> bool:
        return at_most(x, y, self.facts)

    def larger(self, x: Expr, y: Expr) -> Expr:
        return y if self.at_most(x, y) else x if self.at_most(y, x) else apply("max", x, y)

    def down(self, position: Expr) -> Expr:
        """The tile that holds a position >= 0: tiles before it lie wholly before the position."""
        return ZERO if self.in_first_tile(position) else apply("floordiv", position, self.block)

    def in_first_tile(self, position: Expr) -> bool:
        top = most(substitute(position, self.facts.definitions), self.facts)
        size = least(self.block, self.facts)
        return top is not None and size is not None and top < size

    def up(self, position: Expr) -> Expr:
        """The first tile that starts at or after a position >= 0."""
        if position == ZERO:
            return ZERO
        if isinstance(self.block, Const):
            return apply("floordiv", apply("add", position, Const(int(self.block.value) - 1)), self.block)
        return apply("floordiv", apply("sub", apply("add", position, self.block), ONE), self.block)

    def never_strays(self, interval: Interval) -> bool:
        """Whether an empty interval is proved to have ``hi <= 0 = lo``: then it rounds outward to no tile."""
        return all(
            low == ZERO or self.at_most(apply("add", low, ONE), high)
            for low in _parts("max", interval.lo)
            for high in _parts("min", interval.hi)
        )

    # ---- one interval that may be met, one at most that must

    def _one(self, may: Interval, must: Interval | None) -> tuple[list[Range], list[Range]]:
        sure = self.never_strays(may)
        if sure:
            first, hi = self.bind("first_tile", self.down(may.lo)), self.larger(may.hi, may.lo)
            end = self.bind("end_tile", self.up(hi))
        else:
            lo, hi = self.bind("first_key", may.lo), self.bind("end_key", may.hi)
            first = self.bind("first_tile", self.down(lo))
            end = self.bind("end_tile", apply("where", apply("gt", hi, lo), self.up(hi), first))
        if must is None:
            return [], [Range(first, end)]
        within = sure and self.at_most(must.lo, hi), sure and self.at_most(must.hi, hi)
        full_first = self.up(must.lo)
        if not self.at_most(may.lo, must.lo):
            full_first = apply("max", full_first, first)
        full_first = self.bind("first_full", full_first if within[0] else apply("min", full_first, end))
        full_end = self.down(self.larger(must.hi, ZERO))
        if full_first != ZERO:
            full_end = apply("max", full_end, full_first)
        full_end = self.bind("end_full", full_end if within[1] else apply("min", full_end, end))
        return [Range(full_first, full_end)], [Range(first, full_first), Range(full_end, end)]

    # ---- several intervals

    def _visited(self, may: tuple[Interval, ...]) -> list[_Span]:
        """Round outward to tiles, sort, and cut each range where the one before it ends."""
        lows: list[tuple[Expr, Expr | None]] = []
        highs: list[tuple[Expr, Expr | None]] = []
        for k, interval in enumerate(may):
            if self.never_strays(interval):
                lo, hi = interval.lo, self.larger(interval.hi, interval.lo)
                start, end, proxy = self.down(lo), self.up(hi), hi
            else:
                lo, hi = (
                    self.bind_key(f"first_key_{k}", interval.lo),
                    self.bind_key(f"end_key_{k}", interval.hi),
                )
                start, proxy = self.down(lo), None
                end = apply("where", apply("gt", hi, lo), self.up(hi), start)
            lows.append((self.bind(f"start_{k}", start), lo))
            highs.append((self.bind(f"stop_{k}", end), proxy))
        self._relate_keys(lows)
        self._relate_keys(highs)
        starts = self._sorted("start", [t for t, _ in lows], self.order.known)
        ends = self._sorted("stop", [t for t, _ in highs], self.order.known)
        keys = dict(highs)
        result: list[_Span] = []
        for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
            before = result[-1].range.hi if result else ZERO
            first = (
                start
                if self.order.known(before, start)
                else self.bind(f"first_{k}", apply("max", start, before))
            )
            self.order.chain(before, first, end)
            result.append(_Span(Range(first, end), dict(lows).get(start), keys.get(end)))
        return result

    def _relate_keys(self, ends: list[tuple[Expr, Expr | None]]) -> None:
        for tile, key in ends:
            for other, other_key in ends:
                if (
                    tile != other
                    and key is not None
                    and other_key is not None
                    and self.at_most(key, other_key)
                ):
                    self.order.add(tile, other)

    def _full(self, must: tuple[Interval, ...]) -> list[_Span]:
        """Sort, join what touches, and round inward to tiles."""
        lows = [self.bind_key(f"must_lo_{k}", m.lo) for k, m in enumerate(must)]
        highs = [
            self.bind_key(f"must_hi_{k}", self.larger(m.hi, lo))
            for k, (m, lo) in enumerate(zip(must, lows, strict=True))
        ]
        lows = self._sorted("must_lo", lows, self.at_most)
        highs = self._sorted("must_hi", highs, self.at_most)
        result: list[_Span] = []
        lowest = lows[0] if lows else ZERO
        for k, key in enumerate(highs):
            lo, hi = lows[k], key
            if k + 1 < len(lows):
                touch = apply("le", lows[k + 1], hi)
                lows[k + 1] = self.bind(f"joined_lo_{k + 1}", apply("where", touch, lo, lows[k + 1]))
                hi = self.bind(f"joined_hi_{k}", apply("where", touch, lo, hi))
            if self.in_first_tile(key):
                continue
            first, last = self.bind(f"first_full_{k}", self.up(lo)), self.down(hi)
            end = self.bind(f"end_full_{k}", last if first == ZERO else apply("max", last, first))
            self.order.chain(result[-1].range.hi if result else ZERO, first, end)
            result.append(_Span(Range(first, end), lowest, key))
        return result

    def _relate(self, visited: list[_Span], full: list[_Span]) -> None:
        """What is proved of keys holds of the tiles they round to."""
        for f in full:
            for v in visited:
                if v.hi is not None and f.hi is not None and self.at_most(f.hi, v.hi):
                    self.order.chain(f.range.lo, f.range.hi, v.range.hi)
            if visited[0].lo is not None and f.lo is not None and self.at_most(visited[0].lo, f.lo):
                self.order.add(visited[0].range.lo, f.range.lo)

    def _difference(self, visited: list[Range], full: list[Range]) -> list[Range]:
        starts = [r.lo for r in visited] + [r.hi for r in full]
        ends = [r.hi for r in visited] + [r.lo for r in full]
        pairs = zip(
            self._sorted("partial_first", starts, self.order.known),
            self._sorted("partial_end", ends, self.order.known),
            strict=True,
        )
        return [Range(a, b) for a, b in pairs]

    def _sorted(self, name: str, values: list[Expr], known: Callable[[Expr, Expr], bool]) -> list[Expr]:
        """Sort by insertion: a comparison whose outcome is known costs nothing."""
        result: list[Expr] = []
        for value in values:
            carried = value
            at = len(result)
            while at and not known(result[at - 1], carried):
                at -= 1
                below = result[at]
                if not known(carried, below):
                    high, low = apply("max", below, carried), apply("min", below, carried)
                    result[at], carried = (
                        self._named(f"{name}_{at + 1}", high),
                        self._named(f"{name}_{at}", low),
                    )
            result.insert(at, carried)
        return result

    def _named(self, name: str, value: Expr) -> Expr:
        bound = self.bind_key(name, value)
        self.order.define(bound, value)
        return bound


def _parts(op: str, expr: Expr) -> list[Expr]:
    """The operands of nested minima (or maxima)."""
    if isinstance(expr, Apply) and expr.op == op:
        return [p for c in expr.args for p in _parts(op, c)]
    return [expr]
