"""Chunks of delta rules in WY form (arXiv:2406.06484, section 3; with a decay arXiv:2412.06464, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Fold, Launch, Load, Map, Node, Read, Solve, Store
from attngen.passes.chunk_delta_adjoint import GONE, adjoint_by_delta_rule
from attngen.passes.chunk_rows import narrow_tiles, node_of
from attngen.passes.schedules_recurrence import of_delta_scan, of_narrow_read, of_solve

BLOCK: Final = 16
MOST: Final = 64
TOKENS: Final = ("B", "L", "H")
S: Final = Symbol("s", "float")


def by_delta_rule(graph: Graph, beta: str) -> Graph:
    """The chunks of a recurrence without a delta rule, changed to those of one.

    Were the state before a chunk zero, its tokens would write `writes`; of what it holds they take `erases` state away. Both
    solve one system, the left side of which says how a token's key is like those before it. The rest of the chunk is that
    of a recurrence without a delta rule, with `written` as values; states go through the chunks one after the other.
    """
    local, fold, within = (node_of(graph, name, Fold) for name in ("chunk_states", "fold", "within"))
    if local.chunk > MOST:
        raise PlanError(
            f"{graph.provenance.name}: recurrence.chunk: kernels of a delta rule solve for at most {MOST} tokens"
            f" at a time, got {local.chunk}; write a chunk from {BLOCK} to {MOST}"
        )
    changed: dict[str, Node] = {**narrow_tiles(graph)}
    values = changed[local.value]
    assert isinstance(values, Load)
    changed |= _written(local, beta, within.axes)
    changed["written_tile"] = replace(values, operand="written")
    in_order = {"order": "sequential"}
    changed["chunk_states"] = replace(local, value="writes", erase="erases", carrier="register", **in_order)
    changed["fold"] = replace(fold, **in_order)
    changed["within"] = replace(within, value="written_tile")
    changed |= _launches(graph, changed, local.chunk)
    gone = {"chunk_states_kernel", "store_chunk_states"}
    if "dfold" in graph.nodes:
        changed |= adjoint_by_delta_rule(graph, {**graph.nodes, **changed}, _system(local, beta))
        gone |= {*GONE} & {*graph.nodes}
    return graph.with_nodes(changed).without(gone)


def _system(local: Fold, beta: str) -> dict[str, Any]:
    """What `Solve` nodes of a chunk have in common: A of I + A."""
    return {"matrix": "alike", "scale": beta, "decay": local.decay, "chunk": local.chunk, "block": BLOCK}


def _written(local: Fold, beta: str, axes: tuple[str, ...]) -> dict[str, Node]:
    """The nodes between keys, values and beta of a chunk and what its tokens write to the state."""
    total, faded = local.decay, beta
    found: dict[str, Node] = {}
    found["alike"] = Contract(left=local.element, right=local.element, over="K", axes=("B", "H", "L", "J"))
    if total:
        faded = "faded"
        since = ex.apply("exp2", Symbol(total, "float"))
        found[faded] = Map(operand=beta, others=(total,), expr=ex.apply("mul", S, since), axes=TOKENS)
    system = _system(local, beta)
    found["writes"] = Solve(rhs=local.value, weight=beta, axes=axes, **system)
    found["erases"] = Solve(rhs=local.element, weight=faded, axes=(*TOKENS, "K"), **system)
    found["taken"] = Read(query="erases", state="fold", axes=axes)
    left = ex.apply("sub", S, Symbol("taken", "float"))
    found["written"] = Map(operand="writes", others=("taken",), expr=left, axes=axes)
    return found


def _launches(graph: Graph, made: dict[str, Node], chunk: int) -> dict[str, Node]:
    """The kernels that solve, that go through the chunks, and that read."""
    scan, kernel = (node_of(graph, name, Launch) for name in ("scan_kernel", "kernel"))
    rows, columns = (node_of(graph, f"{name}_tile", Load).columns for name in "kv")
    stored = {"writes": "float32", "erases": "io", "written": "io"}
    found: dict[str, Node] = {
        f"store_{name}": Store(operand=name, name=name, dtype=dtype, axes=getattr(made[name], "axes", ()))
        for name, dtype in stored.items()
    }
    found["solve_kernel"] = Launch(
        stores=("store_writes", "store_erases"),
        tile_axis="L",
        program_axes=("C", "H"),
        configs=of_solve(),
        rows="chunks",
    )
    found["scan_kernel"] = replace(
        scan, stores=(*scan.stores, "store_written"), tile_axis="V", configs=of_delta_scan(rows)
    )
    found["kernel"] = replace(kernel, configs=of_narrow_read(columns, chunk))
    return found
