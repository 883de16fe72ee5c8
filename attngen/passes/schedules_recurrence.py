"""Schedules of the kernels of recurrences, found with the compiler (`attngen inspect`). ``block_m`` are rows of what a program
owns, ``block_n`` tokens of a turn of its loop. No tile of tokens is larger than a chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from attngen.ir.nodes import Config

Configs = tuple[tuple[str, tuple[Config, ...]], ...]
NVIDIA: Final = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
AMD: Final = ("gfx942", "gfx950")


def is_large(rows: int, columns: int) -> bool:
    """Whether a state is more than a program multiplies by at once: it goes through 64 x 64 numbers after another."""
    return rows * columns > 128 * 64


def _is_huge(rows: int, columns: int) -> bool:
    """Whether a program also has few rows, since each has so many columns (RetNet, GLA: 256 x 512)."""
    return rows * columns > 256 * 128


def _of(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    return Config(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)


def _by_target(chunk: int, other: Config, half: Config, **special: Config) -> Configs:
    """A schedule for fp32, the CPU and unknown machines, one for 16 bits, and those of some targets (`amd`: in fp32)."""
    found = {"default": other, "cpu": special.get("cpu", other)}
    found |= {f"{target}/16": special.get(target, half) for target in (*NVIDIA, *AMD)}
    found |= {f"{target}/32": special["amd"] for target in AMD if "amd" in special}
    return tuple((target, (_within(config, chunk),)) for target, config in found.items())


def _within(config: Config, chunk: int) -> Config:
    return replace(config, block_m=min(config.block_m, chunk), block_n=min(config.block_n, chunk))


def _power(size: int, most: int) -> int:
    """Rows of a state in one tile: a power of two of at least 16."""
    return max(16, min(most, 1 << (size - 1).bit_length()))


def of_totals() -> Configs:
    """Sums of decays: ``block_m`` heads of a chunk."""
    return (("default", (_of(16, 16, 4, 1),)),)


def of_token_adjoints() -> Configs:
    """Gradients of decays: ``block_m`` heads of a chunk."""
    return (("default", (_of(8, 16, 4, 1),)),)


def of_chunk_states(rows: int, columns: int, chunk: int) -> Configs:
    """States of chunks: ``block_m`` of their rows."""
    block = _power(rows, 128 if columns <= 64 else 64 if columns <= 256 else 32)
    small = _of(_power(rows, 64 if columns <= 256 else 16), min(32, chunk), 4, 1)
    wide = _of(block, min(64, chunk), 4 if columns <= 128 else 8, 2)
    found = {"default": small, "cpu": small} | {f"{target}/16": wide for target in (*NVIDIA, *AMD)}
    if _is_huge(rows, columns):
        few, some = _of(32, min(32, chunk), 8, 2), _of(64, min(32, chunk), 8, 2)
        found |= {"default": _of(16, 16, 8, 1)} | {f"{target}/16": few for target in NVIDIA}
        found |= {f"{target}/16": some for target in ("sm_90", "sm_100", *AMD)}
        found["sm_120/16"] = _of(32, min(64, chunk), 8, 1)
    elif block == 128:
        found["sm_89/16"] = replace(wide, num_warps=8)
    elif columns > 128:
        few = _of(_power(rows, 32 if columns <= 256 else 16), min(64, chunk), 4, 1)
        found |= {f"{target}/16": few for target in AMD}
    return tuple((target, (config,)) for target, config in found.items())


def of_scan() -> Configs:
    """The scan over chunks: ``block_m`` numbers of a state."""
    return (("default", (_of(512, 16, 4, 2),)),)


def of_pairs(rows: int, chunk: int) -> Configs:
    """Products of queries and keys that the heads of a group share. ``block_m`` is a multiple of that of their readers."""
    return _by_target(chunk, _of(32, 32, 8, 1), _of(128, 64, 4, 2), cpu=_of(64, 64, 4, 1))


def of_chunk_scan(rows: int, columns: int, chunk: int) -> Configs:
    """What is read: ``block_m`` tokens of a chunk."""
    if _is_huge(rows, columns):
        amd = _of(16, 32, 4, 1)
        cpu = _of(64, 64, 4, 1)
        return _by_target(chunk, _of(16, 16, 8, 1), _of(16, 32, 8, 1), cpu=cpu, gfx942=amd, gfx950=amd)
    if is_large(rows, columns):
        return _by_target(chunk, _of(32, 32, 4, 1), _of(64, 64, 8, 2))
    wide = _of(128, 64, 4, 2) if columns <= 64 else _of(128, 64, 8, 2)
    few = _of(64, 64, 4, 2)
    return _by_target(
        chunk,
        _of(32, 32, 4, 1),
        wide,
        sm_80=replace(wide, num_warps=8),
        sm_120=replace(wide, num_warps=8),
        sm_86=few,
        sm_89=few,
        gfx942=few,
        gfx950=few,
    )


def of_out_adjoint(chunk: int) -> Configs:
    """Gradients of what is read, from those of out: ``block_m`` tokens of a chunk."""
    return (("default", (_within(_of(32, 16, 4, 1), chunk),)),)


def of_queries(rows: int, columns: int, chunk: int) -> Configs:
    """Gradients of queries: ``block_m`` tokens of a chunk."""
    if _is_huge(rows, columns):
        return _by_target(chunk, _of(16, 16, 8, 1), _of(16, 16, 4, 1), cpu=_of(64, 64, 4, 1))
    if is_large(rows, columns):
        return _by_target(chunk, _of(32, 32, 4, 1), _of(64, 64, 8, 2))
    few = _of(32, 32, 8, 2)
    fp32, few32, amd = _of(16, 16, 8, 1), _of(32, 32, 4, 1), _of(64, 32, 4, 2)
    few_on = dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), few)
    return _by_target(chunk, fp32, _of(64, 32, 8, 2), cpu=few32, amd=few32, gfx942=amd, gfx950=amd, **few_on)


def of_keys(rows: int, columns: int, chunk: int) -> Configs:
    """Gradients of keys: ``block_m`` tokens of a chunk."""
    return of_queries(rows, columns, chunk)


def of_values(rows: int, columns: int, chunk: int) -> Configs:
    """Gradients of values: ``block_m`` tokens of a chunk."""
    if _is_huge(rows, columns):
        amd = _of(16, 16, 4, 1)
        cpu = _of(64, 64, 4, 1)
        return _by_target(chunk, _of(16, 16, 8, 1), _of(16, 64, 8, 1), cpu=cpu, gfx942=amd, gfx950=amd)
    if is_large(rows, columns):
        return of_queries(rows, columns, chunk)
    half = _of(64, 64, 4 if columns <= 64 else 8, 2)
    few = _of(32, 32, 4, 1)
    return _by_target(chunk, _of(32, 32, 8, 1), half, cpu=few, amd=few)


# ---- decays per column, delta rules: no register spills for 64 and 128 columns of keys and values (tests/test_compiled.py)

HALF: Final = ("sm_80/16", "sm_90/16", "sm_100/16", "gfx942/16", "gfx950/16")


def _in_half(config: Config, targets: tuple[str, ...] = HALF) -> Configs:
    """The schedule of 16-bit tensors."""
    return tuple((target, (config,)) for target in targets)


def of_totals_of_rows() -> Configs:
    """Sums of decays per column: ``block_m`` columns of a chunk and head."""
    return (("default", (_of(32, 16, 4, 1),)),)


def of_pairs_of_rows(rows: int) -> Configs:
    """Products of queries and keys with a decay per column: ``block_m`` tokens relate to the first of them."""
    if rows > 128:
        return (("default", (_of(16, 32, 8, 1),)), *_in_half(_of(16, 32, 2, 1), ("gfx942/16", "gfx950/16")))
    return (("default", (_of(16, 16, 4, 1),)), *_in_half(_of(16, 16, 2, 1)))


def of_value_pairs(chunk: int) -> Configs:
    """Products of gradients of what is read and values: tiles of ``block_m`` and ``block_n`` tokens of a chunk."""
    small, half = _within(_of(32, 32, 8, 1), chunk), _within(_of(64, 64, 4, 2), chunk)
    return (("default", (small,)), *_in_half(half))


def of_columns(rows: int, chunk: int, *, sm_80: int) -> Configs:
    """Gradients of queries or of keys: ``block_m`` tokens of a chunk, and ``block_n`` of their columns, on ``sm_80`` at most
    that many."""
    small, few, many = (
        replace(_within(_of(block, 16, 4, 1), chunk), block_n=_power(rows, columns))
        for block, columns in ((32, 32), (64, sm_80), (64, 64))
    )
    return (("default", (small,)), ("cpu", (many,)), *_in_half(many, HALF[1:]), *_in_half(few, HALF[:1]))


def of_values_of_rows(columns: int, chunk: int) -> Configs:
    """Gradients of values, by tiles of at most 64 columns: ``block_m`` tokens of a chunk."""
    found = dict(of_narrow_read(columns, chunk))
    (half,) = found["sm_90/16"]
    few = replace(half, block_n=min(32, half.block_n), num_warps=8)
    small = _of(32, 16, 4, 1) if columns <= 256 else _of(16, 16, 8, 1)
    found |= {"default": (_within(small, chunk),), "sm_80/16": (few,)}
    found |= {f"{target}/16": (replace(half, num_warps=4),) for target in AMD}
    return tuple(found.items())


def of_token_adjoints_of_rows() -> Configs:
    """Gradients of decays per column: ``block_m`` columns of a chunk and head."""
    return (("default", (_of(16, 16, 4, 1),)),)


def of_solve() -> Configs:
    """What the tokens of a chunk write and erase: one program per chunk and head."""
    fewer_warps = tuple(target for target in HALF if target != "sm_100/16")
    return (("default", (_of(16, 16, 8, 1),)), *_in_half(_of(16, 16, 4, 1), fewer_warps))


def of_delta_scan(rows: int) -> Configs:
    """The states of a delta rule, from chunk to chunk: ``block_m`` of their columns."""
    block = 32 if rows <= 128 else 16
    cpu = ("cpu", (_of(64, 16, 4, 1),))
    return (("default", (_of(16, 16, 8, 1),)), cpu, *_in_half(_of(block, 16, 4, 2)))


def of_delta_adjoint_scan(rows: int) -> Configs:
    """Gradients of a delta rule's states, from chunk to chunk: ``block_m`` of their columns."""
    found = dict(of_delta_scan(rows))
    return tuple((found | dict(_in_half(_of(32 if rows <= 128 else 16, 16, 4, 1), ("sm_80/16",)))).items())


def of_delta_adjoints(size: int, chunk: int) -> Configs:
    """Gradients of queries and keys, and what tokens find, of states with at most ``size`` rows and columns: ``block_m``
    tokens of a chunk."""
    found = dict(of_narrow_read(size, chunk))
    fits = 64 if size <= 128 else 32 if size <= 256 else 16
    nvidia = _within(_of(fits, fits, 8, 1), chunk)
    few = _within(_of(min(fits, 32), min(fits, 32), 8, 1), chunk)
    found |= dict(
        (*_in_half(nvidia, ("sm_90/16", "sm_100/16")), *_in_half(few, ("sm_80/16", "sm_89/16", "sm_120/16")))
    )
    return tuple(found.items())


def of_narrow_read(columns: int, chunk: int) -> Configs:
    """What is read, by tiles of at most 64 columns: ``block_m`` tokens of a chunk, fewer where each has many."""
    fits = 64 if columns <= 128 else 32 if columns <= 256 else 16
    small, block, whole = _of(16, 16, 8, 1), min(fits, chunk), min(64, chunk)
    half = dict(_in_half(_of(block, block, 4, 1)))
    if columns > 256:
        half |= dict(_in_half(_of(block, block, 8, 1), ("sm_80/16", "sm_90/16", "sm_100/16")))
    return (("default", (small,)), ("cpu", (_of(whole, whole, 4, 1),)), *half.items())


def of_decode(rows: int, columns: int, *, whole: bool) -> Configs:
    """One token: ``block_m`` columns of a state with all of its rows; it is not used where programs hold the whole state."""
    padded, every = (1 << (size - 1).bit_length() for size in (rows, columns))
    block = every if whole else min(every, max(16, 2048 // padded))
    warps = max(4, min(16, block * padded // 2048))
    if whole:
        return (("default", (_of(16, 16, warps, 1),)), ("cpu", (_of(16, 16, 4, 1),)))
    return (("default", (_of(block, 16, warps, 1),)), ("cpu", (_of(every, 16, 4, 1),)))
