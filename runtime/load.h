/* Between the files that read a manifest: load.c knows the kinds of lines,
 * load_steps.c those of programs, line.c their words. */
#ifndef LOAD_H
#define LOAD_H

#include "hcrun.h"

#include <locale.h>

/* All picked arbitrarily, far above any use: they keep products of two inside
 * a long and refuse manifests that only a fault can produce.  MaxArgs of 8
 * bytes are half of what every CUDA driver takes (4 KiB). */
enum {
	MaxName = 250, MaxArgs = 256, MaxLayers = 100000, MaxWidth = 1 << 24,
	MaxItems = 1 << 24, MaxParams = 1 << 20, MaxKernels = 1 << 16,
	MaxSteps = 1 << 20
};
#define MaxCount (1L << 40)             /* elements, tokens */
#define MaxBytes (1L << 46)

typedef struct {
	Run *run;
	Arena *mem;
	const char *path;
	char *next;             /* rest of the file */
	char *p;                /* rest of the line, NULL at its end */
	int line;
	locale_t c;             /* numbers are read in the C locale */
	int capparam, capinput, captable, capkernel, captrain, capval, capstep, capstage, capprog;
	RunProg *prog;          /* the one that steps belong to */
	bool have_logits;
	long every, from, to;   /* steps of the run that the steps of the program are of */
} Load;

/* line.c */
void line_bad(const Load *l, const char *fmt, ...)
        __attribute__((noreturn, format(printf, 2, 3)));
bool line_next(Load *l);                /* false at the end of the file */
char *line_word(Load *l, const char *what);
const char *line_digest(Load *l);
char *line_rest(Load *l, const char *what);
void line_end(Load *l);
void line_expect(Load *l, const char *text);
int line_choice(Load *l, const char *what, int n, const char *const *names);
#define CHOICE(l, what, ...) \
	line_choice((l), (what), \
	       (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), \
	       (const char *[]){__VA_ARGS__})

long line_to_long(Load *l, const char *w, const char *what, long min, long max);
long line_integer(Load *l, const char *what, long min, long max);
double line_to_real(Load *l, const char *w, const char *what);
double line_real(Load *l, const char *what, double min, double max);
long line_product(Load *l, const char *what, long a, long b);
/* "keyword value" */
long line_key_integer(Load *l, const char *key, long min, long max);
double line_key_real(Load *l, const char *key, double min, double max);
/* letters, digits and what `also` holds; no digit or `also` at the start */
bool line_is_name(const char *s, const char *also);
const char *line_name(Load *l, const char *what, const char *also);
Dtype line_dtype(Load *l);
int line_arena(const char *w);          /* of `arena+offset`, or -1 */
/* nbytes at this place must exist */
Place line_to_place(Load *l, const char *w, long nbytes, size_t align);
Place line_place(Load *l, long nbytes, size_t align);

/* load_steps.c */
extern const char *const prog_names[NProg];
void load_program(Load *l);
void load_launch(Load *l);
void load_gemm(Load *l);
void load_copy(Load *l);
void load_zero(Load *l);
void load_when(Load *l);
int kernel_find(const Run *r, const char *s);   /* s interned; or -1 */

#endif
