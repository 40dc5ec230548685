#!/usr/bin/python3
"""Whole runs beside the oracle's: docs/bench/runs.md.

    runs.py [--seeds N] [--jobs N] [SPEC…] > docs/bench/runs.md

Each spec is reduced in size and keeps all of its structure: layers, lanes, sources, gates, stages with their
windows, targets and rates, YaRN, untying, optimizers, FP8 head.  300 steps on text found on this machine, from the
same initial parameters on the same tokens: hcgen in bf16 with an FP8 head, PyTorch in float32 with the same head.
What is asked for: the mean over seeds of the difference of their losses is within its standard error times 3 or below
0.002 nats.  With five seeds the error has four degrees of freedom: were the differences noise, one window in 25
would still be beyond, marked far.
"""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
HCGEN = pathlib.Path(os.environ.get("HCGEN") or ROOT / "build/hcgen")
SPECS = ["baseline", "exp44", "flatten-forward"]
WINDOW, SMALL = 15, 0.002

# the sizes of stages, windows and tables over 128; steps so that stages end where they would
REDUCED = {
    "model.width": 96, "model.heads": 6, "model.head_dim": 16, "model.rotary.dims": 8, "model.vocab": 272,
    "model.vocab_multiple": 16, "hc.sources.bigram.rows": 1009, "model.attention.window": 8, "model.attention.long_window": 24,
    "train.steps": 290, "train.tokens_per_step": 128, "train.micro_batches": 1, "train.seq_len": 128,
    "train.stages.first.window": 8, "train.stages.first.long_window": 24,
    "train.stages.second.tokens_per_step": 256, "train.stages.second.seq_len": 256,
    "train.stages.second.window": 24, "train.stages.second.long_window": 56,
    "train.stages.third.tokens_per_step": 384, "train.stages.third.seq_len": 384,
    "train.stages.third.window": 40, "train.stages.third.long_window": 88,
    "train.stages.extension.steps": 10, "train.stages.extension.tokens_per_step": 384,
    "train.stages.extension.seq_len": 384, "train.stages.extension.window": 48,
    "train.stages.extension.long_window": 104, "train.final.long_window": 160,
    "train.val_batch": 2048, "train.val_seq_len": 2048, "train.val_tokens": 16384, "train.val_every": 0,
    "data.bos": 256, "data.max_doc": 300, "target": "cpu",
}


def words(settings):
    return [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]


def run(*command, env=None):
    r = subprocess.run([str(c) for c in command], text=True, capture_output=True, env=env)
    if r.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]}: exit {r.returncode}\n{r.stdout[-500:]}{r.stderr[-1500:]}")
    return r.stdout


def lines(text):
    return [json.loads(x) for x in text.splitlines() if x.startswith("{")]


def curve(records):
    return [x["loss"] for x in records if "loss" in x], [x["val_loss"] for x in records if x.get("val_loss") is not None][-1]


def both(spec, seed, top, data):
    """losses and last validation of hcgen and of the oracle"""
    at = top / f"{spec}-{seed}"
    at.mkdir()
    path = ROOT / f"specs/{spec}.yaml"
    settings = words({**REDUCED, "train.seed": seed, **data})
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    run(HCGEN, "train", path, "-o", at / "initial", "--quiet", *settings, "--set", "train.steps=0", "--threads", 1)
    params = at / "initial/run/final.safetensors"
    run(HCGEN, "train", path, "-o", at / "ours", "--quiet", *settings, "--params", params, "--threads", 1)
    ours = lines((at / "ours/run/metrics.jsonl").read_text())
    oracle = lines(run("/usr/bin/python3", ROOT / "tests/oracle/train.py", path, *settings, "--params", params,
                       "--dtype", "float32", "--threads", 1, env=one))
    return curve(ours), curve(oracle)


def report(spec, pairs):
    """How far the two are apart, by window of steps; whether that is noise."""
    steps = len(pairs[0][0][0])
    print(f"\n## {spec}: {len(pairs)} seeds, {steps} steps\n")
    print("| steps | hcgen, mean loss | oracle | difference | its standard error |\n|---|---|---|---|---|")
    far = 0
    rows = [(f"{a + 1} to {a + WINDOW}", [(statistics.mean(x[a:a + WINDOW]), statistics.mean(y[a:a + WINDOW]))
                                        for (x, _), (y, _) in pairs]) for a in range(0, steps, WINDOW)]
    rows.append(("validation", [(x, y) for (_, x), (_, y) in pairs]))
    for name, values in rows:
        d = [x - y for x, y in values]
        mean = statistics.mean(d)
        error = statistics.stdev(d) / math.sqrt(len(d)) if len(d) > 1 else 0.0
        bad = abs(mean) > 3 * error and abs(mean) > SMALL
        far += bad
        print(f"| {name} | {statistics.mean(x for x, _ in values):.4f} | {statistics.mean(y for _, y in values):.4f} "
              f"| {mean:+.4f} | {error:.4f}{' **far**' if bad else ''} |")
    return far


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", nargs="*", default=SPECS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    top = pathlib.Path(tempfile.mkdtemp(prefix="hcgen-runs-"))
    (top / "data").mkdir()
    run(HCGEN, "data", "bytes", "-r", "/usr/include", "-o", top / "data", "--val", 4)
    data = {f"data.{k}": json.dumps([str(top / f"data/{k}.bin")]) for k in ("train", "val")}
    print("# Whole runs beside the oracle\n\n" + __doc__.split("\n\n", 2)[2].strip())
    print(f"\n    tests/runs.py --seeds {args.seeds}")
    far = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = {spec: [pool.submit(both, spec, seed, top, data) for seed in range(args.seeds)] for spec in args.spec}
        for spec, futures in jobs.items():
            far += report(spec, [f.result() for f in futures])
            sys.stdout.flush()
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
