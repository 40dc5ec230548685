// attn_glue_fwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.0 attn_glue_fwd
//           layers.1 attn_glue_fwd
// computes  rstd_q = rsqrt(0.0625*(<qkv[0..63], qkv[0..63]> per head) + 1e-06)
//           q = rotate(rstd_q*qkv[0..63], position)
//           rstd_k = rsqrt(0.0625*(<qkv[64..95], qkv[64..95]> per head) + 1e-06)
//           k = rotate(rstd_k*qkv[64..95], position)
// types     arithmetic in f32; a stored value is rounded once, by its store
// sums      over channels: a thread's own in order; per head then its lanes by halves
// maps      warp = row, 4 in a block (grid T/4), thread = 8 channels = two 16-byte vectors (128 threads)
// moves     per row  read 384 B  write 408 B  = 792 B
// flops     per row  468 = 0.6 per byte      floor 0.184 ns per row at 4300 GB/s (h200)

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

extern "C" __global__ __launch_bounds__(128, 4)
void attn_glue_fwd__n3_C48_f32(
          float *__restrict__ rstd_q_out,                // [T,4]
          float *__restrict__ q_out,                     // [T,64]
          float *__restrict__ rstd_k_out,                // [T,2]
          float *__restrict__ k_out,                     // [T,32]
    const float *__restrict__ qkv_in,                    // [T,128]
    const float *__restrict__ cos,                       // [32,4]     rotary table
    const float *__restrict__ sin,                       // [32,4]     rotary table
    long T)                                              // rows
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32; // a row is a warp's
    const int c = 8*lane;                                // first of this thread's channels
    const int d = c % 16;                                // the same within its head
    const int head = c / 16;

    const long t = blockIdx.x*4L + warp;
    if (t >= T)
        return;

    const f32x8 qkv_v = c < 64 ? ld8(qkv_in + t*128 + c) : f32x8();
    const f32x8 qkv_v_2 = c < 32 ? ld8(qkv_in + t*128 + c + 64) : f32x8();
    const f32x4 cos_v = c < 64 && d < 8 ? ld4(cos + (t % 32)*4 + d/2) : f32x4();
    const f32x4 sin_v = c < 64 && d < 8 ? ld4(sin + (t % 32)*4 + d/2) : f32x4();

    float dot = 0.f;
    float dot_2 = 0.f;
    if (c < 64) {
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float qkv = qkv_v.v[i];
            dot += qkv * qkv;
        }
    }
    if (c < 32) {
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float qkv = qkv_v_2.v[i];
            dot_2 += qkv * qkv;
        }
    }
    dot = head_sum(dot, 2);
    dot_2 = head_sum(dot_2, 2);
    const float rstd_q = rsqrtf(0.0625f * dot + 1e-06f);
    if (d == 0 && c < 64)
        rstd_q_out[t*4 + head] = rstd_q;
    const float rstd_k = rsqrtf(0.0625f * dot_2 + 1e-06f);
    if (d == 0 && c < 32)
        rstd_k_out[t*2 + head] = rstd_k;

    if (c < 64 && d < 8) {
        f32x8 q_o;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float qkv = qkv_v.v[2*i + 1];
            const float qkv_2 = qkv_v.v[2*i];
            const float q = cos_v.v[i] * (rstd_q * qkv_2) + sin_v.v[i] * (rstd_q * qkv);
            q_o.v[2*i] = q;
            const float q_2 = cos_v.v[i] * (rstd_q * qkv) - sin_v.v[i] * (rstd_q * qkv_2);
            q_o.v[2*i + 1] = q_2;
        }
        st8(q_out + t*64 + c, q_o);
    }
    else if (c < 64 && d >= 8) {
        f32x8 q_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float qkv = qkv_v.v[i];
            const float q = rstd_q * qkv;
            q_o.v[i] = q;
        }
        st8(q_out + t*64 + c, q_o);
    }
    if (c < 32 && d < 8) {
        f32x8 k_o;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float qkv = qkv_v_2.v[2*i + 1];
            const float qkv_3 = qkv_v_2.v[2*i];
            const float k = cos_v.v[i] * (rstd_k * qkv_3) + sin_v.v[i] * (rstd_k * qkv);
            k_o.v[2*i] = k;
            const float k_2 = cos_v.v[i] * (rstd_k * qkv) - sin_v.v[i] * (rstd_k * qkv_3);
            k_o.v[2*i + 1] = k_2;
        }
        st8(k_out + t*32 + c, k_o);
    }
    else if (c < 32 && d >= 8) {
        f32x8 k_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float qkv = qkv_v_2.v[i];
            const float k = rstd_k * qkv;
            k_o.v[i] = k;
        }
        st8(k_out + t*32 + c, k_o);
    }
}
