// loss[r] = sum over k of w[k] (logsumexp_{v<V} z[r,v] - z[r,target k])      z = softcap(l)
// dl[r,v] = K dz/dl (W softmax(z)[v] - sum over k of w[k] [v = target k])      exactly 0 for V <= v < VP
// Target k of row r is that of row r + k, if that is of the same sequence; W is the sum of the weights of those.
// holes: KERNEL  DTL (f32, bf16: dtype of logits)  DTG (f32, bf16, f8e5m2: dtype of dlogits)  V  VP  TARGETS
//        K (factor of the gradients: scale[0], or a float literal)  CAP (0 none, 1 tanh, 2 sigmoid)
//        CAPV  SHIFT  TEMP (float literals; 1.f 0.f 1.f where unused)  THREADS
// grid: any, block b: rows b, b + gridDim.x, ..      threads: an eighth of VP or less, in whole warps
// smem: VP floats where they fit, VP <= 56320: a row is read once, while the row before it is written; else it is
//       read in each of the three passes
// sums: exp in fp32 over a thread's columns of 16 bytes, ascending, without those of targets; these in fp32 by
//       thread, ascending; threads in double by block_sum; then the targets

// N: columns that a thread takes at a time, 16 bytes of them where rows are aligned to that
enum { CAP_KIND = @CAP@, TARGETS = @TARGETS@, V = @V@, VP = @VP@, N = VP * sizeof(@DTL@) % 16 ? 1 : 16 / sizeof(@DTL@),
       THREADS = @THREADS@, HELD = VP <= 56320, AHEAD = HELD && N > 1,
       WHOLE = V % N == 0 };                       // no vector ends beyond V

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

// exp(z - top) dz/dl of l; e: exp(z - top)
__device__ __forceinline__ float weight(float l, float top, float *e)
{
	float dz;

	*e = exp2_approx((cap(l, &dz) - top) * 1.44269504f);
	return dz * *e;
}

// columns c .. c + N - 1 of a row as they came: in place of the floats that they become, as floats, or where they lie
__device__ __forceinline__ void row_vec(float *x, const f32 *held, const @DTL@ *l, int c)
{
	if (AHEAD)
		load_vec(x, (const @DTL@ *)(held + c), N);
	else if (HELD)
		load_vec(x, held + c, N);
	else
		load_vec(x, l + c, N);
}

// is one of columns c .. c + n - 1 a target?
__device__ __forceinline__ bool has_target(const int *t, int c, int n)
{
	bool has = false;

	#pragma unroll
	for (int k = 0; k < TARGETS; k++)
		has |= (unsigned)(t[k] - c) < (unsigned)n;
	return has;
}

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ loss,                          // [n]
	@DTG@ *__restrict__ dlogits,                     // [n, VP]
	const @DTL@ *__restrict__ logits,                // [n, VP]
	const i32 *__restrict__ targets,                 // [n], and on to the end of the sequence
	const f32 *__restrict__ scale,                   // [1], of the loss
	long n,
	const f32 *__restrict__ weights,                 // [TARGETS]
	long row0,                                       // rows of the micro-batch before these
	long seq)
{
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
		const @DTL@ *l = logits + r * VP;
		// positions to the end of the sequence
		const unsigned left = (unsigned)seq - (unsigned)(row0 + r) % (unsigned)seq;
		int t[TARGETS];                          // distinct targets; -1 with weight 0: there is none
		float w[TARGETS], lt[TARGETS], at[TARGETS];
		float most = __uint_as_float(0xff800000u), sum = 0, dz;

		#pragma unroll
		for (int k = 0; k < TARGETS; k++) {
			t[k] = k < left ? targets[r + k] : -1;
			w[k] = k < left ? weights[k] : 0.f;
			#pragma unroll
			for (int j = 0; j < k; j++)
				if (t[j] == t[k] && t[k] >= 0) {
					w[j] += w[k];
					w[k] = 0.f;
					t[k] = -1;
				}
		}
		#pragma unroll
		for (int k = 0; k < TARGETS; k++)
			load_vec(&lt[k], l + (t[k] < 0 ? 0 : t[k]), 1);

		// the softcap rises monotonically: the largest z is that of the largest l
		if (AHEAD)
			cp_async_wait0();
		#pragma unroll 4
		for (int c = c0; c < V; c += THREADS * N) {
			float x[N];

			if (AHEAD)
				load_vec(x, (const @DTL@ *)(held + c), N);
			else
				load_vec(x, l + c, N);
			if (HELD && !AHEAD)
				store_vec(held + c, x, N);
			for (int i = 0; i < N; i++)
				most = fmaxf(most, WHOLE || c + i < V ? x[i] : most);
		}

		const float largest = block_max(most, red_max), top = cap(largest, &dz);

		// exp(z - top) dz/dl takes the place of l
		#pragma unroll 2
		for (int c = c0; c < V; c += THREADS * N) {
			float x[N], e[N], part = 0;

			row_vec(x, held, l, c);
			for (int i = 0; i < N; i++) {
				x[i] = weight(x[i], top, &e[i]);
				part += WHOLE || c + i < V ? e[i] : 0.f;
			}
			if (has_target(t, c, N)) {
				part = 0;
				for (int i = 0; i < N; i++)
					part += (WHOLE || c + i < V) && !has_target(t, c + i, 1) ? e[i] : 0.f;
			}
			sum += part;
			if (HELD)
				store_vec(held + c, x, N);
		}

		const double rest = block_sum(sum, red_sum);
		double all = rest, over = rest;          // over: all - 1, once the 1 below was found
		float W = 0, row = 0, et[TARGETS];
		bool one = false;

		#pragma unroll
		for (int k = 0; k < TARGETS; k++) {
			// now z - top, exactly 0 for the largest however the compiler contracts; and in at dz/dl
			const float z = cap(lt[k], &at[k]) - top;

			lt[k] = t[k] < 0 || lt[k] == largest ? 0.f : z;
			et[k] = t[k] < 0 ? 0.f : exp2_approx(lt[k] * 1.44269504f);
			all += et[k];
			W += w[k];
			// one of all is exp(0) = 1; that of a target cancels exactly
			if (!one && et[k] == 1.f)
				one = true;
			else
				over += et[k];
		}
		if (threadIdx.x == 0) {
			const float log_all = log1pf((float)(one ? over : over - 1));

			for (int k = 0; k < TARGETS; k++)
				row += w[k] * (log_all - lt[k]);
			loss[r] = row;
		}

		// W p - w = ((W - w) e - w (all - e)) / all, of sums that leave e and w out: near 0 where one target is almost
		// certain
		const float factor = @K@, share = factor * W * (float)(1 / all);

		#pragma unroll
		for (int k = 0; k < TARGETS; k++) {
			double others = rest;
			float other_w = 0;

			#pragma unroll
			for (int j = 0; j < TARGETS; j++) {
				others += j == k ? 0.f : et[j];
				other_w += j == k ? 0.f : w[j];
			}
			at[k] *= factor * (float)(((double)other_w * et[k] - w[k] * others) / all);
		}

		#pragma unroll 2
		for (int c = c0; c < VP; c += THREADS * N) {
			float x[N];

			if (c < V) {
				if (HELD)
					load_vec(x, held + c, N);
				else
					load_vec(x, l + c, N);
			}
			for (int i = 0; i < N; i++) {
				float e;

				if (!HELD)
					x[i] = c < V ? weight(x[i], top, &e) : 0.f;
				x[i] = (WHOLE ? c < V : c + i < V) ? share * x[i] : 0.f;
			}
			if (has_target(t, c, N))
				for (int k = 0; k < TARGETS; k++)
					for (int i = 0; i < N; i++)
						x[i] = c + i == t[k] ? at[k] : x[i];
			store_vec(dlogits + r * VP + c, x, N);
			if (AHEAD && c < V && r + gridDim.x < n)
				cp_async16(held + c, l + gridDim.x * (long)VP + c, true);
		}
		if (AHEAD)
			cp_async_commit();
	}
}
