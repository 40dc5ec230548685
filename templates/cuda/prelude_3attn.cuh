//% exports: attn_piece attn_load; needs: bf16 cp_async16
// Tiles of DP channels, D up to a multiple of 16, are copied in pieces of 16 bytes by 128 threads: one piece of every
// STEPth row by each. This is the first one of this thread when the tile begins at the given row of src.
template <int D>
__device__ __forceinline__ const bf16 *attn_piece(const bf16 *src, int row, int stride)
{
	enum { PIECES = (D + 15) / 16 * 2 };

	return src + ((long)(row + (int)(threadIdx.x / PIECES)) * stride + threadIdx.x % PIECES * 8);
}

// Starts the copy of ROWS rows into a tile; src is this thread's attn_piece. Rows from n on and channels from D on
// become zeros.
template <int ROWS, int D, int PITCH>
__device__ __forceinline__ void attn_load(bf16 *tile, const bf16 *src, int stride, int n)
{
	enum { PIECES = (D + 15) / 16 * 2, STEP = 128 / PIECES };
	const int c = (int)(threadIdx.x % PIECES) * 8, r0 = (int)(threadIdx.x / PIECES);

	if (128 % PIECES != 0 && r0 >= STEP)
		return;
	tile += (threadIdx.x + r0) * 8;                  // r0 * PITCH + c, PITCH being 8 PIECES + 8
	if (D % 16 != 0 && c >= D)
		n = 0;
	#pragma unroll
	for (int u = 0; u < (ROWS + STEP - 1) / STEP; u++) {
		if (ROWS % STEP == 0 || r0 + u * STEP < ROWS)
			cp_async16(tile + u * STEP * PITCH, src, r0 + u * STEP < n);
		src += (long)STEP * stride;
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
// c += P B for one warp: P, 16 MT rows and 8 NK columns, as attn_abt leaves it in registers, rounded to bf16 here; B,
// 8 NK rows and 8 ND channels; k ascending
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
// s, 16 MT queries from row t on and 8 NT keys from row j0 on as attn_abt leaves them: -inf where the query does not
// see the key. lo: first keys that these queries see, ascending, in shared memory.
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

//% exports: attn_mask_t
// the same with keys as rows, from row j0 on, and queries as columns, from row t on, which lo belongs to
template <int MT, int NT>
__device__ __forceinline__ void attn_mask_t(float s[MT][NT][4], const int *lo, int j0, int t)
{
	const int lane = (int)(threadIdx.x % 32), key = j0 + lane / 4;

	if (j0 >= lo[8 * NT - 1] && j0 + 16 * MT - 1 <= t)
		return;
	#pragma unroll
	for (int n = 0; n < 2 * NT; n++) {
		const int column = n / 2 * 8 + lane % 4 * 2 + n % 2, from = lo[column] - key, to = t + column - key;

		#pragma unroll
		for (int r = 0; r < 2 * MT; r++)
			if (r * 8 < from || r * 8 > to)
				s[r / 2][n / 2][r % 2 * 2 + n % 2] = __uint_as_float(0xff800000u);
	}
}

//% exports: attn_put; needs: bf16 f32 pack_bf16x2
__device__ __forceinline__ void attn_put2(bf16 *p, float x, float y)
{
	*(unsigned *)p = pack_bf16x2(x, y);
}

__device__ __forceinline__ void attn_put2(f32 *p, float x, float y)
{
	*(float2 *)p = make_float2(x, y);
}

// c times k to a tile in shared memory: 16 MT rows
template <int MT, int ND, int PITCH, class X>
__device__ __forceinline__ void attn_put(X *tile, const float c[MT][ND][4], float k)
{
	const int lane = (int)(threadIdx.x % 32);

	tile += lane / 4 * PITCH + lane % 4 * 2;
	#pragma unroll
	for (int r = 0; r < 2 * MT; r++)
		#pragma unroll
		for (int d = 0; d < ND; d++)
			attn_put2(tile + r * 8 * PITCH + d * 8, c[r / 2][d][r % 2 * 2] * k, c[r / 2][d][r % 2 * 2 + 1] * k);
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

//% exports: attn_ld8; needs: bf16 f32
// x[0 .. 7] = p[0 .. 7], p aligned to 16 bytes
__device__ __forceinline__ void attn_ld8(float x[8], const f32 *p)
{
	const float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);

	x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
	x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void attn_ld8(float x[8], const bf16 *p)
{
	const uint4 a = *(const uint4 *)p;
	const unsigned u[4] = { a.x, a.y, a.z, a.w };

	#pragma unroll
	for (int i = 0; i < 8; i++)
		x[i] = __uint_as_float(i % 2 ? u[i / 2] & 0xffff0000u : u[i / 2] << 16);
}

//% exports: attn_st4; needs: bf16 f32 pack_bf16x2
// p[0 .. 3] = x times k, p aligned to its four elements
__device__ __forceinline__ void attn_st4(f32 *p, float4 x, float k)
{
	*(float4 *)p = make_float4(x.x * k, x.y * k, x.z * k, x.w * k);
}

__device__ __forceinline__ void attn_st4(bf16 *p, float4 x, float k)
{
	*(uint2 *)p = make_uint2(pack_bf16x2(x.x * k, x.y * k), pack_bf16x2(x.z * k, x.w * k));
}

//% exports: attn_load_f32; needs: attn_ld8
// Rows t .. t + 31 of src, D channels each, to a tile in shared memory of rows of D + 4 floats, by 128 threads; rows from
// end on are zeros.
template <int D, class X>
__device__ __forceinline__ void attn_load_f32(float *tile, const X *src, long stride, int t, int end)
{
	for (int i = (int)threadIdx.x; i < 32 * (D / 8); i += 128) {
		const int r = i / (D / 8), d = i % (D / 8) * 8;
		float x[8] = {};

		if (t + r < end)
			attn_ld8(x, src + (t + r) * stride + d);
		*(float4 *)(tile + r * (D + 4) + d) = make_float4(x[0], x[1], x[2], x[3]);
		*(float4 *)(tile + r * (D + 4) + d + 4) = make_float4(x[4], x[5], x[6], x[7]);
	}
}

//% exports: attn_dots_f32
// s = A B^T for 32 rows of A and 32 of B. A thread has rows y and y + 16 of A, y = thread / 8, and rows x + 8 j of B,
// x = thread % 8; channels ascending.
template <int D>
__device__ __forceinline__ void attn_dots_f32(float s[2][4], const float *a, const float *b)
{
	a += threadIdx.x / 8 * (D + 4);
	b += threadIdx.x % 8 * (D + 4);
	#pragma unroll
	for (int i = 0; i < 8; i++)
		s[i / 4][i % 4] = 0.f;
	#pragma unroll 4
	for (int d = 0; d < D; d += 4) {
		const float4 a0 = *(const float4 *)(a + d), a1 = *(const float4 *)(a + 16 * (D + 4) + d);

		#pragma unroll
		for (int j = 0; j < 4; j++) {
			const float4 v = *(const float4 *)(b + 8 * j * (D + 4) + d);

			s[0][j] = fmaf(a0.w, v.w, fmaf(a0.z, v.z, fmaf(a0.y, v.y, fmaf(a0.x, v.x, s[0][j]))));
			s[1][j] = fmaf(a1.w, v.w, fmaf(a1.z, v.z, fmaf(a1.y, v.y, fmaf(a1.x, v.x, s[1][j]))));
		}
	}
}

//% exports: attn_keep_f32
// s as attn_dots_f32 leaves it to rows of 36 floats in shared memory
__device__ __forceinline__ void attn_keep_f32(float *p, const float s[2][4])
{
	#pragma unroll
	for (int i = 0; i < 8; i++)
		p[(threadIdx.x / 8 + i / 4 * 16) * 36 + threadIdx.x % 8 + i % 4 * 8] = s[i / 4][i % 4];
}

//% exports: attn_sums_f32
// acc += P B: P 32x32 as attn_keep_f32 left it, B 32 rows. A thread has rows y and y + 16 and channels 4 (x + 8 g) ..,
// where they are below D; rows of B ascending.
template <int D>
__device__ __forceinline__ void attn_sums_f32(float4 acc[2][(D + 31) / 32], const float *p, const float *b)
{
	const int x = (int)threadIdx.x % 8;

	p += threadIdx.x / 8 * 36;
	#pragma unroll 2
	for (int j = 0; j < 32; j++) {
		const float p0 = p[j], p1 = p[16 * 36 + j];

		#pragma unroll
		for (int g = 0; g < (D + 31) / 32; g++) {
			if (D % 32 != 0 && 4 * (x + 8 * g) >= D)
				break;

			const float4 v = *(const float4 *)(b + j * (D + 4) + 4 * (x + 8 * g));

			acc[0][g].x = fmaf(p0, v.x, acc[0][g].x);
			acc[0][g].y = fmaf(p0, v.y, acc[0][g].y);
			acc[0][g].z = fmaf(p0, v.z, acc[0][g].z);
			acc[0][g].w = fmaf(p0, v.w, acc[0][g].w);
			acc[1][g].x = fmaf(p1, v.x, acc[1][g].x);
			acc[1][g].y = fmaf(p1, v.y, acc[1][g].y);
			acc[1][g].z = fmaf(p1, v.z, acc[1][g].z);
			acc[1][g].w = fmaf(p1, v.w, acc[1][g].w);
		}
	}
}

//% exports: attn_scale_f32
// a row of acc times k
template <int D>
__device__ __forceinline__ void attn_scale_f32(float4 acc[(D + 31) / 32], float k)
{
	#pragma unroll
	for (int g = 0; g < (D + 31) / 32; g++) {
		acc[g].x *= k;
		acc[g].y *= k;
		acc[g].z *= k;
		acc[g].w *= k;
	}
}

//% exports: attn_store_f32; needs: attn_st4
// rows of acc below end, times k, to dst, whose row t is row 0 of acc
template <int D, class X>
__device__ __forceinline__ void attn_store_f32(X *dst, long stride, const float4 acc[2][(D + 31) / 32], float k, int t,
                                               int end)
{
	#pragma unroll
	for (int i = 0; i < 2; i++)
		#pragma unroll
		for (int g = 0; g < (D + 31) / 32; g++) {
			const int row = t + (int)threadIdx.x / 8 + i * 16, d = 4 * ((int)threadIdx.x % 8 + 8 * g);

			if (row < end && d < D)
				attn_st4(dst + row * stride + d, acc[i][g], k);
		}
}

//% exports: attn_row_sum attn_row_max
// over the eight threads that share rows of the f32 kernels
__device__ __forceinline__ float attn_row_sum(float x)
{
	for (int i = 4; i; i >>= 1)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	return x;
}

__device__ __forceinline__ float attn_row_max(float x)
{
	for (int i = 4; i; i >>= 1)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}
