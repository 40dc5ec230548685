/* What this machine has, and what it would take to do more.
 *
 * Every library that is opened at run time is a row of one table.  Without the
 * CUDA rows everything works on the CPU; without a compiler or oneDNN nothing
 * does, and the exit code is that of the environment. */
#define _GNU_SOURCE
#include "api.h"
#include "simt.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MaxNames = 4 };

/* how a library says its version */
typedef enum { VER_DNNL, VER_INT, VER_SIZE, VER_API } VersionKind;

typedef struct {
	const char *key, *title;
	const char *soname[MaxNames];   /* newest first */
	VersionKind kind;
	const char *symbol;
	ApiLibrary api;                 /* VER_API: what the device cuda opens */
	bool needed;                    /* to train on the CPU */
	const char *missing;            /* what that means */
} Library;

static const Library libraries[] = {
	// clang-format off
	{"onednn", "oneDNN", {"libdnnl.so.2"},
	 VER_DNNL, "dnnl_version", 0, true,
	 "matrix products on the CPU need it: apt-get install libdnnl2"},
	{"cuda", "CUDA driver", {0}, VER_API, NULL, API_DRIVER, false, NULL},
	{"nvrtc", "NVRTC", {0}, VER_API, NULL, API_NVRTC, false, NULL},
	{"cublaslt", "cuBLASLt", {0}, VER_API, NULL, API_CUBLASLT, false, NULL},
	{"cudnn", "cuDNN", {"libcudnn.so.9", "libcudnn.so.8"},
	 VER_SIZE, "cudnnGetVersion", 0, false, "optional: attention has a kernel of its own"},
	{"nccl", "NCCL", {"libnccl.so.2"},
	 VER_INT, "ncclGetVersion", 0, false, "one GPU at most"},
	// clang-format on
};
enum { NLibrary = sizeof libraries / sizeof *libraries };

static const char *const isa_names[] = {
	"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16",
};
enum { NIsa = sizeof isa_names / sizeof *isa_names };

/* soname NULL: missing; error: why it is of no use */
typedef struct { const char *soname, *version, *error; } Found;

typedef struct {
	Arena *mem;
	Buf cpu;
	int cores, usable;
	bool isa[NIsa];
	long long memory, available;    /* bytes */
	const char *compiler, *compiler_version;
	Found library[NLibrary];
	bool gpu;
	GpuFacts gpu_facts;
	const char *cuda, *simt;        /* why these devices do not work, or NULL */
	const char *cache;
	long long disk_free;            /* bytes where the cache is */
} Machine;

/* -- /proc -- */

/* The value of the first line `key …: value`, or NULL. */
static const char *
proc_value(Arena *a, const char *path, const char *key)
{
	FILE *f = fopen(path, "re");
	char line[8192], *colon;
	const char *found = NULL;

	while (f && !found && fgets(line, sizeof line, f)) {
		if (strncmp(line, key, strlen(key)) != 0)
			continue;
		colon = strchr(line, ':');
		if (!colon)
			continue;
		colon += 1 + strspn(colon + 1, " \t");
		colon[strcspn(colon, "\n")] = 0;
		found = arena_strdup(a, colon);
	}
	if (f)
		fclose(f);
	return found;
}

void
cpu_model(Buf *b)
{
	Arena *a = arena_new("cpu");
	const char *s = proc_value(a, "/proc/cpuinfo", "model name");

	buf_puts(b, s ? s : "unknown");
	arena_free(a);
}

static long long
memory_bytes(Arena *a, const char *key)
{
	const char *s = proc_value(a, "/proc/meminfo", key);

	return s ? 1024 * strtoll(s, NULL, 10) : 0;
}

static bool
has_word(const char *text, const char *word)
{
	size_t n = strlen(word);
	const char *s;

	for (s = text; (s = strstr(s, word)); s += n)
		if ((s == text || s[-1] == ' ') && (s[n] == ' ' || !s[n]))
			return true;
	return false;
}

static void
find_cpu(Machine *m)
{
	const char *flags = proc_value(m->mem, "/proc/cpuinfo", "flags");
	cpu_set_t set;
	int i;

	if (!flags)
		flags = proc_value(m->mem, "/proc/cpuinfo", "Features");
	for (i = 0; i < NIsa; i++)
		m->isa[i] = flags && has_word(flags, isa_names[i]);
	cpu_model(&m->cpu);
	m->cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
	m->usable = m->cores;
	if (sched_getaffinity(0, sizeof set, &set) == 0)
		m->usable = CPU_COUNT(&set);
	m->memory = memory_bytes(m->mem, "MemTotal");
	m->available = memory_bytes(m->mem, "MemAvailable");
}

/* -- compiler -- */

static const char *
in_path(Arena *a, const char *name)
{
	const char *path = getenv("PATH"), *s, *end, *full;

	if (strchr(name, '/'))
		return access(name, X_OK) == 0 ? name : NULL;
	for (s = path; s && *s; s = *end ? end + 1 : end) {
		end = strchrnul(s, ':');
		full = arena_printf(a, "%.*s/%s", (int)(end - s), s, name);
		if (access(full, X_OK) == 0)
			return full;
	}
	return NULL;
}

/* First line of `compiler --version`.  The path is quoted for the shell; one
 * that holds a quote is not asked. */
static const char *
compiler_version(Arena *a, const char *path)
{
	char line[256] = "";
	FILE *f;

	if (strchr(path, '\''))
		return "";
	f = popen(arena_printf(a, "'%s' --version 2>/dev/null", path), "re");
	if (!f)
		return "";
	if (!fgets(line, sizeof line, f))
		line[0] = 0;
	pclose(f);
	line[strcspn(line, "\n")] = 0;
	return arena_strdup(a, line);
}

/* As compile.c looks for it: the first word of CC, if set, and nothing else. */
static void
find_compiler(Machine *m)
{
	const char *names[] = {"cc", "gcc", "clang"}, *cc = getenv("CC");
	size_t i, n;

	cc = cc ? cc + strspn(cc, " \t") : "";
	n = strcspn(cc, " \t");
	if (n > 0)
		m->compiler = in_path(m->mem, arena_strndup(m->mem, cc, n));
	else
		for (i = 0; i < 3 && !m->compiler; i++)
			m->compiler = in_path(m->mem, names[i]);
	if (m->compiler)
		m->compiler_version = compiler_version(m->mem, m->compiler);
}

/* -- libraries -- */

/* of oneDNN's dnnl_version_t, what it begins with in every version */
typedef struct { int major, minor, patch; } DnnlVersion;

/* dlsym's pointer to a function, through a union: C has no cast for it */
typedef union {
	void *p;
	const DnnlVersion *(*dnnl)(void);
	int (*integer)(int *);
	size_t (*size)(void);
} VersionFn;

static const char *
library_version(Arena *a, const Library *l, void *handle)
{
	VersionFn fn = {.p = dlsym(handle, l->symbol)};
	const DnnlVersion *d;
	int v = 0;

	if (!fn.p)
		return "";
	switch (l->kind) {
	case VER_DNNL:
		d = fn.dnnl();
		return arena_printf(a, "%d.%d.%d", d->major, d->minor, d->patch);
	case VER_INT:
		return fn.integer(&v) == 0 ? arena_printf(a, "%d", v) : "";
	case VER_SIZE:
		return arena_printf(a, "%zu", fn.size());
	case VER_API:
		break;
	}
	return "";
}

static void
find_api(Machine *m, int k)
{
	const ApiInfo *i = api_open(libraries[k].api);
	Found *f = &m->library[k];

	f->error = i->error;
	f->soname = i->path;
	f->version = i->major ? arena_printf(m->mem, "%d.%d", i->major, i->minor) : "";
}

/* Handles stay open: some of these libraries do not survive being closed. */
static void
find_library(Machine *m, int k)
{
	const Library *l = &libraries[k];
	void *handle;
	int i;

	if (l->kind == VER_API) {
		find_api(m, k);
		return;
	}
	for (i = 0; i < MaxNames && l->soname[i]; i++) {
		handle = dlopen(l->soname[i], RTLD_LAZY | RTLD_LOCAL);
		if (!handle)
			continue;
		m->library[k].soname = l->soname[i];
		m->library[k].version = library_version(m->mem, l, handle);
		return;
	}
}

/* -- disk -- */

/* Of the nearest directory above path that exists. */
static long long
disk_free(Arena *a, const char *path)
{
	char *s = arena_strdup(a, path), *slash;
	struct statvfs v;

	while (statvfs(s, &v) != 0) {
		slash = strrchr(s, '/');
		if (!slash || slash == s)
			return 0;
		*slash = 0;
	}
	return (long long)v.f_bavail * (long long)v.f_frsize;
}

/* -- reports -- */

static void
cpu_text(const Machine *m)
{
	int i;

	printf("cpu          %s, %d cores", m->cpu.s, m->cores);
	if (m->usable != m->cores)
		printf(" (%d usable)", m->usable);
	printf("\ninstructions");
	for (i = 0; i < NIsa; i++)
		if (m->isa[i])
			printf(" %s", isa_names[i]);
	printf("\nmemory       %.1f GB, %.1f GB available\n",
	       (double)m->memory / 1e9, (double)m->available / 1e9);
}

static void
library_text(const Library *l, const Found *f)
{
	printf("%-12s ", l->title);
	if (f->soname)
		printf("%s  %s%s", f->soname, f->version, f->error ? ": " : "");
	else if (!f->error)
		printf("missing: ");
	printf("%s\n", f->error ? f->error : f->soname ? "" : l->missing);
}

static void
devices_text(const Machine *m)
{
	const GpuFacts *g = &m->gpu_facts;
	const char *see = NULL;
	int k;

	for (k = 0; k < NLibrary; k++)
		if (m->cuda && m->library[k].error == m->cuda)
			see = libraries[k].title;
	if (m->gpu)
		printf("GPU          %s, compute capability %d.%d%s, %d multiprocessors, %.1f GB\n",
		       g->name, g->major, g->minor, 10 * g->major + g->minor < LeastFp8 ? " (no FP8)" : "",
		       g->sms, (double)g->memory / 1e9);
	printf("device cuda  %s%s\n", see ? "does not work: see " : "",
	       see ? see : m->cuda ? m->cuda : "works");
	printf("device simt  %s\n", m->simt ? m->simt : "works");
}

static void
machine_text(const Machine *m)
{
	int k;

	cpu_text(m);
	if (m->compiler)
		printf("compiler     %s  %s\n", m->compiler,
		       m->compiler_version);
	else
		printf("compiler     missing: kernels need one: apt-get "
		       "install gcc libc6-dev\n");
	for (k = 0; k < NLibrary; k++)
		library_text(&libraries[k], &m->library[k]);
	devices_text(m);
	printf("cache        %s, %.1f GB free\n", m->cache,
	       (double)m->disk_free / 1e9);
}

static void
put_string(Buf *b, const char *key, const char *s)
{
	buf_printf(b, ",\"%s\":", key);
	if (s)
		buf_json(b, s);
	else
		buf_puts(b, "null");
}

static void
libraries_json(Buf *b, const Machine *m)
{
	const Library *l;
	const Found *f;
	int k;

	buf_puts(b, ",\"libraries\":{");
	for (k = 0; k < NLibrary; k++) {
		l = &libraries[k];
		f = &m->library[k];
		buf_printf(b, "%s\"%s\":{\"needed\":%s", k ? "," : "", l->key,
		           l->needed ? "true" : "false");
		put_string(b, "soname", f->soname);
		put_string(b, "version", f->version);
		put_string(b, "error", f->error);
		buf_puts(b, "}");
	}
	buf_puts(b, "}");
}

static void
devices_json(Buf *b, const Machine *m)
{
	const GpuFacts *g = &m->gpu_facts;

	buf_puts(b, ",\"gpu\":");
	if (m->gpu) {
		buf_puts(b, "{\"name\":");
		buf_json(b, g->name);
		buf_printf(b, ",\"capability\":\"%d.%d\",\"multiprocessors\":%d,\"memory\":%zu}",
		           g->major, g->minor, g->sms, g->memory);
	} else {
		buf_puts(b, "null");
	}
	put_string(b, "cuda", m->cuda);
	put_string(b, "simt", m->simt);
}

static void
machine_json(const Machine *m)
{
	Buf b = {0};
	int i, n = 0;

	buf_puts(&b, "{\"cpu\":");
	buf_json(&b, m->cpu.s);
	buf_printf(&b, ",\"cores\":%d,\"usable\":%d,\"instructions\":[",
	           m->cores, m->usable);
	for (i = 0; i < NIsa; i++)
		if (m->isa[i])
			buf_printf(&b, "%s\"%s\"", n++ ? "," : "",
			           isa_names[i]);
	buf_printf(&b, "],\"memory\":%lld,\"available\":%lld", m->memory,
	           m->available);
	put_string(&b, "compiler", m->compiler);
	put_string(&b, "compiler_version", m->compiler_version);
	libraries_json(&b, m);
	devices_json(&b, m);
	put_string(&b, "cache", m->cache);
	buf_printf(&b, ",\"disk_free\":%lld}\n", m->disk_free);
	fputs(b.s, stdout);
	buf_free(&b);
}

static bool
machine_trains(const Machine *m)
{
	int k;

	for (k = 0; k < NLibrary; k++)
		if (libraries[k].needed && !m->library[k].soname)
			return false;
	return m->compiler != NULL;
}

int
doctor(bool json)
{
	Machine m = {.mem = arena_new("doctor")};
	int k, rc;

	find_cpu(&m);
	find_compiler(&m);
	for (k = 0; k < NLibrary; k++)
		find_library(&m, k);
	m.gpu = cuda_facts(&m.gpu_facts);
	m.cuda = cuda_problem();
	m.simt = simt_missing();
	m.cache = cache_dir(m.mem);
	m.disk_free = disk_free(m.mem, m.cache);
	if (json)
		machine_json(&m);
	else
		machine_text(&m);
	rc = machine_trains(&m) ? EX_OK : EX_ENV;
	buf_free(&m.cpu);
	arena_free(m.mem);
	return rc;
}
