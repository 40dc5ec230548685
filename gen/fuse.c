/* Graph -> Plan: which values are stored, and which kernel computes what.
 *
 * Heavy ops run in graph order.  Everything else is row work.  A row value is
 * an anchor if it is computed once, in the first kernel where its operands
 * are there; all other row values are expanded inline wherever they are
 * needed.  A kernel is the set of anchors of one boundary between heavy steps.
 *
 * Here is the seam for a search: mark_anchors() decides what is computed once
 * and kernel_of() where; the rest follows.  `plan.search: naive` anchors what
 * heavy steps demand, every reduction, and every value that graph.c and
 * grad.c flag as kept: lanes, sources, norms' 1/rms, gates, and gradients of
 * lanes and sources. */
#include "fuse.h"

#include <string.h>

enum { LevelStep = 16 };

bool
is_row(const Val *v)
{
	OpClass c = op_info[v->op].class;

	return (c == CL_POINT || c == CL_REDUCE || c == CL_INDEX) &&
	       (v->kind == K_VEC || v->kind == K_ROWVAL || v->op == OP_SUMR ||
	        v->kind == K_PVEC);
}

/* is this operand of a heavy op a vec that has to lie in memory? */
bool
is_demand(const Graph *g, const Val *v, int j)
{
	return op_info[v->op].class == CL_HEAVY && v->arg[j] >= 0 &&
	       (g->v[v->arg[j]].kind == K_VEC || g->v[v->arg[j]].kind == K_ROWVAL);
}

/* can heavy steps read v in place, as columns of a heavy step's result? */
bool
is_view(const Graph *g, int v)
{
	const Val *x = &g->v[v];

	return x->op == OP_SLICE && (g->v[x->arg[0]].op == OP_GEMM);
}

void
find_levels(const Graph *g, int *level)
{
	const Val *v;
	int i, j, a, heavy = 0, l;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (op_info[v->op].class == CL_HEAVY) {
			level[i] = ++heavy * LevelStep;
			continue;
		}
		for (l = 0, j = 0; j < 6 && (a = v->arg[j]) >= 0; j++)
			if (level[a] > l)
				l = level[a];
		/* another row's value must have been stored by an earlier kernel */
		if ((v->op == OP_SHIFT || v->op == OP_UNSHIFT) &&
		    is_row(&g->v[v->arg[0]]) && level[v->arg[0]] == l)
			l++;
		if (v->at && v->at < l)
			bug("fuse: value %d is to be computed at %d and can be at %d", i,
			    v->at, l);
		level[i] = v->at ? v->at : l;
	}
}

static void
mark_anchors(Fuse *f)
{
	const Graph *g = f->g;
	const Val *v;
	int i, j, a;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (is_row(v) && ((v->keep && v->kind != K_PVEC) ||
		    v->op == OP_DOT || v->op == OP_SUMC || v->op == OP_SUMR))
			f->anchor[i] = true;
		if ((v->op == OP_SHIFT || v->op == OP_UNSHIFT) &&
		    is_row(&g->v[v->arg[0]]))
			f->anchor[v->arg[0]] = f->stored[v->arg[0]] = true;
		for (j = 0; j < 6; j++) {
			if (!is_demand(g, v, j))
				continue;
			a = v->arg[j];
			if ((v->op == OP_ATTN || v->op == OP_ATTN_BWD) && !v->attr[1] && is_view(g, a))
				f->view[a] = true;
			else if (is_row(&g->v[a]))
				f->anchor[a] = f->stored[a] = true;
		}
	}
}

/* storage types: what a GEMM reads is in its input type, what attention reads
 * in that of the GEMM results beside it, the rest in the storage type */
void
choose_types(const Graph *g, Dt *dt)
{
	const Spec *s = g->model->spec;
	Dt storage = s->storage == F_BF16 ? BF16 : F32;
	Dt gemm_in = s->gemm == F_BF16 ? BF16 : F32;
	Dt gemm_out = s->gemm == F_BF16 ? storage : F32;
	const Val *v;
	int i, j;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		dt[i] = v->kind != K_VEC ? F32 : storage;
		if (v->op == OP_GEMM || v->op == OP_GEMM_DX || v->op == OP_OUT)
			dt[i] = v->kind == K_VEC ? gemm_out : F32;
		if (v->op == OP_LOGITS)
			dt[i] = F32;
	}
	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (v->op == OP_SCALED && g->model->param[mat_param(g, i)].woff >= 0)
			dt[i] = gemm_in;
		for (j = 0; j < 6; j++) {
			if (!is_demand(g, v, j) || g->v[v->arg[j]].kind != K_VEC)
				continue;
			if (v->op == OP_ATTN || v->op == OP_ATTN_BWD)
				dt[v->arg[j]] = j == 3 ? gemm_in : gemm_out;
			else if (v->op != OP_SCATTER && v->op != OP_SIGNS && v->op != OP_GATE && v->op != OP_GATE_BWD)
				dt[v->arg[j]] = gemm_in;
		}
	}
}

/* kernels */

static RowKernel *
kernel_of(Fuse *f, int level)
{
	RowKernel *k;
	int i;

	for (i = f->nkern; i > 0 && f->kern[i - 1]->level >= level; i--)
		if (f->kern[i - 1]->level == level)
			return f->kern[i - 1];
	k = NEW(f->a, RowKernel);
	k->level = level;
	(void)PUSH(f->a, f->kern, f->nkern, f->capkern);
	memmove(f->kern + i + 1, f->kern + i,
	        (size_t)(f->nkern - 1 - i) * sizeof *f->kern);
	f->kern[i] = k;
	return k;
}

/* the stored values that the definition of v reads, for a kernel at level */
static void
expand(Fuse *f, RowKernel *k, int v, bool top)
{
	const Graph *g = f->g;
	const Val *x = &g->v[v];
	bool row = is_row(x);
	int j;

	if (!top && f->stamp[v] == f->now)
		return;
	if (!top)
		f->stamp[v] = f->now;
	if (x->kind != K_VEC && x->kind != K_ROWVAL && x->op != OP_SUMR && !row)
		return;                 /* numbers, scalars, parameters */
	if (row && !top && f->anchor[v] && f->level[v] == k->level)
		return;                 /* computed here, visited by itself */
	if ((row && !top && f->anchor[v]) || (!row && x->op != OP_TABLE)) {
		f->stored[v] = true;
		*PUSH(f->a, k->in, k->nin, k->capin) = v;
		return;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		expand(f, k, x->arg[j], false);
}

/* the partials of a kernel's scalar sums lie side by side */
static void
number_sums(Fuse *f, RowKernel *k)
{
	const Val *v;
	int i;

	k->sum0 = f->p->npart;
	for (i = 0; i < k->nroot; i++) {
		v = &f->g->v[k->root[i]];
		if (v->op == OP_SUMR && v->kind == K_SCALAR) {
			f->p->partof[k->root[i]] = f->p->npart++;
			k->nsum++;
		}
	}
}

static void
make_kernels(Fuse *f)
{
	const Graph *g = f->g;
	RowKernel *k;
	int i, j;

	for (i = 0; i < g->n; i++)
		if (f->anchor[i])
			kernel_of(f, f->level[i]);
	for (j = 0; j < f->nkern; j++) {
		k = f->kern[j];
		f->now++;
		for (i = 0; i < g->n; i++)
			if (f->anchor[i] && f->level[i] == k->level)
				expand(f, k, i, true);
	}
	for (i = 0; i < g->n; i++) {
		if (!f->anchor[i] || !(f->stored[i] || g->v[i].op == OP_SUMR))
			continue;
		k = kernel_of(f, f->level[i]);
		*PUSH(f->a, k->root, k->nroot, k->caproot) = i;
	}
	for (j = 0; j < f->nkern; j++)
		number_sums(f, f->kern[j]);
}
/* row kernels */

/* what the kernel is, from the sublayers its values belong to:
 * lanes_attn_to_mlp_fwd, attn_glue_bwd */
static void
name_kernel(Fuse *f, Step *s, const RowKernel *k)
{
	const Model *m = f->g->model;
	const Val *v, *lo = NULL, *hi = NULL;
	const char *a, *b, *dir;
	int i;

	s->glue = GLUE_BRANCH;
	for (i = 0; i < f->g->n; i++) {
		v = &f->g->v[i];
		if (!f->anchor[i] || f->level[i] != k->level)
			continue;
		s->bwd |= v->bwd;
		if (v->glue == GLUE_LANE)
			s->glue = GLUE_LANE;
		if (!lo || v->sub < lo->sub)
			lo = v;
		if (!hi || v->sub > hi->sub)
			hi = v;
	}
	dir = s->bwd ? "bwd" : "fwd";
	if (s->bwd) {
		v = lo;
		lo = hi;
		hi = v;
	}
	a = sub_name(m, lo->sub);
	b = sub_name(m, hi->sub);
	s->sub = hi->sub;
	if (s->glue == GLUE_BRANCH)
		s->name = arena_printf(f->a, "%s_glue_%s", a, dir);
	else if (lo->sub == hi->sub)
		s->name = arena_printf(f->a, "lanes_%s_%s", a, dir);
	else
		s->name = arena_printf(f->a, "lanes_%s_to_%s_%s", a, b, dir);
	if (s->sub < 0 || s->sub >= m->S)
		s->site = arena_printf(f->a, "%s", s->name);
	else
		s->site = arena_printf(f->a, "layers.%d %s", s->sub / 2, s->name);
}

typedef struct { const Graph *g; const RowKernel *k; int v; int *lo, *hi; bool *channel; } Reads;

/* Mark the channels of v that channels lo … hi-1 of x need.  What was asked of x so
 * far is one range, which only grows. */
static void
mark_reads(Reads *r, int x, int lo, int hi)
{
	const Val *w = &r->g->v[x], *a;
	int i, j, D;

	if (x == r->v && hi > lo) {
		memset(r->channel + lo, 1, (size_t)(hi - lo));
		return;
	}
	if (hi <= lo || (r->hi[x] && lo >= r->lo[x] && hi <= r->hi[x]))
		return;
	lo = r->hi[x] && r->lo[x] < lo ? r->lo[x] : lo;
	hi = r->hi[x] > hi ? r->hi[x] : hi;
	r->lo[x] = lo;
	r->hi[x] = hi;
	for (i = 0; i < r->k->nin; i++)
		if (r->k->in[i] == x)
			return;
	for (j = 0; j < op_info[w->op].arity; j++) {
		a = &r->g->v[w->arg[j]];
		D = w->op == OP_ROTATE ? w->attr[0] : 1;
		if (w->op == OP_SLICE)
			mark_reads(r, w->arg[j], lo + w->attr[0], hi + w->attr[0]);
		else if (w->op == OP_PAD)
			mark_reads(r, w->arg[j], lo > w->attr[0] ? lo - w->attr[0] : 0,
			           hi - w->attr[0] < a->width ? hi - w->attr[0] : a->width);
		else if (w->kind == K_VEC && a->kind == K_VEC && a->width == w->width)
			mark_reads(r, w->arg[j], lo / D * D, (hi + D - 1) / D * D);
		else
			mark_reads(r, w->arg[j], 0, a->width);
	}
}

long
kernel_reads(const Graph *g, const RowKernel *k, int v)
{
	Arena *a = arena_new("reads");
	Reads r = { g, k, v, NEWN(a, int, g->n), NEWN(a, int, g->n), NEWN(a, bool, g->v[v].width + 1) };
	long n = 0;
	int i;

	for (i = 0; i < k->nroot; i++)
		mark_reads(&r, k->root[i], 0, g->v[k->root[i]].width);
	for (i = 0; i < g->v[v].width; i++)
		n += r.channel[i];
	arena_free(a);
	return n;
}

static double
row_bytes(Fuse *f, int v, long width)
{
	return (double)f->p->T * (double)width * dt_size(f->p->dt[v]);
}

static void
row_step(Fuse *f, RowKernel *k)
{
	Plan *p = f->p;
	Step *s = step_new(p, STEP_ROW, "", "");
	const Val *v;
	int i;

	k->step = p->nstep - 1;
	s->row = k;
	name_kernel(f, s, k);
	for (i = 0; i < k->nin; i++) {
		opd_val(f, k->in[i]);
		s->nbytes += row_bytes(f, k->in[i], kernel_reads(f->g, k, k->in[i]));
	}
	for (i = 0; i < k->nroot; i++) {
		v = &f->g->v[k->root[i]];
		if (v->op == OP_SUMR)
			continue;
		opd_val(f, k->root[i]);
		s->nbytes += row_bytes(f, k->root[i], v->width);
	}
	s->nbytes += 4. * p->parts * k->nsum;
}

/* the step that adds the partials of a vector sum to one gradient */
static void
finish_step(Fuse *f, int v, int buf, int param, int row)
{
	Plan *p = f->p;
	const Val *x = &f->g->v[v];
	const Param *w = &f->g->model->param[param];
	Step *s = step_new(p, STEP_TEMPLATE, "finish", site_name(p, x, short_name(w->name)));

	s->sub = x->sub;
	s->bwd = true;
	push(p, s, opd_arena(A_GRADS, w->off + (size_t)(row * x->width * 4), F32, x->width));
	push(p, s, opd_buf(buf, F32, x->width));
	push(p, s, opd_int(x->width));
	if (p->target == TO_CUDA)
		push(p, s, opd_int(p->parts));
	s->nbytes = (double)p->buf[buf].nbytes + 8. * x->width;
	step_launch(p, s, RowBlocks, x->width, 1);
}

/* Sums over rows that are vectors: their partials, and for every gradient that
 * such a sum is (equal ones were merged) the step that adds them. */
static void
vector_sums(Fuse *f, const RowKernel *k)
{
	Plan *p = f->p;
	const Graph *g = f->g;
	const Val *v;
	int i, r, param, b, c;

	for (i = 0; i < k->nroot; i++) {
		r = k->root[i];
		v = &g->v[r];
		if (v->op != OP_SUMR || v->kind != K_PVEC)
			continue;
		b = p->bufof[r] = buffer_new(p, v->name ? v->name : "partials", r, F32,
		                             p->parts, v->width);
		f->p->step[k->step].nbytes += (double)p->buf[b].nbytes;
		for (param = 0; param < g->model->nparam; param++)
			for (c = g->grad_first[param]; c >= 0; c = g->contrib[c].next)
				if (g->contrib[c].val == r)
					finish_step(f, r, b, param, g->contrib[c].idx);
	}
}

/* cuda: gradients of one kernel; compilers take long over a kernel of thousands,
 * and their sums must fit shared memory */
enum { TailGrads = 256 };

static void
tail_step(Fuse *f)
{
	Plan *p = f->p;
	long n, at, each;
	Step *s;

	p->buf[p->part].rows = p->npart ? p->npart : 1;
	p->buf[p->part].nbytes = (size_t)p->buf[p->part].rows * (size_t)p->parts * 4;
	if (!p->npart)
		return;
	n = tail_first(f->g, p->model->nparam);
	each = p->target == TO_CUDA ? TailGrads : n;
	for (at = 0; at < n; at += each) {
		s = step_new(p, STEP_TAIL, "coef_grads", "coefficient gradients");
		s->bwd = true;
		s->items = 1;
		s->sub = p->model->S;
		s->glue = GLUE_LANE;
		s->m = at;
		s->n = n - at < each ? n : at + each;
		s->nbytes = 4. * p->parts * p->npart * (double)(s->n - at) / (double)n;
	}
}

/* lifetimes */

static void
live(Buffer *b, int step)
{
	if (b->first < 0)
		b->first = step;
	b->last = step;
}

static void
find_lives(Plan *p)
{
	const Step *s;
	int i, j;

	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		for (j = 0; j < s->nopd; j++)
			if (s->opd[j].kind == OPD_BUF)
				live(&p->buf[s->opd[j].id], i);
		if (s->kind == STEP_TAIL || (s->row && s->row->nsum))
			live(&p->buf[p->part], i);
		for (j = 0; s->row && j < s->row->nin; j++)
			live(&p->buf[p->bufof[s->row->in[j]]], i);
		for (j = 0; s->row && j < s->row->nroot; j++)
			if (p->bufof[s->row->root[j]] >= 0)
				live(&p->buf[p->bufof[s->row->root[j]]], i);
	}
	if (p->g->logits >= 0)
		live(&p->buf[p->logits.id], p->nstep - 1);
	if (!p->npart)
		p->buf[p->part].first = p->buf[p->part].last = p->nstep - 1;
}

void
model_times(Plan *p)
{
	const Target *t = target_of(p->model);
	const Step *s;
	double mem, mul_, rate;
	int i;

	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		rate = s->kind != STEP_GEMM ? t->attn :
		       dt_fp8(s->opd[0].dt) ? t->fp8 : s->opd[0].dt == BF16 ? t->bf16 : t->f32;
		mem = s->nbytes / (t->gbs * 1e3);
		mul_ = s->flops / (rate * 1e6);
		p->step[i].us = t->launch + (mem > mul_ ? mem : mul_);
	}
}

/* partials per sum over T rows (0: over parameters).  Fewer rows need fewer;
 * a multiple of 4 because a block may take 4 rows at a time. */
static int
parts_of(int target, long T)
{
	if (target == TO_CPU)
		return RowBlocks;
	return T <= 0 || T > CudaParts ? CudaParts : (int)((T + 3) / 4 * 4);
}

Plan *
plan_new(Arena *a, const Model *m, const char *prog, int target, long T)
{
	Plan *p = NEW(a, Plan);

	p->mem = a;
	p->model = m;
	p->prog = prog;
	p->target = target;
	p->T = T;
	p->parts = parts_of(target, T);
	return p;
}

Plan *
fuse(Arena *a, const Graph *g, int target)
{
	static const char *const prog[] = { "train", "eval", "logits" };
	const Spec *s = g->model->spec;
	Fuse f = { .a = a, .g = g, .p = plan_new(a, g->model, prog[g->mode],
	                                               target, g->T) };
	int i, k = 0;

	f.level = NEWN(a, int, g->n);
	f.stamp = NEWN(a, int, g->n);
	f.anchor = NEWN(a, bool, g->n);
	f.stored = NEWN(a, bool, g->n);
	f.view = NEWN(a, bool, g->n);
	f.p->g = g;
	f.p->dt = NEWN(a, Dt, g->n);
	f.p->bufof = NEWN(a, int, g->n);
	f.p->partof = NEWN(a, int, g->n);
	for (i = 0; i < g->n; i++)
		f.p->bufof[i] = f.p->partof[i] = -1;
	f.gemm_in = s->gemm == F_BF16 ? BF16 : F32;
	f.gemm_out = s->gemm == F_BF16 && s->storage == F_BF16 ? BF16 : F32;
	find_levels(g, f.level);
	mark_anchors(&f);
	choose_types(g, f.p->dt);
	f.p->part = buffer_new(f.p, "partial sums", -1, F32, 0, f.p->parts);
	make_kernels(&f);
	for (i = 0; i < g->n; i++) {
		if (op_info[g->v[i].op].class != CL_HEAVY)
			continue;
		for (; k < f.nkern && f.kern[k]->level < f.level[i]; k++) {
			row_step(&f, f.kern[k]);
			vector_sums(&f, f.kern[k]);
		}
		heavy_step(&f, i);
	}
	for (; k < f.nkern; k++) {
		row_step(&f, f.kern[k]);
		vector_sums(&f, f.kern[k]);
	}
	tail_step(&f);
	find_lives(f.p);
	model_times(f.p);
	return f.p;
}
