"""How often layouts have products computed: texts of Triton's IR by eye, and compiled kernels against their machine code."""

from pathlib import Path

import pytest

from attngen.errors import InternalError
from attngen.inspect.layouts import Dot, dots, one_turn, shares
from attngen.inspect.loops import matrix_loops
from attngen.inspect.report import disassembled
from attngen.target.compile import compile_kernel
from attngen.target.facts import target
from tests.inspect.write_listings import KERNELS, request

# two groups of four warps along 64 rows (wgmma: 16 rows a warp), and one beside the other
TTGIR = """\
#blocked = #ttg.blocked<{sizePerThread = [2, 2], threadsPerWarp = [4, 8], warpsPerCTA = [4, 1], order = [1, 0]}>
#mma = #ttg.nvidia_mma<{versionMajor = 3, warpsPerCTA = [8, 1], instrShape = [16, 16, 16]}>
#mma1 = #ttg.nvidia_mma<{versionMajor = 3, warpsPerCTA = [4, 2], instrShape = [16, 256, 16]}>
#wide = #ttg.amd_mfma<{version = 3, warpsPerCTA = [2, 2], instrShape = [32, 32, 8], isTransposed = true}>
#loc = loc("/somewhere/module.py":7:0)
module {
  tt.func @kernel() {
    %before = BEFORE loc(#loc2)
    %0:2 = scf.for %i = %a to %b step %c iter_args(%x = %y) -> (tensor<64x512xf32, #mma1>)  : i32 {
      %1 = scf.if %p -> (i32) {
        scf.yield %c : i32 loc(#loc)
      } else {
        scf.yield %i : i32 loc(#loc)
      } loc(#loc)
      %2 = INSIDE loc(#loc3)
      scf.yield %2 : tensor<64x512xf32, #mma1> loc(#loc)
    } loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
#loc1 = loc("/somewhere/module.py":20:8)
#loc2 = loc("qk"(#loc1))
#loc3 = loc(callsite(#loc2 at #loc))
"""
WGMMA = (
    "ttng.warp_group_dot %q, %k, %z {isAsync = true} : !ttg.memdesc<64x512xbf16, #shared, #smem> * "
    "!ttg.memdesc<512x32xbf16, #shared1, #smem, mutable> -> tensor<64x32xf32, #mma>"
)
OPERANDS = (
    "tensor<AxKxbf16, #ttg.dot_op<{opIdx = 0, parent = #x}>> * tensor<KxBxbf16, #ttg.dot_op<{opIdx = 1}>>"
)


def dot(rows, columns, layout, depth=32):
    operands = OPERANDS.replace("A", str(rows)).replace("B", str(columns)).replace("K", str(depth))
    return (
        f"tt.dot %p, %v, %acc, inputPrecision = tf32 : {operands} -> tensor<{rows}x{columns}xf32, #{layout}>"
    )


def read(inside, before="arith.constant 0 : i32"):
    return dots(TTGIR.replace("INSIDE", inside).replace("BEFORE", before))


@pytest.mark.parametrize(
    ("product", "flops", "repeats"),
    [
        (WGMMA, 2 * 64 * 512 * 32, 2),
        (dot(64, 512, "mma1"), 2 * 64 * 512 * 32, 1),
        # 64 x 64 by the warps, of a tile of 32 x 32
        (dot(32, 32, "wide"), 2 * 32 * 32 * 32, 4),
        (dot(64, 32, "wide"), 2 * 64 * 32 * 32, 2),
        # 32 x 16 by the threads: 2 x 2 of each, 4 x 8 in a warp, 4 warps along rows
        (dot(16, 16, "blocked"), 2 * 16 * 16 * 32, 2),
        (dot(32, 16, "blocked"), 2 * 32 * 16 * 32, 1),
        (
            "ttng.tc_gen5_mma %q, %k, %d, %u, %v {is_async} : !ttg.memdesc<128x256xbf16, #shared, #smem>, "
            "!ttg.memdesc<256x64xbf16, #shared1, #smem, mutable>, !ttg.memdesc<128x64xf32, #tmem, #ttng.tensor_memory, "
            "mutable>, !ttg.memdesc<1xi64, #shared2, #smem, mutable>",
            2 * 128 * 64 * 256,
            1,
        ),
    ],
)
def test_a_product_has_its_flops_its_line_and_its_repeats(product, flops, repeats):
    [found] = read(product)
    assert (found.flops, found.repeats, found.source) == (flops, repeats, ("module.py", 20))


def test_a_copy_before_the_loop_is_not_in_a_turn():
    before, inside = read(WGMMA, before=WGMMA)
    assert before.loop is None
    assert inside.loop is not None
    assert one_turn([before, inside], "module.py", 19, 21) == [inside]
    assert one_turn([before, inside], "module.py", 21, 22) == one_turn([inside], "other.py", 19, 21) == []


def test_of_the_loops_of_one_source_loop_the_one_with_most_work_is_the_turn():
    rest, body = Dot(("f", 3), 8, 1, 10), Dot(("f", 3), 16, 1, 20)
    assert one_turn([rest, body], "f", 1, 5) == [body]


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (dot(64, 32, "linear"), "the layout of a product is not known: tensor<64x32xbf16"),
        ("tt.dot %a, %b, %c : !tt.ptr<f32>", "the shapes of a product are not known: !tt.ptr<f32>"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_ours(product, message):
    with pytest.raises(InternalError, match=message):
        read(product)


def test_a_product_without_a_place_is_of_no_loop():
    text = TTGIR.replace("INSIDE", WGMMA).replace('"/somewhere/module.py":20:8', "unknown")
    assert [d.source for d in dots(text)] == [("", 0)]


@pytest.mark.parametrize(
    ("goal", "block", "dtype", "num_warps", "repeats"),
    [
        ("sm_80", 64, "bf16", 4, 1),
        ("sm_80", 16, "bf16", 4, 2),  # two pieces of 16 x 8 for four warps
        ("sm_80", 16, "fp32", 8, 1),  # an element for each of 256 threads
        ("sm_80", 16, "fp32", 16, 2),
        ("sm_90", 64, "bf16", 8, 1),  # the second group of warps takes half of the columns
        ("sm_100", 64, "bf16", 4, 1),
        ("gfx942", 16, "bf16", 4, 4),
        ("gfx942", 32, "bf16", 8, 8),
    ],
)
def test_the_machine_code_multiplies_as_often_as_the_layout_says(
    tmp_path, monkeypatch, goal, block, dtype, num_warps, repeats
):
    pytest.importorskip("triton")
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path))
    report = compile_kernel(request("matmul", goal, block=block, dtype=dtype, num_warps=num_warps))
    found = dots(Path(report.artifacts["ttgir"]).read_text())
    lines = {d.source for d in found}
    assert [KERNELS.read_text().splitlines()[line - 1].split()[:3] for _, line in lines] == [
        ["acc", "=", "tl.dot(a,"]
    ]
    [turn] = [one_turn(found, file, line, line) for file, line in lines]
    assert [(d.flops, d.repeats) for d in turn] == [(2 * block**3, repeats)]
    isa = "amd" if goal.startswith("gfx") else "sass"
    lanes = target(goal).warp_size
    [loop] = matrix_loops(
        disassembled(report), isa, num_warps=num_warps, lanes=lanes, wanted=lines.__contains__
    )
    assert loop.all_flops == repeats * 2 * block**3


SHARED = {  # tensor of pointers, and what is left where lanes of a warp that share an element ask once
    "!tt.ptr<i32>": 1 / 32,
    "tensor<128x32x!tt.ptr<bf16>, #blocked>": 1.0,
    "tensor<128x!tt.ptr<i32>, #ttg.slice<{dim = 1, parent = #blocked}>>": 1 / 8,
    "tensor<128x!tt.ptr<i32>, #ttg.slice<{dim = 0, parent = #blocked}>>": 1 / 4,
    "tensor<2x!tt.ptr<i32>, #ttg.slice<{dim = 1, parent = #blocked}>>": 1 / 32,  # less than a warp covers
    "tensor<128x!tt.ptr<f32>, #ttg.slice<{dim = 0, parent = #mma}>>": 1 / 8,
    "tensor<64x!tt.ptr<f32>, #ttg.slice<{dim = 1, parent = #mma1}>>": 1 / 4,
    "tensor<64x!tt.ptr<f32>, #ttg.slice<{dim = 0, parent = #unknown}>>": 1.0,
}


@pytest.mark.parametrize("pointers", SHARED)
def test_lanes_that_share_an_element_ask_once(pointers):
    text = TTGIR.replace("INSIDE", f"tt.load %p, %m : {pointers}").replace("BEFORE", "arith.constant 0 : i32")
    assert shares(text) == {("module.py", 20): SHARED[pointers]}


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((16, 16, 16), 1 / 4, 1 / 16), ((32, 32, 8), 1 / 2, 1 / 32)]
)
def test_lanes_of_amd_share_elements(shape, rows, columns):
    text = TTGIR.replace("[32, 32, 8]", str(list(shape))).replace("BEFORE", "arith.constant 0 : i32")
    text = text.replace("module {", 'module attributes {"ttg.threads-per-warp" = 64 : i32} {')
    for dim, left in ((1, rows), (0, columns)):
        pointers = f"tensor<64x!tt.ptr<f32>, #ttg.slice<{{dim = {dim}, parent = #wide}}>>"
        assert shares(text.replace("INSIDE", f"tt.load %p : {pointers}")) == {("module.py", 20): left}


def test_loads_of_one_line_count_by_what_their_threads_ask():
    """128 numbers by 4 lanes apart of 32, one each, twice a thread; and one number by all lanes."""
    both = "tt.load %p : tensor<16x!tt.ptr<i32>, #ttg.slice<{dim = 1, parent = #blocked}>> loc(#loc3)\n      %3 = "
    text = TTGIR.replace("INSIDE", f"{both}tt.load %p : !tt.ptr<i32>").replace(
        "BEFORE", "arith.constant 0 : i32"
    )
    assert shares(text) == {("module.py", 20): (2 * 4 + 1) / (2 * 32 + 32)}


def test_copies_to_shared_memory_are_loads():
    copy = "ttg.async_copy_global_to_local %p, %s mask %m : tensor<64x8x!tt.ptr<bf16>, #blocked> -> <64x8xbf16, #shared>"
    text = TTGIR.replace("INSIDE", copy).replace("BEFORE", "arith.constant 0 : i32")
    assert shares(text) == {("module.py", 20): 0.5}  # 8 columns are 4 lanes of 8
