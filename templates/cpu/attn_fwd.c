// o[t,h] = sum_j P[t,j] v[j,g]      P[t,j] = exp(scale * q[t,h].k[j,g] - lse[t,h])      g = h / (H/K)
// lse[t,h] = ln sum_j exp(scale * q[t,h].k[j,g])      max(docstart[t], t - window) <= j <= t      window 0: no limit
// holes: KERNEL  DTQ (f32, bf16: dtype of q k v)  DTO (of o)  H  K (divides H)  D (multiple of 8, 8 .. 256)
// items: T/seq * H * ceil(seq/128): a sequence, a head and 128 queries; the last queries, which see most keys, first
// types: fp32; softmax over blocks of 64 keys, ascending, with a running maximum; in powers of 2
// tiles: lane = query, a panel is two vectors of queries: S^T = K.Q^T and O^T += V^T.P^T take k and v as they lie
//        in memory, and the softmax over keys needs no sums across lanes
// stack: 108 KiB for D = 64, 396 KiB for D = 256
void @KERNEL@(const HcArg *a, long item)
{
	@DTO@ *restrict o = a[0].p;                // [T, H*D]
	f32 *restrict lse = a[1].p;                // [T, H]
	const @DTQ@ *restrict q = a[2].p;          // [T, qs] of which H*D
	const @DTQ@ *restrict k = a[3].p;          // [T, ks] of which K*D
	const @DTQ@ *restrict v = a[4].p;          // [T, vs] of which K*D
	const long qs = a[5].i, ks = a[6].i, vs = a[7].i;
	const i32 *restrict docstart = a[8].p;     // [T]
	const long window = a[9].i;
	const float scale = (float)a[10].f;
	const long seq = a[11].i;                  // a[12].i is T: the number of items follows from it

	enum { H = @H@, K = @K@, D = @D@, BQ = 128, BK = 64, PW = 2 * VW, PANELS = BQ / PW };
	const float log2e = 1.44269504f, ln2 = 0.693147181f;
	const long blocks = (seq + BQ - 1) / BQ;
	const long h = item / blocks % H, g = h / (H / K);
	const long first = item / blocks / H * seq;                        // row of the sequence
	const long t0 = first + (blocks - 1 - item % blocks) * BQ;          // row of the first query
	const int nq = first + seq - t0 < BQ ? (int)(first + seq - t0) : BQ;

	_Alignas(64) float qt[PANELS][D][PW];      // q * scale * log2(e)
	_Alignas(64) float ot[PANELS][D][PW];
	_Alignas(64) float kb[BK][D], vb[BK][D], p[BK][PW];
	_Alignas(64) int lo[BQ], hi[BQ];             // keys that a query sees, both included
	vf m[BQ / VW], l[BQ / VW];                   // running maximum of the exponents, sum of the powers

	// queries; the lanes beyond the last one repeat its range with q = 0
	for (int i = 0; i < BQ; i++) {
		const long t = t0 + (i < nq ? i : nq - 1);

		lo[i] = window > 0 && t - window > docstart[t] ? (int)(t - window) : docstart[t];
		hi[i] = (int)t;
	}
	for (int u = 0; u < PANELS; u++) {
		for (int i = 0; i < PW; i++)
			for (int d = 0; d < D; d++)
				kb[i][d] = u * PW + i < nq ? LD_@DTQ@(q[(t0 + u * PW + i) * qs + h * D + d]) : 0.f;
		transpose(qt[u][0], PW, kb[0], D, PW, D, scale * log2e);
	}
	for (int i = 0; i < BQ / VW; i++) {
		m[i] = (vf){ 0 } - 1e30f;
		l[i] = (vf){ 0 };
	}
	for (int u = 0; u < PANELS; u++)
		for (int d = 0; d < D; d++)
			for (int i = 0; i < PW; i++)
				ot[u][d][i] = 0.f;

	int least = lo[0];

	for (int i = 1; i < BQ; i++)
		least = lo[i] < least ? lo[i] : least;

	for (long j0 = first + (least - first) / BK * BK; j0 < t0 + nq; j0 += BK) {
		const int nk = first + seq - j0 < BK ? (int)(first + seq - j0) : BK;

		for (int j = 0; j < nk; j++)
			for (int d = 0; d < D; d++) {
				kb[j][d] = LD_@DTQ@(k[(j0 + j) * ks + g * D + d]);
				vb[j][d] = LD_@DTQ@(v[(j0 + j) * vs + g * D + d]);
			}
		for (int j = nk; j < BK; j++)
			for (int d = 0; d < D; d++)
				kb[j][d] = vb[j][d] = 0.f;

		for (int u = 0; u < PANELS; u++) {
			// keys ja .. jb of the block are seen by the panel; unmasked if every query sees them all
			int ja = lo[u * PW], jb = hi[u * PW], all_lo = ja, all_hi = jb;

			for (int i = u * PW; i < (u + 1) * PW; i++) {
				ja = lo[i] < ja ? lo[i] : ja;
				jb = hi[i] > jb ? hi[i] : jb;
				all_lo = lo[i] > all_lo ? lo[i] : all_lo;
				all_hi = hi[i] < all_hi ? hi[i] : all_hi;
			}
			ja = ja > j0 ? (int)(ja - j0) / TR * TR : 0;
			jb = jb < j0 ? 0 : jb < j0 + BK ? (int)(jb - j0 + TR) / TR * TR : BK;
			if (ja >= jb)
				continue;

			for (int j = ja; j < jb; j += TR)
				tile(p[j], PW, kb[j], D, 1, qt[u][0], PW, D, 2, 0);

			// a query that has seen no key so far has maximum -1e30: its sums are void, and the
			// factor 2^(-1e30 - m) clears them at its first key
			if (all_lo > j0 + ja || all_hi < j0 + jb - 1)
				for (int j = ja; j < jb; j++)
					for (int i = 0; i < PW; i++)
						p[j][i] = lo[u * PW + i] <= j0 + j && hi[u * PW + i] >= j0 + j ? p[j][i] : -1e30f;

			vf x0 = m[u * 2], x1 = m[u * 2 + 1];

			for (int j = ja; j < jb; j++) {
				x0 = vmax(x0, VLOAD(p[j]));
				x1 = vmax(x1, VLOAD(p[j] + VW));
			}

			const vf f0 = vexp2(m[u * 2] - x0), f1 = vexp2(m[u * 2 + 1] - x1);
			vf s0 = l[u * 2] * f0, s1 = l[u * 2 + 1] * f1;

			for (int j = ja; j < jb; j++) {
				const vf p0 = vexp2(VLOAD(p[j]) - x0), p1 = vexp2(VLOAD(p[j] + VW) - x1);

				s0 += p0;
				s1 += p1;
				VSTORE(p[j], p0);
				VSTORE(p[j] + VW, p1);
			}
			for (int d = 0; d < D; d++) {
				VSTORE(ot[u][d], VLOAD(ot[u][d]) * f0);
				VSTORE(ot[u][d] + VW, VLOAD(ot[u][d] + VW) * f1);
			}
			m[u * 2] = x0, m[u * 2 + 1] = x1;
			l[u * 2] = s0, l[u * 2 + 1] = s1;

			for (int d = 0; d < D; d += TR)
				tile(ot[u][d], PW, vb[ja] + d, 1, D, p[ja], PW, jb - ja, 2, 1);
		}
	}

	// o = O / l      lse = ln l + m ln 2
	for (int u = 0; u < PANELS; u++) {
		transpose(kb[0], D, ot[u][0], PW, D, PW, 1.f);
		for (int n = 0; n < PW && u * PW + n < nq; n++) {
			const int i = u * PW + n;
			const float li = l[i / VW][i % VW], inv = 1.f / li;

			lse[(t0 + i) * H + h] = hc_logf(li) + m[i / VW][i % VW] * ln2;
			for (int d = 0; d < D; d++)
				o[(t0 + i) * H * D + h * D + d] = ST_@DTO@(kb[n][d] * inv);
		}
	}
}
