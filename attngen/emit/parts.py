"""The nodes of a forward kernel, found by walking the scheduled graph from its launch to its loads."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.errors import InternalError
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Finish, Fold, Launch, Lift, Load, Map, Merge, Slice, Store


@dataclass(frozen=True, slots=True)
class Parts:
    """The nodes of a forward kernel, found by walking from its launch to its loads."""

    launch: Launch
    fold: Fold
    score: Map | None
    contract: Contract
    q: Load
    k: Load
    v: Load
    v_in_k: bool
    sink: Lift | None


def find_parts(graph: Graph) -> Parts:
    _, launch = graph.only(Launch)
    stores = [graph.nodes[s] for s in launch.stores]
    finishes = [graph.nodes[s.operand] for s in stores if isinstance(s, Store)]
    results = {f.operand for f in finishes if isinstance(f, Finish)}
    if len(results) != 1:
        raise InternalError(f"a forward kernel stores results of one fold, found {sorted(results)}")
    node = graph.nodes[results.pop()]
    sink = None
    if isinstance(node, Merge):
        sink = graph.nodes[node.right]
        node = graph.nodes[node.left]
    assert isinstance(node, Fold)
    element = graph.nodes[node.element]
    score = element if isinstance(element, Map) else None
    contract = graph.nodes[score.operand] if score else element
    assert isinstance(contract, Contract)
    loads = [graph.nodes[n] for n in (contract.left, contract.right, node.value)]
    q, k, v = (load for load in loads if isinstance(load, Load))
    assert sink is None or isinstance(sink, Lift)
    return Parts(launch, node, score, contract, q, k, v, isinstance(graph.nodes[v.operand], Slice), sink)
