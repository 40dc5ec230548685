/* Bundle -> manifest: what the runtime loads.  The format is defined in
 * docs/emitted.md; one fact per line, the order fixed. */
#include "hcgen.h"

#include <string.h>

static void
place(Buf *o, int arena, size_t off)
{
	buf_printf(o, "%s+%zu", arena_name[arena], off);
}

static void
opd(const Bundle *b, const Plan *p, const Opd *x, Buf *o)
{
	switch (x->kind) {
	case OPD_BUF:
		place(o, A_ACTS, p->buf[x->id].off + x->off);
		break;
	case OPD_ARENA:
		place(o, x->id, x->off);
		break;
	case OPD_TABLE:
		place(o, A_TABLES, x->id ? b->sin_off : b->cos_off);
		break;
	case OPD_INPUT:
		place(o, A_INPUTS, b->input[x->id] + x->off);
		break;
	case OPD_INT:
		buf_printf(o, "i%ld", x->i);
		break;
	case OPD_FLOAT:
		buf_puts(o, "f");
		buf_num(o, x->f);
		break;
	}
}

static void
num_field(Buf *o, const char *key, double x)
{
	buf_printf(o, " %s ", key);
	buf_num(o, x);
}

static void
stage(const ModelStage *s, Buf *o)
{
	int i;

	buf_printf(o, "stage %s steps %d %d tokens %d seq %d micro %d max_doc %d", s->name, s->first, s->end, s->T,
	           s->seq, s->micro, s->max_doc);
	num_field(o, "lr_mul", s->lr_mul);
	buf_printf(o, " targets %d", s->ntarget);
	for (i = 0; i < s->ntarget; i++) {
		num_field(o, "from", s->target[i]);
		num_field(o, "to", s->target_end[i]);
	}
	buf_puts(o, "\n");
}

static void
head(const Bundle *b, Buf *o)
{
	static const char *const cool[] = { "constant", "linear", "cosine" };
	static const char *const packing[] = { "stream", "documents" };
	const Model *m = b->model;
	const Spec *s = m->spec;
	int i;

	buf_printf(o, "hcgen-manifest 2\nname %s\nspec %s\ntarget %s\n", s->name, m->hash,
	           b->target == TO_CUDA ? "cuda" : "cpu");
	buf_printf(o, "model layers %d lanes %d width %d vocab %d padded %d\n", m->L, m->n,
	           m->C, m->V, m->Vp);
	buf_printf(o, "batch most %ld bos %d mask %d\n", b->most_T, s->bos, s->document_mask);
	buf_printf(o, "numerics storage %s gemm %s\n", s->storage == F_BF16 ? "bf16" : "f32",
	           s->gemm == F_BF16 ? "bf16" : "f32");
	buf_printf(o, "train steps %d scheduled %d", m->steps, m->scheduled);
	num_field(o, "lr", s->lr);
	buf_puts(o, " scale ");
	if (s->loss_scale > 0)
		buf_num(o, s->loss_scale);
	else
		buf_puts(o, "mean");
	buf_printf(o, " warmup %d", s->warmup);
	num_field(o, "cooldown", s->cooldown);
	buf_printf(o, " %s", cool[s->cooldown_kind]);
	num_field(o, "floor", s->floor);
	num_field(o, "clip", s->clip);
	buf_printf(o, " val_every %d val_tokens %d log_every %d seed %lld\n", s->val_every,
	           s->val_tokens, s->log_every, s->seed);
	buf_printf(o, "data packing %s val_packing %s shuffle %d max_doc %d\n", packing[s->packing],
	           packing[s->val_packing], s->shuffle, s->max_doc);
	for (i = 0; i < m->nstage; i++)
		stage(&m->stage[i], o);
	for (i = 0; i < s->ntrain; i++)
		buf_printf(o, "trainfile %s\n", s->train[i]);
	for (i = 0; i < s->nval; i++)
		buf_printf(o, "valfile %s\n", s->val[i]);
	if (has_normuon(m)) {
		buf_puts(o, "momentum ");
		buf_num(o, s->momentum);
		num_field(o, "start", s->momentum_start);
		buf_printf(o, " warmup %d cooldown %d steps %d\n", s->momentum_warmup, s->momentum_cooldown, m->steps);
	}
	for (i = 0; i < NArenas; i++)
		buf_printf(o, "arena %s %zu\n", arena_name[i], b->nbytes[i]);
}

static bool
all_same(const double *v, long n)
{
	long i;

	for (i = 1; i < n; i++)
		if (v[i] != v[0])
			return false;
	return true;
}

static void
params(const Bundle *b, Buf *o)
{
	const Model *m = b->model;
	const Param *p;
	long j;
	int i, k;

	for (i = 0; i < m->nparam; i++) {
		p = &m->param[i];
		buf_printf(o, "param %s f32 ", p->name);
		for (k = 0; k < p->ndim; k++)
			buf_printf(o, "%s%d", k ? "," : "", p->dim[k]);
		buf_printf(o, " params+%zu ", p->off);
		if (p->woff < 0)
			buf_puts(o, "-");
		else
			place(o, A_WEIGHTS, (size_t)p->woff);
		if (p->like >= 0) {
			buf_printf(o, " like %s", m->param[p->like].name);
		} else if (!p->values && p->std == 0) {
			buf_puts(o, " const 0");
		} else if (!p->values) {
			buf_puts(o, p->uniform ? " uniform " : " normal ");
			buf_num(o, p->std);
		} else if (all_same(p->values, p->n)) {
			buf_puts(o, " const ");
			buf_num(o, p->values[0]);
		} else {
			buf_puts(o, " values");
			for (j = 0; j < p->n; j++) {
				buf_puts(o, " ");
				buf_num(o, p->values[j]);
			}
		}
		buf_puts(o, p->held == HELD_F32 ? "\n" : p->held == HELD_BF16 ? " bf16\n" : " upper\n");
	}
}

/* those of a stage and of all after it, up to the next that has its own */
static void
tables(const Bundle *b, int stage, Buf *o)
{
	const Model *m = b->model;
	int i, j;

	for (i = 0; i < 2; i++) {
		buf_printf(o, "table %d tables+%zu %s %ld %d %s", stage, i ? b->sin_off : b->cos_off,
		           i ? "rope_sin" : "rope_cos", b->positions * (m->paired ? 2 : 1), m->rot / 2,
		           m->spec->rotary_bf16 ? "bf16" : "f32");
		for (j = 0; j < m->rot / 2; j++) {
			buf_puts(o, " ");
			buf_num(o, m->stage[stage].freq[j]);
		}
		buf_puts(o, "\n");
	}
}

static void
tables_inputs(const Bundle *b, Buf *o)
{
	static const char *const name[] = { "tokens", "targets", "docstart" };
	const Model *m = b->model;
	const Source *src = m->spec->source;
	char hash[65];
	int i, j;

	for (i = 0; m->rot && i < m->nstage; i++)
		if (!i || m->stage[i].freq != m->stage[i - 1].freq)
			tables(b, i, o);
	for (i = 0; i < 3; i++)
		buf_printf(o, "input %s inputs+%zu\n", name[i], b->input[i]);
	if (b->has_input[INPUT_PAIR_DOCSTART])
		buf_printf(o, "input pair_docstart inputs+%zu\n", b->input[INPUT_PAIR_DOCSTART]);
	for (j = 0; j < m->spec->nsource; j++)
		if (b->has_input[INPUT_HASH + j])
			buf_printf(o, "input hash inputs+%zu %d %s\n", b->input[INPUT_HASH + j],
			           src[j].rows, src[j].hash_quirk ? "quirk" : "clean");
	buf_printf(o, "input order tokens inputs+%zu %d\n", b->input[INPUT_ORDER], m->Vp);
	for (j = 0; j < m->spec->nsource; j++)
		if (b->has_input[INPUT_HASH + j])
			buf_printf(o, "input order hash inputs+%zu %d %s\n", b->input[INPUT_HASH_ORDER + j],
			           src[j].rows, src[j].hash_quirk ? "quirk" : "clean");
	for (i = 0; i < b->ntext; i++) {
		sha256_hex(b->text[i].file, strlen(b->text[i].file), hash);
		buf_printf(o, "kernel %s kernels/%s%s %s", b->text[i].name,
		           b->text[i].name, text_suffix(b), hash);
		if (b->target == TO_CUDA)
			buf_printf(o, " threads %d smem %zu", b->text[i].threads,
			           b->text[i].smem);
		buf_puts(o, "\n");
	}
}

/* what a product has beside A B: see docs/emitted.md */
static void
gemm_options(const Bundle *b, const Plan *p, const Step *s, Buf *o)
{
	if (s->batch > 1)
		buf_printf(o, " batch %ld %ld %ld %ld", s->batch, s->sa, s->sb, s->sc);
	if (s->alpha != 0 && s->alpha != 1)
		num_field(o, "alpha", s->alpha);
	if (s->scaled) {
		buf_puts(o, " scale ");
		opd(b, p, &s->scale, o);
	}
	if (s->nopd < 4)
		return;
	buf_puts(o, " add ");
	opd(b, p, &s->opd[3], o);
	buf_printf(o, " %s %ld ", dt_name(s->opd[3].dt), s->opd[3].ld);
	buf_num(o, s->beta);
}

/* which steps of the run the following ones of the program belong to */
static void
when(const Step *was, const Step *s, Buf *o)
{
	if (was ? was->every == s->every && was->from == s->from && was->to == s->to : s->every == 0)
		return;
	if (s->every == 0)
		buf_puts(o, "when always\n");
	else if (s->to < 0)
		buf_printf(o, "when every %d from %ld to -\n", s->every, s->from);
	else
		buf_printf(o, "when every %d from %ld to %ld\n", s->every, s->from, s->to);
}

static void
one_step(const Bundle *b, const Plan *p, const Step *s, Buf *o)
{
	int j;

	if (s->kind == STEP_ZERO || s->kind == STEP_COPY) {
		buf_puts(o, s->name);
		for (j = 0; j < s->nopd; j++) {
			buf_puts(o, " ");
			opd(b, p, &s->opd[j], o);
		}
		buf_printf(o, " %ld @ %s\n", s->m, s->site);
		return;
	}
	if (s->kind == STEP_GEMM) {
		buf_printf(o, "gemm %c%c %ld %ld %ld acc %d", s->ta ? 't' : 'n',
		           s->tb ? 't' : 'n', s->m, s->n, s->k, s->acc);
		gemm_options(b, p, s, o);
		for (j = 0; j < 3; j++) {
			buf_printf(o, " %c ", "abc"[j]);
			opd(b, p, &s->opd[j], o);
			buf_printf(o, " %s %ld", dt_name(s->opd[j].dt), s->opd[j].ld);
		}
		buf_printf(o, " bytes %.0f flops %.0f @ %s\n", s->nbytes, s->flops, s->site);
		return;
	}
	buf_printf(o, "launch %s %ld bytes %.0f flops %.0f :", b->text[s->text].name,
	           s->items, s->nbytes, s->flops);
	for (j = 0; j < s->nopd; j++) {
		buf_puts(o, " ");
		opd(b, p, &s->opd[j], o);
	}
	buf_printf(o, " @ %s\n", s->site);
}

void
manifest(const Bundle *b, Buf *o)
{
	const Plan *p;
	int i, j;

	head(b, o);
	params(b, o);
	tables_inputs(b, o);
	for (i = 0; i < b->nplan; i++) {
		p = b->plan[i];
		buf_printf(o, "program %s %d tokens %ld seq %d\n", p->prog, p->stage, p->T, p->g ? p->model->seq : 0);
		for (j = 0; j < p->nstep; j++) {
			when(j ? &p->step[j - 1] : NULL, &p->step[j], o);
			one_step(b, p, &p->step[j], o);
		}
		if (i == PLAN_LOGITS) {
			buf_puts(o, "output logits ");
			opd(b, p, &p->logits, o);
			buf_printf(o, " %d\n", b->model->Vp);
		}
	}
}
