// loss[r] = logsumexp_{v<V} z[r,v] - z[r,target]      z = softcap(l)
// dl[r,v] = scale * dz/dl * (softmax(z)[v] - [v = target])      exactly 0 for V <= v < VP
// holes: KERNEL  DTG (f32, bf16: dtype of dlogits)  V  VP  CAP (0 none, 1 tanh, 2 sigmoid)
//        CAPV  SHIFT  TEMP (float literals; 1.f 0.f 1.f where unused)
// items: 64, item b: rows b*n/64 .. (b+1)*n/64
// sums: exp in fp32 over chunks of 1024 columns, the chunks in double, ascending

enum { CAP_KIND = @CAP@ };

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

void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict loss = a[0].p;               // [n]
	@DTG@ *restrict dlogits = a[1].p;          // [n, VP]
	const f32 *restrict logits = a[2].p;       // [n, VP]
	const i32 *restrict targets = a[3].p;      // [n]
	const f32 *restrict scale = a[4].p;        // [1]
	const long n = a[5].i;
	const long grad = a[6].i;                  // 0: loss only, dlogits is not touched

	enum { V = @V@, VP = @VP@, CHUNK = 1024 };

	for (long r = item * n / 64; r < (item + 1) * n / 64; r++) {
		const f32 *restrict l = logits + r * VP;
		@DTG@ *restrict dl = dlogits + r * VP;
		const long target = targets[r];
		int most = order(l[0]);
		double sum = 0;
		float dz;

		// the softcap rises monotonically, so the largest z is that of the largest l
		for (long v = 1; v < V; v++)
			most = order(l[v]) > most ? order(l[v]) : most;

		const float top = cap(unorder(most), &dz);

		for (long v0 = 0; v0 < V; v0 += CHUNK) {
			const long v1 = v0 + CHUNK < V ? v0 + CHUNK : V;
			float part = 0;

			#pragma omp simd reduction(+:part)
			for (long v = v0; v < v1; v++) {
				float unused;

				part += hc_expnf(cap(l[v], &unused) - top);
			}
			sum += part;
		}

		const float zt = cap(l[target], &dz) - top;

		loss[r] = hc_logf((float)sum) - zt;
		if (!grad)
			continue;

		const float k = scale[0], inv = (float)(1. / sum);

		#pragma omp simd
		for (long v = 0; v < V; v++) {
			float slope;
			const float p = hc_expnf(cap(l[v], &slope) - top) * inv;

			dl[v] = ST_@DTG@(k * slope * p);
		}
		for (long v = V; v < VP; v++)
			dl[v] = ST_@DTG@(0.f);

		// p - 1 = (e^zt - sum) / sum in double: near 0 where the target is almost certain
		dl[target] = ST_@DTG@(k * dz * (float)((hc_expnf(zt) - sum) / sum));
	}
}
