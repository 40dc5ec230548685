/* Runs a product whose plan gemm.c made: tiles and splits are items of the pool. */
#include "gemm.h"

#include <math.h>
#include <string.h>

enum { ReduceRows = 16 };       /* rows of C per item when partials are added */

typedef struct {
	Gemm *g;
	Plan *p;
	const char *a, *b, *d;          /* d: the addend, or C where it is added to */
	char *c;
	float *partial;
	float factor;                   /* of the product */
} Call;

/* table: of the 256 FP8 numbers; NULL: src is bf16 */
typedef struct { void *dst; const void *src; long rows, cols, ld; const float *table; bool half; } Convert;

/* nearest, ties to even; a NaN stays one */
static uint16_t
bf16(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof u);
	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float
from_bf16(uint16_t h)
{
	uint32_t u = (uint32_t)h << 16;
	float x;

	memcpy(&x, &u, sizeof x);
	return x;
}

/* y += beta d, d of this type */
static void
add_row(float *restrict y, const char *d, Dtype dt, float beta, long n)
{
	const uint16_t *half = (const uint16_t *)(const void *)d;
	const float *whole = (const float *)(const void *)d;
	long i;

	if (dt == DT_BF16)
		for (i = 0; i < n; i++)
			y[i] += beta * from_bf16(half[i]);
	else
		for (i = 0; i < n; i++)
			y[i] += beta * whole[i];
}

static void
round_row(uint16_t *restrict c, const float *restrict y, long n)
{
	long i;

	for (i = 0; i < n; i++)
		c[i] = bf16(y[i]);
}

/* C = alpha tile + beta D, rounded once; at: elements from the start of C and D */
static void
finish_tile(const Call *c, float *tile, long rows, long cols, long at_c, long at_d)
{
	const GemmShape *s = &c->p->s;
	size_t esize = dtype_size(s->ct);
	long i, j;
	float *y;
	char *dst;

	for (i = 0; i < rows; i++) {
		y = tile + i * c->p->tn;
		dst = c->c + (size_t)(at_c + i * s->ldc) * esize;
		for (j = 0; j < cols; j++)
			y[j] *= c->factor;
		if (s->add)
			add_row(y, c->d + (size_t)(at_d + i * s->ldd) * esize, s->ct, s->beta, cols);
		else if (s->acc)
			add_row(y, dst, s->ct, 1, cols);
		if (s->ct == DT_BF16)
			round_row((uint16_t *)(void *)dst, y, cols);
		else
			memcpy(dst, y, (size_t)cols * sizeof *y);
	}
}

static void
run_tile(const Call *c, long which, long im, long in, long split, long chunk)
{
	const Plan *p = c->p;
	const GemmShape *s = &p->s;
	long m = im * p->tm, n = in * p->tn, k = chunk * p->tk, slot;
	size_t esize = dtype_size(s->at);
	long a = which * s->sa + (s->ta ? k * s->lda + m : m * s->lda + k);
	long b = which * s->sb + (s->tb ? n * s->ldb + k : k * s->ldb + n);
	char *dst = c->c + (size_t)(which * s->sc + m * s->ldc + n) * dtype_size(s->ct);
	char *own = c->g->own + (size_t)pool_self() * c->g->nown;
	dnnl_status_t e;

	if (p->held) {
		dst = own;
	} else if (gemm_to_partial(p, split)) {
		slot = split - !p->round;
		dst = (char *)c->partial +
		      (size_t)slot * gemm_floats(s->m, s->n) +
		      (size_t)(m * s->n + n) * sizeof(float);
	}
	e = gemm_execute(c->g, &p->prim[gemm_prim_of(p, im, in, split, chunk)],
	                 (void *[NArg]){
	                         (char *)(uintptr_t)c->a + (size_t)a * esize,
	                         (char *)(uintptr_t)c->b + (size_t)b * esize, dst,
	                         own + p->tile});
	if (e != dnnl_success)
		atomic_store(&c->g->failed, (int)e);
}

static void
gemm_item(void *arg, long item)
{
	const Call *c = arg;
	const Plan *p = c->p;
	const GemmShape *s = &p->s;
	long in = item % p->nn, im = item / p->nn % p->nm;
	long split = item / (p->nn * p->nm) % p->nsplit, chunk;
	long which = item / (p->nn * p->nm * p->nsplit), at = im * p->tm, to = in * p->tn;

	gemm_one_thread();
	for (chunk = split * p->nk / p->nsplit;
	     chunk < (split + 1) * p->nk / p->nsplit; chunk++)
		run_tile(c, which, im, in, split, chunk);
	if (p->held)
		finish_tile(c, (float *)(void *)(c->g->own + (size_t)pool_self() * c->g->nown),
		            gemm_edge(s->m, p->tm, im == p->nm - 1),
		            gemm_edge(s->n, p->tn, in == p->nn - 1),
		            which * s->sc + at * s->ldc + to, which * s->sc + at * s->ldd + to);
}

/* c[i] += partials of row i, in their order */
static void
reduce_f32(float *restrict c, const float *restrict partial, long n)
{
	long i;

	for (i = 0; i < n; i++)
		c[i] += partial[i];
}

static void
reduce_item(void *arg, long item)
{
	const Call *c = arg;
	const GemmShape *s = &c->p->s;
	long row = item * ReduceRows, end = row + ReduceRows;
	size_t stride = gemm_floats(s->m, s->n) / sizeof(float);
	const float *src;
	float *dst;
	int k;

	for (; row < end && row < s->m; row++) {
		src = c->partial + row * s->n;
		dst = (float *)(void *)c->c + row * s->ldc;
		if (c->p->round)
			dst = c->partial + row * s->n;
		for (k = c->p->round; k < c->p->npartial; k++)
			reduce_f32(dst, src + (size_t)k * stride, s->n);
		if (c->p->round)
			round_row((uint16_t *)(void *)c->c + row * s->ldc, dst, s->n);
	}
}

static void
run_tiles(Gemm *g, Plan *p, const char *a, const char *b, char *c, const char *d, char *scratch,
          float factor)
{
	Call call = {g, p, a, b, d, c, (float *)(void *)scratch, factor};

	pool_run(g->pool, gemm_item, &call, p->nm * p->nn * p->nsplit * p->s.batch);
	if (p->npartial)
		pool_run(g->pool, reduce_item, &call, (p->s.m + ReduceRows - 1) / ReduceRows);
}

/* widening */

/* the numbers of an FP8 format: exponents of nexp bits; see templates/cpu/fp8.c */
static void
fp8_numbers(float table[256], int nexp)
{
	int nman = 7 - nexp, least = 2 - (1 << (nexp - 1)), i, e, m;
	float x;

	for (i = 0; i < 256; i++) {
		e = i >> nman & ((1 << nexp) - 1);
		m = i & ((1 << nman) - 1);
		x = e ? ldexpf((float)(m | 1 << nman), least + e - 1 - nman) : ldexpf((float)m, least - nman);
		if (nexp == 5 && e == 31)
			x = m ? NAN : INFINITY;
		if (nexp == 4 && (i & 127) == 127)
			x = NAN;
		table[i] = i & 128 ? -x : x;
	}
}

/* exact: bf16 holds all of both formats */
static void
widen_fp8(const Convert *v, long row)
{
	const uint8_t *src = (const uint8_t *)v->src + row * v->ld;
	uint16_t *half = (uint16_t *)v->dst + row * v->cols;
	float *dst = (float *)v->dst + row * v->cols;
	long i;

	if (v->half)
		for (i = 0; i < v->cols; i++)
			half[i] = bf16(v->table[src[i]]);
	else
		for (i = 0; i < v->cols; i++)
			dst[i] = v->table[src[i]];
}

static void
widen_item(void *arg, long row)
{
	const Convert *v = arg;
	const uint16_t *src = (const uint16_t *)v->src + row * v->ld;
	float *dst = (float *)v->dst + row * v->cols;
	long i;

	if (v->table) {
		widen_fp8(v, row);
		return;
	}
	for (i = 0; i < v->cols; i++)
		dst[i] = from_bf16(src[i]);
}

static void
run_widened(Gemm *g, Plan *p, const char *a, const char *b, char *c, const char *d, float factor)
{
	const GemmShape *s = &p->s;
	Plan *w = gemm_plan(g, p->wide);
	char *wa = g->shared, *wb = wa + gemm_floats(s->m, s->k);
	char *partial = wb + gemm_floats(s->k, s->n);
	bool half = p->wide->at == DT_BF16;
	float ta[256], tb[256];
	Convert va = {wa, a, s->ta ? s->k : s->m, s->ta ? s->m : s->k, s->lda,
	              dtype_fp8(s->at) ? ta : NULL, half};
	Convert vb = {wb, b, s->tb ? s->n : s->k, s->tb ? s->k : s->n, s->ldb,
	              dtype_fp8(s->bt) ? tb : NULL, half};
	size_t step = (size_t)s->sc * dtype_size(s->ct);
	long i;

	fp8_numbers(ta, s->at == DT_E4M3 ? 4 : 5);
	fp8_numbers(tb, s->bt == DT_E4M3 ? 4 : 5);

	for (i = 0; i < s->batch; i++) {
		va.src = a + (size_t)(i * s->sa) * 2;
		vb.src = b + (size_t)(i * s->sb) * 2;
		pool_run(g->pool, widen_item, &va, va.rows);
		pool_run(g->pool, widen_item, &vb, vb.rows);
		run_tiles(g, w, wa, wb, c + (size_t)i * step, s->add ? d + (size_t)i * step : NULL,
		          partial, factor);
	}
}

void
gemm_run(Gemm *g, const GemmShape *s, const void *a, const void *b, void *c, const void *d,
         float scale)
{
	Plan *p = gemm_plan(g, s);

	if (p->wide)
		run_widened(g, p, a, b, c, d, s->alpha * scale);
	else
		run_tiles(g, p, a, b, c, d, g->shared, s->alpha * scale);
	gemm_check(g, s);
}
