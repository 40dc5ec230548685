// out[c,r] = x[r,c], bytes
// holes: KERNEL  C
// items: 64, item b: columns b*C/64 .. (b+1)*C/64
void @KERNEL@(const HcArg *a, long item)
{
	unsigned char *restrict out = a[0].p;      // [C, ld]
	const unsigned char *restrict x = a[1].p;  // [n, C]
	const long n = a[2].i, ld = a[3].i;

	enum { C = @C@, TILE = 64 };
	const long first = item * C / 64, end = (item + 1) * C / 64;

	for (long c0 = first; c0 < end; c0 += TILE)
		for (long r0 = 0; r0 < n; r0 += TILE) {
			const long c1 = c0 + TILE < end ? c0 + TILE : end, r1 = r0 + TILE < n ? r0 + TILE : n;

			for (long c = c0; c < c1; c++)
				for (long r = r0; r < r1; r++)
					out[c * ld + r] = x[r * C + c];
		}
}
