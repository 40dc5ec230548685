/* One YAML document as a tree of nodes that know where they were written.
 * (Not yaml.h: with -Igen that would hide libyaml's header.) */
#ifndef TREE_H
#define TREE_H

#include "base.h"
#include "diag.h"

enum { MaxBytes = 1 << 20, MaxDepth = 32, MaxNodes = 100000,
       MaxScalar = 4096, MaxPairs = 1000 };

typedef struct Node Node;
typedef struct {
	const char *key;
	Loc loc;                /* of the key */
	bool plain;             /* not quoted: loc.col + i is byte i of key */
	Node *value;
} Pair;

struct Node {
	enum { N_SCALAR, N_LIST, N_MAP } kind;
	Loc loc;
	bool bad;               /* refused and reported: say no more about it */
	bool plain;             /* scalar that was not quoted */
	const char *text;       /* N_SCALAR; no NUL inside */
	int n, cap;
	Node **item;            /* N_LIST */
	Pair *pair;             /* N_MAP */
};

/* Parse text, which begins at `at` of its file.  NULL when the text is no
 * document (reported, and what follows would be a guess); other faults leave
 * `bad` nodes. */
Node *yaml_read(Arena *a, Diag *d, Loc at, const char *text, size_t len);

#endif
