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
#include "lower_cuda.h"

#include <string.h>

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
	int i, j, v;

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
			for (j = 0; l->cu->direct[v] >= 0 && j < l->cu->factors[v]->n; j++)
				e = exp_op(l, OP_MUL, rowval(l, l->cu->factors[v]->v[j], 0, 0), e);
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

/* Is anything rotated, or a head shifted in part, in the expression of v between channels at and end?
 * What a pad puts elsewhere is not part of it. */
static bool
rotates(const Lower *l, int v, int at, int end)
{
	const Val *x = &l->g->v[v];
	int j, lo;

	if (x->kind != K_VEC || !l->inside[v])
		return false;
	if (x->op == OP_ROTATE || ((x->op == OP_SHIFT || x->op == OP_UNSHIFT) && x->attr[3]))
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

/* heads that are cut alike, channels lo … hi of slab k */
static void
head_pieces(Lower *l, const SinkGroup *g, int lo, int hi)
{
	int i, at = l->cu->k * slab_of(l);
	bool whole = lo == 0 && hi == slab_of(l);
	Cuts heads = { .n = 2, .at = { 0, g->D } };

	if (group_rotates(l, g, at + lo, at + hi))
		heads = g->heads;
	cut_within(&heads, &g->flat, at + lo, g->D);
	for (i = 0; i + 1 < heads.n; i++)
		piece(l, g, lo, hi, heads.at[i], heads.at[i + 1],
		      heads.npair && heads.at[i + 1] <= heads.npair,
		      i == 0 ? 0 : whole && i + 2 == heads.n ? 2 : 1);
}

static void
slab_heads(Lower *l, const SinkGroup *g)
{
	int slab = slab_of(l), at = l->cu->k * slab, end = at + slab < g->W ? at + slab : g->W, lo, hi;

	if (at % g->D || end % g->D)
		bug("lower: %s has slabs of %d channels and heads of %d", l->k->name, slab, g->D);
	for (lo = at; lo < end; lo = hi) {
		hi = heads_alike(&g->flat, lo, g->D);
		hi = hi < end ? hi : end;
		head_pieces(l, g, lo - at, hi - at);
	}
}

static void
group_loops(Lower *l, const SinkGroup *g)
{
	Cuda *cu = l->cu;
	int i, slab, lo, hi, chain;

	cu->vw = g->vw;
	slab = slab_of(l);
	for (cu->k = 0; cu->k < slabs(l, g->W, g->vw); cu->k++) {
		if (g->D)
			slab_heads(l, g);
		for (chain = i = 0; !g->D && i + 1 < g->flat.n; i++) {
			lo = g->flat.at[i] - cu->k * slab;
			hi = g->flat.at[i + 1] - cu->k * slab;
			lo = lo > 0 ? lo : 0;
			hi = hi < slab ? hi : slab;
			if (lo >= hi || g->flat.at[i] < 0 || g->flat.at[i + 1] > g->W)
				continue;
			piece(l, g, lo, hi, 0, 0, false, chain && hi == slab ? 2 : chain);
			chain = 1;
		}
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
		shared_new(l, arena_printf(l->a, "%s_part", name), m->threads);
	else if (m->threads > 32)
		shared_new(l, arena_printf(l->a, "%s_part", name), m->threads / 32);
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
	bool queued = false, open = false;
	const Stmt *s;
	int i, n = 0;

	/* what is shared is read as far as the end of the turn */
	for (i = first; i < l->k->nstmt; i++) {
		s = &l->k->stmt[i];
		open |= s->kind == S_SHARE;
		queued |= s->kind == S_SUM && s->lo;
		if (s->kind == S_SUMS) {
			n += queued;
			queued = false;
		}
		n += s->kind == S_BARRIER;
	}
	if (l->k->map.loop && (n == 1 || open))
		stmt(l, S_BARRIER, NULL);
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
