/* Preloaded into hcgen: once it has a handler for SIGINT, thousands of signals
 * a second arrive at one that does nothing and is installed the same way. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/time.h>

static void
nothing(int sig)
{
	(void)sig;
}

int
sigaction(int sig, const struct sigaction *new, struct sigaction *old)
{
	int (*real)(int, const struct sigaction *, struct sigaction *);
	struct itimerval often = {{0, 200}, {0, 200}};
	struct sigaction sa;

	*(void **)&real = dlsym(RTLD_NEXT, "sigaction");
	if (sig == SIGINT && new && new->sa_handler != SIG_DFL) {
		sa = *new;
		sa.sa_handler = nothing;
		real(SIGALRM, &sa, NULL);
		setitimer(ITIMER_REAL, &often, NULL);
	}
	return real(sig, new, old);
}
