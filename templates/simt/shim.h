// What CUDA C++ gives the text of a kernel, for the executor of runtime/simt*.c: this file, the twins of
// the intrinsics, the text and a call of its kernel are one C++ file, without headers, for g++.
//
// A CUDA thread is a fiber. What it needs of the executor goes through hc_simt. With HC_CHECK the text is
// compiled with -fsanitize=thread,..., whose callbacks, defined at the end, show the executor each memory
// access of the text. Functions marked HC_OUT are not looked at, and are called from the text, so that
// their frame address tells the executor the line.
#define HC_SIMT 1

#define __global__ __attribute__((noinline, visibility("default")))
#define __device__ __attribute__((always_inline))
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("hc_shared")))
#define __align__(n) __attribute__((aligned(n)))

#define HC_OUT __attribute__((noinline, unused, no_sanitize("thread", "undefined")))
#define HC_INLINE static inline __attribute__((always_inline, unused))
#define HC_FRAME ((void *const *)__builtin_frame_address(0))

typedef decltype(sizeof 0) size_t;
union HcWord { void *p; long i; double f; };
typedef const unsigned char (*HcTable)[64];

// the executor's; as in runtime/simt_exec.h
struct HcDim { unsigned x, y, z; };
struct HcSimt {
	HcDim thread, block, nthread, nblock;
	unsigned char *dynamic;
	unsigned long stack, nstack;
	void (*barrier)(HcSimt *, void *const *frame);
	HcTable (*collect)(HcSimt *, const char *what, const void *mine, int nbytes, unsigned mask, int order,
	                   void *const *frame);
	void (*access)(HcSimt *, const void *p, unsigned long nbytes, int how, void *const *frame);
	void (*copy)(HcSimt *, void *smem, const void *global, int nbytes, int valid, void *const *frame);
	void (*commit)(HcSimt *);
	void (*wait)(HcSimt *, int newest, void *const *frame);
	void (*fault)(HcSimt *, const char *what, const void *p, void *const *frame);
};
enum { HcRead, HcWrite, HcAtomic };
extern "C" { __attribute__((visibility("default"))) HcSimt *hc_simt; }

// names of places

#ifdef HC_CHECK
static HC_OUT __attribute__((const)) HcDim hc_thread() { return hc_simt->thread; }
static HC_OUT __attribute__((const)) HcDim hc_block() { return hc_simt->block; }
static HC_OUT __attribute__((const)) HcDim hc_nthread() { return hc_simt->nthread; }
static HC_OUT __attribute__((const)) HcDim hc_nblock() { return hc_simt->nblock; }
static HC_OUT __attribute__((const)) unsigned char *dynamic_smem() { return hc_simt->dynamic; }
#define threadIdx hc_thread()
#define blockIdx hc_block()
#define blockDim hc_nthread()
#define gridDim hc_nblock()
#else
#define threadIdx (hc_simt->thread)
#define blockIdx (hc_simt->block)
#define blockDim (hc_simt->nthread)
#define gridDim (hc_simt->nblock)
HC_INLINE unsigned char *dynamic_smem() { return hc_simt->dynamic; }
#endif
constexpr int warpSize = 32;
HC_INLINE int hc_lane() { return (int)(threadIdx.x & 31); }

// barriers and warp collectives

static HC_OUT void __syncthreads() { hc_simt->barrier(hc_simt, HC_FRAME); }
static HC_OUT void __syncwarp(unsigned mask = ~0u)
{
	hc_simt->collect(hc_simt, "__syncwarp", nullptr, 0, mask, 1, HC_FRAME);
}

// Every lane of mask calls it, nbytes <= 64; slot i of the result is what lane i passed, until this lane's
// next collective.
static HC_OUT HcTable hc_warp(const void *mine, int nbytes, unsigned mask)
{
	return hc_simt->collect(hc_simt, "a warp collective", mine, nbytes, mask, 0, HC_FRAME);
}

template<class T>
static HC_OUT T hc_shuffle(const char *what, unsigned mask, T x, int from)
{
	const HcTable t = hc_simt->collect(hc_simt, what, &x, (int)sizeof x, mask, 0, HC_FRAME);
	T y;

	if (!(mask >> from & 1))
		hc_simt->fault(hc_simt, "shuffles from a lane that mask does not name", nullptr, HC_FRAME);
	__builtin_memcpy(&y, t[from], sizeof y);
	return y;
}

template<class T>
HC_INLINE T __shfl_sync(unsigned mask, T x, int from, int width = 32)
{
	return hc_shuffle("__shfl_sync", mask, x, (hc_lane() & -width) | (from & (width - 1)));
}

template<class T>
HC_INLINE T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32)
{
	const int i = hc_lane(), j = i ^ bits;

	return hc_shuffle("__shfl_xor_sync", mask, x, j > (i | (width - 1)) ? i : j);
}

template<class T>
HC_INLINE T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32)
{
	const int i = hc_lane(), j = i - (int)by;

	return hc_shuffle("__shfl_up_sync", mask, x, j < (i & -width) ? i : j);
}

template<class T>
HC_INLINE T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32)
{
	const int i = hc_lane(), j = i + (int)by;

	return hc_shuffle("__shfl_down_sync", mask, x, j > (i | (width - 1)) ? i : j);
}

static HC_OUT unsigned __ballot_sync(unsigned mask, int yes)
{
	const unsigned char mine = yes != 0;
	const HcTable t = hc_simt->collect(hc_simt, "__ballot_sync", &mine, 1, mask, 0, HC_FRAME);
	unsigned all = 0;

	for (int i = 0; i < 32; i++)
		if (mask >> i & 1)
			all |= (unsigned)t[i][0] << i;
	return all;
}

static HC_OUT int __any_sync(unsigned mask, int yes)
{
	const unsigned char mine = yes != 0;
	const HcTable t = hc_simt->collect(hc_simt, "__any_sync", &mine, 1, mask, 0, HC_FRAME);
	int any = 0;

	for (int i = 0; i < 32; i++)
		any |= (mask >> i & 1) && t[i][0];
	return any;
}

static HC_OUT int __all_sync(unsigned mask, int yes)
{
	const unsigned char mine = yes != 0;
	const HcTable t = hc_simt->collect(hc_simt, "__all_sync", &mine, 1, mask, 0, HC_FRAME);
	int all = 1;

	for (int i = 0; i < 32; i++)
		all &= !(mask >> i & 1) || t[i][0];
	return all;
}

// Asynchronous copies: the data come at the wait. nbytes 4, 8 or 16; not valid: zeros, global is not read.
static HC_OUT void hc_async_copy(void *smem, const void *global, int nbytes, int valid)
{
	hc_simt->copy(hc_simt, smem, global, nbytes, valid, HC_FRAME);
}
static HC_OUT void hc_async_commit() { hc_simt->commit(hc_simt); }
static HC_OUT void hc_async_wait(int newest) { hc_simt->wait(hc_simt, newest, HC_FRAME); }

HC_INLINE void __threadfence() {}
HC_INLINE void __threadfence_block() {}
static HC_OUT void __trap() { hc_simt->fault(hc_simt, "__trap()", nullptr, HC_FRAME); }

// whole-number atomics; blocks may run on several cores
#define HC_ATOMIC(name, T, op) \
	static HC_OUT T name(T *p, T x) \
	{ \
		hc_simt->access(hc_simt, p, sizeof *p, HcAtomic, HC_FRAME); \
		T was = __atomic_load_n(p, __ATOMIC_RELAXED); \
		while (!__atomic_compare_exchange_n(p, &was, (T)(op), true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) \
			; \
		return was; \
	}
#define HC_ATOMICS(T) \
	HC_ATOMIC(atomicAdd, T, was + x) HC_ATOMIC(atomicMax, T, was > x ? was : x) \
	HC_ATOMIC(atomicMin, T, was < x ? was : x) HC_ATOMIC(atomicOr, T, was | x) \
	HC_ATOMIC(atomicAnd, T, was & x) HC_ATOMIC(atomicExch, T, x)
HC_ATOMICS(int)
HC_ATOMICS(unsigned)
HC_ATOMICS(unsigned long long)

// mathematics: libm's, and CUDA's own names

extern "C" {
#define HC_MATH1(name) float name##f(float) noexcept; double name(double) noexcept;
#define HC_MATH2(name) float name##f(float, float) noexcept; double name(double, double) noexcept;
HC_MATH1(sqrt) HC_MATH1(exp) HC_MATH1(exp2) HC_MATH1(exp10) HC_MATH1(expm1) HC_MATH1(log) HC_MATH1(log2)
HC_MATH1(log10) HC_MATH1(log1p) HC_MATH1(tanh) HC_MATH1(sin) HC_MATH1(cos) HC_MATH1(tan) HC_MATH1(atan)
HC_MATH1(erf) HC_MATH1(fabs) HC_MATH1(floor) HC_MATH1(ceil) HC_MATH1(trunc) HC_MATH1(round) HC_MATH1(rint)
HC_MATH1(cbrt) HC_MATH2(fmax) HC_MATH2(fmin) HC_MATH2(pow) HC_MATH2(fmod) HC_MATH2(copysign)
HC_MATH2(atan2) HC_MATH2(hypot)
float fmaf(float, float, float) noexcept;
double fma(double, double, double) noexcept;
float ldexpf(float, int) noexcept;
double ldexp(double, int) noexcept;
int abs(int) noexcept;
void sincosf(float, float *, float *) noexcept;
}
HC_INLINE float rsqrtf(float x) { return 1.f / sqrtf(x); }
HC_INLINE double rsqrt(double x) { return 1. / sqrt(x); }
HC_INLINE float sqrt(float x) { return sqrtf(x); }
HC_INLINE float fabs(float x) { return fabsf(x); }
HC_INLINE float exp(float x) { return expf(x); }
HC_INLINE float log(float x) { return logf(x); }
HC_INLINE float __expf(float x) { return expf(x); }
HC_INLINE float __exp2f(float x) { return exp2f(x); }
HC_INLINE float __logf(float x) { return logf(x); }
HC_INLINE float __log2f(float x) { return log2f(x); }
HC_INLINE float __fdividef(float x, float y) { return x / y; }
HC_INLINE float __fadd_rn(float x, float y) { return x + y; }
HC_INLINE float __fsub_rn(float x, float y) { return x - y; }
HC_INLINE float __fmul_rn(float x, float y) { return x * y; }
HC_INLINE float __fdiv_rn(float x, float y) { return x / y; }
HC_INLINE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
HC_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
HC_INLINE float __frcp_rn(float x) { return 1.f / x; }
HC_INLINE double __dadd_rn(double x, double y) { return x + y; }
HC_INLINE double __dmul_rn(double x, double y) { return x * y; }
HC_INLINE bool isnan(float x) { return __builtin_isnan(x); }
HC_INLINE bool isnan(double x) { return __builtin_isnan(x); }
HC_INLINE bool isinf(float x) { return __builtin_isinf(x); }
HC_INLINE bool isinf(double x) { return __builtin_isinf(x); }
HC_INLINE bool isfinite(float x) { return __builtin_isfinite(x); }
HC_INLINE bool isfinite(double x) { return __builtin_isfinite(x); }

template<class To, class From>
HC_INLINE To hc_bits(From x)
{
	static_assert(sizeof(To) == sizeof(From), "the same bits");
	return __builtin_bit_cast(To, x);
}
HC_INLINE unsigned __float_as_uint(float x) { return hc_bits<unsigned>(x); }
HC_INLINE int __float_as_int(float x) { return hc_bits<int>(x); }
HC_INLINE float __uint_as_float(unsigned x) { return hc_bits<float>(x); }
HC_INLINE float __int_as_float(int x) { return hc_bits<float>(x); }
HC_INLINE long long __double_as_longlong(double x) { return hc_bits<long long>(x); }
HC_INLINE double __longlong_as_double(long long x) { return hc_bits<double>(x); }

#define HC_MINMAX(T) \
	HC_INLINE T min(T x, T y) { return y < x ? y : x; } \
	HC_INLINE T max(T x, T y) { return x < y ? y : x; }
HC_MINMAX(int) HC_MINMAX(unsigned) HC_MINMAX(long) HC_MINMAX(unsigned long)
HC_MINMAX(long long) HC_MINMAX(unsigned long long)
HC_INLINE float min(float x, float y) { return fminf(x, y); }
HC_INLINE float max(float x, float y) { return fmaxf(x, y); }
HC_INLINE double min(double x, double y) { return fmin(x, y); }
HC_INLINE double max(double x, double y) { return fmax(x, y); }

HC_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
HC_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
HC_INLINE int __ffs(int x) { return __builtin_ffs(x); }
HC_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
HC_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
HC_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned s)
{
	const unsigned long both = (unsigned long)y << 32 | x;
	unsigned r = 0;

	for (int i = 0; i < 4; i++)
		r |= (unsigned)(both >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
	return r;
}
HC_INLINE unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((unsigned long)x * y >> 32); }
HC_INLINE int __mulhi(int x, int y) { return (int)((long)x * y >> 32); }
template<class T> HC_INLINE T __ldg(const T *p) { return *p; }

#define HC_VECTOR(T, name) \
	struct __align__(2 * sizeof(T)) name##2 { T x, y; }; \
	struct name##3 { T x, y, z; }; \
	struct __align__(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
	HC_INLINE name##2 make_##name##2(T x, T y) { return name##2{x, y}; } \
	HC_INLINE name##3 make_##name##3(T x, T y, T z) { return name##3{x, y, z}; } \
	HC_INLINE name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }
HC_VECTOR(float, float) HC_VECTOR(int, int) HC_VECTOR(unsigned, uint) HC_VECTOR(unsigned short, ushort)
HC_VECTOR(unsigned char, uchar) HC_VECTOR(double, double)

// bytes; seen whole
static HC_OUT void *hc_copy(void *to, const void *from, size_t nbytes)
{
#ifdef HC_CHECK
	hc_simt->access(hc_simt, from, nbytes, HcRead, HC_FRAME);
	hc_simt->access(hc_simt, to, nbytes, HcWrite, HC_FRAME);
#endif
	return __builtin_memcpy(to, from, nbytes);
}
static HC_OUT void *hc_set(void *to, int x, size_t nbytes)
{
#ifdef HC_CHECK
	hc_simt->access(hc_simt, to, nbytes, HcWrite, HC_FRAME);
#endif
	return __builtin_memset(to, x, nbytes);
}
#define memcpy hc_copy
#define memset hc_set

// the call of a kernel: every parameter is 8 bytes

template<class T> struct HcTake {
	static_assert(sizeof(T) == 8, "parameters of a kernel are pointers, long or double");
	static T of(HcWord w) { return (T)w.i; }
};
template<class T> struct HcTake<T *> { static T *of(HcWord w) { return (T *)w.p; } };
template<class T> struct HcTake<T *__restrict__> { static T *of(HcWord w) { return (T *)w.p; } };
template<> struct HcTake<double> { static double of(HcWord w) { return w.f; } };
template<int... I> struct HcIndex {};
template<int n> HC_INLINE HcIndex<__integer_pack(n)...> hc_index() { return {}; }

template<class... P, int... I>
HC_INLINE void hc_call(void (*f)(P...), const HcWord *a, HcIndex<I...>)
{
	f(HcTake<P>::of(a[I])...);
}
template<class... P> HC_INLINE constexpr int hc_count(void (*)(P...)) { return sizeof...(P); }

extern "C" __attribute__((weak, visibility("hidden"))) char __start_hc_shared[], __stop_hc_shared[];

#define HC_KERNEL(name) \
	extern "C" __attribute__((visibility("default"))) HC_OUT void hc_simt_run(const HcWord *a) \
	{ \
		hc_call(name, a, hc_index<hc_count(name)>()); \
	} \
	extern "C" __attribute__((visibility("default"))) HC_OUT int hc_simt_facts(char **lo, char **hi) \
	{ \
		*lo = __start_hc_shared; \
		*hi = __stop_hc_shared; \
		return hc_count(name); \
	}

#ifdef HC_CHECK
// what -fsanitize=thread calls for each access
#define HC_SEE static inline __attribute__((always_inline, no_sanitize("thread", "undefined")))
HC_SEE void hc_see(const void *p, unsigned long nbytes, int how, void *const *frame)
{
	if ((unsigned long)p - hc_simt->stack >= hc_simt->nstack)
		hc_simt->access(hc_simt, p, nbytes, how, frame);
}
extern "C" {
#define HC_TSAN(n) \
	HC_OUT void __tsan_read##n(void *p) { hc_see(p, n, HcRead, HC_FRAME); } \
	HC_OUT void __tsan_write##n(void *p) { hc_see(p, n, HcWrite, HC_FRAME); } \
	HC_OUT void __tsan_unaligned_read##n(void *p) { hc_see(p, n, HcRead, HC_FRAME); } \
	HC_OUT void __tsan_unaligned_write##n(void *p) { hc_see(p, n, HcWrite, HC_FRAME); }
HC_TSAN(1) HC_TSAN(2) HC_TSAN(4) HC_TSAN(8) HC_TSAN(16)
HC_OUT void __tsan_read_range(void *p, unsigned long n) { hc_see(p, n, HcRead, HC_FRAME); }
HC_OUT void __tsan_write_range(void *p, unsigned long n) { hc_see(p, n, HcWrite, HC_FRAME); }
HC_OUT void __tsan_init() {}
HC_OUT void __tsan_func_entry(void *) {}
HC_OUT void __tsan_func_exit(void *) {}

// what the checks of -fsanitize=alignment,bounds,... call when they fail
#define HC_UBSAN(name, what) \
	HC_OUT void __ubsan_handle_##name(void *, void *, void *) \
	{ \
		hc_simt->fault(hc_simt, what, nullptr, HC_FRAME); \
	}
HC_OUT void __ubsan_handle_type_mismatch_v1(void *, void *p)
{
	hc_simt->fault(hc_simt, "misaligned access", p, HC_FRAME);
}
HC_UBSAN(out_of_bounds, "index outside of the array")
HC_UBSAN(shift_out_of_bounds, "shift by less than 0 or by more than the width")
HC_UBSAN(divrem_overflow, "division by zero, or overflow of a division")
HC_UBSAN(add_overflow, "overflow of a signed addition")
HC_UBSAN(sub_overflow, "overflow of a signed subtraction")
HC_UBSAN(mul_overflow, "overflow of a signed multiplication")
HC_UBSAN(negate_overflow, "overflow of a negation")
}
#endif
