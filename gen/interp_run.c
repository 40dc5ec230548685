/* A whole plan in double, in one block of memory laid out as mem.c planned it, with NaN
 * wherever no buffer is alive, so that a wrong lifetime or a missing store shows in the
 * result.  Nothing is rounded but what is stored as FP8: that is the model's, not the
 * storage's. */
#include "interp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* unit: bytes of acts that are one double, those of its smallest type */
typedef struct {
	Interp *I;
	const Plan *p;
	double *acts;
	int unit;
	double loss, sched[SchedTargets + MaxTargets];
} Memory;

static double *
cell(Memory *m, const Opd *o, long i)
{
	const Model *model = m->p->model;
	size_t off = o->off + (size_t)(i * dt_size(o->dt));
	const Param *w;
	int j;

	if (o->kind == OPD_BUF)
		return m->acts + (m->p->buf[o->id].off + off) / (size_t)m->unit;
	if (o->kind == OPD_ARENA && o->id == A_RESULT)
		return &m->loss;
	if (o->kind == OPD_ARENA && o->id == A_SCHED)
		return m->sched + off / 4;
	for (j = 0; j < model->nparam; j++) {
		w = &model->param[j];
		if (o->id == A_WEIGHTS && w->woff >= 0 && off >= (size_t)w->woff &&
		    off < (size_t)w->woff + (size_t)(w->n * dt_size(o->dt)))
			return (double *)m->I->in->param[j] + (off - (size_t)w->woff) / (size_t)dt_size(o->dt);
		if (o->id != A_WEIGHTS && off >= w->off && off < w->off + (size_t)w->n * 4)
			return (o->id == A_GRADS ? m->I->grad[j] :
			        (double *)m->I->in->param[j]) + (off - w->off) / 4;
	}
	bug("interp: no parameter at %zu", off);
}

static void
memory_get(void *ctx, const Opd *o, long n, double *x)
{
	Memory *m = ctx;
	double *p;
	long i, step = o->kind == OPD_BUF ? dt_size(o->dt) / m->unit : 1;

	if (o->kind == OPD_INPUT) {
		for (i = 0; i < n; i++)
			x[i] = m->I->in->targets[o->off / 4 + (size_t)i];
		return;
	}
	p = cell(m, o, 0);
	for (i = 0; i < n; i++)
		x[i] = p[i * step];
}

static void
memory_put(void *ctx, const Opd *o, long n, const double *x, const double *mag, bool adds)
{
	Memory *m = ctx;
	double *p = cell(m, o, 0);
	long i, step = o->kind == OPD_BUF ? dt_size(o->dt) / m->unit : 1;

	(void)mag;
	for (i = 0; i < n; i++)
		p[i * step] = (adds ? p[i * step] : 0) + (dt_fp8(o->dt) ? round_fp8(o->dt, x[i]) : x[i]);
}

static void
memory_get_sum(void *ctx, const Opd *o, long n, double *x)
{
	memory_get(ctx, o, n, x);
}

static void
memory_put_sum(void *ctx, const Opd *o, long n, const double *x, const double *mag)
{
	memory_put(ctx, o, n, x, mag, false);
}

/* NaN wherever no buffer is alive at this step */
static void
poison(Memory *m, int step)
{
	size_t unit = (size_t)m->unit, n = m->p->acts_nbytes / unit, i;
	const Buffer *b;
	bool *alive = calloc(n + 1, 1);
	int j;

	if (!alive)
		die("out of memory: the interpreter");
	for (j = 0; j < m->p->nbuf; j++) {
		b = &m->p->buf[j];
		if (b->first < step && b->last >= step)
			memset(alive + b->off / unit, 1, b->nbytes / unit);
	}
	for (i = 0; i < n; i++)
		if (!alive[i])
			m->acts[i] = NAN;
	free(alive);
}

Interp *
interp_plan(const Plan *p, const Inputs *in)
{
	Interp *I = interp_new(p->g, in);
	Memory m = { .I = I, .p = p, .unit = 2 };
	Access a = { &m, memory_get, memory_put, memory_get_sum, memory_put_sum };
	int i;

	for (i = 0; i < p->nbuf; i++)
		m.unit = dt_fp8(p->buf[i].dt) ? 1 : m.unit;
	m.acts = interp_array(p->acts_nbytes / (size_t)m.unit + 1);
	m.sched[SchedScale] = in->scale;
	for (i = 0; i < p->model->ntarget; i++)
		m.sched[SchedTargets + i] = in->weight ? in->weight[i] : i == 0;
	for (i = 0; i < p->nstep; i++) {
		poison(&m, i);
		interp_step(I, p, &p->step[i], &a);
	}
	if (p->g->loss >= 0) {
		I->x[p->g->loss] = interp_array(1);
		I->x[p->g->loss][0] = m.loss;
	}
	if (p->g->logits >= 0) {
		I->x[p->g->logits] = interp_array((size_t)(p->T * p->model->Vp));
		memory_get(&m, &p->logits, p->T * p->model->Vp, I->x[p->g->logits]);
	}
	free(m.acts);
	return I;
}
