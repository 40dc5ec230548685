/* Private to lower*.c: the state of lowering one kernel. */
#ifndef LOWER_H
#define LOWER_H

#include "kern.h"

enum { MaxCut = 512, MaxPhase = 32 };

typedef struct { int v, base; Exp *e; } Memo;

typedef struct {
	Arena *a;
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
	int node[1 << 14], nnode;       /* computed values, in order */
	Memo memo[4096];
	int nmemo;
	/* the loop being filled */
	int now;                        /* phase */
	int D, lo, hi, dlo, dhi;        /* heads of D (0: none); range of channels */
	bool pairs;                     /* c counts adjacent pairs */
	int nname;
	const char *names[4096];
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

/* lower_loop.c: loops over channels */
int head_size(const Lower *l, int v, int width);
void loops(Lower *l, const Sink *s, int n);

#endif
