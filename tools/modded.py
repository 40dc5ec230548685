#!/usr/bin/python3
"""Weights of modded-nanogpt under the names of specs/baseline.yaml, to run the same net here.

    modded.py CHECKPOINT.pt OUT.safetensors [--net baseline|parallel-residuals|flatten-forward|simplify-hc]
    build/hcgen verify specs/NET.yaml --params OUT.safetensors --tokens T.bin --dump HERE.safetensors --logits

CHECKPOINT is a state dict, or a dictionary with one under `model`.  docs/upstream.md says what becomes of what; a
tensor that is missing, left over or of another shape than its neighbours say is an error.  Needs PyTorch.
"""
import argparse
import json
import struct
import sys

import torch

NETS = ("baseline", "parallel-residuals", "flatten-forward", "simplify-hc")
# layers with a value table, in the order of tables (record 70 moved the first two)
VALUES = {"baseline": (0, 1, 8, 9, 10)}
WITHOUT_ATTENTION = 6


class Source:
    """The state dict; what is taken is gone."""

    def __init__(self, state):
        self.state = {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in state.items()}

    def take(self, name):
        if name not in self.state:
            sys.exit(f"the checkpoint has no {name}; it has {', '.join(sorted(self.state))}")
        return self.state.pop(name).float()


def banks(src, net, out):
    """attn_bank [A, 4d, d], mlp_bank [L + 1, 2, 4d, d], gates and value tables by layer"""
    attn, mlp, gate = src.take("attn_bank"), src.take("mlp_bank"), src.take("attn_gate_bank")
    tables, value_gate = src.take("value_embeds"), src.take("ve_gate_bank")
    layers = [i for i in range(len(attn) + 1) if i != WITHOUT_ATTENTION]
    values = VALUES.get(net, (1, 2, 8, 9, 10))
    d = attn.shape[-1]
    for k, i in enumerate(layers):
        out[f"layers.{i}.attn.qkv"] = attn[k, :3 * d]
        out[f"layers.{i}.attn.out"] = attn[k, 3 * d:]
        out[f"layers.{i}.attn.gate"] = gate[k]
    for k, i in enumerate(values):
        out[f"layers.{i}.attn.value_embed"] = tables.view(len(values), -1, d)[k]
        out[f"layers.{i}.attn.value_gate"] = value_gate[k]
    for i in range(len(layers) + 1):
        out[f"layers.{i}.mlp.up"], out[f"layers.{i}.mlp.down"] = mlp[i, 0], mlp[i, 1]
    return layers


def scalars_of_baseline(src, layers, out):
    """resid [L], pairs of sa lambdas [L, 2], bigram [L], smear, backout, skip, padding"""
    s, n = src.take("scalars"), len(layers) + 1
    out["hc.resid_lambda"] = s[:n]
    for i in layers:
        out[f"layers.{i}.attn.sa_lambda"] = s[n + 2 * i:n + 2 * i + 2]
    out["hc.sources.bigram.coef"] = s[3 * n:4 * n, None]
    out["hc.sources.x0.coef"] = src.take("x0_lambdas")[:, None]
    return s[4 * n:]


def scalars_of_lanes(src, net, layers, out):
    """pairs of sa lambdas [L, 2], smear, backout, skip, padding; tables of their own"""
    s, n = src.take("scalars"), len(layers) + 1
    for i in layers:
        out[f"layers.{i}.attn.sa_lambda"] = s[2 * i:2 * i + 2]
    if net == "parallel-residuals":
        out["hc.post"] = src.take("w_post")[..., 0]
        names = {"x0": "x0_lambda", "bigram": "bigram_lambda"}
        out["hc.resid_lambda"] = src.take("resid_lambda")
    else:
        post = src.take("post_lambdas")
        out["hc.post"] = post.reshape(2 * n, -1)
        names = {"x0": "x0_lambdas", "bigram": "bigram_lambdas"}
        out["hc.resid_lambda"] = src.take("resid_lambdas").reshape(-1)
    for source, name in names.items():
        out[f"hc.sources.{source}.coef"] = src.take(name).reshape(-1, 1)
    return s[2 * n:]


def convert(state, net):
    src, out = Source(state), {}
    out["embed"], out["head"] = src.take("embed.weight"), src.take("lm_head.weight").T
    layers = banks(src, net, out)
    rest = scalars_of_baseline(src, layers, out) if net == "baseline" else scalars_of_lanes(src, net, layers, out)
    out["smear.lambda"], out["hc.backouts.backout.gate"], out["hc.skips.skip.gate"] = rest[0:1], rest[1:2], rest[2:3]
    out["smear.weight"], out["hc.skips.skip.gate_weight"] = src.take("smear_gate.weight")[0], src.take("skip_gate.weight")[0]
    out["hc.sources.bigram.table"] = src.take("bigram_embed.weight")
    if src.state:
        sys.exit(f"nothing here is {', '.join(sorted(src.state))} of the checkpoint")
    return {k: v.contiguous() for k, v in out.items()}


def save(path, tensors):
    """safetensors in float32: length of the header, header, data"""
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + 4 * t.numel()]}
        at += 4 * t.numel()
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.numpy().tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--net", choices=NETS, default="baseline")
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu")
    save(args.out, convert(state.get("model", state), args.net))


if __name__ == "__main__":
    main()
