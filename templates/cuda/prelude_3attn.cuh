//% exports: attn_piece attn_load; needs: bf16 cp_async16
// Tiles of DP = D up to a multiple of 16 channels are copied in pieces of 16 bytes by 128 threads. A thread copies one
// piece of every (128 / pieces)th row: this is its first one, in rows from src on.
template <int D>
__device__ __forceinline__ const bf16 *attn_piece(const bf16 *src, int row, long stride)
{
	enum { PIECES = (D + 15) / 16 * 2 };

	return src + (row + (int)(threadIdx.x / PIECES)) * stride + threadIdx.x % PIECES * 8;
}

// Starts the copy of ROWS rows into a tile; src is this thread's attn_piece. Rows from n on and channels from D on
// become zeros.
template <int ROWS, int D, int PITCH>
__device__ __forceinline__ void attn_load(bf16 *tile, const bf16 *src, long stride, int n)
{
	enum { PIECES = (D + 15) / 16 * 2, STEP = 128 / PIECES };
	const int c = (int)(threadIdx.x % PIECES) * 8, r0 = (int)(threadIdx.x / PIECES);

	if (128 % PIECES != 0 && r0 >= STEP)
		return;
	tile += r0 * PITCH + c;
	if (D % 16 != 0 && c >= D)
		n = 0;
	#pragma unroll
	for (int u = 0; u < (ROWS + STEP - 1) / STEP; u++) {
		if (ROWS % STEP == 0 || r0 + u * STEP < ROWS)
			cp_async16(tile + u * STEP * PITCH, src, r0 + u * STEP < n);
		src += STEP * stride;
	}
}

//% exports: attn_row16; needs: bf16
// The row that this lane names to ldmatrix_x4 for a 16x16 block: its quarters in the order top left, bottom left, top
// right, bottom right. That is the A of an mma; with _trans, two B whose columns are the block's columns.
template <int PITCH>
__device__ __forceinline__ const bf16 *attn_row16(const bf16 *tile)
{
	const int lane = (int)(threadIdx.x % 32);

	return tile + lane % 16 * PITCH + lane / 16 * 8;
}

//% exports: attn_col16; needs: bf16
// The same in the order top left, top right, bottom left, bottom right: two B whose columns are the block's rows.
template <int PITCH>
__device__ __forceinline__ const bf16 *attn_col16(const bf16 *tile)
{
	const int lane = (int)(threadIdx.x % 32);

	return tile + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8;
}

//% exports: attn_abt; needs: bf16 ldmatrix_x4 mma_m16n8k16_bf16 attn_row16 attn_col16
// c = A B^T for one warp: 16 MT rows of A, 8 NT rows of B, DP channels; k ascending
template <int MT, int NT, int DP, int PITCH>
__device__ __forceinline__ void attn_abt(float c[MT][NT][4], const bf16 *a, const bf16 *b)
{
	const bf16 *ap = attn_row16<PITCH>(a), *bp = attn_col16<PITCH>(b);

	#pragma unroll
	for (int m = 0; m < MT; m++)
		#pragma unroll
		for (int n = 0; n < NT; n++)
			#pragma unroll
			for (int i = 0; i < 4; i++)
				c[m][n][i] = 0.f;
	#pragma unroll
	for (int k = 0; k < DP; k += 16) {
		unsigned fa[MT][4], fb[4];

		#pragma unroll
		for (int m = 0; m < MT; m++)
			ldmatrix_x4(fa[m], ap + m * 16 * PITCH + k);
		#pragma unroll
		for (int n = 0; n < NT; n += 2) {
			ldmatrix_x4(fb, bp + n * 8 * PITCH + k);
			#pragma unroll
			for (int m = 0; m < MT; m++) {
				mma_m16n8k16_bf16(c[m][n], fa[m], fb);
				mma_m16n8k16_bf16(c[m][n + 1], fa[m], fb + 2);
			}
		}
	}
}

//% exports: attn_pb; needs: bf16 ldmatrix_x4_trans mma_m16n8k16_bf16 pack_bf16x2 attn_row16
// c += P B for one warp: P, 16 MT rows and 8 NK columns, as attn_abt leaves it in registers, rounded to bf16 here; B, 8 NK
// rows and 8 ND channels; k ascending
template <int MT, int NK, int ND, int PITCH>
__device__ __forceinline__ void attn_pb(float c[MT][ND][4], const float p[MT][NK][4], const bf16 *b)
{
	const bf16 *bp = attn_row16<PITCH>(b);

	#pragma unroll
	for (int k = 0; k < NK; k += 2) {
		unsigned fa[MT][4], fb[4];

		#pragma unroll
		for (int m = 0; m < MT; m++) {
			fa[m][0] = pack_bf16x2(p[m][k][0], p[m][k][1]);
			fa[m][1] = pack_bf16x2(p[m][k][2], p[m][k][3]);
			fa[m][2] = pack_bf16x2(p[m][k + 1][0], p[m][k + 1][1]);
			fa[m][3] = pack_bf16x2(p[m][k + 1][2], p[m][k + 1][3]);
		}
		#pragma unroll
		for (int n = 0; n < ND; n += 2) {
			ldmatrix_x4_trans(fb, bp + k * 8 * PITCH + n * 8);
			#pragma unroll
			for (int m = 0; m < MT; m++) {
				mma_m16n8k16_bf16(c[m][n], fa[m], fb);
				mma_m16n8k16_bf16(c[m][n + 1], fa[m], fb + 2);
			}
		}
	}
}

//% exports: attn_lo; needs: i32
// first key that the query at row t sees
__device__ __forceinline__ int attn_lo(const i32 *docstart, int window, int t)
{
	const int doc = docstart[t];

	return window > 0 && t - window > doc ? t - window : doc;
}

//% exports: attn_mask
// s, 16 MT queries from row t on and 8 NT keys from row j0 on as attn_abt leaves them: -inf where the query does not see the
// key. lo: first keys that these queries see, ascending, in shared memory.
template <int MT, int NT>
__device__ __forceinline__ void attn_mask(float s[MT][NT][4], const int *lo, int t, int j0)
{
	const int lane = (int)(threadIdx.x % 32), left = j0 + lane % 4 * 2;

	if (j0 >= lo[16 * MT - 1] && j0 + 8 * NT - 1 <= t)
		return;
	#pragma unroll
	for (int r = 0; r < 2 * MT; r++) {
		const int row = r * 8 + lane / 4, from = lo[row] - left, to = t + row - left;

		#pragma unroll
		for (int j = 0; j < 2 * NT; j++)
			if (j / 2 * 8 + j % 2 < from || j / 2 * 8 + j % 2 > to)
				s[r / 2][j / 2][r % 2 * 2 + j % 2] = __uint_as_float(0xff800000u);
	}
}

//% exports: attn_quad_sum attn_quad_max
// over the four lanes that share a row of a fragment
__device__ __forceinline__ float attn_quad_sum(float x)
{
	x += __shfl_xor_sync(0xffffffffu, x, 1);
	return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float attn_quad_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
	return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

//% exports: attn_store; needs: uint4x
// Rows 0 .. n-1, at most ROWS, of a warp's tile in shared memory to dst, D elements each, by the whole warp.
template <int ROWS, int D, int PITCH, class X>
__device__ __forceinline__ void attn_store(X *dst, long stride, const X *tile, int n)
{
	enum { E = 16 / sizeof(X), PIECES = D / E };

	for (int i = (int)(threadIdx.x % 32); i < ROWS * PIECES; i += 32) {
		const int r = i / PIECES, c = i % PIECES * E;

		if (r < n)
			*(uint4x *)(dst + r * stride + c) = *(const uint4x *)(tile + r * PITCH + c);
	}
}
