// dst[i] += sum over b < 64, ascending, of part[b,i], in fp32
// holes: KERNEL
// items: 64, item b: columns b*width/64 .. (b+1)*width/64
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict dst = a[0].p;                // [width]
	const f32 *restrict part = a[1].p;         // [64, width]
	const long width = a[2].i;

	enum { W = 64 };                           // columns at a time: four vectors of sums
	const long end = (item + 1) * width / 64;

	for (long i0 = item * width / 64; i0 < end; i0 += W) {
		const long w = end - i0 < W ? end - i0 : W;
		float sum[W] = { 0 };

		for (long b = 0; b < 64; b++)
			for (long i = 0; i < w; i++)
				sum[i] += part[b * width + i0 + i];
		for (long i = 0; i < w; i++)
			dst[i0 + i] += sum[i];
	}
}
