/* The words of a line of the manifest: each is asked for by what it should be,
 * and anything else ends the process with file and line. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void
line_bad(const Load *l, const char *fmt, ...)
{
	Buf b = {0};
	va_list ap;

	va_start(ap, fmt);
	buf_vprintf(&b, fmt, ap);
	va_end(ap);
	die("%s:%d: %s", l->path, l->line, b.s);
}

/* words of a line */

bool
line_next(Load *l)
{
	char *end;

	if (*l->next == 0)
		return false;
	l->line++;
	end = strchr(l->next, '\n');
	if (!end)
		line_bad(l, "the last line is cut off");
	*end = 0;
	l->p = l->next;
	l->next = end + 1;
	return true;
}

char *
line_word(Load *l, const char *what)
{
	char *w = l->p, *end;

	if (!w)
		line_bad(l, "expected %s, found the end of the line", what);
	end = strchr(w, ' ');
	if (end)
		*end = 0;
	l->p = end ? end + 1 : NULL;
	if (*w == 0)
		line_bad(l, "expected %s, found a second space", what);
	return w;
}

const char *
line_digest(Load *l)
{
	const char *h = intern(line_word(l, "a hash"));

	if (strlen(h) != 64 || strspn(h, "0123456789abcdef") != 64)
		line_bad(l, "'%s' is not a SHA-256", h);
	return h;
}

char *
line_rest(Load *l, const char *what)
{
	char *w = l->p;

	if (!w || *w == 0)
		line_bad(l, "expected %s, found the end of the line", what);
	l->p = NULL;
	return arena_strdup(l->mem, w);
}

void
line_end(Load *l)
{
	if (l->p)
		line_bad(l, "expected the end of the line, found '%s'", l->p);
}

void
line_expect(Load *l, const char *text)
{
	const char *w = line_word(l, text);

	if (strcmp(w, text) != 0)
		line_bad(l, "expected '%s', found '%s'", text, w);
}

int
line_choice(Load *l, const char *what, int n, const char *const *names)
{
	const char *w = line_word(l, what);
	int i;

	for (i = 0; i < n; i++)
		if (strcmp(w, names[i]) == 0)
			return i;
	line_bad(l, "'%s' is not a %s", w, what);
}

/* numbers */

static const char *
digits(const char *s)
{
	while (*s >= '0' && *s <= '9')
		s++;
	return s;
}

static bool
is_integer(const char *s)
{
	const char *d = *s == '-' ? s + 1 : s, *end = digits(d);

	return end > d && *end == 0 && (*d != '0' || d[1] == 0);
}

static bool
is_real(const char *s)
{
	const char *d = *s == '-' ? s + 1 : s, *end = digits(d);

	if (end == d)
		return false;
	if (*end == '.') {
		d = end + 1;
		end = digits(d);
		if (end == d)
			return false;
	}
	if (*end == 'e') {
		d = end + 1;
		d += *d == '+' || *d == '-';
		end = digits(d);
		if (end == d)
			return false;
	}
	return *end == 0;
}

long
line_to_long(Load *l, const char *w, const char *what, long min, long max)
{
	long v;

	if (!is_integer(w))
		line_bad(l, "%s: '%s' is not an integer", what, w);
	errno = 0;
	v = strtol(w, NULL, 10);
	if (errno != 0 || v < min || v > max)
		line_bad(l, "%s: %s is not in %ld … %ld", what, w, min, max);
	return v;
}

long
line_integer(Load *l, const char *what, long min, long max)
{
	return line_to_long(l, line_word(l, what), what, min, max);
}

double
line_to_real(Load *l, const char *w, const char *what)
{
	double v;

	if (!is_real(w))
		line_bad(l, "%s: '%s' is not a number", what, w);
	v = strtod_l(w, NULL, l->c);
	if (!isfinite(v))
		line_bad(l, "%s: %s is not finite", what, w);
	return v;
}

double
line_real(Load *l, const char *what, double min, double max)
{
	const char *w = line_word(l, what);
	double v = line_to_real(l, w, what);

	if (v < min || v > max)
		line_bad(l, "%s: %s is not in %g … %g", what, w, min, max);
	return v;
}

long
line_product(Load *l, const char *what, long a, long b)
{
	long v;

	if (__builtin_mul_overflow(a, b, &v) || v > MaxBytes)
		line_bad(l, "%s: %ld x %ld is too much", what, a, b);
	return v;
}

/* "keyword value" */
long
line_key_integer(Load *l, const char *key, long min, long max)
{
	line_expect(l, key);
	return line_integer(l, key, min, max);
}

double
line_key_real(Load *l, const char *key, double min, double max)
{
	line_expect(l, key);
	return line_real(l, key, min, max);
}

/* names */

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* Letters, digits and what `also` holds; no digit or `also` at the start. */
bool
line_is_name(const char *s, const char *also)
{
	size_t len = strlen(s), i;

	if (len > MaxName || !is_letter(s[0]))
		return false;
	for (i = 1; i < len; i++)
		if (!is_letter(s[i]) && !(s[i] >= '0' && s[i] <= '9') &&
		    !strchr(also, s[i]))
			return false;
	return true;
}

const char *
line_name(Load *l, const char *what, const char *also)
{
	const char *w = line_word(l, what);

	if (!line_is_name(w, also))
		line_bad(l, "%s: '%s' is not a name", what, w);
	return intern(w);
}

/* places */

static const char *const dtype_names[] = {
	[DT_F32] = "f32", [DT_BF16] = "bf16", [DT_F64] = "f64", [DT_I32] = "i32",
	[DT_E4M3] = "f8e4m3", [DT_E5M2] = "f8e5m2",
};

size_t
dtype_size(Dtype dt)
{
	static const size_t size[] = {
		[DT_F32] = 4, [DT_BF16] = 2, [DT_F64] = 8, [DT_I32] = 4, [DT_E4M3] = 1, [DT_E5M2] = 1,
	};

	return size[dt];
}

const char *
dtype_name(Dtype dt)
{
	return dtype_names[dt];
}

bool
dtype_fp8(Dtype dt)
{
	return dt == DT_E4M3 || dt == DT_E5M2;
}

Dtype
line_dtype(Load *l)
{
	return (Dtype)line_choice(l, "dtype", DT_E5M2 + 1, dtype_names);
}

int
line_arena(const char *w)
{
	size_t len = strcspn(w, "+");
	int i;

	if (w[len] != '+')
		return -1;
	for (i = 0; i < NArena; i++)
		if (strlen(arena_names[i]) == len &&
		    strncmp(w, arena_names[i], len) == 0)
			return i;
	return -1;
}

/* nbytes at this place must exist */
Place
line_to_place(Load *l, const char *w, long nbytes, size_t align)
{
	Place p = {line_arena(w), 0};
	long size;

	if (p.arena < 0)
		line_bad(l, "'%s' is not a place", w);
	size = (long)l->run->arena_size[p.arena];
	p.off = (size_t)line_to_long(l, strchr(w, '+') + 1, "offset", 0, MaxBytes);
	if (nbytes > size || (long)p.off > size - nbytes)
		line_bad(l, "%s: %ld bytes there end beyond the %ld of the arena", w,
			 nbytes, size);
	if (p.off % align != 0)
		line_bad(l, "%s is not a multiple of %zu", w, align);
	return p;
}

Place
line_place(Load *l, long nbytes, size_t align)
{
	return line_to_place(l, line_word(l, "a place"), nbytes, align);
}

