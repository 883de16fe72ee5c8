"""Chunks of recurrences whose states decay row by row, as GLA's do (arXiv:2312.06635, section 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeVar

from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Fold, Launch, Load, Node, Store
from attngen.passes.columns import narrow
from attngen.passes.schedules_recurrence import (
    of_columns,
    of_narrow_read,
    of_pairs_of_rows,
    of_token_adjoints_of_rows,
    of_totals_of_rows,
    of_value_pairs,
    of_values_of_rows,
)

SomeNode = TypeVar("SomeNode", bound=Node)
NARROW: Final = 64
"""Columns of a tile: narrow where a program also holds a decay for each, or the blocks of what it solves."""


def node_of(graph: Graph, name: str, kind: type[SomeNode]) -> SomeNode:
    """A node that the chunks of every recurrence have."""
    node = graph.nodes[name]
    assert isinstance(node, kind)
    return node


def by_rows(graph: Graph) -> Graph:
    """The chunks of a decay per head, changed to those of a decay per column of keys.

    A sum of decays has columns, and so has what lies between a query and a key: it is part of their products, which a
    kernel of their own makes and stores.
    """
    total, within = node_of(graph, "total", Fold), node_of(graph, "within", Fold)
    pairs = node_of(graph, "pairs", Contract)
    totals, kernel = node_of(graph, "totals_kernel", Launch), node_of(graph, "kernel", Launch)
    changed: dict[str, Node] = {**narrow_tiles(graph)}
    changed["total"] = replace(total, axes=("B", "H", "L", "K"))
    changed["store_total"] = Store(operand="total", name="total", dtype="sums", axes=("B", "H", "L", "K"))
    changed["pairs"] = replace(pairs, decay="total")
    changed["within"] = replace(within, decay="")
    changed["store_pairs"] = Store(operand="pairs", name="pairs", dtype="io", axes=pairs.axes)
    changed["totals_kernel"] = replace(
        totals, tile_axis="K", program_axes=("C", "H"), configs=of_totals_of_rows()
    )
    changed["pairs_kernel"] = Launch(
        stores=("store_pairs",),
        tile_axis="L",
        program_axes=("C", "H"),
        configs=of_pairs_of_rows(node_of(graph, "k_tile", Load).columns),
        rows="chunks",
    )
    columns = node_of(graph, "v_tile", Load).columns
    changed["kernel"] = replace(kernel, configs=of_narrow_read(columns, total.chunk))
    made = graph.with_nodes(changed)
    return _adjoints(made, total.chunk) if "dfold" in graph.nodes else made


def _adjoints(graph: Graph, chunk: int) -> Graph:
    """The backward: products that values are weighed with hold the decays between, as the forward's do.

    Those of gradients and values, for queries and keys alike, hold none. A kernel of their own makes and stores them, since
    each of their readers owns few columns; it is these that decay.
    """
    folds = [(name, f) for name, f in graph.all(Fold) if f.axis == "J" and name != "within"]
    ((name, of_values),) = [(n, f) for n, f in folds if _over_keys(graph, f)]
    ((_, of_queries),) = [(n, f) for n, f in folds if not f.reverse]
    products, pairs = (node_of(graph, f.element, Contract) for f in (of_values, of_queries))
    rows, columns = (node_of(graph, tile, Load).columns for tile in ("k_tile", "v_tile"))
    scan, queries, keys, values, tokens = (
        node_of(graph, f"{kernel}_kernel", Launch)
        for kernel in ("adjoint_scan", "queries", "keys", "values", "tokens")
    )
    changed: dict[str, Node] = {
        name: replace(of_values, decay=""),
        of_values.element: replace(products, decay="total", reverse=True),
        "store_adjoint_pairs": Store(
            operand=of_queries.element, name="adjoint_pairs", dtype="io", axes=pairs.axes
        ),
        "adjoint_pairs_kernel": replace(
            queries, stores=("store_adjoint_pairs",), configs=of_value_pairs(chunk)
        ),
        "adjoint_scan_kernel": replace(scan, stores=tuple(s for s in scan.stores if s != "store_edges")),
        "queries_kernel": replace(queries, across="K", configs=of_columns(rows, chunk, sm_80=64)),
        "keys_kernel": replace(keys, across="K", configs=of_columns(rows, chunk, sm_80=32)),
        "values_kernel": replace(values, configs=of_values_of_rows(columns, chunk)),
        "tokens_kernel": replace(
            tokens, tile_axis="K", program_axes=("C", "H"), configs=of_token_adjoints_of_rows()
        ),
    }
    return graph.with_nodes(changed).without({"store_edges"})


def _over_keys(graph: Graph, within: Fold) -> bool:
    """Whether what a fold sums up are products over the columns that decay."""
    return node_of(graph, within.element, Contract).over == "K"


def narrow_tiles(graph: Graph) -> dict[str, Node]:
    """The tiles that programs bring in, none wide."""
    return {name: replace(node, chunks=narrow(node.chunks, NARROW)) for name, node in graph.all(Load)}
