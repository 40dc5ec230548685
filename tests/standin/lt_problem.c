/* What cuBLASLt can multiply, and with which algorithms.
 *
 * Combinations of types, shapes and strides are those of the tables of
 * cublasLtMatmul() in the cuBLAS documentation, as far as a GPT needs them.
 *
 * The heuristic offers algorithms that round differently (order of sums, split
 * K), so that a caller who takes another one from run to run is seen. */
#define _GNU_SOURCE
#include "lt.h"

#include <limits.h>

enum { AlgoMagic = 0x414c474f, MostAligned = 256, Vector = 16, Fp8Multiple = 16 };

/* one per line of algos[] */
enum { ALGO_WIDE, ALGO_PLAIN, ALGO_CHUNKS, ALGO_SPLITK, ALGO_SCRATCH, NAlgo };

size_t
type_size(uint32_t type)
{
	switch ((int)type) {
	case CUDA_R_32F: return 4;
	case CUDA_R_16BF: return 2;
	case CUDA_R_8F_E4M3:
	case CUDA_R_8F_E5M2: return 1;
	}
	return 0;
}

uint32_t
problem_types(const Problem *p)
{
	return p->a->type | p->b->type << 6 | p->c->type << 12 | p->d->type << 18 |
	       (uint32_t)(p->desc->transa != 0) << 24 | (uint32_t)(p->desc->transb != 0) << 25;
}

size_t
layout_extent(const Layout *l)
{
	size_t one = (size_t)l->ld * (l->cols - 1) + l->rows, batch = (size_t)(l->batch - 1);

	return (one + batch * (size_t)l->stride) * type_size(l->type);
}

bool
is_fp8(uint32_t type)
{
	return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2;
}

#define NO(status, words) return *why = (words), (cublasStatus_t)(status)

static cublasStatus_t
check_desc(const Desc *d, const char **why)
{
	if (d->compute != CUBLAS_COMPUTE_32F && d->compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
	    d->compute != CUBLAS_COMPUTE_32F_FAST_TF32)
		NO(CUBLAS_STATUS_NOT_SUPPORTED,
		   "a compute type other than 32F, its pedantic form or TF32");
	if (d->scale != CUDA_R_32F)
		NO(CUBLAS_STATUS_NOT_SUPPORTED,
		   "a scale type other than CUDA_R_32F with a 32F compute type");
	if (d->transa < 0 || d->transa > CUBLAS_OP_C || d->transb < 0 || d->transb > CUBLAS_OP_C)
		NO(CUBLAS_STATUS_INVALID_VALUE, "an operation that does not exist");
	if (d->transc != CUBLAS_OP_N)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "TRANSC other than CUBLAS_OP_N");
	if (d->fill != CUBLAS_FILL_MODE_FULL)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "a fill mode other than full");
	if (d->pointer_mode != CUBLASLT_POINTER_MODE_HOST)
		NO(CUBLAS_STATUS_NOT_SUPPORTED,
		   "alpha and beta elsewhere than on the host: not in the stand-in");
	if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT || d->bias || d->aux || d->amax_d || d->d_out)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "an epilogue: not in the stand-in");
	if (d->a_mode || d->b_mode || d->c_mode || d->d_mode || d->c_scale || d->d_scale)
		NO(CUBLAS_STATUS_NOT_SUPPORTED,
		   "scales other than one number for A and one for B: not in the stand-in");
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
check_layout(const Layout *l, const char **why)
{
	if (!type_size(l->type))
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "a type other than 32F, 16BF, 8F_E4M3, 8F_E5M2");
	if (l->order != CUBLASLT_ORDER_COL || l->plane != 0 ||
	    l->mode != CUBLASLT_BATCH_MODE_STRIDED)
		NO(CUBLAS_STATUS_NOT_SUPPORTED,
		   "memory order other than column-major, or no strided batch");
	if (l->rows == 0 || l->cols == 0 || l->batch < 1)
		NO(CUBLAS_STATUS_INVALID_VALUE, "a matrix without elements");
	if (l->rows > INT_MAX || l->cols > INT_MAX)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "more rows or columns than an int holds");
	if (l->ld < (int64_t)l->rows)
		NO(CUBLAS_STATUS_INVALID_VALUE,
		   "a leading dimension below the number of rows: columns overlap");
	if (l->stride < 0)
		NO(CUBLAS_STATUS_INVALID_VALUE, "a negative stride");
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
check_fp8(const Problem *p, const char **why)
{
	if (device_cc() < 89)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "FP8 on a device before compute capability 8.9");
	if (p->desc->compute != CUBLAS_COMPUTE_32F)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "FP8 with a compute type other than 32F");
	if (!is_fp8(p->a->type) || !is_fp8(p->b->type))
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "FP8 with another type");
	if (p->a->type == CUDA_R_8F_E5M2 && p->b->type == CUDA_R_8F_E5M2)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "E5M2 times E5M2");
	if (p->desc->transa == CUBLAS_OP_N || p->desc->transb != CUBLAS_OP_N)
		NO(CUBLAS_STATUS_NOT_SUPPORTED,
		   "FP8 with A not transposed or B transposed: Hopper multiplies TN alone");
	if (p->m % Fp8Multiple || p->n % Fp8Multiple || p->k % Fp8Multiple ||
	    p->a->ld % Fp8Multiple || p->b->ld % Fp8Multiple)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "FP8 with a dimension that is no multiple of 16");
	if (is_fp8(p->d->type))
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "a result in FP8: not in the stand-in");
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
check_types(const Problem *p, const char **why)
{
	uint32_t a = p->a->type, b = p->b->type, c = p->c->type, d = p->d->type;

	if (c != d)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "C and D of different types");
	if (is_fp8(a) || is_fp8(b))
		return check_fp8(p, why);
	if (a != b)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "A and B of different types");
	if (p->desc->a_scale || p->desc->b_scale)
		NO(CUBLAS_STATUS_INVALID_VALUE, "a scale of A or B that are not FP8");
	if (a == CUDA_R_32F && d != CUDA_R_32F)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "32F times 32F with a result that is not 32F");
	if (d != CUDA_R_32F && d != CUDA_R_16BF)
		NO(CUBLAS_STATUS_NOT_SUPPORTED, "a result other than 32F or 16BF");
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
check_batch(const Problem *p, const char **why)
{
	const Layout *d = p->d;

	if (p->a->batch != d->batch || p->b->batch != d->batch || p->c->batch != d->batch)
		NO(CUBLAS_STATUS_INVALID_VALUE, "different batch counts");
	if (d->batch > 1 && d->stride < d->ld * (int64_t)(d->cols - 1) + (int64_t)d->rows)
		NO(CUBLAS_STATUS_INVALID_VALUE, "a stride that makes results of the batch overlap");
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
problem_check(Problem *p, const char **why)
{
	const Layout *all[4] = { p->a, p->b, p->c, p->d };
	bool ta = p->desc->transa != CUBLAS_OP_N, tb = p->desc->transb != CUBLAS_OP_N;
	cublasStatus_t r = check_desc(p->desc, why);

	for (int i = 0; i < 4 && !r; i++)
		r = check_layout(all[i], why);
	if (r)
		return r;
	p->m = (long)p->d->rows;
	p->n = (long)p->d->cols;
	p->k = (long)(ta ? p->a->rows : p->a->cols);
	if ((long)(ta ? p->a->cols : p->a->rows) != p->m ||
	    (long)(tb ? p->b->rows : p->b->cols) != p->n ||
	    (long)(tb ? p->b->cols : p->b->rows) != p->k)
		NO(CUBLAS_STATUS_INVALID_VALUE, "shapes of A, B and D that do not fit each other");
	if ((long)p->c->rows != p->m || (long)p->c->cols != p->n)
		NO(CUBLAS_STATUS_INVALID_VALUE, "C and D of different shapes");
	r = check_types(p, why);
	return r ? r : check_batch(p, why);
}

/* ---- algorithms ---- */

static bool
is_power(uint32_t n)
{
	return n > 0 && (n & (n - 1)) == 0;
}

/* the largest power of two that divides the column stride, at most that promised, at most 16 */
static uint32_t
natural_alignment(const Layout *l, uint32_t promised)
{
	uint64_t bytes = (uint64_t)l->ld * type_size(l->type);
	uint32_t n = Vector;

	while (bytes % n != 0 || n > promised)
		n /= 2;
	return n;
}

static size_t
round_up(size_t n)
{
	return (n + MostAligned - 1) / MostAligned * MostAligned;
}

size_t
algo_workspace(const Problem *p, const Algo *a)
{
	if (a->id == ALGO_SPLITK)
		return round_up(4 * (size_t)a->splitk * (size_t)(p->m * p->n));
	return a->id == ALGO_SCRATCH ? 1 << 20 : 0;
}

static bool
algo_of_id(const Problem *p, const Pref *pref, int id, Algo *out)
{
	const Layout *l[4] = { p->a, p->b, p->c, p->d };
	uint32_t promised[4] = { pref->align_a, pref->align_b, pref->align_c, pref->align_d };

	*out = (Algo){ AlgoMagic, id, 1, CUBLASLT_REDUCTION_SCHEME_NONE, { 0 }, problem_types(p) };
	for (int i = 0; i < 4; i++) {
		out->align[i] = natural_alignment(l[i], promised[i]);
		if (id == ALGO_WIDE && (out->align[i] < Vector || promised[i] < MostAligned))
			return false;
		if (id == ALGO_WIDE)
			out->align[i] = MostAligned;
	}
	if (id == ALGO_SPLITK) {
		out->splitk = 2;
		out->reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
		if (!(pref->reduction & out->reduction) || p->k < 2 || p->d->batch > 1)
			return false;
	}
	return algo_workspace(p, out) <= pref->workspace;
}

bool
algo_make(const Problem *p, const Pref *pref, int i, Algo *out)
{
	if (!is_power(pref->align_a) || !is_power(pref->align_b) || !is_power(pref->align_c) ||
	    !is_power(pref->align_d))
		return false;
	for (int id = 0; id < NAlgo; id++)
		if (algo_of_id(p, pref, id, out) && i-- == 0)
			return true;
	return false;
}

cublasStatus_t
algo_check(const Problem *p, const Algo *a, const char **why)
{
	if (a->magic != AlgoMagic || a->id < 0 || a->id >= NAlgo)
		NO(CUBLAS_STATUS_INVALID_VALUE, "not an algorithm of this library");
	if (a->types != problem_types(p))
		NO(CUBLAS_STATUS_INVALID_VALUE, "an algorithm for other types or transposes");
	if (a->id == ALGO_WIDE)
		for (int i = 0; i < 4; i++) {
			const Layout *l = i == 0 ? p->a : i == 1 ? p->b : i == 2 ? p->c : p->d;

			if (natural_alignment(l, MostAligned) < Vector)
				NO(CUBLAS_STATUS_NOT_SUPPORTED,
				   "an algorithm for leading dimensions of 16 bytes");
		}
	return CUBLAS_STATUS_SUCCESS;
}
