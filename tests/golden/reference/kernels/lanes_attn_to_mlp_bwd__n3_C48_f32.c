// lanes_attn_to_mlp_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.0 lanes_attn_to_mlp_bwd
// computes  u = pre0*lane0 + pre1*lane0 + pre2*lane0
//           part[c] = sum over rows(dn*rstd*u)
//           drstd = <u, dn*attn_norm>
//           du = dn*attn_norm*rstd + -0.020833333333333332*drstd*rstd*rstd*rstd*u
//           dpre2 = sum over rows(<lane0, du>)
//           dlane2_next = dlane2*resid_lambda2*res8 + dlane1*resid_lambda1*res5 + dlane0*resid_lambda0*res2 + du*pre2
//           dp_coef = sum over rows(<x0, dlane2_next>)
//           dlane1_next = dlane2*resid_lambda2*res7 + dlane1*resid_lambda1*res4 + dlane0*resid_lambda0*res1 + du*pre1
//           dp_coef_next = sum over rows(<x0, dlane1_next>)
//           dlane0_next = dlane2*resid_lambda2*res6 + dlane1*resid_lambda1*res3 + dlane0*resid_lambda0*res0 + du*pre0
//           dlane0_next_2 = dlane2_next + dlane1_next + dlane0_next
//           dp_coef_next_2 = sum over rows(<x0, dlane0_next>)
//           dx0_coef0 = sum over rows(<x0, dlane0_next_2>)
//           dx0_next = dx0 + dlane0_next_2*x0_coef0
//           dresid_lambda0 = sum over rows(<lane0_2, dlane0_next_2>)
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 1540 B  write 384 B  = 1924 B
// flops     per row  2784 = 1.4 per byte      floor 0.447 ns per row at 4300 GB/s (h200)

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
    const float *restrict pre_row = a[12].p;                 // [3]        hc.pre
    const float *restrict resid_lambda_row = a[13].p;        // [3]        hc.resid_lambda
    const float *restrict res_row = a[14].p;                 // [9]        hc.res
    const float *restrict x0_coef_row = a[15].p;             // [3]        hc.sources.x0.coef
    float *restrict sums = a[16].p;                          // [6,64]     partial sums, one column per block of rows
    const float *restrict attn_norm_row = a[17].p;           // [48]       layers.1.attn.norm
    const long T = a[18].i;

    const float pre0 = F32(BF16(pre_row[0]));
    const float pre1 = F32(BF16(pre_row[1]));
    const float pre2 = F32(BF16(pre_row[2]));
    const float resid_lambda2 = F32(BF16(resid_lambda_row[2]));
    const float res8 = F32(BF16(res_row[8]));
    const float resid_lambda1 = F32(BF16(resid_lambda_row[1]));
    const float res5 = F32(BF16(res_row[5]));
    const float resid_lambda0 = F32(BF16(resid_lambda_row[0]));
    const float res2 = F32(BF16(res_row[2]));
    const float res7 = F32(BF16(res_row[7]));
    const float res4 = F32(BF16(res_row[4]));
    const float res1 = F32(BF16(res_row[1]));
    const float res6 = F32(BF16(res_row[6]));
    const float res3 = F32(BF16(res_row[3]));
    const float res0 = F32(BF16(res_row[0]));
    const float x0_coef0 = F32(BF16(x0_coef_row[0]));
    for (int c = 0; c < 48; c++)
        part[item*48 + c] = 0;
    float dpre2 = 0;
    float dp_coef = 0;
    float dp_coef_next = 0;
    float dp_coef_next_2 = 0;
    float dx0_coef0 = 0;
    float dresid_lambda0 = 0;

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float row_u[48];
        float row_x_8[48];
        const float rstd = rstd_in[t];
        float drstd = 0;
#pragma omp simd reduction(+: drstd)
        for (int c = 0; c < 48; c++) {
            const float lane0 = lane0_in[t*48 + c];
            const float u = pre0 * lane0 + pre1 * lane0 + pre2 * lane0;
            row_u[c] = u;
            const float dn = dn_in[t*48 + c];
            part[item*48 + c] += dn * (rstd * u);
            const float x_8 = dn * attn_norm_row[c];
            row_x_8[c] = x_8;
            drstd += u * x_8;
        }
        float dot = 0;
        float dot_2 = 0;
        float dot_3 = 0;
        float dot_4 = 0;
        float dot_5 = 0;
        float dot_6 = 0;
#pragma omp simd reduction(+: dot, dot_2, dot_3, dot_4, dot_5, dot_6)
        for (int c = 0; c < 48; c++) {
            const float lane0 = lane0_in[t*48 + c];
            const float du = row_x_8[c] * rstd + (-0.0208333333f) * (drstd * (rstd * (rstd * rstd))) * row_u[c];
            dot += lane0 * du;
            const float x0 = x0_in[t*48 + c];
            const float dlane2 = dlane2_in[t*48 + c];
            const float x_11 = dlane2 * resid_lambda2;
            const float dlane1 = dlane1_in[t*48 + c];
            const float x_13 = dlane1 * resid_lambda1;
            const float dlane0 = dlane0_in[t*48 + c];
            const float x_16 = dlane0 * resid_lambda0;
            const float dlane2_next = x_11 * res8 + x_13 * res5 + x_16 * res2 + du * pre2;
            dot_2 += x0 * dlane2_next;
            const float dlane1_next = x_11 * res7 + x_13 * res4 + x_16 * res1 + du * pre1;
            dot_3 += x0 * dlane1_next;
            const float dlane0_next = x_11 * res6 + x_13 * res3 + x_16 * res0 + du * pre0;
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
        dpre2 += dot;
        dp_coef += dot_2;
        dp_coef_next += dot_3;
        dp_coef_next_2 += dot_4;
        dx0_coef0 += dot_5;
        dresid_lambda0 += dot_6;
    }
    sums[0 + item] = dpre2;
    sums[64 + item] = dp_coef;
    sums[128 + item] = dp_coef_next;
    sums[192 + item] = dp_coef_next_2;
    sums[256 + item] = dx0_coef0;
    sums[320 + item] = dresid_lambda0;
}
