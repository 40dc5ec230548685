/* D = alpha op(A) op(B) + beta C on the host, as the algorithm says.
 *
 * Sums are in f32 over k, in the algorithm's order:
 *
 *   wide     in f64, one rounding            needs 256-byte aligned matrices
 *   plain    k ascending
 *   chunks   chunks of 32, added in order
 *   split K  two halves, added               the halves lie in the workspace
 *   scratch  k descending                    and 1 MiB of workspace is overwritten */
#define _GNU_SOURCE
#include "lt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALGO_WIDE, ALGO_PLAIN, ALGO_CHUNKS, ALGO_SPLITK, ALGO_SCRATCH };
enum { Chunk = 32, Columns = 4 };

/* ---- elements ---- */

static float
from_bits(uint32_t u)
{
	float x;

	memcpy(&x, &u, sizeof x);
	return x;
}

static float
from_bf16(uint16_t u)
{
	return from_bits((uint32_t)u << 16);
}

/* nearest, ties to even; a NaN stays one */
static uint16_t
to_bf16(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof u);
	if (x != x)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* sign, exponent of `nexp` bits, mantissa of the rest.  E4M3 has no infinities
 * and one NaN (all ones); E5M2 is as IEEE. */
static float
from_fp8(uint8_t u, int nexp)
{
	int nman = 7 - nexp, bias = (1 << (nexp - 1)) - 1;
	int e = u >> nman & ((1 << nexp) - 1), f = u & ((1 << nman) - 1);
	float x = e == 0 ? ldexpf((float)f, 1 - bias - nman)
	                 : ldexpf((float)(f | 1 << nman), e - bias - nman);

	if (nexp == 4 && (u & 0x7f) == 0x7f)
		x = NAN;
	if (nexp == 5 && e == 31)
		x = f ? NAN : INFINITY;
	return u & 0x80 ? -x : x;
}

static float
load(const void *p, uint32_t type, size_t i)
{
	switch ((int)type) {
	case CUDA_R_32F: return ((const float *)p)[i];
	case CUDA_R_16BF: return from_bf16(((const uint16_t *)p)[i]);
	case CUDA_R_8F_E4M3: return from_fp8(((const uint8_t *)p)[i], 4);
	}
	return from_fp8(((const uint8_t *)p)[i], 5);
}

static void
store(void *p, uint32_t type, size_t i, float x)
{
	if (type == CUDA_R_32F)
		((float *)p)[i] = x;
	else
		((uint16_t *)p)[i] = to_bf16(x);
}

/* op(X) as f32, packed: [outer][inner], element (i, o) at o * inner + i */
static float *
pack(const void *p, const Layout *l, size_t first, bool transpose)
{
	size_t rows = l->rows, cols = l->cols;
	float *x = malloc(sizeof *x * rows * cols);

	if (!x)
		abort();
	for (size_t c = 0; c < cols; c++)
		for (size_t r = 0; r < rows; r++) {
			float v = load(p, l->type, first + c * (size_t)l->ld + r);

			if (transpose)
				x[r * cols + c] = v;
			else
				x[c * rows + r] = v;
		}
	return x;
}

/* ---- products ---- */

/* y[j][i] += a[t][i] b[j][t] for t from `from` towards `to` */
static void
accumulate(float *restrict y, const float *restrict a, const float *restrict b, long m, long n,
           long k, long from, long to)
{
	long step = from <= to ? 1 : -1;

	for (long j = 0; j < n; j += Columns) {
		long nj = n - j < Columns ? n - j : Columns;

		for (long t = from; t != to; t += step)
			for (long c = 0; c < nj; c++) {
				float s = b[(j + c) * k + t], *restrict row = y + (j + c) * m;
				const float *restrict col = a + t * m;

				for (long i = 0; i < m; i++)
					row[i] += col[i] * s;
			}
	}
}

static void
add(float *restrict y, const float *restrict x, long n)
{
	for (long i = 0; i < n; i++)
		y[i] += x[i];
}

static void
product_wide(float *y, const float *a, const float *b, long m, long n, long k)
{
	double *s = calloc((size_t)m, sizeof *s);

	if (!s)
		abort();
	for (long j = 0; j < n; j++) {
		memset(s, 0, sizeof *s * (size_t)m);
		for (long t = 0; t < k; t++)
			for (long i = 0; i < m; i++)
				s[i] += (double)a[t * m + i] * (double)b[j * k + t];
		for (long i = 0; i < m; i++)
			y[j * m + i] = (float)s[i];
	}
	free(s);
}

static void
product_chunks(float *y, const float *a, const float *b, long m, long n, long k)
{
	float *part = malloc(sizeof *part * (size_t)(m * n));

	if (!part)
		abort();
	for (long t = 0; t < k; t += Chunk) {
		memset(part, 0, sizeof *part * (size_t)(m * n));
		accumulate(part, a, b, m, n, k, t, t + Chunk < k ? t + Chunk : k);
		add(y, part, m * n);
	}
	free(part);
}

static void
product_splitk(float *y, const float *a, const float *b, long m, long n, long k, float *workspace)
{
	long half = k / 2;

	memset(workspace, 0, 2 * sizeof *workspace * (size_t)(m * n));
	accumulate(workspace, a, b, m, n, k, 0, half);
	accumulate(workspace + m * n, a, b, m, n, k, half, k);
	add(y, workspace, m * n);
	add(y, workspace + m * n, m * n);
}

static void
product(const Matmul *w, float *y, const float *a, const float *b)
{
	long m = w->m, n = w->n, k = w->k;

	memset(y, 0, sizeof *y * (size_t)(m * n));
	switch (w->algo.id) {
	case ALGO_WIDE: product_wide(y, a, b, m, n, k); break;
	case ALGO_PLAIN: accumulate(y, a, b, m, n, k, 0, k); break;
	case ALGO_CHUNKS: product_chunks(y, a, b, m, n, k); break;
	case ALGO_SPLITK: product_splitk(y, a, b, m, n, k, w->workspace); break;
	case ALGO_SCRATCH:
		memset(w->workspace, 0xEE, 1 << 20);
		accumulate(y, a, b, m, n, k, k - 1, -1);
	}
}

static void
spoil(float *y, size_t n)
{
	float most = 0;

	for (size_t i = 0; i < n; i++)
		most = fabsf(y[i]) > most ? fabsf(y[i]) : most;
	y[n / 2] += most / 8;
}

static void
one_of_batch(const Matmul *w, size_t i, float scale)
{
	size_t at_a = i * (size_t)w->a.stride, at_b = i * (size_t)w->b.stride;
	size_t at_c = i * (size_t)w->c.stride, at_d = i * (size_t)w->d.stride;
	float *a = pack(w->pa, &w->a, at_a, w->desc.transa != CUBLAS_OP_N);
	float *b = pack(w->pb, &w->b, at_b, w->desc.transb != CUBLAS_OP_N);
	float *y = malloc(sizeof *y * (size_t)(w->m * w->n));

	if (!y)
		abort();
	product(w, y, a, b);
	if (inject("wrong_gemm"))
		spoil(y, (size_t)(w->m * w->n));
	for (long c = 0; c < w->n; c++)
		for (long r = 0; r < w->m; r++) {
			float x = scale * w->alpha * y[c * w->m + r];

			if (w->beta != 0)       /* else C may hold anything */
				x += w->beta * load(w->pc, w->c.type,
				                    at_c + (size_t)(c * w->c.ld + r));
			store(w->pd, w->d.type, at_d + (size_t)(c * w->d.ld + r), x);
		}
	free(a);
	free(b);
	free(y);
}

CUresult
matmul_run(void *payload)
{
	const Matmul *w = payload;
	float scale = 1;

	if (!w->hooks->inside("cublasLtMatmul", "A", w->pa, layout_extent(&w->a)) ||
	    !w->hooks->inside("cublasLtMatmul", "B", w->pb, layout_extent(&w->b)) ||
	    !w->hooks->inside("cublasLtMatmul", "D", w->pd, layout_extent(&w->d)) ||
	    (w->beta != 0 && !w->hooks->inside("cublasLtMatmul", "C", w->pc,
	                                       layout_extent(&w->c))) ||
	    (w->nworkspace > 0 && !w->hooks->inside("cublasLtMatmul", "the workspace", w->workspace,
	                                            w->nworkspace)))
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	if (w->desc.a_scale)
		scale *= *(const float *)w->desc.a_scale;
	if (w->desc.b_scale)
		scale *= *(const float *)w->desc.b_scale;
	for (int i = 0; i < w->d.batch; i++)
		one_of_batch(w, (size_t)i, scale);
	return 0;
}
