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
	line_end(l);
}

static void
step_end(Load *l, RunStep *s)
{
	line_expect(l, "@");
	s->site = line_rest(l, "a site");
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

static Mat
load_mat(Load *l, const char *which, long rows, long cols)
{
	Mat m;
	char *at;
	long n;

	line_expect(l, which);
	at = line_word(l, "a place");
	m.dt = line_dtype(l);
	m.ld = line_integer(l, "leading dimension", cols, MaxCount);
	n = line_product(l, which, rows - 1, m.ld) + cols;
	m.at = line_to_place(l, at, line_product(l, which, n, (long)line_dtype_size(m.dt)),
			     line_dtype_size(m.dt));
	return m;
}

void
load_gemm(Load *l)
{
	RunStep s = {.kind = ST_GEMM};
	int xy = CHOICE(l, "gemm", "nn", "nt", "tn", "tt");

	s.ta = xy >= 2;
	s.tb = xy & 1;
	s.m = line_integer(l, "m", 1, 1L << 30);
	s.n = line_integer(l, "n", 1, 1L << 30);
	s.k = line_integer(l, "k", 1, 1L << 30);
	s.acc = line_key_integer(l, "acc", 0, 1);
	s.a = load_mat(l, "a", s.ta ? s.k : s.m, s.ta ? s.m : s.k);
	s.b = load_mat(l, "b", s.tb ? s.n : s.k, s.tb ? s.k : s.n);
	s.c = load_mat(l, "c", s.m, s.n);
	if (s.a.dt != s.b.dt || (s.a.dt != DT_F32 && s.a.dt != DT_BF16))
		line_bad(l, "a and b are both f32 or both bf16");
	if ((s.c.dt != DT_F32 && s.c.dt != DT_BF16) ||
	    (s.acc && s.c.dt != DT_F32))
		line_bad(l, "c is f32, or bf16 when acc is 0");
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
