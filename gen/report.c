/* Bundle -> plan.txt: the plan for people. */
#include "hcgen.h"

#include <string.h>

typedef struct { double fwd, bwd; } Pair;

static double *
side(Pair *p, const Step *s)
{
	return s->bwd ? &p->bwd : &p->fwd;
}

/* layers in the middle whose neighbours are like them: a schedule may take two
 * sublayers at a time, or three */
static bool
is_steady(const Model *m, int sub)
{
	int n = m->L >= 5 ? 3 : 1, first = (m->L - n) / 2;

	return sub >= 2 * first && sub < 2 * (first + n);
}

static double
vec_bytes(const Plan *p, int v)
{
	return (double)p->T * p->g->v[v].width * dt_size(p->dt[v]);
}

/* the layer of the first kernel that reads what step i writes, or -1 */
static int
first_reader(const Plan *p, int i, int v)
{
	const Step *s;
	int j;

	for (i++; i < p->nstep; i++)
		for (s = &p->step[i], j = 0; s->row && j < s->row->nin; j++)
			if (s->row->in[j] == v)
				return s->sub / 2;
	return -1;
}

/* Bytes of a kernel that serve all layers at once: at the end of the backward
 * pass lane gradients that were kept, the sources that they are multiplied with
 * and the gradients that come of it; sums of sources that are laid down ahead. */
static double
spread_bytes(const Plan *p, int step)
{
	const Step *s = &p->step[step];
	const RowKernel *r = s->row;
	const Val *v;
	double n = 0;
	int i;

	for (i = 0; i < r->nin; i++) {
		v = &p->g->v[r->in[i]];
		if (s->bwd && s->sub < 0 && v->kind == K_VEC && v->op != OP_GEMM_DX &&
		    (v->bwd || v->sub < 0))
			n += vec_bytes(p, r->in[i]);
	}
	for (i = 0; i < r->nroot; i++) {
		v = &p->g->v[r->root[i]];
		if (v->kind == K_VEC && ((s->bwd && s->sub < 0) ||
		    (!s->bwd && first_reader(p, step, r->root[i]) > s->sub / 2 + 1)))
			n += vec_bytes(p, r->root[i]);
	}
	return n;
}

static void
glue_lines(const Bundle *b, Buf *o)
{
	const Plan *p = b->plan[PLAN_TRAIN];
	const Model *m = b->model;
	double U = 2. * m->C * (double)p->T, all, far;
	Pair layer[2] = {{0}}, total[2] = {{0}};
	const Step *s;
	int i, g, n = m->L >= 5 ? 3 : 1;

	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		if (s->kind != STEP_ROW)
			continue;
		far = spread_bytes(p, i);
		*side(&total[s->glue], s) += s->nbytes;
		*side(&layer[s->glue], s) += far / m->L;
		if (is_steady(m, s->sub))
			*side(&layer[s->glue], s) += (s->nbytes - far) / n;
	}
	for (g = 0; g < 2; g++) {
		all = total[g].fwd + total[g].bwd;
		buf_printf(o, "%-12s forward %6.2f  backward %6.2f  U per steady layer    "
		           "total %.0f bytes/token\n", g == GLUE_LANE ? "lane glue" : "branch glue",
		           layer[g].fwd / U, layer[g].bwd / U, all / (double)p->T);
	}
}

static const char *
class_of(const Step *s)
{
	if (s->kind == STEP_ROW || s->kind == STEP_TAIL || strcmp(s->name, "finish") == 0)
		return "glue";
	if (s->kind == STEP_GEMM)
		return strncmp(s->site, "head", 4) == 0 ? "head" : "gemm";
	if (strncmp(s->name, "attn", 4) == 0)
		return "attention";
	if (strncmp(s->site, "head", 4) == 0 || strcmp(s->name, "loss_sum") == 0)
		return "head";
	return "other";
}

static void
modelled_line(const Bundle *b, const Plan *p, Buf *o)
{
	static const char *const class[] = { "glue", "gemm", "attention", "head", "other" };
	double t[5] = {0}, sum = 0, opt = 0;
	const Plan *u = b->plan[PLAN_UPDATE];
	const Step *s;
	int i, c;

	for (i = 0; i < p->nstep; i++)
		for (c = 0; c < 5; c++)
			if (strcmp(class_of(&p->step[i]), class[c]) == 0)
				t[c] += p->step[i].us;
	for (c = 0; c < 5; c++)
		sum += t[c];
	/* the mean of the steps that have no end */
	for (s = u->step; s < u->step + u->nstep; s++)
		opt += s->every == 0 ? s->us : s->to < 0 ? s->us / s->every : 0;
	buf_printf(o, "%-12s %.3f ms per micro-step of %ld tokens on %s (", p == b->plan[PLAN_TRAIN] ? "modelled" :
	           arena_printf(b->mem, "stage %s", b->model->stage[p->stage].name), sum / 1e3, p->T,
	           target_of(b->model)->name);
	for (c = 0; c < 5; c++)
		buf_printf(o, "%s%s %.3f", c ? ", " : "", class[c], t[c] / 1e3);
	if (p == b->plan[PLAN_TRAIN])
		buf_printf(o, "), optimizer %.3f ms per step\n", opt / 1e3);
	else
		buf_puts(o, ")\n");
}

/* which steps of the run the rows below are of, where that is not as above */
static void
when_row(const Step *above, const Step *s, Buf *o)
{
	if (above ? above->every == s->every && above->from == s->from && above->to == s->to : s->every == 0)
		return;
	if (s->every == 0)
		buf_puts(o, "       every step:\n");
	else if (s->every == 1)
		buf_puts(o, "       ");
	else
		buf_printf(o, "       every %d steps%s", s->every, s->from > 0 || s->to >= 0 ? ", " : "");
	if (s->every && s->from > 0)
		buf_printf(o, "from step %ld%s", s->from, s->to >= 0 ? ", " : "");
	if (s->every && s->to >= 0)
		buf_printf(o, "before step %ld", s->to);
	buf_puts(o, s->every ? ":\n" : "");
}

/* what NorMuon multiplies, and what it would if each half of a symmetric product were formed once */
static void
polar_line(const Bundle *b, Buf *o)
{
	double all, symmetric;

	if (!has_normuon(b->model))
		return;
	polar_flops(b->plan[PLAN_UPDATE], &all, &symmetric);
	buf_printf(o, "%-12s %.1f GFLOP per update in products (%.1f with half of each symmetric one)\n", "normuon",
	           all / 1e9, symmetric / 1e9);
}

static void
program_table(const Bundle *b, const Plan *p, Buf *o)
{
	const Step *s;
	double bytes = 0, flops = 0, us = 0;
	const Step *last = NULL;
	char gemm[96], batch[24];
	const char *what;
	int i;

	buf_printf(o, "\nprogram %s: %d steps, %ld tokens\n", p->prog, p->nstep, p->T);
	buf_printf(o, "%5s  %-36s %-46s %12s %14s %10s\n", "step", "site", "kernel or gemm",
	           "bytes", "flops", "us");
	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		when_row(last, s, o);
		last = s;
		snprintf(batch, sizeof batch, s->batch > 1 ? "%ld of " : "", s->batch);
		snprintf(gemm, sizeof gemm, "gemm %c%c %s%ld x %ld x %ld%s", s->ta ? 't' : 'n',
		         s->tb ? 't' : 'n', batch, s->m, s->n, s->k,
		         s->acc ? " +=" : s->nopd > 3 ? " + b D" : "");
		what = s->kind == STEP_GEMM ? gemm : has_text(s) ? b->text[s->text].name : s->name;
		buf_printf(o, "%5d  %-36s %-46s %12.0f %14.0f %10.2f\n", i, s->site, what,
		           s->nbytes, s->flops, s->us);
		bytes += s->nbytes;
		flops += s->flops;
		us += s->us;
	}
	buf_printf(o, "%5s  %-83s %12.0f %14.0f %10.2f\n", "", "total", bytes, flops, us);
}

static void
memory_map(const Plan *p, Buf *o)
{
	const Buffer *x;
	int i;

	buf_printf(o, "\nacts of program %s: %zu bytes\n", p->prog, p->acts_nbytes);
	buf_printf(o, "%14s %14s  %-6s %-16s %s\n", "offset", "bytes", "dtype", "life", "what");
	for (i = 0; i < p->nbuf; i++) {
		x = &p->buf[i];
		buf_printf(o, "%14zu %14zu  %-6s %5d..%-9d %s [%ld,%ld]\n", x->off, x->nbytes,
		           dt_name(x->dt), x->first, x->last, x->name, x->rows, x->width);
	}
}

void
report(const Bundle *b, Buf *o)
{
	const Model *m = b->model;
	size_t sum = 0;
	long n = 0;
	int i;

	for (i = 0; i < m->nparam; i++)
		n += m->param[i].n;
	buf_printf(o, "plan of %s for %s: %d layers, width %d, %d lanes, %d heads (%d kv) of %d, hidden %d,"
	           " vocab %d (%d)\n", m->spec->name, b->target == TO_CUDA ? "cuda" : "cpu", m->L, m->C, m->n, m->H, m->K, m->D, m->F,
	           m->V, m->Vp);
	buf_printf(o, "%ld parameters, %ld tokens per micro-batch in sequences of %d\n\n", n,
	           b->plan[PLAN_TRAIN]->T, m->seq);
	glue_lines(b, o);
	modelled_line(b, b->plan[PLAN_TRAIN], o);
	for (i = NPlans; i < b->nplan; i++)
		if (b->plan[i]->g->mode == GRAPH_TRAIN)
			modelled_line(b, b->plan[i], o);
	polar_line(b, o);
	buf_printf(o, "\nmemory\n");
	for (i = 0; i < NArenas; i++) {
		buf_printf(o, "%14zu  %s\n", b->nbytes[i], arena_name[i]);
		sum += b->nbytes[i];
	}
	buf_printf(o, "%14zu  together\n", sum);
	/* further stages run the same kernels */
	for (i = 0; i < NPlans; i++)
		program_table(b, b->plan[i], o);
	for (i = 0; i < NPlans; i++)
		memory_map(b->plan[i], o);
}

/* who wrote each buffer last, as steps go by */
static void
dot_edges(const Plan *p, int i, int *writer, Buf *o)
{
	const Step *s = &p->step[i];
	double U = 2. * p->model->C * (double)p->T;
	int j, b, v;

	for (j = 0; s->row && j < s->row->nin; j++) {
		v = s->row->in[j];
		b = p->bufof[v];
		if (p->g->v[v].kind == K_VEC && writer[b] >= 0)
			buf_printf(o, "  s%d -> s%d [label=\"%s %.3g\"];\n", writer[b], i, p->buf[b].name,
			           (double)p->T * (double)kernel_reads(p->g, s->row, v) * dt_size(p->dt[v]) / U);
	}
	for (j = 0; s->kind == STEP_GEMM && j < 2; j++)
		if (s->opd[j].kind == OPD_BUF && writer[s->opd[j].id] >= 0)
			buf_printf(o, "  s%d -> s%d [label=\"%s\"];\n", writer[s->opd[j].id], i,
			           p->buf[s->opd[j].id].name);
	for (j = 0; s->kind == STEP_TEMPLATE && j < s->nopd; j++)
		if (s->opd[j].kind == OPD_BUF && writer[s->opd[j].id] >= 0)
			buf_printf(o, "  s%d -> s%d;\n", writer[s->opd[j].id], i);
	for (j = 0; s->row && j < s->row->nroot; j++)
		if (p->bufof[s->row->root[j]] >= 0)
			writer[p->bufof[s->row->root[j]]] = i;
	for (j = 0; s->kind != STEP_ROW && j < s->nopd; j++)
		if (s->opd[j].kind == OPD_BUF && (s->kind == STEP_GEMM ? j == 2 : writer[s->opd[j].id] < 0))
			writer[s->opd[j].id] = i;
}

void
plan_dot(const Bundle *b, Buf *o)
{
	const Plan *p = b->plan[PLAN_TRAIN];
	double U = 2. * p->model->C * (double)p->T;
	int *writer = NEWN(p->mem, int, p->nbuf + 1), i;
	const Step *s;

	memset(writer, -1, (size_t)(p->nbuf + 1) * sizeof *writer);
	buf_printf(o, "// row kernels are boxes, edges between them vectors in U\n"
	           "digraph plan {\n  node [fontname=\"monospace\"];\n");
	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		buf_printf(o, "  s%d [label=\"%s\\n%.3g U\", shape=%s];\n", i, s->site, s->nbytes / U,
		           s->kind == STEP_ROW ? "box" : "ellipse");
	}
	for (i = 0; i < p->nstep; i++)
		dot_edges(p, i, writer, o);
	buf_puts(o, "}\n");
}
