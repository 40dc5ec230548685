/* hcgen bench: time per kernel and gemm of one training step.
 *
 * Runs the emitted programs on random tokens and adds up seconds by kernel
 * name or gemm site; bytes and flops are the plan's. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <stdlib.h>
#include <string.h>

/* n: launches in a program; runs: of all of them */
typedef struct { const char *name; int n; bool gemm; double runs, s, nbytes, flops; } Row;

static void
fill_inputs(Run *r)
{
	const RunProg *p = run_prog(r, PROG_TRAIN);
	int32_t *tok = NEWN(r->mem, int32_t, p->tokens + 1);
	uint32_t x = 1;
	long i;

	for (i = 0; i <= p->tokens; i++) {
		x = x * 1664525 + 1013904223;
		tok[i] = (int32_t)((x >> 8) % (uint32_t)r->vocab);
	}
	inputs_fill(r, p, tok, tok + 1);
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

/* of `steps` steps of the run, those that have this step of a program */
static long
times_due(const RunStep *s, long steps)
{
	long t, n = 0;

	for (t = 0; t < steps; t++)
		n += step_due(s, t);
	return n;
}

/* the program ran `each` times in each of `steps` steps of the run */
static int
add_rows(const Run *r, const RunProg *p, const double *t, long steps, long each, Row *row, int n)
{
	double runs;
	int i, j;

	for (i = 0; i < p->nstep; i++) {
		runs = (double)(times_due(&p->step[i], steps) * each);
		if (runs == 0)
			continue;

		const char *name = row_name(r, &p->step[i]);

		for (j = 0; j < n; j++)
			if (strcmp(row[j].name, name) == 0)
				break;
		if (j == n)
			row[n++] = (Row){ .name = name, .gemm = p->step[i].kind == ST_GEMM };
		row[j].n++;
		row[j].runs += runs;
		row[j].s += t[i];
		row[j].nbytes += runs * p->step[i].nbytes;
		row[j].flops += runs * p->step[i].flops;
	}
	return n;
}

typedef struct {
	Run *r;
	const RunStage *stage;          /* that with the most tokens */
	double *train, *update;         /* seconds per step index */
	long steps;
	double seconds;                 /* of them, on the wall */
	double copy;                    /* bytes per second, cuda */
	Row *row;
	int nrow;
} Bench;

static void
bench_open(Bench *b, const char *dir, int device, int nthreads)
{
	Run *r = b->r = run_load(dir);
	float *sched;

	run_open(r, device, nthreads);
	run_init_params(r, r->seed);
	fill_inputs(r);
	b->stage = &r->stage[run_prog(r, PROG_TRAIN)->stage];
	sched = run_at(r, (Place){ AR_SCHED, 0 });
	sched[1] = 1;
	run_targets(r, b->stage->first, sched + SCHED_TARGETS);
	sched[5] = (float)r->momentum;
	/* GPUs multiply zeros faster than numbers: the gradients are not zero */
	if (r->target == TARGET_CUDA)
		sched[SCHED_SCALE] = 1 / (float)(b->stage->tokens * b->stage->micro);
	run_put(r, AR_SCHED, 0, (SCHED_TARGETS + MaxTargets) * sizeof *sched);
	run_program(r, PROG_TRAIN);
	run_program(r, PROG_UPDATE);
	run_sync(r);
	b->train = NEWN(r->mem, double, r->prog[PROG_TRAIN].nstep);
	b->update = NEWN(r->mem, double, r->prog[PROG_UPDATE].nstep);
}

/* a step of the run, of which the update program may have its own */
static void
begin_step(Run *r, long t)
{
	float *sched = run_at(r, (Place){ AR_SCHED, 0 });

	r->t = t;
	sched[1] = (float)(t + 1);
	run_put(r, AR_SCHED, sizeof *sched, sizeof *sched);
}

/* each: time every step of the programs, which costs a little itself */
static void
run_steps(Bench *b, bool each)
{
	Run *r = b->r;
	long k, m;

	b->seconds = seconds_now();
	for (k = 0; k < b->steps; k++) {
		begin_step(r, k);
		for (m = 0; m < b->stage->micro; m++)
			if (each)
				run_program_timed(r, PROG_TRAIN, b->train);
			else
				run_program(r, PROG_TRAIN);
		if (each)
			run_program_timed(r, PROG_UPDATE, b->update);
		else
			run_program(r, PROG_UPDATE);
	}
	run_sync(r);
	b->seconds = seconds_now() - b->seconds;
}

static void
make_rows(Bench *b)
{
	const RunProg *tr = &b->r->prog[PROG_TRAIN], *up = &b->r->prog[PROG_UPDATE];

	b->row = NEWN(b->r->mem, Row, tr->nstep + up->nstep);
	b->nrow = add_rows(b->r, tr, b->train, b->steps, b->stage->micro, b->row, 0);
	b->nrow = add_rows(b->r, up, b->update, b->steps, 1, b->row, b->nrow);
	qsort(b->row, (size_t)b->nrow, sizeof *b->row, row_cmp);
}

static double
all_seconds(const Bench *b)
{
	double sum = 0;
	int i;

	for (i = 0; i < b->nrow; i++)
		sum += b->row[i].s;
	return sum;
}

static void
table_cpu(const Bench *b)
{
	double sum = all_seconds(b);
	const Row *w;

	printf("%-52s %5s %9s %7s %8s %9s\n", "kernel or gemm", "each", "ms/step", "%",
	       "GB/s", "GFLOP/s");
	for (w = b->row; w < b->row + b->nrow; w++)
		printf("%-52s %5d %9.3f %7.2f %8.1f %9.1f\n", w->name, w->n,
		       1e3 * w->s / (double)b->steps, 100 * w->s / sum,
		       1e-9 * w->nbytes / w->s, 1e-9 * w->flops / w->s);
}

/* us: of one launch.  copy: share of the speed of a copy on this GPU. */
static void
table_cuda(const Bench *b)
{
	double sum = all_seconds(b);
	const Row *w;

	printf("%-52s %5s %9s %9s %7s %8s %6s %8s\n", "kernel or gemm", "each", "us", "ms/step", "%",
	       "GB/s", "copy%", "TFLOP/s");
	for (w = b->row; w < b->row + b->nrow; w++) {
		printf("%-52s %5d %9.2f %9.3f %7.2f %8.1f", w->name, w->n, 1e6 * w->s / w->runs,
		       1e3 * w->s / (double)b->steps, 100 * w->s / sum,
		       1e-9 * w->nbytes / w->s);
		if (b->copy > 0)
			printf(" %6.1f", 100 * w->nbytes / w->s / b->copy);
		else
			printf(" %6s", "-");
		printf(w->gemm ? " %8.1f\n" : " %8.2f\n", 1e-12 * w->flops / w->s);
	}
	if (b->copy > 0)
		printf("a copy on this GPU reads and writes %.1f GB/s\n", 1e-9 * b->copy);
}

static bool
ends_in(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && strcmp(s + n - m, end) == 0;
}

/* What is no forward step of the train program is backward. */
static void
phases(const Bench *b)
{
	const RunProg *tr = &b->r->prog[PROG_TRAIN], *up = &b->r->prog[PROG_UPDATE];
	double fwd = 0, bwd = 0, update = 0, per = 1e3 / (double)b->steps;
	int i;

	for (i = 0; i < tr->nstep; i++)
		*(ends_in(tr->step[i].site, "fwd") ? &fwd : &bwd) += b->train[i];
	for (i = 0; i < up->nstep; i++)
		update += b->update[i];
	printf("forward %.3f ms, backward %.3f ms, update %.3f ms per step, on the GPU\n",
	       fwd * per, bwd * per, update * per);
}

int
bench(const char *dir, long steps, int device, int nthreads)
{
	Bench b = {.steps = steps};
	double tokens;
	bool cuda;
	Run *r;

	bench_open(&b, dir, device, nthreads);
	r = b.r;
	cuda = r->device == DEV_CUDA;
	if (cuda)
		b.copy = cuda_copy_speed(r);
	run_steps(&b, true);
	make_rows(&b);
	if (cuda) {
		run_steps(&b, false);   /* the wall clock without events between */
		table_cuda(&b);
		phases(&b);
	} else {
		table_cpu(&b);
	}
	tokens = (double)(b.stage->tokens * b.stage->micro * steps);
	printf("%ld steps of %ld tokens on ", steps, b.stage->tokens * b.stage->micro);
	if (cuda)
		printf("%s", cuda_name(r));
	else
		printf("%d threads", pool_threads(r->pool));
	printf(": %.1f ms per step, %.0f tokens/s\n", 1e3 * b.seconds / (double)steps,
	       tokens / b.seconds);
	run_close(r);
	return EX_OK;
}
