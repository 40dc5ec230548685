// out[2i] = in[2i] in the low, in[2i+1] in the high byte of each half, as e4m3 in the low half and e5m2 in the high one;
// out[2i+1] the same by whole numbers      i < n
extern "C" __global__ __launch_bounds__(128)
void try_pack_fp8(unsigned *__restrict__ out, const unsigned *__restrict__ in, long n)
{
	const long i = (long)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n) {
		const float lo = __uint_as_float(in[2 * i]), hi = __uint_as_float(in[2 * i + 1]);

		out[2 * i] = pack_e4m3x2(lo, hi) | pack_e5m2x2(lo, hi) << 16;
		out[2 * i + 1] = fp8_bits(lo, 3, 7, 0x1p-6f, 0x1p14f, 0x7e) | fp8_bits(hi, 3, 7, 0x1p-6f, 0x1p14f, 0x7e) << 8
		               | fp8_bits(lo, 2, 15, 0x1p-14f, 0x1p7f, 0x7b) << 16 | fp8_bits(hi, 2, 15, 0x1p-14f, 0x1p7f, 0x7b) << 24;
	}
}
