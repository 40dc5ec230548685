"""The oracle's command line.

    oracle.py grad SPEC --tokens T.bin --params P.safetensors --dump OUT.safetensors
                   [--set a.b=v ...] [--dtype float64|float32|bfloat16] [--logits] [--stage NAME]
    oracle.py names SPEC [--set ...]
    oracle.py params SPEC -o P.safetensors [--seed N] [--random] [--set ...]
    oracle.py bench SPEC [--steps N] [--dtype float32] [--threads N] [--set ...]
                   [--stage NAME]

Both grad and bench are in the first of the stages with the most tokens in a
micro-batch, or in the one that is named.

grad: one micro-batch, target weights as in the first step of the stage; loss
(the mean over the positions), grad.NAME of it and logits, in float64 (float32
if the run was narrower).  bench: one JSON line; exit 2 if PyTorch's own matmul
is too slow for the number to mean anything; cpu_ms_per_step far below threads *
ms_per_step tells that the machine was shared.
"""
import argparse
import ctypes
import json
import os
import sys
import time


def _uncap_blas():
    """Let OpenBLAS choose its kernels: a core type forced from outside may halve
    its speed.  It looks when it is loaded, hence before importing torch."""
    if "bench" in sys.argv[1:2]:
        os.environ.pop("OPENBLAS_CORETYPE", None)


_uncap_blas()

import torch  # noqa: E402

import data  # noqa: E402
import init  # noqa: E402
import safetensors  # noqa: E402
import spec as specs  # noqa: E402
import stages  # noqa: E402
from model import Model  # noqa: E402
from parameters import parameters  # noqa: E402
from train import DTYPES, Trainer, keep_heap, leaves, load_params, master  # noqa: E402

# An optimized sgemm reaches this on one core of any x86 server of the last
# ten years; the reference BLAS stays below a tenth of it.
SLOW_GFLOPS = 50


# ---- grad -----------------------------------------------------------------

def micro_batch(spec, stage, path):
    """Tokens and targets [B, N] of the first micro-batch of a shard."""
    count = stage.tokens
    tokens = data.read_shard(path)
    if len(tokens) < count + 1:
        raise specs.SpecError(f"{path}: {len(tokens)} tokens, wanted {count + 1}")
    rows = torch.from_numpy(data.pack_stream(tokens[:count + 1].astype("int64"), stage.seq_len))
    if int(rows.max()) >= spec.model.vocab:
        raise specs.SpecError(f"{path}: token {int(rows.max())} is outside the vocabulary")
    return rows[:, :-1], rows[:, 1:]


def gradients(spec, values, tokens, targets, dtype, logits=False, stage=None):
    """loss, grad.NAME for every parameter and, if asked, logits [T, V]."""
    # copies: gradients of one call are not to add up with those of another
    params = leaves({k: v.detach().clone() for k, v in values.items()}, dtype)
    model = Model(spec, dtype)
    stage = stage or stages.named(spec)
    model.enter(stage)
    loss = model.loss(params, tokens, targets, stage.weights(stage.first))
    loss.backward()
    out = {"loss": loss.detach().to(master(dtype))}
    for name, p in params.items():
        out["grad." + name] = torch.zeros_like(p) if p.grad is None else p.grad
    if logits:
        with torch.no_grad():
            out["logits"] = model.logits(params, tokens).flatten(0, 1).to(master(dtype))
    return out


def grad(args, spec):
    values = load_params(spec, args.params)
    stage = stages.named(spec, args.stage)
    tokens, targets = micro_batch(spec, stage, args.tokens)
    out = gradients(spec, values, tokens, targets, DTYPES[args.dtype], args.logits, stage)
    safetensors.save(args.dump, out)
    print(json.dumps({"loss": out["loss"].item()}))


# ---- names, params --------------------------------------------------------

def names(args, spec):
    for p in parameters(spec):
        print(p.name, "x".join(map(str, p.shape)))


def params(args, spec):
    seed = spec.train.seed if args.seed is None else args.seed
    safetensors.save(args.out, (init.random if args.random else init.initial)(spec, seed))


# ---- bench ----------------------------------------------------------------

def matmul_gflops(n=1024, repeats=20):
    a, b = torch.randn(n, n), torch.randn(n, n)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best / 1e9


def openblas():
    """The OpenBLAS in this process, or None."""
    with open("/proc/self/maps") as f:
        paths = {line.split()[-1] for line in f if "libopenblas" in line}
    return ctypes.CDLL(min(paths)) if paths else None


def use_threads(count, library):
    """The same number of threads for PyTorch's loops and for the BLAS, which
    keeps its own pool."""
    torch.set_num_threads(count)
    if library:
        library.openblas_set_num_threads(count)


def core_name(library):
    """Which kernels OpenBLAS chose."""
    if not library:
        return "not OpenBLAS"
    library.openblas_get_corename.restype = ctypes.c_char_p
    return "OpenBLAS " + library.openblas_get_corename().decode()


def bench(args, spec):
    keep_heap()
    library = openblas()
    use_threads(args.threads or len(os.sched_getaffinity(0)), library)
    gflops, blas = matmul_gflops(), core_name(library)
    if gflops < SLOW_GFLOPS:
        print(f"oracle.py: matmul at {gflops:.1f} GFLOP/s with {blas}: "
              "PyTorch needs OpenBLAS", file=sys.stderr)
        sys.exit(2)
    spec = stages.only(spec, stages.named(spec, args.stage))
    dtype, t = DTYPES[args.dtype], spec.train
    trainer = Trainer(spec, leaves(init.initial(spec), dtype), dtype)
    torch.manual_seed(0)
    rows = torch.randint(spec.model.vocab, (trainer.rows, t.seq_len + 1))
    batches = [(rows[:, :-1], rows[:, 1:])] * t.micro_batches
    for _ in range(2):          # the heap grows, caches fill
        trainer.step(batches)
    seconds, cpu = [], time.process_time()
    for _ in range(args.steps):
        start = time.perf_counter()
        trainer.step(batches)
        seconds.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / args.steps
    mean, best = sum(seconds) / len(seconds), min(seconds)
    print(json.dumps({
        "tokens_per_s": round(t.tokens_per_step / mean, 1),
        "tokens_per_s_best": round(t.tokens_per_step / best, 1),
        "ms_per_step": round(1e3 * mean, 2), "cpu_ms_per_step": round(1e3 * cpu, 2),
        "steps": args.steps, "dtype": args.dtype,
        "threads": torch.get_num_threads(), "matmul_gflops": round(gflops, 1),
        "blas": blas}))


# ---- command line ---------------------------------------------------------

def arguments():
    parser = argparse.ArgumentParser(description="The PyTorch oracle of a spec.")
    sub = parser.add_subparsers(dest="command", required=True)
    for run in (grad, names, params, bench):
        p = sub.add_parser(run.__name__)
        p.set_defaults(run=run)
        p.add_argument("spec")
        p.add_argument("--set", action="append", default=[], metavar="a.b=v")
        if run is grad:
            for option in ("--tokens", "--params", "--dump"):
                p.add_argument(option, required=True)
            p.add_argument("--logits", action="store_true")
        if run in (grad, bench):
            p.add_argument("--stage")
            p.add_argument("--dtype", choices=DTYPES,
                           default="float64" if run is grad else "float32")
        if run is params:
            p.add_argument("-o", "--out", required=True)
            p.add_argument("--seed", type=int)
            p.add_argument("--random", action="store_true")
        if run is bench:
            p.add_argument("--steps", type=int, default=5)
            p.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        args = arguments()
        args.run(args, specs.read(args.spec, args.set))
    except specs.SpecError as e:
        sys.exit(f"oracle.py: {e}")
