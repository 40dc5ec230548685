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
// types     arithmetic in f32; a stored value is rounded once, by its store
// sums      over channels: a thread's own in order, then its warp by halves
//           over rows: those of a warp ascending; one partial per warp
// maps      warp = every 4G'th row (grid G, 4 rows at a time), thread = 8 channels = two 16-byte vectors (128 threads)
// moves     per row  read 2116 B  write 768 B  = 2884 B
// flops     per row  3264 = 1.1 per byte      floor 0.671 ns per row at 4300 GB/s (h200)

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
void lanes_mlp_to_mlp_bwd__n3_C48_f32(
          float *__restrict__ dlane1_out,                // [T,48]
          float *__restrict__ dlane2_out,                // [T,48]
          float *__restrict__ dx0_out,                   // [T,48]
          float *__restrict__ dh_out,                    // [T,48]
    const float *__restrict__ dn_in,                     // [T,48]
    const float *__restrict__ rstd_in,                   // [T,1]
    const float *__restrict__ lane0_in,                  // [T,48]
    const float *__restrict__ dout_in,                   // [T,48]
    const float *__restrict__ x0_in,                     // [T,48]
    const float *__restrict__ lane0_in_2,                // [T,48]
    const float *__restrict__ lane1_in,                  // [T,48]
    const float *__restrict__ lane2_in,                  // [T,48]
    const float *__restrict__ dx0_in,                    // [T,48]
    const float *__restrict__ lane0_in_3,                // [T,48]
    const float *__restrict__ lane1_in_2,                // [T,48]
    const float *__restrict__ lane2_in_2,                // [T,48]
          float *__restrict__ part,                      // [P,48]     partial sums, one row per block of rows
    const float *__restrict__ resid_lambda_row,          // [3]        hc.resid_lambda
    const float *__restrict__ back_gate_row,             // [1]        hc.backouts.back.gate
    const float *__restrict__ res_row,                   // [9]        hc.res
    const float *__restrict__ x0_coef_row,               // [3]        hc.sources.x0.coef
          float *__restrict__ sums,                      // [12,P]     partial sums, one column per block of rows
    const float *__restrict__ mlp_norm_row,              // [48]       layers.3.mlp.norm
    long T,                                              // rows
    long P)                                              // partials per sum
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32; // a row is a warp's
    const int c = 8*lane;                                // first of this thread's channels

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
    f32x8 part_sum_keep = f32x8();
    float dp_coef = 0.f;
    float sum = 0.f;
    float dx0_coef2 = 0.f;
    float dresid_lambda2 = 0.f;
    float dres8 = 0.f;
    float dres7 = 0.f;
    float dres6 = 0.f;
    float dresid_lambda1 = 0.f;
    float dres5 = 0.f;
    float dres4 = 0.f;
    float dres3 = 0.f;
    float dresid_lambda0 = 0.f;

    const f32x8 mlp_norm_v = c < 48 ? ld8(mlp_norm_row + c) : f32x8();

    for (long t = blockIdx.x*4L + warp; t < T; t += gridDim.x*4L) {
        const f32x8 dn_v = c < 48 ? ld8(dn_in + t*48 + c) : f32x8();
        const f32x8 lane0_v = c < 48 ? ld8(lane0_in + t*48 + c) : f32x8();
        const f32x8 x0_v = c < 48 ? ld8(x0_in + t*48 + c) : f32x8();
        const f32x8 dout_v = c < 48 ? ld8(dout_in + t*48 + c) : f32x8();
        const f32x8 lane0_2_v = c < 48 ? ld8(lane0_in_2 + t*48 + c) : f32x8();
        const f32x8 lane1_v = c < 48 ? ld8(lane1_in + t*48 + c) : f32x8();
        const f32x8 lane2_v = c < 48 ? ld8(lane2_in + t*48 + c) : f32x8();
        const f32x8 lane0_3_v = c < 48 ? ld8(lane0_in_3 + t*48 + c) : f32x8();
        const f32x8 lane1_2_v = c < 48 ? ld8(lane1_in_2 + t*48 + c) : f32x8();
        const f32x8 lane2_2_v = c < 48 ? ld8(lane2_in_2 + t*48 + c) : f32x8();
        const f32x8 dx0_v = c < 48 ? ld8(dx0_in + t*48 + c) : f32x8();

        const float rstd = rstd_in[t];
        f32x8 x_4_keep;
        float drstd = 0.f;
        if (c < 48) {
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                const float dn = dn_v.v[i];
                const float lane0 = lane0_v.v[i];
                part_sum_keep.v[i] += dn * (rstd * lane0);
                const float x_4 = dn * mlp_norm_v.v[i];
                x_4_keep.v[i] = x_4;
                drstd += lane0 * x_4;
            }
        }
        drstd = warp_sum(drstd);

        if (c < 48) {
            f32x8 dlane1_o;
            f32x8 dlane2_o;
            f32x8 dx0_next_3_o;
            f32x8 dh_o;
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                const float x0 = x0_v.v[i];
                const float dout = dout_v.v[i];
                const float lane0 = lane0_v.v[i];
                const float dlane0 = dout * resid_lambda0 + x_4_keep.v[i] * rstd + (-0.0208333333f) * (drstd * (rstd * (rstd * rstd))) * lane0;
                dp_coef += x0 * dlane0;
                const float dlane1 = 0.33333333f * dlane0;
                dlane1_o.v[i] = dlane1;
                const float dlane2 = -dout * back_gate + dlane1;
                dlane2_o.v[i] = dlane2;
                const float lane0_2 = lane0_2_v.v[i];
                const float lane1 = lane1_v.v[i];
                const float lane2 = lane2_v.v[i];
                sum += (lane0_2 + lane1 + lane2) * dlane0;
                dx0_coef2 += x0 * dlane2;
                const float lane0_3 = lane0_3_v.v[i];
                const float lane1_2 = lane1_2_v.v[i];
                const float lane2_2 = lane2_2_v.v[i];
                dresid_lambda2 += (res6 * lane0_3 + res7 * lane1_2 + res8 * lane2_2) * dlane2;
                dres8 += lane2_2 * dlane2;
                dres7 += lane1_2 * dlane2;
                dres6 += lane0_3 * dlane2;
                dresid_lambda1 += (res3 * lane0_3 + res4 * lane1_2 + res5 * lane2_2) * dlane0;
                dres5 += lane2_2 * dlane0;
                dres4 += lane1_2 * dlane0;
                dres3 += lane0_3 * dlane0;
                const float dx0 = dx0_v.v[i];
                const float dx0_next_3 = dx0 + dlane2 * x0_coef2 + dlane1 * x0_coef1 + dlane1 * x0_coef0;
                dx0_next_3_o.v[i] = dx0_next_3;
                const float dh = dlane2 + dlane1 + dlane1;
                dh_o.v[i] = dh;
                dresid_lambda0 += (res0 * lane0_3 + res1 * lane1_2 + res2 * lane2_2) * dlane0;
            }
            st8(dlane1_out + t*48 + c, dlane1_o);
            st8(dlane2_out + t*48 + c, dlane2_o);
            st8(dx0_out + t*48 + c, dx0_next_3_o);
            st8(dh_out + t*48 + c, dh_o);
        }
    }
    dp_coef = warp_sum(dp_coef);
    sum = warp_sum(sum);
    dx0_coef2 = warp_sum(dx0_coef2);
    dresid_lambda2 = warp_sum(dresid_lambda2);
    dres8 = warp_sum(dres8);
    dres7 = warp_sum(dres7);
    dres6 = warp_sum(dres6);
    dresid_lambda1 = warp_sum(dresid_lambda1);
    dres5 = warp_sum(dres5);
    dres4 = warp_sum(dres4);
    dres3 = warp_sum(dres3);
    dresid_lambda0 = warp_sum(dresid_lambda0);

    for (long slot = blockIdx.x*4L + warp; slot < P; slot += gridDim.x*4L) {
        const bool own = slot == blockIdx.x*4L + warp;

        if (c < 48)
            st8(part + slot*48 + c, own ? part_sum_keep : f32x8());
        if (lane == 0) {
            sums[slot] = own ? dp_coef : 0.f;
            sums[P + slot] = own ? sum : 0.f;
            sums[2*P + slot] = own ? dx0_coef2 : 0.f;
            sums[3*P + slot] = own ? dresid_lambda2 : 0.f;
            sums[4*P + slot] = own ? dres8 : 0.f;
            sums[5*P + slot] = own ? dres7 : 0.f;
            sums[6*P + slot] = own ? dres6 : 0.f;
            sums[7*P + slot] = own ? dresid_lambda1 : 0.f;
            sums[8*P + slot] = own ? dres5 : 0.f;
            sums[9*P + slot] = own ? dres4 : 0.f;
            sums[10*P + slot] = own ? dres3 : 0.f;
            sums[11*P + slot] = own ? dresid_lambda0 : 0.f;
        }
    }
}
