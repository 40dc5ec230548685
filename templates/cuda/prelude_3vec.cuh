//% exports: bf16x8
// the neighbouring channels of one thread
struct __align__(16) bf16x8 { union { bf16 v[8]; unsigned w[4]; }; };

//% exports: bf16x4
struct __align__(8) bf16x4 { union { bf16 v[4]; unsigned w[2]; }; };

//% exports: bf16x2
struct __align__(4) bf16x2 { union { bf16 v[2]; unsigned w; }; };

//% exports: bf16x1
struct bf16x1 { bf16 v[1]; };

//% exports: f32x8
struct __align__(16) f32x8 { union { float v[8]; unsigned w[8]; }; };

//% exports: f32x4
struct __align__(16) f32x4 { union { float v[4]; unsigned w[4]; }; };

//% exports: f32x2
struct __align__(8) f32x2 { float v[2]; };

//% exports: f32x1
struct f32x1 { float v[1]; };

//% exports: ld8
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

//% exports: st8
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

//% exports: ld4
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

//% exports: st4
__device__ __forceinline__ void st4(bf16 *p, f32x4 x)
{
	bf16x4 y;

	y.w[0] = pack_bf16x2(x.v[0], x.v[1]), y.w[1] = pack_bf16x2(x.v[2], x.v[3]);
	*(bf16x4 *)p = y;
}

__device__ __forceinline__ void st4(float *p, f32x4 x)
{
	*(uint4x *)p = uint4x{ { x.w[0], x.w[1], x.w[2], x.w[3] } };
}

//% exports: ld2
__device__ __forceinline__ bf16x2 ld2(const bf16 *p)
{
	return *(const bf16x2 *)p;
}

__device__ __forceinline__ f32x2 ld2(const float *p)
{
	return *(const f32x2 *)p;
}

//% exports: st2
__device__ __forceinline__ void st2(bf16 *p, f32x2 x)
{
	bf16x2 y;

	y.w = pack_bf16x2(x.v[0], x.v[1]);
	*(bf16x2 *)p = y;
}

__device__ __forceinline__ void st2(float *p, f32x2 x)
{
	*(f32x2 *)p = x;
}

//% exports: ld1
__device__ __forceinline__ bf16x1 ld1(const bf16 *p)
{
	return bf16x1{ { *p } };
}

__device__ __forceinline__ f32x1 ld1(const float *p)
{
	return f32x1{ { *p } };
}

//% exports: st1
__device__ __forceinline__ void st1(bf16 *p, f32x1 x)
{
	*p = BF16(x.v[0]);
}

__device__ __forceinline__ void st1(float *p, f32x1 x)
{
	*p = x.v[0];
}

//% exports: warp_sum
// over the lanes of a warp, by halves; every lane has the sum
__device__ __forceinline__ float warp_sum(float x)
{
	#pragma unroll
	for (int n = 16; n > 0; n /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, n);
	return x;
}

//% exports: head_sum
// over groups of n neighbouring lanes, n a power of two
__device__ __forceinline__ float head_sum(float x, int n)
{
	#pragma unroll
	for (n /= 2; n > 0; n /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, n);
	return x;
}

//% exports: sum_put sum_get
// over a block: each warp leaves its sum; behind a barrier every thread adds those of the warps, in order
__device__ __forceinline__ void sum_put(float x, float *part)
{
	x = warp_sum(x);
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
}

__device__ __forceinline__ float sum_get(const float *part, int warps)
{
	float x = part[0];

	#pragma unroll
	for (int w = 1; w < warps; w++)
		x += part[w];
	return x;
}

//% exports: spread8
// sums of a to h over lanes: lane 4*i + j has the sum of the i'th over lanes j, j + 4, j + 8, ..
__device__ __forceinline__ float spread8(float a, float b, float c, float d, float e, float f, float g, float h)
{
	float x[8] = { a, b, c, d, e, f, g, h };

	#pragma unroll
	for (int n = 4; n > 0; n /= 2) {
		const bool upper = threadIdx.x & 4 * n;

		#pragma unroll
		for (int i = 0; i < n; i++)
			x[i] = (upper ? x[i + n] : x[i]) + __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + n], 4 * n);
	}
	return x[0];
}

//% exports: spread_total spread_put
// the rest of it: lanes 4*i to 4*i + 3 have the sum of the i'th
__device__ __forceinline__ float spread_total(float x)
{
	x += __shfl_xor_sync(0xffffffffu, x, 2);
	return x + __shfl_xor_sync(0xffffffffu, x, 1);
}

// each warp leaves its eight sums, those of one beside each other
__device__ __forceinline__ void spread_put(float x, float *part, int warps)
{
	x = spread_total(x);
	if (threadIdx.x % 4 == 0)
		part[threadIdx.x % 32 / 4 * warps + threadIdx.x / 32] = x;
}

//% exports: head_get
// over groups of n threads that are no part of a warp: what each left, in order
__device__ __forceinline__ float head_get(const float *part, int n)
{
	const int first = threadIdx.x / n * n;
	float x = part[first];

	#pragma unroll
	for (int i = 1; i < n; i++)
		x += part[first + i];
	return x;
}

//% exports: sigmoidf
// 1 / (1 + e^-x) without overflow on either side
__device__ __forceinline__ float sigmoidf(float x)
{
	const float e = expf(-fabsf(x));

	return (x < 0.f ? e : 1.f) / (1.f + e);
}

//% exports: RELU
#define RELU(x) ((x) > 0.f ? (x) : 0.f)

//% exports: STEP
#define STEP(x) ((x) > 0.f ? 1.f : 0.f)
