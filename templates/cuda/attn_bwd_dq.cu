// dq[t,h] = scale * sum_j dS[t,j] k[j,g]      delta[t,h] = do[t,h].o[t,h]      g = h / (H/K)
// dS[t,j] = P[t,j] * (do[t,h].v[j,g] - delta[t,h])      P[t,j] = exp(scale * q[t,h].k[j,g] - lse[t,h])
// max(docstart[t], t - window) <= j <= t      window 0: no limit
// holes   KERNEL  THREADS (128)  DTO (f32, bf16: dtype of o)  H  K (divides H)  D (multiple of 8, 16 .. 128)
// needs   docstart ascends in a sequence; scale > 0; strides multiples of 8 elements, pointers of 16 bytes
// grid    T/seq * H * ceil(seq/128): a sequence, a head and 128 queries; the last queries, which see most keys, first
// maps    warp = 32 queries, two fragments of 16; keys in tiles of 32, two of them in shared memory
// types   q k v do dq bf16; products accumulate in f32 by mma; P and dS in f32, dS rounded to bf16 for dS k
// order   dq: key tiles ascending, in a tile as mma adds; delta: 8 channels of 32 to each of four lanes, then these
// smem    768 * (DP + 8) bytes, dynamic: q do [128], k v [2][32] rows of DP + 8      DP = D up to a multiple of 16
extern "C" __global__ __launch_bounds__(@THREADS@, @D@ <= 64 ? 3 : 2)
void @KERNEL@(
	bf16 *__restrict__ dq,                     // [T, dqs] of which H*D
	f32 *__restrict__ delta,                   // [T, H]
	long dqs,
	const bf16 *__restrict__ q,                // [T, qs] of which H*D
	const bf16 *__restrict__ k,                // [T, ks] of which K*D
	const bf16 *__restrict__ v,                // [T, vs] of which K*D
	long qs, long ks, long vs,
	const @DTO@ *__restrict__ o,               // [T, H*D]
	const bf16 *__restrict__ dout,             // [T, H*D]
	const f32 *__restrict__ lse,               // [T, H]
	const i32 *__restrict__ docstart,          // [T]
	long window, double scale, long seq,
	long)                                      // T: the grid follows from it
{
	enum { H = @H@, K = @K@, D = @D@, DP = (D + 15) / 16 * 16, PITCH = DP + 8 };
	enum { BQ = 128, BK = 32, MT = 2, NT = BK / 8, ND = DP / 8 };
	const float log2e = 1.44269504f, c = (float)scale * log2e;
	const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);

	const int blocks = (int)((seq + BQ - 1) / BQ), item = (int)blockIdx.x;
	const int h = item / blocks % H, g = h / (H / K), win = (int)window;
	const int first = item / blocks / H * (int)seq, t0 = first + (blocks - 1 - item % blocks) * BQ;
	const int end = first + (int)seq - t0 < BQ ? first + (int)seq - t0 : BQ;
	// from here on rows count from t0: queries 0 .. end - 1, no key from end on

	__shared__ long at;                              // of the first query in [T, dqs]
	__shared__ int lo[BQ];                           // first key that a query sees; beyond the sequence none
	__shared__ float e[BQ], del[BQ];                 // lse in powers of 2, delta
	bf16 *const qb = (bf16 *)dynamic_smem();         // [q do][BQ][PITCH]
	bf16 *const kv = qb + 2 * BQ * PITCH;            // [2][k v][BK][PITCH], tile j0 in half j0 / BK % 2
	int j0 = -((t0 - attn_lo(docstart, win, t0) + BK - 1) / BK * BK);

	k += g * D;
	v += g * D;
	attn_load<BQ, D, PITCH>(qb, attn_piece<D>(q + h * D, t0, qs), qs, end);
	attn_load<BQ, D, PITCH>(qb + BQ * PITCH, attn_piece<D>(dout + h * D, t0, H * D), H * D, end);
	attn_load<BK, D, PITCH>(kv + (j0 & BK) * 2 * PITCH, attn_piece<D>(k, t0 + j0, ks), ks, end - j0);
	attn_load<BK, D, PITCH>(kv + (j0 & BK) * 2 * PITCH + BK * PITCH, attn_piece<D>(v, t0 + j0, vs), vs, end - j0);
	cp_async_commit();

	// rows of this warp, t .. t + 31; of this lane, t + 8 r + lane / 4
	const int t = warp * 32;
	float acc[MT][ND][4];

	if (threadIdx.x == 0)
		at = t0 * dqs + h * D;
	lo[threadIdx.x] = t + lane < end ? attn_lo(docstart, win, t0 + t + lane) - t0 : 1 << 30;
	#pragma unroll
	for (int r = 0; r < 2 * MT; r++) {
		const int row = t + r * 8 + lane / 4;
		const long th = (long)(t0 + (row < end ? row : end - 1)) * H + h;
		float sum = 0.f;

		for (int d = lane % 4 * 8; d < D; d += 32) {
			float x[8], y[8];

			attn_ld8(x, dout + th * D + d);
			attn_ld8(y, o + th * D + d);
			#pragma unroll
			for (int i = 0; i < 8; i++)
				sum = fmaf(x[i], y[i], sum);
		}
		sum = attn_quad_sum(sum);
		if (lane % 4 == 0) {
			e[row] = lse[th] * log2e;
			del[row] = sum;
			if (row < end)
				delta[th] = sum;
		}
	}
	#pragma unroll
	for (int i = 0; i < MT; i++)
		#pragma unroll
		for (int d = 0; d < ND; d++)
			acc[i][d][0] = acc[i][d][1] = acc[i][d][2] = acc[i][d][3] = 0.f;

	for (; j0 < end; j0 += BK) {
		const bf16 *kb = kv + (j0 & BK) * 2 * PITCH, *vb = kb + BK * PITCH;

		// this tile is there, and all warps are done with the tile before, where the next one goes
		cp_async_wait0();
		__syncthreads();
		if (j0 + BK < end) {
			bf16 *next = kv + (~j0 & BK) * 2 * PITCH;

			attn_load<BK, D, PITCH>(next, attn_piece<D>(k, t0 + j0 + BK, ks), ks, end - j0 - BK);
			attn_load<BK, D, PITCH>(next + BK * PITCH, attn_piece<D>(v, t0 + j0 + BK, vs), vs, end - j0 - BK);
			cp_async_commit();
		}
		if (j0 > t + 31 || j0 + BK <= lo[warp * 32])
			continue;

		float s[MT][NT][4], ds[MT][NT][4];

		attn_abt<MT, NT, DP, PITCH>(s, qb + warp * 32 * PITCH, kb);
		attn_mask<MT, NT>(s, lo + warp * 32, t, j0);
		attn_abt<MT, NT, DP, PITCH>(ds, qb + (BQ + warp * 32) * PITCH, vb);

		#pragma unroll
		for (int r = 0; r < 2 * MT; r++) {
			const int row = t + r * 8 + lane / 4;
			const float er = e[row], dr = del[row];

			#pragma unroll
			for (int j = 0; j < NT; j++)
				#pragma unroll
				for (int i = r % 2 * 2; i < r % 2 * 2 + 2; i++)
					ds[r / 2][j][i] = exp2_approx(fmaf(s[r / 2][j][i], c, -er)) * (ds[r / 2][j][i] - dr);
		}
		attn_pb<MT, NT, ND, PITCH>(acc, ds, kb);
	}

	// dq through shared memory, where the queries of this warp lay, which nobody else reads
	bf16 *const ob = qb + warp * 32 * PITCH;

	__syncwarp();
	attn_put<MT, ND, PITCH>(ob, acc, (float)scale);
	__syncwarp();
	attn_store<32, D, PITCH>(dq + at + warp * 32 * dqs, dqs, ob, end - t);
}
