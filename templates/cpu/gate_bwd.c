// dx[t,c] = sum over h of dy[t,h] w[h,W0+c] for c < N, 0 up to N8; part[b,h,W0+c] = sum of dy[t,h] x[t,c], elsewhere 0, over the rows of item b
// holes: KERNEL  DT (f32, bf16: dtype of x)  DTG (of dx)  H  N  C (channels of x)  WN (columns of w)  W0
// items: 64, item b: rows b*T/64 .. (b+1)*T/64
void @KERNEL@(const HcArg *a, long item)
{
	@DTG@ *restrict dx = a[0].p;               // [T, N8]
	f32 *restrict part = a[1].p;               // [64, H, WN]
	const f32 *restrict dy = a[2].p;           // [T, H]
	const @DT@ *restrict x = a[3].p;           // [T, C]
	const f32 *restrict w = a[4].p;            // [H, WN]
	const long T = a[5].i;

	enum { H = @H@, N = @N@, C = @C@, N8 = (N + 7) / 8 * 8, WN = @WN@, W0 = @W0@ };
	f32 *restrict own = part + item * H * WN;

	for (int i = 0; i < H * WN; i++)
		own[i] = 0;
	for (long t = item * T / 64; t < (item + 1) * T / 64; t++) {
		float d[N8] = { 0 };

		for (int h = 0; h < H; h++) {
			const float g = dy[t * H + h];

			for (int c = 0; c < N; c++) {
				d[c] += g * w[h * WN + W0 + c];
				own[h * WN + W0 + c] += g * LD_@DT@(x[t * C + c]);
			}
		}
		for (int c = 0; c < N8; c++)
			dx[t * N8 + c] = ST_@DTG@(d[c]);
	}
}
