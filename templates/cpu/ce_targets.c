// loss[r] = sum over k of w[k] (logsumexp_{v<V} z[r,v] - z[r,target k])      z = softcap(l)
// dl[r,v] = K dz/dl (W softmax(z)[v] - sum over k of w[k] [v = target k])      exactly 0 for V <= v < VP
// Target k of row r is that of row r + k, if that is of the same sequence; W is the sum of the weights of those.
// holes: KERNEL  DTL (f32, bf16: dtype of logits)  DTG (f32, bf16, f8e5m2: dtype of dlogits)  V  VP  TARGETS
//        K (factor of the gradients: scale[0], or a float literal)  CAP (0 none, 1 tanh, 2 sigmoid)
//        CAPV  SHIFT  TEMP (float literals; 1.f 0.f 1.f where unused)
// items: 64, item b: rows b*n/64 .. (b+1)*n/64
// sums: exp in fp32 over chunks of 1024 columns, without those of targets, the chunks in double, ascending; then
//       the targets

enum { CAP_KIND = @CAP@, TARGETS = @TARGETS@ };

// z of l, and dz/dl without cancellation: 1 - tanh^2 = 4e/(1+e)^2 with e = exp(-2|l/cap|),
// s(1-s) = e/(1+e)^2 with e = exp(-|x|).
HC float cap(float l, float *dz)
{
	const float capv = @CAPV@, x = CAP_KIND == 1 ? l * (2.f / capv) : (l + @SHIFT@) * (1.f / @TEMP@);
	const float e = hc_expnf(-__builtin_fabsf(x)), inv = 1.f / (1.f + e);

	*dz = CAP_KIND == 0 ? 1.f : (CAP_KIND == 1 ? 4.f : capv / @TEMP@) * (e * inv * inv);
	return CAP_KIND == 0 ? l
	     : CAP_KIND == 1 ? capv * hc_tanhf(0.5f * x)
	     : capv * ((x < 0.f ? e : 1.f) * inv);
}

// floats as integers of the same order: their maximum vectorises, that of floats does not where NaN counts
HC int order(float x)
{
	const int i = (int)((HcBits){ .f = x }).u;

	return i ^ (i >> 31 & 0x7fffffff);
}

HC float unorder(int i)
{
	return ((HcBits){ .u = (unsigned)(i ^ (i >> 31 & 0x7fffffff)) }).f;
}

// Targets of a row that has `left` positions up to the end of its sequence; -1 with weight 0: there is none.
// Equal ones are one.
HC void targets_of(const i32 *targets, const f32 *weights, long left, int t[TARGETS], float w[TARGETS])
{
	for (int k = 0; k < TARGETS; k++) {
		t[k] = k < left ? targets[k] : -1;
		w[k] = k < left ? weights[k] : 0.f;
		for (int j = 0; j < k; j++)
			if (t[j] == t[k] && t[k] >= 0) {
				w[j] += w[k];
				w[k] = 0.f;
				t[k] = -1;
			}
	}
}

// ln(1 + x) for x >= 0: the rounding of 1 + x is taken back
HC float log1p_of(float x)
{
	const float u = 1.f + x;

	return u == 1.f ? x : hc_logf(u) * (x / (u - 1.f));
}

// sum of exp(z - top) of all columns but targets
HC double rest_of(const @DTL@ *l, float top, const int t[TARGETS])
{
	enum { V = @V@, CHUNK = 1024 };
	double sum = 0;

	for (long v0 = 0; v0 < V; v0 += CHUNK) {
		const long nv = V - v0 < CHUNK ? V - v0 : CHUNK;
		float e[CHUNK], part = 0, unused;

		#pragma omp simd private(unused)
		for (long v = 0; v < nv; v++)
			e[v] = hc_expnf(cap(LD_@DTL@(l[v0 + v]), &unused) - top);
		for (int k = 0; k < TARGETS; k++)
			if (t[k] >= v0 && t[k] < v0 + nv)
				e[t[k] - v0] = 0;
		#pragma omp simd reduction(+:part)
		for (long v = 0; v < nv; v++)
			part += e[v];
		sum += part;
	}
	return sum;
}

void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict loss = a[0].p;               // [n]
	@DTG@ *restrict dlogits = a[1].p;          // [n, VP]
	const @DTL@ *restrict logits = a[2].p;     // [n, VP]
	const i32 *restrict targets = a[3].p;      // [n], and on to the end of the sequence
	const f32 *restrict scale = a[4].p;        // [1], of the loss
	const long n = a[5].i;
	const f32 *restrict weights = a[6].p;      // [TARGETS]
	const long row0 = a[7].i;                  // rows of the micro-batch before these
	const long seq = a[8].i;

	enum { V = @V@, VP = @VP@ };

	(void)scale;
	for (long r = item * n / 64; r < (item + 1) * n / 64; r++) {
		const @DTL@ *restrict l = logits + r * VP;
		@DTG@ *restrict dl = dlogits + r * VP;
		int most = order(LD_@DTL@(l[0])), t[TARGETS];
		float w[TARGETS], zt[TARGETS], dz[TARGETS], et[TARGETS], W = 0, row = 0, unused;

		targets_of(targets + r, weights, seq - (row0 + r) % seq, t, w);

		// the softcap rises monotonically, so the largest z is that of the largest l
		for (long v = 1; v < V; v++)
			most = order(LD_@DTL@(l[v])) > most ? order(LD_@DTL@(l[v])) : most;

		const float largest = unorder(most), top = cap(largest, &unused);
		const double rest = rest_of(l, top, t);
		double all = rest, over = rest;        // over: all - 1, once the 1 below was found
		int one = 0;

		for (int k = 0; k < TARGETS; k++) {
			const float lt = LD_@DTL@(l[t[k] < 0 ? 0 : t[k]]), z = cap(lt, &dz[k]) - top;

			// exactly 0 where it is the largest, however the compiler contracts
			zt[k] = t[k] < 0 || lt == largest ? 0.f : z;
			et[k] = t[k] < 0 ? 0.f : hc_expnf(zt[k]);
			all += et[k];
			W += w[k];
			// one of all is exp(0) = 1; that of a target cancels exactly
			if (!one && et[k] == 1.f)
				one = 1;
			else
				over += et[k];
		}

		const float log_all = log1p_of((float)(one ? over : over - 1)), share = @K@ * W * (float)(1. / all);

		for (int k = 0; k < TARGETS; k++)
			row += w[k] * (log_all - zt[k]);
		loss[r] = row;

		#pragma omp simd
		for (long v = 0; v < V; v++) {
			float slope;
			const float e = hc_expnf(cap(LD_@DTL@(l[v]), &slope) - top);

			dl[v] = ST_@DTG@(share * slope * e);
		}
		for (long v = V; v < VP; v++)
			dl[v] = ST_@DTG@(0.f);

		// W p - w = ((W - w) e - w (sum - e)) / sum, of sums that leave e and w out: near 0 where one target is
		// almost certain
		for (int k = 0; k < TARGETS; k++) {
			double others = rest, weight = 0;

			for (int j = 0; j < TARGETS; j++) {
				others += j == k ? 0.f : et[j];
				weight += j == k ? 0.f : w[j];
			}
			if (t[k] >= 0)
				dl[t[k]] = ST_@DTG@(@K@ * dz[k] * (float)((weight * et[k] - w[k] * others) / all));
		}
	}
}
