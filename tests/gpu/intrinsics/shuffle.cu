// Every shuffle of one word in each lane of a warp, for n widths 32, 16, 8, …: of in[lane], with in[32 + lane]
// as a lane to ask for, as big as it comes. out[width][form][lane], forms: idx 5, idx of the lane asked for,
// up 1, up 3, down 1, down 3, xor 1, xor 5.
extern "C" __global__ __launch_bounds__(32)
void try_shuffle(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const int l = threadIdx.x;
	const unsigned all = 0xffffffffu, x = in[l];
	const int asked = (int)in[32 + l], i = (int)x;
	const float f = __uint_as_float(x);

	for (int k = 0; k < n; k++) {
		const int w = 32 >> k;
		unsigned *o = out + 256 * k + l;

		o[0] = __shfl_sync(all, x, 5, w);
		o[32] = (unsigned)__shfl_sync(all, i, asked, w);
		o[64] = __shfl_up_sync(all, x, 1, w);
		o[96] = __float_as_uint(__shfl_up_sync(all, f, 3, w));
		o[128] = (unsigned)__shfl_down_sync(all, i, 1, w);
		o[160] = __float_as_uint(__shfl_down_sync(all, f, 3, w));
		o[192] = __float_as_uint(__shfl_xor_sync(all, f, 1, w));
		o[224] = __shfl_xor_sync(all, x, 5, w);
	}
}
