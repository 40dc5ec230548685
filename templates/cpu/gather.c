// out[t,c] = table[idx[t],c]
// holes: KERNEL  DT (f32, bf16: dtype of out)  C
// items: 64, item b: rows b*T/64 .. (b+1)*T/64
void @KERNEL@(const HcArg *a, long item)
{
	@DT@ *restrict out = a[0].p;               // [T, C]
	const f32 *restrict table = a[1].p;        // [rows, C]
	const i32 *restrict idx = a[2].p;          // [T]
	const long T = a[3].i;

	enum { C = @C@ };

	for (long t = item * T / 64; t < (item + 1) * T / 64; t++) {
		const f32 *restrict x = table + (long)idx[t] * C;
		@DT@ *restrict y = out + t * C;

		for (long c = 0; c < C; c++)
			y[c] = ST_@DT@(x[c]);
	}
}
