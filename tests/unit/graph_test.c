/* graph.c, grad.c, simplify.c: every op against a naive formula, every
 * derivative against central differences, every fold against the graph it
 * came from.
 *
 * Values come from interp_graph, which the naive formulas here check op by op.
 * Differences are of order four, step h = 1e-4 of a direction of unit spread:
 * the truncation is h^4 f^(5)/30, 1e-17 of the loss, the rounding 1.5 * 2^-53 *
 * loss / h, up to 1e-10.  Where relu^2 crosses its corner within the step the
 * difference is off by h; then h = 1e-6 is tried, at which a crossing is rare.
 * The bound is 1e-6 of the derivative. */
#include "test.h"

/* gradients */

static double
loss_of(const Graph *fwd, const Inputs *in)
{
	Interp *I = results_of(fwd, in);
	double l = interp_loss(I) * in->scale;

	interp_free(I);
	return l;
}

/* derivative of the loss along d in one parameter */
static double
slope(const Graph *fwd, const Inputs *in, int p, const double *d, double h)
{
	static const double at[] = { -2, -1, 1, 2 }, w[] = { 1, -8, 8, -1 };
	long n = fwd->model->param[p].n, j;
	double *x = in->param[p], *old = NEWN(mem, double, n), s = 0;
	int i;

	memcpy(old, x, (size_t)n * sizeof *x);
	for (i = 0; i < 4; i++) {
		for (j = 0; j < n; j++)
			x[j] = old[j] + at[i] * h * d[j];
		s += w[i] * loss_of(fwd, in) / (12 * h);
	}
	memcpy(x, old, (size_t)n * sizeof *x);
	return s;
}

/* Does the gradient of every parameter agree along two random directions?
 * err: what does not. */
static bool
gradient_agrees(const Graph *g, const Inputs *in, const char *skip, char err[200])
{
	const Model *m = g->model;
	Graph fwd = forward_of(g);
	Interp *I = results_of(g, in);
	double *d, num_, ana, scale;
	long n, j;
	int p, k;
	bool ok = true;

	for (p = 0; p < m->nparam && ok; p++) {
		if (skip && strcmp(skip, m->param[p].name) == 0)
			continue;
		n = m->param[p].n;
		d = NEWN(mem, double, n);
		for (k = 0; k < 2 && ok; k++) {
			for (ana = 0, j = 0; j < n; j++) {
				d[j] = normal();
				ana += d[j] * I->grad[p][j];
			}
			scale = fmax(fabs(ana), norm2(I->grad[p], n));
			num_ = slope(&fwd, in, p, d, 1e-4);
			ok = fabs(num_ - ana) <= 1e-6 * scale + 1e-10;
			if (!ok)
				ok = fabs(slope(&fwd, in, p, d, 1e-6) - ana) <= 1e-6 * scale;
			if (!ok)
				snprintf(err, 200, "%s: gradient %.12g, differences %.12g",
				         m->param[p].name, ana, num_);
		}
	}
	interp_free(I);
	return ok;
}

/* graphs by hand */

enum { HandT = 36, HandC = 24, HandSeq = 12 };

static Hand
hand(void)
{
	static Model *m;

	if (!m)
		m = hand_model(HandC, HandSeq, "f32");
	return hand_new(m, HandT);
}

/* the simplified graph computes what the graph does */
static bool
simplified_agrees(const Graph *g, const Inputs *in, const char *what, char err[200])
{
	Graph *s = simplify(mem, g);
	Interp *a = results_of(s, in), *b = results_of(g, in);
	const char *where;
	double d = results_differ(a, b, 1e-13, &where);

	graph_verify(s);
	interp_free(a);
	interp_free(b);
	if (d > 1e-13)
		snprintf(err, 200, "%s simplified: %s differs by %.3g", what, where, d);
	return d <= 1e-13;
}

static bool
hand_agrees(Hand *h, char err[200])
{
	return gradient_agrees(h->g, &h->in, NULL, err) &&
	       simplified_agrees(h->g, &h->in, "graph", err);
}

/* pointwise ops */

enum { NKinds = 6 };
static const char *const kind_name[NKinds] = {
	"num", "scalar", "rowval", "rowval[3]", "vec", "pvec",
};

static int
operand(Hand *h, int kind, int side)
{
	Graph *g = h->g;
	int x = side ? h->z : h->x;

	switch (kind) {
	case 0:
		return num(g, side ? -1.3 : 0.7);
	case 1:
		return post_coef(h, side);
	case 2:
		return mul(g, num(g, 1. / HandC), dot(g, x, h->y, 1));
	case 3:
		return mul(g, num(g, 3. / HandC), dot(g, x, h->y, 3));
	case 4:
		return x;
	default:
		return lane_row(h, 1 + side);
	}
}

/* element (t, c) of a value of any kind, seen with W channels: not the one of
 * interp.c */
static double
seen(const Hand *h, const Interp *I, int v, long t, int c, int W)
{
	const Val *x = &h->g->v[v];
	const double *p = I->x[v];

	if (x->kind == K_VEC || x->kind == K_ROWVAL)
		return p[t * x->width + c * x->width / W];
	return x->kind == K_PVEC ? p[c] : p[0];
}

static double
formula(Op op, double x, double y)
{
	float f = (float)x;
	uint32_t u;

	switch ((int)op) {
	case OP_ADD:
		return x + y;
	case OP_SUB:
		return x - y;
	case OP_MUL:
		return x * y;
	case OP_NEG:
		return 0 - x;
	case OP_RECIP:
		return pow(x, -1);
	case OP_RSQRT:
		return pow(x, -0.5);
	case OP_EXP:
		return x < 0 ? 1 / (cosh(x) - sinh(x)) : cosh(x) + sinh(x);
	case OP_TANH:
		return sinh(x) / cosh(x);
	case OP_SIGMOID:
		return 0.5 * (1 + tanh(0.5 * x));
	case OP_RELU:
		return fmax(x, 0);
	case OP_STEP:
		return signbit(x) || x == 0 ? 0 : 1;
	case OP_BF16:           /* scaled so that the unit in the last place is 1 */
		u = 7 - (uint32_t)ilogbf(f);
		return ldexp(rint(ldexp(f, (int)u)), -(int)u);
	}
	return NAN;
}

static bool
values_agree(const Hand *h, int r, int a, int b, char err[200])
{
	const Val *v = &h->g->v[r];
	Interp *I = interp_graph(h->g, &h->in, NULL);
	long rows = v->kind == K_VEC || v->kind == K_ROWVAL ? HandT : 1, t;
	int W = v->width, c;
	double want, got, worst = 0;

	for (t = 0; t < rows; t++)
		for (c = 0; c < W; c++) {
			want = formula(v->op, seen(h, I, a, t, c, W),
			               b < 0 ? 0 : seen(h, I, b, t, c, W));
			got = I->x[r][t * W + c];
			worst = fmax(worst, fabs(got - want) / fmax(fabs(want), 1e-3));
		}
	interp_free(I);
	if (!(worst <= 1e-14))
		snprintf(err, 200, "forward is off by %.3g", worst);
	return worst <= 1e-14;
}

/* kind and width the result must have: the wider kind; arithmetic of
 * parameters is done row by row */
static bool
shape_agrees(const Graph *g, int r, int ka, int kb, char err[200])
{
	static const Kind kind[NKinds] = { K_NUM, K_SCALAR, K_ROWVAL, K_ROWVAL, K_VEC, K_VEC };
	static const int width[NKinds] = { 1, 1, 1, 3, HandC, HandC };
	int k = ka > kb ? ka : kb;

	if (g->v[r].kind == kind[k] && g->v[r].width == width[k])
		return true;
	snprintf(err, 200, "kind %d width %d, expected %d and %d", g->v[r].kind,
	         g->v[r].width, kind[k], width[k]);
	return false;
}

typedef struct { Op op; int a, b; } Point_;

static bool
one_unary(void *arg, char err[200])
{
	const Point_ *p = arg;
	bool positive = p->op == OP_RSQRT || p->op == OP_RECIP, ok;
	bool smooth = p->op != OP_RELU && p->op != OP_STEP && p->op != OP_BF16;
	Hand h = hand();
	int a = operand(&h, p->a, 0), r;

	if (positive)           /* far from the pole */
		a = add(h.g, num(h.g, 8), a);
	r = point(h.g, p->op, a, -1);
	h.g->nfwd = h.g->n;
	ok = shape_agrees(h.g, r, p->a, p->a, err) && values_agree(&h, r, a, -1, err);
	hand_finish(&h, r);
	return ok && simplified_agrees(h.g, &h.in, "graph", err) &&
	       (!smooth || gradient_agrees(h.g, &h.in, NULL, err));
}

static bool
one_binary(void *arg, char err[200])
{
	const Point_ *p = arg;
	Hand h = hand();
	int a = operand(&h, p->a, 0), b = operand(&h, p->b, 1), r;

	r = point(h.g, p->op, a, b);
	h.g->nfwd = h.g->n;
	if (!shape_agrees(h.g, r, p->a, p->b, err) || !values_agree(&h, r, a, b, err))
		return false;
	hand_finish(&h, r);
	return hand_agrees(&h, err);
}

static void
points(void)
{
	char name[80];
	Point_ p;
	int op;

	for (op = 0; op < NOp; op++) {
		p.op = (Op)op;
		for (p.a = 0; op_info[op].class == CL_POINT && p.a < NKinds; p.a++) {
			if (op_info[op].arity == 1) {
				snprintf(name, sizeof name, "%s of %s", op_info[op].name,
				         kind_name[p.a]);
				check_case(name, one_unary, &p);
				continue;
			}
			for (p.b = 0; p.b < NKinds; p.b++) {
				snprintf(name, sizeof name, "%s of %s and %s",
				         op_info[op].name, kind_name[p.a], kind_name[p.b]);
				check_case(name, one_binary, &p);
			}
		}
	}
}

/* What rounds or has a corner has its derivative by definition: the gradient
 * of what is before op is that of what is behind it times 1 (bf16), step
 * (relu), 0 (step).  The latter is had by running without op on op's result. */
static bool
corner(void *arg, char err[200])
{
	const Point_ *p = arg;
	Hand h = hand(), k = h;
	int e = param_of(h.m, "embed"), j;
	double *x = h.in.param[e], *old = NEWN(mem, double, HandT * HandC), want, d = 0;
	Interp *I, *J;

	hand_finish(&h, point(h.g, p->op, h.x, -1));
	I = results_of(h.g, &h.in);
	memcpy(old, x, HandT * HandC * sizeof *old);
	for (j = 0; j < HandT * HandC; j++)
		x[j] = formula(p->op, old[j], 0);
	k.g = graph_new(mem, k.m, GRAPH_TRAIN, HandT);
	k.x = rows_of(&k, "embed", 0);
	k.z = rows_of(&k, "hc.sources.b.table", 71);
	k.e = rows_of(&k, "hc.sources.c.table", 72);
	hand_finish(&k, k.x);
	J = results_of(k.g, &k.in);
	for (j = 0; j < HandT * HandC; j++) {
		want = p->op == OP_STEP || (p->op == OP_RELU && old[j] <= 0) ? 0 : J->grad[e][j];
		d = fmax(d, fabs(I->grad[e][j] - want));
	}
	snprintf(err, 200, "off by %.3g", d);
	return d == 0 && norm2(J->grad[e], HandT * HandC) > 0;
}

static void
corners(void)
{
	Point_ p = { OP_BF16, 0, 0 };

	check_case("derivative of bf16, by definition", corner, &p);
	p.op = OP_RELU;
	check_case("derivative of relu, by definition", corner, &p);
	p.op = OP_STEP;
	check_case("derivative of step, by definition", corner, &p);
}

/* reductions and index ops against plain loops */

typedef struct { Hand h; Interp *I; const double *x, *y, *z; } Run;

/* runs the graph so far, all values kept */
static Run
run(Hand *h)
{
	Run r = { .h = *h };

	r.h.g->nfwd = r.h.g->n;
	graph_verify(r.h.g);
	r.I = interp_graph(r.h.g, &r.h.in, NULL);
	r.x = r.I->x[h->x];
	r.y = r.I->x[h->y];
	r.z = r.I->x[h->z];
	return r;
}

static bool
near(double got, double want, const char *what, char err[200])
{
	if (fabs(got - want) <= 1e-12 * fmax(1, fabs(want)))
		return true;
	snprintf(err, 200, "%s: %.15g, expected %.15g", what, got, want);
	return false;
}

/* dot and sumc in `groups`; b: vec y, or parameter row */
static bool
one_dot(void *arg, char err[200])
{
	const int *p = arg;     /* groups, left is a parameter, right is one, sumc */
	Hand h = hand();
	int a = p[1] ? lane_row(&h, 0) : h.x, b = p[2] ? lane_row(&h, 1) : h.y, r, t, c;
	double s[HandC];
	bool ok = true;
	Run u;

	r = p[3] ? sumc(h.g, a, p[0]) : dot(h.g, a, b, p[0]);
	u = run(&h);
	ok = h.g->v[r].kind == K_ROWVAL && h.g->v[r].width == p[0];
	for (t = 0; ok && t < HandT; t++) {
		memset(s, 0, sizeof s);
		for (c = 0; c < HandC; c++)
			s[c / (HandC / p[0])] += seen(&h, u.I, a, t, c, HandC) *
			        (p[3] ? 1 : seen(&h, u.I, b, t, c, HandC));
		for (c = 0; c < p[0]; c++)
			ok &= near(u.I->x[r][t * p[0] + c], s[c], "group sum", err);
	}
	hand_finish(&h, mul(h.g, num(h.g, 0.1), r));
	return ok && hand_agrees(&h, err);
}

static void
dots(void)
{
	static const int groups[] = { 1, 2, 3, 8, 24 };
	char name[80];
	int i, k, p[4];

	for (i = 0; i < 5; i++)
		for (k = 0; k < 5; k++) {
			p[0] = groups[i];
			p[1] = k & 1;
			p[2] = k >> 1 & 1;
			p[3] = k == 4;
			snprintf(name, sizeof name, "%s of %s%s in %d groups", k == 4 ? "sumc" : "dot",
			         p[1] ? "pvec" : "vec", k == 4 ? "" : p[2] ? " and pvec" : " and vec",
			         p[0]);
			check_case(name, one_dot, p);
		}
}

/* a sum of values that were broadcast: every one of their copies counts */
static bool
one_broadcast_sum(void *arg, char err[200])
{
	int kind = *(int *)arg % 10, how = *(int *)arg / 10, r, v;
	Hand h = hand();

	v = operand(&h, kind, 1);
	if (how == 2)
		r = sumg(h.g, add(h.g, v, operand(&h, 3, 0)));
	else
		r = sumc(h.g, add(h.g, v, h.x), how ? 3 : 1);
	hand_finish(&h, mul(h.g, num(h.g, 0.1), r));
	return hand_agrees(&h, err);
}

/* (a + x) * b: what a gets is a sum of products of unlike kinds */
static bool
one_broadcast_product(void *arg, char err[200])
{
	const Point_ *p = arg;
	Hand h = hand();
	int a = operand(&h, p->a, 1), b = operand(&h, p->b, 0);

	hand_finish(&h, mul(h.g, add(h.g, a, h.x), b));
	return hand_agrees(&h, err);
}

/* one value in two places: its gradients are added */
static bool
one_twice(void *arg, char err[200])
{
	Hand h = hand();
	int a = operand(&h, *(int *)arg, 1);

	hand_finish(&h, add(h.g, mul(h.g, a, h.x), mul(h.g, a, mul(h.g, a, h.y))));
	return hand_agrees(&h, err);
}

static void
broadcast_sums(void)
{
	static const char *const how[] = { "sumc", "sumc in groups", "sumg" };
	char name[80];
	Point_ q = { OP_MUL, 0, 0 };
	int i, k, p;

	for (q.a = 1; q.a < NKinds; q.a++)
		for (q.b = 1; q.b < NKinds; q.b++) {
			snprintf(name, sizeof name, "(%s + vec) * %s", kind_name[q.a], kind_name[q.b]);
			check_case(name, one_broadcast_product, &q);
		}
	for (k = 1; k < NKinds; k++) {
		snprintf(name, sizeof name, "%s in three places", kind_name[k]);
		check_case(name, one_twice, &k);
	}
	for (i = 0; i < 3; i++)
		for (k = 1; k < (i == 2 ? 4 : NKinds); k++) {
			p = 10 * i + k;
			snprintf(name, sizeof name, "%s of something plus a %s", how[i], kind_name[k]);
			check_case(name, one_broadcast_sum, &p);
		}
}

static bool
sum_groups(void *arg, char err[200])
{
	Hand h = hand();
	int a = operand(&h, 3, 0), r = sumg(h.g, a), t;
	Run u = run(&h);
	const double *x = u.I->x[a];
	bool ok = h.g->v[r].kind == K_ROWVAL && h.g->v[r].width == 1;

	(void)arg;
	for (t = 0; t < HandT; t++)
		ok &= near(u.I->x[r][t], x[3 * t] + x[3 * t + 1] + x[3 * t + 2], "sum", err);
	hand_finish(&h, mul(h.g, r, r));
	return ok && hand_agrees(&h, err);
}

/* sums over rows appear in gradients alone */
static bool
sum_rows(void *arg, char err[200])
{
	Hand h = hand();
	int a = operand(&h, 2, 0), r = sumr(h.g, a), v = sumr(h.g, h.x), t, c;
	Run u = run(&h);
	double s = 0, sv[HandC] = {0};
	bool ok = h.g->v[r].kind == K_SCALAR && h.g->v[v].kind == K_PVEC;

	(void)arg;
	for (t = 0; t < HandT; t++) {
		s += u.I->x[a][t];
		for (c = 0; c < HandC; c++)
			sv[c] += u.x[t * HandC + c];
	}
	ok &= near(u.I->x[r][0], s, "sum of a rowval", err);
	for (c = 0; c < HandC; c++)
		ok &= near(u.I->x[v][c], sv[c], "sum of a vec", err);
	return ok;
}

/* bcast of every kind to vec, and of rowval to rowval[3] */
static bool
one_bcast(void *arg, char err[200])
{
	int kind = *(int *)arg, groups = kind > 5 ? 3 : 0, a, r, t, c, W;
	Hand h = hand();
	bool ok;
	Run u;

	a = operand(&h, groups ? 2 : kind, 0);
	W = groups ? groups : HandC;
	r = bcast(h.g, a, groups ? K_ROWVAL : K_VEC, W);
	u = run(&h);
	ok = h.g->v[r].kind == (groups ? K_ROWVAL : K_VEC) && h.g->v[r].width == W;
	for (t = 0; t < HandT; t++)
		for (c = 0; c < W; c++)
			ok &= near(u.I->x[r][t * W + c], seen(&h, u.I, a, t, c, W), "copy", err);
	hand_finish(&h, mul(h.g, r, r));
	return ok && hand_agrees(&h, err);
}

/* <A x, y> = <x, B y> to 1e-12 of |A x| |y| */
static bool
adjoint(const Run *u, int Ax, int x, int y, int By, char err[200])
{
	const Val *v = u->h.g->v;
	double l = 0, r = 0;
	long j;

	for (j = 0; j < HandT * (long)v[Ax].width; j++)
		l += u->I->x[Ax][j] * u->I->x[y][j];
	for (j = 0; j < HandT * (long)v[x].width; j++)
		r += u->I->x[x][j] * u->I->x[By][j];
	if (fabs(l - r) <= 1e-12 * norm2(u->I->x[Ax], HandT * (long)v[Ax].width) *
	    norm2(u->I->x[y], HandT * (long)v[y].width) && l != 0)
		return true;
	snprintf(err, 200, "<Ax, y> is %.15g, <x, By> is %.15g", l, r);
	return false;
}

static bool
one_slice(void *arg, char err[200])
{
	const int *p = arg;     /* lo, width */
	Hand h = hand();
	int r = slice(h.g, h.x, p[0], p[1]), q, s, t, c;
	bool ok = true;
	Run u;

	q = slice(h.g, h.y, (HandC - p[1]) / 2, p[1]);
	s = pad(h.g, q, p[0], HandC);
	u = run(&h);
	for (t = 0; t < HandT; t++)
		for (c = 0; c < HandC; c++) {
			bool in = c >= p[0] && c < p[0] + p[1];

			if (c < p[1])
				ok &= near(u.I->x[r][t * p[1] + c], u.x[t * HandC + c + p[0]],
				           "slice", err);
			ok &= near(u.I->x[s][t * HandC + c], in ? u.y[t * HandC + c - p[0] +
			           (HandC - p[1]) / 2] : 0, "pad", err);
		}
	ok = ok && adjoint(&u, r, h.x, q, s, err);
	/* both in one gradient, not linear in either */
	r = pad(h.g, mul(h.g, r, r), HandC - p[1], HandC);
	hand_finish(&h, add(h.g, r, mul(h.g, s, h.z)));
	return ok && hand_agrees(&h, err);
}

static void
slices(void)
{
	static int p[][2] = { { 0, 24 }, { 0, 1 }, { 23, 1 }, { 3, 7 }, { 8, 16 }, { 0, 13 } };
	char name[80];
	size_t i;

	for (i = 0; i < sizeof p / sizeof *p; i++) {
		snprintf(name, sizeof name, "slice and pad of %d channels at %d", p[i][1], p[i][0]);
		check_case(name, one_slice, p[i]);
	}
}

/* channel c of a head of D, turned by sign * theta: docs/spec.md, rotary */
static double
turned(const double *x, int c, int R, bool adjacent, double pos, int sign)
{
	int j = adjacent ? c / 2 : c % (R / 2), a, b;
	double theta, cs, sn;

	if (c >= R)
		return x[c];
	theta = (double)((float)pos * (float)pow(50, -2. * j / R));
	cs = (float)cos(theta);
	sn = sign * (double)(float)sin(theta);
	a = adjacent ? 2 * j : j;
	b = adjacent ? 2 * j + 1 : j + R / 2;
	return c == a ? cs * x[a] + sn * x[b] : cs * x[b] - sn * x[a];
}

static bool
one_rotation(void *arg, char err[200])
{
	const int *p = arg;     /* D, R, adjacent, sign */
	Hand h = hand();
	int cs = table(h.g, 0, p[1] / 2, false), sn = table(h.g, 1, p[1] / 2, false), r, b, t, c;
	float freq[HandC];
	Model m = *h.g->model;
	bool ok = true;
	Run u;

	for (c = 0; c < p[1] / 2; c++)
		freq[c] = (float)pow(50, -2. * c / p[1]);
	m.freq = freq;
	h.g->model = &m;
	r = rotate(h.g, h.x, cs, sn, p[0], p[2] != 0, p[3]);
	b = rotate(h.g, h.y, cs, sn, p[0], p[2] != 0, -p[3]);
	u = run(&h);
	for (t = 0; t < HandT; t++)
		for (c = 0; c < HandC; c++)
			ok &= near(u.I->x[r][t * HandC + c],
			           turned(u.x + t * HandC + c / p[0] * p[0], c % p[0], p[1],
			                  p[2] != 0, t % HandSeq, p[3]), "turned", err);
	ok = ok && adjoint(&u, r, h.x, h.y, b, err);
	hand_finish(&h, mul(h.g, r, h.z));
	return ok && hand_agrees(&h, err);
}

static void
rotations(void)
{
	static const int size[][2] = { { 8, 8 }, { 8, 2 }, { 8, 6 }, { 12, 8 }, { 24, 24 }, { 24, 4 } };
	char name[80];
	int p[4], i, k;

	for (i = 0; i < 6; i++)
		for (k = 0; k < 4; k++) {
			p[0] = size[i][0];
			p[1] = size[i][1];
			p[2] = k & 1;
			p[3] = k & 2 ? -1 : 1;
			snprintf(name, sizeof name, "rotate %s %d of %d, sign %d",
			         k & 1 ? "adjacent" : "half", p[1], p[0], p[3]);
			check_case(name, one_rotation, p);
		}
}

/* row t - k of the same sequence and document, or the edge's rule */
static double
shifted(const Hand *h, const double *x, int W, int t, int c, const int *p)
{
	int from = t - p[0];
	bool edge = t % HandSeq < p[0] ||
	            (p[2] && h->in.docstart[from] != h->in.docstart[t]);

	if (c % 12 < p[4])
		return x[t * W + c];
	if (!edge)
		return x[from * W + c];
	return p[1] == EDGE_KEEP ? x[t * W + c] : 0;
}

static bool
one_shift(void *arg, char err[200])
{
	const int *p = arg;     /* k, edge, docs, rowval, first channel of heads of 12 */
	Hand h = hand();
	int x = p[3] ? operand(&h, 3, 0) : h.x, y = p[3] ? operand(&h, 3, 1) : h.y;
	int W = h.g->v[x].width, r, b, t, c;
	bool ok = true;
	Run u;

	r = shift(h.g, OP_SHIFT, x, p[0], p[1], p[2] != 0, p[4] ? SHIFT_HEADS(12, p[4]) : 0);
	b = shift(h.g, OP_UNSHIFT, y, p[0], p[1], p[2] != 0, p[4] ? SHIFT_HEADS(12, p[4]) : 0);
	u = run(&h);
	for (t = 0; t < HandT; t++)
		for (c = 0; c < W; c++)
			ok &= near(u.I->x[r][t * W + c], shifted(&h, u.I->x[x], W, t, c, p),
			           "shift", err);
	ok = ok && adjoint(&u, r, x, y, b, err);
	hand_finish(&h, add(h.g, mul(h.g, r, x), mul(h.g, b, y)));
	return ok && hand_agrees(&h, err);
}

static void
shifts(void)
{
	static const int by[] = { 1, 3, HandSeq - 1, HandSeq };
	char name[80];
	int p[5], i, k;

	for (i = 0; i < 4; i++)
		for (k = 0; k < 12; k++) {
			p[0] = by[i];
			p[1] = k & 1 ? EDGE_KEEP : EDGE_ZERO;
			p[2] = k >> 1 & 1;
			p[3] = k >> 2 == 1;
			p[4] = k >> 2 == 2 ? 5 : 0;
			if (p[0] >= HandSeq - p[2] && p[1] == EDGE_ZERO && !p[4])
				continue;       /* all zeros: nothing to compare */
			snprintf(name, sizeof name, "shift of a %s by %d, edge %s%s",
			         p[3] ? "rowval" : p[4] ? "vec's heads in part" : "vec", p[0], p[1] ? "keeps" : "zero",
			         p[2] ? ", documents" : "");
			check_case(name, one_shift, p);
		}
}

/* a norm of a norm, a softmax over four lanes, a gate: everything together */
static bool
compound(void *arg, char err[200])
{
	Hand h = hand();
	Graph *g = h.g;
	int n = h.x, l[4], i, sum, w = -1, groups = *(int *)arg;

	for (i = 0; i < 2; i++)
		n = mul(g, point(g, OP_RSQRT, add(g, mul(g, num(g, (double)groups / HandC),
		        dot(g, n, n, groups)), num(g, 1e-2)), -1), add(g, n, lane_row(&h, i)));
	for (sum = -1, i = 0; i < 4; i++) {
		l[i] = point(g, OP_EXP, mul(g, num(g, 0.2), dot(g, n, lane_row(&h, i), groups)), -1);
		sum = i ? add(g, sum, l[i]) : l[i];
	}
	for (i = 0; i < 4; i++) {
		int p = mul(g, mul(g, post_coef(&h, i), mul(g, l[i], point(g, OP_RECIP, sum, -1))),
		            i % 2 ? h.y : h.z);

		w = i ? add(g, w, p) : p;
	}
	hand_finish(&h, w);
	return hand_agrees(&h, err);
}

static void
reductions(void)
{
	char name[80];
	int k;

	dots();
	broadcast_sums();
	check_case("sumg", sum_groups, NULL);
	check_case("sumr", sum_rows, NULL);
	for (k = 0; k < 7; k++) {
		snprintf(name, sizeof name, "bcast of %s", k < 6 ? kind_name[k] : "rowval to rowval[3]");
		check_case(name, one_bcast, &k);
	}
	slices();
	rotations();
	shifts();
	k = 1;
	check_case("norm of a norm, softmax of four lanes", compound, &k);
	k = 3;
	check_case("norm of a norm, softmax of four lanes, per head", compound, &k);
}

/* whole models */

/* what a detached source leaves out of the gradient, differences have */
static const char *
not_differentiated(const Model *m)
{
	int j;

	for (j = 0; j < m->spec->nsource; j++)
		if (m->spec->source[j].detach)
			return m->param[m->table[j]].name;
	return NULL;
}

static bool
model_gradient(void *arg, char err[200])
{
	const Model *m = model_at(*(int *)arg);
	Graph *g = train_graph(m, m->T);
	Inputs in = inputs_random(m, m->T);
	const char *skip = not_differentiated(m);
	Interp *I;
	int p;

	if (skip) {
		I = results_of(g, &in);
		p = param_of(m, skip);
		if (norm2(I->grad[p], m->param[p].n) != 0) {
			snprintf(err, 200, "a gradient passes the wall of %s", skip);
			return false;
		}
		interp_free(I);
	}
	return gradient_agrees(g, &in, skip, err);
}

/* Rounded coefficients: the gradient is that of the same model with the
 * rounded numbers in an f32 table. */
static bool
rounded_gradient(void *arg, char err[200])
{
	static const char hc[] = MODEL(2, "")
	        "hc: {lanes: 3, res: {learned: true}, pre: {learned: true}, post: {learned: true}, "
	        "resid_lambda: {granularity: lane}, sources: {x0: {kind: x0, init: 0.1}}, coef_dtype: %s}\n"
	        TRAIN(24, 12);
	const Model *m[2];
	Interp *I[2];
	Inputs in;
	const char *where;
	double d;
	int i, p;
	long j;

	(void)arg;
	for (i = 0; i < 2; i++)
		m[i] = model_of("rounded", arena_printf(mem, hc, i ? "bf16" : "f32"));
	in = inputs_random(m[1], m[1]->T);
	I[1] = results_of(train_graph(m[1], m[1]->T), &in);
	for (p = 0; p < m[1]->nparam; p++)
		for (j = 0; m[1]->param[p].role == ROLE_COEF && j < m[1]->param[p].n; j++)
			in.param[p][j] = round_bf16(in.param[p][j]);
	I[0] = results_of(train_graph(m[0], m[0]->T), &in);
	d = results_differ(I[1], I[0], 1e-13, &where);
	snprintf(err, 200, "%s differs by %.3g", where, d);
	return d <= 1e-13;
}

/* simplify */

static bool
simplified_model(void *arg, char err[200])
{
	static const char *const mode[] = { "train", "eval", "logits" };
	const Model *m = model_at(*(int *)arg);
	Inputs in = inputs_random(m, m->T);
	Graph *g;
	int i;

	for (i = 0; i < 3; i++) {
		g = i == GRAPH_TRAIN ? train_graph(m, m->T) : graph_build(mem, m, i, m->T);
		if (!simplified_agrees(g, &in, mode[i], err))
			return false;
	}
	return true;
}

static bool
is_number(const Graph *g, int v)
{
	return v >= 0 && g->v[v].op == OP_NUM;
}

/* does value i compute what was known? */
static bool
trivial(const Graph *g, int i)
{
	const Val *v = &g->v[i];
	int a = v->arg[0], b = v->arg[1];
	double x;

	if (op_info[v->op].class != CL_POINT)
		return v->op == OP_BCAST && v->attr[0];
	if (is_number(g, a) && (b < 0 || is_number(g, b)))
		return true;
	if (b < 0 || (!is_number(g, a) && !is_number(g, b)))
		return v->op == OP_NEG && g->v[a].op == OP_NEG;
	x = g->v[is_number(g, a) ? a : b].num;
	if (v->op == OP_MUL)
		return x == 0 || x == 1 || x == -1;
	return x == 0;
}

static bool
equal_values(const Val *x, const Val *y)
{
	bool turned_ = (x->op == OP_ADD || x->op == OP_MUL || x->op == OP_DOT) &&
	               x->arg[0] == y->arg[1] && x->arg[1] == y->arg[0];
	int j;

	if (x->op != y->op || x->kind != y->kind || x->width != y->width || x->num != y->num)
		return false;
	for (j = 0; j < 6; j++)
		if (x->arg[j] != y->arg[j] && !(turned_ && j < 2))
			return false;
	return memcmp(x->attr, y->attr, sizeof x->attr) == 0;
}

static void
reach(const Graph *g, int v, bool *live)
{
	int j;

	if (v < 0 || live[v])
		return;
	live[v] = true;
	for (j = 0; j < 6; j++)
		reach(g, g->v[v].arg[j], live);
}

static bool
nothing_dead(const Graph *g, char err[200])
{
	bool *live = NEWN(mem, bool, g->n);
	Buf b = {0};
	int i;

	reach(g, g->loss, live);
	reach(g, g->logits, live);
	for (i = 0; i < g->ncontrib; i++)
		reach(g, g->contrib[i].val, live);
	for (i = 0; i < g->n && live[i]; i++)
		;
	if (i == g->n)
		return true;
	val_print(g, i, &b);
	snprintf(err, 200, "dead: %s", b.s);
	return false;
}

/* nothing trivial, nothing twice, nothing dead, and nothing left to do */
static bool
minimal(const Graph *g, char err[200])
{
	Buf b = {0};
	int i, j;

	for (i = 0; i < g->n; i++) {
		for (j = 0; j < i && !equal_values(&g->v[j], &g->v[i]); j++)
			;
		if (j == i && !trivial(g, i))
			continue;
		val_print(g, i, &b);
		snprintf(err, 200, "%s: %s", j < i ? "twice" : "trivial", b.s);
		return false;
	}
	if (!nothing_dead(g, err))
		return false;
	i = simplify(mem, g)->n;
	snprintf(err, 200, "%d values, and %d when simplified again", g->n, i);
	return i == g->n;
}

static bool
minimal_model(void *arg, char err[200])
{
	const Model *m = model_at(*(int *)arg);

	return minimal(simplify(mem, train_graph(m, m->T)), err) &&
	       minimal(simplify(mem, graph_build(mem, m, GRAPH_EVAL, m->T)), err);
}

/* Random sums, products and signs of a few values and of the numbers that have
 * rules: 0, 1, -1, 2.  The graph of such a tree, simplified, is the same
 * function, and nothing is left to simplify. */
static int
tree(Hand *h, int depth)
{
	static const double number[] = { 0, 1, -1, 2 };
	Graph *g = h->g;
	int k = below(8), a;

	if (depth == 0 || k == 0)
		return k < 3 ? num(g, number[below(4)]) : operand(h, 1 + below(5), below(2));
	a = tree(h, depth - 1);
	switch (k % 4) {
	case 0:
		return neg(g, a);
	case 1:
		return add(g, a, k == 1 ? a : tree(h, depth - 1));
	case 2:
		return sub(g, a, tree(h, depth - 1));
	default:
		return mul(g, mul(g, num(g, number[below(4)]), a), tree(h, depth - 1));
	}
}

static bool
random_folds(void *arg, char err[200])
{
	Hand h;
	int i;

	(void)arg;
	for (i = 0; i < 300; i++) {
		h = hand();
		hand_finish(&h, tree(&h, 3));
		if (!simplified_agrees(h.g, &h.in, "tree", err) ||
		    !minimal(simplify(mem, h.g), err))
			return false;
	}
	return true;
}

/* values by op: the same multiset means the same work */
static bool
same_work(const Graph *a, const Graph *b, char err[200])
{
	int count[NOp] = {0}, i;

	for (i = 0; i < a->n; i++)
		count[a->v[i].op]++;
	for (i = 0; i < b->n; i++)
		count[b->v[i].op]--;
	for (i = 0; i < NOp && !count[i]; i++)
		;
	if (i == NOp)
		return true;
	snprintf(err, 200, "%+d %s: %d values and %d", count[i], op_info[i].name, a->n, b->n);
	return false;
}

/* pairs of specs that say the same; bound: of the distance of their results;
 * fwd: equal lanes are one value, but their gradients are added */
static const struct { const char *name, *a, *b; double bound; bool fwd; } same[] = {
	{ "one lane is no lane", "", "hc: {lanes: 1, res: {init: identity}, pre: {init: 1.0}, "
	  "post: {init: 1.0}, output: sum}\n", 0, false },
	{ "lambda of 1, no source", "", "hc: {resid_lambda: {granularity: sublayer, learned: false}, "
	  "sources: {x0: {kind: x0, init: 0, learned: false}}}\n", 0, false },
	{ "two lanes, one of them never read", "",
	  "hc: {lanes: 2, pre: {init: [1, 0]}, res: {init: identity}, output: {lane: 0}}\n", 0, false },
	{ "eight lanes, one of them never read", "",
	  "hc: {lanes: 8, pre: {init: [0, 0, 0, 0, 0, 0, 0, 1]}, output: {lane: 7}}\n", 0, false },
	{ "a mix that is a permutation", "",
	  "hc: {lanes: 2, pre: {init: [1, 0, 0, 1, 1, 0, 0, 1]}, "
	  "res: {init: [0, 1, 1, 0]}, output: {lane: 0}}\n", 0, false },
	{ "lanes that never differ", "",
	  "hc: {lanes: 2, pre: {init: [1, 0]}, res: {init: identity}, output: {lane: 1}, "
	  "post: {init: [1, 1]}}\n", 0, true },
	{ "a scalar gate of 0", "",
	  "hc: {skips: {s: {from: {sublayer: 0}, to: {sublayer: 3}, gate: {init: 0, learned: false}}}}\n", 0, false },
	{ "round robin or the same by hand",
	  "hc: {lanes: 2, pre: {init: round_robin}}\n",
	  "hc: {lanes: 2, pre: {init: [1, 0, 0, 1, 1, 0, 0, 1]}}\n", 0, false },
	{ "numbers of attention and mlp, or row by row",
	  "hc: {post: {init: {attn: 2, mlp: 0.5}}}\n", "hc: {post: {init: [2, 0.5, 2, 0.5]}}\n", 0, false },
	/* sums in another order: a few roundings of 2^-53 in the values, and the norms between */
	{ "a source on the branch, or times post beside it",
	  "hc: {post: {init: 2}, sources: {x: {kind: x0, site: on_branch, init: 0.125, learned: false}}}\n",
	  "hc: {post: {init: 2}, sources: {x: {kind: x0, init: 0.25, learned: false}}}\n", 1e-13, false },
	{ "a source in one lane, or with a zero for the other",
	  "hc: {lanes: 2, sources: {x: {kind: x0, lane: 1, init: 0.25, learned: false}}}\n",
	  "hc: {lanes: 2, sources: {x: {kind: x0, init: [0, 0.25], learned: false}}}\n", 0, false },
	{ "a source in a lane that one stream has not",
	  "hc: {lanes: 2, layers: [1], sources: {x: {kind: x0, lane: 1, init: 0.25, learned: false, first: both}}}\n",
	  "hc: {lanes: 2, layers: [1], sources: {x: {kind: x0, init: [0, 0.25], learned: false, layers: [1]}}}\n", 0, false },
	{ "post outside of the lanes",
	  "hc: {layers: [1], post: {init: 2, outside: true}}\n", "hc: {post: {init: 2}}\n", 0, false },
	{ "post of one stream is its lane 0's",
	  "hc: {lanes: 2, layers: [1], post: {init: [2, 3, 2, 3, 1, 1, 1, 1], outside: true}}\n",
	  "hc: {lanes: 2, layers: [1], post: {init: [2, 9, 2, 9, 1, 1, 1, 1], outside: true}}\n", 0, false },
	{ "lanes that branches read at the place, or as values",
	  "hc: {lanes: 2, pre: {init: [1, 0]}, reads: {r: {from: {sublayer: 0, lane: 1}, sublayers: [1]}, "
	  "q: {from: {sublayer: 2, when: before}, sublayers: [2]}}}\n",
	  "hc: {lanes: 2, pre: {init: [1, 0, 0, 1, 1, 0, 1, 0]}}\n", 1e-13, false },
	{ "an early value of a stream, or a lane that nobody wrote since",
	  "hc: {reads: {r: {from: {sublayer: 0}, sublayers: [3]}}}\n",
	  "hc: {lanes: 2, pre: {init: [1, 0, 1, 0, 1, 0, 0, 1]}, post: {init: [1, 1, 1, 0, 1, 0, 1, 0]}, output: {lane: 0}}\n",
	  1e-13, false },
	{ "a value is taken ahead of the skips that enter",
	  "hc: {skips: {s: {from: {sublayer: 0}, to: {sublayer: 2}, gate: {init: 2, learned: false}}}, "
	  "reads: {q: {from: {sublayer: 2, when: before}, sublayers: [2]}}}\n",
	  "hc: {skips: {s: {from: {sublayer: 0}, to: {sublayer: 2}, gate: {init: 2, learned: false}}}, "
	  "reads: {q: {from: {sublayer: 1}, sublayers: [2]}}}\n", 0, false },
};

static bool
same_graphs(void *arg, char err[200])
{
	int i = *(int *)arg;
	const char *yaml = MODEL(2, "mlp: gelu") "%s" TRAIN(24, 12), *where;
	const Model *m[2] = { model_of(same[i].name, arena_printf(mem, yaml, same[i].a)),
	                      model_of(same[i].name, arena_printf(mem, yaml, same[i].b)) };
	Inputs in = inputs_random(m[0], m[0]->T);
	Graph *g[2];
	Interp *I[2];
	double d;
	int k;

	for (k = 0; k < 2; k++) {
		g[k] = simplify(mem, same[i].fwd ? graph_build(mem, m[k], GRAPH_EVAL, m[k]->T) :
		                train_graph(m[k], m[k]->T));
		I[k] = results_of(g[k], &in);
	}
	d = results_differ(I[0], I[1], same[i].bound, &where);
	if (d > same[i].bound) {
		snprintf(err, 200, "%s differs by %.3g", where, d);
		return false;
	}
	return same_work(g[0], g[1], err);
}

/* A read that is one-hot and a mix that is the identity leave what a person
 * would write: n lanes, each an add of h; nothing else is row work. */
static bool
counted(void *arg, char err[200])
{
	const Model *m = model_of("counted", MODEL(2, "rotary: none, attention: {qk_norm: false}")
	        "hc: {lanes: 2}\n" TRAIN(24, 12));
	Graph *g = simplify(mem, graph_build(mem, m, GRAPH_EVAL, m->T));
	int add_ = 0, mul_ = 0, i, per_norm = 2;

	(void)arg;
	for (i = 0; i < g->n; i++) {
		add_ += g->v[i].op == OP_ADD || g->v[i].op == OP_SUB;
		mul_ += g->v[i].op == OP_MUL;
	}
	/* Lane k of n is x0 plus the h of every sublayer; the lanes start equal
	 * and get the same h, so that they stay one value: 4 adds, no mean.
	 * 6 norms (x0, 4 reads, the end): mean and scale, and the add of eps;
	 * 2 MLPs: a square. */
	snprintf(err, 200, "%d adds and %d products, expected %d and %d", add_, mul_,
	         4 + 6, 6 * per_norm + 2);
	return add_ == 4 + 6 && mul_ == 6 * per_norm + 2;
}

/* Two tables of one size, of which one has the hash with the quirk: each is read at
 * its own rows. */
static bool
own_hashes(void *arg, char err[200])
{
	const Model *m = model_of("hashes", MODEL(2, "")
	        "hc: {sources: {a: {kind: bigram, rows: 29}, b: {kind: bigram, rows: 29, hash: quirk}}}\n" TRAIN(24, 12));
	Inputs in = inputs_random(m, m->T);
	Graph *g = graph_build(mem, m, GRAPH_EVAL, m->T);
	Interp *I = interp_graph(g, &in, NULL);
	const char *name;
	int i, j, seen = 0;
	long t;

	(void)arg;
	snprintf(err, 200, "the two hashes are the same");
	if (memcmp(in.hash[0], in.hash[1], (size_t)m->T * sizeof *in.hash[0]) == 0)
		return false;
	for (i = 0; i < g->n; i++) {
		if (g->v[i].op != OP_GATHER || g->v[i].attr[0] != IDX_HASH)
			continue;
		j = g->v[g->v[i].arg[0]].attr[0];
		name = m->param[j].name;
		seen |= 1 << (name[strlen("hc.sources.")] - 'a');
		for (t = 0; t < m->T; t++)
			if (memcmp(I->x[i] + t * m->C, in.param[j] + in.hash[name[strlen("hc.sources.")] - 'a'][t] * m->C,
			           (size_t)m->C * sizeof(double)) != 0) {
				snprintf(err, 200, "row %ld of %s", t, name);
				return false;
			}
	}
	snprintf(err, 200, "tables that were read: %d", seen);
	return seen == 3;
}

static void
models(void)
{
	char name[80];
	int i;

	for (i = 0; i < NSpecs; i++) {
		snprintf(name, sizeof name, "gradient of %s", spec_text[i].name);
		check_case(name, model_gradient, &i);
		snprintf(name, sizeof name, "%s simplified", spec_text[i].name);
		check_case(name, simplified_model, &i);
		snprintf(name, sizeof name, "%s simplified is minimal", spec_text[i].name);
		check_case(name, minimal_model, &i);
	}
	check_case("gradient through rounded coefficients", rounded_gradient, NULL);
	for (i = 0; i < (int)(sizeof same / sizeof *same); i++) {
		snprintf(name, sizeof name, "the same graph: %s", same[i].name);
		check_case(name, same_graphs, &i);
	}
	check_case("tables of one size have a hash each", own_hashes, NULL);
	check_case("random sums, products and signs", random_folds, NULL);
	check_case("frozen tables leave what a person writes", counted, NULL);
}

int
main(void)
{
	mem = arena_new("test");
	points();
	corners();
	reductions();
	models();
	arena_free(mem);
	return summary();
}
