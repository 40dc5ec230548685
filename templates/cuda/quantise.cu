// out[r,c] = e4m3(x[r,c] * BY), and the same transposed: the two forms in which FP8 products read a matrix
// holes: KERNEL  DT (f32, bf16: dtype of x)  C  BY (448 over the number that becomes 448, a float literal)
//        X (the number that is rounded, of v: v, or F32(BF16(v)))  THREADS
// grid: ceil(n/128) ceil(C/128), a block has a tile of 128 x 128; n, C and ld are multiples of 4

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f8e4m3 *__restrict__ out,                        // [n, C]
	f8e4m3 *__restrict__ turned,                     // [C, ld]
	const @DT@ *__restrict__ x,                      // [n, C]
	long n,
	long ld)
{
	enum { C = @C@, ACROSS = (C + 127) / 128 };
	__shared__ unsigned tile[128 * 32];
	const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, col = blockIdx.x % ACROSS * 128, c = col + 4 * lane;
	const long row = blockIdx.x / ACROSS * 128L;

	#pragma unroll
	for (int g = warp; g < 32; g += 8) {
		const long r = row + 4 * g;
		float v4[4][4];
		unsigned word[4];

		if (r >= n || c >= C)
			continue;
		#pragma unroll
		for (int k = 0; k < 4; k++)
			load_vec(v4[k], x + (r + k) * C + c, 4);
		#pragma unroll
		for (int k = 0; k < 4; k++) {
			#pragma unroll
			for (int i = 0; i < 4; i++) {
				const float v = v4[k][i];

				v4[k][i] = @X@ * @BY@;
			}
			word[k] = pack_e4m3x2(v4[k][2], v4[k][3]) << 16 | pack_e4m3x2(v4[k][0], v4[k][1]);
			*(unsigned *)(out + (r + k) * C + c) = word[k];
		}
		tile8_put(tile, word, g, lane);
	}
	__syncthreads();
	tile8_store(turned, ld, tile, row, col, n, C);
}
