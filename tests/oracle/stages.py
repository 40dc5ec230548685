"""The stages of a run, resolved: what holds in each of them.

    stages(spec) -> [Stage, ...]     in order, at least one
    at(list, t) -> Stage             the stage of step t (the last one beyond the end)
    named(spec, name) -> Stage       name None: the first of those with the most tokens
    final(spec) -> Stage             the last, with the windows of train.final
    only(spec, stage) -> spec        a run of nothing but this stage, for timing it

A Stage has
    name             as in train.stages; "train" where there are none
    first, end       it holds in the steps first <= t < end
    tokens_per_step, micro_batches, seq_len, max_doc
    tokens           of a micro-batch, tokens_per_step / micro_batches
    window           what a layer outside of long_layers may have: a list, repeated
    long_window      tokens or "full"
    windows          of each layer, tokens or "full"
    lr_mul           factor of the learning rate before the cooldown
    targets, targets_end    lists of as many floats
    weights(t)       the target weights in step t, a list of floats
    frequencies      float32 array [R/2], after the changes of YaRN up to here
    scale            of q . k, a float, likewise

The model runs a stage by `model.enter(stage)`, a Model being in the first one
at first; `model.loss(params, tokens, targets, weights)` is then the mean of the
row losses as training has them (FP8 head and all; weights [1] if not given) and
`model.validation_loss(params, tokens, targets)` that of a validation.
"""
import copy
import math
from typing import NamedTuple

import numpy as np

from spec import SpecError

SIZES = "tokens_per_step", "micro_batches", "seq_len"


class Stage(NamedTuple):
    name: str
    first: int
    end: int
    tokens_per_step: int
    micro_batches: int
    seq_len: int
    max_doc: int
    window: list
    long_window: object
    windows: list
    lr_mul: float
    targets: list
    targets_end: list
    frequencies: np.ndarray
    scale: float

    @property
    def tokens(self):
        return self.tokens_per_step // self.micro_batches

    def weights(self, t):
        part = (t - self.first) / max(self.end - self.first, 1)
        return [a + (b - a) * part for a, b in zip(self.targets, self.targets_end)]


# ---- steps ----------------------------------------------------------------

def _ends(spec):
    """Where each stage ends: those of a share first, then those of steps of their own."""
    N, chosen = spec.train.steps, spec.train.stages
    if not chosen:
        return [N]
    shares = [s.share for s in chosen.values() if "steps" not in s]
    if any("steps" in s for s in list(chosen.values())[:len(shares)]):
        raise SpecError("train.stages: a share behind steps")
    if N and not shares:
        raise SpecError("train.stages: train.steps are of none")
    total = sum(shares)
    ends = [math.floor(N * sum(shares[:k + 1]) / total + 0.5) for k in range(len(shares))]
    for s in list(chosen.values())[len(shares):]:
        ends.append((ends[-1] if ends else 0) + s.steps)
    for name, a, b in zip(chosen, [0] + ends, ends):
        if a == b:
            raise SpecError(f"train.stages.{name}: no steps")
    return ends


def _targets(name, s):
    weights = s.get("targets", [1.0])
    end = s.get("targets_end", weights)
    if not weights or len(end) != len(weights):
        raise SpecError(f"train.stages.{name}.targets_end: as many as targets")
    return weights, end


# ---- attention ------------------------------------------------------------

def windows(spec, window, long_window):
    """Of every layer."""
    m = spec.model
    return [long_window if i in m.attention.long_layers else window[i % len(window)]
            for i in range(m.layers)]


def frequencies(rotary):
    """float32 [R/2] by way of float64: down to just above 1/base (power), or to it (endpoint)."""
    half = rotary.dims // 2
    j = np.arange(half, dtype=np.float64)
    # where there is one frequency it is base^0, whatever the divisor
    last = half if rotary.frequencies == "power" else max(half - 1, 1)
    return (rotary.base ** (-j / last)).astype(np.float32)


def _stretch(f, scale, old, new, yarn):
    """Frequencies and scale after a change of the long window from old to new tokens."""
    if "full" in (old, new):
        raise SpecError("model.rotary.yarn: a long window that changes has to be a number")
    f = f.astype(np.float64)
    turns = old * f / (2 * math.pi)
    kept = np.clip((turns - yarn.alpha) / (yarn.beta - yarn.alpha), 0, 1)
    f = f * (old / new + kept * (1 - old / new))
    return f.astype(np.float32), scale * (1 + yarn.growth * math.log(new / old))


# ---- the list -------------------------------------------------------------

def stages(spec):
    m, t = spec.model, spec.train
    f, old = frequencies(m.rotary), None
    scale = m.head_dim ** -0.5 if m.attention.scale == "auto" else m.attention.scale
    out, first = [], 0
    for (name, s), end in zip((t.stages or {"train": {}}).items(), _ends(spec)):
        window = s.get("window", m.attention.window)
        long_window = s.get("long_window", m.attention.long_window)
        if m.rotary.yarn.on and old not in (None, long_window):
            f, scale = _stretch(f, scale, old, long_window, m.rotary.yarn)
        old = long_window
        sizes = [s.get(k, t[k]) for k in SIZES]
        if sizes[0] % (sizes[1] * sizes[2]):
            raise SpecError(f"train.stages.{name}.tokens_per_step: "
                            "not micro_batches whole batches of seq_len")
        out.append(Stage(name, first, end, *sizes, s.get("max_doc", spec.data.max_doc),
                         window, long_window, windows(spec, window, long_window),
                         s.get("lr_mul", 1.0), *_targets(name, s), f, scale))
        first = end
    return out


def at(list_, t):
    for stage in list_:
        if t < stage.end:
            return stage
    return list_[-1]


def named(spec, name=None):
    all_ = stages(spec)
    if name is None:
        return max(all_, key=lambda stage: stage.tokens)        # the first of equals
    for stage in all_:
        if stage.name == name:
            return stage
    raise SpecError(f"train.stages: no {name}")


def final(spec):
    last, given = stages(spec)[-1], spec.train.final
    window = given.get("window", last.window)
    long_window = given.get("long_window", last.long_window)
    return last._replace(window=window, long_window=long_window,
                         windows=windows(spec, window, long_window))


def only(spec, stage):
    """Frequencies and scale are those of a first stage: they cost the same."""
    spec = copy.deepcopy(spec)
    spec.train.update({k: getattr(stage, k) for k in SIZES})
    spec.model.attention.update(window=stage.window, long_window=stage.long_window)
    spec.data["max_doc"] = stage.max_doc
    spec.train["steps"] = max(spec.train.steps, 1)
    spec.train["stages"] = type(spec)(train=type(spec)(
        targets=stage.targets, targets_end=stage.targets_end, share=1.0, lr_mul=stage.lr_mul))
    spec.train.pop("untie", None)
    return spec
