/* The head in double: loss, gradients, and the steps that it is carried out in.
 *
 * An FP8 head rounds where docs/spec.md says so: y and the matrix to e4m3, logits to bf16,
 * the gradient of the logits to e5m2. */
#include "interp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Nearest number of a format, ties to even; beyond the largest finite number that. */
double
round_fp8(Dt dt, double x)
{
	int nman = dt == E4M3 ? 3 : 2, least = dt == E4M3 ? -6 : -14, e;
	double most = dt == E4M3 ? 448 : 57344, r;

	if (isnan(x))
		return x;
	if (fabs(x) >= most)
		return copysign(most, x);
	frexp(x, &e);
	e = (e - 1 < least ? least : e - 1) - nman;     /* 2^e: distance of the numbers around x */
	r = ldexp(nearbyint(ldexp(x, -e)), e);
	return fabs(r) > most ? copysign(most, x) : r;
}

/* what the kernel rounds to e4m3, in fp32 as it does */
static double
quantised(double x, bool param, struct Fp8Scale s)
{
	return (float)(param ? x : round_bf16(x)) * s.by;
}

/* softcap and its derivative */
double
interp_softcap(const Spec *s, double l, double *dz)
{
	double z;

	switch (s->softcap) {
	case CAP_TANH:
		z = tanh(l / s->cap);
		*dz = 1 - z * z;
		return s->cap * z;
	case CAP_SIGMOID:
		z = 1 / (1 + exp(-(l + s->cap_shift) / s->cap_temperature));
		*dz = s->cap * z * (1 - z) / s->cap_temperature;
		return s->cap * z;
	default:
		*dz = 1;
		return l;
	}
}

Targets
interp_targets(const Interp *I, long t)
{
	const Model *m = I->g->model;
	int left = m->seq - (int)(t % m->seq), n = I->g->mode == GRAPH_TRAIN ? m->ntarget : 1, k;
	Targets r = { .n = n < left ? n : left };

	for (k = 0; k < r.n; k++)
		r.w[k] = I->g->mode == GRAPH_TRAIN && I->in->weight ? I->in->weight[k] : k == 0;
	return r;
}

double
interp_head_row(const Interp *I, double *l, const Targets *t, double scale)
{
	const Model *m = I->g->model;
	double *dz = interp_array((size_t)m->Vp), max = -INFINITY, sum = 0, loss = 0, W = 0;
	int c, k;

	for (c = 0; c < m->V; c++) {
		l[c] = interp_softcap(m->spec, l[c], &dz[c]);
		max = fmax(max, l[c]);
	}
	for (c = 0; c < m->V; c++)
		sum += exp(l[c] - max);
	for (k = 0; k < t->n; k++) {
		loss += t->w[k] * (max + log(sum) - l[t->of[k]]);
		W += t->w[k];
	}
	for (c = 0; c < m->Vp; c++)
		l[c] = c < m->V ? W * exp(l[c] - max) / sum : 0;
	for (k = 0; k < t->n; k++)
		l[t->of[k]] -= t->w[k];
	for (c = 0; c < m->V; c++)
		l[c] *= scale * dz[c];
	free(dz);
	return loss;
}

/* logits, and what their products make of gradients: FP8 or not */
typedef struct { double *x, *w, logits, dx, dw; } HeadForm;

static HeadForm
head_form(const Interp *I, const Val *v)
{
	const Model *m = I->g->model;
	size_t nx = (size_t)I->in->T * (size_t)m->C, nw = (size_t)m->Vp * (size_t)m->C, i;
	const double *x = I->x[v->arg[0]], *w = I->in->param[I->g->v[v->arg[1]].attr[0]];
	HeadForm h = { interp_array(nx), interp_array(nw), 1, 1, 1 };
	Fp8 q = fp8_scales(m->spec);

	memcpy(h.x, x, nx * sizeof *x);
	memcpy(h.w, w, nw * sizeof *w);
	if (!head_is_fp8(I->g))
		return h;
	for (i = 0; i < nx; i++)
		h.x[i] = round_fp8(E4M3, quantised(x[i], false, q.x));
	for (i = 0; i < nw; i++)
		h.w[i] = round_fp8(E4M3, quantised(w[i], true, q.w));
	h.logits = q.x.scale * q.w.scale;
	h.dx = q.grad.scale * q.w.scale * I->in->scale;
	h.dw = q.grad.scale * q.x.scale * I->in->scale;
	return h;
}

static void
times(double *x, size_t n, double s)
{
	size_t i;

	for (i = 0; i < n; i++)
		x[i] *= s;
}

/* logits of row t become its gradients; returns its loss */
static double
one_row(Interp *I, double *l, long t)
{
	const Model *m = I->g->model;
	bool fp8 = head_is_fp8(I->g);
	Targets want = interp_targets(I, t);
	double loss;
	int k;

	for (k = 0; k < want.n; k++)
		want.of[k] = I->in->targets[t + k];
	for (k = 0; fp8 && k < m->Vp; k++)
		l[k] = round_bf16(l[k]);
	loss = interp_head_row(I, l, &want, fp8 ? (double)fp8_scales(m->spec).grad.by : I->in->scale);
	for (k = 0; fp8 && k < m->Vp; k++)
		l[k] = round_fp8(E5M2, l[k]);
	return loss;
}

void
interp_head(Interp *I, const Val *v, double *loss, double *dx, double *dw)
{
	const Model *m = I->g->model;
	long T = I->in->T, t;
	int C = m->C;
	HeadForm h = head_form(I, v);
	double *l = interp_array((size_t)T * (size_t)m->Vp);

	interp_matmul(l, h.x, h.w, T, m->Vp, C, C, 1, C, 1);
	times(l, (size_t)T * (size_t)m->Vp, h.logits);
	for (t = 0; t < T; t++)
		*loss += one_row(I, l + t * m->Vp, t);
	interp_matmul(dx, l, h.w, T, C, m->Vp, m->Vp, 1, 1, C);
	times(dx, (size_t)T * (size_t)C, h.dx);
	interp_matmul(dw, l, h.x, m->Vp, C, T, 1, m->Vp, 1, C);
	times(dw, (size_t)m->Vp * (size_t)C, h.dw);
	free(l);
	free(h.x);
	free(h.w);
}

/* steps */

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

static Opd
moved(Opd o, long elements)
{
	o.off += (size_t)(elements * dt_size(o.dt));
	return o;
}

static double *
step_rows(Exec *x, const Opd *o, long rows, long width)
{
	double *a = interp_array((size_t)(rows * width));

	get(x, o, rows * width, a);
	return a;
}

/* the targets of a row of the step, of[] and w[] from memory */
static Targets
row_targets(Exec *x, long row, bool several)
{
	const Opd *o = x->s->opd;
	Targets t = { .n = 1, .w = { 1 } };
	Opd at;
	double token;
	int k;

	if (several)
		t = interp_targets(x->I, o[7].i + row);
	for (k = 0; k < t.n; k++) {
		at = moved(o[3], row + k);
		get(x, &at, 1, &token);
		t.of[k] = (int)token;
		at = moved(o[6], k);
		if (several)
			get(x, &at, 1, &t.w[k]);
	}
	return t;
}

/* One row of the head.  The loss is logsumexp, at least about ln V, minus a
 * logit; a target's gradient is its probability minus its weight: both may cancel. */
static void
ce_row(Exec *x, double *l, double *mag, long row, bool several)
{
	const Model *m = x->p->model;
	const Opd *o = x->s->opd;
	Targets t = row_targets(x, row, several);
	bool fp8 = dt_fp8(o[1].dt);
	double loss, size, dz, W = 0;
	double scale = fp8 ? (double)fp8_scales(m->spec).grad.by : x->I->in->scale;
	Opd at = moved(o[0], row);
	int k, c;

	memset(mag, 0, (size_t)m->Vp * sizeof *mag);
	for (k = 0; k < t.n; k++)
		W += t.w[k];
	for (k = 0; k < t.n; k++) {
		interp_softcap(m->spec, l[t.of[k]], &dz);
		mag[t.of[k]] = 2 * W * fabs(scale * dz);
	}
	loss = interp_head_row(x->I, l, &t, scale);
	size = fabs(loss) + W * log(m->V);
	put_mag(x, &at, 1, &loss, &size);
	if (!several && !o[6].i)
		return;
	for (c = 0; c < m->Vp; c++)
		mag[c] += fabs(l[c]);
	at = moved(o[1], row * m->Vp);
	put_mag(x, &at, m->Vp, l, mag);
}

static void
ce_rows(Exec *x, bool several)
{
	long Vp = x->p->model->Vp, n = x->s->opd[5].i, r;
	double *l = step_rows(x, &x->s->opd[2], n, Vp), *mag = interp_array((size_t)Vp);

	for (r = 0; x->s->opd[2].dt == BF16 && r < n * Vp; r++)
		l[r] = round_bf16(l[r]);
	for (r = 0; r < n; r++)
		ce_row(x, l + r * Vp, mag, r, several);
	free(l);
	free(mag);
}

void
step_ce(Exec *x)
{
	ce_rows(x, false);
}

void
step_ce_targets(Exec *x)
{
	ce_rows(x, true);
}

/* a, [rows, width], and its transpose to rows of the operand */
static void
put_turned(Exec *x, const Opd *o, long rows, long width, const double *a)
{
	double *column = interp_array((size_t)rows);
	Opd at;
	long r, c;

	for (c = 0; c < width; c++) {
		for (r = 0; r < rows; r++)
			column[r] = a[r * width + c];
		at = moved(*o, c * o->ld);
		put_mag(x, &at, rows, column, NULL);
	}
	free(column);
}

/* operands: e4m3, the same transposed, x, rows */
void
step_quantise(Exec *x)
{
	const Opd *o = x->s->opd;
	bool param = o[2].kind == OPD_ARENA;
	Fp8 q = fp8_scales(x->p->model->spec);
	long rows = o[3].i, width = o[0].ld, i;
	double *a = step_rows(x, &o[2], rows, width);

	for (i = 0; i < rows * width; i++)
		a[i] = quantised(a[i], param, param ? q.w : q.x);
	put_mag(x, &o[0], rows * width, a, NULL);
	put_turned(x, &o[1], rows, width, a);
	free(a);
}

/* operands: the transpose, x, rows */
void
step_transpose(Exec *x)
{
	const Opd *o = x->s->opd;
	double *a = step_rows(x, &o[1], o[2].i, o[1].ld);

	put_turned(x, &o[0], o[2].i, o[1].ld, a);
	free(a);
}
