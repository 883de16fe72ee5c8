"""Differentiate a recurrence: adjoints of its semantic graph, before anything is cut.

With S the states, G the gradient with respect to each token's state (a fold in reverse, of queries and what is read of them),
and a the decay (in logarithms), the adjoint of reading y = q S of S_t = exp(a_t) S_(t-1) + k v is again reading:

    G_t = q_t dy_t + exp(a_(t+1)) G_(t+1),  dq = S dy,  dk = G v,  dv = k G,  da_t = da_(t+1) + q_t dq_t - k_t dk_t

The last is <G_t, exp(a_t) S_(t-1)> without states per token; after the last token it is <dstates, S>. Where each row of a
state has a decay of its own, so has each column of q dq, k dk and <dstates, S> (arXiv:2312.06635, section 4.4). What a delta
rule changes in that is in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Domain, Finish, Fold, Input, Map, Merge, Node, Pad, Read, Slice
from attngen.passes.differentiate_delta import erased_adjoints, erased_nodes, of_erased

S = Symbol("s", "float")
TOKENS = ("B", "L", "H")


@dataclass(frozen=True, slots=True)
class DifferentiateRecurrence:
    """Needs: the semantic graph of a recurrence. Leaves: the same with a node ``d<input>`` per input that asks for a gradient."""

    name: str = "differentiate"

    def apply(self, graph: Graph) -> Graph:
        """Add the adjoints; a graph whose inputs ask for none is left as it is."""
        if not any(node.grad for _, node in graph.all(Input)):
            return graph
        reverse = _Reverse(graph)
        out = graph.nodes["out"]
        states = graph.nodes["states"]
        assert isinstance(out, Map | Finish)
        assert isinstance(states, Finish)
        reverse.nodes["dout"] = Input(axes=out.axes, dtype="io", role="gradient", layout="bshd")
        reverse.nodes["dstates"] = Input(axes=states.axes, dtype="float", role="gradient", optional=True)
        reverse.parts["out"] = ["dout"]
        for name in reversed(list(graph.order())):
            node = graph.nodes[name]
            if name in reverse.parts:
                reverse.join(name)
                if not isinstance(node, Input):
                    RULES[type(node)](reverse, name, node)
        return graph.with_nodes(reverse.nodes)


@dataclass(slots=True)
class _Reverse:
    """The adjoints so far: ``parts`` names the nodes that add up to the gradient of a node's value."""

    graph: Graph
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    parts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def axes(self, name: str) -> tuple[str, ...]:
        return getattr(self.graph.nodes.get(name) or self.nodes[name], "axes", ())

    def wanted(self, name: str) -> bool:
        """Whether a gradient of an input depends on that of a node."""
        node = self.graph.nodes[name]
        if isinstance(node, Input):
            return node.grad
        return any(self.wanted(o) for o in node.operands())

    def give(self, name: str, node: Node, reader: str) -> None:
        """Add what one reader of a node gives to its gradient."""
        if self.wanted(name):
            made = f"d{name}_{reader}" if len(list(self.graph.dag.successors(name))) > 1 else f"d{name}"
            if getattr(node, "axes", ()) != self.axes(name):
                self.nodes[f"{made}_each"] = node
                node = _sum(f"{made}_each", getattr(node, "axes", ()), self.axes(name))
            self.nodes[made] = node
            self.parts.setdefault(name, []).append(made)

    def join(self, name: str) -> None:
        """Name the gradient of a node ``d<name>``: the sum of its parts."""
        first, *others = self.parts[name]
        for n, other in enumerate(others):
            last = n == len(others) - 1
            made = f"d{name}" if last else f"d{name}_{n}"
            self.nodes[made] = Merge(monoid="sum", left=first, right=other, axes=self.axes(name))
            first = made
        if first != f"d{name}":  # of several readers, one alone gives something
            self.nodes[f"d{name}"] = self.nodes.pop(first)


def _sum(element: str, axes: tuple[str, ...], result: tuple[str, ...]) -> Fold:
    """The sum over the axes that a result lacks."""
    gone = next(a for a in axes if a not in result)
    return Fold(monoid="sum", element=element, axis=gone, domain=Domain(size=Symbol("all")), axes=result)


def _map(reverse: _Reverse, name: str, node: Map) -> None:
    """The chain rule, for the operand and all others."""
    from attngen.ir.symbolic import derivative

    known = {other: Symbol(other, "float") for other in node.others}
    own = ex.substitute(node.expr, {"s": Symbol(node.operand, "float")}) if node.operand else node.expr
    for target in (node.operand, *node.others):
        if not target or not reverse.wanted(target):
            continue
        slope = derivative(own, known.get(target, Symbol(target, "float")))
        if slope == Const(1) or slope == Const(1.0):
            reverse.give(target, _copy(reverse, name, node), name)
            continue
        read = tuple(o for o in (node.operand, *node.others) if o in ex.symbols(slope))
        given = node.given if target == node.operand else ""
        adjoint = Map(operand=f"d{name}", others=read, given=given, expr=_times(slope), axes=node.axes)
        reverse.give(target, adjoint, name)


def _copy(reverse: _Reverse, name: str, node: Map) -> Node:
    return Map(operand=f"d{name}", expr=S, axes=node.axes)


def _times(slope: Expr) -> Expr:
    return ex.apply("mul", S, slope)


def _pad(reverse: _Reverse, name: str, node: Pad) -> None:
    columns = reverse.graph.axis(reverse.axes(node.operand)[-1]).size
    assert isinstance(columns, Const)
    axes = reverse.axes(node.operand)
    reverse.give(node.operand, Slice(operand=f"d{name}", columns=int(columns.value), axes=axes), name)


def _finish(reverse: _Reverse, name: str, node: Finish) -> None:
    """out = r / w, with w the last column: dr = dout / w, dw = -<out, dout> / w."""
    below = reverse.axes(node.operand)
    axis = reverse.graph.axis(node.axes[-1])
    assert isinstance(axis.size, Const)
    columns = int(axis.size.value)
    reverse.nodes["weight"] = Slice(operand=node.operand, start=columns, columns=1, axes=TOKENS)
    reverse.nodes["out_dout"] = Contract(left="out", right="dout", over=node.axes[-1], axes=TOKENS)
    reverse.nodes["dout_wide"] = Pad(operand="dout", axes=below)
    place = ex.apply("eq", Symbol(reverse.graph.axis(below[-1]).symbol), Const(columns))
    taken = ex.apply("where", place, ex.apply("neg", Symbol("out_dout", "float")), S)
    weight = Symbol("weight", "float")
    safe = ex.apply("where", ex.apply("eq", weight, Const(0.0)), Const(1.0), weight)
    whole = ex.apply("where", ex.apply("eq", weight, Const(0.0)), Const(0.0), ex.apply("div", taken, safe))
    adjoint = Map(operand="dout_wide", others=("out_dout", "weight"), expr=whole, axes=below)
    reverse.give(node.operand, adjoint, name)


def _read(reverse: _Reverse, name: str, node: Read) -> None:
    """Reading is linear in queries and in states: see the top of this file."""
    fold = reverse.graph.nodes[node.state]
    assert isinstance(fold, Fold)
    reverse.give(node.query, Read(query=f"d{name}", state=node.state, axes=(*TOKENS, "K")), name)
    states = f"d{node.state}"
    along = fold.element if fold.erase else ""
    reverse.nodes[states] = replace(
        fold, element=node.query, value=f"d{name}", along=along, init="dstates", reverse=True
    )
    reverse.parts[node.state] = [states]


def _fold(reverse: _Reverse, name: str, node: Fold) -> None:
    """What the reversed fold leaves for keys, values, decays and the state before the first token."""
    value_axes = reverse.axes(node.value)
    if node.erase:
        reverse.nodes |= erased_nodes(name, node)
        for operand, adjoint in erased_adjoints(node).items():
            reverse.give(operand, adjoint, name)
    else:
        reverse.give(node.element, Read(query=node.value, state=f"d{name}", axes=(*TOKENS, "K")), name)
        reverse.give(node.value, Read(query=node.element, state=f"d{name}", axes=value_axes), name)
    init = reverse.axes(node.init)
    reverse.give(node.init, Finish(monoid="decay", operand=f"d{name}", result="states", axes=init), name)
    if not node.decay or not reverse.wanted(node.decay):
        return
    axes = reverse.axes(node.decay)
    (query,) = [r.query for _, r in reverse.graph.all(Read) if r.state == name]
    each = {"queries": (query, f"d{query}"), "keys": (node.element, f"d{node.element}")}
    if node.erase:
        each["keys"] = (node.element, "dk_written")
    for side, (operand, made) in each.items():
        made = f"{made}_each" if f"{made}_each" in reverse.nodes else made
        reverse.nodes[f"of_{side}"] = _products(operand, made, axes)
    if node.erase:
        reverse.nodes["of_erased"] = of_erased(node)
    others = ("of_keys", "of_erased") if node.erase else ("of_keys",)
    difference = S
    for other in others:
        difference = ex.apply("sub", difference, Symbol(other, "float"))
    reverse.nodes["of_both"] = Map(operand="of_queries", others=others, expr=difference, axes=axes)
    rows = tuple(a for a in axes if a != "L")
    over = node.axes[-1] if "K" in rows else "K"
    reverse.nodes["edge"] = Contract(left="dstates", right="states", over=over, axes=rows)
    sums = Fold(
        monoid="sum",
        element="of_both",
        axis="L",
        domain=node.domain,
        prefix="i+1",
        reverse=True,
        init="edge",
        axes=axes,
    )
    reverse.give(node.decay, sums, name)


def _products(left: str, right: str, axes: tuple[str, ...]) -> Node:
    """Of each token, column by column where decays have columns, else their sum."""
    if "K" in axes:
        return Map(operand=left, others=(right,), expr=ex.apply("mul", S, Symbol(right, "float")), axes=axes)
    return Contract(left=left, right=right, over="K", axes=axes)


RULES: dict[type[Node], Callable[[_Reverse, str, Any], None]] = {
    Map: _map,
    Pad: _pad,
    Finish: _finish,
    Read: _read,
    Fold: _fold,
}
