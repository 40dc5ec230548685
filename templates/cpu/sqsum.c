// part[b] = sum of g[i]^2 over the range of item b, in double
// holes: KERNEL
// items: 64, each a multiple of 16 elements
void @KERNEL@(const HcArg *a, long item)
{
	double *restrict part = a[0].p;            // [64]
	const f32 *restrict g = a[1].p;            // [n]
	const long n = a[2].i;

	const long n16 = (n + 15) / 16;
	const long i0 = item * n16 / 64 * 16, end = (item + 1) * n16 / 64 * 16, i1 = end < n ? end : n;
	double sum = 0;

	#pragma omp simd reduction(+:sum)
	for (long i = i0; i < i1; i++)
		sum += (double)g[i] * g[i];
	part[item] = sum;
}
