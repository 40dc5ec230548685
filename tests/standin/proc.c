/* libcuda.so.1: cuGetProcAddress, and the entry points that a plain dlsym finds
 * under names that belong to old ABIs.
 *
 * Versions are those of cudaTypedefs.h: cuMemAlloc is 32 bits wide if asked for
 * by a version below 3020, and so is the symbol cuMemAlloc itself.  Whoever
 * gets hold of such a function is told so when calling it. */
#define _GNU_SOURCE
#include "standin.h"

#include <string.h>

/* X(name, version of the old ABI) */
#define OLD(X) \
	X(cuMemAlloc, 2000) X(cuMemFree, 2000) X(cuMemGetInfo, 2000) X(cuDeviceTotalMem, 2000) \
	X(cuMemcpyHtoD, 2000) X(cuMemcpyDtoH, 2000) X(cuMemcpyHtoDAsync, 2000) X(cuMemcpyDtoHAsync, 2000) \
	X(cuMemcpyDtoDAsync, 3000) X(cuMemsetD8, 2000) X(cuMemsetD32, 2000) X(cuStreamDestroy, 2000) \
	X(cuEventDestroy, 2000) X(cuDevicePrimaryCtxRelease, 7000) X(cuMemHostRegister, 4000)

/* The macros of cuda.h make the new names of these. */
#undef cuMemAlloc
#undef cuMemFree
#undef cuMemGetInfo
#undef cuDeviceTotalMem
#undef cuMemcpyHtoD
#undef cuMemcpyDtoH
#undef cuMemcpyHtoDAsync
#undef cuMemcpyDtoHAsync
#undef cuMemcpyDtoDAsync
#undef cuMemsetD8
#undef cuMemsetD32
#undef cuStreamDestroy
#undef cuEventDestroy
#undef cuDevicePrimaryCtxRelease
#undef cuMemHostRegister
#undef cuGetProcAddress
#undef cuEventElapsedTime

#define OLD_ENTRY(name, version) \
	PUBLIC CUresult name(void); \
	PUBLIC CUresult \
	name(void) \
	{ \
		return refuse(#name, CUDA_ERROR_INVALID_VALUE, \
		              "this is the entry point of an old ABI; ask cuGetProcAddress for a newer one"); \
	}

OLD(OLD_ENTRY)

/* X(name, version, function) */
#define ENTRIES(X) \
	X(cuInit, 2000, cuInit) X(cuDriverGetVersion, 2020, cuDriverGetVersion) \
	X(cuGetErrorName, 6000, cuGetErrorName) X(cuGetErrorString, 6000, cuGetErrorString) \
	X(cuDeviceGetCount, 2000, cuDeviceGetCount) X(cuDeviceGet, 2000, cuDeviceGet) \
	X(cuDeviceGetName, 2000, cuDeviceGetName) X(cuDeviceGetUuid, 11040, cuDeviceGetUuid_v2) \
	X(cuDeviceGetAttribute, 2000, cuDeviceGetAttribute) X(cuDeviceTotalMem, 3020, cuDeviceTotalMem_v2) \
	X(cuDevicePrimaryCtxRetain, 7000, cuDevicePrimaryCtxRetain) \
	X(cuDevicePrimaryCtxRelease, 11000, cuDevicePrimaryCtxRelease_v2) \
	X(cuCtxSetCurrent, 4000, cuCtxSetCurrent) X(cuCtxGetCurrent, 4000, cuCtxGetCurrent) \
	X(cuCtxGetDevice, 2000, cuCtxGetDevice) X(cuCtxSynchronize, 2000, cuCtxSynchronize) \
	X(cuMemGetInfo, 3020, cuMemGetInfo_v2) X(cuMemAlloc, 3020, cuMemAlloc_v2) \
	X(cuMemFree, 3020, cuMemFree_v2) X(cuMemHostAlloc, 2020, cuMemHostAlloc) \
	X(cuMemFreeHost, 2000, cuMemFreeHost) X(cuMemHostRegister, 6050, cuMemHostRegister_v2) \
	X(cuMemHostUnregister, 4000, cuMemHostUnregister) \
	X(cuMemcpyHtoD, 3020, cuMemcpyHtoD_v2) X(cuMemcpyDtoH, 3020, cuMemcpyDtoH_v2) \
	X(cuMemcpyHtoDAsync, 3020, cuMemcpyHtoDAsync_v2) X(cuMemcpyDtoHAsync, 3020, cuMemcpyDtoHAsync_v2) \
	X(cuMemcpyDtoDAsync, 3020, cuMemcpyDtoDAsync_v2) X(cuMemsetD8, 3020, cuMemsetD8_v2) \
	X(cuMemsetD32, 3020, cuMemsetD32_v2) X(cuMemsetD8Async, 3020, cuMemsetD8Async) \
	X(cuMemsetD32Async, 3020, cuMemsetD32Async) X(cuStreamCreate, 2000, cuStreamCreate) \
	X(cuStreamCreateWithPriority, 5050, cuStreamCreateWithPriority) \
	X(cuStreamDestroy, 4000, cuStreamDestroy_v2) X(cuStreamSynchronize, 2000, cuStreamSynchronize) \
	X(cuStreamQuery, 2000, cuStreamQuery) X(cuStreamWaitEvent, 3020, cuStreamWaitEvent) \
	X(cuEventCreate, 2000, cuEventCreate) X(cuEventDestroy, 4000, cuEventDestroy_v2) \
	X(cuEventRecord, 2000, cuEventRecord) X(cuEventSynchronize, 2000, cuEventSynchronize) \
	X(cuEventQuery, 2000, cuEventQuery) X(cuEventElapsedTime, 2000, cuEventElapsedTime_v2) \
	X(cuLibraryLoadData, 12000, cuLibraryLoadData) X(cuLibraryUnload, 12000, cuLibraryUnload) \
	X(cuLibraryGetKernel, 12000, cuLibraryGetKernel) \
	X(cuLibraryGetKernelCount, 12040, cuLibraryGetKernelCount) \
	X(cuKernelGetFunction, 12000, cuKernelGetFunction) X(cuKernelGetName, 12030, cuKernelGetName) \
	X(cuKernelGetParamInfo, 12040, cuKernelGetParamInfo) \
	X(cuKernelGetAttribute, 12000, cuKernelGetAttribute) \
	X(cuKernelSetAttribute, 12000, cuKernelSetAttribute) X(cuFuncGetAttribute, 2020, cuFuncGetAttribute) \
	X(cuFuncSetAttribute, 9000, cuFuncSetAttribute) X(cuFuncGetName, 12030, cuFuncGetName) \
	X(cuFuncLoad, 12040, cuFuncLoad) X(cuLaunchKernel, 4000, cuLaunchKernel) \
	X(cuLaunchKernelEx, 11060, cuLaunchKernelEx) X(cuOccupancyMaxActiveBlocksPerMultiprocessor, 6050, \
	                                               cuOccupancyMaxActiveBlocksPerMultiprocessor) \
	X(cuGetProcAddress, 12000, cuGetProcAddress_v2)

#define OLD_ROW(name, version) { #name, version, (void (*)(void))name },
#define ROW(name, version, function) { #name, version, (void (*)(void))function },

/* of one name, older ones first */
static const struct { const char *name; int version; void (*function)(void); } entries[] = {
	OLD(OLD_ROW) ENTRIES(ROW)
};

PUBLIC CUresult CUDAAPI
cuGetProcAddress_v2(const char *symbol, void **pfn, int version, cuuint64_t flags,
                    CUdriverProcAddressQueryResult *status)
{
	long driver = inject_number("old_driver", 13000);
	int found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;

	ENTER(NEED_NOTHING);
	if (!symbol || !pfn || flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
		REFUSE(CUDA_ERROR_INVALID_VALUE,
		       "a pointer is missing, or flags that do not exist");
	*pfn = NULL;
	if (version > driver)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
		if (strcmp(entries[i].name, symbol) != 0 || entries[i].version > driver ||
		    inject_names("missing", symbol))
			continue;
		if (entries[i].version <= version) {
			memcpy(pfn, &entries[i].function, sizeof *pfn);
			found = CU_GET_PROC_ADDRESS_SUCCESS;
		} else if (found != CU_GET_PROC_ADDRESS_SUCCESS) {
			found = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
		}
	}
	if (found == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND && !inject_names("missing", symbol))
		note("cuGetProcAddress: no %s (names have no _v2)", symbol);
	if (status)
		*status = (CUdriverProcAddressQueryResult)found;
	return 0;
}
