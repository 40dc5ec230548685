/* Types of NVIDIA's libraries that are more than a pointer or an enumeration,
 * by their names. */
#ifndef API_TYPES_H
#define API_TYPES_H

#include <stddef.h>
#include <stdint.h>

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

typedef struct { uint64_t data[8]; } cublasLtMatmulAlgo_t;

typedef struct {
	cublasLtMatmulAlgo_t algo;
	size_t workspaceSize;
	unsigned int state;             /* cublasStatus_t */
	float wavesCount;
	int reserved[4];
} cublasLtMatmulHeuristicResult_t;

#endif
