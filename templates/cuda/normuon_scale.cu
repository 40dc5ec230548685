// x = DT(x / (1.02*|x| + 1e-6)), |x| of the whole matrix
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x)  CHUNK (elements of a block)  THREADS
// grid: N * PARTS: block b has matrix b/PARTS, elements CHUNK*(b mod PARTS) and on, 4 to a thread at a time
// sums: part[t], part[t + THREADS], .. by thread t, in double; then the threads by block_sum

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	@DT@ *__restrict__ x,                            // [N,R,K]
	const double *__restrict__ part)                 // [N,PARTS]
{
	enum { N = @N@, CHUNK = @CHUNK@, THREADS = @THREADS@, AHEAD = 4 };
	constexpr long n = @R@L * @K@, parts = (n + CHUNK - 1) / CHUNK, stride = THREADS * 4;
	__shared__ double red[32];
	const long i = blockIdx.x / parts, i0 = blockIdx.x % parts * CHUNK, i1 = n - i0 < CHUNK ? n : i0 + CHUNK;
	double sum = 0;

	for (long j = threadIdx.x; j < parts; j += THREADS)
		sum += part[i * parts + j];

	const float size = (float)(1.02 * sqrt(block_sum(sum, red)) + 1e-6);

	x += i * n;
	for (long j = i0 + threadIdx.x * 4; j < i1; j += AHEAD * stride) {
		float u[AHEAD][4];

		#pragma unroll
		for (int k = 0; k < AHEAD; k++)
			if (j + k * stride < i1)
				load_vec(u[k], x + j + k * stride, 4);
		#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			if (j + k * stride >= i1)
				continue;
			for (int e = 0; e < 4; e++)
				u[k][e] /= size;
			store_vec(x + j + k * stride, u[k], 4);
		}
	}
}
