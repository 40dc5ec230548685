/* Graph -> Graph: reverse mode.
 *
 * Walks the forward values from the last to the first; each value that a
 * learned parameter reaches hands its gradient to its operands by the rule of
 * its op (pointwise rules are columns of ops.def).  A gradient that is wider
 * than the operand it is for is summed over what was broadcast.  Nobody
 * writes a gradient by hand: any new op needs its own rule and no other.
 *
 * The gradient of a kept value is kept; where `accum` is set (the sources,
 * which every sublayer reads) each partial sum is, so that the naive plan adds
 * to it kernel by kernel instead of holding every term. */
#include "hcgen.h"

#include <string.h>

typedef struct {
	Graph *g;
	int *acc;               /* value -> its gradient so far, or -1 */
	bool *needs;            /* value depends on a learned parameter */
	int *part;              /* tuple -> gradient of its result 0, or -1 */
} Back;

static void
find_needs(Back *b)
{
	const Graph *g = b->g;
	const Val *v;
	int i, j;

	for (i = 0; i < g->nfwd; i++) {
		v = &g->v[i];
		b->needs[i] = v->op == OP_COEF || v->op == OP_PVEC || v->op == OP_MAT;
		if (v->op == OP_BCAST && v->attr[0])
			continue;       /* detached */
		for (j = 0; j < op_info[v->op].arity; j++)
			b->needs[i] |= b->needs[v->arg[j]];
	}
}

/* x as a gradient of value v: summed over what v does not vary over, and
 * spread over what x does not vary over (each copy of v's elements counts) */
static int
fit(Graph *g, int v, int x)
{
	Kind kind = g->v[v].kind, have = g->v[x].kind;
	int width = g->v[v].width;

	if (have == kind && g->v[x].width == width)
		return x;
	switch (kind) {
	case K_VEC:
		return bcast(g, x, K_VEC, width);
	case K_PVEC:
		return have == K_PVEC ? x : sumr(g, as_kind(g, x, K_VEC, width));
	case K_ROWVAL:
		if (have == K_VEC || have == K_PVEC)
			return sumc(g, as_kind(g, x, K_VEC, g->v[x].width), width);
		return have == K_ROWVAL && width == 1 ? sumg(g, x) :
		       bcast(g, x, K_ROWVAL, width);
	case K_SCALAR:
		if (have == K_VEC)
			x = sumc(g, x, 1);
		else if (have == K_ROWVAL)
			x = sumg(g, x);
		else
			bug("grad: kind %d for a scalar", have);
		return sumr(g, x);
	default:
		bug("grad: gradient for kind %d", kind);
	}
}

static void
name_gradient(Graph *g, int v, int d)
{
	Buf b = {0};

	if (!g->v[v].name || g->v[d].name || d < g->nfwd)
		return;
	buf_printf(&b, "d%s", g->v[v].name);
	val_named(g, d, b.s);
	buf_free(&b);
}

static void
give(Back *b, int v, int x)
{
	Graph *g = b->g;
	int *acc = &b->acc[v];

	if (!b->needs[v] || (g->v[x].op == OP_NUM && g->v[x].num == 0))
		return;
	x = fit(g, v, x);
	if (g->v[v].op == OP_PVEC) {
		/* each is a sum over rows and goes into the gradient by itself */
		grad_contrib(g, g->v[v].attr[0], g->v[v].attr[1], x);
		return;
	}
	*acc = *acc < 0 ? x : add(g, *acc, x);
	if (g->v[v].accum && *acc >= g->nfwd && g->v[*acc].kind == K_VEC) {
		name_gradient(g, v, *acc);
		g->v[*acc].keep = true;
	}
}

/* pointwise rules: the last two columns of ops.def */
static void
back_point(Back *b, int i, int g_)
{
	Graph *G = b->g;
	Op op = G->v[i].op;
	int x = G->v[i].arg[0], y = G->v[i].arg[1], r = i, g = g_;
	int dx = -1, dy = -1;
	bool nx = b->needs[x], ny = y >= 0 && b->needs[y];

	switch ((int)op) {
#define POINT(id, name, arity, formula, flops, rule_x, rule_y) \
	case OP_##id: \
		dx = nx ? rule_x : -1; \
		dy = ny ? rule_y : -1; \
		break;
#define OTHER(id, name, arity, class, formula)
#include "ops.def"
#undef POINT
#undef OTHER
	}
	(void)r;
	if (dx >= 0)
		give(b, x, dx);
	if (dy >= 0)
		give(b, y, dy);
}

/* A product of x and W: what W gets; or, where it is s W, what W and s get.  The
 * gradient has the rows that W has. */
static void
back_weight(Back *b, Val v, int d)
{
	Graph *g = b->g;
	int w = v.arg[1], param = mat_param(g, w), rows = v.attr[0] ? v.arg[0] : d, t;

	t = heavy(g, OP_GEMM_DW, K_MAT, g->v[rows].width, rows, v.attr[0] ? d : v.arg[0]);
	g->v[t].attr[0] = param;
	if (g->v[w].op == OP_MAT) {
		grad_contrib(g, param, -1, t);
		return;
	}
	g->v[t].attr[1] = 1;
	val_named(g, t, "dscaled");
	t = heavy(g, OP_SCALED_BWD, K_TUPLE, g->v[t].width, t, g->v[w].arg[0]);
	g->v[t].arg[2] = g->v[w].arg[1];
	give(b, g->v[w].arg[1], out(g, t, 0));
	grad_contrib(g, param, -1, out(g, t, 1));
}

static void
back_heavy(Back *b, int i, int d)
{
	Graph *g = b->g;
	Val v = g->v[i];
	int x = v.arg[0], y = v.arg[1], t, o, lse;

	switch ((int)v.op) {
	case OP_GATHER:
		t = heavy(g, OP_SCATTER, K_MAT, v.width, as_kind(g, d, K_VEC, v.width), -1);
		memcpy(g->v[t].attr, v.attr, sizeof v.attr);
		g->v[t].attr[2] = g->v[x].attr[0];
		grad_contrib(g, g->v[x].attr[0], -1, t);
		break;
	case OP_SIGNS:
		t = heavy(g, OP_SIGNS, K_VEC, v.width, as_kind(g, d, K_VEC, v.width), -1);
		g->v[t].attr[0] = v.attr[0];
		give(b, x, t);
		break;
	case OP_GEMM:
		d = as_kind(g, d, K_VEC, v.width);
		if (b->needs[x]) {
			t = heavy(g, OP_GEMM_DX, K_VEC, g->v[x].width, d, y);
			g->v[t].attr[0] = v.attr[0];
			give(b, x, t);
		}
		back_weight(b, v, d);
		break;
	case OP_GATE:
		t = heavy(g, OP_GATE_BWD, K_TUPLE, v.width, x, y);
		g->v[t].arg[2] = as_kind(g, d, K_ROWVAL, v.width);
		g->v[t].attr[0] = v.attr[0];
		g->v[t].attr[1] = v.attr[1];
		if (b->needs[x])
			give(b, x, pad(g, out(g, t, 0), 0, g->v[x].width));
		grad_contrib(g, g->v[y].attr[0], -1, out(g, t, 1));
		break;
	case OP_HEAD:
		give(b, x, out(g, i, 1));
		grad_contrib(g, g->v[y].attr[0], -1, out(g, i, 2));
		break;
	case OP_ATTN:
		d = b->part[i];
		if (d < 0)
			break;
		d = as_kind(g, d, K_VEC, v.width);
		o = out(g, i, 0);
		lse = out(g, i, 1);
		t = heavy(g, OP_ATTN_BWD, K_TUPLE, v.width, x, y);
		g->v[t].arg[2] = v.arg[2];
		g->v[t].arg[3] = o;
		g->v[t].arg[4] = lse;
		g->v[t].arg[5] = d;
		g->v[t].attr[0] = v.attr[0];
		g->v[t].attr[1] = v.attr[1];
		g->v[t].num = v.num;
		give(b, v.arg[0], val_named(g, out(g, t, 0), "dq"));
		give(b, v.arg[1], val_named(g, out(g, t, 1), "dk"));
		give(b, v.arg[2], val_named(g, out(g, t, 2), "dv"));
		break;
	default:
		bug("grad: no rule for %s", op_info[v.op].name);
	}
}

static void
back_other(Back *b, int i, int d)
{
	Graph *g = b->g;
	Val v = g->v[i];
	int x = v.arg[0], y = v.arg[1];

	switch ((int)v.op) {
	case OP_COEF:
		grad_contrib(g, v.attr[0], v.attr[1], d);
		break;
	case OP_DOT:
		if (x == y) {
			give(b, x, mul(g, mul(g, num(g, 2), d), x));
			break;
		}
		if (b->needs[x])
			give(b, x, mul(g, d, y));
		if (b->needs[y])
			give(b, y, mul(g, d, x));
		break;
	case OP_SUMC:
	case OP_SUMG:
		give(b, x, d);
		break;
	case OP_BCAST:
		if (!v.attr[0])
			give(b, x, d);
		break;
	case OP_SLICE:
		give(b, x, pad(g, as_kind(g, d, K_VEC, v.width), v.attr[0],
		               g->v[x].width));
		break;
	case OP_PAD:
		give(b, x, slice(g, as_kind(g, d, K_VEC, v.width), v.attr[0],
		                 g->v[x].width));
		break;
	case OP_ROTATE:
		give(b, x, rotate(g, as_kind(g, d, K_VEC, v.width), y, v.arg[2],
		                  v.attr[0], v.attr[2] != 0, -v.attr[3]));
		break;
	case OP_SHIFT:
	case OP_UNSHIFT:
		give(b, x, shift(g, v.op == OP_SHIFT ? OP_UNSHIFT : OP_SHIFT,
		                 as_kind(g, d, v.kind, v.width), v.attr[0],
		                 v.attr[1], v.attr[2] != 0, v.attr[3]));
		break;
	case OP_OUT:
		if (v.attr[0] == 0)
			b->part[x] = d;
		break;
	case OP_MAT:
	case OP_PVEC:
	case OP_NUM:
	case OP_TABLE:
		break;
	default:
		bug("grad: no rule for %s", op_info[v.op].name);
	}
}

static void
back(Back *b, int i)
{
	Graph *g = b->g;
	Val v = g->v[i];
	int d = b->acc[i];

	g->sub = v.sub;
	g->glue = v.glue;
	if (v.op == OP_HEAD || v.op == OP_ATTN) {
		if (v.op == OP_HEAD || b->part[i] >= 0)
			back_heavy(b, i, -1);
		return;
	}
	if (d < 0)
		return;
	name_gradient(g, i, d);
	g->v[d].accum |= v.accum && d >= g->nfwd;
	if (v.keep && v.kind == K_VEC && d >= g->nfwd && g->v[d].kind == K_VEC)
		g->v[d].keep = true;
	if (op_info[v.op].class == CL_POINT)
		back_point(b, i, d);
	else if (op_info[v.op].class == CL_HEAVY)
		back_heavy(b, i, d);
	else
		back_other(b, i, d);
}

void
grad_append(Graph *g)
{
	Back b = { .g = g };
	int i;

	b.acc = NEWN(g->mem, int, g->nfwd);
	b.part = NEWN(g->mem, int, g->nfwd);
	b.needs = NEWN(g->mem, bool, g->nfwd);
	for (i = 0; i < g->nfwd; i++)
		b.acc[i] = b.part[i] = -1;
	find_needs(&b);
	g->bwd = true;
	for (i = g->nfwd - 1; i >= 0; i--)
		if (b.needs[i])
			back(&b, i);
	g->bwd = false;
}
