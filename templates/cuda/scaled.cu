// out[i] = S w[i]: a matrix times a learned scalar, as products read it
// holes: KERNEL  DTW (f32, bf16: dtype of w)  DT (dtype of out)  S (the scalar, of s0[0] and s1[0])  THREADS
// grid: any; a block takes every gridDim.x-th tile of 16 * THREADS elements

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	@DT@ *__restrict__ out,                          // [n]
	const @DTW@ *__restrict__ w,                     // [n]
	const f32 *__restrict__ s0,                      // [1]
	const f32 *__restrict__ s1,                      // [1] or null
	long n)
{
	enum { THREADS = @THREADS@, AHEAD = 4 };
	const long stride = THREADS * 4, tile = AHEAD * stride;
	const float s = @S@;

	for (long i = blockIdx.x * tile + threadIdx.x * 4; i < n; i += gridDim.x * tile) {
		float x[AHEAD][4];

		// the last tile may be cut short
		if (i - threadIdx.x * 4 + tile > n) {
			for (long k = i; k < n; k += stride)
				for (int e = 0; e < 4 && k + e < n; e++) {
					x[0][0] = s * LD_@DTW@(w[k + e]);
					store_vec(out + k + e, x[0], 1);
				}
			return;
		}
		#pragma unroll
		for (int j = 0; j < AHEAD; j++)
			load_vec(x[j], w + i + j * stride, 4);
		#pragma unroll
		for (int j = 0; j < AHEAD; j++) {
			for (int e = 0; e < 4; e++)
				x[j][e] *= s;
			store_vec(out + i + j * stride, x[j], 4);
		}
	}
}
