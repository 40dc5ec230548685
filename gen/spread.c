/* Kern -> Kern, cuda: many sums over rows share the lanes of a warp.
 *
 * A thread that keeps its own part of every sum over rows needs a register for
 * each.  A kernel of a hundred sums has none left for what it loads.  Here a thread
 * keeps a part only until eight are complete; spread8 then adds them up across the
 * warp, so that lanes 4*i … 4*i + 3 are left with sum i, and a thread has one number
 * of eight sums over all rows.  That is 7 shuffles for 8 sums and row.  The numbers
 * lie in shared memory, and in registers where there is too little of that. */
#include "lower_cuda.h"

#include <string.h>

enum { Each = 8, SharedNbytes = 32 * 1024 };

typedef struct {
	const char *name;
	int part;               /* its number among the kernel's partials */
	int first, last;        /* the statements of the row that add to it */
	int batch;
} Sum;

typedef struct {
	Arena *a;
	Kern *k;
	int nold;
	const Stmt *old;
	int n, cap;
	Sum *sum;
} Spread;

static int
find(const Spread *s, const char *name)
{
	int i;

	for (i = 0; name && i < s->n; i++)
		if (strcmp(s->sum[i].name, name) == 0)
			return i;
	return -1;
}

static bool
opens(const Stmt *t)
{
	return t->kind == S_IF || t->kind == S_ELEMS || t->kind == S_LOOP;
}

static bool
conditional(const Stmt *t)
{
	return t->kind == S_IF && (t->lo || t->hi || t->shift[0] || t->shift[1] || t->indexed || t->n);
}

/* Sums that only loops over channels add to: each thread its own part. */
static void
find_sums(Spread *s)
{
	const Stmt *t;
	Sum *x;
	int i;

	for (i = 0; i < s->nold; i++) {
		t = &s->old[i];
		if (t->kind != S_PART)
			continue;
		x = PUSH(s->a, s->sum, s->n, s->cap);
		*x = (Sum){ .name = t->name, .part = t->n, .first = -1, .last = -1 };
	}
}

/* Where each sum is added to; a sum is forgotten if that is not in a loop, or
 * where not all threads are. */
static void
find_places(Spread *s)
{
	int i, j, at = -1, end, depth = 0, loops = 0, ifs = 0, open[64], v;
	const Stmt *t;

	for (i = 0; i < s->nold && s->old[i].kind != S_ROWS; i++)
		;
	for (i++; i < s->nold; i++) {
		t = &s->old[i];
		if (t->kind == S_END && depth == 0)
			break;
		if (opens(t)) {
			at = depth ? at : i;
			open[depth++] = i;
			loops += t->kind == S_ELEMS;
			ifs += conditional(t);
		} else if (t->kind == S_END) {
			j = open[--depth];
			loops -= s->old[j].kind == S_ELEMS;
			ifs -= conditional(&s->old[j]);
		}
		v = t->kind == S_ADD ? find(s, t->name) : -1;
		if (v < 0)
			continue;
		if (!loops || ifs) {
			s->sum[v] = s->sum[--s->n];
			continue;
		}
		for (end = i, j = depth; j > 0; end++)
			j += opens(&s->old[end + 1]) ? 1 : s->old[end + 1].kind == S_END ? -1 : 0;
		if (s->sum[v].first < 0)
			s->sum[v].first = at;
		s->sum[v].last = end;
	}
	for (i = 0; i < s->n; i++)
		if (s->sum[i].first < 0)
			s->sum[i--] = s->sum[--s->n];
}

static void
sort_sums(Spread *s)
{
	Sum x;
	int i, j;

	for (i = 1; i < s->n; i++)
		for (j = i; j > 0 && (s->sum[j].last < s->sum[j - 1].last ||
		     (s->sum[j].last == s->sum[j - 1].last && s->sum[j].part < s->sum[j - 1].part)); j--) {
			x = s->sum[j];
			s->sum[j] = s->sum[j - 1];
			s->sum[j - 1] = x;
		}
	for (i = 0; i < s->n; i++)
		s->sum[i].batch = i / Each;
}

static int
batches(const Spread *s)
{
	return (s->n + Each - 1) / Each;
}

/* batches before this are in shared memory */
static int
shared_batches(const Spread *s)
{
	int threads = s->k->map.threads * s->k->map.rows, n = SharedNbytes / 4 / threads;

	return n < batches(s) ? n : batches(s);
}

static const char *
batch_name(Spread *s, int b)
{
	int threads = s->k->map.threads * s->k->map.rows;

	return b >= shared_batches(s) ? arena_printf(s->k->mem, "eight%d", b) :
	       arena_printf(s->k->mem, "eights[%d + threadIdx.x]", threads * b);
}

/* batches whose last sum is complete after statement i */
static void
put_spreads(Spread *s, int i)
{
	Buf b = {0};
	int j, k, last;

	for (j = 0; j < batches(s); j++) {
		last = (j + 1) * Each < s->n ? (j + 1) * Each - 1 : s->n - 1;
		if (s->sum[last].last != i)
			continue;
		b.len = 0;
		for (k = j * Each; k < (j + 1) * Each; k++)
			buf_printf(&b, "%s%s", k % Each ? ", " : "", k < s->n ? s->sum[k].name : "0.f");
		kern_put(s->k, S_SPREAD, batch_name(s, j))->reduce = arena_strdup(s->k->mem, b.s);
	}
	buf_free(&b);
}

/* after the rows: totals of the block, in shared memory unless a warp has a row */
static void
put_totals(Spread *s)
{
	Map *m = &s->k->map;
	int i;

	for (i = 0; i < batches(s); i++)
		kern_put(s->k, S_SPREAD_TOTAL, batch_name(s, i))->n = i;
	*PUSH(s->k->mem, m->shared, m->nshared, m->capshared) =
	        (struct Shared){ "eights", shared_batches(s) * m->threads * m->rows };
	if (m->rows > 1)
		return;
	kern_put(s->k, S_BARRIER, NULL);
	*PUSH(s->k->mem, m->shared, m->nshared, m->capshared) =
	        (struct Shared){ "spread_part", batches(s) * Each * (m->threads / 32) };
}

/* and in the loop over partials: which sum is which partial */
static void
put_parts(Spread *s, int par)
{
	Buf b = {0};
	Stmt *t;
	int i;

	for (i = 0; i < s->n; i++)
		buf_printf(&b, "%s%d", i ? ", " : "", s->sum[i].part);
	t = kern_put(s->k, S_SPREAD_PARTS, NULL);
	t->reduce = arena_strdup(s->k->mem, b.s);
	t->n = s->n;
	t->par = par;
	buf_free(&b);
}

/* what the sums would have gone through one by one */
static void
drop_shared(Spread *s)
{
	Map *m = &s->k->map;
	char name[256];
	int i, n = 0;

	for (i = 0; i < m->nshared; i++) {
		snprintf(name, sizeof name, "%.*s", (int)(strlen(m->shared[i].name) - 5), m->shared[i].name);
		if (find(s, name) < 0)
			m->shared[n++] = m->shared[i];
	}
	m->nshared = n;
}

static void
rewrite(Spread *s)
{
	const Stmt *t;
	bool rows = false, totals = false, *own = NEWN(s->a, bool, s->nold + 1);
	int i, j;

	for (i = 0; i < s->nold; i++)
		own[i] = find(s, s->old[i].name) >= 0 && (s->old[i].kind == S_SUM ||
		         s->old[i].kind == S_PART || s->old[i].kind == S_ZERO);
	for (i = 0; i < s->nold; i++) {
		t = &s->old[i];
		if (t->kind == S_ROWS) {
			rows = true;
			for (j = 0; j < batches(s); j++)
				kern_put(s->k, j < shared_batches(s) ? S_SPREAD : S_ZERO, batch_name(s, j));
		}
		for (j = 0; j < s->n; j++)
			if (rows && s->sum[j].first == i)
				kern_put(s->k, S_ZERO, s->sum[j].name);
		if (t->kind == S_PARTS && !totals) {
			put_totals(s);
			totals = true;
		}
		if (!own[i])
			*kern_put(s->k, S_NOTE, NULL) = *t;
		put_spreads(s, i);
	}
}

/* The partials stand before `if (threadIdx.x == 0)`, which goes if it is empty. */
static void
move_parts(Spread *s, int par)
{
	Kern *k = s->k;
	Stmt part;
	int i;

	put_parts(s, par);
	part = k->stmt[--k->nstmt];
	for (i = k->nstmt - 1; k->stmt[i].kind != S_PARTS; i--)
		;
	(void)kern_put(s->k, S_NOTE, NULL);
	memmove(k->stmt + i + 2, k->stmt + i + 1, (size_t)(k->nstmt - i - 2) * sizeof *k->stmt);
	k->stmt[i + 1] = part;
	for (; i + 1 < k->nstmt; i++)
		if (k->stmt[i].kind == S_IF && k->stmt[i].indexed && k->stmt[i + 1].kind == S_END) {
			memmove(k->stmt + i, k->stmt + i + 2, (size_t)(k->nstmt - i - 2) * sizeof *k->stmt);
			k->nstmt -= 2;
		}
}

void
spread_sums(Kern *k)
{
	Spread s = { .a = arena_new("spread"), .k = k, .nold = k->nstmt, .old = k->stmt };
	int i, par = -1;

	find_sums(&s);
	find_places(&s);
	if (s.n > lower_few_sums) {
		for (i = 0; i < s.nold; i++)
			par = s.old[i].kind == S_PART ? s.old[i].par : par;
		sort_sums(&s);
		drop_shared(&s);
		k->stmt = NULL;
		k->nstmt = k->capstmt = 0;
		rewrite(&s);
		move_parts(&s, par);
	}
	arena_free(s.a);
}
