"""The table of targets: consistent, and cheap to import."""

import pickle
import subprocess
import sys

import pytest

from attngen.errors import UserError
from attngen.target.facts import TARGETS, target


def test_the_targets_are_those_of_the_specification():
    assert list(TARGETS) == ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]


def test_names_follow_from_backend_and_arch():
    for name, t in TARGETS.items():
        assert name == t.name == (f"sm_{t.arch}" if t.backend == "cuda" else t.arch)
        assert t.warp_size == (32 if t.backend == "cuda" else 64)
        assert t.shared_per_cta <= t.shared_per_sm


def test_known_limits():
    assert target("sm_90").shared_per_cta == 232448
    assert target("sm_80").shared_per_cta == 166912
    assert target("sm_89").shared_per_cta == 101376
    assert target("gfx942").shared_per_cta == 65536
    assert target("sm_90").max_warps_per_cta == 32
    assert target("gfx950").max_warps_per_cta == 16


def test_only_the_fifth_generation_of_tensor_cores_has_tensor_memory():
    assert {n: t.tensor_memory_columns for n, t in TARGETS.items() if t.tensor_memory_columns} == {
        "sm_100": 512
    }


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError) as caught:
        target("gfx94")
    expected = (
        "unknown target 'gfx94'; did you mean 'gfx942'? "
        "known: gfx942, gfx950, sm_100, sm_120, sm_80, sm_89, sm_90"
    )
    assert str(caught.value) == expected


# The vendors' dense peaks in TFLOP/s (fp32 accumulation, sparse figures halved) and the clock in GHz they hold at;
# None: the data sheet names no clock.
PUBLISHED = [
    ("sm_80", 1.41, {"16": 312, "8": 624, "tf32": 156}),
    ("sm_89", 2.52, {"16": 165.2, "8": 330.3, "tf32": 82.6}),
    ("sm_90", 1.83, {"16": 989.4, "8": 1978.9, "tf32": 494.7}),
    ("sm_100", None, {"16": 2250, "8": 4500, "tf32": 1100}),
    ("sm_120", 2.407, {"16": 209.5, "8": 419, "tf32": 104.8}),
    ("gfx942", 2.1, {"16": 1307.4, "8": 2614.9, "tf32": 653.7, "32": 163.4}),
    ("gfx950", 2.4, {"16": 2516.6, "8": 5033.2, "32": 157.3}),
]


@pytest.mark.parametrize(("name", "clock", "peaks"), PUBLISHED)
def test_peaks_are_the_published_ones(name, clock, peaks):
    t = target(name)
    assert t.matrix_flops.keys() == peaks.keys()
    for kind, peak in peaks.items():
        at_published_clock = t.peak_tflops(kind) * (clock or t.clock_ghz) / t.clock_ghz
        assert at_published_clock == pytest.approx(peak, rel=0.02)


def test_only_the_h100_is_given_less_than_its_published_clock():
    assert [
        (n, target(n).clock_ghz) for n, clock, _ in PUBLISHED if clock not in (None, target(n).clock_ghz)
    ] == [("sm_90", 1.755)]
    assert target("sm_90").peak_tflops("16") == pytest.approx(948.9, abs=0.1)


def test_vector_peaks_are_the_published_ones():
    """fp32 TFLOP/s outside the matrix units at the clock above; AMD counts packed instructions, which double it."""
    published = {
        "sm_80": 19.5,
        "sm_89": 82.6,
        "sm_100": 75,
        "sm_120": 104.8,
        "gfx942": 163.4,
        "gfx950": 157.3,
    }
    for name, tflops in published.items():
        t = target(name)
        packed = 2 if t.backend == "hip" else 1
        clock = 1.98 if name == "sm_100" else t.clock_ghz  # B200's vector clock is above its matrix clock
        assert 2 * packed * t.lanes.fma * t.sms * clock / 1000 == pytest.approx(tflops, rel=0.02)


def test_memory_bandwidth_is_the_published_one():
    assert {n: t.dram_gbps for n, t in TARGETS.items()} == {
        "sm_80": 2039,
        "sm_89": 1008,
        "sm_90": 3350,
        "sm_100": 8000,
        "sm_120": 1792,
        "gfx942": 5300,
        "gfx950": 8000,
    }


def test_rates_agree_with_the_model_of_the_baselines():
    """Clocks per warp instruction and sub-partition on H100: MUFU 8, ALU and conversion 2, FMA 1, shuffle 4."""
    t = target("sm_90")
    pipes = (t.lanes.mufu, t.lanes.alu, t.lanes.convert, t.lanes.fma, t.lanes.shuffle)
    assert [t.warp_size * t.schedulers // lanes for lanes in pipes] == [8, 2, 2, 1, 4]
    assert (t.mma_sync_share, t.matrix_flops["16"], t.shared_bytes_per_clock) == (0.62, 4096, 128)


@pytest.mark.parametrize("t", TARGETS.values(), ids=TARGETS)
def test_rates_are_consistent(t):
    assert t.matrix_flops["8"] == 2 * t.matrix_flops["16"]
    assert t.lanes.shuffle * 4 <= t.shared_bytes_per_clock
    assert t.lanes.mufu < t.lanes.alu <= t.lanes.fma <= t.schedulers * t.warp_size
    assert (t.mma_sync_share < 1) == (t.name in ("sm_90", "sm_100"))  # which have another form too


def test_cdna4_doubles_transcendentals_and_shared_memory_reads():
    old, new = target("gfx942"), target("gfx950")
    assert (old.lanes.mufu, new.lanes.mufu) == (16, 32)
    assert (old.shared_bytes_per_clock, new.shared_bytes_per_clock) == (128, 256)


def test_a_missing_matrix_rate_lists_the_known_ones():
    with pytest.raises(UserError) as caught:
        target("gfx950").peak_tflops("tf32")
    assert str(caught.value).startswith("gfx950: no matrix rate for 'tf32'; ")
    assert str(caught.value).endswith("known: 16, 32, 8")


def test_a_target_is_a_key_and_can_be_sent_to_another_process():
    for t in TARGETS.values():
        assert {pickle.loads(pickle.dumps(t)): 1}[t] == 1


def test_importing_the_service_imports_neither_torch_nor_triton():
    code = "import sys, attngen.target.compile, attngen.target.sass"
    code += "\nprint({'torch', 'triton'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


def test_supported_types_go_with_the_rates():
    for goal in TARGETS.values():
        has = {"8": any("float8" in d or d == "int8" for d in goal.dtypes), "tf32": "tf32" in goal.dtypes}
        has |= {"16": {"float16", "bfloat16"} <= set(goal.dtypes), "32": "float32" in goal.dtypes}
        assert {kind for kind, there in has.items() if there} == set(goal.matrix_flops), goal.name
    assert "float8_e4m3fn" not in TARGETS["sm_80"].dtypes
    assert "float8_e4m3fn" in TARGETS["sm_90"].dtypes
    assert {d for d in TARGETS["gfx942"].dtypes if "float8" in d} == {"float8_e4m3fnuz", "float8_e5m2fnuz"}
