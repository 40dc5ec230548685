// dv[j,g] = sum_t,h P[t,j] do[t,h]      dk[j,g] = scale * sum_t,h dS[t,j] q[t,h]      h / (H/K) = g
// P[t,j] = exp(scale * q[t,h].k[j,g] - lse[t,h])      max(docstart[t], t - window) <= j <= t      window 0: no limit
// dS[t,j] = P[t,j] * (do[t,h].v[j,g] - delta[t,h])
// holes   KERNEL  THREADS (128)  H  K (divides H)  D (multiple of 8, 16 .. 128)
// needs   docstart ascends in a sequence; scale > 0; strides multiples of 8 elements, pointers of 16 bytes
// grid    T/seq * K * ceil(seq/BK): a sequence, a kv head and BK keys; the first keys, which most queries see, first
//         BK = 128 for D <= 64, else 64
// maps    warp = BK/4 keys in fragments of 16; queries in tiles of 32 for D <= 64, else 64, two of them in shared memory
// types   q k v do dk dv bf16; products accumulate in f32 by mma; P and dS in f32, rounded to bf16 for P do and dS q
// order   heads ascending, query tiles ascending, in a tile as mma adds
// smem    768 * (DP + 8) bytes, dynamic: k v [BK], q do [2][BQ] rows of DP + 8      DP = D up to a multiple of 16
extern "C" __global__ __launch_bounds__(@THREADS@, 2)
void @KERNEL@(
	bf16 *__restrict__ dk,                     // [T, dks] of which K*D
	bf16 *__restrict__ dv,                     // [T, dvs] of which K*D
	long dks, long dvs,
	const bf16 *__restrict__ q,                // [T, qs] of which H*D
	const bf16 *__restrict__ k,                // [T, ks] of which K*D
	const bf16 *__restrict__ v,                // [T, vs] of which K*D
	long qs, long ks, long vs,
	const bf16 *__restrict__ dout,             // [T, H*D]
	const f32 *__restrict__ lse,               // [T, H]
	const f32 *__restrict__ delta,             // [T, H]
	const i32 *__restrict__ docstart,          // [T]
	long window, double scale, long seq,
	long)                                      // T: the grid follows from it
{
	enum { H = @H@, K = @K@, D = @D@, DP = (D + 15) / 16 * 16, PITCH = DP + 8 };
	enum { MT = D <= 64 ? 2 : 1, BK = 64 * MT, BQ = 64 / MT, NT = BQ / 8, ND = DP / 8 };
	const float log2e = 1.44269504f, c = (float)scale * log2e;
	const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);

	const int blocks = (int)((seq + BK - 1) / BK), item = (int)blockIdx.x;
	const int g = item / blocks % K, win = (int)window;
	const int first = item / blocks / K * (int)seq, j0 = first + item % blocks * BK, end = first + (int)seq;

	__shared__ float stat[2][2 * BQ];                // of a tile's queries: lse in powers of 2, then delta
	__shared__ int lo[2][BQ];                        // first key that a query sees
	__shared__ int column, stop;                     // of this kv head; first row of the last tile
	bf16 *const kb = (bf16 *)dynamic_smem();         // [k v][BK][PITCH]
	bf16 *const qb = kb + 2 * BK * PITCH;            // [2][q do][BQ][PITCH]
	const int row = (int)threadIdx.x % BQ;           // of stat and lo that this thread fills

	q += g * (H / K) * D;
	dout += g * (H / K) * D;
	lse += g * (H / K);
	delta += g * (H / K);
	attn_load<BK, D, PITCH>(kb, attn_piece<D>(k + g * D, j0, ks), ks, end - j0);
	attn_load<BK, D, PITCH>(kb + BK * PITCH, attn_piece<D>(v + g * D, j0, vs), vs, end - j0);

	// the last tile of queries that sees one of these keys; tiles count from row j0
	int last = 0;

	for (int most = (end - j0 - 1) / BQ; last < most;) {
		const int mid = (last + most + 1) / 2;

		if (attn_lo(docstart, win, j0 + mid * BQ) < j0 + BK)
			last = mid;
		else
			most = mid - 1;
	}

	if (threadIdx.x == 0) {
		column = g * D;
		stop = j0 + last * BQ;
	}

	// keys of this warp, j .. j + 16 MT - 1
	const int j = j0 + warp * 16 * MT;
	float acck[MT][ND][4], accv[MT][ND][4];

	#pragma unroll
	for (int i = 0; i < MT; i++)
		#pragma unroll
		for (int d = 0; d < ND; d++)
			#pragma unroll
			for (int u = 0; u < 4; u++)
				acck[i][d][u] = accv[i][d][u] = 0.f;

	// A step starts the copies of a tile, the queries of head h from row t on, and works on the tile of the step before,
	// from row now on. A query beyond the sequence adds nothing: its do and delta are 0.
	int h = 0, t = j0, now = j0 - BQ;                // h counts in the group

	for (int stage = 0;; stage ^= 1) {
		float x = 0.f;
		int y = 0;

		// the tile before is there, and all warps are done with the one before that, where the next one goes
		cp_async_wait0();
		__syncthreads();
		if (h < H / K) {
			bf16 *next = qb + stage * 2 * BQ * PITCH;
			const bool in = t + row < end;
			const long th = (long)(in ? t + row : end - 1) * H + h;

			attn_load<BQ, D, PITCH>(next, attn_piece<D>(q + h * D, t, qs), qs, end - t);
			attn_load<BQ, D, PITCH>(next + BQ * PITCH, attn_piece<D>(dout + h * D, t, H * D), H * D, end - t);
			cp_async_commit();
			if (threadIdx.x < BQ) {
				x = in ? lse[th] * log2e : 0.f;
				y = attn_lo(docstart, win, in ? t + row : end - 1);
			} else if (threadIdx.x < 2 * BQ) {
				x = in ? delta[th] : 0.f;
			}
		}
		if (j < end && now + BQ > j && lo[stage ^ 1][0] < j + 16 * MT) {
			const bf16 *qt = qb + (stage ^ 1) * 2 * BQ * PITCH, *dot = qt + BQ * PITCH;
			const float *const e = stat[stage ^ 1] + lane % 4 * 2, *const del = e + BQ;
			float s[MT][NT][4], ds[MT][NT][4];

			attn_abt<MT, NT, DP, PITCH>(s, kb + warp * 16 * MT * PITCH, qt);
			attn_mask_t<MT, NT>(s, lo[stage ^ 1], j, now);
			#pragma unroll
			for (int m = 0; m < MT; m++)
				#pragma unroll
				for (int n = 0; n < NT; n++)
					#pragma unroll
					for (int i = 0; i < 4; i++)
						s[m][n][i] = exp2_approx(fmaf(s[m][n][i], c, -e[n * 8 + i % 2]));
			attn_pb<MT, NT, ND, PITCH>(accv, s, dot);
			attn_abt<MT, NT, DP, PITCH>(ds, kb + (BK + warp * 16 * MT) * PITCH, dot);
			#pragma unroll
			for (int m = 0; m < MT; m++)
				#pragma unroll
				for (int n = 0; n < NT; n++)
					#pragma unroll
					for (int i = 0; i < 4; i++)
						ds[m][n][i] = s[m][n][i] * (ds[m][n][i] - del[n * 8 + i % 2]);
			attn_pb<MT, NT, ND, PITCH>(acck, ds, qt);
		}
		if (h == H / K)
			break;
		if (threadIdx.x < 2 * BQ)
			stat[stage][threadIdx.x] = x;
		if (threadIdx.x < BQ)
			lo[stage][threadIdx.x] = y;
		now = t;
		t += BQ;
		if (t > stop) {
			t = j0;
			h++;
		}
	}

	// dk and dv through shared memory, where k and v of this warp lay, which nobody else reads
	bf16 *const kout = kb + warp * 16 * MT * PITCH, *const vout = kout + BK * PITCH;

	__syncwarp();
	attn_put<MT, ND, PITCH>(kout, acck, (float)scale);
	attn_put<MT, ND, PITCH>(vout, accv, 1.f);
	__syncwarp();
	attn_store<16 * MT, D, PITCH>(dk + j * dks + column, dks, kout, end - j);
	attn_store<16 * MT, D, PITCH>(dv + j * dvs + column, dvs, vout, end - j);
}
