/* The head as steps: logits of a chunk of rows, their loss and gradient, the products
 * that these go into; and then the next chunk. */
#include "fuse.h"

#include <string.h>

/* templates/cuda: rows that ce can hold */
enum { HeldNbytes = 56320 * 4, SmemNbytes = 227 * 1024 };

/* fp8: logits of 2 bytes, and chunks in whole multiples of what FP8 products take */
static long
head_chunk(const Model *m, long T, int target, bool fp8)
{
	long n = m->spec->head_chunk;

	if (n && fp8)
		n = (n + 15) / 16 * 16;
	if (!n && target == TO_CPU) {   /* 16 MiB of fp32 logits, at least 256 rows */
		n = (1L << 22) / m->Vp / 64 * 64;
		if (n < 256)
			n = 256;
	} else if (!n) {
		/* 1 GiB of logits, in equal chunks of whole GEMM tiles: each chunk
		 * reads and writes the head's whole gradient once */
		n = (1L << (fp8 ? 29 : 28)) / m->Vp;
		n = (T + n - 1) / n;
		n = ((T + n - 1) / n + 127) / 128 * 128;
	}
	return n < T ? n : T;
}

/* A block of ce holds a row in shared memory, where it fits, and takes further
 * rows: as many blocks as can be on 132 multiprocessors at once. */
static void
ce_launch(const Plan *p, Step *s, long n)
{
	size_t row = (size_t)p->model->Vp * 4, fit;

	step_launch(p, s, RowBlocks, n, p->model->Vp);
	if (p->target == TO_CPU)
		return;
	s->smem = row <= HeldNbytes ? row : 0;
	fit = SmemNbytes / (s->smem + 2048);
	if (fit > 2048 / (size_t)s->threads)
		fit = 2048 / (size_t)s->threads;
	if (fit < 8 && s->items > (long)fit * (CudaParts / 8))
		s->items = (long)fit * (CudaParts / 8);
}

static Opd
rows_from(Opd o, long row)
{
	o.off += (size_t)(row * o.ld * dt_size(o.dt));
	return o;
}

/* Does every row have the next token as its only target, with weight 1, in every stage? */
static bool
one_target(const Model *m)
{
	int i;

	for (i = 0; i < m->nstage; i++)
		if (m->stage[i].target[0] != 1 || m->stage[i].target_end[0] != 1)
			return false;
	return m->ntarget == 1;
}

Fp8
fp8_scales(const Spec *s)
{
	const double most = 448;        /* of e4m3: what the scales of the spec become */

	return (Fp8){
		.x = { s->fp8_x / most, (float)(most / s->fp8_x) },
		.w = { s->fp8_w / most, (float)(most / s->fp8_w) },
		.grad = { s->fp8_grad / most, (float)(most / s->fp8_grad) },
	};
}

bool
head_is_fp8(const Graph *g)
{
	return g->mode == GRAPH_TRAIN && g->model->spec->head == HEAD_FP8;
}

/* An FP8 product reads both operands along its sum: y and head are there along channels
 * (logits), along rows (dW) and along the vocabulary (dy), and so is the gradient. */
typedef struct {
	Fuse *f;
	int op;                 /* the op of the graph */
	bool train, fp8, learns;
	long chunk;
	Opd y, w, logits, loss;
	Opd dl, dx, dw;         /* train; dw only where the head learns */
	Opd y8, y8t, w8, w8t, dlt;      /* fp8; _t: transposed */
} Head;

/* loss and dlogits of n rows from row r on */
static void
ce_step(Head *h, long r, long n)
{
	Fuse *f = h->f;
	Plan *p = f->p;
	bool plain = !h->train || (!h->fp8 && one_target(p->model));
	Step *s = template_step(f, h->op, plain ? "ce" : "ce_targets", "head loss fwd");
	Opd o = opd_input(INPUT_TARGETS);

	o.off = (size_t)r * 4;
	push(p, s, rows_from(h->loss, r));
	push(p, s, h->dl);
	push(p, s, h->logits);
	push(p, s, o);
	push(p, s, opd_arena(A_SCHED, SchedScale * 4, F32, 1));
	push(p, s, opd_int(n));
	if (plain) {
		push(p, s, opd_int(h->train));
	} else {
		push(p, s, opd_arena(A_SCHED, SchedTargets * 4, F32, p->model->ntarget));
		push(p, s, opd_int(r));
		push(p, s, opd_int(p->model->seq));
	}
	s->nbytes = (double)n * p->model->Vp * (dt_size(h->logits.dt) +
	                                        (h->train ? dt_size(h->dl.dt) : 0));
	ce_launch(p, s, n);
}

static void
head_rows(Head *h, long r, long n)
{
	Fuse *f = h->f;
	const Model *m = f->p->model;

	gemm_step(f, h->op, "head logits fwd", rows_from(h->y, r), false, h->w, true, h->logits,
	          false, n, m->Vp, m->C);
	ce_step(h, r, n);
	if (!h->train)
		return;
	gemm_step(f, h->op, "head dx bwd", h->dl, false, h->w, false, rows_from(h->dx, r), false, n,
	          m->C, m->Vp);
	if (h->learns)
		gemm_step(f, h->op, "head dW bwd", h->dl, true, rows_from(h->y, r), false, h->dw, true,
		          m->Vp, m->C, n);
}

/* tiles of 128 x 128 of a matrix; bytes: of an element, read and written */
static void
tiles_launch(const Plan *p, Step *s, long rows, long width, double bytes)
{
	s->nbytes = (double)rows * (double)width * bytes;
	step_launch(p, s, RowBlocks, (rows + 127) / 128 * ((width + 127) / 128), 1);
}

static void
quantise_step(Head *h, const char *site, Opd to, Opd turned, Opd from, long rows)
{
	Plan *p = h->f->p;
	Step *s = template_step(h->f, h->op, "quantise", site);

	push(p, s, to);
	push(p, s, turned);
	push(p, s, from);
	push(p, s, opd_int(rows));
	push(p, s, opd_int(turned.ld));
	tiles_launch(p, s, rows, to.ld, 2 + dt_size(from.dt));
}

/* an FP8 product: c = alpha a b^T, in the backward pass times the loss's scale */
static void
fp8_gemm(Head *h, const char *site, Opd a, Opd b, Opd c, bool acc, long m, long n, long k,
         double alpha)
{
	Step *s = gemm_step(h->f, h->op, site, a, false, b, true, c, acc, m, n, k);

	s->alpha = alpha;
	s->scaled = a.dt == E5M2;
	s->scale = opd_arena(A_SCHED, SchedScale * 4, F32, 1);
}

static void
fp8_rows(Head *h, long r, long n)
{
	Fuse *f = h->f;
	Plan *p = f->p;
	const Model *m = p->model;
	Fp8 q = fp8_scales(m->spec);
	Opd y8t = h->y8t;
	Step *s;

	fp8_gemm(h, "head logits fwd", rows_from(h->y8, r), h->w8, h->logits, false, n, m->Vp, m->C,
	         q.x.scale * q.w.scale);
	ce_step(h, r, n);
	fp8_gemm(h, "head dx bwd", h->dl, h->w8t, rows_from(h->dx, r), false, n, m->C, m->Vp,
	         q.grad.scale * q.w.scale);
	if (!h->learns)
		return;
	s = template_step(f, h->op, "transpose8", "head turn bwd");
	push(p, s, h->dlt);
	push(p, s, h->dl);
	push(p, s, opd_int(n));
	push(p, s, opd_int(h->dlt.ld));
	tiles_launch(p, s, n, m->Vp, 2);
	y8t.off += (size_t)r;
	fp8_gemm(h, "head dW bwd", h->dlt, y8t, h->dw, true, m->Vp, m->C, n,
	         q.grad.scale * q.x.scale);
}

static Opd
spare(Head *h, const char *name, Dt dt, long rows, long width)
{
	return opd_buf(buffer_new(h->f->p, name, -1, dt, rows, width), dt, width);
}

static void
fp8_buffers(Head *h)
{
	Fuse *f = h->f;
	Plan *p = f->p;
	const Model *m = p->model;
	const Param *w = &m->param[mat_param(f->g, f->g->v[h->op].arg[1])];

	h->y8 = spare(h, "y fp8", E4M3, p->T, m->C);
	h->y8t = spare(h, "y fp8 turned", E4M3, m->C, p->T);
	h->w8 = spare(h, "head fp8", E4M3, m->Vp, m->C);
	h->w8t = spare(h, "head fp8 turned", E4M3, m->C, m->Vp);
	h->dlt = spare(h, "dlogits turned", E5M2, m->Vp, h->chunk);
	quantise_step(h, "head y fwd", h->y8, h->y8t, h->y, p->T);
	quantise_step(h, "head matrix fwd", h->w8, h->w8t, opd_arena(A_PARAMS, w->off, F32, m->C), m->Vp);
}

static void
head_buffers(Head *h)
{
	Fuse *f = h->f;
	Plan *p = f->p;
	const Model *m = p->model;
	const Val *v = &f->g->v[h->op];
	int dw = h->train ? out_value(f->g, h->op, 2) : -1;
	Dt grad = h->fp8 ? E5M2 : f->gemm_in;

	h->y = opd_val(f, v->arg[0]);
	h->w = opd_weight(f, v->arg[1]);
	h->logits = spare(h, "logits", h->fp8 ? BF16 : F32, h->chunk, m->Vp);
	h->loss = spare(h, "loss", F32, p->T, 1);
	h->dl = h->logits;
	if (!h->train)
		return;
	h->dx = opd_out(f, h->op, 1, "dy", f->gemm_out, m->C);
	h->dl = spare(h, "dlogits", grad, h->chunk, m->Vp);
	h->learns = dw >= 0;
	if (h->learns)
		h->dw = opd_grad(f->g, contrib_param(f->g, dw));
	if (h->fp8)
		fp8_buffers(h);
}

void
heavy_head(Fuse *f, int i)
{
	Plan *p = f->p;
	Head h = { .f = f, .op = i, .train = f->g->mode == GRAPH_TRAIN };
	long r, n;
	Step *s;

	h.fp8 = head_is_fp8(f->g);
	h.chunk = head_chunk(p->model, p->T, p->target, h.fp8);
	head_buffers(&h);
	for (r = 0; r < p->T; r += h.chunk) {
		n = p->T - r < h.chunk ? p->T - r : h.chunk;
		if (h.fp8)
			fp8_rows(&h, r, n);
		else
			head_rows(&h, r, n);
	}
	s = template_step(f, i, "loss_sum", "loss");
	push(p, s, opd_arena(A_RESULT, 0, F64, 1));
	push(p, s, h.loss);
	push(p, s, opd_int(p->T));
	s->nbytes = (double)p->T * 4;
	step_launch(p, s, 1, 1, 1);
}

void
heavy_logits(Fuse *f, int i)
{
	const Val *v = &f->g->v[i];
	const Model *m = f->g->model;
	Plan *p = f->p;
	Step *s;

	p->logits = opd_val(f, i);
	gemm_step(f, i, "head logits fwd", opd_val(f, v->arg[0]), false,
	          opd_weight(f, v->arg[1]), true, p->logits, false, p->T, m->Vp, m->C);
	s = template_step(f, i, "softcap", "head softcap fwd");
	push(p, s, p->logits);
	push(p, s, opd_int(p->T));
	s->nbytes = (double)p->T * m->Vp * 8;
	step_launch(p, s, RowBlocks, p->T * m->Vp, m->Vp);
}
