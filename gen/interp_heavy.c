/* The heavy ops in double, as plain as they are defined: matrix products,
 * attention, gather and scatter. */
#include "interp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { Tile = 4 };
typedef double Row __attribute__((vector_size(Tile * sizeof(double)), aligned(sizeof(double))));

/* t[k, Tile] of x as [rows, k]; rows that it has not are zero */
static void
copy_tile(double *t, const double *x, long rows, long k, long xi, long xk)
{
	long i, l;

	for (l = 0; l < k; l++)
		for (i = 0; i < Tile; i++)
			t[l * Tile + i] = i < rows ? x[i * xi + l * xk] : 0;
}

/* s[i] = sum over k of a[k, i] b[k], in the order of k; without contraction, so
 * that every processor says the same */
#ifdef __x86_64__
__attribute__((target_clones("avx2", "default")))
#endif
static void
multiply_tile(Row s[Tile], const double *a, const Row *b, long k)
{
	Row r[Tile] = { { 0 } };
	long l;
	int i;

	for (l = 0; l < k; l++)
		for (i = 0; i < Tile; i++)
			r[i] += a[l * Tile + i] * b[l];
	memcpy(s, r, sizeof r);
}

/* c[i, j] += sum over k of a[i, k] b[j, k], a as [m, k], b as [n, k]; strides
 * let either be transposed.  By tiles: products are most of what verify does. */
void
interp_matmul(double *c, const double *a, const double *b, long m, long n, long k,
       long ai, long ak, long bj, long bk)
{
	long tiles = (m + Tile - 1) / Tile, i, j, u, w;
	double *ta = interp_array((size_t)(tiles * Tile * k)), *tb = interp_array((size_t)(Tile * k));
	Row s[Tile];

	for (i = 0; i < m; i += Tile)
		copy_tile(ta + i * k, a + i * ai, m - i, k, ai, ak);
	for (j = 0; j < n; j += Tile) {
		copy_tile(tb, b + j * bj, n - j, k, bj, bk);
		for (i = 0; i < m; i += Tile) {
			multiply_tile(s, ta + i * k, (const Row *)tb, k);
			for (u = i; u < m && u < i + Tile; u++)
				for (w = j; w < n && w < j + Tile; w++)
					c[u * n + w] += s[u - i][w - j];
		}
	}
	free(ta);
	free(tb);
}

void
interp_gate(const Interp *I, const Val *v, double *r, double *mag)
{
	const Graph *g = I->g;
	const Param *p = &g->model->param[mat_param(g, v->arg[1])];
	const double *x = I->x[v->arg[0]], *w = I->in->param[p - g->model->param] + v->attr[1];
	int C = g->v[v->arg[0]].width, n = v->attr[0], W = p->dim[p->ndim - 1], h, c;
	long t;

	for (t = 0; t < I->in->T; t++)
		for (h = 0; h < v->width; h++)
			for (c = 0; c < n; c++) {
				r[t * v->width + h] += x[t * C + c] * w[h * W + c];
				if (mag)
					mag[t * v->width + h] += fabs(x[t * C + c] * w[h * W + c]);
			}
}

void
interp_gate_bwd(const Interp *I, const Val *v, double *dx, double *dw, double *dx_mag,
                double *dw_mag)
{
	const Graph *g = I->g;
	const Param *p = &g->model->param[mat_param(g, v->arg[1])];
	const double *x = I->x[v->arg[0]], *w = I->in->param[p - g->model->param] + v->attr[1];
	const double *d = I->x[v->arg[2]];
	int C = g->v[v->arg[0]].width, n = v->attr[0], N = (n + 7) / 8 * 8, W = p->dim[p->ndim - 1], h, c;
	long t;
	double a, b;

	dw += v->attr[1];
	if (dw_mag)
		dw_mag += v->attr[1];
	for (t = 0; t < I->in->T; t++)
		for (h = 0; h < v->width; h++)
			for (c = 0; c < n; c++) {
				a = d[t * v->width + h] * w[h * W + c];
				b = d[t * v->width + h] * x[t * C + c];
				dx[t * N + c] += a;
				dw[h * W + c] += b;
				if (dx_mag)
					dx_mag[t * N + c] += fabs(a);
				if (dw_mag)
					dw_mag[h * W + c] += fabs(b);
			}
}

void
interp_scaled(const double *w, size_t n, double s, double *r)
{
	size_t i;

	for (i = 0; i < n; i++)
		r[i] = s * w[i];
}

void
interp_scaled_bwd(const double *dw, const double *w, size_t n, double s, double *ds, double *r)
{
	size_t i;

	for (*ds = 0, i = 0; i < n; i++) {
		*ds += dw[i] * w[i];
		r[i] = s * dw[i];
	}
}

/* rows and heads of an attention op: paired heads are half as many, over twice the
 * rows of the same memory */
typedef struct { long T; int H, K; } Shape;

static Shape
shape_of(const Interp *I, const Val *v)
{
	const Model *m = I->g->model;
	int two = v->attr[1] ? 2 : 1;

	return (Shape){ I->in->T * two, m->H / two, m->K / two };
}

static long
first_key(const Interp *I, const Val *v, long t)
{
	long first = v->attr[1] ? 2 * I->in->docstart[t / 2] : I->in->docstart[t];

	if (v->attr[0] && t - v->attr[0] > first)
		first = t - v->attr[0];
	return first;
}

/* probabilities of query t of head h over its keys; returns logsumexp */
static double
softmax_row(const Interp *I, const Val *v, long t, int h, double *p, long first)
{
	const Model *m = I->g->model;
	const Shape n = shape_of(I, v);
	const double *q = I->x[v->arg[0]] + (t * n.H + h) * m->D;
	const double *k;
	double max = -INFINITY, sum = 0, s;
	long j;
	int d;

	for (j = first; j <= t; j++) {
		k = I->x[v->arg[1]] + (j * n.K + h / (n.H / n.K)) * m->D;
		for (s = 0, d = 0; d < m->D; d++)
			s += q[d] * k[d];
		p[j - first] = s * v->num;
		max = fmax(max, p[j - first]);
	}
	for (j = 0; j <= t - first; j++)
		sum += p[j] = exp(p[j] - max);
	for (j = 0; j <= t - first; j++)
		p[j] /= sum;
	return max + log(sum);
}

void
interp_attn(Interp *I, const Val *v, double *o, double *lse)
{
	const Model *m = I->g->model;
	const Shape n = shape_of(I, v);
	double *p = interp_array((size_t)n.T);
	const double *vv;
	long t, j, first;
	int h, d;

	for (t = 0; t < n.T; t++)
		for (h = 0; h < n.H; h++, o += m->D) {
			first = first_key(I, v, t);
			*lse++ = softmax_row(I, v, t, h, p, first);
			for (j = first; j <= t; j++) {
				vv = I->x[v->arg[2]] +
				     (j * n.K + h / (n.H / n.K)) * m->D;
				for (d = 0; d < m->D; d++)
					o[d] += p[j - first] * vv[d];
			}
		}
	free(p);
}

/* dS of a query and a key is P*(dP - delta), which is nothing but rounding where
 * a query sees one key: the magnitude is P*(|dP| + |delta|) */
typedef struct { double ds, mag; } Score;

static Score
score_gradient(const Val *v, double p, const double *dob, const double *vv, double delta,
               double delta_mag, int D)
{
	double dp = 0, dp_mag = 0;
	int d;

	for (d = 0; d < D; d++) {
		dp += dob[d] * vv[d];
		dp_mag += fabs(dob[d] * vv[d]);
	}
	return (Score){ p * (dp - delta) * v->num, p * (dp_mag + delta_mag) * fabs(v->num) };
}

/* delta[t, h] = do.o, and the magnitude of its terms */
void
interp_attn_delta(Interp *I, const Val *v, double *delta, double *mag)
{
	const Model *m = I->g->model;
	const double *o = I->x[v->arg[3]], *dob = I->x[v->arg[5]];
	long i;
	int d;

	for (i = 0; i < I->in->T * m->H; i++, o += m->D, dob += m->D)
		for (delta[i] = mag[i] = 0, d = 0; d < m->D; d++) {
			delta[i] += dob[d] * o[d];
			mag[i] += fabs(dob[d] * o[d]);
		}
}

void
interp_attn_grads(Interp *I, const Val *v, const double *delta, const double *delta_mag,
                  double *g[3], double *mag[3])
{
	const Shape n = shape_of(I, v);
	double *p = interp_array((size_t)n.T), w;
	const double *dob, *q, *k;
	long t, j, first, kv, i, th;
	int h, d, D = I->g->model->D;
	Score s;

	for (t = 0; t < n.T; t++)
		for (h = 0; h < n.H; h++) {
			th = t * n.H + h;
			i = th * D;
			q = I->x[v->arg[0]] + i;
			dob = I->x[v->arg[5]] + i;
			first = first_key(I, v, t);
			softmax_row(I, v, t, h, p, first);
			for (j = first; j <= t; j++) {
				kv = (j * n.K + h / (n.H / n.K)) * D;
				k = I->x[v->arg[1]] + kv;
				w = p[j - first];
				s = score_gradient(v, w, dob, I->x[v->arg[2]] + kv, delta[th],
				                   delta_mag[th], D);
				for (d = 0; d < D; d++) {
					g[0][i + d] += s.ds * k[d];
					g[1][kv + d] += s.ds * q[d];
					g[2][kv + d] += w * dob[d];
					mag[0][i + d] += s.mag * fabs(k[d]);
					mag[1][kv + d] += s.mag * fabs(q[d]);
					mag[2][kv + d] += w * fabs(dob[d]);
				}
			}
		}
	free(p);
}

void
interp_attn_bwd(Interp *I, const Val *v, double *g[3], double *mag[3])
{
	size_t n = (size_t)(I->in->T * I->g->model->H);
	double *delta = interp_array(n), *delta_mag = interp_array(n);

	interp_attn_delta(I, v, delta, delta_mag);
	interp_attn_grads(I, v, delta, delta_mag, g, mag);
	free(delta);
	free(delta_mag);
}

const int32_t *
interp_index(const Interp *I, const Val *v)
{
	int param = v->op == OP_GATHER ? I->g->v[v->arg[0]].attr[0] : v->attr[2];

	if (v->attr[0] == IDX_TOKENS)
		return I->in->tokens;
	return I->in->hash[table_source(I->g->model, param)];
}

void
interp_gather(Interp *I, const Val *v, double *r)
{
	const int32_t *idx = interp_index(I, v);
	const double *w;
	long t, c, C = v->width;

	if (v->op == OP_GATHER) {
		w = I->in->param[I->g->v[v->arg[0]].attr[0]];
		for (t = 0; t < I->in->T; t++)
			memcpy(r + t * C, w + idx[t] * C, (size_t)C * sizeof *r);
		return;
	}
	for (t = 0; t < I->in->T; t++)
		for (c = 0; c < C; c++)
			r[idx[t] * C + c] += I->x[v->arg[0]][t * C + c];
}

/* row p of the table of signs, column c (docs/spec.md, sources) */
static int
bigram_sign(uint32_t p, uint32_t c, uint32_t width)
{
	uint32_t h = p * width + c;

	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return (h ^ h >> 16) % 2 ? -1 : 1;
}

void
interp_signs(const Interp *I, const Val *v, const double *x, double *r)
{
	const int32_t *s = I->in->tokens;
	int seq = I->g->model->seq, c, C = v->width;
	uint32_t p;
	long t;

	for (t = 0; t < I->in->T; t++) {
		p = t % seq ? (uint32_t)(s[t] ^ s[t - 1]) % (uint32_t)v->attr[0] : 0;
		for (c = 0; c < C; c++)
			r[t * C + c] = x[t * C + c] * bigram_sign(p, (uint32_t)c, (uint32_t)C);
	}
}
