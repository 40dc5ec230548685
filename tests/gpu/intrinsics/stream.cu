// n vectors of 16 bytes, their words turned by one
extern "C" __global__ __launch_bounds__(128)
void try_stream(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n) {
		const uint4x x = ld_stream16(in + 4 * i);

		st_stream16(out + 4 * i, { { x.v[1], x.v[2], x.v[3], x.v[0] } });
	}
}
