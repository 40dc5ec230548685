// y[t,h] = sum over c < N of x[t,c] w[h,W0+c]
// holes: KERNEL  DT (f32, bf16: dtype of x)  H  N  C (channels of x, N of which are read)  WN (columns of w)  W0
// items: 64, item b: rows b*T/64 .. (b+1)*T/64
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict y = a[0].p;                  // [T, H]
	const @DT@ *restrict x = a[1].p;           // [T, C]
	const f32 *restrict w = a[2].p;            // [H, WN]
	const long T = a[3].i;

	enum { H = @H@, N = @N@, C = @C@, WN = @WN@, W0 = @W0@ };

	for (long t = item * T / 64; t < (item + 1) * T / 64; t++)
		for (int h = 0; h < H; h++) {
			float sum = 0;

			for (int c = 0; c < N; c++)
				sum += LD_@DT@(x[t * C + c]) * w[h * WN + W0 + c];
			y[t * H + h] = sum;
		}
}
