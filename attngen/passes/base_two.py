"""Base two: exponentials as exp2, and every constant around them gathered into one loop-invariant factor.

GPUs have exp2 and no exp. For a plain score the factor ``softmax_scale * log2(e)`` moves inside the fold's exponential, where
it costs nothing (one fused multiply-add); for other scores it is spread over the formula's terms and meets their constants.
A tanh takes the factor that stands before it: computed from exp2, it ends in a multiply-add anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Element, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Map

LOG2E = math.log2(math.e)
POSITIONS = frozenset({"s", "i", "j", "row"})


@dataclass(frozen=True, slots=True)
class BaseTwo:
    """Needs: folds with base e whose element is a chain of maps. Leaves: folds with base 2, at most one map each."""

    name: str = "base-two"

    def apply(self, graph: Graph) -> Graph:
        """Rewrite every softmax fold to base 2."""
        for name, fold in graph.all(Fold):
            if fold.base == "e":
                graph = _rewrite(graph, name, fold)
        return graph


def _rewrite(graph: Graph, name: str, fold: Fold) -> Graph:
    chain: list[str] = []
    source = fold.element
    formula: Expr = Symbol("s", "float")
    while isinstance(node := graph.nodes[source], Map):
        formula = ex.substitute(formula, {"s": node.expr})
        chain.append(source)
        source = node.operand
    factors = _factors(formula, LOG2E)
    if _is_positive_multiple(factors):
        changed = {name: replace(fold, base="2", element=source, factor=factors.steady())}
        return graph.without(set(chain)).with_nodes(changed)
    formula = _scaled(formula, LOG2E)
    keep, *rest = chain
    node = graph.nodes[keep]
    assert isinstance(node, Map)
    scores = replace(node, operand=source, expr=formula, captured=ex.tensors(formula))
    return graph.without(set(rest)).with_nodes({keep: scores, name: replace(fold, base="2")})


def _is_positive_multiple(factors: _Factors) -> bool:
    """Whether the element is s times a factor known to be positive (softmax_scale is: launchers refuse others)."""
    known = all(f == Symbol("softmax_scale", "float") for f in factors.scalars)
    return factors.varying == [Symbol("s", "float")] and known and factors.number > 0


@dataclass(frozen=True, slots=True)
class _Factors:
    """A product taken apart: one number, factors that do not vary within a tile, and those that do."""

    number: float
    scalars: list[Expr]
    varying: list[Expr]

    def steady(self) -> Expr:
        """Return the loop-invariant part."""
        number = [Const(self.number)] if self.number != 1.0 or not self.scalars else []
        return ex.product([*self.scalars, *number])

    def whole(self) -> Expr:
        """Return the product with the loop-invariant part as one factor."""
        if self.number == 1.0 and not self.scalars:
            return ex.product(self.varying)
        for n, factor in enumerate(self.varying):
            if isinstance(factor, Apply) and factor.op == "tanh_exp2" and factor.args[1] == Const(1.0):
                scaled = Apply("tanh_exp2", (factor.args[0], self.steady()))
                return ex.product([*self.varying[:n], scaled, *self.varying[n + 1 :]])
        return ex.product([*self.varying, self.steady()])


def _factors(expr: Expr, number: float = 1.0) -> _Factors:
    """Take ``number * expr`` apart into factors. Divisors that do not vary become reciprocals."""
    match expr:
        case Const(value):
            return _Factors(number * float(value), [], [])
        case Apply("mul", (a, b)):
            left, right = _factors(a, number), _factors(b)
            return _Factors(
                left.number * right.number, left.scalars + right.scalars, left.varying + right.varying
            )
        case Apply("div", (a, Const(value))) if float(value) != 0.0:
            return _factors(a, number / float(value))
        case Apply("div", (a, b)) if _steady(b):
            top = _factors(a, number)
            return _Factors(top.number, [*top.scalars, Apply("div", (Const(1.0), b))], top.varying)
        case Apply("neg", (a,)):
            return _factors(a, -number)
        case _ if _steady(expr):
            return _Factors(number, [_lowered(expr)], [])
        case _ if ex.type_of(expr) == "int":  # a product of integers could overflow; as floats it only rounds
            return _Factors(number, [], [ex.apply("float", expr)])
        case _:
            return _Factors(number, [], [_lowered(expr)])


def _steady(expr: Expr) -> bool:
    return not (ex.symbols(expr) & POSITIONS)


def _scaled(expr: Expr, number: float) -> Expr:
    """Return ``number * expr``, with the number pushed into sums and choices where it meets other constants."""
    match expr:
        case Apply("add" | "sub" as op, (a, b)) if ex.type_of(expr) == "float":
            return Apply(op, (_scaled(a, number), _scaled(b, number)))
        case Apply("where", (test, a, b)):
            return Apply("where", (test, _scaled(a, number), _scaled(b, number)))
        case _:
            return _factors(expr, number).whole()


def _lowered(expr: Expr) -> Expr:
    """Return the same value with exponentials in base 2 and constants gathered, below the top of a product."""
    match expr:
        case Apply("exp", (a,)):
            return Apply("exp2", (_scaled(a, LOG2E),))
        case Apply("tanh", (a,)):
            return Apply("tanh_exp2", (_scaled(a, 2 * LOG2E), Const(1.0)))
        case Apply("sigmoid", (a,)):
            grown = Apply("exp2", (_scaled(a, -LOG2E),))
            return Apply("div", (Const(1.0), Apply("add", (Const(1.0), grown))))
        case Apply("add" | "sub" | "where", _) if ex.type_of(expr) == "float":
            return _scaled(expr, 1.0)
        case Apply(op, args) if ex.type_of(expr) == "float":
            return Apply(op, tuple(_scaled(a, 1.0) if ex.type_of(a) == "float" else a for a in args))
        case Const() | Symbol() | Element():
            return expr
        case _:
            return expr
