"""Initial values: a counter-based generator keyed by the seed and the name.

Element i of a parameter depends on nothing but (seed, name, i), so adding a
parameter or changing a shape's leading dimension leaves the others alone.
"""
import hashlib

import numpy as np
import torch

from parameters import parameters

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _splitmix64(z):
    """The finalizer alone, elementwise on uint64."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def _words(seed, name, count):
    """The upper 53 bits of the first words, exact in float64."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    base = np.uint64(int.from_bytes(digest[:8], "little"))
    w = _splitmix64(base + np.arange(count, dtype=np.uint64) * _GOLDEN)
    return (w >> np.uint64(11)).astype(np.float64)


def normal(seed, name, count, std):
    """count normal values as float64 that are exactly float32."""
    if std == 0:
        return np.zeros(count)
    w = _words(seed, name, 2 * count)
    u1, u2 = (w[0::2] + 1) * 2.0 ** -53, w[1::2] * 2.0 ** -53
    values = std * np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)
    return values.astype(np.float32).astype(np.float64)


def uniform(seed, name, count, std):
    """The same of a uniform distribution of this standard deviation."""
    u = (_words(seed, name, count) + 0.5) * 2.0 ** -53
    values = std * np.sqrt(3) * (2 * u - 1)
    return values.astype(np.float32).astype(np.float64)


def _tensor(spec, values, param):
    """float32; exactly bfloat16 numbers where the parameter is kept in that type."""
    t = torch.from_numpy(np.array(values, np.float32).reshape(param.shape))
    narrow = spec.numerics.params == "bf16" and param.role in ("matrix", "gate_weight")
    return t.bfloat16().float() if narrow else t


def initial(spec, seed=None):
    """name -> float32 tensor, as training starts."""
    seed = spec.train.seed if seed is None else seed
    out = {}
    for p in parameters(spec):
        draw = uniform if p.uniform else normal
        values = p.values if p.values is not None else \
            draw(seed, p.like or p.name, int(np.prod(p.shape)), p.std)
        out[p.name] = _tensor(spec, values, p)
    return out


def random(spec, seed):
    """name -> float32 tensor, every one random, so that no gradient vanishes."""
    out = {}
    for p in parameters(spec):
        center, std = _spread(spec, p)
        noise = normal(seed, p.like or p.name, int(np.prod(p.shape)), std)
        out[p.name] = _tensor(spec, np.broadcast_to(center, p.shape).reshape(-1) + noise, p)
    return out


def _spread(spec, p):
    """Center and std of a parameter's random values."""
    if p.role == "norm":
        return 1.0, 0.1
    if p.role in ("coef", "gate", "gate_weight"):
        return p.values, 0.3
    if p.name == "embed" and not p.like:
        # as large as the normed rows; tied, it must give logits of about 1
        return 0.0, 1 / p.shape[1] ** 0.5 if spec.model.tied else 1.0
    if p.name.endswith((".table", ".value_embed")):
        return 0.0, 0.5
    return 0.0, 0.5 / p.fan_in ** 0.5
