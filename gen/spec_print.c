/* Spec -> YAML, every key with its value, in the order of the schema; and the
 * schema -> the table of docs/spec.md. */
#include "schema.h"

#include <math.h>
#include <string.h>

static void
word_print(const char *words, int index, Buf *b)
{
	const char *end;

	for (; index > 0; index--)
		words = strchr(words, '|') + 1;
	end = strchr(words, '|');
	buf_write(b, words, end ? (size_t)(end - words) : strlen(words));
}

/* The shortest text that reads back to x, in a form that every YAML reader
 * takes for a number: 1.0e-06, as 1e-06 is a string to some. */
static void
num_print(double x, Buf *b)
{
	size_t at = b->len;
	char *e, tail[16];

	if (x == floor(x) && fabs(x) < 1e15) {
		buf_printf(b, "%.0f", x);
		return;
	}
	buf_num(b, x);
	e = strchr(b->s + at, 'e');
	if (!e || strchr(b->s + at, '.'))
		return;
	snprintf(tail, sizeof tail, "%s", e);
	b->len = (size_t)(e - b->s);
	buf_printf(b, ".0%s", tail);
}

static void
text_print(const char *s, Buf *b)
{
	buf_puts(b, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			buf_puts(b, "\\");
		buf_write(b, s, 1);
	}
	buf_puts(b, "\"");
}

static void
ints_print(const int *v, int n, const char *zero, Buf *b)
{
	int i;

	buf_puts(b, "[");
	for (i = 0; i < n; i++) {
		buf_puts(b, i ? ", " : "");
		if (zero && v[i] == 0)
			buf_puts(b, zero);
		else
			buf_printf(b, "%d", v[i]);
	}
	buf_puts(b, "]");
}

static void
nums_print(const double *v, int n, Buf *b)
{
	int i;

	buf_puts(b, "[");
	for (i = 0; i < n; i++) {
		buf_puts(b, i ? ", " : "");
		num_print(v[i], b);
	}
	buf_puts(b, "]");
}

static void
sel_print(const Sel *s, Buf *b)
{
	switch (s->kind) {
	case SEL_RANGE:
		buf_printf(b, "{first: %d, last: %d}", s->first, s->last);
		break;
	case SEL_LIST:
		ints_print(s->idx, s->n, NULL, b);
		break;
	case SEL_EXCEPT:
		buf_puts(b, "{except: ");
		ints_print(s->idx, s->n, NULL, b);
		buf_puts(b, "}");
		break;
	default:
		word_print("all|none|attn|mlp", (int)s->kind, b);
	}
}

static void
init_print(const Init *i, Buf *b)
{
	double v[2] = { i->a, i->b };

	switch (i->kind) {
	case INIT_CONST:
		num_print(i->a, b);
		break;
	case INIT_IDENTITY:
		buf_puts(b, i->a == 1 ? "identity" : "{identity: ");
		if (i->a != 1) {
			num_print(i->a, b);
			buf_puts(b, "}");
		}
		break;
	case INIT_ROUND_ROBIN:
		buf_puts(b, "round_robin");
		break;
	case INIT_RAMP:
		buf_puts(b, "{ramp: ");
		nums_print(v, 2, b);
		buf_puts(b, "}");
		break;
	case INIT_KINDS:
		buf_puts(b, "{attn: ");
		num_print(i->a, b);
		buf_puts(b, ", mlp: ");
		num_print(i->b, b);
		buf_puts(b, "}");
		break;
	case INIT_VALUES:
		nums_print(i->v, i->n, b);
		break;
	}
}

static void
files_print(const char *const *v, int n, Buf *b)
{
	int i;

	if (n == 1 && strcmp(v[0], "auto") == 0) {
		buf_puts(b, "auto");
		return;
	}
	buf_puts(b, "[");
	for (i = 0; i < n; i++) {
		buf_puts(b, i ? ", " : "");
		text_print(v[i], b);
	}
	buf_puts(b, "]");
}

static int
int_at(const void *base, ptrdiff_t at)
{
	int v;

	memcpy(&v, (const char *)base + at, sizeof v);
	return v;
}

static bool
bool_at(const void *base, ptrdiff_t at)
{
	bool v;

	memcpy(&v, (const char *)base + at, sizeof v);
	return v;
}

static void
number_print(const Row *row, const void *at, Buf *b)
{
	long long big = 0;
	double x = 0;
	int i = 0;

	if (row->type == T_NUM)
		memcpy(&x, at, sizeof x);
	else if (row->type == T_INT64)
		memcpy(&big, at, sizeof big);
	else
		memcpy(&i, at, sizeof i);
	if (row->type == T_LANE && i < 0)
		buf_puts(b, i == LANE_ALL ? "all" : "mean");
	else if (row->type != T_LANE && row->words && x == 0 && i == 0)
		buf_puts(b, row->words);
	else if (row->type == T_NUM)
		num_print(x, b);
	else
		buf_printf(b, "%lld", row->type == T_INT64 ? big : i);
}

void
value_print(const Row *row, const void *base, Buf *b)
{
	const char *at = (const char *)base + (row->at == NOWHERE ? 0 : row->at);
	void *p = NULL;

	switch (row->type) {
	case T_NAME:
		memcpy(&p, at, sizeof p);
		buf_puts(b, p);
		break;
	case T_TEXT:
		memcpy(&p, at, sizeof p);
		text_print(p, b);
		break;
	case T_INT:
	case T_INT64:
	case T_NUM:
	case T_LANE:
		number_print(row, at, b);
		break;
	case T_BOOL:
		buf_puts(b, bool_at(base, row->at) ? "true" : "false");
		break;
	case T_FLAG:
		word_print(row->words, bool_at(base, row->at), b);
		break;
	case T_WORD:
	case T_REDUCE:
		if (row->type == T_REDUCE && int_at(base, row->at) == 2)
			buf_printf(b, "{lane: %d}", int_at(base, row->at2));
		else
			word_print(row->words, row->at == NOWHERE
			           ? 0 : int_at(base, row->at), b);
		break;
	case T_LAYERS:
	case T_SUBLAYERS:
		sel_print((const void *)at, b);
		break;
	case T_INIT:
		init_print((const void *)at, b);
		break;
	case T_BETAS:
		nums_print((const void *)at, 2, b);
		break;
	case T_NUMS:
		memcpy(&p, at, sizeof p);
		nums_print(p, int_at(base, row->at2), b);
		break;
	case T_INTS:
		memcpy(&p, at, sizeof p);
		ints_print(p, int_at(base, row->at2), NULL, b);
		break;
	case T_WINDOW:
		memcpy(&p, at, sizeof p);
		if (int_at(base, row->at2) != 1)
			ints_print(p, int_at(base, row->at2), "full", b);
		else if (*(int *)p == 0)
			buf_puts(b, "full");
		else
			buf_printf(b, "%d", *(int *)p);
		break;
	case T_FILES:
		memcpy(&p, at, sizeof p);
		files_print(p, int_at(base, row->at2), b);
		break;
	}
}

/* Whether a row has something to say: optional keys only when given, derived
 * ones only when they could be derived. */
static bool
present(const Row *row, const void *base)
{
	if (!row->dflt && (row->type == T_WINDOW || row->type == T_NUMS))
		return int_at(base, row->at2) > 0;
	if (!row->dflt)
		return row->at != NOWHERE && bool_at(base, row->at2);
	if (*row->dflt == '=' && row->type == T_INT)
		return int_at(base, row->at) >= (int)row->range.lo;
	return true;
}

/* Names of `path` that it shares with the path printed before. */
static void
key_print(const char *path, Buf *last, Buf *b)
{
	const char *s = path, *end;
	size_t n;
	int depth = 0;

	for (; (end = strchr(s, '.')); s = end + 1, depth++) {
		n = (size_t)(end - path) + 1;
		if (last->len >= n && memcmp(last->s, path, n) == 0)
			continue;
		buf_printf(b, "%*s%.*s:\n", 2 * depth, "", (int)(end - s), s);
	}
	buf_printf(b, "%*s%s: ", 2 * depth, "", s);
	last->len = 0;
	buf_puts(last, path);
}

/* Rows first .. last - 1 of the Spec, or of the element NAME. */
static void
rows_print(int first, int last, const char *name, const void *base, Buf *done,
           Buf *b)
{
	const Row *row;
	const char *star;
	Buf path = {0};
	int i;

	for (i = first; i < last; i++) {
		row = &schema_row[i];
		if (!present(row, base))
			continue;
		path.len = 0;
		star = strchr(row->path, '*');
		if (star)
			buf_printf(&path, "%.*s%s%s", (int)(star - row->path),
			           row->path, name, star + 1);
		else
			buf_puts(&path, row->path);
		key_print(path.s, done, b);
		value_print(row, base, b);
		buf_puts(b, "\n");
	}
	buf_free(&path);
}

/* The section whose absence is remembered and that row stands in. */
static bool
absent(const Spec *s, const Row *row)
{
	return (strncmp(row->path, "hc.res.", 7) == 0 && !s->has_res) ||
	       (strncmp(row->path, "hc.pre.", 7) == 0 && !s->has_pre) ||
	       (strncmp(row->path, "hc.post.", 8) == 0 && !s->has_post);
}

void
spec_print(const Spec *s, Buf *out)
{
	const char *base = (const char *)s, *star, *name;
	const Named *m;
	char path[64];
	Buf done = {0};
	int i, j, k;

	for (i = 0; i < schema_nrow; i = j) {
		j = i + 1;
		star = strchr(schema_row[i].path, '*');
		if (!star) {
			if (!absent(s, &schema_row[i]))
				rows_print(i, j, NULL, s, &done, out);
			continue;
		}
		snprintf(path, sizeof path, "%.*s",
		         (int)(star - schema_row[i].path) - 1, schema_row[i].path);
		while (j < schema_nrow && strncmp(schema_row[j].path, path,
		                                  strlen(path)) == 0)
			j++;
		m = schema_named(schema_section(path));
		for (k = 0; k < int_at(s, m->n); k++) {
			memcpy(&name, base + m->at + (size_t)k * m->size,
			       sizeof name);
			rows_print(i, j, name, base + m->at + (size_t)k * m->size,
			           &done, out);
		}
	}
	buf_free(&done);
}

/* A path as a cell of code, names written NAME. */
static void
path_cell(Buf *out, const char *path)
{
	buf_puts(out, "| `");
	for (; *path; path++)
		buf_write(out, *path == '*' ? "NAME" : path, *path == '*' ? 4 : 1);
	buf_puts(out, "` | ");
}

static void
cell(Buf *out, const char *s)
{
	for (; *s; s++) {
		if (*s == '|')
			buf_puts(out, "\\");
		buf_write(out, s, 1);
	}
}

void
spec_schema(Buf *out)
{
	const Section *s;
	const Row *row;
	Buf b = {0};
	int i;

	buf_puts(out, "| key | value | default | meaning |\n|---|---|---|---|\n");
	for (i = 0; i < schema_nrow; i++) {
		row = &schema_row[i];
		path_cell(out, row->path);
		b.len = 0;
		row_expect(row, &b);
		cell(out, b.s);
		if (!row->dflt)
			buf_puts(out, " | | ");
		else if (*row->dflt == '!')
			buf_puts(out, " | *required* | ");
		else if (*row->dflt == '=')
			buf_printf(out, " | %s | ", row->dflt + 1);
		else
			buf_printf(out, " | `%s` | ", row->dflt);
		cell(out, row->doc);
		buf_puts(out, " |\n");
	}
	buf_puts(out, "\n| section | a scalar or list sets | `none` removes it |"
	         "\n|---|---|---|\n");
	for (i = 0; i < schema_nsection; i++) {
		s = &schema_sections[i];
		if (!s->shorthand && !s->nullable)
			continue;
		path_cell(out, s->path);
		if (s->shorthand)
			buf_printf(out, "`%s`", s->shorthand);
		buf_printf(out, " | %s |\n", s->nullable ? "yes" : "");
	}
	buf_free(&b);
}
