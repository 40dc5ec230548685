/* The simt executor: kernels that are right run without a report and compute
 * what they should, each fault is reported at its line whatever the order of
 * threads, bytes are counted, orders repeat.  `simt_test bench` prints times. */
#define _GNU_SOURCE
#include "../../runtime/simt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failures;
static Arena *mem;

static void
verdict(const char *name, bool good, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static void
verdict(const char *name, bool good, const char *fmt, ...)
{
	va_list ap;

	printf("%s %s", good ? "ok" : "FAIL", name);
	if (!good) {
		putchar(' ');
		va_start(ap, fmt);
		vprintf(fmt, ap);
		va_end(ap);
	}
	putchar('\n');
	fflush(stdout);
	failures += !good;
}

/* what every kernel here is given: in is read-only, out is zero before each
 * launch; both have N floats */
enum { N = 4096 };
static float *in, *out;

typedef struct {
	const char *name, *body;
	const char *want;       /* part of the report; NULL: none */
	int grid, block, smem;  /* 0: 1 block, 64 threads */
} Case;

/* a line that may be named in the report ends in //! */
static const Case faults[] = {
	{ "read past the end",
	  "out[threadIdx.x] = in[threadIdx.x + n - 63]; //!\n",
	  "reads 4 bytes out of bounds: in+16384, past its 16384 bytes (in+16384)" },
	{ "write past the end",
	  "const int i = threadIdx.x;\n"
	  "out[i * 66] = 1; //!\n", "writes 4 bytes out of bounds: out+" },
	{ "vector across the end",
	  "struct V { float x, y, z; };\n"
	  "*(V *)(out + n - 2) = V{1, 2, 3}; //!\n", "writes 12 bytes out of bounds: out+16376 (out+16376), across" },
	{ "read before the beginning",
	  "out[threadIdx.x] = in[(long)threadIdx.x - 1]; //!\n", "in-4, before its first byte" },
	{ "null pointer",
	  "const float *p = n ? nullptr : in;\n"
	  "out[0] = p[3]; //!\n", "reads 4 bytes out of bounds: null+12" },
	{ "wild pointer",
	  "out[0] = *(const float *)(n << 40); //!\n", "in no range" },
	{ "write to read-only memory",
	  "const_cast<float *>(in)[threadIdx.x] = 2; //!\n", "which is read-only" },
	{ "write of a variable of the text",
	  "static volatile float x;\n"
	  "x = n; //!\n", "writes 4 bytes out of bounds" },
	{ "local variable of another thread",
	  "__shared__ float *p;\n"
	  "volatile float x[4] = {1, 2, 3, 4};\n"
	  "if (threadIdx.x == 0) p = (float *)x;\n"
	  "__syncthreads();\n"
	  "if (threadIdx.x == 1) out[0] = p[1]; //!\n"
	  "__syncthreads();\n", "reads 4 bytes out of bounds: a local variable of another thread" },
	{ "memcpy past the end",
	  "memcpy(out, in, (n + 1) * 4); //!\n", "reads 16388 bytes out of bounds" },
	{ "misaligned vector",
	  "*(float4 *)out = *(const float4 *)(in + 1 + (threadIdx.x & 3)); //!\n", "misaligned" },
	{ "misaligned pair",
	  "*(double *)(out + 2 * threadIdx.x + 1) = 1; //!\n", "misaligned" },
	{ "index outside of a shared array",
	  "__shared__ float s[64], z[64];\n"
	  "s[threadIdx.x] = z[threadIdx.x] = 1;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = s[threadIdx.x + 1]; //!\n", "index outside of the array" },
	{ "past the end of shared memory",
	  "__shared__ float s[64];\n"
	  "float *p = s;\n"
	  "p[threadIdx.x * 3] = 1; //!\n", "writes 4 bytes out of bounds: shared memory+" },
	{ "read past the end of shared memory",
	  "__shared__ float s[64];\n"
	  "float *p = s;\n"
	  "s[threadIdx.x] = 1;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = p[threadIdx.x * 2]; //!\n", "reads 4 bytes out of bounds: shared memory+" },
	{ "read of a variable of the text",
	  "static float x;\n"
	  "float *volatile p = &x;\n"
	  "out[threadIdx.x] = *p; //!\n", "reads 4 bytes out of bounds" },
	{ "past the end of dynamic shared memory",
	  "float *s = (float *)dynamic_smem();\n"
	  "s[threadIdx.x + 1] = 1; //!\n",
	  "writes 4 bytes out of bounds: dynamic shared memory+256, past its 256 bytes", .smem = 256 },
	{ "dynamic shared memory where there is none",
	  "dynamic_smem()[0] = 1; //!\n", "out of bounds" },
	{ "uninitialised shared memory",
	  "__shared__ float s[64];\n"
	  "if (threadIdx.x != 9) s[threadIdx.x] = 1;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = s[63 - threadIdx.x]; //!\n",
	  "reads 4 bytes at shared memory+36, which no thread of the block has written" },
	{ "one uninitialised byte of a vector",
	  "__shared__ __align__(16) unsigned char s[16];\n"
	  "if (threadIdx.x < 15) s[threadIdx.x] = 1;\n"
	  "__syncthreads();\n"
	  "((uint4 *)out)[threadIdx.x] = *(uint4 *)s; //!\n", "no thread of the block has written" },
	{ "shared memory of the block before",
	  "__shared__ float s[64];\n"
	  "if (blockIdx.x == n - N + 1) s[threadIdx.x] = 1;\n"
	  "__syncthreads();\n"
	  "out[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x]; //!\n", "no thread of the block has written", 2 },
	{ "uninitialised dynamic shared memory",
	  "out[threadIdx.x] = ((float *)dynamic_smem())[threadIdx.x]; //!\n",
	  "no thread of the block has written", .smem = 256 },
	{ "no barrier after a store to shared memory",
	  "__shared__ float s[64];\n"
	  "s[threadIdx.x] = 1; //!\n"
	  "if (threadIdx.x == 40) out[0] = s[40] + s[20]; //!\n", "" },
	{ "no barrier before the next round",
	  "__shared__ float s[64];\n"
	  "for (int i = 0; i < 3; i++) {\n"
	  "	s[threadIdx.x] = i; //!\n"
	  "	__syncthreads();\n"
	  "	out[threadIdx.x] += s[threadIdx.x ^ 33]; //!\n"
	  "}\n", "no barrier between" },
	{ "two threads write one word",
	  "__shared__ int s;\n"
	  "s = threadIdx.x; //!\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = s;\n", "with no barrier between" },
	{ "two threads write one byte of two words",
	  "__shared__ __align__(8) unsigned char s[16];\n"
	  "if (threadIdx.x == 0) *(unsigned *)s = 1; //!\n"
	  "if (threadIdx.x == 1) s[3] = 1; //!\n", "with no barrier between" },
	{ "block reads what its other warp writes",
	  "out[threadIdx.x] = 1; //!\n"
	  "out[n - 1 - threadIdx.x] = out[threadIdx.x ^ 32]; //!\n", "with no barrier between" },
	{ "two blocks write one word",
	  "out[threadIdx.x + blockIdx.x * 63] = 1; //!\n", "writes 4 bytes at out+252 (out+252), which block", 2 },
	{ "block reads what another writes",
	  "if (blockIdx.x == 0) out[threadIdx.x] = 1; //!\n"
	  "else out[64 + threadIdx.x] = out[threadIdx.x]; //!\n", "which block", 2 },
	{ "block reads, others read and it, another writes",
	  "const int t = threadIdx.x;\n"
	  "if (blockIdx.x < 3) { out[128 + 64 * blockIdx.x + t] = out[t] + out[t ^ 32]; __syncthreads(); } //!\n"
	  "if (blockIdx.x == 2) out[63 - t] = 1; //!\n", "which block", 3 },
	{ "lanes without __syncwarp",
	  "__shared__ float s[64];\n"
	  "s[threadIdx.x] = 1; //!\n"
	  "out[threadIdx.x] = s[threadIdx.x ^ 1]; //!\n", "" },
	{ "a shuffle orders no memory",
	  "__shared__ float s[64];\n"
	  "s[threadIdx.x] = 1; //!\n"
	  "float x = __shfl_xor_sync(~0u, 1.f, 16);\n"
	  "out[threadIdx.x] = x + s[threadIdx.x ^ 1]; //!\n", "with no barrier between" },
	{ "__syncwarp of each half",
	  "__shared__ float s[64];\n"
	  "const unsigned half = threadIdx.x & 16 ? 0xffff0000u : 0xffffu;\n"
	  "s[threadIdx.x] = 1; //!\n"
	  "__syncwarp(half);\n"
	  "out[threadIdx.x] = s[threadIdx.x ^ 16]; //!\n", "" },
	{ "__syncwarp between warps",
	  "__shared__ float s[64];\n"
	  "s[threadIdx.x] = 1; //!\n"
	  "__syncwarp();\n"
	  "out[threadIdx.x] = s[threadIdx.x ^ 32]; //!\n", "" },
	{ "reads in order within the warp, not with the other",
	  "__shared__ float s;\n"
	  "if (threadIdx.x == 0) s = 1;\n"
	  "__syncthreads();\n"
	  "float x = threadIdx.x == 40 || threadIdx.x < 2 ? s : 0; //!\n"
	  "__syncwarp();\n"
	  "out[threadIdx.x] = x;\n"
	  "if (threadIdx.x == 0) s = 2; //!\n", "with no barrier between" },
	{ "barrier of one warp",
	  "if (threadIdx.x < 32)\n"
	  "	__syncthreads(); //!\n"
	  "out[threadIdx.x] = 1;\n", "32 of 64 threads have ended, thread 32 first among them: divergent barrier" },
	{ "barrier after an early return",
	  "if (threadIdx.x == 5) return;\n"
	  "__syncthreads(); //!\n", "1 of 64 threads have ended" },
	{ "barrier in each branch",
	  "if (threadIdx.x < 32) {\n"
	  "	out[threadIdx.x] = 1;\n"
	  "	__syncthreads(); //!\n"
	  "} else {\n"
	  "	__syncthreads(); //!\n"
	  "}\n", "divergent barrier" },
	{ "barriers more often for some",
	  "for (int i = 0; i < (threadIdx.x & 1) + 1; i++)\n"
	  "	__syncthreads(); //!\n", "divergent barrier" },
	{ "shuffle from a lane that has ended",
	  "if (threadIdx.x % 32 == 7) return;\n"
	  "out[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 1); //!\n", "lane 7 has ended" },
	{ "mask without the caller",
	  "if (threadIdx.x < 3)\n"
	  "	__syncwarp(3); //!\n", "does not name its own lane 2" },
	{ "shuffle from a lane outside of the mask",
	  "if (threadIdx.x < 4)\n"
	  "	out[threadIdx.x] = __shfl_sync(0xf, 1.f, 4); //!\n", "mask does not name" },
	{ "full mask in half a warp",
	  "out[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 1); //!\n", "beyond the end of the block", .block = 48 },
	{ "lanes at two collectives",
	  "out[threadIdx.x] = threadIdx.x & 1 ? __shfl_xor_sync(~0u, 1.f, 1) //!\n"
	  "	: (float)__ballot_sync(~0u, 1); //!\n", "where other lanes of its warp call" },
	{ "lanes of two sizes",
	  "out[threadIdx.x] = threadIdx.x & 1 ? __shfl_xor_sync(~0u, 1.f, 1) //!\n"
	  "	: __shfl_xor_sync(~0u, 1., 1); //!\n", "8 bytes" },
	{ "lane at a barrier, others at a shuffle",
	  "if (threadIdx.x == 3)\n"
	  "	__syncthreads();\n"
	  "else\n"
	  "	out[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 1); //!\n", "for thread 3, which waits at __syncthreads" },
	{ "lanes that wait for each other",
	  "if (threadIdx.x == 0) __syncwarp(3); //!\n"
	  "if (threadIdx.x == 1) __syncwarp(6); //!\n"
	  "if (threadIdx.x == 2) __syncwarp(5); //!\n", "deadlock" },
	{ "copy read before the wait",
	  "float *s = (float *)dynamic_smem() + 4 * threadIdx.x;\n"
	  "hc_async_copy(s, in + 4 * threadIdx.x, 16, 1);\n"
	  "hc_async_commit();\n"
	  "out[threadIdx.x] = s[1]; //!\n"
	  "hc_async_wait(0);\n", "fills by an asynchronous copy at", .smem = 1024 },
	{ "copy read by another without a barrier",
	  "float *s = (float *)dynamic_smem();\n"
	  "hc_async_copy(s + 4 * threadIdx.x, in, 16, 1); //!\n"
	  "hc_async_commit();\n"
	  "hc_async_wait(0);\n"
	  "if (threadIdx.x == 50) out[0] = s[4]; //!\n", "", .smem = 1024 },
	{ "copy not waited for before the barrier",
	  "float *s = (float *)dynamic_smem();\n"
	  "hc_async_copy(s + 4 * threadIdx.x, in, 16, 1);\n"
	  "hc_async_commit();\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = s[255 - threadIdx.x]; //!\n"
	  "hc_async_wait(0);\n", "not yet waited for", .smem = 1024 },
	{ "copy of the newest group read",
	  "float *s = (float *)dynamic_smem() + 8 * threadIdx.x;\n"
	  "hc_async_copy(s, in, 16, 1);\n"
	  "hc_async_commit();\n"
	  "hc_async_copy(s + 4, in, 16, 1);\n"
	  "hc_async_commit();\n"
	  "hc_async_wait(1);\n"
	  "out[threadIdx.x] = s[0];\n"
	  "out[threadIdx.x] = s[4]; //!\n", "not yet waited for", .smem = 2048 },
	{ "copy without a commit",
	  "float *s = (float *)dynamic_smem() + 4 * threadIdx.x;\n"
	  "hc_async_copy(s, in, 16, 1);\n"
	  "hc_async_wait(0);\n"
	  "out[threadIdx.x] = s[0]; //!\n", "not yet waited for", .smem = 1024 },
	{ "copy over what others still read",
	  "float *s = (float *)dynamic_smem();\n"
	  "for (int i = 0; i < 2; i++) {\n"
	  "	hc_async_copy(s + 4 * threadIdx.x, in, 16, 1); //!\n"
	  "	hc_async_commit();\n"
	  "	hc_async_wait(0);\n"
	  "	__syncthreads();\n"
	  "	out[threadIdx.x] = s[255 - threadIdx.x]; //!\n"
	  "}\n", "", .smem = 1024 },
	{ "copy from out of bounds",
	  "hc_async_copy(dynamic_smem() + 16 * threadIdx.x, in + n, 16, 1); //!\n",
	  "reads 16 bytes out of bounds", .smem = 1024 },
	{ "copy to global memory",
	  "hc_async_copy(out, in, 16, 1); //!\n", "not shared memory" },
	{ "misaligned copy",
	  "hc_async_copy(dynamic_smem() + 16 * threadIdx.x, in + 1, 16, 1); //!\n",
	  "misaligned asynchronous copy", .smem = 1024 },
	{ "division by zero",
	  "out[0] = 7 / ((int)n - N); //!\n", "division by zero" },
	{ "overflow of an index",
	  "out[(int)n * (1 << 20) & 1] = 1; //!\n", "overflow of a signed multiplication" },
	{ "shift beyond the width",
	  "out[0] = 1u << (n >> 7); //!\n", "shift by" },
	{ "trap", "if (threadIdx.x == 3) __trap(); //!\n", "__trap()" },
	{ "plain read of what another block updates",
	  "if (blockIdx.x) atomicAdd((int *)out, 1); //!\n"
	  "else if (threadIdx.x == 0) out[1] = out[0]; //!\n", "which block", 2 },
};

static const Case good[] = {
	{ "sum over a block",
	  "__shared__ float part[2];\n"
	  "float x = in[threadIdx.x];\n"
	  "for (int m = 16; m; m >>= 1) x += __shfl_xor_sync(~0u, x, m);\n"
	  "if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = part[0] + part[1] - 2016 == 0;\n" },
	{ "shuffles",
	  "const int i = threadIdx.x, l = i % 32;\n"
	  "bool ok = __shfl_sync(~0u, i, 5) == i / 32 * 32 + 5 && __shfl_sync(~0u, i, l + 3, 8) == (i & ~7) + ((l + 3) & 7);\n"
	  "ok = ok && __shfl_xor_sync(~0u, 1.5 * i, 6) == 1.5 * (i ^ 6);\n"
	  "ok = ok && __shfl_up_sync(~0u, (unsigned)i, 3) == (l < 3 ? i : i - 3);\n"
	  "ok = ok && __shfl_down_sync(~0u, (float)i, 3) == (l > 28 ? i : i + 3);\n"
	  "ok = ok && __shfl_up_sync(~0u, i, 1, 4) == ((l & 3) == 0 ? i : i - 1);\n"
	  "ok = ok && __shfl_down_sync(~0u, i, 2, 4) == ((l & 3) > 1 ? i : i + 2);\n"
	  "ok = ok && __shfl_xor_sync(~0u, i, 4, 4) == (l & 4 ? i - 4 : i);\n"
	  "out[i] = ok;\n" },
	{ "votes",
	  "const int l = threadIdx.x % 32;\n"
	  "bool ok = __ballot_sync(~0u, l % 3 == 0) == 0x49249249u && __any_sync(~0u, l == 9) && !__any_sync(~0u, l == 32);\n"
	  "ok = ok && __all_sync(~0u, l < 32) && !__all_sync(~0u, l != 4);\n"
	  "if (l >= 16) ok = ok && __ballot_sync(0xffff0000u, l != 20) == 0xffef0000u;\n"
	  "out[threadIdx.x] = ok;\n" },
	{ "masks that overlap",
	  "const int l = threadIdx.x % 32;\n"
	  "int x = 1;\n"
	  "if (l == 0 || l == 1) x = __shfl_sync(3, l + 7, 1) == 8;\n"
	  "if (l == 1 || l == 2) x = x && __shfl_sync(6, l + 7, 2) == 9;\n"
	  "if (l == 1 || l == 2) x = x && __shfl_sync(6, l + 9, 1) == 10;\n"
	  "if (l == 0 || l == 2) x = x && __shfl_sync(5, l, 0) == 0;\n"
	  "out[threadIdx.x] = x;\n" },
	{ "table of a collective stays",
	  "const int l = hc_lane();\n"
	  "struct { long a[8]; } v = {{ l, l * l, 0, 0, 0, 0, 0, -l }};\n"
	  "const unsigned char (*t)[64] = hc_warp(&v, 64, ~0u);\n"
	  "long far = ((const long *)t[31 - l])[7];\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = far == l - 31 && ((const long *)t[3])[1] == 9;\n" },
	{ "lanes ordered by __syncwarp",
	  "__shared__ float s[64];\n"
	  "for (int i = 1; i < 5; i++) {\n"
	  "	s[threadIdx.x] = i;\n"
	  "	__syncwarp();\n"
	  "	out[threadIdx.x] = s[threadIdx.x ^ 31] == i;\n"
	  "	__syncwarp();\n"
	  "}\n" },
	{ "orders go on from lane to lane",
	  "__shared__ float s[64];\n"
	  "const int l = threadIdx.x % 32;\n"
	  "s[threadIdx.x] = 1;\n"
	  "if (l < 2) __syncwarp(3);\n"
	  "if (l == 1 || l == 2) __syncwarp(6);\n"
	  "out[threadIdx.x] = l == 2 ? s[threadIdx.x - 2] + s[threadIdx.x - 1] - 1 : 1;\n" },
	{ "dynamic and static shared memory",
	  "__shared__ float a[64];\n"
	  "float *b = (float *)dynamic_smem();\n"
	  "a[threadIdx.x] = 2;\n"
	  "b[threadIdx.x] = 3;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = a[63 - threadIdx.x] * b[threadIdx.x ^ 32] == 6 && ((long)b & 127) == 0;\n", .smem = 256 },
	{ "much shared memory",
	  "float *b = (float *)dynamic_smem();\n"
	  "for (int i = threadIdx.x; i < 232448 / 4; i += 64) b[i] = 1;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = b[232448 / 4 - 1 - threadIdx.x];\n", .smem = 232448 },
	{ "neighbouring bytes",
	  "__shared__ unsigned char s[64];\n"
	  "((unsigned char *)out)[256 * 4 + threadIdx.x] = 1;\n"
	  "s[threadIdx.x] = threadIdx.x;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = s[63 - threadIdx.x] == 63 - threadIdx.x;\n" },
	{ "words, then bytes, then words",
	  "__shared__ __align__(16) unsigned char s[256];\n"
	  "((unsigned *)s)[threadIdx.x] = 0x01010101;\n"
	  "__syncthreads();\n"
	  "for (int i = 0; i < 4; i++) s[threadIdx.x + 64 * i] += 1;\n"
	  "__syncthreads();\n"
	  "out[threadIdx.x] = ((uint4 *)s)[threadIdx.x / 4].z == 0x02020202;\n" },
	{ "in place, block by block",
	  "float *p = out + blockIdx.x * 64 + threadIdx.x;\n"
	  "*p = *p + in[0];\n"
	  "*p += 1;\n", .grid = 64 },
	{ "exchange through global memory",
	  "float *p = out + 64 * blockIdx.x;\n"
	  "p[threadIdx.x] = in[threadIdx.x];\n"
	  "__syncthreads();\n"
	  "float x = p[threadIdx.x ^ 32];\n"
	  "__syncthreads();\n"
	  "p[threadIdx.x] = x == in[threadIdx.x ^ 32];\n", .grid = 3 },
	{ "some threads end early",
	  "if (threadIdx.x >= 40) { out[threadIdx.x] = 1; return; }\n"
	  "if (threadIdx.x < 32) out[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 1);\n"
	  "else out[threadIdx.x] = __shfl_xor_sync(0xffu, 1.f, 1);\n" },
	{ "half a warp",
	  "const unsigned m = threadIdx.x < 32 ? ~0u : 0xffffu;\n"
	  "out[threadIdx.x] = __shfl_xor_sync(m, threadIdx.x, 1) == (threadIdx.x ^ 1);\n"
	  "__syncthreads();\n", .block = 48 },
	{ "one barrier that the compiler may double",
	  "float x;\n"
	  "if (threadIdx.x & 1) x = sinf(in[threadIdx.x]); else x = 1;\n"
	  "__syncthreads();\n"
	  "for (int i = 0; i < 3; i++) __syncthreads();\n"
	  "if (threadIdx.x & 1) out[threadIdx.x] = x == x; else out[threadIdx.x] = x;\n" },
	{ "constants and local arrays",
	  "static const float table[4] = {1, 2, 3, 4};\n"
	  "float x[8];\n"
	  "for (int i = 0; i < 8; i++) x[i ^ (threadIdx.x & 7)] = table[i & 3];\n"
	  "float *volatile p = x;\n"
	  "out[threadIdx.x] = p[threadIdx.x & 7];\n" },
	{ "asynchronous copies in two stages",
	  "float *s = (float *)dynamic_smem();\n"
	  "const int t = threadIdx.x;\n"
	  "float sum = 0;\n"
	  "hc_async_copy(s + 4 * t, in + 4 * t, 16, 1);\n"
	  "hc_async_commit();\n"
	  "for (int i = 1; i <= 4; i++) {\n"
	  "	hc_async_copy(s + (i & 1) * 256 + 4 * t, in + 256 * i + 4 * t, 16, i < 4);\n"
	  "	hc_async_commit();\n"
	  "	hc_async_wait(1);\n"
	  "	__syncthreads();\n"
	  "	for (int j = 0; j < 4; j++) sum += s[(~i & 1) * 256 + 4 * (63 - t) + j];\n"
	  "	__syncthreads();\n"
	  "}\n"
	  "hc_async_wait(0);\n"
	  "__syncthreads();\n"
	  "sum += s[t];\n"
	  "out[t] = sum == 6168 + 64 * (63 - t);\n", .smem = 2048 },
	{ "atomics of many blocks",
	  "int *c = (int *)out + n - 1;\n"
	  "out[blockIdx.x * 64 + threadIdx.x] = atomicAdd(c, 1) >= 0 && atomicMax(c - 1, 3) <= 3;\n", .grid = 4 },
	{ "mathematics",
	  "bool ok = rsqrtf(4.f) == .5f && __uint_as_float(0x3f800000u) == 1 && fmaf(2, 3, 4) == 10 && __popc(255) == 8;\n"
	  "ok = ok && max(1, 2) == 2 && fminf(1, 2) == 1 && exp2f(3) == 8 && fabsf(-1) == 1 && sqrt(9.) == 3;\n"
	  "out[threadIdx.x] = ok && tanhf(0) == 0 && __float_as_int(1.f) == 0x3f800000 && warpSize == 32;\n" },
	{ "all threads of a block",
	  "__shared__ int s[1024];\n"
	  "s[threadIdx.x] = threadIdx.x;\n"
	  "__syncthreads();\n"
	  "out[blockIdx.x * 1024 + threadIdx.x] =\n"
	  "	s[1023 - threadIdx.x] == 1023 - threadIdx.x && blockDim.x == 1024 && gridDim.x == 2;\n",
	  .grid = 2, .block = 1024 },
};

enum { NFault = sizeof faults / sizeof *faults, NGood = sizeof good / sizeof *good };

static const char head[] = "enum { N = 4096 };\n"
	"extern \"C\" __global__ __launch_bounds__(1024)\n"
	"void k(float *__restrict__ out, const float *__restrict__ in, long n)\n{\n";

static SimtSource
source_of(const Case *c, const char *file)
{
	return (SimtSource){ "k", file, arena_printf(mem, "%s%s}\n", head, c->body) };
}

/* line ends in //! */
static bool
line_marked(const char *text, int line)
{
	const char *end;
	int i;

	for (i = 1; i < line && text; i++) {
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	if (!text || line < 1)
		return false;
	end = strchrnul(text, '\n');
	return end - text > 3 && memcmp(end - 3, "//!", 3) == 0;
}

static bool
launch(Simt *s, SimtKernel *k, const Case *c, SimtFault *f, SimtBytes *b)
{
	HcArg arg[3] = { { .p = out }, { .p = in }, { .i = N } };

	memset(out, 0, N * sizeof *out);
	simt_memory_clear(s);
	simt_memory(s, "out", out, N * sizeof *out, true);
	simt_memory(s, "in", in, N * sizeof *in, false);
	return simt_launch(s, k, c->grid ? c->grid : 1, c->block ? c->block : 64, (size_t)c->smem, 3, arg, f, b);
}

static Simt *
simt_of(unsigned long seed, bool check)
{
	SimtOpts o = { .seed = seed, .check = check };

	return simt_new(&o);
}

static const unsigned long seeds[] = { 0, 1, 77 };
enum { NSeed = sizeof seeds / sizeof *seeds };

/* every case under every seed: why it is not as it should, or "" */

static void
fault_case(Simt *s, SimtKernel *k, const Case *c, const char *text, unsigned long seed, char *why, size_t size)
{
	SimtFault f = {0};

	if (launch(s, k, c, &f, NULL))
		snprintf(why, size, "seed %lu: no report", seed);
	else if (!strstr(f.text, c->want) || !strstr(f.text, "kernel k, block "))
		snprintf(why, size, "seed %lu: %s", seed, f.text);
	else if (!line_marked(text, f.line) || !strstr(f.text, arena_printf(mem, "fault.cu:%d", f.line)))
		snprintf(why, size, "seed %lu: wrong line: %s", seed, f.text);
	else if (getenv("VERBOSE") && seed == 0)
		printf("%s\n", f.text);
}

static void
good_case(Simt *s, SimtKernel *k, const Case *c, unsigned long seed, char *why, size_t size)
{
	SimtFault f = {0};
	int i, n = (c->grid ? c->grid : 1) * (c->block ? c->block : 64);

	if (c->block == 0 && c->grid == 0)
		n = 64;
	if (!launch(s, k, c, &f, NULL)) {
		snprintf(why, size, "seed %lu: %s", seed, f.text);
		return;
	}
	for (i = 0; i < n; i++)
		if (out[i] == 0 && !*why)
			snprintf(why, size, "seed %lu: thread %d computed something else", seed, i);
}

static void
run_cases(const Case *c, int n, bool faulty, bool check)
{
	SimtSource *src = NEWN(mem, SimtSource, n);
	SimtKernel **k = NEWN(mem, SimtKernel *, n);
	char (*why)[600] = arena_alloc(mem, (size_t)n * sizeof *why);
	const char *only = getenv("ONLY");
	Simt *s;
	int i, j;

	for (i = 0; i < n; i++)
		src[i] = source_of(&c[i], "some/where/fault.cu");
	for (j = 0; j < NSeed; j++) {
		s = simt_of(seeds[j], check);
		simt_kernels(s, n, src, k);
		for (i = 0; i < n; i++) {
			if (*why[i] || (only && !strstr(c[i].name, only)))
				continue;
			if (faulty)
				fault_case(s, k[i], &c[i], src[i].text, seeds[j], why[i], sizeof why[i]);
			else
				good_case(s, k[i], &c[i], seeds[j], why[i], sizeof why[i]);
		}
		simt_free(s);
	}
	for (i = 0; i < n; i++)
		verdict(arena_printf(mem, "%s%s: %s", faulty ? "fault" : "right", check ? "" : " unchecked", c[i].name),
		        !*why[i], "%s", why[i]);
}

/* what is not checked is still told: barriers and collectives */
static void
unchecked_faults(void)
{
	static const char *const name[] = { "barrier of one warp", "barrier after an early return",
		"shuffle from a lane that has ended", "lanes that wait for each other" };
	Case some[4];
	int i, n = 0;
	size_t j;

	for (i = 0; i < NFault; i++)
		for (j = 0; j < 4; j++)
			if (strcmp(faults[i].name, name[j]) == 0)
				some[n++] = faults[i];
	run_cases(some, n, true, false);
}

/* bytes */

static void
bytes_are_counted(void)
{
	static const char text[] =
		"struct __align__(16) V { float v[4]; };\n"
		"extern \"C\" __global__ void k(float *out, const float *in, long n)\n{\n"
		"	const int i = blockIdx.x * 32 + threadIdx.x;\n"
		"	V x = ((const V *)in)[i], y = ((const V *)in)[i];\n"    /* 16 bytes, twice */
		"	x.v[0] += in[n - 1] + y.v[1];\n"                        /* each thread, 4 bytes */
		"	((V *)out)[i] = x;\n"
		"	__syncthreads();\n"
		"	((unsigned short *)out)[8 * i] = 1;\n"                  /* 2 bytes again */
		"	out[4 * i + 3] = out[4 * i + 2];\n"
		"}\n";
	Case c = { .grid = 4, .block = 32 };
	Simt *s = simt_of(3, true);
	SimtKernel *k = simt_kernel(s, "k", "bytes.cu", text);
	SimtFault f = {0};
	SimtBytes b;
	int i;

	for (i = 0; i < 2; i++) {
		bool fine = launch(s, k, &c, &f, &b);

		verdict(i ? "bytes of the next launch" : "bytes",
		        fine && b.load_issued == 128 * (16 + 16 + 4 + 4) && b.load_unique == 128 * 16 + 4 + 128 * 4 &&
		        b.store_issued == 128 * (16 + 2 + 4) && b.store_unique == 128 * 16,
		        "%s loads %g %g stores %g %g", f.text, b.load_unique, b.load_issued, b.store_unique,
		        b.store_issued);
	}
	simt_free(s);
}

/* orders */

static const char order_text[] =
	"extern \"C\" __global__ void k(int *out, const float *in, long n)\n{\n"
	"	out[1 + atomicAdd(out, 1)] = blockIdx.x * 64 + threadIdx.x;\n"
	"	__syncthreads();\n"
	"	out[1 + atomicAdd(out, 1)] = blockIdx.x * 64 + threadIdx.x;\n"
	"}\n";

static void
order_of(unsigned long seed, int *order, int n)
{
	SimtOpts o = { .seed = seed, .nworkers = 1 };
	Simt *s = simt_new(&o);
	SimtKernel *k = simt_kernel(s, "k", "order.cu", order_text);
	Case c = { .grid = 4 };
	SimtFault f;

	if (!launch(s, k, &c, &f, NULL))
		die("%s", f.text);
	memcpy(order, out, (size_t)n * sizeof *order);
	simt_free(s);
}

static bool
ascending(const int *o)
{
	int b, i;

	for (b = 0; b < 4; b++)
		for (i = 0; i < 128; i++)
			if (o[1 + b * 128 + i] != b * 64 + i % 64)
				return false;
	return true;
}

static void
orders(void)
{
	enum { M = 513 };
	static int a[M], b[M], c[M], z[M];
	bool twice, halves;

	order_of(0, z, M);
	order_of(1, a, M);
	order_of(1, b, M);
	order_of(2, c, M);
	twice = memcmp(a, b, sizeof a) == 0;
	halves = memcmp(a + 1, a + 65, 64 * sizeof *a) != 0;
	verdict("without a seed the order is ascending", ascending(z), "it is not");
	verdict("a seed gives one order", twice, "two");
	verdict("two seeds give two orders", memcmp(a, c, sizeof a) != 0 && !ascending(a), "one");
	verdict("after a barrier the order is another", halves, "it is the same");
	verdict("blocks are in another order", a[1] / 64 || a[129] / 64 != 1 || a[257] / 64 != 2, "they are not");
}

/* the results of all kernels of good[] do not depend on checks, nor on how
 * many blocks run at a time */
static void
many_blocks(void)
{
	static const char text[] =
		"extern \"C\" __global__ void k(float *out, const float *in, long n)\n{\n"
		"	__shared__ float s[64];\n"
		"	float x = in[threadIdx.x] * blockIdx.x;\n"
		"	for (int i = 0; i < 50; i++) {\n"
		"		s[threadIdx.x] = x;\n"
		"		__syncthreads();\n"
		"		x = s[(threadIdx.x + 1) % 64] + __shfl_xor_sync(~0u, x, 3) * 0.25f;\n"
		"		__syncthreads();\n"
		"	}\n"
		"	out[blockIdx.x * 64 + threadIdx.x] = x;\n"
		"}\n";
	Case c = { .grid = 64 };
	SimtOpts o = {0};
	SimtFault f = {0};
	float *first = NEWN(mem, float, N);
	bool same = true;
	int i;
	Simt *s;

	for (i = 0; i < 4; i++) {
		o.nworkers = i < 3 ? 1 + 2 * i : 0;
		o.check = i == 3;
		o.seed = (unsigned long)i;
		s = simt_new(&o);
		same = launch(s, simt_kernel(s, "k", "many.cu", text), &c, &f, NULL) && same;
		if (i == 0)
			memcpy(first, out, N * sizeof *out);
		same = same && memcmp(first, out, N * sizeof *out) == 0;
		simt_free(s);
	}
	verdict("blocks at a time", same, "%s", f.text[0] ? f.text : "results differ");
}

/* Random programs: each thread of 2 blocks takes its steps from a table, and the
 * checker must report a conflict exactly when vector clocks find one. */

enum { Steps = 8, Threads = 64, Blocks = 2, Bytes = 16 };
enum { OpNone, OpRead = 4, OpWrite = 8, OpBarrier = 12, OpSync };       /* + 0 1 2: size */
typedef struct { uint16_t op, at; uint32_t mask; } Op;  /* at: + 32 in global memory */

static const char program_text[] =
	"struct Op { unsigned short op, at; unsigned mask; };\n"
	"extern \"C\" __global__ void k(float *out, const float *in, long n)\n{\n"
	"	__shared__ __align__(8) unsigned char s[16];\n"
	"	if (threadIdx.x < 16) s[threadIdx.x] = 0;\n"
	"	__syncthreads();\n"
	"	for (int i = 0; i < 8; i++) {\n"
	"		const Op o = ((const Op *)in)[(i * 2 + blockIdx.x) * 64 + threadIdx.x];\n"
	"		volatile void *p = o.at & 32 ? (unsigned char *)out + (o.at & 31) : s + (o.at & 31);\n"
	"		switch (o.op) {\n"
	"		case 4: *(volatile unsigned char *)p; break;\n"
	"		case 5: *(volatile unsigned short *)p; break;\n"
	"		case 6: *(volatile unsigned *)p; break;\n"
	"		case 8: *(volatile unsigned char *)p = 1; break;\n"
	"		case 9: *(volatile unsigned short *)p = 1; break;\n"
	"		case 10: *(volatile unsigned *)p = 1; break;\n"
	"		case 13: __syncwarp(o.mask); break;\n"
	"		}\n"
	"		if (o.op == 12) __syncthreads();\n"
	"	}\n"
	"}\n";

static uint64_t draw_state = 5;

static int
draw(int n)
{
	draw_state = draw_state * 6364136223846793005u + 1442695040888963407u;
	return (int)((draw_state >> 33) % (unsigned)n);
}

static void
program_draw(Op op[Steps][Blocks][Threads], bool parts)
{
	int i, b, t, size, kind, dense = 1 + draw(3), calm = draw(2), bytes = calm ? 4 : Bytes;
	uint32_t mask;

	for (i = 0; i < Steps; i++) {
		kind = calm ? (draw(15) ? 1 + draw(2) : 0) : draw(3);
		mask = parts && draw(2) ? (uint32_t)draw(1 << 16) << 16 | (uint32_t)draw(1 << 16) : 0xffffffff;
		for (b = 0; b < Blocks; b++)
			for (t = 0; t < Threads; t++) {
				Op *o = &op[i][b][t];

				size = draw(3);
				*o = (Op){ OpNone, 0, 0 };
				if (kind == 0 && i) {
					o->op = OpBarrier;
				} else if (kind == 1) {
					o->op = OpSync;
					o->mask = mask >> t % 32 & 1 ? mask : ~mask;
				} else if (draw(Threads) < dense) {
					o->op = (uint16_t)((draw(calm ? 12 : 3) ? OpRead : OpWrite) + size);
					o->at = (uint16_t)((draw(bytes >> size) << size) + (draw(9) ? 0 : 32));
				}
			}
	}
}

/* met: up to which step of each thread it knew all, at the access */
typedef struct { int block, thread, step, lo, hi; bool write; int met[Threads]; } Access;

static bool
races(const Access *a, const Access *b)
{
	if (a->hi <= b->lo || b->hi <= a->lo || !(a->write || b->write))
		return false;
	if (a->block != b->block)
		return a->lo >= 32;
	return a->thread != b->thread && b->met[a->thread] < a->step && a->met[b->thread] < b->step;
}

/* each thread learns what all that it meets know */
static void
join(int to[Threads][Threads], int from[Threads][Threads], const Op *o, bool all)
{
	int t, u, v;

	for (t = 0; t < Threads; t++)
		for (u = 0; u < Threads; u++) {
			if (!all && (t / 32 != u / 32 || !(o[t].mask >> u % 32 & 1)))
				continue;
			for (v = 0; v < Threads; v++)
				to[t][v] = from[u][v] > to[t][v] ? from[u][v] : to[t][v];
		}
}

static bool
program_races(Op op[Steps][Blocks][Threads])
{
	static Access a[Steps * Blocks * Threads];
	int met[Threads][Threads], next[Threads][Threads], n = 0, i, j, b, t;
	const Op *o;

	for (b = 0; b < Blocks; b++) {
		memset(met, 0, sizeof met);
		for (i = 0; i < Steps; i++) {
			o = op[i][b];
			for (t = 0; t < Threads; t++)
				met[t][t] = i + 1;
			if (o[0].op == OpBarrier || o[0].op == OpSync) {
				memcpy(next, met, sizeof met);
				join(next, met, o, o[0].op == OpBarrier);
				memcpy(met, next, sizeof met);
				continue;
			}
			for (t = 0; t < Threads; t++) {
				if (o[t].op == OpNone)
					continue;
				a[n] = (Access){ .block = b, .thread = t, .step = i + 1, .lo = o[t].at,
				                 .hi = o[t].at + (1 << (o[t].op & 3)), .write = o[t].op >= OpWrite };
				memcpy(a[n].met, met[t], sizeof a[n].met);
				for (j = 0; j < n; j++)
					if (races(&a[j], &a[n]))
						return true;
				n++;
			}
		}
	}
	return false;
}

static void
random_programs(bool parts)
{
	enum { Programs = 3000 };
	Op (*op)[Blocks][Threads] = (void *)in;
	int i, wrong = 0, missed = 0, racy = 0;
	char first[500] = "";
	SimtKernel *k;
	Case c = { .grid = Blocks };
	float *keep = NEWN(mem, float, N);
	bool race, fine;
	SimtFault f;
	Simt *s = simt_of(9, true);

	memcpy(keep, in, N * sizeof *in);
	k = simt_kernel(s, "k", "program.cu", program_text);
	for (i = 0; i < Programs; i++) {
		program_draw(op, parts);
		race = program_races(op);
		f.text[0] = 0;
		fine = launch(s, k, &c, &f, NULL);
		racy += race;
		missed += race && fine;
		wrong += !race && !fine;
		if (race == fine && !*first)
			snprintf(first, sizeof first, "program %d: %s", i, fine ? "missed" : f.text);
	}
	memcpy(in, keep, N * sizeof *in);
	simt_free(s);
	verdict(parts ? "random programs, partial masks" : "random programs", !wrong && !missed &&
	        racy > Programs / 5 && racy < Programs * 4 / 5,
	        "of %d racy ones of %d, %d missed; %d wrongly reported; %s", racy, Programs, missed, wrong, first);
}

/* messages */

static void
lines_of_calls(void)
{
	static const char text[] =
		"__device__ __forceinline__ float load(const float *p, int i)\n{\n"
		"	return p[i];\n"
		"}\n"
		"static __device__ float twice(const float *p, int i) { return 2 * load(p, i); }\n"
		"extern \"C\" __global__ void k(float *out, const float *in, long n)\n{\n"
		"	out[0] = 1;\n"
		"	out[1] = twice(in, n); //!\n"
		"}\n";
	Simt *s = simt_of(0, true);
	Case c = { .block = 1 };
	SimtFault f = {0};
	bool fine = launch(s, simt_kernel(s, "k", "a/fault.cu", text), &c, &f, NULL);

	verdict("the line of a fault is the kernel's", !fine && f.line == 9 && strcmp(f.kernel, "k") == 0 &&
	        strstr(f.text, "fault.cu:9 (in load, line 3)"), "%s", f.text);
	simt_free(s);
}

static void
refused(void)
{
	static const char text[] = "extern \"C\" __global__ void k(float *out, const float *in, long n)\n"
		"{ __shared__ volatile float s[8]; s[0] = n; out[0] = s[0]; }\n";
	Simt *s = simt_of(0, false);
	SimtKernel *k = simt_kernel(s, "k", "k.cu", text);
	HcArg arg[4] = { { .p = out }, { .p = in }, { .i = N } };
	SimtFault f;

	verdict("static shared memory is known", simt_static_smem(k) == 32, "%zu", simt_static_smem(k));
	verdict("too many arguments", !simt_launch(s, k, 1, 1, 0, 4, arg, &f, NULL) &&
	        strstr(f.text, "4 arguments for 3 parameters"), "%s", f.text);
	verdict("too many threads", !simt_launch(s, k, 1, 1025, 0, 3, arg, &f, NULL) &&
	        strstr(f.text, "1025 threads"), "%s", f.text);
	verdict("too much shared memory", !simt_launch(s, k, 1, 1, 232417, 3, arg, &f, NULL) &&
	        strstr(f.text, "232449 bytes"), "%s", f.text);
	verdict("no blocks", !simt_launch(s, k, 0, 1, 0, 3, arg, &f, NULL), "%s", f.text);
	verdict("just as much shared memory", simt_launch(s, k, 1, 1, 232416, 3, arg, &f, NULL), "%s", f.text);
	simt_free(s);
}

/* Exit code and standard error of fn in a child. */
static int
in_child(void (*fn)(void), char *said, size_t size)
{
	int p[2], status;
	ssize_t n;
	size_t have = 0;
	pid_t pid;

	fflush(NULL);
	if (pipe(p) != 0 || (pid = fork()) < 0)
		die("pipe, fork: %s", strerror(errno));
	if (pid == 0) {
		dup2(p[1], 2);
		close(p[0]);
		fn();
		_exit(0);
	}
	close(p[1]);
	while ((n = read(p[0], said + have, size - 1 - have)) > 0)
		have += (size_t)n;
	said[have] = 0;
	close(p[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
compile_nonsense(void)
{
	Simt *s = simt_of(0, false);

	simt_kernel(s, "k", "out/nonsense.cu", "extern \"C\" __global__ void k(float *out)\n{\n\tout[0] = one;\n}\n");
}

static void
compile_int(void)
{
	Simt *s = simt_of(0, false);

	simt_kernel(s, "k", "int.cu", "extern \"C\" __global__ void k(float *out, int n)\n{\n\tout[0] = n;\n}\n");
}

static void
without_compiler(void)
{
	setenv("PATH", "/nowhere", 1);
	simt_of(0, false);
}

static void
messages(void)
{
	static char said[20000];
	int rc = in_child(compile_nonsense, said, sizeof said);

	verdict("a text that does not compile", rc == EX_ENV && strstr(said, "out/nonsense.cu:3:") &&
	        strstr(said, "out/nonsense.cu does not compile"), "%d %s", rc, said);
	rc = in_child(compile_int, said, sizeof said);
	verdict("a parameter of 4 bytes", rc == EX_ENV && strstr(said, "parameters of a kernel are"), "%d %s", rc, said);
	rc = in_child(without_compiler, said, sizeof said);
	verdict("no compiler", rc == EX_ENV && strstr(said, "g++ was not found"), "%d %s", rc, said);
}

/* speed */

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char norm_text[] =
	"typedef unsigned short bf16;\n"
	"struct __align__(16) bf16x8 { bf16 v[8]; };\n"
	"__device__ __forceinline__ float F32(bf16 x) { return __uint_as_float((unsigned)x << 16); }\n"
	"extern \"C\" __global__ __launch_bounds__(96)\n"
	"void norm(bf16 *__restrict__ y, const bf16 *__restrict__ x)\n{\n"
	"	__shared__ float part[3];\n"
	"	const long i = blockIdx.x * 768L + threadIdx.x * 8;\n"
	"	const bf16x8 h = *(const bf16x8 *)(x + i);\n"
	"	bf16x8 o;\n"
	"	float s = 0;\n"
	"	for (int c = 0; c < 8; c++) s = fmaf(F32(h.v[c]), F32(h.v[c]), s);\n"
	"	for (int m = 16; m; m >>= 1) s += __shfl_xor_sync(~0u, s, m);\n"
	"	if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;\n"
	"	__syncthreads();\n"
	"	const float r = rsqrtf((part[0] + part[1] + part[2]) / 768 + 1e-6f);\n"
	"	for (int c = 0; c < 8; c++) o.v[c] = __float_as_uint(F32(h.v[c]) * r) >> 16;\n"
	"	*(bf16x8 *)(y + i) = o;\n"
	"}\n";

static void
measure(void)
{
	enum { T = 4000 };
	uint16_t *x = arena_alloc(mem, T * 768 * 2 + 256), *y = arena_alloc(mem, T * 768 * 2 + 256);
	HcArg arg[2] = { { .p = (void *)(((uintptr_t)y + 255) & ~255ul) }, { .p = (void *)(((uintptr_t)x + 255) & ~255ul) } };
	double t, best;
	SimtFault f;
	SimtBytes b;
	int check, i;
	Simt *s;
	SimtKernel *k;

	for (check = 0; check < 2; check++) {
		SimtOpts o = { .check = check, .nworkers = 1 };

		s = simt_new(&o);
		t = seconds();
		k = simt_kernel(s, "norm", "norm.cu", norm_text);
		printf("%s: ready in %.3f s", check ? "checked" : "unchecked", seconds() - t);
		simt_memory(s, "y", arg[0].p, T * 768 * 2, true);
		simt_memory(s, "x", arg[1].p, T * 768 * 2, false);
		for (i = 0, best = 1e9; i < 9; i++) {
			t = seconds();
			if (!simt_launch(s, k, T, 96, 0, 2, arg, &f, &b))
				die("%s", f.text);
			t = (seconds() - t) / T;
			best = t < best ? t : best;
		}
		/* 5 shuffles, of which 31 lanes of 32 wait, and a barrier */
		printf("; a row of 768 on 96 threads %.2f us, %.1f ns per switch and all between\n", best * 1e6,
		       best * 1e9 / (96 * (5 * 31 / 32. + 1)));
		simt_free(s);
	}
}

int
main(int argc, char **argv)
{
	char cache[] = "/tmp/simt_test.XXXXXX";
	float *memory;
	int i;

	if (simt_missing()) {
		printf("skip simt %s\n", simt_missing());
		return 0;
	}
	if (!getenv("HCGEN_CACHE") && mkdtemp(cache))
		setenv("HCGEN_CACHE", cache, 1);
	mem = arena_new("simt_test");
	memory = aligned_alloc(4096, 5 * N * sizeof *memory);
	in = memory + N;        /* so that what is before and behind is nobody's */
	out = memory + 3 * N;
	for (i = 0; i < N; i++)
		in[i] = (float)i;
	if (argc > 1 && strcmp(argv[1], "bench") == 0) {
		measure();
		return 0;
	}
	run_cases(good, NGood, false, true);
	run_cases(good, NGood, false, false);
	run_cases(faults, NFault, true, true);
	unchecked_faults();
	bytes_are_counted();
	orders();
	many_blocks();
	random_programs(false);
	random_programs(true);
	lines_of_calls();
	refused();
	messages();
	arena_free(mem);
	free(memory);
	return failures != 0;
}
