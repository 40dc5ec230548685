/* The Plan itself: storage types, verifier, printer. */
#include "fuse.h"

#include <string.h>

int
dt_size(Dt dt)
{
	static const int size[] = { 4, 2, 8, 4, 1, 1 };

	return size[dt];
}

const char *
dt_name(Dt dt)
{
	static const char *const name[] = { "f32", "bf16", "f64", "i32", "f8e4m3", "f8e5m2" };

	return name[dt];
}

bool
dt_fp8(Dt dt)
{
	return dt == E4M3 || dt == E5M2;
}

const char *const arena_name[NArenas] = {
	"params", "weights", "grads", "moment1", "moment2", "acts", "tables",
	"inputs", "sched", "result",
};

bool
has_text(const Step *s)
{
	return s->kind == STEP_ROW || s->kind == STEP_TEMPLATE || s->kind == STEP_TAIL;
}

/* what a device can launch; row kernels get their threads in lower.c */
static void
verify_launches(const Plan *p)
{
	const Step *s;
	int i;

	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		if (!has_text(s))
			continue;
		if (s->items < 1 || s->items >= 1L << 31)
			bug("plan: step %d (%s) has %ld blocks", i, s->site, s->items);
		if (p->target == TO_CPU || s->kind != STEP_TEMPLATE)
			continue;
		if (s->threads < 32 || s->threads > 1024 || s->threads % 32)
			bug("plan: step %d (%s) has %d threads", i, s->site, s->threads);
		if (s->smem > 227 * 1024)
			bug("plan: step %d (%s) takes %zu bytes of shared memory", i, s->site,
			    s->smem);
	}
}

void
plan_verify(const Plan *p)
{
	const Step *s;
	bool *made;
	int i, j, v;

	verify_launches(p);
	if (!p->g)
		return;
	made = NEWN(p->mem, bool, p->nbuf);
	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		if (s->nbytes <= 0)
			bug("plan: step %d (%s) states no bytes", i, s->site);
		for (j = 0; s->row && j < s->row->nin; j++) {
			v = s->row->in[j];
			if (p->bufof[v] < 0 || !made[p->bufof[v]])
				bug("plan: step %d (%s) reads value %d before it is stored",
				    i, s->site, v);
		}
		for (j = 0; s->row && j < s->row->nroot; j++)
			if (p->bufof[s->row->root[j]] >= 0)
				made[p->bufof[s->row->root[j]]] = true;
		for (j = 0; j < s->nopd; j++) {
			if (s->opd[j].kind != OPD_BUF)
				continue;
			/* of a gemm, A, B and D are read; templates say which of
			 * theirs are only in their text */
			if (s->kind == STEP_GEMM && j != 2 && !made[s->opd[j].id])
				bug("plan: step %d (%s) reads %s before it is stored",
				    i, s->site, p->buf[s->opd[j].id].name);
			made[s->opd[j].id] = true;
		}
	}
}

void
plan_print(const Plan *p, FILE *f)
{
	const Step *s;
	int i, j;

	fprintf(f, "program %s T %ld\n", p->prog, p->T);
	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		fprintf(f, "%4d %s bytes %.0f flops %.0f", i, s->site, s->nbytes, s->flops);
		for (j = 0; s->row && j < s->row->nin; j++)
			fprintf(f, "%s%%%d", j ? " " : " in ", s->row->in[j]);
		for (j = 0; s->row && j < s->row->nroot; j++)
			fprintf(f, "%s%%%d", j ? " " : " out ", s->row->root[j]);
		fputc('\n', f);
	}
	for (i = 0; i < p->nbuf; i++)
		fprintf(f, "buf %d %s %s [%ld,%ld] life %d..%d at %zu\n", i, p->buf[i].name,
		        dt_name(p->buf[i].dt), p->buf[i].rows, p->buf[i].width,
		        p->buf[i].first, p->buf[i].last, p->buf[i].off);
}
