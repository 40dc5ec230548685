/* Kern -> text: the one printer of row kernels.  Prints; decides nothing. */
#include "kern.h"

#include <stdlib.h>
#include <string.h>

void
float_text(Buf *b, double x)
{
	char s[40];
	int digits;

	/* at the ends of the range what the value is as a float: compilers refuse
	 * a literal that is none */
	if (!(x > -1e38 && x < 1e38) || (x > -1e-37 && x < 1e-37))
		x = (float)x;
	if (x - x != 0) {
		buf_puts(b, x > 0 ? "(3e38f * 3e38f)" : x < 0 ? "(3e38f * -3e38f)" : "(0.f / 0.f)");
		return;
	}
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
cuda_function(Op op)
{
	switch ((int)op) {
	case OP_RECIP:
		return "1.f / ";
	case OP_RSQRT:
		return "rsqrtf";
	case OP_EXP:
		return "expf";
	case OP_TANH:
		return "tanhf";
	case OP_SIGMOID:
		return "sigmoidf";
	case OP_RELU:
		return "RELU";
	case OP_STEP:
		return "STEP";
	default:
		return NULL;
	}
}

const char *
c_function(Op op, int target)
{
	if (target == TO_CUDA)
		return cuda_function(op);
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
	char row[96];
	const char *t = e->kind == X_SHIFT ? e->name : p->kind == P_TABLE ? "t%seq" : "t";

	if (p->kind == P_TABLE)
		snprintf(row, sizeof row, "(%s)*%ld%s", by_seq(k, "t", '%'), p->width, e->num > 0 ?
		         arena_printf(k->mem, " + head %% 2 * %d", (int)e->num) : e->num < 0 ?
		         arena_printf(k->mem, " + (head + 1) %% 2 * %d", (int)-e->num) : "");
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

/* element of a vector in registers: every one, or every second */
static void
elem_text(const Kern *k, const Exp *e, Buf *b)
{
	bool bf16 = e->par >= 0 && k->par[e->par].dt == BF16;

	buf_printf(b, "%s%s.v[", bf16 ? "F32(" : "", e->name);
	if (e->idx.d == 2)
		buf_puts(b, "2*");
	buf_puts(b, "i");
	if (e->idx.base)
		buf_printf(b, " + %d", e->idx.base);
	buf_printf(b, "]%s", bf16 ? ")" : "");
}

void
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
	case X_ELEM_OF:
		elem_text(k, e, b);
		return;
	case X_HEAD:
		buf_printf(b, "%s_head[head", e->name);
		if (e->idx.base)
			buf_printf(b, " %c %d", e->idx.base < 0 ? '-' : '+', abs(e->idx.base));
		buf_puts(b, "]");
		return;
	case X_SCALAR:
		buf_printf(b, "%s[", k->par[e->par].name);
		idx_text(e->idx, NULL, b);
		buf_puts(b, "]");
		return;
	case X_AGAIN:
		buf_printf(b, "ld_again(%s", e->name);
		if (e->idx.base)
			buf_printf(b, " + %d", e->idx.base);
		buf_puts(b, ")");
		return;
	case X_OP:
		break;
	}
	own = e->op == OP_MUL ? 1 : e->op == OP_ADD || e->op == OP_SUB ? 0 : 2;
	if (e->op == OP_NEG || e->op == OP_RECIP || e->op == OP_RSQRT)
		own = 1;
	if (own < level)
		buf_puts(b, "(");
	if ((f = c_function(e->op, k->plan->target))) {
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
		if (e->op != OP_ADD && e->op != OP_SUB && e->op != OP_MUL)
			bug("emit: no C for %s", op_info[e->op].name);
		exp_text(k, e->a, own, b);
		buf_puts(b, e->op == OP_ADD ? " + " : e->op == OP_SUB ? " - " : " * ");
		exp_text(k, e->b, own + (e->op != OP_ADD), b);
	}
	if (own < level)
		buf_puts(b, ")");
}

/* statements */

void
indent(int depth, Buf *b)
{
	while (depth--)
		buf_puts(b, "    ");
}

const char *
seq_text(const Kern *k)
{
	const Model *m = k->plan->model;

	return m->seq_varies ? "seq" : arena_printf(k->mem, "%d", m->seq);
}

/* by a number the compiler multiplies; by an argument it divides, which is long in 64 bits */
const char *
by_seq(const Kern *k, const char *x, char op)
{
	return arena_printf(k->mem, k->plan->model->seq_varies ? "(int)%s %c (int)%s" : "%s %c %s", x, op, seq_text(k));
}

void
row_source_text(const Kern *kern, const Stmt *s, int depth, Buf *b)
{
	int k = s->shift[0];
	const char *sign = k > 0 ? "-" : "+", *own = by_seq(kern, "t", '/');
	int n = k > 0 ? k : -k;

	buf_printf(b, "const long %s_to = t %s %d;\n", s->name, sign, n);
	indent(depth, b);
	buf_printf(b, "const long %s = %s_to < 0 || %s != %s", s->name, s->name,
	           by_seq(kern, arena_printf(kern->mem, "%s_to", s->name), '/'), own);
	if (k < 0)
		buf_printf(b, " || %s_to >= T", s->name);
	if (s->shift[2])
		buf_printf(b, " || docstart[%s_to] != docstart[t]", s->name);
	buf_printf(b, " ? %s : %s_to;\n", s->shift[1] == EDGE_KEEP && k > 0 ? "t" : "-1",
	           s->name);
	if (s->shift[1] != EDGE_KEEP || k > 0)
		return;
	indent(depth, b);
	buf_printf(b, "const long %s_own = t < %d || %s != %s", s->name, n,
	           by_seq(kern, arena_printf(kern->mem, "(t - %d)", n), '/'), own);
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
	if (s->kind != S_LOOP && s->kind != S_ROWS)
		indent(*depth, b);
	switch (s->kind) {
	case S_NOTE:
		buf_puts(b, "\n");
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
		row_source_text(k, s, *depth, b);
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
	default:
		bug("emit: statement %d on cpu", s->kind);
	}
}

const char *
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
		if (p->kind == P_ROWS || p->kind == P_SEQ) {
			buf_printf(b, "    const long %s = a[%d].i;\n", p->kind == P_ROWS ? "T" : "seq", i);
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
