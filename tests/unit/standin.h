/* What the tests of the stand-ins share: libraries opened by hand, cases in
 * processes of their own, a small kernel.  Included once, after nothing. */
#ifndef STANDIN_TEST_H
#define STANDIN_TEST_H

#define _GNU_SOURCE
#include "../standin/decl.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *build_dir;           /* $STANDIN_BUILD, or build */

/* ---- entry points ---- */

/* X(name, suffix of the ABI, version that has it) */
#define DRIVER(X) \
	X(cuInit, , 2000) X(cuDriverGetVersion, , 2020) X(cuGetErrorName, , 6000) X(cuGetErrorString, , 6000) \
	X(cuDeviceGetCount, , 2000) X(cuDeviceGet, , 2000) X(cuDeviceGetName, , 2000) X(cuDeviceTotalMem, _v2, 3020) \
	X(cuDeviceGetAttribute, , 2000) X(cuDevicePrimaryCtxRetain, , 7000) \
	X(cuDevicePrimaryCtxRelease, _v2, 11000) X(cuCtxSetCurrent, , 4000) X(cuCtxSynchronize, , 2000) \
	X(cuMemGetInfo, _v2, 3020) X(cuMemAlloc, _v2, 3020) X(cuMemFree, _v2, 3020) X(cuMemHostAlloc, , 2020) \
	X(cuMemFreeHost, , 2000) X(cuMemHostRegister, _v2, 6050) X(cuMemcpyHtoD, _v2, 3020) \
	X(cuMemcpyDtoH, _v2, 3020) X(cuMemcpyHtoDAsync, _v2, 3020) X(cuMemcpyDtoHAsync, _v2, 3020) \
	X(cuMemcpyDtoDAsync, _v2, 3020) X(cuMemsetD8, _v2, 3020) X(cuMemsetD8Async, , 3020) \
	X(cuMemsetD32Async, , 3020) X(cuStreamCreate, , 2000) X(cuStreamDestroy, _v2, 4000) \
	X(cuStreamSynchronize, , 2000) X(cuStreamQuery, , 2000) X(cuStreamWaitEvent, , 3020) \
	X(cuEventCreate, , 2000) X(cuEventDestroy, _v2, 4000) X(cuEventRecord, , 2000) \
	X(cuEventSynchronize, , 2000) X(cuEventQuery, , 2000) X(cuEventElapsedTime, _v2, 2000) \
	X(cuLibraryLoadData, , 12000) X(cuLibraryUnload, , 12000) X(cuLibraryGetKernel, , 12000) \
	X(cuKernelGetFunction, , 12000) X(cuKernelGetAttribute, , 12000) X(cuKernelSetAttribute, , 12000) \
	X(cuKernelGetParamInfo, , 12040) X(cuFuncGetAttribute, , 2020) X(cuFuncSetAttribute, , 9000) \
	X(cuFuncLoad, , 12040) X(cuLaunchKernel, , 4000) X(cuLaunchKernelEx, , 11060) \
	X(cuOccupancyMaxActiveBlocksPerMultiprocessor, , 6050)
#define NVRTC(X) \
	X(nvrtcGetErrorString) X(nvrtcVersion) X(nvrtcCreateProgram) X(nvrtcDestroyProgram) \
	X(nvrtcCompileProgram) X(nvrtcGetProgramLogSize) X(nvrtcGetProgramLog) X(nvrtcGetCUBINSize) \
	X(nvrtcGetCUBIN) X(nvrtcGetPTXSize) X(nvrtcGetNumSupportedArchs) X(nvrtcGetSupportedArchs)
#define LT(X) \
	X(cublasLtGetVersion) X(cublasLtGetStatusName) X(cublasLtGetStatusString) X(cublasLtCreate) \
	X(cublasLtDestroy) X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) \
	X(cublasLtMatrixLayoutSetAttribute) X(cublasLtMatrixLayoutGetAttribute) X(cublasLtMatmulDescCreate) \
	X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute) X(cublasLtMatmulDescGetAttribute) \
	X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) \
	X(cublasLtMatmulPreferenceSetAttribute) X(cublasLtMatmulPreferenceGetAttribute) \
	X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmulAlgoCheck) X(cublasLtMatmul)

#define POINTER(name, suffix, version) __typeof__(name##suffix) *name;
#define PLAIN(name) __typeof__(name) *name;

typedef struct { DRIVER(POINTER) __typeof__(cuGetProcAddress_v2) *get; void *lib; } Driver;
typedef struct { NVRTC(PLAIN) void *lib; } Nvrtc;
typedef struct { LT(PLAIN) void *lib; } Lt;

/* ---- cases ---- */

static int passed, failed, skipped;

/* In the child: what is wrong is said on standard output, and the case fails. */
static inline void wrong(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static inline void
wrong(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
	_exit(1);
}

#define WANT(call, code) \
	do { \
		int got_ = (int)(call), want_ = (int)(code); \
		if (got_ != want_) \
			wrong("line %d: %s gave %d, not %d", __LINE__, #call, got_, want_); \
	} while (0)
#define EXPECT(true_, ...) \
	do { \
		if (!(true_)) \
			wrong("line " LINE_(__LINE__) ": " __VA_ARGS__); \
	} while (0)
#define LINE_(x) LINE__(x)
#define LINE__(x) #x

static char log_path[] = "/tmp/hcgen-standin-test-XXXXXX";

/* What the stand-ins noted since the case began. */
static inline const char *
noted(void)
{
	static char s[20000];
	FILE *f = fopen(log_path, "r");

	s[f ? fread(s, 1, sizeof s - 1, f) : 0] = 0;
	if (f)
		fclose(f);
	return s;
}

static inline void
want_note(const char *words)
{
	if (!strstr(noted(), words))
		wrong("\"%s\" is not in the log:\n%s", words, noted());
}

/* A case in a process of its own, with this HCGEN_STANDIN. */
static inline void
run_case(const char *name, const char *faults, void (*fn)(void))
{
	const char *only = getenv("ONLY");
	char out[4000];
	size_t n = 0;
	ssize_t got;
	int p[2], status;
	pid_t pid;

	if (only && !strstr(name, only))
		return;
	fflush(NULL);
	if (pipe(p) != 0 || (pid = fork()) < 0)
		abort();
	if (pid == 0) {
		dup2(p[1], 1);
		close(p[0]);
		close(p[1]);
		setenv("HCGEN_STANDIN", faults, 1);
		unlink(log_path);
		fn();
		fflush(stdout);
		_exit(0);
	}
	close(p[1]);
	while ((got = read(p[0], out + n, sizeof out - 1 - n)) > 0)
		n += (size_t)got;
	out[n] = 0;
	close(p[0]);
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		passed++;
		printf("ok %s\n", name);
	} else {
		failed++;
		printf("FAIL %s %s%s\n", name, WIFEXITED(status) ? "" : "died of a signal ", out);
	}
}

static inline void
skip_case(const char *name, const char *why)
{
	skipped++;
	printf("skip %s %s\n", name, why);
}

static inline void
test_begin(void)
{
	char command[500];
	int fd = mkstemp(log_path);

	if (fd >= 0)
		close(fd);
	build_dir = getenv("STANDIN_BUILD");
	build_dir = build_dir ? build_dir : "build";
	snprintf(command, sizeof command, "sh tests/standin/build.sh '%s' >&2", build_dir);
	if (system(command) != 0) {
		printf("FAIL build tests/standin/build.sh failed\n");
		exit(1);
	}
	setenv("HCGEN_STANDIN_LOG", log_path, 1);
}

static inline int
test_end(void)
{
	unlink(log_path);
	printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
	return failed > 0;
}

/* ---- libraries ---- */

static inline void *
open_library(const char *name)
{
	char path[500];
	void *lib;

	snprintf(path, sizeof path, "%s%s/standin/%s", build_dir[0] == '/' ? "" : "./", build_dir,
	         name);
	lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		wrong("%s", dlerror());
	return lib;
}

static inline void
symbol(void *lib, const char *name, void *out)
{
	void *p = dlsym(lib, name);

	if (!p)
		wrong("no %s", name);
	memcpy(out, &p, sizeof p);
}

#define OPEN_DRIVER(name, suffix, version) \
	d.get(#name, (void **)(void *)&d.name, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, NULL);
#define OPEN_PLAIN(name) symbol(x.lib, #name, (void *)&x.name);

/* What the case left out with missing= is NULL. */
static inline Driver
open_driver(void)
{
	Driver d = { 0 };

	d.lib = open_library("libcuda.so.1");
	symbol(d.lib, "cuGetProcAddress_v2", &d.get);
	DRIVER(OPEN_DRIVER)
	return d;
}

static inline Nvrtc
open_nvrtc_at(void *lib)
{
	Nvrtc x = { .lib = lib };

	NVRTC(OPEN_PLAIN)
	return x;
}

static inline Nvrtc
open_nvrtc(void)
{
	return open_nvrtc_at(open_library("libnvrtc.so.13"));
}

static inline Lt
open_lt_at(void *lib)
{
	Lt x = { .lib = lib };

	LT(OPEN_PLAIN)
	return x;
}

/* A context that is current. */
static inline Driver
open_context(void)
{
	Driver d = open_driver();
	CUcontext ctx;
	CUdevice dev;

	WANT(d.cuInit(0), 0);
	WANT(d.cuDeviceGet(&dev, 0), 0);
	WANT(d.cuDevicePrimaryCtxRetain(&ctx, dev), 0);
	WANT(d.cuCtxSetCurrent(ctx), 0);
	return d;
}

static const char *const usual[] = {
	"--gpu-architecture=sm_90a", "--std=c++17", "-default-device", "--no-cache", "--modify-stack-limit=false"
};
enum { NUsual = sizeof usual / sizeof *usual };

/* Compiles; the cubin, which is the caller's. */
static inline char *
compile_sized(const Nvrtc *n, const char *name, const char *text, size_t *out)
{
	nvrtcProgram p;
	size_t size;
	char *cubin;

	WANT(n->nvrtcCreateProgram(&p, text, name, 0, NULL, NULL), 0);
	WANT(n->nvrtcCompileProgram(p, NUsual, usual), 0);
	WANT(n->nvrtcGetCUBINSize(p, &size), 0);
	cubin = malloc(size);
	WANT(n->nvrtcGetCUBIN(p, cubin), 0);
	WANT(n->nvrtcDestroyProgram(&p), 0);
	*out = size;
	return cubin;
}

static inline char *
compile(const Nvrtc *n, const char *name, const char *text)
{
	size_t size;

	return compile_sized(n, name, text, &size);
}

static inline CUkernel
load(const Driver *d, const char *cubin, const char *name)
{
	CUlibrary l;
	CUkernel k;

	WANT(d->cuLibraryLoadData(&l, cubin, NULL, NULL, 0, NULL, NULL, 0), 0);
	WANT(d->cuLibraryGetKernel(&k, l, name), 0);
	return k;
}

static inline CUfunction
function(const Driver *d, const char *name, const char *text)
{
	Nvrtc n = open_nvrtc();
	char *cubin = compile(&n, name, text);
	CUkernel k = load(d, cubin, name);
	CUfunction f;

	free(cubin);
	WANT(d->cuKernelGetFunction(&f, k), 0);
	WANT(d->cuFuncLoad(f), 0);
	return f;
}

/* y = a x + n, by blocks of 64 */
static const char scale_text[] =
	"extern \"C\" __global__ __launch_bounds__(64)\n"
	"void scale(float *__restrict__ y,      // [n], out\n"
	"           const float *__restrict__ x, long n, double a)\n"
	"{\n"
	"\tconst long i = (long)blockIdx.x * 64 + threadIdx.x;\n"
	"\tif (i < n)\n"
	"\t\ty[i] = (float)a * x[i] + (float)n;\n"
	"}\n";
/* y reversed in blocks of 64, through static and dynamic shared memory */
static const char turn_text[] =
	"#ifndef HC_SIMT\n"
	"extern __shared__ __align__(128) unsigned char hc_dynamic[];\n"
	"__device__ unsigned char *dynamic_smem() { return hc_dynamic; }\n"
	"#endif\n"
	"extern \"C\" __global__ __launch_bounds__(64)\n"
	"void turn(float *y, const float *x)\n"
	"{\n"
	"\t__shared__ float s[64];\n"
	"\tfloat *t = (float *)dynamic_smem();\n"
	"\ts[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];\n"
	"\t__syncthreads();\n"
	"\tt[threadIdx.x] = s[63 - threadIdx.x];\n"
	"\t__syncthreads();\n"
	"\ty[blockIdx.x * 64 + threadIdx.x] = t[threadIdx.x];\n"
	"}\n";

#endif
