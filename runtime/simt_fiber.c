/* The threads of a block as fibers.
 *
 * A fiber runs a thread to its end and then, on the same stack, the next one
 * that has not begun; only a thread that waits costs a stack and a switch.
 * Fibers switch to each other directly; the worker's own stack is entered when
 * no thread can run. */
#define _GNU_SOURCE
#include "simt_exec.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Boost.Context */
typedef struct { void *context, *data; } Transfer;
static Transfer (*jump)(void *to, void *data);
static void *(*make)(void *top, size_t nbytes, void (*fn)(Transfer));

/* Calls jump.  It leaves by a jump to its return address, which puts a CPU's
 * prediction of all later returns out of step by one: a third of the time of a
 * kernel with barriers.  So it is entered by a jump, too.  128 bytes below the
 * stack pointer may be in use. */
static inline void *
jump_evenly(void *to, void *data)
{
#ifdef __x86_64__
	register void *a __asm__("rdi") = to;
	register void *b __asm__("rsi") = data;
	register void *fn __asm__("r11") = *(void **)&jump;
	void *from;

	__asm__ volatile("leaq -128(%%rsp), %%rsp\n\tleaq 1f(%%rip), %%rax\n\tpushq %%rax\n\t"
	                 "jmp *%%r11\n1:\tleaq 128(%%rsp), %%rsp"
	                 : "=&a"(from), "+r"(a), "+r"(b), "+r"(fn) :
	                 : "rcx", "rdx", "r8", "r9", "r10", "cc", "memory", "xmm0", "xmm1", "xmm2",
	                   "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
	                   "xmm12", "xmm13", "xmm14", "xmm15");
	return from;
#else
	return jump(to, data).context;
#endif
}

static void
open_boost(void)
{
	static const char *const name[] = {
		"libboost_context.so.1.74.0", "libboost_context.so.1.81.0",
		"libboost_context.so.1.83.0", "libboost_context.so.1.88.0",
		"libboost_context.so.1.90.0", "libboost_context.so"
	};
	void *so = NULL;
	size_t i;

	for (i = 0; !so && i < sizeof name / sizeof *name; i++)
		so = dlopen(name[i], RTLD_NOW | RTLD_LOCAL);
	if (!so)
		return;
	*(void **)&make = dlsym(so, "make_fcontext");
	*(void **)&jump = dlsym(so, "jump_fcontext");
}

const char *
fiber_missing(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, open_boost);
	return make && jump ? NULL :
	       "libboost_context was not found: apt-get install libboost-context1.74.0 "
	       "(or libboost-context-dev, whichever version)";
}

/* which thread is next */

uint64_t
simt_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void
shuffle(Worker *w)
{
	int i, j, t;

	w->pos = 0;
	if (!w->random)
		return;
	for (i = w->nthread - 1; i > 0; i--) {
		j = (int)(simt_random(&w->random) % (unsigned)(i + 1));
		t = w->order[i];
		w->order[i] = w->order[j];
		w->order[j] = t;
	}
}

/* -1: none can run */
static int
next_thread(Worker *w)
{
	int t;

	if (w->nready == 0)
		return -1;
	for (;;) {
		while (w->pos < w->nthread) {
			t = w->order[w->pos++];
			if (w->thread[t].state != TH_READY)
				continue;
			w->thread[t].state = TH_RUNNING;
			w->nready--;
			return t;
		}
		shuffle(w);
	}
}

void
fiber_ready(Worker *w, int thread)
{
	w->thread[thread].state = TH_READY;
	w->nready++;
}

void
fiber_ready_all(Worker *w)
{
	int i;

	for (i = 0; i < w->nthread; i++)
		w->thread[i].state = TH_READY;
	w->nready = w->nthread;
	shuffle(w);
}

/* switching */

static void
switch_to(Worker *w, Fiber *f)
{
	void *context;

	w->from = w->fiber;
	w->fiber = f;
	w->hc.stack = (unsigned long)f->stack;
	context = jump_evenly(f->context, w);
	w->from->context = context;
}

static void
thread_end(Worker *w, int thread)
{
	warp_leave(w, thread);
	w->thread[thread].state = TH_DONE;
	w->ndone++;
}

static void resume(Worker *w, int thread);

static void
fiber_main(Transfer t)
{
	Worker *w = t.data;
	Fiber *self = w->fiber;
	int i;

	w->from->context = t.context;
	for (;;) {
		i = (int)w->hc.thread.x;
		w->thread[i].fiber = self;
		w->so->run(w->arg);
		thread_end(w, i);
		i = next_thread(w);
		if (i >= 0 && !w->thread[i].fiber) {
			w->hc.thread.x = (unsigned)i;
			continue;
		}
		self->next = w->idle;
		w->idle = self;
		if (i < 0)
			switch_to(w, &w->main);
		else
			resume(w, i);
	}
}

/* Tops of stacks differ by cache lines: at equal distances they would share
 * a few sets of the cache. */
static void
fiber_make(Worker *w, Fiber *f)
{
	long i = (f->stack - w->stacks) / StackBytes;
	size_t n = StackBytes - (size_t)(i % 32) * 192;

	f->context = make(f->stack + n, n - 4096, fiber_main);
	f->next = w->idle;
	w->idle = f;
}

static Fiber *
fiber_new(Worker *w)
{
	Fiber *f = &w->fibers[w->nfiber];

	f->stack = w->stacks + (size_t)w->nfiber * StackBytes;
	if (mprotect(f->stack, 4096, PROT_NONE) != 0)
		die("cannot guard the stack of a fiber: %s", strerror(errno));
	w->nfiber++;
	fiber_make(w, f);
	return f;
}

static void
resume(Worker *w, int thread)
{
	Fiber *f = w->thread[thread].fiber;

	if (!f) {
		f = w->idle ? w->idle : fiber_new(w);
		w->idle = f->next;
	}
	w->hc.thread.x = (unsigned)thread;
	switch_to(w, f);
}

void
fiber_wait(Worker *w, int state, void *const *frame)
{
	int self = (int)w->hc.thread.x, i;
	Thread *t = &w->thread[self];

	if (t->state == TH_RUNNING)
		t->state = state;
	t->frame = frame;
	i = next_thread(w);
	if (i == self)
		return;
	if (i < 0)
		switch_to(w, &w->main);
	else
		resume(w, i);
}

/* faults */

/* Frames of the text are linked: it is compiled with frame pointers.  The last
 * link is what the executor had in that register. */
void
fiber_frames(Note *n, const Worker *w, int thread, void *const *frame)
{
	const char *p = (const char *)frame, *next;
	const Fiber *f = w->thread[thread].fiber;

	n->thread = thread;
	n->npc = 0;
	while (f && n->npc < MaxFrames && p >= f->stack && p < f->stack + StackBytes - 16) {
		n->pc[n->npc++] = ((void *const *)p)[1];
		next = *(const char *const *)p;
		if (next <= p)
			break;
		p = next;
	}
}

void
fiber_fail(Worker *w, void *const *frame, void *other, const char *tail, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(w->note.text, sizeof w->note.text, fmt, ap);
	va_end(ap);
	snprintf(w->note.tail, sizeof w->note.tail, "%s", tail);
	w->note.other = other;
	fiber_frames(&w->note, w, (int)w->hc.thread.x, frame);
	w->failed = true;
	switch_to(w, &w->main);
	abort();
}

/* Nothing runs and not all have ended. */
static void
explain_stuck(Worker *w)
{
	Note *n = &w->note;
	int i, barrier = 0, warp = -1, done = -1, other;
	const Group *g;

	for (i = w->nthread - 1; i >= 0; i--) {
		barrier = w->thread[i].state == TH_BARRIER ? i : barrier;
		warp = w->thread[i].state == TH_WARP ? i : warp;
		done = w->thread[i].state == TH_DONE ? i : done;
	}
	n->other = NULL;
	n->tail[0] = 0;
	if (warp >= 0) {
		g = w->thread[warp].waits;
		other = warp / WarpSize * WarpSize + __builtin_ctz(g->mask & ~g->arrived);
		fiber_frames(n, w, warp, w->thread[warp].frame);
		snprintf(n->text, sizeof n->text, "waits at %s (mask 0x%08x) for thread %d, which waits at %s",
		         g->what, g->mask, other, w->thread[other].state == TH_BARRIER ?
		         "__syncthreads" : w->thread[other].waits->what);
		n->other = w->thread[other].frame[1];
		snprintf(n->tail, sizeof n->tail, ": deadlock");
		return;
	}
	fiber_frames(n, w, barrier, w->thread[barrier].frame);
	snprintf(n->text, sizeof n->text, "waits at __syncthreads, but %d of %d threads have ended, "
	         "thread %d first among them: divergent barrier", w->ndone, w->nthread, done);
}

/* blocks */

static void
abandon(Worker *w)
{
	int i;
	Fiber *f;

	/* the fibers that wait are in no list: each is found by its thread */
	for (i = 0; i < w->nthread; i++) {
		f = w->thread[i].fiber;
		if (f && w->thread[i].state != TH_DONE)
			fiber_make(w, f);
	}
}

bool
fiber_block(Worker *w)
{
	Thread *t;
	int i;

	for (i = 0; i < w->nthread; i++) {
		t = &w->thread[i];
		t->state = TH_READY;
		t->fiber = NULL;
		t->waits = t->reads = NULL;
		t->ncopy = 0;
		t->ncommit = 0;
		w->order[i] = i;
	}
	w->ndone = w->nbarrier = 0;
	w->nready = w->nthread;
	w->failed = false;
	warp_reset(w);
	shuffle(w);
	w->hc.block.x = (unsigned)w->block;
	if (w->check)
		check_block(w->check, w);
	w->fiber = &w->main;
	i = next_thread(w);
	if (i >= 0)
		resume(w, i);
	if (!w->failed && w->ndone == w->nthread)
		return true;
	if (!w->failed)
		explain_stuck(w);
	abandon(w);
	return false;
}

void
fiber_open(Worker *w)
{
	const char *missing = fiber_missing();

	if (missing)
		die("%s", missing);
	w->stacks = mmap(NULL, (size_t)MaxThreads * StackBytes, PROT_READ | PROT_WRITE,
	                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (w->stacks == MAP_FAILED)
		die("no memory for the stacks of %d fibers: %s", MaxThreads, strerror(errno));
	w->hc.nstack = StackBytes;
}

void
fiber_close(Worker *w)
{
	munmap(w->stacks, (size_t)MaxThreads * StackBytes);
}
