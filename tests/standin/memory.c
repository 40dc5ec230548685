/* Memory of the device, on the host.
 *
 * A block is a mapping of its own:
 *
 *     | page, no access | red 256 | nbytes | red to the page's end, >= 256 | page, no access |
 *
 * What is new holds 0xFF (no number as bf16 or f32, -1 as an index).  Blocks
 * begin at multiples of 256 and of nothing larger, which is all the vendor
 * promises.  Device memory has no access rights while the host runs: a host
 * pointer mistaken for a device pointer's twin is found at once.  Freed blocks
 * keep their addresses, so that they are never mistaken for newer ones. */
#define _GNU_SOURCE
#include "standin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { Align = 256, Red = 256, RedByte = 0xDB, NewByte = 0xFF };
static const size_t TotalMemory = (size_t)143771 << 20;        /* an H200's */

static Block *block;
static int nblock, cap, opened;
static size_t used;
static long changes, nalloc;

static size_t
page(void)
{
	static size_t n;

	return n ? n : (n = (size_t)sysconf(_SC_PAGESIZE));
}

static Block *
block_add(void)
{
	if (nblock == cap) {
		cap = cap ? 2 * cap : 64;
		block = realloc(block, (size_t)cap * sizeof *block);
		if (!block)
			abort();
	}
	memset(&block[nblock], 0, sizeof *block);
	block[nblock].number = nblock;
	changes++;
	return &block[nblock++];
}

static void
protect(const Block *b, int prot)
{
	if (b->kind == MEM_DEVICE && b->live)
		mprotect(b->map + page(), b->map_nbytes - 2 * page(), prot);
}

static size_t
red_after(const Block *b)
{
	return (size_t)(b->map + b->map_nbytes - page() - (b->at + b->nbytes));
}

static void
red_paint(const Block *b)
{
	memset(b->at - Red, RedByte, Red);
	memset(b->at + b->nbytes, RedByte, red_after(b));
}

void
memory_total(size_t *total, size_t *free_bytes)
{
	*total = (size_t)inject_number("memory", (long)TotalMemory);
	*free_bytes = *total > used ? *total - used : 0;
}

CUresult
memory_new(MemKind kind, size_t nbytes, void **out)
{
	size_t total, room, inner = (Red + nbytes + Red + page() - 1) / page() * page();
	Block *b;
	char *map;

	if (kind == MEM_DEVICE) {
		memory_total(&total, &room);
		if (nbytes > room || nalloc >= inject_number("oom_after", nalloc + 1))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	map = mmap(NULL, inner + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
	           -1, 0);
	if (map == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	mprotect(map + page(), inner, PROT_READ | PROT_WRITE);
	b = block_add();
	*b = (Block){ kind, map + page() + Align, nbytes, map, inner + 2 * page(), true, b->number };
	red_paint(b);
	memset(b->at, NewByte, nbytes);
	if (kind == MEM_DEVICE) {
		used += nbytes;
		nalloc++;
		if (!opened)
			protect(b, PROT_NONE);
	}
	*out = b->at;
	return 0;
}

CUresult
memory_register(void *p, size_t nbytes)
{
	Block *b;

	if (memory_touch(p, nbytes))
		return CUDA_ERROR_INVALID_VALUE;
	b = block_add();
	*b = (Block){ MEM_REGISTERED, p, nbytes, NULL, 0, true, b->number };
	return 0;
}

static bool
red_whole(const Block *b)
{
	const char *after = b->at + b->nbytes;
	size_t n = red_after(b);

	for (int i = 1; i <= Red; i++)
		if ((unsigned char)b->at[-i] != RedByte)
			return false;
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)after[i] != RedByte)
			return false;
	return true;
}

static const char *
kind_name(const Block *b)
{
	return b->kind == MEM_DEVICE ? "device" : b->kind == MEM_PINNED ? "pinned" : "registered";
}

bool
memory_intact(const char *after)
{
	bool whole = true;

	for (int i = 0; i < nblock; i++) {
		const Block *b = &block[i];

		if (!b->live || !b->map || red_whole(b))
			continue;
		note("%s wrote outside allocation %d (%s, %zu bytes)", after, b->number,
		     kind_name(b), b->nbytes);
		red_paint(b);
		whole = false;
	}
	return whole;
}

static void
block_free(Block *b)
{
	if (b->kind == MEM_DEVICE)
		used -= b->nbytes;
	if (b->map) {   /* the addresses stay taken */
		mprotect(b->map, b->map_nbytes, PROT_NONE);
		madvise(b->map, b->map_nbytes, MADV_DONTNEED);
	}
	b->live = false;
	changes++;
}

CUresult
memory_free(MemKind kind, void *p)
{
	for (int i = 0; i < nblock; i++) {
		Block *b = &block[i];

		if (b->at != p || !b->live)
			continue;
		if (b->kind != kind) {
			note("allocation %d is %s memory: freed by the wrong call", b->number,
			     kind_name(b));
			return CUDA_ERROR_INVALID_VALUE;
		}
		if (b->kind == MEM_PINNED && !red_whole(b))
			note("the host wrote outside pinned allocation %d (%zu bytes)", b->number,
			     b->nbytes);
		block_free(b);
		return 0;
	}
	note("%p is not the start of a live allocation: it cannot be freed", p);
	return CUDA_ERROR_INVALID_VALUE;
}

void
memory_report_leaks(void)
{
	for (int i = 0; i < nblock; i++)
		if (block[i].live)
			note("still allocated: %d (%s, %zu bytes)", block[i].number,
			     kind_name(&block[i]), block[i].nbytes);
}

void
memory_free_all(void)
{
	for (int i = 0; i < nblock; i++)
		if (block[i].live)
			block_free(&block[i]);
	nalloc = 0;
}

const Block *
memory_find(const void *p, size_t nbytes)
{
	const char *at = p;

	for (int i = 0; i < nblock; i++) {
		const Block *b = &block[i];

		if (b->live && at >= b->at && at < b->at + b->nbytes &&
		    nbytes <= (size_t)(b->at + b->nbytes - at))
			return b;
	}
	return NULL;
}

const Block *
memory_touch(const void *p, size_t nbytes)
{
	const char *at = p;

	for (int i = 0; i < nblock; i++)
		if (block[i].live && at < block[i].at + block[i].nbytes &&
		    block[i].at < at + nbytes)
			return &block[i];
	return NULL;
}

/* where p lies, for messages */
static void
explain(char *s, size_t size, const void *p, size_t nbytes)
{
	const char *at = p;

	for (int i = nblock - 1; i >= 0; i--) {
		const Block *b = &block[i];
		const char *from = b->map ? b->map : b->at;
		size_t n = b->map ? b->map_nbytes : b->nbytes;

		if (at < from || at >= from + n)
			continue;
		snprintf(s, size, "%zu bytes at offset %td of %sallocation %d (%s, %zu bytes)",
		         nbytes, at - b->at,
		         b->live ? "" : "freed ", b->number, kind_name(b), b->nbytes);
		return;
	}
	snprintf(s, size, "%zu bytes at %p, which belongs to no allocation", nbytes, p);
}

bool
memory_device(const char *who, const char *what, const void *p, size_t nbytes)
{
	const Block *b = memory_find(p, nbytes);
	char where[200];

	if (b && b->kind == MEM_DEVICE)
		return true;
	explain(where, sizeof where, p, nbytes);
	note("%s: %s is not device memory: %s", who, what, where);
	return false;
}

bool
memory_host(const char *who, const void *p, size_t nbytes)
{
	const Block *touched = memory_touch(p, nbytes), *whole = memory_find(p, nbytes);
	char where[200];

	if (p && (!touched || (whole && whole->kind != MEM_DEVICE)))
		return true;
	explain(where, sizeof where, p, nbytes);
	note("%s: not host memory, or pinned in part only: %s", who, where);
	return false;
}

void
memory_open(void)
{
	if (opened++ == 0)
		for (int i = 0; i < nblock; i++)
			protect(&block[i], PROT_READ | PROT_WRITE);
}

void
memory_close(void)
{
	if (--opened == 0)
		for (int i = 0; i < nblock; i++)
			protect(&block[i], PROT_NONE);
}

long
memory_changes(void)
{
	return changes;
}

int
memory_blocks(const Block **b)
{
	*b = block;
	return nblock;
}

/* The kernel copies for us and reports a bad address instead of a signal. */
bool
memory_copy(void *to, const void *from, size_t nbytes)
{
	while (nbytes > 0) {
		struct iovec l = { to, nbytes }, r = { (void *)(uintptr_t)from, nbytes };
		ssize_t n = process_vm_readv(getpid(), &l, 1, &r, 1, 0);

		if (n < 0 && (errno == EPERM || errno == ENOSYS)) {     /* a sandbox forbids it */
			memcpy(to, from, nbytes);
			return true;
		}
		if (n <= 0)
			return false;
		to = (char *)to + n;
		from = (const char *)from + n;
		nbytes -= (size_t)n;
	}
	return true;
}
