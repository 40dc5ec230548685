/* terms.c, slots.c, search.c, rewrite.c: what the planner makes of a graph is the
 * same function, and costs what the search said.
 *
 * Rewritten graphs add in another order and write vectors out in others.  Loss
 * and gradients agree to 1e-12 of the summed magnitudes of their terms. */
#include "test.h"
#include "../../gen/search.h"

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
	return same_results(g, plan_search(mem, g, &m->spec->plan), &in, err);
}

/* a spec in a file, all three programs */
static bool
of_file(void *arg, char err[200])
{
	Diag *d = diag_new(mem);
	Spec *s = spec_read(mem, d, arg, 0, NULL);
	Model *m = s ? model_build(mem, d, s) : NULL;
	Graph *g;
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
		if (!same_results(g, plan_search(mem, g, &m->spec->plan), &in, err))
			return false;
	}
	return true;
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
	return summary();
}
