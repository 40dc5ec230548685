/* A lowered row kernel: statements for one target mapping.
 *
 * lower.c decides everything (phases, loops, names, what is held where);
 * emit.c prints and decides nothing.  The body is what one row needs; the
 * mapping says what surrounds it: on `cpu` a thread takes a block of rows and
 * walks the channels of each in loops that the compiler vectorises. */
#ifndef KERN_H
#define KERN_H

#include "hcgen.h"

/* element index within a row: base + head*h + c*d, or its half for tables;
 * head and c are the loop variables */
typedef struct { int base, h, d; } Idx;

typedef struct Exp Exp;
typedef enum {
	X_NUM,          /* num */
	X_VAR,          /* name */
	X_ELEM,         /* name[idx]: a local array or a head's rowval */
	X_LOAD,         /* parameter par at row t, idx; num: odd heads so many elements
	                 * further, even ones if it is negative */
	X_SCALAR,       /* parameter par, element idx.base: same for all rows */
	X_AGAIN,        /* cuda: element idx.base of name, in shared memory, read anew */
	X_SHIFT,        /* parameter par at another row, 0 where there is none */
	X_ELEM_OF,      /* cuda: element of the vector name, of type par's */
	X_HEAD,         /* cuda: name[head + idx.base] in shared memory */
	X_OP,           /* op of a and b */
} ExpKind;

struct Exp {
	ExpKind kind;
	double num;
	const char *name;
	int par;
	Idx idx;
	Op op;
	Exp *a, *b;
};

typedef enum {
	S_NOTE,         /* an empty line */
	S_LET,          /* const float name = e */
	S_ARRAY,        /* float name[n] */
	S_ZERO,         /* float name = 0  or  float name[n] = {0} */
	S_LOOP,         /* for name = lo … hi-1, n accumulators reduce in it */
	S_END,
	S_SET,          /* name[idx] = e */
	S_ADD,          /* name += e, or name[idx] += e */
	S_STORE,        /* parameter par at row t, idx = e, rounded to its type */
	S_ROWS,         /* the loop over rows begins */
	S_ROW_SRC,      /* const long name = row that a shift takes, or -1 */
	S_PART,         /* partial of this block: parameter par, element n = name */
	S_PART_ADD,     /* partial vector of this block: par at idx += e */
	S_PART_ZERO,    /* partial vector of this block: par, n elements = 0 */
	/* cuda only */
	S_LOADS,        /* the vector loads with place n stand here */
	S_IF,           /* if channel in lo … hi-1 and shift[0] … shift[1]-1 of its head;
	                 * n 1: else if, 2: else, of the S_IF before */
	S_ELEMS,        /* loop over the n elements (pairs of a vector of lo) */
	S_VEC,          /* vector name of n floats; lo: zeros */
	S_VEC_SET,      /* element of the vector name = e */
	S_VEC_ADD,      /* element of the vector name += e */
	S_VEC_STORE,    /* parameter par at row t, idx.base + channels = vector name */
	S_ROW_STORE,    /* rowval: parameter par, head idx.base … = e, by one thread */
	S_SUMS,         /* the sums queued since the last S_SUMS, over the row's threads */
	S_SUM,          /* queue: name; n threads of a head, 0: all of the row */
	S_SHARE,        /* name_s[head + idx.base] = e by the head's first thread */
	S_BARRIER,
	S_PARTS,        /* loop over the partials that this block writes */
	S_PART_VEC,     /* partial vector of this block: par = vector name */
	S_KEEP,         /* one thread leaves name as element n of the scalars in shared memory */
	S_SPREAD,       /* name += spread8 of the eight sums in reduce */
	S_SPREAD_TOTAL, /* the n'th of these, over the block */
	S_SPREAD_PARTS, /* n such sums are the partials that reduce lists, in par */
} StmtKind;

typedef struct {
	StmtKind kind;
	const char *name;
	Exp *e;
	Idx idx;
	int par, n, lo, hi;
	bool indexed;
	const char *reduce;     /* S_LOOP: accumulators, comma separated */
	int shift[3];           /* S_ROW_SRC: k, edge, docs; k < 0: adjoint */
	int vw;                 /* cuda: channels of a vector */
} Stmt;

enum { MaxUse = 16 };

/* cuda: a vector in registers, loaded once and used wherever the same thread
 * needs the same channels */
typedef struct {
	const char *name, *row; /* row: variable that holds the row; NULL: row t */
	int par, off, vw;       /* elements off + vw*thread … */
	enum { V_FLAT, V_HEAD, V_HALF, V_ROWVAL } at;   /* plus: channel, channel in
	                         * its head, half of it, head */
	/* channels, from the slab's first and within a head, of the threads that
	 * need it; several where no one rectangle holds just these */
	int nuse;
	struct Use { int lo, hi, dlo, dhi; } use[MaxUse];
	int place;              /* S_LOADS that it stands at */
	int half, odd;          /* V_HEAD, V_HALF: odd heads (with `odd`: even ones) so many
	                         * elements further */
} VecLoad;

/* cuda: how a row maps to threads */
typedef struct {
	int threads;            /* of a row, a multiple of 32 */
	int rows;               /* of a block */
	bool loop;              /* a block takes every gridDim.x'th row */
	int registers;          /* of a thread, estimated */
	int nscalar, capscalar; /* numbers that streamed bodies read again and again */
	const char **scalar;
	int nplace;             /* places of loads within a row */
	int streamed;           /* registers of a streamed body (stream.c); 0: none is */
	int resident;           /* blocks that a multiprocessor shall hold; 0: unsaid */
	int D;                  /* channels of a head, 0: none */
	int vwh;                /* channels of a vector where heads matter */
	bool uses_vw[9];        /* first channel of a thread, by vector size */
	bool uses_head, uses_d;
	int nshared, capshared;
	struct Shared { const char *name; int n; } *shared;
} Map;

typedef enum {
	P_OUT, P_IN, P_COEF, P_PVEC, P_PART, P_PARTVEC, P_TABLE, P_DOCS, P_ROWS, P_SEQ, P_PARTS,
} ParKind;

typedef struct {
	ParKind kind;
	const char *name;       /* lane0_in */
	const char *shape;      /* [T,256] */
	const char *what;       /* hc.post, layers.i.attn.out … */
	Dt dt;
	long width;             /* elements per row, of the stored value */
	int val;
	Opd opd;
} Par;

typedef struct {
	Arena *mem;
	const Plan *plan;
	const Step *step;
	const char *name;
	int npar, cappar;
	Par *par;
	int nstmt, capstmt;
	Stmt *stmt;
	int nload, capload;
	VecLoad *load;
	Map map;
	int nformula, capformula;
	const char **formula;   /* what the kernel computes, for readers */
	double row_read, row_write, row_flops;
} Kern;

/* requires: placed plan.  provides: statements in order, loops balanced.  The step's operands are set to the kernel's parameters. */
Kern *lower(Arena *a, const Plan *p, Step *s);

void kern_verify(const Kern *k);
void kern_print(const Kern *k, FILE *f);         /* -d k */


/* hoist.c, stream.c, spread.c: cuda, terms that can be added early; bodies vector by
 * vector; sums that share registers */
void hoist(Kern *k);
void stream(Kern *k);
void spread_sums(Kern *k);

/* emit.c: the text of a kernel */
void emit_kern(const Kern *k, Buf *b);
/* emit_cuda.c */
void emit_cuda(const Kern *k, Buf *b);

/* shared by emit.c and emit_cuda.c */
void indent(int depth, Buf *b);
void row_source_text(const Kern *k, const Stmt *s, int depth, Buf *b);
/* Tokens of a sequence: a number, or the argument where programs differ in it. */
const char *seq_text(const Kern *k);
/* x divided by it, or what is left: op / or %, of rows below 2^31 */
const char *by_seq(const Kern *k, const char *x, char op);
const char *c_type(Dt dt);

/* tail.c */
void emit_tail(const Plan *p, Step *s, Buf *b);

/* shared by lower and the formulas */
void point_text(Op op, const char *x, const char *y, Buf *b);
void float_text(Buf *b, double x);
void exp_text(const Kern *k, const Exp *e, int level, Buf *b);
const char *c_function(Op op, int target);

#endif
