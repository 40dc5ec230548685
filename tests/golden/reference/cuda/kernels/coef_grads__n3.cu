// coef_grads__n3
// emitted by hcgen, format 1
// sites     coefficient gradients
// computes  gradients of the coefficients from the sums over rows that the row
//           kernels left as P partials each
// types     f32
// sums      partials lane, lane + 32, … in order, then the warp by halves
// maps      one block; warp = a sum, then thread = a gradient

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

// from templates/cuda/prelude_3vec.cuh
// over the lanes of a warp, by halves; every lane has the sum
__device__ __forceinline__ float warp_sum(float x)
{
	#pragma unroll
	for (int n = 16; n > 0; n /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, n);
	return x;
}

// 1 / (1 + e^-x) without overflow on either side
__device__ __forceinline__ float sigmoidf(float x)
{
	const float e = expf(-fabsf(x));

	return (x < 0.f ? e : 1.f) / (1.f + e);
}

// end

extern "C" __global__ __launch_bounds__(1024)
void coef_grads__n3(
    const float *__restrict__ sums,                  // [55,P]
    float *__restrict__ dres,
    const float *__restrict__ resid_lambda,
    float *__restrict__ dpre,
    float *__restrict__ dpost,
    float *__restrict__ dresid_lambda,
    const float *__restrict__ res,
    float *__restrict__ dx0_coef,
    float *__restrict__ de_coef,
    float *__restrict__ dp_coef,
    const float *__restrict__ pre,
    float *__restrict__ dearly_gate,
    const float *__restrict__ early_gate,
    float *__restrict__ dmid_gate,
    const float *__restrict__ mid_gate,
    float *__restrict__ dback_gate,
    long P)
{
    __shared__ float total[55];
    const int lane = threadIdx.x % 32;

    for (int n = threadIdx.x / 32; n < 55; n += 32) {
        float sum = 0.f;

        for (long i = lane; i < P; i += 32)
            sum += sums[n*P + i];
        sum = warp_sum(sum);
        if (lane == 0)
            total[n] = sum;
    }
    __syncthreads();

    // hc.res
    if (threadIdx.x == 18) {
        dres[18] += F32(BF16(resid_lambda[6])) * total[38];
    }
    if (threadIdx.x == 19) {
        dres[19] += F32(BF16(resid_lambda[6])) * total[38];
    }
    if (threadIdx.x == 20) {
        dres[20] += F32(BF16(resid_lambda[6])) * total[38];
    }
    if (threadIdx.x == 21) {
        dres[21] += F32(BF16(resid_lambda[7])) * total[37];
    }
    if (threadIdx.x == 22) {
        dres[22] += F32(BF16(resid_lambda[7])) * total[37];
    }
    if (threadIdx.x == 23) {
        dres[23] += F32(BF16(resid_lambda[7])) * total[37];
    }
    if (threadIdx.x == 24) {
        dres[24] += F32(BF16(resid_lambda[8])) * total[36];
    }
    if (threadIdx.x == 25) {
        dres[25] += F32(BF16(resid_lambda[8])) * total[36];
    }
    if (threadIdx.x == 26) {
        dres[26] += F32(BF16(resid_lambda[8])) * total[36];
    }
    if (threadIdx.x == 27) {
        dres[27] += F32(BF16(resid_lambda[9])) * total[16];
    }
    if (threadIdx.x == 28) {
        dres[28] += F32(BF16(resid_lambda[9])) * total[25];
    }
    if (threadIdx.x == 29) {
        dres[29] += F32(BF16(resid_lambda[9])) * total[24];
    }
    if (threadIdx.x == 30) {
        dres[30] += F32(BF16(resid_lambda[10])) * total[15];
    }
    if (threadIdx.x == 31) {
        dres[31] += F32(BF16(resid_lambda[10])) * total[23];
    }
    if (threadIdx.x == 32) {
        dres[32] += F32(BF16(resid_lambda[10])) * total[22];
    }
    if (threadIdx.x == 33) {
        dres[33] += F32(BF16(resid_lambda[11])) * total[14];
    }
    if (threadIdx.x == 34) {
        dres[34] += F32(BF16(resid_lambda[11])) * total[21];
    }
    if (threadIdx.x == 35) {
        dres[35] += F32(BF16(resid_lambda[11])) * total[20];
    }
    if (threadIdx.x == 45) {
        dres[45] += 0.33333333f * (F32(BF16(resid_lambda[15])) * (F32(BF16(resid_lambda[21])) * total[12] + total[13]));
    }
    if (threadIdx.x == 46) {
        dres[46] += 0.33333333f * (F32(BF16(resid_lambda[15])) * (F32(BF16(resid_lambda[21])) * total[10] + total[11]));
    }
    if (threadIdx.x == 47) {
        dres[47] += 0.33333333f * (F32(BF16(resid_lambda[15])) * (F32(BF16(resid_lambda[21])) * total[8] + total[9]));
    }
    if (threadIdx.x == 48) {
        dres[48] += 0.33333333f * (F32(BF16(resid_lambda[16])) * (F32(BF16(resid_lambda[21])) * total[12] + total[13]));
    }
    if (threadIdx.x == 49) {
        dres[49] += 0.33333333f * (F32(BF16(resid_lambda[16])) * (F32(BF16(resid_lambda[21])) * total[10] + total[11]));
    }
    if (threadIdx.x == 50) {
        dres[50] += 0.33333333f * (F32(BF16(resid_lambda[16])) * (F32(BF16(resid_lambda[21])) * total[8] + total[9]));
    }
    if (threadIdx.x == 51) {
        dres[51] += F32(BF16(resid_lambda[17])) * total[7];
    }
    if (threadIdx.x == 52) {
        dres[52] += F32(BF16(resid_lambda[17])) * total[6];
    }
    if (threadIdx.x == 53) {
        dres[53] += F32(BF16(resid_lambda[17])) * total[5];
    }

    // hc.pre
    if (threadIdx.x == 78) {
        dpre[6] += total[39];
    }
    if (threadIdx.x == 79) {
        dpre[7] += total[39];
    }
    if (threadIdx.x == 80) {
        dpre[8] += total[39];
    }
    if (threadIdx.x == 87) {
        dpre[15] += total[19];
    }
    if (threadIdx.x == 88) {
        dpre[16] += total[18];
    }
    if (threadIdx.x == 89) {
        dpre[17] += total[17];
    }

    // hc.post
    if (threadIdx.x == 102) {
        dpost[6] += total[28];
    }
    if (threadIdx.x == 103) {
        dpost[7] += total[27];
    }
    if (threadIdx.x == 104) {
        dpost[8] += total[26];
    }

    // hc.resid_lambda
    if (threadIdx.x == 120) {
        dresid_lambda[0] += total[41];
    }
    if (threadIdx.x == 123) {
        dresid_lambda[3] += total[40];
    }
    if (threadIdx.x == 126) {
        dresid_lambda[6] += (F32(BF16(res[18])) + F32(BF16(res[19])) + F32(BF16(res[20]))) * total[38];
    }
    if (threadIdx.x == 127) {
        dresid_lambda[7] += (F32(BF16(res[21])) + F32(BF16(res[22])) + F32(BF16(res[23]))) * total[37];
    }
    if (threadIdx.x == 128) {
        dresid_lambda[8] += (F32(BF16(res[24])) + F32(BF16(res[25])) + F32(BF16(res[26]))) * total[36];
    }
    if (threadIdx.x == 129) {
        dresid_lambda[9] += F32(BF16(res[27])) * total[16] + F32(BF16(res[28])) * total[25] + F32(BF16(res[29])) * total[24];
    }
    if (threadIdx.x == 130) {
        dresid_lambda[10] += F32(BF16(res[30])) * total[15] + F32(BF16(res[31])) * total[23] + F32(BF16(res[32])) * total[22];
    }
    if (threadIdx.x == 131) {
        dresid_lambda[11] += F32(BF16(res[33])) * total[14] + F32(BF16(res[34])) * total[21] + F32(BF16(res[35])) * total[20];
    }
    if (threadIdx.x == 135) {
        dresid_lambda[15] += 0.33333333f * (F32(BF16(res[45])) * F32(BF16(resid_lambda[21])) * total[12] + F32(BF16(res[45])) * total[13] + F32(BF16(res[46])) * F32(BF16(resid_lambda[21])) * total[10] + F32(BF16(res[46])) * total[11] + F32(BF16(res[47])) * F32(BF16(resid_lambda[21])) * total[8] + F32(BF16(res[47])) * total[9]);
    }
    if (threadIdx.x == 136) {
        dresid_lambda[16] += 0.33333333f * (F32(BF16(res[48])) * F32(BF16(resid_lambda[21])) * total[12] + F32(BF16(res[48])) * total[13] + F32(BF16(res[49])) * F32(BF16(resid_lambda[21])) * total[10] + F32(BF16(res[49])) * total[11] + F32(BF16(res[50])) * F32(BF16(resid_lambda[21])) * total[8] + F32(BF16(res[50])) * total[9]);
    }
    if (threadIdx.x == 137) {
        dresid_lambda[17] += F32(BF16(res[51])) * total[7] + F32(BF16(res[52])) * total[6] + F32(BF16(res[53])) * total[5];
    }
    if (threadIdx.x == 141) {
        dresid_lambda[21] += total[2];
    }

    // hc.sources.x0.coef
    if (threadIdx.x == 144) {
        dx0_coef[0] += total[47];
    }
    if (threadIdx.x == 147) {
        dx0_coef[3] += total[46];
    }
    if (threadIdx.x == 150) {
        dx0_coef[6] += total[45];
    }
    if (threadIdx.x == 151) {
        dx0_coef[7] += total[44];
    }
    if (threadIdx.x == 152) {
        dx0_coef[8] += total[43];
    }
    if (threadIdx.x == 153) {
        dx0_coef[9] += total[33];
    }
    if (threadIdx.x == 154) {
        dx0_coef[10] += total[32];
    }
    if (threadIdx.x == 155) {
        dx0_coef[11] += total[31];
    }
    if (threadIdx.x == 159) {
        dx0_coef[15] += 0.33333333f * (F32(BF16(resid_lambda[21])) * total[29] + total[42]);
    }
    if (threadIdx.x == 160) {
        dx0_coef[16] += 0.33333333f * (F32(BF16(resid_lambda[21])) * total[29] + total[42]);
    }
    if (threadIdx.x == 161) {
        dx0_coef[17] += total[30];
    }
    if (threadIdx.x == 165) {
        dx0_coef[21] += total[29];
    }

    // hc.sources.e.coef
    if (threadIdx.x == 168) {
        de_coef[0] += total[51];
    }
    if (threadIdx.x == 174) {
        de_coef[6] += total[50];
    }
    if (threadIdx.x == 175) {
        de_coef[7] += total[49];
    }
    if (threadIdx.x == 176) {
        de_coef[8] += total[48];
    }

    // hc.sources.p.coef
    if (threadIdx.x == 193) {
        dp_coef[1] += F32(BF16(resid_lambda[8])) * F32(BF16(res[26])) * total[43] + F32(BF16(resid_lambda[7])) * F32(BF16(res[23])) * total[44] + F32(BF16(resid_lambda[6])) * F32(BF16(res[20])) * total[45] + F32(BF16(pre[8])) * total[52];
        dp_coef[1] += F32(BF16(resid_lambda[8])) * F32(BF16(res[25])) * total[43] + F32(BF16(resid_lambda[7])) * F32(BF16(res[22])) * total[44] + F32(BF16(resid_lambda[6])) * F32(BF16(res[19])) * total[45] + F32(BF16(pre[7])) * total[52];
        dp_coef[1] += F32(BF16(resid_lambda[8])) * F32(BF16(res[24])) * total[43] + F32(BF16(resid_lambda[7])) * F32(BF16(res[21])) * total[44] + F32(BF16(resid_lambda[6])) * F32(BF16(res[18])) * total[45] + F32(BF16(pre[6])) * total[52];
    }
    if (threadIdx.x == 195) {
        dp_coef[3] += F32(BF16(resid_lambda[21])) * total[29] + total[42];
    }

    // hc.skips.early.gate
    if (threadIdx.x == 196) {
        dearly_gate[0] += 2.f * (sigmoidf(early_gate[0]) * total[4] * (1.f - sigmoidf(early_gate[0])));
    }

    // hc.skips.mid.gate
    if (threadIdx.x == 197) {
        dmid_gate[0] += 0.11111111f * (sigmoidf(mid_gate[0]) * (F32(BF16(resid_lambda[21])) * total[0] + total[3] + F32(BF16(resid_lambda[21])) * total[34] + total[53] + F32(BF16(resid_lambda[21])) * total[35] + total[54]) * (1.f - sigmoidf(mid_gate[0])));
    }

    // hc.backouts.back.gate
    if (threadIdx.x == 198) {
        dback_gate[0] += -(total[1]);
    }
}
