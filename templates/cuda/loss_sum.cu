// *result += sum of loss[t], in double
// holes: KERNEL  THREADS
// grid: 1
// sums: loss[t], loss[t + THREADS], .. by thread t, ascending; then the threads by block_sum

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	double *__restrict__ result,                     // [1]
	const f32 *__restrict__ loss,                    // [T]
	long T)
{
	__shared__ double red[32];
	double sum = 0;

	#pragma unroll 8
	for (long t = threadIdx.x; t < T; t += @THREADS@)
		sum += loss[t];
	sum = block_sum(sum, red);
	if (threadIdx.x == 0)
		*result += sum;
}
