"""The figures that kernels reach, as `inspect` counts them: what the pinned compiler makes of default schedules.

The README states them; these tests read them there.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from attngen.generate import generate_to_cache
from attngen.inspect.report import KernelReport, LoopReport, inspect_modules
from attngen.spec import load_spec
from attngen.target.compile import compile_many
from attngen.target.requests import manifest, requests

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
[PINNED] = re.findall(r"(?m)^triton==(.+)$", (ROOT / "constraints.txt").read_text())
MODULES = sorted((ROOT / "generated").glob("*.py"))
FORWARD = "_attention_forward"
FORWARDS = [FORWARD, "_totals", "_chunk_states", "_solve", "_scan", "_pairs", "_read", "_decode"]
UNKNOWN_FORMATS = {("paged_fp8", "sm_80")}  # E4M3 is that of sm_89 and later
pytestmark = pytest.mark.skipif(version("triton") != PINNED, reason=f"figures are those of triton {PINNED}")


def loops_of(spec: str, target: str, **changes: object) -> dict[str, LoopReport]:
    """The loops of a committed spec's bf16 kernel by role, without spills; `changes` replaces keys of the spec."""
    text = yaml.safe_load((ROOT / "specs" / f"{spec}.yaml").read_text())
    module = generate_to_cache(load_spec({**text, **changes}))
    report, *decode = inspect_modules([(module, "bfloat16")], [target], kernels=[FORWARD])
    assert {r.compiled.error for r in (report, *decode)} == {""}
    assert {r.compiled.spill_bytes for r in (report, *decode)} == {0}
    return {loop.role: loop for loop in report.loops}


def row(label: str) -> list[str]:
    """The cells of the README's table row that starts with a label: sm_90, sm_80."""
    [line] = [line for line in README.splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


# rows of the table of instructions per 1000 tensor clocks
ROWS = {
    "causal, head dim 128": ("llama3_causal", {}),
    "causal, head dim 64": ("qwen2_gqa7", {}),
    "causal, head dim 256": ("llama3_causal", {"head_dim": 256}),
    "sliding window, head dim 128": ("mistral_window", {}),
    "softcap, head dim 128": ("llama3_causal", {"score": "50 * tanh(s / 50)"}),
    "MLA prefill, 192/128": ("mla_prefill", {}),
    "pages of 16, causal, head dim 128": ("paged_decode_llama3", {}),
    "pages of 64, sliding window": ("paged_mixed_mistral_window", {}),
    "pages of 32, int8 per key and head": ("paged_int8", {}),
    "pages of 32, int4 per key and head": ("paged_int4", {}),
    "causal with dropout, head dim 64": ("gpt2_dropout", {}),
    "causal with dropout, head dim 128": ("gpt2_dropout", {"head_dim": 128}),
}


FP8_LIMIT = 906  # instructions per 1000 tensor clocks, full loop
PAGED_LIMITS = (570, 882)  # of a cache in 16 bits, full and partial


def test_prompts_in_pages_take_few_instructions():
    loops = loops_of("paged_decode_llama3", "sm_90")
    for role, most in zip(("full", "partial"), PAGED_LIMITS, strict=True):
        assert loops[role].prediction.issue_per_1k_tensor <= most


def test_a_cache_of_8_bit_floats():
    [stated, *_] = row("pages of 16, E4M3 per head")
    found = [loop.prediction.issue_per_1k_tensor for loop in loops_of("paged_fp8", "sm_90").values()]
    assert found == pytest.approx([int(n) for n in stated.split("/")], rel=0.01)
    assert round(found[0]) <= FP8_LIMIT


@pytest.mark.parametrize(("column", "target"), [(0, "sm_90"), (1, "sm_80")])
@pytest.mark.parametrize("label", ROWS)
def test_instructions_per_tensor_clock(label, column, target):
    spec, changes = ROWS[label]
    loops = loops_of(spec, target, **changes)
    stated = [int(n) for n in row(label)[column].partition("(")[0].split("/")]
    found = [loops[role].prediction.issue_per_1k_tensor for role in ("full", "partial")]
    assert found == pytest.approx(stated, rel=0.01)


DECODE_LIMIT = 160  # instructions of a warp per 16 keys, of caches in 16 bits
PAGED = (
    *("paged_decode_llama3", "paged_mixed_mistral_window", "paged_gpt_oss"),
    *("paged_fp8", "paged_int8", "paged_int4"),
    *("spec_decode_tree", "mla_decode", "cascade_prefix"),
)
LIMITED = ("paged_decode_llama3", "paged_mixed_mistral_window", "paged_gpt_oss", "cascade_prefix")


@pytest.mark.parametrize(("column", "target"), list(enumerate(["sm_80", "sm_90", "sm_100", "gfx942"])))
@pytest.mark.parametrize("spec", PAGED)
def test_keys_in_pages_have_no_spills_and_few_instructions_in_decode(spec, column, target):
    if (spec, target) in UNKNOWN_FORMATS:
        pytest.skip("no such format")
    module = ROOT / "generated" / f"{spec}.py"
    reports = inspect_modules([(module, "bfloat16")], [target], kernels=[FORWARD])
    assert [(r.compiled.error, r.compiled.spill_bytes) for r in reports] == [("", 0)] * 2
    found = [x.count.instructions * 16 / reports[1].config["BLOCK_N"] for x in reports[1].loops]
    [row] = re.findall(rf"^\| decode, `{spec}` \|(.*)\|$", README, re.MULTILINE)
    stated = [int(n) for n in row.split("|")[column].split("/")]
    assert found == pytest.approx(stated, rel=0.01)
    assert spec not in LIMITED or max(found) <= DECODE_LIMIT


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_other_dtypes_and_long_prompts_in_splits_compile_without_spills(target):
    """Without tensor cores, fp32 needs more warps; a prompt beside few programs is split too."""
    module = ROOT / "generated" / "paged_decode_llama3.py"
    asked = [
        r for dtype in ("float16", "float32") for r in requests(module, target, dtype) if r.kernel == FORWARD
    ]
    asked += [replace(r, constexprs={**r.constexprs, "SPLIT": not r.constexprs["SPLIT"]}) for r in asked]
    assert [(r.error, r.spill_bytes) for r in compile_many(asked)] == [("", 0)] * 8


@pytest.mark.parametrize("spec", ["paged_decode_llama3", "mla_decode", "cascade_prefix"])
def test_merging_splits_needs_no_spills(spec):
    """Rows of 512 columns too, by twice as many warps."""
    reports = inspect_modules(
        [(ROOT / "generated" / f"{spec}.py", "bfloat16")],
        ["sm_80", "sm_90", "sm_100", "gfx942"],
        kernels=["_combine"],
    )
    assert [(r.compiled.error, r.compiled.spill_bytes) for r in reports] == [("", 0)] * 4


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("spec", PAGED)
def test_appending_and_counting_compile_without_spills(spec, target):
    """The kernel that writes new keys, rotated (NeoX and interleaved) or as they are, and the launch that counts tiles."""
    if (spec, target) in UNKNOWN_FORMATS:
        pytest.skip("no such format")
    found = requests(ROOT / "generated" / f"{spec}.py", target, "bfloat16")
    asked = [
        replace(r, constexprs={**r.constexprs, "ROTARY": rotary, "INTERLEAVED": interleaved})
        for r in found
        if r.kernel == "_append"
        for rotary, interleaved in ((0, False), (64, False), (64, True))
    ]
    asked += [
        replace(r, constexprs={**r.constexprs, "COUNT": True}) for r in found if "COUNT" in r.constexprs
    ]
    assert len(asked) >= 3
    reports = compile_many(asked)
    assert [(r.error, r.spill_bytes) for r in reports] == [("", 0)] * len(asked)


MOST_BYTES = 1.1  # per key, of what must be read


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("spec", PAGED)
def test_decode_reads_little_more_than_keys_values_scales_and_pages(spec, target):
    if (spec, target) in UNKNOWN_FORMATS:
        pytest.skip("no such format")
    _, decode = inspect_modules(
        [(ROOT / "generated" / f"{spec}.py", "bfloat16")], [target], kernels=[FORWARD]
    )
    assert all(1 <= loop.key_bytes / loop.least_key_bytes <= MOST_BYTES for loop in decode.loops)


LEAST = {"paged_decode_llama3": 512 + 4 / 16, "paged_gpt_oss": 256 + 4 / 16, "mla_decode": 1152 + 4 / 64}
LEAST |= {"paged_fp8": 256 + 4 / 16, "paged_int8": 256 + 8 + 4 / 32, "paged_int4": 128 + 8 + 4 / 32}


@pytest.mark.parametrize("spec", LEAST)
def test_what_must_be_read_of_a_key(spec):
    """Two bytes per column of K and V (one in 8 bits), fp32 scales per key and head, and the number of its page."""
    _, decode = inspect_modules(
        [(ROOT / "generated" / f"{spec}.py", "bfloat16")], ["sm_90"], kernels=[FORWARD]
    )
    assert {loop.least_key_bytes for loop in decode.loops} == {LEAST[spec]}


@pytest.mark.parametrize(("place", "head_dim"), [(0, 72), (1, 80), (2, 96)])
def test_head_dims_that_are_no_power_of_two_waste_little(place, head_dim):
    full = loops_of("phi2", "sm_90", head_dim=head_dim)["full"]
    stated = int(row("head dims 72, 80, 96")[0].split(",")[place])
    assert full.prediction.tflops_serial == pytest.approx(stated, rel=0.01)
    assert full.planned_flops > full.useful_flops or head_dim % 16 == 0


def forward_in_first_dtype(target: str, modules: list[Path]) -> list[KernelReport]:
    known = [module for module in modules if (module.stem, target) not in UNKNOWN_FORMATS]
    asked = [(module, dtypes_of(module)[0]) for module in known]
    return inspect_modules(asked, [target], kernels=FORWARDS)


def dtypes_of(module: Path) -> list[str]:
    return manifest(module)["compiled_in"]["dtypes"]


def assert_mfma_without_spills(target: str, modules: list[Path]) -> None:
    """Matrix instructions in every loop, and no vector register in memory."""
    reports = forward_in_first_dtype(target, modules)
    assert {r.module.stem: r.compiled.spill_bytes for r in reports if r.compiled.spill_bytes} == {}
    assert {r.module for r in reports} == set(modules)
    for loop in (loop for r in reports for loop in r.loops):
        assert loop.count.matrix
        assert all(shape.startswith("v_mfma") for shape in loop.count.matrix)


@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
def test_amd_has_no_spills_and_mfma_in_every_loop(target):
    assert_mfma_without_spills(target, [m for m in MODULES if m.stem in ("llama3_causal", "qwen2_gqa7")])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
def test_amd_has_no_spills_in_any_committed_kernel(target):
    assert_mfma_without_spills(target, MODULES)


def assert_spills_are_those_stated(target: str) -> None:
    """The README names each committed forward kernel that spills in its first dtype, and the bytes of a thread."""
    [stated] = re.findall(r"Of the committed forward kernels(?s:.)*?\n\n", README)
    of_specs = re.findall(r"`(\w+)` \(([^)]*)\)", stated)
    spills = {spec: dict(re.findall(r"(\w+): (\d+)", places)) for spec, places in of_specs}
    found: dict[str, int] = {}
    for r in forward_in_first_dtype(target, MODULES):  # keys in pages have a schedule for decode too
        found[r.module.stem] = max(r.compiled.spill_bytes, found.get(r.module.stem, 0))
    wanted = {spec: int(of[target]) for spec, of in spills.items() if target in of}
    assert {spec: n for spec, n in found.items() if n} == wanted


def assert_backward_spills_are_those_stated(target: str) -> None:
    """The README has a row for each GPU: of dq, and of dk and dv, which specs spill. No other kernel of the backward does."""
    [row] = re.findall(rf"(?m)^\| {target} \|(.*)\|(.*)\|$", README)
    kernels = ("_backward_dq", "_backward_dkdv")
    stated = {
        (kernel, spec): int(n)
        for kernel, cell in zip(kernels, row, strict=True)
        for spec, n in re.findall(r"`(\w+)` (\d+)", cell)
    }
    asked = [
        r
        for module in MODULES
        if "_backward_dq" in manifest(module)["kernels"]
        for r in requests(module, target, dtypes_of(module)[0])
        if r.kernel.startswith("_backward")
    ]
    found: dict[tuple[str, str], int] = {}
    for request, report in zip(asked, compile_many(asked), strict=True):
        assert report.error == "", request
        of = (request.kernel, Path(request.module).stem)
        found[of] = max(report.spill_bytes, found.get(of, 0))
    assert len({spec for _, spec in found}) >= 22
    assert {of: n for of, n in found.items() if n} == stated


def assert_spills_of_recurrences_are_those_stated(target: str) -> None:
    """Of all kernels of a recurrence's backward those of one spec spill, and no more than two of them."""
    [(spec, places)] = re.findall(r"`(\w+)`'s dq / dk spill \(([^)]*)\)", README)
    stated = re.findall(rf"{target}: (\d+) / (\d+)", places)
    kernels = ("_backward_queries", "_backward_keys")
    wanted = {(spec, kernel, int(n)) for kernel, n in zip(kernels, *stated, strict=True)} if stated else set()
    modules = [m for m in MODULES if "_backward_queries" in manifest(m)["kernels"]]
    assert {m.stem for m in modules} >= {"gla", "deltanet", "gated_deltanet", "retnet", "mamba2_2p7b"}
    asked = [r for m in modules for r in requests(m, target, dtypes_of(m)[0]) if r.kernel not in FORWARDS]
    found = [(Path(q.module).stem, r) for q, r in zip(asked, compile_many(asked), strict=True)]
    assert [r.error for _, r in found if not r.ok] == []
    assert {(stem, r.kernel, r.spill_bytes) for stem, r in found if r.spill_bytes} == wanted


def assert_products_are_as_planned(target: str, dtypes: int | None = None) -> None:
    """The machine code of each loop does the FLOPs of the plan, no more and no less, in all dtypes of all modules, forward
    and backward, by matrix instructions or by FMAs. Planned repeats are those that the README states. Each loop has its role.
    """
    modules = [m for m in MODULES if (m.stem, target) not in UNKNOWN_FORMATS]
    reports = inspect_modules([(m, dtype) for m in modules for dtype in dtypes_of(m)[:dtypes]], [target])
    assert [r.compiled.error or r.failure for r in reports if not r.compiled.ok or r.failure] == []
    loops = [(r.module.stem, r.dtype, r.name, loop) for r in reports for loop in r.loops]
    assert [
        (*of, x.role, x.found_flops / (x.planned_flops or 1))
        for *of, x in loops
        if x.found_flops != x.planned_flops
    ] == []
    repeated = {
        (spec, target, f"{x.planned_flops / (x.planned_flops - x.repeated_flops):.2f}")
        for spec, *_, x in loops
        if x.repeated_flops
    }
    assert repeated == {stated for stated in REPEATED if stated[1] == target}
    assert_roles(reports)


# Of the README: `spec` on GPU does N times ...
REPEATED = set(re.findall(r"`(\w+)` on (\w+) does ([\d.]+)\s+times", README))
[(_targets, _times, _specs)] = re.findall(
    r"on (gfx942 and gfx950) ([\d.]+) times of all products, for\n(.*)\.\n", README
)
REPEATED |= {
    (spec, target, _times) for spec in re.findall(r"`(\w+)`", _specs) for target in _targets.split(" and ")
}
# Of the table of recurrences: a row of specs, a column of GPUs, in a cell how many times
[_head, _body] = re.findall(r"\n\| recurrences that repeat \|(.*)\|\n\|[-| ]*\|\n((?:\|.*\n)+)", README)[0]
for _line in _body.splitlines():
    _specs, *_cells = _line.strip("|").split("|")
    REPEATED |= {
        (spec, target.strip(), times.strip())
        for spec in re.findall(r"`(\w+)`", _specs)
        for target, cell in zip(_head.split("|"), _cells, strict=True)
        for times in cell.split(",")
        if times.strip()
    }
ROLES = {
    FORWARD: {("full", "partial"), ("partial",)},
    "_backward_dq": {("dq full", "dq partial"), ("dq partial",), ("dq merged",)},
    "_backward_dkdv": {("dkdv full", "dkdv partial"), ("dkdv partial",), ("dkdv merged",)},
}


def assert_roles(reports: list[KernelReport]) -> None:
    """Each kernel has the loops that its manifest describes, or those that its schedule leaves of them."""
    found = {(r.module.stem, r.name, tuple(x.role for x in r.loops)) for r in reports if r.name in ROLES}
    # a neighbourhood of 7 x 7 is at most two tiles of 128 keys, which sm_100's compiler runs without a loop
    unlooped = ("natten_2d", FORWARD, ())
    assert {of for of in found - {unlooped} if of[2] not in ROLES[of[1]]} == set()
    described = {
        (m.stem, name)
        for m in MODULES
        if m.stem in {of[0] for of in found}
        for name in manifest(m)["kernels"]
        if name in ROLES
    }
    assert {of[:2] for of in found} == described


def test_products_found_are_those_of_the_plan():
    assert_products_are_as_planned("sm_90", dtypes=1)


LOOPS = {  # columns of the table of recurrences: a kernel and its loops
    "chunk states": ("_chunk_states", ["chunk state"]),
    "reading": ("_read", ["below", "diagonal"]),
    "dq": ("_backward_queries", ["queries far", "queries diagonal"]),
    "dk": ("_backward_keys", ["keys far", "keys diagonal"]),
    "dv": ("_backward_values", ["values far", "values diagonal"]),
}


@pytest.mark.parametrize("target", ["sm_90", "sm_80", "gfx942"])
@pytest.mark.parametrize("spec", ["mamba2_2p7b", "nemotron_h", "retnet", "gla"])
def test_instructions_of_recurrences(spec, target):
    """As the README states them; a loop that the compiler unrolls has none, and is no number there."""
    [stated] = re.findall(rf"^\| `{spec}`, {target} \|(.*)\|$", README, re.MULTILINE)
    reports = {r.name: r for r in inspect_modules([(ROOT / f"generated/{spec}.py", "bfloat16")], [target])}
    for cell, (kernel, roles) in zip(stated.split("|"), LOOPS.values(), strict=True):
        # where columns decay, the program's own tokens are read in blocks: those `near` a query or key
        of_kernel = reports[kernel].loops if kernel in reports else ()
        loops = {x.role.replace(" near", " diagonal"): x for x in of_kernel}
        wanted = [n.strip() for n in cell.split("/")] if cell.strip() else []
        found = [f"{loops[r].prediction.issue_per_1k_tensor:.0f}" if r in loops else "-" for r in roles]
        assert [n == "-" for n in found] == [n == "-" for n in wanted] or not loops
        numbers = ([float(n) for n in cells if n != "-"] for cells in (found, wanted))
        assert next(numbers) == pytest.approx(next(numbers), rel=0.01)


def test_a_second_inspection_is_instant():
    """Of all committed kernels: 3 s on two cores are stated; this process has no child that could take more."""
    asked = [(m, dtypes_of(m)[0]) for m in MODULES]
    first = inspect_modules(asked, ["sm_90"])
    started = time.process_time()
    second = inspect_modules(asked, ["sm_90"])
    assert time.process_time() - started < 2
    assert [r.compiled.error or r.failure for r in (*first, *second) if not r.compiled.ok or r.failure] == []
    assert all(r.compiled.cached for r in second)
    assert len(second) > 150
    flops, again = ([[x.found_flops for x in r.loops] for r in reports] for reports in (first, second))
    assert flops == again


@pytest.mark.slow
def test_products_found_in_all_dtypes_are_those_of_the_plan():
    assert_products_are_as_planned("sm_90")


# Backward kernels of causal attention: instructions per 1000 tensor clocks that must be reached, full and partial tiles.
# Where one loop runs both (sm_90), partial tiles take its longest way.
BACKWARD = [
    ("sm_90", "llama3_causal", {}, {"dq": (276, 425), "dkdv": (364, 497)}),
    ("sm_90", "qwen2_gqa7", {}, {"dq": (497, 786), "dkdv": (607, 869)}),
    ("sm_90", "llama3_causal", {"head_dim": 256}, {"dq": (329, 600), "dkdv": (600, 600)}),
    ("sm_90", "mla_absorbed", {}, {"dq": (983, 1010), "dkdv": (368, 394)}),
    ("sm_80", "mla_absorbed", {}, {"dq": (445, 565), "dkdv": (571, 583)}),
    ("sm_80", "llama3_causal", {}, {"dq": (322, 409), "dkdv": (367, 438)}),
    ("sm_80", "qwen2_gqa7", {}, {"dq": (406, 551), "dkdv": (403, 530)}),
    ("sm_90", "gpt2_dropout", {}, {"dq": (1190, 1365), "dkdv": (1170, 1336)}),
    ("sm_90", "gpt2_dropout", {"head_dim": 128}, {"dq": (682, 773), "dkdv": (854, 930)}),
    ("sm_80", "gpt2_dropout", {}, {"dq": (837, 944), "dkdv": (973, 1096)}),
    ("sm_80", "gpt2_dropout", {"head_dim": 128}, {"dq": (609, 667), "dkdv": (600, 666)}),
]


def backward_of(spec: str, target: str, **changes: object) -> list[KernelReport]:
    text = yaml.safe_load((ROOT / "specs" / f"{spec}.yaml").read_text())
    module = generate_to_cache(load_spec({**text, **changes}))
    reports = inspect_modules([(module, "bfloat16")], [target], kernels=["_backward_dq", "_backward_dkdv"])
    assert [(r.compiled.error, r.compiled.spill_bytes) for r in reports] == [("", 0)] * len(reports)
    return reports


@pytest.mark.parametrize(("target", "spec", "changes", "limits"), BACKWARD)
def test_backward_instructions_per_tensor_clock(target, spec, changes, limits):
    over = []
    for loop in (loop for report in backward_of(spec, target, **changes) for loop in report.loops):
        kernel, kind = loop.role.split()
        full, partial = limits[kernel]
        rate = loop.prediction.issue_per_1k_tensor
        most = rate * loop.count.most_instructions / loop.count.instructions
        found = {"full": (rate, 0.0), "partial": (0.0, rate), "merged": (rate, most)}[kind]
        over += [(loop.role, found)] if found[0] > 1.05 * full or found[1] > 1.05 * partial else []
    assert over == []


@pytest.mark.parametrize("target", ["sm_100", "gfx942"])
@pytest.mark.parametrize("spec", ["llama3_causal", "qwen2_gqa7", "gpt2_dropout"])
def test_backward_has_no_spills_and_matrix_work_in_every_loop(target, spec):
    loops = [loop for report in backward_of(spec, target) for loop in report.loops]
    assert [loop.role for loop in loops] == ["dq full", "dq partial", "dkdv full", "dkdv partial"]
    assert all(loop.count.matrix for loop in loops)
    assert [(loop.found_flops - loop.planned_flops, loop.repeated_flops) for loop in loops] == [(0, 0)] * 4


@pytest.mark.parametrize(
    ("spec", "changes"),
    [("gpt_oss_sinks", {}), ("gpt2_dropout", {"head_dim": 128}), ("document_packed", {}), ("alibi", {})],
)
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_more_of_causal_attention_has_no_spills(target, spec, changes):
    backward_of(spec, target, **changes)


@pytest.mark.parametrize("spec", ["alibi", "additive_bias"])
def test_scores_that_read_tensors_have_no_spills(spec):
    backward_of(spec, "sm_90")


def test_spills_are_those_stated():
    assert_spills_are_those_stated("sm_90")
    assert_backward_spills_are_those_stated("sm_90")
    assert_spills_of_recurrences_are_those_stated("sm_90")


ELSEWHERE = ["sm_80", "sm_89", "sm_100", "sm_120", "gfx942", "gfx950"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ELSEWHERE)
def test_products_found_elsewhere_are_those_of_the_plan(target):
    assert_products_are_as_planned(target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ELSEWHERE)
def test_spills_elsewhere_are_those_stated(target):
    assert_spills_are_those_stated(target)
    assert_backward_spills_are_those_stated(target)
    assert_spills_of_recurrences_are_those_stated(target)
