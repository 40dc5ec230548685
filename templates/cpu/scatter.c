// grad[r,c] += sum of dout[t,c] over the tokens t of table row r, in the order of `order`, in fp32
// holes: KERNEL  DT (f32, bf16: dtype of dout)  C
// items: 64 = 8 ranges of table rows x 8 ranges of columns. Rows are divided by their tokens: range b
// holds the rows whose first index is in b*n/8 .. (b+1)*n/8. Columns too, because one frequent token
// (a space among bytes) can be more than an eighth of the text.
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict grad = a[0].p;               // [R, C]
	const @DT@ *restrict dout = a[1].p;        // [T, C]
	const i32 *restrict order = a[2].p;        // [T] tokens sorted by row
	const i32 *restrict start = a[3].p;        // [R + 1] first index of each row's tokens in order
	const long R = a[4].i;

	enum { C = @C@, W = (C + 127) / 128 * 16 };  // W columns: whole vectors
	const long c0 = item % 8 * W;
	const long w = C - c0 < W ? C - c0 : W;
	const long n = start[R], n0 = item / 8 * n / 8, n1 = (item / 8 + 1) * n / 8;
	long r = 0;

	if (w <= 0)
		return;

	// first row that begins at or after n0
	for (long len = R; len > 0;) {
		const long half = len / 2;

		if (start[r + half] < n0) {
			r += half + 1;
			len -= half + 1;
		} else
			len = half;
	}

	for (; r < R && start[r] < n1; r++) {
		float sum[W] = { 0 };

		if (start[r] == start[r + 1])
			continue;
		for (long i = start[r]; i < start[r + 1]; i++) {
			const @DT@ *restrict x = dout + (long)order[i] * C + c0;

			for (long c = 0; c < w; c++)
				sum[c] += LD_@DT@(x[c]);
		}
		for (long c = 0; c < w; c++)
			grad[r * C + c0 + c] += sum[c];
	}
}
