// lanes_attn_to_mlp_fwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.0 lanes_attn_to_mlp_fwd
// computes  lane0_next = x0_coef0*rstd*emb + resid_lambda0*lane0 + h
//           rstd_next = rsqrt(0.020833333333333332*(<lane0_next, lane0_next>) + 1e-06)
//           n = mlp_norm*rstd_next*lane0_next
//           lane0_part = s*rstd*emb + resid_lambda0_2*lane0_next
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 580 B  write 580 B  = 1160 B
// flops     per row  630 = 0.5 per byte      floor 0.27 ns per row at 4300 GB/s (h200)

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
// end

void lanes_attn_to_mlp_fwd__n3_C48_f32(const HcArg *a, long item)
{
    float *restrict lane0_out = a[0].p;                      // [T,48]
    float *restrict rstd_out = a[1].p;                       // [T,1]
    float *restrict n_out = a[2].p;                          // [T,48]
    float *restrict lane0_part_out = a[3].p;                 // [T,48]
    const float *restrict rstd_in = a[4].p;                  // [T,1]
    const float *restrict emb_in = a[5].p;                   // [T,48]
    const float *restrict lane0_in = a[6].p;                 // [T,48]
    const float *restrict h_in = a[7].p;                     // [T,48]
    const float *restrict x0_coef_row = a[8].p;              // [3]        hc.sources.x0.coef
    const float *restrict resid_lambda_row = a[9].p;         // [3]        hc.resid_lambda
    const float *restrict p_coef_row = a[10].p;              // [1]        hc.sources.p.coef
    const float *restrict x0_coef_row_2 = a[11].p;           // [3]        hc.sources.x0.coef
    const float *restrict resid_lambda_row_2 = a[12].p;      // [3]        hc.resid_lambda
    const float *restrict mlp_norm_row = a[13].p;            // [48]       layers.0.mlp.norm
    const long T = a[14].i;

    const float x0_coef0 = F32(BF16(x0_coef_row[0]));
    const float resid_lambda0 = F32(BF16(resid_lambda_row[0]));
    const float p_coef = F32(BF16(p_coef_row[0]));
    const float x0_coef0_2 = F32(BF16(x0_coef_row_2[0]));
    const float s = x0_coef0_2 + p_coef;
    const float resid_lambda0_2 = F32(BF16(resid_lambda_row_2[0]));

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float row_lane0_next[48];
        const float rstd = rstd_in[t];
        float dot = 0;
#pragma omp simd reduction(+: dot)
        for (int c = 0; c < 48; c++) {
            const float emb = emb_in[t*48 + c];
            const float lane0 = lane0_in[t*48 + c];
            const float h = h_in[t*48 + c];
            const float lane0_next = x0_coef0 * rstd * emb + resid_lambda0 * lane0 + h;
            lane0_out[t*48 + c] = lane0_next;
            row_lane0_next[c] = lane0_next;
            dot += lane0_next * lane0_next;
            const float lane0_part = s * rstd * emb + resid_lambda0_2 * lane0_next;
            lane0_part_out[t*48 + c] = lane0_part;
        }
        const float rstd_next = 1.f / __builtin_sqrtf(0.0208333333f * dot + 1e-06f);
        rstd_out[t] = rstd_next;
#pragma omp simd
        for (int c = 0; c < 48; c++) {
            const float n = mlp_norm_row[c] * (rstd_next * row_lane0_next[c]);
            n_out[t*48 + c] = n;
        }
    }
}
