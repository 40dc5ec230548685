/* Manifest -> Run: docs/emitted.md is the grammar.
 *
 * The directory may come from anywhere, so nothing in it is believed: each
 * number has a range, each product is checked for overflow, each place holds
 * its full extent inside its arena.  What run_load returns can be executed
 * without reading or writing outside of the arenas, as far as the runtime's
 * own accesses go; kernels are code and are trusted like any program. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *const arena_names[NArena] = {
	"params", "weights", "grads", "moment1", "moment2", "acts",
	"tables", "inputs", "sched", "result"
};

/* Least sizes: docs/emitted.md names what stands there. */
enum { SchedBytes = (8 + MaxTargets) * 4, ResultBytes = 8 };

/* What a CUDA launch can ask for: threads of a block; dynamic shared memory of
 * a block on sm_90 and sm_100, the most that any GPU has. */
enum { MaxThreads = 1024, MaxShared = 227 << 10 };

/* the fixed lines at the top */

static void
load_top(Load *l)
{
	Run *r = l->run;

	line_next(l);
	line_expect(l, "hcgen-manifest");
	if (line_integer(l, "version", 0, MaxCount) != 2)
		line_bad(l, "this is another version of the manifest: "
			 "run `hcgen emit` again");
	line_end(l);
	line_next(l);
	line_expect(l, "name");
	r->name = line_name(l, "name", "-.");
	line_end(l);
	line_next(l);
	line_expect(l, "spec");
	r->spec_hash = line_digest(l);
	line_end(l);
	line_next(l);
	line_expect(l, "target");
	r->target = CHOICE(l, "target", "cpu", "cuda") ? TARGET_CUDA : TARGET_CPU;
	line_end(l);
}

static void
load_model(Load *l)
{
	Run *r = l->run;

	line_next(l);
	line_expect(l, "model");
	r->layers = (int)line_key_integer(l, "layers", 1, MaxLayers);
	r->lanes = (int)line_key_integer(l, "lanes", 1, MaxLayers);
	r->width = (int)line_key_integer(l, "width", 1, MaxWidth);
	r->vocab = (int)line_key_integer(l, "vocab", 1, MaxWidth);
	r->padded = (int)line_key_integer(l, "padded", r->vocab, MaxWidth);
	line_end(l);
	line_next(l);
	line_expect(l, "batch");
	r->most_tokens = line_key_integer(l, "most", 1, 1L << 30);
	r->bos = (int)line_key_integer(l, "bos", 0, MaxWidth);
	r->document_mask = line_key_integer(l, "mask", 0, 1) != 0;
	line_end(l);
	line_next(l);
	line_expect(l, "numerics");
	line_expect(l, "storage");
	r->storage_bf16 = CHOICE(l, "storage", "f32", "bf16");
	line_expect(l, "gemm");
	r->gemm_bf16 = CHOICE(l, "gemm dtype", "f32", "bf16");
	line_end(l);
}

static void
load_train(Load *l)
{
	Run *r = l->run;
	static const int kinds[] = {RUN_COOL_CONSTANT, RUN_COOL_LINEAR,
	                            RUN_COOL_COSINE};
	char *w;
	int kind;

	line_next(l);
	line_expect(l, "train");
	r->steps = line_key_integer(l, "steps", 0, 1L << 40);
	r->scheduled = line_key_integer(l, "scheduled", 0, r->steps);
	r->lr = line_key_real(l, "lr", 0, 1e30);
	line_expect(l, "scale");
	w = line_word(l, "scale");
	r->loss_scale = strcmp(w, "mean") == 0 ? 0 : line_to_real(l, w, "scale");
	if (r->loss_scale < 0)
		line_bad(l, "scale %g is below 0", r->loss_scale);
	r->warmup = line_key_integer(l, "warmup", 0, 1L << 40);
	r->cooldown = line_key_real(l, "cooldown", 0, 1);
	kind = kinds[CHOICE(l, "cooldown", "constant", "linear", "cosine")];
	r->cooldown_kind = kind == RUN_COOL_LINEAR ? RUN_COOL_LINEAR :
	                   kind == RUN_COOL_COSINE ? RUN_COOL_COSINE :
	                                             RUN_COOL_CONSTANT;
	r->floor = line_key_real(l, "floor", 0, 1e30);
	r->clip = line_key_real(l, "clip", 0, 1e30);
	r->val_every = line_key_integer(l, "val_every", 0, 1L << 40);
	r->val_tokens = line_key_integer(l, "val_tokens", 0, 1L << 40);
	r->log_every = line_key_integer(l, "log_every", 0, 1L << 40);
	line_expect(l, "seed");
	r->seed = line_to_long(l, line_word(l, "seed"), "seed", INT64_MIN, INT64_MAX);
	line_end(l);
}

static void
load_data(Load *l)
{
	Run *r = l->run;

	line_next(l);
	line_expect(l, "data");
	line_expect(l, "packing");
	r->packing_documents = CHOICE(l, "packing", "stream", "documents");
	line_expect(l, "val_packing");
	r->val_documents = CHOICE(l, "packing", "stream", "documents");
	r->shuffle = line_key_integer(l, "shuffle", 0, 1);
	r->max_doc = line_key_integer(l, "max_doc", 0, 1L << 40);
	line_end(l);
}

/* what a program of a stage without lines of its own is: found in stages_close */
static void
load_stage(Load *l)
{
	Run *r = l->run;
	RunStage s = {.train = -1, .eval = -1};
	int i;

	if (l->run->nprog)
		line_bad(l, "stages come before programs");
	s.name = line_name(l, "name", "");
	s.first = line_key_integer(l, "steps", 0, r->steps);
	s.end = line_integer(l, "end", s.first, r->steps);
	s.tokens = line_key_integer(l, "tokens", 1, r->most_tokens);
	s.seq = line_key_integer(l, "seq", 1, s.tokens);
	s.micro = line_key_integer(l, "micro", 1, 1L << 30);
	s.max_doc = line_key_integer(l, "max_doc", 0, 1L << 40);
	s.lr_mul = line_key_real(l, "lr_mul", 0, 1e30);
	s.ntarget = (int)line_key_integer(l, "targets", 1, MaxTargets);
	for (i = 0; i < s.ntarget; i++) {
		s.target[i] = line_key_real(l, "from", 0, 1e30);
		s.target_end[i] = line_key_real(l, "to", 0, 1e30);
	}
	if (s.tokens % s.seq != 0)
		line_bad(l, "tokens %ld is not a multiple of seq %ld", s.tokens, s.seq);
	if (s.first != (r->nstage ? r->stage[r->nstage - 1].end : 0))
		line_bad(l, "stage %s begins at step %ld, not where the one before ends", s.name, s.first);
	line_end(l);
	*PUSH(l->mem, r->stage, r->nstage, l->capstage) = s;
}

/* lines of any number */

static void
load_file(Load *l, const char ***v, int *n, int *cap)
{
	if (*n >= MaxParams)
		line_bad(l, "too many files");
	*PUSH(l->mem, *v, *n, *cap) = line_rest(l, "a path");
}

static void
load_arena(Load *l)
{
	int a = line_choice(l, "arena", NArena, arena_names);
	static const size_t least[NArena] = {
		[AR_SCHED] = SchedBytes, [AR_RESULT] = ResultBytes
	};

	if (l->run->nparam || l->run->ntable || l->run->ninput ||
	    l->run->nkernel)
		line_bad(l, "arenas come before all else");
	if (l->run->arena_size[a])
		line_bad(l, "a second arena %s", arena_names[a]);
	l->run->arena_size[a] = (size_t)line_integer(l, "size", 0, MaxBytes);
	if (l->run->arena_size[a] < least[a])
		line_bad(l, "arena %s needs %zu bytes", arena_names[a], least[a]);
	line_end(l);
}

static void
load_dims(Load *l, RunParam *p)
{
	char *w = line_word(l, "dimensions"), *comma;

	p->n = 1;
	for (; w; w = comma) {
		if (p->ndim == 3)
			line_bad(l, "%s: more than 3 dimensions", p->name);
		comma = strchr(w, ',');
		if (comma)
			*comma++ = 0;
		p->dim[p->ndim] = line_to_long(l, w, "dimension", 1, MaxCount);
		p->n = line_product(l, p->name, p->n, p->dim[p->ndim]);
		p->ndim++;
	}
}

static void
load_init(Load *l, RunParam *p)
{
	long i;

	switch (CHOICE(l, "init", "normal", "const", "values", "uniform", "like")) {
	case 0:
		p->init = PI_NORMAL;
		p->std = line_real(l, "std", 0, 1e30);
		break;
	case 1:
		p->init = PI_CONST;
		p->std = line_real(l, "value", -3e38, 3e38);
		break;
	case 3:
		p->init = PI_UNIFORM;
		p->std = line_real(l, "std", 0, 1e30);
		break;
	case 4:
		p->init = PI_LIKE;
		p->like = line_name(l, "parameter", ".");
		break;
	default:
		p->init = PI_VALUES;
		/* at least two bytes of text each */
		if (p->n > (long)strlen(l->p ? l->p : "") / 2 + 1)
			line_bad(l, "%s: fewer than %ld values", p->name, p->n);
		p->values = NEWN(l->mem, double, p->n);
		for (i = 0; i < p->n; i++)
			p->values[i] = line_real(l, "value", -3e38, 3e38);
	}
}

/* the same offset must hold in grads */
static void
check_param(Load *l, const RunParam *p, long nbytes)
{
	size_t need = p->off + (size_t)nbytes;

	if (l->run->arena_size[AR_GRADS] < need)
		line_bad(l, "%s: %zu bytes of params, %zu of grads", p->name, need,
			 l->run->arena_size[AR_GRADS]);
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
		line_bad(l, "too many parameters");
	p.name = line_name(l, "parameter", ".");
	if (line_dtype(l) != DT_F32)
		line_bad(l, "%s: parameters are f32", p.name);
	load_dims(l, &p);
	nbytes = line_product(l, p.name, p.n, 4);
	at = line_place(l, nbytes, 4);
	if (at.arena != AR_PARAMS)
		line_bad(l, "%s lies in %s", p.name, arena_names[at.arena]);
	p.off = at.off;
	check_param(l, &p, nbytes);
	p.weights.arena = -1;
	w = line_word(l, "a place or -");
	if (strcmp(w, "-") != 0) {
		p.weights = line_to_place(l, w, r->gemm_bf16 ? nbytes / 2 : nbytes, r->gemm_bf16 ? 2 : 4);
		if (p.weights.arena != AR_WEIGHTS)
			line_bad(l, "%s: its copy lies in %s", p.name,
				 arena_names[p.weights.arena]);
	}
	load_init(l, &p);
	if (l->p)
		p.holds = CHOICE(l, "mark", "bf16", "upper") ? HOLDS_UPPER : HOLDS_BF16;
	line_end(l);
	*PUSH(l->mem, r->param, r->nparam, l->capparam) = p;
}

static void
load_table(Load *l)
{
	RunTable t = {0};
	char *at;
	int i;

	t.stage = (int)line_integer(l, "stage", 0, l->run->nstage - 1);
	at = line_word(l, "a place");

	t.sine = CHOICE(l, "table", "rope_cos", "rope_sin");
	t.positions = (int)line_integer(l, "positions", 1, 1L << 30);
	t.columns = (int)line_integer(l, "columns", 1, MaxWidth);
	t.bf16 = CHOICE(l, "precision", "f32", "bf16");
	t.at = line_to_place(l, at,
			     line_product(l, "table", (long)t.positions * t.columns, 4),
			     4);
	if (t.at.arena != AR_TABLES)
		line_bad(l, "a table in %s", arena_names[t.at.arena]);
	t.frequency = NEWN(l->mem, float, t.columns);
	for (i = 0; i < t.columns; i++)
		t.frequency[i] = (float)line_real(l, "frequency", 0, 1e30);
	line_end(l);
	*PUSH(l->mem, l->run->table, l->run->ntable, l->captable) = t;
}

static void
load_momentum(Load *l)
{
	Run *r = l->run;

	r->momentum = line_real(l, "momentum", 0, 1);
	r->momentum_start = line_key_real(l, "start", 0, 1);
	r->momentum_warmup = line_key_integer(l, "warmup", 0, 1L << 40);
	r->momentum_cooldown = line_key_integer(l, "cooldown", 0, 1L << 40);
	r->momentum_steps = line_key_integer(l, "steps", 0, 1L << 40);
	line_end(l);
}

static void
load_order(Load *l, RunInput *in)
{
	bool hash = CHOICE(l, "order", "tokens", "hash");
	char *at = line_word(l, "a place");

	in->kind = hash ? IN_ORDER_HASH : IN_ORDER_TOKENS;
	in->rows = (int)line_integer(l, "rows", 1, 1L << 30);
	in->at = line_to_place(l, at, 4 * (l->run->most_tokens + in->rows + 1), 4);
	if (hash)
		in->quirk = CHOICE(l, "hash", "clean", "quirk");
	if (!hash && in->rows < l->run->vocab)
		line_bad(l, "%d rows for %d tokens", in->rows, l->run->vocab);
}

static void
load_input(Load *l)
{
	RunInput in = {0};
	int kind = CHOICE(l, "input", "tokens", "targets", "docstart", "hash",
	                  "order", "pair_docstart");

	if (kind == 4) {
		load_order(l, &in);
	} else {
		in.kind = kind == 0 ? IN_TOKENS : kind == 1 ? IN_TARGETS :
		          kind == 2 ? IN_DOCSTART : kind == 5 ? IN_PAIR_DOCSTART : IN_HASH;
		in.at = line_place(l, (kind == 5 ? 8 : 4) * l->run->most_tokens, 4);
		if (kind == 3) {
			in.rows = (int)line_integer(l, "rows", 2, 1L << 30);
			in.quirk = CHOICE(l, "hash", "clean", "quirk");
		}
	}
	if (in.at.arena != AR_INPUTS)
		line_bad(l, "an input in %s", arena_names[in.at.arena]);
	line_end(l);
	*PUSH(l->mem, l->run->input, l->run->ninput, l->capinput) = in;
}

static void
load_output(Load *l)
{
	Run *r = l->run;
	char *at;

	if (l->have_logits)
		line_bad(l, "a second output");
	if (r->nprog <= PROG_LOGITS)
		line_bad(l, "an output before program logits");
	line_expect(l, "logits");
	at = line_word(l, "a place");
	r->logits_ld = line_integer(l, "leading dimension", r->padded, MaxWidth);
	r->logits = line_to_place(l, at, 4 * line_product(l, "logits", r->prog[PROG_LOGITS].tokens,
							  r->logits_ld), 4);
	l->have_logits = true;
	line_end(l);
}

/* kernels/FILE.c or .cu, with FILE of letters, digits, '_', '-' and '.' */
static bool
is_kernel_file(const char *s, const char *suffix)
{
	size_t len = strlen(s), n = strlen(suffix);

	return strncmp(s, "kernels/", 8) == 0 && len > 8 + n &&
	       strcmp(s + len - n, suffix) == 0 && line_is_name(s + 8, "-.");
}

static void
load_kernel(Load *l)
{
	const char *suffix = l->run->target == TARGET_CUDA ? ".cu" : ".c";
	RunKernel k = {0};

	k.name = line_name(l, "kernel", "");
	k.file = intern(line_word(l, "a file"));
	if (!is_kernel_file(k.file, suffix))
		line_bad(l, "'%s' is not a file kernels/NAME%s", k.file, suffix);
	if (l->p || l->run->target == TARGET_CUDA)
		k.hash = line_digest(l);
	if (l->run->target == TARGET_CUDA) {
		k.threads = (int)line_key_integer(l, "threads", 1, MaxThreads);
		k.smem = line_key_integer(l, "smem", 0, MaxShared);
	}
	if (kernel_find(l->run, k.name) >= 0)
		line_bad(l, "a second kernel %s", k.name);
	if (l->run->nkernel >= MaxKernels)
		line_bad(l, "too many kernels");
	line_end(l);
	*PUSH(l->mem, l->run->kernel, l->run->nkernel, l->capkernel) = k;
}

static void
load_step(Load *l, void (*step)(Load *))
{
	if (!l->prog)
		line_bad(l, "a step before the first program");
	if (l->prog->nstep >= MaxSteps)
		line_bad(l, "too many steps");
	step(l);
}

static void
load_line(Load *l)
{
	Run *r = l->run;

	switch (CHOICE(l, "line", "trainfile", "valfile", "arena", "param",
	               "table", "input", "output", "kernel", "program",
	               "launch", "gemm", "copy", "stage", "zero", "when", "momentum")) {
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
	case 12:
		load_stage(l);
		break;
	case 13:
		load_step(l, load_zero);
		break;
	case 14:
		load_when(l);
		break;
	case 15:
		load_momentum(l);
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

/* what begins like another has as many numbers, and the other begins by itself */
static void
check_like(Load *l, const RunParam *p)
{
	const RunParam *q = p->init == PI_LIKE ? run_param(l->run, p->like) : NULL;

	if (p->init == PI_LIKE && (!q || q->init == PI_LIKE || q->n != p->n))
		line_bad(l, "parameter %s begins like %s, which is none of its size", p->name, p->like);
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
			line_bad(l, "parameters %s and %s overlap", v[i - 1]->name,
				 v[i]->name);
	qsort(v, (size_t)n, sizeof *v, by_name);
	for (i = 1; i < n; i++)
		if (strcmp(v[i - 1]->name, v[i]->name) == 0)
			line_bad(l, "two parameters %s", v[i]->name);
	for (i = 0; i < n; i++)
		check_like(l, v[i]);
}

static int
count_inputs(const Run *r, int kind)
{
	int i, n = 0;

	for (i = 0; i < r->ninput; i++)
		n += (int)r->input[i].kind == kind;
	return n;
}

/* Which programs each stage has: a train program of its own, and validation as in the stage
 * before where it has none. */
static void
stages_close(Load *l)
{
	Run *r = l->run;
	RunStage *s;
	int i;

	if (!r->nstage || r->stage[r->nstage - 1].end != r->steps)
		line_bad(l, "the stages are not %ld steps", r->steps);
	*PUSH(l->mem, r->stage, r->nstage, l->capstage) = (RunStage){.name = "end", .first = r->steps, .end = r->steps,
	                                                             .train = -1, .eval = -1};
	r->nstage--;
	for (i = 0; i < r->nprog; i++) {
		s = &r->stage[r->prog[i].stage];
		if (r->prog[i].kind == PROG_TRAIN)
			s->train = i;
		if (r->prog[i].kind == PROG_EVAL)
			s->eval = i;
	}
	for (i = 0; i <= r->nstage; i++) {
		s = &r->stage[i];
		if (i && s->eval < 0)
			s->eval = s[-1].eval;
		if (s->eval < 0 || (i < r->nstage && s->train < 0))
			line_bad(l, "stage %s has no program %s", s->name, prog_names[s->eval < 0 ? PROG_EVAL : PROG_TRAIN]);
		if (i < r->nstage && (r->prog[s->train].tokens != s->tokens || r->prog[s->train].seq != s->seq))
			line_bad(l, "stage %s: its program runs on %ld tokens in sequences of %ld", s->name,
				 r->prog[s->train].tokens, r->prog[s->train].seq);
	}
}

static void
check_whole(Load *l)
{
	Run *r = l->run;

	if (r->nprog < NProg)
		line_bad(l, "no program %s: the manifest is cut off", prog_names[r->nprog]);
	stages_close(l);
	if (!l->have_logits)
		line_bad(l, "no output logits");
	if (count_inputs(r, IN_TOKENS) != 1 || count_inputs(r, IN_TARGETS) != 1)
		line_bad(l, "input tokens and input targets stand once each");
	if (r->arena_size[AR_SCHED] == 0 || r->arena_size[AR_RESULT] == 0)
		line_bad(l, "no arena sched or result");
	if (r->nparam == 0)
		line_bad(l, "no parameters");
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
			line_bad(l, "a byte %d: this is no manifest",
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
	int i;

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
	for (i = 0; i < NProg; i++)
		l.run->at[i] = i;
	l.run->filled = -1;
	l.run->on = l.run->prog[PROG_TRAIN].stage;
	freelocale(l.c);
	return l.run;
}
