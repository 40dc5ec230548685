/* Graph -> Graph: numbers folded, equal values merged, dead ones gone.
 *
 * The graph is rebuilt through its constructors with folding on, which is
 * where the rules stand (ir.c): a frozen identity mix multiplies by 1 and adds
 * 0, a frozen one-hot read multiplies by 0, and both vanish; a factor that all
 * terms of a dot product or a sum share leaves it.  The terms of sums keep
 * their order. */
#include "hcgen.h"

#include <string.h>

static void
mark(bool *live, int v)
{
	if (v >= 0)
		live[v] = true;
}

static void
mark_results(const Graph *g, bool *live)
{
	int i, j;

	mark(live, g->loss);
	mark(live, g->logits);
	for (i = 0; i < g->ncontrib; i++)
		mark(live, g->contrib[i].val);
	for (i = g->n - 1; i >= 0; i--)
		for (j = 0; live[i] && j < 6; j++)
			mark(live, g->v[i].arg[j]);
}

/* operands that must keep their kind get it back if they became numbers */
static int
arg_vec(Graph *n, const Graph *g, int old, int x)
{
	const Val *v = &g->v[old];

	return as_kind(n, x, v->kind, v->width);
}

static int
rebuild_heavy(Graph *n, const Graph *g, const Val *v, const int *map)
{
	Val w = *v;
	int j;

	for (j = 0; j < 6 && v->arg[j] >= 0; j++)
		w.arg[j] = arg_vec(n, g, v->arg[j], map[v->arg[j]]);
	return val_new(n, w);
}

static int
rebuild(Graph *n, const Graph *g, int i, const int *map)
{
	const Val *v = &g->v[i];
	int x = v->arg[0] >= 0 ? map[v->arg[0]] : -1;
	int y = v->arg[1] >= 0 ? map[v->arg[1]] : -1;
	bool zero = x >= 0 && n->v[x].op == OP_NUM && n->v[x].num == 0;

	n->name = v->name;
	n->sub = v->sub;
	n->bwd = v->bwd;
	n->glue = v->glue;
	if (op_info[v->op].class == CL_POINT)
		return point(n, v->op, x, y);
	if (op_info[v->op].class == CL_HEAVY)
		return rebuild_heavy(n, g, v, map);
	if (x >= 0 && !zero && v->op != OP_BCAST && v->op != OP_OUT)
		x = arg_vec(n, g, v->arg[0], x);
	switch ((int)v->op) {
	case OP_NUM:
		return num(n, v->num);
	case OP_DOT:
		if (!(n->v[y].op == OP_NUM && n->v[y].num == 0))
			y = arg_vec(n, g, v->arg[1], y);
		return dot(n, x, y, v->attr[0]);
	case OP_SUMC:
		return sumc(n, x, v->attr[0]);
	case OP_SUMG:
		return sumg(n, x);
	case OP_SUMR:
		return sumr(n, x);
	case OP_BCAST:
		/* before grad.c the wall of a detached source stays */
		if (v->attr[0] && n->factors_stay) {
			Val w = *v;

			w.arg[0] = x;
			return val_new(n, w);
		}
		return v->attr[0] || zero ? x : bcast(n, x, v->kind, v->width);
	case OP_SLICE:
		return slice(n, x, v->attr[0], v->width);
	case OP_PAD:
		return pad(n, x, v->attr[0], v->width);
	case OP_ROTATE:
		return rotate(n, x, y, map[v->arg[2]], v->attr[0], v->attr[2] != 0,
		              v->attr[3]);
	case OP_SHIFT:
	case OP_UNSHIFT:
		return shift(n, v->op, x, v->attr[0], v->attr[1], v->attr[2] != 0, v->attr[3]);
	case OP_OUT:
		return out(n, x, v->attr[0]);
	default: {
		Val w = *v;

		return val_new(n, w);   /* leaves */
	}
	}
}

static void
copy_flags(Graph *n, int j, const Val *v)
{
	Val *w = &n->v[j];

	if (w->kind != K_VEC && w->kind != K_ROWVAL)
		return;
	w->keep |= v->keep;
	w->accum |= v->accum;
	if (!w->name)
		w->name = v->name;
}

static void
copy_results(Graph *n, const Graph *g, const int *map)
{
	const struct Contrib *c;
	int p, k, v;

	n->loss = g->loss < 0 ? -1 : map[g->loss];
	n->logits = g->logits < 0 ? -1 : map[g->logits];
	for (p = 0; p < g->model->nparam; p++)
		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			v = map[c->val];
			if (n->v[v].op == OP_NUM && n->v[v].num == 0)
				continue;
			if (n->v[v].op == OP_NUM)
				bug("simplify: gradient of %s is the number %g",
				    g->model->param[p].name, n->v[v].num);
			grad_contrib(n, p, c->idx, v);
		}
}

Graph *
compact(Arena *a, const Graph *g)
{
	Graph *n = graph_new(a, g->model, g->mode, g->T);
	bool *live = NEWN(a, bool, g->n);
	int *map = NEWN(a, int, g->n), i, j;
	Val v;

	n->scaled = g->scaled;
	mark_results(g, live);
	n->nfwd = -1;
	for (i = 0; i < g->n; i++) {
		if (i == g->nfwd)
			n->nfwd = n->n;
		if (!live[i])
			continue;
		v = g->v[i];
		for (j = 0; j < 6 && v.arg[j] >= 0; j++)
			v.arg[j] = map[v.arg[j]];
		*PUSH(a, n->v, n->n, n->cap) = v;
		map[i] = n->n - 1;
	}
	if (n->nfwd < 0)
		n->nfwd = n->n;
	copy_results(n, g, map);
	return n;
}

static Graph *
fold(Arena *a, const Graph *g, bool factors_stay)
{
	Graph *n = graph_new(a, g->model, g->mode, g->T);
	bool *live = NEWN(a, bool, g->n);
	int *map = NEWN(a, int, g->n), i;

	n->folding = true;
	n->scaled = g->scaled;
	n->factors_stay = factors_stay;
	mark_results(g, live);
	for (i = 0; i < g->n; i++) {
		if (i == g->nfwd)
			n->nfwd = n->n;
		map[i] = -1;
		if (!live[i])
			continue;
		map[i] = rebuild(n, g, i, map);
		copy_flags(n, map[i], &g->v[i]);
	}
	if (!n->nfwd)
		n->nfwd = n->n;
	copy_results(n, g, map);
	return compact(a, n);
}

Graph *
simplify(Arena *a, const Graph *g)
{
	return fold(a, g, false);
}

Graph *
simplify_uses(Arena *a, const Graph *g)
{
	return fold(a, g, true);
}
