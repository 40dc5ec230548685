/* What counting gets: an order-2 model of the training tokens, so that a loss
 * can be read.  A network that does not beat it has learned nothing yet.
 *
 * With a, b the two tokens before w, N(.) a count, T(.) the number of different
 * tokens seen behind a context, V the vocabulary (Witten and Bell):
 *
 *     p0(w)    = (N(w)   + T  / V)        / (N     + T)
 *     p1(w|b)  = (N(bw)  + T(b)  p0(w))   / (N(b)  + T(b))
 *     p2(w|ab) = (N(abw) + T(ab) p1(w|b)) / (N(ab) + T(ab))
 *
 * A context that was never seen passes on the order below.  Tables are dense:
 * V^3 counts. */
#define _GNU_SOURCE
#include "hcrun.h"

#include <math.h>

/* order 0, 1, 2: counts by context and token; sums and kinds by context */
typedef struct {
	int vocab;
	uint32_t *count[3], *total[3], *kinds[3];
} Ngram;

/* Contexts of order 0, 1, 2; -1 where fewer tokens are there. */
typedef struct { long at[3]; } Context;

static Context
context(const uint16_t *t, long i, int vocab, int bos)
{
	Context c = {{0, -1, -1}};

	if (i < 1)
		return c;
	c.at[1] = t[i - 1];
	/* what came before a document says nothing about its first token */
	if (i < 2 || t[i - 1] == bos)
		return c;
	c.at[2] = (long)t[i - 2] * vocab + t[i - 1];
	return c;
}

static void
tables_new(Ngram *g, Arena *a)
{
	size_t contexts = 1;
	int k;

	for (k = 0; k < 3; k++, contexts *= (size_t)g->vocab) {
		g->count[k] = NEWN(a, uint32_t, contexts * (size_t)g->vocab);
		g->total[k] = NEWN(a, uint32_t, contexts);
		g->kinds[k] = NEWN(a, uint32_t, contexts);
	}
}

static void
count_all(Ngram *g, const uint16_t *t, long n, int bos)
{
	Context c;
	long i;
	int k;

	for (i = 0; i < n; i++) {
		c = context(t, i, g->vocab, bos);
		for (k = 0; k < 3 && c.at[k] >= 0; k++) {
			g->total[k][c.at[k]]++;
			if (g->count[k][c.at[k] * g->vocab + t[i]]++ == 0)
				g->kinds[k][c.at[k]]++;
		}
	}
}

static double
probability(const Ngram *g, const Context *c, int w)
{
	double p = 1.0 / g->vocab, n, t;
	int k;

	for (k = 0; k < 3 && c->at[k] >= 0; k++) {
		n = g->total[k][c->at[k]];
		t = g->kinds[k][c->at[k]];
		if (n > 0)
			p = (g->count[k][c->at[k] * g->vocab + w] + t * p) /
			    (n + t);
	}
	return p;
}

/* The first of val is context only, as it is for the network. */
double
ngram_nats(const uint16_t *train, long n, const uint16_t *val, long m,
           int vocab, int bos)
{
	Arena *a = arena_new("ngram");
	Ngram g = {.vocab = vocab};
	Context c;
	double sum = 0;
	long i;

	if (vocab > 512 || n > UINT32_MAX || m < 2)
		bug("ngram: vocab %d, %ld and %ld tokens", vocab, n, m);
	tables_new(&g, a);
	count_all(&g, train, n, bos);
	for (i = 1; i < m; i++) {
		c = context(val, i, vocab, bos);
		sum -= log(probability(&g, &c, val[i]));
	}
	arena_free(a);
	return sum / (double)(m - 1);
}
