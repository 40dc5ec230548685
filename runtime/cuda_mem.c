/* Memory of the device cuda: one allocation per arena, as planned, and what
 * the host keeps of each.
 *
 * Words that go to and fro in each step have mirrors in pinned memory, which
 * the GPU reads by itself.  The inputs have two, so that the next batch can be
 * made while the last is still being copied.  Of large arenas that the host
 * seldom looks at there is a mirror only while it is wanted. */
#define _GNU_SOURCE
#include "cuda_dev.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RandomBytes = 8 << 20 }; /* made on the host, then repeated; picked arbitrarily */

static bool
is_lazy(int arena)
{
	return arena == AR_WEIGHTS || arena == AR_MOMENT1 || arena == AR_MOMENT2 ||
	       arena == AR_ACTS;
}

static bool
is_pinned(int arena)
{
	return arena == AR_INPUTS || arena == AR_SCHED || arena == AR_RESULT;
}

static _Noreturn void
out_of_memory(const Run *r, const char *what, size_t nbytes)
{
	const Cuda *c = r->dev;
	size_t available = 0, total = 0;

	fflush(stdout);
	run_memory(r, stderr);
	api.cuMemGetInfo(&available, &total);
	die("%s has no room for %s, %.1f MiB: %.1f MiB of its %.1f MiB are free now; the table "
	    "says what this spec takes; fewer tokens per micro-batch take less", c->name, what,
	    (double)nbytes / 1048576, (double)available / 1048576, (double)total / 1048576);
}

CUdeviceptr
cuda_allocate(const Run *r, const char *what, size_t nbytes)
{
	CUdeviceptr p = 0;
	CUresult e = api.cuMemAlloc(&p, nbytes);

	if (e == CUDA_ERROR_OUT_OF_MEMORY)
		out_of_memory(r, what, nbytes);
	cuda_must(r, e, "allocating %zu bytes for %s", nbytes, what);
	return p;
}

static char *
pin(const Run *r, const char *what, size_t nbytes)
{
	void *p = NULL;

	cuda_must(r, api.cuMemHostAlloc(&p, nbytes, 0), "allocating %zu bytes of pinned memory for %s",
	          nbytes, what);
	memset(p, 0, nbytes);
	return p;
}

static void
open_mirror(Run *r, int i)
{
	Cuda *c = r->dev;
	int k;

	if (i == AR_INPUTS) {
		for (k = 0; k < 2; k++) {
			c->input[k] = pin(r, "inputs", r->arena_size[i]);
			cuda_must(r, api.cuEventCreate(&c->copied[k], CU_EVENT_DISABLE_TIMING),
			          "making an event");
		}
		r->arena[i] = c->input[0];
	} else if (is_pinned(i)) {
		r->arena[i] = pin(r, arena_names[i], r->arena_size[i]);
	} else if (!is_lazy(i)) {
		r->arena[i] = arena_map(arena_names[i], r->arena_size[i]);
	}
	c->pinned[i] = is_pinned(i);
}

void
cuda_memory_open(Run *r)
{
	int i;

	for (i = 0; i < NArena; i++)
		if (r->arena_size[i])
			r->base[i] = (uintptr_t)cuda_allocate(r, arena_names[i],
			                                      r->arena_size[i]);
	for (i = 0; i < NArena; i++) {
		if (!r->arena_size[i])
			continue;
		open_mirror(r, i);
		cuda_zero(r, i);
	}
}

void
cuda_memory_close(Run *r)
{
	Cuda *c = r->dev;
	int i, k;

	for (i = 0; i < NArena; i++) {
		if (i != AR_INPUTS && c->pinned[i])
			api.cuMemFreeHost(r->arena[i]);
		else if (i != AR_INPUTS && r->arena[i])
			munmap(r->arena[i], r->arena_size[i]);
		if (r->base[i])
			api.cuMemFree((CUdeviceptr)r->base[i]);
	}
	for (k = 0; k < 2; k++) {
		if (c->copied[k])
			api.cuEventDestroy(c->copied[k]);
		if (c->input[k])
			api.cuMemFreeHost(c->input[k]);
	}
}

/* A mapped mirror gives its pages back, and zeros appear when they are read. */
void
cuda_zero(Run *r, int arena)
{
	Cuda *c = r->dev;
	size_t n = r->arena_size[arena];

	if (n == 0)
		return;
	if (c->pinned[arena]) {
		run_sync(r);
		memset(r->arena[arena], 0, n);
	} else if (r->arena[arena]) {
		madvise(r->arena[arena], n, MADV_DONTNEED);
	}
	cuda_must(r, api.cuMemsetD8Async((CUdeviceptr)r->base[arena], 0, n, c->stream),
	          "clearing %s", arena_names[arena]);
}

/* The host may write to a mirror that is not pinned as soon as this returns;
 * to inputs after run_inputs; to others after run_sync. */
void
cuda_put(Run *r, int arena, size_t off, size_t n)
{
	Cuda *c = r->dev;

	cuda_must(r, api.cuMemcpyHtoDAsync((CUdeviceptr)(r->base[arena] + off),
	                                   r->arena[arena] + off, n, c->stream),
	          "copying %zu bytes to %s", n, arena_names[arena]);
	if (arena == AR_INPUTS)
		cuda_must(r, api.cuEventRecord(c->copied[c->turn], c->stream),
		          "recording an event");
	else if (!c->pinned[arena])
		run_sync(r);
}

void
cuda_fetch(Run *r, int arena, size_t off, size_t n)
{
	Cuda *c = r->dev;

	cuda_host(r, arena);
	cuda_must(r, api.cuMemcpyDtoHAsync(r->arena[arena] + off,
	                                   (CUdeviceptr)(r->base[arena] + off), n, c->stream),
	          "copying %zu bytes from %s", n, arena_names[arena]);
}

void
cuda_inputs(Run *r)
{
	Cuda *c = r->dev;

	c->turn = !c->turn;
	cuda_must(r, api.cuEventSynchronize(c->copied[c->turn]), "waiting for a batch's copy");
	r->arena[AR_INPUTS] = c->input[c->turn];
}

void
cuda_host(Run *r, int arena)
{
	if (!r->arena[arena])
		r->arena[arena] = arena_map(arena_names[arena], r->arena_size[arena]);
}

void
cuda_forget(Run *r, int arena)
{
	if (!is_lazy(arena) || !r->arena[arena])
		return;
	run_sync(r);
	munmap(r->arena[arena], r->arena_size[arena]);
	r->arena[arena] = NULL;
}

/* Numbers from -1 to 1 whether read as bf16 or as f32, whose upper half is a
 * bf16.  Products of zeros are faster than products of numbers. */
void
cuda_random(Run *r, int arena)
{
	const Cuda *c = r->dev;
	size_t all = r->arena_size[arena], n = all < RandomBytes ? all : RandomBytes, have, i;
	CUdeviceptr base = (CUdeviceptr)r->base[arena];
	uint16_t *v = malloc(n + 2);
	uint64_t s = 88172645463325252u;

	if (!v)
		die("cannot get %zu bytes of memory", n);
	for (i = 0; i < n / 2; i++) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		/* exponents of 2^-8 to 2^-1, any sign and mantissa */
		v[i] = (uint16_t)((s >> 48 & 0x807f) | (119 + (s >> 20 & 7)) << 7);
	}
	cuda_must(r, api.cuMemcpyHtoDAsync(base, v, n / 2 * 2, c->stream), "copying to %s",
	          arena_names[arena]);
	run_sync(r);
	free(v);
	for (have = n; have < all; have += i) {
		i = have < all - have ? have : all - have;
		cuda_must(r, api.cuMemcpyDtoDAsync(base + have, base, i, c->stream),
		          "copying within %s", arena_names[arena]);
	}
}
