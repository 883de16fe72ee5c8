"""Differentiate: extend a semantic graph by the adjoints of its results, before anything is cut.

Reverse mode over the graph: one rule per node type turns the gradient of a node into gradients of its operands. The adjoint
of a contraction is a fold of the Sum monoid; score formulas are differentiated by sympy. With p the probabilities
(FlashAttention, arXiv:2205.14135, appendix B.2, equations in the same names):

    delta = rowsum(out * dout) - dlse,  p = exp(s - lse),  dp = dout v^T,  ds = p * (dp - delta)
    dq = sum over keys of ds k,  dk = sum over queries of ds^T q,  dv = sum over queries of p^T dout

Dropout multiplies p in dv, and dp: delta is the sum of p * dp over keys then, too.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from attngen.errors import InternalError, PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Element, Expr, Symbol
from attngen.ir.graph import Graph, name_taken
from attngen.ir.nodes import Contract, Domain, Finish, Fold, Input, Lift, Map, Merge, Node, Pad, Slice

S = Symbol("s", "float")
ROWS = ("B", "Hq", "Sq")
SCORES = (*ROWS, "Sk")


@dataclass(frozen=True, slots=True)
class Differentiate:
    """Needs: a semantic graph. Leaves: the same with one node ``d<input>`` per input that asks for a gradient."""

    name: str = "differentiate"

    def apply(self, graph: Graph) -> Graph:
        """Add the adjoints; a graph whose inputs ask for none is left as it is."""
        wanted = [name for name, node in graph.all(Input) if node.grad]
        if not wanted:
            return graph
        reverse = _Reverse(graph)
        for name in reversed(list(graph.order())):
            node = graph.nodes[name]
            if isinstance(node, Finish) or name in reverse.adjoint:
                RULES[type(node)](reverse, name, node)
        for name in wanted:
            if f"d{name}" not in reverse.nodes:
                raise _no_gradient(graph, name, f"only the mask reads {name}, so that its gradient is 0")
        return graph.with_nodes(reverse.nodes)


@dataclass(slots=True)
class _Reverse:
    """The adjoints so far: ``adjoint`` names the node that holds the gradient of a node's value."""

    graph: Graph
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    adjoint: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, name: str, node: Node) -> str:
        """Add a node under a name of its own; where there is none, the name of a param or captured tensor is in the way."""
        if (
            name in self.nodes or name in self.graph.nodes or keyword.iskeyword(name)
        ):  # ef has the gradient def
            given = {n for n, node in self.graph.all(Input) if node.role in ("captured", "scalar")}
            for other in (name, name.removeprefix("d"), name.removeprefix("ds_")):
                if other in given:
                    raise name_taken(self.graph.provenance.name, other, name)
            raise InternalError(f"differentiate: two nodes called {name}")
        self.nodes[name] = node
        return name

    def wants(self, tensor: str) -> bool:
        """Whether a tensor asks for a gradient: an input that does, or a view of one."""
        node = self.graph.nodes[tensor]
        return self.wants(node.operand) if isinstance(node, Slice) else isinstance(node, Input) and node.grad

    def give(self, tensor: str, reader: str, part: Fold | Pad) -> str:
        """Add what one reader of a tensor gives to its gradient; where there are two, the second's adds both up."""
        readers = list(self.graph.dag.successors(tensor))
        if len(readers) == 1:
            return self.add(f"d{tensor}", part)
        added = self.add(f"d{tensor}_{reader}", part)
        left, right = (f"d{tensor}_{name}" for name in readers)
        if {left, right} <= self.nodes.keys():
            self.add(f"d{tensor}", Merge(monoid="sum", left=left, right=right, axes=part.axes))
        return added

    @property
    def domain(self) -> tuple[Domain, tuple[str, ...]]:
        """Where scores exist: the domain of the softmax fold, and the captured tensors that its mask reads."""
        [fold] = [fold for _, fold in self.graph.all(Fold)]
        return fold.domain, fold.captured

    def sum(self, element: str, value: str, axis: str, axes: tuple[str, ...], **more: Any) -> Fold:
        """A fold of the Sum monoid over the places that the mask allows."""
        domain, captured = self.domain
        size = domain.size if axis == "Sk" else self.graph.axis(axis).size
        read = tuple(sorted({*captured, *(t for e in more.get("at", ()) for t in ex.tensors(e))}))
        return Fold(
            monoid="sum",
            element=element,
            value=value,
            captured=read,
            axis=axis,
            domain=replace(domain, size=size, table=False),
            axes=axes,
            **more,
        )


def _no_gradient(graph: Graph, tensor: str, reason: str) -> PlanError:
    return PlanError(f"{graph.provenance.name}: captured.{tensor}.grad: {reason}; declare it without 'grad'")


def _slope(node: Map, variable: Symbol | Element) -> Expr:
    """The derivative of a map's formula, over the map's operand by its own name. sympy, which is slow to import, is left to
    formulas that are more than a multiple or a sum."""
    match node.expr:
        case Apply("mul", (a, b)) if a == variable and not _mentions(b, variable):
            return ex.substitute(b, {"s": Symbol(node.operand, "float")})
        case Apply("add", (a, b)) if a == variable and not _mentions(b, variable):
            return Const(1.0)
        case _:
            pass
    from attngen.ir.symbolic import derivative

    return ex.substitute(derivative(node.expr, variable), {"s": Symbol(node.operand, "float")})


def _mentions(expr: Expr, variable: Expr) -> bool:
    return any(part == variable for part in ex.walk(expr))


def _finish(reverse: _Reverse, name: str, node: Finish) -> None:
    """Out and lse enter together, through delta: one rule for the pair, run when the first of them is met."""
    if node.operand in reverse.adjoint:
        return
    finished = {f.result: n for n, f in reverse.graph.all(Finish) if f.operand == node.operand}
    q = reverse.graph.nodes["q"]
    assert isinstance(q, Input)
    shared: dict[str, Any] = {"dtype": "io", "dtypes": q.dtypes, "layout": q.layout, "role": "gradient"}
    dout = reverse.add("dout", Input(axes=(*ROWS, "Dv"), **shared))
    dlse = reverse.add("dlse", Input(axes=ROWS, dtype="float32", role="gradient"))
    moved = reverse.add("out_dout", Contract(left=finished["out"], right=dout, over="Dv", axes=ROWS))
    change = ex.apply("sub", S, Symbol(dlse, "float"))
    reverse.adjoint[node.operand] = reverse.add(
        "delta", Map(operand=moved, others=(dlse,), expr=change, axes=ROWS)
    )


def _merge(reverse: _Reverse, name: str, node: Merge) -> None:
    """p and ds of either side need the merged lse alone, and so delta alone."""
    for side in (node.left, node.right):
        reverse.adjoint[side] = reverse.adjoint[name]


def _softmax(reverse: _Reverse, name: str, node: Fold) -> None:
    if node.monoid != "softmax":
        raise InternalError(f"differentiate: no adjoint of a {node.monoid} fold")
    graph = reverse.graph
    value = graph.nodes[node.value]
    assert isinstance(value, Input | Slice)
    precision = node.precision
    weight = Apply("weight", (S, Symbol("lse", "float")))
    p = reverse.add("p", Map(operand=node.element, others=("lse",), expr=weight, axes=SCORES))
    dp = reverse.add(
        "dp", Contract(left="dout", right=node.value, over="Dv", axes=SCORES, precision=precision)
    )
    kept = p
    if node.dropout:
        kept, dp = (_dropped(reverse, part, node.dropout) for part in (p, dp))
    rest = ex.apply("sub", S, Symbol("delta", "float"))
    change = ex.apply("mul", Symbol(p, "float"), rest)
    ds = reverse.add("ds", Map(operand=dp, others=(p, reverse.adjoint[name]), expr=change, axes=SCORES))
    reverse.adjoint[node.element] = ds
    if reverse.wants(node.value):
        dv = reverse.give(node.value, name, reverse.sum(kept, "dout", "Sq", value.axes, precision=precision))
        if isinstance(value, Slice):
            reverse.adjoint[node.value] = dv


def _slice(reverse: _Reverse, name: str, node: Slice) -> None:
    """The columns that a view leaves out get nothing of its gradient."""
    source = reverse.graph.nodes[node.operand]
    assert isinstance(source, Input)
    reverse.give(node.operand, name, Pad(operand=reverse.adjoint[name], axes=source.axes))


def _dropped(reverse: _Reverse, operand: str, dropout: str) -> str:
    """The node that holds a value times what dropout multiplied weights with."""
    change = ex.apply("mul", S, Symbol(dropout, "float"))
    return reverse.add(
        f"{operand}_{dropout}", Map(operand=operand, others=(dropout,), expr=change, axes=SCORES)
    )


def _lift(reverse: _Reverse, name: str, node: Lift) -> None:
    """A sink has a weight like any key and no value: its ds is -p delta, summed over the rows of a head."""
    source = reverse.graph.nodes[node.operand]
    assert isinstance(source, Input)
    if not source.grad:
        return
    index = Element(node.operand, (Symbol("h", "int"),), "float")
    weight = Apply("weight", (index, Symbol("lse", "float")))
    change = ex.apply("neg", ex.apply("mul", weight, S))
    delta = reverse.adjoint[name]
    moved = Map(operand=delta, others=("lse",), captured=(node.operand,), expr=change, axes=ROWS)
    element = reverse.add(f"ds_{node.operand}", moved)
    size = reverse.graph.axis("Sq").size
    at = (Symbol("h", "int"),)
    total = Fold(
        monoid="sum",
        element=element,
        axis="Sq",
        domain=Domain(size=size),
        axes=source.axes,
        at=at,
        into=node.operand,
    )
    reverse.add(f"d{node.operand}", total)


def _map(reverse: _Reverse, name: str, node: Map) -> None:
    """Chain rule of a formula: for its operand, and for each captured element that asks for a gradient."""
    given = reverse.adjoint[name]
    slope = _slope(node, S)
    reverse.adjoint[node.operand] = _times(reverse, f"d_{node.operand}", given, slope, node)
    elements = [e for e in dict.fromkeys(ex.walk(node.expr)) if isinstance(e, Element)]
    for tensor in dict.fromkeys(e.tensor for e in elements):
        source = reverse.graph.nodes[tensor]
        assert isinstance(source, Input)
        if source.grad:
            _captured(reverse, given, node, source, tensor, [e for e in elements if e.tensor == tensor])


def _captured(
    reverse: _Reverse, given: str, node: Map, source: Input, tensor: str, elements: list[Element]
) -> None:
    if len(elements) > 1:
        ways = " and ".join(ex.text(e) for e in elements)
        raise _no_gradient(
            reverse.graph,
            tensor,
            f"the score reads {ways}; a gradient needs one way to read it: capture as many tensors",
        )
    [element] = elements
    if any("s" in ex.symbols(index) for index in element.indices):
        raise _no_gradient(reverse.graph, tensor, f"where {ex.text(element)} reads depends on the score")
    slope = _slope(node, element)
    change = _times(reverse, f"ds_{tensor}", given, slope, node)
    reverse.add(f"d{tensor}", reverse.sum(change, "", "Sk", source.axes, at=element.indices, into=tensor))


def _times(reverse: _Reverse, name: str, given: str, slope: Expr, node: Map) -> str:
    """The node that holds a gradient times a slope; the gradient itself where the slope is 1."""
    if slope in (Const(1), Const(1.0)):
        return given
    if any(map(_may_be_infinite, ex.walk(node.expr))):  # a score of -inf means masked, whatever its slope
        score = ex.substitute(node.expr, {"s": Symbol(node.operand, "float")})
        slope = ex.apply("where", ex.apply("gt", score, Const(-math.inf)), slope, Const(0.0))
    read = (node.operand,) if node.operand in ex.symbols(slope) else ()
    change = ex.apply("mul", S, slope)
    return reverse.add(
        name, Map(operand=given, others=read, captured=ex.tensors(change), expr=change, axes=node.axes)
    )


def _may_be_infinite(expr: Expr) -> bool:
    """Whether a part of a formula may be infinite where all that it reads is finite (exp overflows); params are taken not
    to be 0."""
    match expr:
        case Apply("div", (_, divisor)):
            return any(isinstance(e, Element) or e == S for e in ex.walk(divisor))
        case Apply("exp" | "exp2" | "log" | "log2"):
            return True
        case _:
            return False


def _contract(reverse: _Reverse, name: str, node: Contract) -> None:
    given = reverse.adjoint[name]
    for own, other, axis in ((node.left, node.right, "Sk"), (node.right, node.left, "Sq")):
        source = reverse.graph.nodes[own]
        assert isinstance(source, Input)
        if source.grad:
            folded = reverse.sum(given, other, axis, source.axes, precision=node.precision)
            reverse.give(own, name, folded)


RULES: dict[type[Node], Callable[[_Reverse, str, Any], None]] = {
    Finish: _finish,
    Merge: _merge,
    Fold: _softmax,
    Slice: _slice,
    Lift: _lift,
    Map: _map,
    Contract: _contract,
}
