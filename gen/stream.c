/* Kern -> Kern, cuda: bodies that need more vectors than a thread has registers
 * for are walked vector by vector instead of channel by channel.
 *
 * A body is one loop over a thread's channels in which every statement uses what
 * it likes, so that all vectors it loads are held at once.  Here it becomes a
 * loop for each vector: load it, add its terms to the sums that have one, form
 * the dot products whose other side is there, go on.  What a later statement needs
 * whole (a lane, a gradient) is a vector of floats while its terms come in.
 *
 *     const float x = a*u + b*v + c*w;        x_all = a*u;  ...  x_all += b*v;  ...
 *     dot += x*y;                             x_all += c*w; dot += x_all*y;
 *
 * Which vector comes next is the one after which least is held.  Loads stand as
 * far ahead of their loop as registers allow: they are what hides the latency of
 * memory.  Sums are added up in another order than without; nothing else changes. */
#include "lower_cuda.h"

#include <string.h>

/* registers of a thread that a streamed body may fill, of the 255 there are: what
 * is left are addresses, coefficients and what is being computed */
enum { Budget = 176, MaxScalars = 4096 };

typedef struct {
	const char *name;       /* as statements use it */
	Exp *e;                 /* light: what it is; computed again in each loop */
	bool light;
	const char *vec;        /* heavy: the vector that its terms are added to */
	int left;               /* terms that have not been added */
	bool begun;
	bool given;             /* the vector is declared, before the body */
	bool out;               /* and read after it */
	int store;              /* statement that stores it, once it is whole; or -1 */
} Let;

typedef struct {
	Stmt s;
	Exp *e;
	int let;                /* adds a term of it, or -1 */
	int nload, *load;       /* loads and heavy lets that it reads */
	int nneed, *need;
	bool done;
	int loop;
} Action;

typedef struct {
	Arena *a;
	Kern *k;
	int first, end;         /* statements of the body: S_ELEMS … S_END */
	int nlet, caplet;
	Let *let;
	int naction, capaction;
	Action *action;
	bool *streams;          /* load: used in this body and nowhere else */
	bool *there;            /* load: has been made */
	int norder, *order;     /* streamed loads as they come */
	int *loop;              /* order -> first loop that may read it */
	int *place;             /* order -> loop before which it stands */
	int nloop, caploop;
	int *live;              /* loop -> registers in use while it runs */
	int base;               /* registers that live through the body */
	int nstore;             /* stores that follow the body */
	const Stmt *old;        /* statements as they were */
	bool *stored;           /* of these, stores that are written already */
	int end_written;        /* first statement after the loops */
} Stream;

/* what a name is */

static int
find_let(const Stream *s, const char *name)
{
	int i;

	for (i = 0; i < s->nlet; i++)
		if (strcmp(s->let[i].name, name) == 0)
			return i;
	return -1;
}

static int
find_load(const Stream *s, const Exp *e)
{
	int i;

	for (i = 0; e->kind == X_ELEM_OF && i < s->k->nload; i++)
		if (strcmp(s->k->load[i].name, e->name) == 0)
			return i;
	return -1;
}

/* loads and heavy lets that e reads, through light ones */
static void
reads(const Stream *s, const Exp *e, bool *load, bool *needs)
{
	int i;

	if (!e)
		return;
	if ((i = find_load(s, e)) >= 0)
		load[i] = true;
	if ((e->kind == X_VAR || e->kind == X_ELEM_OF) && (i = find_let(s, e->name)) >= 0) {
		if (s->let[i].light)
			reads(s, s->let[i].e, load, needs);
		else
			needs[i] = true;
	}
	reads(s, e->a, load, needs);
	reads(s, e->b, load, needs);
}

/* e with what was a number of one channel taken from its vector */
static Exp *
renamed(Stream *s, Exp *e)
{
	Exp *r;
	int i = e && e->kind == X_VAR ? find_let(s, e->name) : -1;

	if (!e || (i >= 0 && s->let[i].light))
		return e;
	r = NEW(s->k->mem, Exp);
	*r = *e;
	if (i >= 0) {
		r->kind = X_ELEM_OF;
		r->name = s->let[i].vec;
		r->par = -1;
		r->idx = (Idx){ 0, 0, 1 };
		return r;
	}
	r->a = renamed(s, e->a);
	r->b = renamed(s, e->b);
	return r;
}

/* actions */

static void
action_new(Stream *s, const Stmt *from, Exp *e, int let)
{
	Action *x = PUSH(s->a, s->action, s->naction, s->capaction);

	memset(x, 0, sizeof *x);
	x->s = *from;
	x->e = e;
	x->let = let;
}

/* one action for each term of a sum */
static void
terms(Stream *s, const Stmt *from, Exp *e, bool minus, int let)
{
	Exp *n;

	if (e->kind == X_OP && (e->op == OP_ADD || e->op == OP_SUB)) {
		terms(s, from, e->a, minus, let);
		terms(s, from, e->b, minus != (e->op == OP_SUB), let);
		return;
	}
	if (e->kind == X_OP && e->op == OP_NEG) {
		terms(s, from, e->a, !minus, let);
		return;
	}
	if (minus) {
		n = NEW(s->k->mem, Exp);
		n->kind = X_OP;
		n->op = OP_NEG;
		n->par = -1;
		n->a = e;
		e = n;
	}
	action_new(s, from, e, let);
	if (let >= 0)
		s->let[let].left++;
}

static int *
listed(Arena *a, const bool *x, int n, int *m)
{
	int *list = NEWN(a, int, n + 1), i;

	for (*m = i = 0; i < n; i++)
		if (x[i])
			list[(*m)++] = i;
	return list;
}

static int
count(const bool *x, int n)
{
	int i, m = 0;

	for (i = 0; i < n; i++)
		m += x[i];
	return m;
}

/* A let of one vector is cheap to form again; one of several is held. */
static void
add_let(Stream *s, const Stmt *t)
{
	bool *load = NEWN(s->a, bool, s->k->nload + 1), *needs = NEWN(s->a, bool, s->nlet + 1);
	Let *x;

	reads(s, t->e, load, needs);
	x = PUSH(s->a, s->let, s->nlet, s->caplet);
	memset(x, 0, sizeof *x);
	x->name = t->name;
	x->e = t->e;
	x->store = -1;
	x->light = count(load, s->k->nload) + count(needs, s->nlet - 1) <= 1;
	if (x->light)
		return;
	x->vec = arena_printf(s->k->mem, "%s_all", t->name);
	terms(s, t, t->e, false, s->nlet - 1);
}

/* what comes of a vector after the body */
static void
find_out(const Stream *s, Let *x)
{
	const Stmt *t;
	int i;

	x->store = -1;
	for (i = s->end + 1; i < s->k->nstmt; i++) {
		t = &s->k->stmt[i];
		if (exp_names(t->e, x->vec))
			x->out = true;
		if (t->kind != S_VEC_STORE || strcmp(t->name, x->vec) != 0)
			continue;
		if (x->store >= 0 || i > s->end + s->nstore)
			x->out = true;
		else
			x->store = i;
	}
}

/* v = e: e's own vector may be v */
static void
add_set(Stream *s, const Stmt *t)
{
	int i = t->e->kind == X_VAR ? find_let(s, t->e->name) : -1;
	Let *x;

	if (i >= 0 && !s->let[i].light && !s->let[i].given) {
		s->let[i].vec = t->name;
		s->let[i].given = true;
		find_out(s, &s->let[i]);
		return;
	}
	x = PUSH(s->a, s->let, s->nlet, s->caplet);
	memset(x, 0, sizeof *x);
	x->name = x->vec = t->name;
	x->given = true;
	find_out(s, x);
	terms(s, t, t->e, false, s->nlet - 1);
}

static void
find_reads(Stream *s, Action *x)
{
	bool *load = NEWN(s->a, bool, s->k->nload + 1), *need = NEWN(s->a, bool, s->nlet + 1);
	int i;

	reads(s, x->e, load, need);
	for (i = 0; i < s->k->nload; i++)
		load[i] &= s->streams[i];
	x->load = listed(s->a, load, s->k->nload, &x->nload);
	x->need = listed(s->a, need, s->nlet, &x->nneed);
	x->loop = -1;
}

static bool
read_body(Stream *s)
{
	const Stmt *t;
	int i;

	for (i = s->first + 1; i < s->end; i++) {
		t = &s->k->stmt[i];
		if (t->idx.d == 2 && (t->kind == S_VEC_SET || t->kind == S_VEC_ADD))
			return false;           /* pairs of channels */
		if (t->kind == S_LET)
			add_let(s, t);
		else if (t->kind == S_VEC_SET)
			add_set(s, t);
		else if (t->kind == S_VEC_ADD)
			terms(s, t, t->e, false, -1);
		else if (t->kind == S_ADD)
			action_new(s, t, t->e, -1);
		else
			return false;
	}
	for (i = 0; i < s->naction; i++)
		find_reads(s, &s->action[i]);
	return true;
}

/* the order */

static int
load_size(const Stream *s, int i)
{
	const VecLoad *x = &s->k->load[i];

	return s->k->par[x->par].dt == BF16 ? (x->vw + 1) / 2 : x->vw;
}

static bool
is_ready(const Action *x, const bool *there, const int *left)
{
	int i;

	for (i = 0; i < x->nload; i++)
		if (!there[x->load[i]])
			return false;
	for (i = 0; i < x->nneed; i++)
		if (left[x->need[i]])
			return false;
	return true;
}

/* Carry out what can be; done, left: as they are then; to, if not NULL: the actions
 * in their order.  How many. */
static int
settle_actions(const Stream *s, const bool *there, bool *done, int *left, int *to)
{
	bool more = true;
	int i, n = 0;

	while (more)
		for (more = false, i = 0; i < s->naction; i++) {
			if (done[i] || !is_ready(&s->action[i], there, left))
				continue;
			done[i] = more = true;
			if (to)
				to[n] = i;
			n++;
			if (s->action[i].let >= 0)
				left[s->action[i].let]--;
		}
	return n;
}

/* registers that hold vectors for what is not done yet */
static int
held_size(const Stream *s, const bool *there, const bool *done)
{
	bool *load = NEWN(s->a, bool, s->k->nload + 1), *needs = NEWN(s->a, bool, s->nlet + 1);
	bool *begun = NEWN(s->a, bool, s->nlet + 1);
	const Action *x;
	int i, j, n = 0;

	for (i = 0; i < s->naction; i++) {
		x = &s->action[i];
		if (x->let >= 0)
			(done[i] ? begun : needs)[x->let] = true;
		for (j = 0; !done[i] && j < x->nload; j++)
			load[x->load[j]] = true;
		for (j = 0; !done[i] && j < x->nneed; j++)
			needs[x->need[j]] = true;
	}
	for (i = 0; i < s->k->nload; i++)
		if (there[i] && load[i])
			n += load_size(s, i);
	for (i = 0; i < s->nlet; i++)
		if (begun[i] && (needs[i] || s->let[i].out))
			n += 8;
	return n;
}

/* The load after which least is held; then the one that does most. */
static int
next_load(Stream *s, const bool *done, const int *left)
{
	bool *there = NEWN(s->a, bool, s->k->nload + 1), *d = NEWN(s->a, bool, s->naction + 1);
	int *l = NEWN(s->a, int, s->nlet + 1), i, n, size, best = -1, least = 0, most = 0;

	for (i = 0; i < s->k->nload; i++) {
		if (!s->streams[i] || s->there[i])
			continue;
		memcpy(there, s->there, (size_t)s->k->nload);
		memcpy(d, done, (size_t)s->naction);
		memcpy(l, left, (size_t)s->nlet * sizeof *l);
		there[i] = true;
		n = settle_actions(s, there, d, l, NULL);
		size = held_size(s, there, d);
		if (best < 0 || size < least || (size == least && n > most)) {
			best = i;
			least = size;
			most = n;
		}
	}
	return best;
}

/* The actions to[n] become loops of eight to two dozen; one ends with a sum's last
 * term, if it can. */
static void
make_loops(Stream *s, const int *to, int n, bool *done)
{
	int i, in = 0;
	bool cut;

	for (i = 0; i < n; i++) {
		s->action[to[i]].loop = s->nloop;
		done[to[i]] = true;
		in++;
		cut = i + 1 == n || in == 24 || (in >= 8 && (s->action[to[i]].let < 0 ||
		      s->action[to[i]].let != s->action[to[i + 1]].let));
		if (!cut)
			continue;
		(void)PUSH(s->a, s->live, s->nloop, s->caploop);
		s->live[s->nloop - 1] = s->base + held_size(s, s->there, done);
		in = 0;
	}
}

static void
put_in_order(Stream *s)
{
	bool *done = NEWN(s->a, bool, s->naction + 1), *was = NEWN(s->a, bool, s->naction + 1);
	int *left = NEWN(s->a, int, s->nlet + 1), *to = NEWN(s->a, int, s->naction + 1), i, n, v;

	for (i = 0; i < s->nlet; i++)
		left[i] = s->let[i].left;
	s->there = NEWN(s->a, bool, s->k->nload + 1);
	s->order = NEWN(s->a, int, s->k->nload + 1);
	s->loop = NEWN(s->a, int, s->k->nload + 1);
	n = settle_actions(s, s->there, done, left, to);
	make_loops(s, to, n, was);
	while ((v = next_load(s, done, left)) >= 0) {
		s->order[s->norder] = v;
		s->loop[s->norder++] = s->nloop;
		s->there[v] = true;
		n = settle_actions(s, s->there, done, left, to);
		make_loops(s, to, n, was);
	}
}

/* Each load as far ahead of the loop that it is for as registers last. */
static void
place_loads(Stream *s)
{
	int i, j, size;

	s->place = NEWN(s->a, int, s->norder + 1);
	for (i = 0; i < s->norder; i++) {
		size = load_size(s, s->order[i]);
		for (j = s->loop[i]; j > 0 && s->live[j - 1] + size <= Budget; j--)
			s->live[j - 1] += size;
		s->place[i] = j;
	}
}

/* statements */

Stmt *
kern_put(Kern *k, StmtKind kind, const char *name)
{
	Stmt *t = PUSH(k->mem, k->stmt, k->nstmt, k->capstmt);

	memset(t, 0, sizeof *t);
	t->kind = kind;
	t->name = name;
	t->par = -1;
	return t;
}

static void
put_light(Stream *s, const Exp *e, bool *said)
{
	Stmt *t;
	int i;

	if (!e)
		return;
	i = e->kind == X_VAR ? find_let(s, e->name) : -1;
	if (i >= 0 && s->let[i].light && !said[i]) {
		said[i] = true;
		put_light(s, s->let[i].e, said);
		t = kern_put(s->k, S_LET, s->let[i].name);
		t->e = renamed(s, s->let[i].e);
	}
	put_light(s, e->a, said);
	put_light(s, e->b, said);
}

/* is it a number that all rows share: a let before the rows? */
static bool
is_scalar(const Stream *s, const char *name)
{
	int i;

	for (i = 0; i < s->first && s->old[i].kind != S_ROWS; i++)
		if (s->old[i].kind == S_LET && strcmp(s->old[i].name, name) == 0)
			return true;
	return false;
}

static int
scalar_place(Stream *s, const char *name)
{
	Map *m = &s->k->map;
	int i;

	for (i = 0; i < m->nscalar && strcmp(m->scalar[i], name) != 0; i++)
		;
	if (i == m->nscalar)
		*PUSH(s->k->mem, m->scalar, m->nscalar, m->capscalar) = name;
	return i;
}

/* Numbers that all rows share are read where they are used: kept over all rows they
 * would take a register each.  said: by their place. */
static void
put_scalars(Stream *s, const Exp *e, bool *said, bool *any)
{
	Stmt *t;
	int i, let;

	if (!e)
		return;
	let = e->kind == X_VAR ? find_let(s, e->name) : -1;
	if (let >= 0 && s->let[let].light)
		put_scalars(s, s->let[let].e, said, any);
	if (e->kind == X_VAR && let < 0 && is_scalar(s, e->name)) {
		i = scalar_place(s, e->name);
		if (i == MaxScalars)
			bug("lower: %s uses more than %d coefficients", s->k->name, MaxScalars);
		if (said[i])
			return;
		said[i] = true;
		if (!*any)
			kern_put(s->k, S_IF, NULL);
		*any = true;
		t = kern_put(s->k, S_LET, e->name);
		t->e = NEW(s->k->mem, Exp);
		t->e->kind = X_AGAIN;
		t->e->name = "scalars";
		t->e->par = -1;
		t->e->idx.base = i;
	}
	put_scalars(s, e->a, said, any);
	put_scalars(s, e->b, said, any);
}

static void
put_action(Stream *s, Action *x)
{
	Let *l = x->let >= 0 ? &s->let[x->let] : NULL;
	Stmt *t;

	if (!l) {
		t = kern_put(s->k, x->s.kind, x->s.name);
		*t = x->s;
	} else {
		t = kern_put(s->k, l->begun ? S_VEC_ADD : S_VEC_SET, l->vec);
		t->idx = (Idx){ 0, 0, 1 };
		t->vw = 8;
		l->begun = true;
	}
	t->e = renamed(s, x->e);
}

/* Actions of a loop in an order in which each finds what it needs: as they were
 * read, sums before what reads them. */
static void
put_loop(Stream *s, int loop, int n)
{
	bool *said = NEWN(s->a, bool, s->nlet + 1), *again = NEWN(s->a, bool, MaxScalars);
	bool block = false;
	int i, j, any = 0;
	bool more = true, wait;
	Action *x;

	for (i = 0; i < s->naction; i++)
		any += s->action[i].loop == loop;
	for (i = 0; i < s->nlet; i++)
		if (!s->let[i].light && !s->let[i].given && !s->let[i].begun)
			for (j = 0; j < s->naction; j++)
				if (s->action[j].loop == loop && s->action[j].let == i) {
					kern_put(s->k, S_VEC, s->let[i].vec)->n = n;
					break;
				}
	if (!any)
		return;
	for (i = 0; i < s->naction; i++)
		if (s->action[i].loop == loop)
			put_scalars(s, s->action[i].e, again, &block);
	kern_put(s->k, S_ELEMS, NULL)->n = n;
	while (more)
		for (more = false, i = 0; i < s->naction; i++) {
			x = &s->action[i];
			if (x->loop != loop || x->done)
				continue;
			for (wait = false, j = 0; j < x->nneed; j++)
				wait |= s->let[x->need[j]].left > 0;
			if (wait)
				continue;
			put_light(s, x->e, said);
			put_action(s, x);
			x->done = more = true;
			if (x->let >= 0)
				s->let[x->let].left--;
		}
	kern_put(s->k, S_END, NULL);
	if (block)
		kern_put(s->k, S_END, NULL);
	for (i = 0; i < s->nlet; i++)
		if (s->let[i].store >= 0 && !s->let[i].left && !s->stored[s->let[i].store]) {
			*kern_put(s->k, S_VEC_STORE, NULL) = s->old[s->let[i].store];
			s->stored[s->let[i].store] = true;
		}
}

static void
write_body(Stream *s)
{
	Stmt *old = s->k->stmt;
	int nold = s->k->nstmt, i, j, n = old[s->first].n;

	s->old = old;
	s->stored = NEWN(s->a, bool, nold + 1);
	s->k->stmt = NULL;
	s->k->nstmt = s->k->capstmt = 0;
	for (i = 0; i < s->first; i++)
		*kern_put(s->k, S_NOTE, NULL) = old[i];
	for (i = 0; i < s->nloop; i++) {
		for (j = 0; j < s->norder; j++)
			if (s->place[j] == i) {
				s->k->map.nplace++;
				kern_put(s->k, S_LOADS, NULL)->n = s->k->map.nplace + 1;
				break;
			}
		for (j = 0; j < s->norder; j++)
			if (s->place[j] == i)
				s->k->load[s->order[j]].place = s->k->map.nplace + 1;
		put_loop(s, i, n);
	}
	s->end_written = s->k->nstmt;
	for (i = s->end + 1; i < nold; i++)
		if (!s->stored[i])
			*kern_put(s->k, S_NOTE, NULL) = old[i];
}

/* loads of the body's row that nothing else uses */
static void
find_streams(Stream *s)
{
	const Kern *k = s->k;
	bool in, out;
	int i, j;

	s->streams = NEWN(s->a, bool, k->nload + 1);
	for (i = 0; i < k->nload; i++) {
		in = out = false;
		for (j = 0; j < k->nstmt; j++)
			if (exp_names(k->stmt[j].e, k->load[i].name))
				*(j > s->first && j < s->end ? &in : &out) = true;
		s->streams[i] = in && !out && k->load[i].place == 1;
	}
}

/* registers that are taken whatever the body does: loads that others use too, held
 * vectors, sums over rows */
static int
standing(const Stream *s)
{
	const Kern *k = s->k;
	const Stmt *t;
	int i, n = 0, sums = 0;

	for (i = 0; i < k->nload; i++)
		n += s->streams[i] ? 0 : load_size(s, i);
	for (i = 0; i < s->first; i++) {
		t = &k->stmt[i];
		sums += t->kind == S_ZERO;
		n += t->kind == S_VEC && t->lo ? t->n : 0;
	}
	return n + (sums > lower_few_sums ? sums / 8 + 8 : sums);
}

/* Where the statements after the body are then; end + 1 if it stays as it is. */
static int
stream_body(Kern *k, int first, int end)
{
	Stream s = { .a = arena_new("stream"), .k = k, .first = first, .end = end };
	bool ok;
	int i;

	while (end + s.nstore + 1 < k->nstmt && k->stmt[end + s.nstore + 1].kind == S_VEC_STORE)
		s.nstore++;
	find_streams(&s);
	ok = read_body(&s) && s.naction > 8;
	if (ok) {
		s.base = standing(&s);
		put_in_order(&s);
		place_loads(&s);
		write_body(&s);
		for (i = 0; i < s.nloop; i++)
			if (s.live[i] > k->map.streamed)
				k->map.streamed = s.live[i];
	}
	i = ok ? s.end_written : end + 1;
	arena_free(s.a);
	return i;
}

/* the numbers that bodies read, left in shared memory before the rows */
static void
keep_scalars(Kern *k)
{
	Map *m = &k->map;
	const Stmt *old = k->stmt;
	int nold = k->nstmt, i, j;
	bool rows = false;

	if (!m->nscalar)
		return;
	*PUSH(k->mem, m->shared, m->nshared, m->capshared) = (struct Shared){ "scalars", m->nscalar };
	k->stmt = NULL;
	k->nstmt = k->capstmt = 0;
	for (i = 0; i < nold; i++) {
		if (old[i].kind == S_ROWS) {
			kern_put(k, S_BARRIER, NULL);
			rows = true;
		}
		*kern_put(k, S_NOTE, NULL) = old[i];
		for (j = 0; !rows && old[i].kind == S_LET && j < m->nscalar; j++)
			if (strcmp(m->scalar[j], old[i].name) == 0)
				kern_put(k, S_KEEP, old[i].name)->n = j;
	}
}

void
stream(Kern *k)
{
	int i, end;

	for (i = 0; i < k->nstmt; i++) {
		if (k->stmt[i].kind != S_ELEMS)
			continue;
		for (end = i + 1; k->stmt[end].kind != S_END; end++)
			;
		i = stream_body(k, i, end) - 1;
	}
	keep_scalars(k);
}
