// out[i] = largest of the warp's in      n warps
extern "C" __global__ __launch_bounds__(128)
void try_warp_max(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;

	if (i / 32 < n)
		out[i] = __float_as_uint(warp_max(__uint_as_float(in[i])));
}
