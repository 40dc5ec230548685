/* Collected diagnostics.
 *
 * Stages report where they see a fault and go on; diag_flush prints everything
 * once, sorted by file (in the order the files were opened), line and column.
 * Text that comes from the user reaches the terminal only through `show`, so a
 * spec cannot move the cursor, recolour or hide anything. */
#include "diag.h"
#include "utf8.h"

#include <string.h>

enum {
	MaxErrors = 20,
	MaxNotes = 8,           /* per error; picked arbitrarily */
	Width = 100             /* columns of a source line; picked arbitrarily */
};

typedef struct { Loc loc; const char *text; } Note;
typedef struct { Loc loc; const char *text; int nnote; Note note[MaxNotes]; } Error;
typedef struct { const char *file, *text; size_t len; } Source;

struct Diag {
	Arena *a;
	int nsource, source_cap;
	Source *source;
	int nerror;             /* all of them; the first MaxErrors are kept */
	Error *error[MaxErrors];
};

Diag *
diag_new(Arena *a)
{
	Diag *d = NEW(a, Diag);

	d->a = a;
	return d;
}

void
diag_source(Diag *d, const char *file, const char *text, size_t len)
{
	Source *s = PUSH(d->a, d->source, d->nsource, d->source_cap);

	s->file = intern(file);
	s->text = text;
	s->len = len;
}

/* One character of user text as the terminal may see it; returns its bytes. */
static size_t
show(Buf *b, const char *s, size_t n)
{
	uint32_t c = 0;
	int len = utf8_decode(s, n, &c);

	if (len && utf8_visible(c)) {
		buf_write(b, s, (size_t)len);
		return (size_t)len;
	}
	if (*s == '\n')
		buf_puts(b, "\\n");
	else if (*s == '\t')
		buf_puts(b, "\\t");
	else
		buf_printf(b, "\\x%02x", (unsigned char)*s);
	return 1;
}

static void
show_all(Buf *b, const char *s)
{
	size_t n = strlen(s), i;

	for (i = 0; i < n;)
		i += show(b, s + i, n - i);
}

static const char *
message(Diag *d, const char *fmt, va_list ap)
{
	Buf raw = {0}, b = {0};
	const char *s;

	buf_vprintf(&raw, fmt, ap);
	show_all(&b, raw.s);
	s = arena_strndup(d->a, b.len ? b.s : "", b.len);
	buf_free(&raw);
	buf_free(&b);
	return s;
}

void
diag_error(Diag *d, Loc loc, const char *fmt, ...)
{
	Error *e;
	va_list ap;

	if (d->nerror++ >= MaxErrors)
		return;
	e = d->error[d->nerror - 1] = NEW(d->a, Error);
	e->loc = loc;
	va_start(ap, fmt);
	e->text = message(d, fmt, ap);
	va_end(ap);
}

void
diag_note(Diag *d, Loc loc, const char *fmt, ...)
{
	Error *e;
	Note *n;
	va_list ap;

	if (d->nerror == 0 || d->nerror > MaxErrors)
		return;
	e = d->error[d->nerror - 1];
	if (e->nnote == MaxNotes)
		return;
	n = &e->note[e->nnote++];
	n->loc = loc;
	va_start(ap, fmt);
	n->text = message(d, fmt, ap);
	va_end(ap);
}

int
diag_count(const Diag *d)
{
	return d->nerror;
}

static int
file_rank(const Diag *d, const char *file)
{
	int i;

	for (i = 0; file && i < d->nsource; i++)
		if (strcmp(d->source[i].file, file) == 0)
			return i;
	return d->nsource;
}

static int
loc_compare(const Diag *d, Loc a, Loc b)
{
	int x = file_rank(d, a.file), y = file_rank(d, b.file);

	if (x != y)
		return x - y;
	if (a.line != b.line)
		return a.line - b.line;
	return a.col - b.col;
}

/* The text of loc's line: its start and its length in bytes, or NULL. */
static const char *
line_at(const Diag *d, Loc loc, size_t *len)
{
	int k = file_rank(d, loc.file), i;
	const char *s, *end, *nl;

	if (k == d->nsource || loc.line < 1)
		return NULL;
	s = d->source[k].text;
	end = s + d->source[k].len;
	for (i = 1; i < loc.line; i++) {
		nl = memchr(s, '\n', (size_t)(end - s));
		if (!nl)
			return NULL;
		s = nl + 1;
	}
	nl = memchr(s, '\n', (size_t)(end - s));
	*len = (size_t)((nl ? nl : end) - s);
	return s;
}

/* One character of the line in one column: what cannot be shown is `?`. */
static size_t
show_cell(Buf *b, const char *s, size_t n)
{
	uint32_t c = 0;
	int len = utf8_decode(s, n, &c);

	if (len && utf8_visible(c)) {
		buf_write(b, s, (size_t)len);
	} else {
		buf_puts(b, *s == '\t' ? " " : "?");
	}
	return len ? (size_t)len : 1;
}

/* First byte shown of a long line: at most half of Width before the caret. */
static size_t
clip_start(const char *s, size_t caret)
{
	size_t i = caret;
	int n = 0;

	while (i > 0 && n < Width / 2) {
		i--;
		if (((unsigned char)s[i] & 0xc0) != 0x80)
			n++;
	}
	return i;
}

static void
print_line(Buf *b, const Diag *d, Loc loc)
{
	size_t len = 0, caret = loc.col > 0 ? (size_t)loc.col - 1 : 0, i;
	const char *s = line_at(d, loc, &len);
	int n, before = 0, mark = 0;

	if (!s)
		return;
	if (caret > len)
		caret = len;
	buf_printf(b, "%4d | ", loc.line);
	i = len > Width ? clip_start(s, caret) : 0;
	if (i > 0)
		buf_puts(b, "...");
	before = i > 0 ? 3 : 0;
	for (n = 0; i < len && n < Width; n++) {
		if (i < caret)
			before++;
		else if (i < caret + (size_t)(loc.len > 1 ? loc.len : 1))
			mark++;
		i += show_cell(b, s + i, len - i);
	}
	while (i == len && b->s[b->len - 1] == ' ')
		b->s[--b->len] = 0;
	buf_printf(b, "%s\n     | %*s^", i < len ? "..." : "", before, "");
	for (; mark > 1; mark--)
		buf_puts(b, "~");
	buf_puts(b, "\n");
}

static void
print_one(Buf *b, const Diag *d, Loc loc, const char *kind, const char *text)
{
	show_all(b, loc.file ? loc.file : "hcgen");
	if (loc.line > 0)
		buf_printf(b, ":%d:%d", loc.line, loc.col);
	buf_printf(b, ": %s: %s\n", kind, text);
	print_line(b, d, loc);
}

void
diag_flush(Diag *d, FILE *f)
{
	int n = d->nerror < MaxErrors ? d->nerror : MaxErrors, i, j;
	Error *e;
	Buf b = {0};

	if (d->nerror == 0)
		return;
	for (i = 1; i < n; i++) {
		e = d->error[i];
		for (j = i; j > 0 && loc_compare(d, d->error[j - 1]->loc,
		                                 e->loc) > 0; j--)
			d->error[j] = d->error[j - 1];
		d->error[j] = e;
	}
	for (i = 0; i < n; i++) {
		e = d->error[i];
		print_one(&b, d, e->loc, "error", e->text);
		for (j = 0; j < e->nnote; j++)
			print_one(&b, d, e->note[j].loc, "note",
			          e->note[j].text);
	}
	if (d->nerror > n)
		buf_printf(&b, "hcgen: %d errors; further errors not shown\n", n);
	else
		buf_printf(&b, "hcgen: %d error%s\n", n, n == 1 ? "" : "s");
	fwrite(b.s, 1, b.len, f);
	buf_free(&b);
}
