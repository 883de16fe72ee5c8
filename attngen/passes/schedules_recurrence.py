"""Schedules of the kernels of recurrences, found with the compiler (`attngen inspect`). ``block_m`` are rows of what a program
owns, ``block_n`` tokens of a turn of its loop."""

from __future__ import annotations

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


def of_decode(rows: int, columns: int, *, whole: bool) -> Configs:
    """One token: ``block_m`` columns of a state with all of its rows; all columns where a normaliser is among them."""
    padded, every = (1 << (size - 1).bit_length() for size in (rows, columns))
    block = every if whole else min(every, max(16, 2048 // padded))
    warps = max(4, min(16, block * padded // 2048))
    return (("default", (_of(block, 16, warps, 1),)), ("cpu", (_of(every, 16, 4, 1),)))
