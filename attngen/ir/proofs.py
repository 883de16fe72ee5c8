"""Sound proofs of inequalities between expressions: "yes" is certain, "no" says that no proof was found.

Minima and maxima are decided as in a free lattice; what is left, sums, by the bounds of their terms. A
search is small: each pair of expressions is decided once, up to a limit, and few quotients are relaxed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attngen.ir.expr import Apply, Const, Expr, Symbol, apply, substitute, symbols, walk
from attngen.ir.linear import Facts, Linear, build, least_of, linear, normal, sign

MAX_DEPTH = 4  # quotients relaxed in one proof
MAX_STEPS = 100  # pairs decided in one proof
MAX_NODES = 240  # of both sides of a proof


def at_most(x: Expr, y: Expr, facts: Facts) -> bool:
    """Return whether ``x <= y`` is proved for all values that agree with the facts."""
    if facts.definitions:
        x, y = substitute(x, facts.definitions), substitute(y, facts.definitions)
    if nodes(x) + nodes(y) > MAX_NODES:
        return False
    return _Search(facts, len(facts.proofs) + MAX_STEPS).at_most(x, y)


def nodes(expr: Expr) -> int:
    """Return the number of operators and leaves of an expression."""
    return sum(1 for _ in walk(expr))


@dataclass(frozen=True, slots=True)
class _Search:
    """One proof; it gives up once the facts hold ``limit`` decided pairs."""

    facts: Facts
    limit: int

    def at_most(self, x: Expr, y: Expr) -> bool:
        proofs = self.facts.proofs
        known = proofs.get((x, y))
        if known is None:
            known = x == y or (len(proofs) < self.limit and self.by_cases(x, y))
            proofs[x, y] = known
        return known

    def by_cases(self, x: Expr, y: Expr) -> bool:
        """Decide minima and maxima: first what must hold for both parts, then what may for either."""
        low = least_of(linear(y).plus(linear(x), -1), self.facts)
        if low is not None and low >= 0:
            return True
        match _lifted(x), _lifted(y):
            case Apply("max", parts), _:
                return all(self.at_most(a, y) for a in parts)
            case _, Apply("min", parts):
                return all(self.at_most(x, b) for b in parts)
            case Apply("where", (_, *parts)), _:
                return all(self.at_most(a, y) for a in parts)
            case _, Apply("where", (_, *parts)):
                return all(self.at_most(x, b) for b in parts)
            case Apply("min", parts), Apply("max", others):
                return any(self.at_most(a, y) for a in parts) or any(self.at_most(x, b) for b in others)
            case Apply("min", parts), _:
                return any(self.at_most(a, y) for a in parts)
            case _, Apply("max", others):
                return any(self.at_most(x, b) for b in others)
            case Apply("floordiv", (a, c)), Apply("floordiv", (b, d)) if c == d and sign(c, self.facts) > 0:
                return self.at_most(a, b) or self.of_sums(x, y)
            case _:
                return self.of_sums(x, y)

    def of_sums(self, x: Expr, y: Expr) -> bool:
        return _difference(linear(y).plus(linear(x), -1), self.facts)


def _lifted(expr: Expr) -> Expr:
    """``min(a, b) + c`` is ``min(a + c, b + c)``: bring a minimum, a maximum or a choice to the front."""
    form = linear(expr)
    for term, k in form.terms.items():
        match term:
            case Apply("min" | "max" | "where" as op, args):
                rest = form.without(term)
                a, b = (build(rest.plus(linear(x), k)) for x in args[-2:])
                if op == "where":
                    return Apply(op, (args[0], a, b))
                return Apply(op if k > 0 else "max" if op == "min" else "min", (a, b))
            case _:
                pass
    return expr


def _difference(d: Linear, facts: Facts) -> bool:
    """Whether ``d >= 0`` is proved, as it stands or rewritten."""
    if _nonnegative(d, facts, MAX_DEPTH):
        return True
    names = {name for term in d.terms for name in symbols(term)}
    return any(
        _nonnegative(_rewritten(d, table), facts, MAX_DEPTH)
        for table in facts.rewrites
        if names & table.keys()
    )


def _rewritten(d: Linear, table: Mapping[str, Expr]) -> Linear:
    result = Linear({}, d.constant)
    for term, k in d.terms.items():
        if isinstance(term, Symbol):
            result = result.plus(linear(table.get(term.name, term)), k)
        else:
            result = result.plus(linear(normal(substitute(term, table))), k)
    return result


def _nonnegative(a: Linear, facts: Facts, depth: int) -> bool:
    """Search for a proof of ``a >= 0``: a lower bound, or that of a sum where a quotient is relaxed."""
    low = least_of(a, facts)
    if low is not None or depth == 0:
        return low is not None and low >= 0
    for term, k in a.terms.items():
        rest = a.without(term)
        match term:
            case Apply("floordiv", (x, c)):
                options = _relaxed(rest, k, x, c, facts)
            case Apply("mul", (Apply("floordiv", (x, c)), d)) if c == d and sign(c, facts) > 0:
                slack = linear(x) if k < 0 else linear(x).plus(linear(c), -1).plus(Linear({}, 1))
                options = [rest.plus(slack, k)]
            case _:
                options = []
        if any(_nonnegative(option, facts, depth - 1) for option in options):
            return True
    return False


def _relaxed(rest: Linear, k: int, x: Expr, c: Expr, facts: Facts) -> list[Linear]:
    """Sums that are at most a positive multiple of ``rest + k * (x // c)``."""
    if sign(c, facts) <= 0:
        return []
    found: list[Linear] = []
    for term, m in rest.terms.items():
        match term:
            case Apply("floordiv", (y, d)) if d == c and k > 0 and m == -k:
                # x // c - y // c >= (x - y) // c
                difference = normal(apply("floordiv", build(linear(x).plus(linear(y), -1)), c))
                found.append(rest.without(term).plus(linear(difference), k))
            case _:
                pass
    if isinstance(c, Const):
        n = int(c.value)
        bound = linear(x) if k < 0 else linear(x).plus(Linear({}, 1 - n))
        found.append(Linear({}).plus(rest, n).plus(bound, k))
    return found


def tile_facts(tile: str, end: Expr, block: Expr, known_least: Mapping[str, int]) -> Facts:
    """Return the facts of a tile: ``{tile}_lo <= {tile}_hi < end``, no size is negative, no block empty."""
    lo, hi = f"{tile}_lo", f"{tile}_hi"
    rows, room = Symbol("rows after the first"), Symbol("positions after the last")
    sizes = dict.fromkeys(("b", "h", "hk", "seqlen_q", "seqlen_k", rows.name, room.name), 0)
    if isinstance(block, Symbol):
        sizes[block.name] = 1
    last = apply("sub", apply("sub", end, Const(1)), room)
    from_the_end: dict[str, Expr] = {lo: apply("sub", last, rows), hi: last}
    from_the_start: dict[str, Expr] = {hi: apply("add", Symbol(lo), rows)}
    return Facts(least={**sizes, **known_least}, rewrites=(from_the_start, from_the_end))
