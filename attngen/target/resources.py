"""Read resources and instruction kinds from what the compilers write: ptxas's log, PTX, AMD assembly."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Which units the code uses. `tf32` is true if any matrix product rounds its fp32 inputs to tf32."""

    wgmma: bool = False
    mma_sync: bool = False
    tcgen05: bool = False
    tma: bool = False
    mfma: bool = False
    tf32: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one thread of the code holds. Spills are bytes of store and load instructions in the code."""

    registers: int = 0
    accumulators: int = 0  # AMD: how many of the registers are AGPRs
    spill_stores: int = 0
    spill_loads: int = 0
    scalar_spills: int = 0  # AMD: scalar registers kept in lanes of vector registers
    stack_bytes: int = 0
    warnings: tuple[str, ...] = ()


_TF32_MMA = re.compile(r"(?:wgmma\.mma_async|mma\.sync)\S*\.tf32|tcgen05\.mma\S*kind::tf32|v_mfma_\w*xf32")


def features(assembly: str) -> Features:
    """The units that a PTX or AMD assembly text uses."""
    return Features(
        wgmma="wgmma.mma_async" in assembly,
        mma_sync=re.search(r"\bmma\.sync", assembly) is not None,
        tcgen05="tcgen05.mma" in assembly,
        tma="cp.async.bulk.tensor" in assembly,
        mfma="v_mfma_" in assembly,
        tf32=_TF32_MMA.search(assembly) is not None,
    )


def nvidia_resources(log: str) -> Resources:
    """Resources from the text that `ptxas -v` prints."""
    warnings = [
        line.partition(":")[2].strip()
        for line in log.splitlines()
        if "Potential Performance Loss" in line or re.match(r"ptxas.*\bwarning\b", line)
    ]
    return Resources(
        registers=_number(r"Used (\d+) registers", log),
        spill_stores=_number(r"(\d+) bytes spill stores", log),
        spill_loads=_number(r"(\d+) bytes spill loads", log),
        stack_bytes=_number(r"(\d+) bytes stack frame", log),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def amd_resources(assembly: str) -> Resources:
    """Resources from the metadata at the end of an AMD assembly text."""
    spilled = 4 * _number(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return Resources(
        registers=_number(r"\.vgpr_count:\s*(\d+)", assembly),
        accumulators=_number(r"\.agpr_count:\s*(\d+)", assembly),
        spill_stores=spilled,
        spill_loads=spilled,
        scalar_spills=_number(r"\.sgpr_spill_count:\s*(\d+)", assembly),
        stack_bytes=_number(r"\.private_segment_fixed_size:\s*(\d+)", assembly),
    )


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
