// dst[i] += sum over b < parts of part[b,i], in fp32
// holes: KERNEL  THREADS
// grid: ceil(width/32), block: 32 columns, a lane each
// sums: warp w adds b = w*parts/W .. (w+1)*parts/W of W warps, ascending; then the warps, ascending

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ dst,                           // [width]
	const f32 *__restrict__ part,                    // [parts, width]
	long width,
	long parts)
{
	enum { WARPS = @THREADS@ / 32 };
	__shared__ float warp_part[WARPS][32];
	const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const long i = blockIdx.x * 32L + lane, end = (warp + 1) * parts / WARPS;
	float sum = 0;

	if (i < width)
		#pragma unroll 8
		for (long b = warp * parts / WARPS; b < end; b++)
			sum += part[b * width + i];
	warp_part[warp][lane] = sum;
	__syncthreads();
	if (warp > 0 || i >= width)
		return;

	const float had = dst[i];

	sum = 0;
	for (int k = 0; k < WARPS; k++)
		sum += warp_part[k][lane];
	dst[i] = had + sum;
}
