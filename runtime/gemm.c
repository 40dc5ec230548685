/* Matrix products: oneDNN's single-threaded primitives on tiles of our own.
 *
 * C is cut into tiles, and where that gives too few of them also k into
 * splits; a tile of a split is one item of the pool and runs oneDNN on one
 * thread.  Splits write partial matrices that a second call adds in order.
 * Tiles, splits and the chunks of k inside a split follow from the shape
 * alone, so results do not depend on the number of threads.
 *
 * The matrices of a batch are further tiles.  A product of a batch, with a
 * factor or with an addend keeps k whole: where C is not what oneDNN itself can
 * write, the thread finishes its tile in f32 in scratch of its own, multiplies,
 * adds and rounds once.
 *
 * What a shape needs (a Plan) is made once, by gemm_prepare: a step only looks
 * it up.  oneDNN is opened at run time; its headers give the types.
 *
 * Without native bf16 dot products, bf16 operands are widened into scratch and
 * the product runs in f32: the same rounding points, fp32 accumulation.
 * HCGEN_NO_BF16 in the environment asks for that on any CPU.  FP8 operands are
 * widened everywhere, to bf16 where that is multiplied. */
#define _GNU_SOURCE
#include "gemm.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Tile sizes measured on an AMD EPYC (family 26), GFLOP per CPU second of one
 * thread, `runtime_test bench`: smaller tiles pack their operands too often,
 * larger ones leave cores idle, more splits write more partials. */
enum {
	TileM = 256, TileN = 1024,      /* nt, nn */
	TileTM = 256, TileTN = 512,     /* tn, tt */
	ChunkK = 2048,          /* of a transposed A: what is packed at a time */
	LeastItems = 16,        /* nt, nn: 8 threads with two items each */
	LeastSplit = 8,         /* tn, tt: 8 threads with an item each */
	EvenItems = 4,          /* so that 2 and 4 threads get equal shares */
	LeastM = 64, LeastN = 256, LeastK = 256,
	PlanSlots = 1 << 12,
	Page = 4096
};

#define DNNL_CALLS(X) \
	X(version) X(engine_create) X(engine_destroy) \
	X(stream_create) X(stream_destroy) \
	X(memory_desc_init_by_strides) X(memory_desc_get_size) \
	X(memory_create) X(memory_destroy) X(memory_set_data_handle) \
	X(matmul_desc_init) \
	X(primitive_attr_create) X(primitive_attr_destroy) \
	X(primitive_attr_set_scratchpad_mode) X(primitive_attr_set_post_ops) \
	X(post_ops_create) X(post_ops_destroy) X(post_ops_append_sum) \
	X(primitive_desc_create) X(primitive_desc_destroy) \
	X(primitive_desc_query_md) \
	X(primitive_create) X(primitive_destroy) X(primitive_execute)

static struct {
#define DNNL_POINTER(name) __typeof__(&dnnl_##name) name;
	DNNL_CALLS(DNNL_POINTER)
#undef DNNL_POINTER
	void (*omp_set_num_threads)(int);
	void *so;
} lib;

/* the library */

static void
open_library(void)
{
	const char *missing = NULL;

	if (lib.so)
		return;
	lib.so = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
	if (!lib.so)
		die("oneDNN was not found: looked for libdnnl.so.2 (apt-get "
		    "install libdnnl2): %s", dlerror());
#define DNNL_LOAD(name) \
	*(void **)&lib.name = dlsym(lib.so, "dnnl_" #name); \
	if (!lib.name) \
		missing = "dnnl_" #name;
	DNNL_CALLS(DNNL_LOAD)
#undef DNNL_LOAD
	if (missing)
		die("libdnnl.so.2 has no %s: oneDNN 2.x is needed", missing);
	if (lib.version()->major != 2)
		die("libdnnl.so.2 is oneDNN %d: 2.x is needed",
		    lib.version()->major);
	/* absent where oneDNN was built without OpenMP */
	*(void **)&lib.omp_set_num_threads =
	        dlsym(lib.so, "omp_set_num_threads");
}

/* The pool is the only parallelism.  OpenMP keeps this per thread. */
void
gemm_one_thread(void)
{
	static _Thread_local bool done;

	if (!done && lib.omp_set_num_threads)
		lib.omp_set_num_threads(1);
	done = true;
}

bool
gemm_has_bf16(void)
{
	if (getenv("HCGEN_NO_BF16"))
		return false;
#if defined __x86_64__
	return __builtin_cpu_supports("avx512bf16");
#else
	return false;
#endif
}

static void
check(dnnl_status_t status, const char *call, const GemmShape *s)
{
	if (status != dnnl_success)
		bug("oneDNN: %s fails with %d for %c%c %ld x %ld x %ld", call,
		    (int)status, s->ta ? 't' : 'n', s->tb ? 't' : 'n', s->m,
		    s->n, s->k);
}

#define CHECK(s, name, ...) \
	check(lib.name(__VA_ARGS__), "dnnl_" #name, (s))

/* scratch */

static char *
scratch_map(char *old, size_t have, size_t want)
{
	char *p;

	if (old)
		munmap(old, have);
	p = mmap(NULL, want, PROT_READ | PROT_WRITE,
	         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("cannot get %zu bytes of memory for gemm scratch: %s",
		    want, strerror(errno));
	madvise(p, want, MADV_HUGEPAGE);
	return p;
}

static size_t
pages(size_t nbytes)
{
	return (nbytes + Page - 1) / Page * Page;
}

static void
need_own(Gemm *g, size_t nbytes)
{
	size_t n = (size_t)pool_threads(g->pool);

	if (nbytes <= g->nown)
		return;
	nbytes = pages(nbytes);
	g->own = scratch_map(g->own, n * g->nown, n * nbytes);
	g->nown = nbytes;
}

static void
need_shared(Gemm *g, size_t nbytes)
{
	if (nbytes <= g->nshared)
		return;
	nbytes = pages(nbytes);
	g->shared = scratch_map(g->shared, g->nshared, nbytes);
	g->nshared = nbytes;
}

size_t
gemm_scratch(const Gemm *g)
{
	return g->nshared + g->nown * (size_t)pool_threads(g->pool);
}

/* tiles */

static long
ceil_div(long a, long b)
{
	return (a + b - 1) / b;
}

/* Equal parts of at most `most`, each but the last a multiple of `unit`. */
static long
part(long n, long most, long unit)
{
	long t = ceil_div(n, ceil_div(n, most));

	t = ceil_div(t, unit) * unit;
	return t < n ? t : n;
}

/* Parts of a factor or an addend are not added up: k stays whole. */
static bool
is_plain(const GemmShape *s)
{
	return s->batch == 1 && s->alpha == 1 && !s->add && !s->scaled;
}

static void
count_tiles(Plan *p)
{
	p->nm = ceil_div(p->s.m, p->tm);
	p->nn = ceil_div(p->s.n, p->tn);
	p->nk = ceil_div(p->s.k, p->tk);
}

static void
cut_whole(Plan *p)
{
	p->tm = part(p->s.m, TileM, 16);
	p->tn = part(p->s.n, TileN, 64);
	p->tk = p->s.ta ? part(p->s.k, ChunkK, 64) : p->s.k;
	count_tiles(p);
	while (p->nm * p->nn * p->s.batch < LeastItems) {
		if (p->tm > LeastM)
			p->tm = part(p->s.m, p->tm / 2, 16);
		else if (p->tn > LeastN)
			p->tn = part(p->s.n, p->tn / 2, 64);
		else
			break;
		count_tiles(p);
	}
	p->nsplit = 1;
}

/* Few tiles: k is split.  Splits are of equal length, and so are the chunks
 * that each adds up.  oneDNN packs a transposed A itself: transposing it into
 * scratch first took 0.16 ns per bf16 element, a sixth of the product's time
 * at n = 256, which is what its packing takes too. */
static void
cut_transposed(Plan *p)
{
	long k = p->s.k, tiles, split = 1, most = ceil_div(k, LeastK);

	p->tm = part(p->s.m, TileTM, 64);
	p->tn = part(p->s.n, TileTN, 64);
	p->tk = k;
	count_tiles(p);
	tiles = p->nm * p->nn;
	while (tiles * split < LeastSplit || tiles * split % EvenItems != 0)
		if (tiles >= 2 * LeastSplit || ++split > most)
			break;
	split = split < most ? split : most;
	p->tk = part(k, ceil_div(k, split * ceil_div(k, split * ChunkK)), 64);
	count_tiles(p);
	p->nsplit = (int)(split < p->nk ? split : p->nk);
}

/* primitives */

static dnnl_data_type_t
dnnl_type(Dtype dt)
{
	return dt == DT_BF16 ? dnnl_bf16 : dnnl_f32;
}

static dnnl_memory_desc_t
matrix(const GemmShape *s, long rows, long cols, long ld, bool t, Dtype dt)
{
	dnnl_dims_t dim = {rows, cols};
	dnnl_dims_t stride = {t ? 1 : ld, t ? ld : 1};
	dnnl_memory_desc_t d;

	CHECK(s, memory_desc_init_by_strides, &d, 2, dim, dnnl_type(dt),
	      stride);
	return d;
}

long
gemm_edge(long n, long tile, bool last)
{
	return last ? n - (ceil_div(n, tile) - 1) * tile : tile;
}

static dnnl_primitive_attr_t
attributes(const GemmShape *s, bool sum)
{
	dnnl_primitive_attr_t attr;
	dnnl_post_ops_t ops;

	CHECK(s, primitive_attr_create, &attr);
	CHECK(s, primitive_attr_set_scratchpad_mode, attr,
	      dnnl_scratchpad_mode_user);
	if (sum) {
		CHECK(s, post_ops_create, &ops);
		CHECK(s, post_ops_append_sum, ops, 1.0f);
		CHECK(s, primitive_attr_set_post_ops, attr, ops);
		CHECK(s, post_ops_destroy, ops);
	}
	return attr;
}

static void
make_memory(Gemm *g, const GemmShape *s, Prim *prim,
            const dnnl_memory_desc_t *const desc[NArg])
{
	int i, k, n = pool_threads(g->pool);

	prim->mem = NEWN(g->mem, dnnl_memory_t, n * NArg);
	for (i = 0; i < n; i++)
		for (k = 0; k < NArg; k++)
			CHECK(s, memory_create, &prim->mem[i * NArg + k],
			      desc[k], g->engine, DNNL_MEMORY_NONE);
}

static void
make_prim(Gemm *g, Plan *p, int which)
{
	const GemmShape *s = &p->s;
	Prim *prim = &p->prim[which];
	long m = gemm_edge(s->m, p->tm, which & EdgeM);
	long n = gemm_edge(s->n, p->tn, which & EdgeN);
	long k = gemm_edge(s->k, p->tk, which & EdgeK);
	bool partial = which & Partial;
	dnnl_memory_desc_t a = matrix(s, m, k, s->lda, s->ta, s->at);
	dnnl_memory_desc_t b = matrix(s, k, n, s->ldb, s->tb, s->at);
	long ldc = !partial ? s->ldc : p->held ? p->tn : s->n;
	dnnl_memory_desc_t c = matrix(s, m, n, ldc, false, partial ? DT_F32 : s->ct);
	const dnnl_memory_desc_t *scratch;
	dnnl_primitive_attr_t attr;
	dnnl_primitive_desc_t pd;
	dnnl_matmul_desc_t desc;

	if (prim->prim)
		return;
	CHECK(s, matmul_desc_init, &desc, &a, &b, NULL, &c);
	attr = attributes(s, which & Sum);
	CHECK(s, primitive_desc_create, &pd, &desc, attr, g->engine, NULL);
	CHECK(s, primitive_create, &prim->prim, pd);
	scratch = lib.primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
	need_own(g, p->tile + lib.memory_desc_get_size(scratch));
	make_memory(g, s, prim,
	            (const dnnl_memory_desc_t *[NArg]){&a, &b, &c, scratch});
	lib.primitive_desc_destroy(pd);
	lib.primitive_attr_destroy(attr);
}

/* One tile of one chunk: which primitive, and where its C lies. */

bool
gemm_to_partial(const Plan *p, long split)
{
	return split > 0 || p->round || p->held;
}

int
gemm_prim_of(const Plan *p, long im, long in, long split, long chunk)
{
	bool first = chunk == split * p->nk / p->nsplit;
	bool partial = gemm_to_partial(p, split);

	return (im == p->nm - 1 ? EdgeM : 0) | (in == p->nn - 1 ? EdgeN : 0) |
	       (chunk == p->nk - 1 ? EdgeK : 0) |
	       (!first || (p->s.acc && !partial) ? Sum : 0) |
	       (partial ? Partial : 0);
}

static void
make_prims(Gemm *g, Plan *p)
{
	long im, in, split, chunk;

	/* only the first two and the last tile of each kind differ */
	for (im = p->nm > 1 ? p->nm - 2 : 0; im < p->nm; im++)
		for (in = p->nn > 1 ? p->nn - 2 : 0; in < p->nn; in++)
			for (split = 0; split < p->nsplit; split++)
				for (chunk = split * p->nk / p->nsplit;
				     chunk < (split + 1) * p->nk / p->nsplit;
				     chunk++)
					make_prim(g, p, gemm_prim_of(p, im, in,
					                             split, chunk));
}

/* plans */

enum { ShapeWords = 16 };

/* all that a shape is, for comparing */
static void
shape_words(const GemmShape *s, uint64_t w[ShapeWords])
{
	uint32_t alpha, beta;

	memcpy(&alpha, &s->alpha, sizeof alpha);
	memcpy(&beta, &s->beta, sizeof beta);
	memcpy(w, (const uint64_t[ShapeWords]){
		(uint64_t)s->ta | (uint64_t)s->tb << 1 | (uint64_t)s->acc << 2 | (uint64_t)s->add << 3 |
		        (uint64_t)s->scaled << 4,
		(uint64_t)s->at, (uint64_t)s->bt, (uint64_t)s->ct, (uint64_t)s->m, (uint64_t)s->n, (uint64_t)s->k,
		(uint64_t)s->lda, (uint64_t)s->ldb, (uint64_t)s->ldc, (uint64_t)s->ldd,
		(uint64_t)s->batch, (uint64_t)s->sa, (uint64_t)s->sb, (uint64_t)s->sc,
		(uint64_t)alpha << 32 | beta }, ShapeWords * sizeof *w);
}

static size_t
shape_hash(const GemmShape *s)
{
	uint64_t w[ShapeWords], h = 0;
	size_t i;

	shape_words(s, w);
	for (i = 0; i < ShapeWords; i++)
		h = (h ^ w[i]) * 0x9E3779B97F4A7C15u;
	return h >> 32;
}

static bool
shape_equal(const GemmShape *s, const GemmShape *t)
{
	uint64_t a[ShapeWords], b[ShapeWords];

	shape_words(s, a);
	shape_words(t, b);
	return memcmp(a, b, sizeof a) == 0;
}

static Plan **
plan_slot(Gemm *g, const GemmShape *s)
{
	size_t i = shape_hash(s) % PlanSlots;

	while (g->slot[i] && !shape_equal(&g->slot[i]->s, s))
		i = (i + 1) % PlanSlots;
	return &g->slot[i];
}

/* Operands without gaps, of one matrix of the batch: f32, or bf16, which holds every FP8
 * number, where the CPU multiplies it. */
static GemmShape
widened(const Gemm *g, const GemmShape *s)
{
	GemmShape w = *s;

	w.batch = 1;
	w.sa = w.sb = w.sc = 0;
	w.at = w.bt = dtype_fp8(s->at) && g->native_bf16 ? DT_BF16 : DT_F32;
	w.lda = s->ta ? s->m : s->k;
	w.ldb = s->tb ? s->k : s->n;
	return w;
}

size_t
gemm_floats(long rows, long cols)
{
	return pages((size_t)rows * (size_t)cols * sizeof(float));
}

static size_t
plan_widened(Gemm *g, Plan *p)
{
	const GemmShape *s = &p->s;
	Plan *w;

	p->wide = NEW(g->mem, GemmShape);
	*p->wide = widened(g, s);
	w = gemm_plan(g, p->wide);
	return w->shared + gemm_floats(s->m, s->k) + gemm_floats(s->k, s->n);
}

static void
plan_tiles(Gemm *g, Plan *p)
{
	bool plain = is_plain(&p->s), round;

	if (p->s.ta && plain)
		cut_transposed(p);
	else
		cut_whole(p);
	/* chunks add up in f32, and oneDNN has no f32 product that rounds */
	round = p->s.ct == DT_BF16 && (p->nk > 1 || p->s.at == DT_F32);
	p->round = round && plain;
	p->held = !plain && (round || p->s.alpha != 1 || p->s.add || p->s.scaled);
	p->tile = p->held ? gemm_floats(p->tm, p->tn) : 0;
	p->npartial = p->nsplit - !p->round;
	make_prims(g, p);
	p->shared = (size_t)p->npartial * gemm_floats(p->s.m, p->s.n);
}

static void
shape_check(const GemmShape *s)
{
	bool types = dtype_fp8(s->at) ? dtype_fp8(s->bt) && s->batch == 1 :
	             s->at == s->bt && (s->at == DT_F32 || s->at == DT_BF16);

	if (!types || (s->ct != DT_F32 && s->ct != DT_BF16) ||
	    (s->acc && (s->ct != DT_F32 || s->add)) || s->batch < 1)
		bug("gemm: types %d %d acc %d add %d batch %ld", (int)s->at, (int)s->ct, s->acc,
		    s->add, s->batch);
}

Plan *
gemm_plan(Gemm *g, const GemmShape *s)
{
	Plan **slot = plan_slot(g, s), *p = *slot;

	if (p)
		return p;
	if (2 * g->nplan++ >= PlanSlots)
		bug("gemm: more than %d shapes", PlanSlots / 2);
	shape_check(s);
	p = NEW(g->mem, Plan);
	p->s = *s;
	*slot = p;
	if (dtype_fp8(s->at) || (s->at == DT_BF16 && !g->native_bf16))
		p->shared = plan_widened(g, p);
	else
		plan_tiles(g, p);
	need_shared(g, p->shared);
	return p;
}

dnnl_status_t
gemm_execute(const Gemm *g, const Prim *prim, void *const at[NArg])
{
	static const int index[NArg] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS,
	                                DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
	dnnl_memory_t *mem = prim->mem + (ptrdiff_t)pool_self() * NArg;
	dnnl_exec_arg_t arg[NArg];
	dnnl_status_t e = dnnl_success;
	int i;

	for (i = 0; i < NArg; i++) {
		if (e == dnnl_success)
			e = lib.memory_set_data_handle(mem[i], at[i]);
		arg[i] = (dnnl_exec_arg_t){index[i], mem[i]};
	}
	if (e == dnnl_success)
		e = lib.primitive_execute(prim->prim, g->stream[pool_self()], NArg, arg);
	return e;
}

void
gemm_check(const Gemm *g, const GemmShape *s)
{
	if (atomic_load(&g->failed))
		check((dnnl_status_t)atomic_load(&g->failed), "dnnl_primitive_execute", s);
}

void
gemm_prepare(Gemm *g, const GemmShape *s)
{
	gemm_plan(g, s);
}

/* requires: a pool.  provides: oneDNN ready, on one thread per call. */
Gemm *
gemm_new(Pool *pool)
{
	Arena *mem = arena_new("gemm");
	Gemm *g = NEW(mem, Gemm);
	static const GemmShape none = {0};
	int i;

	open_library();
	gemm_one_thread();
	g->mem = mem;
	g->pool = pool;
	g->native_bf16 = gemm_has_bf16();
	g->slot = NEWN(mem, Plan *, PlanSlots);
	g->stream = NEWN(mem, dnnl_stream_t, pool_threads(pool));
	CHECK(&none, engine_create, &g->engine, dnnl_cpu, 0);
	for (i = 0; i < pool_threads(pool); i++)
		CHECK(&none, stream_create, &g->stream[i], g->engine,
		      dnnl_stream_default_flags);
	return g;
}

static void
prim_free(Gemm *g, Prim *prim)
{
	int i;

	if (!prim->prim)
		return;
	for (i = 0; i < pool_threads(g->pool) * NArg; i++)
		lib.memory_destroy(prim->mem[i]);
	lib.primitive_destroy(prim->prim);
}

void
gemm_free(Gemm *g)
{
	int i, k;

	for (i = 0; i < PlanSlots; i++)
		for (k = 0; g->slot[i] && k < NPrim; k++)
			prim_free(g, &g->slot[i]->prim[k]);
	for (i = 0; i < pool_threads(g->pool); i++)
		lib.stream_destroy(g->stream[i]);
	lib.engine_destroy(g->engine);
	if (g->own)
		munmap(g->own, g->nown * (size_t)pool_threads(g->pool));
	if (g->shared)
		munmap(g->shared, g->nshared);
	arena_free(g->mem);
}
