// dst = bf16(src)
// holes: KERNEL
// items: 64, each a multiple of 16 elements
void @KERNEL@(const HcArg *a, long item)
{
	bf16 *restrict dst = a[0].p;               // [n]
	const f32 *restrict src = a[1].p;          // [n]
	const long n = a[2].i;

	const long n16 = (n + 15) / 16;
	const long i0 = item * n16 / 64 * 16, end = (item + 1) * n16 / 64 * 16, i1 = end < n ? end : n;

	for (long i = i0; i < i1; i++)
		dst[i] = BF16(src[i]);
}
