/* Graph + Decisions -> Graph: the same function, as the kernels will compute it.
 *
 * Slot by slot, every vector that a kernel must form is written out in the
 * stored vectors that the search found for it there, and what it decided to
 * store is marked with the level of its kernel.  Everything else (numbers per
 * row, heavy ops, gradients) is rebuilt around that.
 *
 * The mathematics of each rewrite stands in docs/numerics.md. */
#include "search.h"
#include "fuse.h"

#include <string.h>

typedef struct { int coef, vec; } Part;         /* of the new graph */
typedef struct { int n, cap; Part *part; } Form;

typedef struct {
	Arena *a;
	Terms *m;
	const Graph *g;
	const Decisions *d;
	Graph *n;
	int t;                  /* slot */
	int action;             /* the next of the decisions */
	int *fixed;             /* value -> new value, for good, or -1 */
	int *memo, *stamp;      /* the same, within a slot */
	/* of each node: what it is made of, in stored vectors; the same with what
	 * this slot makes named instead; its normed form */
	Form *form, *here, *norm;
	int *normed_at;         /* slot at which the normed form is read, or -1 */
	int *laid;              /* new value that a node is stored as, or -1 */
	int *pair;              /* dot of a pair, with what stands before it, or -1 */
	int *pair_sub;          /* sublayer of the kernel that forms it */
	int *part;              /* new value of a part, by its id, or -1 */
} Rewrite;

static int value(Rewrite *r, int v);

/* forms */

static void
form_add(Rewrite *r, Form *f, int coef, int vec)
{
	Part *p;
	int i;

	for (i = 0; i < f->n; i++)
		if (f->part[i].vec == vec) {
			f->part[i].coef = add(r->n, f->part[i].coef, coef);
			return;
		}
	p = PUSH(r->a, f->part, f->n, f->cap);
	p->coef = coef;
	p->vec = vec;
}

static void
form_push(Rewrite *r, Form *f, int coef, const Form *g)
{
	int i;

	for (i = 0; i < g->n; i++)
		form_add(r, f, times(r->n, coef, g->part[i].coef), g->part[i].vec);
}

static Form
form_one(Rewrite *r, int coef, int vec)
{
	Form f = {0};

	form_add(r, &f, coef, vec);
	return f;
}

static void
context(Rewrite *r, int v, const char *name)
{
	const Val *x = &r->g->v[v];

	r->n->name = name;
	r->n->sub = x->sub;
	r->n->bwd = x->bwd;
	r->n->glue = x->glue;
}

static int
as_vec(Rewrite *r, int x, int width)
{
	return r->n->v[x].kind < K_VEC ? bcast(r->n, x, K_VEC, width) : x;
}

/* the sum that a form is */
static int
form_value(Rewrite *r, const Form *f, int width)
{
	Graph *g = r->n;
	int i, x = -1, y;

	for (i = 0; i < f->n; i++) {
		y = mul(g, f->part[i].coef, f->part[i].vec);
		x = x < 0 ? y : add(g, x, y);
	}
	return x < 0 ? bcast(g, num(g, 0), K_VEC, width) : as_vec(r, x, width);
}

/* Lay v down: a value of its own, computed by the kernel of this slot and stored
 * there, that no other expression shares. */
static int
lay(Rewrite *r, int v, const char *name)
{
	Graph *g = r->n;
	Val x = g->v[v];

	if (op_info[x.op].class == CL_LEAF || op_info[x.op].class == CL_HEAVY || x.at)
		x = (Val){ .op = OP_MUL, .kind = x.kind, .width = x.width,
		           .arg = { num(g, 1), v, -1, -1, -1, -1 } };
	x.name = name;
	x.sub = g->sub;
	x.bwd = g->bwd;
	x.glue = g->glue;
	x.at = r->m->slot[r->t].level;
	x.keep = true;
	*PUSH(g->mem, g->v, g->n, g->cap) = x;
	return g->n - 1;
}

/* values */

/* v = c * rest with one number per row or for all */
static int
split(Graph *g, int v, int *c)
{
	const Val *x = &g->v[v];
	int i;

	if (x->keep)
		return v;
	if (x->op == OP_NEG) {
		*c = neg(g, *c);
		return split(g, x->arg[0], c);
	}
	for (i = 0; x->op == OP_MUL && i < 2; i++) {
		const Val *w = &g->v[x->arg[i]];

		if (w->kind <= K_SCALAR || (w->kind == K_ROWVAL && w->width == 1)) {
			v = x->arg[1 - i];
			*c = times(g, *c, x->arg[i]);
			return split(g, v, c);
		}
	}
	return v;
}

/* A dot product, where numbers per row stand before it instead of in it: of a
 * normed form it is that of the stored vector. */
static int
dot_of(Rewrite *r, int x, int y, int groups)
{
	Graph *g = r->n;
	int c = num(g, 1), d;

	x = split(g, x, &c);
	y = split(g, y, &c);
	d = dot(g, x, y, groups);
	if (g->v[d].op == OP_DOT && !g->v[d].at)
		g->v[d].at = r->m->slot[r->t].level;
	return times(g, c, d);
}

/* numbers per row stand before a slice, so that only its channels are loaded */
static int
slice_of(Graph *g, int x, int lo, int width)
{
	int c = num(g, 1), v = split(g, x, &c);

	return mul(g, c, slice(g, v, lo, width));
}

/* a sum at this slot */
static int
vector(Rewrite *r, int node)
{
	const Node *x = &r->m->node[node];
	const Val *w = &r->g->v[x->val];
	const Form *f = &r->form[node];
	int v;

	if (r->laid[node] >= 0)
		return r->laid[node];
	if (x->slot == r->t)
		f = &r->here[node];
	else if (r->normed_at[node] == r->t)
		f = &r->norm[node];
	v = form_value(r, f, w->width);
	if (f->n > 1)
		val_named(r->n, v, w->name ? w->name : "sum");
	return v;
}

static int
pair_sum(Rewrite *r, int v)
{
	const PairSum *s = NULL;
	Graph *g = r->n;
	int i, c, x = num(g, 0);

	for (i = 0; i < r->m->nsum; i++)
		if (r->m->sum[i].val == v)
			s = &r->m->sum[i];
	for (i = 0; i < s->nterm; i++)
		if (r->pair[s->term[i].pair] < 0)
			bug("rewrite: nodes %d and %d wait for slot %d and are not paired",
			    r->m->pair[s->term[i].pair].x, r->m->pair[s->term[i].pair].y,
			    r->m->pair[s->term[i].pair].slot);
	for (i = 0; i < s->nterm; i++) {
		c = value(r, s->term[i].coef);
		context(r, v, NULL);
		g->sub = r->pair_sub[s->term[i].pair];
		x = add(g, x, sumr(g, times(g, c, r->pair[s->term[i].pair])));
	}
	return x;
}

static int
rebuilt(Rewrite *r, int v)
{
	const Val w = r->m->g->v[v];
	Graph *n = r->n;
	int arg[3] = { -1, -1, -1 }, j;
	Val c;

	for (j = 0; j < op_info[w.op].arity && j < 3; j++)
		arg[j] = value(r, w.arg[j]);
	if (v < r->g->n)
		context(r, v, NULL);
	if (op_info[w.op].class == CL_POINT) {
		if (w.op == OP_MUL && w.kind < K_VEC)
			return times(n, arg[0], arg[1]);
		return point(n, w.op, arg[0], arg[1]);
	}
	switch ((int)w.op) {
	case OP_NUM:
		return num(n, w.num);
	case OP_DOT:
		return dot_of(r, arg[0], arg[1], w.attr[0]);
	case OP_SUMC:
		return sumc(n, arg[0], w.attr[0]);
	case OP_SUMG:
		return sumg(n, arg[0]);
	case OP_SUMR:
		return sumr(n, as_kind(n, arg[0], r->m->g->v[w.arg[0]].kind,
		                       r->m->g->v[w.arg[0]].width));
	case OP_BCAST:
		return bcast(n, arg[0], w.kind, w.width);
	case OP_SLICE:
		return slice_of(n, arg[0], w.attr[0], w.width);
	case OP_PAD:
		return pad(n, arg[0], w.attr[0], w.width);
	case OP_ROTATE:
		return rotate(n, arg[0], arg[1], arg[2], w.attr[0], w.attr[2] != 0, w.attr[3]);
	case OP_SHIFT:
	case OP_UNSHIFT:
		return shift(n, w.op, arg[0], w.attr[0], w.attr[1], w.attr[2] != 0, w.attr[3]);
	case OP_OUT:
		return out(n, arg[0], w.attr[0]);
	}
	c = w;                          /* leaves */
	c.keep = c.accum = false;
	n->name = w.name;
	return val_new(n, c);
}

static bool
is_for_good(const Val *v)
{
	OpClass c = op_info[v->op].class;

	return c == CL_LEAF || c == CL_HEAVY || v->kind <= K_SCALAR || v->op == OP_DOT ||
	       v->op == OP_SUMC || v->op == OP_SUMR || (v->kind == K_ROWVAL && v->keep);
}

/* the new value of v, for what this slot computes */
static int
value(Rewrite *r, int v)
{
	const Val *w = &r->m->g->v[v];
	Val *y;
	int x, node;

	if (v >= r->g->n)
		return rebuilt(r, v);           /* coefficients that terms.c made */
	if (r->fixed[v] >= 0)
		return r->fixed[v];
	if (r->stamp[v] == r->t + 1)
		return r->memo[v];
	if (op_info[w->op].class == CL_HEAVY)
		bug("rewrite: value %d is read before its step", v);
	node = r->m->nodeof[v];
	if (w->op == OP_SUMR && r->m->pairdot[w->arg[0]])
		x = pair_sum(r, v);
	else if (node >= 0 && r->m->node[node].kind == NODE_SUM)
		x = vector(r, node);
	else
		x = rebuilt(r, v);
	w = &r->m->g->v[v];
	y = &r->n->v[x];
	if (y->kind == K_ROWVAL || y->op == OP_SUMR) {
		y->keep |= w->keep && w->kind == K_ROWVAL;
		if (!y->at && (y->op == OP_SUMC || (y->op == OP_SUMR && y->kind == K_PVEC)))
			y->at = r->m->slot[r->t].level;
	}
	if (w->name)
		val_named(r->n, x, w->name);
	if (is_for_good(w))
		r->fixed[v] = x;
	r->stamp[v] = r->t + 1;
	r->memo[v] = x;
	return x;
}

/* Slots */

static bool
decided(const Rewrite *r, enum Do what, int node)
{
	const Action *x = &r->d->action[r->action];
	const Action *end = &r->d->action[r->d->n];

	for (; x < end && x->slot == r->t; x++)
		if (x->what == what && x->node == node)
			return true;
	return false;
}

/* vectors that must be loaded; those of parameters do not count */
static int
form_size(const Rewrite *r, const Form *f)
{
	int i, n = 0;

	for (i = 0; i < f->n; i++)
		n += r->n->v[f->part[i].vec].kind == K_VEC;
	return n;
}

/* hand node n on to the sums of this slot, or to those of later ones */
static void
push_node(Rewrite *r, int n, bool later)
{
	const Terms *m = r->m;
	const Node *x = &m->node[n], *y;
	const Form *hand = has_norm(m, x) && form_size(r, &r->form[n]) > 1 ? &r->norm[n] :
	                   &r->form[n];
	Form self = {0};
	int i, k, c, u;

	for (i = 0; i < x->nuser; i++) {
		u = x->user[i].sum;
		y = &m->node[u];
		if ((y->slot > r->t) != later)
			continue;
		for (k = 0; y->term[k].node != n; k++)
			;
		if (y->term[k].slot != x->slot)
			continue;
		c = value(r, y->term[k].coef);
		if (later) {
			form_push(r, &r->form[u], c, hand);
			continue;
		}
		if (!self.n)
			self = form_one(r, num(r->n, 1), value(r, x->val));
		form_push(r, &r->form[u], c, &r->form[n]);
		form_push(r, &r->here[u], c, &self);
	}
}

/* terms of a sum whose coefficients can exist from this slot on */
static void
push_late(Rewrite *r, int sum)
{
	const Slot *s = &r->m->slot[r->t];
	const LinTerm *x;
	const Form *f;
	int i, c;

	for (i = 0; i < s->nlate; i++) {
		if (s->late[i].sum != sum)
			continue;
		x = &r->m->node[sum].term[s->late[i].term];
		c = value(r, x->coef);
		f = r->normed_at[x->node] == r->t ? &r->norm[x->node] : &r->form[x->node];
		form_push(r, &r->form[sum], c, f);
		if (r->m->node[sum].slot == r->t)
			form_push(r, &r->here[sum], c, f);
	}
}

static Form
form_copy(Rewrite *r, const Form *f)
{
	Form x = {0};
	int i;

	for (i = 0; i < f->n; i++)
		form_add(r, &x, f->part[i].coef, f->part[i].vec);
	return x;
}

static void
make_node(Rewrite *r, int n)
{
	Terms *m = r->m;
	const Node *x = &m->node[n];
	const Val *w = &r->g->v[x->val];
	int v;

	push_late(r, n);
	if (x->kind != NODE_SUM)
		r->form[n] = form_one(r, num(r->n, 1), value(r, x->val));
	if (x->kind != NODE_MEM && (x->stored || decided(r, DO_STORE, n))) {
		v = value(r, x->val);
		context(r, x->val, NULL);
		r->laid[n] = r->fixed[x->val] = lay(r, as_vec(r, v, w->width), w->name);
		r->form[n] = form_one(r, num(r->n, 1), r->laid[n]);
	}
	push_node(r, n, false);
}

/* c*x was stored: x = that / c */
static void
make_norm(Rewrite *r, int n)
{
	const Node *x = &r->m->node[n];
	Graph *g = r->n;
	Product p = { .num = 1 };
	int i, c;

	factor(g, value(r, x->norm_coef), &p);
	c = num(g, 1 / p.num);
	for (i = 0; i < p.n; i++)
		c = times(g, c, val_named(g, point(g, OP_RECIP, p.f[i], -1), "rms"));
	r->norm[n] = form_one(r, c, r->laid[x->norm]);
}

/* the sublayer of what slot t must compute: its last root's, which a heavy op
 * reads next */
static int
slot_sub(const Rewrite *r)
{
	const Slot *s = &r->m->slot[r->t];

	return s->nroot ? r->g->v[s->root[s->nroot - 1]].sub : -1;
}

static void
make_pair(Rewrite *r, int p)
{
	const Pair *q = &r->m->pair[p];
	int x = value(r, r->m->node[q->x].val), y = value(r, r->m->node[q->y].val);

	context(r, r->m->node[q->x].val, NULL);
	r->n->sub = slot_sub(r);
	if (r->pair[p] >= 0)
		bug("rewrite: a dot product is formed twice");
	r->pair_sub[p] = r->n->sub;
	r->pair[p] = dot_of(r, x, y, 1);
}

/* the new value that a stored vector of the search is */
static int
stored_vec(const Rewrite *r, int id)
{
	const Terms *m = r->m;

	if (id >= m->nnode)
		return r->part[id - m->nnode];
	if (r->laid[id] >= 0)
		return r->laid[id];
	return r->form[id].part[0].vec;
}

/* a normed form that this slot makes is still at hand as what it was made of */
static void
add_at_hand(Rewrite *r, Form *f, Part p)
{
	const Slot *s = &r->m->slot[r->t];
	const Node *x;
	int i;

	for (i = 0; i < s->nmade; i++) {
		x = &r->m->node[s->made[i]];
		if (!has_norm(r->m, x) || r->laid[x->norm] != p.vec)
			continue;
		p.coef = times(r->n, p.coef, value(r, x->norm_coef));
		p.vec = value(r, x->val);
		break;
	}
	form_add(r, f, p.coef, p.vec);
}

/* add up what the search named of a pending sum, and lay it down */
static void
make_part(Rewrite *r, const Action *x)
{
	const Terms *m = r->m;
	const Node *n = &m->node[x->node];
	const Val *w = &r->g->v[n->val];
	Form *f = &r->form[x->node], in = {0}, rest = {0};
	int i, j, v;

	for (i = 0; i < f->n; i++) {
		for (j = 0; j < x->nvec && stored_vec(r, x->vec[j]) != f->part[i].vec; j++)
			;
		if (j < x->nvec)
			add_at_hand(r, &in, f->part[i]);
		else
			form_add(r, &rest, f->part[i].coef, f->part[i].vec);
	}
	if (in.n != x->nvec)
		bug("rewrite: a part of %d vectors, of which %d are there", x->nvec, in.n);
	v = form_value(r, &in, w->width);
	context(r, n->val, NULL);
	r->n->sub = slot_sub(r);
	v = lay(r, v, arena_printf(r->a, "%s_part", w->name ? w->name : "sum"));
	r->part[part_id(m, x->node, r->t) - m->nnode] = v;
	form_add(r, &rest, num(r->n, 1), v);
	*f = rest;
}

static void
run_slot(Rewrite *r, int t)
{
	const Slot *s = &r->m->slot[t];
	const Action *x;
	int i, n;

	r->t = t;
	for (i = r->action; i < r->d->n && r->d->action[i].slot == t; i++)
		if (r->d->action[i].what == DO_NORM)
			r->normed_at[r->d->action[i].node] = t;
	for (i = 0; i < s->nmade; i++)
		if (r->m->node[s->made[i]].kind == NODE_SUM)
			r->here[s->made[i]] = form_copy(r, &r->form[s->made[i]]);
	for (i = 0; i < s->nmade; i++)
		make_node(r, s->made[i]);
	for (i = 0; i < s->nroot; i++)
		(void)value(r, s->root[i]);
	for (i = 0; i < s->nmade; i++) {
		n = s->made[i];
		if (has_norm(r->m, &r->m->node[n]))
			make_norm(r, n);
		push_node(r, n, true);
	}
	for (i = 0; i < s->nlate; i++)
		if (r->m->node[s->late[i].sum].slot > t && (!i || s->late[i].sum != s->late[i - 1].sum))
			push_late(r, s->late[i].sum);
	for (; r->action < r->d->n && r->d->action[r->action].slot == t; r->action++) {
		x = &r->d->action[r->action];
		if (x->what == DO_PAIR)
			make_pair(r, x->node);
		else if (x->what == DO_PART)
			make_part(r, x);
	}
}

static void
heavy_op(Rewrite *r, int v)
{
	const Val *x = &r->g->v[v];
	Val w = *x;
	int j;

	for (j = 0; j < 6 && x->arg[j] >= 0; j++)
		w.arg[j] = as_kind(r->n, value(r, x->arg[j]), r->g->v[x->arg[j]].kind,
		                   r->g->v[x->arg[j]].width);
	context(r, v, x->name);
	w.keep = w.accum = false;
	r->fixed[v] = val_new(r->n, w);
}

static void
results(Rewrite *r)
{
	const Graph *g = r->g;
	const struct Contrib *c;
	int p, k;

	if (g->loss >= 0)
		r->n->loss = value(r, g->loss);
	if (g->logits >= 0)
		r->n->logits = value(r, g->logits);
	for (p = 0; p < g->model->nparam; p++)
		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			grad_contrib(r->n, p, c->idx, value(r, c->val));
		}
}

static int *
none(Arena *a, int n)
{
	int *x = NEWN(a, int, n + 1);

	memset(x, -1, (size_t)(n + 1) * sizeof *x);
	return x;
}

Graph *
rewrite(Arena *a, const Graph *g, Terms *m, const Decisions *d)
{
	Rewrite r = { .a = a, .m = m, .g = g, .d = d };
	int i, t = 0;

	r.n = graph_new(a, g->model, g->mode, g->T);
	r.n->folding = true;
	r.fixed = none(a, g->n);
	r.memo = none(a, g->n);
	r.stamp = NEWN(a, int, g->n);
	r.form = NEWN(a, Form, m->nnode);
	r.here = NEWN(a, Form, m->nnode);
	r.norm = NEWN(a, Form, m->nnode);
	r.normed_at = none(a, m->nnode);
	r.laid = none(a, m->nnode);
	r.pair = none(a, m->npair);
	r.pair_sub = none(a, m->npair);
	r.part = none(a, m->nnode * m->nslot);
	for (i = 0; i < g->n; i++) {
		if (op_info[g->v[i].op].class != CL_HEAVY)
			continue;
		for (; t < m->nslot && m->slot[t].level < m->level[i]; t++)
			run_slot(&r, t);
		if (g->v[i].bwd && !r.n->nfwd)
			r.n->nfwd = r.n->n;
		heavy_op(&r, i);
	}
	for (; t < m->nslot; t++)
		run_slot(&r, t);
	r.t = m->nslot;
	if (!r.n->nfwd)
		r.n->nfwd = r.n->n;
	results(&r);
	return compact(a, r.n);
}
