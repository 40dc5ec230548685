// lanes_mlp_to_mlp_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.2 lanes_mlp_to_mlp_bwd
// computes  part[c] = sum over rows(dn*rstd*lane0)
//           drstd = <lane0, dn*mlp_norm>
//           du = dn*mlp_norm*rstd + -0.020833333333333332*drstd*rstd*rstd*rstd*lane0
//           dlane0 = dout*resid_lambda0 + du
//           dp_coef = sum over rows(<x0, dlane0>)
//           dlane1 = 0.3333333333333333*dlane0
//           dlane2 = -dout*back_gate + dlane1
//           sum = sum over rows(<lane0_2 + lane1 + lane2, dlane0>)
//           dx0_coef2 = sum over rows(<x0, dlane2>)
//           dresid_lambda2 = sum over rows(<res6*lane0_3 + res7*lane1_2 + res8*lane2_2, dlane2>)
//           dres8 = sum over rows(<lane2_2, dlane2>)
//           dres7 = sum over rows(<lane1_2, dlane2>)
//           dres6 = sum over rows(<lane0_3, dlane2>)
//           dresid_lambda1 = sum over rows(<res3*lane0_3 + res4*lane1_2 + res5*lane2_2, dlane0>)
//           dres5 = sum over rows(<lane2_2, dlane0>)
//           dres4 = sum over rows(<lane1_2, dlane0>)
//           dres3 = sum over rows(<lane0_3, dlane0>)
//           dx0_next = dx0 + dlane2*x0_coef2
//           dx0_next_2 = dx0_next + dlane1*x0_coef1
//           dx0_next_3 = dx0_next_2 + dlane1*x0_coef0
//           dh = dlane2 + dlane1 + dlane1
//           dresid_lambda0 = sum over rows(<res0*lane0_3 + res1*lane1_2 + res2*lane2_2, dlane0>)
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 2116 B  write 768 B  = 2884 B
// flops     per row  3264 = 1.1 per byte      floor 0.671 ns per row at 4300 GB/s (h200)

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

void lanes_mlp_to_mlp_bwd__n3_C48_f32(const HcArg *a, long item)
{
    float *restrict dlane1_out = a[0].p;                     // [T,48]
    float *restrict dlane2_out = a[1].p;                     // [T,48]
    float *restrict dx0_out = a[2].p;                        // [T,48]
    float *restrict dh_out = a[3].p;                         // [T,48]
    const float *restrict dn_in = a[4].p;                    // [T,48]
    const float *restrict rstd_in = a[5].p;                  // [T,1]
    const float *restrict lane0_in = a[6].p;                 // [T,48]
    const float *restrict dout_in = a[7].p;                  // [T,48]
    const float *restrict x0_in = a[8].p;                    // [T,48]
    const float *restrict lane0_in_2 = a[9].p;               // [T,48]
    const float *restrict lane1_in = a[10].p;                // [T,48]
    const float *restrict lane2_in = a[11].p;                // [T,48]
    const float *restrict dx0_in = a[12].p;                  // [T,48]
    const float *restrict lane0_in_3 = a[13].p;              // [T,48]
    const float *restrict lane1_in_2 = a[14].p;              // [T,48]
    const float *restrict lane2_in_2 = a[15].p;              // [T,48]
    float *restrict part = a[16].p;                          // [64,48]    partial sums, one row per block of rows
    const float *restrict resid_lambda_row = a[17].p;        // [3]        hc.resid_lambda
    const float *restrict back_gate_row = a[18].p;           // [1]        hc.backouts.back.gate
    const float *restrict res_row = a[19].p;                 // [9]        hc.res
    const float *restrict x0_coef_row = a[20].p;             // [3]        hc.sources.x0.coef
    float *restrict sums = a[21].p;                          // [12,64]    partial sums, one column per block of rows
    const float *restrict mlp_norm_row = a[22].p;            // [48]       layers.3.mlp.norm
    const long T = a[23].i;

    const float resid_lambda0 = F32(BF16(resid_lambda_row[0]));
    const float back_gate = back_gate_row[0];
    const float res6 = F32(BF16(res_row[6]));
    const float res7 = F32(BF16(res_row[7]));
    const float res8 = F32(BF16(res_row[8]));
    const float res3 = F32(BF16(res_row[3]));
    const float res4 = F32(BF16(res_row[4]));
    const float res5 = F32(BF16(res_row[5]));
    const float x0_coef2 = F32(BF16(x0_coef_row[2]));
    const float x0_coef1 = F32(BF16(x0_coef_row[1]));
    const float x0_coef0 = F32(BF16(x0_coef_row[0]));
    const float res0 = F32(BF16(res_row[0]));
    const float res1 = F32(BF16(res_row[1]));
    const float res2 = F32(BF16(res_row[2]));
    for (int c = 0; c < 48; c++)
        part[item*48 + c] = 0;
    float dp_coef = 0;
    float sum = 0;
    float dx0_coef2 = 0;
    float dresid_lambda2 = 0;
    float dres8 = 0;
    float dres7 = 0;
    float dres6 = 0;
    float dresid_lambda1 = 0;
    float dres5 = 0;
    float dres4 = 0;
    float dres3 = 0;
    float dresid_lambda0 = 0;

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float row_x_5[48];
        const float rstd = rstd_in[t];
        float drstd = 0;
#pragma omp simd reduction(+: drstd)
        for (int c = 0; c < 48; c++) {
            const float dn = dn_in[t*48 + c];
            const float lane0 = lane0_in[t*48 + c];
            part[item*48 + c] += dn * (rstd * lane0);
            const float x_5 = dn * mlp_norm_row[c];
            row_x_5[c] = x_5;
            drstd += lane0 * x_5;
        }
        float dot = 0;
        float dot_2 = 0;
        float dot_3 = 0;
        float dot_4 = 0;
        float dot_5 = 0;
        float dot_6 = 0;
        float dot_7 = 0;
        float dot_8 = 0;
        float dot_9 = 0;
        float dot_10 = 0;
        float dot_11 = 0;
        float dot_12 = 0;
#pragma omp simd reduction(+: dot, dot_2, dot_3, dot_4, dot_5, dot_6, dot_7, dot_8, dot_9, dot_10, dot_11, dot_12)
        for (int c = 0; c < 48; c++) {
            const float x0 = x0_in[t*48 + c];
            const float dout = dout_in[t*48 + c];
            const float lane0 = lane0_in[t*48 + c];
            const float dlane0 = dout * resid_lambda0 + row_x_5[c] * rstd + (-0.0208333333f) * (drstd * (rstd * (rstd * rstd))) * lane0;
            dot += x0 * dlane0;
            const float dlane1 = 0.33333333f * dlane0;
            dlane1_out[t*48 + c] = dlane1;
            const float dlane2 = -dout * back_gate + dlane1;
            dlane2_out[t*48 + c] = dlane2;
            const float lane0_2 = lane0_in_2[t*48 + c];
            const float lane1 = lane1_in[t*48 + c];
            const float lane2 = lane2_in[t*48 + c];
            dot_2 += (lane0_2 + lane1 + lane2) * dlane0;
            dot_3 += x0 * dlane2;
            const float lane0_3 = lane0_in_3[t*48 + c];
            const float lane1_2 = lane1_in_2[t*48 + c];
            const float lane2_2 = lane2_in_2[t*48 + c];
            dot_4 += (res6 * lane0_3 + res7 * lane1_2 + res8 * lane2_2) * dlane2;
            dot_5 += lane2_2 * dlane2;
            dot_6 += lane1_2 * dlane2;
            dot_7 += lane0_3 * dlane2;
            dot_8 += (res3 * lane0_3 + res4 * lane1_2 + res5 * lane2_2) * dlane0;
            dot_9 += lane2_2 * dlane0;
            dot_10 += lane1_2 * dlane0;
            dot_11 += lane0_3 * dlane0;
            const float dx0 = dx0_in[t*48 + c];
            const float dx0_next_3 = dx0 + dlane2 * x0_coef2 + dlane1 * x0_coef1 + dlane1 * x0_coef0;
            dx0_out[t*48 + c] = dx0_next_3;
            const float dh = dlane2 + dlane1 + dlane1;
            dh_out[t*48 + c] = dh;
            dot_12 += (res0 * lane0_3 + res1 * lane1_2 + res2 * lane2_2) * dlane0;
        }
        dp_coef += dot;
        sum += dot_2;
        dx0_coef2 += dot_3;
        dresid_lambda2 += dot_4;
        dres8 += dot_5;
        dres7 += dot_6;
        dres6 += dot_7;
        dresid_lambda1 += dot_8;
        dres5 += dot_9;
        dres4 += dot_10;
        dres3 += dot_11;
        dresid_lambda0 += dot_12;
    }
    sums[0 + item] = dp_coef;
    sums[64 + item] = sum;
    sums[128 + item] = dx0_coef2;
    sums[192 + item] = dresid_lambda2;
    sums[256 + item] = dres8;
    sums[320 + item] = dres7;
    sums[384 + item] = dres6;
    sums[448 + item] = dresid_lambda1;
    sums[512 + item] = dres5;
    sums[576 + item] = dres4;
    sums[640 + item] = dres3;
    sums[704 + item] = dresid_lambda0;
}
