/* Spec -> Model: every dimension a number, every coefficient a parameter
 * element or a constant, every parameter named, shaped, initialised and given
 * its optimizer settings (optim.c).
 *
 * After this stage there are no user errors: what only holds between several
 * keys (divisibility, lanes that exist, sublayers in order) is checked here
 * and reported at the key that says it. */
#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double
round_bf16(double x)
{
	float f = (float)x;
	uint32_t u;

	if (isnan(f))
		return f;
	memcpy(&u, &f, sizeof u);
	u += 0x7fff + (u >> 16 & 1);
	u &= 0xffff0000;
	memcpy(&f, &u, sizeof f);
	return f;
}

/* selections */

bool
sel_has(const Sel *s, int i, bool attn)
{
	int j;

	switch (s->kind) {
	case SEL_ALL:
		return true;
	case SEL_NONE:
		return false;
	case SEL_ATTN:
		return attn;
	case SEL_MLP:
		return !attn;
	case SEL_RANGE:
		return i >= s->first && i <= s->last;
	case SEL_LIST:
	case SEL_EXCEPT:
		for (j = 0; j < s->n; j++)
			if (s->idx[j] == i)
				return s->kind == SEL_LIST;
		return s->kind == SEL_EXCEPT;
	}
	return false;
}

void
sel_check(Ctx *c, const Sel *s, int limit, const char *what, const char *path)
{
	int i, v;

	if (s->kind == SEL_RANGE) {
		if (s->first > s->last)
			ERR(c, path, "range %d to %d is empty", s->first, s->last);
		if (s->last >= limit)
			ERR(c, path, "%s %d does not exist: there are %d, counted from 0",
			    what, s->last, limit);
	}
	for (i = 0; (s->kind == SEL_LIST || s->kind == SEL_EXCEPT) && i < s->n; i++) {
		v = s->idx[i];
		if (v < 0 || v >= limit)
			ERR(c, path, "%s %d does not exist: there are %d, counted from 0",
			    what, v, limit);
	}
}

/* parameters */

int
param_new(Ctx *c, const char *name, Role role, int ndim, int d0, int d1, int d2)
{
	Model *m = c->m;
	const Spec *s = c->s;
	Param *p = PUSH(c->a, m->param, m->nparam, c->capparam);

	memset(p, 0, sizeof *p);
	p->name = intern(name);
	p->role = role;
	p->ndim = ndim;
	p->dim[0] = d0;
	p->dim[1] = d1;
	p->dim[2] = d2;
	p->n = (long)d0 * (ndim > 1 ? d1 : 1) * (ndim > 2 ? d2 : 1);
	p->lr_mul = 1;
	p->betas[0] = s->betas[0];
	p->betas[1] = s->betas[1];
	p->eps = s->eps;
	p->weight_decay = role == ROLE_MATRIX || role == ROLE_TABLE ?
	                  s->weight_decay : 0;
	p->woff = p->like = -1;
	return m->nparam - 1;
}

static int
param_ones(Ctx *c, const char *name, int n)
{
	int p = param_new(c, name, ROLE_NORM, 1, n, 0, 0), i;
	double *v = NEWN(c->a, double, n);

	for (i = 0; i < n; i++)
		v[i] = 1;
	c->m->param[p].values = v;
	return p;
}

/* dimensions */

static void
check_selections(Ctx *c)
{
	const Spec *s = c->s;

	sel_check(c, &s->attn_layers, c->m->L, "layer", "model.attention.layers");
	sel_check(c, &s->long_layers, c->m->L, "layer", "model.attention.long_layers");
	sel_check(c, &s->paired_layers, c->m->L, "layer", "model.attention.paired");
	sel_check(c, &s->gate_layers, c->m->L, "layer", "model.attention.gate.layers");
	sel_check(c, &s->sa_layers, c->m->L, "layer", "model.attention.sa_lambda.layers");
	sel_check(c, &s->offset_layers, c->m->L, "layer", "model.attention.key_offset.layers");
	sel_check(c, &s->value_layers, c->m->L, "layer", "model.value_embed.layers");
	sel_check(c, &s->split_layers, c->m->L, "layer", "model.value_embed.split");
	sel_check(c, &s->mlp_layers, c->m->L, "layer", "model.mlp.layers");
	hc_check(c);
}

/* few, so that a block's shared memory holds them */
enum { MostGateWeights = 4096 };

static void
check_gate(Ctx *c, const Sel *layers, int channels, int heads, const char *path)
{
	if (layers->kind == SEL_NONE)
		return;
	if (channels > c->s->width)
		ERR(c, path, "%d channels of %d", channels, c->s->width);
	if (channels * heads > MostGateWeights)
		ERR(c, path, "%d channels for %d heads are more than %d weights", channels, heads,
		    MostGateWeights);
}

static void
check_attention(Ctx *c)
{
	const Spec *s = c->s;

	check_gate(c, &s->gate_layers, s->gate_channels, s->heads, "model.attention.gate.channels");
	check_gate(c, &s->value_layers, s->value_channels, s->kv_heads, "model.value_embed.channels");
	if (s->split_layers.kind != SEL_NONE && s->value_channels % 2)
		ERR(c, "model.value_embed.channels", "%d channels cannot be split in halves", s->value_channels);
	if (s->split_layers.kind != SEL_NONE && s->value_channels / 2 > s->kv_heads * s->head_dim)
		ERR(c, "model.value_embed.channels", "half of %d channels of a table row of %d",
		    s->value_channels, s->kv_heads * s->head_dim);
	if (s->paired_layers.kind != SEL_NONE && (s->heads % 2 || s->kv_heads != s->heads))
		ERR(c, "model.attention.paired", "%d heads and %d kv_heads: expected an even number of both",
		    s->heads, s->kv_heads);
	if (s->offset_layers.kind != SEL_NONE && (s->offset_first >= s->head_dim || s->offset_first % 2))
		ERR(c, "model.attention.key_offset.first", "first channel %d is not an even one below head_dim %d (it is rotary.dims unless given)",
		    s->offset_first, s->head_dim);
}

/* FP8 products take operands whose rows, and how many there are, are multiples of 16 */
static void
check_fp8(Ctx *c)
{
	const Spec *s = c->s;

	if (s->head != HEAD_FP8)
		return;
	if (s->width % 16)
		ERR(c, "numerics.head", "an fp8 head needs a width that is a multiple of 16: %d is not", s->width);
	if (c->m->Vp % 16)
		ERR(c, "numerics.head", "an fp8 head needs a padded vocabulary that is a multiple of 16: %d is not "
		    "(vocab_multiple)", c->m->Vp);
}

static void
check_dims(Ctx *c)
{
	const Spec *s = c->s;
	Model *m = c->m;

	if (s->width % 8 != 0)
		ERR(c, "model.width", "width %d is not a multiple of 8", s->width);
	if (s->head_dim <= 0)
		ERR(c, "model.heads", "width %d is not a multiple of heads %d: "
		    "give head_dim", s->width, s->heads);
	else if (s->head_dim % 8 != 0 || s->head_dim > 256)
		ERR(c, "model.head_dim", "head_dim %d is not a multiple of 8 up to 256",
		    s->head_dim);
	if (s->heads % s->kv_heads != 0)
		ERR(c, "model.kv_heads", "kv_heads %d does not divide heads %d",
		    s->kv_heads, s->heads);
	if (s->rotary != ROT_NONE && (m->rot > s->head_dim || m->rot % 2 != 0))
		ERR(c, "model.rotary.dims", "rotary dims %d is not an even number up to "
		    "head_dim %d", m->rot, s->head_dim);
	check_attention(c);
	check_fp8(c);
	if (s->bos >= s->vocab && s->packing == PACK_DOCUMENTS)
		ERR(c, "data.bos", "bos %d is not below vocab %d", s->bos, s->vocab);
	check_selections(c);
}

static void
smear_params(Ctx *c)
{
	Model *m = c->m;
	int n = c->s->smear_channels;

	m->smear_weight = m->smear_lambda = -1;
	if (n <= 0)
		return;
	if (n > m->C)
		ERR(c, "model.smear.channels", "%d channels of %d", n, m->C);
	m->smear_weight = param_new(c, "smear.weight", ROLE_COEF, 1, n, 0, 0);
	m->smear_lambda = param_new(c, "smear.lambda", ROLE_COEF, 1, 1, 0, 0);
}

/* what an attention branch may have beside its two matrices */
static void
attention_params(Ctx *c, Sub *u, int i)
{
	Model *m = c->m;
	const Spec *s = c->s;
	char b[96];

#define NAMED(what) (snprintf(b, sizeof b, "layers.%d.attn." what, i), b)
	if (sel_has(&s->gate_layers, i, false))
		u->gate = param_new(c, NAMED("gate"), ROLE_COEF, 2, m->H, s->gate_channels, 0);
	if (sel_has(&s->sa_layers, i, false)) {
		u->sa = param_new(c, NAMED("sa_lambda"), ROLE_COEF, 1, 2, 0, 0);
		m->param[u->sa].values = NEWN(c->a, double, 2);
		memcpy(m->param[u->sa].values, s->sa_init, sizeof s->sa_init);
	}
	if (sel_has(&s->value_layers, i, false)) {
		u->value_embed = param_new(c, NAMED("value_embed"), ROLE_TABLE, 2, m->Vp, m->K * m->D, 0);
		m->param[u->value_embed].std = s->value_std;
		u->value_gate = param_new(c, NAMED("value_gate"), ROLE_COEF, 2, m->K, s->value_channels, 0);
	}
	u->value_split = u->value_embed >= 0 && sel_has(&s->split_layers, i, false);
	if (sel_has(&s->offset_layers, i, false))
		u->offset = s->offset_first;
	u->paired = sel_has(&s->paired_layers, i, false);
	m->paired |= u->paired;
#undef NAMED
}

static void
matrices(Ctx *c)
{
	Model *m = c->m;
	const Spec *s = c->s;
	double std = s->init_std;
	Sub *at, *ml;
	int i, k, id, up = s->mlp == MLP_SWIGLU ? 2 * m->F : m->F;
	char b[96];

	m->embed = param_new(c, "embed", ROLE_TABLE, 2, m->Vp, m->C, 0);
	m->param[m->embed].std = s->embed_std;
	m->head = m->embed;
	if (!s->tied) {
		m->head = param_new(c, "head", ROLE_MATRIX, 2, m->Vp, m->C, 0);
		m->param[m->head].std = s->head_std;
	}
	smear_params(c);
	for (i = 0; i < m->L; i++) {
		at = &m->sub[2 * i];
		ml = at + 1;
		at->qkv = at->out = at->up = at->down = at->norm = -1;
		at->gate = at->sa = at->value_embed = at->value_gate = at->offset = -1;
		ml->qkv = ml->out = ml->up = ml->down = ml->norm = -1;
#define NAMED(what) (snprintf(b, sizeof b, "layers.%d.%s", i, what), b)
		if (sel_has(&s->attn_layers, i, false)) {
			if (s->norm_weight)
				at->norm = param_ones(c, NAMED("attn.norm"), m->C);
			at->qkv = param_new(c, NAMED("attn.qkv"), ROLE_MATRIX, 2,
			                    (m->H + 2 * m->K) * m->D, m->C, 0);
			m->param[at->qkv].std = std > 0 ? std : 0.5 / sqrt(m->C);
			at->out = param_new(c, NAMED("attn.out"), ROLE_MATRIX, 2,
			                    m->C, m->H * m->D, 0);
			m->param[at->out].std = (s->init_attn_out == OUT_RANDOM) *
			        (std > 0 ? std : 0.5 / sqrt(m->H * m->D));
			attention_params(c, at, i);
		}
		if (sel_has(&s->mlp_layers, i, false)) {
			if (s->norm_weight)
				ml->norm = param_ones(c, NAMED("mlp.norm"), m->C);
			ml->up = param_new(c, NAMED("mlp.up"), ROLE_MATRIX, 2,
			                   up, m->C, 0);
			m->param[ml->up].std = std > 0 ? std : 0.5 / sqrt(m->C);
			ml->down = param_new(c, NAMED("mlp.down"), ROLE_MATRIX, 2,
			                     m->F, m->C, 0);
			m->param[ml->down].std = (s->init_mlp_out == OUT_RANDOM) *
			        (std > 0 ? std : 0.5 / sqrt(m->F));
		}
#undef NAMED
		for (k = 0; k < 4; k++) {
			id = k == 0 ? at->qkv : k == 1 ? at->out : k == 2 ? ml->up : ml->down;
			if (id >= 0)
				m->param[id].uniform = s->init_uniform;
		}
	}
	m->final_norm = s->norm_weight ? param_ones(c, "final_norm", m->C) : -1;
}

static void
dimensions(Ctx *c)
{
	const Spec *s = c->s;
	Model *m = c->m;

	m->spec = s;
	m->L = s->layers;
	m->S = 2 * s->layers;
	m->C = s->width;
	m->H = s->heads;
	m->K = s->kv_heads;
	m->D = s->head_dim;
	m->F = s->hidden;
	m->V = s->vocab;
	m->Vp = (s->vocab + s->vocab_multiple - 1) / s->vocab_multiple *
	        s->vocab_multiple;
	m->n = s->lanes;
	m->rot = s->rotary == ROT_NONE ? 0 : s->rotary_dims;
	m->val_T = s->val_batch;
	m->val_seq = s->val_seq_len;
	m->sub = NEWN(c->a, Sub, m->S);
}

/* Of the canonical spec: comments, key order and defaults spelled out do not
 * change it. */
static void
model_hash(Model *m)
{
	Buf b = {0};

	spec_print(m->spec, &b);
	sha256_hex(b.s, b.len, m->hash);
	buf_free(&b);
}

Model *
model_build(Arena *a, Diag *d, const Spec *s)
{
	Ctx c = { .a = a, .d = d, .s = s, .m = NEW(a, Model) };
	Model *m = c.m;

	dimensions(&c);
	check_dims(&c);
	model_stages(a, d, m);
	hc_lanes(&c);
	if (diag_count(d))
		return NULL;
	matrices(&c);
	hc_build(&c);
	model_optim(a, d, m);
	if (diag_count(d))
		return NULL;
	model_hash(m);
	m = model_stage(a, m, m->planned);
	m->plan_T = m->T;
	return m;
}

void
model_verify(const Model *m)
{
	int i, k, l;
	const Sub *u;

	for (i = 0; i < m->nparam; i++)
		if (m->param[i].n <= 0 || m->param[i].off % 256 != 0)
			bug("model: parameter %s", m->param[i].name);
	for (i = 0; i < m->S; i++) {
		u = &m->sub[i];
		if (u->n != 1 && u->n != m->n)
			bug("model: sublayer %d has %d lanes", i, u->n);
		for (k = 0; k < u->n; k++)
			for (l = 0; l < u->n; l++)
				if (u->res[k][l].param >= m->nparam)
					bug("model: sublayer %d: res", i);
		if (!u->dead && (u->attn ? u->qkv : u->up) < 0)
			bug("model: sublayer %d is live without weights", i);
	}
}

static void
ref_print(const Model *m, Ref r, FILE *f)
{
	if (r.param < 0)
		fprintf(f, " %g", r.num);
	else
		fprintf(f, " %s[%d]", m->param[r.param].name, r.idx);
}

void
model_print(const Model *m, FILE *f)
{
	static const char *const kind[] = { "adamw", "cautious_adam", "normuon" };
	static const char *const held[] = { "", " bf16", " upper" };
	static const char *const site[] = { "", " before", " on branch" };
	const Param *p;
	const Sub *u;
	int i, k;

	fprintf(f, "model L %d C %d H %d K %d D %d F %d V %d Vp %d n %d T %d seq %d\n",
	        m->L, m->C, m->H, m->K, m->D, m->F, m->V, m->Vp, m->n, m->T, m->seq);
	for (i = 0; i < m->nparam; i++) {
		p = &m->param[i];
		fprintf(f, "param %s [", p->name);
		for (k = 0; k < p->ndim; k++)
			fprintf(f, "%s%d", k ? "," : "", p->dim[k]);
		fprintf(f, "] std %g %s every %d lr %g lr_mul %g betas %g %g wd %g%s\n", p->std, kind[p->kind],
		        p->every, p->lr, p->lr_mul, p->betas[0], p->betas[1], p->weight_decay, held[p->held]);
	}
	for (i = 0; i < m->S; i++) {
		u = &m->sub[i];
		fprintf(f, "sub %d %s%s lanes %d", i, u->attn ? "attn" : "mlp",
		        u->dead ? " dead" : "", u->n);
		fputs(" pre", f);
		for (k = 0; k < u->n; k++)
			ref_print(m, u->pre[k], f);
		fputs(" post", f);
		for (k = 0; k < u->n; k++)
			ref_print(m, u->post[k], f);
		fputs(" lambda", f);
		for (k = 0; k < u->n; k++)
			ref_print(m, u->lambda[k], f);
		for (k = 0; k < u->nterm; k++)
			fprintf(f, " +%s%s", m->spec->source[u->term[k].source].name, site[u->term[k].site]);
		if (u->read >= 0)
			fprintf(f, " reads %s", m->spec->read[u->read].name);
		fputc('\n', f);
	}
}
