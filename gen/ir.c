/* The Graph itself: constructors, verifier, printer.
 *
 * Constructors infer kind and width and refuse what does not fit.  With
 * `folding` on (simplify.c) they also apply the rules of numbers and signs
 * and return an equal value if there is one already. */
#include "hcgen.h"

#include <math.h>
#include <string.h>

const OpInfo op_info[NOp] = {
#define POINT(id, name, arity, formula, flops, dx, dy) \
	[OP_##id] = { name, arity, CL_POINT, flops, #formula },
#define OTHER(id, name, arity, class, formula) \
	[OP_##id] = { name, arity, CL_##class, 0, formula },
#include "ops.def"
#undef POINT
#undef OTHER
};

Graph *
graph_new(Arena *a, const Model *m, int mode, long T)
{
	Graph *g = NEW(a, Graph);
	int i;

	g->mem = a;
	g->model = m;
	g->mode = mode;
	g->T = T;
	g->loss = g->logits = -1;
	g->sub = -1;
	g->grad_first = NEWN(a, int, m->nparam);
	g->grad_last = NEWN(a, int, m->nparam);
	for (i = 0; i < m->nparam; i++)
		g->grad_first[i] = -1;
	return g;
}

/* constructors */

static bool
val_same(const Val *x, const Val *y)
{
	return x->op == y->op && x->kind == y->kind && x->width == y->width &&
	       memcmp(x->arg, y->arg, sizeof x->arg) == 0 &&
	       memcmp(x->attr, y->attr, sizeof x->attr) == 0 && x->num == y->num;
}

static unsigned
val_hash(const Val *v)
{
	unsigned h = (unsigned)v->op * 31 + (unsigned)v->width;
	double d = v->num;
	uint64_t u;
	int i;

	for (i = 0; i < 6; i++)
		h = h * 16777619u ^ (unsigned)v->arg[i];
	for (i = 0; i < 4; i++)
		h = h * 16777619u ^ (unsigned)v->attr[i];
	memcpy(&u, &d, sizeof u);
	return h * 16777619u ^ (unsigned)(u >> 32) ^ (unsigned)u;
}

static void
hash_grow(Graph *g)
{
	int n = g->nhash ? 2 * g->nhash : 4096, i;
	unsigned h;

	while (n < 4 * g->n)
		n *= 2;
	g->hash = NEWN(g->mem, int, n);
	g->nhash = n;
	for (i = 0; i < g->n; i++) {
		h = val_hash(&g->v[i]) & (unsigned)(n - 1);
		while (g->hash[h])
			h = (h + 1) & (unsigned)(n - 1);
		g->hash[h] = i + 1;
	}
}

int
val_new(Graph *g, Val v)
{
	unsigned h = 0;
	int i;

	if (g->folding) {
		if (2 * g->n >= g->nhash)
			hash_grow(g);
		h = val_hash(&v) & (unsigned)(g->nhash - 1);
		for (; (i = g->hash[h]); h = (h + 1) & (unsigned)(g->nhash - 1))
			if (val_same(&g->v[i - 1], &v))
				return i - 1;
		g->hash[h] = g->n + 1;
	}
	v.name = g->name;
	v.sub = g->sub;
	v.bwd = g->bwd;
	v.glue = g->glue;
	g->name = NULL;
	*PUSH(g->mem, g->v, g->n, g->cap) = v;
	return g->n - 1;
}

static Val
val_init(Op op, Kind kind, int width, int x, int y)
{
	Val v = { .op = op, .kind = kind, .width = width,
	          .arg = { x, y, -1, -1, -1, -1 } };

	return v;
}

int
num(Graph *g, double x)
{
	Val v = val_init(OP_NUM, K_NUM, 1, -1, -1);

	v.num = x == 0 ? 0 : x;         /* no -0: it would not fold */
	return val_new(g, v);
}

/* last parts of a parameter's name: post, resid_lambda, e_coef */
const char *
coef_name(Arena *a, const char *name)
{
	const char *dot = strrchr(name, '.'), *p;

	if (!dot)
		return name;
	for (p = dot; p > name && p[-1] != '.'; p--)
		;
	if (strncmp(p, "hc.", 3) == 0)
		return dot + 1;
	return arena_printf(a, "%.*s_%s", (int)(dot - p), p, dot + 1);
}

int
coef(Graph *g, int param, int idx)
{
	const Param *p = &g->model->param[param];
	int len = p->ndim > 1 ? (int)(p->n / p->dim[0]) : 1;
	const char *name = coef_name(g->mem, p->name);
	Val v = val_init(OP_COEF, K_SCALAR, 1, -1, -1);

	v.attr[0] = param;
	v.attr[1] = idx;
	g->name = intern(len > 1 ? arena_printf(g->mem, "%s%d", name, idx % len) : name);
	return val_new(g, v);
}

int
pvec(Graph *g, int param, int row)
{
	const Param *p = &g->model->param[param];
	Val v = val_init(OP_PVEC, K_PVEC, p->dim[p->ndim - 1], -1, -1);

	v.attr[0] = param;
	v.attr[1] = row;
	return val_new(g, v);
}

int
mat(Graph *g, int param)
{
	Val v = val_init(OP_MAT, K_MAT, g->model->param[param].dim[0], -1, -1);

	v.attr[0] = param;
	return val_new(g, v);
}

int
table(Graph *g, int which, int width, bool paired)
{
	Val v = val_init(OP_TABLE, K_VEC, width, -1, -1);

	v.attr[0] = which;
	v.attr[1] = paired;
	return val_new(g, v);
}

static bool
is_num(const Graph *g, int v, double x)
{
	return v >= 0 && g->v[v].op == OP_NUM && g->v[v].num == x;
}

static double
point_eval(Op op, double x, double y)
{
	(void)y;
	switch ((int)op) {
#define POINT(id, name, arity, formula, flops, dx, dy) \
	case OP_##id: return formula;
#define OTHER(id, name, arity, class, formula)
#include "ops.def"
#undef POINT
#undef OTHER
	}
	bug("graph: %s is not pointwise", op_info[op].name);
}

/* Kind and width of a pointwise result.  Arithmetic on parameter vectors is done
 * row by row: their gradients are then sums over rows and nothing else. */
static void
point_shape(const Graph *g, Op op, int x, int y, Val *r)
{
	const Val *a = &g->v[x], *b = y >= 0 ? &g->v[y] : NULL, *t;

	if (b && a->kind < b->kind) {
		t = a;
		a = b;
		b = t;
	}
	r->kind = a->kind == K_PVEC ? K_VEC : a->kind;
	r->width = a->width;
	if (!b)
		return;
	if (b->kind == K_ROWVAL && a->kind == K_ROWVAL) {
		if (b->width > a->width)
			r->width = b->width;
		if (a->width != b->width && a->width != 1 && b->width != 1)
			bug("graph: %s of %d and %d groups", op_info[op].name,
			    a->width, b->width);
	} else if (b->kind == K_ROWVAL) {
		if (a->width % b->width != 0)
			bug("graph: %s of %d channels and %d groups",
			    op_info[op].name, a->width, b->width);
	} else if (b->kind >= K_VEC && a->width != b->width) {
		bug("graph: %s of %d and %d channels", op_info[op].name,
		    a->width, b->width);
	}
	if (a->kind > K_PVEC)
		bug("graph: %s of a matrix", op_info[op].name);
}

/* v, a number per row, as s * r with s the same for all rows */
static void
split_row_factor(Graph *g, int v, int *s, int *r)
{
	const Val *x = &g->v[v];

	*s = -1;
	*r = v;
	if (x->at || x->op != OP_MUL || x->kind != K_ROWVAL || g->v[x->arg[0]].kind > K_SCALAR)
		return;
	*s = x->arg[0];
	*r = x->arg[1];
}

/* s*r + t*r = (s + t)*r for numbers per row: coefficients of vectors that were
 * written out add up so.  -1: no such pair */
static int
fold_row_sum(Graph *g, Op op, int x, int y)
{
	int s, t, r, q;

	split_row_factor(g, x, &s, &r);
	split_row_factor(g, y, &t, &q);
	if (r != q || (s < 0 && t < 0) || g->v[r].kind != K_ROWVAL)
		return -1;
	s = s < 0 ? num(g, 1) : s;
	t = t < 0 ? num(g, 1) : t;
	return point(g, OP_MUL, point(g, op, s, t), r);
}

/* What a value that is laid down was made of is no concern of its users: they
 * are to read it. */
static Op
shown_op(const Val *v)
{
	return v->at ? NOp : v->op;
}

/* Algebra on numbers and signs; -1: nothing to fold. */
static int
point_fold(Graph *g, Op op, int x, int y)
{
	const Val *a = &g->v[x], *b = y >= 0 ? &g->v[y] : NULL;
	Op aop = shown_op(a), bop = b ? shown_op(b) : NOp;

	if (aop == OP_NUM && (!b || bop == OP_NUM))
		return num(g, point_eval(op, a->num, b ? b->num : 0));
	switch ((int)op) {
	case OP_ADD:
		if (is_num(g, x, 0))
			return y;
		if (is_num(g, y, 0))
			return x;
		if (x == y)
			return point(g, OP_MUL, num(g, 2), x);
		if (bop == OP_NEG)
			return point(g, OP_SUB, x, b->arg[0]);
		if (aop == OP_NEG)
			return point(g, OP_SUB, y, a->arg[0]);
		return fold_row_sum(g, op, x, y);
	case OP_SUB:
		if (is_num(g, y, 0))
			return x;
		if (is_num(g, x, 0))
			return point(g, OP_NEG, y, -1);
		if (bop == OP_NEG)
			return point(g, OP_ADD, x, b->arg[0]);
		return fold_row_sum(g, op, x, y);
	case OP_NEG:
		if (aop == OP_NEG)
			return a->arg[0];
		if (aop == OP_MUL && g->v[a->arg[0]].op == OP_NUM)
			return point(g, OP_MUL, num(g, -g->v[a->arg[0]].num),
			             g->v[x].arg[1]);
		break;
	case OP_MUL:
		if (bop == OP_NUM)
			return point(g, op, y, x);
		if (is_num(g, x, 0))
			return x;
		if (is_num(g, x, 1))
			return y;
		if (is_num(g, x, -1))
			return point(g, OP_NEG, y, -1);
		if (aop == OP_NUM && bop == OP_MUL && g->v[b->arg[0]].op == OP_NUM)
			return point(g, op, num(g, a->num * g->v[b->arg[0]].num),
			             g->v[y].arg[1]);
		if (aop == OP_NUM && bop == OP_NEG)
			return point(g, op, num(g, -a->num), g->v[y].arg[0]);
		break;
	}
	return -1;
}

int
point(Graph *g, Op op, int x, int y)
{
	Val v = val_init(op, K_NUM, 1, x, y);
	int r;

	if (op_info[op].class != CL_POINT || (op_info[op].arity == 2) != (y >= 0))
		bug("graph: %s has arity %d", op_info[op].name, op_info[op].arity);
	if (g->folding && (r = point_fold(g, op, x, y)) >= 0)
		return r;
	point_shape(g, op, x, y, &v);
	return val_new(g, v);
}

int add(Graph *g, int x, int y) { return point(g, OP_ADD, x, y); }
int sub(Graph *g, int x, int y) { return point(g, OP_SUB, x, y); }
int mul(Graph *g, int x, int y) { return point(g, OP_MUL, x, y); }
int neg(Graph *g, int x) { return point(g, OP_NEG, x, -1); }
int step(Graph *g, int x) { return point(g, OP_STEP, x, -1); }

/* Is v = s * rest with s the same for all rows and channels, so that it can
 * leave a sum?  (A rowval could leave too, but then a normed vector would have
 * to be read as its raw lane.) */
static bool
split_factor(const Graph *g, int v, int *s, int *rest)
{
	const Val *x = &g->v[v], *f;
	int i;

	if (x->at)
		return false;
	if (x->op == OP_NEG) {
		*s = -1;
		*rest = x->arg[0];
		return true;
	}
	if (x->op != OP_MUL)
		return false;
	for (i = 0; i < 2; i++) {
		f = &g->v[x->arg[i]];
		if (f->kind <= K_SCALAR && !(g->factors_stay && f->kind == K_SCALAR)) {
			*s = x->arg[i];
			*rest = x->arg[1 - i];
			return true;
		}
	}
	return false;
}

static int
times(Graph *g, int s, int x)
{
	return s < 0 ? neg(g, x) : mul(g, s, x);
}

int
dot(Graph *g, int x, int y, int groups)
{
	Val v = val_init(OP_DOT, K_ROWVAL, groups, x, y);
	int s, rest;

	if (g->folding) {
		if (is_num(g, x, 0) || is_num(g, y, 0))
			return num(g, 0);
		if (split_factor(g, x, &s, &rest))
			return times(g, s, dot(g, rest, y, groups));
		if (split_factor(g, y, &s, &rest))
			return times(g, s, dot(g, x, rest, groups));
		if (x > y) {
			v.arg[0] = y;
			v.arg[1] = x;
		}
	}
	if ((g->v[x].kind != K_VEC && g->v[x].kind != K_PVEC) ||
	    (g->v[y].kind != K_VEC && g->v[y].kind != K_PVEC) ||
	    g->v[x].width != g->v[y].width || g->v[x].width % groups)
		bug("graph: dot of %d and %d channels in %d groups", g->v[x].width,
		    g->v[y].width, groups);
	v.attr[0] = groups;
	return val_new(g, v);
}

static bool
is_channels(const Graph *g, int v)
{
	return g->v[v].kind == K_VEC || g->v[v].kind == K_PVEC;
}

int
sumc(Graph *g, int x, int groups)
{
	Val v = val_init(OP_SUMC, K_ROWVAL, groups, x, -1);
	int s, rest;

	if (g->folding) {
		if (is_num(g, x, 0))
			return x;
		if (split_factor(g, x, &s, &rest))
			return times(g, s, sumc(g, rest, groups));
		if (g->v[x].op == OP_MUL && is_channels(g, g->v[x].arg[0]) &&
		    is_channels(g, g->v[x].arg[1]))
			return dot(g, g->v[x].arg[0], g->v[x].arg[1], groups);
	}
	if (g->v[x].kind != K_VEC)
		bug("graph: sumc of kind %d", g->v[x].kind);
	v.attr[0] = groups;
	return val_new(g, v);
}

int
sumg(Graph *g, int x)
{
	if (g->folding && is_num(g, x, 0))
		return x;
	if (g->v[x].width == 1 && g->v[x].kind == K_ROWVAL)
		return x;
	if (g->v[x].kind != K_ROWVAL)
		bug("graph: sumg of kind %d", g->v[x].kind);
	return val_new(g, val_init(OP_SUMG, K_ROWVAL, 1, x, -1));
}

int
sumr(Graph *g, int x)
{
	Kind kind = g->v[x].kind == K_VEC ? K_PVEC : K_SCALAR;
	const Val *v = &g->v[x];
	int i;

	if (g->folding) {
		if (is_num(g, x, 0))
			return x;
		/* a sum that is a vector stays as it is: its partials go
		 * straight into the gradient */
		if (v->op == OP_NEG && v->kind == K_ROWVAL)
			return neg(g, sumr(g, v->arg[0]));
		for (i = 0; v->op == OP_MUL && v->kind == K_ROWVAL && i < 2; i++)
			if (g->v[v->arg[i]].kind <= K_SCALAR)
				return mul(g, v->arg[i], sumr(g, v->arg[1 - i]));
	}
	if (v->kind != K_VEC && !(v->kind == K_ROWVAL && v->width == 1))
		bug("graph: sumr of kind %d", v->kind);
	return val_new(g, val_init(OP_SUMR, kind, v->width, x, -1));
}

int
bcast(Graph *g, int x, Kind kind, int width)
{
	if (g->v[x].kind == kind && g->v[x].width == width)
		return x;
	return val_new(g, val_init(OP_BCAST, kind, width, x, -1));
}

/* x as an operand that must have that very kind */
int
as_kind(Graph *g, int x, Kind kind, int width)
{
	bool wider = g->v[x].kind > kind && !(g->v[x].kind == K_PVEC && kind == K_VEC);

	if (wider || (g->v[x].kind == kind && g->v[x].width != width &&
	    g->v[x].width != 1))
		bug("graph: kind %d of width %d where kind %d of width %d is expected",
		    g->v[x].kind, g->v[x].width, kind, width);
	return bcast(g, x, kind, width);
}

int
slice(Graph *g, int x, int lo, int width)
{
	Val v = val_init(OP_SLICE, K_VEC, width, x, -1);
	const Val *a = &g->v[x];

	if (g->folding) {
		if (a->op == OP_NUM || (lo == 0 && a->width == width))
			return x;
		if (a->op == OP_PAD && !a->at && a->attr[0] == lo &&
		    g->v[a->arg[0]].width == width)
			return a->arg[0];
	}
	if (a->kind != K_VEC || lo < 0 || lo + width > a->width)
		bug("graph: slice %d+%d of %d channels", lo, width, a->width);
	v.attr[0] = lo;
	return val_new(g, v);
}

int
pad(Graph *g, int x, int lo, int width)
{
	Val v = val_init(OP_PAD, K_VEC, width, x, -1);

	if (g->folding && (is_num(g, x, 0) || (lo == 0 && g->v[x].width == width)))
		return x;
	if (g->v[x].kind != K_VEC || lo < 0 || lo + g->v[x].width > width)
		bug("graph: pad %d channels at %d to %d", g->v[x].width, lo, width);
	v.attr[0] = lo;
	return val_new(g, v);
}

int
rotate(Graph *g, int x, int cosv, int sinv, int D, bool adjacent, int sign)
{
	Val v = val_init(OP_ROTATE, K_VEC, g->v[x].width, x, cosv);
	int R = g->v[cosv].width * (g->v[cosv].attr[1] ? 1 : 2);

	if (g->folding && is_num(g, x, 0))
		return x;
	if (g->v[x].kind != K_VEC || g->v[x].width % D || R > D)
		bug("graph: rotate heads of %d in %d channels", D, g->v[x].width);
	v.arg[2] = sinv;
	v.attr[0] = D;
	v.attr[1] = R;
	v.attr[2] = adjacent;
	v.attr[3] = sign;
	return val_new(g, v);
}

int
shift(Graph *g, Op op, int x, int k, int edge, bool docs, int heads)
{
	Val v = val_init(op, g->v[x].kind, g->v[x].width, x, -1);

	if (g->folding && is_num(g, x, 0))
		return x;
	if ((v.kind != K_VEC && v.kind != K_ROWVAL) || k < 1)
		bug("graph: shift by %d of kind %d", k, v.kind);
	if (heads && (v.kind != K_VEC || v.width % SHIFT_D(heads) || SHIFT_FIRST(heads) >= SHIFT_D(heads)))
		bug("graph: shift from channel %d of heads of %d in %d channels", SHIFT_FIRST(heads),
		    SHIFT_D(heads), v.width);
	v.attr[0] = k;
	v.attr[1] = edge;
	v.attr[2] = docs;
	v.attr[3] = heads;
	return val_new(g, v);
}

int
out(Graph *g, int tuple, int which)
{
	const Val *t = &g->v[tuple];
	Val v = val_init(OP_OUT, K_VEC, 1, tuple, -1);

	v.attr[0] = which;
	if (t->op == OP_ATTN) {
		v.kind = which ? K_ROWVAL : K_VEC;
		v.width = which ? t->width / g->model->D : t->width;
	} else if (t->op == OP_ATTN_BWD) {
		v.width = g->v[t->arg[which]].width;
	} else if (t->op == OP_HEAD) {
		v.kind = which == 0 ? K_SCALAR : which == 1 ? K_VEC : K_MAT;
		v.width = which == 1 ? g->model->C : 1;
	} else if (t->op == OP_GATE_BWD) {
		v.kind = which == 0 ? K_VEC : K_MAT;
		v.width = which == 0 ? (t->attr[0] + 7) / 8 * 8 : g->v[t->arg[2]].width;
	} else if (t->op == OP_SCALED_BWD) {
		v.kind = which == 0 ? K_SCALAR : K_MAT;
		v.width = which == 0 ? 1 : g->v[t->arg[0]].width;
	} else {
		bug("graph: out of %s", op_info[t->op].name);
	}
	return val_new(g, v);
}

int
heavy(Graph *g, Op op, Kind kind, int width, int x, int y)
{
	return val_new(g, val_init(op, kind, width, x, y));
}

int
val_named(Graph *g, int v, const char *name)
{
	if (!g->v[v].name)
		g->v[v].name = intern(name);
	return v;
}

void
grad_contrib(Graph *g, int param, int idx, int val)
{
	struct Contrib *c = PUSH(g->mem, g->contrib, g->ncontrib, g->capcontrib);

	c->val = val;
	c->idx = idx;
	c->next = -1;
	if (g->grad_first[param] < 0)
		g->grad_first[param] = g->ncontrib - 1;
	else
		g->contrib[g->grad_last[param]].next = g->ncontrib - 1;
	g->grad_last[param] = g->ncontrib - 1;
}
/* after construction: order, kinds, one gradient list per parameter */
void
graph_verify(const Graph *g)
{
	const Val *v;
	const struct Contrib *c;
	int i, j, k;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (v->width < 1 || v->op >= NOp)
			bug("graph: value %d", i);
		for (j = 0; j < op_info[v->op].arity; j++) {
			if (v->arg[j] < 0 || v->arg[j] >= i)
				bug("graph: value %d (%s): operand %d is %d", i,
				    op_info[v->op].name, j, v->arg[j]);
			if (op_info[v->op].class == CL_POINT &&
			    g->v[v->arg[j]].kind > K_PVEC)
				bug("graph: value %d (%s): operand %d has kind %d",
				    i, op_info[v->op].name, j, g->v[v->arg[j]].kind);
		}
	}
	for (i = 0; i < g->model->nparam; i++)
		for (k = g->grad_first[i]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			v = &g->v[c->val];
			if (v->kind != K_SCALAR && v->kind != K_PVEC && v->kind != K_MAT)
				bug("graph: gradient of %s has kind %d",
				    g->model->param[i].name, v->kind);
			if ((v->kind == K_MAT) != (c->idx < 0))
				bug("graph: gradient of %s", g->model->param[i].name);
		}
}

void
val_print(const Graph *g, int i, Buf *b)
{
	static const char *const kinds[] = {
		"num", "scalar", "rowval", "vec", "param", "mat", "tuple",
	};
	const Val *v = &g->v[i];
	int j;

	buf_printf(b, "%%%d%s%s %s", i, v->name ? "." : "", v->name ? v->name : "",
	           kinds[v->kind]);
	if (v->width != 1)
		buf_printf(b, "[%d]", v->width);
	buf_printf(b, " = %s", op_info[v->op].name);
	if (v->op == OP_NUM || v->op == OP_ATTN) {
		buf_puts(b, " ");
		buf_num(b, v->num);
	}
	if (v->op == OP_COEF || v->op == OP_PVEC || v->op == OP_MAT)
		buf_printf(b, " %s", g->model->param[v->attr[0]].name);
	for (j = 0; j < 6 && v->arg[j] >= 0; j++)
		buf_printf(b, " %%%d", v->arg[j]);
	for (j = 3; j >= 0 && v->attr[j] == 0; j--)
		;
	for (; j >= 0; j--)
		buf_printf(b, " #%d", v->attr[j]);
	if (v->keep)
		buf_puts(b, " keep");
}

void
graph_print(const Graph *g, FILE *f)
{
	const struct Contrib *c;
	Buf b = {0};
	int i, k;

	for (i = 0; i < g->n; i++) {
		b.len = 0;
		val_print(g, i, &b);
		fprintf(f, "%s\n", b.s);
	}
	for (i = 0; i < g->model->nparam; i++)
		for (k = g->grad_first[i]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			fprintf(f, "grad %s[%d] += %%%d\n", g->model->param[i].name,
			        c->idx, c->val);
		}
	buf_free(&b);
}
