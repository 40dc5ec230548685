// Each block turns its n words round in dynamic shared memory, which lies behind static. out: n words for each
// block, then for each block the address modulo 128.
extern "C" __global__ __launch_bounds__(96)
void try_dynamic_smem(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	__shared__ unsigned first;
	unsigned *s = (unsigned *)dynamic_smem();
	const int b = blockIdx.x;

	if (threadIdx.x == 0)
		first = in[b * n];
	for (int i = threadIdx.x; i < n; i += blockDim.x)
		s[n - 1 - i] = in[b * n + i];
	__syncthreads();
	for (int i = threadIdx.x; i < n; i += blockDim.x)
		out[b * n + i] = i == n - 1 ? first : s[i];
	if (threadIdx.x == 0)
		out[gridDim.x * n + b] = (unsigned)((unsigned long)s % 128);
}
