// for matrix i of the bank, p at p + matrix[i].p, its copy at w + matrix[i].w:
// v = DT(x*f[row])      eta = matrix[i].eta*sched[0]      decay = matrix[i].decay*sched[0]*eta
// p = p - eta*v - (decay*p where v*p >= 0)      w = p, or its upper 16 bits
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x, v and w)  CHUNK (elements of an item)
//        WEIGHTS (1: w is p rounded to DT, 2: w is the upper 16 bits of p, 0: w is null)  MATRICES (of each: where p and w
//        begin, in elements; rate times sqrt(max(1, R/K)); rate times weight decay)
// items: N * PARTS: matrix item/PARTS, elements CHUNK*(item mod PARTS) and on
static const struct { long p, w; double eta, decay; } matrix[@N@] = {
@MATRICES@
};

HC float upper(float x)
{
	return ((HcBits){ .u = ((HcBits){ .f = x }).u & 0xffff0000u }).f;
}

void @KERNEL@(const HcArg *a, long item)
{
	enum { K = @K@, CHUNK = @CHUNK@, WEIGHTS = @WEIGHTS@ };
	const long n = @R@L * K, parts = (n + CHUNK - 1) / CHUNK, i = item / parts;
	const long i0 = item % parts * CHUNK, i1 = n - i0 < CHUNK ? n : i0 + CHUNK;
	f32 *restrict p = (f32 *)a[0].p + matrix[i].p;                  // params: [R,K]
	@DT@ *restrict w = WEIGHTS ? (@DT@ *)a[1].p + matrix[i].w : (@DT@ *)0;  // weights: [R,K] or null
	const @DT@ *restrict x = (const @DT@ *)a[2].p + i * n;          // [N,R,K]
	const f32 *restrict f = (const f32 *)a[3].p + i * @R@;          // [N,R]
	const f32 *restrict sched = a[4].p;                             // [6]
	const double rate = matrix[i].eta * sched[0];
	const float eta = (float)rate, decay = (float)(matrix[i].decay * sched[0] * rate);

	/* row by row, so that a loop has one factor */
	for (long j = i0, end; j < i1; j = end) {
		const float fr = f[j / K];

		end = (j / K + 1) * K < i1 ? (j / K + 1) * K : i1;
		for (long e = j; e < end; e++) {
			const float v = LD_@DT@(ST_@DT@(LD_@DT@(x[e]) * fr));
			const float pe = p[e] - eta * v - (v * p[e] >= 0.f ? decay * p[e] : 0.f);

			p[e] = pe;
			if (WEIGHTS)
				w[e] = ST_@DT@(WEIGHTS == 2 ? upper(pe) : pe);
		}
	}
}
