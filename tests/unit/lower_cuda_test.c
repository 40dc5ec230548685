/* Row kernels as CUDA text, run by the simt executor: see lower_test.c.  ALL=1
 * runs every graph at both of its widths. */
#define TARGET TO_CUDA
#include "lower_test.c"
