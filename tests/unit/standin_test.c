/* The stand-in of libcuda (tests/standin): each rule it enforces is broken once
 * here and gives the documented code, and correct use works.  Kernels are in
 * standin_kernel_test.c. */
#include "standin.h"

#include <math.h>
#include <pthread.h>

enum { N = 256 };

/* ---- the driver before there is a context ---- */

static void
version_and_init(void)
{
	Driver d = open_driver();
	int v, n;
	CUdevice dev;

	WANT(d.cuDriverGetVersion(&v), 0);
	EXPECT(v == 13000, "version %d", v);
	WANT(d.cuDriverGetVersion(NULL), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuDeviceGetCount(&n), CUDA_ERROR_NOT_INITIALIZED);
	WANT(d.cuInit(1), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuInit(0), 0);
	WANT(d.cuDeviceGetCount(&n), 0);
	EXPECT(n == 1, "%d devices", n);
	WANT(d.cuDeviceGet(&dev, 1), CUDA_ERROR_INVALID_DEVICE);
	WANT(d.cuDeviceGet(&dev, 0), 0);
}

static void
attributes_of_an_h200(void)
{
	static const struct { int which, value; } want[] = {
		{ CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9 },
		{ CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0 },
		{ CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132 },
		{ CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32 },
		{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232448 },
		{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152 },
	};
	Driver d = open_context();
	char name[4];
	int v;

	for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
		WANT(d.cuDeviceGetAttribute(&v, want[i].which, 0), 0);
		EXPECT(v == want[i].value, "attribute %d is %d", want[i].which, v);
	}
	WANT(d.cuDeviceGetAttribute(&v, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 1),
	     CUDA_ERROR_INVALID_DEVICE);
	WANT(d.cuDeviceGetName(name, sizeof name, 0), 0);
	EXPECT(strcmp(name, "sta") == 0, "name %s", name);
}

static void
names_of_errors(void)
{
	Driver d = open_driver();
	const char *s;

	WANT(d.cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, &s), 0);
	EXPECT(strcmp(s, "CUDA_ERROR_ILLEGAL_ADDRESS") == 0, "name %s", s);
	WANT(d.cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &s), 0);
	EXPECT(strcmp(s, "out of memory") == 0, "string %s", s);
	WANT(d.cuGetErrorName(12345, &s), CUDA_ERROR_INVALID_VALUE);
	EXPECT(!s, "not NULL");
}

static void
proc_address(void)
{
	Driver d = open_driver();
	CUdriverProcAddressQueryResult status;
	CUresult (*old)(void);
	void *p;

	WANT(d.get("cuNothing", &p, 13000, 0, &status), 0);
	EXPECT(!p && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, "status %d", status);
	WANT(d.get("cuMemAlloc_v2", &p, 13000, 0, &status), 0);
	EXPECT(!p, "a name with _v2 was found");
	want_note("names have no _v2");
	WANT(d.get("cuLibraryLoadData", &p, 11080, 0, &status), 0);
	EXPECT(!p && status == CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT, "status %d", status);
	WANT(d.get("cuMemAlloc", &p, 13010, 0, &status), CUDA_ERROR_INVALID_VALUE);
	WANT(d.get("cuMemAlloc", &p, 13000, 4, &status), CUDA_ERROR_INVALID_VALUE);
	WANT(d.get("cuMemAlloc", NULL, 13000, 0, &status), CUDA_ERROR_INVALID_VALUE);
	WANT(d.get("cuMemAlloc", &p, 3000, 0, &status), 0);
	memcpy(&old, &p, sizeof p);
	WANT(old(), CUDA_ERROR_INVALID_VALUE);
	want_note("old ABI");
	symbol(d.lib, "cuMemAlloc", &old);
	WANT(old(), CUDA_ERROR_INVALID_VALUE);
}

/* All that the runtime asks for (runtime/api.def), by its names and versions. */
static void
every_entry_of_the_runtime(void)
{
	static const struct { const char *library, *name; int version; } entry[] = {
#define FN(library, name, version, result, parameters) { #library, #name, version },
#include "../../runtime/api.def"
	};
	Driver d = open_driver();
	void *nvrtc = open_library("libnvrtc.so.13"), *lt = open_library("libcublasLt.so.13"), *p;

	for (size_t i = 0; i < sizeof entry / sizeof *entry; i++) {
		if (strcmp(entry[i].library, "DRIVER") == 0)
			WANT(d.get(entry[i].name, &p, entry[i].version, 1, NULL), 0);
		else
			p = dlsym(strcmp(entry[i].library, "NVRTC") == 0 ? nvrtc : lt,
			          entry[i].name);
		EXPECT(p, "no %s of version %d", entry[i].name, entry[i].version);
	}
	EXPECT(!strstr(noted(), "cuGetProcAddress"), "%s", noted());
}

static void
old_driver(void)
{
	Driver d = open_driver();
	CUdriverProcAddressQueryResult status;
	void *p;
	int v;

	WANT(d.cuDriverGetVersion(&v), 0);
	EXPECT(v == 12020, "version %d", v);
	EXPECT(!d.cuFuncLoad, "cuFuncLoad of 12.4 is there");
	EXPECT(d.cuLibraryLoadData, "cuLibraryLoadData of 12.0 is not there");
	WANT(d.get("cuFuncLoad", &p, 12040, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	WANT(d.get("cuFuncLoad", &p, 12000, 0, &status), 0);
	EXPECT(!p && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, "status %d", status);
}

static void
no_device(void)
{
	WANT(open_driver().cuInit(0), CUDA_ERROR_NO_DEVICE);
}

static void
stub(void)
{
	Driver d = open_driver();
	CUresult (*version)(int *);
	int v;

	EXPECT(!d.cuInit, "the stub gives entry points");
	symbol(d.lib, "cuInit", (void *)&d.cuInit);
	WANT(d.cuInit(0), CUDA_ERROR_STUB_LIBRARY);
	symbol(d.lib, "cuDriverGetVersion", (void *)&version);
	WANT(version(&v), CUDA_ERROR_STUB_LIBRARY);
}

static void
missing_entry(void)
{
	EXPECT(!open_driver().cuLibraryLoadData, "it is there");
}

static void
injected_failure(void)
{
	Driver d = open_context();
	CUdeviceptr p;

	WANT(d.cuMemAlloc(&p, 16), 0);
	WANT(d.cuMemAlloc(&p, 16), 0);
	WANT(d.cuMemAlloc(&p, 16), 999);
	WANT(d.cuMemAlloc(&p, 16), 999);
}

/* ---- contexts ---- */

static CUresult from_thread;

static void *
allocate(void *arg)
{
	CUdeviceptr p;

	from_thread = ((Driver *)arg)->cuMemAlloc(&p, 16);
	return NULL;
}

static void
needs_a_current_context(void)
{
	Driver d = open_driver();
	CUdeviceptr p;
	CUcontext ctx;
	pthread_t t;

	WANT(d.cuMemAlloc(&p, 16), CUDA_ERROR_NOT_INITIALIZED);
	WANT(d.cuInit(0), 0);
	WANT(d.cuMemAlloc(&p, 16), CUDA_ERROR_INVALID_CONTEXT);
	WANT(d.cuDevicePrimaryCtxRelease(0), CUDA_ERROR_INVALID_CONTEXT);
	WANT(d.cuDevicePrimaryCtxRetain(&ctx, 0), 0);
	WANT(d.cuMemAlloc(&p, 16),
	     CUDA_ERROR_INVALID_CONTEXT);         /* retained is not current */
	WANT(d.cuCtxSetCurrent((CUcontext)&d), CUDA_ERROR_INVALID_CONTEXT);
	WANT(d.cuCtxSetCurrent(ctx), 0);
	WANT(d.cuMemAlloc(&p, 16), 0);
	pthread_create(&t, NULL, allocate, &d);
	pthread_join(t, NULL);
	WANT(from_thread, CUDA_ERROR_INVALID_CONTEXT);
	WANT(d.cuDevicePrimaryCtxRelease(0), 0);
	WANT(d.cuMemAlloc(&p, 16), CUDA_ERROR_CONTEXT_IS_DESTROYED);
}

static void
leaks_are_noted(void)
{
	Driver d = open_context();
	CUdeviceptr p, q;

	WANT(d.cuMemAlloc(&p, 100), 0);
	WANT(d.cuMemAlloc(&q, 200), 0);
	WANT(d.cuMemFree(p), 0);
	WANT(d.cuDevicePrimaryCtxRelease(0), 0);
	want_note("still allocated: 1 (device, 200 bytes)");
	EXPECT(!strstr(noted(), "100 bytes"), "what was freed is noted");
}

/* ---- memory ---- */

static void
allocations(void)
{
	Driver d = open_context();
	size_t room, total, after;
	CUdeviceptr p, q;

	WANT(d.cuMemAlloc(&p, 0), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemAlloc(NULL, 4), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemGetInfo(&room, &total), 0);
	EXPECT(total == 1 << 20 && room == total, "%zu of %zu", room, total);
	WANT(d.cuMemAlloc(&p, 600 << 10), 0);
	EXPECT(p % 256 == 0 && p % 512 != 0, "more aligned than is promised");
	WANT(d.cuMemAlloc(&q, 600 << 10), CUDA_ERROR_OUT_OF_MEMORY);
	WANT(d.cuMemGetInfo(&after, &total), 0);
	EXPECT(after == total - (600 << 10), "%zu free", after);
	WANT(d.cuMemFree(p + 4), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemFree(p), 0);
	WANT(d.cuMemFree(p), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemAlloc(&q, 600 << 10), 0);
	EXPECT(q != p, "freed addresses are used again");
}

static void
oom_after(void)
{
	Driver d = open_context();
	CUdeviceptr p;
	void *h;

	WANT(d.cuMemAlloc(&p, 16), 0);
	WANT(d.cuMemAlloc(&p, 16), 0);
	WANT(d.cuMemAlloc(&p, 16), CUDA_ERROR_OUT_OF_MEMORY);
	WANT(d.cuMemHostAlloc(&h, 16, 0), 0);
}

static void
pinned_memory(void)
{
	Driver d = open_context();
	CUdeviceptr p;
	void *h;

	WANT(d.cuMemHostAlloc(&h, 64, 8), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemHostAlloc(&h, 0, 0), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemHostAlloc(&h, 64, 0), 0);
	WANT(d.cuMemAlloc(&p, 64), 0);
	WANT(d.cuMemFree((CUdeviceptr)(uintptr_t)h), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemFreeHost((void *)(uintptr_t)p), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemHostRegister((char *)h + 8, 8, 0), CUDA_ERROR_INVALID_VALUE);
	((char *)h)[64] = 1;
	WANT(d.cuMemFreeHost(h), 0);
	want_note("the host wrote outside pinned allocation");
}

static void
copies_stay_inside(void)
{
	Driver d = open_context();
	CUdeviceptr p, q;
	CUstream s;
	char h[64] = { 0 };
	char *pinned;

	WANT(d.cuStreamCreate(&s, CU_STREAM_NON_BLOCKING), 0);
	WANT(d.cuMemAlloc(&p, 64), 0);
	WANT(d.cuMemAlloc(&q, 64), 0);
	WANT(d.cuMemHostAlloc((void **)&pinned, 64, 0), 0);
	WANT(d.cuMemcpyHtoDAsync(p + 1, h, 64, s), CUDA_ERROR_INVALID_VALUE);
	want_note("64 bytes at offset 1 of allocation 0 (device, 64 bytes)");
	WANT(d.cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)h, h, 64, s), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemcpyHtoDAsync(p, pinned + 32, 64, s),
	     CUDA_ERROR_INVALID_VALUE);     /* pinned in part */
	WANT(d.cuMemcpyHtoDAsync(p, (void *)(uintptr_t)q, 64, s), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemcpyDtoHAsync(h, p + 60, 8, s), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemcpyDtoDAsync(p, q, 65, s), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemcpyDtoDAsync(p + 8, p, 16, s),
	     CUDA_ERROR_INVALID_VALUE);           /* overlap */
	WANT(d.cuMemsetD8Async(p, 0, 65, s), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemsetD32Async(p + 2, 0, 4, s), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuMemcpyHtoDAsync(p, h, 0, s), 0);
	WANT(d.cuMemcpyHtoDAsync(p, h, 64, s), 0);
	WANT(d.cuStreamSynchronize(s), 0);
	WANT(d.cuMemFree(p), 0);
	WANT(d.cuMemcpyHtoDAsync(p, h, 64, s), CUDA_ERROR_INVALID_VALUE);
	want_note("freed allocation 0");
}

static void
new_memory_is_no_number(void)
{
	Driver d = open_context();
	float x[4] = { 0 };
	CUdeviceptr p;

	WANT(d.cuMemAlloc(&p, sizeof x), 0);
	WANT(d.cuMemcpyDtoH(x, p, sizeof x), 0);
	EXPECT(isnan(x[0]) && isnan(x[3]), "%g", x[0]);
}

static void
host_touches_device_memory(void)
{
	Driver d = open_context();
	CUdeviceptr p;
	pid_t pid;
	int status;

	WANT(d.cuMemAlloc(&p, 64), 0);
	pid = fork();
	if (pid == 0)
		_exit(*(volatile char *)(uintptr_t)p & 1);
	waitpid(pid, &status, 0);
	EXPECT(WIFSIGNALED(status), "it could read it");
	want_note("the host touched");
}

/* ---- order of work ---- */

typedef struct { Driver d; CUstream s; CUdeviceptr p; char *pinned; } Queue;

static Queue
queue(void)
{
	Queue q = { .d = open_context() };

	WANT(q.d.cuStreamCreate(&q.s, CU_STREAM_NON_BLOCKING), 0);
	WANT(q.d.cuMemAlloc(&q.p, N), 0);
	WANT(q.d.cuMemHostAlloc((void **)&q.pinned, N, 0), 0);
	memset(q.pinned, 1, N);
	return q;
}

/* A buffer that is overwritten before the copy is known to be over. */
static void
reuse_too_early_shows(void)
{
	Queue q = queue();
	char back[N];

	WANT(q.d.cuMemcpyHtoDAsync(q.p, q.pinned, N, q.s), 0);
	memset(q.pinned, 2, N);
	WANT(q.d.cuStreamSynchronize(q.s), 0);
	WANT(q.d.cuMemcpyDtoH(back, q.p, N), 0);
	EXPECT(back[0] == 2, "the copy was made at the call");
}

static void
reuse_after_the_event_works(void)
{
	Queue q = queue();
	char back[N];
	CUevent e;

	WANT(q.d.cuEventCreate(&e, CU_EVENT_DISABLE_TIMING), 0);
	WANT(q.d.cuMemcpyHtoDAsync(q.p, q.pinned, N, q.s), 0);
	WANT(q.d.cuEventRecord(e, q.s), 0);
	WANT(q.d.cuEventSynchronize(e), 0);
	memset(q.pinned, 2, N);
	WANT(q.d.cuStreamSynchronize(q.s), 0);
	WANT(q.d.cuMemcpyDtoH(back, q.p, N), 0);
	EXPECT(back[0] == 1, "%d", back[0]);
}

static void
results_read_too_early_are_old(void)
{
	Queue q = queue();

	WANT(q.d.cuMemsetD8Async(q.p, 7, N, q.s), 0);
	WANT(q.d.cuMemcpyDtoHAsync(q.pinned, q.p, N, q.s), 0);
	EXPECT(q.pinned[0] == 1, "done at the call");
	WANT(q.d.cuStreamSynchronize(q.s), 0);
	EXPECT(q.pinned[0] == 7, "not done by the wait");
}

/* Pageable memory: "might be synchronous". */
static void
pageable_copies_are_as_late(void)
{
	Queue q = queue();
	char h[N], back[N] = { 0 };

	memset(h, 3, N);
	WANT(q.d.cuMemcpyHtoDAsync(q.p, h, N, q.s), 0);
	memset(h, 4, N);
	WANT(q.d.cuMemcpyDtoHAsync(back, q.p, N, q.s), 0);
	EXPECT(back[0] == 0, "done at the call");
	WANT(q.d.cuStreamSynchronize(q.s), 0);
	EXPECT(back[0] == 4, "%d", back[0]);
}

static void
eager_order(void)
{
	Queue q = queue();

	WANT(q.d.cuMemsetD8Async(q.p, 7, N, q.s), 0);
	WANT(q.d.cuMemcpyDtoHAsync(q.pinned, q.p, N, q.s), 0);
	EXPECT(q.pinned[0] == 7, "not done at the call");
}

/* cuMemcpyHtoD from pageable memory returns before the bytes arrive, in stream 0,
 * for which a non-blocking stream does not wait. */
static void
stream_zero_does_not_order_non_blocking_streams(void)
{
	Queue q = queue();
	CUstream blocking;
	char h[N];

	memset(h, 5, N);
	WANT(q.d.cuMemsetD8(q.p, 1, N), 0);
	WANT(q.d.cuCtxSynchronize(), 0);
	WANT(q.d.cuMemcpyHtoD(q.p, h, N), 0);
	WANT(q.d.cuMemcpyDtoHAsync(q.pinned, q.p, N, q.s), 0);
	WANT(q.d.cuStreamSynchronize(q.s), 0);
	EXPECT(q.pinned[0] == 1, "the non-blocking stream waited");
	WANT(q.d.cuStreamCreate(&blocking, CU_STREAM_DEFAULT), 0);
	WANT(q.d.cuMemcpyDtoHAsync(q.pinned, q.p, N, blocking), 0);
	WANT(q.d.cuStreamSynchronize(blocking), 0);
	EXPECT(q.pinned[0] == 5, "the blocking stream did not wait");
	WANT(q.d.cuMemsetD8Async(q.p, 9, N, q.s), 0);
	WANT(q.d.cuMemcpyDtoH(h, q.p, N), 0);
	EXPECT(h[0] == 5, "a copy in stream 0 waited for a non-blocking stream");
}

static void
events_order_streams(void)
{
	Queue q = queue();
	CUstream t;
	CUevent e;

	WANT(q.d.cuStreamCreate(&t, CU_STREAM_NON_BLOCKING), 0);
	WANT(q.d.cuEventCreate(&e, 0), 0);
	WANT(q.d.cuMemsetD8Async(q.p, 8, N, q.s), 0);
	WANT(q.d.cuMemcpyDtoHAsync(q.pinned, q.p, N, t), 0);
	WANT(q.d.cuStreamSynchronize(t), 0);
	EXPECT(q.pinned[0] == -1, "without an event t waited for s");
	WANT(q.d.cuMemsetD8Async(q.p, 9, N, q.s), 0);
	WANT(q.d.cuEventRecord(e, q.s), 0);
	WANT(q.d.cuStreamWaitEvent(t, e, 0), 0);
	WANT(q.d.cuMemcpyDtoHAsync(q.pinned, q.p, N, t), 0);
	WANT(q.d.cuStreamSynchronize(t), 0);
	EXPECT(q.pinned[0] == 9, "%d", q.pinned[0]);
}

static void
events(void)
{
	Queue q = queue();
	CUevent a, b, untimed;
	int looks = 0;
	float ms;

	WANT(q.d.cuEventCreate(&a, 64), CUDA_ERROR_INVALID_VALUE);
	WANT(q.d.cuEventCreate(&a, CU_EVENT_INTERPROCESS), CUDA_ERROR_INVALID_VALUE);
	WANT(q.d.cuEventCreate(&a, 0), 0);
	WANT(q.d.cuEventCreate(&b, 0), 0);
	WANT(q.d.cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING), 0);
	WANT(q.d.cuEventQuery(a), 0);           /* never recorded: nothing to wait for */
	WANT(q.d.cuEventSynchronize(a), 0);
	WANT(q.d.cuEventElapsedTime(&ms, a, b), CUDA_ERROR_INVALID_HANDLE);
	WANT(q.d.cuEventRecord(a, q.s), 0);
	WANT(q.d.cuMemsetD8Async(q.p, 8, N, q.s), 0);
	WANT(q.d.cuEventRecord(b, q.s), 0);
	WANT(q.d.cuEventRecord(untimed, q.s), 0);
	WANT(q.d.cuEventElapsedTime(&ms, a, b), CUDA_ERROR_NOT_READY);
	WANT(q.d.cuStreamQuery(q.s), CUDA_ERROR_NOT_READY);
	while (q.d.cuEventQuery(b) == CUDA_ERROR_NOT_READY && looks < 100)
		looks++;
	EXPECT(looks > 0 && looks < 100, "%d looks", looks);
	WANT(q.d.cuEventElapsedTime(&ms, a, b), 0);
	EXPECT(ms >= 0 && ms < 1000, "%g ms", (double)ms);
	WANT(q.d.cuStreamSynchronize(q.s), 0);
	WANT(q.d.cuEventElapsedTime(&ms, a, untimed), CUDA_ERROR_INVALID_HANDLE);
	WANT(q.d.cuEventDestroy(a), 0);
	WANT(q.d.cuEventRecord(a, q.s), CUDA_ERROR_INVALID_HANDLE);
	WANT(q.d.cuEventDestroy(a), CUDA_ERROR_INVALID_HANDLE);
}

static void
streams(void)
{
	Queue q = queue();

	WANT(q.d.cuStreamCreate(&q.s, 2), CUDA_ERROR_INVALID_VALUE);
	WANT(q.d.cuStreamSynchronize(CU_STREAM_PER_THREAD), CUDA_ERROR_INVALID_HANDLE);
	WANT(q.d.cuMemsetD8Async(q.p, 8, N, q.s), 0);
	WANT(q.d.cuStreamDestroy(q.s), 0);
	WANT(q.d.cuStreamSynchronize(q.s), CUDA_ERROR_INVALID_HANDLE);
	WANT(q.d.cuStreamDestroy(NULL), CUDA_ERROR_INVALID_HANDLE);
	WANT(q.d.cuCtxSynchronize(), 0);        /* what was queued is done */
	WANT(q.d.cuMemcpyDtoH(q.pinned, q.p, N), 0);
	EXPECT(q.pinned[0] == 8, "%d", q.pinned[0]);
}

/* "may perform implicit synchronization": not to be counted on */
static void
free_does_not_wait(void)
{
	Queue q = queue();

	WANT(q.d.cuMemsetD8Async(q.p, 8, N, q.s), 0);
	WANT(q.d.cuMemFree(q.p), 0);
	WANT(q.d.cuStreamSynchronize(q.s), CUDA_ERROR_ILLEGAL_ADDRESS);
}

static void
errors_stay(void)
{
	Queue q = queue();
	CUdeviceptr p;

	WANT(q.d.cuMemsetD8Async(q.p, 8, N, q.s), 0);
	WANT(q.d.cuMemsetD8Async(q.p, 8, N, q.s), 0);
	WANT(q.d.cuStreamSynchronize(q.s), CUDA_ERROR_ECC_UNCORRECTABLE);
	WANT(q.d.cuMemAlloc(&p, 4), CUDA_ERROR_ECC_UNCORRECTABLE);
	WANT(q.d.cuStreamSynchronize(q.s), CUDA_ERROR_ECC_UNCORRECTABLE);
	WANT(q.d.cuMemFree(q.p), CUDA_ERROR_ECC_UNCORRECTABLE);
	WANT(q.d.cuDevicePrimaryCtxRelease(0), 0);
}

int
main(void)
{
	test_begin();
	run_case("version-and-init", "", version_and_init);
	run_case("attributes-of-an-h200", "", attributes_of_an_h200);
	run_case("names-of-errors", "", names_of_errors);
	run_case("proc-address", "", proc_address);
	run_case("every-entry-of-the-runtime", "", every_entry_of_the_runtime);
	run_case("old-driver", "old_driver=12020", old_driver);
	run_case("no-device", "no_device", no_device);
	run_case("stub", "stub", stub);
	run_case("missing-entry", "missing=cuLibraryLoadData", missing_entry);
	run_case("injected-failure", "fail=cuMemAlloc:999:3", injected_failure);
	run_case("needs-a-current-context", "", needs_a_current_context);
	run_case("leaks-are-noted", "leaks", leaks_are_noted);
	run_case("allocations", "memory=1048576", allocations);
	run_case("oom-after", "oom_after=2", oom_after);
	run_case("pinned-memory", "", pinned_memory);
	run_case("copies-stay-inside", "", copies_stay_inside);
	run_case("new-memory-is-no-number", "", new_memory_is_no_number);
	run_case("host-touches-device-memory", "", host_touches_device_memory);
	run_case("reuse-too-early-shows", "", reuse_too_early_shows);
	run_case("reuse-after-the-event-works", "", reuse_after_the_event_works);
	run_case("results-read-too-early-are-old", "", results_read_too_early_are_old);
	run_case("pageable-copies-are-as-late", "", pageable_copies_are_as_late);
	run_case("eager-order", "order=eager", eager_order);
	run_case("stream-zero-does-not-order-non-blocking-streams", "",
	         stream_zero_does_not_order_non_blocking_streams);
	run_case("events-order-streams", "", events_order_streams);
	run_case("events", "", events);
	run_case("streams", "", streams);
	run_case("free-does-not-wait", "", free_does_not_wait);
	run_case("errors-stay", "ecc_after=2", errors_stay);
	return test_end();
}
