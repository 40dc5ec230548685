/* What memory was touched by whom.
 *
 * Memory that kernels may touch is divided into pages, these into cells of 1
 * to 16 bytes: as small as the smallest access seen in the page.  A cell holds
 * who wrote it last and who read it, each a stamp: the time on the clock of
 * the simulation, and the thread.  Time only grows, so nothing is cleared
 * between barriers, blocks or launches: a stamp older than the last barrier is
 * ordered before all that follows, one older than the block belongs to another
 * block.  Within the time between two barriers only __syncwarp orders, and a
 * thread knows up to what time it has met each lane of its warp. */
#include "simt_exec.h"

#include <stdlib.h>
#include <string.h>

enum {
	PageBits = 12, PageBytes = 1 << PageBits,
	MaxShift = 4,           /* cells of 16 bytes */
	ThreadBits = 10,
	NHint = 256
};

/* in Cell.wpc: an asynchronous copy has not landed; written by an atomic */
#define Pending 0x80000000u
#define Atomic 0x40000000u

/* r1: the last reader.  r2: the last other lane of r1's warp.  r3: the last
 * reader of another warp, or else one of an earlier block of the launch.  pc:
 * offsets in the object. */
typedef struct {
	uint64_t w, r1, r2, r3;
	uint32_t wpc, pc1, pc2, pc3;
} Cell;

typedef struct { int shift; Cell cell[]; } Page;

typedef struct {
	const char *name;
	uintptr_t lo, hi;
	bool writable, shared;
	Page **page;
} Region;

typedef struct { uint64_t clock; long block; } Start;

struct Check {
	uint64_t clock, base, block_start, launch_start;
	Region fixed, dynamic;  /* shared memory */
	Region *region;         /* in the order of addresses */
	int nregion, cap;
	Region *hint[NHint];    /* by return address */
	Start *start;
	long nstart, capstart;
	SimtBytes bytes;
	uint64_t met[MaxThreads][WarpSize];
};

static void *
new(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	if (!p)
		die("no memory to watch what a kernel touches");
	return p;
}

/* ranges */

static void
region_open(Region *r, const char *name, uintptr_t lo, size_t nbytes, bool writable)
{
	*r = (Region){ .name = name, .lo = lo, .hi = lo + nbytes, .writable = writable };
	r->page = new((nbytes >> PageBits) + 2, sizeof *r->page);
}

static void
region_close(Region *r, size_t nbytes)
{
	size_t i;

	for (i = 0; r->page && i < (nbytes >> PageBits) + 2; i++)
		free(r->page[i]);
	free(r->page);
}

Check *
check_new(void)
{
	Check *c = new(1, sizeof *c);

	region_open(&c->fixed, "shared memory", 0, MaxShared, true);
	region_open(&c->dynamic, "dynamic shared memory", 0, MaxShared, true);
	c->fixed.shared = c->dynamic.shared = true;
	return c;
}

void
check_memory_clear(Check *c)
{
	int i;

	for (i = 0; i < c->nregion; i++)
		region_close(&c->region[i], c->region[i].hi - c->region[i].lo);
	c->nregion = 0;
	memset(c->hint, 0, sizeof c->hint);
}

void
check_free(Check *c)
{
	check_memory_clear(c);
	region_close(&c->fixed, MaxShared);
	region_close(&c->dynamic, MaxShared);
	free(c->region);
	free(c->start);
	free(c);
}

void
check_memory(Check *c, const char *name, void *p, size_t nbytes, bool writable)
{
	uintptr_t lo = (uintptr_t)p;
	int i = c->nregion;

	if (nbytes == 0)
		return;
	if (c->nregion == c->cap) {
		c->cap = c->cap ? 2 * c->cap : 16;
		c->region = realloc(c->region, (size_t)c->cap * sizeof *c->region);
		if (!c->region)
			die("no memory for %d ranges", c->cap);
	}
	for (; i > 0 && c->region[i - 1].lo > lo; i--)
		c->region[i] = c->region[i - 1];
	if ((i > 0 && c->region[i - 1].hi > lo) || (i < c->nregion && c->region[i + 1].lo < lo + nbytes))
		bug("simt: the range %s overlaps another", name);
	region_open(&c->region[i], name, lo, nbytes, writable);
	c->nregion++;
	memset(c->hint, 0, sizeof c->hint);
}

static bool
holds(const Region *r, uintptr_t a)
{
	return a - r->lo < r->hi - r->lo;
}

/* The last region that begins at or before a, or -1. */
static int
region_before(const Check *c, uintptr_t a)
{
	int lo = -1, hi = c->nregion, mid;

	while (hi - lo > 1) {
		mid = lo + (hi - lo) / 2;
		if (c->region[mid].lo <= a)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

static Region *
region_of(Check *c, uintptr_t a, const void *pc)
{
	Region **hint = &c->hint[((uintptr_t)pc ^ (uintptr_t)pc >> 8) % NHint];
	int i;

	if (*hint && holds(*hint, a))
		return *hint;
	if (holds(&c->fixed, a))
		return *hint = &c->fixed;
	if (holds(&c->dynamic, a))
		return *hint = &c->dynamic;
	i = region_before(c, a);
	if (i < 0 || !holds(&c->region[i], a))
		return NULL;
	return *hint = &c->region[i];
}

/* what is said of an address */

static void
place_param(const Worker *w, uintptr_t a, const Region *r, Buf *b)
{
	uintptr_t p, best = 0;
	int i, which = -1;

	for (i = 0; i < w->k->nparam && w->k->param; i++) {
		p = (uintptr_t)w->arg[i].p;
		if (p >= r->lo && p <= a && p >= best) {
			best = p;
			which = i;
		}
	}
	if (which >= 0)
		buf_printf(b, " (%s+%zu)", w->k->param[which], (size_t)(a - best));
}

static void
place_near(const Region *r, uintptr_t a, const Worker *w, Buf *b)
{
	if (a >= r->hi)
		buf_printf(b, "%s+%zu, past its %zu bytes", r->name, (size_t)(a - r->lo), (size_t)(r->hi - r->lo));
	else if (a < r->lo)
		buf_printf(b, "%s-%zu, before its first byte", r->name, (size_t)(r->lo - a));
	else
		buf_printf(b, "%s+%zu", r->name, (size_t)(a - r->lo));
	if (!r->shared)
		place_param(w, a, r, b);
}

void
check_place(const Check *c, const Worker *w, const void *p, Buf *b)
{
	const Region *near[4] = { &c->fixed, &c->dynamic }, *best = NULL;
	uintptr_t a = (uintptr_t)p, d, least = 1 << 16;
	int i, k = region_before(c, a);

	near[2] = k >= 0 ? &c->region[k] : NULL;
	near[3] = k + 1 < c->nregion ? &c->region[k + 1] : NULL;
	for (i = 0; i < 4; i++) {
		if (!near[i] || near[i]->hi == near[i]->lo)
			continue;
		d = a < near[i]->lo ? near[i]->lo - a : a < near[i]->hi ? 0 : a - near[i]->hi + 1;
		if (d < least) {
			least = d;
			best = near[i];
		}
	}
	if (a < PageBytes)
		buf_printf(b, "null+%zu", (size_t)a);
	else if (a - (uintptr_t)w->stacks < (uintptr_t)MaxThreads * StackBytes)
		buf_puts(b, "a local variable of another thread");
	else if (best)
		place_near(best, a, w, b);
	else
		buf_printf(b, "address 0x%zx, in no range", (size_t)a);
}

static const char *
verb(int how)
{
	return how == HowRead ? "reads" : how == HowWrite ? "writes" : "updates";
}

static _Noreturn void
outside(Worker *w, const void *p, size_t nbytes, int how, const Region *r, void *const *frame)
{
	Buf b = {0};
	char s[160];

	check_place(w->check, w, p, &b);
	if (r && holds(r, (uintptr_t)p))
		buf_printf(&b, ", across the end at %zu", (size_t)(r->hi - r->lo));
	snprintf(s, sizeof s, "%s", b.s);
	buf_free(&b);
	fiber_fail(w, frame, NULL, "", "%s %zu bytes out of bounds: %s", verb(how), nbytes, s);
}

/* stamps */

static uint64_t
stamp_now(const Worker *w)
{
	return w->thread[w->hc.thread.x].clock << ThreadBits | w->hc.thread.x;
}

static int
stamp_thread(uint64_t s)
{
	return (int)(s & (MaxThreads - 1));
}

static long
block_of(const Check *c, uint64_t clock)
{
	long lo = 0, hi = c->nstart, mid;

	while (hi - lo > 1) {
		mid = lo + (hi - lo) / 2;
		if (c->start[mid].clock <= clock)
			lo = mid;
		else
			hi = mid;
	}
	return c->start[lo].block;
}

typedef struct {
	Worker *w;
	Region *r;
	uintptr_t a;
	size_t nbytes;
	int how;
	uint64_t now;
	uint32_t pc;
	void *const *frame;
} Touch;

/* Nothing orders what was stamped s before what the running thread does. */
static bool
unordered(const Check *c, const Touch *t, uint64_t s)
{
	uint64_t clock = s >> ThreadBits;
	int other = stamp_thread(s), self = stamp_thread(t->now);

	if (clock < c->block_start)
		return clock >= c->launch_start && !t->r->shared;
	if (other == self || clock < c->base)
		return false;
	return other / WarpSize != self / WarpSize || c->met[self][other % WarpSize] < clock;
}

static const char between[] = ", with no barrier between";
static const char copying[] = "fills by an asynchronous copy";

static _Noreturn void
conflict(const Touch *t, uint64_t with, uint32_t pc, const char *did, const char *tail)
{
	Worker *w = t->w;
	const Check *c = w->check;
	uint64_t clock = with >> ThreadBits;
	Buf b = {0};
	char s[160], who[60];

	check_place(c, w, (const void *)t->a, &b);
	snprintf(s, sizeof s, "%s", b.s);
	buf_free(&b);
	if (clock < c->block_start)
		snprintf(who, sizeof who, "block %ld", block_of(c, clock));
	else
		snprintf(who, sizeof who, "thread %d", stamp_thread(with));
	fiber_fail(w, t->frame, w->so->lo + (pc & ~(Pending | Atomic)),
	           clock < c->block_start ? "" : tail,
	           "%s %zu bytes at %s, which %s %s", verb(t->how), t->nbytes, s, who, did);
}

/* cells */

static Page *
page_new(int shift)
{
	Page *p = new(1, sizeof *p + ((size_t)PageBytes >> shift) * sizeof(Cell));

	p->shift = shift;
	return p;
}

/* What is known of a cell holds for its parts. */
static Page *
page_split(Page *old, int shift)
{
	Page *p = page_new(shift);
	size_t i, n = (size_t)PageBytes >> shift;

	for (i = 0; i < n; i++)
		p->cell[i] = old->cell[i >> (old->shift - shift)];
	free(old);
	return p;
}

/* The cells of a part of an access within one page. */
static Cell *
cells(Region *r, uintptr_t a, size_t nbytes, size_t *n, size_t *size)
{
	Page **p = &r->page[(a >> PageBits) - (r->lo >> PageBits)];
	int shift = __builtin_ctzl(a | nbytes | 1 << MaxShift);

	if (!*p)
		*p = page_new(shift);
	else if ((*p)->shift > shift)
		*p = page_split(*p, shift);
	shift = (*p)->shift;
	*n = nbytes >> shift;
	*size = (size_t)1 << shift;
	return &(*p)->cell[(a & (PageBytes - 1)) >> shift];
}

static bool
same_warp(uint64_t a, uint64_t b)
{
	return stamp_thread(a) / WarpSize == stamp_thread(b) / WarpSize;
}

static void
note_reader(const Check *c, const Touch *t, Cell *x)
{
	uint64_t block = c->block_start << ThreadBits;
	uint64_t launch = t->r->shared ? block : c->launch_start << ThreadBits;
	bool keep = x->r3 >= launch && x->r3 < block;
	uint64_t r2 = 0;
	uint32_t pc2 = 0;

	if (x->r1 >= block && stamp_thread(x->r1) == stamp_thread(t->now)) {
		x->r1 = t->now;
		x->pc1 = t->pc;
		return;
	}
	if (x->r1 >= block && same_warp(x->r1, t->now)) {
		r2 = x->r1;
		pc2 = x->pc1;
	} else if (x->r1 >= launch) {
		if (x->r3 >= block && same_warp(x->r3, t->now) && stamp_thread(x->r3) != stamp_thread(t->now)) {
			r2 = x->r3;
			pc2 = x->pc3;
		}
		if (!keep) {
			x->r3 = x->r1;
			x->pc3 = x->pc1;
		}
	}
	x->r2 = r2;
	x->pc2 = pc2;
	x->r1 = t->now;
	x->pc1 = t->pc;
}

static void
cell_read(Check *c, const Touch *t, Cell *x, size_t size)
{
	if (t->r->shared) {
		if (x->w >> ThreadBits < c->block_start)
			fiber_fail(t->w, t->frame, NULL, "", "reads %zu bytes at %s+%zu, which no thread of "
			           "the block has written", t->nbytes, t->r->name, (size_t)(t->a - t->r->lo));
		if (x->wpc & Pending)
			conflict(t, x->w, x->wpc, copying, ": not yet waited for");
	} else if (x->r1 >> ThreadBits < c->launch_start) {
		c->bytes.load_unique += (double)size;
	}
	if (unordered(c, t, x->w))
		conflict(t, x->w, x->wpc, "wrote", between);
	note_reader(c, t, x);
}

static void
cell_write(Check *c, const Touch *t, Cell *x, size_t size)
{
	bool atomic = t->how == HowAtomic;

	if (!t->r->shared && x->w >> ThreadBits < c->launch_start)
		c->bytes.store_unique += (double)size;
	if (x->w >> ThreadBits >= c->block_start && x->wpc & Pending)
		conflict(t, x->w, x->wpc, copying, ": not yet waited for");
	if (!(atomic && x->wpc & Atomic) && unordered(c, t, x->w))
		conflict(t, x->w, x->wpc, "wrote", between);
	if (unordered(c, t, x->r1))
		conflict(t, x->r1, x->pc1, "read", between);
	if (unordered(c, t, x->r2))
		conflict(t, x->r2, x->pc2, "read", between);
	if (unordered(c, t, x->r3))
		conflict(t, x->r3, x->pc3, "read", between);
	x->w = t->now;
	x->wpc = t->pc | (atomic ? Atomic : 0);
}

static void
touch(Check *c, const Touch *t, uint32_t flag)
{
	uintptr_t a = t->a, end = t->a + t->nbytes;
	size_t part, n, size, i;
	Cell *x;

	for (; a < end; a += part) {
		part = PageBytes - (a & (PageBytes - 1));
		part = part < end - a ? part : end - a;
		x = cells(t->r, a, part, &n, &size);
		for (i = 0; i < n; i++) {
			if (t->how == HowRead)
				cell_read(c, t, &x[i], size);
			else
				cell_write(c, t, &x[i], size);
			if (flag)
				x[i].wpc |= flag;
		}
	}
}

/* Constants of the text, and what the lane's last collective gave it. */
static bool
may_read(const Worker *w, const char *p, size_t nbytes)
{
	const Group *g = w->thread[w->hc.thread.x].reads;
	const char *slot = g ? (const char *)g->slot : NULL;

	return (p >= w->so->lo && p + nbytes <= w->so->constants) ||
	       (g && p >= slot && p + nbytes <= slot + sizeof g->slot);
}

static void
access_cells(Worker *w, const void *p, size_t nbytes, int how, void *pc, void *const *frame, uint32_t flag)
{
	Check *c = w->check;
	Touch t = { w, NULL, (uintptr_t)p, nbytes, how, stamp_now(w),
	            (uint32_t)((char *)pc - w->so->lo), frame };
	uintptr_t off = t.a - w->hc.stack;

	if (nbytes == 0 || (off < StackBytes && off + nbytes <= StackBytes))
		return;
	t.r = region_of(c, t.a, pc);
	if (!t.r && how == HowRead && may_read(w, p, nbytes))
		return;
	if (!t.r || nbytes > t.r->hi - t.a)
		outside(w, p, nbytes, how, t.r, frame);
	if (how != HowRead && !t.r->writable) {
		Buf b = {0};
		char s[160];

		check_place(c, w, p, &b);
		snprintf(s, sizeof s, "%s", b.s);
		buf_free(&b);
		fiber_fail(w, frame, NULL, "", "%s %zu bytes at %s, which is read-only", verb(how), nbytes, s);
	}
	if (!t.r->shared && how != HowWrite)
		c->bytes.load_issued += (double)nbytes;
	if (!t.r->shared && how != HowRead)
		c->bytes.store_issued += (double)nbytes;
	touch(c, &t, flag);
}

void
check_access(Worker *w, const void *p, size_t nbytes, int how, void *pc, void *const *frame)
{
	access_cells(w, p, nbytes, how, pc, frame, 0);
}

/* asynchronous copies */

void
check_copy(Worker *w, const void *p, int nbytes, void *pc, void *const *frame)
{
	Check *c = w->check;
	uintptr_t a = (uintptr_t)p;
	Buf b = {0};
	char s[160];

	if (!holds(&c->fixed, a) && !holds(&c->dynamic, a)) {
		check_place(c, w, p, &b);
		snprintf(s, sizeof s, "%s", b.s);
		buf_free(&b);
		fiber_fail(w, frame, NULL, "", "copies asynchronously to what is not shared memory: %s", s);
	}
	access_cells(w, p, (size_t)nbytes, HowWrite, pc, frame, Pending);
}

void
check_landed(Worker *w, const void *p, int nbytes, void *pc, void *const *frame)
{
	Check *c = w->check;
	uintptr_t a = (uintptr_t)p, end = a + (size_t)nbytes;
	uint32_t at = (uint32_t)((char *)pc - w->so->lo);
	size_t part, n, size, i;
	Cell *x;

	(void)frame;
	for (; a < end; a += part) {
		part = PageBytes - (a & (PageBytes - 1));
		part = part < end - a ? part : end - a;
		x = cells(region_of(c, a, pc), a, part, &n, &size);
		for (i = 0; i < n; i++) {
			x[i].w = stamp_now(w);
			x[i].wpc = at;
		}
	}
}

/* time */

void
check_launch(Check *c, Worker *w)
{
	c->launch_start = ++c->clock;
	c->nstart = 0;
	memset(&c->bytes, 0, sizeof c->bytes);
	memset(c->hint, 0, sizeof c->hint);
	c->fixed.lo = (uintptr_t)w->so->shared_lo;
	c->fixed.hi = (uintptr_t)w->so->shared_hi;
	c->dynamic.lo = (uintptr_t)w->hc.dynamic;
	c->dynamic.hi = c->dynamic.lo + w->ndynamic;
}

void
check_barrier(Check *c, Worker *w)
{
	int i;

	c->base = ++c->clock;
	for (i = 0; i < w->nthread; i++)
		w->thread[i].clock = c->base;
}

/* Shared memory begins as NaN. */
void
check_block(Check *c, Worker *w)
{
	check_barrier(c, w);
	c->block_start = c->base;
	if (c->nstart == c->capstart) {
		c->capstart = c->capstart ? 2 * c->capstart : 64;
		c->start = realloc(c->start, (size_t)c->capstart * sizeof *c->start);
		if (!c->start)
			die("no memory for the blocks of a launch");
	}
	c->start[c->nstart++] = (Start){ c->base, w->block };
	if (c->fixed.hi > c->fixed.lo)
		memset((void *)c->fixed.lo, 0xff, c->fixed.hi - c->fixed.lo);
	memset((void *)c->dynamic.lo, 0xff, c->dynamic.hi - c->dynamic.lo);
}

void
check_syncwarp(Check *c, Worker *w, int warp, unsigned mask)
{
	uint64_t all[WarpSize] = {0}, seen;
	int i, j, t;

	for (i = 0; i < WarpSize; i++) {
		if (!(mask >> i & 1))
			continue;
		t = warp * WarpSize + i;
		c->met[t][i] = w->thread[t].clock;
		for (j = 0; j < WarpSize; j++) {
			seen = c->met[t][j];
			all[j] = seen > all[j] ? seen : all[j];
		}
	}
	c->clock++;
	for (i = 0; i < WarpSize; i++) {
		if (!(mask >> i & 1))
			continue;
		t = warp * WarpSize + i;
		memcpy(c->met[t], all, sizeof all);
		w->thread[t].clock = c->clock;
	}
}

void
check_bytes(const Check *c, SimtBytes *b)
{
	*b = c->bytes;
}
