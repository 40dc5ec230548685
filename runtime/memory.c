/* Where the memory is: the arenas, exactly as planned, and what the process
 * holds beyond them, by cause, as the system counts it. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <inttypes.h>
#include <string.h>

static void
memory_row(FILE *f, const char *what, size_t nbytes)
{
	fprintf(f, "%-18s %16zu %10.1f MiB\n", what, nbytes, (double)nbytes / 1048576);
}

void
run_memory(const Run *r, FILE *f)
{
	size_t sum = 0, scratch = r->gemm ? gemm_scratch(r->gemm) : 0;
	int i;

	for (i = 0; i < NArena; i++) {
		memory_row(f, arena_names[i], r->arena_size[i]);
		sum += r->arena_size[i];
	}
	if (r->gemm)
		memory_row(f, "gemm scratch", scratch);
	memory_row(f, "sum", sum + scratch);
	if (r->ops && r->ops->memory)
		r->ops->memory(r, f);
}

enum { M_ARENAS, M_SHARDS, M_KERNELS, M_LIBRARIES, M_REST, NMemory };

/* which cause a mapping has; path is "" for anonymous memory */
static int
cause(const Run *r, const char *cache, uintptr_t lo, uintptr_t hi, const char *path)
{
	size_t n = strlen(path);
	int i;

	/* the system may show neighbouring arenas as one mapping */
	for (i = 0; i < NArena; i++)
		if (r->arena[i] && hi > (uintptr_t)r->arena[i] &&
		    lo < (uintptr_t)r->arena[i] + r->arena_size[i])
			return M_ARENAS;
	if (n > 4 && strcmp(path + n - 4, ".bin") == 0)
		return M_SHARDS;
	if (strncmp(path, cache, strlen(cache)) == 0)
		return M_KERNELS;
	return path[0] == '/' ? M_LIBRARIES : M_REST;
}

void
run_memory_process(const Run *r, FILE *f)
{
	static const char *const name[NMemory] = {
		"arenas", "token shards", "compiled kernels", "libraries",
		"heap and stacks",
	};
	const char *cache = cache_dir(r->mem);
	FILE *s = fopen("/proc/self/smaps", "r");
	size_t sum[NMemory] = {0}, kib;
	char line[4200], path[4096];
	uintptr_t lo, hi;
	int c = M_REST, i, at;

	if (!s)
		return;
	while (fgets(line, sizeof line, s)) {
		at = 0;
		path[0] = 0;
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %*s%n", &lo, &hi,
		           &at) == 2 && at) {
			sscanf(line + at, " %4095s", path);
			c = cause(r, cache, lo, hi, path);
		} else if (sscanf(line, "Rss: %zu kB", &kib) == 1) {
			sum[c] += kib * 1024;
		}
	}
	fclose(s);
	fprintf(f, "resident now, by cause (token shards are the system's page cache):\n");
	for (i = 0; i < NMemory; i++)
		memory_row(f, name[i], sum[i]);
}
