/* The device cuda on the stand-ins of tests/standin, which need no GPU:
 * products against double, what moves between host and device, in whatever
 * order the work is done, and what is said when something fails. */
#define _GNU_SOURCE
#include "../../runtime/hcrun.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;
static char dir[] = "/tmp/hcgen-cuda-run-test-XXXXXX";
static Arena *mem;

static char *
path_of(const char *file)
{
	return arena_printf(mem, "%s/%s", dir, file);
}

static void
write_text(const char *path, const char *s)
{
	if (file_emit(path, s, strlen(s)) != 0)
		die("cannot write %s: %s", path, strerror(errno));
}

/* Exit code of fn(arg) in a child with these stand-ins; its words go to text. */
static int
in_child(int (*fn)(void *), void *arg, const char *standin, char *text, size_t size)
{
	int io[2], status = 0;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	fflush(stdout);
	if (pipe(io) != 0 || (pid = fork()) < 0)
		die("pipe or fork: %s", strerror(errno));
	if (pid == 0) {
		dup2(io[1], 2);
		close(io[0]);
		close(io[1]);
		if (standin)
			setenv("HCGEN_STANDIN", standin, 1);
		_exit(fn(arg));
	}
	close(io[1]);
	while (n < size - 1 && (got = read(io[0], text + n, size - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = 0;
	close(io[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

static void
must_end(const char *name, int (*fn)(void *), void *arg, const char *standin, int code,
         const char *say)
{
	char text[8192];
	int got = in_child(fn, arg, standin, text, sizeof text);
	bool good = got == code && strstr(text, say) && !strstr(text, "still allocated");

	if (good)
		printf("ok %s\n", name);
	else
		printf("FAIL %s: %d, wanted %d and '%s': %.800s\n", name, got, code, say, text);
	failures += !good;
}

/* products */

typedef struct {
	const char *xy;
	int acc;
	long m, n, k;
	const char *at, *ct;            /* types of a and b, of c */
	long pad;                       /* added to leading dimensions */
	long shift;                     /* elements, added to places */
} Case;

static const Case cases[] = {
	{"nt", 0, 64, 96, 32, "bf16", "bf16", 0, 0}, {"nn", 0, 64, 96, 32, "bf16", "bf16", 0, 0},
	{"tn", 1, 64, 96, 128, "bf16", "f32", 0, 0}, {"tt", 0, 32, 48, 64, "bf16", "f32", 0, 0},
	{"nt", 0, 31, 17, 45, "bf16", "f32", 3, 1}, {"nn", 0, 1, 7, 5, "bf16", "bf16", 1, 3},
	{"tn", 1, 13, 19, 77, "bf16", "f32", 5, 2}, {"nt", 1, 8, 8, 8, "bf16", "f32", 0, 4},
	{"nt", 0, 64, 96, 32, "f32", "f32", 0, 0}, {"nn", 0, 33, 65, 31, "f32", "f32", 0, 0},
	{"tn", 1, 64, 96, 130, "f32", "f32", 2, 1}, {"tt", 1, 5, 3, 200, "f32", "f32", 1, 0},
	{"nt", 0, 64, 96, 32, "bf16", "bf16", 8, 0}, {"nt", 0, 64, 96, 32, "bf16", "f32", 0, 0},
};
enum { NCase = sizeof cases / sizeof *cases, Room = 1 << 17 };  /* bytes per operand */

static const char head_text[] =
        "hcgen-manifest 2\n"
        "name tiny\n"
        "spec 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n"
        "target cuda\n"
        "model layers 1 lanes 2 width 8 vocab 5 padded 8\n"
        "batch most 16 bos 4 mask 0\n"
        "numerics storage bf16 gemm bf16\n"
        "train steps 10 scheduled 8 lr 0.003 scale mean warmup 2 cooldown 0.4 linear floor 0.1 "
        "clip 1 val_every 5 val_tokens 64 log_every 1 seed 7\n"
        "data packing stream val_packing documents shuffle 1 max_doc 0\n"
        "stage one steps 0 4 tokens 16 seq 8 micro 2 max_doc 0 lr_mul 1 targets 2 from 1 to 1 from 0.5 to 0\n"
        "stage two steps 4 10 tokens 8 seq 4 micro 2 max_doc 7 lr_mul 1.5 targets 1 from 1 to 1\n"
        "arena params 256\narena weights 128\narena grads 256\narena moment1 256\n"
        "arena moment2 256\n";

static const char tail_text[] =
        "arena tables 256\narena inputs 256\narena sched 48\narena result 16\n"
        "param embed f32 8,8 params+0 weights+0 normal 1\n"
        "table 0 tables+0 rope_cos 8 4 f32 1 0.1 0.01 0.001\n"
        "input tokens inputs+0\n"
        "input targets inputs+64\n";

static long
size_of(const char *dt)
{
	return strcmp(dt, "bf16") == 0 ? 2 : 4;
}

static void
put_gemm(Buf *b, int i)
{
	const Case *t = &cases[i];
	bool ta = t->xy[0] == 't', tb = t->xy[1] == 't';
	long base = 3L * i * Room;

	buf_printf(b, "gemm %s %ld %ld %ld acc %d a acts+%ld %s %ld b acts+%ld %s %ld "
	           "c acts+%ld %s %ld bytes 1 flops 1 @ case %d\n", t->xy, t->m, t->n, t->k,
	           t->acc, base + t->shift * size_of(t->at), t->at, (ta ? t->m : t->k) + t->pad,
	           base + Room + t->shift * size_of(t->at), t->at, (tb ? t->k : t->n) + t->pad,
	           base + 2L * Room + t->shift * size_of(t->ct), t->ct, t->n + t->pad, i);
}

static void
write_manifest(const char *train, const char *eval, const char *logits)
{
	Buf b = {0};

	buf_printf(&b, "%sarena acts %ld\n%s", head_text, 3L * NCase * Room, tail_text);
	buf_printf(&b, "program train 0 tokens 16 seq 8\n%sprogram eval 0 tokens 16 seq 8\n%s"
	           "program logits 1 tokens 8 seq 8\noutput logits acts+0 8\n%s"
	           "program update 0 tokens 0 seq 0\nprogram train 1 tokens 8 seq 4\n", train, eval, logits);
	write_text(path_of("manifest"), b.s);
	buf_free(&b);
}

static double
element(const char *p, Dtype dt, long i)
{
	uint32_t u;
	float f;

	if (dt == DT_F32)
		return ((const float *)(const void *)p)[i];
	u = (uint32_t)((const uint16_t *)(const void *)p)[i] << 16;
	memcpy(&f, &u, sizeof f);
	return (double)f;
}

/* bf16 from -1 to 1 in both halves of each word */
static void
fill(char *p, size_t n)
{
	uint16_t *v = (uint16_t *)(void *)p;
	uint64_t s = 12345;
	size_t i;

	for (i = 0; i < n / 2; i++) {
		s = s * 6364136223846793005u + 1442695040888963407u;
		v[i] = (uint16_t)((s >> 48 & 0x807f) | (119 + (s >> 40 & 7)) << 7);
	}
}

/* |error| <= (k + 1) 2^-24 sum|a b| for any order of fp32 additions (Higham
 * 3.5), plus one rounding of the result: 2^-9 of it for bf16. */
static bool
right(const RunStep *s, const char *was, const char *is, long i, long j)
{
	const char *a = was + s->a.at.off, *b = was + s->b.at.off;
	long at = i * s->c.ld + j, l;
	double want = s->acc ? element(was + s->c.at.off, s->c.dt, at) : 0, mag = fabs(want), x;

	for (l = 0; l < s->k; l++) {
		x = element(a, s->a.dt, s->ta ? l * s->a.ld + i : i * s->a.ld + l) *
		    element(b, s->b.dt, s->tb ? j * s->b.ld + l : l * s->b.ld + j);
		want += x;
		mag += fabs(x);
	}
	x = element(is + s->c.at.off, s->c.dt, at);
	return fabs(x - want) <= (double)(s->k + 2) * 0x1p-24 * mag +
	                         (s->c.dt == DT_BF16 ? 0x1p-8 * fabs(want) : 0);
}

static bool
check_gemm(const RunStep *s, const char *was, const char *is)
{
	long size = s->c.dt == DT_BF16 ? 2 : 4, i, j, at;
	bool good = true;

	for (i = 0; i < s->m; i++)
		for (j = 0; j < s->n; j++)
			good = good && right(s, was, is, i, j);
	if (!good)
		fprintf(stderr, "%s is wrong\n", s->site);
	/* between rows, before and behind nothing is written */
	for (at = -1; at < s->m * s->c.ld && good; at++)
		if (at < 0 ? s->c.at.off % 16 != 0 : at % s->c.ld >= s->n)
			good = memcmp(was + (long)s->c.at.off + at * size,
			              is + (long)s->c.at.off + at * size, (size_t)size) == 0;
	return good;
}

static int
run_products(void *unused)
{
	Run *r = run_load(dir);
	size_t n = r->arena_size[AR_ACTS];
	char *was = malloc(n);
	bool good = true;
	int i;

	(void)unused;
	run_open(r, DEV_CUDA, 1);
	fill(run_host(r, AR_ACTS), n);
	memcpy(was, r->arena[AR_ACTS], n);
	run_put(r, AR_ACTS, 0, n);
	run_program(r, PROG_EVAL);
	memset(r->arena[AR_ACTS], 0, n);
	run_get(r, AR_ACTS, 0, n);
	for (i = 0; i < r->prog[PROG_EVAL].nstep; i++)
		good = check_gemm(&r->prog[PROG_EVAL].step[i], was, r->arena[AR_ACTS]) && good;
	run_close(r);
	free(was);
	return good ? 0 : 1;
}

static int
open_and_close(void *unused)
{
	Run *r = run_load(dir);

	(void)unused;
	run_open(r, DEV_CUDA, 1);
	run_close(r);
	return 0;
}

static void
test_products(void)
{
	Buf b = {0};
	int i;

	for (i = 0; i < NCase; i++)
		put_gemm(&b, i);
	write_manifest("", b.s, "");
	must_end("products_chosen_by_time", run_products, NULL, "leaks", 0, "");
	must_end("products_chosen_before", run_products, NULL, "order=random:5", 0, "");
	must_end("products_chosen_anew_when_the_choice_is_stale", run_products, NULL, "stale_algo", 0, "");
	must_end("products_wrong_are_seen", run_products, NULL, "wrong_gemm", 1, "is wrong");
	setenv("HCGEN_NO_TUNE", "1", 1);
	must_end("products_without_choice", run_products, NULL, "order=eager", 0, "");
	must_end("products_that_nobody_can_do", run_products, NULL, "no_algo", EX_ENV,
	         "nt 64 x 96 x 32, bf16 by bf16 into");
	unsetenv("HCGEN_NO_TUNE");
	must_end("product_that_fails_is_named", run_products, NULL, "fail=cublasLtMatmul:14:3", EX_ENV,
	         "bf16 by bf16 into f32, at case 2");
	buf_free(&b);
	write_manifest("", "gemm nt 8 8 8 acc 0 a acts+0 f32 8 b acts+0 f32 8 c acts+1024 bf16 8 "
	               "bytes 1 flops 1 @ odd one\n", "");
	must_end("product_of_other_types_is_refused", open_and_close, NULL, NULL, EX_ENV,
	         "odd one: a product of f32 by f32 into bf16 is not for device cuda");
}

/* what moves */

/* Three batches without waiting: each must have been copied when its program
 * ran, though the third is written where the first was. */
static int
run_batches(void *unused)
{
	static const int prog[3] = {PROG_TRAIN, PROG_EVAL, PROG_LOGITS};
	int32_t tokens[3][16];
	Run *r = run_load(dir);
	bool good = true;
	int i, k;

	(void)unused;
	run_open(r, DEV_CUDA, 1);
	for (k = 0; k < 3; k++) {
		for (i = 0; i < 16; i++)
			tokens[k][i] = (i + k) % 5;
		inputs_fill(r, run_prog(r, PROG_TRAIN), tokens[k], tokens[k]);
		run_program(r, prog[k]);
	}
	run_get(r, AR_ACTS, 0, 4096);
	for (k = 0; k < 3; k++)
		good = good && memcmp(r->arena[AR_ACTS] + 1024 * k, tokens[k], 64) == 0;
	run_close(r);
	return good ? 0 : 1;
}

static bool
all_zero(const char *p, size_t n)
{
	while (n > 0 && p[n - 1] == 0)
		n--;
	return n == 0;
}

/* every arena: zero at first, there and back, zero again */
static int
run_moves(void *unused)
{
	Run *r = run_load(dir);
	bool good = true;
	size_t n;
	char *p;
	int i;

	(void)unused;
	run_open(r, DEV_CUDA, 1);
	for (i = 0; i < NArena; i++) {
		n = r->arena_size[i] < 4096 ? r->arena_size[i] : 4096;
		run_get(r, i, 0, n);
		good = good && (i == AR_TABLES || all_zero(r->arena[i], n));
		p = run_host(r, i);
		memset(p, i + 1, n);
		run_put(r, i, 0, n);
		run_sync(r);
		memset(p, 77, n);
		run_get(r, i, n / 2, n / 2);
		good = good && p[n / 2 - 1] == 77 && p[n / 2] == i + 1 && p[n - 1] == i + 1;
		run_zero(r, i);
		good = good && all_zero(r->arena[i], n);
		memset(p, 77, n);
		run_get(r, i, 0, n);
		good = good && all_zero(r->arena[i], n);
		run_forget(r, i);
		if (!good)
			fprintf(stderr, "%s\n", arena_names[i]);
	}
	run_close(r);
	return good ? 0 : 1;
}

static int
run_params(void *path)
{
	Run *r = run_load(dir);
	float saved[64];
	bool good;

	run_open(r, DEV_CUDA, 1);
	run_init_params(r, 3);
	memcpy(saved, r->arena[AR_PARAMS], sizeof saved);
	memset(r->arena[AR_PARAMS], 0, sizeof saved);
	params_save(r, path);           /* what the device has */
	run_zero(r, AR_PARAMS);
	params_load(r, path);
	memset(r->arena[AR_PARAMS], 0, sizeof saved);
	run_get(r, AR_PARAMS, 0, sizeof saved);
	good = memcmp(r->arena[AR_PARAMS], saved, sizeof saved) == 0;
	run_get(r, AR_WEIGHTS, 0, 128);
	good = good && fabs(element(r->arena[AR_WEIGHTS], DT_BF16, 5) - (double)saved[5]) <
	               0.01 * fabs((double)saved[5]);
	run_get(r, AR_TABLES, 0, 128);
	good = good && element(r->arena[AR_TABLES], DT_F32, 0) == 1 &&
	       element(r->arena[AR_TABLES], DT_F32, 4) == (double)(float)cos(1);
	run_close(r);
	return good ? 0 : 1;
}

static void
test_moves(void)
{
	static const char copy[] = "copy acts+%d inputs+0 64 @ batch %d\n";
	static const char *const order[] = {"order=lazy,leaks", "order=eager", "order=random:1",
	                                    "order=random:2", "order=random:3"};
	size_t i;

	write_manifest(arena_printf(mem, copy, 0, 0), arena_printf(mem, copy, 1024, 1),
	               arena_printf(mem, copy, 2048, 2));
	for (i = 0; i < sizeof order / sizeof *order; i++) {
		must_end(arena_printf(mem, "batches_%s", order[i]), run_batches, NULL, order[i], 0, "");
		must_end(arena_printf(mem, "moves_%s", order[i]), run_moves, NULL, order[i], 0, "");
	}
	must_end("params_there_and_back", run_params, path_of("p.safetensors"), "order=random:4", 0, "");
	must_end("no_room_is_told_with_the_table", open_and_close, NULL, "memory=4000000", EX_ENV,
	         "acts ");
	must_end("no_room_is_told_with_the_rest", open_and_close, NULL, "memory=4000000", EX_ENV,
	         "stand-in has no room for acts, 5.2 MiB");
	must_end("device_that_breaks", run_batches, NULL, "ecc_after=5", EX_ENV, "ECC");
}

/* The stand-ins are made where they are not, or are older than their sources. */
static bool
find_standins(void)
{
	const char *build = getenv("STANDIN_BUILD");
	char *command;

	build = build ? build : "build";
	command = arena_printf(mem, "sh tests/standin/build.sh %s >/dev/null", build);
	if (system(command) != 0)
		return false;
	setenv("HCGEN_CUDA_PATH", arena_printf(mem, "%s/standin", build), 1);
	return true;
}

static void
remove_dir(void)
{
	char *argv[] = {(char *)(uintptr_t)"rm", (char *)(uintptr_t)"-rf", dir, NULL};
	pid_t pid = fork();

	if (pid == 0) {
		execvp("rm", argv);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
}

int
main(void)
{
	if (!mkdtemp(dir))
		die("cannot make %s: %s", dir, strerror(errno));
	mem = arena_new("cuda run test");
	setenv("HCGEN_CACHE", path_of("cache"), 1);
	if (find_standins()) {
		test_products();
		test_moves();
	} else {
		puts("FAIL standins: tests/standin/build.sh fails");
		failures++;
	}
	remove_dir();
	arena_free(mem);
	printf("%d failures\n", failures);
	return failures > 0;
}
