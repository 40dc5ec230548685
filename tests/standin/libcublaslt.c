/* libcublasLt.so.13 for a machine without a GPU: descriptors, heuristic, and
 * cublasLtMatmul() in stream order, computed on the host (lt_matmul.c).
 *
 * Setting an attribute checks its size and nothing else, as in cuBLASLt 13.1;
 * what is wrong shows when the heuristic or the product is asked for. */
#define _GNU_SOURCE
#include "lt.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { Version = 130100, WorkspaceAlign = 256 };

struct cublasLtContext { int unused; };

/* Handles and descriptors that exist, so that others are seen. */
typedef enum { H_HANDLE, H_LAYOUT, H_DESC, H_PREF } HandleKind;
typedef struct Handle { struct Handle *next; HandleKind kind; void *p; } Handle;

static Handle *handles;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *
handle_new(HandleKind kind, size_t nbytes)
{
	Handle *h = calloc(1, sizeof *h);
	void *p = calloc(1, nbytes);

	if (!h || !p)
		abort();
	pthread_mutex_lock(&lock);
	*h = (Handle){ handles, kind, p };
	handles = h;
	pthread_mutex_unlock(&lock);
	return p;
}

static bool
handle_is(HandleKind kind, const void *p)
{
	bool found = false;

	pthread_mutex_lock(&lock);
	for (Handle *h = handles; h && !found; h = h->next)
		found = h->p == p && h->kind == kind;
	pthread_mutex_unlock(&lock);
	return found;
}

static bool
handle_free(HandleKind kind, void *p)
{
	Handle *h = NULL;

	pthread_mutex_lock(&lock);
	for (Handle **q = &handles; *q; q = &(*q)->next)
		if ((*q)->p == p && (*q)->kind == kind) {
			h = *q;
			*q = h->next;
			break;
		}
	pthread_mutex_unlock(&lock);
	free(h);
	if (h)
		free(p);
	return h != NULL;
}

/* ---- library ---- */

#define INJECT() \
	do { \
		cublasStatus_t injected = (cublasStatus_t)inject_failure(__func__); \
		if (injected) \
			return injected; \
	} while (0)

static const StandinHooks *
driver(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	const StandinHooks *(*hooks)(void);
	void *p = lib ? dlsym(lib, "standin_hooks") : NULL;

	if (!p)
		return NULL;
	memcpy(&hooks, &p, sizeof hooks);
	return hooks();
}

PUBLIC size_t CUBLASWINAPI
cublasLtGetVersion(void)
{
	return (size_t)inject_number("lt_version", Version);
}

PUBLIC size_t CUBLASWINAPI
cublasLtGetCudartVersion(void)
{
	return 13000;
}

#define STATUS_NAME(name, value, text) case value: return #name;
#define STATUS_TEXT(name, value, text) case value: return text;

PUBLIC const char *CUBLASWINAPI
cublasLtGetStatusName(cublasStatus_t s)
{
	switch ((int)s) { CUBLAS_RESULTS(STATUS_NAME) }
	return "unrecognized status";
}

PUBLIC const char *CUBLASWINAPI
cublasLtGetStatusString(cublasStatus_t s)
{
	switch ((int)s) { CUBLAS_RESULTS(STATUS_TEXT) }
	return "unrecognized status";
}

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtCreate(cublasLtHandle_t *h)
{
	const StandinHooks *d = driver();

	INJECT();
	if (!h)
		return CUBLAS_STATUS_INVALID_VALUE;
	*h = NULL;
	if (!d || inject("no_lt") || d->ready() != 0)
		return CUBLAS_STATUS_NOT_INITIALIZED;
	*h = handle_new(H_HANDLE, sizeof **h);
	return CUBLAS_STATUS_SUCCESS;
}

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtDestroy(cublasLtHandle_t h)
{
	INJECT();
	return handle_free(H_HANDLE, h) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- attributes ---- */

typedef struct { int which; size_t off, size; } Field;

#define LAYOUT(name, member) { CUBLASLT_MATRIX_LAYOUT_##name, offsetof(Layout, member), sizeof ((Layout *)0)->member }
#define DESC(name, member) { CUBLASLT_MATMUL_DESC_##name, offsetof(Desc, member), sizeof ((Desc *)0)->member }
#define PREF(name, member) { CUBLASLT_MATMUL_PREF_##name, offsetof(Pref, member), sizeof ((Pref *)0)->member }

static const Field layout_fields[] = {
	LAYOUT(TYPE, type), LAYOUT(ORDER, order), LAYOUT(ROWS, rows), LAYOUT(COLS, cols),
	LAYOUT(LD, ld), LAYOUT(BATCH_COUNT, batch), LAYOUT(STRIDED_BATCH_OFFSET, stride),
	LAYOUT(PLANE_OFFSET, plane), LAYOUT(BATCH_MODE, mode), { -1, 0, 0 }
};
static const Field desc_fields[] = {
	DESC(COMPUTE_TYPE, compute), DESC(SCALE_TYPE, scale), DESC(POINTER_MODE, pointer_mode),
	DESC(TRANSA, transa), DESC(TRANSB, transb), DESC(TRANSC, transc), DESC(FILL_MODE, fill),
	DESC(EPILOGUE, epilogue), DESC(BIAS_POINTER, bias),
	DESC(BIAS_BATCH_STRIDE, bias_stride), DESC(EPILOGUE_AUX_POINTER, aux),
	DESC(EPILOGUE_AUX_LD, aux_ld), DESC(EPILOGUE_AUX_BATCH_STRIDE, aux_stride),
	DESC(ALPHA_VECTOR_BATCH_STRIDE, alpha_stride), DESC(SM_COUNT_TARGET, sm_count),
	DESC(A_SCALE_POINTER, a_scale), DESC(B_SCALE_POINTER, b_scale),
	DESC(C_SCALE_POINTER, c_scale), DESC(D_SCALE_POINTER, d_scale),
	DESC(AMAX_D_POINTER, amax_d), DESC(EPILOGUE_AUX_DATA_TYPE, aux_type),
	DESC(EPILOGUE_AUX_SCALE_POINTER, aux_scale), DESC(EPILOGUE_AUX_AMAX_POINTER, aux_amax),
	DESC(FAST_ACCUM, fast_accum), DESC(BIAS_DATA_TYPE, bias_type),
	DESC(A_SCALE_MODE, a_mode), DESC(B_SCALE_MODE, b_mode), DESC(C_SCALE_MODE, c_mode),
	DESC(D_SCALE_MODE, d_mode), DESC(EPILOGUE_AUX_SCALE_MODE, aux_mode),
	DESC(D_OUT_SCALE_POINTER, d_out), DESC(D_OUT_SCALE_MODE, d_out_mode),
	DESC(EMULATION_DESCRIPTOR, emulation), { -1, 0, 0 }
};
static const Field pref_fields[] = {
	PREF(SEARCH_MODE, search), PREF(MAX_WORKSPACE_BYTES, workspace),
	PREF(REDUCTION_SCHEME_MASK, reduction), PREF(MIN_ALIGNMENT_A_BYTES, align_a),
	PREF(MIN_ALIGNMENT_B_BYTES, align_b), PREF(MIN_ALIGNMENT_C_BYTES, align_c),
	PREF(MIN_ALIGNMENT_D_BYTES, align_d), PREF(MAX_WAVES_COUNT, waves),
	PREF(IMPL_MASK, impl), { -1, 0, 0 }
};

static const Field *
field_of(const Field *f, int which)
{
	for (; f->size > 0; f++)
		if (f->which == which)
			return f;
	return NULL;
}

static cublasStatus_t
attribute_set(const char *who, const Field *fields, void *p, int which, const void *value,
              size_t size)
{
	const Field *f = field_of(fields, which);

	if (!f || !value || size != f->size) {
		note("%s: attribute %d: %s", who, which,
		     !f ? "does not exist" : !value ? "no value" : "has another size");
		return CUBLAS_STATUS_INVALID_VALUE;
	}
	memcpy((char *)p + f->off, value, size);
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
attribute_get(const Field *fields, const void *p, int which, void *value, size_t size,
              size_t *written)
{
	const Field *f = field_of(fields, which);

	if (!f || (size == 0 && !written) || (size > 0 && (!value || size != f->size)))
		return CUBLAS_STATUS_INVALID_VALUE;
	if (size > 0)
		memcpy(value, (const char *)p + f->off, size);
	if (written)
		*written = f->size;
	return CUBLAS_STATUS_SUCCESS;
}

/* The six functions of each kind of descriptor differ in names and defaults alone. */
#define ATTRIBUTES(prefix, Opaque, Attribute, kind, fields) \
	PUBLIC cublasStatus_t CUBLASWINAPI \
	prefix##SetAttribute(Opaque p, Attribute which, const void *value, size_t size) \
	{ \
		INJECT(); \
		return !handle_is(kind, p) ? CUBLAS_STATUS_INVALID_VALUE \
		                           : attribute_set(__func__, fields, p, (int)which, value, size); \
	} \
	PUBLIC cublasStatus_t CUBLASWINAPI \
	prefix##GetAttribute(Opaque p, Attribute which, void *value, size_t size, size_t *written) \
	{ \
		INJECT(); \
		return !handle_is(kind, p) ? CUBLAS_STATUS_INVALID_VALUE \
		                           : attribute_get(fields, p, (int)which, value, size, written); \
	} \
	PUBLIC cublasStatus_t CUBLASWINAPI \
	prefix##Destroy(Opaque p) \
	{ \
		INJECT(); \
		return !p || handle_free(kind, p) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE; \
	}

ATTRIBUTES(cublasLtMatrixLayout, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, H_LAYOUT,
           layout_fields)
ATTRIBUTES(cublasLtMatmulDesc, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, H_DESC,
           desc_fields)
ATTRIBUTES(cublasLtMatmulPreference, cublasLtMatmulPreference_t,
           cublasLtMatmulPreferenceAttributes_t, H_PREF, pref_fields)

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                           uint64_t cols, int64_t ld)
{
	Layout *l;

	INJECT();
	if (!out)
		return CUBLAS_STATUS_INVALID_VALUE;
	l = handle_new(H_LAYOUT, sizeof *l);
	*l = (Layout){ (uint32_t)type, CUBLASLT_ORDER_COL, rows, cols, ld, 1, 0, 0, CUBLASLT_BATCH_MODE_STRIDED };
	*out = (cublasLtMatrixLayout_t)(void *)l;
	return CUBLAS_STATUS_SUCCESS;
}

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                         cudaDataType_t scale)
{
	Desc *d;

	INJECT();
	if (!out)
		return CUBLAS_STATUS_INVALID_VALUE;
	d = handle_new(H_DESC, sizeof *d);
	d->compute = (int32_t)compute;
	d->scale = (int32_t)scale;
	d->fill = CUBLAS_FILL_MODE_FULL;
	d->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
	d->aux_type = d->bias_type = -1;
	*out = (cublasLtMatmulDesc_t)(void *)d;
	return CUBLAS_STATUS_SUCCESS;
}

static const Pref default_pref = {
	CUBLASLT_SEARCH_BEST_FIT, 0, CUBLASLT_REDUCTION_SCHEME_MASK, 256, 256, 256, 256, 0, ~(uint64_t)0
};

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
	Pref *p;

	INJECT();
	if (!out)
		return CUBLAS_STATUS_INVALID_VALUE;
	p = handle_new(H_PREF, sizeof *p);
	*p = default_pref;
	*out = (cublasLtMatmulPreference_t)(void *)p;
	return CUBLAS_STATUS_SUCCESS;
}

/* ---- algorithms ---- */

static cublasStatus_t
deny(const char *who, cublasStatus_t r, const char *why)
{
	note("%s: %s", who, why);
	return r;
}

static cublasStatus_t
read_problem(const char *who, cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
             cublasLtMatrixLayout_t a,
             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, Problem *p)
{
	const char *why = "";
	cublasStatus_t r;

	if (!handle_is(H_HANDLE, h))
		return CUBLAS_STATUS_NOT_INITIALIZED;
	c = c ? c : d;          /* a C left out is as D */
	if (!handle_is(H_DESC, desc) || !handle_is(H_LAYOUT, a) || !handle_is(H_LAYOUT, b) ||
	    !handle_is(H_LAYOUT, c) || !handle_is(H_LAYOUT, d))
		return deny(who, CUBLAS_STATUS_INVALID_VALUE, "a descriptor that does not exist");
	*p = (Problem){ (const void *)desc, (const void *)a, (const void *)b, (const void *)c, (const void *)d, 0, 0, 0 };
	r = problem_check(p, &why);
	return r ? deny(who, r, why) : r;
}

static void
give_algo(const Problem *p, const Algo *a, cublasLtMatmulHeuristicResult_t *r)
{
	memset(r, 0, sizeof *r);
	memcpy(&r->algo, a, sizeof *a);
	r->workspaceSize = algo_workspace(p, a);
	r->state = CUBLAS_STATUS_SUCCESS;
	r->wavesCount = 1;
}

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
                               cublasLtMatrixLayout_t la,
                               cublasLtMatrixLayout_t lb, cublasLtMatrixLayout_t lc, cublasLtMatrixLayout_t ld,
                               cublasLtMatmulPreference_t pref, int want,
                               cublasLtMatmulHeuristicResult_t result[], int *nresult)
{
	cublasStatus_t r;
	Problem p;
	Algo a;
	int n = 0;

	INJECT();
	r = read_problem(__func__, h, desc, la, lb, lc, ld, &p);
	if (r)
		return r;
	if (!handle_is(H_PREF, pref) || want <= 0 || !result || !nresult)
		return deny(__func__, CUBLAS_STATUS_INVALID_VALUE,
		            "no preference, or no place for an answer");
	while (!inject("no_algo") && n < want && algo_make(&p, (const void *)pref, n, &a))
		give_algo(&p, &a, &result[n++]);
	*nresult = n;
	return n > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtMatmulAlgoCheck(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t la,
                        cublasLtMatrixLayout_t lb, cublasLtMatrixLayout_t lc, cublasLtMatrixLayout_t ld,
                        const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result)
{
	const char *why = "";
	cublasStatus_t r;
	Problem p;
	Algo a;

	INJECT();
	r = read_problem(__func__, h, desc, la, lb, lc, ld, &p);
	if (r)
		return r;
	if (!algo || !result)
		return deny(__func__, CUBLAS_STATUS_INVALID_VALUE,
		            "no algorithm, or no place for an answer");
	if (inject("stale_algo"))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	memcpy(&a, algo, sizeof a);
	r = algo_check(&p, &a, &why);
	if (r)
		return deny(__func__, r, why);
	result->workspaceSize = algo_workspace(&p, &a);
	result->state = CUBLAS_STATUS_SUCCESS;
	result->wavesCount = 1;
	return CUBLAS_STATUS_SUCCESS;
}

/* ---- the product ---- */

static bool
overlap(const void *p, size_t n, const void *q, size_t m)
{
	return (const char *)p < (const char *)q + m && (const char *)q < (const char *)p + n;
}

static const char *
check_workspace(const Matmul *w, size_t given, size_t need)
{
	const void *p[4] = { w->pa, w->pb, w->pc, w->pd };
	const Layout *l[4] = { &w->a, &w->b, &w->c, &w->d };

	if (given < need)
		return "the workspace is smaller than the algorithm needs";
	if (given == 0)
		return NULL;
	if ((uintptr_t)w->workspace % WorkspaceAlign != 0)
		return "the workspace is not aligned to 256 bytes";
	if (!w->hooks->device("cublasLtMatmul", "the workspace", w->workspace, given))
		return "the workspace is not device memory of the size given";
	for (int i = 0; i < 4; i++)
		if (p[i] && overlap(w->workspace, given, p[i], layout_extent(l[i])))
			return "the workspace overlaps a matrix";
	return NULL;
}

static const char *
check_memory(const Matmul *w)
{
	static const char *const name[4] = { "A", "B", "C", "D" };
	const void *p[4] = { w->pa, w->pb, w->pc, w->pd };
	const Layout *l[4] = { &w->a, &w->b, &w->c, &w->d };

	for (int i = 0; i < 4; i++) {
		if (i == 2 && w->beta == 0)
			continue;
		if (!p[i])
			return "a matrix is NULL (C may be if beta is 0)";
		if ((uintptr_t)p[i] % w->algo.align[i] != 0 ||
		    (l[i]->batch > 1 && (size_t)l[i]->stride * type_size(l[i]->type) % w->algo.align[i] != 0))
			return "a matrix is less aligned than the algorithm was promised";
		if (is_fp8(w->a.type) && (uintptr_t)p[i] % 16 != 0)
			return "FP8 with a matrix that is not aligned to 16 bytes";
		if (!w->hooks->device("cublasLtMatmul", name[i], p[i], layout_extent(l[i])))
			return "a matrix is not device memory for its whole extent";
	}
	if (overlap(w->pa, layout_extent(&w->a), w->pd, layout_extent(&w->d)) ||
	    overlap(w->pb, layout_extent(&w->b), w->pd, layout_extent(&w->d)))
		return "D overlaps A or B";
	if (w->beta == 0)
		return NULL;
	if (w->pc == w->pd && (w->c.ld != w->d.ld || w->c.stride != w->d.stride))
		return "C is D, but their layouts differ";
	if (w->pc != w->pd && overlap(w->pc, layout_extent(&w->c), w->pd, layout_extent(&w->d)))
		return "C and D overlap without being the same";
	return NULL;
}

/* Without an algorithm the library asks its heuristic, knowing the pointers. */
static bool
choose(const Problem *p, const Matmul *w, size_t given, Algo *out)
{
	const void *at[4] = { w->pa, w->pb, w->pc, w->pd };
	Pref pref = default_pref;
	uint32_t *align[4] = { &pref.align_a, &pref.align_b, &pref.align_c, &pref.align_d };

	pref.workspace = given;
	for (int i = 0; i < 4; i++)
		while ((uintptr_t)at[i] % *align[i] != 0)
			*align[i] /= 2;
	return algo_make(p, &pref, 0, out);
}

static const char *
check_scales(const Matmul *w)
{
	const void *s[2] = { w->desc.a_scale, w->desc.b_scale };

	for (int i = 0; i < 2; i++)
		if (s[i] && !w->hooks->device("cublasLtMatmul", "a scale", s[i], sizeof(float)))
			return "a scale is not device memory";
	return NULL;
}

PUBLIC cublasStatus_t CUBLASWINAPI
cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
               cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta, const void *c,
               cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo,
               void *workspace, size_t nworkspace, cudaStream_t stream)
{
	const char *why = NULL;
	cublasStatus_t r;
	Problem p;
	Matmul w;

	INJECT();
	r = read_problem(__func__, h, desc, la, lb, lc, ld, &p);
	if (r)
		return r;
	if (!alpha || !beta)
		return deny(__func__, CUBLAS_STATUS_INVALID_VALUE, "alpha or beta is NULL");
	w = (Matmul){ *p.desc, *p.a, *p.b, *p.c, *p.d, p.m, p.n, p.k, { 0 }, a, b, c, d, workspace,
	              0, *(const float *)alpha, *(const float *)beta, driver() };
	if (!w.hooks->stream((CUstream)stream))
		return deny(__func__, CUBLAS_STATUS_INVALID_VALUE, "not a live stream");
	if (algo)
		memcpy(&w.algo, algo, sizeof w.algo);
	else if (!choose(&p, &w, nworkspace, &w.algo))
		return deny(__func__, CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm fits");
	r = algo_check(&p, &w.algo, &why);
	if (r)
		return deny(__func__, r, why);
	w.nworkspace = algo_workspace(&p, &w.algo);
	if ((why = check_memory(&w)) || (why = check_workspace(&w, nworkspace, w.nworkspace)) ||
	    (why = check_scales(&w)))
		return deny(__func__, CUBLAS_STATUS_INVALID_VALUE, why);
	return w.hooks->add((CUstream)stream, "cublasLtMatmul", matmul_run, &w, sizeof w)
	       ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
