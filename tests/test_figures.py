"""The figures that forward kernels reach, as `inspect` counts them: what the pinned compiler makes of default schedules."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from attngen.generate import generate_to_cache
from attngen.inspect.report import LoopReport, inspect_modules
from attngen.spec import load_spec

ROOT = Path(__file__).parents[1]
PINNED = "3.7.1"
MARGIN = 1.05
pytestmark = pytest.mark.skipif(version("triton") != PINNED, reason=f"figures are those of triton {PINNED}")


def loops_of(spec: str, target: str, **changes: object) -> dict[str, LoopReport]:
    """The loops of a committed spec's bf16 kernel by role, without spills; `changes` replaces keys of the spec."""
    text = yaml.safe_load((ROOT / "specs" / f"{spec}.yaml").read_text())
    module = generate_to_cache(load_spec({**text, **changes}))
    [report] = inspect_modules([(module, "bfloat16")], [target])
    assert report.compiled.error == ""
    assert report.compiled.spill_bytes == 0
    return {loop.role: loop for loop in report.loops}


# instructions per 1000 tensor clocks of useful work: full loop, partial loop
ISSUE = [
    ("sm_90", "llama3_causal", {}, 468, 663),
    ("sm_90", "qwen2_gqa7", {}, 861, 1256),
    ("sm_90", "mla_prefill", {}, 395, 598),
    ("sm_90", "llama3_causal", {"head_dim": 256}, 426, 554),
    ("sm_90", "llama3_causal", {"score": "50 * tanh(s / 50)"}, 843, None),
    ("sm_90", "mistral_window", {}, None, 760),
    ("sm_80", "llama3_causal", {}, 467, 609),
    ("sm_80", "qwen2_gqa7", {}, 643, 912),
]


@pytest.mark.parametrize(("target", "spec", "changes", "full", "partial"), ISSUE)
def test_instructions_per_tensor_clock(target, spec, changes, full, partial):
    loops = loops_of(spec, target, **changes)
    wanted = {role: limit for role, limit in (("full", full), ("partial", partial)) if limit}
    found = {role: loops[role].prediction.issue_per_1k_tensor for role in wanted}
    assert {role: n for role, n in found.items() if n > MARGIN * wanted[role]} == {}


@pytest.mark.parametrize(("head_dim", "tflops"), [(72, 326), (80, 362), (96, 400)])
def test_head_dims_that_are_no_power_of_two_waste_little(head_dim, tflops):
    full = loops_of("phi2", "sm_90", head_dim=head_dim)["full"]
    assert full.prediction.tflops_serial >= tflops / MARGIN
    assert full.planned_flops > full.useful_flops or head_dim % 16 == 0


@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
@pytest.mark.parametrize("spec", ["llama3_causal", "qwen2_gqa7"])
def test_amd_has_no_spills_and_mfma_in_every_loop(target, spec):
    loops = loops_of(spec, target)
    assert set(loops) == {"full", "partial"}
    assert all(shape.startswith("v_mfma") for loop in loops.values() for shape in loop.count.matrix)
    assert all(loop.count.matrix for loop in loops.values())


def modules() -> list[Path]:
    return sorted((ROOT / "generated").glob("*.py"))


def assert_products_are_as_planned(target: str) -> None:
    """Matrix instructions found in a loop do the FLOPs of the plan, no more and no less; and each loop has its role."""
    reports = inspect_modules([(module, "bfloat16") for module in modules()], [target])
    assert [r.compiled.error for r in reports if not r.compiled.ok] == []
    wrong = [
        (r.module.stem, loop.role, loop.found_flops / loop.planned_flops)
        for r in reports
        for loop in r.loops
        if loop.found_flops != loop.planned_flops
    ]
    # 64 rows on 8 warps: both groups of four warps compute all of Q K^T (576 columns), and half of P V (512) each
    twice = (576 * 2 + 512) / (576 + 512)
    known = [("mla_absorbed", role, twice) for role in ("full", "partial")] if target == "sm_90" else []
    assert wrong == known
    roles = {
        r.module.stem: tuple(loop.role for loop in r.loops) for r in reports if r.name == "_attention_forward"
    }
    # a neighbourhood of 7 x 7 is at most two tiles of 128 keys, which sm_100's compiler runs without a loop
    assert {name for name, found in roles.items() if not found} <= {"natten_2d"}
    assert set(roles.values()) <= {("full", "partial"), ("partial",), ()}
    assert len(roles) == len(modules())


def test_products_found_are_those_of_the_plan():
    assert_products_are_as_planned("sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_100", "sm_120", "gfx942", "gfx950"])
def test_products_found_elsewhere_are_those_of_the_plan(target):
    assert_products_are_as_planned(target)
