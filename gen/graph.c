/* Model -> Graph: one training (or evaluation, or sampling) pass as SSA.
 *
 * Every formula is the one of docs/spec.md, in its order.  Nothing is folded
 * here: a frozen coefficient is a num and a learned one a coef, and simplify.c
 * does the rest. */
#include "hcgen.h"

#include <math.h>
#include <string.h>

/* building blocks */

static int
ref(Graph *g, Ref r)
{
	int c;

	if (r.param < 0)
		return num(g, r.num);
	c = coef(g, r.param, r.idx);
	return g->model->spec->coef_bf16 && r.param != g->model->output_param ?
	       point(g, OP_BF16, c, -1) : c;
}

static int
keep(Graph *g, int v, const char *name)
{
	val_named(g, v, name);
	g->v[v].keep = true;
	return v;
}

/* 1/sqrt(mean of squares + eps), per group of channels */
static int
inv_rms(Graph *g, int x, int groups, const char *name)
{
	double count = g->v[x].width / groups;
	int ms = mul(g, num(g, 1 / count), dot(g, x, x, groups));

	return keep(g, point(g, OP_RSQRT, add(g, ms,
	            num(g, g->model->spec->norm_eps)), -1), name);
}

static int
rmsnorm(Graph *g, int x, int weight, const char *name)
{
	int n = mul(g, inv_rms(g, x, 1, "rstd"), x);

	if (weight >= 0)
		n = mul(g, pvec(g, weight, 0), n);
	return val_named(g, n, name);
}

/* x W^T with W [n, k], or, by_input, x W with W [k, n]; factor: of the matrix, or -1 */
static int
gemm(Graph *g, int x, int param, bool by_input, int factor, const char *name)
{
	int w = mat(g, param), y;

	if (factor >= 0) {
		g->name = "scaled";
		w = heavy(g, OP_SCALED, K_MAT, g->v[w].width, w, factor);
	}
	y = heavy(g, OP_GEMM, K_VEC, g->model->param[param].dim[by_input], x, w);
	g->v[y].attr[0] = by_input;
	return val_named(g, y, name);
}

typedef struct {
	Graph *g;
	const Model *m;
	const Spec *s;
	int X[MaxLanes], n;
	int x0, src[MaxSources];
	int cosv[2], sinv[2];   /* rotary tables, and those of paired heads */
	int value[MaxSkips], out_value[MaxSkips], read_value[MaxSkips]; /* of skips, backouts, reads */
} Build;

static const char *const lane_name[MaxLanes] = {
	"lane0", "lane1", "lane2", "lane3", "lane4", "lane5", "lane6", "lane7",
};

static int
head_norm_rotate(Build *b, int x, bool paired, const char *name)
{
	Graph *g = b->g;
	int groups = g->v[x].width / b->m->D;

	if (b->s->qk_norm)
		x = mul(g, inv_rms(g, x, groups, name), x);
	if (b->s->rotary != ROT_NONE)
		x = rotate(g, x, b->cosv[paired], b->sinv[paired], b->m->D,
		           b->s->rotary == ROT_ADJACENT, 1);
	return x;
}

/* W[first:first + n] . x[0:n] of each token, for each row of W [h, N] */
static int
channels(Graph *g, int x, int param, int h, int first, int n, const char *name)
{
	int t = heavy(g, OP_GATE, K_ROWVAL, h, x, mat(g, param));

	g->v[t].attr[0] = n;
	g->v[t].attr[1] = first;
	return val_named(g, t, name);
}

static int
opened(Graph *g, int x, const char *name)
{
	return keep(g, point(g, OP_SIGMOID, x, -1), arena_printf(g->mem, "%s_open", name));
}

/* sigmoid(W . x[0:N]) of each token, for each row of W [h, N] */
static int
channels_gate(Graph *g, int x, int param, int h, const char *name)
{
	const Param *w = &g->model->param[param];

	return opened(g, channels(g, x, param, h, 0, w->dim[w->ndim - 1], name), name);
}

static int
gather_token(Graph *g, int param, const char *name)
{
	const Param *w = &g->model->param[param];
	int t = heavy(g, OP_GATHER, K_VEC, w->dim[1], mat(g, param), -1);

	g->v[t].attr[0] = IDX_TOKENS;
	g->v[t].attr[1] = w->dim[0];
	return val_named(g, t, name);
}

/* v + 2*sigmoid(W . a[0:N])*ve, or, split, the first halves of W's columns and of a's
 * channels and then as many of ve's */
static int
value_embed(Build *b, int v, int a, const Sub *u)
{
	Graph *g = b->g;
	int K = b->m->K, w = u->value_gate, n = b->m->param[w].dim[1] / 2, open, ve;

	ve = gather_token(g, u->value_embed, "ve");
	if (u->value_split)
		open = opened(g, add(g, channels(g, a, w, K, 0, n, "value_gate"),
		              channels(g, ve, w, K, n, n, "value_gate_ve")), "value_gate");
	else
		open = channels_gate(g, a, w, K, "value_gate");
	return add(g, v, mul(g, mul(g, num(g, 2), open), ve));
}

static int
attention(Build *b, int a, const Sub *u)
{
	const Model *m = b->m;
	Graph *g = b->g;
	int qkv, q, k, v, at, o, HD = m->H * m->D, KD = m->K * m->D;

	g->glue = GLUE_BRANCH;
	qkv = gemm(g, a, u->qkv, false, u->sa < 0 ? -1 : coef(g, u->sa, 0), "qkv");
	q = head_norm_rotate(b, slice(g, qkv, 0, HD), u->paired, "rstd_q");
	k = head_norm_rotate(b, slice(g, qkv, HD, KD), u->paired, "rstd_k");
	v = slice(g, qkv, HD + KD, KD);
	if (u->offset >= 0) {
		val_named(g, k, "k_own");
		k = shift(g, OP_SHIFT, k, 1, EDGE_KEEP, false,
		          u->offset ? SHIFT_HEADS(m->D, u->offset) : 0);
	}
	if (u->value_embed >= 0)
		v = value_embed(b, v, a, u);
	val_named(g, q, "q");
	val_named(g, k, "k");
	val_named(g, v, "v");
	at = heavy(g, OP_ATTN, K_TUPLE, HD, q, k);
	g->v[at].arg[2] = v;
	g->v[at].attr[0] = u->window;
	g->v[at].attr[1] = u->paired;
	g->v[at].num = m->attn_scale;
	o = val_named(g, out(g, at, 0), "o");
	if (u->gate >= 0)
		o = val_named(g, mul(g, channels_gate(g, a, u->gate, m->H, "out_gate"), o), "o_gated");
	return gemm(g, o, u->out, false, u->sa < 0 ? -1 : coef(g, u->sa, 1), "h");
}

static int
mlp(Build *b, int a, const Sub *u)
{
	Graph *g = b->g;
	int F = b->m->F, up, r, x, t;

	g->glue = GLUE_BRANCH;
	up = gemm(g, a, u->up, false, -1, "up");
	switch (b->s->mlp) {
	case MLP_RELU2:
		r = point(g, OP_RELU, up, -1);
		r = mul(g, r, r);
		break;
	case MLP_GELU:          /* the number is sqrt(2/pi) */
		x = mul(g, mul(g, num(g, 0.044715), up), mul(g, up, up));
		t = point(g, OP_TANH, mul(g, num(g, 0.79788456080286535588),
		          add(g, up, x)), -1);
		r = mul(g, mul(g, num(g, 0.5), up), add(g, num(g, 1), t));
		break;
	default:
		x = slice(g, up, 0, F);
		r = mul(g, mul(g, x, point(g, OP_SIGMOID, x, -1)),
		        slice(g, up, F, F));
		break;
	}
	return gemm(g, val_named(g, r, "act"), u->down, true, -1, "h");
}

static int
gate(Build *b, const Skip *k, int param, int weight)
{
	Graph *g = b->g;
	int v = param >= 0 ? coef(g, param, 0) : num(g, (float)k->gate.init), t;

	if (k->gate.kind == GATE_SCALAR)
		return v;
	v = point(g, OP_SIGMOID, v, -1);
	if (k->gate.kind == GATE_SIGMOID)
		return v;
	t = dot(g, slice(g, b->x0, 0, k->gate.channels), pvec(g, weight, 0), 1);
	t = mul(g, num(g, 2), point(g, OP_SIGMOID, t, -1));
	return keep(g, mul(g, v, t), "gate");
}

/* lane j of X, or the mean of its n lanes */
static int
lane_value(const Build *b, const int *X, int n, int j)
{
	int k, v;

	if (j >= 0)
		return X[n == 1 ? 0 : j];
	for (v = X[0], k = 1; k < n; k++)
		v = add(b->g, v, X[k]);
	return n == 1 ? v : mul(b->g, num(b->g, 1. / n), v);
}

static bool
is_at(const Point *p, int s, int when)
{
	return p->sublayer == s && (int)p->when == when;
}

/* of backouts and reads, which hold nothing that enters where they are taken */
static void
take_from(const Build *b, const Skip *k, int n, int s, int when, int *value)
{
	int i;

	for (i = 0; i < n; i++)
		if (!k[i].none && is_at(&k[i].from, s, when))
			value[i] = lane_value(b, b->X, b->n, k[i].from.lane);
}

/* what leaves at the end of sublayer s, and backouts and reads from its beginning */
static void
take_values(Build *b, int s, int when)
{
	const Skip *k;
	int i;

	for (i = 0; when == WHEN_AFTER && i < b->s->nskip; i++) {
		k = &b->s->skip[i];
		if (!k->none && is_at(&k->from, s, when))
			b->value[i] = lane_value(b, b->X, b->n, k->from.lane);
	}
	take_from(b, b->s->backout, b->s->nbackout, s, when, b->out_value);
	take_from(b, b->s->read, b->s->nread, s, when, b->read_value);
}

/* What leaves `before` s is taken in the order of the map, so that it holds
 * the skips that entered ahead of it.  At a dead sublayer none enters. */
static void
skips_pass(Build *b, int s, int when)
{
	const Skip *k;
	Graph *g = b->g;
	int i, l, v;

	for (i = 0; i < b->s->nskip; i++) {
		k = &b->s->skip[i];
		if (k->none)
			continue;
		if (when == WHEN_BEFORE && is_at(&k->from, s, when))
			b->value[i] = lane_value(b, b->X, b->n, k->from.lane);
		if (!is_at(&k->to, s, when) || b->m->sub[s].dead)
			continue;
		v = mul(g, gate(b, k, b->m->gate[0][i], b->m->gate_w[0][i]), b->value[i]);
		for (l = 0; l < b->n; l++)
			if (k->to.lane == LANE_ALL || b->n == 1 || k->to.lane == l)
				b->X[l] = add(g, b->X[l], v);
	}
}

/* lambda_k*X_k + sum of source terms, those whose site it is */
static void
before_read(Build *b, const Sub *u)
{
	Graph *g = b->g;
	int i, k;

	for (k = 0; k < b->n; k++)
		if (u->lambda_site == BEFORE_READ)
			b->X[k] = mul(g, ref(g, u->lambda[k]), b->X[k]);
	for (i = 0; i < u->nterm; i++) {
		if (u->term[i].site != BEFORE_READ)
			continue;
		for (k = 0; k < b->n; k++)
			b->X[k] = add(g, b->X[k], mul(g, ref(g, u->term[i].c[k]),
			              b->src[u->term[i].source]));
	}
}

/* what the branch sees, before its norm */
static int
branch_input(const Build *b, const Sub *u)
{
	Graph *g = b->g;
	int k, read;

	if (u->read >= 0)
		return b->read_value[u->read];
	read = mul(g, ref(g, u->pre[0]), b->X[0]);
	for (k = 1; k < b->n; k++)
		read = add(g, read, mul(g, ref(g, u->pre[k]), b->X[k]));
	return read;
}

static bool
has_terms(const Sub *u, enum Site site)
{
	int i;

	for (i = 0; i < u->nterm; i++)
		if (u->term[i].site == site)
			return true;
	return false;
}

/* h + sum of source terms, those whose site the branch is */
static int
on_branch(const Build *b, const Sub *u, int h)
{
	Graph *g = b->g;
	int i;

	for (i = 0; i < u->nterm; i++)
		if (u->term[i].site == ON_BRANCH)
			h = add(g, h, mul(g, ref(g, u->term[i].c[0]), b->src[u->term[i].source]));
	return h;
}

/* What lane k gets of a term at the write, or -1.  apart: post*(h + c*src) is written
 * post*h + (post*c)*src. */
static int
write_factor(Build *b, const Sub *u, const Term *t, int k, bool apart)
{
	if (t->site == AT_WRITE)
		return ref(b->g, t->c[k]);
	if (t->site == ON_BRANCH && apart)
		return mul(b->g, ref(b->g, u->post[k]), ref(b->g, t->c[0]));
	return -1;
}

/* Where sources enter on the branch and at several lanes too, the gradients of the
 * lanes are needed one by one for the latter, and the former take no further
 * vectors if they are terms of the lanes like those. */
static void
write_lanes(Build *b, const Sub *u, int h)
{
	Graph *g = b->g;
	bool apart = b->n > 1 && has_terms(u, AT_WRITE);
	int Y[MaxLanes] = {0}, i, k, l, c;

	if (!apart)
		h = on_branch(b, u, h);
	for (k = 0; k < b->n; k++) {
		Y[k] = mul(g, ref(g, u->res[k][0]), b->X[0]);
		for (l = 1; l < b->n; l++)
			Y[k] = add(g, Y[k], mul(g, ref(g, u->res[k][l]), b->X[l]));
		if (u->lambda_site == AT_WRITE)
			Y[k] = mul(g, ref(g, u->lambda[k]), Y[k]);
		Y[k] = add(g, Y[k], mul(g, ref(g, u->post[k]), h));
		for (i = 0; i < u->nterm; i++)
			if ((c = write_factor(b, u, &u->term[i], k, apart)) >= 0)
				Y[k] = add(g, Y[k], mul(g, c, b->src[u->term[i].source]));
	}
	memcpy(b->X, Y, sizeof Y);
}

static void
keep_lanes(Build *b)
{
	int k;

	for (k = 0; k < b->n; k++)
		keep(b->g, b->X[k], lane_name[k]);
}

static void
sublayer(Build *b, int s)
{
	const Sub *u = &b->m->sub[s];
	Graph *g = b->g;
	int a, h;

	g->sub = s;
	g->glue = GLUE_LANE;
	take_values(b, s, WHEN_BEFORE);
	skips_pass(b, s, WHEN_BEFORE);
	if (!u->dead) {
		before_read(b, u);
		keep_lanes(b);
		a = rmsnorm(g, val_named(g, branch_input(b, u), "u"), u->norm, "n");
		h = u->attn ? attention(b, a, u) : mlp(b, a, u);
		g->glue = GLUE_LANE;
		write_lanes(b, u, h);
		skips_pass(b, s, WHEN_AFTER);
		keep_lanes(b);
	}
	take_values(b, s, WHEN_AFTER);
}

static void
enter_lanes(Build *b)
{
	int k;

	for (k = 1; k < b->m->n; k++)
		b->X[k] = b->X[0];
	b->n = b->m->n;
}

static int
reduce_lanes(Build *b, const Ref *w)
{
	Graph *g = b->g;
	int v = mul(g, ref(g, w[0]), b->X[0]), k;

	for (k = 1; k < b->n; k++)
		v = add(g, v, mul(g, ref(g, w[k]), b->X[k]));
	return v;
}

static void
leave_lanes(Build *b)
{
	Ref w[MaxLanes];
	int k;

	for (k = 0; k < b->n; k++) {
		w[k] = (Ref){ -1, 0, 1 };
		if (b->s->leave == LEAVE_MEAN)
			w[k].num = 1. / b->n;
		else if (b->s->leave == LEAVE_LANE)
			w[k].num = k == b->s->leave_lane;
	}
	b->X[0] = keep(b->g, reduce_lanes(b, w), "x");
	b->n = 1;
}

static void
sources(Build *b)
{
	const Spec *s = b->s;
	Graph *g = b->g;
	const Source *src;
	int j, t;

	for (j = 0; j < s->nsource; j++) {
		src = &s->source[j];
		if (src->none)
			continue;
		b->src[j] = b->x0;
		if (src->kind == SRC_BIGRAM) {
			t = heavy(g, OP_GATHER, K_VEC, b->m->C,
			          mat(g, b->m->table[j]), -1);
			g->v[t].attr[0] = IDX_HASH;
			g->v[t].attr[1] = src->rows;
			if (src->signs) {
				t = heavy(g, OP_SIGNS, K_VEC, b->m->C, t, -1);
				g->v[t].attr[0] = src->signs;
			}
			g->v[t].accum = true;
			/* a prefix, so that no name of the user's is a word of C */
			b->src[j] = keep(g, t, arena_printf(g->mem, "src_%s",
			                                    src->name));
		}
		/* a detached source is the same vector behind a wall: grad.c
		 * does not pass a bcast of a vec to itself */
		if (src->detach)
			b->src[j] = val_new(g, (Val){ .op = OP_BCAST, .kind = K_VEC,
			        .width = b->m->C,
			        .arg = { b->src[j], -1, -1, -1, -1, -1 },
			        .attr = { 1, 0, 0, 0 } });
	}
}

static void
lanes_init(Build *b)
{
	const Model *m = b->m;
	Graph *g = b->g;
	int j, k, v;

	b->n = m->n0;
	for (k = 0; k < b->n; k++) {
		v = b->x0;
		if (b->s->lane_init == LI_SPLIT)
			v = mul(g, num(g, 1. / b->n), v);
		if (b->s->lane_init == LI_FIRST && k > 0)
			v = num(g, 0);
		if (m->lane_init >= 0)
			v = add(g, v, pvec(g, m->lane_init, k));
		for (j = 0; j < b->s->nsource; j++)
			if (!b->s->source[j].none)
				v = add(g, v, mul(g, ref(g, m->init_term[j][k]),
				        b->src[j]));
		b->X[k] = as_kind(g, v, K_VEC, m->C);
	}
	if (b->s->nsource || m->lane_init >= 0)
		keep_lanes(b);
}

/* e + lambda*sigmoid(w . e[0:n])*(e of the token before) */
static int
smear(Build *b, int e)
{
	const Model *m = b->m;
	Graph *g = b->g;
	int open = channels_gate(g, e, m->smear_weight, 1, "smear_gate");
	int before = val_named(g, shift(g, OP_SHIFT, e, 1, EDGE_ZERO, false, 0), "before");

	return val_named(g, add(g, e, mul(g, mul(g, coef(g, m->smear_lambda, 0), open), before)), "smeared");
}

static void
embedding(Build *b)
{
	Graph *g = b->g;
	int x = gather_token(g, b->m->embed, "emb");

	if (b->m->smear_weight >= 0)
		x = smear(b, x);
	b->x0 = b->s->embed_norm ? rmsnorm(g, x, -1, "x0") : x;
	keep(g, b->x0, "x0");
	g->v[b->x0].accum = true;
}

static void
ending(Build *b)
{
	const Model *m = b->m;
	Graph *g = b->g;
	const Skip *k;
	int i, x, y, head;

	g->sub = m->S;
	g->glue = GLUE_LANE;
	x = reduce_lanes(b, m->output);
	for (i = 0; i < b->s->nbackout; i++) {
		k = &b->s->backout[i];
		if (!k->none)
			x = sub(g, x, mul(g, gate(b, k, m->gate[1][i],
			        m->gate_w[1][i]), b->out_value[i]));
	}
	x = as_kind(g, x, K_VEC, m->C);
	y = rmsnorm(g, keep(g, x, "out"), m->final_norm, "y");
	head = mat(g, m->head);
	if (g->mode == GRAPH_LOGITS)
		g->logits = heavy(g, OP_LOGITS, K_VEC, m->Vp, y, head);
	else
		g->loss = out(g, heavy(g, OP_HEAD, K_TUPLE, m->Vp, y, head), 0);
}

Graph *
graph_build(Arena *a, const Model *m, int mode, long T)
{
	Graph *g = graph_new(a, m, mode, T);
	Build b = { .g = g, .m = m, .s = m->spec };
	int s;

	if (m->spec->rotary != ROT_NONE) {
		b.cosv[0] = table(g, 0, m->rot / 2, false);
		b.sinv[0] = table(g, 1, m->rot / 2, false);
		b.cosv[1] = table(g, 0, m->rot, true);
		b.sinv[1] = table(g, 1, m->rot, true);
	}
	embedding(&b);
	sources(&b);
	lanes_init(&b);
	for (s = 0; s < m->S; s++) {
		if (m->sub[s].enter)
			enter_lanes(&b);
		sublayer(&b, s);
		if (m->sub[s].leave)
			leave_lanes(&b);
	}
	ending(&b);
	g->nfwd = g->n;
	return g;
}
