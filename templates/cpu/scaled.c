// out[i] = S w[i]: a matrix times a learned scalar, as products read it
// holes: KERNEL  DTW (f32, bf16: dtype of w)  DT (dtype of out)  S (the scalar, of s0[0] and s1[0])
// items: 64, item b: elements b*n/64 .. (b+1)*n/64
void @KERNEL@(const HcArg *a, long item)
{
	@DT@ *restrict out = a[0].p;               // [n]
	const @DTW@ *restrict w = a[1].p;          // [n]
	const f32 *s0 = a[2].p, *s1 = a[3].p;      // [1], the second may be null
	const long n = a[4].i;
	const float s = @S@;
	(void)s1;

	for (long i = item * n / 64; i < (item + 1) * n / 64; i++)
		out[i] = ST_@DT@(s * LD_@DTW@(w[i]));
}
