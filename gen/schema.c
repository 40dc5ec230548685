/* The schema as tables, and questions about it: what a key means, what a
 * value should look like, which known key an unknown one resembles. */
#include "schema.h"

#include <string.h>

#define REQUIRED "!"
#define DERIVED(text) "=" text
#define NONE NULL

/* A number's size is bounded so that it stays finite in float32. */
#define HUGE_NUM 1e30
#define ANY { 0, 0, 0 }
#define REAL { -HUGE_NUM, HUGE_NUM, 0 }
#define FROM(lo) { lo, HUGE_NUM, 0 }
#define ABOVE(lo) { lo, HUGE_NUM, OPEN_LO }
#define BETWEEN(lo, hi) { lo, hi, 0 }
#define CLOSED(lo, hi) { lo, hi, 0 }
#define LEFT_OPEN(lo, hi) { lo, hi, OPEN_LO }
#define HALF_OPEN(lo, hi) { lo, hi, OPEN_HI }

#define SECTION(path, shorthand, nullable, has, doc)
#define NAMED(path, n, at, T, max)
#define KEY(path, type, at, at2, dflt, range, words, doc) \
	{ path, type, at, at2, dflt, range, words, doc },
const Row schema_row[] = {
#include "schema.def"
};
#undef KEY
#undef SECTION
const int schema_nrow = sizeof schema_row / sizeof *schema_row;

#define KEY(path, type, at, at2, dflt, range, words, doc)
#define SECTION(path, shorthand, nullable, has, doc) \
	{ path, shorthand, nullable, has, doc },
const Section schema_sections[] = {
#include "schema.def"
};
#undef SECTION
#undef NAMED
const int schema_nsection = sizeof schema_sections / sizeof *schema_sections;

#define SECTION(path, shorthand, nullable, has, doc)
#define NAMED(path, n, at, T, max) { path, n, at, sizeof(T), max },
static const Named nameds[] = {
#include "schema.def"
};

enum {
	NSection = sizeof schema_sections / sizeof *schema_sections,
	NNamed = sizeof nameds / sizeof *nameds,
	MaxGuess = 40           /* longest key worth a guess; arbitrary */
};

_Static_assert(sizeof(enum Site) == sizeof(int), "T_WORD stores an int");

const Section *
schema_section(const char *path)
{
	int i;

	for (i = 0; i < NSection; i++)
		if (strcmp(schema_sections[i].path, path) == 0)
			return &schema_sections[i];
	return NULL;
}

const Named *
schema_named(const Section *s)
{
	int i;

	for (i = 0; s && i < NNamed; i++)
		if (strcmp(nameds[i].path, s->path) == 0)
			return &nameds[i];
	return NULL;
}

/* The last name of path if it stands directly in the section, else NULL. */
static const char *
child(const Section *s, const char *path)
{
	size_t n = strlen(s->path);

	if (n) {
		if (strncmp(path, s->path, n) != 0 || path[n] != '.')
			return NULL;
		path += n + 1;
	}
	return *path && !strchr(path, '.') ? path : NULL;
}

const Row *
schema_key(const Section *s, const char *key)
{
	const char *name;
	int i;

	for (i = 0; s && i < schema_nrow; i++) {
		name = child(s, schema_row[i].path);
		if (name && strcmp(name, key) == 0)
			return &schema_row[i];
	}
	return NULL;
}

const Section *
schema_sub(const Section *s, const char *key)
{
	const char *name;
	int i;

	for (i = 0; s && i < NSection; i++) {
		name = child(s, schema_sections[i].path);
		if (name && (strcmp(name, key) == 0 || strcmp(name, "*") == 0))
			return &schema_sections[i];
	}
	return NULL;
}

/* "a, b or c" from "a|b|c"; an empty word stands for an unused constant. */
static void
words_list(const char *words, const char *skip, Buf *b)
{
	const char *w = words, *end;
	int len, n = 0, total = 0;

	for (end = words; end; end = strchr(end, '|'))
		end++, total++;
	for (; w; w = end ? end + 1 : NULL) {
		end = strchr(w, '|');
		len = (int)(end ? end - w : (ptrdiff_t)strlen(w));
		if (len == 0)
			continue;
		buf_puts(b, n == 0 ? "" : n == total - 1 ? " or " : ", ");
		if (skip && strncmp(w, skip, (size_t)len) == 0 && !skip[len])
			buf_printf(b, "{%s: j}", skip);
		else
			buf_printf(b, "%.*s", len, w);
		n++;
	}
}

static void
range_expect(Range r, const char *what, Buf *b)
{
	buf_puts(b, what);
	if (r.lo <= -HUGE_NUM)
		return;
	if (r.hi >= HUGE_NUM) {
		buf_puts(b, r.open & OPEN_LO ? " above " : " of at least ");
		buf_printf(b, "%.16g", r.lo);
		return;
	}
	if (r.open & OPEN_LO)
		buf_printf(b, " above %.16g, at most %.16g", r.lo, r.hi);
	else
		buf_printf(b, " from %.16g to %s%.16g", r.lo,
		           r.open & OPEN_HI ? "below " : "", r.hi);
}

static void
init_expect(const Row *row, Buf *b)
{
	bool identity = row->words && strcmp(row->words, "identity") == 0;

	buf_puts(b, "a number, ");
	if (row->words)
		buf_printf(b, "%s, ", row->words);
	if (identity)
		buf_puts(b, "{identity: a}, ");
	buf_puts(b, "{ramp: [a, b]}, {attn: a, mlp: b} or a list of numbers");
}

void
row_expect(const Row *row, Buf *b)
{
	static const char forms[] =
	        "none, [3, 10], {first: 7, last: 10} or {except: [6]}";

	switch (row->type) {
	case T_NAME:
		buf_puts(b, "a name (letters, digits and _, at most 63, no "
		         "digit first)");
		break;
	case T_TEXT:
		buf_puts(b, "a text");
		break;
	case T_INT:
	case T_INT64:
	case T_NUM:
		if (row->words)
			buf_printf(b, "%s or ", row->words);
		range_expect(row->range, row->type == T_NUM ? "a number"
		                                            : "an integer", b);
		break;
	case T_BOOL:
		buf_puts(b, "true or false");
		break;
	case T_WORD:
	case T_FLAG:
		words_list(row->words, NULL, b);
		break;
	case T_REDUCE:
		words_list(row->words, "lane", b);
		break;
	case T_LANE:
		range_expect(row->range, "a lane", b);
		buf_printf(b, " or %s", row->words);
		break;
	case T_LAYERS:
		buf_printf(b, "all, %s", forms);
		break;
	case T_SUBLAYERS:
		buf_printf(b, "all, attn, mlp, %s", forms);
		break;
	case T_INIT:
		init_expect(row, b);
		break;
	case T_BETAS:
		range_expect(row->range, "[b1, b2], two numbers", b);
		break;
	case T_NUMS:
		buf_printf(b, "a list of 1 to %d numbers of at least %.16g", MaxTargets, row->range.lo);
		break;
	case T_INTS:
		range_expect(row->range, "a list of integers", b);
		break;
	case T_WINDOW:
		range_expect(row->range, "full, an integer", b);
		buf_puts(b, " or a list of those");
		break;
	case T_FILES:
		buf_puts(b, "auto, a path or a list of paths");
		break;
	}
}

/* Edits (insert, delete, replace, swap neighbours) from s to t; MaxGuess when
 * either is too long to be a key of ours. */
static int
edits(const char *s, const char *t)
{
	int row[3][MaxGuess + 1], *r0, *r1, *r2, i, j, v;
	int m = (int)strlen(s), n = (int)strlen(t);

	if (m > MaxGuess || n > MaxGuess)
		return MaxGuess;
	for (j = 0; j <= n; j++)
		row[0][j] = j;
	for (i = 1; i <= m; i++) {
		r0 = row[i % 3];
		r1 = row[(i + 2) % 3];
		r2 = row[(i + 1) % 3];
		r0[0] = i;
		for (j = 1; j <= n; j++) {
			v = r1[j - 1] + (s[i - 1] != t[j - 1]);
			v = r1[j] + 1 < v ? r1[j] + 1 : v;
			v = r0[j - 1] + 1 < v ? r0[j - 1] + 1 : v;
			if (i > 1 && j > 1 && s[i - 1] == t[j - 2] &&
			    s[i - 2] == t[j - 1] && r2[j - 2] + 1 < v)
				v = r2[j - 2] + 1;
			r0[j] = v;
		}
	}
	return row[m % 3][n];
}

static const char *
last_name(const char *path)
{
	const char *dot = strrchr(path, '.');

	return dot ? dot + 1 : path;
}

/* The path of the known key or section nearest to key: with s, only among
 * those of s; else among all, by their last names. */
static const char *
nearest(const Section *s, const char *key, int limit)
{
	const char *best = NULL, *path, *name;
	int i, d;

	for (i = 0; i < schema_nrow + NSection; i++) {
		path = i < schema_nrow ? schema_row[i].path
		                       : schema_sections[i - schema_nrow].path;
		name = s ? child(s, path) : last_name(path);
		if (!name || !*name || *name == '*')
			continue;
		d = edits(key, name);
		if (d <= limit) {
			best = path;
			limit = d - 1;
		}
	}
	return best;
}

/* "lanes, layers, enter" */
static void
section_keys(const Section *s, Buf *b)
{
	const char *name, *sep = "";
	int i;

	for (i = 0; i < schema_nrow + NSection; i++) {
		name = child(s, i < schema_nrow ? schema_row[i].path
		                    : schema_sections[i - schema_nrow].path);
		if (!name || *name == '*')
			continue;
		buf_printf(b, "%s%s", sep, name);
		sep = ", ";
	}
}

const char *
unknown_key(Arena *a, Diag *d, const Section *s, const char *path,
            const Pair *p)
{
	const char *where = *path ? arena_printf(a, " in %s", path) : "";
	const char *word = quoted(a, p->key), *like;
	int limit = strlen(p->key) < 4 ? 1 : strlen(p->key) < 8 ? 2 : 3;
	Buf b = {0};

	like = nearest(s, p->key, limit);
	if (like) {
		like = last_name(like);
		diag_error(d, p->loc, "unknown key %s%s; did you mean \"%s\"?",
		           word, where, like);
		return *path ? arena_printf(a, "%s.%s", path, like) : like;
	}
	if (strcmp(p->key, "extends") == 0) {
		diag_error(d, p->loc, "extends stands at the top of a file, not "
		           "in %s", path);
		return NULL;
	}
	like = nearest(NULL, p->key, 0);
	if (like && !strchr(like, '*')) {
		diag_error(d, p->loc, "unknown key %s%s; did you mean \"%s\"?",
		           word, where, like);
		return like;
	}
	if (schema_key(s, "init") && (strcmp(p->key, "ramp") == 0 ||
	                              strcmp(p->key, "identity") == 0)) {
		diag_error(d, p->loc, "unknown key %s%s; did you mean \"init: "
		           "{%s: ...}\"?", word, where, p->key);
		return NULL;
	}
	section_keys(s, &b);
	diag_error(d, p->loc, "unknown key %s%s; known are %s", word, where,
	           b.s);
	buf_free(&b);
	return NULL;
}
