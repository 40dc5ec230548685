/* The tree of a spec -> Spec, typed and complete.
 *
 * The tree is walked along the schema, so errors come in the user's order and
 * every fault in it is reported: unknown keys, wrong values, too many names,
 * missing keys.  Defaults are set first; those that depend on other keys last.
 * What values mean together (divisibility, lanes in range) is model.c's. */
#include "schema.h"

#include <string.h>

typedef struct { const char *path; Loc loc; } Place;

/* Spec.locs */
typedef struct {
	Loc root;
	int n, cap;
	Place *v;
	int nbad, bad_cap;      /* paths of values and sections in error */
	const char **bad;
} Locs;

typedef struct {
	Arena *a;
	Diag *d;
	Locs *locs;
} Read;

static const Place *
place(const Locs *l, const char *path, size_t len)
{
	int i;

	for (i = 0; i < l->n; i++)
		if (strncmp(l->v[i].path, path, len) == 0 && !l->v[i].path[len])
			return &l->v[i];
	return NULL;
}

Loc
spec_loc(const Spec *s, const char *path)
{
	const Locs *l = s->locs;
	const Place *p;
	size_t len = strlen(path);

	for (;;) {
		p = place(l, path, len);
		if (p)
			return p->loc;
		while (len > 0 && path[len - 1] != '.')
			len--;
		if (len == 0)
			return l->root;
		len--;
	}
}

static void
note_place(Read *r, const char *path, Loc loc)
{
	Place *p = PUSH(r->a, r->locs->v, r->locs->n, r->locs->cap);

	p->path = path;
	p->loc = loc;
}

static void
note_bad(Read *r, const char *path)
{
	*PUSH(r->a, r->locs->bad, r->locs->nbad, r->locs->bad_cap) = path;
}

/* Whether the key or a section around it was written, if wrongly. */
static bool
attempted(const Locs *l, const char *path)
{
	size_t n;
	int i;

	for (i = 0; i < l->nbad; i++) {
		n = strlen(l->bad[i]);
		if (strncmp(l->bad[i], path, n) == 0 &&
		    (!path[n] || path[n] == '.'))
			return true;
	}
	return place(l, path, strlen(path)) != NULL;
}

static const char *
join(Arena *a, const char *path, const char *key)
{
	return *path ? arena_printf(a, "%s.%s", path, key) : key;
}

/* What of a row's path follows the section or element at prefix, or NULL. */
static const char *
below(const char *path, const char *prefix)
{
	size_t n = strlen(prefix);

	if (n == 0)
		return strchr(path, '*') ? NULL : path;
	return strncmp(path, prefix, n) == 0 && path[n] == '.' ? path + n + 1
	                                                       : NULL;
}

static void
defaults(Read *r, const char *prefix, void *base)
{
	int i;

	for (i = 0; i < schema_nrow; i++)
		if (below(schema_row[i].path, prefix))
			value_default(r->a, r->d, &schema_row[i], base);
}

/* Required keys of the document or of one named element. */
static void
missing(Read *r, const char *prefix, const char *path)
{
	Spec s = { .locs = r->locs };
	const Row *row;
	const char *name;
	Buf b = {0};
	int i;

	for (i = 0; i < schema_nrow; i++) {
		row = &schema_row[i];
		name = below(row->path, prefix);
		if (!name || !row->dflt || *row->dflt != '!')
			continue;
		name = join(r->a, path, name);
		if (attempted(r->locs, name))
			continue;
		b.len = 0;
		row_expect(row, &b);
		diag_error(r->d, spec_loc(&s, name), "%s is missing: expected %s",
		           name, b.s);
	}
	buf_free(&b);
}

static void read_section(Read *r, const Section *s, const char *path,
                         const Node *n, void *base);

/* One entry of hc.sources and the like; `none` removes it. */
static void
read_element(Read *r, const Named *m, const Section *s, const char *path,
             const Pair *p, char *base)
{
	char *elem;
	int n;

	if (!name_valid(p->key)) {
		diag_error(r->d, p->loc, "%s is no name: letters, digits and _, "
		           "at most 63, no digit first", quoted(r->a, p->key));
		return;
	}
	if (is_none(p->value))
		return;
	memcpy(&n, base + m->n, sizeof n);
	if (n == m->max) {
		diag_error(r->d, p->loc, "%s: at most %d entries", m->path,
		           m->max);
		return;
	}
	elem = base + m->at + (size_t)n * m->size;
	n++;
	memcpy(base + m->n, &n, sizeof n);
	memcpy(elem, &p->key, sizeof p->key);
	defaults(r, s->path, elem);
	read_section(r, s, path, p->value, elem);
	missing(r, s->path, path);
}

static void
read_key(Read *r, const Section *s, const char *path, const Pair *p, char *base)
{
	const Section *sub = schema_sub(s, p->key);
	const Named *m = schema_named(s);
	const Row *row = schema_key(s, p->key);
	const char *at = join(r->a, path, p->key);
	bool yes = true;

	if (row) {
		note_place(r, at, p->value->loc);
		value_read(r->a, r->d, row, at, p->value, base);
		return;
	}
	if (!sub) {
		at = unknown_key(r->a, r->d, s, path, p);
		if (at)
			note_bad(r, at);
		return;
	}
	note_place(r, at, p->loc);
	if (m) {
		read_element(r, m, sub, at, p, base);
		return;
	}
	if (sub->has != NOWHERE)
		memcpy(base + sub->has, &yes, sizeof yes);
	read_section(r, sub, at, p->value, base);
}

static void
read_section(Read *r, const Section *s, const char *path, const Node *n,
             void *base)
{
	const Row *kind;
	int i;

	if (n->kind == N_MAP) {
		for (i = 0; i < n->n; i++)
			read_key(r, s, path, &n->pair[i], base);
		return;
	}
	kind = schema_key(s, "kind");
	if (!n->bad && s->nullable && kind && is_none(n)) {
		value_read(r->a, r->d, kind, path, n, base);
		note_place(r, join(r->a, path, "kind"), n->loc);
		return;
	}
	note_bad(r, path);
	if (n->bad)
		return;
	if (is_empty(n))
		diag_error(r->d, spec_loc(&(Spec){ .locs = r->locs }, path),
		           "%s has no keys; write {} or remove it", path);
	else
		diag_error(r->d, n->loc, "%s: expected a map of keys, seen %s",
		           path, seen(r->a, n));
}

/* The file's name without folders and ending, `-` and `.` as `_`. */
static const char *
stem(Arena *a, const char *file)
{
	const char *slash = strrchr(file, '/'), *dot;
	char *s, *p;

	file = slash ? slash + 1 : file;
	dot = strrchr(file, '.');
	s = arena_strndup(a, file, dot && dot != file ? (size_t)(dot - file)
	                                              : strlen(file));
	for (p = s; *p; p++)
		if (*p == '-' || *p == '.')
			*p = '_';
	return s;
}

static bool
given(const Spec *s, const char *path)
{
	return place(s->locs, path, strlen(path)) != NULL;
}

/* Defaults taken from other keys. */
static void
derive(Read *r, Spec *s)
{
	static const char *const cap[] = { "cap", "shift", "temperature" };
	bool is_auto;
	size_t i;

	if (!given(s, "name")) {
		s->name = stem(r->a, s->file);
		if (!name_valid(s->name))
			diag_error(r->d, r->locs->root, "name is missing, and the "
			           "file's name %s is none (letters, digits and "
			           "_, at most 63, no digit first)",
			           quoted(r->a, s->name));
	}
	if (!given(s, "model.init.attn_out"))
		s->init_attn_out = s->init_out;
	if (!given(s, "model.init.mlp_out"))
		s->init_mlp_out = s->init_out;
	if (!given(s, "train.val_batch"))
		s->val_batch = s->micro_batches > 0 ? s->tokens_per_step / s->micro_batches : 0;
	if (!given(s, "train.val_seq_len"))
		s->val_seq_len = s->seq_len;
	if (!given(s, "data.val_packing"))
		s->val_packing = s->packing;
	if (!given(s, "model.kv_heads"))
		s->kv_heads = s->heads;
	if (!given(s, "model.head_dim") && s->heads > 0 &&
	    s->width % s->heads == 0)
		s->head_dim = s->width / s->heads;
	if (!given(s, "model.rotary.dims"))
		s->rotary_dims = s->head_dim;
	if (!given(s, "model.attention.key_offset.first"))
		s->offset_first = s->rotary_dims;
	if (!given(s, "model.mlp.hidden"))
		s->hidden = 4 * s->width;
	if (!given(s, "model.softcap.kind"))
		s->softcap = given(s, "model.softcap.cap") ? CAP_TANH : CAP_NONE;
	for (i = 0; s->softcap == CAP_NONE && i < 3; i++)
		value_default(r->a, r->d, schema_key(schema_section(
		              "model.softcap"), cap[i]), s);
	is_auto = s->ntrain == 1 && strcmp(s->train[0], "auto") == 0;
	if (!given(s, "data.bos"))
		s->bos = is_auto ? 256 : 50256;
	if (is_auto && !given(s, "data.val")) {
		s->val = s->train;
		s->nval = 1;
	}
}

Spec *
spec_read(Arena *a, Diag *d, const char *file, int nset,
          const char *const *set)
{
	Spec *s = NEW(a, Spec);
	Locs *locs = NEW(a, Locs);
	Read r = { a, d, locs };
	int before = diag_count(d);
	Node *n = spec_load(a, d, file, nset, set);

	if (!n)
		return NULL;
	s->file = arena_strdup(a, file);
	s->locs = locs;
	locs->root = n->loc;
	defaults(&r, "", s);
	read_section(&r, schema_section(""), "", n, s);
	missing(&r, "", "");
	derive(&r, s);
	return diag_count(d) == before ? s : NULL;
}
