/* Private to terms.c, pairs.c, slots.c, search.c, lock.c, why.c, product.c and
 * rewrite.c: the planner's view of a graph.
 *
 * A NODE is a vector per row that can lie in memory or be formed in a kernel.
 * A SLOT is a place for a kernel, between two heavy ops.  A FORM of a node, at
 * some slot, is the set of stored vectors it is made of there.  The search
 * decides at every slot what is stored, and so which forms later slots find. */
#ifndef SEARCH_H
#define SEARCH_H

#include "hcgen.h"

typedef enum {
	NODE_MEM,               /* a heavy op's result: lies in memory */
	NODE_SUM,               /* sum of coefficient * node */
	NODE_FUN,               /* any other row op of its leaves */
	NODE_FREE,              /* a parameter vector: nothing to load */
} NodeKind;

/* coef: value of the graph; slot: where both can exist */
typedef struct { int coef, node, slot; } LinTerm;

typedef struct {
	NodeKind kind;
	int val;                /* in the graph */
	int level, slot;        /* of the first kernel that can form it */
	bool stored;            /* a heavy op reads or makes it */
	bool grad;              /* of the backward pass */
	bool source;            /* x0, a row of a table: what all sublayers inject */
	bool source_grad;       /* its gradient */
	int nterm, capterm;     /* SUM */
	LinTerm *term;
	int nleaf, capleaf, *leaf;      /* FUN: nodes */
	int nuser, capuser;
	struct User { int sum, slot; } *user;   /* SUMs with a term of it, and its slot */
	int norm;               /* stored node = norm_coef * this one, or -1 */
	int norm_coef;
	int npair, cappair, *pair;      /* pairs of which it is y */
	int last;               /* last slot that may use it */
	int last_fwd;           /* the same, of the forward pass */
	double nbytes;          /* per row, if stored */
} Node;

/* a dot product of two nodes that only a sum over rows reads: any slot where
 * both are at hand will do */
typedef struct {
	int x, y;               /* nodes; x is the later one */
	int slot;               /* where it is due */
	int with;               /* SUM that has x as a term and is due there, or -1 */
} Pair;

/* sum over rows of (sum of coef * pair) */
typedef struct { int coef, pair; } PairTerm;
typedef struct { int val, nterm, capterm; PairTerm *term; } PairSum;

/* what is done with a node at a slot */
enum { LEAVE, STORE, PART };
typedef struct { int slot, node, what; } Choice;        /* LEAVE is not noted */

typedef struct {
	int level;
	int nreq, capreq, *req;         /* nodes that its kernel must form */
	int nmade, capmade, *made;      /* nodes that can exist from here on */
	int nroot, caproot, *root;      /* values of the graph that it must compute */
	int npair, cappair, *pair;      /* pairs that are due */
	int npend, cappend, *pend;      /* later SUMs with a term by now */
	/* terms of SUMs (user, index) that wait here for their coefficient */
	int nlate, caplate;
	struct Late { int sum, term; } *late;
} Slot;

typedef struct {
	Arena *a;
	Graph *g;               /* a working copy: coefficients are appended */
	int nval;               /* values before those */
	int *level;
	int *nodeof;            /* value -> node, or -1 */
	bool *through;          /* a LIN value of one term: users take its term */
	bool *pairdot;          /* dot that only sums over rows read */
	Dt *dt;
	int nnode, capnode;
	Node *node;
	int nslot, capslot;
	Slot *slot;
	int npair, cappair;
	Pair *pair;
	int nsum, capsum;
	PairSum *sum;
	int first_bwd;          /* slot */
	Knobs knob;
	uint8_t *pinned;        /* [nslot, nnode] choice of a lock, or NULL */
	Choice not;             /* not this one, to see what it is worth; slot -1: none */
	bool apart;             /* gradients of sources in a kernel of their own */
	int at_sources;         /* slot at which sums of sources are laid down, or -1 */
	int nahead, capahead, *ahead;   /* SUMs with two sources or more */
} Terms;

/* what a search decided, in the order of the slots */
typedef struct {
	int slot, node;
	/* PART: of the stored vectors vec[nvec]; PAIR: node is the pair; NORM: the
	 * node is read in its normed form at this slot */
	enum Do { DO_STORE, DO_PART, DO_PAIR, DO_NORM } what;
	int nvec, *vec;
} Action;

typedef struct {
	double nbytes;          /* per row, of vectors that row kernels move */
	double work;            /* what else the search was charged, in such bytes */
	bool crowded;           /* a kernel has more than registers hold */
	int n, cap;
	Action *action;
	int nchoice, capchoice;
	Choice *choice;
} Decisions;

/* ids of stored vectors: a node, or a partial sum of one made at a slot */
static inline int
part_id(const Terms *m, int node, int slot)
{
	return m->nnode + node * m->nslot + slot;
}

/* Sets of stored vectors, each kept once: equal sets have equal numbers; 0 is
 * the empty set. */
typedef struct { int n; const int *id; } Set;
typedef struct { int a, b, set; } Union;
enum { NUnion = 4096 };

/* One way through the slots so far. */
typedef struct {
	double cost;            /* bytes per row */
	double work;            /* multiplications and additions, in such bytes */
	uint8_t *done;          /* [npair] formed already */
	int *form;              /* [nnode] set of each node */
	float *paths;           /* [nnode] terms of its form, written out in full */
	int prev;               /* state of the slot before, and */
	uint8_t *choice;        /* what was done with each candidate there */
} State;

/* what a slot decides on; further nodes are left alone */
enum { MaxCands = 64 };

typedef struct {
	Arena *a;
	const Terms *m;
	int nset, capset;
	Set *set;
	int *hash, nhash;
	int *one;               /* sets of one vector */
	Union *unions;          /* the last ones, by a hash of a and b */
	int t;                  /* the slot, and the state it leads to */
	const State *at;
	const double *nbytes;   /* of every stored vector, per row */
	int *stamp, now;        /* ids at hand in the slot */
	int *orig;              /* forms of what the slot makes, within it */
	double cost, work;
	int nload, npair;
	bool crowded;
	int ncand, cand[MaxCands];      /* nodes to decide on at the slot */
	Decisions *log;         /* or NULL */
} Machine;

/* slots.c */
Machine *machine_new(Arena *a, const Terms *m);
State *state_start(Machine *k);
/* Nodes of which slot t may store something, into k->cand. */
void slot_candidates(Machine *k, int t);
/* What can be done with each candidate, after slot_run has left them alone. */
void slot_options(Machine *k, const State *s, int t, int *nopt, uint8_t (*opt)[3]);
/* What slot t does, given a choice for each candidate: forms and cost of `to`
 * from those of `from`. */
void slot_run(Machine *k, const State *from, int t, const uint8_t *choice, State *to);
/* What the forms of nodes in live[n] hold, per row: each vector will be loaded
 * once at least. */
double slot_ahead(Machine *k, const State *s, const int *live, int n);
/* What the backward pass will load, per row, for what the forward pass made at
 * slot t. */
double slot_later(Machine *k, const State *to, int t);
bool set_within(const Machine *k, int a, int b);

/* Is there a stored multiple of x that stands for it in later slots? */
static inline bool
has_norm(const Terms *m, const Node *x)
{
	return x->norm >= 0 && m->node[x->norm].slot == x->slot;
}

/* terms.c */
Terms *terms_of(Arena *a, const Graph *g, const Knobs *knob, bool apart);
void terms_print(const Terms *m, FILE *f);

/* The terms of v, times coef, onto those of x; top: v's own definition. */
void flatten(Terms *m, Node *x, int v, int coef, bool top);
bool is_required(const Slot *s, int node);

/* pairs.c */
void find_pairs(Terms *m);
void place_pairs(Terms *m);

/* product.c */
enum { MaxFactors = 64 };
typedef struct { double num; int n, f[MaxFactors]; } Product;
void factor(const Graph *g, int c, Product *p);
int times(Graph *g, int a, int b);

/* search.c */
/* States that go on from a slot: as many as the time allows, which for a layer or
 * two is all that matter. */
int beam_of(const Terms *m);

/* beam: such a number; 0: all states that differ, forward and backward decided
 * together, however long it takes */
Decisions *search(Arena *a, const Terms *m, int beam);

/* One plan, or the better of two where sums of sources may be made ahead. */
Terms *search_best(Arena *a, const Graph *g, const Knobs *knob, Decisions **d);

/* lock.c: decisions as text, and back.  die()s where a text is of another graph. */
void lock_print(const Terms *m, const Decisions *d, const char *prog, Buf *b);
/* are learned factors of products in the matrices? */
bool lock_scales(const char *text, const char *prog);
/* were sources made ahead; their gradients apart? */
bool lock_view(const char *text, const char *prog, bool *apart);
void lock_apply(Terms *m, const char *text, const char *prog);

/* rewrite.c */
Graph *rewrite(Arena *a, const Graph *g, Terms *m, const Decisions *d);

#endif
