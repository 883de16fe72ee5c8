"""Integer linear forms of expressions, and bounds of expressions that hold whatever the values are.

A `Linear` is ``sum(a_k * t_k) + constant`` with integer a_k, where a term t_k is anything that is not
itself a sum: a symbol, an element, a quotient, a minimum. Two expressions with the same linear form have
the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from attngen.ir.expr import (
    Apply,
    Const,
    Expr,
    Search,
    Symbol,
    apply,
    children,
    rebuild,
    type_of,
)


@dataclass(frozen=True, slots=True)
class Linear:
    """``sum(coefficient * term) + constant``: no coefficient is zero, terms are in order of appearance."""

    terms: Mapping[Expr, int]
    constant: int = 0

    def plus(self, other: Linear, times: int = 1) -> Linear:
        """Return ``self + times * other``."""
        terms = dict(self.terms)
        for term, a in other.terms.items():
            terms[term] = terms.get(term, 0) + times * a
        return Linear({t: a for t, a in terms.items() if a}, self.constant + times * other.constant)

    def without(self, term: Expr) -> Linear:
        """Return the sum less one term."""
        return Linear({t: a for t, a in self.terms.items() if t != term}, self.constant)


@lru_cache(maxsize=4096)
def linear(expr: Expr) -> Linear:
    """Return the linear form of an integer expression."""
    if any(type_of(e) == "float" for e in (expr, *children(expr))):
        return Linear({expr: 1})
    match expr:
        case Const(value):
            return Linear({}, int(value))
        case Apply("add" | "sub" as op, (a, b)):
            return fold_remainders(linear(a).plus(linear(b), 1 if op == "add" else -1))
        case Apply("neg", (a,)):
            return Linear({}).plus(linear(a), -1)
        case Apply("mul", (a, b)):
            return _product(linear(a), linear(b))
        case Apply("floordiv", (a, Const(c))) if c:
            return quotient(linear(a), int(c))
        case _:
            return Linear({expr: 1})


def _product(a: Linear, b: Linear) -> Linear:
    if not a.terms or not b.terms:
        return Linear({}).plus(a, b.constant) if not b.terms else Linear({}).plus(b, a.constant)
    return Linear({apply("mul", build(a), build(b)): 1})


def scaled(a: Linear, factor: Expr) -> Linear:
    """Return ``a * factor``: the factor, any integer expression, is multiplied into each term."""
    if isinstance(factor, Const):
        return Linear({}).plus(a, int(factor.value))
    whole = Linear({apply("mul", t, factor): k for t, k in a.terms.items()})
    return whole.plus(linear(factor), a.constant)


def quotient(a: Linear, c: int) -> Linear:
    """Return ``a // c`` for c != 0.

    By ``(g x + k) // (g c) = (x + k // g) // c`` and ``(x + c k) // c = x // c + k``.
    """
    if c < 0:
        return quotient(Linear({}).plus(a, -1), -c)
    g = math.gcd(c, *a.terms.values())
    small, c = Linear({t: k // g for t, k in a.terms.items()}, a.constant // g), c // g
    whole, rest = divmod(small.constant, c)
    inner = Linear(small.terms, rest)
    if c == 1:
        return Linear(inner.terms, whole)
    return Linear({Apply("floordiv", (build(inner), Const(c))): 1} if inner.terms else {}, whole)


def fold_remainders(a: Linear) -> Linear:
    """``x - x % c`` is ``x // c * c``: rewrite where that shortens the sum."""
    for term, k in a.terms.items():
        match term:
            case Apply("mod", (x, Const(c))) if c > 0:
                base = linear(x)
                shorter = a.without(term).plus(base, k).plus(quotient(base, int(c)), -k * int(c))
                if len(shorter.terms) < len(a.terms):
                    return fold_remainders(shorter)
            case _:
                pass
    return a


def build(a: Linear) -> Expr:
    """Return the sum as an expression: positive terms, negative terms, the constant."""
    result: Expr | None = None
    for term, k in sorted(a.terms.items(), key=lambda item: item[1] < 0):
        if result is None:
            result = term if k == 1 else apply("neg", term) if k == -1 else apply("mul", term, Const(k))
            if k < 0 and a.constant > 0:
                first = term if k == -1 else apply("mul", term, Const(-k))
                result, a = apply("sub", Const(a.constant), first), Linear(a.terms)
        else:
            part = term if abs(k) == 1 else apply("mul", term, Const(abs(k)))
            result = apply("add" if k > 0 else "sub", result, part)
    return Const(a.constant) if result is None else apply("add", result, Const(a.constant))


def normal(expr: Expr) -> Expr:
    """Return the expression with every integer sum in it in its linear form."""
    if isinstance(expr, Const | Symbol):
        return expr
    expr = rebuild(expr, tuple(normal(c) for c in children(expr)))
    if (
        isinstance(expr, Apply)
        and expr.op in ("add", "sub", "neg", "mul", "floordiv")
        and type_of(expr) == "int"
    ):
        return build(linear(expr))
    return expr


# ---- bounds


def _no_rewrites() -> tuple[Mapping[str, Expr], ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What may be assumed: lower bounds of symbols, and ways to write symbols as sums with slack.

    ``i_lo <= i_hi < n`` is the rewrite ``{i_lo: n - 1 - e - d, i_hi: n - 1 - e}`` with d and e at least 0.
    The `definitions` are the bindings of a plan, free of each other, so that a proof may look through them.
    """

    least: Mapping[str, int] = field(default_factory=dict[str, int])
    rewrites: tuple[Mapping[str, Expr], ...] = field(default_factory=_no_rewrites)
    definitions: dict[str, Expr] = field(default_factory=dict[str, Expr])
    proofs: dict[tuple[Expr, Expr], bool] = field(default_factory=dict[tuple[Expr, Expr], bool], repr=False)


def least(expr: Expr, facts: Facts) -> int | None:
    """Return a proved lower bound, if there is one."""
    return least_of(linear(expr), facts)


def most(expr: Expr, facts: Facts) -> int | None:
    """Return a proved upper bound, if there is one."""
    low = least_of(Linear({}).plus(linear(expr), -1), facts)
    return None if low is None else -low


def sign(expr: Expr, facts: Facts) -> int:
    """Return 1 or -1 if the expression is proved positive or negative, else 0."""
    low, high = least(expr, facts), most(expr, facts)
    return 1 if low is not None and low > 0 else -1 if high is not None and high < 0 else 0


def least_of(a: Linear, facts: Facts) -> int | None:
    """Return a proved lower bound of a sum: that of its terms."""
    total = a.constant
    for term, k in a.terms.items():
        bound = _least_term(term, facts) if k > 0 else _most_term(term, facts)
        if bound is None:
            return None
        total += k * bound
    return total


def _both(pick: Callable[[int, int], int], a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else pick(a, b)


def _either(pick: Callable[[int, int], int], a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else pick(a, b)


def _least_term(term: Expr, facts: Facts) -> int | None:
    match term:
        case Symbol(name):
            return facts.least.get(name)
        case Search():
            return 0
        case Apply("min", (a, b)) | Apply("where", (_, a, b)):
            return _both(min, least(a, facts), least(b, facts))
        case Apply("max", (a, b)):
            return _either(max, least(a, facts), least(b, facts))
        case Apply("abs", (a,)):
            return _either(max, least(a, facts), 0)
        case Apply("mod", (_, c)):
            return 0 if sign(c, facts) > 0 else None
        case Apply("floordiv" | "mul" as op, (a, b)):
            return _least_of_two(op, a, b, facts)
        case _:
            return None


def _least_of_two(op: str, a: Expr, b: Expr, facts: Facts) -> int | None:
    x, y = least(a, facts), least(b, facts)
    if op == "mul":
        return x * y if x is not None and y is not None and x >= 0 and y >= 0 else None
    if x is None or y is None or y < 1:
        return None
    return x // int(b.value) if isinstance(b, Const) else min(x, 0)


def _most_term(term: Expr, facts: Facts) -> int | None:
    match term:
        case Apply("max", (a, b)) | Apply("where", (_, a, b)):
            return _both(max, most(a, facts), most(b, facts))
        case Apply("min", (a, b)):
            return _either(min, most(a, facts), most(b, facts))
        case Apply("mod", (_, Const(c))) if c > 0:
            return int(c) - 1
        case Apply("floordiv", (a, Const(c))) if c > 0:
            high = most(a, facts)
            return None if high is None else high // int(c)
        case _:
            return None
