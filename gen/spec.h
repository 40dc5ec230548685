/* The spec, typed: what the user said, defaults filled in, nothing derived.
 *
 * spec.c fills this from the schema table (schema.def); model.c turns it into
 * numbers.  Every value can be traced to a file position by its dotted path:
 * spec_loc(s, "hc.post.init"). */
#ifndef SPEC_H
#define SPEC_H

#include "base.h"
#include "diag.h"

enum { MaxLayers = 128, MaxLanes = 8, MaxSources = 4, MaxSkips = 8,
       MaxGroups = 32, MaxFiles = 64, MaxStages = 16 };

/* a selection of layers or of sublayers */
typedef struct {
	enum { SEL_ALL, SEL_NONE, SEL_ATTN, SEL_MLP, SEL_LIST, SEL_RANGE,
	       SEL_EXCEPT } kind;
	int n, *idx;            /* SEL_LIST, SEL_EXCEPT */
	int first, last;        /* SEL_RANGE */
} Sel;

/* initial values of a coefficient table */
typedef struct {
	enum { INIT_CONST, INIT_IDENTITY, INIT_ROUND_ROBIN, INIT_RAMP,
	       INIT_KINDS, INIT_VALUES } kind;
	double a, b;            /* CONST: a  IDENTITY: a on the diagonal  RAMP: a to b
	                         * KINDS: a attention, b MLP */
	int n;
	double *v;              /* INIT_VALUES */
} Init;

typedef struct {
	Init init;
	bool learned;
	Sel sublayers, layers;
	double lr_mul;          /* 1 when not given */
	double betas[2];        /* has_betas: overrides optim.betas */
	bool has_betas;
} Coef;

enum Granularity { GR_NONE, GR_LAYER, GR_SUBLAYER, GR_LANE };
enum Site { AT_WRITE, BEFORE_READ, ON_BRANCH };

typedef struct {
	const char *name;
	bool none;              /* removed with `name: none` */
	enum { SRC_X0, SRC_BIGRAM } kind;
	int rows;               /* bigram: rows of the table */
	double table_std;
	bool hash_quirk;
	int signs;              /* bigram: rows of the table of signs, or 0 */
	enum Granularity granularity; /* GR_LAYER or GR_SUBLAYER */
	bool shared;
	int lane;               /* the only one it is added to, or LANE_ALL */
	enum Site site;
	bool detach;
	enum { FIRST_IN_PLACE, FIRST_LANE_INIT, FIRST_BOTH } first;
	Coef coef;
} Source;

/* a lane as a point: index, or one of these */
enum { LANE_MEAN = -1, LANE_ALL = -2 };

typedef struct { int sublayer, lane; enum { WHEN_BEFORE, WHEN_AFTER } when; } Point;

typedef struct {
	enum { GATE_SCALAR, GATE_SIGMOID, GATE_TOKEN } kind;
	double init;
	bool learned;
	int channels;           /* GATE_TOKEN */
} Gate;

typedef struct {
	const char *name;
	bool none;
	Point from, to;         /* `to` of skips alone */
	Gate gate;              /* not of reads */
	Sel sublayers;          /* of reads: whose branches see the value */
} Skip;

typedef enum { OPT_ADAMW, OPT_CAUTIOUS_ADAM, OPT_NORMUON } OptKind;

typedef struct {
	const char *name;
	bool none;
	const char *match;      /* glob on parameter names */
	bool has_kind, has_every, has_lr, has_lr_mul, has_betas, has_eps, has_weight_decay;
	OptKind kind;
	int every;
	double lr, lr_mul, betas[2], eps, weight_decay;
} Group;

/* part of a run; what has a flag or a count of 0 is as elsewhere in the spec */
typedef struct {
	const char *name;
	bool none;
	bool has_steps, has_tokens, has_micro, has_seq, has_max_doc, has_long_window;
	double share, lr_mul;
	int steps, tokens_per_step, micro_batches, seq_len, max_doc, long_window;
	int nwindow, *window;
	int ntarget, ntarget_end;
	double *target, *target_end;
} Stage;

/* what the search is told: 0 is auto, it decides */
typedef struct {
	enum { STORE_AUTO, STORE_LANES, STORE_PARTS, STORE_NONE } store;
	enum { FORM_AUTO, FORM_RAW, FORM_NORMED } form;
	enum { SOURCES_AUTO, SOURCES_INLINE, SOURCES_PRECOMPUTE } sources;
	enum { GRADIENTS_AUTO, GRADIENTS_NOW, GRADIENTS_DEFERRED } gradients;
	enum { IDENTITIES_AUTO, IDENTITIES_NONE } identities;
	enum { COLLAPSE_AUTO, COLLAPSE_NONE } collapse;
	enum { SCALES_AUTO, SCALES_STREAM, SCALES_WEIGHTS } scales;
	enum { RECOMPUTE_AUTO, RECOMPUTE_NONE, RECOMPUTE_ACT } recompute;
	bool divide;            /* risky: normed forms divide by learned coefficients */
	bool has_lock;
	const char *lock;       /* file */
	const char *locked;     /* what it holds */
} Knobs;

typedef struct {
	const char *file;       /* path given by the user */
	const char *name;       /* identifier; default: stem of the file */

	/* model */
	int layers, width, heads, kv_heads, head_dim, vocab, vocab_multiple;
	bool tied, embed_norm, norm_weight;
	double norm_eps;
	Sel attn_layers;
	bool qk_norm, document_mask;
	double attn_scale;      /* 0: auto */
	int nwindow, *window;   /* cyclic over layers; 0 is `full` */
	Sel long_layers;
	int long_window;        /* 0 is `full` */
	enum { ROT_NONE, ROT_HALF, ROT_ADJACENT } rotary;
	double rotary_base;
	int rotary_dims;        /* 0: head_dim */
	enum { FREQ_POWER, FREQ_ENDPOINT } rotary_freq;
	bool rotary_bf16;
	bool yarn;
	double yarn_alpha, yarn_beta, yarn_growth;
	Sel paired_layers, gate_layers, sa_layers, offset_layers, value_layers, split_layers;
	int gate_channels, value_channels, smear_channels;      /* smear: 0: none */
	int offset_first;       /* -1: rotary_dims */
	double sa_init[2], value_std;
	Sel mlp_layers;
	enum { MLP_RELU2, MLP_GELU, MLP_SWIGLU } mlp;
	int hidden;             /* 0: 4*width */
	enum { CAP_NONE, CAP_TANH, CAP_SIGMOID } softcap;
	double cap, cap_shift, cap_temperature;
	double embed_std, head_std, init_std;   /* init_std 0: auto */
	bool init_uniform;      /* else normal */
	enum { OUT_ZERO, OUT_RANDOM } init_out, init_attn_out, init_mlp_out;

	/* hc */
	int lanes;
	Sel hc_layers;
	enum { LEAVE_MEAN, LEAVE_SUM, LEAVE_LANE, LEAVE_KEEP } leave;
	int leave_lane;
	enum { LI_COPY, LI_SPLIT, LI_FIRST } lane_init;
	bool lane_init_learned;
	enum { OUTPUT_MEAN, OUTPUT_SUM, OUTPUT_LANE, OUTPUT_LEARNED } output;
	int output_lane;
	bool coef_bf16;
	int ndead, *dead;       /* hc.dead: sublayer indices */
	Coef res, pre, post, lambda;
	bool has_res, has_pre, has_post;        /* given in the spec */
	bool post_outside;
	enum Granularity lambda_granularity;
	enum Site lambda_site;
	int nsource, nskip, nbackout, nread;
	Source source[MaxSources];
	Skip skip[MaxSkips], backout[MaxSkips], read[MaxSkips];

	/* train */
	int steps, tokens_per_step, seq_len, micro_batches, warmup;
	double lr, cooldown, floor;
	enum { COOL_CONSTANT, COOL_LINEAR, COOL_COSINE } cooldown_kind;
	double clip, loss_scale;        /* loss_scale 0: mean */
	int val_every, val_tokens, log_every;
	int val_batch, val_seq_len;     /* 0: as train */
	long long seed;
	int nstage;
	Stage stage[MaxStages];
	const char *untie;              /* a stage, or NULL */
	bool has_untie;
	int nfinal_window, *final_window;
	bool has_final_long;
	int final_long_window;

	/* optim */
	OptKind optim;
	int every;
	double betas[2], eps, weight_decay;
	double momentum, momentum_start;        /* of NorMuon */
	int momentum_warmup, momentum_cooldown;
	int ngroup;
	Group group[MaxGroups];

	/* data */
	int ntrain, nval;
	const char **train, **val;      /* as written; "auto" alone means auto */
	enum { PACK_STREAM, PACK_DOCUMENTS } packing, val_packing;
	bool shuffle;
	int bos, max_doc;

	/* numerics, target, plan */
	enum { F_F32, F_BF16 } storage, gemm, params;
	enum { HEAD_AUTO, HEAD_FP8 } head;
	double fp8_x, fp8_w, fp8_grad;  /* what becomes 448 */
	enum { TGT_H200, TGT_H100, TGT_CPU } target;
	enum { SEARCH_AUTO, SEARCH_NAIVE } search;
	Knobs plan;
	double memory;          /* GB that arenas may take together; 0: no limit */
	int head_chunk;         /* rows of logits at a time; 0: auto */

	void *locs;             /* dotted path -> Loc, see spec_loc */
} Spec;

/* Read FILE, its bases and `path=value` settings.  Returns NULL when d has
 * errors.  Everything lives in a. */
Spec *spec_read(Arena *a, Diag *d, const char *file, int nset,
                const char *const *set);

/* Where the value at a dotted path was written (of the section that would
 * hold it, or of the document, when it is a default). */
Loc spec_loc(const Spec *s, const char *path);

/* The whole spec with every default, as YAML that spec_read reads back to the
 * same Spec.  Canonical: same Spec, same bytes. */
void spec_print(const Spec *s, Buf *out);

/* The Markdown key table of docs/spec.md, from the schema. */
void spec_schema(Buf *out);

#endif
