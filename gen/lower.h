/* Private to lower*.c: the state of lowering one kernel. */
#ifndef LOWER_H
#define LOWER_H

#include "kern.h"

enum { MaxCut = 512, MaxPhase = 32 };

enum { NBases = 64 };

typedef struct { int v, base; Exp *e; } Memo;

typedef struct Cuda Cuda;

typedef struct {
	Arena *a;
	Cuda *cu;                       /* cuda: its own state, else NULL */
	const Plan *p;
	const Graph *g;
	const RowKernel *r;
	Kern *k;
	bool *in, *root, *inside;       /* value: is read, is produced, is computed here */
	int *phase;                     /* vec: loop it is computed in; rowval: first
	                                 * phase that can use it */
	int *uses;
	bool *own;                      /* vec that the loops of its phase evaluate */
	bool *held;                     /* and keep in a local array for later phases */
	const char **name;              /* value -> local name */
	const char **from;              /* shift -> name of the row it takes */
	int *par, *srcpar;              /* value -> parameter: stored in, read from */
	int nphase;
	int nnode, capnode, *node;      /* computed values, in order */
	int nmemo, capmemo;
	Memo *memo;
	/* the loop being filled */
	int now;                        /* phase */
	int D, lo, hi, dlo, dhi;        /* heads of D (0: none); range of channels */
	bool pairs;                     /* c counts adjacent pairs */
	int nname, capname;
	const char **names;
	int *name_at, nname_at;          /* hash: index + 1, or 0 */
	struct { const char *s; int next; } base[NBases];       /* numbers of names */
	double flops;
	double mult;                    /* times the current loop body runs per row */
} Lower;

/* sinks of a phase: what a loop must produce */
typedef struct {
	int v;                  /* value */
	enum { SINK_STORE, SINK_HOLD, SINK_SUM, SINK_PART } kind;
	int width, D;
} Sink;

/* lower_exp.c: names, parameters, expressions */
Exp *exp_new(Lower *l, ExpKind kind);
Stmt *stmt(Lower *l, StmtKind kind, const char *name);
bool name_taken(const Lower *l, const char *s);
const char *unique(Lower *l, const char *base);
int par_new(Lower *l, ParKind kind, const char *name, Dt dt, long width, Opd opd);
void value_par(Lower *l, int v, bool output);
int coef_par(Lower *l, int param, int row, ParKind kind, int width);
Exp *exp_var(Lower *l, const char *name);
Exp *exp_op(Lower *l, Op op, Exp *a, Exp *b);
Idx here(const Lower *l, int base);
Exp *scalar(Lower *l, int v);
Exp *scalar_named(Lower *l, int v);
bool rowval_inline(const Lower *l, int v);
Exp *rowval_operand(Lower *l, int v, int group_base, int group_step);
Exp *rowval(Lower *l, int v, int group_base, int group_step);
Exp *operand(Lower *l, int v, int base, int width);
Exp *shifted(Lower *l, int i, Idx idx);
Exp *evaluate(Lower *l, int v, int base);
void formulas(Lower *l);

int floor_div(int x, int y);

/* lower.c */
int gather_sinks(Lower *l, int phase, Sink *s);
int sink_heads(Lower *l, const Sink *s);
Exp *rowval_formula(Lower *l, int v);
void row_sources(Lower *l);
void hold_arrays(Lower *l);

/* lower_loop.c: loops over channels */

/* where loops must be cut: flat, channels of the sink; heads, channels of a head */
typedef struct { int n, at[MaxCut], npair, R, adjacent; } Cuts;

int head_size(const Lower *l, int v, int width);
void cut(Cuts *c, int at);
int heads_alike(const Cuts *flat, int at, int D);
void cut_within(Cuts *heads, const Cuts *flat, int at, int D);
void find_cuts(const Lower *l, int v, int base, Cuts *flat, Cuts *heads);
void sweep(Lower *l, int first);
void loops(Lower *l, const Sink *s, int n);

/* lower_cuda.c: one row on many threads.  The hooks that lower_exp.c calls
 * give what a thread holds of a value; held: NULL if another thread holds it. */
Cuda *cuda_new(Arena *a, int nvalues);
bool cuda_again(Lower *l);              /* lower once more: l has learned something */
void cuda_map(Lower *l);
void cuda_body(Lower *l, int part);
void cuda_bind(Lower *l, Step *s);
Exp *cuda_load(Lower *l, int par, int base, const char *name, const char *row);
Exp *cuda_param(Lower *l, int par, int base, const char *name);
Exp *cuda_table(Lower *l, int par, int base, int half, int odd);
Exp *cuda_rowval(Lower *l, int v, int group_base);
Exp *cuda_head_of(Lower *l, int par, const char *row, const char *name);
Exp *cuda_held(Lower *l, int v, int base);
bool cuda_walks(const Lower *l, int v);   /* computed again although it is held */

#endif
