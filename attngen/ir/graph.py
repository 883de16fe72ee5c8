"""The graph: a frozen DAG of typed nodes, with its verifier, its one text form and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Literal, TypeVar

import networkx as nx

from attngen.errors import InternalError, PlanError
from attngen.ir.expr import Apply, Const, Element, Expr, Search, Symbol, tensors, text
from attngen.ir.nodes import Axis, Fold, Input, Map, Node, Pages, Splits
from attngen.ir.tiles import Interval

Level = Literal["semantic", "scheduled"]
SomeNode = TypeVar("SomeNode", bound=Node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a graph came from. Opaque to passes; printed in headers and errors."""

    name: str
    summary: str
    spec: str  # canonical JSON of the spec
    digest: str  # of `spec`
    lines: tuple[tuple[str, str], ...] = ()  # node id -> "file:line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes by id. Equal ids mean one value; the order of insertion is the order of definition.

    `nodes` is a mapping from id to node; edges follow from the nodes' operands. Build a changed graph with `with_nodes`.
    """

    level: Level
    axes: tuple[Axis, ...]
    nodes: Mapping[str, Node]
    provenance: Provenance
    dag: nx.DiGraph[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dag: nx.DiGraph[str] = nx.DiGraph()
        dag.add_nodes_from(self.nodes)
        dag.add_edges_from(
            (operand, name) for name, node in self.nodes.items() for operand in node.operands()
        )
        object.__setattr__(self, "dag", nx.freeze(dag))
        object.__setattr__(self, "nodes", dict(self.nodes))

    def order(self) -> Iterator[str]:
        """Yield node ids, operands first; ties in order of definition."""
        position = {name: index for index, name in enumerate(self.nodes)}
        return iter(nx.lexicographical_topological_sort(self.dag, key=lambda n: position[n]))

    def only(self, kind: type[SomeNode]) -> tuple[str, SomeNode]:
        """Return the one node of a type."""
        found = self.all(kind)
        if len(found) != 1:
            raise InternalError(f"expected one {kind.kind} node, found {[name for name, _ in found]}")
        return found[0]

    def all(self, kind: type[SomeNode]) -> list[tuple[str, SomeNode]]:
        """Return all nodes of a type in order of definition."""
        return [(name, node) for name, node in self.nodes.items() if isinstance(node, kind)]

    def axis(self, name: str) -> Axis:
        """Return an axis by name."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise InternalError(f"no axis {name!r}; axes: {', '.join(a.name for a in self.axes)}")

    @property
    def packed(self) -> bool:
        """Whether sequences of several lengths share the axis of queries: each has a place where it begins."""
        return bool(self.axis("Sq").origin)

    def with_nodes(self, changed: Mapping[str, Node], *, level: Level | None = None) -> Graph:
        """Return a graph with some nodes replaced or added; an input stays one."""
        for name, node in changed.items():
            if isinstance(self.nodes.get(name), Input) and not isinstance(node, Input):
                raise name_taken(self.provenance.name, name)
        return replace(self, nodes={**self.nodes, **changed}, level=level or self.level)

    def without(self, names: set[str]) -> Graph:
        """Return a graph without some nodes (nothing may read them)."""
        return replace(self, nodes={n: node for n, node in self.nodes.items() if n not in names})

    def digest(self) -> str:
        """Return the SHA-256 of the text form."""
        return hashlib.sha256(graph_text(self).encode()).hexdigest()


def name_taken(spec: str, name: str, wanted: str = "") -> PlanError:
    """The error for a param or captured tensor whose name is needed for a node (``wanted``, if not the same name)."""
    reason = f"'{name}' would be taken for the kernel's own '{wanted or name}'"
    return PlanError(f"{spec}: {reason}; rename the param or captured tensor")


def verify(graph: Graph) -> None:
    """Check a graph against the rules of its level; raise `InternalError` naming the node that breaks one."""
    missing = {o for node in graph.nodes.values() for o in node.operands()} - set(graph.nodes)
    if missing:
        raise InternalError(f"{graph.provenance.name}: nodes read but not defined: {sorted(missing)}")
    if not nx.is_directed_acyclic_graph(graph.dag):
        raise InternalError(f"{graph.provenance.name}: the graph has a cycle")
    for name, node in graph.nodes.items():
        try:
            _verify_node(graph, node)
        except InternalError as error:
            raise InternalError(f"{graph.provenance.name}: %{name}: {error}") from None


def _verify_node(graph: Graph, node: Node) -> None:
    if graph.level not in (node.LEVEL, "scheduled") and node.LEVEL != "both":
        raise InternalError(f"a {node.kind} node in a {graph.level} graph")
    if isinstance(node, Fold) and graph.level == "scheduled" and node.level == "whole":
        raise InternalError("a fold that no pass has cut in a scheduled graph (run tile)")
    for axis in getattr(node, "axes", ()):
        graph.axis(axis)
    node.verify()
    if isinstance(node, Map | Fold):
        formula = node.expr if isinstance(node, Map) else node.domain.mask
        unknown = [t for t in tensors(formula) if t not in node.captured]
        if unknown:
            raise InternalError(f"formula reads {unknown}, which are not operands of the node")


# ---- text


def graph_text(graph: Graph) -> str:
    """Return the one text form of the IR: a line per axis list and node, the same for goldens, digests and explain."""
    lines = [f"{graph.level} {graph.provenance.name} spec {graph.provenance.digest[:12]}"]
    lines.append("axes " + ", ".join(str(a) for a in graph.axes))
    lines += [node_text(name, graph.nodes[name]) for name in graph.order()]
    return "\n".join(lines) + "\n"


def node_text(name: str, node: Node) -> str:
    """Return one node's line: ``%id = kind(%operands) attribute=value ... : [axes]``."""
    operands = ", ".join(f"%{o}" for o in node.operands())
    shown = [f"{key}={value_text(value)}" for key, value in node.attributes() if _shown(node, key, value)]
    axes = getattr(node, "axes", None)
    tail = f" : [{', '.join(axes)}]" if axes is not None else ""
    return f"%{name} = {node.kind}({operands})" + "".join(f" {s}" for s in shown) + tail


def _shown(node: Node, key: str, value: object) -> bool:
    default = next(f.default for f in fields(node) if f.name == key)
    return key != "axes" and value != default


def value_text(value: object) -> str:
    """Return a field's value as the text form shows it."""
    if isinstance(value, Const | Symbol | Apply | Element | Search):
        return f"({_expr(value)})"
    if isinstance(value, Interval | Pages | Splits):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = ((f.name, getattr(value, f.name), f.default) for f in fields(value))
        return "{" + " ".join(f"{n}={value_text(v)}" for n, v, default in inner if v != default) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(value_text(v) for v in value) + "]"
    return str(value)


def _expr(expr: Expr) -> str:
    return text(expr)
