/* Streams and events: when work is done.
 *
 * Work is put into a queue and done as late as the documented rules allow: when
 * the host waits for it, or for something that comes after it, or when a queue
 * is full.  So a buffer reused too early, a result read too early and a missing
 * dependency between streams show as wrong data on every run, and not once a
 * month.  HCGEN_STANDIN=order=eager and order=random:SEED are the other
 * schedules that the rules allow; results must not depend on the choice.
 *
 * Stream 0 waits for all blocking streams and they wait for it; streams with
 * CU_STREAM_NON_BLOCKING take no part in that. */
#define _GNU_SOURCE
#include "standin.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A queue on a real GPU is about as long; picked arbitrarily. */
enum { MaxQueue = 1024, MaxEager = 4 };
enum { StreamMagic = 0x5354524d, EventMagic = 0x45564e54 };

typedef struct Op {
	struct Op *next;
	long number;            /* 1, 2, … in its stream */
	CUstream after;         /* does nothing, but waits for that stream's operation … */
	long after_number;      /* … of this number */
	CUevent event;          /* or records this event, for the n-th time */
	long record;
	char what[100];
	Work *work;
	_Alignas(16) char payload[];
} Op;

struct CUstream_st {
	unsigned magic;
	struct CUstream_st *next;
	bool live, blocking;
	long added, done;
	Op *first, **last;
};

struct CUevent_st {
	unsigned magic;
	struct CUevent_st *next;
	bool live, timed;
	CUstream stream;        /* where it was last recorded, or NULL */
	long number;            /* of the operation that records it */
	long record, recorded;  /* records asked for; the last one done */
	double seconds;
};

static struct CUstream_st zero = { .magic = StreamMagic, .live = true, .blocking = true,
                                   .last = &zero.first };
static CUstream streams;
static CUevent events;
static CUresult dead;
static long ndone;

static CUresult run_until(CUstream s, long number);

CUresult
engine_error(void)
{
	return dead;
}

void
engine_kill(CUresult e)
{
	if (!dead)
		dead = e;
}

static CUstream
resolve(CUstream s)
{
	return s == NULL || s == CU_STREAM_LEGACY ? &zero : s;
}

bool
stream_valid(CUstream s)
{
	s = resolve(s);
	if (s == &zero)
		return true;
	for (CUstream t = streams; t; t = t->next)
		if (t == s)
			return t->live;
	return false;
}

bool
event_valid(CUevent e)
{
	for (CUevent t = events; t; t = t->next)
		if (t == e)
			return t->live;
	return false;
}

CUresult
stream_new(CUstream *out, unsigned flags)
{
	CUstream s = calloc(1, sizeof *s);

	if (!s)
		return CUDA_ERROR_OUT_OF_MEMORY;
	s->magic = StreamMagic;
	s->live = true;
	s->blocking = !(flags & CU_STREAM_NON_BLOCKING);
	s->next = streams;
	s->last = &s->first;
	*out = streams = s;
	return 0;
}

/* What is queued is still done; the handle is gone at once. */
CUresult
stream_free(CUstream s)
{
	s->live = false;
	return 0;
}

CUresult
event_new(CUevent *out, unsigned flags)
{
	CUevent e = calloc(1, sizeof *e);

	if (!e)
		return CUDA_ERROR_OUT_OF_MEMORY;
	e->magic = EventMagic;
	e->live = true;
	e->timed = !(flags & CU_EVENT_DISABLE_TIMING);
	e->next = events;
	*out = events = e;
	return 0;
}

CUresult
event_free(CUevent e)
{
	e->live = false;
	return 0;
}

/* ---- doing ---- */

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void
event_done(CUevent e, long record)
{
	e->recorded = record;
	e->seconds = now();
}

/* The next operation of a stream that has one. */
static void
run_one(CUstream s)
{
	Op *o = s->first;
	CUresult e = 0;

	if (o->after && run_until(o->after, o->after_number))
		return;
	s->first = o->next;
	if (!s->first)
		s->last = &s->first;
	if (dead) {
		/* a context that died does nothing more */
	} else if (o->event) {
		event_done(o->event, o->record);
	} else if (o->work) {
		memory_open();
		e = o->work(o->payload);
		if (!memory_intact(o->what) && !e)
			e = CUDA_ERROR_ILLEGAL_ADDRESS;
		memory_close();
		if (!e && ++ndone == inject_number("ecc_after", -1))
			e = CUDA_ERROR_ECC_UNCORRECTABLE;
	}
	s->done = o->number;
	if (e)
		engine_kill(e);
	free(o);
}

static CUresult
run_until(CUstream s, long number)
{
	memory_open();
	while (s->done < number && !dead)
		run_one(s);
	memory_close();
	return dead;
}

CUresult
engine_wait_all(void)
{
	run_until(&zero, zero.added);
	for (CUstream s = streams; s; s = s->next)
		run_until(s, s->added);
	return dead;
}

static unsigned
draw(void)
{
	static uint64_t state;

	if (!state)
		state = strtoull(inject("order") + strlen("random:"), NULL, 10) * 2 + 1;
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(state >> 40);
}

static CUstream
some_stream(void)
{
	int n = 0;
	CUstream found = &zero;

	for (CUstream s = streams; s; s = s->next)
		if (s->first && draw() % (unsigned)++n == 0)
			found = s;
	return found;
}

/* after something was added to s */
static void
progress(CUstream s)
{
	const char *order = inject("order");

	if (order && strcmp(order, "eager") == 0)
		run_until(s, s->added);
	else if (order && strncmp(order, "random", 6) == 0)
		for (unsigned n = draw() % MaxEager; n > 0; n--) {
			CUstream t = some_stream();

			run_until(t, t->done + (t->first != NULL));
		}
	if (s->added - s->done > MaxQueue)
		run_until(s, s->done + 1);
}

/* ---- adding ---- */

static Op *
op_new(CUstream s, const char *what, const void *payload, size_t nbytes)
{
	Op *o = calloc(1, sizeof *o + nbytes);

	if (!o)
		abort();
	snprintf(o->what, sizeof o->what, "%s", what);
	if (nbytes > 0)
		memcpy(o->payload, payload, nbytes);
	o->number = ++s->added;
	*s->last = o;
	s->last = &o->next;
	return o;
}

static void
add_wait(CUstream s, CUstream other)
{
	Op *o;

	if (other->done >= other->added)
		return;
	o = op_new(s, "wait", NULL, 0);
	o->after = other;
	o->after_number = other->added;
}

static void
add_implicit(CUstream s)
{
	if (s == &zero) {
		for (CUstream t = streams; t; t = t->next)
			if (t->blocking)
				add_wait(s, t);
	} else if (s->blocking) {
		add_wait(s, &zero);
	}
}

CUresult
stream_add(CUstream s, const char *what, Work *work, const void *payload, size_t nbytes)
{
	Op *o;

	s = resolve(s);
	add_implicit(s);
	o = op_new(s, what, payload, nbytes);
	o->work = work;
	progress(s);
	return 0;
}

CUresult
event_record(CUevent e, CUstream s)
{
	Op *o;

	s = resolve(s);
	add_implicit(s);
	o = op_new(s, "record", NULL, 0);
	o->event = e;
	o->record = ++e->record;
	e->stream = s;
	e->number = o->number;
	progress(s);
	return 0;
}

CUresult
stream_after(CUstream s, CUevent e)
{
	Op *o;

	s = resolve(s);
	add_implicit(s);
	if (!e->stream || e->stream->done >= e->number)
		return 0;
	o = op_new(s, "wait", NULL, 0);
	o->after = e->stream;
	o->after_number = e->number;
	progress(s);
	return 0;
}

/* ---- waiting ---- */

CUresult
stream_wait(CUstream s)
{
	s = resolve(s);
	return run_until(s, s->added);
}

/* Each look lets one operation through, so that a loop of looks comes to an end. */
static CUresult
look(CUstream s, long number)
{
	if (s->done < number)
		run_until(s, s->done + 1);
	return dead ? dead : s->done < number ? CUDA_ERROR_NOT_READY : 0;
}

CUresult
stream_query(CUstream s)
{
	s = resolve(s);
	return look(s, s->added);
}

CUresult
event_wait(CUevent e)
{
	return e->stream ? run_until(e->stream, e->number) : dead;
}

CUresult
event_query(CUevent e)
{
	return e->stream ? look(e->stream, e->number) : dead;
}

CUresult
event_elapsed(float *ms, CUevent a, CUevent b)
{
	if (!a->timed || !b->timed || !a->record || !b->record)
		return CUDA_ERROR_INVALID_HANDLE;
	if (a->recorded < a->record || b->recorded < b->record)
		return CUDA_ERROR_NOT_READY;
	*ms = (float)(1e3 * (b->seconds - a->seconds));
	return 0;
}

void
engine_reset(void)
{
	for (CUstream s = &zero; s; s = s == &zero ? streams : s->next) {
		while (s->first) {
			Op *o = s->first;

			s->first = o->next;
			free(o);
		}
		s->last = &s->first;
		s->done = s->added;
		s->live = s == &zero;
	}
	for (CUevent e = events; e; e = e->next)
		e->live = false;
	dead = 0;
}
