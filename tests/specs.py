#!/usr/bin/python3
"""Every spec of specs/ through everything that it can be held against.

    specs.py [--quick] [--jobs N] [SPEC…]

Every spec is checked and emitted.  One that differs from another only in what no kernel sees (steps, rates,
betas, initial values of parameters) is proven to by `hcgen diff`.  All others are planned, verified step by
step, small on the CPU and at their width as CUDA text, compiled with NVRTC, and trained for some steps.
--quick does that with a few that differ most, and checks and emits the others.

One line per spec, then `N passed, N failed, N skipped`.
"""
import argparse
import atexit
import fnmatch
import functools
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "e2e"))
from lib import HCGEN, ROOT, Random, expect, metrics, run, write_shard   # noqa: E402

HERE = ROOT / "specs"
QUICK = ["baseline", "exp05", "exp40", "parallel-residuals"]

# pairs that are one model with one text: only PyTorch code or the machine was other
SAME = [("exp09", "exp07b"), ("exp26", "exp20"), ("exp27", "exp20"), ("exp35", "exp33"), ("exp41", "exp36"),
        ("master", "baseline"), ("exp31-master", "baseline")]
# pairs that differ in these keys of the model and no other
ONLY = [("exp28", "exp27", {"hc.sources.bigram.first"}), ("exp29", "exp28", {"train.steps"}),
        ("exp33", "hc-4gpu", set()), ("master-precompute", "master", set())]

# no kernel sees these; initial values only where they are a parameter's (see seen)
UNSEEN = re.compile(r"name$|log\.|train\.(steps|lr|cooldown|seed)$|train\.stages\.\w+\.(share|steps)$"
                    r"|hc\..*\.(lr_mul|betas)$|model\.init\.|.*\.(table_std|std)$")


class NoTool(Exception):
    pass


# ---- specs ------------------------------------------------------------------

def flat(tree, path=""):
    """Nested maps -> path: value; a map that is a value, such as {identity: 1.02}, too"""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def call(verb, *words, timeout=900):
    """hcgen; what it printed if it failed"""
    r = run(HCGEN, verb, *words, timeout=timeout)
    expect(r.rc == 0, f"hcgen {verb}:", r)
    return r.out


@functools.lru_cache(maxsize=None)
def folder():
    path = tempfile.mkdtemp(prefix="hcgen-specs-")
    atexit.register(shutil.rmtree, path)
    return pathlib.Path(path)


@functools.lru_cache(maxsize=None)
def resolved(spec):
    """Checks and emits; path: value of every key, as emitted."""
    call("check", spec)
    out = folder() / spec.stem
    call("emit", spec, "-o", out, "--quiet")
    return dict(flat(yaml.safe_load((out / "spec.yaml").read_text())))


def seen(keys):
    """The keys that kernels may depend on."""
    keys = {k: v for k, v in keys.items() if not UNSEEN.match(k)}
    for name, init in ("res", "identity"), ("pre", "round_robin"):
        # frozen as they are by default: not written is the same
        if keys.get(f"hc.{name}.init") == init and keys[f"hc.{name}.learned"] is False:
            keys = {k: v for k, v in keys.items() if not k.startswith(f"hc.{name}.")}
    return {k: v for k, v in keys.items()
            if not (re.match(r"hc\..*\.init(\.\w+)?$", k) and keys.get(re.sub(r"init(\.\w+)?$", "learned", k)) is True)}


def chain(spec):
    """Files that it extends, one after the other"""
    base = re.search(r"^extends: (\S+)", spec.read_text(), re.M)
    return 1 + chain(spec.parent / base[1]) if base else 0


def difference(a, b):
    """verdict, keys of the model, whether kernels differ: of `hcgen diff`"""
    out = call("diff", a, b)
    verdict = out.splitlines()[0].split(": ")[1]
    keys = re.search(r"^model\n((?:  .*\n)*)", out, re.M)
    return verdict, {line.split()[1].rstrip(":") for line in keys[1].splitlines()} if keys else set(), "\nkernels (" in out


# ---- reduced ----------------------------------------------------------------

def window(tokens):
    """Small, and in the order of the large ones"""
    return tokens if not isinstance(tokens, int) or tokens <= 40 else 3 + tokens // 64


def words(values):
    return [w for k, v in values.items()
            for w in ("--set", f"{k}={yaml.safe_dump(v, default_flow_style=True, width=9999).splitlines()[0]}")]


def few_rows(keys, vocab, rows):
    """--set of a spec with small tables and windows"""
    to = {"model.vocab": min(vocab, keys["model.vocab"])}
    if keys["data.bos"] >= to["model.vocab"]:
        to["data.bos"] = 3
    for k, v in keys.items():
        if re.search(r"\.(long_)?window$", k) and v != "full":
            to[k] = [window(x) for x in v] if isinstance(v, list) else window(v)
        if re.match(r"hc\.sources\.\w+\.rows$", k) and keys[k[:-4] + "kind"] == "bigram":
            to[k] = min(rows, v)
    return to


def small(keys):
    """All structure of a spec, heads of 16 channels"""
    to = few_rows(keys, 509, 251)
    d = keys["model.head_dim"]
    if d > 16:
        to["model.head_dim"] = 16
        to["model.width"] = 16 * keys["model.heads"]
        for k in "model.rotary.dims", "model.attention.key_offset.first":
            if k in keys:
                to[k] = keys[k] * 16 // d
    return to


def at_width(keys):
    """The width of a spec, little behind it: a row kernel works on one row after another"""
    to = few_rows(keys, 131, 67)
    to["model.mlp.hidden"] = min(keys["model.mlp.hidden"], 96)
    return to


def scopes(keys):
    """What train and each stage say of tokens, and of steps: (prefix, tokens, micro-batches, seq_len, steps)"""
    own = {k: keys[f"train.{k}"] for k in ("tokens_per_step", "micro_batches", "seq_len")}
    yield "train", own["tokens_per_step"], own["micro_batches"], own["seq_len"], None
    names = dict.fromkeys(k.split(".")[2] for k in keys if k.startswith("train.stages."))
    for name in names:
        at = f"train.stages.{name}"
        yield at, *(keys.get(f"{at}.{k}", own[k]) for k in own), keys.get(f"{at}.steps")


def short(keys):
    """--set for a run of two steps a stage, and (tokens of each step)"""
    to, all = {"train.val_tokens": 256, "train.val_every": 4, "train.log_every": 1, "train.warmup": 0}, list(scopes(keys))
    shortest = min(seq for _, _, _, seq, _ in all)
    tokens = []
    for at, total, micro, seq, beyond in all:
        rows = min(2, total // micro // seq)
        to[f"{at}.seq_len"] = 32 * (seq // shortest)
        to[f"{at}.micro_batches"] = min(2, micro)
        to[f"{at}.tokens_per_step"] = to[f"{at}.seq_len"] * rows * min(2, micro)
        if at == "train" and len(all) > 1:
            continue
        if beyond:
            to[f"{at}.steps"] = 2
        elif at != "train":
            to[f"{at}.share"] = 1
        tokens += 2 * [to[f"{at}.tokens_per_step"]]
    beyond = sum(s is not None for *_, s in all)
    to["train.steps"] = len(tokens) - 2 * beyond
    if "train.val_batch" in keys:
        to["train.val_batch"] = to["train.val_seq_len"] = 128
    return to, tokens


# ---- what is tried ----------------------------------------------------------

def verified(spec, *how):
    out = call("verify", spec, "--threads", 1, *how)
    expect("FAIL" not in out and out.rstrip().endswith(": verified"), out[-3000:])


def verify(spec, keys):
    """small, every step in C"""
    verified(spec, "--device", "cpu", *words(small(keys)))


def width(spec, keys):
    """at its width, every step as CUDA text"""
    verified(spec, "--device", "simt", "--rows", 8, "--seq", 8, *words(at_width(keys)))


def compile(spec, keys):
    r = run(HCGEN, "compile", spec, "-o", folder() / (spec.stem + ".cuda"), timeout=900)
    if r.rc == 2 and "libnvrtc" in r.err:
        raise NoTool("no NVRTC here")
    expect(r.rc == 0, "hcgen compile:", r)


@functools.lru_cache(maxsize=None)
def shard():
    """Documents of a few words each"""
    r, tokens = Random(1), []
    while len(tokens) < 20000:
        first = 4 + r.below(60)
        tokens += [3] + [first + r.below(4) for _ in range(20 + r.below(60))]
    write_shard(folder() / "tokens.bin", tokens)
    return str(folder() / "tokens.bin")


def train(spec, keys):
    """some steps of every stage: as many, and on as many tokens, as the spec says; no loss is absurd"""
    to, tokens = short(keys)
    to.update(small(keys), **{"data.train": shard(), "data.val": shard(), "data.bos": 3})
    out = folder() / (spec.stem + ".run")
    call("train", spec, "-o", out, "--quiet", "--device", "cpu", "--threads", 1, *words(to))
    steps = [m for m in metrics(out) if "loss" in m]
    vals = [m["val_loss"] for m in metrics(out) if "val_tokens" in m]
    nats = math.log(min(509, keys["model.vocab"]))
    # a loss sums the weights of its targets, which are at most 1.75
    expect(all(0 < m["loss"] < 1.75 * nats + 1 for m in steps), [m["loss"] for m in steps])
    expect(len(vals) >= 1 and all(0 < v < nats + 1 for v in vals), vals)
    expect(len(steps) == len(tokens), f"{len(steps)} steps, of {len(tokens)} of all stages")
    sums = [sum(tokens[:i + 1]) for i in range(len(tokens))]
    expect([m["tokens"] for m in steps] == sums, f"tokens {[m['tokens'] for m in steps]}, stages say {sums}")


def plan(spec, keys):
    call("plan", spec)


def tried(spec, quick):
    """A spec unlike those before it: what was tried, what could not be, what failed"""
    done, missing, bad = ["check", "emit"], [], []
    for f in (plan, verify, train) if quick else (plan, verify, width, compile, train):
        try:
            f(spec, resolved(spec))
            done.append(f.__name__)
        except NoTool as e:
            missing.append(f"{f.__name__}: {e}")
        except Exception as e:
            bad.append(f"{f.__name__}: {type(e).__name__}: {e}")
    return done, missing, bad


def equal(spec, other):
    """Differs from other in nothing that a kernel sees."""
    verdict, keys, kernels = difference(spec, other)
    a, b = seen(resolved(spec)), seen(resolved(other))
    expect(a == b, "kernels may see", {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)})
    expect(not kernels, "no key that a kernel sees differs, and kernels do:", keys)


def same(a, b):
    verdict, _, _ = difference(HERE / f"{a}.yaml", HERE / f"{b}.yaml")
    expect(verdict == "same model, same kernels", verdict)


def only(a, b, which):
    verdict, keys, _ = difference(HERE / f"{a}.yaml", HERE / f"{b}.yaml")
    expect(keys == which, f"{verdict}: {keys}, not {which}")


def settings(keys, name):
    """Optimizer, every, rate, betas and weight decay of a parameter: docs/spec.md, Groups"""
    matrix = re.search(r"(^embed|^head|attn\.(qkv|out|value_embed)|mlp\.(up|down)|\.table)$", name)
    p = {k: keys[f"optim.{k}"] for k in ("kind", "every", "betas", "weight_decay")}
    p.update(lr=keys["train.lr"], lr_mul=1, weight_decay=p["weight_decay"] if matrix else 0)
    own = re.sub(r"\.coef$", "", name)
    p.update({k: keys[f"{own}.{k}"] for k in ("lr_mul", "betas") if f"{own}.{k}" in keys})
    for at in dict.fromkeys(re.match(r"optim\.groups\.\w+\.", k)[0] for k in keys if k.startswith("optim.groups.")):
        if any(fnmatch.fnmatchcase(name, m) for m in keys[at + "match"].split("|")):
            p.update({k: keys[at + k] for k in p if at + k in keys})
    return p["kind"], p["every"], round(p["lr"] * p["lr_mul"], 9), tuple(p["betas"]), round(p["weight_decay"], 9)


# of modded-nanogpt's table, the decay of `down` halved since it is its rate that is doubled
ADAM = {"embed|head": (0.008, (0.5, 0.95), 0.75), "layers.*.attn.value_embed|hc.sources.bigram.table": (0.6, (0.75, 0.95), 0.025),
        "layers.*.attn.gate|layers.*.attn.value_gate": (0.008, (0.9, 0.99), 0.005),
        "layers.*.attn.sa_lambda|smear.lambda|hc.resid_lambda|hc.sources.bigram.coef|hc.skips.skip.gate"
        "|hc.backouts.backout.gate": (0.04, (0.9, 0.99), 0),
        "hc.sources.x0.coef": (0.04, (0.65, 0.95), 0), "smear.weight": (8e-5, (0.9, 0.99), 0),
        "hc.skips.skip.gate_weight": (4e-4, (0.9, 0.99), 0)}
NORMUON = {"layers.*.attn.qkv|layers.*.attn.out|layers.*.mlp.up": (0.023, 1.2), "layers.*.mlp.down": (0.046, 0.6)}


def settings_of_the_base():
    """Every parameter of the base has its optimizer; coefficients of the lanes have none of the base's."""
    keys = resolved(HERE / "baseline.yaml")
    want = {m: ("cautious_adam", 2, *x) for ms, x in ADAM.items() for m in ms.split("|")}
    want.update({m: ("normuon", 1, lr, (0, 0.95), wd) for ms, (lr, wd) in NORMUON.items() for m in ms.split("|")})
    names = [line.split()[0] for line in call("check", HERE / "baseline.yaml", "--params").splitlines()]
    expect(len(names) > 80, names)
    for name in names:
        is_ = settings(keys, name)
        expect([is_] == [w for m, w in want.items() if fnmatch.fnmatchcase(name, m)], name, is_)
    for spec, x0, beta2 in ("exp20", 0.008, 0.99), ("exp44", 0.008, 0.95), ("exp10", 0.04, 0.99):
        keys = resolved(HERE / f"{spec}.yaml")
        for name, lr in ("hc.post", 0.008), ("hc.resid_lambda", 0.04), ("hc.sources.x0.coef", x0):
            expect(settings(keys, name) == ("cautious_adam", 2, lr, (0.9, beta2), 0), spec, name, settings(keys, name))


def raises(f, *args):
    try:
        f(*args)
    except AssertionError:
        return
    raise AssertionError(f"{f.__name__} passes with {args}")


def a_difference_is_seen():
    """That this program can fail."""
    raises(same, "exp28", "exp27")
    raises(only, "exp30", "exp28", {"train.steps"})
    raises(equal, HERE / "exp28.yaml", HERE / "exp27.yaml")
    for text in "hc.lanes: 9", "hc.sources.bigram.frist: both", "train.stages.second.seq_len: 5000":
        broken = folder() / "broken.yaml"
        broken.write_text(f"extends: {os.path.relpath(HERE / 'exp20.yaml', folder())}\n{text}\n")
        raises(resolved.__wrapped__, broken)


# ---- all --------------------------------------------------------------------

class Counts:
    passed = failed = skipped = 0


def report(name, began, done, missing=(), bad=()):
    took = time.time() - began
    if bad:
        Counts.failed += 1
        print(f"FAIL {name:20} {took:4.0f} s  {' '.join(done)}; not " + "\n    ".join(bad), flush=True)
    else:
        Counts.passed += 1
        print(f"ok {name:22} {took:4.0f} s  {' '.join(done)}", flush=True)
    for m in missing:
        Counts.skipped += 1
        print(f"skip {name} {m}", flush=True)


def one(name, f, *args):
    """A case that passes or raises."""
    began = time.time()
    try:
        f(*args)
        report(name, began, [])
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1].lineno
        report(name, began, [], bad=[f"line {at}: {type(e).__name__}: {e}"])


def spec_case(spec, first, quick, named):
    """check and emit were tried already: first is the spec with what kernels see, or an error"""
    began = time.time()
    try:
        if isinstance(first, Exception):
            raise first
        if quick and not named and spec.stem not in QUICK:
            report(spec.stem, began, ["check", "emit"])
        elif first == spec:
            report(spec.stem, began, *tried(spec, quick))
        else:
            equal(spec, first)
            report(spec.stem, began, ["check", "emit", "as", first.stem])
    except Exception as e:
        report(spec.stem, began, [], bad=[f"{type(e).__name__}: {e}"])


def attempt(spec):
    try:
        return resolved(spec)
    except Exception as e:
        return e


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--quick", action="store_true")
    p.add_argument("--jobs", type=int, default=os.cpu_count())
    p.add_argument("spec", nargs="*", type=pathlib.Path)
    args = p.parse_args()
    os.environ.setdefault("HCGEN_CACHE", str(ROOT / "build/cache"))
    (ROOT / "build/cache").mkdir(mode=0o700, exist_ok=True)
    specs = sorted([s.resolve() for s in args.spec] or HERE.glob("*.yaml"), key=lambda s: (chain(s), s.stem))
    with ThreadPoolExecutor(args.jobs) as pool:
        keys = dict(zip(specs, pool.map(attempt, specs)))
        like = {}
        for s in specs:
            k = keys[s] if isinstance(keys[s], Exception) else frozenset((k, str(v)) for k, v in seen(keys[s]).items())
            keys[s] = k if isinstance(k, Exception) else like.setdefault(k, s)
        jobs = [pool.submit(spec_case, s, keys[s], args.quick, bool(args.spec)) for s in specs]
        if not args.spec:
            jobs += [pool.submit(one, f"{a} is {b}", same, a, b) for a, b in SAME]
            jobs += [pool.submit(one, f"{a} of {b}", only, a, b, which) for a, b, which in ONLY]
        for j in jobs:
            j.result()
    if not args.spec:
        one("settings of the base", settings_of_the_base)
        one("a difference is seen", a_difference_is_seen)
    print(f"{Counts.passed} passed, {Counts.failed} failed, {Counts.skipped} skipped")
    sys.exit(Counts.failed > 0 or not Counts.passed)


if __name__ == "__main__":
    main()
