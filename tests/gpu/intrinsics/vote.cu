// Votes of n warps: in[thread] is what a lane votes on. out[warp][lane] = ballot, any, all; then the lower and
// the upper half warp each for itself: the ballot, and the sum, of which the first lane alone takes a vote.
extern "C" __global__ __launch_bounds__(128)
void try_vote(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;
	const int l = (int)(i % 32);
	const unsigned half = l < 16 ? 0xffffu : 0xffff0000u;

	if (i / 32 >= n)
		return;
	const unsigned x = in[i];
	unsigned *o = out + 5 * i;

	o[0] = __ballot_sync(0xffffffffu, (int)x);
	o[1] = (unsigned)(__any_sync(0xffffffffu, (int)x) != 0);
	o[2] = (unsigned)(__all_sync(0xffffffffu, (int)x) != 0);
	if (l < 16)
		o[3] = __ballot_sync(half, (int)(x & 1));
	else
		o[3] = __ballot_sync(half, (int)(x & 2));
	unsigned s = x;

	for (int j = 8; j; j >>= 1)
		s += __shfl_xor_sync(half, s, j);
	__syncwarp(half);
	if (l % 16 == 0)
		s += (unsigned)__any_sync(1u << l, (int)(s & 1));
	o[4] = s;
}
