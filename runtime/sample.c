/* Text from a trained model, one token at a time.
 *
 * The logits program runs on one whole sequence.  The last tokens stand at its
 * beginning, with positions from 0; behind them is whatever was there, which
 * causal attention does not see.  Nothing is kept between tokens. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
	Arena *mem;
	Run *r;
	bool bytes;
	int bos;                /* -1: none */
	int32_t *token;         /* prompt, then what was drawn */
	long n;
	int32_t *window;        /* [seq] */
	double *weight;         /* [vocab] */
	double temperature;
	uint64_t h, draws;
	unsigned char pending[4];       /* of a UTF-8 character */
	int npending;
} Sampler;

/* -- finding the model -- */

static bool
has_file(Arena *a, const char *dir, const char *name)
{
	return access(arena_printf(a, "%s/%s", dir, name), R_OK) == 0;
}

/* The value of a line `key value` of run.txt, or NULL. */
static const char *
run_fact(Arena *a, const char *rundir, const char *key)
{
	size_t n, len = strlen(key);
	char *text = file_read(a, arena_printf(a, "%s/run.txt", rundir), &n);
	const char *s, *end;

	for (s = text; s && *s; s = *end ? end + 1 : end) {
		end = strchrnul(s, '\n');
		if (strncmp(s, key, len) == 0 && s[len] == ' ')
			return arena_strndup(a, s + len + 1,
			                     (size_t)(end - s) - len - 1);
	}
	return NULL;
}

static const char *
emitted_dir(Arena *a, const char *rundir)
{
	const char *dir = run_fact(a, rundir, "emitted");
	const char *parent = arena_printf(a, "%s/..", rundir);

	if (dir && has_file(a, dir, "manifest"))
		return dir;
	if (has_file(a, parent, "manifest"))
		return parent;
	die("%s: no manifest in %s; run `hcgen emit` on its spec again", rundir,
	    dir ? dir : parent);
}

static const char *
params_path(Arena *a, const char *rundir)
{
	const char *s;

	if (has_file(a, rundir, "final.safetensors"))
		return arena_printf(a, "%s/final.safetensors", rundir);
	if (!has_file(a, rundir, "stopped.safetensors"))
		die("%s: no final.safetensors there; run `hcgen train` first, "
		    "and give its run directory", rundir);
	s = arena_printf(a, "%s/stopped.safetensors", rundir);
	fprintf(stderr, "hcgen: the run was stopped: using %s\n", s);
	return s;
}

static void
model_open(Sampler *s, const char *rundir, int device, int nthreads)
{
	const char *params = params_path(s->mem, rundir);
	const char *spec = run_fact(s->mem, rundir, "spec");

	s->r = run_load(emitted_dir(s->mem, rundir));
	if (spec && strcmp(spec, s->r->spec_hash) != 0)
		fprintf(stderr, "hcgen: %s was trained with another spec than "
		        "the one in %s now; `hcgen emit` the old one to be "
		        "sure\n", rundir, s->r->dir);
	run_open(s->r, device, nthreads);
	params_load(s->r, params);
	run_sync_weights(s->r);
}

/* -- tokens in -- */

static void
token_add(Sampler *s, long token, const char *where)
{
	if (token < 0 || token >= s->r->vocab)
		die("prompt: token `%s` is not one of 0 to %d", where,
		    s->r->vocab - 1);
	s->token[s->n++] = (int32_t)token;
}

static void
ids_read(Sampler *s, const char *prompt)
{
	char *end;
	long id;

	while (*(prompt += strspn(prompt, " \t\n"))) {
		errno = 0;
		id = strtol(prompt, &end, 10);
		if (end == prompt || errno)
			die("prompt: the vocabulary is not bytes: expected "
			    "token ids with spaces between them, saw `%s`",
			    prompt);
		token_add(s, id, prompt);
		prompt = end;
	}
}

/* room for `more` tokens behind the prompt */
static void
prompt_read(Sampler *s, const char *prompt, long more)
{
	size_t room = strlen(prompt) + 1;

	s->token = NEWN(s->mem, int32_t, room + (size_t)more);
	if (s->bos >= 0)
		s->token[s->n++] = s->bos;
	if (!s->bytes)
		ids_read(s, prompt);
	else
		for (; *prompt; prompt++)
			s->token[s->n++] = (unsigned char)*prompt;
	if (s->n == 0)
		die("prompt: no tokens, and the spec has no bos to begin with; "
		    "give at least one token id");
}

/* -- tokens out -- */

/* Bytes the character that begins with c has, 0 when none does. */
static int
utf8_length(unsigned char c)
{
	if (c >= 0xc2 && c <= 0xdf)
		return 2;
	if (c >= 0xe0 && c <= 0xef)
		return 3;
	if (c >= 0xf0 && c <= 0xf4)
		return 4;
	return 0;
}

static void
pending_escape(Sampler *s)
{
	int i;

	for (i = 0; i < s->npending; i++)
		printf("\\x%02x", s->pending[i]);
	s->npending = 0;
}

/* Not as they are: what a terminal would take for a command, the control
 * characters from U+0080, and encodings that are too long or a surrogate. */
static bool
pending_plain(const Sampler *s)
{
	const unsigned char *p = s->pending;

	return !(p[0] == 0xc2 && p[1] < 0xa0) &&
	       !(p[0] == 0xe0 && p[1] < 0xa0) &&
	       !(p[0] == 0xed && p[1] >= 0xa0) &&
	       !(p[0] == 0xf0 && p[1] < 0x90) &&
	       !(p[0] == 0xf4 && p[1] >= 0x90);
}

/* Characters are written when they are whole; all else as \xNN. */
static void
byte_print(Sampler *s, unsigned char c)
{
	bool follows = (c & 0xc0) == 0x80;

	if (s->npending > 0 && !follows)
		pending_escape(s);
	if (c == '\n' || c == '\t' || (c >= 32 && c < 127)) {
		putchar(c);
		return;
	}
	s->pending[s->npending++] = c;
	if (utf8_length(s->pending[0]) == 0) {
		pending_escape(s);
	} else if (s->npending == utf8_length(s->pending[0])) {
		if (!pending_plain(s)) {
			pending_escape(s);
			return;
		}
		fwrite(s->pending, 1, (size_t)s->npending, stdout);
		s->npending = 0;
	}
}

static void
token_print(Sampler *s, int32_t token)
{
	if (!s->bytes) {
		printf("%d ", token);
	} else if (token < 256) {
		byte_print(s, (unsigned char)token);
	} else {
		pending_escape(s);
		fputs("<bos>", stdout);
	}
	fflush(stdout);
}

/* -- drawing -- */

static uint64_t
splitmix64(uint64_t z)
{
	z ^= z >> 30;
	z *= 0xBF58476D1CE4E5B9u;
	z ^= z >> 27;
	z *= 0x94D049BB133111EBu;
	return z ^ z >> 31;
}

static void
draw_seed(Sampler *s, long long seed)
{
	uint8_t hash[32];
	char text[64];

	snprintf(text, sizeof text, "%lld/sample", seed);
	sha256(text, strlen(text), hash);
	memcpy(&s->h, hash, 8);
}

static double
uniform(Sampler *s)
{
	uint64_t w = splitmix64(s->h + s->draws++ * 0x9E3779B97F4A7C15u);

	return (double)(w >> 11) * 0x1p-53;
}

/* The first of the largest. */
static int
best(const float *logit, int n)
{
	int i, k = 0;

	for (i = 1; i < n; i++)
		if (logit[i] > logit[k])
			k = i;
	return k;
}

/* The padded rows of the head, from vocab on, are no tokens. */
static int32_t
draw(Sampler *s, const float *logit)
{
	int i, n = s->r->vocab, top = best(logit, n);
	double sum = 0, u;

	if (s->temperature <= 0)
		return top;
	for (i = 0; i < n; i++) {
		s->weight[i] = exp(((double)logit[i] - (double)logit[top]) /
		                   s->temperature);
		sum += s->weight[i];
	}
	u = uniform(s) * sum;
	for (i = 0; i < n - 1; i++) {
		if (u < s->weight[i])
			return i;
		u -= s->weight[i];
	}
	/* rounding left a little: not a token of weight 0 */
	return s->weight[i] > 0 ? i : top;
}

/* The logits behind the last token. */
static const float *
logits_run(Sampler *s)
{
	Run *r = s->r;
	const RunProg *p = run_prog(r, PROG_LOGITS);
	long n = s->n < p->seq ? s->n : p->seq;
	const float *logit;
	int i;

	memcpy(s->window, s->token + (s->n - n), (size_t)n * sizeof(int32_t));
	inputs_fill(r, p, s->window, NULL);
	run_program(r, PROG_LOGITS);
	run_get(r, r->logits.arena,
	        r->logits.off + (size_t)((n - 1) * r->logits_ld) * sizeof *logit,
	        (size_t)r->vocab * sizeof *logit);
	logit = (const float *)run_at(r, r->logits) + (n - 1) * r->logits_ld;
	for (i = 0; i < r->vocab; i++)
		if (!isfinite(logit[i]))
			return NULL;
	return logit;
}

static int
tokens_draw(Sampler *s, long n)
{
	const float *logit;

	for (; n > 0; n--) {
		logit = logits_run(s);
		if (!logit) {
			fprintf(stderr, "\nhcgen: the logits are not finite\n");
			return EX_NUMERICS;
		}
		s->token[s->n++] = draw(s, logit);
		token_print(s, s->token[s->n - 1]);
	}
	return EX_OK;
}

static void
sampler_open(Sampler *s, const char *rundir, int device, int nthreads)
{
	s->mem = arena_new("sample");
	model_open(s, rundir, device, nthreads);
	s->bytes = s->r->vocab == ByteVocab && s->r->bos == ByteBos;
	s->bos = s->r->bos < s->r->vocab ? s->r->bos : -1;
	run_stage(s->r, s->r->nstage);
	s->window = NEWN(s->mem, int32_t, run_prog(s->r, PROG_LOGITS)->tokens);
	s->weight = NEWN(s->mem, double, s->r->vocab);
}

int
sample(const char *rundir, const char *prompt, long n, double temperature,
       long long seed, int device, int nthreads)
{
	Sampler s = {.temperature = temperature};
	long i;
	int rc;

	if (n < 0 || n > 1 << 24)
		die("sample: %ld tokens, expected 0 to %d", n, 1 << 24);
	if (!(temperature >= 0 && temperature < 1e6))
		die("sample: temperature %g, expected 0 (the most likely token) "
		    "or more", temperature);
	sampler_open(&s, rundir, device, nthreads);
	prompt_read(&s, prompt ? prompt : "", n);
	draw_seed(&s, seed);
	for (i = s.bos >= 0; i < s.n; i++)
		token_print(&s, s.token[i]);
	rc = tokens_draw(&s, n);
	pending_escape(&s);
	putchar('\n');
	run_close(s.r);
	arena_free(s.mem);
	return rc;
}
