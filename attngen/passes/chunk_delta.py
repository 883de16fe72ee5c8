"""Chunks of delta rules in WY form (arXiv:2406.06484, section 3; with a decay arXiv:2412.06464, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Fold, Load, Map, Node, Read, Solve

BLOCK: Final = 16
MOST: Final = 64
S: Final = Symbol("s", "float")


def check_chunk(graph: Graph, chunk: int) -> None:
    """Refuse chunks whose inverse has more blocks than a program can hold."""
    if chunk > MOST:
        raise PlanError(
            f"{graph.provenance.name}: recurrence.chunk: kernels of a delta rule solve for at most {MOST} tokens"
            f" at a time, got {chunk}; write a chunk from {BLOCK} to {MOST}"
        )


def delta_nodes(read: Read, fold: Fold, keys: str, value: str, total: str, chunk: int) -> dict[str, Node]:
    """The nodes between keys, values and beta of a chunk and what its tokens write to the state.

    Were the state before the chunk zero, they would write `writes`; of what it holds they take `erases` state away. Both solve
    one system, the left side of which says how a token's key is like those before it. The rest of the chunk then is that of
    a recurrence without a delta rule, with `written` as values.
    """
    tokens, beta = ("B", "L", "H"), fold.erase
    columns = (*tokens, "K")
    found: dict[str, Node] = {}
    found["alike"] = Contract(left=keys, right=keys, over="K", axes=("B", "H", "L", "J"))
    faded = beta
    if total:
        faded = "faded"
        since = ex.apply("exp2", Symbol(total, "float"))
        found[faded] = Map(operand=beta, others=(total,), expr=ex.apply("mul", S, since), axes=tokens)
    system: dict[str, Any] = {
        "matrix": "alike", "scale": beta, "decay": total, "chunk": chunk, "block": BLOCK
    }  # fmt: skip
    found["writes"] = Solve(rhs=value, weight=beta, axes=read.axes, **system)
    found["erases"] = Solve(rhs=keys, weight=faded, axes=columns, **system)
    found["taken"] = Read(query="erases", state="fold", axes=read.axes)
    left = ex.apply("sub", S, Symbol("taken", "float"))
    found["written"] = Map(operand="writes", others=("taken",), expr=left, axes=read.axes)
    return found


def written_tile(values: Load) -> Load:
    """What a chunk's tokens write, as tiles like those of values."""
    return replace(values, operand="written")
