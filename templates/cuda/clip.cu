// sched[4] = norm = sqrt(sum of part)      sched[3] = min(1, clip/(norm + 1e-6)), 1 where clip = 0
// holes: KERNEL  THREADS
// grid: 1
// sums: part[t], part[t + THREADS], .. by thread t, in double; then the threads by block_sum

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ sched,                         // [5]
	const double *__restrict__ part,                 // [parts]
	double clip,
	long parts)
{
	__shared__ double red[32];
	double sum = 0;

	for (long i = threadIdx.x; i < parts; i += @THREADS@)
		sum += part[i];

	const double norm = sqrt(block_sum(sum, red));
	const double factor = clip / (norm + 1e-6);

	if (threadIdx.x == 0) {
		sched[3] = clip > 0 && !(factor >= 1) ? (float)factor : 1.f;
		sched[4] = (float)norm;
	}
}
