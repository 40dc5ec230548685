#!/usr/bin/python3
"""One step of specs/baseline.yaml at its real sizes beside the oracle: docs/bench/real.md.

    real.py > docs/bench/real.md

Width 768, 50304 tokens, 251,520 rows of bigrams, FP8 head, 2048 tokens in one sequence with the windows of the third
stage, on the CPU.  The reference is the oracle in float32 with the same rounding in the head; what bf16 costs anybody
is the oracle in eager bfloat16.  Errors are |got - want| / |want| per tensor, pooled by kind of parameter as the root
of the mean square.  Asked for: at most twice the eager ones, and arenas of the planned sizes.
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
HCGEN = ROOT / "build/hcgen"
SPEC = ROOT / "specs/baseline.yaml"
T = 2048
STAGES = ("first", "second", "third", "extension")
SETTINGS = {
    **{f"train.stages.{s}.{k}": T for s in STAGES for k in ("tokens_per_step", "seq_len")},
    "train.tokens_per_step": T, "train.seq_len": T, "train.micro_batches": 1, "train.val_batch": T, "train.val_seq_len": T,
    "train.final.long_window": 1664, "target": "cpu", "train.stages.first.window": 640, "train.stages.first.long_window": 1408,
    "train.stages.first.targets": [1.0, 0.5, 0.25],
    # what begins at zero hides what stands behind it
    "model.init.mlp_out": "random", "model.value_embed.std": 0.5, "hc.sources.bigram.table_std": 0.5,
    "hc.sources.x0.init": 0.1, "numerics.params": "f32",
}
WORDS = [w for k, v in SETTINGS.items() for w in ("--set", f"{k}={json.dumps(v) if isinstance(v, list) else v}")]
KINDS = (("embed", "tables"), ("value_embed", "tables"), ("table", "tables"), ("head", "head"), ("qkv", "matrices"),
         ("out", "matrices"), ("up", "matrices"), ("down", "matrices"))


def run(*command):
    began = time.time()
    r = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if r.returncode:
        sys.exit(f"{' '.join(map(str, command))[:300]}: exit {r.returncode}\n{r.stdout[-800:]}{r.stderr[-1500:]}")
    return r.stdout, time.time() - began


def tensors(path):
    """name -> array, without reading the file before it is asked for"""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
    kinds = {"F32": "<f4", "F64": "<f8"}
    data = np.memmap(path, mode="r")
    return {k: data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]].view(kinds[t["dtype"]])
            for k, t in header.items() if k != "__metadata__"}


def norm(x):
    return math.sqrt(float(np.dot(x, x)))


def errors(got, want):
    """kind -> relative errors of its tensors; what has no gradient has none on both sides"""
    out = {}
    for name, w in want.items():
        if name in ("loss", "logits"):
            continue
        g, w = got[name].astype(np.float64), w.astype(np.float64)
        size = norm(w)
        if size == 0:
            if norm(g) != 0:
                sys.exit(f"{name} has a gradient of {norm(g):.3g}, and none in the reference")
            continue
        last = name.split(".")[-1]
        kind = next((k for word, k in KINDS if last == word), "coefficients and gates")
        out.setdefault(kind, []).append(min(1, norm(g - w) / size))
    return {k: (math.sqrt(sum(e * e for e in v) / len(v)), len(v)) for k, v in out.items()}


def shard(path):
    """Tokens as natural text has them: few are frequent; documents of some hundred."""
    rng = np.random.default_rng(1)
    tokens = np.minimum(rng.zipf(1.2, T + 1), 50256).astype("<u2") - 1
    tokens[rng.random(T + 1) < 1 / 400] = 50256
    head = np.zeros(256, "<i4")
    head[:3] = 20240520, 1, T + 1
    path.write_bytes(head.tobytes() + tokens.tobytes())


def arenas(log):
    """what the run maps beside what plan.txt says"""
    return {line.split()[0]: int(line.split()[1]) for line in log.splitlines() if len(line.split()) == 4 and line.endswith("MiB")}


def main():
    top = pathlib.Path(tempfile.mkdtemp(prefix="hcgen-real-"))
    shard(top / "tokens.bin")
    log, seconds = run(HCGEN, "train", SPEC, "-o", top / "out", *WORDS, "--set", "train.steps=0")
    mapped = arenas(log)
    planned = {}
    for line in (top / "out/plan.txt").read_text().split("\nmemory\n")[1].splitlines()[:11]:
        planned[line.split()[1]] = int(line.split()[0])
    wrong = [k for k in planned if k in mapped and mapped[k] != planned[k]]
    params = top / "out/run/final.safetensors"
    given = ["--params", params, "--tokens", top / "tokens.bin"]
    _, ours = run(HCGEN, "verify", SPEC, *WORDS, *given, "--dump", top / "ours.st")
    oracle = ["/usr/bin/python3", ROOT / "tests/oracle/oracle.py", "grad", SPEC, *WORDS, *given]
    _, exact = run(*oracle, "--dtype", "float32", "--dump", top / "exact.st")
    run(*oracle, "--dtype", "bfloat16", "--dump", top / "eager.st")
    want = tensors(top / "exact.st")
    got, eager = tensors(top / "ours.st"), tensors(top / "eager.st")
    ours_by, eager_by = errors(got, want), errors(eager, want)
    print("# One step at real sizes\n\n" + __doc__.split("\n\n", 2)[2].strip() + "\n\n    tests/real.py\n")
    n = sum(int(np.prod(x.shape)) for k, x in want.items() if k.startswith("grad."))
    print(f"{n} parameters. Loss {float(got['loss'][0]):.6f}; oracle in float32 {float(want['loss'][0]):.6f}, in bfloat16 "
          f"{float(eager['loss'][0]):.6f}. hcgen took {ours:.0f} s with emitting, compiling and reading 2.2 GB, the oracle in float32 {exact:.0f} s.\n")
    print("| gradients of | tensors | hcgen, bf16 | eager bf16 | ratio |\n|---|---|---|---|---|")
    bad = bool(wrong)
    for kind, (e, count) in ours_by.items():
        other = eager_by[kind][0]
        far = e > max(2 * other, 2 ** -8)
        bad |= far
        print(f"| {kind} | {count} | {e:.2e} | {other:.2e} | {e / other:.2f}{' **far**' if far else ''} |")
    print("\n| arena | bytes mapped | planned |\n|---|---|---|")
    for k, v in planned.items():
        if k in mapped:
            print(f"| {k} | {mapped[k]} | {v}{' **not equal**' if k in wrong else ''} |")
    off = abs(float(got["loss"][0]) - float(want["loss"][0])) / float(want["loss"][0])
    sys.exit(bad or off > 2 ** -8)


if __name__ == "__main__":
    main()
