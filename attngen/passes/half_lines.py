"""Solve a predicate for one position: an and/or tree whose leaves are ``key >= e`` or ``key < e``.

Every rewrite is an equivalence over the integers, so the tree is the predicate: nothing is widened here. A
comparison is brought to ``sum <= 0`` and the operator nearest to the key is peeled off until the key stands
alone:

    a*x + r <= 0                x <= -r // a                          (a > 0)
    x // c + r <= 0             x + c*r - c + 1 <= 0                  (c > 0)
    min(x, y) + r <= 0          x + r <= 0 or y + r <= 0              (max, abs: and)
    t[x] + r <= 0, t ascends    x < first position whose element is greater than -r

What does not yield (a remainder of the key, an unsorted tensor, floats, a product of both positions) is an
`Opaque` leaf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from attngen.ir.expr import (
    Apply,
    Const,
    Element,
    Expr,
    Search,
    Symbol,
    apply,
    symbols,
    text,
    type_of,
    walk,
)
from attngen.ir.linear import Facts, Linear, build, fold_remainders, linear, normal, quotient, scaled, sign

MAX_LEAVES = 128  # of one predicate; comparisons beyond stay residual
FLIPPED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


@dataclass(frozen=True, slots=True)
class Bound:
    """``key >= at`` or ``key < at``; ``at`` is free of the key."""

    side: Literal["ge", "lt"]
    at: Expr


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition free of the key."""

    condition: Expr


@dataclass(frozen=True, slots=True)
class Opaque:
    """A condition that is not solved for the key."""

    condition: Expr
    reason: str


@dataclass(frozen=True, slots=True)
class Join:
    """All (and) or any (or) of the parts; an empty ``and`` is true, an empty ``or`` false."""

    op: Literal["and", "or"]
    parts: tuple[Tree, ...]


Tree = Bound | Gate | Opaque | Join


class _TooLarge(Exception):
    pass


@dataclass(slots=True)
class Solver:
    """Solves predicates for the symbol ``key``; the result may depend on everything else."""

    key: str
    tile: str
    sorted_tensors: Mapping[str, Expr]
    facts: Facts
    leaves: int = 0

    def solve(self, predicate: Expr, holds: bool = True) -> Tree:
        """Return the tree of the predicate, or of its negation."""
        names = symbols(predicate)
        if self.key not in names and (self.tile not in names or not _is_join(predicate)):
            return _gate(normal(predicate), holds)
        match predicate:
            case Apply("not", (a,)):
                return self.solve(a, not holds)
            case Apply("and" | "or" as op, (a, b)):
                return Join(
                    "and" if (op == "and") == holds else "or", (self.solve(a, holds), self.solve(b, holds))
                )
            case Apply("where", (c, a, b)):
                return self._either(c, self.solve(a, holds), self.solve(b, holds))
            case Apply("lt" | "le" | "gt" | "ge" | "eq" | "ne" as op, (a, b)):
                return self._comparison(predicate, op, a, b, holds)
            case _:
                return self._opaque(predicate, holds, "its value is looked up for each element")

    def _either(self, condition: Expr, then: Tree, other: Tree) -> Tree:
        yes = Join("and", (self.solve(condition), then))
        return Join("or", (yes, Join("and", (self.solve(condition, False), other))))

    def _opaque(self, predicate: Expr, holds: bool, reason: str) -> Tree:
        return Opaque(predicate if holds else apply("not", predicate), reason)

    def _comparison(self, whole: Expr, op: str, a: Expr, b: Expr, holds: bool) -> Tree:
        if type_of(a) == "bool" and type_of(b) == "bool" and op in ("eq", "ne"):
            same = (op == "eq") == holds
            return self._either(a, self.solve(b, same), self.solve(b, not same))
        if any(type_of(e) == "float" for e in walk(whole)):
            return self._opaque(whole, holds, "it computes with floats")
        try:
            return self._sides(op if holds else FLIPPED[op], linear(normal(a)), linear(normal(b)))
        except _TooLarge:
            return self._opaque(whole, holds, "it has too many cases")
        except _Unsolved as error:
            return self._opaque(whole, holds, str(error))

    def _sides(self, op: str, a: Linear, b: Linear) -> Tree:
        less = [a.plus(b, -1)] if op in ("le", "eq") else []
        less += [b.plus(a, -1)] if op in ("ge", "eq") else []
        less += [a.plus(b, -1).plus(Linear({}, 1))] if op in ("lt", "ne") else []
        less += [b.plus(a, -1).plus(Linear({}, 1))] if op in ("gt", "ne") else []
        parts = tuple(self.at_most_zero(d) for d in less)
        return parts[0] if len(parts) == 1 else Join("or" if op == "ne" else "and", parts)

    def at_most_zero(self, a: Linear) -> Tree:
        """Return the tree of ``a <= 0``."""
        a = fold_remainders(a)
        self.leaves += 1
        if self.leaves > MAX_LEAVES:
            raise _TooLarge
        mixed = [t for t in a.terms if self.key in symbols(t)]
        if not mixed:
            return Gate(_nonpositive(a))
        for term in mixed:
            split = self._split(a.terms[term], term, a.without(term))
            if split is not None:
                return split
        if len(mixed) > 1:
            raise _Unsolved(_why(mixed[0], self.key))
        return self._alone(a.terms[mixed[0]], mixed[0], a.without(mixed[0]))

    def _split(self, k: int, term: Expr, rest: Linear) -> Tree | None:
        """Cases of ``k * term + rest <= 0`` that hold whatever the rest is."""
        match term:
            case Apply("min" | "max" as op, (x, y)):
                parts = tuple(self.at_most_zero(rest.plus(linear(z), k)) for z in (x, y))
                return Join("or" if (op == "min") == (k > 0) else "and", parts)
            case Apply("abs", (x,)):
                parts = tuple(self.at_most_zero(rest.plus(linear(x), s)) for s in (k, -k))
                return Join("and" if k > 0 else "or", parts)
            case Apply("where", (c, x, y)):
                then, other = (self.at_most_zero(rest.plus(linear(z), k)) for z in (x, y))
                return self._either(c, then, other)
            case Apply("floordiv", (x, c)) if self.key not in symbols(c):
                return self._quotient(k, linear(x), c, rest)
            case _:
                return None

    def _quotient(self, k: int, x: Linear, c: Expr, rest: Linear) -> Tree | None:
        """Solve ``k * (x // c) + rest <= 0``."""
        if abs(k) > 1:
            if any(self.key in symbols(t) for t in rest.terms):
                return None
            rest = _divided(rest, abs(k))
        which = sign(c, self.facts)
        if not which:
            raise _Unsolved(f"the sign of {text(c)} is not known")
        return self._positive_quotient(
            k, x if which > 0 else _minus(x), c if which > 0 else apply("neg", c), rest
        )

    def _positive_quotient(self, k: int, x: Linear, c: Expr, rest: Linear) -> Tree:
        moved = scaled(rest, c)
        if k < 0:
            return self.at_most_zero(moved.plus(x, -1))
        return self.at_most_zero(x.plus(moved).plus(linear(c), -1).plus(Linear({}, 1)))

    def _alone(self, k: int, term: Expr, rest: Linear) -> Tree:
        """Solve ``k * term + rest <= 0`` where only the term depends on the key."""
        limit = _divided(rest, abs(k))  # k > 0: term + limit <= 0; k < 0: limit - term <= 0
        match term:
            case Symbol():
                one = Linear({}, 1)
                return Bound("lt", build(one.plus(limit, -1))) if k > 0 else Bound("ge", build(limit))
            case Element(name, (*outer, last), "int") if name in self.sorted_tensors and self._free(outer):
                value = build(_minus(limit)) if k > 0 else build(limit)
                side = "right" if k > 0 else "left"
                found = Linear({Search(name, tuple(outer), value, side, self.sorted_tensors[name]): 1})
                position = linear(last)
                return self.at_most_zero(
                    position.plus(found, -1).plus(Linear({}, 1)) if k > 0 else found.plus(position, -1)
                )
            case Apply("mul", (x, y)):
                for inner, factor in ((x, y), (y, x)):
                    s = sign(factor, self.facts) if self._free([factor]) else 0
                    if s:
                        return self._product(
                            k * s, linear(inner), factor if s > 0 else apply("neg", factor), limit
                        )
            case _:
                pass
        raise _Unsolved(_why(term, self.key))

    def _product(self, k: int, x: Linear, factor: Expr, limit: Linear) -> Tree:
        """Solve ``x * factor <= -limit`` (k > 0) or ``limit <= x * factor`` (k < 0) for a positive factor."""
        below = apply("floordiv", build(_minus(limit)), factor)
        return self.at_most_zero(x.plus(linear(below), -1) if k > 0 else _minus(linear(below)).plus(x, -1))

    def _free(self, parts: list[Expr]) -> bool:
        return all(self.key not in symbols(p) for p in parts)


def opposite(tree: Tree) -> Tree:
    """Return the tree of the negation, leaf by leaf."""
    match tree:
        case Bound(side, at):
            return Bound("lt" if side == "ge" else "ge", at)
        case Gate(condition):
            return Gate(negated(condition))
        case Opaque(condition, reason):
            return Opaque(apply("not", condition), reason)
        case Join(op, parts):
            return Join("or" if op == "and" else "and", tuple(opposite(p) for p in parts))


class _Unsolved(Exception):
    pass


def _is_join(predicate: Expr) -> bool:
    return isinstance(predicate, Apply) and predicate.op in ("and", "or", "not", "where")


def _gate(condition: Expr, holds: bool) -> Tree:
    """Return the gate; a constant one is an empty join."""
    if isinstance(condition, Const):
        return Join("and" if bool(condition.value) == holds else "or", ())
    return Gate(condition if holds else negated(condition))


def negated(condition: Expr) -> Expr:
    """Return the negation; a comparison of integers is flipped, so that two negations meet again."""
    match condition:
        case Apply("lt" | "le" | "gt" | "ge" | "eq" | "ne" as op, (a, b)) if "float" not in (
            type_of(a),
            type_of(b),
        ):
            return apply(FLIPPED[op], a, b)
        case _:
            return apply("not", condition)


def _nonpositive(a: Linear) -> Expr:
    """``a <= 0`` as a condition, with the constant on the right."""
    return apply("le", build(Linear(a.terms)), Const(-a.constant))


def _minus(a: Linear) -> Linear:
    return Linear({}).plus(a, -1)


def _divided(a: Linear, n: int) -> Linear:
    """``ceil(a / n)``: what ``k * t + a <= 0`` leaves of a, for either sign of k.

    k = n > 0: ``t <= floor(-a / n)``, and ``-floor(-a / n)`` is the ceiling. k = -n: ``t >= ceil(a / n)``.
    """
    if n == 1:
        return a
    return _minus(quotient(_minus(a), n))


def _why(term: Expr, key: str) -> str:
    for part in walk(term):
        match part:
            case Apply("mod", (x, _)) if key in symbols(x):
                return f"it takes a remainder of {key}"
            case Element(name, indices, _) if any(key in symbols(x) for x in indices):
                return f"{name} is read at {key} and is not declared sorted"
            case _:
                pass
    return f"{text(term)} cannot be solved for {key}"
