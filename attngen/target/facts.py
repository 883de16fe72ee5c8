"""What is known of each GPU that kernels are compiled for. Data only: nothing here imports a compiler.

Sources. NVIDIA: CUDA C++ Programming Guide 13.0, "Compute Capabilities", technical specifications per compute
capability (shared memory, registers, resident warps and thread blocks), and the architecture white papers of
the reference products (SM counts: A100 SXM 80 GB, GeForce RTX 4090, H100 SXM, B200, GeForce RTX 5090). AMD:
"AMD Instinct MI300" and "CDNA 4" instruction set architecture guides, and the CDNA 3 and CDNA 4 white papers
(registers, local data share, waves per SIMD), compute unit counts of MI300X and MI355X.

Rates. The peak of a product is `clock_ghz` x `sms` x `matrix_flops`, dense and with fp32 accumulation.
- Clocks: the boost clock at which the vendor's data sheet or white paper states its matrix peaks (B200: no clock is
  published, 1.85 GHz is what the 2.25 PFLOP/s of HGX B200 need). The exception is H100: its white paper states 989
  TFLOP/s at 1.83 GHz; 1.755 GHz is the clock at which the throughput model agrees with a kernel measured by others.
- Matrix rates: A100, Ada, H100 and RTX Blackwell white papers, HGX B200 data sheet, CDNA 3 and CDNA 4 white papers, each
  peak divided by clock and SMs. GeForce parts halve 16-bit and fp8 rates when they accumulate in fp32; their int8 is not
  halved, hence runs at twice the rate given under "8". XF32 exists on CDNA 3 only.
- Lanes, NVIDIA: CUDA C++ Programming Guide, "Arithmetic Instructions", results per clock and SM. `convert` is not in that
  table: it is the packed narrowing of fp32 to 16 bits, at the rate the throughput model assumes. The table's "all other
  type conversions" (int to float, scalar) run at the rate of `mufu`, in the same pipe (Nsight Compute, "XU").
- Lanes, AMD: 4 SIMDs of 16 lanes (white papers); conversions and transcendentals at a quarter of that, transcendentals of
  gfx950 at half (LLVM SISchedule.td, llvm-project#156411). `shuffle` is ds_bpermute, 4 bytes a lane through 128 bytes
  of LDS bandwidth; DPP moves cost no more than an ALU instruction.
- DRAM and shared memory: data sheets (DGX B200: 64 TB/s of 8 GPUs); 32 banks of 4 bytes, reads doubled on CDNA 4.

Estimates, for want of a published figure: `convert` of every target, `shuffle` of gfx950 (not doubled with the LDS
reads), `alu` of sm_120 (integer addition alone is twice as fast), `mma_sync_share` of sm_90 and sm_100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from attngen.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Threads that a pipe of an SM serves per clock, one instruction of each."""

    mufu: int  # exp2, log2, reciprocal, square root, tanh
    fma: int  # fp32 add, multiply, multiply-add
    alu: int  # integer add, compare, min, max, select, logic
    convert: int  # fp32 to 16 bits
    shuffle: int  # across the warp


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One GPU architecture, seen from a kernel. "SM" means a compute unit on AMD, "CTA" a workgroup.

    Sizes are bytes; registers are 32 bits wide. `sms`, `clock_ghz` and `dram_gbps` (GB/s) belong to the reference
    `product`. `matrix_flops` is FLOP per clock and SM by operand type: "16" (fp16, bf16), "8" (fp8, or int8 where there
    is no fp8), "tf32", "32" (fp32). `dtypes` names the operand types of the matrix unit as torch does, and "tf32".
    """

    name: str
    product: str
    backend: Literal["cuda", "hip"]
    arch: int | str
    warp_size: int
    shared_per_cta: int
    shared_per_sm: int
    registers_per_sm: int
    register_granule: int  # registers are given to a warp in multiples of this many
    max_warps_per_sm: int
    max_ctas_per_sm: int
    sms: int
    clock_ghz: float
    matrix_flops: Mapping[str, int] = field(hash=False)
    mma_sync_share: float = (
        1.0  # of matrix_flops that mma.sync reaches; 1 where that, or MFMA, is the only form
    )
    lanes: Lanes
    shared_bytes_per_clock: int  # reads per SM
    schedulers: int = 4  # sub-partitions, SIMDs: each issues at most one warp instruction per clock
    vector_issue_clocks: int = 1  # that a vector instruction of one warp holds its scheduler
    dram_gbps: int
    dtypes: tuple[str, ...]
    tensor_memory_columns: int = 0

    @property
    def max_warps_per_cta(self) -> int:
        """A CTA has at most 1024 threads everywhere."""
        return 1024 // self.warp_size

    def peak_tflops(self, kind: str) -> float:
        """Dense TFLOP/s of the matrix units for operands of a `kind`, a key of `matrix_flops`; else UserError."""
        try:
            return self.clock_ghz * self.sms * self.matrix_flops[kind] / 1000
        except KeyError:
            hint = did_you_mean(kind, self.matrix_flops)
            raise UserError(f"{self.name}: no matrix rate for {kind!r}; {hint}") from None


def _nvidia(
    arch: int,
    product: str,
    *,
    shared: int,
    warps: int,
    ctas: int,
    sms: int,
    clock: float,
    flops: int,
    dram: int,
    fma: int = 128,
    mma_sync: float = 1.0,
    tensor_memory: int = 0,
) -> Target:
    """An NVIDIA target with `shared` KiB of shared memory per SM, of which 1 KiB per CTA is reserved.

    `flops` is the 16-bit matrix rate; 8-bit operands double it and tf32 halves it in every generation.
    """
    fp8 = ("float8_e4m3fn", "float8_e5m2") if arch >= 89 else ()
    return Target(
        name=f"sm_{arch}",
        product=product,
        backend="cuda",
        arch=arch,
        warp_size=32,
        shared_per_cta=(shared - 1) * 1024,
        shared_per_sm=shared * 1024,
        registers_per_sm=65536,
        register_granule=256,
        max_warps_per_sm=warps,
        max_ctas_per_sm=ctas,
        sms=sms,
        clock_ghz=clock,
        matrix_flops={"16": flops, "8": 2 * flops, "tf32": flops // 2},
        mma_sync_share=mma_sync,
        lanes=Lanes(mufu=16, fma=fma, alu=64, convert=64, shuffle=32),
        shared_bytes_per_clock=128,
        dram_gbps=dram,
        dtypes=("float16", "bfloat16", *fp8, "tf32", "int8"),
        tensor_memory_columns=tensor_memory,
    )


def _amd(
    arch: str,
    product: str,
    *,
    lds: int,
    cus: int,
    clock: float,
    flops: Mapping[str, int],
    mufu: int,
    lds_read: int,
    dram: int,
    dtypes: tuple[str, ...],
) -> Target:
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
        register_granule=8 * 64,
        max_warps_per_sm=32,
        max_ctas_per_sm=16,
        sms=cus,
        clock_ghz=clock,
        matrix_flops=flops,
        lanes=Lanes(mufu=mufu, fma=64, alu=64, convert=16, shuffle=32),
        shared_bytes_per_clock=lds_read,
        vector_issue_clocks=4,
        dram_gbps=dram,
        dtypes=("float16", "bfloat16", *dtypes, "float32", "int8"),
    )


# mma.sync: 0.62 of wgmma as the throughput model has it. sm_100: assumed to keep the FLOP per clock that sm_90 reaches.
_SM90_MMA_SYNC = 0.62
_CDNA3 = {"16": 2048, "8": 4096, "tf32": 1024, "32": 256}
_CDNA4 = {"16": 4096, "8": 8192, "32": 256}
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz", "tf32")  # CDNA 3 predates the OCP formats
_OCP = ("float8_e4m3fn", "float8_e5m2")

# fmt: off
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        t.name: t
        for t in (
            _nvidia(80, "A100 SXM 80 GB", shared=164, warps=64, ctas=32, sms=108,
                    clock=1.41, flops=2048, dram=2039, fma=64),
            _nvidia(89, "GeForce RTX 4090", shared=100, warps=48, ctas=24, sms=128,
                    clock=2.52, flops=512, dram=1008),
            _nvidia(90, "H100 SXM", shared=228, warps=64, ctas=32, sms=132,
                    clock=1.755, flops=4096, dram=3350, mma_sync=_SM90_MMA_SYNC),
            _nvidia(100, "B200", shared=228, warps=64, ctas=32, sms=148,
                    clock=1.85, flops=8192, dram=8000, mma_sync=_SM90_MMA_SYNC / 2, tensor_memory=512),
            _nvidia(120, "GeForce RTX 5090", shared=100, warps=48, ctas=24, sms=170,
                    clock=2.407, flops=512, dram=1792),
            _amd("gfx942", "Instinct MI300X", lds=64, cus=304,
                 clock=2.1, flops=_CDNA3, mufu=16, lds_read=128, dram=5300, dtypes=_FNUZ),
            _amd("gfx950", "Instinct MI355X", lds=160, cus=256,
                 clock=2.4, flops=_CDNA4, mufu=32, lds_read=256, dram=8000, dtypes=_OCP),
        )
    }
)
# fmt: on


def target(name: str) -> Target:
    """The target called `name`, e.g. "sm_90". Raises UserError with the known names."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UserError(f"unknown target {name!r}; {did_you_mean(name, TARGETS)}") from None
