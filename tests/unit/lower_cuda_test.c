/* Row kernels as CUDA text, run by the simt executor: see lower_test.c. */
#define TARGET TO_CUDA
#include "lower_test.c"
