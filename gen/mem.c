/* Plan -> Plan: a place in acts for every buffer.
 *
 * Two buffers may share bytes if no step needs both.  Largest first, each at
 * the lowest offset that is free for its whole life: simple, deterministic,
 * and within a few percent of the peak of live bytes on these plans, where a
 * few sizes repeat layer by layer. */
#include "hcgen.h"

#include <stdlib.h>

static size_t
align256(size_t n)
{
	return (n + 255) & ~(size_t)255;
}

static bool
overlap(const Buffer *a, const Buffer *b)
{
	return a->first <= b->last && b->first <= a->last;
}

/* buffers of earlier placement, by offset */
typedef struct { size_t off, end; } Span;

static int
span_cmp(const void *a, const void *b)
{
	const Span *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static size_t
lowest_fit(const Plan *p, const int *order, int nplaced, const Buffer *b, Span *span)
{
	const Buffer *o;
	size_t at = 0, need = align256(b->nbytes);
	int i, n = 0;

	for (i = 0; i < nplaced; i++) {
		o = &p->buf[order[i]];
		if (overlap(o, b))
			span[n++] = (Span){ o->off, o->off + align256(o->nbytes) };
	}
	qsort(span, (size_t)n, sizeof *span, span_cmp);
	for (i = 0; i < n; i++) {
		if (span[i].off >= at + need)
			break;
		if (span[i].end > at)
			at = span[i].end;
	}
	return at;
}

void
mem_place(Plan *p)
{
	int *order = NEWN(p->mem, int, p->nbuf), i, j, k;
	Span *span = NEWN(p->mem, Span, p->nbuf);
	Buffer *b;

	for (i = 0; i < p->nbuf; i++) {
		for (j = i; j > 0 && p->buf[order[j - 1]].nbytes < p->buf[i].nbytes; j--)
			order[j] = order[j - 1];
		order[j] = i;
	}
	p->acts_nbytes = 0;
	for (k = 0; k < p->nbuf; k++) {
		b = &p->buf[order[k]];
		b->off = lowest_fit(p, order, k, b, span);
		if (b->off + align256(b->nbytes) > p->acts_nbytes)
			p->acts_nbytes = b->off + align256(b->nbytes);
	}
}

void
mem_verify(const Plan *p)
{
	const Buffer *a, *b;
	int i, j;

	for (i = 0; i < p->nbuf; i++) {
		a = &p->buf[i];
		if (a->first < 0 || a->off % 256 || a->off + a->nbytes > p->acts_nbytes)
			bug("mem: buffer %d (%s) life %d..%d at %zu", i, a->name,
			    a->first, a->last, a->off);
		for (j = 0; j < i; j++) {
			b = &p->buf[j];
			if (overlap(a, b) && a->off < b->off + b->nbytes &&
			    b->off < a->off + a->nbytes)
				bug("mem: buffers %d (%s) and %d (%s) overlap", j, b->name,
				    i, a->name);
		}
	}
}
