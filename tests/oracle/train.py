"""Train a spec: its stages, optimizers and schedules, over shards in order.

    train.py SPEC [--steps N] [--params IN.safetensors] [--save OUT.safetensors]
                  [--set a.b=v ...] [--dtype float64|float32|bfloat16] [--threads N]

One JSON line per step with its loss (before the update) and learning rate;
with validation data also val_loss lines, the last after the last step.
--steps stops early and leaves the schedules as the spec has them.
"""
import argparse
import ctypes
import json
import sys

import torch

import data
import init
import optim
import safetensors
import spec as specs
import stages
from model import Model
from parameters import parameters

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def keep_heap():
    """Never give memory back to the system: without this glibc maps every large
    activation afresh and an eager step spends half its time in page faults."""
    libc = ctypes.CDLL(None)
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)


def master(dtype):
    """The type in which parameters and their gradients are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def leaves(values, dtype):
    """Parameters to differentiate by, from any tensors of the same names."""
    return {k: v.to(master(dtype)).requires_grad_() for k, v in values.items()}


def load_params(spec, path):
    """The parameters of a file, which must be exactly those of the spec."""
    values = safetensors.load(path)
    want = {p.name: p.shape for p in parameters(spec)}
    have = {k: tuple(v.shape) for k, v in values.items()}
    for name in sorted(set(want) | set(have)):
        if want.get(name) != have.get(name):
            raise specs.SpecError(f"{path}: {name}: spec has shape {want.get(name)}, "
                                  f"file {have.get(name)}")
    return {name: values[name] for name in want}


class Trainer:
    """A run of a spec from step 0, given the batches."""

    def __init__(self, spec, params, dtype):
        self.spec = spec
        self.stages = stages.stages(spec)
        self.model = Model(spec, dtype)
        self.params = params
        self.optim = optim.Optimizer(spec, params)
        self.norm = None

    @property
    def stage(self):
        """That of the next step."""
        return stages.at(self.stages, self.optim.t)

    @property
    def rows(self):
        """Sequences of a micro-batch of the next step."""
        return self.stage.tokens // self.stage.seq_len

    def step(self, batches):
        """One update from micro-batches (tokens, targets); the mean loss before it."""
        stage, total = self.stage, 0.0
        self.model.enter(stage)
        self.optim.clear()
        # the factor on the mean, where the spec has one on the sum
        scale = self.spec.train.loss_scale
        scale = 1.0 if scale == "mean" else scale * stage.tokens_per_step
        for tokens, targets in batches:
            loss = self.model.loss(self.params, tokens, targets, stage.weights(self.optim.t))
            loss = loss / len(batches)
            (loss * scale).backward()
            total += loss.item()
        self.norm = self.optim.step()
        return total

    @torch.no_grad()
    def validate(self, rows):
        """Mean loss over sequences [n, val_seq_len + 1], with the windows of the last step made,
        or after the whole run with those of train.final."""
        t, total = self.optim.t, 0.0
        over = t == self.stages[-1].end
        self.model.enter(stages.final(self.spec) if over else stages.at(self.stages, max(t - 1, 0)))
        count = self.spec.train.val_batch // self.spec.train.val_seq_len
        for first in range(0, len(rows), count):
            part = rows[first:first + count]
            loss = self.model.validation_loss(self.params, part[:, :-1], part[:, 1:])
            total += len(part) * loss.item()
        return total / len(rows)


def say(**fields):
    print(json.dumps(fields), flush=True)


def validation_rows(spec):
    return data.validation(spec) if spec.data.val else None


def run(spec, params, dtype, steps):
    """Train, printing as it goes; the parameters with all their bits."""
    t, trainer = spec.train, Trainer(spec, params, dtype)
    reader, val = data.Reader(spec), validation_rows(spec)
    for step in range(steps):
        stage = trainer.stage
        batches = [reader.take(trainer.rows, stage.seq_len, stage.max_doc)
                   for _ in range(stage.micro_batches)]
        loss = trainer.step(batches)
        line = {"step": step, "loss": loss, "lr": t.lr * optim.schedule(t, step, stage.lr_mul)}
        say(**line, **({} if trainer.norm is None else {"norm": trainer.norm}))
        last = step == steps - 1
        if val is not None and (last or t.val_every and (step + 1) % t.val_every == 0):
            say(step=step + 1, val_loss=trainer.validate(val))
    return trainer.optim.params


def arguments():
    parser = argparse.ArgumentParser(description="Train a spec in PyTorch.")
    parser.add_argument("spec")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--params")
    parser.add_argument("--save")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main():
    args = arguments()
    keep_heap()
    if args.threads:
        torch.set_num_threads(args.threads)
    spec = specs.read(args.spec, args.set)
    if spec.data.shuffle:
        raise specs.SpecError("data.shuffle: the oracle reads in order; --set data.shuffle=false")
    dtype = DTYPES[args.dtype]
    values = load_params(spec, args.params) if args.params else init.initial(spec)
    params = leaves(values, dtype)
    steps = stages.stages(spec)[-1].end if args.steps is None else args.steps
    params = run(spec, params, dtype, steps)
    if args.save:
        safetensors.save(args.save, params)


if __name__ == "__main__":
    try:
        main()
    except specs.SpecError as e:
        sys.exit(f"train.py: {e}")
