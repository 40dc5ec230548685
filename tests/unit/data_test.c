/* Shards, packing, order, inputs, bytes and the n-gram model, against naive
 * copies of what docs/spec.md says.  Works in a directory of its own. */
#define _GNU_SOURCE
#include "../../runtime/hcrun.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static Arena *mem;
static int failed;

/* So that the test links without the rest of the runtime. */
__attribute__((weak)) void *
run_at(const Run *r, Place p)
{
	return r->arena[p.arena] + p.off;
}

static void
check(const char *name, bool ok, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

static void
check(const char *name, bool ok, const char *fmt, ...)
{
	va_list ap;

	if (ok) {
		printf("ok %s\n", name);
		return;
	}
	failed++;
	printf("FAIL %s ", name);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

/* -- children that die -- */

typedef struct { int rc; char err[2000]; } Child;

/* Runs fn in a child; what it wrote to stderr, and its exit code. */
static Child
child(void (*fn)(void *), void *arg)
{
	Child c = {0};
	size_t n = 0;
	ssize_t got;
	int p[2], status;
	pid_t pid;

	fflush(stdout);
	if (pipe(p) != 0 || (pid = fork()) < 0)
		die("pipe, fork: %s", strerror(errno));
	if (pid == 0) {
		dup2(p[1], 2);
		close(p[0]);
		close(p[1]);
		if (!freopen("/dev/null", "w", stdout))
			_exit(99);
		fn(arg);
		fflush(stdout);
		_exit(0);
	}
	close(p[1]);
	while ((got = read(p[0], c.err + n, sizeof c.err - 1 - n)) > 0)
		n += (size_t)got;
	close(p[0]);
	waitpid(pid, &status, 0);
	c.rc = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	return c;
}

/* fn must end with exit 2 and one line that holds all of the words. */
static void
check_dies(const char *name, void (*fn)(void *), void *arg, const char *file,
           const char *why, const char *hint)
{
	Child c = child(fn, arg);

	check(name, c.rc == EX_ENV && strstr(c.err, file) &&
	      strstr(c.err, why) && strstr(c.err, hint) &&
	      strncmp(c.err, "hcgen: ", 7) == 0,
	      "exit %d, expected `%s`, `%s`, `%s` in: %s", c.rc, file, why,
	      hint, c.err);
}

/* -- making data -- */

static uint64_t state = 1;

static long
rnd(long n)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (long)((state >> 33) % (uint64_t)n);
}

static void
shard_write(const char *path, const uint16_t *t, long n)
{
	ShardWriter *w = shard_create(mem, path);
	long half = n / 2;

	shard_put(w, t, half);
	shard_put(w, t + half, n - half);
	if (shard_finish(w) != n)
		check("shard_finish", false, "count");
}

static Run *
run_new(int vocab, int bos, long seq)
{
	Run *r = NEW(mem, Run);

	r->vocab = vocab;
	r->bos = bos;
	r->document_mask = bos >= 0;
	r->stage = NEWN(mem, RunStage, 2);
	r->stage[0].seq = seq;
	r->stage[0].eval = PROG_EVAL;
	r->prog = NEWN(mem, RunProg, NProg);
	r->prog[PROG_EVAL].seq = r->prog[PROG_TRAIN].seq = seq;
	r->prog[PROG_TRAIN].kind = PROG_TRAIN;
	return r;
}

static void
text_write(const char *path, const char *s, size_t n)
{
	if (file_write(path, s, n) != 0)
		die("%s: %s", path, strerror(errno));
}

/* -- shards -- */

static void
test_round_trip(void)
{
	uint16_t t[5000];
	Shard s;
	struct stat st;
	int i;

	for (i = 0; i < 5000; i++)
		t[i] = (uint16_t)rnd(65536);
	shard_write("round.bin", t, 5000);
	shard_open(&s, "round.bin");
	check("shard-round-trip", s.n == 5000 &&
	      memcmp(s.token, t, sizeof t) == 0, "%ld tokens", s.n);
	shard_close(&s);
	check("shard-size", stat("round.bin", &st) == 0 &&
	      st.st_size == 1024 + 10000, "%lld", (long long)st.st_size);
	shard_close(&s);        /* twice does nothing */
}

static void
open_shard(void *path)
{
	Shard s;

	shard_open(&s, path);
}

static char *
damaged(const char *name, long at, int32_t value, long nbytes)
{
	size_t n;
	char *s = file_read(mem, "round.bin", &n);
	char *path = arena_printf(mem, "%s.bin", name);

	if (at >= 0)
		memcpy(s + at, &value, sizeof value);
	text_write(path, s, nbytes >= 0 ? (size_t)nbytes : n);
	return path;
}

static void
test_damage(void)
{
	char *s;

	s = damaged("truncated", -1, 0, 11000);
	check_dies("shard-truncated", open_shard, s, s,
	           "5000 tokens, that is 11024 bytes, but the file has 11000: "
	           "it is truncated", "copy or make it again");
	s = damaged("count", 8, 4000, -1);
	check_dies("shard-count-mismatch", open_shard, s, s,
	           "4000 tokens, that is 9024 bytes, but the file has 11024: "
	           "it is too long", "copy or make it again");
	s = damaged("negative", 8, -5, -1);
	check_dies("shard-count-negative", open_shard, s, s, "-5 tokens",
	           "copy or make it again");
	s = damaged("odd", -1, 0, 11023);
	check_dies("shard-odd-byte", open_shard, s, s, "truncated",
	           "make it again");
	s = damaged("none", 8, 0, 1024);
	check_dies("shard-no-tokens", open_shard, s, s, "no tokens",
	           "take it off the list");
	s = damaged("magic", 0, 20240801, -1);
	check_dies("shard-magic", open_shard, s, s,
	           "20240801 (llm.c tokens of 32 bits), expected 20240520",
	           "hcgen data bytes");
	s = damaged("version", 4, 2, -1);
	check_dies("shard-version", open_shard, s, s, "is 2, expected 1",
	           "make it again");
	s = damaged("header", -1, 0, 1023);
	check_dies("shard-half-header", open_shard, s, s, "1023 bytes",
	           "make it again");
	s = damaged("empty", -1, 0, 0);
	check_dies("shard-empty", open_shard, s, s, "empty file",
	           "make it again");
	if (mkdir("folder", 0777) != 0 || mkfifo("pipe", 0666) != 0)
		die("folder, pipe: %s", strerror(errno));
	s = arena_strdup(mem, "folder");
	check_dies("shard-directory", open_shard, s, s, "is a directory",
	           "folder/*.bin");
	s = arena_strdup(mem, "pipe");
	check_dies("shard-pipe", open_shard, s, s, "not a regular file",
	           "copy it");
	s = arena_strdup(mem, "absent.bin");
	check_dies("shard-missing", open_shard, s, s, "No such file",
	           "data.train");
}

/* More than 2 GiB, nearly all of it a hole. */
static void
test_large(void)
{
	int32_t head[256] = {20240520, 1, 1200000000};
	uint16_t last = 4711;
	off_t nbytes = 1024 + 2 * (off_t)head[2];
	int fd = open("large.bin", O_WRONLY | O_CREAT, 0666);
	Shard s;

	if (fd < 0 || write(fd, head, sizeof head) != sizeof head ||
	    pwrite(fd, &last, 2, nbytes - 2) != 2)
		die("large.bin: %s", strerror(errno));
	close(fd);
	shard_open(&s, "large.bin");
	check("shard-over-2-GiB", s.n == head[2] && s.token[s.n - 1] == last,
	      "%ld tokens", s.n);
	shard_close(&s);
	unlink("large.bin");
}

static void
put_too_many(void *arg)
{
	ShardWriter *w = shard_create(mem, "many.bin");
	uint16_t t = 0;

	(void)arg;
	shard_put(w, &t, 1);
	shard_put(w, &t, INT32_MAX);
}

static void
test_writer(void)
{
	ShardWriter *w = shard_create(mem, "given-up.bin");
	uint16_t t[3] = {1, 2, 3};

	shard_put(w, t, 3);
	check("writer-not-in-place-before-finish",
	      access("given-up.bin", F_OK) != 0, "it is there");
	shard_abandon(w);
	check("writer-abandoned-leaves-nothing",
	      access(arena_printf(mem, "given-up.bin.tmp%ld", (long)getpid()),
	             F_OK) != 0, "the temporary is there");
	check_dies("writer-too-many-tokens", put_too_many, NULL, "many.bin",
	           "more than 2147483647", "fewer files");
}

/* -- data_open -- */

typedef struct { Run *r; const char *file[3]; int n; const char *base; } Open;

static void
open_data(void *arg)
{
	Open *o = arg;

	data_close(data_open(o->r, o->n, o->file, o->base, true));
}

static void
test_open_errors(void)
{
	uint16_t t[9000] = {0};
	Run *r = run_new(257, 256, 16);
	Open o = {.r = r, .base = ".", .n = 2, .file = {"low.bin", "high.bin"}};

	shard_write("low.bin", t, 9000);
	t[8191] = 257;
	shard_write("high.bin", t, 9000);
	check_dies("token-outside-vocab", open_data, &o, "high.bin",
	           "token 8191 is 257, but vocab is 257", "raise vocab");
	r->vocab = 258;
	check("token-inside-vocab", child(open_data, &o).rc == 0, "died");
	o.file[0] = "no/*.bin";
	check_dies("glob-matches-nothing", open_data, &o, "no/*.bin",
	           "no file matches", "hcgen data bytes");
	o.file[0] = "no.bin";
	check_dies("data-file-missing", open_data, &o, "no.bin", "no file",
	           "hcgen data bytes");
	o.n = 0;
	check_dies("no-files-given", open_data, &o, "data.train",
	           "no files are given", "data: auto");
	o.n = 1;
	o.file[0] = "short.bin";
	shard_write("short.bin", t, 16);
	check_dies("too-short-for-a-sequence", open_data, &o, "data.train",
	           "16 tokens, but one sequence takes seq_len + 1 = 17",
	           "more data");
	o.file[0] = "low.bin";
	r->packing_documents = r->val_documents = true;
	check_dies("documents-without-bos-in-data", open_data, &o, "data",
	           "no token is data.bos = 256", "set data.bos");
	o.file[0] = "auto";
	r->vocab = 256;
	r->packing_documents = r->val_documents = false;
	check_dies("auto-needs-257-tokens", open_data, &o, "data",
	           "it is 256", "at least 257");
}

/* -- packing -- */

typedef struct { uint16_t *t; long n; } Stream;

/* Random documents in shards b-*.bin of awkward sizes; written so that the
 * order of names is not the order of making. */
static Stream
stream_write(int bos)
{
	static const long size[] = {700, 1, 2, 399, 898};
	static const char *const name[] = {"p-a.bin", "p-b.bin", "p-c.bin",
	                                   "p-d.bin", "p-e.bin"};
	Stream s = {NEWN(mem, uint16_t, 2000), 2000};
	long at, i;
	int k;

	for (i = 0; i < s.n; i++)
		s.t[i] = (uint16_t)(rnd(12) == 0 ? bos : rnd(200));
	for (k = 4; k >= 0; k--) {
		for (at = 0, i = 0; i < k; i++)
			at += size[i];
		shard_write(name[k], s.t + at, size[k]);
	}
	return s;
}

/* Row r of the stream: seq + 1 tokens from r*seq. */
static long
naive_stream(const Stream *s, long seq, uint16_t *out)
{
	long r;

	for (r = 0; r * seq + seq + 1 <= s->n; r++)
		memcpy(out + r * (seq + 1), s->t + r * seq,
		       (size_t)(seq + 1) * 2);
	return r;
}

/* One token at a time, with a place in the row and a place in the document. */
static long
naive_documents(const Stream *s, long seq, int bos, long max_doc, uint16_t *out)
{
	long i, rows = 0, fill = 0, in_doc = 0;
	bool skip = true;

	for (i = 0; i < s->n; i++) {
		if (s->t[i] == bos) {
			skip = false;
			in_doc = 0;
		}
		if (skip || (max_doc && in_doc >= max_doc))
			continue;
		out[rows * (seq + 1) + fill++] = s->t[i];
		in_doc++;
		if (fill == seq + 1) {
			fill = 0;
			rows++;
			skip = true;
		}
	}
	return rows;
}

/* Rows from data_next against rows of the naive one, over two epochs. */
static void
check_rows(const char *name, Data *d, long seq, const uint16_t *rows, long n)
{
	int32_t *x = NEWN(mem, int32_t, 3 * seq), *y = NEWN(mem, int32_t, 3 * seq);
	const uint16_t *want;
	long at, i, j;

	if (data_sequences(d) != n) {
		check(name, false, "%ld sequences, expected %ld",
		      data_sequences(d), n);
		return;
	}
	for (at = 0; at + 3 <= 2 * n; at += 3) {
		data_next(d, x, y, 3);
		for (j = 0; j < 3; j++)
			for (i = 0; i < seq; i++) {
				want = rows + (at + j) % n * (seq + 1) + i;
				if (x[j * seq + i] == want[0] &&
				    y[j * seq + i] == want[1])
					continue;
				check(name, false, "row %ld, position %ld",
				      at + j, i);
				return;
			}
	}
	check(name, true, "%s", "");
}

static void
test_packing(void)
{
	static const char *const glob[] = {"p-*.bin"};
	static const char *const list[] = {"p-[ab].bin", "p-c.bin", "p-[d-e].*"};
	Stream s = stream_write(256);
	uint16_t *rows = NEWN(mem, uint16_t, 4000), copy[500];
	Run *r = run_new(257, 256, 16);
	Data *d = data_open(r, 1, glob, ".", true);

	check("stream-of-all-shards", data_tokens(d) == 2000, "%ld",
	      data_tokens(d));
	data_copy(d, 650, 500, copy);
	check("copy-over-shards", memcmp(copy, s.t + 650, sizeof copy) == 0,
	      "differs");
	check_rows("packing-stream", d, 16, rows, naive_stream(&s, 16, rows));
	data_close(d);
	d = data_open(r, 3, list, ".", false);
	check_rows("packing-stream-list-of-globs", d, 16, rows,
	           naive_stream(&s, 16, rows));
	data_close(d);
	r->packing_documents = r->val_documents = true;
	d = data_open(r, 1, glob, ".", true);
	check_rows("packing-documents", d, 16, rows,
	           naive_documents(&s, 16, 256, 0, rows));
	data_rewind(d);
	check_rows("rewind", d, 16, rows,
	           naive_documents(&s, 16, 256, 0, rows));
	data_close(d);
	r->max_doc = r->stage[0].max_doc = 7;
	d = data_open(r, 1, glob, ".", true);
	check_rows("packing-documents-max-doc", d, 16, rows,
	           naive_documents(&s, 16, 256, 7, rows));
	data_close(d);
}

static void
test_base(void)
{
	static const char *const glob[] = {"*.bin"};
	Run *r = run_new(65536, -1, 4);
	uint16_t t[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
	Data *d;

	if (mkdir("base[1]*", 0777) != 0)
		die("base: %s", strerror(errno));
	shard_write("base[1]*/x.bin", t, 9);
	d = data_open(r, 1, glob, "base[1]*", true);
	check("base-is-no-pattern", data_sequences(d) == 2, "%ld",
	      data_sequences(d));
	data_close(d);
}

/* -- order -- */

enum { OrderRows = 200, OrderSeq = 5 };

/* Rows of an epoch by their first token, which numbers them. */
static void
order_of(Data *d, int *order, long batch, int step)
{
	int32_t x[50 * OrderSeq], y[50 * OrderSeq];
	long i, j;

	for (i = 0; i < OrderRows; i += batch) {
		data_next(d, x, y, batch);
		for (j = 0; j < batch; j++)
			order[i + j] = x[j * OrderSeq + 1] / step;
	}
}

static bool
is_permutation(const int *order)
{
	char seen[OrderRows] = {0};
	int i;

	for (i = 0; i < OrderRows; i++)
		if (order[i] < 0 || order[i] >= OrderRows || seen[order[i]]++)
			return false;
	return true;
}

static Data *
order_open(Run *r, const char *file, long long seed, bool train)
{
	r->seed = seed;
	return data_open(r, 1, &file, ".", train);
}

static void
test_order_of(const char *kind, Run *r, const char *file, int step)
{
	int a[OrderRows], b[OrderRows], c[OrderRows], v[OrderRows];
	Data *d = order_open(r, file, 3, true);
	int i, fixed = 0;

	order_of(d, a, 50, step);
	order_of(d, b, 50, step);
	check(arena_printf(mem, "%s-shuffle-is-a-permutation", kind),
	      is_permutation(a) && is_permutation(b), "not one");
	for (i = 0; i < OrderRows; i++)
		fixed += a[i] == i;
	/* expected: 1 in a random one */
	check(arena_printf(mem, "%s-shuffle-moves", kind), fixed < 10,
	      "%d in place", fixed);
	check(arena_printf(mem, "%s-epochs-differ", kind),
	      memcmp(a, b, sizeof a) != 0, "same");
	data_rewind(d);
	order_of(d, c, 20, step);
	check(arena_printf(mem, "%s-order-does-not-depend-on-batch", kind),
	      memcmp(a, c, sizeof a) == 0, "differs");
	data_close(d);
	d = order_open(r, file, 4, true);
	order_of(d, c, 50, step);
	data_close(d);
	check(arena_printf(mem, "%s-seeds-differ", kind),
	      is_permutation(c) && memcmp(a, c, sizeof a) != 0, "same");
	d = order_open(r, file, 3, false);
	order_of(d, v, 50, step);
	data_close(d);
	for (i = 0; i < OrderRows && v[i] == i; i++)
		;
	check(arena_printf(mem, "%s-validation-is-not-shuffled", kind),
	      i == OrderRows, "at %d", i);
}

/* A stage of other sequences: documents go on in the epoch's order, here two to a row of eleven;
 * max_doc cuts them to three, four to a row.  A stream begins its next epoch, in rows of its own. */
static void
test_stages(Run *r)
{
	int32_t x[10 * 11], y[10 * 11];
	int a[OrderRows], i;
	bool good = true;
	Data *d, *e;

	r->packing_documents = true;
	d = order_open(r, "documents.bin", 3, true);
	order_of(d, a, 50, 1);
	data_rewind(d);
	data_next(d, x, y, 10);
	data_stage(d, 2 * OrderSeq + 1, 0);
	data_next(d, x, y, 10);
	for (i = 0; i < 10; i++)
		good = good && x[i * 11 + 1] == a[10 + 2 * i] && x[i * 11 + 7] == a[11 + 2 * i];
	data_stage(d, 2 * OrderSeq + 1, 3);
	data_next(d, x, y, 2);
	for (i = 0; i < 8; i++)
		good = good && x[i / 4 * 11 + 1 + 3 * (i % 4)] == a[30 + i];
	check("stages-of-documents", good, "another order");
	data_close(d);
	r->packing_documents = false;
	d = order_open(r, "order.bin", 3, true);
	data_next(d, x, y, 10);
	data_stage(d, 2 * OrderSeq, 0);
	data_next(d, x, y, 10);
	r->stage[0].seq = 2 * OrderSeq;
	e = order_open(r, "order.bin", 3, true);
	for (i = 0; i < OrderRows / 2; i += 10)
		data_next(e, y, y, 10);
	data_next(e, y, y + 1, 1);
	check("stages-of-a-stream", data_sequences(d) == OrderRows / 2 && x[0] == y[0], "%d, expected %d", x[0], y[0]);
	data_close(e);
	data_close(d);
}

/* Document k is bos, k, …: as long as a sequence. */
static void
test_order(void)
{
	uint16_t t[OrderRows * (OrderSeq + 1)];
	Run *r = run_new(65536, 60000, OrderSeq);
	int i, j;

	r->shuffle = true;
	for (i = 0; i < OrderRows * OrderSeq + 1; i++)
		t[i] = (uint16_t)i;
	shard_write("order.bin", t, OrderRows * OrderSeq + 1);
	test_order_of("stream", r, "order.bin", OrderSeq);
	for (i = 0; i < OrderRows; i++)
		for (j = 0; j <= OrderSeq; j++)
			t[i * (OrderSeq + 1) + j] =
			        (uint16_t)(j ? i : 60000);
	shard_write("documents.bin", t, OrderRows * (OrderSeq + 1));
	r->packing_documents = r->val_documents = true;
	test_order_of("documents", r, "documents.bin", 1);
	test_stages(r);
}

/* -- inputs -- */

enum { InTokens = 96, InSeq = 16, InVocab = 50, InHash = 13 };

static Run *
inputs_run(int32_t *arena, int bos, int n)
{
	static RunInput in[] = {
		{IN_TOKENS, {AR_INPUTS, 0}, 0},
		{IN_TARGETS, {AR_INPUTS, 1000}, 0},
		{IN_DOCSTART, {AR_INPUTS, 2000}, 0},
		{IN_HASH, {AR_INPUTS, 3000}, InHash},
		{IN_ORDER_TOKENS, {AR_INPUTS, 4000}, InVocab + 14},
		{IN_ORDER_HASH, {AR_INPUTS, 5000}, InHash},
	};
	Run *r = run_new(InVocab, bos, InSeq);

	r->prog[PROG_TRAIN].tokens = n;
	r->input = in;
	r->ninput = sizeof in / sizeof *in;
	r->arena[AR_INPUTS] = (char *)arena;
	return r;
}

/* Rows sorted by key, ties in row order, and where each bucket begins. */
static bool
order_is(const int32_t *got, const int32_t *key, int n, int rows)
{
	int i = 0, k, row;

	for (k = 0; k < rows; k++) {
		if (got[n + k] != i)
			return false;
		for (row = 0; row < n; row++)
			if (key[row] == k && got[i++] != row)
				return false;
	}
	return got[n + rows] == n && i == n;
}

static void
check_inputs(const char *kind, int bos, int n)
{
	int32_t *a = NEWN(mem, int32_t, 2000), x[InTokens], y[InTokens];
	int32_t start[InTokens], hash[InTokens];
	Run *r = inputs_run(a, bos, n);
	int i, j;

	for (i = 0; i < n; i++) {
		x[i] = (int32_t)(rnd(6) ? rnd(InVocab) : 7);
		y[i] = (int32_t)rnd(InVocab);
		for (j = i; j % InSeq != 0 && x[j] != bos; j--)
			;
		start[i] = j;
		hash[i] = i % InSeq == 0 ? InHash - 1 : (int32_t)
		        (((36313ull * (unsigned)x[i]) ^
		          (27191ull * (unsigned)x[i - 1])) % (InHash - 1));
	}
	inputs_fill(r, &r->prog[PROG_TRAIN], x, y);
	check(arena_printf(mem, "inputs-%s-tokens-targets", kind),
	      memcmp(a, x, (size_t)n * 4) == 0 &&
	      memcmp(a + 250, y, (size_t)n * 4) == 0, "differ");
	check(arena_printf(mem, "inputs-%s-docstart", kind),
	      memcmp(a + 500, start, (size_t)n * 4) == 0, "differs");
	check(arena_printf(mem, "inputs-%s-hash", kind),
	      memcmp(a + 750, hash, (size_t)n * 4) == 0, "differs");
	check(arena_printf(mem, "inputs-%s-order-tokens", kind),
	      order_is(a + 1000, x, n, InVocab + 14), "differs");
	check(arena_printf(mem, "inputs-%s-order-hash", kind),
	      order_is(a + 1250, hash, n, InHash), "differs");
}

/* By hand, with a product past 31 bits: 36313*60000 = 2178780000, 27191*50000 =
 * 1359550000, their XOR is 3503594832, and that mod 999 is 933. */
static void
test_hash_by_hand(void)
{
	int32_t a[2], x[2] = {50000, 60000};
	RunInput in = {IN_HASH, {AR_INPUTS, 0}, 1000};
	Run *r = run_new(65536, -1, 2);

	r->prog[PROG_TRAIN].tokens = 2;
	r->input = &in;
	r->ninput = 1;
	r->arena[AR_INPUTS] = (char *)a;
	inputs_fill(r, &r->prog[PROG_TRAIN], x, NULL);
	check("hash-by-hand", a[0] == 999 && a[1] == 933, "%d %d", a[0],
	      a[1]);
}

/* By hand, 251520 rows and tokens 5, 50256, 50000, 50000.  At position 1 the token
 * before is taken as 251519: 27191*251519 = 6839053129, which wraps to -1750881463;
 * 36313*50256 = 1824946128; their XOR is -77210471, and mod 251519 that is 5862.
 * From position 2 on all is as in the clean hash, both products being below 2^31:
 * 36313*50000 = 1815650000 XOR 27191*50256 = 1366510896 is 1028379616, mod 251519 is
 * 169944; XOR 27191*50000 = 1359550000 is 1026656480, mod 251519 is 207441.  The next
 * sequence begins anew. */
static void
test_quirk_by_hand(void)
{
	int32_t a[8], x[8] = {5, 50256, 50000, 50000, 7, 50256, 50000, 50000};
	static const int32_t want[4] = {251519, 5862, 169944, 207441};
	RunInput in = {IN_HASH, {AR_INPUTS, 0}, 251520, true};
	Run *r = run_new(65536, -1, 4);

	r->prog[PROG_TRAIN].tokens = 8;
	r->input = &in;
	r->ninput = 1;
	r->arena[AR_INPUTS] = (char *)a;
	inputs_fill(r, &r->prog[PROG_TRAIN], x, NULL);
	check("hash-quirk-by-hand", memcmp(a, want, sizeof want) == 0 &&
	      memcmp(a + 4, want, sizeof want) == 0, "%d %d %d %d", a[0], a[1], a[2], a[3]);
	in.quirk = false;
	inputs_fill(r, &r->prog[PROG_TRAIN], x, NULL);
	check("hash-clean-beside-it", a[1] == 39834 && a[2] == want[2] && a[3] == want[3],
	      "%d %d %d", a[1], a[2], a[3]);
}

/* -- bytes -- */

static void
run_data_main(void *arg)
{
	char **argv = arg;
	int argc = 0;

	while (argv[argc])
		argc++;
	exit(data_main(argc, argv));
}

/* The documents of a byte shard: content hashes, sorted as they come. */
static int
doc_hashes(const char *path, char (*hex)[65], int max)
{
	Shard s;
	long i, k;
	int n = 0;

	shard_open(&s, path);
	for (i = 0; i < s.n && n < max; i = k) {
		for (k = i + 1; k < s.n && s.token[k] != ByteBos; k++)
			;
		sha256_hex(s.token + i, (size_t)(k - i) * 2, hex[n++]);
	}
	shard_close(&s);
	return n;
}

static bool
all_different(char (*hex)[65], int n)
{
	int i, j;

	for (i = 0; i < n; i++)
		for (j = 0; j < i; j++)
			if (strcmp(hex[i], hex[j]) == 0)
				return false;
	return true;
}

/* With other files beside them, no document of made/ has changed sides. */
static void
test_bytes_stay(void)
{
	char *more[] = {"bytes", "-r", "texts", "more", "-o", "made6", "--val",
	                "20", NULL};
	char (*old)[65] = arena_alloc(mem, 200 * 65);
	char (*now)[65] = arena_alloc(mem, 200 * 65), *s;
	int i, j, nold, nnow, kept = 0;

	if (dir_make("more") != 0)
		die("more: %s", strerror(errno));
	for (i = 0; i < 40; i++) {
		s = arena_printf(mem, "more text %d\n", i);
		text_write(arena_printf(mem, "more/%d", i), s, strlen(s));
	}
	child(run_data_main, more);
	nold = doc_hashes("made/val.bin", old, 200);
	nnow = doc_hashes("made6/val.bin", now, 200);
	for (i = 0; i < nold; i++)
		for (j = 0; j < nnow; j++)
			kept += strcmp(old[i], now[j]) == 0;
	check("bytes-more-files-move-none", kept == nold && nnow > nold,
	      "%d of %d kept, %d now", kept, nold, nnow);
}

/* 80 files of 60 contents, in two directories. */
static void
texts_write(const char *root)
{
	char *s;
	int i;

	if (dir_make(arena_printf(mem, "%s/sub", root)) != 0)
		die("%s: %s", root, strerror(errno));
	for (i = 0; i < 80; i++) {
		s = arena_printf(mem, "text %d\nof a file\n", i % 60);
		text_write(arena_printf(mem, "%s/%sf%d.h", root,
		                        i % 3 ? "" : "sub/", i), s, strlen(s));
	}
	text_write(arena_printf(mem, "%s/none.h", root), "", 0);
}

static void
test_bytes(void)
{
	char *walk[] = {"bytes", "-r", "texts", "-o", "made", "--val", "20", NULL};
	char *again[] = {"bytes", "texts/sub", "-r", "texts", "-o", "made2",
	                 "--val", "20", NULL};
	char *folder[] = {"bytes", "texts", "-o", "made3", NULL};
	char *one[] = {"bytes", "texts/f1.h", "-o", "made4", NULL};
	char *all[] = {"bytes", "texts/f1.h", "-o", "made4", "--val", "0", NULL};
	char *gone[] = {"bytes", "texts/none", "-o", "made5", NULL};
	char *bad[] = {"bytes", "texts/f1.h", "-o", "made5", "--val", "x", NULL};
	char *show[] = {"show", "made/train.bin", "made/val.bin", NULL};
	char (*hex)[65] = arena_alloc(mem, 200 * 65), *a, *b;
	int ntrain, nval;
	size_t n, m;
	Shard s;

	texts_write("texts");
	check("bytes-walks", child(run_data_main, walk).rc == 0, "failed");
	ntrain = doc_hashes("made/train.bin", hex, 100);
	nval = doc_hashes("made/val.bin", hex + ntrain, 100);
	check("bytes-drops-identical-files", ntrain + nval == 60, "%d + %d",
	      ntrain, nval);
	check("bytes-no-document-in-both", all_different(hex, ntrain + nval),
	      "one is");
	check("bytes-val-percent", nval > 4 && nval < 22, "%d of 60", nval);
	check("bytes-names-do-not-matter",
	      child(run_data_main, again).rc == 0 &&
	      (a = file_read(mem, "made/val.bin", &n)) != NULL &&
	      (b = file_read(mem, "made2/val.bin", &m)) != NULL &&
	      n == m && memcmp(a, b, n) == 0, "val differs");
	check_dies("bytes-directory", run_data_main, folder, "texts",
	           "is a directory", "-r");
	check_dies("bytes-one-document", run_data_main, one, "texts/f1.h",
	           "only document", "--val 0");
	check_dies("bytes-missing", run_data_main, gone, "texts/none",
	           "No such file", "");
	check_dies("bytes-val-not-a-number", run_data_main, bad, "--val",
	           "saw `x`", "0 to 99");
	check("bytes-train-only", child(run_data_main, all).rc == 0 &&
	      access("made4/val.bin", F_OK) != 0, "val is there");
	shard_open(&s, "made4/train.bin");
	check("bytes-are-tokens", s.n == 18 && s.token[0] == 256 &&
	      s.token[1] == 't' && s.token[17] == '\n', "%ld tokens", s.n);
	shard_close(&s);
	check("show", child(run_data_main, show).rc == 0, "failed");
	test_bytes_stay();
}

/* -- auto -- */

static void
build_small(void *arg)
{
	(void)arg;
	auto_build("texts", "auto-small");
}

static void
build_auto(void *arg)
{
	auto_build("headers", arg);
}

/* 1.2 MB in 300 headers, and four files that are not to be taken. */
static void
headers_write(void)
{
	Buf b = {0};
	int i, j;

	if (dir_make("headers/sub") != 0)
		die("headers: %s", strerror(errno));
	for (i = 0; i < 300; i++) {
		b.len = 0;
		for (j = 0; j < 200; j++)
			buf_printf(&b, "#define NAME_%d %d\n", j, i * 1000 + j);
		text_write(arena_printf(mem, "headers/sub/h%d.h", i), b.s,
		           b.len);
	}
	text_write("headers/copy.h", b.s, b.len);
	text_write("headers/other.c", "int c;\n", 7);
	text_write("headers/zero.h", "int\0a;", 6);
	while (b.len <= 256 << 10)
		buf_puts(&b, "int large;\n");
	text_write("headers/large.h", b.s, b.len);
	buf_free(&b);
	if (symlink("other.c", "headers/link.h") != 0)
		die("link: %s", strerror(errno));
}

static void
test_auto(void)
{
	char (*hex)[65] = arena_alloc(mem, 400 * 65), *a, *b;
	int ntrain, nval;
	size_t n, m;
	Child c;

	check_dies("auto-too-little-text", build_small, NULL, "texts",
	           "at least 1000000", "apt-get install libc6-dev linux-libc-dev");
	headers_write();
	c = child(build_auto, "auto1");
	check("auto-says-what-it-found", c.rc == 0 &&
	      strstr(c.err, "300 C headers from headers"), "%s", c.err);
	ntrain = doc_hashes("auto1/train.bin", hex, 400);
	nval = doc_hashes("auto1/val.bin", hex + ntrain, 400 - ntrain);
	check("auto-takes-headers-once", ntrain + nval == 300 &&
	      all_different(hex, 300), "%d + %d", ntrain, nval);
	check("auto-val-of-5-percent", nval >= 3 && nval <= 35, "%d", nval);
	child(build_auto, "auto2");
	a = file_read(mem, "auto1/train.bin", &n);
	b = file_read(mem, "auto2/train.bin", &m);
	check("auto-same-text-same-bytes", a && b && n == m &&
	      memcmp(a, b, n) == 0, "differ");
	child(build_auto, "auto2");
	check("auto-second-maker-leaves-the-first", access(
	      "auto2/val.bin", F_OK) == 0, "gone");
}

/* -- ngram -- */

/* train 0 1 0 0, V = 2:  p0(0) = 4/6, p0(1) = 2/6
 * p1(1|0) = (1 + 2*2/6)/4 = 5/12   p1(0|1) = (1 + 4/6)/2 = 5/6
 * p2(0|01) = (1 + 5/6)/2 = 11/12
 * With bos = 0, nothing but order 1 follows a 0. */
static void
test_ngram(void)
{
	static const uint16_t seen[] = {0, 1, 0, 0}, v1[] = {0, 1, 0},
	                      v2[] = {1, 0, 1};
	double got, want;

	got = ngram_nats(seen, 4, v1, 3, 2, -1);
	want = -(log(5.0 / 12) + log(11.0 / 12)) / 2;
	check("ngram-by-hand", fabs(got - want) < 1e-14, "%.17g %.17g", got,
	      want);
	got = ngram_nats(seen, 4, v2, 3, 2, 0);
	want = -(log(5.0 / 6) + log(5.0 / 12)) / 2;
	check("ngram-bos-ends-the-context", fabs(got - want) < 1e-14,
	      "%.17g %.17g", got, want);
	got = ngram_nats(seen, 0, v1, 3, 2, -1);
	check("ngram-of-nothing-is-uniform", fabs(got - log(2)) < 1e-14,
	      "%.17g", got);
}

int
main(void)
{
	char dir[] = "/tmp/hcgen-data-test-XXXXXX";
	Arena *a = arena_new("cleanup");

	mem = arena_new("data_test");
	if (!mkdtemp(dir) || chdir(dir) != 0)
		die("%s: %s", dir, strerror(errno));
	test_round_trip();
	test_damage();
	test_large();
	test_writer();
	test_open_errors();
	test_packing();
	test_base();
	test_order();
	check_inputs("documents", 7, InTokens);
	check_inputs("no-mask", -1, InTokens);
	check_inputs("one-sequence", 7, InSeq);
	test_hash_by_hand();
	test_quirk_by_hand();
	test_bytes();
	test_auto();
	test_ngram();
	if (!failed && system(arena_printf(a, "rm -r '%s'", dir)) != 0)
		printf("%s is left\n", dir);
	arena_free(a);
	arena_free(mem);
	return failed ? 1 : 0;
}
