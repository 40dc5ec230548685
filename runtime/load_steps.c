/* Lines of programs: kernels are found by name, arguments are places or
 * numbers, every operand of a product lies inside its arena. */
#define _GNU_SOURCE
#include "load.h"

#include <string.h>

const char *const prog_names[NProg] = {
	"train", "eval", "logits", "update"
};

int
kernel_find(const Run *r, const char *s)
{
	int i;

	for (i = r->nkernel - 1; i >= 0; i--)
		if (r->kernel[i].name == s)
			return i;
	return -1;
}

void
load_program(Load *l)
{
	Run *r = l->run;
	RunProg p = {0};
	int i;

	p.kind = line_choice(l, "program", NProg, prog_names);
	p.name = prog_names[p.kind];
	p.stage = (int)line_integer(l, "stage", 0, r->nstage);
	p.tokens = line_key_integer(l, "tokens", 0, r->most_tokens);
	p.seq = line_key_integer(l, "seq", 0, r->most_tokens);
	if (!r->nstage || (p.stage == r->nstage && p.kind != PROG_EVAL))
		line_bad(l, "program %s: there is no stage %d", p.name, p.stage);
	if (p.kind == PROG_UPDATE ? p.tokens != 0 : p.seq == 0 || p.tokens % p.seq != 0 || p.tokens == 0)
		line_bad(l, "program %s: %ld tokens in sequences of %ld", p.name, p.tokens, p.seq);
	if (r->nprog < NProg ? p.kind != r->nprog : p.kind > PROG_EVAL)
		line_bad(l, "program %s does not come here", p.name);
	for (i = 0; i < r->nprog; i++)
		if (r->prog[i].kind == p.kind && r->prog[i].stage == p.stage)
			line_bad(l, "a second program %s of stage %d", p.name, p.stage);
	l->prog = PUSH(l->mem, r->prog, r->nprog, l->capprog);
	*l->prog = p;
	l->capstep = 0;
	l->every = 1;
	l->from = 0;
	l->to = -1;
	line_end(l);
}

static void
step_end(Load *l, RunStep *s)
{
	line_expect(l, "@");
	s->site = line_rest(l, "a site");
	s->every = l->every;
	s->from = l->from;
	s->to = l->to;
	*PUSH(l->mem, l->prog->step, l->prog->nstep, l->capstep) = *s;
}

static void
step_cost(Load *l, RunStep *s)
{
	s->nbytes = line_key_real(l, "bytes", 0, 1e30);
	s->flops = line_key_real(l, "flops", 0, 1e30);
}

static void
load_arg(Load *l, RunStep *s, char *w)
{
	int i = s->narg++;

	if (line_arena(w) >= 0) {
		s->arg[i].kind = ARG_PLACE;
		s->arg[i].at = line_to_place(l, w, 1, 1);
	} else if (w[0] == 'i') {
		s->arg[i].kind = ARG_INT;
		s->arg[i].i = line_to_long(l, w + 1, "argument", -MaxBytes,
					   MaxBytes);
	} else if (w[0] == 'f') {
		s->arg[i].kind = ARG_FLOAT;
		s->arg[i].f = line_to_real(l, w + 1, "argument");
	} else {
		line_bad(l, "'%s' is not an argument", w);
	}
}

static int
count_words(const char *s)
{
	int n = 1;

	for (; *s; s++)
		n += *s == ' ';
	return n;
}

void
load_launch(Load *l)
{
	RunStep s = {.kind = ST_LAUNCH};
	const char *k = line_name(l, "kernel", "");
	int max;

	s.kernel = kernel_find(l->run, k);
	if (s.kernel < 0)
		line_bad(l, "there is no kernel %s", k);
	s.items = line_integer(l, "items", 1, MaxItems);
	step_cost(l, &s);
	line_expect(l, ":");
	max = l->p ? count_words(l->p) : 0;
	max = max < MaxArgs ? max : MaxArgs;
	s.arg = arena_alloc(l->mem, (size_t)max * sizeof *s.arg);
	while (l->p && strncmp(l->p, "@ ", 2) != 0) {
		if (s.narg == max)
			line_bad(l, "more than %d arguments", max);
		load_arg(l, &s, line_word(l, "an argument"));
	}
	step_end(l, &s);
}

/* one matrix, or `batch` of them `stride` elements apart */
static Mat
load_mat(Load *l, const char *which, long rows, long cols, long batch, long stride)
{
	Mat m;
	char *at;
	long n;

	line_expect(l, which);
	at = line_word(l, "a place");
	m.dt = line_dtype(l);
	m.ld = line_integer(l, "leading dimension", cols, MaxCount);
	n = line_product(l, which, rows - 1, m.ld) + cols;
	n = line_product(l, which, batch - 1, stride) + n;
	m.at = line_to_place(l, at, line_product(l, which, n, (long)dtype_size(m.dt)),
			     dtype_size(m.dt));
	return m;
}

/* is this the next word? */
static bool
line_next_is(Load *l, const char *word)
{
	size_t n = strlen(word);

	return l->p && strncmp(l->p, word, n) == 0 && l->p[n] == ' ';
}

static void
load_batch(Load *l, RunStep *s)
{
	s->batch = 1;
	if (!line_next_is(l, "batch"))
		return;
	s->batch = line_key_integer(l, "batch", 1, 1L << 20);
	s->sa = line_integer(l, "stride of a", 0, MaxCount);
	s->sb = line_integer(l, "stride of b", 0, MaxCount);
	s->sc = line_integer(l, "stride of c", 0, MaxCount);
}

/* bytes from its start to the end of its last row */
static size_t
mat_extent(const RunStep *s, const Mat *m)
{
	return (size_t)((s->batch - 1) * s->sc + (s->m - 1) * m->ld + s->n) * dtype_size(m->dt);
}

/* what cuBLASLt multiplies in FP8; the same on every device */
static void
check_fp8(Load *l, const RunStep *s)
{
	if (s->a.dt == DT_E5M2 && s->b.dt == DT_E5M2)
		line_bad(l, "f8e5m2 by f8e5m2");
	if (s->ta || !s->tb)
		line_bad(l, "FP8 operands lie along k: nt");
	if (s->m % 16 || s->n % 16 || s->k % 16 || s->a.ld % 16 || s->b.ld % 16)
		line_bad(l, "a dimension of an FP8 product is no multiple of 16");
	if (s->a.at.off % 16 || s->b.at.off % 16)
		line_bad(l, "an FP8 operand is not aligned to 16 bytes");
	if (s->batch > 1 || s->add)
		line_bad(l, "FP8 with a batch or an addend");
}

static void
check_gemm(Load *l, const RunStep *s)
{
	if (dtype_fp8(s->a.dt) && dtype_fp8(s->b.dt))
		check_fp8(l, s);
	else if (s->a.dt != s->b.dt || (s->a.dt != DT_F32 && s->a.dt != DT_BF16))
		line_bad(l, "a and b are both f32, both bf16 or both FP8");
	if ((s->c.dt != DT_F32 && s->c.dt != DT_BF16) || (s->acc && s->c.dt != DT_F32))
		line_bad(l, "c is f32, or bf16 when acc is 0");
	if (s->batch > 1 && s->sc < (s->m - 1) * s->c.ld + s->n)
		line_bad(l, "the results of the batch overlap");
	if (!s->add)
		return;
	if (s->acc || s->d.dt != s->c.dt)
		line_bad(l, "an addend has the type of c, and acc is 0");
	if (s->d.at.arena == s->c.at.arena && s->d.at.off < s->c.at.off + mat_extent(s, &s->c) &&
	    s->c.at.off < s->d.at.off + mat_extent(s, &s->d))
		line_bad(l, "the addend overlaps c");
}

void
load_gemm(Load *l)
{
	RunStep s = {.kind = ST_GEMM, .alpha = 1};
	int xy = CHOICE(l, "gemm", "nn", "nt", "tn", "tt");

	s.ta = xy >= 2;
	s.tb = xy & 1;
	s.m = line_integer(l, "m", 1, 1L << 30);
	s.n = line_integer(l, "n", 1, 1L << 30);
	s.k = line_integer(l, "k", 1, 1L << 30);
	s.acc = line_key_integer(l, "acc", 0, 1);
	load_batch(l, &s);
	if (line_next_is(l, "alpha"))
		s.alpha = (float)line_key_real(l, "alpha", -1e30, 1e30);
	if (line_next_is(l, "scale")) {
		line_expect(l, "scale");
		s.scaled = true;
		s.scale = line_place(l, sizeof(float), sizeof(float));
	}
	if (line_next_is(l, "add")) {
		s.add = true;
		s.d = load_mat(l, "add", s.m, s.n, s.batch, s.sc);
		s.beta = (float)line_real(l, "beta", -1e30, 1e30);
	}
	s.a = load_mat(l, "a", s.ta ? s.k : s.m, s.ta ? s.m : s.k, s.batch, s.sa);
	s.b = load_mat(l, "b", s.tb ? s.n : s.k, s.tb ? s.k : s.n, s.batch, s.sb);
	s.c = load_mat(l, "c", s.m, s.n, s.batch, s.sc);
	check_gemm(l, &s);
	if (s.scaled && !dtype_fp8(s.a.dt))
		line_bad(l, "a scale of operands that are not FP8");
	step_cost(l, &s);
	step_end(l, &s);
}

void
load_copy(Load *l)
{
	RunStep s = {.kind = ST_COPY};
	char *dst = line_word(l, "a place"), *src = line_word(l, "a place");

	s.m = line_integer(l, "bytes", 1, MaxBytes);
	s.c.at = line_to_place(l, dst, s.m, 1);
	s.a.at = line_to_place(l, src, s.m, 1);
	s.nbytes = 2 * (double)s.m;
	if (s.c.at.arena == s.a.at.arena &&
	    s.c.at.off < s.a.at.off + (size_t)s.m &&
	    s.a.at.off < s.c.at.off + (size_t)s.m)
		line_bad(l, "source and destination overlap");
	step_end(l, &s);
}

void
load_zero(Load *l)
{
	RunStep s = {.kind = ST_ZERO};
	char *at = line_word(l, "a place");

	s.m = line_integer(l, "bytes", 1, MaxBytes);
	s.c.at = line_to_place(l, at, s.m, 1);
	s.nbytes = (double)s.m;
	step_end(l, &s);
}

/* which steps of the run the following steps of an update program are of */
void
load_when(Load *l)
{
	char *w;

	if (!l->prog || l->prog->name != prog_names[PROG_UPDATE])
		line_bad(l, "not in program update");
	l->every = 1;
	l->from = 0;
	l->to = -1;
	if (CHOICE(l, "when", "every", "always") == 0) {
		l->every = line_integer(l, "steps", 1, 1L << 20);
		l->from = line_key_integer(l, "from", 0, 1L << 40);
		line_expect(l, "to");
		w = line_word(l, "a step or -");
		l->to = strcmp(w, "-") == 0 ? -1 : line_to_long(l, w, "step", l->from, 1L << 40);
	}
	line_end(l);
}
