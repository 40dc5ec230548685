/* The pieces of the interpreter that its two drivers share. */
#ifndef INTERP_H
#define INTERP_H

#include "hcgen.h"

double *interp_array(size_t n);         /* zeroed; freed with free() */
Interp *interp_new(const Graph *g, const Inputs *in);
/* compute value i from I->x of its operands into I->x[i] */
void interp_eval(Interp *I, int i);
/* c[i,j] += sum_k a[i,k] b[j,k] with strides ai, ak, bj, bk */
void interp_matmul(double *c, const double *a, const double *b, long m, long n, long k,
                   long ai, long ak, long bj, long bk);
double interp_point(Op op, double x, double y);
/* mag, dx_mag, dw_mag: NULL, or the magnitudes of the terms */
void interp_gate(const Interp *I, const Val *v, double *r, double *mag);
void interp_gate_bwd(const Interp *I, const Val *v, double *dx, double *dw, double *dx_mag,
                     double *dw_mag);
/* r = s W of n elements; <G, W> and s G */
void interp_scaled(const double *w, size_t n, double s, double *r);
void interp_scaled_bwd(const double *dw, const double *w, size_t n, double s, double *ds,
                       double *r);
void interp_attn(Interp *I, const Val *v, double *o, double *lse);
/* g: dq, dk, dv; mag: the magnitudes of their terms */
void interp_attn_delta(Interp *I, const Val *v, double *delta, double *mag);
void interp_attn_grads(Interp *I, const Val *v, const double *delta, const double *delta_mag,
                       double *g[3], double *mag[3]);
void interp_attn_bwd(Interp *I, const Val *v, double *g[3], double *mag[3]);
/* Nearest of E4M3 or E5M2, ties to even, saturating.  What is put into memory of these types
 * is rounded by whoever holds the memory. */
double round_fp8(Dt dt, double x);
double interp_softcap(const Spec *s, double l, double *dz);
/* what the loss of one row wants of it: token `of` k with weight w[k] */
typedef struct { int n, of[MaxTargets]; double w[MaxTargets]; } Targets;
/* How many targets row t has, of[] being the caller's to fill; their weights. */
Targets interp_targets(const Interp *I, long t);
/* Logits l of one row become gradients, times scale; returns the loss. */
double interp_head_row(const Interp *I, double *l, const Targets *t, double scale);
const int32_t *interp_index(const Interp *I, const Val *v);
void interp_gather(Interp *I, const Val *v, double *r);         /* and scatter */
void interp_signs(const Interp *I, const Val *v, const double *x, double *r);   /* r may be x */
void interp_head(Interp *I, const Val *v, double *loss, double *dx, double *dw);

/* How a step touches memory.  n elements, contiguous, from the operand's place
 * on; put_sum: n totals of which memory holds Plan.parts partials each.  mag is
 * NULL or the magnitudes of the terms that each number was summed from. */
typedef struct {
	void *ctx;
	void (*get)(void *ctx, const Opd *o, long n, double *x);
	void (*put)(void *ctx, const Opd *o, long n, const double *x, const double *mag,
	            bool add);
	void (*get_sum)(void *ctx, const Opd *o, long n, double *x);
	void (*put_sum)(void *ctx, const Opd *o, long n, const double *x, const double *mag);
} Access;

/* a step that is carried out */
typedef struct { Interp *I; const Plan *p; const Step *s; const Access *m; } Exec;

/* interp_head.c: steps of the head */
void step_ce(Exec *x);
void step_ce_targets(Exec *x);
void step_quantise(Exec *x);
void step_transpose(Exec *x);

/* Carry out one step in double, reading and writing through m alone. */
void interp_step(Interp *I, const Plan *p, const Step *s, const Access *m);

#endif
