/* The device simt: the CUDA text of kernels, run on the CPU by the executor
 * behind simt.h, on the host's memory.  Products are the CPU's. */
#define _GNU_SOURCE
#include "simt.h"

#include <stdlib.h>
#include <string.h>

typedef struct { Simt *simt; SimtKernel **kernel; } SimtDev;

static const char *
source_path(const Run *r, Arena *a, int k)
{
	char *full = arena_printf(a, "%s/%s", r->dir, r->kernel[k].file);
	char *real = realpath(full, NULL);
	const char *path = real ? arena_strdup(a, real) : full;

	free(real);
	return path;
}

static void
open_kernels(Run *r, SimtDev *d)
{
	Arena *a = arena_new("simt sources");
	SimtSource *src = NEWN(a, SimtSource, r->nkernel + 1);
	size_t n = 0;
	int i;

	r->nedited = 0;
	for (i = 0; i < r->nkernel; i++) {
		src[i].name = r->kernel[i].name;
		src[i].text = kernel_read(r, i, a, &n);
		src[i].path = source_path(r, a, i);
	}
	d->kernel = NEWN(r->mem, SimtKernel *, r->nkernel + 1);
	simt_kernels(d->simt, r->nkernel, src, d->kernel);
	arena_free(a);
}

/* What the host writes, kernels may only read. */
static void
open_memory(Run *r, SimtDev *d)
{
	int i;

	for (i = 0; i < NArena; i++)
		if (r->arena[i])
			simt_memory(d->simt, arena_names[i], r->arena[i], r->arena_size[i],
			            i != AR_TABLES && i != AR_INPUTS);
}

static void
simt_open(Run *r, int nthreads)
{
	SimtOpts o = {.seed = r->opts.seed, .check = r->opts.check, .nworkers = nthreads};
	SimtDev *d = NEW(r->mem, SimtDev);

	r->dev = d;
	r->pool = pool_new(nthreads);
	d->simt = simt_new(&o);
	open_kernels(r, d);
	arenas_map(r);
	open_memory(r, d);
	run_bind(r);
	cpu_gemm_open(r);
}

static void
simt_close(Run *r)
{
	SimtDev *d = r->dev;

	if (r->gemm)
		gemm_free(r->gemm);
	if (d && d->simt)
		simt_free(d->simt);
	arenas_unmap(r);
}

/* A fault in text as emitted is ours. */
static _Noreturn void
fault(const Run *r, const RunStep *s, const SimtFault *f)
{
	const RunKernel *k = &r->kernel[s->kernel];

	fprintf(stderr, "%s/%s:%d: block %ld thread %d: %s\n", r->dir, k->file, f->line, f->block,
	        f->thread, f->text);
	if (k->edited)
		die("kernel %s at %s is wrong", k->name, s->site);
	bug("kernel %s at %s is wrong", k->name, s->site);
}

static void
add_range(void *to, const char *name, void *p, size_t nbytes, bool writable)
{
	simt_memory(to, name, p, nbytes, writable);
}

static void
simt_launch_step(Run *r, RunStep *s)
{
	const RunKernel *k = &r->kernel[s->kernel];
	SimtDev *d = r->dev;
	bool count = r->opts.bytes && r->opts.check;
	SimtBytes b = {0};
	SimtFault f = {0};
	RunBytes seen;

	if (r->opts.ranges) {
		simt_memory_clear(d->simt);
		r->opts.ranges(r->opts.ranges_ctx, s, add_range, d->simt);
	}
	if (!simt_launch(d->simt, d->kernel[s->kernel], s->items, k->threads, (size_t)k->smem,
	                 s->narg, s->bound, &f, count ? &b : NULL))
		fault(r, s, &f);
	seen = (RunBytes){b.load_unique, b.load_issued, b.store_unique, b.store_issued};
	if (count)
		r->opts.bytes(r->opts.bytes_ctx, s, &seen);
}

const Device device_simt = {
	.name = "simt", .target = TARGET_CUDA, .open = simt_open, .close = simt_close,
	.launch = simt_launch_step, .gemm = cpu_gemm, .copy = cpu_copy, .zero = cpu_zero,
	.clear = cpu_clear,
	.mark = cpu_mark, .between = cpu_between,
};
