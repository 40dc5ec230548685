// out[i] = log2 in[i]      i < n
extern "C" __global__ __launch_bounds__(128)
void try_log2_approx(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n)
		out[i] = __float_as_uint(log2_approx(__uint_as_float(in[i])));
}
