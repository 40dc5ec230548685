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
    const float *restrict res = a[6].p;
    float *restrict dx0_coef = a[7].p;
    float *restrict de_coef = a[8].p;
    float *restrict dp_coef = a[9].p;
    const float *restrict pre = a[10].p;
    float *restrict dearly_gate = a[11].p;
    const float *restrict early_gate = a[12].p;
    float *restrict dmid_gate = a[13].p;
    const float *restrict mid_gate = a[14].p;
    float *restrict dback_gate = a[15].p;
    (void)item;

    // hc.res
    dres[53] += F32(BF16(resid_lambda[17])) * total(sums + 320);
    dres[52] += F32(BF16(resid_lambda[17])) * total(sums + 384);
    dres[51] += F32(BF16(resid_lambda[17])) * total(sums + 448);
    dres[50] += 0.33333333f * (F32(BF16(resid_lambda[16])) * (F32(BF16(resid_lambda[21])) * total(sums + 512) + total(sums + 576)));
    dres[49] += 0.33333333f * (F32(BF16(resid_lambda[16])) * (F32(BF16(resid_lambda[21])) * total(sums + 640) + total(sums + 704)));
    dres[48] += 0.33333333f * (F32(BF16(resid_lambda[16])) * (F32(BF16(resid_lambda[21])) * total(sums + 768) + total(sums + 832)));
    dres[47] += 0.33333333f * (F32(BF16(resid_lambda[15])) * (F32(BF16(resid_lambda[21])) * total(sums + 512) + total(sums + 576)));
    dres[46] += 0.33333333f * (F32(BF16(resid_lambda[15])) * (F32(BF16(resid_lambda[21])) * total(sums + 640) + total(sums + 704)));
    dres[45] += 0.33333333f * (F32(BF16(resid_lambda[15])) * (F32(BF16(resid_lambda[21])) * total(sums + 768) + total(sums + 832)));
    dres[35] += F32(BF16(resid_lambda[11])) * total(sums + 1280);
    dres[34] += F32(BF16(resid_lambda[11])) * total(sums + 1344);
    dres[33] += F32(BF16(resid_lambda[11])) * total(sums + 896);
    dres[32] += F32(BF16(resid_lambda[10])) * total(sums + 1408);
    dres[31] += F32(BF16(resid_lambda[10])) * total(sums + 1472);
    dres[30] += F32(BF16(resid_lambda[10])) * total(sums + 960);
    dres[29] += F32(BF16(resid_lambda[9])) * total(sums + 1536);
    dres[28] += F32(BF16(resid_lambda[9])) * total(sums + 1600);
    dres[27] += F32(BF16(resid_lambda[9])) * total(sums + 1024);
    dres[26] += F32(BF16(resid_lambda[8])) * total(sums + 2304);
    dres[25] += F32(BF16(resid_lambda[8])) * total(sums + 2304);
    dres[24] += F32(BF16(resid_lambda[8])) * total(sums + 2304);
    dres[23] += F32(BF16(resid_lambda[7])) * total(sums + 2368);
    dres[22] += F32(BF16(resid_lambda[7])) * total(sums + 2368);
    dres[21] += F32(BF16(resid_lambda[7])) * total(sums + 2368);
    dres[20] += F32(BF16(resid_lambda[6])) * total(sums + 2432);
    dres[19] += F32(BF16(resid_lambda[6])) * total(sums + 2432);
    dres[18] += F32(BF16(resid_lambda[6])) * total(sums + 2432);

    // hc.pre
    dpre[17] += total(sums + 1088);
    dpre[16] += total(sums + 1152);
    dpre[15] += total(sums + 1216);
    dpre[8] += total(sums + 2496);
    dpre[7] += total(sums + 2496);
    dpre[6] += total(sums + 2496);

    // hc.post
    dpost[8] += total(sums + 1664);
    dpost[7] += total(sums + 1728);
    dpost[6] += total(sums + 1792);

    // hc.resid_lambda
    dresid_lambda[21] += total(sums + 128);
    dresid_lambda[17] += F32(BF16(res[51])) * total(sums + 448) + F32(BF16(res[52])) * total(sums + 384) + F32(BF16(res[53])) * total(sums + 320);
    dresid_lambda[16] += 0.33333333f * (F32(BF16(res[48])) * F32(BF16(resid_lambda[21])) * total(sums + 768) + F32(BF16(res[48])) * total(sums + 832) + F32(BF16(res[49])) * F32(BF16(resid_lambda[21])) * total(sums + 640) + F32(BF16(res[49])) * total(sums + 704) + F32(BF16(res[50])) * F32(BF16(resid_lambda[21])) * total(sums + 512) + F32(BF16(res[50])) * total(sums + 576));
    dresid_lambda[15] += 0.33333333f * (F32(BF16(res[45])) * F32(BF16(resid_lambda[21])) * total(sums + 768) + F32(BF16(res[45])) * total(sums + 832) + F32(BF16(res[46])) * F32(BF16(resid_lambda[21])) * total(sums + 640) + F32(BF16(res[46])) * total(sums + 704) + F32(BF16(res[47])) * F32(BF16(resid_lambda[21])) * total(sums + 512) + F32(BF16(res[47])) * total(sums + 576));
    dresid_lambda[11] += F32(BF16(res[33])) * total(sums + 896) + F32(BF16(res[34])) * total(sums + 1344) + F32(BF16(res[35])) * total(sums + 1280);
    dresid_lambda[10] += F32(BF16(res[30])) * total(sums + 960) + F32(BF16(res[31])) * total(sums + 1472) + F32(BF16(res[32])) * total(sums + 1408);
    dresid_lambda[9] += F32(BF16(res[27])) * total(sums + 1024) + F32(BF16(res[28])) * total(sums + 1600) + F32(BF16(res[29])) * total(sums + 1536);
    dresid_lambda[8] += (F32(BF16(res[24])) + F32(BF16(res[25])) + F32(BF16(res[26]))) * total(sums + 2304);
    dresid_lambda[7] += (F32(BF16(res[21])) + F32(BF16(res[22])) + F32(BF16(res[23]))) * total(sums + 2368);
    dresid_lambda[6] += (F32(BF16(res[18])) + F32(BF16(res[19])) + F32(BF16(res[20]))) * total(sums + 2432);
    dresid_lambda[3] += total(sums + 2560);
    dresid_lambda[0] += total(sums + 2624);

    // hc.sources.x0.coef
    dx0_coef[21] += total(sums + 1856);
    dx0_coef[17] += total(sums + 1920);
    dx0_coef[16] += 0.33333333f * (F32(BF16(resid_lambda[21])) * total(sums + 1856) + total(sums + 2688));
    dx0_coef[15] += 0.33333333f * (F32(BF16(resid_lambda[21])) * total(sums + 1856) + total(sums + 2688));
    dx0_coef[11] += total(sums + 1984);
    dx0_coef[10] += total(sums + 2048);
    dx0_coef[9] += total(sums + 2112);
    dx0_coef[8] += total(sums + 2752);
    dx0_coef[7] += total(sums + 2816);
    dx0_coef[6] += total(sums + 2880);
    dx0_coef[3] += total(sums + 2944);
    dx0_coef[0] += total(sums + 3008);

    // hc.sources.e.coef
    de_coef[8] += total(sums + 3072);
    de_coef[7] += total(sums + 3136);
    de_coef[6] += total(sums + 3200);
    de_coef[0] += total(sums + 3264);

    // hc.sources.p.coef
    dp_coef[3] += F32(BF16(resid_lambda[21])) * total(sums + 1856) + total(sums + 2688);
    dp_coef[1] += F32(BF16(resid_lambda[8])) * F32(BF16(res[26])) * total(sums + 2752) + F32(BF16(resid_lambda[7])) * F32(BF16(res[23])) * total(sums + 2816) + F32(BF16(resid_lambda[6])) * F32(BF16(res[20])) * total(sums + 2880) + F32(BF16(pre[8])) * total(sums + 3328);
    dp_coef[1] += F32(BF16(resid_lambda[8])) * F32(BF16(res[25])) * total(sums + 2752) + F32(BF16(resid_lambda[7])) * F32(BF16(res[22])) * total(sums + 2816) + F32(BF16(resid_lambda[6])) * F32(BF16(res[19])) * total(sums + 2880) + F32(BF16(pre[7])) * total(sums + 3328);
    dp_coef[1] += F32(BF16(resid_lambda[8])) * F32(BF16(res[24])) * total(sums + 2752) + F32(BF16(resid_lambda[7])) * F32(BF16(res[21])) * total(sums + 2816) + F32(BF16(resid_lambda[6])) * F32(BF16(res[18])) * total(sums + 2880) + F32(BF16(pre[6])) * total(sums + 3328);

    // hc.skips.early.gate
    dearly_gate[0] += 2.f * (hc_sigmoidf(early_gate[0]) * total(sums + 256) * (1.f - hc_sigmoidf(early_gate[0])));

    // hc.skips.mid.gate
    dmid_gate[0] += 0.11111111f * (hc_sigmoidf(mid_gate[0]) * (F32(BF16(resid_lambda[21])) * total(sums + 0) + total(sums + 192) + F32(BF16(resid_lambda[21])) * total(sums + 2176) + total(sums + 3392) + F32(BF16(resid_lambda[21])) * total(sums + 2240) + total(sums + 3456)) * (1.f - hc_sigmoidf(mid_gate[0])));

    // hc.backouts.back.gate
    dback_gate[0] += -(total(sums + 64));
}
