/* The training loop.
 *
 * Everything that can fail for want of a file, a directory or a library fails
 * in train_open, in the order of what it costs to find out.  In the loop only
 * numbers can go wrong, and a signal can arrive: both are looked at between
 * steps, so a parameter file always holds the parameters after a whole step. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
	const TrainOpts *o;
	Arena *mem;
	Run *r;
	Log *log;
	Data *data, *val;               /* NULL when steps is 0 */
	int32_t *tokens, *targets;      /* one micro-batch */
	long val_batches;
	long step;                      /* updates made */
} Train;

/* -- signals -- */

static volatile sig_atomic_t stopping;

/* The first asks, the second insists. */
static void
on_signal(int sig)
{
	if (stopping)
		_exit(128 + sig);
	stopping = 1;
}

/* The handler needs a stack of its own: oneDNN's generated code runs with the
 * stack pointer in a heap block, and a signal frame pushed there (kilobytes,
 * with AVX-512 registers) would overwrite the heap behind it. */
static void
signals_catch(void)
{
	static char stack[64 << 10];
	stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction sa = {0};

	stopping = 0;
	if (sigaltstack(&own, NULL) != 0)
		die("cannot set a stack for signals: %s", strerror(errno));
	sa.sa_handler = on_signal;
	sa.sa_flags = SA_RESTART | SA_ONSTACK;
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);       /* a reader that left does not end the run */
}

static void
signals_release(void)
{
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
}

/* -- schedule -- */

/* how far the cooldown is at step t: 0 … 1 */
static double
cooled(const Run *r, long t)
{
	double n = (double)r->scheduled, c = floor(n * (1 - r->cooldown)), x;

	if (r->cooldown_kind == RUN_COOL_CONSTANT || c >= n)
		return 0;
	x = fmin(1, fmax(0, ((double)t - c) / (n - c)));
	return r->cooldown_kind == RUN_COOL_LINEAR ? x : 0.5 * (1 - cos(acos(-1) * x));
}

int
run_stage_of(const Run *r, long t)
{
	int i;

	for (i = 0; i < r->nstage && t >= r->stage[i].end; i++)
		;
	return i;
}

long
run_tokens(const Run *r, long t)
{
	const RunStage *s;
	long n = 0;

	for (s = r->stage; s < r->stage + r->nstage && t > s->first; s++)
		n += ((t < s->end ? t : s->end) - s->first) * s->tokens * s->micro;
	return n;
}

double
run_sched(const Run *r, long t)
{
	double warm = t < r->warmup ? (double)(t + 1) / (double)r->warmup : 1, f = cooled(r, t);

	return warm * (r->stage[run_stage_of(r, t)].lr_mul * (1 - f) + r->floor * f);
}

void
run_targets(const Run *r, long t, float w[MaxTargets])
{
	const RunStage *s = &r->stage[run_stage_of(r, t)];
	double x = s->end > s->first ? (double)(t - s->first) / (double)(s->end - s->first) : 0;
	int k;

	for (k = 0; k < MaxTargets; k++)
		w[k] = k < s->ntarget ? (float)(s->target[k] + (s->target_end[k] - s->target[k]) * x) : 0;
}

/* docs/spec.md, Optimizers */
double
run_momentum(const Run *r, long t)
{
	double b = r->momentum_start, w = r->momentum;
	long end = r->momentum_steps - r->momentum_cooldown;

	if (t < r->momentum_warmup)
		return b + (w - b) * (double)t / (double)r->momentum_warmup;
	if (t > end)
		return w - (w - b) * (double)(t - end) / (double)r->momentum_cooldown;
	return w;
}

/* -- one step -- */

static void
batch_run(Train *t, Data *d, int program)
{
	const RunProg *p = run_prog(t->r, program);

	data_next(d, t->tokens, t->targets, p->tokens / p->seq);
	inputs_fill(t->r, p, t->tokens, t->targets);
	run_program(t->r, program);
}

/* the stage of step t, if it is another than that which is on */
static void
stage_enter(Train *t, long step)
{
	Run *r = t->r;
	int i = run_stage_of(r, step);

	if (i == r->on)
		return;
	run_stage(r, i);
	if (i < r->nstage)
		data_stage(t->data, r->stage[i].seq, r->stage[i].max_doc);
}

/* see docs/emitted.md for the words of sched */
void
step_begin(Run *r, long t)
{
	float *sched = (float *)r->arena[AR_SCHED];
	const RunStage *s = &r->stage[r->on];

	sched[0] = (float)run_sched(r, t);
	sched[1] = (float)(t + 1);
	sched[SCHED_SCALE] = (float)(r->loss_scale > 0 ? r->loss_scale : 1.0 / (double)(s->tokens * s->micro));
	sched[5] = (float)run_momentum(r, t);
	run_targets(r, t, sched + SCHED_TARGETS);
	run_put(r, AR_SCHED, 0, (SCHED_TARGETS + MaxTargets) * sizeof *sched);
	r->t = t;
}

/* A device is asked
 * once, at the end: after a loss that is not finite the parameters are of no
 * use, and the run ends. */
static LogStep
step_run(Train *t)
{
	Run *r = t->r;
	const float *sched = (float *)r->arena[AR_SCHED];
	double *result = (double *)r->arena[AR_RESULT], began = seconds_now();
	LogStep s = {.step = t->step + 1, .lr = r->lr * run_sched(r, t->step), .norm = NAN};
	const RunStage *stage = &r->stage[r->on];
	long i, all = stage->tokens * stage->micro;

	step_begin(r, t->step);
	result[0] = 0;
	run_put(r, AR_RESULT, 0, sizeof *result);
	for (i = 0; i < stage->micro; i++)
		batch_run(t, t->data, PROG_TRAIN);
	run_program(r, PROG_UPDATE);
	run_fetch(r, AR_RESULT, 0, sizeof *result);
	run_fetch(r, AR_SCHED, 0, 5 * sizeof *sched);
	run_sync(r);
	s.loss = result[0] / (double)all;
	if (isfinite(s.loss))
		s.norm = (double)sched[4];
	s.seconds = seconds_now() - began;
	return s;
}

static bool
step_finite(const LogStep *s)
{
	if (!isfinite(s->loss))
		fprintf(stderr, "hcgen: step %ld: loss is %g; no parameters "
		        "were written; lower train.lr or raise train.warmup\n",
		        s->step, s->loss);
	else if (!isfinite(s->norm))
		fprintf(stderr, "hcgen: step %ld: loss is %g, but the gradient "
		        "norm is %g; no parameters were written; lower train.lr "
		        "or raise train.warmup\n", s->step, s->loss, s->norm);
	return isfinite(s->loss) && isfinite(s->norm);
}

/* -- validation -- */

/* False when the loss is not finite: the parameters are not worth saving. */
static bool
validate(Train *t)
{
	double *result = (double *)t->r->arena[AR_RESULT], began = seconds_now();
	long i, n = t->val_batches * run_prog(t->r, PROG_EVAL)->tokens;
	double loss;

	data_rewind(t->val);
	result[0] = 0;
	run_put(t->r, AR_RESULT, 0, sizeof *result);
	for (i = 0; i < t->val_batches && !stopping; i++)
		batch_run(t, t->val, PROG_EVAL);
	if (i < t->val_batches)
		return true;    /* of no use when it is not of all tokens */
	run_get(t->r, AR_RESULT, 0, sizeof *result);
	loss = result[0] / (double)n;
	log_val(t->log, t->step, loss, n, seconds_now() - began);
	if (!isfinite(loss))
		fprintf(stderr, "hcgen: step %ld: validation loss is %g; no "
		        "parameters were written; lower train.lr or raise "
		        "train.warmup\n", t->step, loss);
	return isfinite(loss);
}

static bool
val_due(const Run *r, long step)
{
	return step == r->steps ||
	       (r->val_every > 0 && step % r->val_every == 0);
}

/* Counting more training text than this no longer moves an order-2 model. */
enum { NgramTokens = 64 << 20 };

/* The tokens that validation predicts, one after the other. */
static void
ngram_report(Train *t)
{
	Arena *a = arena_new("ngram");
	Run *r = t->r;
	const RunProg *p = run_prog(r, PROG_EVAL);
	long n = data_tokens(t->data), m = t->val_batches * p->tokens, i, k = 0;
	uint16_t *train_tok, *val_tok = NEWN(a, uint16_t, m + 1);

	if (n > NgramTokens)
		n = NgramTokens;
	train_tok = NEWN(a, uint16_t, n);
	data_copy(t->data, 0, n, train_tok);
	data_rewind(t->val);
	while (k < m) {
		data_next(t->val, t->tokens, t->targets, p->tokens / p->seq);
		for (i = 0; i < p->tokens; i++)
			val_tok[k++] = (uint16_t)t->tokens[i];
	}
	val_tok[k] = (uint16_t)t->targets[p->tokens - 1];
	log_ngram(t->log, ngram_nats(train_tok, n, val_tok, m + 1, r->vocab,
	                             ByteBos));
	arena_free(a);
}

/* Can the order-2 byte model be held beside the validation loss?  It predicts a
 * text, so the rows of validation must be one: whole, in order, read once. */
static bool
is_text(const Train *t)
{
	const Run *r = t->r;

	return r->vocab == ByteVocab && r->bos == ByteBos && !r->val_documents &&
	       t->val_batches * run_prog(r, PROG_EVAL)->tokens < data_tokens(t->val);
}

/* -- a run -- */

/* So that `hcgen sample RUN` finds the program from wherever it is called. */
static void
run_directory(const Train *t)
{
	const char *path = arena_printf(t->mem, "%s/run.txt", t->o->run);
	char *dir = NEWN(t->mem, char, PATH_MAX);
	Buf b = {0};

	if (dir_make(t->o->run) != 0)
		die("%s: %s; choose a run directory that can be written",
		    t->o->run, strerror(errno));
	if (!realpath(t->o->dir, dir))
		die("%s: %s", t->o->dir, strerror(errno));
	buf_printf(&b, "emitted %s\nspec %s\n", dir, t->r->spec_hash);
	if (file_write(path, b.s, b.len) != 0)
		die("%s: %s; choose a run directory that can be written", path,
		    strerror(errno));
	buf_free(&b);
}

static void
data_report(const Train *t)
{
	if (t->o->quiet || t->o->json)
		return;
	printf("data: %.2f M tokens to train on, %ld sequences; validation on "
	       "%ld tokens\n", (double)data_tokens(t->data) / 1e6,
	       data_sequences(t->data), t->val_batches * run_prog(t->r, PROG_EVAL)->tokens);
}

static void
data_prepare(Train *t)
{
	Run *r = t->r;
	const RunProg *eval = run_prog(r, PROG_EVAL);
	long have;

	t->data = data_open(r, r->ntrainfile, r->trainfile, t->o->base, true);
	t->val = data_open(r, r->nvalfile, r->valfile, t->o->base, false);
	t->tokens = NEWN(t->mem, int32_t, r->most_tokens);
	t->targets = NEWN(t->mem, int32_t, r->most_tokens);
	have = data_sequences(t->val) * eval->seq;
	t->val_batches = (r->val_tokens < have ? r->val_tokens : have) / eval->tokens;
	/* a validation text shorter than a batch is then read again */
	if (t->val_batches == 0)
		t->val_batches = 1;
	data_report(t);
}

static void
params_prepare(Train *t)
{
	Run *r = t->r;

	if (t->o->params)
		params_load(r, t->o->params);
	else
		run_init_params(r, r->seed);
	run_sync_weights(r);
}

/* what NVRTC made of the kernels, beside what becomes of them */
static void
resources_write(const Train *t)
{
	const char *path = arena_printf(t->mem, "%s/resources.txt", t->o->run);
	FILE *f;

	if (t->r->device != DEV_CUDA)
		return;
	f = fopen(path, "we");
	if (f)
		run_resources(t->r, f);
	if (!f || ferror(f) || fclose(f) != 0)
		die("%s: %s; choose a run directory that can be written", path,
		    strerror(errno));
}

static const char *
device_text(const Train *t)
{
	if (t->r->device == DEV_CUDA)
		return cuda_name(t->r);
	return arena_printf(t->mem, "%d threads", pool_threads(t->r->pool));
}

static void
train_open(Train *t)
{
	bool text = !t->o->quiet && !t->o->json;
	long i, n = 0;

	t->mem = arena_new("train");
	t->r = run_load(t->o->dir);
	run_stage(t->r, 0);
	run_directory(t);
	t->log = log_open(t->mem, t->r, t->o);
	if (t->r->steps > 0)
		data_prepare(t);
	run_open(t->r, t->o->device, t->o->nthreads);
	resources_write(t);
	params_prepare(t);
	for (i = 0; i < t->r->nparam; i++)
		n += t->r->param[i].n;
	if (text)
		printf("%s: %.2f M parameters in %d tensors, %s\n", t->r->name,
		       (double)n / 1e6, t->r->nparam, device_text(t));
	if (text)
		run_memory(t->r, stdout);
	if (text && t->r->nedited)
		printf("%d kernels differ from what was emitted\n",
		       t->r->nedited);
	fflush(stdout);
}

static int
train_steps(Train *t)
{
	LogStep s;

	if (is_text(t))
		ngram_report(t);
	data_rewind(t->data);
	while (t->step < t->r->steps && !stopping) {
		stage_enter(t, t->step);
		s = step_run(t);
		if (isfinite(s.loss) && isfinite(s.norm))
			t->step++;
		log_step(t->log, &s, val_due(t->r, s.step) &&
		         t->step == s.step);
		if (!step_finite(&s))
			return EX_NUMERICS;
		if (t->step == t->r->steps)
			stage_enter(t, t->step);
		if (val_due(t->r, t->step) && !stopping && !validate(t))
			return EX_NUMERICS;
	}
	return t->step < t->r->steps ? EX_STOPPED : EX_OK;
}

static void
train_end(Train *t, int rc)
{
	const char *name = rc == EX_OK ? "final" : "stopped";
	const char *path = arena_printf(t->mem, "%s/%s.safetensors", t->o->run,
	                                name);

	if (rc == EX_NUMERICS) {
		log_end(t->log, "failed", t->step, NULL);
		return;
	}
	params_save(t->r, path);
	log_end(t->log, rc == EX_OK ? "done" : "stopped", t->step, path);
	if (!t->o->quiet && !t->o->json)
		run_memory_process(t->r, stdout);
}

static void
train_close(Train *t)
{
	if (t->val)
		data_close(t->val);
	if (t->data)
		data_close(t->data);
	log_close(t->log);
	run_close(t->r);
	arena_free(t->mem);
}

int
train(const TrainOpts *o)
{
	Train t = {.o = o};
	int rc = EX_OK;

	train_open(&t);
	log_start(t.log, pool_threads(t.r->pool));
	signals_catch();
	if (t.r->steps > 0)
		rc = train_steps(&t);
	train_end(&t, rc);
	signals_release();
	train_close(&t);
	return rc;
}
