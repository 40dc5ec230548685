// lanes_attn_to_mlp_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.0 lanes_attn_to_mlp_bwd
// computes  u = bf16(pre0)*lane0 + bf16(pre1)*lane0 + bf16(pre2)*lane0
//           part[c] = sum over rows(dn*rstd*u)
//           drstd = <u, dn*attn_norm>
//           du = dn*attn_norm*rstd + -0.010416666666666666*drstd*rstd*rstd*rstd*u + -0.010416666666666666*drstd*rstd*rstd*rstd*u
//           sum = sum over rows(<lane0, du>)
//           dlane2_next = dlane2*bf16(resid_lambda2)*bf16(res8) + dlane1*bf16(resid_lambda1)*bf16(res5) + dlane0*bf16(resid_lambda0)*bf16(res2) + du*bf16(pre2)
//           sum_2 = sum over rows(<x0, dlane2_next>)
//           dlane1_next = dlane2*bf16(resid_lambda2)*bf16(res7) + dlane1*bf16(resid_lambda1)*bf16(res4) + dlane0*bf16(resid_lambda0)*bf16(res1) + du*bf16(pre1)
//           sum_3 = sum over rows(<x0, dlane1_next>)
//           dlane0_next = dlane2*bf16(resid_lambda2)*bf16(res6) + dlane1*bf16(resid_lambda1)*bf16(res3) + dlane0*bf16(resid_lambda0)*bf16(res0) + du*bf16(pre0)
//           dlane0_next_2 = dlane2_next + dlane1_next + dlane0_next
//           sum_4 = sum over rows(<x0, dlane0_next>)
//           sum_5 = sum over rows(<x0, dlane0_next_2>)
//           dx0_next = dx0 + dlane0_next_2*bf16(x0_coef0)
//           sum_6 = sum over rows(<lane0_2, dlane0_next_2>)
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 1540 B  write 384 B  = 1924 B
// flops     per row  2644 = 1.4 per byte      floor 0.447 ns per row at 4300 GB/s (h200)

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

void lanes_attn_to_mlp_bwd__n3_C48_f32(const HcArg *a, long item)
{
    float *restrict dlane0_out = a[0].p;                     // [T,48]
    float *restrict dx0_out = a[1].p;                        // [T,48]
    const float *restrict dn_in = a[2].p;                    // [T,48]
    const float *restrict rstd_in = a[3].p;                  // [T,1]
    const float *restrict lane0_in = a[4].p;                 // [T,48]
    const float *restrict dlane2_in = a[5].p;                // [T,48]
    const float *restrict dlane1_in = a[6].p;                // [T,48]
    const float *restrict dlane0_in = a[7].p;                // [T,48]
    const float *restrict x0_in = a[8].p;                    // [T,48]
    const float *restrict dx0_in = a[9].p;                   // [T,48]
    const float *restrict lane0_in_2 = a[10].p;              // [T,48]
    float *restrict part = a[11].p;                          // [64,48]    partial sums, one row per block of rows
    const float *restrict pre = a[12].p;                     // [3]        hc.pre
    const float *restrict resid_lambda = a[13].p;            // [3]        hc.resid_lambda
    const float *restrict res = a[14].p;                     // [9]        hc.res
    const float *restrict x0_coef = a[15].p;                 // [3]        hc.sources.x0.coef
    float *restrict sums = a[16].p;                          // [6,64]     partial sums, one column per block of rows
    const float *restrict attn_norm = a[17].p;               // [48]       layers.1.attn.norm
    const long T = a[18].i;

    const float pre0 = F32(BF16(pre[0]));
    const float pre1 = F32(BF16(pre[1]));
    const float pre2 = F32(BF16(pre[2]));
    const float resid_lambda2 = F32(BF16(resid_lambda[2]));
    const float res8 = F32(BF16(res[8]));
    const float resid_lambda1 = F32(BF16(resid_lambda[1]));
    const float res5 = F32(BF16(res[5]));
    const float resid_lambda0 = F32(BF16(resid_lambda[0]));
    const float res2 = F32(BF16(res[2]));
    const float res7 = F32(BF16(res[7]));
    const float res4 = F32(BF16(res[4]));
    const float res1 = F32(BF16(res[1]));
    const float res6 = F32(BF16(res[6]));
    const float res3 = F32(BF16(res[3]));
    const float res0 = F32(BF16(res[0]));
    const float x0_coef0 = F32(BF16(x0_coef[0]));
    for (int c = 0; c < 48; c++)
        part[item*48 + c] = 0;
    float sum = 0;
    float sum_2 = 0;
    float sum_3 = 0;
    float sum_4 = 0;
    float sum_5 = 0;
    float sum_6 = 0;
    
    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float row_u[48];
        float row_x_9[48];
        float row_x_19[48];
        float row_x_25[48];
        float row_x_32[48];
        const float rstd = rstd_in[t];
        const float mul = rstd * rstd;
        const float mul_2 = rstd * mul;
        float drstd = 0;
#pragma omp simd reduction(+: drstd)
        for (int c = 0; c < 48; c++) {
            const float lane0 = lane0_in[t*48 + c];
            const float u = pre0 * lane0 + pre1 * lane0 + pre2 * lane0;
            row_u[c] = u;
            const float dn = dn_in[t*48 + c];
            part[item*48 + c] += dn * (rstd * u);
            const float x_8 = dn * attn_norm[c];
            const float x_9 = x_8 * rstd;
            row_x_9[c] = x_9;
            drstd += u * x_8;
            const float dlane2 = dlane2_in[t*48 + c];
            const float x_12 = dlane2 * resid_lambda2;
            const float dlane1 = dlane1_in[t*48 + c];
            const float x_14 = dlane1 * resid_lambda1;
            const float dlane0 = dlane0_in[t*48 + c];
            const float x_17 = dlane0 * resid_lambda0;
            const float x_19 = x_12 * res8 + x_14 * res5 + x_17 * res2;
            row_x_19[c] = x_19;
            const float x_25 = x_12 * res7 + x_14 * res4 + x_17 * res1;
            row_x_25[c] = x_25;
            const float x_32 = x_12 * res6 + x_14 * res3 + x_17 * res0;
            row_x_32[c] = x_32;
        }
        const float mul_3 = drstd * mul_2;
        const float mul_4 = (-0.010416667f) * mul_3;
        float dot = 0;
        float dot_2 = 0;
        float dot_3 = 0;
        float dot_4 = 0;
        float dot_5 = 0;
        float dot_6 = 0;
#pragma omp simd reduction(+: dot, dot_2, dot_3, dot_4, dot_5, dot_6)
        for (int c = 0; c < 48; c++) {
            const float lane0 = lane0_in[t*48 + c];
            const float x_10 = mul_4 * row_u[c];
            const float du = row_x_9[c] + x_10 + x_10;
            dot += lane0 * du;
            const float x0 = x0_in[t*48 + c];
            const float dlane2_next = row_x_19[c] + du * pre2;
            dot_2 += x0 * dlane2_next;
            const float dlane1_next = row_x_25[c] + du * pre1;
            dot_3 += x0 * dlane1_next;
            const float dlane0_next = row_x_32[c] + du * pre0;
            const float dlane0_next_2 = dlane2_next + dlane1_next + dlane0_next;
            dlane0_out[t*48 + c] = dlane0_next_2;
            dot_4 += x0 * dlane0_next;
            dot_5 += x0 * dlane0_next_2;
            const float dx0 = dx0_in[t*48 + c];
            const float dx0_next = dx0 + dlane0_next_2 * x0_coef0;
            dx0_out[t*48 + c] = dx0_next;
            const float lane0_2 = lane0_in_2[t*48 + c];
            dot_6 += lane0_2 * dlane0_next_2;
        }
        sum += dot;
        sum_2 += dot_2;
        sum_3 += dot_3;
        sum_4 += dot_4;
        sum_5 += dot_5;
        sum_6 += dot_6;
    }
    sums[0 + item] = sum;
    sums[64 + item] = sum_2;
    sums[128 + item] = sum_3;
    sums[192 + item] = sum_4;
    sums[256 + item] = sum_5;
    sums[320 + item] = sum_6;
}
