/* Executes CUDA text on the CPU: the text of a kernel is compiled as C++ by
 * g++ behind templates/simt/shim.h, and each CUDA thread is a fiber.
 *
 * Blocks are one-dimensional and independent.  The order in which the threads
 * of a block run between barriers, and that of the blocks, comes from a seed:
 * what depends on it is a race.  With checks every memory access of the text
 * is seen; the first fault ends the launch. */
#ifndef SIMT_H
#define SIMT_H

#include "hcrun.h"

typedef struct Simt Simt;
typedef struct SimtKernel SimtKernel;

typedef struct {
	unsigned long seed;     /* of the order of threads and blocks; 0: ascending */
	bool check;             /* bounds, uninitialised shared memory, conflicts, bytes */
	int nworkers;           /* blocks at a time when not checking; 0: all cores */
	/* Warp collectives other than __syncwarp order memory among their lanes
	 * too.  CUDA promises no such thing, so a kernel that needs this is wrong. */
	bool collectives_order;
} SimtOpts;

typedef struct {
	const char *kernel;     /* of the SimtKernel */
	long block;
	int thread;
	int line;               /* of the .cu text, in the kernel itself; 0: unknown */
	char text[400];         /* the whole message, one line */
} SimtFault;

/* global memory, bytes of one launch; unique: distinct bytes */
typedef struct { double load_unique, load_issued, store_unique, store_issued; } SimtBytes;

/* die()s naming what is missing: g++, libboost-context */
Simt *simt_new(const SimtOpts *o);
void simt_free(Simt *s);

/* What is missing for simt_new, or NULL. */
const char *simt_missing(void);

/* The ranges that kernels may touch; they do not overlap.  name, which the
 * caller keeps, is for reports.  Without checks they are not looked at. */
void simt_memory(Simt *s, const char *name, void *p, size_t nbytes, bool writable);
void simt_memory_clear(Simt *s);

typedef struct { const char *name, *path, *text; } SimtSource;

/* Compiles, or finds in the cache of compiled kernels.  path is for messages
 * and need not exist.  A text that does not compile is fatal.  The kernel
 * lives as long as s. */
SimtKernel *simt_kernel(Simt *s, const char *name, const char *path, const char *text);
/* n at once, in as many compilers as there are cores */
void simt_kernels(Simt *s, int n, const SimtSource *src, SimtKernel **out);

/* Bytes of static shared memory of k. */
size_t simt_static_smem(const SimtKernel *k);

/* Runs a launch to its end.  false: *f says what is wrong and where.  bytes, which
 * may be NULL, is filled only with checks. */
bool simt_launch(Simt *s, SimtKernel *k, long grid, int block, size_t dynamic_smem,
                 int narg, const HcArg *arg, SimtFault *f, SimtBytes *bytes);

#endif
