//% exports: bf16 f32 i32 F32 BF16
typedef unsigned short bf16;
typedef float f32;
typedef int i32;

__device__ __forceinline__ float F32(bf16 x)
{
	return __uint_as_float((unsigned)x << 16);
}

// nearest, ties to even; a NaN stays a NaN
__device__ __forceinline__ bf16 BF16(float x)
{
	const unsigned u = __float_as_uint(x);

	return (bf16)(x == x ? (u + 0x7fffu + (u >> 16 & 1u)) >> 16 : u >> 16 | 0x40u);
}

//% exports: LD_f32 ST_f32 LD_bf16 ST_bf16; needs: F32 BF16
// stored value <-> float, by dtype
#define LD_f32(x)  (x)
#define ST_f32(x)  (x)
#define LD_bf16(x) F32(x)
#define ST_bf16(x) BF16(x)

