/* What a compiled kernel takes: registers, stack, shared memory, code, bytes of
 * arguments, read from its cubin.
 *
 * A cubin is an ELF file.  Its section .nv.info holds records of an attribute
 * and a symbol, and one such section per kernel more attributes; which mean
 * what is documented nowhere and was found by comparing with the text and with
 * what ptxas prints (-v), sm_80 to sm_120 of CUDA 13.0.  The
 * bytes may come from a file, so every offset is checked against the length. */
#include "hcrun.h"

#include <elf.h>
#include <string.h>

enum {
	InfoRegisters = 0x2f, InfoFrame = 0x11, InfoStack = 0x12,
	InfoArguments = 0x19,
	InfoWords = 4,          /* format of a record: a size and that many bytes */
	InfoHalf = 3,           /* a value in place of the size */
	/* From sm_90 on a block has this much for the system, counted in the
	 * section of each kernel; a section .nv.shared.reserved.0 tells. */
	Reserved = 1024
};

typedef struct {
	const unsigned char *p;
	size_t n;
	Elf64_Ehdr head;
	Elf64_Shdr names;
} Elf;

static bool
get(const Elf *e, size_t off, void *to, size_t size)
{
	if (off > e->n || e->n - off < size)
		return false;
	memcpy(to, e->p + off, size);
	return true;
}

static bool
section(const Elf *e, int i, Elf64_Shdr *s)
{
	return get(e, e->head.e_shoff + (size_t)i * sizeof *s, s, sizeof *s) &&
	       (s->sh_type == SHT_NOBITS ||
	        (s->sh_offset <= e->n && s->sh_size <= e->n - s->sh_offset));
}

static bool
elf_open(Elf *e, const void *p, size_t n)
{
	*e = (Elf){.p = p, .n = n};
	return get(e, 0, &e->head, sizeof e->head) &&
	       memcmp(e->head.e_ident, ELFMAG, SELFMAG) == 0 &&
	       e->head.e_ident[EI_CLASS] == ELFCLASS64 &&
	       e->head.e_ident[EI_DATA] == ELFDATA2LSB &&
	       e->head.e_shentsize == sizeof(Elf64_Shdr) && e->head.e_shoff <= n &&
	       e->head.e_shstrndx < e->head.e_shnum &&
	       section(e, e->head.e_shstrndx, &e->names) &&
	       e->names.sh_type == SHT_STRTAB;
}

/* The text at off of a string table is `a` and then `b`. */
static bool
text_is(const Elf *e, const Elf64_Shdr *table, size_t off, const char *a, const char *b)
{
	size_t na = strlen(a), nb = strlen(b);
	const unsigned char *s;

	if (off >= table->sh_size || table->sh_size - off <= na + nb)
		return false;
	s = e->p + table->sh_offset + off;
	return memcmp(s, a, na) == 0 && memcmp(s + na, b, nb + 1) == 0;
}

static bool
find(const Elf *e, const char *a, const char *b, Elf64_Shdr *s)
{
	int i;

	for (i = 0; i < e->head.e_shnum; i++)
		if (section(e, i, s) && text_is(e, &e->names, s->sh_name, a, b))
			return true;
	return false;
}

static bool
find_symbol(const Elf *e, const char *name, uint32_t *index)
{
	Elf64_Shdr table, names;
	Elf64_Sym sym;
	size_t i;

	if (!find(e, ".symtab", "", &table) || !section(e, (int)(table.sh_link & 0xffff), &names) ||
	    names.sh_type != SHT_STRTAB)
		return false;
	for (i = 0; i < table.sh_size / sizeof sym; i++)
		if (get(e, table.sh_offset + i * sizeof sym, &sym, sizeof sym) &&
		    ELF64_ST_TYPE(sym.st_info) == STT_FUNC &&
		    text_is(e, &names, sym.st_name, name, "")) {
			*index = (uint32_t)i;
			return true;
		}
	return false;
}

/* One record: what it says of the symbol, if anything. */
static void
take(KernelResources *out, int attribute, uint32_t value)
{
	int v = value < 1 << 30 ? (int)value : 1 << 30;

	if (attribute == InfoRegisters)
		out->registers = v;
	else if ((attribute == InfoFrame || attribute == InfoStack) && v > out->stack)
		out->stack = v;
}

static bool
read_info(const Elf *e, const Elf64_Shdr *info, uint32_t symbol, KernelResources *out)
{
	size_t at = info->sh_offset, end = at + info->sh_size, size;
	unsigned char head[4];
	uint32_t pair[2];

	out->registers = -1;
	while (at < end && get(e, at, head, sizeof head)) {
		size = head[0] == InfoWords ? head[2] | (size_t)head[3] << 8 : 0;
		at += sizeof head;
		if (size == sizeof pair && get(e, at, pair, sizeof pair) && pair[0] == symbol)
			take(out, head[1], pair[1]);
		at += size;
	}
	return out->registers >= 0;
}

static long
read_arguments(const Elf *e, const Elf64_Shdr *info)
{
	size_t at = info->sh_offset, end = at + info->sh_size;
	unsigned char head[4];

	while (at < end && get(e, at, head, sizeof head)) {
		if (head[0] == InfoHalf && head[1] == InfoArguments)
			return head[2] | (long)head[3] << 8;
		at += sizeof head + (head[0] == InfoWords ? head[2] | (size_t)head[3] << 8 : 0);
	}
	return -1;
}

/* False when the bytes are no cubin, or hold no such kernel. */
bool
cubin_resources(const void *cubin, size_t n, const char *kernel, KernelResources *out)
{
	Elf64_Shdr text, info, own, shared, reserved;
	uint32_t symbol;
	Elf e;

	memset(out, 0, sizeof *out);
	if (!elf_open(&e, cubin, n) || !find(&e, ".text.", kernel, &text) ||
	    !find(&e, ".nv.info", "", &info) || !find_symbol(&e, kernel, &symbol) ||
	    !read_info(&e, &info, symbol, out))
		return false;
	out->code = (long)text.sh_size;
	out->arguments = find(&e, ".nv.info.", kernel, &own) ? read_arguments(&e, &own) : -1;
	if (find(&e, ".nv.shared.", kernel, &shared)) {
		out->smem = (long)(shared.sh_size & 0xffffff);
		if (find(&e, ".nv.shared.reserved.0", "", &reserved) && out->smem >= Reserved)
			out->smem -= Reserved;
	}
	return true;
}
