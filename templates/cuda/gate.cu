// y[t,h] = sum over c < N of x[t,c] w[h,W0+c]
// holes: KERNEL  DT (f32, bf16: dtype of x)  H  N  C (channels of x, N of which are read)  WN (columns of w)  W0  THREADS
// grid: ceil(T / THREADS); thread = a row
// sums: over c ascending

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ y,                             // [T, H]
	const @DT@ *__restrict__ x,                      // [T, C]
	const f32 *__restrict__ w,                       // [H, WN]
	long T)
{
	enum { H = @H@, N = @N@, C = @C@, N4 = (N + 3) / 4 * 4, WN = @WN@, W0 = @W0@, THREADS = @THREADS@ };
	__shared__ float ws[H * N];
	const long t = (long)blockIdx.x * THREADS + threadIdx.x;

	for (int i = threadIdx.x; i < H * N; i += THREADS)
		ws[i] = w[i / N * WN + W0 + i % N];
	__syncthreads();
	if (t >= T)
		return;

	float v[N4];

	// a row has a multiple of 8 channels, so that what is read beyond N is there
	#pragma unroll
	for (int c = 0; c < N4; c += 4)
		load_vec(v + c, x + t * C + c, 4);
	for (int h = 0; h < H; h++) {
		float sum = 0.f;

		#pragma unroll
		for (int c = 0; c < N; c++)
			sum += v[c] * ws[h * N + c];
		y[t * H + h] = sum;
	}
}
