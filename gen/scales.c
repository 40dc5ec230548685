/* Graph -> Graph: learned factors of products moved into their matrices.
 *
 * Where every use of a product, say y = x W^T, multiplies it by the same learned scalar
 * s, by itself or as part of a sum, s y = x (s W)^T.  The matrix is smaller than y
 * of all tokens, and what s W has in its favour is the backward pass: the products
 * take the gradient of s y, which is there, and not s times it, which would have to
 * be stored beside it; and the gradient of s is <dW', W> of the product that makes
 * dW', without y.  docs/numerics.md has the mathematics.
 *
 * Runs on the forward pass, before grad.c. */
#include "hcgen.h"

#include <string.h>

/* of one matrix; its kernels take as many */
enum { MaxScales = 2 };

typedef struct {
	const Graph *g;
	Graph *n;
	int *factor;            /* value -> what all of its uses multiply it by, or -1 */
	bool *moves;            /* a product, or a sum with one, that is made times factor */
	int *map;               /* value -> new value; times its factor, if it moves */
} Scales;

int
mat_param(const Graph *g, int v)
{
	while (g->v[v].op == OP_SCALED)
		v = g->v[v].arg[0];
	return g->v[v].attr[0];
}

/* How many coefficients v is the product of; too many where it is something else. */
static int
count_scales(const Graph *g, int v)
{
	const Val *x = &g->v[v];

	if (x->op == OP_MUL)
		return count_scales(g, x->arg[0]) + count_scales(g, x->arg[1]);
	if (x->op == OP_BF16)
		x = &g->v[x->arg[0]];
	return x->op == OP_COEF ? 1 : MaxScales + 1;
}

enum { Unused = -2, Differs = -1 };

static void
meet(int *factor, int f)
{
	*factor = *factor == Unused || *factor == f ? f : Differs;
}

/* what value i multiplies its operands by, before anything reads them */
static void
use(Scales *s, int i)
{
	const Val *v = &s->g->v[i];
	int j, other, f;

	for (j = 0; j < 6 && v->arg[j] >= 0; j++) {
		f = Differs;
		other = j < 2 ? v->arg[1 - j] : -1;
		if (v->op == OP_ADD || v->op == OP_SUB)
			f = s->factor[i] == Unused ? Differs : s->factor[i];
		else if (v->op == OP_MUL && s->g->v[other].kind == K_SCALAR &&
		         count_scales(s->g, other) <= MaxScales)
			f = other;
		meet(&s->factor[v->arg[j]], f);
	}
}

static void
find_factors(Scales *s)
{
	const Graph *g = s->g;
	int i;

	for (i = 0; i < g->n; i++)
		s->factor[i] = Unused;
	if (g->loss >= 0)
		s->factor[g->loss] = Differs;
	if (g->logits >= 0)
		s->factor[g->logits] = Differs;
	for (i = g->n - 1; i >= 0; i--)
		use(s, i);
}

static bool
find_moves(Scales *s)
{
	const Graph *g = s->g;
	const Val *v, *w;
	bool any = false;
	int i, n;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (s->factor[i] < 0)
			continue;
		if (v->op == OP_GEMM) {
			w = &g->v[v->arg[1]];
			n = count_scales(g, s->factor[i]);
			if (w->op == OP_SCALED)
				n += count_scales(g, w->arg[1]);
			any |= s->moves[i] = n <= MaxScales;
		}
		if ((v->op == OP_ADD || v->op == OP_SUB) && v->kind == K_VEC)
			s->moves[i] = s->moves[v->arg[0]] || s->moves[v->arg[1]];
	}
	return any;
}

static int copy(Scales *s, int i);

/* what is made next is named and placed as v */
static void
context(Scales *s, const Val *v)
{
	s->n->name = v->name;
	s->n->sub = v->sub;
	s->n->glue = v->glue;
}

/* operand v of a sum that moves, times the sum's factor */
static int
scaled(Scales *s, int v, int factor)
{
	int x = copy(s, v), f;

	if (s->moves[v])
		return x;
	f = copy(s, factor);
	context(s, &s->g->v[v]);
	s->n->name = NULL;
	return mul(s->n, x, f);
}

static int
scaled_product(Scales *s, const Val *v, int factor)
{
	Graph *n = s->n;
	int x = copy(s, v->arg[0]), w = copy(s, v->arg[1]), f = copy(s, factor), t, y;

	if (n->v[w].op == OP_SCALED) {
		f = mul(n, n->v[w].arg[1], f);
		w = n->v[w].arg[0];
	}
	context(s, v);
	n->name = "scaled";
	t = heavy(n, OP_SCALED, K_MAT, n->v[w].width, w, f);
	n->name = v->name;
	y = heavy(n, OP_GEMM, K_VEC, v->width, x, t);
	n->v[y].attr[0] = v->attr[0];
	return y;
}

static int
moved(Scales *s, int i)
{
	const Val *v = &s->g->v[i];
	int f = s->factor[i], x, y;

	if (v->op == OP_GEMM)
		return scaled_product(s, v, f);
	x = scaled(s, v->arg[0], f);
	y = scaled(s, v->arg[1], f);
	context(s, v);
	return point(s->n, v->op, x, y);
}

static int
same(Scales *s, const Val *v)
{
	Val w = *v;
	int j;

	for (j = 0; j < 6 && v->arg[j] >= 0; j++)
		w.arg[j] = copy(s, v->arg[j]);
	context(s, v);
	return val_new(s->n, w);
}

/* The new value of i.  Scalars are made where they are first needed, which may be
 * before their place in the old graph. */
static int
copy(Scales *s, int i)
{
	const Val *v = &s->g->v[i];
	Graph *n = s->n;
	int j;

	if (s->map[i] >= 0)
		return s->map[i];
	for (j = 0; v->op == OP_MUL && j < 2; j++)
		if (s->moves[v->arg[j]])
			s->map[i] = copy(s, v->arg[j]);
	if (s->map[i] < 0)
		s->map[i] = s->moves[i] ? moved(s, i) : same(s, v);
	n->v[s->map[i]].keep |= v->keep;
	n->v[s->map[i]].accum |= v->accum;
	if (v->name)
		n->v[s->map[i]].name = v->name;
	return s->map[i];
}

static Graph *
once(Arena *a, const Graph *g)
{
	Scales s = { .g = g };
	int i;

	s.factor = NEWN(a, int, g->n);
	s.moves = NEWN(a, bool, g->n);
	s.map = NEWN(a, int, g->n);
	find_factors(&s);
	if (!find_moves(&s))
		return NULL;
	s.n = graph_new(a, g->model, g->mode, g->T);
	memset(s.map, -1, (size_t)g->n * sizeof *s.map);
	for (i = 0; i < g->n; i++)
		(void)copy(&s, i);
	s.n->nfwd = s.n->n;
	s.n->scaled = true;
	s.n->loss = g->loss < 0 ? -1 : s.map[g->loss];
	s.n->logits = g->logits < 0 ? -1 : s.map[g->logits];
	return s.n;
}

Graph *
scales_into_weights(Arena *a, const Graph *g)
{
	Graph *n, *last = NULL;

	for (n = once(a, g); n; n = once(a, n))
		last = n;
	return last;
}
