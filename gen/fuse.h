/* Private to fuse.c, steps*.c, plan.c, terms.c and recompute.c. */
#ifndef FUSE_H
#define FUSE_H

#include "hcgen.h"

typedef struct {
	Arena *a;
	const Graph *g;
	Plan *p;
	int *level;             /* when a value can exist: 16*heavy step + shifts */
	bool *anchor, *stored;
	bool *view;             /* a slice that heavy steps read in place */
	int nkern, capkern;
	RowKernel **kern;       /* by level */
	int *stamp, now;        /* visited marks */
	Dt gemm_in, gemm_out;
} Fuse;

/* steps.c: buffers, operands, heavy steps */
Opd opd_int(long i);
Opd opd_float(double x);
int buffer_new(Plan *p, const char *name, int val, Dt dt, long rows, long width);
Opd opd_val(Fuse *f, int v);
int contrib_param(const Graph *g, int v);
Opd opd_weight(Fuse *f, int v);         /* a matrix as products read it */
Opd opd_grad(const Graph *g, int param);
int out_value(const Graph *g, int tuple, int which);    /* or -1 */
Step *step_new(Plan *p, StepKind kind, const char *name, const char *site);
void step_launch(const Plan *p, Step *s, long items, long n, long width);
void push(Plan *p, Step *s, Opd o);
/* c (+)= op(a) op(b), row-major, with the bytes and flops of that */
Step *gemm_step(Fuse *f, int v, const char *site, Opd a, bool ta, Opd b, bool tb, Opd c,
                bool acc, long m, long n, long k);
const char *sub_name(const Model *m, int sub);
const char *site_name(Plan *p, const Val *v, const char *what);
const char *short_name(const char *name);
Opd opd_input(int which);
/* a result of a tuple: the buffer of its OUT value, or a spare one */
Opd opd_out(Fuse *f, int tuple, int which, const char *name, Dt dt, long width);
Step *template_step(Fuse *f, int v, const char *name, const char *site);
void heavy_step(Fuse *f, int i);

/* steps_attn.c */
void heavy_attn(Fuse *f, int i);
void heavy_attn_bwd_cpu(Fuse *f, int i);
void heavy_attn_bwd_cuda(Fuse *f, int i);

/* steps_head.c */
void heavy_head(Fuse *f, int i);
void heavy_logits(Fuse *f, int i);

/* fuse.c */
bool is_row(const Val *v);
bool is_demand(const Graph *g, const Val *v, int j);
bool is_view(const Graph *g, int v);
/* When each value can exist: 16 times the number of the last heavy op it needs,
 * plus shifts; or when it is asked to be computed. */
void find_levels(const Graph *g, int *level);
/* types that values have where they are stored */
void choose_types(const Graph *g, Dt *dt);
Plan *plan_new(Arena *a, const Model *m, const char *prog, int target, long T);
void model_times(Plan *p);

#endif
