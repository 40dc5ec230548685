/* What the compiler makes of one text, for `hcgen show`. */
#include "../gen/verbs.h"
#include "nvrtc.h"
#include "api.h"

/* blocks of a multiprocessor of sm_90 by registers (65,536, in eights of a
 * thread's) and by its 2,048 threads; shared memory is left aside */
static int
resident(int registers, int threads)
{
	int by_registers = 65536 / ((registers + 7) / 8 * 8 * threads), by_threads = 2048 / threads;
	int n = by_registers < by_threads ? by_registers : by_threads;

	return n < 32 ? n : 32;
}

/* One line, or NULL where there is no NVRTC.  The text is one of ours: if it
 * does not compile, that is a fault of ours. */
const char *
compiled_text(Arena *a, const char *name, const char *text, int threads)
{
	Nvrtc k = { .name = name, .path = name, .text = text, .arch = "sm_90a" };
	KernelResources r;
	const char *line = NULL;

	if (api_open(API_NVRTC)->error)
		return NULL;
	nvrtc_compile(&k, 1);
	if (!k.cubin) {
		fputs(k.log, stderr);
		bug("%s does not compile for %s", name, k.arch);
	}
	if (cubin_resources(k.cubin, k.ncubin, name, &r))
		line = arena_printf(a, "%d registers, %ld bytes spilled, %ld static shared; %d "
		                    "threads of a multiprocessor at a time by registers (%s)",
		                    r.registers, nvrtc_spills(&k), r.smem,
		                    threads * resident(r.registers, threads), k.arch);
	nvrtc_free(&k, 1);
	return line;
}
