"""Mnemonics, as the compilers write them, against what the instruction set manuals say of them."""

import pytest

from attngen.errors import InternalError
from attngen.inspect.assembly import Instruction
from attngen.inspect.instructions import bytes_of, kind_of, product_of

SASS = {
    "matrix": "HMMA.16816.F32.BF16 HGMMA.64x64x16.F32.BF16 QGMMA.64x128x32.F32.E4M3.E4M3 IMMA.16832.S8.S8"
    " QMMA.16832.F32.E4M3.E4M3 UTCHMMA UTCQMMA.2CTA",
    "mufu": "MUFU.EX2 MUFU.RCP F2I.TRUNC.NTZ I2F.RP F2F.F64.F32 FRND.FLOOR FLO.U32 POPC",
    "fma": "FFMA FFMA2 FADD FADD2 FMUL.FTZ HFMA2.BF16_V2 HADD2.F32 HMUL2 IMAD.MOV.U32 IMAD.WIDE.U32",
    "alu": "FMNMX FMNMX3 FSEL FSETP.GT.AND FSET.BF.GT.AND ISETP.GE.AND IADD3.X IADD IABS IMNMX LOP3.LUT PLOP3.LUT"
    " LEA.HI.X.SX32 SEL SHF.R.U32.HI PRMT MOV VIADD VIMNMX3 VIADDMNMX SGXT.U32 P2R HMNMX2",
    "convert": "F2FP.BF16.F32.PACK_AB I2FP.F32.S32 F2IP.S8.F32.NTZ",
    "shuffle": "SHFL.BFLY",
    "shared": "LDS.128 LDS STS.U16 LDSM.16.MT88.4 STSM.16.M88.2 ATOMS.AND",
    "tensor_memory": "LDTM.x32 STTM.x64 UTCCP.T.S.128dp128bit",
    "global": "LDG.E.128 LDGSTS.E.BYPASS.128 STG.E.64 LD.E ST.E.128 RED.E.ADD.F32.FTZ.RN.STRONG.GPU REDG.E.ADD.F32"
    " ATOMG.E.EXCH ATOM.E.ADD",
    "descriptor": "UTMALDG.2D UTMASTG.3D UTMAREDG.2D.ADD UTMAPF.L2.2D",
    "barrier": "BAR.SYNC.DEFER_BLOCKING SYNCS.PHASECHK.TRANS64.TRYWAIT WARPGROUP.ARRIVE WARPSYNC.ALL"
    " MEMBAR.ALL.CTA FENCE.VIEW.ASYNC.S UTCBAR ARRIVES.LDGSTSBAR.64 BSSY.RECONVERGENT BSYNC"
    " BREAK.RELIABLE UTMACMDFLUSH UTMACCTL.PF",
    "wait": "WARPGROUP.DEPBAR.LE DEPBAR.LE LDGDEPBAR",
    "spill": "LDL.LU.64 STL",
    "scalar": "UIADD3.X UMOV ULDC.64 LDCU.128 R2UR S2UR VOTEU.ANY USEL ULEA REDUX.OR CREDUX.MAX UFLO.U32 UI2F",
    # branches, constants, special registers: an issue slot and nothing else that the model knows
    "other": "BRA BRA.U CALL.REL.NOINC RET.REL.NODEC EXIT NOP LDC.64 CS2R S2R ELECT CCTL.IVALL NANOSLEEP BPT.TRAP",
}
AMD = {
    "matrix": "v_mfma_f32_32x32x8_bf16 v_mfma_f32_16x16x128_f8f6f4 v_smfmac_f32_16x16x32_f16",
    "mufu": "v_exp_f32_e32 v_log_f32_e32 v_rcp_iflag_f32_e32 v_rsq_f32_e32 v_sqrt_f32_e32 v_sin_f32_e32",
    "fma": "v_fma_f32 v_fmac_f32_e32 v_fmaak_f32 v_fmamk_f32 v_mul_f32_e64 v_add_f32_e32 v_sub_f32_e32 v_subrev_f32_e32"
    " v_pk_fma_f32 v_pk_mul_f32 v_pk_add_f32",
    "alu": "v_max3_f32 v_max_f32_e32 v_cndmask_b32_e32 v_cmp_gt_i32_e64 v_add_u32_e32 v_sub_u32_e32 v_lshl_add_u64"
    " v_perm_b32 v_mov_b32_dpp v_accvgpr_read_b32 v_readfirstlane_b32 v_mad_u64_u32 v_mul_lo_u32 v_permlane32_swap_b32_e32",
    "convert": "v_cvt_pk_bf16_f32 v_cvt_f32_u32_e32",
    "shuffle": "ds_bpermute_b32 ds_permute_b32 ds_swizzle_b32",
    "shared": "ds_read_b128 ds_read2st64_b64 ds_read_u16 ds_read_b64_tr_b16 ds_write2_b32",
    "global": "global_load_dwordx4 global_store_dword buffer_load_dword flat_load_dword global_atomic_add_f32",
    "barrier": "s_barrier",
    "wait": "s_waitcnt s_wait_loadcnt",
    "spill": "scratch_load_dwordx2 scratch_store_dword v_readlane_b32 v_writelane_b32",
    "scalar": "s_add_i32 s_load_dwordx8 s_and_saveexec_b64 s_setprio",
    "other": "s_branch s_cbranch_execz s_setpc_b64 s_endpgm s_nop",
}  # fmt: skip


@pytest.mark.parametrize(
    ("isa", "kind", "op"),
    [
        (isa, kind, op)
        for isa, kinds in (("sass", SASS), ("amd", AMD))
        for kind, text in kinds.items()
        for op in text.split()
    ],
)
def test_kinds(isa, kind, op):
    assert kind_of(isa, op) == kind


@pytest.mark.parametrize(
    ("isa", "op", "size"),
    [
        ("sass", "LDG.E", 4),
        ("sass", "LDG.E.U8", 1),
        ("sass", "LDG.E.U16.CONSTANT", 2),
        ("sass", "LDG.E.64", 8),
        ("sass", "LDG.E.ENL2.256", 32),
        ("sass", "LDGSTS.E.BYPASS.LTC128B", 4),
        ("sass", "LDGSTS.E.BYPASS.LTC128B.128", 16),
        ("sass", "STS.S8", 1),
        ("sass", "LDS.128", 16),
        # each of n 8 x 8 matrices of 16 bits gives a thread 4 bytes
        ("sass", "LDSM.16.M88", 4),
        ("sass", "LDSM.16.MT88.2", 8),
        ("sass", "STSM.16.M88.4", 16),
        ("amd", "ds_read_b128", 16),
        ("amd", "ds_read_b64_tr_b16", 8),
        ("amd", "ds_read2_b32", 8),
        ("amd", "ds_write2st64_b64", 16),
        ("amd", "ds_read_u16", 2),
        ("amd", "ds_read_u8_d16_hi", 1),
        ("amd", "ds_write_b8", 1),
        ("amd", "global_load_dword", 4),
        ("amd", "global_load_dwordx3", 12),
        ("amd", "buffer_load_dwordx4", 16),
        ("amd", "buffer_load_ushort", 2),
        ("amd", "global_load_short_d16", 2),
        ("amd", "global_load_ubyte", 1),
    ],
)
def test_bytes_that_a_thread_moves(isa, op, size):
    assert bytes_of(isa, op) == size


@pytest.mark.parametrize(
    ("isa", "op", "warps", "flops", "operands", "warp_wide"),
    [
        # of each warp
        ("sass", "HMMA.16816.F32.BF16", 4, 2 * 16 * 8 * 16 * 4, "16", True),
        ("sass", "HMMA.1688.F32", 1, 2 * 16 * 8 * 8, "16", True),
        ("sass", "HMMA.1688.F32.TF32", 8, 2 * 16 * 8 * 8 * 8, "tf32", True),
        ("sass", "HMMA.1684.F32.TF32", 1, 2 * 16 * 8 * 4, "tf32", True),
        ("sass", "IMMA.16832.S8.S8", 1, 2 * 16 * 8 * 32, "8", True),
        ("sass", "QMMA.16832.F32.E5M2.E4M3", 1, 2 * 16 * 8 * 32, "8", True),
        # of each group of four warps
        ("sass", "HGMMA.64x128x16.F32.BF16", 4, 2 * 64 * 128 * 16, "16", False),
        ("sass", "HGMMA.64x128x16.F32", 8, 2 * 2 * 64 * 128 * 16, "16", False),
        ("sass", "HGMMA.64x64x8.F32.TF32", 4, 2 * 64 * 64 * 8, "tf32", False),
        ("sass", "QGMMA.64x256x32.F32.E4M3.E4M3", 4, 2 * 64 * 256 * 32, "8", False),
        ("amd", "v_mfma_f32_32x32x8_bf16", 4, 2 * 32 * 32 * 8 * 4, "16", True),
        ("amd", "v_mfma_f32_16x16x16_f16", 1, 2 * 16 * 16 * 16, "16", True),
        ("amd", "v_mfma_f32_4x4x4_16b_f16", 1, 2 * 4 * 4 * 4 * 16, "16", True),
        ("amd", "v_mfma_f32_32x32x4_2b_bf16", 2, 2 * 32 * 32 * 4 * 2 * 2, "16", True),
        ("amd", "v_mfma_f32_32x32x2_f32", 1, 2 * 32 * 32 * 2, "32", True),
        ("amd", "v_mfma_f32_16x16x8_xf32", 1, 2 * 16 * 16 * 8, "tf32", True),
        ("amd", "v_mfma_f32_32x32x16_fp8_bf8", 1, 2 * 32 * 32 * 16, "8", True),
        ("amd", "v_mfma_f32_16x16x128_f8f6f4", 1, 2 * 16 * 16 * 128, "8", True),
        ("amd", "v_mfma_i32_16x16x32_i8", 1, 2 * 16 * 16 * 32, "8", True),
    ],
)
def test_products(isa, op, warps, flops, operands, warp_wide):
    product = product_of(isa, [Instruction(op=op)], 0, warps)
    assert (product.flops, product.operands, product.warp_wide) == (flops, operands, warp_wide)


def code(*lines):
    return [Instruction(op=op, operands=rest) for op, _, rest in (line.partition(" ") for line in lines)]


TCGEN05 = "gdesc[UR10], gdesc[UR12], tmem[UR7], tmem[UR32], idesc[UR33], UPT"


def test_a_fifth_generation_product_has_its_shape_in_a_constant():
    # bits 24 to 28: M >> 4 = 8; bits 17 to 22: N >> 3 = 8; bits 7 to 9: format of A, bf16
    lines = code("UMOV UR33, 0x8110490", "UMOV UR5, 0x4010490", "UTCHMMA " + TCGEN05)
    product = product_of("sass", lines, 2, 8)
    assert (product.shape, product.flops) == ("UTCHMMA.128x64x16", 2 * 128 * 64 * 16)  # whatever the warps
    assert (product.operands, product.warp_wide) == ("16", False)


def test_the_constant_is_followed_through_moves_to_the_last_writer():
    lines = code(
        "UMOV UR9, 0x4010490",
        "UMOV UR9, 0x8110490",
        "UMOV UR33, UR9",
        "UMOV UR9, 0x4010490",
        "UTCHMMA " + TCGEN05,
    )
    assert product_of("sass", lines, 4, 4).shape == "UTCHMMA.128x64x16"


def test_formats_of_the_fifth_generation():
    assert product_of("sass", code("UMOV UR33, 0x8110510", "UTCHMMA " + TCGEN05), 1, 4).operands == "tf32"
    fp8 = product_of("sass", code("UMOV UR33, 0x8110010", "UTCQMMA " + TCGEN05), 1, 4)
    assert (fp8.operands, fp8.shape) == ("8", "UTCQMMA.128x64x32")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["UTCHMMA " + TCGEN05], "the instruction descriptor in UR33 is not known"),
        (["R2UR UR33, R4", "UTCHMMA " + TCGEN05], "the instruction descriptor in UR33 is not known"),
        (["UMOV UR33, UR9", "UTCHMMA " + TCGEN05], "the instruction descriptor in UR9 is not known"),
        (["UTCHMMA gdesc[UR10]"], r"the instruction descriptor in \? is not known"),
        (["DMMA.884"], "the shape of DMMA.884 is not known"),
    ],
)
def test_an_unknown_shape_is_an_error(lines, message):
    with pytest.raises(InternalError, match=message):
        product_of("sass", code(*lines), len(lines) - 1, 4)
