"""The oracle against independent arithmetic: plain asserts, one line per case.

Nothing here is compared with itself: gradients with central differences, the
vectorised parts with loops, the lane algebra with a dense transcription of
docs/spec.md, whole nets with what is published about them (facts_cases.py).
"""
import contextlib
import hashlib
import math
import os
import sys
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F

import branches
import data
import fp8
import init
import oracle
import safetensors
import spec as specs
import stages
from model import Model, bigram_rows, bigram_signs, mix32
from parameters import parameters
from testing import (CASES, FOLDER, TINY, case, close, doubles, grads_of, loss_of, raises, read,
                     text_spec, tokens_for, write_specs)

import facts_cases  # noqa: F401  its cases register themselves


# ---- the loader -----------------------------------------------------------

@case
def spec_defaults():
    s = read("tiny")
    assert s.model.mlp.hidden == 48 and s.model.kv_heads == 2 and s.model.head_dim == 6
    assert s.padded_vocab == 24 and s.model.rotary.dims == 6 and s.sublayers == 6
    assert s.model.softcap.kind == "none" and s.hc.lanes == 1 and s.hc.layers == [0, 1, 2]
    names = [p.name for p in parameters(s)]
    assert names[:4] == ["embed", "head", "layers.0.attn.qkv", "layers.0.attn.out"]
    assert len(names) == 14


@case
def spec_shorthands():
    s = text_spec("""
extends: tiny.yaml
model.softcap: 15
model: {rotary: none, mlp: gelu, attention.window: 3}
hc: {lanes: 2, pre: [0.5, 0.25], post.init.ramp: [1, 2], resid_lambda: sublayer, lane_init: first}
hc.sources.x.kind: x0
data: [a.bin, b.bin]
""")
    assert s.model.softcap.kind == "tanh" and s.model.softcap.cap == 15
    assert s.model.rotary.kind == "none" and s.model.mlp.kind == "gelu"
    assert s.model.attention.window == [3] and s.data.train == ["a.bin", "b.bin"]
    assert s.hc.pre.init.tolist() == [[0.5, 0.25]] * 6
    assert np.allclose(s.hc.post.init[:, 1], 1 + np.arange(6) / 5)
    assert s.hc.lane_init.kind == "first" and s.hc.resid_lambda.shape == (6,)
    assert s.data.bos == 3 and s.hc.sources.x.shape == (6, 2)


@case
def spec_attention_parts():
    m = read("tiny").model
    a = m.attention
    assert m.smear.channels == 0 and m.value_embed.std == 0 and a.sa_lambda.init == [1, 1]
    assert m.rotary.frequencies == "power" and m.rotary.dtype == "f32"
    parts = (a.gate, a.sa_lambda, a.key_offset, m.value_embed)
    assert all(p.layers == set() for p in parts)
    assert a.gate.channels == m.value_embed.channels == 12 and a.key_offset.first == 6
    m = read("tiny", "model.rotary.dims=4", "model.attention.gate=all", "model.value_embed=[1]",
             "model.attention.sa_lambda=[0, 2]", "model.attention.key_offset=all").model
    a = m.attention
    assert a.gate.layers == {0, 1, 2} and a.sa_lambda.layers == {0, 2}
    assert m.value_embed.layers == {1} and a.key_offset.first == 4
    assert read("tiny", "model.attention.gate=all",
                "model.attention.gate=none").model.attention.gate.layers == set()
    # a layer without the branch has no part of it
    m = read("parts").model
    assert m.attention.gate.layers == {0, 2} and m.attention.sa_lambda.layers == {0, 3}
    assert m.attention.key_offset.layers == {2, 3} and m.value_embed.layers == {0, 3}


@case
def spec_attention_parts_have_bounds():
    wide = "model.attention.gate.channels=13", "model.value_embed.channels=13"
    far = "model.attention.key_offset.first=7"
    read("tiny", *wide, far)            # nobody asks
    read("tiny", "model.smear.channels=12", "model.attention.gate=all", "model.value_embed=all",
         "model.attention.key_offset={layers: all, first: 6}")
    for settings_, word in (
            (["model.smear.channels=13"], "model.smear.channels: more than width"),
            ([wide[0], "model.attention.gate=[1]"], "gate.channels: more than width"),
            ([wide[1], "model.value_embed=[1]"], "value_embed.channels: more than width"),
            ([far, "model.attention.key_offset=[1]"], "key_offset.first: more than head_dim"),
            (["model.attention.gate=[3]"], "gate.layers: only 3"),
            (["model.value_embed=attn"], "not layers"),
            (["model.attention.sa_lambda.init=[1]"], "two numbers"),
            (["model.attention.gate.channels=0"], "at least 1"),
            (["model.rotary.frequencies=linear"], "power or endpoint"),
            (["model.rotary.dtype=f16"], "f32 or bf16")):
        raises(lambda: read("tiny", *settings_), word)


@case
def spec_paired_heads():
    assert read("tiny").model.attention.paired == set()
    assert read("tiny", "model.attention.paired=all").model.attention.paired == {0, 1, 2}
    assert read("tiny", "model.attention.paired={except: [1]}").model.attention.paired == {0, 2}
    assert read("paired").model.attention.paired == {0, 3}     # layer 1 has no attention
    # it has no parameters
    bare = read("paired", "model.attention.paired=none")
    assert [p[:3] for p in parameters(read("paired"))] == [p[:3] for p in parameters(bare)]
    # heads that do not pair: refused only where an attention branch would have to
    for heads in (["model.heads=3"], ["model.heads=4", "model.kv_heads=2"]):
        other = ["model.attention.layers=[0]", "model.attention.paired=[1, 2]"]
        heads.append("model.head_dim=6")
        assert read("tiny", *heads, *other).model.attention.paired == set()
        raises(lambda: read("tiny", *heads, "model.attention.paired=[2]"), "paired: heads must")
    for word, value in (("only 3", "[3]"), ("not layers", "attn"), ("or except", "{layers: [0]}"),
                        ("all or none", "some")):
        raises(lambda: read("tiny", f"model.attention.paired={value}"), word)


@case
def attention_parts_have_parameters():
    """Names, order, shapes, initial values and weight decay, layer by layer."""
    s = read("parts", "model.norm_weight=false", "train.seed=4")
    want = [("embed", 24, 12), ("head", 24, 12), ("smear.weight", 7), ("smear.lambda", 1)]
    common = ("attn.qkv", 48, 12), ("attn.out", 12, 24)
    gate, sa, mlp = ("attn.gate", 4, 5), ("attn.sa_lambda", 2), (("mlp.up", 20, 12),
                                                                 ("mlp.down", 10, 12))
    ve = ("attn.value_embed", 24, 12), ("attn.value_gate", 2, 4)
    for i, parts in enumerate([(*common, gate, sa, *ve, *mlp), mlp, (*common, gate, *mlp),
                               (*common, sa, *ve, *mlp)]):
        want += [(f"layers.{i}.{name}", *dims) for name, *dims in parts]
    got = parameters(s)
    assert [(p.name, *p.shape) for p in got][:len(want)] == want
    assert got[len(want)].name == "hc.lane_init"
    values = init.initial(s)
    for name in ("smear.weight", "smear.lambda", "layers.2.attn.gate", "layers.3.attn.value_gate"):
        assert values[name].abs().max() == 0, name
    assert values["layers.3.attn.sa_lambda"].tolist() == [0.5, 1.5]
    name = "layers.3.attn.value_embed"
    close(values[name].flatten(), init.normal(4, name, 288, 1.0) * 0.7, 1e-6)
    assert init.initial(read("parts", "model.value_embed.std=0"))[name].abs().max() == 0
    still = {p.name for p in got if not p.decays}
    assert [n for n, *_ in want if n in still] == [
        n for n, *_ in want if n.startswith("smear") or n.endswith(("gate", "sa_lambda"))]
    assert "layers.0.attn.value_embed" not in still


@case
def spec_extends_and_settings():
    s = read("keep", "hc.sources.big=none", "model.softcap=none", "hc.layers.last=2",
             "hc.res.learned=false")
    assert list(s.hc.sources) == ["x"] and s.model.softcap.kind == "none"
    assert s.model.norm_weight and s.model.tied and not s.hc.res.learned
    assert s.hc.layers == [0, 1, 2]         # {last: 2} replaces the list [1, 2]
    assert s.model.attention.window == [4, "full"]


@case
def spec_yaml_is_strict():
    assert specs.parse("{a: 1e-3, b: 010, c: yes, d: '1', e: 1_0, f: -.5}", "") == {
        "a": 1e-3, "b": 10, "c": "yes", "d": "1", "e": "1_0", "f": -0.5}
    raises(lambda: specs.parse("a: &x 1\nb: *x", ""), "anchors")
    raises(lambda: specs.parse("a: !!int 1", ""), "tags")
    raises(lambda: specs.parse("a: 1\na: 2", ""), "duplicate")
    raises(lambda: specs.parse("a: 1\n---\nb: 1", ""), "document")
    raises(lambda: text_spec(TINY + "modle: {layers: 1}"), "unknown")
    raises(lambda: text_spec(TINY + "model.layers: 4"), "duplicate")
    raises(lambda: text_spec("model: {layers: 1}"), "required")


@case
def spec_selections_and_inits():
    pick = specs.resolve_selection
    assert pick({"first": 7, "last": 10}, 11, "") == {7, 8, 9, 10}
    assert pick({"except": [6]}, 8, "") == {0, 1, 2, 3, 4, 5, 7}
    assert pick("mlp", 6, "", True) == {1, 3, 5} and pick("none", 6, "") == set()
    fill = specs.resolve_init
    assert fill("round_robin", (4, 3), "", "pre").tolist() == [
        [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert fill({"identity": 2}, (2, 2, 2), "", "res").tolist() == [[[2, 0], [0, 2]]] * 2
    assert fill(0.5, (1, 2, 2), "", "res").tolist() == [[[0.5, 0.5]] * 2]
    assert fill([1, 2, 3, 4], (2, 2, 2), "", "res").tolist() == [[[1, 2], [3, 4]]] * 2
    assert fill([1, 2, 3], (3,), "", "other").tolist() == [1, 2, 3]
    assert fill([7], (3,), "", "other").tolist() == [7, 7, 7]
    assert fill({"ramp": [3, 9]}, (1, 2), "", "other").tolist() == [[3, 3]]
    raises(lambda: fill([1, 2, 3], (2, 2), "x", "other"), "3 values")


def node(**keys):
    return specs.Node(keys)


@case
def spec_defaults_of_a_run():
    s = read("tiny")
    t, o, a = s.train, s.optim, s.model.attention
    assert t.loss_scale == "mean" and "untie" not in t and not t.stages and not t.final
    assert t.val_batch == 22 and t.val_seq_len == 11 and s.data.val_packing == "stream"
    assert o.kind == "adamw" and o.every == 1 and o.normuon == node(
        momentum=0.95, momentum_start=0.85, momentum_warmup=0, momentum_cooldown=0)
    assert s.numerics == node(storage="bf16", gemm="bf16", params="f32", head="auto",
                              fp8=node(x=100, w=1.6, grad=0.75))
    assert a.long_layers == set() and a.long_window == "full" and s.model.value_embed.split == set()
    assert s.model.rotary.yarn == node(on=False, alpha=1, beta=32, growth=0.2)
    assert s.model.init.kind == "normal" and s.model.init.attn_out == s.model.init.mlp_out == "zero"
    assert not s.hc.post.outside and not s.hc.reads
    x = read("tiny", "hc.sources.x={kind: x0}").hc.sources.x
    assert (x.hash, x.lane, x.site, x.signs) == ("clean", "all", "at_write", 0)


@case
def spec_values_of_a_run():
    s = text_spec("""
extends: tiny.yaml
model: {rotary.yarn: true, init: {kind: uniform, out: random, mlp_out: zero}}
model.attention: {long_layers: [1], long_window: 9}
train: {loss_scale: 0.25, untie: b, val_batch: 20, val_seq_len: 5, steps: 10,
        final: {window: [3, full], long_window: full}}
train.stages:
  b: {share: 2.5, window: 4, targets: [1, 0.5], lr_mul: 1.5, max_doc: 7}
  a: {steps: 3, tokens_per_step: 44, micro_batches: 2, long_window: full}
optim: {kind: normuon, every: 2, normuon.momentum_warmup: 300,
        groups.g: {match: "*", kind: cautious_adam, every: 3, lr: 0.5}}
data: {packing: documents, val_packing: stream}
numerics: {params: bf16, head: fp8, fp8.grad: 0.5}
hc.reads.late: {from: {sublayer: 1, when: before}, sublayers: {except: [0, 1]}}
""")
    t, m = s.train, s.model
    assert m.rotary.yarn.on and m.rotary.yarn.beta == 32
    assert m.init.attn_out == "random" and m.init.mlp_out == "zero"
    assert list(t.stages) == ["b", "a"] and t.stages.b.share == 2.5 and t.stages.a.steps == 3
    assert t.stages.b.window == [4] and "window" not in t.stages.a and t.untie == "b"
    assert t.final.window == [3, "full"] and t.final.long_window == "full"
    assert s.optim.groups.g.kind == "cautious_adam" and s.optim.groups.g.lr == 0.5
    assert s.numerics.fp8.grad == 0.5 and s.numerics.fp8.x == 100 and s.data.val_packing == "stream"
    assert s.hc.reads.late.sublayers == {2, 3, 4, 5}
    assert read("text", "train.stages.a=none", "hc.reads.late=none").train.stages.keys() == {"b"}


@case
def spec_refuses():
    x, stage = "hc.sources.x.kind=x0", "train.stages.a."
    one = stage + "share=1"
    for word, *change in (
            ("an integer of at least 1", stage + "steps=0"),
            ("at most 4096", stage + "micro_batches=4097"),
            ("a number in (0", stage + "share=0"), ("a number in [0", stage + "targets=[1, -1]"),
            ("an integer of at least 1", stage + "window=[2, 0]"),
            ("an integer of at least 1", stage + "long_window=0"),
            ("a number in (0", "train.loss_scale=0"), ("a number", "train.loss_scale=sum"),
            ("no such stage", "train.untie=a"), ("no such stage", one, "train.untie=b"),
            ("untie", one, "train.untie=a", "model.tied=true"),
            ("val_batch", "train.val_batch=10"), ("val_batch", "train.val_seq_len=12"),
            ("adamw or", "optim.kind=adam"), ("at most 1024", "optim.every=1025"),
            ("a number in [0, 1)", "optim.normuon.momentum=1"),
            ("match: required", "optim.groups.a.lr=1"),
            ("clean or quirk", x, "hc.sources.x.hash=int"),
            ("an integer of at least 0", x, "hc.sources.x.signs=-1"),
            ("an integer of at least 0", x, "hc.sources.x.signs=true"),
            ("an integer of at most 1073741824", x, "hc.sources.x.signs=1073741825"),
            ("an integer of at most 7", x, "hc.sources.x.lane=8"),
            ("no such lane", x, "hc.sources.x.lane=1"),
            ("at_write or", x, "hc.sources.x.site=branch"),
            ("at_write or", "hc.resid_lambda.site=on_branch"),
            ("auto or fp8", "numerics.head=f8"), ("a number in (0", "numerics.fp8.w=0"),
            ("normal or uniform", "model.init.kind=flat"),
            ("zero or random", "model.init.mlp_out=normal"),
            ("only 3", "model.attention.long_layers=[3]"),
            ("split: channels must", "model.value_embed=all", "model.value_embed.split=all",
             "model.value_embed.channels=5"),
            ("a number in (0", "model.rotary.yarn.beta=0"),
            ("attn and mlp", "hc.post.init={attn: 1}"),
            ("a row per sublayer", "hc.resid_lambda={granularity: layer, init: {attn: 1, mlp: 2}}"),
            ("sublayers: required", "hc.reads.a={from: {sublayer: 0}}"),
            ("not before", "hc.reads.a={from: {sublayer: 2}, sublayers: [2, 4]}"),
            ("not before", "hc.reads.a={from: {sublayer: 3, when: before}, sublayers: [2]}"),
            ("no such lane", "hc.reads.a={from: {sublayer: 0, lane: 1}, sublayers: [2]}"),
            ("another reads", "hc.reads.a={from: {sublayer: 0}, sublayers: [2]}",
             "hc.reads.b={from: {sublayer: 1}, sublayers: [2, 4]}")):
        raises(lambda: read("tiny", *change), word)
    read("tiny", "hc.reads.a={from: {sublayer: 2, when: before}, sublayers: [2, 4]}")
    read("tiny", "model.value_embed.split=all", "model.value_embed.channels=5")     # nobody asks


# ---- stages ---------------------------------------------------------------

RECORD = """
model: {layers: 11, width: 768, heads: 6, vocab: 50257, vocab_multiple: 128}
model.attention: {layers: {except: [6]}, scale: 0.1, window: 128, long_layers: [3, 10]}
model.attention.long_window: 384
model.rotary: {kind: adjacent, dims: 64, base: 1024, frequencies: endpoint, dtype: bf16, yarn: true}
data: {packing: documents, max_doc: 2048}
train:
  {steps: 1515, tokens_per_step: 131072, micro_batches: 8, seq_len: 16384, untie: late,
   val_batch: 262144, val_seq_len: 262144, final: {long_window: 2560}}
train.stages:
  early: {targets: [1, 0.5, 0.25], targets_end: [1, 0.5, 0], max_doc: 896}
  middle: {tokens_per_step: 262144, seq_len: 32768, window: 384, long_window: 896, lr_mul: 1.52,
           targets: [1, 0.5], targets_end: [1, 0]}
  late: {tokens_per_step: 393216, seq_len: 49152, window: 640, long_window: 1408, lr_mul: 1.73}
  more: {steps: 40, tokens_per_step: 393216, seq_len: 49152, window: 768, long_window: 1664}
"""


@case
def stages_of_a_record():
    s = text_spec(RECORD)
    got = stages.stages(s)
    assert [(x.name, x.first, x.end, x.tokens, x.max_doc, x.lr_mul) for x in got] == [
        ("early", 0, 505, 16384, 896, 1), ("middle", 505, 1010, 32768, 2048, 1.52),
        ("late", 1010, 1515, 49152, 2048, 1.73), ("more", 1515, 1555, 49152, 2048, 1)]
    for x, short, long in zip(got, (128, 384, 640, 768), (384, 896, 1408, 1664)):
        assert x.windows == [long if i in (3, 10) else short for i in range(11)]
    close(got[0].weights(0), [1, 0.5, 0.25], 0)
    close(got[0].weights(202), [1, 0.5, 0.25 * (1 - 202 / 505)], 1e-15)
    close(got[1].weights(505 + 101), [1, 0.5 * (1 - 101 / 505)], 1e-15)
    assert got[2].weights(1300) == got[3].weights(1554) == [1.0]
    end = stages.final(s)
    assert end.windows == [2560 if i in (3, 10) else 768 for i in range(11)]
    assert end.scale == got[3].scale and (end.frequencies == got[3].frequencies).all()
    assert [stages.at(got, t).name for t in (0, 504, 505, 1514, 1515, 1554, 1555)] == [
        "early", "early", "middle", "late", "more", "more", "more"]
    assert stages.named(s).name == "late" and stages.named(s, "more").name == "more"
    raises(lambda: stages.named(s, "none"), "no none")


@case
def yarn_of_a_record():
    """The ratios and scales that the record's description lists."""
    got = stages.stages(text_spec(RECORD))
    close([x.scale for x in got], [0.1, 0.116945957, 0.127517524, 0.131777988], 1e-9)
    ratio = got[3].frequencies / got[0].frequencies
    close(torch.from_numpy(ratio[:19].round(4)).double(), torch.tensor([
        1, 1, 1, .9862, .8707, .7785, .6573, .5320, .4405, .3801, .3384, .3088, .2871, .2710,
        .2588, .2495, .2422, .2366, .2322]).double(), 1e-6)
    assert np.abs(ratio[19:] - 3 / 13).max() < 1e-6
    for k in range(4):
        close(torch.from_numpy(got[k].frequencies), np.float32(hand(text_spec(RECORD), k)[1]), 1e-7)
    # off, or with windows that stay: the first numbers throughout
    for change in (["model.rotary.yarn=false"],
                   [f"train.stages.{k}.long_window=384" for k in ("middle", "late", "more")]):
        same = stages.stages(read("text", *change))
        assert all(x.scale == 0.1 and (x.frequencies == got[0].frequencies).all() for x in same)
    raises(lambda: stages.stages(read("text", "train.stages.late.long_window=full")), "a number")
    # other keys: one frequency that is scaled in full, one that stays, one between
    s = text_spec("""
model: {layers: 1, width: 12, heads: 2, vocab: 23, head_dim: 6}
model.rotary: {base: 10000, yarn: {on: true, alpha: 0.25, beta: 2, growth: 0.5}}
model.attention: {long_window: 10, scale: 2}
train: {tokens_per_step: 4, seq_len: 4, steps: 2, stages: {a: {}, b: {long_window: 40}}}
""")
    a, b = stages.stages(s)
    f = 10000.0 ** (-1 / 3)
    turns = [10 / (2 * math.pi), 10 * f / (2 * math.pi), 10 * f * f / (2 * math.pi)]
    assert 0.25 < turns[0] < 2 and turns[1] < 0.25
    part = (turns[0] - 0.25) / 1.75
    close(b.frequencies.tolist(), [0.25 + part * 0.75, f / 4, f * f / 4], 1e-7)
    close(b.scale, 2 * (1 + 0.5 * math.log(4)), 1e-15)
    a, b = stages.stages(read("text", "model.attention.long_window=20"))    # 3.18 turns: it stays
    close(b.frequencies.tolist(), [1, f / 2, f * f / 2], 1e-7)


@case
def stages_share_the_steps():
    def ends(steps, *shares, own=()):
        change = [f"train.stages.s{k}.share={x}" for k, x in enumerate(shares)]
        change += [f"train.stages.t{k}.steps={x}" for k, x in enumerate(own)]
        got = stages.stages(read("tiny", f"train.steps={steps}", *change))
        assert [x.first for x in got] == [0] + [x.end for x in got][:-1]
        return [x.end for x in got]

    assert ends(1450, 1, 1, 1, own=(40,)) == [483, 967, 1450, 1490]
    assert ends(12, 0.25, 0.375, 0.375) == [3, 8, 12]           # 7.5 rounds up
    assert ends(5, 1, 1, own=(2, 3)) == [3, 5, 7, 10]
    assert ends(7) == [7] and ends(0) == [0]
    assert ends(0, own=(4, 1)) == [0, 0]            # a run of no steps has no extension
    raises(lambda: ends(2, 1, 1, 1, 0.1), "s1: no steps")
    raises(lambda: ends(7, own=(4,)), "are of none")
    raises(lambda: stages.stages(read("tiny", "train.stages={a: {steps: 3}, b: {}}")), "behind")
    raises(lambda: stages.stages(read("tiny", "train.stages.a={targets_end: [1, 2]}")), "as many")
    raises(lambda: stages.stages(read("tiny", "train.stages.a={seq_len: 12}")), "whole batches")
    one, = stages.stages(read("tiny", "data.max_doc=5"))
    assert (one.name, one.tokens, one.max_doc, one.weights(3)) == ("train", 22, 5, [1.0])
    assert one.windows == ["full"] * 3 and one.scale == 6 ** -0.5


@case
def one_stage_alone():
    s = text_spec(RECORD)
    alone = stages.only(s, stages.named(s, "middle"))
    got, = stages.stages(alone)
    want = stages.named(s, "middle")
    for k in ("tokens", "micro_batches", "seq_len", "max_doc", "windows", "lr_mul", "targets"):
        assert getattr(got, k) == getattr(want, k), k
    assert len(s.train.stages) == 4 and "untie" in s.train      # its own is left as it is


# ---- files and initial values ---------------------------------------------

def mixed(z):
    """splitmix64 in Python's unbounded integers."""
    full = 2 ** 64 - 1
    z &= full
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & full
    z = (z ^ z >> 27) * 0x94D049BB133111EB & full
    return z ^ z >> 31


@case
def init_agrees_with_integers():
    """The generator in Python's unbounded integers."""
    base = int.from_bytes(hashlib.sha256(b"5/layers.0.attn.qkv").digest()[:8], "little")
    want = []
    for i in range(50):
        w = [mixed(base + j * 0x9E3779B97F4A7C15) for j in (2 * i, 2 * i + 1)]
        u1, u2 = ((w[0] >> 11) + 1) / 2 ** 53, (w[1] >> 11) / 2 ** 53
        want.append(0.25 * math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * u2))
    got = init.normal(5, "layers.0.attn.qkv", 50, 0.25)
    assert np.abs(got - np.float32(want)).max() < 1e-7
    many = init.normal(0, "x", 200000, 2.0)
    assert abs(many.mean()) < 0.02 and abs(many.std() - 2) < 0.01


@case
def uniform_init_agrees_with_integers():
    s = read("tiny", "model.init={kind: uniform, out: random}", "train.seed=11")
    got = init.initial(s)
    for name, fan_in in (("layers.1.attn.qkv", 12), ("layers.0.attn.out", 12),
                         ("layers.2.mlp.up", 12), ("layers.2.mlp.down", 48)):
        base = int.from_bytes(hashlib.sha256(f"11/{name}".encode()).digest()[:8], "little")
        bound = math.sqrt(3) * 0.5 / math.sqrt(fan_in)
        values = got[name].flatten()
        for i in (0, 1, 7, 100):
            u = ((mixed(base + i * 0x9E3779B97F4A7C15) >> 11) + 0.5) / 2 ** 53
            assert abs(values[i] - bound * (2 * u - 1)) < 1e-7
        assert values.abs().max() <= bound * (1 + 1e-6) and values.abs().max() > 0.95 * bound
        assert abs(values.std() * math.sqrt(fan_in) - 0.5) < 0.05
    # tables are normal whatever the matrices are
    for name, std in (("embed", 1.0), ("head", 0.005)):
        close(got[name].flatten(), init.normal(11, name, 288, std), 1e-7)
    assert 0.999 / 32 < init.uniform(0, "x", 5000, 0.5 / math.sqrt(768)).max() <= 1 / 32
    close(init.uniform(0, "x", 9, 3.0), 3 * init.uniform(0, "x", 9, 1.0), 1e-6)


@case
def outputs_of_branches_start_apart():
    zero, random = (lambda n: init.initial(s)[n].abs().max() == 0), (
        lambda n: init.initial(s)[n].abs().max() > 0)
    s = read("tiny", "model.init.attn_out=random")
    assert random("layers.0.attn.out") and zero("layers.0.mlp.down")
    s = read("tiny", "model.init={out: random, attn_out: zero}")
    assert zero("layers.0.attn.out") and random("layers.0.mlp.down")
    # a row per hidden channel, and the fan-in is their number
    s = read("tiny", "model.init.mlp_out=random", "model.mlp.hidden=400")
    down = init.initial(s)["layers.0.mlp.down"]
    assert down.shape == (400, 12) and abs(down.std() * 20 - 0.5) < 0.03
    s = read("tiny", "model.init={mlp_out: random, std: 0.3}")
    assert abs(init.initial(s)["layers.0.mlp.down"].std() - 0.3) < 0.03


def narrow(name):
    """Whether docs/spec.md lists the parameter among those that numerics.params is of."""
    last = name.split(".")[-1]
    return name in ("embed", "head", "smear.weight") or last in (
        "qkv", "out", "value_embed", "value_gate", "up", "down", "table", "gate_weight") or \
        last == "gate" and name.startswith("layers.")


@case
def narrow_parameters_are_rounded():
    change = "model.init.out=random", "model.init.std=0.37"
    wide, bf16 = read("parts", *change), read("parts", *change, "numerics.params=bf16")
    for f in (lambda s: init.initial(s), lambda s: init.random(s, 3)):
        a, b = f(wide), f(bf16)
        assert list(a) == list(b) and any(narrow(k) for k in a) and not all(narrow(k) for k in a)
        for k in a:
            want = [entry(x, "bf16") if narrow(k) else x for x in a[k].flatten().tolist()]
            assert b[k].flatten().tolist() == want, k
    differ = {k for k in a if not torch.equal(a[k], b[k])}
    assert differ == {k for k in a if narrow(k)}        # of the random ones


@case
def untied_later_begin_equal():
    s = read("tiny", "train.untie=b", "train.stages={a: {}, b: {}}", "train.seed=5")
    for p in (init.initial(s), init.random(s, 2)):
        assert torch.equal(p["embed"], p["head"]) and p["head"].abs().max() > 0
        assert p["embed"] is not p["head"]
    plain = read("tiny", "train.seed=5")
    assert torch.equal(init.initial(s)["head"], init.initial(plain)["head"])
    assert [q.name for q in parameters(s)] == [q.name for q in parameters(plain)]
    # apart for gradients, as they are after that stage
    g = grads_of(s, doubles(s))
    assert not torch.equal(g["grad.embed"], g["grad.head"])


@case
def inits_by_kind_of_sublayer():
    s = read("tiny", "hc.lanes=2", "hc.post.init={attn: 1.5, mlp: 0.25}",
             "hc.resid_lambda={granularity: sublayer, init: {attn: 1.1, mlp: 1}}",
             "hc.sources.x={kind: x0, init: {attn: 0.5, mlp: 0}}", "hc.res.init={attn: 2, mlp: 3}")
    assert s.hc.post.init.tolist() == [[1.5, 1.5], [0.25, 0.25]] * 3
    assert s.hc.resid_lambda.init.tolist() == [float(np.float32(1.1)), 1.0] * 3
    assert s.hc.sources.x.init.tolist() == [[0.5, 0.5], [0, 0]] * 3
    assert s.hc.res.init[3].tolist() == [[3, 3], [3, 3]]


@case
def init_values():
    s = read("full", "model.init.out=random", "train.seed=9")
    p = init.initial(s)
    assert p["embed"].shape == (24, 12) and abs(p["embed"].std() - 1) < 0.2
    assert abs(p["layers.0.attn.out"].std() * 24 ** 0.5 - 0.5) < 0.15
    assert p["hc.lane_init"].abs().max() == 0 and p["final_norm"].min() == 1
    assert torch.equal(p["hc.res"][2], 1.02 * torch.eye(3))
    assert torch.equal(p["hc.output"], torch.full((3,), 1 / 3))
    assert p["hc.skips.a.gate"].item() == np.float32(0.3)
    assert p["hc.skips.a.gate_weight"].tolist() == [0] * 5
    assert init.initial(read("full"))["layers.0.attn.out"].abs().max() == 0


@case
def safetensors_round_trip():
    path = os.path.join(FOLDER.name, "t.safetensors")
    t = {"a": torch.randn(3, 4), "b.c": torch.randn(2, 1, 2).double(),
         "s": torch.tensor(1.5).double(), "h": torch.randn(5).bfloat16()}
    safetensors.save(path, t)
    back = safetensors.load(path)
    assert list(back) == list(t)
    assert all(torch.equal(t[k], back[k]) and t[k].dtype == back[k].dtype for k in t)


@case
def data_packing():
    path = os.path.join(FOLDER.name, "d.bin")
    data.write_shard(path, [9, 0, 1, 2, 0, 3, 0, 4, 5, 6, 7, 8, 0, 1])
    tokens = data.read_shard(path)
    assert data.pack_stream(tokens, 4).tolist() == [
        [9, 0, 1, 2, 0], [0, 3, 0, 4, 5], [5, 6, 7, 8, 0]]
    assert data.pack_documents(tokens, 3, 0, 0).tolist() == [[0, 1, 2, 0], [0, 4, 5, 6]]
    assert data.pack_documents(tokens, 3, 0, 2).tolist() == [[0, 1, 0, 3], [0, 4, 0, 1]]
    rows = torch.tensor([[0, 1], [1, 2], [2, 3]])
    assert data.batch(rows, 2, 2)[0].tolist() == [[2], [0]]


# ---- branches against loops -----------------------------------------------

def frequency(rotary, j):
    """float32, of the first stage."""
    if rotary.frequencies == "endpoint":
        return np.float32(1.0 if j == 0 else rotary.base ** -(j / (rotary.dims / 2 - 1)))
    return np.float32(rotary.base ** (-2 * j / rotary.dims))


def hand(spec, index=0):
    """Window of each layer, frequencies and scale of a stage, from its keys alone."""
    m, a = spec.model, spec.model.attention
    given = list(spec.train.stages.values())[:index + 1] or [{}]
    f = [frequency(m.rotary, j) for j in range(m.rotary.dims // 2)]
    scale, before = 1 / math.sqrt(m.head_dim) if a.scale == "auto" else a.scale, None
    for stage in given:
        long, short = stage.get("long_window", a.long_window), stage.get("window", a.window)
        if m.rotary.yarn.on and before and long != before:
            f = [np.float32(stretched(float(x), before, long, m.rotary.yarn)) for x in f]
            scale *= 1 + m.rotary.yarn.growth * (math.log(long) - math.log(before))
        before = long
    wins = [long if i in a.long_layers else short[i % len(short)] for i in range(m.layers)]
    return wins, f, scale


def stretched(f, old, new, yarn):
    """With fewer than alpha turns in the old window, its end's angle becomes the new one's end's."""
    turns = old * f / (2 * math.pi)
    if turns <= yarn.alpha:
        return f * old / new
    if turns >= yarn.beta:
        return f
    part = (turns - yarn.alpha) / (yarn.beta - yarn.alpha)
    return part * f + (1 - part) * f * old / new


def entry(x, dtype):
    """x rounded to float32 and then, if asked, on its bits to bfloat16, nearest even."""
    bits = int(np.float32(x).view(np.uint32))
    if dtype == "bf16":
        low, odd = bits & 0xffff, bits >> 16 & 1
        bits = (bits >> 16) + (low > 0x8000 or low == 0x8000 and odd) << 16
    return float(np.uint32(bits).view(np.float32))


def turned(x, p, rotary, f=None):
    """x [D] at position p, one channel pair at a time."""
    f = f or [frequency(rotary, j) for j in range(rotary.dims // 2)]
    y, R = x.clone(), rotary.dims
    for j in range(R // 2):
        a, b = (j, j + R // 2) if rotary.kind == "half" else (2 * j, 2 * j + 1)
        theta = float(np.float32(p) * f[j])
        cos, sin = (entry(t, rotary.dtype) for t in (math.cos(theta), math.sin(theta)))
        y[a], y[b] = cos * x[a] + sin * x[b], cos * x[b] - sin * x[a]
    return y


def norm(x, eps, weight=None):
    y = x / (x * x).mean(-1, keepdim=True).add(eps).sqrt()
    return y if weight is None else y * weight


def logistic(row, x):
    """sigmoid(row . x[0:N]), N the row's length, in Python's floats."""
    return 1 / (1 + math.exp(-sum(float(r) * float(y) for r, y in zip(row, x))))


def loop_smear(e, weight, factor):
    """One sequence e [N, C]; a new tensor, so that every term reads what was there before."""
    x = e.clone()
    for t in range(1, len(e)):
        g = float(factor) * logistic(weight, e[t])
        for c in range(e.shape[1]):
            x[t, c] = float(e[t, c]) + g * float(e[t - 1, c])
    return x


def gate_input(a, row, count, split):
    """The count channels that a value gate reads."""
    return [*a[:count // 2], *row[:count // 2]] if split else a[:count]


def loop_values(v, a, table, gates, tokens, split):
    """One sequence v [N, K*D] with the tokens' rows added, head by head."""
    v, D = v.clone(), v.shape[1] // len(gates)
    for t in range(len(v)):
        for g in range(len(gates)):
            row = table[int(tokens[t])]
            factor = 2 * logistic(gates[g], gate_input(a[t], row, len(gates[g]), split))
            for c in range(g * D, g * D + D):
                v[t, c] += factor * float(table[int(tokens[t])][c])
    return v


def loop_attention(a, p, spec, i, tokens, stage=0):
    """Layer i on one sequence a [N, C], head by head and query by query.

    Which parts it has is taken from the spec, not from the parameters' names."""
    m, N = spec.model, len(a)
    H, K, D = m.heads, m.kv_heads, m.head_dim
    w = {k.split(".")[-1]: v for k, v in p.items() if k.startswith(f"layers.{i}.attn.")}
    windows, f, scale = hand(spec, stage)
    window = windows[i]
    has = {k: i in m.attention[k].layers for k in ("gate", "sa_lambda", "key_offset")}
    into, outof = w["sa_lambda"].tolist() if has["sa_lambda"] else (1, 1)
    q, k, v = (a @ (into * w["qkv"]).T).split([H * D, K * D, K * D], 1)
    if i in m.value_embed.layers:
        v = loop_values(v, a, w["value_embed"], w["value_gate"], tokens,
                        i in m.value_embed.split)

    def key(h, j):
        x, before = head(k, h, j), head(k, h, j - 1 if j > 0 else j)
        first = m.attention.key_offset.first if has["key_offset"] else D
        return torch.stack([x[c] if c < first else before[c] for c in range(D)])

    def head(x, h, p):
        x = x[p, h * D:(h + 1) * D]
        x = norm(x, m.norm_eps) if m.attention.qk_norm else x
        return turned(x, p, m.rotary, f) if m.rotary.kind != "none" else x

    rows, start = [], 0
    for p in range(N):
        start = p if m.attention.document_mask and tokens[p] == spec.data.bos else start
        low = max(start, p - window) if window != "full" else start
        heads = []
        for h in range(H):
            g = h // (H // K)
            s = torch.stack([scale * head(q, h, p) @ key(g, j) for j in range(low, p + 1)])
            o = s.softmax(0) @ v[low:p + 1, g * D:(g + 1) * D]
            heads.append(o * logistic(w["gate"][h], a[p]) if has["gate"] else o)
        rows.append(torch.cat(heads) @ (outof * w["out"]).T)
    return torch.stack(rows)


def loop_paired(a, p, spec, i, tokens, stage=0):
    """Layer i with paired heads on one sequence a [N, C]: rows and Python floats."""
    m, N, a = spec.model, len(a), a.tolist()
    H, D, half = m.heads, m.head_dim, m.heads // 2
    w = {k.split(".")[-1]: v.tolist() for k, v in p.items() if k.startswith(f"layers.{i}.attn.")}
    windows, f, scale = hand(spec, stage)
    window = windows[i]
    has = {k: i in m.attention[k].layers for k in ("gate", "sa_lambda", "key_offset")}
    into, outof = w["sa_lambda"] if has["sa_lambda"] else (1, 1)
    first = m.attention.key_offset.first if has["key_offset"] else D

    def dot(x, y):
        return sum(u * v for u, v in zip(x, y, strict=True))

    def product(t, part, h):
        """Head h of part 0, 1, 2 (q, k, v) of position t, before anything else."""
        top = (part * H + h) * D
        return [into * dot(row, a[t]) for row in w["qkv"][top:top + D]]

    def turn(t, part, h):
        x = product(t, part, h)
        if m.attention.qk_norm:
            size = math.sqrt(dot(x, x) / D + m.norm_eps)
            x = [u / size for u in x]
        for j in range(m.rotary.dims // 2 if m.rotary.kind != "none" else 0):
            c, d = (j, j + m.rotary.dims // 2) if m.rotary.kind == "half" else (2 * j, 2 * j + 1)
            theta = float(np.float32(2 * t + h % 2) * f[j])
            cos, sin = (entry(u, m.rotary.dtype) for u in (math.cos(theta), math.sin(theta)))
            x[c], x[d] = cos * x[c] + sin * x[d], cos * x[d] - sin * x[c]
        return x

    def value(t, h):
        x = product(t, 2, h)
        if i in m.value_embed.layers:
            row, gate = w["value_embed"][int(tokens[t])], w["value_gate"][h]
            read = gate_input(a[t], row, len(gate), i in m.value_embed.split)
            factor = 2 * logistic(gate, read)
            x = [u + factor * row[h * D + c] for c, u in enumerate(x)]
        return x

    # a row of q, k, v is a list of H/2 heads
    q, k, v, starts, start = [], [], [], [], 0
    for t in range(N):
        start = t if m.attention.document_mask and tokens[t] == spec.data.bos else start
        for heads in (range(half), range(half, H)):
            starts.append(2 * start)
            q.append([turn(t, 0, h) for h in heads])
            k.append([turn(t, 1, h)[:first] + turn(max(t - 1, 0), 1, h)[first:] for h in heads])
            v.append([value(t, h) for h in heads])
    out = []
    for r in range(2 * N):
        low = starts[r] if window == "full" else max(starts[r], r - window)
        for g in range(half):
            e = [math.exp(scale * dot(q[r][g], k[j][g])) for j in range(low, r + 1)]
            factor = logistic(w["gate"][r % 2 * half + g], a[r // 2]) if has["gate"] else 1
            out += [factor * dot(e, [v[j][g][c] for j in range(low, r + 1)]) / sum(e)
                    for c in range(D)]
    return torch.tensor([[outof * dot(row, out[t * H * D:(t + 1) * H * D]) for row in w["out"]]
                         for t in range(N)], dtype=torch.float64)


def loop_layer(a, p, spec, i, tokens, stage=0):
    """The loop that the spec asks for in layer i."""
    loop = loop_paired if i in spec.model.attention.paired else loop_attention
    return loop(a, p, spec, i, tokens, stage)


def attention_of(spec, p, i, a, tokens, stage=0):
    """The model's attention branch of layer i on a [B, N, C]."""
    model = Model(spec)
    model.enter(stages.stages(spec)[stage])
    prefix = f"layers.{i}.attn."
    w = {k[len(prefix):]: v for k, v in p.items() if k.startswith(prefix)}
    return model._attention(model._start(p, tokens), i, a, w)


def stream(spec):
    """Something for a branch to read, [2, seq_len, C]."""
    return torch.randn(2, spec.train.seq_len, spec.model.width, dtype=torch.float64)


@case
def attention_by_loops():
    changes = [[], ["model.rotary.kind=adjacent", "model.attention.scale=0.7"],
               ["model.attention.document_mask=false", "model.kv_heads=1"],
               ["model.attention.qk_norm=false", "model.rotary=none", "model.attention.window=0"],
               ["model.rotary.dims=6", "model.attention.window=2", "model.kv_heads=4"]]
    for change in changes:
        attention_by_loop(read("full", *change), (0, 2))


def attention_by_loop(s, layers, stage=0):
    p, (tokens, _) = doubles(s), tokens_for(s)
    a = stream(s)
    for i in layers:
        got = attention_of(s, p, i, a, tokens, stage)
        for r in range(2):
            close(got[r], loop_layer(a[r], p, s, i, tokens[r], stage), 1e-12)


@case
def attention_parts_by_loops():
    layers = "all", "[0]", "[2]", "[3]"
    parts = "attention.gate", "attention.sa_lambda", "attention.key_offset", "value_embed"
    for change in (
            [], [f"model.{p}.layers={sel}" for p, sel in zip(parts, layers)],
            [f"model.{p}.layers={sel}" for p, sel in zip(parts, layers[::-1])],
            ["model.kv_heads=4", "model.attention.key_offset.first=0", "model.rotary.dtype=f32"],
            ["model.kv_heads=1", "model.attention.document_mask=false", "model.rotary=adjacent"],
            ["model.attention.qk_norm=false", "model.rotary={kind: none, dims: 6}",
             "model.attention.gate.channels=12", "model.value_embed.channels=1"]):
        attention_by_loop(read("parts", *change), (0, 2, 3))


@case
def paired_heads_by_loops():
    parts = "attention.gate", "attention.sa_lambda", "attention.key_offset", "value_embed"
    bare, every = ([f"model.{x}.layers={sel}" for x in parts] for sel in ("none", "all"))
    for H in (4, 6):
        for change in (
                [], bare, every,
                [*bare, "model.attention.window=[2, full, full, 1]", "model.rotary=adjacent"],
                ["model.attention.document_mask=false", "model.rotary.dtype=f32",
                 "model.rotary.frequencies=power", "model.attention.key_offset.first=0"],
                [*every, "model.attention.qk_norm=false", "model.rotary.dims=2",
                 "model.attention.window=[0, 1, 7, 6]", "model.attention.scale=0.7"]):
            attention_by_loop(read("paired", f"model.heads={H}", f"model.kv_heads={H}", *change),
                              (0, 2, 3))
    # rows without rotary; one pair of heads, which are one head of the rows
    attention_by_loop(read("paired", "model.rotary={kind: none, dims: 4}"), (0, 3))
    attention_by_loop(read("paired", "model.heads=2", "model.kv_heads=2"), (0, 3))


@case
def attention_in_stages_by_loops():
    """Windows, long windows, frequencies and scale of every stage; gates that read the table."""
    for name in ("parts", "paired"):
        s = read(name, "model.attention.long_layers=[0, 2]", "model.attention.long_window=2",
                 "model.attention.window=[1, 3]", "model.value_embed.split=[0, 2, 3]",
                 "model.rotary={yarn: {on: true, beta: 1.5, alpha: 0.1}, base: 9}",
                 "train.stages={a: {}, b: {long_window: 5, window: 2}, c: {long_window: 8}}")
        assert s.model.value_embed.split == {0, 3}
        for stage in range(3):
            attention_by_loop(s, (0, 2, 3), stage)
        p, (tokens, _), a = doubles(s), tokens_for(s), stream(s)
        x, y = (attention_of(s, p, 0, a, tokens, k) for k in (0, 1))
        assert (x - y).abs().max() > 1e-3


@case
def model_starts_in_the_first_stage():
    s = read("parts", "train.stages={a: {window: 1}, b: {window: 3, seq_len: 22}}")
    p, (tokens, targets) = doubles(s), tokens_for(s)
    model, one = Model(s), Model(read("parts", "model.attention.window=1"))
    assert model.loss(p, tokens, targets) == one.loss(p, tokens, targets)
    model.enter(stages.named(s, "b"))
    assert model.loss(p, tokens, targets) != one.loss(p, tokens, targets)
    model.enter(stages.named(s, "a"))
    assert model.loss(p, tokens, targets) == one.loss(p, tokens, targets)


def rows_seen(window, heads, masked=True):
    """Which rows each (position, head) sees, and of which head: {(t, h): (rows, g)}.

    Scores of 0 spread a query evenly over its keys; row r has 1 + g in channel r of its head
    g; the output is what comes of that.  One document starts at position 4, which is row 8."""
    s = text_spec(f"""
model: {{layers: 1, width: {22 * heads}, heads: {heads}, vocab: 23}}
model.attention: {{paired: all, window: {window}, document_mask: {str(masked).lower()}}}
train: {{tokens_per_step: 11, seq_len: 11}}
data.bos: 3
""")
    p, C, half = doubles(s), s.model.width, heads // 2
    p["layers.0.attn.qkv"] = torch.cat((torch.zeros(2 * C, C), torch.eye(C))).double()
    p["layers.0.attn.out"] = torch.eye(C).double()
    tokens, a = torch.full((1, 11), 5), torch.zeros(1, 11, heads, 22).double()
    tokens[0, 4] = 3
    for t in range(11):
        for h in range(heads):
            a[0, t, h, 2 * t + (h >= half)] = 1 + h % half
    o = attention_of(s, p, 0, a.flatten(2), tokens).view(11, heads, 22)
    return {(t, h): (o[t, h].nonzero().flatten().tolist(), round(o[t, h].sum().item() - 1, 9))
            for t in range(11) for h in range(heads)}


@case
def paired_rows_see_rows():
    """Even and odd rows of a few positions, row by row as docs/spec.md has them."""
    for window, masked, want in (
            (0, True, {0: ([0], [1]), 4: ([8], [9]), 7: ([14], [15])}),
            # the odd row sees the even one of its position, that one the odd one before
            (1, True, {0: ([0], [0, 1]), 3: ([5, 6], [6, 7]), 4: ([8], [8, 9]),
                       5: ([9, 10], [10, 11])}),
            (1, False, {0: ([0], [0, 1]), 4: ([7, 8], [8, 9])}),
            (2, True, {3: ([4, 5, 6], [5, 6, 7]), 4: ([8], [8, 9]), 5: ([8, 9, 10], [9, 10, 11])}),
            (3, True, {1: ([0, 1, 2], [0, 1, 2, 3]), 5: ([8, 9, 10], [8, 9, 10, 11]),
                       10: ([17, 18, 19, 20], [18, 19, 20, 21])}),
            ("full", True, {3: (range(7), range(8)), 4: ([8], [8, 9]),
                            10: (range(8, 21), range(8, 22))}),
            ("full", False, {10: (range(21), range(22))})):
        for heads in (2, 4, 6):
            seen = rows_seen(window, heads, masked)
            for t, rows in want.items():
                for h in range(heads):
                    row, g = divmod(h, heads // 2)
                    assert seen[t, h] == (list(rows[row]), g), (window, t, h, seen[t, h])


def paired_scores(q, k, v, rotary, at):
    """Causal attention of paired heads, no documents, head (t, h) turned by at(t, h): [N, H, D]."""
    N, H, D = q.shape
    half, order = H // 2, [(t, h) for t in range(N) for h in range(H)]
    out = {}
    for t, h in order:
        keys = [(u, e) for u, e in order if e % half == h % half and (u, e) <= (t, h)]
        x = turned(q[t, h], at(t, h), rotary)
        s = torch.stack([x @ turned(k[u, e], at(u, e), rotary) for u, e in keys])
        out[t, h] = (s / math.sqrt(D)).softmax(0) @ torch.stack([v[u, e] for u, e in keys])
    return torch.stack([out[x] for x in order]).view(N, H, D)


@case
def paired_rotary_positions_are_not_rows():
    """The gradient of the matrix is that of 2t + h mod 2, and rows in their place would change it:
    with 6 heads in heads 1 and 4 alone, whose positions are swapped, with 4 in all of them."""
    for H, changed in ((4, {0, 1, 2, 3}), (6, {1, 4}), (2, set())):
        s = read("tiny", f"model.heads={H}", "model.head_dim=6", "model.attention.paired=all",
                 "model.attention.document_mask=false", "model.attention.qk_norm=false")
        p, (tokens, _), a = doubles(s), tokens_for(s), stream(s)
        weight, out = p["layers.1.attn.qkv"], p["layers.1.attn.out"]
        pull = torch.randn(11, 12, dtype=torch.float64)

        def gradient(f):
            w = weight.clone().requires_grad_()
            (f(w) * pull).sum().backward()
            return w.grad.view(3, H, 6, 12)

        def by(at):
            def f(w):
                q, k, v = (a[0] @ w.T).view(11, 3, H, 6).unbind(1)
                return paired_scores(q, k, v, s.model.rotary, at).flatten(1) @ out.T
            return gradient(f)

        got = gradient(lambda w: attention_of(s, {**p, "layers.1.attn.qkv": w}, 1, a, tokens)[0])
        close(got, by(lambda t, h: 2 * t + h % 2), 1e-12)
        rows = by(lambda t, h: 2 * t + (h >= H // 2))
        for h in range(H):
            for part in range(3):
                error = (got - rows)[part, h].abs().max() / got[part, h].abs().max()
                assert error > 1e-3 if h in changed else error < 1e-12, (H, h, part, error)


@case
def gates_of_zero_are_a_half_and_one():
    """Exactly: the attention's output is halved, the value row added as it is."""
    s = read("parts")
    p, (tokens, _) = doubles(s), tokens_for(s)
    a = stream(s)
    p["layers.2.attn.gate"] *= 0
    plain = read("parts", "model.attention.gate=none")
    assert torch.equal(attention_of(s, p, 2, a, tokens),
                       0.5 * attention_of(plain, {k: v for k, v in p.items()
                                                  if not k.endswith(".gate")}, 2, a, tokens))
    # with itself as its only key a token gets its own value
    s = read("parts", "model.attention.window=0", "model.attention.gate=none",
             "model.attention.sa_lambda=none", "model.kv_heads=4")
    p = doubles(s)
    p["layers.3.attn.value_gate"] *= 0
    p["layers.3.attn.qkv"][48:] = 0
    assert torch.equal(attention_of(s, p, 3, a, tokens),
                       F.linear(p["layers.3.attn.value_embed"][tokens], p["layers.3.attn.out"]))


@case
def key_offset_is_in_the_last_channels():
    s = read("parts", "model.attention.window=full")
    none = read("parts", "model.attention.window=full", "model.attention.key_offset.layers=none")
    past = read("parts", "model.attention.window=full", "model.attention.key_offset.first=6")
    (tokens, _), p, a = tokens_for(s), doubles(s), stream(s)
    moved, plain, same = (attention_of(x, p, 2, a, tokens) for x in (s, none, past))
    assert torch.equal(plain, same)
    # a query at the first position of a document sees one key, whatever that is
    first = tokens == s.data.bos
    first[:, 0] = True
    for r, t in first.nonzero().tolist():
        assert torch.equal(moved[r, t], plain[r, t]), (r, t)
    assert (moved - plain).abs().amax(2)[~first].min() > 1e-6
    # queries that do not look at channels 3, 4, 5 (norm and rotary of 0 .. 3 kept apart)
    s = read("parts", "model.rotary.dims=2", "model.attention.window=full")
    none = read("parts", "model.rotary.dims=2", "model.attention.window=full",
                "model.attention.key_offset=none")
    blind = {**p, "layers.2.attn.qkv": p["layers.2.attn.qkv"].clone()}
    for h in range(4):
        blind["layers.2.attn.qkv"][6 * h + 3:6 * h + 6] = 0
    close(*[attention_of(x, blind, 2, a, tokens) for x in (s, none)], 1e-15)
    blind["layers.2.attn.qkv"][3] = p["layers.2.attn.qkv"][3]
    moved, plain = (attention_of(x, blind, 2, a, tokens) for x in (s, none))
    assert (moved - plain).abs().max() > 1e-4


@case
def key_offset_crosses_documents_not_sequences():
    s, none = read("parts"), read("parts", "model.attention.key_offset=none")
    (tokens, _), p, a = tokens_for(s), doubles(s), stream(s)
    assert tokens[0, 4] == s.data.bos and s.data.bos not in tokens[0, 1:4].tolist()

    def touched(spec, r, t):
        """Positions whose output depends on a[r, t]."""
        b = a.clone()
        b[r, t] += torch.arange(12) / 4
        change = attention_of(spec, p, 2, b, tokens) - attention_of(spec, p, 2, a, tokens)
        return (change.abs() > 1e-12).any(2).nonzero().tolist()

    assert touched(none, 0, 3) == [[0, 3]]
    # the key at 4, of the next document, has its tail from 3; alone at 4, it shows from 5 on
    assert touched(s, 0, 3) == [[0, t] for t in (3, 5, 6, 7, 8)]
    assert all(r == 0 for r, _ in touched(s, 0, 10))


@case
def rotary_frequencies_and_types():
    rotary = specs.Node(kind="half", base=1000.0, dims=8, frequencies="endpoint", dtype="f32")
    power = specs.Node(rotary, frequencies="power", base=16.0)
    for one, want in ((rotary, [1, 0.1, 0.01, 0.001]), (power, [1, 0.5, 0.25, 0.125]),
                      (specs.Node(rotary, dims=4), [1, 0.001]), (specs.Node(rotary, dims=2), [1]),
                      (specs.Node(power, dims=2), [1])):
        got = stages.frequencies(one)
        assert got.dtype == np.float32 and np.abs(got - np.float32(want)).max() < 1e-7
    fs = stages.frequencies(rotary)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for kind in ("f32", "bf16"):
            tables = branches.rotary_tables(fs, specs.Node(rotary, dtype=kind), 300, dtype)
            for t, of in zip(tables, (math.cos, math.sin)):
                want = [[entry(of(entry(p * float(f), "f32")), kind) for f in fs]
                        for p in range(300)]
                # an ulp of cos may move it across a tie between two float32
                error = (t[:, 0].double() - torch.tensor(want)).abs()
                assert t.shape == (300, 1, 4) and t.dtype != torch.bfloat16
                assert (error > 0).sum() <= 2 and error.max() < 1e-2, (kind, dtype, error.max())
    f32 = branches.rotary_tables(fs, rotary, 300, torch.float64)[0]
    bf16 = branches.rotary_tables(fs, specs.Node(rotary, dtype="bf16"), 300, torch.float64)[0]
    assert (bf16.float().view(torch.int32) & 0xffff).max() == 0
    assert 1e-3 < (f32 - bf16).abs().max() <= 2 ** -9


@case
def rotary_angles_are_float32_products():
    """At far positions a product in float64 is another angle: the tables tell them apart."""
    rotary = read("tiny", "model.head_dim=128", "model.rotary.dims=64", "model.rotary.base=1024",
                  "model.rotary.frequencies=endpoint").model.rotary
    fs, p = stages.frequencies(rotary), 262143
    cos = branches.rotary_tables(fs, rotary, p + 1, torch.float64)[0][p, 0]
    close(cos, [entry(math.cos(entry(p * float(f), "f32")), "f32") for f in fs], 0)
    wide = [entry(math.cos(p * float(f)), "f32") for f in fs]
    assert (cos - torch.tensor(wide).double()).abs().max() > 1e-3
    far = [entry(math.cos(p * 1024.0 ** (-j / 31)), "f32") for j in range(32)]
    assert (cos - torch.tensor(far).double()).abs().max() > 1e-3


@case
def smear_by_loops():
    s = read("parts", "model.embed_norm=false")
    p, (tokens, _) = doubles(s), tokens_for(s)
    assert (tokens[:, 1:] == s.data.bos).any()      # it crosses documents
    x0 = Model(s)._start(p, tokens).x0
    for r in range(2):
        e = p["embed"][tokens[r]]
        close(x0[r], loop_smear(e, p["smear.weight"], p["smear.lambda"]), 1e-14)
        assert torch.equal(x0[r, 0], e[0])
        assert (x0[r, 1:] - e[1:]).abs().amax(1).min() > 1e-3
    # a gate of weight 0 is one half; the norm comes behind it
    p["smear.weight"] *= 0
    p["smear.lambda"][0] = 2
    e = p["embed"][tokens]
    want = torch.cat((e[:, :1], e[:, 1:] + e[:, :-1]), 1)
    close(Model(s)._start(p, tokens).x0, want, 1e-15)
    normed = read("parts")
    close(Model(normed)._start(p, tokens).x0, norm(want, 1e-3), 1e-14)


@case
def parts_at_their_start_change_little():
    """Zero lambda, sa_lambda of 1 and value rows of 0: the same function."""
    s = read("parts", "model.attention.sa_lambda.init=[1, 1]", "model.attention.gate=none",
             "model.attention.key_offset=none", "model.value_embed.std=0")
    plain = read("parts", "model.attention.sa_lambda=none", "model.attention.gate=none",
                 "model.attention.key_offset=none", "model.value_embed=none",
                 "model.smear.channels=0")
    p, start = doubles(s), init.initial(s)
    new = {q.name for q in parameters(s)} - {q.name for q in parameters(plain)}
    assert len(new) == 2 + 2 + 4
    p.update({k: start[k].double() for k in new})
    close(loss_of(s, p), loss_of(plain, {k: v for k, v in p.items() if k not in new}), 1e-15)
    # and the loss depends on each of them
    for name in sorted(new - {"smear.weight"}):
        if not name.endswith("value_gate"):
            assert abs(loss_of(s, {**p, name: p[name] + 0.5}) - loss_of(s, p)) > 1e-7, name


@case
def bigram_by_loops():
    tokens = torch.randint(50257, (3, 40))
    got = bigram_rows(tokens, 1001)
    for r in range(3):
        assert got[r, 0] == 1000
        for t in range(1, 40):
            a, b = int(tokens[r, t]), int(tokens[r, t - 1])
            assert got[r, t] == ((36313 * a) ^ (27191 * b)) % 1000


def int32(x):
    """Python's integer as the two's complement of 32 bits has it."""
    return int.from_bytes((x & 0xffffffff).to_bytes(4, "little"), "little", signed=True)


@case
def bigram_quirk_by_loops():
    tokens = torch.randint(65536, (4, 60))
    tokens[0, :5] = torch.tensor([65535, 65535, 0, 1, 65535])
    for rows in (251520, 67, 2 ** 30):
        got, clean = bigram_rows(tokens, rows, True), bigram_rows(tokens, rows)
        for r in range(4):
            assert got[r, 0] == rows - 1
            for t in range(1, 60):
                before = rows - 1 if t == 1 else int(tokens[r, t - 1])
                x = int32(36313 * int(tokens[r, t])) ^ int32(27191 * before)
                assert got[r, t] == x % (rows - 1) and 0 <= got[r, t] < rows - 1
    # the record's own numbers: of the second position, and where nothing wraps
    assert int32(27191 * 251519) == -1750881463
    tokens = torch.randint(50257, (2, 40))
    got, clean = bigram_rows(tokens, 251520, True), bigram_rows(tokens, 251520)
    assert torch.equal(got[:, 2:], clean[:, 2:]) and torch.equal(got[:, 0], clean[:, 0])
    for r in range(2):
        assert got[r, 1] == (36313 * int(tokens[r, 1]) ^ -1750881463) % 251519 != clean[r, 1]
    assert bigram_rows(tokens[:, :1], 9, True).tolist() == [[8], [8]]
    s = [read("full", f"hc.sources.big.hash={x}") for x in ("clean", "quirk")]
    a, b = (grads_of(x, doubles(x)) for x in s)
    assert not torch.equal(a["grad.hc.sources.big.table"], b["grad.hc.sources.big.table"])


def loop_mix(h):
    """Python's integer after the 32-bit mix."""
    h ^= h >> 16
    h = h * 0x85ebca6b % 2 ** 32
    h ^= h >> 13
    h = h * 0xc2b2ae35 % 2 ** 32
    return h ^ h >> 16


def loop_sign(tokens, t, c, count, width):
    """The sign at position t of one sequence, a list, and channel c."""
    p = (tokens[t] ^ tokens[t - 1]) % count if t else 0
    return -1 if loop_mix(p * width + c) % 2 else 1


def loop_signs(tokens, count, width):
    return torch.tensor([[[loop_sign(row, t, c, count, width) for c in range(width)]
                          for t in range(len(row))] for row in tokens.tolist()])


@case
def bigram_signs_by_loops():
    # the mix ends MurmurHash3: these are its published hashes of the empty key, the seed being h
    known = {0: 0, 1: 0x514e28b7, 0xffffffff: 0x81f16f39}
    assert {h: loop_mix(h) for h in known} == known
    assert mix32(np.array(list(known), np.uint32)).tolist() == list(known.values())
    tokens = torch.randint(65536, (3, 30))
    tokens[0, :5] = torch.tensor([65535, 0, 65535, 65535, 1])
    for count, width in ((8192, 12), (1000, 7), (1, 5), (65537, 768), (2 ** 30, 16384)):
        got = bigram_signs(tokens, count, width)
        assert got.shape == (3, 30, width)
        for r in range(3):
            own = tokens[r].tolist()
            for t in range(30):
                for c in range(width)[-12:]:
                    assert got[r, t, c] == loop_sign(own, t, c, count, width), (r, t, c)
        # first positions have row 0, of a sequence of one token too; so has a token twice
        assert torch.equal(got[0, 0], got[1, 0]) and torch.equal(got[0, 0], got[0, 3])
        assert torch.equal(bigram_signs(tokens[1:, :1], count, width), got[1:, :1])
    # half of a table is of each sign, and its rows are not alike
    got = bigram_signs(torch.randint(50257, (4, 200)), 8192, 768).double()
    assert abs(got.mean()) < 0.01 and abs((got[:, 1:] * got[:, :-1]).mean()) < 0.01


@case
def sources_with_signs_by_loops():
    """Their vectors, and the gradients of the table's rows, position by position."""
    for hash_ in ("clean", "quirk"):
        s = read("full", "hc.sources.big.signs=5", f"hc.sources.big.hash={hash_}")
        plain = read("full", f"hc.sources.big.hash={hash_}")
        assert [q.name for q in parameters(s)] == [q.name for q in parameters(plain)]
        p, (tokens, _) = doubles(s), tokens_for(s)
        assert (tokens[:, 1:] == s.data.bos).any()      # documents do not matter
        table = p["hc.sources.big.table"].requires_grad_()
        got, x0 = (Model(s)._start(p, tokens).sources[k] for k in ("big", "x"))
        weight = torch.randn(got.shape, dtype=torch.float64)
        (got * weight).sum().backward()
        grad, flipped = torch.zeros_like(table), 0
        for r in range(2):
            own = tokens[r].tolist()
            for t in range(11):
                before = own[t - 1] if hash_ == "clean" or t > 1 else 16
                g = int32(36313 * own[t]) ^ int32(27191 * before)
                g = g % 16 if t else 16
                for c in range(12):
                    sign = loop_sign(own, t, c, 5, 12)
                    assert got[r, t, c] == sign * table[g, c], (hash_, r, t, c)
                    grad[g, c] += sign * weight[r, t, c]
                    flipped += sign < 0
        close(table.grad, grad, 1e-14)
        assert 0.3 < flipped / 264 < 0.7
        # a detached source keeps its signs; one of another kind has none
        cut = read("full", "hc.sources.big={signs: 5, detach: true}", "hc.sources.x.signs=5",
                   f"hc.sources.big.hash={hash_}")
        run = Model(cut)._start(p, tokens)
        assert torch.equal(run.sources["big"], got) and not run.sources["big"].requires_grad
        assert torch.equal(run.sources["x"], x0)


@case
def plain_gpt_by_hand():
    """One lane and every default: a pre-norm GPT written down directly."""
    gpt_by_hand(read("tiny"))


@case
def gpt_with_parts_by_hand():
    """The same with all of smear, gates, lambdas, key offsets and value embeddings."""
    gpt_by_hand(read("tiny", "model.smear.channels=12", "model.attention.gate=[0, 1]",
                     "model.attention.sa_lambda=[1, 2]", "model.rotary.frequencies=endpoint",
                     "model.attention.key_offset={layers: all, first: 2}",
                     "model.value_embed=[0, 2]", "model.kv_heads=1"))


@case
def gpt_with_paired_heads_by_hand():
    """Layers in which heads are paired and one in which they are not, of one window."""
    gpt_by_hand(read("tiny", "model.attention.paired={except: [1]}", "model.attention.window=3",
                     "model.heads=4", "model.head_dim=6", "model.value_embed=[0, 1]",
                     "model.attention.key_offset={layers: [1, 2], first: 2}",
                     "model.attention.gate=all", "model.attention.sa_lambda=[2]"))


def gpt_by_hand(s):
    p, (tokens, targets) = doubles(s), tokens_for(s)
    total = 0.0
    for row, want in zip(tokens, targets):
        x = p["embed"][row]
        if s.model.smear.channels:
            x = loop_smear(x, p["smear.weight"], p["smear.lambda"])
        x = norm(x, 1e-3)
        for i in range(3):
            w = f"layers.{i}."
            x = x + loop_layer(norm(x, 1e-3), p, s, i, row)
            x = x + (norm(x, 1e-3) @ p[w + "mlp.up"].T).clamp(min=0) ** 2 @ p[w + "mlp.down"]
        l = (norm(x, 1e-3) @ p["head"].T)[:, :23]
        total += (l.logsumexp(1) - l[torch.arange(11), want]).sum()
    close(loss_of(s, p, tokens, targets), total / 22, 1e-13)


@case
def mlp_and_softcap_by_formula():
    u = torch.randn(1, 1, 4, dtype=torch.float64) * 3
    eye, eye8 = torch.eye(4).double(), torch.eye(8).double()
    gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
    close(branches.mlp(u, eye, eye, "gelu"), gelu, 1e-14)
    close(branches.mlp(u, eye, eye, "relu2"), torch.where(u > 0, u * u, 0 * u), 1e-14)
    both = torch.cat((u, 2 * u + 1), -1)
    close(branches.mlp(both, eye8, eye, "swiglu"), u / (1 + (-u).exp()) * (2 * u + 1), 1e-14)
    cap = read("full").model.softcap
    close(branches.softcap(u, cap), 23 / (1 + (-(u + 5) / 7.5).exp()), 1e-13)


# ---- the loss -------------------------------------------------------------

def row_losses(z, targets, weights):
    """One sequence z [N, V], its positions and targets one by one."""
    out = []
    for p in range(len(z)):
        total = 0.0
        for k, w in enumerate(weights):
            if p + k < len(z):
                total = total + w * (z[p].exp().sum().log() - z[p, int(targets[p + k])])
        out.append(total)
    return torch.stack(out)


@case
def targets_by_loops():
    s = read("full", "train.stages={a: {targets: [1, 0.5, 0.25], targets_end: [0, 0, 0]}, b: {}}")
    p, (tokens, targets) = doubles(s), tokens_for(s)
    model = Model(s)
    z = model.logits(p, tokens)
    for weights in ([1.0], [2.0], [1, 0.5, 0.25], [0, 1.0], [0.3] * 11, [0.3] * 14):
        want = sum(row_losses(z[r], targets[r], weights).sum() for r in range(2)) / 22
        close(model.loss(p, tokens, targets, weights), want, 1e-13)
    # documents begin in both sequences, and the targets do not care; sequences end them
    assert (tokens[:, 1:] == s.data.bos).any()
    far = targets.clone()
    far[1, 0] = (far[1, 0] + 1) % 23
    for weights, changed in (([1.0], {(1, 0)}), ([1.0, 1.0, 1.0], {(1, 0)})):
        a, b = (branches.loss_sum(z, t, weights) for t in (targets, far))
        assert a != b
        one = [[row_losses(z[r], t[r], weights) for r in range(2)] for t in (targets, far)]
        assert {(r, i) for r in range(2) for i in range(11)
                if one[0][r][i] != one[1][r][i]} == changed
    # gradients are those of the first step of a stage; validation knows one token
    got = grads_of(s, doubles(s))
    close(got["loss"], model.loss(p, tokens, targets, [1, 0.5, 0.25]), 1e-14)
    close(model.validation_loss(p, tokens, targets), model.loss(p, tokens, targets), 0)


@case
def gradients_with_targets():
    s = read("full", "train.stages.a={targets: [0.7, 0.4, 0.2, 0.1]}")
    p, (tokens, targets) = doubles(s), tokens_for(s)
    grads, h = grads_of(s, p), 1e-5
    for name in ("head", "embed", "layers.0.attn.qkv", "layers.2.mlp.down", "hc.post"):
        d = torch.randn(p[name].shape, dtype=torch.float64)
        a, b = (Model(s).loss({**p, name: p[name] + e * d}, tokens, targets, [0.7, 0.4, 0.2, 0.1])
                for e in (h, -h))
        close((grads["grad." + name] * d).sum(), (a - b) / (2 * h), 1e-8)


# ---- FP8 ------------------------------------------------------------------

def numbers(fraction, bias, exponents, top):
    """All non-negative finite numbers of a format, by their codes, in order."""
    out = []
    for code in range(exponents << fraction):
        e, m = code >> fraction, code & (1 << fraction) - 1
        out.append(math.ldexp(m, 1 - bias - fraction) if e == 0
                   else math.ldexp((1 << fraction) + m, e - bias - fraction))
    return [x for x in out if x <= top]


def nearest(x, table):
    """By the table: the nearest, of two the one of even code, at most the last."""
    a, sign = min(abs(x), table[-1]), math.copysign(1, x)
    best = min(range(len(table)), key=lambda c: (abs(table[c] - a), c % 2))
    return sign * table[best]


E4M3, E5M2 = numbers(3, 7, 16, 448), numbers(2, 15, 31, 57344)


@case
def fp8_rounding_by_tables():
    assert len(E4M3) == 127 and E4M3[1] == 2 ** -9 and E4M3[-2:] == [416, 448]
    assert len(E5M2) == 124 and E5M2[1] == 2 ** -16 and E5M2[-2:] == [49152, 57344]
    for kind, table in ((fp8.E4M3, E4M3), (fp8.E5M2, E5M2)):
        x = []
        for a, b in zip(table, table[1:]):
            mid = (a + b) / 2
            x += [a, math.nextafter(a, 9e9), mid, math.nextafter(mid, 0),
                  math.nextafter(mid, 9e9), math.nextafter(b, 0)]
        top = table[-1]
        x += [top, math.nextafter(top, 9e9), top * 1.03, top * 1.07, 2 * top, 1e300, math.inf,
              1e-300, 0.0, table[1] / 2, table[1] * 0.51, table[1] * 1.5, table[1] * 2.5]
        both = torch.tensor(x + [-v for v in x], dtype=torch.float64)
        want = torch.tensor([nearest(v, table) for v in both.tolist()], dtype=torch.float64)
        got = fp8.rounded(both, kind)
        assert torch.equal(got, want), both[got != want]
        # in float32 the same, where the number is one
        short = both.float()[both.abs() < 1e30]
        want = [nearest(v, table) for v in short.double().tolist()]
        assert fp8.rounded(short, kind).dtype == torch.float32
        assert fp8.rounded(short, kind).tolist() == want


@case
def fp8_scales_keep_ties():
    """4.6875 over 100/448 is 21, between 20 and 22: every such quotient is where it belongs."""
    y = torch.tensor([m * 2.0 ** e for m in range(128, 256) for e in range(-20, 4)]).double()
    exact = [nearest(Fraction(v) * 448 / 100, E4M3) for v in y.tolist()]
    for dtype in (torch.float64, torch.float32):
        got = fp8.rounded(fp8.scaled(y.to(dtype), 100.0), fp8.E4M3)
        assert got.tolist() == exact
    assert nearest(Fraction(4.6875) * 448 / 100, E4M3) == 20


def hand_head(y, head, targets, weights, scales, cap):
    """One sequence y [N, C] through the head in Python's floats: sum of row losses, logits, and
    the products' gradients before any factor: dy [N, C], dhead [V, C]."""
    (N, C), V = y.shape, len(head)
    sx, sw, sg = scales.x / 448, scales.w / 448, scales.grad / 448
    y8 = [[nearest(Fraction(entry(v, "bf16")) * 448 / Fraction(scales.x), E4M3) for v in row]
          for row in y.tolist()]
    w8 = [[nearest(v / sw, E4M3) for v in row] for row in head.tolist()]
    total, ls, dy, dw = 0.0, [], [[0.0] * C for _ in y8], [[0.0] * C for _ in w8]
    for p in range(N):
        l = [entry(sx * sw * sum(a * b for a, b in zip(y8[p], w)), "bf16") for w in w8]
        u = [1 / (1 + math.exp(-(x + cap.shift) / cap.temperature)) for x in l]
        z = [cap.cap * x for x in u]
        lse, ahead = math.log(sum(math.exp(x) for x in z)), list(enumerate(weights))[:N - p]
        slope = [sum(w for _, w in ahead) * math.exp(x - lse) for x in z]
        for k, w in ahead:
            total += w * (lse - z[int(targets[p + k])])
            slope[int(targets[p + k])] -= w
        ls.append(z)
        for c in range(V):
            g = slope[c] * z[c] * (1 - u[c]) / cap.temperature
            g = nearest(g / sg, E5M2)
            for i in range(C):
                dy[p][i] += sg * sw * g * w8[c][i]
                dw[c][i] += sg * sx * g * y8[p][i]
    return (total, *(torch.tensor(x, dtype=torch.float64) for x in (ls, dy, dw)))


FP8 = ("full", "numerics.head=fp8", "numerics.fp8={x: 5, w: 0.9, grad: 0.2}",
       "train.stages.a={targets: [1, 0.5]}")


@case
def fp8_head_by_loops():
    s = read(*FP8)
    p, (tokens, targets) = doubles(s), tokens_for(s)
    p["head"] = p["head"] * 3       # some of it saturates
    y = Model(s)._normed(p, tokens).detach()
    assert (y.abs() > 5).sum() == 0 and (p["head"].abs() > 0.9).any()
    y, head = y.requires_grad_(), p["head"][:23].clone().requires_grad_()
    total = fp8.loss_sum(y, head, targets, [1, 0.5], s)
    (0.125 * total).backward()
    parts = [hand_head(y[r], head, targets[r], [1, 0.5], s.numerics.fp8, s.model.softcap)
             for r in range(2)]
    close(total, sum(x[0] for x in parts), 1e-13)
    close(y.grad, 0.125 * torch.stack([x[2] for x in parts]), 1e-13)
    close(head.grad, 0.125 * sum(x[3] for x in parts), 1e-13)
    close(Model(s).logits(p, tokens), torch.stack([x[1] for x in parts]), 1e-13)
    # the whole model: loss the mean, gradients of it
    got = oracle.gradients(s, p, tokens, targets, torch.float64, True)
    close(got["loss"], total / 22, 1e-14)
    close(got["grad.head"][:23], sum(x[3] for x in parts) / 22, 1e-13)
    assert got["grad.head"][23].abs().max() == 0
    # the trunk gets what the head's product gives, and nothing else
    wide = Model(s)
    leaf = {k: v.detach().clone().requires_grad_() for k, v in p.items()}
    wide._normed(leaf, tokens).backward(torch.stack([x[2] for x in parts]) / 22)
    for k in leaf:
        if k != "head":
            close(got["grad." + k], leaf[k].grad, 1e-13)


@case
def fp8_is_of_training():
    s, plain = read(*FP8), read("full", "train.stages.a={targets: [1, 0.5]}")
    p, (tokens, targets) = doubles(s), tokens_for(s)
    a, b = Model(s), Model(plain)
    assert a.validation_loss(p, tokens, targets) == b.validation_loss(p, tokens, targets)
    assert abs(a.loss(p, tokens, targets) - b.loss(p, tokens, targets)) > 1e-5
    # near the gradients of the exact head, and far from equal to them
    x, y = grads_of(s, p), grads_of(plain, p)
    for k in ("grad.head", "grad.layers.0.attn.qkv", "grad.embed"):
        error = (x[k] - y[k]).norm() / y[k].norm()
        assert 1e-3 < error < 0.3, (k, error)
    # the factor of the loss is none of the gradient that is rounded
    tiny = {k: v.detach().clone().requires_grad_() for k, v in p.items()}
    (a.loss(tiny, tokens, targets, [1, 0.5]) * 1e-30).backward()
    close(tiny["head"].grad * 1e30, x["grad.head"], 1e-13)
    # in narrower types the same up to their own rounding
    for dtype, tol in ((torch.float32, 0.05), (torch.bfloat16, 0.2)):
        z = grads_of(s, p, dtype)
        assert z["loss"].dtype == torch.float32 and z["logits"].dtype == torch.float32
        for k in ("grad.head", "grad.layers.0.attn.qkv"):
            assert (z[k].double() - x[k]).norm() < tol * x[k].norm(), (dtype, k)
    # tied: the table gets both gradients
    tied = read(*FP8, "model.tied=true")
    q = doubles(tied)
    one = grads_of(tied, q)["grad.embed"]
    two = grads_of(s, {**p, **q, "head": q["embed"]})
    close(one, two["grad.embed"] + two["grad.head"], 1e-13)


@case
def fp8_padding_and_other_caps():
    """Rows of padding get nothing; the other softcaps go through the same head."""
    for cap in ("none", "{kind: tanh, cap: 5}"):
        s = read("full", "numerics.head=fp8", "numerics.fp8={x: 5, w: 0.9, grad: 1}",
                 f"model.softcap={cap}")
        p, (tokens, targets) = doubles(s), tokens_for(s)
        got = oracle.gradients(s, p, tokens, targets, torch.float64, True)
        p["head"][23] += 100
        again = oracle.gradients(s, p, tokens, targets, torch.float64, True)
        assert all(torch.equal(got[k], again[k]) for k in got)
        l = fp8.logits(Model(s)._normed(p, tokens), p["head"][:23], s.numerics.fp8)
        want = l if cap == "none" else 5 * torch.tanh(l / 5)
        close(got["logits"], want.flatten(0, 1), 1e-14)
        close(got["loss"], F.cross_entropy(want.flatten(0, 1), targets.flatten()), 1e-14)


# ---- the command line -----------------------------------------------------

@case
def grad_runs_the_stage_of_most_tokens():
    path = [os.path.join(FOLDER.name, x) for x in ("g.bin", "p.safetensors", "o.safetensors")]
    s = read("tiny", "train.stages.a.window=2",
             "train.stages.b={tokens_per_step: 24, seq_len: 12, window: 3, targets: [1, 0.5]}",
             "train.stages.c={tokens_per_step: 48, seq_len: 12, micro_batches: 2}")
    data.write_shard(path[0], torch.randint(23, (25,)).tolist())
    safetensors.save(path[1], init.random(s, 4))
    tokens = torch.from_numpy(data.read_shard(path[0]).astype("int64"))
    for name, seq_len in ((None, 12), ("b", 12), ("a", 11), ("c", 12)):
        args = node(tokens=path[0], params=path[1], dump=path[2], dtype="float64", logits=True,
                    stage=name)
        with open(os.devnull, "w") as out, contextlib.redirect_stdout(out):
            oracle.grad(args, s)
        got = safetensors.load(path[2])
        x = tokens[:2 * seq_len].view(2, seq_len)
        y = tokens[1:2 * seq_len + 1].view(2, seq_len)
        model = Model(s)
        model.enter(stages.named(s, name or "b"))
        p = {k: v.double() for k, v in init.random(s, 4).items()}
        weights = [1, 0.5] if name in (None, "b") else [1.0]
        close(got["loss"], model.loss(p, x, y, weights), 0)
        assert got["logits"].shape == (2 * seq_len, 23)


# ---- the lanes ------------------------------------------------------------

class Dense:
    """docs/spec.md's lane algebra on one stacked tensor X [n, B, N, C], every
    coefficient looked up in a full table, every step taken at every sublayer."""

    def __init__(self, spec, params):
        self.s, self.p, self.hc = spec, params, spec.hc
        self.model = Model(spec)

    def table(self, name, coef):
        t = self.p[name] if coef.learned else torch.from_numpy(coef.init)
        return t.bfloat16().double() if self.hc.coef_dtype == "bf16" else t

    def is_live(self, s):
        layers = (self.s.model.attention.layers, self.s.model.mlp.layers)[s % 2]
        return s // 2 in layers and s not in self.hc.dead

    def acts(self, coef, s, per_layer):
        def here(t):
            return self.is_live(t) and t in coef.sublayers and t // 2 in coef.layers
        if per_layer and s % 2 and here(s - 1):
            return False
        return here(s)

    def lam(self, s, n):
        c = self.hc.resid_lambda
        if c.shape is None or not self.acts(c, s, c.granularity == "layer"):
            return torch.ones(n).double()
        t = self.table("hc.resid_lambda", c)[s // 2 if c.granularity == "layer" else s]
        return t.expand(n) if t.dim() == 0 else t[:n]

    def terms(self, s, site, n):
        """Sum over sources of c[k] * src, [n, B, N, C]."""
        total = torch.zeros(n, *self.x0.shape).double()
        for name, src in self.hc.sources.items():
            layer = src.granularity == "layer"
            if not self.acts(src, s, layer):
                continue
            if site != "init" and (src.site != site or s == 0 and src.first == "lane_init"):
                continue
            if site == "init" and src.first == "in_place":
                continue
            c = self.table(f"hc.sources.{name}.coef", src)[s // 2 if layer else s]
            c = c.expand(n) if len(c) == 1 else c[:n]
            if src.lane != "all" and site != "on_branch":
                c = c * torch.tensor([k == src.lane for k in range(n)])
            total = total + torch.einsum("k,btc->kbtc", c, self.vector(name, src))
        return total

    def vector(self, name, src):
        if src.kind == "x0":
            return self.x0
        rows = bigram_rows(self.tokens, src.rows, src.hash == "quirk")
        x = self.p[f"hc.sources.{name}.table"][rows]
        return x * loop_signs(self.tokens, src.signs, x.shape[-1]) if src.signs else x

    def gate(self, base, gate):
        g = self.p[base] if gate.learned else torch.tensor([gate.init]).double()
        if gate.kind == "scalar":
            return g
        if gate.kind == "sigmoid":
            return torch.sigmoid(g)
        w = self.p[base + "_weight"]
        return torch.sigmoid(g) * 2 * torch.sigmoid(self.x0[..., :gate.channels] @ w)[..., None]

    def value(self, point, X):
        return X.mean(0) if point.lane == "mean" else X[point.lane]

    def skips(self, s, when, X, kept):
        for name, skip in self.hc.skips.items():
            if when == "before" and (skip["from"].sublayer, skip["from"].when) == (s, when):
                kept[name] = self.value(skip["from"], X)
            if (skip.to.sublayer, skip.to.when) == (s, when) and self.is_live(s):
                hit = torch.zeros(len(X)).double()
                hit[... if skip.to.lane == "all" or len(X) == 1 else skip.to.lane] = 1
                add = self.gate(f"hc.skips.{name}.gate", skip.gate) * kept[name]
                X = X + torch.einsum("k,btc->kbtc", hit, add)
        if when == "after":
            for name, skip in self.hc.skips.items():
                if (skip["from"].sublayer, skip["from"].when) == (s, when):
                    kept[name] = self.value(skip["from"], X)
        return X

    def coefficients(self, s, n, where):
        """pre [n], res [n, n], post [n] of sublayer s."""
        pre, res, post = torch.full((n,), 1 / n, dtype=torch.float64), torch.eye(n).double(), \
            torch.ones(n).double()
        if where != "one" and self.acts(self.hc.pre, s, False):
            pre = self.table("hc.pre", self.hc.pre)[s]
        if where == "inside" and self.acts(self.hc.res, s, False):
            res = self.table("hc.res", self.hc.res)[s]
        post_here = where == "inside" or where == "one" and self.hc.post.outside
        if post_here and self.acts(self.hc.post, s, False):
            post = self.table("hc.post", self.hc.post)[s][:n]
        return pre, res, post

    def start(self, n):
        li = self.hc.lane_init
        share = {"copy": torch.ones(n), "split": torch.ones(n).double() / n,
                 "first": torch.eye(n)[0]}
        X = torch.einsum("k,btc->kbtc", share[li.kind].double(), self.x0)
        if li.learned:
            X = X + self.p["hc.lane_init"][:n, None, None]
        return X + self.terms(0, "init", n)

    def trunk(self, tokens):
        m, hc, self.tokens = self.s.model, self.hc, tokens
        reads = {}
        run = self.model._start(self.p, tokens)
        x = self.p["embed"][tokens]
        if m.smear.channels:
            x = torch.stack([loop_smear(e, self.p["smear.weight"], self.p["smear.lambda"])
                             for e in x])
        self.x0 = norm(x, m.norm_eps) if m.embed_norm else x
        L = m.layers
        first, last = (hc.layers[0], hc.layers[-1]) if hc.layers else (2 * L, 2 * L)
        X, kept, backs = self.start(hc.lanes if first == 0 else 1), {}, {}
        for s in range(2 * L):
            i = s // 2
            where = "one" if i < first or i > last and hc.leave != "keep" else \
                "inside" if i <= last else "kept"
            if s == 2 * first and s:
                X = X.expand(hc.lanes, *X.shape[1:])
            self.look(s, "before", X, backs)
            self.look(s, "before", X, reads, "reads")
            X = self.skips(s, "before", X, kept)
            if self.is_live(s):
                n = len(X)
                pre, res, post = self.coefficients(s, n, where)
                lam = self.lam(s, n)
                early = lam if hc.resid_lambda.site == "before_read" else torch.ones(n).double()
                late = lam if hc.resid_lambda.site == "at_write" else torch.ones(n).double()
                X = torch.einsum("k,kbtc->kbtc", early, X) + self.terms(s, "before_read", n)
                u = torch.einsum("k,kbtc->btc", pre, X)
                for name, r in hc.reads.items():
                    u = reads[name] if s in r.sublayers else u
                h = self.model._branch(run, s, u) + self.terms(s, "on_branch", 1)[0]
                X = torch.einsum("k,kl,lbtc->kbtc", late, res, X) \
                    + torch.einsum("k,btc->kbtc", post, h) + self.terms(s, "at_write", n)
            X = self.skips(s, "after", X, kept)
            self.look(s, "after", X, backs)
            self.look(s, "after", X, reads, "reads")
            if s == 2 * last + 1 and last < L - 1:
                X = X if hc.leave == "keep" else self.fold(X, hc.leave)
        reduces = last == L - 1 or hc.leave == "keep"
        out = self.fold(X, hc.output)[0] if reduces else X[0]
        for name, b in hc.backouts.items():
            out = out - self.gate(f"hc.backouts.{name}.gate", b.gate) * backs[name]
        return out

    def look(self, s, when, X, kept, kind="backouts"):
        for name, b in self.hc[kind].items():
            if (b["from"].sublayer, b["from"].when) == (s, when):
                kept[name] = self.value(b["from"], X)

    def fold(self, X, how):
        if how == "learned":
            return torch.einsum("k,kbtc->btc", self.p["hc.output"], X)[None]
        if isinstance(how, int):
            return X[how:how + 1]
        return X.sum(0, keepdim=True) if how == "sum" else X.mean(0, keepdim=True)


VARIANTS = [
    ("full",), ("keep",), ("leave",), ("parts",), ("sites",), ("full", "hc.dead=[0, 4]"),
    ("sites", "hc.layers=[0, 1]", "hc.leave=sum", "hc.post.init={attn: 0.7, mlp: 1.6}",
     "hc.sources.big={lane: 0, first: both}", "hc.sources.x.first=lane_init",
     "hc.skips.b.to.lane=0"),
    ("sites", "hc.layers=[1, 2]", "hc.leave=keep", "hc.sources.big.lane=all",
     "hc.sources.big.first=lane_init", "hc.sources.x.lane=0", "hc.sources.x.first=both"),
    # lanes that are kept behind the range are no single stream: post is 1 there
    ("sites", "hc.layers=[0, 1]", "hc.leave=keep", "hc.post.init=0.7"),
    ("sites", "hc.layers=none", "hc.sources.big.granularity=layer", "hc.reads.r.from.lane=0",
     "hc.reads.q.from.lane=0", "hc.skips={a: none, b: none}", "hc.backouts.out=none"),
    ("sites", "hc.sources.x.granularity=layer", "hc.dead=[4]", "hc.sources.big.site=before_read",
     "hc.sources.big.shared=true", "hc.reads.r={from: {when: before, sublayer: 4}}"),
    ("sites", "hc.layers=all", "hc.coef_dtype=bf16", "hc.sources.big.hash=quirk",
     "hc.sources.x.learned=false", "hc.post.learned=false"),
    ("full", "hc.sources.big={signs: 8192, shared: true}", "hc.sources.x.signs=3",
     "hc.sources.more={kind: bigram, rows: 9, signs: 3, init: 0.3, detach: true}"),
    ("full", "hc.dead=[0]", "hc.sources.x.granularity=layer", "hc.sources.x.first=lane_init"),
    ("full", "hc.coef_dtype=bf16", "hc.res.learned=false", "hc.pre.init=0.3"),
    ("full", "hc.res.learned=false", "hc.pre.learned=false", "hc.post.learned=false",
     "hc.resid_lambda.learned=false",
     "hc.sources.x.learned=false", "hc.skips.b.gate.learned=false"),
    ("full", "hc.lane_init=first", "hc.lane_init.learned=false", "hc.output={lane: 1}",
     "hc.sources.big.first=lane_init", "hc.sources.x.shared=true", "hc.sources.x.sublayers=mlp"),
    ("full", "hc.pre.layers=[0, 2]", "hc.res.sublayers=[1, 2, 5]", "hc.post=0.0",
     "hc.skips.a.to.when=after", "hc.skips.a.to.sublayer=2", "hc.skips.a.gate.kind=sigmoid"),
    ("keep", "hc.layers=[0, 1]", "hc.output=mean", "hc.pre=0.4"),
    ("keep", "hc.layers=[2, 3]", "hc.lane_init={kind: split, learned: true}",
     "hc.skips.a.from.lane=0", "hc.backouts.out.from.lane=0"),
    ("keep", "hc.leave={lane: 2}", "hc.resid_lambda.granularity=lane", "hc.resid_lambda.init=1.1",
     "hc.sources.x.init=0.2", "hc.sources.x.shared=false"),
    ("leave", "hc.leave=mean", "hc.skips.a.to.sublayer=4", "hc.skips.a.from.when=before"),
    ("leave",
     "hc.skips.c={from: {sublayer: 1}, to: {sublayer: 3, when: after, lane: 0}, gate: 0.2}",
     "hc.skips.d={from: {sublayer: 3, when: before, lane: 2}, to: {sublayer: 5}, gate: 0.7}"),
    ("full", "hc.lanes=1", "hc.post.init=0.9", "hc.skips.a.from.lane=0", "hc.skips.b.to.lane=0",
     "hc.backouts.out.from.lane=mean", "hc.output=learned"),
]


@case
def lanes_by_dense_algebra():
    for variant in VARIANTS:
        s = read(*variant)
        p, (tokens, _) = doubles(s), tokens_for(s)
        want = Dense(s, p).trunk(tokens)
        got = Model(s).trunk(p, tokens)
        error = (got - want).abs().max() / want.abs().max()
        assert error < 1e-12, (variant, error)


@case
def default_lanes_change_nothing():
    """Copies, one-hot reads, identity, writes of 1: the plain net for any n."""
    one = loss_of(read("tiny"), doubles(read("tiny")))
    for n in (2, 3, 5):
        s = read("tiny", f"hc.lanes={n}")
        assert set(doubles(s)) == set(doubles(read("tiny")))
        close(loss_of(s, doubles(s)), one, 1e-13)


@case
def lane_order_is_a_name():
    """Permuting lanes with everything that speaks of lanes leaves the loss alone."""
    order = [2, 0, 1]               # new lane k is old lane order[k]
    s, new = read("full"), {old: k for k, old in enumerate(order)}
    p = doubles(s)
    q = dict(p)
    q["hc.res"] = p["hc.res"][:, order][:, :, order]
    for name in ("hc.pre", "hc.post", "hc.resid_lambda", "hc.sources.x.coef",
                 "hc.sources.big.coef"):
        q[name] = p[name][:, order]
    for name in ("hc.lane_init", "hc.output"):
        q[name] = p[name][order]
    moved = read("full", f"hc.skips.a.from.lane={new[1]}", f"hc.skips.b.to.lane={new[2]}",
                 f"hc.backouts.out.from.lane={new[2]}")
    close(loss_of(moved, q), loss_of(s, p), 1e-13)
    assert abs(loss_of(s, q) - loss_of(s, p)) > 1e-4


# ---- gradients ------------------------------------------------------------

def check_gradients(spec, entries=2):
    """Every parameter along a random direction and at a few single entries."""
    values = doubles(spec)
    grads, g = grads_of(spec, values), torch.Generator().manual_seed(7)
    for name, v in values.items():
        got = grads["grad." + name]
        directions = [torch.randn(v.shape, generator=g, dtype=torch.float64)]
        for _ in range(entries):
            one = torch.zeros(v.numel()).double()
            one[torch.randint(v.numel(), (1,), generator=g)] = 1
            directions.append(one.reshape(v.shape))
        for d in directions:
            want = difference(spec, values, name, d)
            slope = (got * d).sum().item()
            assert abs(slope - want) < 1e-7 * max(1.0, got.norm().item()), (name, slope, want)


def difference(spec, values, name, d, h=1e-5):
    """Central difference of the loss along d: error h^2 in the third derivative
    and 1e-16/h in rounding, about 1e-10 each."""
    with torch.no_grad():
        ends = [loss_of(spec, {**values, name: values[name] + e * d}).item() for e in (h, -h)]
    return (ends[0] - ends[1]) / (2 * h)


@case
def gradients_of_everything():
    check_gradients(read("full"))


@case
def gradients_with_kept_lanes():
    check_gradients(read("keep"))


@case
def gradients_with_left_lanes():
    check_gradients(read("leave"))


@case
def gradients_with_attention_parts():
    check_gradients(read("parts"))


@case
def gradients_with_paired_heads():
    check_gradients(read("paired"))


@case
def gradients_with_sites_and_reads():
    check_gradients(read("sites"))


@case
def reads_take_the_place_of_lanes():
    """The branch sees the value with its norm and gates, and the lanes get no gradient from it."""
    s = read("tiny", "hc.lanes=2", "hc.pre.learned=true", "model.attention.gate=all",
             "hc.reads.r={from: {sublayer: 1, lane: 1}, sublayers: [4, 5]}")
    p, (tokens, _) = doubles(s), tokens_for(s)
    grads = grads_of(s, p)["grad.hc.pre"]
    assert grads[4:].abs().max() == 0 and grads[:4].abs().amin(1).min() > 0
    # one stream, by hand
    s = read("tiny", "hc.reads.r={from: {sublayer: 1}, sublayers: [4, 5]}",
             "model.attention.gate=all")
    p = doubles(s)
    out = Model(s).trunk(p, tokens)
    for r in range(2):
        x, kept = norm(p["embed"][tokens[r]], 1e-3), None
        for i in range(3):
            w = f"layers.{i}."
            x = x + loop_layer(norm(kept if i == 2 else x, 1e-3), p, s, i, tokens[r])
            up = norm(kept if i == 2 else x, 1e-3) @ p[w + "mlp.up"].T
            x = x + up.clamp(min=0) ** 2 @ p[w + "mlp.down"]
            kept = x if i == 0 else kept
        close(out[r], x, 1e-13)


@case
def sources_of_a_lane_or_the_branch():
    """What only one lane gets; what passes the write coefficients."""
    s = read("tiny", "hc.lanes=2", "hc.sources.x={kind: x0, lane: 1, init: 0.5, learned: false}",
             "hc.post=0.0", "hc.output={lane: 0}")
    p, (tokens, _) = doubles(s), tokens_for(s)
    x0 = norm(p["embed"][tokens], 1e-3)
    close(Model(s).trunk(p, tokens), x0, 1e-14)                     # lane 0: nothing
    other = read("tiny", "hc.lanes=2", "hc.post=0.0", "hc.output={lane: 1}",
                 "hc.sources.x={kind: x0, lane: 1, init: 0.5, learned: false}")
    close(Model(other).trunk(p, tokens), x0 * (1 + 6 * 0.5), 1e-14)
    branch = read("tiny", "hc.lanes=2", "hc.post=[0.25, 3]", "hc.output={lane: 1}",
                  "hc.sources.x={kind: x0, site: on_branch, init: 0.5, learned: false}",
                  "hc.dead=[2, 3, 4, 5]")
    for i in (0, 1, 2):
        for name in ("attn.out", "mlp.down"):
            p[f"layers.{i}.{name}"] *= 0
    close(Model(branch).trunk(p, tokens), x0 * (1 + 2 * 3 * 0.5), 1e-14)
    assert branch.hc.sources.x.shape == (6, 1) and s.hc.sources.x.shape == (6, 1)
    gone = read("tiny", "hc.lanes=2", "hc.layers=none",
                "hc.sources.x={kind: x0, lane: 1, init: 0.5, first: both, learned: false}")
    close(Model(gone).trunk(p, tokens), x0, 1e-14)                  # one stream is lane 0


@case
def no_gradient_vanishes():
    for name in ("full", "parts", "paired", "sites"):
        grads = grads_of(read(name), doubles(read(name)))
        idle = [k for k, v in grads.items() if k.startswith("grad.") and not v.abs().max() > 0]
        assert idle == [], idle


@case
def weight_lambdas_belong_to_the_matrices():
    """The gradient of a lambda is <gradient of the effective matrix, matrix>."""
    s, plain = read("parts"), read("parts", "model.attention.sa_lambda=none")
    p = doubles(s)
    q = {k: v for k, v in p.items() if not k.endswith("sa_lambda")}
    names = [(f"layers.{i}.attn.{w}", f"layers.{i}.attn.sa_lambda", k)
             for i in (0, 3) for k, w in enumerate(("qkv", "out"))]
    assert set(p) - set(q) == {lam for _, lam, _ in names}
    for w, lam, k in names:
        q[w] = p[lam][k] * p[w]
    a, b = grads_of(s, p), grads_of(plain, q)
    close(a["loss"], b["loss"], 1e-14)
    for w, lam, k in names:
        close(a["grad." + lam][k], (b["grad." + w] * p[w]).sum(), 1e-13)
        close(a["grad." + w], p[lam][k] * b["grad." + w], 1e-13)


@case
def padded_rows_take_no_part():
    s = read("full")
    p, grads = doubles(s), grads_of(s, doubles(s))
    assert grads["grad.head"].shape == (24, 12) and grads["logits"].shape == (22, 23)
    assert grads["grad.head"][23].abs().max() == 0 and grads["grad.embed"][23].abs().max() == 0
    s = read("parts")
    for i in (0, 3):
        g = grads_of(s, doubles(s))[f"grad.layers.{i}.attn.value_embed"]
        assert g.shape == (24, 12) and g[23].abs().max() == 0 and g.abs().max() > 0
    s = read("full")
    tied = read("keep")
    assert grads_of(tied, doubles(tied))["grad.embed"][23].abs().max() == 0
    p["head"][23] += 100
    close(loss_of(s, p), grads["loss"], 0)


@case
def dead_sublayers_are_silent():
    s = read("full", "hc.dead=[4]")
    grads = grads_of(s, doubles(s))
    for name in ("layers.2.attn.qkv", "layers.2.attn.out", "layers.2.attn.norm", "hc.skips.b.gate"):
        assert grads["grad." + name].abs().max() == 0, name
    for name in ("hc.res", "hc.pre", "hc.post", "hc.resid_lambda", "hc.sources.x.coef"):
        g = grads["grad." + name]
        assert g[4].abs().max() == 0 and g[2].abs().max() == 0 and g[5].abs().max() > 0, name
    assert "grad.layers.1.attn.qkv" not in grads and "grad.layers.1.attn.norm" not in grads
    grads = {k: v for dead in (0, 4, 6) for s in [read("parts", f"hc.dead=[{dead}]")]
             for k, v in grads_of(s, doubles(s)).items()
             if k.startswith(f"grad.layers.{dead // 2}.attn")}
    assert len(grads) == 3 * 3 + 2 + 2 + 2 * 2
    assert all(g.abs().max() == 0 for g in grads.values())


@case
def detached_sources_get_nothing():
    full, cut = read("full"), read("full", "hc.sources.big.detach=true")
    a, b = grads_of(full, doubles(full)), grads_of(cut, doubles(cut))
    name = "grad.hc.sources.big."
    close(a["loss"], b["loss"], 0)
    assert b[name + "table"].abs().max() == 0 and a[name + "table"].abs().max() > 0
    close(a[name + "coef"], b[name + "coef"], 1e-14)
    cut = read("full", "hc.sources.x.detach=true")
    b = grads_of(cut, doubles(cut))
    close(a["grad.hc.sources.x.coef"], b["grad.hc.sources.x.coef"], 1e-14)
    assert (a["grad.embed"] - b["grad.embed"]).abs().max() > 1e-6


@case
def rounded_coefficients_pass_gradients():
    s, plain = read("full", "hc.coef_dtype=bf16"), read("full")
    p = doubles(s)
    q = {k: v.bfloat16().double() if k in ("hc.res", "hc.pre", "hc.post", "hc.resid_lambda")
         or k.endswith(".coef") else v for k, v in p.items()}
    a, b = grads_of(s, p), grads_of(plain, q)
    for name in a:
        close(a[name], b[name], 1e-13)


@case
def frozen_is_learned_left_alone():
    keys = ("res", "pre", "post", "resid_lambda", "sources.x", "sources.big", "skips.b.gate")
    frozen = read("full", *[f"hc.{k}.learned=false" for k in keys])
    s = read("full")
    p, start = doubles(s), init.initial(s)
    names = [f"hc.{k}" + (".coef" if "sources" in k else "") for k in keys]
    p.update({k: start[k].double() for k in names})
    q = {k: v for k, v in p.items() if k not in names}
    a, b = grads_of(s, p), grads_of(frozen, q)
    assert set(a) - set(b) == {"grad." + k for k in names}
    for name in b:
        close(b[name], a[name], 1e-13)


@case
def narrow_types_are_near():
    for name in ("full", "keep", "leave", "parts", "paired", "sites"):
        s = read(name)
        want = grads_of(s, doubles(s))
        for dtype, tol in ((torch.float32, 1e-3), (torch.bfloat16, 0.15)):
            got = grads_of(s, doubles(s), dtype)
            assert got["loss"].dtype == torch.float32
            for k in want:
                # in bfloat16 the sum behind a small table may cancel altogether
                if dtype == torch.float32 or want[k].numel() > 100:
                    scale = want[k].norm().item() or 1.0
                    error = (got[k].double() - want[k]).norm().item() / scale
                    assert error < tol, (name, dtype, k, error)


# ---- running --------------------------------------------------------------

def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)        # tensors this small only lose time to a second one
    write_specs()
    failed = 0
    for f in CASES:
        try:
            f()
            print("PASS", f.__name__)
        except Exception as e:
            failed += 1
            print("FAIL", f.__name__, type(e).__name__, e)
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
