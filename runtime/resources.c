/* What the CUDA kernels of a directory take, as their compiler made them: a
 * table for people in the run directory, and a report for tests, which needs
 * NVRTC but neither driver nor GPU. */
#define _GNU_SOURCE
#include "nvrtc.h"

#include <stdlib.h>
#include <string.h>

const char *
kernel_site(const Run *r, int k)
{
	int i, j;

	for (i = 0; i < r->nprog; i++)
		for (j = 0; j < r->prog[i].nstep; j++)
			if (r->prog[i].step[j].kind == ST_LAUNCH &&
			    r->prog[i].step[j].kernel == k)
				return r->prog[i].step[j].site;
	return "nowhere";
}

/* Arguments are 8 bytes each. */
const RunStep *
kernel_mismatch(const Run *r, int k)
{
	const RunKernel *kernel = &r->kernel[k];
	const RunStep *s;
	int i, j;

	if (!kernel->measured || kernel->res.arguments < 0)
		return NULL;
	for (i = 0; i < r->nprog; i++)
		for (j = 0; j < r->prog[i].nstep; j++) {
			s = &r->prog[i].step[j];
			if (s->kind == ST_LAUNCH && s->kernel == k &&
			    8L * s->narg != kernel->res.arguments)
				return s;
		}
	return NULL;
}

/* The path is the real one, so that what the compiler says of a line can be
 * opened from wherever it is read. */
static void
prepare(Run *r, Arena *a, int k, const char *arch, Nvrtc *to)
{
	char *full = arena_printf(a, "%s/%s", r->dir, r->kernel[k].file), *real;
	size_t n = 0;

	*to = (Nvrtc){.name = r->kernel[k].name, .arch = arch};
	to->text = kernel_read(r, k, a, &n);
	if (strlen(to->text) != n)
		die("%s holds a byte 0: this is no kernel", full);
	real = realpath(full, NULL);
	to->path = real ? arena_strdup(a, real) : full;
	free(real);
}

static void
take_resources(RunKernel *k, const Nvrtc *from)
{
	k->measured = cubin_resources(from->cubin, from->ncubin, k->name, &k->res);
	k->res.spills = nvrtc_spills(from);
}

/* The compiler's words are shown; says where the kernel is used. */
void
kernel_complain(const Run *r, int k, const Nvrtc *from)
{
	fputs(from->log, stderr);
	fprintf(stderr, "%s: launched at %s: does not compile for %s\n", from->path,
	        kernel_site(r, k), from->arch);
}

Nvrtc *
kernels_compile(Run *r, Arena *a, const char *arch)
{
	Nvrtc *v = NEWN(a, Nvrtc, r->nkernel + 1);
	int i;

	r->nedited = 0;
	for (i = 0; i < r->nkernel; i++)
		prepare(r, a, i, arch, &v[i]);
	nvrtc_compile(v, r->nkernel);
	for (i = 0; i < r->nkernel; i++)
		if (v[i].cubin)
			take_resources(&r->kernel[i], &v[i]);
	return v;
}

void
run_resources(const Run *r, FILE *f)
{
	const RunKernel *k;
	int i;

	fprintf(f, "%9s %6s %6s %6s %7s %7s %8s  kernel\n", "registers", "spills", "stack",
	        "static", "dynamic", "threads", "code");
	for (i = 0; i < r->nkernel; i++) {
		k = &r->kernel[i];
		if (!k->measured)
			fprintf(f, "%9s %6s %6s %6s %7ld %7d %8s  %s\n", "-", "-", "-", "-",
			        k->smem, k->threads, "-", k->name);
		else
			fprintf(f, "%9d %6ld %6d %6ld %7ld %7d %8ld  %s\n", k->res.registers,
			        k->res.spills, k->res.stack, k->res.smem, k->smem,
			        k->threads, k->res.code, k->name);
	}
}

static void
report_row(const RunKernel *k, const Nvrtc *v, bool json, FILE *out)
{
	const KernelResources *s = &k->res;

	if (json)
		fprintf(out, "{\"kernel\":\"%s\",\"arch\":\"%s\",\"registers\":%d,"
		        "\"spills\":%ld,\"stack\":%d,\"static_smem\":%ld,"
		        "\"dynamic_smem\":%ld,\"threads\":%d,\"code\":%ld,"
		        "\"seconds\":%.3f}\n", k->name, v->arch, s->registers, s->spills,
		        s->stack, s->smem, k->smem, k->threads, s->code, v->seconds);
	else
		fprintf(out, "%s %s %d %ld %d %ld %ld %.3f\n", k->name, v->arch, s->registers,
		        s->spills, s->stack, s->smem, s->code, v->seconds);
}

/* One architecture.  The exit code: a kernel that was edited and does not
 * compile is the user's, as emitted it is ours. */
static int
report_arch(Run *r, const char *arch, bool json, FILE *out)
{
	Arena *a = arena_new("report");
	Nvrtc *v = kernels_compile(r, a, arch);
	const RunStep *wrong;
	int i, rc = EX_OK;

	for (i = 0; i < r->nkernel; i++) {
		wrong = kernel_mismatch(r, i);
		if (v[i].cubin && r->kernel[i].measured && !wrong) {
			report_row(&r->kernel[i], &v[i], json, out);
			continue;
		}
		if (wrong)
			fprintf(stderr, "%s: takes %ld bytes of arguments, and %s passes %d\n",
			        v[i].path, r->kernel[i].res.arguments, wrong->site,
			        8 * wrong->narg);
		else if (v[i].cubin)
			fprintf(stderr, "%s: its cubin for %s is not understood\n",
			        v[i].path, arch);
		else
			kernel_complain(r, i, &v[i]);
		rc = rc == EX_BUG || !r->kernel[i].edited ? EX_BUG : EX_ENV;
	}
	nvrtc_free(v, r->nkernel);
	arena_free(a);
	return rc;
}

/* One line per kernel and architecture: NAME ARCH REGISTERS SPILLS STACK
 * STATIC_SMEM CODE SECONDS; bytes, SECONDS 0 when it came from the cache. */
int
compile_report(const char *dir, int narch, const char *const *arch, bool json, FILE *out)
{
	Run *r = run_load(dir);
	int i, one, rc = EX_OK;

	if (r->target != TARGET_CUDA)
		die("%s was emitted for cpu: there is nothing for NVRTC in it", dir);
	if (!json)
		fprintf(out, "kernel arch registers spill_bytes stack static_smem code seconds\n");
	for (i = 0; i < narch; i++) {
		one = report_arch(r, arch[i], json, out);
		rc = one > rc ? one : rc;
	}
	arena_free(r->mem);
	return rc;
}
