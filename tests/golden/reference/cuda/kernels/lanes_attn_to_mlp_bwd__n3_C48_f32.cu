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
// types     arithmetic in f32; a stored value is rounded once, by its store
// sums      over channels: a thread's own in order, then its warp by halves
//           over rows: those of a warp ascending; one partial per warp
// maps      warp = every 4G'th row (grid G, 4 rows at a time), thread = 8 channels = two 16-byte vectors (128 threads)
// moves     per row  read 1540 B  write 384 B  = 1924 B
// flops     per row  2784 = 1.4 per byte      floor 0.447 ns per row at 4300 GB/s (h200)

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

extern "C" __global__ __launch_bounds__(128, 2)
void lanes_attn_to_mlp_bwd__n3_C48_f32(
          float *__restrict__ dlane0_out,                // [T,48]
          float *__restrict__ dx0_out,                   // [T,48]
    const float *__restrict__ dn_in,                     // [T,48]
    const float *__restrict__ rstd_in,                   // [T,1]
    const float *__restrict__ lane0_in,                  // [T,48]
    const float *__restrict__ dlane2_in,                 // [T,48]
    const float *__restrict__ dlane1_in,                 // [T,48]
    const float *__restrict__ dlane0_in,                 // [T,48]
    const float *__restrict__ x0_in,                     // [T,48]
    const float *__restrict__ dx0_in,                    // [T,48]
    const float *__restrict__ lane0_in_2,                // [T,48]
          float *__restrict__ part,                      // [P,48]     partial sums, one row per block of rows
    const float *__restrict__ pre_row,                   // [3]        hc.pre
    const float *__restrict__ resid_lambda_row,          // [3]        hc.resid_lambda
    const float *__restrict__ res_row,                   // [9]        hc.res
    const float *__restrict__ x0_coef_row,               // [3]        hc.sources.x0.coef
          float *__restrict__ sums,                      // [6,P]      partial sums, one column per block of rows
    const float *__restrict__ attn_norm_row,             // [48]       layers.1.attn.norm
    long T,                                              // rows
    long P)                                              // partials per sum
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32; // a row is a warp's
    const int c = 8*lane;                                // first of this thread's channels

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
    f32x8 part_sum_keep = f32x8();
    float dpre2 = 0.f;
    float dp_coef = 0.f;
    float dp_coef_next = 0.f;
    float dp_coef_next_2 = 0.f;
    float dx0_coef0 = 0.f;
    float dresid_lambda0 = 0.f;

    const f32x8 attn_norm_v = c < 48 ? ld8(attn_norm_row + c) : f32x8();

    for (long t = blockIdx.x*4L + warp; t < T; t += gridDim.x*4L) {
        const f32x8 lane0_v = c < 48 ? ld8(lane0_in + t*48 + c) : f32x8();
        const f32x8 dn_v = c < 48 ? ld8(dn_in + t*48 + c) : f32x8();
        const f32x8 x0_v = c < 48 ? ld8(x0_in + t*48 + c) : f32x8();
        const f32x8 dlane2_v = c < 48 ? ld8(dlane2_in + t*48 + c) : f32x8();
        const f32x8 dlane1_v = c < 48 ? ld8(dlane1_in + t*48 + c) : f32x8();
        const f32x8 dlane0_v = c < 48 ? ld8(dlane0_in + t*48 + c) : f32x8();
        const f32x8 dx0_v = c < 48 ? ld8(dx0_in + t*48 + c) : f32x8();
        const f32x8 lane0_2_v = c < 48 ? ld8(lane0_in_2 + t*48 + c) : f32x8();

        const float rstd = rstd_in[t];
        f32x8 u_keep;
        f32x8 x_7_keep;
        float drstd = 0.f;
        if (c < 48) {
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                const float lane0 = lane0_v.v[i];
                const float u = pre0 * lane0 + pre1 * lane0 + pre2 * lane0;
                u_keep.v[i] = u;
                const float dn = dn_v.v[i];
                part_sum_keep.v[i] += dn * (rstd * u);
                const float x_7 = dn * attn_norm_v.v[i];
                x_7_keep.v[i] = x_7;
                drstd += u * x_7;
            }
        }
        drstd = warp_sum(drstd);

        if (c < 48) {
            f32x8 dlane0_next_2_o;
            f32x8 dx0_next_o;
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                const float lane0 = lane0_v.v[i];
                const float du = x_7_keep.v[i] * rstd + (-0.0208333333f) * (drstd * (rstd * (rstd * rstd))) * u_keep.v[i];
                dpre2 += lane0 * du;
                const float x0 = x0_v.v[i];
                const float dlane2 = dlane2_v.v[i];
                const float x_10 = dlane2 * resid_lambda2;
                const float dlane1 = dlane1_v.v[i];
                const float x_12 = dlane1 * resid_lambda1;
                const float dlane0 = dlane0_v.v[i];
                const float x_15 = dlane0 * resid_lambda0;
                const float dlane2_next = x_10 * res8 + x_12 * res5 + x_15 * res2 + du * pre2;
                dp_coef += x0 * dlane2_next;
                const float dlane1_next = x_10 * res7 + x_12 * res4 + x_15 * res1 + du * pre1;
                dp_coef_next += x0 * dlane1_next;
                const float dlane0_next = x_10 * res6 + x_12 * res3 + x_15 * res0 + du * pre0;
                const float dlane0_next_2 = dlane2_next + dlane1_next + dlane0_next;
                dlane0_next_2_o.v[i] = dlane0_next_2;
                dp_coef_next_2 += x0 * dlane0_next;
                dx0_coef0 += x0 * dlane0_next_2;
                const float dx0 = dx0_v.v[i];
                const float dx0_next = dx0 + dlane0_next_2 * x0_coef0;
                dx0_next_o.v[i] = dx0_next;
                const float lane0_2 = lane0_2_v.v[i];
                dresid_lambda0 += lane0_2 * dlane0_next_2;
            }
            st8(dlane0_out + t*48 + c, dlane0_next_2_o);
            st8(dx0_out + t*48 + c, dx0_next_o);
        }
    }
    dpre2 = warp_sum(dpre2);
    dp_coef = warp_sum(dp_coef);
    dp_coef_next = warp_sum(dp_coef_next);
    dp_coef_next_2 = warp_sum(dp_coef_next_2);
    dx0_coef0 = warp_sum(dx0_coef0);
    dresid_lambda0 = warp_sum(dresid_lambda0);

    for (long slot = blockIdx.x*4L + warp; slot < P; slot += gridDim.x*4L) {
        const bool own = slot == blockIdx.x*4L + warp;

        if (c < 48)
            st8(part + slot*48 + c, own ? part_sum_keep : f32x8());
        if (lane == 0) {
            sums[slot] = own ? dpre2 : 0.f;
            sums[P + slot] = own ? dp_coef : 0.f;
            sums[2*P + slot] = own ? dp_coef_next : 0.f;
            sums[3*P + slot] = own ? dp_coef_next_2 : 0.f;
            sums[4*P + slot] = own ? dx0_coef0 : 0.f;
            sums[5*P + slot] = own ? dresid_lambda0 : 0.f;
        }
    }
}
