/* The device cpu: kernels compiled by the C compiler, products by oneDNN, both
 * shared out to the threads of the pool.  It works on the host's memory, so
 * nothing moves. */
#define _POSIX_C_SOURCE 200809L
#include "hcrun.h"

#include <string.h>
#include <time.h>

typedef struct { HcKernel *fn; const HcArg *arg; } Launch;

enum { CopyBlock = 1 << 18 };   /* picked arbitrarily */

typedef struct { char *dst; const char *src; size_t nbytes; } Copy;

static void
launch_item(void *arg, long item)
{
	const Launch *l = arg;

	l->fn(l->arg, item);
}

static void
cpu_launch(Run *r, RunStep *s)
{
	Launch l = {r->kernel[s->kernel].fn, s->bound};

	pool_run(r->pool, launch_item, &l, s->items);
}

static GemmShape
shape_of(const RunStep *s)
{
	return (GemmShape){s->ta, s->tb, s->acc, s->add, s->scaled, s->a.dt, s->b.dt, s->c.dt, s->m, s->n, s->k,
	                   s->a.ld, s->b.ld, s->c.ld, s->add ? s->d.ld : 0, s->batch, s->sa,
	                   s->sb, s->sc, s->alpha, s->beta};
}

void
cpu_gemm(Run *r, RunStep *s)
{
	GemmShape shape = shape_of(s);

	gemm_run(r->gemm, &shape, run_at(r, s->a.at), run_at(r, s->b.at), run_at(r, s->c.at),
	         s->add ? run_at(r, s->d.at) : NULL,
	         s->scaled ? *(const float *)run_at(r, s->scale) : 1);
}

static void
copy_item(void *arg, long item)
{
	const Copy *c = arg;
	size_t off = (size_t)item * CopyBlock, n = c->nbytes - off;

	memcpy(c->dst + off, c->src + off, n < CopyBlock ? n : CopyBlock);
}

void
cpu_copy(Run *r, RunStep *s)
{
	Copy c = {run_at(r, s->c.at), run_at(r, s->a.at), (size_t)s->m};

	pool_run(r->pool, copy_item, &c, (s->m + CopyBlock - 1) / CopyBlock);
}

void
cpu_zero(Run *r, int arena)
{
	if (r->arena[arena])
		memset(r->arena[arena], 0, r->arena_size[arena]);
}

static void
clear_item(void *arg, long item)
{
	const Copy *c = arg;
	size_t off = (size_t)item * CopyBlock, n = c->nbytes - off;

	memset(c->dst + off, 0, n < CopyBlock ? n : CopyBlock);
}

void
cpu_clear(Run *r, RunStep *s)
{
	Copy c = {run_at(r, s->c.at), NULL, (size_t)s->m};

	pool_run(r->pool, clear_item, &c, (s->m + CopyBlock - 1) / CopyBlock);
}

/* Steps are done when they return: a mark is the clock. */

double
seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void
cpu_mark(Run *r, int i)
{
	r->mark[i] = seconds_now();
}

double
cpu_between(Run *r, int i)
{
	return r->mark[i + 1] - r->mark[i];
}

static void
prepare(Run *r, const RunStep *s)
{
	GemmShape shape = shape_of(s);

	if (s->kind == ST_GEMM)
		gemm_prepare(r->gemm, &shape);
}

void
cpu_gemm_open(Run *r)
{
	int i, j, most = 0;

	r->gemm = gemm_new(r->pool);
	for (i = 0; i < r->nprog; i++) {
		for (j = 0; j < r->prog[i].nstep; j++)
			prepare(r, &r->prog[i].step[j]);
		if (most < r->prog[i].nstep)
			most = r->prog[i].nstep;
	}
	r->mark = NEWN(r->mem, double, most + 1);
}

static void
cpu_open(Run *r, int nthreads)
{
	r->pool = pool_new(nthreads);
	compile_kernels(r);
	arenas_map(r);
	run_bind(r);
	cpu_gemm_open(r);
}

static void
cpu_close(Run *r)
{
	if (r->gemm)
		gemm_free(r->gemm);
	arenas_unmap(r);
	compile_close(r);
}

const Device device_cpu = {
	.name = "cpu", .target = TARGET_CPU, .open = cpu_open, .close = cpu_close,
	.launch = cpu_launch, .gemm = cpu_gemm, .copy = cpu_copy, .zero = cpu_zero,
	.clear = cpu_clear,
	.mark = cpu_mark, .between = cpu_between,
};
