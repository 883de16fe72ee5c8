"""Chunk: cut the fold of a recurrence into chunks of tokens (SSD's block decomposition, arXiv:2405.21060, section 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Axis,
    Contract,
    Domain,
    Fold,
    Input,
    Launch,
    Load,
    Map,
    Merge,
    Node,
    Read,
    Store,
    symbol,
)
from attngen.passes.columns import cover
from attngen.passes.decode import decode_nodes
from attngen.passes.schedules_recurrence import (
    Configs,
    of_chunk_scan,
    of_chunk_states,
    of_pairs,
    of_scan,
    of_totals,
)

LOG2E: Final = math.log2(math.e)
OF_CHUNKS: Final = ("B", "C", "H")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Needs: the semantic graph of a recurrence. Leaves: a scheduled graph of up to five launches, and that of decode.

    A fold over L becomes one per chunk, a scan over the chunks by the monoid's merge, and what is read: of the state before
    the chunk, plus, since reading is linear and moves inside the fold, products of queries and earlier keys of the chunk.
    Decays are summed up from each chunk's start, in base two, where they differ from token to token or not.
    """

    size: int
    name: str = "chunk"

    def apply(self, graph: Graph) -> Graph:
        """Return the scheduled graph."""
        _, fold = next((n, f) for n, f in graph.all(Fold) if f.monoid == "decay")
        _, read = graph.only(Read)
        if fold.erase or (fold.decay and "K" in _axes(graph, fold.decay)):
            what = "a delta rule" if fold.erase else "a decay per column"
            raise PlanError(
                f"{graph.provenance.name}: recurrence: kernels of {what} are not in this version yet"
            )
        chunk, wide = self.size, fold.axes[-1]
        changed: dict[str, Node] = {**_tiles(graph)}
        loaded = {load.operand: name for name, load in changed.items() if isinstance(load, Load)}
        total = ""
        if fold.decay:
            total = "total"
            changed[total] = Fold(
                monoid="sum",
                element=fold.decay,
                axis="L",
                domain=fold.domain,
                axes=("B", "H", "L"),
                prefix=True,
                base="2",
                factor=Const(LOG2E),
                **_cut(chunk, "sequential", "buffer"),
            )
        late = _late(graph, fold.value, changed)
        for name, node in graph.all(Map):
            if node.operand in loaded:
                changed[name] = replace(node, operand=loaded[node.operand])
        for name, node in graph.nodes.items():
            if node.kind == "pad":
                changed[name] = replace(node, operand=loaded[node.operands()[0]])
        values = changed[fold.value] if late else None
        written = values.operand if isinstance(values, Map) else fold.value
        keys, value, query = (loaded.get(n, n) for n in (fold.element, written, read.query))
        changed["chunk_states"] = replace(
            fold,
            element=keys,
            value=value,
            decay=total,
            late=late,
            init="",
            axes=(*OF_CHUNKS, "K", wide),
            **_cut(chunk, "parallel", "buffer"),
        )
        changed["fold"] = Fold(
            monoid="decay",
            element="chunk_states",
            decay=total,
            init=fold.init,
            axis="C",
            domain=Domain(size=symbol("num_chunks")),
            axes=(*OF_CHUNKS, "K", wide),
            **_cut(chunk, "scan", "buffer"),
        )
        heads = "G" if "G" in _axes(graph, fold.element) else "H"
        changed["pairs"] = Contract(left=query, right=keys, over="K", axes=("B", heads, "L", "J"))
        earlier = ex.apply("le", symbol("j"), symbol("t"))
        changed["within"] = Fold(
            monoid="sum",
            element="pairs",
            value=value,
            decay=total,
            late=late,
            axis="J",
            domain=Domain(size=fold.domain.size, mask=earlier),
            axes=read.axes,
            **_cut(chunk, "sequential", "register"),
        )
        changed["across"] = Read(query=query, state="fold", decay=total, axes=read.axes)
        changed["read"] = Merge(monoid="sum", left="across", right="within", axes=read.axes)
        changed |= _launches(graph, changed, ("K", wide), shares_pairs=heads == "G")
        axes = (
            Axis(name="C", size=symbol("num_chunks"), symbol="c"),
            Axis(name="J", size=symbol("seqlen"), symbol="j", origin="start"),
        )
        changed |= decode_nodes(graph, loaded)
        return replace(graph, axes=(*graph.axes, *axes)).with_nodes(changed, level="scheduled")


def _cut(chunk: int, order: str, carrier: str) -> dict[str, Any]:
    return {"level": "chunk", "order": order, "carrier": carrier, "chunk": chunk}


def _late(graph: Graph, value: str, changed: dict[str, Node]) -> str:
    """What multiplies values and is never negative goes into the exponent, where it costs nothing: the node that holds it."""
    node = graph.nodes[value]
    if not (isinstance(node, Map) and "total" in changed and node.others):
        return ""
    step = graph.nodes[node.others[0]]
    if not (isinstance(step, Map) and any(x == "softplus" for x in _operators(step.expr))):
        return ""
    log = ex.apply("log2", Symbol(node.others[0], "float"))
    changed["late"] = Map(
        operand="total",
        others=node.others,
        expr=ex.apply("sub", Symbol("s", "float"), log),
        axes=("B", "H", "L"),
    )
    return "late"


def _operators(expr: Expr) -> list[str]:
    return [e.op for e in ex.walk(expr) if isinstance(e, Apply)]


def _axes(graph: Graph, name: str) -> tuple[str, ...]:
    return getattr(graph.nodes[name], "axes", ())


def _tiles(graph: Graph) -> dict[str, Node]:
    """Tensors that programs bring in by tiles of tokens."""
    found: dict[str, Node] = {}
    for name, node in graph.all(Input):
        if node.role == "tensor" and not node.optional:
            columns = graph.axis(node.axes[-1]).size
            assert isinstance(columns, Const)
            found[f"{name}_tile"] = Load(
                operand=name,
                axes=node.axes,
                tile_axis="L",
                columns=int(columns.value),
                chunks=cover(int(columns.value)),
                address="strided",
            )
    return found


def _launches(
    graph: Graph, changed: dict[str, Node], states: tuple[str, str], *, shares_pairs: bool
) -> dict[str, Node]:
    """The kernels: decays of tokens, states of chunks, the scan over them, what groups share, and what is read."""
    sizes = [graph.axis(a).size for a in states]
    chunk = next(f.chunk for f in changed.values() if isinstance(f, Fold))
    rows, columns = (int(size.value) for size in sizes if isinstance(size, Const))
    found: dict[str, Node] = {}

    def launch(
        name: str, stores: dict[str, str], configs: Configs, tile_axis: str, axes: tuple[str, ...]
    ) -> None:
        for operand, dtype in stores.items():
            node = changed.get(operand, graph.nodes.get(operand))
            found[f"store_{operand}"] = Store(
                operand=operand, name=operand, dtype=dtype, axes=getattr(node, "axes", ())
            )
        found[name] = Launch(
            stores=tuple(f"store_{operand}" for operand in stores),
            tile_axis=tile_axis,
            program_axes=axes,
            configs=configs,
            rows="chunks",
        )

    if "total" in changed:
        more = [n for n in ("step", "late") if n in graph.nodes or n in changed]
        launch(
            "totals_kernel", {"total": "float32", **dict.fromkeys(more, "float32")}, of_totals(), "H", ("C",)
        )
    launch(
        "chunk_states_kernel",
        {"chunk_states": "float32"},
        of_chunk_states(rows, columns, chunk),
        "K",
        ("C", "H"),
    )
    launch("scan_kernel", {"fold": "float32", "states": "float32"}, of_scan(), "K", ("B", "H"))
    if shares_pairs:
        launch("pairs_kernel", {"pairs": "io"}, of_pairs(rows, chunk), "L", ("C", "G"))
    launch("kernel", {"out": "io"}, of_chunk_scan(rows, columns, chunk), "L", ("C", "H"))
    return found
