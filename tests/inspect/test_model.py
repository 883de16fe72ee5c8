"""The model against clocks worked out by hand, and against the figure that it was checked with."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngen.inspect.loops import CountedLoop
from attngen.inspect.model import pipe_clocks, predict
from attngen.target.facts import TARGETS, target

# By a warp; FLOPs by the program
LOOP = CountedLoop(
    instructions=500,
    most_instructions=600,
    kinds={
        "mufu": 66,
        "fma": 100,
        "alu": 50,
        "convert": 32,
        "shuffle": 4,
        "barrier": 10,
        "scalar": 40,
        "matrix": 16,
    },
    ops={},
    matrix={},
    flops={"16": 2 * 2 * 64 * 128 * 128},
    fma_flops=0,
    warp_wide=False,
    shared_bytes=1024,
    global_bytes=0,
    descriptor_loads=0,
    loads={},
    sources={},
    code=(),
)


def test_clocks_of_an_h100():
    """4096 FLOP, 16 MUFU, 128 FMA, 64 ALU and conversion, 32 shuffles, 128 bytes a clock; a warp for each scheduler."""
    assert pipe_clocks(LOOP, target("sm_90"), 4) == {
        "tensor": 4194304 / 4096,
        "issue": 500,
        "mufu": 66 * 128 / 16,
        "fma": 100 * 128 / 128,
        "alu": 50 * 128 / 64,
        "convert": 32 * 128 / 64,
        "shuffle": 4 * 128 / 32,
        "shared": 1024 * 4 / 128,
    }
    # eight warps that do half each are two for each scheduler
    half = replace(LOOP, instructions=250, kinds={"mufu": 33}, shared_bytes=512)
    both = pipe_clocks(half, target("sm_90"), 8)
    assert (both["tensor"], both["issue"], both["mufu"], both["shared"]) == (1024, 500, 528, 32)


def test_clocks_of_an_mi300x():
    """2048 FLOP, 16 transcendentals and conversions, 64 others a clock; a vector instruction holds its SIMD for 4."""
    assert pipe_clocks(LOOP, target("gfx942"), 4) == {
        "tensor": 4194304 / 2048,
        "issue": 500 + 3 * (66 + 100 + 50 + 32),
        "mufu": 66 * 256 / 16,
        "fma": 100 * 256 / 64,
        "alu": 50 * 256 / 64,
        "convert": 32 * 256 / 16,
        "shuffle": 4 * 256 / 32,
        "shared": 1024 * 4 / 128,
    }


def test_products_of_two_types_add_up():
    mixed = replace(LOOP, flops={"16": 4096 * 100, "8": 8192 * 10, "tf32": 2048})
    assert pipe_clocks(mixed, target("sm_90"), 4)["tensor"] == 111
    useful = predict(mixed, mixed.all_flops, target("sm_90"), 4)
    assert useful.issue_per_1k_tensor == pytest.approx(1000 * 500 / 111)


@pytest.mark.parametrize(
    ("name", "share"), [("sm_80", 1), ("sm_90", 0.62), ("sm_100", 0.31), ("sm_120", 1), ("gfx942", 1)]
)
def test_products_by_single_warps_reach_a_share_of_the_rate(name, share):
    goal = target(name)
    wide = replace(LOOP, warp_wide=True)
    assert pipe_clocks(LOOP, goal, 4)["tensor"] == 4194304 / goal.matrix_flops["16"]
    assert pipe_clocks(wide, goal, 4)["tensor"] == pytest.approx(4194304 / goal.matrix_flops["16"] / share)
    # ... and "instructions per 1000 tensor clocks" is of the full rate all the same
    issued = [predict(x, x.all_flops, goal, 4).issue_per_1k_tensor for x in (LOOP, wide)]
    assert issued[0] == issued[1]


def test_the_figure_that_the_model_was_checked_with():
    """Triton's tutorial, D 128, full, on an H100: 475 TFLOP/s predicted where 477 were measured (pytorch/benchmark#2391)."""
    # a turn: two products of a 64 x 128 tile; 64 powers of 128 threads and one for each of 2 rows
    loop = replace(LOOP, instructions=492, kinds={"mufu": 64 * 128 // 128 + 2})
    found = predict(loop, loop.all_flops, target("sm_90"), num_warps=4)
    assert found.issue_per_1k_tensor == pytest.approx(480, abs=0.5)
    assert found.tflops_serial == pytest.approx(475, abs=0.5)  # 1024 + 528 + 492 clocks
    assert found.tflops_turns == pytest.approx(626, abs=0.5)  # 1024 + 528
    assert found.tflops_overlap == pytest.approx(948.9, abs=0.1)  # 1024: the peak
    assert found.busiest == "tensor"


def test_the_busiest_pipe_is_not_hidden_where_all_add_up():
    """Conversions for 2000 clocks: matrix work waits for them, though MUFU and issue together take only 1028."""
    loop = replace(LOOP, kinds={**LOOP.kinds, "convert": 1000})
    found = predict(loop, loop.all_flops, target("sm_90"), 4)
    assert found.clocks["mufu"] + found.clocks["issue"] == 1028
    assert found.tflops_serial == found.tflops_turns
    assert found.tflops_serial == pytest.approx(948.9 * 1024 / (1024 + 2000), rel=1e-4)


def test_work_that_is_not_useful_lowers_the_rate():
    full, half = (
        predict(LOOP, useful, target("sm_90"), 4) for useful in (LOOP.all_flops, LOOP.all_flops / 2)
    )
    assert half.tflops_overlap == full.tflops_overlap / 2
    assert half.tflops_serial == full.tflops_serial / 2
    assert half.issue_per_1k_tensor == 2 * full.issue_per_1k_tensor
    assert half.clocks == full.clocks


def test_products_by_multiply_add():
    """Without matrix instructions the tensor pipe is idle; 1000 clocks are those of the FMA pipe at its best."""
    loop = replace(LOOP, flops={}, kinds={"fma": 400}, shared_bytes=0)
    found = predict(loop, 2 * 400 * 128, target("sm_90"), 4)
    assert (found.clocks["tensor"], found.clocks["fma"]) == (0, 400)
    assert found.busiest == "issue"  # 500 instructions
    assert found.issue_per_1k_tensor == 1000 * 500 / 400
    assert found.tflops_overlap == found.tflops_turns == found.tflops_serial
    assert found.tflops_overlap == pytest.approx(2 * 400 * 128 / 500 * 132 * 1.755 / 1000)


COUNTS = st.fixed_dictionaries({kind: st.integers(0, 2000) for kind in LOOP.kinds})


@given(
    st.sampled_from(sorted(TARGETS)),
    COUNTS,
    COUNTS,
    st.integers(0, 2000),
    st.integers(0, 10**5),
    st.booleans(),
)
def test_more_of_anything_is_never_faster(name, kinds, more, instructions, shared, wide):
    loop = replace(LOOP, kinds=kinds, instructions=sum(kinds.values()), warp_wide=wide)
    larger = replace(
        loop,
        kinds={kind: n + more[kind] for kind, n in kinds.items()},
        instructions=loop.instructions + sum(more.values()) + instructions,
        shared_bytes=loop.shared_bytes + shared,
    )
    before, after = (predict(x, x.all_flops, target(name), 4) for x in (loop, larger))
    for x in (before, after):
        assert x.tflops_serial <= x.tflops_turns <= x.tflops_overlap
    assert after.tflops_overlap <= before.tflops_overlap
    assert after.tflops_turns <= before.tflops_turns
    assert after.tflops_serial <= before.tflops_serial
    assert after.issue_per_1k_tensor >= before.issue_per_1k_tensor
