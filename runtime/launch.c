/* Executes the steps of a program, in order. */
#define _POSIX_C_SOURCE 200809L
#include "hcrun.h"

#include <string.h>
#include <time.h>

typedef struct { HcKernel *fn; const HcArg *arg; } Launch;

enum { CopyBlock = 1 << 18 };   /* picked arbitrarily */

typedef struct { char *dst; const char *src; size_t nbytes; } Copy;

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void
launch_item(void *arg, long item)
{
	const Launch *l = arg;

	l->fn(l->arg, item);
}

static void
copy_item(void *arg, long item)
{
	const Copy *c = arg;
	size_t off = (size_t)item * CopyBlock, n = c->nbytes - off;

	memcpy(c->dst + off, c->src + off, n < CopyBlock ? n : CopyBlock);
}

static void
run_copy(Run *r, const RunStep *s)
{
	Copy c = {run_at(r, s->c.at), run_at(r, s->a.at), (size_t)s->m};

	pool_run(r->pool, copy_item, &c, (s->m + CopyBlock - 1) / CopyBlock);
}

static void
run_step(Run *r, const RunStep *s)
{
	Launch l;

	switch (s->kind) {
	case ST_LAUNCH:
		l = (Launch){r->kernel[s->kernel].fn, s->bound};
		pool_run(r->pool, launch_item, &l, s->items);
		break;
	case ST_GEMM:
		gemm_run(r->gemm, s->ta, s->tb, s->acc, s->m, s->n, s->k,
		         run_at(r, s->a.at), s->a.dt, s->a.ld,
		         run_at(r, s->b.at), s->b.dt, s->b.ld,
		         run_at(r, s->c.at), s->c.dt, s->c.ld);
		break;
	case ST_COPY:
		run_copy(r, s);
		break;
	}
}

void
run_program(Run *r, int prog)
{
	RunProg *p = &r->prog[prog];
	int i;

	for (i = 0; i < p->nstep; i++)
		run_step(r, &p->step[i]);
}

void
run_program_each(Run *r, int prog, void (*after)(void *, int), void *ctx)
{
	RunProg *p = &r->prog[prog];
	int i;

	for (i = 0; i < p->nstep; i++) {
		run_step(r, &p->step[i]);
		after(ctx, i);
	}
}

void
run_program_timed(Run *r, int prog, double *t)
{
	RunProg *p = &r->prog[prog];
	double start, end;
	int i;

	start = seconds();
	for (i = 0; i < p->nstep; i++) {
		run_step(r, &p->step[i]);
		end = seconds();
		if (t)
			t[i] += end - start;
		start = end;
	}
}
