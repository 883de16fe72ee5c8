"""Chunk: cut the fold of a recurrence into chunks of tokens (SSD's block decomposition, arXiv:2405.21060, section 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

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
from attngen.passes.chunk_delta import check_chunk, delta_nodes, written_tile
from attngen.passes.columns import cover, narrow
from attngen.passes.schedules_recurrence import (
    Configs,
    of_chunk_scan,
    of_chunk_states,
    of_delta_scan,
    of_narrow_read,
    of_pairs,
    of_pairs_of_rows,
    of_scan,
    of_solve,
    of_totals,
    of_totals_of_rows,
)

LOG2E: Final = math.log2(math.e)
OF_CHUNKS: Final = ("B", "C", "H")
OF_CHUNK: Final = ("C", "H")
WIDE: Final = 1024
NARROW: Final = 64
"""Columns of a tile: narrow where a program also holds decays of each, or the blocks of what it solves."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Needs: the semantic graph of a recurrence. Leaves: a scheduled graph of up to five launches.

    A fold over L becomes one per chunk, a scan over the chunks by the monoid's merge, and what is read: of the state before
    the chunk, plus, since reading is linear and moves inside the fold, products of queries and earlier keys of the chunk.
    Decays are summed up from each chunk's start, in base two, where they differ from token to token or not. Those of a
    decay per column are inside the products of queries and keys. A delta rule goes through the chunks in order.
    """

    size: int
    name: str = "chunk"

    def apply(self, graph: Graph) -> Graph:
        """Return the scheduled graph."""
        _, fold = next((n, f) for n, f in graph.all(Fold) if f.monoid == "decay")
        _, read = graph.only(Read)
        has_rows = bool(fold.decay) and "K" in _axes(graph, fold.decay)
        if fold.erase:
            check_chunk(graph, self.size)
        chunk, wide = self.size, fold.axes[-1]
        changed: dict[str, Node] = {**_tiles(graph, NARROW if has_rows or fold.erase else WIDE)}
        loaded = {load.operand: name for name, load in changed.items() if isinstance(load, Load)}
        total = ""
        if fold.decay:
            total = "total"
            changed[total] = Fold(
                monoid="sum",
                element=fold.decay,
                axis="L",
                domain=fold.domain,
                axes=("B", "H", "L", "K") if has_rows else ("B", "H", "L"),
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
        if fold.erase:
            changed |= delta_nodes(read, fold, keys, value, total, chunk)
        changed["chunk_states"] = replace(
            fold,
            element=keys,
            value="writes" if fold.erase else value,
            decay=total,
            late=late,
            erase="erases" if fold.erase else "",
            init="",
            axes=(*OF_CHUNKS, "K", wide),
            **(_cut(chunk, "sequential", "register") if fold.erase else _cut(chunk, "parallel", "buffer")),
        )
        changed["fold"] = Fold(
            monoid="decay",
            element="chunk_states",
            decay=total,
            init=fold.init,
            axis="C",
            domain=Domain(size=symbol("num_chunks")),
            axes=(*OF_CHUNKS, "K", wide),
            **_cut(chunk, "sequential" if fold.erase else "scan", "buffer"),
        )
        if fold.erase:
            given, value = changed[value], "written_tile"
            assert isinstance(given, Load)
            changed[value] = written_tile(given)
        heads = "G" if "G" in _axes(graph, fold.element) else "H"
        changed["pairs"] = Contract(
            left=query, right=keys, decay=total if has_rows else "", over="K", axes=("B", heads, "L", "J")
        )
        earlier = ex.apply("le", symbol("j"), symbol("t"))
        changed["within"] = Fold(
            monoid="sum",
            element="pairs",
            value=value,
            decay="" if has_rows else total,
            late=late,
            axis="J",
            domain=Domain(size=fold.domain.size, mask=earlier),
            axes=read.axes,
            **_cut(chunk, "sequential", "register"),
        )
        changed["across"] = Read(query=query, state="fold", decay=total, axes=read.axes)
        changed["read"] = Merge(monoid="sum", left="across", right="within", axes=read.axes)
        changed |= _launches(graph, changed, ("K", wide), stores_pairs=heads == "G" or has_rows)
        axes = (
            Axis(name="C", size=symbol("num_chunks"), symbol="c"),
            Axis(name="J", size=symbol("seqlen"), symbol="j", origin="start"),
        )
        unread = {fold.value} if late else set[str]()
        graph = replace(graph, axes=(*graph.axes, *axes)).with_nodes(changed, level="scheduled")
        return graph.without(unread)


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


def _tiles(graph: Graph, widest: int) -> dict[str, Node]:
    """Tensors that programs bring in by tiles of tokens, in chunks of at most so many columns."""
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
                chunks=narrow(cover(int(columns.value)), widest),
                address="strided",
            )
    return found


def _launches(
    graph: Graph, changed: dict[str, Node], states: tuple[str, str], *, stores_pairs: bool
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

    total, is_delta = changed.get("total"), "writes" in changed
    if isinstance(total, Fold):
        has_rows = "K" in total.axes
        more = [n for n in ("step", "late") if n in graph.nodes or n in changed]
        stores = {"total": "float32", **dict.fromkeys(more, "float32")}
        if has_rows:
            launch("totals_kernel", stores, of_totals_of_rows(), "K", OF_CHUNK)
        else:
            launch("totals_kernel", stores, of_totals(), "H", ("C",))
    if is_delta:
        solved = {"writes": "float32", "erases": "io"}
        launch("solve_kernel", solved, of_solve(), "L", OF_CHUNK)
        kept = {"fold": "float32", "written": "io", "states": "float32"}
        launch("scan_kernel", kept, of_delta_scan(rows), states[1], ("B", "H"))
    else:
        own = of_chunk_states(rows, columns, chunk)
        launch("chunk_states_kernel", {"chunk_states": "float32"}, own, "K", OF_CHUNK)
        launch("scan_kernel", {"fold": "float32", "states": "float32"}, of_scan(), "K", ("B", "H"))
    pairs = changed["pairs"]
    assert isinstance(pairs, Contract)
    if stores_pairs:
        own = of_pairs_of_rows() if pairs.decay else of_pairs(rows, chunk)
        launch("pairs_kernel", {"pairs": "io"}, own, "L", ("C", pairs.axes[1]))
    is_narrow = is_delta or bool(pairs.decay)
    own = of_narrow_read(chunk) if is_narrow else of_chunk_scan(rows, columns, chunk)
    launch("kernel", {"out": "io"}, own, "L", OF_CHUNK)
    return found
