/* The screens of `hcgen check`. */
#include "verbs.h"

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

void
show_model(const Bundle *b, bool json, FILE *f)
{
	const Model *m = b->model;
	const Spec *s = m->spec;
	const char *st = s->storage == F_BF16 ? "bf16" : "f32";
	const char *ge = s->gemm == F_BF16 ? "bf16" : "f32";
	double tokens = (double)s->tokens_per_step * s->steps;
	int dead = 0, i;

	for (i = 0; i < m->S; i++)
		dead += m->sub[i].dead;
	if (json) {
		fprintf(f, "{\"name\": \"%s\", \"spec\": \"%s\", \"parameters\": %ld, "
		        "\"tokens\": %.0f, \"steps\": %d, \"kernels\": %d, \"memory\": %zu}\n",
		        s->name, m->hash, total_params(m), tokens, s->steps, b->ntext,
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
	fprintf(f, "batch       %d tokens per step: %d x %d, sequences of %d\n",
	        s->tokens_per_step, s->micro_batches, m->T, m->seq);
	fprintf(f, "training    %d steps, %.4g tokens, lr %g\n", s->steps, tokens, s->lr);
	fprintf(f, "numerics    storage %s, gemm %s, target %s\n", st, ge,
	        target_of(m)->name);
	fprintf(f, "kernels     %d texts; %d steps train, %d eval, %d update\n", b->ntext,
	        b->plan[PLAN_TRAIN]->nstep, b->plan[PLAN_EVAL]->nstep,
	        b->plan[PLAN_UPDATE]->nstep);
	fprintf(f, "memory      %.1f MiB (activations %.1f)\n",
	        (double)total_memory(b) / 1048576, (double)b->nbytes[A_ACTS] / 1048576);
}
