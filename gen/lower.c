/* Step -> Kern: a row kernel as statements.
 *
 * A row is worked on in phases.  Phase p loops over channels and accumulates
 * the sums that can be formed then; what depends on a sum belongs to phase
 * p + 1.  A vector that a later phase needs again is held in a local array
 * (the row stays in the first-level cache); loads are simply repeated.
 *
 * Inside a phase, everything of one width shares its loops.  Loops are cut
 * where a slice, a pad or a rotation changes what a channel is made of, so
 * that no statement has a condition.  Where values are per head, the loop
 * over channels is nested in one over heads. */
#include "kern.h"

#include <stdlib.h>
#include <string.h>

enum { MaxCut = 512, MaxPhase = 32 };

typedef struct { int v, base; Exp *e; } Memo;

typedef struct {
	Arena *a;
	const Plan *p;
	const Graph *g;
	const RowKernel *r;
	Kern *k;
	bool *in, *root, *inside;       /* value: is read, is produced, is computed here */
	int *phase;                     /* vec: loop it is computed in; rowval: first
	                                 * phase that can use it */
	int *uses;
	bool *held;                     /* vec kept in a local array for later phases */
	const char **name;              /* value -> local name */
	int *par, *srcpar;              /* value -> parameter: stored in, read from */
	int nphase;
	int node[1 << 14], nnode;       /* computed values, in order */
	Memo memo[4096];
	int nmemo;
	/* the loop being filled */
	int now;                        /* phase */
	int D, lo, hi, dlo, dhi;        /* heads of D (0: none); range of channels */
	bool pairs;                     /* c counts adjacent pairs */
	int nname;
	const char *names[4096];
	double flops;
	double mult;                    /* times the current loop body runs per row */
} Lower;

static Exp *
exp_new(Lower *l, ExpKind kind)
{
	Exp *e = NEW(l->a, Exp);

	e->kind = kind;
	return e;
}

static Stmt *
stmt(Lower *l, StmtKind kind, const char *name)
{
	Stmt *s = PUSH(l->a, l->k->stmt, l->k->nstmt, l->k->capstmt);

	memset(s, 0, sizeof *s);
	s->kind = kind;
	s->name = name;
	s->par = -1;
	return s;
}

/* names */

static bool
name_taken(const Lower *l, const char *s)
{
	static const char *const words[] = {
		"T", "t", "a", "c", "item", "head", "f32", "bf16", "i32", "F32",
		"BF16", "int", "long", "float", "if", "for", "do", "r0", "r1",
	};
	size_t i;
	int j;

	for (i = 0; i < sizeof words / sizeof *words; i++)
		if (strcmp(s, words[i]) == 0)
			return true;
	for (j = 0; j < l->nname; j++)
		if (strcmp(s, l->names[j]) == 0)
			return true;
	return false;
}

static const char *
unique(Lower *l, const char *base)
{
	const char *s = base;
	int i;

	for (i = 2; name_taken(l, s); i++)
		s = arena_printf(l->a, "%s_%d", base, i);
	if (l->nname == (int)(sizeof l->names / sizeof *l->names))
		bug("lower: more than %d names in %s", l->nname, l->k->name);
	return l->names[l->nname++] = s;
}

/* what is computed here */

static void
collect(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	int j;

	if (l->inside[v] || l->in[v])
		return;
	if (x->kind != K_VEC && x->kind != K_ROWVAL && x->op != OP_SUMR)
		return;
	if (x->op == OP_TABLE)
		return;
	for (j = 0; j < op_info[x->op].arity; j++)
		collect(l, x->arg[j]);
	l->inside[v] = true;
	if (l->nnode == 1 << 14)
		bug("lower: kernel %s has more than %d values", l->k->name, l->nnode);
	l->node[l->nnode++] = v;
}

static int
ready(const Lower *l, int v)
{
	return l->inside[v] ? l->phase[v] : 0;
}

static void
find_phases(Lower *l)
{
	const Val *x;
	int i, j, v, ph;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		for (ph = 0, j = 0; j < op_info[x->op].arity; j++) {
			if (ready(l, x->arg[j]) > ph)
				ph = ready(l, x->arg[j]);
			l->uses[x->arg[j]]++;
		}
		if (x->op == OP_DOT || x->op == OP_SUMC)
			ph++;
		l->phase[v] = ph;
		if (ph >= l->nphase)
			l->nphase = ph + 1;
	}
	if (l->nphase > MaxPhase)
		bug("lower: %s needs %d phases", l->k->name, l->nphase);
}

/* parameters */

static int
par_new(Lower *l, ParKind kind, const char *name, Dt dt, long width, Opd opd)
{
	Par *p = PUSH(l->a, l->k->par, l->k->npar, l->k->cappar);

	memset(p, 0, sizeof *p);
	p->kind = kind;
	p->name = unique(l, name);
	p->dt = dt;
	p->width = width;
	p->opd = opd;
	p->val = -1;
	return l->k->npar - 1;
}

static void
value_par(Lower *l, int v, bool output)
{
	const Val *x = &l->g->v[v];
	Dt dt = l->p->dt[v];
	const char *base = x->name ? x->name : op_info[x->op].name;
	int p = par_new(l, output ? P_OUT : P_IN,
	                arena_printf(l->a, "%s_%s", base, output ? "out" : "in"), dt,
	                x->width, opd_buf(l->p->bufof[v], dt, x->width));

	l->k->par[p].shape = arena_printf(l->a, "[T,%d]", x->width);
	l->k->par[p].what = base;
	l->k->par[p].val = v;
	if (output)
		l->par[v] = p;
	else
		l->srcpar[v] = p;
	*(output ? &l->k->row_write : &l->k->row_read) += x->width * dt_size(dt);
}

/* last parts of a parameter's name: post, resid_lambda, e_coef */
static const char *
coef_base(Lower *l, const char *name)
{
	const char *dot = strrchr(name, '.'), *p;

	if (!dot)
		return name;
	for (p = dot; p > name && p[-1] != '.'; p--)
		;
	if (strncmp(p, "hc.", 3) == 0)
		return dot + 1;
	return arena_printf(l->a, "%.*s_%s", (int)(dot - p), p, dot + 1);
}

static int
coef_rowlen(const Param *p)
{
	return p->ndim > 1 ? (int)(p->n / p->dim[0]) : 1;
}

/* the parameter that holds the row of a coefficient */
static int
coef_par(Lower *l, int param, int row, ParKind kind, int width)
{
	const Param *p = &l->g->model->param[param];
	size_t off = p->off + (size_t)(row * width) * 4;
	int i;

	for (i = 0; i < l->k->npar; i++)
		if (l->k->par[i].kind == kind && l->k->par[i].opd.off == off &&
		    l->k->par[i].opd.kind == OPD_ARENA)
			return i;
	i = par_new(l, kind, coef_base(l, p->name), F32, width,
	            opd_arena(A_PARAMS, off, F32, width));
	l->k->par[i].shape = arena_printf(l->a, "[%d]", width);
	l->k->par[i].what = p->name;
	return i;
}

static int
table_par(Lower *l, int which, int width)
{
	int i;

	for (i = 0; i < l->k->npar; i++)
		if (l->k->par[i].kind == P_TABLE && l->k->par[i].opd.id == which)
			return i;
	i = par_new(l, P_TABLE, which ? "sin" : "cos", F32, width,
	            (Opd){ .kind = OPD_TABLE, .id = which, .dt = F32, .ld = width });
	l->k->par[i].shape = arena_printf(l->a, "[%d,%d]", l->g->model->seq, width);
	l->k->par[i].what = "rotary table";
	return i;
}

/* expressions */

static Exp *evaluate(Lower *l, int v, int base);

static Exp *
exp_num(Lower *l, double x)
{
	Exp *e = exp_new(l, X_NUM);

	e->num = x;
	return e;
}

static Exp *
exp_var(Lower *l, const char *name)
{
	Exp *e = exp_new(l, X_VAR);

	e->name = name;
	return e;
}

static Exp *
exp_op(Lower *l, Op op, Exp *a, Exp *b)
{
	Exp *e = exp_new(l, X_OP);

	e->op = op;
	e->a = a;
	e->b = b;
	l->flops += l->mult * op_info[op].flops;
	return e;
}

/* index of channel base + the loop's position */
static Idx
here(const Lower *l, int base)
{
	return (Idx){ base, l->D, l->pairs ? 2 : 1 };
}

static Exp *
scalar(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	const Param *p;
	Exp *e;
	int len;

	if (x->op == OP_NUM)
		return exp_num(l, x->num);
	if (x->op == OP_COEF) {
		p = &l->g->model->param[x->attr[0]];
		len = coef_rowlen(p);
		e = exp_new(l, X_SCALAR);
		e->par = coef_par(l, x->attr[0], x->attr[1] / len, P_COEF, len);
		e->idx.base = x->attr[1] % len;
		return e;
	}
	if (op_info[x->op].class != CL_POINT)
		bug("lower: scalar %s in a row kernel", op_info[x->op].name);
	return exp_op(l, x->op, scalar(l, x->arg[0]),
	              x->arg[1] >= 0 ? scalar(l, x->arg[1]) : NULL);
}

/* scalars are read before the rows and named: post0, lambda */
static Exp *
scalar_named(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	const Par *p;
	Exp *e;

	if (x->op == OP_NUM)
		return scalar(l, v);
	if (!l->name[v]) {
		Stmt *s;
		const char *base = "s";

		e = scalar(l, v);
		if (e->kind == X_SCALAR) {
			p = &l->k->par[e->par];
			base = p->width > 1 ? arena_printf(l->a, "%s%d", p->name,
			        e->idx.base) : arena_printf(l->a, "%s_", p->name);
		} else if (e->op == OP_BF16 && e->a->kind == X_SCALAR) {
			p = &l->k->par[e->a->par];
			base = p->width > 1 ? arena_printf(l->a, "%s%d", p->name,
			        e->a->idx.base) : arena_printf(l->a, "%s_", p->name);
		}
		l->name[v] = unique(l, base);
		s = stmt(l, S_LET, l->name[v]);
		s->e = e;
	}
	return exp_var(l, l->name[v]);
}

/* a rowval: a name, or an array with an element per group */
static Exp *
rowval(Lower *l, int v, int group_base, int group_step)
{
	const Val *x = &l->g->v[v];
	Exp *e;

	if (x->width == 1 && l->name[v])
		return exp_var(l, l->name[v]);
	e = exp_new(l, l->inside[v] ? X_ELEM : X_LOAD);
	if (l->inside[v])
		e->name = l->name[v];
	else
		e->par = l->srcpar[v];
	e->idx = (Idx){ x->width == 1 ? 0 : group_base, x->width == 1 ? 0 : group_step, 0 };
	if (!l->name[v] && l->inside[v])
		bug("lower: rowval %d has no name", v);
	return e;
}

static int
floor_div(int x, int y)
{
	return x >= 0 ? x / y : -((-x + y - 1) / y);
}

/* operand j of a pointwise vec op at channel base */
static Exp *
operand(Lower *l, int v, int base, int width)
{
	const Val *x = &l->g->v[v];
	Exp *e;
	int gw;

	switch (x->kind) {
	case K_NUM:
	case K_SCALAR:
		return x->op == OP_NUM ? scalar(l, v) : exp_var(l, l->name[v]);
	case K_ROWVAL:
		gw = width / x->width;
		if (x->width == 1)
			return rowval(l, v, 0, 0);
		/* the loop's channels lie in one head, base may point at another
		 * place of the same head (a rotation's partner) */
		if (l->D != gw)
			bug("lower: groups of %d channels in heads of %d", gw, l->D);
		return rowval(l, v, floor_div(base + l->dlo, gw), 1);
	case K_PVEC:
		if (x->op != OP_PVEC)
			return exp_op(l, x->op, operand(l, x->arg[0], base, width),
			              x->arg[1] < 0 ? NULL :
			              operand(l, x->arg[1], base, width));
		e = exp_new(l, X_SCALAR);
		e->par = coef_par(l, x->attr[0], x->attr[1], P_PVEC, x->width);
		e->idx = here(l, base);
		return e;
	default:
		return evaluate(l, v, base);
	}
}

static Exp *
rotated(Lower *l, const Val *x, int base)
{
	int D = x->attr[0], R = x->attr[1], sign = x->attr[3], at, first, in;
	Exp *cs, *sn, *self, *other;
	Idx j;

	in = base - floor_div(base, D) * D;
	at = in + l->dlo;                       /* channel within the head */
	if (at >= R)
		return evaluate(l, x->arg[0], base);
	cs = exp_new(l, X_LOAD);
	sn = exp_new(l, X_LOAD);
	cs->par = table_par(l, 0, R / 2);
	sn->par = table_par(l, 1, R / 2);
	if (x->attr[2]) {
		first = in % 2 == 0;
		j = (Idx){ in / 2, 0, 1 };
		other = evaluate(l, x->arg[0], first ? base + 1 : base - 1);
	} else {
		first = at < R / 2;
		j = (Idx){ in - (first ? 0 : R / 2), 0, 1 };
		other = evaluate(l, x->arg[0], first ? base + R / 2 : base - R / 2);
	}
	cs->idx = sn->idx = j;
	self = exp_op(l, OP_MUL, cs, evaluate(l, x->arg[0], base));
	other = exp_op(l, OP_MUL, sn, other);
	return exp_op(l, (first != 0) == (sign > 0) ? OP_ADD : OP_SUB, self, other);
}

/* does channel base + the loop's range lie in what a pad holds? */
static bool
pad_inside(const Lower *l, const Val *x, int base)
{
	int w = l->g->v[x->arg[0]].width, lo = x->attr[0];
	int at = base + (l->D ? l->lo * l->D + l->dlo : l->lo);

	return at >= lo && at < lo + w;
}

static Exp *
load(Lower *l, int v, int base)
{
	Exp *e = exp_new(l, X_LOAD);

	e->par = l->srcpar[v];
	e->idx = here(l, base);
	return e;
}

static Exp *
shifted(Lower *l, int i, int base)
{
	const Val *x = &l->g->v[i];
	Exp *e = exp_new(l, X_SHIFT), *own;

	e->par = l->srcpar[x->arg[0]];
	e->idx = x->kind == K_VEC ? here(l, base) : (Idx){ base, 0, 0 };
	e->name = l->name[i];
	if (x->attr[1] != EDGE_KEEP || x->op == OP_SHIFT)
		return e;
	/* adjoint of "the first row keeps its own": it gets its own back */
	own = exp_new(l, X_SHIFT);
	own->par = e->par;
	own->idx = e->idx;
	own->name = arena_printf(l->a, "%s_own", l->name[i]);
	return exp_op(l, OP_ADD, e, own);
}

static const char *
let(Lower *l, int v, Exp *e)
{
	const Val *x = &l->g->v[v];
	const char *name = x->name ? x->name : "x";
	Stmt *s = stmt(l, S_LET, NULL);

	/* names live for one loop body, so the same value has the same name in
	 * every phase */
	if (!l->name[v])
		l->name[v] = unique(l, name);
	s->name = l->name[v];
	s->e = e;
	return s->name;
}

/* vec v at channel base + the loop's position */
static Exp *
evaluate(Lower *l, int v, int base)
{
	const Val *x = &l->g->v[v];
	Exp *e = NULL;
	int i, width = x->width;
	bool again;

	for (i = 0; i < l->nmemo; i++)
		if (l->memo[i].v == v && l->memo[i].base == base)
			return l->memo[i].e;
	if (!l->inside[v]) {
		e = load(l, v, base);
	} else if (l->phase[v] < l->now && l->held[v]) {
		e = exp_new(l, X_ELEM);
		e->name = arena_printf(l->a, "row_%s", l->name[v]);
		e->idx = here(l, base);
		return e;
	} else {
		switch ((int)x->op) {
		case OP_SLICE:
			return evaluate(l, x->arg[0], base + x->attr[0]);
		case OP_PAD:
			return pad_inside(l, x, base) ?
			       evaluate(l, x->arg[0], base - x->attr[0]) : exp_num(l, 0);
		case OP_BCAST:
			return operand(l, x->arg[0], base, width);
		case OP_ROTATE:
			e = rotated(l, x, base);
			break;
		case OP_SHIFT:
		case OP_UNSHIFT:
			e = shifted(l, v, base);
			break;
		default:
			e = operand(l, x->arg[0], base, width);
			e = exp_op(l, x->op, e, x->arg[1] < 0 ? NULL :
			           operand(l, x->arg[1], base, width));
			/* a + 0 and a - 0 come from pads */
			if (e->op == OP_ADD && e->a->kind == X_NUM && e->a->num == 0)
				e = e->b;
			else if ((e->op == OP_ADD || e->op == OP_SUB) && e->b &&
			         e->b->kind == X_NUM && e->b->num == 0)
				e = e->a;
			break;
		}
	}
	again = l->uses[v] > 1 || l->root[v] || l->held[v] || !l->inside[v];
	if (again && e->kind != X_NUM && e->kind != X_VAR) {
		/* the second of two channels evaluated in one body gets a name of
		 * its own */
		const char *saved = l->name[v];

		for (i = 0; i < l->nmemo; i++)
			if (l->memo[i].v == v)
				break;
		if (i < l->nmemo) {
			l->name[v] = NULL;
			e = exp_var(l, let(l, v, e));
			l->name[v] = saved;
		} else {
			e = exp_var(l, let(l, v, e));
		}
	}
	if (l->nmemo == (int)(sizeof l->memo / sizeof *l->memo))
		bug("lower: loop body of %s is too long", l->k->name);
	l->memo[l->nmemo++] = (Memo){ v, base, e };
	return e;
}

/* loops */

/* sinks of a phase: what a loop must produce */
typedef struct {
	int v;                  /* value */
	enum { SINK_STORE, SINK_HOLD, SINK_SUM, SINK_PART } kind;
	int width, D;
} Sink;

/* size of the heads that the expression of v is made of, 0 if none */
static int
head_size(const Lower *l, int v, int width)
{
	const Val *x = &l->g->v[v];
	int j, d;

	if (x->kind == K_ROWVAL)
		return x->width > 1 ? width / x->width : 0;
	if (x->kind != K_VEC || !l->inside[v] || (l->phase[v] < l->now && l->held[v]))
		return 0;
	if (x->op == OP_ROTATE)
		return x->attr[0];
	for (j = 0; j < op_info[x->op].arity; j++) {
		d = head_size(l, x->arg[j], x->width);
		if (d)
			return d;
	}
	return 0;
}

typedef struct { int n, at[MaxCut]; bool pairs; int npair; } Cuts;

static void
cut(Cuts *c, int at)
{
	int i, j;

	for (i = 0; i < c->n && c->at[i] < at; i++)
		;
	if (i < c->n && c->at[i] == at)
		return;
	if (c->n == MaxCut)
		bug("lower: more than %d cuts in a loop", MaxCut);
	for (j = c->n++; j > i; j--)
		c->at[j] = c->at[j - 1];
	c->at[i] = at;
}

/* Where must loops over the channels of v be cut?  flat: channels of the sink,
 * v's channel 0 being the sink's -base; heads: channels of a head. */
static void
find_cuts(const Lower *l, int v, int base, Cuts *flat, Cuts *heads)
{
	const Val *x = &l->g->v[v];
	int j, w;

	if (x->kind != K_VEC || !l->inside[v] || (l->phase[v] < l->now && l->held[v]))
		return;
	switch ((int)x->op) {
	case OP_SLICE:
		base += x->attr[0];
		break;
	case OP_PAD:
		w = l->g->v[x->arg[0]].width;
		cut(flat, x->attr[0] - base);
		cut(flat, x->attr[0] + w - base);
		base -= x->attr[0];
		break;
	case OP_ROTATE:
		if (!x->attr[2])
			cut(heads, x->attr[1] / 2);
		else
			heads->npair = x->attr[1];
		cut(heads, x->attr[1]);
		break;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		if (x->op != OP_ROTATE || j == 0)
			find_cuts(l, x->arg[j], base, flat, heads);
}

static void
body(Lower *l, const Sink *s, int n, int parity)
{
	const Val *x;
	Stmt *t;
	Exp *e;
	int i, v;

	for (i = 0; i < n; i++) {
		v = s[i].v;
		x = &l->g->v[v];
		switch (s[i].kind) {
		case SINK_STORE:
			e = evaluate(l, v, parity);
			t = stmt(l, S_STORE, NULL);
			t->par = l->par[v];
			t->idx = here(l, parity);
			t->e = e;
			break;
		case SINK_HOLD:
			e = evaluate(l, v, parity);
			t = stmt(l, S_SET, arena_printf(l->a, "row_%s", l->name[v]));
			t->idx = here(l, parity);
			t->e = e;
			break;
		case SINK_SUM:
			e = operand(l, x->arg[0], parity, s[i].width);
			if (x->op == OP_DOT)
				e = exp_op(l, OP_MUL, e, operand(l, x->arg[1], parity,
				                                s[i].width));
			l->flops += l->mult;
			t = stmt(l, S_ADD, l->name[v]);
			if (x->width > 1) {
				t->name = arena_printf(l->a, "%s_h", l->name[v]);
			}
			t->e = e;
			break;
		case SINK_PART:
			e = evaluate(l, x->arg[0], parity);
			l->flops += l->mult;
			t = stmt(l, S_PART_ADD, NULL);
			t->par = l->par[v];
			t->idx = here(l, parity);
			t->e = e;
			break;
		}
	}
}

/* one loop over channels lo … hi (within a head if l->D) */
static void
channel_loop(Lower *l, const Sink *s, int n, int lo, int hi, bool pairs)
{
	Buf b = {0};
	Stmt *t;
	int i;

	for (i = 0; i < n; i++) {
		if (s[i].kind != SINK_SUM)
			continue;
		buf_printf(&b, "%s%s%s", b.len ? ", " : "", l->name[s[i].v],
		           l->g->v[s[i].v].width > 1 ? "_h" : "");
	}
	l->dlo = l->D ? lo : 0;
	l->dhi = l->D ? hi : 0;
	if (!l->D) {
		l->lo = lo;
		l->hi = hi;
	}
	l->pairs = pairs;
	l->nmemo = 0;
	t = stmt(l, S_LOOP, "c");
	t->lo = pairs ? lo / 2 : lo;
	t->hi = pairs ? hi / 2 : hi;
	t->reduce = b.len ? arena_strdup(l->a, b.s) : "";
	buf_free(&b);
	l->mult = (double)(t->hi - t->lo) * (l->D ? l->hi - l->lo : 1);
	body(l, s, n, 0);
	if (pairs)
		body(l, s, n, 1);
	stmt(l, S_END, NULL);
	l->pairs = false;
}

/* loops over heads h0 … h1, inside them over the pieces of a head */
static void
head_loops(Lower *l, const Sink *s, int n, int h0, int h1, const Cuts *heads)
{
	Stmt *t;
	int i;
	const Val *x;

	l->lo = h0;
	l->hi = h1;
	t = stmt(l, S_LOOP, "head");
	t->lo = h0;
	t->hi = h1;
	for (i = 0; i < n; i++)
		if (s[i].kind == SINK_SUM && l->g->v[s[i].v].width > 1)
			stmt(l, S_ZERO, arena_printf(l->a, "%s_h", l->name[s[i].v]));
	for (i = 0; i + 1 < heads->n; i++)
		channel_loop(l, s, n, heads->at[i], heads->at[i + 1],
		             heads->npair && heads->at[i + 1] <= heads->npair);
	for (i = 0; i < n; i++) {
		x = &l->g->v[s[i].v];
		if (s[i].kind != SINK_SUM || x->width == 1)
			continue;
		t = stmt(l, S_SET, l->name[s[i].v]);
		t->idx = (Idx){ 0, 1, 0 };
		t->e = exp_var(l, arena_printf(l->a, "%s_h", l->name[s[i].v]));
	}
	stmt(l, S_END, NULL);
}

/* all loops for sinks that share width and head size */
static void
loops(Lower *l, const Sink *s, int n)
{
	Cuts flat = {0}, heads = {0};
	int i, v, D = s->D, W = s->width;

	cut(&flat, 0);
	cut(&flat, W);
	cut(&heads, 0);
	if (D)
		cut(&heads, D);
	for (i = 0; i < n; i++) {
		v = s[i].v;
		if (s[i].kind == SINK_STORE || s[i].kind == SINK_HOLD) {
			find_cuts(l, v, 0, &flat, &heads);
		} else {
			find_cuts(l, l->g->v[v].arg[0], 0, &flat, &heads);
			if (l->g->v[v].op == OP_DOT)
				find_cuts(l, l->g->v[v].arg[1], 0, &flat, &heads);
		}
	}
	l->D = D;
	for (i = 0; i + 1 < flat.n; i++) {
		if (flat.at[i] < 0 || flat.at[i + 1] > W)
			continue;
		if (!D) {
			channel_loop(l, s, n, flat.at[i], flat.at[i + 1], false);
			continue;
		}
		if (flat.at[i] % D || flat.at[i + 1] % D)
			bug("lower: %s is cut within a head", l->k->name);
		head_loops(l, s, n, flat.at[i] / D, flat.at[i + 1] / D, &heads);
	}
	l->D = 0;
}

/* phases */

static void
mark_held(Lower *l, int v, int phase)
{
	const Val *x = &l->g->v[v];
	int j;

	if (x->kind != K_VEC || !l->inside[v])
		return;
	if (l->phase[v] < phase && op_info[x->op].class == CL_POINT) {
		l->held[v] = true;
		return;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		mark_held(l, x->arg[j], phase);
}

/* phase whose loops produce v */
static int
sink_phase(const Lower *l, int v)
{
	const Val *x = &l->g->v[v];

	if (x->op == OP_DOT || x->op == OP_SUMC)
		return l->phase[v] - 1;
	return l->phase[v];
}

static void
mark_all_held(Lower *l)
{
	const Val *x;
	int q, i, v, j;

	for (q = l->nphase; q >= 0; q--)
		for (i = l->nnode - 1; i >= 0; i--) {
			v = l->node[i];
			x = &l->g->v[v];
			if (sink_phase(l, v) != q)
				continue;
			if (x->op == OP_DOT || x->op == OP_SUMC || x->op == OP_SUMR ||
			    ((l->root[v] || l->held[v]) && x->kind == K_VEC))
				for (j = 0; j < op_info[x->op].arity; j++)
					mark_held(l, x->arg[j], q);
		}
}

static int
gather_sinks(Lower *l, int phase, Sink *s)
{
	const Val *x;
	int i, v, n = 0;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (sink_phase(l, v) != phase)
			continue;
		if (x->kind == K_VEC && l->root[v])
			s[n++] = (Sink){ v, SINK_STORE, x->width, 0 };
		if (x->kind == K_VEC && l->held[v])
			s[n++] = (Sink){ v, SINK_HOLD, x->width, 0 };
		if (x->op == OP_DOT || x->op == OP_SUMC)
			s[n++] = (Sink){ v, SINK_SUM, l->g->v[x->arg[0]].width, 0 };
		if (x->op == OP_SUMR && x->kind == K_PVEC)
			s[n++] = (Sink){ v, SINK_PART, x->width, 0 };
	}
	return n;
}

static int
sink_heads(Lower *l, const Sink *s)
{
	const Val *x = &l->g->v[s->v];
	int d;

	if (s->kind == SINK_STORE || s->kind == SINK_HOLD)
		return head_size(l, s->v, s->width);
	if (x->op == OP_SUMR)
		return head_size(l, x->arg[0], s->width);
	if (x->width > 1)
		return s->width / x->width;
	d = head_size(l, x->arg[0], s->width);
	return d || x->op != OP_DOT ? d : head_size(l, x->arg[1], s->width);
}

/* rowvals that become known after phase's loops */
static void
rowvals(Lower *l, int phase)
{
	const Val *x;
	Stmt *t;
	Exp *e;
	int i, v, j, g;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (l->phase[v] != phase)
			continue;
		if (x->op == OP_SUMR && x->kind == K_SCALAR) {
			t = stmt(l, S_ADD, l->name[v]);
			t->e = rowval(l, x->arg[0], 0, 0);
			continue;
		}
		if (x->kind != K_ROWVAL)
			continue;
		if (x->op != OP_DOT && x->op != OP_SUMC) {
			g = x->width > 1 || x->op == OP_SUMG;
			l->mult = x->op == OP_SUMG ? l->g->v[x->arg[0]].width : x->width;
			if (g) {
				t = stmt(l, S_ZERO, l->name[v]);
				t->n = x->width > 1 ? x->width : 0;
				t = stmt(l, S_LOOP, "head");
				t->hi = (int)l->mult;
				t->reduce = NULL;
			}
			if (op_info[x->op].class == CL_POINT) {
				Exp *o[2] = { NULL, NULL };

				for (j = 0; j < op_info[x->op].arity; j++) {
					const Val *y = &l->g->v[x->arg[j]];

					o[j] = y->kind == K_ROWVAL ?
					        rowval(l, x->arg[j], 0, y->width > 1) :
					        y->op == OP_NUM ? scalar(l, x->arg[j]) :
					        exp_var(l, l->name[x->arg[j]]);
				}
				e = exp_op(l, x->op, o[0], o[1]);
			} else if (x->op == OP_SUMG) {
				e = rowval(l, x->arg[0], 0, 1);
			} else if (x->op == OP_BCAST) {
				e = l->g->v[x->arg[0]].kind == K_ROWVAL ?
				        rowval(l, x->arg[0], 0, 0) :
				        operand(l, x->arg[0], 0, 1);
			} else {
				e = shifted(l, v, 0);
				e->idx = (Idx){ 0, x->width > 1, 0 };
			}
			t = stmt(l, x->op == OP_SUMG ? S_ADD : x->width > 1 ? S_SET : S_LET,
			         l->name[v]);
			t->e = e;
			t->idx = (Idx){ 0, 1, 0 };
			if (g)
				stmt(l, S_END, NULL);
		}
		if (!l->root[v])
			continue;
		if (x->width > 1) {
			t = stmt(l, S_LOOP, "head");
			t->hi = x->width;
		}
		t = stmt(l, S_STORE, NULL);
		t->par = l->par[v];
		t->idx = (Idx){ 0, x->width > 1, 0 };
		t->e = rowval(l, v, 0, 1);
		if (x->width > 1)
			stmt(l, S_END, NULL);
	}
}

static void
phase_sums(Lower *l, const Sink *s, int n)
{
	Stmt *t;
	int i;

	for (i = 0; i < n; i++) {
		if (s[i].kind != SINK_SUM)
			continue;
		t = stmt(l, l->g->v[s[i].v].width > 1 ? S_ARRAY : S_ZERO, l->name[s[i].v]);
		t->n = l->g->v[s[i].v].width > 1 ? l->g->v[s[i].v].width : 0;
	}
}

static void
phase_loops(Lower *l, int phase)
{
	Sink *s = NEWN(l->a, Sink, 4 * l->nnode + 1), *group;
	int n, m, i, j;
	bool *done;

	l->now = phase;
	n = gather_sinks(l, phase, s);
	for (i = 0; i < n; i++)
		s[i].D = sink_heads(l, &s[i]);
	/* what shares a width walks its heads together */
	for (i = 0; i < n; i++)
		for (j = 0; j < n; j++)
			if (s[j].width == s[i].width && s[i].D && !s[j].D)
				s[j].D = s[i].D;
	phase_sums(l, s, n);
	group = NEWN(l->a, Sink, n + 1);
	done = NEWN(l->a, bool, n + 1);
	for (i = 0; i < n; i++) {
		if (done[i])
			continue;
		for (m = 0, j = i; j < n; j++)
			if (!done[j] && s[j].width == s[i].width && s[j].D == s[i].D) {
				group[m++] = s[j];
				done[j] = true;
			}
		loops(l, group, m);
	}
}

/* before the rows: names, coefficients, sums */

static void
name_values(Lower *l)
{
	const Val *x;
	const char *base;
	int i, v;

	for (i = 0; i < l->r->nin; i++) {
		v = l->r->in[i];
		x = &l->g->v[v];
		l->name[v] = unique(l, x->name ? x->name : op_info[x->op].name);
	}
	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		base = x->name;
		if (base && name_taken(l, base))
			base = arena_printf(l->a, "%s_next", base);
		if (x->op == OP_SUMR && x->kind == K_SCALAR)
			base = "sum";
		if (!base)
			base = x->kind == K_ROWVAL ? op_info[x->op].name : "x";
		l->name[v] = unique(l, base);
	}
}

static void
read_scalars(Lower *l)
{
	const Val *x;
	int i, j, v;

	for (i = 0; i < l->nnode; i++) {
		x = &l->g->v[l->node[i]];
		for (j = 0; j < op_info[x->op].arity; j++) {
			v = x->arg[j];
			if (l->g->v[v].kind == K_SCALAR)
				scalar_named(l, v);
		}
	}
}

static void
row_sources(Lower *l)
{
	const Val *x;
	Stmt *t;
	int i, v;
	bool docs = false;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (x->op != OP_SHIFT && x->op != OP_UNSHIFT)
			continue;
		if (x->attr[2] && !docs) {
			docs = true;
			par_new(l, P_DOCS, "docstart", I32, 1,
			        (Opd){ .kind = OPD_INPUT, .id = INPUT_DOCSTART, .dt = I32 });
			l->k->par[l->k->npar - 1].shape = "[T]";
			l->k->par[l->k->npar - 1].what = "first row of the document";
		}
		t = stmt(l, S_ROW_SRC, l->name[v]);
		t->shift[0] = x->op == OP_SHIFT ? x->attr[0] : -x->attr[0];
		t->shift[1] = x->attr[1];
		t->shift[2] = x->attr[2];
		t->shift[3] = l->g->model->seq;
	}
}

static void
parameters(Lower *l)
{
	const Val *x;
	int i, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR)
			value_par(l, v, true);
	}
	for (i = 0; i < l->r->nin; i++)
		value_par(l, l->r->in[i], false);
	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_PVEC)
			continue;
		l->par[v] = par_new(l, P_PARTVEC, "part", F32, x->width,
		                    opd_buf(l->p->bufof[v], F32, x->width));
		l->k->par[l->par[v]].shape = arena_printf(l->a, "[%d,%d]", RowBlocks,
		                                          x->width);
		l->k->par[l->par[v]].what = "partial sums, one row per block of rows";
	}
}

static void
sums_begin(Lower *l, int *part)
{
	const Val *x;
	Stmt *t;
	int i, v;

	if (l->r->nsum) {
		*part = par_new(l, P_PART, "sums", F32, RowBlocks,
		                opd_buf(l->p->part, F32, RowBlocks));
		l->k->par[*part].opd.off = (size_t)l->r->sum0 * RowBlocks * 4;
		l->k->par[*part].shape = arena_printf(l->a, "[%d,%d]", l->r->nsum,
		                                      RowBlocks);
		l->k->par[*part].what = "partial sums, one column per block of rows";
	}
	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op == OP_SUMR && x->kind == K_SCALAR)
			stmt(l, S_ZERO, l->name[v]);
		if (x->op == OP_SUMR && x->kind == K_PVEC) {
			t = stmt(l, S_PART_ZERO, NULL);
			t->par = l->par[v];
			t->n = x->width;
		}
	}
}

static void
sums_end(Lower *l, int part)
{
	const Val *x;
	Stmt *t;
	int i, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_SCALAR)
			continue;
		t = stmt(l, S_PART, l->name[v]);
		t->par = part;
		t->n = l->p->partof[v] - l->r->sum0;
	}
}

static void
hold_arrays(Lower *l)
{
	Stmt *t;
	int i, v;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		if (!l->held[v])
			continue;
		t = stmt(l, S_ARRAY, arena_printf(l->a, "row_%s", l->name[v]));
		t->n = l->g->v[v].width;
	}
	/* rowvals of width 1 that are read are named loads */
	for (i = 0; i < l->r->nin; i++) {
		v = l->r->in[i];
		if (l->g->v[v].kind != K_ROWVAL)
			continue;
		if (l->g->v[v].width > 1) {
			l->name[v] = NULL;
			continue;
		}
		t = stmt(l, S_LET, l->name[v]);
		t->e = exp_new(l, X_LOAD);
		t->e->par = l->srcpar[v];
		t->e->idx = (Idx){ 0, 0, 0 };
	}
}

/* what the kernel computes, for its header */

static void
formula_of(Lower *l, int v, bool top, Buf *b)
{
	const Val *x = &l->g->v[v];
	Buf p = {0}, q = {0};
	int len;

	if (x->op == OP_NUM) {
		buf_num(b, x->num);
		return;
	}
	if (x->op == OP_COEF || x->op == OP_PVEC) {
		len = coef_rowlen(&l->g->model->param[x->attr[0]]);
		buf_puts(b, coef_base(l, l->g->model->param[x->attr[0]].name));
		if (x->op == OP_COEF && len > 1)
			buf_printf(b, "%d", x->attr[1] % len);
		return;
	}
	if (x->op == OP_TABLE) {
		buf_puts(b, x->attr[0] ? "sin" : "cos");
		return;
	}
	if (!top && l->name[v] && (!l->inside[v] || x->name)) {
		buf_puts(b, l->name[v]);
		return;
	}
	if (x->arg[0] >= 0)
		formula_of(l, x->arg[0], false, &p);
	if (x->arg[1] >= 0)
		formula_of(l, x->arg[1], false, &q);
	if (op_info[x->op].class == CL_POINT)
		point_text(x->op, p.s, q.s, b);
	else if (x->op == OP_SLICE)
		buf_printf(b, "%s[%d..%d]", p.s, x->attr[0], x->attr[0] + x->width - 1);
	else if (x->op == OP_PAD)
		buf_printf(b, "%s at %d", p.s, x->attr[0]);
	else if (x->op == OP_DOT)
		buf_printf(b, "<%s, %s>%s", p.s, q.s, x->width > 1 ? " per head" : "");
	else if (x->op == OP_ROTATE)
		buf_printf(b, "rotate(%s, %sposition)", p.s, x->attr[3] < 0 ? "-" : "");
	else if (x->op == OP_SHIFT || x->op == OP_UNSHIFT)
		buf_printf(b, "%s(%s, %d)", op_info[x->op].name, p.s, x->attr[0]);
	else if (x->op == OP_BCAST)
		buf_puts(b, p.s);
	else
		buf_printf(b, "%s(%s)", x->op == OP_SUMR ? "sum over rows" :
		           op_info[x->op].name, p.s ? p.s : l->name[v] ? l->name[v] : "?");
	buf_free(&p);
	buf_free(&q);
}

static void
formulas(Lower *l)
{
	const Val *x;
	Buf b = {0};
	int i, v;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (!l->root[v] && !x->name)
			continue;
		b.len = 0;
		if (x->op == OP_SUMR && x->kind == K_SCALAR)
			buf_printf(&b, "%s", l->name[v]);
		else if (x->op == OP_SUMR)
			buf_printf(&b, "%s[c]", l->k->par[l->par[v]].name);
		else
			buf_puts(&b, l->name[v]);
		buf_puts(&b, " = ");
		formula_of(l, v, true, &b);
		*PUSH(l->a, l->k->formula, l->k->nformula, l->k->capformula) =
		        arena_strdup(l->a, b.s);
	}
	buf_free(&b);
}

static void
bind(Lower *l, Step *s)
{
	int i;

	s->nopd = 0;
	for (i = 0; i < l->k->npar; i++)
		*PUSH(l->p->mem, s->opd, s->nopd, s->capopd) = l->k->par[i].opd;
}

Kern *
lower(Arena *a, const Plan *p, Step *s, int target)
{
	Lower *l = NEW(a, Lower);
	int i, n = p->g->n, part = -1, ph;

	l->a = a;
	l->p = p;
	l->g = p->g;
	l->r = s->row;
	l->k = NEW(a, Kern);
	l->k->mem = a;
	l->k->plan = p;
	l->k->step = s;
	l->k->target = target;
	l->k->name = s->name;
	l->in = NEWN(a, bool, n);
	l->root = NEWN(a, bool, n);
	l->inside = NEWN(a, bool, n);
	l->held = NEWN(a, bool, n);
	l->phase = NEWN(a, int, n);
	l->uses = NEWN(a, int, n);
	l->par = NEWN(a, int, n);
	l->srcpar = NEWN(a, int, n);
	l->name = NEWN(a, const char *, n);
	for (i = 0; i < l->r->nin; i++)
		l->in[l->r->in[i]] = true;
	for (i = 0; i < l->r->nroot; i++)
		l->root[l->r->root[i]] = true;
	for (i = 0; i < l->r->nroot; i++)
		collect(l, l->r->root[i]);
	find_phases(l);
	mark_all_held(l);
	parameters(l);
	name_values(l);
	formulas(l);
	read_scalars(l);
	sums_begin(l, &part);
	stmt(l, S_ROWS, NULL);
	row_sources(l);
	hold_arrays(l);
	rowvals(l, 0);
	for (ph = 0; ph < l->nphase; ph++) {
		phase_loops(l, ph);
		if (ph + 1 <= l->nphase)
			rowvals(l, ph + 1);
	}
	stmt(l, S_END, NULL);
	sums_end(l, part);
	par_new(l, P_ROWS, "rows", I32, 1, (Opd){ .kind = OPD_INT, .i = p->T });
	l->k->row_flops = l->flops;
	s->flops = l->flops * (double)p->T;
	bind(l, s);
	return l->k;
}

/* names are defined once per scope and before use; parameters exist */
void
kern_verify(const Kern *k)
{
	const Stmt *s;
	int i, depth = 0;

	for (i = 0; i < k->nstmt; i++) {
		s = &k->stmt[i];
		if (s->kind == S_LOOP || s->kind == S_ROWS)
			depth++;
		if (s->kind == S_END && --depth < 0)
			bug("lower: %s: unbalanced loops", k->name);
		if (s->kind == S_LOOP && s->lo >= s->hi)
			bug("lower: %s: empty loop %d..%d", k->name, s->lo, s->hi);
		if ((s->kind == S_STORE || s->kind == S_PART || s->kind == S_PART_ADD ||
		     s->kind == S_PART_ZERO) && (s->par < 0 || s->par >= k->npar))
			bug("lower: %s: statement %d has no parameter", k->name, i);
		if ((s->kind == S_LET || s->kind == S_SET || s->kind == S_ADD) && !s->name)
			bug("lower: %s: statement %d has no name", k->name, i);
	}
	if (depth)
		bug("lower: %s: unbalanced loops", k->name);
}
