/* Lowering for cuda, the mapping: which sinks share vectors, how many channels
 * a vector has, how many threads a row, how many blocks a multiprocessor. */
#include "lower_cuda.h"

#include <string.h>

enum { MaxThreads = 512 };      /* of a row: more would leave too few registers
                                 * to each, and few rows to hide loads behind */

int
slab_of(const Lower *l)
{
	return l->k->map.threads * l->cu->vw;
}

int
slabs(const Lower *l, int width, int vw)
{
	int slab = l->k->map.threads * vw;

	return (width + slab - 1) / slab;
}

/* groups and their vectors */

/* Does every offset that the expression of v has, seen from its sink, and every
 * row that it loads, fall on vectors of vw? */
static bool
divides(const Lower *l, int v, int base, int vw)
{
	const Val *x = &l->g->v[v];
	const Param *w;
	int j;

	if (x->kind == K_PVEC && x->op == OP_PVEC) {
		w = &l->g->model->param[x->attr[0]];
		return base % vw == 0 && (w->off / 4 + (size_t)(x->attr[1] * x->width)) %
		       (size_t)(vw > 4 ? 4 : vw) == 0;
	}
	if (x->kind == K_PVEC)
		return divides(l, x->arg[0], base, vw) &&
		       (x->arg[1] < 0 || divides(l, x->arg[1], base, vw));
	if (x->kind != K_VEC)
		return true;
	if (!l->inside[v])
		return base % vw == 0 && x->width % vw == 0;
	switch ((int)x->op) {
	case OP_SLICE:
		return divides(l, x->arg[0], base + x->attr[0], vw);
	case OP_PAD:
		return x->attr[0] % vw == 0 && l->g->v[x->arg[0]].width % vw == 0 &&
		       divides(l, x->arg[0], base - x->attr[0], vw);
	case OP_ROTATE:
		return x->attr[1] % vw == 0 && (x->attr[2] || x->attr[1] / 2 % vw == 0) &&
		       divides(l, x->arg[0], base, vw);
	case OP_SHIFT:
	case OP_UNSHIFT:
		return base % vw == 0 && x->width % vw == 0 && SHIFT_FIRST(x->attr[3]) % vw == 0;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		if (!divides(l, x->arg[j], base, vw))
			return false;
	return true;
}

/* the vecs that a sink's expression begins with */
int
sink_args(const Lower *l, const Sink *s, int arg[2])
{
	const Val *x = &l->g->v[s->v];

	if (s->kind == SINK_STORE || s->kind == SINK_HOLD) {
		arg[0] = s->v;
		return 1;
	}
	arg[0] = x->arg[0];
	arg[1] = x->arg[1];
	return x->op == OP_DOT ? 2 : 1;
}

static void
group_cuts(const Lower *l, SinkGroup *g)
{
	int i, j, n, arg[2];
	bool fits;

	cut(&g->flat, 0);
	cut(&g->flat, g->W);
	cut(&g->heads, 0);
	if (g->D)
		cut(&g->heads, g->D);
	for (g->vw = 8; g->vw > 1; g->vw /= 2) {
		fits = g->W % g->vw == 0 && g->D % g->vw == 0;
		for (i = 0; i < g->n; i++)
			for (j = 0, n = sink_args(l, &g->s[i], arg); j < n; j++)
				fits = fits && divides(l, arg[j], 0, g->vw);
		if (fits)
			break;
	}
	for (i = 0; i < g->n; i++)
		for (j = 0, n = sink_args(l, &g->s[i], arg); j < n; j++)
			find_cuts(l, arg[j], 0, &g->flat, &g->heads);
}

static void
phase_groups(Lower *l, int phase)
{
	Sink *s = NEWN(l->a, Sink, 4 * l->nnode + 1);
	int n, i, j;
	SinkGroup *g;

	l->now = phase;
	n = gather_sinks(l, phase, s);
	for (i = 0; i < n; i++)
		s[i].D = sink_heads(l, &s[i]);
	/* what shares a width shares its vectors */
	for (i = 0; i < n; i++)
		for (j = 0; j < n; j++)
			if (s[j].width == s[i].width && s[i].D && !s[j].D)
				s[j].D = s[i].D;
	l->cu->group[phase] = NEWN(l->a, SinkGroup, n + 1);
	l->cu->ngroup[phase] = 0;
	for (i = 0; i < n; i++) {
		for (j = 0; j < l->cu->ngroup[phase]; j++)
			if (l->cu->group[phase][j].W == s[i].width &&
			    l->cu->group[phase][j].D == s[i].D)
				break;
		g = &l->cu->group[phase][j];
		if (j == l->cu->ngroup[phase]) {
			l->cu->ngroup[phase]++;
			g->W = s[i].width;
			g->D = s[i].D;
			g->s = NEWN(l->a, Sink, n);
		}
		g->s[g->n++] = s[i];
	}
	for (i = 0; i < l->cu->ngroup[phase]; i++)
		group_cuts(l, &l->cu->group[phase][i]);
}

/* how many threads */

static int
gcd(int x, int y)
{
	return y ? gcd(y, x % y) : x;
}

static bool
sums_heads(const Lower *l, const SinkGroup *g)
{
	int i;

	for (i = 0; i < g->n; i++)
		if (g->s[i].kind == SINK_SUM && l->g->v[g->s[i].v].width > 1)
			return true;
	return false;
}

static bool
per_head(const Lower *l, int v)
{
	return l->g->v[v].kind == K_ROWVAL && l->g->v[v].width > 1;
}

/* one head size and one vector size serve all groups with heads, so that a
 * thread's head is the same everywhere */
static void
common_heads(Lower *l)
{
	Map *m = &l->k->map;
	SinkGroup *g;
	int ph, i;

	m->vwh = 8;
	for (ph = 0; ph < l->nphase; ph++)
		for (i = 0; i < l->cu->ngroup[ph]; i++) {
			g = &l->cu->group[ph][i];
			if (!g->D)
				continue;
			if (m->D && m->D != g->D)
				bug("lower: heads of %d and of %d in %s", m->D, g->D, l->k->name);
			m->D = g->D;
			m->vwh = g->vw < m->vwh ? g->vw : m->vwh;
		}
	/* numbers per head without a vector of heads: any size of head does */
	for (i = 0; i < l->nnode && !m->D; i++)
		if (per_head(l, l->node[i]))
			m->D = 8;
	for (i = 0; i < l->r->nin && !m->D; i++)
		if (per_head(l, l->r->in[i]))
			m->D = 8;
	for (ph = 0; ph < l->nphase; ph++)
		for (i = 0; i < l->cu->ngroup[ph]; i++)
			if (l->cu->group[ph][i].D)
				l->cu->group[ph][i].vw = m->vwh;
}

/* A multiple of a warp and of the threads of a head, enough for one vector of 8
 * each; where sums per head are formed, of the width that they are formed over. */
static void
choose_threads(Lower *l)
{
	Map *m = &l->k->map;
	int ph, i, W = 0, Wh = 0, unit = 32, G, n;
	const SinkGroup *g;

	for (ph = 0; ph < l->nphase; ph++)
		for (i = 0; i < l->cu->ngroup[ph]; i++) {
			g = &l->cu->group[ph][i];
			W = g->W > W ? g->W : W;
			if (sums_heads(l, g) && g->W > Wh)
				Wh = g->W;
		}
	if (m->D) {
		G = m->D / m->vwh;
		unit = unit / gcd(unit, G) * G;
	}
	if (unit > 1024)
		bug("lower: a head of %d channels is wider than a block of %s", m->D, l->k->name);
	W = Wh ? Wh : W;
	for (n = 1; ; n++) {
		m->threads = ((W + 8 * n - 1) / (8 * n) + unit - 1) / unit * unit;
		if (m->threads <= MaxThreads || m->threads == unit)
			break;
	}
	if (m->threads == 0)
		m->threads = unit;
}

/* The factors of v that are numbers of the row, and of these the one that is a sum
 * over channels and serves nothing else; false where there are several such. */
static bool
find_factors(const Lower *l, int v, Factors *f, int *dot)
{
	const Val *x = &l->g->v[v];
	bool own = l->inside[v] && !l->root[v] && l->uses[v] == 1 && x->width == 1;

	if (own && (x->op == OP_DOT || x->op == OP_SUMC) && *dot < 0) {
		*dot = v;
		return true;
	}
	if (own && x->op == OP_MUL)
		return find_factors(l, x->arg[0], f, dot) && find_factors(l, x->arg[1], f, dot);
	if (f->n == MaxRowFactors || x->width != 1)
		return false;
	f->v[f->n++] = v;
	return true;
}

/* values between a sum over rows and its dot need not be formed */
static void
mark_direct(Lower *l, int v, int sum)
{
	const Val *x = &l->g->v[v];

	l->cu->direct[v] = sum;
	if (x->op == OP_MUL && l->inside[v] && l->uses[v] == 1 && !l->root[v]) {
		mark_direct(l, x->arg[0], sum);
		mark_direct(l, x->arg[1], sum);
	}
}

/* A sum over rows of a sum over channels, perhaps times numbers that are there
 * before it: threads need not share the inner sum. */
static void
find_direct(Lower *l)
{
	Factors f;
	const Val *x;
	int i, j, v, d;
	bool ok;

	for (i = 0; i < l->g->n; i++)
		l->cu->direct[i] = -1;
	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_SCALAR)
			continue;
		f.n = 0;
		d = -1;
		ok = find_factors(l, x->arg[0], &f, &d) && d >= 0;
		for (j = 0; ok && j < f.n; j++)
			ok = !l->inside[f.v[j]] || l->phase[f.v[j]] < l->phase[d];
		if (!ok)
			continue;
		mark_direct(l, x->arg[0], v);
		for (j = 0; j < f.n; j++)
			l->cu->direct[f.v[j]] = -1;
		l->cu->factors[d] = NEW(l->a, Factors);
		*l->cu->factors[d] = f;
	}
}

Cuda *
cuda_new(Arena *a, int nvalues)
{
	Cuda *cu = NEW(a, Cuda);

	cu->shared = NEWN(a, bool, nvalues);
	cu->walks = NEWN(a, bool, nvalues);
	return cu;
}

bool
cuda_again(Lower *l)
{
	bool again = l->cu->again;

	l->cu->again = false;
	return again;
}

void
cuda_map(Lower *l)
{
	Map *m = &l->k->map;
	int ph, i;

	l->cu->direct = NEWN(l->a, int, l->g->n);
	l->cu->heldvw = NEWN(l->a, int, l->g->n);
	l->cu->heldn = NEWN(l->a, int, l->g->n);
	l->cu->factors = NEWN(l->a, Factors *, l->g->n);
	find_direct(l);
	for (ph = 0; ph < l->nphase; ph++)
		phase_groups(l, ph);
	common_heads(l);
	choose_threads(l);
	for (i = 0; i < l->r->nroot; i++)
		m->loop |= l->g->v[l->r->root[i]].op == OP_SUMR;
}

/* how many blocks */

/* What a thread holds at once, were nothing hidden from the compiler: loaded
 * vectors (two bf16 to a register), vectors of floats, sums, coefficients, and
 * two dozen for addresses and what is being computed. */
static int
estimate(const Kern *k)
{
	const Stmt *s;
	int n = 24, out = 0, i;

	for (i = 0; i < k->nload; i++)
		n += k->load[i].vw * (k->par[k->load[i].par].dt == BF16 ? 1 : 2) / 2 +
		     (k->load[i].at == V_ROWVAL);
	for (i = 0; i < k->nstmt; i++) {
		s = &k->stmt[i];
		if (s->kind == S_IF)
			out = 0;        /* one piece's results at a time */
		if (s->kind == S_VEC && strlen(s->name) > 2 &&
		    strcmp(s->name + strlen(s->name) - 2, "_o") == 0)
			out += s->n;
		else if (s->kind == S_VEC)
			n += s->n;
		n += s->kind == S_ZERO;
	}
	for (i = 0; i < k->npar; i++)
		n += k->par[i].kind == P_COEF ? (int)k->par[i].width : 2;
	return n + out;
}

int lower_crowded = 232, lower_few_sums = 32;

/* Most blocks, up to `most`, whose threads can have so many registers each.  A
 * multiprocessor is four parts of 16,384, and a warp belongs to one. */
static int
blocks_of(int warps, int registers, int most)
{
	int n;

	for (n = most; n > 1; n--)
		if (16384 / 32 / ((n * warps + 3) / 4) / 8 * 8 >= (registers < 255 ? registers : 248))
			break;
	return n;
}

/* How many blocks share a multiprocessor of 65,536 registers and 2,048 threads.
 * Left alone, the compiler aims at more of them than a kernel with many vectors
 * can have, and spills; told a number, it uses what that leaves.  Not all that is
 * counted lives at once: kernels that sum over rows, whose grid is no more than
 * all multiprocessors hold at once, get by with six sevenths of the estimate.
 * With numbers per head, where there are many cuts, half as much again is left
 * to the compiler, else a quarter.  (Fractions found by tests/e2e/compile.py's
 * specs and models of up to four learned lanes: none spills.) */
static void
occupancy(Lower *l)
{
	Map *m = &l->k->map;
	int threads = m->threads * m->rows, most = 2048 / threads, fit, spare;

	m->registers = estimate(l->k);
	if (m->loop && m->registers > lower_crowded) {
		hoist(l->k);
		stream(l->k);
	}
	if (m->streamed) {
		/* a block has one row, so that its address is no thread's business */
		m->rows = 1;
		most = CudaParts / 132;
		spread_sums(l->k);
		/* all that a thread can have */
		m->registers = m->streamed;
		m->resident = blocks_of(m->threads / 32, 255, most);
		return;
	}
	spare = m->D ? m->registers / 2 : m->loop ? -m->registers / 7 : m->registers / 4;
	if (m->loop && most > CudaParts / 132 / m->rows)
		most = CudaParts / 132 / m->rows;
	fit = blocks_of(threads / 32, m->registers + spare, most);
	m->resident = m->loop || m->registers > 64 ? fit : 0;
}

void
cuda_bind(Lower *l, Step *s)
{
	const Map *m = &l->k->map;

	occupancy(l);
	s->threads = m->threads * m->rows;
	s->items = (m->loop ? l->p->parts : l->p->T + m->rows - 1) / m->rows;
	if (m->loop && s->items > m->resident * 132L)
		s->items = m->resident * 132L;
}
