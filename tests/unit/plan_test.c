/* fuse.c, steps.c, mem.c: the plan, run step by step in its own arena with
 * dead bytes poisoned, gives what the graph gives; and what is broken on
 * purpose is noticed.
 *
 * Results are exact: a plan in double computes the very sums of the graph.
 * Two sums are in another order and agree to 1e-12 of the gradient: that of
 * the head where its logits come in chunks, and that of a tied embedding,
 * whose two terms are added row by row. */
#include "test.h"

/* plans */

static Graph *
simplified(const Model *m, int mode)
{
	Graph *g = mode == GRAPH_TRAIN ? train_graph(m, m->T) :
	           graph_build(mem, m, mode, m->T);

	return simplify(mem, g);
}

static Plan *
plan_of(const Model *m, int mode)
{
	Plan *p = fuse(mem, simplified(m, mode), TO_CPU);

	plan_verify(p);
	mem_place(p);
	mem_verify(p);
	return p;
}

typedef struct { int spec, mode, nset; const char *set[4]; } Variant;

static Model *
variant_model(const Variant *v)
{
	return model_set(spec_text[v->spec].name, spec_text[v->spec].yaml, v->nset, v->set);
}

/* the bound for one result: see above */
static double
bound_of(const Model *m, int param)
{
	bool chunks = m->spec->head_chunk && m->spec->head_chunk < m->T;

	if (param >= 0 && param == m->head && (chunks || m->spec->tied))
		return 1e-12;
	return 0;
}

/* do two runs agree in all results?  err: the first that does not */
static bool
runs_agree(const Interp *a, const Interp *b, char err[200])
{
	const Model *m = a->g->model;
	double d;
	int i;

	if (a->g->loss >= 0 && a->x[a->g->loss][0] != b->x[b->g->loss][0]) {
		snprintf(err, 200, "loss %.17g, of the graph %.17g", a->x[a->g->loss][0],
		         b->x[b->g->loss][0]);
		return false;
	}
	if (a->g->logits >= 0 && memcmp(a->x[a->g->logits], b->x[b->g->logits],
	    (size_t)(a->in->T * m->Vp) * sizeof(double)) != 0) {
		snprintf(err, 200, "logits");
		return false;
	}
	for (i = 0; i < m->nparam; i++) {
		d = distance(a->grad[i], b->grad[i], m->param[i].n,
		             norm2(b->grad[i], m->param[i].n));
		if (d <= bound_of(m, i))
			continue;
		snprintf(err, 200, "gradient of %s differs by %.3g", m->param[i].name, d);
		return false;
	}
	return true;
}

static bool
plan_agrees(const Plan *p, const Inputs *in, char err[200])
{
	Interp *a = interp_plan(p, in), *b = results_of(p->g, in);
	bool ok = runs_agree(a, b, err);

	interp_free(a);
	interp_free(b);
	return ok;
}

static bool
one_plan(void *arg, char err[200])
{
	const Variant *v = arg;
	const Model *m = variant_model(v);
	Plan *p = plan_of(m, v->mode);
	Inputs in = inputs_random(m, m->T);

	return plan_agrees(p, &in, err);
}

static void
plans(void)
{
	static const char *const mode[] = { "train", "eval", "logits" };
	static const Variant how[] = {
		{ 0, 0, 0, { NULL } },
		{ 0, 0, 1, { "plan.head_chunk=7" } },
		{ 0, 0, 2, { "numerics.storage=bf16", "numerics.gemm=bf16" } },
		{ 0, 0, 1, { "numerics.storage=bf16" } },
		{ 0, 0, 1, { "numerics.gemm=bf16" } },
	};
	static const char *const what[] = { "", ", head in chunks", ", bf16", ", bf16 storage", ", bf16 gemm" };
	char name[120];
	Variant v;
	size_t k;
	int i, j;

	for (i = 0; i < NSpecs; i++)
		for (j = 0; j < 3; j++)
			for (k = 0; k < sizeof how / sizeof *how; k++) {
				v = how[k];
				v.spec = i;
				v.mode = j;
				if (k > 1 && (i + j) % 3 != (int)k % 3)
					continue;       /* a third of them */
				snprintf(name, sizeof name, "plan of %s, %s%s", spec_text[i].name,
				         mode[j], what[k]);
				check_case(name, one_plan, &v);
			}
}

/* wide ones: eight lanes with everything learned, the width of a real model */
static const struct { const char *name, *yaml; } wide[] = {
	{ "eight lanes", "model: {layers: 2, width: 64, heads: 4, vocab: 50, init: {out: random}}\n"
	  "hc: {lanes: 8, res: {learned: true, init: 0.125}, pre: {learned: true}, post: {learned: true}, "
	  "output: learned, lane_init: {learned: true}, resid_lambda: {granularity: lane}, "
	  "sources: {x0: {kind: x0}, e: {kind: bigram, rows: 33}}}\n"
	  TRAIN(64, 32) },
	{ "width 768", "model: {layers: 1, width: 768, heads: 6, vocab: 300, norm_weight: true, "
	  "init: {out: random}}\nhc: {lanes: 2, post: {learned: true}}\n" TRAIN(16, 8) },
	{ "many layers", "model: {layers: 12, width: 32, heads: 2, vocab: 40, init: {out: random}}\n"
	  "hc: {lanes: 3, layers: {first: 2, last: 8}, res: {learned: true}, post: {learned: true}, "
	  "skips: {s: {from: {sublayer: 3}, to: {sublayer: 20}, gate: 0.5}}}\n" TRAIN(32, 16) },
};

static bool
one_wide(void *arg, char err[200])
{
	int i = *(int *)arg;
	const Model *m = model_of(wide[i].name, wide[i].yaml);
	Inputs in = inputs_random(m, m->T);

	return plan_agrees(plan_of(m, GRAPH_TRAIN), &in, err);
}

/* breaking the memory */

static Plan *
copied(const Plan *p)
{
	Plan *q = NEW(mem, Plan);

	*q = *p;
	q->buf = NEWN(mem, Buffer, p->nbuf);
	memcpy(q->buf, p->buf, (size_t)p->nbuf * sizeof *p->buf);
	return q;
}

/* workspaces and what the interpreter computes anew */
static bool
never_read(const Plan *p, int b)
{
	const Val *v = p->buf[b].val < 0 ? NULL : &p->g->v[p->buf[b].val];

	if (strcmp(p->buf[b].name, "attn_bwd workspace") == 0 ||
	    strcmp(p->buf[b].name, "delta") == 0 || strcmp(p->buf[b].name, "lse") == 0)
		return true;
	return v && v->op == OP_OUT && v->attr[0] == 1 && p->g->v[v->arg[0]].op == OP_ATTN;
}

/* one buffer dies a step early, or is born a step late: the results change */
static bool
short_lives(void *arg, char err[200])
{
	const Model *m = variant_model(arg);
	Plan *p = plan_of(m, GRAPH_TRAIN), *q;
	Inputs in = inputs_random(m, m->T);
	Interp *good = results_of(p->g, &in), *bad;
	int b, k, n = 0;
	char what[200];
	bool same;

	for (b = 0; b < p->nbuf; b++)
		for (k = 0; k < 2; k++) {
			if (p->buf[b].first == p->buf[b].last || never_read(p, b))
				continue;
			q = copied(p);
			*(k ? &q->buf[b].last : &q->buf[b].first) += k ? -1 : 1;
			mem_place(q);
			bad = interp_plan(q, &in);
			same = runs_agree(bad, good, what);
			interp_free(bad);
			n++;
			if (!same)
				continue;
			snprintf(err, 200, "buffer %d (%s) lives %d..%d, yet a %s goes unnoticed", b,
			         p->buf[b].name, p->buf[b].first, p->buf[b].last,
			         k ? "step less" : "late birth");
			return false;
		}
	snprintf(err, 200, "%d lives tried", n);
	return n > 30;
}

static int
rival(const Plan *p, int b)
{
	int i;

	for (i = 0; i < p->nbuf; i++)
		if (i != b && p->buf[i].first <= p->buf[b].last && p->buf[b].first <= p->buf[i].last)
			return i;
	return -1;
}

static void
verify_memory(void *p)
{
	mem_verify(p);
}

/* every buffer laid over another that is alive (whole, or over its last bytes),
 * beyond the end, or askew */
static bool
overlaps(void *arg, char err[200])
{
	Plan *p = plan_of(variant_model(arg), GRAPH_TRAIN), *q;
	Child c;
	int b, k, r;

	for (b = 0; b < p->nbuf; b++)
		for (k = 0; k < 4; k++) {
			if ((r = rival(p, b)) < 0)
				continue;
			q = copied(p);
			q->acts_nbytes *= k == 3 ? 2 : 1;
			q->buf[b].off = k == 0 ? p->buf[r].off : k == 1 ?
			                p->acts_nbytes / 256 * 256 : k == 2 ?
			                p->buf[b].off + 128 :
			                p->buf[r].off + (p->buf[r].nbytes - 1) / 256 * 256;
			c = child(verify_memory, q);
			if (c.rc == EX_BUG)
				continue;
			snprintf(err, 200, "buffer %d (%s) at %zu of %zu: exit %d", b, p->buf[b].name,
			         q->buf[b].off, p->acts_nbytes, c.rc);
			return false;
		}
	return true;
}

/* breaking the kernels */

static bool
listed(const int *v, int n, int x)
{
	int i;

	for (i = 0; i < n && v[i] != x; i++)
		;
	return i < n;
}

typedef struct { Plan *p; const Inputs *in; const Interp *good; bool differs; } Broken;

static void
run_plan(void *arg)
{
	Broken *b = arg;
	char err[200];

	plan_verify(b->p);
	if (!runs_agree(interp_plan(b->p, b->in), b->good, err))
		bug("%s", err);
}

static void
drop(int *v, int *n, int i)
{
	memmove(v + i, v + i + 1, (size_t)(*n - 1 - i) * sizeof *v);
	--*n;
}

/* A kernel that does not declare what it reads, or does not store what it
 * should.  A row value that it does not declare may be computed anew from what
 * it does; then the result is the same and there is nothing to catch. */
static bool
undeclared(void *arg, char err[200])
{
	const Model *m = variant_model(arg);
	Plan *p = plan_of(m, GRAPH_TRAIN);
	Inputs in = inputs_random(m, m->T);
	Broken b = { .p = p, .in = &in };
	RowKernel *k, saved;
	int i, j, n = 0, out_;
	OpClass class;
	Child c;

	b.good = results_of(p->g, &in);
	for (i = 0; i < p->nstep; i++) {
		if (!(k = p->step[i].row))
			continue;
		saved = *k;
		for (j = 0; j < saved.nin + saved.nroot; j++) {
			out_ = j >= saved.nin;
			class = op_info[p->g->v[out_ ? saved.root[j - saved.nin] : saved.in[j]].op].class;
			if (!out_ && class != CL_HEAVY && class != CL_LEAF)
				continue;
			k->in = NEWN(mem, int, saved.nin + 1);
			k->root = NEWN(mem, int, saved.nroot + 1);
			memcpy(k->in, saved.in, (size_t)saved.nin * sizeof(int));
			memcpy(k->root, saved.root, (size_t)saved.nroot * sizeof(int));
			if (out_)
				drop(k->root, &k->nroot, j - saved.nin);
			else
				drop(k->in, &k->nin, j);
			c = child(run_plan, &b);
			*k = saved;
			n++;
			if (c.rc == EX_BUG)
				continue;
			snprintf(err, 200, "%s without its %s %d: exit %d", p->step[i].site,
			         out_ ? "root" : "input", out_ ? j - saved.nin : j, c.rc);
			return false;
		}
	}
	snprintf(err, 200, "%d tried", n);
	return n > 30;
}

static void
verify_plan(void *p)
{
	plan_verify(p);
}

/* Is value v of step i read by a kernel behind it, and by no heavy step before
 * that?  (The verifier takes what a heavy step names as made.) */
static bool
read_later(const Plan *p, int i, int v)
{
	const Step *s;
	int j;

	for (i++; i < p->nstep; i++) {
		s = &p->step[i];
		if (s->row && listed(s->row->in, s->row->nin, v))
			return true;
		for (j = 0; j < s->nopd; j++)
			if (s->opd[j].kind == OPD_BUF && s->opd[j].id == p->bufof[v])
				return false;
	}
	return false;
}

/* the verifier alone: what a later kernel reads and nobody stores */
static bool
never_stored(void *arg, char err[200])
{
	Plan *p = plan_of(variant_model(arg), GRAPH_TRAIN);
	RowKernel *k, saved;
	int i, j, n = 0;
	Child c;

	for (i = 0; i < p->nstep; i++)
		for (j = 0; p->step[i].row && j < p->step[i].row->nroot; j++) {
			k = p->step[i].row;
			saved = *k;
			if (!read_later(p, i, k->root[j]))
				continue;
			k->root = NEWN(mem, int, saved.nroot);
			memcpy(k->root, saved.root, (size_t)saved.nroot * sizeof(int));
			drop(k->root, &k->nroot, j);
			c = child(verify_plan, p);
			*k = saved;
			n++;
			if (c.rc == EX_BUG)
				continue;
			snprintf(err, 200, "%s does not store %%%d: exit %d", p->step[i].site,
			         k->root[j], c.rc);
			return false;
		}
	snprintf(err, 200, "%d tried", n);
	return n > 4;
}

static void
breaking(void)
{
	static const int spec[] = { 3, 6, 7, 2 };
	char name[120];
	Variant v = {0};
	int i, k;

	for (i = 0; i < 4; i++)
		for (k = 0; k < 2; k++) {
			v.spec = spec[i];
			v.nset = k;
			v.set[0] = "numerics.storage=bf16";
			snprintf(name, sizeof name, "short lives are seen: %s%s",
			         spec_text[spec[i]].name, k ? ", bf16 storage" : "");
			check_case(name, short_lives, &v);
			if (k)
				continue;
			snprintf(name, sizeof name, "overlaps are seen: %s", spec_text[spec[i]].name);
			check_case(name, overlaps, &v);
			snprintf(name, sizeof name, "undeclared reads, missing stores: %s",
			         spec_text[spec[i]].name);
			check_case(name, undeclared, &v);
			snprintf(name, sizeof name, "stores that the verifier misses: %s",
			         spec_text[spec[i]].name);
			check_case(name, never_stored, &v);
		}
}

/* bytes */

/* used: by value, its channels that are read */
typedef struct { const Plan *p; const RowKernel *k; bool *seen, **used; int bad; } Walk;

/* what the definition of v reads: marks inputs, or the value that is not one;
 * of v the channels from lo on that its user takes */
static void
walk(Walk *w, int v, bool top, int lo, int n)
{
	const Val *x = &w->p->g->v[v];
	OpClass class = op_info[x->op].class;
	int j, a;

	if (!top && listed(w->k->in, w->k->nin, v)) {
		for (j = lo; j < lo + n; j++)
			w->used[v][j] = true;
		return;
	}
	if (w->seen[v])
		return;
	w->seen[v] = true;
	if (class == CL_HEAVY || x->op == OP_OUT)
		w->bad = v;
	for (j = 0; j < op_info[x->op].arity; j++) {
		a = x->arg[j];
		if (x->op == OP_SLICE)
			walk(w, a, false, x->attr[0], x->width);
		else
			walk(w, a, false, 0, w->p->g->v[a].width);
	}
}

static int
count_of(const bool *b, int n)
{
	int i, k = 0;

	for (i = 0; i < n; i++)
		k += b[i];
	return k;
}

/* bytes of a row kernel, from its definition; -1: it reads what it does not
 * declare, or declares what it does not read */
static double
bytes_of(const Plan *p, const RowKernel *k, char err[200])
{
	Walk w = { p, k, NEWN(mem, bool, p->g->n), NEWN(mem, bool *, p->g->n), -1 };
	static const int size[] = { 4, 2, 8, 4 };       /* F32 BF16 F64 I32 */
	const Val *v;
	double n = 0;
	int i, c;

	for (i = 0; i < k->nin; i++)
		w.used[k->in[i]] = NEWN(mem, bool, p->g->v[k->in[i]].width + 1);
	for (i = 0; i < k->nroot; i++) {
		walk(&w, k->root[i], true, 0, 0);
		v = &p->g->v[k->root[i]];
		if (v->op != OP_SUMR)
			n += (double)p->T * v->width * size[p->dt[k->root[i]]];
		else
			n += 64. * 4 * v->width;
	}
	for (i = 0; i < k->nin; i++) {
		c = count_of(w.used[k->in[i]], p->g->v[k->in[i]].width);
		n += (double)p->T * c * size[p->dt[k->in[i]]];
		if (c)
			continue;
		snprintf(err, 200, "input %%%d is not read", k->in[i]);
		return -1;
	}
	if (w.bad < 0)
		return n;
	snprintf(err, 200, "reads %%%d, which is no input", w.bad);
	return -1;
}

/* the text says the same bytes as the step */
static double
bytes_of_kern(const Plan *p, Step *s)
{
	Kern *k = lower(mem, p, s);
	double n = (double)p->T * (k->row_read + k->row_write);
	int i;

	kern_verify(k);
	for (i = 0; i < s->row->nroot; i++)
		if (p->g->v[s->row->root[i]].op == OP_SUMR)
			n += 256. * p->g->v[s->row->root[i]].width;
	return n;
}

static bool
one_bytes(void *arg, char err[200])
{
	const Variant *v = arg;
	Plan *p = plan_of(variant_model(v), v->mode);
	Step *s;
	double n, k;
	int i;

	for (i = 0; i < p->nstep; i++) {
		s = &p->step[i];
		if (!s->row)
			continue;
		n = bytes_of(p, s->row, err);
		if (n < 0)
			return false;
		k = bytes_of_kern(p, s);
		if (n == s->nbytes && k == n)
			continue;
		snprintf(err, 200, "%s: %.0f bytes, of its text %.0f, of its values %.0f", s->site,
		         s->nbytes, k, n);
		return false;
	}
	return true;
}

static void
bytes(void)
{
	char name[120];
	Variant v = { 0, 0, 1, { "numerics.storage=bf16" } };
	int i;

	for (i = 0; i < NSpecs; i++)
		for (v.mode = 0; v.mode < 3; v.mode++) {
			v.spec = i;
			v.nset = (i + v.mode) % 2;
			snprintf(name, sizeof name, "bytes of %s, mode %d", spec_text[i].name, v.mode);
			check_case(name, one_bytes, &v);
		}
}

/* memory */

static size_t
peak(const Plan *p)
{
	size_t most = 0, n;
	int i, b;

	for (i = 0; i < p->nstep; i++) {
		for (n = 0, b = 0; b < p->nbuf; b++)
			if (p->buf[b].first <= i && i <= p->buf[b].last)
				n += p->buf[b].nbytes;
		most = n > most ? n : most;
	}
	return most;
}

static const char big[] =
	"model: {layers: 11, width: 768, heads: 6, vocab: 50257, softcap: 15}\n"
	"hc: {lanes: %d, post: {learned: true}, resid_lambda: {granularity: sublayer}, "
	"sources: {x0: {kind: x0}}}\n"
	"train: {tokens_per_step: 16384, seq_len: 1024}\n";

static bool
tight(void *arg, char err[200])
{
	int lanes = *(int *)arg, mode;
	const Model *m = model_of("big", arena_printf(mem, big, lanes));
	Plan *p;
	double r;

	for (mode = 0; mode < 3; mode++) {
		p = plan_of(m, mode);
		r = (double)p->acts_nbytes / (double)peak(p);
		snprintf(err, 200, "%s: %zu bytes for a peak of %zu: %.3f", p->prog, p->acts_nbytes,
		         peak(p), r);
		if (r < 1 || r > 1.25)
			return false;
	}
	return true;
}

static bool
never_below_peak(void *arg, char err[200])
{
	Plan *p = plan_of(variant_model(arg), ((Variant *)arg)->mode);

	snprintf(err, 200, "%zu bytes for a peak of %zu", p->acts_nbytes, peak(p));
	return p->acts_nbytes >= peak(p);
}

static void
memory(void)
{
	static const int lanes[] = { 1, 2, 4 };
	char name[120];
	Variant v = {0};
	int i, n;

	for (i = 0; i < NSpecs; i++) {
		v.spec = i;
		v.mode = i % 3;
		snprintf(name, sizeof name, "memory of %s", spec_text[i].name);
		check_case(name, never_below_peak, &v);
	}
	for (i = 0; i < 3; i++) {
		n = lanes[i];
		snprintf(name, sizeof name, "11 layers of width 768, %d lanes: within 1.25 of the peak", n);
		check_case(name, tight, &n);
	}
}

/* same spec, same bytes */

static char *
whole_text(const Model *m)
{
	Bundle *b = generate(mem, m, TO_CPU, "");
	Buf t = {0};
	char *s;
	int i;

	for (i = 0; i < b->ntext; i++)
		buf_printf(&t, "%s\n%s", b->text[i].name, b->text[i].file);
	manifest(b, &t);
	report(b, &t);
	s = arena_strdup(mem, t.s);
	buf_free(&t);
	return s;
}

static bool
twice(void *arg, char err[200])
{
	const Model *m = variant_model(arg), *again = variant_model(arg);
	const char *a = whole_text(m), *b = whole_text(again);
	Spec named = *again->spec;
	Buf canon = {0};
	size_t i;

	named.name = m->spec->name;     /* the file's stem is another */
	(void)arena_alloc(mem, 12345);  /* other addresses */
	for (i = 0; a[i] && a[i] == b[i]; i++)
		;
	snprintf(err, 200, "byte %zu: %.40s | %.40s", i, a + i, b + i);
	if (a[i] || b[i])
		return false;
	spec_print(&named, &canon);
	b = whole_text(model_of("canonical", canon.s));
	for (i = 0; a[i] && a[i] == b[i]; i++)
		;
	snprintf(err, 200, "from the canonical spec, byte %zu: %.40s | %.40s", i, a + i, b + i);
	return !a[i] && !b[i];
}

static void
same_bytes(void)
{
	char name[120];
	Variant v = { 0, 0, 1, { "name=same" } };
	int i;

	for (i = 0; i < NSpecs; i++) {
		v.spec = i;
		snprintf(name, sizeof name, "emitted twice: %s", spec_text[i].name);
		check_case(name, twice, &v);
	}
}

int
main(void)
{
	int i;
	char name[80];

	mem = arena_new("test");
	plans();
	for (i = 0; i < (int)(sizeof wide / sizeof *wide); i++) {
		snprintf(name, sizeof name, "plan of %s", wide[i].name);
		check_case(name, one_wide, &i);
	}
	breaking();
	bytes();
	memory();
	same_bytes();
	arena_free(mem);
	return summary();
}
