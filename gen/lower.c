/* Step -> Kern: a row kernel as statements.
 *
 * A row is worked on in phases.  Phase p loops over channels and accumulates
 * the sums that can be formed then; what depends on a sum belongs to phase
 * p + 1.  A vector that a later phase needs again is held in a local array
 * (the row stays in the first-level cache); loads are simply repeated.
 *
 * Inside a phase, everything of one width shares its loops.  Loops are cut
 * where a slice, a pad or a rotation changes what a channel is made of, so
 * that no statement has a condition.  Where values are per head, the loop
 * over channels is nested in one over heads. */
#include "lower.h"

#include <string.h>

/* what is computed here */

static void
collect(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	int j;

	if (l->inside[v] || l->in[v])
		return;
	if (x->kind != K_VEC && x->kind != K_ROWVAL && x->op != OP_SUMR)
		return;
	if (x->op == OP_TABLE)
		return;
	for (j = 0; j < op_info[x->op].arity; j++)
		collect(l, x->arg[j]);
	l->inside[v] = true;
	*PUSH(l->a, l->node, l->nnode, l->capnode) = v;
}

static int
ready(const Lower *l, int v)
{
	return l->inside[v] ? l->phase[v] : 0;
}

static void
find_phases(Lower *l)
{
	const Val *x;
	int i, j, v, ph;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		for (ph = 0, j = 0; j < op_info[x->op].arity; j++) {
			if (ready(l, x->arg[j]) > ph)
				ph = ready(l, x->arg[j]);
			l->uses[x->arg[j]]++;
		}
		if (x->op == OP_DOT || x->op == OP_SUMC)
			ph++;
		l->phase[v] = ph;
		if (ph >= l->nphase)
			l->nphase = ph + 1;
	}
	if (l->nphase > MaxPhase)
		bug("lower: %s needs %d phases", l->k->name, l->nphase);
}
/* phases */

/* mark what the loops of a phase evaluate for v, which they need */
static void
mark_own(Lower *l, int v, int phase)
{
	const Val *x = &l->g->v[v];
	int j;

	if (x->kind != K_VEC || !l->inside[v] || l->own[v] || l->phase[v] > phase)
		return;
	if (l->phase[v] == phase)
		l->own[v] = true;
	for (j = 0; j < op_info[x->op].arity; j++)
		mark_own(l, x->arg[j], phase);
}

/* What a later phase needs of an earlier one: held if that one computes it
 * anyway, computed again (from loads) if not. */
static void
mark_held(Lower *l, int v, int phase)
{
	const Val *x = &l->g->v[v];
	int j;

	if (x->kind != K_VEC || !l->inside[v])
		return;
	if (l->phase[v] < phase && l->own[v] && op_info[x->op].class == CL_POINT) {
		l->held[v] = true;
		return;
	}
	for (j = 0; j < op_info[x->op].arity; j++)
		mark_held(l, x->arg[j], phase);
}

/* phase whose loops produce v */
static int
sink_phase(const Lower *l, int v)
{
	const Val *x = &l->g->v[v];

	if (x->op == OP_DOT || x->op == OP_SUMC)
		return l->phase[v] - 1;
	return l->phase[v];
}

static bool
is_sink(const Lower *l, int v)
{
	const Val *x = &l->g->v[v];

	return x->op == OP_DOT || x->op == OP_SUMC || x->op == OP_SUMR ||
	       (l->root[v] && x->kind == K_VEC);
}

static void
mark_all_held(Lower *l)
{
	const Val *x;
	int i, v, j;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (!is_sink(l, v))
			continue;
		if (x->kind == K_VEC)
			mark_own(l, v, sink_phase(l, v));
		for (j = 0; j < op_info[x->op].arity; j++)
			mark_own(l, x->arg[j], sink_phase(l, v));
	}
	for (i = l->nnode - 1; i >= 0; i--) {
		v = l->node[i];
		x = &l->g->v[v];
		for (j = 0; is_sink(l, v) && j < op_info[x->op].arity; j++)
			mark_held(l, x->arg[j], sink_phase(l, v));
	}
}

int
gather_sinks(Lower *l, int phase, Sink *s)
{
	const Val *x;
	int i, v, n = 0;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (sink_phase(l, v) != phase)
			continue;
		if (x->kind == K_VEC && l->root[v])
			s[n++] = (Sink){ v, SINK_STORE, x->width, 0 };
		if (x->kind == K_VEC && l->held[v])
			s[n++] = (Sink){ v, SINK_HOLD, x->width, 0 };
		if (x->op == OP_DOT || x->op == OP_SUMC)
			s[n++] = (Sink){ v, SINK_SUM, l->g->v[x->arg[0]].width, 0 };
		if (x->op == OP_SUMR && x->kind == K_PVEC)
			s[n++] = (Sink){ v, SINK_PART, x->width, 0 };
	}
	return n;
}

int
sink_heads(Lower *l, const Sink *s)
{
	const Val *x = &l->g->v[s->v];
	int d;

	if (s->kind == SINK_STORE || s->kind == SINK_HOLD)
		return head_size(l, s->v, s->width);
	if (x->op == OP_SUMR)
		return head_size(l, x->arg[0], s->width);
	if (x->width > 1)
		return s->width / x->width;
	d = head_size(l, x->arg[0], s->width);
	return d || x->op != OP_DOT ? d : head_size(l, x->arg[1], s->width);
}

/* what a rowval is, of its operands; head is the loop variable if it is per
 * head (or a sum over heads) */
Exp *
rowval_formula(Lower *l, int v)
{
	const Val *x = &l->g->v[v], *y = &l->g->v[x->arg[0]];
	Exp *e;

	if (op_info[x->op].class == CL_POINT) {
		e = rowval_operand(l, x->arg[0], 0, 1);
		return exp_op(l, x->op, e, x->arg[1] < 0 ? NULL :
		              rowval_operand(l, x->arg[1], 0, 1));
	}
	if (x->op == OP_SUMG)
		return rowval(l, x->arg[0], 0, 1);
	if (x->op == OP_BCAST)
		return y->kind == K_ROWVAL ? rowval(l, x->arg[0], 0, 0) :
		       operand(l, x->arg[0], 0, 1);
	return shifted(l, v, (Idx){ 0, x->width > 1, 0 });
}

static void
rowval_store(Lower *l, int v)
{
	Stmt *t = stmt(l, S_STORE, NULL);

	t->par = l->par[v];
	t->idx = (Idx){ 0, l->g->v[v].width > 1, 0 };
	t->e = rowval(l, v, 0, 1);
}

static void
rowval_let(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	bool heads = x->width > 1, made = x->op == OP_DOT || x->op == OP_SUMC;
	bool loop = (heads && (!made || l->root[v])) || x->op == OP_SUMG;
	Stmt *t;
	Exp *e;

	l->mult = x->op == OP_SUMG ? l->g->v[x->arg[0]].width : x->width;
	if (loop && !made) {
		t = stmt(l, heads ? S_ARRAY : S_ZERO, l->name[v]);
		t->n = heads ? x->width : 0;
	}
	if (loop) {
		t = stmt(l, S_LOOP, "head");
		t->hi = (int)l->mult;
	}
	if (!made) {
		e = rowval_formula(l, v);
		t = stmt(l, x->op == OP_SUMG ? S_ADD : heads ? S_SET : S_LET, l->name[v]);
		t->e = e;
		t->idx = (Idx){ 0, 1, 0 };
	}
	if (l->root[v] && x->op != OP_SUMG)
		rowval_store(l, v);
	if (loop)
		stmt(l, S_END, NULL);
	if (l->root[v] && x->op == OP_SUMG)
		rowval_store(l, v);
}

/* rowvals that become known after a phase's loops */
static void
rowvals(Lower *l, int phase)
{
	const Val *x;
	Stmt *t;
	Exp *e;
	int i, v;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (l->phase[v] != phase)
			continue;
		if (x->op == OP_SUMR && x->kind == K_SCALAR) {
			e = rowval(l, x->arg[0], 0, 0);
			t = stmt(l, S_ADD, l->name[v]);
			t->e = e;
		}
		if (x->kind != K_ROWVAL || rowval_inline(l, v))
			continue;
		rowval_let(l, v);
	}
}

static void
phase_sums(Lower *l, const Sink *s, int n)
{
	Stmt *t;
	int i;

	for (i = 0; i < n; i++) {
		if (s[i].kind != SINK_SUM)
			continue;
		t = stmt(l, l->g->v[s[i].v].width > 1 ? S_ARRAY : S_ZERO, l->name[s[i].v]);
		t->n = l->g->v[s[i].v].width > 1 ? l->g->v[s[i].v].width : 0;
	}
}

static void
phase_loops(Lower *l, int phase)
{
	Sink *s = NEWN(l->a, Sink, 4 * l->nnode + 1), *group;
	int n, m, i, j;
	bool *done;

	l->now = phase;
	n = gather_sinks(l, phase, s);
	for (i = 0; i < n; i++)
		s[i].D = sink_heads(l, &s[i]);
	/* what shares a width walks its heads together */
	for (i = 0; i < n; i++)
		for (j = 0; j < n; j++)
			if (s[j].width == s[i].width && s[i].D && !s[j].D)
				s[j].D = s[i].D;
	phase_sums(l, s, n);
	group = NEWN(l->a, Sink, n + 1);
	done = NEWN(l->a, bool, n + 1);
	for (i = 0; i < n; i++) {
		if (done[i])
			continue;
		for (m = 0, j = i; j < n; j++)
			if (!done[j] && s[j].width == s[i].width && s[j].D == s[i].D) {
				group[m++] = s[j];
				done[j] = true;
			}
		loops(l, group, m);
	}
}

/* does the text ask where in its sequence a row is? */
static bool
asks_position(const Kern *k)
{
	int i;

	for (i = 0; i < k->npar; i++)
		if (k->par[i].kind == P_TABLE)
			return true;
	for (i = 0; i < k->nstmt; i++)
		if (k->stmt[i].kind == S_ROW_SRC)
			return true;
	return false;
}

/* before the rows: names, coefficients, sums */

static void
name_values(Lower *l)
{
	const Val *x;
	const char *base;
	int i, v;

	for (i = 0; i < l->r->nin; i++) {
		v = l->r->in[i];
		x = &l->g->v[v];
		l->name[v] = unique(l, x->name ? x->name : op_info[x->op].name);
	}
	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		base = x->name;
		if (base && name_taken(l, base))
			base = arena_printf(l->a, "%s_next", base);
		if (x->op == OP_SUMR && x->kind == K_SCALAR && !base)
			base = "sum";
		if (x->op == OP_SUMR && x->kind == K_PVEC && !base && l->cu)
			base = "part_sum";
		if (!base)
			base = x->kind == K_ROWVAL ? op_info[x->op].name : "x";
		l->name[v] = unique(l, base);
	}
}

static void
read_scalars_of(Lower *l, int v)
{
	const Val *x = &l->g->v[v];
	int j, a;

	for (j = 0; j < op_info[x->op].arity; j++) {
		a = x->arg[j];
		if (l->g->v[a].kind == K_SCALAR)
			scalar_named(l, a);
		else if (l->g->v[a].kind == K_PVEC)
			read_scalars_of(l, a);
	}
}

static void
read_scalars(Lower *l)
{
	int i;

	for (i = 0; i < l->nnode; i++)
		read_scalars_of(l, l->node[i]);
}

void
row_sources(Lower *l)
{
	const Val *x;
	Stmt *t;
	int i, v;
	bool docs = false;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		x = &l->g->v[v];
		if (x->op != OP_SHIFT && x->op != OP_UNSHIFT)
			continue;
		if (x->attr[2] && !docs) {
			docs = true;
			par_new(l, P_DOCS, "docstart", I32, 1,
			        (Opd){ .kind = OPD_INPUT, .id = INPUT_DOCSTART, .dt = I32 });
			l->k->par[l->k->npar - 1].shape = "[T]";
			l->k->par[l->k->npar - 1].what = "first row of the document";
		}
		l->from[v] = unique(l, arena_printf(l->a, "%s_from", l->name[v]));
		t = stmt(l, S_ROW_SRC, l->from[v]);
		t->shift[0] = x->op == OP_SHIFT ? x->attr[0] : -x->attr[0];
		t->shift[1] = x->attr[1];
		t->shift[2] = x->attr[2];
	}
}

static void
parameters(Lower *l)
{
	const Val *x;
	int i, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR)
			value_par(l, v, true);
	}
	for (i = 0; i < l->r->nin; i++)
		value_par(l, l->r->in[i], false);
	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_PVEC)
			continue;
		l->par[v] = par_new(l, P_PARTVEC, "part", F32, x->width,
		                    opd_buf(l->p->bufof[v], F32, x->width));
		l->k->par[l->par[v]].shape = l->cu ? arena_printf(l->a, "[P,%d]", x->width) :
		        arena_printf(l->a, "[%d,%d]", l->p->parts, x->width);
		l->k->par[l->par[v]].what = "partial sums, one row per block of rows";
	}
}

/* the parameter that takes the partials of scalar sums, or -1 */
static int
sums_par(Lower *l)
{
	int part;

	if (!l->r->nsum)
		return -1;
	part = par_new(l, P_PART, "sums", F32, l->p->parts,
	               opd_buf(l->p->part, F32, l->p->parts));
	l->k->par[part].opd.off = (size_t)l->r->sum0 * (size_t)l->p->parts * 4;
	l->k->par[part].shape = l->cu ? arena_printf(l->a, "[%d,P]", l->r->nsum) :
	                        arena_printf(l->a, "[%d,%d]", l->r->nsum, l->p->parts);
	l->k->par[part].what = "partial sums, one column per block of rows";
	return part;
}

static void
sums_begin(Lower *l)
{
	const Val *x;
	Stmt *t;
	int i, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op == OP_SUMR && x->kind == K_SCALAR)
			stmt(l, S_ZERO, l->name[v]);
		if (x->op == OP_SUMR && x->kind == K_PVEC) {
			t = stmt(l, S_PART_ZERO, NULL);
			t->par = l->par[v];
			t->n = x->width;
		}
	}
}

static void
sums_end(Lower *l, int part)
{
	const Val *x;
	Stmt *t;
	int i, v;

	for (i = 0; i < l->r->nroot; i++) {
		v = l->r->root[i];
		x = &l->g->v[v];
		if (x->op != OP_SUMR || x->kind != K_SCALAR)
			continue;
		t = stmt(l, S_PART, l->name[v]);
		t->par = part;
		t->n = l->p->partof[v] - l->r->sum0;
	}
}

/* is rowval v used at its own row, not only through shifts? */
static bool
used_here(const Lower *l, int v)
{
	const Val *x;
	int i, j;

	for (i = 0; i < l->nnode; i++) {
		x = &l->g->v[l->node[i]];
		for (j = 0; j < op_info[x->op].arity; j++)
			if (x->arg[j] == v && x->op != OP_SHIFT && x->op != OP_UNSHIFT)
				return true;
	}
	return false;
}

void
hold_arrays(Lower *l)
{
	Stmt *t;
	int i, v;

	for (i = 0; i < l->nnode; i++) {
		v = l->node[i];
		if (!l->held[v] || l->cu)
			continue;
		t = stmt(l, S_ARRAY, arena_printf(l->a, "row_%s", l->name[v]));
		t->n = l->g->v[v].width;
	}
	/* rowvals of width 1 that are read are named loads */
	for (i = 0; i < l->r->nin; i++) {
		v = l->r->in[i];
		if (l->g->v[v].kind != K_ROWVAL)
			continue;
		if (l->g->v[v].width > 1) {
			l->name[v] = NULL;
			continue;
		}
		if (!used_here(l, v))
			continue;
		t = stmt(l, S_LET, l->name[v]);
		t->e = exp_new(l, X_LOAD);
		t->e->par = l->srcpar[v];
		t->e->idx = (Idx){ 0, 0, 0 };
	}
}
static void
bind(Lower *l, Step *s)
{
	int i;

	s->nopd = 0;
	for (i = 0; i < l->k->npar; i++)
		*PUSH(l->p->mem, s->opd, s->nopd, s->capopd) = l->k->par[i].opd;
}

/* the rest for one thread per row */
static void
cpu_body(Lower *l, int part)
{
	int ph;

	sums_begin(l);
	stmt(l, S_ROWS, NULL);
	row_sources(l);
	hold_arrays(l);
	rowvals(l, 0);
	for (ph = 0; ph < l->nphase; ph++) {
		phase_loops(l, ph);
		rowvals(l, ph + 1);
	}
	stmt(l, S_END, NULL);
	sums_end(l, part);
}

static Lower *
lower_new(Arena *a, const Plan *p, Step *s, Cuda *cu)
{
	Lower *l = NEW(a, Lower);
	int i, n = p->g->n;

	l->a = a;
	l->cu = cu;
	l->p = p;
	l->g = p->g;
	l->r = s->row;
	l->k = NEW(a, Kern);
	l->k->mem = a;
	l->k->plan = p;
	l->k->step = s;
	l->k->name = s->name;
	l->in = NEWN(a, bool, n);
	l->root = NEWN(a, bool, n);
	l->inside = NEWN(a, bool, n);
	l->held = NEWN(a, bool, n);
	l->own = NEWN(a, bool, n);
	l->phase = NEWN(a, int, n);
	l->uses = NEWN(a, int, n);
	l->par = NEWN(a, int, n);
	l->srcpar = NEWN(a, int, n);
	l->name = NEWN(a, const char *, n);
	l->from = NEWN(a, const char *, n);
	for (i = 0; i < l->r->nin; i++)
		l->in[l->r->in[i]] = true;
	for (i = 0; i < l->r->nroot; i++)
		l->root[l->r->root[i]] = true;
	return l;
}

static Lower *
lower_once(Arena *a, const Plan *p, Step *s, Cuda *cu)
{
	Lower *l = lower_new(a, p, s, cu);
	int i, part;

	for (i = 0; i < l->r->nroot; i++)
		collect(l, l->r->root[i]);
	find_phases(l);
	mark_all_held(l);
	parameters(l);
	name_values(l);
	if (cu)
		cuda_map(l);
	read_scalars(l);
	formulas(l);
	part = sums_par(l);
	if (cu)
		cuda_body(l, part);
	else
		cpu_body(l, part);
	par_new(l, P_ROWS, "rows", I32, 1, (Opd){ .kind = OPD_INT, .i = p->T });
	if (p->model->seq_varies && asks_position(l->k))
		par_new(l, P_SEQ, "seq", I32, 1, (Opd){ .kind = OPD_INT, .i = p->model->seq });
	if (cu && l->k->map.loop)
		par_new(l, P_PARTS, "parts", I32, 1, (Opd){ .kind = OPD_INT, .i = p->parts });
	return l;
}

Kern *
lower(Arena *a, const Plan *p, Step *s)
{
	Cuda *cu = p->target == TO_CUDA ? cuda_new(a, p->g->n) : NULL;
	Lower *l;

	do
		l = lower_once(a, p, s, cu);
	while (cu && cuda_again(l));
	l->k->row_flops = l->flops;
	s->flops = l->flops * (double)p->T;
	if (cu)
		cuda_bind(l, s);
	bind(l, s);
	return l->k;
}

/* loops balance, no statement lacks a name or a parameter */
void
kern_verify(const Kern *k)
{
	const Stmt *s;
	int i, depth = 0;

	for (i = 0; i < k->nstmt; i++) {
		s = &k->stmt[i];
		if (s->kind == S_LOOP || s->kind == S_ROWS || s->kind == S_IF ||
		    s->kind == S_ELEMS || s->kind == S_PARTS)
			depth++;
		if (s->kind == S_END && --depth < 0)
			bug("lower: %s: unbalanced loops", k->name);
		if (s->kind == S_LOOP && s->lo >= s->hi)
			bug("lower: %s: empty loop %d..%d", k->name, s->lo, s->hi);
		if ((s->kind == S_STORE || s->kind == S_PART || s->kind == S_PART_ADD ||
		     s->kind == S_PART_ZERO) && (s->par < 0 || s->par >= k->npar))
			bug("lower: %s: statement %d has no parameter", k->name, i);
		if ((s->kind == S_LET || s->kind == S_SET || s->kind == S_ADD ||
		     s->kind == S_VEC_SET) && !s->name)
			bug("lower: %s: statement %d has no name", k->name, i);
	}
	if (depth)
		bug("lower: %s: unbalanced loops", k->name);
}

static const char *const stmt_name[] = {
	[S_NOTE] = "note", [S_LET] = "let", [S_ARRAY] = "array", [S_ZERO] = "zero",
	[S_LOOP] = "loop", [S_END] = "end", [S_SET] = "set", [S_ADD] = "add",
	[S_STORE] = "store", [S_ROWS] = "rows", [S_ROW_SRC] = "row", [S_PART] = "partial",
	[S_PART_ADD] = "partial_add", [S_PART_ZERO] = "partial_zero",
	[S_LOADS] = "loads", [S_IF] = "if", [S_ELEMS] = "elements", [S_VEC] = "vector",
	[S_VEC_SET] = "vector_set", [S_VEC_ADD] = "vector_add",
	[S_VEC_STORE] = "vector_store", [S_ROW_STORE] = "rowval_store", [S_SUMS] = "sums",
	[S_SUM] = "sum", [S_SHARE] = "share", [S_BARRIER] = "barrier",
	[S_PARTS] = "partials", [S_PART_VEC] = "partial_vector", [S_KEEP] = "keep", [S_SPREAD] = "spread",
	[S_SPREAD_TOTAL] = "spread_total", [S_SPREAD_PARTS] = "spread_partials",
};

/* one statement a line, operands as the text will have them */
void
kern_print(const Kern *k, FILE *f)
{
	const Stmt *s;
	Buf b = {0};
	int i;

	fprintf(f, "kern %s\n", k->name);
	for (i = 0; i < k->npar; i++)
		fprintf(f, "  par %s %s\n", k->par[i].name,
		        k->par[i].shape ? k->par[i].shape : "");
	for (i = 0; i < k->nstmt; i++) {
		s = &k->stmt[i];
		fprintf(f, "  %s %s", stmt_name[s->kind], s->name ? s->name : "");
		if (s->par >= 0)
			fprintf(f, " par %s", k->par[s->par].name);
		if (s->kind == S_LOOP)
			fprintf(f, " %d..%d %s", s->lo, s->hi, s->reduce ? s->reduce : "");
		if (s->e) {
			b.len = 0;
			exp_text(k, s->e, 0, &b);
			fprintf(f, " = %s", b.s);
		}
		fputc('\n', f);
	}
	buf_free(&b);
}
