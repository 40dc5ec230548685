// for matrix i of the bank, p at p + matrix[i].p, its copy at w + matrix[i].w:
// v = DT(x*f[row])      eta = matrix[i].eta*sched[0]      decay = matrix[i].decay*sched[0]*eta
// p = p - eta*v - (decay*p where v*p >= 0)      w = p, or its upper 16 bits
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x, v and w)  CHUNK (elements of a block)
//        WEIGHTS (1: w is p rounded to DT, 2: w is the upper 16 bits of p, 0: w is null)  MATRICES (of each: where p and w
//        begin, in elements; rate times sqrt(max(1, R/K)); rate times weight decay)  THREADS
// grid: N * PARTS: block b has matrix b/PARTS, elements CHUNK*(b mod PARTS) and on, 4 to a thread at a time

__constant__ const struct { long p, w; double eta, decay; } matrix[@N@] = {
@MATRICES@
};

__device__ __forceinline__ float upper(float x)
{
	return __uint_as_float(__float_as_uint(x) & 0xffff0000u);
}

extern "C" __global__ __launch_bounds__(@THREADS@)
void @KERNEL@(
	f32 *__restrict__ p,                             // params
	@DT@ *__restrict__ w,                            // weights or null
	const @DT@ *__restrict__ x,                      // [N,R,K]
	const f32 *__restrict__ f,                       // [N,R]
	const f32 *__restrict__ sched)                   // [6]
{
	enum { K = @K@, CHUNK = @CHUNK@, WEIGHTS = @WEIGHTS@, THREADS = @THREADS@, AHEAD = 2 };
	constexpr long n = @R@L * K, parts = (n + CHUNK - 1) / CHUNK, stride = THREADS * 4;
	const long i = blockIdx.x / parts, i0 = blockIdx.x % parts * CHUNK, i1 = n - i0 < CHUNK ? n : i0 + CHUNK;
	const double rate = matrix[i].eta * sched[0];
	const float eta = (float)rate, decay = (float)(matrix[i].decay * sched[0] * rate);

	p += matrix[i].p;
	w += WEIGHTS ? matrix[i].w : 0;
	x += i * n;
	f += i * @R@L;
	for (long j = i0 + threadIdx.x * 4; j < i1; j += AHEAD * stride) {
		float v[AHEAD][4], q[AHEAD][4];

		#pragma unroll
		for (int k = 0; k < AHEAD; k++)
			if (j + k * stride < i1) {
				load_vec(v[k], x + j + k * stride, 4);
				load_vec(q[k], p + j + k * stride, 4);
			}
		#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			const long at = j + k * stride, row = at / K;

			if (at >= i1)
				continue;
			for (int e = 0; e < 4; e++) {
				const float y = LD_@DT@(ST_@DT@(v[k][e] * f[K % 4 ? (at + e) / K : row]));

				q[k][e] = q[k][e] - eta * y - (y * q[k][e] >= 0.f ? decay * q[k][e] : 0.f);
				v[k][e] = WEIGHTS == 2 ? upper(q[k][e]) : q[k][e];
			}
			store_vec(p + at, q[k], 4);
			if (WEIGHTS)
				store_vec(w + at, v[k], 4);
		}
	}
}
