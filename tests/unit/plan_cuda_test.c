/* Plans for cuda: run step by step in their own arenas they give what the graph
 * gives, as those for cpu do; every launch is one that a device takes and that
 * its template is written for; and what is broken on purpose is noticed. */
#include "test.h"
#include "../../gen/templates.h"

#include <dirent.h>

static Plan *
plan_of(const Model *m, int mode)
{
	Graph *g = mode == GRAPH_TRAIN ? train_graph(m, m->T) : graph_build(mem, m, mode, m->T);
	Plan *p = fuse(mem, simplify(mem, g), TO_CUDA);

	plan_verify(p);
	mem_place(p);
	mem_verify(p);
	return p;
}

typedef struct { int spec, mode, nset; const char *set[3]; } Variant;

/* As in plan_test.c: exact, but for the head where its logits come in chunks
 * and for a tied embedding, whose sums are in another order. */
static bool
one_plan(void *arg, char err[200])
{
	const Variant *v = arg;
	const Model *m = model_set(spec_text[v->spec].name, spec_text[v->spec].yaml, v->nset, v->set);
	bool other = m->spec->tied || (m->spec->head_chunk && m->spec->head_chunk < m->T);
	Plan *p = plan_of(m, v->mode);
	Inputs in = inputs_random(m, m->T);
	Interp *a = interp_plan(p, &in), *b = results_of(p->g, &in);
	const char *where;
	double d = results_differ(a, b, other ? 1e-12 : 0, &where);

	snprintf(err, 200, "%s differs by %.3g", where, d);
	return !*where;
}

static void
plans(void)
{
	static const Variant how[] = {
		{ 0, 0, 0, { NULL } },
		{ 0, 0, 1, { "plan.head_chunk=7" } },
		{ 0, 0, 2, { "numerics.storage=bf16", "numerics.gemm=bf16" } },
		{ 0, 0, 1, { "numerics.gemm=bf16" } },
	};
	static const char *const mode[] = { "train", "eval", "logits" };
	static const char *const what[] = { "", ", head in chunks", ", bf16", ", bf16 gemm" };
	Variant v;
	int i, j, k;

	for (i = 0; i < NSpecs; i++)
		for (j = 0; j < 3; j++)
			for (k = 0; k < (int)(sizeof how / sizeof *how); k++) {
				if ((j || k > 2) && (i + j + k) % 3)
					continue;       /* a third of them */
				v = how[k];
				v.spec = i;
				v.mode = j;
				check_case(arena_printf(mem, "cuda plan of %s, %s%s", spec_text[i].name,
				           mode[j], what[k]), one_plan, &v);
			}
}

/* the specs that come with hcgen, at their own size */

static Model *
model_file(const char *path)
{
	Diag *d = diag_new(mem);
	Spec *s = spec_read(mem, d, path, 0, NULL);
	Model *m = s ? model_build(mem, d, s) : NULL;

	if (!m) {
		diag_flush(d, stderr);
		die("%s is wrong", path);
	}
	model_verify(m);
	return m;
}

/* buffers of templates are used by a step before they end and after they begin */
static bool
workspaces_live(const Plan *p, char err[200])
{
	const Step *s;
	int i, j;

	for (i = 0; i < p->nstep; i++)
		for (s = &p->step[i], j = 0; j < s->nopd; j++) {
			const Buffer *b = s->opd[j].kind == OPD_BUF ? &p->buf[s->opd[j].id] : NULL;

			if (!b || (b->first <= i && i <= b->last))
				continue;
			snprintf(err, 200, "step %d (%s) uses %s, which lives %d..%d", i, s->site,
			         b->name, b->first, b->last);
			return false;
		}
	return true;
}

static bool
one_file(void *arg, char err[200])
{
	const Model *m = model_file(arg);
	Plan *p;
	int mode;

	for (mode = 0; mode < 3; mode++)
		if (!workspaces_live(plan_of(m, mode), err))
			return false;
	p = plan_update(mem, m, TO_CUDA);
	plan_verify(p);
	mem_place(p);
	mem_verify(p);
	return workspaces_live(p, err);
}

static void
files(void)
{
	struct dirent *e;
	DIR *d = opendir("specs");

	if (!d)
		die("specs: %s", strerror(errno));
	while ((e = readdir(d)))
		if (strlen(e->d_name) > 5 && strcmp(e->d_name + strlen(e->d_name) - 5, ".yaml") == 0) {
			char *path = arena_printf(mem, "specs/%s", e->d_name);

			check_case(arena_printf(mem, "cuda plans of %s", path), one_file, path);
		}
	closedir(d);
}

/* launches: the numbers of one large model, from the templates' headers */

static const struct { const char *tmpl, *site; long items; int threads; size_t smem; } expect[] = {
	/* T 49152, 6 heads of 128, sequences of 2048, 50304 logits in 10 chunks of 4992 rows */
	{ "gather", "embed", 49152, 96, 0 },
	{ "scatter", "embed", 768, 96, 0 },
	{ "scatter_finish", "embed runs", 768 * 3, 256, 0 },
	{ "attn_fwd", "layers.0.attn.core", 24 * 6 * 16, 128, 768 * 136 },
	{ "attn_bwd_dq", "layers.0.attn.core dq", 24 * 6 * 16, 128, 768 * 136 },
	{ "attn_bwd_dkv", "layers.0.attn.core dk dv", 24 * 6 * 32, 128, 768 * 136 },
	{ "ce", "head loss", 132, 1024, 50304 * 4 },
	{ "loss_sum", "loss", 1, 1024, 0 },
	{ "sqsum", "gradient norm", 1056, 256, 0 },
	{ "clip", "gradient norm", 1, 256, 0 },
	{ "adamw", "embed", 1056, 256, 0 },
	{ "adamw", "layers.0.attn.qkv", 1056, 256, 0 },
	{ "adamw", "hc.resid_lambda", 1, 256, 0 },
};

static bool
has_launch(const Plan *p, size_t k)
{
	const Step *s;

	for (s = p->step; s < p->step + p->nstep; s++)
		if (strcmp(s->name, expect[k].tmpl) == 0 &&
		    strncmp(s->site, expect[k].site, strlen(expect[k].site)) == 0 &&
		    s->items == expect[k].items && s->threads == expect[k].threads &&
		    s->smem == expect[k].smem)
			return true;
	return false;
}

static bool
launches(void *arg, char err[200])
{
	const Model *m = model_file("specs/gpt-2lane-768.yaml");
	Plan *p[2] = { plan_of(m, GRAPH_TRAIN), plan_update(mem, m, TO_CUDA) };
	int i, chunks = 0;
	size_t k;

	(void)arg;
	for (i = 0; i < p[0]->nstep; i++)
		chunks += strcmp(p[0]->step[i].site, "head logits fwd") == 0 && p[0]->step[i].m == 4992;
	snprintf(err, 200, "%d chunks of 4992 rows", chunks);
	if (chunks != 9)                /* and a shorter one */
		return false;
	for (k = 0; k < sizeof expect / sizeof *expect; k++) {
		if (has_launch(p[0], k) || has_launch(p[1], k))
			continue;
		snprintf(err, 200, "no %s at %s with %ld blocks of %d threads, %zu bytes", expect[k].tmpl,
		         expect[k].site, expect[k].items, expect[k].threads, expect[k].smem);
		return false;
	}
	return true;
}

/* heads that the matrix instructions cannot take, and types; sequences of 100 */
static bool
plain_attention(void *arg, char err[200])
{
	static const struct { const char *head, *gemm; bool f32; long fwd, dkv; } how[] = {
		{ "model.head_dim=8", "numerics.gemm=bf16", true, 16, 16 },
		{ "model.head_dim=16", "numerics.gemm=bf16", false, 4, 4 },
		{ "model.head_dim=128", "numerics.gemm=bf16", false, 4, 8 },
		{ "model.head_dim=136", "numerics.gemm=bf16", true, 16, 16 },
		{ "model.head_dim=64", "numerics.gemm=f32", true, 16, 16 },
	};
	const char *set[5] = { NULL, NULL, "numerics.storage=bf16", "train.seq_len=100", "train.tokens_per_step=200" };
	const Step *s;
	size_t k;
	Plan *p;
	int n;

	(void)arg;
	for (k = 0; k < sizeof how / sizeof *how; k++) {
		set[0] = how[k].head;
		set[1] = how[k].gemm;
		p = plan_of(model_set(spec_text[0].name, spec_text[0].yaml, 5, set), GRAPH_TRAIN);
		for (n = 0, s = p->step; s < p->step + p->nstep; s++)
			n += s->kind == STEP_TEMPLATE && strncmp(s->name, "attn_", 5) == 0 &&
			     how[k].f32 == (strstr(s->name, "_f32") != NULL) &&
			     s->items == (strstr(s->name, "dkv") ? how[k].dkv : how[k].fwd);
		if (n == 6)             /* two layers, three steps each */
			continue;
		snprintf(err, 200, "%s %s: %d steps", set[0], set[1], n);
		return false;
	}
	return true;
}

/* operands and parameters of the templates */

static const char *
template_text(const char *name)
{
	int i;

	for (i = 0; i < ntemplates; i++)
		if (strncmp(templates[i].name, "cuda/", 5) == 0 && strcmp(templates[i].name + 5, name) == 0)
			return templates[i].text;
	return NULL;
}

/* what the parameter at p is: p pointer, i long, f double; *p moves behind it */
static char
parameter(const char **p)
{
	size_t n = strcspn(*p, ",)/");
	char kind = memchr(*p, '*', n) ? 'p' : memmem(*p, n, "double", 6) ? 'f' : 'i';

	*p += n;
	for (;;) {
		if (strncmp(*p, "//", 2) == 0)
			*p += strcspn(*p, "\n");
		else if (strchr(", \t\n", **p))
			++*p;
		else
			return kind;
	}
}

static bool
operands_fit(const Step *s, char err[200])
{
	const char *text = template_text(s->name), *p = text ? strstr(text, "void @KERNEL@(") : NULL;
	char want, got;
	int i;

	snprintf(err, 200, "%s is no template", s->name);
	if (!p)
		return false;
	p = strchr(p, '(') + 1;
	for (i = 0; *p != ')'; i++) {
		want = parameter(&p);
		got = i >= s->nopd ? '-' : s->opd[i].kind == OPD_FLOAT ? 'f' : s->opd[i].kind == OPD_INT ? 'i' : 'p';
		if (got == want || (want == 'p' && got == 'i' && s->opd[i].i == 0))
			continue;
		snprintf(err, 200, "%s: operand %d is %c, parameter %c", s->name, i, got, want);
		return false;
	}
	snprintf(err, 200, "%s: %d operands, %d parameters", s->name, s->nopd, i);
	return i == s->nopd;
}

static bool
parameters(void *arg, char err[200])
{
	static const char *const gemm[] = { "numerics.gemm=f32", "numerics.gemm=bf16" };
	const char *set[] = { NULL, "numerics.storage=bf16", "model.head_dim=16" };
	const Model *m;
	Plan *p;
	int k, mode, i;

	(void)arg;
	for (k = 0; k < 2; k++)
		for (mode = 0; mode < 4; mode++) {
			set[0] = gemm[k];
			m = model_set(spec_text[6].name, spec_text[6].yaml, 3, set);
			p = mode < 3 ? plan_of(m, mode) : plan_update(mem, m, TO_CUDA);
			for (i = 0; i < p->nstep; i++)
				if (p->step[i].kind == STEP_TEMPLATE && !operands_fit(&p->step[i], err))
					return false;
		}
	return true;
}

/* breaking */

static void
verify_plan(void *p)
{
	plan_verify(p);
}

static bool
bad_launches(void *arg, char err[200])
{
	static const struct { long items; int threads; size_t smem; } bad[] = {
		{ 0, 128, 0 }, { 1L << 31, 128, 0 }, { 1, 0, 0 }, { 1, 48, 0 }, { 1, 1056, 0 }, { 1, 32, 300000 },
	};
	Plan *p = plan_of(model_at(3), GRAPH_TRAIN);
	Step *s, saved;
	size_t k;
	Child c;

	(void)arg;
	for (s = p->step; s->kind != STEP_TEMPLATE; s++)
		;
	saved = *s;
	for (k = 0; k < sizeof bad / sizeof *bad; k++) {
		s->items = bad[k].items;
		s->threads = bad[k].threads;
		s->smem = bad[k].smem;
		c = child(verify_plan, p);
		*s = saved;
		if (c.rc == EX_BUG)
			continue;
		snprintf(err, 200, "%ld blocks, %d threads, %zu bytes: exit %d", bad[k].items,
		         bad[k].threads, bad[k].smem, c.rc);
		return false;
	}
	return true;
}

/* delta comes from the one step and goes to the other: without the first, or
 * with delta's memory gone between them, the gradients change */
static bool
delta_matters(void *arg, char err[200])
{
	const Model *m = model_at(2);
	Plan *p = plan_of(m, GRAPH_TRAIN);
	Inputs in = inputs_random(m, m->T);
	Interp *good = results_of(p->g, &in);
	const char *where;
	int b, n = 0;

	(void)arg;
	for (b = 0; b < p->nbuf; b++) {
		if (strcmp(p->buf[b].name, "delta") != 0)
			continue;
		n++;
		p->buf[b].last--;
		results_differ(interp_plan(p, &in), good, 0, &where);
		p->buf[b].last++;
		if (*where)
			continue;
		snprintf(err, 200, "delta of buffer %d is not read", b);
		return false;
	}
	snprintf(err, 200, "%d buffers", n);
	return n == m->L;
}

int
main(void)
{
	mem = arena_new("test");
	plans();
	files();
	check_case("cuda launches of gpt-2lane-768", launches, NULL);
	check_case("cuda attention without matrix instructions", plain_attention, NULL);
	check_case("cuda operands are the parameters of the templates", parameters, NULL);
	check_case("launches that no device takes", bad_launches, NULL);
	check_case("delta goes from dq to dk and dv", delta_matters, NULL);
	arena_free(mem);
	return summary();
}
