/* What main.c calls beyond the pipeline and the runtime. */
#ifndef VERBS_H
#define VERBS_H

#include "hcgen.h"

/* show.c */
void show_model(const Bundle *b, bool json, FILE *f);
void show_params(const Model *m, FILE *f);
void show_kernels(const Bundle *b, FILE *f);
const Text *show_find(const Bundle *b, const char *name);       /* NULL: told why */
void show_kernel(const Bundle *b, const Text *t, const char *resources, FILE *f);

/* runtime/compiled.c: what NVRTC makes of a text, a line; NULL without NVRTC */
const char *compiled_text(Arena *a, const char *name, const char *text, int threads);

/* runtime/verify.c: uses both halves */
typedef struct {
	const char *params, *tokens, *dump;     /* the user's own, or NULL */
	bool logits;
	bool reference;         /* dump the interpreter's results, in double */
	long rows;              /* tokens, 0: about 128 */
	long seq;               /* of a sequence at most, 0: 61 */
	long long seed;
	int threads, device;
	bool bytes;             /* simt: print what each kernel moves */
	const char *update;     /* a state to update, or NULL */
	long step;              /* of the run, that the update is of */
} VerifyOpts;
int verify(Arena *a, const Model *m, const VerifyOpts *o);
const char *verify_dir(const Bundle *b);        /* emitted there; gone when the process is */
/* runtime/verify_update.c */
int verify_update(Arena *a, const Model *m, const VerifyOpts *o);

#endif
