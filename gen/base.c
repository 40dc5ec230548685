/* Arena, text buffer, interned strings, hashes, files.
 *
 * Memory is never freed one by one: each stage owns an arena and main frees
 * arenas in reverse.  Allocation that fails ends the process, so callers never
 * look at NULL. */
#define _POSIX_C_SOURCE 200809L
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ArenaBlock = 1 << 16 };  /* picked arbitrarily */

typedef struct Block Block;
struct Block {
	Block *next;
	size_t used, size;
	_Alignas(16) char data[];
};

struct Arena {
	const char *name;
	Block *block;
};

static void *
xmalloc(size_t nbytes)
{
	void *p = malloc(nbytes);

	if (!p)
		die("out of memory: %zu bytes", nbytes);
	return p;
}

Arena *
arena_new(const char *name)
{
	Arena *a = xmalloc(sizeof *a);

	a->name = name;
	a->block = NULL;
	return a;
}

void
arena_free(Arena *a)
{
	Block *b, *next;

	for (b = a->block; b; b = next) {
		next = b->next;
		free(b);
	}
	free(a);
}

void *
arena_alloc(Arena *a, size_t nbytes)
{
	Block *b = a->block;
	size_t size;
	void *p;

	nbytes = (nbytes + 15) & ~(size_t)15;
	if (!b || b->size - b->used < nbytes) {
		size = nbytes > ArenaBlock ? nbytes : ArenaBlock;
		b = xmalloc(sizeof *b + size);
		b->used = 0;
		b->size = size;
		b->next = a->block;
		a->block = b;
	}
	p = b->data + b->used;
	b->used += nbytes;
	memset(p, 0, nbytes);
	return p;
}

char *
arena_strndup(Arena *a, const char *s, size_t len)
{
	char *p = arena_alloc(a, len + 1);

	memcpy(p, s, len);
	return p;
}

char *
arena_strdup(Arena *a, const char *s)
{
	return arena_strndup(a, s, strlen(s));
}

char *
arena_printf(Arena *a, const char *fmt, ...)
{
	Buf b = {0};
	va_list ap;
	char *p;

	va_start(ap, fmt);
	buf_vprintf(&b, fmt, ap);
	va_end(ap);
	p = arena_strndup(a, b.s, b.len);
	buf_free(&b);
	return p;
}

void *
vec_grow(Arena *a, void *v, int n, int *cap, size_t size)
{
	void *p;
	int c;

	if (n < *cap)
		return v;
	c = *cap ? 2 * *cap : 8;
	p = arena_alloc(a, (size_t)c * size);
	if (n)
		memcpy(p, v, (size_t)n * size);
	*cap = c;
	return p;
}

static void
buf_need(Buf *b, size_t more)
{
	size_t cap = b->cap ? b->cap : 256;

	while (cap < b->len + more + 1)
		cap *= 2;
	if (cap != b->cap) {
		b->s = realloc(b->s, cap);
		if (!b->s)
			die("out of memory: %zu bytes", cap);
		b->cap = cap;
	}
}

void
buf_write(Buf *b, const void *s, size_t len)
{
	buf_need(b, len);
	memcpy(b->s + b->len, s, len);
	b->len += len;
	b->s[b->len] = 0;
}

void
buf_puts(Buf *b, const char *s)
{
	buf_write(b, s, strlen(s));
}

void
buf_vprintf(Buf *b, const char *fmt, va_list ap)
{
	va_list again;
	int n;

	va_copy(again, ap);
	n = vsnprintf(NULL, 0, fmt, ap);
	if (n < 0)
		bug("vsnprintf: bad format %s", fmt);
	buf_need(b, (size_t)n);
	vsnprintf(b->s + b->len, (size_t)n + 1, fmt, again);
	va_end(again);
	b->len += (size_t)n;
}

void
buf_printf(Buf *b, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	buf_vprintf(b, fmt, ap);
	va_end(ap);
}

void
buf_num(Buf *b, double x)
{
	char s[40];
	int digits;

	for (digits = 1; digits < 17; digits++) {
		snprintf(s, sizeof s, "%.*g", digits, x);
		if (strtod(s, NULL) == x)
			break;
	}
	snprintf(s, sizeof s, "%.*g", digits, x);
	buf_puts(b, s);
}

void
buf_free(Buf *b)
{
	free(b->s);
	*b = (Buf){0};
}

/* interning: one table for the life of the process, freed at exit so that
 * LeakSanitizer stays silent */
static struct {
	Arena *arena;
	const char **slot;
	size_t n, cap;
} strings;

static void
strings_free(void)
{
	free(strings.slot);
	arena_free(strings.arena);
}

static uint64_t
fnv(const char *s)
{
	uint64_t h = 14695981039346656037u;

	for (; *s; s++)
		h = (h ^ (unsigned char)*s) * 1099511628211u;
	return h;
}

static const char **
string_slot(const char **slot, size_t cap, const char *s)
{
	size_t i = fnv(s) & (cap - 1);

	while (slot[i] && strcmp(slot[i], s) != 0)
		i = (i + 1) & (cap - 1);
	return &slot[i];
}

static void
strings_grow(void)
{
	size_t cap = strings.cap ? 2 * strings.cap : 1024, i;
	const char **slot = xmalloc(cap * sizeof *slot);

	memset(slot, 0, cap * sizeof *slot);
	for (i = 0; i < strings.cap; i++)
		if (strings.slot[i])
			*string_slot(slot, cap, strings.slot[i]) =
			        strings.slot[i];
	free(strings.slot);
	strings.slot = slot;
	strings.cap = cap;
}

const char *
intern(const char *s)
{
	const char **p;

	if (!strings.arena) {
		strings.arena = arena_new("strings");
		atexit(strings_free);
	}
	if (2 * strings.n >= strings.cap)
		strings_grow();
	p = string_slot(strings.slot, strings.cap, s);
	if (!*p) {
		*p = arena_strdup(strings.arena, s);
		strings.n++;
	}
	return *p;
}

/* SHA-256, FIPS 180-4 */

static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
	0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
	0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t
ror(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void
sha_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], v[8], t1, t2;
	int i;

	for (i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
		       (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] +
		       (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, h, sizeof v);
	for (i = 0; i < 64; i++) {
		t1 = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) +
		     ((v[4] & v[5]) ^ (~v[4] & v[6])) + sha_k[i] + w[i];
		t2 = (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) +
		     ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
		memmove(v + 1, v, 7 * sizeof *v);
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (i = 0; i < 8; i++)
		h[i] += v[i];
}

void
sha256(const void *data, size_t nbytes, uint8_t out[32])
{
	uint32_t h[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};
	const uint8_t *p = data;
	uint8_t tail[128] = {0};
	uint64_t bits = (uint64_t)nbytes * 8;
	size_t left, n;
	int i;

	for (left = nbytes; left >= 64; left -= 64, p += 64)
		sha_block(h, p);
	if (left)
		memcpy(tail, p, left);
	tail[left] = 0x80;
	n = left < 56 ? 64 : 128;
	for (i = 0; i < 8; i++)
		tail[n - 1 - (size_t)i] = (uint8_t)(bits >> (8 * i));
	sha_block(h, tail);
	if (n == 128)
		sha_block(h, tail + 64);
	for (i = 0; i < 32; i++)
		out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

void
sha256_hex(const void *data, size_t nbytes, char out[65])
{
	uint8_t h[32];
	int i;

	sha256(data, nbytes, h);
	for (i = 0; i < 32; i++)
		snprintf(out + (ptrdiff_t)2 * i, 3, "%02x", h[i]);
}

char *
file_read(Arena *a, const char *path, size_t *nbytes)
{
	struct stat st;
	FILE *f = fopen(path, "rb");
	char *p = NULL;

	if (!f)
		return NULL;
	if (fstat(fileno(f), &st) != 0 || S_ISDIR(st.st_mode)) {
		fclose(f);
		errno = EISDIR;
		return NULL;
	}
	p = arena_alloc(a, (size_t)st.st_size + 1);
	*nbytes = fread(p, 1, (size_t)st.st_size, f);
	fclose(f);
	return p;
}

static int
write_all(int fd, const char *p, size_t left, bool sync)
{
	ssize_t n;

	while (left) {
		n = write(fd, p, left);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		p += n;
		left -= (size_t)n;
	}
	return sync ? fsync(fd) : 0;
}

static int
replace_file(const char *path, const void *data, size_t nbytes, bool sync)
{
	Buf tmp = {0};
	int fd, saved;

	buf_printf(&tmp, "%s.tmp%ld", path, (long)getpid());
	fd = open(tmp.s, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
	if (fd < 0)
		goto fail;
	if (write_all(fd, data, nbytes, sync) != 0) {
		saved = errno;
		close(fd);
		unlink(tmp.s);
		errno = saved;
		goto fail;
	}
	if (close(fd) != 0 || rename(tmp.s, path) != 0) {
		saved = errno;
		unlink(tmp.s);
		errno = saved;
		goto fail;
	}
	buf_free(&tmp);
	return 0;
fail:
	saved = errno;
	buf_free(&tmp);
	errno = saved;
	return -1;
}

int
file_write(const char *path, const void *data, size_t nbytes)
{
	return replace_file(path, data, nbytes, true);
}

int
file_emit(const char *path, const void *data, size_t nbytes)
{
	return replace_file(path, data, nbytes, false);
}

int
dir_make(const char *path)
{
	Buf b = {0};
	struct stat st;
	size_t i;

	buf_puts(&b, path);
	for (i = 1; i <= b.len; i++) {
		if (b.s[i] != '/' && b.s[i] != 0)
			continue;
		b.s[i] = 0;
		if (mkdir(b.s, 0777) != 0 && errno != EEXIST)
			break;
		if (i < b.len)
			b.s[i] = '/';
	}
	buf_free(&b);
	if (stat(path, &st) != 0)
		return -1;
	if (!S_ISDIR(st.st_mode)) {
		errno = ENOTDIR;
		return -1;
	}
	return access(path, W_OK);
}

void
die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("hcgen: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(EX_ENV);
}

void
bug(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("hcgen: bug: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(EX_BUG);
}
