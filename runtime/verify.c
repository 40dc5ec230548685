/* hcgen verify: what was emitted against what the spec means.
 *
 * The only file that sees both halves.  It runs the train program of a real
 * Run, and behind each step carries out the same step in double on the same
 * memory (gen/interp_plan.c): a step may differ from that by the rounding of
 * its own result and of its fp32 sums, no more.  At the end, loss and every
 * gradient are held against the whole graph in double: strictly where storage
 * and GEMMs are f32, for the reader where bf16 rounding adds up over layers. */
#define _GNU_SOURCE
#include "../gen/verbs.h"
#include "../gen/interp.h"
#include "hcrun.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A result rounded to bf16 (8 significant bits) is off by at most half an ulp,
 * 2^-8 of itself; fp32 arithmetic over sums of up to 2^14 terms and elementary
 * functions of 2 ulp stay below 1e-5 of the norm. */
static const double tol_f32 = 1e-5, tol_bf16 = 1. / 256 + 1e-5;
/* sums of a few thousand doubles in another order */
static const double tol_plan = 1e-11;

typedef struct {
	Arena *a;
	const Model *m;
	const VerifyOpts *o;
	Bundle *b;
	const Plan *p;
	Run *r;
	Interp *I;
	Inputs in;
	double weight[MaxTargets];      /* of the targets, as sched holds them */
	double **shadow;        /* gradients as the steps should have added them */
	double loss;
	/* the step at hand: what it writes, each by itself */
	const Step *s;
	struct Out { int id; Dt dt; double err, ref; } out[64];
	int nout;
	int bad;
	double worst_f32, worst_bf16;
	int nstep;
	RunBytes *bytes;        /* simt: of each kernel's first launch */
} Verify;

/* memory of the run */

static char *
place(Verify *v, const Opd *o)
{
	switch (o->kind) {
	case OPD_BUF:
		return v->r->arena[A_ACTS] + v->p->buf[o->id].off + o->off;
	case OPD_ARENA:
		return v->r->arena[o->id] + o->off;
	case OPD_INPUT:
		return v->r->arena[A_INPUTS] + v->b->input[o->id] + o->off;
	default:
		bug("verify: operand of kind %d", o->kind);
	}
}

/* sign, exponent, mantissa; all ones of E4M3, and of E5M2 an exponent of all ones, are no
 * number that a kernel should store */
static double
fp8_element(uint8_t u, Dt dt)
{
	int nman = dt == E4M3 ? 3 : 2, bias = dt == E4M3 ? 7 : 15;
	int e = u >> nman & (127 >> nman), m = u & ((1 << nman) - 1);
	double x = e ? ldexp((1 << nman) + m, e - bias - nman) : ldexp(m, 1 - bias - nman);

	if ((u & 0x7f) > (dt == E4M3 ? 0x7e : 0x7b))
		return NAN;
	return u & 0x80 ? -x : x;
}

static double
element(const char *p, Dt dt, long i)
{
	uint32_t u;
	float f;

	switch (dt) {
	case F32:
		return ((const float *)(const void *)p)[i];
	case F64:
		return ((const double *)(const void *)p)[i];
	case I32:
		return ((const int32_t *)(const void *)p)[i];
	case E4M3:
	case E5M2:
		return fp8_element((uint8_t)p[i], dt);
	default:
		u = (uint32_t)((const uint16_t *)(const void *)p)[i] << 16;
		memcpy(&f, &u, sizeof f);
		return f;
	}
}

static void
real_get(void *ctx, const Opd *o, long n, double *x)
{
	const char *p = place(ctx, o);
	long i;

	for (i = 0; i < n; i++)
		x[i] = element(p, o->dt, i);
}

/* what was compared so far of the buffer that o is in */
static struct Out *
out_of(Verify *v, const Opd *o)
{
	int i;

	for (i = 0; i < v->nout; i++)
		if (v->out[i].id == o->id)
			return &v->out[i];
	if (v->nout == (int)(sizeof v->out / sizeof *v->out))
		bug("verify: step %s writes more than %d buffers", v->s->site, v->nout);
	v->out[v->nout] = (struct Out){ .id = o->id, .dt = o->dt };
	return &v->out[v->nout++];
}

/* What may be stored as FP8 for a number that fp32 knows to within d: the rounding of any
 * number in this range, so the one of these that is nearest to what is stored. */
static double
fp8_nearest(Dt dt, double got, double want, double d)
{
	double lo = round_fp8(dt, want - d), hi = round_fp8(dt, want + d);

	return got <= lo ? lo : got >= hi ? hi : got == round_fp8(dt, want) ? got : lo;
}

/* What a sum cancelled to says nothing about its error: four fp32 ulp of the
 * magnitudes of its terms are allowed for. */
static void
compare(struct Out *out, double got, double want, double mag)
{
	const double floor = 4 * 0x1p-23 / tol_f32 * mag;

	if (dt_fp8(out->dt))
		want = fp8_nearest(out->dt, got, want, tol_f32 * (fabs(want) + floor));
	if (!(fabs(got - want) <= HUGE_VAL))
		out->err = HUGE_VAL;
	out->err += (got - want) * (got - want);
	out->ref += want * want > floor * floor ? want * want : floor * floor;
}

/* gradients and the loss are only added to: what should be there is kept */
static void
shadow_add(Verify *v, const Opd *o, long n, const double *x)
{
	const Param *w;
	size_t at;
	long i;
	int j;

	if (o->id == A_RESULT) {
		v->loss += x[0];
		return;
	}
	for (j = 0; j < v->m->nparam; j++) {
		w = &v->b->model->param[j];
		if (o->off < w->off || o->off >= w->off + (size_t)w->n * 4)
			continue;
		at = (o->off - w->off) / 4;
		for (i = 0; i < n; i++)
			v->shadow[j][at + (size_t)i] += x[i];
	}
}

static void
real_put(void *ctx, const Opd *o, long n, const double *x, const double *mag, bool adds)
{
	Verify *v = ctx;
	const char *p = place(v, o);
	struct Out *out;
	long i;

	if (adds) {
		shadow_add(v, o, n, x);
		return;
	}
	out = out_of(v, o);
	for (i = 0; i < n; i++)
		compare(out, element(p, o->dt, i), x[i], mag ? mag[i] : 0);
}

static void
real_get_sum(void *ctx, const Opd *o, long n, double *x)
{
	Verify *v = ctx;
	const char *p = place(v, o);
	long i, b;

	for (i = 0; i < n; i++)
		for (x[i] = 0, b = 0; b < v->p->parts; b++)
			x[i] += element(p, F32, b * n + i);
}

static void
real_put_sum(void *ctx, const Opd *o, long n, const double *x, const double *mag)
{
	Verify *v = ctx;
	const char *p = place(v, o);
	struct Out *out = out_of(v, o);
	double got;
	long i, b;

	for (i = 0; i < n; i++) {
		for (got = 0, b = 0; b < v->p->parts; b++)
			got += element(p, F32, b * n + i);
		compare(out, got, x[i], mag ? mag[i] : 0);
	}
}

static void
judge(Verify *v, int step, const struct Out *out)
{
	double rel = out->ref > 0 ? sqrt(out->err / out->ref) : out->err > 0 ? HUGE_VAL : 0;
	double tol = out->dt == BF16 ? tol_bf16 : tol_f32;
	double *worst = out->dt == BF16 ? &v->worst_bf16 : &v->worst_f32;

	if (rel > *worst)
		*worst = rel;
	if (rel <= tol)
		return;
	v->bad++;
	printf("FAIL step %d %s (%s): %s: error %.3g, at most %.3g\n", step, v->s->site,
	       v->s->kind == STEP_GEMM ? "gemm" : v->b->text[v->s->text].name,
	       v->p->buf[out->id].name, rel, tol);
}

/* what a step may have written, where the interpreter can read it */
static void
fetch(Verify *v)
{
	static const int arena[] = { A_ACTS, A_GRADS, A_SCHED, A_RESULT };
	size_t i;

	for (i = 0; i < sizeof arena / sizeof *arena; i++) {
		run_host(v->r, arena[i]);
		run_fetch(v->r, arena[i], 0, v->r->arena_size[arena[i]]);
	}
	run_sync(v->r);
}

static void
after_step(void *ctx, int i)
{
	Verify *v = ctx;
	const Access m = { v, real_get, real_put, real_get_sum, real_put_sum };
	int j;

	fetch(v);
	v->s = &v->p->step[i];
	v->nout = 0;
	interp_step(v->I, v->p, v->s, &m);
	for (j = 0; j < v->nout; j++)
		judge(v, i, &v->out[j]);
	v->nstep++;
}

/* inputs */

static uint64_t
next(uint64_t *s)
{
	uint64_t z = *s += 0x9E3779B97F4A7C15u;

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
	z = (z ^ z >> 27) * 0x94D049BB133111EBu;
	return z ^ z >> 31;
}

static double
normal(uint64_t *s)
{
	double u = ((double)(next(s) >> 11) + 1) * 0x1p-53;
	double w = (double)(next(s) >> 11) * 0x1p-53;

	return sqrt(-2 * log(u)) * cos(6.283185307179586 * w);
}

/* Every parameter random, so that no gradient vanishes: an initial value of
 * zero would hide all that stands behind it. */
static void
random_params(Verify *v, uint64_t *s)
{
	const Param *w;
	double x, std;
	long i;
	int j;

	for (j = 0; j < v->m->nparam; j++) {
		float *p;

		w = &v->b->model->param[j];
		p = (float *)(void *)(v->r->arena[A_PARAMS] + w->off);
		std = w->role == ROLE_TABLE ? 1 :
		      w->role == ROLE_MATRIX ? 0.7 / sqrt(w->dim[1]) :
		      w->role == ROLE_NORM ? 0.1 : 0.3;
		for (i = 0; i < w->n; i++) {
			x = w->values ? w->values[i] : 0;
			p[i] = (float)(x + std * normal(s));
			if (w->held != HELD_F32)
				p[i] = round_to_bf16(p[i]);
		}
	}
	run_put(v->r, A_PARAMS, 0, v->r->arena_size[A_PARAMS]);
}

static void
random_tokens(Verify *v, uint64_t *s, int32_t *tok, long n)
{
	const Spec *sp = v->m->spec;
	long i;

	for (i = 0; i < n; i++) {
		tok[i] = (int32_t)(next(s) % (uint64_t)v->m->V);
		if (sp->bos < v->m->V && next(s) % 11 == 0)
			tok[i] = sp->bos;
	}
}

/* the same model on few, short sequences */
static Model *
shrink(Verify *v, long rows)
{
	bool fp8 = v->m->spec->head == HEAD_FP8;
	int own = v->m->stage[v->m->planned].seq;
	/* odd, and no multiple of any block; FP8 products take rows in sixteens */
	long seq = v->o->seq > 0 ? v->o->seq : fp8 ? 56 : 61, all;

	rows = rows > 0 ? rows : fp8 ? 112 : 122;
	seq = seq < own ? seq : own;
	for (all = (rows + seq - 1) / seq * seq; fp8 && all % 16; all += seq)
		;
	return model_reduced(v->a, v->m, all, seq);
}

/* The emitted directory is temporary and goes when the process does, however
 * it ends. */
static char run_dir[] = "/tmp/hcgen-verify-XXXXXX";
static pid_t run_owner;

static void
remove_files(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	Buf path = {0};

	while (d && (e = readdir(d))) {
		path.len = 0;
		buf_printf(&path, "%s/%s", dir, e->d_name);
		unlink(path.s);
	}
	if (d)
		closedir(d);
	rmdir(dir);
	buf_free(&path);
}

static void
remove_run_dir(void)
{
	Buf kernels = {0};

	if (getpid() != run_owner)
		return;
	buf_printf(&kernels, "%s/kernels", run_dir);
	remove_files(kernels.s);
	remove_files(run_dir);
	buf_free(&kernels);
}

/* the extent of what an operand points into, and whether kernels write there */
typedef struct { const char *name; char *p; size_t nbytes; bool writable; } Range;

static Range
param_range(const Verify *v, const Opd *o)
{
	bool weights = o->id == A_WEIGHTS;
	const Param *w;
	size_t off, n;
	int j;

	for (j = 0; j < v->m->nparam; j++) {
		w = &v->b->model->param[j];
		off = weights ? (size_t)w->woff : w->off;
		n = (size_t)w->n * (weights ? (size_t)dt_size(o->dt) : 4);
		if ((!weights || w->woff >= 0) && o->off >= off && o->off < off + n)
			return (Range){ w->name, v->r->arena[o->id] + off, n, o->id == A_GRADS };
	}
	bug("verify: no parameter at %s+%zu", arena_name[o->id], o->off);
}

static Range
input_range(const Verify *v, int which)
{
	const Bundle *b = v->b;
	size_t at = b->input[which], end = b->nbytes[A_INPUTS];
	int i;

	for (i = 0; i < NInputs; i++)
		if (b->input[i] > at && b->input[i] < end)
			end = b->input[i];
	return (Range){ "input", v->r->arena[A_INPUTS] + at, end - at, false };
}

static Range
operand_range(const Verify *v, const Opd *o)
{
	size_t table = (size_t)v->b->positions * (v->m->paired ? 2 : 1) * (size_t)(v->m->rot / 2) * 4;
	const Buffer *buf;

	if (o->kind == OPD_BUF) {
		buf = &v->p->buf[o->id];
		return (Range){ buf->name, v->r->arena[A_ACTS] + buf->off, buf->nbytes, true };
	}
	if (o->kind == OPD_TABLE)
		return (Range){ o->id ? "sin" : "cos", v->r->arena[A_TABLES] +
		                (o->id ? v->b->sin_off : v->b->cos_off), table, false };
	if (o->kind == OPD_INPUT)
		return input_range(v, o->id);
	if (o->id == A_SCHED || o->id == A_RESULT)
		return (Range){ arena_name[o->id], v->r->arena[o->id], v->r->arena_size[o->id], true };
	return param_range(v, o);
}

/* simt: a launch may touch its operands, and no other byte of the arenas */
static void
on_ranges(void *ctx, const RunStep *s, RunRange *range, void *to)
{
	const Verify *v = ctx;
	const Step *step = &v->p->step[s - v->r->prog[PROG_TRAIN].step];
	Range r[512];
	int i, j, n = 0;

	for (i = 0; i < step->nopd && n < 512; i++) {
		if (step->opd[i].kind == OPD_INT || step->opd[i].kind == OPD_FLOAT)
			continue;
		r[n] = operand_range(v, &step->opd[i]);
		for (j = 0; j < n && r[j].p != r[n].p; j++)
			;
		n += j == n;
	}
	for (i = 0; i < n; i++)
		if (r[i].nbytes)
			range(to, r[i].name, r[i].p, r[i].nbytes, r[i].writable);
}

/* simt: what a launch moved, kept for the table of bytes */
static void
on_bytes(void *ctx, const RunStep *s, const RunBytes *b)
{
	Verify *v = ctx;

	if (v->bytes[s->kernel].load_issued + v->bytes[s->kernel].store_issued == 0)
		v->bytes[s->kernel] = *b;
}

/* global memory of each kernel's first launch: distinct bytes, and all of them */
static void
print_bytes(const Verify *v)
{
	int i;

	printf("%-52s %12s %12s %12s %12s\n", "bytes of one launch", "loaded", "issued",
	       "stored", "issued");
	for (i = 0; i < v->r->nkernel; i++)
		if (v->bytes[i].load_issued + v->bytes[i].store_issued > 0)
			printf("%-52s %12.0f %12.0f %12.0f %12.0f\n", v->r->kernel[i].name,
			       v->bytes[i].load_unique, v->bytes[i].load_issued,
			       v->bytes[i].store_unique, v->bytes[i].store_issued);
}

const char *
verify_dir(const Bundle *b)
{
	if (!mkdtemp(run_dir))
		die("cannot make a directory in /tmp: %s", strerror(errno));
	run_owner = getpid();
	atexit(remove_run_dir);
	bundle_write(b, run_dir);
	return run_dir;
}

static void
open_run(Verify *v)
{
	v->r = run_load(verify_dir(v->b));
	if (v->o->device == DEV_SIMT) {
		v->bytes = NEWN(v->a, RunBytes, v->r->nkernel);
		v->r->opts = (RunOpts){ .check = true, .seed = (unsigned long)v->o->seed + 1,
		                        .bytes = on_bytes, .bytes_ctx = v,
		                        .ranges = v->o->params ? NULL : on_ranges,
		                        .ranges_ctx = v };
	}
	run_open(v->r, v->o->device, v->o->threads);
}

static void
begin_step(Verify *v, long tokens)
{
	float *sched = (float *)(void *)v->r->arena[A_SCHED];

	run_zero(v->r, A_GRADS);
	run_zero(v->r, A_RESULT);
	sched[0] = sched[1] = 1;
	sched[SchedScale] = 1 / (float)tokens;
	run_targets(v->r, v->r->stage[0].first, sched + SchedTargets);
	run_put(v->r, A_SCHED, 0, (SchedTargets + MaxTargets) * sizeof *sched);
}

/* those of the planned stage's first step */
static void
first_weights(Verify *v)
{
	const ModelStage *t = &v->m->stage[v->m->planned];
	int k;

	for (k = 0; k < t->ntarget; k++)
		v->weight[k] = (float)t->target[k];
	v->in.weight = v->weight;
}

/* what products see of a number of which they read the upper half */
static float
upper(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof u);
	u &= 0xffff0000;
	memcpy(&x, &u, sizeof x);
	return x;
}

static void
host_inputs(Verify *v)
{
	const Model *m = v->b->model;
	const char *in = v->r->arena[A_INPUTS];
	double **param = NEWN(v->a, double *, m->nparam);
	const float *p;
	long i;
	int j;

	for (j = 0; j < m->nparam; j++) {
		p = (const float *)(const void *)(v->r->arena[A_PARAMS] + m->param[j].off);
		param[j] = NEWN(v->a, double, m->param[j].n);
		for (i = 0; i < m->param[j].n; i++)
			param[j][i] = m->param[j].held == HELD_UPPER ? upper(p[i]) : p[i];
	}
	v->in.T = v->p->T;
	v->in.tokens = (const void *)(in + v->b->input[INPUT_TOKENS]);
	v->in.targets = (const void *)(in + v->b->input[INPUT_TARGETS]);
	v->in.docstart = (const void *)(in + v->b->input[INPUT_DOCSTART]);
	for (j = 0; j < m->spec->nsource; j++)
		v->in.hash[j] = (const void *)(in + v->b->input[INPUT_HASH + j]);
	v->in.param = param;
	v->in.scale = 1 / (double)(float)v->p->T;
}

/* Error of one gradient against a reference, relative to its norm.  The
 * gradient of a coefficient is one sum over rows and channels that may cancel
 * almost wholly (the read coefficients before a norm do); its rounding error
 * is that of the terms, so their magnitude times an fp32 ulp, where it is more
 * than the norm times the tolerance, takes the norm's place. */
static double
tensor_error(const Verify *v, int j, const double *ref, const double *mag)
{
	const Param *w = &v->b->model->param[j];
	const float *g = (const void *)(v->r->arena[A_GRADS] + w->off);
	double err = 0, norm = 0, floor = 0;
	long i;

	for (i = 0; i < w->n; i++) {
		err += (g[i] - ref[i]) * (g[i] - ref[i]);
		norm += ref[i] * ref[i];
		floor += mag ? mag[i] * mag[i] : 0;
	}
	floor *= 0x1p-23 * 0x1p-23 / (tol_f32 * tol_f32);
	if (floor > norm)
		norm = floor;
	return norm > 0 ? sqrt(err / norm) : err > 0 ? HUGE_VAL : 0;
}

/* ||got - want|| over ||want|| or over the magnitudes that were added up */
static double
double_error(const double *got, const double *want, const double *mag, long n)
{
	double err = 0, norm = 0, m = 0;
	long i;

	for (i = 0; i < n; i++) {
		err += (got[i] - want[i]) * (got[i] - want[i]);
		norm += want[i] * want[i];
		m += mag ? mag[i] * mag[i] : 0;
	}
	norm = norm > m ? norm : m;
	return norm > 0 ? sqrt(err / norm) : err > 0 ? HUGE_VAL : 0;
}

/* The plan's graph is the spec's, written out in what is stored: the same function
 * in double, whatever the storage types of the spec are. */
static void
compare_plan(Verify *v, const Interp *spec)
{
	const Model *m = v->b->model;
	Interp *I = interp_graph(v->p->g, &v->in, NEWN(v->a, bool, v->p->g->n));
	double worst = 0, e;
	int j;

	for (j = 0; j < m->nparam; j++) {
		e = double_error(I->grad[j], spec->grad[j], spec->grad_mag[j], m->param[j].n);
		worst = e > worst ? e : worst;
	}
	e = fabs(interp_loss(I) - interp_loss(spec)) / fabs(interp_loss(spec));
	worst = e > worst ? e : worst;
	printf("plan against spec, both in double: %.1e%s\n", worst, worst > tol_plan ? "  FAIL" : "");
	v->bad += !(worst <= tol_plan);
	interp_free(I);
}

static int
compare_gradients(Verify *v)
{
	const Model *m = v->b->model;
	const Spec *s = m->spec;
	bool exact = s->storage == F_F32 && s->gemm == F_F32 && s->head != HEAD_FP8;
	Graph *g = spec_graph(v->a, v->m, v->p->T);
	Interp *I = interp_graph(g, &v->in, NEWN(v->a, bool, g->n));
	double loss = *(const double *)(const void *)v->r->arena[A_RESULT] / (double)v->p->T;
	double want = interp_loss(I) / (double)v->p->T, e, local;
	int j;

	printf("%-34s %12s %12s\n", "gradient", "of steps", "of the graph");
	for (j = 0; j < m->nparam; j++) {
		local = tensor_error(v, j, v->shadow[j], I->grad_mag[j]);
		e = tensor_error(v, j, I->grad[j], I->grad_mag[j]);
		printf("%-34s %12.2e %12.2e%s\n", m->param[j].name, local, e,
		       local > tol_f32 || (exact && e > tol_f32) ? "  FAIL" : "");
		v->bad += local > tol_f32 || (exact && e > tol_f32);
	}
	printf("loss %.9f, graph in double %.9f\n", loss, want);
	compare_plan(v, I);
	if (!isfinite(loss) || (exact && fabs(loss - want) > tol_f32 * fabs(want)))
		v->bad++;
	interp_free(I);
	return v->bad;
}

static int
verify_random(Verify *v)
{
	uint64_t seed = (uint64_t)v->o->seed * 977 + 1;
	int32_t *tok;
	int j;

	v->b = generate(v->a, shrink(v, v->o->rows), device_target(v->o->device), "");
	v->m = v->b->model;
	v->p = v->b->plan[PLAN_TRAIN];
	open_run(v);
	random_params(v, &seed);
	run_sync_weights(v->r);
	if (v->r->arena_size[A_WEIGHTS])
		run_get(v->r, A_WEIGHTS, 0, v->r->arena_size[A_WEIGHTS]);
	tok = NEWN(v->a, int32_t, v->p->T + 1);
	random_tokens(v, &seed, tok, v->p->T + 1);
	inputs_fill(v->r, run_prog(v->r, PROG_TRAIN), tok, tok + 1);
	host_inputs(v);
	begin_step(v, v->p->T);
	v->shadow = NEWN(v->a, double *, v->m->nparam);
	for (j = 0; j < v->m->nparam; j++)
		v->shadow[j] = NEWN(v->a, double, v->m->param[j].n);
	v->I = interp_new(v->p->g, &v->in);
	v->I->vec_mag = true;
	run_program_each(v->r, PROG_TRAIN, after_step, v);
	printf("%d steps of program train on %ld tokens, each against double on its own inputs:\n"
	       "worst error %.2e (f32 results, at most %.0e), %.2e (bf16 results, at most %.2e)\n",
	       v->nstep, v->p->T, v->worst_f32, tol_f32, v->worst_bf16, tol_bf16);
	compare_gradients(v);
	interp_free(v->I);
	if (v->bytes && v->o->bytes)
		print_bytes(v);
	run_close(v->r);
	printf("%s: %s\n", v->m->spec->name, v->bad ? "FAILED" : "verified");
	return v->bad ? EX_NUMERICS : EX_OK;
}

/* one forward and backward on the user's parameters and tokens */

static void
logits_of(Verify *v, const int32_t *tok, StTensor *t)
{
	const Model *m = v->b->model;
	long T = v->p->T, r, i;
	float *all = NEWN(v->a, float, T * m->V);
	const float *l = run_at(v->r, v->r->logits);

	for (r = 0; r < T; r += m->seq) {
		inputs_fill(v->r, run_prog(v->r, PROG_LOGITS), tok + r, NULL);
		run_program(v->r, PROG_LOGITS);
		run_host(v->r, v->r->logits.arena);
		run_get(v->r, v->r->logits.arena, v->r->logits.off,
		        (size_t)(m->seq * v->r->logits_ld) * sizeof *l);
		for (i = 0; i < m->seq; i++)
			memcpy(all + (r + i) * m->V, l + i * v->r->logits_ld,
			       (size_t)m->V * sizeof *all);
	}
	*t = (StTensor){ .name = "logits", .dt = DT_F32, .ndim = 2, .dim = { T, m->V },
	                 .data = all };
}

static void
read_tokens(Verify *v, int32_t *tok)
{
	const char *files[] = { v->o->tokens };
	long T = v->p->T, seq = v->b->model->seq;
	Data *d;

	v->r->val_documents = false;
	v->r->shuffle = false;
	d = data_open(v->r, 1, files, NULL, false);
	if (data_tokens(d) < T + 1)
		die("%s: %ld tokens, a micro-batch of this spec needs %ld", v->o->tokens,
		    data_tokens(d), T + 1);
	data_next(d, tok, tok + T, T / seq);
	data_close(d);
}

/* loss and gradients as tensors: in double from the interpreter, or as the
 * kernels left them */
static StTensor *
gradient_tensors(Verify *v, const double *loss64, const float *loss32, double **grad)
{
	const Model *m = v->b->model;
	StTensor *t = NEWN(v->a, StTensor, m->nparam + 2);
	int j, k;

	t[0] = (StTensor){ .name = "loss", .dt = grad ? DT_F64 : DT_F32,
	                   .data = grad ? (const void *)loss64 : (const void *)loss32 };
	for (j = 0; j < m->nparam; j++) {
		t[j + 1] = (StTensor){ .name = arena_printf(v->a, "grad.%s", m->param[j].name),
		        .dt = grad ? DT_F64 : DT_F32, .ndim = m->param[j].ndim };
		if (grad)
			t[j + 1].data = grad[j];
		else
			t[j + 1].data = v->r->arena[A_GRADS] + m->param[j].off;
		for (k = 0; k < m->param[j].ndim; k++)
			t[j + 1].dim[k] = m->param[j].dim[k];
	}
	return t;
}

static double
reference(Verify *v)
{
	const Model *m = v->b->model;
	Graph *g = spec_graph(v->a, m, v->p->T);
	Interp *I;
	double loss;
	StTensor *t;

	host_inputs(v);
	v->in.scale = 1 / (double)v->p->T;
	I = interp_graph(g, &v->in, NEWN(v->a, bool, g->n));
	loss = interp_loss(I) / (double)v->p->T;
	t = gradient_tensors(v, &loss, NULL, I->grad);
	if (v->o->dump)
		st_write(v->o->dump, m->nparam + 1, t);
	interp_free(I);
	return loss;
}

static double
run_once(Verify *v, const int32_t *tok)
{
	const Model *m = v->b->model;
	double loss;
	float loss32;
	StTensor *t;

	begin_step(v, v->p->T);
	run_program(v->r, PROG_TRAIN);
	fetch(v);
	loss = *(const double *)(const void *)v->r->arena[A_RESULT] / (double)v->p->T;
	loss32 = (float)loss;
	t = gradient_tensors(v, NULL, &loss32, NULL);
	if (v->o->logits)
		logits_of(v, tok, &t[m->nparam + 1]);
	if (v->o->dump)
		st_write(v->o->dump, m->nparam + 1 + v->o->logits, t);
	return loss;
}

static int
verify_user(Verify *v)
{
	int32_t *tok;
	double loss;

	v->m = model_reduced(v->a, v->m, v->m->T, v->m->seq);
	v->b = generate(v->a, v->m, device_target(v->o->device), "");
	v->p = v->b->plan[PLAN_TRAIN];
	open_run(v);
	params_load(v->r, v->o->params);
	run_sync_weights(v->r);
	tok = NEWN(v->a, int32_t, 2 * v->p->T);
	read_tokens(v, tok);
	inputs_fill(v->r, run_prog(v->r, PROG_TRAIN), tok, tok + v->p->T);
	loss = v->o->reference ? reference(v) : run_once(v, tok);
	printf("loss %.12g\n", loss);
	run_close(v->r);
	return isfinite(loss) ? EX_OK : EX_NUMERICS;
}

int
verify(Arena *a, const Model *m, const VerifyOpts *o)
{
	Verify v = { .a = a, .m = m, .o = o };

	first_weights(&v);
	return o->update ? verify_update(a, m, o) : o->params ? verify_user(&v) : verify_random(&v);
}
