/* The execution half of the runtime: pool, gemm, safetensors, manifest,
 * compile cache, initial values.  `runtime_test bench` prints the speed of the
 * GEMMs beside one oneDNN call on as many OpenMP threads. */
#define _GNU_SOURCE
#include "../../runtime/hcrun.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failures;

static void
verdict(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void
verdict(bool good, const char *fmt, ...)
{
	va_list ap;

	fputs(good ? "ok " : "FAIL ", stdout);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
	failures += !good;
}

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t
draw(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static uint16_t
bf16(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof u);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float
from_bf16(uint16_t h)
{
	uint32_t u = (uint32_t)h << 16;
	float x;

	memcpy(&x, &u, sizeof x);
	return x;
}

/* pool */

static _Atomic int hits[5000];
static _Atomic int selves;

static void
hit(void *arg, long item)
{
	(void)arg;
	atomic_fetch_add(&hits[item], 1);
	atomic_fetch_or(&selves, 1 << pool_self());
}

static void
nothing(void *arg, long item)
{
	(void)arg;
	(void)item;
}

static void
test_pool(int threads)
{
	Pool *p = pool_new(threads);
	long sizes[] = {0, 1, 2, 3, 63, 64, 65, 5000}, n;
	bool good = true;
	size_t round;
	int i, k;

	for (round = 0; round < 4000; round++) {
		n = sizes[round % (sizeof sizes / sizeof *sizes)];
		if (n == 5000 && round > 400)
			n = 7;
		memset(hits, 0, sizeof hits);
		pool_run(p, hit, NULL, n);
		for (i = 0; i < 5000; i++)
			good &= hits[i] == (i < n);
		if (round % 997 == 0)
			usleep(2000);
	}
	verdict(good, "pool_every_item_once_threads%d", threads);
	for (k = 0; k < threads; k++)
		good &= pool_threads(p) == threads;
	verdict(good && selves < 1 << threads, "pool_self_threads%d", threads);
	selves = 0;
	pool_free(p);
}

static void
bench_pool(int threads)
{
	Pool *p = pool_new(threads);
	double t, best = 1;
	int i, k;

	for (k = 0; k < 20; k++) {
		t = seconds();
		for (i = 0; i < 1000; i++)
			pool_run(p, nothing, NULL, 64);
		t = (seconds() - t) / 1000;
		best = t < best ? t : best;
	}
	printf("pool_run of 64 empty items on %d threads: %.2f us\n",
	       pool_threads(p), best * 1e6);
	pool_free(p);
}

/* gemm */

typedef struct {
	const char *xy;
	bool acc;
	long m, n, k;
	Dtype at, ct;           /* at E4M3: b is E5M2, or with alpha 0 E4M3 too */
	long pad;               /* added to every leading dimension, and between matrices */
	long batch;             /* 0: one */
	float alpha, beta;      /* alpha 0: 1; beta 0: nothing is added */
} Case;

typedef struct { void *a, *b, *c, *c0, *d; size_t nc; GemmShape s; } Operands;

static size_t
dsize(Dtype dt)
{
	return dtype_size(dt);
}

/* of the code of an FP8 number, from the definition of the formats */
static double
fp8_number(uint8_t u, Dtype dt)
{
	int nman = dt == DT_E4M3 ? 3 : 2, bias = dt == DT_E4M3 ? 7 : 15, e = (u & 127) >> nman, m = u & ((1 << nman) - 1);
	double x = e ? ldexp((1 << nman) + m, e - bias - nman) : ldexp(m, 1 - bias - nman);

	return u & 128 ? -x : x;
}

static double
get(const void *p, Dtype dt, long i)
{
	if (dtype_fp8(dt))
		return fp8_number(((const uint8_t *)p)[i], dt);
	return dt == DT_BF16 ? (double)from_bf16(((const uint16_t *)p)[i]) :
	                       (double)((const float *)p)[i];
}

static void
fill(void *p, Dtype dt, size_t n, uint64_t seed)
{
	uint64_t s = seed * 0x9E3779B97F4A7C15u + 1;
	float x;
	size_t i;

	for (i = 0; i < n; i++) {
		x = (float)(draw(&s) >> 40) * 0x1p-23f - 1.0f;
		if (dtype_fp8(dt))      /* finite, of every size */
			((uint8_t *)p)[i] = (uint8_t)(draw(&s) % 0x7b | (draw(&s) & 0x80));
		else if (dt == DT_BF16)
			((uint16_t *)p)[i] = bf16(x);
		else
			((float *)p)[i] = x;
	}
}

static Operands
data_make(Arena *mem, const Case *t)
{
	bool ta = t->xy[0] == 't', tb = t->xy[1] == 't', fp8 = dtype_fp8(t->at);
	long batch = t->batch ? t->batch : 1, sd;
	Operands d = {0};
	GemmShape *s = &d.s;

	*s = (GemmShape){ta, tb, t->acc, t->beta != 0, fp8 && t->alpha != 0, t->at,
	                 fp8 && t->alpha != 0 ? DT_E5M2 : t->at, t->ct, t->m, t->n, t->k,
	                 (ta ? t->m : t->k) + t->pad, (tb ? t->k : t->n) + t->pad, t->n + t->pad,
	                 t->beta != 0 ? t->n + 2 * t->pad : 0, batch, 0, 0, 0,
	                 t->alpha != 0 ? t->alpha : 1, t->beta};
	s->sa = (ta ? t->k : t->m) * s->lda + t->pad;
	s->sb = (tb ? t->n : t->k) * s->ldb + t->pad;
	/* of C and D */
	s->sc = t->m * (t->n + 2 * t->pad);
	sd = t->m * s->ldd;
	d.nc = (size_t)(batch * s->sc);
	d.a = arena_alloc(mem, (size_t)(batch * s->sa) * dsize(t->at));
	d.b = arena_alloc(mem, (size_t)(batch * s->sb) * dsize(s->bt));
	d.c = arena_alloc(mem, d.nc * dsize(t->ct));
	d.c0 = arena_alloc(mem, d.nc * dsize(t->ct));
	d.d = arena_alloc(mem, (size_t)(batch * s->sc + sd) * dsize(t->ct));
	fill(d.a, t->at, (size_t)(batch * s->sa), 1);
	fill(d.b, s->bt, (size_t)(batch * s->sb), 2);
	fill(d.c0, t->ct, d.nc, 3);
	fill(d.d, t->ct, (size_t)(batch * s->sc + sd), 4);
	return d;
}

static const float memory_scale = 0.37f;

static void
gemm_case(Gemm *g, const Operands *d)
{
	gemm_run(g, &d->s, d->a, d->b, d->c, d->s.add ? d->d : NULL, d->s.scaled ? memory_scale : 1);
}

static double
dot(const Operands *d, long w, long i, long j, double *mag)
{
	const GemmShape *s = &d->s;
	double sum = 0, x;
	long l;

	*mag = 0;
	for (l = 0; l < s->k; l++) {
		x = get(d->a, s->at, w * s->sa + (s->ta ? l * s->lda + i : i * s->lda + l)) *
		    get(d->b, s->bt, w * s->sb + (s->tb ? j * s->ldb + l : l * s->ldb + j));
		sum += x;
		*mag += fabs(x);
	}
	return sum;
}

/* |error| <= k 2^-24 sum|a b| for any order of fp32 additions (Higham 3.5),
 * plus one rounding of the result: 2^-24, or 2^-8 for a bf16 C.  bf16 dot
 * products add pairs with flushed denormals: covered, the data has none.
 * alpha and the addend are two more operations in fp32. */
static double
worst_ratio(const Operands *d)
{
	const GemmShape *s = &d->s;
	double worst = 0, want, got, mag, tol, had = 0, alpha;
	long i, j, w, step = s->batch * s->m * s->n * s->k > 20000000 ? 37 : 1, at;

	for (at = 0; at < s->batch * s->m * s->n; at += step) {
		w = at / s->n / s->m;
		i = at / s->n % s->m;
		j = at % s->n;
		alpha = (double)s->alpha * (s->scaled ? (double)memory_scale : 1);
		want = alpha * dot(d, w, i, j, &mag);
		if (s->acc)
			had = get(d->c0, s->ct, w * s->sc + i * s->ldc + j);
		else if (s->add)
			had = s->beta * get(d->d, s->ct, w * s->sc + i * s->ldd + j);
		want += had;
		mag = fabs(alpha) * mag + fabs(had);
		got = get(d->c, s->ct, w * s->sc + i * s->ldc + j);
		tol = (double)(s->k + 3) * 0x1p-24 * mag +
		      fabs(want) * (s->ct == DT_BF16 ? 0x1p-8 : 0x1p-23) +
		      1e-30;
		if (!(fabs(got - want) / tol <= worst))
			worst = fabs(got - want) / tol;
	}
	return worst;
}

/* what lies between rows of C, and between its matrices, stays as it was */
static bool
gaps_kept(const Operands *d)
{
	const char *c = d->c, *c0 = d->c0;
	const GemmShape *s = &d->s;
	size_t e = dsize(s->ct);
	long i, in;

	for (i = 0; i < (long)d->nc; i++) {
		in = i % s->sc;
		if ((in / s->ldc >= s->m || in % s->ldc >= s->n) &&
		    memcmp(c + (size_t)i * e, c0 + (size_t)i * e, e) != 0)
			return false;
	}
	return true;
}

static void
test_gemm_case(Gemm *const g[3], const Case *t, const char *tag)
{
	Arena *mem = arena_new("case");
	Operands d = data_make(mem, t);
	size_t nbytes = d.nc * dsize(t->ct);
	void *first = arena_alloc(mem, nbytes);
	bool same = true, gaps = true;
	double worst = 0, w;
	int i;

	for (i = 0; i < 3; i++) {
		memcpy(d.c, d.c0, nbytes);
		gemm_case(g[i], &d);
		if (i == 0) {
			memcpy(first, d.c, nbytes);
			w = worst_ratio(&d);
			worst = w > worst || isnan(w) ? w : worst;
		}
		same &= memcmp(first, d.c, nbytes) == 0;
		gaps &= gaps_kept(&d);
	}
	verdict(same && gaps && worst <= 1,
	        "gemm%s_%s%s_batch%ld_alpha%g_beta%g_%ldx%ldx%ld_pad%ld_%s_%s%s%s%s error/bound %.3f",
	        tag, t->xy, t->acc ? "_acc" : "", d.s.batch, (double)d.s.alpha,
	        (double)d.s.beta, t->m, t->n, t->k, t->pad,
	        dtype_name(t->at),
	        t->ct == DT_BF16 ? "bf16" : "f32",
	        same ? "" : " THREADS DIFFER", gaps ? "" : " GAP WRITTEN",
	        worst <= 1 ? "" : " WRONG", worst);
	arena_free(mem);
}

static int
count_tasks(void)
{
	DIR *dir = opendir("/proc/self/task");
	const struct dirent *e;
	int n = 0;

	if (!dir)
		return -1;
	while ((e = readdir(dir)))
		n += e->d_name[0] != '.';
	closedir(dir);
	return n;
}

/* Operands of one byte, in every form: products without a factor, and products with one
 * that is in part in memory. */
static void
test_gemm_fp8(Gemm *const g[3], const char *tag)
{
	static const char *const xy[] = {"nn", "nt", "tn", "tt"};
	static const long size[][4] = {{1, 1, 1, 0}, {16, 48, 80, 16}, {70, 50, 2100, 3}, {300, 1100, 64, 0}};
	size_t i, k;
	int form;

	for (i = 0; i < sizeof size / sizeof *size; i++)
		for (k = 0; k < 4; k++)
			for (form = 0; form < 4; form++) {
				const Case t = {xy[k], form == 3, size[i][0], size[i][1], size[i][2], DT_E4M3,
				                form % 2 ? DT_F32 : DT_BF16, size[i][3], 0, form / 2 ? -0.21f : 0, 0};

				test_gemm_case(g, &t, tag);
			}
}

/* batches, a factor, an addend: alone and together */
static void
test_gemm_options(Gemm *const g[3], const char *tag)
{
	static const char *const xy[] = {"nn", "nt", "tn", "tt"};
	static const long size[][5] = {
		{1, 1, 1, 0, 3}, {17, 33, 129, 3, 5}, {70, 48, 2100, 0, 1}, {300, 1100, 70, 1, 2},
		{96, 96, 96, 0, 7}
	};
	static const float factor[][2] = {{1, 0}, {-2.5f, 0}, {1, 0.75f}, {0.3f, -4}};
	Case t;
	int i, k, x, y, f;

	for (i = 0; i < 5; i++)
		for (k = 0; k < 4; k++)
			for (x = 0; x < 4; x++)
				for (f = 0; f < 4; f++)
					for (y = 0; y <= (x % 2 == 0 && f < 2); y++) {
						t = (Case){xy[k], y, size[i][0], size[i][1], size[i][2],
						           x / 2 ? DT_BF16 : DT_F32, x % 2 ? DT_BF16 : DT_F32,
						           size[i][3], size[i][4], factor[f][0], factor[f][1]};
						test_gemm_case(g, &t, tag);
					}
}

/* tasks: how many there are without pools (a sanitizer has its own) */
static void
test_gemm(const char *tag, int tasks)
{
	static const char *const xy[] = {"nn", "nt", "tn", "tt"};
	static const long size[][4] = {
		{1, 1, 1, 0}, {3, 5, 7, 0}, {17, 33, 129, 3}, {256, 320, 96, 0},
		{300, 259, 515, 5}, {64, 1100, 70, 1}, {70, 48, 2100, 0},
		{513, 40, 1537, 8}
	};
	Pool *p[3];
	Gemm *g[3];
	Case t;
	int i, k, x, y;

	for (i = 0; i < 3; i++) {
		p[i] = pool_new(i + 1);
		g[i] = gemm_new(p[i]);
	}
	for (i = 0; i < 8; i++)
		for (k = 0; k < 4; k++)
			for (x = 0; x < 2; x++)
				for (y = 0; y < 3; y++) {
					t = (Case){xy[k], y == 1, size[i][0],
					           size[i][1], size[i][2],
					           x ? DT_BF16 : DT_F32,
					           y == 2 ? DT_BF16 : DT_F32,
					           size[i][3], 0, 0, 0};
					test_gemm_case(g, &t, tag);
				}
	test_gemm_options(g, tag);
	test_gemm_fp8(g, tag);
	/* 1 of p[1], 2 of p[2] */
	verdict(count_tasks() == tasks + 3,
	        "gemm%s_no_threads_of_openmp: %d tasks", tag, count_tasks());
	for (i = 0; i < 3; i++) {
		gemm_free(g[i]);
		pool_free(p[i]);
	}
}

/* children: die() ends the process, so what must die runs in one */

static char dir[] = "/tmp/hcgen-runtime-test-XXXXXX";

static char *
path_of(Arena *mem, const char *file)
{
	return arena_printf(mem, "%s/%s", dir, file);
}

/* Exit code of fn(arg) in a child; what it printed goes to text. */
static int
in_child(void (*fn)(void *), void *arg, char *text, size_t size)
{
	int io[2], status = 0;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	fflush(stdout);
	if (pipe(io) != 0 || (pid = fork()) < 0)
		die("pipe or fork: %s", strerror(errno));
	if (pid == 0) {
		dup2(io[1], 2);
		close(io[0]);
		close(io[1]);
		fn(arg);
		fflush(stderr);
		_exit(0);
	}
	close(io[1]);
	while ((got = read(io[0], text + n, size - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = 0;
	close(io[0]);
	waitpid(pid, &status, 0);
	for (; n > 0 && text[n - 1] == '\n'; n--)
		text[n - 1] = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

/* fn(arg) must end with this code and say this */
static void
must_end(const char *name, void (*fn)(void *), void *arg, int code,
         const char *say)
{
	char text[4096];
	int got = in_child(fn, arg, text, sizeof text);

	verdict(got == code && strstr(text, say), "%s: %d %s", name, got, text);
}

/* not file_write: hundreds of fsyncs take half a minute */
static void
write_text(const char *path, const void *s, size_t n)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(s, 1, n, f) != n || fclose(f) != 0)
		die("cannot write %s: %s", path, strerror(errno));
}

/* safetensors */

static void
read_it(void *path)
{
	st_close(st_read(path));
}

static void
write_st(const char *path, const char *header, size_t nheader, size_t ndata)
{
	Buf b = {0};
	char zero[64] = {0};
	int i;
	char c;

	for (i = 0; i < 8; i++) {
		c = (char)(nheader >> (8 * i));
		buf_write(&b, &c, 1);
	}
	buf_puts(&b, header);
	buf_write(&b, zero, ndata);
	write_text(path, b.s, b.len);
	buf_free(&b);
}

static void
test_st_damage(Arena *mem)
{
#define T(name, dt, shape, off) \
	"\"" name "\":{\"dtype\":\"" dt "\",\"shape\":" shape \
	",\"data_offsets\":" off "}"
	static const struct {
		const char *name, *header;
		size_t ndata;
		const char *say;
	} bad[] = {
		{"empty_header", "", 8, "expected '{'"},
		{"not_closed", "{" T("a", "F32", "[2]", "[0,8]"), 8,
		 "expected '}'"},
		{"end_beyond_file", "{" T("a", "F32", "[4]", "[0,16]") "}", 8,
		 "of 8"},
		{"begin_behind_end", "{" T("a", "F32", "[2]", "[8,0]") "}", 8,
		 "8 … 0"},
		{"shape_and_bytes", "{" T("a", "F32", "[3]", "[0,8]") "}", 8,
		 "its shape 12"},
		{"overflow_of_shape",
		 "{" T("a", "F32", "[4611686018427387904,4]", "[0,8]") "}", 8,
		 "too large"},
		{"overflow_of_number",
		 "{" T("a", "F32", "[99999999999999999999]", "[0,8]") "}", 8,
		 "too large"},
		{"negative", "{" T("a", "F32", "[-1]", "[0,8]") "}", 8,
		 "integer"},
		{"gap", "{" T("a", "F32", "[1]", "[4,8]") "}", 8, "gap"},
		{"overlap", "{" T("a", "F32", "[1]", "[0,4]") ","
		 T("b", "F32", "[2]", "[0,8]") "}", 8, "gap or overlap"},
		{"unused_bytes", "{" T("a", "F32", "[1]", "[0,4]") "}", 8,
		 "the file holds 8"},
		{"twice", "{" T("a", "F32", "[1]", "[0,4]") ","
		 T("a", "F32", "[1]", "[4,8]") "}", 8, "two tensors a"},
		{"foreign_dtype", "{" T("a", "F16", "[4]", "[0,8]") "}", 8,
		 "F16"},
		{"missing_key", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8,
		 "lacks"},
		{"unknown_key", "{\"a\":{\"dtyp\":\"F32\"}}", 8,
		 "unexpected key"},
		{"text_behind", "{" T("a", "F32", "[2]", "[0,8]") "}x", 8,
		 "behind"},
		{"open_string", "{\"a", 8, "does not end"},
		{"control_in_name", "{" T("\\u001b[2J", "F32", "[2]", "[0,8]")
		 "}", 8, "control"},
		{"five_dimensions",
		 "{" T("a", "F32", "[1,1,1,1,2]", "[0,8]") "}", 8,
		 "4 dimensions"},
	};
#undef T
	char *path = path_of(mem, "bad.safetensors"), *name;
	size_t i;

	for (i = 0; i < sizeof bad / sizeof *bad; i++) {
		write_st(path, bad[i].header, strlen(bad[i].header),
		         bad[i].ndata);
		name = arena_printf(mem, "safetensors_%s", bad[i].name);
		must_end(name, read_it, path, EX_ENV, bad[i].say);
	}
	write_st(path, "{}", (size_t)1 << 62, 0);
	must_end("safetensors_header_length", read_it, path, EX_ENV, "header");
	write_text(path, "1234", 4);
	must_end("safetensors_short", read_it, path, EX_ENV, "4 bytes");
	must_end("safetensors_absent", read_it, path_of(mem, "none"), EX_ENV,
	         "No such file");
}

static void
test_st_cut(Arena *mem, const char *good)
{
	size_t n = 0, len;
	char *s = file_read(mem, good, &n), *path = path_of(mem, "cut");
	char text[4096];
	int bad = 0;

	for (len = 0; len < n; len += 7) {
		write_text(path, s, len);
		bad += in_child(read_it, path, text, sizeof text) != EX_ENV;
	}
	verdict(bad == 0, "safetensors_cut_anywhere: %d accepted", bad);
}

static void
write_unwritable(void *arg)
{
	StTensor t = {"a", DT_F32, 1, {1}, "1234"};

	st_write(arg, 1, &t);
}

static void
test_st(void)
{
	Arena *mem = arena_new("st");
	char *path = path_of(mem, "a.safetensors");
	float a[6] = {1, 2, 3, 4, 5, 6};
	uint16_t b[3] = {0x3f80, 0, 0xffff};
	double c[1] = {0.1};
	StTensor t[3] = {{"x \"y\\", DT_F32, 2, {2, 3}, a},
	                 {"b", DT_BF16, 1, {3}, b},
	                 {"c", DT_F64, 0, {0}, c}};
	StFile *f;
	bool good;

	st_write(path, 3, t);
	f = st_read(path);
	good = f->n == 3 && strcmp(f->t[0].name, "x \"y\\") == 0 &&
	       f->t[0].ndim == 2 && f->t[0].dim[1] == 3 &&
	       memcmp(f->t[0].data, a, sizeof a) == 0 &&
	       f->t[1].dt == DT_BF16 &&
	       memcmp(f->t[1].data, b, sizeof b) == 0 && f->t[2].ndim == 0 &&
	       memcmp(f->t[2].data, c, sizeof c) == 0;
	verdict(good, "safetensors_round_trip");
	st_close(f);
	test_st_damage(mem);
	test_st_cut(mem, path);
	must_end("safetensors_unwritable", write_unwritable,
	         (void *)(uintptr_t)"/proc/none/a", EX_ENV, "cannot write");
	must_end("safetensors_disk_full", write_unwritable,
	         (void *)(uintptr_t)"/dev/full/a", EX_ENV, "cannot write");
	arena_free(mem);
}

/* manifest */

static const char good_manifest[] =
        "hcgen-manifest 2\n"
        "name tiny\n"
        "spec 0123456789abcdef0123456789abcdef"
        "0123456789abcdef0123456789abcdef\n"
        "target cpu\n"
        "model layers 1 lanes 2 width 8 vocab 5 padded 8\n"
        "batch most 16 bos 4 mask 0\n"
        "numerics storage bf16 gemm bf16\n"
        "train steps 10 scheduled 8 lr 0.003 scale mean warmup 2 cooldown 0.4 linear floor 0.1 "
        "clip 1 val_every 5 val_tokens 64 log_every 1 seed 7\n"
        "data packing stream val_packing documents shuffle 1 max_doc 0\n"
        "stage one steps 0 4 tokens 16 seq 8 micro 2 max_doc 0 lr_mul 1 targets 2 from 1 to 1 from 0.5 to 0\n"
        "stage two steps 4 10 tokens 8 seq 4 micro 2 max_doc 7 lr_mul 1.5 targets 1 from 1 to 1\n"
        "trainfile some where/*.bin\n"
        "trainfile auto\n"
        "valfile auto\n"
        "arena params 304\n"
        "arena weights 128\n"
        "arena grads 304\n"
        "arena moment1 304\n"
        "arena moment2 304\n"
        "arena acts 4096\n"
        "arena tables 256\n"
        "arena inputs 512\n"
        "arena sched 48\n"
        "arena result 16\n"
        "param embed f32 8,8 params+0 weights+0 normal 1\n"
        "param hc.post f32 2,4 params+256 - values 1 -2.5 3e-1 4 5 6 7 8\n"
        "param norm f32 4 params+288 - const 1\n"
        "table 0 tables+0 rope_cos 8 4 f32 1 0.1 0.01 0.001\n"
        "table 0 tables+128 rope_sin 8 4 f32 1 0.1 0.01 0.001\n"
        "table 1 tables+0 rope_cos 8 4 f32 1 0.2 0.01 0.001\n"
        "input tokens inputs+0\n"
        "input targets inputs+64\n"
        "input docstart inputs+128\n"
        "input hash inputs+192 9 clean\n"
        "input order tokens inputs+256 8\n"
        "kernel scale__n64 kernels/scale__n64.c\n"
        "program train 0 tokens 16 seq 8\n"
        "launch scale__n64 4 bytes 512 flops 64 : params+0 acts+256 i16 "
        "f2.5e+00 @ layers.0 test\n"
        "gemm nt 8 8 8 acc 0 a weights+0 bf16 8 b weights+0 bf16 8 "
        "c acts+512 f32 8 bytes 512 flops 1024 @ head\n"
        "copy acts+1024 acts+512 256 @ head\n"
        "program eval 0 tokens 16 seq 8\n"
        "program logits 1 tokens 8 seq 8\n"
        "output logits acts+0 8\n"
        "program update 0 tokens 0 seq 0\n"
        "program train 1 tokens 8 seq 4\n"
        "program eval 2 tokens 8 seq 8\n";

static const char scale_kernel[] =
        "typedef union { void *p; long i; double f; } HcArg;\n"
        "void scale__n64(const HcArg *a, long item);\n"
        "void scale__n64(const HcArg *a, long item)\n"
        "{\n"
        "	const float *x = a[0].p;\n"
        "	float *y = a[1].p;\n"
        "	for (long i = 0; i < a[2].i; i++)\n"
        "		y[item * a[2].i + i] = (float)a[3].f * "
        "x[item * a[2].i + i];\n"
        "}\n";

static void
load_it(void *where)
{
	run_load(where);
}

static void
write_manifest(Arena *mem, const char *from, const char *to)
{
	const char *at = strstr(good_manifest, from);
	Buf b = {0};

	if (!at)
		die("the good manifest has no '%s'", from);
	buf_write(&b, good_manifest, (size_t)(at - good_manifest));
	buf_puts(&b, to);
	buf_puts(&b, at + strlen(from));
	write_text(path_of(mem, "manifest"), b.s, b.len);
	buf_free(&b);
}

#define FP8_FROM \
	"gemm nt 8 8 8 acc 0 a weights+0 bf16 8 b weights+0 bf16 8 c acts+512 f32 8"
#define FP8_A(type) " a acts+0 " type " 16"
#define FP8_B(type, ld) " b acts+1024 " type " " #ld " c acts+2048 f32 16"

static void
test_manifest_damage(Arena *mem)
{
	static const struct { const char *name, *from, *to, *say; } bad[] = {
		{"version", "manifest 2", "manifest 1", ":1: this is another"},
		{"no_header", "hcgen-manifest 2\n", "", ":1: expected"},
		{"name", "name tiny", "name ../x", ":2: name"},
		{"hash", "0123456789abcdef0123", "z", ":3: "},
		{"target", "target cpu", "target gpu", "is not a target"},
		{"negative_size", "arena acts 4096", "arena acts -1",
		 ":20: size: -1"},
		{"huge_size", "arena acts 4096",
		 "arena acts 99999999999999999999", ":20: size"},
		{"octal", "arena acts 4096", "arena acts 010", "not an integer"},
		{"hexadecimal", "arena acts 4096", "arena acts 0x10",
		 "not an integer"},
		{"two_spaces", "model layers", "model  layers", "second space"},
		{"infinite", "lr 0.003", "lr inf", "not a number"},
		{"not_finite", "lr 0.003", "lr 1e999", "not finite"},
		{"comma", "lr 0.003", "lr 0,003", "not a number"},
		{"param_beyond", "params+288", "params+292", "beyond"},
		{"param_overlap", "params+288", "params+284", "overlap"},
		{"param_misaligned", "params+288", "params+286", "multiple"},
		{"param_elsewhere", "params+288", "acts+288", "lies in acts"},
		{"param_overflow", "f32 8,8", "f32 999999999999,999999999999",
		 "too much"},
		{"param_twice", "param norm", "param embed", "two parameters"},
		{"grads_too_small", "arena grads 304", "arena grads 300",
		 "300 of grads"},
		{"copy_beyond", "weights+0 normal", "weights+2 normal",
		 "beyond"},
		{"values_too_few", "6 7 8\n", "6 7\n", "expected value"},
		{"values_too_many", "6 7 8\n", "6 7 8 9\n", "'9' is not a mark"},
		{"table_beyond", "rope_cos 8 4", "rope_cos 80 4", "beyond"},
		{"input_beyond", "input hash inputs+192",
		 "input hash inputs+500", "beyond"},
		{"hash_kind", "192 9 clean", "192 9 salted", "salted"},
		{"order_beyond", "inputs+256 8", "inputs+256 800", "beyond"},
		{"no_targets", "input targets", "input hash", "expected rows"},
		{"kernel_escapes", "kernels/scale", "kernels/../scale",
		 "not a file"},
		{"kernel_absolute", "kernels/scale", "/kernels/scale",
		 "not a file"},
		{"kernel_name", "kernel scale__n64", "kernel scale;n64",
		 "not a name"},
		{"kernel_unknown", "launch scale__n64", "launch other",
		 "no kernel other"},
		{"launch_place", "acts+256", "acts+4096", "beyond"},
		{"launch_argument", "i16", "x16", "not an argument"},
		{"launch_integer", "i16", "i1.5", "not an integer"},
		{"when_elsewhere", "gemm nt", "when always\ngemm nt", "not in program update"},
		{"when_ends_early", "program update 0 tokens 0 seq 0\n", "program update 0 tokens 0 seq 0\nwhen every 2 from 5 to 4\n", "step: 4"},
		{"when_never", "program update 0 tokens 0 seq 0\n", "program update 0 tokens 0 seq 0\nwhen every 0 from 0 to -\n", "steps: 0"},
		{"zero_beyond", "program update 0 tokens 0 seq 0\n", "program update 0 tokens 0 seq 0\nzero grads+8 304 @ x\n", "beyond"},
		{"like_nobody", "weights+0 normal 1", "weights+0 like x", "begins like x"},
		{"like_itself", "weights+0 normal 1", "weights+0 like embed", "begins like embed"},
		{"gemm_beyond", "c acts+512", "c acts+4000", "beyond"},
		{"gemm_extent", "gemm nt 8 8 8", "gemm nt 9 8 8", "beyond"},
		{"gemm_ld", "bf16 8 b", "bf16 7 b", "leading dimension"},
		{"gemm_types", "a weights+0 bf16", "a acts+0 f32", "both"},
		{"gemm_overflow", "bf16 8 b", "bf16 1099511627776 b", "beyond"},
		{"gemm_batch_beyond", "acc 0 a", "acc 0 batch 64 64 0 64 a", "beyond"},
		{"gemm_batch_overlap", "acc 0 a", "acc 0 batch 2 0 0 63 a", "batch overlap"},
		{"gemm_batch_overflow", "acc 0 a", "acc 0 batch 1048576 1099511627776 0 64 a", "too much"},
		{"gemm_fp8_form", FP8_FROM, "gemm nn 16 16 16 acc 0" FP8_A("f8e4m3") FP8_B("f8e4m3", 16), "lie along k"},
		{"gemm_fp8_twice_e5m2", FP8_FROM, "gemm nt 16 16 16 acc 0" FP8_A("f8e5m2") FP8_B("f8e5m2", 16), "f8e5m2 by f8e5m2"},
		{"gemm_fp8_and_bf16", FP8_FROM, "gemm nt 16 16 16 acc 0" FP8_A("bf16") FP8_B("f8e5m2", 16), "both FP8"},
		{"gemm_fp8_rows", FP8_FROM, "gemm nt 8 16 16 acc 0" FP8_A("f8e4m3") FP8_B("f8e5m2", 16), "no multiple of 16"},
		{"gemm_fp8_columns", FP8_FROM, "gemm nt 16 8 16 acc 0" FP8_A("f8e4m3") FP8_B("f8e5m2", 16), "no multiple of 16"},
		{"gemm_fp8_size", FP8_FROM, "gemm nt 16 16 8 acc 0" FP8_A("f8e4m3") FP8_B("f8e5m2", 16), "no multiple of 16"},
		{"gemm_fp8_stride", FP8_FROM, "gemm nt 16 16 16 acc 0" FP8_A("f8e4m3") FP8_B("f8e5m2", 24), "no multiple of 16"},
		{"gemm_fp8_batch", FP8_FROM, "gemm nt 16 16 16 acc 0 batch 2 256 256 256" FP8_A("f8e4m3") FP8_B("f8e5m2", 16),
		 "batch or an addend"},
		{"gemm_scale_of_bf16", "acc 0 a", "acc 0 scale sched+8 a", "not FP8"},
		{"gemm_scale_beyond", "acc 0 a", "acc 0 scale sched+48 a", "beyond"},
		{"gemm_alpha_word", "acc 0 a", "acc 0 alpha x a", "not a number"},
		{"gemm_add_type", "acc 0 a", "acc 0 add acts+0 bf16 8 1 a", "type of c"},
		{"gemm_add_acc", "acc 0 a", "acc 1 add acts+0 f32 8 1 a", "acc is 0"},
		{"gemm_add_overlap", "acc 0 a", "acc 0 add acts+640 f32 8 1 a", "addend overlaps"},
		{"gemm_add_ld", "acc 0 a", "acc 0 add acts+0 f32 7 1 a", "leading dimension"},
		{"copy_overlap", "copy acts+1024 acts+512", "copy acts+600 "
		 "acts+512", "overlap"},
		{"copy_too_long", "256 @ head", "9999 @ head", "beyond"},
		{"step_first", "program train 0 tokens 16 seq 8\n", "", "before the first"},
		{"program_twice", "program eval 2", "program eval 0", "second"},
		{"program_order", "program eval 0", "program logits 0", "does not come here"},
		{"program_tokens", "program eval 0 tokens 16", "program eval 0 tokens 15", "15 tokens in sequences of 8"},
		{"program_too_large", "program eval 0 tokens 16", "program eval 0 tokens 17", "17"},
		{"program_stage", "program train 1", "program train 2", "no stage 2"},
		{"program_of_stage", "program train 1 tokens 8 seq 4", "program train 1 tokens 8 seq 8", "its program runs on"},
		{"program_missing", "program update 0 tokens 0 seq 0\nprogram train 1 tokens 8 seq 4\nprogram eval 2 tokens 8 seq 8\n",
		 "", "cut off"},
		{"stage_program_missing", "program train 1 tokens 8 seq 4\nprogram eval 2 tokens 8 seq 8\n", "",
		 "stage two has no program train"},
		{"stage_gap", "stage two steps 4 10", "stage two steps 5 10", "begins at step 5"},
		{"stage_short", "stage two steps 4 10", "stage two steps 4 9", "not 10 steps"},
		{"stage_tokens", "tokens 8 seq 4 micro", "tokens 80 seq 4 micro", "80"},
		{"table_stage", "table 1 tables", "table 2 tables", "stage"},
		{"last_line_cut", "eval 2 tokens 8 seq 8\n", "eval 2 tokens 8 seq 8", "cut off"},
		{"unknown_line", "output logits", "outputs logits",
		 "is not a line"},
		{"escape_sequence", "head", "\033[2J", "a byte 27"},
		{"seq", "seq 8", "seq 7", "not a multiple"},
	};
	char *name;
	size_t i;

	for (i = 0; i < sizeof bad / sizeof *bad; i++) {
		write_manifest(mem, bad[i].from, bad[i].to);
		name = arena_printf(mem, "manifest_%s", bad[i].name);
		must_end(name, load_it, dir, EX_ENV, bad[i].say);
	}
}

/* Cut or with a byte changed it ends well: loaded or refused. */
static void
test_manifest_noise(Arena *mem)
{
	size_t n = sizeof good_manifest - 1, i;
	char *s = arena_strdup(mem, good_manifest), text[4096];
	uint64_t r = 88172645463325252u;
	int bad = 0, code;

	for (i = 0; i < 600; i++) {
		size_t at = draw(&r) % n;
		char old = s[at];

		s[at] = (char)(draw(&r) % 96 + 32);
		write_text(path_of(mem, "manifest"), s,
		           i % 3 ? n : draw(&r) % n);
		code = in_child(load_it, dir, text, sizeof text);
		bad += code != 0 && code != EX_ENV;
		s[at] = old;
	}
	verdict(bad == 0, "manifest_noise: %d of 600 end badly", bad);
}

/* what each stage runs, and when */
static bool
stages_good(const Run *r)
{
	float w[MaxTargets];

	run_targets(r, 1, w);
	return r->nstage == 2 && r->stage[1].first == 4 && r->stage[1].max_doc == 7 && r->stage[0].train == PROG_TRAIN &&
	       r->stage[1].train == NProg && r->stage[1].eval == PROG_EVAL && r->stage[2].eval == NProg + 1 &&
	       r->val_documents && run_tokens(r, 5) == 4 * 32 + 16 && run_stage_of(r, 3) == 0 && run_stage_of(r, 4) == 1 &&
	       run_stage_of(r, 10) == 2 && w[0] == 1 && w[1] == 0.375f && w[2] == 0;
}

static void
test_manifest_good(void)
{
	Run *r = run_load(dir);
	const RunStep *s = r->prog[PROG_TRAIN].step;
	bool good;

	good = r->layers == 1 && r->lanes == 2 && r->most_tokens == 16 && stages_good(r) &&
	       r->bos == 4 && !r->document_mask && r->storage_bf16 && r->lr == 0.003 &&
	       r->cooldown_kind == RUN_COOL_LINEAR && r->seed == 7 &&
	       r->ntrainfile == 2 &&
	       strcmp(r->trainfile[0], "some where/*.bin") == 0 &&
	       r->nparam == 3 && r->param[1].init == PI_VALUES &&
	       r->param[1].values[1] == -2.5 && r->param[1].values[2] == 0.3 &&
	       r->param[1].weights.arena == -1 && r->ninput == 5 &&
	       r->input[3].rows == 9 && r->ntable == 3 && r->table[1].sine &&
	       r->prog[PROG_TRAIN].nstep == 3 && s[0].narg == 4 &&
	       s[0].arg[3].f == 2.5 && s[0].items == 4 &&
	       strcmp(s[0].site, "layers.0 test") == 0 && s[1].tb && !s[1].ta &&
	       s[2].m == 256 && r->logits_ld == 8;
	verdict(good, "manifest_good");
	run_close(r);
}

/* the whole: compile, run, values */

static bool
close_to(float got, float want)
{
	uint32_t a, b;

	memcpy(&a, &got, 4);
	memcpy(&b, &want, 4);
	return a - b + 1 <= 2;          /* libm may differ by one ulp */
}

/* Numbers from Python's hashlib and math by docs/spec.md. */
static void
test_init(Run *r)
{
	static RunParam big = {"embed", 1, {1000000, 0, 0}, 1000000, 0,
	                       {-1, 0}, PI_NORMAL, 1, NULL};
	static float x[1000000];
	static const struct { long long seed; const char *name; double std;
	                      long i; float want; } v[] = {
		{0, "embed", 1, 0, -0x1.4a5634p+0f},
		{0, "embed", 1, 1, 0x1.70fafp+0f},
		{0, "embed", 1, 40000, -0x1.0a3822p+1f},
		{7, "layers.0.attn.qkv", 0.03125, 0, 0x1.70c2c8p-5f},
		{7, "layers.0.attn.qkv", 0.03125, 3, 0x1.473706p-5f},
		{-3, "embed", 1, 5, 0x1.51401ap+0f},
	};
	Run fake = *r;
	double sum = 0, square = 0;
	size_t i;
	const float *cos_at = run_at(r, r->table[0].at);
	const float *sin_at = run_at(r, r->table[1].at);

	fake.nparam = 1;
	fake.param = &big;
	fake.arena[AR_PARAMS] = (char *)x;
	for (i = 0; i < sizeof v / sizeof *v; i++) {
		big.name = v[i].name;
		big.std = v[i].std;
		run_init_params(&fake, v[i].seed);
		verdict(close_to(x[v[i].i], v[i].want),
		        "init_value_%zu %a want %a", i, (double)x[v[i].i],
		        (double)v[i].want);
	}
	for (i = 0; i < 1000000; i++) {
		sum += (double)x[i];
		square += (double)x[i] * (double)x[i];
	}
	/* 4 sigma: 1/sqrt(n), sqrt(2/n) */
	verdict(fabs(sum / 1e6) < 4e-3 && fabs(square / 1e6 - 1) < 5.7e-3,
	        "init_moments mean %.5f square %.5f", sum / 1e6, square / 1e6);
	verdict(cos_at[0] == 1 && sin_at[0] == 0 &&
	        close_to(cos_at[7 * 4 + 1], (float)cos((double)(7 * 0.1f))) &&
	        close_to(sin_at[7 * 4 + 3], (float)sin((double)(7 * 0.001f))),
	        "rotary_tables");
	run_stage(r, 1);
	verdict(close_to(cos_at[7 * 4 + 1], (float)cos((double)(7 * 0.2f))), "rotary_tables_of_the_next_stage");
	run_stage(r, 0);
	verdict(close_to(cos_at[7 * 4 + 1], (float)cos((double)(7 * 0.1f))), "rotary_tables_and_back");
}

static void
test_program(Run *r)
{
	const float *x, *y, *c, *copy;
	const uint16_t *w;
	bool good = true;
	double t[3] = {0};
	int i;

	run_init_params(r, 7);
	run_program(r, PROG_TRAIN);
	run_program_timed(r, PROG_TRAIN, t);
	x = run_at(r, (Place){AR_PARAMS, 0});
	w = run_at(r, (Place){AR_WEIGHTS, 0});
	y = run_at(r, (Place){AR_ACTS, 256});
	c = run_at(r, (Place){AR_ACTS, 512});
	copy = run_at(r, (Place){AR_ACTS, 1024});
	for (i = 0; i < 64; i++)
		good &= c[i] == copy[i] && w[i] == bf16(x[i]);
	/* the launch wrote 64 floats at 256, the gemm 64 at 512 */
	for (i = 0; i < 64; i++)
		good &= y[i] == 2.5f * x[i];
	verdict(good && t[0] > 0 && t[1] > 0 && t[2] > 0,
	        "program_launch_gemm_copy");
	good = x[64] == 1 && x[65] == -2.5f && x[71] == 8 && x[72] == 1;
	verdict(good, "init_values_and_const");
}

static void
test_params(Arena *mem, Run *r)
{
	char *path = path_of(mem, "p.safetensors");
	float *x = run_at(r, (Place){AR_PARAMS, 0}), saved[76];

	memcpy(saved, x, sizeof saved);
	params_save(r, path);
	memset(x, 0, sizeof saved);
	params_load(r, path);
	verdict(memcmp(x, saved, sizeof saved) == 0, "params_round_trip");
}

static void
open_it(void *arg)
{
	Run *r = run_load(dir);

	(void)arg;
	run_open(r, DEV_CPU, 2);
	run_close(r);
}

static void
load_params(void *path)
{
	Run *r = run_load(dir);

	run_open(r, DEV_CPU, 1);
	params_load(r, path);
	run_close(r);
}

static void
test_params_damage(Arena *mem)
{
	char *path = path_of(mem, "p.safetensors");
	float x[64] = {0};
	StTensor t[4] = {{"embed", DT_F32, 2, {8, 8}, x},
	                 {"hc.post", DT_F32, 2, {2, 4}, x},
	                 {"norm", DT_F32, 1, {4}, x},
	                 {"more", DT_F32, 1, {4}, x}};

	st_write(path, 2, t);
	must_end("params_missing", load_params, path, EX_ENV,
	         "norm is missing");
	st_write(path, 4, t);
	must_end("params_extra", load_params, path, EX_ENV, "no parameter more");
	t[1].dim[0] = 4;
	t[1].dim[1] = 2;
	st_write(path, 3, t);
	must_end("params_misshapen", load_params, path, EX_ENV,
	         "hc.post is [4, 2] there, [2, 4] in the model");
	t[1] = (StTensor){"hc.post", DT_F64, 2, {2, 4}, x};
	t[2] = (StTensor){"norm", DT_BF16, 1, {4}, x};
	st_write(path, 3, t);
	must_end("params_of_other_floats", load_params, path, EX_OK, "");
}

/* some entry of the cache */
static char *
cache_entry(Arena *mem)
{
	char *cache = path_of(mem, "cache"), *found = NULL;
	DIR *d = opendir(cache);
	const struct dirent *e;

	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.')
			found = arena_printf(mem, "%s/%s", cache, e->d_name);
	if (d)
		closedir(d);
	return found;
}

static void
flip(const char *path, long at)
{
	FILE *f = fopen(path, "r+b");
	int c;

	if (!f)
		die("cannot open %s", path);
	fseek(f, at, SEEK_SET);
	c = fgetc(f);
	fseek(f, at, SEEK_SET);
	fputc(c ^ 1, f);
	fclose(f);
}

static void
test_cache(Arena *mem)
{
	char *entry = cache_entry(mem), *cache = path_of(mem, "cache");
	char *kernel = path_of(mem, "kernels/scale__n64.c");
	struct stat before, after;
	char text[4096];
	int code;

	verdict(stat(cache, &before) == 0 && (before.st_mode & 0777) == 0700,
	        "cache_is_private");
	stat(entry, &before);
	code = in_child(open_it, NULL, text, sizeof text);
	stat(entry, &after);
	verdict(code == 0 && text[0] == 0 && before.st_ino == after.st_ino,
	        "cache_hit");
	flip(entry, 700);
	must_end("cache_damaged_entry", open_it, NULL, EX_OK, "is damaged");
	stat(entry, &after);
	verdict(before.st_ino != after.st_ino, "cache_compiled_again");
	must_end("cache_good_again", open_it, NULL, EX_OK, "");
	chmod(cache, 0777);
	must_end("cache_open_to_others", open_it, NULL, EX_ENV, "chmod 700");
	chmod(cache, 0700);
	setenv("CC", "no-such-compiler", 1);
	must_end("compiler_missing", open_it, NULL, EX_ENV,
	         "no C compiler found");
	setenv("CC", "gcc -DNOTHING=1", 1);
	must_end("compiler_with_words", open_it, NULL, EX_OK, "");
	unsetenv("CC");
	setenv("PATH", "/nowhere", 1);
	must_end("compiler_nowhere", open_it, NULL, EX_ENV,
	         "install gcc (apt-get install gcc)");
	setenv("PATH", "/usr/local/bin:/usr/bin:/bin", 1);
	write_text(kernel, "void scale__n64(void) { x; }\n", 29);
	must_end("kernel_does_not_compile", open_it, NULL, EX_BUG,
	         "kernels/scale__n64.c:1:");
	write_text(kernel, "void other(void) {}\n", 20);
	must_end("kernel_of_other_name", open_it, NULL, EX_ENV,
	         "does not define scale__n64");
	unlink(kernel);
	must_end("kernel_missing", open_it, NULL, EX_ENV, "No such file");
}

static void
test_memory(Arena *mem, const Run *r)
{
	char *path = path_of(mem, "memory"), *s;
	FILE *f = fopen(path, "w");
	size_t n = 0;

	if (!f)
		die("cannot write %s", path);
	run_memory(r, f);
	fclose(f);
	s = file_read(mem, path, &n);
	verdict(s && strstr(s, "gemm scratch") && strstr(s, "304") &&
	        strstr(s, "4096"), "memory_table");
}

static void
test_run(void)
{
	Arena *mem = arena_new("run test");
	Run *r;

	setenv("HCGEN_CACHE", path_of(mem, "cache"), 1);
	if (dir_make(path_of(mem, "kernels")) != 0)
		die("cannot make %s", dir);
	write_text(path_of(mem, "kernels/scale__n64.c"), scale_kernel,
	           sizeof scale_kernel - 1);
	test_manifest_damage(mem);
	test_manifest_noise(mem);
	write_manifest(mem, "name tiny", "name tiny");
	test_manifest_good();
	r = run_load(dir);
	run_open(r, DEV_CPU, 2);
	test_init(r);
	test_program(r);
	test_params(mem, r);
	test_memory(mem, r);
	run_close(r);
	test_params_damage(mem);
	test_cache(mem);
	arena_free(mem);
}

static void
remove_dir(void)
{
	char *argv[] = {(char *)(uintptr_t)"rm", (char *)(uintptr_t)"-rf", dir,
	                NULL};
	pid_t pid = fork();

	if (pid == 0) {
		execvp("rm", argv);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
}

/* bench: ours beside one oneDNN call on 2 OpenMP threads */

typedef struct {
	dnnl_primitive_t prim;
	dnnl_exec_arg_t arg[4];
	dnnl_stream_t stream;
	dnnl_status_t (*execute)(const_dnnl_primitive_t, dnnl_stream_t, int,
	                         const dnnl_exec_arg_t *);
} Whole;

#define SYM(so, name) \
	__typeof__(&name) p_##name = NULL; \
	*(void **)&p_##name = dlsym((so), #name)

static void
whole_desc(void *so, dnnl_memory_desc_t *d, long rows, long cols, long ld,
           bool tr, Dtype dt)
{
	SYM(so, dnnl_memory_desc_init_by_strides);
	dnnl_dims_t dim = {rows, cols}, stride = {tr ? 1 : ld, tr ? ld : 1};

	p_dnnl_memory_desc_init_by_strides(d, 2, dim, dt == DT_BF16 ?
	                                   dnnl_bf16 : dnnl_f32, stride);
}

/* OpenMP threads of the calls that the main thread makes from now on */
static void
omp_threads(int n)
{
	void *so = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
	void (*set)(int) = NULL;

	*(void **)&set = dlsym(so, "omp_set_num_threads");
	if (set)
		set(n);
}

static Whole
whole_make(const Case *t, const Operands *d, int threads)
{
	void *so = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
	SYM(so, dnnl_engine_create);
	SYM(so, dnnl_stream_create);
	SYM(so, dnnl_matmul_desc_init);
	SYM(so, dnnl_primitive_attr_create);
	SYM(so, dnnl_post_ops_create);
	SYM(so, dnnl_post_ops_append_sum);
	SYM(so, dnnl_primitive_attr_set_post_ops);
	SYM(so, dnnl_primitive_desc_create);
	SYM(so, dnnl_primitive_create);
	SYM(so, dnnl_primitive_execute);
	SYM(so, dnnl_memory_create);
	static dnnl_engine_t engine;
	static dnnl_stream_t stream;
	dnnl_memory_desc_t m[3];
	void *at[3] = {d->a, d->b, d->c};
	int index[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST}, i;
	dnnl_matmul_desc_t desc;
	dnnl_primitive_attr_t attr;
	dnnl_post_ops_t ops;
	dnnl_primitive_desc_t pd;
	Whole w = {.execute = p_dnnl_primitive_execute};

	omp_threads(threads);
	if (!engine) {
		p_dnnl_engine_create(&engine, dnnl_cpu, 0);
		p_dnnl_stream_create(&stream, engine, 1);
	}
	whole_desc(so, &m[0], t->m, t->k, d->s.lda, t->xy[0] == 't', t->at);
	whole_desc(so, &m[1], t->k, t->n, d->s.ldb, t->xy[1] == 't', t->at);
	whole_desc(so, &m[2], t->m, t->n, d->s.ldc, false, t->ct);
	p_dnnl_matmul_desc_init(&desc, &m[0], &m[1], NULL, &m[2]);
	p_dnnl_primitive_attr_create(&attr);
	p_dnnl_post_ops_create(&ops);
	if (t->acc)
		p_dnnl_post_ops_append_sum(ops, 1.0f);
	p_dnnl_primitive_attr_set_post_ops(attr, ops);
	p_dnnl_primitive_desc_create(&pd, &desc, attr, engine, NULL);
	p_dnnl_primitive_create(&w.prim, pd);
	for (i = 0; i < 3; i++) {
		w.arg[i].arg = index[i];
		p_dnnl_memory_create(&w.arg[i].memory, &m[i], engine, at[i]);
	}
	w.stream = stream;
	return w;
}

static double
bench_ours(Gemm *g, const Case *t, const Operands *d)
{
	double best = 1e9, s;
	int i;

	for (i = 0; i < 12; i++) {
		s = seconds();
		gemm_case(g, d);
		s = seconds() - s;
		best = s < best ? s : best;
	}
	return best;
}

static double
bench_whole(const Whole *w)
{
	double best = 1e9, s;
	int i;

	for (i = 0; i < 12; i++) {
		s = seconds();
		w->execute(w->prim, w->stream, 3, w->arg);
		s = seconds() - s;
		best = s < best ? s : best;
	}
	return best;
}

static void
bench_case(Gemm *g, const Case *t, int threads)
{
	Arena *mem = arena_new("bench");
	Operands d = data_make(mem, t);
	double flops = 2.0 * (double)t->m * (double)t->n * (double)t->k;
	double ours = 1e9, theirs = 1e9, one = 1e9, x;
	Whole w, w1;
	int i;

	gemm_case(g, &d);
	w1 = whole_make(t, &d, 1);
	w = whole_make(t, &d, threads);
	for (i = 0; i < 8; i++) {
		x = bench_ours(g, t, &d);
		ours = x < ours ? x : ours;
		omp_threads(threads);
		x = bench_whole(&w);
		theirs = x < theirs ? x : theirs;
		usleep(20000);
		omp_threads(1);
		x = bench_whole(&w1);
		one = x < one ? x : one;
	}
	printf("%s%s %-4s %-4s %5ld %5ld %5ld %9.1f %9.1f %9.1f %7.2f %7.2f\n",
	       t->xy, t->acc ? "+" : " ", t->at == DT_BF16 ? "bf16" : "f32",
	       t->ct == DT_BF16 ? "bf16" : "f32", t->m, t->n, t->k,
	       flops / ours * 1e-9, flops / theirs * 1e-9, flops / one * 1e-9,
	       theirs / ours, one / ours / threads);
	fflush(stdout);
	arena_free(mem);
}

static void
gemm_bench(void)
{
	static const long fwd[][3] = {
		{4096, 768, 256}, {4096, 1024, 256}, {4096, 256, 1024},
		{4096, 320, 256}, {4096, 256, 256}, {256, 320, 256}
	};
	static const long wgrad[][2] = {
		{256, 256}, {768, 256}, {1024, 256}, {256, 1024}, {320, 256},
		{768, 768}, {1024, 1024}
	};
	Pool *p = pool_new(0);
	Gemm *g = gemm_new(p);
	Case t;
	int i, x, th = pool_threads(p);

	bench_pool(th);
	printf("GFLOP/s on %d threads: ours, one oneDNN call on %d OpenMP "
	       "threads and on 1; ratios ours/oneDNN, ours/%d x one\n", th, th,
	       th);
	for (x = 0; x < 2; x++) {
		Dtype dt = x ? DT_BF16 : DT_F32;

		t = (Case){"nn", false, 2048, 2048, 2048, dt, DT_F32, 0, 0, 0, 0};
		bench_case(g, &t, th);
		for (i = 0; i < 6; i++) {
			t = (Case){"nt", false, fwd[i][0], fwd[i][1], fwd[i][2],
			           dt, dt, 0, 0, 0, 0};
			bench_case(g, &t, th);
			t.xy = "nn";
			bench_case(g, &t, th);
		}
		for (i = 0; i < 7; i++) {
			t = (Case){"tn", true, wgrad[i][0], wgrad[i][1], 4096,
			           dt, DT_F32, 0, 0, 0, 0};
			bench_case(g, &t, th);
		}
	}
	gemm_free(g);
	pool_free(p);
}

int
main(int argc, char **argv)
{
	int tasks;

	if (argc > 1 && strcmp(argv[1], "bench") == 0) {
		gemm_bench();
		return 0;
	}
	test_pool(1);
	test_pool(2);
	test_pool(3);
	tasks = count_tasks();
	test_gemm("", tasks);
	setenv("HCGEN_NO_BF16", "1", 1);
	test_gemm("_widened", tasks);
	unsetenv("HCGEN_NO_BF16");
	if (!mkdtemp(dir))
		die("cannot make %s: %s", dir, strerror(errno));
	test_st();
	test_run();
	remove_dir();
	printf("%d failures\n", failures);
	return failures != 0;
}
