"""How many programs (CTAs, workgroups) of a kernel an SM holds at a time."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.target.compile import CompileReport
from attngen.target.facts import Target

RESERVED_SHARED = 1024  # NVIDIA: per CTA, by the driver


@dataclass(frozen=True, slots=True)
class Residency:
    """Programs per SM, and what keeps it from being more."""

    programs: int
    limit: str


def residency(compiled: CompileReport, target: Target) -> Residency:
    """Programs per SM by registers, shared memory, warps, slots and tensor memory (CUDA Programming Guide, occupancy)."""
    warps = compiled.num_warps
    if not warps:
        return Residency(0, "")
    granule = target.register_granule
    per_warp = -(-max(compiled.registers, 1) * target.warp_size // granule) * granule
    # registers belong to a scheduler, so warps come in rounds of one per scheduler
    resident_warps = target.registers_per_sm // target.schedulers // per_warp * target.schedulers
    reserved = RESERVED_SHARED if target.backend == "cuda" else 0
    limits = {
        "registers": resident_warps // warps,
        "shared memory": target.shared_per_sm // max(compiled.shared_bytes + reserved, 1),
        "warps": target.max_warps_per_sm // warps,
        "slots": target.max_ctas_per_sm,
    }
    if compiled.tensor_memory_columns:
        limits["tensor memory"] = target.tensor_memory_columns // compiled.tensor_memory_columns
    limit = min(limits, key=lambda name: limits[name])
    return Residency(limits[limit], limit)
