/* Libraries, kernels and launches.
 *
 * A library holds the one kernel whose text libnvrtc's stand-in put into the
 * "cubin".  The text is compiled behind the shim of the simt executor when the
 * kernel is loaded, and a launch runs it: what the executor finds wrong kills
 * the context as the GPU would, and is noted with its place. */
#define _GNU_SOURCE
#include "standin.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/simt.h"

enum { MaxParam = 256 };
enum { PaddingBytes = 128 };    /* variables of shared memory may lie in another order */
enum { LibraryMagic = 0x4c494252, KernelMagic = 0x4b45524e, FunctionMagic = 0x46554e43 };

struct CUlib_st { int magic; Library *of; };
struct CUkern_st { int magic; Kernel *of; };
struct CUfunc_st { int magic; Kernel *of; };

struct Kernel {
	struct CUkern_st handle;
	struct CUfunc_st function;
	Library *library;
	KernelFacts facts;
	char *text;
	int max_dynamic;
	SimtKernel *compiled;
};

struct Library {
	struct CUlib_st handle;
	Library *next;
	bool live;
	Kernel kernel;
};

static Library *libraries;
static Simt *simt;
static long memory_seen = -1;

/* ---- libraries ---- */

static Library *
library_of(CUlibrary l)
{
	for (Library *t = libraries; t; t = t->next)
		if (&t->handle == l)
			return t->live ? t : NULL;
	return NULL;
}

CUresult
library_load(CUlibrary *out, const void *image)
{
	const char *why = "", *text;
	KernelFacts facts;
	Library *l;

	text = elf_read(image, &facts, &why);
	if (!text)
		return refuse("cuLibraryLoadData", CUDA_ERROR_INVALID_IMAGE, why);
	if (facts.arch / 10 != device_cc() / 10 || facts.arch > device_cc()) {
		note("cuLibraryLoadData: %s was compiled for sm_%d, the device is %d.%d",
		     facts.name, facts.arch, device_cc() / 10, device_cc() % 10);
		return CUDA_ERROR_NO_BINARY_FOR_GPU;
	}
	l = calloc(1, sizeof *l);
	if (!l)
		return CUDA_ERROR_OUT_OF_MEMORY;
	l->handle = (struct CUlib_st){ LibraryMagic, l };
	l->next = libraries;
	l->live = true;
	l->kernel = (Kernel){ { KernelMagic, &l->kernel }, { FunctionMagic, &l->kernel }, l, facts,
	                      strdup(text), DEV_SMEM - facts.static_smem, NULL };
	libraries = l;
	*out = &l->handle;
	return 0;
}

CUresult
library_unload(CUlibrary handle)
{
	Library *l = library_of(handle);

	if (!l)
		return refuse("cuLibraryUnload", CUDA_ERROR_INVALID_VALUE, "not a loaded library");
	l->live = false;
	return 0;
}

CUresult
library_kernel(CUkernel *out, CUlibrary handle, const char *name)
{
	Library *l = library_of(handle);

	if (!l)
		return refuse("cuLibraryGetKernel", CUDA_ERROR_INVALID_HANDLE,
		              "not a loaded library");
	if (strcmp(name, l->kernel.facts.name) != 0)
		return CUDA_ERROR_NOT_FOUND;
	*out = &l->kernel.handle;
	return 0;
}

CUresult
library_count(unsigned *out, CUlibrary handle)
{
	*out = 1;
	return library_of(handle) ? 0 : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- kernels ---- */

Kernel *
kernel_of(CUkernel k)
{
	for (Library *l = libraries; l; l = l->next)
		if (l->live && &l->kernel.handle == k)
			return &l->kernel;
	return NULL;
}

Kernel *
kernel_of_function(CUfunction f)
{
	for (Library *l = libraries; l; l = l->next)
		if (l->live && &l->kernel.function == f)
			return &l->kernel;
	return kernel_of((CUkernel)(void *)f);
}

CUfunction
kernel_function(Kernel *k)
{
	return &k->function;
}

const char *
kernel_name(const Kernel *k)
{
	return k->facts.name;
}

static Simt *
executor(void)
{
	SimtOpts o = { .seed = (unsigned long)inject_number("seed", 1), .nworkers = 1,
	               .check = inject("check") != NULL };

	return simt ? simt : (simt = simt_new(&o));
}

CUresult
kernel_load(Kernel *k)
{
	size_t smem;

	if (k->compiled)
		return 0;
	k->compiled = simt_kernel(executor(), k->facts.name, k->facts.path, k->text);
	smem = simt_static_smem(k->compiled);
	if (labs((long)smem - k->facts.static_smem) > PaddingBytes)
		note("%s: the executor counts %zu bytes of static shared memory, the cubin says %d",
		     k->facts.name, smem, k->facts.static_smem);
	return 0;
}

CUresult
kernel_get(const Kernel *k, int attribute, int *out)
{
	switch (attribute) {
	case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *out = k->facts.threads; return 0;
	case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *out = k->facts.static_smem; return 0;
	case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES: *out = 0; return 0;
	case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *out = k->facts.local; return 0;
	case CU_FUNC_ATTRIBUTE_NUM_REGS: *out = k->facts.registers; return 0;
	case CU_FUNC_ATTRIBUTE_PTX_VERSION:
	case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *out = k->facts.arch; return 0;
	case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA: *out = 0; return 0;
	case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *out = k->max_dynamic; return 0;
	case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *out = -1; return 0;
	}
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult
kernel_set(Kernel *k, int attribute, int value)
{
	if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT)
		return value >= -1 && value <= 100 ? 0 : CUDA_ERROR_INVALID_VALUE;
	if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
		note("%s: attribute %d cannot be set", k->facts.name, attribute);
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (value < 0 || value + k->facts.static_smem > DEV_SMEM_OPTIN) {
		note("%s: %d bytes of dynamic and %d of static shared memory, %d are the most",
		     k->facts.name, value, k->facts.static_smem, DEV_SMEM_OPTIN);
		return CUDA_ERROR_INVALID_VALUE;
	}
	k->max_dynamic = value;
	return 0;
}

CUresult
kernel_param(const Kernel *k, size_t i, size_t *off, size_t *nbytes)
{
	if (i >= (size_t)k->facts.nparam)
		return CUDA_ERROR_INVALID_VALUE;
	*off = 8 * i;
	if (nbytes)
		*nbytes = 8;
	return 0;
}

static int
round_up(int n, int to)
{
	return (n + to - 1) / to * to;
}

/* Warps are given registers by 256; the other limits are the device's. */
CUresult
kernel_occupancy(const Kernel *k, int *out, int block, size_t smem)
{
	int warps = round_up(block, 32) / 32;
	int bytes = (int)smem + k->facts.static_smem + DEV_SMEM_RESERVED;
	int by_regs = DEV_REGS / (warps * round_up(32 * k->facts.registers, 256));
	int by_threads = DEV_THREADS_SM / (32 * warps), by_smem = DEV_SMEM_SM / bytes, n = DEV_BLOCKS_SM;

	n = by_regs < n ? by_regs : n;
	n = by_threads < n ? by_threads : n;
	*out = block > k->facts.threads ? 0 : by_smem < n ? by_smem : n;
	return 0;
}

/* ---- launches ---- */

typedef struct {
	Kernel *kernel;
	long grid;
	int block, narg;
	size_t smem;
	HcArg arg[MaxParam];
} Launch;

/* Without checks the executor touches what the text says: red zones and freed
 * blocks have no access rights, and the signal ends the launch as a GPU would.
 * That takes a launch that runs in this thread: one worker. */
static _Thread_local sigjmp_buf out_of_launch;
static _Thread_local volatile sig_atomic_t in_launch;
static struct sigaction before;

static void
on_fault(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (in_launch)
		siglongjmp(out_of_launch, 1);
	note("the host touched %p, which it must not: is it device memory?", info->si_addr);
	sigaction(sig, &before, NULL);
}

void
catch_faults(void)
{
	static bool done;
	struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	if (done)
		return;
	done = true;
	sigaction(SIGSEGV, &act, &before);
}

/* The executor may touch device memory, and pinned memory: addresses are unified. */
static void
show_memory(void)
{
	const Block *b;
	int n = memory_blocks(&b);

	if (memory_seen == memory_changes())
		return;
	memory_seen = memory_changes();
	simt_memory_clear(executor());
	for (int i = 0; i < n; i++) {
		static const char *const names[] = { "device memory", "pinned memory",
		                                     "registered memory" };

		if (b[i].live)
			simt_memory(executor(), names[b[i].kind], b[i].at, b[i].nbytes, true);
	}
}

static CUresult
injected(const char *name)
{
	if (inject_names("launch_fail", name))
		return CUDA_ERROR_LAUNCH_FAILED;
	return inject_names("illegal", name) ? CUDA_ERROR_ILLEGAL_ADDRESS : 0;
}

static CUresult
do_launch(void *payload)
{
	Launch *l = payload;
	Kernel *k = l->kernel;
	SimtFault fault = { 0 };
	bool fine;

	if (injected(k->facts.name))
		return injected(k->facts.name);
	if (!k->library->live) {
		note("%s: its library was unloaded before it ran", k->facts.name);
		return CUDA_ERROR_LAUNCH_FAILED;
	}
	kernel_load(k);
	show_memory();
	if (sigsetjmp(out_of_launch, 1)) {
		in_launch = 0;
		note("%s: touched memory that is not the device's", k->facts.name);
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	}
	in_launch = 1;
	fine = simt_launch(simt, k->compiled, l->grid, l->block, l->smem, l->narg, l->arg, &fault,
	                   NULL);
	in_launch = 0;
	if (fine)
		return 0;
	note("%s: block %ld thread %d line %d: %s", k->facts.name, fault.block, fault.thread,
	     fault.line, fault.text);
	return CUDA_ERROR_ILLEGAL_ADDRESS;
}

static const char *
check_shape(const Kernel *k, const unsigned grid[3], const unsigned block[3], unsigned smem)
{
	unsigned threads = block[0] * block[1] * block[2];

	if (!grid[0] || !grid[1] || !grid[2] || !block[0] || !block[1] || !block[2])
		return "a dimension is 0";
	if (grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535)
		return "the grid is too large";
	if (block[0] > DEV_THREADS || block[1] > DEV_THREADS || block[2] > 64 ||
	    threads > DEV_THREADS)
		return "the block is too large for the device";
	if (threads > (unsigned)k->facts.threads)
		return "more threads than the kernel's __launch_bounds__";
	if (smem > (unsigned)k->max_dynamic)
		return "more dynamic shared memory than CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES allows";
	if (grid[1] != 1 || grid[2] != 1 || block[1] != 1 || block[2] != 1)
		return "more than one dimension, which the executor does not know";
	return NULL;
}

/* {BUFFER_POINTER, p, BUFFER_SIZE, &n, END} */
static const char *
read_extra(Launch *l, void **extra)
{
	const char *buffer = NULL;
	size_t n = 0;

	for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
		if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
			buffer = extra[1];
		else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
			n = *(const size_t *)extra[1];
		else
			return "extra holds something that does not exist";
	}
	if (!buffer || n != sizeof *l->arg * (size_t)l->narg)
		return "the buffer of extra has not the size of the parameters";
	memcpy(l->arg, buffer, n);
	return NULL;
}

static const char *
read_params(Launch *l, void **params, void **extra)
{
	if (params && extra)
		return "both kernelParams and extra are given";
	if (extra)
		return read_extra(l, extra);
	if (!params && l->narg > 0)
		return "no parameters, the kernel has some";
	for (int i = 0; i < l->narg; i++) {
		if (!params[i])
			return "fewer parameters than the kernel has";
		memcpy(&l->arg[i], params[i], sizeof l->arg[i]);
	}
	return NULL;
}

CUresult
kernel_launch(const char *who, Kernel *k, const unsigned grid[3], const unsigned block[3],
              unsigned smem, CUstream s, void **params, void **extra)
{
	static Launch l;
	const char *why = check_shape(k, grid, block, smem);

	l = (Launch){ k, grid[0], (int)block[0], k->facts.nparam, smem, { { 0 } } };
	if (!why && l.narg > MaxParam)
		why = "too many parameters";
	if (!why)
		why = read_params(&l, params, extra);
	if (why) {
		note("%s: %s: %s (grid %u block %u dynamic shared memory %u)", who, k->facts.name,
		     why, grid[0], block[0], smem);
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (inject_names("refuse", k->facts.name) ||
	    (int)block[0] * round_up(k->facts.registers, 8) > DEV_REGS)
		return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
	return stream_add(s, k->facts.name, do_launch, &l,
	                  offsetof(Launch, arg) + sizeof *l.arg * (size_t)l.narg);
}
