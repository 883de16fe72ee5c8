"""Interval arithmetic: the least and the greatest value of an expression over the positions of a tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attngen.ir.expr import (
    FALSE,
    TRUE,
    Apply,
    Const,
    Element,
    Expr,
    Search,
    Symbol,
    apply,
    symbols,
    type_of,
    walk,
)
from attngen.ir.linear import Facts, Linear, build, least, linear, normal, sign
from attngen.ir.proofs import at_most


@dataclass(frozen=True, slots=True)
class Extent:
    """Bounds over a tile; None where nothing is known.

    ``way`` is 1 or -1 where the expression rises or falls with the position, 0 where it is constant: then
    both bounds are reached, at the ends of the tile. Otherwise it is None.
    """

    lo: Expr | None
    hi: Expr | None
    way: int | None


MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
UNKNOWN = Extent(None, None, None)


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether a condition may hold for some position of a tile, and whether it must for all."""

    may: Expr
    must: Expr


def same_way(ways: list[int | None]) -> int | None:
    """The direction of a sum, minimum or maximum of parts with these directions."""
    moving = {w for w in ways if w != 0}
    return 0 if not moving else moving.pop() if len(moving) == 1 else None


def _call(op: str, a: Expr | None, b: Expr | None) -> Expr | None:
    return None if a is None or b is None else apply(op, a, b)


def _whichever(op: str, a: Expr | None, b: Expr | None) -> Expr | None:
    return b if a is None else a if b is None else apply(op, a, b)


@dataclass(frozen=True, slots=True)
class TileBounds:
    """Bounds over positions ``tile`` in [first, last]."""

    tile: str
    first: Expr
    last: Expr
    sorted_tensors: Mapping[str, Expr]
    facts: Facts

    def extent(self, expr: Expr) -> Extent:
        """Return the bounds of an integer expression."""
        if self.tile not in symbols(expr):
            return Extent(expr, expr, 0)
        form = linear(expr)
        if form.terms != {expr: 1}:
            return self._sum(form)
        match expr:
            case Symbol():
                return Extent(self.first, self.last, 1)
            case Element() | Search():
                return self._lookup(expr)
            case Apply(op, args):
                return self._apply(op, args)
            case _:
                return UNKNOWN

    def _sum(self, form: Linear) -> Extent:
        lo: Linear | None = Linear({}, form.constant)
        hi: Linear | None = lo
        ways: list[int | None] = []
        for term, k in form.terms.items():
            part = self.extent(term)
            low, high = (part.lo, part.hi) if k > 0 else (part.hi, part.lo)
            lo = None if lo is None or low is None else lo.plus(linear(low), k)
            hi = None if hi is None or high is None else hi.plus(linear(high), k)
            ways.append(part.way if part.way is None or k > 0 else -part.way)
        return Extent(build(lo) if lo else None, build(hi) if hi else None, same_way(ways))

    def _apply(self, op: str, args: tuple[Expr, ...]) -> Extent:
        match op, args:
            case "min" | "max", (x, y):
                return self._extreme(op, self.extent(x), self.extent(y))
            case "abs", (x,):
                return self._abs(self.extent(x))
            case "where", (c, x, y):
                return self._where(c, self.extent(x), self.extent(y))
            case "mod", (_, c) if self.tile not in symbols(c):
                if sign(c, self.facts) > 0:
                    return Extent(Const(0), normal(apply("sub", c, Const(1))), None)
                low, high = apply("add", c, Const(1)), apply("sub", c, Const(1))
                return Extent(apply("min", low, Const(0)), apply("max", high, Const(0)), None)
            case "floordiv", (x, c) if self.tile not in symbols(c):
                return self._by_factor(op, self.extent(x), c)
            case "mul", (x, c) if self.tile not in symbols(c):
                return self._by_factor(op, self.extent(x), c)
            case "mul", (c, x) if self.tile not in symbols(c):
                return self._by_factor(op, self.extent(x), c)
            case _:
                return UNKNOWN

    def _by_factor(self, op: str, x: Extent, c: Expr) -> Extent:
        lo, hi = _call(op, x.lo, c), _call(op, x.hi, c)
        way = sign(c, self.facts)
        if way > 0:
            return Extent(lo, hi, x.way)
        if way < 0:
            return Extent(hi, lo, None if x.way is None else -x.way)
        return Extent(_call("min", lo, hi), _call("max", lo, hi), None)

    def _extreme(self, op: str, x: Extent, y: Extent) -> Extent:
        one_is_enough = {"min": (_call, _whichever), "max": (_whichever, _call)}
        low, high = one_is_enough[op]
        return Extent(low(op, x.lo, y.lo), high(op, x.hi, y.hi), same_way([x.way, y.way]))

    def _abs(self, x: Extent) -> Extent:
        up = None if x.lo is None else apply("neg", x.lo)
        down = None if x.hi is None else apply("neg", x.hi)
        lo = _whichever("max", _whichever("max", x.lo, down), Const(0))
        low = None if x.lo is None else least(x.lo, self.facts)
        return Extent(lo, _call("max", x.hi, up), x.way if low is not None and low >= 0 else None)

    def _where(self, condition: Expr, x: Extent, y: Extent) -> Extent:
        if self.tile in symbols(condition):
            holds, _ = self.condition(condition)
            return Extent(self._end("min", holds, x.lo, y.lo), self._end("max", holds, x.hi, y.hi), None)
        lo = None if x.lo is None or y.lo is None else apply("where", condition, x.lo, y.lo)
        hi = None if x.hi is None or y.hi is None else apply("where", condition, x.hi, y.hi)
        return Extent(lo, hi, same_way([x.way, y.way]))

    def _end(self, op: str, holds: Condition, x: Expr | None, y: Expr | None) -> Expr | None:
        """The extreme of ``where(c, x, y)``: x if c must hold, y if it may not, else the extreme of both."""
        if x is None or y is None:
            return None
        first, second = (x, y) if op == "min" else (y, x)
        if at_most(first, second, self.facts):
            return apply("where", holds.may, x, y)
        if at_most(second, first, self.facts):
            return apply("where", holds.must, x, y)
        return apply("where", holds.must, x, apply("where", holds.may, apply(op, x, y), y))

    def _lookup(self, expr: Element | Search) -> Extent:
        if any(
            self.tile in symbols(x)
            for x in (expr.indices[:-1] if isinstance(expr, Element) else expr.indices)
        ):
            return UNKNOWN
        if isinstance(expr, Search):
            value = self.extent(expr.value)
            lo, hi = (
                None if v is None else Search(expr.tensor, expr.indices, v, expr.side, expr.size)
                for v in (value.lo, value.hi)
            )
            return Extent(lo or Const(0), hi or expr.size, value.way)
        size = self.sorted_tensors.get(expr.tensor)
        if size is None or expr.type != "int":
            return UNKNOWN
        at = self.extent(expr.indices[-1])
        ends: list[Expr | None] = []
        for end in (at.lo, at.hi):
            inside = (
                None
                if end is None
                else apply("max", apply("min", end, normal(apply("sub", size, Const(1)))), Const(0))
            )
            ends.append(
                None if inside is None else Element(expr.tensor, (*expr.indices[:-1], inside), expr.type)
            )
        return Extent(ends[0], ends[1], at.way)

    def condition(self, expr: Expr) -> tuple[Condition, bool]:
        """Return when a condition may and must hold over the tile, and whether that is exact."""
        if self.tile not in symbols(expr):
            return Condition(expr, expr), True
        match expr:
            case Apply("lt" | "le" | "gt" | "ge" | "eq" | "ne" as op, (a, b)) if _of_integers(expr):
                if self.tile not in symbols(b):
                    return self._comparison(op, self.extent(a), b)
                if self.tile not in symbols(a):
                    return self._comparison(MIRRORED[op], self.extent(b), a)
                return self._comparison(op, self.extent(build(linear(a).plus(linear(b), -1))), Const(0))
            case Apply("not", (a,)):
                inner, exact = self.condition(a)
                return Condition(apply("not", inner.must), apply("not", inner.may)), exact
            case _:
                return Condition(TRUE, FALSE), False

    def _comparison(self, op: str, d: Extent, limit: Expr) -> tuple[Condition, bool]:
        """``d op limit`` for a limit that is the same over the tile."""

        def test(relation: str, end: Expr | None, unknown: Expr) -> Expr:
            return unknown if end is None else apply(relation, end, limit)

        if op in ("lt", "le"):
            return Condition(test(op, d.lo, TRUE), test(op, d.hi, FALSE)), d.way is not None
        if op in ("gt", "ge"):
            return Condition(test(op, d.hi, TRUE), test(op, d.lo, FALSE)), d.way is not None
        may = apply("and", test("le", d.lo, TRUE), test("ge", d.hi, TRUE))
        must = apply("and", test("ge", d.lo, FALSE), test("le", d.hi, FALSE))
        if op == "ne":
            may, must = apply("not", must), apply("not", may)
        return Condition(may, must), False


def _of_integers(expr: Expr) -> bool:
    """Whether nothing in an expression is a float, whose comparison is not that of a difference with zero."""
    return all(type_of(e) != "float" for e in walk(expr))
