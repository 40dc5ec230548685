/* lower*.c, emit.c, tail.c: every row kernel of a plan as text, compiled, called
 * on rows of its own, against the interpreter on the same rows in double.
 *
 * The graphs by hand have what no spec reaches: shifts, odd slices, partial
 * rotations, values per head, norms of norms.  For each, every kernel of the
 * training plan runs: the gradient's too.  T is 1, 5 and 67: below, near and
 * beyond the 64 blocks of rows, the last of 67 in a sequence that is cut short.
 *
 * Around every array lie guards of NaN: what is read beyond it shows in the
 * result, what is written beyond it in the guard; results are NaN before.
 * Bounds: 1e-5 of the norm of the result, of sums that cancel of the summed
 * magnitudes (the design's for f32); where storage is bf16, 2^-8, the unit
 * of one rounding.
 *
 * lower_cuda_test.c is this file with TARGET TO_CUDA: the same graphs as CUDA
 * text, run by the simt executor with all its checks. */
#include "test.h"
#include "../../runtime/simt.h"

#include <dlfcn.h>

#ifndef TARGET
#define TARGET TO_CPU
#endif

typedef void Kernel(const HcArg *a, long item);

enum { Guard = 256 };           /* bytes before and behind every array */

/* cuda: grids of kernels that sum over rows are cut, so that blocks turn */
static bool few_blocks __attribute__((unused));

/* arrays in guards */

static void *
array_new(size_t nbytes)
{
	char *p = malloc(nbytes + 2 * Guard);

	if (!p)
		die("out of memory");
	memset(p, 0xff, nbytes + 2 * Guard);    /* NaN as f32, as bf16 */
	return p + Guard;
}

static bool
guards_hold(const void *array, size_t nbytes)
{
	const unsigned char *p = (const unsigned char *)array - Guard;
	size_t i;

	for (i = 0; i < Guard; i++)
		if (p[i] != 0xff || p[Guard + nbytes + i] != 0xff)
			return false;
	return true;
}

static double
element(const void *p, Dt dt, long i)
{
	union { uint32_t u; float f; } x;

	if (dt == F32)
		return ((const float *)p)[i];
	x.u = (uint32_t)((const uint16_t *)p)[i] << 16;
	return x.f;
}

static void
element_set(void *p, Dt dt, long i, double v)
{
	union { uint32_t u; float f; } x;

	if (dt == F32) {
		((float *)p)[i] = (float)v;
		return;
	}
	x.f = (float)round_bf16(v);
	((uint16_t *)p)[i] = (uint16_t)(x.u >> 16);
}

/* one plan with its memory, and what each kernel should leave there */

typedef struct {
	const Plan *p;
	const Inputs *in;
	Bundle b;
	void *so;               /* cpu: library; cuda: Simt */
	SimtKernel **kernel;    /* cuda: by text */
	char **buf;             /* by buffer */
	char *param, *grad, *cos, *sin;
	size_t ntable;
	SimtBytes bytes;        /* cuda: of the last launch */
	double **want, **scale; /* by buffer: totals where it holds partials */
	double *want_grad;
	Interp *I;
	const Step *s;
} Bench;

static void
bench_arrays(Bench *k)
{
	const Model *m = k->p->model;
	long i, n = (long)m->seq * (m->paired ? 2 : 1) * (m->rot / 2);
	int j;
	double theta;

	k->buf = NEWN(mem, char *, k->p->nbuf);
	for (j = 0; j < k->p->nbuf; j++)
		k->buf[j] = array_new(k->p->buf[j].nbytes);
	k->param = array_new(m->params_nbytes);
	k->grad = array_new(m->params_nbytes);
	for (j = 0; j < m->nparam; j++)
		for (i = 0; i < m->param[j].n; i++)
			element_set(k->param + m->param[j].off, F32, i, k->in->param[j][i]);
	k->ntable = (size_t)n;
	k->cos = array_new((size_t)n * 4);
	k->sin = array_new((size_t)n * 4);
	for (i = 0; i < n; i++) {
		theta = (double)((float)(i / (m->rot / 2)) * m->freq[i % (m->rot / 2)]);
		element_set(k->cos, F32, i, m->spec->rotary_bf16 ? round_bf16((float)cos(theta)) : cos(theta));
		element_set(k->sin, F32, i, m->spec->rotary_bf16 ? round_bf16((float)sin(theta)) : sin(theta));
	}
	k->want = NEWN(mem, double *, k->p->nbuf);
	k->scale = NEWN(mem, double *, k->p->nbuf);
	k->want_grad = NEWN(mem, double, m->params_nbytes / 4);
}

/* the step in double, on the rounded inputs that the kernel gets */

static void
bench_get(void *ctx, const Opd *o, long n, double *x)
{
	Bench *k = ctx;
	long i;

	for (i = 0; i < n; i++)
		x[i] = element(k->buf[o->id] + o->off, o->dt, i);
}

static double *
wanted(double **where, size_t n)
{
	return *where ? *where : (*where = NEWN(mem, double, n));
}

static void
bench_put(void *ctx, const Opd *o, long n, const double *x, const double *mag, bool adds)
{
	Bench *k = ctx;
	size_t at = o->off / (size_t)dt_size(o->dt);
	int v = o->kind == OPD_BUF ? k->p->buf[o->id].val : -1;
	long i;

	(void)adds;
	(void)mag;
	if (o->kind == OPD_ARENA) {
		k->want_grad[at] += x[0];
		return;
	}
	memcpy(wanted(&k->want[o->id], k->p->buf[o->id].nbytes / 2) + at, x,
	       (size_t)n * sizeof *x);
	for (i = 0; i < n; i++)
		wanted(&k->scale[o->id], k->p->buf[o->id].nbytes / 2)[at + (size_t)i] =
		        v >= 0 && k->I->mag[v] ? k->I->mag[v][i] : fabs(x[i]);
}

/* partials: the tail reads them, kernels leave them */
static void
bench_get_sum(void *ctx, const Opd *o, long n, double *x)
{
	Bench *k = ctx;
	long i, j;

	for (i = 0; i < n; i++)
		for (x[i] = 0, j = 0; j < k->p->parts; j++)
			x[i] += element(k->buf[o->id] + o->off, F32, j);
}

static int
value_of_partial(const Plan *p, size_t part)
{
	int v;

	for (v = 0; v < p->g->n && p->partof[v] != (int)part; v++)
		;
	return v;
}

static void
bench_put_sum(void *ctx, const Opd *o, long n, const double *x, const double *mag)
{
	Bench *k = ctx;
	size_t at = o->id == k->p->part ? o->off / 4 / (size_t)k->p->parts : 0;
	double *w = wanted(&k->want[o->id], k->p->buf[o->id].nbytes / 4);
	double *s = wanted(&k->scale[o->id], k->p->buf[o->id].nbytes / 4);
	long i;

	(void)mag;
	for (i = 0; i < n; i++) {
		w[at + (size_t)i] = x[i];
		s[at + (size_t)i] = fabs(x[i]);
	}
	if (o->id == k->p->part)
		s[at] = fmax(s[at], k->I->mag[value_of_partial(k->p, at)][0]);
}

/* compile and call */

static void
write_text(const char *dir, const Text *t)
{
	const char *path = arena_printf(mem, "%s/%s.c", dir, t->name);

	if (file_write(path, t->file, strlen(t->file)) != 0)
		die("%s: %s", path, strerror(errno));
}

/* all texts of row kernels and tails in one library; err on failure */
static bool
compile(Bench *k, char err[200])
{
	char dir[] = "/tmp/lower_test.XXXXXX";
	Buf cmd = {0};
	const char *so;
	int i, rc;

	if (!mkdtemp(dir))
		die("%s: %s", dir, strerror(errno));
	so = arena_printf(mem, "%s/k.so", dir);
	buf_printf(&cmd, "cc -O2 -fopenmp-simd -std=gnu11 -Wall -Wextra -Werror -shared -fPIC -o %s", so);
	for (i = 0; i < k->p->nstep; i++)
		if (k->p->step[i].kind == STEP_ROW || k->p->step[i].kind == STEP_TAIL)
			write_text(dir, &k->b.text[k->p->step[i].text]);
	buf_printf(&cmd, " %s/*.c >%s/log 2>&1", dir, dir);
	rc = system(cmd.s);
	if (rc == 0 && (k->so = dlopen(so, RTLD_NOW)))
		snprintf(err, 200, " ");
	else
		snprintf(err, 200, "the text does not compile: see %s/log", dir);
	if (rc == 0)
		(void)!system(arena_printf(mem, "rm -rf %s", dir));
	return k->so != NULL;
}

/* the same texts behind the shim; the executor lives as long as the process */
static void
compile_simt(Bench *k)
{
	SimtSource *src = NEWN(mem, SimtSource, k->b.ntext);
	SimtKernel **out = NEWN(mem, SimtKernel *, k->b.ntext);
	int *at = NEWN(mem, int, k->b.ntext), i, n = 0;
	bool *taken = NEWN(mem, bool, k->b.ntext);

	if (!k->so)
		k->so = simt_new(&(SimtOpts){ .check = true, .seed = 1 });
	k->kernel = NEWN(mem, SimtKernel *, k->b.ntext);
	for (i = 0; i < k->p->nstep; i++) {
		const Step *s = &k->p->step[i];

		if ((s->kind != STEP_ROW && s->kind != STEP_TAIL) || taken[s->text])
			continue;
		taken[s->text] = true;
		src[n] = (SimtSource){ k->b.text[s->text].name, arena_printf(mem, "%s.cu",
		                       k->b.text[s->text].name), k->b.text[s->text].file };
		at[n++] = s->text;
	}
	simt_kernels(k->so, n, src, out);
	while (n--)
		k->kernel[at[n]] = out[n];
}

static void *
place(Bench *k, const Opd *o)
{
	switch (o->kind) {
	case OPD_BUF:
		return k->buf[o->id] + o->off;
	case OPD_ARENA:
		return (o->id == A_GRADS ? k->grad : k->param) + o->off;
	case OPD_TABLE:
		return o->id ? k->sin : k->cos;
	default:                /* the only input of row kernels */
		return (void *)(uintptr_t)k->in->docstart;
	}
}

static bool
sums_rows(const Bench *k)
{
	const RowKernel *r = k->s->row;
	int i;

	for (i = 0; r && i < r->nroot; i++)
		if (k->p->g->v[r->root[i]].op == OP_SUMR)
			return true;
	return false;
}

static long
grid_of(const Bench *k)
{
	return few_blocks && sums_rows(k) && k->s->items > 3 ? 3 : k->s->items;
}

/* a launch of the CUDA text; a fault of it is a difference */
static bool
launch(Bench *k, const HcArg *a, char err[200])
{
	SimtFault f;
	Simt *s = k->so;
	int b;

	simt_memory_clear(s);
	for (b = 0; b < k->p->nbuf; b++)
		if (k->p->buf[b].nbytes)
			simt_memory(s, k->p->buf[b].name, k->buf[b], k->p->buf[b].nbytes, true);
	simt_memory(s, "params", k->param, k->p->model->params_nbytes, false);
	simt_memory(s, "grads", k->grad, k->p->model->params_nbytes, true);
	simt_memory(s, "cos", k->cos, k->ntable * 4, false);
	simt_memory(s, "sin", k->sin, k->ntable * 4, false);
	simt_memory(s, "docstart", (void *)(uintptr_t)k->in->docstart, (size_t)k->in->T * 4, false);
	if (simt_launch(s, k->kernel[k->s->text], grid_of(k), k->s->threads, k->s->smem,
	                k->s->nopd, a, &f, &k->bytes))
		return true;
	snprintf(err, 200, "T %ld: %.180s", k->p->T, f.text);
	return false;
}

static bool
call(Bench *k, char err[200])
{
	HcArg a[512];
	Kernel *f;
	long item;
	int i;

	for (i = 0; i < k->s->nopd; i++) {
		if (k->s->opd[i].kind == OPD_INT)
			a[i].i = k->s->opd[i].i;
		else
			a[i].p = place(k, &k->s->opd[i]);
	}
	if (TARGET == TO_CUDA)
		return launch(k, a, err);
	*(void **)&f = dlsym(k->so, k->b.text[k->s->text].name);
	if (!f)
		die("no symbol %s", k->b.text[k->s->text].name);
	for (item = 0; item < k->s->items; item++)
		f(a, item);
	return true;
}

/* comparison */

static bool
close_to(const Bench *k, const char *what, const double *got, const double *want,
         const double *scale, long n, Dt dt, char err[200])
{
	double d = distance(got, want, n, fmax(norm2(want, n), norm2(scale, n)));

	if (d <= (dt == BF16 ? 0x1p-8 : 1e-5))
		return true;
	snprintf(err, 200, "T %ld, %s (%s): %s is off by %.3g", k->p->T, k->s->site,
	         k->b.text[k->s->text].name, what, d);
	return false;
}

/* what the kernel left of root r, partials added */
static bool
root_agrees(Bench *k, int r, char err[200])
{
	const Plan *p = k->p;
	const Val *v = &p->g->v[r];
	bool scalar = v->op == OP_SUMR && v->kind == K_SCALAR;
	int b = scalar ? p->part : p->bufof[r];
	long n = v->op == OP_SUMR ? v->width : p->T * v->width, i, j;
	double *got = NEWN(mem, double, n);
	size_t at = scalar ? (size_t)p->partof[r] : 0;

	for (i = 0; i < n; i++)
		if (v->op != OP_SUMR)
			got[i] = element(k->buf[b], p->buf[b].dt, i);
		else
			for (j = 0; j < p->parts; j++)
				got[i] += element(k->buf[b], F32, scalar ?
				        (long)at * p->parts + j : j * n + i);
	return close_to(k, v->name ? v->name : op_info[v->op].name, got, k->want[b] + at,
	                k->scale[b] + at, n, p->buf[b].dt, err);
}

static bool
all_guards_hold(const Bench *k, char err[200])
{
	int b;

	for (b = 0; b < k->p->nbuf; b++)
		if (!guards_hold(k->buf[b], k->p->buf[b].nbytes)) {
			snprintf(err, 200, "T %ld, %s writes beyond %s", k->p->T, k->s->site,
			         k->p->buf[b].name);
			return false;
		}
	return true;
}

static bool
row_agrees(Bench *k, const Interp *graph, char err[200])
{
	const RowKernel *r = k->s->row;
	const Access m = { k, bench_get, bench_put, bench_get_sum, bench_put_sum };
	const Plan *p = k->p;
	int i, v, b;
	long j;

	for (i = 0; i < r->nroot; i++)
		if ((b = p->bufof[r->root[i]]) >= 0)
			memset(k->buf[b], 0xff, p->buf[b].nbytes);
	for (i = 0; i < r->nin; i++) {
		v = r->in[i];
		for (j = 0; j < p->T * p->g->v[v].width; j++)
			element_set(k->buf[p->bufof[v]], p->dt[v], j, graph->x[v][j]);
	}
	interp_step(k->I, p, k->s, &m);
	if (!call(k, err))
		return false;
	for (i = 0; i < r->nroot; i++)
		if (!root_agrees(k, r->root[i], err))
			return false;
	return all_guards_hold(k, err);
}

static bool
tail_agrees(Bench *k, char err[200])
{
	const Access m = { k, bench_get, bench_put, bench_get_sum, bench_put_sum };
	const Model *model = k->p->model;
	size_t n = model->params_nbytes / 4, i;
	double *got = NEWN(mem, double, n), *none = NEWN(mem, double, n);

	for (i = 0; i < (size_t)k->p->npart * (size_t)k->p->parts; i++)
		element_set(k->buf[k->p->part], F32, (long)i, normal());
	memset(k->grad, 0, model->params_nbytes);
	memset(k->want_grad, 0, n * sizeof *k->want_grad);
	interp_step(k->I, k->p, k->s, &m);
	if (!call(k, err))
		return false;
	for (i = 0; i < n; i++)
		got[i] = element(k->grad, F32, (long)i);
	return close_to(k, "coefficient gradients", got, k->want_grad, none, (long)n, F32, err);
}

/* the texts of one plan, as emit.c makes them */
static void
emit(Bench *k, Plan *p)
{
	k->p = p;
	k->b.mem = mem;
	k->b.model = p->model;
	k->b.target = TARGET;
	k->b.nplan = 1;
	k->b.plan[0] = p;
	emit_texts(&k->b);
}

/* the plan as a whole, in double: exact but for the order of a few sums */
static bool
plan_agrees(const Plan *p, const Inputs *in, const Interp *graph, char err[200])
{
	const char *where;
	Interp *I = interp_plan(p, in);
	double d = results_differ(I, graph, 1e-12, &where);

	interp_free(I);
	snprintf(err, 200, "T %ld, the plan in double: %s differs by %.3g", in->T, where, d);
	return d <= 1e-12;
}

/* Every row kernel of the simplified graph g.  so: the library of an earlier T,
 * whose texts must be the same; set when it was made here. */
static bool
kernels_agree(const Graph *g, const Inputs *in, void **so, char **texts, char err[200])
{
	Bench k = { .in = in, .so = *so };
	Plan *p = fuse(mem, g, TARGET);
	Interp *graph = interp_graph(g, in, NULL);
	Buf t = {0};
	int i, rows = 0;

	plan_verify(p);
	mem_place(p);
	mem_verify(p);
	if (!plan_agrees(p, in, graph, err))
		return false;
	emit(&k, p);
	for (i = 0; i < k.b.ntext; i++)
		buf_puts(&t, k.b.text[i].file);
	if (*texts && strcmp(*texts, t.s) != 0) {
		snprintf(err, 200, "the text for %ld rows is another", in->T);
		return false;
	}
	*texts = t.s;
	if (TARGET == TO_CUDA)
		compile_simt(&k);
	else if (!k.so && !compile(&k, err))
		return false;
	*so = k.so;
	k.I = interp_new(g, in);
	bench_arrays(&k);
	for (i = 0; i < p->nstep; i++) {
		k.s = &p->step[i];
		rows += k.s->kind == STEP_ROW;
		if (k.s->kind == STEP_ROW && !row_agrees(&k, graph, err))
			return false;
		if (k.s->kind == STEP_TAIL && !tail_agrees(&k, err))
			return false;
	}
	snprintf(err, 200, "no row kernels");
	return rows > 0;
}

/* graphs by hand */

static int
norm(Graph *g, int x, int groups)
{
	return mul(g, point(g, OP_RSQRT, add(g, mul(g, num(g, (double)groups / g->v[x].width),
	           dot(g, x, x, groups)), num(g, 1e-3)), -1), x);
}

static int
shifts(Hand *h, int edge, bool docs)
{
	Graph *g = h->g;
	int a = shift(g, OP_SHIFT, h->x, 1, edge, docs, 0), b, c, r;

	b = shift(g, OP_UNSHIFT, norm(g, h->y, 1), 3, edge, docs, 0);
	c = shift(g, OP_SHIFT, mul(g, a, h->z), 2, edge, docs, 0);         /* of a shift */
	r = shift(g, OP_SHIFT, mul(g, num(g, 1. / h->C), dot(g, h->x, h->y, 1)), 1, edge, docs, 0);
	return add(g, mul(g, a, b), mul(g, r, c));
}

static int shift_zero(Hand *h) { return shifts(h, EDGE_ZERO, false); }
static int shift_keep(Hand *h) { return shifts(h, EDGE_KEEP, false); }
static int shift_zero_docs(Hand *h) { return shifts(h, EDGE_ZERO, true); }
static int shift_keep_docs(Hand *h) { return shifts(h, EDGE_KEEP, true); }

static int
shift_heads(Hand *h)
{
	Graph *g = h->g;
	int d = mul(g, num(g, 0.1), dot(g, h->x, h->y, h->C / 8));

	return mul(g, add(g, shift(g, OP_SHIFT, d, 1, EDGE_KEEP, true, 0),
	           shift(g, OP_UNSHIFT, d, 3, EDGE_KEEP, false, 0)), h->z);
}

static int
slices(Hand *h)
{
	Graph *g = h->g;
	int C = h->C, a, b, c;

	a = slice(g, mul(g, h->x, h->y), 1, C - 3);
	b = pad(g, slice(g, h->z, C / 2 - 1, 5), 2, C - 3);
	c = pad(g, slice(g, h->y, C - 1, 1), 0, C - 3);
	a = add(g, mul(g, a, b), c);
	return add(g, pad(g, a, 3, C), pad(g, slice(g, norm(g, h->x, 1), 0, 3), C - 3, C));
}

static int
slice_of_slice(Hand *h)
{
	Graph *g = h->g;
	int a = slice(g, slice(g, mul(g, h->x, h->z), 2, h->C - 4), 1, h->C - 8);
	int s = dot(g, a, slice(g, h->y, 0, h->C - 8), 1);

	return add(g, pad(g, pad(g, mul(g, a, a), 5, h->C - 2), 1, h->C),
	           mul(g, mul(g, num(g, 0.1), s), pad(g, slice(g, h->y, 7, 1), h->C - 1, h->C)));
}

static int
rotated(Hand *h, int D, int R, bool adjacent)
{
	Graph *g = h->g;
	int cs = table(g, 0, R / 2, false), sn = table(g, 1, R / 2, false);
	int a = rotate(g, norm(g, h->x, h->C / D), cs, sn, D, adjacent, 1);
	int b = rotate(g, mul(g, h->y, lane_row(h, 0)), cs, sn, D, adjacent, -1);

	return add(g, mul(g, a, h->y), mul(g, b, h->z));
}

/* rot is 8 in hand_model: tables are of 4 columns */
static int rotate_half(Hand *h) { return rotated(h, 8, 8, false); }
static int rotate_adjacent(Hand *h) { return rotated(h, 8, 8, true); }
static int rotate_half_part(Hand *h) { return rotated(h, h->C / 2, 8, false); }
static int rotate_adjacent_part(Hand *h) { return rotated(h, h->C / 2, 8, true); }
static int rotate_half_one(Hand *h) { return rotated(h, h->C, 8, false); }
static int rotate_adjacent_one(Hand *h) { return rotated(h, h->C, 8, true); }

/* as in attention: slices of one vec turned in heads, put together again */
static int
turned_slices(Hand *h, bool first, bool second)
{
	Graph *g = h->g;
	int cs = table(g, 0, 4, false), sn = table(g, 1, 4, false), W = h->C - 8, q, k;

	q = rotate(g, slice(g, h->x, 0, W), cs, sn, 8, first, 1);
	k = rotate(g, norm(g, slice(g, h->x, W, 8), 1), cs, sn, 8, second, 1);
	return add(g, pad(g, mul(g, q, slice(g, h->y, 8, W)), 0, h->C), pad(g, k, W, h->C));
}

static int slices_half(Hand *h) { return turned_slices(h, false, false); }
static int slices_adjacent(Hand *h) { return turned_slices(h, true, true); }
static int both_pairings(Hand *h) { return turned_slices(h, true, false); }

/* a rotation of what was rotated: partners of partners */
static int
rotated_twice(Hand *h)
{
	Graph *g = h->g;
	int cs = table(g, 0, 4, false), sn = table(g, 1, 4, false);
	int a = mul(g, rotate(g, h->x, cs, sn, 8, false, 1), h->y);

	return mul(g, rotate(g, a, cs, sn, 8, false, 1), h->z);
}

static int
rotated_twice_adjacent(Hand *h)
{
	Graph *g = h->g;
	int cs = table(g, 0, 4, false), sn = table(g, 1, 4, false);
	int a = mul(g, rotate(g, h->x, cs, sn, h->C / 2, true, 1), h->y);

	return mul(g, rotate(g, a, cs, sn, h->C / 2, true, 1), h->z);
}

/* kernels that have numbers per head and no vector of heads */

static int
far_heads(Hand *h)
{
	Graph *g = h->g;
	int d = mul(g, num(g, 0.1), dot(g, h->x, h->y, h->C / 8));

	return shift(g, OP_SHIFT, d, 1, EDGE_KEEP, false, 0);
}

static int
heads_alone(Hand *h)
{
	Graph *g = h->g;
	int d = mul(g, num(g, 2), point(g, OP_TANH, far_heads(h), -1));

	return mul(g, shift(g, OP_SHIFT, d, 2, EDGE_ZERO, false, 0), h->z);
}

static int
sum_of_heads_alone(Hand *h)
{
	Graph *g = h->g;
	int d = sumg(g, point(g, OP_TANH, far_heads(h), -1));

	return mul(g, shift(g, OP_SHIFT, d, 2, EDGE_ZERO, false, 0), h->z);
}

static int
sum_of_heads(Hand *h)
{
	return mul(h->g, sumg(h->g, point(h->g, OP_TANH, far_heads(h), -1)), h->z);
}

/* a number per head of one place, used at another: through shared memory, in a
 * kernel whose blocks turn over rows */
static int
moved_heads(Hand *h)
{
	Graph *g = h->g;
	int W = h->C - 8, a = norm(g, slice(g, h->x, 0, W), W / 8);

	return pad(g, mul(g, post_coef(h, 0), mul(g, a, slice(g, h->y, 0, W))), 8, h->C);
}

static int
one_channel(Hand *h)
{
	Graph *g = h->g;
	int a = slice(g, h->x, 3, 1), b = slice(g, h->y, 5, 1);

	return add(g, pad(g, mul(g, a, b), h->C - 1, h->C), pad(g, norm(g, a, 1), 0, h->C));
}

static int
heads_of_one_channel(Hand *h)
{
	Graph *g = h->g;

	return mul(g, point(g, OP_TANH, dot(g, h->x, h->y, h->C), -1), h->z);
}

static int
heads_of_two_channels(Hand *h)
{
	Graph *g = h->g;

	return mul(g, point(g, OP_TANH, dot(g, h->x, h->y, h->C / 2), -1), norm(g, h->z, h->C / 2));
}

/* a held value that other threads need, cut inside */
static int
moved_norms(Hand *h)
{
	Graph *g = h->g;
	int W = h->C - 6, n = norm(g, add(g, h->x, pad(g, slice(g, h->y, 1, W), 3, h->C)), 1);

	return add(g, mul(g, n, h->z), pad(g, slice(g, mul(g, n, n), 5, W), 2, h->C));
}

/* what the mapping cannot express it must refuse */

static int
two_head_sizes(Hand *h)
{
	Graph *g = h->g;

	return mul(g, mul(g, dot(g, h->x, h->y, h->C / 8), h->z),
	           dot(g, h->y, h->z, h->C / 4));
}

static int
cut_in_a_head(Hand *h)
{
	Graph *g = h->g;

	return mul(g, dot(g, h->x, h->y, h->C / 8),
	           add(g, h->z, pad(g, slice(g, h->x, 2, 7), 3, h->C)));
}

/* more kernels between two heavy steps than fuse.c has levels */
static int
twenty_shifts(Hand *h)
{
	int i, r = h->x;

	for (i = 0; i < 20; i++)
		r = shift(h->g, OP_SHIFT, mul(h->g, r, h->y), 1, EDGE_KEEP, false, 0);
	return r;
}

static int
two_rotations(Hand *h)
{
	Graph *g = h->g;
	int a = rotate(g, h->x, table(g, 0, 4, false), table(g, 1, 4, false), 8, true, 1);

	return mul(g, a, rotate(g, h->y, table(g, 0, 2, false), table(g, 1, 2, false), 8, true, 1));
}

static int
heads(Hand *h)
{
	Graph *g = h->g;
	int n = h->C / 8, d, e, s;

	d = mul(g, num(g, 0.1), dot(g, h->x, h->y, n));
	e = point(g, OP_EXP, add(g, d, mul(g, num(g, 0.05), dot(g, h->z, lane_row(h, 0), n))), -1);
	s = point(g, OP_RECIP, sumg(g, e), -1);         /* a softmax over heads */
	return mul(g, mul(g, e, s), add(g, h->z, mul(g, h->x, bcast(g, s, K_ROWVAL, n))));
}

static int
softmax_of_lanes(Hand *h, int groups)
{
	Graph *g = h->g;
	int l[4], i, sum = -1, n = norm(g, h->x, groups), r = -1;

	for (i = 0; i < 4; i++) {
		l[i] = point(g, OP_EXP, mul(g, num(g, 0.3), dot(g, n, lane_row(h, i), groups)), -1);
		sum = i ? add(g, sum, l[i]) : l[i];
	}
	sum = point(g, OP_RECIP, sum, -1);
	for (i = 0; i < 4; i++) {
		int t = mul(g, mul(g, post_coef(h, 4 + i), mul(g, l[i], sum)), i % 2 ? h->y : n);

		r = i ? add(g, r, t) : t;
	}
	return r;
}

static int softmax_rows(Hand *h) { return softmax_of_lanes(h, 1); }
static int softmax_heads(Hand *h) { return softmax_of_lanes(h, h->C / 8); }

static int
norms(Hand *h)
{
	Graph *g = h->g;
	int n = norm(g, add(g, h->x, h->y), 1);

	n = norm(g, add(g, n, mul(g, h->z, lane_row(h, 0))), h->C / 8);
	n = norm(g, mul(g, n, add(g, h->x, lane_row(h, 1))), 1);
	return add(g, norm(g, sub(g, n, h->y), h->C / 8), n);
}

/* every pointwise op on vecs, rowvals and scalars */
static int
every_point(Hand *h)
{
	static const Op op[] = { OP_NEG, OP_EXP, OP_TANH, OP_SIGMOID, OP_RELU, OP_STEP, OP_BF16 };
	Graph *g = h->g;
	int r = h->z, i, k, v[3];

	for (i = 0; i < 7; i++) {
		v[0] = h->x;
		v[1] = mul(g, num(g, 1. / h->C), dot(g, h->x, h->y, 1));
		v[2] = post_coef(h, i);
		for (k = 0; k < 3; k++)
			r = add(g, r, mul(g, point(g, op[i], v[k], -1), k == 1 ? h->y : h->z));
	}
	for (k = 0; k < 3; k++) {
		v[k] = add(g, num(g, 6), k ? point(g, OP_TANH, v[k], -1) : mul(g, h->x, h->x));
		r = add(g, r, mul(g, point(g, OP_RECIP, v[k], -1), h->y));
		r = sub(g, r, mul(g, point(g, OP_RSQRT, v[k], -1), h->x));
	}
	return r;
}

/* sums of what was broadcast, differences, products of scalars */
static int
sums(Hand *h)
{
	Graph *g = h->g;
	int a = post_coef(h, 0), b = post_coef(h, 1), s, p;

	p = mul(g, mul(g, a, b), point(g, OP_EXP, sub(g, num(g, 0.5), mul(g, a, a)), -1));
	s = sumc(g, sub(g, mul(g, h->x, p), add(g, h->y, b)), h->C / 8);
	s = mul(g, num(g, 0.1), sub(g, s, neg(g, sumc(g, h->z, 1))));
	return mul(g, sub(g, s, mul(g, p, lane_row(h, 0))), neg(g, h->x));
}

/* what is the same for all rows, and copies of it */
static int
parameters(Hand *h)
{
	Graph *g = h->g;
	int p = add(g, lane_row(h, 0), mul(g, num(g, -0.5), lane_row(h, 1)));
	int d = mul(g, num(g, 1. / h->C), dot(g, lane_row(h, 2), p, 1));

	p = mul(g, point(g, OP_SIGMOID, p, -1), lane_row(h, 2));
	d = add(g, d, mul(g, num(g, 0.1), dot(g, h->x, p, h->C / 8)));
	return add(g, mul(g, mul(g, p, post_coef(h, 0)), h->x),
	           mul(g, d, bcast(g, post_coef(h, 1), K_VEC, h->C)));
}

static int
many_places(Hand *h)
{
	Graph *g = h->g;
	int W = h->C - 7, r = -1, i, x = mul(g, h->x, h->y);

	for (i = 0; i < 8; i++) {
		int t = mul(g, slice(g, x, i, W), slice(g, h->z, 7 - i, W));

		r = i ? add(g, r, t) : t;
	}
	return pad(g, norm(g, r, 1), 4, h->C);
}

static const struct { const char *name; int (*build)(Hand *h); } built[] = {
	{ "shifts, edge zero", shift_zero },
	{ "shifts, edge keeps", shift_keep },
	{ "shifts, edge zero, documents", shift_zero_docs },
	{ "shifts, edge keeps, documents", shift_keep_docs },
	{ "shifts of values per head", shift_heads },
	{ "slices and pads at odd places", slices },
	{ "slices of slices, pads of pads", slice_of_slice },
	{ "rotation in halves", rotate_half },
	{ "rotation of adjacent channels", rotate_adjacent },
	{ "rotation in halves, 8 channels of half a row", rotate_half_part },
	{ "rotation of adjacent channels, 8 of half a row", rotate_adjacent_part },
	{ "rotation in halves, 8 channels of a row", rotate_half_one },
	{ "rotation of adjacent channels, 8 of a row", rotate_adjacent_one },
	{ "slices rotated in halves", slices_half },
	{ "slices with adjacent channels rotated", slices_adjacent },
	{ "values per head", heads },
	{ "softmax of four lanes", softmax_rows },
	{ "softmax of four lanes per head", softmax_heads },
	{ "norms of norms", norms },
	{ "every pointwise op", every_point },
	{ "sums of broadcasts", sums },
	{ "arithmetic of parameters", parameters },
	{ "one vec at many places", many_places },
	{ "a rotation of a rotation", rotated_twice },
	{ "a rotation of a rotation, adjacent channels", rotated_twice_adjacent },
	{ "numbers per head alone", heads_alone },
	{ "a sum over heads alone", sum_of_heads_alone },
	{ "a sum over heads of shifted numbers", sum_of_heads },
	{ "numbers of heads that moved", moved_heads },
	{ "one channel of many", one_channel },
	{ "heads of one channel", heads_of_one_channel },
	{ "heads of two channels", heads_of_two_channels },
	{ "a norm at two places", moved_norms },
	{ "both pairings in one kernel", both_pairings },
	{ "heads of two sizes", two_head_sizes },
	{ "a pad that cuts a head", cut_in_a_head },
	{ "two rotations in one kernel", two_rotations },
	{ "twenty shifts in a row", twenty_shifts },
};

enum { MayRefuse = sizeof built / sizeof *built - 5 };  /* from here on */

typedef struct { int which, width; const char *numerics; } ByHand;

static bool
by_hand(void *arg, char err[200])
{
	static const int rows[] = { 67, 5, 1 };
	const ByHand *p = arg;
	Model *m = hand_model(p->width, 12, p->numerics);
	void *so = NULL;
	char *texts = NULL;
	Hand h;
	int i;

	for (i = 0; i < 3; i++) {
		h = hand_new(m, rows[i]);
		hand_finish(&h, built[p->which].build(&h));
		if (!kernels_agree(simplify(mem, h.g), &h.in, &so, &texts, err))
			return false;
	}
	return true;
}

static void
check_right_or_refused(const char *name, ByHand *p)
{
	Case k = { by_hand, p };
	Child c = child(case_run, &k);

	check(name, c.rc == 0 || (c.rc == EX_BUG &&
	      (strstr(c.err, "lower: ") || strstr(c.err, "fuse: "))), "%s", c.err);
}

static void
graphs_by_hand(void)
{
	static const int width[] = { 24, 104, 8, 1000 };
	char name[120];
	ByHand p;
	bool one;
	int i, n = sizeof built / sizeof *built;

	for (i = 0; i < n; i++) {
		p = (ByHand){ i, 24, "f32" };
		snprintf(name, sizeof name, "%s", built[i].name);
		if (i >= MayRefuse) {
			check_right_or_refused(name, &p);
			continue;
		}
		/* compiling takes its time on cuda: one of the two widths each, and
		 * both where ALL is in the environment */
		one = TARGET == TO_CUDA && !getenv("ALL");
		if (!one || i % 2)
			check_case(name, by_hand, &p);
		if (one && i % 2)
			continue;
		p.width = width[1 + i % 3];
		if (p.width == 8 && (strstr(built[i].name, "slice") || strstr(built[i].name, "half a") ||
		    strstr(built[i].name, "places") || strstr(built[i].name, "moved") ||
		    strstr(built[i].name, "rotation of a")))
			p.width = 40;   /* they want more than 8 channels */
		if (TARGET == TO_CUDA && p.width == 1000 && strstr(built[i].name, "of a row"))
			p.width = 248;  /* a head of 1000 channels is refused */
		p.numerics = i % 2 ? "bf16" : "f32";
		snprintf(name, sizeof name, "%s, width %d, %s", built[i].name, p.width, p.numerics);
		check_case(name, by_hand, &p);
	}
	p = (ByHand){ 17, 4096, "f32" };
	check_case("norms of norms in rows of 16 KiB", by_hand, &p);
	p = (ByHand){ 3, 4104, "f32" };
	check_case("shifts in rows of 16 KiB and a bit", by_hand, &p);
}

/* specs */

static const char eight[] =
	"model: {layers: 2, width: 104, heads: 1, kv_heads: 1, head_dim: 8, vocab: 50, init: {out: random}, norm_weight: true}\n"
	"hc: {lanes: 8, res: {learned: true, init: 0.125}, pre: {learned: true}, post: {learned: true}, "
	"output: learned, lane_init: {learned: true}, resid_lambda: {granularity: lane}, "
	"sources: {x0: {kind: x0}, e: {kind: bigram, rows: 33}}}\n"
	"train: {tokens_per_step: 24, seq_len: 12}\nnumerics: {storage: f32, gemm: f32}\n";

typedef struct { const char *name, *yaml; int mode, nset; const char *set[2]; } FromSpec;

static bool
from_spec(void *arg, char err[200])
{
	static const int rows[] = { 67, 5, 1 };
	const FromSpec *p = arg;
	Model *m = model_set(p->name, p->yaml, p->nset, p->set);
	void *so = NULL;
	char *texts = NULL;
	Inputs in;
	Graph *g;
	int i;

	for (i = 0; i < 3; i++) {
		in = inputs_random(m, rows[i]);
		g = p->mode == GRAPH_TRAIN ? train_graph(m, rows[i]) :
		    graph_build(mem, m, p->mode, rows[i]);
		if (!kernels_agree(simplify(mem, g), &in, &so, &texts, err))
			return false;
	}
	return true;
}

static void
specs(void)
{
	FromSpec p = { 0, NULL, 0, 0, { "numerics.storage=bf16", "numerics.gemm=bf16" } };
	char name[120];
	int i;

	for (i = 0; i < NSpecs; i++) {
		p.name = spec_text[i].name;
		p.yaml = spec_text[i].yaml;
		p.mode = i % 5 ? GRAPH_TRAIN : GRAPH_EVAL;
		p.nset = i % 3;
		snprintf(name, sizeof name, "kernels of %s%s%s%s", p.name, p.mode ? ", eval" : "",
		         p.nset > 0 ? ", bf16 storage" : "", p.nset > 1 ? ", bf16 gemm" : "");
		check_case(name, from_spec, &p);
	}
	p = (FromSpec){ "eight lanes", eight, GRAPH_TRAIN, 0, { NULL } };
	check_case("kernels of eight lanes, everything learned", from_spec, &p);
	p.nset = 2;
	p.set[0] = "numerics.storage=bf16";
	p.set[1] = "hc.coef_dtype=bf16";
	check_case("kernels of eight lanes, everything learned, bf16", from_spec, &p);
}

int
main(void)
{
	mem = arena_new("test");
	graphs_by_hand();
	specs();
	arena_free(mem);
	return summary();
}
