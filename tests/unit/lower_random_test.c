/* Random graphs of row algebra as CUDA text, run by the simt executor: what
 * lower_cuda_test.c does with graphs by hand.
 *
 *   lower_random_test [FIRST COUNT]         seeds; 12 from 0 otherwise
 *
 * A graph grows op by op from three vecs: sums, products, norms, dot products
 * and sums of whole rows and of heads, slices, pads, rotations, shifts, numbers
 * per row and per head.  Its gradient makes most of the kernels.  The grids of
 * kernels that sum over rows are cut to a few blocks, so that they turn.  Those of odd
 * seeds are lowered as if they had no registers (hoist.c, stream.c, spread.c). */
#define TARGET TO_CUDA
#define main hand_main
#include "lower_test.c"
#undef main
#include "../../gen/lower_cuda.h"

enum { MostValues = 64 };

typedef struct {
	Hand *h;
	Graph *g;
	int D;                          /* channels of a head, 0: no heads */
	bool adjacent;
	int R;                          /* of a head that a rotation turns */
	int vec[MostValues], nvec;
	int row[MostValues], nrow;      /* numbers per row or per head */
	int nshift, nrotate;
} Grow;

static int
width(const Grow *f, int v)
{
	return f->g->v[v].width;
}

static int
unit(const Grow *f)
{
	return f->D ? f->D : 1;
}

static int
any_vec(Grow *f)
{
	return f->vec[below(f->nvec)];
}

static void
new_vec(Grow *f, int v)
{
	if (f->nvec < MostValues)
		f->vec[f->nvec++] = v;
}

static void
new_row(Grow *f, int v)
{
	if (f->nrow < MostValues)
		f->row[f->nrow++] = v;
}

/* a vec of w channels, cut or padded where none is at hand */
static int
of_width(Grow *f, int w)
{
	int i, v, at;

	for (i = 0; i < 30; i++) {
		v = any_vec(f);
		at = (width(f, v) > w ? width(f, v) - w : w - width(f, v)) / unit(f);
		at = below(at + 1) * unit(f);
		if (width(f, v) == w)
			return v;
		if (i > 10 && width(f, v) > w)
			return slice(f->g, v, at, w);
		if (i > 10 && below(2))
			return pad(f->g, v, at, w);
	}
	return width(f, f->h->x) > w ? slice(f->g, f->h->x, 0, w) : f->h->x;
}

/* a number for all, for `groups` or one, or -1 */
static int
of_groups(Grow *f, int groups)
{
	int i, v;

	for (i = 0; i < 10 && f->nrow; i++) {
		v = f->row[below(f->nrow)];
		if (width(f, v) == 1 || width(f, v) == groups)
			return v;
	}
	return -1;
}

static int
coefficient(Grow *f)
{
	int c = post_coef(f->h, below(16));

	switch (below(3)) {
	case 0:
		return mul(f->g, c, post_coef(f->h, below(16)));
	case 1:
		return point(f->g, OP_TANH, c, -1);
	default:
		return c;
	}
}

static int
shift_any(Grow *f, int v)
{
	bool heads = f->D > 2 && f->g->v[v].kind == K_VEC && width(f, v) % f->D == 0 && below(2);

	f->nshift++;
	return shift(f->g, below(2) ? OP_SHIFT : OP_UNSHIFT, v, 1 + below(4),
	             below(2) ? EDGE_KEEP : EDGE_ZERO, below(2),
	             heads ? SHIFT_HEADS(f->D, 2 * (1 + below(f->D / 2 - 1))) : 0);
}

static void
grow_rows(Grow *f, int v, int groups)
{
	Graph *g = f->g;
	int w = width(f, v), r;

	switch (below(5)) {
	case 0:
		new_row(f, mul(g, num(g, (double)groups / w), dot(g, v, of_width(f, w), groups)));
		return;
	case 1:
		new_row(f, mul(g, num(g, (double)groups / w), sumc(g, v, groups)));
		return;
	}
	if (!f->nrow)
		return;
	r = f->row[below(f->nrow)];
	switch (below(4)) {
	case 0:
		if (width(f, r) > 1)
			new_row(f, mul(g, num(g, 0.3), sumg(g, r)));
		return;
	case 1:
		new_row(f, point(g, OP_SIGMOID, r, -1));
		return;
	case 2:
		new_row(f, add(g, coefficient(f), mul(g, r, coefficient(f))));
		return;
	default:
		if (f->nshift < 3)
			new_row(f, shift_any(f, r));
	}
}

static int
moved_vec(Grow *f, int v)
{
	int w = width(f, v), C = f->h->C, u = unit(f), n;

	if (below(2) && w > u) {
		n = (1 + below(w / u - 1)) * u;
		return slice(f->g, v, below((w - n) / u + 1) * u, n);
	}
	n = w + below((C - w) / u + 1) * u;
	return n > w ? pad(f->g, v, below((n - w) / u + 1) * u, n) : v;
}

static int
turned_vec(Grow *f, int v)
{
	Graph *g = f->g;

	if (!f->D || width(f, v) % f->D || f->nrotate > 2)
		return v;
	f->nrotate++;
	return rotate(g, v, table(g, 0, f->R / 2, false), table(g, 1, f->R / 2, false), f->D, f->adjacent,
	              below(2) ? 1 : -1);
}

static void
grow_vecs(Grow *f, int v, int groups)
{
	static const Op op[] = { OP_TANH, OP_SIGMOID, OP_NEG };
	Graph *g = f->g;
	int w = width(f, v), r = of_groups(f, groups);

	switch (below(10)) {
	case 0:
		v = add(g, v, of_width(f, w));
		break;
	case 1:
		v = mul(g, v, of_width(f, w));
		break;
	case 2:
		v = norm(g, v, groups);
		break;
	case 3:
		v = r < 0 ? v : mul(g, point(g, OP_TANH, r, -1), v);
		break;
	case 4:
		v = r < 0 ? v : add(g, r, v);
		break;
	case 5:
		v = moved_vec(f, v);
		break;
	case 6:
		v = turned_vec(f, v);
		break;
	case 7:
		v = f->nshift < 3 ? shift_any(f, v) : v;
		break;
	case 8:
		v = w == f->h->C ? mul(g, v, lane_row(f->h, below(4))) : mul(g, coefficient(f), v);
		break;
	default:
		v = point(g, op[below(3)], v, -1);
	}
	new_vec(f, v);
}

/* a vec of the whole width from the last that were made */
static int
joined(Grow *f)
{
	int i, v, sum = -1, C = f->h->C, u = unit(f);

	for (i = f->nvec - 1; i >= 0 && i >= f->nvec - 5; i--) {
		v = f->vec[i];
		if (width(f, v) < C)
			v = pad(f->g, v, below((C - width(f, v)) / u + 1) * u, C);
		sum = sum < 0 ? v : add(f->g, sum, v);
	}
	for (i = f->nrow - 1; i >= 0 && i >= f->nrow - 3; i--)
		if (width(f, f->row[i]) == 1 || (f->D && width(f, f->row[i]) == C / f->D))
			sum = add(f->g, sum, mul(f->g, f->row[i], f->h->y));
	return sum;
}

static int
grown(Grow *f, int nops)
{
	int v, w, groups;

	while (nops--) {
		v = any_vec(f);
		w = width(f, v);
		groups = f->D && w % f->D == 0 && below(3) ? w / f->D : 1;
		if (below(4) == 0)
			grow_rows(f, v, groups);
		else
			grow_vecs(f, v, groups);
	}
	return joined(f);
}

static Model *
random_model(int C, int R, int seq, const char *storage)
{
	return model_of("random", arena_printf(mem,
	        "model: {layers: 2, width: %d, heads: 1, head_dim: %d, vocab: 67, vocab_multiple: 1, "
	        "mlp: {hidden: 40}, rotary: {base: 50, dims: %d}}\n"
	        "hc: {lanes: 4, post: {learned: true}, lane_init: {learned: true}, sources: {"
	        "a: {kind: bigram, rows: 70}, b: {kind: bigram, rows: 71}, c: {kind: bigram, rows: 72}}}\n"
	        "train: {tokens_per_step: %d, seq_len: %d}\nnumerics: {storage: %s, gemm: f32}\n",
	        C, (R + 7) / 8 * 8, R, seq, seq, storage));
}

static bool
random_graph(void *arg, char err[200])
{
	static const int head[] = { 8, 8, 16, 24, 40, 64, 4, 2, 6, 12, 72, 120, 10 };
	static const int rows[] = { 67, 5, 1 }, length[] = { 12, 1, 5, 67 };
	int mode, D, C, R, nops, seq, i;
	uint64_t at;
	char *texts = NULL;
	void *so = NULL;
	bool bf16;
	Model *m;
	Hand h;

	rng_state = *(const int *)arg * 7919u + 13;
	for (i = 0; i < 5; i++)
		uniform();
	mode = below(3);                        /* without heads, turned in halves, in pairs */
	D = head[below(13)];
	bf16 = below(2);
	C = mode ? D * (1 + below(D > 16 ? 8 : 24)) : 8 * (1 + below(40));
	while (C % 8)
		C += D;
	R = mode ? 2 * (1 + below(D / 2)) : 8;
	seq = length[below(4)];
	nops = 3 + below(12);
	m = random_model(C, R, seq, bf16 ? "bf16" : "f32");
	at = rng_state;
	for (i = 0; i < 3; i++) {
		Grow f = { .h = &h, .D = mode ? D : 0, .adjacent = mode == 2, .R = R };

		rng_state = at;
		h = hand_new(m, rows[i]);
		rng_state = at + 5;
		f.g = h.g;
		new_vec(&f, h.x);
		new_vec(&f, h.y);
		new_vec(&f, h.z);
		hand_finish(&h, grown(&f, nops));
		if (!kernels_agree(simplify(mem, h.g), &h.in, &so, &texts, err))
			return false;
	}
	return true;
}

int
main(int argc, char **argv)
{
	int first = argc > 2 ? atoi(argv[1]) : 0, n = argc > 2 ? atoi(argv[2]) : 12, i;
	char name[40];

	mem = arena_new("test");
	few_blocks = true;
	for (i = first; i < first + n; i++) {
		snprintf(name, sizeof name, "random graph %d", i);
		lower_crowded = i % 2 ? 0 : 232;
		lower_few_sums = i % 2 ? 0 : 32;
		check_case(name, random_graph, &i);
	}
	arena_free(mem);
	return summary();
}
