/* cuDNN as far as it works without a GPU, where it is installed: what it says
 * of attention on an H200 that is only described to it.
 *
 * Graphs are asked about beside the toolkit's stub of the driver, which has to
 * be found as libcuda.so.1 from the start of a process: each case is this
 * program again, with the case's name as its argument and, for a graph, a
 * LD_LIBRARY_PATH of its own. */
#define _GNU_SOURCE
#include <stdio.h>

#if __has_include("/usr/local/cuda/include/cudnn.h") && __has_include(<cuda_runtime_api.h>)
#include "/usr/local/cuda/include/cudnn.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int passed, failed, skipped;

/* In the child: what is wrong is said on standard output, and the case fails. */
static void wrong(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void
wrong(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	fflush(stdout);
	_exit(1);
}

/* ---- the library ---- */

#define ENTRIES(X) \
	X(cudnnGetVersion) X(cudnnGetErrorString) X(cudnnGetLastErrorString) X(cudnnCreate) \
	X(cudnnBackendCreateDescriptor) X(cudnnBackendDestroyDescriptor) \
	X(cudnnBackendSetAttribute) X(cudnnBackendGetAttribute) X(cudnnBackendFinalize)

#define POINTER(name) __typeof__(name) *name;
static struct { ENTRIES(POINTER) } nn;

static const char *
lib_dir(void)
{
	static char dir[400];
	const char *home = getenv("CUDA_HOME");

	snprintf(dir, sizeof dir, "%s/lib64", home ? home : "/usr/local/cuda");
	return dir;
}

static void
entry(void *lib, const char *name, void *out)
{
	void *p = dlsym(lib, name);

	if (!p)
		wrong("no %s", name);
	memcpy(out, &p, sizeof p);
}

static void
open_cudnn(void)
{
	char path[500];
	void *lib;

	snprintf(path, sizeof path, "%s/libcudnn.so.9", lib_dir());
	lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		wrong("%s", dlerror());
#define OPEN(name) entry(lib, #name, &nn.name);
	ENTRIES(OPEN)
}

/* ---- descriptors ----
 * The first call that cuDNN refuses is kept, and the rest of the graph is not
 * made: what a caller sees is the verdict. */

typedef cudnnBackendDescriptor_t Desc;

static struct { const char *at; cudnnStatus_t status; char message[400]; } refusal;

static bool
ok(cudnnStatus_t status, const char *at)
{
	if (!refusal.at && status != CUDNN_STATUS_SUCCESS) {
		refusal.at = at;
		refusal.status = status;
		nn.cudnnGetLastErrorString(refusal.message, sizeof refusal.message);
		refusal.message[strcspn(refusal.message, "\n")] = 0;
	}
	return !refusal.at;
}

static Desc
make(cudnnBackendDescriptorType_t type)
{
	Desc d = NULL;

	if (!refusal.at)
		ok(nn.cudnnBackendCreateDescriptor(type, &d), "create");
	return d;
}

static void
set(Desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
    const void *value)
{
	if (!refusal.at)
		ok(nn.cudnnBackendSetAttribute(d, name, type, n, value), "set");
}

static void
set_desc(Desc d, cudnnBackendAttributeName_t name, Desc value)
{
	if (value)
		set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static Desc
finish(Desc d, const char *at)
{
	if (!refusal.at)
		ok(nn.cudnnBackendFinalize(d), at);
	return d;
}

static int64_t
get(Desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t max,
    void *value)
{
	int64_t n = 0;

	if (!refusal.at)
		ok(nn.cudnnBackendGetAttribute(d, name, type, max, &n, value), "get");
	return n;
}

/* ---- operations ---- */

enum { BF16 = CUDNN_DATA_BFLOAT16, F32 = CUDNN_DATA_FLOAT, I32 = CUDNN_DATA_INT32,
       BOOL = CUDNN_DATA_BOOLEAN };

typedef struct { int64_t n[4]; } Four;

static Desc op[64];
static int nop;

static Desc
tensor(int type, Four dim, Four stride, bool is_virtual, bool by_value, Desc ragged)
{
	static int64_t uid;
	int64_t align = 16;
	Desc d = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);

	uid++;
	set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
	set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
	set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
	set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim.n);
	set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride.n);
	set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
	set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
	set_desc(d, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, ragged);
	return finish(d, "tensor");
}

static Desc
packed(int type, Four dim, bool is_virtual)
{
	const int64_t *n = dim.n;

	return tensor(type, dim, (Four){ { n[1] * n[2] * n[3], n[2] * n[3], n[3], 1 } }, is_virtual,
	              false, NULL);
}

static Desc
constant(int type)
{
	Four one = { { 1, 1, 1, 1 } };

	return tensor(type, one, one, false, true, NULL);
}

static void
pointwise_at(int64_t axis, cudnnPointwiseMode_t mode, int math, Desc x, Desc b, Desc t, Desc y)
{
	Desc p = make(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), o;

	set(p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
	set(p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math);
	if (axis >= 0)
		set(p, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
	finish(p, "pointwise");
	o = make(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
	set_desc(o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
	set_desc(o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
	set_desc(o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
	set_desc(o, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
	set_desc(o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
	op[nop++] = finish(o, "pointwise operation");
}

static Desc
pointwise(cudnnPointwiseMode_t mode, int math, Desc x, Desc b, Desc y)
{
	pointwise_at(-1, mode, math, x, b, NULL, y);
	return y;
}

static void
reduce(cudnnReduceTensorOp_t how, Desc x, Desc y)
{
	Desc r = make(CUDNN_BACKEND_REDUCTION_DESCRIPTOR), o;
	int math = F32;

	set(r, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
	set(r, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
	finish(r, "reduction");
	o = make(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
	set_desc(o, CUDNN_ATTR_OPERATION_REDUCTION_DESC, r);
	set_desc(o, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
	set_desc(o, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
	op[nop++] = finish(o, "reduction operation");
}

/* m, n, k: lengths of sequences in place of the dimension, or NULL */
static void
matmul(Desc a, Desc b, Desc c, Desc m, Desc n, Desc k)
{
	Desc d = make(CUDNN_BACKEND_MATMUL_DESCRIPTOR), o;
	int math = F32;

	set(d, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
	finish(d, "matmul");
	o = make(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_DESC, d);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, m);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, n);
	set_desc(o, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, k);
	op[nop++] = finish(o, "matmul operation");
}

/* ---- attention ---- */

typedef struct {
	int type;
	int64_t batch, heads, kv_heads, seq, dim, window;
	int64_t k_dim;          /* of K, where it is another, which is wrong */
	bool causal, ragged, backward, deterministic;
	bool no_softmax;        /* sin in place of exp: nobody's attention */
} Attn;

/* [b, heads, s, d] of tokens in a row, or its transpose */
static Desc
rows(const Attn *a, int64_t heads, int64_t dim, bool transposed, Desc ragged)
{
	int64_t row = heads * dim, all = a->seq * row;

	if (transposed)
		return tensor(a->type, (Four){ { a->batch, heads, dim, a->seq } },
		              (Four){ { all, dim, 1, row } }, false, false, ragged);
	return tensor(a->type, (Four){ { a->batch, heads, a->seq, dim } },
	              (Four){ { all, dim, row, 1 } }, false, false, ragged);
}

/* a value between two operations: a score for each pair, or one for each row */
static Desc
score(const Attn *a, int type)
{
	return packed(type, (Four){ { a->batch, a->heads, a->seq, a->seq } }, true);
}

static Desc
of_row(const Attn *a)
{
	return packed(F32, (Four){ { a->batch, a->heads, a->seq, 1 } }, true);
}

static Desc
position(const Attn *a, Desc s, int64_t axis)
{
	Desc y = score(a, I32);

	pointwise_at(axis, CUDNN_POINTWISE_GEN_INDEX, I32, s, NULL, NULL, y);
	return y;
}

static Desc
keep(const Attn *a, Desc s, Desc mask)
{
	Desc y = score(a, F32);

	pointwise_at(-1, CUDNN_POINTWISE_BINARY_SELECT, F32, s, constant(F32), mask, y);
	return y;
}

static Desc
mask_padding(const Attn *a, Desc s, Desc length)
{
	Desc row = position(a, s, 2), col = position(a, s, 3);
	Desc r = pointwise(CUDNN_POINTWISE_CMP_LT, BOOL, row, length, score(a, BOOL));
	Desc c = pointwise(CUDNN_POINTWISE_CMP_LT, BOOL, col, length, score(a, BOOL));

	return keep(a, s, pointwise(CUDNN_POINTWISE_LOGICAL_AND, BOOL, r, c, score(a, BOOL)));
}

static Desc
mask_causal(const Attn *a, Desc s)
{
	Desc row = position(a, s, 2), col = position(a, s, 3);

	return keep(a, s, pointwise(CUDNN_POINTWISE_CMP_GE, BOOL, row, col, score(a, BOOL)));
}

static Desc
mask_window(const Attn *a, Desc s)
{
	Desc row = position(a, s, 2), col = position(a, s, 3);
	Desc end = pointwise(CUDNN_POINTWISE_ADD, I32, col, constant(I32), score(a, I32));

	return keep(a, s, pointwise(CUDNN_POINTWISE_CMP_GT, BOOL, end, row, score(a, BOOL)));
}

/* statistics for the backward pass, and probabilities */
static Desc
softmax(const Attn *a, Desc s)
{
	Desc most = of_row(a), sum = of_row(a), e, p = score(a, a->type);
	Desc stats = packed(F32, (Four){ { a->batch, a->heads, a->seq, 1 } }, false);

	reduce(CUDNN_REDUCE_TENSOR_MAX, s, most);
	e = pointwise(CUDNN_POINTWISE_SUB, F32, s, most, score(a, F32));
	e = pointwise(a->no_softmax ? CUDNN_POINTWISE_SIN : CUDNN_POINTWISE_EXP, F32, e, NULL,
	              score(a, F32));
	reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
	pointwise(CUDNN_POINTWISE_ADD, F32, most,
	          pointwise(CUDNN_POINTWISE_LOG, F32, sum, NULL, of_row(a)), stats);
	return pointwise(CUDNN_POINTWISE_DIV, F32, e, sum, p);
}

/* what both passes begin with; NULL where nothing is ragged */
typedef struct { Desc length, at_q, at_kv, q, k, scale, s; } Scores;

static Scores
operands(const Attn *a)
{
	Four lengths = { { a->batch, 1, 1, 1 } }, offsets = { { a->batch + 1, 1, 1, 1 } };
	Scores x = { 0 };

	if (a->ragged) {
		x.length = packed(I32, lengths, false);
		x.at_q = packed(I32, offsets, false);
		x.at_kv = packed(I32, offsets, false);
	}
	x.q = rows(a, a->heads, a->dim, false, x.at_q);
	x.k = rows(a, a->kv_heads, a->k_dim ? a->k_dim : a->dim, true, x.at_kv);
	x.scale = constant(F32);
	x.s = score(a, F32);
	return x;
}

static void
add_scores(const Attn *a, Scores *x)
{
	matmul(x->q, x->k, x->s, x->length, x->length, NULL);
	x->s = pointwise(CUDNN_POINTWISE_MUL, F32, x->s, x->scale, score(a, F32));
	if (a->ragged)
		x->s = mask_padding(a, x->s, x->length);
	if (a->causal)
		x->s = mask_causal(a, x->s);
	if (a->window)
		x->s = mask_window(a, x->s);
}

static Desc
graph_of_operations(void)
{
	Desc g = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);

	set(g, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, nop, op);
	return finish(g, "graph");
}

static Desc
forward(const Attn *a)
{
	Scores x = operands(a);
	Desc v = rows(a, a->kv_heads, a->dim, false, x.at_kv);

	add_scores(a, &x);
	matmul(softmax(a, x.s), v, rows(a, a->heads, a->dim, false, x.at_q), x.length, NULL,
	       x.length);
	return graph_of_operations();
}

static Desc
reshape(Desc x, Desc y)
{
	Desc o = make(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);

	set_desc(o, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
	set_desc(o, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
	op[nop++] = finish(o, "reshape operation");
	return y;
}

/* a matrix of scores on its side */
static Desc
turned(const Attn *a, Desc x)
{
	int64_t s = a->seq;
	Four dim = { { a->batch, a->heads, s, s } }, stride = { { a->heads * s * s, s * s, 1, s } };

	return reshape(x, tensor(a->type, dim, stride, true, false, NULL));
}

/* for each row the sum of y dy, which is what softmax subtracts */
static Desc
row_sums(const Attn *a, Desc y, Desc dy)
{
	Four dim = { { a->batch, a->heads, a->seq, a->dim } };
	Desc prod = packed(F32, dim, true), sum = of_row(a);

	dim.n[3] = 1;
	pointwise(CUDNN_POINTWISE_MUL, F32, dy, y, prod);
	reduce(CUDNN_REDUCE_TENSOR_ADD, prod, sum);
	return pointwise(CUDNN_POINTWISE_MUL, F32, sum, constant(F32), packed(F32, dim, false));
}

/* The gradient of q is a sum over blocks of k: added up in f32 in any order, or
 * written once. */
static void
gradient_of_q(const Attn *a, const Scores *x, Desc ds)
{
	int64_t row = a->kv_heads * a->dim, all = a->seq * row;
	Desc k = reshape(x->k, tensor(a->type, (Four){ { a->batch, a->kv_heads, a->seq, a->dim } },
	                              (Four){ { all, a->dim, row, 1 } }, true, false, x->at_kv));
	Desc dq = rows(a, a->heads, a->dim, false, x->at_q), sum;
	Attn f32 = *a;

	if (a->deterministic) {
		matmul(ds, k, dq, x->length, NULL, x->length);
		return;
	}
	f32.type = F32;
	sum = rows(&f32, a->heads, a->dim, false, x->at_q);
	matmul(ds, k, sum, x->length, NULL, x->length);
	pointwise(CUDNN_POINTWISE_IDENTITY, F32, sum, NULL, dq);
}

/* left^T right, for k or v: heads that share one are added up */
static void
gradient_of_kv(const Attn *a, const Scores *x, Desc left, Desc right)
{
	Desc y = rows(a, a->kv_heads, a->dim, false, x->at_kv), each = y;

	if (a->heads != a->kv_heads)
		each = packed(a->type, (Four){ { a->batch, a->heads, a->seq, a->dim } }, true);
	matmul(turned(a, left), right, each, x->length, NULL, x->length);
	if (each != y)
		reduce(CUDNN_REDUCE_TENSOR_ADD, each, y);
}

static Desc
backward(const Attn *a)
{
	Desc stats = packed(F32, (Four){ { a->batch, a->heads, a->seq, 1 } }, false);
	Scores x = operands(a);
	Desc y = rows(a, a->heads, a->dim, false, x.at_q), dy = rows(a, a->heads, a->dim, false, x.at_q);
	Desc v = rows(a, a->kv_heads, a->dim, true, x.at_kv), sum = row_sums(a, y, dy);
	Desc p, dp = score(a, F32), ds;

	add_scores(a, &x);
	p = pointwise(CUDNN_POINTWISE_SUB, F32, x.s, stats, score(a, F32));
	p = pointwise(CUDNN_POINTWISE_EXP, F32, p, NULL, score(a, F32));
	gradient_of_kv(a, &x, p, dy);
	matmul(dy, v, dp, x.length, x.length, NULL);
	ds = pointwise(CUDNN_POINTWISE_SUB, F32, dp, sum, score(a, F32));
	ds = pointwise(CUDNN_POINTWISE_MUL, F32, ds, p, score(a, F32));
	ds = pointwise(CUDNN_POINTWISE_MUL, F32, ds, x.scale, score(a, a->type));
	gradient_of_kv(a, &x, ds, x.q);
	gradient_of_q(a, &x, ds);
	return graph_of_operations();
}

static Desc
attention(const Attn *a)
{
	return a->backward ? backward(a) : forward(a);
}

/* ---- verdicts ---- */

static const char h200[] =
	"{\"cudaDeviceId\": 0, \"deviceName\": \"NVIDIA H200\", \"deviceVer\": 900, "
	"\"driverVer\": 13000, \"isTccDriver\": 0, \"multiProcessorCount\": 132, \"warpSize\": 32, "
	"\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], "
	"\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": 2048, \"maxCtasPerSM\": 32, "
	"\"regsPerBlock\": 65536, \"maxRegistersPerSM\": 65536, \"maxSharedMemoryPerBlock\": 49152, "
	"\"maxSharedMemoryPerBlockOptin\": 232448, \"reservedSharedMemoryPerBlock\": 1024, "
	"\"l2CacheSize\": 62914560, \"totalGlobalMem\": 150754820096, \"smClockRateKHz\": 1980000, "
	"\"memClockRateKHz\": 3201000, \"supportCoopLaunch\": 1, \"pciDeviceId\": 0}";

static Desc
device(const char *json)
{
	Desc d = make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);

	set(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(json) + 1,
	    json);
	return finish(d, "device");
}

enum { MaxEngines = 16 };

typedef struct {
	int n;
	Desc config[MaxEngines];
	int64_t workspace[MaxEngines];
	int shared[MaxEngines];
	bool compiled[MaxEngines], capturable[MaxEngines];
} Engines;

static void
look_at(Engines *e, int i)
{
	cudnnBackendBehaviorNote_t note[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
	Desc engine = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
	int64_t n;

	get(e->config[i], CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
	get(e->config[i], CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
	    &e->workspace[i]);
	get(e->config[i], CUDNN_ATTR_ENGINECFG_SHARED_MEMORY_USED, CUDNN_TYPE_INT32, 1,
	    &e->shared[i]);
	n = get(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
	        CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, note);
	for (int64_t j = 0; j < n; j++) {
		e->compiled[i] |= note[j] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
		e->capturable[i] |= note[j] == CUDNN_BEHAVIOR_NOTE_SUPPORTS_CUDA_GRAPH_NATIVE_API;
	}
}

/* No engine, or something refused: the graph is not for this device. */
static Engines
engines_for(Desc graph, Desc dev)
{
	cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
	Desc h = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
	Engines e = { 0 };

	set_desc(h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
	set(h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
	set_desc(h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, dev);
	finish(h, "heuristics");
	for (int i = 0; i < MaxEngines; i++)
		e.config[i] = make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
	e.n = (int)get(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MaxEngines,
	               e.config);
	for (int i = 0; i < e.n; i++)
		look_at(&e, i);
	return e;
}

static void
not_refused(void)
{
	if (refusal.at)
		wrong("%s refused: %s (%s)", refusal.at, nn.cudnnGetErrorString(refusal.status),
		      refusal.message);
}

/* The plan is compiled; the stub of the driver does not load what came out. */
static void
compiles(Desc config, Desc dev)
{
	Desc p = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);

	set_desc(p, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
	set_desc(p, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, dev);
	not_refused();
	finish(p, "plan");
	if (!refusal.at)
		wrong("a plan was loaded by the stub of the driver");
	if (!strstr(refusal.message, "cuLibraryLoadData") || !strstr(refusal.message, "(34)"))
		wrong("the plan does not get as far as its loading: %s (%s)",
		      nn.cudnnGetErrorString(refusal.status), refusal.message);
}

/* ---- cases ---- */

enum { ForHopper = 1, ForAll = 2 };     /* engines that are offered, in this order */

typedef struct Case Case;
struct Case {
	const char *name;
	void (*fn)(const Case *);
	bool stub;              /* of the driver, in sight */
	int engines;
	int64_t workspace;      /* of the first, but for some KB that do not grow with seq */
	const char *refused;    /* at which descriptor; NULL: taken, but no engine is offered */
	Attn attn;
};

static void
opens_without_a_driver(const Case *c)
{
	(void)c;
	if (nn.cudnnGetVersion() < 90000)
		wrong("version %zu", nn.cudnnGetVersion());
	if (nn.cudnnGetVersion() / 10000 != CUDNN_MAJOR)
		wrong("version %zu, of the header %d", nn.cudnnGetVersion(), CUDNN_VERSION);
}

static void
no_gpu_no_handle(const Case *c)
{
	cudnnHandle_t h = NULL;

	(void)c;
	if (nn.cudnnCreate(&h) == CUDNN_STATUS_SUCCESS)
		wrong("there is a handle");
}

static void
descriptors_without_a_driver(const Case *c)
{
	static const cudnnBackendDescriptorType_t type[] = {
		CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
		CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_BACKEND_REDUCTION_DESCRIPTOR,
		CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_BACKEND_MATMUL_DESCRIPTOR,
		CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
		CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR,
		CUDNN_BACKEND_ENGINE_DESCRIPTOR, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
		CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
		CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR
	};
	Four dim = { { 2, 3, 5, 7 } };
	int64_t back[4] = { 0 };
	Desc d = packed(BF16, dim, false);

	(void)c;
	for (size_t i = 0; i < sizeof type / sizeof *type; i++)
		nn.cudnnBackendDestroyDescriptor(make(type[i]));
	get(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, back);
	not_refused();
	if (memcmp(back, dim.n, sizeof back) != 0)
		wrong("other dimensions come back");
	finish(make(CUDNN_BACKEND_TENSOR_DESCRIPTOR), "tensor");
	if (!refusal.at)
		wrong("a tensor of nothing is taken");
}

static void
device_of_json(const Case *c)
{
	char json[sizeof h200], *key;

	(void)c;
	device(h200);
	not_refused();
	strcpy(json, h200);
	key = strstr(json, "multiProcessorCount");
	*key = 'x';
	device(json);
	if (!refusal.at)
		wrong("a device without multiprocessors is taken");
}

/* of cuDNN 9.19; another may have more engines, or need less */
static bool
numbers_are_known(void)
{
	return nn.cudnnGetVersion() / 100 == 919;
}

/* The engine of Hopper, which is first, takes more shared memory than other
 * devices have: 232448 bytes forward, 216064 backward. */
static bool
is_for_hopper(const Engines *e)
{
	return e->n > 0 && e->shared[0] > 200 << 10;
}

static void
workspace_is(const Engines *e, const Case *c)
{
	enum { Own = 20 << 10 };        /* 256 bytes; 4 to 17 KB where ragged */

	if (e->workspace[0] < c->workspace || e->workspace[0] > c->workspace + Own)
		wrong("a workspace of %lld bytes, not %lld", (long long)e->workspace[0],
		      (long long)c->workspace);
	if (!c->attn.backward && e->n > 1 && e->workspace[1] != 0)
		wrong("the engine for all devices takes %lld bytes", (long long)e->workspace[1]);
}

static Engines
accepted(const Case *c, Desc dev)
{
	Engines e = engines_for(attention(&c->attn), dev);

	not_refused();
	if (e.n == 0)
		wrong("no engine");
	if (is_for_hopper(&e) != ((c->engines & ForHopper) != 0))
		wrong("the first engine takes %d bytes of shared memory", e.shared[0]);
	for (int i = 0; i < e.n; i++)
		if (!e.compiled[i] || !e.capturable[i])
			wrong("engine %d is not compiled at run time, or not for graphs", i);
	if (!numbers_are_known())
		return e;
	if (c->engines != ForAll && (e.n > 1) != (c->engines == (ForHopper | ForAll)))
		wrong("%d engines", e.n);
	workspace_is(&e, c);
	return e;
}

static void
is_accepted(const Case *c)
{
	accepted(c, device(h200));
}

static void
is_compiled(const Case *c)
{
	Desc dev = device(h200);

	compiles(accepted(c, dev).config[0], dev);
}

static void
is_refused(const Case *c)
{
	Desc dev = device(h200), graph = attention(&c->attn);
	Engines e = engines_for(graph, dev);

	if (!refusal.at && e.n > 0)
		wrong("%d engines", e.n);
	if (strcmp(refusal.at ? refusal.at : "", c->refused ? c->refused : "") != 0)
		wrong("refused by %s (%s)", refusal.at ? refusal.at : "the heuristics",
		      refusal.message);
}

/* The verdict is on the device that is described: before 9.0 one engine less,
 * before 8.0 none. */
static void
older_devices(const Case *c)
{
	char json[sizeof h200], *version;
	Desc graph = attention(&c->attn);
	Engines e;

	strcpy(json, h200);
	version = strstr(json, "900");
	memcpy(version, "800", 3);
	e = engines_for(graph, device(json));
	not_refused();
	if (e.n == 0 || is_for_hopper(&e))
		wrong("%d engines for sm_80", e.n);
	memcpy(version, "700", 3);
	e = engines_for(graph, device(json));
	if (!refusal.at && e.n > 0)
		wrong("%d engines for sm_70", e.n);
}

#define OF(type_, kv_heads_, dim_, ...) \
	{ .type = type_, .batch = 8, .heads = 6, .kv_heads = kv_heads_, .seq = 2048, \
	  .dim = dim_, __VA_ARGS__ }
#define USUAL(...) OF(BF16, 6, 128, __VA_ARGS__)
#define SHARED(...) OF(BF16, 2, 128, __VA_ARGS__)
#define BOTH ForHopper | ForAll
#define ACCEPTED(name, engines, workspace, ...) \
	{ name, is_accepted, true, engines, workspace, NULL, __VA_ARGS__ }
#define COMPILED(name, engines, workspace, ...) \
	{ name, is_compiled, true, engines, workspace, NULL, __VA_ARGS__ }
#define REFUSED(name, at, ...) { name, is_refused, true, 0, 0, at, __VA_ARGS__ }
#define PLAIN(name, fn, stub) { name, fn, stub, 0, 0, NULL, { 0 } }

enum { Scores16 = 8 * 6 * 2048 * 2048 * 2, KV16 = 2 * 8 * 6 * 2048 * 128 * 2 };

static const Case cases[] = {
	PLAIN("opens-without-a-driver", opens_without_a_driver, false),
	PLAIN("descriptors-without-a-driver", descriptors_without_a_driver, false),
	PLAIN("no-gpu-no-handle", no_gpu_no_handle, false),
	PLAIN("device-of-json", device_of_json, true),
	COMPILED("forward", BOTH, 0, USUAL(.causal = true)),
	ACCEPTED("forward-not-causal", BOTH, 0, USUAL(.causal = false)),
	ACCEPTED("forward-window", BOTH, 0, USUAL(.causal = true, .window = 512)),
	ACCEPTED("forward-shared-heads", BOTH, 0, SHARED(.causal = true)),
	ACCEPTED("forward-ragged", BOTH, 0, USUAL(.causal = true, .ragged = true)),
	COMPILED("forward-ragged-window-shared-heads", BOTH, 0,
	         SHARED(.causal = true, .ragged = true, .window = 512)),
	COMPILED("backward", BOTH, 0, USUAL(.causal = true, .backward = true)),
	ACCEPTED("backward-window", BOTH, 0, USUAL(.causal = true, .window = 512, .backward = true)),
	ACCEPTED("backward-ragged-window", ForHopper, 0,
	         USUAL(.causal = true, .window = 512, .ragged = true, .backward = true)),
	/* gradients of k and v for each head, before they are added up */
	ACCEPTED("backward-ragged-shared-heads", ForHopper, KV16,
	         SHARED(.causal = true, .ragged = true, .backward = true)),
	/* scores of all pairs, though rows be few */
	ACCEPTED("backward-deterministic", BOTH, Scores16,
	         USUAL(.causal = true, .backward = true, .deterministic = true)),
	COMPILED("backward-deterministic-ragged", ForHopper, Scores16,
	         USUAL(.causal = true, .ragged = true, .backward = true, .deterministic = true)),
	ACCEPTED("f32-not-by-hopper", ForAll, 0, OF(F32, 6, 128, .causal = true)),
	{ "older-devices", older_devices, true, 0, 0, NULL, USUAL(.causal = true) },
	REFUSED("not-a-softmax", NULL, USUAL(.causal = true, .no_softmax = true)),
	REFUSED("channels-not-in-eights", NULL, OF(BF16, 6, 100, .causal = true)),
	REFUSED("other-channels-of-k", "matmul operation", USUAL(.causal = true, .k_dim = 64)),
	REFUSED("heads-not-a-multiple", "matmul operation", OF(BF16, 5, 128, .causal = true)),
};

/* ---- a process for each ---- */

static char stub_dir[] = "/tmp/hcgen-cudnn-test-XXXXXX";

static void
run_case(const Case *c)
{
	char out[4000], path[1000];
	size_t n = 0;
	ssize_t got;
	int p[2], status;
	pid_t pid;

	fflush(NULL);
	if (pipe(p) != 0 || (pid = fork()) < 0)
		abort();
	if (pid == 0) {
		dup2(p[1], 1);
		close(p[0]);
		close(p[1]);
		/* NVRTC, by which plans are compiled, is found there too */
		snprintf(path, sizeof path, "%s:%s", stub_dir, lib_dir());
		if (c->stub)
			setenv("LD_LIBRARY_PATH", path, 1);
		alarm(60);
		execl("/proc/self/exe", "cudnn_real_test", c->name, (char *)NULL);
		_exit(127);
	}
	close(p[1]);
	while ((got = read(p[0], out + n, sizeof out - 1 - n)) > 0)
		n += (size_t)got;
	out[n] = 0;
	close(p[0]);
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		passed++;
		printf("ok %s\n", c->name);
	} else {
		failed++;
		printf("FAIL %s %s%s\n", c->name, WIFEXITED(status) ? "" : "died of a signal ", out);
	}
}

static void
skip_case(const char *name, const char *why)
{
	skipped++;
	printf("skip %s %s\n", name, why);
}

static void
run_cases(void)
{
	const char *only = getenv("ONLY");      /* cases whose name has it */
	char lib[500], stub[500], link[100];

	snprintf(lib, sizeof lib, "%s/libcudnn.so.9", lib_dir());
	snprintf(stub, sizeof stub, "%s/stubs/libcuda.so", lib_dir());
	if (!mkdtemp(stub_dir))
		abort();
	snprintf(link, sizeof link, "%s/libcuda.so.1", stub_dir);
	if (symlink(stub, link) != 0)
		abort();
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		if (only && !strstr(cases[i].name, only))
			continue;
		if (access(lib, R_OK) != 0)
			skip_case(cases[i].name, "no cuDNN 9");
		else if (cases[i].stub && access(stub, R_OK) != 0)
			skip_case(cases[i].name, "no stub of the driver");
		else if (cases[i].fn == no_gpu_no_handle && access("/dev/nvidia0", F_OK) == 0)
			skip_case(cases[i].name, "there is a GPU");
		else
			run_case(&cases[i]);
	}
	unlink(link);
	rmdir(stub_dir);
}

int
main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof cases / sizeof *cases; i++)
		if (strcmp(argv[1], cases[i].name) == 0) {
			open_cudnn();
			cases[i].fn(&cases[i]);
			return 0;
		}
	run_cases();
	printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
	return failed > 0;
}
#else
int
main(void)
{
	printf("skip cudnn no cudnn.h in /usr/local/cuda/include\n");
	return 0;
}
#endif
