// D = A B by ldmatrix and mma, from matrices stored by rows: in = A [16][16] bf16, B [16][8], B transposed [8][16]
// out[0] = D [16][8] f32 with B read by ldmatrix_x2_trans, out[1] with B transposed read by ldmatrix_x2,
// out[2] with A read from its transpose, which the kernel makes, by ldmatrix_x4_trans
extern "C" __global__ __launch_bounds__(32)
void try_matmul(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	__shared__ __align__(16) unsigned short A[16][16], At[16][16], B[16][8], Bt[8][16];
	const unsigned short *p = (const unsigned short *)in;
	const int l = threadIdx.x, g = l / 4, t = l % 4;
	unsigned a[4], b[2];

	for (int i = l; i < 256; i += 32)
		At[i % 16][i / 16] = A[i / 16][i % 16] = p[i];
	for (int i = l; i < 128; i += 32) {
		B[i / 8][i % 8] = p[256 + i];
		Bt[i / 16][i % 16] = p[384 + i];
	}
	__syncthreads();
	for (int k = 0; k < n; k++) {
		float d[4] = { 0, 0, 0, 0 };

		if (k < 2)
			ldmatrix_x4(a, &A[l % 16][l / 16 * 8]);
		else
			ldmatrix_x4_trans(a, &At[l / 16 * 8 + l % 8][l / 8 % 2 * 8]);
		if (k == 0)
			ldmatrix_x2_trans(b, B[l % 16]);
		else
			ldmatrix_x2(b, &Bt[l % 8][l / 8 % 2 * 8]);
		mma_m16n8k16_bf16(d, a, b);
		for (int j = 0; j < 4; j++)
			out[128 * k + (g + j / 2 * 8) * 8 + 2 * t + j % 2] = __float_as_uint(d[j]);
	}
}
