"""The steps of run.sh: what each runs, and what it reads off.

A step is a function of a Step (run.py), which runs commands inside the step's seconds and takes numbers, tables and
reasons to fail.  What is uncertain and worth most comes first; the seconds are limits, and their sum is below nine
minutes."""
import json
import pathlib
import re
import shutil
import sys

import files
import intrinsics
import parse

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REFERENCE, SMALL, LONG = ROOT / "specs/reference.yaml", ROOT / "tests/e2e/small.yaml", HERE / "long.yaml"
TWO, SINGLE = ROOT / "specs/two-lane.yaml", ROOT / "specs/single.yaml"
GOLDEN = ROOT / "tests/golden"
CUDA = ["--device", "cuda"]
QUICK_ROWS = ["mma_floats", "ldmatrix_x4_trans", "cp_async", "exp2_approx", "dynamic_smem"]
SMI = ["name", "driver_version", "clocks.sm", "clocks.mem", "power.limit", "memory.total"]


def sets(*settings):
    return [w for s in settings for w in ("--set", s)]


BF16 = sets("numerics.storage=bf16", "numerics.gemm=bf16")
# one layer and lane of small.yaml: what a stand-in, whose GPU is this CPU, does in a second
QUICK = sets("model.layers=1", "hc.lanes=1", "hc.pre.init=1", "hc.res.init=1")
WINDOWS = "model.attention.window=[128, 384, 128, 384]"


# ---- the machine ----------------------------------------------------------

def pip_libraries():
    """Where Python packages keep NVRTC and cuBLASLt, and some machines the driver."""
    found = [p.parent for d in sys.path for s in ("libnvrtc.so.1*", "libcublasLt.so.1*")
             for p in pathlib.Path(d).glob(f"nvidia/*/lib/{s}")]
    found += [d for d in (pathlib.Path("/usr/local/nvidia/lib64"), pathlib.Path("/usr/local/cuda/lib64")) if d.is_dir()]
    return ":".join(dict.fromkeys(map(str, found)))


def doctor(step):
    run = step.run
    found = parse.doctor(step.hcgen("doctor", "--json", ok=(0, 2)).out)
    if found.get("cuda") and not run.env.get("HCGEN_CUDA_PATH") and pip_libraries():
        run.env["HCGEN_CUDA_PATH"] = pip_libraries()
        again = parse.doctor(step.hcgen("doctor", "--json", ok=(0, 2)).out)
        if again.get("cuda"):
            del run.env["HCGEN_CUDA_PATH"]
        else:
            found = again
            step.note("NVIDIA's libraries were found beside Python's packages: HCGEN_CUDA_PATH was set to them.")
    run.machine(found)
    step.hcgen("doctor", ok=(0, 2))
    smi = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/local/nvidia/bin")
    if smi:
        words = parse.smi(step.call([smi, "--query-gpu=" + ",".join(SMI), "--format=csv,noheader"], ok=None).out)
        run.report["nvidia_smi"] = dict(zip(SMI, words))
    if run.report["no_gpu"]:
        step.fail(run.report["no_gpu"])


# ---- numbers --------------------------------------------------------------

def intrinsics_step(step):
    names = QUICK_ROWS if step.run.quick else []
    words = [sys.executable, HERE / "intrinsics.py", step.run.dir / "intrinsics", *names]
    out = step.call(words, ok=None, late=True).out
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    table = []
    for r in rows:
        n = r.get("numbers") or [["words that differ", None, ""]]
        error = "; ".join(f"{v:.3g} {unit}" if what == "largest error" else f"{v:.3g} {unit} {what[14:]}"
                          for what, v, unit in n[1:])
        table.append([r["name"], r["why"] or "as expected", n[0][1], error])
        for what, v, unit in n:
            step.number(f"{r['name']}: {what}", v, unit, hide=True)
        if r["why"]:
            step.fail(f"{r['name']}: {r['why']}")
    step.table("Against the definitions, computed in double and rounded once; words that differ may be within the "
               "tolerance of tests/gpu/intrinsics.h", [("intrinsic", ""), ("", ""), ("words that differ", ""),
                                                       ("largest error", "")], table)
    missing = len(names or intrinsics.table()) - len(rows)
    if missing:
        step.fail(f"{missing} of the intrinsics gave no answer")


def verify(step, spec, *words):
    v = parse.verify(step.hcgen("verify", spec, *CUDA, *words, ok=None).out)
    for kind in "f32", "bf16":
        if kind in v:
            step.number(f"worst error of a step's {kind} results", v[kind], f"of the value; at most {v[kind + '_limit']:.3g}")
    for key, what in (("gradient_of_steps", "in double, step by step"), ("gradient_of_graph", "in double, as a whole")):
        if key in v:
            step.number(f"worst gradient against the same {what}", v[key], f"of its norm ({v[key + '_at']})")
    if "loss" in v:
        step.number("loss", v["loss"], f"nats; in double {v['loss_in_double']:.9g}")
    for line in v["fails"][:20]:
        step.note(f"`{line}`")
    if not v["verified"]:
        step.fail(f"{len(v['fails'])} lines say FAIL" if v["fails"] else step.last_words())


def verify_reference(step):
    verify(step, *([SMALL, *QUICK, "--rows", "16"] if step.run.quick else [REFERENCE]))


def verify_bf16(step):
    verify(step, *([SMALL, *QUICK, "--rows", "16"] if step.run.quick else [REFERENCE]), *BF16)


def verify_two_lane(step):
    verify(step, TWO, *sets("model.layers=2", "model.attention.window=[128, 384]", "hc.sources.e.rows=999"))


def verify_single(step):
    verify(step, SINGLE, *sets("model.layers=4", WINDOWS, "model.vocab=512", "data.bos=7", "hc.sources.e.rows=999"))


def random_specs(step):
    """Specs of tests/randspec.py, every other one in bf16, for as long as there is time."""
    sys.path.insert(0, str(ROOT / "tests"))
    import randspec

    done, worst = 0, {"f32": 0., "bf16": 0.}
    try:
        for seed in range(RANDOM_SPECS):
            if step.left() < 15 or len(step.record["notes"]) > 20:
                break
            path = step.run.tmp / f"random_{seed}.yaml"
            path.write_text(randspec.text(seed))
            words = ["verify", path, *CUDA, *(BF16 if seed % 2 else [])]
            v = parse.verify(step.hcgen(*words, ok=None, limit=15 * step.run.scale, late=True).out)
            done += 1
            for kind in worst:
                worst[kind] = max(worst[kind], v.get(kind, 0.))
            if not v["verified"]:
                step.fail(f"seed {seed}")
                step.note(f"seed {seed}{', bf16' if seed % 2 else ''}: `{v['fails'][0] if v['fails'] else step.last_words()}`")
    finally:
        step.number("specs", done, "")
        for kind, x in worst.items():
            step.number(f"worst error of a step's {kind} results", x, "of the value")
    if not done:
        step.skip("no time was left")


def long_sequences(step):
    """Gradients of one step on sequences of several tiles, against the interpreter in double.  The limits are some times
    what the CPU's kernels are off: 1.6e-6 and 1.1e-2."""
    tmp, quick = step.run.tmp / "long", step.run.quick
    spec, kinds = [LONG], [("f32", sets("numerics.storage=f32", "numerics.gemm=f32"), 1e-5), ("bf16", BF16, .03)]
    if quick:
        kinds.pop()
        spec = [SMALL, *QUICK, *sets("train.steps=0", "train.warmup=0", "train.seq_len=80", "train.tokens_per_step=80")]
    tmp.mkdir()
    step.hcgen("train", *spec, *CUDA, "-o", tmp / "out", "--quiet")
    params = files.read_tensors(tmp / "out/run/final.safetensors")
    files.add_noise(params, 1 / 16, 1)
    files.write_tensors(tmp / "params", params)
    files.write_shard(tmp / "tokens", files.random_tokens(4000, 257 if quick else 515, 7, 300, 2))
    verify = ["verify", *spec, *CUDA, "--params", tmp / "params", "--tokens", tmp / "tokens"]
    step.hcgen(*verify, *kinds[0][1], "--reference", "--dump", tmp / "double")
    reference = files.read_tensors(tmp / "double")
    for kind, words, limit in kinds:
        step.hcgen(*verify, *words, "--dump", tmp / kind)
        off = files.relative_errors(files.read_tensors(tmp / kind), reference)
        name = max(off, key=off.get)
        step.number(f"worst tensor, {kind} storage and products", off[name], f"of its norm ({name}); at most {limit:g}")
        step.number(f"loss, {kind} storage and products", off["loss"], "of the loss")
        if not off[name] <= limit:
            step.fail(f"{kind}: {name} is off by {off[name]:.3g} of its norm")


def same_bits(step, a, b, what):
    x, y = (parse.metrics(open(d / "run/metrics.jsonl")) for d in (a, b))
    x.pop("ms"), y.pop("ms")
    same = x == y and (a / "run/final.safetensors").read_bytes() == (b / "run/final.safetensors").read_bytes()
    step.number(what, "the same bits" if same else "other bits", "losses, norms, parameters")
    if not same:
        step.fail(f"{what}: other bits")


def difference(step, what, got, want):
    off = [abs(a - b) / abs(b) for a, b in zip(got, want)]
    step.number(f"losses against {what}, largest difference", max(off), f"of the loss, {len(off)} losses")
    return max(off)


def curve(step):
    """A small training run: twice, and beside the CPU."""
    quick, tmp = step.run.quick, step.run.tmp / "curve"
    data = sets(*(f"data.{k}={json.dumps([str(GOLDEN / f'data/{k}.bin')])}" for k in ("train", "val")), "train.val_tokens=192")
    spec = [SMALL, *QUICK, *sets("train.steps=3", "train.tokens_per_step=64", "train.val_tokens=64", "train.warmup=0",
                                 "data.bos=3")] if quick else [REFERENCE]
    tmp.mkdir()

    def train(name, device, *words):
        step.hcgen("train", *spec, *data, *words, "--device", device, "-o", tmp / name, "--quiet")
        m = parse.metrics(open(tmp / name / "run/metrics.jsonl"))
        return m["loss"] + m["val"]

    cpu = step.run.report["cpu_trains"]
    got = train("cuda", "cuda")
    step.number("losses", [float(f"{x:.7g}") for x in got], "nats", hide=True)
    train("again", "cuda")
    same_bits(step, tmp / "cuda", tmp / "again", "f32, two runs")
    compared = []
    if not quick:
        compared.append(("the golden curve of the CPU", [float(x) for x in open(GOLDEN / "reference/curve.txt")]))
    if cpu:
        compared.append(("--device cpu", train("cpu", "cpu")))
    for what, want in compared:
        if difference(step, what, got, want) > 1e-4:
            step.fail(f"losses are not those of {what}")
    if quick:
        return
    half = train("cuda16", "cuda", *BF16)
    train("again16", "cuda", *BF16)
    same_bits(step, tmp / "cuda16", tmp / "again16", "bf16, two runs")
    if cpu:
        difference(step, "--device cpu, bf16", half, train("cpu16", "cpu", *BF16))
    difference(step, "f32 on the GPU, bf16", half, got)


# ---- time -----------------------------------------------------------------

def start(step):
    """From the command to the end of the first step, with an empty cache and with a full one."""
    quick, tmp = step.run.quick, step.run.tmp / "start"
    steps, micro, vocab, bos = (2, 1, 257, 256) if quick else (6, 8, 50257, 50256)
    spec = [SMALL, *QUICK, *sets("train.tokens_per_step=64", "train.warmup=0")] if quick else [TWO]
    tmp.mkdir()
    tokens = 2000 if quick else 3_000_000
    files.write_shard(tmp / "train.bin", files.random_tokens(tokens, vocab, bos, 700, 1))
    files.write_shard(tmp / "val.bin", files.random_tokens(tokens // 10, vocab, bos, 700, 2))
    words = ["train", *spec, *CUDA, "--json", *sets(
        f"train.steps={steps + 1}", "train.lr=1e-4", f"train.micro_batches={micro}", "train.val_tokens=64",
        *(f"data.{k}={json.dumps([str(tmp / k) + '.bin'])}" for k in ("train", "val")))]
    seen = []
    for name in "empty", "full":
        # ended before it validates and writes 1.4 GB of parameters
        c = step.hcgen(*words, "-o", tmp / name, env={"HCGEN_CACHE": str(step.run.cache_of("start"))}, ok=None, late=True,
                       until=lambda line: f'"step":{steps},' in line)
        m = parse.metrics(c.out.splitlines())
        if len(m["loss"]) < steps:
            step.fail(f"{name} cache: {len(m['loss'])} steps of {steps}: {step.last_words()}")
            continue
        first = next(t for t, line in c.lines if '"step":1,' in line)
        step.number(f"{name} cache: command to the end of the first step", first, "s")
        step.number(f"{name} cache: command to the beginning of the first step", first - m["ms"][0] / 1e3, "s")
        step.number(f"{name} cache: steps", m["ms"], "ms", hide=True)
        if not quick:
            ms = sorted(m["ms"][1:])[(steps - 1) // 2]
            step.number(f"{name} cache: a step of 393,216 tokens in 8 micro-batches, median of {steps - 1}", ms, "ms")
            step.number(f"{name} cache: training", 393216 / ms * 1e3, "tokens/s")
        seen.append((m["loss"][:steps], m["norm"][:steps]))
    if len(seen) == 2:
        step.number("the two runs", "the same" if seen[0] == seen[1] else "other", "losses and norms, to the last digit")
        if seen[0] != seen[1]:
            step.fail("the two runs differ")


def bench(step, name, spec):
    quick = step.run.quick
    words = [SMALL, *QUICK, *sets("train.tokens_per_step=64"), "-n", "1"] if quick else [
        spec, *sets("train.tokens_per_step=49152", "train.micro_batches=1"), "-n", "10"]
    out = step.hcgen("bench", *words, *CUDA, "-o", step.run.tmp / name,
                     env={"HCGEN_CACHE": str(step.run.cache_of("start"))}).out
    b = parse.bench(out)
    for key, what, unit in (("copy_gbs", "a copy reads and writes", "GB/s"), ("forward_ms", "forward", "ms"),
                            ("backward_ms", "backward", "ms"), ("update_ms", "update", "ms"),
                            ("step_ms", "a step, by the wall clock", "ms"), ("tokens", "tokens of a step", ""),
                            ("tokens_per_second", "training", "tokens/s")):
        if key in b:
            step.number(what, b[key], unit)
    if not b["rows"] or "step_ms" not in b:
        step.fail("the table could not be read")
        return
    classes(step, b)
    units = {"us": "µs", "copy%": "% of the copy"}
    step.table("By kernel and product", [("kernel or product", "")] + [(units.get(c, c), "") for c in b["columns"]], b["rows"])


def classes(step, b):
    """Time by kind; for products the speed, for kernels the share of the copy's, each weighted by time."""
    at = {c: i + 1 for i, c in enumerate(b["columns"])}
    if not {"ms/step", "GB/s", "TFLOP/s"} <= set(at):
        return
    rows = []
    for kind in "products", "attention", "other kernels":
        mine = [r for r in b["rows"] if parse.bench_class(r[0]) == kind]
        ms = sum(r[at["ms/step"]] for r in mine)
        if ms:
            gbs, tflops = (sum(r[at["ms/step"]] * r[at[c]] for r in mine) / ms for c in ("GB/s", "TFLOP/s"))
            rows.append([kind, ms, gbs, 100 * gbs / b["copy_gbs"] if b.get("copy_gbs") else None, tflops])
    step.table("By kind", [("", ""), ("ms/step", ""), ("GB/s", ""), ("% of the copy", ""), ("TFLOP/s", "")], rows)


def bench_two_lane(step):
    bench(step, "bench-two", TWO)


def bench_single(step):
    bench(step, "bench-single", SINGLE)


def sanitize(step, tool):
    exe = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not exe:
        step.skip("compute-sanitizer is not on this machine")
        return
    words = [SMALL, *QUICK, "--rows", "16"] if step.run.quick else [REFERENCE, *BF16, "--rows", "64"]
    c = step.call([exe, "--tool", tool, "--print-limit", "20", step.run.exe, "verify", *words, *CUDA], ok=None)
    errors, lines = parse.sanitizer(c.out + c.err)
    for line in lines:
        step.note(f"`{line}`")
    if errors is None:
        step.fail(f"it gave no summary: {step.last_words()}")
    else:
        step.number("errors", errors, "")
        if errors:
            step.fail(f"{errors} errors")


def racecheck(step):
    sanitize(step, "racecheck")


def memcheck(step):
    sanitize(step, "memcheck")


def manifest_products(path):
    """(name, m, n, k) of the products of an emitted directory, a layer's once"""
    seen = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        m = re.match(r"gemm \w\w (\d+) (\d+) (\d+) .* @ (?:layers\.\d+\.)?(.*)", line)
        if m:
            seen.setdefault(m.group(4), tuple(map(int, m.group(1, 2, 3))))
    return [(name, *shape) for name, shape in seen.items()]


def torch(step):
    """The ceilings as PyTorch reaches them: the copy, and the products of the benched step."""
    shapes = manifest_products(step.run.tmp / "bench-two/manifest")
    given = json.dumps([s for s in shapes if not s[0].endswith("dx bwd")])
    c = step.call([sys.executable, HERE / "ceilings.py", given], ok=None)
    rows = []
    for line in c.out.splitlines():
        r = json.loads(line)
        if "absent" in r:
            step.skip(r["absent"])
            return
        if "gbs" in r:
            step.number("a copy reads and writes", r["gbs"], "GB/s")
        elif "version" in r:
            step.number("PyTorch", r["version"], "")
        else:
            rows.append([r["name"], f"{r['m']} x {r['n']} x {r['k']}", r["us"], r["tflops"]])
    step.table("Products of bf16, of random numbers", [("product", ""), ("m x n x k", ""), ("µs", ""), ("TFLOP/s", "")], rows)
    if c.rc:
        step.fail(step.last_words())


# name, title, seconds at most, what it does
STEPS = [
    ("doctor", "What is there", 35, doctor),
    ("intrinsics", "Intrinsics", 40, intrinsics_step),
    ("verify-reference", "verify specs/reference.yaml, f32", 25, verify_reference),
    ("verify-bf16", "verify specs/reference.yaml, bf16", 20, verify_bf16),
    ("long", "Sequences of several tiles", 40, long_sequences),
    ("curve", "A short training run", 45, curve),
    ("verify-two-lane", "verify specs/two-lane.yaml, width 768, whole vocabulary, 2 layers", 60, verify_two_lane),
    ("start", "Start of the 11 layers of specs/two-lane.yaml", 70, start),
    ("bench-two-lane", "bench specs/two-lane.yaml, 49,152 tokens", 55, bench_two_lane),
    ("bench-single", "bench specs/single.yaml, 49,152 tokens", 35, bench_single),
    ("verify-single", "verify specs/single.yaml, width 768, 4 layers", 35, verify_single),
    ("racecheck", "compute-sanitizer racecheck", 30, racecheck),
    ("memcheck", "compute-sanitizer memcheck", 20, memcheck),
    ("torch", "PyTorch on the same GPU", 15, torch),
]
# what the others left: no step has to wait for it
REST = ("random", "In the time that is left: verify random specs (tests/randspec.py)", 200, random_specs)
RANDOM_SPECS = 150
# and what else it takes, to kill what hangs and to pack, ends before 540
EVERY_SECOND = 525
assert sum(s[2] for s in STEPS) <= EVERY_SECOND
# left out where the GPU is one CPU: what they run, others run
NOT_QUICK = {"verify-bf16", "verify-two-lane", "verify-single", "bench-single", "memcheck", "random"}
