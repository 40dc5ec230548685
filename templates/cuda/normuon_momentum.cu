// for matrix i of the bank, M at m + matrix[i], its gradient g at g + matrix[i]:
// g *= sched[3]      mu = sched[5]      M = M + (1 - mu)*(g - M)      x = DT(g + mu*(M - g))      part = sum of x^2
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x)  CHUNK (elements of a block)
//        MATRICES (where each begins, in elements)  THREADS
// grid: N * PARTS: block b has matrix b/PARTS, elements CHUNK*(b mod PARTS) and on, 4 to a thread at a time
// sums: of the rounded x, a thread's own in fp32, ascending; then the threads by block_sum, in double

__constant__ const long matrix[@N@][1] = {
@MATRICES@
};

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	@DT@ *__restrict__ x,                            // [N,R,K]
	double *__restrict__ part,                       // [N,PARTS]
	f32 *__restrict__ m,                             // moment1
	const f32 *__restrict__ g,                       // grads
	const f32 *__restrict__ sched)                   // [6]
{
	enum { CHUNK = @CHUNK@, THREADS = @THREADS@, AHEAD = 2 };
	constexpr long n = @R@L * @K@, parts = (n + CHUNK - 1) / CHUNK, stride = THREADS * 4;
	__shared__ double red[32];
	const long i = blockIdx.x / parts, i0 = blockIdx.x % parts * CHUNK, i1 = n - i0 < CHUNK ? n : i0 + CHUNK;
	const float clip = sched[3], mu = sched[5], keep = 1.f - mu;
	float sum = 0;

	m += matrix[i][0];
	g += matrix[i][0];
	x += i * n;
	for (long j = i0 + threadIdx.x * 4; j < i1; j += AHEAD * stride) {
		float gj[AHEAD][4], mj[AHEAD][4], u[AHEAD][4];

		#pragma unroll
		for (int k = 0; k < AHEAD; k++)
			if (j + k * stride < i1) {
				load_vec(gj[k], g + j + k * stride, 4);
				load_vec(mj[k], m + j + k * stride, 4);
			}
		#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			if (j + k * stride >= i1)
				continue;
			for (int e = 0; e < 4; e++) {
				const float y = gj[k][e] * clip;

				mj[k][e] += keep * (y - mj[k][e]);
				u[k][e] = LD_@DT@(ST_@DT@(y + mu * (mj[k][e] - y)));
				sum += u[k][e] * u[k][e];
			}
			store_vec(m + j + k * stride, mj[k], 4);
			store_vec(x + j + k * stride, u[k], 4);
		}
	}

	const double all = block_sum(sum, red);

	if (threadIdx.x == 0)
		part[blockIdx.x] = all;
}
