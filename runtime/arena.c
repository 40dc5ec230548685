/* Opens and closes a Run: device arenas, threads, kernels, tables.
 *
 * Each arena is one mapping: zeroed, page aligned, and large pages where the
 * system gives them.  Nothing is allocated after run_open. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static char *
map(const char *what, size_t nbytes)
{
	char *p;

	if (nbytes == 0)
		return NULL;
	p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE,
	         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("cannot get %zu bytes of memory for %s: %s", nbytes, what,
		    strerror(errno));
	madvise(p, nbytes, MADV_HUGEPAGE);
	return p;
}

void *
run_at(const Run *r, Place p)
{
	return p.arena < 0 ? NULL : r->arena[p.arena] + p.off;
}

static void
bind_launch(Run *r, RunStep *s)
{
	int i;

	s->bound = NEWN(r->mem, HcArg, s->narg + 1);
	for (i = 0; i < s->narg; i++)
		switch (s->arg[i].kind) {
		case ARG_PLACE:
			s->bound[i].p = run_at(r, s->arg[i].at);
			break;
		case ARG_INT:
			s->bound[i].i = s->arg[i].i;
			break;
		case ARG_FLOAT:
			s->bound[i].f = s->arg[i].f;
			break;
		}
}

static void
bind_step(Run *r, RunStep *s)
{
	if (s->kind == ST_LAUNCH)
		bind_launch(r, s);
	else if (s->kind == ST_GEMM)
		gemm_prepare(r->gemm, s->ta, s->tb, s->acc, s->m, s->n, s->k,
		             s->a.dt, s->a.ld, s->b.dt, s->b.ld, s->c.dt,
		             s->c.ld);
}

void
run_open(Run *r, int nthreads)
{
	int i, j;

	r->pool = pool_new(nthreads);
	compile_kernels(r);
	for (i = 0; i < NArena; i++)
		r->arena[i] = map(arena_names[i], r->arena_size[i]);
	r->gemm = gemm_new(r->pool);
	for (i = 0; i < NProg; i++)
		for (j = 0; j < r->prog[i].nstep; j++)
			bind_step(r, &r->prog[i].step[j]);
	run_fill_tables(r);
}

void
run_close(Run *r)
{
	int i;

	if (r->gemm)
		gemm_free(r->gemm);
	for (i = 0; i < NArena; i++)
		if (r->arena[i])
			munmap(r->arena[i], r->arena_size[i]);
	compile_close(r);
	if (r->pool)
		pool_free(r->pool);
	arena_free(r->mem);
}

const RunParam *
run_param(const Run *r, const char *name)
{
	int i;

	for (i = 0; i < r->nparam; i++)
		if (strcmp(r->param[i].name, name) == 0)
			return &r->param[i];
	return NULL;
}
