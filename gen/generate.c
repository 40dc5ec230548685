/* The pipeline: one call per stage, in order.  Each stage has its verifier,
 * which always runs, and its printer, behind a letter of --dump:
 *
 *   m model   g graph   b graph with gradients   s simplified
 *   t terms and slots   r rewritten   f plan   k kernels */
#define _POSIX_C_SOURCE 200809L
#include "search.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t
align256(size_t n)
{
	return (n + 255) & ~(size_t)255;
}

/* spec->plan.lock names a file: its text goes where the search looks for it */
static void
read_lock(Arena *a, const Spec *s)
{
	Knobs *k = (Knobs *)&s->plan;
	char *text;
	size_t n;

	if (!k->has_lock || k->locked)
		return;
	text = file_read(a, k->lock, &n);
	if (!text)
		die("plan.lock: cannot read %s: %s", k->lock, strerror(errno));
	k->locked = text;
}

static const char *const prog_name[] = { "train", "eval", "logits" };

static double
row_time(const Plan *p)
{
	double us = 0;
	int i;

	for (i = 0; i < p->nstep; i++)
		us += p->step[i].kind == STEP_ROW ? p->step[i].us : 0;
	return us;
}

static double
plan_time(const Plan *p)
{
	double us = 0;
	int i;

	for (i = 0; i < p->nstep; i++)
		us += p->step[i].us;
	return us;
}

/* The plan of g for as many rows as the spec has in a micro-batch.  What is fastest
 * there is chosen, so that what `verify` runs on few rows is what is trained on
 * many. */
static Plan *
at_size(Arena *a, const Graph *g, int target)
{
	Graph *h = NEW(a, Graph);

	*h = *g;
	if (g->mode != GRAPH_LOGITS)
		h->T = g->model->plan_T;
	return fuse(a, h, target);
}

static Plan *
one_plan(Arena *a, const Graph *g, const Knobs *knob, int target)
{
	Buf lock = {0};
	Graph *r;
	Plan *p;

	if (knob->recompute == RECOMPUTE_ACT && g->mode == GRAPH_TRAIN)
		g = recompute(a, g);
	if (g->model->spec->search == SEARCH_NAIVE)
		return fuse(a, g, target);
	r = plan_search(a, g, knob, &lock);
	graph_verify(r);
	p = fuse(a, r, target);
	p->lock = arena_strdup(a, lock.s ? lock.s : "");
	buf_free(&lock);
	return p;
}

/* what the search finds, unless it is slower than every lane stored and nothing
 * was asked of the search */
static Plan *
planned(Arena *a, const Graph *g, const Knobs *knob, int target)
{
	static const Knobs none;
	Plan *p = one_plan(a, g, knob, target);

	if (memcmp(knob, &none, sizeof none) != 0 || !p->lock)
		return p;
	return row_time(at_size(a, g, target)) < row_time(at_size(a, p->g, target)) ?
	       fuse(a, g, target) : p;
}

static size_t
fixed_nbytes(const Model *m)
{
	return 3 * m->params_nbytes + m->moment2_nbytes + m->weights_nbytes;
}

/* The fastest plan whose arenas keep to plan.memory, or NULL; least: gets what the
 * smallest takes, if that is less.  What is left to choose is
 * whether lane gradients wait for the end of the backward pass, and whether
 * activations are computed again. */
static Plan *
within_memory(Arena *a, const Graph *g, int target, size_t *least)
{
	const Model *m = g->model;
	Knobs k;
	Plan *best = NULL, *best_big = NULL, *p, *big;
	size_t most = (size_t)(m->spec->memory * 1e9), n;
	int i;

	for (i = 0; i < 4; i++) {
		k = m->spec->plan;
		if ((i & 1) && k.recompute == RECOMPUTE_AUTO)
			k.recompute = RECOMPUTE_ACT;
		if ((i & 2) && k.gradients == GRADIENTS_AUTO)
			k.gradients = GRADIENTS_NOW;
		p = planned(a, g, &k, target);
		big = at_size(a, p->g, target);
		plan_verify(big);
		mem_place(big);
		n = big->acts_nbytes + fixed_nbytes(m);
		*least = n < *least ? n : *least;
		if (n > most || (best && plan_time(big) >= plan_time(best_big)))
			continue;
		best = p;
		best_big = big;
	}
	return best;
}

/* A program as far as it is planned, with learned factors of products where they
 * stand in the spec, or in the matrices. */
typedef struct { Graph *built, *simple; Plan *plan; } Version;

static Version
version(Arena *a, Graph *g)
{
	Version v = { .built = g };

	if (g->mode == GRAPH_TRAIN)
		grad_append(g);
	graph_verify(g);
	v.simple = simplify(a, g);
	graph_verify(v.simple);
	return v;
}

/* The same with factors in the matrices; .built is NULL where there is no such
 * version, or the spec or a lock wants the other. */
static Version
scaled_version(Arena *a, Graph *g)
{
	const Spec *s = g->model->spec;
	const Knobs *k = &s->plan;

	if (g->mode != GRAPH_TRAIN || s->search == SEARCH_NAIVE || k->scales == SCALES_STREAM ||
	    (k->locked && !lock_scales(k->locked, prog_name[g->mode])))
		return (Version){0};
	g = scales_into_weights(a, simplify_uses(a, g));
	return g ? version(a, g) : (Version){0};
}

static bool
wants_scales(const Model *m, int mode)
{
	const Knobs *k = &m->spec->plan;

	return k->locked ? lock_scales(k->locked, prog_name[mode]) : k->scales == SCALES_WEIGHTS;
}

static void
plan_version(Arena *a, Version *v, int target, size_t *least)
{
	const Spec *s = v->simple->model->spec;

	v->plan = s->memory > 0 ? within_memory(a, v->simple, target, least) :
	          planned(a, v->simple, &s->plan, target);
}

_Noreturn static void
no_room(const Model *m, int mode, size_t least)
{
	die("plan.memory is %g GB; the program %s needs %.3f GB at least, with activations computed "
	    "again: fewer tokens per micro-batch or a smaller plan.head_chunk take less", m->spec->memory,
	    prog_name[mode], (double)least / 1e9);
}

/* the faster of the two versions of a program that fit, or the one that is asked for */
static Version
best_version(Arena *a, const Model *m, int mode, long T, int target)
{
	Graph *g = graph_build(a, m, mode, T);
	Version v, w = scaled_version(a, g);
	size_t least = SIZE_MAX;

	if (w.built)
		plan_version(a, &w, target, &least);
	if (w.built && wants_scales(m, mode)) {
		if (!w.plan)
			no_room(m, mode, least);
		return w;
	}
	v = version(a, g);
	plan_version(a, &v, target, &least);
	if (!v.plan && !w.plan)
		no_room(m, mode, least);
	if (!v.plan || !w.plan)
		return v.plan ? v : w;
	return plan_time(at_size(a, w.plan->g, target)) < plan_time(at_size(a, v.plan->g, target)) ? w : v;
}

static void
place(Plan *p)
{
	plan_verify(p);
	mem_place(p);
	mem_verify(p);
}

static Plan *
program(Arena *a, const Model *m, int mode, int target, const char *dump)
{
	Version v;
	Graph *g;

	if (strchr(dump, 'g')) {
		g = graph_build(a, m, mode, m->T);
		graph_verify(g);
		graph_print(g, stdout);
	}
	v = best_version(a, m, mode, m->T, target);
	if (strchr(dump, 'b'))
		graph_print(v.built, stdout);
	if (strchr(dump, 's'))
		graph_print(v.simple, stdout);
	if (strchr(dump, 't'))
		terms_print(terms_of(a, v.simple, &m->spec->plan, false), stdout);
	if (strchr(dump, 'r'))
		graph_print(v.plan->g, stdout);
	place(v.plan);
	if (strchr(dump, 'f'))
		plan_print(v.plan, stdout);
	return v.plan;
}

static void
add_plan(Bundle *b, Plan *p, int stage)
{
	if (p->g && p->T > b->most_T)
		b->most_T = p->T;
	if (p->g && p->model->seq > b->positions)
		b->positions = p->model->seq;
	p->stage = stage;
	b->plan[b->nplan++] = p;
}

/* the program of p for another stage: the same kernels on its rows and windows */
static Plan *
other_stage(Arena *a, const Plan *p, const Model *m, int target)
{
	Plan *r = fuse(a, graph_stage(a, p->g, m), target);

	place(r);
	return r;
}

static bool
same_windows(const Model *x, const Model *y)
{
	int i;

	for (i = 0; i < x->S; i++)
		if (x->sub[i].window != y->sub[i].window)
			return false;
	return x->attn_scale == y->attn_scale;
}

/* Programs of the planned stage, then of the others.  One search serves all: they differ in
 * rows, windows and scale.  A validation that is that of the stage before has none of its own. */
static void
programs(Bundle *b, const char *dump)
{
	const Model *m = b->model, *was, *now;
	Arena *a = b->mem;
	int i;

	was = model_eval(a, m, 0);
	add_plan(b, program(a, m, GRAPH_TRAIN, b->target, dump), m->planned);
	add_plan(b, program(a, was, GRAPH_EVAL, b->target, ""), 0);
	add_plan(b, program(a, model_logits(a, m), GRAPH_LOGITS, b->target, ""), m->nstage - 1);
	add_plan(b, plan_update(a, m, b->target), 0);
	place(b->plan[PLAN_UPDATE]);
	for (i = 0; i < m->nstage; i++)
		if (i != m->planned)
			add_plan(b, other_stage(a, b->plan[PLAN_TRAIN], model_stage(a, m, i), b->target), i);
	for (i = 1; i <= m->nstage; i++, was = now) {
		now = model_eval(a, m, i);
		if (!same_windows(was, now))
			add_plan(b, other_stage(a, b->plan[PLAN_EVAL], now, b->target), i);
	}
}

static size_t
region(size_t *total, size_t nbytes)
{
	size_t off = *total;

	*total += align256(nbytes);
	return off;
}

static void
place_inputs(Bundle *b)
{
	const Model *m = b->model;
	size_t n = (size_t)b->most_T * 4, *total = &b->nbytes[A_INPUTS];
	int i, j;

	for (i = INPUT_TOKENS; i <= INPUT_DOCSTART; i++)
		b->input[i] = region(total, n);
	b->has_input[INPUT_PAIR_DOCSTART] = m->paired;
	if (m->paired)
		b->input[INPUT_PAIR_DOCSTART] = region(total, 2 * n);
	b->input[INPUT_ORDER] = region(total, n + (size_t)(m->Vp + 1) * 4);
	for (j = 0; j < m->spec->nsource; j++) {
		if (m->spec->source[j].none || m->table[j] < 0)
			continue;
		b->has_input[INPUT_HASH + j] = true;
		b->input[INPUT_HASH + j] = region(total, n);
		b->input[INPUT_HASH_ORDER + j] =
		        region(total, n + (size_t)(m->spec->source[j].rows + 1) * 4);
	}
}

static void
size_arenas(Bundle *b)
{
	const Model *m = b->model;
	size_t tab = (size_t)b->positions * (m->paired ? 2 : 1) * (size_t)(m->rot / 2) * 4;
	int i;

	b->nbytes[A_PARAMS] = b->nbytes[A_GRADS] = b->nbytes[A_MOMENT1] = m->params_nbytes;
	b->nbytes[A_MOMENT2] = m->moment2_nbytes;
	b->nbytes[A_WEIGHTS] = m->weights_nbytes;
	for (i = 0; i < b->nplan; i++)
		if (b->plan[i]->acts_nbytes > b->nbytes[A_ACTS])
			b->nbytes[A_ACTS] = b->plan[i]->acts_nbytes;
	if (m->rot) {
		b->cos_off = region(&b->nbytes[A_TABLES], tab);
		b->sin_off = region(&b->nbytes[A_TABLES], tab);
	}
	place_inputs(b);
	b->nbytes[A_SCHED] = b->nbytes[A_RESULT] = 256;
}

/* the text of plan.lock, for all programs that were searched */
void
bundle_lock(const Bundle *b, Buf *o)
{
	const char *text;
	int i;

	for (i = 0; i < PLAN_UPDATE; i++) {
		text = b->plan[i]->lock;
		if (!text)
			continue;
		/* the first line is the file's */
		buf_puts(o, o->len ? strchr(text, '\n') + 1 : text);
	}
}

Graph *
spec_graph(Arena *a, const Model *m, long T)
{
	Graph *g = graph_build(a, m, GRAPH_TRAIN, T);

	grad_append(g);
	graph_verify(g);
	return g;
}

void
explain_plan(Arena *a, const Model *m, Buf *o)
{
	Version v = best_version(a, m, GRAPH_TRAIN, m->T, TO_CUDA), w;
	Graph *g = graph_build(a, m, GRAPH_TRAIN, m->T);

	w = v.simple->scaled ? version(a, g) : scaled_version(a, g);
	plan_why(a, v.simple, w.simple, &m->spec->plan, o);
}

Bundle *
generate(Arena *a, const Model *m, int target, const char *dump)
{
	Bundle *b = NEW(a, Bundle);

	b->mem = a;
	b->model = m;
	b->target = target;
	model_verify(m);
	read_lock(a, m->spec);
	if (strchr(dump, 'm'))
		model_print(m, stdout);
	programs(b, dump);
	size_arenas(b);
	b->dump_kern = strchr(dump, 'k') != NULL;
	emit_texts(b);
	return b;
}

static void
write_file(const char *dir, const char *name, const Buf *text)
{
	Buf path = {0};

	buf_printf(&path, "%s/%s", dir, name);
	if (file_emit(path.s, text->s ? text->s : "", text->len) != 0)
		die("cannot write %s: %s", path.s, strerror(errno));
	buf_free(&path);
}

/* of the file names of texts */
const char *
text_suffix(const Bundle *b)
{
	return b->target == TO_CUDA ? ".cu" : ".c";
}

static bool
is_ours(const Bundle *b, const char *file)
{
	int i;
	size_t n;

	for (i = 0; i < b->ntext; i++) {
		n = strlen(b->text[i].name);
		if (strncmp(file, b->text[i].name, n) == 0 && strcmp(file + n, text_suffix(b)) == 0)
			return true;
	}
	return false;
}

static bool
has_manifest(const char *dir)
{
	static const char first[] = "hcgen-manifest ";
	char line[sizeof first] = "";
	Buf path = {0};
	FILE *f;

	buf_printf(&path, "%s/manifest", dir);
	f = fopen(path.s, "r");
	buf_free(&path);
	if (!f)
		return false;
	if (!fgets(line, sizeof line, f))
		line[0] = 0;
	fclose(f);
	return strcmp(line, first) == 0;
}

/* The hash that the manifest in dir gives for a kernel, or "". */
static void
old_hash(Arena *a, const char *dir, const char *name, char hash[65])
{
	const char *line = arena_printf(a, "\nkernel %s ", name), *p;
	size_t n;
	char *m = file_read(a, arena_printf(a, "%s/manifest", dir), &n);

	hash[0] = 0;
	p = m ? strstr(m, line) : NULL;
	p = p ? strchr(p + strlen(line), ' ') : NULL;
	if (p && strspn(p + 1, "0123456789abcdef") == 64)
		snprintf(hash, 65, "%.64s", p + 1);
}

/* False where there is no such file; what is no plain file is nobody's kernel. */
static bool
file_hash(Arena *a, const char *path, char hash[65])
{
	struct stat st;
	char *text;
	size_t n;

	if (lstat(path, &st) != 0)
		return false;
	if (!S_ISREG(st.st_mode))
		die("%s is no plain file: move it away", path);
	text = file_read(a, path, &n);
	if (!text)
		die("cannot read %s: %s", path, strerror(errno));
	sha256_hex(text, n, hash);
	return true;
}

/* Kernels of an earlier emission that this one does not have are removed, as
 * they were emitted: what a person edited under --keep stays, and so does what
 * no emission made. */
static void
remove_stale(const Bundle *b, const char *dir, const char *kernels)
{
	DIR *d = has_manifest(dir) ? opendir(kernels) : NULL;
	char was[65], is[65];
	struct dirent *e;
	Arena *a;
	const char *path;
	size_t n;

	while (d && (e = readdir(d))) {
		n = strcspn(e->d_name, ".");
		if ((strcmp(e->d_name + n, ".c") != 0 && strcmp(e->d_name + n, ".cu") != 0) ||
		    is_ours(b, e->d_name))
			continue;
		a = arena_new("stale kernel");
		path = arena_printf(a, "%s/%s", kernels, e->d_name);
		old_hash(a, dir, arena_strndup(a, e->d_name, n), was);
		if (was[0] && (!b->keep || (file_hash(a, path, is) && strcmp(is, was) == 0)))
			unlink(path);
		else if (was[0])
			fprintf(stderr, "%s was edited and is no part of this emission: it is left "
			        "and not used\n", path);
		arena_free(a);
	}
	if (d)
		closedir(d);
}

/* Was the kernel in dir edited by a person since it was emitted, from the same
 * text as now?  Where that cannot be told the process ends: no edit may be
 * lost silently. */
static bool
is_edited(const Bundle *b, const Text *t, const char *dir)
{
	Arena *a = arena_new("edited");
	char was[65], is[65], now[65];
	const char *path = arena_printf(a, "%s/kernels/%s%s", dir, t->name, text_suffix(b));
	bool edited = false;

	sha256_hex(t->file, strlen(t->file), now);
	if (file_hash(a, path, is) && strcmp(is, now) != 0) {
		old_hash(a, dir, t->name, was);
		edited = strcmp(is, was) != 0;
		if (edited && strcmp(now, was) != 0)
			die("%s is not what was emitted before nor what is emitted now: move it "
			    "away, or emit without --keep", path);
	}
	arena_free(a);
	return edited;
}

int
bundle_edited(Bundle *b, const char *dir)
{
	int i, n = 0;

	b->keep = true;
	for (i = 0; i < b->ntext; i++)
		if (is_edited(b, &b->text[i], dir)) {
			b->text[i].keep = true;
			n++;
		}
	return n;
}

void
bundle_write(const Bundle *b, const char *dir)
{
	Buf out = {0}, path = {0};
	int i;

	buf_printf(&path, "%s/kernels", dir);
	if (dir_make(path.s) != 0)
		die("cannot make directory %s: %s", path.s, strerror(errno));
	remove_stale(b, dir, path.s);
	spec_print(b->model->spec, &out);
	write_file(dir, "spec.yaml", &out);
	out.len = 0;
	report(b, &out);
	write_file(dir, "plan.txt", &out);
	for (i = 0; i < b->ntext; i++) {
		if (b->text[i].keep)
			continue;
		out.len = path.len = 0;
		buf_puts(&out, b->text[i].file);
		buf_printf(&path, "kernels/%s%s", b->text[i].name, text_suffix(b));
		write_file(dir, path.s, &out);
	}
	/* the manifest last: a directory with one is whole */
	out.len = 0;
	manifest(b, &out);
	write_file(dir, "manifest", &out);
	buf_free(&out);
	buf_free(&path);
}
