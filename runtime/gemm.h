/* Between gemm.c, which makes what a shape needs, and gemm_run.c, which runs it. */
#ifndef GEMM_H
#define GEMM_H

#include "hcrun.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdatomic.h>

enum { ArgA, ArgB, ArgC, ArgScratch, NArg };

/* One oneDNN primitive.  Memory objects hold addresses, so each thread has
 * its own. */
typedef struct {
	dnnl_primitive_t prim;
	dnnl_memory_t *mem;             /* [threads][NArg] */
} Prim;

/* Which primitive: the last tile of m, n or k is smaller; C is added to; C is
 * a partial, or a tile of scratch. */
enum { EdgeM = 1, EdgeN = 2, EdgeK = 4, Sum = 8, Partial = 16, NPrim = 32 };

typedef struct {
	GemmShape s;
	long tm, tn, tk;                /* tile, chunk of k */
	long nm, nn, nk;                /* how many */
	int nsplit;                     /* of the nk chunks */
	int npartial;                   /* f32 matrices m x n in scratch */
	bool round;                     /* C is the rounded sum of partials */
	bool held;                      /* a tile is finished in its thread's scratch */
	size_t tile;                    /* bytes of that */
	Prim prim[NPrim];
	GemmShape *wide;                /* operands are widened to this, a matrix at a time */
	size_t shared;                  /* bytes of scratch for all threads */
} Plan;

struct Gemm {
	Arena *mem;
	Pool *pool;
	dnnl_engine_t engine;
	dnnl_stream_t *stream;          /* per thread */
	Plan **slot;
	int nplan;
	bool native_bf16;
	char *own, *shared;             /* scratch: per thread, for all */
	size_t nown, nshared;           /* nown: of each thread */
	_Atomic int failed;             /* a dnnl_status_t of some item */
};

/* gemm.c */
Plan *gemm_plan(Gemm *g, const GemmShape *s);   /* made on first use */
/* which of a plan's primitives multiplies this chunk of this tile */
int gemm_prim_of(const Plan *p, long im, long in, long split, long chunk);
bool gemm_to_partial(const Plan *p, long split);
dnnl_status_t gemm_execute(const Gemm *g, const Prim *prim, void *const at[NArg]);
void gemm_one_thread(void);
void gemm_check(const Gemm *g, const GemmShape *s);     /* bug()s if an item failed */
size_t gemm_floats(long rows, long cols);       /* bytes of a matrix in scratch */
long gemm_edge(long n, long tile, bool last);   /* length of a tile */

#endif
