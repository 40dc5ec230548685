/* Launches: blocks in the order that the seed gives, on one worker with
 * checks, on as many as there are cores without. */
#define _GNU_SOURCE
#include "simt_exec.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MaxWorkers = 64 };

struct Simt {
	Arena *mem;
	SimtOpts o;
	Compiler *compiler;
	Check *check;
	int nworker;
	Worker *worker[MaxWorkers];     /* made when needed */
	SimtKernel **kernel;
	const char **text;              /* of kernel[i] */
	int nkernel, cap, captext;
};

const char *
simt_missing(void)
{
	const char *m = compiler_missing();

	return m ? m : fiber_missing();
}

Simt *
simt_new(const SimtOpts *o)
{
	Arena *mem = arena_new("simt");
	Simt *s = NEW(mem, Simt);
	const char *missing = simt_missing();
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (missing)
		die("%s", missing);
	s->mem = mem;
	s->o = *o;
	s->compiler = compiler_new(o->check);
	s->nworker = o->nworkers ? o->nworkers : (int)cores;
	if (s->nworker > MaxWorkers)
		s->nworker = MaxWorkers;
	if (o->check) {
		s->check = check_new();
		s->nworker = 1;
	}
	return s;
}

/* workers */

static unsigned char *
dynamic_new(void)
{
	void *p = mmap(NULL, MaxShared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("no memory for shared memory: %s", strerror(errno));
	return p;
}

static Worker *
worker_new(const Simt *s)
{
	Arena *mem = arena_new("simt worker");
	Worker *w = NEW(mem, Worker);

	w->mem = mem;
	w->check = s->check;
	w->collectives_order = s->o.collectives_order;
	w->dynamic = dynamic_new();
	warp_hooks(w);
	fiber_open(w);
	return w;
}

static void
worker_free(Worker *w)
{
	int i;

	for (i = 0; i < MaxThreads; i++)
		free(w->thread[i].copy);
	munmap(w->dynamic, MaxShared);
	fiber_close(w);
	arena_free(w->mem);
}

void
simt_free(Simt *s)
{
	int i, j;

	for (i = 0; i < s->nkernel; i++)
		for (j = 0; j < s->nworker; j++)
			if (s->kernel[i]->so[j].handle)
				so_close(&s->kernel[i]->so[j]);
	for (i = 0; i < s->nworker; i++)
		if (s->worker[i])
			worker_free(s->worker[i]);
	if (s->check)
		check_free(s->check);
	compiler_free(s->compiler);
	arena_free(s->mem);
}

void
simt_memory(Simt *s, const char *name, void *p, size_t nbytes, bool writable)
{
	if (s->check)
		check_memory(s->check, name, p, nbytes, writable);
}

void
simt_memory_clear(Simt *s)
{
	if (s->check)
		check_memory_clear(s->check);
}

/* kernels */

static SimtKernel *
known_kernel(const Simt *s, const SimtSource *src)
{
	int i;

	for (i = 0; i < s->nkernel; i++)
		if (strcmp(s->kernel[i]->name, src->name) == 0 && strcmp(s->text[i], src->text) == 0)
			return s->kernel[i];
	return NULL;
}

static SimtKernel *
kernel_new(Simt *s, const SimtSource *src)
{
	SimtKernel *k = NEW(s->mem, SimtKernel);
	int n = s->nkernel;

	k->name = arena_strdup(s->mem, src->name);
	k->path = arena_strdup(s->mem, src->path);
	k->so = NEWN(s->mem, So, s->nworker);
	*PUSH(s->mem, s->text, n, s->captext) = arena_strdup(s->mem, src->text);
	*PUSH(s->mem, s->kernel, s->nkernel, s->cap) = k;
	return k;
}

void
simt_kernels(Simt *s, int n, const SimtSource *src, SimtKernel **out)
{
	SimtSource *todo = NEWN(s->mem, SimtSource, n);
	SimtKernel **fresh = NEWN(s->mem, SimtKernel *, n);
	int i, nfresh = 0;

	for (i = 0; i < n; i++) {
		out[i] = known_kernel(s, &src[i]);
		if (out[i])
			continue;
		out[i] = fresh[nfresh] = kernel_new(s, &src[i]);
		todo[nfresh++] = src[i];
	}
	compiler_run(s->compiler, nfresh, todo, fresh);
}

SimtKernel *
simt_kernel(Simt *s, const char *name, const char *path, const char *text)
{
	SimtSource src = { name, path, text };
	SimtKernel *k;

	simt_kernels(s, 1, &src, &k);
	return k;
}

size_t
simt_static_smem(const SimtKernel *k)
{
	return k->nshared;
}

/* launches */

typedef struct {
	Simt *s;
	SimtKernel *k;
	const HcArg *arg;
	long grid;
	int block;
	size_t dynamic;
	long *order;                    /* NULL: ascending */
	_Atomic long next, failed;      /* positions; failed: the first, or grid */
	Note note;                      /* of failed */
	Worker *at;                     /* that note is of */
	pthread_mutex_t lock;
} Launch;

typedef struct { Launch *l; int worker; } Part;

static void
worker_set(Launch *l, Worker *w, int i)
{
	So *so = &l->k->so[i];

	if (!so->handle)
		so_load(l->k, so);
	*so->simt = &w->hc;
	w->k = l->k;
	w->so = so;
	w->arg = l->arg;
	w->nthread = l->block;
	w->hc.nthread = (HcDim){ (unsigned)l->block, 1, 1 };
	w->hc.nblock = (HcDim){ (unsigned)l->grid, 1, 1 };
	w->ndynamic = l->dynamic;
	/* what is asked for ends with the mapping, as far as alignment allows */
	w->hc.dynamic = w->dynamic + (MaxShared - l->dynamic) / 128 * 128;
	if (w->check)
		check_launch(w->check, w);
}

static void
failed(Launch *l, Worker *w, long at)
{
	pthread_mutex_lock(&l->lock);
	if (at < l->failed) {
		l->failed = at;
		l->note = w->note;
		l->at = w;
	}
	pthread_mutex_unlock(&l->lock);
}

static void *
run_part(void *arg)
{
	Part *p = arg;
	Launch *l = p->l;
	Worker *w = l->s->worker[p->worker];
	uint64_t seed;
	long i;

	while ((i = l->next++) < l->grid && i < l->failed) {
		w->block = l->order ? l->order[i] : i;
		seed = l->s->o.seed + 0x632be59bd9b4e019 * (uint64_t)(w->block + 1);
		w->random = l->s->o.seed ? simt_random(&seed) | 1 : 0;
		if (!fiber_block(w)) {
			failed(l, w, i);
			break;
		}
	}
	return NULL;
}

static long *
block_order(const Simt *s, long grid)
{
	uint64_t random = s->o.seed;
	long *order, i, j, t;

	if (!random)
		return NULL;
	order = malloc((size_t)grid * sizeof *order);
	if (!order)
		die("no memory for the order of %ld blocks", grid);
	for (i = 0; i < grid; i++)
		order[i] = i;
	for (i = grid - 1; i > 0; i--) {
		j = (long)(simt_random(&random) % (uint64_t)(i + 1));
		t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	return order;
}

static void
run_blocks(Launch *l)
{
	int n = l->s->nworker < l->grid ? l->s->nworker : (int)l->grid, i;
	Part part[MaxWorkers] = {0};
	pthread_t thread[MaxWorkers];

	for (i = 0; i < n; i++) {
		if (!l->s->worker[i])
			l->s->worker[i] = worker_new(l->s);
		worker_set(l, l->s->worker[i], i);
		part[i] = (Part){ l, i };
	}
	for (i = 1; i < n; i++)
		if (pthread_create(&thread[i], NULL, run_part, &part[i]) != 0)
			n = i;
	run_part(&part[0]);
	for (i = 1; i < n; i++)
		pthread_join(thread[i], NULL);
}

/* what is said */

static const char *
file_of(const SimtKernel *k)
{
	const char *slash = strrchr(k->path, '/');

	return slash ? slash + 1 : k->path;
}

static void
put_line(Buf *b, const SimtKernel *k, const Line *l)
{
	if (l->line == 0)
		buf_printf(b, "%s:?", file_of(k));
	else
		buf_printf(b, "%s:%d", file_of(k), l->line);
	if (l->inner != l->line)
		buf_printf(b, " (in %s, line %d)", l->function, l->inner);
}

static void
report(const Launch *l, SimtFault *f)
{
	const Note *n = &l->note;
	So *so = l->at->so;
	Line at = so_line(so, n->npc, n->pc), other;
	Buf b = {0};

	f->kernel = l->k->name;
	f->block = l->at->block;
	f->thread = n->thread;
	f->line = at.line;
	buf_printf(&b, "kernel %s, block %ld, thread %d, ", f->kernel, f->block, f->thread);
	put_line(&b, l->k, &at);
	buf_printf(&b, ": %s", n->text);
	if (n->other) {
		other = so_line(so, 1, &n->other);
		buf_puts(&b, " at ");
		put_line(&b, l->k, &other);
	}
	buf_puts(&b, n->tail);
	snprintf(f->text, sizeof f->text, "%s", b.s);
	buf_free(&b);
}

/* What the driver would refuse. */
static bool
launchable(const SimtKernel *k, long grid, int block, size_t dynamic, int narg, SimtFault *f)
{
	Buf b = {0};

	if (narg != k->nparam)
		buf_printf(&b, "%d arguments for %d parameters", narg, k->nparam);
	else if (grid < 1 || grid > 0x7fffffff)
		buf_printf(&b, "%ld blocks", grid);
	else if (block < 1 || block > MaxThreads)
		buf_printf(&b, "%d threads in a block", block);
	else if (dynamic + k->nshared > MaxShared)
		buf_printf(&b, "%zu bytes of shared memory: more than %d", dynamic + k->nshared, MaxShared);
	if (!b.s)
		return true;
	*f = (SimtFault){ .kernel = k->name };
	snprintf(f->text, sizeof f->text, "kernel %s cannot be launched: %s", k->name, b.s);
	buf_free(&b);
	return false;
}

bool
simt_launch(Simt *s, SimtKernel *k, long grid, int block, size_t dynamic_smem, int narg, const HcArg *arg,
            SimtFault *f, SimtBytes *bytes)
{
	Launch l = { .s = s, .k = k, .arg = arg, .grid = grid, .block = block, .dynamic = dynamic_smem,
	             .failed = grid, .lock = PTHREAD_MUTEX_INITIALIZER };

	if (bytes)
		memset(bytes, 0, sizeof *bytes);
	if (!launchable(k, grid, block, dynamic_smem, narg, f))
		return false;
	l.order = block_order(s, grid);
	run_blocks(&l);
	free(l.order);
	if (bytes && s->check)
		check_bytes(s->check, bytes);
	if (l.failed == grid)
		return true;
	report(&l, f);
	return false;
}
