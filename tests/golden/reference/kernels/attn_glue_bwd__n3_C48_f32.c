// attn_glue_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.1 attn_glue_bwd
//           layers.0 attn_glue_bwd
// computes  drstd_k = <qkv[64..95], rotate(dk, -position)> per head
//           sum = (rotate(dk, -position))*rstd_k + -0.0625*rstd_k*rstd_k*rstd_k*drstd_k*qkv[64..95]
//           drstd_q = <qkv[0..63], rotate(dq, -position)> per head
//           sum_next = (rotate(dq, -position))*rstd_q + -0.0625*rstd_q*rstd_q*rstd_q*drstd_q*qkv[0..63]
//           dqkv = dv at 96 + sum at 64 + sum_next at 0
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 920 B  write 512 B  = 1432 B
// flops     per row  1408 = 1.0 per byte      floor 0.333 ns per row at 4300 GB/s (h200)

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

void attn_glue_bwd__n3_C48_f32(const HcArg *a, long item)
{
    float *restrict dqkv_out = a[0].p;                       // [T,128]
    const float *restrict qkv_in = a[1].p;                   // [T,128]
    const float *restrict dk_in = a[2].p;                    // [T,32]
    const float *restrict dq_in = a[3].p;                    // [T,64]
    const float *restrict dv_in = a[4].p;                    // [T,32]
    const float *restrict rstd_k_in = a[5].p;                // [T,2]
    const float *restrict rstd_q_in = a[6].p;                // [T,4]
    const float *restrict cos = a[7].p;                      // [32,4]     rotary table
    const float *restrict sin = a[8].p;                      // [32,4]     rotary table
    const long T = a[9].i;

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float drstd_k[2];
        float drstd_q[4];
        for (int head = 0; head < 2; head++) {
            float drstd_k_h = 0;
#pragma omp simd reduction(+: drstd_k_h)
            for (int c = 0; c < 4; c++) {
                const float qkv = qkv_in[t*128 + 64 + 16*head + 2*c];
                const float dk = dk_in[t*32 + 1 + 16*head + 2*c];
                const float dk_2 = dk_in[t*32 + 16*head + 2*c];
                const float x_2 = cos[(t % 32)*4 + c] * dk_2 - sin[(t % 32)*4 + c] * dk;
                drstd_k_h += qkv * x_2;
                const float qkv_2 = qkv_in[t*128 + 65 + 16*head + 2*c];
                const float x_13 = cos[(t % 32)*4 + c] * dk + sin[(t % 32)*4 + c] * dk_2;
                drstd_k_h += qkv_2 * x_13;
            }
#pragma omp simd reduction(+: drstd_k_h)
            for (int c = 8; c < 16; c++) {
                const float qkv = qkv_in[t*128 + 64 + 16*head + c];
                const float dk = dk_in[t*32 + 16*head + c];
                drstd_k_h += qkv * dk;
            }
            drstd_k[head] = drstd_k_h;
        }
        for (int head = 0; head < 4; head++) {
            float drstd_q_h = 0;
#pragma omp simd reduction(+: drstd_q_h)
            for (int c = 0; c < 4; c++) {
                const float qkv = qkv_in[t*128 + 16*head + 2*c];
                const float dq = dq_in[t*64 + 1 + 16*head + 2*c];
                const float dq_2 = dq_in[t*64 + 16*head + 2*c];
                const float x_8 = cos[(t % 32)*4 + c] * dq_2 - sin[(t % 32)*4 + c] * dq;
                drstd_q_h += qkv * x_8;
                const float qkv_3 = qkv_in[t*128 + 1 + 16*head + 2*c];
                const float x_14 = cos[(t % 32)*4 + c] * dq + sin[(t % 32)*4 + c] * dq_2;
                drstd_q_h += qkv_3 * x_14;
            }
#pragma omp simd reduction(+: drstd_q_h)
            for (int c = 8; c < 16; c++) {
                const float qkv = qkv_in[t*128 + 16*head + c];
                const float dq = dq_in[t*64 + 16*head + c];
                drstd_q_h += qkv * dq;
            }
            drstd_q[head] = drstd_q_h;
        }
        for (int head = 0; head < 4; head++) {
#pragma omp simd
            for (int c = 0; c < 4; c++) {
                const float dq = dq_in[t*64 + 1 + 16*head + 2*c];
                const float dq_3 = dq_in[t*64 + 16*head + 2*c];
                const float x_8 = cos[(t % 32)*4 + c] * dq_3 - sin[(t % 32)*4 + c] * dq;
                const float qkv = qkv_in[t*128 + 16*head + 2*c];
                const float dqkv = x_8 * rstd_q_in[t*4 + head] + (-0.0625f) * (rstd_q_in[t*4 + head] * rstd_q_in[t*4 + head] * rstd_q_in[t*4 + head] * drstd_q[head]) * qkv;
                dqkv_out[t*128 + 16*head + 2*c] = dqkv;
                const float x_15 = cos[(t % 32)*4 + c] * dq + sin[(t % 32)*4 + c] * dq_3;
                const float qkv_4 = qkv_in[t*128 + 1 + 16*head + 2*c];
                const float dqkv_2 = x_15 * rstd_q_in[t*4 + head] + (-0.0625f) * (rstd_q_in[t*4 + head] * rstd_q_in[t*4 + head] * rstd_q_in[t*4 + head] * drstd_q[head]) * qkv_4;
                dqkv_out[t*128 + 1 + 16*head + 2*c] = dqkv_2;
            }
#pragma omp simd
            for (int c = 8; c < 16; c++) {
                const float dq = dq_in[t*64 + 16*head + c];
                const float qkv = qkv_in[t*128 + 16*head + c];
                const float dqkv = dq * rstd_q_in[t*4 + head] + (-0.0625f) * (rstd_q_in[t*4 + head] * rstd_q_in[t*4 + head] * rstd_q_in[t*4 + head] * drstd_q[head]) * qkv;
                dqkv_out[t*128 + 16*head + c] = dqkv;
            }
        }
        for (int head = 4; head < 6; head++) {
#pragma omp simd
            for (int c = 0; c < 4; c++) {
                const float dk = dk_in[t*32 - 63 + 16*head + 2*c];
                const float dk_3 = dk_in[t*32 - 64 + 16*head + 2*c];
                const float x_2 = cos[(t % 32)*4 + c] * dk_3 - sin[(t % 32)*4 + c] * dk;
                const float qkv = qkv_in[t*128 + 16*head + 2*c];
                const float dqkv = x_2 * rstd_k_in[t*2 - 4 + head] + (-0.0625f) * (rstd_k_in[t*2 - 4 + head] * rstd_k_in[t*2 - 4 + head] * rstd_k_in[t*2 - 4 + head] * drstd_k[-4 + head]) * qkv;
                dqkv_out[t*128 + 16*head + 2*c] = dqkv;
                const float x_16 = cos[(t % 32)*4 + c] * dk + sin[(t % 32)*4 + c] * dk_3;
                const float qkv_5 = qkv_in[t*128 + 1 + 16*head + 2*c];
                const float dqkv_3 = x_16 * rstd_k_in[t*2 - 4 + head] + (-0.0625f) * (rstd_k_in[t*2 - 4 + head] * rstd_k_in[t*2 - 4 + head] * rstd_k_in[t*2 - 4 + head] * drstd_k[-4 + head]) * qkv_5;
                dqkv_out[t*128 + 1 + 16*head + 2*c] = dqkv_3;
            }
#pragma omp simd
            for (int c = 8; c < 16; c++) {
                const float dk = dk_in[t*32 - 64 + 16*head + c];
                const float qkv = qkv_in[t*128 + 16*head + c];
                const float dqkv = dk * rstd_k_in[t*2 - 4 + head] + (-0.0625f) * (rstd_k_in[t*2 - 4 + head] * rstd_k_in[t*2 - 4 + head] * rstd_k_in[t*2 - 4 + head] * drstd_k[-4 + head]) * qkv;
                dqkv_out[t*128 + 16*head + c] = dqkv;
            }
        }
        for (int head = 6; head < 8; head++) {
#pragma omp simd
            for (int c = 0; c < 4; c++) {
                const float dv = dv_in[t*32 - 96 + 16*head + 2*c];
                dqkv_out[t*128 + 16*head + 2*c] = dv;
                const float dv_2 = dv_in[t*32 - 95 + 16*head + 2*c];
                dqkv_out[t*128 + 1 + 16*head + 2*c] = dv_2;
            }
#pragma omp simd
            for (int c = 8; c < 16; c++) {
                const float dv = dv_in[t*32 - 96 + 16*head + c];
                dqkv_out[t*128 + 16*head + c] = dv;
            }
        }
    }
}
