/* hcgen verify --update: one update of a given state.
 *
 * Parameters, gradients and moments of a file go where a run has them, the update program of the step runs, and what
 * is there then goes to another file: to be held against an optimizer written by someone else, on the same
 * gradients. */
#define _GNU_SOURCE
#include "../gen/verbs.h"
#include "hcrun.h"

#include <math.h>
#include <string.h>

/* the kinds of tensors of a state, by the word before their parameter's name */
static const struct { const char *word; int arena; } kinds[] = {
	{ "param.", AR_PARAMS }, { "grad.", AR_GRADS }, { "moment1.", AR_MOMENT1 }, { "moment2.", AR_MOMENT2 },
};
enum { NKind = sizeof kinds / sizeof *kinds };

typedef struct { const Model *m; Run *r; const char *file; } Update;

/* elements of a tensor of that kind: NorMuon's second moment is a number per row */
static long
count(const Param *p, int kind)
{
	return kinds[kind].arena == AR_MOMENT2 && p->kind == OPT_NORMUON ? p->dim[0] : p->n;
}

static float *
tensor_at(const Update *u, const Param *p, int kind)
{
	size_t off = kinds[kind].arena == AR_MOMENT2 ? p->off2 : p->off;

	return run_at(u->r, (Place){ kinds[kind].arena, off });
}

static const Param *
find_param(const Model *m, const char *name)
{
	int i;

	for (i = 0; i < m->nparam; i++)
		if (strcmp(m->param[i].name, name) == 0)
			return &m->param[i];
	return NULL;
}

static void
take(const Update *u, const StTensor *t)
{
	const Param *p = NULL;
	long i, n = 1;
	float *to;
	int k, j;

	for (k = 0; k < NKind && !p; k++)
		if (strncmp(t->name, kinds[k].word, strlen(kinds[k].word)) == 0)
			p = find_param(u->m, t->name + strlen(kinds[k].word));
	if (!p)
		die("%s: %s is no param., grad., moment1. or moment2. of a parameter of the model", u->file, t->name);
	k--;
	for (j = 0; j < t->ndim; j++)
		n *= t->dim[j];
	if (n != count(p, k) || (t->dt != DT_F32 && t->dt != DT_F64))
		die("%s: %s has %ld elements, expected %ld of f32 or f64", u->file, t->name, n, count(p, k));
	to = tensor_at(u, p, k);
	for (i = 0; i < n; i++)
		to[i] = t->dt == DT_F32 ? ((const float *)t->data)[i] : (float)((const double *)t->data)[i];
}

static void
read_state(const Update *u)
{
	StFile *f = st_read(u->file);
	int i;

	for (i = 0; i < NKind; i++)
		memset(run_host(u->r, kinds[i].arena), 0, u->r->arena_size[kinds[i].arena]);
	for (i = 0; i < f->n; i++)
		take(u, &f->t[i]);
	st_close(f);
	for (i = 0; i < NKind; i++)
		run_put(u->r, kinds[i].arena, 0, u->r->arena_size[kinds[i].arena]);
	run_sync_weights(u->r);
}

/* a bf16 copy as the numbers that products read */
static StTensor
weights_of(Arena *a, const Update *u, const Param *p)
{
	const uint16_t *w = run_at(u->r, (Place){ AR_WEIGHTS, (size_t)p->woff });
	float *x = NEWN(a, float, p->n);
	uint32_t bits;
	long i;

	for (i = 0; i < p->n; i++) {
		bits = (uint32_t)w[i] << 16;
		memcpy(&x[i], &bits, sizeof bits);
	}
	return (StTensor){ .name = arena_printf(a, "weights.%s", p->name), .dt = DT_F32, .ndim = 1, .dim = { p->n }, .data = x };
}

static void
write_state(Arena *a, const Update *u, const char *file)
{
	StTensor *t = NEWN(a, StTensor, (NKind + 1) * u->m->nparam);
	const Param *p;
	int i, k, n = 0;

	for (k = 0; k < NKind; k++)
		run_get(u->r, kinds[k].arena, 0, u->r->arena_size[kinds[k].arena]);
	if (u->r->arena_size[AR_WEIGHTS]) {
		run_host(u->r, AR_WEIGHTS);
		run_get(u->r, AR_WEIGHTS, 0, u->r->arena_size[AR_WEIGHTS]);
	}
	for (i = 0; i < u->m->nparam; i++) {
		p = &u->m->param[i];
		for (k = 0; k < NKind; k++)
			t[n++] = (StTensor){ .name = arena_printf(a, "%s%s", kinds[k].word, p->name), .dt = DT_F32, .ndim = 1,
			                     .dim = { count(p, k) }, .data = tensor_at(u, p, k) };
		if (p->woff >= 0)
			t[n++] = weights_of(a, u, p);
	}
	st_write(file, n, t);
}

int
verify_update(Arena *a, const Model *m, const VerifyOpts *o)
{
	Bundle *b = generate(a, m, device_target(o->device), "");
	Update u = { m, run_load(verify_dir(b)), o->update };

	if (o->step < 0 || o->step >= u.r->steps)
		die("--step %ld: the run has steps 0 to %ld", o->step, u.r->steps - 1);
	run_stage(u.r, run_stage_of(u.r, o->step));
	run_open(u.r, o->device, o->threads);
	read_state(&u);
	step_begin(u.r, o->step);
	run_program(u.r, PROG_UPDATE);
	write_state(a, &u, o->dump);
	run_close(u.r);
	return EX_OK;
}
