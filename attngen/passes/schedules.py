"""Schedules of the forward kernel that need no tuning: per target and element size, by the columns of a K and a V row.

Each was found by compiling the causal kernel for the target (`attngen.target.compile`): no register spills, within shared
memory, fewest instructions per useful product. `tests/test_compiled.py` holds them to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal, TypeVar

from attngen.ir.nodes import Config
from attngen.ir.tile_ranges import LARGEST_BLOCK

Choices = tuple[tuple[str, tuple[Config, ...]], ...]
_T = TypeVar("_T")
Row = tuple[int, tuple[Config, ...]]  # up to so many columns of K and V together


def _config(m: int, n: int, warps: int, stages: int, descriptors: bool = False) -> Config:
    return Config(block_m=m, block_n=n, num_warps=warps, num_stages=stages, use_descriptors=descriptors)


_AMPERE: tuple[Row, ...] = (
    (192, (_config(128, 128, 8, 2), _config(128, 64, 8, 2))),
    (320, (_config(128, 64, 8, 2), _config(128, 32, 8, 2))),
    (512, (_config(32, 64, 4, 2), _config(32, 32, 4, 2))),
    (1088, (_config(16, 64, 8, 2), _config(16, 32, 4, 2))),
)
_SMALL_SHARED: tuple[Row, ...] = (  # 100 KiB of shared memory: sm_86, sm_89, sm_120
    (256, (_config(128, 64, 8, 2), _config(128, 32, 8, 2))),
    (320, (_config(128, 32, 8, 2),)),
    (512, (_config(32, 64, 4, 2), _config(32, 32, 4, 2))),
    (1088, (_config(16, 32, 4, 2),)),
)
_HOPPER: tuple[Row, ...] = (
    (192, (_config(64, 128, 4, 2, True), _config(128, 64, 8, 2, True))),
    (320, (_config(128, 128, 8, 2, True), _config(128, 64, 8, 2, True))),
    (512, (_config(128, 64, 8, 2, True), _config(64, 64, 4, 2, True))),
    (1088, (_config(64, 32, 8, 2, True),)),
)
_BLACKWELL: tuple[Row, ...] = (
    (128, (_config(128, 128, 8, 2, True), _config(64, 128, 4, 2, True))),
    (192, (_config(128, 64, 4, 2, True), _config(128, 64, 8, 2, True))),
    (320, (_config(128, 64, 8, 2, True), _config(64, 64, 4, 2, True))),
    (512, (_config(128, 64, 8, 2, True), _config(64, 64, 4, 2, True))),
    (1088, (_config(64, 32, 8, 2, True),)),
)
_CDNA: tuple[Row, ...] = (
    (320, (_config(128, 64, 4, 2), _config(128, 32, 4, 2))),
    (512, (_config(128, 32, 4, 2), _config(64, 32, 4, 2))),
    (1088, (_config(64, 16, 4, 1), _config(16, 16, 4, 2))),  # fewer rows than 16 per warp would repeat Q K^T
)
# fp32 products without tensor cores: small tiles, or the accumulators spill
_NVIDIA_FP32: tuple[Row, ...] = (
    (128, (_config(32, 32, 4, 2),)),
    (320, (_config(32, 16, 4, 2),)),
    (512, (_config(16, 16, 4, 2),)),
)
_AMD_FP32: tuple[Row, ...] = ((256, (_config(128, 32, 4, 2),)), (512, (_config(64, 16, 4, 2),)))
_ANY: tuple[Row, ...] = (
    (256, (_config(64, 32, 4, 1),)),
    (512, (_config(32, 32, 4, 1),)),
    (1 << 30, (_config(16, 16, 4, 1),)),
)
_CPU = (_config(64, 64, 4, 1), _config(32, 64, 4, 1, True))
_TARGETS: dict[str, tuple[Row, ...]] = {
    "sm_80/16": _AMPERE,
    "sm_86/16": _SMALL_SHARED,
    "sm_89/16": _SMALL_SHARED,
    "sm_90/16": _HOPPER,
    "sm_100/16": _BLACKWELL,
    "sm_120/16": _SMALL_SHARED,
    "gfx942/16": _CDNA,
    "gfx950/16": _CDNA,
    **dict.fromkeys(("sm_80/32", "sm_86/32", "sm_89/32", "sm_90/32", "sm_100/32", "sm_120/32"), _NVIDIA_FP32),
    **dict.fromkeys(("gfx942/32", "gfx950/32"), _AMD_FP32),
}


# Whose schedules a target takes where a table has none of its own, nearest first.
_NEAREST = {
    "sm_86": ("sm_89", "sm_80"),  # 100 KiB of shared memory, as sm_120
    "sm_89": ("sm_80",),
    "sm_120": ("sm_89", "sm_80"),
    "gfx950": ("gfx942",),
}


def _nearest(table: Mapping[str, _T], name: str, otherwise: _T) -> _T:
    """What a table holds for ``target/bits``, or for the nearest target that it has."""
    target, bits = name.split("/")
    keys = (f"{near}/{bits}" for near in (target, *_NEAREST.get(target, ())))
    return next((table[key] for key in keys if key in table), otherwise)


# Random numbers need registers: with dropout these come before the others' choices.
_DROPOUT_SMALL: tuple[Row, ...] = (
    (192, (_config(128, 64, 8, 2),)),
    (320, (_config(128, 32, 8, 2),)),
    (512, (_config(32, 32, 4, 2),)),
)
_DROPOUT: dict[str, tuple[Row, ...]] = {
    "sm_80/16": ((128, (_config(128, 128, 8, 2),)), *_DROPOUT_SMALL),
    "sm_89/16": _DROPOUT_SMALL,
}


def configurations(
    qk_dim: int, v_dim: int, *, reads_per_element: bool = False, dropout: bool = False
) -> Choices:
    """Return schedules keyed ``target/bits``, best first; ``default`` serves devices and element sizes not listed.

    A kernel that reads tensors per element (``reads_per_element``) needs registers of its own: the smaller tile comes first.
    """
    columns = qk_dim + v_dim
    special = _DROPOUT if dropout else {}
    found = [
        (name, _choices(_nearest(special, name, ()), columns) or _choices(rows, columns))
        for name, rows in _TARGETS.items()
    ]
    listed = [(n, c[::-1] if reads_per_element else c) for n, c in found if c]
    return (("default", _choices(_ANY, columns)), ("cpu", _CPU), *listed)


# Keys in pages, found by pointers: three stages bring a page's number early. Decode is bound by memory, not by its tile.
_PAGED_FP32: tuple[Row, ...] = (_NVIDIA_FP32[0], (256, (_config(32, 32, 8, 2),)), *_NVIDIA_FP32[1:])
_PAGED: dict[str, tuple[Row, ...]] = {
    "sm_80/16": ((192, (_config(128, 64, 4, 2),)), *_AMPERE[1:]),
    "sm_89/16": _SMALL_SHARED,
    "sm_90/16": (
        (192, (_config(128, 128, 8, 3),)),
        (320, (_config(128, 128, 8, 3),)),
        (512, (_config(128, 64, 8, 2),)),
        (1088, (_config(32, 64, 8, 2), _config(64, 32, 8, 2))),
    ),
    "sm_100/16": (*_BLACKWELL[:4], (1088, (_config(32, 64, 8, 2), _config(64, 32, 8, 2)))),
    "gfx942/16": (*_CDNA[:2], (1088, (_config(64, 16, 4, 2),))),
    **dict.fromkeys(("sm_80/32", "sm_90/32", "sm_100/32"), _PAGED_FP32),
    "sm_89/32": (_NVIDIA_FP32[0], (256, (_config(32, 16, 8, 2),)), *_NVIDIA_FP32[1:]),
}
_PAGED_DECODE: tuple[Row, ...] = (
    (320, (_config(16, 128, 4, 2),)),
    (512, (_config(16, 64, 4, 2),)),
    (1088, (_config(16, 32, 4, 2),)),
)
_DECODE_FP32: tuple[Row, ...] = ((256, (_config(16, 32, 8, 2),)), (512, (_config(16, 16, 4, 2),)))
_PAGED_DECODE_32: dict[str, tuple[Row, ...]] = {
    **dict.fromkeys(("sm_80/32", "sm_90/32", "sm_100/32"), _DECODE_FP32),
    "gfx942/32": ((256, (_config(16, 32, 4, 2),)), *_DECODE_FP32[1:]),  # more warps would repeat products
}
_PAGED_CPU = (_config(32, 64, 4, 1),)


# Decode of many query heads per kv head (MLA): each tile of rows reads all keys again, so it holds 64 of them
_WIDE: tuple[Row, ...] = ((320, (_config(64, 64, 4, 2),)), (512, (_config(64, 32, 4, 2),)))
_WIDE_MLA = (1088, (_config(64, 16, 8, 2), _config(64, 32, 8, 2)))
_DECODE_WIDE: dict[str, tuple[Row, ...]] = {
    "sm_80/16": (*_WIDE, (1088, (_config(64, 64, 8, 2),))),
    "sm_89/16": _WIDE[:1],
    "sm_90/16": (*_WIDE, _WIDE_MLA),
    "sm_100/16": (_WIDE[0], (512, (_config(64, 64, 8, 2),)), _WIDE_MLA),
    "gfx942/16": (*_WIDE, (1088, (_config(64, 16, 4, 2),))),
}
MANY_HEADS = 32  # of a group
# Tensors read per element need registers: fewer rows, and on AMD less shared memory for decode
_PAGED_PER_ELEMENT: dict[str, tuple[Row, ...]] = dict.fromkeys(
    ("sm_80/16", "sm_90/16", "sm_100/16"),
    ((320, (_config(64, 128, 8, 2),)),),
)
_DECODE_PER_ELEMENT: dict[str, tuple[Row, ...]] = {"gfx942/16": ((320, (_config(16, 64, 4, 2),)),)}

# So do positions of rows, where these are loaded
_PAGED_PREFIX: dict[str, tuple[Row, ...]] = {"sm_80/16": ((320, (_config(128, 32, 8, 2),)),)}

# 8-bit numbers are made 16-bit ones in registers
_PAGED_8BIT: dict[str, tuple[Row, ...]] = {
    "sm_90/16": ((320, (_config(128, 64, 8, 2),)), (512, (_config(64, 64, 4, 2),)), *_HOPPER[3:]),
    "gfx942/16": ((320, (_config(128, 32, 4, 2),)), (512, (_config(64, 32, 4, 1),)), *_CDNA[2:]),
}
_DECODE_8BIT: dict[str, tuple[Row, ...]] = {
    "gfx942/16": ((320, (_config(16, 64, 4, 2),)), *_PAGED_DECODE[1:])
}
# A scale per key is loaded once, if a tile has as many keys as the program has lanes; four warps spill on sm_100
_DECODE_SCALE_PER_KEY: dict[str, tuple[Row, ...]] = {
    "sm_100/16": ((320, (_config(16, 256, 8, 2),)), *_PAGED_DECODE[1:]),
    "gfx942/16": ((320, (_config(16, 128, 2, 2),)), *_PAGED_DECODE[1:]),
    "gfx950/16": ((320, (_config(16, 256, 4, 1),)), *_PAGED_DECODE[1:]),
}


def paged_configurations(
    qk_dim: int,
    v_dim: int,
    *,
    group: int = 1,
    stored: bool = False,
    scale_per_key: bool = False,
    reads_per_element: bool = False,
    prefix: bool = False,
) -> tuple[Choices, Choices]:
    """Return schedules of a kernel with keys in pages: for any batch, and for few queries per sequence.

    ``group`` query heads read each kv head. ``stored``: caches hold numbers of 8 or 4 bits (``scale_per_key``: each key has
    its scale); ``reads_per_element``: formulas read tensors per element; ``prefix``: rows may be those of several sequences.
    All of these need registers of their own.
    """
    columns = qk_dim + v_dim
    nothing: dict[str, tuple[Row, ...]] = {}
    tables, smaller = (_PAGED_8BIT, _DECODE_8BIT) if stored else (_PAGED, nothing)
    smaller = _DECODE_SCALE_PER_KEY if scale_per_key else smaller
    wide = _DECODE_WIDE if group >= MANY_HEADS and not stored else nothing
    first, first_few = (_PAGED_PREFIX if prefix else nothing), wide
    if reads_per_element:
        first, first_few = _PAGED_PER_ELEMENT, _DECODE_PER_ELEMENT
    many: list[tuple[str, tuple[Config, ...]]] = []
    few: list[tuple[str, tuple[Config, ...]]] = []
    for name, rows in _TARGETS.items():
        decode_rows = _nearest({**smaller, **_PAGED_DECODE_32}, name, _PAGED_DECODE)
        usual = _choices(_nearest(tables, name, rows), columns)
        special = _choices(_nearest(first, name, ()), columns)
        many.append((name, _without_descriptors(special or usual)))
        special = _choices(_nearest(first_few, name, ()), columns)
        few.append((name, special or _choices(decode_rows, columns)))
    fallback = ("default", _choices(_ANY, columns))
    decode = ("default", (_config(16, 16, 4, 1),))
    return (
        (fallback, ("cpu", _PAGED_CPU), *((n, c) for n, c in many if c)),
        (decode, ("cpu", (_config(16, 64, 4, 1),)), *((n, c) for n, c in few if c)),
    )


def within_split(choices: Choices, keys: int) -> Choices:
    """Schedules whose tiles of keys make up splits of so many keys: larger tiles are cut down."""
    return tuple((n, tuple(replace(c, block_n=min(c.block_n, keys)) for c in found)) for n, found in choices)


def _without_descriptors(choices: tuple[Config, ...]) -> tuple[Config, ...]:
    return tuple(replace(config, use_descriptors=False) for config in choices)


# The statistics' tile fills their padding. At 256 columns sm_100's compiler spills with 4 warps, at 512 with 8.
_ROWS_KERNEL, _ROWS_OF_256 = ((_config(LARGEST_BLOCK, 16, warps, 2),) for warps in (4, 8))


def _b(m: int, n: int, warps: int, stages: int, **more: bool) -> Config:
    return replace(_config(m, n, warps, stages), **more)


_D = {"use_descriptors": True}
_DM = {"use_descriptors": True, "merged": True}
_AMPERE_DQ: tuple[Row, ...] = (
    (192, (_b(128, 32, 4, 2),)),
    (256, (_b(128, 64, 8, 2), _b(128, 32, 8, 2))),
    (320, (_b(128, 32, 8, 1),)),
)
_AMPERE_DKDV: tuple[Row, ...] = (
    (128, (_b(32, 128, 4, 2),)),
    (160, (_b(32, 128, 8, 2),)),
    (192, (_b(64, 128, 8, 2),)),
    (256, (_b(32, 64, 4, 2),)),
    (320, (_b(16, 64, 4, 2),)),
)
# Found as the forward's were. On AMD the warps of a program hold 16 or 32 rows of scores each: fewer rows would be
# computed several times. The columns are those of a K and a V row together.
_BACKWARD: dict[str, dict[str, tuple[Row, ...]]] = {
    "dq": {
        "sm_80/16": (
            *_AMPERE_DQ,
            (512, (_b(64, 64, 8, 2),)),
        ),
        "sm_89/16": (*_AMPERE_DQ, (512, (_b(32, 32, 4, 2),))),
        "sm_90/16": (
            (192, (_b(64, 128, 4, 2, **_DM),)),
            (256, (_b(128, 128, 8, 2, **_DM), _b(128, 64, 8, 2, **_DM))),
            (512, (_b(64, 64, 4, 2, **_DM),)),
        ),
        "sm_100/16": ((320, (_b(128, 64, 4, 2, **_D),)), (512, (_b(128, 32, 4, 2, **_D),))),
        "gfx942/16": (
            (192, (_b(128, 64, 4, 1),)),
            (320, (_b(128, 32, 4, 1),)),
            (512, (_b(128, 32, 4, 1), _b(128, 16, 4, 1))),
        ),
        "nvidia/32": ((128, (_b(32, 32, 4, 2),)), (320, (_b(32, 16, 4, 2),)), (512, (_b(16, 16, 4, 2),))),
        "amd/32": ((256, (_b(128, 32, 4, 1),)), (512, (_b(64, 16, 4, 1),))),
    },
    "dkdv": {
        "sm_80/16": (
            *_AMPERE_DKDV,
            (512, (_b(64, 64, 8, 2, apart=True),)),
        ),
        "sm_89/16": (*_AMPERE_DKDV, (512, (_b(32, 32, 4, 2, apart=True),))),
        "sm_90/16": (
            (128, (_b(64, 64, 4, 2, **_DM),)),
            (192, (_b(64, 64, 4, 2, **_DM),)),
            (256, (_b(64, 64, 4, 2, **_DM), _b(32, 64, 4, 2, **_DM))),
            (320, (_b(32, 64, 4, 2, **_DM),)),
            (512, (_b(64, 64, 4, 2, **_DM, apart=True), _b(32, 64, 4, 2, **_DM, apart=True))),
        ),
        "sm_100/16": (
            (256, (_b(64, 128, 4, 2, **_D),)),
            (320, (_b(32, 128, 4, 2, **_D),)),
            (512, (_b(32, 64, 4, 2, **_D),)),
        ),
        "gfx942/16": ((192, (_b(64, 128, 4, 1),)), (320, (_b(32, 128, 4, 1),)), (512, (_b(16, 64, 4, 1),))),
        "nvidia/32": (
            (128, (_b(32, 16, 4, 2),)),
            (320, (_b(16, 16, 4, 2),)),
            (512, (_b(16, 16, 4, 2, apart=True),)),
        ),
        "amd/32": (
            (256, (_b(16, 128, 4, 1), _b(16, 64, 2, 1))),
            (320, (_b(16, 64, 4, 1),)),
            (512, (_b(16, 64, 4, 1, apart=True),)),
        ),
    },
}
# Values inside K: dk is one sum over 576 columns, in two launches where registers do not hold all of them.
_VIEW = 1088
_BACKWARD_OF_VIEWS: dict[str, dict[str, tuple[Config, ...]]] = {
    "dq": {
        "sm_80/16": (_b(16, 32, 4, 2),),
        "sm_90/16": (_b(64, 32, 8, 1, **_DM),),
        "sm_100/16": (_b(64, 32, 4, 1, **_D),),
        "gfx942/16": (_b(64, 16, 4, 1),),
    },
    "dkdv": {
        "sm_80/16": (_b(64, 16, 8, 2, merged=True),),
        "sm_89/16": (_b(32, 16, 8, 2),),
        "sm_90/16": (_b(32, 64, 4, 2, **_DM, apart=True),),
        "sm_100/16": (_b(32, 64, 8, 1, **_D, apart=True),),
        "gfx942/16": (_b(16, 64, 4, 1),),
    },
}
# Where the score reads a tensor of the caller's: fewer keys, or registers spill.
_BACKWARD_CAPTURED: dict[str, dict[str, tuple[Row, ...]]] = {
    "dq": {
        "sm_90/16": ((192, (_b(64, 64, 4, 2, **_DM),)),),
        "sm_100/16": ((320, (_b(128, 32, 4, 2, **_D),)),),
    },
    "dkdv": {},
}
_BACKWARD_DROPOUT: dict[str, dict[str, tuple[Row, ...]]] = {
    "dq": {
        "sm_80/16": ((128, (_b(128, 32, 4, 2),)), (256, (_b(128, 32, 8, 2),))),
        "sm_90/16": (
            (160, (_b(64, 128, 4, 2, **_DM),)),
            (192, (_b(64, 64, 4, 2, **_DM),)),
            (256, (_b(128, 64, 8, 2, **_DM),)),
            (320, (_b(64, 64, 4, 2, **_DM),)),
            (512, (_b(64, 32, 4, 2, **_DM),)),
        ),
        "sm_100/16": ((512, (_b(128, 32, 4, 2, **_D),)),),
    },
    "dkdv": {
        "sm_80/16": (
            (128, (_b(32, 128, 8, 1),)),
            (192, (_b(16, 64, 4, 2),)),
            (256, (_b(16, 128, 8, 2),)),
            (320, (_b(16, 32, 4, 2),)),
        ),
        "sm_90/16": (
            (128, (_b(64, 64, 4, 2, **_DM),)),
            (320, (_b(32, 64, 4, 2, **_DM),)),
            (512, (_b(32, 64, 4, 1, **_DM, apart=True),)),
        ),
        "sm_100/16": ((320, (_b(32, 128, 4, 2, **_D),)),),
        "gfx942/16": ((128, (_b(32, 128, 4, 1),)), (256, (_b(16, 128, 4, 1),))),
    },
}
_SMALLEST = _b(16, 16, 4, 1)
_BACKWARD_CPU = (_b(32, 64, 4, 1), _b(64, 32, 4, 1, **_DM), _b(32, 32, 4, 1, apart=True))


def backward_configurations(
    kernel: str,
    qk_dim: int,
    v_dim: int,
    *,
    heavy: bool = False,
    v_in_k: bool = False,
    dropout: bool = False,
    reads_captured: bool = False,
) -> Choices:
    """Return schedules of a backward kernel (rows, dq, dkdv) keyed as those of the forward.

    A kernel with a score formula, or with more than row limits in its mask (``heavy``), needs registers of its own: the
    smaller tile comes first. ``v_in_k``: V is a view of K. ``reads_captured``: the score reads a tensor of the caller's.
    """
    if kernel == "rows":
        chosen = _ROWS_OF_256 if 128 < v_dim <= 256 else _ROWS_KERNEL
        return (("default", chosen), ("cpu", chosen))
    tables = _BACKWARD[kernel]
    found: list[tuple[str, tuple[Config, ...]]] = []
    for name in _TARGETS:
        target, bits = name.split("/")
        family = "amd" if target.startswith("gfx") else "nvidia"
        rows = tables[f"{family}/32"] if bits == "32" else _nearest(tables, name, ())
        choices = _choices(rows, qk_dim + v_dim) or (_SMALLEST,)
        if v_in_k and bits == "16" and 512 < qk_dim + v_dim <= _VIEW:
            choices = _nearest(_BACKWARD_OF_VIEWS[kernel], name, choices)
        special = _nearest(_BACKWARD_DROPOUT[kernel], name, ()) if dropout else ()
        special = special or (_nearest(_BACKWARD_CAPTURED[kernel], name, ()) if reads_captured else ())
        found.append((name, _choices(special, qk_dim + v_dim) or (choices[::-1] if heavy else choices)))
    small = (_b(32, 32, 4, 1),) if qk_dim + v_dim <= 256 else (_SMALLEST,)
    return (("default", small), ("cpu", _BACKWARD_CPU), *found)


_SMALL_SQUARE = (1 << 30, (_config(32, 32, 4, 1),))
_CAPTURED: dict[str, tuple[Row, ...]] = {
    "gfx": ((256, (_config(64, 64, 4, 1),)), _SMALL_SQUARE),
    "sm_8": ((256, (_config(64, 32, 4, 1),)), _SMALL_SQUARE),
    "sm": ((256, (_config(64, 64, 8, 1),)), _SMALL_SQUARE),
}
_DIAGONALS: dict[str, tuple[Row, ...]] = {  # square tiles: those of a diagonal hold the same i - j
    **_CAPTURED,
    "sm_8": ((128, (_config(64, 64, 8, 1),)), _SMALL_SQUARE),
}
_CAPTURED_FP32: tuple[Row, ...] = ((320, (_config(32, 32, 4, 1),)), (1 << 30, (_config(16, 16, 4, 1),)))
_CAPTURED_AMD_FP32: tuple[Row, ...] = (
    (256, (_config(64, 64, 4, 1),)),
    (1 << 30, (_config(16, 16, 1, 1),)),
)
_PLACES = (_config(1, 1024, 4, 1),)  # a place, and how many diagonals it looks at together


def captured_configurations(columns: int, tiles: Literal["scores", "diagonals", "places"]) -> Choices:
    """Return schedules of the kernels of captured gradients: tiles of scores, by the columns
    of a K and a V row, or a place and its diagonals."""
    if tiles == "places":
        return (("default", _PLACES), ("cpu", _PLACES))
    tables = _DIAGONALS if tiles == "diagonals" else _CAPTURED
    found: list[tuple[str, tuple[Config, ...]]] = []
    for name in _TARGETS:
        family = next(stem for stem in ("gfx", "sm_8", "sm") if name.startswith(stem))
        fp32 = _CAPTURED_AMD_FP32 if family == "gfx" else _CAPTURED_FP32
        rows = fp32 if name.endswith("/32") else tables[family]
        found.append((name, _choices(rows, columns)))
    return (("default", _choices(_CAPTURED_FP32, columns)), ("cpu", (_config(32, 32, 4, 1),)), *found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a spec's `schedule` asks for; an empty tuple leaves the planner's choice."""

    block_m: tuple[int, ...] = ()
    block_n: tuple[int, ...] = ()
    num_warps: tuple[int, ...] = ()
    num_stages: tuple[int, ...] = ()


ANYTHING = Wanted()


def restricted(choices: Choices, wanted: Wanted) -> Choices:
    """Return, per target, every combination of the wanted values around the target's best schedule, in the order given."""
    asked = {f.name: values for f in fields(wanted) if (values := getattr(wanted, f.name))}
    if not asked:
        return choices
    combined = [dict(zip(asked, values, strict=True)) for values in product(*asked.values())]
    return tuple(
        (target, tuple(replace(found[0], **values) for values in combined)) for target, found in choices
    )


def _choices(rows: tuple[Row, ...], columns: int) -> tuple[Config, ...]:
    return next((choices for limit, choices in rows if columns <= limit), ())
