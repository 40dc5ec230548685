// q[r] = mean of the squares of row r, over all matrices of the bank
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x)  THREADS
// grid: N*R/8, rounded up: a warp has a row
// sums: in fp32, a lane's own ascending, then the lanes by halves

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ q,                             // [N,R]
	const @DT@ *__restrict__ x)                      // [N,R,K]
{
	enum { K = @K@, VEC = K % 8 == 0 ? 8 : K % 4 == 0 ? 4 : 1 };
	const long r = blockIdx.x * (@THREADS@ / 32L) + threadIdx.x / 32;
	float sum = 0;

	if (r >= @N@L * @R@)
		return;
	x += r * K;
	#pragma unroll 4
	for (int j = threadIdx.x % 32 * VEC; j < K; j += 32 * VEC) {
		float u[VEC];

		load_vec(u, x + j, VEC);
		for (int e = 0; e < VEC; e++)
			sum += u[e] * u[e];
	}
	sum = warp_sum(sum);
	if (threadIdx.x % 32 == 0)
		q[r] = sum / K;
}
