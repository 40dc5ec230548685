// grad[r,c] += sum of dout[t,c] over the tokens t of table row r, in fp32: those tokens are a run of `order`, which is
// taken in chunks of 64. What a chunk holds of a run is summed ascending; a run inside one chunk is added to grad here,
// the parts of a run that crosses into another chunk go to ws, for scatter_finish.
// holes: KERNEL  DT (f32, bf16: dtype of dout)  C  THREADS
// grid: ceil(T/64), block b: chunk b      threads: an eighth of C or less, in whole warps, 8 columns at a time

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ grad,                          // [R, C]
	const @DT@ *__restrict__ dout,                   // [T, C]
	const i32 *__restrict__ order,                   // [T] tokens sorted by row
	const i32 *__restrict__ start,                   // [R + 1] first index of each row's tokens in order
	long R,
	const i32 *__restrict__ idx,                     // [T] row of each token
	f32 *__restrict__ ws)                            // [chunks, 2, C] the run that began before, the run that goes on
{
	enum { C = @C@, N = C % 8 ? 1 : 8, THREADS = @THREADS@, CHUNK = 64, AHEAD = 4 };
	__shared__ i32 token[CHUNK + 2], row[CHUNK + 2];  // of position first - 1 + i; row -1 beyond the ends
	const long n = start[R], first = (long)blockIdx.x * CHUNK;
	const int len = n - first < CHUNK ? (int)(n - first) : CHUNK;

	#pragma unroll 1
	for (int i = threadIdx.x; i < CHUNK + 2; i += THREADS) {
		const long at = first - 1 + i;
		const bool is = at >= 0 && at < n;

		token[i] = is ? order[at] : 0;
		row[i] = is ? idx[token[i]] : -1;
	}
	__syncthreads();

	for (int c = threadIdx.x * N; c < C; c += THREADS * N) {
		float sum[N] = { 0 };

		for (int i = 1; i <= len; i += AHEAD) {
			float x[AHEAD][N], g[AHEAD][N];

			// all that these positions read, before anything is done with it
			#pragma unroll
			for (int j = 0; j < AHEAD; j++) {
				const int k = i + j <= len ? i + j : len;

				load_vec(x[j], dout + (long)token[k] * C + c, N);
				if (row[k] != row[k + 1] && row[k] != row[0])
					load_vec(g[j], grad + (long)row[k] * C + c, N);
			}
			#pragma unroll
			for (int j = 0; j < AHEAD; j++) {
				const int k = i + j;
				const bool ends = k <= len && row[k] != row[k + 1], began_before = k <= len && row[k] == row[0];

				if (k > len)
					break;
				for (int e = 0; e < N; e++)
					sum[e] += x[j][e];
				if (ends && !began_before) {
					for (int e = 0; e < N; e++)
						g[j][e] += sum[e];
					store_vec(grad + (long)row[k] * C + c, g[j], N);
				} else if (ends || k == len)
					store_vec(ws + ((long)blockIdx.x * 2 + !began_before) * C + c, sum, N);
				if (ends)
					for (int e = 0; e < N; e++)
						sum[e] = 0;
			}
		}
	}
}
