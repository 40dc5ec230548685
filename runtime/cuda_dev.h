/* Between the files of the device cuda. */
#ifndef CUDA_DEV_H
#define CUDA_DEV_H

#include "api.h"
#include "hcrun.h"

typedef struct Lt Lt;

typedef struct {
	CUdevice device;
	CUcontext context;              /* the device's primary one */
	CUstream stream;                /* the only one: work is done in order */
	char name[256], arch[16];       /* NVIDIA H200; sm_90a */
	int capability;                 /* 90: 9.0 */
	int sms, shared;                /* multiprocessors; most dynamic memory of a block */
	CUlibrary *library;             /* per kernel */
	bool pinned[NArena];            /* the mirror */
	char *input[2];                 /* mirrors of inputs, written in turn */
	CUevent copied[2];              /* that buffer was read */
	int turn;
	Lt *lt;
	CUevent *mark;
	int nmark;
	bool each;                      /* wait behind every step */
	const RunStep *last;            /* queued */
} Cuda;

/* cuda_dev.c: ends the process unless e is success; names what was done, and
 * where a kernel is at fault, the last one queued */
void cuda_must(const Run *r, CUresult e, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* cuda_mem.c */
void cuda_memory_open(Run *r);
void cuda_memory_close(Run *r);
void cuda_zero(Run *r, int arena);
void cuda_put(Run *r, int arena, size_t off, size_t n);
void cuda_fetch(Run *r, int arena, size_t off, size_t n);
void cuda_inputs(Run *r);
void cuda_host(Run *r, int arena);
void cuda_forget(Run *r, int arena);
void cuda_random(Run *r, int arena);    /* fills it, on the device */
CUdeviceptr cuda_allocate(const Run *r, const char *what, size_t nbytes);

/* lt.c: products by cuBLASLt */
void lt_open(Run *r);                   /* plans for every product, chosen by time */
void lt_close(Run *r);
void lt_gemm(Run *r, RunStep *s);
size_t lt_workspace(void);

#endif
