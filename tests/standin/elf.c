/* "Cubins": ELF files laid out as ptxas does, as far as loaders and readers of
 * resources look, with the kernel's text in a section of its own.
 *
 *   .shstrtab .strtab .symtab
 *   .nv.info           registers, frame and stack, by symbol
 *   .nv.info.KERNEL    parameters, largest block
 *   .text.KERNEL       zeros
 *   .nv.shared.KERNEL  as large as static shared memory, and from sm_90 on the
 *                      1,024 bytes that each block leaves to the system
 *   .hcgen.text        a line of facts, the program's name, the text
 *
 * Formats of the records were read off files that ptxas 13.0 wrote. */
#define _GNU_SOURCE
#include "standin.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

enum { MachineCuda = 190, AbiCuda = 0x41, AbiVersion = 8, InfoType = 0x70000000 };
enum { S_NULL, S_SHSTR, S_STR, S_SYM, S_INFO, S_KINFO, S_TEXT, S_SHARED, S_OURS, NSection };
enum { AttrRegisters = 0x2f, AttrFrame = 0x11, AttrStack = 0x12, AttrParam = 0x17,
       AttrBlock = 0x05 };
enum { ParamFlags = 0x0021f000, CodeBytes = 640, ReservedFrom = 90, Reserved = 1024 };

typedef struct { char *s; size_t n, cap; } Bytes;

static size_t
put(Bytes *b, const void *s, size_t n)
{
	size_t at = b->n;

	if (b->n + n > b->cap) {
		b->cap = 2 * (b->n + n);
		b->s = realloc(b->s, b->cap);
		if (!b->s)
			abort();
	}
	if (s)
		memcpy(b->s + at, s, n);
	else
		memset(b->s + at, 0, n);
	b->n += n;
	return at;
}

static void
put_align(Bytes *b, size_t to)
{
	put(b, NULL, (to - b->n % to) % to);
}

/* {4, attribute, bytes, words…} */
static void
put_record(Bytes *b, int attr, int nword, const uint32_t *word)
{
	unsigned char head[4] = { 4, (unsigned char)attr, (unsigned char)(4 * nword), 0 };

	put(b, head, sizeof head);
	put(b, word, 4 * (size_t)nword);
}

static void
put_resources(Bytes *b, const KernelFacts *k)
{
	uint32_t r[3][2] = { { 1, (uint32_t)k->registers }, { 1, (uint32_t)k->local },
	                     { 1, (uint32_t)k->local } };
	static const int attr[3] = { AttrRegisters, AttrFrame, AttrStack };

	for (int i = 0; i < 3; i++)
		put_record(b, attr[i], 2, r[i]);
}

static void
put_parameters(Bytes *b, const KernelFacts *k)
{
	uint32_t block[3] = { (uint32_t)k->threads, 1, 1 };

	for (int i = k->nparam - 1; i >= 0; i--) {
		uint32_t p[3] = { 0, (uint32_t)i | (uint32_t)(8 * i) << 16, ParamFlags };

		put_record(b, AttrParam, 3, p);
	}
	put_record(b, AttrBlock, 3, block);
}

typedef struct { Bytes out, names; Elf64_Shdr s[NSection]; } Writer;

static Elf64_Shdr *
section(Writer *w, int i, const char *prefix, const char *name, unsigned type, const Bytes *data)
{
	Elf64_Shdr *s = &w->s[i];

	s->sh_name = (Elf64_Word)put(&w->names, prefix, strlen(prefix));
	put(&w->names, name, strlen(name) + 1);
	s->sh_type = type;
	s->sh_addralign = 8;
	put_align(&w->out, 8);
	s->sh_offset = w->out.n;
	s->sh_size = data->n;
	if (type != SHT_NOBITS)
		put(&w->out, data->s, data->n);
	return s;
}

static Bytes
our_text(const KernelFacts *k, const char *text)
{
	Bytes b = { 0 };
	char head[1024];
	int n = snprintf(head, sizeof head, "hcgen stand-in %s %d %d %d %d %d %d\n%s\n", k->name,
	                 k->arch, k->threads,
	                 k->nparam, k->static_smem, k->registers, k->local, k->path);

	put(&b, head, (size_t)n);
	put(&b, text, strlen(text) + 1);
	return b;
}

static void
put_symbols(Writer *w, const KernelFacts *k)
{
	Elf64_Sym sym[2] = { { 0 }, { 1, ELF64_ST_INFO(STB_GLOBAL, STT_FUNC), 0, S_TEXT, 0,
	                              CodeBytes } };
	Bytes str = { 0 }, symbols = { (char *)sym, sizeof sym, sizeof sym };
	Elf64_Shdr *s;

	put(&str, "", 1);
	put(&str, k->name, strlen(k->name) + 1);
	section(w, S_STR, ".strtab", "", SHT_STRTAB, &str);
	s = section(w, S_SYM, ".symtab", "", SHT_SYMTAB, &symbols);
	s->sh_link = S_STR;
	s->sh_info = 1;
	s->sh_entsize = sizeof *sym;
	free(str.s);
}

static void
put_sections(Writer *w, const KernelFacts *k, const char *text)
{
	Bytes info = { 0 }, kinfo = { 0 }, code = { 0 }, ours = our_text(k, text);
	Bytes shared = { NULL, (size_t)k->static_smem + (k->arch >= ReservedFrom ? Reserved : 0),
	                 0 };

	put_symbols(w, k);
	put_resources(&info, k);
	put_parameters(&kinfo, k);
	put(&code, NULL, CodeBytes);
	section(w, S_INFO, ".nv.info", "", InfoType, &info)->sh_link = S_SYM;
	section(w, S_KINFO, ".nv.info.", k->name, InfoType, &kinfo)->sh_link = S_SYM;
	w->s[S_KINFO].sh_info = S_TEXT;
	section(w, S_TEXT, ".text.", k->name, SHT_PROGBITS,
	        &code)->sh_flags = SHF_ALLOC | SHF_EXECINSTR;
	w->s[S_TEXT].sh_link = S_SYM;
	section(w, S_SHARED, ".nv.shared.", k->name, SHT_NOBITS,
	        &shared)->sh_flags = SHF_ALLOC | SHF_WRITE;
	section(w, S_OURS, ".hcgen.text", "", SHT_PROGBITS, &ours);
	free(info.s);
	free(kinfo.s);
	free(code.s);
	free(ours.s);
}

char *
elf_write(const KernelFacts *k, const char *text, size_t *nbytes)
{
	Writer w = { 0 };
	Elf64_Ehdr h = { .e_type = ET_EXEC, .e_machine = MachineCuda, .e_version = EV_CURRENT };

	memcpy(h.e_ident, ELFMAG, SELFMAG);
	h.e_ident[EI_CLASS] = ELFCLASS64;
	h.e_ident[EI_DATA] = ELFDATA2LSB;
	h.e_ident[EI_VERSION] = EV_CURRENT;
	h.e_ident[EI_OSABI] = AbiCuda;
	h.e_ident[EI_ABIVERSION] = AbiVersion;
	h.e_flags = 0x6000004u | (unsigned)k->arch << 8;
	h.e_ehsize = sizeof h;
	h.e_shentsize = sizeof(Elf64_Shdr);
	h.e_shnum = NSection;
	h.e_shstrndx = S_SHSTR;
	put(&w.out, &h, sizeof h);
	put(&w.names, "", 1);
	put_sections(&w, k, text);
	section(&w, S_SHSTR, ".shstrtab", "", SHT_STRTAB, &w.names);
	w.s[S_SHSTR].sh_size = w.names.n;
	put_align(&w.out, 8);
	h.e_shoff = put(&w.out, w.s, sizeof w.s);
	memcpy(w.out.s, &h, sizeof h);
	free(w.names.s);
	*nbytes = w.out.n;
	return w.out.s;
}

/* cuLibraryLoadData is given no size: the file must say enough about itself. */
static const char *
find_text(const char *image)
{
	const Elf64_Ehdr *h = (const Elf64_Ehdr *)(const void *)image;
	const Elf64_Shdr *s = (const Elf64_Shdr *)(const void *)(image + h->e_shoff);
	const char *names = image + s[h->e_shstrndx].sh_offset;

	for (int i = 0; i < h->e_shnum; i++)
		if (strcmp(names + s[i].sh_name, ".hcgen.text") == 0)
			return image + s[i].sh_offset;
	return NULL;
}

const char *
elf_read(const void *image, KernelFacts *k, const char **why)
{
	const Elf64_Ehdr *h = image;
	const char *s, *path, *text;

	if (memcmp(h->e_ident, ELFMAG, SELFMAG) != 0) {
		*why = "not an ELF file";
		return NULL;
	}
	if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_machine != MachineCuda ||
	    h->e_shentsize != sizeof(Elf64_Shdr) || h->e_shstrndx >= h->e_shnum) {
		*why = "not a cubin";
		return NULL;
	}
	s = find_text(image);
	memset(k, 0, sizeof *k);
	if (!s || sscanf(s, "hcgen stand-in %127s %d %d %d %d %d %d", k->name, &k->arch,
	                 &k->threads, &k->nparam, &k->static_smem, &k->registers, &k->local) != 7) {
		*why = "a cubin of a real NVRTC, which no stand-in can run";
		return NULL;
	}
	path = strchr(s, '\n') + 1;
	text = strchr(path, '\n') + 1;
	snprintf(k->path, sizeof k->path, "%.*s", (int)(text - 1 - path), path);
	return text;
}
