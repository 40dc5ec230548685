"""Random specs through every comparison there is; see CHECKS below.

    soak.py [N] [--seed S] [--quick] [--keep] [--hcgen PATH] [-O LEVEL]

One line per spec, then how far bf16 runs are from float64 beside the oracle's
own bf16 run, then `N passed, N failed, N skipped`.  Spec i is that of seed
S + i.  What a failing spec needs to be repeated stays in /tmp.
"""
import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [HERE, os.path.join(HERE, "oracle")]

try:
    import torch
    from torch.overrides import TorchFunctionMode
except ImportError:
    torch, TorchFunctionMode = None, object

import randspec  # noqa: E402

if torch:
    import data
    import init
    import optim
    import oracle
    import safetensors
    import spec as specs
    import stages
    import train
    from data import write_shard
    from model import Model
    from parameters import parameters

# ---- closeness ------------------------------------------------------------
#
# A gradient G is compared by |got - want| <= relative * |G| + floor * |M|, norms
# over the tensor.  M is the sum of the magnitudes of the products that were
# added: sum |g * x| over rows and channels for a coefficient or gate that
# multiplies x (Weigh, below).  It is 0 for other tensors, whose entries are
# sums of their own and do not all cancel.  A coefficient in front of something
# that is normalised later has |G| of the order of norm_eps * |M|.
#
# Such a sum carries the errors of its terms, which are relative to M: a term is
# an activation times a gradient, each off by what the network behind it left.
# That is 1e-6 at most in float32 (16 units of 2^-24; PyTorch in float32 has the
# same) and 1e-14 in float64, over some hundred specs.  Errors of many terms
# mostly cancel.  The floors are twice and a hundred times that.

DOUBLE = (1e-10, 1e-12)         # the graph in double, and the oracle in float64
SINGLE = (1e-5, 2e-6)           # kernels with f32 storage and products
# or twice the error of the oracle's own eager float32 run (eager_error, below)


class Failed(Exception):
    pass


def distance(got, want):
    return (got.double() - want.double()).norm().item()


def excess(got, want, weights, relative, floor):
    """The error as a multiple of what is allowed."""
    error = distance(got, want)
    allowed = relative * want.norm().item() + floor * weights
    return error / allowed if allowed > 0 else (math.inf if error > 0 else 0.0)


# ---- the oracle -----------------------------------------------------------

class _Product(torch.autograd.Function if torch else object):
    """x * c, where `weigh` is told the magnitudes that the gradient of c sums, per entry of c."""

    @staticmethod
    def forward(ctx, x, c, weigh):
        ctx.save_for_backward(x, c)
        ctx.weigh = weigh
        return x * c

    @staticmethod
    def backward(ctx, g):
        x, c = ctx.saved_tensors
        terms = g * x
        ctx.weigh(terms.abs().sum_to_size(c.shape))
        return g * c, terms.sum_to_size(c.shape), None


def leaf(c):
    """The parameter that c is an entry of (or a function of one), and which entry."""
    node, at = c.grad_fn, 0
    if node is None:
        return c, 0
    if node.name() == "UnbindBackward0":
        at = c.output_nr
    while node is not None and not hasattr(node, "variable"):
        node = node.next_functions[0][0] if node.next_functions else None
    return (node.variable if node else None), at


class Weigh(TorchFunctionMode):
    """While active, products with an entry of a parameter or with a gate are weighed."""

    def __init__(self, params):
        super().__init__()
        self.name = {id(p): name for name, p in params.items()}
        self.cells = {name: torch.zeros(p.numel(), dtype=torch.float64)
                      for name, p in params.items()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("mul", "__mul__", "__rmul__") and len(args) == 2 \
                and all(isinstance(a, torch.Tensor) for a in args):
            x, c = args if args[1].dim() == 0 or hasattr(args[1], "token_gate") else args[::-1]
            weigh = self.recorder(c) if x.dim() > 0 and c.requires_grad else None
            if weigh:
                return _Product.apply(x, c, weigh)
        return func(*args, **(kwargs or {}))

    def recorder(self, c):
        """What notes the magnitudes for the parameter behind c."""
        if hasattr(c, "token_gate"):
            base, x0 = c.token_gate
            gate = c.detach()

            def record(weights):
                # the derivative of a gate by g, or by W . x0, is at most the gate
                weights = weights * gate
                if base in self.cells:
                    self.cells[base] += weights.sum()
                self.cells[base + "_weight"] += (weights * x0.abs()).flatten(0, 1).sum(0)
            return record
        p, at = leaf(c) if c.dim() == 0 else (None, 0)
        if id(p) not in self.name:
            return None
        cell = self.cells[self.name[id(p)]]

        def record(weights):
            cell[at] += weights
        return record


class Weighed(Model if torch else object):
    """The oracle's model; gates per token say so."""

    def _gate(self, run, kind, name, gate):
        g = super()._gate(run, kind, name, gate)
        if gate.kind == "token":
            g.token_gate = f"hc.{kind}.{name}.gate", run.x0[..., :gate.channels].detach()
        return g


def weighed_gradients(spec, values, tokens, targets):
    """float64 loss, gradients and logits, and |M| of every parameter."""
    params = {k: v.double().requires_grad_() for k, v in values.items()}
    weigh = Weigh(params)
    with weigh:
        model = Weighed(spec, torch.float64)
        stage = stages.named(spec)
        model.enter(stage)
        loss = model.loss(params, tokens, targets, stage.weights(stage.first))
        loss.backward()
        with torch.no_grad():
            z = model.logits(params, tokens)
    out = {"loss": loss.detach(), "logits": z.detach().flatten(0, 1)}
    for name, p in params.items():
        out["grad." + name] = torch.zeros_like(p) if p.grad is None else p.grad
    return out, {"grad." + k: v.norm().item() for k, v in weigh.cells.items()}


def token_shard(path, spec, seed):
    """One micro-batch and a token more, documents included where bos is a token."""
    draw = torch.Generator().manual_seed(seed)
    count = stages.named(spec).tokens + 1
    write_shard(path, random_tokens(spec, count, draw).numpy())


def random_tokens(spec, count, draw):
    tokens = torch.randint(spec.model.vocab, (count,), generator=draw)
    if spec.data.bos < spec.model.vocab:
        tokens[torch.rand(count, generator=draw) < 1 / 9] = spec.data.bos
    return tokens


# ---- hcgen ----------------------------------------------------------------

class Hcgen:
    """The program, with a cheap compiler and a cache of its own."""

    def __init__(self, binary, folder, level):
        self.binary = binary
        self.cache = os.path.join(folder, "cache")
        # compiling dominates: -O3 takes twice the time of -O0, and what is tested is the text
        wrapper = os.path.join(folder, "cc")
        with open(wrapper, "w") as f:
            f.write(f'#!/bin/sh\nfor a; do shift; [ "$a" = -O3 ] && a=-O{level}; '
                    'set -- "$@" "$a"; done\nexec gcc "$@"\n')
        os.chmod(wrapper, 0o755)
        self.environment = dict(os.environ, HCGEN_CACHE=self.cache, CC=wrapper)

    def __call__(self, *args):
        r = subprocess.run([self.binary, *map(str, args)], env=self.environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
        if r.returncode != 0:
            said = [line for line in (r.stdout + r.stderr).splitlines()
                    if re.search("FAIL|error|bug|rror:", line)] or [r.stderr[-300:]]
            raise Failed(f"hcgen {args[0]}: exit {r.returncode}: {'; '.join(said[:4])}")
        return r.stdout


def precision(storage, gemm=None):
    return ["--set", f"numerics.storage={storage}", "--set", f"numerics.gemm={gemm or storage}"]


def same_bytes(a, b, what):
    with open(a, "rb") as f, open(b, "rb") as g:
        if f.read() != g.read():
            raise Failed(what)


# ---- what is checked ------------------------------------------------------

class Case:
    """One spec in its folder."""

    def __init__(self, hcgen, folder, seed):
        self.hcgen, self.folder, self.seed = hcgen, folder, seed
        self.spec_path = self.path("spec.yaml")
        with open(self.spec_path, "w") as f:
            f.write(randspec.text(seed))
        self.spec = None
        self.pool = []          # of bf16: (class, error of the kernels, of the oracle)
        self.eager32 = None
        self.errors = {}        # comparison -> worst error, for the line
        self.used = {}          # comparison -> most of its tolerance that was used

    def path(self, name):
        return os.path.join(self.folder, name)

    def prepare(self):
        self.spec = specs.read(self.spec_path)
        token_shard(self.path("tokens.bin"), self.spec, self.seed)
        safetensors.save(self.path("params.st"), init.random(self.spec, self.seed))
        self.values = oracle.load_params(self.spec, self.path("params.st"))
        self.batch = oracle.micro_batch(self.spec, stages.named(self.spec), self.path("tokens.bin"))
        self.want, self.weights = weighed_gradients(self.spec, self.values, *self.batch)

    def verify(self, dump, *options):
        """One forward and backward on this case's parameters and tokens; what it dumped."""
        self.hcgen("verify", self.spec_path, "--params", self.path("params.st"),
                   "--tokens", self.path("tokens.bin"), "--dump", self.path(dump), *options)
        return safetensors.load(self.path(dump))

    def eager_error(self, name):
        """Error of eager float32 PyTorch on a tensor: a net may amplify the rounding of its first layers
        by more than the tolerance has room for, and then it does so for everybody."""
        if self.eager32 is None:
            copies = {k: v.clone() for k, v in self.values.items()}
            self.eager32 = oracle.gradients(self.spec, copies, *self.batch, torch.float32)
        return distance(self.eager32[name], self.want[name])

    def compare(self, what, got, tolerance):
        """Every tensor within the tolerance; the worst relative error is noted."""
        missing = set(self.want) - {"logits"} ^ set(got) - {"logits"}
        if missing:
            raise Failed(f"{what}: {min(missing)} is on one side only")
        worst, most, bad = 0.0, 0.0, []
        for name in got:
            want, weight = self.want[name], self.weights.get(name, 0.0)
            if got[name].shape != want.shape:
                raise Failed(f"{what}: {name} has shape {list(got[name].shape)}")
            size = max(want.norm().item(), weight)
            error = distance(got[name], want)
            worst = max(worst, error / size if size else (math.inf if error else 0))
            over = excess(got[name], want, weight, *tolerance)
            most = max(most, over)
            if not over <= 1 and not (what == "f32" and error <= 2 * self.eager_error(name)):
                bad.append(f"{name} {error:.2g} of {want.norm().item():.3g} "
                           f"(magnitudes {weight:.3g})")
        self.errors[what] = worst
        self.used[what] = most
        if bad:
            raise Failed(f"{what}: " + "; ".join(bad[:5]) + ("; ..." if bad[5:] else ""))

    # each check is a method; a failure of one does not hide those after it

    def check(self):
        """accepted, and emitted twice to the same bytes"""
        self.hcgen("check", self.spec_path)
        for out in "ab":
            self.hcgen("emit", self.spec_path, "-o", self.path(out), "--quiet")
        files = [sorted(os.path.relpath(os.path.join(at, f), self.path(out))
                        for at, _, names in os.walk(self.path(out)) for f in names)
                 for out in "ab"]
        if files[0] != files[1]:
            raise Failed("emit: twice, different files")
        for name in files[0]:
            same_bytes(os.path.join(self.path("a"), name), os.path.join(self.path("b"), name),
                       f"emit: twice, {name} differs")

    def check_parameters(self):
        """names, shapes, initial values and optimizer settings are the oracle's"""
        manifest = manifest_parameters(self.path("a/manifest"))
        wanted = {p.name: p for p in parameters(self.spec)}
        if set(manifest) != set(wanted):
            raise Failed(f"parameters: {min(set(manifest) ^ set(wanted))} on one side only")
        for name, p in wanted.items():
            shape, values, adam = manifest[name]
            if shape != p.shape:
                raise Failed(f"parameters: {name} is {shape}, the oracle's {p.shape}")
            check_initial(p, values)
            check_settings(self.spec, p, adam)

    def check_double(self):
        """the graph interpreted in double against the oracle in float64"""
        got = self.verify("double.st", "--reference")
        self.compare("double", got, DOUBLE)

    def check_single(self):
        """emitted kernels in f32 against the oracle in float64; same bits on 1 and 2 threads"""
        got = self.verify("f32.st", "--logits", "--threads", 1, *precision("f32"))
        self.verify("f32b.st", "--logits", "--threads", 2, *precision("f32"))
        same_bytes(self.path("f32.st"), self.path("f32b.st"), "f32: 1 and 2 threads differ")
        self.compare("f32", got, SINGLE)

    def check_steps(self):
        """hcgen verify, in the spec's own precisions"""
        self.hcgen("verify", self.spec_path, "--seed", self.seed)

    def check_bf16(self):
        """emitted kernels in bf16: same bits twice; errors are pooled over all specs"""
        got = self.verify("bf16.st", "--threads", 2, *precision("bf16"))
        self.verify("bf16b.st", "--threads", 2, *precision("bf16"))
        same_bytes(self.path("bf16.st"), self.path("bf16b.st"), "bf16: two runs differ")
        copies = {k: v.clone() for k, v in self.values.items()}     # made leaves in place
        eager = oracle.gradients(self.spec, copies, *self.batch, torch.bfloat16)
        for p in parameters(self.spec):
            name = "grad." + p.name
            want, weight = self.want[name], self.weights[name]
            size = max(want.norm().item(), weight)
            if size > 0:
                self.pool.append((group(p), distance(got[name], want) / size,
                                  distance(eager[name], want) / size))

    def check_training(self):
        """losses, validation, learning rates and norms of a short run; the values it starts from"""
        t, parts = self.spec.train, stages.stages(self.spec)
        seq = max([s.seq_len for s in parts] + [t.val_seq_len])
        steps, tokens = parts[-1].end, sum((s.end - s.first) * s.tokens_per_step for s in parts)
        draw = torch.Generator().manual_seed(self.seed)
        # at times less than one epoch; max_doc may leave one token of ten
        sizes = {"train.bin": tokens * 2 // 3 + 20 * (seq + 1), "val.bin": 40 * t.val_batch + 20 * (seq + 1)}
        for name, count in sizes.items():
            write_shard(self.path(name), random_tokens(self.spec, count, draw).numpy())
        more = precision("f32") + ["--set", "data.val=val.bin", "--set", f"train.val_tokens={2 * t.val_batch}",
                                   "--set", f"train.val_every={(steps + 1) // 2}",
                                   "--set", "train.log_every=1"]
        out = self.path("out")
        self.hcgen("train", self.spec_path, "-o", out, "--quiet", "--set", "train.steps=0",
                   "--set", "train.warmup=0")
        have = safetensors.load(os.path.join(out, "run", "final.safetensors"))
        for name, want in init.initial(self.spec).items():
            if not same_init(have[name], want):
                raise Failed(f"train: initial {name} differs by {distance(have[name], want):.2g}")
        shutil.rmtree(out)
        self.hcgen("train", self.spec_path, "-o", out, "--quiet", "--params",
                   self.path("params.st"), *more)
        compare_curves(metrics(os.path.join(out, "run", "metrics.jsonl")),
                       self.oracle_curve([a for a in more if a != "--set"]))

    def oracle_curve(self, settings):
        """(kind, step) -> values, as metrics() gives them."""
        spec = specs.read(self.spec_path, settings)
        params = train.leaves(self.values, torch.float64)
        trainer = train.Trainer(spec, params, torch.float64)
        reader, val = data.Reader(spec), train.validation_rows(spec)
        t, out, steps = spec.train, {}, trainer.stages[-1].end
        for step in range(steps):
            stage = trainer.stage
            batches = [reader.take(trainer.rows, stage.seq_len, stage.max_doc)
                       for _ in range(stage.micro_batches)]
            out["loss", step + 1] = trainer.step(batches)
            out["lr", step + 1] = t.lr * optim.schedule(t, step, stage.lr_mul)
            if trainer.norm is not None:
                out["norm", step + 1] = trainer.norm
            if (step + 1) % t.val_every == 0 or step + 1 == steps:
                out["val_loss", step + 1] = trainer.validate(val)
        return out

    CHECKS = (check, check_parameters, check_double, check_single, check_steps, check_bf16,
              check_training)

    def run(self):
        """The failures, one text each."""
        bad = []
        try:
            self.prepare()
        except Exception as e:
            return [f"oracle: {type(e).__name__}: {e}"]
        for check in self.CHECKS:
            try:
                check(self)
            except Exception as e:      # whatever it is, other specs wait
                bad.append(str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}")
                if check is Case.check:
                    break
        return bad


def manifest_parameters(path):
    """name -> (shape, init words, [lr, b1, b2, eps, wd]) from an emitted manifest."""
    out, place = {}, {}
    with open(path) as f:
        for line in f:
            word = line.split()
            if word[0] == "param":
                name, _, shape, at = word[1:5]
                out[name] = (tuple(map(int, shape.split(","))), word[6:], [])
                place[at] = name
            elif word[0] == "launch" and word[1].startswith(("adamw", "cautious_adam")) and "tied" not in word[1]:
                args = word[word.index(":") + 1:]
                numbers = [float(a[1:]) for a in args if re.match(r"f[-+0-9.]", a)]
                out[place[args[0]]][2].extend(numbers)
    return out


def check_initial(p, words):
    if words[:2] == ["like", "head"]:
        return          # a run shows it
    kind, numbers = words[0], [float(w) for w in words[1:] if w not in ("bf16", "upper")]
    if p.values is None:
        good = kind in ("normal", "uniform") and abs(numbers[0] - p.std) <= 1e-15 * p.std \
            or p.std == 0 and numbers[0] == 0
    else:
        want = torch.tensor(p.values).flatten().float()
        have = torch.tensor(numbers, dtype=torch.float64).float()
        good = torch.equal(have.expand_as(want) if kind == "const" else have, want)
    if not good:
        raise Failed(f"parameters: {p.name} starts as {' '.join(words)[:60]}")


def check_settings(spec, p, adam):
    """Learning rate, betas, eps and decay of the emitted AdamW step."""
    s = optim.settings(spec, p)
    want = [s["lr"] * s["lr_mul"], *s["betas"], s["eps"], s["weight_decay"]]
    # NorMuon's settings stand in its text: only a run shows them
    if s["kind"] == "normuon" and not adam or p.name in ("embed", "head") and spec.train.get("untie"):
        return
    if len(adam) != 5 or any(abs(a - b) > 1e-14 * abs(b) for a, b in zip(adam, want)):
        raise Failed(f"parameters: {p.name} is trained with {adam}, the oracle's {want}")


def same_init(have, want):
    """Bit for bit but for the last bit of a float32 here and there, where the
    logarithm or cosine of two libraries differs."""
    return have.shape == want.shape and torch.equal(have.float(), want) or \
        (have - want).abs().max() <= 2 ** -23 * want.abs().max() and \
        (have != want).double().mean() < 0.01


def metrics(path):
    """(kind, step) -> value, from metrics.jsonl."""
    out = {}
    with open(path) as f:
        for line in map(json.loads, f):
            for kind in ("loss", "lr", "norm", "val_loss"):
                if kind in line and "step" in line:
                    out[kind, line["step"]] = line[kind]
    return out


# AdamW divides a gradient by its own size: where it is rounding noise the
# parameter still moves by a whole lr.  Such parameters hardly act on the loss,
# but rounding grows from step to step; a wrong step, schedule or order of data is
# off by 1e-3 or more at once.
CURVE = {"loss": 1e-4, "val_loss": 1e-4, "norm": 1e-2, "lr": 1e-6}
CURVE_STEPS = 4


def compare_curves(have, want):
    for (kind, step), value in want.items():
        if (kind, step) not in have:
            raise Failed(f"train: no {kind} at step {step}")
        error = abs(have[kind, step] - value)
        if (kind == "lr" or step <= CURVE_STEPS) and not error <= CURVE[kind] * abs(value):
            raise Failed(f"train: step {step}: {kind} {have[kind, step]:.9g}, "
                         f"the oracle's {value:.9g}")


# ---- bf16, pooled ---------------------------------------------------------

def group(p):
    """The class in which a tensor's errors are pooled."""
    if p.role in ("norm", "gate"):
        return {"norm": "norm weights", "gate": "gates"}[p.role]
    if p.role == "gate_weight":
        return "gate weights"
    if p.role == "matrix":
        return "tables" if p.name == "embed" or p.name.endswith(".table") else "matrices"
    if p.name.startswith("hc.sources."):
        return "source coefficients"
    return p.name


LEAST = 8       # tensors of a class before its ratio means anything


def pooled(pool):
    """Prints the table; how many classes are too far off.

    An error is relative to the larger of |G| and |M|, so that a sum that
    cancels is held against its terms, and at most 1.  Pooled is the root of the
    mean square.  Up to one bf16 ulp (2^-8) it is good whatever the oracle has."""
    bad = 0
    print(f"\n{'bf16, error against float64':28} {'tensors':>7} {'kernels':>9} "
          f"{'oracle':>9} {'ratio':>6} {'median':>7}")
    for name in sorted({g for g, _, _ in pool}):
        pairs = [(min(a, 1), min(b, 1)) for g, a, b in pool if g == name]
        ours, eager = (math.sqrt(sum(e * e for e in es) / len(es)) for es in zip(*pairs))
        ratios = sorted(a / b for a, b in pairs if b > 0) or [0.0]
        far = len(pairs) >= LEAST and ours > max(2 * eager, 2 ** -8)
        bad += far
        print(f"{name:28} {len(pairs):7} {ours:9.2e} {eager:9.2e} "
              f"{ours / eager if eager else math.inf:6.2f} {ratios[len(ratios) // 2]:7.2f}"
              f"{'  FAIL' if far else '  (few)' if len(pairs) < LEAST else ''}")
    return bad


# ---- the whole ------------------------------------------------------------

def describe(spec):
    m, hc = spec.model, spec.hc
    rows = spec.train.tokens_per_step // spec.train.micro_batches // spec.train.seq_len
    return (f"L{m.layers} C{m.width} H{m.heads}/{m.kv_heads}x{m.head_dim} V{m.vocab} "
            f"n{hc.lanes} {rows}x{spec.train.seq_len} "
            f"{len(hc.sources)}+{len(hc.skips)}+{len(hc.backouts)}")


def arguments():
    p = argparse.ArgumentParser(description="Random specs through every comparison.")
    p.add_argument("count", nargs="?", type=int)
    p.add_argument("--seed", type=int, default=0, help="of the first spec")
    p.add_argument("--quick", action="store_true", help="20 specs")
    p.add_argument("--keep", action="store_true", help="keep the folders of good specs too")
    p.add_argument("--hcgen", default=os.path.join(ROOT, "build", "hcgen"))
    p.add_argument("-O", dest="level", type=int, choices=(0, 1, 2, 3),
                   help="of the kernels: default 1, with --quick 0")
    return p.parse_args()


def unable(args):
    """Why nothing can be compared here, or None."""
    if not torch:
        return "PyTorch is missing"
    if not shutil.which("gcc"):
        return "gcc is missing"
    return None if os.access(args.hcgen, os.X_OK) else f"{args.hcgen} is missing"


def soak_one(hcgen, top, seed, keep):
    """The case of a seed and what failed in it, reported."""
    folder, start = os.path.join(top, str(seed)), time.time()
    os.mkdir(folder)
    case = Case(hcgen, folder, seed)
    bad = case.run()
    errors = " ".join(f"{what} {error:.0e}" for what, error in case.errors.items())
    print(f"{seed:6} {'FAIL' if bad else 'ok  '} {describe(case.spec) if case.spec else '':46} "
          f"{errors:26} {time.time() - start:4.1f} s", flush=True)
    for text in bad:
        print(f"       {text}")
    if bad:
        print(f"       {folder}; again: tests/soak.py 1 --seed {seed}", flush=True)
    elif not keep:
        shutil.rmtree(folder)
    shutil.rmtree(hcgen.cache, ignore_errors=True)
    return case, bad


def main():
    args = arguments()
    count = args.count or (20 if args.quick else 100)
    why = unable(args)
    if why:
        print(f"soak: {why}\n0 passed, 0 failed, {count} skipped")
        return 0
    torch.set_num_threads(1)
    top = tempfile.mkdtemp(prefix="hcgen-soak-")
    level = args.level if args.level is not None else 0 if args.quick else 1
    hcgen = Hcgen(args.hcgen, top, level)
    failed, pool, used = 0, [], {}
    for seed in range(args.seed, args.seed + count):
        case, bad = soak_one(hcgen, top, seed, args.keep)
        failed += bool(bad)
        pool += case.pool
        for what, part in case.used.items():
            used[what] = max(used.get(what, 0.0), part)
    passed = count - failed
    failed += pooled(pool) if pool else 0
    print("\nmost of a tolerance that was used: "
          + ", ".join(f"{what} {part:.2g}" for what, part in used.items()))
    if not failed and not args.keep:
        shutil.rmtree(top)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
