/* Host memory of the arenas, and addresses in it.
 *
 * Each arena is one mapping: zeroed, page aligned, and large pages where the
 * system gives them.  Nothing is allocated after run_open. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

char *
arena_map(const char *what, size_t nbytes)
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

void
arenas_map(Run *r)
{
	int i;

	for (i = 0; i < NArena; i++) {
		r->arena[i] = arena_map(arena_names[i], r->arena_size[i]);
		r->base[i] = (uintptr_t)r->arena[i];
	}
}

void
arenas_unmap(Run *r)
{
	int i;

	for (i = 0; i < NArena; i++)
		if (r->arena[i])
			munmap(r->arena[i], r->arena_size[i]);
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
			s->bound[i].p = (void *)(r->base[s->arg[i].at.arena] +
			                         s->arg[i].at.off);
			break;
		case ARG_INT:
			s->bound[i].i = s->arg[i].i;
			break;
		case ARG_FLOAT:
			s->bound[i].f = s->arg[i].f;
			break;
		}
}

void
run_bind(Run *r)
{
	int i, j;

	for (i = 0; i < r->nprog; i++)
		for (j = 0; j < r->prog[i].nstep; j++)
			if (r->prog[i].step[j].kind == ST_LAUNCH)
				bind_launch(r, &r->prog[i].step[j]);
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
