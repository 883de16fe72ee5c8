"""Arguments that the kernels of a recurrence, forward and backward, have in common."""

from __future__ import annotations

from typing import Final

from attngen.emit.faces import KernelFace
from attngen.emit.recurrence_parts import Parts
from attngen.ir.nodes import Input

Rows = list[tuple[str, str, str]]
"""Arguments of a kernel: name, type, and what the launcher passes."""
SIZES: Final[Rows] = [("num_seqs", "i32", "num_seqs"), ("seqlen", "i32", "seqlen")]
LENGTHS: Final[Rows] = [("cu_seqlens", "*i32", "cu_seqlens")]
HEADS: Final[Rows] = [("num_heads", "i32", "num_heads")]
PACKED: Final = ("PACKED", "cu_seqlens is not None")
INDEX: Final = ("ROW_INDEX", "row_index")
BLOCKS: Final = [("BLOCK_M", ""), ("BLOCK_N", "")]


def face(name: str, rows: Rows, constants: list[tuple[str, str]]) -> KernelFace:
    """The argument list of a kernel; constants without a value are the schedule's."""
    return KernelFace(
        name=name,
        arguments=tuple(n for n, _, _ in rows),
        types=tuple((n, kind) for n, kind, _ in rows),
        constants=tuple(n for n, _ in constants),
        values=(*(value for _, _, value in rows), *(f"{n}={v}" for n, v in constants if v)),
    )


def row_strides(*tensors: str) -> Rows:
    """Strides of batch, tokens and heads of tensors whose last axis is contiguous."""
    return [
        (f"stride_{t}{c}", "i32", f"{t}.stride({p})")
        for t in dict.fromkeys(tensors)
        for p, c in enumerate("bth")
    ]


def all_strides(name: str, node: Input) -> Rows:
    """Strides of a tensor that may be left out, and whose axes of size 1 stand for any size."""
    return [(f"stride_{name}_{p}", "i32", f"_stride({name}, {p})") for p in range(len(node.axes))]


def decays(parts: Parts) -> Rows:
    """What lies between tokens, as kernels that read them are given it."""
    names = [("late", parts.late), ("step_of", parts.step)]
    found: Rows = [("total", parts.total_type, "total")] if parts.total else []
    return [*found, *((name, "*fp32", name) for name, node in names if node is not None)]


def features(parts: Parts) -> Rows:
    """Run-time numbers that feature maps read."""
    return [(name, kind, name) for name, kind in parts.feature_params]


def precise(parts: Parts) -> list[tuple[str, str]]:
    """The flag of kernels that do otherwise with fp32 tensors."""
    return [("PRECISE", f"{parts.first}.dtype == torch.float32")] if parts.late else []
