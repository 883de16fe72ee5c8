"""What a report takes to make: code without products is not disassembled, what was counted is not counted again."""

from pathlib import Path

import pytest

from attngen.generate import generate_to_cache
from attngen.inspect.assembly import parse_sass
from attngen.inspect.report import inspect_modules
from attngen.spec import load_spec
from attngen.target.sass import disassemble, sass

pytest.importorskip("triton")

SPEC = {
    "attngen": 1,
    "name": "small",
    "heads": 2,
    "head_dim": 64,
    "dtype": "bfloat16",
    "mask": "j <= i",
    "grad": True,
}
ROWS, FOLD = "_backward_rows", "_attention_forward"


@pytest.fixture
def inspected(tmp_path, monkeypatch):
    """Inspect one kernel of a spec, in a cache of its own."""
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path))
    modules = [(generate_to_cache(load_spec(SPEC)), "bfloat16")]

    def inspect(kernel, target, **more):
        [report] = inspect_modules(modules, [target], kernels=[kernel], **more)
        assert (report.compiled.error, report.failure) == ("", None)
        return report

    return inspect


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", [ROWS, FOLD])
def test_the_size_of_code_is_that_of_its_instructions(inspected, target, kernel):
    report = inspected(kernel, target)
    listing = parse_sass(sass(report.compiled), kernel)
    assert report.code_bytes == 16 * len(listing.instructions) > 1000


def test_code_without_products_is_not_disassembled(inspected, monkeypatch):
    monkeypatch.setenv("TRITON_NVDISASM_PATH", "nowhere")
    report = inspected(ROWS, "sm_90")
    assert (report.matrix_instructions, report.loops) == (0, ())
    assert report.code_bytes > 1000
    assert report.compiled.registers > 0
    assert inspected(ROWS, "gfx942").code_bytes > 1000


def test_what_was_counted_is_not_counted_again(inspected, monkeypatch):
    first = inspected(FOLD, "sm_90")
    monkeypatch.setattr("attngen.inspect.report.disassembled", None)
    again = inspected(FOLD, "sm_90")
    figures = [
        [(x.role, x.found_flops, x.planned_flops, x.prediction) for x in report.loops]
        for report in (first, again)
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 2


def test_reports_come_in_the_order_of_modules_targets_and_kernels(inspected):
    inspected(FOLD, "sm_90")  # known, hence ready before the others
    module = generate_to_cache(load_spec(SPEC))
    seen = []
    found = inspect_modules(
        [(module, "bfloat16")],
        ["sm_80", "sm_90"],
        lambda *progress: seen.append(progress),
        kernels=[ROWS, FOLD],
    )
    wanted = [("sm_80", FOLD), ("sm_80", ROWS), ("sm_90", FOLD), ("sm_90", ROWS)]
    assert [(r.compiled.target, r.name) for r in found] == wanted
    assert seen == [(n, 4) for n in range(5)]


def test_what_cannot_be_disassembled_together_is_read_one_by_one(inspected, monkeypatch):
    expected = inspected(FOLD, "sm_90", with_code=True)
    monkeypatch.setattr("attngen.inspect.report.disassemble", None)
    assert inspected(FOLD, "sm_90", with_code=True).loops == expected.loops
    assert len(expected.loops) == 2
    assert all(loop.count.code for loop in expected.loops)


def test_a_kernel_that_cannot_be_read_costs_its_own_report_only(inspected, monkeypatch):
    inspected(FOLD, "sm_90")
    compiled = inspected("_backward_dq", "sm_90").compiled
    cubin = Path(compiled.artifacts["cubin"])
    for kept in (".loops", ".sass"):
        cubin.with_suffix(kept).unlink()
    read = "attngen.inspect.report.sass"
    monkeypatch.setattr("attngen.inspect.report.disassemble", None)
    monkeypatch.setattr(read, lambda report: None)
    module = generate_to_cache(load_spec(SPEC))
    found = inspect_modules([(module, "bfloat16")], ["sm_90"], kernels=[FOLD, "_backward_dq"])
    assert [(r.name, r.failure is None) for r in found] == [(FOLD, True), ("_backward_dq", False)]


def test_the_disassembler_runs_for_many_kernels_at_once(inspected, monkeypatch):
    asked = []
    together = disassemble
    monkeypatch.setattr(
        "attngen.inspect.report.disassemble", lambda some: asked.append(len(some)) or together(some)
    )
    module = generate_to_cache(load_spec(SPEC))
    found = inspect_modules([(module, "bfloat16")], ["sm_90"])
    assert all(report.failure is None for report in found)
    assert sum(asked) == sum(report.matrix_instructions > 0 for report in found) == 3
    assert len(asked) == 2  # the first alone, to show early that the tool is missing
