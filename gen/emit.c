/* Kern -> text, and the other texts: templates with their holes filled, and
 * the kernel of coefficient gradients.  Prints; decides nothing.
 *
 * One text serves every launch that needs the same one: kernels are named for
 * what they compute, equal bodies share a file, and where two different bodies
 * would have one name, the later ones add the layer where they first occur. */
#include "kern.h"
#include "templates.h"

#include <stdlib.h>
#include <string.h>

void
float_text(Buf *b, double x)
{
	char s[40];
	int digits;

	for (digits = 1; digits < 9; digits++) {
		snprintf(s, sizeof s, "%.*g", digits, x);
		if ((float)x == strtof(s, NULL))
			break;
	}
	snprintf(s, sizeof s, "%.*g", digits, x);
	buf_printf(b, "%s%sf", s, strpbrk(s, ".en") ? "" : ".");
}

/* a pointwise op as a reader writes it */
void
point_text(Op op, const char *x, const char *y, Buf *b)
{
	switch ((int)op) {
	case OP_ADD:
		buf_printf(b, "%s + %s", x, y);
		break;
	case OP_SUB:
		buf_printf(b, "%s - %s%s%s", x, strpbrk(y, " ") ? "(" : "", y,
		           strpbrk(y, " ") ? ")" : "");
		break;
	case OP_MUL:
		buf_printf(b, "%s%s%s*%s%s%s", strpbrk(x, " ") ? "(" : "", x,
		           strpbrk(x, " ") ? ")" : "", strpbrk(y, " ") ? "(" : "", y,
		           strpbrk(y, " ") ? ")" : "");
		break;
	case OP_NEG:
		buf_printf(b, "-%s%s%s", strpbrk(x, " ") ? "(" : "", x,
		           strpbrk(x, " ") ? ")" : "");
		break;
	default:
		buf_printf(b, "%s(%s)", op_info[op].name, x);
		break;
	}
}

/* C, precedence-aware: level 0 sum, 1 product, 2 atom */

static const char *
c_function(Op op)
{
	switch ((int)op) {
	case OP_RECIP:
		return "1.f / ";
	case OP_RSQRT:
		return "1.f / __builtin_sqrtf";
	case OP_EXP:
		return "hc_expf";
	case OP_TANH:
		return "hc_tanhf";
	case OP_SIGMOID:
		return "hc_sigmoidf";
	case OP_RELU:
		return "RELU";
	case OP_STEP:
		return "STEP";
	default:
		return NULL;
	}
}

static bool
idx_zero(Idx i)
{
	return !i.base && !i.h && !i.d;
}

static void
idx_text(Idx i, const char *row, Buf *b)
{
	const char *sep = "";

	if (row) {
		buf_puts(b, row);
		sep = " + ";
	}
	if (i.base < 0) {
		buf_printf(b, "%s%d", row ? " - " : "-", -i.base);
		sep = " + ";
	} else if (i.base > 0) {
		buf_printf(b, "%s%d", sep, i.base);
		sep = " + ";
	}
	if (i.h) {
		buf_puts(b, sep);
		if (i.h != 1)
			buf_printf(b, "%d*", i.h);
		buf_puts(b, "head");
		sep = " + ";
	}
	if (i.d) {
		buf_puts(b, sep);
		if (i.d != 1)
			buf_printf(b, "%d*", i.d);
		buf_puts(b, "c");
		sep = " + ";
	}
	if (idx_zero(i) && !row)
		buf_puts(b, "0");
}

static void
load_text(const Kern *k, const Exp *e, Buf *b)
{
	const Par *p = &k->par[e->par];
	char row[64];
	const char *t = e->kind == X_SHIFT ? e->name : p->kind == P_TABLE ? "t%seq" : "t";

	if (p->kind == P_TABLE)
		snprintf(row, sizeof row, "t %% %d*%ld", k->plan->model->seq, p->width);
	else if (p->width == 1)
		snprintf(row, sizeof row, "%s", t);
	else
		snprintf(row, sizeof row, "%s*%ld", t, p->width);
	if (e->kind == X_SHIFT)
		buf_printf(b, "(%s < 0 ? 0.f : ", e->name);
	buf_printf(b, "%s%s[", p->dt == BF16 ? "F32(" : "", p->name);
	idx_text(e->idx, row, b);
	buf_printf(b, "]%s", p->dt == BF16 ? ")" : "");
	if (e->kind == X_SHIFT)
		buf_puts(b, ")");
}

static void
exp_text(const Kern *k, const Exp *e, int level, Buf *b)
{
	const char *f;
	int own;

	switch (e->kind) {
	case X_NUM:
		if (e->num < 0)
			buf_puts(b, "(");
		float_text(b, e->num);
		if (e->num < 0)
			buf_puts(b, ")");
		return;
	case X_VAR:
		buf_puts(b, e->name);
		return;
	case X_ELEM:
		buf_printf(b, "%s[", e->name);
		idx_text(e->idx, NULL, b);
		buf_puts(b, "]");
		return;
	case X_LOAD:
	case X_SHIFT:
		load_text(k, e, b);
		return;
	case X_SCALAR:
		buf_printf(b, "%s[", k->par[e->par].name);
		idx_text(e->idx, NULL, b);
		buf_puts(b, "]");
		return;
	case X_OP:
		break;
	}
	own = e->op == OP_MUL ? 1 : e->op == OP_ADD || e->op == OP_SUB ? 0 : 2;
	if (e->op == OP_NEG || e->op == OP_RECIP || e->op == OP_RSQRT)
		own = 1;
	if (own < level)
		buf_puts(b, "(");
	if ((f = c_function(e->op))) {
		buf_printf(b, "%s(", f);
		exp_text(k, e->a, 0, b);
		buf_puts(b, ")");
	} else if (e->op == OP_BF16) {
		buf_puts(b, "F32(BF16(");
		exp_text(k, e->a, 0, b);
		buf_puts(b, "))");
	} else if (e->op == OP_NEG) {
		buf_puts(b, "-");
		exp_text(k, e->a, 2, b);
	} else {
		exp_text(k, e->a, own, b);
		buf_puts(b, e->op == OP_ADD ? " + " : e->op == OP_SUB ? " - " : " * ");
		exp_text(k, e->b, own + (e->op != OP_ADD), b);
	}
	if (own < level)
		buf_puts(b, ")");
}

/* statements */

static void
indent(int depth, Buf *b)
{
	while (depth--)
		buf_puts(b, "    ");
}

static void
row_source_text(const Stmt *s, int depth, Buf *b)
{
	int k = s->shift[0], seq = s->shift[3];
	const char *sign = k > 0 ? "-" : "+";
	int n = k > 0 ? k : -k;

	buf_printf(b, "const long %s_to = t %s %d;\n", s->name, sign, n);
	indent(depth, b);
	buf_printf(b, "const long %s = %s_to < 0 || %s_to / %d != t / %d", s->name, s->name,
	           s->name, seq, seq);
	if (k < 0)
		buf_printf(b, " || %s_to >= T", s->name);
	if (s->shift[2])
		buf_printf(b, " || docstart[%s_to] != docstart[t]", s->name);
	buf_printf(b, " ? %s : %s_to;\n", s->shift[1] == EDGE_KEEP && k > 0 ? "t" : "-1",
	           s->name);
	if (s->shift[1] != EDGE_KEEP || k > 0)
		return;
	indent(depth, b);
	buf_printf(b, "const long %s_own = t < %d || (t - %d) / %d != t / %d", s->name, n, n,
	           seq, seq);
	if (s->shift[2])
		buf_printf(b, " || docstart[t - %d] != docstart[t]", n);
	buf_puts(b, " ? t : -1;\n");
}

static void
store_text(const Kern *k, const Stmt *s, Buf *b)
{
	const Par *p = &k->par[s->par];
	char row[64];

	if (p->width == 1)
		snprintf(row, sizeof row, "t");
	else
		snprintf(row, sizeof row, "t*%ld", p->width);
	buf_printf(b, "%s[", p->name);
	idx_text(s->idx, row, b);
	buf_printf(b, "] = %s", p->dt == BF16 ? "BF16(" : "");
	exp_text(k, s->e, 0, b);
	buf_printf(b, "%s;\n", p->dt == BF16 ? ")" : "");
}

static void
loop_text(const Stmt *s, int depth, Buf *b)
{
	if (s->reduce) {
		buf_puts(b, "#pragma omp simd");
		if (*s->reduce)
			buf_printf(b, " reduction(+: %s)", s->reduce);
		buf_puts(b, "\n");
	}
	indent(depth, b);
	buf_printf(b, "for (int %s = %d; %s < %d; %s++) {\n", s->name, s->lo, s->name,
	           s->hi, s->name);
}

static void
stmt_text(const Kern *k, const Stmt *s, int *depth, Buf *b)
{
	if (s->kind == S_END)
		--*depth;
	if (s->kind != S_LOOP)
		indent(*depth, b);
	switch (s->kind) {
	case S_NOTE:
		buf_printf(b, "// %s\n", s->name);
		break;
	case S_LET:
		buf_printf(b, "const float %s = ", s->name);
		exp_text(k, s->e, 0, b);
		buf_puts(b, ";\n");
		break;
	case S_ARRAY:
		buf_printf(b, "float %s[%d];\n", s->name, s->n);
		break;
	case S_ZERO:
		if (s->n)
			buf_printf(b, "float %s[%d] = {0};\n", s->name, s->n);
		else
			buf_printf(b, "float %s = 0;\n", s->name);
		break;
	case S_LOOP:
		loop_text(s, *depth, b);
		++*depth;
		break;
	case S_ROWS:
		buf_puts(b, "\n");
		indent(*depth, b);
		buf_printf(b, "for (long t = item*T / %d; t < (item + 1)*T / %d; t++) {\n",
		           RowBlocks, RowBlocks);
		++*depth;
		break;
	case S_END:
		buf_puts(b, "}\n");
		break;
	case S_SET:
		buf_printf(b, "%s[", s->name);
		idx_text(s->idx, NULL, b);
		buf_puts(b, "] = ");
		exp_text(k, s->e, 0, b);
		buf_puts(b, ";\n");
		break;
	case S_ADD:
		buf_printf(b, "%s += ", s->name);
		exp_text(k, s->e, 0, b);
		buf_puts(b, ";\n");
		break;
	case S_STORE:
		store_text(k, s, b);
		break;
	case S_ROW_SRC:
		row_source_text(s, *depth, b);
		break;
	case S_PART:
		buf_printf(b, "%s[%d + item] = %s;\n", k->par[s->par].name,
		           s->n * RowBlocks, s->name);
		break;
	case S_PART_ADD:
		buf_printf(b, "%s[item*%ld + ", k->par[s->par].name, k->par[s->par].width);
		idx_text(s->idx, NULL, b);
		buf_puts(b, "] += ");
		exp_text(k, s->e, 0, b);
		buf_puts(b, ";\n");
		break;
	case S_PART_ZERO:
		buf_printf(b, "for (int c = 0; c < %d; c++)\n", s->n);
		indent(*depth + 1, b);
		buf_printf(b, "%s[item*%d + c] = 0;\n", k->par[s->par].name, s->n);
		break;
	}
}

static const char *
c_type(Dt dt)
{
	return dt == BF16 ? "bf16" : dt == I32 ? "i32" : dt == F64 ? "double" : "float";
}

static void
unpack_text(const Kern *k, Buf *b)
{
	const Par *p;
	char s[256];
	int i;

	for (i = 0; i < k->npar; i++) {
		p = &k->par[i];
		if (p->kind == P_ROWS) {
			buf_printf(b, "    const long T = a[%d].i;\n", i);
			continue;
		}
		snprintf(s, sizeof s, "    %s%s *restrict %s = a[%d].p;",
		         p->kind == P_OUT || p->kind == P_PART || p->kind == P_PARTVEC ?
		         "" : "const ", c_type(p->dt), p->name, i);
		buf_printf(b, "%-60s // %-10s %s\n", s, p->shape ? p->shape : "",
		           p->kind == P_OUT || p->kind == P_IN ? "" : p->what);
		while (b->s[b->len - 2] == ' ') {
			b->s[b->len - 2] = '\n';
			b->len--;
			b->s[b->len] = 0;
		}
	}
}

static const char *
commas(double x, char s[32])
{
	snprintf(s, 32, "%.0f", x);
	return s;
}

static void
header_text(const Kern *k, Buf *b)
{
	const Target *t = target_of(k->plan->model);
	double bytes = k->row_read + k->row_write;
	char r[32], w[32], n[32], f[32];
	int i;

	for (i = 0; i < k->nformula; i++)
		buf_printf(b, "// %-9s %s\n", i ? "" : "computes", k->formula[i]);
	buf_puts(b, "// types     arithmetic in f32; a stored value is rounded once, by its store;"
	         " sums over channels in the\n"
	         "//           order of the compiler's vectors, over rows ascending in a block,"
	         " then over blocks\n");
	buf_printf(b, "// maps      item = one of %d blocks of rows; one thread per row, loops over"
	           " channels vectorise\n", RowBlocks);
	buf_printf(b, "// moves     per row  read %s B  write %s B  = %s B\n", commas(k->row_read, r),
	           commas(k->row_write, w), commas(bytes, n));
	buf_printf(b, "// flops     per row  %s = %.1f per byte      floor %.3g ns per row at "
	           "%g GB/s (%s)\n", commas(k->row_flops, f), k->row_flops / (bytes > 0 ? bytes : 1),
	           bytes / t->gbs, t->gbs, t->name);
}

void
emit_kern(const Kern *k, Buf *b)
{
	int i, depth = 1;

	header_text(k, b);
	buf_printf(b, "\nvoid @KERNEL@(const HcArg *a, long item)\n{\n");
	unpack_text(k, b);
	if (k->nstmt && k->stmt[0].kind != S_ROWS)
		buf_puts(b, "\n");
	for (i = 0; i < k->nstmt; i++)
		stmt_text(k, &k->stmt[i], &depth, b);
	buf_puts(b, "}\n");
}

/* the kernel of coefficient gradients: numbers from sums */

typedef struct { const Plan *p; Step *s; Buf *b; int par[512]; int npar; } Tail;

/* argument index of a region of params or grads */
static int
tail_par(Tail *t, int arena, int param)
{
	Opd o = opd_arena(arena, t->p->model->param[param].off, F32, 1);
	int i;

	for (i = 0; i < t->s->nopd; i++)
		if (t->s->opd[i].kind == OPD_ARENA && t->s->opd[i].id == arena &&
		    t->s->opd[i].off == o.off)
			return i;
	*PUSH(t->p->mem, t->s->opd, t->s->nopd, t->s->capopd) = o;
	return t->s->nopd - 1;
}

static void
tail_exp(Tail *t, int v, int level, Buf *b)
{
	const Graph *g = t->p->g;
	const Val *x = &g->v[v];
	const char *f;
	int own;

	if (x->op == OP_NUM) {
		buf_puts(b, x->num < 0 ? "(" : "");
		float_text(b, x->num);
		buf_puts(b, x->num < 0 ? ")" : "");
		return;
	}
	if (x->op == OP_COEF) {
		buf_printf(b, "p%d[%d]", tail_par(t, A_PARAMS, x->attr[0]), x->attr[1]);
		return;
	}
	if (x->op == OP_SUMR) {
		buf_printf(b, "total(sums + %d)", t->p->partof[v] * RowBlocks);
		return;
	}
	own = x->op == OP_MUL || x->op == OP_NEG || x->op == OP_RECIP || x->op == OP_RSQRT ?
	      1 : x->op == OP_ADD || x->op == OP_SUB ? 0 : 2;
	if (own < level)
		buf_puts(b, "(");
	if ((f = c_function(x->op)) || x->op == OP_BF16 || x->op == OP_NEG) {
		buf_puts(b, f ? f : x->op == OP_NEG ? "-" : "F32(BF16");
		buf_puts(b, "(");
		tail_exp(t, x->arg[0], 0, b);
		buf_puts(b, f || x->op == OP_NEG ? ")" : "))");
	} else {
		tail_exp(t, x->arg[0], own, b);
		buf_puts(b, x->op == OP_ADD ? " + " : x->op == OP_SUB ? " - " : " * ");
		tail_exp(t, x->arg[1], own + (x->op != OP_ADD), b);
	}
	if (own < level)
		buf_puts(b, ")");
}

static void
tail_body(Tail *t, Buf *lines)
{
	const Graph *g = t->p->g;
	const struct Contrib *c;
	int p, k;

	for (p = 0; p < g->model->nparam; p++) {
		bool said = false;

		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			if (g->v[c->val].kind != K_SCALAR)
				continue;
			if (!said)
				buf_printf(lines, "\n    // %s\n", g->model->param[p].name);
			said = true;
			buf_printf(lines, "    g%d[%d] += ", tail_par(t, A_GRADS, p), c->idx);
			tail_exp(t, c->val, 0, lines);
			buf_puts(lines, ";\n");
		}
	}
}

static void
emit_tail(const Plan *p, Step *s, Buf *b)
{
	Tail t = { .p = p, .s = s };
	Buf lines = {0};
	int i;

	s->nopd = 0;
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = opd_buf(p->part, F32, RowBlocks);
	tail_body(&t, &lines);
	buf_printf(b, "// computes  gradients of the coefficients from the sums over rows that the row\n"
	           "//           kernels left as %d partials each\n"
	           "// types     f32; partials added in order\n"
	           "// maps      one item\n", RowBlocks);
	buf_printf(b, "\nHC float total(const float *part)\n{\n    float sum = 0;\n\n"
	           "    for (int i = 0; i < %d; i++)\n        sum += part[i];\n"
	           "    return sum;\n}\n", RowBlocks);
	buf_puts(b, "\nvoid @KERNEL@(const HcArg *a, long item)\n{\n"
	         "    const float *restrict sums = a[0].p;\n");
	for (i = 1; i < s->nopd; i++)
		buf_printf(b, "    %sfloat *restrict %c%d = a[%d].p;\n",
		           s->opd[i].id == A_PARAMS ? "const " : "",
		           s->opd[i].id == A_PARAMS ? 'p' : 'g', i, i);
	buf_puts(b, "    (void)item;\n");
	buf_puts(b, lines.s ? lines.s : "");
	buf_puts(b, "}\n");
	buf_free(&lines);
}

/* templates */

static const char *
template_text(const char *name)
{
	int i;

	for (i = 0; i < ntemplates; i++)
		if (strcmp(templates[i].name, name) == 0)
			return templates[i].text;
	bug("emit: there is no template %s", name);
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

typedef struct { Arena *a; const Model *m; Hole h[16]; int n; Buf name; } Fill;

static void
hole_int(Fill *f, const char *hole, int x)
{
	f->h[f->n++] = (Hole){ hole, arena_printf(f->a, "%d", x) };
	buf_printf(&f->name, "_%s%d", hole, x);
}

static void
hole_dt(Fill *f, const char *hole, Dt dt)
{
	f->h[f->n++] = (Hole){ hole, dt_name(dt) };
	buf_printf(&f->name, "_%s", dt_name(dt));
}

static void
hole_float(Fill *f, const char *hole, double x)
{
	Buf b = {0};

	float_text(&b, x);
	f->h[f->n++] = (Hole){ hole, arena_strdup(f->a, b.s) };
	buf_free(&b);
}

static void
hole_softcap(Fill *f)
{
	const Spec *s = f->m->spec;
	bool on = s->softcap != CAP_NONE, sig = s->softcap == CAP_SIGMOID;

	f->h[f->n++] = (Hole){ "CAP", !on ? "0" : sig ? "2" : "1" };
	buf_puts(&f->name, !on ? "" : sig ? "_sigmoid" : "_tanh");
	hole_float(f, "CAPV", on ? s->cap : 1);
	hole_float(f, "SHIFT", sig ? s->cap_shift : 0);
	hole_float(f, "TEMP", sig ? s->cap_temperature : 1);
}

static void
template_holes(Fill *f, const Step *s)
{
	const Model *m = f->m;
	const char *t = s->name;

	if (strcmp(t, "gather") == 0) {
		hole_int(f, "C", (int)s->opd[0].ld);
		hole_dt(f, "DT", s->opd[0].dt);
	} else if (strcmp(t, "scatter") == 0) {
		hole_int(f, "C", (int)s->opd[1].ld);
		hole_dt(f, "DT", s->opd[1].dt);
	} else if (strcmp(t, "attn_fwd") == 0 || strcmp(t, "attn_bwd") == 0) {
		bool bwd = t[5] == 'b';

		hole_int(f, "H", m->H);
		hole_int(f, "K", m->K);
		hole_int(f, "D", m->D);
		hole_dt(f, "DTQ", s->opd[bwd ? 6 : 2].dt);
		hole_dt(f, "DTO", s->opd[bwd ? 12 : 0].dt);
		if (bwd)
			hole_dt(f, "DTG", s->opd[0].dt);
	} else if (strcmp(t, "ce") == 0) {
		hole_int(f, "V", m->V);
		hole_int(f, "VP", m->Vp);
		hole_dt(f, "DTG", s->opd[1].dt);
		hole_softcap(f);
	} else if (strcmp(t, "softcap") == 0) {
		hole_int(f, "VP", m->Vp);
		hole_softcap(f);
	} else if (strcmp(t, "adamw") == 0) {
		f->h[f->n++] = (Hole){ "WEIGHTS", s->acc ? "1" : "0" };
		buf_puts(&f->name, s->acc ? "_bf16" : "");
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
step_text(Bundle *b, const Plan *p, Step *s)
{
	Fill f = { .a = b->mem, .m = b->model };
	const Model *m = b->model;
	Buf body = {0};
	Arena *a;

	switch (s->kind) {
	case STEP_GEMM:
		return;
	case STEP_ROW:
		a = arena_new("kern");
		{
			Kern *k = lower(a, p, s, TO_CPU);

			kern_verify(k);
			emit_kern(k, &body);
		}
		arena_free(a);
		buf_printf(&f.name, "%s__n%d_C%d_%s", s->name, m->n, m->C,
		           m->spec->storage == F_BF16 ? "bf16" : "f32");
		break;
	case STEP_TEMPLATE:
		buf_puts(&f.name, s->name);
		buf_puts(&f.name, "_");
		template_holes(&f, s);
		if (!f.n)
			f.name.s[--f.name.len] = 0;
		fill(s->name, template_text(s->name), f.h, f.n, &body);
		break;
	case STEP_TAIL:
		emit_tail(p, s, &body);
		buf_printf(&f.name, "coef_grads__n%d", m->n);
		break;
	}
	s->text = text_new(b, f.name.s, body.s, s->site, s->sub);
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
	const char *pre = template_text("prelude"), *p, *q, *end;
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
	if (row) {
		q = strstr(t->body, "\n\n");
		buf_write(&f, t->body, (size_t)(q + 2 - t->body));
		prelude_text(t->body, &f);
		p = q + 2;
	} else {
		buf_puts(&f, "\n// from templates/cpu/prelude.c\n");
		buf_puts(&f, template_text("prelude"));
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

	for (i = 0; i < NPlans; i++) {
		p = b->plan[i];
		for (j = 0; j < p->nstep; j++)
			step_text(b, p, &p->step[j]);
	}
	row = NEWN(b->mem, bool, b->ntext);
	for (i = 0; i < NPlans; i++)
		for (j = 0; j < b->plan[i]->nstep; j++)
			if (b->plan[i]->step[j].kind == STEP_ROW ||
			    b->plan[i]->step[j].kind == STEP_TAIL)
				row[b->plan[i]->step[j].text] = true;
	name_texts(b);
	for (i = 0; i < b->ntext; i++)
		file_text(b, &b->text[i], row[i]);
}
