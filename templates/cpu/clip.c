// sched[4] = norm = sqrt(sum of part)      sched[3] = min(1, clip/(norm + 1e-6)), 1 where clip = 0
// holes: KERNEL
// items: 1
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict sched = a[0].p;              // [5]
	const double *restrict part = a[1].p;      // [64]
	const double clip = a[2].f;

	double sum = 0;

	(void)item;
	for (long b = 0; b < 64; b++)
		sum += part[b];

	const double norm = __builtin_sqrt(sum);
	const double factor = clip / (norm + 1e-6);

	sched[3] = clip > 0 && !(factor >= 1) ? (float)factor : 1.f;
	sched[4] = (float)norm;
}
