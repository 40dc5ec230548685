/* The update program, as emitted for cpu and for cuda (run by simt with its checks).
 *
 * Behind each step the same step in double on the memory as it was before: what is written is
 * near, and no other byte of any arena changed.  Buffers that no step wrote hold NaN.  Then the
 * whole update of a matrix against the formulas of docs/spec.md in double, in f32.  Every run is
 * made twice, with other numbers of threads and in another order: the same bits.
 *
 * ONLY=name runs one spec.
 *
 *   sums in fp32      2^-24 (n + 4) of the sum of the magnitudes of their n terms
 *   what has no sum   8 roundings, 2^-21 of what is added up
 *   bf16              one rounding more, 2^-8 of the element */
#include "test.h"
#include "../../gen/fuse.h"
#include "../../runtime/hcrun.h"
#include "../../runtime/simt.h"

#define SMALL "train: {steps: 8, tokens_per_step: 16, seq_len: 8, untie: b, stages: {a: {share: 1}, b: {share: 3}}}\n" \
	"optim: {kind: cautious_adam, every: 2, eps: 1e-6, weight_decay: 3, groups: {" \
	"m: {match: '*.qkv|*.attn.out|*.mlp.*', kind: normuon, every: 1, lr: 0.02, weight_decay: 1.2}," \
	"d: {match: '*.down', lr_mul: 2, betas: [0.9, 0.8]}, s: {match: 'hc.*', kind: adamw, every: 3}}}\n" \
	"hc: {lanes: 2, post: {init: 1.0, learned: true}}\n"

static const struct { const char *name, *yaml; } specs[] = {
	{ "f32_odd_shapes", "model: {layers: 1, width: 40, heads: 3, kv_heads: 1, head_dim: 8, vocab: 60, mlp: {kind: relu2, hidden: 57}}\n"
	  "numerics: {storage: f32, gemm: f32}\n" SMALL },
	{ "bf16_swiglu", "model: {layers: 2, width: 48, heads: 2, head_dim: 24, vocab: 60, mlp: {kind: swiglu, hidden: 40}}\n" SMALL },
	{ "bf16_parameters", "model: {layers: 3, width: 32, heads: 2, vocab: 60, attention: {gate: all}}\n"
	  "numerics: {params: bf16}\n" SMALL },
	{ "f32_of_upper_halves", "model: {layers: 1, width: 32, heads: 2, vocab: 60}\n"
	  "numerics: {storage: f32, gemm: f32, params: bf16}\n" SMALL },
	/* several items to a matrix, on cpu too */
	{ "bf16_several_items", "model: {layers: 1, width: 264, heads: 11, vocab: 60, mlp: {kind: relu2, hidden: 264}}\n" SMALL },
	{ "adamw_clipped", "model: {layers: 1, width: 32, heads: 2, vocab: 60}\nnumerics: {params: bf16}\n"
	  "train: {steps: 8, tokens_per_step: 16, seq_len: 8, clip: 0.5}\n"
	  "optim: {weight_decay: 0.1, groups: {m: {match: '*.mlp.*', kind: normuon}}}\n" },
};

static const int arenas[] = { A_PARAMS, A_WEIGHTS, A_GRADS, A_MOMENT1, A_MOMENT2, A_ACTS, A_SCHED };
enum { NKept = sizeof arenas / sizeof *arenas };

typedef struct {
	const char *name;
	Bundle *b;
	const Plan *p;
	Run *r;
	char *was[NArenas];
	bool *written[NArenas];
	const Step *s;
	char err[300];
	double bytes_off;
} T;

/* memory */

static char *
place(const T *t, const Opd *o, bool before)
{
	int arena = o->kind == OPD_BUF ? A_ACTS : o->id;
	size_t off = o->off + (o->kind == OPD_BUF ? t->p->buf[o->id].off : 0);

	return (before ? t->was[arena] : t->r->arena[arena]) + off;
}

static double
value(const char *p, Dt dt, long i)
{
	uint32_t u;
	float f;

	if (dt == F64)
		return ((const double *)(const void *)p)[i];
	if (dt == F32)
		return ((const float *)(const void *)p)[i];
	u = (uint32_t)((const uint16_t *)(const void *)p)[i] << 16;
	memcpy(&f, &u, sizeof f);
	return f;
}

static double
before(const T *t, const Opd *o, long i)
{
	return value(place(t, o, true), o->dt, i);
}

static double
after(const T *t, const Opd *o, long i)
{
	return value(place(t, o, false), o->dt, i);
}

static void
mark(T *t, const Opd *o, long i)
{
	int arena = o->kind == OPD_BUF ? A_ACTS : o->id;
	size_t at = (size_t)(place(t, o, false) - t->r->arena[arena]) + (size_t)i * (size_t)dt_size(o->dt);

	memset(t->written[arena] + at, true, (size_t)dt_size(o->dt));
}

/* element i of o is written, and is want */
static void
wants(T *t, const Opd *o, long i, double want, double tol)
{
	double got = after(t, o, i), allowed = tol + (o->dt == BF16 ? fabs(want) / 256 : 0) + 1e-37;

	mark(t, o, i);
	if (!(fabs(got - want) <= allowed) && !t->err[0])
		snprintf(t->err, sizeof t->err, "%s (%s) at %ld: %.9g, want %.9g, off by %.3g of %.3g", t->s->name,
		         t->s->site, i, got, want, fabs(got - want), allowed);
}

static float
upper(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof u);
	u &= 0xffff0000;
	memcpy(&x, &u, sizeof x);
	return x;
}

/* steps in double */

static float
sched(const T *t, int i)
{
	return ((const float *)(const void *)t->was[A_SCHED])[i];
}

static void
momentum(T *t)
{
	const Bank *b = t->s->bank;
	const Opd *o = t->s->opd;
	long n = b->rows * b->cols, parts = (n + bank_chunk(t->s) - 1) / bank_chunk(t->s), at;
	double clip = sched(t, 3), mu = sched(t, 5), g, m, v, mag, sum;

	for (int i = 0; i < b->n; i++) {
		const Param *w = &t->b->model->param[b->matrix[i].param];
		double *sums = NEWN(mem, double, parts);

		at = (long)(w->off / 4) + b->matrix[i].row * b->cols;
		for (long j = 0; j < n; j++) {
			g = clip * before(t, &o[3], at + j);
			v = before(t, &o[2], at + j);
			m = v + (1 - mu) * (g - v);
			mag = fabs(g) + fabs(v);
			wants(t, &o[2], at + j, m, 0x1p-21 * mag);
			wants(t, &o[0], i * n + j, g + mu * (m - g), 0x1p-20 * mag);
			sum = after(t, &o[0], i * n + j);
			sums[j / bank_chunk(t->s)] += sum * sum;
		}
		for (long j = 0; j < parts; j++)
			wants(t, &o[1], i * parts + j, sums[j], 0x1p-18 * sums[j]);
	}
}

static void
scale(T *t)
{
	const Bank *b = t->s->bank;
	const Opd *o = t->s->opd;
	long n = b->rows * b->cols, parts = (n + bank_chunk(t->s) - 1) / bank_chunk(t->s);
	double sum, x;

	for (int i = 0; i < b->n; i++) {
		sum = 0;
		for (long j = 0; j < parts; j++)
			sum += before(t, &o[1], i * parts + j);
		for (long j = 0; j < n; j++) {
			x = before(t, &o[0], i * n + j) / (1.02 * sqrt(sum) + 1e-6);
			wants(t, &o[0], i * n + j, x, 0x1p-21 * fabs(x));
		}
	}
}

static void
gemm(T *t)
{
	const Step *s = t->s;
	const Opd *o = s->opd;
	/* of large products some elements: runtime_test and cuda_run_test have all of some */
	long few = s->batch * s->m * s->n * s->k > 3000000 ? 997 : 1, at = 0;
	double sum, mag, x;

	for (long w = 0; w < s->batch; w++)
		for (long i = 0; i < s->m; i++)
			for (long j = 0; j < s->n; j++) {
				mark(t, &o[2], w * s->sc + i * o[2].ld + j);
				if (at++ % few)
					continue;
				sum = mag = 0;
				for (long k = 0; k < s->k; k++) {
					x = before(t, &o[0], w * s->sa + (s->ta ? k * o[0].ld + i : i * o[0].ld + k)) *
					    before(t, &o[1], w * s->sb + (s->tb ? j * o[1].ld + k : k * o[1].ld + j));
					sum += x;
					mag += fabs(x);
				}
				sum *= s->alpha;
				mag *= fabs(s->alpha);
				if (s->nopd > 3) {
					x = s->beta * before(t, &o[3], w * s->sc + i * o[3].ld + j);
					sum += x;
					mag += fabs(x);
				}
				wants(t, &o[2], w * s->sc + i * o[2].ld + j, sum, (double)(s->k + 4) * 0x1p-24 * mag);
			}
}

static void
row_means(T *t)
{
	const Bank *b = t->s->bank;
	const Opd *o = t->s->opd;
	double sum, x;

	for (long r = 0; r < b->n * b->rows; r++) {
		sum = 0;
		for (long j = 0; j < b->cols; j++) {
			x = before(t, &o[1], r * b->cols + j);
			sum += x * x;
		}
		wants(t, &o[0], r, sum / (double)b->cols, (double)(b->cols + 4) * 0x1p-24 * sum / (double)b->cols);
	}
}

static void
factors(T *t)
{
	const Bank *b = t->s->bank;
	const Opd *o = t->s->opd;
	double q, s, all, scaled, big;

	for (int i = 0; i < b->n; i++) {
		const Param *w = &t->b->model->param[b->matrix[i].param];
		long at = (long)(w->off2 / 4) + b->matrix[i].row;
		double *k = NEWN(mem, double, b->rows);

		all = scaled = 0;
		for (long r = 0; r < b->rows; r++) {
			q = before(t, &o[2], i * b->rows + r);
			s = before(t, &o[1], at + r);
			s += (1 - w->betas[1]) * (q - s);
			wants(t, &o[1], at + r, s, 0x1p-21 * (fabs(s) + q));
			k[r] = 1 / sqrt(fmax(s, 1e-10));
			all += q;
			scaled += q * k[r] * k[r];
		}
		big = sqrt((double)b->cols * all) / fmax(sqrt((double)b->cols * scaled), 1e-10);
		for (long r = 0; r < b->rows; r++)
			wants(t, &o[0], i * b->rows + r, k[r] * big, 0x1p-19 * fabs(k[r] * big));
	}
}

static void
update(T *t)
{
	const Bank *b = t->s->bank;
	const Opd *o = t->s->opd;
	const Model *m = t->b->model;
	long n = b->rows * b->cols, at;
	double lr, eta, v, p, d;

	for (int i = 0; i < b->n; i++) {
		const Param *w = &m->param[b->matrix[i].param];

		at = b->matrix[i].row * b->cols;
		lr = w->lr * w->lr_mul * sched(t, 0);
		eta = lr * sqrt(fmax(1, (double)b->rows / (double)b->cols));
		for (long j = 0; j < n; j++) {
			v = (float)before(t, &o[2], i * n + j) * (float)before(t, &o[3], i * b->rows + j / b->cols);
			v = m->spec->gemm == F_BF16 ? round_bf16(v) : v;
			p = before(t, &o[0], (long)(w->off / 4) + at + j);
			d = v * p >= 0 ? p * lr * w->weight_decay * eta : 0;
			wants(t, &o[0], (long)(w->off / 4) + at + j, p - eta * v - d, 0x1p-21 * (fabs(p) + fabs(eta * v)));
			if (w->woff < 0)
				continue;
			p = after(t, &o[0], (long)(w->off / 4) + at + j);
			p = w->held == HELD_UPPER ? upper((float)p) : round_bf16(p);
			if (after(t, &o[1], w->woff / dt_size(o[1].dt) + at + j) != p && !t->err[0])
				snprintf(t->err, sizeof t->err, "the copy of %s at %ld", w->name, at + j);
			mark(t, &o[1], w->woff / dt_size(o[1].dt) + at + j);
		}
	}
}

static void
adam(T *t)
{
	const Opd *o = t->s->opd;
	bool cautious = strcmp(t->s->name, "cautious_adam") == 0;
	double lr = o[6].f * sched(t, 0), b1 = o[7].f, b2 = o[8].f, eps = o[9].f, wd = o[10].f, c1, c2, g, m, v, u, p, slack;
	long k = (long)sched(t, 1) / o[12].i;

	c1 = 1 - pow(b1, (double)k);
	c2 = 1 - pow(b2, (double)k);
	for (long i = 0; i < o[5].i; i++) {
		g = sched(t, 3) * (before(t, &o[4], i) + (t->s->tied ? before(t, &o[14], i) : 0));
		slack = fabs(before(t, &o[2], i)) + fabs(g) + (t->s->tied ? fabs(sched(t, 3) * before(t, &o[14], i)) : 0);
		m = b1 * before(t, &o[2], i) + (1 - b1) * g;
		v = b2 * before(t, &o[3], i) + (1 - b2) * g * g;
		p = before(t, &o[0], i);
		wants(t, &o[2], i, m, 0x1p-21 * slack);
		wants(t, &o[3], i, v, 0x1p-21 * (v + 2 * fabs(g) * slack) + 1e-44);
		if (cautious)
			u = lr * sqrt(c2) / c1 * m / (sqrt(v) + eps);
		else
			u = lr / c1 * m / (sqrt(v / c2) + eps) + lr * wd * p;
		/* of the quotient also what cancelled in m; a decay that a sign decides may then be either */
		slack = 0x1p-20 * (fabs(p) + fabs(u)) + (m != 0 ? fabs(u / m) * 0x1p-20 * slack : 0);
		if (cautious && u * p > 0)
			u += lr * lr * wd * p;
		p -= u;
		if (t->s->held)
			slack += fabs(p) / 256;
		wants(t, &o[0], i, p, slack);
		p = after(t, &o[0], i);
		if (t->s->held && p != round_bf16(p) && !t->err[0])
			snprintf(t->err, sizeof t->err, "%s at %ld is no bf16 number", t->s->site, i);
		if (t->s->tied)
			wants(t, &o[13], i, p, 0);
		if (t->s->acc)
			wants(t, &o[1], i, round_bf16(p), -fabs(round_bf16(p)) / 256);
	}
}

static void
zero_or_copy(T *t)
{
	const Opd *o = t->s->opd;

	for (long i = 0; i < t->s->m / 4; i++)
		wants(t, &o[0], i, t->s->kind == STEP_ZERO ? 0 : before(t, &o[1], i), 0);
}

/* the norm and its factor: templates_test has them */
static void
norm(T *t)
{
	const Opd *o = &t->s->opd[0];
	long n = strcmp(t->s->name, "clip") == 0 ? 0 : t->p->parts;

	for (long i = 0; i < n; i++)
		mark(t, o, i);
	for (long i = 3; n == 0 && i < 5; i++)
		mark(t, o, i);
}

static void
one_step(T *t)
{
	static const struct { const char *name; void (*fn)(T *); } how[] = {
		{ "sqsum", norm }, { "clip", norm }, { "adamw", adam }, { "cautious_adam", adam }, { "zero", zero_or_copy },
		{ "copy", zero_or_copy }, { "gemm", gemm }, { "normuon_momentum", momentum }, { "normuon_scale", scale },
		{ "normuon_rows", row_means }, { "normuon_factors", factors }, { "normuon_update", update },
	};

	for (size_t i = 0; i < sizeof how / sizeof *how; i++)
		if (strcmp(how[i].name, t->s->name) == 0) {
			how[i].fn(t);
			return;
		}
	die("the test knows no %s", t->s->name);
}

static void
after_step(void *ctx, int i)
{
	T *t = ctx;
	size_t at;
	int k, a;

	t->s = &t->p->step[i];
	if (step_due(&t->r->prog[PROG_UPDATE].step[i], t->r->t))
		one_step(t);
	for (k = 0; k < NKept; k++) {
		a = arenas[k];
		for (at = 0; at < t->r->arena_size[a] && !t->err[0]; at++)
			if (!t->written[a][at] && t->was[a][at] != t->r->arena[a][at])
				snprintf(t->err, sizeof t->err, "%s (%s) writes %s+%zu", t->s->name, t->s->site, arena_name[a], at);
		memcpy(t->was[a], t->r->arena[a], t->r->arena_size[a]);
		memset(t->written[a], 0, t->r->arena_size[a]);
	}
}

/* runs */

static void
on_bytes(void *ctx, const RunStep *s, const RunBytes *b)
{
	T *t = ctx;
	double off = b->load_unique + b->store_unique - s->nbytes;

	/* beside what the plan counts a launch reads rates: words of sched */
	if ((strstr(s->site, "normuon") || strstr(t->r->kernel[s->kernel].name, "adam")) && fabs(off) > 32 && !t->err[0])
		snprintf(t->err, sizeof t->err, "%s moves %.0f bytes more than the %.0f that it states",
		         t->r->kernel[s->kernel].name, off, s->nbytes);
}

/* the manifest without the steps of other programs and their kernels, which then need not be compiled */
static void
keep_update(const T *t, const char *dir)
{
	char *path = arena_printf(mem, "%s/manifest", dir), *s, *line, *end, name[200];
	bool keep, update = false;
	size_t n;
	Buf out = {0};

	s = file_read(mem, path, &n);
	for (line = s; *line; line = end + 1) {
		end = strchr(line, '\n');
		if (strncmp(line, "program ", 8) == 0)
			update = strncmp(line, "program update", 14) == 0;
		keep = update || (strncmp(line, "launch ", 7) != 0 && strncmp(line, "gemm ", 5) != 0);
		if (sscanf(line, "kernel %199s", name) == 1) {
			keep = false;
			for (int i = 0; i < t->p->nstep; i++)
				keep |= has_text(&t->p->step[i]) && strcmp(t->b->text[t->p->step[i].text].name, name) == 0;
		}
		if (keep)
			buf_write(&out, line, (size_t)(end + 1 - line));
	}
	file_write(path, out.s, out.len);
	buf_free(&out);
}

static void
random_floats(char *p, size_t nbytes, double std, bool positive)
{
	float *f = (float *)(void *)p;
	uint64_t seed = 1;

	for (size_t i = 0; i < nbytes / 4; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		f[i] = (float)(std * ((double)(seed >> 40) * 0x1p-23 - 1));
		if (positive)
			f[i] = fabsf(f[i]);
	}
}

static void
open_run(T *t, const char *dir, int device, int nthreads, unsigned long seed)
{
	Run *r = t->r = run_load(dir);

	if (device == DEV_SIMT)
		r->opts = (RunOpts){ .check = true, .seed = seed, .bytes = on_bytes, .bytes_ctx = t };
	run_open(r, device, nthreads);
	run_init_params(r, 1);
	random_floats(r->arena[A_MOMENT1], r->arena_size[A_MOMENT1], 0.02, false);
	random_floats(r->arena[A_MOMENT2], r->arena_size[A_MOMENT2], 1e-3, true);
}

static void
begin(T *t, long step)
{
	float *s = (float *)(void *)t->r->arena[A_SCHED];

	t->r->t = step;
	s[0] = 0.7f;
	s[1] = (float)(step + 1);
	s[5] = 0.9f;
	memset(t->r->arena[A_ACTS], 0xff, t->r->arena_size[A_ACTS]);
	for (int k = 0; k < NKept; k++) {
		int a = arenas[k];

		t->was[a] = arena_alloc(mem, t->r->arena_size[a] + 1);
		t->written[a] = arena_alloc(mem, t->r->arena_size[a] + 1);
		memcpy(t->was[a], t->r->arena[a], t->r->arena_size[a]);
	}
}

/* gradients are what the last update left, and a random step's beside it */
static void
add_gradients(T *t, uint64_t seed)
{
	float *g = (float *)(void *)t->r->arena[A_GRADS];

	for (int j = 0; j < t->b->model->nparam; j++) {
		const Param *w = &t->b->model->param[j];

		for (long i = 0; i < w->n; i++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			g[w->off / 4 + (size_t)i] += (float)(0.05 * ((double)(seed >> 40) * 0x1p-23 - 1));
		}
	}
}

/* gradients are gone if an update took them, and there if not */
static void
check_cleared(T *t, long step)
{
	const float *g = (const float *)(void *)t->r->arena[A_GRADS];
	bool gone;

	for (int j = 0; j < t->b->model->nparam; j++) {
		const Param *w = &t->b->model->param[j];

		gone = true;
		for (long i = 0; i < w->n; i++)
			gone &= g[w->off / 4 + (size_t)i] == 0;
		if (gone != ((step + 1) % w->every == 0) && !t->err[0])
			snprintf(t->err, sizeof t->err, "step %ld: the gradient of %s is %s", step, w->name,
			         gone ? "gone" : "still there");
	}
}

static void
end_run(T *t)
{
	run_close(t->r);
	t->r = NULL;
}

static char root[] = "/tmp/hcgen-update-test-XXXXXX";

static const char *
emitted(T *t, int target, const char *yaml)
{
	const char *dir = arena_printf(mem, "%s/%s-%d", root, t->name, target);

	t->b = generate(mem, model_of(t->name, yaml), target, "");
	t->p = t->b->plan[PLAN_UPDATE];
	bundle_write(t->b, dir);
	keep_update(t, dir);
	return dir;
}

/* six steps of the run, two of them behind the untying, step by step in double; then again in another order of everything */
static bool
steps_in_double(void *arg, char err[200])
{
	T *t = arg;
	int device = t->b->target == TO_CPU ? DEV_CPU : DEV_SIMT, again;
	const char *dir = arena_printf(mem, "%s/%s-%d", root, t->name, t->b->target);
	char *end[2];

	for (again = 0; again < 2; again++) {
		open_run(t, dir, device, again ? 3 : 1, again ? 99 : 1);
		for (long step = 0; step < 6; step++) {
			begin(t, step);
			add_gradients(t, (uint64_t)step);
			memcpy(t->was[A_GRADS], t->r->arena[A_GRADS], t->r->arena_size[A_GRADS]);
			if (again)
				run_program(t->r, PROG_UPDATE);
			else
				run_program_each(t->r, PROG_UPDATE, after_step, t);
			check_cleared(t, step);
		}
		end[again] = arena_alloc(mem, t->r->arena_size[A_PARAMS]);
		memcpy(end[again], t->r->arena[A_PARAMS], t->r->arena_size[A_PARAMS]);
		if (again && memcmp(end[0], end[1], t->r->arena_size[A_PARAMS]) != 0 && !t->err[0])
			snprintf(t->err, sizeof t->err, "parameters depend on threads or their order");
		end_run(t);
	}
	return snprintf(err, 200, "%.199s", t->err), !t->err[0];
}

/* NorMuon of one matrix in double, from docs/spec.md */

typedef struct { long R, K; double *p, *m, *s; } Whole;

static void
multiply(double *c, const double *a, bool ta, const double *b, bool tb, long m, long n, long k)
{
	memset(c, 0, (size_t)(m * n) * sizeof *c);
	for (long i = 0; i < m; i++)
		for (long l = 0; l < k; l++)
			for (long j = 0; j < n; j++)
				c[i * n + j] += a[ta ? l * m + i : i * k + l] * b[tb ? j * k + l : l * n + j];
}

static void
orthogonalise(double *x, long R, long K)
{
	static const double c[5][3] = {
		{ 8.156554524902461, -22.48329292557795, 15.878769915207462 },
		{ 4.042929935166739, -2.808917465908714, 0.5000178451051316 },
		{ 3.8916678022926607, -2.772484153217685, 0.5060648178503393 },
		{ 3.285753657755655, -2.3681294933425376, 0.46449024233003106 },
		{ 2.3465413258596377, -1.7097828382687081, 0.42323551169305323 },
	};
	bool tall = R > K;
	long S = tall ? K : R;
	double *a = NEWN(mem, double, S * S), *aa = NEWN(mem, double, S * S), *y = NEWN(mem, double, R * K), norm = 0;

	for (long i = 0; i < R * K; i++)
		norm += x[i] * x[i];
	for (long i = 0; i < R * K; i++)
		x[i] /= 1.02 * sqrt(norm) + 1e-6;
	for (int k = 0; k < 5; k++) {
		multiply(a, x, tall, x, !tall, S, S, tall ? R : K);
		multiply(aa, a, false, a, false, S, S, S);
		for (long i = 0; i < S * S; i++)
			a[i] = c[k][1] * a[i] + c[k][2] * aa[i];
		if (tall)
			multiply(y, x, false, a, false, R, K, K);
		else
			multiply(y, a, false, x, false, R, K, R);
		for (long i = 0; i < R * K; i++)
			x[i] = c[k][0] * x[i] + y[i];
	}
}

static void
normuon(Whole *w, const double *g, double mu, double lr, double wd, double beta2)
{
	long R = w->R, K = w->K;
	double *x = NEWN(mem, double, R * K), *q = NEWN(mem, double, R), F = 0, G = 0, v, eta = lr * sqrt(fmax(1, (double)R / (double)K));

	for (long i = 0; i < R * K; i++) {
		w->m[i] += (1 - mu) * (g[i] - w->m[i]);
		x[i] = g[i] + mu * (w->m[i] - g[i]);
	}
	orthogonalise(x, R, K);
	for (long r = 0; r < R; r++) {
		for (long j = 0; j < K; j++)
			q[r] += x[r * K + j] * x[r * K + j] / (double)K;
		F += (double)K * q[r];
		w->s[r] += (1 - beta2) * (q[r] - w->s[r]);
		G += (double)K * q[r] / fmax(w->s[r], 1e-10);
	}
	for (long i = 0; i < R * K; i++) {
		v = x[i] / sqrt(fmax(w->s[i / K], 1e-10)) * sqrt(F) / fmax(sqrt(G), 1e-10);
		w->p[i] -= eta * v + (v * w->p[i] >= 0 ? w->p[i] * lr * wd * eta : 0);
	}
}

/* Three updates of every matrix of a spec, all of it in f32.  The iteration takes an error of a small
 * singular value times 8.2*4*3.9*3.3*2.3 = 1000 at most; 2^-24 of the largest, for sums of K terms,
 * becomes 1e-3 of such a direction, and of the whole update far less. */
static bool
whole_in_double(void *arg, char err[200])
{
	T *t = arg;
	const Model *m = t->b->model;
	const char *dir = arena_printf(mem, "%s/%s-%d", root, t->name, t->b->target);
	double worst = 0;

	open_run(t, dir, t->b->target == TO_CPU ? DEV_CPU : DEV_SIMT, 1, 1);
	memset(t->r->arena[A_MOMENT1], 0, t->r->arena_size[A_MOMENT1]);
	memset(t->r->arena[A_MOMENT2], 0, t->r->arena_size[A_MOMENT2]);
	for (int i = 0; i < t->p->nstep; i++) {
		const Bank *b = t->p->step[i].bank;

		if (!b || strcmp(t->p->step[i].name, "normuon_update") != 0)
			continue;
		for (int k = 0; k < b->n; k++) {
			const Param *w = &m->param[b->matrix[k].param];
			size_t at = w->off / 4 + (size_t)(b->matrix[k].row * b->cols);
			long n = b->rows * b->cols;
			Whole x = { b->rows, b->cols, NEWN(mem, double, n), NEWN(mem, double, n), NEWN(mem, double, b->rows) };
			double *g = NEWN(mem, double, n), *p0 = NEWN(mem, double, n), off = 0, size = 0;
			float *params = (float *)(void *)t->r->arena[A_PARAMS] + at;
			float *grads = (float *)(void *)t->r->arena[A_GRADS] + at;

			for (long j = 0; j < n; j++)
				p0[j] = x.p[j] = params[j];
			for (long step = 0; step < 3; step++) {
				begin(t, step);
				add_gradients(t, (uint64_t)(100 + step));
				for (long j = 0; j < n; j++)
					g[j] = grads[j];
				run_program(t->r, PROG_UPDATE);
				normuon(&x, g, 0.9f, w->lr * w->lr_mul * 0.7f, w->weight_decay, w->betas[1]);
			}
			for (long j = 0; j < n; j++) {
				off += (params[j] - x.p[j]) * (params[j] - x.p[j]);
				size += (x.p[j] - p0[j]) * (x.p[j] - p0[j]);
			}
			worst = fmax(worst, sqrt(off / size));
			/* the next matrix begins as this one did */
			run_init_params(t->r, 1);
			memset(t->r->arena[A_MOMENT1], 0, t->r->arena_size[A_MOMENT1]);
			memset(t->r->arena[A_MOMENT2], 0, t->r->arena_size[A_MOMENT2]);
			memset(t->r->arena[A_GRADS], 0, t->r->arena_size[A_GRADS]);
		}
	}
	end_run(t);
	snprintf(err, 200, "off by %.2g of the update", worst);
	return worst < 1e-4;
}

/* mu(t): docs/spec.md, Optimizers */
static void
momentum_of_steps(void)
{
	static const struct { long t; double mu; } want[] = {
		{ 0, 0.85 }, { 5, 0.9 }, { 9, 0.94 }, { 10, 0.95 }, { 50, 0.95 }, { 80, 0.95 }, { 90, 0.9 }, { 99, 0.855 },
	};
	Run r = { .momentum = 0.95, .momentum_start = 0.85, .momentum_warmup = 10, .momentum_cooldown = 20,
	          .momentum_steps = 100 };
	size_t i;

	for (i = 0; i < sizeof want / sizeof *want && fabs(run_momentum(&r, want[i].t) - want[i].mu) < 1e-12; i++)
		;
	check("momentum of a step", i == sizeof want / sizeof *want, "at %ld: %g", want[i % 8].t,
	      run_momentum(&r, want[i % 8].t));
}

int
main(void)
{
	const char *missing = simt_missing();
	size_t i;
	int target;

	mem = arena_new("test");
	if (!mkdtemp(root))
		die("cannot make %s", root);
	momentum_of_steps();
	for (i = 0; i < sizeof specs / sizeof *specs; i++) {
		if (getenv("ONLY") && !strstr(specs[i].name, getenv("ONLY")))
			continue;
		for (target = TO_CPU; target <= TO_CUDA; target++) {
			T t = { .name = specs[i].name };

			if (target == TO_CUDA && missing) {
				printf("skip update on simt: %s\n", missing);
				continue;
			}
			emitted(&t, target, specs[i].yaml);
			check_case(arena_printf(mem, "update %s on %s, step by step", t.name, target == TO_CPU ? "cpu" : "simt"),
			           steps_in_double, &t);
			if (i == 0)
				check_case(arena_printf(mem, "update %s on %s, whole", t.name, target == TO_CPU ? "cpu" : "simt"),
				           whole_in_double, &t);
		}
	}
	if (system(arena_printf(mem, "rm -rf %s", root)) != 0)
		fprintf(stderr, "%s is left behind\n", root);
	arena_free(mem);
	return summary();
}
