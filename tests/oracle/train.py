"""Train a spec: AdamW, schedule, clipping, shards in order.

    train.py SPEC [--steps N] [--params IN.safetensors] [--save OUT.safetensors]
                  [--set a.b=v ...] [--dtype float64|float32|bfloat16] [--threads N]

One JSON line per step with its loss (before the update) and learning rate;
with validation data also val_loss lines, the last after the last step.
--steps stops early and leaves the schedule as the spec has it.
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
    def __init__(self, spec, params, dtype):
        self.spec = spec
        self.model = Model(spec, dtype)
        self.params = params
        self.optim = optim.AdamW(spec, self.model.params, params)
        t = spec.train
        self.rows = t.tokens_per_step // t.seq_len // t.micro_batches

    def step(self, batches):
        """One update from micro-batches (tokens, targets); the mean loss before it."""
        for p in self.params.values():
            p.grad = None
        total = 0.0
        for tokens, targets in batches:
            loss = self.model.loss(self.params, tokens, targets) / len(batches)
            loss.backward()
            total += loss.item()
        self.norm = self.optim.step()
        return total

    @torch.no_grad()
    def validate(self, rows):
        """Mean loss over sequences [n, seq_len + 1]."""
        total = 0.0
        for first in range(0, len(rows), self.rows):
            part = rows[first:first + self.rows]
            total += len(part) * self.model.loss(self.params, part[:, :-1], part[:, 1:]).item()
        return total / len(rows)


def say(**fields):
    print(json.dumps(fields), flush=True)


def validation_rows(spec):
    t = spec.train
    if not spec.data.val or t.val_tokens < t.seq_len:
        return None
    return data.sequences(spec, spec.data.val)[:t.val_tokens // t.seq_len]


def run(spec, params, dtype, steps):
    """Train, printing as it goes."""
    t, trainer = spec.train, Trainer(spec, params, dtype)
    rows, val = data.sequences(spec, spec.data.train), validation_rows(spec)
    for step in range(steps):
        first = step * t.micro_batches
        batches = [data.batch(rows, (first + m) * trainer.rows, trainer.rows)
                   for m in range(t.micro_batches)]
        loss = trainer.step(batches)
        line = {"step": step, "loss": loss, "lr": t.lr * optim.schedule(t, step)}
        say(**line, **({} if trainer.norm is None else {"norm": trainer.norm}))
        last = step == steps - 1
        if val is not None and (last or t.val_every and (step + 1) % t.val_every == 0):
            say(step=step + 1, val_loss=trainer.validate(val))


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
    run(spec, params, dtype, args.steps or spec.train.steps)
    if args.save:
        safetensors.save(args.save, params)


if __name__ == "__main__":
    try:
        main()
    except specs.SpecError as e:
        sys.exit(f"train.py: {e}")
