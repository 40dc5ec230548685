/* Arena, text buffer, interned strings, hashes, files.  In gen, only this and the
 * interpreter, which holds large arrays for a moment, call free(). */
#ifndef BASE_H
#define BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct Arena Arena;     /* one per stage; freed whole */

Arena *arena_new(const char *name);
void arena_free(Arena *a);
void *arena_alloc(Arena *a, size_t nbytes);     /* zeroed; never NULL */
char *arena_strndup(Arena *a, const char *s, size_t len);
char *arena_strdup(Arena *a, const char *s);
char *arena_printf(Arena *a, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));

#define NEW(a, T) ((T *)arena_alloc((a), sizeof(T)))
#define NEWN(a, T, n) ((T *)arena_alloc((a), (size_t)(n) * sizeof(T)))

/* Grow an arena-held vector so that v[n] exists; returns the new v. */
void *vec_grow(Arena *a, void *v, int n, int *cap, size_t size);
#define PUSH(a, v, n, cap) \
	(*(void **)&(v) = vec_grow((a), (v), (n), &(cap), sizeof *(v)), &(v)[(n)++])

typedef struct { char *s; size_t len, cap; } Buf;       /* always NUL ended */

void buf_printf(Buf *b, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));
void buf_vprintf(Buf *b, const char *fmt, va_list ap);
void buf_puts(Buf *b, const char *s);
void buf_write(Buf *b, const void *s, size_t len);
void buf_free(Buf *b);

/* A number as text that reads back to the same double, the shortest such. */
void buf_num(Buf *b, double x);

const char *intern(const char *s);      /* same text, same pointer, for ever */

void sha256(const void *data, size_t nbytes, uint8_t out[32]);
void sha256_hex(const void *data, size_t nbytes, char out[65]);

/* Whole file into the arena; NULL when it cannot be read (errno says why). */
char *file_read(Arena *a, const char *path, size_t *nbytes);
/* Write atomically: temporary beside it, fsync, rename. 0, or -1 with errno. */
int file_write(const char *path, const void *data, size_t nbytes);
/* The same without fsync, for what can be made again from its source. */
int file_emit(const char *path, const void *data, size_t nbytes);
/* mkdir -p.  0, or -1 with errno. */
int dir_make(const char *path);

/* Targets of a position that a loss may have. */
enum { MaxTargets = 4 };

/* Exit codes of every verb. */
enum { EX_OK, EX_SPEC, EX_ENV, EX_BUG, EX_NUMERICS, EX_STOPPED = 75 };

/* Environment, data or usage: one message, exit 2. */
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A fault of ours: one message, exit 3. */
_Noreturn void bug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
