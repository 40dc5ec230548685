/* Spec -> the stages of the Model: which steps each has, on how many tokens, in which
 * windows, with which frequencies.
 *
 * The graph, its plan and its texts are made for one of them, that with the most tokens in a
 * micro-batch; model_stage is the model of another, and graph_stage its graph.  The language is
 * defined in docs/spec.md, Training. */
#include "hcgen.h"

#include <math.h>
#include <string.h>

typedef struct {
	Arena *a;
	Diag *d;
	const Spec *s;
	Model *m;
	const char *in;         /* "stage NAME: ", or "" where there is one without a name */
} Ctx;

#define ERR(c, path, ...) diag_error((c)->d, spec_loc((c)->s, (path)), __VA_ARGS__)

static const char *
key(Ctx *c, const Stage *g, const char *name)
{
	return arena_printf(c->a, "train.stages.%s.%s", g->name, name);
}

/* the key that says it for a stage: its own, or train's */
static const char *
key_of(Ctx *c, const Stage *g, bool own, const char *name)
{
	return own ? key(c, g, name) : arena_printf(c->a, "train.%s", name);
}

/* Where each stage ends: docs/spec.md, Stages. */
static void
find_ends(Ctx *c, const Stage *const *of, int n)
{
	double all = 0, sum = 0;
	int i, first = 0, extra = 0;
	ModelStage *t;

	for (i = 0; i < n; i++) {
		if (of[i]->has_steps)
			extra++;
		else if (extra)
			ERR(c, key(c, of[i], "share"), "stage %s shares train.steps and stands behind %s, "
			    "which has steps beyond them", of[i]->name, of[i - 1]->name);
		else
			all += of[i]->share;
	}
	if (c->s->steps > 0 && n == extra)
		ERR(c, "train.stages", "no stage shares the %d steps of train.steps", c->s->steps);
	for (i = 0; i < n; i++) {
		t = &c->m->stage[i];
		t->first = first;
		if (c->s->steps == 0) {
			t->end = 0;
		} else if (of[i]->has_steps) {
			t->end = first + of[i]->steps;
		} else {
			sum += of[i]->share;
			t->end = (int)floor(c->s->steps * sum / all + 0.5);
		}
		first = t->end;
		if (t->end <= t->first && c->s->steps > 0)
			ERR(c, key(c, of[i], "share"), "stage %s has no step: it would begin and end at step %d "
			    "of %d", t->name, t->first, c->s->steps);
	}
	c->m->steps = first;
	c->m->scheduled = c->s->steps;
}

static void
find_tokens(Ctx *c, const Stage *g, ModelStage *t)
{
	const Spec *s = c->s;
	int step = g->has_tokens ? g->tokens_per_step : s->tokens_per_step;

	t->micro = g->has_micro ? g->micro_batches : s->micro_batches;
	t->seq = g->has_seq ? g->seq_len : s->seq_len;
	t->max_doc = g->has_max_doc ? g->max_doc : s->max_doc;
	t->T = step / t->micro;
	if (step % t->micro)
		ERR(c, key_of(c, g, g->has_micro, "micro_batches"), "%smicro_batches %d does not divide "
		    "tokens_per_step %d", c->in, t->micro, step);
	else if (t->T % t->seq)
		ERR(c, key_of(c, g, g->has_seq, "seq_len"), "%sseq_len %d does not divide the %d tokens of a "
		    "micro-batch", c->in, t->seq, t->T);
	if (s->head == HEAD_FP8 && t->T % 16)
		ERR(c, "numerics.head", "%san fp8 head needs a micro-batch of a multiple of 16 tokens: %d is not", c->in, t->T);
	if ((long)t->T * c->m->F > 1L << 40)
		ERR(c, key_of(c, g, g->has_tokens, "tokens_per_step"), "%s%d tokens of width %d do not fit", c->in, t->T,
		    c->m->F);
}

/* windows of all layers; of its own where it has some (count 0, has false: not) */
static int *
windows(Ctx *c, int count, const int *own, bool has_long, int own_long)
{
	const Spec *s = c->s;
	int *w = NEWN(c->a, int, c->m->L), i;

	for (i = 0; i < c->m->L; i++) {
		w[i] = count ? own[i % count] : s->nwindow ? s->window[i % s->nwindow] : 0;
		if (sel_has(&s->long_layers, i, false))
			w[i] = has_long ? own_long : s->long_window;
	}
	return w;
}

/* the windows given in a section */
static void
check_windows(Ctx *c, int n, const int *w, int seq, const char *path)
{
	int i;

	for (i = 0; i < n; i++)
		if (w[i] > seq) {
			ERR(c, path, "window %d is larger than the %d tokens of a sequence", w[i], seq);
			return;
		}
}

static void
find_windows(Ctx *c, const Stage *g, ModelStage *t)
{
	const Spec *s = c->s;

	t->window = windows(c, g->nwindow, g->window, g->has_long_window, g->long_window);
	t->long_window = g->has_long_window ? g->long_window : s->long_window;
	check_windows(c, g->nwindow, g->window, t->seq, key(c, g, "window"));
	check_windows(c, g->has_long_window, &g->long_window, t->seq, key(c, g, "long_window"));
}

static void
find_targets(Ctx *c, const Stage *g, ModelStage *t)
{
	int i;

	t->ntarget = g->ntarget ? g->ntarget : 1;
	t->target[0] = t->target_end[0] = 1;
	for (i = 0; i < g->ntarget; i++)
		t->target[i] = t->target_end[i] = g->target[i];
	if (g->ntarget_end && g->ntarget_end != t->ntarget)
		ERR(c, key(c, g, "targets_end"), "%s%d numbers, and targets has %d", c->in, g->ntarget_end, t->ntarget);
	else
		for (i = 0; i < g->ntarget_end; i++)
			t->target_end[i] = g->target_end[i];
	if (t->ntarget > c->m->ntarget)
		c->m->ntarget = t->ntarget;
}

/* frequencies and attention scale of the first stage */
static void
first_frequencies(Ctx *c, ModelStage *t)
{
	const Model *m = c->m;
	int n = m->rot / 2, j, steps = n - (c->s->rotary_freq == FREQ_ENDPOINT);

	t->freq = NEWN(c->a, float, n + 1);
	for (j = 0; j < n; j++)
		t->freq[j] = (float)pow(c->s->rotary_base, -(double)j / (steps > 0 ? steps : 1));
	t->attn_scale = c->s->attn_scale > 0 ? c->s->attn_scale : m->D > 0 ? 1 / sqrt(m->D) : 1;
}

/* YaRN from one stage to the next: docs/spec.md, Rotary */
static void
next_frequencies(Ctx *c, const ModelStage *was, ModelStage *t)
{
	const Spec *s = c->s;
	double v = was->long_window, w = t->long_window, r, x;
	int n = c->m->rot / 2, j;

	t->freq = was->freq;
	t->attn_scale = was->attn_scale;
	if (!s->yarn || v == w)
		return;
	if (v <= 0 || w <= 0) {
		ERR(c, "model.rotary.yarn", "the long window goes from %g to %g tokens between %s and %s: YaRN needs numbers "
		    "(0 is full)", v, w, was->name, t->name);
		return;
	}
	t->freq = NEWN(c->a, float, n + 1);
	for (j = 0; j < n; j++) {
		r = v * was->freq[j] / (2 * acos(-1));
		x = fmin(1, fmax(0, (r - s->yarn_alpha) / (s->yarn_beta - s->yarn_alpha)));
		t->freq[j] = (float)(was->freq[j] * (v / w + x * (1 - v / w)));
	}
	t->attn_scale *= 1 + s->yarn_growth * log(w / v);
}

static void
check_run(Ctx *c)
{
	const Spec *s = c->s;
	const Model *m = c->m;
	int i;

	if (s->yarn && s->yarn_beta <= s->yarn_alpha)
		ERR(c, "model.rotary.yarn.beta", "beta %g is not above alpha %g", s->yarn_beta, s->yarn_alpha);
	if (s->yarn && s->rotary == ROT_NONE)
		ERR(c, "model.rotary.yarn", "there is no rotary whose frequencies could follow");
	if (s->val_seq_len > 0 && s->val_batch % s->val_seq_len)
		ERR(c, "train.val_seq_len", "val_seq_len %d does not divide val_batch %d", s->val_seq_len, s->val_batch);
	for (i = 0; s->has_untie && i < m->nstage && strcmp(m->stage[i].name, s->untie); i++)
		;
	if (s->has_untie && i == m->nstage)
		ERR(c, "train.untie", "there is no stage %s", s->untie);
}

/* Sampling predicts one token at a time: a longer context than this is rarely worth its rows. */
enum { MostLogitsRows = 2048 };

static void
find_seq(Model *m)
{
	int i;

	m->logits_T = m->val_seq < MostLogitsRows ? m->val_seq : MostLogitsRows;
	m->seq_varies = m->logits_T != m->val_seq;
	for (i = 0; i < m->nstage; i++)
		m->seq_varies |= m->stage[i].seq != m->val_seq;
}

/* requires: dimensions of m.  provides: m->stage, planned, steps, final_window, logits_T;
 * model_stage makes of them the T, seq, windows and frequencies of one */
void
model_stages(Arena *a, Diag *d, Model *m)
{
	const Spec *s = m->spec;
	static const Stage one = { .name = "all", .share = 1, .lr_mul = 1 };
	const Stage *of[MaxStages];
	Ctx c = { .a = a, .d = d, .s = s, .m = m };
	ModelStage *t;
	int n = 0, i;

	for (i = 0; i < s->nstage; i++)
		if (!s->stage[i].none)
			of[n++] = &s->stage[i];
	if (!n)
		of[n++] = &one;
	m->nstage = n;
	m->stage = NEWN(a, ModelStage, n);
	m->ntarget = 1;
	for (i = 0; i < n; i++) {
		t = &m->stage[i];
		t->name = of[i]->name;
		t->lr_mul = of[i]->lr_mul;
		c.in = of[i] == &one ? "" : arena_printf(a, "stage %s: ", t->name);
		find_tokens(&c, of[i], t);
		find_windows(&c, of[i], t);
		find_targets(&c, of[i], t);
		if (i)
			next_frequencies(&c, t - 1, t);
		else
			first_frequencies(&c, t);
		if (t->T > m->stage[m->planned].T)
			m->planned = i;
	}
	find_ends(&c, of, n);
	m->final_window = windows(&c, s->nfinal_window ? s->nfinal_window : of[n - 1]->nwindow,
	                          s->nfinal_window ? s->final_window : of[n - 1]->window,
	                          s->has_final_long || of[n - 1]->has_long_window,
	                          s->has_final_long ? s->final_long_window : of[n - 1]->long_window);
	check_windows(&c, s->nfinal_window, s->final_window, s->val_seq_len, "train.final.window");
	check_windows(&c, s->has_final_long, &s->final_long_window, s->val_seq_len, "train.final.long_window");
	check_run(&c);
	find_seq(m);
}

static int
longest(const Spec *s, int packing, int max_doc, int seq)
{
	bool cut = s->document_mask && packing == PACK_DOCUMENTS && max_doc > 0 && max_doc < seq;

	return cut ? max_doc : seq;
}

static void
take_stage(Model *m, const ModelStage *t)
{
	int i;

	m->T = t->T;
	m->seq = t->seq;
	m->longest = longest(m->spec, (int)m->spec->packing, t->max_doc, t->seq);
	m->freq = t->freq;
	m->attn_scale = t->attn_scale;
	for (i = 0; i < m->S; i++)
		m->sub[i].window = t->window[i / 2];
}

Model *
model_stage(Arena *a, const Model *m, int i)
{
	Model *r = NEW(a, Model);

	*r = *m;
	r->sub = NEWN(a, Sub, m->S);
	memcpy(r->sub, m->sub, (size_t)m->S * sizeof *m->sub);
	take_stage(r, &m->stage[i]);
	return r;
}

Model *
model_eval(Arena *a, const Model *m, int i)
{
	int last = m->nstage - 1, k;
	Model *r = model_stage(a, m, i < m->nstage ? i : last);

	r->T = m->val_T;
	r->seq = m->val_seq;
	r->longest = longest(m->spec, (int)m->spec->val_packing, m->spec->max_doc, m->val_seq);
	for (k = 0; i == m->nstage && k < m->S; k++)
		r->sub[k].window = m->final_window[k / 2];
	return r;
}

Model *
model_logits(Arena *a, const Model *m)
{
	Model *r = model_stage(a, m, m->nstage - 1);

	r->T = r->seq = r->longest = m->logits_T;
	return r;
}

Model *
model_reduced(Arena *a, const Model *m, long rows, long seq)
{
	Model *r = model_stage(a, m, m->planned);
	ModelStage *t = NEW(a, ModelStage);

	*t = m->stage[m->planned];
	if (t->seq > seq)
		t->seq = (int)seq;
	t->T = (int)((rows + t->seq - 1) / t->seq) * t->seq;
	t->micro = 1;
	t->first = 0;
	t->end = r->steps = r->scheduled = 1;
	r->stage = t;
	r->nstage = 1;
	r->planned = 0;
	r->val_T = t->T;
	r->val_seq = t->seq;
	r->logits_T = t->seq;
	r->final_window = t->window;
	take_stage(r, t);
	return r;
}

Graph *
graph_stage(Arena *a, const Graph *g, const Model *m)
{
	Graph *h = NEW(a, Graph);
	Val *v;
	int i;

	*h = *g;
	h->model = m;
	h->T = m->T;
	h->v = NEWN(a, Val, g->n);
	memcpy(h->v, g->v, (size_t)g->n * sizeof *g->v);
	for (i = 0; i < g->n; i++) {
		v = &h->v[i];
		if (v->op != OP_ATTN && v->op != OP_ATTN_BWD)
			continue;
		v->attr[0] = m->sub[v->sub].window;
		v->num = m->attn_scale;
	}
	return h;
}
