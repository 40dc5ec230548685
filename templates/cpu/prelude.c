// Storage types, rounding, elementary functions and vector tiles for the CPU kernels.
//
// Pasted once at the head of each kernel file. The elementary functions have no branches and no
// tables, so that a plain loop over them vectorises. Their errors are measured over a sample of all floats by
// tests/unit/templates_test.c. A NaN goes in and comes out everywhere.

typedef union { void *p; long i; double f; } HcArg;
typedef float f32;
typedef unsigned short bf16;
typedef int i32;
typedef union { float f; unsigned u; } HcBits;

#define HC static inline __attribute__((unused, always_inline))

HC float F32(bf16 x)
{
	return ((HcBits){ .u = (unsigned)x << 16 }).f;
}

// nearest, ties to even; a NaN stays a NaN
HC bf16 BF16(float x)
{
	const unsigned u = ((HcBits){ .f = x }).u;

	return (bf16)(x == x ? (u + 0x7fffu + (u >> 16 & 1)) >> 16 : u >> 16 | 0x40u);
}

// stored value <-> float, by dtype
#define LD_f32(x)  (x)
#define ST_f32(x)  (x)
#define LD_bf16(x) F32(x)
#define ST_bf16(x) BF16(x)

// e^x, 1 ulp: x = n ln2 + r, |r| <= ln2/2. 12582912 = 1.5 * 2^23 leaves round(y) in the low bits of y + it.
// 2^n as two factors, so that n = 128 overflows and n < -126 underflows as they should.
HC float hc_expf(float x)
{
	const float c = x > 89.f ? 89.f : x < -104.f ? -104.f : x;
	const HcBits t = { .f = c * 1.44269504f + 12582912.f };
	const float n = t.f - 12582912.f;
	const float r = c - n * 0.693359375f - n * -2.12194440e-4f;
	const int k = (int)(t.u - 0x4b400000u), h = k >> 1;
	const HcBits s = { .u = (unsigned)(h + 127) << 23 }, z = { .u = (unsigned)(k - h + 127) << 23 };
	float p = 1.9875691500e-4f;

	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	return (p * r * r + r + 1.f) * s.f * z.f;
}

// e^x for x <= 0 in half the work, 1 ulp: 0 below -87 instead of denormal numbers.
// 12583039 = 1.5 * 2^23 + 127: the low bits are n + 127, the exponent field of 2^n.
HC float hc_expnf(float x)
{
	const HcBits t = { .f = x * 1.44269504f + 12583039.f };
	const float n = t.f - 12583039.f;
	const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
	float p = 1.9875691500e-4f;

	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = (p * r * r + r + 1.f) * ((HcBits){ .u = t.u << 23 }).f;
	return x < -87.f ? 0.f : p;
}

// ln x, 1 ulp: x = 2^e m, m in [sqrt(1/2), sqrt(2)). ln 0 = -inf, ln of a negative number NaN.
HC float hc_logf(float x)
{
	const float sub = x < 1.17549435e-38f ? 8388608.f : 1.f;
	const unsigned i = ((HcBits){ .f = x * sub }).u - 0x3f3504f3u;
	const float e = (float)((int)i >> 23) - (sub > 1.f ? 23.f : 0.f);
	const float z = ((HcBits){ .u = (i & 0x7fffffu) + 0x3f3504f3u }).f - 1.f;
	float p = 7.0376836292e-2f;

	p = p * z - 1.1514610310e-1f;
	p = p * z + 1.1676998740e-1f;
	p = p * z - 1.2420140846e-1f;
	p = p * z + 1.4249322787e-1f;
	p = p * z - 1.6668057665e-1f;
	p = p * z + 2.0000714765e-1f;
	p = p * z - 2.4999993993e-1f;
	p = p * z + 3.3333331174e-1f;
	p = p * z * z * z + e * -2.12194440e-4f - 0.5f * z * z + z + e * 0.693359375f;
	p = x > 0.f ? p : x == 0.f ? -__builtin_inff() : __builtin_nanf("");
	return x == __builtin_inff() ? x : p;
}

// tanh x, 1.3 ulp: an odd polynomial near 0, where 1 - 2/(e^2|x| + 1) would cancel
HC float hc_tanhf(float x)
{
	const float a = __builtin_fabsf(x), z = x * x;
	const float big = 1.f - 2.f / (hc_expf(2.f * a) + 1.f);
	float p = -5.70498872745e-3f;

	p = p * z + 2.06390887954e-2f;
	p = p * z - 5.37397155531e-2f;
	p = p * z + 1.33314422036e-1f;
	p = p * z - 3.33332819422e-1f;
	return a < 0.625f ? p * z * x + x : __builtin_copysignf(big, x);
}

// 1 / (1 + e^-x), 2.2 ulp, without overflow on either side
HC float hc_sigmoidf(float x)
{
	const float e = hc_expf(-__builtin_fabsf(x));

	return (x < 0.f ? e : 1.f) / (1.f + e);
}

// Vector tiles. A vector is one register: 16 floats with AVX-512, else 8.
#ifdef __AVX512F__
enum { VW = 16, TR = 8 };                          // TR rows x 2 vectors of sums fill half the registers
#else
enum { VW = 8, TR = 4 };
#endif
typedef float vf __attribute__((vector_size(VW * 4)));
typedef unsigned vu __attribute__((vector_size(VW * 4)));
typedef int vi __attribute__((vector_size(VW * 4)));
typedef float v4 __attribute__((vector_size(16), may_alias));
typedef vf vmem __attribute__((may_alias));

HC vf VLOAD(const float *p)
{
	return *(const vmem *)p;
}

HC void VSTORE(float *p, vf x)
{
	*(vmem *)p = x;
}

// 0 1 2 ...
HC vi vlane(void)
{
	vi n;

	for (int i = 0; i < VW; i++)
		n[i] = i;
	return n;
}

// larger of a and b, lane by lane
HC vf vmax(vf a, vf b)
{
	const vu m = (vu)(a > b);

	return (vf)(((vu)a & m) | ((vu)b & ~m));
}

// 2^x for x <= 0 (a little above is fine), 1 ulp; 0 from -126 down. As hc_expnf.
HC vf vexp2(vf x)
{
	const vf t = x + 12583039.f, r = x - (t - 12583039.f);
	vf p = r * 1.535336188e-4f + 1.339887440e-3f;

	p = p * r + 9.618437357e-3f;
	p = p * r + 5.550332471e-2f;
	p = p * r + 2.402264791e-1f;
	p = p * r + 6.931472028e-1f;
	p = (p * r + 1.f) * (vf)((vu)t << 23);
	return (vf)((vu)p & ~(vu)(x <= -126.f));
}

// c[r,l] (+)= sum_k a(r,k) b[k,l]      r < TR, l < nv*VW (nv 1 or 2), k < nk ascending; a(r,k) at a[r*ar + k*ak]
// c and b aligned to vectors; add 0: c is overwritten
HC void tile(float *c, long ldc, const float *a, long ar, long ak, const float *b, long ldb, long nk, int nv, int add)
{
	vf s[TR][2];

	#pragma GCC unroll 8
	for (int r = 0; r < TR; r++) {
		s[r][0] = add ? VLOAD(c + r * ldc) : (vf){ 0 };
		s[r][1] = add && nv > 1 ? VLOAD(c + r * ldc + VW) : (vf){ 0 };
	}
	for (long k = 0; k < nk; k++) {
		const vf b0 = VLOAD(b + k * ldb), b1 = nv > 1 ? VLOAD(b + k * ldb + VW) : b0;

		#pragma GCC unroll 8
		for (int r = 0; r < TR; r++) {
			const float x = a[r * ar + k * ak];

			s[r][0] += x * b0;
			if (nv > 1)
				s[r][1] += x * b1;
		}
	}
	#pragma GCC unroll 8
	for (int r = 0; r < TR; r++) {
		VSTORE(c + r * ldc, s[r][0]);
		if (nv > 1)
			VSTORE(c + r * ldc + VW, s[r][1]);
	}
}

// dst[j,i] = src[i,j] * k      rows and columns multiples of 4; both aligned to 16 bytes
HC void transpose(float *restrict dst, long ldd, const float *restrict src, long lds, long rows, long cols, float k)
{
	for (long i = 0; i < rows; i += 4)
		for (long j = 0; j < cols; j += 4) {
			const float *s = src + i * lds + j;
			float *d = dst + j * ldd + i;
			const v4 a = *(const v4 *)s * k, b = *(const v4 *)(s + lds) * k;
			const v4 e = *(const v4 *)(s + 2 * lds) * k, f = *(const v4 *)(s + 3 * lds) * k;
			const v4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
			const v4 ef = __builtin_shufflevector(e, f, 0, 4, 1, 5), EF = __builtin_shufflevector(e, f, 2, 6, 3, 7);

			*(v4 *)d = __builtin_shufflevector(ab, ef, 0, 1, 4, 5);
			*(v4 *)(d + ldd) = __builtin_shufflevector(ab, ef, 2, 3, 6, 7);
			*(v4 *)(d + 2 * ldd) = __builtin_shufflevector(AB, EF, 0, 1, 4, 5);
			*(v4 *)(d + 3 * ldd) = __builtin_shufflevector(AB, EF, 2, 3, 6, 7);
		}
}
