/* Between the files of the simt executor.  A Worker runs one block at a time;
 * with checks there is one worker. */
#ifndef SIMT_EXEC_H
#define SIMT_EXEC_H

#include "simt.h"

enum {
	WarpSize = 32,
	MaxThreads = 1024,      /* of a block */
	MaxShared = 232448,     /* bytes of a block, static and dynamic: sm_90 */
	SlotBytes = 64,
	StackBytes = 128 << 10, /* of a fiber; the lowest page is a guard */
	MaxFrames = 12,         /* return addresses of a report */
	MaxKnown = 32           /* lines remembered of an object */
};

/* as in templates/simt/shim.h */
typedef struct { unsigned x, y, z; } HcDim;
typedef const unsigned char (*HcTable)[SlotBytes];
typedef struct HcSimt HcSimt;
struct HcSimt {
	HcDim thread, block, nthread, nblock;
	unsigned char *dynamic;
	unsigned long stack, nstack;    /* of the running fiber */
	void (*barrier)(HcSimt *, void *const *frame);
	HcTable (*collect)(HcSimt *, const char *what, const void *mine, int nbytes, unsigned mask,
	                   int order, void *const *frame);
	void (*access)(HcSimt *, const void *p, unsigned long nbytes, int how, void *const *frame);
	void (*copy)(HcSimt *, void *smem, const void *global, int nbytes, int valid, void *const *frame);
	void (*commit)(HcSimt *);
	void (*wait)(HcSimt *, int newest, void *const *frame);
	void (*fault)(HcSimt *, const char *what, const void *p, void *const *frame);
};
enum { HowRead, HowWrite, HowAtomic };

/* simt_compile.c: compiled kernels */

typedef struct { int line, inner; char function[64]; } Line;    /* line 0: unknown */

typedef struct {
	void *handle;           /* of dlopen */
	int fd;                 /* the object's bytes; addr2line reads them too */
	HcSimt **simt;          /* the text's way to its worker */
	void (*run)(const HcArg *);
	char *lo, *hi;          /* where it is mapped */
	char *constants;        /* end of what is read-only, which comes first */
	char *shared_lo, *shared_hi;
	struct { int n; void *pc[MaxFrames]; Line line; } known[MaxKnown];
	int nknown;             /* lines found so far; the oldest make room */
} So;

struct SimtKernel {
	const char *name, *path;
	const char *key;        /* of the text and what compiles it */
	const char *bytes;      /* of the object */
	size_t nbytes;
	size_t nshared;         /* bytes of its __shared__ variables */
	int nparam;
	const char **param;     /* names, as far as the text shows them */
	So *so;                 /* one per worker, loaded when needed */
};

typedef struct Compiler Compiler;
Compiler *compiler_new(bool check);     /* die()s without g++ */
void compiler_free(Compiler *c);
const char *compiler_missing(void);
/* fills key, bytes, nparam, param */
void compiler_run(Compiler *c, int n, const SimtSource *src, SimtKernel *const *k);
void so_load(const SimtKernel *k, So *so);
void so_close(So *so);

/* The line of the kernel that the chain of return addresses passes through,
 * and, when that is a call of a function of the text, the line in it. */
Line so_line(So *so, int n, void *const *pc);

/* simt_check.c: what memory was touched by whom */

typedef struct Check Check;
typedef struct Worker Worker;

Check *check_new(void);
void check_free(Check *c);
void check_memory(Check *c, const char *name, void *p, size_t nbytes, bool writable);
void check_memory_clear(Check *c);
void check_launch(Check *c, Worker *w); /* kernel, so, arguments are set */
void check_block(Check *c, Worker *w);
void check_barrier(Check *c, Worker *w);
void check_syncwarp(Check *c, Worker *w, int warp, unsigned mask);
/* by the running thread; does not return when it is a fault */
void check_access(Worker *w, const void *p, size_t nbytes, int how, void *pc, void *const *frame);
/* until the same thread's check_landed, the bytes must not be read */
void check_copy(Worker *w, const void *p, int nbytes, void *pc, void *const *frame);
void check_landed(Worker *w, const void *p, int nbytes, void *pc, void *const *frame);
void check_bytes(const Check *c, SimtBytes *b);
void check_place(const Check *c, const Worker *w, const void *p, Buf *b);

/* simt_fiber.c: fibers of a worker */

typedef struct Fiber {
	struct Fiber *next;     /* idle */
	void *context;
	char *stack;
} Fiber;

typedef struct Group {          /* lanes of a warp that meet */
	struct Group *next;
	const char *what;
	int nbytes;
	unsigned mask, arrived;
	unsigned reading;       /* lanes that may still look at slot */
	bool order;
	_Alignas(16) unsigned char slot[WarpSize][SlotBytes];
} Group;

typedef struct {
	void *smem;
	const void *global;
	int nbytes;
	long group;             /* number of the commit; LONG_MAX: none yet */
	bool valid;
	void *pc;
} Copy;

enum { TH_READY, TH_RUNNING, TH_BARRIER, TH_WARP, TH_DONE };

typedef struct {
	int state;
	Fiber *fiber;           /* NULL: not started */
	Group *waits, *reads;
	void *const *frame;     /* of where it waits */
	Copy *copy;
	int ncopy, capcopy;
	long ncommit;
	uint64_t clock;         /* simt_check.c */
} Thread;

typedef struct {                /* what is said of a fault when its thread has stopped */
	int thread;
	int npc;
	void *pc[MaxFrames];
	void *other;            /* return address of another access, or NULL */
	char text[256], tail[64];
} Note;

struct Worker {
	HcSimt hc;              /* first: hooks get its address */
	Arena *mem;
	const SimtKernel *k;
	So *so;
	const HcArg *arg;
	Check *check;           /* or NULL */
	long block;
	int nthread, ndone, nready, nbarrier;
	size_t ndynamic;
	unsigned char *dynamic;
	uint64_t random;        /* 0: ascending */
	int pos, order[MaxThreads];
	Thread thread[MaxThreads];
	Group *open[MaxThreads / WarpSize], *free;
	bool collectives_order;
	char *stacks;
	int nfiber;
	Fiber *fiber, *idle, *from;
	Fiber main, fibers[MaxThreads];
	bool failed;
	Note note;
};

const char *fiber_missing(void);
void fiber_open(Worker *w);
void fiber_close(Worker *w);
/* Runs w->block; false: w->note says why not. */
bool fiber_block(Worker *w);
/* Notes a fault of the running thread and leaves it for good. */
_Noreturn void fiber_fail(Worker *w, void *const *frame, void *other, const char *tail,
                          const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* simt_warp.c: what the text calls */
void warp_hooks(Worker *w);
void warp_reset(Worker *w);
void warp_leave(Worker *w, int thread); /* its thread ends */
void fiber_wait(Worker *w, int state, void *const *frame);      /* until ready again */
void fiber_ready(Worker *w, int thread);
void fiber_ready_all(Worker *w);
void fiber_frames(Note *n, const Worker *w, int thread, void *const *frame);

uint64_t simt_random(uint64_t *state);

#endif
