"""What the self-tests share: the register of cases, specs to try things on, comparisons."""
import os
import tempfile

import torch

import init
import oracle
import spec as specs
from model import Model

CASES = []
FOLDER = tempfile.TemporaryDirectory()


def case(f):
    CASES.append(f)
    return f


# ---- specs used below -----------------------------------------------------

TINY = """
name: tiny
model: {layers: 3, width: 12, heads: 2, vocab: 23, vocab_multiple: 8, norm_eps: 0.001}
train: {tokens_per_step: 22, seq_len: 11}
data: {bos: 3, shuffle: false}
"""

# everything learned, everything present; layer 1 has no attention
FULL = """
extends: tiny.yaml
model:
  heads: 4
  kv_heads: 2
  head_dim: 6
  norm_weight: true
  attention: {window: [4, full], layers: {except: [1]}}
  rotary: {kind: half, dims: 4}
  softcap: {kind: sigmoid, cap: 23}
  mlp: {kind: swiglu, hidden: 10}
hc:
  lanes: 3
  lane_init: {kind: split, learned: true}
  output: learned
  res: {init: {identity: 1.02}, learned: true}
  pre: {learned: true}
  post: {init: {ramp: [0.8, 1.8]}, learned: true, sublayers: {except: [3]}}
  resid_lambda: {granularity: lane, init: 1.05}
  sources:
    x: {kind: x0, init: 0.1, site: before_read}
    big: {kind: bigram, rows: 17, table_std: 0.5, init: 0.05, first: both, sublayers: attn}
  skips:
    a: {from: {sublayer: 0, lane: 1}, to: {sublayer: 3},
        gate: {kind: token, init: 0.3, channels: 5}}
    b: {from: {sublayer: 3, lane: mean, when: before}, to: {sublayer: 4, lane: 2, when: after},
        gate: 0.4}
  backouts:
    out: {from: {sublayer: 2, lane: 2}, gate: {kind: sigmoid, init: -1}}
"""

# a range in the middle that keeps its lanes, terms per layer, a dead sublayer
KEEP = """
extends: full.yaml
model: {tied: true, mlp: gelu, attention: {document_mask: false, scale: 0.3}, rotary: adjacent,
        softcap: {kind: tanh, cap: 5}, layers: 4}
hc:
  layers: [1, 2]
  leave: keep
  lane_init: first
  dead: [4]
  resid_lambda: {granularity: layer, site: before_read}
  sources: {x: {granularity: layer, shared: true, site: at_write, init: [0.1], first: lane_init}}
  skips:
    a.from.sublayer: 2
    b: {to: {lane: all, sublayer: 5}, from: {sublayer: 4}}
"""

# a range at the start that leaves by the sum; ReLU squared
LEAVE = """
extends: full.yaml
model: {mlp: relu2, embed_norm: false}
hc:
  layers: {last: 1}
  leave: sum
  post.layers: [0]
  skips: {b: none}
  backouts: {out: {from: {sublayer: 2, when: before, lane: mean}}}
"""

# smear and the attention branch's parts, each on a choice of layers of its own
PARTS = """
extends: full.yaml
model:
  layers: 4
  smear: {channels: 7}
  attention:
    gate: {layers: {except: [3]}, channels: 5}
    sa_lambda: {layers: [0, 1, 3], init: [0.5, 1.5]}
    key_offset: {layers: {first: 2}, first: 3}
  value_embed: {layers: [0, 1, 3], channels: 4, std: 0.7}
  rotary: {frequencies: endpoint, dtype: bf16}
"""

# paired heads in layers with and without each of the parts; layers 2 and 3 have one window,
# which only one of them counts in rows
PAIRED = """
extends: parts.yaml
model:
  heads: 6
  kv_heads: 6
  head_dim: 4
  attention: {paired: [0, 1, 3], window: [5, full, 3, 3]}
"""

# sources of one lane and of the branch, one with signs, writes outside of the range, reads of kept values
SITES = """
extends: full.yaml
hc:
  layers: {first: 1}
  post: {outside: true, sublayers: all}
  sources:
    x: {lane: 2}
    big: {site: on_branch, first: in_place, signs: 5}
  skips: {a.from.lane: 0}
  reads:
    r: {from: {sublayer: 3, lane: 1}, sublayers: [4]}
    q: {from: {sublayer: 4, lane: mean, when: before}, sublayers: [5]}
"""


def write_specs():
    for name, text in (("tiny", TINY), ("full", FULL), ("keep", KEEP), ("leave", LEAVE),
                       ("parts", PARTS), ("paired", PAIRED), ("sites", SITES)):
        with open(os.path.join(FOLDER.name, name + ".yaml"), "w") as f:
            f.write(text)


def read(name, *settings):
    return specs.read(os.path.join(FOLDER.name, name + ".yaml"), settings)


def text_spec(text, *settings):
    with open(os.path.join(FOLDER.name, "text.yaml"), "w") as f:
        f.write(text)
    return read("text", *settings)


def tokens_for(spec, seed=0):
    """Tokens and targets [2, seq_len] with documents in them."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(spec.model.vocab, (2, spec.train.seq_len + 1), generator=g)
    rows[0, 4] = rows[1, 0] = rows[1, 7] = spec.data.bos
    return rows[:, :-1], rows[:, 1:]


def doubles(spec, seed=1):
    return {k: v.double() for k, v in init.random(spec, seed).items()}


def loss_of(spec, params, tokens=None, targets=None):
    tokens, targets = (tokens, targets) if tokens is not None else tokens_for(spec)
    return Model(spec).loss(params, tokens, targets)


def grads_of(spec, values, dtype=torch.float64):
    tokens, targets = tokens_for(spec)
    return oracle.gradients(spec, values, tokens, targets, dtype, True)


def close(a, b, tol):
    # numbers by way of float64: as_tensor alone would make float32 of them
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    error = (a - b).abs().max().item() if a.numel() else 0.0
    assert error <= tol * max(1.0, b.abs().max().item()), error


def raises(f, word):
    try:
        f()
    except specs.SpecError as e:
        assert word in str(e), e
    else:
        raise AssertionError("no error")
