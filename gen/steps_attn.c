/* Attention as steps: which template, over which rows and heads, with what. */
#include "fuse.h"

/* paired heads are half as many over twice the rows of the same memory */
static int
twice(const Val *v)
{
	return v->attr[1] ? 2 : 1;
}

/* pairs of a query and a key it sees, per head of the model, with documents as long as they may be */
static double
attn_pairs(const Model *m, long T, const Val *v)
{
	long window = v->attr[0];
	double seq = (double)m->longest * twice(v), w = window ? (double)window + 1 : seq;

	T *= twice(v);
	if (seq > (double)T)
		seq = (double)T;
	if (w > seq)
		w = seq;
	return (double)T / seq * (w * (w + 1) / 2 + (seq - w) * w) / twice(v);
}

/* do the matrix instructions serve?  Else the templates in plain f32. */
static bool
attn_mma(const Fuse *f)
{
	int D = f->g->model->D;

	return f->gemm_out == BF16 && D >= 16 && D <= 128;
}

/* Blocks of a sequence, heads, rows; shared memory that grows with the head:
 * nbytes a row of D elements and a pad against bank conflicts. */
static void
attn_launch(Fuse *f, Step *s, const Val *v, long items, int heads, int rows, int nbytes)
{
	const Model *m = f->g->model;
	Plan *p = f->p;
	long blocks = ((long)m->seq * twice(v) + rows - 1) / rows;

	step_launch(p, s, items, (p->T + m->seq - 1) / m->seq * (heads / twice(v)) * blocks, m->D);
	if (p->target == TO_CUDA)
		s->smem = (size_t)nbytes * (size_t)(attn_mma(f) ? (m->D + 15) / 16 * 16 + 8 : m->D + 4);
}

/* q, k, v and their strides */
static void
attn_operands(Fuse *f, Step *s, const Val *v)
{
	Plan *p = f->p;
	int at = s->nopd, j;

	for (j = 0; j < 3; j++)
		push(p, s, opd_val(f, v->arg[j]));
	for (j = 0; j < 3; j++)
		push(p, s, opd_int(s->opd[at + j].ld / twice(v)));
}

/* which keys, how many rows */
static void
attn_rows(Fuse *f, Step *s, const Val *v)
{
	Plan *p = f->p;

	push(p, s, opd_input(v->attr[1] ? INPUT_PAIR_DOCSTART : INPUT_DOCSTART));
	push(p, s, opd_int(v->attr[0]));
	push(p, s, opd_float(v->num));
	push(p, s, opd_int(f->g->model->seq * twice(v)));
	push(p, s, opd_int(p->T * twice(v)));
}

void
heavy_attn(Fuse *f, int i)
{
	const Model *m = f->g->model;
	const Val *v = &f->g->v[i];
	Plan *p = f->p;
	bool f32 = p->target == TO_CUDA && !attn_mma(f);
	Step *s = template_step(f, i, f32 ? "attn_fwd_f32" : "attn_fwd", site_name(p, v, "core"));
	int HD = m->H * m->D;

	push(p, s, opd_out(f, i, 0, "o", f->gemm_in, HD));
	push(p, s, opd_out(f, i, 1, "lse", F32, m->H));
	attn_operands(f, s, v);
	attn_rows(f, s, v);
	attn_launch(f, s, v, (p->T + m->seq - 1) / m->seq * (m->H / twice(v)) * (((long)m->seq * twice(v) + 127) / 128), m->H,
	            f32 ? 32 : 128, f32 ? 384 : 768);
	s->flops = 4. * m->D * m->H * attn_pairs(m, p->T, v);
	s->nbytes = (double)p->T * (2. * HD + 2. * m->K * m->D) * dt_size(f->gemm_out);
}

static const char *const attn_grad[] = { "dq", "dk", "dv" };

static Opd
opd_attn_grad(Fuse *f, int i, int which)
{
	const Graph *g = f->g;

	return opd_out(f, i, which, attn_grad[which], f->gemm_out,
	               g->v[g->v[i].arg[which]].width);
}

void
heavy_attn_bwd_cpu(Fuse *f, int i)
{
	const Model *m = f->g->model;
	const Val *v = &f->g->v[i];
	Plan *p = f->p;
	Step *s = template_step(f, i, "attn_bwd", site_name(p, v, "core"));
	int j, HD = m->H * m->D;

	for (j = 0; j < 3; j++)
		push(p, s, opd_attn_grad(f, i, j));
	for (j = 0; j < 3; j++)
		push(p, s, opd_int(s->opd[j].ld / twice(v)));
	attn_operands(f, s, v);
	push(p, s, opd_val(f, v->arg[3]));
	push(p, s, opd_val(f, v->arg[5]));
	push(p, s, opd_val(f, v->arg[4]));
	attn_rows(f, s, v);
	push(p, s, opd_buf(buffer_new(p, "attn_bwd workspace", -1, F32, p->T, HD), F32, HD));
	push(p, s, opd_buf(buffer_new(p, "delta", -1, F32, p->T, m->H), F32, m->H));
	step_launch(p, s, (p->T + m->seq - 1) / m->seq * (m->K / twice(v)), 0, 0);
	s->flops = 10. * m->D * m->H * attn_pairs(m, p->T, v);
	s->nbytes = (double)p->T * (4. * HD + 4. * m->K * m->D) * dt_size(f->gemm_out);
}

/* dq first, which leaves delta, then dk and dv: both form the scores again */
void
heavy_attn_bwd_cuda(Fuse *f, int i)
{
	const Model *m = f->g->model;
	const Val *v = &f->g->v[i];
	Plan *p = f->p;
	bool f32 = !attn_mma(f);
	double HD = m->H * m->D, KD = m->K * m->D, size = dt_size(f->gemm_out);
	double pairs = attn_pairs(m, p->T, v) * m->D * m->H;
	Opd delta = opd_buf(buffer_new(p, "delta", -1, F32, p->T, m->H), F32, m->H);
	Step *s = template_step(f, i, f32 ? "attn_bwd_dq_f32" : "attn_bwd_dq",
	                        site_name(p, v, "core dq"));

	push(p, s, opd_attn_grad(f, i, 0));
	push(p, s, delta);
	push(p, s, opd_int(s->opd[0].ld / twice(v)));
	attn_operands(f, s, v);
	push(p, s, opd_val(f, v->arg[3]));
	push(p, s, opd_val(f, v->arg[5]));
	push(p, s, opd_val(f, v->arg[4]));
	attn_rows(f, s, v);
	attn_launch(f, s, v, 0, m->H, f32 ? 32 : 128, f32 ? 512 : 768);
	s->flops = 6 * pairs;
	s->nbytes = (double)p->T * ((3 * HD + 2 * KD) * size + HD * dt_size(f->gemm_in) + 8. * m->H);

	s = template_step(f, i, f32 ? "attn_bwd_dkv_f32" : "attn_bwd_dkv",
	                  site_name(p, v, "core dk dv"));
	push(p, s, opd_attn_grad(f, i, 1));
	push(p, s, opd_attn_grad(f, i, 2));
	push(p, s, opd_int(s->opd[0].ld / twice(v)));
	push(p, s, opd_int(s->opd[1].ld / twice(v)));
	attn_operands(f, s, v);
	push(p, s, opd_val(f, v->arg[5]));
	push(p, s, opd_val(f, v->arg[4]));
	push(p, s, delta);
	attn_rows(f, s, v);
	attn_launch(f, s, v, 0, m->K, f32 ? 32 : m->D <= 64 ? 128 : 64, f32 ? 512 : 768);
	s->flops = 8 * pairs;
	s->nbytes = (double)p->T * ((2 * HD + 4 * KD) * size + 8. * m->H);
}
