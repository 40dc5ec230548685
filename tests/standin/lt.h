/* Between the files of libcublasLt's stand-in. */
#ifndef STANDIN_LT_H
#define STANDIN_LT_H

#include "standin.h"

typedef struct {
	uint32_t type;
	int32_t order;
	uint64_t rows, cols;
	int64_t ld;
	int32_t batch;
	int64_t stride, plane;
	uint32_t mode;
} Layout;

typedef struct {
	int32_t compute, scale, pointer_mode, transa, transb, transc, fill;
	uint32_t epilogue;
	void *bias;
	int64_t bias_stride;
	void *aux;
	int64_t aux_ld, aux_stride, alpha_stride;
	int32_t sm_count;
	void *a_scale, *b_scale, *c_scale, *d_scale, *amax_d;
	int32_t aux_type;
	void *aux_scale, *aux_amax;
	int8_t fast_accum;
	int32_t bias_type, a_mode, b_mode, c_mode, d_mode, aux_mode;
	void *d_out;
	int32_t d_out_mode;
	void *emulation;
} Desc;

typedef struct {
	uint32_t search;
	uint64_t workspace;
	uint32_t reduction, align_a, align_b, align_c, align_d;
	float waves;
	uint64_t impl;
} Pref;

/* What cublasLtMatmulAlgo_t holds. */
typedef struct {
	uint64_t magic;
	int32_t id, splitk;
	uint32_t reduction, align[4];   /* of A, B, C, D: pointers, in bytes */
	uint32_t types;                 /* that it was made for */
} Algo;

typedef struct {
	const Desc *desc;
	const Layout *a, *b, *c, *d;
	long m, n, k;
} Problem;

/* lt_problem.c */

/* Fills m, n, k.  CUBLAS_STATUS_SUCCESS, or why not. */
cublasStatus_t problem_check(Problem *p, const char **why);
bool is_fp8(uint32_t type);
size_t type_size(uint32_t type);        /* 0: not one that the stand-in knows */
uint32_t problem_types(const Problem *p);
/* Bytes from the first element to the end of the last, all of the batch. */
size_t layout_extent(const Layout *l);
/* The i-th algorithm of the heuristic that fits, best first; false: no more. */
bool algo_make(const Problem *p, const Pref *pref, int i, Algo *out);
size_t algo_workspace(const Problem *p, const Algo *a);
/* It can run this problem: an algorithm is data that anyone may have kept. */
cublasStatus_t algo_check(const Problem *p, const Algo *a, const char **why);

/* lt_matmul.c */

typedef struct {
	Desc desc;
	Layout a, b, c, d;
	long m, n, k;
	Algo algo;
	const void *pa, *pb, *pc;
	void *pd, *workspace;
	size_t nworkspace;
	float alpha, beta;
	const StandinHooks *hooks;
} Matmul;

CUresult matmul_run(void *payload);

#endif
