/* The attention templates of target cuda, run by simt with its checks on, against sums in double
 * over the definitions: o lse, delta dq, dk dv.  Every case runs twice, threads and blocks in two
 * orders: equal bits.
 *
 * Closeness.  A result r is a sum of terms.  The kernels round in two places to less than fp32:
 *   - mma takes P (for o and dv) and dS (for dq and dk) as bf16, 8 bits: 2^-8 sum |terms|;
 *   - the store of a bf16 result: 2^-8 |r|.
 * These hold for each element.  Over a tensor roundings are independent, each of standard
 * deviation 0.43 2^-8 of what is rounded (uniform in half a unit of 2^-7 for 1 <= m < 2):
 * |error|_2 <= 2^-9 (sqrt(sum terms^2) + |r|_2).  To both adds
 *   - fp32: sums of some hundred products, and powers whose exponents err by 2^-24 of
 *     sum |q k| scale: 1e-5 of what is summed, where dS sums P |do v| and P |delta|.
 * o and lse of the backward pass are given, rounded.  A store outside of a result's columns shows
 * as a changed pattern.
 *
 *   ONLY=WORDS    cases whose title has them
 *   SHOW=1        error over bound, tensor by tensor */
#define _GNU_SOURCE
#include "../../gen/templates.h"
#include "../../runtime/simt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
	enum { ALL_BF16, O_F32, ALL_F32 } types;        /* O_F32: the others bf16 */
	int D, H, K;
} Shape;

typedef struct {
	int shape;              /* index */
	int nseq, seq, window;
	int doc;                /* length of documents, about; 0: none */
	bool packed;            /* q k v and dq dk dv are slices of one tensor */
} Case;

enum { Fwd, Dq, Dkv, NKernel };
enum { NSeed = 2 };

static const Shape shapes[] = {
	{ ALL_BF16, 16, 2, 1 }, { ALL_BF16, 24, 1, 1 }, { ALL_BF16, 32, 3, 1 }, { ALL_BF16, 64, 2, 2 },
	{ ALL_BF16, 80, 1, 1 }, { ALL_BF16, 96, 2, 2 }, { ALL_BF16, 128, 2, 1 }, { O_F32, 40, 2, 1 },
	{ ALL_F32, 8, 2, 1 }, { ALL_F32, 24, 3, 1 }, { ALL_F32, 64, 2, 2 }, { ALL_F32, 256, 1, 1 },
	{ ALL_BF16, 8, 2, 2 }, { O_F32, 136, 1, 1 },
};
enum { NShape = sizeof shapes / sizeof *shapes };

static const Case cases[] = {
	{ 0, 3, 1, 0, 0, true }, { 0, 2, 7, 0, 0, false }, { 0, 1, 257, 0, 0, true },
	{ 0, 2, 130, 7, 30, true }, { 0, 1, 300, 7, 0, true }, { 0, 1, 300, 100, 60, false },
	{ 1, 1, 61, 1, 0, true }, { 1, 2, 65, 0, 20, false },
	{ 2, 1, 64, 0, 0, true }, { 2, 1, 200, 100, 0, true },
	{ 3, 1, 130, 0, 0, true }, { 3, 2, 65, 7, 0, false }, { 3, 1, 129, 0, 50, true },
	{ 4, 1, 61, 0, 10, true }, { 4, 1, 130, 100, 0, true },
	{ 5, 1, 64, 1, 0, true },
	{ 6, 1, 130, 0, 0, true }, { 6, 2, 65, 7, 30, true }, { 6, 1, 200, 40, 0, false },
	{ 6, 1, 520, 0, 150, true },
	{ 7, 2, 33, 7, 0, true },
	{ 8, 2, 33, 0, 0, true }, { 8, 1, 65, 7, 20, true }, { 8, 3, 1, 0, 0, true },
	{ 9, 2, 61, 7, 0, false }, { 9, 1, 64, 0, 20, true },
	{ 10, 1, 65, 0, 0, true },
	{ 11, 1, 40, 0, 9, true },
	{ 12, 2, 40, 7, 0, true },
	{ 13, 1, 35, 0, 0, false },
};
enum { NCase = sizeof cases / sizeof *cases };

static const char *const types[] = { "bf16", "bf16 o f32", "f32" };
static int failed;

/* tensor cores, or plain FMA? */
static bool
mma(const Shape *s)
{
	return s->types != ALL_F32 && s->D >= 16 && s->D <= 128;
}

/* numbers */

static uint64_t state = 1;

static double
uniform(void)
{
	uint64_t z = state += 0x9E3779B97F4A7C15u;

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
	z = (z ^ z >> 27) * 0x94D049BB133111EBu;
	return (double)(((z ^ z >> 31) >> 11) + 1) * 0x1p-53;
}

static double
normal(void)
{
	return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static void *
alloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	if (!p)
		abort();
	return p;
}

/* T rows of n numbers, ld apart; several may lie in one block of memory */
typedef struct { bool f32; long n, ld; void *p; } Tensor;

static double
get(Tensor x, long t, long c)
{
	union { uint32_t u; float f; } b;

	if (x.f32)
		return ((float *)x.p)[t * x.ld + c];
	b.u = (uint32_t)((uint16_t *)x.p)[t * x.ld + c] << 16;
	return b.f;
}

static void
put(Tensor x, long t, long c, double v)
{
	union { uint32_t u; float f; } b = { .f = (float)v };

	if (x.f32)
		((float *)x.p)[t * x.ld + c] = b.f;
	else
		((uint16_t *)x.p)[t * x.ld + c] = (uint16_t)((b.u + 0x7fffu + (b.u >> 16 & 1)) >> 16);
}

static size_t
element(Tensor x)
{
	return x.f32 ? 4 : 2;
}

static Tensor
slice(Tensor x, long from, long n)
{
	return (Tensor){ x.f32, n, x.ld, (char *)x.p + (size_t)from * element(x) };
}

/* a case and its tensors; if packed, q k v are slices of one, and dq dk dv */
typedef struct {
	const Case *c;
	Shape s;
	bool f32, of32;         /* o is fp32 */
	long T;
	double scale;
	int *docstart;
	int nblock;             /* memory that kernels see */
	struct { const char *name; void *p; size_t nbytes; bool writable; } block[16];
	Tensor q, k, v, dout, oin, lsein, o, lse, delta, dq, dk, dv;
} Problem;

static Tensor
tensor(Problem *p, const char *name, bool f32, long n, long gap, bool writable)
{
	const size_t nbytes = (size_t)(p->T * (n + gap)) * (f32 ? 4 : 2);
	Tensor x = { f32, n, n + gap, aligned_alloc(64, (nbytes + 63) / 64 * 64) };

	if (!x.p)
		abort();
	memset(x.p, 0xff, nbytes);      /* NaN in both types */
	p->block[p->nblock].name = name;
	p->block[p->nblock].p = x.p;
	p->block[p->nblock].writable = writable;
	p->block[p->nblock++].nbytes = nbytes;
	return x;
}

static void
randomize(Problem *p, Tensor x, double std)
{
	long t, c;

	for (t = 0; t < p->T; t++)
		for (c = 0; c < x.n; c++)
			put(x, t, c, std * normal());
}

/* q k v, or their gradients */
static void
three(Problem *p, const char *name, bool writable, Tensor out[3])
{
	const long D = p->s.D, w[3] = { p->s.H * D, p->s.K * D, p->s.K * D };
	Tensor all;

	if (p->c->packed) {
		all = tensor(p, name, p->f32, w[0] + w[1] + w[2], 8, writable);
		out[0] = slice(all, 0, w[0]);
		out[1] = slice(all, w[0], w[1]);
		out[2] = slice(all, w[0] + w[1], w[2]);
		return;
	}
	for (int i = 0; i < 3; i++)
		out[i] = tensor(p, name, p->f32, w[i], i * 8, writable);
}

static void
problem_new(Problem *p, const Case *c)
{
	Tensor x[3];
	long t, start = 0;

	*p = (Problem){ .c = c, .s = shapes[c->shape], .T = (long)c->nseq * c->seq };
	p->f32 = p->s.types == ALL_F32;
	p->of32 = p->s.types != ALL_BF16;
	p->scale = 1 / sqrt(p->s.D);
	p->docstart = alloc((size_t)p->T, sizeof *p->docstart);
	for (t = 0; t < p->T; t++) {
		if (t % c->seq == 0 || (c->doc && uniform() * c->doc < 1))
			start = t;
		p->docstart[t] = (int)start;
	}
	p->block[0].name = "docstart";
	p->block[0].p = p->docstart;
	p->block[0].nbytes = (size_t)p->T * sizeof *p->docstart;
	p->nblock = 1;
	three(p, "q k v", false, x);
	p->q = x[0], p->k = x[1], p->v = x[2];
	for (int i = 0; i < 3; i++)
		randomize(p, x[i], i < 2 ? 2 : 1);
	p->dout = tensor(p, "do", p->f32, p->s.H * p->s.D, 0, false);
	randomize(p, p->dout, 1);
	p->oin = tensor(p, "o", p->of32, p->s.H * p->s.D, 0, false);
	p->lsein = tensor(p, "lse", true, p->s.H, 0, false);
	p->o = tensor(p, "o out", p->of32, p->s.H * p->s.D, 0, true);
	p->lse = tensor(p, "lse out", true, p->s.H, 0, true);
	p->delta = tensor(p, "delta", true, p->s.H, 0, true);
	three(p, "dq dk dv", true, x);
	p->dq = x[0], p->dk = x[1], p->dv = x[2];
}

static void
problem_free(Problem *p)
{
	for (int i = 0; i < p->nblock; i++)
		free(p->block[i].p);
}

/* reference */

/* a result as sums over its terms: value, of |terms|, of terms^2, and of the |products| that the
 * terms themselves were summed from */
typedef struct { double r, abs, square, fine; } Sum;

typedef struct { Sum *o, *lse, *delta, *dq, *dk, *dv; } Reference;

static void
add(Sum *s, double term, double fine)
{
	s->r += term;
	s->abs += fabs(term);
	s->square += term * term;
	s->fine += fabs(fine);
}

static long
first_key(const Problem *p, long t)
{
	long doc = p->docstart[t];

	return p->c->window && t - p->c->window > doc ? t - p->c->window : doc;
}

/* P[j] for the keys of query t of head h; returns lse */
static double
softmax(const Problem *p, long t, long h, long lo, double *P)
{
	const long D = p->s.D, g = h / (p->s.H / p->s.K);
	double top = -INFINITY, l = 0;
	long j, d;

	for (j = lo; j <= t; j++) {
		P[j] = 0;
		for (d = 0; d < D; d++)
			P[j] += p->scale * get(p->q, t, h * D + d) * get(p->k, j, g * D + d);
		top = fmax(top, P[j]);
	}
	for (j = lo; j <= t; j++)
		l += exp(P[j] - top);
	for (j = lo; j <= t; j++)
		P[j] = exp(P[j] - top) / l;
	return top + log(l);
}

static void
query(Problem *p, Reference *r, long t, long h, double *P)
{
	const long D = p->s.D, H = p->s.H, K = p->s.K, g = h / (H / K), lo = first_key(p, t);
	Sum *delta = &r->delta[t * H + h];
	double lse = softmax(p, t, h, lo, P), dP, mag, dS;
	long j, d;

	/* a relative error of l is an absolute one of its logarithm */
	r->lse[t * H + h] = (Sum){ .r = lse, .abs = 1 };
	put(p->lsein, t, h, lse);
	for (d = 0; d < D; d++) {
		Sum *o = &r->o[(t * H + h) * D + d];

		for (j = lo; j <= t; j++)
			add(o, P[j] * get(p->v, j, g * D + d), 0);
		put(p->oin, t, h * D + d, o->r);
		add(delta, get(p->dout, t, h * D + d) * get(p->oin, t, h * D + d), 0);
	}
	for (j = lo; j <= t; j++) {
		dP = mag = 0;
		for (d = 0; d < D; d++) {
			dP += get(p->dout, t, h * D + d) * get(p->v, j, g * D + d);
			mag += fabs(get(p->dout, t, h * D + d) * get(p->v, j, g * D + d));
		}
		dS = p->scale * P[j] * (dP - delta->r);
		mag = p->scale * P[j] * (mag + delta->abs);
		for (d = 0; d < D; d++) {
			const double q = get(p->q, t, h * D + d), k = get(p->k, j, g * D + d);

			add(&r->dq[(t * H + h) * D + d], dS * k, mag * k);
			add(&r->dk[(j * K + g) * D + d], dS * q, mag * q);
			add(&r->dv[(j * K + g) * D + d], P[j] * get(p->dout, t, h * D + d), 0);
		}
	}
}

static void
reference(Problem *p, Reference *r)
{
	const size_t T = (size_t)p->T, D = (size_t)p->s.D;
	const size_t H = (size_t)p->s.H, K = (size_t)p->s.K;
	double *P = alloc(T, sizeof *P);

	r->o = alloc(T * H * D, sizeof(Sum));
	r->dq = alloc(T * H * D, sizeof(Sum));
	r->dk = alloc(T * K * D, sizeof(Sum));
	r->dv = alloc(T * K * D, sizeof(Sum));
	r->lse = alloc(T * H, sizeof(Sum));
	r->delta = alloc(T * H, sizeof(Sum));
	for (long t = 0; t < p->T; t++)
		for (long h = 0; h < p->s.H; h++)
			query(p, r, t, h, P);
	free(P);
}

static void
reference_free(Reference *r)
{
	free(r->o);
	free(r->lse);
	free(r->delta);
	free(r->dq);
	free(r->dk);
	free(r->dv);
}

/* kernels */

static const char *const names[NKernel] = { "attn_fwd", "attn_bwd_dq", "attn_bwd_dkv" };

static const char *
template_text(const char *name)
{
	for (int i = 0; i < ntemplates; i++)
		if (strcmp(templates[i].name, name) == 0)
			return templates[i].text;
	printf("FAIL there is no template %s\n", name);
	exit(1);
}

/* s with every @hole@ replaced; s is freed */
static char *
fill(char *s, const char *hole, const char *value)
{
	char at[20], *p, *out = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&out, &n);

	snprintf(at, sizeof at, "@%s@", hole);
	for (char *from = s;; from = p + strlen(at)) {
		p = strstr(from, at);
		if (!p) {
			fputs(from, f);
			break;
		}
		fwrite(from, 1, (size_t)(p - from), f);
		fputs(value, f);
	}
	fclose(f);
	free(s);
	return out;
}

static char *
kernel_text(const Shape *s, int kernel, char name[40])
{
	static const char *const dt[] = { "DTQ", "DTO", "DTG" };
	const int number[] = { 128, s->H, s->K, s->D };
	static const char *const hole[] = { "THREADS", "H", "K", "D" };
	char tmpl[40], v[20], *text = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&text, &n);
	int i;

	snprintf(tmpl, sizeof tmpl, "cuda/%s%s", names[kernel], mma(s) ? "" : "_f32");
	snprintf(name, 40, "%s_%d_D%d", names[kernel], (int)s->types, s->D);
	for (i = 0; i < ntemplates; i++)
		if (strncmp(templates[i].name, "cuda/prelude_", 13) == 0)
			fputs(templates[i].text, f);
	fputs(template_text(tmpl), f);
	fclose(f);
	for (i = 0; i < 3; i++)
		text = fill(text, dt[i],
		            s->types == ALL_F32 || (i == 1 && s->types == O_F32) ? "f32" : "bf16");
	for (i = 0; i < 4; i++) {
		snprintf(v, sizeof v, "%d", number[i]);
		text = fill(text, hole[i], v);
	}
	return fill(text, "KERNEL", name);
}

/* grid and dynamic shared memory, as the headers of the templates state them */
static long
grid(const Problem *p, int kernel)
{
	const int D = p->s.D, tile = !mma(&p->s) ? 32 : kernel != Dkv || D <= 64 ? 128 : 64;

	return (long)p->c->nseq * (kernel == Dkv ? p->s.K : p->s.H) *
	       ((p->c->seq + tile - 1) / tile);
}

static size_t
smem(const Problem *p, int kernel)
{
	const size_t D = (size_t)p->s.D;

	if (!mma(&p->s))
		return (kernel == Fwd ? 384 : 512) * (D + 4);
	return 768 * ((D + 15) / 16 * 16 + 8);
}

static int
arguments(const Problem *p, int kernel, HcArg *a)
{
	HcArg *from = a;

	if (kernel == Fwd) {
		(a++)->p = p->o.p, (a++)->p = p->lse.p;
	} else if (kernel == Dq) {
		(a++)->p = p->dq.p, (a++)->p = p->delta.p, (a++)->i = p->dq.ld;
	} else {
		(a++)->p = p->dk.p, (a++)->p = p->dv.p, (a++)->i = p->dk.ld, (a++)->i = p->dv.ld;
	}
	(a++)->p = p->q.p, (a++)->p = p->k.p, (a++)->p = p->v.p;
	(a++)->i = p->q.ld, (a++)->i = p->k.ld, (a++)->i = p->v.ld;
	if (kernel == Dq)
		(a++)->p = p->oin.p;
	if (kernel != Fwd)
		(a++)->p = p->dout.p, (a++)->p = p->lsein.p;
	if (kernel == Dkv)
		(a++)->p = p->delta.p;
	(a++)->p = p->docstart;
	(a++)->i = p->c->window, (a++)->f = p->scale, (a++)->i = p->c->seq, (a++)->i = p->T;
	return (int)(a - from);
}

/* all three, results written over with the pattern before */
static bool
run(Problem *p, Simt *s, SimtKernel *const *k, char err[500])
{
	HcArg a[24];
	SimtFault f;
	int i;

	simt_memory_clear(s);
	for (i = 0; i < p->nblock; i++) {
		if (p->block[i].writable)
			memset(p->block[i].p, 0xff, p->block[i].nbytes);
		simt_memory(s, p->block[i].name, p->block[i].p, p->block[i].nbytes,
		            p->block[i].writable);
	}
	for (i = 0; i < NKernel; i++)
		if (!simt_launch(s, k[i], grid(p, i), 128, smem(p, i), arguments(p, i, a), a, &f,
		                 NULL)) {
			snprintf(err, 500, "%s", f.text);
			return false;
		}
	return true;
}

/* comparison */

/* bits: rounding of what mma takes, 2^-8 or 0 */
static bool
close_to(const Problem *p, const char *name, Tensor x, const Sum *ref, double bits,
         char err[500])
{
	const double store = x.f32 ? 0 : 0x1p-8;
	double error = 0, square = 0, r2 = 0, fine2 = 0, most;
	long t, c;

	for (t = 0; t < p->T; t++)
		for (c = 0; c < x.n; c++) {
			const Sum s = ref[t * x.n + c];
			const double fine = 1e-5 * (fabs(s.r) + s.abs + s.fine);
			const double e = fabs(get(x, t, c) - s.r);

			most = bits * s.abs + store * fabs(s.r) + fine + 1e-30;
			if (!(e <= most)) {
				snprintf(err, 500, "%s[%ld,%ld] = %.9g, not %.9g: error %.3g > %.3g",
				         name, t, c, get(x, t, c), s.r, e, most);
				return false;
			}
			error += e * e;
			square += s.square;
			r2 += s.r * s.r;
			fine2 += fine * fine;
		}
	most = (bits * sqrt(square) + store * sqrt(r2)) / 2 + sqrt(fine2) + 1e-30;
	if (getenv("SHOW"))
		printf("   %-6s |error| %.2g of what is allowed\n", name, sqrt(error) / most);
	if (sqrt(error) > most) {
		snprintf(err, 500, "%s: |error| %.3g > %.3g", name, sqrt(error), most);
		return false;
	}
	return true;
}

/* columns beyond those of the results still hold the pattern */
static bool
gaps(const Problem *p, char err[500])
{
	const Tensor last = p->c->packed ? p->dv : p->dk;
	const Tensor x[2] = { last, p->dv };

	for (int i = 0; i < 2; i++)
		for (long t = 0; t < p->T; t++) {
			const size_t from = (size_t)x[i].n * element(x[i]);
			const size_t gap = (size_t)(p->c->packed ? 8 : x[i].ld - x[i].n);
			const size_t to = from + gap * element(x[i]);
			const unsigned char *row =
			        (unsigned char *)x[i].p + (size_t)(t * x[i].ld) * element(x[i]);

			for (size_t b = from; b < to; b++)
				if (row[b] != 0xff) {
					snprintf(err, 500, "row %ld: byte %zu behind dk or dv was written", t,
					         b - from);
					return false;
				}
		}
	return true;
}

static bool
compare(const Problem *p, const Reference *r, char err[500])
{
	const double bits = mma(&p->s) ? 0x1p-8 : 0;

	return close_to(p, "lse", p->lse, r->lse, 0, err) &&
	       close_to(p, "o", p->o, r->o, bits, err) &&
	       close_to(p, "delta", p->delta, r->delta, 0, err) &&
	       close_to(p, "dq", p->dq, r->dq, bits, err) &&
	       close_to(p, "dk", p->dk, r->dk, bits, err) &&
	       close_to(p, "dv", p->dv, r->dv, bits, err) && gaps(p, err);
}

static bool
one(const Case *c, Simt *const s[NSeed], SimtKernel *const *const k[NSeed], char err[500])
{
	Problem p;
	Reference r;
	bool good = true;
	unsigned char *was[16] = { 0 };

	state = (uint64_t)(c - cases) + 1;
	problem_new(&p, c);
	reference(&p, &r);
	for (int seed = 0; seed < NSeed && good; seed++) {
		good = run(&p, s[seed], k[seed], err) && compare(&p, &r, err);
		for (int i = 0; i < p.nblock && good; i++) {
			if (seed == 0) {
				was[i] = alloc(p.block[i].nbytes, 1);
				memcpy(was[i], p.block[i].p, p.block[i].nbytes);
			} else if (memcmp(was[i], p.block[i].p, p.block[i].nbytes) != 0) {
				snprintf(err, 500, "%s: other bits with another order of threads",
				         p.block[i].name);
				good = false;
			}
		}
	}
	for (int i = 0; i < p.nblock; i++)
		free(was[i]);
	reference_free(&r);
	problem_free(&p);
	return good;
}

static void
title(const Case *c, char out[200])
{
	const Shape *s = &shapes[c->shape];

	snprintf(out, 200, "attention %s D %d H %d K %d seq %d x %d window %d docs %d%s", types[s->types], s->D, s->H,
	         s->K, c->nseq, c->seq, c->window, c->doc, c->packed ? " packed" : "");
}

static bool
wanted(const Case *c)
{
	const char *only = getenv("ONLY");
	char t[200];

	title(c, t);
	return !only || strstr(t, only);
}

/* the kernels of wanted cases, for each order of threads */
static void
kernels(Simt *s[NSeed], SimtKernel *k[NSeed][NShape][NKernel])
{
	static char name[NShape * NKernel][40], *text[NShape * NKernel];
	SimtSource src[NShape * NKernel];
	SimtKernel *out[NShape * NKernel];
	int shape[NShape * NKernel], n = 0;

	for (int i = 0; i < NShape; i++) {
		bool want = false;

		for (int c = 0; c < NCase; c++)
			want |= cases[c].shape == i && wanted(&cases[c]);
		for (int j = 0; j < NKernel && want; j++, n++) {
			shape[n] = i;
			text[n] = kernel_text(&shapes[i], j, name[n]);
			src[n] = (SimtSource){ name[n], name[n], text[n] };
		}
	}
	for (int seed = 0; seed < NSeed; seed++) {
		s[seed] = simt_new(&(SimtOpts){ .seed = (unsigned long)seed, .check = true });
		simt_kernels(s[seed], n, src, out);
		for (int i = 0; i < n; i++)
			k[seed][shape[i]][i % NKernel] = out[i];
	}
}

int
main(void)
{
	static SimtKernel *k[NSeed][NShape][NKernel];
	const char *missing = simt_missing();
	Simt *s[NSeed];

	if (missing) {
		printf("skip attention of target cuda: %s\n", missing);
		return 0;
	}
	kernels(s, k);
	for (int i = 0; i < NCase; i++) {
		SimtKernel *const *kk[NSeed];
		char err[500] = "", t[200];

		if (!wanted(&cases[i]))
			continue;
		for (int seed = 0; seed < NSeed; seed++)
			kk[seed] = k[seed][cases[i].shape];
		title(&cases[i], t);
		if (one(&cases[i], s, kk, err)) {
			printf("ok %s\n", t);
		} else {
			printf("FAIL %s %s\n", t, err);
			failed++;
		}
		fflush(stdout);
	}
	for (int i = 0; i < NSeed; i++)
		simt_free(s[i]);
	return failed != 0;
}
