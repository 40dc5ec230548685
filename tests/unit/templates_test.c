/* Every CPU template against naive loops in double, on random inputs. templates_test.sh fills the holes, writes
   cases.def (one row per set of holes) and compiles this file with it.

   Each case runs its launch twice, items ascending and shuffled, into two sets of buffers: equal bits, and close to the
   reference. Closeness:
     fp32   |x - ref|_2 <= tol (|ref|_2 + |terms|_2). tol is 1e-5: a sum of n rounded products errs by about
            sqrt(n) 2^-24 of the norm of its terms, n <= 4096 here: 4e-6. `terms` is for results that
            cancel (dq, dk): the norm of what is summed.
     bf16   each |x - ref| <= 2^-8 |ref| + the fp32 allowance per element: one rounding to 8 significant bits.
   Attention adds 2^-23 max|q| max|k| scale to tol: the exponents are rounded to 24 bits twice (the dot product and lse),
   and an absolute error of an exponent is a relative error of its power. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "prelude.c"

typedef void Kernel(const HcArg *a, long item);

enum { DT_f32, DT_bf16 };

typedef struct { const char *name; Kernel *fwd, *bwd; int dtq, dto, dtg, H, K, D; } Attn;
typedef struct { const char *name; Kernel *ce, *softcap; int dtg; long V, VP; int cap; double capv, shift, temp; } Ce;
typedef struct { const char *name; Kernel *gather, *scatter, *signs; int dt; long C; } Rows;

#define ATTN(n, ...) Kernel attn_fwd_##n, attn_bwd_##n;
#define CE(n, ...)   Kernel ce_##n, softcap_##n;
#define ROWS(n, ...) Kernel gather_##n, scatter_##n, signs_##n;
#include "cases.def"
#undef ATTN
#undef CE
#undef ROWS
Kernel adamw_w0, adamw_w1, sqsum, clip, finish, loss_sum, scaled_f32, scaled_bf16, scaled_bwd, gate_one, gate_bwd_one, gate_six, gate_bwd_six,
       gate_part, gate_bwd_part;

#define ATTN(n, q, o, g, ...) { #n, attn_fwd_##n, attn_bwd_##n, DT_##q, DT_##o, DT_##g, __VA_ARGS__ },
#define CE(n, ...)
#define ROWS(n, ...)
static const Attn attns[] = {
#include "cases.def"
	{ 0 }
};
#undef ATTN
#undef CE
#define ATTN(n, ...)
#define CE(n, g, ...) { #n, ce_##n, softcap_##n, DT_##g, __VA_ARGS__ },
static const Ce ces[] = {
#include "cases.def"
	{ 0 }
};
#undef CE
#undef ROWS
#define CE(n, ...)
#define ROWS(n, d, ...) { #n, gather_##n, scatter_##n, signs_##n, DT_##d, __VA_ARGS__ },
static const Rows rowss[] = {
#include "cases.def"
	{ 0 }
};

/* a tensor as the kernel sees it */
typedef struct {
	int dt;
	long n;
	void *p;
} Buf;

static int failed;
static unsigned long state = 1;

static unsigned long
rnd(void)
{
	unsigned long z = state += 0x9E3779B97F4A7C15ul;

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ul;
	z = (z ^ z >> 27) * 0x94D049BB133111EBul;
	return z ^ z >> 31;
}

static double
uniform(void)
{
	return (double)((rnd() >> 11) + 1) * 0x1p-53;
}

static double
normal(void)
{
	return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static void *
alloc(long n, size_t size)
{
	void *p = calloc((size_t)(n > 0 ? n : 1), size);

	if (!p)
		abort();
	return p;
}

static Buf
buf(int dt, long n)
{
	return (Buf){ dt, n, alloc(n, dt == DT_bf16 ? sizeof(bf16) : sizeof(f32)) };
}

static double
get(Buf b, long i)
{
	return b.dt == DT_bf16 ? F32(((bf16 *)b.p)[i]) : ((f32 *)b.p)[i];
}

static void
set(Buf b, long i, double x)
{
	if (b.dt == DT_bf16)
		((bf16 *)b.p)[i] = BF16((float)x);
	else
		((f32 *)b.p)[i] = (float)x;
}

static Buf
randbuf(int dt, long n, double std)
{
	Buf b = buf(dt, n);

	for (long i = 0; i < n; i++)
		set(b, i, std * normal());
	return b;
}

/* every byte 0xff: a NaN in both types, so that an element that is not written shows */
static Buf
nanbuf(int dt, long n)
{
	Buf b = buf(dt, n);

	memset(b.p, 0xff, (size_t)n * (dt == DT_bf16 ? 2 : 4));
	return b;
}

static Buf
copy(Buf b)
{
	Buf c = buf(b.dt, b.n);

	memcpy(c.p, b.p, (size_t)b.n * (b.dt == DT_bf16 ? 2 : 4));
	return c;
}

static void
launch(Kernel *k, const HcArg *a, long items, int shuffled)
{
	long *order = alloc(items, sizeof *order);

	for (long i = 0; i < items; i++)
		order[i] = i;
	for (long i = items - 1; shuffled && i > 0; i--) {
		const long j = (long)(rnd() % (unsigned long)(i + 1)), t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
	for (long i = 0; i < items; i++)
		k(a, order[i]);
	free(order);
}

static void
report(int ok, const char *name, const char *what, double err, double tol)
{
	if (!ok) {
		failed = 1;
		printf("FAIL %s %s: error %.3g, allowed %.3g\n", name, what, err, tol);
	}
}

/* x against ref, both orders against each other */
static int
close_within(const char *name, const char *what, Buf x, Buf y, const double *ref, double tol, double terms)
{
	double diff = 0, norm = 0, worst = 0;
	long at = 0;
	const int same = !memcmp(x.p, y.p, (size_t)x.n * (x.dt == DT_bf16 ? 2 : 4));

	for (long i = 0; i < x.n; i++) {
		diff += (get(x, i) - ref[i]) * (get(x, i) - ref[i]);
		norm += ref[i] * ref[i];
	}

	const double abs = tol * (sqrt(norm) + terms) + 1e-30, each = abs / sqrt((double)x.n);

	if (!same)
		report(0, name, what, NAN, 0);
	if (x.dt == DT_f32) {
		report(sqrt(diff) <= abs, name, what, sqrt(diff), abs);
		return same && sqrt(diff) <= abs;
	}
	for (long i = 0; i < x.n; i++) {
		const double e = fabs(get(x, i) - ref[i]) / (0x1p-8 * fabs(ref[i]) + each);

		if (!(e <= worst)) {
			worst = e;
			at = i;
		}
	}
	if (!(worst <= 1))
		printf("     at %ld: %g, reference %g\n", at, get(x, at), ref[at]);
	report(worst <= 1, name, what, worst, 1);
	return same && worst <= 1;
}

static int
close_to(const char *name, const char *what, Buf x, Buf y, const double *ref)
{
	return close_within(name, what, x, y, ref, 1e-5, 0);
}

static void
ok(int good, const char *name)
{
	if (good)
		printf("ok %s\n", name);
	else
		failed = 1;
}

/* ---- elementary functions: every 997th float, in ulps of the reference ---- */

static double
ulps(float x, double ref)
{
	int e;

	if (isnan(ref))
		return isnan(x) ? 0 : INFINITY;
	if (fabs(ref) >= 0x1.ffffffp127)
		return isinf(x) && (x > 0) == (ref > 0) ? 0 : fabs(ref) < 0x1.000001p128 && fabsf(x) > 3.4e38f ? 1 : INFINITY;
	frexp(ref, &e);
	return fabs(x - ref) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

static double
sigmoid(double x)
{
	return 1 / (1 + exp(-x));
}

static void
test_functions(void)
{
	enum { N = 4096 };
	static float x[N], y[4][N];
	double worst[4] = { 0 }, wexp2 = 0, wexpn = 0;
	static const char *const names[4] = { "hc_expf", "hc_logf", "hc_tanhf", "hc_sigmoidf" };
	double (*const refs[4])(double) = { exp, log, tanh, sigmoid };
	int good = 1, round = 1;

	for (unsigned long u = 0; u < 1ul << 32;) {
		for (int i = 0; i < N; i++, u += 997)
			x[i] = ((HcBits){ .u = (unsigned)u }).f;
		for (int i = 0; i < N; i++)
			y[0][i] = hc_expf(x[i]);
		for (int i = 0; i < N; i++)
			y[1][i] = hc_logf(x[i]);
		for (int i = 0; i < N; i++)
			y[2][i] = hc_tanhf(x[i]);
		for (int i = 0; i < N; i++)
			y[3][i] = hc_sigmoidf(x[i]);
		for (int i = 0; i < N; i++)
			if (!(x[i] > 0))
				wexpn = fmax(wexpn, x[i] < -87 ? hc_expnf(x[i]) != 0 : ulps(hc_expnf(x[i]), exp(x[i])));
		for (int f = 0; f < 4; f++)
			for (int i = 0; i < N; i++)
				worst[f] = fmax(worst[f], ulps(y[f][i], refs[f](x[i])));
	}
	for (int f = 0; f < 4; f++) {
		printf("ok %s worst %.2f ulp\n", names[f], worst[f]);
		report(worst[f] <= 2.5, names[f], "ulps", worst[f], 2.5);
	}

	printf("ok hc_expnf worst %.2f ulp\n", wexpn);
	report(wexpn <= 2.5, "hc_expnf", "ulps", wexpn, 2.5);

	for (int i = 0; i < 2000000; i += VW) {
		_Alignas(64) float in[VW], out[VW];

		for (int j = 0; j < VW; j++)
			in[j] = (float)(uniform() * -130 + 0.001);
		VSTORE(out, vexp2(VLOAD(in)));
		for (int j = 0; j < VW; j++) {
			if (in[j] > -126)
				wexp2 = fmax(wexp2, ulps(out[j], exp2(in[j])));
			else
				good &= out[j] == 0;
		}
	}
	for (unsigned u = 0; u < 1u << 22; u += 99991) {
		_Alignas(64) float out[VW];

		VSTORE(out, vexp2((vf){ 0 } + ((HcBits){ .u = 0x7fc00000u | u | u << 31 }).f));
		good &= isnan(out[0]);
	}
	report(wexp2 <= 2.5 && good, "vexp2", "ulps", wexp2, 2.5);
	printf("ok vexp2 worst %.2f ulp\n", wexp2);

	/* rounding: the result is a neighbour and no neighbour is nearer; ties go to the even one */
	for (unsigned long u = 0; u < 1ul << 32; u += 127) {
		const float v = ((HcBits){ .u = (unsigned)u }).f;
		const bf16 b = BF16(v);
		const unsigned low = (unsigned)u >> 16, half = (unsigned)u & 0xffff;
		const unsigned want = half > 0x8000 || (half == 0x8000 && (low & 1)) ? low + 1 : low;

		round &= isnan(v) ? isnan(F32(b)) : b == want;
	}
	ok(round, "BF16");
	if (!round)
		printf("FAIL BF16\n");
}

/* ---- rows ---- */

/* x with the sign of token t, channel c; seven rows of signs, sequences of 50 */
static double
with_sign(double x, const i32 *tokens, long t, long c, long C)
{
	unsigned long h = t % 50 ? (unsigned long)(tokens[t] ^ tokens[t - 1]) % 7 : 0;

	h = (h * (unsigned long)C + (unsigned long)c) & 0xffffffff;
	h = ((h ^ h >> 16) * 0x85ebca6b) & 0xffffffff;
	h = ((h ^ h >> 13) * 0xc2b2ae35) & 0xffffffff;
	h = h ^ h >> 16;
	return h % 2 == 0 ? x : -x;
}

static void
test_rows(const Rows *c)
{
	const long R = 37, T = 211, C = c->C;
	Buf table = randbuf(DT_f32, R * C, 1), dout = randbuf(c->dt, T * C, 1), grad = randbuf(DT_f32, R * C, 1);
	i32 *idx = alloc(T, sizeof *idx), *order = alloc(T, sizeof *order), *start = alloc(R + 1, sizeof *start);
	double *ref = alloc(T * C, sizeof *ref), *gref = alloc(R * C, sizeof *gref), *sref = alloc(T * C, sizeof *sref);
	Buf x = randbuf(DT_f32, T * C, 1), out[2], sum[2], sgn[2];
	char name[100];
	int good = 1;
	long n = 0;

	/* a third of the tokens are row 5; rows 30 and above do not occur */
	for (long t = 0; t < T; t++)
		idx[t] = rnd() % 3 ? (i32)(rnd() % 30) : 5;
	for (long r = 0; r < R; r++) {
		start[r] = (i32)n;
		for (long t = 0; t < T; t++)
			if (idx[t] == r)
				order[n++] = (i32)t;
	}
	start[R] = (i32)n;
	for (long i = 0; i < R * C; i++)
		gref[i] = get(grad, i);
	for (long t = 0; t < T; t++)
		for (long i = 0; i < C; i++) {
			ref[t * C + i] = get(table, idx[t] * C + i);
			sref[t * C + i] = with_sign(get(x, t * C + i), idx, t, i, C);
			gref[idx[t] * C + i] += get(dout, t * C + i);
		}
	for (int s = 0; s < 2; s++) {
		out[s] = nanbuf(c->dt, T * C);
		sum[s] = copy(grad);
		sgn[s] = nanbuf(c->dt, T * C);
		launch(c->signs, (HcArg[]){ { sgn[s].p }, { x.p }, { idx }, { .i = T }, { .i = 50 } }, 64, s);
		launch(c->gather, (HcArg[]){ { out[s].p }, { table.p }, { idx }, { .i = T } }, 64, s);
		launch(c->scatter, (HcArg[]){ { sum[s].p }, { dout.p }, { order }, { start }, { .i = R } }, 64, s);
	}
	snprintf(name, sizeof name, "rows %s", c->name);
	good &= close_to(name, "gather", out[0], out[1], ref);
	good &= close_to(name, "scatter", sum[0], sum[1], gref);
	good &= close_to(name, "signs", sgn[0], sgn[1], sref);
	ok(good, name);
	for (int s = 0; s < 2; s++)
		free(out[s].p), free(sum[s].p), free(sgn[s].p);
	free(table.p), free(dout.p), free(grad.p), free(x.p), free(idx), free(order), free(start), free(ref), free(gref), free(sref);
}

/* ---- attention ---- */

typedef struct {
	Buf q, k, v, o, dout, dq, dk, dv;
	f32 *lse, *ws, *delta;
	i32 *docstart;
	long T, seq, window, qs, ks, vs, dqs, dks, dvs;
	double scale;
	double *ref_o, *ref_lse, *ref_dq, *ref_dk, *ref_dv;
	double tol, terms_dq, terms_dk;                /* see the head of the file */
} Case;

static long
visible(const Case *x, long t)
{
	const long far = x->window ? t - x->window : 0;

	return far > x->docstart[t] ? far : x->docstart[t];
}

/* o, lse in double */
static void
ref_fwd(const Attn *c, Case *x)
{
	double *s = alloc(x->seq, sizeof *s), qmax = 0, kmax = 0;

	for (long i = 0; i < x->T * (c->H + c->K); i++) {
		const long t = i / (c->H + c->K), h = i % (c->H + c->K);
		double norm = 0;

		for (long d = 0; d < c->D; d++)
			norm += pow(get(x->q, t * x->qs + h * c->D + d), 2);
		if (h < c->H)
			qmax = fmax(qmax, norm);
		else
			kmax = fmax(kmax, norm);
	}
	x->tol = 1e-5 + 0x1p-23 * sqrt(qmax * kmax) * x->scale;

	for (long t = 0; t < x->T; t++)
		for (long h = 0; h < c->H; h++) {
			const long g = h / (c->H / c->K), lo = visible(x, t);
			double top = -INFINITY, sum = 0;

			for (long j = lo; j <= t; j++) {
				double dot = 0;

				for (long d = 0; d < c->D; d++)
					dot += get(x->q, t * x->qs + h * c->D + d) * get(x->k, j * x->ks + g * c->D + d);
				s[j - lo] = dot * x->scale;
				top = fmax(top, s[j - lo]);
			}
			for (long j = lo; j <= t; j++)
				sum += exp(s[j - lo] - top);
			x->ref_lse[t * c->H + h] = top + log(sum);
			for (long d = 0; d < c->D; d++) {
				double o = 0;

				for (long j = lo; j <= t; j++)
					o += exp(s[j - lo] - top) / sum * get(x->v, j * x->vs + g * c->D + d);
				x->ref_o[(t * c->H + h) * c->D + d] = o;
			}
		}
	free(s);
}

/* dq, dk, dv in double, delta from the stored o */
static void
ref_bwd(const Attn *c, Case *x)
{
	memset(x->ref_dq, 0, (size_t)(x->T * c->H * c->D) * sizeof(double));
	memset(x->ref_dk, 0, (size_t)(x->T * c->K * c->D) * sizeof(double));
	memset(x->ref_dv, 0, (size_t)(x->T * c->K * c->D) * sizeof(double));
	for (long t = 0; t < x->T; t++)
		for (long h = 0; h < c->H; h++) {
			const long g = h / (c->H / c->K), D = c->D, at = (t * c->H + h) * D;
			double delta = 0;

			for (long d = 0; d < D; d++)
				delta += get(x->dout, at + d) * get(x->o, at + d);
			for (long j = visible(x, t); j <= t; j++) {
				const long kv = (j * c->K + g) * D;
				double dot = 0, dp = 0;

				for (long d = 0; d < D; d++) {
					dot += get(x->q, t * x->qs + h * D + d) * get(x->k, j * x->ks + g * D + d);
					dp += get(x->dout, at + d) * get(x->v, j * x->vs + g * D + d);
				}

				const double p = exp(dot * x->scale - x->ref_lse[t * c->H + h]), ds = p * (dp - delta) * x->scale;
				const double size = p * (fabs(dp) + fabs(delta)) * x->scale;

				for (long d = 0; d < D; d++) {
					x->ref_dv[kv + d] += p * get(x->dout, at + d);
					x->ref_dk[kv + d] += ds * get(x->q, t * x->qs + h * D + d);
					x->ref_dq[at + d] += ds * get(x->k, j * x->ks + g * D + d);
					x->terms_dq += pow(size * get(x->k, j * x->ks + g * D + d), 2);
					x->terms_dk += pow(size * get(x->q, t * x->qs + h * D + d), 2);
				}
			}
		}
	x->terms_dq = sqrt(x->terms_dq);
	x->terms_dk = sqrt(x->terms_dk);
}

static Case
case_open(const Attn *c, long seqs, long seq, long window, int docs, double std)
{
	const long T = seqs * seq, HD = c->H * c->D, KD = c->K * c->D, W = HD + 2 * KD;
	Case x = { .T = T, .seq = seq, .window = window, .scale = 1 / sqrt(c->D) };

	/* q, k, v side by side in one matrix, as the qkv product leaves them; the gradients likewise */
	x.q = randbuf(c->dtq, T * W, std);
	x.k = x.q, x.k.p = (char *)x.q.p + HD * (c->dtq == DT_bf16 ? 2 : 4);
	x.v = x.q, x.v.p = (char *)x.q.p + (HD + KD) * (c->dtq == DT_bf16 ? 2 : 4);
	x.qs = x.ks = x.vs = x.dqs = x.dks = x.dvs = W;
	x.o = nanbuf(c->dto, T * HD);
	x.dout = randbuf(c->dtg, T * HD, 1);
	x.dq = nanbuf(c->dtg, T * W);
	x.dk = x.dq, x.dk.p = (char *)x.dq.p + HD * (c->dtg == DT_bf16 ? 2 : 4);
	x.dv = x.dq, x.dv.p = (char *)x.dq.p + (HD + KD) * (c->dtg == DT_bf16 ? 2 : 4);
	x.lse = alloc(T * c->H, sizeof(f32));
	x.ws = nanbuf(DT_f32, T * HD).p;
	x.delta = alloc(T * c->H, sizeof(f32));
	x.docstart = alloc(T, sizeof(i32));
	for (long t = 0; t < T; t++)
		x.docstart[t] = t % seq == 0 || (docs && rnd() % 29 == 0) ? (i32)t : x.docstart[t - 1];
	x.ref_o = alloc(T * HD, sizeof(double));
	x.ref_lse = alloc(T * c->H, sizeof(double));
	x.ref_dq = alloc(T * HD, sizeof(double));
	x.ref_dk = alloc(T * KD, sizeof(double));
	x.ref_dv = alloc(T * KD, sizeof(double));
	return x;
}

static void
case_close(Case *x)
{
	free(x->q.p), free(x->o.p), free(x->dout.p), free(x->dq.p);
	free(x->lse), free(x->ws), free(x->delta), free(x->docstart);
	free(x->ref_o), free(x->ref_lse), free(x->ref_dq), free(x->ref_dk), free(x->ref_dv);
}

static void
run_fwd(const Attn *c, const Case *x, Buf o, f32 *lse, int shuffled)
{
	launch(c->fwd, (HcArg[]){ { o.p }, { lse }, { x->q.p }, { x->k.p }, { x->v.p }, { .i = x->qs }, { .i = x->ks },
		{ .i = x->vs }, { x->docstart }, { .i = x->window }, { .f = x->scale }, { .i = x->seq }, { .i = x->T } },
		x->T / x->seq * c->H * ((x->seq + 127) / 128), shuffled);
}

static void
run_bwd(const Attn *c, const Case *x, Buf dq, int shuffled)
{
	char *p = dq.p;
	const long size = c->dtg == DT_bf16 ? 2 : 4, HD = c->H * c->D, KD = c->K * c->D;

	launch(c->bwd, (HcArg[]){ { p }, { p + HD * size }, { p + (HD + KD) * size }, { .i = x->dqs }, { .i = x->dks },
		{ .i = x->dvs }, { x->q.p }, { x->k.p }, { x->v.p }, { .i = x->qs }, { .i = x->ks }, { .i = x->vs }, { x->o.p },
		{ x->dout.p }, { x->lse }, { x->docstart }, { .i = x->window }, { .f = x->scale }, { .i = x->seq },
		{ .i = x->T }, { x->ws }, { x->delta } }, x->T / x->seq * c->K, shuffled);
}

/* columns c0 .. c0+w of a matrix of W columns */
static Buf
columns(Buf b, long W, long c0, long w)
{
	Buf c = buf(b.dt, b.n / W * w);

	for (long i = 0; i < c.n; i++)
		set(c, i, get(b, i / w * W + c0 + i % w));
	return c;
}

static void
test_attn(const Attn *c, long seqs, long seq, long window, int docs, double std)
{
	Case x = case_open(c, seqs, seq, window, docs, std);
	const long HD = c->H * c->D, KD = c->K * c->D;
	Buf o2 = nanbuf(c->dto, x.T * HD), lse = { DT_f32, x.T * c->H, x.lse }, lse2 = nanbuf(DT_f32, x.T * c->H);
	Buf dq2 = nanbuf(c->dtg, x.dq.n);
	char name[160];
	int good = 1;

	snprintf(name, sizeof name, "attn %s seqs %ld seq %ld window %ld docs %d std %g", c->name, seqs, seq, window, docs, std);
	ref_fwd(c, &x);
	run_fwd(c, &x, x.o, x.lse, 0);
	run_fwd(c, &x, o2, lse2.p, 1);
	good &= close_within(name, "o", x.o, o2, x.ref_o, x.tol, 0);
	good &= close_within(name, "lse", lse, lse2, x.ref_lse, x.tol, 0);

	/* the backward is judged on its own: exact lse in, the o that it reads */
	for (long i = 0; i < lse.n; i++)
		x.lse[i] = (float)x.ref_lse[i];
	ref_bwd(c, &x);
	run_bwd(c, &x, x.dq, 0);
	run_bwd(c, &x, dq2, 1);

	const struct { const char *what; long c0, w; const double *ref; double terms; } parts[] = {
		{ "dq", 0, HD, x.ref_dq, x.terms_dq }, { "dk", HD, KD, x.ref_dk, x.terms_dk }, { "dv", HD + KD, KD, x.ref_dv, 0 },
	};

	for (int i = 0; i < 3; i++) {
		Buf a = columns(x.dq, x.dqs, parts[i].c0, parts[i].w), b = columns(dq2, x.dqs, parts[i].c0, parts[i].w);

		good &= close_within(name, parts[i].what, a, b, parts[i].ref, x.tol, parts[i].terms);
		free(a.p), free(b.p);
	}
	ok(good, name);
	free(o2.p), free(lse2.p), free(dq2.p);
	case_close(&x);
}

/* ---- cross entropy ---- */

static double
cap(const Ce *c, double l, double *dz)
{
	if (c->cap == 1) {
		*dz = 1 / (cosh(l / c->capv) * cosh(l / c->capv));
		return c->capv * tanh(l / c->capv);
	}
	if (c->cap == 2) {
		const double x = (l + c->shift) / c->temp, s = sigmoid(x);

		*dz = c->capv / c->temp * s * sigmoid(-x);
		return c->capv * s;
	}
	*dz = 1;
	return l;
}

static void
test_ce(const Ce *c, double std)
{
	const long n = 77, V = c->V, VP = c->VP;
	Buf logits = randbuf(DT_f32, n * VP, std), scale = buf(DT_f32, 1);
	Buf loss[3], dl[2], z[2];
	i32 *targets = alloc(n, sizeof *targets);
	double *rloss = alloc(n, sizeof *rloss), *rdl = alloc(n * VP, sizeof *rdl), *rz = alloc(n * VP, sizeof *rz);
	char name[120];
	int good = 1, zero = 1, untouched = 1;

	snprintf(name, sizeof name, "ce %s std %g", c->name, std);
	set(scale, 0, 1. / 4096);
	for (long r = 0; r < n; r++) {
		double top = -INFINITY, sum = 0, dz;

		targets[r] = (i32)(rnd() % (unsigned long)V);
		if (r % 5 == 0) {                             /* the target far above, or far below, the rest */
			set(logits, r * VP + targets[r], r % 2 ? 90 * std : -90 * std);
		}
		for (long v = V; v < VP; v++)                 /* takes no part, however large */
			set(logits, r * VP + v, 1e30);
		for (long v = 0; v < VP; v++) {
			rz[r * VP + v] = cap(c, get(logits, r * VP + v), &dz);
			if (v < V)
				top = fmax(top, rz[r * VP + v]);
		}
		for (long v = 0; v < V; v++)
			sum += exp(rz[r * VP + v] - top);
		rloss[r] = log(sum) + top - rz[r * VP + targets[r]];
		for (long v = 0; v < V; v++) {
			cap(c, get(logits, r * VP + v), &dz);
			rdl[r * VP + v] = get(scale, 0) * dz * (exp(rz[r * VP + v] - top) / sum - (v == targets[r]));
			/* 1 - p would cancel in double too */
			if (v == targets[r]) {
				double rest = 0;

				for (long w = 0; w < V; w++)
					rest += w == v ? 0 : exp(rz[r * VP + w] - top);
				rdl[r * VP + v] = -get(scale, 0) * dz * rest / sum;
			}
		}
	}
	for (int s = 0; s < 3; s++) {
		loss[s] = nanbuf(DT_f32, n);
		if (s < 2)
			dl[s] = nanbuf(c->dtg, n * VP), z[s] = copy(logits);

		Buf d = s < 2 ? dl[s] : nanbuf(c->dtg, n * VP);

		launch(c->ce, (HcArg[]){ { loss[s].p }, { d.p }, { logits.p }, { targets }, { scale.p }, { .i = n }, { .i = s < 2 } },
			64, s);
		if (s < 2)
			launch(c->softcap, (HcArg[]){ { z[s].p }, { .i = n } }, 64, s);
		for (long i = 0; s == 2 && i < d.n; i++)
			untouched &= isnan(get(d, i));
		if (s == 2)
			free(d.p);
	}
	good &= close_to(name, "loss", loss[0], loss[1], rloss);
	good &= close_to(name, "loss alone", loss[0], loss[2], rloss);
	good &= close_to(name, "softcap", z[0], z[1], rz);
	good &= close_to(name, "dlogits", dl[0], dl[1], rdl);
	for (long r = 0; r < n; r++)
		for (long v = V; v < VP; v++)
			zero &= get(dl[0], r * VP + v) == 0;
	report(zero, name, "columns V .. VP-1 are 0", 1, 0);
	report(untouched, name, "grad 0 leaves dlogits", 1, 0);
	ok(good && zero && untouched, name);
	for (int s = 0; s < 3; s++)
		free(loss[s].p);
	for (int s = 0; s < 2; s++)
		free(dl[s].p), free(z[s].p);
	free(logits.p), free(scale.p), free(targets), free(rloss), free(rdl), free(rz);
}

/* ---- optimizer and sums ---- */

static void
test_adamw(Kernel *k, int weights, long n, long step, long every)
{
	Buf p = randbuf(DT_f32, n, 1), m = randbuf(DT_f32, n, 0.01), v = randbuf(DT_f32, n, 1e-4), g = randbuf(DT_f32, n, 0.03);
	Buf out[2][4];
	const double lr = 3e-3, b1 = 0.9, b2 = 0.95, eps = 1e-8, wd = 0.1;
	f32 sched[5] = { 0.7f, (float)(step * every), 0.25f, 0.4f, 2.f };
	double *rp = alloc(n, sizeof *rp), *rm = alloc(n, sizeof *rm), *rv = alloc(n, sizeof *rv);
	char name[80];
	int good = 1, rounded = 1;

	for (long i = 0; i < n; i++) {
		set(v, i, fabs(get(v, i)));
		if (i % 7 == 0)                               /* a parameter that never had a gradient */
			set(m, i, 0), set(v, i, 0), set(g, i, 0);

		const double lr_t = lr * sched[0], gi = get(g, i) * sched[3];

		rm[i] = b1 * get(m, i) + (1 - b1) * gi;
		rv[i] = b2 * get(v, i) + (1 - b2) * gi * gi;
		rp[i] = get(p, i) * (1 - lr_t * wd)
			- lr_t * (rm[i] / (1 - pow(b1, (double)step))) / (sqrt(rv[i] / (1 - pow(b2, (double)step))) + eps);
	}
	for (int s = 0; s < 2; s++) {
		out[s][0] = copy(p), out[s][1] = copy(m), out[s][2] = copy(v), out[s][3] = nanbuf(DT_bf16, n);
		launch(k, (HcArg[]){ { out[s][0].p }, { weights ? out[s][3].p : NULL }, { out[s][1].p }, { out[s][2].p }, { g.p },
			{ .i = n }, { .f = lr }, { .f = b1 }, { .f = b2 }, { .f = eps }, { .f = wd }, { sched }, { .i = every }, { NULL }, { NULL } }, 64, s);
	}
	snprintf(name, sizeof name, "adamw weights %d n %ld step %ld", weights, n, step);
	good &= close_to(name, "p", out[0][0], out[1][0], rp);
	good &= close_to(name, "m", out[0][1], out[1][1], rm);
	good &= close_to(name, "v", out[0][2], out[1][2], rv);
	for (long i = 0; weights && i < n; i++)
		rounded &= ((bf16 *)out[0][3].p)[i] == BF16(((f32 *)out[0][0].p)[i]);
	report(rounded, name, "w = bf16(p)", 1, 0);
	ok(good && rounded, name);
	for (int s = 0; s < 2; s++)
		for (int i = 0; i < 4; i++)
			free(out[s][i].p);
	free(p.p), free(m.p), free(v.p), free(g.p), free(rp), free(rm), free(rv);
}

static void
test_sums(long n)
{
	Buf g = randbuf(DT_f32, n, 1), part = randbuf(DT_f32, 64 * n, 1), dst = randbuf(DT_f32, n, 1), sum[2];
	double square = 0, total = 0.5, result = 0.5, sq[2][64], *ref = alloc(n, sizeof *ref);
	f32 sched[5] = { 1, 1, 1, 1, 1 };
	char name[40];
	int good = 1;

	snprintf(name, sizeof name, "sums n %ld", n);
	for (long i = 0; i < n; i++) {
		square += get(g, i) * get(g, i);
		total += get(g, i);
		ref[i] = get(dst, i);
		for (long b = 0; b < 64; b++)
			ref[i] += get(part, b * n + i);
	}
	for (int s = 0; s < 2; s++) {
		sum[s] = copy(dst);
		launch(finish, (HcArg[]){ { sum[s].p }, { part.p }, { .i = n } }, 64, s);
		launch(sqsum, (HcArg[]){ { sq[s] }, { g.p }, { .i = n } }, 64, s);
	}
	launch(loss_sum, (HcArg[]){ { &result }, { g.p }, { .i = n } }, 1, 0);
	good &= close_to(name, "finish", sum[0], sum[1], ref);
	report(result == total, name, "loss_sum", result - total, 0);
	report(!memcmp(sq[0], sq[1], sizeof sq[0]), name, "sqsum order", 1, 0);
	good &= result == total && !memcmp(sq[0], sq[1], sizeof sq[0]);

	/* clip off, above and below the norm; sched is float: 2^-23 */
	const double clips[] = { 0, sqrt(square) * 0.3 + 1e-9, sqrt(square) * 3 + 1 };

	for (int i = 0; i < 3; i++) {
		const double norm = sqrt(square), f = clips[i] / (norm + 1e-6), want = clips[i] > 0 && f < 1 ? f : 1;

		launch(clip, (HcArg[]){ { sched }, { sq[0] }, { .f = clips[i] } }, 1, 0);
		if (fabs(sched[3] - want) > 0x1p-23 * want || fabs(sched[4] - norm) > 0x1p-23 * norm) {
			report(0, name, "clip", sched[3] - want, 0x1p-23 * want);
			good = 0;
		}
	}
	ok(good, name);
	for (int s = 0; s < 2; s++)
		free(sum[s].p);
	free(g.p), free(part.p), free(dst.p), free(ref);
}

/* a matrix times one learned scalar, or two; what it and the product of them get */
static void
test_scaled(long n)
{
	Buf w = randbuf(DT_f32, n, 1), g = randbuf(DT_f32, n, 1), d = randbuf(DT_f32, n, 1), s0 = randbuf(DT_f32, 1, 1);
	Buf s1 = randbuf(DT_f32, 1, 1), out[2], both[2], dw[2], part[2];
	double *ref = alloc(n, sizeof *ref), dot = 0, mag = 0, got = 0;
	const double rounded = F32(BF16((float)get(s0, 0))) * get(s1, 0), factor = get(s0, 0) * get(s1, 0);
	char name[40];
	int good = 1;

	snprintf(name, sizeof name, "scaled n %ld", n);
	for (int s = 0; s < 2; s++) {
		out[s] = nanbuf(DT_f32, n), both[s] = nanbuf(DT_bf16, n), dw[s] = copy(d), part[s] = nanbuf(DT_f32, 64);
		launch(scaled_f32, (HcArg[]){ { out[s].p }, { w.p }, { s0.p }, { NULL }, { .i = n } }, 64, s);
		launch(scaled_bf16, (HcArg[]){ { both[s].p }, { w.p }, { s0.p }, { s1.p }, { .i = n } }, 64, s);
		launch(scaled_bwd, (HcArg[]){ { dw[s].p }, { part[s].p }, { g.p }, { w.p }, { s0.p }, { s1.p }, { .i = n } }, 64, s);
	}
	for (long i = 0; i < n; i++)
		ref[i] = get(s0, 0) * get(w, i);
	good &= close_to(name, "f32", out[0], out[1], ref);
	for (long i = 0; i < n; i++)
		ref[i] = rounded * get(w, i);
	good &= close_to(name, "bf16, two factors", both[0], both[1], ref);
	for (long i = 0; i < n; i++) {
		ref[i] = get(d, i) + factor * get(g, i);
		dot += get(g, i) * get(w, i);
		mag += fabs(get(g, i) * get(w, i));
	}
	good &= close_to(name, "dw", dw[0], dw[1], ref);
	for (int b = 0; b < 64; b++) {
		got += get(part[0], b);
		good &= get(part[0], b) == get(part[1], b);
	}
	report(fabs(got - dot) <= 0x1p-23 * mag, name, "sum", got - dot, 0x1p-23 * mag);
	ok(good && fabs(got - dot) <= 0x1p-23 * mag, name);
	for (int s = 0; s < 2; s++)
		free(out[s].p), free(both[s].p), free(dw[s].p), free(part[s].p);
	free(w.p), free(g.p), free(d.p), free(s0.p), free(s1.p), free(ref);
}

/* numbers per row from its first channels and as many columns of the weights, and what
 * rows and weights get */
static void
test_gate(Kernel *fwd, Kernel *bwd, int dt, long H, long N, long C, long W, long W0, long T)
{
	const long N8 = (N + 7) / 8 * 8;
	Buf x = randbuf(dt, T * C, 1), w = randbuf(DT_f32, H * W, 1), g = randbuf(DT_f32, T * H, 1), y[2], dx[2], part[2];
	double *ry = alloc(T * H, sizeof *ry), *rx = alloc(T * N8, sizeof *rx), *rw = alloc(H * W, sizeof *rw);
	char name[60];
	int good = 1;

	snprintf(name, sizeof name, "gate H %ld N %ld of %ld T %ld", H, N, W, T);
	for (long t = 0; t < T; t++)
		for (long h = 0; h < H; h++)
			for (long c = 0; c < N; c++) {
				ry[t * H + h] += get(x, t * C + c) * get(w, h * W + W0 + c);
				rx[t * N8 + c] += get(g, t * H + h) * get(w, h * W + W0 + c);
				rw[h * W + W0 + c] += get(g, t * H + h) * get(x, t * C + c);
			}
	for (int s = 0; s < 2; s++) {
		y[s] = nanbuf(DT_f32, T * H), dx[s] = nanbuf(dt, T * N8), part[s] = nanbuf(DT_f32, 64 * H * W);
		launch(fwd, (HcArg[]){ { y[s].p }, { x.p }, { w.p }, { .i = T } }, 64, s);
		launch(bwd, (HcArg[]){ { dx[s].p }, { part[s].p }, { g.p }, { x.p }, { w.p }, { .i = T } }, 64, s);
	}
	good &= close_to(name, "y", y[0], y[1], ry);
	good &= close_to(name, "dx", dx[0], dx[1], rx);
	for (long i = 0; i < H * W; i++) {
		double sum = 0, mag = 0;

		for (long b = 0; b < 64; b++) {
			sum += get(part[0], b * H * W + i);
			mag += fabs(get(part[0], b * H * W + i));
		}
		if (!(fabs(sum - rw[i]) <= 0x1p-20 * (mag + 1)))
			good = 0, report(0, name, "dw", sum - rw[i], 0x1p-20 * (mag + 1));
	}
	ok(good, name);
	for (int s = 0; s < 2; s++)
		free(y[s].p), free(dx[s].p), free(part[s].p);
	free(x.p), free(w.p), free(g.p), free(ry), free(rx), free(rw);
}

/* ---- speeds, one thread: the best of several runs ---- */

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define BEST(runs, call) ({ double best = 1e9; for (int i_ = 0; i_ < (runs); i_++) { const double t_ = now(); call; \
	const double e_ = now() - t_; best = e_ < best ? e_ : best; } best; })

static void
bench(void)
{
	for (const Attn *c = attns; c->name; c++)
		for (long seq = 256; seq <= 1024; seq *= 2) {
			Case x = case_open(c, 2048 / seq, seq, 0, 0, 1);
			const double pairs = (double)x.T * (double)(seq + 1) / 2 * c->H;
			const double f = BEST(15, run_fwd(c, &x, x.o, x.lse, 0));
			const double b = BEST(15, run_bwd(c, &x, x.dq, 0));

			printf("attn %s seq %ld: fwd %.1f bwd %.1f GFLOP/s\n", c->name, seq, 4 * c->D * pairs / f * 1e-9,
				10 * c->D * pairs / b * 1e-9);
			case_close(&x);
		}
	for (const Ce *c = ces; c->name; c++) {
		const long n = 128;
		Buf logits = randbuf(DT_f32, n * c->VP, 1), dl = buf(c->dtg, n * c->VP), loss = buf(DT_f32, n);
		i32 *targets = alloc(n, sizeof *targets);
		f32 scale = 1;
		const double t = BEST(10, launch(c->ce, (HcArg[]){ { loss.p }, { dl.p }, { logits.p }, { targets }, { &scale },
			{ .i = n }, { .i = 1 } }, 64, 0));

		printf("ce %s: %.1f GB/s, logits once and dlogits\n", c->name,
			(double)(n * c->VP) * (c->dtg == DT_bf16 ? 6 : 8) / t * 1e-9);
		free(logits.p), free(dl.p), free(loss.p), free(targets);
	}

	const long n = 16 << 20;
	Buf p = buf(DT_f32, n), m = buf(DT_f32, n), v = buf(DT_f32, n), g = buf(DT_f32, n), w = buf(DT_bf16, n);
	f32 sched[5] = { 1, 10, 1, 1, 1 };
	double part[64];
	const double ta = BEST(10, launch(adamw_w1, (HcArg[]){ { p.p }, { w.p }, { m.p }, { v.p }, { g.p }, { .i = n }, { .f = 1e-3 },
		{ .f = 0.9 }, { .f = 0.95 }, { .f = 1e-8 }, { .f = 0.1 }, { sched }, { .i = 1 }, { NULL }, { NULL } }, 64, 0));
	const double ts = BEST(10, launch(sqsum, (HcArg[]){ { part }, { g.p }, { .i = n } }, 64, 0));

	printf("adamw: %.1f GB/s\nsqsum: %.1f GB/s\n", 30 * (double)n / ta * 1e-9, 4 * (double)n / ts * 1e-9);
	free(p.p), free(m.p), free(v.p), free(g.p), free(w.p);
}

int
main(int argc, char **argv)
{
	static const struct { long seqs, seq, window; int docs; double std; } shapes[] = {
		{ 1, 1, 0, 0, 1 }, { 3, 37, 0, 1, 1 }, { 2, 131, 0, 0, 1 }, { 2, 131, 7, 1, 1 }, { 1, 128, 1, 0, 1 },
		{ 1, 257, 100, 1, 1 }, { 1, 257, 100, 0, 1 }, { 2, 64, 0, 0, 8 },
	};

	if (argc > 1 && !strcmp(argv[1], "bench")) {
		bench();
		return 0;
	}
	test_functions();
	for (const Rows *c = rowss; c->name; c++)
		test_rows(c);
	for (const Attn *c = attns; c->name; c++)
		for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
			test_attn(c, shapes[i].seqs, shapes[i].seq, shapes[i].window, shapes[i].docs, shapes[i].std);
	for (const Ce *c = ces; c->name; c++) {
		test_ce(c, 1);
		test_ce(c, 50);
	}
	test_adamw(adamw_w1, 1, 100003, 1, 3);
	test_adamw(adamw_w0, 0, 37, 20000, 1);
	test_sums(1);
	test_sums(1003);
	test_sums(4096);
	test_scaled(1);
	test_scaled(1003);
	test_scaled(4096);
	test_gate(gate_one, gate_bwd_one, DT_f32, 1, 5, 16, 5, 0, 7);
	test_gate(gate_one, gate_bwd_one, DT_f32, 1, 5, 16, 5, 0, 1003);
	test_gate(gate_six, gate_bwd_six, DT_bf16, 6, 12, 64, 12, 0, 200);
	test_gate(gate_part, gate_bwd_part, DT_bf16, 3, 6, 64, 13, 5, 200);
	return failed;
}
