"""What is known of each GPU that kernels are compiled for. Data only: nothing here imports a compiler.

Sources. NVIDIA: CUDA C++ Programming Guide 13.0, "Compute Capabilities", technical specifications per compute
capability (shared memory, registers, resident warps and thread blocks), and the architecture white papers of
the reference products (SM counts: A100 SXM 80 GB, GeForce RTX 4090, H100 SXM, B200, GeForce RTX 5090). AMD:
"AMD Instinct MI300" and "CDNA 4" instruction set architecture guides, and the CDNA 3 and CDNA 4 white papers
(registers, local data share, waves per SIMD), compute unit counts of MI300X and MI355X.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from attngen.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One GPU architecture, seen from a kernel. "SM" means a compute unit on AMD, "CTA" a workgroup.

    Sizes are bytes; registers are 32 bits wide. `sms` belongs to the reference `product`.
    """

    name: str
    product: str
    backend: Literal["cuda", "hip"]
    arch: int | str
    warp_size: int
    shared_per_cta: int
    shared_per_sm: int
    registers_per_sm: int
    max_registers_per_thread: int
    register_granule: int  # registers are given to a warp in multiples of this many
    max_warps_per_sm: int
    max_ctas_per_sm: int
    sms: int
    tma: bool = False
    wgmma: bool = False
    tcgen05: bool = False
    mfma: bool = False
    tensor_memory_columns: int = 0

    @property
    def max_warps_per_cta(self) -> int:
        """A CTA has at most 1024 threads everywhere."""
        return 1024 // self.warp_size


def _nvidia(
    arch: int,
    product: str,
    *,
    shared: int,
    warps: int,
    ctas: int,
    sms: int,
    wgmma: bool = False,
    tcgen05: bool = False,
) -> Target:
    """An NVIDIA target with `shared` KiB of shared memory per SM, of which 1 KiB per CTA is reserved."""
    return Target(
        name=f"sm_{arch}",
        product=product,
        backend="cuda",
        arch=arch,
        warp_size=32,
        shared_per_cta=(shared - 1) * 1024,
        shared_per_sm=shared * 1024,
        registers_per_sm=65536,
        max_registers_per_thread=255,
        register_granule=256,
        max_warps_per_sm=warps,
        max_ctas_per_sm=ctas,
        sms=sms,
        tma=arch >= 90,
        wgmma=wgmma,
        tcgen05=tcgen05,
        tensor_memory_columns=512 if tcgen05 else 0,
    )


def _amd(arch: str, product: str, *, lds: int, cus: int) -> Target:
    """A CDNA target: 4 SIMDs of 512 vector registers for each of 64 lanes, 8 waves per SIMD, `lds` KiB."""
    return Target(
        name=arch,
        product=product,
        backend="hip",
        arch=arch,
        warp_size=64,
        shared_per_cta=lds * 1024,
        shared_per_sm=lds * 1024,
        registers_per_sm=4 * 512 * 64,
        max_registers_per_thread=512,
        register_granule=8 * 64,
        max_warps_per_sm=32,
        max_ctas_per_sm=16,
        sms=cus,
        mfma=True,
    )


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        t.name: t
        for t in (
            _nvidia(80, "A100 SXM 80 GB", shared=164, warps=64, ctas=32, sms=108),
            _nvidia(89, "GeForce RTX 4090", shared=100, warps=48, ctas=24, sms=128),
            _nvidia(90, "H100 SXM", shared=228, warps=64, ctas=32, sms=132, wgmma=True),
            _nvidia(100, "B200", shared=228, warps=64, ctas=32, sms=148, tcgen05=True),
            _nvidia(120, "GeForce RTX 5090", shared=100, warps=48, ctas=24, sms=170),
            _amd("gfx942", "Instinct MI300X", lds=64, cus=304),
            _amd("gfx950", "Instinct MI355X", lds=160, cus=256),
        )
    }
)


def target(name: str) -> Target:
    """The target called `name`, e.g. "sm_90". Raises UserError with the known names."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UserError(f"unknown target {name!r}; {did_you_mean(name, TARGETS)}") from None
