// out[i] = in[2i] in the low, in[2i+1] in the high half, as bf16      i < n
extern "C" __global__ __launch_bounds__(128)
void try_pack_bf16x2(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n)
		out[i] = pack_bf16x2(__uint_as_float(in[2 * i]), __uint_as_float(in[2 * i + 1]));
}
