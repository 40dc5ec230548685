// g *= sched[3]      lr_t = lr * sched[0]      s = sched[1] / every, the number of the update (sched[1] = t + 1)
// m = b1*m + (1-b1)*g      v = b2*v + (1-b2)*g^2
// u = lr_t*sqrt(1-b2^s)/(1-b1^s) * m/(sqrt(v) + eps)      u += lr_t^2*wd*p where u*p > 0
// p = p - u      w = bf16(p)
// holes: KERNEL  WEIGHTS (1: w is written, 0: w is not touched and may be null)  HELD (1: p is rounded to bf16)
//        TIED (1: p and p2 are one parameter: g + g2 counts, both get what is written; 0: both null)
// items: 64, each a multiple of 16 elements
// types: fp32; the factors that depend on the step alone in double, rounded once

// x^n by squaring
HC double power(double x, long n)
{
	double y = 1;

	for (; n > 0; n >>= 1, x *= x)
		if (n & 1)
			y *= x;
	return y;
}

void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict p = a[0].p;                  // [n]
	bf16 *restrict w = a[1].p;                 // [n] or null
	f32 *restrict m = a[2].p;                  // [n]
	f32 *restrict v = a[3].p;                  // [n]
	const f32 *restrict g = a[4].p;            // [n]
	const long n = a[5].i;
	const double lr = a[6].f, beta1 = a[7].f, beta2 = a[8].f, eps = a[9].f, wd = a[10].f;
	const f32 *restrict sched = a[11].p;       // [6]
	const long every = a[12].i;
	f32 *restrict p2 = a[13].p;                // [n] or null
	const f32 *restrict g2 = a[14].p;          // [n] or null

	enum { WEIGHTS = @WEIGHTS@, HELD = @HELD@, TIED = @TIED@ };
	const long n16 = (n + 15) / 16;
	const long i0 = item * n16 / 64 * 16, end = (item + 1) * n16 / 64 * 16, i1 = end < n ? end : n;
	const double lr_t = lr * sched[0];
	const long step = (long)sched[1] / every;
	const float b1 = (float)beta1, c1 = (float)(1 - beta1);
	const float b2 = (float)beta2, c2 = (float)(1 - beta2);
	const float rate = (float)(lr_t * __builtin_sqrt(1 - power(beta2, step)) / (1 - power(beta1, step)));
	const float decay = (float)(lr_t * lr_t * wd), e = (float)eps, clip = sched[3];

	for (long i = i0; i < i1; i++) {
		const float gi = (TIED ? g[i] + g2[i] : g[i]) * clip;
		const float mi = b1 * m[i] + c1 * gi;
		const float vi = b2 * v[i] + c2 * (gi * gi);
		const float u = rate * mi / (__builtin_sqrtf(vi) + e);
		const float x = p[i] - (u + (u * p[i] > 0.f ? decay * p[i] : 0.f));
		const float pi = HELD ? F32(BF16(x)) : x;

		m[i] = mi;
		v[i] = vi;
		p[i] = pi;
		if (WEIGHTS)
			w[i] = BF16(pi);
		if (TIED)
			p2[i] = pi;
	}
}
