// for matrix i of the bank, M at m + matrix[i], its gradient g at g + matrix[i]:
// g *= sched[3]      mu = sched[5]      M = M + (1 - mu)*(g - M)      x = DT(g + mu*(M - g))      part = sum of x^2
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x)  CHUNK (elements of an item)
//        MATRICES (where each begins, in elements)
// items: N * PARTS: matrix item/PARTS, elements CHUNK*(item mod PARTS) and on
// sums: of the rounded x, in double, in the lanes of the compiler's vectors, then these
static const long matrix[@N@][1] = {
@MATRICES@
};

void @KERNEL@(const HcArg *a, long item)
{
	enum { CHUNK = @CHUNK@ };
	const long n = @R@L * @K@, parts = (n + CHUNK - 1) / CHUNK, i = item / parts;
	const long i0 = item % parts * CHUNK, i1 = n - i0 < CHUNK ? n : i0 + CHUNK;
	@DT@ *restrict x = (@DT@ *)a[0].p + i * n;                      // [N,R,K]
	double *restrict part = a[1].p;                                 // [N,PARTS]
	f32 *restrict m = (f32 *)a[2].p + matrix[i][0];                 // moment1: [R,K]
	const f32 *restrict g = (const f32 *)a[3].p + matrix[i][0];     // grads: [R,K]
	const f32 *restrict sched = a[4].p;                             // [6]
	const float clip = sched[3], mu = sched[5], keep = 1.f - mu;
	double sum = 0;

	#pragma omp simd reduction(+:sum)
	for (long j = i0; j < i1; j++) {
		const float gj = g[j] * clip;
		const float mj = m[j] + keep * (gj - m[j]);
		const @DT@ u = ST_@DT@(gj + mu * (mj - gj));

		m[j] = mj;
		x[j] = u;
		sum += (double)LD_@DT@(u) * LD_@DT@(u);
	}
	part[item] = sum;
}
