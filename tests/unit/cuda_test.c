/* The CUDA half of the runtime as far as it goes without a GPU: the table of
 * functions against NVIDIA's headers, the cache of compiled things, manifests
 * of target cuda, NVRTC on kernels of our own, what is read from cubins, and
 * what is said where something is missing. */
#define _GNU_SOURCE
#include "../../runtime/nvrtc.h"
#include "../../runtime/api.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;
static char dir[] = "/tmp/hcgen-cuda-test-XXXXXX";
static Arena *mem;

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

static char *
path_of(const char *file)
{
	return arena_printf(mem, "%s/%s", dir, file);
}

static void
write_text(const char *path, const char *s)
{
	if (file_emit(path, s, strlen(s)) != 0)
		die("cannot write %s: %s", path, strerror(errno));
}

/* Exit code of fn(arg) in a child; what it said on stderr goes to text. */
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
	while (n < size - 1 && (got = read(io[0], text + n, size - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = 0;
	close(io[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

static void
must_end(const char *name, void (*fn)(void *), void *arg, int code, const char *say)
{
	char text[8192];
	int got = in_child(fn, arg, text, sizeof text);
	size_t n = strlen(text);

	while (n > 0 && text[n - 1] == '\n')
		text[--n] = 0;
	verdict(got == code && strstr(text, say), "%s%s%.*s", name, got == code && strstr(text, say) ?
	        "" : arena_printf(mem, ": %d, wanted %d and '%s': ", got, code, say),
	        got == code && strstr(text, say) ? 0 : 800, text);
}

/* the table against the headers */

static const char *
header_dir(void)
{
	const char *home = getenv("CUDA_HOME");
	const char *s = arena_printf(mem, "%s/include", home ? home : "/usr/local/cuda");

	return access(arena_printf(mem, "%s/cublasLt.h", s), R_OK) == 0 ? s : NULL;
}

static void
compile_headers(void *include)
{
	const char *cc = getenv("CC");
	char *arg[] = {(char *)(uintptr_t)(cc ? cc : "cc"), (char *)(uintptr_t)"-std=c11",
	               (char *)(uintptr_t)"-fsyntax-only", (char *)(uintptr_t)"-I", include,
	               (char *)(uintptr_t)"tests/unit/cuda_headers.c", NULL};

	execvp(arg[0], arg);
	_exit(127);
}

static void
test_headers(void)
{
	const char *include = header_dir();

	if (!include)
		printf("skip api_is_that_of_the_headers: no cublasLt.h in /usr/local/cuda/include\n");
	else
		must_end("api_is_that_of_the_headers", compile_headers,
		         (void *)(uintptr_t)include, 0, "");
}

/* the cache */

static const char key[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static bool
cached_is(const char *cache, const char *suffix, const char *want)
{
	size_t n = 0;
	char *s = cache_get(mem, cache, key, suffix, &n);

	return want ? s && n == strlen(want) && memcmp(s, want, n) == 0 && s[n] == 0 : !s;
}

static void
get_entry(void *cache)
{
	_exit(cached_is(cache, ".x", NULL) ? 0 : 1);
}

static void
open_cache(void *unused)
{
	(void)unused;
	cache_open(mem);
}

static void
put_item(void *arg, long item)
{
	const char *text = item % 2 ? "odd odd odd" : "even";

	cache_put(arg, key, ".race", text, strlen(text));
}

static void
test_cache_damage(const char *cache)
{
	char *path = cache_path(mem, cache, key, ".x");
	struct stat st;
	bool good = true;
	long i;
	FILE *f;

	stat(path, &st);
	for (i = 0; i < st.st_size; i++) {
		f = fopen(path, "r+b");
		fseek(f, i, SEEK_SET);
		fputc('!', f);
		fclose(f);
		if (i == 0 || i == st.st_size - 1)
			must_end("cache_damaged_byte_is_told", get_entry, (void *)(uintptr_t)cache,
			         0, "is damaged: compiling it again");
		cache_put(cache, key, ".x", "some bytes", 10);
	}
	for (i = 0; i < st.st_size; i++) {
		good = truncate(path, i) == 0 && good;
		good = good && in_child(get_entry, (void *)(uintptr_t)cache, (char[400]){0}, 400) == 0;
		cache_put(cache, key, ".x", "some bytes", 10);
	}
	verdict(good && cached_is(cache, ".x", "some bytes"), "cache_cut_entry_is_absent");
}

static void
test_cache(void)
{
	const char *cache;
	struct stat st;
	Pool *p;
	int i;

	setenv("HCGEN_CACHE", path_of("cache"), 1);
	cache = cache_open(mem);
	verdict(stat(cache, &st) == 0 && (st.st_mode & 0777) == 0700, "cache_is_private");
	verdict(cached_is(cache, ".x", NULL), "cache_is_empty");
	verdict(cache_put(cache, key, ".x", "some bytes", 10) && cached_is(cache, ".x", "some bytes"),
	        "cache_gives_what_it_got");
	verdict(cached_is(cache, ".y", NULL), "cache_suffixes_are_apart");
	test_cache_damage(cache);
	p = pool_new(4);
	for (i = 0; i < 50; i++)
		pool_run(p, put_item, (void *)(uintptr_t)cache, 16);
	pool_free(p);
	verdict(cached_is(cache, ".race", "even") || cached_is(cache, ".race", "odd odd odd"),
	        "cache_writers_do_not_meet");
	chmod(cache, 0720);
	must_end("cache_open_to_others", open_cache, NULL, EX_ENV, "chmod 700");
	chmod(cache, 0700);
	verdict(!cache_put("/proc/none", key, ".x", "", 0) && errno != 0, "cache_unwritable");
}

/* manifests of target cuda */

static const char scale_text[] =
        "extern \"C\" __global__ __launch_bounds__(128)\n"
        "void scale(float *__restrict__ y, const float *__restrict__ x, long n, double f)\n"
        "{\n"
        "    __shared__ float s[128];\n"
        "    const long i = blockIdx.x * 128L + threadIdx.x;\n"
        "    s[threadIdx.x] = i < n ? x[i] : 0;\n"
        "    __syncthreads();\n"
        "    if (i < n)\n"
        "        y[i] = s[127 - threadIdx.x] * (float)f;\n"
        "}\n";

/* 64 numbers per thread and 32 registers for them, and a function of its own */
static const char spill_text[] =
        "__device__ __noinline__ float helper(float *p, int n)\n"
        "{\n"
        "    float s = 0;\n"
        "    for (int i = 0; i < n; i++)\n"
        "        s += p[i] * s;\n"
        "    return s;\n"
        "}\n"
        "extern \"C\" __global__ __launch_bounds__(1024, 2)\n"
        "void spill(float *__restrict__ y, const float *__restrict__ x, long n, double f)\n"
        "{\n"
        "    float v[64];\n"
        "    for (int i = 0; i < 64; i++)\n"
        "        v[i] = x[threadIdx.x * 64 + i];\n"
        "    for (int k = 0; k < n; k++) {\n"
        "        for (int i = 0; i < 64; i++)\n"
        "            v[i] = v[i] * v[(i + 1) & 63] + v[(i * 7) & 63];\n"
        "        __syncthreads();\n"
        "    }\n"
        "    const float h = helper((float *)x, (int)n);\n"
        "    for (int i = 0; i < 64; i++)\n"
        "        y[threadIdx.x * 64 + i] = v[i] * (float)f + h;\n"
        "}\n";

static const char manifest_text[] =
        "hcgen-manifest 2\n"
        "name tiny\n"
        "spec 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n"
        "target cuda\n"
        "model layers 1 lanes 2 width 8 vocab 5 padded 8\n"
        "batch most 16 bos 4 mask 0\n"
        "numerics storage bf16 gemm bf16\n"
        "train steps 10 scheduled 10 lr 0.003 scale mean warmup 2 cooldown 0.4 linear floor 0.1 "
        "clip 1 val_every 5 val_tokens 64 log_every 1 seed 7\n"
        "data packing stream val_packing stream shuffle 1 max_doc 0\n"
        "stage all steps 0 10 tokens 16 seq 8 micro 2 max_doc 0 lr_mul 1 targets 1 from 1 to 1\n"
        "arena params 256\n"
        "arena weights 128\n"
        "arena grads 256\n"
        "arena moment1 256\n"
        "arena moment2 256\n"
        "arena acts 4096\n"
        "arena tables 0\n"
        "arena inputs 128\n"
        "arena sched 48\n"
        "arena result 16\n"
        "param embed f32 8,8 params+0 weights+0 normal 1\n"
        "input tokens inputs+0\n"
        "input targets inputs+64\n"
        "kernel scale kernels/scale.cu @SCALE@ threads 128 smem 1024\n"
        "kernel spill kernels/spill.cu @SPILL@ threads 1024 smem 0\n"
        "program train 0 tokens 16 seq 8\n"
        "launch scale 4 bytes 512 flops 64 : acts+0 acts+256 i16 f2.5 @ layers.0 test fwd\n"
        "gemm nt 8 8 8 acc 0 a weights+0 bf16 8 b weights+0 bf16 8 "
        "c acts+512 f32 8 bytes 512 flops 1024 @ head fwd\n"
        "program eval 0 tokens 16 seq 8\n"
        "program logits 0 tokens 8 seq 8\n"
        "output logits acts+0 8\n"
        "program update 0 tokens 0 seq 0\n"
        "launch spill 1 bytes 512 flops 64 : acts+0 acts+256 i16 f2.5 @ embed\n";

static void
replace(Buf *b, const char *from, const char *to)
{
	char *at = strstr(b->s, from);
	Buf out = {0};

	if (!at)
		die("the manifest has no '%s'", from);
	buf_write(&out, b->s, (size_t)(at - b->s));
	buf_puts(&out, to);
	buf_puts(&out, at + strlen(from));
	buf_free(b);
	*b = out;
}

/* with one thing changed */
static void
write_manifest(const char *from, const char *to)
{
	char hex[65];
	Buf b = {0};

	buf_puts(&b, manifest_text);
	replace(&b, from, to);
	if (strstr(b.s, "@SCALE@")) {
		sha256_hex(scale_text, strlen(scale_text), hex);
		replace(&b, "@SCALE@", hex);
	}
	if (strstr(b.s, "@SPILL@")) {
		sha256_hex(spill_text, strlen(spill_text), hex);
		replace(&b, "@SPILL@", hex);
	}
	write_text(path_of("manifest"), b.s);
	buf_free(&b);
}

static void
write_kernels(void)
{
	if (dir_make(path_of("kernels")) != 0)
		die("cannot make %s/kernels", dir);
	write_text(path_of("kernels/scale.cu"), scale_text);
	write_text(path_of("kernels/spill.cu"), spill_text);
	write_manifest("name tiny", "name tiny");
}

static void
load_it(void *unused)
{
	(void)unused;
	run_load(dir);
}

static void
open_on_cpu(void *unused)
{
	(void)unused;
	run_open(run_load(dir), DEV_CPU, 1);
}

static void
test_manifest(void)
{
	static const struct { const char *name, *from, *to, *say; } bad[] = {
		{"threads_none", " threads 128", "", "expected 'threads'"},
		{"threads_0", "threads 128", "threads 0", "not in 1 … 1024"},
		{"threads_1025", "threads 1024", "threads 1025", "not in 1 … 1024"},
		{"threads_text", "threads 128", "threads many", "not an integer"},
		{"smem_none", " smem 1024", "", "expected smem"},
		{"smem_negative", "smem 1024", "smem -1", "not in 0 … 232448"},
		{"smem_too_much", "smem 1024", "smem 232449", "not in 0 … 232448"},
		{"hash_none", " @SCALE@", "", "'threads' is not a SHA-256"},
		{"more", "smem 1024", "smem 1024 1", "expected the end of the line"},
		{"file_of_cpu", "kernels/scale.cu", "kernels/scale.c", "kernels/NAME.cu"},
		{"file_elsewhere", "kernels/scale.cu", "kernels/../scale.cu", "kernels/NAME.cu"},
		{"file_bare", "kernels/scale.cu", "kernels/.cu", "kernels/NAME.cu"},
		{"cpu_with_threads", "target cuda", "target cpu", "kernels/NAME.c"},
		{"grid_0", "launch scale 4", "launch scale 0", "items: 0"},
	};
	Run *r;
	size_t i;

	for (i = 0; i < sizeof bad / sizeof *bad; i++) {
		write_manifest(bad[i].from, bad[i].to);
		must_end(arena_printf(mem, "manifest_%s", bad[i].name), load_it, NULL, EX_ENV,
		         bad[i].say);
	}
	write_manifest("smem 1024", "smem 232448");
	must_end("manifest_most_smem", load_it, NULL, EX_OK, "");
	write_manifest("name tiny", "name tiny");
	r = run_load(dir);
	verdict(r->target == TARGET_CUDA && r->nkernel == 2 && r->kernel[0].threads == 128 &&
	        r->kernel[0].smem == 1024 && r->kernel[1].threads == 1024 &&
	        r->kernel[1].smem == 0, "manifest_of_cuda");
	verdict(strcmp(kernel_site(r, 1), "embed") == 0, "kernel_site");
	arena_free(r->mem);
	must_end("target_of_another_device", open_on_cpu, NULL, EX_ENV,
	         "was emitted for target cuda, and device cpu runs target cpu");
}

/* NVRTC */

static void
compile_in(Run **r, Nvrtc **v, Arena **a, const char *arch)
{
	*r = run_load(dir);
	*a = arena_new("compiled");
	*v = kernels_compile(*r, *a, arch);
}

static long
log_number(const char *log, const char *behind)
{
	const char *s = strstr(log, behind), *d;

	for (d = s; d && d > log && d[-1] >= '0' && d[-1] <= '9'; d--)
		;
	return s ? strtol(d, NULL, 10) : -1;
}

/* what the cubin says is what ptxas said */
static void
check_resources(const Run *r, const Nvrtc *v, const char *arch)
{
	const RunKernel *k;
	long smem, stack;
	int i;

	for (i = 0; i < r->nkernel; i++) {
		k = &r->kernel[i];
		smem = log_number(v[i].log, " bytes smem");
		stack = log_number(v[i].log, " bytes cumulative stack");
		verdict(v[i].cubin && k->measured &&
		        k->res.registers == log_number(v[i].log, " registers") &&
		        k->res.smem == (smem < 0 ? 0 : smem) &&
		        k->res.stack == (stack < 0 ? 0 : stack) && k->res.code > 100 &&
		        k->res.arguments == 32,
		        "resources_%s_%s: %d registers, %ld spills, %d stack, %ld smem, %ld code",
		        k->name, arch, k->res.registers, k->res.spills, k->res.stack, k->res.smem,
		        k->res.code);
	}
	verdict(r->kernel[0].res.spills == 0 && r->kernel[1].res.spills > 100, "spills_%s", arch);
}

/* n bytes that end where memory ends: what reads beyond them dies */
static char *
at_the_end(size_t n)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (n / page + 1) * page;
	char *p = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + room, page, PROT_NONE) != 0)
		die("mmap: %s", strerror(errno));
	return p + room - n;
}

static void
test_cubin_damage(const Nvrtc *v)
{
	char *end = at_the_end(v->ncubin) + v->ncubin, *p = end - v->ncubin;
	KernelResources res;
	bool good = true;
	uint64_t s = 1;
	size_t i;
	int k;

	verdict(!cubin_resources(v->cubin, v->ncubin, "other", &res) &&
	        !cubin_resources("", 0, "scale", &res), "cubin_of_another_kernel");
	for (i = 0; i < v->ncubin; i += 1 + i / 40) {
		memcpy(end - i, v->cubin, i);
		cubin_resources(end - i, i, "scale", &res);
	}
	for (k = 0; k < 20000; k++) {
		memcpy(p, v->cubin, v->ncubin);
		for (i = 0; i < 3; i++) {
			s = s * 6364136223846793005u + 1442695040888963407u;
			p[(s >> 33) % (k % 2 ? v->ncubin : 64)] = (char)(s >> 24);
		}
		if (cubin_resources(p, v->ncubin, "scale", &res))
			good = good && res.registers >= 0 && res.smem >= 0;
	}
	verdict(good, "cubin_damage_is_harmless");
}

static void
test_cached(void)
{
	Nvrtc *v, *w;
	Arena *a, *b;
	Run *r, *q;
	FILE *f;

	compile_in(&r, &v, &a, "sm_90a");
	compile_in(&q, &w, &b, "sm_90a");
	verdict(w[0].cached && w[1].cached && w[0].ncubin == v[0].ncubin &&
	        memcmp(w[0].cubin, v[0].cubin, v[0].ncubin) == 0 &&
	        strcmp(w[0].log, v[0].log) == 0 && w[1].seconds == 0, "cubins_are_kept");
	nvrtc_free(w, 2);
	f = fopen(cache_path(b, cache_open(b), v[0].key, ".cubin"), "r+b");
	fseek(f, 500, SEEK_SET);
	fputc('!', f);
	fclose(f);
	arena_free(b);
	arena_free(q->mem);
	compile_in(&q, &w, &b, "sm_90a");
	verdict(!w[0].cached && w[1].cached && w[0].ncubin == v[0].ncubin &&
	        memcmp(w[0].cubin, v[0].cubin, v[0].ncubin) == 0, "cubin_damaged_is_made_again");
	nvrtc_free(v, 2);
	nvrtc_free(w, 2);
	arena_free(a);
	arena_free(b);
	arena_free(r->mem);
	arena_free(q->mem);
}

static void
report_it(void *arg)
{
	const char *arch = arg;

	_exit(compile_report(dir, 1, &arch, false, stderr));
}

static void
test_report(void)
{
	char *bad = path_of("kernels/spill.cu"), *arch = arena_strdup(mem, "sm_90a"), *real, hex[65];
	static const char broken[] = "extern \"C\" __global__ void spill(float *y)\n{\n"
	                             "    y[0] = nothing;\n}\n";

	must_end("report_line", report_it, arch, EX_OK, "scale sm_90a 1");
	must_end("report_other_arch", report_it, arena_strdup(mem, "sm_80"), EX_OK, "spill sm_80 32 ");
	must_end("report_no_such_arch", report_it, arena_strdup(mem, "sm_12345"), EX_BUG,
	         "does not compile for sm_12345");
	write_text(bad, broken);
	real = realpath(bad, NULL);
	must_end("edited_kernel_that_fails_is_told_with_its_line", report_it, arch, EX_ENV,
	         arena_printf(mem, "%s(3): error", real));
	must_end("edited_kernel_that_fails_is_told_with_its_site", report_it, arch, EX_ENV,
	         "launched at embed");
	free(real);
	sha256_hex(broken, strlen(broken), hex);
	write_manifest("@SPILL@", hex);
	must_end("our_kernel_that_fails_is_our_fault", report_it, arch, EX_BUG, "does not compile");
	write_kernels();
	write_text(bad, "extern \"C\" __global__ void other(float *y) { y[0] = 1; }\n");
	must_end("kernel_of_another_name", report_it, arch, EX_ENV, "is not understood");
	write_text(bad, "extern \"C\" __global__ void spill(float *y, float *x) { y[0] = x[0]; }\n");
	must_end("kernel_of_other_arguments", report_it, arch, EX_ENV,
	         "takes 16 bytes of arguments, and embed passes 32");
	unlink(bad);
	must_end("kernel_missing", report_it, arch, EX_ENV, "No such file");
	write_kernels();
}

static void
test_nvrtc(void)
{
	static const char *const arch[] = {"sm_80", "sm_90a", "sm_100"};
	const ApiInfo *lib = api_open(API_NVRTC);
	Nvrtc *v;
	Arena *a;
	Run *r;
	size_t i;

	if (lib->error) {
		printf("skip nvrtc: %s\n", lib->error);
		return;
	}
	for (i = 0; i < sizeof arch / sizeof *arch; i++) {
		compile_in(&r, &v, &a, arch[i]);
		check_resources(r, v, arch[i]);
		if (i == 1)
			test_cubin_damage(&v[0]);
		nvrtc_free(v, r->nkernel);
		arena_free(a);
		arena_free(r->mem);
	}
	test_cached();
	test_report();
}

/* what is said where something is missing */

static void
pick(void *name)
{
	fprintf(stderr, "picked %s\n", device_name(device_pick(name)));
}

static void
need_nvrtc(void *unused)
{
	(void)unused;
	api_need(API_NVRTC);
}

static void
need_cublaslt(void *unused)
{
	(void)unused;
	api_need(API_CUBLASLT);
}

static void
test_missing(void)
{
	char *empty = path_of("empty"), *cuda = arena_strdup(mem, "cuda");

	dir_make(empty);
	must_end("device_unknown", pick, arena_strdup(mem, "gpu"), EX_ENV,
	         "expected auto, cpu, simt or cuda");
	must_end("device_cpu", pick, arena_strdup(mem, "cpu"), EX_OK, "picked cpu");
	must_end("device_simt", pick, arena_strdup(mem, "simt"), EX_OK, "picked simt");
	setenv("HCGEN_CUDA_PATH", empty, 1);
	must_end("driver_missing", pick, cuda, EX_ENV,
	         "the CUDA driver is not there: looked for libcuda.so.1 in HCGEN_CUDA_PATH");
	must_end("device_auto_without_gpu", pick, NULL, EX_OK, "picked cpu");
	must_end("nvrtc_missing", need_nvrtc, NULL, EX_ENV,
	         "NVRTC is not there: looked for libnvrtc.so.13 and libnvrtc.so.12");
	must_end("cublaslt_missing", need_cublaslt, NULL, EX_ENV,
	         "cuBLASLt is not there: looked for libcublasLt.so.13");
	if (symlink("/lib/x86_64-linux-gnu/libm.so.6", path_of("empty/libcuda.so.1")) == 0)
		must_end("driver_of_another_kind", pick, cuda, EX_ENV, "has no cuDriverGetVersion");
	if (symlink("/lib/x86_64-linux-gnu/libm.so.6", path_of("empty/libnvrtc.so.12")) == 0)
		must_end("nvrtc_of_another_kind", need_nvrtc, NULL, EX_ENV, "has no nvrtc");
	unlink(path_of("empty/libcuda.so.1"));
	if (access("/usr/local/cuda/lib64/stubs/libcuda.so", R_OK) == 0 &&
	    symlink("/usr/local/cuda/lib64/stubs/libcuda.so", path_of("empty/libcuda.so.1")) == 0)
		must_end("driver_is_the_stub", pick, cuda, EX_ENV, "stub");
	unsetenv("HCGEN_CUDA_PATH");
}

static void
remove_dir(void)
{
	char *argv[] = {(char *)(uintptr_t)"rm", (char *)(uintptr_t)"-rf", dir, NULL};
	pid_t pid = fork();

	if (pid == 0) {
		execvp("rm", argv);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
}

int
main(void)
{
	if (!mkdtemp(dir))
		die("cannot make %s: %s", dir, strerror(errno));
	mem = arena_new("cuda test");
	test_headers();
	test_cache();
	write_kernels();
	test_manifest();
	test_missing();
	test_nvrtc();
	remove_dir();
	arena_free(mem);
	printf("%d failures\n", failures);
	return failures > 0;
}
