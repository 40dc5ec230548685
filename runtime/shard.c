/* Token shards, as llm.c and modded-nanogpt write them: 256 little-endian int32
 * (magic, version, number of tokens, zeros), then that many uint16.
 *
 * A reader gets a read-only mapping in which the header has been compared with
 * the size of the file, so that no later index can leave it.  A writer streams
 * into a temporary and renames: a shard is absent or whole.  Token ids are not
 * looked at here; data.c knows the vocabulary. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { Magic = 20240520, Version = 1, HeaderBytes = 1024 };

/* tokens are used where they lie in the mapping */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little endian");
/* a shard of 2^31 - 1 tokens has 4 GiB */
_Static_assert(sizeof(size_t) >= 8 && sizeof(off_t) >= 8, "64-bit sizes");

/* What another project's file is, where its first word says so. */
static const char *
magic_name(int32_t magic)
{
	switch (magic) {
	case 20240801: return " (llm.c tokens of 32 bits)";
	case 20240522: return " (an llm.c evaluation set)";
	case 20240328: return " (an llm.c tokenizer)";
	case 20240326: return " (an llm.c model)";
	case 0x2e4e4942: return " (tokens of llmq)";   /* "BIN." */
	}
	return "";
}

/* requires: 256 words of a file of nbytes bytes.  provides: the number of
 * tokens, which fills the file exactly. */
static long
header_check(const char *path, const int32_t *word, off_t nbytes)
{
	off_t want;

	if (word[0] != Magic)
		die("%s: first word is %d%s, expected %d: not a token shard; "
		    "make one with `hcgen data bytes`", path, (int)word[0],
		    magic_name(word[0]), Magic);
	if (word[1] != Version)
		die("%s: shard version is %d, expected %d; make it again with "
		    "`hcgen data bytes`", path, (int)word[1], Version);
	if (word[2] < 0)
		die("%s: header says %d tokens: the file is damaged; copy or "
		    "make it again", path, (int)word[2]);
	want = HeaderBytes + 2 * (off_t)word[2];
	if (want != nbytes)
		die("%s: header says %d tokens, that is %lld bytes, but the "
		    "file has %lld: it is %s; copy or make it again", path,
		    (int)word[2], (long long)want, (long long)nbytes,
		    nbytes < want ? "truncated" : "too long");
	if (word[2] == 0)
		die("%s: no tokens in it; take it off the list", path);
	return word[2];
}

static off_t
regular_size(const char *path, int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		die("%s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		die("%s: is a directory, expected a token shard; name the "
		    "files in it: %s/*.bin", path, path);
	if (!S_ISREG(st.st_mode))
		die("%s: not a regular file, expected a token shard; copy it "
		    "to a file", path);
	if (st.st_size == 0)
		die("%s: empty file, expected a token shard; copy or make it "
		    "again", path);
	if (st.st_size < HeaderBytes)
		die("%s: %lld bytes, but the header of a token shard alone has "
		    "%d; copy or make it again", path, (long long)st.st_size,
		    HeaderBytes);
	return st.st_size;
}

void
shard_open(Shard *s, const char *path)
{
	/* not blocking: a pipe in place of a file is refused, not waited for */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	off_t nbytes;

	if (fd < 0)
		die("%s: %s; the path comes from data.train or data.val of the "
		    "spec, relative to it", path, strerror(errno));
	nbytes = regular_size(path, fd);
	s->path = path;
	s->nbytes = (size_t)nbytes;
	s->map = mmap(NULL, s->nbytes, PROT_READ, MAP_SHARED, fd, 0);
	if (s->map == MAP_FAILED)
		die("%s: cannot map %zu bytes: %s", path, s->nbytes,
		    strerror(errno));
	close(fd);
	s->n = header_check(path, s->map, nbytes);
	s->token = (const uint16_t *)((char *)s->map + HeaderBytes);
}

void
shard_close(Shard *s)
{
	if (s->map)
		munmap(s->map, s->nbytes);
	*s = (Shard){0};
}

struct ShardWriter {
	const char *path, *tmp;
	FILE *file;
	long n;
};

static _Noreturn void
writer_die(ShardWriter *w)
{
	int saved = errno;

	shard_abandon(w);
	die("%s: %s; the unfinished file has been removed", w->path,
	    strerror(saved));
}

/* The first is all zeros: a reader takes a file that was left half written
 * for what it is. */
static void
header_write(ShardWriter *w, int32_t magic, int32_t version)
{
	int32_t word[HeaderBytes / 4] = {magic, version, (int32_t)w->n};

	if (fwrite(word, sizeof word, 1, w->file) != 1)
		writer_die(w);
}

ShardWriter *
shard_create(Arena *a, const char *path)
{
	ShardWriter *w = NEW(a, ShardWriter);
	int fd;

	w->path = arena_strdup(a, path);
	w->tmp = arena_printf(a, "%s.tmp%ld", path, (long)getpid());
	unlink(w->tmp);         /* of a dead process that had our number */
	fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0)
		die("%s: %s", w->tmp, strerror(errno));
	w->file = fdopen(fd, "wb");
	if (!w->file)
		die("%s: %s", w->tmp, strerror(errno));
	header_write(w, 0, 0);
	return w;
}

void
shard_put(ShardWriter *w, const uint16_t *token, long n)
{
	if (n > INT32_MAX - w->n) {
		shard_abandon(w);
		die("%s: more than %d tokens, what the header can say; give "
		    "fewer files at a time", w->path, INT32_MAX);
	}
	if (fwrite(token, sizeof *token, (size_t)n, w->file) != (size_t)n)
		writer_die(w);
	w->n += n;
}

/* So that the rename survives a loss of power, its directory is synced too. */
static void
dir_sync(Arena *a, const char *path)
{
	const char *slash = strrchr(path, '/');
	size_t len = slash ? (size_t)(slash - path) : 0;
	int fd;

	fd = open(len ? arena_strndup(a, path, len) : slash ? "/" : ".",
	          O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;         /* the shard itself is whole */
	fsync(fd);
	close(fd);
}

long
shard_finish(ShardWriter *w)
{
	Arena *a = arena_new("shard");
	FILE *f = w->file;

	if (fseeko(f, 0, SEEK_SET) != 0)
		writer_die(w);
	header_write(w, Magic, Version);
	if (fflush(f) != 0 || fsync(fileno(f)) != 0)
		writer_die(w);
	w->file = NULL;
	if (fclose(f) != 0 || rename(w->tmp, w->path) != 0)
		writer_die(w);
	dir_sync(a, w->path);
	arena_free(a);
	return w->n;
}

void
shard_abandon(ShardWriter *w)
{
	if (w->file)
		fclose(w->file);
	w->file = NULL;
	unlink(w->tmp);
}
