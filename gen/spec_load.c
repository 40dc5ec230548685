/* Files and settings -> one tree.
 *
 * A file's tree is first brought into one form: dotted keys become maps,
 * shorthands become the key they stand for.  Then it is laid over the tree of
 * the file it extends, and the settings of the command line over both.
 * Sections merge, and so do the ends of a range ({first: 7, last: 10}); any
 * other map that is a value ({except: [6]}) replaces.
 * `name` and `log` belong to one file and are not inherited. */
#define _POSIX_C_SOURCE 200809L
#include "schema.h"
#include "utf8.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { MaxChain = 16 };

typedef struct File File;
struct File {
	const char *path;
	dev_t dev;
	ino_t ino;
	File *child;            /* the file that extends this one */
	int depth;
};

typedef struct {
	Arena *a;
	Diag *d;
	int nodes;              /* maps made for dotted keys */
} Load;

static Node *expand(Load *l, const Section *s, Node *n, int depth);
static Node *load_file(Load *l, File *f, Loc from);

static Node *
map_new(Load *l, Loc loc)
{
	Node *n = NEW(l->a, Node);

	n->kind = N_MAP;
	n->loc = loc;
	return n;
}

static Pair *
map_add(Load *l, Node *map, Pair p)
{
	Pair *q = PUSH(l->a, map->pair, map->n, map->cap);

	*q = p;
	return q;
}

/* Put p into map; the same key twice is an error unless both are maps, as
 * `hc.lanes: 2` beside `hc: {dead: []}`. */
static void
map_join(Load *l, Node *map, Pair p)
{
	Pair *old = map_find(map, p.key);
	int i;

	if (!old) {
		map_add(l, map, p);
		return;
	}
	if (old->value->bad || p.value->bad)
		return;
	if (old->value->kind == N_MAP && p.value->kind == N_MAP) {
		for (i = 0; i < p.value->n; i++)
			map_join(l, old->value, p.value->pair[i]);
		return;
	}
	diag_error(l->d, p.loc, "duplicate key %s", quoted(l->a, p.key));
	diag_note(l->d, old->loc, "first written here");
}

/* Put `a.b.c: value` into map, whose section is s. */
static void
insert(Load *l, Node *map, const Section *s, Pair p, int depth)
{
	const char *dot = strchr(p.key, '.');
	Pair head = p, rest = p;
	const Section *sub;

	if (depth > MaxDepth || ++l->nodes > MaxNodes) {
		diag_error(l->d, p.loc, "more than %d levels", MaxDepth);
		return;
	}
	if (!dot) {
		p.value = expand(l, schema_sub(s, p.key), p.value, depth + 1);
		map_join(l, map, p);
		return;
	}
	if (dot == p.key || !dot[1]) {
		diag_error(l->d, p.loc, "a dot in a key stands between two names");
		return;
	}
	head.key = arena_strndup(l->a, p.key, (size_t)(dot - p.key));
	rest.key = dot + 1;
	if (p.plain) {
		head.loc.len = (int)(dot - p.key);
		rest.loc.col += head.loc.len + 1;
		rest.loc.len -= head.loc.len + 1;
	}
	sub = schema_sub(s, head.key);
	head.value = map_new(l, rest.loc);
	insert(l, head.value, sub, rest, depth + 1);
	if (head.value->n)
		map_join(l, map, head);
}

static Node *
expand(Load *l, const Section *s, Node *n, int depth)
{
	Node *map;
	int i;

	if (n->bad)
		return n;
	if (n->kind == N_MAP) {
		map = map_new(l, n->loc);
		for (i = 0; i < n->n; i++)
			insert(l, map, s, n->pair[i], depth);
		return map;
	}
	if (!s || !s->shorthand || is_empty(n) || (s->nullable && is_none(n)))
		return n;
	map = map_new(l, n->loc);
	map_add(l, map, (Pair){ s->shorthand, n->loc, false, n });
	return map;
}

/* `none` in place of a section, or a kind of none said at length: what is
 * laid over it begins anew. */
static bool
is_off(const Section *s, const Node *n)
{
	const Pair *kind = n->kind == N_MAP ? map_find(n, "kind") : NULL;

	return s->nullable && kind && is_none(kind->value);
}

/* {first: i}, {last: j} or both */
static bool
is_range(const Node *n)
{
	int i;

	if (n->kind != N_MAP)
		return false;
	for (i = 0; i < n->n; i++)
		if (strcmp(n->pair[i].key, "first") != 0 &&
		    strcmp(n->pair[i].key, "last") != 0)
			return false;
	return n->n > 0;
}

/* Lay over on base; base is used up. */
static Node *
merge(Load *l, const Section *s, Node *base, Node *over)
{
	Pair *old, *p;
	int i;

	if (s ? base->kind != N_MAP || over->kind != N_MAP || is_off(s, base)
	      : !is_range(base) || !is_range(over))
		return over;
	for (i = 0; i < over->n; i++) {
		p = &over->pair[i];
		old = map_find(base, p->key);
		if (!old) {
			map_add(l, base, *p);
			continue;
		}
		old->value = merge(l, schema_sub(s, p->key), old->value,
		                   p->value);
		old->loc = p->loc;
	}
	base->loc = over->loc;
	return base;
}

static void
map_drop(Node *map, const char *key)
{
	Pair *p = map_find(map, key);

	if (!p)
		return;
	map->n--;
	memmove(p, p + 1, (size_t)(map->pair + map->n - p) * sizeof *p);
}

static bool
printable(const char *s)
{
	size_t left = strlen(s);
	uint32_t c;
	int len;

	for (; left; s += len, left -= (size_t)len) {
		len = utf8_decode(s, left, &c);
		if (!len || !utf8_visible(c))
			return false;
	}
	return true;
}

/* The base that n, the value of `extends` in f, names; NULL when it cannot be
 * read. */
static Node *
load_base(Load *l, File *f, const Node *n)
{
	const char *slash = strrchr(f->path, '/');
	File base = { .child = f, .depth = f->depth + 1 };

	if (n->bad)
		return NULL;
	if (n->kind != N_SCALAR || !*n->text || *n->text == '/' ||
	    !printable(n->text)) {
		diag_error(l->d, n->loc, "extends: expected a path relative to "
		           "this file, seen %s", seen(l->a, n));
		return NULL;
	}
	if (base.depth > MaxChain) {
		diag_error(l->d, n->loc, "extends: a chain of more than %d files",
		           MaxChain);
		return NULL;
	}
	base.path = arena_printf(l->a, "%.*s%s",
	                         slash ? (int)(slash - f->path) + 1 : 0,
	                         f->path, n->text);
	return load_file(l, &base, n->loc);
}

static bool
cycle(Load *l, const File *f, Loc from)
{
	const File *chain[MaxChain + 1], *c;
	Buf b = {0};
	int n = 0;

	chain[n++] = f;
	for (c = f->child; c; c = c->child) {
		chain[n++] = c;
		if (c->dev == f->dev && c->ino == f->ino)
			break;
	}
	if (!c)
		return false;
	for (buf_puts(&b, chain[--n]->path); n > 0; n--)
		buf_printf(&b, " extends %s", chain[n - 1]->path);
	diag_error(l->d, from, "a cycle: %s", b.s);
	buf_free(&b);
	return true;
}

/* The text of f, of which at most MaxBytes + 1 bytes are read.  A file named
 * on the command line that cannot be read ends the process; a base that cannot
 * is an error where it is named. */
static char *
load_text(Load *l, File *f, Loc from, size_t *nbytes)
{
	struct stat st;
	char *text = NULL;
	FILE *in = NULL;
	size_t max;
	int err;

	errno = 0;
	if (stat(f->path, &st) != 0)
		goto fail;
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	if (f->child && cycle(l, f, from))
		return NULL;
	errno = S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
	if (S_ISDIR(st.st_mode) || (f->child && !S_ISREG(st.st_mode)))
		goto fail;
	in = fopen(f->path, "rb");
	if (!in)
		goto fail;
	max = S_ISREG(st.st_mode) && st.st_size < MaxBytes
	              ? (size_t)st.st_size : MaxBytes + 1;
	text = arena_alloc(l->a, max + 1);
	*nbytes = fread(text, 1, max, in);
	err = errno;
	if (!ferror(in)) {
		fclose(in);
		return text;
	}
	fclose(in);
	errno = err;
fail:
	err = errno;
	if (!f->child)
		die("%s: %s", quoted(l->a, f->path), strerror(err));
	diag_error(l->d, from, "extends: cannot read %s: %s",
	           quoted(l->a, f->path), strerror(err));
	return NULL;
}

static Node *
load_file(Load *l, File *f, Loc from)
{
	Loc start = { intern(f->path), 1, 1, 1 };
	Node *n, *base;
	Pair *extends;
	size_t nbytes = 0;
	char *text = load_text(l, f, from, &nbytes);
	const Node *name;

	if (!text)
		return NULL;
	diag_source(l->d, f->path, text, nbytes);
	n = yaml_read(l->a, l->d, start, text, nbytes);
	if (!n && f->child)
		diag_note(l->d, from, "extended here");
	if (!n)
		return NULL;
	if (n->kind != N_MAP) {
		diag_error(l->d, n->loc, "a spec is a map of keys, seen %s",
		           seen(l->a, n));
		return NULL;
	}
	extends = map_find(n, "extends");
	name = extends ? extends->value : NULL;
	map_drop(n, "extends");
	n = expand(l, schema_section(""), n, 1);
	if (!name)
		return n;
	base = load_base(l, f, name);
	if (!base)
		return NULL;
	map_drop(base, "name");
	map_drop(base, "log");
	return merge(l, schema_section(""), base, n);
}

/* The settings as a text of one line each, as diagnostics show them. */
static char *
settings_text(Load *l, int nset, const char *const *set)
{
	Buf b = {0};
	char *text;
	size_t k;
	int i;

	for (i = 0; i < nset; i++) {
		for (k = 0; set[i][k]; k++)
			buf_write(&b, set[i][k] == '\n' ? " " : set[i] + k, 1);
		buf_puts(&b, "\n");
	}
	text = arena_strndup(l->a, b.len ? b.s : "", b.len);
	buf_free(&b);
	return text;
}

/* Setting `path=value` as a tree; NULL when it is none. */
static Node *
setting(Load *l, const char *s, int line)
{
	Loc at = { intern("--set"), line, 1, (int)strcspn(s, "=") };
	Node *map = map_new(l, at);
	const char *value = strchr(s, '=');
	Pair p = { .loc = at, .plain = true };

	if (strlen(s) > MaxScalar || strchr(s, '\n')) {
		diag_error(l->d, at, "a setting is one line of at most %d bytes",
		           MaxScalar);
		return NULL;
	}
	if (!value || value == s) {
		diag_error(l->d, at, "expected path=value, seen %s",
		           quoted(l->a, s));
		return NULL;
	}
	p.key = arena_strndup(l->a, s, (size_t)(value - s));
	at.col += (int)(value - s) + 1;
	at.len = 1;
	if (strcmp(p.key, "extends") == 0) {
		diag_error(l->d, p.loc, "extends stands in a file, not in a "
		           "setting");
		return NULL;
	}
	if (!value[1 + strspn(value + 1, " ")]) {
		diag_error(l->d, at, "%s has no value", p.key);
		return NULL;
	}
	p.value = yaml_read(l->a, l->d, at, value + 1, strlen(value + 1));
	if (!p.value)
		return NULL;
	insert(l, map, schema_section(""), p, 1);
	return map;
}

Node *
spec_load(Arena *a, Diag *d, const char *file, int nset,
          const char *const *set)
{
	Load l = { .a = a, .d = d };
	File top = { .path = file, .depth = 1 };
	Node *n, *over;
	char *text;
	Loc loc;
	int i;

	n = load_file(&l, &top, (Loc){0});
	if (nset > 0) {
		text = settings_text(&l, nset, set);
		diag_source(d, "--set", text, strlen(text));
	}
	for (i = 0; i < nset; i++) {
		over = setting(&l, set[i], i + 1);
		if (!over || !n)
			continue;
		loc = n->loc;
		n = merge(&l, schema_section(""), n, over);
		n->loc = loc;
	}
	return n;
}
