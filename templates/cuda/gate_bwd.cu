// dx[t,c] = sum over h of dy[t,h] w[h,W0+c] for c < N, 0 up to N8; part[b,h,W0+c] = sum of dy[t,h] x[t,c], elsewhere 0, over the rows of block b
// holes: KERNEL  DT (f32, bf16: dtype of x)  DTG (of dx)  H  N  C (channels of x)  WN (columns of w)  W0  THREADS
// grid: the number of partials; a block takes every gridDim.x-th tile of 64 rows (16 where H > 64)
// sums: over h ascending; over rows ascending, one thread per element of w

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	@DTG@ *__restrict__ dx,                          // [T, N8]
	f32 *__restrict__ part,                          // [gridDim.x, H, WN]
	const f32 *__restrict__ dy,                      // [T, H]
	const @DT@ *__restrict__ x,                      // [T, C]
	const f32 *__restrict__ w,                       // [H, WN]
	long T)
{
	enum { H = @H@, N = @N@, C = @C@, N8 = (N + 7) / 8 * 8, TILE = H > 64 ? 16 : 64, THREADS = @THREADS@ };
	enum { EACH = (H * N + THREADS - 1) / THREADS, WN = @WN@, W0 = @W0@ };
	__shared__ float ws[H * N], xs[TILE][N], ds[TILE][H];
	float sum[EACH] = { 0.f };

	for (int i = threadIdx.x; i < H * N; i += THREADS)
		ws[i] = w[i / N * WN + W0 + i % N];
	for (long t0 = (long)blockIdx.x * TILE; t0 < T; t0 += (long)gridDim.x * TILE) {
		const int rows = T - t0 < TILE ? (int)(T - t0) : TILE;

		__syncthreads();
		for (int i = threadIdx.x; i < rows * N; i += THREADS)
			xs[i / N][i % N] = LD_@DT@(x[(t0 + i / N) * C + i % N]);
		for (int i = threadIdx.x; i < rows * H; i += THREADS)
			ds[i / H][i % H] = dy[t0 * H + i];
		__syncthreads();
		for (int i = threadIdx.x; i < rows * N8; i += THREADS) {
			float d = 0.f;

			for (int h = 0; i % N8 < N && h < H; h++)
				d += ds[i / N8][h] * ws[h * N + i % N8];
			dx[t0 * N8 + i] = ST_@DTG@(d);
		}
		#pragma unroll
		for (int j = 0; j < EACH; j++) {
			const int i = threadIdx.x + j * THREADS;

			for (int r = 0; i < H * N && r < rows; r++)
				sum[j] += ds[r][i / N] * xs[r][i % N];
		}
	}
	part += (long)blockIdx.x * (H * WN);
	for (int i = threadIdx.x; i < H * WN; i += THREADS)
		if (i % WN < W0 || i % WN >= W0 + N)
			part[i] = 0.f;
	#pragma unroll
	for (int j = 0; j < EACH; j++) {
		const int i = threadIdx.x + j * THREADS;

		if (i < H * N)
			part[i / N * WN + W0 + i % N] = sum[j];
	}
}
