// q[r] = mean of the squares of row r, over all matrices of the bank
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x)
// items: N*R/16, rounded up: 16 rows each
// sums: in fp32, in the lanes of the compiler's vectors, then these
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict q = a[0].p;                  // [N,R]
	const @DT@ *restrict x = a[1].p;           // [N,R,K]
	const long n = @N@L * @R@, end = item * 16 + 16 < n ? item * 16 + 16 : n;

	for (long r = item * 16; r < end; r++) {
		float sum = 0;

		#pragma omp simd reduction(+:sum)
		for (long j = 0; j < @K@; j++)
			sum += LD_@DT@(x[r * @K@ + j]) * LD_@DT@(x[r * @K@ + j]);
		q[r] = sum / @K@;
	}
}
