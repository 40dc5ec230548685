/* The pipeline: one call per stage, in order.  Each stage has its verifier,
 * which always runs, and its printer, behind a letter of --dump:
 *
 *   m model   g graph   b graph with gradients   s simplified   f plan   k kernels */
#include "hcgen.h"

#include <errno.h>
#include <string.h>

static size_t
align256(size_t n)
{
	return (n + 255) & ~(size_t)255;
}

static Plan *
program(Arena *a, const Model *m, int mode, long T, const char *dump)
{
	Graph *g = graph_build(a, m, mode, T);
	Plan *p;

	graph_verify(g);
	if (strchr(dump, 'g'))
		graph_print(g, stdout);
	if (mode == GRAPH_TRAIN)
		grad_append(g);
	graph_verify(g);
	if (strchr(dump, 'b'))
		graph_print(g, stdout);
	g = simplify(a, g);
	graph_verify(g);
	if (strchr(dump, 's'))
		graph_print(g, stdout);
	p = fuse(a, g);
	plan_verify(p);
	mem_place(p);
	mem_verify(p);
	if (strchr(dump, 'f'))
		plan_print(p, stdout);
	return p;
}

static size_t
region(size_t *total, size_t nbytes)
{
	size_t off = *total;

	*total += align256(nbytes);
	return off;
}

static void
place_inputs(Bundle *b, long T)
{
	const Model *m = b->model;
	size_t n = (size_t)(T > m->seq ? T : m->seq) * 4, *total = &b->nbytes[A_INPUTS];
	int i, j;

	for (i = INPUT_TOKENS; i <= INPUT_DOCSTART; i++)
		b->input[i] = region(total, n);
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
size_arenas(Bundle *b, long T)
{
	const Model *m = b->model;
	size_t tab = (size_t)m->seq * (size_t)(m->rot / 2) * 4;
	int i;

	b->nbytes[A_PARAMS] = b->nbytes[A_GRADS] = m->params_nbytes;
	b->nbytes[A_MOMENT1] = b->nbytes[A_MOMENT2] = m->params_nbytes;
	b->nbytes[A_WEIGHTS] = m->weights_nbytes;
	for (i = 0; i < NPlans; i++)
		if (b->plan[i]->acts_nbytes > b->nbytes[A_ACTS])
			b->nbytes[A_ACTS] = b->plan[i]->acts_nbytes;
	if (m->rot) {
		b->cos_off = region(&b->nbytes[A_TABLES], tab);
		b->sin_off = region(&b->nbytes[A_TABLES], tab);
	}
	place_inputs(b, T);
	b->nbytes[A_SCHED] = b->nbytes[A_RESULT] = 256;
}

Bundle *
generate(Arena *a, const Model *m, long T, const char *dump)
{
	Bundle *b = NEW(a, Bundle);

	if (T <= 0)
		T = m->T;
	b->mem = a;
	b->model = m;
	model_verify(m);
	if (strchr(dump, 'm'))
		model_print(m, stdout);
	b->plan[PLAN_TRAIN] = program(a, m, GRAPH_TRAIN, T, dump);
	b->plan[PLAN_EVAL] = program(a, m, GRAPH_EVAL, T, "");
	b->plan[PLAN_LOGITS] = program(a, m, GRAPH_LOGITS, m->seq, "");
	b->plan[PLAN_UPDATE] = plan_update(a, m);
	mem_place(b->plan[PLAN_UPDATE]);
	mem_verify(b->plan[PLAN_UPDATE]);
	size_arenas(b, T);
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

void
bundle_write(const Bundle *b, const char *dir)
{
	Buf out = {0}, path = {0};
	int i;

	buf_printf(&path, "%s/kernels", dir);
	if (dir_make(path.s) != 0)
		die("cannot make directory %s: %s", path.s, strerror(errno));
	spec_print(b->model->spec, &out);
	write_file(dir, "spec.yaml", &out);
	out.len = 0;
	report(b, &out);
	write_file(dir, "plan.txt", &out);
	for (i = 0; i < b->ntext; i++) {
		out.len = path.len = 0;
		buf_puts(&out, b->text[i].file);
		buf_printf(&path, "kernels/%s.c", b->text[i].name);
		write_file(dir, path.s, &out);
	}
	/* the manifest last: a directory with one is whole */
	out.len = 0;
	manifest(b, &out);
	write_file(dir, "manifest", &out);
	buf_free(&out);
	buf_free(&path);
}
