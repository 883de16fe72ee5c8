"""`attngen inspect`: what it prints, how it ends, and what it says of missing tools."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from attngen.target import sass
from tests.cli.helpers import CAUSAL, good, refused, run

KEYS = {
    "name",
    "target",
    "config",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "ctas_per_sm",
    "compile_seconds",
    "loops",
}
LOOP_KEYS = {
    "role",
    "instructions",
    "matrix",
    "issue_per_1k_tensor",
    "predicted_tflops_overlap",
    "predicted_tflops_turns",
    "predicted_tflops_serial",
}
HALF = CAUSAL.replace("float32", "[bfloat16, float32]").replace("head_dim: 16", "head_dim: 64")


@pytest.fixture
def half(here: Path) -> Path:
    """A folder with a spec whose first dtype has matrix instructions."""
    (here / "specs/small.yaml").write_text(HALF)
    return here


def test_json_has_the_keys_that_tools_rely_on(half: Path) -> None:
    [kernel] = json.loads(good("inspect", "small", "--target", "sm_90", "--json"))
    assert kernel.keys() >= KEYS
    assert (kernel["spec"], kernel["target"], kernel["dtype"]) == ("small", "sm_90", "bfloat16")
    full, partial = kernel["loops"]
    assert full.keys() >= LOOP_KEYS
    assert (full["role"], partial["role"]) == ("full", "partial")
    block_m, block_n = kernel["config"]["BLOCK_M"], kernel["config"]["BLOCK_N"]
    assert full["useful_flops"] == full["found_flops"] == 2 * block_m * block_n * (64 + 64)
    assert full["instructions"] < partial["instructions"]
    assert (
        full["predicted_tflops_serial"]
        < full["predicted_tflops_turns"]
        < full["predicted_tflops_overlap"]
        <= 1000
    )


def test_the_table_names_loops_and_says_that_it_predicts(half: Path) -> None:
    text = good("inspect", "small", "--target", "sm_90", "--target", "gfx942")
    assert text.count("full (fold)") == text.count("partial (fold)") == 4
    assert "HGMMA" in text
    assert "v_mfma" in text
    assert "predicted, not measured" in text


def test_sass_shows_the_counted_instructions_with_their_lines(half: Path) -> None:
    text = good("inspect", "small", "--sass")
    kernel = json.loads(good("inspect", "small", "--json"))[0]
    code = [line for line in text.splitlines() if line.startswith("    ")]
    assert len(code) == sum(loop["instructions"] for loop in kernel["loops"])
    assert any("HGMMA" in line and ".py:" in line for line in code)


def test_fp32_products_by_fma_are_loops_too(half: Path) -> None:
    [kernel] = json.loads(good("inspect", "small", "--dtype", "float32", "--target", "sm_80", "--json"))
    assert [(loop["role"], loop["matrix"]) for loop in kernel["loops"]] == [("full", {}), ("partial", {})]
    full = kernel["loops"][0]
    assert full["planned_flops"] <= full["found_flops"] < 1.5 * full["planned_flops"]
    assert full["predicted_tflops_overlap"] < 19.5  # an A100's fp32 peak


def test_the_assumptions_are_printed_without_a_spec() -> None:
    text = good("inspect", "--assumptions")
    assert [word for word in ("latency", "DRAM", "bank conflicts", "serial") if word not in text] == []


def test_the_picture_is_svg_and_the_same_each_time(half: Path) -> None:
    pictures = []
    for name in ("a.svg", "b.svg"):
        good("inspect", "small", "--svg", name)
        pictures.append((half / name).read_text())
    assert ElementTree.fromstring(pictures[0]).tag.endswith("svg")
    assert pictures[0] == pictures[1]
    assert "small full" in pictures[0]


def test_an_unknown_target_is_refused_before_anything_is_compiled(half: Path) -> None:
    message = refused("inspect", "small", "--target", "sm_91")
    assert "unknown target 'sm_91'" in message
    assert "sm_90" in message


def test_a_dtype_that_the_spec_lacks_is_refused(half: Path) -> None:
    assert "--dtype float16: the spec has bfloat16, float32" in refused(
        "inspect", "small", "--dtype", "float16"
    )


def test_a_kernel_that_the_gpu_could_not_launch_is_an_error_row(half: Path) -> None:
    (half / "specs/small.yaml").write_text(HALF + "schedule: {block_m: 256, block_n: 256, stages: 4}\n")
    result = run("inspect", "small", "--target", "sm_89")
    assert result.exit_code == 1
    assert "REFUSED: needs" in result.stdout
    assert "bytes of shared memory; sm_89 has 101376 per CTA" in result.stdout
    [kernel] = json.loads(run("inspect", "small", "--target", "sm_89", "--json").stdout)
    assert kernel["loops"] == []
    assert "shared memory" in kernel["error"]


@pytest.mark.parametrize(
    ("tool", "message"),
    [("nowhere", "cannot run the disassembler"), ("false", "the disassembler false failed")],
)
def test_a_disassembler_that_does_not_work_is_named(
    half: Path, monkeypatch: pytest.MonkeyPatch, tool: str, message: str
) -> None:
    monkeypatch.setenv("ATTNGEN_CACHE", str(half / "cache"))
    monkeypatch.setenv("TRITON_NVDISASM_PATH", tool)
    assert message in refused("inspect", "small")


def test_a_wheel_without_its_disassembler_is_named(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_CACHE", str(half / "cache"))
    monkeypatch.setattr(
        sass.Path, "is_file", lambda path: False if path.name == "nvdisasm" else path.exists()
    )
    assert "nvdisasm, which triton's wheel brings" in refused("inspect", "specs/small.yaml")


def test_a_picture_without_matplotlib_is_refused(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else found(name, *more)
    )
    assert "pip install 'attngen[plot]'" in refused("inspect", "small", "--svg", "x.svg")
