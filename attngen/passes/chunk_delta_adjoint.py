"""Chunks of the adjoint of a delta rule: the WY form from the last token to the first (arXiv:2406.06484, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from attngen.ir import expr as ex
from attngen.ir.expr import Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Fold, Launch, Load, Map, Node, Read, Solve, Store, symbol
from attngen.passes.chunk_rows import node_of
from attngen.passes.schedules_recurrence import (
    of_delta_adjoint_scan,
    of_delta_adjoints,
    of_narrow_read,
    of_solve,
)

TOKENS: Final = ("B", "L", "H")
S: Final = Symbol("s", "float")
GONE: Final = (
    *("held", "held_pairs", "held_within", "held_across", "dwritten_across"),
    *("chunk_adjoints_kernel", "store_chunk_adjoints", "values_kernel"),
)
"""Nodes of a recurrence without a delta rule that those of one take the place of."""


def adjoint_by_delta_rule(graph: Graph, made: dict[str, Node], system: dict[str, Any]) -> dict[str, Node]:
    """The backward nodes that change; `made` are those of the forward, `system` says what its chunks solve.

    Were the gradient after a chunk zero, its tokens' writes would have the gradient `dwrites`; of what comes to it they
    take `derases` gradient: both solve the transposed system. With these, gradients go through the chunks one after the other.
    """
    fold, dfold, local = (node_of(graph, name, Fold) for name in ("fold", "dfold", "chunk_adjoints"))
    alone = made["chunk_states"]
    assert isinstance(alone, Fold)
    beta, keys = local.erase, alone.element
    values = graph.nodes[f"d{graph_value(graph)}"]
    assert isinstance(values, Map)
    found = _tiles(made, graph_value(graph)) | _solved(made, keys, local.decay, values.axes, system)
    found["weighed"] = Map(
        operand=keys, others=(beta,), expr=ex.apply("mul", S, _of(beta)), axes=(*TOKENS, "K")
    )
    found["chunk_adjoints"] = replace(
        local, along="weighed", taken="dwrites", erase="derases", carrier="register", order="sequential"
    )
    found["dfold"] = replace(dfold, order="sequential")
    found |= _reads(graph, fold, keys)
    return found | _launches(graph, made | found, local.chunk)


def graph_value(graph: Graph) -> str:
    """The input that values are."""
    return node_of(graph, node_of(graph, "chunk_states", Fold).value, Load).operand


def _of(name: str) -> Symbol:
    return Symbol(name, "float")


def _tiles(made: dict[str, Node], value: str) -> dict[str, Node]:
    """What kernels leave for others, as these load it."""
    values = made[f"{value}_tile"]
    assert isinstance(values, Load)
    return {
        f"{name}_tile": replace(values, operand=name) for name in ("dwritten_within", "dwritten", f"d{value}")
    }


def _solved(
    made: dict[str, Node], keys: str, total: str, axes: tuple[str, ...], system: dict[str, Any]
) -> dict[str, Node]:
    """What the transposed system gives, and with the gradient that comes to a chunk that of what its tokens write."""
    found: dict[str, Node] = {}
    share = ""
    if total:
        # of the decay up to the chunk's end
        share = "share"
        sums = made["total"]
        assert isinstance(sums, Fold)
        found["rest"] = replace(sums, prefix="i", reverse=True, carrier="register")
        found[share] = Map(operand="rest", expr=ex.apply("exp2", S), axes=TOKENS)
    found["dwrites"] = Solve(rhs="dwritten_within_tile", transposed=True, axes=axes, **system)
    found["derases"] = Solve(rhs=keys, weight=share, transposed=True, axes=(*TOKENS, "K"), **system)
    found["brought"] = Read(query="derases", state="dfold", axes=axes)
    found["dwritten"] = Map(
        operand="dwrites", others=("brought",), expr=ex.apply("add", S, _of("brought")), axes=axes
    )
    return found


def _reads(graph: Graph, fold: Fold, keys: str) -> dict[str, Node]:
    """What is read of states and of their gradients, with what tokens write where values would be.

    A gradient also holds what later tokens took out of it: outer products of their keys and gradients of their values.
    """
    value = graph_value(graph)
    found: dict[str, Node] = {}
    for name, read in graph.all(Read):
        if name.endswith("_across") and f"{name.removesuffix('across')}pairs" in graph.nodes:
            which = name.removesuffix("_across")
            pairs = node_of(graph, f"{which}_pairs", Contract)
            query = {"written": "written_tile", "dwritten": "dwritten_tile"}.get(read.query, read.query)
            right = "written_tile" if pairs.right == f"{value}_tile" else pairs.right
            left = query if pairs.over != "K" else pairs.left
            found[name] = replace(read, query=query, before=False)
            found[f"{which}_pairs"] = replace(pairs, left=left, right=right)
    within, pairs = node_of(graph, "dk_written_within", Fold), found["dk_written_pairs"]
    assert isinstance(pairs, Contract)
    later = ex.apply("gt", symbol("j"), symbol("t"))
    found["dk_written_read"] = within
    found["dk_written_taken_pairs"] = replace(pairs, right=f"d{value}_tile")
    found["dk_written_taken"] = replace(
        within, element="dk_written_taken_pairs", value=keys, domain=replace(within.domain, mask=later)
    )
    remains = ex.apply("sub", S, _of("dk_written_taken"))
    found["dk_written_within"] = Map(
        operand="dk_written_read", others=("dk_written_taken",), expr=remains, axes=within.axes
    )
    of_values = node_of(graph, "of_values", Contract)
    found["of_values"] = replace(of_values, left=f"{value}_tile", right="dwritten_tile")
    return {name: node for name, node in found.items() if name not in GONE}


def _launches(graph: Graph, made: dict[str, Node], chunk: int) -> dict[str, Node]:
    """The kernels that make, solve and carry gradients of what tokens write; those of keys and of beta."""
    value = graph_value(graph)
    rows, columns = (node_of(graph, f"{name}_tile", Load).columns for name in ("k", value))
    reads = of_delta_adjoints(max(rows, columns), chunk)
    erased = ("of_erased",) if "of_erased" in graph.nodes else ()
    stored = dict.fromkeys(("dwritten_within", "derases", "dwritten", f"d{value}"), "io")
    stored |= dict.fromkeys(("dwrites", "found", "dbeta", *erased), "float32")
    found: dict[str, Node] = {
        f"store_{name}": Store(
            operand=name,
            name=name,
            dtype=dtype,
            axes=getattr(made.get(name) or graph.nodes[name], "axes", ()),
        )
        for name, dtype in stored.items()
    }

    def launch(*names: str, **how: Any) -> Launch:
        stores = tuple(f"store_{name}" for name in names)
        return Launch(stores=stores, tile_axis="L", program_axes=("C", "H"), rows="chunks", **how)

    scan, queries, own = (node_of(graph, f"{n}_kernel", Launch) for n in ("adjoint_scan", "queries", "keys"))
    found["writes_adjoint_kernel"] = launch("dwritten_within", configs=of_narrow_read(columns, chunk))
    found["solve_adjoint_kernel"] = launch("dwrites", "derases", configs=of_solve())
    found["adjoint_scan_kernel"] = replace(
        scan,
        stores=(*scan.stores, "store_dwritten", f"store_d{value}"),
        tile_axis="V",
        configs=of_delta_adjoint_scan(rows),
    )
    found["queries_kernel"] = replace(queries, configs=reads)
    found["found_kernel"] = launch("found", "dbeta", *erased, configs=reads)
    found["keys_kernel"] = replace(own, configs=reads)
    return found
