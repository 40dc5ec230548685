/* A pool of threads that share the items of one call.
 *
 * A call publishes fn, arg and the number of items; everyone, the caller too,
 * claims items from one counter until none is left.  The counter carries the
 * number of the call beside the items that remain, so a thread that wakes up
 * late can never claim an item of a call that it has not read: nobody waits
 * for threads that slept through a short call.
 *
 * Threads that find nothing spin for SpinMicros and then sleep on a futex. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	SpinMicros = 50,        /* about ten futex round trips */
	SpinBatch = 64,         /* pauses between looks at the clock */
	MaxThreads = 1024
};

struct Pool {
	_Alignas(64) _Atomic uint64_t claim;    /* call << 32 | items left */
	_Alignas(64) _Atomic uint32_t pending;  /* items not finished */
	_Atomic uint32_t waiting;               /* the caller sleeps on pending */
	_Alignas(64) _Atomic uint32_t epoch;    /* bumped by every call */
	_Atomic uint32_t nasleep;
	_Atomic uint32_t quit;
	_Alignas(64) void (*_Atomic fn)(void *, long);
	void *_Atomic arg;
	_Atomic long items;
	uint32_t call;
	Arena *mem;
	int nthreads;
	pthread_t *thread;
};

typedef struct { Pool *pool; int self; } Worker;

static _Thread_local int self;

static void
futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void
futex_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void
pause_cpu(void)
{
#if defined __x86_64__
	__builtin_ia32_pause();
#elif defined __aarch64__
	__asm__ volatile("yield");
#endif
}

static long
micros(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* True when *word differs from seen within SpinMicros. */
static bool
spin_until_not(_Atomic uint32_t *word, uint32_t seen)
{
	long end = micros() + SpinMicros;
	int i;

	do {
		for (i = 0; i < SpinBatch; i++) {
			if (atomic_load_explicit(word, memory_order_acquire) !=
			    seen)
				return true;
			pause_cpu();
		}
	} while (micros() < end);
	return false;
}

/* Works on the current call until no item is left.  fn, arg and items are
 * those of the call named in the claim when the exchange succeeds: they
 * change only after every item of that call is finished. */
static void
work(Pool *p)
{
	uint64_t c = atomic_load(&p->claim);
	void (*fn)(void *, long);
	void *arg;
	long items;

	while ((uint32_t)c != 0) {
		fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
		arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
		items = atomic_load_explicit(&p->items, memory_order_relaxed);
		if (!atomic_compare_exchange_weak(&p->claim, &c, c - 1))
			continue;
		fn(arg, items - (long)(uint32_t)c);
		if (atomic_fetch_sub(&p->pending, 1) == 1 &&
		    atomic_load(&p->waiting))
			futex_wake(&p->pending);
		c = atomic_load(&p->claim);
	}
}

static void *
worker(void *arg)
{
	Worker *w = arg;
	Pool *p = w->pool;
	uint32_t seen;

	self = w->self;
	for (;;) {
		seen = atomic_load(&p->epoch);
		if (atomic_load(&p->quit))
			return NULL;
		work(p);
		if (spin_until_not(&p->epoch, seen))
			continue;
		atomic_fetch_add(&p->nasleep, 1);
		futex_wait(&p->epoch, seen);
		atomic_fetch_sub(&p->nasleep, 1);
	}
}

static int
cores(void)
{
	cpu_set_t set;
	int n;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof set, &set) != 0)
		return 1;
	n = CPU_COUNT(&set);
	return n > 0 ? n : 1;
}

/* Signals are for the main thread: workers block them all. */
static void
start_threads(Pool *p)
{
	sigset_t all, old;
	Worker *w = NEWN(p->mem, Worker, p->nthreads);
	int i, e;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (i = 1; i < p->nthreads; i++) {
		w[i] = (Worker){p, i};
		e = pthread_create(&p->thread[i], NULL, worker, &w[i]);
		if (e != 0)
			die("cannot start thread %d of %d: %s", i, p->nthreads,
			    strerror(e));
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

Pool *
pool_new(int nthreads)
{
	Arena *mem = arena_new("pool");
	char *raw = arena_alloc(mem, sizeof(Pool) + 64);
	Pool *p = (Pool *)(void *)(raw + (64 - (uintptr_t)raw % 64) % 64);

	if (nthreads <= 0)
		nthreads = cores();
	if (nthreads > MaxThreads)
		die("%d threads: at most %d", nthreads, (int)MaxThreads);
	p->mem = mem;
	p->nthreads = nthreads;
	p->thread = NEWN(mem, pthread_t, nthreads);
	start_threads(p);
	return p;
}

void
pool_free(Pool *p)
{
	int i;

	atomic_store(&p->quit, 1);
	atomic_fetch_add(&p->epoch, 1);
	futex_wake(&p->epoch);
	for (i = 1; i < p->nthreads; i++)
		pthread_join(p->thread[i], NULL);
	arena_free(p->mem);
}

int
pool_threads(const Pool *p)
{
	return p->nthreads;
}

int
pool_self(void)
{
	return self;
}

static void
wait_finished(Pool *p)
{
	uint32_t left;

	while ((left = atomic_load(&p->pending)) != 0) {
		if (spin_until_not(&p->pending, left))
			continue;
		atomic_store(&p->waiting, 1);
		futex_wait(&p->pending, left);
		atomic_store(&p->waiting, 0);
	}
}

void
pool_run(Pool *p, void (*fn)(void *arg, long item), void *arg, long items)
{
	long i;

	if (items > INT_MAX)
		bug("pool_run: %ld items", items);
	if (p->nthreads == 1 || items <= 1) {
		for (i = 0; i < items; i++)
			fn(arg, i);
		return;
	}
	atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
	atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
	atomic_store_explicit(&p->items, items, memory_order_relaxed);
	atomic_store(&p->pending, (uint32_t)items);
	atomic_store(&p->claim, (uint64_t)++p->call << 32 | (uint32_t)items);
	atomic_fetch_add(&p->epoch, 1);
	if (atomic_load(&p->nasleep))
		futex_wake(&p->epoch);
	work(p);
	wait_finished(p);
}
