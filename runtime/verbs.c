/* The runtime's verbs as main.c sees them. */
#include "hcrun.h"

int run_train(const char *dir, const char *base, const char *run, const char *params,
              int threads, bool quiet, bool json);
int run_sample(const char *run, const char *prompt, long n, double temperature,
               long long seed, int threads);
int run_doctor(bool json);
int run_bench(const char *dir, long steps, int threads);
int run_data(int argc, char **argv);

int
run_train(const char *dir, const char *base, const char *run, const char *params,
          int threads, bool quiet, bool json)
{
	TrainOpts o = { .dir = dir, .base = base, .run = run, .params = params,
	                .nthreads = threads, .quiet = quiet, .json = json };

	return train(&o);
}

int
run_sample(const char *run, const char *prompt, long n, double temperature,
           long long seed, int threads)
{
	return sample(run, prompt, n, temperature, seed, threads);
}

int
run_doctor(bool json)
{
	return doctor(json);
}

int
run_data(int argc, char **argv)
{
	if (argc < 1)
		die("data: bytes FILE… -o DIR, or show FILE…");
	return data_main(argc, argv);
}

int
run_bench(const char *dir, long steps, int threads)
{
	return bench(dir, steps, threads);
}
