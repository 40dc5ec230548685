// o[t,h] = sum_j P[t,j] v[j,g] / l      P[t,j] = exp(scale * q[t,h].k[j,g] - m)      l = sum_j P[t,j]      g = h / (H/K)
// lse[t,h] = m + ln l      m = max_j scale * q[t,h].k[j,g]      max(docstart[t], t - window) <= j <= t      window 0: no limit
// holes   KERNEL  THREADS (128)  DTQ (f32, bf16: dtype of q k v)  DTO (of o)  H  K (divides H)  D (multiple of 8, 8 .. 256)
// needs   docstart ascends in a sequence; scale > 0; strides multiples of 8 elements, pointers of 16 bytes
// grid    T/seq * H * ceil(seq/32): a sequence, a head and 32 queries; the last queries, which see most keys, first
// maps    thread = rows y, y + 16 of the queries, keys x + 8 j, channels 4 (x + 8 g) ..; y = thread / 8, x = thread % 8
// types   fp32; softmax in powers of 2
// order   keys ascending; l: per thread, then the eight of a row
// smem    384 * (D + 4) bytes, dynamic: q k v [32] rows of D + 4
extern "C" __global__ __launch_bounds__(@THREADS@, 2)
void @KERNEL@(
	@DTO@ *__restrict__ o,                     // [T, H*D]
	f32 *__restrict__ lse,                     // [T, H]
	const @DTQ@ *__restrict__ q,               // [T, qs] of which H*D
	const @DTQ@ *__restrict__ k,               // [T, ks] of which K*D
	const @DTQ@ *__restrict__ v,               // [T, vs] of which K*D
	long qs, long ks, long vs,
	const i32 *__restrict__ docstart,          // [T]
	long window, double scale, long seq,
	long)                                      // T: the grid follows from it
{
	enum { H = @H@, K = @K@, D = @D@, B = 32, TILE = B * (D + 4), ND = (D + 31) / 32 };
	const float log2e = 1.44269504f, ln2 = 0.693147181f, none = __uint_as_float(0xff800000u);
	const float c = (float)scale * log2e;
	const int x = (int)threadIdx.x % 8, y = (int)threadIdx.x / 8;

	const int blocks = (int)((seq + B - 1) / B), item = (int)blockIdx.x;
	const int h = item / blocks % H, g = h / (H / K), win = (int)window;
	const int first = item / blocks / H * (int)seq, t0 = first + (blocks - 1 - item % blocks) * B;
	const int end = first + (int)seq - t0 < B ? first + (int)seq : t0 + B;       // queries t0 .. end - 1, no key from end on

	__shared__ float p[B * 36];
	float *const qb = (float *)dynamic_smem(), *const kb = qb + TILE, *const vb = kb + TILE;
	float4 acc[2][ND];
	float m[2], l[2];
	int lo[2];

	attn_load_f32<D>(qb, q + h * D, qs, t0, end);
	#pragma unroll
	for (int i = 0; i < 2; i++) {
		const int t = t0 + y + i * 16;

		lo[i] = attn_lo(docstart, win, t < end ? t : end - 1);
		m[i] = none;
		l[i] = 0.f;
		#pragma unroll
		for (int d = 0; d < ND; d++)
			acc[i][d] = make_float4(0.f, 0.f, 0.f, 0.f);
	}

	for (int j0 = attn_lo(docstart, win, t0); j0 < end; j0 += B) {
		float s[2][4];

		__syncthreads();
		attn_load_f32<D>(kb, k + g * D, ks, j0, end);
		attn_load_f32<D>(vb, v + g * D, vs, j0, end);
		__syncthreads();
		attn_dots_f32<D>(s, qb, kb);

		// P = 2^(c s - m). While a row has seen no key m is -inf and its exponents are -inf - 0.
		#pragma unroll
		for (int i = 0; i < 2; i++) {
			const int t = t0 + y + i * 16;
			float top = none;

			#pragma unroll
			for (int n = 0; n < 4; n++) {
				const int j = j0 + x + 8 * n;

				if (j < lo[i] || j > t)
					s[i][n] = none;
				top = fmaxf(top, s[i][n]);
			}
			top = fmaxf(m[i], attn_row_max(top) * c);

			const float base = top == none ? 0.f : top, f = exp2f(m[i] - base);

			m[i] = top;
			l[i] *= f;
			#pragma unroll
			for (int n = 0; n < 4; n++) {
				s[i][n] = exp2f(fmaf(s[i][n], c, -base));
				l[i] += s[i][n];
			}
			attn_scale_f32<D>(acc[i], f);
		}

		// the rows of a thread are those of its warp alone
		__syncwarp();
		attn_keep_f32(p, s);
		__syncwarp();
		attn_sums_f32<D>(acc, p, vb);
	}

	#pragma unroll
	for (int i = 0; i < 2; i++) {
		const float sum = attn_row_sum(l[i]);
		const int t = t0 + y + i * 16;

		if (t < end && x == 0)
			lse[(long)t * H + h] = logf(sum) + m[i] * ln2;
		attn_scale_f32<D>(acc[i], 1.f / sum);
	}
	attn_store_f32<D>(o + h * D, (long)H * D, acc, 1.f, t0, end);
}
