/* Every text of a bundle: row kernels, templates with their holes filled, names.
 *
 * One text serves every launch that needs the same one: kernels are named for
 * what they compute, equal bodies share a file, and where two different bodies
 * would have one name, the later ones add the layer where they first occur (or
 * the next number that is free). */
#include "kern.h"
#include "templates.h"

#include <string.h>

/* templates */

static const char *
template_text(const char *name)
{
	const char *text = template_find(name);

	if (!text)
		bug("emit: there is no template %s", name);
	return text;
}

typedef struct { const char *hole, *value; } Hole;

/* fill @HOLE@s; KERNEL stays for the name */
static void
fill(const char *tmpl, const char *text, const Hole *h, int n, Buf *b)
{
	const char *p, *q;
	bool used[16] = { false };
	int i;

	for (p = text; (q = strchr(p, '@')); p = strchr(q + 1, '@') + 1) {
		buf_write(b, p, (size_t)(q - p));
		if (strncmp(q, "@KERNEL@", 8) == 0) {
			buf_puts(b, "@KERNEL@");
			continue;
		}
		for (i = 0; i < n; i++)
			if (strncmp(q + 1, h[i].hole, strlen(h[i].hole)) == 0 &&
			    q[1 + strlen(h[i].hole)] == '@')
				break;
		if (i == n)
			bug("emit: template %s: unknown hole at: %.20s", tmpl, q);
		used[i] = true;
		buf_puts(b, h[i].value);
	}
	buf_puts(b, p);
	for (i = 0; i < n; i++)
		if (!used[i])
			bug("emit: template %s: hole %s is not there", tmpl, h[i].hole);
}

typedef struct { Arena *a; const Model *m; const char *text; Hole h[16]; int n; Buf name; } Fill;

/* a template that does without a hole is the same text for all its values */
static bool
has_hole(const Fill *f, const char *hole)
{
	return strstr(f->text, arena_printf(f->a, "@%s@", hole)) != NULL;
}

static void
hole_int(Fill *f, const char *hole, int x)
{
	if (!has_hole(f, hole))
		return;
	f->h[f->n++] = (Hole){ hole, arena_printf(f->a, "%d", x) };
	buf_printf(&f->name, "_%s%d", hole, x);
}

static void
hole_dt(Fill *f, const char *hole, Dt dt)
{
	if (!has_hole(f, hole))
		return;
	f->h[f->n++] = (Hole){ hole, dt_name(dt) };
	buf_printf(&f->name, "_%s", dt_name(dt));
}

static void
hole_float(Fill *f, const char *hole, double x)
{
	Buf b = {0};

	if (!has_hole(f, hole))
		return;
	float_text(&b, x);
	f->h[f->n++] = (Hole){ hole, arena_strdup(f->a, b.s) };
	buf_free(&b);
}

static void
hole_softcap(Fill *f)
{
	const Spec *s = f->m->spec;
	bool on = s->softcap != CAP_NONE, sig = s->softcap == CAP_SIGMOID;

	if (!has_hole(f, "CAP"))
		return;
	f->h[f->n++] = (Hole){ "CAP", !on ? "0" : sig ? "2" : "1" };
	buf_puts(&f->name, !on ? "" : sig ? "_sigmoid" : "_tanh");
	hole_float(f, "CAPV", on ? s->cap : 1);
	hole_float(f, "SHIFT", sig ? s->cap_shift : 0);
	hole_float(f, "TEMP", sig ? s->cap_temperature : 1);
}

static void
attn_holes(Fill *f, const Plan *p, const Step *s)
{
	static const struct { const char *name; int q, o, g; } operand[] = {
		{ "attn_fwd", 2, 0, 0 }, { "attn_bwd", 6, 12, 0 }, { "attn_bwd_dq", 3, 9, 0 },
		{ "attn_bwd_dkv", 4, 0, 0 }, { "attn_fwd_f32", 2, 0, 0 },
		{ "attn_bwd_dq_f32", 3, 9, 0 }, { "attn_bwd_dkv_f32", 4, 0, 0 },
	};
	size_t i;

	for (i = 0; strcmp(operand[i].name, s->name) != 0; i++)
		if (i + 1 == sizeof operand / sizeof *operand)
			bug("emit: no operands are known of %s", s->name);
	hole_int(f, "H", f->m->H / (p->g->v[s->val].attr[1] ? 2 : 1));
	hole_int(f, "K", f->m->K / (p->g->v[s->val].attr[1] ? 2 : 1));
	hole_int(f, "D", f->m->D);
	hole_dt(f, "DTQ", s->opd[operand[i].q].dt);
	hole_dt(f, "DTO", s->opd[operand[i].o].dt);
	hole_dt(f, "DTG", s->opd[operand[i].g].dt);
}

/* "s0[0] * F32(BF16(s1[0]))" */
static void
scale_text(const Graph *g, int v, int *n, Buf *b)
{
	const Val *x = &g->v[v];

	if (x->op == OP_MUL) {
		scale_text(g, x->arg[0], n, b);
		buf_puts(b, " * ");
		scale_text(g, x->arg[1], n, b);
	} else {
		buf_printf(b, x->op == OP_BF16 ? "F32(BF16(s%d[0]))" : "s%d[0]", *n);
		++*n;
	}
}

static void
hole_scale(Fill *f, const Plan *p, const Step *s)
{
	const Val *v = &p->g->v[s->val];
	Buf b = {0};
	int n = 0;

	scale_text(p->g, v->arg[v->op == OP_SCALED_BWD ? 2 : 1], &n, &b);
	f->h[f->n++] = (Hole){ "S", arena_strdup(f->a, b.s) };
	if (n > 1)
		buf_puts(&f->name, "_2");
	buf_free(&b);
}

/* the columns of its matrix that a gate takes: n of them, from `first` */
static void
hole_columns(Fill *f, int columns, int first, int n)
{
	if (!has_hole(f, "WN"))
		return;
	f->h[f->n++] = (Hole){ "WN", arena_printf(f->a, "%d", columns) };
	f->h[f->n++] = (Hole){ "W0", arena_printf(f->a, "%d", first) };
	if (n < columns)
		buf_printf(&f->name, "_W%d_%d", columns, first);
}

static void
hole_text(Fill *f, const char *hole, const char *text)
{
	f->h[f->n++] = (Hole){ hole, text };
}

/* what is rounded to e4m3: the head's parameter, or y as a product of type bf16 would
 * read it */
static void
quantise_holes(Fill *f, const Plan *p, const Step *s)
{
	Fp8 q = fp8_scales(p->model->spec);
	bool param = s->opd[2].kind == OPD_ARENA;

	hole_int(f, "C", (int)s->opd[0].ld);
	hole_dt(f, "DT", s->opd[2].dt);
	buf_puts(&f->name, param ? "_head" : "_y");
	hole_text(f, "X", param || s->opd[2].dt == BF16 ? "v" : "F32(BF16(v))");
	hole_float(f, "BY", (double)(param ? q.w.by : q.x.by));
}

static void
ce_targets_holes(Fill *f, const Plan *p, const Step *s)
{
	hole_int(f, "V", f->m->V);
	hole_int(f, "VP", f->m->Vp);
	hole_int(f, "TARGETS", f->m->ntarget);
	hole_dt(f, "DTL", s->opd[2].dt);
	hole_dt(f, "DTG", s->opd[1].dt);
	if (dt_fp8(s->opd[1].dt))
		hole_float(f, "K", (double)fp8_scales(p->model->spec).grad.by);
	else
		hole_text(f, "K", "scale[0]");
	hole_softcap(f);
}

/* a matrix that products read: fp32, or a copy where they see the upper half alone */
static void
hole_from(Fill *f, Dt dt)
{
	f->h[f->n++] = (Hole){ "DTW", dt_name(dt) };
	if (dt != F32)
		buf_printf(&f->name, "_of_%s", dt_name(dt));
}

static void
hole_flag(Fill *f, const char *hole, bool on, const char *name)
{
	f->h[f->n++] = (Hole){ hole, on ? "1" : "0" };
	buf_puts(&f->name, on ? name : "");
}

static void
bank_holes(Fill *f, const Step *s)
{
	const Bank *k = s->bank;
	const Param *w = &f->m->param[k->matrix[0].param];
	Buf table = {0};

	hole_int(f, "N", k->n);
	hole_int(f, "R", (int)k->rows);
	hole_int(f, "K", (int)k->cols);
	hole_dt(f, "DT", f->m->spec->gemm == F_BF16 ? BF16 : F32);
	if (has_hole(f, "CHUNK"))
		f->h[f->n++] = (Hole){ "CHUNK", arena_printf(f->a, "%ld", bank_chunk(s)) };
	if (has_hole(f, "WEIGHTS")) {
		f->h[f->n++] = (Hole){ "WEIGHTS", w->woff < 0 ? "0" : w->held == HELD_UPPER ? "2" : "1" };
		buf_puts(&f->name, w->held == HELD_UPPER ? "_upper" : "");
	}
	if (has_hole(f, "MATRICES")) {
		bank_text(f->m, s, &table);
		f->h[f->n++] = (Hole){ "MATRICES", arena_strdup(f->a, table.s) };
		buf_free(&table);
	}
}

static void
template_holes(Fill *f, const Plan *p, const Step *s)
{
	const Model *m = f->m;
	const char *t = s->name;

	if (strcmp(t, "gather") == 0) {
		hole_int(f, "C", (int)s->opd[0].ld);
		hole_dt(f, "DT", s->opd[0].dt);
	} else if (strcmp(t, "signs") == 0) {
		hole_int(f, "C", (int)s->opd[0].ld);
		hole_int(f, "N", p->g->v[s->val].attr[0]);
		hole_dt(f, "DT", s->opd[0].dt);
		hole_dt(f, "DTX", s->opd[1].dt);
	} else if (strcmp(t, "scatter") == 0) {
		hole_int(f, "C", (int)s->opd[1].ld);
		hole_dt(f, "DT", s->opd[1].dt);
	} else if (strcmp(t, "scatter_finish") == 0) {
		hole_int(f, "C", (int)s->opd[5].ld);
	} else if (strncmp(t, "attn_", 5) == 0) {
		attn_holes(f, p, s);
	} else if (strcmp(t, "ce") == 0) {
		hole_int(f, "V", m->V);
		hole_int(f, "VP", m->Vp);
		hole_dt(f, "DTG", s->opd[1].dt);
		hole_softcap(f);
	} else if (strcmp(t, "ce_targets") == 0) {
		ce_targets_holes(f, p, s);
	} else if (strcmp(t, "quantise") == 0) {
		quantise_holes(f, p, s);
	} else if (strcmp(t, "transpose8") == 0) {
		hole_int(f, "C", (int)s->opd[1].ld);
	} else if (strcmp(t, "softcap") == 0) {
		hole_int(f, "VP", m->Vp);
		hole_softcap(f);
	} else if (strcmp(t, "gate") == 0 || strcmp(t, "gate_bwd") == 0) {
		const Val *v = &p->g->v[s->val];
		int x = v->op == OP_GATE ? 1 : 3;

		hole_int(f, "H", v->width);
		hole_int(f, "N", v->attr[0]);
		hole_int(f, "C", (int)s->opd[x].ld);
		hole_columns(f, (int)s->opd[x + 1].ld, v->attr[1], v->attr[0]);
		hole_dt(f, "DT", s->opd[x].dt);
		hole_dt(f, "DTG", s->opd[0].dt);
	} else if (strcmp(t, "scaled") == 0) {
		hole_dt(f, "DT", s->opd[0].dt);
		hole_from(f, s->opd[1].dt);
		hole_scale(f, p, s);
	} else if (strcmp(t, "scaled_bwd") == 0) {
		hole_from(f, s->opd[3].dt);
		hole_scale(f, p, s);
	} else if (strcmp(t, "adamw") == 0 || strcmp(t, "cautious_adam") == 0) {
		hole_flag(f, "WEIGHTS", s->acc, "_bf16");
		hole_flag(f, "HELD", s->held, "_held");
		hole_flag(f, "TIED", s->tied, "_tied");
	} else if (s->bank) {
		bank_holes(f, s);
	}
}

/* texts */

static int
text_new(Bundle *b, const char *base, const char *body, const char *site, int sub)
{
	Text *t;
	int i;

	for (i = 0; i < b->ntext; i++)
		if (strcmp(b->text[i].body, body) == 0 &&
		    strcmp(b->text[i].base, base) == 0)
			break;
	if (i == b->ntext) {
		t = PUSH(b->mem, b->text, b->ntext, b->captext);
		memset(t, 0, sizeof *t);
		t->base = arena_strdup(b->mem, base);
		t->body = arena_strdup(b->mem, body);
		t->firstsub = sub;
	}
	t = &b->text[i];
	*PUSH(b->mem, t->site, t->nsite, t->capsite) = site;
	return i;
}

static void
template_fill(Bundle *b, Fill *f, const Plan *p, const Step *s, Buf *body)
{
	const char *threads = arena_printf(b->mem, "%d", s->threads);

	f->text = template_text(arena_printf(b->mem, "%s/%s",
	                        b->target == TO_CUDA ? "cuda" : "cpu", s->name));
	buf_puts(&f->name, s->name);
	buf_puts(&f->name, "_");
	template_holes(f, p, s);
	if (f->name.s[f->name.len - 1] == '_')
		f->name.s[--f->name.len] = 0;
	if (has_hole(f, "THREADS"))
		f->h[f->n++] = (Hole){ "THREADS", threads };
	fill(s->name, f->text, f->h, f->n, body);
}

static void
step_text(Bundle *b, const Plan *p, Step *s)
{
	Fill f = { .a = b->mem, .m = b->model };
	const Model *m = b->model;
	Buf body = {0};
	Arena *a;
	Kern *k;

	switch (s->kind) {
	case STEP_GEMM:
	case STEP_ZERO:
	case STEP_COPY:
		return;
	case STEP_ROW:
		a = arena_new("kern");
		k = lower(a, p, s);
		kern_verify(k);
		if (b->dump_kern)
			kern_print(k, stdout);
		if (b->target == TO_CUDA)
			emit_cuda(k, &body);
		else
			emit_kern(k, &body);
		arena_free(a);
		buf_printf(&f.name, "%s__n%d_C%d_%s", s->name, m->n, m->C,
		           m->spec->storage == F_BF16 ? "bf16" : "f32");
		break;
	case STEP_TEMPLATE:
		template_fill(b, &f, p, s, &body);
		break;
	case STEP_TAIL:
		emit_tail(p, s, &body);
		buf_printf(&f.name, "coef_grads__n%d", m->n);
		break;
	}
	s->text = text_new(b, f.name.s, body.s, s->site, s->sub);
	b->text[s->text].threads = s->threads;
	b->text[s->text].smem = s->smem;
	buf_free(&body);
	buf_free(&f.name);
}

/* equal base names with different bodies: the later ones say where they are */
static void
name_texts(Bundle *b)
{
	Text *t;
	const char *dims;
	int i, j, layer;

	for (i = 0; i < b->ntext; i++) {
		t = &b->text[i];
		t->name = t->base;
		for (j = 0; j < i; j++)
			if (strcmp(b->text[j].base, t->base) == 0)
				break;
		if (j == i)
			continue;
		dims = strstr(t->base, "__");
		layer = t->firstsub / 2;
		for (;; layer++) {
			t->name = arena_printf(b->mem, "%.*s_at%d%s",
			        dims ? (int)(dims - t->base) : (int)strlen(t->base),
			        t->base, layer, dims ? dims : "");
			for (j = 0; j < i; j++)
				if (strcmp(b->text[j].name, t->name) == 0)
					break;
			if (j == i)
				break;
		}
	}
}

/* the helpers of prelude.c that a text uses */
static void
prelude_text(const char *body, Buf *b)
{
	static const struct { const char *name, *needs; } helper[] = {
		{ "hc_expf", "hc_expf(hc_tanhf(hc_sigmoidf(" },
		{ "hc_tanhf", "hc_tanhf(" },
		{ "hc_sigmoidf", "hc_sigmoidf(" },
	};
	const char *pre = template_text("cpu/prelude"), *p, *q, *end;
	size_t i;
	char key[64];

	/* types and rounding come first, up to the blank line behind ST_bf16 */
	end = strstr(pre, "#define ST_bf16");
	end = end ? strstr(end, "\n\n") : NULL;
	p = strstr(pre, "typedef union { void *p");
	if (!end || !p)
		bug("emit: prelude.c has no storage types");
	buf_puts(b, "// from templates/cpu/prelude.c\n");
	buf_write(b, p, (size_t)(end + 1 - p));
	buf_puts(b, "#define RELU(x) ((x) > 0.f ? (x) : 0.f)\n"
	         "#define STEP(x) ((x) > 0.f ? 1.f : 0.f)\n");
	for (i = 0; i < sizeof helper / sizeof *helper; i++) {
		bool used = false;

		for (q = helper[i].needs; *q; q = strchr(q, '(') + 1) {
			snprintf(key, sizeof key, "%.*s", (int)(strchr(q, '(') + 1 - q), q);
			used |= strstr(body, key) != NULL;
		}
		if (!used)
			continue;
		snprintf(key, sizeof key, "HC float %s(", helper[i].name);
		p = strstr(pre, key);
		q = p ? strstr(p, "\n}\n") : NULL;
		if (!q)
			bug("emit: prelude.c has no %s", helper[i].name);
		buf_puts(b, "\n");
		buf_write(b, p, (size_t)(q + 3 - p));
	}
	buf_puts(b, "// end\n\n");
}

/* A chunk of templates/cuda/prelude_*.cuh: what follows a line
 * "//% exports: WORD…", pasted into the texts that use one of the words. */
typedef struct { const char *file, *exports, *text; size_t nexports, n; bool used; } Chunk;

enum { MaxChunks = 96 };

static int
prelude_chunks(Chunk *c)
{
	const char *p, *end;
	int i, n = 0;

	for (i = 0; i < ntemplates; i++) {
		if (strncmp(templates[i].name, "cuda/prelude_", 13) != 0)
			continue;
		for (p = strstr(templates[i].text, "//%"); p; p = strstr(end, "//%")) {
			if (n == MaxChunks)
				bug("emit: more than %d chunks in the preludes", n);
			c[n].file = templates[i].name;
			c[n].exports = strstr(p, "exports:") + 8;
			c[n].nexports = strcspn(c[n].exports, ";\n");
			c[n].text = strchr(p, '\n') + 1;
			end = c[n].text;
			p = strstr(end, "//%");
			c[n].n = p ? (size_t)(p - end) : strlen(end);
			n++;
		}
	}
	return n;
}

static bool
word_char(int c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* does a word of chunk c stand in the text? */
static bool
uses_chunk(const Chunk *c, const char *text, size_t n)
{
	const char *w = c->exports, *end = w + c->nexports, *p;
	size_t len;
	char word[64];

	for (; w < end; w += len) {
		w += strspn(w, " ");
		len = strcspn(w, " ;\n");
		if (len == 0 || len >= sizeof word || w >= end)
			break;
		memcpy(word, w, len);
		word[len] = 0;
		for (p = text; (p = strstr(p, word)) && p < text + n; p += len)
			if ((p == text || !word_char(p[-1])) && !word_char(p[len]))
				return true;
	}
	return false;
}

/* the chunks that a text needs, and those that they need */
static void
prelude_cuda(const char *body, Buf *b)
{
	Chunk c[MaxChunks] = { 0 };
	int n = prelude_chunks(c), i, j;
	const char *file = "";
	bool more = true;

	for (i = 0; i < n; i++)
		c[i].used = uses_chunk(&c[i], body, strlen(body));
	while (more)
		for (more = false, i = 0; i < n; i++)
			for (j = 0; j < n && !c[i].used; j++)
				if (c[j].used && uses_chunk(&c[i], c[j].text, c[j].n))
					more = c[i].used = true;
	for (i = 0; i < n; i++) {
		if (!c[i].used)
			continue;
		if (strcmp(file, c[i].file) != 0)
			buf_printf(b, "// from templates/%s.cuh\n", c[i].file);
		file = c[i].file;
		buf_write(b, c[i].text, c[i].n);
	}
	buf_puts(b, "// end\n\n");
}

static void
sites_text(const Text *t, Buf *b)
{
	int i, j, shown = 0;

	for (i = 0; i < t->nsite; i++) {
		for (j = 0; j < i; j++)
			if (strcmp(t->site[j], t->site[i]) == 0)
				break;
		if (j < i)
			continue;
		if (shown++ == 24) {
			buf_puts(b, "//           …\n");
			return;
		}
		buf_printf(b, "// %-9s %s\n", shown > 1 ? "" : "sites", t->site[i]);
	}
}

static void
file_text(Bundle *b, Text *t, bool row)
{
	const char *p, *q;
	Buf f = {0};

	buf_printf(&f, "// %s\n// emitted by hcgen, format 1\n", t->name);
	sites_text(t, &f);
	if (row || b->target == TO_CUDA) {
		/* the comment that a text begins with stays at the top */
		for (p = t->body; *p == '/'; p = strchr(p, '\n') + 1)
			;
		buf_write(&f, t->body, (size_t)(p - t->body));
		buf_puts(&f, "\n");
		p += *p == '\n';
		if (b->target == TO_CUDA)
			prelude_cuda(p, &f);
		else
			prelude_text(t->body, &f);
	} else {
		buf_puts(&f, "\n// from templates/cpu/prelude.c\n");
		buf_puts(&f, template_text("cpu/prelude"));
		if (strstr(t->body, "f8e4m3 *") || strstr(t->body, "f8e5m2 *"))
			buf_puts(&f, template_text("cpu/fp8"));
		buf_puts(&f, "// end\n\n");
		p = t->body;
	}
	for (; (q = strstr(p, "@KERNEL@")); p = q + 8) {
		buf_write(&f, p, (size_t)(q - p));
		buf_puts(&f, t->name);
	}
	buf_puts(&f, p);
	t->file = arena_strdup(b->mem, f.s);
	buf_free(&f);
}

void
emit_texts(Bundle *b)
{
	bool *row;
	Plan *p;
	int i, j;

	for (i = 0; i < b->nplan; i++) {
		p = b->plan[i];
		for (j = 0; j < p->nstep; j++)
			step_text(b, p, &p->step[j]);
	}
	row = NEWN(b->mem, bool, b->ntext);
	for (i = 0; i < b->nplan; i++)
		for (j = 0; j < b->plan[i]->nstep; j++)
			if (b->plan[i]->step[j].kind == STEP_ROW ||
			    b->plan[i]->step[j].kind == STEP_TAIL)
				row[b->plan[i]->step[j].text] = true;
	name_texts(b);
	for (i = 0; i < b->ntext; i++)
		file_text(b, &b->text[i], row[i]);
}
