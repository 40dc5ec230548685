/* Gradients of coefficients as dot products of nodes.
 *
 * A dot product that only a sum over rows reads is bilinear in the terms of both
 * its sides, so it is a sum of coefficient * <x, y> over pairs of nodes.  Any
 * kernel may form a pair that has both at hand; most pairs are needed by several
 * gradients and formed once.  A pair is due at one slot, chosen here by what it
 * would load there that is not loaded anyway. */
#include "search.h"

#include <string.h>

static int
pair_new(Terms *m, int x, int y)
{
	Node *n;
	Pair *p;
	int i;

	if (m->node[x].level < m->node[y].level ||
	    (m->node[x].level == m->node[y].level && x < y)) {
		i = x;
		x = y;
		y = i;
	}
	n = &m->node[y];
	for (i = 0; i < n->npair; i++)
		if (m->pair[n->pair[i]].x == x)
			return n->pair[i];
	p = PUSH(m->a, m->pair, m->npair, m->cappair);
	*p = (Pair){ .x = x, .y = y, .slot = -1, .with = -1 };
	n = &m->node[y];
	*PUSH(m->a, n->pair, n->npair, n->cappair) = m->npair - 1;
	return m->npair - 1;
}

void
find_pairs(Terms *m)
{
	Graph *g = m->g;
	const int n = g->n;
	PairSum *s;
	PairTerm *t;
	Node x, y;
	int i, j, k, d;

	for (i = 0; i < n; i++) {
		if (g->v[i].op != OP_SUMR || !m->pairdot[g->v[i].arg[0]])
			continue;
		d = g->v[i].arg[0];
		memset(&x, 0, sizeof x);
		memset(&y, 0, sizeof y);
		flatten(m, &x, g->v[d].arg[0], num(g, 1), false);
		flatten(m, &y, g->v[d].arg[1], num(g, 1), false);
		s = PUSH(m->a, m->sum, m->nsum, m->capsum);
		memset(s, 0, sizeof *s);
		s->val = i;
		for (j = 0; j < x.nterm; j++)
			for (k = 0; k < y.nterm; k++) {
				t = PUSH(m->a, s->term, s->nterm, s->capterm);
				t->coef = mul(g, x.term[j].coef, y.term[k].coef);
				t->pair = pair_new(m, x.term[j].node, y.term[k].node);
			}
	}
}

bool
is_required(const Slot *s, int node)
{
	int i;

	for (i = 0; i < s->nreq; i++)
		if (s->req[i] == node)
			return true;
	return false;
}

/* a SUM of slot t that has node x as a term, or -1 */
static int
sum_at(const Terms *m, int x, int t)
{
	const Node *n = &m->node[x];
	int i;

	for (i = 0; i < n->nuser; i++)
		if (m->node[n->user[i].sum].slot == t)
			return n->user[i].sum;
	return -1;
}

/* What it costs to form all pairs of y at slot t (-1: each where its x is made):
 * y, and each x that no sum there has as a term. */
static double
due_cost(const Terms *m, int y, int t)
{
	double cost = 0;
	const Pair *p;
	int i, last = -1;

	for (i = 0; i < m->node[y].npair; i++) {
		p = &m->pair[m->node[y].pair[i]];
		if (t < 0) {
			if (m->node[p->x].slot != last && !is_required(&m->slot[m->node[p->x].slot], y))
				cost += m->node[y].nbytes;
			last = m->node[p->x].slot;
			continue;
		}
		if (m->node[p->x].slot > t)
			return 1e30;
		if (m->node[p->x].slot < t && sum_at(m, p->x, t) < 0 &&
		    !is_required(&m->slot[t], p->x))
			cost += m->node[p->x].nbytes;
	}
	if (t >= 0 && !is_required(&m->slot[t], y) && m->node[y].slot != t)
		cost += m->node[y].nbytes;
	return cost;
}

/* Pairs are due where both their nodes are at hand anyway, or nearly so. */
void
place_pairs(Terms *m)
{
	double best, c;
	Slot *s;
	Pair *p;
	int i, y, t, at;

	for (y = 0; y < m->nnode; y++) {
		if (!m->node[y].npair)
			continue;
		best = due_cost(m, y, at = -1);
		for (t = 0; t < m->nslot; t++) {
			c = due_cost(m, y, t);
			if (c < best) {
				best = c;
				at = t;
			}
		}
		for (i = 0; i < m->node[y].npair; i++) {
			p = &m->pair[m->node[y].pair[i]];
			p->slot = at < 0 ? m->node[p->x].slot : at;
			if (m->knob.gradients == GRADIENTS_NOW && m->node[y].source)
				p->slot = m->node[p->x].slot;
			if (p->slot > m->node[p->x].slot)
				p->with = sum_at(m, p->x, p->slot);
			s = &m->slot[p->slot];
			*PUSH(m->a, s->pair, s->npair, s->cappair) = m->node[y].pair[i];
		}
	}
}
