/* libcuda.so.1: entry points that copy, load and launch. */
#define _GNU_SOURCE
#include "standin.h"

#include <stdlib.h>
#include <string.h>

/* ---- copies and sets ---- */

typedef struct {
	char *to;
	const char *from;
	size_t nbytes;
	bool from_device, to_device;
	const char *who;
	char staged[];          /* what a pageable source held when the call was made */
} Copy;

static CUresult
do_copy(void *payload)
{
	Copy *c = payload;

	if ((c->from_device && !memory_device(c->who, "the source", c->from, c->nbytes)) ||
	    (c->to_device && !memory_device(c->who, "the destination", c->to, c->nbytes)))
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	if (c->from_device && c->to_device) {
		memcpy(c->to, c->from, c->nbytes);
		return 0;
	}
	if (memory_copy(c->to, c->from, c->nbytes))
		return 0;
	note("%s: host memory of %zu bytes was gone when the copy was made", c->who, c->nbytes);
	return CUDA_ERROR_ILLEGAL_ADDRESS;
}

static CUresult
do_staged(void *payload)
{
	Copy *c = payload;

	if (!memory_device(c->who, "the destination", c->to, c->nbytes))
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	memcpy(c->to, c->staged, c->nbytes);
	return 0;
}

static bool
check_copy(const Copy *c)
{
	return (c->from_device ? memory_device(c->who, "the source", c->from, c->nbytes)
	                       : memory_host(c->who, c->from, c->nbytes)) &&
	       (c->to_device ? memory_device(c->who, "the destination", c->to, c->nbytes)
	                     : memory_host(c->who, c->to, c->nbytes));
}

static CUresult
add_copy(const Copy *c, CUstream s)
{
	if (c->nbytes == 0)
		return 0;
	if (!check_copy(c))
		return CUDA_ERROR_INVALID_VALUE;
	return stream_add(s, c->who, do_copy, c, sizeof *c);
}

/* Copies with pageable memory "might be synchronous": nobody may count on it,
 * so they are as late as those with pinned memory. */
PUBLIC CUresult CUDAAPI
cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t nbytes, CUstream s)
{
	Copy c = { (char *)(uintptr_t)to, from, nbytes, false, true, "cuMemcpyHtoDAsync" };

	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	return add_copy(&c, s);
}

PUBLIC CUresult CUDAAPI
cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t nbytes, CUstream s)
{
	Copy c = { to, (const char *)(uintptr_t)from, nbytes, true, false, "cuMemcpyDtoHAsync" };

	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	return add_copy(&c, s);
}

PUBLIC CUresult CUDAAPI
cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t nbytes, CUstream s)
{
	Copy c = { (char *)(uintptr_t)to, (const char *)(uintptr_t)from, nbytes, true, true,
	           "cuMemcpyDtoDAsync" };

	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	if (c.to < c.from + nbytes && c.from < c.to + nbytes)
		REFUSE(CUDA_ERROR_INVALID_VALUE, "source and destination overlap");
	return add_copy(&c, s);
}

/* From pageable memory the call returns when the bytes are staged, not when
 * they have arrived: streams that do not wait for stream 0 may see old ones. */
PUBLIC CUresult CUDAAPI
cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t nbytes)
{
	Copy c = { (char *)(uintptr_t)to, from, nbytes, false, true, "cuMemcpyHtoD" }, *staged;
	const Block *b;
	CUresult e;

	ENTER(NEED_CONTEXT);
	if (nbytes == 0)
		return 0;
	if (!check_copy(&c))
		return CUDA_ERROR_INVALID_VALUE;
	b = memory_find(from, nbytes);
	if (b) {
		e = add_copy(&c, NULL);
		return e ? e : stream_wait(NULL);
	}
	e = stream_wait(NULL);
	staged = e ? NULL : malloc(sizeof *staged + nbytes);
	if (!staged)
		return e ? e : CUDA_ERROR_OUT_OF_MEMORY;
	*staged = c;
	memcpy(staged->staged, from, nbytes);
	e = stream_add(NULL, c.who, do_staged, staged, sizeof *staged + nbytes);
	free(staged);
	return e;
}

PUBLIC CUresult CUDAAPI
cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t nbytes)
{
	Copy c = { to, (const char *)(uintptr_t)from, nbytes, true, false, "cuMemcpyDtoH" };
	CUresult e;

	ENTER(NEED_CONTEXT);
	e = add_copy(&c, NULL);
	return e ? e : stream_wait(NULL);
}

typedef struct { char *to; size_t n; int width; unsigned value; const char *who; } Set;

static CUresult
do_set(void *payload)
{
	Set *s = payload;

	if (!memory_device(s->who, "the destination", s->to, s->n * (size_t)s->width))
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	if (s->width == 1)
		memset(s->to, (int)s->value, s->n);
	else
		for (size_t i = 0; i < s->n; i++)
			memcpy(s->to + 4 * i, &s->value, 4);
	return 0;
}

static CUresult
add_set(const Set *set, CUstream s)
{
	if (set->n == 0)
		return 0;
	if ((uintptr_t)set->to % (unsigned)set->width != 0)
		return refuse(set->who, CUDA_ERROR_INVALID_VALUE, "the destination is not aligned");
	if (!memory_device(set->who, "the destination", set->to, set->n * (size_t)set->width))
		return CUDA_ERROR_INVALID_VALUE;
	return stream_add(s, set->who, do_set, set, sizeof *set);
}

PUBLIC CUresult CUDAAPI
cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream s)
{
	Set set = { (char *)(uintptr_t)to, n, 1, value, "cuMemsetD8Async" };

	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	return add_set(&set, s);
}

PUBLIC CUresult CUDAAPI
cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t n, CUstream s)
{
	Set set = { (char *)(uintptr_t)to, n, 4, value, "cuMemsetD32Async" };

	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	return add_set(&set, s);
}

/* asynchronous too, in stream 0 */
PUBLIC CUresult CUDAAPI
cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n)
{
	Set set = { (char *)(uintptr_t)to, n, 1, value, "cuMemsetD8" };

	ENTER(NEED_CONTEXT);
	return add_set(&set, NULL);
}

PUBLIC CUresult CUDAAPI
cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t n)
{
	Set set = { (char *)(uintptr_t)to, n, 4, value, "cuMemsetD32" };

	ENTER(NEED_CONTEXT);
	return add_set(&set, NULL);
}

/* ---- libraries ---- */

PUBLIC CUresult CUDAAPI
cuLibraryLoadData(CUlibrary *l, const void *code, CUjit_option *jit, void **jit_value,
                  unsigned njit, CUlibraryOption *option, void **option_value, unsigned noption)
{
	ENTER(NEED_INIT);
	if (!l || !code || (njit > 0 && (!jit || !jit_value)) ||
	    (noption > 0 && (!option || !option_value)))
		REFUSE(CUDA_ERROR_INVALID_VALUE, "a pointer is missing");
	return library_load(l, code);
}

PUBLIC CUresult CUDAAPI
cuLibraryUnload(CUlibrary l)
{
	ENTER(NEED_INIT);
	return library_unload(l);
}

PUBLIC CUresult CUDAAPI
cuLibraryGetKernel(CUkernel *k, CUlibrary l, const char *name)
{
	ENTER(NEED_INIT);
	if (!k || !name)
		return CUDA_ERROR_INVALID_VALUE;
	return library_kernel(k, l, name);
}

PUBLIC CUresult CUDAAPI
cuLibraryGetKernelCount(unsigned *n, CUlibrary l)
{
	ENTER(NEED_INIT);
	if (!n)
		return CUDA_ERROR_INVALID_VALUE;
	return library_count(n, l);
}

/* ---- kernels ---- */

#define NEED_KERNEL(k) \
	if (!(k)) \
		REFUSE(CUDA_ERROR_INVALID_HANDLE, "not a kernel of a loaded library")

PUBLIC CUresult CUDAAPI
cuKernelGetFunction(CUfunction *f, CUkernel handle)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	k = kernel_of(handle);
	NEED_KERNEL(k);
	if (!f)
		return CUDA_ERROR_INVALID_VALUE;
	*f = kernel_function(k);
	return 0;
}

PUBLIC CUresult CUDAAPI
cuKernelGetName(const char **name, CUkernel handle)
{
	Kernel *k;

	ENTER(NEED_INIT);
	k = kernel_of(handle);
	if (!name || !k)
		return CUDA_ERROR_INVALID_VALUE;
	*name = kernel_name(k);
	return 0;
}

PUBLIC CUresult CUDAAPI
cuKernelGetParamInfo(CUkernel handle, size_t i, size_t *off, size_t *nbytes)
{
	Kernel *k;

	ENTER(NEED_INIT);
	k = kernel_of(handle);
	if (!k || !off)
		return CUDA_ERROR_INVALID_VALUE;
	return kernel_param(k, i, off, nbytes);
}

PUBLIC CUresult CUDAAPI
cuKernelGetAttribute(int *out, CUfunction_attribute which, CUkernel handle, CUdevice d)
{
	Kernel *k;

	ENTER(NEED_INIT);
	k = kernel_of(handle);
	NEED_KERNEL(k);
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	return out ? kernel_get(k, (int)which, out) : CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult CUDAAPI
cuKernelSetAttribute(CUfunction_attribute which, int value, CUkernel handle, CUdevice d)
{
	Kernel *k;

	ENTER(NEED_INIT);
	k = kernel_of(handle);
	NEED_KERNEL(k);
	if (d != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	return kernel_set(k, (int)which, value);
}

/* A CUkernel may stand for a CUfunction in launches and occupancy alone. */
#define NEED_FUNCTION(f, k) \
	k = kernel_of_function(f); \
	if (!k || kernel_of((CUkernel)(void *)(f))) \
		REFUSE(CUDA_ERROR_INVALID_HANDLE, "not a function of a loaded library")

PUBLIC CUresult CUDAAPI
cuFuncGetAttribute(int *out, CUfunction_attribute which, CUfunction f)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	NEED_FUNCTION(f, k);
	return out ? kernel_get(k, (int)which, out) : CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult CUDAAPI
cuFuncSetAttribute(CUfunction f, CUfunction_attribute which, int value)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	NEED_FUNCTION(f, k);
	return kernel_set(k, (int)which, value);
}

PUBLIC CUresult CUDAAPI
cuFuncLoad(CUfunction f)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	NEED_FUNCTION(f, k);
	return kernel_load(k);
}

PUBLIC CUresult CUDAAPI
cuFuncGetName(const char **name, CUfunction f)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	k = kernel_of_function(f);
	if (!name || !k)
		return CUDA_ERROR_INVALID_VALUE;
	*name = kernel_name(k);
	return 0;
}

PUBLIC CUresult CUDAAPI
cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int block, size_t smem)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	k = kernel_of_function(f);
	if (!k || !n || block <= 0)
		REFUSE(CUDA_ERROR_INVALID_VALUE,
		       "no function, no place for the answer, or no threads");
	return kernel_occupancy(k, n, block, smem);
}

PUBLIC CUresult CUDAAPI
cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
               unsigned bz, unsigned smem, CUstream s, void **params, void **extra)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	NEED_STREAM(s);
	k = kernel_of_function(f);
	NEED_KERNEL(k);
	return kernel_launch(__func__, k, (unsigned[]){ gx, gy, gz }, (unsigned[]){ bx, by, bz },
	                     smem, s, params, extra);
}

PUBLIC CUresult CUDAAPI
cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra)
{
	Kernel *k;

	ENTER(NEED_CONTEXT);
	if (!c || (c->numAttrs > 0 && !c->attrs))
		REFUSE(CUDA_ERROR_INVALID_VALUE, "no configuration");
	NEED_STREAM(c->hStream);
	k = kernel_of_function(f);
	NEED_KERNEL(k);
	for (unsigned i = 0; i < c->numAttrs; i++) {
		int id = (int)c->attrs[i].id;

		if (id != CU_LAUNCH_ATTRIBUTE_IGNORE && id != CU_LAUNCH_ATTRIBUTE_PRIORITY &&
		    id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
			REFUSE(CUDA_ERROR_NOT_SUPPORTED,
			       "a launch attribute that the stand-in does not know");
	}
	return kernel_launch(__func__, k, (unsigned[]){ c->gridDimX, c->gridDimY, c->gridDimZ },
	                     (unsigned[]){ c->blockDimX, c->blockDimY,
	                                   c->blockDimZ }, c->sharedMemBytes,
	                     c->hStream, params, extra);
}
