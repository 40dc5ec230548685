/* What model.c and model_hc.c share. */
#ifndef MODEL_H
#define MODEL_H

#include "hcgen.h"

typedef struct {
	Arena *a;
	Diag *d;
	const Spec *s;
	Model *m;
	int capparam;
	bool live[2 * MaxLayers];
	int first, last;        /* layers with lanes */
} Ctx;

#define ERR(c, path, ...) diag_error((c)->d, spec_loc((c)->s, (path)), __VA_ARGS__)

/* model.c */
int param_new(Ctx *c, const char *name, Role role, int ndim, int d0, int d1, int d2);
void sel_check(Ctx *c, const Sel *s, int limit, const char *what, const char *path);

/* model_hc.c, in this order */
void hc_check(Ctx *c);          /* selections */
void hc_lanes(Ctx *c);          /* which sublayers live, which layers have lanes */
void hc_build(Ctx *c);          /* everything else, after the matrices */

#endif
