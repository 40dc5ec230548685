// dw[i] += S g[i], part[b] = sum of g[i] w[i] over the elements of block b: what a matrix and its scalar get of the
// gradient g of their product
// holes: KERNEL  DTW (f32, bf16: dtype of w)  S (the scalar, of s0[0] and s1[0])  THREADS
// grid: the number of partials; a block takes every gridDim.x-th tile of 8 * THREADS elements
// sums: in double; each thread ascending; then the threads by block_sum

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ dw,                            // [n]
	f32 *__restrict__ part,                          // [gridDim.x]
	const f32 *__restrict__ g,                       // [n]
	const @DTW@ *__restrict__ w,                     // [n]
	const f32 *__restrict__ s0,                      // [1]
	const f32 *__restrict__ s1,                      // [1] or null
	long n)
{
	enum { THREADS = @THREADS@, AHEAD = 2 };
	__shared__ double red[32];
	const long stride = THREADS * 4, tile = AHEAD * stride;
	const float s = @S@;
	double sum = 0;

	for (long i = blockIdx.x * tile + threadIdx.x * 4; i < n; i += gridDim.x * tile) {
		float d[AHEAD][4], x[AHEAD][4], y[AHEAD][4];

		// the last tile may be cut short
		if (i - threadIdx.x * 4 + tile > n) {
			for (long k = i; k < n; k += stride)
				for (int e = 0; e < 4 && k + e < n; e++) {
					dw[k + e] += s * g[k + e];
					sum += (double)g[k + e] * LD_@DTW@(w[k + e]);
				}
			break;
		}
		#pragma unroll
		for (int j = 0; j < AHEAD; j++) {
			load_vec(d[j], dw + i + j * stride, 4);
			load_vec(x[j], g + i + j * stride, 4);
			load_vec(y[j], w + i + j * stride, 4);
		}
		#pragma unroll
		for (int j = 0; j < AHEAD; j++) {
			for (int e = 0; e < 4; e++) {
				d[j][e] += s * x[j][e];
				sum += (double)x[j][e] * y[j][e];
			}
			store_vec(dw + i + j * stride, d[j], 4);
		}
	}

	const double all = block_sum(sum, red);

	if (threadIdx.x == 0)
		part[blockIdx.x] = (float)all;
}
