/* Graph -> Terms: what the planner sees of a graph.
 *
 * Sums of vectors are taken apart.  A lane is lambda*lane + post*h + x0c*x0, its
 * successor is made of it, and so on: written out down to vectors that lie in
 * memory or that several others share, each is a list of terms, coefficient
 * times NODE.  Intermediate lanes that nobody reads disappear in this ("several
 * updates of a lane are collapsed into one"), and what a kernel can already form
 * of a later sum is simply the terms whose nodes are there by then.
 *
 * Dot products that only a sum over rows reads (gradients of coefficients) are
 * bilinear in those terms: each becomes a sum of dot products of two nodes,
 * PAIRS, which any kernel may form that has both at hand. */
#include "search.h"
#include "fuse.h"

#include <string.h>

typedef struct {
	Terms *m;
	bool *real;             /* reached without passing a pair dot */
	int *lin_use;           /* users that are LIN */
	bool *other_use;        /* a use that needs the vector itself */
	bool *demand;           /* a heavy op reads it */
	bool *view;             /* a heavy op reads it in place */
} Build;

static bool
is_channels(const Graph *g, int v)
{
	return g->v[v].kind == K_VEC || g->v[v].kind == K_PVEC;
}

/* one number per row or for all: what can stand before a node */
static bool
is_coef(const Graph *g, int v)
{
	return g->v[v].kind <= K_SCALAR || (g->v[v].kind == K_ROWVAL && g->v[v].width == 1);
}

/* is v a sum of coefficients times vectors? */
static bool
is_lin(const Graph *g, int i)
{
	const Val *v = &g->v[i];
	int x = v->arg[0], y = v->arg[1];

	if (v->kind != K_VEC)
		return false;
	switch ((int)v->op) {
	case OP_ADD:
	case OP_SUB:
		return is_channels(g, x) && is_channels(g, y);
	case OP_NEG:
		return is_channels(g, x);
	case OP_MUL:
		return (is_coef(g, x) && is_channels(g, y)) ||
		       (is_coef(g, y) && is_channels(g, x));
	}
	return false;
}

/* Uses */

static void
find_pairdots(Terms *m)
{
	const Graph *g = m->g;
	const Val *v;
	int i, j, a;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		m->pairdot[i] = v->op == OP_DOT && v->width == 1 && v->attr[0] == 1 &&
		                m->knob.identities != IDENTITIES_NONE;
	}
	for (i = 0; i < g->n; i++)
		for (v = &g->v[i], j = 0; j < 6 && (a = v->arg[j]) >= 0; j++)
			if (v->op != OP_SUMR)
				m->pairdot[a] = false;
}

static void
find_real(Build *b)
{
	const Terms *m = b->m;
	const Graph *g = m->g;
	const Val *v;
	int i, j;

	for (i = 0; i < g->ncontrib; i++)
		b->real[g->contrib[i].val] = true;
	for (i = g->n - 1; i >= 0; i--) {
		v = &g->v[i];
		if (op_info[v->op].class == CL_HEAVY)
			b->real[i] = true;
		if (!b->real[i] || m->pairdot[i])
			continue;
		for (j = 0; j < 6 && v->arg[j] >= 0; j++)
			b->real[v->arg[j]] = true;
	}
}

static void
find_uses(Build *b)
{
	const Terms *m = b->m;
	const Graph *g = m->g;
	const Val *v;
	int i, j, a;

	for (i = 0; i < g->n; i++) {
		v = &g->v[i];
		if (!b->real[i] || m->pairdot[i])
			continue;
		for (j = 0; j < 6 && (a = v->arg[j]) >= 0; j++) {
			if (!is_channels(g, a))
				continue;
			if (is_lin(g, i)) {
				b->lin_use[a] += !(j == 1 && a == v->arg[0]);
				continue;
			}
			if (is_demand(g, v, j) && (v->op == OP_ATTN ||
			    v->op == OP_ATTN_BWD) && !v->attr[1] && is_view(g, a)) {
				b->view[a] = true;
				continue;
			}
			/* another row's value must lie in memory */
			b->demand[a] |= is_demand(g, v, j) || ((v->op == OP_SHIFT ||
			                v->op == OP_UNSHIFT) && is_row(&g->v[a]));
			b->other_use[a] = true;
		}
	}
}

/* Nodes */

static int
node_new(Terms *m, int val, NodeKind kind)
{
	Node *x = PUSH(m->a, m->node, m->nnode, m->capnode);
	const Val *v = &m->g->v[val];

	memset(x, 0, sizeof *x);
	x->kind = kind;
	x->val = val;
	x->level = m->level[val];
	x->grad = v->bwd;
	x->source_grad = v->bwd && v->accum;
	x->norm = -1;
	x->nbytes = (double)v->width * dt_size(m->dt[val]);
	m->nodeof[val] = m->nnode - 1;
	return m->nnode - 1;
}

static void
term_add(Terms *m, Node *x, int coef, int node)
{
	LinTerm *t;
	int i;

	for (i = 0; i < x->nterm; i++) {
		t = &x->term[i];
		if (t->node == node) {
			t->coef = add(m->g, t->coef, coef);
			return;
		}
	}
	t = PUSH(m->a, x->term, x->nterm, x->capterm);
	t->coef = coef;
	t->node = node;
}

static int base_node(Terms *m, int v);

/* top: v's own definition */
void
flatten(Terms *m, Node *x, int v, int coef, bool top)
{
	Graph *g = m->g;
	const Val *w = &g->v[v];
	const LinTerm *t;
	int a = w->arg[0], b = w->arg[1];

	if (!top && m->nodeof[v] >= 0 && m->through[v]) {
		t = m->node[m->nodeof[v]].term;
		term_add(m, x, mul(g, coef, t->coef), t->node);
		return;
	}
	if (!is_lin(g, v) || (!top && m->nodeof[v] >= 0)) {
		a = base_node(m, v);
		term_add(m, x, coef, a);
		return;
	}
	switch ((int)w->op) {
	case OP_ADD:
		flatten(m, x, a, coef, false);
		flatten(m, x, b, coef, false);
		break;
	case OP_SUB:
		flatten(m, x, a, coef, false);
		flatten(m, x, b, neg(g, coef), false);
		break;
	case OP_NEG:
		flatten(m, x, a, neg(g, coef), false);
		break;
	default:
		if (is_channels(g, a)) {
			a = b;
			b = w->arg[0];
		}
		flatten(m, x, b, mul(g, coef, a), false);
		break;
	}
}

static void
leaf_add(Terms *m, int **leaf, int *n, int *cap, int node)
{
	int i;

	for (i = 0; i < *n; i++)
		if ((*leaf)[i] == node)
			return;
	*PUSH(m->a, *leaf, *n, *cap) = node;
}

/* the nodes that v is formed of, in a kernel; top: v itself is formed there */
static void
leaves(Terms *m, int v, int **leaf, int *n, int *cap, bool top)
{
	const Graph *g = m->g;
	const Val *w = &g->v[v];
	Node x = {0};
	int j;

	if (m->nodeof[v] >= 0 && !(top && m->node[m->nodeof[v]].kind == NODE_FUN)) {
		leaf_add(m, leaf, n, cap, m->nodeof[v]);
		return;
	}
	if (w->kind != K_VEC || w->op == OP_TABLE)
		return;
	if (!is_row(w)) {
		leaf_add(m, leaf, n, cap, base_node(m, v));
		return;
	}
	if (is_lin(g, v)) {
		flatten(m, &x, v, num(m->g, 1), true);
		for (j = 0; j < x.nterm; j++)
			leaf_add(m, leaf, n, cap, x.term[j].node);
		return;
	}
	for (j = 0; j < op_info[w->op].arity; j++)
		if (is_channels(g, w->arg[j]))
			leaves(m, w->arg[j], leaf, n, cap, false);
}

/* the node of a vector that is no sum */
static int
base_node(Terms *m, int v)
{
	const Graph *g = m->g;
	const Val *w = &g->v[v];
	Node x = {0};
	int k, j;

	if (m->nodeof[v] >= 0)
		return m->nodeof[v];
	if (w->kind == K_PVEC)
		return node_new(m, v, NODE_FREE);
	if (!is_row(w)) {
		k = node_new(m, v, NODE_MEM);
		m->node[k].stored = true;
		return k;
	}
	for (j = 0; j < op_info[w->op].arity; j++)
		if (is_channels(g, w->arg[j]))
			leaves(m, w->arg[j], &x.leaf, &x.nleaf, &x.capleaf, false);
	k = node_new(m, v, NODE_FUN);
	m->node[k].leaf = x.leaf;
	m->node[k].nleaf = x.nleaf;
	return k;
}

/* c = what can be divided by: numbers and 1/rms factors */
static bool
is_safe_divisor(const Terms *m, int c)
{
	const Graph *g = m->g;
	const Val *v = &g->v[c];

	if (v->op == OP_NUM)
		return v->num != 0;
	if (v->op == OP_MUL)
		return is_safe_divisor(m, v->arg[0]) && is_safe_divisor(m, v->arg[1]);
	return v->op == OP_RSQRT || (m->knob.divide && v->kind == K_SCALAR);
}

/* A stored node that is a safe multiple of another stands for it, if it is
 * stored no coarser than the other would be. */
static void
find_norms(Terms *m)
{
	Node *x, *y;
	int i;

	for (i = 0; i < m->nnode && m->knob.form != FORM_RAW; i++) {
		x = &m->node[i];
		if (x->kind != NODE_SUM || x->nterm != 1 || !x->stored ||
		    !is_safe_divisor(m, x->term[0].coef))
			continue;
		y = &m->node[x->term[0].node];
		if (y->kind != NODE_SUM || y->stored || y->norm >= 0 ||
		    m->dt[x->val] != m->dt[y->val])
			continue;
		y->norm = i;
		y->norm_coef = x->term[0].coef;
	}
}

/* Is v = … + coef * w with a coef that exists only after w?  So is the gradient
 * of what is normed: rstd*dn - rstd/C*<dn,n>*n.  It is one vector for all that
 * use it, as its terms nearly cancel in a dot product with w. */
static bool
is_late_sum(const Terms *m, int v)
{
	const Graph *g = m->g;
	const Val *w = &g->v[v], *x;
	int i, k;

	if (w->op != OP_ADD && w->op != OP_SUB)
		return false;
	for (i = 0; i < 2; i++) {
		x = &g->v[w->arg[i]];
		for (k = 0; x->op == OP_MUL && k < 2; k++)
			if (g->v[x->arg[k]].kind == K_ROWVAL &&
			    m->level[x->arg[k]] > m->level[x->arg[1 - k]])
				return true;
	}
	return false;
}

static void
find_nodes(Build *b)
{
	Terms *m = b->m;
	const Graph *g = m->g;
	const int n = g->n;     /* flatten appends coefficients */
	Node x;
	int v, k;

	for (v = 0; v < n; v++) {
		if (g->v[v].kind == K_VEC && !is_row(&g->v[v]) && g->v[v].op != OP_TABLE &&
		    b->real[v]) {
			base_node(m, v);
			continue;
		}
		if (!b->real[v] || g->v[v].kind != K_VEC || !is_row(&g->v[v]))
			continue;
		if (!is_lin(g, v)) {
			if (b->demand[v]) {
				k = base_node(m, v);    /* may move the nodes */
				m->node[k].stored = true;
			}
			continue;
		}
		if (!b->other_use[v] && b->lin_use[v] < 2 && !is_late_sum(m, v) &&
		    !(g->v[v].keep && m->knob.collapse == COLLAPSE_NONE))
			continue;
		memset(&x, 0, sizeof x);
		flatten(m, &x, v, num(m->g, 1), true);
		k = node_new(m, v, NODE_SUM);
		m->node[k].nterm = x.nterm;
		m->node[k].term = x.term;
		m->node[k].stored = b->demand[v];
		m->through[v] = x.nterm == 1;
	}
}

static void
find_sources(Terms *m)
{
	const Node *x;
	Node *y;
	int i;

	for (i = 0; i < m->g->n && i < m->g->nfwd; i++) {
		if (!m->g->v[i].accum || m->nodeof[i] < 0)
			continue;
		x = &m->node[m->nodeof[i]];
		y = m->through[i] ? &m->node[x->term[0].node] : &m->node[m->nodeof[i]];
		y->source = true;
	}
}

/* where all sources are there, and the sums that add two of them or more */
static void
find_ahead(Terms *m)
{
	const Node *x;
	int i, k, n;

	m->at_sources = -1;
	if (m->knob.sources != SOURCES_PRECOMPUTE)
		return;
	for (i = 0; i < m->nnode; i++)
		if (m->node[i].source && m->node[i].slot > m->at_sources)
			m->at_sources = m->node[i].slot;
	for (i = 0; i < m->nnode; i++) {
		x = &m->node[i];
		for (n = 0, k = 0; x->kind == NODE_SUM && k < x->nterm; k++)
			n += m->node[x->term[k].node].source;
		if (n >= 2 && !x->grad && x->slot > m->at_sources)
			*PUSH(m->a, m->ahead, m->nahead, m->capahead) = i;
	}
}

/* Slots */

static Slot *
slot_of(Terms *m, int level)
{
	Slot *s;
	int i;

	for (i = m->nslot; i > 0 && m->slot[i - 1].level >= level; i--)
		if (m->slot[i - 1].level == level)
			return &m->slot[i - 1];
	(void)PUSH(m->a, m->slot, m->nslot, m->capslot);
	memmove(m->slot + i + 1, m->slot + i, (size_t)(m->nslot - 1 - i) * sizeof *m->slot);
	s = &m->slot[i];
	memset(s, 0, sizeof *s);
	s->level = level;
	return s;
}

/* what a kernel must compute there, and the nodes that takes */
static void
root_add(Terms *m, int v)
{
	Slot *s = slot_of(m, m->level[v]);
	const Val *w = &m->g->v[v];
	int j;

	*PUSH(m->a, s->root, s->nroot, s->caproot) = v;
	if (w->kind == K_VEC) {
		leaves(m, v, &s->req, &s->nreq, &s->capreq, true);
		return;
	}
	for (j = 0; j < op_info[w->op].arity; j++)
		if (is_channels(m->g, w->arg[j]))
			leaves(m, w->arg[j], &s->req, &s->nreq, &s->capreq, false);
}

static void
find_slots(Build *b)
{
	Terms *m = b->m;
	const Graph *g = m->g;
	const int n = g->n;
	const Val *v;
	int i;

	for (i = 0; i < n; i++) {
		v = &g->v[i];
		if (!b->real[i] || m->pairdot[i] || b->view[i] || !is_row(v))
			continue;
		if (v->kind == K_VEC ? b->demand[i] : v->op == OP_DOT || v->op == OP_SUMC ||
		    (v->op == OP_SUMR && !m->pairdot[v->arg[0]]) ||
		    (v->kind == K_ROWVAL && v->keep))
			root_add(m, i);
	}
}

static int
coef_level(const Terms *m, int c)
{
	const Val *v = &m->g->v[c];
	int j, l, level = 0;

	if (c < m->nval)
		return m->level[c];
	for (j = 0; j < op_info[v->op].arity; j++)
		if ((l = coef_level(m, v->arg[j])) > level)
			level = l;
	return level;
}

static int
slot_after(const Terms *m, int level)
{
	int t;

	for (t = 0; t < m->nslot && m->slot[t].level < level; t++)
		;
	return t;
}

/* which slot a term can be added at, and whether that is later than its node */
static void
place_terms(Terms *m, int node)
{
	Node *x = &m->node[node], *y;
	LinTerm *t;
	Slot *s;
	int k, level;

	for (k = 0; k < x->nterm; k++) {
		t = &x->term[k];
		y = &m->node[t->node];
		level = coef_level(m, t->coef);
		t->slot = level > y->level ? slot_after(m, level) : y->slot;
		*PUSH(m->a, y->user, y->nuser, y->capuser) = (struct User){ node, t->slot };
		if (t->slot > y->slot && t->slot < m->nslot) {
			s = &m->slot[t->slot];
			*PUSH(m->a, s->late, s->nlate, s->caplate) = (struct Late){ node, k };
		}
	}
}

static void
place_nodes(Terms *m)
{
	Slot *s;
	Node *x;
	int i, t;

	for (i = 0; i < m->nnode; i++) {
		x = &m->node[i];
		x->slot = x->last = t = slot_after(m, x->level);
		if (t < m->nslot) {
			s = &m->slot[t];
			*PUSH(m->a, s->made, s->nmade, s->capmade) = i;
		}
		place_terms(m, i);
	}
	m->first_bwd = m->nslot;
	for (t = m->nslot - 1; t >= 0 && m->slot[t].nroot &&
	     m->g->v[m->slot[t].root[0]].bwd; t--)
		m->first_bwd = t;
}

/* SUMs of which a kernel at a slot could form a part */
static void
find_pending(Terms *m)
{
	const Node *x;
	Slot *s;
	int i, k, t, first;
	bool lane;

	for (i = 0; i < m->nnode; i++) {
		x = &m->node[i];
		if (x->kind != NODE_SUM || x->nterm < 2)
			continue;
		first = x->slot;
		for (lane = false, k = 0; k < x->nterm; k++) {
			const Node *y = &m->node[x->term[k].node];

			if (y->kind == NODE_FREE || y->source)
				continue;
			lane = true;
			if (x->term[k].slot < first)
				first = x->term[k].slot;
		}
		for (t = first; lane && t < x->slot; t++) {
			s = &m->slot[t];
			*PUSH(m->a, s->pend, s->npend, s->cappend) = i;
		}
	}
}

static void
last_use(Terms *m, int node, int slot)
{
	if (m->node[node].last < slot)
		m->node[node].last = slot;
}

static void
last_fwd(Terms *m, int node, int slot)
{
	if (slot < m->first_bwd && m->node[node].last_fwd < slot)
		m->node[node].last_fwd = slot;
}

static void
find_last(Terms *m)
{
	int i, k, t;

	for (t = 0; t < m->nslot; t++) {
		for (i = 0; i < m->slot[t].nreq; i++)
			last_use(m, m->slot[t].req[i], t);
		for (i = 0; i < m->slot[t].npair; i++) {
			last_use(m, m->pair[m->slot[t].pair[i]].x, t);
			last_use(m, m->pair[m->slot[t].pair[i]].y, t);
		}
	}
	for (i = m->nnode - 1; i >= 0; i--)
		for (k = 0; k < m->node[i].nleaf; k++)
			last_use(m, m->node[i].leaf[k], m->node[i].last);
	for (i = 0; i < m->nnode; i++) {
		for (k = 0; k < m->node[i].nuser; k++)
			last_use(m, i, m->node[m->node[i].user[k].sum].slot);
		m->node[i].last_fwd = m->node[i].last;
		if (m->node[i].last < m->first_bwd || m->node[i].slot >= m->first_bwd)
			continue;
		m->node[i].last_fwd = m->node[i].slot;
		for (k = 0; k < m->node[i].nuser; k++)
			last_fwd(m, i, m->node[m->node[i].user[k].sum].slot);
		for (t = 0; t < m->first_bwd; t++)
			if (is_required(&m->slot[t], i))
				last_fwd(m, i, t);
	}
}

/* Gradients of sources, and what is made of them, one level later: the kernel
 * that makes the last lane gradients then stores them, and the next one adds up
 * all of them and nothing else. */
static void
set_apart(Terms *m)
{
	const Graph *g = m->g;
	bool *later = NEWN(m->a, bool, m->nval), shift;
	const Val *v;
	int i, j, a, l;

	for (j = g->nfwd; j < m->nval; j++) {
		v = &g->v[j];
		shift = v->op == OP_SHIFT || v->op == OP_UNSHIFT;
		later[j] = v->accum && is_row(v);
		for (i = 0, l = 0; i < 6 && (a = v->arg[i]) >= 0; i++) {
			later[j] |= later[a];
			l = later[a] && m->level[a] + shift > l ? m->level[a] + shift : l;
		}
		later[j] &= op_info[v->op].class != CL_HEAVY;
		if (later[j] && m->level[j] % 16 == 0)
			m->level[j]++;
		if (later[j] && m->level[j] < l)
			m->level[j] = l;
	}
}

static Graph *
working_copy(Arena *a, const Graph *g)
{
	Graph *w = NEW(a, Graph);

	*w = *g;
	w->mem = a;
	w->cap = g->n;
	w->v = NEWN(a, Val, g->n);
	memcpy(w->v, g->v, (size_t)g->n * sizeof *g->v);
	w->hash = NULL;
	w->nhash = 0;
	w->folding = true;
	w->name = NULL;
	return w;
}

Terms *
terms_of(Arena *a, const Graph *from, const Knobs *knob, bool apart)
{
	Terms *m = NEW(a, Terms);
	Build b = { .m = m };
	/* coefficients are appended to the copy, and never asked for a level */
	int n = from->n;

	m->a = a;
	m->knob = *knob;
	m->not.slot = -1;
	m->g = working_copy(a, from);
	m->nval = n;
	m->level = NEWN(a, int, n);
	m->nodeof = NEWN(a, int, n);
	m->through = NEWN(a, bool, n);
	m->pairdot = NEWN(a, bool, n);
	m->dt = NEWN(a, Dt, n);
	b.real = NEWN(a, bool, n);
	b.lin_use = NEWN(a, int, n);
	b.other_use = NEWN(a, bool, n);
	b.demand = NEWN(a, bool, n);
	b.view = NEWN(a, bool, n);
	memset(m->nodeof, -1, (size_t)n * sizeof *m->nodeof);
	m->apart = apart;
	find_levels(from, m->level);
	if (apart)
		set_apart(m);
	choose_types(from, m->dt);
	find_pairdots(m);
	find_real(&b);
	find_uses(&b);
	find_nodes(&b);
	find_pairs(m);
	find_slots(&b);
	find_norms(m);
	find_sources(m);
	place_nodes(m);
	find_ahead(m);
	find_pending(m);
	place_pairs(m);
	find_last(m);
	return m;
}

void
terms_print(const Terms *m, FILE *f)
{
	static const char *const kind[] = { "mem", "sum", "fun", "free" };
	const Node *x;
	const Slot *s;
	int i, k, t;

	for (i = 0; i < m->nnode; i++) {
		x = &m->node[i];
		fprintf(f, "node %d %s %%%d.%s slot %d last %d%s%s", i, kind[x->kind], x->val,
		        m->g->v[x->val].name ? m->g->v[x->val].name : "", x->slot, x->last,
		        x->stored ? " stored" : "", x->source ? " source" : "");
		if (x->norm >= 0)
			fprintf(f, " norm %d", x->norm);
		for (k = 0; k < x->nterm; k++)
			fprintf(f, " + %%%d*n%d", x->term[k].coef, x->term[k].node);
		for (k = 0; k < x->nleaf; k++)
			fprintf(f, " n%d", x->leaf[k]);
		fputc('\n', f);
	}
	for (t = 0; t < m->nslot; t++) {
		s = &m->slot[t];
		fprintf(f, "slot %d level %d%s needs", t, s->level, t >= m->first_bwd ? " bwd" : "");
		for (i = 0; i < s->nreq; i++)
			fprintf(f, " n%d", s->req[i]);
		for (i = 0; i < s->npair; i++)
			fprintf(f, " <n%d,n%d>", m->pair[s->pair[i]].x, m->pair[s->pair[i]].y);
		fprintf(f, " pending");
		for (i = 0; i < s->npend; i++)
			fprintf(f, " n%d", s->pend[i]);
		fputc('\n', f);
	}
}
