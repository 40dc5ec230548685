/* Decisions <-> text: plan.lock pins a plan.
 *
 *     hcgen plan lock 2
 *     program train scales stream sources inline gradients last slots 90 nodes 283
 *     12 45 part
 *     ...
 *     end
 *
 * Slots and nodes are numbers of terms.c, which are the same for the same model.
 * A slot and node that is not listed is left alone. */
#include "search.h"

#include <string.h>

static const char *const choice_name[] = { "leave", "store", "part" };
static const char head[] = "hcgen plan lock 2\n";

void
lock_print(const Terms *m, const Decisions *d, const char *prog, Buf *b)
{
	int i;

	if (!b->len)
		buf_puts(b, head);
	buf_printf(b, "program %s scales %s sources %s gradients %s slots %d nodes %d\n", prog,
	           m->g->scaled ? "weights" : "stream", m->nahead ? "precompute" : "inline",
	           m->apart ? "apart" : "last", m->nslot, m->nnode);
	for (i = 0; i < d->nchoice; i++)
		buf_printf(b, "%d %d %s\n", d->choice[i].slot, d->choice[i].node,
		           choice_name[d->choice[i].what]);
	buf_puts(b, "end\n");
}

/* what follows `scales` in the line of a program */
static const char *
section(const char *text, const char *prog)
{
	char want[40];
	const char *p;

	if (strncmp(text, head, sizeof head - 1) != 0)
		die("plan.lock: its first line is not \"%.*s\"", (int)sizeof head - 2, head);
	snprintf(want, sizeof want, "\nprogram %s scales ", prog);
	p = strstr(text, want);
	if (!p)
		die("plan.lock: it has no program %s", prog);
	return p + strlen(want);
}

bool
lock_scales(const char *text, const char *prog)
{
	return strncmp(section(text, prog), "weights", 7) == 0;
}

bool
lock_view(const char *text, const char *prog, bool *apart)
{
	char sources[16], gradients[16];

	if (sscanf(section(text, prog), "%*10s sources %15s gradients %15s", sources, gradients) != 2)
		die("plan.lock: program %s is damaged", prog);
	*apart = strcmp(gradients, "apart") == 0;
	return strcmp(sources, "precompute") == 0;
}

void
lock_apply(Terms *m, const char *text, const char *prog)
{
	const char *p = section(text, prog);
	char what[8];
	int slots, nodes, t, n, used, i;

	if (sscanf(p, "%*10s sources %*10s gradients %*10s slots %d nodes %d%n", &slots, &nodes, &used) != 2)
		die("plan.lock: program %s is damaged", prog);
	if (slots != m->nslot || nodes != m->nnode)
		die("plan.lock is of another model: program %s has %d slots and %d nodes, the spec's %d and %d",
		    prog, slots, nodes, m->nslot, m->nnode);
	m->pinned = NEWN(m->a, uint8_t, m->nslot * m->nnode + 1);
	for (p += used; sscanf(p, "%d %d %7s%n", &t, &n, what, &used) == 3; p += used) {
		for (i = 0; i < 3 && strcmp(what, choice_name[i]) != 0; i++)
			;
		if (i == 3 || t < 0 || t >= m->nslot || n < 0 || n >= m->nnode)
			die("plan.lock: program %s: \"%d %d %s\"", prog, t, n, what);
		m->pinned[t * m->nnode + n] = (uint8_t)i;
	}
	if (strncmp(p, "\nend", 4) != 0)
		die("plan.lock: program %s does not end", prog);
}
