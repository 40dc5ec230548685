/* HCGEN_STANDIN: words separated by commas, each NAME or NAME=VALUE, that make
 * the stand-ins behave as another machine or break at a chosen place.
 *
 *   the machine
 *     no_device               cuInit returns CUDA_ERROR_NO_DEVICE (100)
 *     stub                    every entry point of libcuda returns CUDA_ERROR_STUB_LIBRARY (34)
 *     devices=0               cuInit works, cuDeviceGetCount gives 0
 *     old_driver=12020        version of the driver; entry points newer than it are absent
 *     missing=NAME            that entry point of the driver is absent
 *     cc=8.0                  compute capability; 9.0 otherwise
 *     memory=BYTES            of the device; 141 GB otherwise
 *     nvrtc_version=12.2      what nvrtcVersion says
 *     lt_version=120205       what cublasLtGetVersion says
 *   when work is done
 *     order=lazy              only when something waits for it (this is the default)
 *     order=eager             at once
 *     order=random:SEED       any time between, streams in any order
 *   faults
 *     fail=ENTRY:CODE         the entry point (of any of the three, without _v2) returns CODE
 *     fail=ENTRY:CODE:N       … from its N-th call on, counted from 1
 *     oom_after=N             device allocations beyond the first N fail
 *     compile_fail=KERNEL     NVRTC finds an error in it
 *     spill=KERNEL            its cubin says that registers were spilled
 *     regs=N                  registers of each kernel; 32 otherwise
 *     refuse=KERNEL           cuLaunchKernel returns CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)
 *     launch_fail=KERNEL      dies on the device: CUDA_ERROR_LAUNCH_FAILED (719)
 *     illegal=KERNEL          dies on the device: CUDA_ERROR_ILLEGAL_ADDRESS (700)
 *     ecc_after=N             the N-th operation on the device ends in CUDA_ERROR_ECC_UNCORRECTABLE (214)
 *     no_lt                   cublasLtCreate returns CUBLAS_STATUS_NOT_INITIALIZED
 *     no_algo                 cublasLtMatmulAlgoGetHeuristic finds nothing
 *     stale_algo              cublasLtMatmulAlgoCheck returns CUBLAS_STATUS_NOT_SUPPORTED
 *     wrong_gemm              one element of each product is off by 1/8 of the largest
 *   checks
 *     check                   kernels run under the executor's checks (slow)
 *     seed=N                  order in which the executor runs threads
 *     leaks                   what is still allocated when the context goes is noted
 *
 * A word that is not in this list is noted and ends the process: a test with a
 * misspelt fault would pass for nothing. */
#define _GNU_SOURCE
#include "standin.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MaxWords = 64, MaxText = 4096 };

static const char *const known[] = {
	"no_device", "stub", "devices", "old_driver", "missing", "cc", "memory", "nvrtc_version",
	"lt_version", "order", "fail", "oom_after", "compile_fail", "spill", "regs", "refuse",
	"launch_fail", "illegal", "ecc_after", "no_lt", "no_algo", "stale_algo", "wrong_gemm",
	"check", "seed", "leaks"
};

static struct { const char *name, *value; int calls; } word[MaxWords];
static int nword;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void
note(const char *fmt, ...)
{
	const char *path = getenv("HCGEN_STANDIN_LOG");
	FILE *f = path && *path ? fopen(path, "ae") : NULL;
	char line[2048];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = snprintf(line, sizeof line, "stand-in: ");
	vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
	va_end(ap);
	fprintf(f ? f : stderr, "%s\n", line);
	if (f)
		fclose(f);
}

static bool
is_known(const char *name)
{
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strcmp(known[i], name) == 0)
			return true;
	return false;
}

static void
parse(void)
{
	static char text[MaxText];
	const char *env = getenv("HCGEN_STANDIN");
	char *s, *rest = text;

	if (!env)
		return;
	snprintf(text, sizeof text, "%s", env);
	while ((s = strsep(&rest, ",")) && nword < MaxWords) {
		char *value = strchr(s, '=');

		if (!*s)
			continue;
		if (value)
			*value++ = 0;
		if (!is_known(s)) {
			fprintf(stderr, "stand-in: no word \"%s\" in HCGEN_STANDIN\n", s);
			_exit(99);
		}
		word[nword].name = s;
		word[nword++].value = value ? value : "";
	}
}

const char *
inject(const char *name)
{
	pthread_once(&once, parse);
	for (int i = 0; i < nword; i++)
		if (strcmp(word[i].name, name) == 0)
			return word[i].value;
	return NULL;
}

long
inject_number(const char *name, long otherwise)
{
	const char *s = inject(name);

	return s && *s ? strtol(s, NULL, 0) : otherwise;
}

bool
inject_names(const char *name, const char *value)
{
	pthread_once(&once, parse);
	for (int i = 0; i < nword; i++)
		if (strcmp(word[i].name, name) == 0 && strcmp(word[i].value, value) == 0)
			return true;
	return false;
}

static size_t
base_length(const char *entry)
{
	size_t n = strlen(entry);

	return n > 3 && entry[n - 3] == '_' && entry[n - 2] == 'v' ? n - 3 : n;
}

int
inject_failure(const char *entry)
{
	size_t n = base_length(entry);
	int code = 0;

	pthread_once(&once, parse);
	pthread_mutex_lock(&lock);
	for (int i = 0; i < nword && !code; i++) {
		const char *v = word[i].value;
		char *end;
		long c, from = 1;

		if (strcmp(word[i].name, "fail") != 0 || strncmp(v, entry, n) != 0 || v[n] != ':')
			continue;
		c = strtol(v + n + 1, &end, 10);
		if (*end == ':')
			from = strtol(end + 1, NULL, 10);
		if (++word[i].calls >= from)
			code = (int)c;
	}
	pthread_mutex_unlock(&lock);
	return code;
}

int
device_cc(void)
{
	const char *s = inject("cc"), *dot = s ? strchr(s, '.') : NULL;

	return dot ? 10 * atoi(s) + atoi(dot + 1) : 90;
}
