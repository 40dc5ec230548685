/* Why the plan is what it is: every choice of the search beside its runner-up. */
#include "search.h"

#include <string.h>

/* the keys of `plan` that force a choice, and their words */
static const struct { const char *key; size_t at; const char *word[4]; } keys[] = {
	{ "plan.store", offsetof(Knobs, store), { "auto", "lanes", "parts", "none" } },
	{ "plan.form", offsetof(Knobs, form), { "auto", "raw", "normed" } },
	{ "plan.sources", offsetof(Knobs, sources), { "auto", "inline", "precompute" } },
	{ "plan.gradients", offsetof(Knobs, gradients), { "auto", "now", "deferred" } },
	{ "plan.identities", offsetof(Knobs, identities), { "auto", "none" } },
	{ "plan.collapse", offsetof(Knobs, collapse), { "auto", "none" } },
};

static double
cost(Arena *a, const Graph *g, const Knobs *knob)
{
	Decisions *d;

	(void)search_best(a, g, knob, &d);
	return d->nbytes;
}

/* in U per token, of the whole net */
static double
units(const Graph *g, double nbytes)
{
	return nbytes / (2. * g->model->C);
}

static void
forced_row(const Graph *g, const char *key, const char *word, double x, double best, Buf *o)
{
	buf_printf(o, "%-18s %-12s %10.2f %+10.2f\n", key, word, units(g, x), units(g, x - best));
}

static void
forced_rows(Arena *a, const Graph *g, const Graph *other, const Knobs *knob, double best, Buf *o)
{
	Knobs k;
	double x;
	size_t i;
	int j;

	buf_printf(o, "%-18s %-12s %10s %10s\n", "forced", "to", "U", "more");
	buf_printf(o, "%-18s %-12s %10.2f\n", "nothing", "", units(g, best));
	for (i = 0; i < sizeof keys / sizeof *keys; i++)
		for (j = 1; j < 4 && keys[i].word[j]; j++) {
			k = *knob;
			k.locked = NULL;
			memcpy((char *)&k + keys[i].at, &j, sizeof j);
			x = cost(a, g, &k);
			forced_row(g, keys[i].key, keys[i].word[j], x, best, o);
		}
	if (other)
		forced_row(g, "plan.scales", other->scaled ? "weights" : "stream",
		           cost(a, other, knob), best, o);
}

static void
node_title(const Terms *m, int n, Buf *o)
{
	const Val *v = &m->g->v[m->node[n].val];

	buf_printf(o, "%s", v->name ? v->name : "sum");
	if (v->sub >= 0 && v->sub < m->g->model->S)
		buf_printf(o, " of layers.%d.%s", v->sub / 2, v->sub % 2 ? "mlp" : "attn");
}

/* what is stored, of the slots of the middle layers, and what it would cost not to */
static void
stored_rows(Arena *a, const Graph *g, Terms *m, const Decisions *d, Buf *o)
{
	const Model *model = g->model;
	int i, sub, mid = model->L / 2;
	const Choice *c;
	Decisions *e;

	buf_printf(o, "\nstored in layer %d, and what the next best plan without it moves\n", mid);
	for (i = 0; i < d->nchoice; i++) {
		c = &d->choice[i];
		if (!m->slot[c->slot].nroot)
			continue;
		sub = g->v[m->slot[c->slot].root[m->slot[c->slot].nroot - 1]].sub;
		if (sub / 2 != mid || sub < 0)
			continue;
		m->not = *c;
		e = search(a, m, beam_of(m));
		m->not.slot = -1;
		buf_printf(o, "  %s %-6s  ", c->slot < m->first_bwd ? "fwd" : "bwd",
		           c->what == STORE && m->node[c->node].slot == c->slot ? "whole" :
		           c->what == STORE ? "rest" : "part");
		node_title(m, c->node, o);
		buf_printf(o, "  %+.2f U\n", units(g, e->nbytes - d->nbytes));
	}
}

void
plan_why(Arena *a, const Graph *g, const Graph *other, const Knobs *knob, Buf *o)
{
	Decisions *d;
	Terms *m = search_best(a, g, knob, &d);

	buf_printf(o, "vectors that row kernels move, in U of the whole net: what the search found, and\n"
	           "the best that it finds with one choice forced\n\n");
	forced_rows(a, g, other, knob, d->nbytes, o);
	stored_rows(a, g, m, d, o);
}
