"""Which parameters a spec has: name, shape, initial values, optimizer role.

Definition order: embedding, head and smear, the layers, the final norm, then hc.* in
the order of the computation.
"""
from typing import NamedTuple, Optional

import numpy as np


class Param(NamedTuple):
    name: str
    shape: tuple
    role: str                       # matrix, norm, coef, gate or gate_weight
    std: float = 0.0                # normal initial values, unless `values` says otherwise
    values: Optional[np.ndarray] = None
    owner: Optional[dict] = None    # the section whose lr_mul and betas apply
    decays: bool = True
    fan_in: int = 0                 # of a matrix that a product reads
    uniform: bool = False           # initial values uniform, not normal
    like: Optional[str] = None      # begins with the numbers of this parameter


def parameters(spec):
    """All parameters of the spec, in definition order."""
    return _tables(spec) + _layers(spec) + _hc(spec) + _sources(spec) + _ends(spec)


def _tables(spec):
    m = spec.model
    dims = (spec.padded_vocab, m.width)
    head = Param("head", dims, "matrix", m.init.head_std, fan_in=m.width)
    out = [Param("embed", dims, "matrix", m.init.embed_std)]
    if "untie" in spec.train:
        out = [head._replace(name="embed", like="head")]
    if not m.tied:
        out.append(head)
    if m.smear.channels:
        out += [_coef("smear.weight", np.zeros(m.smear.channels), role="gate_weight"),
                _coef("smear.lambda", [0.0])]
    return out


def _norm(name, spec):
    if not spec.model.norm_weight:
        return []
    return [Param(name, (spec.model.width,), "norm", values=np.ones(spec.model.width),
                  decays=False)]


def _matrix(spec, name, dims, fan_in, how="random"):
    ini = spec.model.init
    std = 0.5 / fan_in ** 0.5 if ini.std == "auto" else ini.std
    return Param(name, dims, "matrix", std if how == "random" else 0.0, fan_in=fan_in,
                 uniform=ini.kind == "uniform")


def _parts(spec, i, prefix):
    """What the attention branch of layer i has besides its norm and matrices."""
    m, out = spec.model, []
    gate, sa, ve = m.attention.gate, m.attention.sa_lambda, m.value_embed
    if i in gate.layers:
        out.append(_coef(prefix + "gate", np.zeros((m.heads, gate.channels)), role="gate_weight"))
    if i in sa.layers:
        out.append(_coef(prefix + "sa_lambda", sa.init))
    if i in ve.layers:
        dims = (spec.padded_vocab, m.kv_heads * m.head_dim)
        out += [Param(prefix + "value_embed", dims, "matrix", ve.std),
                _coef(prefix + "value_gate", np.zeros((m.kv_heads, ve.channels)),
                      role="gate_weight")]
    return out


def _layers(spec):
    m = spec.model
    C, F, HD = m.width, m.mlp.hidden, m.heads * m.head_dim
    qkv = (HD + 2 * m.kv_heads * m.head_dim, C)
    up = (2 * F if m.mlp.kind == "swiglu" else F, C)
    out = []
    for i in range(m.layers):
        attn, mlp = f"layers.{i}.attn.", f"layers.{i}.mlp."
        if i in m.attention.layers:
            out += _norm(attn + "norm", spec)
            out.append(_matrix(spec, attn + "qkv", qkv, C))
            out.append(_matrix(spec, attn + "out", (C, HD), HD, m.init.attn_out))
            out += _parts(spec, i, attn)
        if i in m.mlp.layers:
            out += _norm(mlp + "norm", spec)
            out.append(_matrix(spec, mlp + "up", up, C))
            # a row per hidden channel: the product sums over rows
            out.append(_matrix(spec, mlp + "down", (F, C), F, m.init.mlp_out))
    return out + _norm("final_norm", spec)


def _coef(name, values, owner=None, role="coef"):
    values = np.asarray(values, float)
    return Param(name, values.shape, role, values=values, owner=owner, decays=False)


def _hc(spec):
    hc, out = spec.hc, []
    if hc.lane_init.learned:
        out.append(_coef("hc.lane_init", np.zeros((hc.lanes, spec.model.width))))
    for key in ("res", "pre", "post", "resid_lambda"):
        if hc[key].learned and hc[key].shape:
            out.append(_coef("hc." + key, hc[key].init, hc[key]))
    return out


def _sources(spec):
    out = []
    for name, src in spec.hc.sources.items():
        if src.learned:
            out.append(_coef(f"hc.sources.{name}.coef", src.init, src))
        if src.kind == "bigram":
            out.append(Param(f"hc.sources.{name}.table", (src.rows, spec.model.width),
                             "matrix", src.table_std))
    return out


def _ends(spec):
    hc, out = spec.hc, []
    for kind in ("skips", "backouts"):
        for name, skip in hc[kind].items():
            base, gate = f"hc.{kind}.{name}.gate", skip.gate
            if gate.learned:
                out.append(_coef(base, [gate.init], role="gate"))
            if gate.kind == "token":
                out.append(_coef(base + "_weight", np.zeros(gate.channels), role="gate_weight"))
    if hc.output == "learned":
        out.append(_coef("hc.output", np.full(hc.lanes, 1 / hc.lanes)))
    return out
