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
	if (x->op == OP_SUMR) {
		buf_printf(b, "total(sums + %d)", t->p->partof[v] * t->p->parts);
		return;
	}
	own = x->op == OP_MUL || x->op == OP_NEG || x->op == OP_RECIP || x->op == OP_RSQRT ?
	      1 : x->op == OP_ADD || x->op == OP_SUB ? 0 : 2;
	if (own < level)
		buf_puts(b, "(");
	if ((f = c_function(x->op)) || x->op == OP_BF16 || x->op == OP_NEG) {
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

static void
tail_body(Tail *t, Buf *lines)
{
	const Graph *g = t->p->g;
	const struct Contrib *c;
	int p, k;

	for (p = 0; p < g->model->nparam; p++) {
		bool said = false;

		for (k = g->grad_first[p]; k >= 0; k = c->next) {
			c = &g->contrib[k];
			if (g->v[c->val].kind != K_SCALAR)
				continue;
			if (!said)
				buf_printf(lines, "\n    // %s\n", g->model->param[p].name);
			said = true;
			buf_printf(lines, "    %s[%d] += ", tail_par(t, A_GRADS, p), c->idx);
			tail_exp(t, c->val, 0, lines);
			buf_puts(lines, ";\n");
		}
	}
}

void
emit_tail(const Plan *p, Step *s, Buf *b)
{
	Tail t = { .p = p, .s = s };
	Buf lines = {0};
	int i;

	s->nopd = 0;
	*PUSH(p->mem, s->opd, s->nopd, s->capopd) = opd_buf(p->part, F32, p->parts);
	tail_body(&t, &lines);
	buf_printf(b, "// computes  gradients of the coefficients from the sums over rows that the row\n"
	           "//           kernels left as %d partials each\n"
	           "// types     f32; partials added in order\n"
	           "// maps      one item\n", p->parts);
	buf_printf(b, "\nHC float total(const float *part)\n{\n    float sum = 0;\n\n"
	           "    for (int i = 0; i < %d; i++)\n        sum += part[i];\n"
	           "    return sum;\n}\n", p->parts);
	buf_puts(b, "\nvoid @KERNEL@(const HcArg *a, long item)\n{\n"
	         "    const float *restrict sums = a[0].p;\n");
	for (i = 1; i < s->nopd; i++)
		buf_printf(b, "    %sfloat *restrict %s = a[%d].p;\n",
		           s->opd[i].id == A_PARAMS ? "const " : "", t.name[i - 1], i);
	buf_puts(b, "    (void)item;\n");
	buf_puts(b, lines.s ? lines.s : "");
	buf_puts(b, "}\n");
	buf_free(&lines);
}
