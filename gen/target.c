/* What a target can do: the rates behind modelled times.
 *
 * Sources: bandwidth and bf16 rates of H100 SXM and H200 are data-sheet
 * figures scaled to what copies and large GEMMs reach (about 90 % and 70 %); FP8 is
 * twice bf16, as on the data sheet (1979 and 989 TFLOP/s, dense);
 * cpu is two Zen 5 cores with oneDNN, docs/bench/cpu.md.  A person changes
 * them here, never a build machine. */
#include "hcgen.h"

static const Target targets[] = {
	/* name     GB/s    fp8    bf16    f32  attn  launch us */
	[TGT_H200] = { "h200", 4300, 1400, 700, 45, 400, 2 },
	[TGT_H100] = { "h100", 3000, 1400, 700, 45, 400, 2 },
	[TGT_CPU] = { "cpu", 60, 0.85, 0.85, 0.43, 0.30, 2 },
};

const Target *
target_of(const Model *m)
{
	return &targets[m->spec->target];
}
