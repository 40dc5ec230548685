/* Model -> the update program: what is done with the gradients of a step.
 *
 * The norm of all gradients and the factor that clips them; a launch for each parameter of the
 * Adams; NorMuon in banks; gradients cleared behind the updates that took them.
 *
 * A bank is all matrices of one shape that NorMuon updates at the same steps, from whatever
 * parameters.  Gradients, momentum and parameters stay where they lie: the texts hold a table of
 * where each matrix begins.  The iteration works in buffers where matrix i of the bank is matrix i
 * of batched products:
 *
 *   X = momentum, cast; sums of squares        normuon_momentum
 *   X = X/(1.02 ||X|| + 1e-6)                  normuon_scale
 *   five times, rows > cols                    A = X^T X     B = b A + c A A     X' = a X + X B
 *              else                            A = X X^T     B = b A + c A A     X' = a X + B X
 *   mean squares of rows                       normuon_rows
 *   factors of rows                            normuon_factors
 *   the update                                 normuon_update
 *
 * Each line is one launch for the whole bank.  A and B are symmetric, but are formed whole: half of
 * them at half the size takes three launches and a mirroring where one product stands, which is
 * more than it saves at the shapes of a GPT (docs/design.md, Update program).
 *
 * embed and head are both [Vp, C]: where they are updated as one nothing is transposed. */
#include "fuse.h"

#include <math.h>
#include <string.h>

/* elements of a matrix that an item of normuon_momentum, _scale and _update takes; rows that an item
 * of normuon_rows takes */
enum { ChunkCpu = 1 << 16, ChunkCuda = 1 << 13, RowsCpu = 16, Iterations = 5 };

static const double polar[Iterations][3] = {
	{ 8.156554524902461, -22.48329292557795, 15.878769915207462 },
	{ 4.042929935166739, -2.808917465908714, 0.5000178451051316 },
	{ 3.8916678022926607, -2.772484153217685, 0.5060648178503393 },
	{ 3.285753657755655, -2.3681294933425376, 0.46449024233003106 },
	{ 2.3465413258596377, -1.7097828382687081, 0.42323551169305323 },
};

/* banks */

bool
has_normuon(const Model *m)
{
	int i;

	for (i = 0; i < m->nparam; i++)
		if (m->param[i].kind == OPT_NORMUON)
			return true;
	return false;
}

typedef struct { const Model *m; Plan *p; Bank **bank; int nbank, capbank; int *cap, ncap, capcap; } Banks;

static void
bank_add(Banks *b, int param, long row, long rows)
{
	const Param *w = &b->m->param[param];
	Bank *k;
	int i;

	for (i = 0; i < b->nbank; i++)
		if (b->bank[i]->rows == rows && b->bank[i]->cols == w->dim[1] && b->bank[i]->every == w->every)
			break;
	if (i == b->nbank) {
		k = NEW(b->p->mem, Bank);
		*k = (Bank){ .rows = rows, .cols = w->dim[1], .every = w->every };
		*PUSH(b->p->mem, b->bank, b->nbank, b->capbank) = k;
		*PUSH(b->p->mem, b->cap, b->ncap, b->capcap) = 0;
	}
	k = b->bank[i];
	PUSH(b->p->mem, k->matrix, k->n, b->cap[i]);
	k->matrix[k->n - 1].param = param;
	k->matrix[k->n - 1].row = row;
}

/* q, k and v are three matrices, gate and up of a swiglu two: docs/spec.md, Optimizers */
static void
bank_param(Banks *b, const Sub *u, int param)
{
	const Model *m = b->m;
	long q = (long)m->H * m->D, k = (long)m->K * m->D;

	if (param < 0 || m->param[param].kind != OPT_NORMUON)
		return;
	if (param == u->qkv) {
		bank_add(b, param, 0, q);
		bank_add(b, param, q, k);
		bank_add(b, param, q + k, k);
	} else if (param == u->up && m->spec->mlp == MLP_SWIGLU) {
		bank_add(b, param, 0, m->F);
		bank_add(b, param, m->F, m->F);
	} else {
		bank_add(b, param, 0, m->param[param].dim[0]);
	}
}

static void
find_banks(Banks *b)
{
	const Sub *u;
	int i;

	for (u = b->m->sub; u < b->m->sub + b->m->S; u++) {
		bank_param(b, u, u->qkv);
		bank_param(b, u, u->out);
		bank_param(b, u, u->up);
		bank_param(b, u, u->down);
	}
	for (i = 0; i < b->nbank; i++)
		if (b->bank[i]->rows * b->bank[i]->cols % 8)
			bug("update: matrices of %ld by %ld are not aligned in a batch", b->bank[i]->rows,
			    b->bank[i]->cols);
}

/* a number of a table: as it was, to the last bit */
static void
literal(Buf *o, double x)
{
	buf_printf(o, "%.17g", x);
}

void
bank_text(const Model *m, const Step *s, Buf *o)
{
	const Bank *b = s->bank;
	const Param *w;
	long at;
	int i;

	for (i = 0; i < b->n; i++) {
		w = &m->param[b->matrix[i].param];
		at = b->matrix[i].row * b->cols;
		buf_printf(o, "%s\t{ ", i ? ",\n" : "");
		if (strcmp(s->name, "normuon_momentum") == 0) {
			buf_printf(o, "%ld", (long)(w->off / 4) + at);
		} else if (strcmp(s->name, "normuon_factors") == 0) {
			buf_printf(o, "%ld, ", (long)(w->off2 / 4) + b->matrix[i].row);
			literal(o, w->betas[1]);
		} else {
			buf_printf(o, "%ld, %ld, ", (long)(w->off / 4) + at, w->woff < 0 ? 0 :
			           w->woff / (m->spec->gemm == F_BF16 ? 2 : 4) + at);
			literal(o, w->lr * w->lr_mul * sqrt(fmax(1, (double)b->rows / (double)b->cols)));
			buf_puts(o, ", ");
			literal(o, w->lr * w->lr_mul * w->weight_decay);
		}
		buf_printf(o, " }");
	}
}

long
bank_chunk(const Step *s)
{
	return s->threads ? ChunkCuda : ChunkCpu;       /* threads are cuda's */
}

/* steps */

typedef struct { Plan *p; const Bank *b; Dt dt; long chunk, parts, side; bool tall; const char *site; } Work;

static Step *
due(Step *s, int every, long from, long to)
{
	s->every = every > 1 || from > 0 || to >= 0 ? every : 0;
	s->from = from;
	s->to = to;
	return s;
}

static Step *
bank_step(const Work *w, const char *name)
{
	Step *s = due(step_new(w->p, STEP_TEMPLATE, name, w->site), w->b->every, 0, -1);

	s->bank = w->b;
	return s;
}

static double
elements(const Work *w)
{
	return (double)w->b->n * (double)w->b->rows * (double)w->b->cols;
}

static long
items(const Work *w)
{
	return w->b->n * w->parts;
}

static void
momentum_steps(const Work *w, Opd x, Opd part)
{
	Plan *p = w->p;
	double e = dt_size(w->dt);
	Step *s = bank_step(w, "normuon_momentum");

	push(p, s, x);
	push(p, s, part);
	push(p, s, opd_arena(A_MOMENT1, 0, F32, 1));
	push(p, s, opd_arena(A_GRADS, 0, F32, 1));
	push(p, s, opd_arena(A_SCHED, 0, F32, 1));
	s->nbytes = elements(w) * (12 + e) + 8. * (double)items(w);
	step_launch(p, s, items(w), items(w), 1);
	s = bank_step(w, "normuon_scale");
	push(p, s, x);
	push(p, s, part);
	s->nbytes = elements(w) * 2 * e + 8. * (double)items(w);
	step_launch(p, s, items(w), items(w), 1);
}

/* C = alpha op(A) op(B) + beta D for all matrices of the bank */
static void
product(const Work *w, const char *what, Opd a, bool ta, long sa, Opd b, bool tb, long sb, Opd c,
        long m, long n, long k, double alpha, const Opd *d, double beta)
{
	Plan *p = w->p;
	Step *s = due(step_new(p, STEP_GEMM, "gemm", arena_printf(p->mem, "%s %s", w->site, what)), w->b->every,
	              0, -1);

	push(p, s, a);
	push(p, s, b);
	push(p, s, c);
	if (d)
		push(p, s, *d);
	s->ta = ta;
	s->tb = tb;
	s->m = m;
	s->n = n;
	s->k = k;
	s->batch = w->b->n;
	s->sa = sa;
	s->sb = sb;
	s->sc = m * n;
	s->alpha = alpha;
	s->beta = beta;
	s->flops = 2. * w->b->n * (double)m * (double)n * (double)k;
	/* X^T X and A A read one matrix */
	s->nbytes = (double)w->b->n * dt_size(w->dt) * ((double)(m * k) + (a.id == b.id ? 0 : (double)(n * k)) +
	            (double)(m * n) * (d && d->id != a.id && d->id != b.id ? 2 : 1));
}

static void
iterate(const Work *w, const Opd x[2], Opd a, Opd b)
{
	long R = w->b->rows, K = w->b->cols, S = w->side, sx = R * K, ss = S * S;
	const Opd *from, *to;
	const double *c;
	int i;

	for (i = 0; i < Iterations; i++) {
		c = polar[i];
		from = &x[i % 2];
		to = &x[1 - i % 2];
		product(w, w->tall ? "A = X^T X" : "A = X X^T", *from, w->tall, sx, *from, !w->tall, sx, a, S, S,
		        w->tall ? R : K, 1, NULL, 0);
		product(w, "B = b A + c A A", a, false, ss, a, false, ss, b, S, S, S, c[2], &a, c[1]);
		if (w->tall)
			product(w, "X = a X + X B", *from, false, sx, b, false, ss, *to, R, K, K, 1, from, c[0]);
		else
			product(w, "X = a X + B X", b, false, ss, *from, false, sx, *to, R, K, R, 1, from, c[0]);
	}
}

static void
variance_steps(const Work *w, Opd x)
{
	Plan *p = w->p;
	const Param *first = &p->model->param[w->b->matrix[0].param];
	long rows = w->b->n * w->b->rows;
	double e = dt_size(w->dt);
	Opd q = opd_buf(buffer_new(p, "row means", -1, F32, rows, 1), F32, 1);
	Opd f = opd_buf(buffer_new(p, "row factors", -1, F32, rows, 1), F32, 1);
	Step *s = bank_step(w, "normuon_rows");

	push(p, s, q);
	push(p, s, x);
	s->nbytes = elements(w) * e + 4. * (double)rows;
	step_launch(p, s, (rows + RowsCpu - 1) / RowsCpu, rows, 1);
	s = bank_step(w, "normuon_factors");
	push(p, s, f);
	push(p, s, opd_arena(A_MOMENT2, 0, F32, 1));
	push(p, s, q);
	s->nbytes = 20. * (double)rows;         /* factors are read again, to be scaled */
	step_launch(p, s, w->b->n, w->b->n, 1);
	s = bank_step(w, "normuon_update");
	push(p, s, opd_arena(A_PARAMS, 0, F32, 1));
	if (first->woff >= 0)
		push(p, s, opd_arena(A_WEIGHTS, 0, w->dt, 1));
	else
		push(p, s, opd_int(0));         /* a null pointer */
	push(p, s, x);
	push(p, s, f);
	push(p, s, opd_arena(A_SCHED, 0, F32, 1));
	s->nbytes = elements(w) * (8 + e + (first->woff >= 0) * e) + 4. * (double)rows;
	step_launch(p, s, items(w), items(w), 1);
}

static void
normuon(Plan *p, const Bank *b)
{
	const Model *m = p->model;
	Work w = { .p = p, .b = b, .dt = m->spec->gemm == F_BF16 ? BF16 : F32, .tall = b->rows > b->cols };
	Opd x[2], a, c, part;
	int i;

	w.side = w.tall ? b->cols : b->rows;
	w.chunk = p->target == TO_CPU ? ChunkCpu : ChunkCuda;
	w.parts = (b->rows * b->cols + w.chunk - 1) / w.chunk;
	w.site = arena_printf(p->mem, "normuon %d of %ldx%ld", b->n, b->rows, b->cols);
	for (i = 0; i < 2; i++)
		x[i] = opd_buf(buffer_new(p, i ? "X'" : "X", -1, w.dt, b->n * b->rows, b->cols), w.dt, b->cols);
	a = opd_buf(buffer_new(p, "A", -1, w.dt, b->n * w.side, w.side), w.dt, w.side);
	c = opd_buf(buffer_new(p, "B", -1, w.dt, b->n * w.side, w.side), w.dt, w.side);
	part = opd_buf(buffer_new(p, "squares of X", -1, F64, items(&w), 1), F64, 1);
	momentum_steps(&w, x[0], part);
	iterate(&w, x, a, c);
	variance_steps(&w, x[Iterations % 2]);
}

/* tied: embed, which is what head is */
static void
adam(Plan *p, const Param *w, const Param *tied, long from, long to)
{
	static const char *const name[] = { "adamw", "cautious_adam" };
	Step *s = due(step_new(p, STEP_TEMPLATE, name[w->kind], w->name), w->every, from, to);

	push(p, s, opd_arena(A_PARAMS, w->off, F32, 1));
	if (w->woff >= 0)
		push(p, s, opd_arena(A_WEIGHTS, (size_t)w->woff, BF16, 1));
	else
		push(p, s, opd_int(0));         /* a null pointer */
	push(p, s, opd_arena(A_MOMENT1, w->off, F32, 1));
	push(p, s, opd_arena(A_MOMENT2, w->off2, F32, 1));
	push(p, s, opd_arena(A_GRADS, w->off, F32, 1));
	push(p, s, opd_int(w->n));
	push(p, s, opd_float(w->lr * w->lr_mul));
	push(p, s, opd_float(w->betas[0]));
	push(p, s, opd_float(w->betas[1]));
	push(p, s, opd_float(w->eps));
	push(p, s, opd_float(w->weight_decay));
	push(p, s, opd_arena(A_SCHED, 0, F32, 1));
	push(p, s, opd_int(w->every));
	push(p, s, tied ? opd_arena(A_PARAMS, tied->off, F32, 1) : opd_int(0));
	push(p, s, tied ? opd_arena(A_GRADS, tied->off, F32, 1) : opd_int(0));
	/* which text */
	s->acc = w->woff >= 0;
	s->tied = tied != NULL;
	s->held = w->held == HELD_BF16;
	if (tied)
		s->site = arena_printf(p->mem, "%s, %s", tied->name, w->name);
	s->nbytes = (double)w->n * (28. + 2. * (w->woff >= 0) + 8. * (tied != NULL));
	step_launch(p, s, RowBlocks, w->n, 1);
}

static void
copy(Plan *p, int arena, size_t to, size_t from, long nbytes, const Param *w, long step)
{
	Step *s = due(step_new(p, STEP_COPY, "copy", arena_printf(p->mem, "%s of %s", arena_name[arena], w->name)),
	              1, step, step + 1);

	push(p, s, opd_arena(arena, to, F32, 1));
	push(p, s, opd_arena(arena, from, F32, 1));
	s->m = nbytes;
	s->nbytes = 2 * (double)nbytes;
}

/* embed and head: one update until step last, then embed goes on with a copy of the moments */
static void
untied(Plan *p)
{
	const Model *m = p->model;
	const Param *e = &m->param[m->embed], *h = &m->param[m->head];
	long last = m->untie_last;

	adam(p, h, e, 0, last + 1);
	copy(p, A_MOMENT1, e->off, h->off, 4 * e->n, e, last);
	copy(p, A_MOMENT2, e->off2, h->off2, 4 * e->n, e, last);
	adam(p, e, NULL, last + 1, -1);
	adam(p, h, NULL, last + 1, -1);
}

/* Gradients that updates took begin at zero again.  What has one `every` lies together. */
static void
clear(Plan *p, int every)
{
	const Model *m = p->model;
	size_t from = m->params_nbytes, end = 0, to;
	const Param *w;
	Step *s;

	for (w = m->param; w < m->param + m->nparam; w++) {
		if (w->every != every)
			continue;
		to = w->off + ((size_t)w->n * 4 + 255) / 256 * 256;
		from = w->off < from ? w->off : from;
		end = to > end ? to : end;
	}
	s = due(step_new(p, STEP_ZERO, "zero", "gradients"), every, 0, -1);
	push(p, s, opd_arena(A_GRADS, from, F32, 1));
	s->m = (long)(end - from);
	s->nbytes = (double)s->m;
}

static void
norm(Plan *p)
{
	long n = (long)(p->model->params_nbytes / 4);
	Opd part = opd_buf(buffer_new(p, "squares", -1, F64, p->parts, 1), F64, 1);
	Step *s = step_new(p, STEP_TEMPLATE, "sqsum", "gradient norm");

	push(p, s, part);
	push(p, s, opd_arena(A_GRADS, 0, F32, n));
	push(p, s, opd_int(n));
	s->nbytes = 4. * (double)n;
	step_launch(p, s, RowBlocks, p->parts, 1);
	s = step_new(p, STEP_TEMPLATE, "clip", "gradient norm");
	push(p, s, opd_arena(A_SCHED, 0, F32, 1));
	push(p, s, part);
	push(p, s, opd_float(p->model->spec->clip));
	if (p->target == TO_CUDA)
		push(p, s, opd_int(p->parts));
	step_launch(p, s, 1, 1, 1);
}

static void
find_lives(Plan *p)
{
	Buffer *b;
	int i, j;

	for (i = 0; i < p->nstep; i++)
		for (j = 0; j < p->step[i].nopd; j++) {
			if (p->step[i].opd[j].kind != OPD_BUF)
				continue;
			b = &p->buf[p->step[i].opd[j].id];
			b->first = b->first < 0 ? i : b->first;
			b->last = i;
		}
}

Plan *
plan_update(Arena *a, const Model *m, int target)
{
	Plan *p = plan_new(a, m, "update", target, 0);
	Banks b = { .m = m, .p = p };
	int i;

	norm(p);
	for (i = 0; i < m->nparam; i++) {
		if (m->param[i].kind == OPT_NORMUON)
			continue;
		if (m->untie_last >= 0 && (i == m->embed || i == m->head)) {
			if (i == m->head)
				untied(p);
			continue;
		}
		adam(p, &m->param[i], NULL, 0, -1);
	}
	find_banks(&b);
	for (i = 0; i < b.nbank; i++)
		normuon(p, b.bank[i]);
	for (i = next_every(m, 0); i > 0; i = next_every(m, i))
		clear(p, i);
	find_lives(p);
	model_times(p);
	return p;
}

void
polar_flops(const Plan *p, double *all, double *symmetric)
{
	const Step *s;

	*all = *symmetric = 0;
	for (s = p->step; s < p->step + p->nstep; s++) {
		if (s->kind != STEP_GEMM)
			continue;
		*all += s->flops;
		/* of a symmetric result a triangle: A, and B */
		*symmetric += s->opd[0].id == s->opd[1].id ? s->flops * (double)(s->m + 1) / (2. * (double)s->m) : s->flops;
	}
}
