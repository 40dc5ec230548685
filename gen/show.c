/* The screens of `hcgen check` and `hcgen show`. */
#include "verbs.h"

#include <string.h>

void
show_params(const Model *m, FILE *f)
{
	const Param *p;
	int i, k;

	for (i = 0; i < m->nparam; i++) {
		p = &m->param[i];
		fprintf(f, "%s ", p->name);
		for (k = 0; k < p->ndim; k++)
			fprintf(f, "%s%d", k ? "x" : "", p->dim[k]);
		fputc('\n', f);
	}
}

static long
total_params(const Model *m)
{
	long n = 0;
	int i;

	for (i = 0; i < m->nparam; i++)
		n += m->param[i].n;
	return n;
}

static size_t
total_memory(const Bundle *b)
{
	size_t n = 0;
	int i;

	for (i = 0; i < NArenas; i++)
		n += b->nbytes[i];
	return n;
}

static void
show_stage(const Model *m, int i, FILE *f)
{
	const ModelStage *s = &m->stage[i];
	int k;

	if (m->nstage > 1)
		fprintf(f, "%-11s steps %d to %d, ", s->name, s->first, s->end - 1);
	else
		fprintf(f, "batch       ");
	fprintf(f, "%d tokens per step: %d x %d, sequences of %d", s->T * s->micro, s->micro, s->T, s->seq);
	if (s->lr_mul != 1)
		fprintf(f, ", lr x %g", s->lr_mul);
	for (k = 0; s->ntarget > 1 && k < s->ntarget; k++)
		fprintf(f, "%s%g", k ? ", " : ", targets ", s->target[k]);
	fputc('\n', f);
}

void
show_model(const Bundle *b, bool json, FILE *f)
{
	const Model *m = b->model;
	const Spec *s = m->spec;
	const char *st = s->storage == F_BF16 ? "bf16" : "f32";
	const char *ge = s->gemm == F_BF16 ? "bf16" : "f32";
	double tokens = 0;
	int dead = 0, i;

	for (i = 0; i < m->nstage; i++)
		tokens += (double)(m->stage[i].end - m->stage[i].first) * m->stage[i].T * m->stage[i].micro;

	for (i = 0; i < m->S; i++)
		dead += m->sub[i].dead;
	if (json) {
		fprintf(f, "{\"name\": \"%s\", \"spec\": \"%s\", \"parameters\": %ld, "
		        "\"tokens\": %.0f, \"steps\": %d, \"kernels\": %d, \"memory\": %zu}\n",
		        s->name, m->hash, total_params(m), tokens, m->steps, b->ntext,
		        total_memory(b));
		return;
	}
	fprintf(f, "%s  %.12s\n", s->name, m->hash);
	fprintf(f, "model       %d layers, width %d, %d heads (%d kv) of %d, hidden %d, "
	        "vocab %d (padded %d)%s\n", m->L, m->C, m->H, m->K, m->D, m->F, m->V, m->Vp,
	        s->tied ? ", tied" : "");
	fprintf(f, "residual    %d lane%s, %d sublayers%s", m->n, m->n > 1 ? "s" : "", m->S,
	        dead ? "" : "\n");
	if (dead)
		fprintf(f, " of which %d dead\n", dead);
	fprintf(f, "parameters  %ld in %d tensors\n", total_params(m), m->nparam);
	for (i = 0; i < m->nstage; i++)
		show_stage(m, i, f);
	fprintf(f, "training    %d steps, %.4g tokens, lr %g\n", m->steps, tokens, s->lr);
	fprintf(f, "numerics    storage %s, gemm %s, target %s\n", st, ge,
	        target_of(m)->name);
	fprintf(f, "kernels     %d texts; %d steps train, %d eval, %d update\n", b->ntext,
	        b->plan[PLAN_TRAIN]->nstep, b->plan[PLAN_EVAL]->nstep,
	        b->plan[PLAN_UPDATE]->nstep);
	fprintf(f, "memory      %.1f MiB (activations %.1f)\n",
	        (double)total_memory(b) / 1048576, (double)b->nbytes[A_ACTS] / 1048576);
}

/* the kernels of a spec */

typedef struct { int n; double nbytes, flops, us; long items; } Launches;

/* launches of a text in a program, and what they move together */
static Launches
launches(const Plan *p, int text)
{
	Launches l = { 0 };
	int i;

	for (i = 0; i < p->nstep; i++) {
		if (!has_text(&p->step[i]) || p->step[i].text != text)
			continue;
		l.n++;
		l.nbytes += p->step[i].nbytes;
		l.flops += p->step[i].flops;
		l.us += p->step[i].us;
		l.items = p->step[i].items;
	}
	return l;
}

void
show_kernels(const Bundle *b, FILE *f)
{
	const Plan *p;
	Launches l;
	int i, j;

	fprintf(f, "%-56s %-7s %8s %6s %10s %12s %10s\n", "kernel", "program", "launches",
	        "blocks", "threads", "MB each", "us each");
	for (i = 0; i < b->nplan; i++)
		for (p = b->plan[i], j = 0; j < b->ntext; j++) {
			l = launches(p, j);
			if (!l.n)
				continue;
			fprintf(f, "%-56s %-7s %8d %6ld %10d %12.3f %10.2f\n", b->text[j].name,
			        p->prog, l.n, l.items, b->text[j].threads,
			        1e-6 * l.nbytes / l.n, l.us / l.n);
		}
	fprintf(f, "us: modelled for %s\n", target_of(b->model)->name);
}

/* NAME, or the one kernel whose name begins with it or has it inside */
const Text *
show_find(const Bundle *b, const char *name)
{
	const Text *found;
	int i, how, n;

	for (i = 0; i < b->ntext; i++)
		if (strcmp(b->text[i].name, name) == 0)
			return &b->text[i];
	for (how = 0; how < 2; how++) {
		for (found = NULL, n = i = 0; i < b->ntext; i++) {
			const char *at = strstr(b->text[i].name, name);

			if (!at || (how == 0 && at != b->text[i].name))
				continue;
			found = &b->text[i];
			n++;
		}
		if (n == 1)
			return found;
		if (n > 1)
			break;
	}
	fprintf(stderr, n ? "\"%s\" may be:\n" : "no kernel is named \"%s\"; there are:\n", name);
	for (i = 0; i < b->ntext; i++)
		if (!n || strstr(b->text[i].name, name))
			fprintf(stderr, "  %s\n", b->text[i].name);
	return NULL;
}

/* the helpers in one line; what follows them */
static const char *
fold_helpers(const char *p, FILE *f)
{
	const char *end = strstr(p, "\n// end\n");

	if (!end)
		return p;
	fputs("// helpers   left out here: types, vectors, sums, intrinsics (templates/)\n", f);
	return end + 8;
}

/* A kernel with its launches.  resources: what the compiler made of it, or NULL. */
void
show_kernel(const Bundle *b, const Text *t, const char *resources, FILE *f)
{
	const char *p = t->file, *from = strstr(p, "// from templates/");
	int text = (int)(t - b->text), i;
	Launches l;

	if (from) {
		fwrite(p, 1, (size_t)(from - p - 1), f);
		p = from;
	}
	for (i = 0; i < b->nplan; i++) {
		l = launches(b->plan[i], text);
		if (l.n)
			fprintf(f, "// launched  %d times in %s, %ld blocks%s: %.4g MB each, %.4g us"
			        " modelled for %s\n", l.n, b->plan[i]->prog, l.items,
			        b->target == TO_CPU ? " of rows" : "", 1e-6 * l.nbytes / l.n,
			        l.us / l.n, target_of(b->model)->name);
	}
	if (resources)
		fprintf(f, "// compiled  %s\n", resources);
	fputs(fold_helpers(p, f), f);
}
