/* What a run says: to the terminal, and line by line to metrics.jsonl.
 *
 * On a terminal one line with a bar is redrawn in place, and a line stays for
 * every validation; into a pipe go plain lines every log_every steps.  With
 * TrainOpts.json standard output is the metrics instead, with quiet it is
 * silent.  metrics.jsonl is flushed line by line, a killed run keeps all it
 * had:
 *
 *     {"name":…,"spec":…,"device":"cpu","cpu":…,"threads":…,"seed":…,…}   first
 *     {"step":1,"loss":…,"lr":…,"norm":…,"tokens":…,"ms":…}               each step
 *     {"step":100,"val_loss":…,"val_tokens":…,"ms":…}                     validation
 *     {"done":1000,…}   or "stopped", or "failed"                         last
 *
 * Steps count from 1: the number of updates made.  tokens is how many were
 * trained on so far.  A number that is not finite is null.  ms and tokens per
 * second are of training steps alone, without compiling and validation. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct Log {
	const Run *r;
	FILE *metrics;
	const char *path;               /* of metrics.jsonl */
	bool text, bar, json;
	bool complained;                /* metrics could not be written */
	double smooth, weight;          /* loss: sum and weight of the mean */
	double step_seconds, step_tokens;       /* smoothed the same way */
	double val, ngram;              /* NAN: none yet */
	bool val_fresh;
	LogStep last;
	double seconds;                 /* all steps */
	double line_seconds;            /* … at the last line, */
	long line_step;                 /* and its step */
	double val_seconds;             /* the last validation */
	double drawn;                   /* when the bar was, monotonic */
};

/* Weight of the past in smoothed values; picked: ten steps. */
static const double Past = 0.9;

/* -- text -- */

void
buf_json(Buf *b, const char *s)
{
	buf_puts(b, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			buf_printf(b, "\\%c", *s);
		else if ((unsigned char)*s < 32)
			buf_printf(b, "\\u%04x", (unsigned)*s);
		else
			buf_write(b, s, 1);
	}
	buf_puts(b, "\"");
}

static void
put_number(Buf *b, const char *key, double x)
{
	buf_printf(b, ",\"%s\":", key);
	if (isfinite(x))
		buf_num(b, x);
	else
		buf_puts(b, "null");
}

/* Times are noise beyond a microsecond. */
static void
put_ms(Buf *b, double seconds)
{
	buf_printf(b, ",\"ms\":%.3f", 1e3 * seconds);
}

/* 1.0e-3: printf's exponent without its zero */
static void
put_exponent(Buf *b, double x)
{
	char s[32], *e;

	snprintf(s, sizeof s, "%.1e", x);
	e = strchr(s, 'e');
	if (!e) {
		buf_puts(b, s);
		return;
	}
	buf_write(b, s, (size_t)(e - s));
	buf_printf(b, "e%d", atoi(e + 1));
}

static void
put_duration(Buf *b, double seconds)
{
	long s = lround(seconds);

	if (s < 60)
		buf_printf(b, "%lds", s);
	else if (s < 3600)
		buf_printf(b, "%ldm%02lds", s / 60, s % 60);
	else
		buf_printf(b, "%ldh%02ldm", s / 3600, s / 60 % 60);
}

/* -- metrics.jsonl -- */

/* Frees the line.  A full disk does not end a run that can still be saved
 * elsewhere or after room was made; it is said once. */
static void
metrics_line(Log *l, Buf *b)
{
	buf_puts(b, "}\n");
	if (l->json) {
		fputs(b->s, stdout);
		fflush(stdout);
	}
	if ((fputs(b->s, l->metrics) < 0 || fflush(l->metrics) != 0) &&
	    !l->complained) {
		fprintf(stderr, "hcgen: %s: %s; training goes on without it\n",
		        l->path, strerror(errno));
		l->complained = true;
	}
	buf_free(b);
}

/* requires: the run directory exists.  die()s when it cannot be written.  What
 * the last run left there stays until log_start: this one may not get so far. */
Log *
log_open(Arena *a, const Run *r, const TrainOpts *o)
{
	const char *term = getenv("TERM");
	Log *l = NEW(a, Log);

	l->r = r;
	l->path = arena_printf(a, "%s/metrics.jsonl", o->run);
	l->metrics = fopen(l->path, "ae");
	if (!l->metrics)
		die("%s: %s; choose a run directory that can be written",
		    l->path, strerror(errno));
	l->json = o->json;
	l->text = !o->quiet && !o->json;
	l->bar = l->text && isatty(STDOUT_FILENO) && term &&
	         strcmp(term, "dumb") != 0;
	l->val = l->ngram = NAN;
	return l;
}

static void
cpu_json(Buf *b)
{
	Buf model = {0};

	cpu_model(&model);
	buf_json(b, model.s);
	buf_free(&model);
}

void
log_start(Log *l, int nthreads)
{
	const Run *r = l->r;
	const RunStage *s;
	Buf b = {0};

	if (ftruncate(fileno(l->metrics), 0) != 0)
		die("%s: %s", l->path, strerror(errno));
	buf_puts(&b, "{\"name\":");
	buf_json(&b, r->name);
	buf_puts(&b, ",\"spec\":");
	buf_json(&b, r->spec_hash);
	buf_puts(&b, ",\"device\":");
	buf_json(&b, device_name(r->device));
	if (r->device == DEV_CUDA) {
		buf_puts(&b, ",\"gpu\":");
		buf_json(&b, cuda_name(r));
	}
	buf_puts(&b, ",\"cpu\":");
	cpu_json(&b);
	buf_printf(&b, ",\"threads\":%d,\"seed\":%lld,\"steps\":%ld,"
	           "\"tokens_per_step\":%ld,\"edited_kernels\":%d", nthreads,
	           r->seed, r->steps, run_tokens(r, 1), r->nedited);
	buf_puts(&b, ",\"stages\":{");
	for (s = r->stage; s < r->stage + r->nstage; s++)
		buf_printf(&b, "%s\"%s\":%ld", s > r->stage ? "," : "", s->name, s->first);
	buf_puts(&b, "}");
	metrics_line(l, &b);
}

void
log_ngram(Log *l, double nats)
{
	l->ngram = nats;
}

/* -- the terminal -- */

static double
smooth_loss(const Log *l)
{
	return l->weight > 0 ? l->smooth / l->weight : NAN;
}

/* of the steps smoothed over */
static double
rate(const Log *l)
{
	return l->step_seconds > 0 ? l->step_tokens / l->step_seconds : 0;
}

/* Stages differ in tokens, and a token takes about the same time in all. */
static double
seconds_left(const Log *l)
{
	const Run *r = l->r;
	long left = r->steps - l->last.step;
	double s;

	if (rate(l) <= 0)
		return 0;
	s = (double)(run_tokens(r, r->steps) - run_tokens(r, l->last.step)) / rate(l);
	if (r->val_every > 0)
		s += (double)(left / r->val_every) * l->val_seconds;
	return s;
}

static void
put_val(Buf *b, const Log *l)
{
	if (isnan(l->val))
		return;
	buf_printf(b, "  val %.4f", l->val);
	if (l->val_fresh && !isnan(l->ngram))
		buf_printf(b, " (order-2 byte model %.2f)", l->ngram);
}

/* Of the steps since the last line. */
static double
line_rate(const Log *l)
{
	double s = l->seconds - l->line_seconds;
	double n = (double)(run_tokens(l->r, l->last.step) - run_tokens(l->r, l->line_step));

	return s > 0 ? n / s : 0;
}

static void
put_eta(Buf *b, const Log *l)
{
	if (l->last.step == l->r->steps)
		return;
	buf_puts(b, "  eta ");
	put_duration(b, seconds_left(l));
}

static void
plain_line(Log *l)
{
	const LogStep *s = &l->last;
	Buf b = {0};

	buf_printf(&b, "step %ld/%ld  loss %.4f", s->step, l->r->steps,
	           s->loss);
	put_val(&b, l);
	buf_puts(&b, "  lr ");
	put_exponent(&b, s->lr);
	buf_printf(&b, "  norm %.3g  %.0f tok/s", s->norm, line_rate(l));
	put_eta(&b, l);
	printf("%s%s\n", l->bar ? "\r\033[K" : "", b.s);
	fflush(stdout);
	buf_free(&b);
	l->line_seconds = l->seconds;
	l->line_step = s->step;
	l->val_fresh = false;
	l->drawn = 0;
}

static int
terminal_columns(void)
{
	struct winsize w;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) != 0 || w.ws_col == 0)
		return 80;
	return w.ws_col;
}

static void
put_bar(Buf *b, long done, long all, int width)
{
	int i, full = (int)((double)width * (double)done / (double)all);

	buf_puts(b, "[");
	for (i = 0; i < width; i++)
		buf_puts(b, i < full ? "=" : i == full ? ">" : " ");
	buf_puts(b, "] ");
}

static void
put_status(Buf *b, const Log *l)
{
	buf_printf(b, "%ld/%ld  loss %.3f", l->last.step, l->r->steps,
	           smooth_loss(l));
	if (!isnan(l->val))
		buf_printf(b, "  val %.3f", l->val);
	if (rate(l) > 0)
		buf_printf(b, "  %.0f tok/s", rate(l));
	put_eta(b, l);
}

/* A line that wrapped could not be redrawn in place: the bar takes what room
 * the words leave, and what does not fit is cut. */
static void
draw_bar(Log *l)
{
	int room = terminal_columns() - 1, width;
	Buf b = {0}, status = {0};

	/* ten pictures a second are enough */
	if (l->last.step < l->r->steps && seconds_now() - l->drawn < 0.1)
		return;
	put_status(&status, l);
	width = room - (int)status.len - 3;
	if (width >= 6)
		put_bar(&b, l->last.step, l->r->steps, width < 30 ? width : 30);
	buf_puts(&b, status.s);
	printf("\r%.*s\033[K", room, b.s);
	fflush(stdout);
	buf_free(&status);
	buf_free(&b);
	l->drawn = seconds_now();
}

/* -- events -- */

static void
smooth_step(Log *l, const LogStep *s)
{
	if (!isfinite(s->loss))
		return;
	l->smooth = Past * l->smooth + (1 - Past) * s->loss;
	l->step_seconds = Past * l->step_seconds + (1 - Past) * s->seconds;
	l->step_tokens = Past * l->step_tokens +
	                 (1 - Past) * (double)(run_tokens(l->r, s->step) - run_tokens(l->r, s->step - 1));
	l->weight = Past * l->weight + (1 - Past);
}

static bool
line_due(const Log *l, long step)
{
	return !l->bar && (step == 1 || step == l->r->steps ||
	        (l->r->log_every > 0 && step % l->r->log_every == 0));
}

/* val_next: log_val of this step follows, and prints the line. */
void
log_step(Log *l, const LogStep *s, bool val_next)
{
	Buf b = {0};

	l->last = *s;
	l->seconds += s->seconds;
	smooth_step(l, s);
	buf_printf(&b, "{\"step\":%ld", s->step);
	put_number(&b, "loss", s->loss);
	put_number(&b, "lr", s->lr);
	put_number(&b, "norm", s->norm);
	buf_printf(&b, ",\"tokens\":%ld", run_tokens(l->r, s->step));
	put_ms(&b, s->seconds);
	metrics_line(l, &b);
	if (!l->text)
		return;
	if (l->bar)
		draw_bar(l);
	else if (!val_next && line_due(l, s->step))
		plain_line(l);
}

void
log_val(Log *l, long step, double loss, long tokens, double seconds)
{
	Buf b = {0};

	l->val = loss;
	l->val_fresh = true;
	l->val_seconds = seconds;
	buf_printf(&b, "{\"step\":%ld", step);
	put_number(&b, "val_loss", loss);
	buf_printf(&b, ",\"val_tokens\":%ld", tokens);
	put_ms(&b, seconds);
	metrics_line(l, &b);
	if (l->text)
		plain_line(l);
}

static void
end_text(Log *l, const char *what, long step, const char *file)
{
	double tokens = (double)run_tokens(l->r, step);
	Buf b = {0};

	buf_printf(&b, "%s: %ld steps, %.2f M tokens", what, step,
	           tokens / 1e6);
	if (l->seconds > 0) {
		buf_puts(&b, " in ");
		put_duration(&b, l->seconds);
		buf_printf(&b, ", %.0f tok/s", tokens / l->seconds);
	}
	if (!isnan(l->val))
		buf_printf(&b, "  val loss %.4f", l->val);
	if (!isnan(l->val) && !isnan(l->ngram))
		buf_printf(&b, "  (order-2 byte model %.2f)", l->ngram);
	printf("%s%s\n", l->bar ? "\r\033[K" : "", b.s);
	if (file)
		printf("wrote %s\n", file);
	fflush(stdout);
	buf_free(&b);
}

void
log_end(Log *l, const char *what, long step, const char *file)
{
	Buf b = {0};

	buf_printf(&b, "{\"%s\":%ld", what, step);
	put_number(&b, "val_loss", l->val);
	put_number(&b, "order2_nats", l->ngram);
	buf_printf(&b, ",\"seconds\":%.3f,\"file\":", l->seconds);
	if (file)
		buf_json(&b, file);
	else
		buf_puts(&b, "null");
	metrics_line(l, &b);
	if (l->text)
		end_text(l, what, step, file);
}

void
log_close(Log *l)
{
	fclose(l->metrics);
}
