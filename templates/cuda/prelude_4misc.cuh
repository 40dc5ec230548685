//% exports: load_vec store_vec; needs: bf16 f32 F32 BF16 pack_bf16x2
// x[i] = p[i] for i < n, n a constant. Where n is a multiple of 4, in pieces of 16 bytes (8 for four bf16), to which p
// is aligned; else one by one.
__device__ __forceinline__ void load_vec(float *x, const f32 *p, int n)
{
	if (n % 4)
		for (int i = 0; i < n; i++)
			x[i] = p[i];
	else
		for (int i = 0; i < n; i += 4) {
			const float4 u = *(const float4 *)(p + i);

			x[i] = u.x;
			x[i + 1] = u.y;
			x[i + 2] = u.z;
			x[i + 3] = u.w;
		}
}

__device__ __forceinline__ void load_bf16x2(float *x, unsigned u)
{
	x[0] = __uint_as_float(u << 16);
	x[1] = __uint_as_float(u & 0xffff0000u);
}

__device__ __forceinline__ void load_vec(float *x, const bf16 *p, int n)
{
	if (n % 4)
		for (int i = 0; i < n; i++)
			x[i] = F32(p[i]);
	else if (n % 8) {
		const uint2 u = *(const uint2 *)p;

		load_bf16x2(x, u.x);
		load_bf16x2(x + 2, u.y);
	} else {
		const uint4 u = *(const uint4 *)p;

		load_bf16x2(x, u.x);
		load_bf16x2(x + 2, u.y);
		load_bf16x2(x + 4, u.z);
		load_bf16x2(x + 6, u.w);
	}
}

// p[i] = x[i], rounded to the type of p; as load_vec
__device__ __forceinline__ void store_vec(f32 *p, const float *x, int n)
{
	if (n % 4)
		for (int i = 0; i < n; i++)
			p[i] = x[i];
	else
		for (int i = 0; i < n; i += 4)
			*(float4 *)(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

__device__ __forceinline__ void store_vec(bf16 *p, const float *x, int n)
{
	if (n % 4)
		for (int i = 0; i < n; i++)
			p[i] = BF16(x[i]);
	else if (n % 8)         // one word of 64 bits: as two of 32 the compiler splits the store
		*(unsigned long long *)p = (unsigned long long)pack_bf16x2(x[2], x[3]) << 32 | pack_bf16x2(x[0], x[1]);
	else
		*(uint4 *)p = make_uint4(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]),
		                         pack_bf16x2(x[4], x[5]), pack_bf16x2(x[6], x[7]));
}

//% exports: block_sum
// sum of x over the block, in every thread: lanes by xor 16 8 4 2 1, then warps likewise. red: shared,
// 32 elements that nobody has read since the last barrier.
__device__ __forceinline__ double block_sum(double x, double *red)
{
	const int lane = threadIdx.x % 32, warps = blockDim.x / 32;

	for (int i = 16; i; i >>= 1)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	if (lane == 0)
		red[threadIdx.x / 32] = x;
	__syncthreads();
	x = lane < warps ? red[lane] : 0;
	for (int i = 16; i; i >>= 1)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	return x;
}

//% exports: block_max
// largest x of the block, in every thread; NaNs are passed over. red: as in block_sum.
__device__ __forceinline__ float block_max(float x, float *red)
{
	const int lane = threadIdx.x % 32, warps = blockDim.x / 32;

	for (int i = 16; i; i >>= 1)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	if (lane == 0)
		red[threadIdx.x / 32] = x;
	__syncthreads();
	x = red[lane < warps ? lane : 0];
	for (int i = 16; i; i >>= 1)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}

//% exports: tanh_of
// tanh x: an odd polynomial where x is small and `big`, which a caller has from exponentials, would cancel
__device__ __forceinline__ float tanh_of(float x, float big)
{
	const float z = x * x;
	float p = -5.70498872745e-3f;

	p = fmaf(p, z, 2.06390887954e-2f);
	p = fmaf(p, z, -5.37397155531e-2f);
	p = fmaf(p, z, 1.33314422036e-1f);
	p = fmaf(p, z, -3.33332819422e-1f);
	return fabsf(x) < 0.625f ? fmaf(p * z, x, x) : x < 0.f ? -big : big;
}
