"""Numbers from the chunks of a recurrence: what each kernel computes, reads and writes, counted node by node.

Operations are those of the plan: a multiplication and an addition per product, no tile filled up, of tokens of a chunk only the
pairs of which one is not later. Bytes are what a kernel must move at least: each tensor that it reads or writes, once.
"""

from __future__ import annotations

from dataclasses import dataclass

from attngen.ir.expr import Apply, Const, walk
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Finish, Fold, Input, Launch, Map, Merge, Node, Read, Solve, Store

BYTES = {"float32": 4, "float": 4, "int32": 4}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one launch does in a call: operations, and bytes read and written."""

    operations: int
    read: int
    written: int


@dataclass(frozen=True, slots=True)
class Call:
    """The sizes of a call: sequences of one length, heads, and bytes of an element of queries, keys and values."""

    batch: int
    seqlen: int
    heads: int
    element: int


def costs(graph: Graph, call: Call) -> dict[str, Cost]:
    """Return the cost of each launch of a scheduled graph of a recurrence; the one that decodes takes the call's tokens."""
    found: dict[str, Cost] = {}
    count = _Count(graph, call)
    for name, launch in graph.all(Launch):
        body = count.body(name, launch)
        outside = {o for n in body for o in graph.nodes[n].operands() if o not in body}
        found[name] = Cost(
            operations=sum(count.operations(n) for n in body),
            read=sum(count.size(n) for n in outside),
            written=sum(count.size(s.operand) for s in count.stores(launch)),
        )
    return found


def between(graph: Graph, call: Call) -> dict[str, int]:
    """Return the bytes that lie in memory between the launches of a call, by what one stores and another one reads.

    Scans leave their states in place of those that they scan.
    """
    count = _Count(graph, call)
    read: set[str] = set()
    for name, launch in graph.all(Launch):
        body = count.body(name, launch)
        read |= {o for n in body for o in graph.nodes[n].operands() if o not in body}
    replaced = {fold.element for _, fold in graph.all(Fold) if fold.axis == "C"}
    return {n: count.size(n) for n in graph.nodes if n in (read & set(count.owner)) - replaced}


class _Count:
    """One graph and call."""

    def __init__(self, graph: Graph, call: Call) -> None:
        self.graph = graph
        self.call = call
        self.sizes = {"B": call.batch, "L": call.seqlen, "H": call.heads}
        self.sizes["G"] = call.heads // graph.axis("G").group
        self.sizes |= {a.name: int(a.size.value) for a in graph.axes if isinstance(a.size, Const)}
        self.owner = {s.operand: name for name, x in graph.all(Launch) for s in self.stores(x)}

    def stores(self, launch: Launch) -> list[Store]:
        return [s for name in launch.stores if isinstance(s := self.graph.nodes[name], Store)]

    def body(self, name: str, launch: Launch) -> set[str]:
        """The nodes that a kernel computes: those below its stores, down to arguments and to what other kernels store."""
        found: set[str] = set()
        todo = [s.operand for s in self.stores(launch)]
        while todo:
            node = todo.pop()
            stored = self.owner.get(node, name) != name
            if node not in found and not stored and not isinstance(self.graph.nodes[node], Input):
                found.add(node)
                todo += self.graph.nodes[node].operands()
        return found

    def axes(self, name: str) -> frozenset[str]:
        return frozenset(getattr(self.graph.nodes.get(name), "axes", ()))

    def size(self, name: str) -> int:
        """The bytes of a tensor in memory: of an argument, or of what a kernel stores."""
        node, dtype = self.graph.nodes[name], "float32"
        if isinstance(node, Input):
            dtype = node.dtype
        for _, store in self.graph.all(Store):
            dtype = store.dtype if store.operand == name else dtype
        axes, run = self.axes(name), self.run(name)
        return self.extent(axes - {"J"}, run) * (run if "J" in axes else 1) * self.width(dtype)

    def width(self, dtype: str) -> int:
        if dtype == "sums":
            return 8 if self.call.element == BYTES["float32"] else 4
        return BYTES.get(dtype, self.call.element)

    def extent(self, axes: frozenset[str], run: int) -> int:
        """How many elements there are over some axes; J are the tokens of a run that are not later than that of L."""
        hidden = {"C"} if "L" in axes else set[str]()
        hidden |= {"G"} if "H" in axes else set()
        product = 1
        for axis in axes - hidden - {"L", "J", "C"}:
            product *= self.sizes[axis]
        if "J" in axes:
            whole, rest = divmod(self.call.seqlen, run)
            return product * (whole * run * (run + 1) // 2 + rest * (rest + 1) // 2)
        if "L" in axes:
            return product * self.call.seqlen
        return product * (-(-self.call.seqlen // run) if "C" in axes else 1)

    def run(self, name: str) -> int:
        """How many tokens are folded together: those of the chunks of a node or its readers, or all of a sequence."""
        nodes = [self.graph.nodes[n] for n in (name, *self.graph.dag.successors(name))]
        chunks = [node.chunk for node in nodes if isinstance(node, Fold | Solve) and node.chunk]
        return max(1, min(chunks, default=self.call.seqlen))

    def operations(self, name: str) -> int:
        """The operations of a node: so many per element over its axes and those that it sums."""
        node = self.graph.nodes[name]
        axes = self.axes(name) | self._summed(node)
        return self._each(node) * self.extent(axes, self.run(name))

    def _summed(self, node: Node) -> frozenset[str]:
        match node:
            case Contract(left=left, right=right):
                return self.axes(left) | self.axes(right)
            case Fold(element=element, value=value, axis=axis):
                return self.axes(element) | self.axes(value) | {axis}
            case Read(query=query, state=state):
                return self.axes(query) | self.axes(state)
            case Solve(matrix=matrix, rhs=rhs):
                return self.axes(matrix) | self.axes(rhs)
            case _:
                return frozenset()

    def _each(self, node: Node) -> int:
        match node:
            case Map():
                return sum(isinstance(e, Apply) for e in walk(node.expr))
            case Contract():
                return 3 if node.decay else 2
            case Fold(monoid="sum", value=""):
                return 1
            case Fold(level=level, erase=erase, taken=taken):
                # a second outer product; what a token finds, which chunks read by a node of its own
                return 2 + 2 * (taken != "") + 2 * (erase != "" and level == "token")
            case Read() | Solve():
                return 2
            case Merge():
                return 1
            case Finish():
                return 2 * (node.result == "out")
            case _:
                return 0
