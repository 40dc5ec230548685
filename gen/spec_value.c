/* Values: a node as the typed field of a row, and back to text.
 *
 * Nothing is guessed: what YAML 1.1 readers would take for a boolean or a
 * number in some other base is refused with the words to write instead. */
#include "schema.h"
#include "utf8.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MaxValues = 2 * MaxLayers * MaxLanes * MaxLanes };       /* hc.res */

typedef struct {
	Arena *a;
	Diag *d;
	const Row *row;
	const char *path;
	void *base;
} Ctx;

const char *
quoted(Arena *a, const char *s)
{
	size_t n = strlen(s), max = 60;

	if (n <= max)
		return arena_printf(a, "\"%s\"", s);
	while (max > 0 && ((unsigned char)s[max] & 0xc0) == 0x80)
		max--;
	return arena_printf(a, "\"%.*s...\"", (int)max, s);
}

bool
name_valid(const char *s)
{
	size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
	                     "0123456789");

	return n > 0 && n < 64 && !s[n] && !(*s >= '0' && *s <= '9');
}

static bool
is_word(const Node *n, const char *word)
{
	return n->kind == N_SCALAR && strcmp(n->text, word) == 0;
}

bool
is_none(const Node *n)
{
	return is_word(n, "none");
}

bool
is_empty(const Node *n)
{
	return n->kind == N_SCALAR && n->plain && !*n->text;
}

Pair *
map_find(const Node *map, const char *key)
{
	int i;

	for (i = 0; i < map->n; i++)
		if (strcmp(map->pair[i].key, key) == 0)
			return &map->pair[i];
	return NULL;
}

/* numbers */

static size_t
digits(const char *s)
{
	return strspn(s, "0123456789");
}

/* Decimal, no leading zero; more digits than an int64 surely holds: no. */
static bool
scan_int(const char *s, long long *v)
{
	const char *p = s + (*s == '-' || *s == '+');
	size_t n = digits(p);

	if (n == 0 || p[n] || n > 18 || (n > 1 && *p == '0'))
		return false;
	*v = strtoll(s, NULL, 10);
	return true;
}

static bool
scan_num(const char *s, double *v)
{
	const char *p = s + (*s == '-' || *s == '+');
	size_t whole = digits(p), frac = 0, e;

	if (whole > 1 && *p == '0')
		return false;
	p += whole;
	if (*p == '.') {
		frac = digits(p + 1);
		p += 1 + frac;
	}
	if (whole + frac == 0)
		return false;
	if (*p == 'e' || *p == 'E') {
		p += 1 + (p[1] == '-' || p[1] == '+');
		e = digits(p);
		if (e == 0)
			return false;
		p += e;
	}
	*v = strtod(s, NULL);
	return !*p && isfinite(*v);
}

/* words has a blank before and after each. */
static bool
one_of(const char *s, const char *words)
{
	const char *p = words;
	size_t n = strlen(s);

	if (n == 0 || strchr(s, ' '))
		return false;
	while ((p = strstr(p + 1, s)))
		if (p[-1] == ' ' && p[n] == ' ')
			return true;
	return false;
}

/* Why a plain word is not the number it looks like, or NULL. */
static const char *
number_trap(Arena *a, const char *s, bool integer)
{
	const char *p = s + (*s == '-' || *s == '+');
	size_t n = digits(p);
	double v;
	Buf b = {0};

	if (one_of(p, " .inf .Inf .INF .nan .NaN .NAN inf nan Inf NaN infinity "))
		return "; numbers are finite";
	if (scan_num(s, &v) && integer && v == floor(v) && fabs(v) < 1e15 &&
	    !scan_int(s, &(long long){0}))
		return arena_printf(a, "; write %.0f", v);
	if (scan_num(s, &v))
		return fabs(v) > 1e30 ? "; numbers are at most 1e+30 in size"
		                      : NULL;
	if (n > 1 && *p == '0' && (!p[n] || strchr(".eE", p[n])))
		return "; a leading zero means octal elsewhere, write it without";
	if (*p == '0' && strchr("xXoObB", p[1]) && p[1])
		return "; numbers are decimal";
	if (n && (p[n] == '_' || p[n] == ',') && p[n + 1] &&
	    !p[n + strspn(p + n, "0123456789_,")]) {
		for (; *s; s++)
			if (*s != '_' && *s != ',')
				buf_write(&b, s, 1);
		s = arena_printf(a, "; write %s", b.s);
		buf_free(&b);
		return s;
	}
	if (n && p[n] == ':' && !p[strspn(p, "0123456789:")])
		return "; numbers with colons are refused";
	if (n && strchr("eE.", p[n]) && p[n] && isinf(strtod(s, NULL)))
		return "; numbers are finite";
	return NULL;
}

/* Words to add to a type error: how to write what was probably meant. */
static const char *
hint(Arena *a, const Row *row, const Node *n)
{
	bool integer = row->type != T_NUM && row->type != T_INIT &&
	               row->type != T_BETAS && row->type != T_NUMS;
	const char *s = n->text, *why;
	double v;

	if (n->kind != N_SCALAR)
		return "";
	if (row->type == T_BOOL) {
		if (!n->plain && one_of(s, " true false "))
			return "; write it without quotes";
		if (one_of(s, " yes Yes YES on On ON y Y True TRUE 1 "))
			return "; write true";
		if (one_of(s, " no No NO off Off OFF n N False FALSE 0 "))
			return "; write false";
		return "";
	}
	if (row->type >= T_WORD && row->type != T_LANE && row->type < T_LAYERS)
		return "";
	if (!n->plain)
		return scan_num(s, &v) ? "; write it without quotes" : "";
	why = number_trap(a, s, integer);
	return why ? why : "";
}

const char *
seen(Arena *a, const Node *n)
{
	double v;

	if (n->kind == N_LIST)
		return n->n ? arena_printf(a, "a list of %d", n->n)
		            : "an empty list";
	if (n->kind == N_MAP)
		return n->n ? arena_printf(a, "a map with the key %s",
		                           quoted(a, n->pair[0].key))
		            : "an empty map";
	if (is_empty(n))
		return "nothing";
	if (n->plain && scan_num(n->text, &v) && strlen(n->text) < 40)
		return n->text;
	return quoted(a, n->text);
}

/* Always false. */
static bool
wrong(const Ctx *c, const Node *n, const char *expected)
{
	Buf b = {0};

	if (n->bad)
		return false;
	if (expected)
		buf_puts(&b, expected);
	else
		row_expect(c->row, &b);
	diag_error(c->d, n->loc, "%s: expected %s, seen %s%s", c->path, b.s,
	           seen(c->a, n), hint(c->a, c->row, n));
	buf_free(&b);
	return false;
}

static void
put(const Ctx *c, ptrdiff_t at, const void *v, size_t nbytes)
{
	if (at != NOWHERE)
		memcpy((char *)c->base + at, v, nbytes);
}

static bool
in_range(Range r, double v)
{
	if (v < r.lo || v > r.hi)
		return false;
	return !((r.open & OPEN_LO && v == r.lo) || (r.open & OPEN_HI && v == r.hi));
}

static bool
get_num(const Ctx *c, const Node *n, const char *expected, double *v)
{
	if (n->kind != N_SCALAR || !n->plain || !scan_num(n->text, v) ||
	    !in_range(c->row->range, *v))
		return wrong(c, n, expected);
	return true;
}

static bool
get_int(const Ctx *c, const Node *n, const char *expected, int *v)
{
	long long x;

	if (n->kind != N_SCALAR || !n->plain || !scan_int(n->text, &x))
		return wrong(c, n, expected);
	if (!in_range(c->row->range, (double)x))
		return wrong(c, n, expected);
	if (x > INT_MAX) {
		diag_error(c->d, n->loc, "%s: %lld is larger than %d", c->path,
		           x, INT_MAX);
		return false;
	}
	*v = (int)x;
	return true;
}

/* The index of the scalar among a|b|c, or -1. */
static int
word_index(const Node *n, const char *words)
{
	size_t len;
	int i;

	if (n->kind != N_SCALAR || !*n->text || strchr(n->text, '|'))
		return -1;
	len = strlen(n->text);
	for (i = 0; words; i++) {
		if (strncmp(words, n->text, len) == 0 &&
		    (words[len] == '|' || !words[len]))
			return i;
		words = strchr(words, '|');
		if (words)
			words++;
	}
	return -1;
}

/* One key of a map that is a value, such as {lane: j}. */
static const Node *
only_key(const Node *n, const char *key)
{
	if (n->kind != N_MAP || n->n != 1 || strcmp(n->pair[0].key, key) != 0)
		return NULL;
	return n->pair[0].value;
}

/* "an integer from 0 to 127" */
static const char *
item_expect(const Ctx *c)
{
	Range r = c->row->range;

	return r.hi > INT_MAX
	               ? arena_printf(c->a, "an integer of at least %.0f", r.lo)
	               : arena_printf(c->a, "an integer from %.0f to %.0f", r.lo,
	                              r.hi);
}

/* A list of integers, each once; -1 when it is none. */
static int
get_ints(const Ctx *c, const Node *n, int **out)
{
	int i, j, *v = NEWN(c->a, int, n->n + 1);
	bool ok = true;

	for (i = 0; i < n->n; i++) {
		if (!get_int(c, n->item[i], item_expect(c), &v[i])) {
			ok = false;
			continue;
		}
		for (j = 0; ok && j < i; j++) {
			if (v[j] != v[i])
				continue;
			diag_error(c->d, n->item[i]->loc,
			           "%s: %d is listed twice", c->path, v[i]);
			ok = false;
		}
	}
	*out = v;
	return ok ? n->n : -1;
}

static bool
get_range(const Ctx *c, const Node *n, Sel *sel)
{
	Pair *first = map_find(n, "first"), *last = map_find(n, "last");

	if (!first || !last || n->n != 2) {
		diag_error(c->d, n->loc, "%s: expected {first: i, last: j}, both "
		           "and no other key", c->path);
		return false;
	}
	if (!get_int(c, first->value, item_expect(c), &sel->first) ||
	    !get_int(c, last->value, item_expect(c), &sel->last))
		return false;
	if (sel->first > sel->last) {
		diag_error(c->d, last->value->loc, "%s: last %d is before first "
		           "%d", c->path, sel->last, sel->first);
		return false;
	}
	sel->kind = SEL_RANGE;
	return true;
}

static bool
get_sel(const Ctx *c, const Node *n)
{
	const Node *list = n->kind == N_LIST ? n : only_key(n, "except");
	Sel sel = {0};
	int word = word_index(n, c->row->type == T_LAYERS ? "all|none"
	                                                  : "all|none|attn|mlp");

	if (word >= 0) {
		sel.kind = (unsigned)word;
	} else if (list && list->kind == N_LIST) {
		sel.kind = n->kind == N_LIST ? SEL_LIST : SEL_EXCEPT;
		sel.n = get_ints(c, list, &sel.idx);
		if (sel.n < 0)
			return false;
	} else if (n->kind == N_MAP &&
	           (map_find(n, "first") || map_find(n, "last"))) {
		if (!get_range(c, n, &sel))
			return false;
	} else {
		return wrong(c, n, NULL);
	}
	put(c, c->row->at, &sel, sizeof sel);
	return true;
}

static bool
get_nums(const Ctx *c, const Node *n, double *v)
{
	bool ok = true;
	int i;

	for (i = 0; i < n->n; i++)
		ok &= get_num(c, n->item[i], "a number", &v[i]);
	return ok;
}

static bool
get_init(const Ctx *c, const Node *n)
{
	const char *words = c->row->words;
	bool identity = words && strcmp(words, "identity") == 0;
	const Node *ramp = only_key(n, "ramp"), *diag = only_key(n, "identity");
	const Pair *attn = n->kind == N_MAP ? map_find(n, "attn") : NULL;
	const Pair *mlp = n->kind == N_MAP ? map_find(n, "mlp") : NULL;
	Init init = {0};
	double v[2];

	if (words && is_word(n, words)) {
		init.kind = identity ? INIT_IDENTITY : INIT_ROUND_ROBIN;
		init.a = identity;
	} else if (identity && diag) {
		init.kind = INIT_IDENTITY;
		if (!get_num(c, diag, "a number", &init.a))
			return false;
	} else if (ramp && ramp->kind == N_LIST && ramp->n == 2) {
		init.kind = INIT_RAMP;
		if (!get_nums(c, ramp, v))
			return false;
		init.a = v[0];
		init.b = v[1];
	} else if (n->kind == N_MAP && n->n == 2 && attn && mlp) {
		init.kind = INIT_KINDS;
		if (!get_num(c, attn->value, "a number", &init.a) || !get_num(c, mlp->value, "a number", &init.b))
			return false;
	} else if (n->kind == N_LIST && n->n > 0 && n->n <= MaxValues) {
		init.kind = INIT_VALUES;
		init.n = n->n;
		init.v = NEWN(c->a, double, n->n);
		if (!get_nums(c, n, init.v))
			return false;
	} else if (!get_num(c, n, NULL, &init.a)) {
		return false;
	}
	put(c, c->row->at, &init, sizeof init);
	return true;
}

static bool
get_betas(const Ctx *c, const Node *n)
{
	double v[2];
	bool yes = true;

	if (n->kind != N_LIST || n->n != 2)
		return wrong(c, n, NULL);
	if (!get_num(c, n->item[0], "a number from 0 to below 1", &v[0]) ||
	    !get_num(c, n->item[1], "a number from 0 to below 1", &v[1]))
		return false;
	put(c, c->row->at, v, sizeof v);
	put(c, c->row->at2, &yes, sizeof yes);
	return true;
}

static bool
get_targets(const Ctx *c, const Node *n)
{
	double *v;

	if (n->kind != N_LIST || n->n < 1 || n->n > MaxTargets)
		return wrong(c, n, NULL);
	v = NEWN(c->a, double, n->n);
	if (!get_nums(c, n, v))
		return false;
	put(c, c->row->at, &v, sizeof v);
	put(c, c->row->at2, &n->n, sizeof n->n);
	return true;
}

/* Where one value may stand for a list of one. */
static const Node *
item_of(const Node *n, int i)
{
	return n->kind == N_LIST ? n->item[i] : n;
}

static bool
get_window(const Ctx *c, const Node *n)
{
	int i, count = n->kind == N_LIST ? n->n : 1, *v;

	if (n->kind == N_MAP || count == 0)
		return wrong(c, n, NULL);
	if (count > MaxLayers) {
		diag_error(c->d, n->loc, "%s: %d windows; at most %d layers",
		           c->path, count, MaxLayers);
		return false;
	}
	v = NEWN(c->a, int, count);
	for (i = 0; i < count; i++)
		if (!is_word(item_of(n, i), "full") &&
		    !get_int(c, item_of(n, i), NULL, &v[i]))
			return false;
	put(c, c->row->at, &v, sizeof v);
	put(c, c->row->at2, &count, sizeof count);
	return true;
}

/* A text the user may see again: no control characters. */
static bool
get_text(const Ctx *c, const Node *n, const char **out)
{
	const char *s = n->text;
	bool lines = c->row->at == NOWHERE;     /* notes may have several */
	size_t left, i;
	uint32_t u;
	int len;

	if (n->kind != N_SCALAR || !*s)
		return wrong(c, n, NULL);
	for (i = 0, left = strlen(s); left; i += (size_t)len, left -= (size_t)len) {
		len = utf8_decode(s + i, left, &u);
		if (len && (utf8_visible(u) || (lines && u == '\n')))
			continue;
		diag_error(c->d, n->loc, "%s: %s has a control character",
		           c->path, quoted(c->a, s));
		return false;
	}
	*out = s;
	return true;
}

static bool
get_files(const Ctx *c, const Node *n)
{
	int i, count = n->kind == N_LIST ? n->n : 1;
	const char **v;

	if (n->kind == N_MAP)
		return wrong(c, n, NULL);
	if (count > MaxFiles) {
		diag_error(c->d, n->loc, "%s: %d paths; at most %d, use patterns",
		           c->path, count, MaxFiles);
		return false;
	}
	v = NEWN(c->a, const char *, count + 1);
	for (i = 0; i < count; i++)
		if (!get_text(c, item_of(n, i), &v[i]))
			return false;
	put(c, c->row->at, &v, sizeof v);
	put(c, c->row->at2, &count, sizeof count);
	return true;
}

static bool
get_word(const Ctx *c, const Node *n)
{
	int v = word_index(n, c->row->words), lane;
	const Node *j = only_key(n, "lane");
	bool flag = v == 1;

	if (c->row->type == T_REDUCE && j) {
		if (!get_int(c, j, item_expect(c), &lane))
			return false;
		put(c, c->row->at2, &lane, sizeof lane);
		v = 2;          /* LEAVE_LANE, OUTPUT_LANE */
	} else if (v < 0 || (c->row->type == T_REDUCE && is_word(n, "lane"))) {
		return wrong(c, n, NULL);
	}
	if (c->row->type == T_FLAG)
		put(c, c->row->at, &flag, sizeof flag);
	else
		put(c, c->row->at, &v, sizeof v);
	if (c->row->type == T_WORD)
		put(c, c->row->at2, &(bool){ true }, sizeof(bool));
	return true;
}

_Static_assert(LEAVE_LANE == 2 && OUTPUT_LANE == 2, "get_word");
_Static_assert(SEL_ALL == 0 && SEL_NONE == 1 && SEL_ATTN == 2 && SEL_MLP == 3,
               "get_sel");

static bool
get_number(const Ctx *c, const Node *n)
{
	bool zero = c->row->words && is_word(n, c->row->words), yes = true;
	double x = 0;
	long long big = 0;
	int i = 0;

	switch (c->row->type) {
	case T_NUM:
		if (!zero && !get_num(c, n, NULL, &x))
			return false;
		put(c, c->row->at, &x, sizeof x);
		break;
	case T_INT64:
		if (n->kind != N_SCALAR || !n->plain ||
		    !scan_int(n->text, &big) ||
		    big < (long long)c->row->range.lo ||
		    big > (long long)c->row->range.hi)
			return wrong(c, n, NULL);
		put(c, c->row->at, &big, sizeof big);
		break;
	case T_LANE:
		if (is_word(n, c->row->words))
			i = strcmp(n->text, "all") == 0 ? LANE_ALL : LANE_MEAN;
		else if (!get_int(c, n, NULL, &i))
			return false;
		put(c, c->row->at, &i, sizeof i);
		break;
	default:
		if (!zero && !get_int(c, n, NULL, &i))
			return false;
		put(c, c->row->at, &i, sizeof i);
	}
	put(c, c->row->at2, &yes, sizeof yes);
	return true;
}

bool
value_read(Arena *a, Diag *d, const Row *row, const char *path, const Node *n,
           void *base)
{
	Ctx c = { a, d, row, path, base };
	const char *s;
	int count;
	int *v;
	bool yes;

	if (n->bad)
		return false;
	if (is_empty(n)) {
		diag_error(d, n->loc, "%s has no value", path);
		return false;
	}
	switch (row->type) {
	case T_NAME:
		if (n->kind != N_SCALAR || !name_valid(n->text))
			return wrong(&c, n, NULL);
		put(&c, row->at, &n->text, sizeof n->text);
		put(&c, row->at2, &(bool){ true }, sizeof(bool));
		return true;
	case T_TEXT:
		if (!get_text(&c, n, &s))
			return false;
		put(&c, row->at, &s, sizeof s);
		if (row->at2 != NOWHERE)
			put(&c, row->at2, &(bool){ true }, sizeof(bool));
		return true;
	case T_INT:
	case T_INT64:
	case T_NUM:
	case T_LANE:
		return get_number(&c, n);
	case T_BOOL:
		yes = is_word(n, "true");
		if (!n->plain || (!yes && !is_word(n, "false")))
			return wrong(&c, n, NULL);
		put(&c, row->at, &yes, sizeof yes);
		return true;
	case T_WORD:
	case T_FLAG:
	case T_REDUCE:
		return get_word(&c, n);
	case T_LAYERS:
	case T_SUBLAYERS:
		return get_sel(&c, n);
	case T_INIT:
		return get_init(&c, n);
	case T_BETAS:
		return get_betas(&c, n);
	case T_NUMS:
		return get_targets(&c, n);
	case T_INTS:
		if (n->kind != N_LIST)
			return wrong(&c, n, NULL);
		count = get_ints(&c, n, &v);
		if (count < 0)
			return false;
		put(&c, row->at, &v, sizeof v);
		put(&c, row->at2, &count, sizeof count);
		return true;
	case T_WINDOW:
		return get_window(&c, n);
	case T_FILES:
		return get_files(&c, n);
	}
	return false;
}

void
value_default(Arena *a, Diag *d, const Row *row, void *base)
{
	Node scalar = { .kind = N_SCALAR, .plain = true, .text = row->dflt };
	Loc at = { intern("schema.def"), 1, 1, 1 };
	Node *n = &scalar;

	if (!row->dflt || *row->dflt == '!' || *row->dflt == '=')
		return;
	if (*row->dflt == '[')
		n = yaml_read(a, d, at, row->dflt, strlen(row->dflt));
	if (!n || !value_read(a, d, row, row->path, n, base))
		bug("schema: default of %s", row->path);
}
