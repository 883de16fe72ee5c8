"""Finished strings of the kernel that solves a chunk of a delta rule: blocks of 16 tokens, and products of blocks."""

from __future__ import annotations

from collections.abc import Callable

from attngen.emit.records_recurrence import Block, BlockPair
from attngen.emit.recurrence_parts import Parts
from attngen.ir.expr import Expr

Text = Callable[[Expr, dict[str, str]], str]


def blocks(parts: Parts, text: Text) -> tuple[Block, ...]:
    """The blocks of a chunk, each with its row of blocks of A and of T = (I + A)^-1."""
    if parts.solve is None:
        return ()
    size = parts.solve.block
    return tuple(_block(parts, text, row, size) for row in range(parts.chunk // size))


def _block(parts: Parts, text: Text, row: int, size: int) -> Block:
    pairs = tuple(_pair(parts, text, row, column) for column in range(row + 1))
    return Block(
        index=row,
        tokens=f"{row * size} + r" if row else "r",
        own=f"{row}{row}",
        pairs=pairs,
        below=tuple(reversed(pairs[:-1])),
    )


def _pair(parts: Parts, text: Text, row: int, column: int) -> BlockPair:
    name = f"{row}{column}"
    faded = f"beta_{column}"
    if parts.faded is not None:
        faded = text(parts.faded.expr, {"s": faded, "total": f"total_{column}"})
    return BlockPair(
        name=name,
        row=row,
        column=column,
        matrix=_matrix(parts, row, column),
        inverse=_inverse(row, column),
        weigh_values=f"(t_{name} * beta_{column}[None, :])",
        weigh_keys=f"(t_{name} * ({faded})[None, :])",
    )


def _matrix(parts: Parts, row: int, column: int) -> str:
    """A block of A; on the diagonal transposed, which its products of keys are as they stand."""
    name = f"a_{row}{column}"
    if row != column:
        between = f" * tl.math.exp2(total_{row}[:, None] - total_{column}[None, :])" * (
            parts.total is not None
        )
        return f"{name} * beta_{row}[:, None]{between}"
    earlier = "r[:, None] < r[None, :]"
    if parts.total is None:
        return f"tl.where({earlier}, {name} * beta_{row}[None, :], 0.0)"
    between = f'tl.where({earlier}, total_{row}[None, :] - total_{row}[:, None], float("-inf"))'
    return f"{name} * beta_{row}[None, :] * tl.math.exp2({between})"


def _inverse(row: int, column: int) -> str:
    """A block of T below the diagonal, from those to its right in its row of A, and above it in its column of T."""
    total = ""
    for middle in range(column, row):
        total = f"_product(a_{row}{middle}, t_{middle}{column}, {total or _ZERO})"
    return f"-_product(t_{row}{row}, {total}, {_ZERO})"


_ZERO = "zero"
