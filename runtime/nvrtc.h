/* nvrtc.c: CUDA text -> cubin, through the cache of compiled things. */
#ifndef NVRTC_H
#define NVRTC_H

#include "hcrun.h"

typedef struct {
	const char *name;               /* of the kernel */
	const char *path;               /* of its file, as messages shall say it */
	const char *text;
	const char *arch;               /* sm_90a … */
	/* found */
	Arena *mem;                     /* cubin and log lie here */
	const char *cubin;              /* NULL: it does not compile */
	size_t ncubin;
	const char *log;                /* the compiler's words; never NULL */
	bool cached;
	double seconds;                 /* that compiling took */
	char key[65];
} Nvrtc;

/* requires: name to arch.  provides: the rest.  Several at a time. */
void nvrtc_compile(Nvrtc *k, int n);
void nvrtc_free(Nvrtc *k, int n);
/* bytes of spills that the log tells of, stores and loads */
long nvrtc_spills(const Nvrtc *k);

/* resources.c: all kernels of a directory; kernel[] gets what they take */
Nvrtc *kernels_compile(Run *r, Arena *a, const char *arch);
void kernel_complain(const Run *r, int k, const Nvrtc *from);

#endif
