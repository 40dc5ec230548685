/* The stand-in of libcublasLt (tests/standin): each rule it enforces is broken
 * once here and gives the documented code, and products are what they should be. */
#include "standin.h"

#include <math.h>

enum { Most = 12, Room = 1 << 16, WorkspaceBytes = 4 << 20 };

typedef struct {
	Driver d;
	Lt lt;
	CUstream s;
	cublasLtHandle_t h;
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t a, b, c;
	cublasLtMatmulPreference_t pref;
	CUdeviceptr pa, pb, pc, workspace;      /* Room elements of 4 bytes each */
	float alpha, beta;
} Site;

static cublasLtMatrixLayout_t
layout(const Lt *lt, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
	cublasLtMatrixLayout_t l;

	WANT(lt->cublasLtMatrixLayoutCreate(&l, type, rows, cols, ld), 0);
	return l;
}

static void
set_op(const Site *t, int which, int op)
{
	WANT(t->lt.cublasLtMatmulDescSetAttribute(t->desc, which, &op, sizeof op), 0);
}

static void
set_layout(const Site *t, cublasLtMatrixLayout_t l, int which, int64_t value, size_t size)
{
	WANT(t->lt.cublasLtMatrixLayoutSetAttribute(l, which, &value, size), 0);
}

static void
set_pref(const Site *t, int which, uint64_t value, size_t size)
{
	WANT(t->lt.cublasLtMatmulPreferenceSetAttribute(t->pref, which, &value, size), 0);
}

/* C[m,n] = op(A) op(B), packed */
static Site
site_of(int m, int n, int k, bool ta, bool tb, int type_ab, int type_c)
{
	Site t = { .d = open_context(), .alpha = 1 };

	t.lt = open_lt_at(open_library("libcublasLt.so.13"));
	WANT(t.lt.cublasLtCreate(&t.h), 0);
	WANT(t.lt.cublasLtMatmulDescCreate(&t.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
	set_op(&t, CUBLASLT_MATMUL_DESC_TRANSA, ta);
	set_op(&t, CUBLASLT_MATMUL_DESC_TRANSB, tb);
	t.a = layout(&t.lt, type_ab, ta ? k : m, ta ? m : k, ta ? k : m);
	t.b = layout(&t.lt, type_ab, tb ? n : k, tb ? k : n, tb ? n : k);
	t.c = layout(&t.lt, type_c, m, n, m);
	WANT(t.lt.cublasLtMatmulPreferenceCreate(&t.pref), 0);
	set_pref(&t, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WorkspaceBytes, 8);
	WANT(t.d.cuStreamCreate(&t.s, CU_STREAM_NON_BLOCKING), 0);
	WANT(t.d.cuMemAlloc(&t.pa, Room * 4), 0);
	WANT(t.d.cuMemAlloc(&t.pb, Room * 4), 0);
	WANT(t.d.cuMemAlloc(&t.pc, Room * 4), 0);
	WANT(t.d.cuMemAlloc(&t.workspace, WorkspaceBytes), 0);
	return t;
}

static Site
usual_site(void)
{
	return site_of(64, 48, 32, true, false, CUDA_R_16BF, CUDA_R_32F);
}

static int
heuristic(const Site *t, cublasLtMatmulHeuristicResult_t *r, int *n)
{
	*n = -1;
	return (int)t->lt.cublasLtMatmulAlgoGetHeuristic(t->h, t->desc, t->a, t->b, t->c, t->c,
	                                                 t->pref, Most, r, n);
}

static cublasLtMatmulAlgo_t
first(const Site *t)
{
	cublasLtMatmulHeuristicResult_t r[Most];
	int n;

	WANT(heuristic(t, r, &n), 0);
	return r[0].algo;
}

static int
multiply(const Site *t, const cublasLtMatmulAlgo_t *algo, CUdeviceptr workspace, size_t nworkspace)
{
	void *c = (void *)(uintptr_t)t->pc;

	return (int)t->lt.cublasLtMatmul(t->h, t->desc, &t->alpha, (void *)(uintptr_t)t->pa, t->a,
	                                 (void *)(uintptr_t)t->pb, t->b, &t->beta, c, t->c, c, t->c, algo,
	                                 (void *)(uintptr_t)workspace, nworkspace, t->s);
}

static int
usual_multiply(const Site *t)
{
	cublasLtMatmulAlgo_t a = first(t);

	return multiply(t, &a, t->workspace, WorkspaceBytes);
}

/* ---- values ---- */

static float *
host_values(const Site *t, CUdeviceptr p, int type, uint64_t seed)
{
	float *x = malloc(Room * sizeof *x);
	uint16_t *u = malloc(Room * sizeof *u);

	for (int i = 0; i < Room; i++) {
		uint32_t bits;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		x[i] = (float)(int32_t)(seed >> 32) * 0x1p-31f;
		memcpy(&bits, &x[i], 4);
		if (type == CUDA_R_16BF) {
			bits &= 0xffff0000u;
			memcpy(&x[i], &bits, 4);
		}
		u[i] = (uint16_t)(bits >> 16);
	}
	if (type == CUDA_R_16BF)
		WANT(t->d.cuMemcpyHtoDAsync(p, u, Room * sizeof *u, t->s), 0);
	else
		WANT(t->d.cuMemcpyHtoDAsync(p, x, Room * sizeof *x, t->s), 0);
	WANT(t->d.cuStreamSynchronize(t->s), 0);
	free(u);
	return x;
}

static float *
fetch(const Site *t, int type)
{
	float *x = malloc(Room * sizeof *x);
	uint16_t *u = malloc(Room * 4);

	WANT(t->d.cuMemcpyDtoHAsync(type == CUDA_R_16BF ? (void *)u : x, t->pc,
	                            Room * (type == CUDA_R_16BF ? 2 : 4), t->s), 0);
	WANT(t->d.cuStreamSynchronize(t->s), 0);
	for (int i = 0; type == CUDA_R_16BF && i < Room; i++) {
		uint32_t bits = (uint32_t)u[i] << 16;

		memcpy(&x[i], &bits, 4);
	}
	free(u);
	return x;
}

/* Worst error of C in units of its rounding, every algorithm. */
static void
one_product(int m, int n, int k, bool ta, bool tb, int type_ab, int type_c, float beta)
{
	Site t = site_of(m, n, k, ta, tb, type_ab, type_c);
	cublasLtMatmulHeuristicResult_t r[Most];
	float *a = host_values(&t, t.pa, type_ab, 1), *b = host_values(&t, t.pb, type_ab, 2);
	double unit = type_c == CUDA_R_16BF ? 0x1p-8 : k * 0x1p-24;
	int nalgo;

	t.beta = beta;
	t.alpha = 0.5f;
	WANT(heuristic(&t, r, &nalgo), 0);
	EXPECT(nalgo >= 3, "%d algorithms", nalgo);
	for (int g = 0; g < nalgo; g++) {
		float *c = host_values(&t, t.pc, type_c, 3), *got;

		WANT(multiply(&t, &r[g].algo, t.workspace, r[g].workspaceSize), 0);
		got = fetch(&t, type_c);
		for (int i = 0; i < m; i++)
			for (int j = 0; j < n; j++) {
				double s = 0, mag = fabs(beta * c[i + j * m]);

				for (int l = 0; l < k; l++) {
					double x = a[ta ? l + i * k : i + l * m], y = b[tb ? j + l * n : l + j * k];

					s += x * y;
					mag += fabs(x * y);
				}
				s = 0.5 * s + beta * c[i + j * m];
				EXPECT(fabs(s - got[i + j * m]) <= unit * mag + 1e-30,
				       "algorithm %d: C[%d,%d] is %g, not %g", g,
				       i, j, (double)got[i + j * m], s);
			}
		free(c);
		free(got);
	}
}

static void
products(void)
{
	static const struct { bool ta, tb; } op[] = { { 0, 0 }, { 1, 0 }, { 0, 1 }, { 1, 1 } };

	for (int i = 0; i < 4; i++) {
		one_product(24, 40, 56, op[i].ta, op[i].tb, CUDA_R_16BF, CUDA_R_32F, 0);
		one_product(24, 40, 56, op[i].ta, op[i].tb, CUDA_R_16BF, CUDA_R_16BF, 0);
		one_product(24, 40, 56, op[i].ta, op[i].tb, CUDA_R_32F, CUDA_R_32F, 1);
		one_product(7, 5, 33, op[i].ta, op[i].tb, CUDA_R_32F, CUDA_R_32F, 1);
	}
}

static void
algorithms_round_differently(void)
{
	Site t = site_of(64, 48, 512, true, false, CUDA_R_16BF, CUDA_R_32F);
	cublasLtMatmulHeuristicResult_t r[Most];
	float *c[Most];
	int n;

	free(host_values(&t, t.pa, CUDA_R_16BF, 1));
	free(host_values(&t, t.pb, CUDA_R_16BF, 2));
	WANT(heuristic(&t, r, &n), 0);
	for (int i = 0; i < n; i++) {
		WANT(multiply(&t, &r[i].algo, t.workspace, WorkspaceBytes), 0);
		c[i] = fetch(&t, CUDA_R_32F);
		for (int j = 0; j < i; j++)
			EXPECT(memcmp(c[i], c[j], 64 * 48 * 4) != 0, "algorithms %d and %d agree",
			       i, j);
	}
}

static float *
product_of_ones(const Site *t)
{
	WANT(t->d.cuMemsetD32Async(t->pa, 0x3f803f80, 32 * 64 / 2, t->s), 0);
	WANT(t->d.cuMemsetD32Async(t->pb, 0x3f803f80, 32 * 48 / 2, t->s), 0);
	WANT(usual_multiply(t), 0);
	return fetch(t, CUDA_R_32F);
}

static void
wrong_product(void)
{
	Site t = usual_site();
	float *c = product_of_ones(&t);

	EXPECT(c[0] == 32 && c[64 * 48 / 2] == 36, "%g", (double)c[64 * 48 / 2]);
}

/* ---- handles and descriptors ---- */

static void
handles(void)
{
	Site t = usual_site();
	cublasLtHandle_t other = (cublasLtHandle_t)&t;
	cublasLtMatmulHeuristicResult_t r[Most];
	int n;

	WANT(t.lt.cublasLtCreate(NULL), CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtDestroy(other), CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtDestroy(t.h), 0);
	WANT(heuristic(&t, r, &n), CUBLAS_STATUS_NOT_INITIALIZED);
	EXPECT(t.lt.cublasLtGetVersion() == 130100, "version %zu", t.lt.cublasLtGetVersion());
	EXPECT(strcmp(t.lt.cublasLtGetStatusName(15), "CUBLAS_STATUS_NOT_SUPPORTED") == 0,
	       "name of 15");
	EXPECT(strcmp(t.lt.cublasLtGetStatusString(99), "unrecognized status") == 0,
	       "string of 99");
}

static void
no_handle(void)
{
	Lt lt = open_lt_at(open_library("libcublasLt.so.13"));
	cublasLtHandle_t h;
	cublasLtMatmulDesc_t desc;

	WANT(lt.cublasLtCreate(&h), CUBLAS_STATUS_NOT_INITIALIZED);
	EXPECT(!h, "a handle");
	WANT(lt.cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
	(void)layout(&lt, CUDA_R_32F, 4, 4, 4);
}

static void
attributes(void)
{
	Site t = usual_site();
	cublasLtMatmulHeuristicResult_t r[Most];
	uint64_t v = 0;
	size_t n;
	int nalgo;

	WANT(t.lt.cublasLtMatmulDescSetAttribute(t.desc, CUBLASLT_MATMUL_DESC_TRANSA, &v, 8),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtMatmulDescSetAttribute(t.desc, CUBLASLT_MATMUL_DESC_TRANSA, NULL, 4),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtMatmulDescSetAttribute(t.desc, 999, &v, 4), CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtMatrixLayoutGetAttribute(t.a, CUBLASLT_MATRIX_LAYOUT_ROWS, &v, 8, &n), 0);
	EXPECT(v == 32 && n == 8, "%lu rows", (unsigned long)v);
	WANT(t.lt.cublasLtMatrixLayoutGetAttribute(t.a, CUBLASLT_MATRIX_LAYOUT_ROWS, NULL, 0, NULL),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtMatrixLayoutGetAttribute(t.a, CUBLASLT_MATRIX_LAYOUT_ROWS, &v, 4, &n),
	     CUBLAS_STATUS_INVALID_VALUE);
	v = 0;
	WANT(t.lt.cublasLtMatmulPreferenceGetAttribute(t.pref,
	                                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &v, 4, &n),
	     0);
	EXPECT(v == 256, "alignment %lu", (unsigned long)v);
	WANT(t.lt.cublasLtMatrixLayoutDestroy(t.a), 0);
	WANT(t.lt.cublasLtMatrixLayoutSetAttribute(t.a, CUBLASLT_MATRIX_LAYOUT_ROWS, &v, 8),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(heuristic(&t, r, &nalgo), CUBLAS_STATUS_INVALID_VALUE);
	want_note("a descriptor that does not exist");
}

/* ---- what cannot be multiplied ---- */

static void
want_refused(const Site *t, int status, const char *words)
{
	cublasLtMatmulHeuristicResult_t r[Most];
	int n;

	WANT(heuristic(t, r, &n), status);
	want_note(words);
	WANT(multiply(t, NULL, t->workspace, WorkspaceBytes), status);
}

static void
types_and_shapes(void)
{
	Site t = usual_site(), u = t;

	u.a = layout(&t.lt, CUDA_R_16BF, 32, 63, 32);
	want_refused(&u, CUBLAS_STATUS_INVALID_VALUE, "shapes of A, B and D");
	u.a = layout(&t.lt, CUDA_R_16BF, 31, 64, 31);
	want_refused(&u, CUBLAS_STATUS_INVALID_VALUE, "shapes of A, B and D");
	u.a = layout(&t.lt, CUDA_R_16BF, 32, 64, 31);
	want_refused(&u, CUBLAS_STATUS_INVALID_VALUE, "leading dimension");
	u.a = layout(&t.lt, CUDA_R_16BF, 32, 0, 32);
	want_refused(&u, CUBLAS_STATUS_INVALID_VALUE, "without elements");
	u.a = layout(&t.lt, CUDA_R_32F, 32, 64, 32);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "A and B of different types");
	u = t;
	u.a = layout(&t.lt, CUDA_R_32F, 32, 64, 32);
	u.b = layout(&t.lt, CUDA_R_32F, 32, 48, 32);
	u.c = layout(&t.lt, CUDA_R_16BF, 64, 48, 64);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "32F times 32F");
	u = t;
	set_layout(&t, t.a, CUBLASLT_MATRIX_LAYOUT_ORDER, 1, 4);
	want_refused(&t, CUBLAS_STATUS_NOT_SUPPORTED, "column-major");
}

static void
operations(void)
{
	static const struct { int which, value, status; const char *words; } bad[] = {
		{ CUBLASLT_MATMUL_DESC_TRANSA, 9, CUBLAS_STATUS_INVALID_VALUE,
		  "operation that does not exist" },
		{ CUBLASLT_MATMUL_DESC_TRANSC, 1, CUBLAS_STATUS_NOT_SUPPORTED, "TRANSC" },
		{ CUBLASLT_MATMUL_DESC_EPILOGUE, 2, CUBLAS_STATUS_NOT_SUPPORTED, "epilogue" },
		{ CUBLASLT_MATMUL_DESC_FILL_MODE, 0, CUBLAS_STATUS_NOT_SUPPORTED, "fill mode" },
		{ CUBLASLT_MATMUL_DESC_SCALE_TYPE, 1, CUBLAS_STATUS_NOT_SUPPORTED, "scale type" },
		{ CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, 64, CUBLAS_STATUS_NOT_SUPPORTED,
		  "compute type" },
	};
	Site t = usual_site();

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		Site u = t;

		WANT(t.lt.cublasLtMatmulDescCreate(&u.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
		set_op(&u, CUBLASLT_MATMUL_DESC_TRANSA, 1);
		set_op(&u, bad[i].which, bad[i].value);
		want_refused(&u, bad[i].status, bad[i].words);
	}
}

static void
fp8(void)
{
	Site t = site_of(64, 48, 32, true, false, CUDA_R_8F_E4M3, CUDA_R_16BF), u = t;
	float *c;

	WANT(t.d.cuMemsetD8Async(t.pa, 0x38, 64 * 32, t.s), 0);        /* 1 */
	WANT(t.d.cuMemsetD8Async(t.pb, 0xbc, 48 * 32, t.s), 0);        /* -1.5 */
	WANT(usual_multiply(&t), 0);
	c = fetch(&t, CUDA_R_16BF);
	EXPECT(c[0] == -48 && c[64 * 48 - 1] == -48, "%g", (double)c[0]);
	set_op(&t, CUBLASLT_MATMUL_DESC_TRANSA, 0);
	u.a = layout(&t.lt, CUDA_R_8F_E4M3, 64, 32, 64);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "TN alone");
	set_op(&t, CUBLASLT_MATMUL_DESC_TRANSA, 1);
	u = t;
	u.a = layout(&t.lt, CUDA_R_8F_E5M2, 32, 64, 32);
	u.b = layout(&t.lt, CUDA_R_8F_E5M2, 32, 48, 32);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "E5M2 times E5M2");
	u.a = layout(&t.lt, CUDA_R_8F_E4M3, 24, 64, 32);
	u.b = layout(&t.lt, CUDA_R_8F_E4M3, 24, 48, 32);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "no multiple of 16");
	u = t;
	u.a = layout(&t.lt, CUDA_R_16BF, 32, 64, 32);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "FP8 with another type");
	u = t;
	WANT(t.lt.cublasLtMatmulDescCreate(&u.desc, CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F), 0);
	set_op(&u, CUBLASLT_MATMUL_DESC_TRANSA, 1);
	want_refused(&u, CUBLAS_STATUS_NOT_SUPPORTED, "other than 32F");
}

/* a factor in device memory, read when the product runs; an addend is not multiplied by it */
static void
fp8_scale(void)
{
	Site t = site_of(64, 48, 32, true, false, CUDA_R_8F_E4M3, CUDA_R_32F);
	const void *scale = (const void *)(uintptr_t)t.workspace, *host = &t;
	cublasLtMatmulHeuristicResult_t r[Most];
	float alpha = 2, beta = 1, *c;
	int n;

	t.b = layout(&t.lt, CUDA_R_8F_E5M2, 32, 48, 32);
	WANT(t.d.cuMemsetD8Async(t.pa, 0x38, 64 * 32, t.s), 0);        /* 1 */
	WANT(t.d.cuMemsetD8Async(t.pb, 0xbe, 48 * 32, t.s), 0);        /* -1.5 */
	WANT(t.d.cuMemsetD32Async(t.pc, 0x40400000, 64 * 48, t.s), 0); /* 3 */
	WANT(t.lt.cublasLtMatmulDescSetAttribute(t.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &host, sizeof host), 0);
	WANT(t.lt.cublasLtMatmulAlgoGetHeuristic(t.h, t.desc, t.a, t.b, t.c, t.c, t.pref, Most, r, &n), 0);
	EXPECT(t.lt.cublasLtMatmul(t.h, t.desc, &alpha, (void *)(uintptr_t)t.pa, t.a, (void *)(uintptr_t)t.pb, t.b, &beta,
	                           (void *)(uintptr_t)t.pc, t.c, (void *)(uintptr_t)t.pc, t.c, NULL, NULL, 0, t.s) ==
	       CUBLAS_STATUS_INVALID_VALUE, "a scale on the host");
	want_note("a scale is not device memory");
	WANT(t.lt.cublasLtMatmulDescSetAttribute(t.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scale, sizeof scale), 0);
	WANT(t.d.cuMemsetD32Async(t.workspace, 0x3e800000, 1, t.s), 0);        /* 0.25 */
	WANT((int)t.lt.cublasLtMatmul(t.h, t.desc, &alpha, (void *)(uintptr_t)t.pa, t.a, (void *)(uintptr_t)t.pb, t.b, &beta,
	                              (void *)(uintptr_t)t.pc, t.c, (void *)(uintptr_t)t.pc, t.c, NULL, NULL, 0, t.s), 0);
	c = fetch(&t, CUDA_R_32F);
	EXPECT(c[0] == 3 - 24 && c[64 * 48 - 1] == 3 - 24, "%g", (double)c[0]);
	free(c);
}

static void
fp8_alignment(void)
{
	Site t = site_of(64, 48, 32, true, false, CUDA_R_8F_E4M3, CUDA_R_32F);
	float alpha = 1, beta = 0;

	/* without an algorithm none is promised more */
	EXPECT(t.lt.cublasLtMatmul(t.h, t.desc, &alpha, (void *)(uintptr_t)(t.pa + 8), t.a, (void *)(uintptr_t)t.pb, t.b, &beta,
	                           (void *)(uintptr_t)t.pc, t.c, (void *)(uintptr_t)t.pc, t.c, NULL, NULL, 0, t.s) ==
	       CUBLAS_STATUS_INVALID_VALUE, "an operand at 8 bytes");
	want_note("not aligned to 16 bytes");
}

static void
fp8_before_ada(void)
{
	Site t = site_of(64, 48, 32, true, false, CUDA_R_8F_E4M3, CUDA_R_16BF);

	want_refused(&t, CUBLAS_STATUS_NOT_SUPPORTED, "8.9");
}

static void
batches(void)
{
	Site t = usual_site();
	float *c;

	for (int i = 0; i < 3; i++)
		set_layout(&t, (cublasLtMatrixLayout_t[]){ t.a, t.b, t.c }[i],
		           CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 2, 4);
	want_refused(&t, CUBLAS_STATUS_INVALID_VALUE, "results of the batch overlap");
	set_layout(&t, t.c, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, 64 * 48, 8);
	set_layout(&t, t.b, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 1, 4);
	want_refused(&t, CUBLAS_STATUS_INVALID_VALUE, "different batch counts");
	set_layout(&t, t.b, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 2, 4);
	WANT(t.d.cuMemsetD32Async(t.pa, 0x3f803f80, 32 * 64 / 2, t.s), 0);     /* 1 */
	WANT(t.d.cuMemsetD32Async(t.pb, 0x40004000, 32 * 48 / 2, t.s), 0);     /* 2 */
	WANT(usual_multiply(&t), 0);
	c = fetch(&t, CUDA_R_32F);
	EXPECT(c[0] == 64 && c[2 * 64 * 48 - 1] == 64 && isnan(c[2 * 64 * 48]), "%g", (double)c[0]);
}

/* D = alpha A B + beta C of three matrices, C elsewhere than D */
static void
batch_with_addend(void)
{
	Site t = site_of(16, 24, 32, true, false, CUDA_R_16BF, CUDA_R_16BF);
	cublasLtMatrixLayout_t all[4] = { t.a, t.b, t.c, layout(&t.lt, CUDA_R_16BF, 16, 24, 32) };
	static const int64_t stride[4] = { 32 * 16, 0, 16 * 24 + 8, 32 * 24 };
	float *a = host_values(&t, t.pa, CUDA_R_16BF, 1), *b = host_values(&t, t.pb, CUDA_R_16BF, 2);
	float *c = host_values(&t, t.workspace, CUDA_R_16BF, 3), *d, alpha = -0.5f, beta = 3;
	cublasLtMatmulHeuristicResult_t r[Most];
	int n;

	for (int i = 0; i < 4; i++) {
		set_layout(&t, all[i], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 3, 4);
		set_layout(&t, all[i], CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride[i], 8);
	}
	set_pref(&t, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 0, 8);
	WANT(t.lt.cublasLtMatmulAlgoGetHeuristic(t.h, t.desc, t.a, t.b, all[3], t.c, t.pref, Most, r, &n), 0);
	for (int g = 0; g < n; g++) {
		int status = (int)t.lt.cublasLtMatmul(t.h, t.desc, &alpha, (void *)(uintptr_t)t.pa, t.a,
		        (void *)(uintptr_t)t.pb, t.b, &beta, (void *)(uintptr_t)t.workspace, all[3],
		        (void *)(uintptr_t)t.pc, t.c, &r[g].algo, NULL, 0, t.s);

		/* the first algorithm was promised 256 bytes: the stride of D has not so many */
		if (g == 0) {
			EXPECT(status == CUBLAS_STATUS_INVALID_VALUE, "%d", status);
			want_note("less aligned");
			continue;
		}
		WANT(status, 0);
		d = fetch(&t, CUDA_R_16BF);
		for (int w = 0; w < 3; w++)
			for (int i = 0; i < 16 * 24; i++) {
				double s = 0, had = 3 * c[w * stride[3] + i / 16 * 32 + i % 16];

				for (int k = 0; k < 32; k++)
					s += a[w * stride[0] + i % 16 * 32 + k] * b[i / 16 * 32 + k];
				s = had - 0.5 * s;
				EXPECT(fabs(s - d[w * stride[2] + i]) <= fabs(s) * 0x1p-8 + 1e-5,
				       "algorithm %d: matrix %d, %d: %g, not %g", g, w, i,
				       (double)d[w * stride[2] + i], s);
			}
		free(d);
	}
	free(a);
	free(b);
	free(c);
}

/* ---- algorithms ---- */

static void
heuristics(void)
{
	Site t = usual_site();
	cublasLtMatmulHeuristicResult_t r[Most], checked;
	cublasLtMatmulAlgo_t none = { { 0 } };
	int n, all, split = 0;

	WANT(heuristic(&t, r, &all), 0);
	for (int i = 0; i < all; i++) {
		EXPECT(r[i].state == 0 && r[i].workspaceSize % 256 == 0, "result %d", i);
		split += r[i].workspaceSize == 2 * 4 * 64 * 48;
		WANT(t.lt.cublasLtMatmulAlgoCheck(t.h, t.desc, t.a, t.b, t.c, t.c, &r[i].algo,
		                                  &checked), 0);
		EXPECT(checked.workspaceSize == r[i].workspaceSize, "another workspace");
	}
	EXPECT(split == 1, "no split K");
	set_pref(&t, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0, 4);
	WANT(heuristic(&t, r, &n), 0);
	EXPECT(n == all - 1, "%d of %d without reductions", n, all);
	set_pref(&t, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 0, 8);
	WANT(heuristic(&t, r, &n), 0);
	EXPECT(n == all - 2, "%d of %d without workspace", n, all);
	set_pref(&t, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 16, 4);
	WANT(heuristic(&t, r, &n), 0);
	EXPECT(n == all - 3, "%d of %d with alignment 16", n, all);
	set_pref(&t, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 3, 4);
	WANT(heuristic(&t, r, &n), CUBLAS_STATUS_NOT_SUPPORTED);
	WANT(t.lt.cublasLtMatmulAlgoGetHeuristic(t.h, t.desc, t.a, t.b, t.c, t.c, t.pref, 0, r, &n),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.lt.cublasLtMatmulAlgoCheck(t.h, t.desc, t.a, t.b, t.c, t.c, &none, &checked),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(multiply(&t, &none, t.workspace, WorkspaceBytes), CUBLAS_STATUS_INVALID_VALUE);
}

static void
algorithm_of_other_types(void)
{
	Site t = usual_site(), u;
	cublasLtMatmulAlgo_t a = first(&t);

	u = t;
	u.c = layout(&t.lt, CUDA_R_16BF, 64, 48, 64);
	WANT(multiply(&u, &a, t.workspace, WorkspaceBytes), CUBLAS_STATUS_INVALID_VALUE);
	want_note("other types or transposes");
}

static void
chosen_heuristics(void)
{
	Site t = usual_site();
	cublasLtMatmulHeuristicResult_t r[Most];
	int n;

	WANT(heuristic(&t, r, &n), CUBLAS_STATUS_NOT_SUPPORTED);
	EXPECT(n == 0, "%d algorithms", n);
}

static void
stale_algorithm(void)
{
	Site t = usual_site();
	cublasLtMatmulAlgo_t a = first(&t);
	cublasLtMatmulHeuristicResult_t r;

	WANT(t.lt.cublasLtMatmulAlgoCheck(t.h, t.desc, t.a, t.b, t.c, t.c, &a, &r),
	     CUBLAS_STATUS_NOT_SUPPORTED);
}

/* ---- pointers ---- */

static void
want_bad_pointers(const Site *t, const char *words)
{
	WANT(usual_multiply(t), CUBLAS_STATUS_INVALID_VALUE);
	want_note(words);
}

static void
pointers(void)
{
	Site t = usual_site(), u = t;
	cublasLtMatmulAlgo_t a;
	float on_host[64];

	u.pa = t.pa + 64;       /* promised 256 */
	want_bad_pointers(&u, "less aligned than the algorithm was promised");
	u.pa = (CUdeviceptr)(uintptr_t)on_host / 256 * 256;
	want_bad_pointers(&u, "A is not device memory");
	u = t;
	u.pb = t.pb + Room * 4 - 256;
	want_bad_pointers(&u, "B is not device memory: 3072 bytes at offset 261888");
	u = t;
	u.pc = t.pb;
	want_bad_pointers(&u, "D overlaps A or B");
	u = t;
	u.pa = 0;
	want_bad_pointers(&u, "a matrix is NULL");
	u = t;
	set_pref(&t, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 16, 4);
	u.pa = t.pa + 16;
	a = first(&t);
	WANT(multiply(&u, &a, t.workspace, WorkspaceBytes), 0);
	u.pa = t.pa + 8;
	WANT(multiply(&u, &a, t.workspace, WorkspaceBytes), CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.d.cuStreamSynchronize(t.s), 0);
	u = t;
	u.s = (CUstream)&u;
	want_bad_pointers(&u, "not a live stream");
}

static void
c_and_d(void)
{
	Site t = usual_site();
	cublasLtMatmulAlgo_t a = first(&t);
	cublasLtMatrixLayout_t wide = layout(&t.lt, CUDA_R_32F, 64, 48, 128);
	void *pa = (void *)(uintptr_t)t.pa, *pb = (void *)(uintptr_t)t.pb, *pc = (void *)(uintptr_t)t.pc;
	float one = 1, zero = 0;

#define MULTIPLY(beta_, c_, lc_) \
	t.lt.cublasLtMatmul(t.h, t.desc, &one, pa, t.a, pb, t.b, beta_, c_, lc_, pc, t.c, &a, \
	                    (void *)(uintptr_t)t.workspace, WorkspaceBytes, t.s)
	WANT(MULTIPLY(&zero, NULL, t.c), 0);
	WANT(MULTIPLY(&one, NULL, t.c), CUBLAS_STATUS_INVALID_VALUE);
	WANT(MULTIPLY(&one, pc, t.c), 0);
	WANT(MULTIPLY(&one, pc, wide), CUBLAS_STATUS_INVALID_VALUE);
	want_note("C is D, but their layouts differ");
	WANT(MULTIPLY(&one, (char *)pc + 64 * 48 * 4, layout(&t.lt, CUDA_R_16BF, 64, 48, 64)),
	     CUBLAS_STATUS_NOT_SUPPORTED);
	want_note("C and D of different types");
	WANT(MULTIPLY(&one, (char *)pc + 64 * 48 * 4, layout(&t.lt, CUDA_R_32F, 48, 64, 64)),
	     CUBLAS_STATUS_INVALID_VALUE);
	WANT(MULTIPLY(&one, (char *)pc + 256, t.c), CUBLAS_STATUS_INVALID_VALUE);
	want_note("C and D overlap");
	WANT(MULTIPLY(&one, (char *)pc + 64 * 48 * 4, t.c), 0);
	WANT(MULTIPLY(NULL, pc, t.c), CUBLAS_STATUS_INVALID_VALUE);
	WANT(t.d.cuStreamSynchronize(t.s), 0);
}

/* With beta 0 what C holds does not count, not even a NaN. */
static void
beta_zero_forgets(void)
{
	Site t = usual_site();
	float *c;

	WANT(t.d.cuMemsetD8Async(t.pa, 0, 32 * 64 * 2, t.s), 0);
	WANT(t.d.cuMemsetD8Async(t.pb, 0, 32 * 48 * 2, t.s), 0);
	WANT(usual_multiply(&t), 0);
	c = fetch(&t, CUDA_R_32F);
	EXPECT(c[5] == 0, "%g", (double)c[5]);
	EXPECT(isnan(c[64 * 48]), "written behind C");
}

static void
workspaces(void)
{
	Site t = usual_site(), u = t;
	cublasLtMatmulHeuristicResult_t r[Most];
	int n, i;

	WANT(heuristic(&t, r, &n), 0);
	for (i = 0; i < n && r[i].workspaceSize == 0; i++)
		;
	WANT(multiply(&t, &r[i].algo, t.workspace, r[i].workspaceSize - 1),
	     CUBLAS_STATUS_INVALID_VALUE);
	want_note("smaller than the algorithm needs");
	WANT(multiply(&t, &r[i].algo, t.workspace + 128, r[i].workspaceSize),
	     CUBLAS_STATUS_INVALID_VALUE);
	want_note("not aligned to 256");
	WANT(multiply(&t, &r[i].algo, t.workspace + 256, WorkspaceBytes),
	     CUBLAS_STATUS_INVALID_VALUE);
	want_note("the workspace is not device memory");
	u.workspace = t.pc;
	WANT(multiply(&u, &r[i].algo, t.pc, r[i].workspaceSize), CUBLAS_STATUS_INVALID_VALUE);
	want_note("the workspace overlaps a matrix");
	WANT(multiply(&t, &r[0].algo, 0, 0), 0);
	WANT(t.d.cuStreamSynchronize(t.s), 0);
}

/* alpha and beta are read at the call, matrices in stream order. */
static void
in_stream_order(void)
{
	Site t = usual_site();
	float *c;

	free(product_of_ones(&t));
	WANT(usual_multiply(&t), 0);
	t.alpha = 7;
	WANT(t.d.cuMemsetD8Async(t.pa, 0, 32 * 64 * 2, t.s), 0);
	c = fetch(&t, CUDA_R_32F);
	EXPECT(c[0] == 32, "%g", (double)c[0]);
}

static void
freed_before_it_runs(void)
{
	Site t = usual_site();

	WANT(usual_multiply(&t), 0);
	WANT(t.d.cuMemFree(t.pb), 0);
	WANT(t.d.cuStreamSynchronize(t.s), CUDA_ERROR_ILLEGAL_ADDRESS);
	WANT(usual_multiply(&t), CUBLAS_STATUS_INVALID_VALUE);
	t.pb = t.pc + 256 * 256;
	WANT(usual_multiply(&t), CUBLAS_STATUS_EXECUTION_FAILED);
}

int
main(void)
{
	test_begin();
	run_case("products", "", products);
	run_case("algorithms-round-differently", "", algorithms_round_differently);
	run_case("chosen-wrong-product", "wrong_gemm", wrong_product);
	run_case("handles", "", handles);
	run_case("no-device-no-handle", "no_device", no_handle);
	run_case("chosen-no-handle", "no_lt", no_handle);
	run_case("attributes", "", attributes);
	run_case("types-and-shapes", "", types_and_shapes);
	run_case("operations", "", operations);
	run_case("fp8", "", fp8);
	run_case("fp8_scale", "", fp8_scale);
	run_case("fp8_alignment", "", fp8_alignment);
	run_case("fp8_before_ada", "cc=8.0", fp8_before_ada);
	run_case("batches", "", batches);
	run_case("batch-with-addend", "", batch_with_addend);
	run_case("heuristics", "", heuristics);
	run_case("algorithm-of-other-types", "", algorithm_of_other_types);
	run_case("chosen-no-algorithm", "no_algo", chosen_heuristics);
	run_case("stale-algorithm", "stale_algo", stale_algorithm);
	run_case("pointers", "", pointers);
	run_case("c-and-d", "", c_and_d);
	run_case("beta-zero-forgets", "", beta_zero_forgets);
	run_case("workspaces", "", workspaces);
	run_case("in-stream-order", "", in_stream_order);
	run_case("freed-before-it-runs", "", freed_before_it_runs);
	return test_end();
}
