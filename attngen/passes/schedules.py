"""Schedules of the forward kernel that need no tuning: per target and element size, by head dimension.

Each was found by compiling for the target (`attngen.target.compile`): no register spills, within shared memory.
"""

from __future__ import annotations

from attngen.ir.nodes import Config

Choices = tuple[tuple[str, tuple[Config, ...]], ...]


def _config(m: int, n: int, warps: int, stages: int, descriptors: bool = False) -> Config:
    return Config(block_m=m, block_n=n, num_warps=warps, num_stages=stages, use_descriptors=descriptors)


def configurations(qk_dim: int, v_dim: int) -> Choices:
    """Return schedules keyed ``target/bits``, best first; ``default`` serves devices that are not listed."""
    size = max(qk_dim, v_dim)
    small, medium = size <= 64, size <= 128
    if small:
        hopper, ampere = _config(64, 128, 4, 2, True), _config(128, 64, 8, 2)
    elif medium:
        hopper, ampere = _config(128, 128, 8, 2, True), _config(128, 64, 8, 2)
    else:
        hopper, ampere = _config(128, 64, 8, 2, True), _config(64, 32, 4, 2)
    plain = _config(64, 32, 4, 1)
    return (
        ("default", (plain,)),
        ("cpu", (_config(64, 64, 4, 1), _config(32, 64, 4, 1, True))),
        ("sm_80/16", (ampere,)),
        ("sm_90/16", (hopper, ampere)),
        ("sm_100/16", (hopper, ampere)),
        ("gfx942/16", (_config(128, 64, 4, 1),)),
    )
