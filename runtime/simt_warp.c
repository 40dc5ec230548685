/* What the text of a kernel calls: barriers, warp collectives, asynchronous
 * copies.
 *
 * Lanes that meet form a group: the first to come opens it, the last one ends
 * it.  Its slots stay until each lane has come to its next collective. */
#include "simt_exec.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static Thread *
self(Worker *w)
{
	return &w->thread[w->hc.thread.x];
}

static Worker *
worker(HcSimt *h)
{
	return (Worker *)(void *)h;
}

/* the block's barrier */

/* With checks: all threads must wait at one barrier of the text, which the
 * compiler may have made several of. */
static void
check_one_barrier(Worker *w, void *const *frame)
{
	void *mine = frame[1], *other;
	Line a, b;
	int i;

	for (i = 0; i < w->nthread; i++) {
		if (w->thread[i].state != TH_BARRIER)
			continue;
		other = w->thread[i].frame[1];
		if (other == mine)
			continue;
		a = so_line(w->so, 1, &mine);
		b = so_line(w->so, 1, &other);
		if (a.line != b.line || a.inner != b.inner)
			fiber_fail(w, frame, other, ": divergent barrier",
			           "waits at __syncthreads while thread %d waits at another", i);
	}
}

static void
barrier(HcSimt *h, void *const *frame)
{
	Worker *w = worker(h);

	if (++w->nbarrier == w->nthread) {
		if (w->check) {
			check_one_barrier(w, frame);
			check_barrier(w->check, w);
		}
		w->nbarrier = 0;
		fiber_ready_all(w);
		fiber_wait(w, TH_READY, frame);
	} else {
		fiber_wait(w, TH_BARRIER, frame);
	}
}

/* warp collectives */

static void
stop_reading(Worker *w, Thread *t, unsigned bit)
{
	Group *g = t->reads;

	if (!g)
		return;
	t->reads = NULL;
	g->reading &= ~bit;
	if (g->reading == 0) {
		g->next = w->free;
		w->free = g;
	}
}

static int
ended_lane(const Worker *w, int warp, unsigned mask)
{
	int i, t;

	for (i = 0; i < WarpSize; i++) {
		t = warp * WarpSize + i;
		if ((mask >> i & 1) && (t >= w->nthread || w->thread[t].state == TH_DONE))
			return i;
	}
	return -1;
}

static Group *
open_group(Worker *w, const char *what, int nbytes, unsigned mask, bool order, void *const *frame)
{
	int warp = (int)w->hc.thread.x / WarpSize, i;
	Group *g;

	if (nbytes < 0 || nbytes > SlotBytes)
		fiber_fail(w, frame, NULL, "", "passes %d bytes to %s: more than %d", nbytes, what, SlotBytes);
	i = ended_lane(w, warp, mask);
	if (i >= 0)
		fiber_fail(w, frame, NULL, "", "calls %s with mask 0x%08x, but lane %d %s", what, mask, i,
		           warp * WarpSize + i >= w->nthread ? "is beyond the end of the block" :
		                                               "has ended");
	g = w->free;
	if (g)
		w->free = g->next;
	else
		g = NEW(w->mem, Group);
	g->what = what;
	g->nbytes = nbytes;
	g->mask = mask;
	g->arrived = g->reading = 0;
	g->order = order;
	g->next = w->open[warp];
	w->open[warp] = g;
	return g;
}

static Group *
find_group(Worker *w, const char *what, int nbytes, unsigned mask, void *const *frame)
{
	unsigned lane = w->hc.thread.x % WarpSize;
	Group *g;

	for (g = w->open[w->hc.thread.x / WarpSize]; g; g = g->next) {
		if (g->mask != mask || g->arrived >> lane & 1)
			continue;
		if (g->nbytes != nbytes || (g->what != what && strcmp(g->what, what) != 0))
			fiber_fail(w, frame, NULL, "", "calls %s (%d bytes) where other lanes of its warp "
			           "call %s (%d bytes)", what, nbytes, g->what, g->nbytes);
		return g;
	}
	return NULL;
}

static void
close_group(Worker *w, Group *g)
{
	int warp = (int)w->hc.thread.x / WarpSize, i, t;
	Group **p = &w->open[warp];
	unsigned m;

	while (*p != g)
		p = &(*p)->next;
	*p = g->next;
	g->reading = g->mask;
	for (m = g->mask; m; m &= m - 1) {
		i = __builtin_ctz(m);
		t = warp * WarpSize + i;
		w->thread[t].reads = g;
		w->thread[t].waits = NULL;
		if (t != (int)w->hc.thread.x)
			fiber_ready(w, t);
	}
	if (w->check && g->order)
		check_syncwarp(w->check, w, warp, g->mask);
}

static HcTable
collect(HcSimt *h, const char *what, const void *mine, int nbytes, unsigned mask, int order, void *const *frame)
{
	Worker *w = worker(h);
	Thread *t = self(w);
	unsigned lane = h->thread.x % WarpSize, bit = 1u << lane;
	Group *g;

	stop_reading(w, t, bit);
	if (!(mask & bit))
		fiber_fail(w, frame, NULL, "", "calls %s with mask 0x%08x, which does not name its "
		           "own lane %u", what, mask, lane);
	g = find_group(w, what, nbytes, mask, frame);
	if (!g)
		g = open_group(w, what, nbytes, mask, order || w->collectives_order, frame);
	if (nbytes == 4)
		memcpy(g->slot[lane], mine, 4);
	else if (nbytes)
		memcpy(g->slot[lane], mine, (size_t)nbytes);
	g->arrived |= bit;
	if (g->arrived == mask) {
		close_group(w, g);
	} else {
		t->waits = g;
		fiber_wait(w, TH_WARP, frame);
	}
	return (HcTable)g->slot;
}

/* A thread ends: lanes that wait for it would wait for ever. */
void
warp_leave(Worker *w, int thread)
{
	int warp = thread / WarpSize, lane = thread % WarpSize, i;
	Thread *t = &w->thread[thread];
	Group *g;

	stop_reading(w, t, 1u << lane);
	for (g = w->open[warp]; g; g = g->next) {
		if (!(g->mask >> lane & 1))
			continue;
		i = warp * WarpSize + __builtin_ctz(g->arrived);
		w->hc.thread.x = (unsigned)i;
		fiber_fail(w, w->thread[i].frame, NULL, "", "waits at %s (mask 0x%08x), but lane %d has "
		           "ended", g->what, g->mask, lane);
	}
}

void
warp_reset(Worker *w)
{
	int i;
	Group *g;

	for (i = 0; i < MaxThreads / WarpSize; i++)
		while ((g = w->open[i])) {
			w->open[i] = g->next;
			g->next = w->free;
			w->free = g;
		}
}

/* asynchronous copies */

static void
start_copy(HcSimt *h, void *smem, const void *global, int nbytes, int valid, void *const *frame)
{
	Worker *w = worker(h);
	Thread *t = self(w);
	Copy *c;

	if (w->check) {
		if (valid)
			check_access(w, global, (size_t)nbytes, HowRead, frame[1], frame);
		check_copy(w, smem, nbytes, frame[1], frame);
		if (((uintptr_t)smem | (valid ? (uintptr_t)global : 0)) % (unsigned)nbytes)
			h->fault(h, "misaligned asynchronous copy", smem, frame);
	}
	if (t->ncopy == t->capcopy) {
		t->capcopy = t->capcopy ? 2 * t->capcopy : 16;
		t->copy = realloc(t->copy, (size_t)t->capcopy * sizeof *t->copy);
		if (!t->copy)
			die("no memory for asynchronous copies");
	}
	c = &t->copy[t->ncopy++];
	*c = (Copy){ smem, global, nbytes, LONG_MAX, valid, frame[1] };
	/* who reads now sees NaN */
	memset(smem, 0xff, (size_t)nbytes);
}

static void
commit(HcSimt *h)
{
	Thread *t = self(worker(h));
	int i;

	for (i = t->ncopy; i > 0 && t->copy[i - 1].group == LONG_MAX; i--)
		t->copy[i - 1].group = t->ncommit;
	t->ncommit++;
}

static void
wait_copies(HcSimt *h, int newest, void *const *frame)
{
	Worker *w = worker(h);
	Thread *t = self(w);
	Copy *c;
	int i, n = 0;

	for (i = 0; i < t->ncopy; i++) {
		c = &t->copy[i];
		if (c->group >= t->ncommit - newest) {
			t->copy[n++] = *c;
			continue;
		}
		if (w->check)
			check_landed(w, c->smem, c->nbytes, c->pc, frame);
		if (c->valid)
			memcpy(c->smem, c->global, (size_t)c->nbytes);
		else
			memset(c->smem, 0, (size_t)c->nbytes);
	}
	t->ncopy = n;
}

/* accesses and faults */

static void
access_hook(HcSimt *h, const void *p, unsigned long nbytes, int how, void *const *frame)
{
	Worker *w = worker(h);

	if (w->check)
		check_access(w, p, nbytes, how, frame[1], frame);
}

static void
fault(HcSimt *h, const char *what, const void *p, void *const *frame)
{
	Worker *w = worker(h);
	Buf b = {0};
	char place[120] = "";

	if (p && w->check) {
		buf_puts(&b, ": ");
		check_place(w->check, w, p, &b);
		snprintf(place, sizeof place, "%s", b.s);
		buf_free(&b);
	}
	fiber_fail(w, frame, NULL, "", "%s%s", what, place);
}

void
warp_hooks(Worker *w)
{
	w->hc.barrier = barrier;
	w->hc.collect = collect;
	w->hc.access = access_hook;
	w->hc.copy = start_copy;
	w->hc.commit = commit;
	w->hc.wait = wait_copies;
	w->hc.fault = fault;
}
