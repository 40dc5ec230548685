/* Kern -> Kern, cuda: terms of a sum that can be added in an earlier body are.
 *
 * What depends on a sum over channels is formed in a body behind it, and so is all
 * of a long sum with one such term: every vector of it would have to be held until
 * then.  The terms that depend on nothing of the kind become a sum of their own in
 * the first body, where stream.c adds each as its vector comes by. */
#include "lower_cuda.h"

#include <string.h>

enum { FewLoads = 3 };

typedef struct { int n, cap; Exp **e; bool *minus; int capminus; } TermList;

typedef struct {
	Arena *a;
	Kern *k;
	int rows;               /* statement S_ROWS */
	int first, end;         /* the first body */
	int at, at_end;         /* the body at hand */
} Hoist;

static void
flatten_terms(Hoist *h, Exp *e, bool minus, TermList *t)
{
	if (e->kind == X_OP && (e->op == OP_ADD || e->op == OP_SUB)) {
		flatten_terms(h, e->a, minus, t);
		flatten_terms(h, e->b, minus != (e->op == OP_SUB), t);
	} else if (e->kind == X_OP && e->op == OP_NEG) {
		flatten_terms(h, e->a, !minus, t);
	} else {
		*PUSH(h->a, t->minus, t->n, t->capminus) = minus;
		t->n--;
		*PUSH(h->a, t->e, t->n, t->cap) = e;
	}
}

static const Stmt *
let_in(const Kern *k, int first, int end, const char *name)
{
	int i;

	for (i = first; i < end; i++)
		if (k->stmt[i].kind == S_LET && strcmp(k->stmt[i].name, name) == 0)
			return &k->stmt[i];
	return NULL;
}

static bool
is_load(const Kern *k, const Exp *e)
{
	int i;

	for (i = 0; e->kind == X_ELEM_OF && i < k->nload; i++)
		if (strcmp(k->load[i].name, e->name) == 0)
			return true;
	return false;
}

/* a number that the first body finds: of all rows, or of this one and final */
static bool
is_there(const Hoist *h, const char *name)
{
	return let_in(h->k, 0, h->first, name) != NULL;
}

/* Does e need nothing but loads and numbers that are there?  A let of the body counts
 * where it is a load by name. */
static bool
can_hoist(const Hoist *h, const Exp *e)
{
	const Stmt *t;

	switch (e->kind) {
	case X_NUM:
	case X_SCALAR:
		return true;
	case X_ELEM_OF:
		return is_load(h->k, e) && e->idx.d == 1;
	case X_VAR:
		t = let_in(h->k, h->at, h->at_end, e->name);
		return t ? is_load(h->k, t->e) : is_there(h, e->name);
	case X_OP:
		return can_hoist(h, e->a) && (!e->b || can_hoist(h, e->b));
	default:
		return false;
	}
}

/* names of the loads that e reads, by the lets of the body; how many, each once */
static void
list_loads(const Hoist *h, const Exp *e, const char **load, int *n)
{
	const Stmt *t = e->kind == X_VAR ? let_in(h->k, h->at, h->at_end, e->name) : NULL;
	const char *name = t && is_load(h->k, t->e) ? t->e->name : is_load(h->k, e) ? e->name : NULL;
	int i;

	if (name) {
		for (i = 0; i < *n && strcmp(load[i], name) != 0; i++)
			;
		if (i == *n)
			load[(*n)++] = name;
		return;
	}
	if (e->a)
		list_loads(h, e->a, load, n);
	if (e->b)
		list_loads(h, e->b, load, n);
}

static Exp *
sum_of(Hoist *h, Exp *x, Exp *e, bool minus)
{
	Exp *r;

	if (!x && !minus)
		return e;
	r = NEW(h->k->mem, Exp);
	r->kind = X_OP;
	r->par = -1;
	r->op = !x ? OP_NEG : minus ? OP_SUB : OP_ADD;
	r->a = x ? x : e;
	r->b = x ? e : NULL;
	return r;
}

static Exp *
element(Hoist *h, const char *vec)
{
	Exp *e = NEW(h->k->mem, Exp);

	e->kind = X_ELEM_OF;
	e->name = vec;
	e->par = -1;
	e->idx = (Idx){ 0, 0, 1 };
	return e;
}

static void
insert(Hoist *h, int at, Stmt t)
{
	Kern *k = h->k;

	(void)PUSH(k->mem, k->stmt, k->nstmt, k->capstmt);
	memmove(k->stmt + at + 1, k->stmt + at, (size_t)(k->nstmt - 1 - at) * sizeof *k->stmt);
	k->stmt[at] = t;
	h->first += at <= h->first;
	h->end += at <= h->end;
	h->at += at <= h->at;
	h->at_end += at <= h->at_end;
}

/* lets of the body at hand that e reads and the first body does not have */
static void
bring_lets(Hoist *h, const Exp *e)
{
	const Stmt *t = e->kind == X_VAR ? let_in(h->k, h->at, h->at_end, e->name) : NULL;

	if (t && !let_in(h->k, h->first, h->end, e->name))
		insert(h, h->end, *t);
	if (e->a)
		bring_lets(h, e->a);
	if (e->b)
		bring_lets(h, e->b);
}

/* the statement's place, by name: insertions move it */
static int
place_of(const Hoist *h, StmtKind kind, const char *name)
{
	int i;

	for (i = h->at; h->k->stmt[i].kind != kind || strcmp(h->k->stmt[i].name, name) != 0; i++)
		;
	return i;
}

static void
hoist_terms(Hoist *h, int i)
{
	const char **load = NEWN(h->a, const char *, h->k->nload + 1), *vec;
	Exp *early = NULL, *late = NULL;
	Stmt t = h->k->stmt[i], v = t;
	TermList x = {0};
	int j, n = 0;

	flatten_terms(h, t.e, false, &x);
	for (j = 0; j < x.n; j++)
		if (can_hoist(h, x.e[j]))
			list_loads(h, x.e[j], load, &n);
	if (n < FewLoads)
		return;
	for (j = 0; j < x.n; j++) {
		if (!can_hoist(h, x.e[j])) {
			late = sum_of(h, late, x.e[j], x.minus[j]);
			continue;
		}
		early = sum_of(h, early, x.e[j], x.minus[j]);
		bring_lets(h, x.e[j]);
	}
	vec = arena_printf(h->k->mem, "%s_first", t.name);
	i = place_of(h, t.kind, t.name);
	h->k->stmt[i].e = late ? sum_of(h, element(h, vec), late, false) : element(h, vec);
	v.kind = S_VEC_SET;
	v.name = vec;
	v.e = early;
	v.idx = (Idx){ 0, 0, 1 };
	v.vw = 8;
	insert(h, h->end, v);
	memset(&v, 0, sizeof v);
	v.kind = S_VEC;
	v.name = vec;
	v.n = h->k->stmt[h->first].n;
	v.par = -1;
	insert(h, h->first, v);
}

/* lets that nobody reads any more */
static void
drop_lets(Hoist *h)
{
	Kern *k = h->k;
	int i, j;

	for (i = h->at_end - 1; i > h->at; i--) {
		if (k->stmt[i].kind != S_LET)
			continue;
		for (j = h->at; j < h->at_end && !exp_names(k->stmt[j].e, k->stmt[i].name); j++)
			;
		if (j < h->at_end)
			continue;
		memmove(k->stmt + i, k->stmt + i + 1, (size_t)(k->nstmt - i - 1) * sizeof *k->stmt);
		k->nstmt--;
		h->at_end--;
	}
}

static void
hoist_body(Hoist *h)
{
	int i;

	for (i = h->at + 1; i < h->at_end; i++) {
		const char *name = h->k->stmt[i].name;
		StmtKind kind = h->k->stmt[i].kind;

		if ((kind != S_LET && kind != S_VEC_SET) || h->k->stmt[i].idx.d == 2)
			continue;
		hoist_terms(h, i);
		i = place_of(h, kind, name);
	}
	drop_lets(h);
}

void
hoist(Kern *k)
{
	Hoist h = { .a = arena_new("hoist"), .k = k, .first = -1 };
	int i, depth = 0;

	for (i = 0; i < k->nstmt && k->stmt[i].kind != S_ROWS; i++)
		;
	h.rows = i;
	for (i++; i < k->nstmt && depth >= 0; i++) {
		depth += k->stmt[i].kind == S_IF || k->stmt[i].kind == S_LOOP;
		depth -= k->stmt[i].kind == S_END;
		if (k->stmt[i].kind != S_ELEMS)
			continue;
		h.at = i;
		for (h.at_end = i + 1; k->stmt[h.at_end].kind != S_END; h.at_end++)
			;
		if (depth == 0 && h.first < 0) {
			h.first = h.at;
			h.end = h.at_end;
		} else if (depth == 0) {
			hoist_body(&h);
		}
		i = h.at_end;
	}
	arena_free(h.a);
}
