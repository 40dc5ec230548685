"""What the end-to-end tests share: cases, running hcgen, shards, metrics, parameters.

A test program decorates its cases with @case and calls main(): one line each, `ok NAME`,
`FAIL NAME detail` or `skip NAME reason`.  Every case gets an empty folder of its own.
"""
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import traceback

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
HCGEN = os.environ.get("HCGEN") or str(ROOT / "build/hcgen")   # another: one with sanitizers
SMALL = ROOT / "tests/e2e/small.yaml"
REFERENCE = ROOT / "specs/reference.yaml"
# of all specs those that are no experiment, that is a difference with a result: tests/specs.py has these
SPECS = [p for p in sorted((ROOT / "specs").glob("*.yaml"))
         if not {"extends:", "log:"} <= {line.split(" ")[0].rstrip() for line in p.read_text().splitlines()}]
CASES = []


class Skip(Exception):
    pass


def case(f):
    CASES.append(f)
    return f


def main():
    """Runs all cases, or those named on the command line."""
    failed = 0
    for f in CASES:
        name = f.__name__.replace("_", "-")
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory(prefix="hcgen-e2e-") as tmp:
            try:
                f(pathlib.Path(tmp))
                print("ok", name, flush=True)
            except Skip as e:
                print("skip", name, e, flush=True)
            except Exception as e:
                failed += 1
                where = traceback.extract_tb(e.__traceback__)
                at = [x.lineno for x in where if os.path.basename(x.filename) != "lib.py"]
                print(f"FAIL {name} line {at}: {type(e).__name__}: {e}", flush=True)
    sys.exit(failed > 0)


def expect(true, *detail):
    if not true:
        raise AssertionError(" ".join(map(str, detail)))


# ---- running --------------------------------------------------------------

class Result:
    def __init__(self, p):
        self.rc, self.out, self.err = p.returncode, p.stdout, p.stderr

    def __str__(self):
        return f"exit {self.rc}\n{self.out[-2000:]}{self.err[-4000:]}"


def environment(changes):
    """This environment; a change to None removes a variable."""
    env = {**os.environ, **changes}
    return {k: v for k, v in env.items() if v is not None}


def run(*words, env={}, cwd=None, timeout=120):
    return Result(subprocess.run([str(w) for w in words], env=environment(env), cwd=cwd, text=True,
                                 errors="replace", capture_output=True, timeout=timeout,
                                 stdin=subprocess.DEVNULL))


def hcgen(*words, want=0, **how):
    r = run(HCGEN, *words, **how)
    expect(r.rc == want, f"hcgen {' '.join(map(str, words))}: wanted exit {want}, got", r)
    return r


def python(script, *words, **how):
    """A program of the oracle."""
    if not importlib.util.find_spec("torch"):
        raise Skip("no PyTorch")
    r = run("/usr/bin/python3", ROOT / "tests/oracle" / script, *words, **how)
    expect(r.rc == 0, script, *words, r)
    return r


def sets(**values):
    """--set words; dots of a path are written as __"""
    return [w for k, v in values.items() for w in ("--set", f"{k.replace('__', '.')}={v}")]


# the optimizers, targets and untying of modded-nanogpt on a spec of this size
MODDED = sets(
    train__steps=36, train__untie="two", train__loss_scale=0.25, model__init__kind="uniform", model__tied="false",
    train__stages="{one: {targets: [1, 0.5, 0.25], targets_end: [1, 0.5, 0]}, two: {targets: [1, 0.5], targets_end: [1, 0]}, "
    "three: {steps: 6}}", optim__kind="cautious_adam", optim__every=2, optim__eps=1e-10, optim__weight_decay=0.5,
    optim__normuon="{momentum_warmup: 10, momentum_cooldown: 8}", train__lr=0.008,
    optim__groups="{matrices: {match: 'layers.*.attn.qkv|layers.*.attn.out|layers.*.mlp.up|layers.*.mlp.down', "
    "kind: normuon, every: 1, lr: 0.02, weight_decay: 1.2}, down: {match: layers.*.mlp.down, lr_mul: 2}}")


# ---- files ----------------------------------------------------------------

def write_shard(path, tokens, magic=20240520, version=1, count=None):
    count = len(tokens) if count is None else count
    head = struct.pack("<3i", magic, version, count).ljust(1024, b"\0")
    pathlib.Path(path).write_bytes(head + np.asarray(tokens, "<u2").tobytes())


class Random:
    """Of our own, so that data are the same with every version of Python."""

    def __init__(self, seed):
        self.state = seed * 2 + 1

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def texts(documents=600, nbytes=100, seed=1):
    """Texts of two random letters each, in random order.  What a document is made of shows only in
    what came before: ln 2 nats a letter to who sees that, 2.4 and more to who sees one letter."""
    r = Random(seed)
    for _ in range(documents):
        letters = [chr(97 + r.below(26)) for _ in range(2)]
        yield "".join(letters[r.below(2)] for _ in range(nbytes))


def make_data(tmp):
    """--set words for shards that `hcgen data bytes` makes of texts()"""
    (tmp / "text").mkdir()
    for i, text in enumerate(texts()):
        (tmp / f"text/{i:04}.txt").write_text(text)
    hcgen("data", "bytes", "-r", tmp / "text", "-o", tmp / "data", "--val", 10)
    return data_at(tmp / "data")


def data_at(folder):
    return sets(data__train=json.dumps([str(folder / "train.bin")]),
                data__val=json.dumps([str(folder / "val.bin")]))


def read_params(path):
    """name -> (shape, numpy array) of a safetensors file"""
    raw = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    head, body = json.loads(raw[8:8 + n]), raw[8 + n:]
    kinds = {"F32": "<f4", "F64": "<f8"}
    return {k: np.frombuffer(body[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
            for k, t in head.items() if k != "__metadata__"}


def write_params(path, params):
    head, blobs, at = {}, [], 0
    for name, x in params.items():
        blobs.append(np.asarray(x, "<f4").tobytes())
        head[name] = {"dtype": "F32", "shape": list(np.shape(x)), "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    text = json.dumps(head).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


# ---- runs -----------------------------------------------------------------

def metrics(out):
    return [json.loads(line) for line in open(out / "run/metrics.jsonl")]


def losses(out):
    return [m["loss"] for m in metrics(out) if "loss" in m]


def val_losses(out):
    return [m["val_loss"] for m in metrics(out) if "val_tokens" in m]


def numbers(out):
    """What must repeat: all of metrics.jsonl but times."""
    return [{k: v for k, v in m.items() if k not in ("ms", "seconds", "threads", "file")}
            for m in metrics(out)]


def train(out, *words, spec=SMALL, **how):
    return hcgen("train", spec, "-o", out, "--quiet", *words, **how)


def initial(path, *words, spec=SMALL):
    """Initial parameters of a spec, into a file."""
    out = pathlib.Path(str(path) + ".out")
    train(out, *words, *sets(train__steps=0, train__warmup=0), spec=spec)
    os.rename(out / "run/final.safetensors", path)
    return path
