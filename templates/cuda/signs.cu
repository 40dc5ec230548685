// out[t,c] = x[t,c] * S[p,c], p = (s[t] ^ s[t-1]) mod N, 0 at the first position of a sequence: signs of bigrams that
// share a row of a table. S is 1 where a hash of p*C + c is even, else -1 (docs/spec.md, sources).
// holes: KERNEL  C  N  DT DTX (f32, bf16: dtype of out, of x)  THREADS
// grid: T, block t: row t      threads: a quarter of C or less, in whole warps, 4 columns at a time

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	@DT@ *__restrict__ out,                          // [T, C]
	const @DTX@ *__restrict__ x,                     // [T, C]
	const i32 *__restrict__ s,                       // [T]
	long T,
	long seq)
{
	enum { C = @C@, N = @N@, W = C % 4 ? 1 : 4, THREADS = @THREADS@ };
	const long t = blockIdx.x;
	const unsigned p = t % seq ? (unsigned)(s[t] ^ s[t - 1]) % N : 0;

	#pragma unroll 4
	for (int j = 0; j < (C / W + THREADS - 1) / THREADS; j++) {
		const int c = (j * THREADS + (int)threadIdx.x) * W;

		if (C / W % THREADS == 0 || c < C) {
			float v[W];

			load_vec(v, x + t * C + c, W);
			#pragma unroll
			for (int i = 0; i < W; i++) {
				unsigned h = p * C + (unsigned)(c + i);

				h = (h ^ h >> 16) * 0x85ebca6bu;
				h = (h ^ h >> 13) * 0xc2b2ae35u;
				h ^= h >> 16;
				v[i] = h & 1 ? -v[i] : v[i];
			}
			store_vec(out + t * C + c, v, W);
		}
	}
}
