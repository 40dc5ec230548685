/* The intrinsics on a device, and what one recorded.
 *
 * tests/gpu/intrinsics/TEXT.cu is one kernel, `try_TEXT(unsigned *out, const
 * unsigned *in, long n)`, to be compiled behind templates/cuda/prelude_2intrin.cuh.
 * A row of the table runs one: its launch, n, its 32-bit words in and out, and
 * the recipe of the words in, which is integer arithmetic on their index.  Who
 * has a device runs
 *
 *     intrinsic_fill(t, in); …launch…; golden_write(dir, t, device, in, out);
 *
 * for each row, with dir tests/golden/intrinsics; twins_test compares every
 * golden that is there with what the twins compute from the same words in.
 *
 * A golden is NAME.txt: lines of comment that begin with #, `in HASH` of the
 * words in (a changed recipe makes it stale, and that is said), `out COUNT`,
 * then the words, hexadecimal, 8 in a line.
 *
 * Tolerances, of a device against the twins:
 *   NearExact  same words (for a NaN too)
 *   NearExp2   ex2: PTX gives 2 ulp from the rounded result, glibc's exp2f 1
 *   NearLog2   lg2: PTX gives 2^-22, absolute in (1/2, 2), else relative; and 1 ulp
 *              for glibc
 *   NearMma    mma: PTX gives sums of single precision in any order, rounded any
 *              way: 16 additions that each lose at most 2^-23 of S = |c| + sum |a b|,
 *              and here as much again for the alignment of terms before they are
 *              added: 2^-18 S. */
#ifndef INTRINSICS_H
#define INTRINSICS_H

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NearExact, NearExp2, NearLog2, NearMma };

typedef struct {
	const char *name, *text;
	int threads;
	long grid, n, nin, nout;
	size_t smem;
	void (*word)(uint32_t *w, long i);      /* word i of in */
	int near;
} Intrinsic;

/* recipes */

/* 32 bits without pattern, of i */
static inline uint32_t
mixed(uint32_t i)
{
	i = (i ^ i >> 16) * 0x7feb352d;
	i = (i ^ i >> 15) * 0x846ca68b;
	return i ^ i >> 16;
}

static inline uint32_t
float_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, 4);
	return u;
}

static inline float
bits_float(uint32_t u)
{
	float f;

	memcpy(&f, &u, 4);
	return f;
}

static inline void
word_bits(uint32_t *w, long i)
{
	*w = mixed((uint32_t)i + 77);
}

/* a and b of small integers, which every order of sums gets exactly */
static inline void
word_mma_integers(uint32_t *w, long i)
{
	uint32_t r = mixed((uint32_t)i + 1);
	int lo = (int)(r % 15) - 7, hi = (int)(r / 16 % 15) - 7;

	if (i % 10 < 6)
		*w = float_bits((float)lo) >> 16 | (float_bits((float)hi) & 0xffff0000);
	else
		*w = float_bits((float)((int)(r % 201) - 100));
}

/* normal numbers: a and b in 2^-7..2^7, c in 2^-8..2^8 */
static inline void
word_mma_floats(uint32_t *w, long i)
{
	uint32_t r = mixed((uint32_t)i + 2), e = mixed(r);

	if (i % 10 < 6)
		*w = (r & 0x807f807f) | (120 + e % 14) << 7 | (120 + e / 16 % 14) << 23;
	else
		*w = (r & 0x807fffff) | (119 + e % 16) << 23;
}

/* 32 rows, then for each lane of each warp a row: 5 l + 11 w, all rows once */
static inline void
word_ldmatrix(uint32_t *w, long i)
{
	if (i < 128)
		*w = mixed((uint32_t)i + 3);
	else
		*w = (uint32_t)(5 * (i % 32) + 11 * (i / 32)) % 32;
}

/* A, B of integers from -7 to 7; B again, transposed */
static inline void
word_matmul(uint32_t *w, long i)
{
	long j;
	int h;

	for (*w = 0, h = 0; h < 2; h++) {
		j = 2 * i + h;
		if (j >= 384)
			j = 256 + (j - 384) % 16 * 8 + (j - 384) / 16;
		*w |= float_bits((float)((int)(mixed((uint32_t)j + 4) % 15) - 7)) >> 16 << 16 * h;
	}
}

static inline void
word_cp_async(uint32_t *w, long i)
{
	*w = mixed((uint32_t)i + 5);
	if (i < 192)
		*w = *w % 4 != 0;
}

/* every kind of float; with ties: low half 0x8000 */
static inline void
word_pack(uint32_t *w, long i)
{
	static const uint32_t special[] = {
		0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001,
		0xff80ffff, 0x7f7fffff, 0xff7f7fff, 0x7f7f8000, 0x3f808000, 0x3f818000,
		0x3f808001, 0x3f817fff, 1, 0x80000001, 0x00008000, 0x00018000, 0x00008001,
		0x007fffff, 0x807f8000, 0x7f7f7fff, 0xffffffff,
	};
	const long n = sizeof special / sizeof *special;

	*w = mixed((uint32_t)i + 6);
	if (i < n)
		*w = special[i];
	else if (i % 3 == 0)
		*w = (*w & 0xffff0000) | 0x8000;
}

/* the number that a code of FP8 stands for, with nexp bits of exponent; codes beyond the
 * finite ones as if they went on */
static inline double
fp8_value(int code, int nexp)
{
	int nman = 7 - nexp, bias = (1 << (nexp - 1)) - 1, e = code >> nman, m = code & ((1 << nman) - 1);

	return e ? ldexp((1 << nman) + m, e - bias - nman) : ldexp(m, 1 - bias - nman);
}

/* every number of both formats, the midpoints between them, and the floats next to those;
 * then every kind of float */
static inline void
word_fp8(uint32_t *w, long i)
{
	static const uint32_t special[] = {
		0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0x7f7fffff, 0xff7fffff, 1, 0x80000001,
		0x007fffff, 0x43e80000, 0xc3e80000, 0x47700000, 0xc7700000, 0x3a800000, 0x37000000,
	};
	const long n = sizeof special / sizeof *special, code = i / 8 % 128, kind = i % 4;
	int nexp = 4 + (int)(i / 4 % 2);
	double at = fp8_value((int)code, nexp), mid = (at + fp8_value((int)code + 1, nexp)) / 2;

	if (i < 1024) {
		*w = float_bits((float)(kind == 0 ? at : mid));
		*w += kind == 3 ? 1u : 0u;
		*w -= kind == 2 ? 1u : 0u;
		*w |= (uint32_t)(i / 16 % 2) << 31;
		return;
	}
	*w = mixed((uint32_t)i + 13);
	if (i < 1024 + n)
		*w = special[i - 1024];
	else if (i % 3)
		*w = (*w & 0x807fffff) | (100 + *w / 8192 % 50) << 23;
}

/* -150 … 150; nothing near -126, where a last bit decides what is flushed */
static inline void
word_exp2(uint32_t *w, long i)
{
	static const float special[] = {
		0, -0.f, 1, -1, 10, 127, 127.99999f, 128, 129, 3e38f, -3e38f, -125.5f, -126.5f,
		-150, 1e-40f, -1e-40f, 1e-30f, INFINITY, -INFINITY, NAN,
	};
	const long n = sizeof special / sizeof *special;
	uint32_t r = mixed((uint32_t)i + 7);
	float x = (float)((int)(r % 0x960001) - 0x4b0000) * 0x1p-15f;

	if (i < n)
		x = special[i];
	else if (i % 4 == 0)
		x *= 0x1p-8f;
	*w = float_bits(fabsf(x + 126) < 0.001f ? 0 : x);
}

/* positive normal numbers, a third of them near 1 */
static inline void
word_log2(uint32_t *w, long i)
{
	static const float special[] = {
		0, -0.f, 1, 0.5f, 2, -1, -1e-40f, 1e-40f, 0x1p-126f, 3.4028235e38f, INFINITY,
		-INFINITY, NAN, 0.99999994f, 1.0000001f, 1024,
	};
	const long n = sizeof special / sizeof *special;
	uint32_t r = mixed((uint32_t)i + 8);

	if (i < n)
		*w = float_bits(special[i]);
	else if (i % 3 == 0)
		*w = 0x3f800000 - 0x8000 + r % 0x10000;
	else
		*w = (r & 0x7fffff) | (1 + mixed(r) % 254) << 23;
}

/* normal numbers, as float and as the upper half of a double; from word 32 on
 * lanes, some of them beyond 31 */
static inline void
word_shuffle(uint32_t *w, long i)
{
	*w = mixed((uint32_t)i + 9);
	if (i >= 32)
		*w = *w % 80 - 16;
	else
		*w = (*w & 0x807fffff) | 0x3f800000;
}

static inline void
word_doubles(uint32_t *w, long i)
{
	*w = mixed((uint32_t)i + 10);
	if (i % 2)
		*w = (*w & 0x800fffff) | 0x3ff00000;
}

/* warps of no ones, of one, of ones only, of anything */
static inline void
word_vote(uint32_t *w, long i)
{
	uint32_t r = mixed((uint32_t)i + 11) % 8;

	*w = i / 32 == 0 ? 0 : i / 32 == 1 ? i % 32 == 19 : i / 32 == 2 ? r + 1 : r;
}

/* the largest once in each lane; in one warp all negative, in one NaNs too */
static inline void
word_warp_max(uint32_t *w, long i)
{
	uint32_t r = mixed((uint32_t)i + 12) & 0x807fffff;

	*w = r | (i / 32 == i % 32 ? 0x42000000 : 0x3f800000);
	*w = i / 32 == i % 32 ? *w & 0x7fffffff : *w;
	if (i / 32 == 32)
		*w |= 0x80000000;
	else if (i / 32 == 33 && i % 3)
		*w = 0x7fc00000;
}

static const Intrinsic intrinsics[] = {
/*	name, text, threads, grid, n, words in and out, smem, recipe, near */
	{ "mma_integers",       "mma",                128, 2,   8, 8 * 320, 8 * 128,   0, word_mma_integers, NearExact },
	{ "mma_floats",         "mma",                128, 2,   8, 8 * 320, 8 * 128,   0, word_mma_floats, NearMma },
	{ "ldmatrix_x4",        "ldmatrix_x4",        128, 1, 128,     256,     512,   0, word_ldmatrix, NearExact },
	{ "ldmatrix_x4_trans",  "ldmatrix_x4_trans",  128, 1, 128,     256,     512,   0, word_ldmatrix, NearExact },
	{ "ldmatrix_x2",        "ldmatrix_x2",        128, 1, 128,     256,     256,   0, word_ldmatrix, NearExact },
	{ "ldmatrix_x2_trans",  "ldmatrix_x2_trans",  128, 1, 128,     256,     256,   0, word_ldmatrix, NearExact },
	{ "matmul",             "matmul",              32, 1,   3,     256,     384,   0, word_matmul, NearExact },
	{ "cp_async",           "cp_async",            64, 1, 192,     960,     768,   0, word_cp_async, NearExact },
	{ "pack_bf16x2",        "pack_bf16x2",        128, 2, 200,     400,     200,   0, word_pack, NearExact },
	{ "pack_fp8",           "pack_fp8",           128, 6, 700,    1400,    1400,   0, word_fp8, NearExact },
	{ "exp2_approx",        "exp2_approx",        128, 4, 500,     500,     500,   0, word_exp2, NearExp2 },
	{ "log2_approx",        "log2_approx",        128, 4, 500,     500,     500,   0, word_log2, NearLog2 },
	{ "stream",             "stream",             128, 2, 200,     800,     800,   0, word_bits, NearExact },
	{ "dynamic_smem",       "dynamic_smem",        96, 3, 200,     600,     603, 800, word_bits, NearExact },
	{ "shuffle",            "shuffle",             32, 1,   5,      64,    1280,   0, word_shuffle, NearExact },
	{ "shuffle_double",     "shuffle_double",      32, 1,  32,      64,     256,   0, word_doubles, NearExact },
	{ "vote",               "vote",               128, 2,   6,     192,     960,   0, word_vote, NearExact },
	{ "warp_max",           "warp_max",           128, 9,  34,    1088,    1088,   0, word_warp_max, NearExact },
};

enum { NIntrinsics = sizeof intrinsics / sizeof *intrinsics };

static inline void
intrinsic_fill(const Intrinsic *t, uint32_t *in)
{
	long i;

	for (i = 0; i < t->nin; i++)
		t->word(&in[i], i);
}

/* comparison */

/* bf16 e, counted through the words w of a lane */
static inline double
bf16_at(const uint32_t *w, int e)
{
	return bits_float(e % 2 ? w[e / 2] & 0xffff0000 : w[e / 2] << 16);
}

/* |c| + sum |a b| of word `word` of a product; in: the 10 words of lane 0 on.
 * Fragments as in the PTX ISA: of lane 4 g + t, a_i is A[g (+8 if i/2 odd)][2 t
 * + i%2 (+8 if i >= 4)], b_i is B[2 t + i%2 (+8 if i >= 2)][g], c_i is
 * C[g (+8 if i >= 2)][2 t + i%2]. */
static inline double
mma_magnitude(const uint32_t *in, int word)
{
	int lane = word / 4, i = word % 4, n = lane % 4 * 2 + i % 2, t, e;
	double s = fabs((double)bits_float(in[10 * lane + 6 + i]));
	const uint32_t *a, *b;

	for (t = 0; t < 4; t++) {
		a = in + 10 * (lane / 4 * 4 + t);
		b = in + 10 * (4 * n + t) + 4;
		for (e = 0; e < 4; e++)
			s += fabs(bf16_at(a, e % 2 + 2 * (i / 2) + 4 * (e / 2)) * bf16_at(b, e));
	}
	return s;
}

/* distance in representable numbers; -0 is 0 */
static inline int64_t
ulps(float a, float b)
{
	int32_t x = (int32_t)(float_bits(a) & 0x7fffffff), y = (int32_t)(float_bits(b) & 0x7fffffff);

	return llabs((int64_t)(signbit(a) ? -x : x) - (signbit(b) ? -y : y));
}

static inline bool
near_word(const Intrinsic *t, const uint32_t *in, long i, uint32_t got, uint32_t want)
{
	float g = bits_float(got), w = bits_float(want);

	if (got == want || t->near == NearExact)
		return got == want;
	if (isnan(g) || isnan(w))
		return isnan(g) && isnan(w);
	if (isinf(g) || isinf(w))
		return false;
	if (t->near == NearExp2)
		return ulps(g, w) <= 3;
	if (t->near == NearLog2)
		return fabs((double)g - w) <= (in[i] > 0x3f000000 && in[i] < 0x40000000 ?
		       0x1p-22 + 0x1p-24 : fabs((double)w) * (0x1p-22 + 0x1p-23));
	return fabs((double)g - w) <= 0x1p-18 * mma_magnitude(in + i / 128 * 320, (int)(i % 128));
}

/* All words of out near enough to want; else err says which is not. */
static inline bool
intrinsic_near(const Intrinsic *t, const uint32_t *in, const uint32_t *got,
               const uint32_t *want, char err[200])
{
	long i;

	for (i = 0; i < t->nout; i++)
		if (!near_word(t, in, i, got[i], want[i])) {
			snprintf(err, 200, "word %ld is %08" PRIx32 " (%g), not %08" PRIx32 " (%g)",
			         i, got[i], (double)bits_float(got[i]), want[i],
			         (double)bits_float(want[i]));
			return false;
		}
	return true;
}

/* goldens */

static inline uint32_t
words_hash(const uint32_t *w, long n)
{
	uint32_t h = 0;
	long i;

	for (i = 0; i < n; i++)
		h = mixed(h ^ w[i]) + (uint32_t)i;
	return h;
}

static inline void
golden_write(const char *dir, const Intrinsic *t, const char *device, const uint32_t *in,
             const uint32_t *out)
{
	char path[4096];
	FILE *f;
	long i;

	snprintf(path, sizeof path, "%s/%s.txt", dir, t->name);
	if (!(f = fopen(path, "w"))) {
		perror(path);
		exit(1);
	}
	fprintf(f, "# out of try_%s on %s; see tests/gpu/intrinsics.h\nin %08" PRIx32 "\nout %ld\n",
	        t->text, device, words_hash(in, t->nin), t->nout);
	for (i = 0; i < t->nout; i++)
		fprintf(f, "%08" PRIx32 "%c", out[i], i % 8 == 7 || i == t->nout - 1 ? '\n' : ' ');
	if (fclose(f) != 0) {
		perror(path);
		exit(1);
	}
}

/* The words of an open golden against out. */
static inline bool
golden_words(FILE *f, const Intrinsic *t, const uint32_t *in, const uint32_t *out, char err[200])
{
	uint32_t *want = malloc((size_t)t->nout * 4), hash;
	bool good = false;
	long n, i = 0;
	int c;

	while ((c = getc(f)) == '#')
		while ((c = getc(f)) != '\n' && c != EOF)
			;
	ungetc(c, f);
	if (fscanf(f, "in %" SCNx32 " out %ld", &hash, &n) != 2 || n != t->nout)
		snprintf(err, 200, "not a golden of %ld words", t->nout);
	else if (hash != words_hash(in, t->nin))
		snprintf(err, 200, "stale: recorded from other words in");
	else {
		while (i < n && fscanf(f, "%" SCNx32, &want[i]) == 1)
			i++;
		while (isspace(c = getc(f)))
			;
		if (i < n || c != EOF)
			snprintf(err, 200, "%s words", i < n ? "too few" : "too many");
		else
			good = intrinsic_near(t, in, want, out, err);
	}
	free(want);
	return good;
}

/* 1: the golden of t in dir is near out.  0: there is none.  -1: err says why not. */
static inline int
golden_check(const char *dir, const Intrinsic *t, const uint32_t *in, const uint32_t *out,
             char err[200])
{
	char path[4096];
	bool good;
	FILE *f;

	snprintf(path, sizeof path, "%s/%s.txt", dir, t->name);
	if (!(f = fopen(path, "r"))) {
		snprintf(err, 200, "%s", strerror(errno));
		return errno == ENOENT ? 0 : -1;
	}
	good = golden_words(f, t, in, out, err);
	fclose(f);
	return good ? 1 : -1;
}

#endif
