// for matrix i of the bank, s at s + matrix[i].row, over its rows r:
// F = sqrt(K*sum of q)      s = s + (1 - beta2)*(q - s)      k = 1/sqrt(max(s, 1e-10))
// G = sqrt(K*sum of q*k^2)      f[r] = k[r]*F/max(G, 1e-10)
// holes: KERNEL  N R K (matrices, rows, columns)  MATRICES (of each: where its s begins, in elements; beta2)  THREADS
// grid: N
// sums: each thread its rows t, t + THREADS, .. ascending, in double; then the threads by block_sum

__constant__ const struct { long row; double beta2; } matrix[@N@] = {
@MATRICES@
};

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ f,                             // [N,R]
	f32 *__restrict__ s,                             // moment2
	const f32 *__restrict__ q)                       // [N,R]
{
	enum { R = @R@, K = @K@, THREADS = @THREADS@ };
	__shared__ double red[32], red2[32];
	const float gain = (float)(1 - matrix[blockIdx.x].beta2);
	double all = 0, scaled = 0;

	f += blockIdx.x * (long)R;
	q += blockIdx.x * (long)R;
	s += matrix[blockIdx.x].row;
	for (int r = threadIdx.x; r < R; r += THREADS) {
		const float qr = q[r], sr = s[r] + gain * (qr - s[r]);
		const float k = 1.f / sqrtf(fmaxf(sr, 1e-10f));

		s[r] = sr;
		f[r] = k;
		all += qr;
		scaled += (double)qr * k * k;
	}
	all = block_sum(all, red);
	scaled = block_sum(scaled, red2);

	const double size = sqrt(K * scaled);
	const float scale = (float)(sqrt(K * all) / (size > 1e-10 ? size : 1e-10));

	for (int r = threadIdx.x; r < R; r += THREADS)
		f[r] *= scale;
}
