/* The cache of compiled things: one private directory, one file per entry.
 *
 * An entry is named for a key (64 hexadecimal digits, the SHA-256 of all that
 * decides its bytes) and a suffix that says what it holds.  It ends in its
 * seal, the SHA-256 of what stands before it in hexadecimal, which loaders of
 * shared objects ignore: a damaged entry is seen before it is used, told, and
 * as good as absent.  Writing is to a name of its own and a rename, so that
 * processes and threads may share a cache.
 *
 * The directory belongs to the user and nobody else may write to it, because
 * what it holds is executed. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SealDigits = 64 };

const char *
cache_dir(Arena *a)
{
	const char *s;

	if ((s = getenv("HCGEN_CACHE")) && *s)
		return arena_strdup(a, s);
	if ((s = getenv("XDG_CACHE_HOME")) && *s)
		return arena_printf(a, "%s/hcgen", s);
	if ((s = getenv("HOME")) && *s)
		return arena_printf(a, "%s/.cache/hcgen", s);
	die("no place for a cache: HOME is not set; set HCGEN_CACHE");
}

const char *
cache_open(Arena *a)
{
	const char *dir = cache_dir(a);
	struct stat st;

	if (stat(dir, &st) != 0) {
		if (dir_make(dir) != 0 || chmod(dir, 0700) != 0)
			die("cannot make %s: %s (HCGEN_CACHE names another "
			    "place)", dir, strerror(errno));
		if (stat(dir, &st) != 0)
			die("cannot read %s: %s", dir, strerror(errno));
	}
	if (!S_ISDIR(st.st_mode))
		die("%s is not a directory", dir);
	if (st.st_uid != geteuid())
		die("%s belongs to another user: compiled kernels in it would "
		    "be executed; set HCGEN_CACHE", dir);
	if (st.st_mode & 022)
		die("%s may be written by others: compiled kernels in it would "
		    "be executed; chmod 700 it", dir);
	return dir;
}

void
cache_writable(const char *dir)
{
	if (access(dir, W_OK) != 0)
		die("cannot write to %s: %s (HCGEN_CACHE names another place)",
		    dir, strerror(errno));
}

char *
cache_path(Arena *a, const char *dir, const char *key, const char *suffix)
{
	return arena_printf(a, "%s/%s%s", dir, key, suffix);
}

/* requires: nothing of the file.  provides: bytes that fit their seal. */
char *
cache_get(Arena *a, const char *dir, const char *key, const char *suffix,
          size_t *n)
{
	Arena *mem = arena_new("cache name");
	char *path = cache_path(mem, dir, key, suffix), hex[SealDigits + 1];
	size_t have = 0;
	char *s = file_read(a, path, &have);
	bool good = false;

	if (s && have > SealDigits) {
		*n = have - SealDigits;
		sha256_hex(s, *n, hex);
		good = memcmp(hex, s + *n, SealDigits) == 0;
		s[*n] = 0;
	}
	if (s && !good)
		fprintf(stderr, "%s%s is damaged: compiling it again\n",
		        isatty(2) ? "\r" : "", path);
	arena_free(mem);
	return good ? s : NULL;
}

static int
write_whole(int fd, const char *p, size_t left)
{
	ssize_t n;

	while (left) {
		n = write(fd, p, left);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		p += n;
		left -= (size_t)n;
	}
	return 0;
}

/* Two threads that make one entry write to two names, and so do two machines
 * that share the directory and happen to use one process number: O_EXCL. */
static int
temporary(Buf *name, const char *path)
{
	static _Atomic unsigned made;
	int fd, tries;

	for (tries = 0; tries < 100; tries++) {
		name->len = 0;
		buf_printf(name, "%s.tmp%ld.%u", path, (long)getpid(),
		           atomic_fetch_add(&made, 1));
		fd = open(name->s, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
		          0600);
		if (fd >= 0 || errno != EEXIST)
			return fd;
	}
	return -1;
}

static bool
write_entry(int fd, const void *data, size_t n)
{
	char hex[SealDigits + 1];
	bool good;

	sha256_hex(data, n, hex);
	good = write_whole(fd, data, n) == 0 && write_whole(fd, hex, SealDigits) == 0;
	return close(fd) == 0 && good;
}

/* Not synced: what a power cut damages, its seal tells. */
bool
cache_put(const char *dir, const char *key, const char *suffix,
          const void *data, size_t n)
{
	Arena *mem = arena_new("cache entry");
	char *path = cache_path(mem, dir, key, suffix);
	Buf tmp = {0};
	int fd = temporary(&tmp, path), saved = errno;
	bool good = false;

	if (fd >= 0) {
		good = write_entry(fd, data, n) && rename(tmp.s, path) == 0;
		saved = errno;
		if (!good)
			unlink(tmp.s);
	}
	buf_free(&tmp);
	arena_free(mem);
	errno = saved;
	return good;
}
