// FP8, pasted behind prelude.c where a text has it. A number is a byte: sign, exponent of 4 or 5 bits, the rest
// mantissa. e4m3 (bias 7) has no infinity, and its NaN is all ones; e5m2 (bias 15) is as IEEE.

typedef unsigned char f8e4m3;
typedef unsigned char f8e5m2;

// x with `man` bits of mantissa: nearest, ties to even; `most` where it is beyond that; a NaN becomes 0x7f.
// least: the smallest normal number. ulps: 2^23 times the distance of subnormal ones: adding it rounds to them.
HC unsigned char fp8_bits(float x, int man, int bias, float least, float ulps, unsigned most)
{
	const int drop = 23 - man;
	const HcBits v = { .f = x }, a = { .u = v.u & 0x7fffffffu }, s = { .f = a.f + ulps };
	const unsigned normal = ((a.u + (1u << (drop - 1)) - 1 + (a.u >> drop & 1)) >> drop)
	                      - ((unsigned)(127 - bias) << man);
	const unsigned subnormal = s.u - ((HcBits){ .f = ulps }).u, r = a.f < least ? subnormal : normal;

	return (unsigned char)(a.u > 0x7f800000u ? 0x7fu : (r < most ? r : most) | (v.u >> 24 & 0x80u));
}

HC f8e4m3 E4M3(float x)
{
	return fp8_bits(x, 3, 7, 0x1p-6f, 0x1p14f, 0x7e);
}

HC f8e5m2 E5M2(float x)
{
	return fp8_bits(x, 2, 15, 0x1p-14f, 0x1p7f, 0x7b);
}

#define ST_f8e4m3(x) E4M3(x)
#define ST_f8e5m2(x) E5M2(x)
