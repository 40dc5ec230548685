/* The stand-ins of libnvrtc and of the half of libcuda that loads and launches
 * kernels (tests/standin): rules broken one by one, and correct use. */
#include "standin.h"

enum { N = 256 };

/* ---- NVRTC ---- */

static nvrtcResult
try_options(const Nvrtc *n, int count, const char *const *option, char *log, size_t *cubin)
{
	nvrtcProgram p;
	nvrtcResult r;

	WANT(n->nvrtcCreateProgram(&p, scale_text, "dir/scale.cu", 0, NULL, NULL), 0);
	r = n->nvrtcCompileProgram(p, count, option);
	WANT(n->nvrtcGetProgramLog(p, log), 0);
	WANT(n->nvrtcGetCUBINSize(p, cubin), 0);
	WANT(n->nvrtcDestroyProgram(&p), 0);
	EXPECT(!p, "the handle is still there");
	return r;
}

static void
nvrtc_options(void)
{
	static const struct { const char *option; int result; const char *log; } want[] = {
		{ "--no-cache", 0, "" }, { "-no-cache", 0, "" }, { "-lineinfo", 0, "" },
		{ "--fmad=false", 0, "" },
		{ "--default-device", 5, "nvrtc: error: unrecognized option --default-device found\n" },
		{ "--foo", 5, "nvrtc: error: unrecognized option --foo found\n" },
		{ "--std=c++99", 5, "nvrtc: error: invalid value for --std(-std)\n" },
		{ "-arch=sm_12", 5, "nvrtc: error: invalid value for --gpu-architecture (-arch)\n" },
		{ "-arch=sm_90b", 5, "nvrtc: error: invalid value for --gpu-architecture (-arch)\n" },
		{ "--modify-stack-limit=7", 5, NULL }, { "--maxrregcount=x", 5, NULL },
		{ "--ptxas-options=-vv", 6, "ptxas fatal   : Unknown option 'vv'\n" },
	};
	Nvrtc n = open_nvrtc();
	char log[4000];
	size_t cubin;

	for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
		const char *o[2] = { "--gpu-architecture=sm_90a", want[i].option };
		int r = (int)try_options(&n, 2, o, log, &cubin);

		EXPECT(r == want[i].result, "%s: %d", want[i].option, r);
		EXPECT(!want[i].log || strcmp(log, want[i].log) == 0, "%s: %s", want[i].option,
		       log);
		EXPECT((cubin > 0) == (r == 0), "%s: %zu bytes", want[i].option, cubin);
	}
	EXPECT(try_options(&n, 0, NULL, log, &cubin) == 0 && cubin == 0,
	       "a cubin without an architecture");
	EXPECT(try_options(&n, 1, (const char *const[]){ "-arch=compute_90a" }, log, &cubin) == 0 &&
	       cubin == 0, "a cubin for a virtual architecture");
	EXPECT(try_options(&n, 2, (const char *const[]){ "-arch=sm_90a", "--ptxas-options=-v" },
	                   log, &cubin) == 0 &&
	       strstr(log, "entry function 'scale' for 'sm_90a'") &&
	       strstr(log, ", 0 bytes spill stores,") && strstr(log, "Used 32 registers"), "%s", log);
	EXPECT(try_options(&n, -1, usual, log, &cubin) == NVRTC_ERROR_INVALID_INPUT, "-1 options");
}

static void
nvrtc_programs(void)
{
	Nvrtc n = open_nvrtc();
	nvrtcProgram p = NULL;
	size_t size;

	WANT(n.nvrtcCreateProgram(NULL, "", "x", 0, NULL, NULL), NVRTC_ERROR_INVALID_PROGRAM);
	WANT(n.nvrtcCreateProgram(&p, NULL, "x", 0, NULL, NULL), NVRTC_ERROR_INVALID_INPUT);
	WANT(n.nvrtcDestroyProgram(&p), NVRTC_ERROR_INVALID_PROGRAM);
	WANT(n.nvrtcGetProgramLogSize(NULL, &size), NVRTC_ERROR_INVALID_PROGRAM);
	WANT(n.nvrtcCreateProgram(&p, scale_text, "x", 0, NULL, NULL), 0);
	WANT(n.nvrtcGetCUBINSize(p, NULL), NVRTC_ERROR_INVALID_INPUT);
	WANT(n.nvrtcGetCUBIN(p, NULL), NVRTC_ERROR_INVALID_INPUT);
}

static char *
compile_log(const Nvrtc *n, const char *name, const char *text)
{
	static char log[8000];
	nvrtcProgram p;
	size_t size;

	WANT(n->nvrtcCreateProgram(&p, text, name, 0, NULL, NULL), 0);
	WANT(n->nvrtcCompileProgram(p, NUsual, usual), NVRTC_ERROR_COMPILATION);
	WANT(n->nvrtcGetProgramLogSize(p, &size), 0);
	EXPECT(size <= sizeof log, "a long log");
	WANT(n->nvrtcGetProgramLog(p, log), 0);
	EXPECT(log[size - 1] == 0 && strlen(log) == size - 1,
	       "the size is not that of the log with its 0");
	return log;
}

static void
nvrtc_errors(void)
{
	Nvrtc n = open_nvrtc();
	char *log;

	log = compile_log(&n, "dir/k.cu",
	                  "extern \"C\" __global__ void k(float *x)\n{\n\tx[0] = zzz;\n}\n");
	EXPECT(strncmp(log, "dir/k.cu(3): error: ", 20) == 0, "%s", log);
	EXPECT(strstr(log, "1 error detected in the compilation of \"dir/k.cu\".\n"), "%s", log);
	log = compile_log(&n, "dir/k.cu",
	                  "#include <stdint.h>\nextern \"C\" __global__ void k(float *x) {}\n");
	EXPECT(strncmp(log, "dir/k.cu(1): catastrophic error: could not open source file", 59) == 0,
	       "%s", log);
	log = compile_log(&n, "dir/k.cu", "extern \"C\" __global__ void k(float *x)\n{\n"
	                                  "\t__shared__ float s[13000];\n\ts[0] = x[0];\n\tx[1] = s[0];\n}\n");
	EXPECT(strstr(log, "too much shared data (0xcb20 bytes, 0xc000 max)"), "%s", log);
}

static void
nvrtc_chosen_failure(void)
{
	Nvrtc n = open_nvrtc();

	EXPECT(strstr(compile_log(&n, "scale.cu", scale_text), "scale.cu(1): error: "), "no error");
}

static void
nvrtc_chosen_spill(void)
{
	Nvrtc n = open_nvrtc();
	char log[4000];
	size_t cubin;

	EXPECT(try_options(&n, 2, (const char *const[]){ "-arch=sm_90a", "--ptxas-options=-v" },
	                   log, &cubin) == 0 &&
	       strstr(log, "64 bytes spill stores, 64 bytes spill loads") &&
	       strstr(log, "Used 200 registers"), "%s", log);
}

static void
cubins_are_elf_and_repeat(void)
{
	Nvrtc n = open_nvrtc();
	size_t na, nb;
	char *a = compile_sized(&n, "turn.cu", turn_text, &na);
	char *b = compile_sized(&n, "turn.cu", turn_text, &nb);

	EXPECT(memcmp(a, "\177ELF", 4) == 0 && a[18] == (char)190 && (unsigned char)a[49] == 90,
	       "no cubin for sm_90");
	EXPECT(na == nb && memcmp(a, b, na) == 0, "two compilations differ");
}

/* ---- kernels ---- */

typedef struct { Driver d; CUstream s; CUdeviceptr x, y; float *host; } Arrays;

static Arrays
arrays(void)
{
	Arrays a = { .d = open_context() };

	WANT(a.d.cuStreamCreate(&a.s, CU_STREAM_NON_BLOCKING), 0);
	WANT(a.d.cuMemAlloc(&a.x, N * sizeof(float)), 0);
	WANT(a.d.cuMemAlloc(&a.y, N * sizeof(float)), 0);
	WANT(a.d.cuMemHostAlloc((void **)&a.host, N * sizeof(float), 0), 0);
	for (int i = 0; i < N; i++)
		a.host[i] = (float)i;
	WANT(a.d.cuMemcpyHtoDAsync(a.x, a.host, N * sizeof(float), a.s), 0);
	return a;
}

static void
fetch(const Arrays *a)
{
	WANT(a->d.cuMemcpyDtoHAsync(a->host, a->y, N * sizeof(float), a->s), 0);
	WANT(a->d.cuStreamSynchronize(a->s), 0);
}

static void
launch_works(void)
{
	Arrays a = arrays();
	CUfunction f = function(&a.d, "scale", scale_text);
	long n = N;
	double by = 0.5;
	void *args[] = { &a.y, &a.x, &n, &by };

	WANT(a.d.cuLaunchKernel(f, N / 64, 1, 1, 64, 1, 1, 0, a.s, args, NULL), 0);
	by = 100;               /* parameters are taken at the call */
	fetch(&a);
	for (int i = 0; i < N; i++)
		EXPECT(a.host[i] == 0.5f * (float)i + N, "y[%d] is %g", i, (double)a.host[i]);
}

static void
launch_by_extra_and_by_kernel(void)
{
	Arrays a = arrays();
	Nvrtc n = open_nvrtc();
	CUkernel k = load(&a.d, compile(&n, "scale", scale_text), "scale");
	struct { CUdeviceptr y, x; long n; double by; } buffer = { a.y, a.x, N, 2 };
	size_t size = sizeof buffer;
	void *extra[] = { CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE,
	                  &size, CU_LAUNCH_PARAM_END };
	CUlaunchConfig c = { N / 64, 1, 1, 64, 1, 1, 0, a.s, NULL, 0 };
	void *args[] = { &buffer.y, &buffer.x, &buffer.n, &buffer.by };

	WANT(a.d.cuLaunchKernelEx(&c, (CUfunction)(void *)k, args, extra),
	     CUDA_ERROR_INVALID_VALUE);
	WANT(a.d.cuLaunchKernelEx(&c, (CUfunction)(void *)k, NULL, extra), 0);
	size -= 8;
	WANT(a.d.cuLaunchKernelEx(&c, (CUfunction)(void *)k, NULL, extra),
	     CUDA_ERROR_INVALID_VALUE);
	fetch(&a);
	EXPECT(a.host[3] == 6 + N, "%g", (double)a.host[3]);
}

static void
shared_memory(void)
{
	Arrays a = arrays();
	CUfunction f = function(&a.d, "turn", turn_text);
	void *args[] = { &a.y, &a.x };
	int v;

	WANT(a.d.cuFuncGetAttribute(&v, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f), 0);
	EXPECT(v == 256, "%d bytes of static shared memory", v);
	EXPECT(!strstr(noted(), "the executor counts"), "%s", noted());
	WANT(a.d.cuLaunchKernel(f, N / 64, 1, 1, 64, 1, 1, 256, a.s, args, NULL), 0);
	fetch(&a);
	EXPECT(a.host[64] == 127 && a.host[127] == 64, "%g", (double)a.host[64]);
	/* above 48 KiB, static included, a kernel must be prepared for it */
	WANT(a.d.cuLaunchKernel(f, 1, 1, 1, 64, 1, 1, 49152, a.s, args, NULL),
	     CUDA_ERROR_INVALID_VALUE);
	want_note("MAX_DYNAMIC_SHARED_SIZE_BYTES");
	WANT(a.d.cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232448),
	     CUDA_ERROR_INVALID_VALUE);
	WANT(a.d.cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
	                            232448 - 256), 0);
	WANT(a.d.cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_NUM_REGS, 8), CUDA_ERROR_INVALID_VALUE);
	WANT(a.d.cuLaunchKernel(f, 1, 1, 1, 64, 1, 1, 100000, a.s, args, NULL), 0);
	WANT(a.d.cuOccupancyMaxActiveBlocksPerMultiprocessor(&v, f, 64, 100000), 0);
	EXPECT(v == 2, "%d blocks", v);
	WANT(a.d.cuStreamSynchronize(a.s), 0);
}

static void
launch_shapes(void)
{
	static const struct { unsigned grid, block; } bad[] = {
		{ 0, 64 }, { 1, 0 }, { 1, 65 }, { 1, 1025 }, { 0x80000000u, 64 }
	};
	Arrays a = arrays();
	CUfunction f = function(&a.d, "scale", scale_text);
	long n = N;
	double by = 2;
	void *args[] = { &a.y, &a.x, &n, &by }, *few[] = { &a.y, &a.x, &n, NULL };

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		WANT(a.d.cuLaunchKernel(f, bad[i].grid, 1, 1, bad[i].block, 1, 1, 0, a.s, args,
		                        NULL),
		     CUDA_ERROR_INVALID_VALUE);
	WANT(a.d.cuLaunchKernel(f, 1, 1, 1, 64, 1, 1, 0, a.s, NULL, NULL),
	     CUDA_ERROR_INVALID_VALUE);
	WANT(a.d.cuLaunchKernel(f, 1, 1, 1, 64, 1, 1, 0, a.s, few, NULL), CUDA_ERROR_INVALID_VALUE);
	WANT(a.d.cuLaunchKernel(NULL, 1, 1, 1, 64, 1, 1, 0, a.s, args, NULL),
	     CUDA_ERROR_INVALID_HANDLE);
	WANT(a.d.cuLaunchKernel(f, 1, 1, 1, 64, 1, 1, 0, (CUstream)&a, args, NULL),
	     CUDA_ERROR_INVALID_HANDLE);
	WANT(a.d.cuStreamSynchronize(a.s), 0);
}

static void
libraries(void)
{
	Driver d = open_context();
	Nvrtc n = open_nvrtc();
	char *cubin = compile(&n, "scale", scale_text);
	CUlibrary l;
	CUkernel k;
	CUfunction f;
	size_t off, size;
	int v;

	WANT(d.cuLibraryLoadData(&l,
	                         "no cubin, but long enough for a header of an ELF file, 64 bytes", NULL, NULL, 0,
	                         NULL, NULL, 0), CUDA_ERROR_INVALID_IMAGE);
	WANT(d.cuLibraryLoadData(&l, NULL, NULL, NULL, 0, NULL, NULL, 0), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuLibraryLoadData(&l, cubin, NULL, NULL, 0, NULL, NULL, 0), 0);
	WANT(d.cuLibraryGetKernel(&k, l, "other"), CUDA_ERROR_NOT_FOUND);
	WANT(d.cuLibraryGetKernel(&k, l, "scale"), 0);
	WANT(d.cuKernelGetAttribute(&v, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, k, 0), 0);
	EXPECT(v == 64, "%d threads", v);
	WANT(d.cuKernelGetAttribute(&v, CU_FUNC_ATTRIBUTE_NUM_REGS, k, 0), 0);
	EXPECT(v == 32, "%d registers", v);
	WANT(d.cuKernelGetAttribute(&v, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, k, 0), 0);
	EXPECT(v == 49152, "%d bytes", v);
	WANT(d.cuKernelGetAttribute(&v, CU_FUNC_ATTRIBUTE_NUM_REGS, k, 1),
	     CUDA_ERROR_INVALID_DEVICE);
	WANT(d.cuKernelGetParamInfo(k, 3, &off, &size), 0);
	EXPECT(off == 24 && size == 8, "parameter 3 at %zu", off);
	WANT(d.cuKernelGetParamInfo(k, 4, &off, &size), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuKernelGetFunction(&f, k), 0);
	WANT(d.cuFuncGetAttribute(&v, CU_FUNC_ATTRIBUTE_NUM_REGS, (CUfunction)(void *)k),
	     CUDA_ERROR_INVALID_HANDLE);
	WANT(d.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536,
	                            (CUkernel)(void *)f, 0),
	     CUDA_ERROR_INVALID_HANDLE);
	WANT(d.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536, k, 0),
	     0);
	WANT(d.cuLibraryUnload(l), 0);
	WANT(d.cuLibraryUnload(l), CUDA_ERROR_INVALID_VALUE);
	WANT(d.cuFuncLoad(f), CUDA_ERROR_INVALID_HANDLE);
}

static void
other_compute_capability(void)
{
	Driver d = open_context();
	Nvrtc n = open_nvrtc();
	CUlibrary l;

	WANT(d.cuLibraryLoadData(&l, compile(&n, "scale", scale_text), NULL, NULL, 0, NULL, NULL,
	                         0),
	     CUDA_ERROR_NO_BINARY_FOR_GPU);
}

static void
launch_scale(const Arrays *a, CUdeviceptr y, CUresult at_call, CUresult at_wait)
{
	CUfunction f = function(&a->d, "scale", scale_text);
	CUdeviceptr x = a->x, p;
	long n = N;
	double by = 2;
	void *args[] = { &y, &x, &n, &by };

	WANT(a->d.cuLaunchKernel(f, N / 64, 1, 1, 64, 1, 1, 0, a->s, args, NULL), at_call);
	WANT(a->d.cuStreamSynchronize(a->s), at_wait);
	WANT(a->d.cuMemAlloc(&p, 4), at_wait);
}

static void
outside_memory(void)
{
	Arrays a = arrays();

	launch_scale(&a, a.y + 4, 0, CUDA_ERROR_ILLEGAL_ADDRESS);
	want_note("scale");
}

static void
null_pointer(void)
{
	Arrays a = arrays();

	launch_scale(&a, 0, 0, CUDA_ERROR_ILLEGAL_ADDRESS);
}

static void
chosen_launch_failure(void)
{
	Arrays a = arrays();

	launch_scale(&a, a.y, 0, CUDA_ERROR_LAUNCH_FAILED);
}

static void
chosen_refusal(void)
{
	Arrays a = arrays();

	launch_scale(&a, a.y, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 0);
}

static void
many_in_any_order(void)
{
	Arrays a = arrays();
	CUfunction f = function(&a.d, "scale", scale_text);
	long n = 0;
	double by = 1;
	void *args[] = { &a.x, &a.x, &n, &by };

	WANT(a.d.cuMemcpyDtoDAsync(a.y, a.x, N * sizeof(float), a.s), 0);
	for (int i = 0; i < 3000; i++)          /* more than a queue holds */
		WANT(a.d.cuMemsetD8Async(a.y, (unsigned char)i, N, a.s), 0);
	WANT(a.d.cuLaunchKernel(f, N / 64, 1, 1, 64, 1, 1, 0, a.s, args, NULL), 0);
	fetch(&a);
	EXPECT(((unsigned char *)a.host)[0] == (2999 & 255) && a.host[N - 1] == N - 1, "%g",
	       (double)a.host[N - 1]);
}

int
main(void)
{
	test_begin();
	run_case("nvrtc-options", "", nvrtc_options);
	run_case("nvrtc-programs", "", nvrtc_programs);
	run_case("nvrtc-errors", "", nvrtc_errors);
	run_case("nvrtc-chosen-failure", "compile_fail=scale", nvrtc_chosen_failure);
	run_case("nvrtc-chosen-spill", "spill=scale,regs=200", nvrtc_chosen_spill);
	run_case("cubins-are-elf-and-repeat", "", cubins_are_elf_and_repeat);
	run_case("launch-works", "", launch_works);
	run_case("launch-by-extra-and-by-kernel", "", launch_by_extra_and_by_kernel);
	run_case("shared-memory", "", shared_memory);
	run_case("launch-shapes", "", launch_shapes);
	run_case("libraries", "", libraries);
	run_case("other-compute-capability", "cc=8.0", other_compute_capability);
	run_case("newer-compute-capability", "cc=12.0", other_compute_capability);
	run_case("outside-memory", "check", outside_memory);
	run_case("null-pointer", "check", null_pointer);
	run_case("null-pointer-without-checks", "", null_pointer);
	run_case("chosen-launch-failure", "launch_fail=scale", chosen_launch_failure);
	run_case("chosen-refusal", "refuse=scale", chosen_refusal);
	run_case("many-lazily", "", many_in_any_order);
	run_case("many-eagerly", "order=eager", many_in_any_order);
	run_case("many-at-random", "order=random:7", many_in_any_order);
	return test_end();
}
