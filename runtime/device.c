/* Where a Run executes, and what moves between host and device. */
#include "hcrun.h"

#include <string.h>

static const Device *const devices[NDevice] = {
	[DEV_CPU] = &device_cpu, [DEV_SIMT] = &device_simt, [DEV_CUDA] = &device_cuda,
};

/* A GPU that cannot be used is told of: nobody who has one wants to train on
 * the CPU without knowing it. */
static int
best_device(void)
{
	const char *why = NULL;

	if (cuda_usable(&why))
		return DEV_CUDA;
	if (why)
		fprintf(stderr, "hcgen: there is a GPU, but %s; running on the CPU\n", why);
	return DEV_CPU;
}

int
device_pick(const char *name)
{
	int i;

	if (!name || strcmp(name, "auto") == 0)
		return best_device();
	for (i = 0; i < NDevice; i++)
		if (strcmp(name, devices[i]->name) == 0) {
			if (i == DEV_CUDA)
				cuda_need();
			return i;
		}
	die("--device %s: expected auto, cpu, simt or cuda", name);
}

int
device_target(int device)
{
	return devices[device]->target;
}

const char *
device_name(int device)
{
	return devices[device]->name;
}

static int
device_for(const Run *r)
{
	const char *why;

	if (r->target == TARGET_CPU)
		return DEV_CPU;
	if (cuda_usable(&why))
		return DEV_CUDA;
	fprintf(stderr, "hcgen: %s was emitted for cuda, and there is no GPU that can be used%s%s: "
	        "its text runs on the CPU, slowly\n", r->dir, why ? ": " : "", why ? why : "");
	return DEV_SIMT;
}

static const char *
target_name(int target)
{
	return target == TARGET_CUDA ? "cuda" : "cpu";
}

/* requires: run_load.  provides: a Run that programs can be run of. */
void
run_open(Run *r, int device, int nthreads)
{
	r->device = device == DEV_AUTO ? device_for(r) : device;
	if (device_target(r->device) != r->target)
		die("%s was emitted for target %s, and device %s runs target %s: emit it "
		    "again with --device %s", r->dir, target_name(r->target),
		    device_name(r->device), target_name(device_target(r->device)),
		    device_name(r->device));
	r->ops = devices[r->device];
	r->ops->open(r, nthreads);
	run_fill_tables(r);
}

void
run_close(Run *r)
{
	if (r->ops)
		r->ops->close(r);
	if (r->pool)
		pool_free(r->pool);
	arena_free(r->mem);
}

/* A Run that is not open has host memory alone. */
void
run_put(Run *r, int arena, size_t off, size_t n)
{
	if (r->ops && r->ops->put && n)
		r->ops->put(r, arena, off, n);
}

void
run_fetch(Run *r, int arena, size_t off, size_t n)
{
	if (r->ops->fetch && n)
		r->ops->fetch(r, arena, off, n);
}

void
run_get(Run *r, int arena, size_t off, size_t n)
{
	run_fetch(r, arena, off, n);
	run_sync(r);
}

void
run_zero(Run *r, int arena)
{
	r->ops->zero(r, arena);
}

void
run_sync(Run *r)
{
	if (r->ops->sync)
		r->ops->sync(r);
}

char *
run_host(Run *r, int arena)
{
	if (r->ops->host)
		r->ops->host(r, arena);
	return r->arena[arena];
}

void
run_forget(Run *r, int arena)
{
	if (r->ops->forget)
		r->ops->forget(r, arena);
}

void
run_inputs(Run *r)
{
	if (r->ops && r->ops->inputs)
		r->ops->inputs(r);
}
