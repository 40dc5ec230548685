/* Graph -> Graph: what a product reads again in the backward pass is computed
 * again there, instead of being kept since the forward pass.
 *
 * The weight gradient of the down-projection reads the activation, which the
 * forward product read.  It is a row op of `up`, which the kernel of the
 * activation's gradient loads anyway: that kernel writes it once more, into
 * memory that lives for two steps.  4 U more per layer, and as much memory less
 * per token and layer. */
#include "hcgen.h"
#include "fuse.h"

/* Is v a row op of results of heavy ops alone, and no sum that a lane may need? */
static bool
is_local(const Graph *g, int v)
{
	const Val *x = &g->v[v];
	int j;

	if (x->kind <= K_SCALAR)
		return true;
	if (x->op == OP_GEMM)
		return true;
	if (!is_row(x) || op_info[x->op].class == CL_REDUCE)
		return false;
	for (j = 0; j < op_info[x->op].arity; j++)
		if (!is_local(g, x->arg[j]))
			return false;
	return true;
}

/* the heavy op that a weight gradient's other operand comes from, and so the
 * first kernel of the backward pass that has it at hand */
static int
level_of_use(const Graph *g, int dw, int other, const int *level)
{
	int i;

	for (i = dw - 1; i >= 0; i--)
		if (g->v[i].op == OP_GEMM_DX && g->v[i].arg[0] == other)
			return level[i];
	return 0;
}

/* the operand of a weight gradient that is no gradient */
static int
kept_operand(const Graph *g, const Val *dw)
{
	return g->v[dw->arg[1]].bwd ? 0 : 1;
}

Graph *
recompute(Arena *a, const Graph *g)
{
	Graph *n = graph_new(a, g->model, g->mode, g->T);
	int *map = NEWN(a, int, g->n), *level = NEWN(a, int, g->n), i, j, x, o, at, p, k;
	const struct Contrib *c;
	Val v;

	n->scaled = g->scaled;
	find_levels(g, level);
	n->nfwd = -1;
	for (i = 0; i < g->n; i++) {
		if (i == g->nfwd)
			n->nfwd = n->n;
		v = g->v[i];
		o = v.op == OP_GEMM_DW ? kept_operand(g, &v) : 0;
		x = v.op == OP_GEMM_DW ? v.arg[o] : -1;
		for (j = 0; j < 6 && v.arg[j] >= 0; j++)
			v.arg[j] = map[v.arg[j]];
		if (x >= 0 && !g->v[x].bwd && is_row(&g->v[x]) && is_local(g, x) &&
		    (at = level_of_use(g, i, g->v[i].arg[1 - o], level)) > 0) {
			Val again = n->v[map[x]];

			again.at = at;
			again.bwd = true;
			again.name = again.name ? arena_printf(a, "%s_again", again.name) : NULL;
			*PUSH(a, n->v, n->n, n->cap) = again;
			v.arg[o] = n->n - 1;
		}
		*PUSH(a, n->v, n->n, n->cap) = v;
		map[i] = n->n - 1;
	}
	if (n->nfwd < 0)
		n->nfwd = n->n;
	n->loss = g->loss < 0 ? -1 : map[g->loss];
	n->logits = g->logits < 0 ? -1 : map[g->logits];
	for (p = 0; p < g->model->nparam; p++)
		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			grad_contrib(n, p, c->idx, map[c->val]);
		}
	return n;
}
