"""The backward half of tile: cut the Sum folds of an attention backward, and say which kernel does what.

Three kernels, none with atomics: one over rows (delta, lse in base two, the gradient of sinks per row), one whose programs
own rows (dq), one whose programs own keys (dk, dv; it walks over the query heads of a group).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
    stores: dict[str, tuple[str, ...]] = {"rows": ("lse2", "delta"), "dq": ("dq",), "dkdv": ("dk", "dv")}
    for name, fold in graph.all(Fold):
        if fold.monoid != "sum":
            continue
        if fold.into:
            stores |= _captured(graph, name, fold, stores, changed)
            continue
        value = f"{fold.value}_tile" if f"{fold.value}_tile" in loaded else fold.value
        changed[name] = replace(
            fold, value=value, level="tile", order="full-then-partial", carrier="register"
        )
    for kernel, names in stores.items():
        for name in names:
            changed[f"store_{name}"] = _store(graph, name, {**graph.nodes, **changed}[name], address)
        changed[f"kernel_{kernel}"] = _launch(graph, kernel, tuple(f"store_{n}" for n in names), address)
    return changed


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


def _launch(graph: Graph, kernel: str, stores: tuple[str, ...], address: Address) -> Launch:
    sizes = [graph.axis(n).size for n in ("Dqk", "Dv")]
    dims = [int(s.value) for s in sizes if isinstance(s, Const)]
    owned = ("Sk", "Hkv") if kernel == "dkdv" else ("Sq", "Hq")
    return Launch(
        stores=stores,
        rows="packed" if address == "packed" else "dense",
        tile_axis=owned[0],
        program_axes=(owned[1], "B"),
        configs=backward_configurations(kernel, dims[0], dims[1]),
    )
