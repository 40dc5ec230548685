/* hcgen: verbs and options.  Each verb is one short function; the pipeline
 * itself is generate.c, the runtime is runtime/. */
#include "verbs.h"
#include "../runtime/hcrun.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
	int narg;
	const char *arg[256];   /* what is no option */
	int nset;
	const char *set[256];
	const char *out;        /* -o */
	const char *dump;       /* -d */
	const char *device, *params, *tokens, *dump_file, *prompt, *run, *kernels, *arch, *lock, *update;
	long n, threads, rows, seq, step;
	double temperature;
	long long seed;
	bool has_seed, json, quiet, logits, list_params, schema, reference, bytes, keep, why, dot;
} Options;

static const char usage[] =
"usage: hcgen VERB [options]\n"
"  check SPEC…              validate; the resolved model on one screen (--params: names and shapes;\n"
"                           --schema: the table of keys, without a SPEC)\n"
"  emit SPEC [-o DIR]       write the trainer: spec.yaml, plan.txt, manifest, kernels/\n"
"  plan SPEC                steps, bytes, flops, modelled time, memory map\n"
"  diff SPEC SPEC           what differs: keys of the model, plan, kernels\n"
"  show SPEC [KERNEL]       the kernels; one of them, as CUDA: mathematics, bytes, text, registers\n"
"  compile SPEC [--arch A,…] emit CUDA and compile it with NVRTC: registers, spills, shared memory of each kernel\n"
"  verify SPEC              emitted kernels against the interpreter in double, step by step and as a whole\n"
"  train SPEC [-o DIR]      emit, compile, train, validate; DIR/run holds metrics and parameters\n"
"  bench SPEC [-n STEPS]    time per kernel and gemm of a training step\n"
"  sample RUN --prompt TEXT continue a text with a trained model\n"
"  data bytes|show FILE…    make and inspect token shards\n"
"  doctor                   what this machine has\n"
"options\n"
"  --set path=value   change a key of the spec, as YAML; repeatable\n"
"  --seed N           train.seed, or the seed of verify and sample\n"
"  --device NAME      cuda, cpu, simt (the CUDA text on the CPU, with checks), or auto: cuda if there is a GPU\n"
"  --threads N        threads, default all cores\n"
"  -o DIR             where to write (default out/NAME)\n"
"  -d LETTERS         print stages: y spec, m model, g graph, b gradients, s simplified, t terms, r rewritten, f plan, k kernels\n"
"  --json             machine-readable output (check, compile, train, doctor)   --quiet   less of it\n"
"emit\n"
"  --keep             leave kernels that were edited in DIR as they are\n"
"plan\n"
"  --why              what each choice of the search is worth, beside the next best\n"
"  --dot              the plan as a graph, for graphviz\n"
"  --lock FILE        write the plan, for the key plan.lock\n"
"verify\n"
"  --tokens T.bin --params P.safetensors --dump OUT.safetensors [--logits]\n"
"                     one forward and backward on your own parameters and tokens\n"
"  --update STATE.safetensors --step T --dump OUT.safetensors\n"
"                     the update of step T on your own param.NAME, grad.NAME, moment1.NAME, moment2.NAME\n"
"  --rows N           tokens to verify on (default: about 128)\n"
"  --seq N            positions of a sequence at most (default: 61)\n"
"  --bytes            simt: bytes that each kernel loads and stores, distinct and issued\n"
"train\n"
"  --params P.safetensors   start from these parameters      --run DIR   where the run goes\n"
"  --kernels DIR            an emitted directory, as it is: kernels edited there are run (compile: compiled)\n"
"sample\n"
"  --prompt TEXT  -n TOKENS  --temperature X\n";

static long
number(const char *opt, const char *s)
{
	char *end;
	long x;

	errno = 0;
	x = strtol(s, &end, 10);
	if (errno || *end || end == s || x < 0)
		die("%s: \"%s\" is not a number", opt, s);
	return x;
}

static double
decimal(const char *opt, const char *s)
{
	char *end;
	double x = strtod(s, &end);

	if (*end || end == s || !(x >= 0 && x < 1e9))
		die("%s: \"%s\" is not a number", opt, s);
	return x;
}

/* options that take a word, and where it goes */
static bool
word_option(Options *o, const char *opt, const char *value)
{
	const struct { const char *name; const char **to; } words[] = {
		{ "-o", &o->out }, { "-d", &o->dump }, { "--device", &o->device },
		{ "--params", &o->params }, { "--tokens", &o->tokens },
		{ "--dump", &o->dump_file }, { "--prompt", &o->prompt },
		{ "--run", &o->run }, { "--kernels", &o->kernels },
		{ "--arch", &o->arch }, { "--lock", &o->lock }, { "--update", &o->update },
	};
	size_t i;

	for (i = 0; i < sizeof words / sizeof *words; i++)
		if (strcmp(opt, words[i].name) == 0) {
			if (!value)
				die("%s needs a value", opt);
			*words[i].to = value;
			return true;
		}
	return false;
}

static bool
number_option(Options *o, const char *opt, const char *value)
{
	const struct { const char *name; long *to; } numbers[] = {
		{ "-n", &o->n }, { "--threads", &o->threads }, { "--rows", &o->rows },
		{ "--seq", &o->seq }, { "--step", &o->step },
	};
	size_t i;

	for (i = 0; i < sizeof numbers / sizeof *numbers; i++)
		if (strcmp(opt, numbers[i].name) == 0) {
			if (!value)
				die("%s needs a value", opt);
			*numbers[i].to = number(opt, value);
			return true;
		}
	return false;
}

static bool
flag_option(Options *o, const char *opt)
{
	const struct { const char *name; bool *to; } flags[] = {
		{ "--json", &o->json }, { "--quiet", &o->quiet },
		{ "--logits", &o->logits }, { "--schema", &o->schema },
		{ "--reference", &o->reference }, { "--bytes", &o->bytes },
		{ "--keep", &o->keep }, { "--why", &o->why }, { "--dot", &o->dot },
	};
	size_t i;

	for (i = 0; i < sizeof flags / sizeof *flags; i++)
		if (strcmp(opt, flags[i].name) == 0) {
			*flags[i].to = true;
			return true;
		}
	return false;
}

static void
add_set(Options *o, const char *value)
{
	if (o->nset == (int)(sizeof o->set / sizeof *o->set))
		die("--set: more than %d", o->nset);
	o->set[o->nset++] = value;
}

static bool is_option(const char *opt);

/* An option that a verb would not obey is refused.  takes: all that it does, each
 * between blanks. */
static void
check_option(const char *verb, const char *takes, const char *opt)
{
	size_t n = strlen(opt);
	const char *p;

	if (strcmp(opt, "--help") == 0) {
		fputs(usage, stdout);
		exit(EX_OK);
	}
	for (p = takes; (p = strstr(p, opt)); p += n)
		if (p[-1] == ' ' && p[n] == ' ')
			return;
	if (is_option(opt))
		die("%s: %s is not for this verb; `hcgen --help` says what is", verb, opt);
	die("%s: unknown option, or its value is missing", opt);
}

static void
parse(Options *o, const char *verb, const char *takes, int argc, char **argv)
{
	static char seed[48];
	const char *opt, *value;
	int i;

	for (i = 0; i < argc; i++) {
		opt = argv[i];
		value = i + 1 < argc ? argv[i + 1] : NULL;
		if (opt[0] == '-' && opt[1])
			check_option(verb, takes, opt);
		if (strcmp(opt, "--params") == 0 && strcmp(verb, "check") == 0)
			o->list_params = true;
		else if (flag_option(o, opt))
			;
		else if (strcmp(opt, "--set") == 0 && value)
			add_set(o, argv[++i]);
		else if (strcmp(opt, "--seed") == 0 && value) {
			o->seed = number(opt, argv[++i]);
			o->has_seed = true;
		} else if (strcmp(opt, "--temperature") == 0 && value)
			o->temperature = decimal(opt, argv[++i]);
		else if (word_option(o, opt, value) || number_option(o, opt, value))
			i++;
		else if (opt[0] == '-' && opt[1])
			die("%s: unknown option, or its value is missing", opt);
		else if (o->narg == (int)(sizeof o->arg / sizeof *o->arg))
			die("too many arguments");
		else
			o->arg[o->narg++] = opt;
	}
	if (o->has_seed && strcmp(verb, "train") == 0) {
		snprintf(seed, sizeof seed, "train.seed=%lld", o->seed);
		add_set(o, seed);
	}
}

/* what is emitted for the device asked for, which need not be here */
static int
target(const Options *o)
{
	const char *d = o->device ? o->device : "auto";

	if (strcmp(d, "cuda") == 0)
		return TO_CUDA;
	return device_target(device_pick(d));
}

/* what plan and check look at: the device asked for, else what the spec's
 * `target` runs */
static int
planned(const Options *o, const Model *m)
{
	return o->device ? target(o) : m->spec->target == TGT_CPU ? TO_CPU : TO_CUDA;
}

/* spec to model; errors are printed and end the process with 1 */
static Model *
model_of(Arena *a, const Options *o, const char *file)
{
	Diag *d = diag_new(a);
	Spec *s = spec_read(a, d, file, o->nset, o->set);
	Model *m = s ? model_build(a, d, s) : NULL;
	Buf b = {0};

	if (diag_count(d)) {
		diag_flush(d, stderr);
		exit(EX_SPEC);
	}
	if (o->dump && strchr(o->dump, 'y')) {
		spec_print(s, &b);
		fputs(b.s, stdout);
		buf_free(&b);
	}
	return m;
}

static const char *
one_arg(const Options *o, const char *verb)
{
	if (o->narg != 1)
		die("%s takes one SPEC; `hcgen --help` lists the verbs", verb);
	return o->arg[0];
}

static const char *
out_dir(Arena *a, const Options *o, const Model *m)
{
	if (o->out && !*o->out)
		die("-o needs the name of a directory");
	return o->out ? o->out : arena_printf(a, "out/%s", m->spec->name);
}

static int
verb_check(Arena *a, const Options *o)
{
	const Model *m;
	int i;

	if (o->schema) {
		Buf b = {0};

		spec_schema(&b);
		fputs(b.s, stdout);
		buf_free(&b);
		return EX_OK;
	}
	if (!o->narg)
		die("check takes at least one SPEC");
	for (i = 0; i < o->narg; i++) {
		m = model_of(a, o, o->arg[i]);
		if (o->list_params)
			show_params(m, stdout);
		else
			show_model(generate(a, m, planned(o, m), o->dump ? o->dump : ""), o->json,
			           stdout);
	}
	return EX_OK;
}

static int
verb_emit(Arena *a, const Options *o)
{
	const Model *m = model_of(a, o, one_arg(o, "emit"));
	const char *dir = out_dir(a, o, m);
	Bundle *b = generate(a, m, target(o), o->dump ? o->dump : "");
	int kept = o->keep ? bundle_edited(b, dir) : 0;

	bundle_write(b, dir);
	if (!o->quiet)
		printf("%s: %d kernels, %d + %d + %d steps\n", dir, b->ntext,
		       b->plan[PLAN_TRAIN]->nstep, b->plan[PLAN_EVAL]->nstep,
		       b->plan[PLAN_UPDATE]->nstep);
	if (kept && !o->quiet)
		printf("%d edited kernels kept\n", kept);
	return EX_OK;
}

static int
verb_plan(Arena *a, const Options *o)
{
	const Model *m = model_of(a, o, one_arg(o, "plan"));
	const Bundle *bundle = generate(a, m, planned(o, m), o->dump ? o->dump : "");
	Buf b = {0};

	if (o->lock) {
		bundle_lock(bundle, &b);
		if (!b.len)
			die("--lock: the plan of %s was not searched", m->spec->name);
		if (file_emit(o->lock, b.s, b.len) != 0)
			die("cannot write %s: %s", o->lock, strerror(errno));
	} else if (o->why) {
		explain_plan(a, m, &b);
	} else if (o->dot) {
		plan_dot(bundle, &b);
	} else {
		report(bundle, &b);
	}
	if (!o->lock)
		fputs(b.s, stdout);
	buf_free(&b);
	return EX_OK;
}

/* What two specs differ in: keys, then plan, then kernels. */
static int
verb_diff(Arena *a, const Options *o)
{
	const Model *m[2];
	const Bundle *b[2];
	Options as = *o;
	Buf text = {0};
	int i;

	if (o->narg != 2)
		die("diff takes two SPECs");
	if (!as.device)
		as.device = "cuda";
	for (i = 0; i < 2; i++) {
		m[i] = model_of(a, o, o->arg[i]);
		b[i] = generate(a, m[i], target(&as), "");
	}
	diff_bundles(b[0], b[1], &text);
	fputs(text.s, stdout);
	buf_free(&text);
	return EX_OK;
}

/* the CUDA text unless another device is asked for */
static int
verb_show(Arena *a, const Options *o)
{
	Options as = *o;
	const Model *m;
	const Bundle *b;
	const Text *t;

	if (o->narg != 1 && o->narg != 2)
		die("show takes a SPEC and the name of a KERNEL, or a part of it");
	if (!as.device)
		as.device = "cuda";
	m = model_of(a, o, o->arg[0]);
	b = generate(a, m, target(&as), "");
	if (o->narg == 1) {
		show_kernels(b, stdout);
		return EX_OK;
	}
	t = show_find(b, o->arg[1]);
	if (!t)
		return EX_ENV;
	show_kernel(b, t, b->target == TO_CPU ? NULL :
	            compiled_text(a, t->name, t->file, t->threads), stdout);
	return EX_OK;
}

/* An emitted directory is run as it is, its kernels possibly edited, if this
 * spec with these settings is what it was emitted from. */
static void
check_kernels(Arena *a, const Bundle *b, const char *dir)
{
	const char *path = arena_printf(a, "%s/manifest", dir);
	Buf want = {0};
	size_t n = 0;
	char *have = file_read(a, path, &n);

	if (!have)
		die("cannot read %s: %s", path, strerror(errno));
	manifest(b, &want);
	if (!strstr(have, b->target == TO_CUDA ? "\ntarget cuda\n" : "\ntarget cpu\n"))
		die("%s was emitted for another device: --device says for which it is run", dir);
	if (n != want.len || memcmp(have, want.s, n) != 0)
		die("%s was emitted from another spec or with other settings: hcgen emit --keep "
		    "-o %s with these emits it again and leaves edited kernels", dir, dir);
	buf_free(&want);
}

/* sm_90, sm_90a */
static void
check_arch(const char *name)
{
	size_t n = strncmp(name, "sm_", 3) == 0 ? strspn(name + 3, "0123456789") : 0;

	if (n < 2 || n > 3 || (name[3 + n] && strcmp(name + 3 + n, "a") != 0 &&
	    strcmp(name + 3 + n, "f") != 0))
		die("--arch: \"%s\" is no name such as sm_90a", name);
}

/* What NVRTC makes of every kernel; no GPU is needed. */
static int
verb_compile(Arena *a, const Options *o)
{
	const Model *m = model_of(a, o, one_arg(o, "compile"));
	const char *dir = o->kernels ? o->kernels : out_dir(a, o, m);
	const char *arch[16], *p = o->arch ? o->arch : "sm_90a";
	const Bundle *b = generate(a, m, TO_CUDA, "");
	int n;

	for (n = 0; *p; n++) {
		if (n == (int)(sizeof arch / sizeof *arch))
			die("--arch: more than %d", n);
		arch[n] = arena_strndup(a, p, strcspn(p, ","));
		check_arch(arch[n]);
		p += strcspn(p, ",");
		p += *p == ',';
	}
	if (!n)
		die("--arch needs names such as sm_90a, with commas between");
	if (o->kernels)
		check_kernels(a, b, dir);
	else
		bundle_write(b, dir);
	return compile_report(dir, n, arch, o->json, stdout);
}

static int
verb_verify(Arena *a, const Options *o)
{
	VerifyOpts v = { .params = o->params, .tokens = o->tokens, .dump = o->dump_file,
	                 .logits = o->logits, .rows = o->rows, .seq = o->seq, .seed = o->seed,
	                 .threads = (int)o->threads, .bytes = o->bytes,
	                 .device = device_pick(o->device), .update = o->update, .step = o->step,
	                 .reference = o->reference };
	const char *file = one_arg(o, "verify");

	if ((v.params != NULL) != (v.tokens != NULL))
		die("verify: --params and --tokens go together");
	if (v.update && (v.params || !v.dump))
		die("verify: --update takes --step and --dump, and no --params");
	if (v.bytes && v.device != DEV_SIMT)
		die("verify: --bytes counts on device simt only");
	return verify(a, model_of(a, o, file), &v);
}

static int
verb_train(Arena *a, const Options *o)
{
	const char *file = one_arg(o, "train"), *slash = strrchr(file, '/');
	const Model *m = model_of(a, o, file);
	const char *dir = o->kernels ? o->kernels : out_dir(a, o, m);
	const Bundle *b = generate(a, m, target(o), o->dump ? o->dump : "");
	TrainOpts t;

	if (o->kernels)
		check_kernels(a, b, dir);
	else
		bundle_write(b, dir);
	t = (TrainOpts){ .dir = dir, .params = o->params, .nthreads = (int)o->threads,
	                 .device = device_pick(o->device), .quiet = o->quiet, .json = o->json };
	t.base = slash ? arena_strndup(a, file, (size_t)(slash - file)) : ".";
	t.run = o->run ? o->run : arena_printf(a, "%s/run", dir);
	return train(&t);
}

static int
verb_bench(Arena *a, const Options *o)
{
	const Model *m = model_of(a, o, one_arg(o, "bench"));
	const char *dir = out_dir(a, o, m);

	if (o->n == 0)
		die("bench: at least one step");
	bundle_write(generate(a, m, target(o), ""), dir);
	return bench(dir, o->n >= 0 ? o->n : 5, device_pick(o->device), (int)o->threads);
}

static int
verb_sample(Arena *a, const Options *o)
{
	(void)a;
	if (o->narg != 1)
		die("sample takes one RUN directory, such as out/tiny/run");
	return sample(o->arg[0], o->prompt ? o->prompt : "", o->n >= 0 ? o->n : 256,
	              o->temperature, o->seed, o->device ? device_pick(o->device) : DEV_AUTO,
	              (int)o->threads);
}

static int
verb_doctor(Arena *a, const Options *o)
{
	(void)a;
	return doctor(o->json);
}

/* takes: the options that the verb obeys */
static const struct {
	const char *name;
	int (*run)(Arena *a, const Options *o);
	const char *takes;
} verbs[] = {
	{ "check", verb_check, " --set --device --json --params --schema -d " },
	{ "emit", verb_emit, " --set --device -o -d --keep --quiet " },
	{ "plan", verb_plan, " --set --device -d --why --dot --lock " },
	{ "diff", verb_diff, " --set --device " },
	{ "show", verb_show, " --set --device " },
	{ "compile", verb_compile, " --set -o --arch --kernels --json " },
	{ "verify", verb_verify, " --set --device --threads --seed --rows --seq --bytes --update --step --params "
	  "--tokens --dump --logits --reference " },
	{ "train", verb_train, " --set --device --threads --seed -o -d --params --run --kernels "
	  "--quiet --json " },
	{ "bench", verb_bench, " --set --device --threads -o -n " },
	{ "sample", verb_sample, " --device --threads --seed --prompt -n --temperature " },
	{ "doctor", verb_doctor, " --json " },
};

/* does any verb take it? */
static bool
is_option(const char *opt)
{
	const char *p;
	size_t i, n = strlen(opt);

	for (i = 0; i < sizeof verbs / sizeof *verbs; i++)
		for (p = verbs[i].takes; (p = strstr(p, opt)); p += n)
			if (p[-1] == ' ' && p[n] == ' ')
				return true;
	return false;
}

static int
flushed(int rc)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		die("cannot write the output: %s", strerror(errno));
	return rc;
}

int
main(int argc, char **argv)
{
	Options o = { .temperature = 0.8, .n = -1 };
	Arena *a;
	size_t i;
	int rc;

	/* what an arena frees, the next one takes: the kernel needs not clear it again */
	mallopt(M_TRIM_THRESHOLD, 1 << 28);
	mallopt(M_TOP_PAD, 1 << 22);
	if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
		fputs(usage, argc < 2 ? stderr : stdout);
		return argc < 2 ? EX_ENV : EX_OK;
	}
	if (strcmp(argv[1], "data") == 0 && argc < 3)
		die("data: bytes FILE… -o DIR, or show FILE…");
	if (strcmp(argv[1], "data") == 0)
		return flushed(data_main(argc - 2, argv + 2));
	for (i = 0; i < sizeof verbs / sizeof *verbs; i++) {
		if (strcmp(argv[1], verbs[i].name) != 0)
			continue;
		parse(&o, argv[1], verbs[i].takes, argc - 2, argv + 2);
		a = arena_new("main");
		rc = verbs[i].run(a, &o);
		arena_free(a);
		return flushed(rc);
	}
	die("\"%s\" is no verb; `hcgen --help` lists them", argv[1]);
}
