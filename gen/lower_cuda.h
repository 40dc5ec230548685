/* Private to lower_cuda.c, lower_map.c and lower_vec.c: lowering for cuda. */
#ifndef LOWER_CUDA_H
#define LOWER_CUDA_H

#include "lower.h"

/* sinks of a phase that share their vectors */
typedef struct {
	int n, W, D, vw;
	Sink *s;
	Cuts flat, heads;
} SinkGroup;

/* Registers beyond which bodies are walked vector by vector: compilers cannot hold
 * what is estimated to take more, and find no such order themselves.  Sums over rows
 * that such a kernel keeps in a register each; more share them (spread.c).  Tests set
 * both to 0. */
extern int lower_crowded, lower_few_sums;

/* numbers of a row that a sum over channels is multiplied by */
enum { MaxRowFactors = 4 };
typedef struct { int n, v[MaxRowFactors]; } Factors;

struct Cuda {
	bool *shared;           /* value: other threads read this rowval (kept between
	                         * passes: a pass finds out, the next one obeys) */
	bool *walks;            /* value: computed again somewhere, although it is held,
	                         * by a thread that does not hold it (kept too) */
	bool again;
	int ngroup[MaxPhase + 1];
	SinkGroup *group[MaxPhase + 1];
	int *direct;            /* value: DOT, and what is made of it -> the sum over rows
	                         * that they serve and nothing else, or -1 */
	Factors **factors;      /* value: DOT of such a sum -> its factors */
	int *heldvw;            /* value: vector size it is held in */
	int *heldn;             /* and slabs */
	/* the piece being filled */
	int vw, k;              /* vector size, slab */
	int lo, hi;             /* channels of the slab */
	int dlo, dhi;           /* channels of a head */
	/* loads of the body being filled: needed once the sweep has left a use */
	bool defer;
	int npending, cappending, *pending;
};

/* lower_map.c: groups, threads, blocks */
int slab_of(const Lower *l);            /* channels that a row's threads take at once */
int slabs(const Lower *l, int width, int vw);
int sink_args(const Lower *l, const Sink *s, int arg[2]);

/* stream.c: one more statement, empty but for these */
Stmt *kern_put(Kern *k, StmtKind kind, const char *name);

/* lower_vec.c: what a thread holds; does e read something of this name? */
bool exp_names(const Exp *e, const char *name);
void settle(Lower *l, int first);
void drop_loads(Lower *l);
const char *head_name(Lower *l, int v, int k);
int head_slabs(const Lower *l, int v);
const char *held_name(Lower *l, int v, int k);

#endif
