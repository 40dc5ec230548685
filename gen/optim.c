/* Model -> Model: what makes each parameter of its gradients (optimizer, every, rates), what
 * numbers it holds, and where it lies.
 *
 * Groups are read in file order, later ones override key by key; what only holds between a
 * setting and a parameter's name or shape is reported at the key that set it. */
#include "hcgen.h"

#include <string.h>

typedef struct {
	Arena *a;
	Diag *d;
	const Spec *s;
	Model *m;
	int *kind, *every;      /* [nparam] the group that set it; -1: optim */
} Ctx;

#define ERR(c, path, ...) diag_error((c)->d, spec_loc((c)->s, (path)), __VA_ARGS__)

static bool
glob_match(const char *p, const char *s)
{
	for (; *p; p++, s++) {
		if (*p == '*') {
			for (;; s++) {
				if (glob_match(p + 1, s))
					return true;
				if (!*s)
					return false;
			}
		}
		if (!*s || (*p != '?' && *p != *s))
			return false;
	}
	return !*s;
}

/* one of the patterns between `|` */
static bool
match(Ctx *c, const char *patterns, const char *name)
{
	size_t n;

	for (;; patterns += n + 1) {
		n = strcspn(patterns, "|");
		if (glob_match(arena_strndup(c->a, patterns, n), name))
			return true;
		if (!patterns[n])
			return false;
	}
}

static void
take_group(Param *p, const Group *g)
{
	if (g->has_kind)
		p->kind = g->kind;
	if (g->has_every)
		p->every = g->every;
	if (g->has_lr)
		p->lr = g->lr;
	if (g->has_lr_mul)
		p->lr_mul = g->lr_mul;
	if (g->has_betas)
		memcpy(p->betas, g->betas, sizeof p->betas);
	if (g->has_eps)
		p->eps = g->eps;
	if (g->has_weight_decay)
		p->weight_decay = g->weight_decay;
}

static void
settings(Ctx *c, int i)
{
	const Spec *s = c->s;
	Param *p = &c->m->param[i];
	const Group *g;
	int j;

	p->kind = s->optim;
	p->every = s->every;
	p->lr = s->lr;
	c->kind[i] = c->every[i] = -1;
	for (j = 0; j < s->ngroup; j++) {
		g = &s->group[j];
		if (g->none || !match(c, g->match, p->name))
			continue;
		take_group(p, g);
		if (g->has_kind)
			c->kind[i] = j;
		if (g->has_every)
			c->every[i] = j;
	}
}

/* the key that set it */
static const char *
key_of(Ctx *c, int group, const char *name)
{
	if (group < 0)
		return arena_printf(c->a, "optim.%s", name);
	return arena_printf(c->a, "optim.groups.%s.%s", c->s->group[group].name, name);
}

static bool
is_layer_matrix(const Model *m, int i)
{
	const Sub *u;

	for (u = m->sub; u < m->sub + m->S; u++)
		if (i == u->qkv || i == u->out || i == u->up || i == u->down)
			return true;
	return false;
}

/* one error for each key, at the first parameter that it is wrong for */
static void
check_kinds(Ctx *c)
{
	const Model *m = c->m;
	int i, j;

	for (i = 0; i < m->nparam; i++) {
		if (m->param[i].kind != OPT_NORMUON || is_layer_matrix(m, i))
			continue;
		for (j = 0; j < i; j++)
			if (c->kind[j] == c->kind[i] && m->param[j].kind == OPT_NORMUON && !is_layer_matrix(m, j))
				break;
		if (j == i)
			ERR(c, key_of(c, c->kind[i], "kind"), "normuon is for the matrices of layers (attn.qkv, attn.out, "
			    "mlp.up, mlp.down), and %s is none", m->param[i].name);
	}
}

static void
check_clip(Ctx *c)
{
	const Model *m = c->m;
	int i;

	for (i = 0; c->s->clip > 0 && i < m->nparam; i++)
		if (m->param[i].every > 1) {
			ERR(c, key_of(c, c->every[i], "every"), "%s is updated every %d steps, and train.clip %g needs the "
			    "gradient of each step", m->param[i].name, m->param[i].every, c->s->clip);
			return;
		}
}

/* the group that set embed's, or else head's */
static int
either(const int *group, const Model *m)
{
	return group[m->embed] >= 0 ? group[m->embed] : group[m->head];
}

/* docs/spec.md, Tying */
static void
find_untie(Ctx *c)
{
	Model *m = c->m;
	const Param *e = &m->param[m->embed], *h = &m->param[m->head];
	int i;

	m->untie_last = -1;
	if (!c->s->has_untie)
		return;
	if (m->embed == m->head) {
		ERR(c, "train.untie", "model.tied is true: embed and head are one parameter to the end");
		return;
	}
	if (c->s->clip > 0)
		ERR(c, "train.clip", "embed and head are one parameter at first (train.untie), and the norm of clip %g "
		    "would count their gradients apart", c->s->clip);
	if (e->kind != h->kind)
		ERR(c, key_of(c, either(c->kind, m), "kind"), "embed and head are one parameter at first (train.untie), and "
		    "have different optimizers");
	if (e->every != h->every)
		ERR(c, key_of(c, either(c->every, m), "every"), "embed and head are one parameter at first (train.untie): "
		    "every %d is not the %d of head", e->every, h->every);
	for (i = 0; i < m->nstage; i++)
		if (strcmp(m->stage[i].name, c->s->untie) == 0)
			m->untie_last = (m->stage[i].first / h->every + 1) * h->every - 1;
	m->param[m->embed].like = m->head;
}

/* what holds bf16 numbers under numerics.params: docs/spec.md, Parameters */
static void
find_held(Ctx *c)
{
	Model *m = c->m;
	const Sub *u;
	Param *p;
	int i, j;

	if (c->s->params != F_BF16)
		return;
	for (i = 0; i < m->nparam; i++) {
		p = &m->param[i];
		if (p->role == ROLE_MATRIX || p->role == ROLE_TABLE)
			p->held = p->kind == OPT_NORMUON ? HELD_UPPER : HELD_BF16;
	}
#define BF16_PARAM(i) do { if ((i) >= 0) m->param[i].held = HELD_BF16; } while (0)
	for (u = m->sub; u < m->sub + m->S; u++) {
		BF16_PARAM(u->gate);
		BF16_PARAM(u->value_gate);
	}
	BF16_PARAM(m->smear_weight);
	for (i = 0; i < 2; i++)
		for (j = 0; j < (i ? c->s->nbackout : c->s->nskip); j++)
			BF16_PARAM(m->gate_w[i][j]);
#undef BF16_PARAM
}

static size_t
region(size_t *total, long n, int size)
{
	size_t off = *total;

	*total += ((size_t)n * (size_t)size + 255) & ~(size_t)255;
	return off;
}

int
next_every(const Model *m, int every)
{
	int i, e, next = 0;

	for (i = 0; i < m->nparam; i++) {
		e = m->param[i].every;
		if (e > every && (next == 0 || e < next))
			next = e;
	}
	return next;
}

/* What is updated at the same steps lies together, so that its gradients are cleared at once.  A
 * matrix has a copy in the type of products where that is not fp32, or where products see the
 * upper half of the parameter alone. */
static void
place(Model *m, int every)
{
	bool bf16 = m->spec->gemm == F_BF16;
	Param *p;
	int i;

	for (i = 0; i < m->nparam; i++) {
		p = &m->param[i];
		if (p->every != every)
			continue;
		p->off = region(&m->params_nbytes, p->n, 4);
		p->off2 = region(&m->moment2_nbytes, p->kind == OPT_NORMUON ? p->dim[0] : p->n, 4);
		if ((bf16 && (p->role == ROLE_MATRIX || i == m->head)) || p->held == HELD_UPPER)
			p->woff = (long)region(&m->weights_nbytes, p->n, bf16 ? 2 : 4);
	}
}

void
model_optim(Arena *a, Diag *d, Model *m)
{
	Ctx c = { .a = a, .d = d, .s = m->spec, .m = m };
	int i;

	c.kind = NEWN(a, int, m->nparam);
	c.every = NEWN(a, int, m->nparam);
	for (i = 0; i < m->nparam; i++)
		settings(&c, i);
	check_kinds(&c);
	check_clip(&c);
	find_untie(&c);
	find_held(&c);
	for (i = next_every(m, 0); i > 0; i = next_every(m, i))
		place(m, i);
}
