// dx[t,c] = sum over h of dy[t,h] w[h,c] for c < N, 0 up to N8; part[b,h,c] = sum of dy[t,h] x[t,c] over the rows of item b
// holes: KERNEL  DT (f32, bf16: dtype of x)  DTG (of dx)  H  N  C (channels of x)
// items: 64, item b: rows b*T/64 .. (b+1)*T/64
void @KERNEL@(const HcArg *a, long item)
{
	@DTG@ *restrict dx = a[0].p;               // [T, N8]
	f32 *restrict part = a[1].p;               // [64, H, N]
	const f32 *restrict dy = a[2].p;           // [T, H]
	const @DT@ *restrict x = a[3].p;           // [T, C]
	const f32 *restrict w = a[4].p;            // [H, N]
	const long T = a[5].i;

	enum { H = @H@, N = @N@, C = @C@, N8 = (N + 7) / 8 * 8 };
	f32 *restrict own = part + item * H * N;

	for (int i = 0; i < H * N; i++)
		own[i] = 0;
	for (long t = item * T / 64; t < (item + 1) * T / 64; t++) {
		float d[N8] = { 0 };

		for (int h = 0; h < H; h++) {
			const float g = dy[t * H + h];

			for (int c = 0; c < N; c++) {
				d[c] += g * w[h * N + c];
				own[h * N + c] += g * LD_@DT@(x[t * C + c]);
			}
		}
		for (int c = 0; c < N8; c++)
			dx[t * N8 + c] = ST_@DTG@(d[c]);
	}
}
