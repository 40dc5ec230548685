// Shuffles of doubles, n of them, one per lane: out[form][lane], forms: idx 7, up 2, down 2, xor 16
extern "C" __global__ __launch_bounds__(32)
void try_shuffle_double(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const int l = threadIdx.x;
	const unsigned all = 0xffffffffu;
	const double x = ((const double *)in)[l];
	double *o = (double *)out + l;

	o[0] = __shfl_sync(all, x, 7);
	o[n] = __shfl_up_sync(all, x, 2);
	o[2 * n] = __shfl_down_sync(all, x, 2);
	o[3 * n] = __shfl_xor_sync(all, x, 16);
}
