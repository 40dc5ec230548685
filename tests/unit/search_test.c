/* terms.c, slots.c, search.c, rewrite.c: what the planner makes of a graph is the
 * same function, and costs what the search said.
 *
 * Rewritten graphs add in another order and write vectors out in others.  Loss
 * and gradients agree to 1e-12 of the summed magnitudes of their terms. */
#include "test.h"
#include "../../gen/search.h"
#include "../../gen/fuse.h"

static bool
same_results(const Graph *g, const Graph *h, const Inputs *in, char err[200])
{
	const Model *m = g->model;
	Interp *a = results_of(g, in), *b = results_of(h, in);
	double d, size, worst = 0;
	bool ok = true;
	int i;

	if (g->loss >= 0 && fabs(a->x[g->loss][0] - b->x[h->loss][0]) > 1e-12 * fabs(a->x[g->loss][0])) {
		snprintf(err, 200, "loss %.17g, of the graph %.17g", b->x[h->loss][0], a->x[g->loss][0]);
		ok = false;
	}
	for (i = 0; g->mode == GRAPH_TRAIN && i < m->nparam; i++) {
		size = norm2(a->grad_mag[i] ? a->grad_mag[i] : a->grad[i], m->param[i].n);
		if (size < norm2(a->grad[i], m->param[i].n))
			size = norm2(a->grad[i], m->param[i].n);
		d = distance(b->grad[i], a->grad[i], m->param[i].n, size);
		if (ok && !(d <= 1e-12)) {
			snprintf(err, 200, "gradient of %s differs by %.3g", m->param[i].name, d);
			ok = false;
		}
		worst = d > worst ? d : worst;
	}
	interp_free(a);
	interp_free(b);
	return ok;
}

static bool
one(void *arg, char err[200])
{
	int i = *(int *)arg % NSpecs, mode = *(int *)arg / NSpecs;
	const Model *m = model_at(i);
	Graph *g = mode == GRAPH_TRAIN ? train_graph(m, m->T) : graph_build(mem, m, mode, m->T);
	Inputs in = inputs_random(m, m->T);

	g = simplify(mem, g);
	return same_results(g, plan_search(mem, g, &m->spec->plan, NULL), &in, err);
}

#define SMALL(layers, lanes, rest) "model: {layers: " #layers ", width: 16, heads: 2, vocab: 19, vocab_multiple: 8}\n" \
	"hc: {lanes: " #lanes ", res: {init: identity}, pre: {init: round_robin}, post: {learned: true}, " \
	"resid_lambda: {granularity: sublayer, init: 1.05}, " rest "}\n" TRAIN(24, 12)
#define SOURCES "sources: {x0: {kind: x0, sublayers: attn}, e: {kind: bigram, rows: 11, sublayers: attn}}"

static const char *const small[] = {
	SMALL(1, 1, ""), SMALL(1, 2, ""), SMALL(1, 2, SOURCES), SMALL(1, 3, SOURCES), SMALL(1, 4, SOURCES),
	SMALL(2, 1, SOURCES), SMALL(2, 2, ""), SMALL(2, 2, SOURCES), SMALL(2, 3, ""), SMALL(2, 3, SOURCES),
	SMALL(2, 4, SOURCES),
};

/* bytes per row of vectors that the row kernels of a plan move */
static double
moved(const Plan *p)
{
	const RowKernel *k;
	const Val *v;
	double n = 0;
	int i, j;

	for (i = 0; i < p->nstep; i++) {
		if (!(k = p->step[i].row))
			continue;
		for (j = 0; j < k->nin; j++)
			if (p->g->v[k->in[j]].kind == K_VEC)
				n += (double)p->g->v[k->in[j]].width * dt_size(p->dt[k->in[j]]);
		for (j = 0; j < k->nroot; j++) {
			v = &p->g->v[k->root[j]];
			if (v->kind == K_VEC && v->op != OP_SUMR)
				n += (double)v->width * dt_size(p->dt[k->root[j]]);
		}
	}
	return n;
}

/* what heavy ops make the row kernels write is no choice, and the search does not
 * count it */
static double
demanded(const Terms *m)
{
	double n = 0;
	int i;

	for (i = 0; i < m->nnode; i++)
		if (m->node[i].stored && m->node[i].kind != NODE_MEM)
			n += m->node[i].nbytes;
	return n;
}

/* The cost model of the search against the plan that is made of its decisions.  A
 * vector that it stored in vain is not stored by the plan, which may so move a
 * little less; never more. */
static bool
costs(void *arg, char err[200])
{
	int i = *(int *)arg;
	const Model *m = i < NSpecs ? model_at(i) : model_of("small", small[i - NSpecs]);
	Graph *g = simplify(mem, train_graph(m, m->T));
	Decisions *d;
	Terms *t = search_best(mem, g, &m->spec->plan, &d);
	Plan *p = fuse(mem, rewrite(mem, g, t, d), TO_CPU);

	plan_verify(p);
	snprintf(err, 200, "the plan moves %.0f bytes per row, the search says %.0f", moved(p),
	         d->nbytes + demanded(t));
	return i < NSpecs ? moved(p) <= d->nbytes + demanded(t) && moved(p) >= 0.98 * (d->nbytes + demanded(t)) :
	       moved(p) == d->nbytes + demanded(t);
}

/* a small spec, and how many states go on: 0, brute force, is every one that differs,
 * with forward and backward pass decided together */
typedef struct { const char *text; int states; } Against;

static bool
nothing_better(void *arg, char err[200])
{
	const Against *x = arg;
	const Model *m = model_of("small", x->text);
	Graph *g = simplify(mem, train_graph(m, m->T));
	Knobs k = m->spec->plan;
	Decisions *d, *e;
	Terms *t;

	k.sources = SOURCES_INLINE;
	t = terms_of(mem, g, &k, false);
	d = search(mem, t, beam_of(t));
	e = search(mem, t, x->states);
	snprintf(err, 200, "the search finds %.0f bytes per row, there is a plan of %.0f", d->nbytes, e->nbytes);
	return d->nbytes == e->nbytes;
}

/* With gradients of sources a level later, no value is there before what it is made
 * of, nor a row of another before the kernel behind the one that stores it. */
static bool
levels_rise(void *arg, char err[200])
{
	const Model *m = model_at(*(int *)arg);
	Graph *g = simplify(mem, train_graph(m, m->T));
	const Terms *t = terms_of(mem, g, &m->spec->plan, true);
	const Val *v;
	int i, j, a, shift;

	for (i = 0; i < g->n; i++)
		for (v = &g->v[i], j = 0; j < op_info[v->op].arity && (a = v->arg[j]) >= 0; j++) {
			shift = v->op == OP_SHIFT || v->op == OP_UNSHIFT;
			snprintf(err, 200, "value %d (%s) at %d, its operand %d at %d", i, op_info[v->op].name,
			         t->level[i], a, t->level[a]);
			if (t->level[i] < t->level[a] + (shift && is_row(&g->v[a])))
				return false;
		}
	return true;
}

/* any decisions are the same function */
static bool
random_choices(void *arg, char err[200])
{
	int i = *(int *)arg % NSpecs, j, n;
	const Model *m = model_at(i);
	Graph *g = simplify(mem, train_graph(m, m->T));
	Inputs in = inputs_random(m, m->T);
	Knobs k = m->spec->plan;
	Terms *t;

	rng_state = (uint64_t)*(int *)arg + 77;
	k.sources = below(3);
	k.form = below(3);
	k.identities = below(4) == 0;
	k.collapse = below(4) == 0;
	k.gradients = below(3);
	t = terms_of(mem, g, &k, below(2));
	n = t->nslot * t->nnode;
	t->pinned = NEWN(mem, uint8_t, n + 1);
	for (j = 0; j < n; j++)
		t->pinned[j] = (uint8_t)below(3);
	g->name = NULL;
	return same_results(g, rewrite(mem, g, t, search(mem, t, 1)), &in, err);
}

enum { RandomChoices = 520, NBrute = 7 };


/* learned factors of products in the matrices: how many, and the same function */
#define LANE(layers, rest) "model: {layers: " #layers ", width: 16, heads: 2, vocab: 19, vocab_multiple: 8}\n" \
	"hc: {" rest "}\n" TRAIN(24, 12)
#define BEFORE "resid_lambda: {granularity: layer, site: before_read, init: 1.1}"

static const struct { const char *what, *text; int n; } scales[] = {
	/* all but the last layer's, which no lambda follows */
	{ "lambda before the read", LANE(3, BEFORE), 2 },
	/* lambda multiplies both products of a layer together, but attention's is also read alone */
	{ "lambda and sources", LANE(3, BEFORE ", " SOURCES), 2 },
	{ "a detached source", LANE(3, BEFORE ", sources: {x0: {kind: x0, detach: true, init: 0.5}}"), 2 },
	{ "post", LANE(2, "post: {learned: true, init: 0.9}"), 4 },
	{ "post and lambda, rounded", LANE(3, "post: {learned: true, init: 0.9}, coef_dtype: bf16, " BEFORE), 6 },
	{ "lambda at the write", LANE(2, "resid_lambda: {granularity: sublayer, init: 1.05}"), 0 },
	{ "another reader", LANE(3, BEFORE ", backouts: {b: {from: {sublayer: 3}}}"), 1 },
	{ "several lanes", LANE(2, "lanes: 2, post: {learned: true, init: 0.9}"), 0 },
	{ "a number", LANE(2, "post: {learned: false, init: 0.9}"), 0 },
};

static int
count_op(const Graph *g, Op op)
{
	int i, n = 0;

	for (i = 0; i < g->n; i++)
		n += g->v[i].op == op;
	return n;
}

static bool
scales_moved(void *arg, char err[200])
{
	int i = *(int *)arg;
	const Model *m = model_of("small", scales[i].text);
	Graph *g = scales_into_weights(mem, simplify_uses(mem, graph_build(mem, m, GRAPH_TRAIN, m->T))), *s;
	Inputs in = inputs_random(m, m->T);

	if (g)
		grad_append(g);
	if (g)
		graph_verify(g);
	s = g ? simplify(mem, g) : NULL;
	snprintf(err, 200, "%d matrices are scaled, not %d", s ? count_op(s, OP_SCALED) : 0, scales[i].n);
	if ((s ? count_op(s, OP_SCALED) : 0) != scales[i].n)
		return false;
	if (!g)
		return true;
	return same_results(train_graph(m, m->T), g, &in, err) && same_results(train_graph(m, m->T), s, &in, err) &&
	       same_results(s, plan_search(mem, s, &m->spec->plan, NULL), &in, err);
}

/* a spec in a file, all three programs */
static bool
of_file(void *arg, char err[200])
{
	Diag *d = diag_new(mem);
	Spec *s = spec_read(mem, d, arg, 0, NULL);
	Model *m = s ? model_build(mem, d, s) : NULL;
	Graph *g, *n;
	Inputs in;
	int mode;

	if (!m) {
		diag_flush(d, stderr);
		return false;
	}
	in = inputs_random(m, m->T);
	for (mode = GRAPH_TRAIN; mode <= GRAPH_EVAL; mode++) {
		g = mode == GRAPH_TRAIN ? train_graph(m, m->T) : graph_build(mem, m, mode, m->T);
		g = simplify(mem, g);
		if (!same_results(g, plan_search(mem, g, &m->spec->plan, NULL), &in, err))
			return false;
	}
	n = scales_into_weights(mem, simplify_uses(mem, graph_build(mem, m, GRAPH_TRAIN, m->T)));
	if (!n)
		return true;
	grad_append(n);
	n = simplify(mem, n);
	return same_results(train_graph(m, m->T), plan_search(mem, n, &m->spec->plan, NULL), &in, err);
}

int
main(int argc, char **argv)
{
	static const char *const mode[] = { "train", "eval" };
	char name[120];
	int i;

	mem = arena_new("search_test");
	for (i = 1; i < argc; i++)
		check_case(argv[i], of_file, argv[i]);
	if (argc > 1)
		return summary();
	for (i = 0; i < 2 * NSpecs; i++) {
		snprintf(name, sizeof name, "search of %s, %s", spec_text[i % NSpecs].name, mode[i / NSpecs]);
		check_case(name, one, &i);
	}
	for (i = 0; i < NSpecs + (int)(sizeof small / sizeof *small); i++) {
		snprintf(name, sizeof name, "cost of %s %d is the plan's", i < NSpecs ? spec_text[i].name : "small spec", i);
		check_case(name, costs, &i);
	}
	for (i = 0; i < (int)(sizeof small / sizeof *small); i++) {
		snprintf(name, sizeof name, "nothing better than the search for small spec %d", i);
		check_case(name, nothing_better, &(Against){ small[i], 100000 });
	}
	for (i = 0; i < NBrute; i++) {
		snprintf(name, sizeof name, "brute force for small spec %d finds nothing better", i);
		check_case(name, nothing_better, &(Against){ small[i], 0 });
	}
	for (i = 0; i < (int)(sizeof scales / sizeof *scales); i++)
		check_case(arena_printf(mem, "factors in matrices: %s", scales[i].what), scales_moved, &i);
	for (i = 0; i < NSpecs; i++) {
		snprintf(name, sizeof name, "levels of %s", spec_text[i].name);
		check_case(name, levels_rise, &i);
	}
	for (i = 0; i < RandomChoices; i++) {
		snprintf(name, sizeof name, "random choices %d of %s", i, spec_text[i % NSpecs].name);
		check_case(name, random_choices, &i);
	}
	return summary();
}
