/* The front end, on files:
 *
 *   spec_test check FILE [--set path=value ...]   canonical spec or diagnostics
 *   spec_test model FILE [--set path=value ...]   the same; diagnostics of the model too
 *   spec_test roundtrip FILE...                   print, read, print: same bytes
 *   spec_test schema                              the table of docs/spec.md
 *   spec_test                                     assertions on one spec */
#define _POSIX_C_SOURCE 200809L
#include "../../gen/hcgen.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static Spec *
read_file(Arena *a, const char *file, int nset, const char *const *set)
{
	Diag *d = diag_new(a);
	Spec *s = spec_read(a, d, file, nset, set);

	assert((s == NULL) == (diag_count(d) > 0));
	diag_flush(d, stderr);
	return s;
}

static int
check(const char *file, int nset, const char *const *set, bool model)
{
	Arena *a = arena_new("check");
	Spec *s = read_file(a, file, nset, set);
	Diag *d = diag_new(a);
	int rc = EX_SPEC;
	Buf b = {0};

	/* what only holds between keys is the model's to say */
	if (s && (!model || model_build(a, d, s)))
		rc = EX_OK;
	diag_flush(d, stderr);

	if (rc == EX_OK) {
		spec_print(s, &b);
		fwrite(b.s, 1, b.len, stdout);
		buf_free(&b);
	}
	arena_free(a);
	return rc;
}

static int
roundtrip(const char *file)
{
	Arena *a = arena_new("roundtrip");
	Spec *s = read_file(a, file, 0, NULL), *t;
	char tmp[] = "/tmp/spec_test.XXXXXX";
	Buf one = {0}, two = {0};
	int fd, rc = EX_SPEC;

	if (s) {
		spec_print(s, &one);
		fd = mkstemp(tmp);
		assert(fd >= 0);
		assert(write(fd, one.s, one.len) == (ssize_t)one.len);
		close(fd);
		t = read_file(a, tmp, 0, NULL);
		unlink(tmp);
		if (t) {
			spec_print(t, &two);
			rc = one.len == two.len &&
			     memcmp(one.s, two.s, one.len) == 0 ? EX_OK : EX_BUG;
		}
	}
	if (rc == EX_BUG)
		fprintf(stderr, "%s: differs when read back\n%s---\n%s", file,
		        one.s, two.s);
	buf_free(&one);
	buf_free(&two);
	arena_free(a);
	return rc;
}

/* Values and places, read from specs whose text is known. */
static int
values(void)
{
	static const char *const set[] = { "hc.lanes=3" };
	Arena *a = arena_new("values");
	Spec *s = read_file(a, "tests/spec/good-all-keys.yaml", 0, NULL);

	assert(s && strcmp(s->name, "every_key") == 0);
	assert(s->layers == 12 && s->vocab == 50257 && s->seed == 1LL << 53);
	assert(s->attn_layers.kind == SEL_EXCEPT && s->attn_layers.idx[0] == 6);
	assert(s->nwindow == 1 && s->window[0] == 128 && s->attn_scale == 0.12);
	assert(s->rotary == ROT_ADJACENT && s->softcap == CAP_SIGMOID);
	assert(s->hc_layers.first == 7 && s->hc_layers.last == 10);
	assert(s->leave == LEAVE_KEEP && s->output == OUTPUT_LEARNED);
	assert(s->coef_bf16 && s->ndead == 1 && s->dead[0] == 3);
	assert(s->has_res && s->has_pre && s->has_post);
	assert(s->res.init.kind == INIT_IDENTITY && s->res.init.a == 1);
	assert(s->pre.init.kind == INIT_ROUND_ROBIN && s->pre.betas[1] == 0.5);
	assert(s->post.sublayers.kind == SEL_MLP && !s->post.has_betas);
	assert(s->lambda_site == BEFORE_READ &&
	       s->lambda_granularity == GR_SUBLAYER);
	assert(s->nsource == 2 && s->source[0].granularity == GR_LAYER);
	assert(s->source[1].kind == SRC_BIGRAM && s->source[1].rows == 5120);
	assert(s->source[1].first == FIRST_BOTH && s->source[1].coef.lr_mul == 4);
	assert(s->nskip == 2 && s->skip[0].from.lane == LANE_MEAN);
	assert(s->skip[0].to.when == WHEN_AFTER && s->skip[0].gate.init == -1.5);
	assert(s->skip[1].to.lane == LANE_ALL && s->skip[1].gate.learned);
	assert(s->nbackout == 1 && s->backout[0].gate.init == 0.5);
	assert(s->ngroup == 2 && !s->group[1].has_lr_mul);
	assert(s->group[1].has_weight_decay && s->group[1].weight_decay == 0.05);
	assert(s->ntrain == 2 && strcmp(s->train[1], "back\\slash é.bin") == 0);
	assert(s->target == TGT_CPU && s->storage == F_F32 && s->head_chunk == 0);

	s = read_file(a, "tests/spec/good-extends.yaml", 1, set);
	assert(s && s->lanes == 3 && s->nsource == 1 && s->post.learned);
	assert(strcmp(spec_loc(s, "hc.lanes").file, "--set") == 0);
	assert(spec_loc(s, "hc.post.lr_mul").line == 3);
	assert(strcmp(spec_loc(s, "model.width").file,
	              "tests/spec/part/base.yaml") == 0);
	assert(spec_loc(s, "train.lr").line == 3);       /* train: */
	assert(spec_loc(s, "plan.search").line == 2);   /* the document */
	arena_free(a);
	return 0;
}

int
main(int argc, char **argv)
{
	const char *set[64];
	int nset = 0, i, rc = 0, one;
	Buf b = {0};

	bool model = argc >= 3 && strcmp(argv[1], "model") == 0;

	if (argc >= 3 && (model || strcmp(argv[1], "check") == 0)) {
		for (i = 3; i + 1 < argc && nset < 64; i += 2) {
			assert(strcmp(argv[i], "--set") == 0);
			set[nset++] = argv[i + 1];
		}
		return check(argv[2], nset, set, model);
	}
	if (argc >= 3 && strcmp(argv[1], "roundtrip") == 0) {
		for (i = 2; i < argc; i++) {
			one = roundtrip(argv[i]);
			rc = one > rc ? one : rc;
		}
		return rc;
	}
	if (argc == 2 && strcmp(argv[1], "schema") == 0) {
		spec_schema(&b);
		fwrite(b.s, 1, b.len, stdout);
		buf_free(&b);
		return 0;
	}
	return argc == 1 ? values() : 2;
}
