/* The kernel of coefficient gradients: numbers from the sums that row kernels
 * leave, as text. */
#include "kern.h"

#include <string.h>

/* the kernel of coefficient gradients: numbers from sums */

typedef struct {
	const Plan *p;
	Step *s;
	const char **name;
	int nname, capname;
	/* cuda, where the gradients are those of several kernels: the sums that
	 * this one needs, in order of use; else NULL and all of them */
	int *local, *used;
	int nused;
} Tail;

/* the place of a sum in this kernel's totals */
static int
tail_total(Tail *t, int part)
{
	if (!t->local)
		return part;
	if (t->local[part] < 0) {
		t->used[t->nused] = part;
		t->local[part] = t->nused++;
	}
	return t->local[part];
}

/* the argument that is a parameter (or its gradient), by name: post, dpost */
static const char *
tail_par(Tail *t, int arena, int param)
{
	const char *d = arena == A_GRADS ? "d" : "", *base, *name;
	Opd o = opd_arena(arena, t->p->model->param[param].off, F32, 1);
	int i, again = 1;

	for (i = 1; i < t->s->nopd; i++)
		if (t->s->opd[i].id == arena && t->s->opd[i].off == o.off)
			return t->name[i - 1];
	base = coef_name(t->p->mem, t->p->model->param[param].name);
	name = arena_printf(t->p->mem, "%s%s", d, base);
	for (i = 0; i < t->nname; i++)
		if (strcmp(t->name[i], name) == 0) {
			name = arena_printf(t->p->mem, "%s%s_%d", d, base, ++again);
			i = -1;
		}
	*PUSH(t->p->mem, t->s->opd, t->s->nopd, t->s->capopd) = o;
	*PUSH(t->p->mem, t->name, t->nname, t->capname) = name;
	return name;
}

static void
tail_exp(Tail *t, int v, int level, Buf *b)
{
	const Graph *g = t->p->g;
	const Val *x = &g->v[v];
	const char *f;
	int own;

	if (x->op == OP_NUM) {
		buf_puts(b, x->num < 0 ? "(" : "");
		float_text(b, x->num);
		buf_puts(b, x->num < 0 ? ")" : "");
		return;
	}
	if (x->op == OP_COEF) {
		buf_printf(b, "%s[%d]", tail_par(t, A_PARAMS, x->attr[0]), x->attr[1]);
		return;
	}
	if (t->p->partof[v] >= 0 && t->p->target == TO_CUDA) {
		buf_printf(b, "total[%d]", tail_total(t, t->p->partof[v]));
		return;
	}
	if (t->p->partof[v] >= 0) {
		buf_printf(b, "total(sums + %d)", t->p->partof[v] * t->p->parts);
		return;
	}
	own = x->op == OP_MUL || x->op == OP_NEG || x->op == OP_RECIP || x->op == OP_RSQRT ?
	      1 : x->op == OP_ADD || x->op == OP_SUB ? 0 : 2;
	if (own < level)
		buf_puts(b, "(");
	if ((f = c_function(x->op, t->p->target)) || x->op == OP_BF16 || x->op == OP_NEG) {
		buf_puts(b, f ? f : x->op == OP_NEG ? "-" : "F32(BF16");
		buf_puts(b, "(");
		tail_exp(t, x->arg[0], 0, b);
		buf_puts(b, f || x->op == OP_NEG ? ")" : "))");
	} else {
		tail_exp(t, x->arg[0], own, b);
		buf_puts(b, x->op == OP_ADD ? " + " : x->op == OP_SUB ? " - " : " * ");
		tail_exp(t, x->arg[1], own + (x->op != OP_ADD), b);
	}
	if (own < level)
		buf_puts(b, ")");
}

/* what one element of a parameter's gradient gets, contribution by contribution;
 * on cuda the element belongs to a thread */
static void
tail_element(Tail *t, int p, int idx, int thread, Buf *lines)
{
	const Graph *g = t->p->g;
	const struct Contrib *c;
	int k;

	if (thread >= 0)
		buf_printf(lines, "    if (threadIdx.x == %d) {\n", thread);
	for (k = g->grad_first[p]; k >= 0; k = c->next) {
		c = &g->contrib[k];
		if (g->v[c->val].kind != K_SCALAR || (thread >= 0 && c->idx != idx))
			continue;
		buf_printf(lines, "%s    %s[%d] += ", thread >= 0 ? "    " : "",
		           tail_par(t, A_GRADS, p), c->idx);
		tail_exp(t, c->val, 0, lines);
		buf_puts(lines, ";\n");
	}
	if (thread >= 0)
		buf_puts(lines, "    }\n");
}

static bool
is_contributed(const Graph *g, int p, int idx)
{
	int k;

	for (k = g->grad_first[p]; k >= 0; k = g->contrib[k].next)
		if (g->v[g->contrib[k].val].kind == K_SCALAR && g->contrib[k].idx == idx)
			return true;
	return false;
}

static void
tail_param(Tail *t, int p, Buf *lines)
{
	const Graph *g = t->p->g;
	long first = tail_first(g, p);
	bool said = false;
	int i;

	for (i = 0; i < g->model->param[p].n; i++) {
		if (first + i < t->s->m || first + i >= t->s->n || !is_contributed(g, p, i))
			continue;
		if (!said)
			buf_printf(lines, "\n    // %s\n", g->model->param[p].name);
		said = true;
		if (t->p->target == TO_CPU) {
			tail_element(t, p, -1, -1, lines);
			return;
		}
		tail_element(t, p, i, (int)(first + i - t->s->m), lines);
	}
}

/* a parameter whose gradient is made of scalars */
bool
has_scalars(const Graph *g, int p)
{
	int k;

	for (k = g->grad_first[p]; k >= 0; k = g->contrib[k].next)
		if (g->v[g->contrib[k].val].kind == K_SCALAR)
			return true;
	return false;
}

long
tail_first(const Graph *g, int p)
{
	long n = 0;
	int i;

	for (i = 0; i < p; i++)
		if (has_scalars(g, i))
			n += g->model->param[i].n;
	return n;
}

static void
tail_body(Tail *t, Buf *lines)
{
	const Graph *g = t->p->g;
	int p;

	for (p = 0; p < g->model->nparam; p++)
		if (has_scalars(g, p))
			tail_param(t, p, lines);
}

static void
push_count(const Plan *p, Step *s)
{
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = (Opd){ .kind = OPD_INT, .i = p->parts };
}

/* One block; cpu: one call. */
static void
tail_cpu(const Tail *t, const Buf *lines, Buf *b)
{
	const Step *s = t->s;
	int i;

	buf_printf(b, "// computes  gradients of the coefficients from the sums over rows that the row\n"
	           "//           kernels left as %d partials each\n"
	           "// types     f32; partials added in order\n"
	           "// maps      one item\n", t->p->parts);
	buf_printf(b, "\nHC float total(const float *part)\n{\n    float sum = 0;\n\n"
	           "    for (int i = 0; i < %d; i++)\n        sum += part[i];\n"
	           "    return sum;\n}\n", t->p->parts);
	buf_puts(b, "\nvoid @KERNEL@(const HcArg *a, long item)\n{\n"
	         "    const float *restrict sums = a[0].p;\n");
	for (i = 1; i < s->nopd; i++)
		buf_printf(b, "    %sfloat *restrict %s = a[%d].p;\n",
		           s->opd[i].id == A_PARAMS ? "const " : "", t->name[i - 1], i);
	buf_puts(b, "    (void)item;\n");
	buf_puts(b, lines->s ? lines->s : "");
	buf_puts(b, "}\n");
}

/* which of the sums are this kernel's */
static void
used_text(const Tail *t, Buf *b)
{
	int i;

	buf_printf(b, "\n// the sums that total[] holds\nstatic __device__ const int used[%d] = {",
	           t->nused);
	for (i = 0; i < t->nused; i++)
		buf_printf(b, "%s%d,", i % 16 ? " " : "\n    ", t->used[i]);
	buf_puts(b, "\n};\n");
}

/* One block: first its warps form the totals, each in the order lane, lane +
 * 32, … and then by halves; then thread i adds to the i'th gradient. */
static void
tail_cuda(const Tail *t, const Buf *lines, Buf *b)
{
	int n = t->local ? t->nused : t->p->npart, i;
	Step *s = t->s;

	s->threads = 1024;
	buf_printf(b, "// computes  gradients of the coefficients from the sums over rows that the row\n"
	           "//           kernels left as P partials each\n"
	           "// types     f32\n"
	           "// sums      partials lane, lane + 32, … in order, then the warp by halves\n"
	           "// maps      one block; warp = a sum, then thread = a gradient\n");
	if (t->local)
		used_text(t, b);
	buf_printf(b, "\nextern \"C\" __global__ __launch_bounds__(%d)\nvoid @KERNEL@(\n"
	           "    const float *__restrict__ sums,                  // [%d,P]\n", s->threads,
	           t->p->npart);
	for (i = 1; i < s->nopd; i++)
		buf_printf(b, "    %sfloat *__restrict__ %s,\n",
		           s->opd[i].id == A_PARAMS ? "const " : "", t->name[i - 1]);
	buf_printf(b, "    long P)\n{\n    __shared__ float total[%d];\n"
	           "    const int lane = threadIdx.x %% 32;\n\n"
	           "    for (int n = threadIdx.x / 32; n < %d; n += %d) {\n"
	           "        float sum = 0.f;\n\n"
	           "        for (long i = lane; i < P; i += 32)\n"
	           "            sum += sums[%s*P + i];\n"
	           "        sum = warp_sum(sum);\n"
	           "        if (lane == 0)\n            total[n] = sum;\n    }\n"
	           "    __syncthreads();\n", n > 0 ? n : 1, n, s->threads / 32,
	           t->local ? "used[n]" : "n");
	buf_puts(b, lines->s ? lines->s : "");
	buf_puts(b, "}\n");
	push_count(t->p, s);
}

void
emit_tail(const Plan *p, Step *s, Buf *b)
{
	Tail t = { .p = p, .s = s };
	Buf lines = {0};
	int i;

	if (p->target == TO_CUDA && (s->m > 0 || s->n < tail_first(p->g, p->model->nparam))) {
		t.local = NEWN(p->mem, int, p->npart);
		t.used = NEWN(p->mem, int, p->npart);
		for (i = 0; i < p->npart; i++)
			t.local[i] = -1;
	}
	s->nopd = 0;
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = opd_buf(p->part, F32, p->parts);
	tail_body(&t, &lines);
	if (p->target == TO_CUDA)
		tail_cuda(&t, &lines, b);
	else
		tail_cpu(&t, &lines, b);
	buf_free(&lines);
}
