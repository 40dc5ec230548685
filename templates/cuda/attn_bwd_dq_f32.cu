// dq[t,h] = scale * sum_j dS[t,j] k[j,g]      delta[t,h] = do[t,h].o[t,h]      g = h / (H/K)
// dS[t,j] = P[t,j] * (do[t,h].v[j,g] - delta[t,h])      P[t,j] = exp(scale * q[t,h].k[j,g] - lse[t,h])
// max(docstart[t], t - window) <= j <= t      window 0: no limit
// holes   KERNEL  THREADS (128)  DTQ (f32, bf16: dtype of q k v)  DTO (of o)  DTG (of do dq)  H  K (divides H)
//         D (multiple of 8, 8 .. 256)
// needs   docstart ascends in a sequence; scale > 0; strides multiples of 8 elements, pointers of 16 bytes
// grid    T/seq * H * ceil(seq/32): a sequence, a head and 32 queries; the last queries, which see most keys, first
// maps    thread = rows y, y + 16 of the queries, keys x + 8 j, channels 4 (x + 8 g) ..; y = thread / 8, x = thread % 8
// types   fp32
// order   dq: keys ascending; delta: 8 channels of 64 to each of eight threads, then these
// smem    512 * (D + 4) bytes, dynamic: q do k v [32] rows of D + 4
extern "C" __global__ __launch_bounds__(@THREADS@, 2)
void @KERNEL@(
	@DTG@ *__restrict__ dq,                    // [T, dqs] of which H*D
	f32 *__restrict__ delta,                   // [T, H]
	long dqs,
	const @DTQ@ *__restrict__ q,               // [T, qs] of which H*D
	const @DTQ@ *__restrict__ k,               // [T, ks] of which K*D
	const @DTQ@ *__restrict__ v,               // [T, vs] of which K*D
	long qs, long ks, long vs,
	const @DTO@ *__restrict__ o,               // [T, H*D]
	const @DTG@ *__restrict__ dout,            // [T, H*D]
	const f32 *__restrict__ lse,               // [T, H]
	const i32 *__restrict__ docstart,          // [T]
	long window, double scale, long seq,
	long)                                      // T: the grid follows from it
{
	enum { H = @H@, K = @K@, D = @D@, B = 32, TILE = B * (D + 4), ND = (D + 31) / 32 };
	const float log2e = 1.44269504f, c = (float)scale * log2e;
	const int x = (int)threadIdx.x % 8, y = (int)threadIdx.x / 8;

	const int blocks = (int)((seq + B - 1) / B), item = (int)blockIdx.x;
	const int h = item / blocks % H, g = h / (H / K), win = (int)window;
	const int first = item / blocks / H * (int)seq, t0 = first + (blocks - 1 - item % blocks) * B;
	const int end = first + (int)seq - t0 < B ? first + (int)seq : t0 + B;       // queries t0 .. end - 1, no key from end on

	__shared__ float p[B * 36];
	float *const qb = (float *)dynamic_smem(), *const dob = qb + TILE, *const kb = dob + TILE, *const vb = kb + TILE;
	float4 acc[2][ND];
	float e[2], del[2];
	int lo[2];

	attn_load_f32<D>(qb, q + h * D, qs, t0, end);
	attn_load_f32<D>(dob, dout + h * D, (long)H * D, t0, end);
	#pragma unroll
	for (int i = 0; i < 2; i++) {
		const int t = t0 + y + i * 16, in = t < end ? t : end - 1;
		const long th = (long)in * H + h;
		float sum = 0.f;

		for (int d = x * 8; d < D; d += 64) {
			float a[8], b[8];

			attn_ld8(a, dout + th * D + d);
			attn_ld8(b, o + th * D + d);
			for (int u = 0; u < 8; u++)
				sum = fmaf(a[u], b[u], sum);
		}
		del[i] = attn_row_sum(sum);
		e[i] = lse[th] * log2e;
		lo[i] = attn_lo(docstart, win, in);
		if (t < end && x == 0)
			delta[th] = del[i];
		#pragma unroll
		for (int d = 0; d < ND; d++)
			acc[i][d] = make_float4(0.f, 0.f, 0.f, 0.f);
	}

	for (int j0 = attn_lo(docstart, win, t0); j0 < end; j0 += B) {
		float s[2][4], ds[2][4];

		__syncthreads();
		attn_load_f32<D>(kb, k + g * D, ks, j0, end);
		attn_load_f32<D>(vb, v + g * D, vs, j0, end);
		__syncthreads();
		attn_dots_f32<D>(s, qb, kb);
		attn_dots_f32<D>(ds, dob, vb);
		#pragma unroll
		for (int i = 0; i < 8; i++) {
			const int r = i / 4, n = i % 4, t = t0 + y + r * 16, j = j0 + x + 8 * n;

			ds[r][n] = j < lo[r] || j > t ? 0.f : exp2f(fmaf(s[r][n], c, -e[r])) * (ds[r][n] - del[r]);
		}

		// the rows of a thread are those of its warp alone
		__syncwarp();
		attn_keep_f32(p, ds);
		__syncwarp();
		attn_sums_f32<D>(acc, p, kb);
	}
	attn_store_f32<D>(dq + h * D, dqs, acc, (float)scale, t0, end);
}
