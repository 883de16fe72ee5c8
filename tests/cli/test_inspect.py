"""`attngen inspect`: what it prints, how it ends, and what it says of missing tools."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from attngen.cli import inspecting
from attngen.inspect.report import disassembled
from attngen.target import sass
from attngen.target.compile import CompileReport
from attngen.target.facts import TARGETS
from tests.cli.helpers import CAUSAL, good, refused, run

KEYS = {
    "name",
    "target",
    "config",
    "registers",
    "spill_bytes",
    "scalar_spill_registers",
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


def test_bytes_per_key_of_pages_against_what_must_be_read(half: Path) -> None:
    """64 columns of K and V in two bytes, and a page's number for 16 keys; keys in a row have no such figure."""
    paged = HALF.replace("mask:", "cache: {kind: paged, page_size: 16}\nmask:")
    (half / "specs/paged.yaml").write_text(paged.replace("name: small", "name: paged"))
    kernels = json.loads(good("inspect", "paged", "--target", "sm_90", "--json"))
    loops = [loop for kernel in kernels if kernel["name"] == "_attention_forward" for loop in kernel["loops"]]
    assert {loop["least_bytes_per_key"] for loop in loops} == {2 * 64 * 2 + 4 / 16}
    assert all(1 <= loop["bytes_per_key"] / loop["least_bytes_per_key"] <= 1.1 for loop in loops)
    text = good("inspect", "paged", "--target", "sm_90")
    assert f"{loops[0]['bytes_per_key']:.1f} (1." in text
    [kernel] = json.loads(good("inspect", "small", "--target", "sm_90", "--json"))
    assert {loop["bytes_per_key"] for loop in kernel["loops"]} == {0}


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


def test_a_target_given_twice_is_reported_once(half: Path) -> None:
    twice = json.loads(good("inspect", "small", "--target", "sm_90", "--target", "sm_90", "--json"))
    assert [kernel["target"] for kernel in twice] == ["sm_90"]


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
    assert full["useful_flops"] == full["planned_flops"] == full["found_flops"]
    assert full["predicted_tflops_overlap"] < 19.5  # an A100's fp32 peak
    # more than the products are multiplied: that is no repetition
    text = good("inspect", "small", "--dtype", "float32", "--target", "sm_80")
    assert text.count("by FMA") == 2
    assert "planned" not in text
    assert "repeated" not in text


def test_products_that_warps_repeat_are_planned_and_told(half: Path) -> None:
    (half / "specs/small.yaml").write_text(HALF + "schedule: {block_m: 16, block_n: 16, warps: 4}\n")
    [kernel] = json.loads(good("inspect", "small", "--target", "gfx942", "--json"))
    for loop in kernel["loops"]:
        # Q K^T: 16 x 16 scores, by each of four warps that lie along rows. P V: each warp has 16 of 64 columns
        assert loop["useful_flops"] == 2 * 16 * 16 * (64 + 64)
        assert loop["repeated_flops"] == 3 * 2 * 16 * 16 * 64
        assert loop["planned_flops"] == loop["found_flops"] == loop["useful_flops"] + loop["repeated_flops"]
    text = good("inspect", "small", "--target", "gfx942")
    assert text.count(", 60% repeated by warps that share rows") == 2
    assert "planned" not in text


def test_passes_of_a_precision_are_planned(here: Path) -> None:
    (here / "specs/small.yaml").write_text(
        CAUSAL.replace("head_dim: 16", "head_dim: 64") + "precision: tf32x3\n"
    )
    [kernel] = json.loads(good("inspect", "small", "--target", "sm_80", "--json"))
    assert len(kernel["loops"]) == 2
    for loop in kernel["loops"]:
        assert loop["planned_flops"] == loop["found_flops"] == 3 * loop["useful_flops"]
        assert loop["repeated_flops"] == 0


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
    assert "small attention_forward full" in pictures[0]
    assert "small attention_forward partial" in pictures[0]


def test_colours_of_loops_go_by_their_role(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    from attngen.inspect.picture import ROLE_COLOURS

    drawn: list[str] = []
    monkeypatch.setattr(Axes, "plot", lambda axes, *data, color, **more: drawn.append(color))
    good("inspect", "small", "--svg", "a.svg")
    full, partial = ROLE_COLOURS["full"], ROLE_COLOURS["partial"]
    assert drawn == ["black", full, full, partial, partial]  # the roof; a bar and a dot for each loop


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/x.svg", "--svg nowhere/x.svg: there is no folder nowhere"),
        ("specs", "--svg specs: is a folder"),
        ("locked/x.svg", "--svg locked/x.svg: the folder locked cannot be written to"),
    ],
)
def test_a_picture_that_could_not_be_written_is_refused_before_anything_is_compiled(
    half: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    (half / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda folder, mode: folder != Path("locked"))  # root may write anywhere
    monkeypatch.setattr(inspecting, "inspect_modules", None)
    assert message in refused("inspect", "small", "--svg", path)


def test_json_and_disassembly_are_refused_together(half: Path) -> None:
    assert "leave out --sass, or --json" in refused("inspect", "small", "--json", "--sass")


def test_a_target_among_the_specs_is_told_to_repeat_the_option(half: Path) -> None:
    message = refused("inspect", "small", "--target", "sm_90", "gfx942")
    assert "gfx942 is a target, not a spec; repeat the option: --target gfx942" in message
    (half / "specs/gfx942.yaml").write_text("")
    assert "is a target" not in refused("inspect", "gfx942")  # but an empty file


def test_the_help_names_all_targets() -> None:
    text = " ".join(good("inspect", "--help").split())
    assert f"{', '.join(TARGETS)}; may be repeated" in text


@pytest.mark.parametrize(
    ("precision", "target", "known"),
    [("tf32x3", "gfx942", "ieee or tf32"), ("tf32x3", "gfx950", "ieee"), ("tf32", "gfx950", "ieee")],
)
def test_a_precision_that_a_target_lacks_is_named_with_the_others(
    here: Path, precision: str, target: str, known: str
) -> None:
    (here / "specs/small.yaml").write_text(CAUSAL + f"precision: {precision}\n")
    result = run("inspect", "small", "--target", target)
    assert result.exit_code == 1
    refusal = f"precision: {target} has no {precision} products; 'precision' may be {known}"
    assert f"REFUSED: {refusal}\n" in result.stdout
    assert json.loads(run("inspect", "small", "--target", target, "--json").stdout)[0]["error"] == refusal


def test_a_mask_table_has_no_loops_of_products_and_its_scalar_spills_are_told(here: Path) -> None:
    mask = "mask: (i * i + j) % 3 == 0\nmask_table: true\n"
    (here / "specs/small.yaml").write_text(HALF[: HALF.index("mask:")] + mask)
    fold, table = json.loads(good("inspect", "small", "--target", "gfx942", "--json"))
    assert (table["name"], table["loops"], table["error"]) == ("_mask_table", [], "")
    assert [loop["role"] for loop in fold["loops"]] == ["full", "partial"]
    assert (table["spill_bytes"], table["scalar_spill_registers"] > 0) == (0, True)
    text = good("inspect", "small", "--target", "gfx942")
    assert f", {table['scalar_spill_registers']} scalar registers spilled, " in text
    assert "no spills" not in text.partition("_mask_table")[2]


def test_a_division_out_of_line_is_in_the_turn(here: Path) -> None:
    mask = "mask: (i * i + j) % n != 0\nparams: {n: int}\nschedule: {block_m: 64, block_n: 32}\n"
    (here / "specs/small.yaml").write_text(HALF[: HALF.index("mask:")] + mask)
    [kernel] = json.loads(good("inspect", "small", "--target", "sm_90", "--json"))
    # 64 x 32 elements of 128 threads: 16 divisions of 64 bits, each a call of 83 instructions
    text = good("inspect", "small", "--target", "sm_90", "--sass")
    assert text.count("CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)") == text.count("RET.REL") == 16
    assert kernel["loops"][0]["instructions"] > 16 * 83


def test_code_that_cannot_be_read_is_a_row_and_then_a_bug(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(compiled: CompileReport) -> Any:
        if compiled.target == "sm_80":
            raise ZeroDivisionError("division by zero")
        return disassembled(compiled)

    monkeypatch.setattr("attngen.inspect.report.disassembled", read)
    arguments = ("inspect", "small", "--target", "sm_80", "--target", "sm_90")
    result = run(*arguments)
    assert result.exit_code == 3
    assert "NOT READ (a bug of attngen): ZeroDivisionError: division by zero" in result.stdout
    assert "HGMMA" in result.stdout
    assert "InternalError: inspect: small: _attention_forward for sm_80: ZeroDivisionError" in result.stderr
    first, second = json.loads(run(*arguments, "--json").stdout)
    assert (first["error"], first["loops"]) == ("ZeroDivisionError: division by zero", [])
    assert second["error"] == ""


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
