// attn_glue_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.1 attn_glue_bwd
//           layers.0 attn_glue_bwd
// computes  drstd_k = <qkv[64..95], rotate(dk, -position)> per head
//           sum = (rotate(dk, -position))*rstd_k + -0.0625*rstd_k*rstd_k*rstd_k*drstd_k*qkv[64..95]
//           drstd_q = <qkv[0..63], rotate(dq, -position)> per head
//           sum_next = (rotate(dq, -position))*rstd_q + -0.0625*rstd_q*rstd_q*rstd_q*drstd_q*qkv[0..63]
//           dqkv = dv at 96 + sum at 64 + sum_next at 0
// types     arithmetic in f32; a stored value is rounded once, by its store
// sums      over channels: a thread's own in order; per head then its lanes by halves
// maps      block = row (grid T), thread = 8 channels = two 16-byte vectors (32 threads)
// moves     per row  read 920 B  write 512 B  = 1432 B
// flops     per row  1408 = 1.0 per byte      floor 0.333 ns per row at 4300 GB/s (h200)

// from templates/cuda/prelude_0types.cuh
typedef unsigned short bf16;
typedef float f32;
typedef int i32;

__device__ __forceinline__ float F32(bf16 x)
{
	return __uint_as_float((unsigned)x << 16);
}

// nearest, ties to even; a NaN stays a NaN
__device__ __forceinline__ bf16 BF16(float x)
{
	const unsigned u = __float_as_uint(x);

	return (bf16)(x == x ? (u + 0x7fffu + (u >> 16 & 1u)) >> 16 : u >> 16 | 0x40u);
}

// from templates/cuda/prelude_2intrin.cuh
#ifndef HC_SIMT
// two bf16, lo in the low half: nearest, ties to even; a NaN becomes 0x7fff. Plain asm, here and below, as the
// value depends on the operands alone: equal ones may be merged, unused ones dropped.
__device__ __forceinline__ unsigned pack_bf16x2(float lo, float hi)
{
	unsigned d;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
	return d;
}
#endif

#ifndef HC_SIMT
struct __align__(16) uint4x { unsigned v[4]; };
#endif

#ifndef HC_SIMT
// 16 bytes, aligned, that are read once: not kept in L1. Nobody may write them while the kernel runs (.nc), so
// it needs no "memory"; volatile, that it stays behind the condition which guards it.
__device__ __forceinline__ uint4x ld_stream16(const void *p)
{
	uint4x x;

	asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
	             : "=r"(x.v[0]), "=r"(x.v[1]), "=r"(x.v[2]), "=r"(x.v[3]) : "l"(__cvta_generic_to_global(p)));
	return x;
}
#endif

// from templates/cuda/prelude_3vec.cuh
// the neighbouring channels of one thread
struct __align__(16) bf16x8 { union { bf16 v[8]; unsigned w[4]; }; };

struct __align__(8) bf16x4 { union { bf16 v[4]; unsigned w[2]; }; };

struct __align__(4) bf16x2 { union { bf16 v[2]; unsigned w; }; };

struct __align__(16) f32x8 { union { float v[8]; unsigned w[8]; }; };

struct __align__(16) f32x4 { union { float v[4]; unsigned w[4]; }; };

// 8 channels from memory that is read once: 16 bytes of bf16, twice 16 of f32
__device__ __forceinline__ bf16x8 ld8(const bf16 *p)
{
	const uint4x u = ld_stream16(p);
	bf16x8 x;

	x.w[0] = u.v[0], x.w[1] = u.v[1], x.w[2] = u.v[2], x.w[3] = u.v[3];
	return x;
}

__device__ __forceinline__ f32x8 ld8(const float *p)
{
	const uint4x a = ld_stream16(p), b = ld_stream16(p + 4);
	f32x8 x;

	x.w[0] = a.v[0], x.w[1] = a.v[1], x.w[2] = a.v[2], x.w[3] = a.v[3];
	x.w[4] = b.v[0], x.w[5] = b.v[1], x.w[6] = b.v[2], x.w[7] = b.v[3];
	return x;
}

// 8 channels to memory; to bf16 they are rounded, to the nearest, ties to even
__device__ __forceinline__ void st8(bf16 *p, f32x8 x)
{
	*(uint4x *)p = uint4x{ { pack_bf16x2(x.v[0], x.v[1]), pack_bf16x2(x.v[2], x.v[3]),
	                         pack_bf16x2(x.v[4], x.v[5]), pack_bf16x2(x.v[6], x.v[7]) } };
}

__device__ __forceinline__ void st8(float *p, f32x8 x)
{
	*(uint4x *)p = uint4x{ { x.w[0], x.w[1], x.w[2], x.w[3] } };
	*(uint4x *)(p + 4) = uint4x{ { x.w[4], x.w[5], x.w[6], x.w[7] } };
}

__device__ __forceinline__ bf16x4 ld4(const bf16 *p)
{
	return *(const bf16x4 *)p;
}

__device__ __forceinline__ f32x4 ld4(const float *p)
{
	const uint4x u = ld_stream16(p);
	f32x4 x;

	x.w[0] = u.v[0], x.w[1] = u.v[1], x.w[2] = u.v[2], x.w[3] = u.v[3];
	return x;
}

// over groups of n neighbouring lanes, n a power of two
__device__ __forceinline__ float head_sum(float x, int n)
{
	#pragma unroll
	for (n /= 2; n > 0; n /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, n);
	return x;
}

// end

extern "C" __global__ __launch_bounds__(32, 8)
void attn_glue_bwd__n3_C48_f32(
          float *__restrict__ dqkv_out,                  // [T,128]
    const float *__restrict__ qkv_in,                    // [T,128]
    const float *__restrict__ dk_in,                     // [T,32]
    const float *__restrict__ dq_in,                     // [T,64]
    const float *__restrict__ dv_in,                     // [T,32]
    const float *__restrict__ rstd_k_in,                 // [T,2]
    const float *__restrict__ rstd_q_in,                 // [T,4]
    const float *__restrict__ cos,                       // [32,4]     rotary table
    const float *__restrict__ sin,                       // [32,4]     rotary table
    long T)                                              // rows
{
    __shared__ float drstd_k_head[2];
    const int c = 8*threadIdx.x;                         // first of this thread's channels
    const int d = c % 16;                                // the same within its head
    const int head = c / 16;

    const long t = blockIdx.x;
    const f32x8 qkv_v = c < 32 ? ld8(qkv_in + t*128 + c + 64) : f32x8();
    const f32x8 dk_v = c < 32 ? ld8(dk_in + t*32 + c) : f32x8();
    const f32x4 cos_v = c < 96 && d < 8 ? ld4(cos + (t % 32)*4 + d/2) : f32x4();
    const f32x4 sin_v = c < 96 && d < 8 ? ld4(sin + (t % 32)*4 + d/2) : f32x4();
    const f32x8 qkv_v_2 = c < 96 ? ld8(qkv_in + t*128 + c) : f32x8();
    const f32x8 dq_v = c < 64 ? ld8(dq_in + t*64 + c) : f32x8();
    const float rstd_q_2 = c < 64 ? rstd_q_in[t*4 + head] : 0.f;
    const f32x8 dk_v_2 = c >= 64 && c < 96 ? ld8(dk_in + t*32 + c - 64) : f32x8();
    const float rstd_k_2 = c >= 64 && c < 96 ? rstd_k_in[t*2 + head - 4] : 0.f;
    const f32x8 dv_v = c >= 96 && c < 128 ? ld8(dv_in + t*32 + c - 96) : f32x8();

    float drstd_k = 0.f;
    float drstd_q = 0.f;
    if (c < 32 && d < 8) {
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float qkv = qkv_v.v[2*i];
            const float dk = dk_v.v[2*i + 1];
            const float dk_2 = dk_v.v[2*i];
            const float x_2 = cos_v.v[i] * dk_2 - sin_v.v[i] * dk;
            drstd_k += qkv * x_2;
            const float qkv_2 = qkv_v.v[2*i + 1];
            const float x_13 = cos_v.v[i] * dk + sin_v.v[i] * dk_2;
            drstd_k += qkv_2 * x_13;
        }
    }
    else if (c < 32 && d >= 8) {
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float qkv = qkv_v.v[i];
            const float dk = dk_v.v[i];
            drstd_k += qkv * dk;
        }
    }
    if (c < 64 && d < 8) {
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float qkv = qkv_v_2.v[2*i];
            const float dq = dq_v.v[2*i + 1];
            const float dq_2 = dq_v.v[2*i];
            const float x_8 = cos_v.v[i] * dq_2 - sin_v.v[i] * dq;
            drstd_q += qkv * x_8;
            const float qkv_3 = qkv_v_2.v[2*i + 1];
            const float x_14 = cos_v.v[i] * dq + sin_v.v[i] * dq_2;
            drstd_q += qkv_3 * x_14;
        }
    }
    else if (c < 64 && d >= 8) {
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float qkv = qkv_v_2.v[i];
            const float dq = dq_v.v[i];
            drstd_q += qkv * dq;
        }
    }
    drstd_k = head_sum(drstd_k, 2);
    drstd_q = head_sum(drstd_q, 2);
    if (d == 0 && c < 32)
        drstd_k_head[head] = drstd_k;
    __syncthreads();

    if (c < 64 && d < 8) {
        f32x8 dqkv_o;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float dq = dq_v.v[2*i + 1];
            const float dq_3 = dq_v.v[2*i];
            const float x_8 = cos_v.v[i] * dq_3 - sin_v.v[i] * dq;
            const float qkv = qkv_v_2.v[2*i];
            const float dqkv = x_8 * rstd_q_2 + (-0.0625f) * (rstd_q_2 * rstd_q_2 * rstd_q_2 * drstd_q) * qkv;
            dqkv_o.v[2*i] = dqkv;
            const float x_15 = cos_v.v[i] * dq + sin_v.v[i] * dq_3;
            const float qkv_4 = qkv_v_2.v[2*i + 1];
            const float dqkv_2 = x_15 * rstd_q_2 + (-0.0625f) * (rstd_q_2 * rstd_q_2 * rstd_q_2 * drstd_q) * qkv_4;
            dqkv_o.v[2*i + 1] = dqkv_2;
        }
        st8(dqkv_out + t*128 + c, dqkv_o);
    }
    else if (c < 64 && d >= 8) {
        f32x8 dqkv_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float dq = dq_v.v[i];
            const float qkv = qkv_v_2.v[i];
            const float dqkv = dq * rstd_q_2 + (-0.0625f) * (rstd_q_2 * rstd_q_2 * rstd_q_2 * drstd_q) * qkv;
            dqkv_o.v[i] = dqkv;
        }
        st8(dqkv_out + t*128 + c, dqkv_o);
    }
    if (c >= 64 && c < 96 && d < 8) {
        f32x8 dqkv_o;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float dk = dk_v_2.v[2*i + 1];
            const float dk_3 = dk_v_2.v[2*i];
            const float x_2 = cos_v.v[i] * dk_3 - sin_v.v[i] * dk;
            const float qkv = qkv_v_2.v[2*i];
            const float dqkv = x_2 * rstd_k_2 + (-0.0625f) * (rstd_k_2 * rstd_k_2 * rstd_k_2 * drstd_k_head[head - 4]) * qkv;
            dqkv_o.v[2*i] = dqkv;
            const float x_16 = cos_v.v[i] * dk + sin_v.v[i] * dk_3;
            const float qkv_5 = qkv_v_2.v[2*i + 1];
            const float dqkv_3 = x_16 * rstd_k_2 + (-0.0625f) * (rstd_k_2 * rstd_k_2 * rstd_k_2 * drstd_k_head[head - 4]) * qkv_5;
            dqkv_o.v[2*i + 1] = dqkv_3;
        }
        st8(dqkv_out + t*128 + c, dqkv_o);
    }
    else if (c >= 64 && c < 96 && d >= 8) {
        f32x8 dqkv_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float dk = dk_v_2.v[i];
            const float qkv = qkv_v_2.v[i];
            const float dqkv = dk * rstd_k_2 + (-0.0625f) * (rstd_k_2 * rstd_k_2 * rstd_k_2 * drstd_k_head[head - 4]) * qkv;
            dqkv_o.v[i] = dqkv;
        }
        st8(dqkv_out + t*128 + c, dqkv_o);
    }
    if (c >= 96 && c < 128) {
        f32x8 dqkv_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float dv = dv_v.v[i];
            dqkv_o.v[i] = dv;
        }
        st8(dqkv_out + t*128 + c, dqkv_o);
    }
}
