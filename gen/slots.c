/* What a kernel at a slot loads, stores and leaves behind, given what is
 * decided there: the cost model of the search.
 *
 * A node is made at its slot: its form is the union of its terms' forms, which
 * were handed on ("pushed") when the terms were made.  Once it is stored, its
 * form for later slots is itself.  A pending sum may be stored in part: what is
 * at hand of its form is added up, and one vector stands for it from then on.
 * Each stored vector that is needed counts once per slot, and so does each that
 * is written. */
#include "search.h"

#include <string.h>

/* Terms that a kernel adds in the time it takes to move one vector, or rather
 * more: of plans that move the same, the one that adds less wins.  Products in
 * the coefficients of terms count for more: many of them are registers and pages
 * of text. */
static const double TermsPerByte = 60, ProductsPerByte = 6;

/* of a thread, less those of arithmetic */
enum { Registers = 120 };

/* in place of the bytes of a vector that is not stored */
enum { Formed = -1 };

/* sets */

static unsigned
set_hash(const int *id, int n)
{
	unsigned h = 2166136261u;
	int i;

	for (i = 0; i < n; i++)
		h = (h ^ (unsigned)id[i]) * 16777619u;
	return h ^ h >> 15;
}

static void
hash_grow(Machine *k)
{
	int n = k->nhash ? 2 * k->nhash : 1024, i;
	unsigned h;

	k->hash = NEWN(k->a, int, n);
	k->nhash = n;
	for (i = 0; i < k->nset; i++) {
		h = set_hash(k->set[i].id, k->set[i].n) & (unsigned)(n - 1);
		while (k->hash[h])
			h = (h + 1) & (unsigned)(n - 1);
		k->hash[h] = i + 1;
	}
}

static int
set_of(Machine *k, const int *id, int n)
{
	unsigned h;
	int i, *copy;

	if (2 * (k->nset + 1) >= k->nhash)
		hash_grow(k);
	h = set_hash(id, n) & (unsigned)(k->nhash - 1);
	for (; (i = k->hash[h]); h = (h + 1) & (unsigned)(k->nhash - 1))
		if (k->set[i - 1].n == n &&
		    memcmp(k->set[i - 1].id, id, (size_t)n * sizeof *id) == 0)
			return i - 1;
	copy = NEWN(k->a, int, n + 1);
	memcpy(copy, id, (size_t)n * sizeof *id);
	*PUSH(k->a, k->set, k->nset, k->capset) = (Set){ n, copy };
	k->hash[h] = k->nset;
	return k->nset - 1;
}

enum { MaxForm = 4096 };

static int
merge(Machine *k, int a, int b)
{
	const Set *x = &k->set[a], *y = &k->set[b];
	int id[MaxForm], n = 0, i = 0, j = 0, t;

	if (x->n + y->n > MaxForm)
		bug("search: a sum of more than %d vectors", MaxForm);
	while (i < x->n || j < y->n) {
		if (j == y->n || (i < x->n && x->id[i] < y->id[j]))
			t = x->id[i++];
		else if (i == x->n || y->id[j] < x->id[i])
			t = y->id[j++];
		else {
			t = x->id[i++];
			j++;
		}
		id[n++] = t;
	}
	return set_of(k, id, n);
}

/* Most unions are asked for again at once, by the next choice of the same slot. */
static int
set_union(Machine *k, int a, int b)
{
	Union *u = &k->unions[((unsigned)a * 31 + (unsigned)b) % NUnion];

	if (a == b || b == 0)
		return a;
	if (a == 0)
		return b;
	if (u->a != a || u->b != b)
		*u = (Union){ a, b, merge(k, a, b) };
	return u->set;
}

static int
set_one(Machine *k, int id)
{
	if (!k->one[id])
		k->one[id] = set_of(k, &id, 1);
	return k->one[id];
}

bool
set_within(const Machine *k, int a, int b)
{
	const Set *x = &k->set[a], *y = &k->set[b];
	int i, j = 0;

	if (a == b)
		return true;
	if (x->n > y->n)
		return false;
	for (i = 0; i < x->n; i++) {
		while (j < y->n && y->id[j] < x->id[i])
			j++;
		if (j == y->n || y->id[j] != x->id[i])
			return false;
	}
	return true;
}

/* vectors */

/* A row op that is not stored is a vector of its own kind in forms: what loading
 * it takes is its leaves. */
static bool
is_formed(const Node *x)
{
	return x->kind == NODE_FUN && !x->stored;
}

/* bytes per row of every stored vector; those that are formed have none */
static double *
vec_nbytes(Arena *a, const Terms *m)
{
	double *nbytes = NEWN(a, double, m->nnode * (m->nslot + 1));
	int i, t;

	for (i = 0; i < m->nnode; i++) {
		nbytes[i] = is_formed(&m->node[i]) ? Formed : m->node[i].nbytes;
		for (t = 0; t < m->nslot; t++)
			nbytes[part_id(m, i, t)] = m->node[i].nbytes;
	}
	return nbytes;
}

static int
leaf_form(const Machine *k, int leaf)
{
	return k->m->node[leaf].slot == k->t ? k->orig[leaf] : k->at->form[leaf];
}

static double
missing(const Machine *k, int set)
{
	const Set *s = &k->set[set];
	const Node *x;
	double n = 0;
	int i, j;

	for (i = 0; i < s->n; i++) {
		if (k->nbytes[s->id[i]] == Formed) {
			x = &k->m->node[s->id[i]];
			for (j = 0; j < x->nleaf; j++)
				n += missing(k, leaf_form(k, x->leaf[j]));
		} else if (k->stamp[s->id[i]] != k->now) {
			n += k->nbytes[s->id[i]];
		}
	}
	return n;
}

static bool
at_hand(Machine *k, int id)
{
	return k->nbytes[id] == Formed ? missing(k, set_one(k, id)) == 0 : k->stamp[id] == k->now;
}

static void
load(Machine *k, int set)
{
	const Set s = k->set[set];
	const Node *x;
	int i, j;

	for (i = 0; i < s.n; i++) {
		if (k->nbytes[s.id[i]] == Formed) {
			x = &k->m->node[s.id[i]];
			for (j = 0; j < x->nleaf; j++)
				load(k, leaf_form(k, x->leaf[j]));
		} else if (k->stamp[s.id[i]] != k->now) {
			k->stamp[s.id[i]] = k->now;
			k->cost += k->nbytes[s.id[i]];
			k->nload++;
		}
	}
}

static Action *
note(Machine *k, int slot, enum Do what, int node)
{
	Action *x;

	if (!k->log)
		return NULL;
	x = PUSH(k->a, k->log->action, k->log->n, k->log->cap);
	memset(x, 0, sizeof *x);
	x->slot = slot;
	x->node = node;
	x->what = what;
	return x;
}

/* Slots */

Machine *
machine_new(Arena *a, const Terms *m)
{
	Machine *k = NEW(a, Machine);

	k->a = a;
	k->m = m;
	k->stamp = NEWN(a, int, m->nnode * (m->nslot + 1) + 1);
	k->orig = NEWN(a, int, m->nnode);
	k->nbytes = vec_nbytes(a, m);
	k->one = NEWN(a, int, m->nnode * (m->nslot + 1));
	k->unions = NEWN(a, Union, NUnion);
	(void)set_of(k, NULL, 0);
	return k;
}

State *
state_start(Machine *k)
{
	State *s = NEW(k->a, State);

	s->form = NEWN(k->a, int, k->m->nnode);
	s->paths = NEWN(k->a, float, k->m->nnode);
	s->done = NEWN(k->a, uint8_t, k->m->npair + 1);
	s->prev = -1;
	return s;
}

static bool
can_store(const Node *x, int t)
{
	return x->kind == NODE_SUM && !x->stored && x->slot == t && x->last > t && x->nterm > 1;
}

void
slot_candidates(Machine *k, int t)
{
	const Terms *m = k->m;
	const Slot *p = &m->slot[t];
	int i;

	k->ncand = 0;
	if (t == m->at_sources)
		return;                 /* its kernel lays down sums of sources */
	for (i = 0; i < p->nmade && k->ncand < MaxCands; i++)
		if (can_store(&m->node[p->made[i]], t))
			k->cand[k->ncand++] = p->made[i];
	for (i = 0; i < p->npend && k->ncand < MaxCands; i++)
		k->cand[k->ncand++] = p->pend[i];
}

/* A choice that the spec makes, or -1.  hand: stored vectors of the form that are
 * at hand, of n. */
static int
forced(const Terms *m, int node, int t, int hand, int n)
{
	const Node *x = &m->node[node];

	if (m->pinned) {
		int what = m->pinned[t * m->nnode + node];

		if (x->slot == t || what == LEAVE)
			return x->slot == t && what != LEAVE ? STORE : LEAVE;
		return n < 2 ? LEAVE : hand == n ? PART : what == STORE ? STORE : hand >= 2 ? PART : LEAVE;
	}
	if (x->source_grad && x->slot > t && m->knob.gradients != GRADIENTS_AUTO)
		return m->knob.gradients == GRADIENTS_DEFERRED || !hand || n < 2 ? LEAVE :
		       hand < n ? STORE : PART;
	switch (m->knob.store) {
	case STORE_LANES:
		return x->slot == t ? STORE : LEAVE;
	case STORE_PARTS:
		return x->slot > t && hand >= 2 ? PART : LEAVE;
	case STORE_NONE:
		return LEAVE;
	default:
		return -1;
	}
}

void
slot_options(Machine *k, const State *s, int t, int *nopt, uint8_t (*opt)[3])
{
	const Node *x;
	const Set *f;
	int i, j, hand;

	for (i = 0; i < k->ncand; i++) {
		x = &k->m->node[k->cand[i]];
		f = &k->set[s->form[k->cand[i]]];
		for (hand = 0, j = 0; j < f->n; j++)
			hand += at_hand(k, f->id[j]);
		nopt[i] = 1;
		if ((j = forced(k->m, k->cand[i], t, hand, f->n)) >= 0) {
			opt[i][0] = (uint8_t)j;
			continue;
		}
		opt[i][0] = LEAVE;
		if (k->m->not.slot == t && k->m->not.node == k->cand[i])
			continue;
		if (x->slot == t) {
			opt[i][nopt[i]++] = STORE;
			continue;
		}
		if (hand >= 2)
			opt[i][nopt[i]++] = PART;
		if (hand && hand < f->n)
			opt[i][nopt[i]++] = STORE;
	}
}

static int
choice_of(const Machine *k, const uint8_t *choice, int node)
{
	int i;

	for (i = 0; i < k->ncand; i++)
		if (k->cand[i] == node)
			return choice[i];
	return LEAVE;
}

/* the form that node n, made earlier, is read in: its own, or normed if that
 * loads less */
static int
chosen_form(Machine *k, const State *to, int t, int n)
{
	const Node *x = &k->m->node[n];
	int one, own = to->form[n];

	if (!has_norm(k->m, x))
		return own;
	one = set_one(k, x->norm);
	if (k->m->knob.form != FORM_NORMED && (missing(k, one) > missing(k, own) ||
	    (missing(k, one) == missing(k, own) && k->set[own].n <= 1)))
		return own;
	note(k, t, DO_NORM, n);
	return one;
}

/* node n for something that slot t computes; late: those with a normed form,
 * when it is known what else is at hand */
static void
use(Machine *k, const State *to, int t, int n, bool late)
{
	const Node *x = &k->m->node[n];

	if (x->slot == t) {
		if (!late)
			load(k, k->orig[n]);
	} else if (late == has_norm(k->m, x)) {
		load(k, chosen_form(k, to, t, n));
	}
}

/* What is loaded for sure, from nodes made earlier, comes first: then it is known
 * in which form terms that waited for their coefficient cost least. */
static void
add_late_terms(Machine *k, State *to, int t)
{
	const Terms *m = k->m;
	const Slot *p = &m->slot[t];
	const Pair *q;
	const Node *x;
	int i, n, form;

	for (i = 0; i < p->nreq; i++)
		if (m->node[p->req[i]].slot < t)
			use(k, to, t, p->req[i], false);
	for (i = 0; i < p->npair; i++) {
		q = &m->pair[p->pair[i]];
		if (m->node[q->x].slot == t && m->node[q->y].slot < t)
			use(k, to, t, q->y, false);
	}
	for (i = 0; i < p->nlate; i++) {
		x = &m->node[p->late[i].sum];
		n = x->term[p->late[i].term].node;
		form = chosen_form(k, to, t, n);
		to->paths[p->late[i].sum] += form == to->form[n] ? to->paths[n] : 1;
		to->form[p->late[i].sum] = set_union(k, to->form[p->late[i].sum], form);
	}
}

static int
term_slot(const Terms *m, int sum, int node)
{
	const Node *x = &m->node[sum];
	int i;

	for (i = 0; x->term[i].node != node; i++)
		;
	return x->term[i].slot;
}

/* count the terms of sum n, of which each is a vector times a sum of products */
static void
spell(Machine *k, const State *to, int n, int nvec)
{
	float more = to->paths[n] - (float)nvec;

	k->work += k->m->node[n].nbytes * (nvec / TermsPerByte + (more > 0 ? more / ProductsPerByte : 0));
}

/* nodes that can exist from slot t on, in the order of their definitions */
static void
make_nodes(Machine *k, State *to, int t, const uint8_t *choice)
{
	const Terms *m = k->m;
	const Slot *p = &m->slot[t];
	const Node *x;
	int i, j, n, f, u, post, hand;

	for (i = 0; i < p->nmade; i++) {
		n = p->made[i];
		x = &m->node[n];
		f = to->form[n];
		if (x->kind == NODE_MEM)
			f = set_one(k, n);
		else if (x->kind == NODE_FUN && x->stored)
			for (j = 0; j < x->nleaf; j++)
				f = set_union(k, f, leaf_form(k, x->leaf[j]));
		else if (x->kind == NODE_FUN)
			f = set_one(k, n);
		post = f;
		if (x->kind != NODE_MEM && (x->stored || choice_of(k, choice, n) == STORE)) {
			load(k, f);
			k->stamp[n] = k->now;
			post = set_one(k, n);
			if (!x->stored) {
				k->cost += x->nbytes;
				note(k, t, DO_STORE, n);
			}
		}
		if (x->kind == NODE_SUM)
			spell(k, to, n, k->set[f].n);
		if (x->kind != NODE_SUM || post != f)
			to->paths[n] = 1;
		k->orig[n] = f;
		to->form[n] = post;
		hand = has_norm(m, x) && k->set[post].n > 1 ? set_one(k, x->norm) : post;
		for (j = 0; j < x->nuser; j++) {
			if (x->user[j].slot != t)
				continue;
			u = x->user[j].sum;
			to->paths[u] += hand == post ? to->paths[n] : 1;
			to->form[u] = set_union(k, to->form[u], m->node[u].slot == t ? post : hand);
		}
	}
}

/* does x lie in the sum that its pair waits for, as it was made? */
static bool
waits(const Terms *m, const Pair *p)
{
	return p->with >= 0 && !has_norm(m, &m->node[p->x]) &&
	       term_slot(m, p->with, p->x) == m->node[p->x].slot;
}

static void
run_kernel(Machine *k, const State *to, int t)
{
	const Slot *p = &k->m->slot[t];
	const Pair *q;
	int i, late;

	for (late = 0; late < 2; late++) {
		for (i = 0; i < p->nreq; i++)
			use(k, to, t, p->req[i], late);
		for (i = 0; i < p->npair; i++) {
			q = &k->m->pair[p->pair[i]];
			if (to->done[p->pair[i]])
				continue;
			use(k, to, t, q->x, late);
			use(k, to, t, q->y, late);
			if (late)
				continue;
			k->npair++;
			note(k, t, DO_PAIR, p->pair[i]);
		}
	}
}

/* pairs that wait for sum n and whose x is in the set, which n takes in now */
static void
absorb_pairs(Machine *k, State *to, int t, int n, int set)
{
	const Terms *m = k->m;
	const Slot *p = &m->slot[m->node[n].slot];
	const Pair *q;
	int i;

	for (i = 0; i < p->npair; i++) {
		q = &m->pair[p->pair[i]];
		if (q->with != n || to->done[p->pair[i]] || !waits(m, q) ||
		    m->node[q->x].slot > t || !to->form[q->x] ||
		    !set_within(k, to->form[q->x], set))
			continue;
		use(k, to, t, q->y, false);
		use(k, to, t, q->y, true);
		to->done[p->pair[i]] = 1;
		k->npair++;
		note(k, t, DO_PAIR, p->pair[i]);
	}
}

/* Store what is at hand of pending sum n, if that is two vectors or more; whole:
 * load the rest first. */
static void
store_part(Machine *k, State *to, int t, int n, bool whole)
{
	const Set *s = &k->set[to->form[n]];
	int in[MaxForm], out[MaxForm], nin = 0, nout = 0, i, set;
	Action *x;

	if (whole) {
		if (missing(k, to->form[n]) == 0)
			return;         /* PART does the same */
		load(k, to->form[n]);
	}
	for (i = 0; i < s->n; i++)
		if (at_hand(k, s->id[i]))
			in[nin++] = s->id[i];
		else
			out[nout++] = s->id[i];
	if (nin < 2)
		return;
	set = set_of(k, in, nin);
	spell(k, to, n, nin + nout);
	to->paths[n] = 1 + (float)nout;
	absorb_pairs(k, to, t, n, set);
	if ((x = note(k, t, DO_PART, n))) {
		x->nvec = nin;
		x->vec = NEWN(k->a, int, nin);
		memcpy(x->vec, in, (size_t)nin * sizeof *in);
	}
	out[nout++] = part_id(k->m, n, t);      /* the largest */
	for (i = nout - 1; i > 0 && out[i - 1] > out[i]; i--) {
		set = out[i];
		out[i] = out[i - 1];
		out[i - 1] = set;
	}
	to->form[n] = set_of(k, out, nout);
	k->cost += k->m->node[n].nbytes;
}

double
slot_ahead(Machine *k, const State *s, const int *live, int n)
{
	double before = k->cost, x;
	int i;

	k->now++;
	for (i = 0; i < n; i++)
		load(k, s->form[live[i]]);
	x = k->cost - before;
	k->cost = before;
	return x;
}

/* sums of sources, once for all later slots: ids that are no source stay */
static void
lay_sources(Machine *k, State *to, int t)
{
	const Terms *m = k->m;
	int i;

	for (i = 0; i < m->nnode; i++)
		if (m->node[i].source)
			load(k, to->form[i]);
	for (i = 0; i < m->nahead; i++)
		store_part(k, to, t, m->ahead[i], false);
}

/* A thread holds every vector that its kernel loads, 4 registers of bf16 each, and
 * a number per dot product that is summed over rows.  Beyond what there is of
 * registers a kernel spills, and that moves bytes too. */
static void
crowding(Machine *k)
{
	int over = 4 * k->nload + k->npair - Registers;

	k->crowded = over > 0;
	if (over > 0 && k->nload)
		k->work += k->cost / k->nload * over / 8;
}

void
slot_run(Machine *k, const State *from, int t, const uint8_t *choice, State *to)
{
	const Terms *m = k->m;
	int i;

	k->now++;
	k->t = t;
	k->at = to;
	k->cost = k->work = 0;
	k->nload = k->npair = 0;
	memcpy(to->form, from->form, (size_t)m->nnode * sizeof *to->form);
	memcpy(to->paths, from->paths, (size_t)m->nnode * sizeof *to->paths);
	memcpy(to->done, from->done, (size_t)m->npair);
	add_late_terms(k, to, t);
	make_nodes(k, to, t, choice);
	run_kernel(k, to, t);
	if (t == m->at_sources)
		lay_sources(k, to, t);
	for (i = 0; i < k->ncand; i++)
		if (choice[i] != LEAVE && m->node[k->cand[i]].slot > t)
			store_part(k, to, t, k->cand[i], choice[i] == STORE);
	crowding(k);
	to->cost = from->cost + k->cost;
	to->work = from->work + k->work;
}

/* What the backward pass will load for the sums that the forward pass makes
 * here: so that the forward pass stores what is cheap for both. */
double
slot_later(Machine *k, const State *to, int t)
{
	const Terms *m = k->m;
	const Slot *p = &m->slot[t];
	const Node *x;
	double before = k->cost, n;
	int i, late;

	if (t >= m->first_bwd)
		return 0;
	k->now++;
	for (late = 0; late < 2; late++)
		for (i = 0; i < p->nmade; i++) {
			x = &m->node[p->made[i]];
			if (x->kind != NODE_SUM || x->last < m->first_bwd || has_norm(m, x) != late)
				continue;
			if (late && missing(k, to->form[p->made[i]]) > 0)
				load(k, set_one(k, x->norm));
			else
				load(k, to->form[p->made[i]]);
		}
	n = k->cost - before;
	k->cost = before;
	return n;
}
