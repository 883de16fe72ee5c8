"""Time and memory of planning a mask, beside FlexAttention's block mask on the same machine.

python benchmarks/planning.py            # attngen only
python benchmarks/planning.py 4096 16384 # and create_block_mask (eager) at these lengths
"""

from __future__ import annotations

import resource
import sys
import time
import tracemalloc

import numpy as np

from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold
from attngen.ir.tile_counts import count
from attngen.ir.tiles import Tiles
from attngen.passes.build import build
from attngen.passes.plan_masks import PlanMasks
from attngen.spec import load_spec

SPEC = {"attngen": 1, "name": "planned", "heads": 2, "head_dim": 64, "dtype": "bfloat16"}
MILLION = 1 << 20


def plan(graph: Graph) -> Tiles:
    """Run the planning pass and return what it attached to the fold."""
    tiles = PlanMasks().apply(graph).only(Fold)[1].tiles
    assert tiles is not None
    return tiles


def planning() -> None:
    """Causal and window at 1M x 1M, and a packed batch of 10,000 documents."""
    graph = build(load_spec({**SPEC, "mask": "j <= i and i - j < 4096"}))
    started = time.perf_counter()
    tiles = plan(graph)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    plan(graph)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"plan, causal and window, any length: {seconds * 1e3:.1f} ms, {peak / 1e3:.0f} kB")
    started = time.perf_counter()
    counts = count(tiles, seqlen_q=MILLION, seqlen_k=MILLION, block_m=128, block_n=128)
    print(f"tile counts at {MILLION} x {MILLION}: {(time.perf_counter() - started) * 1e3:.1f} ms, {counts}")
    packed = plan(build(load_spec({**SPEC, "mask": "j <= i", "layout": "thd"})))
    lengths = np.random.default_rng(0).integers(1, 2000, 10_000)
    started = time.perf_counter()
    counts = count(packed, seqlen_q=lengths, seqlen_k=lengths, block_m=128, block_n=128)
    print(f"tile counts of 10,000 documents: {(time.perf_counter() - started) * 1e3:.1f} ms, {counts}")


def block_mask(length: int) -> None:
    """FlexAttention's eager create_block_mask for the same mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    started = time.perf_counter()
    create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < 4096), 1, 1, length, length, device="cpu")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"create_block_mask at {length} x {length}: {time.perf_counter() - started:.1f} s, process peak {peak:.1f} GB"
    )


if __name__ == "__main__":
    planning()
    for argument in sys.argv[1:]:
        block_mask(int(argument))
