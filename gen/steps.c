/* Heavy ops as steps: their operands, their buffers, what they move.  Attention and the head
 * have files of their own.
 *
 * A step says where every operand lies; templates take theirs in the order
 * their files list. */
#include "fuse.h"

#include <string.h>

/* templates/cuda: tokens of a chunk of scatter */
enum { ScatterChunk = 64 };

/* buffers and operands */

Opd
opd_buf(int buf, Dt dt, long ld)
{
	return (Opd){ .kind = OPD_BUF, .id = buf, .dt = dt, .ld = ld };
}

Opd
opd_arena(int arena, size_t off, Dt dt, long ld)
{
	return (Opd){ .kind = OPD_ARENA, .id = arena, .off = off, .dt = dt, .ld = ld };
}

Opd
opd_input(int which)
{
	return (Opd){ .kind = OPD_INPUT, .id = which, .dt = I32 };
}

Opd
opd_int(long i)
{
	return (Opd){ .kind = OPD_INT, .i = i };
}

Opd
opd_float(double x)
{
	return (Opd){ .kind = OPD_FLOAT, .f = x };
}

int
buffer_new(Plan *p, const char *name, int val, Dt dt, long rows, long width)
{
	Buffer *b = PUSH(p->mem, p->buf, p->nbuf, p->capbuf);

	memset(b, 0, sizeof *b);
	b->name = name ? name : "value";
	b->val = val;
	b->dt = dt;
	b->rows = rows;
	b->width = width;
	b->nbytes = (size_t)rows * (size_t)width * (size_t)dt_size(dt);
	b->first = -1;
	return p->nbuf - 1;
}

/* the buffer of a stored value (made on first use) */
Opd
opd_val(Fuse *f, int v)
{
	Plan *p = f->p;
	const Val *x = &f->g->v[v];
	Opd o;

	if (f->view[v]) {
		o = opd_val(f, x->arg[0]);
		o.off += (size_t)(x->attr[0] * dt_size(o.dt));
		return o;
	}
	if (p->bufof[v] < 0)
		p->bufof[v] = buffer_new(p, x->name, v, p->dt[v], p->T, x->width);
	return opd_buf(p->bufof[v], p->dt[v], x->width);
}

/* the buffer of a matrix of param's shape */
static Opd
opd_matrix(Fuse *f, int v, int param)
{
	const Param *w = &f->g->model->param[param];
	Plan *p = f->p;

	if (p->bufof[v] < 0)
		p->bufof[v] = buffer_new(p, f->g->v[v].name, v, p->dt[v], w->dim[0], w->dim[1]);
	return opd_buf(p->bufof[v], p->dt[v], w->dim[1]);
}

Opd
opd_weight(Fuse *f, int v)
{
	int param = mat_param(f->g, v);
	const Param *w = &f->g->model->param[param];

	if (f->g->v[v].op == OP_SCALED)
		return opd_matrix(f, v, param);
	if (w->woff >= 0)
		return opd_arena(A_WEIGHTS, (size_t)w->woff, f->gemm_in, w->dim[1]);
	return opd_arena(A_PARAMS, w->off, F32, w->dim[1]);
}

/* what a learned factor multiplies: the parameter, or what products see of it */
static Opd
opd_unscaled(Fuse *f, int param)
{
	const Param *w = &f->g->model->param[param];

	if (w->held == HELD_UPPER)
		return opd_arena(A_WEIGHTS, (size_t)w->woff, f->gemm_in, w->dim[1]);
	return opd_arena(A_PARAMS, w->off, F32, w->dim[1]);
}

int
contrib_param(const Graph *g, int v)
{
	int p, k;

	for (p = 0; p < g->model->nparam; p++)
		for (k = g->grad_first[p]; k >= 0; k = g->contrib[k].next)
			if (g->contrib[k].val == v)
				return p;
	bug("fuse: value %d is no gradient", v);
}

Opd
opd_grad(const Graph *g, int param)
{
	const Param *w = &g->model->param[param];

	return opd_arena(A_GRADS, w->off, F32, w->ndim > 1 ? w->dim[1] : w->dim[0]);
}

/* steps */

/* How templates are launched on cuda; each states the same in its header.
 * threads: of a block; with vec, as many as its row has of vec elements, in
 * whole warps, at most `threads`.  per: rows, elements or columns that a block
 * takes at a time; with most, no more than CudaParts blocks, which then go on. */
static const struct { const char *name; int threads, vec; long per; bool most; } launches[] = {
	{ "gather",           256, 8, 1, false },
	{ "signs",            256, 4, 1, false },
	{ "scatter",          256, 8, ScatterChunk, false },
	{ "scatter_finish",   256, 0, 1, false },
	{ "ce",              1024, 8, 1, true },
	{ "ce_targets",      1024, 8, 1, true },
	{ "quantise",         256, 0, 1, false },
	{ "transpose8",       256, 0, 1, false },
	{ "softcap",          256, 0, 4096, true },
	{ "loss_sum",        1024, 0, 0, false },
	{ "finish",          1024, 0, 32, false },
	{ "sqsum",            256, 0, 1, true },
	{ "gate",             256, 0, 256, false },
	{ "gate_bwd",         256, 0, 1, true },
	{ "scaled",           256, 0, 4096, true },
	{ "scaled_bwd",       256, 0, 1, true },
	{ "clip",             256, 0, 0, false },
	{ "adamw",            256, 0, 1024, true },
	{ "cautious_adam",    256, 0, 1024, true },
	{ "normuon_momentum", 256, 0, 1, false },
	{ "normuon_scale",    256, 0, 1, false },
	{ "normuon_rows",     256, 0, 8, false },
	{ "normuon_factors",  256, 0, 1, false },
	{ "normuon_update",   256, 0, 1, false },
	{ "attn_fwd",         128, 0, 1, false },
	{ "attn_fwd_f32",     128, 0, 1, false },
	{ "attn_bwd_dq",      128, 0, 1, false },
	{ "attn_bwd_dq_f32",  128, 0, 1, false },
	{ "attn_bwd_dkv",     128, 0, 1, false },
	{ "attn_bwd_dkv_f32", 128, 0, 1, false },
};

/* The launch of a template step.  cpu: items calls.  cuda: n is what there is
 * of what the table counts, width the elements of a row. */
void
step_launch(const Plan *p, Step *s, long items, long n, long width)
{
	size_t i;
	long k;

	s->items = items;
	if (p->target == TO_CPU)
		return;
	for (i = 0; i < sizeof launches / sizeof *launches; i++)
		if (strcmp(launches[i].name, s->name) == 0)
			break;
	if (i == sizeof launches / sizeof *launches)
		bug("plan: nothing says how %s is launched", s->name);
	s->threads = launches[i].threads;
	if (launches[i].vec) {
		k = ((width + launches[i].vec - 1) / launches[i].vec + 31) / 32 * 32;
		s->threads = k < s->threads ? (int)k : s->threads;
	}
	k = launches[i].per ? (n + launches[i].per - 1) / launches[i].per : 1;
	s->items = launches[i].most && k > CudaParts ? CudaParts : k;
}

Step *
step_new(Plan *p, StepKind kind, const char *name, const char *site)
{
	Step *s = PUSH(p->mem, p->step, p->nstep, p->capstep);

	memset(s, 0, sizeof *s);
	s->kind = kind;
	s->name = name;
	s->site = site;
	s->val = -1;
	s->items = p->parts;
	return s;
}

void
push(Plan *p, Step *s, Opd o)
{
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = o;
}

const char *
sub_name(const Model *m, int sub)
{
	return sub < 0 ? "embed" : sub >= m->S ? "out" : sub % 2 ? "mlp" : "attn";
}

const char *
site_name(Plan *p, const Val *v, const char *what)
{
	const Model *m = p->model;
	const char *dir = v->bwd ? "bwd" : "fwd";

	if (v->sub < 0 || v->sub >= m->S)
		return arena_printf(p->mem, "%s %s", what, dir);
	return arena_printf(p->mem, "layers.%d.%s.%s %s", v->sub / 2,
	                    sub_name(m, v->sub), what, dir);
}

Step *
gemm_step(Fuse *f, int v, const char *site, Opd a, bool ta, Opd b, bool tb, Opd c,
          bool acc, long m, long n, long k)
{
	Plan *p = f->p;
	Step *s = step_new(p, STEP_GEMM, "gemm", site);

	push(p, s, a);
	push(p, s, b);
	push(p, s, c);
	s->ta = ta;
	s->tb = tb;
	s->acc = acc;
	s->m = m;
	s->n = n;
	s->k = k;
	s->val = v;
	s->sub = f->g->v[v].sub;
	s->bwd = f->g->v[v].bwd;
	s->flops = 2. * (double)m * (double)n * (double)k;
	s->nbytes = (double)m * (double)k * dt_size(a.dt) +
	            (double)n * (double)k * dt_size(b.dt) +
	            (double)m * (double)n * dt_size(c.dt) * (acc ? 2 : 1);
	return s;
}

Step *
template_step(Fuse *f, int v, const char *name, const char *site)
{
	Step *s = step_new(f->p, STEP_TEMPLATE, name, site);

	s->val = v;
	s->sub = f->g->v[v].sub;
	s->bwd = f->g->v[v].bwd;
	return s;
}

/* a parameter's place in its layer: attn.qkv */
const char *
short_name(const char *name)
{
	const char *dot = strrchr(name, '.');

	return strncmp(name, "layers.", 7) == 0 && dot ? dot + 1 : name;
}

static void
heavy_gemm(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Val *v = &g->v[i];
	Plan *p = f->p;
	long T = p->T, n = v->width, k = g->v[v->arg[0]].width;
	const char *w, *site;
	int param;

	if (v->op == OP_GEMM_DW) {
		param = v->attr[0];
		w = short_name(g->model->param[param].name);
		site = site_name(p, v, arena_printf(p->mem, "%s dW", w));
		n = g->v[v->arg[1]].width;
		gemm_step(f, i, site, opd_val(f, v->arg[0]), true, opd_val(f, v->arg[1]), false,
		          v->attr[1] ? opd_matrix(f, i, param) : opd_grad(g, param),
		          !v->attr[1], k, n, T);
		return;
	}
	w = short_name(g->model->param[mat_param(g, v->arg[1])].name);
	site = site_name(p, v, v->op == OP_GEMM_DX ?
	                 arena_printf(p->mem, "%s dx", w) : w);
	gemm_step(f, i, site, opd_val(f, v->arg[0]), false,
	          opd_weight(f, v->arg[1]), (v->op == OP_GEMM_DX) == (v->attr[0] != 0), opd_val(f, i),
	          false, T, n, k);
}

/* cuda: what scatter leaves of runs that cross chunks is added in its step */
static void
scatter_finish(Fuse *f, int i, const Opd *o, int rows)
{
	const Val *v = &f->g->v[i];
	Plan *p = f->p;
	long chunks = (p->T + ScatterChunk - 1) / ScatterChunk, C = v->width;
	long slab = C % 4 ? 64 : 256;
	Step *s = template_step(f, i, "scatter_finish", site_name(p, v, arena_printf(p->mem,
	                        "%s runs", f->g->model->param[v->attr[2]].name)));
	int k;

	push(p, s, o[0]);
	push(p, s, o[2]);
	push(p, s, o[3]);
	push(p, s, opd_int(rows));
	for (k = 5; k < 7; k++)
		push(p, s, o[k]);
	/* one run per chunk that goes on into the next */
	s->nbytes = (double)chunks * (double)C * 16;
	step_launch(p, s, 0, chunks * ((C + slab - 1) / slab), C);
}

static void
heavy_scatter(Fuse *f, int i, int order, int index)
{
	const Val *v = &f->g->v[i];
	Plan *p = f->p;
	int param = v->attr[2];
	long chunks = (p->T + ScatterChunk - 1) / ScatterChunk;
	Step *s = template_step(f, i, "scatter",
	                        site_name(p, v, f->g->model->param[param].name));
	Opd o = opd_input(order);

	push(p, s, opd_grad(f->g, param));
	push(p, s, opd_val(f, v->arg[0]));
	push(p, s, o);
	o.off = (size_t)p->T * 4;
	push(p, s, o);
	push(p, s, opd_int(v->attr[1]));
	s->nbytes = (double)p->T * v->width * (8 + dt_size(p->dt[v->arg[0]]));
	step_launch(p, s, RowBlocks, p->T, v->width);
	if (p->target == TO_CPU)
		return;
	push(p, s, opd_input(index));
	push(p, s, opd_buf(buffer_new(p, "runs", -1, F32, chunks * 2, v->width), F32, v->width));
	s->nbytes += (double)chunks * v->width * 8;
	scatter_finish(f, i, s->opd, v->attr[1]);
}

static void
heavy_gather(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Val *v = &g->v[i];
	bool hash = v->attr[0] == IDX_HASH;
	int param = v->op == OP_GATHER ? g->v[v->arg[0]].attr[0] : v->attr[2];
	int src = hash ? table_source(g->model, param) : 0;
	Plan *p = f->p;
	Step *s;

	if (v->op == OP_GATHER) {
		s = template_step(f, i, "gather",
		                  site_name(p, v, g->model->param[param].name));
		push(p, s, opd_val(f, i));
		push(p, s, opd_arena(A_PARAMS, g->model->param[param].off, F32, v->width));
		push(p, s, opd_input(hash ? INPUT_HASH + src : INPUT_TOKENS));
		push(p, s, opd_int(p->T));
		s->nbytes = (double)p->T * v->width * (4 + dt_size(p->dt[i]));
		step_launch(p, s, RowBlocks, p->T, v->width);
		return;
	}
	heavy_scatter(f, i, hash ? INPUT_HASH_ORDER + src : INPUT_ORDER,
	              hash ? INPUT_HASH + src : INPUT_TOKENS);
}

static void
heavy_signs(Fuse *f, int i)
{
	const Val *v = &f->g->v[i];
	Plan *p = f->p;
	Step *s = template_step(f, i, "signs", site_name(p, v, "bigram"));

	push(p, s, opd_val(f, i));
	push(p, s, opd_val(f, v->arg[0]));
	push(p, s, opd_input(INPUT_TOKENS));
	push(p, s, opd_int(p->T));
	push(p, s, opd_int(f->g->model->seq));
	s->nbytes = (double)p->T * v->width * (dt_size(p->dt[i]) + dt_size(p->dt[v->arg[0]]));
	step_launch(p, s, RowBlocks, p->T, v->width);
}

int
out_value(const Graph *g, int tuple, int which)
{
	int i;

	for (i = tuple + 1; i < g->n; i++)
		if (g->v[i].op == OP_OUT && g->v[i].arg[0] == tuple &&
		    g->v[i].attr[0] == which)
			return i;
	return -1;
}

/* a result of a tuple: the buffer of its OUT value, or a spare one */
Opd
opd_out(Fuse *f, int tuple, int which, const char *name, Dt dt, long width)
{
	int v = out_value(f->g, tuple, which);

	if (v >= 0)
		return opd_val(f, v);
	return opd_buf(buffer_new(f->p, name, -1, dt, f->p->T, width), dt, width);
}

/* adds what the blocks left of a gate's dW to its gradient */
static void
gate_finish(Fuse *f, int i, int part)
{
	const Val *v = &f->g->v[i];
	int param = mat_param(f->g, v->arg[1]);
	const Param *w = &f->g->model->param[param];
	Plan *p = f->p;
	Step *s = template_step(f, i, "finish", site_name(p, v, short_name(w->name)));

	push(p, s, opd_grad(f->g, param));
	push(p, s, opd_buf(part, F32, w->n));
	push(p, s, opd_int(w->n));
	if (p->target == TO_CUDA)
		push(p, s, opd_int(p->parts));
	s->nbytes = (double)p->buf[part].nbytes + 8. * (double)w->n;
	step_launch(p, s, RowBlocks, w->n, 1);
}

static void
heavy_gate(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Val *v = &g->v[i];
	bool bwd = v->op == OP_GATE_BWD;
	const Param *w = &g->model->param[mat_param(g, v->arg[1])];
	Plan *p = f->p;
	int part = -1;
	Step *s = template_step(f, i, bwd ? "gate_bwd" : "gate", site_name(p, v, short_name(w->name)));

	if (bwd) {
		part = buffer_new(p, "gate partials", -1, F32, p->parts, w->n);
		push(p, s, opd_out(f, i, 0, "dx", f->gemm_out, (v->attr[0] + 7) / 8 * 8));
		push(p, s, opd_buf(part, F32, w->n));
		push(p, s, opd_val(f, v->arg[2]));
	} else {
		push(p, s, opd_val(f, i));
	}
	push(p, s, opd_val(f, v->arg[0]));
	push(p, s, opd_arena(A_PARAMS, w->off, F32, w->dim[w->ndim - 1]));
	push(p, s, opd_int(p->T));
	/* memory moves in pieces of 32 bytes */
	s->nbytes = (double)p->T * (4. * v->width + (bwd ? 2 : 1) * (v->attr[0] + 15) / 16 * 32);
	if (bwd)
		s->nbytes += (double)p->buf[part].nbytes;
	step_launch(p, s, p->parts, bwd ? p->parts : p->T, 1);
	if (bwd)
		gate_finish(f, i, part);
}

/* The coefficients that a scalar is the product of, each where it lies, and after
 * them null pointers up to the two that the templates take. */
static void
push_scales(Fuse *f, Step *s, int v, int *n)
{
	const Val *x = &f->g->v[v];

	if (x->op == OP_MUL) {
		push_scales(f, s, x->arg[0], n);
		push_scales(f, s, x->arg[1], n);
		return;
	}
	if (x->op == OP_BF16)
		x = &f->g->v[x->arg[0]];
	push(f->p, s, opd_arena(A_PARAMS, f->g->model->param[x->attr[0]].off +
	                        (size_t)x->attr[1] * 4, F32, 1));
	++*n;
}

/* s W for the products that read it, and what W and s get of its gradient */
static void
heavy_scaled(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Val *v = &g->v[i];
	bool bwd = v->op == OP_SCALED_BWD;
	int param = mat_param(g, v->arg[bwd]), ds, n = 0;
	const Param *w = &g->model->param[param];
	Plan *p = f->p;
	Opd weight = opd_unscaled(f, param), part;
	Step *s = template_step(f, i, bwd ? "scaled_bwd" : "scaled", site_name(p, v,
	                        arena_printf(p->mem, "%s scaled", short_name(w->name))));

	if (!bwd) {
		push(p, s, opd_matrix(f, i, param));
		push(p, s, weight);
		s->nbytes = (double)w->n * (dt_size(weight.dt) + dt_size(p->dt[i]));
	} else {
		ds = out_value(g, i, 0);
		p->partof[ds] = p->npart++;
		part = opd_buf(p->part, F32, p->parts);
		part.off = (size_t)p->partof[ds] * (size_t)p->parts * 4;
		push(p, s, opd_grad(g, param));
		push(p, s, part);
		push(p, s, opd_matrix(f, v->arg[0], param));
		push(p, s, weight);
		s->nbytes = (double)w->n * (12 + dt_size(weight.dt)) + 4. * p->parts;
	}
	push_scales(f, s, v->arg[bwd + 1], &n);
	for (; n < 2; n++)
		push(p, s, opd_int(0));
	push(p, s, opd_int(w->n));
	step_launch(p, s, p->parts, bwd ? p->parts : w->n, 1);
}

void
heavy_step(Fuse *f, int i)
{
	switch ((int)f->g->v[i].op) {
	case OP_GATHER:
	case OP_SCATTER:
		heavy_gather(f, i);
		break;
	case OP_SIGNS:
		heavy_signs(f, i);
		break;
	case OP_GEMM:
	case OP_GEMM_DX:
	case OP_GEMM_DW:
		heavy_gemm(f, i);
		break;
	case OP_GATE:
	case OP_GATE_BWD:
		heavy_gate(f, i);
		break;
	case OP_SCALED:
	case OP_SCALED_BWD:
		heavy_scaled(f, i);
		break;
	case OP_ATTN:
		heavy_attn(f, i);
		break;
	case OP_ATTN_BWD:
		if (f->p->target == TO_CPU)
			heavy_attn_bwd_cpu(f, i);
		else
			heavy_attn_bwd_cuda(f, i);
		break;
	case OP_HEAD:
		heavy_head(f, i);
		break;
	case OP_LOGITS:
		heavy_logits(f, i);
		break;
	}
}
