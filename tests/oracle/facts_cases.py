"""Whole nets written down from what is published about them, against specs that express them.

A net here is a function of parameters named as a spec's, in loops over layers,
heads and positions, with its own masks, angles, hash and FP8 head.  Each of
its details that a writer of such a net gets wrong by habit is a word of
`wrong`: with it the net has the habit instead, and gradients that differ.
"""
import math

import numpy as np
import torch

import oracle
import stages
from model import Model
from testing import case, close, doubles, text_spec

# eleven layers as published, everything else as small as the details allow:
# 6 heads of 8 channels, of which 4 turn, 48 tokens of which the last 7 are padding
D, H, C, V, USED, T, BOS = 8, 6, 48, 48, 41, 22, 40
ROWS = 5 * V
PAIRED, LONG = (0, 2, 5, 9), (3, 10)
SCALES = (5.0, 0.9, 0.2)        # of the FP8 head: small enough for some to saturate

COMMON = """
model:
  {layers: 11, width: 48, heads: 6, head_dim: 8, vocab: 48, vocab_multiple: 16,
   norm_eps: 1.1920929e-7, smear: 12, softcap: {kind: sigmoid, cap: 23, shift: 5, temperature: 7.5}}
model.attention:
  layers: {except: [6]}
  scale: 0.1
  window: 5
  long_layers: [3, 10]
  long_window: 7
  paired: [0, 2, 5, 9]
  gate: {layers: all, channels: 12}
  sa_lambda: {layers: all, init: [0.5, 1.0]}
  key_offset: {layers: [3, 10], first: 4}
model.value_embed: {layers: [0, 1, 8, 9, 10], channels: 12}
model.rotary:
  {kind: adjacent, dims: 4, base: 1024, frequencies: endpoint, dtype: bf16,
   yarn: {on: true, alpha: 0.02, beta: 3}}
data.bos: 40
numerics: {head: fp8, fp8: {x: 5, w: 0.9, grad: 0.2}}
train:
  {steps: 6, tokens_per_step: 22, seq_len: 22, untie: b, final.long_window: 15,
   stages: {a: {targets: [1, 0.5, 0.25], targets_end: [1, 0.5, 0]},
            b: {window: 6, long_window: 13, targets: [1, 0.5, 0.25]}}}
"""

MASTER = COMMON + """
hc:
  resid_lambda: {granularity: layer, site: before_read, init: 1.1}
  sources:
    x0: {kind: x0, granularity: layer, site: before_read, init: 0}
    bigram: {kind: bigram, rows: 240, hash: quirk, granularity: layer, site: before_read, init: 0.1}
  skips: {s: {from: {sublayer: 7}, to: {sublayer: 13}, gate: {kind: token, init: -1.5}}}
  backouts: {x7: {from: {sublayer: 15}, gate: 0.5}}
"""

LATER = """
model.value_embed: {layers: [1, 2, 8, 9, 10], split: [1, 8, 10], channels: 12, std: 0.01}
"""


def later(text):
    """The nets after the value embeddings moved by a layer and their gates were split."""
    return text.replace("model.value_embed: {layers: [0, 1, 8, 9, 10], channels: 12}",
                        LATER.strip())


PARALLEL = later(COMMON) + """
hc:
  lanes: 2
  layers: {first: 7, last: 10}
  post:
    learned: true
    outside: true
    init: [1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1,
           1,1.5, 1,1, 1,1.5, 1,1, 1,1.5, 1,1, 1,1.5, 1,1]
  resid_lambda: {granularity: sublayer, init: 1.0488088481701515, lr_mul: 5}
  sources:
    x0: {kind: x0, site: on_branch, sublayers: attn}
    bigram: {kind: bigram, rows: 240, hash: quirk, site: on_branch, sublayers: attn, init: 0.05,
             first: lane_init}
  skips: {s: {from: {sublayer: 6}, to: {sublayer: 13}, gate: {kind: token, init: -1.5}}}
  backouts: {x7: {from: {sublayer: 15}, gate: 0.5}}
"""

FLAT = PARALLEL + """
hc.post.sublayers: [1, 3, 5, 7, 9, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21]
"""
FLAT = FLAT.replace("site: on_branch", "granularity: layer, lane: 0")

SIMPLE = later(COMMON) + """
hc:
  post: {learned: true, init: 1}
  resid_lambda: {granularity: sublayer, init: 1.0488088481701515, lr_mul: 5}
  sources:
    x0: {kind: x0, granularity: layer, sublayers: attn}
    bigram: {kind: bigram, rows: 240, hash: quirk, granularity: layer, sublayers: attn, init: 0.05,
             first: lane_init}
  reads: {late: {from: {sublayer: 15}, sublayers: [16, 18, 20]}}
  skips: {s: {from: {sublayer: 7}, to: {sublayer: 13}, gate: {kind: token, init: -1.5}}}
  backouts: {x7: {from: {sublayer: 15}, gate: 0.5}}
"""

TWO_LANES = COMMON + """
hc:
  lanes: 2
  res: {init: identity, learned: true}
  pre: round_robin
  post: {learned: true}
  resid_lambda: {granularity: sublayer, init: 1.0488088481701515, lr_mul: 5}
  sources:
    x0: {kind: x0}
    bigram: {kind: bigram, rows: 240, hash: quirk, init: 0.05, first: lane_init}
  skips: {s: {from: {sublayer: 6}, to: {sublayer: 13}, gate: {kind: token, init: -1.5}}}
  backouts: {x7: {from: {sublayer: 15}, gate: 0.5}}
"""


# ---- parts ----------------------------------------------------------------

def norm(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def bf16(x):
    """Nearest even on the bits of a float32 array."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = bits + 0x7fff + (bits >> np.uint64(16) & np.uint64(1))
    return (bits & np.uint64(0xffff0000)).astype(np.uint32).view(np.float32).astype(np.float64)


def angles(f, positions):
    """cos and sin [positions, D/4] as bf16, of angles that are float32 products."""
    theta = (np.float32(positions)[:, None] * f).astype(np.float64)
    return (torch.from_numpy(bf16(t)) for t in (np.cos(theta), np.sin(theta)))


def yarn(f, scale, old, new, alpha, beta):
    f64 = f.astype(np.float64)
    c = np.minimum(1, np.maximum(0, (old * f64 / (2 * math.pi) - alpha) / (beta - alpha)))
    return (f64 * (old / new + c * (1 - old / new))).astype(np.float32), \
        scale * (1 + 0.2 * math.log(new / old))


def turn(x, cos, sin):
    """x [positions, D], its first half turned pair by pair of neighbours."""
    out = x.clone()
    for j in range(D // 4):
        a, b = x[:, 2 * j], x[:, 2 * j + 1]
        out = out.index_copy(1, torch.tensor([2 * j, 2 * j + 1]), torch.stack(
            (cos[:, j] * a + sin[:, j] * b, cos[:, j] * b - sin[:, j] * a), 1))
    return out


def hash_rows(tokens, wrong):
    """Row numbers; position 0 is overwritten before position 1 looks back at it."""
    m, s, out = np.int32(ROWS - 1), tokens.astype(np.int32), [ROWS - 1]
    if "hash" not in wrong:
        s = s.copy()
        s[0] = m
    with np.errstate(over="ignore"):
        for t in range(1, len(s)):
            g = np.bitwise_xor(np.int32(36313) * np.int32(tokens[t]), np.int32(27191) * s[t - 1])
            out.append(int(np.mod(g, m)))       # of numpy: of the divisor's sign
    return torch.tensor(out)


def table(bits, bias, codes):
    """Non-negative numbers of an 8-bit format by code, for e4m3 and e5m2."""
    scale = 1 << bits
    return np.array([math.ldexp(c, 1 - bias - bits) if c < scale else
                     math.ldexp(scale + c % scale, c // scale - bias - bits) for c in range(codes)])


E4M3, E5M2 = table(3, 7, 127), table(2, 15, 124)


def quantised(x, numbers):
    """Each entry to the nearest number, of two the one of even code, at most the last."""
    x = np.asarray(x)
    a = np.minimum(np.abs(x), numbers[-1])
    high = np.clip(np.searchsorted(numbers, a), 1, len(numbers) - 1)
    low = high - 1
    over = (a - numbers[low]) - (numbers[high] - a)
    up = (over > 0) | (over == 0) & (high % 2 == 0)
    return np.copysign(np.where(up, numbers[high], numbers[low]), x)


class Net:
    """One sequence of tokens through the parts of a net with parameters p."""

    def __init__(self, p, tokens, ve, split=(), stage=0, wrong=()):
        self.p, self.tokens, self.wrong = p, tokens.numpy(), wrong
        self.ve, self.split = ve, split
        self.eps = 1e-6 if "eps" in wrong else 1.1920929e-7
        self.short, self.long = ((5, 7), (6, 13), (6, 15))[stage]
        f, scale = (1024.0 ** -np.arange(2)).astype(np.float32), 0.1
        self.plain = f, scale
        if stage:
            f, scale = yarn(f, scale, 7, 13, 0.02, 3)
        if stage == 2 and "final_yarn" in wrong:
            f, scale = yarn(f, scale, 13, 15, 0.02, 3)
        self.f, self.scale = f, scale
        starts = [t for t in range(T) if t == 0 or self.tokens[t] == BOS]
        self.start = [max(s for s in starts if s <= t) for t in range(T)]
        self.embed()

    def embed(self):
        p, e = self.p, self.p["embed"][torch.from_numpy(self.tokens)]
        rows = [e[0]]
        for t in range(1, T):
            read = norm(e[t], self.eps) if "smear" in self.wrong else e[t]
            gate = torch.sigmoid(p["smear.weight"] @ read[:12])
            rows.append(e[t] + p["smear.lambda"] * gate * e[t - 1])
        self.x0 = norm(torch.stack(rows), self.eps)
        self.b = p["hc.sources.bigram.table"][hash_rows(self.tokens, self.wrong)]

    def attn(self, i, x):
        """[T, C] of the normed x."""
        p, w = self.p, f"layers.{i}.attn."
        a, paired, wrong = norm(x, self.eps), i in PAIRED, self.wrong
        read = x if "gates" in wrong else a
        lam = p[w + "sa_lambda"]
        W = p[w + "qkv"].view(3, H, D, C)
        q, k, v = ([a @ (lam[0] * W[j, h]).T for h in range(H)] for j in range(3))
        f, scale = self.f, self.scale
        if "yarn" in wrong and i not in LONG:
            f, scale = self.plain
        for h in range(H):
            at = np.arange(T)
            if paired:
                at = 2 * at + (h // 3 if "rope" in wrong else h % 2)
            cos, sin = angles(f, at)
            q[h], k[h] = (turn(norm(y[h], self.eps), cos, sin) for y in (q, k))
        if i in LONG or "offset_layers" in wrong:
            for h in range(H):
                y = k[h]
                k[h] = torch.stack([torch.cat((y[t, :4], y[self.before(t), 4:]))
                                    for t in range(T)])
        if i in self.ve:
            row = p[w + "value_embed"][torch.from_numpy(self.tokens)]
            both = torch.cat((read[:, :6], row[:, :6]), 1) if i in self.split else read[:, :12]
            for h in range(H):
                g = 2 * torch.sigmoid(both @ p[w + "value_gate"][h])
                v[h] = v[h] + g[:, None] * row[:, D * h:D * h + D]
        y = self.paired(q, k, v, scale) if paired else self.single(i, q, k, v, scale)
        y = [y[h] * torch.sigmoid(read[:, :12] @ p[w + "gate"][h])[:, None] for h in range(H)]
        return torch.cat(y, 1) @ (lam[1] * p[w + "out"]).T

    def before(self, t):
        own = t == 0 or "offset_documents" in self.wrong and self.start[t] == t
        return t if own else t - 1

    def single(self, i, q, k, v, scale):
        w = self.long if i in LONG else self.short
        w -= "window" in self.wrong
        out = []
        for h in range(H):
            rows = []
            for t in range(T):
                low = max(self.start[t], t - w)
                s = scale * (k[h][low:t + 1] @ q[h][t])
                rows.append(torch.softmax(s, 0) @ v[h][low:t + 1])
            out.append(torch.stack(rows))
        return out

    def paired(self, q, k, v, scale):
        """2T rows of 3 heads: slot 6t + h is head h mod 3 of row 2t + h div 3."""
        q, k, v = (torch.stack(x, 1).view(2 * T, 3, D) for x in (q, k, v))
        w = 2 * self.short if "paired_window" in self.wrong else self.short
        rows = []
        for r in range(2 * T):
            low, high = max(2 * self.start[r // 2], r - w), r + 1
            if "paired_causal" in self.wrong:
                high = r // 2 * 2 + 2       # whole tokens
            heads = []
            for g in range(3):
                s = scale * (k[low:high, g] @ q[r, g])
                heads.append(torch.softmax(s, 0) @ v[low:high, g])
            rows.append(torch.stack(heads))
        return list(torch.stack(rows).view(T, H, D).unbind(1))

    def mlp(self, i, x):
        w = f"layers.{i}.mlp."
        pre = norm(x, self.eps) @ self.p[w + "up"].T
        return torch.where(pre > 0, pre, 0 * pre) ** 2 @ self.p[w + "down"]

    def gate(self, x):
        p = self.p
        read = x if "skip" in self.wrong else self.x0
        token = torch.sigmoid(read[:, :12] @ p["hc.skips.s.gate_weight"])
        return (torch.sigmoid(p["hc.skips.s.gate"]) * 2 * token)[:, None]

    def source(self, name, row, k=0):
        c = self.p[f"hc.sources.{name}.coef"]
        return c[row, k] if c.dim() == 2 and c.shape[1] > 1 else c[row].reshape(())

    def backout(self, x, kept):
        return norm(x - self.p["hc.backouts.x7.gate"] * kept, self.eps)


# ---- heads ----------------------------------------------------------------

def loss_and_slope(l, targets, weights, tokens, wrong):
    """Sum of the row losses and its gradient by the logits, by the formula of the softcap."""
    n = USED if "padding" in wrong else V
    total, slope = 0.0, np.zeros((T, V))
    for r in range(T):
        u = 1 / (1 + np.exp(-(l[r, :n] + 5) / 7.5))
        z = 23 * u
        lse = math.log(np.exp(z).sum())
        ahead = [(k, w) for k, w in enumerate(weights) if r + k < T]
        if "targets" in wrong:      # none beyond the document
            ahead = [(k, w) for k, w in ahead if BOS not in tokens[r + 1:r + k + 1]]
        g = sum(w for _, w in ahead) * np.exp(z - lse)
        for k, w in ahead:
            total += w * (lse - z[targets[r + k]])
            g[targets[r + k]] -= w
        slope[r, :n] = g * z * (1 - u) / 7.5
    return total, slope


def fp8_head(y, head, targets, weights, tokens, wrong):
    """Sum of the row losses; gradients by y and by the head, with the sum's own factor 1."""
    x_s, w_s, g_s = (v / 448 for v in SCALES)
    if "fp8" in wrong:
        l = y @ head.T
        total, slope = loss_and_slope(l, targets, weights, tokens, wrong)
        return total, slope @ head, slope.T @ y
    # a quotient halfway between two numbers is one exactly: y over x_s often is
    X8, W8 = quantised(bf16(y) * 448 / SCALES[0], E4M3), quantised(head / w_s, E4M3)
    total, slope = loss_and_slope(bf16(x_s * w_s * (X8 @ W8.T)), targets, weights, tokens, wrong)
    factor = 1 / T if "fp8_scale" in wrong else 1.0     # the loss's factor before the rounding
    G8 = quantised(factor * slope / g_s, E5M2) / factor
    return total, g_s * w_s * (G8 @ W8), x_s * g_s * (G8.T @ X8)


def grads_by_hand(p, trunk, tokens, targets, weights, wrong):
    """loss and grad.NAME of the mean over the positions."""
    leaf = {k: v.detach().clone().requires_grad_() for k, v in p.items()}
    y = trunk(leaf)
    total, dy, dhead = fp8_head(y.detach().numpy(), p["head"].detach().numpy(), targets.numpy(),
                                weights, tokens.numpy(), wrong)
    y.backward(torch.from_numpy(dy) / T)
    out = {"grad." + k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in leaf.items()}
    out["grad.head"] = torch.from_numpy(dhead) / T
    out["loss"] = torch.tensor(total / T, dtype=torch.float64)
    return out


# ---- the nets -------------------------------------------------------------

def master(net):
    """One stream with a mix per layer."""
    p, x, b, x0 = net.p, net.x0, net.b, net.x0
    S = X7 = None
    for i in range(11):
        if i == 6:
            x = x + net.gate(x) * S
        resid = p["hc.resid_lambda"][i]
        if i == 0:
            x = (resid + net.source("x0", 0)) * x + net.source("bigram", 0) * b
        else:
            x = resid * x + net.source("x0", i) * x0 + net.source("bigram", i) * b
        if i != 6:
            x = x + net.attn(i, x)
        x = x + net.mlp(i, x)
        if i == 3:
            S = x
        if i == 7:
            X7 = x
    return net.backout(x, X7)


def injection(net, o, table_row=None):
    """J of the layer whose attention is sublayer o; the bigram of layer 0 is in the lanes."""
    row = o if table_row is None else table_row
    J = net.source("x0", row) * net.x0
    return J if o == 0 else J + net.source("bigram", row) * net.b


def parallel(net):
    """Two lanes from layer 7; injections pass the write coefficients."""
    p = net.p
    rl, w = p["hc.resid_lambda"], p["hc.post"]
    A, B, S, X7 = net.x0 + net.source("bigram", 0) * net.b, None, None, None
    for i in range(11):
        o = 2 * i
        if i == 7:
            B = A
        if i == 6:
            A = A + net.gate(A) * S
        else:
            y = net.attn(i, A) + injection(net, o)
            A = rl[o] * A + w[o, 0] * y
            if i >= 7:
                B = rl[o] * B + w[o, 1] * y
        if i == 3:
            S = A
        m = net.mlp(i, B if i >= 7 else A)
        A = rl[o + 1] * A + w[o + 1, 0] * m
        if i >= 7:
            B = rl[o + 1] * B + w[o + 1, 1] * m
        if i == 7:
            X7 = A
    return net.backout(0.5 * (A + B), X7)


def flat(net):
    """The same with injections into lane 0 alone, beside the write, which early attention has
    no coefficient for."""
    p = net.p
    rl, w = p["hc.resid_lambda"], p["hc.post"]
    A, B, S, X7 = net.x0 + net.source("bigram", 0) * net.b, None, None, None
    for i in range(11):
        o = 2 * i
        if i == 7:
            B = A
        if i == 6:
            A = A + net.gate(A) * S
        elif i < 7:
            A = rl[o] * A + net.attn(i, A) + injection(net, o, i)
        else:
            y = net.attn(i, A)
            A = rl[o] * A + w[o, 0] * y + injection(net, o, i)
            B = rl[o] * B + w[o, 1] * y
        if i == 3:
            S = A
        m = net.mlp(i, B if i >= 7 else A)
        A = rl[o + 1] * A + w[o + 1, 0] * m
        if i >= 7:
            B = rl[o + 1] * B + w[o + 1, 1] * m
        if i == 7:
            X7 = A
    return net.backout(0.5 * (A + B), X7)


def simple(net):
    """No lanes; the last three attention layers read what layer 7 left."""
    p = net.p
    rl, w = p["hc.resid_lambda"], p["hc.post"].flatten()
    x, S, X7 = net.x0 + net.source("bigram", 0) * net.b, None, None
    for i in range(11):
        o = 2 * i
        if i == 6:
            x = x + net.gate(x) * S
        else:
            read = x if i <= 7 else X7
            x = rl[o] * x + w[o] * net.attn(i, read) + injection(net, o, i)
        x = rl[o + 1] * x + w[o + 1] * net.mlp(i, x)
        if i == 3:
            S = x
        if i == 7:
            X7 = x
    return net.backout(x, X7)


def two_lanes(net, injected=lambda s: True):
    """Attention reads lane 0, MLP lane 1, both write both; `injected` are the sublayers of the
    sources' terms."""
    p = net.p

    def c(name, *at):
        return p["hc." + name][at]

    X, S, X7 = [net.x0 + net.source("bigram", 0, k) * net.b for k in range(2)], None, None
    for s in range(22):
        i = s // 2
        if s == 12:
            continue                                    # layer 6 has no attention
        if s == 13:
            S_ = net.gate(X[0]) * S
            X = [x + S_ for x in X]
        u = X[s % 2]
        h = net.mlp(i, u) if s % 2 else net.attn(i, u)
        Y = []
        for k in range(2):
            mixed = sum(c("res", s, k, l) * X[l] for l in range(2)) if "hc.res" in p else X[k]
            y = c("resid_lambda", s) * mixed + c("post", s, k) * h
            if injected(s):
                y = y + net.source("x0", s, k) * net.x0
                y = y + net.source("bigram", s, k) * net.b if s else y
            Y.append(y)
        X = Y
        if s == 6:
            S = X[0]
        if s == 15:
            X7 = X[0]
    return net.backout(0.5 * (X[0] + X[1]), X7)


# ---- comparing ------------------------------------------------------------

EARLY, LATE = ((0, 1, 8, 9, 10), ()), ((1, 2, 8, 9, 10), (1, 8, 10))


def sequence(seed=3):
    """Tokens and targets [1, T]: documents begin at 5 and 12, and 2 is the end of the first row."""
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(USED - 1, (T + 1,), generator=g)
    row[5] = row[12] = row[13] = BOS
    return row[:-1][None], row[1:][None]


def values(spec):
    """Random, with coefficients near their first values; rows of padding are used by nobody."""
    p = {k: v.detach() for k, v in doubles(spec).items()}
    p["head"] = p["head"] * 2
    return p


def by_oracle(spec, stage):
    return oracle.gradients(spec, values(spec), *sequence(), torch.float64, False,
                            stages.named(spec, stage))


def by_hand(spec, function, places, stage, wrong=()):
    p, (tokens, targets) = values(spec), sequence()
    if spec.hc.coef_dtype == "bf16":
        names = ("hc.res", "hc.pre", "hc.post", "hc.resid_lambda")
        p = {k: v.bfloat16().double() if k in names or k.endswith(".coef") else v
             for k, v in p.items()}

    def trunk(leaf):
        return function(Net(leaf, tokens[0], *places, "ab".index(stage), wrong))

    return grads_by_hand(p, trunk, tokens[0], targets[0], [1, 0.5, 0.25], wrong)


def distance(a, b):
    """The largest relative difference of a gradient that is not zero."""
    assert set(a) == set(b), set(a) ^ set(b)
    return max(((a[k] - b[k]).norm() / b[k].norm().clamp(min=1e-9)).item() for k in a)


def agrees(text, function, places, stage="a", change=()):
    """The oracle's gradients, which are those by hand."""
    spec = text_spec(text, *change)
    got = by_oracle(spec, stage)
    error = distance(got, by_hand(spec, function, places, stage))
    assert error < 1e-9, error
    return got


@case
def record_by_hand():
    """The single-stream net, in both stages, every gradient."""
    for stage in "ab":
        agrees(MASTER, master, EARLY, stage)


@case
def habits_change_the_record():
    """Each detail of the published net, done as one would by habit, is another gradient."""
    spec = text_spec(MASTER)
    got = by_oracle(spec, "b")
    for wrong, least in (("eps", 1e-6), ("rope", 1e-3), ("window", 1e-2), ("paired_window", 1e-2),
                         ("paired_causal", 1e-2), ("offset_layers", 1e-2),
                         ("offset_documents", 1e-3), ("gates", 1e-2), ("smear", 1e-3),
                         ("skip", 1e-3), ("hash", 1e-2), ("targets", 1e-2), ("padding", 1e-3),
                         ("fp8", 1e-2), ("fp8_scale", 1e-3), ("yarn", 1e-2)):
        error = distance(got, by_hand(spec, master, EARLY, "b", (wrong,)))
        assert error > least, (wrong, error)


@case
def validations_by_hand():
    """The next token alone, the exact head; the last one has windows of its own and no YaRN."""
    spec = text_spec(MASTER)
    p, (tokens, targets) = values(spec), sequence()
    model = Model(spec)
    for stage, number in (("a", 0), ("b", 1), (None, 2)):
        model.enter(stages.named(spec, stage) if stage else stages.final(spec))
        got = model.validation_loss(p, tokens, targets)

        def want(wrong, fp8=("fp8",)):
            y = master(Net(p, tokens[0], *EARLY, number, wrong)).numpy()
            return fp8_head(y, p["head"].numpy(), targets[0].numpy(), [1.0], tokens[0].numpy(),
                            fp8)[0] / T

        close(got, want(()), 1e-13)
        assert abs(got - want((), ())) > 1e-6
        if stage is None:
            assert abs(got - want(("final_yarn",))) > 1e-7


@case
def parallel_residuals_by_hand():
    got = agrees(PARALLEL, parallel, LATE)
    agrees(PARALLEL, parallel, LATE, "b")
    # outside of the range the second lane's column has no gradient, nor has layer 6's attention
    post = got["grad.hc.post"]
    assert post[:14, 1].abs().max() == 0 and post[14:].abs().min() > 0
    assert post[12].abs().max() == 0 and post[:12, 0].abs().min() > 0
    assert got["grad.hc.sources.x0.coef"].shape == (22, 1)
    assert got["grad.hc.sources.x0.coef"][1::2].abs().max() == 0


@case
def flattened_forward_by_hand():
    got = agrees(FLAT, flat, LATE)
    agrees(FLAT, flat, LATE, "b")
    assert got["grad.hc.sources.bigram.coef"].shape == (11, 1)
    assert got["grad.hc.post"][:13:2].abs().max() == 0


@case
def simplified_by_hand():
    agrees(SIMPLE, simple, LATE)
    agrees(SIMPLE, simple, LATE, "b")


@case
def two_lanes_by_hand():
    """The log's net; with frozen mixing; with sources at attention alone and rounded
    coefficients."""
    def attention(s):
        return s % 2 == 0

    agrees(TWO_LANES, two_lanes, EARLY)
    agrees(TWO_LANES, two_lanes, EARLY, change=["hc.res.learned=false"])
    only = ["hc.res.learned=false", "hc.sources.x0.sublayers=attn",
            "hc.sources.bigram.sublayers=attn", "hc.coef_dtype=bf16"]
    got = agrees(TWO_LANES, lambda net: two_lanes(net, attention), EARLY, "b", change=only)
    # rows of the dead sublayer and of MLPs, and where the lanes start
    for name in ("x0", "bigram"):
        g = got[f"grad.hc.sources.{name}.coef"]
        assert g[1::2].abs().max() == 0 and g[12].abs().max() == 0 and g[0].abs().min() > 0
    for name in ("hc.post", "hc.resid_lambda"):
        assert got["grad." + name][12].abs().max() == 0
