"""A first-order model of one turn of a loop: how long each pipe of an SM is busy, and what follows if they overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attngen.inspect.instructions import Kind
from attngen.inspect.loops import CountedLoop
from attngen.target.facts import Target

ASSUMPTIONS = """\
Figures of `inspect` are predictions of a model, not measurements.
- Counted is one turn of each innermost loop with matrix work, along its shortest path that does all of that work and its
  loads, for a warp that does its share of everything, with the shortest way through the subroutines that it calls. Waits
  that spin do so out of line and are taken as not needed.
- A program's warps are spread evenly over the schedulers of an SM (compute unit); each issues one instruction per clock
  (AMD: a vector instruction of a 64-lane wave holds its SIMD for 4 clocks).
- Every pipe runs at the rate of the target's facts, without stalls: MUFU, FMA, ALU, conversion and shuffle by threads
  per clock and SM, shared memory by bytes. What matrix units read from shared memory themselves is part of their rate.
- mma.sync reaches the share of the matrix rate that the target's facts name.
- Not in the model: latency, occupancy, DRAM and L2, bank conflicts, clocks that drop under load, prologue and epilogue,
  the partial last wave of programs.
- In no pipe: the writes of cp.async (LDGSTS) to shared memory, and traffic of tensor memory. LDSM counts 512 bytes for
  its widest form: "shared" of sm_80 does not compare with models that leave it out.
- overlap: the busiest pipe decides. turns: matrix work and the busiest of the others alternate. serial: as turns, and what
  alternates with matrix work is at least MUFU and issue together.
- Work is useful work: the products of the plan, without padding of head dimensions and without what is computed more than
  once: for precision (tf32x3), or by several warps, as Triton's layout says. Elements that a partial tile masks count as
  useful. "Instructions per 1000 tensor clocks" divides by the clocks that useful work takes at the full matrix rate
  (products by FMA: at the FMA rate).
- Bytes per FLOP: what the loop's loads ask for, whichever cache serves them.
- Bytes per key, of keys in pages: what the warps of a program ask for, lanes of a warp that share an address once (by
  Triton's layout), whichever cache serves them; against K and V, their scales and the page table, each once."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Clocks per turn by pipe, and TFLOP/s of useful work on the whole GPU under three assumptions."""

    clocks: Mapping[str, float]
    useful_clocks: float  # that the useful work alone takes at the full rate of its unit
    issue_per_1k_tensor: float
    tflops_overlap: float
    tflops_turns: float
    tflops_serial: float

    @property
    def busiest(self) -> str:
        """The pipe that is busy longest."""
        return max(self.clocks, key=lambda pipe: self.clocks[pipe])


def predict(loop: CountedLoop, useful_flops: float, target: Target, num_warps: int) -> Prediction:
    """Predict the rate of a loop, one turn of which does `useful_flops` for a program of `num_warps`."""
    clocks = pipe_clocks(loop, target, num_warps)
    others = max(time for pipe, time in clocks.items() if pipe != "tensor")
    tensor = clocks["tensor"]
    best = useful_flops / _full_rate(loop, target)

    def tflops(time: float) -> float:
        return useful_flops / time * target.sms * target.clock_ghz / 1000

    return Prediction(
        clocks=clocks,
        useful_clocks=best,
        issue_per_1k_tensor=1000 * loop.instructions * num_warps / target.schedulers / best,
        tflops_overlap=tflops(max(tensor, others)),
        tflops_turns=tflops(tensor + others),
        tflops_serial=tflops(tensor + max(clocks["mufu"] + clocks["issue"], others)),
    )


def pipe_clocks(loop: CountedLoop, target: Target, num_warps: int) -> dict[str, float]:
    """Clocks that each pipe of an SM needs for one turn of a program."""
    lanes = target.lanes
    warps = num_warps / target.schedulers  # per scheduler
    threads = num_warps * target.warp_size
    rates: dict[Kind, int] = {
        "mufu": lanes.mufu,
        "fma": lanes.fma,
        "alu": lanes.alu,
        "convert": lanes.convert,
        "shuffle": lanes.shuffle,
    }
    vector = sum(loop.kinds.get(kind, 0) for kind in rates if kind != "shuffle")
    slots = loop.instructions + vector * (target.vector_issue_clocks - 1)
    counts = {**loop.kinds, "fma": loop.fma_slots}
    tensor = sum(flops / target.matrix_flops[kind] for kind, flops in loop.flops.items())
    if loop.warp_wide:
        tensor /= target.mma_sync_share
    return {
        "tensor": tensor,
        "issue": slots * warps,
        **{pipe: counts.get(pipe, 0) * threads / rate for pipe, rate in rates.items()},
        "shared": loop.shared_bytes * num_warps / target.shared_bytes_per_clock,
    }


def _full_rate(loop: CountedLoop, target: Target) -> float:
    """FLOP per clock and SM of the unit that does the products."""
    if not loop.flops:
        return 2.0 * target.lanes.fma
    return loop.all_flops / sum(flops / target.matrix_flops[kind] for kind, flops in loop.flops.items())
