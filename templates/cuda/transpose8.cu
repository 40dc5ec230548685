// out[c,r] = x[r,c], bytes
// holes: KERNEL  C  THREADS
// grid: ceil(n/128) ceil(C/128), a block has a tile of 128 x 128; n, C and ld are multiples of 4

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	unsigned char *__restrict__ out,                 // [C, ld]
	const unsigned char *__restrict__ x,             // [n, C]
	long n,
	long ld)
{
	enum { C = @C@, ACROSS = (C + 127) / 128 };
	__shared__ unsigned tile[128 * 32];
	const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, col = blockIdx.x % ACROSS * 128, c = col + 4 * lane;
	const long row = blockIdx.x / ACROSS * 128L;
	unsigned word[4][4];

	#pragma unroll
	for (int i = 0; i < 4; i++)
		#pragma unroll
		for (int k = 0; k < 4; k++) {
			const long r = row + 4 * (warp + 8 * i) + k;

			word[i][k] = r < n && c < C ? *(const unsigned *)(x + r * C + c) : 0;
		}
	#pragma unroll
	for (int i = 0; i < 4; i++)
		tile8_put(tile, word[i], warp + 8 * i, lane);
	__syncthreads();
	tile8_store(out, ld, tile, row, col, n, C);
}
