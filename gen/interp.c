/* Executes a Graph in double: the living definition of the ops.
 *
 * interp_graph computes every value once, whole arrays at a time, plainly; the
 * pieces are shared with interp_plan.c, which runs a plan's steps instead. */
#include "interp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double *
interp_array(size_t n)
{
	double *p = calloc(n ? n : 1, sizeof *p);

	if (!p)
		die("out of memory: %zu bytes for the interpreter", n * sizeof *p);
	return p;
}

static size_t
val_count(const Val *v, long T)
{
	switch (v->kind) {
	case K_VEC:
	case K_ROWVAL:
		return (size_t)T * (size_t)v->width;
	case K_PVEC:
		return (size_t)v->width;
	case K_TUPLE:
	case K_MAT:
		return 0;
	default:
		return 1;
	}
}

/* element (row, c) of operand v as a value of `width` channels sees it */
static double
at(const Val *v, const double *x, long row, int c, int width)
{
	switch (v->kind) {
	case K_VEC:
		return x[row * v->width + c];
	case K_ROWVAL:
		return x[row * v->width + c / (width / v->width)];
	case K_PVEC:
		return x[c];
	default:
		return x[0];
	}
}

double
interp_point(Op op, double x, double y)
{
	(void)y;
	switch ((int)op) {
#define POINT(id, name, arity, expr, flops, dx, dy) case OP_##id: return expr;
#define OTHER(id, name, arity, class, expr)
#include "ops.def"
#undef POINT
#undef OTHER
	}
	bug("interp: %s is not pointwise", op_info[op].name);
}

static void
eval_point(Interp *I, const Val *v, double *r)
{
	const Graph *g = I->g;
	const Val *a = &g->v[v->arg[0]], *b = v->arg[1] < 0 ? NULL : &g->v[v->arg[1]];
	const double *x = I->x[v->arg[0]], *y = b ? I->x[v->arg[1]] : NULL;
	long rows = v->kind == K_VEC || v->kind == K_ROWVAL ? I->in->T : 1, t;
	int c;

	for (t = 0; t < rows; t++)
		for (c = 0; c < v->width; c++)
			*r++ = interp_point(v->op, at(a, x, t, c, v->width),
			               b ? at(b, y, t, c, v->width) : 0);
}

static void
eval_reduce(Interp *I, const Val *v, double *r)
{
	const Graph *g = I->g;
	const Val *a = &g->v[v->arg[0]], *b = v->arg[1] < 0 ? NULL : &g->v[v->arg[1]];
	const double *x = I->x[v->arg[0]], *y = b ? I->x[v->arg[1]] : NULL;
	long t, T = I->in->T;
	int c, W = a->width, n = v->op == OP_SUMR ? W : v->width;

	for (t = 0; t < T; t++)
		for (c = 0; c < W; c++)
			r[(v->op == OP_SUMR ? 0 : t * n) + c / (W / n)] +=
			        at(a, x, t, c, W) * (b ? at(b, y, t, c, W) : 1);
}

/* the row that row t of a shift by k takes: -1 at an edge */
static long
shift_from(const Interp *I, const Val *v, long t, long k)
{
	long seq = I->g->model->seq, u = t - k;

	if (u < 0 || u >= I->in->T || u / seq != t / seq)
		return -1;
	if (v->attr[2] && I->in->docstart[u] != I->in->docstart[t])
		return -1;
	return u;
}

static void
eval_shift(Interp *I, const Val *v, double *r)
{
	const double *x = I->x[v->arg[0]];
	long t, u, k = v->attr[0];
	int c, W = v->width, D = SHIFT_D(v->attr[3]);

	for (t = 0; t < I->in->T; t++)
		for (c = 0; c < W; c++) {
			if (D && c % D < SHIFT_FIRST(v->attr[3])) {
				r[t * W + c] = x[t * W + c];
				continue;
			}
			u = shift_from(I, v, t, v->op == OP_SHIFT ? k : -k);
			if (u >= 0)
				r[t * W + c] = x[u * W + c];
			if (v->attr[1] != EDGE_KEEP)
				continue;
			if (v->op == OP_SHIFT && u < 0)
				r[t * W + c] = x[t * W + c];
			if (v->op == OP_UNSHIFT && shift_from(I, v, t, k) < 0)
				r[t * W + c] += x[t * W + c];
		}
}

static void
eval_rotate(Interp *I, const Val *v, double *r)
{
	const double *x = I->x[v->arg[0]];
	const double *cs = I->x[v->arg[1]], *sn = I->x[v->arg[2]];
	int D = v->attr[0], R = v->attr[1], d, j, i0, i1, W = I->g->v[v->arg[1]].width;
	bool paired = I->g->v[v->arg[1]].attr[1] != 0;
	long at, h, heads = I->in->T * v->width / D, t;
	double c, s;

	for (h = 0; h < heads; h++, x += D, r += D) {
		t = h / (v->width / D);
		for (d = R; d < D; d++)
			r[d] = x[d];
		for (j = 0; j < R / 2; j++) {
			i0 = v->attr[2] ? 2 * j : j;
			i1 = v->attr[2] ? 2 * j + 1 : j + R / 2;
			at = t * W + (paired ? h % 2 * (R / 2) : 0) + j;
			c = cs[at];
			s = v->attr[3] * sn[at];
			r[i0] = c * x[i0] + s * x[i1];
			r[i1] = c * x[i1] - s * x[i0];
		}
	}
}

static void
eval_index(Interp *I, const Val *v, double *r)
{
	const Val *a = &I->g->v[v->arg[0]];
	const double *x = I->x[v->arg[0]];
	long t, rows = v->kind == K_PVEC ? 1 : I->in->T;
	int c, w = a->width, lo = v->attr[0];

	if (v->op == OP_SHIFT || v->op == OP_UNSHIFT) {
		eval_shift(I, v, r);
		return;
	}
	if (v->op == OP_ROTATE) {
		eval_rotate(I, v, r);
		return;
	}
	for (t = 0; t < rows; t++)
		for (c = 0; c < v->width; c++, r++) {
			if (v->op == OP_SLICE)
				*r = x[t * w + c + lo];
			else if (v->op == OP_PAD)
				*r = c >= lo && c < lo + w ? x[t * w + c - lo] : 0;
			else
				*r = at(a, x, t, c, v->width);
		}
}

/* entry of a position and column j of a rotary table */
static double
rotary_entry(const Model *m, long position, int j, bool sine)
{
	double theta = (double)((float)position * m->freq[j]);
	float x = (float)(sine ? sin(theta) : cos(theta));

	return m->spec->rotary_bf16 ? round_bf16(x) : x;
}

static void
eval_leaf(Interp *I, const Val *v, double *r)
{
	const Model *m = I->g->model;
	long t;
	int j, n = v->width;

	switch ((int)v->op) {
	case OP_NUM:
		r[0] = v->num;
		break;
	case OP_COEF:
		r[0] = I->in->param[v->attr[0]][v->attr[1]];
		break;
	case OP_PVEC:
		memcpy(r, I->in->param[v->attr[0]] + (ptrdiff_t)v->attr[1] * n,
		       (size_t)n * sizeof *r);
		break;
	case OP_TABLE:
		for (t = 0; t < I->in->T; t++)
			for (j = 0; j < n; j++)
				r[t * n + j] = v->attr[1] ?
				        rotary_entry(m, 2 * (t % m->seq) + 2 * j / n, j % (n / 2), v->attr[0] != 0) :
				        rotary_entry(m, t % m->seq, j, v->attr[0] != 0);
		break;
	}
}

/* number of elements of a gradient matrix */
static size_t
mat_count(const Graph *g, const Val *v)
{
	const Val *a = &g->v[v->arg[0]];

	if (v->op == OP_SCATTER)
		return (size_t)v->attr[1] * (size_t)v->width;
	if (v->op == OP_GEMM_DW)
		return (size_t)a->width * (size_t)g->v[v->arg[1]].width;
	if (v->op == OP_SCALED)
		return (size_t)g->model->param[mat_param(g, (int)(v - g->v))].n;
	if (v->op == OP_OUT && a->op == OP_GATE_BWD)
		return (size_t)g->model->param[mat_param(g, a->arg[1])].n;
	if (v->op == OP_OUT && a->op == OP_SCALED_BWD)
		return (size_t)g->model->param[mat_param(g, a->arg[1])].n;
	return (size_t)g->model->Vp * (size_t)g->model->C;      /* head */
}

/* results of tuples live in x of their OUT values; those without one are
 * computed into a spare */
static double *
tuple_result(Interp *I, int tuple, int which, size_t n, double **spare)
{
	const Graph *g = I->g;
	int i;

	for (i = tuple + 1; i < g->n; i++)
		if (g->v[i].op == OP_OUT && g->v[i].arg[0] == tuple &&
		    g->v[i].attr[0] == which) {
			if (!I->x[i])
				I->x[i] = interp_array(n);
			return I->x[i];
		}
	return *spare = interp_array(n);
}

/* The gradient of a factor of a matrix sums products that may cancel, as those
 * of all coefficients do. */
static void
scaled_magnitude(Interp *I, int tuple, const double *dw, const double *w, size_t n)
{
	double mag = 0;
	size_t j;
	int i;

	for (j = 0; j < n; j++)
		mag += fabs(dw[j] * w[j]);
	for (i = tuple + 1; i < I->g->n; i++)
		if (I->g->v[i].op == OP_OUT && I->g->v[i].arg[0] == tuple &&
		    I->g->v[i].attr[0] == 0) {
			I->mag[i] = interp_array(1);
			*I->mag[i] = mag;
		}
}

static void
eval_tuple(Interp *I, int i)
{
	const Graph *g = I->g;
	const Model *m = g->model;
	const Val *v = &g->v[i];
	size_t T = (size_t)I->in->T, HD = (size_t)(m->H * m->D);
	size_t KD = (size_t)(m->K * m->D), W = (size_t)m->Vp * (size_t)m->C;
	double *s[6] = {0}, *a, *b, *c;
	size_t n;
	int j;

	if (v->op == OP_ATTN) {
		a = tuple_result(I, i, 0, T * HD, &s[0]);
		b = tuple_result(I, i, 1, T * (size_t)m->H, &s[1]);
		interp_attn(I, v, a, b);
	} else if (v->op == OP_ATTN_BWD) {
		a = tuple_result(I, i, 0, T * HD, &s[0]);
		b = tuple_result(I, i, 1, T * KD, &s[1]);
		c = tuple_result(I, i, 2, T * KD, &s[2]);
		s[3] = interp_array(T * HD);
		s[4] = interp_array(T * KD);
		s[5] = interp_array(T * KD);
		interp_attn_bwd(I, v, (double *[]){ a, b, c }, s + 3);
	} else if (v->op == OP_GATE_BWD) {
		n = (size_t)m->param[mat_param(g, v->arg[1])].n;
		a = tuple_result(I, i, 0, T * (size_t)((v->attr[0] + 7) / 8 * 8), &s[0]);
		b = tuple_result(I, i, 1, n, &s[1]);
		interp_gate_bwd(I, v, a, b, NULL, NULL);
	} else if (v->op == OP_SCALED_BWD) {
		n = (size_t)m->param[mat_param(g, v->arg[1])].n;
		a = tuple_result(I, i, 0, 1, &s[0]);
		b = tuple_result(I, i, 1, n, &s[1]);
		interp_scaled_bwd(I->x[v->arg[0]], I->in->param[mat_param(g, v->arg[1])], n,
		                  I->x[v->arg[2]][0], a, b);
		scaled_magnitude(I, i, I->x[v->arg[0]], I->in->param[mat_param(g, v->arg[1])], n);
	} else {
		a = tuple_result(I, i, 0, 1, &s[0]);
		b = tuple_result(I, i, 1, T * (size_t)m->C, &s[1]);
		c = tuple_result(I, i, 2, W, &s[2]);
		interp_head(I, v, a, b, c);
	}
	for (j = 0; j < 6; j++)
		free(s[j]);
}

/* A result that a graph takes twice (before simplify merges them): the later
 * OUT is a copy of the first. */
static void
eval_out(Interp *I, int i)
{
	const Val *v = &I->g->v[i], *w;
	size_t n = v->kind == K_MAT ? mat_count(I->g, v) : val_count(v, I->in->T);
	int j;

	for (j = v->arg[0] + 1; !I->x[i] && j < i; j++) {
		w = &I->g->v[j];
		if (w->op != OP_OUT || w->arg[0] != v->arg[0] ||
		    w->attr[0] != v->attr[0] || !I->x[j])
			continue;
		I->x[i] = interp_array(n);
		memcpy(I->x[i], I->x[j], n * sizeof *I->x[i]);
	}
}

static void
eval_heavy(Interp *I, int i, double *r)
{
	const Graph *g = I->g;
	const Val *v = &g->v[i];
	const double *x = I->x[v->arg[0]], *y = NULL, *w = NULL;
	long T = I->in->T, n = v->width, k = g->v[v->arg[0]].width;
	double dz;
	bool by_row;
	size_t j;

	if (v->arg[1] >= 0 && g->v[v->arg[1]].op == OP_MAT)
		w = I->in->param[g->v[v->arg[1]].attr[0]];
	else if (v->arg[1] >= 0 && g->v[v->arg[1]].op == OP_SCALED)
		w = I->x[v->arg[1]];
	switch ((int)v->op) {
	case OP_GATHER:
	case OP_SCATTER:
		interp_gather(I, v, r);
		break;
	case OP_SIGNS:
		interp_signs(I, v, x, r);
		break;
	case OP_GEMM:
	case OP_GEMM_DX:
	case OP_LOGITS:
		by_row = (v->op == OP_GEMM_DX) == (v->attr[0] != 0);    /* W is [n, k] */
		interp_matmul(r, x, w, T, n, k, k, 1, by_row ? k : 1, by_row ? 1 : n);
		for (j = 0; v->op == OP_LOGITS && j < (size_t)(T * n); j++)
			r[j] = interp_softcap(g->model->spec, r[j], &dz);
		break;
	case OP_GATE:
		interp_gate(I, v, r, NULL);
		break;
	case OP_SCALED:
		interp_scaled(I->in->param[mat_param(g, i)], mat_count(g, v), I->x[v->arg[1]][0], r);
		break;
	case OP_GEMM_DW:        /* dW[k, n] = sum_t x[t, k] y[t, n] */
		y = I->x[v->arg[1]];
		n = g->v[v->arg[1]].width;
		interp_matmul(r, x, y, k, n, T, 1, k, 1, n);
		break;
	}
}

/* Magnitudes: |x| of a leaf, sums of magnitudes where terms are added,
 * products where they are multiplied. */
static double
mag_at(const Interp *I, int v, long row, int c, int width)
{
	const Val *x = &I->g->v[v];

	if (I->mag[v])
		return at(x, I->mag[v], row, c, width);
	return fabs(at(x, I->x[v], row, c, width));
}

/* The gradient of a parameter vector sums products of a rowval, which may have
 * cancelled, and a vector. */
static void
eval_vector_magnitude(Interp *I, int i)
{
	const Val *v = &I->g->v[i], *x = &I->g->v[v->arg[0]];
	double *r = I->mag[i] = interp_array((size_t)v->width);
	long t;
	int c;

	for (t = 0; t < I->in->T; t++)
		for (c = 0; c < v->width; c++)
			r[c] += x->op != OP_MUL ? mag_at(I, v->arg[0], t, c, v->width) :
			        mag_at(I, x->arg[0], t, c, v->width) *
			        mag_at(I, x->arg[1], t, c, v->width);
}

/* a slice or pad of magnitudes */
static void
eval_index_magnitude(Interp *I, int i)
{
	const Val *v = &I->g->v[i], *a = &I->g->v[v->arg[0]];
	double *r = I->mag[i] = interp_array(val_count(v, I->in->T));
	int c, from, w = a->width, sign = v->op == OP_SLICE ? 1 : -1;
	long t;

	for (t = 0; t < I->in->T; t++)
		for (c = 0; c < v->width; c++, r++) {
			from = v->op == OP_BCAST ? c : c + sign * v->attr[0];
			if (v->op == OP_BCAST)
				*r = mag_at(I, v->arg[0], t, c, v->width);
			else if (from >= 0 && from < w)
				*r = mag_at(I, v->arg[0], t, from, w);
		}
}

static void
eval_magnitude(Interp *I, int i)
{
	const Val *v = &I->g->v[i], *a = &I->g->v[v->arg[0]];
	long rows = v->kind == K_SCALAR ? 1 : I->in->T, t;
	double *r = I->mag[i] = interp_array(val_count(v, I->in->T)), x, y;
	int c, W = a->width;

	if (op_info[v->op].class == CL_REDUCE) {
		for (t = 0; t < I->in->T; t++)
			for (c = 0; c < W; c++)
				r[(v->op == OP_SUMR ? 0 : t * v->width) +
				  c / (W / v->width)] +=
				        mag_at(I, v->arg[0], t, c, W) *
				        (v->arg[1] < 0 ? 1 : mag_at(I, v->arg[1], t, c, W));
		return;
	}
	for (t = 0; t < rows; t++)
		for (c = 0; c < v->width; c++, r++) {
			x = mag_at(I, v->arg[0], t, c, v->width);
			y = v->arg[1] < 0 ? 0 : mag_at(I, v->arg[1], t, c, v->width);
			*r = v->op == OP_MUL ? x * y : v->op == OP_ADD || v->op == OP_SUB ?
			     x + y : v->op == OP_NEG ? x :
			     fabs(I->x[i][t * v->width + c]);
		}
}

static void
eval_magnitudes(Interp *I, int i)
{
	const Val *v = &I->g->v[i];
	OpClass class = op_info[v->op].class;

	if (v->arg[0] < 0)
		return;
	if (v->op == OP_SUMR && v->kind == K_PVEC)
		eval_vector_magnitude(I, i);
	else if ((v->kind == K_ROWVAL || v->kind == K_SCALAR ||
	          (v->kind == K_VEC && I->vec_mag)) &&
	         (class == CL_POINT || class == CL_REDUCE))
		eval_magnitude(I, i);
	else if (v->kind == K_VEC && I->vec_mag &&
	         (v->op == OP_SLICE || v->op == OP_PAD || v->op == OP_BCAST))
		eval_index_magnitude(I, i);
}

void
interp_eval(Interp *I, int i)
{
	const Graph *g = I->g;
	const Val *v = &g->v[i];
	size_t n = val_count(v, I->in->T);

	if (v->op == OP_MAT)
		return;
	if (v->op == OP_OUT) {
		eval_out(I, i);
		return;
	}
	if (v->kind == K_TUPLE) {
		eval_tuple(I, i);
		return;
	}
	if (v->kind == K_MAT)
		n = mat_count(g, v);
	if (!I->x[i])
		I->x[i] = interp_array(n);
	switch (op_info[v->op].class) {
	case CL_POINT:
		eval_point(I, v, I->x[i]);
		break;
	case CL_REDUCE:
		eval_reduce(I, v, I->x[i]);
		break;
	case CL_INDEX:
		eval_index(I, v, I->x[i]);
		break;
	case CL_LEAF:
		eval_leaf(I, v, I->x[i]);
		break;
	case CL_HEAVY:
		eval_heavy(I, i, I->x[i]);
		break;
	}
	eval_magnitudes(I, i);
}

Interp *
interp_new(const Graph *g, const Inputs *in)
{
	Interp *I = calloc(1, sizeof *I);
	int i;

	if (!I)
		die("out of memory: the interpreter");
	I->g = g;
	I->in = in;
	I->x = calloc((size_t)g->n, sizeof *I->x);
	I->grad = calloc((size_t)g->model->nparam, sizeof *I->grad);
	I->mag = calloc((size_t)g->n, sizeof *I->mag);
	I->grad_mag = calloc((size_t)g->model->nparam, sizeof *I->grad_mag);
	if (!I->x || !I->grad || !I->mag || !I->grad_mag)
		die("out of memory: the interpreter");
	for (i = 0; i < g->model->nparam; i++) {
		I->grad[i] = interp_array((size_t)g->model->param[i].n);
		I->grad_mag[i] = interp_array((size_t)g->model->param[i].n);
	}
	return I;
}

static void
add_gradients(Interp *I)
{
	const Graph *g = I->g;
	const struct Contrib *c;
	const Val *v;
	double *d;
	size_t n, j;
	int p, k;

	for (p = 0; p < g->model->nparam; p++)
		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			v = &g->v[c->val];
			d = I->grad[p];
			n = 1;
			if (c->idx >= 0)
				d += (ptrdiff_t)c->idx * v->width;
			if (v->kind == K_PVEC)
				n = (size_t)v->width;
			if (v->kind == K_MAT)
				n = (size_t)g->model->param[p].n;
			for (j = 0; j < n; j++)
				d[j] += I->x[c->val][j];
			for (j = 0; I->mag[c->val] && j < n; j++)
				I->grad_mag[p][(d - I->grad[p]) + (ptrdiff_t)j] +=
				        I->mag[c->val][j];
		}
}

/* last value that reads each value; results live for ever */
static int *
last_uses(const Graph *g, const bool *want)
{
	int *last = calloc((size_t)g->n, sizeof *last), i, j, a;

	if (!last)
		die("out of memory: the interpreter");
	for (i = 0; i < g->n; i++) {
		last[i] = !want || want[i] || g->v[i].op == OP_OUT ? g->n : i;
		for (j = 0; j < 6 && g->v[i].arg[j] >= 0; j++)
			if (last[g->v[i].arg[j]] < i)
				last[g->v[i].arg[j]] = i;
		/* eval_vector_magnitude looks one value further */
		a = g->v[i].arg[0];
		for (j = 0; g->v[i].op == OP_SUMR && j < 2 && g->v[a].arg[j] >= 0; j++)
			if (last[g->v[a].arg[j]] < i)
				last[g->v[a].arg[j]] = i;
	}
	for (i = 0; i < g->ncontrib; i++)
		last[g->contrib[i].val] = g->n;
	if (g->loss >= 0)
		last[g->loss] = g->n;
	if (g->logits >= 0)
		last[g->logits] = g->n;
	return last;
}

static void
drop(Interp *I, int v, const int *last, int now)
{
	if (last[v] != now || !I->x[v])
		return;
	free(I->x[v]);
	free(I->mag[v]);
	I->x[v] = I->mag[v] = NULL;
}

Interp *
interp_graph(const Graph *g, const Inputs *in, const bool *want)
{
	Interp *I = interp_new(g, in);
	int *last = last_uses(g, want), i, j, a;

	for (i = 0; i < g->n; i++) {
		interp_eval(I, i);
		for (j = 0; j < 6 && g->v[i].arg[j] >= 0; j++)
			drop(I, g->v[i].arg[j], last, i);
		a = g->v[i].arg[0];
		for (j = 0; g->v[i].op == OP_SUMR && j < 2 && g->v[a].arg[j] >= 0; j++)
			drop(I, g->v[a].arg[j], last, i);
	}
	free(last);
	add_gradients(I);
	return I;
}

void
interp_free(Interp *I)
{
	int i;

	for (i = 0; i < I->g->n; i++) {
		free(I->x[i]);
		free(I->mag[i]);
	}
	for (i = 0; i < I->g->model->nparam; i++) {
		free(I->grad[i]);
		free(I->grad_mag[i]);
	}
	free(I->x);
	free(I->grad);
	free(I->mag);
	free(I->grad_mag);
	free(I);
}

double
interp_loss(const Interp *I)
{
	return I->g->loss < 0 ? 0 : I->x[I->g->loss][0];
}
