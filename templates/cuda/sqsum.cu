// part[b] = sum of g[i]^2 over the elements of block b, in double
// holes: KERNEL  THREADS
// grid: the number of partials; a block takes every gridDim.x-th tile of 16 * THREADS elements
// sums: each thread keeps 4, of the elements of one remainder by 4, ascending; then the 4; then the threads by block_sum

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	double *__restrict__ part,                       // [gridDim.x]
	const f32 *__restrict__ g,                       // [n]
	long n)
{
	enum { THREADS = @THREADS@, AHEAD = 4 };
	__shared__ double red[32];
	const long stride = THREADS * 4, tile = AHEAD * stride;
	double sum[4] = { 0 };

	for (long i = blockIdx.x * tile + threadIdx.x * 4; i < n; i += gridDim.x * tile) {
		float x[AHEAD][4];

		// the last tile may be cut short
		if (i - threadIdx.x * 4 + tile <= n) {
			#pragma unroll
			for (int j = 0; j < AHEAD; j++)
				load_vec(x[j], g + i + j * stride, 4);
		} else
			for (int j = 0; j < AHEAD; j++)
				for (int e = 0; e < 4; e++)
					x[j][e] = i + j * stride + e < n ? g[i + j * stride + e] : 0.f;
		#pragma unroll
		for (int j = 0; j < AHEAD; j++)
			for (int e = 0; e < 4; e++)
				sum[e] += (double)x[j][e] * x[j][e];
	}

	const double all = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), red);

	if (threadIdx.x == 0)
		part[blockIdx.x] = all;
}
