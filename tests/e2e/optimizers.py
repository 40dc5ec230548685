#!/usr/bin/python3
"""The update program beside the oracle's optimizers, on the same gradients and state: `hcgen verify --update`.

The spec is small.yaml with the optimizers of modded-nanogpt (MODDED of lib.py): NorMuon with its momentum's schedule beside
cautious Adam on sums of two steps, embed and head that part, stages and an extension."""
import struct

import numpy as np

from lib import *

STEPS = (0, 1, 11, 12, 13, 25, 35, 36, 38)      # odd and even, both ends of stages, untying, extension, the last


def state(path, params, draw):
    """Everything that an update reads: parameters that bf16 holds, gradients and moments of any size."""
    out = {}
    for name, x in params.items():
        normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
        out["param." + name] = as_bf16(normal(*x.shape) * np.float32(0.1))
        out["grad." + name] = normal(*x.shape) * np.float32(10.0 ** draw.integers(-6, 1))
        out["moment1." + name] = normal(*x.shape) * np.float32(0.01)
        rows = name.startswith("layers.") and name.split(".")[-1] in MATRICES
        out["moment2." + name] = np.square(normal(*x.shape[:1] if rows else x.shape)) * np.float32(1e-4)
    for kind in ("param", "moment1", "moment2"):            # embed and head are one until they part
        out[f"{kind}.embed"] = out[f"{kind}.head"]
    write_floats(path, out)
    return out


MATRICES = ("qkv", "out", "up", "down")


def as_bf16(x):
    return ((x.view(np.uint32) >> 16) << 16).view(np.float32)


def write_floats(path, tensors):
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            f.write(x.tobytes())


def oracle_step(tmp, step, *words):
    r = run("/usr/bin/python3", ROOT / "tests/oracle/optim.py", "step", SMALL, *words, "--step", step, "--state",
            tmp / "in", "--out", tmp / "want")
    expect(r.rc == 0, r)
    return read_params(tmp / "want")


def updates_as_the_oracle(tmp, device, *words):
    """Every step of STEPS from a random state.  The oracle is float64; fp32 costs 1e-7 of a number that is written and
    1e-6 of a sum, and Polar Express, whose factors for small singular values multiply to 8.2*4*3.9*3.3*2.3 = 1000, ten times
    that where a matrix is far from singular: 1e-5 of a NorMuon update (2e-6 seen).  Cautious decay acts by a sign: an
    entry of the update that is nearly 0 may be on the other side of it, so that two entries of a tensor are let off."""
    words = [*MODDED, *words]
    initial(tmp / "p", *words)
    params, draw, worst = read_params(tmp / "p"), np.random.default_rng(5), {}
    for step in STEPS:
        was = state(tmp / "in", params, draw)
        hcgen("verify", SMALL, *words, "--device", device, "--update", tmp / "in", "--step", step, "--dump", tmp / "out")
        got, want = read_params(tmp / "out"), oracle_step(tmp, step, *words)
        for name, w in want.items():
            g, w = got[name].ravel().astype(np.float64), w.ravel().astype(np.float64)
            before = was[name].ravel().astype(np.float64)
            muon = name.startswith("param.layers") and name.split(".")[-1] in MATRICES
            off = np.sort(np.abs(g - w))[:-2] if name.startswith("param.") else g - w
            change = (1e-5 if muon else 1e-6) * np.linalg.norm(w - before)
            bound = change + 1.5e-7 * np.linalg.norm(w) if name.startswith("param.") else 1e-6 * np.linalg.norm(w)
            error = np.linalg.norm(off)
            kind = "normuon" if muon else name.split(".")[0]
            worst[kind] = max(worst.get(kind, 0), error / bound if bound else float(error > 0))
            expect(error <= bound, f"step {step}: {name} is {error:.3g} from the oracle's, {bound:.3g} allowed")
    if os.environ.get("SHOW"):
        print("#", device, {k: f"{v:.2g}" for k, v in worst.items()}, "of what is allowed")
    return got


@case
def updates_as_the_oracle_in_f32(tmp):
    updates_as_the_oracle(tmp, "cpu")


@case
def updates_as_the_oracle_as_cuda_text(tmp):
    updates_as_the_oracle(tmp, "simt")


@case
def rounds_as_stated_in_bf16(tmp):
    """Parameters of Adam are the oracle's bf16 numbers: one in a thousand is the neighbour where fp32 and float64 fall on two
    sides of a tie.  NorMuon keeps 32 bits, of which products read the upper 16, bit for bit.  Its products round to bf16 in
    both, and small singular values magnify each rounding that falls on the other side: so an update is held against the
    one without rounding.  It is as far from it as the oracle's is, and nearer to the oracle's than that; if the two
    rounded at other places it would be 1.4 times as far."""
    words = [*MODDED, *sets(numerics__storage="bf16", numerics__gemm="bf16", numerics__params="bf16")]
    initial(tmp / "p", *words)
    params, draw = read_params(tmp / "p"), np.random.default_rng(6)
    for step in (1, 12, 37):
        was = state(tmp / "in", params, draw)
        hcgen("verify", SMALL, *words, "--device", "cpu", "--update", tmp / "in", "--step", step, "--dump", tmp / "out")
        got, want = read_params(tmp / "out"), oracle_step(tmp, step, *words)
        exact = oracle_step(tmp, step, *words, *sets(numerics__gemm="f32"))
        for name in params:
            g, w, x = (t["param." + name].ravel().astype(np.float32) for t in (got, want, exact))
            if name.startswith("layers.") and name.split(".")[-1] in MATRICES:
                expect((got["weights." + name].ravel() == as_bf16(g)).all(), f"step {step}: {name}: products read other bits")
                ours, theirs, apart = np.linalg.norm(g - x), np.linalg.norm(w - x), np.linalg.norm(g - w)
                expect(ours < 1.1 * theirs and apart < theirs, f"step {step}: {name}: {ours:.3g} from the exact update, "
                       f"the oracle {theirs:.3g}, apart {apart:.3g}")
            elif name in ("embed", "head"):
                expect((g == as_bf16(g)).all() and (g != w).mean() < 1e-3, f"step {step}: {name}", (g != w).mean())
                expect(step % 2 or (g == was["param." + name].ravel()).all(), f"step {step}: {name} is not due")


if __name__ == "__main__":
    main()
