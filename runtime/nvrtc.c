/* Kernels -> cubins, by NVRTC, several at a time, kept in the cache.
 *
 * An entry is named for the SHA-256 of everything that decides its bytes:
 * text, options, version and file of the compiler.  It holds the cubin, the
 * compiler's words, and the length of the cubin in 16 hexadecimal digits.  The
 * text includes nothing, so there is no hidden input.  NVRTC has a cache of its
 * own, in the driver's, which would swallow those words: --no-cache. */
#define _GNU_SOURCE
#include "nvrtc.h"
#include "api.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	MaxWorkers = 8,         /* a compiler holds up to a few hundred MB */
	LengthDigits = 16,
	IdentityBytes = 4096,   /* of the library's file: its headers and build id */
	MaxOption = 6
};

typedef struct {
	Nvrtc *k;
	int *todo, ntodo;
	const char *cache;
	_Atomic int done;
	bool terminal;
} Work;

/* The stack limit that a compilation would set is that of the whole process.
 * Before 12.9 NVRTC had no cache of its own, and no word to turn it off. */
static int
options(Arena *a, const Nvrtc *k, const char *opt[MaxOption])
{
	const ApiInfo *lib = api_need(API_NVRTC);
	int n = 0;

	opt[n++] = arena_printf(a, "--gpu-architecture=%s", k->arch);
	opt[n++] = "--std=c++17";
	opt[n++] = "-default-device";
	opt[n++] = "--modify-stack-limit=false";
	opt[n++] = "--ptxas-options=-v";
	if (lib->major > 12 || lib->minor >= 9)
		opt[n++] = "--no-cache";
	return n;
}

/* the cache */

static void
identity(Buf *b)
{
	const ApiInfo *lib = api_need(API_NVRTC);
	char head[IdentityBytes], hex[65];
	FILE *f = lib->path ? fopen(lib->path, "rbe") : NULL;
	long size = 0;
	size_t n = 0;

	if (f) {
		n = fread(head, 1, sizeof head, f);
		if (fseek(f, 0, SEEK_END) == 0)
			size = ftell(f);
		fclose(f);
	}
	sha256_hex(head, n, hex);
	buf_printf(b, "cubin 1\nnvrtc %d.%d %ld %s\n", lib->major, lib->minor, size, hex);
}

static void
set_key(const Buf *who, Nvrtc *k)
{
	Arena *a = arena_new("key");
	const char *opt[MaxOption];
	int i, n = options(a, k, opt);
	Buf b = {0};

	buf_write(&b, who->s, who->len);
	for (i = 0; i < n; i++)
		buf_printf(&b, "%s\n", opt[i]);
	buf_puts(&b, k->text);
	sha256_hex(b.s, b.len, k->key);
	buf_free(&b);
	arena_free(a);
}

static bool
take_cached(const char *cache, Nvrtc *k)
{
	char digits[LengthDigits + 1], *end;
	size_t n, ncubin;
	char *s = cache_get(k->mem, cache, k->key, ".cubin", &n);

	if (!s || n < LengthDigits)
		return false;
	memcpy(digits, s + n - LengthDigits, LengthDigits);
	digits[LengthDigits] = 0;
	ncubin = strtoull(digits, &end, 16);
	if (*end || ncubin > n - LengthDigits)
		return false;
	k->log = arena_strndup(k->mem, s + ncubin, n - LengthDigits - ncubin);
	k->cubin = s;
	k->ncubin = ncubin;
	k->cached = true;
	return true;
}

/* That it cannot be kept costs the next run its time and nothing else. */
static void
keep(const char *cache, const Nvrtc *k)
{
	Buf b = {0};

	buf_write(&b, k->cubin, k->ncubin);
	buf_puts(&b, k->log);
	buf_printf(&b, "%016zx", k->ncubin);
	cache_put(cache, k->key, ".cubin", b.s, b.len);
	buf_free(&b);
}

/* compiling: on several threads, so faults are noted and told later */

static void
take_log(Nvrtc *k, nvrtcProgram p, nvrtcResult e)
{
	size_t n = 0;
	char *s;

	k->log = "";
	if (api.nvrtcGetProgramLogSize(p, &n) == NVRTC_SUCCESS && n > 1) {
		s = arena_alloc(k->mem, n + 1);
		if (api.nvrtcGetProgramLog(p, s) == NVRTC_SUCCESS)
			k->log = s;
	}
	if (e != NVRTC_SUCCESS && !*k->log)
		k->log = arena_printf(k->mem, "%s: NVRTC: %s\n", k->path,
		                      api.nvrtcGetErrorString(e));
}

static void
take_cubin(Nvrtc *k, nvrtcProgram p)
{
	size_t n = 0;
	char *s;

	if (api.nvrtcGetCUBINSize(p, &n) != NVRTC_SUCCESS || n == 0)
		return;
	s = arena_alloc(k->mem, n);
	if (api.nvrtcGetCUBIN(p, s) != NVRTC_SUCCESS)
		return;
	k->cubin = s;
	k->ncubin = n;
}

static void
compile(Nvrtc *k)
{
	const char *opt[MaxOption];
	int n = options(k->mem, k, opt);
	nvrtcProgram p = NULL;
	nvrtcResult e;

	k->seconds = seconds_now();
	e = api.nvrtcCreateProgram(&p, k->text, k->path, 0, NULL, NULL);
	if (e == NVRTC_SUCCESS)
		e = api.nvrtcCompileProgram(p, n, opt);
	if (p)
		take_log(k, p, e);
	else
		k->log = "NVRTC makes no program\n";
	if (e == NVRTC_SUCCESS)
		take_cubin(k, p);
	if (p)
		api.nvrtcDestroyProgram(&p);
	k->seconds = seconds_now() - k->seconds;
}

static void
compile_item(void *arg, long item)
{
	Work *w = arg;
	Nvrtc *k = &w->k[w->todo[item]];
	int done;

	compile(k);
	if (k->cubin)
		keep(w->cache, k);
	done = atomic_fetch_add(&w->done, 1) + 1;
	if (w->terminal)
		fprintf(stderr, "\rcompiling kernels %d/%d%s", done, w->ntodo,
		        done == w->ntodo ? "\n" : "");
}

static int
workers(int n)
{
	cpu_set_t set;
	int cores = 1;

	if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
		cores = CPU_COUNT(&set);
	cores = cores < MaxWorkers ? cores : MaxWorkers;
	return n < cores ? n : cores;
}

/* The longest text first: the last to finish should be a short one. */
static const Nvrtc *sorted;

static int
by_length(const void *a, const void *b)
{
	size_t x = strlen(sorted[*(const int *)a].text), y = strlen(sorted[*(const int *)b].text);

	return x != y ? (x < y) - (x > y) : *(const int *)a - *(const int *)b;
}

void
nvrtc_compile(Nvrtc *k, int n)
{
	Arena *a = arena_new("nvrtc");
	Work w = {.k = k, .todo = NEWN(a, int, n), .terminal = isatty(2)};
	Buf who = {0};
	Pool *p;
	int i;

	w.cache = cache_open(a);
	identity(&who);
	for (i = 0; i < n; i++) {
		k[i].mem = arena_new("cubin");
		set_key(&who, &k[i]);
		if (!take_cached(w.cache, &k[i]))
			w.todo[w.ntodo++] = i;
	}
	sorted = k;
	qsort(w.todo, (size_t)w.ntodo, sizeof *w.todo, by_length);
	if (w.ntodo) {
		p = pool_new(workers(w.ntodo));
		pool_run(p, compile_item, &w, w.ntodo);
		pool_free(p);
	}
	buf_free(&who);
	arena_free(a);
}

void
nvrtc_free(Nvrtc *k, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (k[i].mem)
			arena_free(k[i].mem);
}

long
nvrtc_spills(const Nvrtc *k)
{
	static const char *const what[] = {" bytes spill stores", " bytes spill loads"};
	const char *s, *d;
	long sum = 0;
	size_t i;

	for (i = 0; i < 2; i++)
		for (s = k->log; (s = strstr(s, what[i])); s++) {
			for (d = s; d > k->log && d[-1] >= '0' && d[-1] <= '9'; d--)
				;
			sum += strtol(d, NULL, 10);
		}
	return sum;
}
