// z = softcap(l) in place
// holes: KERNEL  VP  CAP (0 none, 1 tanh, 2 sigmoid)  CAPV  SHIFT  TEMP (float literals; 1.f 0.f 1.f where unused)  THREADS
// grid: any; a block takes every gridDim.x-th tile of 4 * THREADS vectors of 4 (single elements where VP is no multiple of 4)

// z of l, with e = exp(-2|l/cap|) or exp(-|x|): tanh = (1 - e)/(1 + e), near 0 its odd polynomial, where 1 - e would cancel
__device__ __forceinline__ float cap(float l)
{
	enum { CAP_KIND = @CAP@ };
	const float capv = @CAPV@, x = CAP_KIND == 1 ? l * (2.f / capv) : (l + @SHIFT@) * (1.f / @TEMP@);
	const float e = exp2_approx(fabsf(x) * -1.44269504f), inv = __fdividef(1.f, 1.f + e);

	return CAP_KIND == 0 ? l
	     : CAP_KIND == 1 ? capv * tanh_of(0.5f * x, (1.f - e) * inv)
	     : capv * ((x < 0.f ? e : 1.f) * inv);
}

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ logits,                        // [n, VP]
	long n)
{
	enum { VP = @VP@, N = VP % 4 ? 1 : 4, THREADS = @THREADS@, AHEAD = 4 };
	const long total = n * VP, stride = THREADS * N;

	for (long i = (long)blockIdx.x * AHEAD * stride + threadIdx.x * N; i < total; i += gridDim.x * AHEAD * stride) {
		float x[AHEAD][N];

		#pragma unroll
		for (int j = 0; j < AHEAD; j++)
			if (i + j * stride < total)
				load_vec(x[j], logits + i + j * stride, N);
		#pragma unroll
		for (int j = 0; j < AHEAD; j++)
			if (i + j * stride < total) {
				for (int e = 0; e < N; e++)
					x[j][e] = cap(x[j][e]);
				store_vec(logits + i + j * stride, x[j], N);
			}
	}
}
