"""The branches of a layer and the parts they share: norms, rotary, attention, MLP.

Activations are [B, N, C]: B sequences of N positions.  In bfloat16 the norms,
rotary and softmax compute in float32 and round their result, as an eager run
under PyTorch's usual practice does; in float32 and float64 nothing is cast.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F


def rmsnorm(x, eps, weight=None):
    """Over the last dimension, in at least float32."""
    wide = x.float() if x.dtype == torch.bfloat16 else x
    y = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        y = y * weight
    return y.to(x.dtype)


# ---- rotary ---------------------------------------------------------------

def rotary_tables(frequencies, rotary, length, dtype):
    """cos and sin [N, 1, R/2]: rounded to float32 (and to bfloat16), whatever the run's type.

    frequencies are float32, and so is their product with a position; cosine and
    sine of that number are exact up to their own rounding."""
    theta = np.arange(length, dtype=np.float32)[:, None] * frequencies
    theta = torch.from_numpy(theta).double()
    tables = [t.float()[:, None, :] for t in (theta.cos(), theta.sin())]
    if rotary.dtype == "bf16":
        tables = [t.bfloat16() for t in tables]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return tuple(t.to(wide) for t in tables)


def paired_tables(frequencies, rotary, length, heads, dtype):
    """cos and sin [N, heads, R/2] of paired heads: head h of position p turns by 2p + h mod 2.

    Its row is 2p + h div (H/2), which for some heads is the other one: the definition has it so."""
    tables = rotary_tables(frequencies, rotary, 2 * length, dtype)
    by_parity = [t.view(length, 2, -1) for t in tables]
    return tuple(t.repeat(1, heads // 2, 1) for t in by_parity)


def rotate(x, rotary, tables):
    """Turn the first rotary.dims channels of x [B, N, heads, D]; tables [N, 1 or heads, R/2]."""
    cos, sin = tables
    turned, rest = x[..., :rotary.dims], x[..., rotary.dims:]
    if rotary.kind == "half":
        a, b = turned.chunk(2, -1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
    pair = (cos * a + sin * b, cos * b - sin * a)
    out = torch.cat(pair, -1) if rotary.kind == "half" else torch.stack(pair, -1).flatten(-2)
    return torch.cat((out.to(x.dtype), rest), -1)


# ---- attention ------------------------------------------------------------

def visible(length, window, documents=None):
    """Which keys a query sees: bool [N, N], or [B, 1, 1, N, N] with documents [B, N]."""
    p = torch.arange(length)
    distance = p[:, None] - p[None, :]
    seen = distance >= 0
    if window != "full":
        seen = seen & (distance <= window)
    if documents is None:
        return seen
    same = documents[:, :, None] == documents[:, None, :]
    return (seen & same)[:, None, None]


def mask(length, window, documents, dtype):
    """visible() as a term of the scores: 0 where seen, -inf where not."""
    seen = visible(length, window, documents)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf)


def sigmoid_gate(x, weight):
    """sigmoid(weight . x[..., 0:channels]): one number per row of weight [gates, channels]."""
    return F.linear(x[..., :weight.shape[-1]], weight).sigmoid()


def smear(e, weight, factor):
    """e [B, N, C] with a gated part of the row before, but for the first of a sequence."""
    added = factor * sigmoid_gate(e[:, 1:], weight[None]) * e[:, :-1]
    return torch.cat((e[:, :1], e[:, 1:] + added), 1)


def offset_keys(k, first):
    """k [B, N, K, D] with channels first and up of the position before."""
    own, shifted = k[..., :first], k[..., first:]
    return torch.cat((own, torch.cat((shifted[:, :1], shifted[:, :-1]), 1)), -1)


def value_gate(a, row, weight, split):
    """[B, N, K]: of the first channels of a, or half of them and as many of the table's row."""
    half = weight.shape[-1] // 2
    return 2 * sigmoid_gate(torch.cat((a[..., :half], row[..., :half]), -1) if split else a, weight)


def attention(a, w, m, scale, bias, tables, tokens, offset=None, paired=False, split=False):
    """a [B, N, C] through the attention branch, to [B, N, C].

    w holds the layer's parameters by the last part of their names: gate,
    sa_lambda, value_embed and value_gate where the layer has them; offset is
    the first channel of its key offset, if it has one; split is of its value
    gate.  With paired heads bias and tables are those of the 2N rows; only the
    softmax knows of rows, all else is of a position and a head."""
    B, N, _ = a.shape
    H, K, D = m.heads, m.kv_heads, m.head_dim
    qkv, out = w["qkv"], w["out"]
    if "sa_lambda" in w:
        into, outof = w["sa_lambda"].unbind()
        qkv, out = into * qkv, outof * out
    heads = F.linear(a, qkv).view(B, N, H + 2 * K, D)
    qk, v = heads[:, :, :H + K], heads[:, :, H + K:]
    if m.attention.qk_norm:
        qk = rmsnorm(qk, m.norm_eps)
    if m.rotary.kind != "none":
        qk = rotate(qk, m.rotary, tables)
    k = qk[:, :, H:] if offset is None else offset_keys(qk[:, :, H:], offset)
    if "value_embed" in w:
        row = F.embedding(tokens, w["value_embed"])
        v = v + value_gate(a, row, w["value_gate"], split)[..., None] * row.view(B, N, K, D)
    q = qk[:, :, :H] * scale
    if paired:
        # heads 0 .. H/2 - 1 of a position are its even row, the others the odd one
        q, k, v = (x.reshape(B, 2 * N, H // 2, D) for x in (q, k, v))
    o = _attend(q, k, v, bias).reshape(B, N, H, D)
    if "gate" in w:
        o = sigmoid_gate(a, w["gate"])[..., None] * o
    return F.linear(o.flatten(2), out)


def _attend(q, k, v, bias):
    """q [B, N, H, D] over k, v [B, N, K, D], to [B, N, H, D].

    Query heads of one key head are stacked along the rows, so that keys and
    values are never repeated; bias broadcasts over [B, K, H/K, N, N]."""
    B, N, H, D = q.shape
    K = k.shape[2]
    q = q.view(B, N, K, H // K, D).permute(0, 2, 3, 1, 4)
    q = q.reshape(B, K, H // K * N, D)
    k, v = k.permute(0, 2, 3, 1), v.transpose(1, 2)
    o = _softmax(torch.matmul(q, k).view(B, K, H // K, N, N) + bias)
    o = torch.matmul(o.view(B, K, H // K * N, N), v)
    return o.view(B, K, H // K, N, D).permute(0, 3, 1, 2, 4).reshape(B, N, H, D)


def _softmax(scores):
    if scores.dtype == torch.bfloat16:
        return scores.float().softmax(-1).bfloat16()
    return scores.softmax(-1)


# ---- MLP ------------------------------------------------------------------

def mlp(a, up, down, kind):
    """a [B, N, C] through the MLP branch, to [B, N, C]."""
    u = F.linear(a, up)
    if kind == "relu2":
        act = F.relu(u).square()
    elif kind == "gelu":
        act = F.gelu(u, approximate="tanh")
    else:
        gate, u = u.chunk(2, -1)
        act = F.silu(gate) * u
    return torch.matmul(act, down)


# ---- head -----------------------------------------------------------------

def loss_sum(z, targets, weights):
    """Sum over the positions p and over k of weights[k] * loss of z[p] at the target of p + k,
    as far as p + k lies in the same sequence; z [B, N, V], targets [B, N]."""
    if weights == [1.0]:
        return F.cross_entropy(z.flatten(0, 1), targets.flatten(), reduction="sum")
    every, N, total = z.logsumexp(-1), z.shape[1], 0.0
    for k, w in enumerate(weights[:N]):
        at = z[:, :N - k].gather(-1, targets[:, k:, None])[..., 0]
        total = total + w * (every[:, :N - k] - at).sum()
    return total


def softcap(l, cap):
    if cap.kind == "tanh":
        return cap.cap * torch.tanh(l / cap.cap)
    if cap.kind == "sigmoid":
        return cap.cap * torch.sigmoid((l + cap.shift) / cap.temperature)
    return l
