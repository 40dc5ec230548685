/* Executes the steps of a Plan in double.
 *
 * interp_step may touch nothing but what the step says it reads and writes;
 * where that lies is the caller's business: interp_run.c has a plan's memory in
 * double, runtime/verify.c that of a real run. */
#include "interp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void
get(Exec *x, const Opd *o, long n, double *to)
{
	x->m->get(x->m->ctx, o, n, to);
}

static void
put_mag(Exec *x, const Opd *o, long n, const double *from, const double *mag)
{
	x->m->put(x->m->ctx, o, n, from, mag, false);
}

static void
put(Exec *x, const Opd *o, long n, const double *from, bool adds)
{
	x->m->put(x->m->ctx, o, n, from, NULL, adds);
}

static Opd
moved(Opd o, long elements)
{
	o.off += (size_t)(elements * dt_size(o.dt));
	return o;
}

/* rows of a matrix with a leading dimension, packed */
static double *
get_rows(Exec *x, const Opd *o, long rows, long width)
{
	double *a = interp_array((size_t)(rows * width));
	Opd r;
	long i;

	for (i = 0; i < rows; i++) {
		r = moved(*o, i * o->ld);
		get(x, &r, width, a + i * width);
	}
	return a;
}

static void
put_rows(Exec *x, const Opd *o, long rows, long width, const double *a, bool adds)
{
	Opd r;
	long i;

	for (i = 0; i < rows; i++) {
		r = moved(*o, i * o->ld);
		put(x, &r, width, a + i * width, adds);
	}
}

static void
gemm_one(Exec *x, long i)
{
	const Step *s = x->s;
	const Opd oa = moved(s->opd[0], i * s->sa), ob = moved(s->opd[1], i * s->sb);
	const Opd oc = moved(s->opd[2], i * s->sc);
	double *a = get_rows(x, &oa, s->ta ? s->k : s->m, s->ta ? s->m : s->k);
	double *b = get_rows(x, &ob, s->tb ? s->n : s->k, s->tb ? s->k : s->n);
	double *c = interp_array((size_t)(s->m * s->n)), *d, scale = 1;
	Opd od;
	long j;

	interp_matmul(c, a, b, s->m, s->n, s->k, s->ta ? 1 : s->k, s->ta ? s->m : 1,
	              s->tb ? s->k : 1, s->tb ? 1 : s->n);
	if (s->scaled)
		get(x, &s->scale, 1, &scale);
	for (j = 0; j < s->m * s->n; j++)
		c[j] *= (s->alpha != 0 ? s->alpha : 1) * scale;
	if (s->nopd > 3) {
		od = moved(s->opd[3], i * s->sc);
		d = get_rows(x, &od, s->m, s->n);
		for (j = 0; j < s->m * s->n; j++)
			c[j] += s->beta * d[j];
		free(d);
	}
	put_rows(x, &oc, s->m, s->n, c, s->acc);
	free(a);
	free(b);
	free(c);
}

static void
gemm(Exec *x)
{
	long i;

	for (i = 0; i < (x->s->batch ? x->s->batch : 1); i++)
		gemm_one(x, i);
}

/* row kernels */

static bool
is_leaf(const Val *v)
{
	return v->op == OP_NUM || v->op == OP_COEF || v->op == OP_PVEC ||
	       v->op == OP_TABLE;
}

static void
need(Exec *x, int v, bool *have, bool *made)
{
	const Val *w = &x->p->g->v[v];
	int j;

	if (have[v])
		return;
	have[v] = made[v] = true;
	if (!is_leaf(w) && op_info[w->op].class != CL_POINT &&
	    op_info[w->op].class != CL_REDUCE && op_info[w->op].class != CL_INDEX)
		bug("interp: step %s reads %s, which it does not say", x->s->site,
		    op_info[w->op].name);
	for (j = 0; j < op_info[w->op].arity; j++)
		need(x, w->arg[j], have, made);
}

static Opd
buffer_of(const Plan *p, int v)
{
	const Buffer *b = &p->buf[p->bufof[v]];

	return opd_buf(p->bufof[v], b->dt, b->width);
}

static void
row_results(Exec *x)
{
	const RowKernel *k = x->s->row;
	const Plan *p = x->p;
	const Val *v;
	Opd o;
	int i, r;

	for (i = 0; i < k->nroot; i++) {
		r = k->root[i];
		v = &p->g->v[r];
		if (v->op == OP_SUMR && v->kind == K_SCALAR) {
			o = opd_buf(p->part, F32, p->parts);
			o.off = (size_t)p->partof[r] * (size_t)p->parts * 4;
			x->m->put_sum(x->m->ctx, &o, 1, x->I->x[r], x->I->mag[r]);
			continue;
		}
		o = buffer_of(p, r);
		if (v->op == OP_SUMR)
			x->m->put_sum(x->m->ctx, &o, v->width, x->I->x[r],
			              x->I->mag[r]);
		else
			put_mag(x, &o, p->T * v->width, x->I->x[r], x->I->mag[r]);
	}
}

static void
row(Exec *x)
{
	const RowKernel *k = x->s->row;
	const Graph *g = x->p->g;
	bool *have = calloc((size_t)g->n, 1), *made = calloc((size_t)g->n, 1);
	Opd o;
	int i, v;

	if (!have || !made)
		die("out of memory: the interpreter");
	for (i = 0; i < k->nin; i++) {
		v = k->in[i];
		o = buffer_of(x->p, v);
		have[v] = made[v] = true;
		x->I->x[v] = get_rows(x, &o, x->p->T, g->v[v].width);
	}
	for (i = 0; i < k->nroot; i++)
		need(x, k->root[i], have, made);
	for (i = 0; i < k->nin; i++)
		made[k->in[i]] = false;
	for (i = 0; i < g->n; i++)
		if (made[i])
			interp_eval(x->I, i);
	row_results(x);
	for (i = 0; i < g->n; i++)
		if (have[i]) {
			free(x->I->x[i]);
			free(x->I->mag[i]);
			x->I->x[i] = x->I->mag[i] = NULL;
		}
	free(have);
	free(made);
}

/* value of a scalar expression over sums */
static double
tail_value(Exec *x, int v)
{
	const Val *w = &x->p->g->v[v];
	double a, b, r;
	Opd o;

	if (w->op == OP_NUM)
		return w->num;
	if (w->op == OP_COEF)
		return x->I->in->param[w->attr[0]][w->attr[1]];
	if (x->p->partof[v] >= 0) {
		o = opd_buf(x->p->part, F32, x->p->parts);
		o.off = (size_t)x->p->partof[v] * (size_t)x->p->parts * 4;
		x->m->get_sum(x->m->ctx, &o, 1, &r);
		return r;
	}
	a = tail_value(x, w->arg[0]);
	b = w->arg[1] >= 0 ? tail_value(x, w->arg[1]) : 0;
	return interp_point(w->op, a, b);
}

static void
tail(Exec *x)
{
	const Graph *g = x->p->g;
	const struct Contrib *c;
	double d;
	Opd o;
	long first;
	int p, k;

	for (p = 0; p < g->model->nparam; p++) {
		first = tail_first(g, p);
		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			if (g->v[c->val].kind != K_SCALAR || first + c->idx < x->s->m ||
			    first + c->idx >= x->s->n)
				continue;
			d = tail_value(x, c->val);
			o = opd_arena(A_GRADS, g->model->param[p].off, F32, 1);
			o = moved(o, c->idx);
			put(x, &o, 1, &d, true);
		}
	}
}

/* templates */

static void
gather(Exec *x)
{
	const Val *v = &x->p->g->v[x->s->val];
	const int32_t *idx = interp_index(x->I, v);
	double *rows = interp_array((size_t)(x->p->T * v->width));
	Opd o;
	long t;

	for (t = 0; t < x->p->T; t++) {
		o = moved(x->s->opd[1], idx[t] * (long)v->width);
		get(x, &o, v->width, rows + t * v->width);
	}
	put(x, &x->s->opd[0], x->p->T * v->width, rows, false);
	free(rows);
}

static void
signs(Exec *x)
{
	const Val *v = &x->p->g->v[x->s->val];
	double *rows = get_rows(x, &x->s->opd[1], x->p->T, v->width);

	interp_signs(x->I, v, rows, rows);
	put(x, &x->s->opd[0], x->p->T * v->width, rows, false);
	free(rows);
}

static void
scatter(Exec *x)
{
	const Val *v = &x->p->g->v[x->s->val];
	const int32_t *idx = interp_index(x->I, v);
	double *rows = get_rows(x, &x->s->opd[1], x->p->T, v->width);
	Opd o;
	long t;

	for (t = 0; t < x->p->T; t++) {
		o = moved(x->s->opd[0], idx[t] * (long)v->width);
		put(x, &o, v->width, rows + t * v->width, true);
	}
	free(rows);
}

/* cuda: scatter added all rows already, also those of which the kernel leaves
 * sums of parts to this step */
static void
scatter_finish(Exec *x)
{
	(void)x;
}

/* operands of an attention op as values of the graph: opd[j] is that of v's
 * argument j, or -1 */
static void
attn_values(Exec *x, const Val *v, const int *opd, int n)
{
	int j;

	for (j = 0; j < n; j++)
		if (opd[j] >= 0)
			x->I->x[v->arg[j]] = get_rows(x, &x->s->opd[opd[j]], x->p->T,
			                              x->p->g->v[v->arg[j]].width);
}

static void
attn_done(Exec *x, const Val *v, int n)
{
	int j;

	for (j = 0; j < n; j++) {
		free(x->I->x[v->arg[j]]);
		x->I->x[v->arg[j]] = NULL;
	}
}

static void
attn_fwd(Exec *x)
{
	static const int opd[] = { 2, 3, 4 };
	const Model *m = x->p->model;
	const Val *v = &x->p->g->v[x->s->val];
	long T = x->p->T, HD = (long)m->H * m->D;
	double *o = interp_array((size_t)(T * HD)), *lse = interp_array((size_t)(T * m->H));

	attn_values(x, v, opd, 3);
	interp_attn(x->I, v, o, lse);
	put(x, &x->s->opd[0], T * HD, o, false);
	put(x, &x->s->opd[1], T * m->H, lse, false);
	attn_done(x, v, 3);
	free(o);
	free(lse);
}

/* opd: of the op's arguments.  delta: operand that holds it where there is no
 * o.  to: operand of dq, dk, dv, or -1. */
static void
attn_grads(Exec *x, const int opd[6], int delta_opd, const int to[3])
{
	const Model *m = x->p->model;
	const Val *v = &x->p->g->v[x->s->val];
	long T = x->p->T, w[3] = { (long)m->H * m->D, (long)m->K * m->D, (long)m->K * m->D };
	double *delta = interp_array((size_t)(T * m->H)), *mag = interp_array((size_t)(T * m->H));
	double *d[6];
	Opd o;
	long t;
	int j;

	for (j = 0; j < 6; j++)
		d[j] = interp_array((size_t)(T * w[j % 3]));
	attn_values(x, v, opd, 6);
	if (opd[3] >= 0) {
		interp_attn_delta(x->I, v, delta, mag);
		if (delta_opd >= 0)
			put_mag(x, &x->s->opd[delta_opd], T * m->H, delta, mag);
	} else {
		get(x, &x->s->opd[delta_opd], T * m->H, delta);
		for (t = 0; t < T * m->H; t++)
			mag[t] = fabs(delta[t]);
	}
	interp_attn_grads(x->I, v, delta, mag, d, d + 3);
	attn_done(x, v, 6);
	for (j = 0; j < 3; j++)
		for (t = 0; to[j] >= 0 && t < T; t++) {
			o = moved(x->s->opd[to[j]], t * x->s->opd[to[j]].ld);
			put_mag(x, &o, w[j], d[j] + t * w[j], d[j + 3] + t * w[j]);
		}
	for (j = 0; j < 6; j++)
		free(d[j]);
	free(delta);
	free(mag);
}

static void
attn_bwd(Exec *x)
{
	static const int opd[] = { 6, 7, 8, 12, 14, 13 }, to[] = { 0, 1, 2 };

	attn_grads(x, opd, -1, to);
}

/* cuda: in two steps */
static void
attn_bwd_dq(Exec *x)
{
	static const int opd[] = { 3, 4, 5, 9, 11, 10 }, to[] = { 0, -1, -1 };

	attn_grads(x, opd, 1, to);
}

static void
attn_bwd_dkv(Exec *x)
{
	static const int opd[] = { 4, 5, 6, -1, 11, 10 }, to[] = { -1, 0, 1 };

	attn_grads(x, opd, 12, to);
}

static void
softcap(Exec *x)
{
	long n = x->s->opd[1].i * x->p->model->Vp, i;
	double *l = interp_array((size_t)n), dz;

	get(x, &x->s->opd[0], n, l);
	for (i = 0; i < n; i++)
		l[i] = interp_softcap(x->p->model->spec, l[i], &dz);
	put(x, &x->s->opd[0], n, l, false);
	free(l);
}

static void
finish(Exec *x)
{
	long n = x->s->opd[2].i;
	double *d = interp_array((size_t)n);

	x->m->get_sum(x->m->ctx, &x->s->opd[1], n, d);
	put(x, &x->s->opd[0], n, d, true);
	free(d);
}

/* operands: y, x, W */
static void
gate(Exec *x)
{
	const Val *v = &x->p->g->v[x->s->val];
	long n = x->p->T * v->width;
	double *r = interp_array((size_t)n), *mag = interp_array((size_t)n);

	x->I->x[v->arg[0]] = get_rows(x, &x->s->opd[1], x->p->T, x->p->g->v[v->arg[0]].width);
	interp_gate(x->I, v, r, mag);
	put_mag(x, &x->s->opd[0], n, r, mag);
	attn_done(x, v, 1);
	free(r);
	free(mag);
}

/* operands: dx, partials of dW, dy, x, W */
static void
gate_bwd(Exec *x)
{
	const Graph *g = x->p->g;
	const Val *v = &g->v[x->s->val];
	long n = x->p->T * ((v->attr[0] + 7) / 8 * 8), m = x->p->model->param[mat_param(g, v->arg[1])].n;
	double *dx = interp_array((size_t)n), *dx_mag = interp_array((size_t)n);
	double *dw = interp_array((size_t)m), *dw_mag = interp_array((size_t)m);

	x->I->x[v->arg[2]] = get_rows(x, &x->s->opd[2], x->p->T, g->v[v->arg[2]].width);
	x->I->x[v->arg[0]] = get_rows(x, &x->s->opd[3], x->p->T, g->v[v->arg[0]].width);
	interp_gate_bwd(x->I, v, dx, dw, dx_mag, dw_mag);
	put_mag(x, &x->s->opd[0], n, dx, dx_mag);
	x->m->put_sum(x->m->ctx, &x->s->opd[1], m, dw, dw_mag);
	free(x->I->x[v->arg[2]]);
	x->I->x[v->arg[2]] = NULL;
	attn_done(x, v, 1);
	free(dx);
	free(dx_mag);
	free(dw);
	free(dw_mag);
}

/* operands: s W, W, factors of s */
static void
scaled(Exec *x)
{
	const Val *v = &x->p->g->v[x->s->val];
	size_t n = (size_t)x->p->model->param[mat_param(x->p->g, v->arg[0])].n;
	double *w = interp_array(n);

	get(x, &x->s->opd[1], (long)n, w);
	interp_scaled(w, n, tail_value(x, v->arg[1]), w);
	put(x, &x->s->opd[0], (long)n, w, false);
	free(w);
}

/* operands: gradient of W, sums, gradient of s W, W, factors of s */
static void
scaled_bwd(Exec *x)
{
	const Val *v = &x->p->g->v[x->s->val];
	size_t n = (size_t)x->p->model->param[mat_param(x->p->g, v->arg[1])].n, i;
	double *dw = interp_array(n), *w = interp_array(n), ds, mag = 0;

	get(x, &x->s->opd[2], (long)n, dw);
	get(x, &x->s->opd[3], (long)n, w);
	for (i = 0; i < n; i++)
		mag += fabs(dw[i] * w[i]);
	interp_scaled_bwd(dw, w, n, tail_value(x, v->arg[2]), &ds, dw);
	put(x, &x->s->opd[0], (long)n, dw, true);
	x->m->put_sum(x->m->ctx, &x->s->opd[1], 1, &ds, &mag);
	free(dw);
	free(w);
}

static void
loss_sum(Exec *x)
{
	long n = x->s->opd[2].i, i;
	double *l = interp_array((size_t)n), sum = 0;

	get(x, &x->s->opd[1], n, l);
	for (i = 0; i < n; i++)
		sum += l[i];
	put(x, &x->s->opd[0], 1, &sum, true);
	free(l);
}

void
interp_step(Interp *I, const Plan *p, const Step *s, const Access *m)
{
	static const struct { const char *name; void (*run)(Exec *x); } tmpl[] = {
		{ "gather", gather }, { "scatter", scatter }, { "signs", signs }, { "attn_fwd", attn_fwd },
		{ "attn_bwd", attn_bwd }, { "ce", step_ce }, { "ce_targets", step_ce_targets },
		{ "quantise", step_quantise }, { "transpose8", step_transpose }, { "softcap", softcap },
		{ "finish", finish }, { "loss_sum", loss_sum },
		{ "scaled", scaled }, { "scaled_bwd", scaled_bwd }, { "gate", gate }, { "gate_bwd", gate_bwd },
		{ "attn_fwd_f32", attn_fwd }, { "scatter_finish", scatter_finish },
		{ "attn_bwd_dq", attn_bwd_dq }, { "attn_bwd_dq_f32", attn_bwd_dq },
		{ "attn_bwd_dkv", attn_bwd_dkv }, { "attn_bwd_dkv_f32", attn_bwd_dkv },
	};
	Exec x = { I, p, s, m };
	size_t i;

	switch (s->kind) {
	case STEP_ROW:
		row(&x);
		return;
	case STEP_GEMM:
		gemm(&x);
		return;
	case STEP_TAIL:
		tail(&x);
		return;
	case STEP_ZERO:
	case STEP_COPY:
		break;          /* of the update program alone */
	case STEP_TEMPLATE:
		for (i = 0; i < sizeof tmpl / sizeof *tmpl; i++)
			if (strcmp(tmpl[i].name, s->name) == 0) {
				tmpl[i].run(&x);
				return;
			}
	}
	bug("interp: no way to carry out %s", s->name);
}
