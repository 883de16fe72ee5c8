"""The backward half of tile: cut the Sum folds of an attention backward, and say which kernel does what.

Three kernels, none with atomics: one over rows (delta, lse in base two, the gradient of sinks per row), one whose programs
own rows (dq), one whose programs own keys (dk, dv; it walks over the query heads of a group). Captured tensors that are
read at keys, elements or distances add kernels of their own (`tile_captured`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Axis, Domain, Fold, Input, Launch, Map, Merge, Node, Pad, Store
from attngen.ir.tile_ranges import SMALLEST_BLOCKS, ranges_along
from attngen.passes.schedules import backward_configurations, captured_configurations
from attngen.passes.tile_captured import Cut, cut_captured, merged_stores, with_right_delta


def tile_backward(
    graph: Graph, loaded: Mapping[str, Node], *, deterministic: bool = True
) -> tuple[dict[str, Node], tuple[Axis, ...]]:
    """Return the changed and added nodes of the backward, and the axes that they add to the graph.

    ``loaded`` holds the tiles that the forward made.
    """
    changed: dict[str, Node] = {}
    reads = reads_per_element(graph)
    by_head = graph.axis("Hkv").group > 1 and "h" in key_symbols(graph)
    keys = ("dk", "dv") if isinstance(graph.nodes["v"], Input) else ("dk",)  # values inside K are part of dk
    owned = tuple(f"{name}_heads" for name in keys) if by_head else keys
    stores: dict[str, tuple[str, ...]] = {"rows": ("lse2", "delta"), "dq": ("dq",), "dkdv": owned}
    cuts: dict[str, Cut] = {}
    for name, fold in graph.all(Fold):
        if fold.monoid != "sum":
            continue
        if fold.into:
            cut = cut_captured(graph, name, fold, deterministic=deterministic)
            cuts |= {kernel: cut for kernel in cut.stores if kernel not in stores}
            stores = merged_stores(stores, cut.stores)
            changed |= cut.nodes
            continue
        value = f"{fold.value}_tile" if f"{fold.value}_tile" in loaded else fold.value
        cut_fold = replace(fold, value=value, level="tile", order="full-then-partial", carrier="register")
        by_heads = by_head and fold.axis == "Sq"
        changed |= _by_head(graph, name, cut_fold, keys) if by_heads else {name: cut_fold}
    for name, node in graph.nodes.items() if by_head else ():
        if isinstance(node, Pad) or (isinstance(node, Merge) and node.monoid == "sum"):
            changed |= _by_head(graph, name, node, keys)
    if "delta_right" in changed:
        changed |= with_right_delta(graph, changed)
        stores["dq"] = (*stores["dq"], "delta_right")
    merges = all(_merges(fold) for fold in changed.values() if isinstance(fold, Fold)) and not reads
    heavy = not merges or "scores" in graph.nodes or "d_scaled" in graph.nodes
    for kernel, names in stores.items():
        for name in names:
            changed[f"store_{name}"] = _store(graph, name, {**graph.nodes, **changed}[name])
        launched = tuple(f"store_{n}" for n in names)
        cut = cuts.get(kernel)
        changed[f"kernel_{kernel}"] = (
            _launch_captured(graph, kernel, launched, cut)
            if cut
            else _launch(graph, kernel, launched, merges, heavy, by_head)
        )
    return changed, tuple(dict.fromkeys(axis for cut in cuts.values() for axis in cut.axes))


def key_symbols(graph: Graph) -> frozenset[str]:
    """What the formulas vary with that dk and dv depend on; the gradient of sinks, say, is no concern of theirs."""
    needed = nx.ancestors(graph.dag, "dk") | nx.ancestors(graph.dag, "dv")
    formulas = [node.expr for name, node in graph.all(Map) if name in needed]
    formulas += [fold.domain.mask for _, fold in graph.all(Fold)]
    return frozenset(name for formula in formulas for name in ex.symbols(formula))


def _by_head(graph: Graph, name: str, node: Fold | Pad | Merge, keys: tuple[str, ...]) -> dict[str, Node]:
    """Programs per query head where formulas vary with it; of what is stored, the heads of a group are added up
    afterwards."""
    whole = replace(node, axes=tuple("Hq" if axis == "Hkv" else axis for axis in node.axes))
    if name not in keys:
        return {name: whole}
    part = f"{name}_heads"
    total = Fold(
        monoid="sum",
        element=part,
        axis="Hq",
        domain=Domain(size=graph.axis("Hq").size),
        axes=node.axes,
        level="split",
        order="sequential",
        carrier="buffer",
    )
    return {part: whole, name: total}


def _store(graph: Graph, name: str, node: Node) -> Store:
    axes = node.axes if isinstance(node, Fold | Map | Merge) else ()
    source = graph.nodes.get(name.removeprefix("d"))
    whole = isinstance(source, Input) and source.role == "tensor"
    place = "delta" if name == "delta_right" else name
    return Store(operand=name, name=place, dtype="io" if whole else "float32", axes=axes)


def _merges(fold: Fold) -> bool:
    """Whether one loop can walk all tiles of a fold: those of one interval, and masks of row limits alone."""
    tiles = fold.tiles
    if fold.carrier == "atomic":
        return False
    if tiles is None:
        return True
    if len(tiles.may) != 1 or len(tiles.must) > 1 or tiles.residual != ex.TRUE:
        return False
    found = ranges_along(fold.axis, tiles, SMALLEST_BLOCKS)
    return bool(found.full or found.partial)  # a mask that allows nothing leaves no loop


def reads_per_element(graph: Graph) -> bool:
    """Whether a formula reads a captured tensor at a place that varies along both axes of a tile."""
    formulas = [node.expr for _, node in graph.all(Map)] + [node.domain.mask for _, node in graph.all(Fold)]
    elements = [e for f in formulas for e in ex.walk(f) if isinstance(e, ex.Element)]
    return any(ex.symbols(e) & {"i", "row"} and "j" in ex.symbols(e) for e in elements)


def _launch_captured(graph: Graph, kernel: str, stores: tuple[str, ...], cut: Cut) -> Launch:
    """The kernel of one captured gradient; the last of several, over the places of the tensor, has no tiles of scores."""
    [(_, last)] = [(n, fold) for n, fold in cut.nodes.items() if n == kernel]
    assert isinstance(last, Fold)
    tiles, kept = (cut.tiles, cut.kept) if last.level == "tile" else (last.axes[-1:], last.axes[:-1])
    kind = "places" if last.level != "tile" else "diagonals" if "Sd" in tiles else "scores"
    return Launch(
        stores=stores,
        tile_axis=tiles[0],
        across=tiles[1] if len(tiles) > 1 else "",
        program_axes=kept,
        configs=captured_configurations(sum(_dims(graph)), kind),
    )


def _dims(graph: Graph) -> list[int]:
    sizes = [graph.axis(n).size for n in ("Dqk", "Dv")]
    return [int(s.value) for s in sizes if isinstance(s, Const)]


def _launch(
    graph: Graph, kernel: str, stores: tuple[str, ...], merges: bool, heavy: bool, by_head: bool
) -> Launch:
    dims = _dims(graph)
    owned = ("Sk", "Hq" if by_head else "Hkv") if kernel == "dkdv" else ("Sq", "Hq")
    v_in_k = not isinstance(graph.nodes["v"], Input)
    parts = not v_in_k or dims[0] > 256  # one sum of so many columns needs no second launch
    found = backward_configurations(
        kernel,
        dims[0],
        dims[1],
        heavy=heavy,
        v_in_k=v_in_k,
        dropout="dropout" in graph.nodes,
        reads_captured=any(node.captured for name, node in graph.all(Map) if name in ("scores", "d_scaled")),
    )
    return Launch(
        stores=stores,
        tile_axis=owned[0],
        program_axes=(owned[1], "B"),
        widest=256 if v_in_k and kernel == "dkdv" else 1024,  # dk is cut into parts
        configs=tuple(
            (target, tuple(replace(c, merged=merges and c.merged, apart=parts and c.apart) for c in choices))
            for target, choices in found
        ),
    )
