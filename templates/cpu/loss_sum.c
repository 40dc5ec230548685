// *result += sum of loss[t], t ascending, in double
// holes: KERNEL
// items: 1
void @KERNEL@(const HcArg *a, long item)
{
	double *restrict result = a[0].p;          // [1]
	const f32 *restrict loss = a[1].p;         // [T]
	const long T = a[2].i;

	double sum = 0;

	(void)item;
	for (long t = 0; t < T; t++)
		sum += loss[t];
	*result += sum;
}
