/* The device cuda: kernels compiled by NVRTC and launched through the driver,
 * products by cuBLASLt, everything on one stream of the first GPU.
 *
 * All that can be done before the first step is: every kernel is loaded, every
 * product has its algorithm, every byte its place.  A step only queues. */
#define _GNU_SOURCE
#include "cuda_dev.h"
#include "nvrtc.h"

#include <stdlib.h>
#include <string.h>

enum {
	LeastMajor = 8,                 /* compute capability: mma and cp.async of bf16 */
	PlainShared = 48 << 10,
	CopyBytes = 256 << 20, CopyRuns = 20    /* far above any L2; picked arbitrarily */
};

/* faults */

/* Of these a kernel that ran is to blame, and not what was just called. */
static bool
is_kernel_fault(CUresult e)
{
	return e >= CUDA_ERROR_ILLEGAL_ADDRESS && e <= CUDA_ERROR_LAUNCH_FAILED &&
	       e != CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
}

/* A kernel as emitted is ours. */
static _Noreturn void
blame(const Run *r, CUresult e, const char *how, const RunStep *s)
{
	const char *what = s->kind == ST_LAUNCH ? r->kernel[s->kernel].name : "a product";

	if (r->nedited)
		die("a kernel fails on the GPU: %s; %s %s at %s", api_cuda_error(e), how, what,
		    s->site);
	bug("a kernel fails on the GPU: %s; %s %s at %s", api_cuda_error(e), how, what, s->site);
}

static _Noreturn void
kernel_fault(const Run *r, CUresult e)
{
	const Cuda *c = r->dev;

	if (!c->last)
		die("the GPU fails: %s", api_cuda_error(e));
	if (c->each)
		blame(r, e, "it is", c->last);
	fprintf(stderr, "hcgen: HCGEN_CUDA_SYNC=1 in the environment waits behind every step and "
	        "so tells which one it is\n");
	blame(r, e, "the last one queued was", c->last);
}

void
cuda_must(const Run *r, CUresult e, const char *fmt, ...)
{
	Buf b = {0};
	va_list ap;

	if (e == CUDA_SUCCESS)
		return;
	if (is_kernel_fault(e))
		kernel_fault(r, e);
	va_start(ap, fmt);
	buf_vprintf(&b, fmt, ap);
	va_end(ap);
	die("the GPU fails: %s: %s", b.s, api_cuda_error(e));
}

/* is there a GPU? */

static int
attribute(CUdevice d, CUdevice_attribute which)
{
	int v = 0;

	api.cuDeviceGetAttribute(&v, which, d);
	return v;
}

/* A cubin of one CUDA release is not for drivers of the release before. */
static const char *
library_problem(void)
{
	static char text[512];
	const ApiInfo *d = api_open(API_DRIVER), *n = api_open(API_NVRTC);
	const ApiInfo *lt = api_open(API_CUBLASLT);

	if (n->error)
		return n->error;
	if (lt->error)
		return lt->error;
	if (n->major <= d->major && lt->major <= d->major)
		return NULL;
	snprintf(text, sizeof text, "%s is of CUDA %d, and the driver serves CUDA %d.%d at most: "
	         "install a newer driver, or the toolkit's libraries of CUDA %d",
	         n->major > d->major ? n->path : lt->path,
	         n->major > d->major ? n->major : lt->major, d->major, d->minor, d->major);
	return text;
}

bool
cuda_facts(GpuFacts *g)
{
	CUdevice gpu = 0;
	int n = 0;

	memset(g, 0, sizeof *g);
	if (api_open(API_DRIVER)->error || api.cuDeviceGetCount(&n) != CUDA_SUCCESS || n < 1 ||
	    api.cuDeviceGet(&gpu, 0) != CUDA_SUCCESS ||
	    api.cuDeviceGetName(g->name, sizeof g->name - 1, gpu) != CUDA_SUCCESS)
		return false;
	g->major = attribute(gpu, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
	g->minor = attribute(gpu, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
	g->sms = attribute(gpu, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
	api.cuDeviceTotalMem(&g->memory, gpu);
	return true;
}

/* NULL: a GPU can be used.  absent: there is none, which is no fault. */
static const char *
problem(bool *absent)
{
	static char text[512];
	const ApiInfo *d = api_open(API_DRIVER);
	GpuFacts g;

	*absent = d->absent;
	if (d->error)
		return d->error;
	if (!cuda_facts(&g)) {
		*absent = true;
		return "there is a CUDA driver but no GPU that it may use (CUDA_VISIBLE_DEVICES?)";
	}
	if (g.major >= LeastMajor)
		return library_problem();
	snprintf(text, sizeof text, "%s has compute capability %d.%d: %d.0 or later is needed",
	         g.name, g.major, g.minor, LeastMajor);
	return text;
}

const char *
cuda_problem(void)
{
	bool absent;

	return problem(&absent);
}

bool
cuda_usable(const char **why)
{
	bool absent = false;
	const char *p = problem(&absent);

	*why = absent ? NULL : p;
	return !p;
}

void
cuda_need(void)
{
	const char *p = cuda_problem();

	if (p)
		die("device cuda: %s", p);
}

/* opening */

static void
open_device(Run *r, Cuda *c)
{
	GpuFacts g;

	if (!cuda_facts(&g))
		die("the GPU is gone");
	cuda_must(r, api.cuDeviceGet(&c->device, 0), "finding GPU 0");
	memcpy(c->name, g.name, sizeof c->name);
	c->sms = g.sms;
	c->capability = 10 * g.major + g.minor;
	c->shared = attribute(c->device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
	/* 9.0 has instructions that later GPUs lack: they are the a's */
	snprintf(c->arch, sizeof c->arch, "sm_%d%d%s", g.major, g.minor, g.major == 9 ? "a" : "");
	cuda_must(r, api.cuDevicePrimaryCtxRetain(&c->context, c->device), "opening %s", c->name);
	cuda_must(r, api.cuCtxSetCurrent(c->context), "opening %s", c->name);
	cuda_must(r, api.cuStreamCreate(&c->stream, CU_STREAM_NON_BLOCKING), "making a stream");
}

/* A block has 48 KiB of static and dynamic shared memory unless it asks. */
static void
give_shared(const Run *r, const RunKernel *k, CUkernel handle)
{
	const Cuda *c = r->dev;

	if (k->smem + k->res.smem > c->shared)
		die("%s takes %ld bytes of shared memory, a block on %s has %d at most", k->name,
		    k->smem + k->res.smem, c->name, c->shared);
	if (k->smem == 0 || (k->measured && k->smem + k->res.smem <= PlainShared))
		return;
	cuda_must(r, api.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
	                                      (int)k->smem, handle, c->device),
	          "giving %s %ld bytes of shared memory", k->name, k->smem);
}

/* What is loaded at its first launch can wait for the GPU to be idle: all is
 * loaded here. */
static void
load_kernel(Run *r, Cuda *c, int k, const Nvrtc *from)
{
	RunKernel *kernel = &r->kernel[k];
	CUkernel handle = NULL;
	CUfunction fn = NULL;
	int most = 0;

	cuda_must(r, api.cuLibraryLoadData(&c->library[k], from->cubin, NULL, NULL, 0, NULL, NULL, 0),
	          "loading %s, compiled for %s", from->path, c->arch);
	if (api.cuLibraryGetKernel(&handle, c->library[k], kernel->name) != CUDA_SUCCESS)
		die("%s does not define %s", from->path, kernel->name);
	give_shared(r, kernel, handle);
	cuda_must(r, api.cuKernelGetAttribute(&most, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
	                                      handle, c->device), "asking for threads of %s",
	          kernel->name);
	if (most < kernel->threads)
		die("%s can run %d threads in a block, the manifest says %d", kernel->name, most,
		    kernel->threads);
	cuda_must(r, api.cuKernelGetFunction(&fn, handle), "loading %s", kernel->name);
	cuda_must(r, api.cuFuncLoad(fn), "loading %s", kernel->name);
	kernel->handle = fn;
}

/* Arguments that a kernel does not have would be read as addresses. */
static void
check_arguments(const Run *r, int k, const char *path)
{
	const RunStep *s = kernel_mismatch(r, k);

	if (s && r->kernel[k].edited)
		die("%s takes %ld bytes of arguments, and %s passes %d", path,
		    r->kernel[k].res.arguments, s->site, 8 * s->narg);
	if (s)
		bug("%s takes %ld bytes of arguments, and %s passes %d", path,
		    r->kernel[k].res.arguments, s->site, 8 * s->narg);
}

static void
open_kernels(Run *r, Cuda *c)
{
	Arena *a = arena_new("cuda kernels");
	Nvrtc *v = kernels_compile(r, a, c->arch);
	int i;

	c->library = NEWN(r->mem, CUlibrary, r->nkernel + 1);
	for (i = 0; i < r->nkernel; i++) {
		if (!v[i].cubin) {
			kernel_complain(r, i, &v[i]);
			if (r->kernel[i].edited)
				die("%s does not compile", v[i].path);
			bug("%s does not compile", v[i].path);
		}
		check_arguments(r, i, v[i].path);
		load_kernel(r, c, i, &v[i]);
	}
	nvrtc_free(v, r->nkernel);
	arena_free(a);
}

static void
point_at_arguments(Run *r)
{
	RunStep *s;
	int i, j, k;

	for (i = 0; i < r->nprog; i++)
		for (j = 0; j < r->prog[i].nstep; j++) {
			s = &r->prog[i].step[j];
			s->param = NEWN(r->mem, void *, s->narg + 1);
			for (k = 0; k < s->narg; k++)
				s->param[k] = &s->bound[k];
		}
}

static void
cuda_open(Run *r, int nthreads)
{
	Cuda *c = NEW(r->mem, Cuda);
	const char *each = getenv("HCGEN_CUDA_SYNC");

	cuda_need();
	r->dev = c;
	c->each = each && *each && strcmp(each, "0") != 0;
	r->pool = pool_new(nthreads);
	open_device(r, c);
	open_kernels(r, c);
	cuda_memory_open(r);
	run_bind(r);
	point_at_arguments(r);
	lt_open(r);
}

/* Nothing is asked of the answers: the process is at its end. */
static void
cuda_close(Run *r)
{
	Cuda *c = r->dev;
	int i;

	if (!c || !c->context)
		return;
	api.cuStreamSynchronize(c->stream);
	lt_close(r);
	cuda_memory_close(r);
	for (i = 0; i < c->nmark; i++)
		api.cuEventDestroy(c->mark[i]);
	free(c->mark);
	for (i = 0; c->library && i < r->nkernel; i++)
		if (c->library[i])
			api.cuLibraryUnload(c->library[i]);
	api.cuStreamDestroy(c->stream);
	api.cuDevicePrimaryCtxRelease(c->device);
}

const char *
cuda_name(const Run *r)
{
	const Cuda *c = r->dev;

	return c->name;
}

/* steps */

static void
queued(Run *r, RunStep *s)
{
	Cuda *c = r->dev;

	c->last = s;
	if (c->each)
		run_sync(r);
}

static void
cuda_launch(Run *r, RunStep *s)
{
	const RunKernel *k = &r->kernel[s->kernel];
	const Cuda *c = r->dev;
	CUresult e;

	e = api.cuLaunchKernel(k->handle, (unsigned)s->items, 1, 1, (unsigned)k->threads, 1, 1,
	                       (unsigned)k->smem, c->stream, s->param, NULL);
	if (e == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES || e == CUDA_ERROR_INVALID_VALUE)
		blame(r, e, "the GPU does not take", s);
	cuda_must(r, e, "launching %s at %s", k->name, s->site);
	queued(r, s);
}

static void
cuda_gemm(Run *r, RunStep *s)
{
	lt_gemm(r, s);
	queued(r, s);
}

static void
cuda_copy(Run *r, RunStep *s)
{
	const Cuda *c = r->dev;

	cuda_must(r, api.cuMemcpyDtoDAsync((CUdeviceptr)(r->base[s->c.at.arena] + s->c.at.off),
	                                   (CUdeviceptr)(r->base[s->a.at.arena] + s->a.at.off),
	                                   (size_t)s->m, c->stream), "copying at %s", s->site);
	queued(r, s);
}

static void
cuda_clear(Run *r, RunStep *s)
{
	const Cuda *c = r->dev;

	cuda_must(r, api.cuMemsetD8Async((CUdeviceptr)(r->base[s->c.at.arena] + s->c.at.off), 0,
	                                 (size_t)s->m, c->stream), "clearing at %s", s->site);
	queued(r, s);
}

static void
cuda_sync(Run *r)
{
	const Cuda *c = r->dev;

	cuda_must(r, api.cuStreamSynchronize(c->stream), "waiting for it");
}

/* time */

static void
cuda_mark(Run *r, int i)
{
	Cuda *c = r->dev;

	if (i >= c->nmark) {
		c->mark = realloc(c->mark, (size_t)(i + 1) * sizeof *c->mark);
		if (!c->mark)
			die("cannot get memory for events");
		for (; c->nmark <= i; c->nmark++)
			cuda_must(r, api.cuEventCreate(&c->mark[c->nmark], CU_EVENT_DEFAULT),
			          "making an event");
	}
	cuda_must(r, api.cuEventRecord(c->mark[i], c->stream), "recording an event");
}

static double
cuda_between(Run *r, int i)
{
	const Cuda *c = r->dev;
	float ms = 0;

	cuda_must(r, api.cuEventElapsedTime(&ms, c->mark[i], c->mark[i + 1]), "reading events");
	return 1e-3 * (double)ms;
}

double
cuda_copy_speed(Run *r)
{
	const Cuda *c = r->dev;
	CUdeviceptr a = 0, b = 0;
	double best = 0, t;
	int i, k;

	if (api.cuMemAlloc(&a, CopyBytes) == CUDA_SUCCESS &&
	    api.cuMemAlloc(&b, CopyBytes) == CUDA_SUCCESS)
		for (i = 0; i < 4; i++) {
			cuda_mark(r, 0);
			for (k = 0; k < CopyRuns; k++)
				cuda_must(r, api.cuMemcpyDtoDAsync(a, b, CopyBytes, c->stream),
				          "copying to measure its speed");
			cuda_mark(r, 1);
			run_sync(r);
			t = cuda_between(r, 0);
			if (t > 0 && 2. * CopyBytes * CopyRuns / t > best)
				best = 2. * CopyBytes * CopyRuns / t;
		}
	if (a)
		api.cuMemFree(a);
	if (b)
		api.cuMemFree(b);
	return best;
}

static void
cuda_memory(const Run *r, FILE *f)
{
	const Cuda *c = r->dev;
	size_t available = 0, total = 0;

	if (c->lt)
		fprintf(f, "%-18s %16zu %10.1f MiB\n", "gemm workspace", lt_workspace(),
		        (double)lt_workspace() / 1048576);
	if (api.cuMemGetInfo(&available, &total) == CUDA_SUCCESS)
		fprintf(f, "%-18s %16zu %10.1f MiB of %.1f MiB on %s\n", "free", available,
		        (double)available / 1048576, (double)total / 1048576, c->name);
}

const Device device_cuda = {
	.name = "cuda", .target = TARGET_CUDA, .open = cuda_open, .close = cuda_close,
	.launch = cuda_launch, .gemm = cuda_gemm, .copy = cuda_copy, .zero = cuda_zero,
	.clear = cuda_clear,
	.put = cuda_put, .fetch = cuda_fetch, .sync = cuda_sync, .inputs = cuda_inputs,
	.host = cuda_host, .forget = cuda_forget, .mark = cuda_mark, .between = cuda_between,
	.memory = cuda_memory,
};
