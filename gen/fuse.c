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
 * grad.c flag as kept: lanes, sources and their gradients. */
#include "hcgen.h"

#include <string.h>

int
dt_size(Dt dt)
{
	static const int size[] = { 4, 2, 8, 4 };

	return size[dt];
}

const char *
dt_name(Dt dt)
{
	static const char *const name[] = { "f32", "bf16", "f64", "i32" };

	return name[dt];
}

const char *const arena_name[NArenas] = {
	"params", "weights", "grads", "moment1", "moment2", "acts", "tables",
	"inputs", "sched", "result",
};

typedef struct {
	Arena *a;
	const Graph *g;
	Plan *p;
	int *level;             /* when a value can exist: 16*heavy step + shifts */
	bool *anchor, *stored;
	bool *view;             /* a slice that heavy steps read in place */
	int nkern, capkern;
	RowKernel **kern;       /* by level */
	int *stamp, now;        /* visited marks */
	Dt gemm_in, gemm_out, storage;
} Fuse;

enum { LevelStep = 16 };

static bool
is_row(const Val *v)
{
	OpClass c = op_info[v->op].class;

	return (c == CL_POINT || c == CL_REDUCE || c == CL_INDEX) &&
	       (v->kind == K_VEC || v->kind == K_ROWVAL || v->op == OP_SUMR ||
	        v->kind == K_PVEC);
}

/* is this operand of a heavy op a vec that has to lie in memory? */
static bool
is_demand(const Graph *g, const Val *v, int j)
{
	return op_info[v->op].class == CL_HEAVY && v->arg[j] >= 0 &&
	       (g->v[v->arg[j]].kind == K_VEC || g->v[v->arg[j]].kind == K_ROWVAL);
}

/* can heavy steps read v in place, as columns of a heavy step's result? */
static bool
is_view(const Graph *g, int v)
{
	const Val *x = &g->v[v];

	return x->op == OP_SLICE && (g->v[x->arg[0]].op == OP_GEMM);
}

static void
find_levels(Fuse *f)
{
	const Graph *g = f->g;
	const Val *v;
	int i, j, a, heavy = 0, l;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (op_info[v->op].class == CL_HEAVY) {
			f->level[i] = ++heavy * LevelStep;
			continue;
		}
		for (l = 0, j = 0; j < 6 && (a = v->arg[j]) >= 0; j++)
			if (f->level[a] > l)
				l = f->level[a];
		/* another row's value must have been stored by an earlier kernel */
		if ((v->op == OP_SHIFT || v->op == OP_UNSHIFT) &&
		    is_row(&g->v[v->arg[0]]) && f->level[v->arg[0]] == l)
			l++;
		f->level[i] = l;
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
			if ((v->op == OP_ATTN || v->op == OP_ATTN_BWD) && is_view(g, a))
				f->view[a] = true;
			else if (is_row(&g->v[a]))
				f->anchor[a] = f->stored[a] = true;
		}
	}
}

/* storage types: what a GEMM reads is in its input type, what attention reads
 * in that of the GEMM results beside it, the rest in the storage type */
static void
choose_types(Fuse *f)
{
	const Graph *g = f->g;
	const Val *v;
	int i, j;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		f->p->dt[i] = v->kind != K_VEC ? F32 : f->storage;
		if (v->op == OP_GEMM || v->op == OP_GEMM_DX || v->op == OP_OUT)
			f->p->dt[i] = v->kind == K_VEC ? f->gemm_out : F32;
		if (v->op == OP_LOGITS)
			f->p->dt[i] = F32;
	}
	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		for (j = 0; j < 6; j++) {
			if (!is_demand(g, v, j) || g->v[v->arg[j]].kind != K_VEC)
				continue;
			if (v->op == OP_ATTN || v->op == OP_ATTN_BWD)
				f->p->dt[v->arg[j]] = j == 3 ? f->gemm_in : f->gemm_out;
			else if (v->op != OP_SCATTER)
				f->p->dt[v->arg[j]] = f->gemm_in;
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
		if (g->v[i].op != OP_SUMR || g->v[i].kind != K_SCALAR)
			continue;
		if (!k->nsum++)
			k->sum0 = f->p->npart;
		f->p->partof[i] = f->p->npart++;
	}
}

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

static Opd
opd_input(int which)
{
	return (Opd){ .kind = OPD_INPUT, .id = which, .dt = I32 };
}

static Opd
opd_int(long i)
{
	return (Opd){ .kind = OPD_INT, .i = i };
}

static Opd
opd_float(double x)
{
	return (Opd){ .kind = OPD_FLOAT, .f = x };
}

static int
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
static Opd
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

static Opd
opd_weight(Fuse *f, int v)
{
	const Param *w = &f->g->model->param[f->g->v[v].attr[0]];

	if (w->woff >= 0)
		return opd_arena(A_WEIGHTS, (size_t)w->woff, BF16, w->dim[1]);
	return opd_arena(A_PARAMS, w->off, F32, w->dim[1]);
}

static int
contrib_param(const Graph *g, int v)
{
	int p, k;

	for (p = 0; p < g->model->nparam; p++)
		for (k = g->grad_first[p]; k >= 0; k = g->contrib[k].next)
			if (g->contrib[k].val == v)
				return p;
	bug("fuse: value %d is no gradient", v);
}

static Opd
opd_grad(const Graph *g, int param)
{
	const Param *w = &g->model->param[param];

	return opd_arena(A_GRADS, w->off, F32, w->ndim > 1 ? w->dim[1] : w->dim[0]);
}

/* steps */

static Step *
step_new(Plan *p, StepKind kind, const char *name, const char *site)
{
	Step *s = PUSH(p->mem, p->step, p->nstep, p->capstep);

	memset(s, 0, sizeof *s);
	s->kind = kind;
	s->name = name;
	s->site = site;
	s->val = -1;
	s->items = RowBlocks;
	return s;
}

static void
push(Plan *p, Step *s, Opd o)
{
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = o;
}

static const char *
sub_name(const Model *m, int sub)
{
	return sub < 0 ? "embed" : sub >= m->S ? "out" : sub % 2 ? "mlp" : "attn";
}

static const char *
site_name(Plan *p, const Val *v, const char *what)
{
	const Model *m = p->model;
	const char *dir = v->bwd ? "bwd" : "fwd";

	if (v->sub < 0 || v->sub >= m->S)
		return arena_printf(p->mem, "%s %s", what, dir);
	return arena_printf(p->mem, "layers.%d.%s.%s %s", v->sub / 2,
	                    sub_name(m, v->sub), what, dir);
}

static void
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
}

static Step *
template_step(Fuse *f, int v, const char *name, const char *site)
{
	Step *s = step_new(f->p, STEP_TEMPLATE, name, site);

	s->val = v;
	s->sub = f->g->v[v].sub;
	s->bwd = f->g->v[v].bwd;
	return s;
}

/* a parameter's place in its layer: attn.qkv */
static const char *
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
		param = contrib_param(g, i);
		w = short_name(g->model->param[param].name);
		site = site_name(p, v, arena_printf(p->mem, "%s dW", w));
		n = g->v[v->arg[1]].width;
		gemm_step(f, i, site, opd_val(f, v->arg[0]), true,
		          opd_val(f, v->arg[1]), false, opd_grad(g, param), true,
		          k, n, T);
		return;
	}
	w = short_name(g->model->param[g->v[v->arg[1]].attr[0]].name);
	site = site_name(p, v, v->op == OP_GEMM_DX ?
	                 arena_printf(p->mem, "%s dx", w) : w);
	gemm_step(f, i, site, opd_val(f, v->arg[0]), false,
	          opd_weight(f, v->arg[1]), v->op != OP_GEMM_DX, opd_val(f, i),
	          false, T, n, k);
}

static int
hash_input(const Model *m, int rows)
{
	int j;

	for (j = 0; j < m->spec->nsource; j++)
		if (!m->spec->source[j].none && m->table[j] >= 0 &&
		    m->spec->source[j].rows == rows)
			return j;
	bug("fuse: no bigram source has %d rows", rows);
}

static void
heavy_gather(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Val *v = &g->v[i];
	bool hash = v->attr[0] == IDX_HASH;
	int src = hash ? hash_input(g->model, v->attr[1]) : 0, param;
	Plan *p = f->p;
	Step *s;
	Opd o;

	if (v->op == OP_GATHER) {
		param = g->v[v->arg[0]].attr[0];
		s = template_step(f, i, "gather",
		                  site_name(p, v, g->model->param[param].name));
		push(p, s, opd_val(f, i));
		push(p, s, opd_arena(A_PARAMS, g->model->param[param].off, F32, v->width));
		push(p, s, opd_input(hash ? INPUT_HASH + src : INPUT_TOKENS));
		push(p, s, opd_int(p->T));
		s->nbytes = (double)p->T * v->width * (4 + dt_size(p->dt[i]));
		return;
	}
	param = contrib_param(g, i);
	s = template_step(f, i, "scatter", site_name(p, v, g->model->param[param].name));
	push(p, s, opd_grad(g, param));
	push(p, s, opd_val(f, v->arg[0]));
	o = opd_input(hash ? INPUT_HASH_ORDER + src : INPUT_ORDER);
	push(p, s, o);
	o.off = (size_t)p->T * 4;
	push(p, s, o);
	push(p, s, opd_int(v->attr[1]));
	s->nbytes = (double)p->T * v->width * (8 + dt_size(p->dt[v->arg[0]]));
}

static int
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
static Opd
opd_out(Fuse *f, int tuple, int which, const char *name, Dt dt, long width)
{
	int v = out_value(f->g, tuple, which);

	if (v >= 0)
		return opd_val(f, v);
	return opd_buf(buffer_new(f->p, name, -1, dt, f->p->T, width), dt, width);
}

/* pairs of a query and a key it sees, per head, without documents */
static double
attn_pairs(const Model *m, long T, long window)
{
	double seq = (double)m->seq, w = window ? (double)window + 1 : seq;

	if (seq > (double)T)
		seq = (double)T;
	if (w > seq)
		w = seq;
	return (double)T / seq * (w * (w + 1) / 2 + (seq - w) * w);
}

static void
heavy_attn(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Model *m = g->model;
	const Val *v = &g->v[i];
	Plan *p = f->p;
	Step *s = template_step(f, i, "attn_fwd", site_name(p, v, "core"));
	int HD = m->H * m->D, j;
	Opd o;

	push(p, s, opd_out(f, i, 0, "o", f->gemm_in, HD));
	push(p, s, opd_out(f, i, 1, "lse", F32, m->H));
	for (j = 0; j < 3; j++) {
		o = opd_val(f, v->arg[j]);
		push(p, s, o);
	}
	for (j = 0; j < 3; j++)
		push(p, s, opd_int(s->opd[2 + j].ld));
	push(p, s, opd_input(INPUT_DOCSTART));
	push(p, s, opd_int(v->attr[0]));
	push(p, s, opd_float(v->num));
	push(p, s, opd_int(m->seq));
	push(p, s, opd_int(p->T));
	s->items = p->T / m->seq * m->H * ((m->seq + 127) / 128);
	s->flops = 4. * m->D * m->H * attn_pairs(m, p->T, v->attr[0]);
	s->nbytes = (double)p->T * (2. * HD + 2. * m->K * m->D) * dt_size(f->gemm_out);
}

static void
heavy_attn_bwd(Fuse *f, int i)
{
	static const char *const names[] = { "dq", "dk", "dv" };
	const Graph *g = f->g;
	const Model *m = g->model;
	const Val *v = &g->v[i];
	Plan *p = f->p;
	Step *s = template_step(f, i, "attn_bwd", site_name(p, v, "core"));
	int j, HD = m->H * m->D;

	for (j = 0; j < 3; j++)
		push(p, s, opd_out(f, i, j, names[j], f->gemm_out,
		                   g->v[v->arg[j]].width));
	for (j = 0; j < 3; j++)
		push(p, s, opd_int(s->opd[j].ld));
	for (j = 0; j < 3; j++)
		push(p, s, opd_val(f, v->arg[j]));
	for (j = 0; j < 3; j++)
		push(p, s, opd_int(s->opd[6 + j].ld));
	push(p, s, opd_val(f, v->arg[3]));
	push(p, s, opd_val(f, v->arg[5]));
	push(p, s, opd_val(f, v->arg[4]));
	push(p, s, opd_input(INPUT_DOCSTART));
	push(p, s, opd_int(v->attr[0]));
	push(p, s, opd_float(v->num));
	push(p, s, opd_int(m->seq));
	push(p, s, opd_int(p->T));
	push(p, s, opd_buf(buffer_new(p, "attn_bwd workspace", -1, F32, p->T, HD), F32, HD));
	push(p, s, opd_buf(buffer_new(p, "delta", -1, F32, p->T, m->H), F32, m->H));
	s->items = p->T / m->seq * m->K;
	s->flops = 10. * m->D * m->H * attn_pairs(m, p->T, v->attr[0]);
	s->nbytes = (double)p->T * (4. * HD + 4. * m->K * m->D) * dt_size(f->gemm_out);
}

static long
head_chunk(const Model *m, long T)
{
	long n = m->spec->head_chunk;

	if (!n) {               /* 16 MiB of fp32 logits, at least 256 rows */
		n = (1L << 22) / m->Vp / 64 * 64;
		if (n < 256)
			n = 256;
	}
	return n < T ? n : T;
}

static Opd
rows_from(Opd o, long row)
{
	o.off += (size_t)(row * o.ld * dt_size(o.dt));
	return o;
}

static void
heavy_head(Fuse *f, int i)
{
	const Graph *g = f->g;
	const Model *m = g->model;
	const Val *v = &g->v[i];
	Plan *p = f->p;
	bool train = g->mode == GRAPH_TRAIN;
	long T = p->T, chunk = head_chunk(m, T), r, n;
	int dw = train ? out_value(g, i, 2) : -1;
	Opd y = opd_val(f, v->arg[0]), w = opd_weight(f, v->arg[1]), dx, dl, o;
	Opd logits = opd_buf(buffer_new(p, "logits", -1, F32, chunk, m->Vp), F32, m->Vp);
	Opd loss = opd_buf(buffer_new(p, "loss", -1, F32, T, 1), F32, 1);
	Step *s;

	dl = logits;
	if (train) {
		dx = opd_out(f, i, 1, "dy", f->gemm_out, m->C);
		dl = opd_buf(buffer_new(p, "dlogits", -1, f->gemm_in, chunk, m->Vp),
		             f->gemm_in, m->Vp);
	}
	for (r = 0; r < T; r += chunk) {
		n = T - r < chunk ? T - r : chunk;
		gemm_step(f, i, "head logits fwd", rows_from(y, r), false, w, true,
		          logits, false, n, m->Vp, m->C);
		s = template_step(f, i, "ce", "head loss fwd");
		push(p, s, rows_from(loss, r));
		push(p, s, dl);
		push(p, s, logits);
		o = opd_input(INPUT_TARGETS);
		o.off = (size_t)r * 4;
		push(p, s, o);
		push(p, s, opd_arena(A_SCHED, 8, F32, 1));
		push(p, s, opd_int(n));
		push(p, s, opd_int(train));
		s->nbytes = (double)n * m->Vp * (4. + train * dt_size(f->gemm_in));
		if (!train)
			continue;
		gemm_step(f, i, "head dx bwd", dl, false, w, false, rows_from(dx, r),
		          false, n, m->C, m->Vp);
		if (dw >= 0)
			gemm_step(f, i, "head dW bwd", dl, true, rows_from(y, r), false,
			          opd_grad(g, contrib_param(g, dw)), true, m->Vp,
			          m->C, n);
	}
	s = template_step(f, i, "loss_sum", "loss");
	push(p, s, opd_arena(A_RESULT, 0, F64, 1));
	push(p, s, loss);
	push(p, s, opd_int(T));
	s->items = 1;
	s->nbytes = (double)T * 4;
}

static void
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
}

static void
heavy_step(Fuse *f, int i)
{
	switch ((int)f->g->v[i].op) {
	case OP_GATHER:
	case OP_SCATTER:
		heavy_gather(f, i);
		break;
	case OP_GEMM:
	case OP_GEMM_DX:
	case OP_GEMM_DW:
		heavy_gemm(f, i);
		break;
	case OP_ATTN:
		heavy_attn(f, i);
		break;
	case OP_ATTN_BWD:
		heavy_attn_bwd(f, i);
		break;
	case OP_HEAD:
		heavy_head(f, i);
		break;
	case OP_LOGITS:
		heavy_logits(f, i);
		break;
	}
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

static double
row_bytes(Fuse *f, int v)
{
	return (double)f->p->T * f->g->v[v].width * dt_size(f->p->dt[v]);
}

static void
row_step(Fuse *f, RowKernel *k)
{
	Plan *p = f->p;
	Step *s = step_new(p, STEP_ROW, "", "");
	const Val *v;
	int i;

	s->row = k;
	name_kernel(f, s, k);
	for (i = 0; i < k->nin; i++) {
		opd_val(f, k->in[i]);
		s->nbytes += row_bytes(f, k->in[i]);
	}
	for (i = 0; i < k->nroot; i++) {
		v = &f->g->v[k->root[i]];
		if (v->op == OP_SUMR)
			continue;
		opd_val(f, k->root[i]);
		s->nbytes += row_bytes(f, k->root[i]);
	}
	s->nbytes += 4. * RowBlocks * k->nsum;
}

/* Sums over rows that are vectors: partials, and the step that adds them. */
static void
vector_sums(Fuse *f, const RowKernel *k)
{
	Plan *p = f->p;
	const Graph *g = f->g;
	const Val *v;
	Step *s;
	int i, r, param, b, idx = 0, c;

	for (i = 0; i < k->nroot; i++) {
		r = k->root[i];
		v = &g->v[r];
		if (v->op != OP_SUMR || v->kind != K_PVEC)
			continue;
		b = p->bufof[r] = buffer_new(p, v->name ? v->name : "partials", r, F32,
		                             RowBlocks, v->width);
		p->step[p->nstep - 1].nbytes += (double)p->buf[b].nbytes;
		param = contrib_param(g, r);
		for (c = g->grad_first[param]; c >= 0; c = g->contrib[c].next)
			if (g->contrib[c].val == r)
				idx = g->contrib[c].idx;
		s = step_new(p, STEP_TEMPLATE, "finish",
		             site_name(p, v, short_name(g->model->param[param].name)));
		s->sub = v->sub;
		s->bwd = true;
		push(p, s, opd_arena(A_GRADS, g->model->param[param].off +
		     (size_t)(idx * v->width * 4), F32, v->width));
		push(p, s, opd_buf(b, F32, v->width));
		push(p, s, opd_int(v->width));
		s->nbytes = (double)p->buf[b].nbytes + 8. * v->width;
	}
}

static void
tail_step(Fuse *f)
{
	Plan *p = f->p;
	Step *s;

	p->part = buffer_new(p, "partial sums", -1, F32, p->npart ? p->npart : 1,
	                     RowBlocks);
	if (!p->npart)
		return;
	s = step_new(p, STEP_TAIL, "coef_grads", "coefficient gradients");
	s->bwd = true;
	s->items = 1;
	s->sub = p->model->S;
	s->glue = GLUE_LANE;
	s->nbytes = 4. * RowBlocks * p->npart;
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

static void
model_times(Plan *p)
{
	const Target *t = target_of(p->model);
	const Step *s;
	double mem, mul_, rate;
	int i;

	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		rate = s->kind != STEP_GEMM ? t->attn :
		       s->opd[0].dt == BF16 ? t->bf16 : t->f32;
		mem = s->nbytes / (t->gbs * 1e3);
		mul_ = s->flops / (rate * 1e6);
		p->step[i].us = t->launch + (mem > mul_ ? mem : mul_);
	}
}

static Plan *
plan_new(Arena *a, const Model *m, const char *prog, long T)
{
	Plan *p = NEW(a, Plan);

	p->mem = a;
	p->model = m;
	p->prog = prog;
	p->T = T;
	return p;
}

Plan *
fuse(Arena *a, const Graph *g)
{
	static const char *const prog[] = { "train", "eval", "logits" };
	const Spec *s = g->model->spec;
	Fuse f = { .a = a, .g = g, .p = plan_new(a, g->model, prog[g->mode], g->T) };
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
	f.storage = s->storage == F_BF16 ? BF16 : F32;
	f.gemm_in = s->gemm == F_BF16 ? BF16 : F32;
	f.gemm_out = s->gemm == F_BF16 ? f.storage : F32;
	find_levels(&f);
	mark_anchors(&f);
	choose_types(&f);
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

/* clipping, AdamW for every parameter */
Plan *
plan_update(Arena *a, const Model *m)
{
	Plan *p = plan_new(a, m, "update", 0);
	int part = buffer_new(p, "squares", -1, F64, RowBlocks, 1), i;
	const Param *w;
	Step *s;
	long n = (long)(m->params_nbytes / 4);

	s = step_new(p, STEP_TEMPLATE, "sqsum", "gradient norm");
	push(p, s, opd_buf(part, F64, 1));
	push(p, s, opd_arena(A_GRADS, 0, F32, n));
	push(p, s, opd_int(n));
	s->nbytes = 4. * (double)n;
	s = step_new(p, STEP_TEMPLATE, "clip", "gradient norm");
	s->items = 1;
	push(p, s, opd_arena(A_SCHED, 0, F32, 1));
	push(p, s, opd_buf(part, F64, 1));
	push(p, s, opd_float(m->spec->clip));
	for (i = 0; i < m->nparam; i++) {
		w = &m->param[i];
		s = step_new(p, STEP_TEMPLATE, "adamw", w->name);
		push(p, s, opd_arena(A_PARAMS, w->off, F32, 1));
		if (w->woff >= 0)
			push(p, s, opd_arena(A_WEIGHTS, (size_t)w->woff, BF16, 1));
		else
			push(p, s, opd_int(0));         /* a null pointer */
		push(p, s, opd_arena(A_MOMENT1, w->off, F32, 1));
		push(p, s, opd_arena(A_MOMENT2, w->off, F32, 1));
		push(p, s, opd_arena(A_GRADS, w->off, F32, 1));
		push(p, s, opd_int(w->n));
		push(p, s, opd_float(m->spec->lr * w->lr_mul));
		push(p, s, opd_float(w->betas[0]));
		push(p, s, opd_float(w->betas[1]));
		push(p, s, opd_float(w->eps));
		push(p, s, opd_float(w->weight_decay));
		push(p, s, opd_arena(A_SCHED, 0, F32, 1));
		s->acc = w->woff >= 0;          /* which text: with bf16 copy or not */
		s->nbytes = (double)w->n * (28. + 2. * (w->woff >= 0));
	}
	p->buf[part].first = 0;
	p->buf[part].last = 1;
	model_times(p);
	return p;
}

void
plan_verify(const Plan *p)
{
	const Step *s;
	bool *made;
	int i, j, v;

	if (!p->g)
		return;
	made = NEWN(p->mem, bool, p->nbuf);
	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		if (s->nbytes <= 0)
			bug("plan: step %d (%s) states no bytes", i, s->site);
		for (j = 0; s->row && j < s->row->nin; j++) {
			v = s->row->in[j];
			if (p->bufof[v] < 0 || !made[p->bufof[v]])
				bug("plan: step %d (%s) reads value %d before it is stored",
				    i, s->site, v);
		}
		for (j = 0; s->row && j < s->row->nroot; j++)
			if (p->bufof[s->row->root[j]] >= 0)
				made[p->bufof[s->row->root[j]]] = true;
		for (j = 0; j < s->nopd; j++)
			if (s->opd[j].kind == OPD_BUF)
				made[s->opd[j].id] = true;
	}
}

void
plan_print(const Plan *p, FILE *f)
{
	const Step *s;
	int i, j;

	fprintf(f, "program %s T %ld\n", p->prog, p->T);
	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		fprintf(f, "%4d %s bytes %.0f flops %.0f", i, s->site, s->nbytes, s->flops);
		for (j = 0; s->row && j < s->row->nin; j++)
			fprintf(f, "%s%%%d", j ? " " : " in ", s->row->in[j]);
		for (j = 0; s->row && j < s->row->nroot; j++)
			fprintf(f, "%s%%%d", j ? " " : " out ", s->row->root[j]);
		fputc('\n', f);
	}
	for (i = 0; i < p->nbuf; i++)
		fprintf(f, "buf %d %s %s [%ld,%ld] life %d..%d at %zu\n", i, p->buf[i].name,
		        dt_name(p->buf[i].dt), p->buf[i].rows, p->buf[i].width,
		        p->buf[i].first, p->buf[i].last, p->buf[i].off);
}
