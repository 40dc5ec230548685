// out[r,c] = e4m3(x[r,c] * BY), and the same transposed: the two forms in which FP8 products read a matrix
// holes: KERNEL  DT (f32, bf16: dtype of x)  C  BY (448 over the number that becomes 448, a float literal)
//        X (the number that is rounded, of v: v, or F32(BF16(v)))
// items: 64, item b: rows b*n/64 .. (b+1)*n/64
void @KERNEL@(const HcArg *a, long item)
{
	f8e4m3 *restrict out = a[0].p;             // [n, C]
	f8e4m3 *restrict turned = a[1].p;          // [C, ld]
	const @DT@ *restrict x = a[2].p;           // [n, C]
	const long n = a[3].i, ld = a[4].i;

	enum { C = @C@, TILE = 64 };
	const long first = item * n / 64, end = (item + 1) * n / 64;

	for (long i = first * C; i < end * C; i++) {
		const float v = LD_@DT@(x[i]);

		out[i] = E4M3(@X@ * @BY@);
	}
	for (long r0 = first; r0 < end; r0 += TILE) {
		const long r1 = r0 + TILE < end ? r0 + TILE : end;

		for (long c = 0; c < C; c++)
			for (long r = r0; r < r1; r++)
				turned[c * ld + r] = out[r * C + c];
	}
}
