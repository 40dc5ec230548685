// dw[i] += S g[i], part[b] = sum of g[i] w[i] over the elements of item b: what a matrix and its scalar get of the
// gradient g of their product
// holes: KERNEL  DTW (f32, bf16: dtype of w)  S (the scalar, of s0[0] and s1[0])
// items: 64, item b: elements b*n/64 .. (b+1)*n/64
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict dw = a[0].p;                 // [n]
	f32 *restrict part = a[1].p;               // [64]
	const f32 *restrict g = a[2].p;            // [n]
	const @DTW@ *restrict w = a[3].p;          // [n]
	const f32 *s0 = a[4].p, *s1 = a[5].p;      // [1], the second may be null
	const long n = a[6].i;
	const float s = @S@;
	double sum = 0;
	(void)s1;

	#pragma omp simd reduction(+:sum)
	for (long i = item * n / 64; i < (item + 1) * n / 64; i++) {
		dw[i] += s * g[i];
		sum += (double)g[i] * LD_@DTW@(w[i]);
	}
	part[item] = (float)sum;
}
