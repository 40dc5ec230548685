/* hcgen bench: time per kernel and gemm of one training step.
 *
 * Runs the emitted programs on random tokens and adds up seconds by kernel
 * name or gemm site; bytes and flops are the plan's. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { const char *name; int n; double s, nbytes, flops; } Row;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void
fill_inputs(Run *r)
{
	int32_t *tok = NEWN(r->mem, int32_t, r->tokens + 1);
	uint32_t x = 1;
	long i;

	for (i = 0; i <= r->tokens; i++) {
		x = x * 1664525 + 1013904223;
		tok[i] = (int32_t)((x >> 8) % (uint32_t)r->vocab);
	}
	inputs_fill(r, tok, tok + 1, r->tokens);
}

/* the site without its layer: layers.3.mlp.up fwd -> mlp.up fwd */
static const char *
row_name(const Run *r, const RunStep *s)
{
	const char *p = s->site;

	if (s->kind == ST_LAUNCH)
		return r->kernel[s->kernel].name;
	if (strncmp(p, "layers.", 7) == 0)
		for (p += 7; *p && *p != '.' && *p != ' '; p++)
			;
	return *p == '.' ? p + 1 : p;
}

static int
row_cmp(const void *a, const void *b)
{
	double x = ((const Row *)a)->s, y = ((const Row *)b)->s;

	return x < y ? 1 : x > y ? -1 : 0;
}

static int
add_rows(const Run *r, const RunProg *p, const double *t, double runs, Row *row, int n)
{
	int i, j;

	for (i = 0; i < p->nstep; i++) {
		const char *name = row_name(r, &p->step[i]);

		for (j = 0; j < n; j++)
			if (strcmp(row[j].name, name) == 0)
				break;
		if (j == n)
			row[n++] = (Row){ .name = name };
		row[j].n++;
		row[j].s += t[i];
		row[j].nbytes += runs * p->step[i].nbytes;
		row[j].flops += runs * p->step[i].flops;
	}
	return n;
}

int
bench(const char *dir, long steps, int nthreads)
{
	Run *r = run_load(dir);
	RunProg *tr = &r->prog[PROG_TRAIN], *up = &r->prog[PROG_UPDATE];
	double *a, *b, t0, sum = 0, tokens;
	Row *row;
	int i, n;
	long k, m;

	run_open(r, nthreads);
	run_init_params(r, r->seed);
	run_sync_weights(r);
	fill_inputs(r);
	((float *)run_at(r, (Place){ AR_SCHED, 0 }))[1] = 1;
	run_program(r, PROG_TRAIN);
	run_program(r, PROG_UPDATE);
	a = NEWN(r->mem, double, tr->nstep);
	b = NEWN(r->mem, double, up->nstep);
	t0 = now();
	for (k = 0; k < steps; k++) {
		memset(run_at(r, (Place){ AR_GRADS, 0 }), 0, r->arena_size[AR_GRADS]);
		for (m = 0; m < r->micro; m++)
			run_program_timed(r, PROG_TRAIN, a);
		run_program_timed(r, PROG_UPDATE, b);
	}
	t0 = now() - t0;
	row = NEWN(r->mem, Row, tr->nstep + up->nstep);
	n = add_rows(r, tr, a, (double)(steps * r->micro), row, 0);
	n = add_rows(r, up, b, (double)steps, row, n);
	qsort(row, (size_t)n, sizeof *row, row_cmp);
	tokens = (double)(r->tokens * r->micro * steps);
	for (i = 0; i < n; i++)
		sum += row[i].s;
	printf("%-52s %5s %9s %7s %8s %9s\n", "kernel or gemm", "each", "ms/step", "%",
	       "GB/s", "GFLOP/s");
	for (i = 0; i < n; i++)
		printf("%-52s %5d %9.3f %7.2f %8.1f %9.1f\n", row[i].name, row[i].n,
		       1e3 * row[i].s / (double)steps, 100 * row[i].s / sum,
		       1e-9 * row[i].nbytes / row[i].s,
		       1e-9 * row[i].flops / row[i].s);
	printf("%ld steps of %ld tokens on %d threads: %.1f ms per step, %.0f tokens/s\n", steps,
	       r->tokens * r->micro, pool_threads(r->pool), 1e3 * t0 / (double)steps,
	       tokens / t0);
	run_close(r);
	return EX_OK;
}
