#!/usr/bin/python3
"""Training repeats bit for bit, begins where it is told to, and with the parameters of docs/spec.md."""
import shutil

from lib import *

BF16 = sets(numerics__storage="bf16", numerics__gemm="bf16")


def same(a, b):
    for x, y in zip(numbers(a)[1:], numbers(b)[1:]):
        expect(x == y, x, "against", y)
    expect(len(numbers(a)) == len(numbers(b)))
    expect((a / "run/final.safetensors").read_bytes() == (b / "run/final.safetensors").read_bytes(),
           "same losses, other final.safetensors")


def repeats(tmp, *words):
    """Twice, and with other numbers of threads: the same bits."""
    d = make_data(tmp)
    for out, threads in (("one", 1), ("again", 1), ("two", 2), ("three", 3)):
        train(tmp / out, *d, *words, "--threads", threads)
        same(tmp / "one", tmp / out)
    expect(len(losses(tmp / "one")) == 20)


@case
def repeats_bit_for_bit_f32(tmp):
    repeats(tmp, *sets(train__clip=0.5, train__micro_batches=2))


@case
def repeats_bit_for_bit_bf16(tmp):
    repeats(tmp, *BF16)


@case
def repeats_bit_for_bit_shuffled_documents(tmp):
    repeats(tmp, *sets(data__shuffle="true", data__packing="documents", data__max_doc=80))


@case
def repeats_with_kernels_compiled_anew(tmp):
    d = make_data(tmp)
    train(tmp / "a", *d)
    train(tmp / "b", *d, env={"HCGEN_CACHE": str(tmp / "cache")})
    same(tmp / "a", tmp / "b")


@case
def other_seed_other_run(tmp):
    d = make_data(tmp)
    train(tmp / "a", *d)
    train(tmp / "b", *d, "--seed", 1)
    train(tmp / "c", *d, *sets(train__seed=1))
    expect(losses(tmp / "a")[0] != losses(tmp / "b")[0], "--seed 1 changes nothing")
    same(tmp / "b", tmp / "c")


@case
def starts_from_given_parameters(tmp):
    d = make_data(tmp)
    train(tmp / "a", *d, *sets(train__steps=60))
    initial(tmp / "initial", *d)
    train(tmp / "b", *d, *sets(train__steps=60), "--params", tmp / "initial")
    same(tmp / "a", tmp / "b")
    train(tmp / "c", *d, *sets(train__steps=1, train__warmup=0), "--params", tmp / "a/run/final.safetensors")
    first, last = losses(tmp / "a")[0], losses(tmp / "a")[-1]
    expect(losses(tmp / "c")[0] < last + 0.5 < first - 1, first, last, losses(tmp / "c")[0])


@case
def loss_of_the_first_step_is_that_of_verify(tmp):
    d = make_data(tmp)
    train(tmp / "a", *d, *sets(train__steps=1, train__warmup=1))
    initial(tmp / "p", *d)
    r = hcgen("verify", SMALL, "--params", tmp / "p", "--tokens", tmp / "data/train.bin")
    loss = float(r.out.split()[1])
    expect(abs(loss - losses(tmp / "a")[0]) < 1e-11, loss, losses(tmp / "a")[0])


def initial_as_oracle(tmp, spec, *words):
    """docs/spec.md gives every bit but for what log and cos of two libraries may differ in: one
    rounding to float32 in 10^8, of elements far fewer than that."""
    initial(tmp / "ours", *words, spec=spec)
    python("oracle.py", "params", spec, "-o", tmp / "oracle", *words)
    a, b = read_params(tmp / "ours"), read_params(tmp / "oracle")
    expect(sorted(a) == sorted(b), set(a) ^ set(b))
    for k in a:
        expect(a[k].shape == b[k].shape, k, a[k].shape, b[k].shape)
        wrong = np.flatnonzero(a[k].view("u4") != b[k].view("u4"))
        expect(not len(wrong), k, "differs at", wrong[:4], a[k].flat[wrong[:4]], b[k].flat[wrong[:4]])


@case
def initial_parameters_small(tmp):
    initial_as_oracle(tmp, SMALL)


@case
def initial_parameters_reference(tmp):
    initial_as_oracle(tmp, REFERENCE, *sets(train__seed=12345))


@case
def initial_parameters_every_form(tmp):
    initial_as_oracle(tmp, SMALL, *sets(
        model__tied="true", model__norm_weight="true", hc__lanes=3, hc__res="{init: {ramp: [-1, 1]}, learned: true}",
        hc__pre__learned="true", hc__post__init="[0.5, 1, 1.5]", hc__output="learned", hc__lane_init__learned="true",
        hc__sources__g="{kind: bigram, rows: 33, table_std: 0.02, init: [1, 2, 3]}", hc__resid_lambda__granularity="layer"))


@case
def steps_0_needs_no_data(tmp):
    train(tmp / "a", *sets(train__steps=0, train__warmup=0, data__train="[nowhere.bin]"))
    expect([*metrics(tmp / "a")[-1]][0] == "done", metrics(tmp / "a"))


@case
def metrics_count_steps_and_tokens(tmp):
    d = make_data(tmp)
    r = hcgen("train", SMALL, *d, *sets(train__val_every=5, train__micro_batches=2), "-o", tmp / "a", "--json")
    lines = metrics(tmp / "a")
    expect([json.loads(x) for x in r.out.splitlines()] == lines, "--json prints other lines than metrics.jsonl")
    expect([m["step"] for m in lines if "loss" in m] == list(range(1, 21)))
    expect([m["step"] for m in lines if "val_tokens" in m] == [5, 10, 15, 20])
    expect([m["tokens"] for m in lines if "loss" in m][-1] == 20 * 512)
    expect(lines[-1]["done"] == 20 and lines[-1]["val_loss"] == val_losses(tmp / "a")[-1], lines[-1])


@case
def two_trainers_share_an_empty_cache(tmp):
    d, env = make_data(tmp), environment({"HCGEN_CACHE": str(tmp / "cache")})
    both = [subprocess.Popen([HCGEN, "train", SMALL, *d, "-o", tmp / out, "--quiet"], env=env) for out in "ab"]
    expect([p.wait(120) for p in both] == [0, 0])
    same(tmp / "a", tmp / "b")
    expect(not [x for x in os.listdir(tmp / "cache") if "tmp" in x], os.listdir(tmp / "cache"))


@case
def a_moved_directory_still_trains(tmp):
    """Nothing that is emitted holds a path of this machine, but run.txt, which sample reads."""
    d = make_data(tmp)
    train(tmp / "a", *d)
    shutil.move(tmp / "a", tmp / "b")
    hcgen("sample", tmp / "b/run", "--prompt", "ab", "-n", 4)


if __name__ == "__main__":
    main()
