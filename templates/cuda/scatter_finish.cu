// grad[r,c] += sum of the parts that scatter left of a run: a run that begins in chunk b and ends in chunk e has
// ws[b,1], then ws[b+1,0] .. ws[e,0]
// holes: KERNEL  C  THREADS (256)
// grid: ceil(T/64) * ceil(C/W), W = 256 columns (64 where C is no multiple of 4), block: a chunk in which a run may
//       begin that goes on, and W columns
// threads: 4 groups of 64; group g adds the parts of chunks b+1+g, b+5+g, ..; then ws[b,1] and the groups, ascending

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ grad,                          // [R, C]
	const i32 *__restrict__ order,                   // [T] tokens sorted by row
	const i32 *__restrict__ start,                   // [R + 1] first index of each row's tokens in order
	long R,
	const i32 *__restrict__ idx,                     // [T] row of each token
	const f32 *__restrict__ ws)                      // [chunks, 2, C]
{
	enum { C = @C@, N = C % 4 ? 1 : 4, CHUNK = 64, W = 64 * N, SLABS = (C + W - 1) / W, GROUPS = @THREADS@ / 64 };
	__shared__ float part[GROUPS][W];
	const long n = start[R], b = blockIdx.x / SLABS, next = (b + 1) * CHUNK;
	const int lane = threadIdx.x % 64, group = threadIdx.x / 64;
	const int c = (int)(blockIdx.x % SLABS) * W + lane * N;
	float sum[N] = { 0 };

	if (next >= n)
		return;

	const long r = idx[order[next]];

	if (idx[order[next - 1]] != r || start[r] < next - CHUNK)
		return;

	const long last = (start[r + 1] - 1) / CHUNK;

	if (c < C) {
		#pragma unroll 4
		for (long e = b + 1 + group; e <= last; e += GROUPS) {
			float x[N];

			load_vec(x, ws + e * 2 * C + c, N);
			for (int i = 0; i < N; i++)
				sum[i] += x[i];
		}
		for (int i = 0; i < N; i++)
			part[group][lane * N + i] = sum[i];
	}
	__syncthreads();
	if (group > 0 || c >= C)
		return;

	float y[N], g[N];

	load_vec(g, grad + r * C + c, N);
	load_vec(y, ws + (b * 2 + 1) * C + c, N);
	for (int j = 0; j < GROUPS; j++)
		for (int i = 0; i < N; i++)
			y[i] += part[j][lane * N + i];
	for (int i = 0; i < N; i++)
		g[i] += y[i];
	store_vec(grad + r * C + c, g, N);
}
