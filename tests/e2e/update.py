#!/usr/bin/python3
"""Training with every optimizer of docs/spec.md at once: the same curve on cpu, simt and the device cuda on the stand-ins,
the same bits for any number of threads, and what `every`, `untie` and numerics.params say of the parameters."""
import numpy as np

from lib import *

UPDATE = ROOT / "tests/e2e/update.yaml"
STANDIN = {"HCGEN_CUDA_PATH": str(ROOT / "build/standin")}
BF16 = sets(numerics__storage="bf16", numerics__gemm="bf16", numerics__params="bf16")


def data(tmp):
    return data_at(tmp / "data") if (tmp / "data").exists() else make_data(tmp)


def trained(tmp, name, *words, steps=20, **options):
    """Losses, and parameters after the last step."""
    train(tmp / name, *data(tmp), *sets(train__steps=steps), *words, spec=UPDATE, **options)
    return losses(tmp / name), read_params(tmp / name / "run/final.safetensors")


def begun(tmp, *words):
    return read_params(initial(tmp / "p", *data(tmp), *words, spec=UPDATE))


def standin():
    run("sh", "tests/standin/build.sh", cwd=ROOT)


def curve_on(tmp, device, words, tolerance, env={}):
    a, p = trained(tmp, "cpu", *words, "--device", "cpu")
    b, q = trained(tmp, device, *words, "--device", device, env=env)
    expect(len(a) == len(b) == 20 and a[-1] < a[0] - 0.5, a)
    for i, (x, y) in enumerate(zip(a, b)):
        expect(abs(x - y) <= tolerance * x, f"step {i + 1}: {x} on cpu, {y} on {device}")


@case
def simt_trains_as_cpu_in_f32(tmp):
    """Sums in another order: 1e-7 of an element of X.  The iteration multiplies what is small in X by up to 8 each time
    (docs/numerics.md), and a decay is taken or left by a sign; 1e-3 of a loss covers what was seen, 1e-5, with room."""
    curve_on(tmp, "simt", [], 1e-3)


@case
def simt_trains_as_cpu_in_bf16(tmp):
    """2^-9 in every activation and in X: noise of a hundredth of a loss, as in simt.py, and twice that for X."""
    curve_on(tmp, "simt", BF16, 2e-2)


@case
def cuda_trains_as_cpu(tmp):
    """Batched products of cuBLASLt's stand-in, which picks algorithms with other orders of sums."""
    standin()
    curve_on(tmp, "cuda", [], 1e-3, STANDIN)


@case
def threads_do_not_matter(tmp):
    for device in "cpu", "simt":
        for words in [], BF16:
            runs = [trained(tmp, f"{device}{n}", *words, "--device", device, "--threads", n, steps=6) for n in (1, 2, 3)]
            for a, p in runs[1:]:
                expect(a == runs[0][0], device, "losses depend on the number of threads")
                expect(all((p[k] == runs[0][1][k]).all() for k in p), device, "parameters do")


@case
def updates_are_made_when_they_are_due(tmp):
    """After one step only the matrices of NorMuon have moved; embed is head until the update of step 11 (from 0)."""
    was = begun(tmp)
    expect((was["embed"] == was["head"]).all(), "they do not begin equal")
    _, one = trained(tmp, "one", *sets(train__stages__apart="none", train__untie="tied"), steps=1)
    for k in was:
        moved = (was[k] != one[k]).any()
        expect(moved == (".attn." in k or ".mlp." in k), k, "moved" if moved else "did not move")
    for steps, same in (12, True), (13, True), (14, False):
        words = sets(train__stages__tied__share=11, train__stages__apart__share=steps - 11)
        _, p = trained(tmp, f"s{steps}", *words, steps=steps)
        expect((p["embed"] == p["head"]).all() == same, steps, "steps: embed is", "head" if not same else "not head")


@case
def parameters_hold_bf16(tmp):
    """Those of the Adams are bf16 numbers; NorMuon keeps 32 bits, and products read the upper 16."""
    was = begun(tmp, *BF16)
    _, p = trained(tmp, "a", *BF16, steps=6)
    low = {k: (v.view("<u4") & 0xffff).any() for k, v in p.items()}
    for k in p:
        matrix = ".attn." in k or ".mlp." in k
        held = matrix or k in ("embed", "head")
        expect(not held or not (was[k].view("<u4") & 0xffff).any(), k, "does not begin with bf16 numbers")
        expect(low[k] == (not held or matrix), k, "has" if low[k] else "has no", "further bits")


@case
def uniform_initial_values(tmp):
    """Bounds, mean and deviation of std*sqrt(3)*(2u - 1); and other numbers than normal's."""
    x = begun(tmp)["layers.0.mlp.up"].astype(np.float64)
    std = 0.5 / 64 ** 0.5
    expect(abs(x).max() <= std * 3 ** 0.5 and abs(x).max() > 0.999 * std * 3 ** 0.5, abs(x).max())
    # 32768 numbers: the deviation of their deviation is 0.0025 of it
    expect(abs(x.std() / std - 1) < 0.01 and abs(x.mean()) < 5 * std / x.size ** 0.5, x.std(), x.mean())


if __name__ == "__main__":
    main()
