/* Shards to batches: docs/spec.md, Data.
 *
 * The shards in order are one stream.  A *unit* is what the order permutes: a
 * sequence with `packing: stream`, a document with `packing: documents`.  The
 * order of an epoch depends on the seed and the epoch alone, never on threads,
 * batch size or time.  Every token has been compared with the vocabulary when
 * data_open returns: kernels index tables with it unchecked. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>

struct Data {
	Arena *mem;
	int nshard, cap;
	Shard *shard;
	long *first;            /* [nshard + 1] place of each in the stream */
	long seq;
	int bos;
	bool documents, shuffle;
	long max_doc;
	long long seed;
	long ndoc;
	long *doc;              /* [ndoc + 1] documents: where each begins */
	long nunit;
	uint32_t *order;        /* [nunit] of this epoch, if shuffled */
	long epoch, next;       /* next unit of the order */
	int32_t *row;           /* [seq + 1] */
};

/* -- opening -- */

static int
compare_paths(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void
shard_add(Data *d, const char *path)
{
	Shard *s = PUSH(d->mem, d->shard, d->nshard, d->cap);

	shard_open(s, arena_strdup(d->mem, path));
}

/* Base is a path, not a pattern, whatever characters it has. */
static void
put_literal(Buf *b, const char *s)
{
	for (; *s; s++) {
		if (strchr("*?[]\\", *s))
			buf_write(b, "\\", 1);
		buf_write(b, s, 1);
	}
}

static void
pattern_add(Data *d, const char *base, const char *pattern)
{
	Buf b = {0};
	glob_t g;
	size_t i;
	int rc;

	if (pattern[0] != '/' && strcmp(base, ".") != 0) {
		put_literal(&b, base);
		buf_puts(&b, "/");
	}
	buf_puts(&b, pattern);
	/* GLOB_NOSORT: its order is that of the locale, ours is of bytes */
	rc = glob(b.s, GLOB_NOSORT, NULL, &g);
	buf_free(&b);
	if (rc == GLOB_NOMATCH && strpbrk(pattern, "*?["))
		die("data: no file matches `%s` in %s; make shards with "
		    "`hcgen data bytes`, or use `data: auto`", pattern, base);
	if (rc == GLOB_NOMATCH)
		die("data: no file `%s` in %s; make shards with `hcgen data "
		    "bytes`, or use `data: auto`", pattern, base);
	if (rc != 0)
		die("data: cannot read the directories of `%s` in %s", pattern,
		    base);
	qsort(g.gl_pathv, g.gl_pathc, sizeof *g.gl_pathv, compare_paths);
	for (i = 0; i < g.gl_pathc; i++)
		shard_add(d, g.gl_pathv[i]);
	globfree(&g);
}

/* Tokens are looked at in blocks of this size: few enough that a block stays
 * in L1 and that a count in it fits 16 bits, so that the loops vectorise. */
enum { ScanBlock = 4096 };

static void
token_die(const Shard *s, long i, int vocab)
{
	for (; s->token[i] < vocab; i++)
		;
	die("%s: token %ld is %d, but vocab is %d: made for another "
	    "vocabulary; make the shard again or raise vocab", s->path, i,
	    s->token[i], vocab);
}

typedef struct { uint16_t top, nbos; } Scan;

static inline Scan
block_scan(const uint16_t *t, long n, uint16_t bos)
{
	Scan s = {0};
	long i;

	for (i = 0; i < n; i++) {
		s.top = t[i] > s.top ? t[i] : s.top;
		s.nbos = (uint16_t)(s.nbos + (t[i] == bos));
	}
	return s;
}

/* Checks one shard; returns how many of its tokens are bos. */
static long
shard_scan(const Shard *s, int vocab, int bos)
{
	const uint16_t *t;
	long i, nbos = 0;
	Scan b;

	for (i = 0; i < s->n; i += ScanBlock) {
		t = s->token + i;
		/* a constant length is what lets the compiler vectorise */
		if (s->n - i >= ScanBlock)
			b = block_scan(t, ScanBlock, (uint16_t)bos);
		else
			b = block_scan(t, s->n - i, (uint16_t)bos);
		if (b.top >= vocab)
			token_die(s, i, vocab);
		nbos += b.nbos;
	}
	return bos < 0 ? 0 : nbos;
}

/* What comes before the first bos is no document. */
static void
documents_index(Data *d, long nbos)
{
	const Shard *s;
	long i;
	int k;

	if (nbos == 0)
		die("data: `packing: documents`, but no token is data.bos = %d; "
		    "set data.bos to what begins the documents of these shards",
		    d->bos);
	d->doc = NEWN(d->mem, long, nbos + 1);
	for (k = 0; k < d->nshard; k++) {
		s = &d->shard[k];
		for (i = 0; i < s->n; i++)
			if (s->token[i] == d->bos)
				d->doc[d->ndoc++] = d->first[k] + i;
	}
	d->doc[d->ndoc] = d->first[d->nshard];
}

static long
doc_length(const Data *d, long k)
{
	long n = d->doc[k + 1] - d->doc[k];

	return d->max_doc && n > d->max_doc ? d->max_doc : n;
}

static void
short_die(const Data *d, long n, bool train)
{
	die("data.%s: %ld tokens, but one sequence takes seq_len + 1 = %ld; "
	    "give more data or lower train.seq_len", train ? "train" : "val",
	    n, d->seq + 1);
}

static void
units_count(Data *d, bool train)
{
	long k, n = 0;

	if (!d->documents) {
		n = data_tokens(d);
		d->nunit = (n - 1) / d->seq;
	} else {
		for (k = 0; k < d->ndoc; k++)
			n += doc_length(d, k);
		d->nunit = d->ndoc;
	}
	/* in any order: what is complete then has at least one sequence */
	if (n < d->seq + 1)
		short_die(d, n, train);
	if (d->nunit > UINT32_MAX)
		die("data: %ld sequences or documents, at most %ld fit; give "
		    "fewer shards", d->nunit, (long)UINT32_MAX);
}

static void
stream_index(Data *d, int vocab)
{
	long nbos = 0;
	int k;

	d->first = NEWN(d->mem, long, d->nshard + 1);
	for (k = 0; k < d->nshard; k++) {
		d->first[k + 1] = d->first[k] + d->shard[k].n;
		nbos += shard_scan(&d->shard[k], vocab, d->bos);
	}
	if (d->documents)
		documents_index(d, nbos);
}

static bool
is_auto(int nfile, const char *const *files)
{
	return nfile == 1 && strcmp(files[0], "auto") == 0;
}

Data *
data_open(const Run *r, int nfile, const char *const *files, const char *base,
          bool train)
{
	Arena *mem = arena_new("data");
	Data *d = NEW(mem, Data);
	int i;

	d->mem = mem;
	d->seq = train ? r->stage[0].seq : r->prog[r->stage[0].eval].seq;
	d->bos = r->bos;
	d->documents = train ? r->packing_documents : r->val_documents;
	d->shuffle = r->shuffle && train;
	d->max_doc = train ? r->stage[0].max_doc : r->max_doc;
	d->seed = r->seed;
	if (nfile == 0)
		die("data.%s: no files are given; set it, or use `data: auto`",
		    train ? "train" : "val");
	if (is_auto(nfile, files)) {
		if (r->vocab < ByteVocab)
			die("data: `auto` is bytes with bos %d, vocab must be "
			    "at least %d, it is %d", ByteBos, ByteVocab,
			    r->vocab);
		shard_add(d, auto_shard(mem, train));
	} else {
		for (i = 0; i < nfile; i++)
			pattern_add(d, base ? base : ".", files[i]);
	}
	stream_index(d, r->vocab);
	units_count(d, train);
	d->row = NEWN(mem, int32_t, d->seq + 1);
	if (d->shuffle)
		d->order = NEWN(mem, uint32_t, d->nunit);
	data_rewind(d);
	return d;
}

void
data_close(Data *d)
{
	int k;

	for (k = d->nshard - 1; k >= 0; k--)
		shard_close(&d->shard[k]);
	arena_free(d->mem);
}

/* -- the order -- */

static uint64_t
splitmix64(uint64_t z)
{
	z ^= z >> 30;
	z *= 0xBF58476D1CE4E5B9u;
	z ^= z >> 27;
	z *= 0x94D049BB133111EBu;
	return z ^ z >> 31;
}

/* word j of the text's generator, as docs/spec.md defines it for parameters */
typedef struct { uint64_t h, j; } Words;

static Words
words(const char *text)
{
	Words w = {0};
	uint8_t hash[32];

	sha256(text, strlen(text), hash);
	memcpy(&w.h, hash, 8);
	return w;
}

/* Uniform in 0 … n-1: words of the incomplete last run of n are refused. */
static uint64_t
below(Words *w, uint64_t n)
{
	uint64_t x;

	do
		x = splitmix64(w->h + w->j++ * 0x9E3779B97F4A7C15u);
	while (x >= UINT64_MAX - UINT64_MAX % n);
	return x % n;
}

static void
epoch_begin(Data *d, long epoch)
{
	char text[64];
	Words w;
	uint32_t t;
	long i, k;

	d->epoch = epoch;
	d->next = 0;
	if (!d->shuffle)
		return;
	snprintf(text, sizeof text, "%lld/epoch %ld", d->seed, epoch);
	w = words(text);
	for (i = 0; i < d->nunit; i++)
		d->order[i] = (uint32_t)i;
	for (i = d->nunit - 1; i > 0; i--) {
		k = (long)below(&w, (uint64_t)i + 1);
		t = d->order[i];
		d->order[i] = d->order[k];
		d->order[k] = t;
	}
}

void
data_rewind(Data *d)
{
	epoch_begin(d, 0);
}

static long
unit(const Data *d, long i)
{
	return d->order ? (long)d->order[i] : i;
}

void
data_stage(Data *d, long seq, long max_doc)
{
	d->max_doc = max_doc;
	if (seq == d->seq)
		return;
	d->seq = seq;
	d->row = NEWN(d->mem, int32_t, seq + 1);
	if (d->documents)
		return;
	units_count(d, true);
	if (d->shuffle)
		d->order = NEWN(d->mem, uint32_t, d->nunit);
	epoch_begin(d, d->epoch + 1);
}

/* -- reading -- */

long
data_tokens(const Data *d)
{
	return d->first[d->nshard];
}

/* The last shard that begins at or before a place of the stream. */
static int
shard_at(const Data *d, long at)
{
	int lo = 0, hi = d->nshard, mid;

	while (hi - lo > 1) {
		mid = lo + (hi - lo) / 2;
		if (d->first[mid] <= at)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

/* As many of the n tokens from `at` as one shard has. */
static const uint16_t *
span(const Data *d, long at, long *n)
{
	int k = shard_at(d, at);

	if (*n > d->first[k + 1] - at)
		*n = d->first[k + 1] - at;
	return d->shard[k].token + (at - d->first[k]);
}

void
data_copy(const Data *d, long first, long n, uint16_t *out)
{
	const uint16_t *t;
	long m;

	for (; n > 0; n -= m, first += m, out += m) {
		m = n;
		t = span(d, first, &m);
		memcpy(out, t, (size_t)m * sizeof *t);
	}
}

static void
copy_wide(const Data *d, long first, long n, int32_t *out)
{
	const uint16_t *t;
	long i, m;

	for (; n > 0; n -= m, first += m, out += m) {
		m = n;
		t = span(d, first, &m);
		for (i = 0; i < m; i++)
			out[i] = t[i];
	}
}

static void
row_of_stream(Data *d)
{
	if (d->next == d->nunit)
		epoch_begin(d, d->epoch + 1);
	copy_wide(d, unit(d, d->next++) * d->seq, d->seq + 1, d->row);
}

/* What an epoch's last documents leave incomplete is dropped. */
static void
row_of_documents(Data *d)
{
	long fill = 0, k, n;

	while (fill < d->seq + 1) {
		if (d->next == d->nunit) {
			epoch_begin(d, d->epoch + 1);
			fill = 0;
		}
		k = unit(d, d->next++);
		n = doc_length(d, k);
		if (n > d->seq + 1 - fill)
			n = d->seq + 1 - fill;
		copy_wide(d, d->doc[k], n, d->row + fill);
		fill += n;
	}
}

void
data_next(Data *d, int32_t *tokens, int32_t *targets, long rows)
{
	size_t nbytes = (size_t)d->seq * sizeof *tokens;
	long r;

	for (r = 0; r < rows; r++) {
		if (d->documents)
			row_of_documents(d);
		else
			row_of_stream(d);
		memcpy(tokens + r * d->seq, d->row, nbytes);
		memcpy(targets + r * d->seq, d->row + 1, nbytes);
	}
}

/* With documents the number depends on the order; this is the epoch's. */
long
data_sequences(const Data *d)
{
	long i, fill = 0, n = 0;

	if (!d->documents)
		return d->nunit;
	for (i = 0; i < d->nunit; i++) {
		fill += doc_length(d, unit(d, i));
		if (fill >= d->seq + 1) {
			fill = 0;
			n++;
		}
	}
	return n;
}

/* -- inputs of the kernels -- */

static void
docstart_fill(const Run *r, const RunProg *p, const int32_t *tokens, int32_t *out)
{
	int32_t start = 0;
	long i;

	for (i = 0; i < p->tokens; i++) {
		if (i % p->seq == 0 ||
		    (r->document_mask && tokens[i] == r->bos))
			start = (int32_t)i;
		out[i] = start;
	}
}

/* of two rows per token (docs/spec.md, paired heads) */
static void
pair_docstart_fill(const Run *r, const RunProg *p, const int32_t *tokens, int32_t *out)
{
	long i;

	docstart_fill(r, p, tokens, out);
	for (i = 2 * p->tokens - 1; i >= 0; i--)
		out[i] = 2 * out[i / 2];
}

/* 32-bit arithmetic that wraps, on what the first position's row number has
 * overwritten (docs/spec.md, sources) */
static int32_t
bigram_quirk(const RunProg *p, const int32_t *tokens, long i, int rows)
{
	uint32_t before = i % p->seq == 1 ? (uint32_t)rows - 1 : (uint32_t)tokens[i - 1];
	int64_t h = (int32_t)((36313 * (uint32_t)tokens[i]) ^ (27191 * before));

	h %= rows - 1;
	return (int32_t)(h < 0 ? h + rows - 1 : h);
}

static int32_t
bigram(const RunProg *p, const RunInput *in, const int32_t *tokens, long i)
{
	uint64_t h;

	if (i % p->seq == 0 || in->rows < 2)
		return in->rows - 1;
	if (in->quirk)
		return bigram_quirk(p, tokens, i, in->rows);
	h = (36313 * (uint64_t)tokens[i]) ^ (27191 * (uint64_t)tokens[i - 1]);
	return (int32_t)(h % ((uint64_t)in->rows - 1));
}

static int32_t
row_key(const RunProg *p, const RunInput *in, const int32_t *tokens, long i)
{
	return in->kind == IN_ORDER_TOKENS ? tokens[i]
	                                   : bigram(p, in, tokens, i);
}

/* Stable counting sort: rows by key, ties in row order.  start[k] … start[k+1]
 * is bucket k; it first counts one bucket up, so that the running sum leaves
 * the ends, and placing from the back moves them to the beginnings. */
static void
order_fill(const Run *r, const RunProg *p, const RunInput *in, const int32_t *tokens)
{
	int32_t *order = run_at(r, in->at), *start = order + p->tokens;
	long i, n = p->tokens;
	int k;

	memset(start, 0, ((size_t)in->rows + 1) * sizeof *start);
	for (i = 0; i < n; i++)
		start[row_key(p, in, tokens, i)]++;
	for (k = 0; k < in->rows; k++)
		start[k + 1] += start[k];
	for (i = n - 1; i >= 0; i--)
		order[--start[row_key(p, in, tokens, i)]] = (int32_t)i;
}

/* requires: as many tokens as p runs on, in 0 … vocab-1.  targets may be NULL where
 * there are none.  Only a train program scatters: only it needs orders. */
void
inputs_fill(Run *r, const RunProg *p, const int32_t *tokens, const int32_t *targets)
{
	size_t nbytes = (size_t)p->tokens * sizeof *tokens;
	const RunInput *in;
	int32_t *out;
	long i;

	run_inputs(r);
	for (in = r->input; in < r->input + r->ninput; in++) {
		out = run_at(r, in->at);
		switch (in->kind) {
		case IN_TOKENS:
			memcpy(out, tokens, nbytes);
			break;
		case IN_TARGETS:
			if (targets)
				memcpy(out, targets, nbytes);
			break;
		case IN_DOCSTART:
			docstart_fill(r, p, tokens, out);
			break;
		case IN_PAIR_DOCSTART:
			pair_docstart_fill(r, p, tokens, out);
			break;
		case IN_HASH:
			for (i = 0; i < p->tokens; i++)
				out[i] = bigram(p, in, tokens, i);
			break;
		case IN_ORDER_TOKENS:
		case IN_ORDER_HASH:
			if (p->kind == PROG_TRAIN)
				order_fill(r, p, in, tokens);
			break;
		}
	}
	run_put(r, AR_INPUTS, 0, r->arena_size[AR_INPUTS]);
}
