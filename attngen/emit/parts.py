"""The nodes of a forward kernel, found by walking the scheduled graph from its launch to its loads."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.emit.rules import Rule, broken, node_of, rule, strangers
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Config,
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
LAYOUTS = ({"bshd"}, {"bhsd"}, {"thd"}, {"thd", "pshd"}, {"thd", "phsd"})  # of q, k and v together
ROWS = ("B", "Hq", "Sq")
SCORES = (*ROWS, "Sk")
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
    sink = node_of(graph, "sink", Lift) if "with_sink" in graph.nodes else None
    node = node_of(graph, "fold", Fold)
    element = graph.nodes.get(node.element)
    score = element if isinstance(element, Map) else None
    contract = node_of(graph, score.operand if score else node.element, Contract)
    q, k, v = (node_of(graph, name, Load) for name in (contract.left, contract.right, node.value))
    parts = Parts(
        launch,
        node,
        score,
        contract,
        q,
        k,
        v,
        isinstance(graph.nodes.get(v.operand), Slice),
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


def forward_rules(graph: Graph, parts: Parts) -> dict[str, Rule]:
    """What each node of a forward has to be."""
    fold, score, split = parts.fold, parts.score, parts.combine is not None
    contract = score.operand if score else fold.element
    rules = {
        contract: rule(Contract, "precision", left="q_tile", right="k_tile", over="Dqk", axes=SCORES),
        "fold": rule(
            Fold,
            "element domain precision factor tiles level",
            monoid="softmax",
            value="v_tile",
            dropout="dropout" if parts.has_dropout else "",
            captured=ex.tensors(fold.domain.mask),
            axis="Sk",
            axes=ROWS,
            base="2",
            order="full-then-partial",
            carrier="buffer" if split else "register",
        ),
        "kernel": rule(
            Launch,
            "rows program_axes configs decode",
            stores=("store_partial_out", "store_partial_lse") if split else ("store_out", "store_lse"),
            tile_axis="Sq",
        ),
    }
    for name, tile_axis in (("q", "Sq"), ("k", "Sk"), ("v", "Sk")):
        axes = ("B", "Hq" if name == "q" else "Hkv", tile_axis, "Dv" if name == "v" else "Dqk")
        rules[f"{name}_tile"] = rule(
            Load, "columns chunks address halves", operand=name, axes=axes, tile_axis=tile_axis
        )
        if name == "v" and parts.v_in_k:
            rules["v"] = rule(Slice, operand="k", columns=parts.v.columns, axes=axes)
    if score:
        rules[fold.element] = rule(
            Map, "expr", operand=contract, captured=ex.tensors(score.expr), axes=SCORES
        )
    if parts.has_dropout:
        rules["random"] = rule(Random, seed="seed", axes=SCORES)
        rules["dropout"] = rule(Map, operand="random", expr=DROPOUT, axes=SCORES)
    result = "fold"
    if parts.sink:
        rules["sink"] = rule(Lift, monoid="softmax", operand="sinks", axes=("Hq",))
        rules["with_sink"] = rule(Merge, monoid="softmax", left="fold", right="sink", axes=ROWS)
        result = "with_sink"
    for name, dtype, axes in (("out", "io", (*ROWS, "Dv")), ("lse", "float32", ROWS)):
        rules[name] = rule(Finish, monoid="softmax", operand=result, result=name, axes=axes)
        rules[f"store_{name}"] = rule(Store, operand=name, name=name, dtype=dtype, axes=axes)
        part = f"partial_{name}"
        if split:
            rules[f"store_{part}"] = rule(Store, operand="fold", name=part, dtype="float32", axes=ROWS)
    if parts.splits == Splits():
        counts = {"tiles_of_rows": ROWS, "total_tiles": ()}
        for name, axes in counts.items():
            rules[f"store_{name}"] = rule(Store, operand="fold", name=name, dtype="int32", axes=axes)
        same = ("rows", "program_axes", "configs", "decode")
        rules["kernel_count"] = rule(
            Launch,
            stores=tuple(f"store_{name}" for name in counts),
            tile_axis="Sq",
            **{name: getattr(parts.launch, name) for name in same},
        )
    if split:
        rules["combine"] = rule(
            Launch, "configs", stores=("store_out", "store_lse"), tile_axis="Sq", program_axes=("Hq",)
        )
    return rules


def _refuse_unsupported(graph: Graph, parts: Parts) -> None:
    """Refuse what these templates cannot print, so that no field of a node is silently ignored."""
    tensors = {name: x for name, x in graph.all(Input) if x.role == "tensor"}
    layouts = {x.layout for name, x in tensors.items() if parts.pages is None or name != "q"}
    searched = parts.launch.rows == "search"
    planned = parts.fold.tiles.end_symbols() if parts.fold.tiles else frozenset[str]()
    rules = {
        "programs find their rows on a grid or by search": parts.launch.rows in ("grid", "search"),
        "programs run over heads and batch": (
            parts.launch.program_axes in ((("Hq",), ("Hkv",)) if searched else (("Hq", "B"),))
        ),
        "the fold runs over the sequence's keys": parts.fold.domain.size == Symbol("seqlen_k"),
        "queries are addressed by strides, keys and values alike": (
            parts.q.address == "strided" and parts.k.address == parts.v.address
        ),
        "pages are those of the arguments, and rows are searched there": (
            {x.pages for name, x in tensors.items() if name != "q"} == {parts.pages}
            and searched == (parts.pages is not None)
        ),
        "where sequences begin goes with the layout": parts.packed == ("t" in tensors["q"].layout),
        "layouts are those that launchers know": {x.layout for x in tensors.values()} in LAYOUTS,
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
            parts.combine is None or _merges(parts.combine)
        ),
        "schedules say nothing that the forward kernels do not do": all(
            not (config.merged or config.apart or (searched and config.use_descriptors))
            for of in (parts.launch.configs, parts.launch.decode)
            for _, choices in of
            for config in choices
        ),
        "q and k come in the same chunks": (
            (parts.q.columns, parts.q.chunks) == (parts.k.columns, parts.k.chunks)
        ),
        "columns come in halves where a cache stores two to a byte": (
            {parts.q.halves, parts.k.halves, parts.v.halves}
            == {any(x.dtype == "int4" for x in tensors.values())}
        ),
        "q, k and v share layout and dtypes": len(layouts) == len({x.dtypes for x in tensors.values()}) == 1,
        "keys and values are stored alike": (
            len({(x.dtype, x.scales) for name, x in tensors.items() if name != "q"}) == 1
        ),
    }
    nodes = forward_rules(graph, parts)
    wrong = [*(text for text, holds in rules.items() if not holds), *broken(graph, nodes)]
    if "dq" not in graph.nodes:
        wrong += strangers(graph, nodes)
    if wrong:
        raise InternalError(f"{graph.provenance.name}: the forward templates need: {'; '.join(wrong)}")


def _fit(parts: Parts, splits: Splits) -> bool:
    """Whether splits of a fixed size are whole tiles in every schedule, and all calls have one schedule."""
    sizes = [c.block_n for _, choices in parts.launch.configs for c in choices]
    return not splits.keys or (not parts.launch.decode and all(splits.keys % n == 0 for n in sizes))


def _merges(combine: Launch) -> bool:
    [(_, [config, *more]), *others] = combine.configs
    taken = Config(block_m=16, block_n=16, num_warps=config.num_warps, num_stages=2)
    return not more and not others and config == taken
