/* Lowering for cuda: the threads of a block share a row.
 *
 * Thread i takes the channels vw*i … vw*i + vw-1 (vw 8: one 16-byte vector of
 * bf16) and, where a row is wider than its threads, the same again a slab
 * further on.  Every vector is loaded once, before all arithmetic, and stays in
 * registers for every phase; so is a value that a later phase needs.  A sum over
 * channels is formed by each thread over its own, then across the row's threads
 * with one barrier per phase.  A number per head stays with the threads of the
 * head.
 *
 * Where a slice, a pad or a rotation cuts the channels, a vector lies on one
 * side of the cut: vw is the largest of 8, 4, 2, 1 that divides every cut.
 *
 * A sum over rows of a sum over channels needs no sum across threads per row:
 * each thread adds up its own over all rows of the block, and the block adds
 * its threads once. */
#include "lower.h"

#include <string.h>

enum { MaxThreads = 512 };      /* of a row: more would leave too few registers
                                 * to each, and few rows to hide loads behind */

/* sinks of a phase that share their vectors */
typedef struct {
	int n, W, D, vw;
	Sink *s;
	Cuts flat, heads;
} SinkGroup;

struct Cuda {
	Map *m;
	bool *shared;           /* value: other threads read this rowval (kept between
	                         * passes: a pass finds out, the next one obeys) */
	bool *walks;            /* value: computed again somewhere, although it is held,
	                         * by a thread that does not hold it (kept too) */
	bool again;
	int ngroup[MaxPhase + 1];
	SinkGroup *group[MaxPhase + 1];
	int *direct;            /* value: DOT -> the sum over rows it only serves, or -1 */
	int *heldvw;            /* value: vector size it is held in */
	int *heldn;             /* and slabs */
	/* the piece being filled */
	int vw, k;              /* vector size, slab */
	int lo, hi;             /* channels of the slab */
	int dlo, dhi;           /* channels of a head */
	/* loads of the body being filled: needed once the sweep has left a use */
	bool defer;
	int npending, cappending, *pending;
};

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

static int
slab_of(const Lower *l)
{
	return l->k->map.threads * l->cu->vw;
}

static int
slabs(const Lower *l, int width, int vw)
{
	int slab = l->k->map.threads * vw;

	return (width + slab - 1) / slab;
}

/* what a thread loads */

static bool
same_load(const VecLoad *x, const VecLoad *y)
{
	if (x->par != y->par || x->off != y->off || x->vw != y->vw || x->at != y->at ||
	    x->place != y->place)
		return false;
	return x->row && y->row ? strcmp(x->row, y->row) == 0 : x->row == y->row;
}

/* b becomes part of a if both together are one rectangle */
static bool
join(struct Use *a, const struct Use *b)
{
	bool inside = a->lo <= b->lo && b->hi <= a->hi && a->dlo <= b->dlo && b->dhi <= a->dhi;
	bool beside = a->dlo == b->dlo && a->dhi == b->dhi && b->lo <= a->hi && a->lo <= b->hi;
	bool above = a->lo == b->lo && a->hi == b->hi && b->dlo <= a->dhi && a->dlo <= b->dhi;

	if (!inside && !beside && !above)
		return false;
	a->lo = b->lo < a->lo ? b->lo : a->lo;
	a->hi = b->hi > a->hi ? b->hi : a->hi;
	a->dlo = b->dlo < a->dlo ? b->dlo : a->dlo;
	a->dhi = b->dhi > a->dhi ? b->dhi : a->dhi;
	return true;
}

/* the threads of the piece at hand need it too */
static void
use(Lower *l, VecLoad *v)
{
	const Cuda *cu = l->cu;
	int i, j;
	bool joined = true;

	if (v->nuse == MaxUse)
		bug("lower: %s is needed in more than %d places of %s", v->name, MaxUse,
		    l->k->name);
	v->use[v->nuse++] = (struct Use){ cu->lo, cu->hi, cu->dlo, cu->dhi };
	while (joined)
		for (joined = false, i = 0; i < v->nuse; i++)
			for (j = 0; j < v->nuse; j++)
				if (i != j && join(&v->use[i], &v->use[j])) {
					v->use[j] = v->use[--v->nuse];
					joined = true;
					i = j = v->nuse;
				}
}

/* the vector, known already or new; for the threads of the piece at hand */
static const char *
load_vec(Lower *l, VecLoad want, const char *name)
{
	Cuda *cu = l->cu;
	VecLoad *v;
	int i;

	for (i = 0; i < l->k->nload && !same_load(&l->k->load[i], &want); i++)
		;
	if (l->cu->defer)
		*PUSH(l->a, l->cu->pending, l->cu->npending, l->cu->cappending) = i;
	if (i < l->k->nload) {
		v = &l->k->load[i];
		if (!l->cu->defer)
			use(l, v);
		return v->name;
	}
	v = PUSH(l->a, l->k->load, l->k->nload, l->k->capload);
	*v = want;
	v->name = unique(l, want.at == V_ROWVAL ? name : arena_printf(l->a, "%s_v", name));
	if (!l->cu->defer)
		use(l, v);
	l->k->map.uses_vw[want.at == V_FLAT ? want.vw : cu->vw] = true;
	l->k->map.uses_d |= want.at == V_HEAD || want.at == V_HALF;
	l->k->map.uses_head |= want.at == V_ROWVAL;
	return v->name;
}

static bool
names(const Exp *e, const char *name)
{
	return e && ((e->name && strcmp(e->name, name) == 0) || names(e->a, name) ||
	             names(e->b, name));
}

static bool
named_from(const Lower *l, int first, const char *name)
{
	int i;

	for (i = first; i < l->k->nstmt; i++)
		if (names(l->k->stmt[i].e, name))
			return true;
	return false;
}

/* the loads that the body from statement `first` on does use */
static void
settle(Lower *l, int first)
{
	Cuda *cu = l->cu;
	int i;

	for (i = 0; i < cu->npending; i++)
		if (named_from(l, first, l->k->load[cu->pending[i]].name))
			use(l, &l->k->load[cu->pending[i]]);
	cu->npending = 0;
	cu->defer = false;
}

/* element base + loop position of what the thread holds of the vector */
static Exp *
element_of(Lower *l, int par, int base, const char *vec)
{
	Exp *e = exp_new(l, X_ELEM_OF);

	e->par = par;
	e->name = vec;
	e->idx = l->pairs ? (Idx){ base - 2 * floor_div(base, 2), 0, 2 } : (Idx){ 0, 0, 1 };
	return e;
}

static int
vector_offset(Lower *l, int base)
{
	int off = l->pairs ? 2 * floor_div(base, 2) : base;

	off += l->cu->k * slab_of(l);
	if (off % l->cu->vw)
		bug("lower: channel %d of %s is in no vector of %d", off, l->k->name, l->cu->vw);
	return off;
}

/* channel base + loop position of a stored vec, at row `row` (NULL: t) */
Exp *
cuda_load(Lower *l, int par, int base, const char *name, const char *row)
{
	VecLoad v = { .par = par, .row = row, .vw = l->cu->vw, .at = V_FLAT, .place = 1 };

	v.off = vector_offset(l, base);
	return element_of(l, par, base, load_vec(l, v, name ? name : "x"));
}

/* the same of a vector that all rows share */
Exp *
cuda_param(Lower *l, int par, int base, const char *name)
{
	VecLoad v = { .par = par, .vw = l->cu->vw, .at = V_FLAT, .place = 0 };

	v.off = vector_offset(l, base);
	return element_of(l, par, base, load_vec(l, v, name));
}

/* entry base + loop position of the rotary table's row: a pair has one entry */
Exp *
cuda_table(Lower *l, int par, int base)
{
	int vw = l->pairs ? l->cu->vw / 2 : l->cu->vw;
	VecLoad v = { .par = par, .off = base, .vw = vw, .place = 1,
	              .at = l->pairs ? V_HALF : V_HEAD };
	Exp *e = exp_new(l, X_ELEM_OF);

	e->par = par;
	e->idx = (Idx){ 0, 0, 1 };
	e->name = load_vec(l, v, l->k->par[par].name);
	return e;
}

/* numbers per head */

static const char *
head_name(Lower *l, int v, int k)
{
	return k ? arena_printf(l->a, "%s_s%d", l->name[v], k) : l->name[v];
}

static int
head_slabs(const Lower *l, int v)
{
	return slabs(l, l->g->v[v].width * l->k->map.D, l->k->map.vwh);
}

/* number per head of the same row that a shift takes */
Exp *
cuda_head_of(Lower *l, int par, const char *row, const char *name)
{
	Map *m = &l->k->map;
	VecLoad load = { .par = par, .row = row, .vw = 1, .at = V_ROWVAL, .place = 1 };

	load.off = l->cu->k * m->threads * m->vwh / m->D;
	return exp_var(l, load_vec(l, load, arena_printf(l->a, "%s_h", name)));
}

/* the number of the thread's head, group_base heads further */
Exp *
cuda_rowval(Lower *l, int v, int group_base)
{
	Map *m = &l->k->map;
	int slab = m->threads * m->vwh, at = group_base * m->D + l->cu->k * slab;
	VecLoad load = { .par = l->srcpar[v], .off = at / m->D, .vw = 1, .at = V_ROWVAL,
	                 .place = 1 };
	const Val *x = &l->g->v[v];
	Exp *e;

	if (!l->inside[v])
		return exp_var(l, load_vec(l, load, x->name ? x->name : op_info[x->op].name));
	if (at % slab == 0 && at >= 0 && at / slab < head_slabs(l, v))
		return exp_var(l, head_name(l, v, at / slab));
	if (!l->cu->shared[v])
		l->cu->again = true;
	l->cu->shared[v] = true;
	m->uses_head = true;
	e = exp_new(l, X_HEAD);
	e->name = l->name[v];
	e->idx.base = at / m->D;
	return e;
}

/* held values */

static const char *
held_name(Lower *l, int v, int k)
{
	return k ? arena_printf(l->a, "%s_row%d", l->name[v], k) :
	       arena_printf(l->a, "%s_row", l->name[v]);
}

bool
cuda_walks(const Lower *l, int v)
{
	return l->cu->walks[v];
}

Exp *
cuda_held(Lower *l, int v, int base)
{
	int slab = slab_of(l), whole = l->pairs ? 2 * floor_div(base, 2) : base;
	int at = whole + l->cu->k * slab;
	Exp *e;

	if (l->cu->heldvw[v] != l->cu->vw || at % slab || at < 0 ||
	    at / slab >= l->cu->heldn[v]) {
		/* then its own cuts are cuts here */
		l->cu->again |= !l->cu->walks[v];
		l->cu->walks[v] = true;
		return NULL;
	}
	e = element_of(l, -1, base, held_name(l, v, at / slab));
	return e;
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
		return base % vw == 0 && x->width % vw == 0;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		if (!divides(l, x->arg[j], base, vw))
			return false;
	return true;
}

/* the vecs that a sink's expression begins with */
static int
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

/* the sum over rows that a DOT serves and nothing else, or -1 */
static void
find_direct(Lower *l)
{
	const Val *x, *y;
	int i, v, d;

	for (i = 0; i < l->g->n; i++)
		l->cu->direct[i] = -1;
	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_SCALAR)
			continue;
		d = x->arg[0];
		y = &l->g->v[d];
		if (l->inside[d] && !l->root[d] && l->uses[d] == 1 && y->width == 1 &&
		    (y->op == OP_DOT || y->op == OP_SUMC))
			l->cu->direct[d] = v;
	}
}

void
cuda_map(Lower *l)
{
	Map *m = &l->k->map;
	int ph, i;

	l->cu->direct = NEWN(l->a, int, l->g->n);
	l->cu->heldvw = NEWN(l->a, int, l->g->n);
	l->cu->heldn = NEWN(l->a, int, l->g->n);
	find_direct(l);
	for (ph = 0; ph < l->nphase; ph++)
		phase_groups(l, ph);
	common_heads(l);
	choose_threads(l);
	for (i = 0; i < l->r->nroot; i++)
		m->loop |= l->g->v[l->r->root[i]].op == OP_SUMR;
}

/* statements of a piece */

static Stmt *
vec_stmt(Lower *l, StmtKind kind, const char *name, int par)
{
	Stmt *t = stmt(l, kind, name);

	t->par = par;
	t->vw = l->cu->vw;
	return t;
}

static void
vec_set(Lower *l, StmtKind kind, const char *name, int par, int parity, Exp *e)
{
	Stmt *t = vec_stmt(l, kind, name, par);

	t->idx = l->pairs ? (Idx){ parity, 0, 2 } : (Idx){ 0, 0, 1 };
	t->e = e;
}

/* what is held is stored from there */
static bool
stored_from_held(const Lower *l, int v)
{
	return l->held[v] && l->cu->heldvw[v] == l->cu->vw;
}

static const char *
out_name(Lower *l, int v)
{
	return stored_from_held(l, v) ? held_name(l, v, l->cu->k) :
	       arena_printf(l->a, "%s_o", l->name[v]);
}

static const char *
sum_name(Lower *l, int v)
{
	if (l->cu->direct[v] >= 0)
		return l->name[l->cu->direct[v]];
	return l->g->v[v].width > 1 ? head_name(l, v, l->cu->k) : l->name[v];
}

static void
elements(Lower *l, const SinkGroup *g, int parity)
{
	const Val *x;
	Stmt *t;
	Exp *e;
	int i, v;

	for (i = 0; i < g->n; i++) {
		v = g->s[i].v;
		x = &l->g->v[v];
		switch (g->s[i].kind) {
		case SINK_STORE:
			if (stored_from_held(l, v))
				break;
			e = evaluate(l, v, parity);
			vec_set(l, S_VEC_SET, out_name(l, v), l->par[v], parity, e);
			break;
		case SINK_HOLD:
			e = evaluate(l, v, parity);
			vec_set(l, S_VEC_SET, held_name(l, v, l->cu->k), -1, parity, e);
			break;
		case SINK_SUM:
			e = operand(l, x->arg[0], parity, g->W);
			if (x->op == OP_DOT)
				e = exp_op(l, OP_MUL, e, operand(l, x->arg[1], parity, g->W));
			l->flops += l->mult;
			t = stmt(l, S_ADD, sum_name(l, v));
			t->e = e;
			break;
		case SINK_PART:
			e = evaluate(l, x->arg[0], parity);
			l->flops += l->mult;
			vec_set(l, S_VEC_ADD, held_name(l, v, l->cu->k), -1, parity, e);
			break;
		}
	}
}

static void
stores(Lower *l, const SinkGroup *g, StmtKind kind)
{
	Stmt *t;
	int i, v;

	for (i = 0; i < g->n; i++) {
		v = g->s[i].v;
		if (g->s[i].kind != SINK_STORE || (kind == S_VEC && stored_from_held(l, v)))
			continue;
		t = vec_stmt(l, kind, out_name(l, v), l->par[v]);
		t->n = l->cu->vw;
		t->idx.base = l->cu->k * slab_of(l);
	}
}

/* Is anything rotated in the expression of v between channels at and end?
 * What a pad puts elsewhere is not part of it. */
static bool
rotates(const Lower *l, int v, int at, int end)
{
	const Val *x = &l->g->v[v];
	int j, lo;

	if (x->kind != K_VEC || !l->inside[v])
		return false;
	if (x->op == OP_ROTATE)
		return true;
	lo = x->op == OP_PAD ? x->attr[0] : x->op == OP_SLICE ? -x->attr[0] : 0;
	if (x->op == OP_PAD && (end <= lo || at >= lo + l->g->v[x->arg[0]].width))
		return false;
	for (j = 0; j < op_info[x->op].arity; j++)
		if (rotates(l, x->arg[j], at - lo, end - lo))
			return true;
	return false;
}

static bool
group_rotates(const Lower *l, const SinkGroup *g, int at, int end)
{
	int i, j, n, arg[2];

	for (i = 0; i < g->n; i++)
		for (j = 0, n = sink_args(l, &g->s[i], arg); j < n; j++)
			if (rotates(l, arg[j], at, end))
				return true;
	return false;
}

/* channels lo … hi of slab k, dlo … dhi of their heads; chain: 0 alone or
 * first, 1 else if, 2 else */
static void
piece(Lower *l, const SinkGroup *g, int lo, int hi, int dlo, int dhi, bool pairs, int chain)
{
	Cuda *cu = l->cu;
	int slab = slab_of(l), at = cu->k * slab, first;
	bool part = lo > 0 || hi < slab, split = g->D && (dlo > 0 || dhi < g->D);
	bool block = part || split || slabs(l, g->W, g->vw) > 1;
	Stmt *t;

	cu->lo = lo;
	cu->hi = hi;
	cu->dlo = g->D ? dlo : 0;
	cu->dhi = g->D ? dhi : l->k->map.D;
	l->D = g->D;
	l->lo = g->D ? (at + lo) / g->D : at + lo;
	l->hi = g->D ? (at + hi) / g->D : at + hi;
	l->dlo = g->D ? dlo : 0;
	l->dhi = g->D ? dhi : 0;
	l->pairs = pairs;
	l->nmemo = 0;
	l->mult = (double)(hi - lo) * (split ? (double)(dhi - dlo) / g->D : 1) / (pairs ? 2 : 1);
	if (block) {
		t = stmt(l, S_IF, NULL);
		t->n = chain;
		t->lo = lo;
		t->hi = hi < slab ? hi : 0;
		t->shift[0] = split ? dlo : 0;
		t->shift[1] = split && dhi < g->D ? dhi : 0;
		t->vw = cu->vw;
		l->k->map.uses_vw[cu->vw] |= part;
		l->k->map.uses_d |= split;
	}
	stores(l, g, S_VEC);
	t = stmt(l, S_ELEMS, NULL);
	t->n = pairs ? cu->vw / 2 : cu->vw;
	first = l->k->nstmt;
	cu->defer = true;
	elements(l, g, 0);
	if (pairs)
		elements(l, g, 1);
	sweep(l, first);
	settle(l, first);
	stmt(l, S_END, NULL);
	stores(l, g, S_VEC_STORE);
	if (block)
		stmt(l, S_END, NULL);
	l->pairs = false;
	l->k->map.uses_vw[cu->vw] = true;
}

static void
head_pieces(Lower *l, const SinkGroup *g, int lo, int hi, int chain)
{
	int i, n = g->heads.n - 1, at = l->cu->k * slab_of(l);
	bool whole = lo == 0 && hi == slab_of(l);

	if (!g->D || !group_rotates(l, g, at + lo, at + hi)) {
		piece(l, g, lo, hi, 0, g->D, false, chain);
		return;
	}
	for (i = 0; i < n; i++)
		piece(l, g, lo, hi, g->heads.at[i], g->heads.at[i + 1],
		      g->heads.npair && g->heads.at[i + 1] <= g->heads.npair,
		      i == 0 ? 0 : whole && i + 1 == n ? 2 : 1);
}

static void
group_loops(Lower *l, const SinkGroup *g)
{
	Cuda *cu = l->cu;
	int i, slab, lo, hi, chain;

	cu->vw = g->vw;
	slab = slab_of(l);
	for (cu->k = 0; cu->k < slabs(l, g->W, g->vw); cu->k++)
		for (chain = i = 0; i + 1 < g->flat.n; i++) {
			lo = g->flat.at[i] - cu->k * slab;
			hi = g->flat.at[i + 1] - cu->k * slab;
			lo = lo > 0 ? lo : 0;
			hi = hi < slab ? hi : slab;
			if (lo >= hi || g->flat.at[i] < 0 || g->flat.at[i + 1] > g->W)
				continue;
			if (g->D && (lo % g->D || hi % g->D))
				bug("lower: %s is cut within a head", l->k->name);
			head_pieces(l, g, lo, hi, g->D ? 0 : chain && hi == slab ? 2 : chain);
			chain = 1;
		}
	cu->k = 0;
	l->D = 0;
}

/* what a phase's pieces add to or hold, declared before them */
static void
declare(Lower *l, const SinkGroup *g)
{
	const Val *x;
	Stmt *t;
	int i, k, v;

	l->cu->vw = g->vw;
	for (i = 0; i < g->n; i++) {
		v = g->s[i].v;
		x = &l->g->v[v];
		if (g->s[i].kind == SINK_SUM && l->cu->direct[v] < 0)
			for (k = 0; k < (x->width > 1 ? slabs(l, g->W, g->vw) : 1); k++)
				stmt(l, S_ZERO, x->width > 1 ? head_name(l, v, k) : l->name[v]);
		if (g->s[i].kind != SINK_HOLD)
			continue;
		l->cu->heldvw[v] = g->vw;
		l->cu->heldn[v] = slabs(l, g->W, g->vw);
		for (k = 0; k < l->cu->heldn[v]; k++) {
			t = vec_stmt(l, S_VEC, held_name(l, v, k), -1);
			t->n = g->vw;
		}
	}
}

static void
shared_new(Lower *l, const char *name, int n)
{
	Map *m = &l->k->map;

	*PUSH(l->a, m->shared, m->nshared, m->capshared) = (struct Shared){ name, n };
}

/* one sum across threads joins the queue; heads: over the threads of a head */
static void
queue_sum(Lower *l, const char *name, bool heads)
{
	Map *m = &l->k->map;
	int G = heads ? m->D / m->vwh : 0;
	Stmt *t;

	if (G == 1)
		return;
	t = stmt(l, S_SUM, name);
	t->n = G;
	if (heads && G <= 32 && (G & (G - 1)) == 0)
		return;
	t->lo = heads || m->threads > 32;       /* through shared memory */
	if (heads)
		shared_new(l, name, m->threads);
	else if (m->threads > 32)
		shared_new(l, name, m->threads / 32);
}

static void
share(Lower *l, int v)
{
	Stmt *t;
	int k, n = head_slabs(l, v), per = l->k->map.threads * l->k->map.vwh / l->k->map.D;

	shared_new(l, arena_printf(l->a, "%s_head", l->name[v]), l->g->v[v].width);
	for (k = 0; k < n; k++) {
		t = stmt(l, S_SHARE, head_name(l, v, k));
		t->e = exp_var(l, l->name[v]);
		t->idx.base = k * per;
		t->hi = l->g->v[v].width - k * per < per ?
		        (l->g->v[v].width - k * per) * l->k->map.D : 0;
	}
	stmt(l, S_BARRIER, NULL);
	l->k->map.uses_head = l->k->map.uses_d = true;
	l->k->map.uses_vw[l->k->map.vwh] = true;
}

static void
phase_sums(Lower *l, int phase)
{
	const SinkGroup *g;
	const Val *x;
	int i, j, k, v, n = 0;

	for (i = 0; i < l->cu->ngroup[phase]; i++)
		for (g = &l->cu->group[phase][i], j = 0; j < g->n; j++) {
			v = g->s[j].v;
			x = &l->g->v[v];
			if (g->s[j].kind != SINK_SUM || l->cu->direct[v] >= 0)
				continue;
			for (k = 0; x->width > 1 && k < slabs(l, g->W, g->vw); k++)
				queue_sum(l, head_name(l, v, k), true);
			if (x->width == 1)
				queue_sum(l, l->name[v], false);
			n++;
		}
	if (n)
		stmt(l, S_SUMS, NULL);
}

/* rowvals */

/* which threads have a head of v in slab k */
static void
rowval_range(Lower *l, int v, int k)
{
	Map *m = &l->k->map;
	int slab = m->threads * m->vwh, W = l->g->v[v].width * m->D;

	l->cu->vw = m->vwh;
	l->cu->k = k;
	l->cu->lo = 0;
	l->cu->hi = W - k * slab < slab ? W - k * slab : slab;
	l->cu->dlo = 0;
	l->cu->dhi = m->D;
}

static void
rowval_store(Lower *l, int v, int k)
{
	const Val *x = &l->g->v[v];
	Map *m = &l->k->map;
	Stmt *t = stmt(l, S_ROW_STORE, NULL);
	int slab = m->threads * m->vwh;

	t->par = l->par[v];
	t->n = x->width;
	t->e = exp_var(l, x->width > 1 ? head_name(l, v, k) : l->name[v]);
	if (x->width == 1)
		return;
	t->idx.base = k * slab / m->D;
	t->hi = l->cu->hi < slab ? l->cu->hi : 0;
	t->vw = m->vwh;
	m->uses_head = m->uses_d = true;
	m->uses_vw[m->vwh] = true;
}

/* a sum over heads: one thread of each head brings its number */
static void
sum_heads(Lower *l, int v)
{
	int a = l->g->v[v].arg[0], k;
	Stmt *t;

	stmt(l, S_ZERO, l->name[v]);
	for (k = 0; k < head_slabs(l, a); k++) {
		rowval_range(l, a, k);
		t = stmt(l, S_IF, NULL);
		t->hi = l->cu->hi < l->k->map.threads * l->k->map.vwh ? l->cu->hi : 0;
		t->shift[1] = 1;        /* d < 1: the head's first thread */
		t->vw = l->k->map.vwh;
		t = stmt(l, S_ADD, l->name[v]);
		t->e = rowval(l, a, 0, 1);
		stmt(l, S_END, NULL);
	}
	l->k->map.uses_d = l->k->map.uses_vw[l->k->map.vwh] = true;
	queue_sum(l, l->name[v], false);
	stmt(l, S_SUMS, NULL);
}

static void
rowval_let(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	bool made = x->op == OP_DOT || x->op == OP_SUMC;
	int k, n = x->width > 1 ? head_slabs(l, v) : 1;
	Stmt *t;
	Exp *e;

	l->mult = x->width;
	if (x->op == OP_SUMG)
		sum_heads(l, v);
	for (k = 0; k < n; k++) {
		if (x->width > 1)
			rowval_range(l, v, k);
		if (!made && x->op != OP_SUMG) {
			e = rowval_formula(l, v);
			t = stmt(l, S_LET, x->width > 1 ? head_name(l, v, k) : l->name[v]);
			t->e = e;
		}
		if (l->root[v])
			rowval_store(l, v, k);
	}
	if (x->width > 1 && l->cu->shared[v])
		share(l, v);
	l->cu->k = 0;
}

static void
rowvals(Lower *l, int phase)
{
	const Val *x;
	Stmt *t;
	Exp *e;
	int i, v;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (l->phase[v] != phase)
			continue;
		if (x->op == OP_SUMR && x->kind == K_SCALAR && l->cu->direct[x->arg[0]] < 0) {
			e = rowval(l, x->arg[0], 0, 0);
			t = stmt(l, S_ADD, l->name[v]);
			t->e = e;
		}
		if (x->kind != K_ROWVAL || rowval_inline(l, v) || l->cu->direct[v] >= 0)
			continue;
		rowval_let(l, v);
	}
}

/* sums over rows */

/* the group and sink of a vector sum over rows */
static const SinkGroup *
part_group(const Lower *l, int v)
{
	int ph, i, j;

	for (ph = 0; ph < l->nphase; ph++)
		for (i = 0; i < l->cu->ngroup[ph]; i++)
			for (j = 0; j < l->cu->group[ph][i].n; j++)
				if (l->cu->group[ph][i].s[j].v == v)
					return &l->cu->group[ph][i];
	bug("lower: value %d is summed nowhere", v);
}

static void
begin_sums(Lower *l)
{
	const SinkGroup *g;
	const Val *x;
	Stmt *t;
	int i, k, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op == OP_SUMR && x->kind == K_SCALAR)
			stmt(l, S_ZERO, l->name[v]);
		if (x->op != OP_SUMR || x->kind != K_PVEC)
			continue;
		g = part_group(l, v);
		l->cu->vw = g->vw;
		for (k = 0; k < slabs(l, g->W, g->vw); k++) {
			t = vec_stmt(l, S_VEC, held_name(l, v, k), -1);
			t->n = g->vw;
			t->lo = 1;      /* zeros */
		}
	}
}

static void
part_vectors(Lower *l)
{
	const SinkGroup *g;
	const Val *x;
	Stmt *t;
	int i, k, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_PVEC)
			continue;
		g = part_group(l, v);
		l->cu->vw = g->vw;
		for (k = 0; k < slabs(l, g->W, g->vw); k++) {
			t = vec_stmt(l, S_PART_VEC, held_name(l, v, k), l->par[v]);
			t->n = g->W;
			t->idx.base = k * slab_of(l);
			t->hi = g->W - k * slab_of(l) < slab_of(l) ? g->W - k * slab_of(l) : 0;
			l->k->map.uses_vw[g->vw] = true;
		}
	}
}

/* sums that threads kept for themselves, over the block with one barrier */
static void
direct_sums(Lower *l)
{
	const Val *x;
	int i, v;
	bool any = false;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_SCALAR || l->cu->direct[x->arg[0]] != v)
			continue;
		queue_sum(l, l->name[v], false);
		any = true;
	}
	if (any)
		stmt(l, S_SUMS, NULL);
}

static void
end_sums(Lower *l, int part)
{
	const Val *x;
	Stmt *t;
	int i, v;

	if (!l->k->map.loop)
		return;
	direct_sums(l);
	stmt(l, S_PARTS, NULL);
	part_vectors(l);
	if (part >= 0)
		stmt(l, S_IF, NULL)->indexed = true;    /* one thread */
	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_SCALAR)
			continue;
		t = stmt(l, S_PART, l->name[v]);
		t->par = part;
		t->n = l->p->partof[v] - l->r->sum0;
	}
	if (part >= 0)
		stmt(l, S_END, NULL);
	stmt(l, S_END, NULL);
}

/* Shared memory written in one turn of the row loop is read before the next
 * turn writes it if two barriers lie in a turn; one does not do. */
static void
close_rows(Lower *l, int first)
{
	bool queued = false;
	const Stmt *s;
	int i, n = 0;

	for (i = first; i < l->k->nstmt; i++) {
		s = &l->k->stmt[i];
		queued |= s->kind == S_SUM && s->lo;
		if (s->kind == S_SUMS) {
			n += queued;
			queued = false;
		}
		n += s->kind == S_BARRIER;
	}
	if (l->k->map.loop && n == 1)
		stmt(l, S_BARRIER, NULL);
}

/* drop the loads that only fed what a pad's zero swallowed */
static void
drop_loads(Lower *l)
{
	Kern *k = l->k;
	int i, n = 0;

	for (i = 0; i < k->nload; i++)
		if (named_from(l, 0, k->load[i].name))
			k->load[n++] = k->load[i];
	k->nload = n;
}

void
cuda_body(Lower *l, int part)
{
	int ph, i, first;

	begin_sums(l);
	stmt(l, S_LOADS, NULL)->n = 0;
	stmt(l, S_ROWS, NULL);
	first = l->k->nstmt;
	row_sources(l);
	stmt(l, S_LOADS, NULL)->n = 1;
	hold_arrays(l);
	rowvals(l, 0);
	for (ph = 0; ph < l->nphase; ph++) {
		l->now = ph;
		if (l->cu->ngroup[ph] && ph)
			stmt(l, S_NOTE, NULL);
		for (i = 0; i < l->cu->ngroup[ph]; i++)
			declare(l, &l->cu->group[ph][i]);
		for (i = 0; i < l->cu->ngroup[ph]; i++)
			group_loops(l, &l->cu->group[ph][i]);
		phase_sums(l, ph);
		rowvals(l, ph + 1);
	}
	close_rows(l, first);
	stmt(l, S_END, NULL);
	end_sums(l, part);
	drop_loads(l);
	/* a warp per row needs no shared memory, and several share a block */
	l->k->map.rows = l->k->map.threads == 32 && !l->k->map.nshared ? 4 : 1;
}

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
		if (s->kind == S_VEC && strstr(s->name, "_o"))
			out += s->n;
		else if (s->kind == S_VEC)
			n += s->n;
		n += s->kind == S_ZERO;
	}
	for (i = 0; i < k->npar; i++)
		n += k->par[i].kind == P_COEF ? (int)k->par[i].width : 2;
	return n + out;
}

/* How many blocks share a multiprocessor of 65,536 registers and 2,048 threads;
 * a quarter more registers than estimated are left to the compiler, a half where
 * there are many cuts.  Left alone,
 * it aims at more blocks than a kernel with many vectors can have, and spills;
 * told a number, it uses what that leaves.  A kernel that sums over rows takes
 * at most 8, and its grid is no more than all of them at once hold. */
static void
occupancy(Lower *l)
{
	Map *m = &l->k->map;
	int threads = m->threads * m->rows, most = 2048 / threads, fit;

	m->registers = estimate(l->k);
	fit = 65536 / (threads * ((m->registers + m->registers / (m->D ? 2 : 4) + 7) / 8 * 8));
	if (m->loop && most > CudaParts / 132 / m->rows)
		most = CudaParts / 132 / m->rows;
	fit = fit < 1 ? 1 : fit < most ? fit : most;
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
