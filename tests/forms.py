#!/usr/bin/python3
"""Growth of bf16 rounding over 22 sublayers, by the form in which lanes are kept.

Prints the table of docs/numerics.md: relative errors of gradients against the oracle in float64, of the oracle's
own model in eager bf16 and of the emitted kernels under several plans, on the same parameters and tokens."""
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/oracle"))
import init  # noqa: E402
import oracle  # noqa: E402
import safetensors  # noqa: E402
import spec as specs  # noqa: E402
import torch  # noqa: E402
from data import write_shard  # noqa: E402

SPEC = """name: forms
extends: two-lane.yaml
model: {width: 256, heads: 4, head_dim: 64, vocab: 512}
hc.sources.e.rows: 999
train: {seq_len: 128, tokens_per_step: 256, micro_batches: 1}
data: {bos: 7}
"""
PLANS = ["search=naive", "form=raw", "form=normed", "search=auto"]
GRADIENTS = ["embed", "layers.0.attn.qkv", "layers.5.mlp.up", "layers.10.mlp.up", "hc.post", "hc.resid_lambda",
             "hc.sources.x0.coef", "hc.sources.e.table"]


def kernels(folder, plan):
    subprocess.run([os.environ.get("HCGEN") or ROOT / "build/hcgen", "verify", folder / "forms.yaml", "--device", "cpu",
                    "--params", folder / "p.st", "--tokens", folder / "t.bin", "--dump", folder / "d.st",
                    "--set", "plan." + plan], check=True, stdout=subprocess.DEVNULL)
    return safetensors.load(str(folder / "d.st"))


def main():
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        for name in "single.yaml", "two-lane.yaml":
            (folder / name).write_text((ROOT / "specs" / name).read_text())
        (folder / "forms.yaml").write_text(SPEC)
        spec = specs.read(str(folder / "forms.yaml"))
        draw = torch.Generator().manual_seed(1)
        write_shard(str(folder / "t.bin"), torch.randint(spec.model.vocab, (257,), generator=draw).numpy())
        safetensors.save(str(folder / "p.st"), init.random(spec, 1))
        values = oracle.load_params(spec, str(folder / "p.st"))
        batch = oracle.micro_batch(spec, stages.named(spec), str(folder / "t.bin"))
        want, eager = (oracle.gradients(spec, {k: v.clone() for k, v in values.items()}, *batch, t)
                       for t in (torch.float64, torch.bfloat16))
        columns = [eager] + [kernels(folder, plan) for plan in PLANS]
    print("| gradient of | eager bf16 PyTorch |", " | ".join(f"`{p.replace('=', ': ')}`" for p in PLANS), "|")
    print("|---|" + "---|" * len(columns))
    for name in GRADIENTS:
        w = want["grad." + name].double()
        errors = [(c["grad." + name].double().reshape(w.shape) - w).norm() / w.norm() for c in columns]
        print(f"| {name} |", " | ".join(f"{e:.1e}" for e in errors), "|")


main()
