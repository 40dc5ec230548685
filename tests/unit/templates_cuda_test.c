/* Every CUDA template but attention's, run by simt with all its checks, against
 * plain loops in double.
 *
 * A launch runs twice, threads and blocks in two orders, from the same memory:
 * equal bits, or a race.  How close to the reference:
 *   sums in fp32      2^-24 (n + 2) of the sum of the magnitudes of their n terms,
 *                     each element for itself
 *   what has no sum   adamw: 8 roundings, 2^-21; ce: 1e-5 of the row's norm, which
 *                     is what 2^-22 in an exponential makes of a logit of 23
 *   bf16              one rounding more, 2^-8 of the element
 *   copies, norms     exact, or one rounding of the result */
#include "test.h"
#include "../../gen/fuse.h"
#include "../../gen/templates.h"
#include "../../runtime/simt.h"

/* arrays */

typedef struct { Dt dt; long n; void *p; } Arr;

static uint16_t
to_bf16(double x)
{
	float f = (float)x;
	uint32_t u;

	memcpy(&u, &f, sizeof u);
	if (isnan(f))
		return 0x7fff;
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static double
get(Arr a, long i)
{
	uint32_t u;
	float f;

	switch (a.dt) {
	case BF16:
		u = (uint32_t)((uint16_t *)a.p)[i] << 16;
		memcpy(&f, &u, sizeof f);
		return f;
	case F64:
		return ((double *)a.p)[i];
	case I32:
		return ((int32_t *)a.p)[i];
	default:
		return ((float *)a.p)[i];
	}
}

static void
set(Arr a, long i, double x)
{
	switch (a.dt) {
	case BF16:
		((uint16_t *)a.p)[i] = to_bf16(x);
		break;
	case F64:
		((double *)a.p)[i] = x;
		break;
	case I32:
		((int32_t *)a.p)[i] = (int32_t)x;
		break;
	default:
		((float *)a.p)[i] = (float)x;
	}
}

/* aligned as the arenas are; every byte 0xff: a NaN, so that what is not
 * written shows */
static Arr
array(Dt dt, long n)
{
	Arr a = { dt, n, NULL };
	size_t nbytes = (size_t)n * (size_t)dt_size(dt);

	a.p = aligned_alloc(256, (nbytes + 255) / 256 * 256);
	if (!a.p)
		die("out of memory");
	memset(a.p, 0xff, nbytes);
	return a;
}

static Arr
randoms(Dt dt, long n, double std)
{
	Arr a = array(dt, n);
	long i;

	for (i = 0; i < n; i++)
		set(a, i, std * normal());
	return a;
}

static Arr
copied(Arr a)
{
	Arr b = array(a.dt, a.n);

	memcpy(b.p, a.p, (size_t)a.n * (size_t)dt_size(a.dt));
	return b;
}

/* kernels */

enum { MaxKernels = 64 };

static struct {
	const char *name, *tmpl;
	char *text;
	int threads;
	SimtKernel *k[2];
} kern[MaxKernels];
static int nkern;
static Simt *simt[2];

/* all chunks of the preludes, in the order of their files */
static void
preludes(Buf *b)
{
	int i;

	for (i = 0; i < ntemplates; i++)
		if (strncmp(templates[i].name, "cuda/prelude_", 13) == 0)
			buf_puts(b, templates[i].text);
}

static const char *
template_named(const char *name)
{
	int i;

	for (i = 0; i < ntemplates; i++)
		if (strncmp(templates[i].name, "cuda/", 5) == 0 &&
		    strcmp(templates[i].name + 5, name) == 0)
			return templates[i].text;
	die("there is no template %s", name);
}

/* the value of hole p in "DT=bf16 C=8", n characters; NULL: it is not there */
static const char *
hole_value(const char *holes, const char *p, size_t n, int *len)
{
	for (; *holes; holes += strcspn(holes, " "), holes += *holes == ' ') {
		if (strncmp(holes, p, n) != 0 || holes[n] != '=')
			continue;
		*len = (int)strcspn(holes + n + 1, " ");
		return holes + n + 1;
	}
	return NULL;
}

static void
filled(const char *tmpl, const char *name, const char *holes, int threads, Buf *b)
{
	const char *p = template_named(tmpl), *q, *end, *v;
	int len;

	for (; (q = strchr(p, '@')); p = end + 1) {
		buf_write(b, p, (size_t)(q - p));
		end = strchr(++q, '@');
		if (strncmp(q, "KERNEL@", 7) == 0)
			buf_puts(b, name);
		else if (strncmp(q, "THREADS@", 8) == 0)
			buf_printf(b, "%d", threads);
		else if ((v = hole_value(holes, q, (size_t)(end - q), &len)))
			buf_printf(b, "%.*s", len, v);
		else
			die("%s: hole %.*s has no value", tmpl, (int)(end - q), q);
	}
	buf_puts(b, p);
}

/* how the plan launches tmpl on n of what its grid counts */
static Step
launch_of(const char *tmpl, long n, long width)
{
	Plan p = { .target = TO_CUDA };
	Step s = { .name = tmpl };

	step_launch(&p, &s, 0, n, width);
	return s;
}

static void
kernel(const char *name, const char *tmpl, const char *holes, long width)
{
	Buf b = {0};

	kern[nkern].name = name;
	kern[nkern].tmpl = tmpl;
	kern[nkern].threads = launch_of(tmpl, 1, width).threads;
	preludes(&b);
	filled(tmpl, name, holes, kern[nkern].threads, &b);
	kern[nkern++].text = arena_strdup(mem, b.s);
	buf_free(&b);
}

static void
compile(void)
{
	SimtSource src[MaxKernels];
	SimtKernel *out[MaxKernels];
	SimtOpts o = { .check = true };
	int i, j;

	for (i = 0; i < nkern; i++)
		src[i] = (SimtSource){ kern[i].name, arena_printf(mem, "%s.cu", kern[i].name),
		                       kern[i].text };
	for (j = 0; j < 2; j++) {
		o.seed = (unsigned long)j * 77;         /* 0: ascending */
		simt[j] = simt_new(&o);
		simt_kernels(simt[j], nkern, src, out);
		for (i = 0; i < nkern; i++)
			kern[i].k[j] = out[i];
	}
}

/* launches: what a kernel may touch, its arguments, two runs */

static struct { Arr a, was; bool writes; } range[16];
static HcArg arg[16];
static int nrange, narg;
static char fault[500];

static void
pointer(Arr a, bool writes)
{
	range[nrange].a = a;
	range[nrange].writes = writes;
	if (writes)
		range[nrange].was = copied(a);
	nrange++;
	arg[narg++].p = a.p;
}

static void
reads(Arr a)
{
	pointer(a, false);
}

static void
writes(Arr a)
{
	pointer(a, true);
}

static void
integer(long i)
{
	arg[narg++].i = i;
}

static void
real(double f)
{
	arg[narg++].f = f;
}

/* Two runs; what the second leaves stays.  false: fault says why. */
static bool
run(const char *name, long grid, size_t smem)
{
	SimtFault f;
	size_t nbytes;
	bool ok = true;
	Arr first;
	int i, j, k;

	for (k = 0; k < nkern && strcmp(kern[k].name, name) != 0; k++)
		;
	if (k == nkern)
		die("the test has no kernel %s", name);
	fault[0] = 0;
	for (j = 0; j < 2; j++) {
		simt_memory_clear(simt[j]);
		for (i = 0; i < nrange; i++)
			simt_memory(simt[j], "memory", range[i].a.p,
			            (size_t)range[i].a.n * (size_t)dt_size(range[i].a.dt),
			            range[i].writes);
		if (!simt_launch(simt[j], kern[k].k[j], grid, kern[k].threads, smem, narg, arg,
		                 &f, NULL)) {
			snprintf(fault, sizeof fault, "%.400s", f.text);
			ok = false;
			break;
		}
		for (i = 0; i < nrange; i++) {
			if (!range[i].writes)
				continue;
			nbytes = (size_t)range[i].a.n * (size_t)dt_size(range[i].a.dt);
			first = copied(range[i].a);
			if (j && memcmp(range[i].was.p, first.p, nbytes) != 0) {
				snprintf(fault, sizeof fault, "argument of range %d depends on "
				         "the order of threads", i);
				ok = false;
			}
			if (!j)         /* back to what was, which is kept to compare with */
				memcpy(range[i].a.p, range[i].was.p, nbytes);
			free(range[i].was.p);
			range[i].was = first;
		}
	}
	for (i = 0; i < nrange; i++)
		if (range[i].writes)
			free(range[i].was.p);
	nrange = narg = 0;
	return ok;
}

/* |got - want| <= bound[i] + 2^-8 |want| for bf16, everywhere */
static bool
within(Arr got, const double *want, const double *bound, char err[200])
{
	double e, allowed;
	long i;

	for (i = 0; i < got.n; i++) {
		allowed = bound[i] + (got.dt == BF16 ? fabs(want[i]) / 256 : 0);
		e = fabs(get(got, i) - want[i]);
		if (e <= allowed)
			continue;
		snprintf(err, 200, "at %ld: %.9g, want %.9g, off by %.3g of %.3g", i, get(got, i),
		         want[i], e, allowed);
		return false;
	}
	return true;
}

/* gather */

typedef struct { const char *name; Dt dt; long C; } Rows;

static const Rows rows[] = {
	{ "f32_C8", F32, 8 }, { "bf16_C64", BF16, 64 }, { "f32_C200", F32, 200 }, { "bf16_C768", BF16, 768 },
	{ "f32_C13", F32, 13 }, { "bf16_C13", BF16, 13 }, { "bf16_C12", BF16, 12 }, { "f32_C2100", F32, 2100 },
};
enum { NRows = sizeof rows / sizeof *rows };

static bool
gather(void *a, char err[200])
{
	const Rows *c = a;
	long R = 23, T = 31, t, i;
	Arr out = array(c->dt, T * c->C), table = randoms(F32, R * c->C, 1), idx = array(I32, T);
	Arr one = array(c->dt, 1);

	set(table, 5, NAN);
	for (t = 0; t < T; t++)
		set(idx, t, t ? below((int)R) : 0);
	writes(out);
	reads(table);
	reads(idx);
	integer(T);
	if (!run(arena_printf(mem, "gather_%s", c->name), launch_of("gather", T, c->C).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	for (i = 0; i < out.n; i++) {
		t = i / c->C;
		set(one, 0, get(table, (long)get(idx, t) * c->C + i % c->C));
		if (get(out, i) == get(one, 0) || (isnan(get(out, i)) && isnan(get(one, 0))))
			continue;
		return snprintf(err, 200, "row %ld column %ld: %g", t, i % c->C, get(out, i)), false;
	}
	return true;
}

/* signs: seven rows of them, sequences of 12 */

static bool
signs(void *a, char err[200])
{
	const Rows *c = a;
	long T = 31, t, i;
	Arr out = array(c->dt, T * c->C), x = randoms(c->dt, T * c->C, 1), s = array(I32, T);
	uint64_t h;
	double want;

	for (t = 0; t < T; t++)
		set(s, t, below(50000));
	writes(out);
	reads(x);
	reads(s);
	integer(T);
	integer(12);
	if (!run(arena_printf(mem, "signs_%s", c->name), launch_of("signs", T, c->C).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	for (i = 0; i < out.n; i++) {
		t = i / c->C;
		h = t % 12 ? (uint64_t)((long)get(s, t) ^ (long)get(s, t - 1)) % 7 : 0;
		h = (h * (uint64_t)c->C + (uint64_t)(i % c->C)) & UINT32_MAX;
		h = (h ^ h >> 16) * 0x85ebca6b & UINT32_MAX;
		h = (h ^ h >> 13) * 0xc2b2ae35 & UINT32_MAX;
		h ^= h >> 16;
		want = h % 2 == 0 ? get(x, i) : -get(x, i);
		if (get(out, i) != want)
			return snprintf(err, 200, "row %ld column %ld: %g", t, i % c->C, get(out, i)), false;
	}
	return true;
}

/* scatter */

typedef struct { const Rows *rows; const char *how; long T, R; } Scatter;

/* the row of token t: how many there are of each decides what runs come out */
static int
row_of(const Scatter *s, long t)
{
	if (strcmp(s->how, "one row") == 0)
		return (int)s->R - 1;
	if (strcmp(s->how, "all different") == 0)
		return (int)((t * 7 + 3) % s->R);
	if (strcmp(s->how, "whole chunks") == 0)
		return (int)(t / 64 * 2);
	if (strcmp(s->how, "to a chunk's end") == 0)
		return t < 28 ? 0 : t < 128 ? 2 : 3;
	return uniform() < 0.4 ? 1 : below((int)s->R);  /* one in two fifths */
}

/* order and start as data.c makes them, of the first n tokens */
static void
sorted(const Scatter *s, long n, Arr idx, Arr order, Arr start)
{
	long r, t, at = 0;

	for (r = 0; r <= s->R; r++) {
		set(start, r, (double)at);
		for (t = 0; r < s->R && t < n; t++)
			if ((long)get(idx, t) == r)
				set(order, at++, (double)t);
	}
}

static bool
scatter_kernels(const Scatter *s, Arr grad, Arr dout, Arr order, Arr start, Arr idx)
{
	const char *tmpl = "scatter_finish";
	long C = s->rows->C, chunks = (s->T + 63) / 64, slabs = C % 4 ? (C + 63) / 64 : (C + 255) / 256;
	Arr ws = array(F32, chunks * 2 * C);
	bool ok;

	writes(grad);
	reads(dout);
	reads(order);
	reads(start);
	integer(s->R);
	reads(idx);
	writes(ws);
	ok = run(arena_printf(mem, "scatter_%s", s->rows->name),
	         launch_of("scatter", s->T, C).items, 0);
	if (!ok)
		return false;
	writes(grad);
	reads(order);
	reads(start);
	integer(s->R);
	reads(idx);
	reads(ws);
	return run(arena_printf(mem, "finish_C%ld", C), launch_of(tmpl, chunks * slabs, C).items, 0);
}

static bool
scatter(void *a, char err[200])
{
	const Scatter *s = a;
	long C = s->rows->C, n = strcmp(s->how, "fewer tokens") ? s->T : s->T - 70, t, i;
	Arr grad = randoms(F32, s->R * C, 1), dout = randoms(s->rows->dt, s->T * C, 1), was = copied(grad);
	Arr order = array(I32, s->T), start = array(I32, s->R + 1), idx = array(I32, s->T);
	double *want = NEWN(mem, double, grad.n), *bound = NEWN(mem, double, grad.n);
	int *count = NEWN(mem, int, s->R);

	for (t = 0; t < s->T; t++)
		set(idx, t, row_of(s, t));
	sorted(s, n, idx, order, start);
	for (i = 0; i < grad.n; i++) {
		want[i] = get(grad, i);
		bound[i] = fabs(want[i]);
	}
	for (t = 0; t < n; t++) {
		count[(int)get(idx, t)]++;
		for (i = 0; i < C; i++) {
			want[(long)get(idx, t) * C + i] += get(dout, t * C + i);
			bound[(long)get(idx, t) * C + i] += fabs(get(dout, t * C + i));
		}
	}
	for (i = 0; i < grad.n; i++)
		bound[i] *= count[i / C] ? 0x1p-24 * (count[i / C] + 2) : 0;
	if (!scatter_kernels(s, grad, dout, order, start, idx))
		return snprintf(err, 200, "%.199s", fault), false;
	if (!within(grad, want, bound, err))
		return false;
	/* one NaN spoils its own element alone */
	set(dout, 3, NAN);
	memcpy(grad.p, was.p, (size_t)grad.n * 4);
	if (!scatter_kernels(s, grad, dout, order, start, idx))
		return snprintf(err, 200, "%.199s", fault), false;
	for (i = 0; i < grad.n; i++)
		if (isnan(get(grad, i)) != (i == (long)get(idx, 0) * C + 3))
			return snprintf(err, 200, "NaN of token 0, column 3, and element %ld", i), false;
	return true;
}

static void
scatters(void)
{
	static const struct { const char *how; long T, R; } how[] = {
		{ "mixed", 211, 37 }, { "one row", 333, 5 }, { "all different", 150, 251 },
		{ "whole chunks", 192, 9 }, { "to a chunk's end", 250, 4 }, { "mixed", 64, 3 }, { "mixed", 1, 2 }, { "fewer tokens", 200, 4 },
	};
	size_t i, j;
	Scatter s;

	for (i = 0; i < NRows; i++)
		for (j = 0; j < sizeof how / sizeof *how; j++) {
			if (i > 1 && (i + j) % 3)
				continue;
			s = (Scatter){ &rows[i], how[j].how, how[j].T, how[j].R };
			check_case(arena_printf(mem, "scatter %s, %s, T %ld R %ld", rows[i].name,
			           s.how, s.T, s.R), scatter, &s);
		}
}

/* cross entropy and the softcap */

typedef struct { const char *name; Dt dt; long V, VP; int cap; double capv, shift, temp; } Ce;

static const Ce ces[] = {
	{ "plain", F32, 257, 320, 0, 1, 0, 1 },
	{ "tanh", F32, 50, 64, 1, 15, 0, 1 },
	{ "sigmoid", BF16, 2500, 2560, 2, 23, 5, 7.5 },
	{ "odd", BF16, 257, 257, 1, 30, 0, 1 },
	{ "small", BF16, 19, 24, 2, 9, 1, 3 },
	{ "one", F32, 1, 1, 0, 1, 0, 1 },
	{ "unheld", BF16, 56331, 56332, 1, 15, 0, 1 },
};
enum { NCes = sizeof ces / sizeof *ces };

static double
softcap_of(const Ce *c, double l, double *dz)
{
	double x = (l + c->shift) / c->temp, s = 1 / (1 + exp(-x));

	switch (c->cap) {
	case 1:
		*dz = 1 / (cosh(l / c->capv) * cosh(l / c->capv));
		return c->capv * tanh(l / c->capv);
	case 2:
		*dz = c->capv / c->temp * s / (1 + exp(x));
		return c->capv * s;
	default:
		*dz = 1;
		return l;
	}
}

/* loss and gradients of one row; no term of the target's p - 1 cancels */
static double
ce_row(const Ce *c, const double *l, int target, double scale, double *dl)
{
	double top = -INFINITY, rest = 0, at, dz, z;
	long v;

	for (v = 0; v < c->V; v++)
		top = fmax(top, softcap_of(c, l[v], &dz));
	at = exp(softcap_of(c, l[target], &dz) - top);
	for (v = 0; v < c->V; v++)
		rest += v == target ? 0 : exp(softcap_of(c, l[v], &dz) - top);
	for (v = 0; v < c->VP; v++) {
		z = v < c->V ? softcap_of(c, l[v], &dz) : 0;
		dl[v] = v >= c->V ? 0 : scale * dz * (v == target ? -rest : exp(z - top)) / (rest + at);
	}
	z = softcap_of(c, l[target], &dz) - top;
	return z < 0 ? log(rest + at) - z : log1p(rest);
}

typedef struct { const Ce *c; double std; long n, grid; bool grad; } CeRun;

static bool
ce_launch(const CeRun *x, Arr loss, Arr dl, Arr logits, Arr targets)
{
	const Ce *c = x->c;
	float scale = 1.f / 4096;
	Arr k = { F32, 1, &scale };

	writes(loss);
	writes(dl);
	reads(logits);
	reads(targets);
	reads(k);
	integer(x->n);
	integer(x->grad);
	return run(arena_printf(mem, "ce_%s", c->name), x->grid, c->VP <= 56320 ? (size_t)c->VP * 4 : 0);
}

/* logits of n rows: every fifth row's target is far above or far below the
 * rest; what is beyond V is large and takes no part */
static void
ce_inputs(const CeRun *x, Arr logits, Arr targets)
{
	const Ce *c = x->c;
	long r, v;

	for (r = 0; r < x->n; r++) {
		set(targets, r, below((int)c->V));
		if (r % 5 == 0)
			set(logits, r * c->VP + (long)get(targets, r),
			    (r % 2 ? 1 : -1) * (r % 4 < 2 ? 40 : 90) * x->std);
		for (v = c->V; v < c->VP; v++)
			set(logits, r * c->VP + v, r % 2 ? 1e30 : NAN);
	}
}

static bool
ce(void *a, char err[200])
{
	const CeRun *x = a;
	const Ce *c = x->c;
	Arr logits = randoms(F32, x->n * c->VP, x->std), targets = array(I32, x->n);
	Arr loss = array(F32, x->n), dl = array(c->dt, x->n * c->VP);
	double *l = NEWN(mem, double, c->VP), *want = NEWN(mem, double, dl.n), *bound = NEWN(mem, double, dl.n);
	double *wloss = NEWN(mem, double, x->n), *bloss = NEWN(mem, double, x->n);
	long r, v;

	ce_inputs(x, logits, targets);
	for (r = 0; r < x->n; r++) {
		for (v = 0; v < c->VP; v++)
			l[v] = get(logits, r * c->VP + v);
		wloss[r] = ce_row(c, l, (int)get(targets, r), 1. / 4096, want + r * c->VP);
		/* exponentials below 2^-126 are 0 */
		bloss[r] = 3e-6 * fmin(wloss[r], 1) + 0x1p-22 * wloss[r] + 0x1p-126 * (double)c->V;
		for (v = 0; v < c->VP; v++)
			bound[r * c->VP + v] = v < c->V ? 1e-5 * norm2(want + r * c->VP, c->VP) +
			                                0x1p-126 : 0;
	}
	if (!ce_launch(x, loss, dl, logits, targets))
		return snprintf(err, 200, "%.199s", fault), false;
	if (!within(loss, wloss, bloss, err))
		return false;
	if (x->grad)
		return within(dl, want, bound, err);
	for (v = 0; v < dl.n; v++)
		if (!isnan(get(dl, v)))
			return snprintf(err, 200, "dlogits are touched at %ld", v), false;
	return true;
}

/* a NaN among the logits makes its row NaN, and no other */
static bool
ce_nan(void *a, char err[200])
{
	const CeRun *x = a;
	const Ce *c = x->c;
	Arr logits = randoms(F32, x->n * c->VP, x->std), targets = array(I32, x->n);
	Arr loss = array(F32, x->n), dl = array(c->dt, x->n * c->VP);
	bool want;
	long r, v;

	for (r = 0; r < x->n; r++) {
		set(targets, r, below((int)c->V));
		v = r % 3 == 1 ? (long)get(targets, r) : below((int)c->V);
		if (r % 3)
			set(logits, r * c->VP + v, NAN);
	}
	if (!ce_launch(x, loss, dl, logits, targets))
		return snprintf(err, 200, "%.199s", fault), false;
	for (r = 0; r < x->n; r++) {
		if (isnan(get(loss, r)) != (r % 3 != 0))
			return snprintf(err, 200, "loss of row %ld: %g", r, get(loss, r)), false;
		for (v = 0; v < c->VP; v++) {
			want = r % 3 && v < c->V;
			if (isnan(get(dl, r * c->VP + v)) != want)
				return snprintf(err, 200, "dlogits[%ld, %ld]: %g", r, v,
				                get(dl, r * c->VP + v)), false;
		}
	}
	return true;
}

static bool
softcap(void *a, char err[200])
{
	const Ce *c = a;
	long n = 7, i;
	Arr l = randoms(F32, n * c->VP, 30);
	double *want = NEWN(mem, double, l.n), *bound = NEWN(mem, double, l.n), dz;

	for (i = 0; i < l.n; i++) {
		if (i % 5 == 0)
			set(l, i, get(l, i) * 1e-6);
		if (i % 11 == 0)
			set(l, i, get(l, i) * 1e6);
		want[i] = softcap_of(c, get(l, i), &dz);
		/* 2^-22 in e^-|x|, whose argument is off by 2^-24 of itself */
		bound[i] = c->cap ? 0x1p-20 * fabs(want[i]) +
		           (c->cap == 2 ? 0x1p-21 * c->shift / c->temp * fabs(want[i]) : 0) + 1e-36 : 0;
		if (c->cap == 2 && get(l, i) < 0)
			bound[i] += fabs(get(l, i) / c->temp) * 0x1p-21 * fabs(want[i]);
	}
	writes(l);
	integer(n);
	if (!run(arena_printf(mem, "softcap_%s", c->name), launch_of("softcap", l.n, c->VP).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	return within(l, want, bound, err);
}

static void
heads(void)
{
	CeRun x;
	long n;
	int i;

	for (i = 0; i < NCes; i++) {
		n = ces[i].VP > 50000 ? 2 : ces[i].VP > 2000 ? 6 : 23;
		x = (CeRun){ &ces[i], 1, n, n, true };
		check_case(arena_printf(mem, "ce %s, a block per row", ces[i].name), ce, &x);
		x.grid = 1 + n / 4;
		if (n > 2) {
			x.std = 50;
			check_case(arena_printf(mem, "ce %s, far logits, fewer blocks", ces[i].name), ce, &x);
			check_case(arena_printf(mem, "ce %s, NaN", ces[i].name), ce_nan, &x);
			x.grad = false;
			check_case(arena_printf(mem, "ce %s, loss alone", ces[i].name), ce, &x);
		}
		if (ces[i].VP < 3000)
			check_case(arena_printf(mem, "softcap %s", ces[i].name), softcap, (void *)&ces[i]);
	}
}

/* the optimizer */

typedef struct { bool weights; long n, step, blocks; } Adam;

static void
adamw_args(const Adam *x, Arr p, Arr w, Arr m, Arr v, Arr g, Arr sched)
{
	writes(p);
	if (x->weights)
		writes(w);
	else
		integer(0);
	writes(m);
	writes(v);
	reads(g);
	integer(x->n);
	real(3e-3);
	real(0.9);
	real(0.95);
	real(1e-8);
	real(0.1);
	reads(sched);
	integer(2);             /* updates are made every second step */
	integer(0);
	integer(0);
}

static bool
adamw(void *a, char err[200])
{
	const Adam *x = a;
	long n = x->n, i;
	Arr p = randoms(F32, n, 1), m = randoms(F32, n, 0.01), v = randoms(F32, n, 1e-4), g = randoms(F32, n, 0.03);
	Arr w = array(BF16, n), sched = array(F32, 5);
	double *want[3], *bound[3], lr_t, gi;
	bool ok = true;

	set(sched, 0, 0.7);
	set(sched, 1, (double)(2 * x->step));
	set(sched, 3, 0.4);
	lr_t = 3e-3 * get(sched, 0);
	for (i = 0; i < 3; i++) {
		want[i] = NEWN(mem, double, n);
		bound[i] = NEWN(mem, double, n);
	}
	for (i = 0; i < n; i++) {
		set(v, i, fabs(get(v, i)));
		if (i % 7 == 0)                 /* never had a gradient */
			set(m, i, 0), set(v, i, 0), set(g, i, 0);
		gi = get(g, i) * get(sched, 3);
		want[1][i] = 0.9 * get(m, i) + (1 - 0.9) * gi;
		want[2][i] = 0.95 * get(v, i) + (1 - 0.95) * gi * gi;
		want[0][i] = want[1][i] / (1 - pow(0.9, (double)x->step));
		want[0][i] *= lr_t / (sqrt(want[2][i] / (1 - pow(0.95, (double)x->step))) + 1e-8);
		bound[1][i] = 0x1p-21 * (fabs(get(m, i)) + fabs(gi));
		bound[2][i] = 0x1p-21 * want[2][i] + 1e-44;
		/* of the quotient also what cancelled in m */
		bound[0][i] = 0x1p-21 * (fabs(get(p, i)) + fabs(want[0][i])) +
		              (want[1][i] != 0 ? fabs(want[0][i] / want[1][i]) * bound[1][i] : 0);
		want[0][i] = get(p, i) * (1 - lr_t * 0.1) - want[0][i];
	}
	adamw_args(x, p, w, m, v, g, sched);
	if (!run(x->weights ? "adamw_w" : "adamw", x->blocks, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	ok = within(p, want[0], bound[0], err) && within(m, want[1], bound[1], err) &&
	     within(v, want[2], bound[2], err);
	for (i = 0; ok && x->weights && i < n; i++)
		if (((uint16_t *)w.p)[i] != to_bf16(get(p, i)))
			return snprintf(err, 200, "w[%ld] is not p rounded", i), false;
	set(g, n / 2, NAN);
	adamw_args(x, p, w, m, v, g, sched);
	if (ok && !run(x->weights ? "adamw_w" : "adamw", x->blocks, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	for (i = 0; ok && i < n; i++)
		if (isnan(get(p, i)) != (i == n / 2) || isnan(get(m, i)) != (i == n / 2))
			return snprintf(err, 200, "NaN in g[%ld], and p[%ld] is %g", n / 2, i, get(p, i)), false;
	return ok;
}

/* sums */

typedef struct { long n, parts; } Sums;

static bool
squares(void *a, char err[200])
{
	const Sums *x = a;
	Arr g = randoms(F32, x->n, 1), part = array(F64, x->parts), sched = randoms(F32, 5, 1);
	double sum = 0, norm, clips[3], factor;
	long i;

	for (i = 0; i < x->n; i++)
		sum += get(g, i) * get(g, i);
	norm = sqrt(sum);
	writes(part);
	reads(g);
	integer(x->n);
	if (!run("sqsum", launch_of("sqsum", x->parts, 1).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	clips[0] = 0;
	clips[1] = 0.3 * norm;
	clips[2] = 3 * norm + 1;
	for (i = 0; i < 3; i++) {
		writes(sched);
		reads(part);
		real(clips[i]);
		integer(x->parts);
		if (!run("clip", 1, 0))
			return snprintf(err, 200, "%.199s", fault), false;
		factor = clips[i] > 0 && clips[i] < norm + 1e-6 ? clips[i] / (norm + 1e-6) : 1;
		if (fabs(get(sched, 3) - factor) > 0x1p-23 * factor || fabs(get(sched, 4) - norm) > 0x1p-23 * norm)
			return snprintf(err, 200, "clip %g: %.9g of norm %.9g, want %.9g of %.9g", clips[i],
			                get(sched, 3), get(sched, 4), factor, norm), false;
	}
	return true;
}

static bool
finish(void *a, char err[200])
{
	const Sums *x = a;
	Arr dst = randoms(F32, x->n, 1), part = randoms(F32, x->n * x->parts, 1);
	double *want = NEWN(mem, double, x->n), *bound = NEWN(mem, double, x->n);
	long i, b;

	for (i = 0; i < x->n; i++) {
		want[i] = get(dst, i);
		bound[i] = fabs(want[i]);
		for (b = 0; b < x->parts; b++) {
			want[i] += get(part, b * x->n + i);
			bound[i] += fabs(get(part, b * x->n + i));
		}
		bound[i] *= 0x1p-24 * (double)(x->parts + 2);
	}
	writes(dst);
	reads(part);
	integer(x->n);
	integer(x->parts);
	if (!run("finish", launch_of("finish", x->n, 1).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	return within(dst, want, bound, err);
}

static bool
loss_sum(void *a, char err[200])
{
	const Sums *x = a;
	Arr loss = randoms(F32, x->n, 3), result = array(F64, 1);
	double sum = 0.5, mag = 0.5;
	long i;

	set(result, 0, 0.5);
	for (i = 0; i < x->n; i++) {
		sum += get(loss, i);
		mag += fabs(get(loss, i));
	}
	writes(result);
	reads(loss);
	integer(x->n);
	if (!run("loss_sum", 1, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	snprintf(err, 200, "%.17g, want %.17g", get(result, 0), sum);
	return fabs(get(result, 0) - sum) <= 0x1p-52 * (double)(x->n + 1) * mag;
}

/* numbers per row from its first channels and N of the W columns of the weights, and what
 * rows and weights get */
typedef struct { const char *name; Dt dt; long H, N, C, T, parts, W, W0; } GateCase;

static bool
gate(void *a, char err[200])
{
	const GateCase *q = a;
	long H = q->H, N = q->N, C = q->C, W = q->W, W0 = q->W0, T = q->T, N8 = (N + 7) / 8 * 8, t, h, c, i;
	Arr x = randoms(q->dt, T * C, 1), w = randoms(F32, H * W, 1), g = randoms(F32, T * H, 1);
	Arr y = array(F32, T * H), dx = array(q->dt, T * N8), part = array(F32, q->parts * H * W);
	double *want = NEWN(mem, double, T * (H + N8)), *bound = NEWN(mem, double, T * (H + N8));
	double *dw = NEWN(mem, double, H * W), *mag = NEWN(mem, double, H * W), sum, u;

	for (t = 0; t < T; t++)
		for (h = 0; h < H; h++)
			for (c = 0; c < N; c++) {
				u = get(x, t * C + c) * get(w, h * W + W0 + c);
				want[t * H + h] += u;
				bound[t * H + h] += fabs(u) * 0x1p-20;
				u = get(g, t * H + h) * get(w, h * W + W0 + c);
				want[T * H + t * N8 + c] += u;
				bound[T * H + t * N8 + c] += fabs(u) * 0x1p-20;
				u = get(g, t * H + h) * get(x, t * C + c);
				dw[h * W + W0 + c] += u;
				mag[h * W + W0 + c] += fabs(u);
			}
	writes(y);
	reads(x);
	reads(w);
	integer(T);
	if (!run(q->name, launch_of("gate", T, 1).items, 0) || !within(y, want, bound, err))
		return *fault ? snprintf(err, 200, "%.199s", fault), false : false;
	writes(dx);
	writes(part);
	reads(g);
	reads(x);
	reads(w);
	integer(T);
	if (!run(arena_printf(mem, "%s_bwd", q->name), launch_of("gate_bwd", q->parts, 1).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	for (i = 0; i < H * W; i++) {
		for (sum = 0, t = 0; t < q->parts; t++)
			sum += get(part, t * H * W + i);
		snprintf(err, 200, "weight %ld: %.9g, want %.9g", i, sum, dw[i]);
		if (!(fabs(sum - dw[i]) <= mag[i] * 0x1p-20))
			return false;
	}
	return within(dx, want + T * H, bound + T * H, err);
}

static const GateCase gates[] = {
	{ "gate_one", F32, 1, 5, 16, 300, 3, 5, 0 }, { "gate_six", BF16, 6, 12, 64, 1000, 9, 12, 0 },
	{ "gate_part", BF16, 3, 6, 64, 500, 5, 13, 5 }, { "gate_many", BF16, 70, 20, 32, 130, 4, 20, 0 },
};

static void
gate_kernels(void)
{
	size_t i;

	for (i = 0; i < sizeof gates / sizeof *gates; i++) {
		const GateCase *q = &gates[i];
		const char *dt = q->dt == BF16 ? "bf16" : "f32";
		const char *holes = arena_printf(mem, "DT=%s H=%ld N=%ld C=%ld WN=%ld W0=%ld", dt, q->H, q->N,
		                                 q->C, q->W, q->W0);

		kernel(q->name, "gate", holes, 1);
		kernel(arena_printf(mem, "%s_bwd", q->name), "gate_bwd", arena_printf(mem, "DTG=%s %s", dt, holes), 1);
	}
}

/* a matrix times a learned scalar */
static bool
scaled(void *a, char err[200])
{
	const Sums *x = a;
	Arr w = randoms(F32, x->n, 1), s = randoms(F32, 1, 1), to = array(BF16, x->n);
	double *want = NEWN(mem, double, x->n), *bound = NEWN(mem, double, x->n);
	long i;

	for (i = 0; i < x->n; i++) {
		want[i] = get(s, 0) * get(w, i);
		bound[i] = fabs(want[i]) * 0x1p-24;
	}
	writes(to);
	reads(w);
	reads(s);
	integer(0);
	integer(x->n);
	if (!run("scaled", launch_of("scaled", x->n, 1).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	return within(to, want, bound, err);
}

/* what the matrix and two scalars get */
static bool
scaled_bwd(void *a, char err[200])
{
	const Sums *x = a;
	Arr dw = randoms(F32, x->n, 1), part = array(F32, x->parts), g = randoms(F32, x->n, 1);
	Arr w = randoms(F32, x->n, 1), s = randoms(F32, 1, 1), r = randoms(F32, 1, 1);
	double *want = NEWN(mem, double, x->n), *bound = NEWN(mem, double, x->n), sum = 0, mag = 0;
	double factor = get(s, 0) * get(r, 0), got = 0;
	long i;

	for (i = 0; i < x->n; i++) {
		want[i] = get(dw, i) + factor * get(g, i);
		bound[i] = (fabs(get(dw, i)) + 2 * fabs(factor * get(g, i))) * 0x1p-23;
		sum += get(g, i) * get(w, i);
		mag += fabs(get(g, i) * get(w, i));
	}
	writes(dw);
	writes(part);
	reads(g);
	reads(w);
	reads(s);
	reads(r);
	integer(x->n);
	if (!run("scaled_bwd", launch_of("scaled_bwd", x->parts, 1).items, 0))
		return snprintf(err, 200, "%.199s", fault), false;
	for (i = 0; i < x->parts; i++)
		got += get(part, i);
	snprintf(err, 200, "sum %.9g, want %.9g", got, sum);
	return fabs(got - sum) <= mag * 0x1p-23 && within(dw, want, bound, err);
}

static void
sums(void)
{
	static const Adam adam[] = {
		{ true, 4099, 1, 3 }, { false, 37, 20000, 1 }, { true, 3, 7, 1 }, { false, 4096, 2, 5 },
	};
	static const Sums sizes[] = { { 1, 4 }, { 1003, 9 }, { 16384, 3 }, { 16381, 2 }, { 40001, 2 } };
	static const Sums columns[] = { { 1, 4 }, { 33, 1056 }, { 100, 24 }, { 64, 64 }, { 31, 36 } };
	size_t i;

	for (i = 0; i < sizeof gates / sizeof *gates; i++)
		check_case(arena_printf(mem, "gate %s", gates[i].name), gate, (void *)&gates[i]);
	for (i = 0; i < sizeof adam / sizeof *adam; i++)
		check_case(arena_printf(mem, "adamw n %ld step %ld%s", adam[i].n, adam[i].step,
		           adam[i].weights ? ", bf16 copy" : ""), adamw, (void *)&adam[i]);
	for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		check_case(arena_printf(mem, "sqsum, clip n %ld parts %ld", sizes[i].n, sizes[i].parts),
		           squares, (void *)&sizes[i]);
		check_case(arena_printf(mem, "scaled n %ld", sizes[i].n), scaled, (void *)&sizes[i]);
		check_case(arena_printf(mem, "scaled_bwd n %ld parts %ld", sizes[i].n, sizes[i].parts),
		           scaled_bwd, (void *)&sizes[i]);
		check_case(arena_printf(mem, "loss_sum n %ld", sizes[i].n), loss_sum, (void *)&sizes[i]);
		check_case(arena_printf(mem, "finish n %ld parts %ld", columns[i].n, columns[i].parts),
		           finish, (void *)&columns[i]);
	}
}

static void
kernels(void)
{
	const char *dt;
	size_t i;

	for (i = 0; i < NRows; i++) {
		const Rows *c = &rows[i];

		dt = c->dt == BF16 ? "bf16" : "f32";
		kernel(arena_printf(mem, "gather_%s", c->name), "gather",
		       arena_printf(mem, "DT=%s C=%ld", dt, c->C), c->C);
		kernel(arena_printf(mem, "signs_%s", c->name), "signs",
		       arena_printf(mem, "DT=%s DTX=%s C=%ld N=7", dt, dt, c->C), c->C);
		kernel(arena_printf(mem, "scatter_%s", c->name), "scatter",
		       arena_printf(mem, "DT=%s C=%ld", dt, c->C), c->C);
		if (c->dt == F32 || c->C != 13)
			kernel(arena_printf(mem, "finish_C%ld", c->C), "scatter_finish",
			       arena_printf(mem, "C=%ld", c->C), c->C);
	}
	for (i = 0; i < NCes; i++) {
		const Ce *c = &ces[i];
		const char *cap = arena_printf(mem, "CAP=%d CAPV=%.1ff SHIFT=%.1ff TEMP=%.1ff", c->cap,
		                               c->capv, c->shift, c->temp);

		kernel(arena_printf(mem, "ce_%s", c->name), "ce",
		       arena_printf(mem, "DTG=%s V=%ld VP=%ld %s", c->dt == BF16 ? "bf16" : "f32",
		                    c->V, c->VP, cap), c->VP);
		if (c->VP < 3000)
			kernel(arena_printf(mem, "softcap_%s", c->name), "softcap",
			       arena_printf(mem, "VP=%ld %s", c->VP, cap), c->VP);
	}
	kernel("adamw", "adamw", "WEIGHTS=0 HELD=0 TIED=0", 1);
	kernel("adamw_w", "adamw", "WEIGHTS=1 HELD=0 TIED=0", 1);
	kernel("sqsum", "sqsum", "", 1);
	kernel("clip", "clip", "", 1);
	kernel("finish", "finish", "", 1);
	kernel("loss_sum", "loss_sum", "", 1);
	gate_kernels();
	kernel("scaled", "scaled", "DT=bf16 DTW=f32 S=s0[0]", 1);
	kernel("scaled_bwd", "scaled_bwd", "DTW=f32 S=s0[0]*s1[0]", 1);
}

int
main(void)
{
	const char *missing = simt_missing();
	int i;

	if (missing) {
		printf("skip templates of cuda: %s\n", missing);
		return 0;
	}
	mem = arena_new("test");
	kernels();
	compile();
	for (i = 0; i < NRows; i++)
		check_case(arena_printf(mem, "gather %s", rows[i].name), gather, (void *)&rows[i]);
	for (i = 0; i < NRows; i++)
		check_case(arena_printf(mem, "signs %s", rows[i].name), signs, (void *)&rows[i]);
	scatters();
	heads();
	sums();
	arena_free(mem);
	return summary();
}
