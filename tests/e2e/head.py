#!/usr/bin/python3
"""The head: several targets and FP8, from the spec to a run on every device."""
import math
import re

from lib import *

FP8 = sets(numerics__head="fp8", numerics__storage="bf16", numerics__gemm="bf16")
TARGETS = sets(train__stages="{one: {targets: [1.0, 0.5, 0.25], targets_end: [1.0, 0.5, 0.0]}}")
STANDIN = {"HCGEN_CUDA_PATH": str(pathlib.Path(os.environ.get("STANDIN_BUILD") or ROOT / "build") / "standin")}
DATA = []                               # --set words, made once
HOME = tempfile.TemporaryDirectory(prefix="hcgen-e2e-head-")


def data():
    if not DATA:
        DATA.extend(make_data(pathlib.Path(HOME.name)))
    return DATA


def stand_in():
    r = run("sh", ROOT / "tests/standin/build.sh", *([os.environ["STANDIN_BUILD"]] if "STANDIN_BUILD" in os.environ else []),
            cwd=ROOT, timeout=300)
    expect(r.rc == 0, r)
    return STANDIN


def trained(tmp, device, *words, **how):
    train(tmp / device, *data(), *words, "--device", device, timeout=500, **how)
    return losses(tmp / device)


@case
def fp8_and_three_targets_train(tmp):
    """The loss falls as it does with bf16 products, and simt and cuda follow cpu: bf16 and FP8 roundings of sums in
    another order, and what becomes of them in 40 steps, move a loss by less than 1e-2 of itself."""
    words = [*TARGETS, *sets(train__steps=40)]
    cpu = trained(tmp, "cpu", *FP8, *words)
    expect(cpu[0] > 9 and cpu[-1] < .55 * cpu[0] and sum(cpu[-4:]) < .9 * sum(cpu[16:20]), cpu)
    simt = trained(tmp, "simt", *FP8, *words)
    (tmp / "cpu").rename(tmp / "fp8")
    bf16 = trained(tmp, "cpu", *words, *FP8, *sets(numerics__head="auto"))
    for other, bound in (simt, 1e-2), (bf16, 2e-2):
        expect(all(abs(a - b) < bound * a for a, b in zip(cpu, other)), cpu, other)
    expect(cpu != bf16, "an FP8 head rounds nothing")


@case
def the_same_on_cuda(tmp):
    words = [*FP8, *TARGETS, *sets(train__steps=3, train__val_tokens=64)]
    cpu = trained(tmp, "cpu", *words)
    cuda = trained(tmp, "cuda", *words, env=stand_in())
    expect(all(abs(a - b) < 1e-3 * a for a, b in zip(cpu, cuda)), cpu, cuda)


@case
def threads_change_nothing(tmp):
    words = [*FP8, *TARGETS, *sets(train__steps=4, train__val_tokens=64)]
    one = trained(tmp, "cpu", *words, "--threads", 1)
    (tmp / "cpu").rename(tmp / "one")
    expect(one == trained(tmp, "cpu", *words, "--threads", 3), one)
    a, b = (tmp / d / "run/final.safetensors" for d in ("one", "cpu"))
    expect(a.read_bytes() == b.read_bytes())


@case
def weights_are_those_of_the_step(tmp):
    """Two stages; in the first the second target counts, at the end no more.  The first losses of a model that knows
    nothing are the sum of the weights times ln V; a target beyond the end of its sequence of 8 tokens adds nothing."""
    r = trained(tmp, "cpu", *sets(train__steps=8, train__lr=0, train__seq_len=8, train__val_tokens=64, train__stages=
                "{a: {targets: [1, 0.5], targets_end: [1, 0]}, b: {}}", model__init__head_std=0))
    for t, loss in enumerate(r):
        w = .5 * (1 - t / 4) if t < 4 else 0
        expect(abs(loss - math.log(257) * (1 + w * 7 / 8)) < 1e-5, t, loss)


def verifies(tmp, device, *words, **how):
    r = hcgen("verify", SMALL, "--device", device, *words, timeout=500, **how)
    expect("FAIL" not in r.out and r.out.rstrip().endswith(": verified"), r)
    return r


@case
def every_step_is_what_it_says(tmp):
    """Also where storage is f32, the head is tied, chunks are small, logits are bounded, rows are few."""
    for words in ([*FP8, *TARGETS], [*sets(numerics__head="fp8", plan__head_chunk=40, model__tied="true")],
                  [*TARGETS, *sets(model__vocab=300, model__softcap="{kind: sigmoid, cap: 23}", plan__head_chunk=33)],
                  [*FP8, *sets(model__vocab=511, model__vocab_multiple=16, train__seq_len=16)]):
        for device in "cpu", "simt":
            verifies(tmp, device, *words)
        verifies(tmp, "cuda", *words, env=stand_in())


@case
def without_bf16_products(tmp):
    verifies(tmp, "cpu", *FP8, env={"HCGEN_NO_BF16": "1"})


@case
def a_wrong_product_is_seen(tmp):
    r = run(HCGEN, "verify", SMALL, *FP8, "--device", "cuda", env={**stand_in(), "HCGEN_STANDIN": "wrong_gemm"})
    expect(r.rc == 4 and re.search(r"FAIL step \d+ head dx", r.out), r)


@case
def bytes_are_those_stated(tmp):
    """Of the FP8 kernels and the loss: what simt counts is what the plan states, but for loss, targets and weights, and
    for the columns beyond the vocabulary, of which logits are not read."""
    words = [*FP8, *TARGETS, *sets(plan__head_chunk=112)]
    r = verifies(tmp, "simt", *words, "--bytes", "--rows", 112, "--seq", 56)
    tokens, V, VP, C = 112, 257, 320, 64
    counts = {l.split()[0]: list(map(int, l.split()[1:])) for l in r.out.split("bytes of one launch")[1].splitlines()[1:]
              if len(l.split()) == 5}
    find = lambda name: next(v for k, v in counts.items() if k.startswith(name))
    for name, load, store in (("quantise__C64_bf16_y", 2 * tokens * C, 2 * tokens * C), ("transpose8", tokens * VP, tokens * VP),
                              ("quantise__C64_f32_head", 4 * VP * C, 2 * VP * C)):
        loaded, issued, stored, store_issued = find(name)
        expect(loaded == issued == load and stored == store_issued == store, name, find(name))
    loaded, _, stored, store_issued = find("ce_targets")
    read = (V + 7) // 8 * 8
    expect(stored == store_issued == tokens * (VP + 4) and 0 <= loaded - 2 * tokens * read <= 4 * tokens + 16, find("ce_targets"))
    # the plan's figures, of as many tokens
    hcgen("emit", SMALL, *words, *sets(train__tokens_per_step=112, train__seq_len=56), "--device", "simt", "-o", tmp / "out")
    text = (tmp / "out/manifest").read_text().split("program train")[1]
    for name, want in (("quantise__C64_bf16_y", 4 * tokens * C), ("transpose8", 2 * tokens * VP),
                       ("quantise__C64_f32_head", 6 * VP * C), ("ce_targets", 3 * tokens * VP)):
        expect(re.search(rf"^launch {name}\S* \d+ bytes {want} ", text, re.M), name, want)


@case
def kernels_do_not_spill(tmp):
    for arch in "sm_80", "sm_90a", "sm_100":
        for words in ([*FP8, *TARGETS], TARGETS, [*FP8, *sets(train__stages="{one: {targets: [1, 1, 1, 1]}}")]):
            r = run(HCGEN, "compile", SMALL, *words, *sets(model__vocab=50257, model__vocab_multiple=128, model__width=768,
                    model__softcap="{kind: sigmoid, cap: 23, shift: 5, temperature: 7.5}", numerics__storage="bf16",
                    numerics__gemm="bf16"), "--arch", arch, "-o", tmp / "out", "--json", timeout=500)
            if r.rc == 2 and "libnvrtc" in r.err:
                raise Skip("no NVRTC here: " + r.err.strip())
            kernels = [json.loads(line) for line in r.out.splitlines()]
            head = [k for k in kernels if re.match("ce|quantise|transpose8", k["kernel"])]
            expect(len(head) >= (2 if words is TARGETS else 5), kernels)
            for k in head:
                expect(k["spills"] == 0 and k["stack"] == 0 and k["registers"] * k["threads"] <= 65536, k)


@case
def one_target_is_the_text_of_one(tmp):
    """A weight of 1 for the next token in every stage needs no other kernel."""
    for words in [], sets(train__stages="{a: {targets: [1]}, b: {targets_end: [1], targets: [1.0]}}"):
        hcgen("emit", SMALL, *words, "-o", tmp / "out", "--device", "cpu")
        expect(not list((tmp / "out/kernels").glob("ce_targets*")), words)
    hcgen("emit", SMALL, *sets(train__stages="{a: {targets: [1]}, b: {targets: [0.5]}}"), "-o", tmp / "out", "--device", "cpu")
    expect(list((tmp / "out/kernels").glob("ce_targets*")))


@case
def the_plan_says_what_fp8_saves(tmp):
    def plan(*words):
        r = hcgen("plan", ROOT / "specs/baseline.yaml", *words)
        return float(re.search(r"head ([\d.]+)", r.out)[1]), r.out
    bf16, _ = plan(*sets(numerics__head="auto"))
    fp8, text = plan(*sets(numerics__head="fp8"))
    expect(fp8 < .65 * bf16, bf16, fp8)
    for name in "quantise__C768_bf16_y", "quantise__C768_f32_head", "transpose8__C50304", "bf16_f8e5m2_sigmoid":
        expect(name in text, name)


@case
def specs_that_fp8_cannot_have(tmp):
    for words, said in [
        (sets(model__width=72, model__heads=1, model__rotary__dims=8), "an fp8 head needs a width that is a multiple of 16: 72 is not"),
        (sets(model__vocab_multiple=1), "an fp8 head needs a padded vocabulary that is a multiple of 16: 257 is not (vocab_multiple)"),
        (sets(train__tokens_per_step=72, train__seq_len=8),
         "an fp8 head needs a micro-batch of a multiple of 16 tokens: 72 is not"),
        (sets(train__stages="{one: {}, two: {tokens_per_step: 72, seq_len: 8}}"),
         "stage two: an fp8 head needs a micro-batch of a multiple of 16 tokens: 72 is not"),
    ]:
        r = hcgen("check", SMALL, *sets(numerics__head="fp8"), *words, want=1)
        expect(f"error: {said}\n" in r.err and "hcgen: 1 error" in r.err, said, r)


@case
def gpus_without_fp8(tmp):
    env = {**stand_in(), "HCGEN_STANDIN": "cc=8.0"}
    r = run(HCGEN, "train", SMALL, *data(), *FP8, "-o", tmp / "out", "--quiet", "--device", "cuda", env=env)
    expect(r.rc == 2 and "FP8 products need compute capability 8.9" in r.err and "8.0" in r.err, r)
    r = run(HCGEN, "doctor", env=env)
    expect("8.0 (no FP8)" in r.out, r)


if __name__ == "__main__":
    main()
