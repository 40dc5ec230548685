// One product per warp, n of them. in[warp][lane] = a[4] b[2] c[4], out[warp][lane] = d[4], as words.
extern "C" __global__ __launch_bounds__(128)
void try_mma(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;
	const unsigned *p = in + 10 * i;
	unsigned a[4], b[2];
	float d[4];

	if (i / 32 >= n)
		return;
	for (int j = 0; j < 4; j++)
		a[j] = p[j];
	for (int j = 0; j < 2; j++)
		b[j] = p[4 + j];
	for (int j = 0; j < 4; j++)
		d[j] = __uint_as_float(p[6 + j]);
	mma_m16n8k16_bf16(d, a, b);
	for (int j = 0; j < 4; j++)
		out[4 * i + j] = __float_as_uint(d[j]);
}
