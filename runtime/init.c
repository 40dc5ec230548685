/* Initial parameters, copies for products and rotary tables: docs/spec.md, Parameters
 * and Rotary, are the definition.
 *
 * Every element is a function of seed, parameter name and index, so blocks can
 * be filled by any thread. */
#define _POSIX_C_SOURCE 200809L
#include "hcrun.h"

#include <math.h>
#include <string.h>

enum { InitBlock = 1 << 14 };   /* elements per item; picked arbitrarily */

static const double two_pi = 6.283185307179586476925286766559;

typedef struct { const RunParam *param; float *dst; uint64_t h; bool round; } Draw;
/* upper: not rounded, the upper half of 32 bits */
typedef struct { void *dst; const float *src; long n; bool bf16, upper; } Round;
typedef struct { const RunTable *table; float *dst; } Table;

static uint64_t
word(uint64_t h, uint64_t j)
{
	uint64_t z = h + j * 0x9E3779B97F4A7C15u;

	z ^= z >> 30;
	z *= 0xBF58476D1CE4E5B9u;
	z ^= z >> 27;
	z *= 0x94D049BB133111EBu;
	z ^= z >> 31;
	return z;
}

static uint64_t
param_hash(long long seed, const char *name)
{
	Buf b = {0};
	uint8_t d[32];
	uint64_t h = 0;
	int i;

	buf_printf(&b, "%lld/%s", seed, name);
	sha256(b.s, b.len, d);
	buf_free(&b);
	for (i = 7; i >= 0; i--)
		h = h << 8 | d[i];
	return h;
}

static double
normal(uint64_t h, uint64_t i)
{
	double u1 = ((double)(word(h, 2 * i) >> 11) + 1) * 0x1p-53;
	double u2 = (double)(word(h, 2 * i + 1) >> 11) * 0x1p-53;

	return sqrt(-2 * log(u1)) * cos(two_pi * u2);
}

static double
uniform(uint64_t h, uint64_t i)
{
	return sqrt(3) * (2 * (((double)(word(h, i) >> 11) + 0.5) * 0x1p-53) - 1);
}

static long
blocks(long n)
{
	return (n + InitBlock - 1) / InitBlock;
}

static long
block_end(long item, long n)
{
	return (item + 1) * InitBlock < n ? (item + 1) * InitBlock : n;
}

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

float
round_to_bf16(float x)
{
	uint32_t u = (uint32_t)bf16(x) << 16;

	memcpy(&x, &u, sizeof x);
	return x;
}

static void
draw_item(void *arg, long item)
{
	const Draw *a = arg;
	const RunParam *p = a->param;
	long i, end = block_end(item, p->n);
	double x;

	for (i = item * InitBlock; i < end; i++) {
		x = p->init == PI_UNIFORM ? uniform(a->h, (uint64_t)i) : normal(a->h, (uint64_t)i);
		a->dst[i] = (float)(p->std * x);
		if (a->round)
			a->dst[i] = round_to_bf16(a->dst[i]);
	}
}

static void
init_param(Run *r, const RunParam *to, long long seed)
{
	const RunParam *p = to->init == PI_LIKE ? run_param(r, to->like) : to;
	float *dst = run_at(r, (Place){AR_PARAMS, to->off});
	Draw a = {p, dst, param_hash(seed, p->name), to->holds != HOLDS_F32};
	long i;

	if ((p->init == PI_NORMAL || p->init == PI_UNIFORM) && p->std != 0) {
		pool_run(r->pool, draw_item, &a, blocks(p->n));
		return;
	}
	for (i = 0; i < p->n; i++) {
		dst[i] = p->init == PI_VALUES ? (float)p->values[i] : (float)p->std;
		if (a.round)
			dst[i] = round_to_bf16(dst[i]);
	}
}

void
run_init_params(Run *r, long long seed)
{
	int i;

	for (i = 0; i < r->nparam; i++)
		init_param(r, &r->param[i], seed);
	run_put(r, AR_PARAMS, 0, r->arena_size[AR_PARAMS]);
	run_sync_weights(r);
}

static void
round_item(void *arg, long item)
{
	const Round *a = arg;
	long i, end = block_end(item, a->n);
	uint32_t u;

	for (i = item * InitBlock; i < end; i++) {
		memcpy(&u, &a->src[i], sizeof u);
		if (a->upper)
			u &= 0xffff0000;
		if (!a->bf16)
			memcpy((float *)a->dst + i, &u, sizeof u);
		else
			((uint16_t *)a->dst)[i] = a->upper ? (uint16_t)(u >> 16) : bf16(a->src[i]);
	}
}

void
run_sync_weights(Run *r)
{
	const RunParam *p;
	Round a;
	int i;

	if (r->arena_size[AR_WEIGHTS] == 0)
		return;
	run_host(r, AR_WEIGHTS);
	for (i = 0; i < r->nparam; i++) {
		p = &r->param[i];
		if (p->weights.arena < 0)
			continue;
		a.dst = run_at(r, p->weights);
		a.src = run_at(r, (Place){AR_PARAMS, p->off});
		a.n = p->n;
		a.bf16 = r->gemm_bf16;
		a.upper = p->holds == HOLDS_UPPER;
		pool_run(r->pool, round_item, &a, blocks(p->n));
	}
	run_put(r, AR_WEIGHTS, 0, r->arena_size[AR_WEIGHTS]);
	run_forget(r, AR_WEIGHTS);
}

static void
table_item(void *arg, long pos)
{
	const Table *a = arg;
	const RunTable *t = a->table;
	float *x = a->dst + pos * t->columns;
	double theta;
	int j;

	for (j = 0; j < t->columns; j++) {
		theta = (double)((float)pos * t->frequency[j]);
		x[j] = (float)(t->sine ? sin(theta) : cos(theta));
		if (t->bf16)
			x[j] = round_to_bf16(x[j]);
	}
}

void
run_fill_tables(Run *r)
{
	Table a;
	int i, last = -1;

	for (i = 0; i < r->ntable; i++)
		if (r->table[i].stage <= r->on && r->table[i].stage > last)
			last = r->table[i].stage;
	if (last == r->filled)
		return;
	r->filled = last;
	for (i = 0; i < r->ntable; i++) {
		if (r->table[i].stage != last)
			continue;
		a.table = &r->table[i];
		a.dst = run_at(r, a.table->at);
		pool_run(r->pool, table_item, &a, a.table->positions);
	}
	run_put(r, AR_TABLES, 0, r->arena_size[AR_TABLES]);
}
