"""Loops of our own kernels, compiled and committed as listings, against what one counts in them by eye.

A kernel that changes, or a new compiler, needs `python -m tests.inspect.write_listings` and new counts here.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from attngen.inspect.assembly import parse_amd, parse_sass
from attngen.inspect.flow import flow, natural_loops
from attngen.inspect.loops import matrix_loops
from attngen.target.compile import compile_kernel
from tests.inspect.write_listings import KERNELS, LISTINGS, REQUESTS, listing, request

LINES = KERNELS.read_text().splitlines()
DOT = {("kernels.py", n) for n, line in enumerate(LINES, 1) if "tl.dot(" in line}
PINNED = (Path(__file__).parents[2] / "constraints.txt").read_text()


def parsed(name, text=None):
    text = text or (LISTINGS / name).read_text()
    return (parse_amd if name.endswith(".s") else parse_sass)(text, REQUESTS[name].kernel)


def counted(name, text=None, num_warps=None):
    amd = name.endswith(".s")
    return matrix_loops(
        parsed(name, text),
        "amd" if amd else "sass",
        num_warps=num_warps or REQUESTS[name].num_warps,
        lanes=64 if amd else 32,
        wanted=DOT.__contains__,
    )


def only(name):
    (loop,) = counted(name)
    return loop


def headers(name):
    """The first instruction of each natural loop, and how many blocks the loop has."""
    found = flow(parsed(name))
    return [(found.blocks[x.header][0].op, len(x.blocks)) for x in natural_loops(found)]


def statements(loop):
    """The source lines of a loop."""
    return {LINES[line - 1].strip() for file, line in loop.sources if file == "kernels.py"}


MATMUL = {
    "for k in range(0, K, BLOCK):",
    "a = tl.load(a_ptr + r[:, None] * K + k + r[None, :])",
    "b = tl.load(b_ptr + (k + r[:, None]) * BLOCK + r[None, :])",
    "acc = tl.dot(a, b, acc, input_precision=PRECISION)",
}
TILE = 64 * 64 * 2  # bytes of a 64 x 64 tile of bf16


def test_a_product_on_sm_80():
    loop = only("matmul_sm80.sass")
    assert headers("matmul_sm80.sass") == [("DEPBAR.LE", 1)]
    # 64 x 64 x 64 in pieces of 16 x 8 x 16: 4 * 8 * 4 = 128, by 4 warps
    assert loop.matrix == {"HMMA.16816.F32.BF16": 32}
    assert loop.flops == {"16": 2 * 64 * 64 * 64}
    assert loop.warp_wide
    # both tiles come by cp.async, 16 bytes a thread at a time: 8; a padding `@!PT LDS` and LDGDEPBAR load nothing
    assert loop.kinds["global"] == 8
    assert loop.global_bytes * 4 == 2 * TILE
    assert loop.kinds["shared"] == loop.ops["LDSM"] == 16
    assert loop.shared_bytes == 16 * 512
    # two BAR; DEPBAR and two LDGDEPBAR; three NOP and the jump
    assert (loop.kinds["barrier"], loop.kinds["wait"], loop.kinds["other"]) == (2, 3, 4)
    # IMAD.WIDE for the addresses of A; ISETP 2, IADD3 5, LEA 8
    assert (loop.kinds["fma"], loop.kinds["alu"]) == (4, 15)
    assert loop.instructions == 84 == sum(loop.kinds.values())
    assert statements(loop) == MATMUL


def test_a_product_on_sm_90():
    loop = only("matmul_sm90.sass")
    assert headers("matmul_sm90.sass") == [("DEPBAR.LE", 1)]
    assert loop.matrix == {"HGMMA.64x64x16.F32.BF16": 4}
    assert loop.flops == {"16": 2 * 64 * 64 * 64}
    assert not loop.warp_wide
    # operands come from shared memory by themselves; what looks like LDS is padding
    assert (loop.kinds["shared"], loop.shared_bytes) == (0, 0)
    assert loop.kinds["global"] == 8
    assert loop.global_bytes * 4 == 2 * TILE
    # two BAR, MEMBAR, FENCE, WARPGROUP.ARRIVE; DEPBAR, WARPGROUP.DEPBAR, two LDGDEPBAR
    assert (loop.kinds["barrier"], loop.kinds["wait"]) == (5, 4)
    # UIADD3 11, UMOV 4, and two each of UISETP, USEL, ULEA, USHF, USGXT
    assert loop.kinds["scalar"] == 25
    assert loop.instructions == 74 == sum(loop.kinds.values())
    assert statements(loop) == MATMUL


def test_a_product_on_sm_100_is_issued_by_one_thread_on_a_side_of_a_branch():
    # the allocation of tensor memory, the loop, its wait, the wait after it: the waits are out of line
    assert headers("matmul_sm100.sass") == [
        ("NANOSLEEP", 1),
        ("DEPBAR.LE", 6),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", 1),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", 1),
    ]
    loop = only("matmul_sm100.sass")
    assert loop.matrix == {"UTCHMMA.64x64x16": 4}
    assert loop.flops == {"16": 2 * 64 * 64 * 64}
    # blocks from 0c70, 0d60 (the side with the product), 0f30, 0f70: 15 + 29 + 4 + 43 instructions, and no wait
    assert loop.instructions == 91
    assert [i.op for i in loop.code].count("SYNCS.PHASECHK.TRANS64.TRYWAIT") == 1
    assert loop.global_bytes * 4 == 2 * TILE
    assert loop.kinds["shared"] == 0
    assert statements(loop) == MATMUL


def test_a_product_on_gfx942():
    loop = only("matmul_gfx942.s")
    assert headers("matmul_gfx942.s") == [("s_add_i32", 1)]
    # one wave: 32 x 32 x 32 in pieces of 32 x 32 x 8
    assert loop.matrix == {"v_mfma_f32_32x32x8_bf16": 4}
    assert loop.flops == {"16": 2 * 32 * 32 * 32}
    assert loop.warp_wide
    # two tiles of 32 x 32 bf16, 16 bytes a lane: 4 loads
    assert loop.kinds["global"] == 4
    assert loop.global_bytes == 2 * 32 * 32 * 2
    # read 8 ds_read_b64, written 2 ds_write2st64_b64 and 4 ds_write2_b32: each tile once out and once in
    assert loop.kinds["shared"] == 14
    assert loop.shared_bytes == 4 * 32 * 32 * 2
    # s_add, s_ashr, s_lshl, s_cmp; s_cbranch
    assert (loop.kinds["scalar"], loop.kinds["other"]) == (4, 1)
    assert statements(loop) == MATMUL


def test_a_product_without_matrix_instructions_is_found_by_its_line():
    loop = only("fp32_sm80.sass")
    assert headers("fp32_sm80.sass") == [("DEPBAR.LE", 1)]
    assert loop.matrix == loop.flops == {}
    # 16 x 16 x 16 multiply-adds by one warp: 128 a lane
    assert loop.ops["FFMA"] == 16 * 16 * 16 // 32
    assert loop.fma_flops == loop.all_flops == 2 * 16 * 16 * 16
    assert loop.global_bytes == 2 * 16 * 16 * 4
    assert statements(loop) == MATMUL
    # without the line there is nothing to tell the loop by
    nothing = matrix_loops(
        parsed("fp32_sm80.sass"), "sass", num_warps=1, lanes=32, wanted=lambda source: False
    )
    assert nothing == []


def test_multiply_adds_of_other_lines_are_no_products():
    line = '//## File "k.py", line {}'
    text = """\
.section	.text.k,x
.L_x_0:
LINE 5
/*0000*/ FFMA R0, R1, R2, R3 ;
/*0010*/ FFMA2 R0, R1, R2, R3 ;
/*0020*/ FMUL R0, R1, R2 ;
LINE 6
/*0030*/ FFMA R0, R1, R2, R3 ;
/*0040*/ @P1 BRA `(.L_x_0) ;
"""
    listing = text.replace("LINE 5", line.format(5)).replace("LINE 6", line.format(6))
    found = matrix_loops(
        parse_sass(listing, "k"), "sass", num_warps=4, lanes=32, wanted={("k.py", 5)}.__contains__
    )
    # one multiply-add, and two by one instruction, in each of 128 threads
    assert [loop.all_flops for loop in found] == [2 * 3 * 128]


def test_loads_by_descriptor_and_a_wait_out_of_line():
    # the loop of 4 blocks holds the wait (SYNCS, BRA to itself) and the jump back from it
    assert headers("descriptors_sm90.sass") == [("UIADD3", 4), ("SYNCS.PHASECHK.TRANS64.TRYWAIT", 1)]
    loop = only("descriptors_sm90.sass")
    assert loop.matrix == {"HGMMA.64x64x16.F32.BF16": 4}
    assert loop.flops == {"16": 2 * 64 * 64 * 64}
    # A and B; nothing by threads
    assert (loop.descriptor_loads, loop.kinds["descriptor"]) == (2, 2)
    assert loop.global_bytes == 0
    # blocks from 1270 and 1390: 18 + 58 instructions; the wait's three are not in the turn, their lines are
    assert loop.instructions == 76
    assert sum(loop.sources.values()) == 79
    assert [i.op for i in loop.code].count("SYNCS.PHASECHK.TRANS64.TRYWAIT") == 1
    # both SYNCS, three BAR, WARPGROUP.ARRIVE; WARPGROUP.DEPBAR
    assert (loop.kinds["barrier"], loop.kinds["wait"]) == (6, 1)
    assert statements(loop) == {
        "for k in range(0, K, BLOCK):",
        "acc = tl.dot(a.load([0, k]), b.load([k, 0]), acc)",
    }


@pytest.mark.parametrize(
    ("name", "blocks", "shape", "count"),
    [
        # 32 x 32 x 32 in pieces of 16 x 8 x 16: 16, by 4 warps
        ("inner_sm80.sass", (5, 1), "HMMA.16816.F32.BF16", 4),
        ("inner_gfx942.s", (18, 1), "v_mfma_f32_32x32x8_bf16", 4),
    ],
)
def test_products_in_the_inner_loop_only(name, blocks, shape, count):
    assert tuple(size for _, size in headers(name)) == blocks
    loop = only(name)
    assert loop.matrix == {shape: count}
    assert loop.flops == {"16": 2 * 32 * 32 * 32}
    assert loop.global_bytes * REQUESTS[name].num_warps == 2 * 32 * 32 * 2
    assert {
        "for k in range(0, K, BLOCK):",
        "b = tl.load(b_ptr + (k + r[:, None]) * N + n + r[None, :])",
        "acc = tl.dot(a, b, acc)",
    } < statements(loop)
    # what the outer loop does is not in the inner one
    assert not any(i.op.startswith(("STG", "global_store")) for i in loop.code)
    assert "tl.store(c_ptr + r[:, None] * N + n + r[None, :], acc)" not in statements(loop)


@pytest.mark.parametrize(
    ("name", "blocks", "shape", "size", "instructions"),
    [
        ("both_sm80.sass", (5, 1), "HMMA.16816.F32.BF16", 32, 28),
        ("both_sm90.sass", (5, 1), "HGMMA.64x64x16.F32.BF16", 64, 48),
    ],
)
def test_products_in_both_loops_count_those_of_the_inner_one(name, blocks, shape, size, instructions):
    assert tuple(size for _, size in headers(name)) == blocks
    every = sum(i.op == shape for i in parsed(name).instructions)
    loop = only(name)
    assert (every, loop.matrix) == (8, {shape: 4})
    assert loop.flops == {"16": 2 * size**3}
    assert loop.instructions == instructions
    assert "total = tl.dot(acc.to(v.dtype), v, total)" not in statements(loop)


@pytest.mark.parametrize(
    ("name", "scores", "rows", "shuffles", "maxima"),
    [
        # 64 x 64 scores of 128 threads: 32 each in 2 rows. A row lies in 4 threads, so 2 shuffles a row.
        # FMNMX of a row: 15 of 16 scores, 2 after shuffles, 1 with the old maximum
        ("row_max_sm90.sass", 32, 2, 2 * 2, 2 * (15 + 2 + 1)),
        # 32 x 32 scores, 8 each in 2 rows. Half a row lies in another warp, met through shared memory by 1 shuffle more
        ("row_max_sm80.sass", 8, 2, 2 * 2 + 1, 2 * (3 + 2 + 1) + 1),
        # one wave, 16 each in 1 row, which 2 lanes share. v_max for 2 scores, after one each that only canonicalises;
        # v_max3 for 14 more, and for the other lane's and the old maximum
        ("row_max_gfx942.s", 16, 1, 1, 3 + 14 // 2 + 1),
    ],
)
def test_powers_and_a_row_maximum(name, scores, rows, shuffles, maxima):
    loop = only(name)
    # a power of each score and of each row's old maximum, each of a difference
    assert loop.kinds["mufu"] == scores + rows
    assert loop.ops["FADD"] + loop.ops["v_sub_f32_e32"] == scores + rows
    # a multiply-add of each score; v_pk_fma_f32 does two
    assert loop.ops["FFMA"] + 2 * loop.ops["v_pk_fma_f32"] == scores
    assert loop.kinds["shuffle"] == shuffles
    assert sum(n for op, n in loop.ops.items() if op.startswith(("FMNMX", "v_max"))) == maxima
    assert {file for file, _ in loop.sources} == {
        "kernels.py",
        "standard.py",
    }  # the maximum is triton's own code


def test_spills_in_a_loop():
    loop = only("spill_sm80.sass")
    # held to 64 registers: LDL 14 times, STL 2
    assert loop.kinds["spill"] == 16
    assert (loop.ops["LDL"], loop.ops["STL"]) == (14, 2)
    free = only("matmul_sm80.sass")
    for same in ("matrix", "flops", "global_bytes", "shared_bytes"):
        assert getattr(loop, same) == getattr(free, same)
    assert free.kinds["spill"] == 0


def test_a_branch_around_loads_is_taken_with_the_loads():
    text = """\
k:
.LBB0_1:
	v_mfma_f32_32x32x8_bf16 v[0:15], v[32:33], v[50:51], v[0:15]
	s_and_saveexec_b64 s[0:1], vcc
	s_cbranch_execz .LBB0_3
	global_load_dwordx4 v[1:4], v[5:6], off
	v_mov_b32_e32 v9, 0
.LBB0_3:
	s_or_b64 exec, exec, s[0:1]
	s_cbranch_scc1 .LBB0_1
	s_endpgm
"""
    (loop,) = matrix_loops(parse_amd(text, "k"), "amd", num_warps=2, lanes=64, wanted=lambda source: False)
    assert loop.instructions == 7
    assert loop.global_bytes == 64 * 16
    assert loop.flops == {"16": 2 * 2 * 32 * 32 * 8}


def test_loads_by_descriptor_count_though_the_turn_goes_around_them():
    text = """\
.section	.text.k,x
.L_x_0:
/*0000*/ HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
/*0010*/ @P0 BRA `(.L_x_1) ;
/*0020*/ UTMALDG.2D [UR8], [UR20] ;
.L_x_1:
/*0030*/ @P1 BRA `(.L_x_0) ;
"""
    (loop,) = matrix_loops(parse_sass(text, "k"), "sass", num_warps=4, lanes=32, wanted=lambda source: False)
    assert (loop.instructions, loop.kinds["descriptor"], loop.descriptor_loads) == (3, 0, 1)


def test_a_division_out_of_line_counts_at_each_call():
    text = """\
.section	.text.k,x
.L_x_0:
/*0000*/ HMMA.16816.F32 R0, R1, R2, R3 ;
/*0010*/ CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
/*0020*/ CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
/*0030*/ @P1 BRA `(.L_x_0) ;
/*0040*/ EXIT ;
$__internal_0_$__cuda_sm20_div_s64:
/*0050*/ MUFU.RCP R1, R2 ;
/*0060*/ IMAD.WIDE.U32 R1, R2, R3, R4 ;
/*0070*/ IMAD.WIDE.U32 R1, R2, R3, R4 ;
/*0080*/ RET.REL.NODEC R20 `(k) ;
"""
    (loop,) = matrix_loops(parse_sass(text, "k"), "sass", num_warps=4, lanes=32, wanted=lambda source: False)
    assert loop.instructions == len(loop.code) == 4 + 2 * 4 == sum(loop.kinds.values())
    assert (loop.kinds["mufu"], loop.kinds["fma"], loop.kinds["matrix"]) == (2, 4, 1)


def test_a_product_outside_all_loops_is_no_loop():
    text = ".section\t.text.k,x\n/*0000*/ HMMA.16816.F32 R0, R1, R2, R3 ;\n.L_x_0:\n/*0010*/ BRA `(.L_x_0);\n"
    assert matrix_loops(parse_sass(text, "k"), "sass", num_warps=4, lanes=32, wanted=lambda s: True) == []


def test_the_listings_name_no_folder_and_are_all_there():
    assert {p.name for p in LISTINGS.iterdir()} == set(REQUESTS)
    for path in LISTINGS.iterdir():
        assert not any(
            "/" in line.partition('"')[2].partition('"')[0] for line in path.read_text().splitlines()
        )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of this module, so that what is compiled is compiled now, and once."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pinned():
    try:
        return f"triton=={version('triton')}" in PINNED.splitlines()
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not pinned(), reason="the listings are of the triton in constraints.txt")
@pytest.mark.parametrize("name", ["matmul_sm80.sass", "descriptors_sm90.sass", "matmul_gfx942.s"])
def test_the_compiler_still_writes_the_listing(cache, name):
    report = compile_kernel(REQUESTS[name])
    assert listing(report) == (LISTINGS / name).read_text()
    assert counted(name, listing(report)) == counted(name)


@pytest.mark.parametrize(
    "spilling",
    [REQUESTS["spill_sm80.sass"], request("matmul", "gfx942", num_warps=2, options={"waves_per_eu": 8})],
    ids=["sm_80", "gfx942"],
)
def test_a_spill_is_in_the_report_and_in_the_loop(cache, spilling):
    report = compile_kernel(spilling)
    assert report.ok
    assert report.spill_bytes > 0
    name = "spill_sm80.sass" if spilling.target == "sm_80" else "matmul_gfx942.s"
    (loop,) = counted(name, listing(report), spilling.num_warps)
    assert loop.kinds["spill"] > 0
    assert loop.flops == {"16": 2 * 64 * 64 * 64}
