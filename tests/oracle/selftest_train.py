"""The oracle's training against independent arithmetic: one line per case.

Schedules are compared with published samples of a run, optimizers with loops over
numbers and rows, the orthogonal factor with singular values, the order of data and of
calls with lists written out.
"""
import math
import os
import struct
import sys
from fractions import Fraction

import numpy as np
import torch

import data
import init
import optim
import safetensors
import stages
import testing
import train
from parameters import parameters
from testing import CASES, FOLDER, case, close, doubles, raises, read


# ---- specs used below -----------------------------------------------------

SMALL = """
extends: tiny.yaml
model.layers: 2
"""

# the schedules and optimizers of the published run, on a small model
RECORD = """
extends: small.yaml
model:
  attention: {scale: 0.1, window: 128, long_layers: [1], long_window: 384}
  rotary: {kind: adjacent, base: 1024, frequencies: endpoint, yarn: true}
hc:
  resid_lambda: {granularity: layer, site: before_read, lr_mul: 5, betas: [0.9, 0.99]}
  sources: {x0: {kind: x0, granularity: layer, site: before_read, lr_mul: 5, betas: [0.65, 0.95]}}
train:
  steps: 1515
  lr: 0.008
  cooldown: 0.55
  untie: c
  final: {long_window: 2560}
  stages:
    a: {targets: [1, 0.5, 0.25], targets_end: [1, 0.5, 0]}
    b: {lr_mul: 1.52, window: 384, long_window: 896, targets: [1, 0.5], targets_end: [1, 0]}
    c: {lr_mul: 1.73, window: 640, long_window: 1408}
    d: {steps: 40, window: 768, long_window: 1664}
optim:
  kind: cautious_adam
  every: 2
  eps: 1e-10
  weight_decay: 0.005
  normuon: {momentum_warmup: 300, momentum_cooldown: 50}
  groups:
    matrices: {match: "*.qkv|*.out|*.up|*.down", kind: normuon, every: 1, lr: 0.023, weight_decay: 1.2}
    down: {match: "*.down", lr_mul: 2}
    ends: {match: embed|head, betas: [0.5, 0.95], weight_decay: 0.75}
"""


def write_specs():
    testing.write_specs()
    for name, text in (("small", SMALL), ("record", RECORD)):
        with open(os.path.join(FOLDER.name, name + ".yaml"), "w") as f:
            f.write(text)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- schedules ------------------------------------------------------------

def s_of(spec, t):
    return optim.schedule(spec.train, t, stages.at(stages.stages(spec), t).lr_mul)


@case
def rate_of_the_record():
    s = read("record")
    published = {0: 1, 504: 1, 505: 1.52, 680: 1.52, 681: 1.52, 750: 1.40252, 1000: 0.97686,
                 1009: 0.96153, 1010: 1.08699, 1250: 0.61793, 1500: 0.12932, 1514: 0.10195,
                 1515: 0.1, 1554: 0.1}
    for t, want in published.items():
        assert abs(s_of(s, t) - want) < 5.01e-6, (t, s_of(s, t))
    assert s_of(s, 682) < 1.52
    # exactly, in rationals
    for t in range(1555):
        mul = Fraction("1") if t < 505 else Fraction("1.52") if t < 1010 else Fraction("1.73")
        f = min(Fraction(max(t - 681, 0), 834), 1)
        close(s_of(s, t), float(mul * (1 - f) + Fraction("0.1") * f), 1e-15)


@case
def floor_is_absolute():
    """The stage's factor has no part in it, neither at the end nor beyond."""
    s = read("record", "train.stages.d.lr_mul=3", "train.floor=0.15")
    close([s_of(s, 1515), s_of(s, 1554)], [0.15, 0.15], 1e-15)
    close(s_of(s, 1514), 1.73 / 834 + 0.15 * 833 / 834, 1e-15)


@case
def shapes_of_the_cooldown():
    t = read("small", "train.steps=10", "train.warmup=4", "train.cooldown=0.3").train
    close([optim.schedule(t, k) for k in range(12)],
          [.25, .5, .75, 1, 1, 1, 1, 1, .7, .4, .1, .1], 1e-15)
    # warmup multiplies what the cooldown has left
    t = read("small", "train.steps=4", "train.warmup=8", "train.cooldown=1", "train.floor=0.5",
             "train.cooldown_kind=cosine").train
    close([optim.schedule(t, k, 2.0) for k in range(4)],
          [(k + 1) / 8 * (2 - 1.5 * math.sin(math.pi * k / 8) ** 2) for k in range(4)], 1e-15)
    for words in (["train.cooldown_kind=constant"], ["train.cooldown=0"]):
        t = read("small", *words).train
        assert all(optim.schedule(t, k, 1.5) == 1.5 for k in range(1100))


@case
def cooldown_begins_at_a_floor_in_double():
    """10*(1 - 0.9) is just below 1 in float64, 1515*(1 - 0.55) is 681.75."""
    t = read("small", "train.steps=10", "train.cooldown=0.9", "train.floor=0").train
    close([optim.schedule(t, k) for k in range(3)], [1, 0.9, 0.8], 1e-15)
    t = read("small", "train.steps=9", "train.cooldown=0.5", "train.floor=0").train
    close([optim.schedule(t, k) for k in (4, 5, 8)], [1, 0.8, 0.2], 1e-15)


@case
def momentum_of_the_record():
    s = read("record")
    published = {0: 0.85, 150: 0.9, 299: 0.85 + 0.1 * 299 / 300, 300: 0.95, 1000: 0.95,
                 1505: 0.95, 1506: 0.948, 1530: 0.9, 1554: 0.852}
    for t, want in published.items():
        close(optim.momentum(s, t), want, 1e-15)
    s = read("small", "train.steps=7")
    close([optim.momentum(s, t) for t in range(7)], [0.95] * 7, 0)


@case
def targets_of_the_record():
    s = stages.stages(read("record"))
    published = {0: [1, .5, .25], 252: [1, .5, .25 * (1 - 252 / 505)], 504: [1, .5, .25 / 505],
                 505: [1, .5], 1009: [1, .5 / 505], 1010: [1], 1514: [1], 1515: [1], 1554: [1]}
    for t, want in published.items():
        close(stages.at(s, t).weights(t), want, 1e-15)


@case
def stages_of_the_record():
    s = stages.stages(read("record"))
    assert [(x.first, x.end) for x in s] == [(0, 505), (505, 1010), (1010, 1515), (1515, 1555)]
    assert [x.windows for x in s] == [[128, 384], [384, 896], [640, 1408], [768, 1664]]
    # shares of 1450 steps are rounded to the nearest
    s = stages.stages(read("record", "train.steps=1450"))
    assert [x.end for x in s] == [483, 967, 1450, 1490]


@case
def yarn_of_the_record():
    """The cumulative ratios of 32 frequencies, as published with four digits, and the scales."""
    s = read("record", "model.head_dim=128", "model.rotary.dims=64")
    all_, last = stages.stages(s), stages.final(s)
    close([x.scale for x in all_], [0.1, 0.116945957, 0.127517524, 0.131777988], 5e-10)
    first = 1024.0 ** (-np.arange(32) / 31)
    close(all_[0].frequencies, first, 1e-7)
    want = [1, 1, 1, .9862, .8707, .7785, .6573, .5320, .4405, .3801, .3384, .3088, .2871, .2710,
            .2588, .2495, .2422, .2366, .2322] + [3 / 13] * 13
    close(all_[3].frequencies / first, want, 5.1e-5)
    # the window of the final validation changes neither
    assert last.windows == [768, 2560] and last.scale == all_[3].scale
    assert np.array_equal(last.frequencies, all_[3].frequencies)


# ---- Adam -----------------------------------------------------------------

class Number:
    """One number under one of the Adams, in plain Python."""

    def __init__(self, p):
        self.p, self.m, self.v, self.k = p, 0.0, 0.0, 0

    def adamw(self, g, lr, b1, b2, eps, wd):
        self._moments(g, b1, b2)
        m, v = self.m / (1 - b1 ** self.k), self.v / (1 - b2 ** self.k)
        self.p -= lr * wd * self.p + lr * m / (math.sqrt(v) + eps)

    def cautious_adam(self, g, lr, b1, b2, eps, wd):
        self._moments(g, b1, b2)
        u = self.m / (math.sqrt(self.v) + eps)
        u *= lr * math.sqrt(1 - b2 ** self.k) / (1 - b1 ** self.k)
        if (u > 0 and self.p > 0) or (u < 0 and self.p < 0):
            u += lr * lr * wd * self.p
        self.p -= u

    def _moments(self, g, b1, b2):
        self.k += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g


def check_adam(kind, every, zero=False):
    """Eight steps of every parameter beside the numbers they consist of, the last four in a stage
    of another rate; eps is large enough to tell where it stands."""
    s = read("small", f"optim.kind={kind}", f"optim.every={every}", "optim.eps=0.3",
             "optim.weight_decay=0.7", "train.lr=0.2", "train.steps=8", "train.cooldown=0.5",
             "optim.betas=[0.6, 0.9]", "train.stages={a: {}, b: {lr_mul: 3}}")
    rate = [0.2] * 4 + [0.2 * (3 * (1 - k / 4) + 0.1 * k / 4) for k in range(4)]
    params = train.leaves(doubles(s), torch.float64)
    own = optim.Optimizer(s, params)
    numbers = {k: [Number(x) for x in v.flatten().tolist()] for k, v in params.items()}
    sums = {k: torch.zeros_like(v) for k, v in params.items()}
    for t in range(8):
        own.clear()
        for i, (name, p) in enumerate(params.items()):
            g = random(*p.shape, seed=100 * t + i) * (0 if zero else 1)
            p.grad = g if p.grad is None else p.grad + g
            sums[name] += g
        own.step()
        if (t + 1) % every == 0:
            for name in params:
                for n, g in zip(numbers[name], sums[name].flatten().tolist()):
                    getattr(n, kind)(g, rate[t], 0.6, 0.9, 0.3, 0.7)
                sums[name].zero_()
        for name, p in params.items():
            close(p.flatten(), [n.p for n in numbers[name]], 1e-12)


@case
def adamw_by_numbers():
    check_adam("adamw", 1)


@case
def adamw_agrees_with_torch():
    s = read("small", "optim.weight_decay=0.1", "train.cooldown_kind=constant", "train.lr=0.01")
    params = train.leaves(doubles(s), torch.float64)
    theirs = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
    own = optim.Optimizer(s, params)
    other = torch.optim.AdamW(theirs.values(), 0.01, (0.9, 0.95), 1e-8, 0.1)
    for step in range(5):
        for i, (k, p) in enumerate(params.items()):
            p.grad = random(*p.shape, seed=10 * step + i)
            theirs[k].grad = p.grad.clone()
        own.step()
        other.step()
    for k, p in params.items():
        close(p, theirs[k], 1e-13)


@case
def cautious_adam_by_numbers():
    check_adam("cautious_adam", 1)


@case
def sums_of_two_steps():
    check_adam("adamw", 2)
    check_adam("cautious_adam", 2)
    check_adam("cautious_adam", 3)


@case
def adam_with_no_gradient():
    """u*p > 0 never holds: nothing decays under the cautious one."""
    check_adam("cautious_adam", 1, zero=True)
    s = read("small", "optim.kind=cautious_adam", "optim.weight_decay=1000", "train.lr=0.5")
    params = train.leaves(doubles(s), torch.float64)
    before = {k: v.detach().clone() for k, v in params.items()}
    optim.Optimizer(s, params).step()
    assert all(torch.equal(before[k], v) for k, v in params.items())


@case
def odd_steps_and_every_step():
    """In one run some are updated at odd steps with the sum, others always."""
    s = read("record")
    params = train.leaves(doubles(s), torch.float64)
    own, k = optim.Optimizer(s, params), "layers.0.mlp.up"
    for t in range(5):
        own.clear()
        assert (params["head"].grad is None) == (t % 2 == 0) and params[k].grad is None
        before = {name: p.detach().clone() for name, p in params.items()}
        for p in params.values():
            p.grad = torch.ones_like(p) if p.grad is None else p.grad + torch.ones_like(p)
        own.step()
        moved = {name for name, p in params.items() if not torch.equal(p, before[name])}
        odd = {name for name in params if not name.startswith("layers.")}
        assert moved == set(params) - (set() if t % 2 else odd), (t, moved)
    # 777 updates of 1555 steps
    assert sum(len(own.rules.due(t)) > 8 for t in range(1555)) == 777
    assert own.rules.count("hc.resid_lambda", 1553) == 777


# ---- NorMuon --------------------------------------------------------------

COEFFICIENTS = [line.split() for line in """
    8.156554524902461 -22.48329292557795 15.878769915207462
    4.042929935166739 -2.808917465908714 0.5000178451051316
    3.8916678022926607 -2.772484153217685 0.5060648178503393
    3.285753657755655 -2.3681294933425376 0.46449024233003106
    2.3465413258596377 -1.7097828382687081 0.42323551169305323""".strip().splitlines()]


def by_singular_values(u):
    """An odd polynomial of a matrix acts on its singular values alone."""
    U, x, Vt = np.linalg.svd(np.asarray(u), full_matrices=False)
    x = x / (1.02 * math.sqrt((x * x).sum()) + 1e-6)
    for a, b, c in COEFFICIENTS:
        x = float(a) * x + float(b) * x ** 3 + float(c) * x ** 5
    return (U * x) @ Vt


@case
def polar_by_singular_values():
    for R, K in ((5, 9), (9, 5), (7, 7), (1, 4), (6, 1)):
        u = random(R, K, seed=R)
        got = optim.polar(u, lambda x: x)
        close(got, by_singular_values(u), 1e-12)
        values = torch.linalg.svdvals(got)
        assert values.max() < 1.15 and values.min() > 0.5, values
    assert optim.polar(torch.zeros(3, 4, dtype=torch.float64), lambda x: x).abs().max() == 0


def rows_of(spec, name):
    """The matrices of a parameter as lists of its rows."""
    m = spec.model
    H, K, D, F = m.heads, m.kv_heads, m.head_dim, m.mlp.hidden
    if name.endswith("qkv"):
        return [range(H * D), range(H * D, (H + K) * D), range((H + K) * D, (H + 2 * K) * D)]
    if name.endswith("up"):
        return [range(F), range(F, 2 * F)] if m.mlp.kind == "swiglu" else [range(F)]
    return [range(m.width)] if name.endswith("out") else [range(F)]


def loop_normuon(p, g, M, s, mu, lr, beta2, wd):
    """One update of a matrix, row by row in numpy; the polar factor by singular values."""
    R, K = p.shape
    M[:] = mu * M + (1 - mu) * g
    X = by_singular_values((1 - mu) * g + mu * M)
    squares = [float(sum(x * x for x in row)) for row in X]
    size = math.sqrt(sum(squares))
    factors = []
    for r in range(R):
        s[r] = beta2 * s[r] + (1 - beta2) * squares[r] / K
        factors.append(1 / math.sqrt(max(s[r], 1e-10)))
    scaled = math.sqrt(sum(q * k * k for q, k in zip(squares, factors)))
    eta = lr * (math.sqrt(R / K) if R > K else 1.0)
    for r in range(R):
        for c in range(K):
            v = X[r, c] * factors[r] * size / max(scaled, 1e-10)
            keep = 0.0 if (v < 0 < p[r, c]) or (v > 0 > p[r, c]) else lr * wd * eta
            p[r, c] -= keep * p[r, c] + eta * v


NORMUON = ("numerics.gemm=f32", "train.lr=7", "train.cooldown_kind=constant", "train.steps=5",
           "optim.groups.m={match: 'layers.*', kind: normuon, lr: 0.1, betas: [0.1, 0.8], "
           "weight_decay: 2}",
           "optim.groups.d={match: '*.down', lr_mul: 2}", "optim.normuon.momentum=0.9",
           "optim.normuon.momentum_start=0.5", "optim.normuon.momentum_warmup=2",
           "optim.normuon.momentum_cooldown=1")


@case
def normuon_by_rows():
    """Wide and tall matrices, q, k and v and a swiglu's two apart; the state by the parameter's
    rows; momentum that moves."""
    for more in (["model.mlp={kind: swiglu, hidden: 7}", "model.kv_heads=1", "model.head_dim=10"],
                 ["model.mlp={kind: relu2, hidden: 20}", "model.head_dim=4"]):
        s = read("small", *NORMUON, *more)
        params = train.leaves(doubles(s), torch.float64)
        names = [k for k in params if k.startswith("layers.")]
        own = optim.Optimizer(s, params)
        want = {k: params[k].detach().numpy().copy() for k in names}
        M = {k: np.zeros_like(want[k]) for k in names}
        second = {k: np.zeros(len(want[k])) for k in names}
        for t, mu in enumerate((0.5, 0.7, 0.9, 0.9, 0.9)):
            own.clear()
            for i, k in enumerate(names):
                params[k].grad = random(*params[k].shape, seed=10 * t + i)
                for rows in rows_of(s, k):
                    a, z = rows[0], rows[-1] + 1
                    loop_normuon(want[k][a:z], params[k].grad[a:z].numpy(), M[k][a:z],
                                 second[k][a:z], mu, 0.2 if k.endswith("down") else 0.1, 0.8, 2)
            own.step()
            for k in names:
                close(params[k], want[k], 1e-11)
                close(own.moment1[k], M[k], 1e-13)
                close(own.moment2[k], second[k], 1e-12)


@case
def down_is_taken_as_it_is_stored():
    """Its rows are hidden channels: one entry of s for each, and the factor sqrt(F/C)."""
    s, name = read("small", *NORMUON, "optim.groups.m.weight_decay=0"), "layers.0.mlp.down"
    params = train.leaves(doubles(s), torch.float64)
    own, before = optim.Optimizer(s, params), params[name].detach().clone()
    assert params[name].shape == (48, 12) and own.moment2[name].shape == (48,)
    params[name].grad = random(48, 12)
    own.step()
    # the norm is that of the polar factor, about sqrt(12), times eta
    moved = (params[name] - before).norm().item()
    assert abs(moved / (0.2 * 2 * math.sqrt(12)) - 1) < 0.1, moved


@case
def normuon_with_no_gradient():
    """v*p >= 0 holds: all of it decays, by the square of the rate."""
    s = read("small", *NORMUON)
    params = train.leaves(doubles(s), torch.float64)
    before = {k: v.detach().clone() for k, v in params.items()}
    optim.Optimizer(s, params).step()
    for k, v in params.items():
        if k.startswith("layers."):
            lr, tall = (0.2 if k.endswith("down") else 0.1), k.endswith(("down", "up"))
            close(v, before[k] * (1 - lr * lr * 2 * (2 if tall else 1)), 1e-14)


def bf16(x):
    """Nearest even by the bits of float32, in numpy."""
    bits = np.asarray(x).astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


@case
def normuon_rounds_to_the_type_of_products():
    """Each intermediate once, sums in double: u, X, A, b*A + c*A A, X again, v; never M, s, p."""
    for R, K in ((12, 20), (20, 12)):
        g, p = random(R, K, seed=1), random(R, K, seed=2)
        M, s = random(R, K, seed=3) * 0.1, random(R, seed=4).abs()
        got = [x.clone() for x in (p, M, s)]
        optim.normuon(got[0], g, got[1], got[2], 0.9, 0.1, 0.8, 0.0, optim.rounded)
        p, g, M, s = (x.numpy() for x in (p, g, M, s))
        M = M + 0.1 * (g - M)
        X = bf16(g + 0.9 * (M - g))
        X = bf16(X / (1.02 * math.sqrt((X * X).sum()) + 1e-6))
        for a, b, c in COEFFICIENTS:
            A = bf16(np.einsum("ki,kj->ij", X, X) if R > K else np.einsum("ik,jk->ij", X, X))
            B = bf16(float(b) * A + float(c) * np.einsum("ik,kj->ij", A, A))
            X = bf16(float(a) * X + np.einsum("ik,kj->ij", *((X, B) if R > K else (B, X))))
        q = (X * X).mean(1)
        s = 0.8 * s + 0.2 * q
        k = s ** -0.5
        v = bf16(X * k[:, None] * (np.sqrt((q * K).sum()) / np.sqrt((q * K * k * k).sum())))
        close(got[0], p - 0.1 * math.sqrt(max(1, R / K)) * v, 1e-14)
        close(got[1], M, 1e-14)
        close(got[2], s, 1e-14)
    # and only where products have that type
    for gemm, cast in (("f32", False), ("bf16", True)):
        rules = optim.Rules(read("small", "numerics.gemm=" + gemm))
        x = torch.tensor([1 + 2.0 ** -8 + 2.0 ** -20], dtype=torch.float64)
        assert (rules.cast(x) != x).item() == cast and rules.cast(x).dtype == torch.float64


@case
def normuon_is_for_matrices():
    for match in ("embed", "hc.resid_lambda", "*"):
        raises(lambda: optim.Rules(read("record", f"optim.groups.x={{match: '{match}', kind: normuon}}")),
               "normuon")


# ---- groups and clipping --------------------------------------------------

@case
def groups_of_the_record():
    s = read("record")
    got = {p.name: optim.settings(s, p) for p in parameters(s)}
    assert got["layers.0.attn.qkv"] == {
        "kind": "normuon", "every": 1, "lr": 0.023, "lr_mul": 1, "betas": [0.9, 0.95],
        "eps": 1e-10, "weight_decay": 1.2}
    assert got["layers.1.mlp.down"] == {**got["layers.0.attn.qkv"], "lr_mul": 2}
    assert got["head"] == got["embed"] == {
        "kind": "cautious_adam", "every": 2, "lr": 0.008, "lr_mul": 1, "betas": [0.5, 0.95],
        "eps": 1e-10, "weight_decay": 0.75}
    # coefficients have their own betas, and of a source's keys no other: not its kind
    assert got["hc.resid_lambda"]["betas"] == [0.9, 0.99]
    assert got["hc.sources.x0.coef"] == {
        "kind": "cautious_adam", "every": 2, "lr": 0.008, "lr_mul": 5, "betas": [0.65, 0.95],
        "eps": 1e-10, "weight_decay": 0}
    s = read("record", "optim.groups.z={match: 'nothing|hc.*.coef|head', every: 3, lr: 0.5}")
    got = {p.name: optim.settings(s, p) for p in parameters(s)}
    assert (got["hc.sources.x0.coef"]["every"], got["hc.sources.x0.coef"]["lr"]) == (3, 0.5)
    assert got["head"]["every"] == 3 and got["hc.resid_lambda"]["every"] == 2


@case
def matrices_and_tables_decay():
    """By default; a group may say otherwise of anything."""
    s = read("parts", "optim.weight_decay=0.1")
    for p in parameters(s):
        decays = p.name.endswith(("embed", "head", "qkv", "out", "up", "down", "table"))
        decays = decays and not p.name.startswith(("hc.skips", "hc.backouts", "hc.output"))
        assert (optim.settings(s, p)["weight_decay"] == 0.1) == decays, p.name
    s = read("parts", "optim.groups.a={match: '*norm', weight_decay: 0.2}")
    assert [optim.settings(s, p)["weight_decay"] for p in parameters(s) if p.name == "final_norm"] == [0.2]


@case
def bars_separate_patterns():
    assert optim.matches("a|b*", "bc") and optim.matches("a|b*", "a")
    assert not optim.matches("a|b*", "a|bc") and not optim.matches("a|b", "ab")
    assert not optim.matches("a|b", "xb") and not optim.matches("a[b]", "ab")


@case
def clip_is_not_for_sums():
    raises(lambda: optim.Rules(read("small", "train.clip=1", "optim.every=2")), "every")
    raises(lambda: optim.Rules(read("record", "train.clip=1", "optim.every=1",
                                    "optim.groups.z={match: head, every: 2}")), "every")
    optim.Rules(read("small", "train.clip=1"))


@case
def clip_counts_the_tied_gradient_once():
    s = read("small", "train.clip=1", "train.stages={a: {}, b: {}}", "train.untie=b")
    params = train.leaves(doubles(s), torch.float64)
    for p in params.values():
        p.grad = torch.zeros_like(p)
    params["embed"].grad[0, 0], params["head"].grad[0, 0] = 3.0, 4.0
    close(optim.Optimizer(s, params).step(), 7, 1e-12)


@case
def clip_is_by_all_squares():
    s = read("small", "train.clip=2")
    params = train.leaves(doubles(s), torch.float64)
    for i, p in enumerate(params.values()):
        p.grad = random(*p.shape, seed=i)
    total = sum(x * x for p in params.values() for x in p.grad.flatten().tolist())
    first = params["embed"].grad[0, 0].item()
    close(optim.Optimizer(s, params).step(), math.sqrt(total), 1e-12)
    close(params["embed"].grad[0, 0], first * 2 / (math.sqrt(total) + 1e-6), 1e-14)


# ---- 16-bit parameters ----------------------------------------------------

def half(x):
    """The float whose bits are the upper 16 of x's."""
    return struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", x))[0]
                                           & 0xFFFF0000))[0]


BF16 = ("numerics.params=bf16", "numerics.gemm=f32", "train.lr=1e-4", "train.cooldown_kind=constant",
        "optim.groups.m={match: 'layers.*', kind: normuon, weight_decay: 0}")


@case
def truncation_is_not_rounding():
    for x in (1.0, 1 + 0.9 * 2 ** -7, -1 - 0.9 * 2 ** -7, 3.14159, -2.71828, 0.0, 1e-30):
        for dtype in (torch.float32, torch.float64):
            got = optim.truncated(torch.tensor([x], dtype=dtype))
            assert got.item() == half(x) and got.dtype == dtype, x
    assert optim.rounded(torch.tensor([1 + 0.9 * 2 ** -7])).item() == 1 + 2 ** -7


@case
def adam_writes_are_rounded():
    """What an update of a hundredth of a unit in the last place writes is what was there; other
    parameters are not touched by it."""
    s = read("small", *BF16, "model.smear.channels=2")
    params = train.leaves({k: optim.rounded(v) for k, v in doubles(s).items()}, torch.float64)
    params["embed"].data.fill_(1.0)
    params["smear.weight"].data.fill_(1.0)
    params["smear.lambda"].data.fill_(1.0)
    own = optim.Optimizer(s, params)
    for t in range(5):
        own.clear()
        for p in params.values():
            p.grad = torch.ones_like(p)
        own.step()
    assert torch.equal(params["embed"], torch.ones_like(params["embed"]))
    assert torch.equal(params["smear.weight"], torch.ones_like(params["smear.weight"]))
    close(params["smear.lambda"], [1 - 5e-4], 1e-9)
    s = read("small", *BF16, "train.lr=0.0027")
    params = train.leaves({k: optim.rounded(v) for k, v in doubles(s).items()}, torch.float64)
    params["embed"].data.fill_(1.0)
    for p in params.values():
        p.grad = torch.ones_like(p)
    optim.Optimizer(s, params).step()
    # 1 - 0.0027 lies between 1 - 2^-8 and 1, nearer to the former
    close(params["embed"], torch.full_like(params["embed"], 1 - 2 ** -8), 0)


@case
def normuon_keeps_what_products_do_not_see():
    """Steps below the last place add up; products read the upper half, toward zero."""
    s = read("small", *BF16)
    name = "layers.0.mlp.up"
    wide = read("small", *BF16, "numerics.params=f32")
    values = {k: optim.rounded(v) for k, v in doubles(s).items()}
    runs = []
    for spec in (s, wide):
        params = train.leaves({k: v.clone() for k, v in values.items()}, torch.float64)
        own = optim.Optimizer(spec, params)
        for t in range(40):
            own.clear()
            params[name].grad = random(*params[name].shape, seed=t % 3)
            own.step()
        runs.append((own, params[name].detach()))
    own, seen = runs[0]
    close(own.whole[name], runs[1][1], 1e-12)
    assert not torch.equal(own.whole[name], values[name])
    want = [half(x) for x in own.whole[name].flatten().tolist()]
    assert seen.flatten().tolist() == want
    assert (seen.abs() <= own.whole[name].abs()).all() and not torch.equal(seen, own.whole[name])
    assert name not in runs[1][0].whole and "embed" not in own.whole


# ---- tying ----------------------------------------------------------------

@case
def the_record_unties_at_step_1011():
    """The first odd step of the stage or after it; every step, the stage's first."""
    assert optim.Rules(read("record")).last_tied == 1011
    assert optim.Rules(read("record", "optim.every=1")).last_tied == 1010
    assert optim.Rules(read("record", "train.untie=d")).last_tied == 1515
    assert optim.Rules(read("record", "train.steps=1450")).last_tied == 967
    assert optim.Rules(read("small")).last_tied == -1
    assert optim.Rules(read("record", "train.untie=a")).last_tied == 1


@case
def embed_and_head_are_one_until_they_part():
    """Beside numbers: the stage begins at step 4, its first update is that of step 5; embed has
    settings of its own from there on, and its own parity."""
    s = read("small", "train.stages={a: {}, b: {}}", "train.steps=8", "train.untie=b",
             "optim.kind=cautious_adam", "optim.weight_decay=0.5", "optim.eps=0.1", "optim.every=2",
             "train.lr=0.1", "train.cooldown_kind=constant",
             "optim.groups.e={match: embed, lr_mul: 3, every: 1, weight_decay: 0}")
    start = doubles(s)["head"]
    params = train.leaves({**doubles(s), "embed": start.clone()}, torch.float64)
    own = optim.Optimizer(s, params)
    shape = start.shape
    one = [Number(x) for x in start.flatten().tolist()]
    two = None
    sums = torch.zeros(shape, dtype=torch.float64)
    for t in range(8):
        own.clear()
        ge, gh = random(*shape, seed=t), random(*shape, seed=50 + t)
        for name, g in (("embed", ge), ("head", gh)):
            p = params[name]
            p.grad = g.clone() if p.grad is None else p.grad + g
        own.step()
        sums += gh if t > 5 else ge + gh
        if t % 2:
            for n, g in zip(one, sums.flatten().tolist()):
                n.cautious_adam(g, 0.1, 0.9, 0.95, 0.1, 0.5)
            sums.zero_()
        if t > 5:
            for n, g in zip(two, ge.flatten().tolist()):
                n.cautious_adam(g, 0.3, 0.9, 0.95, 0.1, 0.0)
        close(params["head"].flatten(), [n.p for n in one], 1e-12)
        close(params["embed"].flatten(), [n.p for n in (two or one)], 1e-12)
        if t == 5:
            two = [Number(n.p) for n in one]
            for a, b in zip(two, one):
                a.m, a.v, a.k = b.m, b.v, b.k
            assert torch.equal(own.moment1["embed"], own.moment1["head"])
            assert torch.equal(own.moment2["embed"], own.moment2["head"])
    assert own.rules.count("embed", 7) == 5 and own.rules.count("head", 7) == 4


@case
def embed_begins_as_head():
    s = read("small", "train.stages={a: {}, b: {}}", "train.untie=b")
    params = train.leaves(doubles(s), torch.float64)
    head = params["head"].detach().clone()
    params["embed"].data.fill_(1.0)
    optim.Optimizer(s, params)
    assert torch.equal(params["embed"], head) and torch.equal(params["head"], head)


# ---- one update of a file -------------------------------------------------

@case
def step_of_a_file():
    """Steps by the command line, each from the file of the one before, are those of a run."""
    s = read("record", "train.steps=6", "train.stages.d.steps=2", "numerics.params=bf16")
    values = {k: optim.rounded(v) for k, v in doubles(s).items()}
    values["embed"] = values["head"].clone()
    params = train.leaves({k: v.clone() for k, v in values.items()}, torch.float64)
    own = optim.Optimizer(s, params)
    path = [os.path.join(FOLDER.name, x) for x in ("in.st", "out.st")]
    state = {"param." + k: v for k, v in values.items()}
    for t in range(8):
        own.clear()
        for i, (k, p) in enumerate(params.items()):
            g = random(*p.shape, seed=20 * t + i)
            p.grad = g if p.grad is None else p.grad + g
            have = state.get("grad." + k)
            state["grad." + k] = g if have is None else have + g
        own.step()
        safetensors.save(path[0], state)
        sys.argv = ["optim.py", "step", os.path.join(FOLDER.name, "record.yaml"), "--step", str(t),
                    "--state", path[0], "--out", path[1], "--set", "train.steps=6", "--set",
                    "train.stages.d.steps=2", "--set", "numerics.params=bf16"]
        optim.main()
        state = safetensors.load(path[1])
        for k in params:
            assert torch.equal(state["param." + k], own.params[k]), (t, k)
            assert torch.equal(state["moment1." + k], own.moment1[k]), (t, k)
            assert torch.equal(state["moment2." + k], own.moment2[k]), (t, k)
            cleared = not state["grad." + k].any()
            assert cleared == (k in own.used) and (cleared or torch.equal(
                state["grad." + k], params[k].grad)), (t, k)
    assert state["moment2.layers.0.attn.qkv"].shape == (36,)
    raises(lambda: optim.one_step(s, 0, {}), "param.embed")


# ---- data -----------------------------------------------------------------

def reader(tokens, *settings):
    return data.Reader(read("small", "data.bos=0", *settings), np.array(tokens))


def taken(r, count, seq_len, max_doc=0):
    tokens, targets = r.take(count, seq_len, max_doc)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    return torch.cat([tokens, targets[:, -1:]], 1).tolist()


@case
def stream_begins_anew_with_another_length():
    r = reader(range(1, 12))        # 11 tokens: 5 sequences of 2, 3 of 3
    assert taken(r, 2, 2) == [[1, 2, 3], [3, 4, 5]] and r.epoch == 0
    assert taken(r, 2, 3) == [[1, 2, 3, 4], [4, 5, 6, 7]] and r.epoch == 1
    # of the same length it goes on, whatever becomes of documents
    assert taken(r, 2, 3, 5) == [[7, 8, 9, 10], [1, 2, 3, 4]] and r.epoch == 2
    assert taken(r, 1, 2) == [[1, 2, 3]] and r.epoch == 3


@case
def documents_go_on():
    r = reader([9, 0, 1, 2, 3, 4, 0, 5, 0, 6, 7, 8, 0, 9], "data.packing=documents")
    assert taken(r, 1, 2) == [[0, 1, 2]]
    # the rest of a document is dropped; the next one goes on at another length, and cut
    assert taken(r, 1, 4, 3) == [[0, 5, 0, 6, 7]]
    # one document is left, not enough: the next epoch begins
    assert taken(r, 1, 3) == [[0, 1, 2, 3]] and r.epoch == 1
    assert taken(r, 1, 3, 2) == [[0, 5, 0, 6]]
    raises(lambda: taken(r, 1, 30), "whole sequence")


@case
def a_document_ends_with_the_next_ones_beginning():
    """The target of its last token is a bos, whether it was cut or not."""
    r = reader([0, 1, 2, 3, 0, 4, 0, 5], "data.packing=documents")
    tokens, targets = r.take(1, 5, 2)
    assert tokens.tolist() == [[0, 1, 0, 4, 0]] and targets.tolist() == [[1, 0, 4, 0, 5]]


@case
def an_order_is_of_an_epoch():
    words = ["data.shuffle=true", "train.seed=5"]
    s = read("small", *words)
    a, b = (list(data.order(s, e, 50)) for e in (0, 1))
    assert sorted(a) == sorted(b) == list(range(50)) and a != b
    assert list(data.order(s, 0, 50)) == a
    assert list(data.order(read("small", *words, "train.seed=6"), 0, 50)) != a
    # documents: their order is the same whatever the sequences are
    tokens = [x for d in range(1, 23) for x in (0, d, d)]
    seen = []
    for sizes in ([2] * 22, [2] * 5 + [5] * 8 + [2]):
        r = reader(tokens, "data.packing=documents", *words)
        rows = [x for n in sizes for x in taken(r, 1, n)[0]]
        seen.append([x for i, x in enumerate(rows) if x and rows[i - 1] == 0])
        assert r.epoch == 0
    assert seen[0] == seen[1][:22] or seen[0][:len(seen[1])] == seen[1], seen
    assert seen[0] != sorted(seen[0])
    # sequences: the order of the new length is that of a new epoch
    r = reader(range(1, 22), *words)
    taken(r, 3, 2)
    first = [row[0] // 5 for row in taken(r, 4, 5)]
    assert first == list(data.order(read("small", *words), 1, 4)) and r.epoch == 1


@case
def readers_and_rows_agree():
    """Where no length changes, sequences come in the order of the whole data, over and over."""
    tokens = [x for d in range(1, 20) for x in [3] + [d] * (d % 5)]
    path = os.path.join(FOLDER.name, "agree.bin")
    data.write_shard(path, tokens)
    for more in ("data.packing=stream", "data.packing=documents"):
        s = read("small", more, "data.train=agree.bin", "train.seq_len=11", "data.max_doc=4")
        rows, r = data.sequences(s, s.data.train), data.Reader(s)
        for k in range(6):
            want = data.batch(rows, 2 * k, 2)
            got = r.take(2, 11, 4)
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@case
def validation_has_its_own_sequences():
    path = os.path.join(FOLDER.name, "val.bin")
    data.write_shard(path, [1, 3, 2, 2, 2, 3] + [4] * 40)
    words = ["data.val=val.bin", "data.packing=documents", "data.max_doc=3", "train.val_batch=8",
             "train.val_seq_len=4", "data.val_packing=stream"]
    rows = train.validation_rows(read("small", *words, "train.val_tokens=23"))
    assert rows.shape == (4, 5) and rows[:2].tolist() == [[1, 3, 2, 2, 2], [2, 3, 4, 4, 4]]
    # at least one batch
    assert train.validation_rows(read("small", *words)).shape == (2, 5)
    assert train.validation_rows(read("small", *words, "data.val=[]")) is None
    # unless said otherwise as in training, a micro-batch of which is a batch
    rows = train.validation_rows(read("small", "data.val=val.bin", "train.val_tokens=30"))
    assert rows.shape == (2, 12)
    documents = [*words[:-1], "data.val_packing=documents", "train.val_batch=4"]
    assert train.validation_rows(read("small", *documents)).tolist() == [[3, 2, 2, 3, 4]]


# ---- runs -----------------------------------------------------------------

class Recorder:
    """In place of the model: notes what it is asked."""

    def __init__(self, spec, dtype):
        self.calls, self.params, self.stage = [], parameters(spec), None

    def enter(self, stage):
        self.stage = stage

    def loss(self, params, tokens, targets, weights):
        self.calls.append((self.stage.name, tuple(tokens.shape), weights))
        return sum((p * p).sum() for p in params.values())

    def validation_loss(self, params, tokens, targets):
        self.calls.append(("val", self.stage.name, self.stage.windows, tuple(tokens.shape)))
        return torch.tensor(1.0)


def recorded(*settings, steps=None):
    """The calls of a run on a shard."""
    data.write_shard(os.path.join(FOLDER.name, "run.bin"), ([3] + list(range(4, 20))) * 30)
    s = read("small", "data.train=run.bin", "data.val=run.bin", *settings)
    made, real, say = [], train.Model, train.say
    try:
        train.Model = lambda *a: made.append(Recorder(*a)) or made[-1]
        lines = []
        train.say = lambda **fields: lines.append(fields)
        train.run(s, train.leaves(init.initial(s), torch.float64), torch.float64,
                  stages.stages(s)[-1].end if steps is None else steps)
    finally:
        train.Model, train.say = real, say
    return made[0].calls, lines


STAGES = ("train.steps=4", "train.val_every=2", "train.val_batch=11", "train.val_tokens=22",
          "train.stages={a: {targets: [1, 0.5], targets_end: [1, 0]}, "
          "b: {tokens_per_step: 40, seq_len: 5, micro_batches: 4, window: 6, lr_mul: 2}, "
          "z: {steps: 1, long_window: 7, seq_len: 11}}", "model.attention.long_layers=[1]",
          "model.attention.window=3", "train.cooldown=0.25")


@case
def calls_of_a_run():
    """Sizes, targets and windows stage by stage; the validation has those of the step before it,
    the last one those of train.final."""
    calls, lines = recorded(*STAGES, "train.final.long_window=9", "train.tokens_per_step=22")
    short = [("b", (2, 5), [1.0])] * 4
    assert calls == [
        ("a", (2, 11), [1.0, 0.5]), ("a", (2, 11), [1.0, 0.25]),
        *[("val", "a", [3, "full"], (1, 11))] * 2, *short, *short,
        *[("val", "b", [6, "full"], (1, 11))] * 2,
        ("z", (2, 11), [1.0]), *[("val", "z", [3, 9], (1, 11))] * 2], calls
    assert [x["step"] for x in lines if "val_loss" in x] == [2, 4, 5]
    close([x["lr"] for x in lines if "lr" in x], [1e-3, 1e-3, 2e-3, 2e-3, 1e-4], 1e-15)


@case
def a_run_that_stops_early_has_no_final_windows():
    calls, _ = recorded(*STAGES, "train.final.long_window=9", steps=3)
    assert calls[-1] == ("val", "b", [6, "full"], (1, 11))
    calls, _ = recorded(*STAGES, "train.final={window: 2, long_window: 9}")
    assert calls[-1][2] == [2, 9]


@case
def moments_go_on_over_stages():
    """A stage that changes nothing is no event: the same numbers as without it."""
    ends = []
    for words in ([], ["train.stages={a: {}, b: {share: 2}}"]):
        s = read("small", "train.steps=6", *words)
        params = train.leaves(doubles(s), torch.float64)
        own = optim.Optimizer(s, params)
        for t in range(6):
            own.clear()
            for i, p in enumerate(params.values()):
                p.grad = random(*p.shape, seed=10 * t + i)
            own.step()
        ends.append({k: v.detach() for k, v in params.items()})
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def gradients(*settings, rows=2, steps=1):
    """The gradient after steps of the real model, on the same tokens; and the loss."""
    s = read("small", *settings)
    params = train.leaves(doubles(s), torch.float64)
    t = train.Trainer(s, params, torch.float64)
    tokens = torch.randint(23, (rows, s.train.seq_len + 1), generator=torch.Generator().manual_seed(1))
    each = rows // s.train.micro_batches
    batches = [(x[:, :-1], x[:, 1:]) for x in tokens.split(each)]
    for _ in range(steps):
        loss = t.step(batches)
    return {k: p.grad.clone() for k, p in params.items()}, loss


@case
def gradients_are_of_the_scaled_sum():
    """`mean` is the mean of the step, a number multiplies the sum over all its micro-batches; the
    loss that is told stays the mean."""
    mean, loss = gradients()
    for more in (["train.micro_batches=2"], [],
                 ["train.tokens_per_step=44", "train.stages={a: {tokens_per_step: 22}}"]):
        got, same = gradients("train.loss_scale=0.25", *more)
        close(same, loss, 1e-12)
        for k in mean:
            close(got[k], mean[k] * 22 * 0.25, 1e-12)
        got, same = gradients(*more)
        close(same, loss, 1e-12)
        for k in mean:
            close(got[k], mean[k], 1e-12)


@case
def gradients_are_cleared_by_updates():
    """Where nothing moves, the second step's gradient is the first's, or twice that if the first
    made no update."""
    one, _ = gradients()
    for every, times in ((1, 1), (2, 2), (3, 2)):
        two, _ = gradients("train.lr=0", f"optim.every={every}", steps=2)
        for k in one:
            close(two[k], times * one[k], 1e-12)


@case
def weights_reach_the_gradient():
    """The head's gradient of a row is the sum over its targets."""
    one, _ = gradients()
    two, loss = gradients("train.stages={a: {targets: [0, 2]}}")
    assert loss > 0 and (one["head"] - two["head"]).abs().max() > 1e-4


@case
def a_run_of_stages_is_its_stages():
    """Losses of the real model over a change of everything are those of a model of each stage, with
    the parameters as they are."""
    data.write_shard(os.path.join(FOLDER.name, "run.bin"), ([3] + list(range(4, 20))) * 30)
    yarn = ("model.rotary.yarn=true", "train.stages={a: {}, b: {seq_len: 22, window: 2, "
            "long_window: 12, targets: [1, 0.5]}}", "model.attention.window=4", "train.steps=4",
            "model.attention.long_layers=[1]", "model.attention.long_window=5", "train.lr=0.01")
    s = read("small", "data.train=run.bin", *yarn)
    params = train.leaves(doubles(s), torch.float64)
    t, r = train.Trainer(s, params, torch.float64), data.Reader(s)
    for step in range(4):
        stage = t.stage
        batch = r.take(t.rows, stage.seq_len, stage.max_doc)
        fresh = train.Model(s, torch.float64)
        fresh.enter(stage)
        want = fresh.loss(params, *batch, stage.weights(step)).item()
        # a model that is still in the first stage
        other = train.Model(s, torch.float64).loss(params, *batch, stage.weights(step)).item()
        assert (abs(other - want) > 1e-6) == (step >= 2), (other, want)
        close(t.step([batch]), want, 1e-13)
        assert batch[0].shape == ((2, 11) if step < 2 else (1, 22))


@case
def training_learns():
    data.write_shard(os.path.join(FOLDER.name, "learn.bin"), ([3] + list(range(4, 20))) * 20)
    s = read("full", "data.train=learn.bin", "train.lr=0.01", "train.steps=40",
             "model.init.head_std=0.3", "model.init.out=random",
             "optim.groups.m={match: 'layers.*.qkv|*.out', kind: normuon, lr: 0.02}")
    params = train.leaves(init.initial(s), torch.float32)
    t, r = train.Trainer(s, params, torch.float32), data.Reader(s)
    losses = [t.step([r.take(t.rows, 11, 0)]) for _ in range(40)]
    assert losses[0] > 2.5 and losses[-1] < 0.7 * losses[0], (losses[0], losses[-1])
    assert t.validate(data.sequences(s, s.data.train)[:4]) < 0.7 * losses[0]


@case
def what_is_saved_has_all_bits():
    """By the command line: the whole of NorMuon's parameters, and whatever else as it is."""
    data.write_shard(os.path.join(FOLDER.name, "run.bin"), ([3] + list(range(4, 20))) * 30)
    path, say, lines = os.path.join(FOLDER.name, "saved.st"), train.say, []
    words = [*BF16, "data.train=run.bin", "model.init.out=random", "train.steps=2"]
    sys.argv = ["train.py", os.path.join(FOLDER.name, "small.yaml"), "--save", path, "--dtype", "float32"]
    for word in words:
        sys.argv += ["--set", word]
    try:
        train.say = lambda **fields: lines.append(fields)
        train.main()
    finally:
        train.say = say
    saved = safetensors.load(path)
    assert len(lines) == 2 and set(saved) == {p.name for p in parameters(read("small", *words))}
    for name, narrow in (("layers.0.mlp.up", False), ("embed", True)):
        assert torch.equal(saved[name], optim.rounded(saved[name])) == narrow, name


# ---- running --------------------------------------------------------------

def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)        # tensors this small only lose time to a second one
    write_specs()
    failed = 0
    for f in CASES:
        try:
            f()
            print("ok", f.__name__)
        except Exception as e:
            failed += 1
            print("FAIL", f.__name__, type(e).__name__, e)
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
