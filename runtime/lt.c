/* Matrix products on the device cuda, by cuBLASLt.
 *
 * cuBLASLt counts columns first, so a row-major C = A B is given to it as
 * C' = B' A', where ' reads the same memory by columns.  Accumulation is fp32
 * and never TF32; C is rounded once.
 *
 * What a shape needs is made once, at open: descriptors, and the algorithm.
 * cuBLASLt offers several; they are timed on the arenas themselves, filled
 * with numbers.  The first, which is its own guess, stays unless another is
 * faster by more than MinGain: what is within the noise should not change bits
 * from one machine's cache to another's.  The choice is kept in the cache.
 *
 * Products with few tiles of C split k.  Of the ways to add the parts up only
 * one is allowed, COMPUTE_TYPE: each part goes to the workspace in fp32 and a
 * second kernel adds them in order.  The others round parts to the type of C
 * (OUTPUT_TYPE), or add in the order in which blocks finish or take turns
 * (INPLACE), of which no order is promised. */
#define _GNU_SOURCE
#include "cuda_dev.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	Workspace = 32 << 20,           /* what NVIDIA advises for sm_90 */
	MaxChoices = 12,                /* of 8 to 16 */
	Rounds = 3,                     /* each choice is timed in each */
	MaxAlign = 256
};

/* seconds of one round, per choice; one unimportant run precedes it */
static const double round_seconds = 2e-3, min_gain = 0.02;

/* One shape.  Operands in the order of cuBLASLt: x is the manifest's b. */
typedef struct Plan {
	struct Plan *next;
	const RunStep *step;            /* the first of this shape */
	unsigned align[4];              /* of a, b, c and what is added to the product: d, else c */
	char key[65];
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t x, y, c, d;
	cublasLtMatmulAlgo_t algo;
	bool chosen;
} Plan;

struct Lt {
	Arena *mem;
	cublasLtHandle_t handle;
	CUdeviceptr workspace;
	Plan *plan;
	int nplan, nuntimed;
	const char *cache;
	CUevent start, end;
};

size_t
lt_workspace(void)
{
	return Workspace;
}

/* asked for: cuBLASLt's own first choice, the same on every machine of a kind */
static bool
untuned(void)
{
	return getenv("HCGEN_NO_TUNE") != NULL;
}

static void
must(const RunStep *s, cublasStatus_t e, const char *what)
{
	if (e != CUBLAS_STATUS_SUCCESS)
		die("cuBLASLt: %s: %s, for %c%c %ld x %ld x %ld, %s by %s into %s, at %s", what,
		    api.cublasLtGetStatusString(e), s->ta ? 't' : 'n', s->tb ? 't' : 'n', s->m,
		    s->n, s->k, dtype_name(s->a.dt), dtype_name(s->b.dt), dtype_name(s->c.dt),
		    s->site);
}

#define MUST(step, name, ...) must((step), api.name(__VA_ARGS__), #name)

/* shapes */

static uintptr_t
address(const Run *r, const Mat *m)
{
	return r->base[m->at.arena] + m->at.off;
}

/* of every matrix of the batch */
static unsigned
alignment(const Run *r, const RunStep *s, const Mat *m, long stride)
{
	uintptr_t p = address(r, m);
	unsigned a = 1;

	if (s->batch > 1)
		p |= (uintptr_t)stride * dtype_size(m->dt);

	while (a < MaxAlign && p % (2 * a) == 0)
		a *= 2;
	return a;
}

/* the matrix that is added to the product, where there is one */
static const Mat *
addend(const RunStep *s)
{
	return s->add ? &s->d : &s->c;
}

static bool
same_mat(const Mat *a, const Mat *b)
{
	return a->dt == b->dt && a->ld == b->ld;
}

static bool
same(const Plan *p, const RunStep *s, const unsigned align[4])
{
	const RunStep *t = p->step;

	return t->ta == s->ta && t->tb == s->tb && t->acc == s->acc && t->m == s->m &&
	       t->n == s->n && t->k == s->k && same_mat(&t->a, &s->a) &&
	       same_mat(&t->b, &s->b) && same_mat(&t->c, &s->c) &&
	       t->batch == s->batch && t->sa == s->sa && t->sb == s->sb && t->sc == s->sc &&
	       t->add == s->add && same_mat(addend(t), addend(s)) &&
	       t->scaled == s->scaled && t->scale.off == s->scale.off &&
	       memcmp(p->align, align, sizeof p->align) == 0;
}

/* All that the choice of an algorithm depends on.  Factors are not in it. */
static void
set_key(const Run *r, Plan *p)
{
	const ApiInfo *lib = api_need(API_CUBLASLT);
	const Cuda *c = r->dev;
	const RunStep *s = p->step;
	Buf b = {0};

	buf_printf(&b, "gemm 1\ncublaslt %d.%d %zu\n%s %d\n", lib->major, lib->minor,
	           api.cublasLtGetVersion(), c->name, c->sms);
	buf_printf(&b, "%d%d %d %ld %ld %ld\n", s->ta, s->tb, s->acc, s->m, s->n, s->k);
	buf_printf(&b, "%d %ld %u\n%d %ld %u\n%d %ld %u\n", (int)s->a.dt, s->a.ld, p->align[0],
	           (int)s->b.dt, s->b.ld, p->align[1], (int)s->c.dt, s->c.ld, p->align[2]);
	if (s->batch > 1)
		buf_printf(&b, "batch %ld %ld %ld %ld\n", s->batch, s->sa, s->sb, s->sc);
	if (s->add)
		buf_printf(&b, "add %ld %u\n", s->d.ld, p->align[3]);
	buf_printf(&b, "%d %d\n", (int)Workspace, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
	sha256_hex(b.s, b.len, p->key);
	buf_free(&b);
}

static cudaDataType_t
type_of(Dtype dt)
{
	return dt == DT_BF16 ? CUDA_R_16BF : dt == DT_E4M3 ? CUDA_R_8F_E4M3 :
	       dt == DT_E5M2 ? CUDA_R_8F_E5M2 : CUDA_R_32F;
}

/* memory of rows x cols, row-major, as cuBLASLt sees it */
static cublasLtMatrixLayout_t
layout(const RunStep *s, const Mat *m, long rows, long cols, long stride)
{
	cublasLtMatrixLayout_t l = NULL;
	int32_t batch = (int32_t)s->batch;
	int64_t offset = stride;

	MUST(s, cublasLtMatrixLayoutCreate, &l, type_of(m->dt), (uint64_t)cols, (uint64_t)rows,
	     m->ld);
	if (s->batch > 1) {
		MUST(s, cublasLtMatrixLayoutSetAttribute, l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
		     sizeof batch);
		MUST(s, cublasLtMatrixLayoutSetAttribute, l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
		     &offset, sizeof offset);
	}
	return l;
}

/* The number in memory is the scale of an FP8 operand: cuBLASLt multiplies sums by it in
 * fp32, when the product runs. */
static void
describe(const Run *r, Plan *p)
{
	const RunStep *s = p->step;
	const void *scale = s->scaled ? (void *)(r->base[s->scale.arena] + s->scale.off) : NULL;
	int32_t x = s->tb ? CUBLAS_OP_T : CUBLAS_OP_N, y = s->ta ? CUBLAS_OP_T : CUBLAS_OP_N;

	MUST(s, cublasLtMatmulDescCreate, &p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	MUST(s, cublasLtMatmulDescSetAttribute, p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &x, sizeof x);
	MUST(s, cublasLtMatmulDescSetAttribute, p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &y, sizeof y);
	if (scale)
		MUST(s, cublasLtMatmulDescSetAttribute, p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
		     &scale, sizeof scale);
	p->x = layout(s, &s->b, s->tb ? s->n : s->k, s->tb ? s->k : s->n, s->sb);
	p->y = layout(s, &s->a, s->ta ? s->k : s->m, s->ta ? s->m : s->k, s->sa);
	p->c = layout(s, &s->c, s->m, s->n, s->sc);
	p->d = layout(s, addend(s), s->m, s->n, s->sc);
}

static bool
take_cached(Lt *lt, Plan *p)
{
	cublasLtMatmulHeuristicResult_t found;
	Arena *mem = arena_new("gemm choice");
	size_t n = 0;
	char *s = cache_get(mem, lt->cache, p->key, ".gemm", &n);
	bool good = s && n == sizeof p->algo;

	if (good) {
		memcpy(&p->algo, s, sizeof p->algo);
		good = api.cublasLtMatmulAlgoCheck(lt->handle, p->desc, p->x, p->y, p->d, p->c,
		                                   &p->algo, &found) == CUBLAS_STATUS_SUCCESS &&
		       found.workspaceSize <= Workspace;
	}
	arena_free(mem);
	return good;
}

static Plan *
plan_new(Run *r, const RunStep *s, const unsigned align[4])
{
	const Cuda *c = r->dev;
	Plan *p = NEW(c->lt->mem, Plan);

	if (dtype_fp8(s->a.dt) && c->capability < LeastFp8)
		die("%s: FP8 products need compute capability 8.9, %s has %d.%d: numerics.head auto does without",
		    s->site, c->name, c->capability / 10, c->capability % 10);
	if ((s->a.dt != s->b.dt && !dtype_fp8(s->a.dt)) || (s->a.dt == DT_F32 && s->c.dt != DT_F32))
		die("%s: a product of %s by %s into %s is not for device cuda", s->site,
		    dtype_name(s->a.dt), dtype_name(s->b.dt), dtype_name(s->c.dt));
	p->step = s;
	memcpy(p->align, align, sizeof p->align);
	set_key(r, p);
	describe(r, p);
	p->chosen = !untuned() && take_cached(c->lt, p);
	c->lt->nuntimed += !p->chosen;
	p->next = c->lt->plan;
	c->lt->plan = p;
	c->lt->nplan++;
	return p;
}

static void
prepare(Run *r, RunStep *s)
{
	const unsigned align[4] = {alignment(r, s, &s->a, s->sa), alignment(r, s, &s->b, s->sb),
	                           alignment(r, s, &s->c, s->sc), alignment(r, s, addend(s), s->sc)};
	const Cuda *c = r->dev;
	Plan *p = c->lt->plan;

	while (p && !same(p, s, align))
		p = p->next;
	s->plan = p ? p : plan_new(r, s, align);
}

/* choosing */

static void
prefer(const RunStep *s, cublasLtMatmulPreference_t pref, unsigned which, const void *value,
       size_t size)
{
	MUST(s, cublasLtMatmulPreferenceSetAttribute, pref, which, value, size);
}

static int
choices(const Lt *lt, const Plan *p, cublasLtMatmulHeuristicResult_t *found)
{
	const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
	const uint32_t align[4] = {p->align[0], p->align[1], p->align[2], p->align[3]};
	const uint64_t most = Workspace;
	cublasLtMatmulPreference_t pref = NULL;
	const RunStep *s = p->step;
	int n = 0, i, k;

	MUST(s, cublasLtMatmulPreferenceCreate, &pref);
	prefer(s, pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
	prefer(s, pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme, sizeof scheme);
	prefer(s, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align[1], sizeof *align);
	prefer(s, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align[0], sizeof *align);
	prefer(s, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align[3], sizeof *align);
	prefer(s, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align[2], sizeof *align);
	MUST(s, cublasLtMatmulAlgoGetHeuristic, lt->handle, p->desc, p->x, p->y, p->d, p->c, pref,
	     MaxChoices, found, &n);
	api.cublasLtMatmulPreferenceDestroy(pref);
	for (i = k = 0; i < n; i++)
		if (found[i].state == CUBLAS_STATUS_SUCCESS && found[i].workspaceSize <= Workspace)
			found[k++] = found[i];
	if (k == 0)
		die("cuBLASLt has no algorithm for %c%c %ld x %ld x %ld, %s into %s, at %s",
		    s->ta ? 't' : 'n', s->tb ? 't' : 'n', s->m, s->n, s->k,
		    dtype_name(s->a.dt), dtype_name(s->c.dt), s->site);
	return k;
}

static cublasStatus_t
multiply(const Run *r, const Plan *p, const RunStep *s, const cublasLtMatmulAlgo_t *algo)
{
	const Cuda *c = r->dev;
	float beta = s->add ? s->beta : s->acc;

	/* cuBLASLt calls C what is added, and D the result */
	return api.cublasLtMatmul(c->lt->handle, p->desc, &s->alpha, (void *)address(r, &s->b), p->x,
	                          (void *)address(r, &s->a), p->y, &beta,
	                          (void *)address(r, addend(s)), p->d, (void *)address(r, &s->c), p->c,
	                          algo, (void *)(uintptr_t)c->lt->workspace, Workspace, c->stream);
}

/* Seconds of each of n runs, or a negative number where it does not run. */
static double
time_runs(Run *r, const Plan *p, const cublasLtMatmulAlgo_t *algo, int n)
{
	const Cuda *c = r->dev;
	float ms = 0;
	int i;

	cuda_must(r, api.cuEventRecord(c->lt->start, c->stream), "recording an event");
	for (i = 0; i < n; i++)
		if (multiply(r, p, p->step, algo) != CUBLAS_STATUS_SUCCESS)
			return -1;
	cuda_must(r, api.cuEventRecord(c->lt->end, c->stream), "recording an event");
	cuda_must(r, api.cuEventSynchronize(c->lt->end), "timing products");
	cuda_must(r, api.cuEventElapsedTime(&ms, c->lt->start, c->lt->end), "timing products");
	return 1e-3 * (double)ms / n;
}

/* The fastest of the rounds: what disturbs can only slow down. */
static int
fastest(Run *r, const Plan *p, const cublasLtMatmulHeuristicResult_t *found, int n)
{
	double best[MaxChoices] = {0}, t;
	int i, k, runs, winner = 0;

	t = time_runs(r, p, &found[0].algo, 1);
	t = time_runs(r, p, &found[0].algo, 1);
	runs = t > 0 && round_seconds / t > 1 ? (int)(round_seconds / t) : 1;
	runs = runs < 50 ? runs : 50;
	for (i = 0; i < n; i++)
		best[i] = time_runs(r, p, &found[i].algo, 1);
	for (k = 0; k < Rounds; k++)
		for (i = 0; i < n; i++) {
			if (best[i] < 0)
				continue;
			t = time_runs(r, p, &found[i].algo, runs);
			if (k == 0 || t < best[i])
				best[i] = t;
		}
	for (i = 1; i < n; i++)
		if (best[i] >= 0 && (best[winner] < 0 || best[i] < best[winner]))
			winner = i;
	return best[0] < 0 || best[winner] < (1 - min_gain) * best[0] ? winner : 0;
}

static void
choose(Run *r, Plan *p)
{
	cublasLtMatmulHeuristicResult_t found[MaxChoices];
	const Cuda *c = r->dev;
	int n = choices(c->lt, p, found);
	int k = untuned() ? 0 : fastest(r, p, found, n);

	p->algo = found[k].algo;
	p->chosen = true;
	/* a choice that cannot be kept is made again next time */
	if (!untuned())
		cache_put(c->lt->cache, p->key, ".gemm", &p->algo, sizeof p->algo);
}

static void
use(bool used[NArena], const Plan *p)
{
	used[p->step->a.at.arena] = true;
	used[p->step->b.at.arena] = true;
	used[p->step->c.at.arena] = true;
	used[addend(p->step)->at.arena] = true;
}

/* The arenas are not in use yet: they hold numbers for a moment. */
static void
choose_all(Run *r)
{
	const Cuda *c = r->dev;
	bool used[NArena] = {false}, terminal = isatty(2);
	int i, done = 0;
	Plan *p;

	for (p = c->lt->plan; p; p = p->next)
		if (!p->chosen)
			use(used, p);
	for (i = 0; i < NArena; i++)
		if (used[i] && !untuned())
			cuda_random(r, i);
	for (p = c->lt->plan; p; p = p->next) {
		if (p->chosen)
			continue;
		choose(r, p);
		done++;
		if (terminal)
			fprintf(stderr, "\rtiming matrix products %d/%d%s", done,
			        c->lt->nuntimed, done == c->lt->nuntimed ? "\n" : "");
	}
	for (i = 0; i < NArena; i++)
		if (used[i])
			cuda_zero(r, i);
}

/* opening, running */

void
lt_open(Run *r)
{
	Cuda *c = r->dev;
	Arena *mem = arena_new("lt");
	Lt *lt = NEW(mem, Lt);
	cublasStatus_t e;
	int i, j;

	lt->mem = mem;
	e = api.cublasLtCreate(&lt->handle);
	if (e != CUBLAS_STATUS_SUCCESS)
		die("cuBLASLt does not start on %s: %s", c->name, api.cublasLtGetStatusString(e));
	c->lt = lt;
	lt->workspace = cuda_allocate(r, "the workspace of products", Workspace);
	lt->cache = cache_open(mem);
	cuda_must(r, api.cuEventCreate(&lt->start, CU_EVENT_DEFAULT), "making an event");
	cuda_must(r, api.cuEventCreate(&lt->end, CU_EVENT_DEFAULT), "making an event");
	for (i = 0; i < r->nprog; i++)
		for (j = 0; j < r->prog[i].nstep; j++)
			if (r->prog[i].step[j].kind == ST_GEMM)
				prepare(r, &r->prog[i].step[j]);
	if (lt->nuntimed)
		choose_all(r);
}

void
lt_close(Run *r)
{
	Cuda *c = r->dev;
	Lt *lt = c->lt;
	Plan *p;

	if (!lt)
		return;
	for (p = lt->plan; p; p = p->next) {
		api.cublasLtMatmulDescDestroy(p->desc);
		api.cublasLtMatrixLayoutDestroy(p->x);
		api.cublasLtMatrixLayoutDestroy(p->y);
		api.cublasLtMatrixLayoutDestroy(p->c);
		api.cublasLtMatrixLayoutDestroy(p->d);
	}
	api.cuEventDestroy(lt->start);
	api.cuEventDestroy(lt->end);
	api.cuMemFree(lt->workspace);
	api.cublasLtDestroy(lt->handle);
	arena_free(lt->mem);
	c->lt = NULL;
}

void
lt_gemm(Run *r, RunStep *s)
{
	const Plan *p = s->plan;
	cublasStatus_t e = multiply(r, p, s, &p->algo);

	/* it may be told of a kernel that failed before it */
	if (e != CUBLAS_STATUS_SUCCESS)
		run_sync(r);
	must(s, e, "cublasLtMatmul");
}
