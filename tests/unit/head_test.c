/* The head's templates for several targets and FP8, as C and as CUDA text in simt with all
 * its checks, against docs/spec.md in double.
 *
 * A launch runs twice, its items or its threads and blocks in two orders, from the same
 * memory: equal bits.  How close to the reference:
 *   gradients   1e-5 of the row's norm, which is what 2^-22 in an exponential makes of a
 *               logit of 23; a target's own 3e-5 of itself, however certain it is
 *   losses      2^-21 of the magnitudes that are added; 1e-5 of what exponentials are of it
 *   bf16        one rounding more, 2^-8 of the element
 *   FP8         the rounding of some number that is so near; e4m3 exactly */
#define _GNU_SOURCE
#include "test.h"
#include "../../gen/fuse.h"
#include "../../gen/interp.h"
#include "../../gen/templates.h"
#include "../../runtime/simt.h"
#include "../gpu/intrinsics.h"

#include <dlfcn.h>

/* arrays */

typedef struct { Dt dt; long n; void *p; } Arr;

static double
fp8_number(uint8_t u, int nexp)
{
	int most = nexp == 4 ? 0x7e : 0x7b;

	return (u & 127) > most ? NAN : (u & 128 ? -1 : 1) * fp8_value(u & 127, nexp);
}

static double
get(Arr a, long i)
{
	switch ((int)a.dt) {
	case BF16:
		return bits_float((uint32_t)((uint16_t *)a.p)[i] << 16);
	case E4M3:
		return fp8_number(((uint8_t *)a.p)[i], 4);
	case E5M2:
		return fp8_number(((uint8_t *)a.p)[i], 5);
	case I32:
		return ((int32_t *)a.p)[i];
	default:
		return ((float *)a.p)[i];
	}
}

static void
set(Arr a, long i, double x)
{
	if (a.dt == BF16)
		((uint16_t *)a.p)[i] = isnan(x) ? 0x7fff : (uint16_t)(float_bits((float)round_bf16(x)) >> 16);
	else if (a.dt == I32)
		((int32_t *)a.p)[i] = (int32_t)x;
	else
		((float *)a.p)[i] = (float)x;
}

/* every byte 0xff: no number, so that what is not written shows */
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

/* nearest finite number of a format to x, of two the even one */
static double
nearest_fp8(double x, int nexp)
{
	int most = nexp == 4 ? 0x7e : 0x7b, lo = 0, hi = most, mid;
	double a = fabs(x), below, above;

	if (isnan(x) || a >= fp8_value(most, nexp))
		return isnan(x) ? x : copysign(fp8_value(most, nexp), x);
	while (hi - lo > 1) {
		mid = (lo + hi) / 2;
		*(fp8_value(mid, nexp) <= a ? &lo : &hi) = mid;
	}
	below = a - fp8_value(lo, nexp);
	above = fp8_value(hi, nexp) - a;
	return copysign(fp8_value(below < above || (below == above && lo % 2 == 0) ? lo : hi, nexp), x);
}

/* kernels */

enum { MaxKernels = 40 };

static struct {
	const char *name, *tmpl, *holes;
	int threads;
	long width;
	SimtKernel *k[2];
	HcKernel *cpu;
} kern[MaxKernels];
static int nkern;
static Simt *simt[2];
static char dir[] = "/tmp/hcgen-head-XXXXXX";

static void
filled(const char *side, const char *tmpl, const char *name, const char *holes, int threads, Buf *b)
{
	const char *p = template_find(arena_printf(mem, "%s/%s", side, tmpl)), *q, *end, *v;
	int n;

	for (; (q = strchr(p, '@')); p = end + 1) {
		buf_write(b, p, (size_t)(q - p));
		end = strchr(++q, '@');
		n = (int)(end - q);
		v = strstr(holes, arena_printf(mem, " %.*s=", n, q));
		if (n == 6 && strncmp(q, "KERNEL", 6) == 0)
			buf_puts(b, name);
		else if (n == 7 && strncmp(q, "THREADS", 7) == 0)
			buf_printf(b, "%d", threads);
		else if (v)
			buf_printf(b, "%.*s", (int)strcspn(v + n + 2, " "), v + n + 2);
		else
			die("%s: hole %.*s has no value", tmpl, n, q);
	}
	buf_puts(b, p);
}

static Step
launch_of(const char *tmpl, long n, long width)
{
	Plan p = { .target = TO_CUDA };
	Step s = { .name = tmpl };

	step_launch(&p, &s, 0, n, width);
	return s;
}

/* holes: " NAME=VALUE …", a blank before each */
static void
kernel(const char *name, const char *tmpl, const char *holes, long width)
{
	kern[nkern].name = name;
	kern[nkern].tmpl = tmpl;
	kern[nkern].holes = holes;
	kern[nkern].width = width;
	kern[nkern++].threads = launch_of(tmpl, 1, width).threads;
}

static void
compile_cpu(void)
{
	const char *cc = getenv("CC") ? getenv("CC") : "cc", *path;
	Buf text = {0}, make = {0};
	FILE *f;
	void *so;
	int i;

	if (!mkdtemp(dir))
		die("cannot make a directory");
	for (i = 0; i < nkern; i++) {
		path = arena_printf(mem, "%s/%s", dir, kern[i].name);
		text.len = 0;
		buf_printf(&text, "%s%s", template_find("cpu/prelude"), template_find("cpu/fp8"));
		filled("cpu", kern[i].tmpl, kern[i].name, kern[i].holes, 0, &text);
		f = fopen(arena_printf(mem, "%s.c", path), "w");
		if (!f || fwrite(text.s, 1, text.len, f) != text.len || fclose(f))
			die("cannot write %s.c", path);
		buf_printf(&make, "%s -O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp-simd -std=gnu11 -Wall -Wextra "
		           "-Werror -Wno-psabi -Wno-maybe-uninitialized -fPIC -shared -o %s.so %s.c -lm || exit 1\n", cc, path, path);
	}
	if (system(make.s))
		die("a kernel does not compile");
	for (i = 0; i < nkern; i++) {
		so = dlopen(arena_printf(mem, "%s/%s.so", dir, kern[i].name), RTLD_NOW);
		if (!so || !(*(void **)&kern[i].cpu = dlsym(so, kern[i].name)))
			die("%s", dlerror());
	}
	system(arena_printf(mem, "rm -rf %s", dir));
}

static void
compile_simt(void)
{
	SimtSource src[MaxKernels];
	SimtKernel *out[MaxKernels];
	SimtOpts o = { .check = true };
	int i, j;

	for (i = 0; i < nkern; i++) {
		Buf b = {0};

		for (j = 0; j < ntemplates; j++)
			if (strncmp(templates[j].name, "cuda/prelude_", 13) == 0)
				buf_puts(&b, templates[j].text);
		filled("cuda", kern[i].tmpl, kern[i].name, kern[i].holes, kern[i].threads, &b);
		src[i] = (SimtSource){ kern[i].name, arena_printf(mem, "%s.cu", kern[i].name), b.s };
	}
	for (j = 0; j < 2; j++) {
		o.seed = (unsigned long)j * 77;
		simt[j] = simt_new(&o);
		simt_kernels(simt[j], nkern, src, out);
		for (i = 0; i < nkern; i++)
			kern[i].k[j] = out[i];
	}
}

/* launches */

static struct { Arr a; bool writes; void *first; } range[16];
static HcArg arg[16];
static int nrange, narg;

static void
pointer(Arr a, bool writes)
{
	range[nrange].a = a;
	range[nrange++].writes = writes;
	arg[narg++].p = a.p;
}

static void
integer(long i)
{
	arg[narg++].i = i;
}

static size_t
nbytes_of(int i)
{
	return (size_t)range[i].a.n * (size_t)dt_size(range[i].a.dt);
}

static bool
one_run(int k, int turn, bool cuda, long grid, size_t smem, char err[200])
{
	SimtFault f;
	long i;
	int j;

	if (!cuda) {
		for (i = 0; i < 64; i++)
			kern[k].cpu(arg, turn ? 63 - i : i);
		return true;
	}
	simt_memory_clear(simt[turn]);
	for (j = 0; j < nrange; j++)
		simt_memory(simt[turn], "memory", range[j].a.p, nbytes_of(j), range[j].writes);
	if (simt_launch(simt[turn], kern[k].k[turn], grid, kern[k].threads, smem, narg, arg, &f, NULL))
		return true;
	return snprintf(err, 200, "%.199s", f.text), false;
}

/* two runs from memory of 0xff */
static bool
run(const char *name, bool cuda, long grid, size_t smem, char err[200])
{
	bool ok = true;
	int i, j, k;

	for (k = 0; k < nkern && strcmp(kern[k].name, name) != 0; k++)
		;
	if (k == nkern)
		die("the test has no kernel %s", name);
	for (j = 0; j < 2 && ok; j++) {
		for (i = 0; i < nrange; i++)
			if (range[i].writes)
				memset(range[i].a.p, 0xff, nbytes_of(i));
		ok = one_run(k, j, cuda, grid, smem, err);
		for (i = 0; i < nrange && ok; i++) {
			if (!range[i].writes)
				continue;
			if (!j) {
				range[i].first = malloc(nbytes_of(i));
				memcpy(range[i].first, range[i].a.p, nbytes_of(i));
			} else if (memcmp(range[i].first, range[i].a.p, nbytes_of(i)) != 0) {
				ok = false;
				snprintf(err, 200, "argument %d depends on the order of items or threads", i);
			}
		}
	}
	for (i = 0; i < nrange; i++) {
		free(range[i].first);
		range[i].first = NULL;
	}
	nrange = narg = 0;
	return ok;
}

/* loss and gradients */

typedef struct {
	const char *name;
	Dt dtl, dtg;
	long V, VP;
	int targets, cap;
	double capv, shift, temp;
	float w[MaxTargets];
} Ce;

static const Ce ces[] = {
	{ "one", F32, F32, 50, 64, 1, 1, 15, 0, 1, { 0.5f } },
	{ "two", F32, F32, 257, 257, 2, 0, 1, 0, 1, { 1, 0.5f } },
	{ "three", F32, BF16, 2500, 2560, 3, 2, 23, 5, 7.5, { 1, 0.5f, 0.25f } },
	{ "four", F32, F32, 3, 64, 4, 0, 1, 0, 1, { 1, 0.5f, 0.25f, 0.125f } },
	{ "zero", F32, F32, 50, 52, 2, 0, 1, 0, 1, { 1, 0 } },
	{ "fp8", BF16, E5M2, 257, 320, 3, 1, 15, 0, 1, { 1, 0.5f, 0.25f } },
	{ "fp8_one", BF16, E5M2, 256, 256, 1, 2, 23, 5, 7.5, { 1 } },
	{ "odd", BF16, F32, 41, 43, 4, 2, 23, 5, 7.5, { 1, 0.25f, 0.5f, 1 } },
	{ "gpt", F32, BF16, 50257, 50304, 3, 2, 23, 5, 7.5, { 1, 0.5f, 0.25f } },
	{ "gpt_fp8", BF16, E5M2, 50257, 50304, 3, 2, 23, 5, 7.5, { 1, 0.5f, 0.25f } },
	{ "large", BF16, E5M2, 60001, 60032, 2, 2, 23, 5, 7.5, { 1, 0.5f } },
};
enum { NCes = sizeof ces / sizeof *ces };

static const double grad_by = 448 / 0.75;

static void
ce_kernel(const Ce *c)
{
	kernel(arena_printf(mem, "ce_%s", c->name), "ce_targets",
	       arena_printf(mem, " DTL=%s DTG=%s V=%ld VP=%ld TARGETS=%d K=%s CAP=%d CAPV=%.1ff SHIFT=%.1ff TEMP=%.1ff ",
	                    dt_name(c->dtl), dt_name(c->dtg), c->V, c->VP, c->targets,
	                    c->dtg == E5M2 ? arena_printf(mem, "%.8ef", (double)(float)grad_by) : "scale[0]", c->cap, c->capv,
	                    c->shift, c->temp), c->VP);
}

static double
softcap_of(const Ce *c, double l, double *dz)
{
	double z;

	*dz = 1;
	if (c->cap == 0)
		return l;
	if (c->cap == 1) {
		*dz = 1 / (cosh(l / c->capv) * cosh(l / c->capv));
		return c->capv * tanh(l / c->capv);
	}
	z = (l + c->shift) / c->temp;
	*dz = c->capv / c->temp / ((1 + exp(-z)) * (1 + exp(z)));
	return c->capv / (1 + exp(-z));
}

typedef struct {
	const Ce *c;
	bool cuda;
	double std;
	long n, row0, seq, grid;
} CeRun;

static long
targets_of_row(const CeRun *x, long r)
{
	long left = x->seq - (x->row0 + r) % x->seq;

	return left < x->c->targets ? left : x->c->targets;
}

/* Every fifth row's first target is far above or far below the rest; every third row has one
 * target several times.  Targets end where the last row's do, so that no other is read. */
static Arr
ce_inputs(const CeRun *x, Arr logits)
{
	const Ce *c = x->c;
	long r, v, n = x->n - 1 + targets_of_row(x, x->n - 1);
	Arr t = array(I32, n);

	for (r = 0; r < n; r++)
		set(t, r, r % 3 && r ? get(t, r - 1) : below((int)c->V));
	for (r = 0; r < x->n; r++) {
		if (r % 5 == 0)
			set(logits, r * c->VP + (long)get(t, r), (r % 2 ? -1 : 1) * (r % 4 < 2 ? 40 : 90) * x->std);
		for (v = c->V; v < c->VP; v++)
			set(logits, r * c->VP + v, r % 2 ? 1e30 : NAN);
	}
	return t;
}

/* The row's loss, and the magnitudes that make it; g: its gradient, times the factor.  What
 * a target leaves of its weight is summed without itself. */
static double
ce_row(const CeRun *x, long r, Arr logits, Arr targets, double *g, double *mag)
{
	const Ce *c = x->c;
	double *e = NEWN(mem, double, c->V), *w = NEWN(mem, double, c->V), *dz = NEWN(mem, double, c->V);
	double top = -INFINITY, all = 0, W = 0, loss = 0, z, rest, k = c->dtg == E5M2 ? (float)grad_by : 1. / 4096;
	long v, u, t;

	for (v = 0; v < c->V; v++)
		top = fmax(top, softcap_of(c, get(logits, r * c->VP + v), &z));
	for (v = 0; v < c->V; v++)
		all += e[v] = exp(softcap_of(c, get(logits, r * c->VP + v), &dz[v]) - top);
	for (t = 0; t < targets_of_row(x, r); t++) {
		v = (long)get(targets, r + t);
		w[v] += c->w[t];
		W += c->w[t];
		for (rest = 0, u = 0; u < c->V; u++)
			rest += u == v ? 0 : e[u];
		z = e[v] == 1 ? log1p(rest) : log(all) - log(e[v]);
		if (!(e[v] > 0))
			z = log(all) + top - softcap_of(c, get(logits, r * c->VP + v), &rest);
		loss += c->w[t] * z;
		*mag += c->w[t] * z;
	}
	for (v = 0; v < c->V; v++) {
		for (rest = 0, u = 0; w[v] != 0 && u < c->V; u++)
			rest += u == v ? 0 : e[u];
		g[v] = k * dz[v] * (w[v] != 0 ? (W - w[v]) * e[v] - w[v] * rest : W * e[v]) / all;
	}
	return loss;
}

/* got is what the type makes of a number within d of want */
static bool
rounds_to(Arr a, long i, double want, double d)
{
	double got = get(a, i);

	if (a.dt == E5M2)
		return got >= nearest_fp8(want - d, 5) && got <= nearest_fp8(want + d, 5);
	return fabs(got - want) <= d + (a.dt == BF16 ? fabs(want) / 256 : 0);
}

static bool
ce_row_agrees(const CeRun *x, long r, Arr loss, Arr dl, Arr logits, Arr targets, char err[200])
{
	const Ce *c = x->c;
	double *g = NEWN(mem, double, c->VP), norm, mag = 0, d, tiny;
	double want = ce_row(x, r, logits, targets, g, &mag);
	long v, t;
	bool own;

	/* exponentials below 2^-126 are 0 */
	tiny = 0x1p-100 * (c->dtg == E5M2 ? grad_by : 1);
	if (!(fabs(get(loss, r) - want) <= 1e-5 * fmin(want, 1) + 0x1p-21 * mag + 0x1p-100))
		return snprintf(err, 200, "loss of row %ld: %.9g, want %.9g", r, get(loss, r), want), false;
	norm = norm2(g, c->VP);
	for (v = 0; v < c->VP; v++) {
		for (own = false, t = 0; t < targets_of_row(x, r); t++)
			own |= (long)get(targets, r + t) == v;
		d = v >= c->V ? 0 : own ? 3e-5 * fabs(g[v]) + tiny : 1e-5 * norm + tiny;
		/* what others of a row's targets leave of each other cancels */
		if (own && c->targets > 1)
			d += 2e-7 * norm;
		if (!rounds_to(dl, r * c->VP + v, g[v], d))
			return snprintf(err, 200, "row %ld column %ld%s: %.9g, want %.9g", r, v, own ? " (target)" : "",
			                get(dl, r * c->VP + v), g[v]), false;
	}
	return true;
}

static bool
ce(void *a, char err[200])
{
	const CeRun *x = a;
	const Ce *c = x->c;
	Arr logits = randoms(c->dtl, x->n * c->VP, x->std), targets = ce_inputs(x, logits);
	Arr loss = array(F32, x->n), dl = array(c->dtg, x->n * c->VP), scale = array(F32, 1), w = array(F32, c->targets);
	long r;
	int k;

	set(scale, 0, 1. / 4096);
	for (k = 0; k < c->targets; k++)
		set(w, k, c->w[k]);
	pointer(loss, true);
	pointer(dl, true);
	pointer(logits, false);
	pointer(targets, false);
	pointer(scale, false);
	integer(x->n);
	pointer(w, false);
	integer(x->row0);
	integer(x->seq);
	if (!run(arena_printf(mem, "ce_%s", c->name), x->cuda, x->grid, c->VP <= 56320 ? (size_t)c->VP * 4 : 0, err))
		return false;
	for (r = 0; r < x->n; r++)
		if (!ce_row_agrees(x, r, loss, dl, logits, targets, err))
			return false;
	return true;
}

static void
heads(bool cuda)
{
	const char *on = cuda ? "simt" : "cpu";
	CeRun x;
	int i;

	for (i = 0; i < NCes; i++) {
		/* sequences of 7, that do not begin with the first row */
		x = (CeRun){ &ces[i], cuda, 1, ces[i].VP > 50000 ? 3 : ces[i].VP > 2000 ? 9 : 23, 5, 7, 0 };
		x.grid = x.n;
		check_case(arena_printf(mem, "ce_targets %s %s", ces[i].name, on), ce, &x);
		x.grid = 1 + x.n / 4;
		x.row0 = 0;
		x.seq = ces[i].VP > 50000 ? 3 : 23;
		x.std = 50;
		check_case(arena_printf(mem, "ce_targets %s far logits, fewer blocks %s", ces[i].name, on), ce, &x);
		if (ces[i].VP > 1000)
			continue;
		x.row0 = 46;
		x.std = 0.01;
		check_case(arena_printf(mem, "ce_targets %s near logits, further on %s", ces[i].name, on), ce, &x);
	}
}

/* FP8 and its transposes */

typedef struct { const char *name; bool cuda; Dt dt; bool round; long n, C, ld; double by; } Turn;

static const Turn turns[] = {
	{ "f32", false, F32, false, 144, 208, 144, 4.48 }, { "bf16", false, BF16, false, 112, 64, 128, 280 },
	{ "f32_bf16", false, F32, true, 48, 768, 48, 4.48 }, { "small", false, F32, false, 16, 16, 32, 280 },
};
enum { NTurns = sizeof turns / sizeof *turns };

/* floats of every size that an e4m3 may come of, midpoints among them, and others */
static void
fill_wide(Arr a, double by)
{
	long i;

	for (i = 0; i < a.n; i++) {
		set(a, i, normal() * ldexp(1, below(20) - 12) / by);
		if (i % 7 == 0)
			set(a, i, (fp8_value(below(127), 4) + fp8_value(below(127), 4)) / 2 / by);
		if (i % 101 == 0)
			set(a, i, i % 2 ? INFINITY : -1e30);
	}
}

static bool
turned(Arr out, Arr to, const Turn *q, char err[200])
{
	long i;

	for (i = 0; i < q->C * q->ld; i++)
		if (((uint8_t *)to.p)[i] != (i % q->ld < q->n ? ((uint8_t *)out.p)[i % q->ld * q->C + i / q->ld] : 0xff))
			return snprintf(err, 200, "transpose at %ld", i), false;
	return true;
}

static bool
quantise(void *a, char err[200])
{
	const Turn *q = a;
	Arr x = array(q->dt, q->n * q->C), out = array(E4M3, x.n), to = array(E4M3, q->C * q->ld);
	double want;
	long i, tiles = (q->n + 127) / 128 * ((q->C + 127) / 128);

	fill_wide(x, q->by);
	pointer(out, true);
	pointer(to, true);
	pointer(x, false);
	integer(q->n);
	integer(q->ld);
	if (!run(arena_printf(mem, "quantise_%s", q->name), q->cuda, tiles, 0, err))
		return false;
	for (i = 0; i < x.n; i++) {
		want = get(x, i);
		want = nearest_fp8((float)(q->round && isfinite(want) ? round_bf16(want) : want) * (float)q->by, 4);
		if (get(out, i) != want)
			return snprintf(err, 200, "at %ld: %.9g is %g, not %g", i, get(x, i), get(out, i), want), false;
	}
	return turned(out, to, q, err);
}

static bool
transpose(void *a, char err[200])
{
	const Turn *q = a;
	Arr x = array(E5M2, q->n * q->C), to = array(E5M2, q->C * q->ld);
	long i, tiles = (q->n + 127) / 128 * ((q->C + 127) / 128);

	for (i = 0; i < x.n; i++)
		((uint8_t *)x.p)[i] = (uint8_t)below(256);
	pointer(to, true);
	pointer(x, false);
	integer(q->n);
	integer(q->ld);
	return run(arena_printf(mem, "transpose_%s", q->name), q->cuda, tiles, 0, err) && turned(x, to, q, err);
}

/* the interpreter */

typedef struct { const Model *m; const Inputs *in; const double *y, *w; double *l; } Naive;

/* e4m3 of y or of the matrix, as docs/spec.md has it, and not divided back */
static double
e4m3_of(double x, double becomes_448, bool bf16)
{
	return nearest_fp8((double)((float)(bf16 ? round_bf16(x) : x) * (float)(448 / becomes_448)), 4);
}

static double
fp8_y(const Naive *n, long t, int c)
{
	return e4m3_of(n->y[t * n->m->C + c], n->m->spec->fp8_x, true);
}

static double
fp8_w(const Naive *n, long v, int c)
{
	return e4m3_of(n->w[v * n->m->C + c], n->m->spec->fp8_w, false);
}

/* logits, then G, by the letter of docs/spec.md; returns the row's loss */
static double
naive_row(const Naive *n, long t)
{
	const Model *m = n->m;
	const Spec *s = m->spec;
	double *l = n->l + t * m->Vp, all = 0, loss = 0, g;
	int v, c, k, left = m->seq - (int)(t % m->seq);

	for (v = 0; v < m->V; v++) {
		for (l[v] = 0, c = 0; c < m->C; c++)
			l[v] += fp8_y(n, t, c) * fp8_w(n, v, c);
		l[v] = round_bf16(l[v] * (s->fp8_x / 448 * (s->fp8_w / 448)));
		all += exp(l[v]);
	}
	for (k = 0; k < m->ntarget && k < left; k++)
		loss += n->in->weight[k] * (log(all) - l[n->in->targets[t + k]]);
	for (v = 0; v < m->V; v++) {
		for (g = 0, k = 0; k < m->ntarget && k < left; k++)
			g += n->in->weight[k] * (exp(l[v]) / all - (v == n->in->targets[t + k]));
		l[v] = nearest_fp8(g * (float)(448 / s->fp8_grad), 5);
	}
	return loss;
}

static bool
interpreter(void *a, char err[200])
{
	const Model *m = model_of("fp8", "model: {layers: 1, width: 16, heads: 2, vocab: 29, vocab_multiple: 16, "
	        "init: {out: random}}\ntrain: {tokens_per_step: 32, seq_len: 8, stages: {a: {targets: [1, 0.5, 0.25]}}}\n"
	        "numerics: {head: fp8, fp8: {x: 12, w: 3, grad: 2}}\n");
	Graph *g = train_graph(m, m->T);
	Inputs in = inputs_random(m, m->T);
	Interp *I = interp_graph(g, &in, NULL);
	Naive n = { m, &in, NULL, in.param[m->head], NEWN(mem, double, m->T * m->Vp) };
	double *dw = NEWN(mem, double, m->Vp * m->C), *dy = NEWN(mem, double, m->T * m->C), loss = 0, d, e;
	const double *got = NULL;
	int i, v, c;
	long t;

	(void)a;
	for (i = 0; i < g->n; i++) {
		if (g->v[i].op == OP_HEAD)
			n.y = I->x[g->v[i].arg[0]];
		if (g->v[i].op == OP_OUT && g->v[g->v[i].arg[0]].op == OP_HEAD && g->v[i].attr[0] == 1)
			got = I->x[i];
	}
	for (t = 0; t < m->T; t++)
		loss += naive_row(&n, t);
	for (v = 0; v < m->V; v++)
		for (c = 0; c < m->C; c++) {
			for (d = 0, t = 0; t < m->T; t++)
				d += n.l[t * m->Vp + v] * fp8_y(&n, t, c);
			dw[v * m->C + c] = d * (m->spec->fp8_grad / 448) * (m->spec->fp8_x / 448) * in.scale;
		}
	for (t = 0; t < m->T; t++)
		for (c = 0; c < m->C; c++) {
			for (d = 0, v = 0; v < m->V; v++)
				d += n.l[t * m->Vp + v] * fp8_w(&n, v, c);
			dy[t * m->C + c] = d * (m->spec->fp8_grad / 448) * (m->spec->fp8_w / 448) * in.scale;
		}
	e = distance(got, dy, m->T * m->C, norm2(dy, m->T * m->C));
	d = distance(I->grad[m->head], dw, (long)m->Vp * m->C, norm2(dw, (long)m->Vp * m->C));
	snprintf(err, 200, "loss %.12g, want %.12g; gradient of the head off by %.3g, of y by %.3g",
	         interp_loss(I), loss, d, e);
	return fabs(interp_loss(I) - loss) <= 1e-12 * loss && d <= 1e-12 && e <= 1e-12;
}

/* every number of both formats, the midpoints between them, and what is next to those */
static bool
rounding(void *a, char err[200])
{
	int nexp, code, k;
	double at, x;

	(void)a;
	for (nexp = 4; nexp <= 5; nexp++)
		for (code = 0; code <= (nexp == 4 ? 0x7f : 0x7c); code++)
			for (k = 0; k < 8; k++) {
				at = fp8_value(code, nexp);
				x = (at + fp8_value(code + k / 2 % 2, nexp)) / 2;
				x = k < 4 ? x : k % 2 ? nextafter(x, 1e9) : nextafter(x, 0);
				x = k % 2 ? -x : x;
				if (round_fp8(nexp == 4 ? E4M3 : E5M2, x) == nearest_fp8(x, nexp))
					continue;
				return snprintf(err, 200, "%.17g with %d bits of exponent becomes %g, not %g", x, nexp,
				                round_fp8(nexp == 4 ? E4M3 : E5M2, x), nearest_fp8(x, nexp)), false;
			}
	return isnan(round_fp8(E4M3, NAN)) && round_fp8(E5M2, -INFINITY) == -57344;
}

static void
turn_kernels(void)
{
	const Turn *q;

	for (q = turns; q < turns + NTurns; q++) {
		kernel(arena_printf(mem, "quantise_%s", q->name), "quantise",
		       arena_printf(mem, " DT=%s C=%ld BY=%.8ef X=%s ", dt_name(q->dt), q->C, (double)(float)q->by,
		                    q->round ? "F32(BF16(v))" : "v"), 1);
		kernel(arena_printf(mem, "transpose_%s", q->name), "transpose8", arena_printf(mem, " C=%ld ", q->C), 1);
	}
}

static void
all_on(bool cuda)
{
	Turn q;
	int i;

	heads(cuda);
	for (i = 0; i < NTurns; i++) {
		q = turns[i];
		q.cuda = cuda;
		check_case(arena_printf(mem, "quantise %s %s", q.name, cuda ? "simt" : "cpu"), quantise, &q);
		check_case(arena_printf(mem, "transpose8 %s %s", q.name, cuda ? "simt" : "cpu"), transpose, &q);
	}
}

int
main(void)
{
	const char *missing = simt_missing();
	int i;

	mem = arena_new("test");
	for (i = 0; i < NCes; i++)
		ce_kernel(&ces[i]);
	turn_kernels();
	check_case("round_fp8", rounding, NULL);
	check_case("the interpreter's FP8 head", interpreter, NULL);
	compile_cpu();
	all_on(false);
	if (missing) {
		printf("skip the head's templates of cuda: %s\n", missing);
	} else {
		compile_simt();
		all_on(true);
	}
	arena_free(mem);
	return summary();
}
