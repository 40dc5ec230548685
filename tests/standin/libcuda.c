/* libcuda.so.1 for a machine without a GPU: the entry points.
 *
 * Each checks what cuda.h says about it, and then lets memory.c, engine.c and
 * module.c do it.  HCGEN_STANDIN (inject.c) changes the machine and breaks it
 * at chosen places; docs/runtime.md lists the rules.
 *
 * Every call that needs a context finds it current to the calling thread or
 * fails, and after an error on the device every call returns that error. */
#define _GNU_SOURCE
#include "standin.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* CU_DEVICE_ATTRIBUTE_COMPUTE_MODE 0: default.  Numbers of an H200. */
enum { Driver = 13000, GridX = 2147483647, GridYZ = 65535, BlockZ = 64 };

struct CUctx_st { int magic; };

static struct CUctx_st primary;
static int retained;
static bool initialised;
static _Thread_local CUcontext current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- entering and leaving ---- */

CUresult
guard_enter(const char *entry, Need need)
{
	CUresult e;

	pthread_mutex_lock(&lock);
	e = inject("stub") ? CUDA_ERROR_STUB_LIBRARY : (CUresult)inject_failure(entry);
	if (e)
		return e;
	if (need >= NEED_INIT && !initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (need < NEED_CONTEXT)
		return 0;
	if (!current)
		return refuse(entry, CUDA_ERROR_INVALID_CONTEXT,
		              "no context is current to this thread");
	return retained ? engine_error() : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

void
guard_leave(CUresult *e)
{
	(void)e;
	pthread_mutex_unlock(&lock);
}

CUresult
refuse(const char *entry, CUresult e, const char *why)
{
	note("%s: %s", entry, why);
	return e;
}

/* ---- driver ---- */

PUBLIC CUresult CUDAAPI
cuInit(unsigned flags)
{
	ENTER(NEED_NOTHING);
	if (flags != 0)
		REFUSE(CUDA_ERROR_INVALID_VALUE, "flags must be 0");
	if (inject("no_device"))
		return CUDA_ERROR_NO_DEVICE;
	initialised = true;
	return 0;
}

PUBLIC CUresult CUDAAPI
cuDriverGetVersion(int *version)
{
	ENTER(NEED_NOTHING);
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	*version = (int)inject_number("old_driver", Driver);
	return 0;
}

#define ERROR_NAME(name, value, text) case value: return #name;
#define ERROR_TEXT(name, value, text) case value: return text;

static const char *
error_name(CUresult e)
{
	switch ((int)e) { CUDA_ERRORS(ERROR_NAME) }
	return NULL;
}

static const char *
error_text(CUresult e)
{
	switch ((int)e) { CUDA_ERRORS(ERROR_TEXT) }
	return NULL;
}

PUBLIC CUresult CUDAAPI
cuGetErrorName(CUresult e, const char **s)
{
	ENTER(NEED_NOTHING);
	if (!s)
		return CUDA_ERROR_INVALID_VALUE;
	*s = error_name(e);
	return *s ? 0 : CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult CUDAAPI
cuGetErrorString(CUresult e, const char **s)
{
	ENTER(NEED_NOTHING);
	if (!s)
		return CUDA_ERROR_INVALID_VALUE;
	*s = error_text(e);
	return *s ? 0 : CUDA_ERROR_INVALID_VALUE;
}

/* ---- devices ---- */

PUBLIC CUresult CUDAAPI
cuDeviceGetCount(int *n)
{
	ENTER(NEED_INIT);
	if (!n)
		return CUDA_ERROR_INVALID_VALUE;
	*n = (int)inject_number("devices", 1);
	return 0;
}

PUBLIC CUresult CUDAAPI
cuDeviceGet(CUdevice *d, int ordinal)
{
	ENTER(NEED_INIT);
	if (!d)
		return CUDA_ERROR_INVALID_VALUE;
	if (ordinal < 0 || ordinal >= inject_number("devices", 1))
		return CUDA_ERROR_INVALID_DEVICE;
	*d = ordinal;
	return 0;
}

PUBLIC CUresult CUDAAPI
cuDeviceGetName(char *name, int size, CUdevice d)
{
	ENTER(NEED_INIT);
	if (!name || size <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	snprintf(name, (size_t)size, "stand-in");
	return 0;
}

PUBLIC CUresult CUDAAPI
cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice d)
{
	ENTER(NEED_INIT);
	if (!uuid)
		return CUDA_ERROR_INVALID_VALUE;
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	memcpy(uuid->bytes, "hcgen's stand-in", sizeof uuid->bytes);
	return 0;
}

PUBLIC CUresult CUDAAPI
cuDeviceTotalMem_v2(size_t *nbytes, CUdevice d)
{
	size_t available;

	ENTER(NEED_INIT);
	if (!nbytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	memory_total(nbytes, &available);
	return 0;
}

static const struct { int which, value; } attribute[] = {
	{ CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, DEV_THREADS },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, DEV_THREADS },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, DEV_THREADS },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, BlockZ },
	{ CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, GridX },
	{ CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, GridYZ },
	{ CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, GridYZ },
	{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, DEV_SMEM },
	{ CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 64 << 10 },
	{ CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32 },
	{ CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, DEV_REGS },
	{ CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1980000 },
	{ CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, DEV_SMS },
	{ CU_DEVICE_ATTRIBUTE_INTEGRATED, 0 },
	{ CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1 },
	{ CU_DEVICE_ATTRIBUTE_COMPUTE_MODE, 0 },
	{ CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1 },
	{ CU_DEVICE_ATTRIBUTE_ECC_ENABLED, 1 },
	{ CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, 1 },
	{ CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, 0 },
	{ CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, 0 },
	{ CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 3201000 },
	{ CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 6144 },
	{ CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 60 << 20 },
	{ CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, DEV_THREADS_SM },
	{ CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3 },
	{ CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1 },
	{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, DEV_SMEM_SM },
	{ CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, DEV_REGS },
	{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, DEV_SMEM_OPTIN },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, DEV_BLOCKS_SM },
	{ CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, DEV_SMEM_RESERVED },
};

PUBLIC CUresult CUDAAPI
cuDeviceGetAttribute(int *out, CUdevice_attribute which, CUdevice d)
{
	ENTER(NEED_INIT);
	if (!out)
		return CUDA_ERROR_INVALID_VALUE;
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	if ((int)which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
		*out = device_cc() / 10;
	else if ((int)which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
		*out = device_cc() % 10;
	else {
		size_t i, n = sizeof attribute / sizeof *attribute;

		for (i = 0; i < n && attribute[i].which != (int)which; i++)
			;
		if (i == n)
			REFUSE(CUDA_ERROR_INVALID_VALUE,
			       "an attribute that the stand-in does not know");
		*out = attribute[i].value;
	}
	return 0;
}

/* ---- context ---- */

PUBLIC CUresult CUDAAPI
cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice d)
{
	ENTER(NEED_INIT);
	if (!ctx)
		return CUDA_ERROR_INVALID_VALUE;
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	catch_faults();
	retained++;
	*ctx = &primary;
	return 0;
}

/* The last release resets the context: what it holds is gone. */
PUBLIC CUresult CUDAAPI
cuDevicePrimaryCtxRelease_v2(CUdevice d)
{
	ENTER(NEED_INIT);
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	if (retained == 0)
		REFUSE(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
	if (--retained > 0)
		return 0;
	if (inject("leaks"))
		memory_report_leaks();
	memory_free_all();
	engine_reset();
	return 0;
}

PUBLIC CUresult CUDAAPI
cuCtxSetCurrent(CUcontext ctx)
{
	ENTER(NEED_INIT);
	if (ctx && (ctx != &primary || !retained))
		REFUSE(CUDA_ERROR_INVALID_CONTEXT, "not a live context");
	current = ctx;
	return 0;
}

PUBLIC CUresult CUDAAPI
cuCtxGetCurrent(CUcontext *ctx)
{
	ENTER(NEED_INIT);
	if (!ctx)
		return CUDA_ERROR_INVALID_VALUE;
	*ctx = current;
	return 0;
}

PUBLIC CUresult CUDAAPI
cuCtxGetDevice(CUdevice *d)
{
	ENTER(NEED_CONTEXT);
	if (!d)
		return CUDA_ERROR_INVALID_VALUE;
	*d = 0;
	return 0;
}

PUBLIC CUresult CUDAAPI
cuCtxSynchronize(void)
{
	ENTER(NEED_CONTEXT);
	return engine_wait_all();
}

/* ---- memory ---- */

PUBLIC CUresult CUDAAPI
cuMemGetInfo_v2(size_t *available, size_t *total)
{
	ENTER(NEED_CONTEXT);
	if (!available || !total)
		return CUDA_ERROR_INVALID_VALUE;
	memory_total(total, available);
	return 0;
}

PUBLIC CUresult CUDAAPI
cuMemAlloc_v2(CUdeviceptr *p, size_t nbytes)
{
	void *at;
	CUresult e;

	ENTER(NEED_CONTEXT);
	if (!p || nbytes == 0)
		REFUSE(CUDA_ERROR_INVALID_VALUE, "no place for the pointer, or 0 bytes");
	e = memory_new(MEM_DEVICE, nbytes, &at);
	if (!e)
		*p = (CUdeviceptr)(uintptr_t)at;
	return e;
}

PUBLIC CUresult CUDAAPI
cuMemFree_v2(CUdeviceptr p)
{
	ENTER(NEED_CONTEXT);
	return memory_free(MEM_DEVICE, (void *)(uintptr_t)p);
}

PUBLIC CUresult CUDAAPI
cuMemHostAlloc(void **p, size_t nbytes, unsigned flags)
{
	unsigned all = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;

	ENTER(NEED_CONTEXT);
	if (!p || nbytes == 0 || (flags & ~all))
		REFUSE(CUDA_ERROR_INVALID_VALUE,
		       "no place for the pointer, 0 bytes, or flags that do not exist");
	return memory_new(MEM_PINNED, nbytes, p);
}

PUBLIC CUresult CUDAAPI
cuMemFreeHost(void *p)
{
	ENTER(NEED_CONTEXT);
	return memory_free(MEM_PINNED, p);
}

PUBLIC CUresult CUDAAPI
cuMemHostRegister_v2(void *p, size_t nbytes, unsigned flags)
{
	unsigned all = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY;

	ENTER(NEED_CONTEXT);
	if (!p || nbytes == 0 || (flags & ~all))
		return CUDA_ERROR_INVALID_VALUE;
	return memory_register(p, nbytes);
}

PUBLIC CUresult CUDAAPI
cuMemHostUnregister(void *p)
{
	ENTER(NEED_CONTEXT);
	return memory_free(MEM_REGISTERED, p);
}

/* ---- streams and events ---- */

PUBLIC CUresult CUDAAPI
cuStreamCreate(CUstream *s, unsigned flags)
{
	ENTER(NEED_CONTEXT);
	if (!s || (flags & ~(unsigned)CU_STREAM_NON_BLOCKING))
		REFUSE(CUDA_ERROR_INVALID_VALUE,
		       "no place for the stream, or flags that do not exist");
	return stream_new(s, flags);
}

PUBLIC CUresult CUDAAPI
cuStreamCreateWithPriority(CUstream *s, unsigned flags, int priority)
{
	ENTER(NEED_CONTEXT);
	(void)priority;         /* clamped to the valid range: a hint */
	if (!s || (flags & ~(unsigned)CU_STREAM_NON_BLOCKING))
		REFUSE(CUDA_ERROR_INVALID_VALUE,
		       "no place for the stream, or flags that do not exist");
	return stream_new(s, flags);
}

PUBLIC CUresult CUDAAPI
cuStreamDestroy_v2(CUstream s)
{
	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	if (s == NULL || s == CU_STREAM_LEGACY)
		REFUSE(CUDA_ERROR_INVALID_HANDLE, "stream 0 is not ours to destroy");
	return stream_free(s);
}

PUBLIC CUresult CUDAAPI
cuStreamSynchronize(CUstream s)
{
	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	return stream_wait(s);
}

PUBLIC CUresult CUDAAPI
cuStreamQuery(CUstream s)
{
	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	return stream_query(s);
}

PUBLIC CUresult CUDAAPI
cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags)
{
	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	NEED_EVENT(e);
	if (flags != 0)
		REFUSE(CUDA_ERROR_INVALID_VALUE, "flags outside of a capture");
	return stream_after(s, e);
}

PUBLIC CUresult CUDAAPI
cuEventCreate(CUevent *e, unsigned flags)
{
	unsigned all = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;

	ENTER(NEED_CONTEXT);
	if (!e || (flags & ~all) || ((flags & CU_EVENT_INTERPROCESS) &&
	                             !(flags & CU_EVENT_DISABLE_TIMING)))
		REFUSE(CUDA_ERROR_INVALID_VALUE, "no place for the event, or flags that do not go");
	return event_new(e, flags);
}

PUBLIC CUresult CUDAAPI
cuEventDestroy_v2(CUevent e)
{
	ENTER(NEED_CONTEXT);
	NEED_EVENT(e);
	return event_free(e);
}

PUBLIC CUresult CUDAAPI
cuEventRecord(CUevent e, CUstream s)
{
	ENTER(NEED_CONTEXT);
	NEED_EVENT(e);
	NEED_STREAM(s);
	return event_record(e, s);
}

PUBLIC CUresult CUDAAPI
cuEventSynchronize(CUevent e)
{
	ENTER(NEED_CONTEXT);
	NEED_EVENT(e);
	return event_wait(e);
}

PUBLIC CUresult CUDAAPI
cuEventQuery(CUevent e)
{
	ENTER(NEED_CONTEXT);
	NEED_EVENT(e);
	return event_query(e);
}

PUBLIC CUresult CUDAAPI
cuEventElapsedTime_v2(float *ms, CUevent a, CUevent b)
{
	ENTER(NEED_CONTEXT);
	NEED_EVENT(a);
	NEED_EVENT(b);
	if (!ms)
		return CUDA_ERROR_INVALID_VALUE;
	return event_elapsed(ms, a, b);
}

/* ---- for libcublasLt ---- */

static int
hook_ready(void)
{
	CUresult e;

	if (inject("no_device") || inject("stub") || inject_number("devices", 1) < 1)
		return CUDA_ERROR_NO_DEVICE;
	pthread_mutex_lock(&lock);
	e = engine_error();
	pthread_mutex_unlock(&lock);
	return (int)e;
}

static bool
hook_device(const char *who, const char *what, const void *p, size_t nbytes)
{
	bool fine;

	pthread_mutex_lock(&lock);
	fine = memory_device(who, what, p, nbytes);
	pthread_mutex_unlock(&lock);
	return fine;
}

static bool
hook_stream(CUstream s)
{
	bool fine;

	pthread_mutex_lock(&lock);
	fine = stream_valid(s);
	pthread_mutex_unlock(&lock);
	return fine;
}

static CUresult
hook_add(CUstream s, const char *what, Work *work, const void *payload, size_t nbytes)
{
	CUresult e;

	pthread_mutex_lock(&lock);
	e = retained ? engine_error() : CUDA_ERROR_INVALID_CONTEXT;
	if (!e)
		e = stream_add(s, what, work, payload, nbytes);
	pthread_mutex_unlock(&lock);
	return e;
}

const StandinHooks *
standin_hooks(void)
{
	static const StandinHooks hooks = { hook_ready, hook_device, memory_device, hook_stream,
	                                    hook_add };

	return &hooks;
}
