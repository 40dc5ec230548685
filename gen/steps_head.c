/* The head as steps: logits of a chunk of rows, their loss and gradient, the products
 * that these go into; and then the next chunk. */
#include "fuse.h"

#include <string.h>

/* templates/cuda: rows that ce can hold */
enum { HeldNbytes = 56320 * 4, SmemNbytes = 227 * 1024 };

static long
head_chunk(const Model *m, long T, int target)
{
	long n = m->spec->head_chunk;

	if (!n && target == TO_CPU) {   /* 16 MiB of fp32 logits, at least 256 rows */
		n = (1L << 22) / m->Vp / 64 * 64;
		if (n < 256)
			n = 256;
	} else if (!n) {
		/* 1 GiB of them, in equal chunks of whole GEMM tiles: each chunk
		 * reads and writes the head's whole gradient once */
		n = (1L << 28) / m->Vp;
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

typedef struct {
	Fuse *f;
	int op;                 /* the op of the graph */
	bool train;
	long chunk;
	Opd y, w, logits, loss;
	Opd dl, dx, dw;         /* train; dw only where the head learns */
	bool learns;
} Head;

/* loss and dlogits of n rows from row r on */
static void
ce_step(Head *h, long r, long n)
{
	Fuse *f = h->f;
	Plan *p = f->p;
	bool plain = !h->train || one_target(p->model);
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

static void
head_buffers(Head *h)
{
	Fuse *f = h->f;
	Plan *p = f->p;
	const Model *m = p->model;
	const Val *v = &f->g->v[h->op];
	int dw = h->train ? out_value(f->g, h->op, 2) : -1;

	h->y = opd_val(f, v->arg[0]);
	h->w = opd_weight(f, v->arg[1]);
	h->logits = opd_buf(buffer_new(p, "logits", -1, F32, h->chunk, m->Vp), F32, m->Vp);
	h->loss = opd_buf(buffer_new(p, "loss", -1, F32, p->T, 1), F32, 1);
	h->dl = h->logits;
	if (!h->train)
		return;
	h->dx = opd_out(f, h->op, 1, "dy", f->gemm_out, m->C);
	h->dl = opd_buf(buffer_new(p, "dlogits", -1, f->gemm_in, h->chunk, m->Vp), f->gemm_in, m->Vp);
	h->learns = dw >= 0;
	if (h->learns)
		h->dw = opd_grad(f->g, contrib_param(f->g, dw));
}

void
heavy_head(Fuse *f, int i)
{
	Plan *p = f->p;
	Head h = { .f = f, .op = i, .train = f->g->mode == GRAPH_TRAIN };
	long r;
	Step *s;

	h.chunk = head_chunk(p->model, p->T, p->target);
	head_buffers(&h);
	for (r = 0; r < p->T; r += h.chunk)
		head_rows(&h, r, p->T - r < h.chunk ? p->T - r : h.chunk);
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
