// mlp_glue_bwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.3 mlp_glue_bwd
//           layers.2 mlp_glue_bwd
//           layers.1 mlp_glue_bwd
//           layers.0 mlp_glue_bwd
// computes  sum = dact*up[80..159]*sigmoid(up[0..79]) + dact*up[80..159]*up[0..79]*(sigmoid(up[0..79])*(1 - sigmoid(up[0..79])))
//           dup = dact*up[0..79]*sigmoid(up[0..79]) at 80 + sum at 0
// types     arithmetic in f32; a stored value is rounded once, by its store
// maps      warp = row, 4 in a block (grid T/4), thread = 8 channels = two 16-byte vectors (128 threads)
// moves     per row  read 960 B  write 640 B  = 1600 B
// flops     per row  2480 = 1.6 per byte      floor 0.372 ns per row at 4300 GB/s (h200)

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

struct __align__(4) bf16x2 { union { bf16 v[2]; unsigned w; }; };

struct __align__(16) f32x8 { union { float v[8]; unsigned w[8]; }; };

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

// 1 / (1 + e^-x) without overflow on either side
__device__ __forceinline__ float sigmoidf(float x)
{
	const float e = expf(-fabsf(x));

	return (x < 0.f ? e : 1.f) / (1.f + e);
}

// end

extern "C" __global__ __launch_bounds__(128, 4)
void mlp_glue_bwd__n3_C48_f32(
          float *__restrict__ dup_out,                   // [T,160]
    const float *__restrict__ dact_in,                   // [T,80]
    const float *__restrict__ up_in,                     // [T,160]
    long T)                                              // rows
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32; // a row is a warp's
    const int c = 8*lane;                                // first of this thread's channels

    const long t = blockIdx.x*4L + warp;
    if (t >= T)
        return;

    const f32x8 dact_v = c < 80 ? ld8(dact_in + t*80 + c) : f32x8();
    const f32x8 up_v = c < 80 ? ld8(up_in + t*160 + c + 80) : f32x8();
    const f32x8 up_v_2 = c < 80 ? ld8(up_in + t*160 + c) : f32x8();
    const f32x8 dact_v_2 = c >= 80 && c < 160 ? ld8(dact_in + t*80 + c - 80) : f32x8();
    const f32x8 up_v_3 = c >= 80 && c < 160 ? ld8(up_in + t*160 + c - 80) : f32x8();

    if (c < 80) {
        f32x8 dup_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float dact = dact_v.v[i];
            const float up = up_v.v[i];
            const float x_7 = dact * up;
            const float up_2 = up_v_2.v[i];
            const float x_2 = sigmoidf(up_2);
            const float dup = x_7 * x_2 + x_7 * up_2 * (x_2 * (1.f - x_2));
            dup_o.v[i] = dup;
        }
        st8(dup_out + t*160 + c, dup_o);
    }
    else if (c >= 80 && c < 160) {
        f32x8 dup_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float dact = dact_v_2.v[i];
            const float up = up_v_3.v[i];
            const float x_2 = sigmoidf(up);
            const float dup = dact * (up * x_2);
            dup_o.v[i] = dup;
        }
        st8(dup_out + t*160 + c, dup_o);
    }
}
