// for matrix i of the bank, s at s + matrix[i].row, over its rows r:
// F = sqrt(K*sum of q)      s = s + (1 - beta2)*(q - s)      k = 1/sqrt(max(s, 1e-10))
// G = sqrt(K*sum of q*k^2)      f[r] = k[r]*F/max(G, 1e-10)
// holes: KERNEL  N R K (matrices, rows, columns)  MATRICES (of each: where its s begins, in elements; beta2)
// items: N
// sums: over rows ascending, in double
static const struct { long row; double beta2; } matrix[@N@] = {
@MATRICES@
};

void @KERNEL@(const HcArg *a, long item)
{
	enum { R = @R@, K = @K@ };
	f32 *restrict f = (f32 *)a[0].p + item * R;                     // [N,R]
	f32 *restrict s = (f32 *)a[1].p + matrix[item].row;             // moment2: [R]
	const f32 *restrict q = (const f32 *)a[2].p + item * R;         // [N,R]
	const float gain = (float)(1 - matrix[item].beta2);
	double all = 0, scaled = 0;

	for (long r = 0; r < R; r++) {
		const float sr = s[r] + gain * (q[r] - s[r]);
		const float k = 1.f / __builtin_sqrtf(sr > 1e-10f ? sr : 1e-10f);

		s[r] = sr;
		f[r] = k;
		all += q[r];
		scaled += (double)q[r] * k * k;
	}

	const double big = __builtin_sqrt(K * all), size = __builtin_sqrt(K * scaled);
	const float scale = (float)(big / (size > 1e-10 ? size : 1e-10));

	for (long r = 0; r < R; r++)
		f[r] *= scale;
}
