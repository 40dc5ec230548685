// x = DT(x / (1.02*|x| + 1e-6)), |x| of the whole matrix
// holes: KERNEL  N R K (matrices, rows, columns)  DT (f32, bf16: dtype of x)  CHUNK (elements of an item)
// items: N * PARTS: matrix item/PARTS, elements CHUNK*(item mod PARTS) and on
// sums: the PARTS sums of squares in order, in double
void @KERNEL@(const HcArg *a, long item)
{
	enum { N = @N@, CHUNK = @CHUNK@ };
	const long n = @R@L * @K@, parts = (n + CHUNK - 1) / CHUNK, i = item / parts;
	const long i0 = item % parts * CHUNK, i1 = n - i0 < CHUNK ? n : i0 + CHUNK;
	@DT@ *restrict x = (@DT@ *)a[0].p + i * n;                      // [N,R,K]
	const double *restrict part = (const double *)a[1].p + i * parts;       // [N,PARTS]
	double sum = 0;

	for (long j = 0; j < parts; j++)
		sum += part[j];

	const float size = (float)(1.02 * __builtin_sqrt(sum) + 1e-6);

	for (long j = i0; j < i1; j++)
		x[j] = ST_@DT@(LD_@DT@(x[j]) / size);
}
