/* Manifest -> Run: docs/emitted.md is the grammar.
 *
 * The directory may come from anywhere, so nothing in it is believed: each
 * number has a range, each product is checked for overflow, each place holds
 * its full extent inside its arena.  What run_load returns can be executed
 * without reading or writing outside of the arenas, as far as the runtime's
 * own accesses go; kernels are code and are trusted like any program. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const arena_names[NArena] = {
	"params", "weights", "grads", "moment1", "moment2", "acts",
	"tables", "inputs", "sched", "result"
};

static const char *const prog_names[NProg] = {
	"train", "eval", "logits", "update"
};

/* All picked arbitrarily, far above any use: they keep products of two inside
 * a long and refuse manifests that only a fault can produce. */
enum {
	MaxName = 250, MaxArgs = 256, MaxLayers = 100000, MaxWidth = 1 << 24,
	MaxItems = 1 << 24, MaxParams = 1 << 20, MaxKernels = 1 << 16,
	MaxSteps = 1 << 20
};
static const long MaxCount = 1L << 40;          /* elements, tokens */
static const long MaxBytes = 1L << 46;

/* Least sizes: docs/emitted.md names what stands there. */
enum { SchedBytes = 5 * 4, ResultBytes = 8 };

typedef struct {
	Run *run;
	Arena *mem;
	const char *path;
	char *next;             /* rest of the file */
	char *p;                /* rest of the line, NULL at its end */
	int line;
	locale_t c;             /* numbers are read in the C locale */
	int capparam, capinput, captable, capkernel, captrain, capval, capstep;
	RunProg *prog;          /* the one that steps belong to */
	bool have_logits;
} Load;

static _Noreturn void
bad(const Load *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static _Noreturn void
bad(const Load *l, const char *fmt, ...)
{
	Buf b = {0};
	va_list ap;

	va_start(ap, fmt);
	buf_vprintf(&b, fmt, ap);
	va_end(ap);
	die("%s:%d: %s", l->path, l->line, b.s);
}

/* words of a line */

static bool
line_next(Load *l)
{
	char *end;

	if (*l->next == 0)
		return false;
	l->line++;
	end = strchr(l->next, '\n');
	if (!end)
		bad(l, "the last line is cut off");
	*end = 0;
	l->p = l->next;
	l->next = end + 1;
	return true;
}

static char *
word(Load *l, const char *what)
{
	char *w = l->p, *end;

	if (!w)
		bad(l, "expected %s, found the end of the line", what);
	end = strchr(w, ' ');
	if (end)
		*end = 0;
	l->p = end ? end + 1 : NULL;
	if (*w == 0)
		bad(l, "expected %s, found a second space", what);
	return w;
}

static const char *
digest(Load *l)
{
	const char *h = intern(word(l, "a hash"));

	if (strlen(h) != 64 || strspn(h, "0123456789abcdef") != 64)
		bad(l, "'%s' is not a SHA-256", h);
	return h;
}

static char *
rest(Load *l, const char *what)
{
	char *w = l->p;

	if (!w || *w == 0)
		bad(l, "expected %s, found the end of the line", what);
	l->p = NULL;
	return arena_strdup(l->mem, w);
}

static void
line_end(Load *l)
{
	if (l->p)
		bad(l, "expected the end of the line, found '%s'", l->p);
}

static void
expect(Load *l, const char *text)
{
	const char *w = word(l, text);

	if (strcmp(w, text) != 0)
		bad(l, "expected '%s', found '%s'", text, w);
}

static int
choice(Load *l, const char *what, int n, const char *const *names)
{
	const char *w = word(l, what);
	int i;

	for (i = 0; i < n; i++)
		if (strcmp(w, names[i]) == 0)
			return i;
	bad(l, "'%s' is not a %s", w, what);
}

#define CHOICE(l, what, ...) \
	choice((l), (what), \
	       (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), \
	       (const char *[]){__VA_ARGS__})

/* numbers */

static const char *
digits(const char *s)
{
	while (*s >= '0' && *s <= '9')
		s++;
	return s;
}

static bool
is_integer(const char *s)
{
	const char *d = *s == '-' ? s + 1 : s, *end = digits(d);

	return end > d && *end == 0 && (*d != '0' || d[1] == 0);
}

static bool
is_real(const char *s)
{
	const char *d = *s == '-' ? s + 1 : s, *end = digits(d);

	if (end == d)
		return false;
	if (*end == '.') {
		d = end + 1;
		end = digits(d);
		if (end == d)
			return false;
	}
	if (*end == 'e') {
		d = end + 1;
		d += *d == '+' || *d == '-';
		end = digits(d);
		if (end == d)
			return false;
	}
	return *end == 0;
}

static long
to_long(Load *l, const char *w, const char *what, long min, long max)
{
	long v;

	if (!is_integer(w))
		bad(l, "%s: '%s' is not an integer", what, w);
	errno = 0;
	v = strtol(w, NULL, 10);
	if (errno != 0 || v < min || v > max)
		bad(l, "%s: %s is not in %ld … %ld", what, w, min, max);
	return v;
}

static long
integer(Load *l, const char *what, long min, long max)
{
	return to_long(l, word(l, what), what, min, max);
}

static double
to_real(Load *l, const char *w, const char *what)
{
	double v;

	if (!is_real(w))
		bad(l, "%s: '%s' is not a number", what, w);
	v = strtod_l(w, NULL, l->c);
	if (!isfinite(v))
		bad(l, "%s: %s is not finite", what, w);
	return v;
}

static double
real(Load *l, const char *what, double min, double max)
{
	const char *w = word(l, what);
	double v = to_real(l, w, what);

	if (v < min || v > max)
		bad(l, "%s: %s is not in %g … %g", what, w, min, max);
	return v;
}

static long
product(Load *l, const char *what, long a, long b)
{
	long v;

	if (__builtin_mul_overflow(a, b, &v) || v > MaxBytes)
		bad(l, "%s: %ld x %ld is too much", what, a, b);
	return v;
}

/* "keyword value" */
static long
key_integer(Load *l, const char *key, long min, long max)
{
	expect(l, key);
	return integer(l, key, min, max);
}

static double
key_real(Load *l, const char *key, double min, double max)
{
	expect(l, key);
	return real(l, key, min, max);
}

/* names */

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* Letters, digits and what `also` holds; no digit or `also` at the start. */
static bool
is_name(const char *s, const char *also)
{
	size_t len = strlen(s), i;

	if (len > MaxName || !is_letter(s[0]))
		return false;
	for (i = 1; i < len; i++)
		if (!is_letter(s[i]) && !(s[i] >= '0' && s[i] <= '9') &&
		    !strchr(also, s[i]))
			return false;
	return true;
}

static const char *
name(Load *l, const char *what, const char *also)
{
	const char *w = word(l, what);

	if (!is_name(w, also))
		bad(l, "%s: '%s' is not a name", what, w);
	return intern(w);
}

/* places */

static size_t
dtype_size(Dtype dt)
{
	return dt == DT_BF16 ? 2 : dt == DT_F64 ? 8 : 4;
}

static Dtype
dtype(Load *l)
{
	static const Dtype dt[] = {DT_F32, DT_BF16, DT_F64, DT_I32};

	return dt[CHOICE(l, "dtype", "f32", "bf16", "f64", "i32")];
}

static int
arena_of(const char *w)
{
	size_t len = strcspn(w, "+");
	int i;

	if (w[len] != '+')
		return -1;
	for (i = 0; i < NArena; i++)
		if (strlen(arena_names[i]) == len &&
		    strncmp(w, arena_names[i], len) == 0)
			return i;
	return -1;
}

/* nbytes at this place must exist */
static Place
to_place(Load *l, const char *w, long nbytes, size_t align)
{
	Place p = {arena_of(w), 0};
	long size;

	if (p.arena < 0)
		bad(l, "'%s' is not a place", w);
	size = (long)l->run->arena_size[p.arena];
	p.off = (size_t)to_long(l, strchr(w, '+') + 1, "offset", 0, MaxBytes);
	if (nbytes > size || (long)p.off > size - nbytes)
		bad(l, "%s: %ld bytes there end beyond the %ld of the arena", w,
		    nbytes, size);
	if (p.off % align != 0)
		bad(l, "%s is not a multiple of %zu", w, align);
	return p;
}

static Place
place(Load *l, long nbytes, size_t align)
{
	return to_place(l, word(l, "a place"), nbytes, align);
}

/* the fixed lines at the top */

static void
load_top(Load *l)
{
	Run *r = l->run;

	line_next(l);
	expect(l, "hcgen-manifest");
	if (integer(l, "version", 0, MaxCount) != 1)
		bad(l, "this is another version of the manifest: "
		    "run `hcgen emit` again");
	line_end(l);
	line_next(l);
	expect(l, "name");
	r->name = name(l, "name", "-.");
	line_end(l);
	line_next(l);
	expect(l, "spec");
	r->spec_hash = digest(l);
	line_end(l);
	line_next(l);
	expect(l, "target");
	if (CHOICE(l, "target", "cpu", "cuda") != 0)
		bad(l, "this directory was emitted for cuda: "
		    "this runtime executes target cpu");
	line_end(l);
}

static void
load_model(Load *l)
{
	Run *r = l->run;

	line_next(l);
	expect(l, "model");
	r->layers = (int)key_integer(l, "layers", 1, MaxLayers);
	r->lanes = (int)key_integer(l, "lanes", 1, MaxLayers);
	r->width = (int)key_integer(l, "width", 1, MaxWidth);
	r->vocab = (int)key_integer(l, "vocab", 1, MaxWidth);
	r->padded = (int)key_integer(l, "padded", r->vocab, MaxWidth);
	line_end(l);
	line_next(l);
	expect(l, "batch");
	r->tokens = key_integer(l, "tokens", 1, 1L << 30);
	r->seq = key_integer(l, "seq", 1, r->tokens);
	r->micro = key_integer(l, "micro", 1, 1L << 30);
	r->bos = (int)key_integer(l, "bos", 0, MaxWidth);
	r->document_mask = key_integer(l, "mask", 0, 1) != 0;
	if (r->tokens % r->seq != 0)
		bad(l, "tokens %ld is not a multiple of seq %ld", r->tokens,
		    r->seq);
	line_end(l);
	line_next(l);
	expect(l, "numerics");
	expect(l, "storage");
	r->storage_bf16 = CHOICE(l, "storage", "f32", "bf16");
	expect(l, "gemm");
	r->gemm_bf16 = CHOICE(l, "gemm dtype", "f32", "bf16");
	line_end(l);
}

static void
load_train(Load *l)
{
	Run *r = l->run;
	static const int kinds[] = {RUN_COOL_CONSTANT, RUN_COOL_LINEAR,
	                            RUN_COOL_COSINE};
	int kind;

	line_next(l);
	expect(l, "train");
	r->steps = key_integer(l, "steps", 0, 1L << 40);
	r->lr = key_real(l, "lr", 0, 1e30);
	r->warmup = key_integer(l, "warmup", 0, 1L << 40);
	r->cooldown = key_real(l, "cooldown", 0, 1);
	kind = kinds[CHOICE(l, "cooldown", "constant", "linear", "cosine")];
	r->cooldown_kind = kind == RUN_COOL_LINEAR ? RUN_COOL_LINEAR :
	                   kind == RUN_COOL_COSINE ? RUN_COOL_COSINE :
	                                             RUN_COOL_CONSTANT;
	r->floor = key_real(l, "floor", 0, 1e30);
	r->clip = key_real(l, "clip", 0, 1e30);
	r->val_every = key_integer(l, "val_every", 0, 1L << 40);
	r->val_tokens = key_integer(l, "val_tokens", 0, 1L << 40);
	r->log_every = key_integer(l, "log_every", 0, 1L << 40);
	expect(l, "seed");
	r->seed = to_long(l, word(l, "seed"), "seed", INT64_MIN, INT64_MAX);
	line_end(l);
}

static void
load_data(Load *l)
{
	Run *r = l->run;

	line_next(l);
	expect(l, "data");
	expect(l, "packing");
	r->packing_documents = CHOICE(l, "packing", "stream", "documents");
	r->shuffle = key_integer(l, "shuffle", 0, 1);
	r->max_doc = key_integer(l, "max_doc", 0, 1L << 40);
	line_end(l);
}

/* lines of any number */

static void
load_file(Load *l, const char ***v, int *n, int *cap)
{
	if (*n >= MaxParams)
		bad(l, "too many files");
	*PUSH(l->mem, *v, *n, *cap) = rest(l, "a path");
}

static void
load_arena(Load *l)
{
	int a = choice(l, "arena", NArena, arena_names);
	static const size_t least[NArena] = {
		[AR_SCHED] = SchedBytes, [AR_RESULT] = ResultBytes
	};

	if (l->run->nparam || l->run->ntable || l->run->ninput ||
	    l->run->nkernel)
		bad(l, "arenas come before all else");
	if (l->run->arena_size[a])
		bad(l, "a second arena %s", arena_names[a]);
	l->run->arena_size[a] = (size_t)integer(l, "size", 0, MaxBytes);
	if (l->run->arena_size[a] < least[a])
		bad(l, "arena %s needs %zu bytes", arena_names[a], least[a]);
	line_end(l);
}

static void
load_dims(Load *l, RunParam *p)
{
	char *w = word(l, "dimensions"), *comma;

	p->n = 1;
	for (; w; w = comma) {
		if (p->ndim == 3)
			bad(l, "%s: more than 3 dimensions", p->name);
		comma = strchr(w, ',');
		if (comma)
			*comma++ = 0;
		p->dim[p->ndim] = to_long(l, w, "dimension", 1, MaxCount);
		p->n = product(l, p->name, p->n, p->dim[p->ndim]);
		p->ndim++;
	}
}

static void
load_init(Load *l, RunParam *p)
{
	long i;

	switch (CHOICE(l, "init", "normal", "const", "values")) {
	case 0:
		p->init = PI_NORMAL;
		p->std = real(l, "std", 0, 1e30);
		break;
	case 1:
		p->init = PI_CONST;
		p->std = real(l, "value", -3e38, 3e38);
		break;
	default:
		p->init = PI_VALUES;
		/* at least two bytes of text each */
		if (p->n > (long)strlen(l->p ? l->p : "") / 2 + 1)
			bad(l, "%s: fewer than %ld values", p->name, p->n);
		p->values = NEWN(l->mem, double, p->n);
		for (i = 0; i < p->n; i++)
			p->values[i] = real(l, "value", -3e38, 3e38);
	}
}

/* the same offset must hold in grads and in both moments */
static void
check_param(Load *l, const RunParam *p, long nbytes)
{
	static const int also[] = {AR_GRADS, AR_MOMENT1, AR_MOMENT2};
	size_t i, need = p->off + (size_t)nbytes;

	for (i = 0; i < sizeof also / sizeof *also; i++)
		if (l->run->arena_size[also[i]] < need)
			bad(l, "%s: %zu bytes of params, %zu of %s", p->name,
			    need, l->run->arena_size[also[i]],
			    arena_names[also[i]]);
}

static void
load_param(Load *l)
{
	Run *r = l->run;
	RunParam p = {0};
	const char *w;
	Place at;
	long nbytes;

	if (r->nparam >= MaxParams)
		bad(l, "too many parameters");
	p.name = name(l, "parameter", ".");
	if (dtype(l) != DT_F32)
		bad(l, "%s: parameters are f32", p.name);
	load_dims(l, &p);
	nbytes = product(l, p.name, p.n, 4);
	at = place(l, nbytes, 4);
	if (at.arena != AR_PARAMS)
		bad(l, "%s lies in %s", p.name, arena_names[at.arena]);
	p.off = at.off;
	check_param(l, &p, nbytes);
	p.weights.arena = -1;
	w = word(l, "a place or -");
	if (strcmp(w, "-") != 0) {
		p.weights = to_place(l, w, nbytes / 2, 2);
		if (p.weights.arena != AR_WEIGHTS)
			bad(l, "%s: its copy lies in %s", p.name,
			    arena_names[p.weights.arena]);
	}
	load_init(l, &p);
	line_end(l);
	*PUSH(l->mem, r->param, r->nparam, l->capparam) = p;
}

static void
load_table(Load *l)
{
	RunTable t = {0};
	char *at = word(l, "a place");

	t.sine = CHOICE(l, "table", "rope_cos", "rope_sin");
	t.positions = (int)integer(l, "positions", 1, 1L << 30);
	t.columns = (int)integer(l, "columns", 1, MaxWidth);
	t.base = real(l, "base", 1e-30, 1e30);
	t.at = to_place(l, at,
	                product(l, "table", (long)t.positions * t.columns, 4),
	                4);
	if (t.at.arena != AR_TABLES)
		bad(l, "a table in %s", arena_names[t.at.arena]);
	line_end(l);
	*PUSH(l->mem, l->run->table, l->run->ntable, l->captable) = t;
}

static void
load_order(Load *l, RunInput *in)
{
	bool hash = CHOICE(l, "order", "tokens", "hash");
	char *at = word(l, "a place");

	in->kind = hash ? IN_ORDER_HASH : IN_ORDER_TOKENS;
	in->rows = (int)integer(l, "rows", 1, 1L << 30);
	in->at = to_place(l, at, 4 * (l->run->tokens + in->rows + 1), 4);
	if (!hash && in->rows < l->run->vocab)
		bad(l, "%d rows for %d tokens", in->rows, l->run->vocab);
}

static void
load_input(Load *l)
{
	RunInput in = {0};
	int kind = CHOICE(l, "input", "tokens", "targets", "docstart", "hash",
	                  "order");

	if (kind == 4) {
		load_order(l, &in);
	} else {
		in.kind = kind == 0 ? IN_TOKENS : kind == 1 ? IN_TARGETS :
		          kind == 2 ? IN_DOCSTART : IN_HASH;
		in.at = place(l, 4 * l->run->tokens, 4);
		if (kind == 3)
			in.rows = (int)integer(l, "rows", 2, 1L << 30);
	}
	if (in.at.arena != AR_INPUTS)
		bad(l, "an input in %s", arena_names[in.at.arena]);
	line_end(l);
	*PUSH(l->mem, l->run->input, l->run->ninput, l->capinput) = in;
}

static void
load_output(Load *l)
{
	Run *r = l->run;
	char *at;

	if (l->have_logits)
		bad(l, "a second output");
	expect(l, "logits");
	at = word(l, "a place");
	r->logits_ld = integer(l, "leading dimension", r->padded, MaxWidth);
	r->logits = to_place(l, at, 4 * product(l, "logits", r->seq,
	                                        r->logits_ld), 4);
	l->have_logits = true;
	line_end(l);
}

static int
kernel_find(const Run *r, const char *s)
{
	int i;

	for (i = r->nkernel - 1; i >= 0; i--)
		if (r->kernel[i].name == s)
			return i;
	return -1;
}

/* kernels/FILE.c with FILE of letters, digits, '_', '-' and '.' */
static bool
is_kernel_file(const char *s)
{
	size_t len = strlen(s);

	return strncmp(s, "kernels/", 8) == 0 && len > 10 &&
	       strcmp(s + len - 2, ".c") == 0 && is_name(s + 8, "-.");
}

static void
load_kernel(Load *l)
{
	RunKernel k = {0};

	k.name = name(l, "kernel", "");
	k.file = intern(word(l, "a file"));
	if (!is_kernel_file(k.file))
		bad(l, "'%s' is not a file kernels/NAME.c", k.file);
	if (l->p)
		k.hash = digest(l);
	if (kernel_find(l->run, k.name) >= 0)
		bad(l, "a second kernel %s", k.name);
	if (l->run->nkernel >= MaxKernels)
		bad(l, "too many kernels");
	line_end(l);
	*PUSH(l->mem, l->run->kernel, l->run->nkernel, l->capkernel) = k;
}

/* programs */

static void
load_program(Load *l)
{
	Run *r = l->run;
	int i = choice(l, "program", NProg, prog_names);
	long tokens = integer(l, "tokens", 0, r->tokens);
	long want = i == PROG_UPDATE ? 0 : i == PROG_LOGITS ? r->seq :
	                                                      r->tokens;

	l->prog = &r->prog[i];
	l->capstep = 0;
	if (l->prog->name)
		bad(l, "a second program %s", prog_names[i]);
	if (tokens != want)
		bad(l, "program %s runs on %ld tokens, not %ld", prog_names[i],
		    want, tokens);
	l->prog->name = prog_names[i];
	l->prog->tokens = tokens;
	line_end(l);
}

static void
step_end(Load *l, RunStep *s)
{
	expect(l, "@");
	s->site = rest(l, "a site");
	*PUSH(l->mem, l->prog->step, l->prog->nstep, l->capstep) = *s;
}

static void
step_cost(Load *l, RunStep *s)
{
	s->nbytes = key_real(l, "bytes", 0, 1e30);
	s->flops = key_real(l, "flops", 0, 1e30);
}

static void
load_arg(Load *l, RunStep *s, char *w)
{
	int i = s->narg++;

	if (arena_of(w) >= 0) {
		s->arg[i].kind = ARG_PLACE;
		s->arg[i].at = to_place(l, w, 1, 1);
	} else if (w[0] == 'i') {
		s->arg[i].kind = ARG_INT;
		s->arg[i].i = to_long(l, w + 1, "argument", -MaxBytes,
		                      MaxBytes);
	} else if (w[0] == 'f') {
		s->arg[i].kind = ARG_FLOAT;
		s->arg[i].f = to_real(l, w + 1, "argument");
	} else {
		bad(l, "'%s' is not an argument", w);
	}
}

static int
count_words(const char *s)
{
	int n = 1;

	for (; *s; s++)
		n += *s == ' ';
	return n;
}

static void
load_launch(Load *l)
{
	RunStep s = {.kind = ST_LAUNCH};
	const char *k = name(l, "kernel", "");
	int max;

	s.kernel = kernel_find(l->run, k);
	if (s.kernel < 0)
		bad(l, "there is no kernel %s", k);
	s.items = integer(l, "items", 1, MaxItems);
	step_cost(l, &s);
	expect(l, ":");
	max = l->p ? count_words(l->p) : 0;
	max = max < MaxArgs ? max : MaxArgs;
	s.arg = arena_alloc(l->mem, (size_t)max * sizeof *s.arg);
	while (l->p && strncmp(l->p, "@ ", 2) != 0) {
		if (s.narg == max)
			bad(l, "more than %d arguments", max);
		load_arg(l, &s, word(l, "an argument"));
	}
	step_end(l, &s);
}

static Mat
load_mat(Load *l, const char *which, long rows, long cols)
{
	Mat m;
	char *at;
	long n;

	expect(l, which);
	at = word(l, "a place");
	m.dt = dtype(l);
	m.ld = integer(l, "leading dimension", cols, MaxCount);
	n = product(l, which, rows - 1, m.ld) + cols;
	m.at = to_place(l, at, product(l, which, n, (long)dtype_size(m.dt)),
	                dtype_size(m.dt));
	return m;
}

static void
load_gemm(Load *l)
{
	RunStep s = {.kind = ST_GEMM};
	int xy = CHOICE(l, "gemm", "nn", "nt", "tn", "tt");

	s.ta = xy >= 2;
	s.tb = xy & 1;
	s.m = integer(l, "m", 1, 1L << 30);
	s.n = integer(l, "n", 1, 1L << 30);
	s.k = integer(l, "k", 1, 1L << 30);
	s.acc = key_integer(l, "acc", 0, 1);
	s.a = load_mat(l, "a", s.ta ? s.k : s.m, s.ta ? s.m : s.k);
	s.b = load_mat(l, "b", s.tb ? s.n : s.k, s.tb ? s.k : s.n);
	s.c = load_mat(l, "c", s.m, s.n);
	if (s.a.dt != s.b.dt || (s.a.dt != DT_F32 && s.a.dt != DT_BF16))
		bad(l, "a and b are both f32 or both bf16");
	if ((s.c.dt != DT_F32 && s.c.dt != DT_BF16) ||
	    (s.acc && s.c.dt != DT_F32))
		bad(l, "c is f32, or bf16 when acc is 0");
	step_cost(l, &s);
	step_end(l, &s);
}

static void
load_copy(Load *l)
{
	RunStep s = {.kind = ST_COPY};
	char *dst = word(l, "a place"), *src = word(l, "a place");

	s.m = integer(l, "bytes", 1, MaxBytes);
	s.c.at = to_place(l, dst, s.m, 1);
	s.a.at = to_place(l, src, s.m, 1);
	s.nbytes = 2 * (double)s.m;
	if (s.c.at.arena == s.a.at.arena &&
	    s.c.at.off < s.a.at.off + (size_t)s.m &&
	    s.a.at.off < s.c.at.off + (size_t)s.m)
		bad(l, "source and destination overlap");
	step_end(l, &s);
}

static void
load_step(Load *l, void (*step)(Load *))
{
	if (!l->prog)
		bad(l, "a step before the first program");
	if (l->prog->nstep >= MaxSteps)
		bad(l, "too many steps");
	step(l);
}

static void
load_line(Load *l)
{
	Run *r = l->run;

	switch (CHOICE(l, "line", "trainfile", "valfile", "arena", "param",
	               "table", "input", "output", "kernel", "program",
	               "launch", "gemm", "copy")) {
	case 0:
		load_file(l, &r->trainfile, &r->ntrainfile, &l->captrain);
		break;
	case 1:
		load_file(l, &r->valfile, &r->nvalfile, &l->capval);
		break;
	case 2:
		load_arena(l);
		break;
	case 3:
		load_param(l);
		break;
	case 4:
		load_table(l);
		break;
	case 5:
		load_input(l);
		break;
	case 6:
		load_output(l);
		break;
	case 7:
		load_kernel(l);
		break;
	case 8:
		load_program(l);
		break;
	case 9:
		load_step(l, load_launch);
		break;
	case 10:
		load_step(l, load_gemm);
		break;
	case 11:
		load_step(l, load_copy);
		break;
	}
}

/* checks of the whole */

static int
by_offset(const void *a, const void *b)
{
	const RunParam *p = *(const RunParam *const *)a;
	const RunParam *q = *(const RunParam *const *)b;

	return (p->off > q->off) - (p->off < q->off);
}

static int
by_name(const void *a, const void *b)
{
	const RunParam *p = *(const RunParam *const *)a;
	const RunParam *q = *(const RunParam *const *)b;

	return strcmp(p->name, q->name);
}

static void
check_params(Load *l)
{
	const RunParam **v = arena_alloc(l->mem, (size_t)l->run->nparam *
	                                         sizeof *v);
	int i, n = l->run->nparam;

	for (i = 0; i < n; i++)
		v[i] = &l->run->param[i];
	qsort(v, (size_t)n, sizeof *v, by_offset);
	for (i = 1; i < n; i++)
		if (v[i - 1]->off + 4 * (size_t)v[i - 1]->n > v[i]->off)
			bad(l, "parameters %s and %s overlap", v[i - 1]->name,
			    v[i]->name);
	qsort(v, (size_t)n, sizeof *v, by_name);
	for (i = 1; i < n; i++)
		if (strcmp(v[i - 1]->name, v[i]->name) == 0)
			bad(l, "two parameters %s", v[i]->name);
}

static int
count_inputs(const Run *r, int kind)
{
	int i, n = 0;

	for (i = 0; i < r->ninput; i++)
		n += (int)r->input[i].kind == kind;
	return n;
}

static void
check_whole(Load *l)
{
	Run *r = l->run;
	int i;

	for (i = 0; i < NProg; i++)
		if (!r->prog[i].name)
			bad(l, "no program %s: the manifest is cut off",
			    prog_names[i]);
	if (!l->have_logits)
		bad(l, "no output logits");
	if (count_inputs(r, IN_TOKENS) != 1 || count_inputs(r, IN_TARGETS) != 1)
		bad(l, "input tokens and input targets stand once each");
	if (r->arena_size[AR_SCHED] == 0 || r->arena_size[AR_RESULT] == 0)
		bad(l, "no arena sched or result");
	if (r->nparam == 0)
		bad(l, "no parameters");
	check_params(l);
}

/* Control characters would reach a terminal through our messages. */
static void
check_bytes(Load *l, const char *s, size_t n)
{
	size_t i;

	l->line = 1;
	for (i = 0; i < n; i++) {
		if (((unsigned char)s[i] < ' ' && s[i] != '\n') || s[i] == 127)
			bad(l, "a byte %d: this is no manifest",
			    (unsigned char)s[i]);
		l->line += s[i] == '\n';
	}
	l->line = 0;
}

static char *
read_manifest(Load *l)
{
	size_t n = 0;
	char *s = file_read(l->mem, l->path, &n);

	if (!s)
		die("cannot read %s: %s", l->path, strerror(errno));
	if (n == 0)
		die("%s is empty", l->path);
	check_bytes(l, s, n);
	return s;
}

/* requires: nothing of DIR.  provides: a Run whose every place holds. */
Run *
run_load(const char *dir)
{
	Arena *mem = arena_new("run");
	Load l = {.mem = mem, .run = NEW(mem, Run)};

	l.c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
	if (l.c == (locale_t)0)
		die("the C locale is missing: %s", strerror(errno));
	l.run->mem = mem;
	l.run->dir = arena_strdup(mem, dir);
	l.run->logits.arena = -1;
	l.path = arena_printf(mem, "%s/manifest", dir);
	l.next = read_manifest(&l);
	load_top(&l);
	load_model(&l);
	load_train(&l);
	load_data(&l);
	while (line_next(&l))
		load_line(&l);
	check_whole(&l);
	freelocale(l.c);
	return l.run;
}
