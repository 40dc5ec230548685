/* The stand-ins beside the vendor's own libraries, where these are installed,
 * as far as they work without a GPU: options, results, logs and cubins of NVRTC,
 * descriptors of cuBLASLt.  Elsewhere every case is skipped. */
#include "standin.h"

#include <elf.h>

static const char *real_dir;            /* $CUDA_HOME/lib64 */

static void *
open_real(const char *name)
{
	char path[500];
	void *lib;

	snprintf(path, sizeof path, "%s/%s", real_dir, name);
	lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		wrong("%s", dlerror());
	return lib;
}

typedef struct { Nvrtc own, real; } Both;

static Both
both_nvrtc(void)
{
	char path[500];

	/* the real one finds its other half by name alone */
	snprintf(path, sizeof path, "%s/libnvrtc-builtins.so.13.0", real_dir);
	dlopen(path, RTLD_NOW | RTLD_LOCAL);
	return (Both){ open_nvrtc(), open_nvrtc_at(open_real("libnvrtc.so.13")) };
}

static void
same_version_and_archs(void)
{
	Both b = both_nvrtc();
	int v[2], w[2], archs[64], ours[64];

	WANT(b.own.nvrtcVersion(&v[0], &v[1]), 0);
	WANT(b.real.nvrtcVersion(&w[0], &w[1]), 0);
	EXPECT(v[0] == w[0], "versions %d and %d", v[0], w[0]);
	if (v[1] != w[1])
		return;         /* what follows is of 13.0 */
	WANT(b.own.nvrtcGetNumSupportedArchs(v), 0);
	WANT(b.real.nvrtcGetNumSupportedArchs(w), 0);
	EXPECT(v[0] == w[0], "%d and %d architectures", v[0], w[0]);
	WANT(b.own.nvrtcGetSupportedArchs(ours), 0);
	WANT(b.real.nvrtcGetSupportedArchs(archs), 0);
	EXPECT(memcmp(ours, archs, (size_t)v[0] * sizeof *ours) == 0, "other architectures");
}

static int
compile_with(const Nvrtc *n, int count, const char *const *option, bool *cubin)
{
	nvrtcProgram p;
	size_t size;
	int r;

	WANT(n->nvrtcCreateProgram(&p, scale_text, "dir/scale.cu", 0, NULL, NULL), 0);
	r = (int)n->nvrtcCompileProgram(p, count, option);
	WANT(n->nvrtcGetCUBINSize(p, &size), 0);
	*cubin = size > 0;
	WANT(n->nvrtcDestroyProgram(&p), 0);
	return r;
}

static void
same_options(void)
{
	static const char *const option[] = {
		"--gpu-architecture=sm_80", "-arch=sm_90", "-arch=sm_100", "-arch=sm_100a", "-arch=compute_90a",
		"-arch=sm_91", "-arch=sm_90b", "-arch=sm_80a", "-arch=90", "-arch", "--std=c++17", "-std=c++20",
		"--std=c++99", "-default-device", "--default-device", "--device-as-default-execution-space",
		"--no-cache", "-no-cache", "--modify-stack-limit=false", "-modify-stack-limit=true",
		"--modify-stack-limit=7", "-lineinfo", "--lineinfo", "--generate-line-info", "--fmad=false",
		"-fmad=false", "--fmad=x", "--use_fast_math", "-use_fast_math", "--maxrregcount=64", "--maxrregcount=x",
		"--ptxas-options=-v", "--ptxas-options=-vv", "-Xptxas=-v", "-w", "--disable-warnings", "--restrict",
		"--device-int128", "--minimal", "--diag-suppress=177", "--split-compile=1", "-DX=1",
		"--define-macro=X", "--foo", "-O3", "-g", ""
	};
	Both b = both_nvrtc();

	for (size_t i = 0; i < sizeof option / sizeof *option; i++) {
		bool arch = strstr(option[i], "arch"), cubin[2];
		const char *o[2] = { option[i], "--gpu-architecture=sm_90a" };
		int own = compile_with(&b.own, 2 - arch, o, &cubin[0]);
		int real = compile_with(&b.real, 2 - arch, o, &cubin[1]);

		EXPECT(own == real, "%s: %d, really %d", option[i], own, real);
		EXPECT(cubin[0] == cubin[1], "%s: cubin %d, really %d", option[i], cubin[0],
		       cubin[1]);
	}
}

/* the result of a misuse, by number */
static int
misuse(const Nvrtc *n, int i)
{
	const char *o[] = { "--gpu-architecture=sm_90a" };
	nvrtcProgram p = NULL;
	char log[10];

	switch (i) {
	case 0: return (int)n->nvrtcDestroyProgram(&p);
	case 1: return (int)n->nvrtcDestroyProgram(NULL);
	case 2: return (int)n->nvrtcCreateProgram(NULL, "", "", 0, NULL, NULL);
	case 3: return (int)n->nvrtcCreateProgram(&p, NULL, "", 0, NULL, NULL);
	case 4: return (int)n->nvrtcCreateProgram(&p, "", "", -1, NULL, NULL);
	case 5: return (int)n->nvrtcCompileProgram(NULL, 0, NULL);
	case 6: return (int)n->nvrtcGetProgramLogSize(NULL, (size_t *)(void *)log);
	case 7: return (int)n->nvrtcVersion(NULL, NULL);
	}
	n->nvrtcCreateProgram(&p, scale_text, NULL, 0, NULL, NULL);
	switch (i) {
	case 8: return (int)n->nvrtcCompileProgram(p, -1, o);
	case 9: return (int)n->nvrtcGetProgramLog(p, log);
	case 10: return (int)n->nvrtcGetCUBINSize(p, NULL);
	}
	n->nvrtcCompileProgram(p, 1, o);
	switch (i) {
	case 11: return (int)n->nvrtcGetCUBIN(p, NULL);
	case 12: return (int)n->nvrtcGetProgramLogSize(p, NULL);
	case 13: return (int)n->nvrtcCompileProgram(p, 1, o);
	}
	return -1;
}

static void
same_results_of_misuse(void)
{
	Both b = both_nvrtc();

	for (int i = 0; misuse(&b.own, i) >= 0; i++)
		EXPECT(misuse(&b.own, i) == misuse(&b.real, i), "misuse %d: %d, really %d", i,
		       misuse(&b.own, i), misuse(&b.real, i));
}

static const char *
log_of(const Nvrtc *n, const char *text)
{
	nvrtcProgram p;
	char *log = malloc(8000);

	WANT(n->nvrtcCreateProgram(&p, text, "dir/k.cu", 0, NULL, NULL), 0);
	WANT(n->nvrtcCompileProgram(p, NUsual, usual), NVRTC_ERROR_COMPILATION);
	WANT(n->nvrtcGetProgramLog(p, log), 0);
	return log;
}

/* Words differ; place, kind and count do not. */
static void
same_logs(void)
{
	static const char *const text[] = {
		"extern \"C\" __global__ void k(float *x)\n{\n\tx[0] = zzz;\n}\n",
		"extern \"C\" __global__ void k(float *x)\n{\n\tint i = 0\n\tx[i] = 1;\n}\n",
		"extern \"C\" __global__ void k(float *x)\n{\n\tx[0] = a;\n\tx[1] = b;\n}\n",
		"\n#include <stdint.h>\nextern \"C\" __global__ void k(float *x) {}\n",
	};
	Both b = both_nvrtc();

	for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
		const char *own = log_of(&b.own, text[i]), *real = log_of(&b.real, text[i]);
		size_t n = strcspn(real, ")");
		const char *kind = " detected in the compilation of \"dir/k.cu\".";

		/* a missing semicolon: g++ names the line where it belongs, NVRTC the next */
		if (i != 1)
			EXPECT(strncmp(own, real, n) == 0, "%s, really %s", own, real);
		EXPECT(strstr(own, kind) && strstr(real, kind), "%s, really %s", own, real);
		EXPECT(strncmp(strstr(own, kind) - 7, strstr(real, kind) - 7, 7) == 0,
		       "%s, really %s", own, real);
	}
}

/* what a reader of resources finds */
typedef struct { int machine, arch, registers, frame, threads, nparam,
                 shared; char kernel[64]; } Resources;

static void
read_records(const char *s, size_t n, Resources *r)
{
	for (size_t i = 0; i + 4 <= n;) {
		unsigned char kind = (unsigned char)s[i], attr = (unsigned char)s[i + 1];
		uint16_t size;
		uint32_t w[3] = { 0 };

		memcpy(&size, s + i + 2, 2);
		i += 4;
		if (kind != 4)
			continue;
		memcpy(w, s + i, size < sizeof w ? size : sizeof w);
		i += size;
		if (attr == 0x2f)
			r->registers = (int)w[1];
		if (attr == 0x11)
			r->frame = (int)w[1];
		if (attr == 0x05)
			r->threads = (int)w[0];
		r->nparam += attr == 0x17;
	}
}

static Resources
resources_of(const char *cubin)
{
	const Elf64_Ehdr *h = (const void *)cubin;
	const Elf64_Shdr *s = (const void *)(cubin + h->e_shoff);
	const char *names = cubin + s[h->e_shstrndx].sh_offset;
	Resources r = { h->e_machine, (int)(h->e_flags >> 8 & 0xff), 0, 0, 0, 0, 0, "" };

	for (int i = 0; i < h->e_shnum; i++) {
		const char *name = names + s[i].sh_name;

		if (strncmp(name, ".nv.info", 8) == 0)
			read_records(cubin + s[i].sh_offset, s[i].sh_size, &r);
		if (strncmp(name, ".nv.shared.", 11) == 0 && !strstr(name, "reserved"))
			r.shared = (int)s[i].sh_size;
		if (strncmp(name, ".text.", 6) == 0)
			snprintf(r.kernel, sizeof r.kernel, "%s", name + 6);
	}
	return r;
}

static void
same_cubins(void)
{
	Both b = both_nvrtc();
	static const char *const text[] = { scale_text, turn_text };

	for (int i = 0; i < 2; i++) {
		Resources own = resources_of(compile(&b.own, "k.cu", text[i]));
		Resources real = resources_of(compile(&b.real, "k.cu", text[i]));

		EXPECT(own.machine == real.machine && own.arch == real.arch, "sm_%d, really sm_%d",
		       own.arch, real.arch);
		EXPECT(strcmp(own.kernel, real.kernel) == 0, "%s, really %s", own.kernel,
		       real.kernel);
		EXPECT(own.threads == real.threads && own.nparam == real.nparam,
		       "%d parameters, really %d", own.nparam, real.nparam);
		/* without shared memory the section is left out */
		EXPECT(own.shared == real.shared || (real.shared == 0 && own.shared == 1024),
		       "%d bytes, really %d", own.shared, real.shared);
		EXPECT(own.registers > 0 && real.registers > 0 && own.frame == 0 && real.frame == 0,
		       "no registers");
	}
}

/* ---- what the runtime asks for ---- */

/* cudaTypedefs.h has a type for each version of each function of the driver. */
static void
entries_have_these_versions(void)
{
	static const struct { const char *library, *name; int version; } entry[] = {
#define FN(library, name, version, result, parameters) { #library, #name, version },
#include "../../runtime/api.def"
	};
	static char text[1 << 20];
	char path[500], word[200];
	FILE *f;

	snprintf(path, sizeof path, "%s/../include/cudaTypedefs.h", real_dir);
	f = fopen(path, "r");
	EXPECT(f && fread(text, 1, sizeof text - 1, f) > 0, "cannot read %s", path);
	for (size_t i = 0; i < sizeof entry / sizeof *entry; i++) {
		snprintf(word, sizeof word, "PFN_%s_v%d)", entry[i].name, entry[i].version);
		EXPECT(strcmp(entry[i].library, "DRIVER") != 0 || strstr(text, word), "no %s",
		       word);
	}
}

/* ---- cuBLASLt ---- */

static void
no_gpu_no_handle(void)
{
	Lt real = open_lt_at(open_real("libcublasLt.so.13"));
	cublasLtHandle_t h = NULL;

	WANT(real.cublasLtCreate(&h), CUBLAS_STATUS_NOT_INITIALIZED);
}

typedef cublasStatus_t Get(void *, int, void *, size_t, size_t *);
typedef cublasStatus_t Set(void *, int, const void *, size_t);

static void
compare_attributes(const char *what, Get *own_get, Set *own_set, void *own, Get *real_get,
                   Set *real_set, void *real)
{
	for (int i = 0; i < 48; i++) {
		size_t n = 0, m = 0;
		uint64_t v = 0, w = 0;
		int a = (int)own_get(own, i, NULL, 0, &n), b = (int)real_get(real, i, NULL, 0, &m);

		if (b == 0 && a != 0)
			continue;       /* of which nothing here has need */
		EXPECT(a == b && n == m, "%s %d: %d of %zu bytes, really %d of %zu", what, i, a, n,
		       b, m);
		EXPECT(own_set(own, i, &v, n + 1) == real_set(real, i, &v, m + 1),
		       "%s %d: another size", what, i);
		if (a)
			continue;
		WANT(own_get(own, i, &v, n, NULL), 0);
		WANT(real_get(real, i, &w, m, NULL), 0);
		EXPECT(v == w, "%s %d is %lx, really %lx", what, i, (unsigned long)v,
		       (unsigned long)w);
		v = ~(uint64_t)0;       /* values are not looked at */
		WANT(own_set(own, i, &v, n), 0);
		WANT(real_set(real, i, &v, m), 0);
	}
}

static void
same_attributes(void)
{
	Lt own = open_lt_at(open_library("libcublasLt.so.13")), real = open_lt_at(open_real("libcublasLt.so.13"));
	cublasLtMatrixLayout_t l[2];
	cublasLtMatmulDesc_t d[2];
	cublasLtMatmulPreference_t p[2];

#define COMPARE(type, x) \
	compare_attributes(#type, (Get *)own.cublasLt##type##GetAttribute, (Set *)own.cublasLt##type##SetAttribute, \
	                   x[0], (Get *)real.cublasLt##type##GetAttribute, \
	                   (Set *)real.cublasLt##type##SetAttribute, x[1])
	WANT(own.cublasLtMatrixLayoutCreate(&l[0], CUDA_R_16BF, 64, 32, 16), 0);
	WANT(real.cublasLtMatrixLayoutCreate(&l[1], CUDA_R_16BF, 64, 32, 16), 0);
	COMPARE(MatrixLayout, l);
	WANT(own.cublasLtMatmulDescCreate(&d[0], CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
	WANT(real.cublasLtMatmulDescCreate(&d[1], CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
	COMPARE(MatmulDesc, d);
	WANT(own.cublasLtMatmulPreferenceCreate(&p[0]), 0);
	WANT(real.cublasLtMatmulPreferenceCreate(&p[1]), 0);
	COMPARE(MatmulPreference, p);
	for (int i = 0; i < 20; i++) {
		EXPECT(strcmp(own.cublasLtGetStatusName(i), real.cublasLtGetStatusName(i)) == 0 ||
		       strcmp(own.cublasLtGetStatusName(i),
		              "unrecognized status") == 0, "name of %d", i);
	}
}

int
main(void)
{
	static const struct { const char *name, *needs; void (*fn)(void); } cases[] = {
		{ "same-version-and-archs", "libnvrtc.so.13", same_version_and_archs },
		{ "same-options", "libnvrtc.so.13", same_options },
		{ "same-results-of-misuse", "libnvrtc.so.13", same_results_of_misuse },
		{ "same-logs", "libnvrtc.so.13", same_logs },
		{ "same-cubins", "libnvrtc.so.13", same_cubins },
		{ "entries-have-these-versions", "../include/cudaTypedefs.h",
		  entries_have_these_versions },
		{ "no-gpu-no-handle", "libcublasLt.so.13", no_gpu_no_handle },
		{ "same-attributes", "libcublasLt.so.13", same_attributes },
	};
	const char *home = getenv("CUDA_HOME");
	char dir[400], path[500];

	test_begin();
	snprintf(dir, sizeof dir, "%s/lib64", home ? home : "/usr/local/cuda");
	real_dir = dir;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, cases[i].needs);
		if (access(path, R_OK) != 0)
			skip_case(cases[i].name, "no CUDA toolkit");
		else if (cases[i].fn == no_gpu_no_handle && access("/dev/nvidia0", F_OK) == 0)
			skip_case(cases[i].name, "there is a GPU");
		else
			run_case(cases[i].name, "", cases[i].fn);
	}
	return test_end();
}
