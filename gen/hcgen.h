/* Every type that crosses a stage, sectioned by the file that makes it.
 *
 *   spec.c      text   -> Spec      (spec.h)
 *   model.c     Spec   -> Model     every dimension a number, every parameter named (model_hc.c: lanes)
 *   stages.c                        which steps run on how many tokens, in which windows
 *   optim.c                         what makes each parameter of its gradients
 *   graph.c     Model  -> Graph     forward pass as SSA: row algebra and heavy ops
 *   scales.c    Graph  -> Graph     learned factors of products in their matrices
 *   grad.c      Graph  -> Graph     reverse mode appended
 *   simplify.c  Graph  -> Graph     constants folded, common and dead values gone
 *   fuse.c      Graph  -> Plan      steps, kernels, what is stored
 *   mem.c       Plan   -> Plan      buffers placed by lifetime
 *   lower.c     Step   -> Kern      statements for one target mapping
 *   emit.c      Kern   -> text
 *   manifest.c  Plan   -> manifest  report.c  Plan -> plan.txt
 *   interp.c    executes a Graph, or a Plan in its arenas, in double
 *
 * Letters: T rows (tokens), C width, L layers, S = 2L sublayers, H heads, K
 * kv heads, D head size, F hidden, V vocab, Vp padded, n lanes. */
#ifndef HCGEN_H
#define HCGEN_H

#include "base.h"
#include "diag.h"
#include "spec.h"

/* model.c */

typedef enum { ROLE_MATRIX, ROLE_TABLE, ROLE_COEF, ROLE_NORM } Role;

typedef struct {
	const char *name;       /* layers.3.attn.qkv */
	int ndim, dim[3];
	long n;
	Role role;
	double std;             /* normal or uniform; 0 with values NULL: zeros */
	bool uniform;
	int like;               /* initial values are those of this parameter; -1: its own */
	double *values;         /* n numbers, instead */
	OptKind kind;
	int every;
	double lr, lr_mul, betas[2], eps, weight_decay;
	/* BF16: its numbers are bf16's  UPPER: initial ones are; products see the upper
	 * half of the 32 bits that it keeps */
	enum { HELD_F32, HELD_BF16, HELD_UPPER } held;
	size_t off;             /* bytes, in params, grads, moment1 */
	size_t off2;            /* in moment2, where NorMuon has a number per row */
	long woff;              /* bytes, in weights; -1: no copy */
} Param;

/* a coefficient: an element of a parameter, or a number */
typedef struct { int param, idx; double num; } Ref;    /* param -1: num */

typedef struct { int source; enum Site site; Ref c[MaxLanes]; } Term;

/* one sublayer, everything decided */
typedef struct {
	bool attn, dead;
	int n;                  /* lanes here */
	bool enter;             /* one stream becomes n lanes before it */
	bool leave;             /* n lanes become one stream after it */
	Ref res[MaxLanes][MaxLanes], pre[MaxLanes], post[MaxLanes];
	Ref lambda[MaxLanes];
	enum Site lambda_site;
	int read;               /* of the spec: what its branch sees instead of the lanes; -1: none */
	int nterm;
	Term term[MaxSources];
	int window;             /* of the stage; keys before the token; 0: no limit */
	int qkv, out, up, down, norm;   /* parameters; -1: none */
	int gate, sa, value_embed, value_gate;
	bool value_split;       /* half the channels of the value gate are the table's */
	bool paired;
	int offset;             /* first channel of a head whose key is the token before's; -1: none */
} Sub;

/* a part of the run */
typedef struct {
	const char *name;
	int first, end;         /* steps first … end - 1 */
	int T, seq, micro, max_doc;
	int *window;            /* [L] keys before the token; 0: no limit */
	int long_window;
	double lr_mul;
	int ntarget;
	double target[MaxTargets], target_end[MaxTargets];
	float *freq;            /* [rot/2] */
	double attn_scale;
} ModelStage;

typedef struct {
	const Spec *spec;
	int L, S, C, H, K, D, F, V, Vp, n, rot;
	int T, seq;             /* of a micro-batch of the stage that is planned for, */
	const float *freq;      /* as are frequencies, */
	double attn_scale;      /* scale and the windows of sublayers */
	int longest;            /* tokens of a document at most, where attention keeps to documents; else seq */
	bool seq_varies;        /* programs differ in seq: texts take it as an argument */
	int plan_T;             /* rows that the plan is chosen for: T, unless reduced */
	int steps, scheduled;   /* all; those that stages share */
	int nstage, planned;
	ModelStage *stage;
	int ntarget;            /* most targets of any stage */
	int val_T, val_seq;     /* of validation */
	int logits_T;           /* rows, one sequence, of the logits program */
	int *final_window;      /* [L] of that after the last step */
	int nparam;
	Param *param;
	Sub *sub;               /* [S] */
	int embed, head, final_norm;
	int smear_weight, smear_lambda; /* -1: none */
	bool paired;            /* some layer has paired heads */
	int n0;                 /* lanes at layer 0 */
	int nout;               /* lanes at the end */
	Ref output[MaxLanes];
	int output_param;       /* hc.output, or -1: coef_dtype leaves it alone */
	int lane_init;          /* parameter or -1 */
	Ref init_term[MaxSources][MaxLanes];    /* lane-init coefficients; num 0: none */
	int table[MaxSources];  /* bigram table parameter or -1 */
	int gate[2][MaxSkips], gate_w[2][MaxSkips];     /* skips, backouts */
	int untie_last;         /* step of the last update of embed and head as one; -1: never one */
	size_t params_nbytes, weights_nbytes, moment2_nbytes;
	char hash[65];          /* of the canonical spec */
} Model;

/* NULL when d has errors. */
Model *model_build(Arena *a, Diag *d, const Spec *s);
void model_print(const Model *m, FILE *f);
void model_verify(const Model *m);
bool sel_has(const Sel *s, int i, bool attn);
int table_source(const Model *m, int param);    /* the source whose table it is */

/* stages.c */

/* part of model_build */
void model_stages(Arena *a, Diag *d, Model *m);
/* The model in stage i: its T, seq, windows, frequencies, scale. */
Model *model_stage(Arena *a, const Model *m, int i);
/* The same for validation in stage i; nstage: after the last step. */
Model *model_eval(Arena *a, const Model *m, int i);
/* The model of the logits program: one sequence, windows of the last stage. */
Model *model_logits(Arena *a, const Model *m);
/* The planned stage alone, on at least `rows` rows in sequences of at most `seq`. */
Model *model_reduced(Arena *a, const Model *m, long rows, long seq);

/* optim.c */

/* part of model_build: requires parameters.  provides: their optimizer settings and places */
void model_optim(Arena *a, Diag *d, Model *m);
int next_every(const Model *m, int every);      /* the next larger that a parameter has, or 0 */

/* graph.c, grad.c, simplify.c */

typedef enum {
#define POINT(id, name, arity, formula, flops, dx, dy) OP_##id,
#define OTHER(id, name, arity, class, formula) OP_##id,
#include "ops.def"
#undef POINT
#undef OTHER
	NOp
} Op;

typedef enum { CL_POINT, CL_LEAF, CL_REDUCE, CL_INDEX, CL_HEAVY } OpClass;
typedef struct { const char *name; int arity; OpClass class; int flops; const char *formula; } OpInfo;
extern const OpInfo op_info[NOp];

/* ordered by how they broadcast */
typedef enum { K_NUM, K_SCALAR, K_ROWVAL, K_VEC, K_PVEC, K_MAT, K_TUPLE } Kind;

enum { IDX_TOKENS, IDX_HASH };          /* gather, scatter: attr[0]; attr[1] rows */
/* table: attr[1]: a row has two positions, 2t and 2t + 1, for even and odd heads; attn:
 * attr[1]: half the heads over twice the rows (docs/spec.md, paired heads) */
enum { EDGE_ZERO, EDGE_KEEP };          /* shift: attr[1] */
/* shift: attr[3]: of each head of D channels only those from `first` on; 0: all */
#define SHIFT_HEADS(D, first) ((D) << 16 | (first))
#define SHIFT_D(attr) ((attr) >> 16)
#define SHIFT_FIRST(attr) ((attr) & 0xffff)

/* which pass and which sort of glue a value belongs to */
enum { GLUE_LANE, GLUE_BRANCH };

typedef struct {
	Op op;
	Kind kind;
	int width;              /* vec, pvec: channels; rowval: groups; else 1 */
	int arg[6];
	/* COEF: param, index  PVEC: param, row  MAT: param  TABLE: 0 cos 1 sin, of pairs (below)
	 * DOT, SUMC: groups  SLICE, PAD: lo  ROTATE: head size, R, adjacent, sign
	 * SHIFT, UNSHIFT: k, edge, within documents, heads (below)  OUT: which
	 * GEMM, GEMM_DX: the matrix has a row per channel of x, not of y
	 * GATE, GATE_BWD: channels n, first column of the matrix
	 * ATTN, ATTN_BWD: window  GATHER, SCATTER: index, rows
	 * SCATTER, GEMM_DW: also the parameter, so that equal gradients of two
	 * parameters stay two values  GEMM_DW: [1] it is no gradient but what
	 * SCALED_BWD makes one of */
	int attr[4];
	double num;             /* NUM: value  ATTN: scale */
	const char *name;       /* for readers: lane0, n, h, dlane0 */
	int sub;                /* sublayer it belongs to; -1: before, S: after */
	bool bwd;
	uint8_t glue;
	bool keep;              /* the naive plan stores it where it crosses kernels */
	bool accum;             /* a source: the naive plan stores every partial sum of its
	                         * gradient; bwd: the gradient of one */
	int at;                 /* level at which it is computed; 0: as early as can be */
} Val;

enum { GRAPH_TRAIN, GRAPH_EVAL, GRAPH_LOGITS };

typedef struct {
	Arena *mem;
	const Model *model;
	int mode;
	long T;                 /* rows */
	int n, cap;
	Val *v;
	int nfwd;               /* values before this are the forward pass */
	/* results */
	int loss;               /* scalar: sum of row losses, or -1 */
	int logits;             /* vec, or -1 */
	int *grad_first, *grad_last;    /* per parameter: list in contrib, or -1 */
	struct Contrib { int val, idx, next; } *contrib; /* idx: element, row, or -1 */
	int ncontrib, capcontrib;
	/* context for new values */
	const char *name;
	int sub;
	bool bwd;
	uint8_t glue;
	int *hash, nhash;       /* hash-consing, in simplify */
	bool folding;
	bool factors_stay;      /* learned ones, in dot products */
	bool scaled;            /* factors of products are in their matrices (scales.c) */
} Graph;

Graph *graph_new(Arena *a, const Model *m, int mode, long T);
/* g, made for another stage of its model: the same values, m's rows, windows and scale (stages.c) */
Graph *graph_stage(Arena *a, const Graph *g, const Model *m);
Graph *graph_build(Arena *a, const Model *m, int mode, long T);
void graph_verify(const Graph *g);
void graph_print(const Graph *g, FILE *f);
/* one line: "lane0 = add(12, 15)" */
void val_print(const Graph *g, int v, Buf *b);

/* constructors; widths and kinds are inferred, operands checked */
int num(Graph *g, double x);
const char *coef_name(Arena *a, const char *name);     /* hc.post -> post */
int coef(Graph *g, int param, int idx);
int pvec(Graph *g, int param, int row);
int mat(Graph *g, int param);
int point(Graph *g, Op op, int x, int y);
int add(Graph *g, int x, int y);
int sub(Graph *g, int x, int y);
int mul(Graph *g, int x, int y);
int neg(Graph *g, int x);
int step(Graph *g, int x);
int dot(Graph *g, int x, int y, int groups);
int sumc(Graph *g, int x, int groups);
int sumg(Graph *g, int x);
int sumr(Graph *g, int x);
int bcast(Graph *g, int x, Kind kind, int width);
int slice(Graph *g, int x, int lo, int width);
int pad(Graph *g, int x, int lo, int width);
int rotate(Graph *g, int x, int cosv, int sinv, int D, bool adjacent, int sign);
int table(Graph *g, int which, int width, bool paired);
int heavy(Graph *g, Op op, Kind kind, int width, int x, int y);
int as_kind(Graph *g, int x, Kind kind, int width);
int val_named(Graph *g, int v, const char *name);       /* sets the name if it has none */
/* heads: 0, or SHIFT_HEADS */
int shift(Graph *g, Op op, int x, int k, int edge, bool docs, int heads);
int out(Graph *g, int tuple, int which);
int val_new(Graph *g, Val v);
double round_bf16(double x);

/* requires: graph_verify'd forward graph in mode TRAIN
 * provides: a gradient contribution for every learned parameter that the loss
 * depends on; the others have none (exactly zero) */
void grad_append(Graph *g);
void grad_contrib(Graph *g, int param, int idx, int val);

/* requires: graph_verify'd.  provides: no arithmetic on numbers, no value that
 * no result needs, no two equal values */
Graph *simplify(Arena *a, const Graph *g);
/* The same of a forward pass that grad.c is still to see: what multiplies a vector
 * multiplies it in every use of it (no learned factor leaves a dot product), and
 * detached sources stay so. */
Graph *simplify_uses(Arena *a, const Graph *g);
/* The same graph without what no result needs. */
Graph *compact(Arena *a, const Graph *g);

/* scales.c: learned factors of products moved into their matrices.
 * requires: forward graph, of simplify_uses.  provides: the same function, or NULL
 * where there is nothing to move */
Graph *scales_into_weights(Arena *a, const Graph *g);
/* the parameter that a product's matrix is, or is a multiple of */
int mat_param(const Graph *g, int v);

/* search.c, rewrite.c: what is stored and in which form, by `plan` of the spec.
 * requires: simplified graph.  provides: the same function, with the level of
 * each value that a kernel is to compute once; lock: gets the decisions, or NULL */
Graph *plan_search(Arena *a, const Graph *g, const Knobs *knob, Buf *lock);

/* recompute.c: activations are computed again in the backward pass */
Graph *recompute(Arena *a, const Graph *g);

/* why.c: for people, what each choice of the search costs and what the next best
 * would cost */
void plan_why(Arena *a, const Graph *g, const Graph *other, const Knobs *knob, Buf *o);

/* fuse.c */

/* what the text is emitted for */
enum { TO_CPU, TO_CUDA };

typedef enum { F32, BF16, F64, I32, E4M3, E5M2 } Dt;    /* storage types */
int dt_size(Dt dt);
const char *dt_name(Dt dt);
bool dt_fp8(Dt dt);

/* a region of the acts arena: rows * width elements */
typedef struct {
	const char *name;       /* of the value, or what it is for */
	int val;                /* value stored here, or -1 */
	Dt dt;
	long rows, width;
	size_t nbytes, off;
	int first, last;        /* steps of its life */
} Buffer;

enum { A_PARAMS, A_WEIGHTS, A_GRADS, A_MOMENT1, A_MOMENT2, A_ACTS, A_TABLES,
       A_INPUTS, A_SCHED, A_RESULT, NArenas };
extern const char *const arena_name[NArenas];

/* f32 of the arena sched that kernels read: docs/emitted.md */
enum { SchedScale = 2, SchedTargets = 8 };

/* regions that are not in acts, by name; emit.c gives their offsets */
enum { INPUT_TOKENS, INPUT_TARGETS, INPUT_DOCSTART, INPUT_PAIR_DOCSTART, INPUT_ORDER, INPUT_HASH,
       INPUT_HASH_ORDER = INPUT_HASH + MaxSources, NInputs = INPUT_HASH_ORDER + MaxSources };

/* an operand of a step: a place and how it is read */
typedef struct {
	enum { OPD_BUF, OPD_ARENA, OPD_TABLE, OPD_INPUT, OPD_INT, OPD_FLOAT } kind;
	int id;                 /* BUF: buffer  ARENA, INPUT: which  TABLE: 0 cos 1 sin */
	size_t off;             /* further bytes */
	Dt dt;
	long ld;                /* elements from row to row */
	long i;
	double f;
} Opd;

/* a row kernel: what it computes, before any mapping to threads */
typedef struct {
	int level, step;
	int nroot, caproot, *root;      /* values it stores or sums over rows */
	int nin, capin, *in;            /* stored values it reads */
	int nsum, sum0;                 /* its scalar sums are partials sum0 … */
} RowKernel;

/* matrices of one shape that NorMuon updates together, each where its parameter lies */
typedef struct {
	long rows, cols;
	int every, n;
	struct { int param; long row; } *matrix;        /* from this row of it */
} Bank;

typedef enum { STEP_ROW, STEP_TEMPLATE, STEP_GEMM, STEP_TAIL, STEP_ZERO, STEP_COPY } StepKind;

typedef struct {
	StepKind kind;
	const char *site;       /* layers.3.attn.qkv fwd */
	const char *name;       /* kernel name without dimensions, or template */
	int sub;
	bool bwd;
	uint8_t glue;
	double nbytes, flops, us;
	RowKernel *row;         /* ROW */
	int text;               /* ROW, TEMPLATE, TAIL: emitted text, by emit.c */
	long items;             /* cpu: calls; cuda: blocks of the grid */
	int threads;            /* cuda: of a block */
	size_t smem;            /* cuda: dynamic shared memory, bytes */
	int nopd, capopd;       /* arguments; GEMM: A B C, and D where one is added */
	Opd *opd;
	bool ta, tb, acc;       /* GEMM */
	long batch, sa, sb, sc; /* GEMM: how many (0: one), elements between matrices; D as C */
	double alpha, beta;     /* GEMM: C = alpha A B + beta D; alpha 0: 1 */
	bool scaled;            /* GEMM: alpha is multiplied by the f32 at scale */
	Opd scale;
	long m, n, k;           /* TAIL: gradients m … n-1, as tail_first counts them
	                         * ZERO, COPY: m bytes of opd[0], from opd[1] */
	const Bank *bank;       /* of NorMuon's templates */
	bool tied, held;        /* of the Adams: one update of embed and head; of bf16 numbers */
	/* of the update program: the steps t with (t + 1) % every == 0, from <= t < to; every
	 * 0: all of them; to -1: no end */
	int every;
	long from, to;
	int val;                /* heavy op it carries out, or -1 */
} Step;

typedef struct {
	Arena *mem;
	const Model *model;
	const Graph *g;         /* NULL: the update program */
	const char *prog;       /* train, eval, logits, update */
	int stage;              /* whose it is; of an eval program the first of several, nstage:
	                         * after the last step */
	int target;
	long T;
	int parts;              /* partials per sum over rows */
	int nstep, capstep;
	Step *step;
	int nbuf, capbuf;
	Buffer *buf;
	int *bufof;             /* value -> buffer, or -1 */
	Dt *dt;                 /* value -> type it is stored in */
	int npart, part;        /* scalar sums, [npart, parts] f32 in buffer part */
	int *partof;            /* SUMR to scalar -> its partial, or -1 */
	size_t acts_nbytes;
	Opd logits;
	const char *lock;       /* decisions of the search, or "" */
} Plan;

/* cpu: blocks of rows of a kernel, which are its partials per sum
 * cuda: most blocks of a kernel that sums over rows: 8 for each of the 132
 * multiprocessors of an H100 or H200, which is about what its registers hold of
 * 96 threads; a number of the text's design, not of the device it runs on */
enum { RowBlocks = 64, CudaParts = 1056 };

/* requires: simplified graph.  provides: steps cover what the results need;
 * every step states bytes and flops.  breaks: buffers have no place yet */
Plan *fuse(Arena *a, const Graph *g, int target);
void plan_verify(const Plan *p);
bool has_text(const Step *s);           /* it is a launch of an emitted text */
void plan_print(const Plan *p, FILE *f);
/* operand constructors, shared with emit.c */
Opd opd_buf(int buf, Dt dt, long ld);
Opd opd_arena(int arena, size_t off, Dt dt, long ld);

/* Channels of its input v that a row kernel reads: all, or what slices take. */
long kernel_reads(const Graph *g, const RowKernel *k, int v);

/* Of the parameters whose gradients are made of scalars, the number of the first
 * element of p: all elements of those before it.  p == nparam: of all. */
long tail_first(const Graph *g, int p);
bool has_scalars(const Graph *g, int p);

/* steps_head.c: the FP8 head (docs/spec.md): a number is stored times `by`, in fp32, and
 * stands for what is stored times `scale` */
typedef struct { struct Fp8Scale { double scale; float by; } x, w, grad; } Fp8;
Fp8 fp8_scales(const Spec *s);
bool head_is_fp8(const Graph *g);       /* of a train program alone */
/* update.c: the update program */
Plan *plan_update(Arena *a, const Model *m, int target);
bool has_normuon(const Model *m);
/* the matrices of a template of NorMuon as literals, one a line */
void bank_text(const Model *m, const Step *s, Buf *o);
long bank_chunk(const Step *s);         /* elements that an item of its launch takes */
/* flops of the iteration's products of all banks, and with two halves of symmetric ones formed once */
void polar_flops(const Plan *p, double *all, double *symmetric);

/* mem.c: offsets in acts by lifetime, 256-byte aligned; sets acts_nbytes */
void mem_place(Plan *p);
void mem_verify(const Plan *p);

/* lower.c, emit.c: see kern.h */

typedef struct {
	const char *name;       /* symbol and file name */
	const char *base;       /* the name before a clash was resolved */
	char *body;             /* text without its sites line */
	char *file;             /* whole text */
	int nsite, capsite;
	const char **site;
	int firstsub;
	int threads;            /* cuda */
	size_t smem;
	bool keep;              /* a person's edited file stays */
} Text;

/* of the stage that is planned for; behind them those of other stages */
enum { PLAN_TRAIN, PLAN_EVAL, PLAN_LOGITS, PLAN_UPDATE, NPlans };

/* everything that is emitted for one spec */
typedef struct {
	Arena *mem;
	const Model *model;
	int target;
	int nplan;
	Plan *plan[NPlans + 2 * MaxStages + 2];
	long most_T;            /* rows of the program that has most */
	long positions;         /* of a sequence in the program whose are longest */
	int ntext, captext;
	Text *text;
	size_t nbytes[NArenas];
	size_t input[NInputs];  /* offsets in the inputs arena */
	bool has_input[NInputs];
	size_t cos_off, sin_off;
	bool dump_kern;
	bool keep;              /* edited kernels stay where they are */
} Bundle;

/* The pipeline: spec to everything that is emitted.  dump: stages to print, or "". */
Bundle *generate(Arena *a, const Model *m, int target, const char *dump);
/* What the spec says, with its gradient, before anything is simplified or
 * planned: what runs is held against this. */
Graph *spec_graph(Arena *a, const Model *m, long T);
void bundle_lock(const Bundle *b, Buf *o);      /* the text of plan.lock */
void explain_plan(Arena *a, const Model *m, Buf *o);    /* why.c, of the train program */
void diff_bundles(const Bundle *a, const Bundle *b, Buf *o);    /* diff.c */
void plan_dot(const Bundle *b, Buf *o); /* report.c: the train program for graphviz */
void emit_texts(Bundle *b);             /* emit.c */
void manifest(const Bundle *b, Buf *out);       /* manifest.c */
void report(const Bundle *b, Buf *out);         /* report.c: plan.txt */
/* Kernels in dir that a person edited since they were emitted: bundle_write
 * leaves them.  How many. */
int bundle_edited(Bundle *b, const char *dir);
/* Write DIR/{spec.yaml,plan.txt,manifest,kernels/}.  die()s. */
void bundle_write(const Bundle *b, const char *dir);
const char *text_suffix(const Bundle *b);

/* target.c: bandwidth and rates for the modelled times */
typedef struct {
	const char *name;
	double gbs;             /* copy bandwidth, GB/s */
	double fp8, bf16, f32;  /* GEMM rates, TFLOP/s */
	double attn;            /* attention rate, TFLOP/s */
	double launch;          /* us per launch */
} Target;
const Target *target_of(const Model *m);

/* interp.c */

/* Inputs of a run, host arrays; params by parameter index, in double. */
typedef struct {
	long T;
	const int32_t *tokens, *targets, *docstart;
	const int32_t *hash[MaxSources];        /* per source with a table */
	double *const *param;
	double scale;           /* of the loss gradient: 1/(tokens of the step) */
	const double *weight;   /* of targets, Model.ntarget; NULL: 1, of the next token alone */
} Inputs;

/* values of a graph: x[v] is [T, width] for vec and rowval, [width] for a
 * param, one number for a scalar; NULL where not wanted or not computed */
typedef struct {
	const Graph *g;
	const Inputs *in;
	double **x;
	double **grad;          /* per parameter, zeros where nothing reaches it */
	double **mag;           /* like x, of rowvals and scalars: the summed
	                         * magnitudes of the terms of their sums, which is
	                         * what rounding errors of a sum are relative to */
	double **grad_mag;      /* the same of the gradients of coefficients */
	bool vec_mag;           /* magnitudes of vecs too */
} Interp;

/* Run the whole graph.  want: values to keep (NULL: all). */
Interp *interp_graph(const Graph *g, const Inputs *in, const bool *want);
/* Run the plan's steps in arenas of doubles, dead buffers filled with NaN. */
Interp *interp_plan(const Plan *p, const Inputs *in);
void interp_free(Interp *t);
double interp_loss(const Interp *t);    /* sum of row losses */

#endif
