/* Text to shards: bytes are tokens 0..255, every file is a document that begins
 * with token 256.  `data: auto` is the C headers of this machine; `hcgen data
 * bytes` is any files; `hcgen data show` looks into shards.
 *
 * Which documents are validation depends on their content alone, and no
 * content is taken twice: the two shards share no file, and adding files moves
 * none from one to the other. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What `auto` takes.  Picked: 8 MB are a few epochs of a run of minutes, a
 * machine with libc6-dev and linux-libc-dev has about as much; larger headers
 * are generated tables. */
enum { AutoBytes = 8000000, AutoLeast = 1000000, AutoFile = 256 << 10,
       AutoVal = 5 };
static const char auto_root[] = "/usr/include";

typedef struct {
	const char *path;
	uint8_t hash[32];
	size_t nbytes;
	bool val;
} Doc;

typedef struct { Arena *mem; int n, cap; Doc *v; } Docs;

/* -- finding files -- */

/* nftw hands its callback no argument */
static struct { Docs *docs; const char *suffix; } walk;

static bool
has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n >= m && strcmp(s + n - m, suffix) == 0;
}

static void
doc_add(Docs *docs, const char *path)
{
	Doc *d;

	if (docs->n == INT_MAX / 2)
		die("%s: more than %d files", path, INT_MAX / 2);
	d = PUSH(docs->mem, docs->v, docs->n, docs->cap);
	*d = (Doc){.path = arena_strdup(docs->mem, path)};
}

static int
walk_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)at;
	if (type == FTW_F && S_ISREG(st->st_mode) &&
	    has_suffix(path, walk.suffix))
		doc_add(walk.docs, path);
	return 0;
}

static int
compare_docs_by_path(const void *a, const void *b)
{
	return strcmp(((const Doc *)a)->path, ((const Doc *)b)->path);
}

static int
compare_docs_by_hash(const void *a, const void *b)
{
	return memcmp(((const Doc *)a)->hash, ((const Doc *)b)->hash, 32);
}

/* Regular files under dir, symbolic links not followed, sorted by path. */
static void
docs_walk(Docs *docs, const char *dir, const char *suffix)
{
	int n = docs->n;

	walk.docs = docs;
	walk.suffix = suffix;
	nftw(dir, walk_one, 32, FTW_PHYS);      /* 32: open directories */
	if (docs->n > n)
		qsort(docs->v + n, (size_t)(docs->n - n), sizeof *docs->v,
		      compare_docs_by_path);
}

/* -- reading them -- */

static bool
is_text(const char *s, size_t n)
{
	unsigned char c;
	size_t i;

	for (i = 0; i < n; i++) {
		c = (unsigned char)s[i];
		if (c == 127 || (c < 32 && (c < '\t' || c > '\r')))
			return false;
	}
	return true;
}

/* Hash and size of a file; false where it is empty, or not what auto takes. */
static bool
doc_read(Doc *d, bool text_only)
{
	Arena *a = arena_new("file");
	char *s = file_read(a, d->path, &d->nbytes);
	bool ok;

	if (!s && !text_only)
		die("%s: %s", d->path, strerror(errno));
	ok = s && d->nbytes > 0 &&
	     (!text_only || (d->nbytes <= AutoFile && is_text(s, d->nbytes)));
	if (ok)
		sha256(s, d->nbytes, d->hash);
	arena_free(a);
	return ok;
}

/* Reads all; drops what doc_read refuses. */
static void
docs_read(Docs *docs, bool text_only)
{
	int i, n = 0;

	for (i = 0; i < docs->n; i++)
		if (doc_read(&docs->v[i], text_only))
			docs->v[n++] = docs->v[i];
	docs->n = n;
}

/* One document of each content, in the order of their hashes: an order as
 * good as shuffled that does not depend on names. */
static void
docs_unique(Docs *docs)
{
	int i, n = 0;

	if (docs->n == 0)
		return;
	qsort(docs->v, (size_t)docs->n, sizeof *docs->v, compare_docs_by_hash);
	for (i = 0; i < docs->n; i++)
		if (n == 0 || compare_docs_by_hash(&docs->v[n - 1],
		                                   &docs->v[i]) != 0)
			docs->v[n++] = docs->v[i];
	docs->n = n;
}

/* The first of them, as many as fit: on a machine with gigabytes of headers
 * that is a sample of all of them. */
static void
docs_limit(Docs *docs, size_t nbytes)
{
	size_t sum = 0;
	int i;

	for (i = 0; i < docs->n && sum + docs->v[i].nbytes <= nbytes; i++)
		sum += docs->v[i].nbytes;
	docs->n = i;
}

/* requires: docs_unique.  provides: about percent of 100 in val; at least one
 * document on either side where there are two. */
static void
docs_split(Docs *docs, int percent)
{
	uint64_t h;
	int i, nval = 0;

	for (i = 0; i < docs->n; i++) {
		/* not the first bytes: docs_limit has chosen by those */
		memcpy(&h, docs->v[i].hash + 8, 8);
		docs->v[i].val = h % 100 < (uint64_t)percent;
		nval += docs->v[i].val;
	}
	if (percent > 0 && nval == 0 && docs->n > 1)
		docs->v[0].val = true;
	if (nval == docs->n && docs->n > 1)
		docs->v[0].val = false;
}

static size_t
docs_bytes(const Docs *docs, bool val)
{
	size_t n = 0;
	int i;

	for (i = 0; i < docs->n; i++)
		if (docs->v[i].val == val)
			n += docs->v[i].nbytes;
	return n;
}

/* -- writing -- */

static void
doc_put(ShardWriter *w, const Doc *d)
{
	Arena *a = arena_new("file");
	size_t i, n;
	char *s = file_read(a, d->path, &n);
	uint16_t *t;

	if (!s || n != d->nbytes) {
		shard_abandon(w);
		die("%s: %s", d->path, s ? "changed while it was read; run it "
		    "again" : strerror(errno));
	}
	t = NEWN(a, uint16_t, n + 1);
	t[0] = ByteBos;
	for (i = 0; i < n; i++)
		t[i + 1] = (unsigned char)s[i];
	shard_put(w, t, (long)n + 1);
	arena_free(a);
}

static void
docs_write(const Docs *docs, bool val, const char *path)
{
	Arena *a = arena_new("shard");
	ShardWriter *w = shard_create(a, path);
	int i;

	for (i = 0; i < docs->n; i++)
		if (docs->v[i].val == val)
			doc_put(w, &docs->v[i]);
	shard_finish(w);
	arena_free(a);
}

/* -- auto -- */

static void
auto_collect(Docs *docs, const char *root)
{
	size_t n;

	docs_walk(docs, root, ".h");
	docs_read(docs, true);
	docs_unique(docs);
	docs_limit(docs, AutoBytes);
	docs_split(docs, AutoVal);
	n = docs_bytes(docs, false) + docs_bytes(docs, true);
	if (n < AutoLeast)
		die("data: `auto` trains on C headers, but %s has %zu bytes of "
		    "them, at least %d are needed; run `apt-get install "
		    "libc6-dev linux-libc-dev`, or give shards in data.train "
		    "and data.val", root, n, AutoLeast);
}

/* Both shards or neither: they are written into a directory of our own, which
 * then takes its place.  Another process may have been first; both made the
 * same. */
void
auto_build(const char *root, const char *dir)
{
	Arena *a = arena_new("auto");
	Docs docs = {.mem = a};
	const char *tmp = arena_printf(a, "%s.tmp%ld", dir, (long)getpid());
	const char *train = arena_printf(a, "%s/train.bin", tmp);
	const char *val = arena_printf(a, "%s/val.bin", tmp);

	auto_collect(&docs, root);
	if (dir_make(tmp) != 0)
		die("%s: %s; set HCGEN_CACHE to a directory that can be "
		    "written", tmp, strerror(errno));
	docs_write(&docs, false, train);
	docs_write(&docs, true, val);
	if (rename(tmp, dir) != 0) {
		unlink(train);
		unlink(val);
		rmdir(tmp);
	}
	fprintf(stderr, "data: %d C headers from %s: %.1f MB to train on, "
	        "%.1f MB to validate, in %s\n", docs.n, root,
	        (double)docs_bytes(&docs, false) / 1e6,
	        (double)docs_bytes(&docs, true) / 1e6, dir);
	arena_free(a);
}

/* compile.c runs what lies in the cache, so it refuses one that others may
 * write; whoever makes it makes it private. */
static void
cache_make(const char *dir)
{
	if (access(dir, F_OK) != 0 &&
	    (dir_make(dir) != 0 || chmod(dir, 0700) != 0))
		die("%s: %s; set HCGEN_CACHE to a directory that can be "
		    "written", dir, strerror(errno));
}

/* The key holds what the text depends on apart from the headers themselves:
 * text once made stays, so that runs weeks apart compare. */
const char *
auto_shard(Arena *a, bool train)
{
	const char *rule = arena_printf(a, "1 %s %d %d %d", auto_root,
	                                AutoBytes, AutoFile, AutoVal);
	const char *cache = cache_dir(a), *dir, *path;
	char key[65];

	sha256_hex(rule, strlen(rule), key);
	dir = arena_printf(a, "%s/data-auto-%.12s", cache, key);
	path = arena_printf(a, "%s/%s.bin", dir, train ? "train" : "val");
	if (access(path, F_OK) != 0) {
		cache_make(cache);
		auto_build(auto_root, dir);
	}
	return path;
}

/* -- hcgen data bytes -- */

static _Noreturn void
usage(void)
{
	die("usage: hcgen data bytes FILES… -o DIR [-r] [--val PERCENT]\n"
	    "       hcgen data show FILE…");
}

typedef struct { const char *dir; int percent; bool recurse; } BytesOpts;

static long
number(const char *option, const char *s, long lo, long hi)
{
	char *end;
	long n;

	errno = 0;
	n = s ? strtol(s, &end, 10) : 0;
	if (!s || end == s || *end || errno || n < lo || n > hi)
		die("%s: expected a number from %ld to %ld, saw `%s`", option,
		    lo, hi, s ? s : "nothing");
	return n;
}

/* Options out of argv; what is left are files, `n` of them in place. */
static BytesOpts
bytes_options(int argc, char **argv, int *n)
{
	BytesOpts o = {.percent = AutoVal};
	bool files_only = false;
	int i;

	*n = 0;
	for (i = 1; i < argc; i++) {
		if (files_only || argv[i][0] != '-') {
			argv[(*n)++] = argv[i];
		} else if (strcmp(argv[i], "--") == 0) {
			files_only = true;
		} else if (strcmp(argv[i], "-r") == 0) {
			o.recurse = true;
		} else if (strcmp(argv[i], "-o") == 0 && i + 1 < argc) {
			o.dir = argv[++i];
		} else if (strcmp(argv[i], "--val") == 0) {
			i++;
			o.percent = (int)number("--val", i < argc ? argv[i] :
			                        NULL, 0, 99);
		} else {
			usage();
		}
	}
	if (!o.dir || *n == 0)
		usage();
	return o;
}

static void
path_add(Docs *docs, const char *path, bool recurse)
{
	struct stat st;

	if (stat(path, &st) != 0)
		die("%s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode) && recurse)
		docs_walk(docs, path, "");
	else if (S_ISDIR(st.st_mode))
		die("%s: is a directory; -r takes the files in it", path);
	else if (!S_ISREG(st.st_mode))
		die("%s: not a regular file; copy it to one", path);
	else
		doc_add(docs, path);
}

static void
shard_report(const char *path, const Docs *docs, bool val)
{
	int i, n = 0;

	for (i = 0; i < docs->n; i++)
		n += docs->v[i].val == val;
	printf("%s: %d documents, %zu tokens\n", path, n,
	       docs_bytes(docs, val) + (size_t)n);
}

static void
bytes_write(Arena *a, const Docs *docs, const BytesOpts *o)
{
	const char *path;

	if (dir_make(o->dir) != 0)
		die("%s: %s", o->dir, strerror(errno));
	path = arena_printf(a, "%s/train.bin", o->dir);
	docs_write(docs, false, path);
	shard_report(path, docs, false);
	if (o->percent == 0)
		return;
	path = arena_printf(a, "%s/val.bin", o->dir);
	docs_write(docs, true, path);
	shard_report(path, docs, true);
}

static int
bytes_main(int argc, char **argv)
{
	Arena *a = arena_new("bytes");
	Docs docs = {.mem = a};
	int i, n, seen;
	BytesOpts o = bytes_options(argc, argv, &n);

	for (i = 0; i < n; i++)
		path_add(&docs, argv[i], o.recurse);
	seen = docs.n;
	docs_read(&docs, false);
	docs_unique(&docs);
	if (docs.n == 0)
		die("no text: %d files, all of them empty", seen);
	if (docs.n == 1 && o.percent > 0)
		die("%s is the only document, it cannot be in both train and "
		    "val; cut it (split -C 64K FILE part.) or give --val 0",
		    docs.v[0].path);
	docs_split(&docs, o.percent);
	bytes_write(a, &docs, &o);
	if (seen > docs.n)
		printf("%d of %d files left out: empty, or the same as "
		       "another\n", seen - docs.n, seen);
	arena_free(a);
	return EX_OK;
}

/* -- hcgen data show -- */

typedef struct { long n, min, median, max; } Lengths;

static int
compare_long(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

static Lengths
lengths(Arena *a, const Shard *s, int bos)
{
	Lengths l = {0};
	long i, *v, begin = 0, nbos = 0;

	for (i = 0; i < s->n; i++)
		nbos += s->token[i] == bos;
	v = NEWN(a, long, nbos + 1);
	for (i = 1; i <= s->n; i++) {
		if (i < s->n && s->token[i] != bos)
			continue;
		v[l.n++] = i - begin;
		begin = i;
	}
	qsort(v, (size_t)l.n, sizeof *v, compare_long);
	l.min = v[0];
	l.median = v[l.n / 2];
	l.max = v[l.n - 1];
	return l;
}

static void
show_text(const Shard *s)
{
	long i;
	int c;

	printf("  begins     ");
	for (i = 0; i < s->n && i < 400; i++) {
		c = s->token[i];
		if (c == ByteBos)
			printf("<bos>");
		else if (c == '\n')
			printf("\n             ");
		else if (c == '\t' || (c >= 32 && c < 127))
			putchar(c);
		else
			printf("\\x%02x", (unsigned)c);
	}
	putchar('\n');
}

static void
show_ids(const Shard *s)
{
	long i;

	printf("  begins     ");
	for (i = 0; i < s->n && i < 16; i++)
		printf("%d ", s->token[i]);
	putchar('\n');
}

/* A file does not say what begins its documents; by custom it is its first
 * token. */
static void
show(const char *path)
{
	Arena *a = arena_new("show");
	Shard s;
	Lengths l;
	int top = 0;
	long i;

	shard_open(&s, path);
	for (i = 0; i < s.n; i++)
		if (s.token[i] > top)
			top = s.token[i];
	l = lengths(a, &s, s.token[0]);
	printf("%s\n"
	       "  header     version 1, %zu bytes\n"
	       "  tokens     %ld, the largest %d\n"
	       "  documents  %ld, if token %d begins them: min %ld, median "
	       "%ld, max %ld tokens\n", path, s.nbytes, s.n, top, l.n,
	       s.token[0], l.min, l.median, l.max);
	if (top <= ByteBos)
		show_text(&s);
	else
		show_ids(&s);
	shard_close(&s);
	arena_free(a);
}

int
data_main(int argc, char **argv)
{
	int i;

	if (argc < 2)
		usage();
	if (strcmp(argv[0], "bytes") == 0)
		return bytes_main(argc, argv);
	if (strcmp(argv[0], "show") != 0)
		usage();
	for (i = 1; i < argc; i++)
		show(argv[i]);
	return EX_OK;
}
