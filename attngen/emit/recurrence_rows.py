"""Finished strings of recurrences whose states decay row by row, beside those of states that decay as a whole."""

from __future__ import annotations

from typing import Any

from attngen.emit.records_recurrence import ColumnChunk
from attngen.emit.recurrence_parts import Parts


def sizes(parts: Parts) -> dict[str, Any]:
    """How large buffers are, and how many programs make them."""
    tiles = [f'triton.cdiv(CHUNK, config["{block}"])' for block in ("BLOCK_M", "BLOCK_N")]
    columns = f"triton.cdiv({parts.k.columns}, config['BLOCK_M'])"
    shared = parts.pairs_kernel is not None and "G" in parts.contract.axes
    return {
        "pairs_of": "group" if shared else "head",
        "pairs_heads": "num_groups" if shared else "num_heads",
        "pairs_programs": tiles[0] if parts.has_rows else " * ".join(tiles),
        "totals_programs": f"num_heads * {columns}"
        if parts.has_rows
        else 'triton.cdiv(num_heads, config["BLOCK_M"])',
        "total_dtype": f"torch.float64 if {parts.first}.dtype == torch.float32 else torch.float32"
        if parts.total_dtype == "sums"
        else "torch.float32",
        "total_size": parts.chunk * (parts.k.columns if parts.has_rows else 1),
        "scan_columns": parts.wide * (1 if parts.solve else parts.k.columns),
    }


def last(parts: Parts, inside: str) -> str:
    """The decay of a whole chunk: a number, or, where each row d of a state has its own, one for each that is inside."""
    if not parts.has_rows:
        return f"tl.load(total_base + {parts.chunk - 1})"
    return f"tl.load(total_base + {(parts.chunk - 1) * parts.k.columns} + d, mask={inside}, other=0.0)"


def state_keys(parts: Parts, lines: tuple[str, ...]) -> tuple[str, ...]:
    """What keys of tokens n and columns d, after these lines, become before they are added to a state."""
    if not parts.has_rows:
        return lines
    columns = parts.k.columns
    mask = f", mask=(d < {columns})[None, :], other=0.0" if columns & (columns - 1) or columns < 16 else ""
    sums = f"tl.load(total_base + n[:, None] * {columns} + d[None, :]{mask})"
    weighed = f"keys * _left(last[None, :] - {sums})"
    return (*lines, f"keys = ({weighed}).to({parts.k.operand}.dtype.element_ty)")


def across(parts: Parts, chunks: tuple[ColumnChunk, ...]) -> tuple[str, ...]:
    """Queries of the state before the chunk, where each column decays by itself."""
    if not parts.has_rows:
        return ()
    lines: list[str] = []
    for chunk in chunks:
        at = f"total_base + m[:, None] * {parts.k.columns} + {chunk.columns}[None, :]{chunk.masked}"
        weighed = f"queries_{chunk.index} * _left(tl.load({at}))"
        lines.append(f"queries_{chunk.index} = ({weighed}).to({parts.q.operand}.dtype.element_ty)")
    return tuple(lines)
