/* The kernel of coefficient gradients: numbers from the sums that row kernels
 * leave, as text. */
#include "kern.h"

#include <string.h>

/* the kernel of coefficient gradients: numbers from sums */

typedef struct { const Plan *p; Step *s; const char **name; int nname, capname; } Tail;

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
	if (x->op == OP_SUMR && t->p->target == TO_CUDA) {
		buf_printf(b, "total[%d]", t->p->partof[v]);
		return;
	}
	if (x->op == OP_SUMR) {
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
		buf_printf(lines, "    if (threadIdx.x == %d) {\n", thread % 1024);
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

static void
tail_param(Tail *t, int p, int *thread, Buf *lines)
{
	const Graph *g = t->p->g;
	const struct Contrib *c;
	bool said = false;
	int i, k;

	for (i = 0; i < g->model->param[p].n; i++) {
		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			if (g->v[c->val].kind == K_SCALAR && c->idx == i)
				break;
		}
		if (k < 0)
			continue;
		if (!said)
			buf_printf(lines, "\n    // %s\n", g->model->param[p].name);
		said = true;
		if (t->p->target == TO_CPU) {
			tail_element(t, p, -1, -1, lines);
			return;
		}
		tail_element(t, p, i, (*thread)++, lines);
	}
}

/* a parameter whose gradient is made of scalars */
static bool
has_scalars(const Graph *g, int p)
{
	int k;

	for (k = g->grad_first[p]; k >= 0; k = g->contrib[k].next)
		if (g->v[g->contrib[k].val].kind == K_SCALAR)
			return true;
	return false;
}

static void
tail_body(Tail *t, Buf *lines)
{
	const Graph *g = t->p->g;
	int p, thread = 0;

	for (p = 0; p < g->model->nparam; p++)
		if (has_scalars(g, p))
			tail_param(t, p, &thread, lines);
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

/* One block: first its warps form the totals, each in the order lane, lane +
 * 32, … and then by halves; then thread i adds to the i'th gradient. */
static void
tail_cuda(const Tail *t, const Buf *lines, Buf *b)
{
	Step *s = t->s;
	int i;

	s->threads = 1024;
	buf_printf(b, "// computes  gradients of the coefficients from the sums over rows that the row\n"
	           "//           kernels left as P partials each\n"
	           "// types     f32\n"
	           "// sums      partials lane, lane + 32, … in order, then the warp by halves\n"
	           "// maps      one block; warp = a sum, then thread = a gradient\n");
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
	           "            sum += sums[n*P + i];\n"
	           "        sum = warp_sum(sum);\n"
	           "        if (lane == 0)\n            total[n] = sum;\n    }\n"
	           "    __syncthreads();\n", t->p->npart, t->p->npart, s->threads / 32);
	buf_puts(b, lines->s ? lines->s : "");
	buf_puts(b, "}\n");
	push_count(t->p, s);
}

void
emit_tail(const Plan *p, Step *s, Buf *b)
{
	Tail t = { .p = p, .s = s };
	Buf lines = {0};

	s->nopd = 0;
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = opd_buf(p->part, F32, p->parts);
	tail_body(&t, &lines);
	if (p->target == TO_CUDA)
		tail_cuda(&t, &lines, b);
	else
		tail_cpu(&t, &lines, b);
	buf_free(&lines);
}
