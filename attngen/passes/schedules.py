"""Schedules of the forward kernel that need no tuning: per target and element size, by the columns of a K and a V row.

Each was found by compiling the causal kernel for the target (`attngen.target.compile`): no register spills, within shared
memory, fewest instructions per useful product. `tests/test_compiled.py` holds them to that.
"""

from __future__ import annotations

from attngen.ir.nodes import Config

Choices = tuple[tuple[str, tuple[Config, ...]], ...]
Row = tuple[int, tuple[Config, ...]]  # up to so many columns of K and V together


def _config(m: int, n: int, warps: int, stages: int, descriptors: bool = False) -> Config:
    return Config(block_m=m, block_n=n, num_warps=warps, num_stages=stages, use_descriptors=descriptors)


_AMPERE: tuple[Row, ...] = (
    (192, (_config(128, 128, 8, 2), _config(128, 64, 8, 2))),
    (320, (_config(128, 64, 8, 2), _config(128, 32, 8, 2))),
    (512, (_config(64, 16, 4, 2),)),
)
_HOPPER: tuple[Row, ...] = (
    (192, (_config(64, 128, 4, 2, True), _config(128, 128, 8, 2, True))),
    (320, (_config(128, 128, 8, 2, True), _config(128, 64, 8, 2, True))),
    (512, (_config(128, 64, 8, 2, True), _config(64, 64, 4, 2, True))),
    (1088, (_config(64, 32, 8, 2, True),)),
)
_BLACKWELL: tuple[Row, ...] = (
    (128, (_config(128, 128, 8, 2, True), _config(64, 128, 4, 2, True))),
    (192, (_config(128, 64, 4, 2, True), _config(128, 128, 8, 2, True))),
    (320, (_config(64, 64, 4, 2, True), _config(128, 64, 8, 2, True))),
    (512, (_config(128, 64, 8, 2, True), _config(64, 64, 4, 2, True))),
    (1088, (_config(64, 32, 8, 2, True),)),
)
_CDNA: tuple[Row, ...] = (
    (128, (_config(128, 128, 4, 2), _config(128, 64, 4, 2))),
    (320, (_config(128, 64, 4, 2), _config(128, 32, 4, 2))),
    (512, (_config(128, 32, 4, 2), _config(64, 32, 4, 2))),
)
_ANY: tuple[Row, ...] = (
    (256, (_config(64, 32, 4, 1),)),
    (512, (_config(32, 32, 4, 1),)),
    (1 << 30, (_config(16, 16, 4, 1),)),
)
_CPU = (_config(64, 64, 4, 1), _config(32, 64, 4, 1, True))
_TARGETS: dict[str, tuple[Row, ...]] = {
    "sm_80/16": _AMPERE,
    "sm_86/16": _AMPERE,
    "sm_89/16": _AMPERE,
    "sm_90/16": _HOPPER,
    "sm_100/16": _BLACKWELL,
    "sm_120/16": _AMPERE,
    "gfx942/16": _CDNA,
    "gfx950/16": _CDNA,
}


def configurations(qk_dim: int, v_dim: int) -> Choices:
    """Return schedules keyed ``target/bits``, best first; ``default`` serves devices and element sizes not listed."""
    columns = qk_dim + v_dim
    found = [(name, _choices(rows, columns)) for name, rows in _TARGETS.items()]
    return (("default", _choices(_ANY, columns)), ("cpu", _CPU), *((n, c) for n, c in found if c))


def _choices(rows: tuple[Row, ...], columns: int) -> tuple[Config, ...]:
    return next((choices for limit, choices in rows if columns <= limit), ())
