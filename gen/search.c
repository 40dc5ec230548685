/* Terms -> Decisions: what every slot stores.
 *
 * Dynamic programming along depth.  A state says which stored vectors each live
 * node is made of; from each state of a slot every combination of choices leads
 * to one of the next.  Of equal states the cheapest stays, and a state goes if
 * another costs no more and needs no vector that it does not need.  Of what is
 * left as many go on as the time allows (`beam_of`).
 *
 * The forward pass is decided first, with what the backward pass will have to
 * load for it (slot_later) in its cost.  Everything is in order of numbers:
 * the same spec gives the same plan. */
#include "search.h"

#include <stdlib.h>
#include <string.h>

enum { MaxCombos = 96, BeamStates = 2600, MinBeam = 28, NarrowBeam = 6 };

/* a way from a state of the slot before to one of this slot */
typedef struct {
	double bound;           /* cost, and what the backward pass will load */
	double rank;            /* with what live forms will load once at least */
	int from, order;
	uint8_t choice[MaxCands];
	int form;               /* of the first live node, in Search */
} Move;

typedef struct {
	Machine *k;
	int beam;               /* states that go on; 0: all that differ */
	int nstate, capstate;
	State **state;          /* of all slots; prev is an index */
	double *bound;
	int capbound, nbound;
	int from, to;           /* states of the slot before */
	int nlive, *live;       /* nodes whose forms matter later */
	int nstep, capstep;
	Move *step;
	int capkept;
	Move *kept;
	int nform, capform, *form;      /* of the live nodes, of each move */
} Search;

/* nodes whose forms after slot t decide what later slots cost */
static void
find_live(Search *s, int t)
{
	const Terms *m = s->k->m;
	const Slot *p = &m->slot[t];
	const Node *x;
	int i, last;

	s->nlive = 0;
	for (i = 0; i < m->nnode; i++) {
		x = &m->node[i];
		last = t < m->first_bwd && s->beam ? x->last_fwd : x->last;
		if (x->slot <= t && last > t && x->kind != NODE_MEM && x->kind != NODE_FREE)
			s->live[s->nlive++] = i;
	}
	for (i = 0; i < p->npend; i++)
		s->live[s->nlive++] = p->pend[i];
}

static void
step_add(Search *s, const State *x, int from, double bound, const uint8_t *choice)
{
	Arena *a = s->k->a;
	Move *p = PUSH(a, s->step, s->nstep, s->capstep);
	int i;

	p->bound = bound;
	p->rank = bound + slot_ahead(s->k, x, s->live, s->nlive);
	p->from = from;
	p->order = s->nstep;
	memcpy(p->choice, choice, MaxCands);
	p->form = s->nform;
	for (i = 0; i < s->nlive; i++)
		*PUSH(a, s->form, s->nform, s->capform) = x->form[s->live[i]];
}

/* the group that candidate i is decided with, where there are too many to decide
 * each for itself: made here, pending, gradient of a source */
static int
group_of(const Machine *m, int i, int t)
{
	const Node *x = &m->m->node[m->cand[i]];

	return x->slot == t ? 0 : x->source_grad ? 2 : 1;
}

/* Every combination of the options of few candidates. */
static bool
next_choice(const Machine *m, const int *nopt, uint8_t (*opt)[3], int step, uint8_t *choice)
{
	int i;

	for (i = 0; i < m->ncand; step /= nopt[i++])
		choice[i] = opt[i][step % nopt[i]];
	return step == 0;
}

/* The same for all of a group, 18 ways. */
static void
group_choice(const Machine *m, int t, const int *nopt, uint8_t (*opt)[3], int step,
             uint8_t *choice)
{
	int of[3] = { step % 2, step / 2 % 3, step / 6 }, i, x;

	for (i = 0; i < m->ncand; i++) {
		x = of[group_of(m, i, t)];
		choice[i] = opt[i][x < nopt[i] ? x : nopt[i] - 1];
	}
}

/* a move to state x, which slot_run has just made */
static double
add_move(Search *s, int from, int t, const uint8_t *choice, const State *x)
{
	Machine *k = s->k;
	double bound;

	bound = s->bound[from] + x->cost - s->state[from]->cost + x->work -
	        s->state[from]->work + (s->beam ? slot_later(k, x, t) : 0);
	step_add(s, x, from, bound, choice);
	return bound;
}

static double
try_choice(Search *s, int from, int t, const uint8_t *choice, State *x)
{
	slot_run(s->k, s->state[from], t, choice, x);
	return add_move(s, from, t, choice, x);
}

/* too many to combine: by groups, and the best of these with one exception */
static void
by_groups(Search *s, int from, int t, const int *nopt, uint8_t (*opt)[3], State *x)
{
	uint8_t tried[18][MaxCands] = {{0}}, *choice, best[MaxCands] = {0};
	double bound, least = 1e301;
	int step, n = 0, i, j;

	for (step = 0; step < 18; step++) {
		choice = tried[n];
		group_choice(s->k, t, nopt, opt, step, choice);
		for (i = 0; i < n && memcmp(tried[i], choice, MaxCands) != 0; i++)
			;
		if (i < n)
			continue;
		n++;
		bound = try_choice(s, from, t, choice, x);
		if (bound >= least)
			continue;
		least = bound;
		memcpy(best, choice, sizeof best);
	}
	choice = tried[0];
	for (i = 0; i < s->k->ncand; i++)
		for (j = 0; j < nopt[i]; j++) {
			memcpy(choice, best, sizeof best);
			choice[i] = opt[i][j];
			if (choice[i] != best[i])
				(void)try_choice(s, from, t, choice, x);
		}
}

static void
from_state(Search *s, int from, int t, State *x)
{
	Machine *k = s->k;
	uint8_t choice[MaxCands] = {0}, opt[MaxCands][3];
	int nopt[MaxCands], step, combos = 1, i;

	slot_candidates(k, t);
	slot_run(k, s->state[from], t, choice, x);
	slot_options(k, x, t, nopt, opt);
	for (i = 0; i < k->ncand && combos <= MaxCombos; i++)
		combos *= nopt[i];
	if (combos > MaxCombos) {
		by_groups(s, from, t, nopt, opt, x);
		return;
	}
	(void)next_choice(k, nopt, opt, 0, choice);
	if (memcmp(choice, (const uint8_t[MaxCands]){0}, sizeof choice) == 0)
		(void)add_move(s, from, t, choice, x);          /* x is that already */
	else
		(void)try_choice(s, from, t, choice, x);
	for (step = 1; next_choice(k, nopt, opt, step, choice); step++)
		(void)try_choice(s, from, t, choice, x);
}

static int
by_bound(const void *a, const void *b)
{
	const Move *x = a, *y = b;

	return x->bound < y->bound ? -1 : x->bound > y->bound ? 1 : x->order - y->order;
}

static int
by_rank(const void *a, const void *b)
{
	const Move *x = a, *y = b;

	return x->rank < y->rank ? -1 : x->rank > y->rank ? 1 : x->order - y->order;
}

/* Does a state that costs no more need no vector that this one does not need? */
static bool
is_needless(const Search *s, const Move *x, const Move *kept)
{
	const int *a = s->form + kept->form, *b = s->form + x->form;
	int i;

	if (kept->bound > x->bound)
		return false;
	for (i = 0; i < s->nlive; i++)
		if (s->beam ? !set_within(s->k, a[i], b[i]) : a[i] != b[i])
			return false;
	return true;
}

static int
keep_some(Search *s, int n, int most)
{
	Move *kept = s->kept;
	int i, j;

	for (i = 0; i < s->nstep && (!most || n < most); i++) {
		for (j = 0; j < n && !is_needless(s, &s->step[i], &kept[j]); j++)
			;
		if (j == n)
			kept[n++] = s->step[i];
	}
	return n;
}

/* Half of those that go on are the cheapest so far, half the cheapest with what
 * they will load for sure. */
static void
keep_best(Search *s, int t, int beam)
{
	Arena *a = s->k->a;
	int i, n;
	State *x;

	if (s->nstep > s->capkept) {
		s->capkept = 2 * s->nstep;
		s->kept = NEWN(a, Move, s->capkept);
	}
	qsort(s->step, (size_t)s->nstep, sizeof *s->step, by_bound);
	n = keep_some(s, 0, (beam + 1) / 2);
	if (beam > 1) {
		qsort(s->step, (size_t)s->nstep, sizeof *s->step, by_rank);
		n = keep_some(s, n, beam);
	}
	slot_candidates(s->k, t);
	for (i = 0; i < n; i++) {
		x = state_start(s->k);
		x->prev = s->kept[i].from;
		x->choice = NEWN(a, uint8_t, MaxCands);
		memcpy(x->choice, s->kept[i].choice, MaxCands);
		slot_run(s->k, s->state[x->prev], t, x->choice, x);
		*PUSH(a, s->state, s->nstate, s->capstate) = x;
		*PUSH(a, s->bound, s->nbound, s->capbound) = s->kept[i].bound;
	}
	s->nstep = s->nform = 0;
}

static void
replay(Search *s, Arena *a, Decisions *d, int best)
{
	Machine *k = s->k;
	int t, i, *path = NEWN(k->a, int, k->m->nslot + 1);
	State *x = state_start(k), *y = state_start(k), *z;

	for (t = k->m->nslot, i = best; t >= 0; t--, i = s->state[i]->prev)
		path[t] = i;
	k->log = d;
	k->a = a;               /* the log stays */
	for (t = 0; t < k->m->nslot; t++) {
		slot_candidates(k, t);
		slot_run(k, x, t, s->state[path[t + 1]]->choice, y);
		d->crowded |= k->crowded;
		for (i = 0; i < k->ncand; i++)
			if (s->state[path[t + 1]]->choice[i] != LEAVE)
				*PUSH(a, d->choice, d->nchoice, d->capchoice) = (Choice){
				        t, k->cand[i], s->state[path[t + 1]]->choice[i] };
		z = x;
		x = y;
		y = z;
	}
	k->log = NULL;
	d->nbytes = x->cost;
	d->work = x->work;
}

Decisions *
search(Arena *a, const Terms *m, int beam)
{
	Decisions *d = NEW(a, Decisions);
	Arena *own = arena_new("search");
	Search s = { .k = machine_new(own, m), .beam = beam };
	State *x = state_start(s.k);
	int t, i;

	s.live = NEWN(own, int, 2 * m->nnode + 1);
	*PUSH(own, s.state, s.nstate, s.capstate) = state_start(s.k);
	*PUSH(own, s.bound, s.nbound, s.capbound) = 0;
	s.to = 1;
	for (t = 0; t < m->nslot; t++) {
		find_live(&s, t);
		for (i = s.from; i < s.to; i++)
			from_state(&s, i, t, x);
		keep_best(&s, t, t == m->nslot - 1 || (t == m->first_bwd - 1 && beam) ? 1 : beam);
		s.from = s.to;
		s.to = s.nstate;
	}
	replay(&s, a, d, s.from);
	arena_free(own);
	return d;
}

int
beam_of(const Terms *m)
{
	int n = BeamStates / (m->nslot + 1);

	return n < MinBeam ? MinBeam : n;
}

/* another way to see the graph, if its plan is cheaper */
static Terms *
better(Arena *a, const Graph *g, const Knobs *k, bool apart, Terms *m, Decisions **d)
{
	Terms *other = terms_of(a, g, k, apart);
	Decisions *e;

	if (k->sources == SOURCES_PRECOMPUTE && !other->nahead)
		return m;
	/* a narrow look first: ahead is most often clearly no better */
	e = search(a, other, k->sources == SOURCES_PRECOMPUTE ? NarrowBeam : beam_of(other));
	if (e->nbytes + e->work > 1.02 * ((*d)->nbytes + (*d)->work))
		return m;
	if (k->sources == SOURCES_PRECOMPUTE)
		e = search(a, other, beam_of(other));
	if (e->nbytes + e->work >= (*d)->nbytes + (*d)->work)
		return m;
	*d = e;
	return other;
}

Terms *
search_best(Arena *a, const Graph *g, const Knobs *knob, Decisions **d)
{
	static const char *const prog[] = { "train", "eval", "logits" };
	Knobs k = *knob;
	bool apart;
	Terms *m;

	if (k.locked) {
		k.sources = lock_view(k.locked, prog[g->mode], &apart) ? SOURCES_PRECOMPUTE :
		            SOURCES_INLINE;
		m = terms_of(a, g, &k, apart);
		lock_apply(m, k.locked, prog[g->mode]);
		*d = search(a, m, 1);
		return m;
	}
	k.sources = k.sources == SOURCES_AUTO ? SOURCES_INLINE : k.sources;
	m = terms_of(a, g, &k, false);
	*d = search(a, m, beam_of(m));
	/* with one lane or two the last kernel holds what it loads */
	if ((*d)->crowded && g->model->n > 2)
		m = better(a, g, &k, true, m, d);
	if (knob->sources != SOURCES_AUTO || g->mode != GRAPH_TRAIN)
		return m;
	k.sources = SOURCES_PRECOMPUTE;
	return better(a, g, &k, m->apart, m, d);
}

Graph *
plan_search(Arena *a, const Graph *g, const Knobs *knob, Buf *lock)
{
	static const char *const prog[] = { "train", "eval", "logits" };
	Decisions *d;
	Terms *m;

	m = search_best(a, g, knob, &d);
	if (lock)
		lock_print(m, d, prog[g->mode], lock);
	return rewrite(a, g, m, d);
}
