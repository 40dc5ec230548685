/* The runtime: executes an emitted directory.  It knows nothing of specs.
 *
 * Sectioned by file.  Sizes are bytes (nbytes, off), counts are elements. */
#ifndef HCRUN_H
#define HCRUN_H

#include "../gen/base.h"

typedef union { void *p; long i; double f; } HcArg;
typedef void HcKernel(const HcArg *a, long item);

typedef enum { DT_F32, DT_BF16, DT_F64, DT_I32, DT_E4M3, DT_E5M2 } Dtype;
size_t dtype_size(Dtype dt);            /* line.c */
const char *dtype_name(Dtype dt);
bool dtype_fp8(Dtype dt);

enum { AR_PARAMS, AR_WEIGHTS, AR_GRADS, AR_MOMENT1, AR_MOMENT2, AR_ACTS,
       AR_TABLES, AR_INPUTS, AR_SCHED, AR_RESULT, NArena };
extern const char *const arena_names[NArena];

/* f32 of the arena sched that the host writes: docs/emitted.md */
enum { SCHED_SCALE = 2, SCHED_TARGETS = 8 };

typedef struct { int arena; size_t off; } Place;        /* arena -1: none */

/* load.c: manifest -> Run */

typedef struct {
	const char *name;
	int ndim;
	long dim[3], n;                 /* n = product of dim */
	size_t off;                     /* in params, grads */
	Place weights;                  /* copy in the type of products, or none */
	enum { PI_NORMAL, PI_UNIFORM, PI_CONST, PI_VALUES, PI_LIKE } init;
	double std;                     /* PI_NORMAL, PI_UNIFORM: std; PI_CONST: value */
	double *values;                 /* PI_VALUES: n numbers */
	const char *like;               /* PI_LIKE: the parameter whose initial values it has */
	/* BF16: its numbers are bf16's  UPPER: initial ones are, and its copy is its upper half */
	enum { HOLDS_F32, HOLDS_BF16, HOLDS_UPPER } holds;
} RunParam;

typedef struct {
	enum { IN_TOKENS, IN_TARGETS, IN_DOCSTART, IN_PAIR_DOCSTART, IN_HASH, IN_ORDER_TOKENS,
	       IN_ORDER_HASH } kind;
	Place at;
	int rows;                       /* of the table, for HASH and ORDER */
	bool quirk;                     /* arithmetic of the hash */
} RunInput;

typedef struct {
	Place at;
	bool sine;
	int positions, columns;
	float *frequency;               /* [columns] */
	bool bf16;                      /* entries are rounded to it */
	int stage;                      /* the first it is for */
} RunTable;

/* A part of the run.  The last is what follows the last step: a validation. */
typedef struct {
	const char *name;
	long first, end;                /* steps first … end - 1 */
	long tokens, seq, micro;        /* tokens per micro-batch */
	long max_doc;
	double lr_mul;
	int ntarget;
	double target[MaxTargets], target_end[MaxTargets];
	int train, eval;                /* its programs; train of the last: -1 */
} RunStage;

/* What a CUDA kernel takes, in bytes but for registers (per thread). */
typedef struct {
	int registers;
	int stack;                      /* of a thread, spills included */
	long spills;                    /* bytes stored and loaded for them */
	long smem;                      /* static shared memory */
	long code;
	long arguments;                 /* -1: not told */
} KernelResources;

typedef struct {
	const char *name, *file;
	const char *hash;               /* SHA-256 of the text as emitted, or NULL */
	bool edited;                    /* the file differs from that */
	HcKernel *fn;                   /* target cpu */
	int threads;                    /* target cuda: of a block */
	long smem;                      /* dynamic shared memory */
	void *handle;                   /* of the device */
	bool measured;                  /* res holds */
	KernelResources res;
} RunKernel;

typedef struct { Place at; Dtype dt; long ld; } Mat;

typedef struct {
	enum { ST_LAUNCH, ST_GEMM, ST_COPY, ST_ZERO } kind;
	const char *site;
	double nbytes, flops;           /* as planned */
	/* it is done in the steps t of the run with (t + 1) % every == 0, from <= t < to; to -1:
	 * no end */
	long every, from, to;
	/* ST_LAUNCH */
	int kernel;                     /* index */
	long items;
	int narg;
	struct { enum { ARG_PLACE, ARG_INT, ARG_FLOAT } kind;
	         Place at; long i; double f; } *arg;
	HcArg *bound;                   /* arg with addresses of the device */
	void **param;                   /* cuda: where each of bound stands */
	/* ST_GEMM */
	bool ta, tb, acc;
	long m, n, k;
	Mat a, b, c;
	long batch, sa, sb, sc;         /* elements between matrices; batch 1: one */
	float alpha, beta;              /* C = alpha A B + beta D */
	bool add;                       /* there is a D */
	Mat d;
	bool scaled;                    /* alpha is multiplied by the f32 at scale */
	Place scale;
	void *plan;                     /* of the device */
	/* ST_COPY: c.at <- a.at, m bytes  ST_ZERO: c.at <- 0, m bytes */
} RunStep;

enum { PROG_TRAIN, PROG_EVAL, PROG_LOGITS, PROG_UPDATE, NProg };

typedef struct {
	const char *name;
	int kind, stage;                /* PROG_…; a stage's, or 0 */
	long tokens, seq;
	int nstep;
	RunStep *step;
} RunProg;

typedef struct Pool Pool;
typedef struct Gemm Gemm;
typedef struct Device Device;

enum { TARGET_CPU, TARGET_CUDA };       /* what was emitted; as in gen/hcgen.h */
enum { DEV_AUTO = -1, DEV_CPU, DEV_SIMT, DEV_CUDA, NDevice };

/* Bytes of global memory that one launch touched, as simt counts them. */
typedef struct { double load_unique, load_issued, store_unique, store_issued; } RunBytes;

typedef void RunRange(void *to, const char *name, void *p, size_t nbytes, bool writable);

/* Of simt, set between run_load and run_open. */
typedef struct {
	bool check;                     /* bounds, races, shared memory */
	unsigned long seed;             /* of the order in which threads run */
	void (*bytes)(void *ctx, const RunStep *s, const RunBytes *b);  /* or NULL */
	void *bytes_ctx;
	/* the memory that a launch may touch; NULL: all arenas */
	void (*ranges)(void *ctx, const RunStep *s, RunRange *range, void *to);
	void *ranges_ctx;
} RunOpts;

typedef struct Run {
	Arena *mem;                     /* host structures live here */
	const char *dir;                /* emitted directory */
	int target;
	const char *name, *spec_hash;
	int layers, lanes, width, vocab, padded;
	long most_tokens;               /* of the program with the most rows */
	int bos;
	bool document_mask;             /* attention stops at bos */
	bool storage_bf16, gemm_bf16;
	/* train */
	long steps, scheduled;          /* all; those of the schedule */
	long warmup, val_every, val_tokens, log_every;
	double lr, cooldown, floor, clip;
	double loss_scale;              /* 0: 1/(tokens of the step) */
	int nstage;                     /* without the last entry */
	RunStage *stage;                /* [nstage + 1] */
	/* of NorMuon; momentum_steps 0: there is none.  momentum_steps: of the run */
	double momentum, momentum_start;
	long momentum_warmup, momentum_cooldown, momentum_steps;
	enum { RUN_COOL_CONSTANT, RUN_COOL_LINEAR, RUN_COOL_COSINE } cooldown_kind;
	long long seed;
	/* data */
	bool packing_documents, val_documents, shuffle;
	long max_doc;                   /* of validation */
	int ntrainfile, nvalfile;
	const char **trainfile, **valfile;

	size_t arena_size[NArena];
	/* Host memory, 256-byte aligned.  cpu and simt work on it.  cuda has
	 * its own, and here a mirror that run_put and run_get move from and to;
	 * of weights, moments and acts only once run_host asked for it. */
	char *arena[NArena];
	uintptr_t base[NArena];         /* the arenas as kernels see them */
	int nparam, ninput, ntable, nkernel;
	RunParam *param;
	RunInput *input;
	RunTable *table;
	RunKernel *kernel;
	RunProg *prog;                  /* prog[PROG_…] first, then further stages' */
	int nprog, at[NProg];           /* at: the program of a kind in the stage that is on */
	int on, filled;                 /* the stage; that whose tables are filled, or -1 */
	long t;                         /* step of the run, from 0, that programs are run for */
	Place logits;                   /* output of the logits program */
	long logits_ld;

	RunOpts opts;
	int device;                     /* DEV_… */
	const Device *ops;
	void *dev;                      /* of the device */
	double *mark;                   /* cpu and simt: clock at marks */
	Pool *pool;
	Gemm *gemm;
	void *lib;                      /* compiled kernels */
	int nedited;                    /* kernels that differ from what emit writes */
} Run;

/* Parse DIR/manifest.  Every number is checked: places inside their arenas,
 * kernels existing, counts bounded.  die()s with the line on damage. */
Run *run_load(const char *dir);

void *run_at(const Run *r, Place p);    /* host address */
const RunParam *run_param(const Run *r, const char *name);     /* or NULL */

/* device.c: where a Run executes */

/* Everything that differs between devices.  Work is queued and done in order;
 * put, fetch, sync, inputs and forget are NULL where host memory is worked on. */
struct Device {
	const char *name;
	int target;                     /* that it executes */
	void (*open)(Run *r, int nthreads);     /* memory zeroed, steps bound */
	void (*close)(Run *r);
	void (*launch)(Run *r, RunStep *s);
	void (*gemm)(Run *r, RunStep *s);
	void (*copy)(Run *r, RunStep *s);
	void (*zero)(Run *r, int arena);
	void (*clear)(Run *r, RunStep *s);
	void (*put)(Run *r, int arena, size_t off, size_t n);
	void (*fetch)(Run *r, int arena, size_t off, size_t n);
	void (*sync)(Run *r);
	void (*inputs)(Run *r);         /* the mirror of inputs may be written */
	void (*host)(Run *r, int arena);        /* a mirror is wanted */
	void (*forget)(Run *r, int arena);      /* it no longer is */
	void (*mark)(Run *r, int i);    /* a point in the queue, i from 0 */
	double (*between)(Run *r, int i);       /* seconds from mark i to i + 1 */
	void (*memory)(const Run *r, FILE *f);  /* lines below the arenas */
};
extern const Device device_cpu, device_simt, device_cuda;

/* name: auto, cpu, simt, cuda, or NULL for auto.  die()s for other names, and
 * for cuda where it cannot work. */
int device_pick(const char *name);
int device_target(int device);          /* TARGET_… to emit for it */
const char *device_name(int device);
/* Allocate arenas, compile and load kernels, start threads, fill tables.
 * DEV_AUTO: the best device here for what was emitted.  nthreads 0: all cores.
 * die()s with a message on failure. */
void run_open(Run *r, int device, int nthreads);
void run_close(Run *r);                 /* releases everything, frees r */
void run_bind(Run *r);                  /* arguments to addresses in base */
void run_put(Run *r, int arena, size_t off, size_t n);  /* host -> device, queued */
void run_get(Run *r, int arena, size_t off, size_t n);  /* device -> host, done */
void run_fetch(Run *r, int arena, size_t off, size_t n);/* the same; run_sync ends it */
void run_zero(Run *r, int arena);       /* on the device and in the mirror */
void run_sync(Run *r);                  /* all that was queued is done */
char *run_host(Run *r, int arena);      /* arena[], made if it was not there */
void run_forget(Run *r, int arena);     /* a mirror's memory can go */
void run_inputs(Run *r);                /* call before writing to inputs */
void run_stage(Run *r, int stage);      /* its programs and tables from now on */
const RunProg *run_prog(const Run *r, int prog);        /* of the stage that is on */
void arenas_map(Run *r);                /* arena.c: host memory for all */
void arenas_unmap(Run *r);
char *arena_map(const char *what, size_t nbytes);       /* NULL for none */

/* cpu.c: what simt shares; the monotonic clock */
double seconds_now(void);
void cpu_gemm(Run *r, RunStep *s);
void cpu_copy(Run *r, RunStep *s);
void cpu_zero(Run *r, int arena);
void cpu_clear(Run *r, RunStep *s);
void cpu_mark(Run *r, int i);
double cpu_between(Run *r, int i);
void cpu_gemm_open(Run *r);             /* and prepare every product */

/* cubin.c */
bool cubin_resources(const void *cubin, size_t n, const char *kernel,
                     KernelResources *out);
/* resources.c */
const char *kernel_site(const Run *r, int k);           /* its first launch */
/* A launch that passes other arguments than the kernel has, or NULL. */
const RunStep *kernel_mismatch(const Run *r, int k);
void run_resources(const Run *r, FILE *f);
int compile_report(const char *dir, int narch, const char *const *arch, bool json,
                   FILE *out);

/* cuda_dev.c: false when no GPU can be used; why, if there is one, else NULL */
bool cuda_usable(const char **why);
void cuda_need(void);                   /* die()s with the reason */
const char *cuda_problem(void);         /* the reason, or NULL */
typedef struct { char name[256]; int major, minor, sms; size_t memory; } GpuFacts;
enum { LeastFp8 = 89 };            /* the first that multiplies FP8 */
bool cuda_facts(GpuFacts *g);           /* of the first GPU; false: there is none */
const char *cuda_name(const Run *r);    /* of the GPU */
/* bytes per second of a copy on the device, read and written */
double cuda_copy_speed(Run *r);

/* memory.c: the arenas as planned; what the process holds, by cause */
void run_memory(const Run *r, FILE *f);
void run_memory_process(const Run *r, FILE *f);

/* init.c: initial parameters (docs/spec.md), copies for products, rotary tables */
void run_init_params(Run *r, long long seed);
void run_sync_weights(Run *r);          /* copies from params */
float round_to_bf16(float x);
void run_fill_tables(Run *r);

/* pool.c: calls fn(arg, item) for items 0..items-1 on all threads */
Pool *pool_new(int nthreads);
void pool_free(Pool *p);
int pool_threads(const Pool *p);
int pool_self(void);                    /* 0 … threads-1, of the calling thread */
void pool_run(Pool *p, void (*fn)(void *arg, long item), void *arg, long items);

/* gemm.c: oneDNN opened at run time; results do not depend on the number of
 * threads: fixed tiles of C, fixed chunks of k added in order */
Gemm *gemm_new(Pool *p);                /* die()s when no library is found */
void gemm_free(Gemm *g);
bool gemm_has_bf16(void);               /* native bf16 dot products here */
/* C[m,n] = alpha op(A) op(B), + C with acc, + beta D with add, for `batch` matrices:
 * the i-th lie i*sa, i*sb, i*sc elements behind A, B, C and D; scaled: alpha times a
 * number that gemm_run is given */
typedef struct {
	bool ta, tb, acc, add, scaled;
	Dtype at, bt, ct;               /* of A, B (both alike, or both FP8); of C and D */
	long m, n, k, lda, ldb, ldc, ldd;
	long batch, sa, sb, sc;
	float alpha, beta;
} GemmShape;

/* Makes what gemm_run needs for these operands, so that a step makes nothing. */
void gemm_prepare(Gemm *g, const GemmShape *s);
size_t gemm_scratch(const Gemm *g);     /* bytes held for it */
void gemm_run(Gemm *g, const GemmShape *s, const void *a, const void *b, void *c, const void *d,
              float scale);

/* cache.c: what was compiled, by the SHA-256 of all that decides its bytes.
 * key: 64 hexadecimal digits; suffix: ".so", ".cubin" … */
const char *cache_dir(Arena *a);        /* of hcgen; need not exist yet */
const char *cache_open(Arena *a);       /* made; die()s unless it is private */
void cache_writable(const char *dir);   /* die()s unless entries can be put */
/* The bytes of an entry, a 0 behind them; NULL when it is absent, or damaged
 * (then that is told).  They lie in a. */
char *cache_get(Arena *a, const char *dir, const char *key, const char *suffix,
                size_t *n);
/* Atomic.  False with errno when it cannot be written.  Any thread may call. */
bool cache_put(const char *dir, const char *key, const char *suffix,
               const void *data, size_t n);
/* For loaders of files: the entry's bytes and then its seal, 64 digits. */
char *cache_path(Arena *a, const char *dir, const char *key, const char *suffix);

/* compile.c: kernels/ *.c -> one shared object, cached by content hash */
void compile_kernels(Run *r);           /* fills kernel[].fn, lib */
void compile_close(Run *r);
/* The text of a kernel; sets edited and counts it in nedited. */
char *kernel_read(Run *r, int k, Arena *mem, size_t *n);

/* launch.c: in step r->t of the run */
bool step_due(const RunStep *s, long t);
void run_program(Run *r, int prog);     /* PROG_… of the stage that is on: all steps, in order */
/* the same, calling after(ctx, step index) behind each step */
void run_program_each(Run *r, int prog, void (*after)(void *, int), void *ctx);
/* seconds per step index are added to t[] (may be NULL) */
void run_program_timed(Run *r, int prog, double *t);

/* shard.c: token files (.bin) */
typedef struct {
	const char *path;
	const uint16_t *token;          /* mapped read-only */
	long n;
	void *map;
	size_t nbytes;                  /* of the mapping */
} Shard;
/* die()s unless magic, version and count agree with the file; path stays the
 * caller's. */
void shard_open(Shard *s, const char *path);
void shard_close(Shard *s);
/* Streams into a temporary beside path; shard_finish puts it in place. */
typedef struct ShardWriter ShardWriter;
ShardWriter *shard_create(Arena *a, const char *path);
void shard_put(ShardWriter *w, const uint16_t *token, long n);
long shard_finish(ShardWriter *w);      /* tokens written */
void shard_abandon(ShardWriter *w);     /* leaves nothing behind */

/* bytes.c: text as tokens 0..255, documents begin with ByteBos */
enum { ByteBos = 256, ByteVocab = 257 };
/* The shard DIR/{train,val}.bin that `auto` stands for, made when absent. */
const char *auto_shard(Arena *a, bool train);
/* The same from the headers under root, into dir. */
void auto_build(const char *root, const char *dir);
int data_main(int argc, char **argv);   /* argv[0] is "bytes" or "show" */

/* data.c: batches */
typedef struct Data Data;
/* files: paths or globs, or "auto"; relative to base.  bos, packing etc. from
 * r, as its first stage or its validation wants them.  die()s on a missing, truncated or
 * foreign file, or a token >= vocab. */
Data *data_open(const Run *r, int nfile, const char *const *files,
                const char *base, bool train);
void data_close(Data *d);
long data_sequences(const Data *d);     /* per epoch */
/* Next `rows` sequences of seq tokens: tokens and targets, rows*seq each. */
void data_next(Data *d, int32_t *tokens, int32_t *targets, long rows);
/* Sequences of another length from now on.  Documents go on; of a stream a new epoch begins. */
void data_stage(Data *d, long seq, long max_doc);
void data_rewind(Data *d);
long data_tokens(const Data *d);        /* of the stream: all shards */
void data_copy(const Data *d, long first, long n, uint16_t *out);
/* Everything a program needs in the inputs arena, from its tokens. */
void inputs_fill(Run *r, const RunProg *p, const int32_t *tokens, const int32_t *targets);

/* ngram.c: nats per token of an order-2 model counted on train, over val;
 * vocab <= 512; a token equal to bos (-1: none) ends the context */
double ngram_nats(const uint16_t *train, long n, const uint16_t *val, long m,
                  int vocab, int bos);

/* st.c: safetensors */
typedef struct { const char *name; Dtype dt; int ndim; long dim[4]; const void *data; } StTensor;
typedef struct { Arena *mem; int n; StTensor *t; } StFile;
StFile *st_read(const char *path);      /* die()s; every length is checked */
void st_close(StFile *f);
void st_write(const char *path, int n, const StTensor *t);     /* atomic; die()s */
void params_save(Run *r, const char *path);
/* by name; a missing, extra or misshapen tensor is an error that names it */
void params_load(Run *r, const char *path);

/* train.c and the other verbs: return the exit code */
typedef struct {
	const char *dir;        /* emitted directory */
	const char *base;       /* directory the spec's data paths are relative to */
	const char *run;        /* run directory: metrics.jsonl, final.safetensors */
	const char *params;     /* start from these, or NULL */
	int nthreads;
	bool quiet, json;
	int device;             /* DEV_… */
} TrainOpts;
int train(const TrainOpts *o);
/* s(t) of docs/spec.md, "Learning rate" */
double run_sched(const Run *r, long t);
int run_stage_of(const Run *r, long t); /* the stage of step t; nstage behind the last */
long run_tokens(const Run *r, long t);  /* of the first t steps together */
/* weights of the targets at step t, zeros behind the last */
void run_targets(const Run *r, long t, float w[MaxTargets]);
void step_begin(Run *r, long t);        /* sched of step t of the run, in the stage that is on */
double run_momentum(const Run *r, long t);      /* mu(t), 0 where nothing has it */
int sample(const char *rundir, const char *prompt, long n, double temperature,
           long long seed, int device, int nthreads);
int doctor(bool json);
int bench(const char *dir, long steps, int device, int nthreads);       /* bench.c */
void cpu_model(Buf *b);                 /* doctor.c */

/* log.c: the terminal, and metrics.jsonl in the run directory */
typedef struct Log Log;
Log *log_open(Arena *a, const Run *r, const TrainOpts *o);
void log_start(Log *l, int nthreads);   /* after this, time counts */
void log_ngram(Log *l, double nats);    /* shown beside the val loss */
typedef struct { long step; double loss, lr, norm, seconds; } LogStep;
void log_step(Log *l, const LogStep *s, bool val_next);
void log_val(Log *l, long step, double loss, long tokens, double seconds);
/* what: "done", "stopped" or "failed"; file may be NULL */
void log_end(Log *l, const char *what, long step, const char *file);
void log_close(Log *l);
void buf_json(Buf *b, const char *s);   /* a JSON string, quotes included */

#endif
