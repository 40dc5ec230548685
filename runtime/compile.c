/* Emitted kernels -> shared objects -> function pointers.
 *
 * Each kernel is compiled by the system's C compiler into an object of its
 * own, several at a time, and kept in the cache (cache.c).  What decides its
 * bytes: source text, compiler, flags and the CPU (-march=native).  No shell
 * takes part. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum {
	HashDigits = 64,
	MaxWords = 32,          /* in $CC; picked arbitrarily */
	MaxSource = 16 << 20,   /* bytes of one kernel; picked arbitrarily */
	CpuLine = 16384         /* the line of flags is near 2,000 today */
};

/* Contraction to FMA is left on: it is part of the kernels' arithmetic. */
static const char *const flags[] = {
	"-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math",
	"-fopenmp-simd", "-std=gnu11", "-w", "-fPIC", "-shared"
};
enum { NFlags = sizeof flags / sizeof *flags };

static const char wide[] = "-mprefer-vector-width=512";

typedef struct { int n; void **so; } Libs;

typedef struct {
	const char *source;     /* DIR/kernels/x.c */
	const char *key;        /* in the cache */
	char *output;           /* what the compiler printed, when it failed */
	int error;              /* errno of ours */
	bool failed;
} Job;

typedef struct {
	Arena *mem;
	char *cc[MaxWords];     /* compiler and its words from $CC */
	int ncc;
	bool wide;
	Buf identity;           /* compiler, flags, CPU */
	const char *cache;
	Job *job;
	int *todo, ntodo;
	_Atomic int done;
	bool terminal;
} Build;

/* running a compiler */

static bool
executable(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
	       access(path, X_OK) == 0;
}

static char *
find_on_path(Arena *mem, const char *name)
{
	const char *p = getenv("PATH"), *end;
	char *s;

	if (strchr(name, '/'))
		return executable(name) ? arena_strdup(mem, name) : NULL;
	for (; p; p = *end ? end + 1 : NULL) {
		end = strchrnul(p, ':');
		s = arena_printf(mem, "%.*s/%s", (int)(end - p), p, name);
		if (end > p && executable(s))
			return s;
	}
	return NULL;
}

/* stdout and stderr go to fd.  Exit status, or -1 with errno. */
static int
spawn(char *const *argv, int fd)
{
	posix_spawn_file_actions_t io;
	pid_t pid;
	int e, status;

	posix_spawn_file_actions_init(&io);
	posix_spawn_file_actions_addopen(&io, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&io, fd, 1);
	posix_spawn_file_actions_adddup2(&io, fd, 2);
	e = posix_spawn(&pid, argv[0], &io, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&io);
	if (e != 0) {
		errno = e;
		return -1;
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static int
output_open(void)
{
	return memfd_create("compiler output", MFD_CLOEXEC);
}

static void
output_read(int fd, Buf *b)
{
	char s[4096];
	ssize_t n;

	lseek(fd, 0, SEEK_SET);
	while ((n = read(fd, s, sizeof s)) > 0)
		buf_write(b, s, (size_t)n);
}

static bool
run_cc(Build *b, const char *const *more, Buf *out)
{
	char *argv[MaxWords + 8];
	int n, fd = output_open(), status;

	if (fd < 0)
		die("cannot open a file in memory: %s", strerror(errno));
	memcpy(argv, b->cc, (size_t)b->ncc * sizeof *argv);
	for (n = b->ncc; *more; more++)
		argv[n++] = (char *)(uintptr_t)*more;
	argv[n] = NULL;
	status = spawn(argv, fd);
	if (status < 0)
		die("cannot run %s: %s", argv[0], strerror(errno));
	if (out)
		output_read(fd, out);
	close(fd);
	return status == 0;
}

/* which compiler */

static void
take_cc_words(Build *b, const char *cc)
{
	char *s = arena_strdup(b->mem, cc), *w, *save = NULL;

	for (w = strtok_r(s, " \t", &save); w; w = strtok_r(NULL, " \t", &save))
		if (b->ncc < MaxWords)
			b->cc[b->ncc++] = w;
}

static void
find_cc(Build *b)
{
	static const char *const names[] = {"cc", "gcc", "clang"};
	const char *cc = getenv("CC");
	char *path = NULL;
	size_t i;

	if (cc)
		take_cc_words(b, cc);
	if (b->ncc) {
		path = find_on_path(b->mem, b->cc[0]);
		if (!path)
			die("no C compiler found: CC is '%s', which is not on "
			    "PATH", b->cc[0]);
	}
	for (i = 0; !path && i < sizeof names / sizeof *names; i++)
		path = find_on_path(b->mem, names[i]);
	if (!path)
		die("no C compiler found: install gcc (apt-get install gcc)");
	b->cc[0] = path;
	b->ncc = b->ncc ? b->ncc : 1;
}

/* Two cores of the same model need not have the same features in a VM, so
 * what -march=native sees goes into the key. */
static void
add_cpu(Build *b)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	char line[CpuLine];
	int seen = 0;

	while (f && seen < 3 && fgets(line, sizeof line, f))
		if (strncmp(line, "model name", 10) == 0 ||
		    strncmp(line, "flags", 5) == 0 ||
		    strncmp(line, "Features", 8) == 0) {
			buf_puts(&b->identity, line);
			seen++;
		} else if (line[0] == '\n') {
			break;
		}
	if (f)
		fclose(f);
}

static void
identify(Build *b)
{
	static const char *const version[] = {"--version", NULL};
	const char *try[] = {wide, "-E", "-x", "c", "/dev/null", NULL};
	int i;

	if (!run_cc(b, version, &b->identity))
		die("%s --version fails: it is no C compiler", b->cc[0]);
	for (i = 1; i < b->ncc; i++)
		buf_printf(&b->identity, "%s\n", b->cc[i]);
	b->wide = run_cc(b, try, NULL);
	for (i = 0; i < NFlags; i++)
		buf_printf(&b->identity, "%s\n", flags[i]);
	if (b->wide)
		buf_printf(&b->identity, "%s\n", wide);
	add_cpu(b);
}

/* what is to be compiled */

static bool
entry_good(Build *b, const Job *j)
{
	Arena *mem = arena_new("cache entry");
	size_t n;
	bool good = cache_get(mem, b->cache, j->key, ".so", &n) != NULL;

	arena_free(mem);
	return good;
}

static char *
read_source(Arena *mem, const char *path, size_t *n)
{
	struct stat st;
	char *s;

	if (stat(path, &st) != 0)
		die("cannot read %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size > MaxSource)
		die("%s is not a kernel", path);
	s = file_read(mem, path, n);
	if (!s)
		die("cannot read %s: %s", path, strerror(errno));
	return s;
}

char *
kernel_read(Run *r, int k, Arena *mem, size_t *n)
{
	RunKernel *kernel = &r->kernel[k];
	char hex[HashDigits + 1], *s;

	s = read_source(mem, arena_printf(mem, "%s/%s", r->dir, kernel->file), n);
	sha256_hex(s, *n, hex);
	kernel->edited = kernel->hash && strcmp(hex, kernel->hash) != 0;
	r->nedited += kernel->edited;
	return s;
}

static void
plan_job(Build *b, Run *r, int k)
{
	Job *j = &b->job[k];
	Arena *mem = arena_new("kernel source");
	Buf key = {0};
	char hex[HashDigits + 1];
	size_t n = 0;
	char *s = kernel_read(r, k, mem, &n);

	j->source = arena_printf(b->mem, "%s/%s", r->dir, r->kernel[k].file);
	buf_write(&key, b->identity.s, b->identity.len);
	buf_write(&key, s, n);
	sha256_hex(key.s, key.len, hex);
	j->key = arena_strdup(b->mem, hex);
	buf_free(&key);
	arena_free(mem);
	if (!entry_good(b, j))
		b->todo[b->ntodo++] = k;
}

/* compiling: on pool threads, so failures are noted and told later */

static bool
keep(const Build *b, const Job *j, const char *tmp)
{
	Arena *mem = arena_new("object");
	size_t n = 0;
	char *s = file_read(mem, tmp, &n);
	bool good = s && cache_put(b->cache, j->key, ".so", s, n);

	arena_free(mem);
	return good;
}

static int
compile(Build *b, const Job *j, const char *tmp, int fd)
{
	char *argv[MaxWords + NFlags + 8];
	int i, n = b->ncc;

	memcpy(argv, b->cc, (size_t)n * sizeof *argv);
	for (i = 0; i < NFlags; i++)
		argv[n++] = (char *)(uintptr_t)flags[i];
	if (b->wide)
		argv[n++] = (char *)(uintptr_t)wide;
	argv[n++] = (char *)(uintptr_t)"-o";
	argv[n++] = (char *)(uintptr_t)tmp;
	argv[n++] = (char *)(uintptr_t)j->source;
	argv[n++] = (char *)(uintptr_t)"-lm";
	argv[n] = NULL;
	return spawn(argv, fd);
}

static void
progress(Build *b)
{
	int done = atomic_fetch_add(&b->done, 1) + 1;

	if (b->terminal)
		fprintf(stderr, "\rcompiling kernels %d/%d%s", done, b->ntodo,
		        done == b->ntodo ? "\n" : "");
}

static void
compile_item(void *arg, long item)
{
	Build *b = arg;
	Job *j = &b->job[b->todo[item]];
	Buf tmp = {0}, out = {0};
	int status, fd = output_open();

	/* the item: two kernels of one text have one entry */
	buf_printf(&tmp, "%s/%s.obj%ld.%ld", b->cache, j->key, (long)getpid(), item);
	errno = 0;
	status = fd < 0 ? -1 : compile(b, j, tmp.s, fd);
	if (status > 0) {
		output_read(fd, &out);
		buf_puts(&out, "");
		j->output = out.s;
	}
	j->failed = status != 0 || !keep(b, j, tmp.s);
	j->error = status <= 0 ? errno : 0;
	unlink(tmp.s);
	if (fd >= 0)
		close(fd);
	buf_free(&tmp);
	progress(b);
}

static void
report(Build *b, const Run *r)
{
	int i, k;
	Job *j;

	for (i = 0; i < b->ntodo; i++) {
		k = b->todo[i];
		j = &b->job[k];
		if (!j->failed)
			continue;
		if (!j->output)
			die("cannot compile %s into %s: %s", j->source,
			    b->cache, j->error ? strerror(j->error) :
			                         "the compiler wrote nothing");
		fputs(j->output, stderr);
		if (strstr(j->output, "No space left on device"))
			die("cannot compile %s: no space left on device for %s "
			    "(HCGEN_CACHE names another place)", j->source,
			    b->cache);
		if (r->kernel[k].edited)
			die("%s does not compile", j->source);
		bug("%s does not compile with %s", j->source, b->cc[0]);
	}
}

static void
build(Build *b, Run *r)
{
	Pool *p;
	int i;

	b->job = NEWN(b->mem, Job, r->nkernel);
	b->todo = NEWN(b->mem, int, r->nkernel);
	for (i = 0; i < r->nkernel; i++)
		plan_job(b, r, i);
	if (b->ntodo == 0)
		return;
	cache_writable(b->cache);
	/* compilers run on every core, however many threads train */
	p = pool_new(0);
	pool_run(p, compile_item, b, b->ntodo);
	pool_free(p);
	report(b, r);
}

/* loading */

static void
load_kernel(Run *r, const Build *b, int k)
{
	Libs *libs = r->lib;
	const Job *j = &b->job[k];
	const char *entry = cache_path(b->mem, b->cache, j->key, ".so");
	void *so = dlopen(entry, RTLD_NOW | RTLD_LOCAL);

	if (!so)
		die("cannot load %s, compiled from %s: %s", entry,
		    j->source, dlerror());
	libs->so[libs->n++] = so;
	*(void **)&r->kernel[k].fn = dlsym(so, r->kernel[k].name);
	if (!r->kernel[k].fn)
		die("%s does not define %s", j->source, r->kernel[k].name);
}

/* requires: run_load'ed.  provides: kernel[].fn, lib. */
void
compile_kernels(Run *r)
{
	Build b = {.mem = arena_new("compile")};
	Libs *libs = NEW(r->mem, Libs);
	int i;

	libs->so = NEWN(r->mem, void *, r->nkernel);
	r->lib = libs;
	r->nedited = 0;
	if (r->nkernel) {
		b.terminal = isatty(2);
		find_cc(&b);
		identify(&b);
		b.cache = cache_open(b.mem);
		build(&b, r);
	}
	for (i = 0; i < r->nkernel; i++)
		load_kernel(r, &b, i);
	buf_free(&b.identity);
	arena_free(b.mem);
}

void
compile_close(Run *r)
{
	Libs *libs = r->lib;
	int i;

	for (i = 0; libs && i < libs->n; i++)
		dlclose(libs->so[i]);
}
