/* What the parts of the stand-ins share.
 *
 * libcuda.so.1       libcuda.c   entry points: driver, device, context, memory, streams, events
 *                    calls.c     entry points: copies, libraries, kernels
 *                    proc.c      cuGetProcAddress, entry points of old ABIs
 *                    memory.c    allocations, red zones, protection
 *                    engine.c    streams, events: when work is done
 *                    module.c    "cubins", kernels, launches
 * libnvrtc.so.13     libnvrtc.c  text -> "cubin"          elf.c writes it
 * libcublasLt.so.13  libcublaslt.c  descriptors, checks   matmul.c computes
 * all three          inject.c    HCGEN_STANDIN, the log
 *
 * The stand-ins enforce what the vendor documents and nothing kinder: what is
 * not promised does not work. */
#ifndef STANDIN_H
#define STANDIN_H

#include <stdarg.h>
#include <stdbool.h>

#include "decl.h"

#define PUBLIC __attribute__((visibility("default")))

/* ---- inject.c: faults on request, and the log ---- */

/* Value of a word of HCGEN_STANDIN ("" if it has none), or NULL. */
const char *inject(const char *name);
long inject_number(const char *name, long otherwise);
/* Is `name` one of the values given for the word?  missing=A,missing=B */
bool inject_names(const char *name, const char *value);
/* Code that the entry point must return now instead of working (fail=), or 0. */
int inject_failure(const char *entry);
/* One line for the person who broke a rule: to $HCGEN_STANDIN_LOG, else stderr. */
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- libcuda.c: entering and leaving; all of libcuda is behind one lock ---- */

typedef enum { NEED_NOTHING, NEED_INIT, NEED_CONTEXT } Need;

CUresult guard_enter(const char *entry, Need need);
void guard_leave(CUresult *e);
/* Notes why, returns e. */
CUresult refuse(const char *entry, CUresult e, const char *why);

#define ENTER(need) \
	CUresult guard __attribute__((cleanup(guard_leave))) = guard_enter(__func__, need); \
	if (guard) \
		return guard
#define REFUSE(e, why) return refuse(__func__, e, why)
#define NEED_STREAM(s) \
	if (!stream_valid(s)) \
		REFUSE(CUDA_ERROR_INVALID_HANDLE, "not a live stream")
#define NEED_EVENT(e) \
	if (!event_valid(e)) \
		REFUSE(CUDA_ERROR_INVALID_HANDLE, "not a live event")

/* ---- memory.c ---- */

typedef enum { MEM_DEVICE, MEM_PINNED, MEM_REGISTERED } MemKind;
typedef struct {
	MemKind kind;
	char *at;
	size_t nbytes;
	char *map;              /* with its red zones; NULL if registered */
	size_t map_nbytes;
	bool live;
	int number;             /* for messages */
} Block;

CUresult memory_new(MemKind kind, size_t nbytes, void **out);
CUresult memory_register(void *p, size_t nbytes);
CUresult memory_free(MemKind kind, void *p);
void memory_free_all(void);
/* The live block that holds all of the range, or NULL. */
const Block *memory_find(const void *p, size_t nbytes);
/* Some live block of the range, whole or in part, or NULL. */
const Block *memory_touch(const void *p, size_t nbytes);
/* Device memory as n bytes at p, wholly inside one live allocation; if not, says so. */
bool memory_device(const char *who, const char *what, const void *p, size_t nbytes);
/* Host memory that a copy may name: all pinned, or all pageable. */
bool memory_host(const char *who, const void *p, size_t nbytes);
/* Device memory can be touched only between these two. */
void memory_open(void);
void memory_close(void);
/* Red zones are whole; if not, says after what. */
bool memory_intact(const char *after);
void memory_total(size_t *total, size_t *free_bytes);
long memory_changes(void);      /* grows with each allocation and release */
int memory_blocks(const Block **b);
/* memcpy that can fail: pageable memory may be gone. */
bool memory_copy(void *to, const void *from, size_t nbytes);
void memory_report_leaks(void);

/* ---- engine.c ---- */

typedef CUresult Work(void *payload);   /* what an operation does, when it is its turn */

CUresult stream_new(CUstream *out, unsigned flags);
CUresult stream_free(CUstream s);
bool stream_valid(CUstream s);
/* Copies the payload; it runs when something waits for it. */
CUresult stream_add(CUstream s, const char *what, Work *work, const void *payload, size_t nbytes);
CUresult stream_wait(CUstream s);
CUresult stream_query(CUstream s);
CUresult stream_after(CUstream s, CUevent e);
CUresult event_new(CUevent *out, unsigned flags);
CUresult event_free(CUevent e);
bool event_valid(CUevent e);
CUresult event_record(CUevent e, CUstream s);
CUresult event_wait(CUevent e);
CUresult event_query(CUevent e);
CUresult event_elapsed(float *ms, CUevent a, CUevent b);
CUresult engine_wait_all(void);
CUresult engine_error(void);            /* what the context died of, or 0 */
void engine_kill(CUresult error);
void engine_reset(void);                /* forgets all streams, events and the error */

/* ---- module.c ---- */

typedef struct Library Library;
typedef struct Kernel Kernel;

CUresult library_load(CUlibrary *out, const void *image);
CUresult library_unload(CUlibrary l);
CUresult library_kernel(CUkernel *out, CUlibrary l, const char *name);
CUresult library_count(unsigned *out, CUlibrary l);
Kernel *kernel_of(CUkernel k);          /* NULL if it is none */
Kernel *kernel_of_function(CUfunction f);       /* a function or a kernel; NULL if neither */
CUfunction kernel_function(Kernel *k);
const char *kernel_name(const Kernel *k);
CUresult kernel_load(Kernel *k);        /* compiles it */
CUresult kernel_get(const Kernel *k, int attribute, int *out);
CUresult kernel_set(Kernel *k, int attribute, int value);
CUresult kernel_param(const Kernel *k, size_t i, size_t *off, size_t *nbytes);
CUresult kernel_launch(const char *who, Kernel *k, const unsigned grid[3], const unsigned block[3],
                       unsigned smem, CUstream s, void **params, void **extra);
void catch_faults(void);        /* from now on */
CUresult kernel_occupancy(const Kernel *k, int *out, int block, size_t smem);

/* ---- elf.c: the "cubin" ---- */

typedef struct {
	char name[128];         /* of the kernel */
	char path[512];         /* the program's name, for messages */
	int arch;               /* 90 */
	int threads;            /* of __launch_bounds__; 1024 if it has none */
	int nparam;
	int static_smem, registers, local;      /* bytes */
} KernelFacts;

/* An ELF file as ptxas lays it out, as far as a loader and a reader of
 * resources look, and the text in a section of its own.  free() it. */
char *elf_write(const KernelFacts *k, const char *text, size_t *nbytes);
/* The text, NUL ended, inside image; NULL with *why set. */
const char *elf_read(const void *image, KernelFacts *k, const char **why);

/* ---- device, as H200 ---- */

enum {
	DEV_SMS = 132, DEV_SMEM = 48 << 10, DEV_SMEM_OPTIN = 227 << 10, DEV_SMEM_SM = 228 << 10,
	DEV_SMEM_RESERVED = 1 << 10, DEV_REGS = 64 << 10, DEV_THREADS_SM = 2048, DEV_BLOCKS_SM = 32,
	DEV_THREADS = 1024
};
int device_cc(void);                    /* 90 */

/* ---- what libcublasLt asks of libcuda, found by dlsym ---- */

typedef struct {
	int (*ready)(void);             /* there is a device: 0, else a CUresult */
	bool (*device)(const char *who, const char *what, const void *p, size_t nbytes);
	/* the same, for work that runs */
	bool (*inside)(const char *who, const char *what, const void *p, size_t nbytes);
	bool (*stream)(CUstream s);
	CUresult (*add)(CUstream s, const char *what, Work *work, const void *payload,
	                size_t nbytes);
} StandinHooks;
PUBLIC const StandinHooks *standin_hooks(void);

#endif
