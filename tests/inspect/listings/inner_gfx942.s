	.file	1 "kernels.py"
products_in_the_inner_loop:
	.loc	1 32 0 prologue_end
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_load_dwordx8 s[4:11], s[0:1], 0x8
	s_load_dwordx2 s[12:13], s[0:1], 0x28
	s_waitcnt lgkmcnt(0)
	s_branch .LBB0_0
	.loc	1 0 0 is_stmt 0
.LBB0_0:
	.loc	1 35 25 is_stmt 1
	s_cmp_lt_i32 s8, 1
	s_cbranch_scc1 .LBB0_19
	.loc	1 38 34
	v_lshrrev_b32_e32 v6, 2, v0
	v_or_b32_e32 v4, 16, v6
	v_and_b32_e32 v1, 60, v0
	.loc	1 38 45 is_stmt 0
	v_mul_lo_u32 v4, s9, v4
	.loc	1 38 34
	v_lshrrev_b32_e32 v10, 1, v1
	.loc	1 38 32
	v_ashrrev_i32_e32 v5, 31, v4
	v_lshlrev_b32_e32 v14, 4, v0
	.loc	1 38 34
	v_or_b32_e32 v11, 1, v10
	.loc	1 38 32
	v_lshl_add_u64 v[4:5], v[4:5], 1, s[2:3]
	v_and_b32_e32 v8, 48, v14
	v_mov_b32_e32 v9, 0
	v_lshl_add_u64 v[16:17], v[4:5], 0, v[8:9]
	v_mul_lo_u32 v4, s8, v11
	v_ashrrev_i32_e32 v5, 31, v4
	.loc	1 38 45
	v_mul_lo_u32 v6, s9, v6
	v_lshl_add_u64 v[4:5], v[4:5], 1, s[4:5]
	.loc	1 38 32
	v_ashrrev_i32_e32 v7, 31, v6
	.loc	1 35 25 is_stmt 1
	v_lshl_add_u64 v[20:21], v[4:5], 0, v[8:9]
	v_mul_lo_u32 v4, s8, v10
	.loc	1 38 32
	v_lshl_add_u64 v[6:7], v[6:7], 1, s[2:3]
	s_cmp_gt_i32 s9, 0
	v_ashrrev_i32_e32 v5, 31, v4
	s_cselect_b64 s[0:1], -1, 0
	v_lshl_add_u64 v[18:19], v[6:7], 0, v[8:9]
	v_lshl_add_u64 v[6:7], v[4:5], 1, s[4:5]
	s_sub_i32 s16, s9, 32
	.loc	1 41 48
	v_and_b32_e32 v12, 32, v0
	.loc	1 41 27 is_stmt 0
	v_and_b32_e32 v13, 31, v0
	.loc	1 35 25 is_stmt 1
	v_lshl_add_u64 v[22:23], v[6:7], 0, v[8:9]
	v_lshl_add_u64 v[24:25], s[4:5], 0, v[8:9]
	s_cmp_gt_i32 s16, 0
	v_lshlrev_b32_e32 v8, 2, v0
	.loc	1 41 38
	v_mul_lo_u32 v2, s8, v13
	v_and_b32_e32 v5, 56, v0
	v_bfe_i32 v7, v0, 0, 1
	v_bfe_i32 v11, v0, 1, 1
	s_cselect_b64 s[4:5], -1, 0
	v_and_b32_e32 v8, 56, v8
	v_lshrrev_b32_e32 v15, 2, v12
	v_lshlrev_b32_e32 v26, 6, v0
	v_bfe_i32 v0, v0, 4, 1
	s_add_i32 s9, s9, 31
	.loc	1 41 25 is_stmt 0
	v_ashrrev_i32_e32 v3, 31, v2
	v_and_b32_e32 v11, 0x408, v11
	s_movk_i32 s3, 0x220
	v_xor_b32_e32 v8, v8, v15
	v_and_b32_e32 v0, 0x408, v0
	s_cmp_gt_i32 s9, 31
	v_lshl_add_u64 v[2:3], v[2:3], 2, s[6:7]
	v_and_or_b32 v7, v7, s3, v11
	v_lshl_or_b32 v34, v13, 6, v8
	v_xor_b32_e32 v0, v8, v0
	s_movk_i32 s3, 0x3c0
	s_cselect_b64 s[6:7], -1, 0
	.loc	1 35 25 is_stmt 1
	v_lshrrev_b32_e32 v8, 1, v12
	s_lshl_b32 s17, s8, 5
	v_xor_b32_e32 v5, v14, v5
	v_xor_b32_e32 v1, v7, v1
	v_and_or_b32 v35, v26, s3, v0
	v_lshl_add_u64 v[26:27], v[2:3], 0, v[8:9]
	s_cmp_gt_u32 s16, 32
	v_or_b32_e32 v2, 64, v10
	v_xor_b32_e32 v6, 8, v5
	v_xor_b32_e32 v7, 8, v1
	v_xor_b32_e32 v11, 16, v1
	v_xor_b32_e32 v14, 24, v1
	v_xor_b32_e32 v13, 16, v34
	v_xor_b32_e32 v15, 32, v34
	v_xor_b32_e32 v30, 48, v34
	v_xor_b32_e32 v0, 16, v35
	v_xor_b32_e32 v31, 32, v35
	v_xor_b32_e32 v32, 48, v35
	v_add_u32_e32 v28, s17, v4
	s_cselect_b64 s[10:11], -1, 0
	s_ashr_i32 s9, s8, 31
	v_mul_lo_u32 v36, s8, v2
	v_cndmask_b32_e64 v2, 0, 1, s[0:1]
	v_add_u32_e32 v1, 0, v1
	s_mov_b32 s2, 0
	v_ashrrev_i32_e32 v29, 31, v28
	s_lshl_b64 s[12:13], s[8:9], 1
	v_cmp_ne_u32_e64 s[0:1], 1, v2
	s_mov_b32 s9, 0x5040100
	s_mov_b32 s18, 0x7060302
	v_add_u32_e32 v37, 0, v5
	v_add_u32_e32 v38, 0, v6
	v_add_u32_e32 v39, 0x800, v1
	v_add_u32_e32 v40, 0, v7
	v_add_u32_e32 v41, 0, v11
	v_add_u32_e32 v42, 0, v14
	v_add_u32_e32 v43, 0, v13
	v_add_u32_e32 v44, 0, v15
	v_add_u32_e32 v45, 0, v30
	v_add_u32_e32 v46, 0, v0
	v_add_u32_e32 v47, 0, v31
	v_add_u32_e32 v48, 0, v32
	s_branch .LBB0_3
.LBB0_2:
	.loc	1 41 46
	v_lshl_add_u64 v[30:31], s[2:3], 2, v[26:27]
	.loc	1 35 25
	s_add_i32 s2, s2, 32
	s_cmp_lt_i32 s2, s8
	.loc	1 41 58
	s_nop 6
	global_store_dwordx4 v[30:31], v[0:3], off
	global_store_dwordx4 v[30:31], v[4:7], off offset:32
	global_store_dwordx4 v[30:31], v[8:11], off offset:64
	global_store_dwordx4 v[30:31], v[12:15], off offset:96
	.loc	1 35 25
	s_cbranch_scc0 .LBB0_19
.LBB0_3:
	.loc	1 38 24
	s_and_b64 vcc, exec, s[0:1]
	s_cbranch_vccnz .LBB0_8
	global_load_dwordx4 v[0:3], v[18:19], off
	s_and_b64 vcc, exec, s[0:1]
	s_cbranch_vccnz .LBB0_9
.LBB0_5:
	global_load_dwordx4 v[4:7], v[16:17], off
	.loc	1 39 24
	s_and_b64 vcc, exec, s[0:1]
	.loc	1 39 55 is_stmt 0
	s_ashr_i32 s3, s2, 31
	.loc	1 39 24
	s_cbranch_vccnz .LBB0_10
.LBB0_6:
	.loc	1 39 59
	v_lshl_add_u64 v[8:9], s[2:3], 1, v[22:23]
	.loc	1 39 24
	global_load_dwordx4 v[8:11], v[8:9], off
	s_and_b64 vcc, exec, s[0:1]
	s_cbranch_vccnz .LBB0_11
.LBB0_7:
	.loc	1 39 59
	v_lshl_add_u64 v[12:13], s[2:3], 1, v[20:21]
	.loc	1 39 24
	global_load_dwordx4 v[12:15], v[12:13], off
	s_branch .LBB0_12
.LBB0_8:
	.loc	1 0 24
	v_mov_b32_e32 v0, 0
	v_mov_b32_e32 v1, v0
	v_mov_b32_e32 v2, v0
	v_mov_b32_e32 v3, v0
	.loc	1 38 24 is_stmt 1
	s_and_b64 vcc, exec, s[0:1]
	s_cbranch_vccz .LBB0_5
.LBB0_9:
	.loc	1 0 24 is_stmt 0
	v_mov_b32_e32 v4, 0
	v_mov_b32_e32 v5, v4
	v_mov_b32_e32 v6, v4
	v_mov_b32_e32 v7, v4
	.loc	1 39 24 is_stmt 1
	s_and_b64 vcc, exec, s[0:1]
	.loc	1 39 55 is_stmt 0
	s_ashr_i32 s3, s2, 31
	.loc	1 39 24
	s_cbranch_vccz .LBB0_6
.LBB0_10:
	v_mov_b32_e32 v8, 0
	v_mov_b32_e32 v9, 0
	v_mov_b32_e32 v10, 0
	v_mov_b32_e32 v11, 0
	s_and_b64 vcc, exec, s[0:1]
	s_cbranch_vccz .LBB0_7
.LBB0_11:
	.loc	1 0 0
	v_mov_b32_e32 v12, 0
	v_mov_b32_e32 v13, 0
	v_mov_b32_e32 v14, 0
	v_mov_b32_e32 v15, 0
.LBB0_12:
	.loc	1 38 24 is_stmt 1
	s_waitcnt vmcnt(0) lgkmcnt(0)
	ds_write2st64_b64 v37, v[0:1], v[4:5] offset1:2
	ds_write2st64_b64 v38, v[2:3], v[6:7] offset1:2
	.loc	1 39 24
	v_perm_b32 v0, v12, v8, s9
	v_perm_b32 v1, v12, v8, s18
	ds_write2_b32 v39, v0, v1 offset1:16
	v_perm_b32 v0, v13, v9, s9
	v_perm_b32 v1, v13, v9, s18
	v_add_u32_e32 v51, 0x800, v40
	ds_write2_b32 v51, v0, v1 offset0:32 offset1:48
	v_perm_b32 v0, v14, v10, s9
	v_perm_b32 v1, v14, v10, s18
	v_add_u32_e32 v52, 0x800, v41
	ds_write2_b32 v52, v0, v1 offset0:64 offset1:80
	v_perm_b32 v0, v15, v11, s9
	v_perm_b32 v1, v15, v11, s18
	v_add_u32_e32 v53, 0x800, v42
	.loc	1 37 29
	s_andn2_b64 vcc, exec, s[4:5]
	v_add_u32_e32 v49, 0, v34
	v_add_u32_e32 v50, 0, v35
	.loc	1 39 24
	ds_write2_b32 v53, v0, v1 offset0:96 offset1:112
	.loc	1 37 29
	s_cbranch_vccnz .LBB0_16
	.loc	1 38 24
	global_load_dwordx4 v[54:57], v[18:19], off offset:64
	global_load_dwordx4 v[58:61], v[16:17], off offset:64
	s_waitcnt lgkmcnt(0)
	.loc	1 39 24
	ds_read_b64 v[30:31], v50 offset:2048
	.loc	1 38 24
	ds_read_b64 v[32:33], v49
	.loc	1 39 24
	ds_read_b64 v[62:63], v46 offset:2048
	ds_read_b64 v[64:65], v47 offset:2048
	ds_read_b64 v[72:73], v48 offset:2048
	.loc	1 38 24
	ds_read_b64 v[66:67], v43
	ds_read_b64 v[68:69], v44
	ds_read_b64 v[74:75], v45
	.loc	1 40 31
	s_waitcnt lgkmcnt(6)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[30:31], v[32:33], 0
	.loc	1 37 29
	v_lshl_add_u64 v[30:31], s[2:3], 1, v[24:25]
	.loc	1 39 59
	v_lshl_add_u64 v[32:33], v[28:29], 1, v[30:31]
	v_lshl_add_u64 v[70:71], v[32:33], 0, s[12:13]
	.loc	1 37 29
	s_andn2_b64 vcc, exec, s[10:11]
	.loc	1 40 31
	s_waitcnt lgkmcnt(2)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[62:63], v[66:67], v[0:15]
	s_waitcnt lgkmcnt(1)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[64:65], v[68:69], v[0:15]
	.loc	1 39 24
	global_load_dwordx4 v[62:65], v[32:33], off
	global_load_dwordx4 v[66:69], v[70:71], off
	.loc	1 38 24
	s_waitcnt vmcnt(2) lgkmcnt(0)
	ds_write2st64_b64 v37, v[54:55], v[58:59] offset1:2
	ds_write2st64_b64 v38, v[56:57], v[60:61] offset1:2
	.loc	1 40 31
	v_mfma_f32_32x32x8_bf16 v[0:15], v[72:73], v[74:75], v[0:15]
	.loc	1 39 24
	s_waitcnt vmcnt(0)
	v_perm_b32 v32, v66, v62, s9
	v_perm_b32 v33, v66, v62, s18
	v_perm_b32 v54, v67, v63, s9
	v_perm_b32 v55, v67, v63, s18
	v_perm_b32 v56, v68, v64, s9
	v_perm_b32 v57, v68, v64, s18
	v_perm_b32 v58, v69, v65, s9
	v_perm_b32 v59, v69, v65, s18
	ds_write2_b32 v39, v32, v33 offset1:16
	ds_write2_b32 v51, v54, v55 offset0:32 offset1:48
	ds_write2_b32 v52, v56, v57 offset0:64 offset1:80
	ds_write2_b32 v53, v58, v59 offset0:96 offset1:112
	.loc	1 37 29
	s_cbranch_vccnz .LBB0_17
	.loc	1 0 29 is_stmt 0
	s_mov_b32 s14, 32
	v_mov_b32_e32 v32, v36
.LBB0_15:
	.loc	1 37 29 is_stmt 1
	s_add_i32 s14, s14, 32
	.loc	1 38 49
	s_ashr_i32 s15, s14, 31
	.loc	1 38 53 is_stmt 0
	s_lshl_b64 s[20:21], s[14:15], 1
	.loc	1 39 32 is_stmt 1
	v_ashrrev_i32_e32 v33, 31, v32
	.loc	1 38 53
	v_lshl_add_u64 v[62:63], v[18:19], 0, s[20:21]
	v_lshl_add_u64 v[64:65], v[16:17], 0, s[20:21]
	.loc	1 39 59
	v_lshl_add_u64 v[70:71], v[32:33], 1, v[30:31]
	.loc	1 38 24
	global_load_dwordx4 v[54:57], v[62:63], off
	global_load_dwordx4 v[58:61], v[64:65], off
	s_waitcnt lgkmcnt(0)
	.loc	1 39 59
	v_lshl_add_u64 v[72:73], v[70:71], 0, s[12:13]
	.loc	1 39 24 is_stmt 0
	global_load_dwordx4 v[62:65], v[70:71], off
	global_load_dwordx4 v[66:69], v[72:73], off
	ds_read_b64 v[70:71], v50 offset:2048
	.loc	1 38 24 is_stmt 1
	ds_read_b64 v[72:73], v49
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[70:71], v[72:73], v[0:15]
	.loc	1 39 24
	ds_read_b64 v[70:71], v46 offset:2048
	.loc	1 38 24
	ds_read_b64 v[72:73], v43
	.loc	1 37 29
	s_cmp_lt_i32 s14, s16
	v_add_u32_e32 v32, s17, v32
	.loc	1 39 24
	s_waitcnt vmcnt(0)
	v_perm_b32 v33, v66, v62, s9
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[70:71], v[72:73], v[0:15]
	.loc	1 39 24
	ds_read_b64 v[70:71], v47 offset:2048
	.loc	1 38 24
	ds_read_b64 v[72:73], v44
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[70:71], v[72:73], v[0:15]
	.loc	1 39 24
	ds_read_b64 v[70:71], v48 offset:2048
	.loc	1 38 24
	ds_read_b64 v[72:73], v45
	s_waitcnt lgkmcnt(0)
	ds_write2st64_b64 v37, v[54:55], v[58:59] offset1:2
	ds_write2st64_b64 v38, v[56:57], v[60:61] offset1:2
	.loc	1 39 24
	v_perm_b32 v54, v66, v62, s18
	v_perm_b32 v55, v67, v63, s9
	v_perm_b32 v56, v67, v63, s18
	v_perm_b32 v57, v68, v64, s9
	.loc	1 40 31
	v_mfma_f32_32x32x8_bf16 v[0:15], v[70:71], v[72:73], v[0:15]
	.loc	1 39 24
	v_perm_b32 v58, v68, v64, s18
	v_perm_b32 v59, v69, v65, s9
	v_perm_b32 v60, v69, v65, s18
	ds_write2_b32 v39, v33, v54 offset1:16
	ds_write2_b32 v51, v55, v56 offset0:32 offset1:48
	ds_write2_b32 v52, v57, v58 offset0:64 offset1:80
	ds_write2_b32 v53, v59, v60 offset0:96 offset1:112
	.loc	1 37 29
	s_cbranch_scc1 .LBB0_15
	s_branch .LBB0_17
.LBB0_16:
	.loc	1 0 29 is_stmt 0
	v_mov_b32_e32 v0, 0
	v_mov_b32_e32 v1, v0
	v_mov_b32_e32 v2, v0
	v_mov_b32_e32 v3, v0
	v_mov_b32_e32 v4, v0
	v_mov_b32_e32 v5, v0
	v_mov_b32_e32 v6, v0
	v_mov_b32_e32 v7, v0
	v_mov_b32_e32 v8, v0
	v_mov_b32_e32 v9, v0
	v_mov_b32_e32 v10, v0
	v_mov_b32_e32 v11, v0
	v_mov_b32_e32 v12, v0
	v_mov_b32_e32 v13, v0
	v_mov_b32_e32 v14, v0
	v_mov_b32_e32 v15, v0
.LBB0_17:
	.loc	1 40 31 is_stmt 1
	s_andn2_b64 vcc, exec, s[6:7]
	.loc	1 38 24
	s_waitcnt lgkmcnt(0)
	.loc	1 40 31
	s_cbranch_vccnz .LBB0_2
	.loc	1 39 24
	ds_read_b64 v[30:31], v50 offset:2048
	.loc	1 38 24
	ds_read_b64 v[32:33], v49
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[30:31], v[32:33], v[0:15]
	.loc	1 39 24
	ds_read_b64 v[30:31], v46 offset:2048
	.loc	1 38 24
	ds_read_b64 v[32:33], v43
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[30:31], v[32:33], v[0:15]
	.loc	1 39 24
	ds_read_b64 v[30:31], v47 offset:2048
	.loc	1 38 24
	ds_read_b64 v[32:33], v44
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[30:31], v[32:33], v[0:15]
	.loc	1 39 24
	ds_read_b64 v[30:31], v48 offset:2048
	.loc	1 38 24
	ds_read_b64 v[32:33], v45
	.loc	1 40 31
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[0:15], v[30:31], v[32:33], v[0:15]
	s_branch .LBB0_2
.LBB0_19:
	.loc	1 35 4
	s_endpgm
