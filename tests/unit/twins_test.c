/* The twins of the intrinsics, the shim's shuffles and votes, and the executor
 * under them: the kernels of tests/gpu/intrinsics run by simt against the same
 * computed here in plain C from the definitions, in several orders of threads;
 * kernels that break a rule must fault; goldens of a device, where recorded,
 * against the twins. */
#define _GNU_SOURCE
#include "../../runtime/simt.h"
#include "../gpu/intrinsics.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;

static void verdict(bool good, const char *name, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

static void
verdict(bool good, const char *name, const char *fmt, ...)
{
	va_list ap;

	failures += !good;
	printf("%s %s", good ? "ok" : "FAIL", name);
	if (!good) {
		putchar(' ');
		va_start(ap, fmt);
		vprintf(fmt, ap);
		va_end(ap);
	}
	putchar('\n');
	fflush(stdout);
}

/* kernels */

static char *
file_text(const char *path)
{
	FILE *f = fopen(path, "r");
	char *s = NULL;
	size_t n = 0;

	if (!f || getdelim(&s, &n, 0, f) < 0) {
		printf("FAIL read %s: %s\n", path, strerror(errno));
		exit(1);
	}
	fclose(f);
	return s;
}

/* Behind the intrinsics: they are one file, whose chunk marks are comments. */
static char *
with_prelude(const char *kernel)
{
	char *prelude = file_text("templates/cuda/prelude_2intrin.cuh"), *s;

	if (asprintf(&s, "%s\n%s", prelude, kernel) < 0)
		abort();
	free(prelude);
	return s;
}

/* Runs a text that defines try_NAME; out is written over with a pattern first. */
static bool
run_text(const char *name, const char *text, const Intrinsic *t, unsigned long seed,
         const uint32_t *in, uint32_t *out, SimtFault *f)
{
	Simt *s = simt_new(&(SimtOpts){ .seed = seed, .check = true });
	char *full = with_prelude(text), kernel[100];
	HcArg arg[3] = { { .p = out }, { .p = (void *)in }, { .i = t->n } };
	SimtKernel *k;
	bool good;

	snprintf(kernel, sizeof kernel, "try_%s", name);
	memset(out, 0xa5, (size_t)t->nout * 4);
	simt_memory(s, "in", (void *)in, (size_t)t->nin * 4, false);
	simt_memory(s, "out", out, (size_t)t->nout * 4, true);
	k = simt_kernel(s, kernel, name, full);
	good = simt_launch(s, k, t->grid, t->threads, t->smem, 3, arg, f, NULL);
	simt_free(s);
	free(full);
	return good;
}

static bool
run_intrinsic(const Intrinsic *t, unsigned long seed, const uint32_t *in, uint32_t *out,
              char err[500])
{
	char path[200], *text;
	SimtFault f;
	bool good;

	snprintf(path, sizeof path, "tests/gpu/intrinsics/%s.cu", t->text);
	text = file_text(path);
	good = run_text(t->text, text, t, seed, in, out, &f);
	if (!good)
		snprintf(err, 500, "seed %lu: fault in block %ld thread %d line %d: %s", seed,
		         f.block, f.thread, f.line, f.text);
	free(text);
	return good;
}

/* what is expected, by the definitions */

/* The fragments of a warp as matrices: PTX's table from register to element. */
static void
matrices(const uint32_t *in, double A[16][16], double B[16][8], double C[16][8])
{
	int l, i, g, t;

	for (l = 0; l < 32; l++, in += 10) {
		g = l / 4;
		t = l % 4;
		for (i = 0; i < 8; i++)
			A[i < 2 || (i >= 4 && i < 6) ? g : g + 8][2 * t + (i & 1) + (i < 4 ? 0 : 8)] =
			        bf16_at(in, i);
		for (i = 0; i < 4; i++)
			B[2 * t + (i & 1) + (i < 2 ? 0 : 8)][g] = bf16_at(in + 4, i);
		for (i = 0; i < 4; i++)
			C[i < 2 ? g : g + 8][2 * t + (i & 1)] = bits_float(in[6 + i]);
	}
}

static void
want_mma(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	double A[16][16], B[16][8], C[16][8];
	long w, o;
	int row, col, k;
	long double s;

	for (w = 0; w < t->n; w++) {
		matrices(in + 320 * w, A, B, C);
		for (o = 0; o < 128; o++) {
			row = (int)(o / 16 + o % 4 / 2 * 8);
			col = (int)(o / 4 % 4 * 2 + o % 2);
			s = 0;
			for (k = 15; k >= 0; k--)
				s += A[row][k] * B[k][col];
			out[128 * w + o] = float_bits((float)(s + C[row][col]));
		}
	}
}

/* element [row][col] of matrix m, whose rows lie where its lanes say */
static uint32_t
matrix_element(const uint32_t *in, long warp, int m, int row, int col)
{
	const uint32_t *p = in + 4 * in[128 + 32 * warp + 8 * m + row];

	return col % 2 ? p[col / 2] >> 16 : p[col / 2] & 0xffff;
}

static void
want_ldmatrix(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	int n = strstr(t->name, "x4") ? 4 : 2, m, l, a, b;
	bool trans = strstr(t->name, "trans");
	long w;

	for (w = 0; w < 4; w++)
		for (l = 0; l < 32; l++)
			for (m = 0; m < n; m++) {
				a = l / 4;
				b = 2 * (l % 4);
				*out++ = trans ? matrix_element(in, w, m, b, a) |
				                 matrix_element(in, w, m, b + 1, a) << 16 :
				                 matrix_element(in, w, m, a, b) |
				                 matrix_element(in, w, m, a, b + 1) << 16;
			}
}

static void
want_matmul(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	int r, i, j, k;
	double s;

	for (r = 0; r < t->n; r++)
		for (i = 0; i < 16; i++)
			for (j = 0; j < 8; j++) {
				for (s = 0, k = 0; k < 16; k++)
					s += bf16_at(in, 16 * i + k) * bf16_at(in + 128, 8 * k + j);
				*out++ = float_bits((float)s);
			}
}

static void
want_cp_async(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	long i, j;

	(void)t;
	for (i = 0; i < 192; i++)
		for (j = 0; j < 4; j++)
			*out++ = in[i ^ 1] ? in[192 + 4 * (i ^ 1) + j] : 0;
}

/* the bf16 nearest x, of the two around it, the even one of equally near ones */
static uint32_t
nearest_bf16(float x)
{
	uint32_t down = float_bits(x) >> 16, up = down + 1;
	double below = bits_float(down << 16), above = bits_float(up << 16);

	if (isnan(x))
		return 0x7fff;
	if (isinf(x))
		return down;
	if (isinf(above))               /* as if exponents went on */
		above = copysign(0x1p128, x);
	if (fabs(x - below) == fabs(above - x))
		return down % 2 ? up : down;
	return fabs(x - below) < fabs(above - x) ? down : up;
}

static void
want_pack(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	long i;

	for (i = 0; i < t->n; i++)
		out[i] = nearest_bf16(bits_float(in[2 * i])) | nearest_bf16(bits_float(in[2 * i + 1])) << 16;
}

/* the finite number of all that is nearest to x; of two the even one */
static uint32_t
nearest_fp8(float x, int nexp)
{
	int most = nexp == 4 ? 0x7e : 0x7b, code, best = 0;
	double off, least = HUGE_VAL;

	if (isnan(x))
		return 0x7f;
	for (code = 0; code <= most; code++) {
		off = fabs((double)fminf(fabsf(x), 1e6f) - fp8_value(code, nexp));
		if (off < least || (off == least && code % 2 == 0)) {
			least = off;
			best = code;
		}
	}
	return (uint32_t)best | (signbit(x) ? 0x80u : 0);
}

static void
want_pack_fp8(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	float lo, hi;
	long i;

	for (i = 0; i < t->n; i++) {
		lo = bits_float(in[2 * i]);
		hi = bits_float(in[2 * i + 1]);
		out[2 * i] = out[2 * i + 1] = nearest_fp8(lo, 4) | nearest_fp8(hi, 4) << 8 |
		                              nearest_fp8(lo, 5) << 16 | nearest_fp8(hi, 5) << 24;
	}
}

static float
flushed(float x)
{
	return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static void
want_exp2(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	long i;

	for (i = 0; i < t->n; i++)
		out[i] = float_bits(flushed((float)exp2(flushed(bits_float(in[i])))));
}

static void
want_log2(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	long i;

	for (i = 0; i < t->n; i++)
		out[i] = float_bits((float)log2(flushed(bits_float(in[i]))));
}

static void
want_stream(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	long i, j;

	for (i = 0; i < t->n; i++)
		for (j = 0; j < 4; j++)
			out[4 * i + j] = in[4 * i + (j + 1) % 4];
}

static void
want_dynamic_smem(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	long b, i;

	for (b = 0; b < t->grid; b++) {
		for (i = 0; i < t->n; i++)
			out[b * t->n + i] = in[b * t->n + t->n - 1 - i];
		out[t->grid * t->n + b] = 0;
	}
}

/* The lane a shuffle reads, by the CUDA guide: up and down stay in the segment
 * of w lanes, xor may reach an earlier one but no later one, idx is modulo w. */
static int
source_lane(int form, int lane, int asked, int w)
{
	int base = lane / w * w, end = base + w;
	static const int step[] = { 0, 0, 1, 3, 1, 3, 1, 5 };
	int to = form < 4 ? lane - step[form] : form < 6 ? lane + step[form] : lane ^ step[form];

	if (form < 2)
		return base + ((form ? asked : 5) % w + w) % w;
	if (form < 4)
		return to < base ? lane : to;
	return to >= end ? lane : to;
}

static void
want_shuffle(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	int k, form, l;

	for (k = 0; k < t->n; k++)
		for (form = 0; form < 8; form++)
			for (l = 0; l < 32; l++)
				*out++ = in[source_lane(form, l, (int32_t)in[32 + l], 32 >> k)];
}

static void
want_shuffle_double(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	int form, l, from;

	(void)t;
	for (form = 0; form < 4; form++)
		for (l = 0; l < 32; l++) {
			from = form == 0 ? 7 : form == 1 ? (l < 2 ? l : l - 2) :
			       form == 2 ? (l > 29 ? l : l + 2) : l < 16 ? l + 16 : l - 16;
			*out++ = in[2 * from];
			*out++ = in[2 * from + 1];
		}
}

static void
want_vote(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	uint32_t all, halves, sum[2];
	long w;
	int l;

	for (w = 0; w < t->n; w++, in += 32) {
		all = halves = sum[0] = sum[1] = 0;
		for (l = 0; l < 32; l++) {
			all |= (uint32_t)(in[l] != 0) << l;
			halves |= (uint32_t)(l < 16 ? in[l] % 2 : in[l] / 2 % 2) << l;
			sum[l / 16] += in[l];
		}
		for (l = 0; l < 32; l++) {
			*out++ = all;
			*out++ = all != 0;
			*out++ = all == 0xffffffff;
			*out++ = l < 16 ? halves & 0xffff : halves & 0xffff0000;
			*out++ = sum[l / 16] + (l % 16 == 0 && sum[l / 16] % 2);
		}
	}
}

static void
want_warp_max(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	float m, x;
	long w;
	int l;

	for (w = 0; w < t->n; w++) {
		for (m = -INFINITY, l = 0; l < 32; l++) {
			x = bits_float(in[32 * w + l]);
			m = x > m ? x : m;
		}
		for (l = 0; l < 32; l++)
			*out++ = float_bits(m);
	}
}

static const struct {
	const char *text;
	void (*fn)(const Intrinsic *t, const uint32_t *in, uint32_t *out);
} wants[] = {
	{ "mma", want_mma }, { "ldmatrix_x4", want_ldmatrix }, { "ldmatrix_x4_trans", want_ldmatrix },
	{ "ldmatrix_x2", want_ldmatrix }, { "ldmatrix_x2_trans", want_ldmatrix },
	{ "matmul", want_matmul }, { "cp_async", want_cp_async }, { "pack_bf16x2", want_pack },
	{ "pack_fp8", want_pack_fp8 },
	{ "exp2_approx", want_exp2 }, { "log2_approx", want_log2 }, { "stream", want_stream },
	{ "dynamic_smem", want_dynamic_smem }, { "shuffle", want_shuffle },
	{ "shuffle_double", want_shuffle_double }, { "vote", want_vote }, { "warp_max", want_warp_max },
};

static void
want(const Intrinsic *t, const uint32_t *in, uint32_t *out)
{
	size_t i;

	for (i = 0; i < sizeof wants / sizeof *wants; i++)
		if (strcmp(wants[i].text, t->text) == 0) {
			wants[i].fn(t, in, out);
			return;
		}
	printf("FAIL %s is not tested\n", t->text);
	exit(1);
}

/* The twins promise more than a device: exact where that is exact; else the true
 * value, rounded once; approximations within 1 ulp of that. */
static bool
twin_near(const Intrinsic *t, const uint32_t *got, const uint32_t *expected, char err[500])
{
	int64_t slack = t->near == NearExact || t->near == NearMma ? 0 : 1;
	float g, e;
	long i;

	for (i = 0; i < t->nout; i++) {
		g = bits_float(got[i]);
		e = bits_float(expected[i]);
		if (got[i] == expected[i] || (t->near != NearExact && isnan(g) && isnan(e)))
			continue;
		if (t->near != NearExact && isfinite(g) && isfinite(e) && ulps(g, e) <= slack)
			continue;
		snprintf(err, 500, "word %ld is %08" PRIx32 " (%g), not %08" PRIx32 " (%g)", i, got[i],
		         (double)g, expected[i], (double)e);
		return false;
	}
	return true;
}

/* One row of the table, in three orders of threads; out is the last one's. */
static void
test_intrinsic(const Intrinsic *t, uint32_t *in, uint32_t *out)
{
	uint32_t *expected = malloc((size_t)t->nout * 4);
	char err[500] = "";
	unsigned long seed;
	bool good = true;

	want(t, in, expected);
	for (seed = 1; seed <= 3 && good; seed++)
		good = run_intrinsic(t, seed, in, out, err) && twin_near(t, out, expected, err);
	verdict(good, t->name, "%s", err);
	free(expected);
}

/* A[i][k] = 2 and B[k][j] = 3 alone not zero, C[r][c] = 8 r + c. */
static void
one_hot(uint32_t *p, int i, int k, int j)
{
	uint32_t two = 0x4000, three = 0x4040;
	int l, e;

	for (l = 0; l < 32; l++)
		for (e = 0; e < 4; e++)
			p[10 * l + 6 + e] = float_bits((float)(8 * (l / 4 + e / 2 * 8) + 2 * (l % 4) + e % 2));
	p[10 * (i % 8 * 4 + k % 8 / 2) + i / 8 + k / 8 * 2] = two << 16 * (k % 2);
	p[10 * (j * 4 + k % 8 / 2) + 4 + k / 8] = three << 16 * (k % 2);
}

/* One product for each i, k, j: whatever goes to a wrong place shows. */
static void
test_one_hot(void)
{
	static const Intrinsic t = {
		"mma_one_hot", "mma", 128, 512, 2048, 2048 * 320, 2048 * 128, 0, NULL, NearExact
	};
	uint32_t *in = calloc((size_t)t.nin, 4), *out = malloc((size_t)t.nout * 4), want6;
	int w, i, k, j, bad = -1;

	for (w = 0; w < t.n; w++)
		one_hot(in + 320 * w, w / 128, w / 8 % 16, w % 8);
	test_intrinsic(&t, in, out);
	for (w = 0; w < t.n && bad < 0; w++) {
		i = w / 128;
		j = w % 8;
		want6 = float_bits((float)(8 * i + j + 6));
		if (out[128 * w + i % 8 * 16 + j / 2 * 4 + i / 8 * 2 + j % 2] != want6)
			bad = w;
	}
	k = bad / 8 % 16;
	verdict(bad < 0, "mma_one_hot_place", "row %d, k %d, column %d", bad / 128, k, bad % 8);
	free(in);
	free(out);
}

/* goldens */

/* The comparison itself: with a golden made here, as it is and damaged. */
static void
test_golden_check(const Intrinsic *t, const uint32_t *in, const uint32_t *out)
{
	char dir[] = "/tmp/twins_test.XXXXXX", path[200], err[200] = "", name[100];
	uint32_t *bad = malloc((size_t)t->nout * 4), *stale = malloc((size_t)t->nin * 4);
	long at = t->nout / 2;
	int absent, same, wrong, old, cut;
	bool finite;

	memcpy(bad, out, (size_t)t->nout * 4);
	memcpy(stale, in, (size_t)t->nin * 4);
	stale[t->nin / 3] ^= 1;
	while (!(finite = isfinite(bits_float(out[at]))) && at + 1 < t->nout)
		at++;
	bad[at] ^= t->near == NearExact ? 1 : 1u << 13;
	if (!mkdtemp(dir))
		abort();
	snprintf(path, sizeof path, "%s/%s.txt", dir, t->name);
	absent = golden_check(dir, t, in, out, err);
	golden_write(dir, t, "this", in, out);
	same = golden_check(dir, t, in, out, err);
	old = golden_check(dir, t, stale, out, err);
	if (truncate(path, 150) != 0)
		abort();
	cut = golden_check(dir, t, in, out, err);
	golden_write(dir, t, "this", in, bad);
	wrong = golden_check(dir, t, in, out, err);
	unlink(path);
	rmdir(dir);
	snprintf(name, sizeof name, "golden_check_%s", t->name);
	verdict(finite && absent == 0 && same == 1 && old == -1 && cut == -1 && wrong == -1, name,
	        "absent %d same %d stale %d cut %d wrong %d %s", absent, same, old, cut, wrong, err);
	free(bad);
	free(stale);
}

/* got against expected, of the first word, for words in */
static bool
allowed(int near, const uint32_t *in, float got, float expected)
{
	const Intrinsic t = { .nout = 1, .near = near };
	uint32_t g = float_bits(got), e = float_bits(expected);
	char err[200];

	return intrinsic_near(&t, in, &g, &e, err);
}

/* Each tolerance: just inside passes, just outside does not. */
static void
test_tolerances(void)
{
	uint32_t in[320] = { 0 }, inside = float_bits(1.5f), outside = float_bits(1024);
	int i;

	verdict(allowed(NearExact, in, 1, 1) && !allowed(NearExact, in, 0, -0.f), "tolerance_exact", " ");
	verdict(allowed(NearExp2, in, 1 + 3 * 0x1p-23f, 1) && !allowed(NearExp2, in, 1 + 4 * 0x1p-23f, 1) &&
	        allowed(NearExp2, in, NAN, -NAN) && !allowed(NearExp2, in, NAN, 1) &&
	        !allowed(NearExp2, in, INFINITY, 0x1.fffffep127f), "tolerance_exp2", " ");
	verdict(allowed(NearLog2, &inside, 0.5f + 0x1p-22f, 0.5f) &&
	        !allowed(NearLog2, &inside, 0.5f + 0x1.8p-22f, 0.5f) &&
	        allowed(NearLog2, &outside, 10 + 3 * 0x1p-20f, 10) &&
	        !allowed(NearLog2, &outside, 10 + 4 * 0x1p-20f, 10), "tolerance_log2", " ");
	/* C[0][0] = -2, A[0][..] = B[..][0] = 1: D[0][0] = 14, S = 18 */
	in[6] = float_bits(-2);
	for (i = 0; i < 4; i++)
		in[10 * i] = in[10 * i + 2] = in[10 * i + 4] = in[10 * i + 5] = 0x3f803f80;
	verdict(mma_magnitude(in, 0) == 18 && allowed(NearMma, in, 14 + 17 * 0x1p-18f, 14) &&
	        !allowed(NearMma, in, 14 + 19 * 0x1p-18f, 14), "tolerance_mma", "S = %g", mma_magnitude(in, 0));
}

/* rules broken */

static const struct { const char *name, *says, *text; } faults[] = {
	{ "ldmatrix_misaligned", "aligned",
	  "__shared__ __align__(16) unsigned short s[1024]; unsigned r[4];"
	  "for (int i = l; i < 1024; i += 32) s[i] = (unsigned short)in[i % 64];"
	  "__syncthreads(); ldmatrix_x4(r, s + 8 * l + (l == 13)); out[l] = r[0];" },
	{ "cp_async_misaligned_shared", "aligned",
	  "__shared__ __align__(16) unsigned s[132];"
	  "cp_async16(s + 4 * l + 1, in, true); cp_async_commit(); cp_async_wait0(); out[l] = s[4 * l + 1];" },
	{ "cp_async_misaligned_global", "aligned",
	  "__shared__ __align__(16) unsigned s[128];"
	  "cp_async16(s + 4 * l, in + 2, true); cp_async_commit(); cp_async_wait0(); out[l] = s[4 * l];" },
	{ "cp_async_outside", "",
	  "__shared__ __align__(16) unsigned s[128];"
	  "cp_async16(s + 4 * l, in + 4 * l, true); cp_async_commit(); cp_async_wait0(); out[l] = s[4 * l];" },
	{ "stream_misaligned_load", "aligned", "out[l] = ld_stream16(in + 3).v[0];" },
	{ "stream_misaligned_store", "aligned", "uint4x x = {}; if (l == 0) st_stream16(out + 3, x);" },
	{ "stream_outside", "", "out[l] = ld_stream16(in + 4 * l).v[0];" },
	{ "ldmatrix_divergent", "",
	  "__shared__ __align__(16) unsigned s[128]; unsigned r[4];"
	  "for (int i = l; i < 128; i += 32) s[i] = in[i % 64];\n"
	  "__syncthreads();\n"
	  "if (l < 16) ldmatrix_x4(r, s + 4 * l);\n"
	  "else ldmatrix_x4_trans(r, s + 4 * l);\n"
	  "out[l] = r[0];" },
	{ "mma_divergent", "",
	  "unsigned a[4] = {}, b[2] = {}; float d[4] = {};\n"
	  "if (l % 2) mma_m16n8k16_bf16(d, a, b);\n"
	  "else\n mma_m16n8k16_bf16(d, a, b);\n"
	  "out[l] = __float_as_uint(d[0]);" },
	{ "mma_half_warp", "",
	  "unsigned a[4] = {}, b[2] = {}; float d[4] = {};"
	  "if (l < 16) mma_m16n8k16_bf16(d, a, b); out[l] = __float_as_uint(d[0]);" },
	{ "mma_after_exit", "",
	  "unsigned a[4] = {}, b[2] = {}; float d[4] = {};"
	  "if (l == 7) return; mma_m16n8k16_bf16(d, a, b); out[l] = __float_as_uint(d[0]);" },
	{ "ldmatrix_outside", "",
	  "__shared__ __align__(16) unsigned s[128]; unsigned r[4];"
	  "for (int i = l; i < 128; i += 32) s[i] = in[i % 64];"
	  "__syncthreads(); ldmatrix_x4(r, s + 4 * (l + (l == 31))); out[l] = r[0];" },
	{ "ldmatrix_unwritten", "",
	  "__shared__ __align__(16) unsigned s[128]; unsigned r[4];"
	  "for (int i = l; i < 124; i += 32) s[i] = in[i % 64];"
	  "__syncthreads(); ldmatrix_x4(r, s + 4 * l); out[l] = r[0];" },
	{ "ldmatrix_race", "",
	  "__shared__ __align__(16) unsigned s[128]; unsigned r[4];"
	  "for (int i = l; i < 128; i += 32) s[i] = in[i % 64];"
	  "ldmatrix_x4(r, s + 4 * l); out[l] = r[0];" },
	{ "cp_async_no_wait", "",
	  "__shared__ __align__(16) unsigned s[128];"
	  "cp_async16(s + 4 * l, in, true); cp_async_commit(); __syncthreads(); out[l] = s[4 * l];" },
	{ "cp_async_wait_too_few", "",
	  "__shared__ __align__(16) unsigned s[128];"
	  "cp_async16(s + 4 * l, in, true); cp_async_commit(); cp_async_wait1(); __syncthreads(); out[l] = s[4 * l];" },
	{ "cp_async_no_barrier", "",
	  "__shared__ __align__(16) unsigned s[128];"
	  "cp_async16(s + 4 * l, in, true); cp_async_commit(); cp_async_wait0(); out[l] = s[4 * (l ^ 1)];" },
};

/* Each in its own launch of one warp; the same kernels with the fault mended
 * are those of the table. */
static void
test_faults(void)
{
	static const Intrinsic t = { "fault", "fault", 32, 1, 1, 64, 32, 0, NULL, NearExact };
	uint32_t *in = calloc(64, 4), *out = calloc(32, 4);
	size_t i;
	char *text;
	SimtFault f;
	bool ran;

	for (i = 0; i < sizeof faults / sizeof *faults; i++) {
		if (asprintf(&text, "extern \"C\" __global__ __launch_bounds__(32)\n"
		             "void try_fault(unsigned *out, const unsigned *in, long n)\n"
		             "{\nconst int l = threadIdx.x;\n%s\n}\n", faults[i].text) < 0)
			abort();
		memset(&f, 0, sizeof f);
		ran = run_text("fault", text, &t, 1, in, out, &f);
		verdict(!ran && strstr(f.text, faults[i].says), faults[i].name,
		        ran ? "ran as if nothing were wrong" : "reported as: %s", f.text);
		free(text);
	}
	free(in);
	free(out);
}

int
main(void)
{
	const char *dir = "tests/golden/intrinsics";
	uint32_t *in, *out;
	const Intrinsic *t;
	char err[200], name[100];
	int i, golden;

	for (i = 0; i < NIntrinsics; i++) {
		t = &intrinsics[i];
		if (posix_memalign((void **)&in, 256, (size_t)t->nin * 4) != 0 ||
		    posix_memalign((void **)&out, 256, (size_t)t->nout * 4) != 0)
			abort();
		intrinsic_fill(t, in);
		test_intrinsic(t, in, out);
		test_golden_check(t, in, out);
		golden = golden_check(dir, t, in, out, err);
		if (golden != 0) {
			snprintf(name, sizeof name, "golden_%s", t->name);
			verdict(golden > 0, name, "%s", err);
		}
		free(in);
		free(out);
	}
	test_one_hot();
	test_tolerances();
	test_faults();
	return failures != 0;
}
