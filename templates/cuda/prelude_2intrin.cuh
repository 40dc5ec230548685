//% exports: mma_m16n8k16_bf16
#ifndef HC_SIMT
// d += A B      A 16x16 bf16 by rows, B 16x8 bf16 by columns, d 16x8 f32; fragments of PTX's mma.m16n8k16:
// with g = lane / 4, t = lane % 4, in each word the lower index in the low half
//   a[0] A[g][2t..]   a[1] A[g+8][2t..]   a[2] A[g][2t+8..]   a[3] A[g+8][2t+8..]
//   b[0] B[2t..][g]   b[1] B[2t+8..][g]   d[0,1] D[g][2t,2t+1]   d[2,3] D[g+8][2t,2t+1]
// Registers only, so no "memory"; volatile, because .sync.aligned wants the whole warp at one instruction and
// a plain asm might be copied into the branches of an if.
__device__ __forceinline__ void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
	             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

//% exports: hc_shared
#ifndef HC_SIMT
// the address in shared memory that a pointer to shared memory stands for
__device__ __forceinline__ unsigned hc_shared(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}
#endif

//% exports: ldmatrix_x4 ldmatrix_x4_trans; needs: hc_shared
#ifndef HC_SIMT
// Four 8x8 matrices of 16-bit elements from shared memory: lane 8m + i passes the address, aligned to 16, of
// row i of matrix m. r[m] has of matrix m elements [lane/4][2(lane%4)..]; with _trans [2(lane%4)..][lane/4].
// "memory": it reads what plain stores and cp.async put there, which the operands do not tell the compiler.
__device__ __forceinline__ void ldmatrix_x4(unsigned r[4], const void *smem_row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
	             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(hc_shared(smem_row))
	             : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned r[4], const void *smem_row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
	             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(hc_shared(smem_row))
	             : "memory");
}
#endif

//% exports: ldmatrix_x2 ldmatrix_x2_trans; needs: hc_shared
#ifndef HC_SIMT
// two matrices, as ldmatrix_x4; what lanes 16 to 31 pass is not looked at
__device__ __forceinline__ void ldmatrix_x2(unsigned r[2], const void *smem_row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
	             : "=r"(r[0]), "=r"(r[1]) : "r"(hc_shared(smem_row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(unsigned r[2], const void *smem_row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
	             : "=r"(r[0]), "=r"(r[1]) : "r"(hc_shared(smem_row)) : "memory");
}
#endif

//% exports: cp_async16 cp_async_commit cp_async_wait0 cp_async_wait1; needs: hc_shared
#ifndef HC_SIMT
// Starts a copy of 16 bytes from global to shared memory, past L1; zeros if not valid, and then global is not
// read. Both addresses aligned to 16. Nothing orders a copy but a wait of the thread that started it, and for
// other threads a barrier behind that wait. "memory" on all of them: no load of the destination may move above
// its wait, no access to what the buffer held below the copy that overwrites it.
__device__ __forceinline__ void cp_async16(void *smem, const void *global, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
	             :: "r"(hc_shared(smem)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0) : "memory");
}

// what this thread has started and not committed becomes its newest group
__device__ __forceinline__ void cp_async_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

// all groups of this thread done
__device__ __forceinline__ void cp_async_wait0()
{
	asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// all but the newest
__device__ __forceinline__ void cp_async_wait1()
{
	asm volatile("cp.async.wait_group 1;" ::: "memory");
}
#endif

//% exports: pack_bf16x2
#ifndef HC_SIMT
// two bf16, lo in the low half: nearest, ties to even; a NaN becomes 0x7fff. Plain asm, here and below, as the
// value depends on the operands alone: equal ones may be merged, unused ones dropped.
__device__ __forceinline__ unsigned pack_bf16x2(float lo, float hi)
{
	unsigned d;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
	return d;
}
#endif

//% exports: fp8_bits
// x with `man` bits of mantissa, by whole numbers, for processors that have no instruction for it: nearest, ties to
// even; `most` where it is beyond that; a NaN becomes 0x7f. least: the smallest normal number. ulps: 2^23 times the
// distance of subnormal ones, so that adding it rounds to them.
__device__ __forceinline__ unsigned fp8_bits(float x, int man, int bias, float least, float ulps, unsigned most)
{
	const int drop = 23 - man;
	const unsigned u = __float_as_uint(x), a = u & 0x7fffffffu;
	const unsigned normal = ((a + (1u << (drop - 1)) - 1 + (a >> drop & 1)) >> drop)
	                      - ((unsigned)(127 - bias) << man);
	const unsigned subnormal = __float_as_uint(__uint_as_float(a) + ulps) - __float_as_uint(ulps);
	const unsigned r = __uint_as_float(a) < least ? subnormal : normal;

	return a > 0x7f800000u ? 0x7fu : (r < most ? r : most) | (u >> 24 & 0x80u);
}

//% exports: pack_e4m3x2; needs: fp8_bits
#ifndef HC_SIMT
// two e4m3, lo in the low byte: nearest, ties to even; 448 where it is beyond that; a NaN becomes 0x7f
__device__ __forceinline__ unsigned pack_e4m3x2(float lo, float hi)
{
#if __CUDA_ARCH__ >= 890
	unsigned short d;

	asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo));
	return d;
#else
	return fp8_bits(hi, 3, 7, 0x1p-6f, 0x1p14f, 0x7e) << 8 | fp8_bits(lo, 3, 7, 0x1p-6f, 0x1p14f, 0x7e);
#endif
}
#endif

//% exports: pack_e5m2x2; needs: fp8_bits
#ifndef HC_SIMT
// two e5m2, lo in the low byte: nearest, ties to even; 57344 where it is beyond that; a NaN becomes 0x7f
__device__ __forceinline__ unsigned pack_e5m2x2(float lo, float hi)
{
#if __CUDA_ARCH__ >= 890
	unsigned short d;

	asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo));
	return d;
#else
	return fp8_bits(hi, 2, 15, 0x1p-14f, 0x1p7f, 0x7b) << 8 | fp8_bits(lo, 2, 15, 0x1p-14f, 0x1p7f, 0x7b);
#endif
}
#endif

//% exports: exp2_approx log2_approx
#ifndef HC_SIMT
// 2^x, within 2 ulp of the rounded result; subnormal arguments and results are 0
__device__ __forceinline__ float exp2_approx(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

// log2 x, error up to 2^-22, absolute for x in (1/2, 2), else relative; of a subnormal number -inf
__device__ __forceinline__ float log2_approx(float x)
{
	float y;

	asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}
#endif

//% exports: uint4x
#ifndef HC_SIMT
struct __align__(16) uint4x { unsigned v[4]; };
#endif

//% exports: ld_stream16; needs: uint4x
#ifndef HC_SIMT
// 16 bytes, aligned, that are read once: not kept in L1. Nobody may write them while the kernel runs (.nc), so
// it needs no "memory"; volatile, that it stays behind the condition which guards it.
__device__ __forceinline__ uint4x ld_stream16(const void *p)
{
	uint4x x;

	asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
	             : "=r"(x.v[0]), "=r"(x.v[1]), "=r"(x.v[2]), "=r"(x.v[3]) : "l"(__cvta_generic_to_global(p)));
	return x;
}
#endif

//% exports: ld_again
#ifndef HC_SIMT
// from shared memory; volatile, so that no compiler keeps it in a register across rows
__device__ __forceinline__ float ld_again(const float *p)
{
	float x;

	asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"((unsigned)__cvta_generic_to_shared(p)));
	return x;
}
#endif

//% exports: st_stream16; needs: uint4x
#ifndef HC_SIMT
// 16 bytes, aligned, that this kernel does not read again: first to leave the caches
__device__ __forceinline__ void st_stream16(void *p, uint4x x)
{
	asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};"
	             :: "l"(__cvta_generic_to_global(p)), "r"(x.v[0]), "r"(x.v[1]), "r"(x.v[2]), "r"(x.v[3])
	             : "memory");
}
#endif

//% exports: dynamic_smem
#ifndef HC_SIMT
// the launch's dynamic shared memory, aligned to 128
__device__ __forceinline__ unsigned char *dynamic_smem()
{
	extern __shared__ __align__(128) unsigned char hc_dynamic_smem[];

	return hc_dynamic_smem;
}
#endif

//% exports: warp_max
// largest x of the warp, in every lane; NaNs are passed over
__device__ __forceinline__ float warp_max(float x)
{
	for (int i = 16; i; i >>= 1)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}
