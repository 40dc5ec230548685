/* What the tests of the pipeline share: cases, children that die, random
 * numbers, models from YAML text, inputs, comparison.  Included once, after
 * nothing: it defines what it declares. */
#ifndef TEST_H
#define TEST_H

#define _GNU_SOURCE
#include "../../gen/kern.h"
#include "../../gen/interp.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static Arena *mem;
static int failed, passed;

static inline void check(const char *name, bool ok, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* One case.  A test that loops calls it once, with what it saw first. */
static inline void
check(const char *name, bool ok, const char *fmt, ...)
{
	va_list ap;

	if (ok) {
		passed++;
		printf("ok %s\n", name);
		return;
	}
	failed++;
	printf("FAIL %s ", name);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

static inline int
summary(void)
{
	printf("%d ok, %d failed\n", passed, failed);
	return failed != 0;
}

/* children that die */

typedef struct { int rc; char err[2000]; } Child;

/* Runs fn in a child; its exit code (-1: a signal) and what it said. */
static inline Child
child(void (*fn)(void *), void *arg)
{
	Child c = { -1, "" };
	size_t n = 0;
	ssize_t got;
	int p[2], status;
	pid_t pid;

	fflush(NULL);
	if (pipe(p) != 0 || (pid = fork()) < 0)
		die("pipe, fork: %s", strerror(errno));
	if (pid == 0) {
		dup2(p[1], 2);
		close(p[0]);
		close(p[1]);
		fn(arg);
		_exit(0);
	}
	close(p[1]);
	while ((got = read(p[0], c.err + n, sizeof c.err - 1 - n)) > 0)
		n += (size_t)got;
	close(p[0]);
	waitpid(pid, &status, 0);
	c.rc = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	c.err[strcspn(c.err, "\n")] = 0;
	return c;
}

/* A case in a child, so that a bug() in it is a failure of that case alone. */
typedef struct { bool (*fn)(void *arg, char err[200]); void *arg; } Case;

static inline void
case_run(void *p)
{
	const Case *c = p;
	char err[200] = "";

	if (c->fn(c->arg, err))
		_exit(0);
	fprintf(stderr, "%s\n", err);
	_exit(1);
}

static inline void
check_case(const char *name, bool (*fn)(void *arg, char err[200]), void *arg)
{
	const char *only = getenv("ONLY");      /* cases whose name has it */
	Case k = { fn, arg };
	Child c;

	if (only && !strstr(name, only))
		return;
	c = child(case_run, &k);
	check(name, c.rc == 0, "%s", c.rc < 0 ? "died of a signal" : c.err);
}

/* random numbers: splitmix64 */

static uint64_t rng_state = 1;

static inline double
uniform(void)
{
	uint64_t z = rng_state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static inline double
normal(void)
{
	double u = uniform() + 0x1p-60;

	return sqrt(-2 * log(u)) * cos(6.283185307179586 * uniform());
}

static inline int
below(int n)
{
	return (int)(uniform() * n);
}

/* models */

/* set: "path=value", as after --set */
static inline Model *
model_set(const char *name, const char *yaml, int nset, const char *const *set)
{
	char path[] = "/tmp/unit_test.XXXXXX";
	int fd = mkstemp(path);
	Diag *d = diag_new(mem);
	size_t n = strlen(yaml);
	Model *m = NULL;
	Spec *s;

	if (fd < 0 || write(fd, yaml, n) != (ssize_t)n)
		die("%s: %s", path, strerror(errno));
	close(fd);
	s = spec_read(mem, d, path, nset, set);
	unlink(path);
	if (s)
		m = model_build(mem, d, s);
	if (!m) {
		diag_flush(d, stderr);
		die("spec %s of the test is wrong", name);
	}
	model_verify(m);
	return m;
}

static inline Model *
model_of(const char *name, const char *yaml)
{
	return model_set(name, yaml, 0, NULL);
}

/* the specs that every stage is tested on: small, and between them every key
 * that changes a graph */

#define MODEL(layers, rest) "model: {layers: " #layers ", width: 16, heads: 2, vocab: 19, " \
	"vocab_multiple: 8, init: {out: random}, " rest "}\n"
#define END_SPEC "data: {bos: 3}\nnumerics: {storage: f32, gemm: f32}\n"
#define TRAIN(tokens, seq) "train: {tokens_per_step: " #tokens ", seq_len: " #seq "}\n" END_SPEC

static const struct { const char *name, *yaml; } spec_text[] = {
	{ "plain",
	  MODEL(2, "rotary: none, attention: {qk_norm: false, document_mask: false}")
	  TRAIN(24, 12) },
	{ "gelu-tied-tanh",
	  MODEL(2, "tied: true, mlp: {kind: gelu, hidden: 24}, rotary: {kind: half, dims: 4}, "
	        "softcap: 5, norm_eps: 1e-3")
	  TRAIN(24, 12) },
	{ "swiglu-gqa-windows",
	  "model: {layers: 3, width: 32, heads: 4, kv_heads: 2, vocab: 19, vocab_multiple: 1, "
	  "norm_weight: true, mlp: {kind: swiglu, hidden: 40}, rotary: {kind: adjacent, dims: 6}, "
	  "attention: {window: [full, 2], scale: 0.3}, init: {out: random}}\n"
	  TRAIN(32, 16) },
	{ "tiny-shape",
	  MODEL(3, "softcap: {kind: sigmoid, cap: 23}")
	  "hc: {lanes: 2, post: {learned: true}, resid_lambda: {granularity: sublayer, init: 1.05}, "
	  "sources: {x0: {kind: x0, init: 0.1}}}\n"
	  TRAIN(24, 8) },
	{ "lanes-in-a-range",
	  MODEL(4, "norm_weight: true")
	  "hc: {lanes: 3, layers: {first: 1, last: 2}, leave: mean, res: {learned: true}, "
	  "pre: {learned: true, sublayers: {except: [3]}}, post: {learned: true, sublayers: attn}, "
	  "output: learned}\n"
	  TRAIN(24, 12) },
	{ "four-lanes-all-learned",
	  MODEL(2, "mlp: {kind: gelu}")
	  "hc: {lanes: 4, res: {learned: true, init: {ramp: [0.1, 0.4]}}, pre: {learned: true}, "
	  "post: {learned: true, init: {ramp: [1, 2]}}, output: learned, "
	  "lane_init: {kind: split, learned: true}, resid_lambda: {granularity: lane}}\n"
	  TRAIN(24, 12) },
	{ "sources",
	  MODEL(3, "")
	  "hc: {lanes: 2, post: {learned: true}, sources: {"
	  "e: {kind: bigram, rows: 11, init: 0.3, first: lane_init, table_std: 1}, "
	  "f: {kind: bigram, rows: 13, signs: 5, init: 0.2, site: before_read, first: both, sublayers: attn, table_std: 1}, "
	  "x: {kind: x0, granularity: layer, shared: true, init: 0.1}, "
	  "z: {kind: x0, init: 0.1, site: before_read, learned: false, layers: [1]}}}\n"
	  TRAIN(24, 6) },
	{ "skips",
	  MODEL(3, "")
	  "hc: {lanes: 3, pre: {init: 0.4}, resid_lambda: {granularity: layer, site: before_read}, skips: {"
	  "a: {from: {sublayer: 0, lane: mean}, to: {sublayer: 3}, gate: 0.5}, "
	  "b: {from: {sublayer: 1, lane: 2, when: before}, to: {sublayer: 4, lane: 1, when: after}, gate: {kind: sigmoid, init: 0.3}}, "
	  "c: {from: {sublayer: 2, lane: 1}, to: {sublayer: 5, lane: 0}, gate: {kind: token, init: -1, channels: 12}}, "
	  "d: {from: {sublayer: 0, lane: 0}, to: {sublayer: 5, lane: all, when: after}, gate: {init: 0.7, learned: false}}}, "
	  "backouts: {p: {from: {sublayer: 2, lane: mean}, gate: 0.3}, "
	  "q: {from: {sublayer: 4, lane: 1, when: before}, gate: {kind: token, channels: 5}}}}\n"
	  TRAIN(24, 12) },
	{ "dead-sublayers",
	  MODEL(4, "attention: {layers: {except: [2]}}, mlp: {layers: [0, 2, 3], kind: swiglu, hidden: 24}")
	  "hc: {lanes: 2, dead: [6], res: {learned: true}, sources: {x0: {kind: x0, granularity: layer, init: 0.2}}, "
	  "skips: {s: {from: {sublayer: 3, lane: 1}, to: {sublayer: 7}, gate: 0.5}}}\n"
	  TRAIN(24, 12) },
	{ "keep-and-one-lane-out",
	  MODEL(3, "embed_norm: false")
	  "hc: {lanes: 3, layers: [1], leave: keep, output: {lane: 1}, lane_init: first, "
	  "post: {learned: true}, pre: {init: [0.5, 0.3, 0.2]}, resid_lambda: {granularity: lane, site: before_read}}\n"
	  TRAIN(24, 12) },
	{ "gates-and-value-embeddings",
	  "model: {layers: 3, width: 32, heads: 2, vocab: 19, vocab_multiple: 8, smear: 5, "
	  "rotary: {kind: adjacent, dims: 8, base: 64, frequencies: endpoint, dtype: bf16}, "
	  "attention: {window: [3, 5], gate: {layers: {except: [1]}, channels: 6}, "
	  "sa_lambda: {layers: [0, 2], init: [0.5, 1.5]}, key_offset: [1, 2]}, "
	  "value_embed: {layers: [0, 2], channels: 12, std: 1}, init: {out: random}}\n"
	  "hc: {resid_lambda: {granularity: layer, site: before_read, init: 1.1}, sources: {x0: {kind: x0, init: 0.1}}}\n"
	  TRAIN(24, 12) },
	{ "paired-heads",
	  "model: {layers: 3, width: 32, heads: 4, vocab: 19, vocab_multiple: 8, "
	  "rotary: {kind: half, dims: 6, base: 64}, attention: {window: [3, full], paired: [0, 2], gate: [0, 1]}, "
	  "value_embed: {layers: [0], std: 1}, init: {out: random}}\n"
	  "hc: {lanes: 2, post: {learned: true}}\n"
	  TRAIN(24, 12) },
	{ "gates-with-lanes",
	  "model: {layers: 2, width: 32, heads: 4, kv_heads: 2, vocab: 19, vocab_multiple: 8, norm_weight: true, smear: 12, "
	  "rotary: {kind: half}, attention: {qk_norm: false, gate: all, key_offset: {layers: [1], first: 0}, sa_lambda: all}, "
	  "value_embed: {layers: all, channels: 3, std: 1}, init: {out: random}}\n"
	  "hc: {lanes: 2, post: {learned: true}, res: {learned: true}}\n"
	  TRAIN(24, 12) },
	{ "documents",
	  MODEL(2, "attention: {window: 3}, softcap: {kind: sigmoid, cap: 9, shift: 1, temperature: 3}, "
	        "rotary: {base: 100}")
	  "hc: {lanes: 2, leave: sum, layers: [0], res: {init: {identity: 1.02}}}\n"
	  TRAIN(36, 12) },
	{ "one-lane-hc",
	  MODEL(2, "tied: true, norm_weight: true")
	  "hc: {lanes: 1, res: {init: 0.9, learned: true}, pre: {init: 1.1, learned: true}, "
	  "post: {init: 0.8, learned: true}, sources: {x0: {kind: x0, init: 0.2, shared: true}}, "
	  "resid_lambda: {granularity: sublayer, learned: false, init: 0.95}, output: sum}\n"
	  TRAIN(24, 12) },
	{ "first-lane-and-sum",
	  MODEL(2, "mlp: {kind: gelu}, rotary: adjacent")
	  "hc: {lanes: 4, lane_init: first, output: sum, pre: {init: 0.25, learned: true, layers: [1]}, "
	  "res: {learned: true, sublayers: mlp}, leave: {lane: 2}, layers: {first: 0, last: 0}}\n"
	  TRAIN(24, 12) },
	{ "scaled-lane-init",
	  MODEL(2, "mlp: {kind: gelu}")
	  "hc: {lanes: 3, lane_init: {learned: true}, resid_lambda: {granularity: sublayer, init: 0.9}}\n"
	  TRAIN(24, 12) },
	{ "split-value-gates",
	  "model: {layers: 3, width: 32, heads: 4, kv_heads: 2, vocab: 19, vocab_multiple: 8, norm_weight: true, "
	  "value_embed: {layers: all, split: [0, 2], channels: 10, std: 1}, attention: {gate: [0]}, init: {out: random}}\n"
	  "hc: {lanes: 2, post: {learned: true}, layers: [1, 2]}\n"
	  TRAIN(24, 12) },
	{ "sources-on-the-branch",
	  MODEL(4, "mlp: {kind: gelu}")
	  "hc: {lanes: 3, layers: {first: 2, last: 3}, pre: {learned: true}, "
	  "post: {learned: true, outside: true, init: {attn: 1.2, mlp: 0.9}}, "
	  "resid_lambda: {granularity: sublayer, init: {ramp: [1, 1.1]}}, sources: {"
	  "x: {kind: x0, site: on_branch, init: 0.1, sublayers: attn, first: lane_init}, "
	  "e: {kind: bigram, rows: 11, site: on_branch, detach: true, init: {attn: 0.3, mlp: 0.2}, table_std: 1}, "
	  "f: {kind: bigram, rows: 11, hash: quirk, lane: 1, init: 0.2, table_std: 1, first: both}, "
	  "z: {kind: x0, lane: 0, granularity: layer, init: 0.2, site: before_read}}}\n"
	  TRAIN(24, 12) },
	{ "one-stream-on-the-branch",
	  MODEL(3, "")
	  "hc: {post: {learned: true, init: {attn: 1.2, mlp: 0.9}}, resid_lambda: {granularity: sublayer, init: 1.05}, sources: {"
	  "x: {kind: x0, site: on_branch, granularity: layer, init: 0.1}, "
	  "e: {kind: bigram, rows: 11, site: on_branch, sublayers: attn, init: 0.3, table_std: 1, first: lane_init}}}\n"
	  TRAIN(24, 12) },
	{ "reads",
	  MODEL(4, "norm_weight: true, attention: {layers: {except: [2]}, gate: {layers: all, channels: 5}}, "
	        "value_embed: {layers: [3], channels: 6, split: all, std: 1}")
	  "hc: {lanes: 3, layers: {first: 1, last: 3}, pre: {learned: true}, post: {learned: true}, "
	  "resid_lambda: {granularity: lane, site: before_read, init: 1.1}, "
	  "skips: {s: {from: {sublayer: 1}, to: {sublayer: 3}, gate: 0.5}}, reads: {"
	  "a: {from: {sublayer: 3, lane: 1}, sublayers: [4, 6]}, b: {from: {sublayer: 3, lane: mean, when: before}, sublayers: [3, 7]}, "
	  "c: {from: {sublayer: 0}, sublayers: [2]}}}\n"
	  TRAIN(24, 12) },
	{ "one-value-for-three-branches",
	  MODEL(4, "value_embed: {layers: [2, 3], std: 1}")
	  "hc: {post: {learned: true, sublayers: attn}, resid_lambda: {granularity: sublayer, init: 1.05}, "
	  "sources: {x: {kind: x0, sublayers: attn, init: 0.1}}, "
	  "reads: {cached: {from: {sublayer: 1}, sublayers: [2, 4, 6]}}, "
	  "backouts: {b: {from: {sublayer: 1}, gate: 0.5}}}\n"
	  TRAIN(24, 12) },
	{ "several-targets",
	  MODEL(2, "softcap: {kind: sigmoid, cap: 9, shift: 1, temperature: 3}")
	  "hc: {lanes: 2, post: {learned: true}}\n"
	  "train: {tokens_per_step: 24, seq_len: 6, stages: {a: {targets: [1, 0.5, 0.25, 2]}}}\n"
	  "numerics: {storage: f32, gemm: f32}\n" },
	{ "detached-bigram",
	  MODEL(2, "")
	  "hc: {lanes: 2, sources: {e: {kind: bigram, rows: 11, table_std: 1, init: 0.3, detach: true}}}\n"
	  TRAIN(24, 12) },
};

enum { NSpecs = sizeof spec_text / sizeof *spec_text };

static inline Model *
model_at(int i)
{
	return model_of(spec_text[i].name, spec_text[i].yaml);
}

/* index of a parameter */
static inline int
param_of(const Model *m, const char *name)
{
	int i;

	for (i = 0; i < m->nparam; i++)
		if (strcmp(m->param[i].name, name) == 0)
			return i;
	die("the test's model has no parameter %s", name);
}

/* inputs */

static inline double **
params_random(const Model *m)
{
	double **v = NEWN(mem, double *, m->nparam), s, x;
	const Param *p;
	long j;
	int i;

	for (i = 0; i < m->nparam; i++) {
		p = &m->param[i];
		v[i] = NEWN(mem, double, p->n);
		s = p->role == ROLE_MATRIX ? 1 / sqrt(p->dim[1]) :
		    p->role == ROLE_TABLE ? 1 : 0.3;
		for (j = 0; j < p->n; j++) {
			x = (p->values ? p->values[j] : 0) + s * normal();
			v[i][j] = (float)x;
		}
	}
	return v;
}

/* row where the document of each row begins: where token is bos, or at random,
 * or at the sequence alone */
static inline void
documents(const Model *m, int32_t *doc, long T)
{
	long t;

	for (t = 0; t < T; t++)
		doc[t] = t % m->seq == 0 ||
		         (m->spec->document_mask && uniform() < 0.2) ?
		         (int32_t)t : doc[t - 1];
}

static inline int32_t *
bigram(const Model *m, const int32_t *tok, long T, const Source *s)
{
	int32_t *h = NEWN(mem, int32_t, T), q;
	uint64_t a, b;
	int rows = s->rows;
	long t;

	for (t = 0; t < T; t++) {
		a = 36313 * (uint64_t)tok[t];
		b = t % m->seq ? 27191 * (uint64_t)tok[t - 1] : 0;
		if (s->hash_quirk && t % m->seq == 1)
			b = 27191 * (uint64_t)(rows - 1);
		q = (int32_t)(a ^ b) % (rows - 1);
		h[t] = !(t % m->seq) ? rows - 1 : !s->hash_quirk ? (int32_t)((a ^ b) % (uint64_t)(rows - 1)) :
		       q < 0 ? q + rows - 1 : q;
	}
	return h;
}

static inline Inputs
inputs_random(const Model *m, long T)
{
	Inputs in = { .T = T, .scale = 1. / (double)T, .weight = m->stage[m->planned].target };
	int32_t *tok = NEWN(mem, int32_t, T), *tgt = NEWN(mem, int32_t, T);
	int32_t *doc = NEWN(mem, int32_t, T);
	const Source *s;
	long t;
	int j;

	for (t = 0; t < T; t++) {
		tok[t] = below(m->V);
		tgt[t] = below(m->V);
	}
	documents(m, doc, T);
	for (j = 0; j < m->spec->nsource; j++) {
		s = &m->spec->source[j];
		if (!s->none && s->kind == SRC_BIGRAM)
			in.hash[j] = bigram(m, tok, T, s);
	}
	in.tokens = tok;
	in.targets = tgt;
	in.docstart = doc;
	in.param = params_random(m);
	return in;
}

/* Runs a graph, keeping no value but the results. */
static inline Interp *
results_of(const Graph *g, const Inputs *in)
{
	bool *want = calloc((size_t)g->n + 1, 1);
	Interp *I = interp_graph(g, in, want);

	free(want);
	return I;
}

/* the forward part alone */
static inline Graph
forward_of(const Graph *g)
{
	Graph f = *g;
	int i;

	f.n = g->nfwd;
	f.ncontrib = 0;
	f.grad_first = NEWN(mem, int, g->model->nparam + 1);
	for (i = 0; i < g->model->nparam; i++)
		f.grad_first[i] = -1;
	return f;
}

static inline Graph *
train_graph(const Model *m, long T)
{
	Graph *g = graph_build(mem, m, GRAPH_TRAIN, T);

	graph_verify(g);
	grad_append(g);
	graph_verify(g);
	return g;
}

/* graphs by hand: vectors x, y, z that are rows of tables, row t being token
 * t's; a stream e that what is tested is added to; a head */

typedef struct {
	Graph *g;
	const Model *m;
	Inputs in;
	int C, T;
	int x, y, z, e;         /* vecs of C channels */
} Hand;

/* lanes 4; hc.post [4, 4] for scalars, hc.lane_init [4, C] for vectors of all
 * rows; at most 67 rows */
static inline Model *
hand_model(int width, int seq, const char *numerics)
{
	return model_of("hand", arena_printf(mem,
	        "model: {layers: 2, width: %d, heads: 1, head_dim: 8, vocab: 67, "
	        "vocab_multiple: 1, mlp: {hidden: 40}, rotary: {base: 50}}\n"
	        "hc: {lanes: 4, post: {learned: true}, lane_init: {learned: true}, sources: {"
	        "a: {kind: bigram, rows: 70}, b: {kind: bigram, rows: 71}, "
	        "c: {kind: bigram, rows: 72}}}\n"
	        "train: {tokens_per_step: %d, seq_len: %d}\nnumerics: {storage: %s, gemm: f32}\n",
	        width, seq, seq, numerics));
}

static inline int
rows_of(Hand *h, const char *name, int rows)
{
	int v = heavy(h->g, OP_GATHER, K_VEC, h->C, mat(h->g, param_of(h->m, name)), -1);

	h->g->v[v].attr[0] = rows ? IDX_HASH : IDX_TOKENS;
	h->g->v[v].attr[1] = rows ? rows : h->m->Vp;
	return v;
}

static inline Hand
hand_new(const Model *m, int T)
{
	int32_t *id = NEWN(mem, int32_t, T), t;
	Hand h = { .m = m, .C = m->C, .T = T };

	h.g = graph_new(mem, m, GRAPH_TRAIN, T);
	h.in = inputs_random(m, T);
	for (t = 0; t < T; t++)
		id[t] = t;
	h.in.tokens = id;
	h.in.hash[0] = h.in.hash[1] = h.in.hash[2] = id;
	h.x = rows_of(&h, "embed", 0);
	h.y = rows_of(&h, "hc.sources.a.table", 70);
	h.z = rows_of(&h, "hc.sources.b.table", 71);
	h.e = rows_of(&h, "hc.sources.c.table", 72);
	return h;
}

static inline int
lane_row(Hand *h, int row)
{
	return pvec(h->g, h->m->lane_init, row);
}

static inline int
post_coef(Hand *h, int i)
{
	return coef(h->g, param_of(h->m, "hc.post"), i);
}

/* r becomes part of the loss, with a weight for every row and channel */
static inline void
hand_finish(Hand *h, int r)
{
	Graph *g = h->g;
	int y;

	if (g->v[r].kind == K_VEC && g->v[r].width < h->C)
		r = pad(g, r, 0, h->C);
	y = add(g, h->e, mul(g, r, add(g, h->z, lane_row(h, 3))));
	g->loss = out(g, heavy(g, OP_HEAD, K_TUPLE, h->m->Vp, y, mat(g, h->m->head)), 0);
	g->nfwd = g->n;
	graph_verify(g);
	grad_append(g);
	graph_verify(g);
}

/* comparison */

static inline double
norm2(const double *x, long n)
{
	double s = 0;
	long i;

	for (i = 0; i < n; i++)
		s += x[i] * x[i];
	return sqrt(s);
}

/* |x - y| / scale; 0 where both are 0; infinite where x holds a NaN */
static inline double
distance(const double *x, const double *y, long n, double ref)
{
	double s = 0;
	long i;

	for (i = 0; i < n; i++)
		s += (x[i] - y[i]) * (x[i] - y[i]);
	if (!isfinite(s) || !isfinite(ref))
		return INFINITY;
	return s == 0 ? 0 : ref == 0 ? INFINITY : sqrt(s) / ref;
}

/* Largest distance between the results of two runs of one model: loss, logits
 * and gradients; of sums that cancel, in units of the summed magnitudes.
 * where: the first one beyond the bound. */
static inline double
results_differ(const Interp *a, const Interp *b, double bound, const char **where)
{
	const Model *m = a->g->model;
	double d, scale, worst = 0;
	int i, v, w;
	long n;

	*where = "";
	for (i = -2; i < m->nparam; i++) {
		if (i >= 0) {
			n = m->param[i].n;
			scale = fmax(norm2(b->grad[i], n), norm2(b->grad_mag[i], n));
			d = distance(a->grad[i], b->grad[i], n, scale);
		} else {
			v = i == -2 ? a->g->loss : a->g->logits;
			w = i == -2 ? b->g->loss : b->g->logits;
			n = i == -2 ? 1 : a->in->T * m->Vp;
			d = v < 0 ? 0 : distance(a->x[v], b->x[w], n, norm2(b->x[w], n));
		}
		if (d > bound && !**where)
			*where = i == -2 ? "loss" : i == -1 ? "logits" : m->param[i].name;
		worst = d > worst ? d : worst;
	}
	return worst;
}

#endif
