// P[t,j] = exp(scale * q[t,h].k[j,g] - lse[t,h])      max(docstart[t], t - window) <= j <= t      window 0: no limit
// delta[t,h] = do[t,h].o[t,h]      dS[t,j] = P[t,j] * (do[t,h].v[j,g] - delta[t,h])      g = h / (H/K)
// dv[j,g] = sum_t,h P[t,j] do[t,h]      dk[j,g] = scale * sum_t,h dS[t,j] q[t,h]
// dq[t,h] = scale * sum_j dS[t,j] k[j,g]
// holes: KERNEL  DTQ (f32, bf16: dtype of q k v)  DTO (of o)  DTG (of do dq dk dv)  H  K (divides H)  D (multiple of 8, 8 .. 256)
// items: T/seq * K: a sequence and a kv head with its H/K heads
// types: fp32; sums over blocks of 64 keys ascending, heads ascending, blocks of queries ascending
// tiles: lane = key for S and dS, lane = channel for dq, dk, dv
// stack: 290 KiB for D = 128, 440 KiB for D = 256
void @KERNEL@(const HcArg *a, long item)
{
	@DTG@ *restrict dq = a[0].p;               // [T, dqs] of which H*D
	@DTG@ *restrict dk = a[1].p;               // [T, dks] of which K*D
	@DTG@ *restrict dv = a[2].p;               // [T, dvs] of which K*D
	const long dqs = a[3].i, dks = a[4].i, dvs = a[5].i;
	const @DTQ@ *restrict q = a[6].p;          // [T, qs] of which H*D
	const @DTQ@ *restrict k = a[7].p;          // [T, ks] of which K*D
	const @DTQ@ *restrict v = a[8].p;          // [T, vs] of which K*D
	const long qs = a[9].i, ks = a[10].i, vs = a[11].i;
	const @DTO@ *restrict o = a[12].p;         // [T, H*D]
	const @DTG@ *restrict dout = a[13].p;      // [T, H*D]
	const f32 *restrict lse = a[14].p;         // [T, H]
	const i32 *restrict docstart = a[15].p;    // [T]
	const long window = a[16].i;
	const float scale = (float)a[17].f;
	const long seq = a[18].i;                  // a[19].i is T: the number of items follows from it
	f32 *restrict ws = a[20].p;                // [T, H*D] dq / scale in fp32
	f32 *restrict delta = a[21].p;             // [T, H]

	enum { H = @H@, K = @K@, D = @D@, G = H / K };
	enum { DP = (D + VW - 1) / VW * VW };      // channels in whole vectors, the rest 0
	enum { BK = 64, BQ = D > 128 ? 32 : 64 };  // keys and queries of a block
	enum { PW = 2 * VW, PANELS = BK / PW };
	const float log2e = 1.44269504f;
	const long g = item % K, first = item / K * seq, end = first + seq;

	_Alignas(64) float kt[PANELS][D][PW], vt[PANELS][D][PW];   // k * scale * log2(e) and v, lane = key
	_Alignas(64) float kb[BK][DP], dkb[BK][DP], dvb[BK][DP];
	_Alignas(64) float qb[BQ][DP], dob[BQ][DP], dqb[BQ][DP];
	_Alignas(64) float p[BQ][BK], ds[BQ][BK];
	int lo[BQ], hi[BQ];                        // keys that a query sees, relative to the block, both included

	for (long t = first; t < end; t++)
		for (long h = g * G; h < (g + 1) * G; h++) {
			const long at = (t * H + h) * D;
			float sum = 0;

			#pragma omp simd reduction(+:sum)
			for (int d = 0; d < D; d++)
				sum += LD_@DTG@(dout[at + d]) * LD_@DTO@(o[at + d]);
			delta[t * H + h] = sum;
			for (int d = 0; d < D; d++)
				ws[at + d] = 0.f;
		}

	for (long j0 = first; j0 < end; j0 += BK) {
		const int nk = end - j0 < BK ? (int)(end - j0) : BK;

		// keys and values; v passes through dvb on its way to vt
		for (int j = 0; j < BK; j++)
			for (int d = 0; d < DP; d++) {
				kb[j][d] = j < nk && d < D ? LD_@DTQ@(k[(j0 + j) * ks + g * D + d]) : 0.f;
				dvb[j][d] = j < nk && d < D ? LD_@DTQ@(v[(j0 + j) * vs + g * D + d]) : 0.f;
			}
		for (int u = 0; u < PANELS; u++) {
			transpose(kt[u][0], PW, kb[u * PW], DP, PW, D, scale * log2e);
			transpose(vt[u][0], PW, dvb[u * PW], DP, PW, D, 1.f);
		}
		for (int j = 0; j < BK; j++)
			for (int d = 0; d < DP; d++)
				dkb[j][d] = dvb[j][d] = 0.f;

		for (long h = g * G; h < (g + 1) * G; h++)
			for (long i0 = j0; i0 < end; i0 += BQ) {
				const int nq = end - i0 < BQ ? (int)(end - i0) : BQ;
				int least = BK;

				for (int i = 0; i < BQ; i++) {
					const long t = i0 + (i < nq ? i : nq - 1);
					const long far = window > 0 && t - window > docstart[t] ? t - window : docstart[t];

					lo[i] = far > j0 ? (int)(far - j0 < BK ? far - j0 : BK) : 0;
					hi[i] = i < nq ? (int)(t - j0 < BK - 1 ? t - j0 : BK - 1) : -1;
					least = lo[i] < least ? lo[i] : least;
				}
				if (least == BK)
					continue;

				for (int i = 0; i < BQ; i++)
					for (int d = 0; d < DP; d++) {
						const long t = i0 + i;

						qb[i][d] = i < nq && d < D ? LD_@DTQ@(q[t * qs + h * D + d]) : 0.f;
						dob[i][d] = i < nq && d < D ? LD_@DTG@(dout[(t * H + h) * D + d]) : 0.f;
					}

				for (int i = 0; i < BQ; i += TR) {
					int la = BK, lb = 0;

					// keys la .. lb are seen by some query of these rows
					for (int r = i; r < i + TR; r++) {
						la = lo[r] < la ? lo[r] : la;
						lb = hi[r] >= lb ? hi[r] + 1 : lb;
					}

					// S and dO.V^T for the panels that hold them
					for (int u = 0; u < PANELS; u++) {
						if (lb <= u * PW || la >= (u + 1) * PW)
							continue;
						tile(p[i] + u * PW, BK, qb[i], DP, 1, kt[u][0], PW, D, 2, 0);
						tile(ds[i] + u * PW, BK, dob[i], DP, 1, vt[u][0], PW, D, 2, 0);
					}

					for (int r = i; r < i + TR; r++) {
						const long t = i0 + (r < nq ? r : nq - 1);
						const float e = lse[t * H + h] * log2e, dlt = delta[t * H + h];

						for (int c = 0; c < BK; c += VW) {
							if (lb <= c || la >= c + VW) {
								VSTORE(p[r] + c, (vf){ 0 });
								VSTORE(ds[r] + c, (vf){ 0 });
								continue;
							}

							vf x = vexp2(VLOAD(p[r] + c) - e);

							if (lo[r] > c || hi[r] < c + VW - 1)
								x = (vf)((vi)x & (vlane() + c >= lo[r]) & (vlane() + c <= hi[r]));
							VSTORE(p[r] + c, x);
							VSTORE(ds[r] + c, x * (VLOAD(ds[r] + c) - dlt));
						}
					}

					// dQ = dS.K over keys la .. lb
					if (la >= lb)
						continue;
					for (int d = 0; d + PW <= DP; d += PW)
						tile(dqb[i] + d, DP, ds[i] + la, BK, 1, kb[la] + d, DP, lb - la, 2, 0);
					if (DP % PW)
						tile(dqb[i] + DP - VW, DP, ds[i] + la, BK, 1, kb[la] + DP - VW, DP, lb - la, 1, 0);
					for (int r = i; r < i + TR && r < nq; r++)
						for (int d = 0; d < D; d++)
							ws[((i0 + r) * H + h) * D + d] += dqb[r][d];
				}

				// dV += P^T.dO and dK += dS^T.Q over queries ia .. ib
				for (int j = 0; j < BK; j += TR) {
					int ia = 0, ib = nq;

					while (ia < nq && hi[ia] < j)
						ia++;
					while (ib > ia && lo[ib - 1] >= j + TR)
						ib--;
					for (int d = 0; d + PW <= DP; d += PW) {
						tile(dvb[j] + d, DP, p[ia] + j, 1, BK, dob[ia] + d, DP, ib - ia, 2, 1);
						tile(dkb[j] + d, DP, ds[ia] + j, 1, BK, qb[ia] + d, DP, ib - ia, 2, 1);
					}
					if (DP % PW) {
						tile(dvb[j] + DP - VW, DP, p[ia] + j, 1, BK, dob[ia] + DP - VW, DP, ib - ia, 1, 1);
						tile(dkb[j] + DP - VW, DP, ds[ia] + j, 1, BK, qb[ia] + DP - VW, DP, ib - ia, 1, 1);
					}
				}
			}

		for (int j = 0; j < nk; j++)
			for (int d = 0; d < D; d++) {
				dk[(j0 + j) * dks + g * D + d] = ST_@DTG@(dkb[j][d] * scale);
				dv[(j0 + j) * dvs + g * D + d] = ST_@DTG@(dvb[j][d]);
			}
	}

	for (long t = first; t < end; t++)
		for (long c = g * G * D; c < (g + 1) * G * D; c++)
			dq[t * dqs + c] = ST_@DTG@(ws[t * H * D + c] * scale);
}
