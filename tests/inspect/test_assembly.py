"""Disassembly as text against instructions written by hand."""

import pytest

from attngen.inspect.assembly import Instruction, Listing, parse_amd, parse_sass

TWO_KERNELS = """\
.section	.text.other,"ax",@progbits
        /*0000*/                   IADD3 R9, R9, R9, RZ ;
.section	.text.kernel,"ax",@progbits
	.sectionflags	@"SHF_BARRIERS=1"
kernel:
.text.kernel:
	//## File "/somewhere/kernels.py", line 8
        /*0000*/                   MOV R1, c[0x0][0x28] ;
	//## File "/elsewhere/standard.py", line 170 inlined at "/somewhere/kernels.py", line 9
.L_x_0:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/               @P1 EXIT ;
.L_x_1:
        /*10030*/                  BRA `(.L_x_1);
.section	.text.kernel_2,"ax",@progbits
        /*0000*/                   IADD3 R9, R9, R9, RZ ;
"""


def test_sass_is_read_from_the_section_of_the_kernel():
    kernel, helper = ("kernels.py", 8), ("standard.py", 170)
    assert parse_sass(TWO_KERNELS, "kernel") == Listing(
        (
            Instruction(op="MOV", operands="R1, c[0x0][0x28]", source=kernel),
            Instruction(op="LDG.E.128", operands="R4, desc[UR4][R2.64]", guarded=True, source=helper),
            Instruction(op="EXIT", guarded=True, ends=True, source=helper),
            Instruction(op="BRA", operands="`(.L_x_1)", goes_to=".L_x_1", ends=True, source=helper),
        ),
        {".L_x_0": 1, ".L_x_1": 3},
    )
    assert parse_sass(TWO_KERNELS, "kern") == Listing((), {})


def one_sass(line):
    (found,) = parse_sass(f".section\t.text.k,x\n/*0000*/ {line} ;", "k").instructions
    return found


@pytest.mark.parametrize(
    ("line", "guarded", "goes_to"),
    [
        ("BRA `(.L_x_3)", False, ".L_x_3"),
        ("@P0 BRA `(.L_x_3)", True, ".L_x_3"),
        ("@!UP2 BRA `(.L_x_3)", True, ".L_x_3"),
        ("BRA !P0, `(.L_x_3)", True, ".L_x_3"),
        ("BRA.U UP1, `(.L_x_3)", True, ".L_x_3"),
        ("BRA.U !UP0, `(.L_x_3)", True, ".L_x_3"),
        ("BRA.DIV UR4, `(.L_x_3)", True, ".L_x_3"),
        ("BRA.DIV ~URZ, `(.L_x_3)", True, ".L_x_3"),
        # how ptxas closes long loops for sm_80
        ("@!P2 CALL.REL.NOINC `(.L_x_3)", True, ".L_x_3"),
        ("CALL.REL.NOINC `(.L_x_3)", False, ".L_x_3"),
    ],
)
def test_jumps(line, guarded, goes_to):
    found = one_sass(line)
    assert (found.guarded, found.goes_to, found.ends) == (guarded, goes_to, True)


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("EXIT", True),
        ("RET.REL.NODEC R2 `(k)", True),
        ("BRX R4 -0x40", True),
        # names of barriers are not jumps
        ("BSSY B0, `(.L_x_3)", False),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", False),
    ],
)
def test_what_goes_to_no_label(line, ends):
    found = one_sass(line)
    assert (found.goes_to, found.ends) == (None, ends)


@pytest.mark.parametrize("guard", ["", "@P0 "])
def test_a_subroutine_is_called_and_comes_back(guard):
    found = one_sass(guard + "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)")
    assert found.calls == "$__internal_0_$__cuda_sm20_div_s64"
    assert (found.goes_to, found.ends, found.guarded) == (None, False, guard != "")


def test_subroutines_have_labels_in_the_section_of_the_kernel():
    text = """\
.section	.text.k,x
/*0000*/ CALL.REL.NOINC `($__internal_1_$__cuda_sm20_div_s64) ;
/*0010*/ EXIT ;
        .weak           $__internal_1_$__cuda_sm20_div_s64
        .type           $__internal_1_$__cuda_sm20_div_s64,@function
$__internal_1_$__cuda_sm20_div_s64:
/*0020*/ RET.REL.NODEC R20 `(k) ;
"""
    found = parse_sass(text, "k")
    assert [i.op for i in found.instructions] == ["CALL.REL.NOINC", "EXIT", "RET.REL.NODEC"]
    assert found.labels == {"$__internal_1_$__cuda_sm20_div_s64": 2}


@pytest.mark.parametrize("line", ["@!PT LDS RZ, [RZ]", "@!UPT UIADD3 URZ, UPT, UPT, URZ, URZ, URZ"])
def test_what_never_runs_is_padding(line):
    assert one_sass(line).op == "NOP"
    assert one_sass(line.replace("PT ", "P0 ", 1)).op in ("LDS", "UIADD3")


AMD = """\
	.file	1 "/somewhere" "kernels.py"
other:                                  ; @other
	v_nop
.Lfunc_end0:
kernel:                                 ; @kernel
.Lfunc_begin1:
	.cfi_startproc
; %bb.0:
	.file	2 "/elsewhere" "standard.py"
	.loc	1 8 0 prologue_end              ; kernels.py:8:0
	s_load_dwordx2 s[2:3], s[0:1], 0x0
.LBB1_1:                                ; %loop
	.loc	2 170 12 is_stmt 1              ; standard.py:170:12 @[ kernels.py:9 ]
	s_cbranch_scc1 .LBB1_1                  ; comment
.Ltmp3:
	; sched_barrier mask(0x00000001)
	s_branch .LBB1_2
.LBB1_2:
	s_endpgm
	.section	.rodata,"a",@progbits
	.amdhsa_kernel kernel
	v_not_code
.Lfunc_end1:
"""


def test_amd_assembly_is_read_between_the_labels_of_the_kernel():
    kernel, helper = ("kernels.py", 8), ("standard.py", 170)
    assert parse_amd(AMD, "kernel") == Listing(
        (
            Instruction(op="s_load_dwordx2", operands="s[2:3], s[0:1], 0x0", source=kernel),
            Instruction(
                op="s_cbranch_scc1",
                operands=".LBB1_1",
                guarded=True,
                goes_to=".LBB1_1",
                ends=True,
                source=helper,
            ),
            Instruction(op="s_branch", operands=".LBB1_2", goes_to=".LBB1_2", ends=True, source=helper),
            Instruction(op="s_endpgm", ends=True, source=helper),
        ),
        {".LBB1_1": 1, ".LBB1_2": 3},
    )
    assert [i.op for i in parse_amd(AMD, "other").instructions] == ["v_nop"]
