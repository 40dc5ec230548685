/* The schema of the spec: the rows of schema.def and what works on them.
 * Private to spec*.c. */
#ifndef SCHEMA_H
#define SCHEMA_H

#include "spec.h"
#include "tree.h"

typedef enum {
	T_NAME,                 /* const char *; an identifier */
	T_TEXT,                 /* const char *; printable */
	T_INT, T_INT64,
	T_NUM,                  /* double */
	T_BOOL,
	T_WORD,                 /* an enum: words in the order of its constants */
	T_FLAG,                 /* bool: the second of two words */
	T_REDUCE,               /* T_WORD, and {lane: j} with j at at2 */
	T_LANE,                 /* int: an index, or the words mean, all */
	T_LAYERS, T_SUBLAYERS,  /* Sel */
	T_INIT,                 /* Init */
	T_BETAS,                /* double[2] */
	T_NUMS,                 /* double *, its length at at2 */
	T_INTS,                 /* int *, its length at at2 */
	T_WINDOW,               /* int *, its length at at2; `full` is 0 */
	T_FILES                 /* const char **, its length at at2 */
} Type;

enum { NOWHERE = -1 };

typedef struct { double lo, hi; int open; } Range;
enum { OPEN_LO = 1, OPEN_HI = 2 };      /* the bound itself is outside */

/* The text of a default is YAML.  "!" marks a required key, "=..." a default
 * taken from other keys, NULL none at all (then at2 is a has-flag, if any). */
typedef struct {
	const char *path;       /* `*` stands for a name */
	Type type;
	ptrdiff_t at, at2;      /* offsets in Spec, or in the named struct */
	const char *dflt;
	Range range;
	const char *words;      /* a|b|c; of T_INT, T_NUM: the word for 0 */
	const char *doc;
} Row;

typedef struct {
	const char *path;
	const char *shorthand;  /* key that a scalar or a list sets, or NULL */
	bool nullable;          /* `none` in its place is accepted */
	ptrdiff_t has;          /* offset of a flag: section present */
	const char *doc;
} Section;

typedef struct {
	const char *path;       /* of the map; the elements are at path.* */
	ptrdiff_t n, at;        /* offsets of the count and of the array */
	size_t size;            /* of one element, which begins with its name */
	int max;
} Named;

extern const Row schema_row[];
extern const int schema_nrow;
extern const Section schema_sections[];
extern const int schema_nsection;

/* The section at a path, NULL when there is none; "" is the top. */
const Section *schema_section(const char *path);
const Named *schema_named(const Section *s);
/* What key means inside s: a row, a section or neither. */
const Row *schema_key(const Section *s, const char *key);
const Section *schema_sub(const Section *s, const char *key);

/* "an integer from 1 to 128" */
void row_expect(const Row *row, Buf *b);

/* base is the Spec or the element that row's offsets count from. */
bool value_read(Arena *a, Diag *d, const Row *row, const char *path,
                const Node *n, void *base);
void value_default(Arena *a, Diag *d, const Row *row, void *base);
void value_print(const Row *row, const void *base, Buf *b);

/* Text of a user between quotes, clipped. */
const char *quoted(Arena *a, const char *s);
/* What a node is, for "seen ...". */
const char *seen(Arena *a, const Node *n);
bool name_valid(const char *s);
bool is_none(const Node *n);
bool is_empty(const Node *n);           /* `key:` with nothing after it */
Pair *map_find(const Node *map, const char *key);

/* All of a spec's files and settings as one tree without dots, shorthands and
 * extends.  NULL when one of them cannot be read. */
Node *spec_load(Arena *a, Diag *d, const char *file, int nset,
                const char *const *set);

/* Report a key that s does not have; returns the path it was probably meant
 * to be, or NULL. */
const char *unknown_key(Arena *a, Diag *d, const Section *s, const char *path,
                        const Pair *p);

#endif
