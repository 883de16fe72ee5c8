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
    Pages,
    Random,
    Slice,
    Splits,
    Store,
)

SMALLEST_TILE = 16  # rows
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
    packed: bool
    pages: Pages | None
    heads_in_rows: bool
    scales: str
    splits: Splits | None
    combine: Launch | None
    has_dropout: bool
    shares_prefix: bool


def launch_of(graph: Graph, result: str) -> tuple[str, Launch]:
    """The kernel that stores a result."""
    for name, launch in graph.all(Launch):
        stored = [s for n in launch.stores if isinstance(s := graph.nodes[n], Store)]
        if any(s.name == result for s in stored):
            return name, launch
    raise InternalError(f"{graph.provenance.name}: no kernel stores {result}")


LETTERS = {"b": "b", "h": "h", "row": "m", "i": "m", "j": "n"}  # short names of axes, by what runs along them


def owned(launch: Launch) -> tuple[str, ...]:
    """The axes of whose places or tiles the programs of a captured gradient have one each, the fastest first."""
    tiles = {"Sq": ("n", "m"), "Sk": ("n",), "Sd": ()}[launch.tile_axis]
    return (*tiles, *(x for axis, x in (("Hq", "h"), ("B", "b")) if axis in launch.program_axes))


def _scales(graph: Graph) -> str:
    return next((x.scales for name, x in graph.all(Input) if name == "k"), "")


def attending(graph: Graph) -> Launch:
    """The kernel that folds keys; where splits share them, another one stores out."""
    split = any(fold.monoid == "softmax" and fold.level == "split" for _, fold in graph.all(Fold))
    return launch_of(graph, "partial_out" if split else "out")[1]


def find_parts(graph: Graph) -> Parts:
    _, last = launch_of(graph, "out")
    launch = attending(graph)
    stores = [graph.nodes[s] for s in last.stores]
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
        graph.packed,
        None if isinstance(k.address, str) else k.address,
        launch.program_axes == ("Hkv",),
        _scales(graph),
        node.domain.splits,
        last if node.level == "split" else None,
        bool(node.dropout),
        node.domain.prefix is not None,
    )
    _refuse_unsupported(graph, parts)
    return parts


def _refuse_unsupported(graph: Graph, parts: Parts) -> None:
    """Refuse what these templates cannot print, so that no field of a node is silently ignored."""
    last = parts.combine or parts.launch
    stores = [s for n in last.stores if isinstance(s := graph.nodes[n], Store)]
    results = {s.name: (f.result, s.dtype) for s in stores if isinstance(f := graph.nodes[s.operand], Finish)}
    tensors = {name: x for name, x in graph.all(Input) if x.role == "tensor"}
    layouts = {x.layout for name, x in tensors.items() if parts.pages is None or name != "q"}
    searched = parts.launch.rows == "search"
    planned = parts.fold.tiles.end_symbols() if parts.fold.tiles else frozenset[str]()
    rules = {
        "stores are out in the tensors' dtype and lse in fp32": results
        == {"out": ("out", "io"), "lse": ("lse", "float32")},
        "rows are tiles of Sq, programs run over heads and batch": (
            (parts.launch.tile_axis, parts.q.tile_axis) == ("Sq", "Sq")
            and parts.launch.program_axes in ((("Hq",), ("Hkv",)) if searched else (("Hq", "B"),))
        ),
        "keys are tiles of Sk": (parts.k.tile_axis, parts.v.tile_axis, parts.fold.axis) == ("Sk", "Sk", "Sk"),
        "the fold runs over the sequence's keys": parts.fold.domain.size == Symbol("seqlen_k"),
        "queries are addressed by strides, keys and values alike": (
            parts.q.address == "strided" and parts.k.address == parts.v.address
        ),
        "pages are those of the arguments, and rows are searched there": (
            {x.pages for name, x in tensors.items() if name != "q"} == {parts.pages}
            and searched == (parts.pages is not None)
        ),
        "where sequences begin goes with the layout": parts.packed == ("t" in tensors["q"].layout),
        "programs of kv heads plan for all of their query heads": (
            not parts.heads_in_rows or "h" not in planned
        ),
        "a fold is cut into the splits that it asks for, of keys in pages, into whole tiles": (
            (parts.splits is None) == (parts.combine is None)
            and (parts.splits is None or (parts.pages is not None and _fit(parts, parts.splits)))
        ),
        "a prefix is that of the pages, and what it gives is merged as splits are": (
            parts.shares_prefix == bool(parts.pages and parts.pages.prefix)
            and not (parts.shares_prefix and parts.combine is None)
            and parts.fold.domain.prefix in (None, Symbol("prefix_len"))
        ),
        "splits leave partial results in fp32, merged in rows of 16": (
            parts.combine is None or _merges(graph, parts, parts.combine)
        ),
        "q and k are contracted over all their columns, in the same chunks": (
            parts.contract.over == parts.q.axes[-1] == parts.k.axes[-1] and parts.q.chunks == parts.k.chunks
        ),
        "columns come in halves where a cache stores two to a byte": (
            {parts.q.halves, parts.k.halves, parts.v.halves}
            == {any(x.dtype == "int4" for x in tensors.values())}
        ),
        "exponentials are in base 2": parts.fold.base == "2",
        "q, k and v share layout and dtypes": len(layouts) == len({x.dtypes for x in tensors.values()}) == 1,
        "dropout compares random numbers with a threshold": _drops(graph, parts.fold),
        "keys and values are stored alike": (
            len({(x.dtype, x.scales) for name, x in tensors.items() if name != "q"}) == 1
        ),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise InternalError(f"{graph.provenance.name}: the forward templates need: {'; '.join(broken)}")


def _fit(parts: Parts, splits: Splits) -> bool:
    """Whether splits of a fixed size are whole tiles in every schedule, and all calls have one schedule."""
    sizes = [c.block_n for _, choices in parts.launch.configs for c in choices]
    return not splits.keys or (not parts.launch.decode and all(splits.keys % n == 0 for n in sizes))


def _merges(graph: Graph, parts: Parts, combine: Launch) -> bool:
    stores = [s for n in parts.launch.stores if isinstance(s := graph.nodes[n], Store)]
    partial = [(s.name, s.dtype, graph.nodes[s.operand]) for s in stores]
    wanted = [(name, "float32", parts.fold) for name in ("partial_out", "partial_lse")]
    [(_, [config, *_]), *others] = combine.configs
    place = (combine.rows, combine.tile_axis, combine.program_axes, config.block_m)
    return partial == wanted and not others and place == ("grid", "Sq", ("Hq",), 16)


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
