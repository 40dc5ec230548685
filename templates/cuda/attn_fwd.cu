// o[t,h] = sum_j P[t,j] v[j,g] / l      P[t,j] = exp(scale * q[t,h].k[j,g] - m)      l = sum_j P[t,j]      g = h / (H/K)
// lse[t,h] = m + ln l      m = max_j scale * q[t,h].k[j,g]      max(docstart[t], t - window) <= j <= t      window 0: no limit
// holes   KERNEL  THREADS (128)  DTO (f32, bf16: dtype of o)  H  K (divides H)  D (multiple of 8, 16 .. 128)
// needs   docstart ascends in a sequence; scale > 0; strides multiples of 8 elements, pointers of 16 bytes
// grid    T/seq * H * ceil(seq/128): a sequence, a head and 128 queries; the last queries, which see most keys, first
// maps    warp = 32 queries, two fragments of 16; keys in tiles of 64, two of them in shared memory
// types   q k v bf16; products accumulate in f32 by mma; softmax in f32, in powers of 2; P rounded to bf16 for P v only
// order   key tiles ascending, in a tile as mma adds; l: per lane of four, then these
// smem    768 * (DP + 8) bytes, dynamic: q [128], k v [2][64] rows of DP + 8      DP = D up to a multiple of 16
extern "C" __global__ __launch_bounds__(@THREADS@, @D@ <= 64 ? 3 : 2)
void @KERNEL@(
	@DTO@ *__restrict__ o,                     // [T, H*D]
	f32 *__restrict__ lse,                     // [T, H]
	const bf16 *__restrict__ q,                // [T, qs] of which H*D
	const bf16 *__restrict__ k,                // [T, ks] of which K*D
	const bf16 *__restrict__ v,                // [T, vs] of which K*D
	long qs, long ks, long vs,
	const i32 *__restrict__ docstart,          // [T]
	long window, double scale, long seq,
	long)                                      // T: the grid follows from it
{
	enum { H = @H@, K = @K@, D = @D@, DP = (D + 15) / 16 * 16, PITCH = DP + 8 };
	enum { BQ = 128, BK = 64, MT = 2, NT = BK / 8, ND = DP / 8 };
	const float log2e = 1.44269504f, ln2 = 0.693147181f, none = __uint_as_float(0xff800000u);
	const float c = (float)scale * log2e;
	const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);

	const int blocks = (int)((seq + BQ - 1) / BQ), item = (int)blockIdx.x;
	const int h = item / blocks % H, g = h / (H / K), win = (int)window;
	const int first = item / blocks / H * (int)seq, t0 = first + (blocks - 1 - item % blocks) * BQ;
	const int end = first + (int)seq - t0 < BQ ? first + (int)seq - t0 : BQ;
	// from here on rows count from t0: queries 0 .. end - 1, no key from end on

	__shared__ long at;                              // of the first query in [T, H]
	__shared__ int lo[BQ];                           // first key that a query sees; beyond the sequence none
	__shared__ float m[2 * MT][BQ], l[2 * MT][BQ];   // of each lane's rows: running maximum, sum of the lane's powers
	bf16 *const qb = (bf16 *)dynamic_smem();         // [BQ][PITCH]
	bf16 *const kv = qb + BQ * PITCH;                // [2][k v][BK][PITCH], tile j0 in half j0 / BK % 2
	int j0 = -((t0 - attn_lo(docstart, win, t0) + BK - 1) / BK * BK);
	int row = t0 + j0;                               // of key j0 in k and v

	k += g * D;
	v += g * D;
	attn_load<BQ, D, PITCH>(qb, attn_piece<D>(q + h * D, t0, qs), qs, end);
	attn_load<BK, D, PITCH>(kv + (j0 & BK) * 2 * PITCH, attn_piece<D>(k, row, ks), ks, end - j0);
	attn_load<BK, D, PITCH>(kv + (j0 & BK) * 2 * PITCH + BK * PITCH, attn_piece<D>(v, row, vs), vs, end - j0);
	cp_async_commit();

	// rows of this warp, t .. t + 31; of this lane, t + 8 r + lane / 4
	const int t = warp * 32;
	float acc[MT][ND][4];

	if (threadIdx.x == 0)
		at = (long)t0 * H + h;
	lo[threadIdx.x] = t + lane < end ? attn_lo(docstart, win, t0 + t + lane) - t0 : 1 << 30;
	#pragma unroll
	for (int i = 0; i < 2 * MT; i++) {
		m[i][threadIdx.x] = none;
		l[i][threadIdx.x] = 0.f;
	}
	#pragma unroll
	for (int i = 0; i < MT; i++)
		#pragma unroll
		for (int d = 0; d < ND; d++)
			acc[i][d][0] = acc[i][d][1] = acc[i][d][2] = acc[i][d][3] = 0.f;

	for (; j0 < end; j0 += BK, row += BK) {
		const bf16 *kb = kv + (j0 & BK) * 2 * PITCH, *vb = kb + BK * PITCH;

		// this tile is there, and all warps are done with the tile before, where the next one goes
		cp_async_wait0();
		__syncthreads();
		if (j0 + BK < end) {
			bf16 *next = kv + (~j0 & BK) * 2 * PITCH;

			attn_load<BK, D, PITCH>(next, attn_piece<D>(k, row + BK, ks), ks, end - j0 - BK);
			attn_load<BK, D, PITCH>(next + BK * PITCH, attn_piece<D>(v, row + BK, vs), vs, end - j0 - BK);
			cp_async_commit();
		}
		if (j0 > t + 31 || j0 + BK <= lo[warp * 32])
			continue;

		float s[MT][NT][4];

		attn_abt<MT, NT, DP, PITCH>(s, qb + warp * 32 * PITCH, kb);
		attn_mask<MT, NT>(s, lo + warp * 32, t, j0);

		// P = 2^(c s - m). While a row has seen no key m is -inf and its exponents are -inf - 0.
		#pragma unroll
		for (int r = 0; r < 2 * MT; r++) {
			float (*const x)[4] = s[r / 2], (*const a)[4] = acc[r / 2];
			const int e = r % 2 * 2;
			float top = none;

			#pragma unroll
			for (int j = 0; j < NT; j++)
				top = fmaxf(top, fmaxf(x[j][e], x[j][e + 1]));
			top = fmaxf(m[r][threadIdx.x], attn_quad_max(top) * c);

			const float base = top == none ? 0.f : top, f = exp2_approx(m[r][threadIdx.x] - base);
			float sum = l[r][threadIdx.x] * f;

			m[r][threadIdx.x] = top;
			#pragma unroll
			for (int j = 0; j < NT; j++) {
				x[j][e] = exp2_approx(fmaf(x[j][e], c, -base));
				x[j][e + 1] = exp2_approx(fmaf(x[j][e + 1], c, -base));
				sum += x[j][e] + x[j][e + 1];
			}
			l[r][threadIdx.x] = sum;
			#pragma unroll
			for (int d = 0; d < ND; d++) {
				a[d][e] *= f;
				a[d][e + 1] *= f;
			}
		}
		attn_pb<MT, NT, ND, PITCH>(acc, s, vb);
	}

	// o = acc / l through shared memory, rows of the warp by themselves; all warps are done with what lies there
	@DTO@ *const ob = (@DTO@ *)dynamic_smem() + warp * 32 * PITCH;

	__syncthreads();
	#pragma unroll
	for (int r = 0; r < 2 * MT; r++) {
		const float sum = attn_quad_sum(l[r][threadIdx.x]), inv = 1.f / sum;
		const int i = t + r * 8 + lane / 4;

		if (lane % 4 == 0 && i < end)
			lse[at + i * H] = logf(sum) + m[r][threadIdx.x] * ln2;
		#pragma unroll
		for (int d = 0; d < ND; d++) {
			acc[r / 2][d][r % 2 * 2] *= inv;
			acc[r / 2][d][r % 2 * 2 + 1] *= inv;
		}
	}
	attn_put<MT, ND, PITCH>(ob, acc, 1.f);
	__syncwarp();
	attn_store<32, D, PITCH>(o + (at + t * H) * D, (long)H * D, ob, end - t);
}
