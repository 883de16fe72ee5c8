	.file	1 "kernels.py"
	.file	2 "standard.py"
row_max:
	.loc	1 61 0 prologue_end
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_load_dwordx8 s[4:11], s[0:1], 0x8
	s_load_dwordx4 s[12:15], s[0:1], 0x28
	s_waitcnt lgkmcnt(0)
	s_branch .LBB0_0
	.loc	1 0 0 is_stmt 0
.LBB0_0:
	.loc	1 64 26 is_stmt 1
	v_lshrrev_b32_e32 v11, 2, v0
	v_lshlrev_b32_e32 v1, 3, v0
	.loc	1 64 24 is_stmt 0
	v_mov_b32_e32 v2, 0
	.loc	1 64 26
	v_lshlrev_b32_e32 v4, 6, v11
	v_and_b32_e32 v10, 24, v1
	.loc	1 64 24
	v_mov_b32_e32 v5, v2
	v_lshl_add_u64 v[6:7], s[2:3], 0, v[4:5]
	.loc	1 64 45
	v_lshlrev_b32_e32 v20, 1, v10
	v_mov_b32_e32 v21, v2
	v_lshl_add_u64 v[6:7], v[6:7], 0, v[20:21]
	.loc	1 64 16
	global_load_dwordx4 v[12:15], v[6:7], off
	global_load_dwordx4 v[16:19], v[6:7], off offset:1024
	v_lshlrev_b32_e32 v3, 4, v0
	v_and_b32_e32 v5, 56, v0
	v_lshlrev_b32_e32 v38, 2, v0
	v_and_b32_e32 v37, 32, v0
	.loc	1 63 21 is_stmt 1
	v_and_b32_e32 v36, 31, v0
	.loc	1 64 16
	v_xor_b32_e32 v0, v3, v5
	v_and_b32_e32 v3, 56, v38
	v_lshrrev_b32_e32 v5, 2, v37
	.loc	1 68 28
	v_mov_b32_e32 v1, v2
	.loc	1 64 16
	v_add_u32_e32 v43, 0, v0
	v_xor_b32_e32 v6, 8, v0
	v_xor_b32_e32 v3, v3, v5
	.loc	1 68 28
	v_or_b32_e32 v0, 0x400, v4
	.loc	1 67 25
	s_cmp_gt_i32 s10, 0
	.loc	1 64 16
	v_lshl_or_b32 v7, v36, 6, v3
	.loc	1 68 28
	v_lshl_add_u64 v[0:1], s[4:5], 0, v[0:1]
	s_mov_b64 s[0:1], s[6:7]
	.loc	1 67 25
	s_cselect_b64 s[2:3], -1, 0
	s_cmp_lt_i32 s10, 1
	.loc	1 64 16
	v_add_u32_e32 v44, 0, v6
	v_xor_b32_e32 v8, 16, v7
	v_xor_b32_e32 v9, 32, v7
	v_xor_b32_e32 v6, 48, v7
	.loc	1 68 55
	v_lshl_add_u64 v[0:1], v[0:1], 0, v[20:21]
	.loc	1 64 16
	s_waitcnt vmcnt(0)
	ds_write2st64_b64 v43, v[12:13], v[16:17] offset1:2
	ds_write2st64_b64 v44, v[14:15], v[18:19] offset1:2
	s_waitcnt lgkmcnt(0)
	.loc	1 68 20
	s_cbranch_scc1 .LBB0_2
	global_load_dwordx4 v[2:5], v[0:1], off offset:-1024
	s_branch .LBB0_3
.LBB0_2:
	.loc	1 0 20 is_stmt 0
	v_mov_b32_e32 v3, 0
	v_mov_b32_e32 v4, 0
	v_mov_b32_e32 v5, 0
.LBB0_3:
	v_add_u32_e32 v42, 0, v7
	v_add_u32_e32 v40, 0, v8
	v_add_u32_e32 v39, 0, v9
	.loc	1 68 20 is_stmt 1
	s_andn2_b64 vcc, exec, s[2:3]
	v_add_u32_e32 v41, 0, v6
	s_cbranch_vccnz .LBB0_5
	global_load_dwordx4 v[6:9], v[0:1], off
	s_branch .LBB0_6
.LBB0_5:
	.loc	1 0 20 is_stmt 0
	v_mov_b32_e32 v6, 0
	v_mov_b32_e32 v7, v6
	v_mov_b32_e32 v8, v6
	v_mov_b32_e32 v9, v6
.LBB0_6:
	ds_read_b64 v[52:53], v42
	ds_read_b64 v[50:51], v40
	ds_read_b64 v[48:49], v39
	ds_read_b64 v[46:47], v41
	.loc	1 67 25 is_stmt 1
	s_sub_i32 s3, s10, 32
	.loc	1 68 20
	s_mov_b32 s2, 0
	.loc	1 67 25
	s_cmp_lt_i32 s3, 1
	v_mov_b32_e32 v16, 0
	.loc	1 68 20
	s_waitcnt vmcnt(0) lgkmcnt(0)
	ds_write2st64_b64 v43, v[2:3], v[6:7] offset1:2
	ds_write2st64_b64 v44, v[4:5], v[8:9] offset1:2
	.loc	1 67 25
	s_cbranch_scc1 .LBB0_10
	.loc	1 0 25 is_stmt 0
	v_lshlrev_b32_e32 v2, 5, v11
	.loc	1 67 25
	v_lshlrev_b32_e32 v0, 1, v10
	v_mov_b32_e32 v1, v16
	v_lshl_add_u64 v[32:33], s[4:5], 0, v[0:1]
	v_or_b32_e32 v34, 0x400, v2
	v_mov_b32_e32 v45, 0xf149f2ca
	v_mov_b32_e32 v17, v16
	v_mov_b32_e32 v18, v16
	v_mov_b32_e32 v19, v16
	v_mov_b32_e32 v20, v16
	v_mov_b32_e32 v21, v16
	v_mov_b32_e32 v22, v16
	v_mov_b32_e32 v23, v16
	v_mov_b32_e32 v24, v16
	v_mov_b32_e32 v25, v16
	v_mov_b32_e32 v26, v16
	v_mov_b32_e32 v27, v16
	v_mov_b32_e32 v28, v16
	v_mov_b32_e32 v29, v16
	v_mov_b32_e32 v30, v16
	v_mov_b32_e32 v31, v16
.LBB0_8:
	.loc	1 68 28 is_stmt 1
	v_ashrrev_i32_e32 v35, 31, v34
	.loc	1 68 55 is_stmt 0
	v_lshl_add_u64 v[0:1], v[34:35], 1, v[32:33]
	.loc	1 68 20
	global_load_dwordx4 v[54:57], v[0:1], off
	global_load_dwordx4 v[58:61], v[0:1], off offset:1024
	s_waitcnt lgkmcnt(0)
	ds_read_b64 v[62:63], v42
	ds_read_b64 v[64:65], v40
	ds_read_b64 v[66:67], v39
	ds_read_b64 v[68:69], v41
	.loc	1 69 22 is_stmt 1
	s_waitcnt lgkmcnt(3)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[62:63], v[52:53], 0
	.loc	1 67 25
	s_add_i32 s2, s2, 32
	v_add_u32_e32 v34, 0x400, v34
	s_cmp_lt_i32 s2, s3
	.loc	1 68 20
	s_waitcnt vmcnt(0) lgkmcnt(0)
	ds_write2st64_b64 v43, v[54:55], v[58:59] offset1:2
	ds_write2st64_b64 v44, v[56:57], v[60:61] offset1:2
	.loc	1 69 22
	v_mfma_f32_32x32x8_bf16 v[0:15], v[64:65], v[50:51], v[0:15]
	v_mfma_f32_32x32x8_bf16 v[0:15], v[66:67], v[48:49], v[0:15]
	v_mfma_f32_32x32x8_bf16 v[0:15], v[68:69], v[46:47], v[0:15]
	.loc	2 170 27
	s_nop 10
	v_max_f32_e32 v35, v1, v1
	v_max_f32_e32 v62, v0, v0
	v_max_f32_e32 v35, v62, v35
	v_max3_f32 v35, v35, v2, v3
	v_max3_f32 v35, v35, v4, v5
	v_max3_f32 v35, v35, v6, v7
	v_max3_f32 v35, v35, v8, v9
	v_max3_f32 v35, v35, v10, v11
	v_max3_f32 v35, v35, v12, v13
	v_max3_f32 v35, v35, v14, v15
	v_xor_b32_e32 v62, 0x80, v38
	.loc	2 191 40
	ds_bpermute_b32 v62, v62, v35
	.loc	1 70 30
	s_waitcnt lgkmcnt(0)
	v_max3_f32 v35, v45, v35, v62
	.loc	1 71 66
	v_sub_f32_e32 v62, v0, v35
	v_sub_f32_e32 v1, v1, v35
	v_sub_f32_e32 v63, v2, v35
	v_sub_f32_e32 v64, v3, v35
	v_sub_f32_e32 v65, v4, v35
	v_sub_f32_e32 v66, v5, v35
	v_sub_f32_e32 v67, v6, v35
	v_sub_f32_e32 v68, v7, v35
	v_sub_f32_e32 v69, v8, v35
	v_sub_f32_e32 v70, v9, v35
	v_sub_f32_e32 v71, v10, v35
	v_sub_f32_e32 v72, v11, v35
	v_sub_f32_e32 v73, v12, v35
	v_sub_f32_e32 v74, v13, v35
	v_sub_f32_e32 v75, v14, v35
	v_sub_f32_e32 v76, v15, v35
	.loc	1 71 36 is_stmt 0
	v_sub_f32_e32 v0, v45, v35
	.loc	1 71 32
	v_exp_f32_e32 v0, v0
	.loc	1 71 62
	v_exp_f32_e32 v2, v62
	v_exp_f32_e32 v3, v1
	v_exp_f32_e32 v4, v63
	v_exp_f32_e32 v5, v64
	v_exp_f32_e32 v6, v65
	v_exp_f32_e32 v7, v66
	v_exp_f32_e32 v8, v67
	v_exp_f32_e32 v9, v68
	v_exp_f32_e32 v10, v69
	v_exp_f32_e32 v11, v70
	v_exp_f32_e32 v12, v71
	v_exp_f32_e32 v13, v72
	v_exp_f32_e32 v14, v73
	v_exp_f32_e32 v15, v74
	v_exp_f32_e32 v62, v75
	v_exp_f32_e32 v63, v76
	v_mov_b32_e32 v45, v35
	.loc	1 71 54
	v_pk_fma_f32 v[30:31], v[30:31], v[0:1], v[2:3] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[28:29], v[28:29], v[0:1], v[4:5] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[26:27], v[26:27], v[0:1], v[6:7] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[24:25], v[24:25], v[0:1], v[8:9] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[22:23], v[22:23], v[0:1], v[10:11] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[20:21], v[20:21], v[0:1], v[12:13] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[18:19], v[18:19], v[0:1], v[14:15] op_sel_hi:[1,0,1]
	v_pk_fma_f32 v[16:17], v[16:17], v[0:1], v[62:63] op_sel_hi:[1,0,1]
	.loc	1 67 25 is_stmt 1
	s_cbranch_scc1 .LBB0_8
	.loc	1 0 25 is_stmt 0
	v_mov_b32_e32 v32, v16
	v_mov_b32_e32 v16, v31
	s_branch .LBB0_11
.LBB0_10:
	v_mov_b32_e32 v30, 0
	v_mov_b32_e32 v29, 0
	v_mov_b32_e32 v28, 0
	v_mov_b32_e32 v27, 0
	v_mov_b32_e32 v26, 0
	v_mov_b32_e32 v25, 0
	v_mov_b32_e32 v24, 0
	v_mov_b32_e32 v23, 0
	v_mov_b32_e32 v22, 0
	v_mov_b32_e32 v21, 0
	v_mov_b32_e32 v20, 0
	v_mov_b32_e32 v19, 0
	v_mov_b32_e32 v18, 0
	v_mov_b32_e32 v17, 0
	v_mov_b32_e32 v32, 0
	v_mov_b32_e32 v35, 0xf149f2ca
.LBB0_11:
	.loc	1 67 25 is_stmt 1
	s_add_i32 s10, s10, 31
	s_cmp_gt_i32 s10, 31
	s_cselect_b64 vcc, -1, 0
	s_cmp_lt_i32 s10, 32
	.loc	1 68 20
	s_waitcnt lgkmcnt(0)
	.loc	1 69 22
	s_cbranch_scc1 .LBB0_13
	.loc	1 68 20
	ds_read_b64 v[42:43], v42
	.loc	1 69 22
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[42:43], v[52:53], 0
	.loc	1 68 20
	ds_read_b64 v[42:43], v40
	ds_read_b64 v[40:41], v41
	.loc	1 69 22
	s_waitcnt lgkmcnt(1)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[42:43], v[50:51], v[0:15]
	.loc	1 68 20
	ds_read_b64 v[42:43], v39
	.loc	1 69 22
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[42:43], v[48:49], v[0:15]
	v_mfma_f32_32x32x8_bf16 v[0:15], v[40:41], v[46:47], v[0:15]
	s_branch .LBB0_14
.LBB0_13:
	v_mov_b32_e32 v0, 0
	v_mov_b32_e32 v1, 0
	v_mov_b32_e32 v2, 0
	v_mov_b32_e32 v3, 0
	v_mov_b32_e32 v4, 0
	v_mov_b32_e32 v5, 0
	v_mov_b32_e32 v6, 0
	v_mov_b32_e32 v7, 0
	v_mov_b32_e32 v8, 0
	v_mov_b32_e32 v9, 0
	v_mov_b32_e32 v10, 0
	v_mov_b32_e32 v11, 0
	v_mov_b32_e32 v12, 0
	v_mov_b32_e32 v13, 0
	v_mov_b32_e32 v14, 0
	v_mov_b32_e32 v15, 0
.LBB0_14:
	.loc	2 170 27
	s_nop 9
	v_max_f32_e32 v31, v1, v1
	v_max_f32_e32 v33, v0, v0
	v_max_f32_e32 v31, v33, v31
	v_max3_f32 v31, v31, v2, v3
	v_max3_f32 v31, v31, v4, v5
	v_max3_f32 v31, v31, v6, v7
	v_max3_f32 v31, v31, v8, v9
	v_max3_f32 v31, v31, v10, v11
	v_max3_f32 v31, v31, v12, v13
	v_max3_f32 v31, v31, v14, v15
	.loc	2 191 40
	v_xor_b32_e32 v33, 0x80, v38
	ds_bpermute_b32 v34, v33, v31
	s_mov_b32 s3, 0x27000
	s_mov_b32 s2, 0x7ffffffe
	.loc	1 73 24
	s_and_b32 s1, s1, 0xffff
	.loc	1 74 24
	s_and_b32 s9, s9, 0xffff
	.loc	1 70 30
	s_waitcnt lgkmcnt(0)
	v_max3_f32 v31, v35, v31, v34
	.loc	1 71 36
	v_sub_f32_e32 v34, v35, v31
	.loc	1 71 66 is_stmt 0
	v_sub_f32_e32 v0, v0, v31
	v_sub_f32_e32 v1, v1, v31
	.loc	1 71 32
	v_exp_f32_e32 v34, v34
	.loc	1 71 66
	v_sub_f32_e32 v2, v2, v31
	.loc	1 71 62
	v_exp_f32_e32 v0, v0
	v_exp_f32_e32 v1, v1
	.loc	1 71 66
	v_sub_f32_e32 v3, v3, v31
	.loc	1 71 62
	v_exp_f32_e32 v2, v2
	.loc	1 71 66
	v_sub_f32_e32 v4, v4, v31
	.loc	1 71 62
	v_exp_f32_e32 v3, v3
	.loc	1 71 66
	v_sub_f32_e32 v5, v5, v31
	.loc	1 71 62
	v_exp_f32_e32 v4, v4
	.loc	1 71 66
	v_sub_f32_e32 v6, v6, v31
	.loc	1 71 62
	v_exp_f32_e32 v5, v5
	.loc	1 71 54
	v_fmac_f32_e32 v0, v30, v34
	v_fmac_f32_e32 v1, v16, v34
	.loc	1 71 66
	v_sub_f32_e32 v7, v7, v31
	.loc	1 71 62
	v_exp_f32_e32 v6, v6
	.loc	1 71 54
	v_fmac_f32_e32 v2, v28, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v0, v30, v0, vcc
	v_cndmask_b32_e32 v1, v16, v1, vcc
	.loc	1 71 66
	v_sub_f32_e32 v8, v8, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v7, v7
	.loc	1 71 54
	v_fmac_f32_e32 v3, v29, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v2, v28, v2, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v0, v1
	.loc	1 71 66
	v_sub_f32_e32 v9, v9, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v8, v8
	.loc	1 71 54
	v_fmac_f32_e32 v4, v26, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v3, v29, v3, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v2, v0
	.loc	1 71 66
	v_sub_f32_e32 v10, v10, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v9, v9
	.loc	1 71 54
	v_fmac_f32_e32 v5, v27, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v4, v26, v4, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v3, v0
	.loc	1 71 66
	v_sub_f32_e32 v11, v11, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v10, v10
	.loc	1 71 54
	v_fmac_f32_e32 v6, v24, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v5, v27, v5, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v4, v0
	.loc	1 71 66
	v_sub_f32_e32 v12, v12, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v11, v11
	.loc	1 71 54
	v_fmac_f32_e32 v7, v25, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v6, v24, v6, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v5, v0
	.loc	1 71 66
	v_sub_f32_e32 v13, v13, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v12, v12
	.loc	1 71 54
	v_fmac_f32_e32 v8, v22, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v7, v25, v7, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v6, v0
	.loc	1 71 66
	v_sub_f32_e32 v14, v14, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v13, v13
	.loc	1 71 54
	v_fmac_f32_e32 v9, v23, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v8, v22, v8, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v7, v0
	.loc	1 71 66
	v_sub_f32_e32 v15, v15, v31
	.loc	1 71 62 is_stmt 0
	v_exp_f32_e32 v14, v14
	.loc	1 71 54
	v_fmac_f32_e32 v10, v20, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v9, v23, v9, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v8, v0
	.loc	1 71 62
	v_exp_f32_e32 v15, v15
	.loc	1 71 54 is_stmt 0
	v_fmac_f32_e32 v11, v21, v34
	.loc	1 67 25 is_stmt 1
	v_cndmask_b32_e32 v10, v20, v10, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v9, v0
	.loc	1 71 54
	v_fmac_f32_e32 v12, v18, v34
	.loc	1 67 25
	v_cndmask_b32_e32 v11, v21, v11, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v10, v0
	.loc	1 71 54
	v_fmac_f32_e32 v13, v19, v34
	.loc	1 67 25
	v_cndmask_b32_e32 v12, v18, v12, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v11, v0
	.loc	1 71 54
	v_fmac_f32_e32 v14, v32, v34
	.loc	1 67 25
	v_cndmask_b32_e32 v13, v19, v13, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v12, v0
	.loc	1 71 54
	v_fmac_f32_e32 v15, v17, v34
	.loc	1 67 25
	v_cndmask_b32_e32 v14, v32, v14, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v13, v0
	.loc	1 67 25
	v_cndmask_b32_e32 v15, v17, v15, vcc
	.loc	2 263 15
	v_add_f32_e32 v0, v14, v0
	v_add_f32_e32 v0, v15, v0
	.loc	2 293 36
	ds_bpermute_b32 v1, v33, v0
	.loc	1 67 25
	v_cndmask_b32_e32 v31, v35, v31, vcc
	.loc	1 73 24
	v_lshlrev_b32_e32 v16, 2, v36
	v_bfrev_b32_e32 v2, 1
	.loc	1 64 16
	v_cmp_eq_u32_e32 vcc, 0, v37
	.loc	2 263 15
	s_waitcnt lgkmcnt(0)
	v_add_f32_e32 v0, v0, v1
	.loc	1 74 24
	s_mov_b32 s10, s2
	.loc	1 73 24
	v_cndmask_b32_e32 v2, v2, v16, vcc
	.loc	1 74 24
	s_mov_b32 s11, s3
	.loc	1 73 24
	buffer_store_dword v31, v2, s[0:3], 0 offen
	.loc	1 74 24
	buffer_store_dword v0, v2, s[8:11], 0 offen
	.loc	1 74 4 is_stmt 0
	s_endpgm
