"""What is known, before a fold runs, of the keys that a tile of queries may and must meet."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.ir.expr import TRUE, Expr, symbols, text


@dataclass(frozen=True, slots=True)
class Interval:
    """A half-open range [lo, hi) of positions; empty when hi <= lo."""

    lo: Expr
    hi: Expr

    def __str__(self) -> str:
        return f"[{text(self.lo)}, {text(self.hi)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """The plan of a fold's mask, in closed form.

    ``may`` and ``must`` are unions of intervals of the folded axis, as expressions of the tile's first and last position
    on the other axis (``i_lo``, ``i_hi``) and of scalars. A position outside every ``may`` interval is allowed for no row of
    the tile; a position inside a ``must`` interval is allowed for every row. Intervals of one union may overlap or be empty:
    whoever walks them makes them disjoint in units of tiles.

    In a tile that is neither empty nor full, an element (i, j) is allowed iff ``row.lo <= j < row.hi`` (bounds hoisted out of
    the loop, expressions of ``i``) and ``residual`` (the rest of the predicate, expression of ``i`` and ``j``) holds.
    """

    may: tuple[Interval, ...]
    must: tuple[Interval, ...]
    row: Interval
    residual: Expr = TRUE
    exact: bool = True
    notes: tuple[str, ...] = ()

    def end_symbols(self) -> frozenset[str]:
        """Return what the ends of the intervals vary with."""
        return frozenset(
            name for part in (*self.may, *self.must) for end in (part.lo, part.hi) for name in symbols(end)
        )
