	.file	1 "kernels.py"
matmul:
	.loc	1 8 0 prologue_end
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_load_dwordx8 s[4:11], s[0:1], 0x8
	s_load_dwordx2 s[12:13], s[0:1], 0x28
	s_waitcnt lgkmcnt(0)
	s_branch .LBB0_0
	.loc	1 0 0 is_stmt 0
.LBB0_0:
	.loc	1 13 30 is_stmt 1
	v_lshrrev_b32_e32 v36, 2, v0
	.loc	1 13 41 is_stmt 0
	v_mul_lo_u32 v6, s8, v36
	.loc	1 13 51
	v_lshlrev_b32_e32 v1, 3, v0
	.loc	1 13 28
	v_ashrrev_i32_e32 v7, 31, v6
	.loc	1 13 51
	v_and_b32_e32 v2, 24, v1
	.loc	1 12 25 is_stmt 1
	s_cmp_gt_i32 s8, 0
	.loc	1 13 28
	v_lshl_add_u64 v[20:21], v[6:7], 1, s[2:3]
	.loc	1 12 25
	s_cselect_b64 s[10:11], -1, 0
	s_cmp_lt_i32 s8, 1
	.loc	1 13 49
	v_mov_b32_e32 v23, 0
	v_lshlrev_b32_e32 v22, 1, v2
	.loc	1 13 20 is_stmt 0
	s_cbranch_scc1 .LBB0_2
	.loc	1 0 20
	v_lshl_add_u64 v[2:3], v[20:21], 0, v[22:23]
	.loc	1 13 20
	global_load_dwordx4 v[2:5], v[2:3], off
	s_branch .LBB0_3
.LBB0_2:
	.loc	1 0 20
	v_mov_b32_e32 v2, 0
	v_mov_b32_e32 v3, v2
	v_mov_b32_e32 v4, v2
	v_mov_b32_e32 v5, v2
.LBB0_3:
	.loc	1 13 41 is_stmt 1
	v_lshl_add_u32 v6, s8, 4, v6
	.loc	1 13 28 is_stmt 0
	v_ashrrev_i32_e32 v7, 31, v6
	v_lshl_add_u64 v[6:7], v[6:7], 1, s[2:3]
	.loc	1 13 20
	v_cndmask_b32_e64 v1, 0, 1, s[10:11]
	v_cmp_ne_u32_e64 s[0:1], 1, v1
	s_andn2_b64 vcc, exec, s[10:11]
	.loc	1 13 49
	v_lshl_add_u64 v[18:19], v[6:7], 0, v[22:23]
	.loc	1 13 20
	s_cbranch_vccnz .LBB0_5
	global_load_dwordx4 v[6:9], v[18:19], off
	s_branch .LBB0_6
.LBB0_5:
	.loc	1 0 20
	v_mov_b32_e32 v6, 0
	v_mov_b32_e32 v7, v6
	v_mov_b32_e32 v8, v6
	v_mov_b32_e32 v9, v6
.LBB0_6:
	v_and_b32_e32 v1, 60, v0
	v_mov_b32_e32 v27, 0
	.loc	1 14 20 is_stmt 1
	s_and_b64 vcc, exec, s[0:1]
	v_lshlrev_b32_e32 v26, 5, v1
	s_cbranch_vccnz .LBB0_9
	.loc	1 0 20 is_stmt 0
	v_lshl_add_u64 v[10:11], s[4:5], 0, v[26:27]
	v_mov_b32_e32 v23, v27
	v_lshl_add_u64 v[10:11], v[10:11], 0, v[22:23]
	.loc	1 14 20
	global_load_dwordx4 v[10:13], v[10:11], off
	s_waitcnt vmcnt(0)
	v_mov_b32_e32 v27, v10
	s_and_b64 vcc, exec, s[0:1]
	v_mov_b32_e32 v25, 0
	s_cbranch_vccnz .LBB0_10
.LBB0_8:
	.loc	1 14 28
	v_lshl_or_b32 v24, v1, 5, 64
	v_lshl_add_u64 v[14:15], s[4:5], 0, v[24:25]
	.loc	1 14 55
	v_mov_b32_e32 v23, v25
	v_lshl_add_u64 v[14:15], v[14:15], 0, v[22:23]
	.loc	1 14 20
	global_load_dwordx4 v[14:17], v[14:15], off
	s_waitcnt vmcnt(0)
	v_mov_b32_e32 v25, v14
	s_branch .LBB0_11
.LBB0_9:
	v_mov_b32_e32 v11, 0
	v_mov_b32_e32 v12, 0
	v_mov_b32_e32 v13, 0
	s_and_b64 vcc, exec, s[0:1]
	v_mov_b32_e32 v25, 0
	s_cbranch_vccz .LBB0_8
.LBB0_10:
	.loc	1 0 0
	v_mov_b32_e32 v15, 0
	v_mov_b32_e32 v16, 0
	v_mov_b32_e32 v17, 0
.LBB0_11:
	.loc	1 13 20 is_stmt 1
	v_lshlrev_b32_e32 v44, 4, v0
	v_and_b32_e32 v10, 56, v0
	v_xor_b32_e32 v10, v44, v10
	v_add_u32_e32 v30, 0, v10
	s_waitcnt vmcnt(0)
	ds_write2st64_b64 v30, v[2:3], v[6:7] offset1:2
	v_xor_b32_e32 v2, 8, v10
	.loc	1 14 20
	v_bfe_i32 v3, v0, 1, 1
	.loc	1 13 20
	v_add_u32_e32 v31, 0, v2
	.loc	1 14 20
	v_bfe_i32 v2, v0, 0, 1
	v_and_b32_e32 v3, 0x408, v3
	s_movk_i32 s0, 0x220
	v_and_or_b32 v2, v2, s0, v3
	v_xor_b32_e32 v1, v2, v1
	v_add_u32_e32 v32, 0, v1
	s_mov_b32 s1, 0x5040100
	s_mov_b32 s3, 0x7060302
	v_perm_b32 v2, v25, v27, s1
	v_perm_b32 v3, v25, v27, s3
	v_add_u32_e32 v45, 0x800, v32
	ds_write2_b32 v45, v2, v3 offset1:16
	v_xor_b32_e32 v2, 8, v1
	v_add_u32_e32 v33, 0, v2
	v_perm_b32 v2, v15, v11, s1
	v_perm_b32 v3, v15, v11, s3
	v_add_u32_e32 v46, 0x800, v33
	ds_write2_b32 v46, v2, v3 offset0:32 offset1:48
	v_xor_b32_e32 v2, 16, v1
	v_add_u32_e32 v34, 0, v2
	v_xor_b32_e32 v1, 24, v1
	v_perm_b32 v2, v16, v12, s1
	v_perm_b32 v3, v16, v12, s3
	v_add_u32_e32 v47, 0x800, v34
	v_add_u32_e32 v35, 0, v1
	ds_write2_b32 v47, v2, v3 offset0:64 offset1:80
	v_perm_b32 v1, v17, v13, s1
	v_perm_b32 v2, v17, v13, s3
	v_add_u32_e32 v48, 0x800, v35
	.loc	1 12 25
	s_sub_i32 s2, s8, 32
	.loc	1 14 20
	ds_write2_b32 v48, v1, v2 offset0:96 offset1:112
	v_mov_b32_e32 v23, 0
	.loc	1 12 25
	s_cmp_lt_i32 s2, 1
	v_bfe_i32 v28, v0, 4, 1
	v_lshlrev_b32_e32 v1, 6, v0
	v_lshlrev_b32_e32 v29, 2, v0
	.loc	1 13 20
	ds_write2st64_b64 v31, v[4:5], v[8:9] offset1:2
	.loc	1 12 25
	s_cbranch_scc1 .LBB0_15
	.loc	1 0 25 is_stmt 0
	v_and_b32_e32 v2, 56, v29
	v_and_b32_e32 v3, 8, v36
	v_and_b32_e32 v4, 0x408, v28
	v_xor_b32_e32 v2, v2, v3
	s_movk_i32 s0, 0x3c0
	v_xor_b32_e32 v3, v2, v4
	v_and_or_b32 v3, v1, s0, v3
	s_movk_i32 s0, 0x7c0
	v_and_or_b32 v2, v1, s0, v2
	.loc	1 12 25
	v_lshl_add_u64 v[20:21], v[20:21], 0, v[22:23]
	v_add_u32_e32 v37, 0, v2
	.loc	1 13 20 is_stmt 1
	global_load_dwordx4 v[50:53], v[20:21], off offset:64
	global_load_dwordx4 v[54:57], v[18:19], off offset:64
	s_waitcnt lgkmcnt(0)
	ds_read_b64 v[24:25], v37
	v_xor_b32_e32 v4, 16, v3
	.loc	1 14 20
	v_add_u32_e32 v38, 0, v4
	v_xor_b32_e32 v4, 16, v2
	v_add_u32_e32 v36, 0, v3
	v_add_u32_e32 v39, 0, v4
	v_xor_b32_e32 v4, 32, v3
	v_xor_b32_e32 v3, 48, v3
	v_add_u32_e32 v40, 0, v4
	v_add_u32_e32 v42, 0, v3
	ds_read_b64 v[58:59], v36 offset:2048
	ds_read_b64 v[60:61], v38 offset:2048
	ds_read_b64 v[62:63], v40 offset:2048
	ds_read_b64 v[66:67], v42 offset:2048
	v_xor_b32_e32 v4, 32, v2
	v_xor_b32_e32 v2, 48, v2
	v_add_u32_e32 v41, 0, v4
	v_add_u32_e32 v43, 0, v2
	.loc	1 15 27
	s_waitcnt lgkmcnt(3)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[58:59], v[24:25], 0
	.loc	1 13 20
	ds_read_b64 v[64:65], v39
	ds_read_b64 v[68:69], v41
	ds_read_b64 v[70:71], v43
	.loc	1 12 25
	v_lshl_add_u64 v[24:25], s[4:5], 0, v[22:23]
	.loc	1 14 55
	v_mov_b32_e32 v27, v23
	v_lshl_add_u64 v[22:23], v[24:25], 0, v[26:27]
	s_mov_b32 s0, 32
	.loc	1 12 25
	s_cmp_lt_u32 s2, 33
	.loc	1 15 27
	s_waitcnt lgkmcnt(2)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[60:61], v[64:65], v[2:17]
	s_waitcnt lgkmcnt(1)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[62:63], v[68:69], v[2:17]
	.loc	1 14 20
	global_load_dwordx4 v[58:61], v[22:23], off offset:2048
	global_load_dwordx4 v[62:65], v[22:23], off offset:2112
	.loc	1 13 20
	s_waitcnt vmcnt(2) lgkmcnt(0)
	ds_write2st64_b64 v30, v[50:51], v[54:55] offset1:2
	ds_write2st64_b64 v31, v[52:53], v[56:57] offset1:2
	.loc	1 15 27
	v_mfma_f32_32x32x8_bf16 v[2:17], v[66:67], v[70:71], v[2:17]
	.loc	1 14 20
	s_waitcnt vmcnt(0)
	v_perm_b32 v22, v62, v58, s1
	v_perm_b32 v23, v62, v58, s3
	v_perm_b32 v26, v63, v59, s1
	v_perm_b32 v27, v63, v59, s3
	v_perm_b32 v49, v64, v60, s1
	v_perm_b32 v50, v64, v60, s3
	v_perm_b32 v51, v65, v61, s1
	v_perm_b32 v52, v65, v61, s3
	ds_write2_b32 v45, v22, v23 offset1:16
	ds_write2_b32 v46, v26, v27 offset0:32 offset1:48
	ds_write2_b32 v47, v49, v50 offset0:64 offset1:80
	ds_write2_b32 v48, v51, v52 offset0:96 offset1:112
	.loc	1 12 25
	s_cbranch_scc1 .LBB0_16
	v_and_b32_e32 v22, 0x3c0, v44
	v_or_b32_e32 v22, 0x800, v22
	s_mov_b32 s3, 0x5040100
	s_mov_b32 s4, 0x7060302
.LBB0_14:
	s_add_i32 s0, s0, 32
	.loc	1 13 45
	s_ashr_i32 s1, s0, 31
	.loc	1 13 49 is_stmt 0
	s_lshl_b64 s[10:11], s[0:1], 1
	v_lshl_add_u64 v[26:27], v[20:21], 0, s[10:11]
	v_lshl_add_u64 v[52:53], v[18:19], 0, s[10:11]
	.loc	1 13 20
	global_load_dwordx4 v[44:47], v[26:27], off
	global_load_dwordx4 v[48:51], v[52:53], off
	s_waitcnt lgkmcnt(0)
	.loc	1 14 20 is_stmt 1
	ds_read_b64 v[26:27], v36 offset:2048
	.loc	1 13 20
	ds_read_b64 v[52:53], v37
	.loc	1 14 20
	ds_read_b64 v[54:55], v38 offset:2048
	ds_read_b64 v[56:57], v40 offset:2048
	ds_read_b64 v[62:63], v42 offset:2048
	.loc	1 13 20
	ds_read_b64 v[58:59], v39
	ds_read_b64 v[60:61], v41
	ds_read_b64 v[64:65], v43
	.loc	1 15 27
	s_waitcnt lgkmcnt(6)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[26:27], v[52:53], v[2:17]
	.loc	1 14 28
	v_ashrrev_i32_e32 v23, 31, v22
	.loc	1 14 55 is_stmt 0
	v_lshl_add_u64 v[26:27], v[22:23], 1, v[24:25]
	.loc	1 14 20
	v_add_u32_e32 v23, 0x800, v32
	.loc	1 12 25 is_stmt 1
	s_cmp_lt_i32 s0, s2
	v_add_u32_e32 v22, 0x400, v22
	.loc	1 15 27
	s_waitcnt lgkmcnt(2)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[54:55], v[58:59], v[2:17]
	s_waitcnt lgkmcnt(1)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[56:57], v[60:61], v[2:17]
	.loc	1 14 20
	global_load_dwordx4 v[52:55], v[26:27], off
	global_load_dwordx4 v[56:59], v[26:27], off offset:64
	.loc	1 13 20
	s_waitcnt lgkmcnt(0)
	.loc	1 14 20
	v_add_u32_e32 v26, 0x800, v33
	v_add_u32_e32 v27, 0x800, v34
	v_add_u32_e32 v60, 0x800, v35
	.loc	1 13 20
	s_waitcnt vmcnt(2)
	ds_write2st64_b64 v30, v[44:45], v[48:49] offset1:2
	ds_write2st64_b64 v31, v[46:47], v[50:51] offset1:2
	.loc	1 15 27
	v_mfma_f32_32x32x8_bf16 v[2:17], v[62:63], v[64:65], v[2:17]
	.loc	1 14 20
	s_waitcnt vmcnt(0)
	v_perm_b32 v44, v56, v52, s3
	v_perm_b32 v45, v56, v52, s4
	v_perm_b32 v46, v57, v53, s3
	v_perm_b32 v47, v57, v53, s4
	v_perm_b32 v48, v58, v54, s3
	v_perm_b32 v49, v58, v54, s4
	v_perm_b32 v50, v59, v55, s3
	v_perm_b32 v51, v59, v55, s4
	ds_write2_b32 v23, v44, v45 offset1:16
	ds_write2_b32 v26, v46, v47 offset0:32 offset1:48
	ds_write2_b32 v27, v48, v49 offset0:64 offset1:80
	ds_write2_b32 v60, v50, v51 offset0:96 offset1:112
	.loc	1 12 25
	s_cbranch_scc1 .LBB0_14
	s_branch .LBB0_16
.LBB0_15:
	.loc	1 0 25 is_stmt 0
	v_mov_b32_e32 v2, 0
	v_mov_b32_e32 v3, v2
	v_mov_b32_e32 v4, v2
	v_mov_b32_e32 v5, v2
	v_mov_b32_e32 v6, v2
	v_mov_b32_e32 v7, v2
	v_mov_b32_e32 v8, v2
	v_mov_b32_e32 v9, v2
	v_mov_b32_e32 v10, v2
	v_mov_b32_e32 v11, v2
	v_mov_b32_e32 v12, v2
	v_mov_b32_e32 v13, v2
	v_mov_b32_e32 v14, v2
	v_mov_b32_e32 v15, v2
	v_mov_b32_e32 v16, v2
	v_mov_b32_e32 v17, v2
.LBB0_16:
	.loc	1 12 25 is_stmt 1
	s_add_i32 s8, s8, 31
	s_cmp_lt_i32 s8, 32
	.loc	1 13 20
	v_and_b32_e32 v18, 31, v0
	v_and_b32_e32 v0, 32, v0
	s_waitcnt lgkmcnt(0)
	.loc	1 15 27
	s_cbranch_scc1 .LBB0_18
	.loc	1 13 20
	v_and_b32_e32 v19, 56, v29
	v_lshrrev_b32_e32 v21, 2, v0
	.loc	1 14 20
	v_and_b32_e32 v20, 0x408, v28
	.loc	1 13 20
	v_xor_b32_e32 v19, v19, v21
	.loc	1 14 20
	v_xor_b32_e32 v20, v19, v20
	s_movk_i32 s0, 0x3c0
	v_and_or_b32 v1, v1, s0, v20
	v_add_u32_e32 v20, 0, v1
	ds_read_b64 v[22:23], v20 offset:2048
	.loc	1 13 20
	v_lshl_or_b32 v19, v18, 6, v19
	v_add_u32_e32 v20, 0, v19
	ds_read_b64 v[24:25], v20
	.loc	1 14 20
	v_xad_u32 v20, v1, 16, 0
	.loc	1 15 27
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[22:23], v[24:25], v[2:17]
	.loc	1 14 20
	ds_read_b64 v[22:23], v20 offset:2048
	.loc	1 13 20
	v_xad_u32 v20, v19, 16, 0
	ds_read_b64 v[24:25], v20
	.loc	1 14 20
	v_xad_u32 v20, v1, 32, 0
	v_xad_u32 v1, v1, 48, 0
	.loc	1 15 27
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[22:23], v[24:25], v[2:17]
	.loc	1 14 20
	ds_read_b64 v[22:23], v20 offset:2048
	.loc	1 13 20
	v_xad_u32 v20, v19, 32, 0
	ds_read_b64 v[20:21], v20
	.loc	1 15 27
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[22:23], v[20:21], v[2:17]
	.loc	1 14 20
	ds_read_b64 v[20:21], v1 offset:2048
	.loc	1 13 20
	v_xad_u32 v1, v19, 48, 0
	ds_read_b64 v[22:23], v1
	.loc	1 15 27
	s_waitcnt lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16 v[2:17], v[20:21], v[22:23], v[2:17]
.LBB0_18:
	.loc	1 16 21
	v_lshlrev_b32_e32 v18, 7, v18
	v_mov_b32_e32 v19, 0
	v_lshl_add_u64 v[20:21], s[6:7], 0, v[18:19]
	.loc	1 16 42 is_stmt 0
	v_lshrrev_b32_e32 v18, 1, v0
	v_lshl_add_u64 v[0:1], v[20:21], 0, v[18:19]
	.loc	1 16 54
	s_nop 5
	global_store_dwordx4 v[0:1], v[2:5], off
	global_store_dwordx4 v[0:1], v[6:9], off offset:32
	global_store_dwordx4 v[0:1], v[10:13], off offset:64
	global_store_dwordx4 v[0:1], v[14:17], off offset:96
	.loc	1 16 4
	s_endpgm
