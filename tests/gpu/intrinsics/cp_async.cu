// Three stages of 64 vectors of 16 bytes through two buffers. in: the flags of the 192 vectors (valid or not),
// then n vectors; what is not valid is asked for beyond the end. out: the 192 vectors, neighbours exchanged.
extern "C" __global__ __launch_bounds__(64)
void try_cp_async(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	__shared__ __align__(16) unsigned ring[2][64][4];
	const int i = threadIdx.x;

	for (int s = 0; s < 4; s++) {
		if (s < 3) {
			const int v = 64 * s + i;

			cp_async16(ring[s % 2][i], in + 192 + 4 * (in[v] ? v : n), in[v] != 0);
			cp_async_commit();
		}
		if (s == 0)
			continue;
		if (s < 3)
			cp_async_wait1();
		else
			cp_async_wait0();
		__syncthreads();
		for (int j = 0; j < 4; j++)
			out[4 * (64 * (s - 1) + i) + j] = ring[(s - 1) % 2][i ^ 1][j];
		__syncthreads();
	}
}
