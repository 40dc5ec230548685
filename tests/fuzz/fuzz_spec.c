/* libFuzzer target: bytes before the first NUL are a spec, those after it one
 * --set setting.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -o fuzz_spec \
 *         tests/fuzz/fuzz_spec.c gen/{base,utf8,diag,yaml}.c gen/s*.c -lyaml -lm
 *   ./fuzz_spec -max_len=4096 CORPUS tests/spec
 *
 * Besides not crashing: a spec that is read prints to text that reads back to
 * the same text, and diagnostics never carry a control character. */
#define _POSIX_C_SOURCE 200809L
#include "../../gen/spec.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

static void
write_spec(const char *path, const void *data, size_t nbytes)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(data, 1, nbytes, f) != nbytes || fclose(f) != 0)
		abort();
}

static void
flush_checked(Diag *d)
{
	char *text = NULL;
	size_t n = 0, i;
	FILE *f = open_memstream(&text, &n);

	if (!f)
		abort();
	diag_flush(d, f);
	fclose(f);
	for (i = 0; i < n; i++)
		if (((unsigned char)text[i] < 32 && text[i] != '\n') ||
		    text[i] == 127)
			abort();
	free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
	Arena *a = arena_new("fuzz");
	Diag *d = diag_new(a);
	const uint8_t *nul = memchr(data, 0, nbytes);
	size_t len = nul ? (size_t)(nul - data) : nbytes;
	const char *set;
	char path[64];
	Spec *s;
	Buf one = {0}, two = {0};

	snprintf(path, sizeof path, "/tmp/fuzz_spec_%ld.yaml", (long)getpid());
	write_spec(path, data, len);
	set = nul ? arena_strndup(a, (const char *)nul + 1, nbytes - len - 1)
	          : NULL;
	s = spec_read(a, d, path, set != NULL, &set);
	if ((s == NULL) != (diag_count(d) > 0))
		abort();
	flush_checked(d);
	if (s) {
		spec_loc(s, "hc.sources.x.init");
		spec_print(s, &one);
		write_spec(path, one.s, one.len);
		s = spec_read(a, d, path, 0, NULL);
		if (!s)
			abort();
		spec_print(s, &two);
		if (one.len != two.len || memcmp(one.s, two.s, one.len) != 0)
			abort();
	}
	unlink(path);
	buf_free(&one);
	buf_free(&two);
	arena_free(a);
	return 0;
}
