/* Lowering for cuda, what a thread holds: vectors that it loads, numbers of its
 * head, values kept for a later phase.
 *
 * A load is known by its parameter, row and first channel: whoever needs the
 * same again gets the same registers.  It is made by the threads that need it,
 * which the sweep of a body decides: an operand that a pad's zero swallowed
 * was asked for and is not needed. */
#include "lower_cuda.h"

#include <string.h>

/* what a thread loads */

static bool
same_load(const VecLoad *x, const VecLoad *y)
{
	if (x->par != y->par || x->off != y->off || x->vw != y->vw || x->at != y->at ||
	    x->place != y->place || x->half != y->half || x->odd != y->odd)
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

bool
exp_names(const Exp *e, const char *name)
{
	return e && ((e->name && strcmp(e->name, name) == 0) || exp_names(e->a, name) ||
	             exp_names(e->b, name));
}

static bool
named_from(const Lower *l, int first, const char *name)
{
	int i;

	for (i = first; i < l->k->nstmt; i++)
		if (exp_names(l->k->stmt[i].e, name))
			return true;
	return false;
}

/* the loads that the body from statement `first` on does use */
void
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

/* entry base + loop position of the rotary table's row: a pair has one entry; half: odd
 * heads have theirs so much further, odd: of heads so many further the even ones */
Exp *
cuda_table(Lower *l, int par, int base, int half, int odd)
{
	int vw = l->pairs ? l->cu->vw / 2 : l->cu->vw, slab = slab_of(l);
	VecLoad v = { .par = par, .off = base, .vw = vw, .place = 1,
	              .at = l->pairs ? V_HALF : V_HEAD, .half = half };
	Exp *e = exp_new(l, X_ELEM_OF);

	if (half) {
		v.odd = (odd + l->cu->k * slab / l->k->map.D) & 1;
		l->k->map.uses_head = true;
	}
	e->par = par;
	e->idx = (Idx){ 0, 0, 1 };
	e->name = load_vec(l, v, l->k->par[par].name);
	return e;
}

/* numbers per head */

const char *
head_name(Lower *l, int v, int k)
{
	return k ? arena_printf(l->a, "%s_s%d", l->name[v], k) : l->name[v];
}

int
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

const char *
held_name(Lower *l, int v, int k)
{
	return k ? arena_printf(l->a, "%s_keep%d", l->name[v], k) :
	       arena_printf(l->a, "%s_keep", l->name[v]);
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
		/* computed again, so its own cuts are cuts here; this pass, which
		 * does not have them, is thrown away */
		if (l->cu->walks[v])
			return NULL;
		l->cu->again = l->cu->walks[v] = true;
		return element_of(l, -1, base, held_name(l, v, 0));
	}
	e = element_of(l, -1, base, held_name(l, v, at / slab));
	return e;
}

/* drop the loads that only fed what a pad's zero swallowed */
void
drop_loads(Lower *l)
{
	Kern *k = l->k;
	int i, n = 0;

	for (i = 0; i < k->nload; i++)
		if (named_from(l, 0, k->load[i].name))
			k->load[n++] = k->load[i];
	k->nload = n;
}
