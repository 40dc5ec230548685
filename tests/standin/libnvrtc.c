/* libnvrtc.so.13 for a machine without the toolkit: text -> "cubin" (elf.c).
 *
 * g++ compiles the text behind the shim of the simt executor, which finds what
 * is no C++ and gives the size of static shared memory; its words are put into
 * NVRTC's form.  The code it makes is thrown away: libcuda's stand-in compiles
 * the text that the "cubin" carries.  Options, result codes and messages are
 * those of NVRTC 13.0 as tried out; tests/unit/standin_test.c compares the two
 * where the toolkit is installed. */
#define _GNU_SOURCE
#include "standin.h"

#include <ctype.h>
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../gen/templates.h"

extern char **environ;

enum { Major = 13, Minor = 0, DefaultArch = 75, MaxText = 4 << 20 };

static const int archs[] = { 75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121 };
enum { NArch = sizeof archs / sizeof *archs };

struct _nvrtcProgram {
	struct _nvrtcProgram *next;
	char *source, *name, *log, *cubin, *ptx;
	size_t ncubin;
};

static nvrtcProgram programs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- results, versions ---- */

#define RESULT_NAME(name, value) case value: return #name;

PUBLIC const char *
nvrtcGetErrorString(nvrtcResult r)
{
	switch ((int)r) { NVRTC_RESULTS(RESULT_NAME) }
	return "NVRTC_ERROR unknown";
}

PUBLIC nvrtcResult
nvrtcVersion(int *major, int *minor)
{
	const char *s = inject("nvrtc_version");

	if (!major || !minor)
		return NVRTC_ERROR_INVALID_INPUT;
	*major = Major;
	*minor = Minor;
	if (s)
		sscanf(s, "%d.%d", major, minor);
	return (nvrtcResult)inject_failure(__func__);
}

PUBLIC nvrtcResult
nvrtcGetNumSupportedArchs(int *n)
{
	if (!n)
		return NVRTC_ERROR_INVALID_INPUT;
	*n = NArch;
	return (nvrtcResult)inject_failure(__func__);
}

PUBLIC nvrtcResult
nvrtcGetSupportedArchs(int *out)
{
	if (!out)
		return NVRTC_ERROR_INVALID_INPUT;
	memcpy(out, archs, sizeof archs);
	return (nvrtcResult)inject_failure(__func__);
}

/* ---- programs ---- */

static bool
valid(nvrtcProgram p)
{
	bool found = false;

	pthread_mutex_lock(&lock);
	for (nvrtcProgram q = programs; q && !found; q = q->next)
		found = q == p;
	pthread_mutex_unlock(&lock);
	return found;
}

#define ENTER_PROGRAM(p) \
	do { \
		nvrtcResult injected = (nvrtcResult)inject_failure(__func__); \
		if (injected || !valid(p)) \
			return injected ? injected : NVRTC_ERROR_INVALID_PROGRAM; \
	} while (0)

PUBLIC nvrtcResult
nvrtcCreateProgram(nvrtcProgram *out, const char *source, const char *name, int nheader,
                   const char *const *header, const char *const *header_name)
{
	nvrtcResult injected = (nvrtcResult)inject_failure(__func__);
	nvrtcProgram p;

	if (injected)
		return injected;
	if (!out)
		return NVRTC_ERROR_INVALID_PROGRAM;
	if (!source || nheader < 0 || (nheader > 0 && (!header || !header_name)))
		return NVRTC_ERROR_INVALID_INPUT;
	if (nheader > 0) {
		note("nvrtcCreateProgram: the stand-in takes no headers");
		return NVRTC_ERROR_PROGRAM_CREATION_FAILURE;
	}
	p = calloc(1, sizeof *p);
	if (!p)
		return NVRTC_ERROR_OUT_OF_MEMORY;
	p->source = strdup(source);
	p->name = strdup(name && *name ? name : "default_program");
	p->log = strdup("");
	pthread_mutex_lock(&lock);
	p->next = programs;
	programs = p;
	pthread_mutex_unlock(&lock);
	*out = p;
	return NVRTC_SUCCESS;
}

PUBLIC nvrtcResult
nvrtcDestroyProgram(nvrtcProgram *pp)
{
	nvrtcProgram p = pp ? *pp : NULL;

	ENTER_PROGRAM(p);
	pthread_mutex_lock(&lock);
	for (nvrtcProgram *q = &programs; *q; q = &(*q)->next)
		if (*q == p) {
			*q = p->next;
			break;
		}
	pthread_mutex_unlock(&lock);
	free(p->source);
	free(p->name);
	free(p->log);
	free(p->cubin);
	free(p->ptx);
	free(p);
	*pp = NULL;
	return NVRTC_SUCCESS;
}

/* ---- options ---- */

/* As NVRTC 13.0 spells them: `--no-cache` and `-no-cache`, but only
 * `-default-device`.  kind: f flag, b boolean, i integer, v any value, V value
 * without `=`, a architecture, s standard, p options of ptxas. */
static const struct { const char *name; char kind; } options[] = {
	{ "--gpu-architecture", 'a' }, { "-arch", 'a' }, { "--std", 's' }, { "-std", 's' },
	{ "-default-device", 'f' }, { "--device-as-default-execution-space", 'f' },
	{ "--no-cache", 'f' }, { "-no-cache", 'f' }, { "--modify-stack-limit", 'b' },
	{ "-modify-stack-limit", 'b' }, { "--generate-line-info", 'f' }, { "-lineinfo", 'f' },
	{ "--device-debug", 'f' }, { "-G", 'f' }, { "--ptxas-options", 'p' },
	{ "-Xptxas", 'p' }, { "--maxrregcount", 'i' }, { "-maxrregcount", 'i' },
	{ "--ftz", 'b' }, { "-ftz", 'b' }, { "--prec-sqrt", 'b' }, { "--prec-div", 'b' },
	{ "--fmad", 'b' }, { "-fmad", 'b' }, { "--use_fast_math", 'f' },
	{ "-use_fast_math", 'f' }, { "--disable-warnings", 'f' }, { "-w", 'f' },
	{ "--restrict", 'f' }, { "--device-int128", 'f' }, { "-device-int128", 'f' },
	{ "--minimal", 'f' }, { "-minimal", 'f' }, { "--diag-suppress", 'v' },
	{ "-diag-suppress", 'v' }, { "--split-compile", 'i' }, { "-split-compile", 'i' },
	{ "--frandom-seed", 'v' }, { "--define-macro", 'v' }, { "-D", 'V' },
	{ "--extra-device-vectorization", 'f' },
};
enum { NOption = sizeof options / sizeof *options };

typedef struct { int arch; bool real, verbose; char suffix[2], standard[16]; } Target;

static void
log_add(nvrtcProgram p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void
log_add(nvrtcProgram p, const char *fmt, ...)
{
	char *s, *all;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&s, fmt, ap) < 0)
		abort();
	va_end(ap);
	if (asprintf(&all, "%s%s", p->log, s) < 0)
		abort();
	free(s);
	free(p->log);
	p->log = all;
}

static nvrtcResult
bad_option(nvrtcProgram p, const char *fmt, const char *s)
{
	log_add(p, "nvrtc: error: ");
	log_add(p, fmt, s);
	log_add(p, "\n");
	return NVRTC_ERROR_INVALID_OPTION;
}

/* sm_90a, compute_90.  0, or what NVRTC says. */
static nvrtcResult
read_arch(nvrtcProgram p, const char *s, Target *t)
{
	bool real = strncmp(s, "sm_", 3) == 0;
	int n, i = NArch;
	char *end = NULL;

	if (real || strncmp(s, "compute_", 8) == 0) {
		n = (int)strtol(strchr(s, '_') + 1, &end, 10);
		for (i = 0; i < NArch && archs[i] != n; i++)
			;
	}
	if (i == NArch || (*end && ((*end != 'a' && *end != 'f') || end[1])))
		return bad_option(p, "invalid value for --gpu-architecture (%s)", "-arch");
	if ((*end == 'a' && n < 90) || (*end == 'f' && n < 100)) {
		log_add(p,
		        "Command-line error: invalid or no value specified with --nv_arch flag\n\n"
		        "1 catastrophic error detected in this compilation.\n");
		return NVRTC_ERROR_COMPILATION;
	}
	t->arch = n;
	t->real = real;
	memcpy(t->suffix, (char[2]){ *end }, sizeof t->suffix);
	return NVRTC_SUCCESS;
}

static bool
read_standard(const char *s, Target *t)
{
	static const char *const known[] = { "c++03", "c++11", "c++14", "c++17", "c++20" };

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strcmp(s, known[i]) == 0) {
			snprintf(t->standard, sizeof t->standard, "%s", s);
			return true;
		}
	return false;
}

static nvrtcResult
read_value(nvrtcProgram p, char kind, const char *name, const char *value, Target *t)
{
	char *end;

	if (kind == 'a')
		return read_arch(p, value, t);
	if (kind == 's' && !read_standard(value, t))
		return bad_option(p, "invalid value for --std(%s)", "-std");
	if (kind == 'b' && strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
		return bad_option(p, "%s expects true or false", name);
	(void)strtol(value, &end, 10);
	if (kind == 'i' && *end)
		return bad_option(p, "%s expects an integer value", name);
	if (kind == 'p' && strcmp(value, "-v") != 0 && strcmp(value, "-O3") != 0) {
		log_add(p, "ptxas fatal   : Unknown option '%s'\n", value + (value[0] == '-'));
		return NVRTC_ERROR_COMPILATION;
	}
	t->verbose |= kind == 'p' && strcmp(value, "-v") == 0;
	return NVRTC_SUCCESS;
}

static nvrtcResult
read_option(nvrtcProgram p, const char *o, Target *t)
{
	const char *equals = strchr(o, '=');
	size_t n = equals ? (size_t)(equals - o) : strlen(o);

	for (int i = 0; i < NOption; i++) {
		const char *name = options[i].name;
		char kind = options[i].kind;

		if (kind == 'V' && strncmp(o, name, strlen(name)) == 0)
			return NVRTC_SUCCESS;
		if (strlen(name) != n || strncmp(o, name, n) != 0)
			continue;
		if (kind == 'f')
			return NVRTC_SUCCESS;
		if (!equals)
			break;
		return read_value(p, kind, name, equals + 1, t);
	}
	return bad_option(p, "unrecognized option %s found", o);
}

/* ---- what the text says of its kernel ---- */

static char *
without_comments(const char *s)
{
	char *out = strdup(s), *w = out;

	if (!out)
		abort();
	while (*s) {
		if (s[0] == '/' && s[1] == '/') {
			while (*s && *s != '\n')
				s++;
		} else if (s[0] == '/' && s[1] == '*') {
			for (s += 2; *s && !(s[0] == '*' && s[1] == '/'); s++)
				if (*s == '\n')
					*w++ = '\n';
			s += *s ? 2 : 0;
		} else {
			*w++ = *s++;
		}
	}
	*w = 0;
	return out;
}

/* extern "C" __global__ __launch_bounds__(N) void NAME(parameters) */
static void
read_kernel(const char *source, KernelFacts *k)
{
	char *text = without_comments(source);
	const char *s = strstr(text, "__global__"), *bounds, *open;

	k->threads = DEV_THREADS;
	if (s && (open = strstr(s, "void ")) && sscanf(open + 5, " %127[A-Za-z0-9_]",
	                                               k->name) == 1) {
		bounds = strstr(s, "__launch_bounds__(");
		if (bounds && bounds < open)
			k->threads = (int)strtol(bounds + strlen("__launch_bounds__("), NULL, 10);
		open = strchr(open, '(');
		for (s = open ? open + 1 : ""; isspace((unsigned char)*s); s++)
			;
		k->nparam = *s && *s != ')';
		for (; *s && *s != ')'; s++)
			k->nparam += *s == ',';
	}
	free(text);
}

/* ---- g++ ---- */

typedef struct { char dir[64], source[96], object[96], words[96]; } Files;

static bool
files_open(Files *f)
{
	snprintf(f->dir, sizeof f->dir, "/tmp/hcgen-standin-XXXXXX");
	if (!mkdtemp(f->dir))
		return false;
	snprintf(f->source, sizeof f->source, "%s/x.cc", f->dir);
	snprintf(f->object, sizeof f->object, "%s/x.o", f->dir);
	snprintf(f->words, sizeof f->words, "%s/x.log", f->dir);
	return true;
}

static void
files_close(const Files *f)
{
	unlink(f->source);
	unlink(f->object);
	unlink(f->words);
	rmdir(f->dir);
}

static const char *
shim(const char *name)
{
	for (int i = 0; i < ntemplates; i++)
		if (strcmp(templates[i].name, name) == 0)
			return templates[i].text;
	note("templates/%s.h is not there", name);
	abort();
}

static void
write_source(const Files *f, nvrtcProgram p, const KernelFacts *k)
{
	FILE *o = fopen(f->source, "we");

	if (!o)
		return;
	fprintf(o, "#line 1 \"shim.h\"\n%s\n#line 1 \"twins.h\"\n%s\n", shim("simt/shim"),
	        shim("simt/twins"));
	fprintf(o, "#line 1 \"%s\"\n%s\n", p->name, p->source);
	fprintf(o, "#line 1 \"shim.h\"\nHC_KERNEL(%s)\n", k->name);
	fclose(o);
}

static int
run_compiler(const Files *f, const Target *t)
{
	char standard[32];
	char *argv[] = { "g++", standard, "-O0", "-w", "-fno-diagnostics-show-caret",
	                 "-fmax-errors=20", "-c", "-o",
	                 (char *)(uintptr_t)f->object, (char *)(uintptr_t)f->source, NULL };
	posix_spawn_file_actions_t io;
	int status = -1;
	pid_t pid;

	snprintf(standard, sizeof standard, "-std=gnu%s", t->standard + 1);
	posix_spawn_file_actions_init(&io);
	posix_spawn_file_actions_addopen(&io, 2, f->words, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (posix_spawnp(&pid, "g++", &io, NULL, argv, environ) == 0)
		waitpid(pid, &status, 0);
	posix_spawn_file_actions_destroy(&io);
	return status;
}

/* `path:line:column: error: words` becomes `path(line): error: words` */
static int
read_words(const Files *f, nvrtcProgram p)
{
	FILE *in = fopen(f->words, "re");
	char line[4096];
	int nerror = 0;

	while (in && fgets(line, sizeof line, in)) {
		char *e = strstr(line, ": error: "), *colon;
		bool fatal = !e && (e = strstr(line, ": fatal error: "));
		int at;

		if (!e)
			continue;
		*e = 0;
		at = 0;
		/* the column, then the line */
		for (int i = 0; i < 2 && (colon = strrchr(line, ':')); i++) {
			at = atoi(colon + 1);
			*colon = 0;
		}
		log_add(p, "%s(%d): %serror: %s\n", line, at, fatal ? "catastrophic " : "",
		        e + 1 + strlen(fatal ? ": fatal error:" : ": error:"));
		nerror++;
	}
	if (in)
		fclose(in);
	log_add(p, "%d error%s detected in the compilation of \"%s\".\n", nerror,
	        nerror == 1 ? "" : "s", p->name);
	return nerror;
}

/* The section where the shim puts shared memory. */
static int
read_static_smem(const Files *f)
{
	FILE *in = fopen(f->object, "re");
	char *b = in ? malloc(MaxText) : NULL;
	size_t n = b ? fread(b, 1, MaxText, in) : 0;
	const Elf64_Ehdr *h = (const Elf64_Ehdr *)(void *)b;
	int size = 0;

	if (in)
		fclose(in);
	if (n > sizeof *h && h->e_shoff + h->e_shnum * sizeof(Elf64_Shdr) <= n) {
		const Elf64_Shdr *s = (const Elf64_Shdr *)(void *)(b + h->e_shoff);

		for (int i = 0; i < h->e_shnum; i++)
			if (strcmp(b + s[h->e_shstrndx].sh_offset + s[i].sh_name, "hc_shared") == 0)
				size = (int)s[i].sh_size;
	}
	free(b);
	return size;
}

/* NVRTC has no headers to include. */
static bool
includes(nvrtcProgram p)
{
	char *text = without_comments(p->source), *s = text, *line;
	int at = 0;
	char name[200];

	while ((line = strsep(&s, "\n"))) {
		at++;
		if (sscanf(line, " # include %199s", name) != 1)
			continue;
		log_add(p,
		        "%s(%d): catastrophic error: could not open source file %s (no directories in search list)\n\n"
		        "1 catastrophic error detected in the compilation of \"%s\".\nCompilation terminated.\n",
		        p->name, at, name, p->name);
		free(text);
		return true;
	}
	free(text);
	return false;
}

static nvrtcResult
compile(nvrtcProgram p, const Target *t, KernelFacts *k)
{
	Files f;
	int status;

	if (includes(p))
		return NVRTC_ERROR_COMPILATION;
	if (inject_names("compile_fail", k->name)) {
		log_add(p, "%s(1): error: this kernel was chosen to fail\n\n"
		        "1 error detected in the compilation of \"%s\".\n", p->name, p->name);
		return NVRTC_ERROR_COMPILATION;
	}
	if (!files_open(&f))
		return NVRTC_ERROR_BUILTIN_OPERATION_FAILURE;
	write_source(&f, p, k);
	status = run_compiler(&f, t);
	if (status == 0)
		k->static_smem = read_static_smem(&f);
	else
		read_words(&f, p);
	files_close(&f);
	if (status == 0 && k->static_smem > DEV_SMEM) {
		log_add(p,
		        "ptxas error   : Entry function '%s' uses too much shared data (0x%x bytes, 0x%x max)\n",
		        k->name, (unsigned)k->static_smem, (unsigned)DEV_SMEM);
		return NVRTC_ERROR_COMPILATION;
	}
	return status == 0 ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}

/* what `--ptxas-options=-v` has ptxas say */
static void
say_resources(nvrtcProgram p, const Target *t, const KernelFacts *k)
{
	log_add(p,
	        "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function '%s' for 'sm_%d%s'\n"
	        "ptxas info    : Function properties for %s\n", k->name, t->arch, t->suffix, k->name);
	log_add(p,
	        "ptxas         .     %d bytes stack frame, %d bytes spill stores, %d bytes spill loads\n", k->local,
	        k->local, k->local);
	log_add(p, "ptxas info    : Used %d registers, used 1 barriers", k->registers);
	if (k->static_smem > 0)
		log_add(p, ", %d bytes smem", k->static_smem);
	log_add(p, "\n");
}

PUBLIC nvrtcResult
nvrtcCompileProgram(nvrtcProgram p, int noption, const char *const *option)
{
	Target t = { .arch = DefaultArch, .standard = "c++17" };
	KernelFacts k = { 0 };
	nvrtcResult r;

	ENTER_PROGRAM(p);
	if (noption < 0 || (noption > 0 && !option))
		return NVRTC_ERROR_INVALID_INPUT;
	for (int i = 0; i < noption; i++)
		if ((r = read_option(p, option[i] ? option[i] : "", &t)))
			return r;
	read_kernel(p->source, &k);
	snprintf(k.path, sizeof k.path, "%s", p->name);
	k.arch = t.arch;
	k.registers = (int)inject_number("regs", 32);
	k.local = inject_names("spill", k.name) ? 64 : 0;
	if (!*k.name) {
		note("nvrtcCompileProgram: %s has no extern \"C\" __global__ function", p->name);
		return NVRTC_ERROR_COMPILATION;
	}
	r = compile(p, &t, &k);
	if (r)
		return r;
	if (t.real && t.verbose)
		say_resources(p, &t, &k);
	free(p->cubin);
	free(p->ptx);
	p->ptx = strdup("// text of hcgen's stand-in, which no driver takes\n");
	p->cubin = t.real ? elf_write(&k, p->source, &p->ncubin) : NULL;
	return NVRTC_SUCCESS;
}

/* ---- what came of it ---- */

static nvrtcResult
give_size(size_t *out, size_t n)
{
	if (!out)
		return NVRTC_ERROR_INVALID_INPUT;
	*out = n;
	return NVRTC_SUCCESS;
}

static nvrtcResult
give(char *out, const char *s, size_t n)
{
	if (!out)
		return NVRTC_ERROR_INVALID_INPUT;
	if (n > 0)
		memcpy(out, s, n);
	return NVRTC_SUCCESS;
}

PUBLIC nvrtcResult
nvrtcGetProgramLogSize(nvrtcProgram p, size_t *n)
{
	ENTER_PROGRAM(p);
	return give_size(n, strlen(p->log) + 1);
}

PUBLIC nvrtcResult
nvrtcGetProgramLog(nvrtcProgram p, char *out)
{
	ENTER_PROGRAM(p);
	return give(out, p->log, strlen(p->log) + 1);
}

PUBLIC nvrtcResult
nvrtcGetCUBINSize(nvrtcProgram p, size_t *n)
{
	ENTER_PROGRAM(p);
	return give_size(n, p->cubin ? p->ncubin : 0);
}

PUBLIC nvrtcResult
nvrtcGetCUBIN(nvrtcProgram p, char *out)
{
	ENTER_PROGRAM(p);
	return give(out, p->cubin, p->cubin ? p->ncubin : 0);
}

PUBLIC nvrtcResult
nvrtcGetPTXSize(nvrtcProgram p, size_t *n)
{
	ENTER_PROGRAM(p);
	return give_size(n, p->ptx ? strlen(p->ptx) + 1 : 1);
}

PUBLIC nvrtcResult
nvrtcGetPTX(nvrtcProgram p, char *out)
{
	ENTER_PROGRAM(p);
	return give(out, p->ptx ? p->ptx : "", p->ptx ? strlen(p->ptx) + 1 : 1);
}
