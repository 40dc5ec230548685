/* What main.c calls beyond the pipeline: the screens of check (show.c), and
 * the runtime, which knows nothing of specs, behind plain values. */
#ifndef VERBS_H
#define VERBS_H

#include "hcgen.h"

/* show.c */
void show_model(const Bundle *b, bool json, FILE *f);
void show_params(const Model *m, FILE *f);

/* runtime/verify.c: uses both halves */
typedef struct {
	const char *params, *tokens, *dump;     /* the user's own, or NULL */
	bool logits, json;
	bool reference;         /* dump the interpreter's results, in double */
	long rows;              /* tokens, 0: about 128 */
	long long seed;
	int threads;
} VerifyOpts;
int verify(Arena *a, const Model *m, const VerifyOpts *o);

/* runtime/verbs.c */
int run_train(const char *dir, const char *base, const char *run, const char *params,
              int threads, bool quiet, bool json);
int run_sample(const char *run, const char *prompt, long n, double temperature,
               long long seed, int threads);
int run_doctor(bool json);
int run_bench(const char *dir, long steps, int threads);
int run_data(int argc, char **argv);

#endif
