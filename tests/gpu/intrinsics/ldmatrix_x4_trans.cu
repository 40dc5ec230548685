// Four matrices, transposed, once per warp. in: 32 rows of 16 bytes, then for each of n threads the row whose
// address it passes. out[thread] = r[4].
extern "C" __global__ __launch_bounds__(128)
void try_ldmatrix_x4_trans(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	__shared__ __align__(16) unsigned rows[32][4];
	const int i = threadIdx.x;
	unsigned r[4];

	for (int j = i; j < 128; j += blockDim.x)
		rows[j / 4][j % 4] = in[j];
	__syncthreads();
	if (i >= n)
		return;
	ldmatrix_x4_trans(r, rows[in[128 + i]]);
	for (int j = 0; j < 4; j++)
		out[4 * i + j] = r[j];
}
