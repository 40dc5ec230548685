/* safetensors: 8 bytes little endian N, N bytes of JSON, data.
 *
 * The JSON is {"__metadata__": {string: string …}, NAME: {"dtype": string,
 * "shape": [integers], "data_offsets": [begin, end]} …}; nothing else is read.
 * A file is accepted when its tensors tile the data exactly: sorted by begin
 * they touch, the first begins at 0 and the last ends at the end of the file.
 * Then no length in the header can reach outside of the mapping.
 *
 * StTensor.data points into the mapping and may be unaligned. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	MaxHeader = 100000000,  /* the format's own limit */
	MaxTensors = 1 << 20    /* picked arbitrarily */
};

typedef struct { size_t begin, end; } Range;

typedef struct {
	const char *path;
	Arena *mem;
	const char *start, *p, *end;    /* header text */
	const char *data;
	size_t ndata;
	StTensor *t;
	Range *range;
	int n, cap, caprange;
} Json;

typedef struct { void *base; size_t nbytes; } Mapping;

/* StFile is the first member: st_close finds the mapping behind it. */
typedef struct { StFile f; Mapping map; } Opened;

/* JSON */

static _Noreturn void
bad(const Json *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static _Noreturn void
bad(const Json *j, const char *fmt, ...)
{
	Buf b = {0};
	va_list ap;

	va_start(ap, fmt);
	buf_vprintf(&b, fmt, ap);
	va_end(ap);
	die("%s: header byte %td: %s", j->path, j->p - j->start, b.s);
}

static char
peek(Json *j)
{
	while (j->p < j->end && (*j->p == ' ' || *j->p == '\n' ||
	                         *j->p == '\r' || *j->p == '\t'))
		j->p++;
	return (char)(j->p < j->end ? *j->p : 0);
}

static bool
accept(Json *j, char c)
{
	if (peek(j) != c)
		return false;
	j->p++;
	return true;
}

static void
expect(Json *j, char c)
{
	if (!accept(j, c))
		bad(j, "expected '%c'", c);
}

static unsigned
hex4(Json *j)
{
	unsigned v = 0;
	int i;
	char c;

	for (i = 0; i < 4; i++) {
		c = (char)(j->p < j->end ? *j->p : 0);
		if (c >= '0' && c <= '9')
			v = v * 16 + (unsigned)(c - '0');
		else if ((c | 32) >= 'a' && (c | 32) <= 'f')
			v = v * 16 + (unsigned)((c | 32) - 'a' + 10);
		else
			bad(j, "expected four hexadecimal digits");
		j->p++;
	}
	return v;
}

/* One UTF-16 unit at a time: a surrogate pair comes out as two three-byte
 * sequences, which no name of ours holds, and so matches none. */
static void
put_unit(Buf *b, unsigned u)
{
	char s[3];

	if (u < 0x80) {
		s[0] = (char)u;
		buf_write(b, s, 1);
	} else if (u < 0x800) {
		s[0] = (char)(0xc0 | u >> 6);
		s[1] = (char)(0x80 | (u & 63));
		buf_write(b, s, 2);
	} else {
		s[0] = (char)(0xe0 | u >> 12);
		s[1] = (char)(0x80 | (u >> 6 & 63));
		s[2] = (char)(0x80 | (u & 63));
		buf_write(b, s, 3);
	}
}

static void
escape(Json *j, Buf *b)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	const char *c;

	if (j->p == j->end)
		bad(j, "the string does not end");
	if (*j->p == 'u') {
		j->p++;
		put_unit(b, hex4(j));
		return;
	}
	c = *j->p ? strchr(from, *j->p) : NULL;
	if (!c)
		bad(j, "unknown escape");
	j->p++;
	buf_write(b, &to[c - from], 1);
}

static const char *
string(Json *j)
{
	Buf b = {0};
	const char *s;

	expect(j, '"');
	while (j->p < j->end && *j->p != '"') {
		if ((unsigned char)*j->p < ' ')
			bad(j, "control character in a string");
		if (*j->p++ == '\\')
			escape(j, &b);
		else
			buf_write(&b, j->p - 1, 1);
	}
	if (j->p == j->end)
		bad(j, "the string does not end");
	j->p++;
	s = arena_strndup(j->mem, b.s ? b.s : "", b.len);
	buf_free(&b);
	return s;
}

static long
integer(Json *j)
{
	long v = 0;
	const char *first;

	peek(j);
	first = j->p;
	for (; j->p < j->end && *j->p >= '0' && *j->p <= '9'; j->p++)
		if (__builtin_mul_overflow(v, 10L, &v) ||
		    __builtin_add_overflow(v, (long)(*j->p - '0'), &v))
			bad(j, "the number is too large");
	if (j->p == first)
		bad(j, "expected an integer");
	if (*first == '0' && j->p - first > 1)
		bad(j, "a number begins with 0");
	return v;
}

static void
metadata(Json *j)
{
	expect(j, '{');
	if (accept(j, '}'))
		return;
	do {
		string(j);
		expect(j, ':');
		string(j);
	} while (accept(j, ','));
	expect(j, '}');
}

static Dtype
dtype(Json *j, const char *name)
{
	static const char *const names[] = {"F32", "BF16", "F64", "I32"};
	static const Dtype dt[] = {DT_F32, DT_BF16, DT_F64, DT_I32};
	const char *s = string(j);
	size_t i;

	for (i = 0; i < sizeof dt / sizeof *dt; i++)
		if (strcmp(s, names[i]) == 0)
			return dt[i];
	bad(j, "tensor %s has dtype %s; read are F32, BF16, F64 and I32", name,
	    s);
}

static void
shape(Json *j, StTensor *t)
{
	expect(j, '[');
	if (accept(j, ']'))
		return;
	do {
		if (t->ndim == 4)
			bad(j, "tensor %s has more than 4 dimensions", t->name);
		t->dim[t->ndim++] = integer(j);
	} while (accept(j, ','));
	expect(j, ']');
}

static void
offsets(Json *j, Range *r)
{
	expect(j, '[');
	r->begin = (size_t)integer(j);
	expect(j, ',');
	r->end = (size_t)integer(j);
	expect(j, ']');
}

static size_t
tensor_size(Json *j, const StTensor *t)
{
	size_t n = dtype_size(t->dt);
	int i;

	for (i = 0; i < t->ndim; i++)
		if (__builtin_mul_overflow(n, (size_t)t->dim[i], &n))
			bad(j, "tensor %s is too large", t->name);
	return n;
}

static void
check_tensor(Json *j, StTensor *t, Range r)
{
	size_t n = tensor_size(j, t);

	if (r.begin > r.end || r.end > j->ndata)
		bad(j, "tensor %s takes bytes %zu … %zu of %zu", t->name,
		    r.begin, r.end, j->ndata);
	if (r.end - r.begin != n)
		bad(j, "tensor %s takes %zu bytes, its shape %zu", t->name,
		    r.end - r.begin, n);
	t->data = j->data + r.begin;
}

static void
tensor(Json *j, const char *name)
{
	StTensor t = {.name = name};
	Range r = {0, 0};
	unsigned seen = 0, bit;
	const char *key;

	expect(j, '{');
	do {
		key = string(j);
		expect(j, ':');
		bit = strcmp(key, "dtype") == 0          ? 1 :
		      strcmp(key, "shape") == 0          ? 2 :
		      strcmp(key, "data_offsets") == 0   ? 4 : 0;
		if (bit == 0 || (seen & bit))
			bad(j, "tensor %s: unexpected key %s", name, key);
		seen |= bit;
		if (bit == 1)
			t.dt = dtype(j, name);
		else if (bit == 2)
			shape(j, &t);
		else
			offsets(j, &r);
	} while (accept(j, ','));
	expect(j, '}');
	if (seen != 7)
		bad(j, "tensor %s lacks dtype, shape or data_offsets", name);
	check_tensor(j, &t, r);
	if (j->n >= MaxTensors)
		bad(j, "more than %d tensors", (int)MaxTensors);
	j->range = vec_grow(j->mem, j->range, j->n, &j->caprange,
	                    sizeof *j->range);
	j->range[j->n] = r;
	*PUSH(j->mem, j->t, j->n, j->cap) = t;
}

/* Names go to messages and so to terminals. */
static void
check_name(Json *j, const char *s)
{
	if (*s == 0)
		bad(j, "a tensor without a name");
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			bad(j, "control character in a name");
}

static void
header(Json *j)
{
	const char *name;
	bool meta = false;

	expect(j, '{');
	if (!accept(j, '}')) {
		do {
			name = string(j);
			expect(j, ':');
			if (strcmp(name, "__metadata__") == 0) {
				if (meta)
					bad(j, "a second __metadata__");
				meta = true;
				metadata(j);
				continue;
			}
			check_name(j, name);
			tensor(j, name);
		} while (accept(j, ','));
		expect(j, '}');
	}
	if (peek(j) != 0 || j->p != j->end)
		bad(j, "text behind the header");
}

static int
by_begin(const void *a, const void *b)
{
	const Range *p = a, *q = b;

	if (p->begin != q->begin)
		return p->begin < q->begin ? -1 : 1;
	return (p->end > q->end) - (p->end < q->end);
}

static int
by_name(const void *a, const void *b)
{
	const StTensor *p = *(const StTensor *const *)a;
	const StTensor *q = *(const StTensor *const *)b;

	return strcmp(p->name, q->name);
}

static void
check_tiling(Json *j)
{
	size_t at = 0;
	int i;

	qsort(j->range, (size_t)j->n, sizeof *j->range, by_begin);
	for (i = 0; i < j->n; i++) {
		if (j->range[i].begin != at)
			die("%s: tensors leave a gap or overlap at byte %zu",
			    j->path, at);
		at = j->range[i].end;
	}
	if (at != j->ndata)
		die("%s: tensors take %zu bytes, the file holds %zu", j->path,
		    at, j->ndata);
}

static void
check_names(Json *j)
{
	StTensor **v = NEWN(j->mem, StTensor *, j->n + 1);
	int i;

	for (i = 0; i < j->n; i++)
		v[i] = &j->t[i];
	qsort(v, (size_t)j->n, sizeof *v, by_name);
	for (i = 1; i < j->n; i++)
		if (strcmp(v[i - 1]->name, v[i]->name) == 0)
			die("%s: two tensors %s", j->path, v[i]->name);
}

/* files */

static Mapping
map_file(const char *path)
{
	struct stat st;
	Mapping m;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) != 0)
		die("cannot read %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		die("%s is not a file", path);
	m.nbytes = (size_t)st.st_size;
	if (m.nbytes < 8)
		die("%s: %zu bytes are no safetensors file", path, m.nbytes);
	m.base = mmap(NULL, m.nbytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (m.base == MAP_FAILED)
		die("cannot map %s: %s", path, strerror(errno));
	close(fd);
	return m;
}

StFile *
st_read(const char *path)
{
	Arena *mem = arena_new("safetensors");
	Opened *o = NEW(mem, Opened);
	Json j = {.path = path, .mem = mem};
	const uint8_t *p;
	uint64_t nheader = 0;
	int i;

	o->map = map_file(path);
	p = o->map.base;
	for (i = 7; i >= 0; i--)
		nheader = nheader << 8 | p[i];
	if (nheader > MaxHeader || nheader > o->map.nbytes - 8)
		die("%s: a header of %llu bytes in a file of %zu", path,
		    (unsigned long long)nheader, o->map.nbytes);
	j.p = j.start = (const char *)p + 8;
	j.end = j.data = j.p + nheader;
	j.ndata = o->map.nbytes - 8 - (size_t)nheader;
	header(&j);
	check_tiling(&j);
	check_names(&j);
	o->f = (StFile){mem, j.n, j.t};
	return &o->f;
}

void
st_close(StFile *f)
{
	Opened *o = (Opened *)f;

	munmap(o->map.base, o->map.nbytes);
	arena_free(f->mem);
}

/* writing */

static void
header_string(Buf *b, const char *s)
{
	buf_puts(b, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			buf_puts(b, "\\");
		buf_write(b, s, 1);
	}
	buf_puts(b, "\"");
}

static size_t
st_size(const StTensor *t)
{
	size_t n = dtype_size(t->dt);
	int i;

	for (i = 0; i < t->ndim; i++)
		n *= (size_t)t->dim[i];
	return n;
}

static void
header_write(Buf *b, int n, const StTensor *t)
{
	static const char *const names[] = {
		[DT_F32] = "F32", [DT_BF16] = "BF16", [DT_F64] = "F64",
		[DT_I32] = "I32"
	};
	size_t at = 0;
	int i, k;

	/* readers in Python look for this key */
	buf_puts(b, "{\"__metadata__\":{\"format\":\"pt\"}");
	for (i = 0; i < n; i++) {
		buf_puts(b, ",");
		header_string(b, t[i].name);
		buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[",
		           names[t[i].dt]);
		for (k = 0; k < t[i].ndim; k++)
			buf_printf(b, k ? ",%ld" : "%ld", t[i].dim[k]);
		buf_printf(b, "],\"data_offsets\":[%zu,%zu]}", at,
		           at + st_size(&t[i]));
		at += st_size(&t[i]);
	}
	buf_puts(b, "}");
	/* the format asks for data at a multiple of 8 */
	while (b->len % 8 != 0)
		buf_puts(b, " ");
}

static int
write_all(int fd, const void *data, size_t left)
{
	const char *p = data;
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
	return 0;
}

static int
write_tensors(int fd, const Buf *head, int n, const StTensor *t)
{
	uint8_t size[8];
	int i;

	for (i = 0; i < 8; i++)
		size[i] = (uint8_t)((uint64_t)head->len >> (8 * i));
	if (write_all(fd, size, 8) != 0 ||
	    write_all(fd, head->s, head->len) != 0)
		return -1;
	for (i = 0; i < n; i++)
		if (write_all(fd, t[i].data, st_size(&t[i])) != 0)
			return -1;
	return fsync(fd);
}

/* As file_write does it, but from where the tensors lie. */
void
st_write(const char *path, int n, const StTensor *t)
{
	Buf head = {0}, tmp = {0};
	int fd, saved;

	header_write(&head, n, t);
	buf_printf(&tmp, "%s.tmp%ld", path, (long)getpid());
	fd = open(tmp.s, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
	          0666);
	if (fd < 0)
		die("cannot write %s: %s", path, strerror(errno));
	if (write_tensors(fd, &head, n, t) != 0) {
		saved = errno;
		close(fd);
		goto fail;
	}
	if (close(fd) != 0 || rename(tmp.s, path) != 0) {
		saved = errno;
		goto fail;
	}
	buf_free(&head);
	buf_free(&tmp);
	return;
fail:
	unlink(tmp.s);
	die("cannot write %s: %s", path, strerror(saved));
}

/* parameters */

void
params_save(Run *r, const char *path)
{
	Arena *mem = arena_new("params_save");
	StTensor *t = NEWN(mem, StTensor, r->nparam);
	const RunParam *p;
	int i, k;

	run_get(r, AR_PARAMS, 0, r->arena_size[AR_PARAMS]);
	for (i = 0; i < r->nparam; i++) {
		p = &r->param[i];
		t[i].name = p->name;
		t[i].dt = DT_F32;
		t[i].ndim = p->ndim;
		for (k = 0; k < p->ndim; k++)
			t[i].dim[k] = p->dim[k];
		t[i].data = run_at(r, (Place){AR_PARAMS, p->off});
	}
	st_write(path, r->nparam, t);
	arena_free(mem);
}

static void
shape_text(Buf *b, int ndim, const long *dim)
{
	int i;

	buf_puts(b, "[");
	for (i = 0; i < ndim; i++)
		buf_printf(b, i ? ", %ld" : "%ld", dim[i]);
	buf_puts(b, "]");
}

static void
check_shape(const char *path, const RunParam *p, const StTensor *t)
{
	Buf b = {0};

	if (t->dt == DT_I32)
		die("%s: %s is I32, not a float", path, p->name);
	if (t->ndim == p->ndim &&
	    memcmp(t->dim, p->dim, (size_t)p->ndim * sizeof *p->dim) == 0)
		return;
	shape_text(&b, t->ndim, t->dim);
	buf_puts(&b, " there, ");
	shape_text(&b, p->ndim, p->dim);
	die("%s: %s is %s in the model", path, p->name, b.s);
}

static void
from_bf16(float *dst, const char *src, long n)
{
	uint16_t h;
	uint32_t u;
	long i;

	for (i = 0; i < n; i++) {
		memcpy(&h, src + 2 * i, sizeof h);
		u = (uint32_t)h << 16;
		memcpy(&dst[i], &u, sizeof u);
	}
}

static void
from_f64(float *dst, const char *src, long n)
{
	double x;
	long i;

	for (i = 0; i < n; i++) {
		memcpy(&x, src + 8 * i, sizeof x);
		dst[i] = (float)x;
	}
}

static void
load_tensor(Run *r, const RunParam *p, const StTensor *t)
{
	float *dst = run_at(r, (Place){AR_PARAMS, p->off});
	long i;

	if (t->dt == DT_F32)
		memcpy(dst, t->data, (size_t)p->n * sizeof *dst);
	else if (t->dt == DT_BF16)
		from_bf16(dst, t->data, p->n);
	else
		from_f64(dst, t->data, p->n);
	for (i = 0; p->holds == HOLDS_BF16 && i < p->n; i++)
		dst[i] = round_to_bf16(dst[i]);
}

static const StTensor *
st_find(const StFile *f, const char *name)
{
	int i;

	for (i = 0; i < f->n; i++)
		if (strcmp(f->t[i].name, name) == 0)
			return &f->t[i];
	return NULL;
}

/* All is checked before the first parameter changes. */
void
params_load(Run *r, const char *path)
{
	StFile *f = st_read(path);
	const StTensor *t;
	int i;

	for (i = 0; i < f->n; i++)
		if (!run_param(r, f->t[i].name))
			die("%s: the model has no parameter %s", path,
			    f->t[i].name);
	for (i = 0; i < r->nparam; i++) {
		t = st_find(f, r->param[i].name);
		if (!t)
			die("%s: parameter %s is missing", path,
			    r->param[i].name);
		check_shape(path, &r->param[i], t);
	}
	for (i = 0; i < r->nparam; i++)
		load_tensor(r, &r->param[i], st_find(f, r->param[i].name));
	run_put(r, AR_PARAMS, 0, r->arena_size[AR_PARAMS]);
	run_sync_weights(r);
	st_close(f);
}
