// out[t,c] = table[idx[t],c]
// holes: KERNEL  DT (f32, bf16: dtype of out)  C  THREADS
// grid: T, block t: row t      threads: a quarter of C or less, in whole warps, 4 columns at a time

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	@DT@ *__restrict__ out,                          // [T, C]
	const f32 *__restrict__ table,                   // [rows, C]
	const i32 *__restrict__ idx,                     // [T]
	long T)
{
	enum { C = @C@, N = C % 4 ? 1 : 4, THREADS = @THREADS@ };
	const long t = blockIdx.x;
	const f32 *x = table + (long)idx[t] * C;
	@DT@ *y = out + t * C;

	#pragma unroll 4
	for (int j = 0; j < (C / N + THREADS - 1) / THREADS; j++) {
		const int c = (j * THREADS + (int)threadIdx.x) * N;

		if (C / N % THREADS == 0 || c < C) {
			float v[N];

			load_vec(v, x + c, N);
			store_vec(y + c, v, N);
		}
	}
}
