/* Two specs -> what differs: keys of the model, plan, kernels.
 *
 * The verdict is one of three.  Other keys than those of `plan`, `name`, `target`
 * and `log`: other model.  Only those, and other kernels: the same model, other
 * rounding, since a plan decides where sums are rounded.  Else the same. */
#define _POSIX_C_SOURCE 200809L
#include "hcgen.h"

#include <string.h>

typedef struct { const char *path, *value; } Row;
typedef struct { int n, cap; Row *row; } Rows;

/* canonical YAML as rows: path of a key, value */
static Rows
rows_of(Arena *a, const Spec *s)
{
	const char *key[16] = {0};
	Rows r = {0};
	Buf b = {0};
	char *p, *line, *colon;
	int depth, i;
	Row *row;

	spec_print(s, &b);
	for (line = strtok_r(arena_strdup(a, b.s), "\n", &p); line; line = strtok_r(NULL, "\n", &p)) {
		depth = (int)strspn(line, " ") / 2;
		colon = strchr(line, ':');
		if (!colon || depth >= 16)
			continue;
		*colon = 0;
		key[depth] = line + strspn(line, " ");
		if (!colon[1])
			continue;
		b.len = 0;
		for (i = 0; i <= depth; i++)
			buf_printf(&b, "%s%s", i ? "." : "", key[i]);
		row = PUSH(a, r.row, r.n, r.cap);
		row->path = arena_strdup(a, b.s);
		row->value = colon + 2;
	}
	buf_free(&b);
	return r;
}

/* no part of the function */
static bool
is_aside(const char *path)
{
	static const char *const aside[] = { "plan.", "log.", "name", "target" };
	size_t i;

	for (i = 0; i < sizeof aside / sizeof *aside; i++)
		if (strncmp(path, aside[i], strlen(aside[i])) == 0)
			return true;
	return false;
}

static const char *
value_of(const Rows *r, const char *path)
{
	int i;

	for (i = 0; i < r->n; i++)
		if (strcmp(r->row[i].path, path) == 0)
			return r->row[i].value;
	return NULL;
}

/* rows of x that y lacks or has otherwise: how many are of the model */
static int
one_side(const Rows *x, const Rows *y, const char *sign, bool aside, Buf *o)
{
	const char *v;
	int i, n = 0;

	for (i = 0; i < x->n; i++) {
		v = value_of(y, x->row[i].path);
		if ((v && strcmp(v, x->row[i].value) == 0) || is_aside(x->row[i].path) != aside)
			continue;
		buf_printf(o, "  %s %s: %s\n", sign, x->row[i].path, x->row[i].value);
		n++;
	}
	return n;
}

static const Text *
text_named(const Bundle *b, const char *name)
{
	int i;

	for (i = 0; i < b->ntext; i++)
		if (strcmp(b->text[i].name, name) == 0)
			return &b->text[i];
	return NULL;
}

static int
kernels_of(const Bundle *x, const Bundle *y, const char *sign, bool both, Buf *o)
{
	const Text *t;
	int i, n = 0;

	for (i = 0; i < x->ntext; i++) {
		t = text_named(y, x->text[i].name);
		if (both ? !t || strcmp(t->body, x->text[i].body) == 0 : t != NULL)
			continue;
		buf_printf(o, "  %s %s\n", sign, x->text[i].name);
		n++;
	}
	return n;
}

static double
glue_bytes(const Bundle *b)
{
	const Plan *p = b->plan[PLAN_TRAIN];
	double n = 0;
	int i;

	for (i = 0; i < p->nstep; i++)
		n += p->step[i].kind == STEP_ROW ? p->step[i].nbytes : 0;
	return n / (double)p->T;
}

static double
micro_step_ms(const Bundle *b)
{
	const Plan *p = b->plan[PLAN_TRAIN];
	double us = 0;
	int i;

	for (i = 0; i < p->nstep; i++)
		us += p->step[i].us;
	return us / 1e3;
}

void
diff_bundles(const Bundle *a, const Bundle *b, Buf *o)
{
	Arena *mem = arena_new("diff");
	Rows x = rows_of(mem, a->model->spec), y = rows_of(mem, b->model->spec);
	Buf keys = {0}, aside = {0}, kernels = {0};
	int nkey, nkernel;

	nkey = one_side(&x, &y, "-", false, &keys) + one_side(&y, &x, "+", false, &keys);
	(void)one_side(&x, &y, "-", true, &aside);
	(void)one_side(&y, &x, "+", true, &aside);
	nkernel = kernels_of(a, b, "-", false, &kernels) + kernels_of(b, a, "+", false, &kernels) +
	          kernels_of(a, b, "~", true, &kernels);
	buf_printf(o, "%s and %s: %s\n", a->model->spec->name, b->model->spec->name,
	           nkey ? "other model" : nkernel ? "same model, other rounding" :
	           "same model, same kernels");
	if (nkey)
		buf_printf(o, "model\n%s", keys.s);
	if (aside.len)
		buf_printf(o, "beside the model\n%s", aside.s);
	buf_printf(o, "row kernels    %.0f and %.0f bytes per token\n", glue_bytes(a), glue_bytes(b));
	buf_printf(o, "micro-step     %.3f and %.3f ms, modelled\n", micro_step_ms(a), micro_step_ms(b));
	if (nkernel)
		buf_printf(o, "kernels (- the first has, + the second, ~ both with other text)\n%s",
		           kernels.s);
	buf_free(&keys);
	buf_free(&aside);
	buf_free(&kernels);
	arena_free(mem);
}
