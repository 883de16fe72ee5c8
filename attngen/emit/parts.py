"""The nodes of a forward kernel, found by walking the scheduled graph from its launch to its loads."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Contract,
    Finish,
    Fold,
    Input,
    Launch,
    Lift,
    Load,
    Map,
    Merge,
    Random,
    Slice,
    Store,
)

_THRESHOLD, _NUMBERS = Symbol("dropout_threshold"), Const(65536)
_KEPT: Expr = ex.apply("div", _NUMBERS, ex.apply("sub", _NUMBERS, _THRESHOLD))
DROPOUT: Expr = ex.apply("where", ex.apply("lt", Symbol("s"), _THRESHOLD), Const(0.0), _KEPT)


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
    group: int
    has_dropout: bool


def launch_of(graph: Graph, result: str) -> tuple[str, Launch]:
    """The kernel that stores a result."""
    for name, launch in graph.all(Launch):
        stored = [s for n in launch.stores if isinstance(s := graph.nodes[n], Store)]
        if any(s.name == result for s in stored):
            return name, launch
    raise InternalError(f"{graph.provenance.name}: no kernel stores {result}")


def find_parts(graph: Graph) -> Parts:
    _, launch = launch_of(graph, "out")
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
    if not isinstance(node, Fold) or not (sink is None or isinstance(sink, Lift)):
        raise InternalError(
            "a forward kernel stores a fold, or a fold merged with a lifted sink on its right"
        )
    element = graph.nodes[node.element]
    score = element if isinstance(element, Map) else None
    contract = graph.nodes[score.operand] if score else element
    if not isinstance(contract, Contract):
        raise InternalError(
            f"the element of a fold is a contraction under at most one map, found a {contract.kind}"
        )
    loads = [graph.nodes[n] for n in (contract.left, contract.right, node.value)]
    q, k, v = (load for load in loads if isinstance(load, Load))
    parts = Parts(
        launch,
        node,
        score,
        contract,
        q,
        k,
        v,
        isinstance(graph.nodes[v.operand], Slice),
        sink,
        graph.axis("Hkv").group,
        bool(node.dropout),
    )
    _refuse_unsupported(graph, parts)
    return parts


def _refuse_unsupported(graph: Graph, parts: Parts) -> None:
    """Refuse what these templates cannot print, so that no field of a node is silently ignored."""
    stores = [s for n in parts.launch.stores if isinstance(s := graph.nodes[n], Store)]
    results = {s.name: (f.result, s.dtype) for s in stores if isinstance(f := graph.nodes[s.operand], Finish)}
    address = {x.address for x in (parts.q, parts.k, parts.v, *stores)}
    shared = {(x.layout, x.dtypes) for _, x in graph.all(Input) if x.role == "tensor"}
    rules = {
        "stores are out in the tensors' dtype and lse in fp32": results
        == {"out": ("out", "io"), "lse": ("lse", "float32")},
        "rows are tiles of Sq, programs run over heads and batch": (
            (parts.launch.tile_axis, parts.q.tile_axis, parts.launch.program_axes)
            == ("Sq", "Sq", ("Hq", "B"))
        ),
        "keys are tiles of Sk": (parts.k.tile_axis, parts.v.tile_axis, parts.fold.axis) == ("Sk", "Sk", "Sk"),
        "the fold runs over the sequence's keys": parts.fold.domain.size == Symbol("seqlen_k"),
        "all tensors are addressed as the launch's rows are": (
            address == {"packed" if parts.launch.rows == "packed" else "strided"}
        ),
        "q and k are contracted over all their columns, in the same chunks": (
            parts.contract.over == parts.q.axes[-1] == parts.k.axes[-1] and parts.q.chunks == parts.k.chunks
        ),
        "exponentials are in base 2": parts.fold.base == "2",
        "q, k and v share layout and dtypes": len(shared) == 1,
        "dropout compares random numbers with a threshold": _drops(graph, parts.fold),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise InternalError(f"{graph.provenance.name}: the forward templates need: {'; '.join(broken)}")


def _drops(graph: Graph, fold: Fold) -> bool:
    """Whether a fold's dropout, if it has one, is what the templates print."""
    if not fold.dropout:
        return True
    factor = graph.nodes[fold.dropout]
    return (
        isinstance(factor, Map)
        and factor.expr == DROPOUT
        and graph.nodes[factor.operand] == Random(seed="seed", axes=("B", "Hq", "Sq", "Sk"))
    )
