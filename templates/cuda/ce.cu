// loss[r] = logsumexp_{v<V} z[r,v] - z[r,target]      z = softcap(l)
// dl[r,v] = scale * dz/dl * (softmax(z)[v] - [v = target])      exactly 0 for V <= v < VP
// holes: KERNEL  DTG (f32, bf16: dtype of dlogits)  V  VP  CAP (0 none, 1 tanh, 2 sigmoid)
//        CAPV  SHIFT  TEMP (float literals; 1.f 0.f 1.f where unused)  THREADS
// grid: any, block b: rows b, b + gridDim.x, ..      threads: an eighth of VP or less, in whole warps, 4 columns at a time
// smem: VP floats where they fit, VP <= 56320: a row is read once, while the row before it is written; else it is read in
//       each of the three passes
// sums: exp in fp32 by thread, ascending, all columns but the target; threads in double by block_sum

enum { CAP_KIND = @CAP@ };

// z of l, and dz/dl without cancellation: 1 - tanh^2 = 4e/(1+e)^2 with e = exp(-2|l/cap|),
// s(1-s) = e/(1+e)^2 with e = exp(-|x|).
__device__ __forceinline__ float cap(float l, float *dz)
{
	const float capv = @CAPV@, x = CAP_KIND == 1 ? l * (2.f / capv) : (l + @SHIFT@) * (1.f / @TEMP@);
	const float e = exp2_approx(fabsf(x) * -1.44269504f), inv = __fdividef(1.f, 1.f + e);

	*dz = CAP_KIND == 0 ? 1.f : (CAP_KIND == 1 ? 4.f : capv / @TEMP@) * (e * inv * inv);
	return CAP_KIND == 0 ? l
	     : CAP_KIND == 1 ? capv * tanh_of(0.5f * x, (1.f - e) * inv)
	     : capv * ((x < 0.f ? e : 1.f) * inv);
}

// exp(z - top) dz/dl of l; adds exp(z - top) to sum if it counts
__device__ __forceinline__ float weight(float l, float top, bool counts, float *sum)
{
	float dz;
	const float p = exp2_approx((cap(l, &dz) - top) * 1.44269504f);

	*sum += counts ? p : 0.f;
	return dz * p;
}

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ loss,                          // [n]
	@DTG@ *__restrict__ dlogits,                     // [n, VP]
	const f32 *__restrict__ logits,                  // [n, VP]
	const i32 *__restrict__ targets,                 // [n]
	const f32 *__restrict__ scale,                   // [1]
	long n,
	long grad)                                       // 0: loss only, dlogits is not touched
{
	enum { V = @V@, VP = @VP@, N = VP % 4 ? 1 : 4, THREADS = @THREADS@, HELD = VP <= 56320, AHEAD = HELD && N == 4,
	       WHOLE = V % N == 0 };               // no vector ends beyond V
	__shared__ float red_max[32];
	__shared__ double red_sum[32];
	f32 *held = HELD ? (f32 *)dynamic_smem() : (f32 *)0;
	const int c0 = threadIdx.x * N;

	// A thread comes back to its own columns in every pass, so that what it holds needs no barrier.
	if (AHEAD && blockIdx.x < n)
		for (int c = c0; c < V; c += THREADS * N)
			cp_async16(held + c, logits + blockIdx.x * (long)VP + c, true);
	if (AHEAD)
		cp_async_commit();

	for (long r = blockIdx.x; r < n; r += gridDim.x) {
		const f32 *l = logits + r * VP;
		const int target = targets[r];
		const float lt = l[target];
		float most = __uint_as_float(0xff800000u), sum = 0, dz;

		// the softcap rises monotonically: the largest z is that of the largest l
		if (AHEAD)
			cp_async_wait0();
		#pragma unroll 4
		for (int c = c0; c < V; c += THREADS * N) {
			float x[N];

			load_vec(x, AHEAD ? held + c : l + c, N);
			if (HELD && !AHEAD)
				store_vec(held + c, x, N);
			for (int i = 0; i < N; i++)
				most = fmaxf(most, WHOLE || c + i < V ? x[i] : most);
		}

		const float top = cap(block_max(most, red_max), &dz);

		// exp(z - top) dz/dl takes the place of l
		#pragma unroll 2
		for (int c = c0; c < V; c += THREADS * N) {
			float x[N];

			load_vec(x, HELD ? held + c : l + c, N);
			for (int i = 0; i < N; i++)
				x[i] = weight(x[i], top, (WHOLE || c + i < V) && c + i != target, &sum);
			if (HELD && grad)
				store_vec(held + c, x, N);
		}

		const double rest = block_sum(sum, red_sum);
		const float zt = cap(lt, &dz) - top;
		const double et = exp2_approx(zt * 1.44269504f), all = rest + et;

		// one of all is exp(0) = 1; that of the target cancels exactly
		if (threadIdx.x == 0)
			loss[r] = log1pf((float)(et - 1 + rest)) - zt;

		// p - 1 of the target is the share of the others: near 0 where the target is almost certain
		const float k = scale[0], share = k * (float)(1 / all), at_target = k * dz * (float)(-rest / all);

		#pragma unroll 2
		for (int c = c0; c < VP; c += THREADS * N) {
			float x[N];

			if (grad) {
				if (c < V)
					load_vec(x, HELD ? held + c : l + c, N);
				for (int i = 0; i < N; i++) {
					const float q = HELD ? x[i] : weight(x[i], top, false, &sum);

					x[i] = c + i == target ? at_target : (WHOLE ? c < V : c + i < V) ? share * q : 0.f;
				}
				store_vec(dlogits + r * VP + c, x, N);
			}
			if (AHEAD && c < V && r + gridDim.x < n)
				cp_async16(held + c, l + gridDim.x * (long)VP + c, true);
		}
		if (AHEAD)
			cp_async_commit();
	}
}
