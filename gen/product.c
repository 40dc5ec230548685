/* Products of coefficients in one form: a number, then scalars, then numbers per
 * row, each in the order of their definition.  x and 1/x meet and vanish, equal
 * products are one value, and kernels form the part that all rows share once. */
#include "search.h"

void
factor(const Graph *g, int c, Product *p)
{
	const Val *v = &g->v[c];
	int i;

	if (v->op == OP_NUM) {
		p->num *= v->num;
		return;
	}
	if (v->op == OP_NEG || v->op == OP_MUL) {
		if (v->op == OP_NEG)
			p->num = -p->num;
		for (i = 0; i < op_info[v->op].arity; i++)
			factor(g, v->arg[i], p);
		return;
	}
	for (i = 0; i < p->n; i++) {
		const Val *w = &g->v[p->f[i]];

		if ((w->op == OP_RECIP && w->arg[0] == c) ||
		    (v->op == OP_RECIP && v->arg[0] == p->f[i])) {
			p->f[i] = p->f[--p->n];
			return;
		}
	}
	if (p->n == MaxFactors)
		bug("rewrite: a product of more than %d factors", MaxFactors);
	p->f[p->n++] = c;
}

static bool
is_before(const Graph *g, int x, int y)
{
	return g->v[x].kind != g->v[y].kind ? g->v[x].kind < g->v[y].kind : x < y;
}

/* of the factors that are numbers per row, or of those that are not; -1: none */
static int
product(Graph *g, const Product *p, bool rowvals)
{
	int i, c = -1;

	for (i = 0; i < p->n; i++)
		if ((g->v[p->f[i]].kind > K_SCALAR) == rowvals)
			c = c < 0 ? p->f[i] : mul(g, c, p->f[i]);
	return c;
}

/* resid_lambda * post0 is called resid_lambda_post0 in kernels */
static void
name_product(Graph *g, const Product *p, int s)
{
	const Val *v;
	Buf b = {0};
	int i, n = 0;

	for (i = 0; i < p->n; i++) {
		v = &g->v[p->f[i]];
		if (v->kind != K_SCALAR)
			continue;
		if (v->op == OP_BF16 && !v->name)
			v = &g->v[v->arg[0]];
		buf_printf(&b, "%s%s", n++ ? "_" : "", v->name ? v->name : "s");
	}
	if (n <= 3)
		val_named(g, s, b.s);
	buf_free(&b);
}

int
times(Graph *g, int a, int b)
{
	Product p = { .num = 1 };
	int i, j, t, s, r;

	if (g->v[a].op == OP_NUM || g->v[b].op == OP_NUM)
		return mul(g, a, b);
	factor(g, a, &p);
	factor(g, b, &p);
	for (i = 1; i < p.n; i++)
		for (j = i; j > 0 && is_before(g, p.f[j], p.f[j - 1]); j--) {
			t = p.f[j];
			p.f[j] = p.f[j - 1];
			p.f[j - 1] = t;
		}
	s = product(g, &p, false);
	if (s >= 0 && g->v[s].op == OP_MUL)
		name_product(g, &p, s);
	r = product(g, &p, true);
	if (s < 0)
		s = num(g, p.num);
	else
		s = mul(g, num(g, p.num), s);
	return r < 0 ? s : mul(g, s, r);
}
