"""The optimizers of a spec: schedules, groups, clipping, and the update of each kind.

    optim.py step SPEC --step T --state IN.safetensors --out OUT.safetensors
                  [--set a.b=v ...] [--dtype float64|float32]

step: the update of step T alone.  Both files hold param.NAME, grad.NAME, moment1.NAME and
moment2.NAME; what IN lacks besides parameters is zero.  A gradient is the sum since the
parameter's last update, and zero after it.  The moments of NorMuon are M, of the parameter's
shape, and s, one number per row of the parameter; how often a parameter was updated before
follows from T.
"""
import argparse
import math
import re
import sys

import torch

import safetensors
import spec as specs
from parameters import parameters
from stages import at, named, stages

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# a, b, c of the five iterations
POLAR = ((8.156554524902461, -22.48329292557795, 15.878769915207462),
         (4.042929935166739, -2.808917465908714, 0.5000178451051316),
         (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
         (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
         (2.3465413258596377, -1.7097828382687081, 0.42323551169305323))


# ---- schedules ------------------------------------------------------------

def schedule(train, t, mul=1.0):
    """s(t); mul is the lr_mul of the stage that holds step t."""
    W, N = train.warmup, train.steps
    warm = (t + 1) / W if t < W else 1.0
    c = math.floor(N * (1 - train.cooldown))
    if train.cooldown_kind == "constant" or c == N:
        return warm * mul
    x = min(1.0, max(0.0, (t - c) / (N - c)))
    f = x if train.cooldown_kind == "linear" else 0.5 * (1 - math.cos(math.pi * x))
    return warm * (mul * (1 - f) + train.floor * f)


def momentum(spec, t):
    """mu of NorMuon at step t; less near both ends of the run."""
    n, last = spec.optim.normuon, stages(spec)[-1].end
    A, E = n.momentum_warmup, n.momentum_cooldown
    if t < A:
        return n.momentum_start + (n.momentum - n.momentum_start) * t / A
    if t > last - E:
        return n.momentum - (n.momentum - n.momentum_start) * (t - (last - E)) / E
    return n.momentum


# ---- groups ---------------------------------------------------------------

def matches(patterns, name):
    """Globs of `*` and `?` alone, with `|` between them; fnmatch would also give `[` a meaning."""
    return any(re.fullmatch("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern),
                            name) for pattern in patterns.split("|"))


def settings(spec, param):
    """kind, every, lr, lr_mul, betas, eps and weight_decay of one parameter."""
    base = spec.optim
    out = {"kind": base.kind, "every": base.every, "lr": spec.train.lr, "lr_mul": 1.0,
           "betas": base.betas, "eps": base.eps,
           "weight_decay": base.weight_decay if param.decays else 0.0}
    if param.owner:
        out.update({k: param.owner[k] for k in ("lr_mul", "betas") if k in param.owner})
    for group in base.groups.values():
        if matches(group.match, param.name):
            out.update({k: group[k] for k in out if k in group})
    return out


_MATRIX = re.compile(r"layers\.\d+\.(attn\.(qkv|out)|mlp\.(up|down))")


def matrices(spec, name, rows):
    """Row counts of the matrices that NorMuon sees in a parameter of that many rows."""
    m = spec.model
    if name.endswith(".attn.qkv"):
        return [m.heads * m.head_dim] + [m.kv_heads * m.head_dim] * 2
    if name.endswith(".mlp.up") and m.mlp.kind == "swiglu":
        return [m.mlp.hidden] * 2
    return [rows]


def holds_bf16(spec, param):
    """Whether products read the parameter as bfloat16 numbers and Adam rounds what it writes."""
    return spec.numerics.params == "bf16" and param.role in ("matrix", "gate_weight")


# ---- types ----------------------------------------------------------------

def rounded(x):
    """To bfloat16, nearest even, in the type of x."""
    return x.float().bfloat16().to(x.dtype)


def truncated(x):
    """The upper 16 bits of float32 numbers, in the type of x."""
    return (x.float().contiguous().view(torch.int32) & -65536).view(torch.float32).to(x.dtype)


# ---- one update of each kind ----------------------------------------------

def _moments(gs, ms, vs, betas):
    b1, b2 = betas
    torch._foreach_mul_(ms, b1)
    torch._foreach_add_(ms, gs, alpha=1 - b1)
    torch._foreach_mul_(vs, b2)
    torch._foreach_addcmul_(vs, gs, gs, value=1 - b2)


def adamw(ps, gs, ms, vs, k, lr, betas, eps, decay):
    """The k-th update of a list of parameters, in place."""
    _moments(gs, ms, vs, betas)
    if decay:
        torch._foreach_mul_(ps, 1 - lr * decay)
    # sqrt(v / (1 - b2^k)) with the correction moved out of the root
    denom = torch._foreach_sqrt(vs)
    torch._foreach_div_(denom, math.sqrt(1 - betas[1] ** k))
    torch._foreach_add_(denom, eps)
    torch._foreach_addcdiv_(ps, ms, denom, value=-lr / (1 - betas[0] ** k))


def cautious_adam(ps, gs, ms, vs, k, lr, betas, eps, decay):
    """The same; eps is beside the uncorrected root, and what has no sign does not decay."""
    _moments(gs, ms, vs, betas)
    scale = lr * math.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k)
    for p, m, v in zip(ps, ms, vs):
        u = scale * m / (v.sqrt() + eps)
        p -= u + lr * lr * decay * p * (u * p > 0)


def polar(u, cast):
    """The orthogonal factor of u [R, K], nearly; every intermediate goes through cast once."""
    X = cast(u)
    X = cast(X / (1.02 * X.norm() + 1e-6))
    tall = X.shape[0] > X.shape[1]
    for a, b, c in POLAR:
        A = cast(X.T @ X if tall else X @ X.T)
        B = cast(b * A + c * (A @ A))
        X = cast(a * X + (X @ B if tall else B @ X))
    return X


def normuon(p, g, M, s, mu, lr, beta2, decay, cast):
    """One update of a matrix p [R, K] with state M [R, K] and s [R], in place."""
    R, K = p.shape
    M += (1 - mu) * (g - M)
    X = polar(g + mu * (M - g), cast)
    q = X.square().mean(1)
    s += (1 - beta2) * (q - s)
    k = s.clamp(min=1e-10).rsqrt()
    size, scaled = (K * q.sum()).sqrt(), (K * (q * k * k).sum()).sqrt()
    v = cast(X * k[:, None] * size / scaled.clamp(min=1e-10))
    eta = lr * math.sqrt(max(1.0, R / K))
    p -= eta * v + p * (lr * decay * eta) * (v * p >= 0)


# ---- all parameters -------------------------------------------------------

def clip_(grads, limit):
    """Scale the gradients in place to a global norm of at most limit; the norm before."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads]
    norm = torch.stack(norms).norm().item()
    torch._foreach_mul_(grads, min(1.0, limit / (norm + 1e-6)))
    return norm


class Rules:
    """What a spec does with which parameter at which step.  The state is the caller's, as dicts
    of tensors by name, and changed in place."""

    def __init__(self, spec):
        self.spec, self.stages, self.norm = spec, stages(spec), None
        self.rules = {p.name: settings(spec, p) for p in parameters(spec)}
        self.rounds = {p.name for p in parameters(spec) if holds_bf16(spec, p)
                       and self.rules[p.name]["kind"] != "normuon"}
        self.cast = rounded if spec.numerics.gemm == "bf16" else lambda x: x
        self.last_tied = self._last_tied()
        for name, rule in self.rules.items():
            if rule["kind"] == "normuon" and not _MATRIX.fullmatch(name):
                raise specs.SpecError(f"optim: {name} is no matrix for normuon")
            if rule["every"] > 1 and spec.train.clip > 0:
                raise specs.SpecError("train.clip: not together with every")

    def _last_tied(self):
        """The step whose update is the last that embed and head have in common, or -1."""
        if "untie" not in self.spec.train:
            return -1
        first = named(self.spec, self.spec.train.untie).first
        every = self.rules["head"]["every"]
        return (first // every + 1) * every - 1

    def due(self, t):
        """Names that step t updates, without an embed that is still one with head."""
        return [name for name, rule in self.rules.items() if (t + 1) % rule["every"] == 0
                and not (name == "embed" and t <= self.last_tied)]

    def count(self, name, t):
        """How many updates the parameter has had when that of step t is done."""
        every = self.rules[name]["every"]
        if name != "embed" or self.last_tied < 0:
            return (t + 1) // every
        shared = (self.last_tied + 1) // self.rules["head"]["every"]
        return shared + (t + 1) // every - (self.last_tied + 1) // every

    def moment2(self, name, param):
        """The second moment of a parameter that has none yet."""
        if self.rules[name]["kind"] == "normuon":
            return param.new_zeros(param.shape[0])
        return torch.zeros_like(param)

    @torch.no_grad()
    def update(self, t, params, grads, moment1, moment2):
        """The update of step t; the names whose gradients are now used up.

        Parameters of NorMuon are given with all their bits."""
        due, clip = self.due(t), self.spec.train.clip
        tied = t <= self.last_tied and "head" in due
        if tied:
            grads["head"] += grads["embed"]
        self.norm = clip_([grads[name] for name in due], clip) if clip > 0 else None
        groups = {}
        for name in due:
            rule = self.rules[name]
            key = (rule["kind"], rule["lr"] * rule["lr_mul"], *rule["betas"], rule["eps"],
                   rule["weight_decay"], self.count(name, t))
            groups.setdefault(key, []).append(name)
        for key, names in groups.items():
            self._update(t, key, names, params, grads, moment1, moment2)
        for name in self.rounds.intersection(due):
            params[name].copy_(rounded(params[name]))
        return due + (self._share(t, params, moment1, moment2) if tied else [])

    def _update(self, t, key, names, params, grads, moment1, moment2):
        kind, lr, b1, b2, eps, decay, k = key
        lr *= schedule(self.spec.train, t, at(self.stages, t).lr_mul)
        lists = [[x[name] for name in names] for x in (params, grads, moment1, moment2)]
        if kind != "normuon":
            update = adamw if kind == "adamw" else cautious_adam
            return update(*lists, k, lr, (b1, b2), eps, decay)
        mu = momentum(self.spec, t)
        for name, *tensors in zip(names, *lists):
            sizes = matrices(self.spec, name, len(tensors[0]))
            for parts in zip(*(x.split(sizes) for x in tensors)):
                normuon(*parts, mu, lr, b2, decay, self.cast)

    def _share(self, t, params, moment1, moment2):
        """What was done to head is done to embed; the moments only when they part."""
        params["embed"].copy_(params["head"])
        if t == self.last_tied:
            moment1["embed"].copy_(moment1["head"])
            moment2["embed"].copy_(moment2["head"])
        return ["embed"]


class Optimizer:
    """The rules with the state of a run, for parameters whose .grad autograd adds to.

    What a parameter's tensor holds is what products read; `whole` has those of which that is
    only the upper half."""

    def __init__(self, spec, tensors):
        self.rules, self.tensors, self.t = Rules(spec), tensors, 0
        if self.rules.last_tied >= 0:
            tensors["embed"].detach().copy_(tensors["head"])
        self.whole = {p.name: tensors[p.name].detach().clone() for p in parameters(spec)
                      if holds_bf16(spec, p) and p.name not in self.rules.rounds}
        plain = {k: v.detach() for k, v in tensors.items()}
        self.params = {**plain, **self.whole}
        self.moment1 = {k: torch.zeros_like(v) for k, v in plain.items()}
        self.moment2 = {k: self.rules.moment2(k, v) for k, v in plain.items()}
        self.used = list(tensors)
        self._narrow()

    def _narrow(self):
        for name, value in self.whole.items():
            self.tensors[name].detach().copy_(truncated(value))

    def clear(self):
        """Forget the gradients that the last step has used."""
        for name in self.used:
            self.tensors[name].grad = None
        self.used = []

    def step(self):
        """One update; the gradient's norm, if clipping."""
        for p in self.tensors.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = {k: p.grad for k, p in self.tensors.items()}
        self.used = self.rules.update(self.t, self.params, grads, self.moment1, self.moment2)
        self._narrow()
        self.t += 1
        return self.rules.norm


# ---- command line ---------------------------------------------------------

def one_step(spec, t, state):
    """The update of step t on param.NAME, grad.NAME, moment1.NAME, moment2.NAME, as a new dict."""
    rules = Rules(spec)
    split = {kind: {} for kind in ("param", "grad", "moment1", "moment2")}
    for p in parameters(spec):
        if "param." + p.name not in state:
            raise specs.SpecError(f"no param.{p.name} in the state")
        param = state["param." + p.name].clone()
        empty = {"param": param, "grad": torch.zeros_like(param),
                 "moment1": torch.zeros_like(param), "moment2": rules.moment2(p.name, param)}
        for kind, zero in empty.items():
            split[kind][p.name] = state[f"{kind}.{p.name}"].to(param, copy=True).view_as(zero) \
                if f"{kind}.{p.name}" in state else zero
    for name in rules.update(t, *split.values()):
        split["grad"][name].zero_()
    return {f"{kind}.{name}": x for kind, tensors in split.items() for name, x in tensors.items()}


def arguments():
    parser = argparse.ArgumentParser(description="One update of a spec's parameters.")
    p = parser.add_subparsers(dest="command", required=True).add_parser("step")
    p.add_argument("spec")
    p.add_argument("--step", type=int, required=True)
    p.add_argument("--state", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--set", action="append", default=[], metavar="a.b=v")
    p.add_argument("--dtype", choices=DTYPES, default="float64")
    return parser.parse_args()


def main():
    args = arguments()
    spec, dtype = specs.read(args.spec, args.set), DTYPES[args.dtype]
    state = {k: v.to(dtype) for k, v in safetensors.load(args.state).items()}
    safetensors.save(args.out, one_step(spec, args.step, state))


if __name__ == "__main__":
    try:
        main()
    except specs.SpecError as e:
        sys.exit(f"optim.py: {e}")
