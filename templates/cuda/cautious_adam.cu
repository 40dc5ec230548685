// g *= sched[3]      lr_t = lr * sched[0]      s = sched[1] / every, the number of the update (sched[1] = t + 1)
// m = b1*m + (1-b1)*g      v = b2*v + (1-b2)*g^2
// u = lr_t*sqrt(1-b2^s)/(1-b1^s) * m/(sqrt(v) + eps)      u += lr_t^2*wd*p where u*p > 0
// p = p - u      w = bf16(p)
// holes: KERNEL  WEIGHTS (1: w is written, 0: w is not touched and may be null)  HELD (1: p is rounded to bf16)
//        TIED (1: p and p2 are one parameter: g + g2 counts, both get what is written; 0: both null)  THREADS
// grid: any; a block takes every gridDim.x-th tile of 4 * THREADS elements, 4 to a thread
// types: fp32; the factors that depend on the step alone in double, rounded once

// x^n by squaring
__device__ __forceinline__ double power(double x, long n)
{
	double y = 1;

	for (; n > 0; n >>= 1, x *= x)
		if (n & 1)
			y *= x;
	return y;
}

// the factors of this step, in shared memory
enum { RATE, DECAY, CLIP, NFACTOR };

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ p,                             // [n]
	bf16 *__restrict__ w,                            // [n] or null
	f32 *__restrict__ m,                             // [n]
	f32 *__restrict__ v,                             // [n]
	const f32 *__restrict__ g,                       // [n]
	long n,
	double lr, double beta1, double beta2, double eps, double wd,
	const f32 *__restrict__ sched,                   // [6]
	long every,
	f32 *__restrict__ p2,                            // [n] or null
	const f32 *__restrict__ g2)                      // [n] or null
{
	enum { WEIGHTS = @WEIGHTS@, HELD = @HELD@, TIED = @TIED@, THREADS = @THREADS@ };
	__shared__ float factor[NFACTOR];

	if (threadIdx.x == 0) {
		const double lr_t = lr * sched[0];
		const long step = (long)sched[1] / every;

		factor[RATE] = (float)(lr_t * sqrt(1 - power(beta2, step)) / (1 - power(beta1, step)));
		factor[DECAY] = (float)(lr_t * lr_t * wd);
		factor[CLIP] = sched[3];
	}
	__syncthreads();

	const float b1 = (float)beta1, c1 = (float)(1 - beta1), b2 = (float)beta2, c2 = (float)(1 - beta2), e = (float)eps;
	const float rate = factor[RATE], decay = factor[DECAY], clip = factor[CLIP];

	for (long i = ((long)blockIdx.x * THREADS + threadIdx.x) * 4; i < n; i += (long)gridDim.x * THREADS * 4) {
		const int left = n - i < 4 ? (int)(n - i) : 4;
		float gi[4] = { 0 }, ti[4] = { 0 }, mi[4] = { 0 }, vi[4] = { 0 }, pi[4] = { 0 };

		if (left == 4) {
			load_vec(gi, g + i, 4);
			load_vec(mi, m + i, 4);
			load_vec(vi, v + i, 4);
			load_vec(pi, p + i, 4);
			if (TIED)
				load_vec(ti, g2 + i, 4);
		} else
			for (int j = 0; j < 3; j++)
				if (j < left) {
					gi[j] = g[i + j];
					mi[j] = m[i + j];
					vi[j] = v[i + j];
					pi[j] = p[i + j];
					if (TIED)
						ti[j] = g2[i + j];
				}
		for (int j = 0; j < 4; j++) {
			const float x = (TIED ? gi[j] + ti[j] : gi[j]) * clip;

			mi[j] = fmaf(b1, mi[j], c1 * x);
			vi[j] = fmaf(b2, vi[j], c2 * (x * x));

			const float u = rate * mi[j] / (sqrtf(vi[j]) + e);

			pi[j] -= u + (u * pi[j] > 0.f ? decay * pi[j] : 0.f);
			if (HELD)
				pi[j] = F32(BF16(pi[j]));
		}
		if (left == 4) {
			store_vec(m + i, mi, 4);
			store_vec(v + i, vi, 4);
			store_vec(p + i, pi, 4);
			if (WEIGHTS)
				store_vec(w + i, pi, 4);
			if (TIED)
				store_vec(p2 + i, pi, 4);
		} else
			for (int j = 0; j < 3; j++)
				if (j < left) {
					m[i + j] = mi[j];
					v[i + j] = vi[j];
					p[i + j] = pi[j];
					if (WEIGHTS)
						w[i + j] = BF16(pi[j]);
					if (TIED)
						p2[i + j] = pi[j];
				}
	}
}
