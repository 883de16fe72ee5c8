"""Source loops by their `for`, and the work that a manifest describes."""

import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attngen.errors import InternalError, UserError
from attngen.inspect import report as inspection
from attngen.inspect.report import disassembled, inspect_modules
from attngen.inspect.roles import Work, loop_of, source_loops

MODULE = """\
import json
import triton
import triton.language as tl

MANIFEST = json.loads(r\"\"\"
{manifest}
\"\"\")


@triton.jit
def helper(x):
    for step in tl.static_range(2):
        x += step
    return x


@triton.jit
def _attention_forward(q, k, out, stride_qs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows, keys = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, stride_qs, 4 * BLOCK_N):
        scale = tl.load(out + start)
        for n in range(start, start + 4 * BLOCK_N, BLOCK_N):
            tile_q = tl.load(q + rows[:, None] * stride_qs + n + keys[None, :])
            tile_k = tl.load(k + (n + keys[:, None]) * BLOCK_N + keys[None, :])
            total = tl.dot(tile_q, tile_k, total, input_precision="ieee") * scale
    for row in range(0, stride_qs):
        tl.store(out + row, helper(1.0))
    tl.store(out + rows[:, None] * BLOCK_N + keys[None, :], total)
"""
OUTER, INNER, AFTER = (
    21,
    23,
    27,
)  # lines of `for` in the module below, which starts with a manifest of one line


def described(role, products=(), loads=()):
    return {"role": role, "node": role + "_node", "products": list(products), "loads": list(loads)}


LOOPS = [
    described("outer"),
    described(
        "full",
        [
            {"tile": ["BLOCK_M", "BLOCK_N"], "columns": 80, "padded": 128},
            {"tile": ["BLOCK_M", "BLOCK_N"], "columns": 96, "padded": 128},
        ],
        [{"tile": ["BLOCK_N"], "columns": 80, "padded": 128}, {"tile": [], "columns": 1, "padded": 1}],
    ),
    described("after"),
]


def module(tmp_path, loops=LOOPS):
    """A module with one kernel of three loops, two of them nested, and a manifest on one line."""
    kernel = {
        "arguments": {"q": "*io", "k": "*io", "out": "*fp32", "stride_qs": "i32"},
        "constants": ["BLOCK_M", "BLOCK_N"],
    }
    if loops is not None:
        kernel["loops"] = loops
    config = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
    manifest = {"kernels": {"_attention_forward": kernel}, "configs": {"default": [config]}}
    path = tmp_path / "module.py"
    path.write_text(MODULE.format(manifest=json.dumps(manifest)))
    return path


def of(path, sizes=None, element_bytes=2):
    return source_loops(path, "_attention_forward", sizes or {"BLOCK_M": 64, "BLOCK_N": 32}, element_bytes)


def test_loops_of_a_kernel_are_its_for_statements_in_order(tmp_path):
    path = module(tmp_path)
    found = of(path)
    assert [(x.work.role, x.first, x.last) for x in found] == [
        ("outer", OUTER, OUTER + 5),
        ("full", INNER, INNER + 3),
        ("after", AFTER, AFTER + 1),
    ]
    lines = path.read_text().splitlines()
    assert [lines[x.first - 1].split()[:2] for x in found] == [["for", "start"], ["for", "n"], ["for", "row"]]


def test_work_is_products_and_loads_of_a_tile(tmp_path):
    _, full, after = (x.work for x in of(module(tmp_path)))
    assert full == Work(
        role="full",
        node="full_node",
        useful_flops=2 * 64 * 32 * (80 + 96),
        padded_flops=2 * 64 * 32 * (128 + 128),
        load_bytes=(32 * 128 + 1) * 2,
    )
    assert (after.useful_flops, after.load_bytes) == (0, 0)


@pytest.mark.parametrize(("precision", "passes"), [("ieee", 1), ("tf32", 1), ("tf32x3", 3)])
def test_products_are_planned_as_often_as_their_precision_asks(tmp_path, precision, passes):
    path = module(tmp_path)
    told = path.read_text().replace(
        '{"kernels"', f'{{"compiled_in": {{"precision": "{precision}"}}, "kernels"', 1
    )
    path.write_text(told)
    half, single = (of(path, element_bytes=size)[1].work for size in (2, 4))
    assert half.padded_flops == 2 * 64 * 32 * (128 + 128)
    assert single.padded_flops == passes * half.padded_flops
    assert single.useful_flops == half.useful_flops == 2 * 64 * 32 * (80 + 96)


@pytest.mark.parametrize(
    ("wanted", "columns"),
    [
        ({}, 32 + 64 + 128 + 256),
        ({"WANT_DK": True, "WANT_DV": False}, 32 + 64 + 128),
        ({"WANT_DK": False}, 32 + 256),
    ],
)
def test_a_launch_for_one_gradient_leaves_products_out(tmp_path, wanted, columns):
    widths = {"qk": 32, "dp": 64, "dk": 128, "dv": 256}
    flags = {"dp": "WANT_DK", "dk": "WANT_DK", "dv": "WANT_DV"}
    products = [
        {"node": node, "tile": ["BLOCK_M"], "columns": width, "padded": width, "when": flags.get(node, "")}
        for node, width in widths.items()
    ]
    path = module(tmp_path, [LOOPS[0], described("dkdv full", products), LOOPS[2]])
    assert of(path, {"BLOCK_M": 16, **wanted})[1].work.useful_flops == 2 * 16 * columns


@pytest.mark.parametrize(("loops", "count"), [(LOOPS[:2], 2), ([*LOOPS, LOOPS[0]], 4), (None, 0)])
def test_a_manifest_of_other_loops_is_an_error_of_ours(tmp_path, loops, count):
    with pytest.raises(InternalError, match=rf"describes {count} loops of _attention_forward, not 3"):
        of(module(tmp_path, loops))


def role_of(tmp_path, sources):
    found = loop_of(sources, "module.py", of(module(tmp_path)))
    return found and found.work.role


def test_the_loop_of_instructions_is_the_one_around_their_lines(tmp_path):
    def here(line):
        return "module.py", line

    assert role_of(tmp_path, {here(INNER + 1): 3, here(AFTER + 1): 2}) == "full"
    assert role_of(tmp_path, {here(INNER + 1): 2, here(AFTER + 1): 3}) == "after"
    # a few instructions of the outer loop's lines, as of its counter, do not make an inner loop the outer one
    assert role_of(tmp_path, {here(OUTER): 1, here(INNER + 3): 20}) == "full"
    assert role_of(tmp_path, {here(OUTER + 1): 20, here(INNER + 3): 1}) == "outer"


def test_lines_of_other_files_and_outside_loops_do_not_count(tmp_path):
    helpers = {("standard.py", AFTER + 1): 99, ("module.py", OUTER - 1): 50}
    assert role_of(tmp_path, helpers | {("module.py", INNER + 1): 1}) == "full"
    assert role_of(tmp_path, helpers) is None
    assert role_of(tmp_path, {}) is None


def test_compiled_loops_have_the_role_of_their_source(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path / "cache"))
    modules = [(module(tmp_path), "bfloat16")]
    (report,) = inspect_modules(modules, ["sm_80"])
    assert report.compiled.ok
    (loop,) = report.loops
    assert (loop.role, loop.node, loop.line) == ("full", "full_node", INNER)
    assert (loop.useful_flops, loop.planned_flops) == (2 * 64 * 64 * 176, 2 * 64 * 64 * 256)
    assert loop.found_flops == 2 * 64 * 64 * 64
    assert loop.bytes_per_flop == 2 * 64 * 64 * 2 / loop.useful_flops

    # without matrix instructions (fp32 on NVIDIA) a loop is found by the lines of its products, described or not
    (by_fma,) = inspect_modules([(modules[0][0], "float32")], ["sm_80"])
    assert [(x.role, dict(x.count.matrix), x.found_flops) for x in by_fma.loops] == [("full", {}, 2 * 64**3)]
    nothing = module(tmp_path, [described(role) for role in ("outer", "full", "after")])
    (report,) = inspect_modules([(nothing, "float32")], ["sm_80"])
    assert [(x.role, x.planned_flops, x.useful_flops) for x in report.loops] == [("", 0, 2 * 64**3)]
    module(tmp_path)

    # what does not fit is a row that says so
    large = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 16}
    (report,) = inspect_modules(modules, ["sm_80"], config=large)
    assert (report.compiled.ok, report.loops, report.code_bytes) == (False, (), 0)
    assert report.compiled.error == "needs 245760 bytes of shared memory; sm_80 has 166912 per CTA"
    assert report.config == large


def test_code_that_cannot_be_read_costs_its_own_report_only(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path / "cache"))

    def failing(error):
        def read(compiled):
            if compiled.target == "sm_80":
                raise error
            return disassembled(compiled)

        monkeypatch.setattr(inspection, "disassembled", read)
        return inspect_modules([(module(tmp_path), "bfloat16")], ["sm_80", "sm_89"])

    bug = ZeroDivisionError("division by zero")
    broken, good = failing(bug)
    assert (broken.compiled.ok, broken.loops, broken.failure) == (True, (), bug)
    assert ([x.role for x in good.loops], good.failure) == (["full"], None)
    with pytest.raises(UserError, match="no tool"):  # the next report would lack it too
        failing(UserError("no tool"))


def test_modules_are_read_by_several_threads_at_once():
    """Python's parser is not safe where a garbage collection lets another thread in: every report of a busy machine counts."""
    module = Path(__file__).parents[2] / "generated" / "t5_bias.py"
    sizes = {"BLOCK_M": 64, "BLOCK_N": 32}

    def read(_: int) -> int:
        return len(source_loops(module, "_backward_dq", sizes, 2))

    def yields(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.callbacks.append(yields)
    gc.set_threshold(100, 2, 2)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = set(threads.map(read, range(200)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(yields)
    assert len(found) == 1
