// out[t,c] = x[t,c] * S[p,c], p = (s[t] ^ s[t-1]) mod N, 0 at the first position of a sequence: signs of bigrams that
// share a row of a table. S is 1 where a hash of p*C + c is even, else -1 (docs/spec.md, sources).
// holes: KERNEL  C  N  DT DTX (f32, bf16: dtype of out, of x)
// items: 64, item b: rows b*T/64 .. (b+1)*T/64
void @KERNEL@(const HcArg *a, long item)
{
	@DT@ *restrict out = a[0].p;               // [T, C]
	const @DTX@ *restrict x = a[1].p;          // [T, C]
	const i32 *restrict s = a[2].p;            // [T]
	const long T = a[3].i, seq = a[4].i;

	enum { C = @C@, N = @N@ };

	for (long t = item * T / 64; t < (item + 1) * T / 64; t++) {
		const unsigned p = t % seq ? (unsigned)(s[t] ^ s[t - 1]) % N : 0;

		for (long c = 0; c < C; c++) {
			const float v = LD_@DTX@(x[t * C + c]);
			unsigned h = p * C + (unsigned)c;

			h = (h ^ h >> 16) * 0x85ebca6bu;
			h = (h ^ h >> 13) * 0xc2b2ae35u;
			h ^= h >> 16;
			out[t * C + c] = ST_@DT@(h & 1 ? -v : v);
		}
	}
}
