// attn_glue_fwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.0 attn_glue_fwd
//           layers.1 attn_glue_fwd
// computes  rstd_q = rsqrt(0.0625*(<qkv[0..63], qkv[0..63]> per head) + 1e-06)
//           q = rotate(rstd_q*qkv[0..63], position)
//           rstd_k = rsqrt(0.0625*(<qkv[64..95], qkv[64..95]> per head) + 1e-06)
//           k = rotate(rstd_k*qkv[64..95], position)
// types     arithmetic in f32; a stored value is rounded once, by its store; sums over channels in the
//           order of the compiler's vectors, over rows ascending in a block, then over blocks
// maps      item = one of 64 blocks of rows; one thread per row, loops over channels vectorise
// moves     per row  read 384 B  write 408 B  = 792 B
// flops     per row  468 = 0.6 per byte      floor 0.184 ns per row at 4300 GB/s (h200)

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

void attn_glue_fwd__n3_C48_f32(const HcArg *a, long item)
{
    float *restrict rstd_q_out = a[0].p;                     // [T,4]
    float *restrict q_out = a[1].p;                          // [T,64]
    float *restrict rstd_k_out = a[2].p;                     // [T,2]
    float *restrict k_out = a[3].p;                          // [T,32]
    const float *restrict qkv_in = a[4].p;                   // [T,128]
    const float *restrict cos = a[5].p;                      // [32,4]     rotary table
    const float *restrict sin = a[6].p;                      // [32,4]     rotary table
    const long T = a[7].i;

    for (long t = item*T / 64; t < (item + 1)*T / 64; t++) {
        float dot[4];
        float dot_2[2];
        for (int head = 0; head < 4; head++) {
            float dot_h = 0;
#pragma omp simd reduction(+: dot_h)
            for (int c = 0; c < 16; c++) {
                const float qkv = qkv_in[t*128 + 16*head + c];
                dot_h += qkv * qkv;
            }
            dot[head] = dot_h;
        }
        for (int head = 0; head < 2; head++) {
            float dot_2_h = 0;
#pragma omp simd reduction(+: dot_2_h)
            for (int c = 0; c < 16; c++) {
                const float qkv = qkv_in[t*128 + 64 + 16*head + c];
                dot_2_h += qkv * qkv;
            }
            dot_2[head] = dot_2_h;
        }
        float rstd_q[4];
        for (int head = 0; head < 4; head++) {
            rstd_q[head] = 1.f / __builtin_sqrtf(0.0625f * dot[head] + 1e-06f);
            rstd_q_out[t*4 + head] = rstd_q[head];
        }
        float rstd_k[2];
        for (int head = 0; head < 2; head++) {
            rstd_k[head] = 1.f / __builtin_sqrtf(0.0625f * dot_2[head] + 1e-06f);
            rstd_k_out[t*2 + head] = rstd_k[head];
        }
        for (int head = 0; head < 4; head++) {
#pragma omp simd
            for (int c = 0; c < 4; c++) {
                const float qkv = qkv_in[t*128 + 1 + 16*head + 2*c];
                const float qkv_2 = qkv_in[t*128 + 16*head + 2*c];
                const float q = cos[(t % 32)*4 + c] * (rstd_q[head] * qkv_2) + sin[(t % 32)*4 + c] * (rstd_q[head] * qkv);
                q_out[t*64 + 16*head + 2*c] = q;
                const float q_2 = cos[(t % 32)*4 + c] * (rstd_q[head] * qkv) - sin[(t % 32)*4 + c] * (rstd_q[head] * qkv_2);
                q_out[t*64 + 1 + 16*head + 2*c] = q_2;
            }
#pragma omp simd
            for (int c = 8; c < 16; c++) {
                const float qkv = qkv_in[t*128 + 16*head + c];
                const float q = rstd_q[head] * qkv;
                q_out[t*64 + 16*head + c] = q;
            }
        }
        for (int head = 0; head < 2; head++) {
#pragma omp simd
            for (int c = 0; c < 4; c++) {
                const float qkv = qkv_in[t*128 + 65 + 16*head + 2*c];
                const float qkv_3 = qkv_in[t*128 + 64 + 16*head + 2*c];
                const float k = cos[(t % 32)*4 + c] * (rstd_k[head] * qkv_3) + sin[(t % 32)*4 + c] * (rstd_k[head] * qkv);
                k_out[t*32 + 16*head + 2*c] = k;
                const float k_2 = cos[(t % 32)*4 + c] * (rstd_k[head] * qkv) - sin[(t % 32)*4 + c] * (rstd_k[head] * qkv_3);
                k_out[t*32 + 1 + 16*head + 2*c] = k_2;
            }
#pragma omp simd
            for (int c = 8; c < 16; c++) {
                const float qkv = qkv_in[t*128 + 64 + 16*head + c];
                const float k = rstd_k[head] * qkv;
                k_out[t*32 + 16*head + c] = k;
            }
        }
    }
}
