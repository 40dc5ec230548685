// mlp_glue_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.3 mlp_glue_bwd
//           layers.2 mlp_glue_bwd
//           layers.1 mlp_glue_bwd
//           layers.0 mlp_glue_bwd
// computes  sum = dact*up[80..159]*sigmoid(up[0..79]) + dact*up[80..159]*up[0..79]*(sigmoid(up[0..79])*(1 - sigmoid(up[0..79])))
//           dup = dact*up[0..79]*sigmoid(up[0..79]) at 80 + sum at 0
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 960 B  write 640 B  = 1600 B
// flops     per row  2480 = 1.6 per byte      floor 0.372 ns per row at 4300 GB/s (h200)

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

void mlp_glue_bwd__n3_C48_f32(const HcArg *a, long item)
{
    float *restrict dup_out = a[0].p;                        // [T,160]
    const float *restrict dact_in = a[1].p;                  // [T,80]
    const float *restrict up_in = a[2].p;                    // [T,160]
    const long T = a[3].i;

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
#pragma omp simd
        for (int c = 0; c < 80; c++) {
            const float dact = dact_in[t*80 + c];
            const float up = up_in[t*160 + 80 + c];
            const float x_7 = dact * up;
            const float up_2 = up_in[t*160 + c];
            const float x_2 = hc_sigmoidf(up_2);
            const float dup = x_7 * x_2 + x_7 * up_2 * (x_2 * (1.f - x_2));
            dup_out[t*160 + c] = dup;
        }
#pragma omp simd
        for (int c = 80; c < 160; c++) {
            const float dact = dact_in[t*80 - 80 + c];
            const float up = up_in[t*160 - 80 + c];
            const float x_2 = hc_sigmoidf(up);
            const float dup = dact * (up * x_2);
            dup_out[t*160 + c] = dup;
        }
    }
}
