/* The text of a kernel -> a shared object, through the cache; addresses in the
 * object -> lines of the text.
 *
 * g++ reads shim, twins, text and a call of the kernel from its standard
 * input.  What comes out is loaded from memory: each worker has a copy, since
 * __shared__ variables are variables of the object. */
#define _GNU_SOURCE
#include "simt_exec.h"
#include "../gen/templates.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { KeyDigits = 64, CpuLine = 16384, MaxFlags = 40 };

/* No contraction to FMA: the text says where it wants one.  Frame pointers
 * lead from a fault to its line.  Unique symbols would keep a closed object. */
static const char *const common[] = {
	"-std=c++17", "-g", "-fno-var-tracking", "-w", "-fPIC", "-shared", "-fvisibility=hidden", "-march=native",
	"-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti", "-fno-gnu-unique",
	"-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-fno-strict-aliasing"
};
static const char *const fast[] = { "-O2" };
/* -nodefaultlibs: without the sanitizers' own libraries.  Structures stay whole,
 * so that a load of a vector is one access. */
static const char *const checked[] = {
	"-O1", "-DHC_CHECK", "-fno-tree-sra", "--param=tsan-instrument-func-entry-exit=0",
	"-fsanitize=thread,alignment,bounds,shift-exponent,integer-divide-by-zero,signed-integer-overflow"
};
static const char *const tail[] = { "-nodefaultlibs", "-x", "c++", "-", "-lm", "-lc" };

struct Compiler {
	Arena *mem;
	const char *cxx, *cache;
	const char *flag[MaxFlags];
	int nflag;
	Buf identity;
};

typedef struct {
	SimtKernel *k;
	const SimtSource *src;
	char *tmp;
	int in, out;            /* text, words of the compiler */
	pid_t pid;
} Job;

/* programs */

static char *
find_on_path(Arena *mem, const char *name)
{
	const char *p = getenv("PATH"), *end;
	struct stat st;
	char *s;

	for (; p; p = *end ? end + 1 : NULL) {
		end = strchrnul(p, ':');
		s = arena_printf(mem, "%.*s/%s", (int)(end - p), p, name);
		if (end > p && stat(s, &st) == 0 && S_ISREG(st.st_mode) && access(s, X_OK) == 0)
			return s;
	}
	return NULL;
}

static int
memory_file(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd < 0)
		die("cannot open a file in memory: %s", strerror(errno));
	return fd;
}

static void
write_all(int fd, const char *s, size_t n)
{
	ssize_t put;

	for (; n; s += put, n -= (size_t)put) {
		put = write(fd, s, n);
		if (put <= 0)
			die("cannot write to a file in memory: %s", strerror(errno));
	}
	lseek(fd, 0, SEEK_SET);
}

static void
read_all(int fd, Buf *b)
{
	char s[4096];
	ssize_t n;

	buf_puts(b, "");
	lseek(fd, 0, SEEK_SET);
	while ((n = read(fd, s, sizeof s)) > 0)
		buf_write(b, s, (size_t)n);
}

/* in: -1 for nothing to read */
static pid_t
start(const char *const *argv, int in, int out)
{
	posix_spawn_file_actions_t io;
	pid_t pid;
	int e;

	posix_spawn_file_actions_init(&io);
	if (in >= 0)
		posix_spawn_file_actions_adddup2(&io, in, 0);
	else
		posix_spawn_file_actions_addopen(&io, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&io, out, 1);
	posix_spawn_file_actions_adddup2(&io, out, 2);
	e = posix_spawn(&pid, argv[0], &io, NULL, (char *const *)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&io);
	if (e != 0)
		die("cannot run %s: %s", argv[0], strerror(e));
	return pid;
}

static int
finish(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static bool
run_tool(const char *const *argv, Buf *words)
{
	int out = memory_file("words");
	bool good = finish(start(argv, -1, out)) == 0;

	read_all(out, words);
	close(out);
	return good;
}

/* the compiler */

static void
add_flags(Compiler *c, const char *const *f, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		c->flag[c->nflag++] = f[i];
		buf_printf(&c->identity, "%s\n", f[i]);
	}
}

/* what -march=native sees */
static void
add_cpu(Compiler *c)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	char line[CpuLine];

	while (f && fgets(line, sizeof line, f) && line[0] != '\n')
		if (strncmp(line, "model name", 10) == 0 || strncmp(line, "flags", 5) == 0 ||
		    strncmp(line, "Features", 8) == 0)
			buf_puts(&c->identity, line);
	if (f)
		fclose(f);
}

static const char no_gxx[] = "g++ was not found: apt-get install g++";

const char *
compiler_missing(void)
{
	Arena *mem = arena_new("path");
	const char *cxx = find_on_path(mem, "g++");

	arena_free(mem);
	return cxx ? NULL : no_gxx;
}

Compiler *
compiler_new(bool check)
{
	Arena *mem = arena_new("simt compiler");
	Compiler *c = NEW(mem, Compiler);
	const char *argv[3] = { find_on_path(mem, "g++"), "--version" };

	if (!argv[0])
		die("%s", no_gxx);
	c->mem = mem;
	c->cxx = argv[0];
	if (!run_tool(argv, &c->identity))
		die("%s --version fails", c->cxx);
	add_flags(c, common, sizeof common / sizeof *common);
	if (check)
		add_flags(c, checked, sizeof checked / sizeof *checked);
	else
		add_flags(c, fast, sizeof fast / sizeof *fast);
	add_flags(c, tail, sizeof tail / sizeof *tail);
	add_cpu(c);
	c->cache = cache_open(mem);
	return c;
}

void
compiler_free(Compiler *c)
{
	buf_free(&c->identity);
	arena_free(c->mem);
}

static const char *
template_text(const char *name)
{
	const char *text = template_find(name);

	return text ? text : "";
}

static void
source_put(Buf *b, const SimtSource *s, const char *path)
{
	buf_printf(b, "#line 1 \"simt/shim.h\"\n%s", template_text("simt/shim"));
	buf_printf(b, "#line 1 \"simt/twins.h\"\n%s", template_text("simt/twins"));
	buf_printf(b, "\n#line 1 \"%s\"\n%s", path, s->text);
	buf_printf(b, "\n#line 1 \"simt/call\"\nHC_KERNEL(%s)\n", s->name);
}

/* The path is not part of the key: it changes nothing but messages. */
static const char *
key_of(Compiler *c, const SimtSource *s)
{
	char hex[KeyDigits + 1];
	Buf b = {0};

	buf_write(&b, c->identity.s, c->identity.len);
	source_put(&b, s, "");
	sha256_hex(b.s, b.len, hex);
	buf_free(&b);
	return arena_strdup(c->mem, hex);
}

static void
job_start(Compiler *c, Job *j, int i)
{
	const char *argv[MaxFlags + 4] = { c->cxx };
	Buf b = {0};
	int n = 1, f;

	cache_writable(c->cache);
	source_put(&b, j->src, j->src->path);
	j->in = memory_file("text");
	j->out = memory_file("words");
	write_all(j->in, b.s, b.len);
	buf_free(&b);
	j->tmp = arena_printf(c->mem, "%s/%s.so.new%ld.%d", c->cache, j->k->key, (long)getpid(), i);
	for (f = 0; f < c->nflag; f++)
		argv[n++] = c->flag[f];
	argv[n++] = "-o";
	argv[n++] = j->tmp;
	argv[n] = NULL;
	j->pid = start(argv, j->in, j->out);
}

static void
job_finish(Compiler *c, Job *j)
{
	int status = finish(j->pid);
	Buf words = {0};
	char *s;

	read_all(j->out, &words);
	close(j->in);
	close(j->out);
	s = status == 0 ? file_read(c->mem, j->tmp, &j->k->nbytes) : NULL;
	unlink(j->tmp);
	if (!s) {
		fputs(words.s, stderr);
		die("%s does not compile with %s", j->src->path, c->cxx);
	}
	buf_free(&words);
	j->k->bytes = s;
	if (!cache_put(c->cache, j->k->key, ".so", s, j->k->nbytes))
		die("cannot write %s/%s.so: %s (HCGEN_CACHE names another place)",
		    c->cache, j->k->key, strerror(errno));
}

/* names of parameters, for reports: the last word before each comma */

static const char *
parameters_begin(const char *text, const char *name)
{
	size_t n = strlen(name);
	const char *p = text, *q;

	while ((p = strstr(p, name))) {
		q = p + n + strspn(p + n, " \t\n");
		if ((p == text || (!isalnum((unsigned char)p[-1]) && p[-1] != '_')) && *q == '(')
			return q + 1;
		p += n;
	}
	return NULL;
}

static void
find_params(Arena *mem, const SimtSource *src, SimtKernel *k)
{
	const char *p = parameters_begin(src->text, src->name), *word = "x";
	int i = 0;
	size_t n = 1;

	k->param = NEWN(mem, const char *, k->nparam);
	for (; p && *p && i < k->nparam; p++) {
		if (p[0] == '/' && p[1] == '/') {
			p += strcspn(p, "\n") - 1;
		} else if (isalnum((unsigned char)*p) || *p == '_') {
			word = p;
			for (n = 1; isalnum((unsigned char)p[n]) || p[n] == '_'; n++)
				;
			p += n - 1;
		} else if (*p == ',' || *p == ')') {
			k->param[i++] = arena_strndup(mem, word, n);
			if (*p == ')')
				break;
		}
	}
	for (; i < k->nparam; i++)
		k->param[i] = arena_printf(mem, "argument %d", i);
}

static void
learn_params(Compiler *c, const SimtSource *src, SimtKernel *k)
{
	int (*facts)(char **, char **);
	char *lo, *hi;
	So so;

	so_load(k, &so);
	*(void **)&facts = dlsym(so.handle, "hc_simt_facts");
	k->nparam = facts(&lo, &hi);
	k->nshared = (size_t)(hi - lo);
	so_close(&so);
	find_params(c->mem, src, k);
}

void
compiler_run(Compiler *c, int n, const SimtSource *src, SimtKernel *const *k)
{
	Job *job = NEWN(c->mem, Job, n);
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	int i, njob = 0, done = 0;

	for (i = 0; i < n; i++) {
		k[i]->key = key_of(c, &src[i]);
		k[i]->bytes = cache_get(c->mem, c->cache, k[i]->key, ".so", &k[i]->nbytes);
		if (k[i]->bytes)
			continue;
		if (njob - done >= cores)
			job_finish(c, &job[done++]);
		job[njob] = (Job){ .k = k[i], .src = &src[i] };
		job_start(c, &job[njob], njob);
		njob++;
	}
	while (done < njob)
		job_finish(c, &job[done++]);
	for (i = 0; i < n; i++)
		learn_params(c, &src[i], k[i]);
}

/* objects */

/* constants: what is mapped to be read only ends there */
typedef struct { char *lo, *hi, *constants; } Span;

static int
find_end(struct dl_phdr_info *p, size_t size, void *arg)
{
	Span *s = arg;
	int i;
	char *end;

	(void)size;
	if ((char *)p->dlpi_addr != s->lo)
		return 0;
	for (i = 0; i < p->dlpi_phnum; i++) {
		end = s->lo + p->dlpi_phdr[i].p_vaddr + p->dlpi_phdr[i].p_memsz;
		if (p->dlpi_phdr[i].p_type != PT_LOAD)
			continue;
		s->hi = end > s->hi ? end : s->hi;
		if (!(p->dlpi_phdr[i].p_flags & PF_W) && end > s->constants)
			s->constants = end;
	}
	return 1;
}

void
so_load(const SimtKernel *k, So *so)
{
	char path[64];
	struct link_map *map;
	int (*facts)(char **, char **);
	Span span;

	so->fd = memory_file(k->name);
	write_all(so->fd, k->bytes, k->nbytes);
	snprintf(path, sizeof path, "/proc/self/fd/%d", so->fd);
	so->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!so->handle)
		die("cannot load what %s compiled to: %s", k->path, dlerror());
	*(void **)&so->simt = dlsym(so->handle, "hc_simt");
	*(void **)&so->run = dlsym(so->handle, "hc_simt_run");
	*(void **)&facts = dlsym(so->handle, "hc_simt_facts");
	if (facts)
		facts(&so->shared_lo, &so->shared_hi);
	if (!so->simt || !so->run || !facts || dlinfo(so->handle, RTLD_DI_LINKMAP, &map) != 0)
		die("what %s compiled to is no kernel", k->path);
	span.lo = span.hi = span.constants = (char *)map->l_addr;
	dl_iterate_phdr(find_end, &span);
	so->lo = span.lo;
	so->hi = span.hi;
	so->constants = span.constants;
	so->nknown = 0;
}

void
so_close(So *so)
{
	dlclose(so->handle);
	close(so->fd);
}

/* lines: addr2line prints for each address the functions that are inlined at
 * it, from the innermost outwards, each with its file and line */

static void
take_frame(Line *l, const char *function, const char *place)
{
	const char *colon = strrchr(place, ':');
	int line = colon ? atoi(colon + 1) : 0;

	if (line <= 0 || strncmp(place, "simt/", 5) == 0 || strstr(place, "/simt/shim.h:") ||
	    strstr(place, "/simt/twins.h:") || strstr(place, "/simt/call:"))
		return;
	l->line = line;
	if (l->inner)
		return;
	l->inner = line;
	snprintf(l->function, sizeof l->function, "%.*s", (int)strcspn(function, "("), function);
}

static Line
parse_lines(char *s)
{
	Line l = {0};
	char *function = NULL, *end;

	for (; *s; s = end + 1) {
		end = strchrnul(s, '\n');
		if (!*end)
			break;
		*end = 0;
		if (s[0] == '0' && s[1] == 'x') {
			function = NULL;
		} else if (!function) {
			function = s;
		} else {
			take_frame(&l, function, s);
			function = NULL;
		}
	}
	return l;
}

static Line
find_line(const So *so, int n, void *const *pc)
{
	Arena *mem = arena_new("lines");
	const char *argv[MaxFrames + 8] = { find_on_path(mem, "addr2line"), "-a", "-f", "-i", "-C", "-e" };
	Buf words = {0};
	Line l = {0};
	int i, a = 6;

	argv[a++] = arena_printf(mem, "/proc/%ld/fd/%d", (long)getpid(), so->fd);
	for (i = 0; i < n; i++)
		if ((char *)pc[i] > so->lo && (char *)pc[i] <= so->hi)
			argv[a++] = arena_printf(mem, "0x%zx", (size_t)((char *)pc[i] - so->lo - 1));
	if (argv[0] && a > 7 && run_tool(argv, &words))
		l = parse_lines(words.s);
	buf_free(&words);
	arena_free(mem);
	return l;
}

Line
so_line(So *so, int n, void *const *pc)
{
	int i;

	for (i = 0; i < MaxKnown && i < so->nknown; i++)
		if (so->known[i].n == n && memcmp(so->known[i].pc, pc, (size_t)n * sizeof *pc) == 0)
			return so->known[i].line;
	i = so->nknown++ % MaxKnown;
	so->known[i].n = n;
	memcpy(so->known[i].pc, pc, (size_t)n * sizeof *pc);
	return so->known[i].line = find_line(so, n, pc);
}
