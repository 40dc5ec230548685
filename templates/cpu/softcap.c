// z = softcap(l) in place
// holes: KERNEL  VP  CAP (0 none, 1 tanh, 2 sigmoid)  CAPV  SHIFT  TEMP (float literals; 1.f 0.f 1.f where unused)
// items: 64, item b: rows b*n/64 .. (b+1)*n/64
void @KERNEL@(const HcArg *a, long item)
{
	f32 *restrict logits = a[0].p;             // [n, VP]
	const long n = a[1].i;

	enum { VP = @VP@, CAP_KIND = @CAP@ };
	const float capv = @CAPV@, shift = @SHIFT@, temp = @TEMP@;

	for (long i = item * n / 64 * VP; i < (item + 1) * n / 64 * VP; i++) {
		const float l = logits[i];

		logits[i] = CAP_KIND == 1 ? capv * hc_tanhf(l / capv)
		          : CAP_KIND == 2 ? capv * hc_sigmoidf((l + shift) / temp)
		          : l;
	}
}
