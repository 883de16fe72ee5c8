"""Schedules of the kernels of recurrences, found with the compiler (`attngen inspect`). ``block_m`` are rows of what a program
owns, ``block_n`` tokens of a turn of its loop."""

from __future__ import annotations

from typing import Final

from attngen.ir.nodes import Config

Configs = tuple[tuple[str, tuple[Config, ...]], ...]


def _of(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    return Config(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)


def of_totals() -> Configs:
    """Sums of decays: ``block_m`` heads of a chunk."""
    return (("default", (_of(16, 16, 4, 1),)),)


def of_chunk_states(rows: int, columns: int, chunk: int) -> Configs:
    """States of chunks: ``block_m`` of their rows."""
    block = max(16, min(64, 1 << (rows - 1).bit_length()))
    return (("default", (_of(block, min(32, chunk), 4, 1),)), ("cpu", (_of(block, min(32, chunk), 4, 1),)))


def of_scan() -> Configs:
    """The scan over chunks: ``block_m`` numbers of a state."""
    return (("default", (_of(512, 16, 4, 2),)),)


def of_pairs(rows: int, chunk: int) -> Configs:
    """Products of queries and keys that the heads of a group share."""
    block = min(64, chunk)
    return (("default", (_of(block, block, 4, 1),)),)


def of_chunk_scan(rows: int, columns: int, chunk: int) -> Configs:
    """What is read: ``block_m`` tokens of a chunk."""
    block = min(32, chunk)
    return (("default", (_of(block, block, 4, 1),)), ("cpu", (_of(block, block, 4, 1),)))


# ---- decays per column, delta rules: no register spills for 64 and 128 columns of keys and values (tests/test_compiled.py)

HALF: Final = ("sm_80/16", "sm_90/16", "sm_100/16", "gfx942/16", "gfx950/16")


def _in_half(config: Config, targets: tuple[str, ...] = HALF) -> Configs:
    """The schedule of 16-bit tensors."""
    return tuple((target, (config,)) for target in targets)


def of_totals_of_rows() -> Configs:
    """Sums of decays per column: ``block_m`` columns of a chunk and head."""
    return (("default", (_of(32, 16, 4, 1),)),)


def of_pairs_of_rows() -> Configs:
    """Products of queries and keys with a decay per column: ``block_m`` tokens relate to the first of them."""
    return (("default", (_of(16, 16, 2, 1),)),)


def of_solve() -> Configs:
    """What the tokens of a chunk write and erase: one program per chunk and head."""
    fewer_warps = tuple(target for target in HALF if target != "sm_100/16")
    return (("default", (_of(16, 16, 8, 1),)), *_in_half(_of(16, 16, 4, 1), fewer_warps))


def of_delta_scan(rows: int) -> Configs:
    """The states of a delta rule, from chunk to chunk: ``block_m`` of their columns."""
    block = 32 if rows <= 128 else 16
    cpu = ("cpu", (_of(64, 16, 4, 1),))
    return (("default", (_of(16, 16, 8, 1),)), cpu, *_in_half(_of(block, 16, 4, 2)))


def of_narrow_read(columns: int, chunk: int) -> Configs:
    """What is read, by tiles of at most 64 columns: ``block_m`` tokens of a chunk, fewer where each has many."""
    fits = 64 if columns <= 128 else 32 if columns <= 256 else 16
    small, block, whole = _of(16, 16, 8, 1), min(fits, chunk), min(64, chunk)
    return (("default", (small,)), ("cpu", (_of(whole, whole, 4, 1),)), *_in_half(_of(block, block, 4, 1)))
