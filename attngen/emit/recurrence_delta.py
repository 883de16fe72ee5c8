"""Finished strings of the kernel that solves a chunk of a delta rule: blocks of 16 tokens, and products of blocks."""

from __future__ import annotations

from dataclasses import replace

from attngen.emit.faces import KernelFace
from attngen.emit.records_recurrence import Block, BlockPair, Solved
from attngen.emit.recurrence_lines import text_of
from attngen.emit.recurrence_parts import Parts
from attngen.emit.rules import node_of
from attngen.ir.graph import Graph
from attngen.ir.nodes import Load, Map, Solve

_BETA = "beta_base = beta + batch.to(tl.int64) * stride_beta_0 + first.to(tl.int64) * stride_beta_1 + h * stride_beta_2"


def solved(parts: Parts, face: KernelFace) -> Solved:
    """What tokens write and erase."""
    return Solved(
        face=face,
        doc=(
            '"""One program solves (I + A) x = beta r for the tokens of a chunk and head, to know what they write'
            " and what they erase.",
            "",
            "A[m, n] = beta_m k_m^T k_n times the decay between, for n < m. `writes` has r = v; `erases` has r = k times"
            " the decay since",
            "the chunk began (arXiv:2406.06484, section 3). T, the inverse of I + A, is made in fp32 of blocks of 16:"
            " those on the",
            "diagonal row by row, then T_mn = -T_mm (sum of A_mj T_jn over n <= j < m).",
            '"""',
        ),
        bases=(parts.base("k"), _value_base(parts.given.operand), _BETA),
        values=parts.given.operand,
        share=(),
        of_values="writes",
        of_keys="erases",
        rows=blocks(parts),
    )


def solved_adjoint(graph: Graph, parts: Parts, face: KernelFace) -> Solved:
    """Their adjoints: the same A, transposed, so that a block of the result needs those after it."""
    made = {name: node_of(graph, name, Solve) for name in ("dwrites", "derases")}
    given = node_of(graph, made["dwrites"].rhs, Load).operand
    weight = made["derases"].weight
    share: list[str] = []
    if weight:
        share.append(f"last = tl.load(total_base + {parts.chunk - 1})")
        for row in range(parts.chunk // made["derases"].block):
            value = text_of(node_of(graph, weight, Map).expr, {"s": f"(last - total_{row})"})
            share.append(f"share_{row} = {value}")
    return Solved(
        face=face,
        doc=(
            '"""One program solves (I + A)^T x = r for the tokens of a chunk and head, with A as in `_solve`.',
            "",
            "`dwrites`, the gradients of what they write where none comes to the state after the chunk, has r = what the",
            "chunk reads; `derases`, what they take of such a gradient, has r = k times the decay up to the chunk's end.",
            '"""',
        ),
        bases=(parts.base("k"), _value_base(given), _BETA),
        values=given,
        share=tuple(share),
        of_values="dwrites",
        of_keys="derases",
        rows=tuple(_transposed(blocks(parts), weighs=bool(weight))),
    )


def _value_base(tensor: str) -> str:
    return (
        f"v_base = {tensor} + batch.to(tl.int64) * stride_{tensor}b + first.to(tl.int64) * stride_{tensor}t"
        f" + h * stride_{tensor}h"
    )


def _transposed(rows: tuple[Block, ...], *, weighs: bool) -> list[Block]:
    """The last block first; of its column of T each block, as it meets the rows that this one weighs."""
    found: list[Block] = []
    for block in reversed(rows):
        below = [pair for row in rows for pair in row.pairs if pair.column == block.index]
        pairs = (
            replace(
                pair,
                column=pair.row,
                weigh_values=f"tl.trans(t_{pair.name})",
                weigh_keys=f"(tl.trans(t_{pair.name}) * share_{pair.row}[None, :])"
                if weighs
                else f"tl.trans(t_{pair.name})",
            )
            for pair in reversed(below)
        )
        found.append(replace(block, pairs=tuple(pairs)))
    return found


def blocks(parts: Parts) -> tuple[Block, ...]:
    """The blocks of a chunk, each with its row of blocks of A and of T = (I + A)^-1."""
    if parts.solve is None:
        return ()
    size = parts.solve.block
    return tuple(_block(parts, row, size) for row in range(parts.chunk // size))


def _block(parts: Parts, row: int, size: int) -> Block:
    pairs = tuple(_pair(parts, row, column) for column in range(row + 1))
    return Block(
        index=row,
        tokens=f"{row * size} + r" if row else "r",
        own=f"{row}{row}",
        pairs=pairs,
        below=tuple(reversed(pairs[:-1])),
    )


def _pair(parts: Parts, row: int, column: int) -> BlockPair:
    name = f"{row}{column}"
    faded = f"beta_{column}"
    if parts.faded is not None:
        faded = text_of(parts.faded.expr, {"s": faded, "total": f"total_{column}"})
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
