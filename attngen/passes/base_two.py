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
from attngen.ir.nodes import Fold, Map, Node

LOG2E = math.log2(math.e)
S = Symbol("s", "float")
POSITIONS = frozenset({"s", "i", "j", "row", "qk", "lse", "lse2"})


@dataclass(frozen=True, slots=True)
class BaseTwo:
    """Needs: folds with base e whose element is a chain of maps. Leaves: folds with base 2, at most one map each."""

    name: str = "base-two"

    def apply(self, graph: Graph) -> Graph:
        """Rewrite every softmax fold to base 2."""
        for name, fold in graph.all(Fold):
            if fold.monoid == "softmax" and fold.base == "e":
                graph = _rewrite(_adjoints(graph, fold), name, fold)
        return graph


def _chain(graph: Graph, top: str) -> tuple[str, dict[str, Expr]]:
    """The node below a chain of maps, and what each map of the chain computes of it (symbol s), the top one first."""
    chain: list[tuple[str, Map]] = []
    while isinstance(node := graph.nodes[top], Map):
        chain.append((top, node))
        top = node.operand
    formulas: dict[str, Expr] = {}
    below: Expr = S
    for name, node in reversed(chain):
        below = ex.substitute(node.expr, {"s": below})
        formulas[name] = below
    return top, dict(reversed(formulas.items()))


def _adjoints(graph: Graph, fold: Fold) -> Graph:
    """The backward of a fold: weights by exp2 of raw scores and of lse in base two, slopes as functions of raw scores, and
    the loop-invariant factor of what a Sum fold adds after its sum."""
    if "p" not in graph.nodes:
        return graph
    source, formulas = _chain(graph, fold.element)
    raw = {name: ex.substitute(formula, {"s": Symbol(source, "float")}) for name, formula in formulas.items()}
    lse2 = Map(operand="lse", expr=Apply("mul", (S, Const(LOG2E))), axes=graph_axes(graph, "lse"))
    changed: dict[str, Node] = {"lse2": lse2}
    for name, node in graph.all(Map):
        if name in formulas or name == "delta":
            continue
        others = dict.fromkeys(source if other in raw else other for other in node.others)
        read = tuple("lse2" if other == "lse" else other for other in others)
        operand, expr = node.operand, _slope(ex.substitute(node.expr, raw))
        if "lse" in others and operand == fold.element:
            operand, expr = source, _weight(formulas[fold.element])
        elif "lse" in others:
            expr = _weights(expr)
        changed[name] = replace(node, operand=operand, others=read, expr=expr, captured=ex.tensors(expr))
    graph = graph.with_nodes(changed)
    folds = {
        name: _after_sum(graph, node) for name, node in graph.all(Fold) if node.monoid == "sum" and node.value
    }
    graph = graph.with_nodes(folds)
    while unread := {n for n, _ in graph.all(Map) if n in changed and not graph.dag.out_degree(n)}:
        graph = graph.without(unread)
    return graph


def graph_axes(graph: Graph, name: str) -> tuple[str, ...]:
    """The axes of a node's value."""
    return getattr(graph.nodes[name], "axes", ())


def _weight(formula: Expr) -> Expr:
    """A probability from a raw score: in base two, with one factor where the score is a positive multiple."""
    factors = _factors(formula, LOG2E)
    scaled = factors.whole() if _is_positive_multiple(factors) else _scaled(formula, LOG2E)
    return Apply("weight_exp2", (scaled, Symbol("lse2", "float")))


def _weights(expr: Expr) -> Expr:
    if isinstance(expr, Apply) and expr.op == "weight":
        return Apply("weight_exp2", (_scaled(expr.args[0], LOG2E), Symbol("lse2", "float")))
    return ex.rebuild(expr, tuple(_weights(part) for part in ex.children(expr)))


def _slope(expr: Expr) -> Expr:
    """A gradient times a slope: s stays the first factor."""
    match expr:
        case Apply("mul", (Symbol("s"), slope)):
            return Apply("mul", (S, _scaled(slope, 1.0)))
        case _:
            return expr


def _after_sum(graph: Graph, fold: Fold) -> Fold:
    """Take loop-invariant factors of the element out of the sum."""
    element, factors = fold.element, list[Expr]()
    while isinstance(node := graph.nodes[element], Map):
        match node.expr:
            case Apply("mul", (Symbol("s"), slope)) if (
                _steady(slope) and not node.others and not node.captured
            ):
                factors.append(slope)
                element = node.operand
            case _:
                break
    return replace(fold, element=element, factor=ex.product(factors) if factors else None)


def _rewrite(graph: Graph, name: str, fold: Fold) -> Graph:
    source, formulas = _chain(graph, fold.element)
    chain = list(formulas)
    formula = formulas.get(fold.element, S)
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
            return _factors(
                a, number * (1.0 / float(value))
            )  # as a derivative has it: equal terms stay equal
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
            return Apply("where", (_tested(test), _scaled(a, number), _scaled(b, number)))
        case _:
            return _factors(expr, number).whole()


def _tested(test: Expr) -> Expr:
    """A truth value of lowered numbers."""
    parts = ex.children(test)
    return ex.rebuild(test, tuple(_scaled(x, 1.0) if ex.type_of(x) == "float" else _tested(x) for x in parts))


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
