// lanes_attn_to_mlp_fwd__n3_C48_f32
// emitted by hcgen, format 1
// sites     layers.0 lanes_attn_to_mlp_fwd
// computes  lane0_next = x0_coef0*rstd*emb + resid_lambda0*lane0 + h
//           rstd_next = rsqrt(0.020833333333333332*(<lane0_next, lane0_next>) + 1e-06)
//           n = mlp_norm*rstd_next*lane0_next
//           lane0_part_2 = s*rstd*emb + resid_lambda0_2*lane0_next
// types     arithmetic in f32; a stored value is rounded once, by its store
// sums      over channels: a thread's own in order, then its warp by halves
// maps      warp = row, 4 in a block (grid T/4), thread = 8 channels = two 16-byte vectors (128 threads)
// moves     per row  read 580 B  write 580 B  = 1160 B
// flops     per row  630 = 0.5 per byte      floor 0.27 ns per row at 4300 GB/s (h200)

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

// over the lanes of a warp, by halves; every lane has the sum
__device__ __forceinline__ float warp_sum(float x)
{
	#pragma unroll
	for (int n = 16; n > 0; n /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, n);
	return x;
}

// end

extern "C" __global__ __launch_bounds__(128, 3)
void lanes_attn_to_mlp_fwd__n3_C48_f32(
          float *__restrict__ lane0_out,                 // [T,48]
          float *__restrict__ rstd_out,                  // [T,1]
          float *__restrict__ n_out,                     // [T,48]
          float *__restrict__ lane0_part_out,            // [T,48]
    const float *__restrict__ rstd_in,                   // [T,1]
    const float *__restrict__ emb_in,                    // [T,48]
    const float *__restrict__ lane0_in,                  // [T,48]
    const float *__restrict__ h_in,                      // [T,48]
    const float *__restrict__ x0_coef_row,               // [3]        hc.sources.x0.coef
    const float *__restrict__ resid_lambda_row,          // [3]        hc.resid_lambda
    const float *__restrict__ p_coef_row,                // [1]        hc.sources.p.coef
    const float *__restrict__ x0_coef_row_2,             // [3]        hc.sources.x0.coef
    const float *__restrict__ resid_lambda_row_2,        // [3]        hc.resid_lambda
    const float *__restrict__ mlp_norm_row,              // [48]       layers.0.mlp.norm
    long T)                                              // rows
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32; // a row is a warp's
    const int c = 8*lane;                                // first of this thread's channels

    const float x0_coef0 = F32(BF16(x0_coef_row[0]));
    const float resid_lambda0 = F32(BF16(resid_lambda_row[0]));
    const float p_coef = F32(BF16(p_coef_row[0]));
    const float x0_coef0_2 = F32(BF16(x0_coef_row_2[0]));
    const float s = x0_coef0_2 + p_coef;
    const float resid_lambda0_2 = F32(BF16(resid_lambda_row_2[0]));

    const f32x8 mlp_norm_v = c < 48 ? ld8(mlp_norm_row + c) : f32x8();

    const long t = blockIdx.x*4L + warp;
    if (t >= T)
        return;

    const f32x8 emb_v = c < 48 ? ld8(emb_in + t*48 + c) : f32x8();
    const f32x8 lane0_v = c < 48 ? ld8(lane0_in + t*48 + c) : f32x8();
    const f32x8 h_v = c < 48 ? ld8(h_in + t*48 + c) : f32x8();

    const float rstd = rstd_in[t];
    f32x8 lane0_next_keep;
    float dot = 0.f;
    if (c < 48) {
        f32x8 lane0_part_2_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float emb = emb_v.v[i];
            const float lane0 = lane0_v.v[i];
            const float h = h_v.v[i];
            const float lane0_next = x0_coef0 * rstd * emb + resid_lambda0 * lane0 + h;
            lane0_next_keep.v[i] = lane0_next;
            dot += lane0_next * lane0_next;
            const float lane0_part_2 = s * rstd * emb + resid_lambda0_2 * lane0_next;
            lane0_part_2_o.v[i] = lane0_part_2;
        }
        st8(lane0_out + t*48 + c, lane0_next_keep);
        st8(lane0_part_out + t*48 + c, lane0_part_2_o);
    }
    dot = warp_sum(dot);
    const float rstd_next = rsqrtf(0.0208333333f * dot + 1e-06f);
    if (lane == 0)
        rstd_out[t] = rstd_next;

    if (c < 48) {
        f32x8 n_o;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float n = mlp_norm_v.v[i] * (rstd_next * lane0_next_keep.v[i]);
            n_o.v[i] = n;
        }
        st8(n_out + t*48 + c, n_o);
    }
}
