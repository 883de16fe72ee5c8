"""The backward half of tile: cut the Sum folds of an attention backward, and say which kernel does what.

Three kernels, none with atomics: one over rows (delta, lse in base two, the gradient of sinks per row), one whose programs
own rows (dq), one whose programs own keys (dk, dv; it walks over the query heads of a group).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Address, Fold, Input, Launch, Map, Node, Store
from attngen.passes.schedules import backward_configurations

ROWS = ("B", "Hq", "Sq")


def tile_backward(graph: Graph, loaded: Mapping[str, Node], address: Address) -> dict[str, Node]:
    """Return the changed and added nodes of the backward; ``loaded`` holds the tiles that the forward made."""
    changed: dict[str, Node] = {}
    reads = reads_per_element(graph)
    by_head = graph.axis("Hkv").group > 1 and "h" in key_symbols(graph)
    keys = ("dk_heads", "dv_heads") if by_head else ("dk", "dv")
    stores: dict[str, tuple[str, ...]] = {"rows": ("lse2", "delta"), "dq": ("dq",), "dkdv": keys}
    for name, fold in graph.all(Fold):
        if fold.monoid != "sum":
            continue
        if fold.into:
            stores |= _captured(graph, name, fold, stores, changed)
            continue
        value = f"{fold.value}_tile" if f"{fold.value}_tile" in loaded else fold.value
        cut = replace(fold, value=value, level="tile", order="full-then-partial", carrier="register")
        changed |= _by_head(graph, name, cut) if by_head and fold.axis == "Sq" else {name: cut}
    for kernel, names in stores.items():
        for name in names:
            changed[f"store_{name}"] = _store(graph, name, {**graph.nodes, **changed}[name], address)
        merges = all(_merges(fold) for fold in changed.values() if isinstance(fold, Fold))
        launched = tuple(f"store_{n}" for n in names)
        merged = merges and not reads
        heavy = not merged or "scores" in graph.nodes or "d_scaled" in graph.nodes
        changed[f"kernel_{kernel}"] = _launch(graph, kernel, launched, address, merged, heavy)
    return changed


def key_symbols(graph: Graph) -> frozenset[str]:
    """What the formulas vary with that dk and dv depend on; the gradient of sinks, say, is no concern of theirs."""
    needed = nx.ancestors(graph.dag, "dk") | nx.ancestors(graph.dag, "dv")
    formulas = [node.expr for name, node in graph.all(Map) if name in needed]
    formulas += [fold.domain.mask for _, fold in graph.all(Fold)]
    return frozenset(name for formula in formulas for name in ex.symbols(formula))


def _by_head(graph: Graph, name: str, fold: Fold) -> dict[str, Node]:
    """Programs per query head where formulas vary with it; the heads of a group are added up afterwards."""
    part = f"{name}_heads"
    axes = tuple("Hq" if axis == "Hkv" else axis for axis in fold.axes)
    total = Fold(
        monoid="sum",
        element=part,
        axis="Hq",
        domain=replace(fold.domain, mask=ex.TRUE, size=graph.axis("Hq").size),
        axes=fold.axes,
        level="split",
        order="sequential",
        carrier="buffer",
    )
    return {part: replace(fold, axes=axes), name: total}


def _captured(
    graph: Graph, name: str, fold: Fold, stores: Mapping[str, tuple[str, ...]], changed: dict[str, Node]
) -> dict[str, tuple[str, ...]]:
    """The gradient of a captured tensor: sums per row in a buffer, which the launcher adds up in a fixed order."""
    used = {symbol for index in fold.at for symbol in ex.symbols(index)}
    plain = all(isinstance(index, ex.Symbol) for index in fold.at)
    if not plain or not used <= {"b", "h", "row"}:
        raise PlanError(
            f"{graph.provenance.name}: captured: no gradient of {fold.into}, read at ["
            f"{', '.join(ex.text(i) for i in fold.at)}]: only b, h and row are possible"
        )
    if {"b", "row"} <= used and any(a.origin for a in map(graph.axis, fold.axes)):
        raise PlanError(
            f"{graph.provenance.name}: captured: no gradient of {fold.into}: a packed token is of one sequence: read it by"
            " b or by row"
        )
    element = graph.nodes[fold.element]
    if getattr(element, "axes", ()) == ROWS:
        changed[name] = replace(fold, level="split", order="sequential", carrier="buffer")
        return {"rows": (*stores["rows"], fold.element)}
    part = f"{name}_rows"
    changed[part] = replace(
        fold, at=(), into="", axes=ROWS, level="tile", order="full-then-partial", carrier="register"
    )
    changed[name] = Fold(
        monoid="sum",
        element=part,
        axis="Sq",
        domain=replace(fold.domain, mask=ex.TRUE, size=graph.axis("Sq").size),
        axes=fold.axes,
        at=fold.at,
        into=fold.into,
        level="split",
        order="sequential",
        carrier="buffer",
    )
    return {"dq": (*stores["dq"], part)}


def _store(graph: Graph, name: str, node: Node, address: Address) -> Store:
    axes = node.axes if isinstance(node, Fold | Map) else ()
    source = graph.nodes.get(name.removeprefix("d"))
    whole = isinstance(source, Input) and source.role == "tensor"
    return Store(operand=name, name=name, dtype="io" if whole else "float32", axes=axes, address=address)


def _merges(fold: Fold) -> bool:
    """Whether one loop can walk all tiles of a fold: those of one interval, and masks of row limits alone."""
    tiles = fold.tiles
    return tiles is None or (len(tiles.may) == 1 and len(tiles.must) <= 1 and tiles.residual == ex.TRUE)


def reads_per_element(graph: Graph) -> bool:
    """Whether a formula reads a captured tensor at a place that varies along both axes of a tile."""
    formulas = [node.expr for _, node in graph.all(Map)] + [node.domain.mask for _, node in graph.all(Fold)]
    elements = [e for f in formulas for e in ex.walk(f) if isinstance(e, ex.Element)]
    return any(ex.symbols(e) & {"i", "row"} and "j" in ex.symbols(e) for e in elements)


def _launch(
    graph: Graph, kernel: str, stores: tuple[str, ...], address: Address, merges: bool, heavy: bool
) -> Launch:
    sizes = [graph.axis(n).size for n in ("Dqk", "Dv")]
    dims = [int(s.value) for s in sizes if isinstance(s, Const)]
    owned = ("Sk", "Hkv") if kernel == "dkdv" else ("Sq", "Hq")
    return Launch(
        stores=stores,
        rows="packed" if address == "packed" else "dense",
        tile_axis=owned[0],
        program_axes=(owned[1], "B"),
        configs=tuple(
            (target, tuple(config if merges else replace(config, merged=False) for config in choices))
            for target, choices in backward_configurations(
                kernel, dims[0], dims[1], heavy=heavy, dropout="dropout" in graph.nodes
            )
        ),
    )
