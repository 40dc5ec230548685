/* Lowering, loops over channels: where they must be cut, and their bodies. */
#include "lower.h"

#include <string.h>

/* v was held by an earlier phase, and is taken from there */
static bool
taken(const Lower *l, int v)
{
	return l->phase[v] < l->now && l->held[v] && !(l->cu && cuda_walks(l, v));
}

/* size of the heads that the expression of v is made of, 0 if none */
int
head_size(const Lower *l, int v, int width)
{
	const Val *x = &l->g->v[v];
	int j, d;

	if (x->kind == K_ROWVAL)
		return x->width > 1 ? width / x->width : 0;
	if (x->kind != K_VEC || !l->inside[v] || taken(l, v))
		return 0;
	if (x->op == OP_ROTATE)
		return x->attr[0];
	if ((x->op == OP_SHIFT || x->op == OP_UNSHIFT) && x->attr[3])
		return SHIFT_D(x->attr[3]);
	for (j = 0; j < op_info[x->op].arity; j++) {
		d = head_size(l, x->arg[j], x->width);
		if (d)
			return d;
	}
	return 0;
}

void
cut(Cuts *c, int at)
{
	int i, j;

	for (i = 0; i < c->n && c->at[i] < at; i++)
		;
	if (i < c->n && c->at[i] == at)
		return;
	if (c->n == MaxCut)
		bug("lower: more than %d cuts in a loop", MaxCut);
	for (j = c->n++; j > i; j--)
		c->at[j] = c->at[j - 1];
	c->at[i] = at;
}

/* Behind a rotation by halves a channel needs another, half of them away. */
static void
shift_cuts(Cuts *heads, int first, int D)
{
	int away = heads->adjacent ? 0 : heads->R / 2;

	cut(heads, first);
	if (first - away > 0)
		cut(heads, first - away);
	if (first + away < D)
		cut(heads, first + away);
}

/* To which channel do heads from channel `at` on have the same cuts?  A head that is
 * cut within is alone. */
int
heads_alike(const Cuts *flat, int at, int D)
{
	int i;

	for (i = 0; flat->at[i] <= at; i++)
		;
	return flat->at[i] < at + D ? at + D : flat->at[i] / D * D;
}

/* the cuts within the head that begins at channel `at`, as cuts of a head */
void
cut_within(Cuts *heads, const Cuts *flat, int at, int D)
{
	int i;

	for (i = 0; i < flat->n; i++)
		if (flat->at[i] > at && flat->at[i] < at + D)
			shift_cuts(heads, flat->at[i] - at, D);
}

/* Where must loops over the channels of v be cut?  flat: channels of the sink,
 * v's channel 0 being the sink's -base; heads: channels of a head. */
void
find_cuts(const Lower *l, int v, int base, Cuts *flat, Cuts *heads)
{
	const Val *x = &l->g->v[v];
	int j, w;

	if (x->kind != K_VEC || !l->inside[v] || taken(l, v))
		return;
	switch ((int)x->op) {
	case OP_SLICE:
		base += x->attr[0];
		break;
	case OP_PAD:
		w = l->g->v[x->arg[0]].width;
		cut(flat, x->attr[0] - base);
		cut(flat, x->attr[0] + w - base);
		base -= x->attr[0];
		break;
	case OP_ROTATE:
		if (heads->R && (heads->R != x->attr[1] || heads->adjacent != x->attr[2]))
			bug("lower: two sorts of rotation in one loop of %s", l->k->name);
		heads->R = x->attr[1];
		heads->adjacent = x->attr[2];
		if (!x->attr[2])
			cut(heads, x->attr[1] / 2);
		else
			heads->npair = x->attr[1];
		cut(heads, x->attr[1]);
		break;
	case OP_SHIFT:
	case OP_UNSHIFT:
		if (x->attr[3])
			shift_cuts(heads, SHIFT_FIRST(x->attr[3]), SHIFT_D(x->attr[3]));
		break;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		if (x->op != OP_ROTATE || j == 0)
			find_cuts(l, x->arg[j], base, flat, heads);
}

static void
body(Lower *l, const Sink *s, int n, int parity)
{
	const Val *x;
	Stmt *t;
	Exp *e;
	int i, v;

	for (i = 0; i < n; i++) {
		v = s[i].v;
		x = &l->g->v[v];
		switch (s[i].kind) {
		case SINK_STORE:
			e = evaluate(l, v, parity);
			t = stmt(l, S_STORE, NULL);
			t->par = l->par[v];
			t->idx = here(l, parity);
			t->e = e;
			break;
		case SINK_HOLD:
			e = evaluate(l, v, parity);
			t = stmt(l, S_SET, arena_printf(l->a, "row_%s", l->name[v]));
			t->idx = here(l, parity);
			t->e = e;
			break;
		case SINK_SUM:
			e = operand(l, x->arg[0], parity, s[i].width);
			if (x->op == OP_DOT)
				e = exp_op(l, OP_MUL, e, operand(l, x->arg[1], parity,
				                                s[i].width));
			l->flops += l->mult;
			t = stmt(l, S_ADD, l->name[v]);
			if (x->width > 1) {
				t->name = arena_printf(l->a, "%s_h", l->name[v]);
			}
			t->e = e;
			break;
		case SINK_PART:
			e = evaluate(l, x->arg[0], parity);
			l->flops += l->mult;
			t = stmt(l, S_PART_ADD, NULL);
			t->par = l->par[v];
			t->idx = here(l, parity);
			t->e = e;
			break;
		}
	}
}

/* names that an expression uses */
typedef struct { int n, cap; const char **name; } Used;

static void
add_used(Arena *a, const Exp *e, Used *u)
{
	if (!e)
		return;
	if (e->kind == X_VAR)
		*PUSH(a, u->name, u->n, u->cap) = e->name;
	add_used(a, e->a, u);
	add_used(a, e->b, u);
}

static bool
is_used(const char *name, const Used *u)
{
	int i;

	for (i = 0; i < u->n; i++)
		if (strcmp(u->name[i], name) == 0)
			return true;
	return false;
}

/* Drop the lets of a body, from statement `first` on, that only fed what a
 * pad's zero swallowed. */
void
sweep(Lower *l, int first)
{
	Used used = {0};
	Stmt *s = l->k->stmt;
	int i, to = l->k->nstmt;

	for (i = l->k->nstmt - 1; i >= first; i--) {
		if (s[i].kind == S_LET && !is_used(s[i].name, &used))
			continue;
		add_used(l->a, s[i].e, &used);
		s[--to] = s[i];
	}
	memmove(s + first, s + to, (size_t)(l->k->nstmt - to) * sizeof *s);
	l->k->nstmt = first + l->k->nstmt - to;
}

/* one loop over channels lo … hi (within a head if l->D) */
static void
channel_loop(Lower *l, const Sink *s, int n, int lo, int hi, bool pairs)
{
	Buf b = {0};
	Stmt *t;
	int i;

	for (i = 0; i < n; i++) {
		if (s[i].kind != SINK_SUM)
			continue;
		buf_printf(&b, "%s%s%s", b.len ? ", " : "", l->name[s[i].v],
		           l->g->v[s[i].v].width > 1 ? "_h" : "");
	}
	l->dlo = l->D ? lo : 0;
	l->dhi = l->D ? hi : 0;
	if (!l->D) {
		l->lo = lo;
		l->hi = hi;
	}
	l->pairs = pairs;
	l->nmemo = 0;
	t = stmt(l, S_LOOP, "c");
	t->lo = pairs ? lo / 2 : lo;
	t->hi = pairs ? hi / 2 : hi;
	t->reduce = b.len ? arena_strdup(l->a, b.s) : "";
	buf_free(&b);
	l->mult = (double)(t->hi - t->lo) * (l->D ? l->hi - l->lo : 1);
	i = l->k->nstmt;
	body(l, s, n, 0);
	if (pairs)
		body(l, s, n, 1);
	sweep(l, i);
	stmt(l, S_END, NULL);
	l->pairs = false;
}

/* loops over heads h0 … h1, inside them over the pieces of a head */
static void
head_loops(Lower *l, const Sink *s, int n, int h0, int h1, const Cuts *heads)
{
	Stmt *t;
	int i;
	const Val *x;

	l->lo = h0;
	l->hi = h1;
	t = stmt(l, S_LOOP, "head");
	t->lo = h0;
	t->hi = h1;
	for (i = 0; i < n; i++)
		if (s[i].kind == SINK_SUM && l->g->v[s[i].v].width > 1)
			stmt(l, S_ZERO, arena_printf(l->a, "%s_h", l->name[s[i].v]));
	for (i = 0; i + 1 < heads->n; i++)
		channel_loop(l, s, n, heads->at[i], heads->at[i + 1],
		             heads->npair && heads->at[i + 1] <= heads->npair);
	for (i = 0; i < n; i++) {
		x = &l->g->v[s[i].v];
		if (s[i].kind != SINK_SUM || x->width == 1)
			continue;
		t = stmt(l, S_SET, l->name[s[i].v]);
		t->idx = (Idx){ 0, 1, 0 };
		t->e = exp_var(l, arena_printf(l->a, "%s_h", l->name[s[i].v]));
	}
	stmt(l, S_END, NULL);
}

/* all loops for sinks that share width and head size */
void
loops(Lower *l, const Sink *s, int n)
{
	Cuts flat = {0}, heads = {0}, own;
	int i, v, at, end, D = s->D, W = s->width;

	cut(&flat, 0);
	cut(&flat, W);
	cut(&heads, 0);
	if (D)
		cut(&heads, D);
	for (i = 0; i < n; i++) {
		v = s[i].v;
		if (s[i].kind == SINK_STORE || s[i].kind == SINK_HOLD) {
			find_cuts(l, v, 0, &flat, &heads);
		} else {
			find_cuts(l, l->g->v[v].arg[0], 0, &flat, &heads);
			if (l->g->v[v].op == OP_DOT)
				find_cuts(l, l->g->v[v].arg[1], 0, &flat, &heads);
		}
	}
	l->D = D;
	for (i = 0; !D && i + 1 < flat.n; i++)
		if (flat.at[i] >= 0 && flat.at[i + 1] <= W)
			channel_loop(l, s, n, flat.at[i], flat.at[i + 1], false);
	for (at = 0; D && at < W; at = end) {
		end = heads_alike(&flat, at, D);
		own = heads;
		cut_within(&own, &flat, at, D);
		head_loops(l, s, n, at / D, end / D, &own);
	}
	l->D = 0;
}
