// C++ twins of the intrinsics of templates/cuda/prelude_2intrin.cuh: what the PTX ISA says each does, lane
// by lane. Read behind shim.h, whose names they use.
//
// Memory is touched by the lane that passes the address, 16 bytes at once, and the executor is told, so that
// its checks of bounds, conflicts and bytes see who reads what. What PTX calls .sync.aligned must be the same
// instruction in all 32 lanes: each lane publishes the source line of its call, and lanes that disagree are
// a fault.

// a part of these, like them not looked at
#define HC_PART static inline __attribute__((always_inline, unused, no_sanitize("thread", "undefined")))

HC_PART void hc_want16(const char *what, const void *p, void *const *frame)
{
	if ((unsigned long)p & 15)
		hc_simt->fault(hc_simt, what, p, frame);
}

HC_PART void hc_touch16(const void *p, int how, void *const *frame)
{
#ifdef HC_CHECK
	hc_simt->access(hc_simt, p, 16, how, frame);
#else
	(void)p, (void)how, (void)frame;
#endif
}

// what a lane publishes; one size for all instructions, so that lanes which diverged meet and are told so
struct HcAligned { const char *what; int line; unsigned w[6]; };

HC_PART HcTable hc_aligned(const HcAligned *mine, void *const *frame)
{
	const HcTable all = hc_simt->collect(hc_simt, mine->what, mine, sizeof *mine, ~0u, 0, frame);
	int line;

	__builtin_memcpy(&line, all[0] + __builtin_offsetof(HcAligned, line), sizeof line);
	if (line != mine->line)
		hc_simt->fault(hc_simt, "lanes of a warp are at different calls of an instruction that wants all at one",
		               nullptr, frame);
	return all;
}

// word i of what a lane published
HC_PART unsigned hc_word(HcTable all, int lane, int i)
{
	unsigned u;

	__builtin_memcpy(&u, all[lane] + __builtin_offsetof(HcAligned, w) + 4 * i, sizeof u);
	return u;
}

// mma

// PTX: the 16 products and d are added "with at least single precision"; order, rounding and subnormal inputs
// are left open. Products of two bf16 are exact in f32. Here: in double, d first, then k ascending, and one
// rounding at the end. NaNs come out as 0x7fffffff, which is what PTX's other f32 arithmetic makes of them;
// for mma it says nothing.
static HC_OUT void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2],
                                     int line = __builtin_LINE())
{
	const int g = hc_lane() / 4, t = hc_lane() % 4;
	const HcAligned mine = { "mma", line, { a[0], a[1], a[2], a[3], b[0], b[1] } };
	const HcTable all = hc_aligned(&mine, HC_FRAME);

	double s[4] = { d[0], d[1], d[2], d[3] };

	// A[row][k] is in lane 4 (row%8) + (k%8)/2, word row/8 + 2 (k/8); B[k][n] in lane 4 n + (k%8)/2, word k/8;
	// each in the half k%2 of its word. s[i] = D[g + 8 (i/2)][2 t + i%2]
	for (int k = 0; k < 16; k += 2)
		for (int i = 0; i < 4; i++) {
			const unsigned x = hc_word(all, 4 * g + k % 8 / 2, i / 2 + 2 * (k / 8));
			const unsigned y = hc_word(all, 4 * (2 * t + i % 2) + k % 8 / 2, 4 + k / 8);

			s[i] += (double)__uint_as_float(x << 16) * __uint_as_float(y << 16);
			s[i] += (double)__uint_as_float(x & 0xffff0000u) * __uint_as_float(y & 0xffff0000u);
		}
	for (int i = 0; i < 4; i++)
		d[i] = s[i] == s[i] ? (float)s[i] : __uint_as_float(0x7fffffffu);
}

// ldmatrix

// n matrices; what lanes from 8 n on pass is not looked at
HC_PART void hc_ldmatrix(unsigned *r, int n, bool trans, const void *row, HcAligned *mine, void *const *frame)
{
	const int lane = hc_lane(), i = lane / 4, j = lane % 4;

	if (lane < 8 * n) {
		hc_want16("ldmatrix: address of a row not aligned to 16 bytes", row, frame);
		hc_touch16(row, HcRead, frame);
		__builtin_memcpy(mine->w, row, 16);
	}
	const HcTable all = hc_aligned(mine, frame);

	// element [x][y] of matrix m is the half y%2 of word y/2 of lane 8 m + x
	for (int m = 0; m < n; m++)
		if (trans) {
			const unsigned lo = hc_word(all, 8 * m + 2 * j, i / 2) >> i % 2 * 16;
			const unsigned hi = hc_word(all, 8 * m + 2 * j + 1, i / 2) >> i % 2 * 16;

			r[m] = (lo & 0xffff) | hi << 16;
		} else {
			r[m] = hc_word(all, 8 * m + i, j);
		}
}

#define HC_LDMATRIX(name, n, trans) \
	static HC_OUT void name(unsigned r[n], const void *smem_row, int line = __builtin_LINE()) \
	{ \
		HcAligned mine = { #name, line, {} }; \
		hc_ldmatrix(r, n, trans, smem_row, &mine, HC_FRAME); \
	}
HC_LDMATRIX(ldmatrix_x4, 4, false)
HC_LDMATRIX(ldmatrix_x4_trans, 4, true)
HC_LDMATRIX(ldmatrix_x2, 2, false)
HC_LDMATRIX(ldmatrix_x2_trans, 2, true)

// cp.async

static HC_OUT void cp_async16(void *smem, const void *global, bool valid)
{
	hc_want16("cp_async16: shared address not aligned to 16 bytes", smem, HC_FRAME);
	hc_want16("cp_async16: global address not aligned to 16 bytes", global, HC_FRAME);
	hc_simt->copy(hc_simt, smem, global, 16, valid, HC_FRAME);
}

static HC_OUT void cp_async_commit()
{
	hc_simt->commit(hc_simt);
}

static HC_OUT void cp_async_wait0()
{
	hc_simt->wait(hc_simt, 0, HC_FRAME);
}

static HC_OUT void cp_async_wait1()
{
	hc_simt->wait(hc_simt, 1, HC_FRAME);
}

// numbers

// nearest, ties to even; cvt makes of every NaN 0x7fff
HC_INLINE unsigned hc_bf16(float x)
{
	const unsigned u = __float_as_uint(x);

	return x == x ? (u + 0x7fffu + (u >> 16 & 1u)) >> 16 : 0x7fffu;
}

HC_INLINE unsigned pack_bf16x2(float lo, float hi)
{
	return hc_bf16(lo) | hc_bf16(hi) << 16;
}

// FP8: exponent of nexp bits, the value of a code without sign as the format defines it
HC_INLINE double hc_fp8(unsigned code, int nexp)
{
	const int nman = 7 - nexp, e = (int)(code >> nman), m = (int)(code & ((1u << nman) - 1));
	const int least = 2 - (1 << (nexp - 1));        // exponent of the smallest normal numbers, and of subnormal ones

	return e ? ldexp(m + (1 << nman), least + e - 1 - nman) : ldexp(m, least - nman);
}

// .rn.satfinite: of the finite codes, of which `most` is the largest, the nearest, and of two the even one; beyond them the
// largest. A NaN becomes 0x7f.
HC_INLINE unsigned hc_fp8_of(float x, int nexp, unsigned most)
{
	const unsigned sign = __float_as_uint(x) >> 24 & 0x80u;
	const double a = fabs((double)x);
	unsigned lo = 0, hi = most;

	if (x != x)
		return 0x7fu;
	if (a >= hc_fp8(most, nexp))
		return sign | most;
	while (hi - lo > 1) {                           // value(lo) <= a < value(hi)
		const unsigned mid = (lo + hi) / 2;

		*(hc_fp8(mid, nexp) <= a ? &lo : &hi) = mid;
	}
	const double below = a - hc_fp8(lo, nexp), above = hc_fp8(hi, nexp) - a;

	return sign | (below < above || (below == above && lo % 2 == 0) ? lo : hi);
}

HC_INLINE unsigned pack_e4m3x2(float lo, float hi)
{
	return hc_fp8_of(lo, 4, 0x7e) | hc_fp8_of(hi, 4, 0x7e) << 8;
}

HC_INLINE unsigned pack_e5m2x2(float lo, float hi)
{
	return hc_fp8_of(lo, 5, 0x7b) | hc_fp8_of(hi, 5, 0x7b) << 8;
}

// .ftz: a subnormal number is the zero of its sign
HC_INLINE float hc_ftz(float x)
{
	const unsigned u = __float_as_uint(x);

	return __uint_as_float(u & 0x7f800000u ? u : u & 0x80000000u);
}

// PTX allows the approximations errors: ex2 2 ulp from the rounded result; lg2 2^-22, absolute for x in
// (1/2, 2), else relative. libm's are within 1 ulp, so a GPU differs from these by up to the sum of both.
HC_INLINE float exp2_approx(float x)
{
	return hc_ftz(exp2f(hc_ftz(x)));
}

HC_INLINE float log2_approx(float x)
{
	return log2f(hc_ftz(x));
}

// memory

struct __align__(16) uint4x { unsigned v[4]; };

static HC_OUT uint4x ld_stream16(const void *p)
{
	uint4x x;

	hc_want16("ld_stream16: address not aligned to 16 bytes", p, HC_FRAME);
	hc_touch16(p, HcRead, HC_FRAME);
	__builtin_memcpy(&x, p, 16);
	return x;
}

static float ld_again(const float *p)
{
	return *p;
}

static HC_OUT void st_stream16(void *p, uint4x x)
{
	hc_want16("st_stream16: address not aligned to 16 bytes", p, HC_FRAME);
	hc_touch16(p, HcWrite, HC_FRAME);
	__builtin_memcpy(p, &x, 16);
}
