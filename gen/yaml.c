/* YAML text -> Node tree, through libyaml's events.
 *
 * libyaml knows the grammar; this file knows what a spec may not contain:
 * anything but clean UTF-8 with LF lines, anchors, aliases, tags, merge keys,
 * directives, a second document, duplicate keys, and more of anything than
 * the limits of tree.h.  Since aliases are refused, the tree is never larger
 * than the text.  Types are not its business: every scalar stays text. */
#include "tree.h"
#include "utf8.h"

#include <string.h>
#include <yaml.h>

typedef struct {
	Arena *a;
	Diag *d;
	Loc at;                 /* where the text begins in its file */
	const char *text;
	size_t len, nchar;
	uint32_t *off;          /* byte offset of each character; NULL: ASCII */
	yaml_parser_t parser;
	yaml_event_t ev;        /* the current event; ev.type 0: none */
	int nodes;
	bool stop;              /* reported, and nothing more can be read */
} Reader;

static Node *read_node(Reader *r, int depth);

static size_t
byte_off(const Reader *r, size_t index)
{
	if (index > r->nchar)
		index = r->nchar;
	return r->off ? r->off[index] : index;
}

static Loc
loc_of(const Reader *r, yaml_mark_t start, yaml_mark_t end)
{
	size_t begin = byte_off(r, start.index);
	size_t line = byte_off(r, start.index - start.column);
	Loc loc = r->at;

	loc.line += (int)start.line;
	loc.col = (int)(begin - line) + (start.line == 0 ? r->at.col : 1);
	loc.len = 1;
	if (end.line == start.line && end.index > start.index)
		loc.len = (int)(byte_off(r, end.index) - begin);
	return loc;
}

static Loc
ev_loc(const Reader *r)
{
	return loc_of(r, r->ev.start_mark, r->ev.end_mark);
}

/* Just behind the last character that is not blank. */
static Loc
end_loc(const Reader *r)
{
	Loc loc = r->at;
	size_t n = r->len, i;

	while (n > 0 && strchr(" \t\n", r->text[n - 1]))
		n--;
	for (i = 0; i < n; i++) {
		loc.col = r->text[i] == '\n' ? 1 : loc.col + 1;
		loc.line += r->text[i] == '\n';
	}
	loc.len = 1;
	return loc;
}

/* Bytes no spec may hold, each with its own message.  Lines and columns are
 * counted here: libyaml does not see the text before it is clean. */

static const char *
bad_bytes(const char *s, size_t left, bool first)
{
	const unsigned char *p = (const unsigned char *)s;
	uint32_t c = 0;

	if (first && left >= 2 && ((p[0] == 0xff && p[1] == 0xfe) ||
	                           (p[0] == 0xfe && p[1] == 0xff)))
		return "the file is UTF-16; save it as UTF-8";
	if (!utf8_decode(s, left, &c))
		return "invalid UTF-8";
	if (c == 0xfeff)
		return first ? "the file begins with a byte order mark; save it "
		               "as UTF-8 without one"
		             : "a byte order mark";
	if (c == '\r')
		return left > 1 && s[1] == '\n'
		               ? "the line ends with CR LF; save the file with "
		                 "LF line ends"
		               : "a carriage return; lines end with LF";
	if (c == 0x85 || c == 0x2028 || c == 0x2029)
		return "a Unicode line separator; lines end with LF";
	if ((c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7f && c < 0xa0) ||
	    c == 0xfffe || c == 0xffff)
		return "a control character";
	return NULL;
}

/* Check every character; find out where each begins. */
static bool
clean(Reader *r)
{
	const char *why = NULL;
	size_t i, line = 0;
	uint32_t c = 0, *off;
	bool ascii = true;
	Loc loc = r->at;

	for (i = 0; i < r->len && !why; ) {
		why = bad_bytes(r->text + i, r->len - i, i == 0);
		if (why)
			break;
		i += (size_t)utf8_decode(r->text + i, r->len - i, &c);
		ascii &= c < 0x80;
		r->nchar++;
		if (c == '\n') {
			loc.line++;
			loc.col = 1;
			line = i;
		}
	}
	if (why) {
		loc.col += (int)(i - line);
		loc.len = 1;
		diag_error(r->d, loc, "%s", why);
		return false;
	}
	if (ascii)
		return true;
	off = NEWN(r->a, uint32_t, r->nchar + 1);
	r->off = off;
	for (i = 0; i < r->len; *off++ = (uint32_t)i,
	     i += (size_t)utf8_decode(r->text + i, r->len - i, &c))
		;
	*off = (uint32_t)r->len;
	return true;
}

/* libyaml's words for the faults people make, in ours */
static const struct { const char *theirs, *ours; } faults[] = {
	{ "mapping values are not allowed in this context",
	  "unexpected \":\"; is the line indented too far, does the line above "
	  "lack its \":\", or is a value to be quoted?" },
	{ "block sequence entries are not allowed in this context",
	  "unexpected \"-\"; a list item stands on a line of its own" },
	{ "could not find expected ':'",
	  "expected \":\" after a key" },
	{ "did not find expected ',' or ']'",
	  "expected \",\" or \"]\"" },
	{ "did not find expected ',' or '}'",
	  "expected \",\" or \"}\"" },
	{ "did not find expected key",
	  "expected a key; does the indentation match the lines above?" },
	{ "did not find expected '-' indicator",
	  "expected \"-\"; does the indentation match the items above?" },
	{ "did not find expected <document start>",
	  "expected a key; is the line indented less than the first one?" },
	{ "found unexpected end of stream",
	  "the file ends inside a quoted text" },
	{ "found unknown escape character",
	  "unknown escape in a double-quoted text; single quotes take \"\\\" as "
	  "it is" },
};

/* libyaml's "while parsing a flow mapping" in our words */
static const char *
part_name(const char *context)
{
	if (strstr(context, "mapping"))
		return "map";
	if (strstr(context, "sequence") || strstr(context, "collection"))
		return "list";
	if (strstr(context, "scalar"))
		return "text";
	return strstr(context, "key") ? "key" : "part";
}

static void
syntax_error(Reader *r)
{
	yaml_parser_t *p = &r->parser;
	const char *what = p->problem ? p->problem : "not YAML";
	Loc loc = loc_of(r, p->problem_mark, p->problem_mark);
	size_t off = byte_off(r, p->problem_mark.index), i;
	char c = off < r->len ? r->text[off] : 0;

	if (off >= r->len)
		loc = end_loc(r);
	r->stop = true;
	if (p->error == YAML_MEMORY_ERROR)
		die("out of memory");
	for (i = 0; i < sizeof faults / sizeof *faults; i++)
		if (strcmp(what, faults[i].theirs) == 0)
			what = faults[i].ours;
	if (strcmp(what, "found character that cannot start any token") != 0)
		diag_error(r->d, loc, "%s", what);
	else if (c == '\t')
		diag_error(r->d, loc, "a tab cannot indent; use spaces");
	else
		diag_error(r->d, loc, "a value that begins with \"%c\" must be "
		           "quoted", c);
	if (p->context && p->context_mark.index != p->problem_mark.index)
		diag_note(r->d, loc_of(r, p->context_mark, p->context_mark),
		          "in the %s that begins here", part_name(p->context));
}

static yaml_event_type_t
next(Reader *r)
{
	yaml_event_delete(&r->ev);
	memset(&r->ev, 0, sizeof r->ev);
	if (r->stop)
		return YAML_NO_EVENT;
	if (!yaml_parser_parse(&r->parser, &r->ev)) {
		syntax_error(r);
		memset(&r->ev, 0, sizeof r->ev);
	}
	return r->ev.type;
}

static Node *
node_new(Reader *r, int kind)
{
	Node *n = NEW(r->a, Node);

	n->kind = (unsigned)kind;
	n->loc = ev_loc(r);
	if (++r->nodes > MaxNodes && !r->stop) {
		diag_error(r->d, n->loc, "more than %d keys and values",
		           MaxNodes);
		r->stop = true;
	}
	return n;
}

/* Anchors and tags of the current event. */
static void
refuse(Reader *r, Node *n, const yaml_char_t *anchor, const yaml_char_t *tag)
{
	if (anchor)
		diag_error(r->d, n->loc, "anchors (\"&%.40s\") are refused; "
		           "write the value where it is used",
		           (const char *)anchor);
	if (tag)
		diag_error(r->d, n->loc, "tags (\"%.40s\") are refused; the type "
		           "follows from the key", (const char *)tag);
	n->bad |= anchor || tag;
}

static Node *
read_scalar(Reader *r)
{
	Node *n = node_new(r, N_SCALAR);
	const char *s = (const char *)r->ev.data.scalar.value;
	size_t len = r->ev.data.scalar.length;

	refuse(r, n, r->ev.data.scalar.anchor, r->ev.data.scalar.tag);
	n->plain = r->ev.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
	n->text = "";
	if (len > MaxScalar) {
		n->loc.len = 1;
		diag_error(r->d, n->loc, "a text of %zu bytes; at most %d are "
		           "allowed", len, MaxScalar);
		n->bad = true;
	} else if (memchr(s, 0, len)) {
		diag_error(r->d, n->loc, "a NUL character in a text");
		n->bad = true;
	} else {
		n->text = arena_strndup(r->a, s, len);
	}
	return n;
}

static Node *
read_list(Reader *r, int depth)
{
	Node *n = node_new(r, N_LIST), *item;

	refuse(r, n, r->ev.data.sequence_start.anchor,
	       r->ev.data.sequence_start.tag);
	n->loc.len = 1;
	while (next(r) != YAML_SEQUENCE_END_EVENT && !r->stop) {
		item = read_node(r, depth + 1);
		if (!r->stop)
			*PUSH(r->a, n->item, n->n, n->cap) = item;
	}
	return n;
}

/* The key of the current event, or NULL when it was refused. */
static Pair *
read_key(Reader *r, Node *map, int depth)
{
	Node *k = read_node(r, depth + 1);
	Pair *p;
	int i;

	if (r->stop || k->bad)
		return NULL;
	if (k->kind != N_SCALAR) {
		diag_error(r->d, k->loc, "expected a key, seen a %s",
		           k->kind == N_LIST ? "list" : "map");
		return NULL;
	}
	if (k->plain && strcmp(k->text, "<<") == 0) {
		diag_error(r->d, k->loc, "merge keys (\"<<\") are refused; use "
		           "extends");
		return NULL;
	}
	if (!*k->text) {
		diag_error(r->d, k->loc, "expected a key before \":\"");
		return NULL;
	}
	for (i = 0; i < map->n; i++) {
		if (strcmp(map->pair[i].key, k->text) != 0)
			continue;
		diag_error(r->d, k->loc, "duplicate key \"%.60s\"", k->text);
		diag_note(r->d, map->pair[i].loc, "first written here");
		return NULL;
	}
	if (map->n == MaxPairs) {
		diag_error(r->d, k->loc, "more than %d keys in one map",
		           MaxPairs);
		r->stop = true;
		return NULL;
	}
	p = PUSH(r->a, map->pair, map->n, map->cap);
	p->key = k->text;
	p->loc = k->loc;
	p->plain = k->plain;
	return p;
}

static Node *
read_map(Reader *r, int depth)
{
	Node *n = node_new(r, N_MAP), *value;
	Pair *p;
	int at;

	refuse(r, n, r->ev.data.mapping_start.anchor,
	       r->ev.data.mapping_start.tag);
	n->loc.len = 1;
	while (next(r) != YAML_MAPPING_END_EVENT && !r->stop) {
		p = read_key(r, n, depth);
		at = n->n - 1;
		if (next(r) == YAML_NO_EVENT)
			break;
		value = read_node(r, depth + 1);
		if (p)
			n->pair[at].value = value;
	}
	return n;
}

static Node *
read_alias(Reader *r)
{
	Node *n = node_new(r, N_SCALAR);

	n->text = "";
	n->bad = true;
	diag_error(r->d, n->loc, "aliases (\"*%.40s\") are refused; write the "
	           "value out, or use extends",
	           (const char *)r->ev.data.alias.anchor);
	return n;
}

static Node *
read_node(Reader *r, int depth)
{
	if (depth > MaxDepth) {
		diag_error(r->d, ev_loc(r), "more than %d levels", MaxDepth);
		r->stop = true;
		return NULL;
	}
	switch (r->ev.type) {
	case YAML_ALIAS_EVENT:
		return read_alias(r);
	case YAML_SEQUENCE_START_EVENT:
		return read_list(r, depth);
	case YAML_MAPPING_START_EVENT:
		return read_map(r, depth);
	case YAML_SCALAR_EVENT:
		return read_scalar(r);
	default:
		bug("yaml: event %d", (int)r->ev.type);
	}
}

static Node *
read_document(Reader *r)
{
	Node *n;

	next(r);                /* stream start */
	if (next(r) == YAML_STREAM_END_EVENT) {
		diag_error(r->d, r->at, "there is nothing here but blanks and "
		           "comments");
		return NULL;
	}
	if (r->stop)
		return NULL;
	if (r->ev.data.document_start.version_directive ||
	    r->ev.data.document_start.tag_directives.start !=
	            r->ev.data.document_start.tag_directives.end)
		diag_error(r->d, ev_loc(r), "directives (lines that begin with "
		           "\"%%\") are refused");
	next(r);
	if (r->stop)
		return NULL;
	n = read_node(r, 1);
	next(r);                /* document end */
	if (next(r) == YAML_DOCUMENT_START_EVENT) {
		diag_error(r->d, ev_loc(r), "a second document begins; a spec is "
		           "one document");
		return NULL;
	}
	if (r->stop)
		return NULL;
	if (n->kind == N_SCALAR && n->plain && !*n->text && !n->bad) {
		diag_error(r->d, r->at, "there is nothing here but blanks and "
		           "comments");
		return NULL;
	}
	return n;
}

Node *
yaml_read(Arena *a, Diag *d, Loc at, const char *text, size_t len)
{
	Reader r = { .a = a, .d = d, .at = at, .text = text, .len = len };
	Node *n;

	if (len > MaxBytes) {
		at.line = at.col = at.len = 0;
		diag_error(d, at, "larger than %d bytes", MaxBytes);
		return NULL;
	}
	if (!clean(&r))
		return NULL;
	if (!yaml_parser_initialize(&r.parser))
		die("out of memory");
	yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&r.parser, (const unsigned char *)text,
	                             len);
	n = read_document(&r);
	yaml_event_delete(&r.ev);
	yaml_parser_delete(&r.parser);
	return r.stop ? NULL : n;
}
