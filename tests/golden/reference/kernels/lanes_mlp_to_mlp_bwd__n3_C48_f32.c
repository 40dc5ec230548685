// lanes_mlp_to_mlp_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.2 lanes_mlp_to_mlp_bwd
// computes  lane0_next = lane0_part + h + 0.3333333333333333*lane2_part
//           drstd = <dn*mlp_norm, lane0_next>
//           mul_3 = rstd*rstd*rstd*drstd
//           mul_4 = -0.020833333333333332*mul_3
//           du = rstd*dn*mlp_norm + mul_4*lane0_part + mul_4*h + -0.006944444444444444*mul_3*lane2_part
//           dlane1 = s*dout + 0.3333333333333333*du
//           dlane2 = s_2*dout + dlane1
//           dh = 2*dlane1 + dlane2
//           sum = rstd*lane0_part + rstd*h + 0.3333333333333333*rstd*lane2_part
//           part[c] = sum over rows(dn*sum)
//           dresid_lambda0 = sum over rows(<dout, lane0_next>)
//           sum_2 = sum over rows(<lane0, du>)
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 1156 B  write 576 B  = 1732 B
// flops     per row  1588 = 0.9 per byte      floor 0.403 ns per row at 4300 GB/s (h200)

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
    float *restrict du_out = a[0].p;                         // [T,48]
    float *restrict dlane1_out = a[1].p;                     // [T,48]
    float *restrict dh_out = a[2].p;                         // [T,48]
    const float *restrict dn_in = a[3].p;                    // [T,48]
    const float *restrict lane0_part_in = a[4].p;            // [T,48]
    const float *restrict h_in = a[5].p;                     // [T,48]
    const float *restrict lane2_part_in = a[6].p;            // [T,48]
    const float *restrict rstd_in = a[7].p;                  // [T,1]
    const float *restrict dout_in = a[8].p;                  // [T,48]
    const float *restrict lane0_in = a[9].p;                 // [T,48]
    float *restrict part = a[10].p;                          // [64,48]    partial sums, one row per block of rows
    const float *restrict resid_lambda_row = a[11].p;        // [3]        hc.resid_lambda
    const float *restrict back_gate_row = a[12].p;           // [1]        hc.backouts.back.gate
    float *restrict sums = a[13].p;                          // [2,64]     partial sums, one column per block of rows
    const float *restrict mlp_norm_row = a[14].p;            // [48]       layers.3.mlp.norm
    const long T = a[15].i;

    const float resid_lambda0 = F32(BF16(resid_lambda_row[0]));
    const float s = 0.33333333f * resid_lambda0;
    const float s_2 = -back_gate_row[0];
    for (int c = 0; c < 48; c++)
        part[item*48 + c] = 0;
    float dresid_lambda0 = 0;
    float sum_2 = 0;

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float row_x[48];
        const float rstd = rstd_in[t];
        float drstd = 0;
        float dot = 0;
#pragma omp simd reduction(+: drstd, dot)
        for (int c = 0; c < 48; c++) {
            const float dn = dn_in[t*48 + c];
            const float x = dn * mlp_norm_row[c];
            row_x[c] = x;
            const float lane0_part = lane0_part_in[t*48 + c];
            const float h = h_in[t*48 + c];
            const float lane2_part = lane2_part_in[t*48 + c];
            const float lane0_next = lane0_part + h + 0.33333333f * lane2_part;
            drstd += x * lane0_next;
            part[item*48 + c] += dn * (rstd * lane0_part + rstd * h + 0.33333333f * rstd * lane2_part);
            const float dout = dout_in[t*48 + c];
            dot += dout * lane0_next;
        }
        const float mul_3 = rstd * rstd * rstd * drstd;
        const float mul_4 = (-0.0208333333f) * mul_3;
        dresid_lambda0 += dot;
        float dot_2 = 0;
#pragma omp simd reduction(+: dot_2)
        for (int c = 0; c < 48; c++) {
            const float lane0_part = lane0_part_in[t*48 + c];
            const float h = h_in[t*48 + c];
            const float lane2_part = lane2_part_in[t*48 + c];
            const float du = rstd * row_x[c] + mul_4 * lane0_part + mul_4 * h + (-0.0069444444f) * mul_3 * lane2_part;
            du_out[t*48 + c] = du;
            const float dout = dout_in[t*48 + c];
            const float dlane1 = s * dout + 0.33333333f * du;
            dlane1_out[t*48 + c] = dlane1;
            const float dh = 2.f * dlane1 + s_2 * dout + dlane1;
            dh_out[t*48 + c] = dh;
            const float lane0 = lane0_in[t*48 + c];
            dot_2 += lane0 * du;
        }
        sum_2 += dot_2;
    }
    sums[0 + item] = dresid_lambda0;
    sums[64 + item] = sum_2;
}
