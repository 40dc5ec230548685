/* NVIDIA's libraries as tables of pointers, filled at run time: hcgen links
 * none of them and needs none of their headers.  api.def lists what is used. */
#ifndef API_H
#define API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api_types.h"

#define HANDLE(type, tag) typedef struct tag *type;
#define ENUM(type) typedef unsigned int type;
#include "api.def"

enum {
#define CONST(name, value) name = value,
#include "api.def"
};

typedef enum { API_DRIVER, API_NVRTC, API_CUBLASLT, NApi } ApiLibrary;

/* What api_open found.  error says in a sentence why it is of no use. */
typedef struct {
	const char *path;               /* the file, or NULL: not found */
	int major, minor;               /* version of CUDA, of the library */
	const char *error;              /* NULL: ready */
	bool absent;                    /* the driver: there is no GPU here */
} ApiInfo;

/* Opens a library once; what it finds stays.  The driver is also initialised. */
const ApiInfo *api_open(ApiLibrary which);
/* The same; die()s with the reason where it is of no use. */
const ApiInfo *api_need(ApiLibrary which);
/* "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)"; static */
const char *api_cuda_error(CUresult e);

extern struct Api {
#define FN(library, name, version, result, parameters) result (*name) parameters;
#include "api.def"
} api;

#endif
