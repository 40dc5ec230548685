//% exports: f8e4m3
typedef unsigned char f8e4m3;

//% exports: f8e5m2; needs: pack_e5m2x2
typedef unsigned char f8e5m2;

// p[i] = x[i] for i < n, a constant, rounded; in pieces of 8 or 4 bytes where n is a multiple of that, to which p is
// aligned
__device__ __forceinline__ void store_vec(f8e5m2 *p, const float *x, int n)
{
	if (n % 4)
		for (int i = 0; i < n; i++)
			p[i] = (f8e5m2)pack_e5m2x2(x[i], 0.f);
	else if (n % 8)
		*(unsigned *)p = pack_e5m2x2(x[2], x[3]) << 16 | pack_e5m2x2(x[0], x[1]);
	else
		*(unsigned long long *)p = (unsigned long long)(pack_e5m2x2(x[6], x[7]) << 16 | pack_e5m2x2(x[4], x[5])) << 32
		                         | (pack_e5m2x2(x[2], x[3]) << 16 | pack_e5m2x2(x[0], x[1]));
}

//% exports: tile8_put tile8_get
// A tile of 128 x 128 bytes, turned by 256 threads. Word g of column c, rows 4g .. 4g + 3, lies at 32 c + (g ^ c/4):
// lanes that go along columns in steps of 4 and lanes that go along rows both find 32 banks.

// rows 4g .. 4g + 3 of columns 4j .. 4j + 3, a word for each row
__device__ __forceinline__ void tile8_put(unsigned *tile, const unsigned *row, int g, int j)
{
	const unsigned a = __byte_perm(row[0], row[1], 0x5140), b = __byte_perm(row[2], row[3], 0x5140);
	const unsigned c = __byte_perm(row[0], row[1], 0x7362), d = __byte_perm(row[2], row[3], 0x7362);
	unsigned *to = tile + 128 * j + (g ^ j);

	to[0] = __byte_perm(a, b, 0x5410);
	to[32] = __byte_perm(a, b, 0x7632);
	to[64] = __byte_perm(c, d, 0x5410);
	to[96] = __byte_perm(c, d, 0x7632);
}

// rows 4g .. 4g + 3 of column c
__device__ __forceinline__ unsigned tile8_get(const unsigned *tile, int c, int g)
{
	return tile[32 * c + (g ^ c / 4)];
}

//% exports: tile8_store; needs: tile8_get
// The tile at row `row`, column `col` of a matrix [n, C], to its transpose [C, ld]. Warp by warp a column: 128 bytes.
__device__ __forceinline__ void tile8_store(unsigned char *out, long ld, const unsigned *tile, long row, int col,
                                            long n, int C)
{
	const int g = threadIdx.x % 32;

	#pragma unroll 4
	for (int c = threadIdx.x / 32; c < 128; c += 8)
		if (col + c < C && row + 4 * g < n)
			*(unsigned *)(out + (col + c) * ld + row + 4 * g) = tile8_get(tile, c, g);
}
