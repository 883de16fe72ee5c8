"""Tile: cut each fold into tiles of keys inside a program, and say how tiles are loaded, stored and launched."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attngen.errors import InternalError, PlanError
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Finish, Fold, Input, Launch, Load, Node, Slice, Store
from attngen.passes.columns import cover
from attngen.passes.schedules import ANYTHING, Wanted, configurations, restricted
from attngen.passes.tile_backward import reads_per_element, tile_backward


@dataclass(frozen=True, slots=True)
class Tile:
    """Needs: planned folds in base 2. Leaves: a scheduled graph; loads, stores and one launch around a fold cut into tiles."""

    wanted: Wanted = ANYTHING
    deterministic: bool = True
    name: str = "tile"

    def apply(self, graph: Graph) -> Graph:
        """Return the scheduled graph."""
        [(name, fold)] = [(n, f) for n, f in graph.all(Fold) if f.monoid == "softmax"]
        if fold.tiles is None or fold.base != "2":
            raise InternalError("tile: run plan-masks and base-two first")
        changed: dict[str, Node] = dict(_loads(graph))
        changed[name] = replace(
            fold,
            value=_loaded(graph, fold.value),
            level="tile",
            order="full-then-partial",
            carrier="register",
        )
        for contract_name, contract in graph.all(Contract):
            if contract_name == "out_dout":  # a sum along rows, of what is in memory
                continue
            left, right = _loaded(graph, contract.left), _loaded(graph, contract.right)
            changed[contract_name] = replace(contract, left=left, right=right)
        changed |= _stores(graph)
        changed["kernel"] = _launch(graph, tuple(n for n in changed if n.startswith("store_")), self.wanted)
        if "dq" in graph.nodes:
            added, axes = tile_backward(graph, changed, deterministic=self.deterministic)
            changed |= added
            graph = replace(graph, axes=(*graph.axes, *axes))
        return graph.with_nodes(changed, level="scheduled")


def _tensors(graph: Graph) -> list[str]:
    """Tensors that a program brings in by tiles: q, k, v, and views of them."""
    return [
        name
        for name, node in graph.nodes.items()
        if isinstance(node, Slice) or name == "dout" or (isinstance(node, Input) and node.role == "tensor")
    ]


def _loaded(graph: Graph, name: str) -> str:
    return f"{name}_tile" if name in _tensors(graph) else name


def _loads(graph: Graph) -> dict[str, Node]:
    loads: dict[str, Node] = {}
    halves = _in_halves(graph)
    for name in _tensors(graph):
        node = graph.nodes[name]
        assert isinstance(node, Input | Slice)
        columns = _columns(graph, node)
        loads[f"{name}_tile"] = Load(
            operand=name,
            axes=node.axes,
            tile_axis=node.axes[-2],
            columns=columns,
            chunks=_cover_with_view(columns, _viewed_columns(graph), 32 if halves else 16)
            if name in ("q", "k")
            else cover(columns, 32 if halves else 16),
            address="strided",
            halves=halves,
        )
    return loads


def _in_halves(graph: Graph) -> bool:
    """Whether even and odd columns of keys share bytes: then each half is a product of its own, and nothing is shuffled."""
    return any(node.dtype == "int4" for _, node in graph.all(Input))


def _columns(graph: Graph, node: Input | Slice) -> int:
    size = graph.axis(node.axes[-1]).size
    assert isinstance(size, Const)
    return int(size.value)


def _viewed_columns(graph: Graph) -> int:
    return sum(node.columns for _, node in graph.all(Slice))


def _cover_with_view(columns: int, viewed: int, least: int) -> tuple[tuple[int, int], ...]:
    """Cover K so that a view of its first columns (MLA's V) is a whole number of chunks: they are loaded once for both."""
    if not viewed:
        return cover(columns, least)
    if viewed % least:
        raise PlanError(f"head_dim: v_from_k is {viewed}; a view of K needs a multiple of {least} columns")
    rest = cover(columns - viewed, least) if columns > viewed else ()
    return (*cover(viewed, least), *((viewed + start, width) for start, width in rest))


def _stores(graph: Graph) -> dict[str, Node]:
    return {
        f"store_{node.result}": Store(
            operand=name,
            name=node.result,
            dtype="io" if node.result == "out" else "float32",
            axes=node.axes,
        )
        for name, node in graph.all(Finish)
    }


def _launch(graph: Graph, stores: tuple[str, ...], wanted: Wanted) -> Launch:
    sizes = [graph.axis(n).size for n in ("Dqk", "Dv")]
    dims = [int(s.value) for s in sizes if isinstance(s, Const)]
    found = configurations(
        dims[0], dims[1], reads_per_element=reads_per_element(graph), dropout="dropout" in graph.nodes
    )
    return Launch(
        stores=stores,
        tile_axis="Sq",
        program_axes=("Hq", "B"),
        configs=restricted(found, wanted),
    )
