/* Kern -> CUDA text: the printer of row kernels for cuda.  Prints; decides
 * nothing.  docs/emitted.md shows the form. */
#include "kern.h"

#include <stdlib.h>
#include <string.h>

typedef struct { const Kern *k; Buf *b; int depth; const Stmt *open[64]; int nopen; } Print;

/* first channel of a thread, by the size of its vectors */
static const char *
channel(int vw)
{
	return vw == 8 ? "c" : vw == 4 ? "c4" : vw == 2 ? "c2" : "c1";
}

static const char *
vec_type(const Kern *k, int par, int n)
{
	Dt dt = par < 0 ? F32 : k->par[par].dt;

	return arena_printf(k->mem, "%sx%d", dt == BF16 ? "bf16" : "f32", n);
}

static const char *
thread_of(const Map *m)
{
	return m->rows > 1 ? "lane" : "threadIdx.x";
}

/* the header */

static void
sums_text(const Kern *k, Buf *b)
{
	const Map *m = &k->map;
	bool whole = false, lanes = false, threads = false;
	const Stmt *s;
	int i;

	for (i = 0; i < k->nstmt; i++) {
		s = &k->stmt[i];
		whole |= s->kind == S_SUM && !s->n;
		lanes |= s->kind == S_SUM && s->n && !s->lo;
		threads |= s->kind == S_SUM && s->n && s->lo;
	}
	buf_puts(b, "// types     arithmetic in f32; a stored value is rounded once, by its store\n");
	if (whole || lanes || threads)
		buf_puts(b, "// sums      over channels: a thread's own in order");
	if (lanes)
		buf_puts(b, "; per head then its lanes by halves");
	if (threads)
		buf_puts(b, "; per head then its threads in order");
	if (whole)
		buf_puts(b, m->threads > 32 ? ", then its warp by halves, then the warps in order" :
		         ", then its warp by halves");
	if (whole || lanes || threads)
		buf_puts(b, "\n");
	if (m->loop)
		buf_printf(b, "// %-9s over rows: those of a %s ascending; one partial per %s\n",
		           whole || lanes || threads ? "" : "sums", m->rows > 1 ? "warp" : "block",
		           m->rows > 1 ? "warp" : "block");
}

static void
maps_text(const Kern *k, Buf *b)
{
	const Map *m = &k->map;
	bool bf16 = k->plan->model->spec->storage == F_BF16;

	if (m->loop && m->rows > 1)
		buf_printf(b, "// maps      warp = every %dG'th row (grid G, %d rows at a time), ",
		           m->rows, m->rows);
	else if (m->loop)
		buf_puts(b, "// maps      block = every G'th row (grid G), ");
	else if (m->rows > 1)
		buf_printf(b, "// maps      warp = row, %d in a block (grid T/%d), ", m->rows,
		           m->rows);
	else
		buf_puts(b, "// maps      block = row (grid T), ");
	buf_printf(b, "thread = %s (%d threads)\n", !m->uses_vw[8] ? "some channels" : bf16 ?
	           "8 channels = one 16-byte vector" : "8 channels = two 16-byte vectors",
	           m->threads * m->rows);
}

static void
header_text(const Kern *k, Buf *b)
{
	const Target *t = target_of(k->plan->model);
	double bytes = k->row_read + k->row_write;
	int i;

	for (i = 0; i < k->nformula; i++)
		buf_printf(b, "// %-9s %s\n", i ? "" : "computes", k->formula[i]);
	sums_text(k, b);
	maps_text(k, b);
	buf_printf(b, "// moves     per row  read %.0f B  write %.0f B  = %.0f B\n", k->row_read,
	           k->row_write, bytes);
	buf_printf(b, "// flops     per row  %.0f = %.1f per byte      floor %.3g ns per row at %g GB/s"
	           " (%s)\n", k->row_flops, k->row_flops / (bytes > 0 ? bytes : 1), bytes / t->gbs,
	           t->gbs, t->name);
}

/* the signature */

static void
parameter_text(const Par *p, bool last, Buf *b)
{
	bool out = p->kind == P_OUT || p->kind == P_PART || p->kind == P_PARTVEC;
	bool number = p->kind == P_ROWS || p->kind == P_SEQ || p->kind == P_PARTS;
	const char *what = p->kind == P_OUT || p->kind == P_IN ? "" : p->what;
	char s[256];

	if (number)
		snprintf(s, sizeof s, "    long %s%s", p->kind == P_ROWS ? "T" : p->kind == P_SEQ ? "seq" : "P",
		         last ? ")" : ",");
	else
		snprintf(s, sizeof s, "    %s%-5s *__restrict__ %s%s", out ? "      " : "const ",
		         c_type(p->dt), p->name, last ? ")" : ",");
	buf_printf(b, "%-56s // %-10s %s", s, p->kind == P_ROWS ? "rows" : p->kind == P_SEQ ? "tokens of a sequence" :
	           p->kind == P_PARTS ? "partials per sum" : p->shape ? p->shape : "", number ? "" : what);
	while (b->s[b->len - 1] == ' ')
		b->s[--b->len] = 0;
	buf_puts(b, "\n");
}

static void
signature_text(const Kern *k, Buf *b)
{
	int i;

	buf_printf(b, "\nextern \"C\" __global__ __launch_bounds__(%d", k->map.threads * k->map.rows);
	if (k->map.resident)
		buf_printf(b, ", %d", k->map.resident);
	buf_puts(b, ")\nvoid @KERNEL@(\n");
	for (i = 0; i < k->npar; i++)
		parameter_text(&k->par[i], i == k->npar - 1, b);
	buf_puts(b, "{\n");
}

/* a line of the function's body with its comment in column 56 */
static void line_text(Buf *b, const char *what, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

static void
line_text(Buf *b, const char *what, const char *fmt, ...)
{
	size_t at = b->len;
	va_list ap;

	buf_puts(b, "    ");
	va_start(ap, fmt);
	buf_vprintf(b, fmt, ap);
	va_end(ap);
	if (*what)
		buf_printf(b, "%*s // %s", b->len - at < 56 ? (int)(56 - (b->len - at)) : 0, "", what);
	buf_puts(b, "\n");
}

static void
index_text(const Kern *k, Buf *b)
{
	const Map *m = &k->map;
	int i, vw;

	for (i = 0; i < m->nshared; i++)
		buf_printf(b, "    __shared__ float %s[%d];\n", m->shared[i].name, m->shared[i].n);
	if (m->rows > 1)
		line_text(b, "a row is a warp's", "const int lane = threadIdx.x %% 32, warp = threadIdx.x / 32;");
	for (vw = 8; vw > 0; vw /= 2)
		if (m->uses_vw[vw] || (vw == m->vwh && (m->uses_d || m->uses_head)))
			line_text(b, vw > 1 ? "first of this thread's channels" : "this thread's channel",
			          "const int %s = %d*%s;", channel(vw), vw, thread_of(m));
	if (m->uses_d)
		line_text(b, "the same within its head", "const int d = %s %% %d;",
		          channel(m->vwh), m->D);
	if (m->uses_head)
		line_text(b, "", "const int head = %s / %d;", channel(m->vwh), m->D);
}

/* statements */

static void
plus(Buf *b, int off)
{
	if (off)
		buf_printf(b, " %c %d", off < 0 ? '-' : '+', abs(off));
}

/* conditions on channels and on channels of a head, joined; "" for none */
static void
guard_text(int vw, int lo, int hi, int dlo, int dhi, Buf *b)
{
	const char *and = "";

	if (lo > 0) {
		buf_printf(b, "%s >= %d", channel(vw), lo);
		and = " && ";
	}
	if (hi > 0) {
		buf_printf(b, "%s%s < %d", and, channel(vw), hi);
		and = " && ";
	}
	if (dlo > 0) {
		buf_printf(b, "%sd >= %d", and, dlo);
		and = " && ";
	}
	if (dhi == 1)
		buf_printf(b, "%sd == 0", and);
	else if (dhi > 0)
		buf_printf(b, "%sd < %d", and, dhi);
}

static void
address_text(const Kern *k, const VecLoad *v, Buf *b)
{
	const Par *p = &k->par[v->par];
	const char *row = v->row ? v->row : "t";

	buf_printf(b, "%s", p->name);
	if (p->kind == P_TABLE)
		buf_printf(b, " + (%s)*%ld", by_seq(k, row, '%'), p->width);
	else if (v->place > 0)
		buf_printf(b, " + %s*%ld", row, p->width);
	switch (v->at) {
	case V_FLAT:
		buf_printf(b, " + %s", channel(v->vw));
		break;
	case V_HEAD:
		buf_puts(b, " + d");
		break;
	case V_HALF:
		buf_puts(b, " + d/2");
		break;
	case V_ROWVAL:
		break;
	}
	if (v->half)
		buf_printf(b, v->odd ? " + (head + 1) %% 2 * %d" : " + head %% 2 * %d", v->half);
	plus(b, v->off);
}

static void
load_text(Print *p, const VecLoad *v)
{
	const Kern *k = p->k;
	const Map *m = &k->map;
	int vw = v->at == V_FLAT ? v->vw : v->at == V_HALF ? 2 * v->vw : v->at == V_HEAD ?
	         v->vw : m->vwh, slab = m->threads * vw;
	bool scalar = v->at == V_ROWVAL, bf16 = k->par[v->par].dt == BF16;
	const struct Use *u;
	Buf g = {0}, uses = {0};

	for (u = v->use; u < v->use + v->nuse; u++) {
		Buf one = {0};

		guard_text(vw, u->lo, u->hi < slab ? u->hi : 0, u->dlo,
		           m->D && u->dhi < m->D ? u->dhi : 0, &one);
		if (one.len)
			buf_printf(&uses, v->nuse > 1 ? "%s(%s)" : "%s%s", uses.len ? " || " : "",
			           one.s);
		buf_free(&one);
	}
	if (v->row)
		buf_printf(&g, "%s >= 0", v->row);
	if (uses.len)
		buf_printf(&g, g.len && v->nuse > 1 ? "%s(%s)" : "%s%s", g.len ? " && " : "", uses.s);
	buf_free(&uses);
	indent(p->depth, p->b);
	buf_printf(p->b, "const %s %s = ", scalar ? "float" : vec_type(k, v->par, v->vw), v->name);
	if (g.len)
		buf_printf(p->b, "%s ? ", g.s);
	if (scalar) {
		buf_printf(p->b, "%s%s[%s*%ld + head", bf16 ? "F32(" : "", k->par[v->par].name,
		           v->row ? v->row : "t", k->par[v->par].width);
		plus(p->b, v->off);
		buf_puts(p->b, bf16 ? "])" : "]");
	} else {
		buf_printf(p->b, "ld%d(", v->vw);
		address_text(k, v, p->b);
		buf_puts(p->b, ")");
	}
	if (g.len)
		buf_printf(p->b, " : %s", scalar ? "0.f" : arena_printf(k->mem, "%s()",
		           vec_type(k, v->par, v->vw)));
	buf_puts(p->b, ";\n");
	buf_free(&g);
}

static void
loads_text(Print *p, const Stmt *s)
{
	int i, n = 0;

	for (i = 0; i < p->k->nload; i++)
		n += p->k->load[i].place == s->n;
	if (!n)
		return;
	if (s->n == 0)
		buf_puts(p->b, "\n");
	for (i = 0; i < p->k->nload; i++)
		if (p->k->load[i].place == s->n)
			load_text(p, &p->k->load[i]);
	if (s->n == 1)
		buf_puts(p->b, "\n");
}

static void
rows_text(Print *p)
{
	const Map *m = &p->k->map;
	Buf *b = p->b;

	buf_puts(b, "\n");
	indent(p->depth, b);
	if (m->loop && m->rows > 1)
		buf_printf(b, "for (long t = blockIdx.x*%dL + warp; t < T; t += gridDim.x*%dL) {\n",
		           m->rows, m->rows);
	else if (m->loop)
		buf_puts(b, "for (long t = blockIdx.x; t < T; t += gridDim.x) {\n");
	else if (m->rows > 1)
		buf_printf(b, "const long t = blockIdx.x*%dL + warp;\n    if (t >= T)\n"
		           "        return;\n\n", m->rows);
	else
		buf_puts(b, "const long t = blockIdx.x;\n");
	if (m->loop)
		p->depth++;
}

static void
end_text(Print *p)
{
	const Map *m = &p->k->map;
	const Stmt *s = p->open[--p->nopen];

	if (s->kind != S_ROWS || m->loop) {
		indent(--p->depth, p->b);
		buf_puts(p->b, "}\n");
	}
}

/* A block's partials; where there are more of them than blocks, the rest are 0. */
static void
parts_text(Print *p)
{
	const Map *m = &p->k->map;
	const char *first = m->rows > 1 ? arena_printf(p->k->mem, "blockIdx.x*%dL + warp", m->rows) :
	                    "blockIdx.x";

	buf_puts(p->b, "\n");
	indent(p->depth, p->b);
	buf_printf(p->b, "for (long slot = %s; slot < P; slot += gridDim.x%s) {\n", first,
	           m->rows > 1 ? arena_printf(p->k->mem, "*%dL", m->rows) : "");
	p->depth++;
	indent(p->depth, p->b);
	buf_printf(p->b, "const bool own = slot == %s;\n\n", first);
}

/* the sums queued before statement `at`, with one barrier for all */
static void
sums_queue(Print *p, int at)
{
	const Kern *k = p->k;
	const Stmt *s;
	int first, i, pass;
	bool barrier = false;

	for (first = at; first > 0 && k->stmt[first - 1].kind == S_SUM; first--)
		;
	for (pass = 0; pass < 3; pass++) {
		if (pass == 1 && barrier) {
			indent(p->depth, p->b);
			buf_puts(p->b, "__syncthreads();\n");
		}
		for (i = first; i < at && pass != 1; i++) {
			s = &k->stmt[i];
			barrier |= s->lo != 0;
			if (!s->lo && pass)
				continue;
			indent(p->depth, p->b);
			if (!s->lo && s->n)
				buf_printf(p->b, "%s = head_sum(%s, %d);\n", s->name, s->name, s->n);
			else if (!s->lo)
				buf_printf(p->b, "%s = warp_sum(%s);\n", s->name, s->name);
			else if (s->n && !pass)
				buf_printf(p->b, "%s_part[threadIdx.x] = %s;\n", s->name, s->name);
			else if (s->n)
				buf_printf(p->b, "%s = head_get(%s_part, %d);\n", s->name, s->name, s->n);
			else if (!pass)
				buf_printf(p->b, "sum_put(%s, %s_part);\n", s->name, s->name);
			else
				buf_printf(p->b, "%s = sum_get(%s_part, %d);\n", s->name, s->name,
				           k->map.threads / 32);
		}
	}
}

static void
if_text(Print *p, const Stmt *s)
{
	if (s->indexed || s->n == 2) {
		buf_printf(p->b, s->n == 2 ? "else {\n" : "if (%s == 0) {\n", thread_of(&p->k->map));
		p->depth++;
		return;
	}
	if (!s->lo && !s->hi && !s->shift[0] && !s->shift[1]) {
		buf_puts(p->b, "{\n");
	} else {
		buf_puts(p->b, s->n ? "else if (" : "if (");
		guard_text(s->vw, s->lo, s->hi, s->shift[0], s->shift[1], p->b);
		buf_puts(p->b, ") {\n");
	}
	p->depth++;
}

static void
element_text(Print *p, const Stmt *s)
{
	buf_printf(p->b, "%s.v[%si", s->name, s->idx.d == 2 ? "2*" : "");
	plus(p->b, s->idx.base);
	buf_printf(p->b, "] %s ", s->kind == S_VEC_ADD ? "+=" : "=");
	exp_text(p->k, s->e, 0, p->b);
	buf_puts(p->b, ";\n");
}

static void
row_store_text(Print *p, const Stmt *s)
{
	const Par *par = &p->k->par[s->par];
	bool bf16 = par->dt == BF16;

	if (s->n == 1) {
		buf_printf(p->b, "if (%s == 0)\n", thread_of(&p->k->map));
	} else {
		buf_puts(p->b, "if (d == 0");
		if (s->hi)
			buf_printf(p->b, " && %s < %d", channel(s->vw), s->hi);
		buf_puts(p->b, ")\n");
	}
	indent(p->depth + 1, p->b);
	if (s->n == 1) {
		buf_printf(p->b, "%s[t] = ", par->name);
	} else {
		buf_printf(p->b, "%s[t*%d + head", par->name, s->n);
		plus(p->b, s->idx.base);
		buf_puts(p->b, "] = ");
	}
	buf_puts(p->b, bf16 ? "BF16(" : "");
	exp_text(p->k, s->e, 0, p->b);
	buf_puts(p->b, bf16 ? ");\n" : ";\n");
}

static void
share_text(Print *p, const Stmt *s)
{
	buf_puts(p->b, "if (d == 0");
	if (s->hi)
		buf_printf(p->b, " && %s < %d", channel(p->k->map.vwh), s->hi);
	buf_puts(p->b, ")\n");
	indent(p->depth + 1, p->b);
	buf_printf(p->b, "%s_head[head", s->e->name);
	plus(p->b, s->idx.base);
	buf_printf(p->b, "] = %s;\n", s->name);
}

static void
part_vec_text(Print *p, const Stmt *s)
{
	const char *c = channel(s->vw);

	if (s->hi) {
		buf_printf(p->b, "if (%s < %d)\n", c, s->hi);
		indent(p->depth + 1, p->b);
	}
	buf_printf(p->b, "st%d(%s + slot*%d + %s", s->vw, p->k->par[s->par].name, s->n, c);
	plus(p->b, s->idx.base);
	buf_printf(p->b, ", own ? %s : f32x%d());\n", s->name, s->vw);
}

/* totals of spread sums: what lanes 4*i hold of sum i */
static void
spread_parts_text(Print *p, const Stmt *s)
{
	const Map *m = &p->k->map;
	const char *par = p->k->par[s->par].name;
	int warps = m->threads / 32, i;

	buf_printf(p->b, "static const int partial_of[%d] = { %s };\n", s->n, s->reduce);
	for (i = 0; m->rows > 1 && i < (s->n + 7) / 8; i++) {
		indent(p->depth, p->b);
		buf_printf(p->b, "if (lane %% 4 == 0 && %d + lane / 4 < %d)\n", 8 * i, s->n);
		indent(p->depth + 1, p->b);
		buf_printf(p->b, "%s[partial_of[%d + lane / 4]*P + slot] = own ? total%d : 0.f;\n", par, 8 * i, i);
	}
	if (m->rows > 1)
		return;
	indent(p->depth, p->b);
	buf_printf(p->b, "for (int i = threadIdx.x; i < %d; i += %d)\n", s->n, m->threads);
	indent(p->depth + 1, p->b);
	buf_printf(p->b, "%s[partial_of[i]*P + slot] = own ? sum_get(spread_part + %d*i, %d) : 0.f;\n", par,
	           warps, warps);
}

static void
spread_total_text(Print *p, const Stmt *s)
{
	if (p->k->map.rows > 1)
		buf_printf(p->b, "const float total%d = spread_total(%s);\n", s->n, s->name);
	else
		buf_printf(p->b, "spread_put(%s, spread_part + %d, %d);\n", s->name,
		           8 * s->n * (p->k->map.threads / 32), p->k->map.threads / 32);
}

static void
vec_text(Print *p, const Stmt *s)
{
	const Par *par = s->par >= 0 ? &p->k->par[s->par] : NULL;

	if (s->kind == S_VEC) {
		buf_printf(p->b, "f32x%d %s%s;\n", s->n, s->name,
		           s->lo ? arena_printf(p->k->mem, " = f32x%d()", s->n) : "");
		return;
	}
	buf_printf(p->b, "st%d(%s + t*%ld + %s", s->vw, par->name, par->width, channel(s->vw));
	plus(p->b, s->idx.base);
	buf_printf(p->b, ", %s);\n", s->name);
}

static void
stmt_text(Print *p, int at)
{
	const Stmt *s = &p->k->stmt[at];
	Buf *b = p->b;

	if (s->kind == S_ROWS || s->kind == S_IF || s->kind == S_ELEMS || s->kind == S_PARTS) {
		if (p->nopen == (int)(sizeof p->open / sizeof *p->open))
			bug("emit: %s is nested too deeply", p->k->name);
		p->open[p->nopen++] = s;
	}
	if (s->kind != S_ROWS && s->kind != S_END && s->kind != S_SUM && s->kind != S_SUMS &&
	    s->kind != S_LOADS && s->kind != S_ELEMS && s->kind != S_NOTE && s->kind != S_PARTS)
		indent(p->depth, b);
	switch (s->kind) {
	case S_NOTE:
		buf_puts(b, "\n");
		break;
	case S_LET:
		buf_printf(b, "const float %s = ", s->name);
		exp_text(p->k, s->e, 0, b);
		buf_puts(b, ";\n");
		break;
	case S_ZERO:
		buf_printf(b, "float %s = 0.f;\n", s->name);
		break;
	case S_ADD:
		buf_printf(b, "%s += ", s->name);
		exp_text(p->k, s->e, 0, b);
		buf_puts(b, ";\n");
		break;
	case S_ROWS:
		rows_text(p);
		break;
	case S_END:
		end_text(p);
		break;
	case S_ROW_SRC:
		row_source_text(p->k, s, p->depth, b);
		break;
	case S_LOADS:
		loads_text(p, s);
		break;
	case S_IF:
		if_text(p, s);
		break;
	case S_ELEMS:
		indent(p->depth, b);
		buf_puts(b, "#pragma unroll\n");
		indent(p->depth++, b);
		buf_printf(b, "for (int i = 0; i < %d; i++) {\n", s->n);
		break;
	case S_VEC:
	case S_VEC_STORE:
		vec_text(p, s);
		break;
	case S_VEC_SET:
	case S_VEC_ADD:
		element_text(p, s);
		break;
	case S_ROW_STORE:
		row_store_text(p, s);
		break;
	case S_SUM:
		break;
	case S_SUMS:
		sums_queue(p, at);
		break;
	case S_SHARE:
		share_text(p, s);
		break;
	case S_BARRIER:
		buf_puts(b, "__syncthreads();\n");
		break;
	case S_PARTS:
		parts_text(p);
		break;
	case S_PART:
		buf_printf(b, "%s[", p->k->par[s->par].name);
		if (s->n)
			buf_printf(b, s->n > 1 ? "%d*P + " : "P + ", s->n);
		buf_printf(b, "slot] = own ? %s : 0.f;\n", s->name);
		break;
	case S_PART_VEC:
		part_vec_text(p, s);
		break;
	case S_KEEP:
		buf_printf(b, "if (threadIdx.x == 0)\n");
		indent(p->depth + 1, b);
		buf_printf(b, "scalars[%d] = %s;\n", s->n, s->name);
		break;
	case S_SPREAD:
		buf_printf(b, s->reduce ? "%s += spread8(%s);\n" : "%s = 0.f;\n", s->name, s->reduce);
		break;
	case S_SPREAD_TOTAL:
		spread_total_text(p, s);
		break;
	case S_SPREAD_PARTS:
		spread_parts_text(p, s);
		break;
	default:
		bug("emit: statement %d on cuda", s->kind);
	}
}

void
emit_cuda(const Kern *k, Buf *b)
{
	Print p = { .k = k, .b = b, .depth = 1 };
	int i;

	header_text(k, b);
	signature_text(k, b);
	index_text(k, b);
	if (k->nstmt && k->stmt[0].kind != S_ROWS && k->stmt[0].kind != S_LOADS)
		buf_puts(b, "\n");
	for (i = 0; i < k->nstmt; i++)
		stmt_text(&p, i);
	buf_puts(b, "}\n");
}
