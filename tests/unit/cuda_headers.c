/* runtime/api.def against NVIDIA's headers: this file compiles, or a row is
 * wrong.  Only where they are installed; cuda_test compiles it.
 *
 * The rows are read with the vendor's types in scope, and compared with the
 * vendor's constants, types and functions.  Sizes are compared with those that
 * runtime/api_types.h gives to its own types of these names. */
#include <stddef.h>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <nvrtc.h>
#include <cublasLt.h>

enum { PointerClass = 5 };      /* of __builtin_classify_type */

#define CONST(name, value) _Static_assert((long)(name) == (value), #name);
#include "../../runtime/api.def"

#define HANDLE(type, tag) _Static_assert(__builtin_classify_type((type)0) == PointerClass, #type);
#define ENUM(type) _Static_assert(sizeof(type) == sizeof(unsigned), #type);
#include "../../runtime/api.def"

/* The driver's types of functions have their version in their names.  Names
 * are pasted here, before cuda.h's macros can change them. */
#define CHECK_DRIVER(pfn, name, type) \
	_Static_assert(__builtin_types_compatible_p(pfn, type *), #pfn);
#define CHECK_NVRTC(pfn, name, type) \
	_Static_assert(__builtin_types_compatible_p(__typeof__(name), type), #name);
#define CHECK_CUBLASLT(pfn, name, type) CHECK_NVRTC(pfn, name, type)
#define FN(library, name, version, result, parameters) \
	typedef result type_##name parameters; \
	CHECK_##library(PFN_##name##_v##version, name, type_##name)
#include "../../runtime/api.def"

/* what api.c declares by itself */
typedef CUresult (*GetProcAddress)(const char *, void **, int, uint64_t,
                                   CUdriverProcAddressQueryResult *);
_Static_assert(sizeof(uint64_t) == sizeof(cuuint64_t), "cuuint64_t");
_Static_assert(__builtin_types_compatible_p(PFN_cuGetProcAddress_v12000, GetProcAddress),
               "cuGetProcAddress");
_Static_assert(__builtin_types_compatible_p(PFN_cuInit_v2000, CUresult (*)(unsigned)), "cuInit");
_Static_assert(__builtin_types_compatible_p(PFN_cuDriverGetVersion_v2020, CUresult (*)(int *)),
               "cuDriverGetVersion");

/* runtime/api_types.h, its types under other names */
#define CUdevice OurDevice
#define CUdeviceptr OurDeviceptr
#define cublasLtMatmulAlgo_t OurAlgo
#define cublasLtMatmulHeuristicResult_t OurResult
#include "../../runtime/api_types.h"
#undef CUdevice
#undef CUdeviceptr
#undef cublasLtMatmulAlgo_t
#undef cublasLtMatmulHeuristicResult_t

_Static_assert(__builtin_types_compatible_p(OurDevice, CUdevice), "CUdevice");
_Static_assert(__builtin_types_compatible_p(OurDeviceptr, CUdeviceptr), "CUdeviceptr");
_Static_assert(sizeof(OurAlgo) == sizeof(cublasLtMatmulAlgo_t), "algo");
_Static_assert(sizeof(OurResult) == sizeof(cublasLtMatmulHeuristicResult_t), "result");
#define SAME_PLACE(field) \
	_Static_assert(offsetof(OurResult, field) == \
	               offsetof(cublasLtMatmulHeuristicResult_t, field), #field);
SAME_PLACE(algo)
SAME_PLACE(workspaceSize)
SAME_PLACE(state)
SAME_PLACE(wavesCount)
SAME_PLACE(reserved)
