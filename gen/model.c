/* Spec -> Model: every dimension a number, every coefficient a parameter
 * element or a constant, every parameter named, shaped, initialised and given
 * its optimizer settings (optim.c).
 *
 * After this stage there are no user errors: what only holds between several
 * keys (divisibility, lanes that exist, sublayers in order) is checked here
 * and reported at the key that says it. */
#include "hcgen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
	Arena *a;
	Diag *d;
	const Spec *s;
	Model *m;
	int capparam;
	bool live[2 * MaxLayers];
	int first, last;        /* layers with lanes */
} Ctx;

#define ERR(c, path, ...) diag_error((c)->d, spec_loc((c)->s, (path)), __VA_ARGS__)

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

static void
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

static bool
acts(const Ctx *c, const Coef *k, int s)
{
	return sel_has(&k->sublayers, s, s % 2 == 0) &&
	       sel_has(&k->layers, s / 2, false) && s < c->m->S;
}

/* does a per-layer term act at sublayer s: the first live one of its layer
 * that the selections hold */
static bool
acts_layer(const Ctx *c, const Coef *k, int s)
{
	if (!c->live[s] || !acts(c, k, s))
		return false;
	return s % 2 == 0 || !(c->live[s - 1] && acts(c, k, s - 1));
}

/* parameters */

static int
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

static double
init_at(const Init *in, int row, int nrow, int k, int l, int rowlen, int n)
{
	switch (in->kind) {
	case INIT_CONST:
		return in->a;
	case INIT_IDENTITY:
		return k == l ? in->a : 0;
	case INIT_ROUND_ROBIN:
		return k == row % n ? 1 : 0;
	case INIT_RAMP:
		return nrow > 1 ? in->a + (in->b - in->a) * row / (nrow - 1) : in->a;
	case INIT_KINDS:
		return row % 2 ? in->b : in->a;
	case INIT_VALUES:
		return in->v[(in->n == rowlen ? 0 : row * rowlen) +
		             (rowlen > n && n > 0 ? k * n + l : k)];
	}
	return 0;
}

/* A coefficient table of nrow rows of k (or k x k2) entries: its values, and
 * the parameter when it is learned (else -1). */
typedef struct { int param, nrow, k, k2; double *v; } Tab;

static Tab
table_new(Ctx *c, const char *name, const char *path, const Coef *k, int nrow,
          int k1, int k2)
{
	Tab t = { -1, nrow, k1, k2, NULL };
	int len = k1 * (k2 ? k2 : 1), r, i, n = c->m->n;
	Param *p;

	t.v = NEWN(c->a, double, nrow * len);
	if (k->init.kind == INIT_VALUES && k->init.n != len &&
	    k->init.n != nrow * len) {
		ERR(c, path, "%d numbers, expected %d (one row) or %d (the table "
		    "of %d rows)", k->init.n, len, nrow * len, nrow);
		return t;
	}
	for (r = 0; r < nrow; r++)
		for (i = 0; i < len; i++)
			t.v[r * len + i] = init_at(&k->init, r, nrow,
			        k2 ? i / k2 : i, k2 ? i % k2 : 0, len, k2 ? k2 : n);
	if (!k->learned)
		return t;
	if (k2)
		t.param = param_new(c, name, ROLE_COEF, 3, nrow, k1, k2);
	else if (k1 > 0 && strcmp(name, "hc.resid_lambda") == 0 && k1 == 1)
		t.param = param_new(c, name, ROLE_COEF, 1, nrow, 0, 0);
	else
		t.param = param_new(c, name, ROLE_COEF, 2, nrow, k1, 0);
	p = &c->m->param[t.param];
	p->values = t.v;
	p->lr_mul = k->lr_mul;
	if (k->has_betas) {
		p->betas[0] = k->betas[0];
		p->betas[1] = k->betas[1];
	}
	return t;
}

static Ref
ref_num(double x)
{
	return (Ref){ -1, 0, x };
}

static Ref
ref_tab(const Ctx *c, const Tab *t, int row, int k, int l)
{
	int i = (row * t->k + k) * (t->k2 ? t->k2 : 1) + l;
	double x = t->v[i];

	if (t->param >= 0)
		return (Ref){ t->param, i, 0 };
	return ref_num(c->s->coef_bf16 ? round_bf16(x) : (float)x);
}

/* dimensions */

static void
check_coef(Ctx *c, const Coef *k, const char *section)
{
	char path[128];

	snprintf(path, sizeof path, "%s.layers", section);
	sel_check(c, &k->layers, c->m->L, "layer", path);
	snprintf(path, sizeof path, "%s.sublayers", section);
	sel_check(c, &k->sublayers, c->m->S, "sublayer", path);
}

static void
check_selections(Ctx *c)
{
	const Spec *s = c->s;
	char path[128];
	int j;

	sel_check(c, &s->attn_layers, c->m->L, "layer", "model.attention.layers");
	sel_check(c, &s->long_layers, c->m->L, "layer", "model.attention.long_layers");
	sel_check(c, &s->paired_layers, c->m->L, "layer", "model.attention.paired");
	sel_check(c, &s->gate_layers, c->m->L, "layer", "model.attention.gate.layers");
	sel_check(c, &s->sa_layers, c->m->L, "layer", "model.attention.sa_lambda.layers");
	sel_check(c, &s->offset_layers, c->m->L, "layer", "model.attention.key_offset.layers");
	sel_check(c, &s->value_layers, c->m->L, "layer", "model.value_embed.layers");
	sel_check(c, &s->mlp_layers, c->m->L, "layer", "model.mlp.layers");
	sel_check(c, &s->hc_layers, c->m->L, "layer", "hc.layers");
	check_coef(c, &s->res, "hc.res");
	check_coef(c, &s->pre, "hc.pre");
	check_coef(c, &s->post, "hc.post");
	check_coef(c, &s->lambda, "hc.resid_lambda");
	for (j = 0; j < s->nsource; j++) {
		snprintf(path, sizeof path, "hc.sources.%s", s->source[j].name);
		check_coef(c, &s->source[j].coef, path);
	}
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
	if (s->paired_layers.kind != SEL_NONE && (s->heads % 2 || s->kv_heads != s->heads))
		ERR(c, "model.attention.paired", "%d heads and %d kv_heads: expected an even number of both",
		    s->heads, s->kv_heads);
	if (s->offset_layers.kind != SEL_NONE && (s->offset_first >= s->head_dim || s->offset_first % 2))
		ERR(c, "model.attention.key_offset.first", "first channel %d is not an even one below head_dim %d (it is rotary.dims unless given)",
		    s->offset_first, s->head_dim);
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
	if (s->bos >= s->vocab && s->packing == PACK_DOCUMENTS)
		ERR(c, "data.bos", "bos %d is not below vocab %d", s->bos, s->vocab);
	check_selections(c);
}

static void
find_live(Ctx *c)
{
	const Spec *s = c->s;
	int i, k;

	for (i = 0; i < c->m->S; i++)
		c->live[i] = sel_has(i % 2 ? &s->mlp_layers : &s->attn_layers,
		                     i / 2, false);
	for (k = 0; k < s->ndead; k++) {
		if (s->dead[k] < 0 || s->dead[k] >= c->m->S)
			ERR(c, "hc.dead", "sublayer %d does not exist: there are %d, "
			    "counted from 0", s->dead[k], c->m->S);
		else
			c->live[s->dead[k]] = false;
	}
}

static void
find_range(Ctx *c)
{
	int i, n = 0;

	c->first = -1;
	for (i = 0; i < c->m->L; i++) {
		if (!sel_has(&c->s->hc_layers, i, false))
			continue;
		if (c->first < 0)
			c->first = i;
		c->last = i;
		n++;
	}
	if (n == 0) {
		if (c->s->lanes > 1)
			ERR(c, "hc.layers", "no layer is selected for %d lanes", c->s->lanes);
		c->first = c->m->L;
		c->last = -1;
	} else if (n != c->last - c->first + 1) {
		ERR(c, "hc.layers", "layers %d to %d are not contiguous: %d of them are "
		    "selected", c->first, c->last, n);
	}
}

/* lanes at layer i */
static int
lanes_at(const Ctx *c, int i)
{
	if (i < c->first)
		return 1;
	if (i > c->last && c->s->leave != LEAVE_KEEP)
		return 1;
	return c->m->n;
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
			                     m->C, m->F, 0);
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
sublayers_hc(Ctx *c)
{
	Model *m = c->m;
	const Spec *s = c->s;
	Tab res = table_new(c, "hc.res", "hc.res.init", &s->res, m->S, m->n, m->n);
	Tab pre = table_new(c, "hc.pre", "hc.pre.init", &s->pre, m->S, m->n, 0);
	Tab post = table_new(c, "hc.post", "hc.post.init", &s->post, m->S, m->n, 0);
	int i, k, l;
	bool in;
	Sub *u;

	for (i = 0; i < m->S; i++) {
		u = &m->sub[i];
		u->attn = i % 2 == 0;
		u->dead = !c->live[i];
		u->n = lanes_at(c, i / 2);
		u->enter = u->attn && i / 2 == c->first && c->first > 0 && m->n > 1;
		u->leave = !u->attn && i / 2 == c->last && c->last < m->L - 1 &&
		           s->leave != LEAVE_KEEP && m->n > 1;
		in = i / 2 >= c->first && i / 2 <= c->last;
		for (k = 0; k < u->n; k++) {
			for (l = 0; l < u->n; l++)
				u->res[k][l] = in && acts(c, &s->res, i) ?
				        ref_tab(c, &res, i, k, l) : ref_num(k == l);
			if (u->n == 1 && !in)
				u->pre[k] = ref_num(1);
			else
				u->pre[k] = acts(c, &s->pre, i) ?
				        ref_tab(c, &pre, i, k, 0) : ref_num(1. / u->n);
			u->post[k] = in && acts(c, &s->post, i) ?
			        ref_tab(c, &post, i, k, 0) : ref_num(1);
		}
	}
}

static void
lambdas(Ctx *c)
{
	Model *m = c->m;
	const Spec *s = c->s;
	enum Granularity gr = s->lambda_granularity;
	Tab t = {0};
	Sub *u;
	int i, k;
	bool on;

	if (gr != GR_NONE)
		t = table_new(c, "hc.resid_lambda", "hc.resid_lambda.init", &s->lambda,
		              gr == GR_LAYER ? m->L : m->S, gr == GR_LANE ? m->n : 1, 0);
	if (gr == GR_LANE && t.param >= 0 && m->n == 1) {
		m->param[t.param].ndim = 2;
		m->param[t.param].dim[1] = 1;
	}
	for (i = 0; i < m->S; i++) {
		u = &m->sub[i];
		u->lambda_site = s->lambda_site;
		on = gr == GR_LAYER ? acts_layer(c, &s->lambda, i) :
		     gr != GR_NONE && acts(c, &s->lambda, i);
		for (k = 0; k < u->n; k++)
			u->lambda[k] = !on ? ref_num(1) :
			        ref_tab(c, &t, gr == GR_LAYER ? i / 2 : i,
			                gr == GR_LANE ? k : 0, 0);
	}
}

static void
source_terms(Ctx *c, int j)
{
	Model *m = c->m;
	const Source *src = &c->s->source[j];
	bool layer = src->granularity == GR_LAYER, on;
	char name[128], path[128];
	Term *t;
	Tab tab;
	Sub *u;
	int i, k;

	snprintf(name, sizeof name, "hc.sources.%s.coef", src->name);
	snprintf(path, sizeof path, "hc.sources.%s.init", src->name);
	tab = table_new(c, name, path, &src->coef, layer ? m->L : m->S,
	                src->shared ? 1 : m->n, 0);
	if (src->kind == SRC_BIGRAM) {
		snprintf(name, sizeof name, "hc.sources.%s.table", src->name);
		m->table[j] = param_new(c, name, ROLE_TABLE, 2, src->rows, m->C, 0);
		m->param[m->table[j]].std = src->table_std;
	}
	for (i = 0; i < m->S; i++) {
		u = &m->sub[i];
		on = layer ? acts_layer(c, &src->coef, i) :
		     c->live[i] && acts(c, &src->coef, i);
		if (on && i == 0 && src->first == FIRST_LANE_INIT)
			on = false;
		if (!on)
			continue;
		t = &u->term[u->nterm++];
		t->source = j;
		t->site = src->site;
		for (k = 0; k < u->n; k++)
			t->c[k] = ref_tab(c, &tab, layer ? i / 2 : i,
			                  src->shared ? 0 : k, 0);
	}
	on = src->first != FIRST_IN_PLACE && c->live[0] && acts(c, &src->coef, 0);
	for (k = 0; k < MaxLanes; k++)
		m->init_term[j][k] = on && k < m->n0 ?
		        ref_tab(c, &tab, 0, src->shared ? 0 : k, 0) : ref_num(0);
}

static void
gate_params(Ctx *c, const char *kind, const Skip *k, int *gate, int *gate_w)
{
	char name[128], path[128];
	int p;

	*gate = *gate_w = -1;
	if (k->none)
		return;
	if (k->gate.learned) {
		snprintf(name, sizeof name, "hc.%s.%s.gate", kind, k->name);
		p = *gate = param_new(c, name, ROLE_COEF, 1, 1, 0, 0);
		c->m->param[p].values = NEW(c->a, double);
		c->m->param[p].values[0] = k->gate.init;
	}
	if (k->gate.kind == GATE_TOKEN) {
		snprintf(path, sizeof path, "hc.%s.%s.gate.channels", kind, k->name);
		if (k->gate.channels < 1 || k->gate.channels > c->s->width)
			ERR(c, path, "%d channels of %d", k->gate.channels, c->s->width);
		snprintf(name, sizeof name, "hc.%s.%s.gate_weight", kind, k->name);
		*gate_w = param_new(c, name, ROLE_COEF, 1, k->gate.channels, 0, 0);
	}
}

static void
check_point(Ctx *c, const char *kind, const char *name, const char *end,
            const Point *p)
{
	char path[128];
	int n;

	snprintf(path, sizeof path, "hc.%s.%s.%s.sublayer", kind, name, end);
	if (p->sublayer < 0 || p->sublayer >= c->m->S) {
		ERR(c, path, "sublayer %d does not exist: there are %d, counted from 0",
		    p->sublayer, c->m->S);
		return;
	}
	n = lanes_at(c, p->sublayer / 2);
	snprintf(path, sizeof path, "hc.%s.%s.%s.lane", kind, name, end);
	if (p->lane >= n && p->lane > 0 && n > 1)
		ERR(c, path, "lane %d does not exist: there are %d, counted from 0",
		    p->lane, n);
	if (p->lane >= n && n == 1 && p->lane > 0)
		ERR(c, path, "lane %d does not exist: there is one stream at sublayer %d",
		    p->lane, p->sublayer);
}

static void
skips(Ctx *c)
{
	const Spec *s = c->s;
	const Skip *k;
	char path[128];
	int i;

	for (i = 0; i < s->nskip; i++) {
		k = &s->skip[i];
		gate_params(c, "skips", k, &c->m->gate[0][i], &c->m->gate_w[0][i]);
		if (k->none)
			continue;
		check_point(c, "skips", k->name, "from", &k->from);
		check_point(c, "skips", k->name, "to", &k->to);
		if (2 * k->from.sublayer + (k->from.when == WHEN_AFTER) >=
		    2 * k->to.sublayer + (k->to.when == WHEN_AFTER)) {
			snprintf(path, sizeof path, "hc.skips.%s.to.sublayer", k->name);
			ERR(c, path, "the skip ends at sublayer %d %s, not after its "
			    "start at sublayer %d %s", k->to.sublayer,
			    k->to.when == WHEN_AFTER ? "after" : "before",
			    k->from.sublayer,
			    k->from.when == WHEN_AFTER ? "after" : "before");
		}
	}
	for (i = 0; i < s->nbackout; i++) {
		k = &s->backout[i];
		gate_params(c, "backouts", k, &c->m->gate[1][i], &c->m->gate_w[1][i]);
		if (!k->none)
			check_point(c, "backouts", k->name, "from", &k->from);
	}
}

static void
output(Ctx *c)
{
	Model *m = c->m;
	const Spec *s = c->s;
	Param *p;
	int k, n = m->nout, id;

	for (k = 0; k < n; k++)
		switch (s->output) {
		case OUTPUT_MEAN:
			m->output[k] = ref_num(1. / n);
			break;
		case OUTPUT_SUM:
			m->output[k] = ref_num(1);
			break;
		case OUTPUT_LANE:
			m->output[k] = ref_num(k == s->output_lane);
			break;
		case OUTPUT_LEARNED:
			break;
		}
	if (s->output == OUTPUT_LANE && s->output_lane >= n)
		ERR(c, "hc.output", "lane %d does not exist at the end: there %s %d",
		    s->output_lane, n == 1 ? "is" : "are", n);
	if (s->leave == LEAVE_LANE && s->leave_lane >= m->n)
		ERR(c, "hc.leave", "lane %d does not exist: there are %d, counted from 0",
		    s->leave_lane, m->n);
	m->output_param = -1;
	if (s->output != OUTPUT_LEARNED)
		return;
	/* the table has n entries; where lanes do not reach the end it is not used */
	id = m->output_param = param_new(c, "hc.output", ROLE_COEF, 1, m->n, 0, 0);
	p = &m->param[id];
	p->values = NEWN(c->a, double, m->n);
	for (k = 0; k < m->n; k++) {
		p->values[k] = 1. / m->n;
		m->output[k] = (Ref){ id, k, 0 };
	}
	if (c->last < 0 || (c->last < m->L - 1 && s->leave != LEAVE_KEEP))
		m->output[0] = ref_num(1);
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
	int j, id;

	dimensions(&c);
	check_dims(&c);
	model_stages(a, d, m);
	find_live(&c);
	find_range(&c);
	if (diag_count(d))
		return NULL;
	m->n0 = lanes_at(&c, 0);
	m->nout = lanes_at(&c, m->L - 1);
	matrices(&c);
	sublayers_hc(&c);
	lambdas(&c);
	for (j = 0; j < s->nsource; j++) {
		m->table[j] = -1;
		if (!s->source[j].none)
			source_terms(&c, j);
		else
			for (id = 0; id < MaxLanes; id++)
				m->init_term[j][id] = ref_num(0);
	}
	m->lane_init = -1;
	if (s->lane_init_learned)
		m->lane_init = param_new(&c, "hc.lane_init", ROLE_COEF, 2, m->n, m->C, 0);
	output(&c);
	skips(&c);
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
			fprintf(f, " +%s", m->spec->source[u->term[k].source].name);
		fputc('\n', f);
	}
}
