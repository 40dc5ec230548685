/* Executes the steps of a program, in order: those that are of this step of the run. */
#include "hcrun.h"

bool
step_due(const RunStep *s, long t)
{
	return (t + 1) % s->every == 0 && t >= s->from && (s->to < 0 || t < s->to);
}

static void
run_step(Run *r, RunStep *s)
{
	if (!step_due(s, r->t))
		return;
	switch (s->kind) {
	case ST_LAUNCH:
		r->ops->launch(r, s);
		break;
	case ST_GEMM:
		r->ops->gemm(r, s);
		break;
	case ST_COPY:
		r->ops->copy(r, s);
		break;
	case ST_ZERO:
		r->ops->clear(r, s);
		break;
	}
}

const RunProg *
run_prog(const Run *r, int prog)
{
	return &r->prog[r->at[prog]];
}

/* Tables are filled anew where another stage has other ones: three times in a run. */
void
run_stage(Run *r, int stage)
{
	const RunStage *s = &r->stage[stage];

	if (s->train >= 0)
		r->at[PROG_TRAIN] = s->train;
	r->at[PROG_EVAL] = s->eval;
	r->on = stage;
	if (r->ops)
		run_fill_tables(r);
}

void
run_program(Run *r, int prog)
{
	RunProg *p = &r->prog[r->at[prog]];
	int i;

	for (i = 0; i < p->nstep; i++)
		run_step(r, &p->step[i]);
}

void
run_program_each(Run *r, int prog, void (*after)(void *, int), void *ctx)
{
	RunProg *p = &r->prog[r->at[prog]];
	int i;

	for (i = 0; i < p->nstep; i++) {
		run_step(r, &p->step[i]);
		run_sync(r);
		after(ctx, i);
	}
}

void
run_program_timed(Run *r, int prog, double *t)
{
	RunProg *p = &r->prog[r->at[prog]];
	int i;

	r->ops->mark(r, 0);
	for (i = 0; i < p->nstep; i++) {
		run_step(r, &p->step[i]);
		r->ops->mark(r, i + 1);
	}
	run_sync(r);
	for (i = 0; t && i < p->nstep; i++)
		t[i] += r->ops->between(r, i);
}
