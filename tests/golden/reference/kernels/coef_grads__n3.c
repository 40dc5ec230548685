// coef_grads__n3
// emitted by hcgen, format 1
// sites     coefficient gradients
// computes  gradients of the coefficients from the sums over rows that the row
//           kernels left as 64 partials each
// types     f32; partials added in order
// maps      one item

// from templates/cpu/prelude.c
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
#define RELU(x) ((x) > 0.f ? (x) : 0.f)
#define STEP(x) ((x) > 0.f ? 1.f : 0.f)

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

HC float hc_sigmoidf(float x)
{
	const float e = hc_expf(-__builtin_fabsf(x));

	return (x < 0.f ? e : 1.f) / (1.f + e);
}
// end

HC float total(const float *part)
{
    float sum = 0;

    for (int i = 0; i < 64; i++)
        sum += part[i];
    return sum;
}

void coef_grads__n3(const HcArg *a, long item)
{
    const float *restrict sums = a[0].p;
    float *restrict dres = a[1].p;
    const float *restrict resid_lambda = a[2].p;
    float *restrict dpre = a[3].p;
    float *restrict dpost = a[4].p;
    float *restrict dresid_lambda = a[5].p;
    float *restrict dx0_coef = a[6].p;
    float *restrict de_coef = a[7].p;
    float *restrict dp_coef = a[8].p;
    float *restrict dearly_gate = a[9].p;
    const float *restrict early_gate = a[10].p;
    float *restrict dmid_gate = a[11].p;
    const float *restrict mid_gate = a[12].p;
    float *restrict dback_gate = a[13].p;
    (void)item;

    // hc.res
    dres[53] += F32(BF16(resid_lambda[17])) * total(sums + 448);
    dres[52] += F32(BF16(resid_lambda[17])) * total(sums + 512);
    dres[51] += F32(BF16(resid_lambda[17])) * total(sums + 576);
    dres[50] += F32(BF16(resid_lambda[16])) * (0.33333333f * total(sums + 704));
    dres[49] += F32(BF16(resid_lambda[16])) * (0.33333333f * total(sums + 768));
    dres[48] += F32(BF16(resid_lambda[16])) * (0.33333333f * total(sums + 832));
    dres[47] += F32(BF16(resid_lambda[15])) * (0.33333333f * total(sums + 704));
    dres[46] += F32(BF16(resid_lambda[15])) * (0.33333333f * total(sums + 768));
    dres[45] += F32(BF16(resid_lambda[15])) * (0.33333333f * total(sums + 832));
    dres[35] += F32(BF16(resid_lambda[11])) * total(sums + 1344);
    dres[34] += F32(BF16(resid_lambda[11])) * total(sums + 1408);
    dres[33] += F32(BF16(resid_lambda[11])) * total(sums + 1472);
    dres[32] += F32(BF16(resid_lambda[10])) * total(sums + 1664);
    dres[31] += F32(BF16(resid_lambda[10])) * total(sums + 1728);
    dres[30] += F32(BF16(resid_lambda[10])) * total(sums + 1792);
    dres[29] += F32(BF16(resid_lambda[9])) * total(sums + 1984);
    dres[28] += F32(BF16(resid_lambda[9])) * total(sums + 2048);
    dres[27] += F32(BF16(resid_lambda[9])) * total(sums + 2112);
    dres[26] += F32(BF16(resid_lambda[8])) * total(sums + 2432);
    dres[25] += F32(BF16(resid_lambda[8])) * total(sums + 2432);
    dres[24] += F32(BF16(resid_lambda[8])) * total(sums + 2432);
    dres[23] += F32(BF16(resid_lambda[7])) * total(sums + 2752);
    dres[22] += F32(BF16(resid_lambda[7])) * total(sums + 2752);
    dres[21] += F32(BF16(resid_lambda[7])) * total(sums + 2752);
    dres[20] += F32(BF16(resid_lambda[6])) * total(sums + 3072);
    dres[19] += F32(BF16(resid_lambda[6])) * total(sums + 3072);
    dres[18] += F32(BF16(resid_lambda[6])) * total(sums + 3072);

    // hc.pre
    dpre[17] += total(sums + 960);
    dpre[16] += total(sums + 1024);
    dpre[15] += total(sums + 1088);
    dpre[8] += total(sums + 3136);
    dpre[7] += total(sums + 3136);
    dpre[6] += total(sums + 3136);

    // hc.post
    dpost[8] += total(sums + 2304);
    dpost[7] += total(sums + 2624);
    dpost[6] += total(sums + 2944);

    // hc.resid_lambda
    dresid_lambda[21] += total(sums + 128);
    dresid_lambda[17] += total(sums + 384);
    dresid_lambda[16] += 0.33333333f * total(sums + 640);
    dresid_lambda[15] += 0.33333333f * total(sums + 896);
    dresid_lambda[11] += total(sums + 1280);
    dresid_lambda[10] += total(sums + 1600);
    dresid_lambda[9] += total(sums + 1920);
    dresid_lambda[8] += total(sums + 2368);
    dresid_lambda[7] += total(sums + 2688);
    dresid_lambda[6] += total(sums + 3008);
    dresid_lambda[3] += total(sums + 3456);
    dresid_lambda[0] += total(sums + 3584);

    // hc.sources.x0.coef
    dx0_coef[21] += total(sums + 64);
    dx0_coef[17] += total(sums + 320);
    dx0_coef[16] += 0.33333333f * total(sums + 192);
    dx0_coef[15] += 0.33333333f * total(sums + 192);
    dx0_coef[11] += total(sums + 1216);
    dx0_coef[10] += total(sums + 1536);
    dx0_coef[9] += total(sums + 1856);
    dx0_coef[8] += total(sums + 2240);
    dx0_coef[7] += total(sums + 2560);
    dx0_coef[6] += total(sums + 2880);
    dx0_coef[3] += total(sums + 3392);
    dx0_coef[0] += total(sums + 3520);

    // hc.sources.e.coef
    de_coef[8] += total(sums + 2176);
    de_coef[7] += total(sums + 2496);
    de_coef[6] += total(sums + 2816);
    de_coef[0] += total(sums + 3648);

    // hc.sources.p.coef
    dp_coef[3] += total(sums + 192);
    dp_coef[1] += total(sums + 3200);
    dp_coef[1] += total(sums + 3264);
    dp_coef[1] += total(sums + 3328);

    // hc.skips.early.gate
    dearly_gate[0] += total(sums + 1152) * (hc_sigmoidf(early_gate[0]) * (1.f - hc_sigmoidf(early_gate[0])));

    // hc.skips.mid.gate
    dmid_gate[0] += 0.11111111f * total(sums + 256) * (hc_sigmoidf(mid_gate[0]) * (1.f - hc_sigmoidf(mid_gate[0])));

    // hc.backouts.back.gate
    dback_gate[0] += -(total(sums + 0));
}
