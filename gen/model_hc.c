/* The Hyper-Connections of a Model: which lanes there are where, the tables of
 * coefficients and what each sublayer takes of them, sources, skips, output. */
#include "model.h"

#include <stdio.h>
#include <string.h>

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

/* tables of coefficients */

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
	if (k->init.kind == INIT_KINDS && nrow != c->m->S) {
		ERR(c, path, "numbers for attention and mlp, and a table of one row per layer");
		return t;
	}
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

/* lanes */

static void
check_coef(Ctx *c, const Coef *k, const char *section)
{
	char path[128];

	snprintf(path, sizeof path, "%s.layers", section);
	sel_check(c, &k->layers, c->m->L, "layer", path);
	snprintf(path, sizeof path, "%s.sublayers", section);
	sel_check(c, &k->sublayers, c->m->S, "sublayer", path);
}

void
hc_check(Ctx *c)
{
	const Spec *s = c->s;
	char path[128];
	int j;

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

void
hc_lanes(Ctx *c)
{
	find_live(c);
	find_range(c);
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

/* coefficients of sublayers */

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
			u->post[k] = (in || (s->post_outside && u->n == 1)) && acts(c, &s->post, i) ?
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
check_source(Ctx *c, const Source *src)
{
	char path[128];

	snprintf(path, sizeof path, "hc.sources.%s.lane", src->name);
	if (src->lane >= c->s->lanes)
		ERR(c, path, "lane %d does not exist: there %s %d", src->lane, c->s->lanes == 1 ? "is" : "are",
		    c->s->lanes);
	if (src->lane >= 0 && src->site == ON_BRANCH)
		ERR(c, path, "lane %d of a source that is added on the branch", src->lane);
}

/* its coefficient for lane k, of this row of its table */
static Ref
source_coef(const Ctx *c, const Source *src, const Tab *tab, int row, int k)
{
	if (src->lane >= 0 && k != src->lane)
		return ref_num(0);
	return ref_tab(c, tab, row, tab->k == 1 ? 0 : k, 0);
}

static void
source_terms(Ctx *c, int j)
{
	Model *m = c->m;
	const Source *src = &c->s->source[j];
	bool layer = src->granularity == GR_LAYER, on;
	bool one = src->shared || src->lane >= 0 || src->site == ON_BRANCH;
	char name[128], path[128];
	Term *t;
	Tab tab;
	Sub *u;
	int i, k;

	snprintf(name, sizeof name, "hc.sources.%s.coef", src->name);
	snprintf(path, sizeof path, "hc.sources.%s.init", src->name);
	tab = table_new(c, name, path, &src->coef, layer ? m->L : m->S,
	                one ? 1 : m->n, 0);
	check_source(c, src);
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
			t->c[k] = source_coef(c, src, &tab, layer ? i / 2 : i, k);
	}
	on = src->first != FIRST_IN_PLACE && c->live[0] && acts(c, &src->coef, 0);
	for (k = 0; k < MaxLanes; k++)
		m->init_term[j][k] = on && k < m->n0 ? source_coef(c, src, &tab, 0, k) : ref_num(0);
}

/* skips */

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

/* Sublayer s reads read i, whose value has to be there before its branch. */
static bool
read_fits(Ctx *c, int i, int s)
{
	const Skip *k = &c->s->read[i];
	bool after = k->from.when == WHEN_AFTER;
	char path[128];
	int had = c->m->sub[s].read;

	snprintf(path, sizeof path, "hc.reads.%s.sublayers", k->name);
	if (had >= 0)
		ERR(c, path, "sublayer %d reads %s already", s, c->s->read[had].name);
	else if (k->from.sublayer + after > s)
		ERR(c, path, "sublayer %d is not behind sublayer %d %s, where the value is taken", s,
		    k->from.sublayer, after ? "after" : "before");
	return had < 0 && k->from.sublayer + after <= s;
}

static void
reads(Ctx *c)
{
	Model *m = c->m;
	const Skip *k;
	char path[128];
	int i, s;

	for (s = 0; s < m->S; s++)
		m->sub[s].read = -1;
	for (i = 0; i < c->s->nread; i++) {
		k = &c->s->read[i];
		if (k->none)
			continue;
		check_point(c, "reads", k->name, "from", &k->from);
		snprintf(path, sizeof path, "hc.reads.%s.sublayers", k->name);
		sel_check(c, &k->sublayers, m->S, "sublayer", path);
		for (s = 0; s < m->S; s++) {
			if (!c->live[s] || !sel_has(&k->sublayers, s, s % 2 == 0))
				continue;
			if (!read_fits(c, i, s))
				break;
			m->sub[s].read = i;
		}
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

void
hc_build(Ctx *c)
{
	Model *m = c->m;
	const Spec *s = c->s;
	int j, k;

	m->n0 = lanes_at(c, 0);
	m->nout = lanes_at(c, m->L - 1);
	sublayers_hc(c);
	lambdas(c);
	for (j = 0; j < s->nsource; j++) {
		m->table[j] = -1;
		if (!s->source[j].none)
			source_terms(c, j);
		else
			for (k = 0; k < MaxLanes; k++)
				m->init_term[j][k] = ref_num(0);
	}
	m->lane_init = -1;
	if (s->lane_init_learned)
		m->lane_init = param_new(c, "hc.lane_init", ROLE_COEF, 2, m->n, m->C, 0);
	output(c);
	skips(c);
	reads(c);
}

int
table_source(const Model *m, int param)
{
	int j;

	for (j = 0; j < m->spec->nsource; j++)
		if (m->table[j] == param)
			return j;
	bug("model: %s is no table of a source", m->param[param].name);
}
