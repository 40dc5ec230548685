/* Lowering, names and expressions: what a value is called, which parameter of
 * the kernel holds it, and the expression of a value at a channel of the loop
 * that is being filled. */
#include "lower.h"

#include <stdlib.h>
#include <string.h>

Exp *
exp_new(Lower *l, ExpKind kind)
{
	Exp *e = NEW(l->a, Exp);

	e->kind = kind;
	return e;
}

Stmt *
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

/* where s stands in the hash table of names, or would */
static unsigned
name_slot(const Lower *l, const char *s)
{
	unsigned h = 2166136261u;
	const char *p;

	for (p = s; *p; p++)
		h = (h ^ (unsigned char)*p) * 16777619u;
	for (;; h++) {
		h %= (unsigned)l->nname_at;
		if (!l->name_at[h] || strcmp(l->names[l->name_at[h] - 1], s) == 0)
			return h;
	}
}

static void
name_add(Lower *l, const char *s)
{
	int i;

	*PUSH(l->a, l->names, l->nname, l->capname) = s;
	if (2 * l->nname > l->nname_at) {
		l->nname_at = 2 * l->nname_at + 256;
		l->name_at = NEWN(l->a, int, l->nname_at);
		for (i = 0; i < l->nname - 1; i++)
			l->name_at[name_slot(l, l->names[i])] = i + 1;
	}
	l->name_at[name_slot(l, s)] = l->nname;
}

bool
name_taken(const Lower *l, const char *s)
{
	static const char *const words[] = {
		"T", "t", "seq", "a", "c", "item", "head", "f32", "bf16", "i32", "F32",
		"BF16", "int", "long", "float", "if", "for", "do", "r0", "r1",
	};
	static const char *const cuda_words[] = {
		"i", "d", "c1", "c2", "c4", "lane", "warp", "P", "slot", "own",
	};
	size_t i;

	for (i = 0; i < sizeof words / sizeof *words; i++)
		if (strcmp(s, words[i]) == 0)
			return true;
	for (i = 0; l->cu && i < sizeof cuda_words / sizeof *cuda_words; i++)
		if (strcmp(s, cuda_words[i]) == 0)
			return true;
	return l->nname_at && l->name_at[name_slot(l, s)] != 0;
}

/* is s + rest a name that cuda makes of s: x_o, x_keep, x_keep1, x_s1 … */
static bool
is_derived(const char *rest)
{
	static const char *const plain[] = { "_o", "_keep", "_part", "_head", "_to", "_own" };
	size_t i;

	for (i = 0; i < sizeof plain / sizeof *plain; i++)
		if (strcmp(rest, plain[i]) == 0)
			return true;
	if (strncmp(rest, "_keep", 5) != 0 && strncmp(rest, "_s", 2) != 0)
		return false;
	rest += rest[1] == 'k' ? 5 : 2;
	return *rest && rest[strspn(rest, "0123456789")] == 0;
}

/* would s, or what is made of it, be what is made of another name? */
static bool
clashes(const Lower *l, const char *s)
{
	size_t n = strlen(s), m;
	int i;

	for (i = 0; i < l->nname; i++) {
		m = strlen(l->names[i]);
		if (m > n && strncmp(l->names[i], s, n) == 0 && is_derived(l->names[i] + n))
			return true;
		if (n > m && strncmp(s, l->names[i], m) == 0 && is_derived(s + m))
			return true;
	}
	return false;
}

const char *
unique(Lower *l, const char *base)
{
	const char *s = base;
	int i = 2, j;

	/* many of one base: go on where the last of them left off */
	for (j = 0; j < NBases && l->base[j].s && strcmp(l->base[j].s, base) != 0; j++)
		;
	if (j < NBases && l->base[j].s)
		i = l->base[j].next;
	for (; name_taken(l, s) || (l->cu && clashes(l, s)); i++)
		s = arena_printf(l->a, "%s_%d", base, i);
	if (j < NBases)
		l->base[j].s = base;
	if (j < NBases)
		l->base[j].next = i;
	name_add(l, s);
	return s;
}
/* parameters */

int
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

void
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
	if (output)
		l->k->row_write += x->width * dt_size(dt);
	else
		l->k->row_read += (double)kernel_reads(l->g, l->r, v) * dt_size(dt);
}

static int
coef_rowlen(const Param *p)
{
	return p->ndim > 1 ? (int)(p->n / p->dim[0]) : 1;
}

/* the parameter that holds the row of a coefficient */
int
coef_par(Lower *l, int param, int row, ParKind kind, int width)
{
	const Param *p = &l->g->model->param[param];
	size_t off = p->off + (size_t)(row * width) * 4;
	int i;

	for (i = 0; i < l->k->npar; i++)
		if (l->k->par[i].kind == kind && l->k->par[i].opd.off == off &&
		    l->k->par[i].opd.kind == OPD_ARENA)
			return i;
	i = par_new(l, kind, arena_printf(l->a, "%s_row", coef_name(l->a, p->name)), F32, width,
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
	l->k->par[i].shape = l->g->model->seq_varies ? arena_printf(l->a, "[seq,%d]", width) :
	                     arena_printf(l->a, "[%d,%d]", l->g->model->seq, width);
	l->k->par[i].what = "rotary table";
	return i;
}

/* expressions */

static Exp *
exp_num(Lower *l, double x)
{
	Exp *e = exp_new(l, X_NUM);

	e->num = x;
	return e;
}

Exp *
exp_var(Lower *l, const char *name)
{
	Exp *e = exp_new(l, X_VAR);

	e->name = name;
	return e;
}

Exp *
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
Idx
here(const Lower *l, int base)
{
	return (Idx){ base, l->D, l->pairs ? 2 : 1 };
}

/* in another scalar: coefficients and sums by name, so that what many products
 * have in common is written once */
static Exp *
scalar_operand(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	bool coef = x->op == OP_BF16 && l->g->v[x->arg[0]].op == OP_COEF;

	return x->kind == K_SCALAR && (coef || x->op == OP_ADD || x->op == OP_SUB || l->name[v]) ?
	       scalar_named(l, v) : scalar(l, v);
}

Exp *
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
	return exp_op(l, x->op, scalar_operand(l, x->arg[0]),
	              x->arg[1] >= 0 ? scalar_operand(l, x->arg[1]) : NULL);
}

/* scalars are read before the rows and named: post0, lambda */
Exp *
scalar_named(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	Exp *e;

	if (x->op == OP_NUM)
		return scalar(l, v);
	if (!l->name[v]) {
		Stmt *s;

		e = scalar(l, v);
		if (x->op == OP_BF16 && !x->name)
			x = &l->g->v[x->arg[0]];
		l->name[v] = unique(l, x->name ? x->name : "s");
		s = stmt(l, S_LET, l->name[v]);
		s->e = e;
	}
	return exp_var(l, l->name[v]);
}

/* a rowval that one expression uses, which then holds it inline */
bool
rowval_inline(const Lower *l, int v)
{
	const Val *x = &l->g->v[v];

	return l->inside[v] && x->kind == K_ROWVAL && !x->name && !l->root[v] && l->uses[v] == 1 && op_info[x->op].class == CL_POINT;
}

/* operand of a pointwise rowval: like rowval, and numbers and scalars */
Exp *
rowval_operand(Lower *l, int v, int group_base, int group_step)
{
	const Val *x = &l->g->v[v];

	if (x->kind == K_ROWVAL)
		return rowval(l, v, group_base, group_step);
	return x->op == OP_NUM ? scalar(l, v) : exp_var(l, l->name[v]);
}

/* a rowval: a name, or an array with an element per group */
Exp *
rowval(Lower *l, int v, int group_base, int group_step)
{
	const Val *x = &l->g->v[v];
	Exp *e;

	if (rowval_inline(l, v)) {
		e = rowval_operand(l, x->arg[0], group_base, group_step);
		return exp_op(l, x->op, e, x->arg[1] < 0 ? NULL :
		              rowval_operand(l, x->arg[1], group_base, group_step));
	}
	if (x->width == 1 && l->name[v])
		return exp_var(l, l->name[v]);
	if (l->cu && x->width > 1)
		return cuda_rowval(l, v, group_base);
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

int
floor_div(int x, int y)
{
	return x >= 0 ? x / y : -((-x + y - 1) / y);
}

/* operand j of a pointwise vec op at channel base */
Exp *
operand(Lower *l, int v, int base, int width)
{
	const Val *x = &l->g->v[v];
	Exp *e;
	int gw, last;

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
		last = (l->dhi > l->dlo ? l->dhi : l->D) - (l->pairs ? 2 : 1);
		if (floor_div(base + l->dlo, gw) != floor_div(base + last, gw))
			bug("lower: %s is cut within a head", l->k->name);
		return rowval(l, v, floor_div(base + l->dlo, gw), 1);
	case K_PVEC:
		if (x->op != OP_PVEC)
			return exp_op(l, x->op, operand(l, x->arg[0], base, width),
			              x->arg[1] < 0 ? NULL :
			              operand(l, x->arg[1], base, width));
		e = exp_new(l, X_SCALAR);
		e->par = coef_par(l, x->attr[0], x->attr[1], P_PVEC, x->width);
		e->idx = here(l, base);
		if (l->cu)
			return cuda_param(l, e->par, base, coef_name(l->a,
			        l->g->model->param[x->attr[0]].name));
		return e;
	default:
		return evaluate(l, v, base);
	}
}

static Exp *
rotated(Lower *l, const Val *x, int base)
{
	int D = x->attr[0], R = x->attr[1], sign = x->attr[3], at, first, in, odd = 0;
	Exp *cs, *sn, *self, *other;
	Idx j;

	at = base + l->dlo - floor_div(base + l->dlo, D) * D;   /* channel within the head */
	in = at - l->dlo;
	if (at >= R)
		return evaluate(l, x->arg[0], base);
	cs = exp_new(l, X_LOAD);
	sn = exp_new(l, X_LOAD);
	cs->par = table_par(l, 0, l->g->v[x->arg[1]].width);
	sn->par = table_par(l, 1, l->g->v[x->arg[1]].width);
	/* of paired heads odd ones have the second half of a row */
	if (l->g->v[x->arg[1]].attr[1]) {
		odd = floor_div(base + l->dlo, D) & 1;
		cs->num = sn->num = odd ? -R / 2 : R / 2;
	}
	if (x->attr[2]) {
		first = (in & 1) == 0;
		j = (Idx){ floor_div(in, 2), 0, 1 };
		other = evaluate(l, x->arg[0], first ? base + 1 : base - 1);
	} else {
		first = at < R / 2;
		j = (Idx){ in - (first ? 0 : R / 2), 0, 1 };
		other = evaluate(l, x->arg[0], first ? base + R / 2 : base - R / 2);
	}
	cs->idx = sn->idx = j;
	if (l->cu) {
		cs = cuda_table(l, cs->par, j.base, abs((int)cs->num), odd);
		sn = cuda_table(l, sn->par, j.base, abs((int)sn->num), odd);
	}
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
	Exp *e;

	if (l->cu)
		return cuda_load(l, l->srcpar[v], base, l->name[v], NULL);
	e = exp_new(l, X_LOAD);
	e->par = l->srcpar[v];
	e->idx = here(l, base);
	return e;
}

Exp *
shifted(Lower *l, int i, Idx idx)
{
	const Val *x = &l->g->v[i];
	Exp *e = exp_new(l, X_SHIFT), *own;

	e->par = l->srcpar[x->arg[0]];
	e->idx = idx;
	e->name = l->from[i];
	own = exp_new(l, X_SHIFT);
	own->par = e->par;
	own->idx = e->idx;
	own->name = arena_printf(l->a, "%s_own", l->from[i]);
	if (l->cu && x->kind == K_VEC) {
		e = cuda_load(l, e->par, idx.base, l->name[i], e->name);
		if (x->attr[1] == EDGE_KEEP && x->op == OP_UNSHIFT)
			own = cuda_load(l, own->par, idx.base, l->name[i], own->name);
	}
	if (l->cu && x->kind == K_ROWVAL && x->width > 1) {
		e = cuda_head_of(l, e->par, e->name, l->name[i]);
		if (x->attr[1] == EDGE_KEEP && x->op == OP_UNSHIFT)
			own = cuda_head_of(l, own->par, own->name, l->name[i]);
	}
	if (x->attr[1] != EDGE_KEEP || x->op == OP_SHIFT)
		return e;
	/* adjoint of "the first row keeps its own": it gets its own back */
	return exp_op(l, OP_ADD, e, own);
}

/* is channel base + the loop's range one that a shift leaves alone? */
static bool
stays(const Lower *l, const Val *x, int base)
{
	int D = SHIFT_D(x->attr[3]), at = base + l->dlo;

	return D && at - floor_div(at, D) * D < SHIFT_FIRST(x->attr[3]);
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
Exp *
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
	} else if (l->cu && l->phase[v] < l->now && l->held[v] &&
	           (e = cuda_held(l, v, base))) {
		return e;
	} else if (!l->cu && l->phase[v] < l->now && l->held[v]) {
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
			e = stays(l, x, base) ? evaluate(l, x->arg[0], base) :
			    shifted(l, v, here(l, base));
			break;
		default:
			e = operand(l, x->arg[0], base, width);
			e = exp_op(l, x->op, e, x->arg[1] < 0 ? NULL :
			           operand(l, x->arg[1], base, width));
			/* a + 0, a - 0 and a * 0 come from pads */
			if (e->op == OP_MUL && ((e->a->kind == X_NUM && e->a->num == 0) ||
			    (e->b->kind == X_NUM && e->b->num == 0)))
				e = exp_num(l, 0);
			else if (e->op == OP_ADD && e->a->kind == X_NUM && e->a->num == 0)
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
	*PUSH(l->a, l->memo, l->nmemo, l->capmemo) = (Memo){ v, base, e };
	return e;
}
/* a number per row that several formulas use: it has a line of its own, or what
 * is made of many such would be spelled out exponentially often */
static bool
is_shared(const Lower *l, int v)
{
	const Val *x = &l->g->v[v];

	return l->inside[v] && x->kind == K_ROWVAL && l->uses[v] > 1 &&
	       op_info[x->op].class == CL_POINT;
}

/* what the kernel computes, for its header */

static void
formula_of(Lower *l, int v, bool top, Buf *b)
{
	const Val *x = &l->g->v[v];
	Buf p = {0}, q = {0};

	if (x->op == OP_NUM) {
		buf_num(b, x->num);
		return;
	}
	if (!top && x->kind == K_SCALAR && l->name[v]) {
		buf_puts(b, l->name[v]);
		return;
	}
	if (x->op == OP_COEF || x->op == OP_PVEC) {
		buf_puts(b, x->name ? x->name :
		         coef_name(l->a, l->g->model->param[x->attr[0]].name));
		return;
	}
	if (x->op == OP_TABLE) {
		buf_puts(b, x->attr[0] ? "sin" : "cos");
		return;
	}
	if (!top && l->name[v] && (!l->inside[v] || x->name || is_shared(l, v))) {
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

void
formulas(Lower *l)
{
	const Val *x;
	Buf b = {0};
	int i, v;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (!l->root[v] && !x->name && !is_shared(l, v))
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
