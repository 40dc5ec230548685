#!/usr/bin/python3
"""The CUDA text on fibers: every spec that is no experiment verified step by step with all checks, and training as on cpu.

Specs of real size keep their width and all structure; few layers, rows and words of vocabulary make
them quick: a row kernel works on one row after another."""
import re

from lib import *

SMALLER = {
    "single": sets(model__layers=2, model__vocab=300, hc__sources__e__rows=99, data__bos=7),
    "two-lane": sets(model__layers=2, model__vocab=300, hc__sources__e__rows=99, data__bos=7),
    "gpt-2lane-768": sets(model__layers=8, model__attention__window=128, model__vocab=300, hc__sources__e__rows=99, data__bos=7),
    "baseline": sets(model__layers=8, model__vocab=300, model__value_embed="[0, 1]", model__attention__key_offset="[3]",
                     model__attention__long_layers="[3]", model__attention__paired="[0, 2, 5]", hc__sources__bigram__rows=99,
                     data__bos=7),
    **{s: sets(model__vocab=300, hc__sources__bigram__rows=99, data__bos=7)
       for s in ("parallel-residuals", "flatten-forward", "simplify-hc")},
    "bench-384": sets(model__layers=2),
}


def beside_rows(text, tokens):
    """Bytes that the signature of a row kernel tells of beside its row values: at most loaded, and stored."""
    load, store, parts = 0, 0, (tokens + 3) // 4 * 4
    for name, shape in re.findall(r"__restrict__ (\w+)[,)] *// \[([\w,]+)\]", text):
        dims = shape.split(",")
        if "P" in dims:
            store += 4 * parts * int([d for d in dims if d != "P"][0])
        elif name in ("cos", "sin"):
            load += 4 * tokens * int(dims[1])
        elif dims[0] != "T" or len(dims) == 1:
            load += 4 * (tokens if dims == ["T"] else int(dims[0]))
    return load, store


def verified(spec, what="", more_words=()):
    """Also: the distinct bytes of row kernels are those of the `moves` line, and what the signature adds."""
    def f(tmp):
        words = ["--device", "simt", *SMALLER.get(spec.stem, []), *more_words]
        r = hcgen("verify", spec, "--rows", 61, "--bytes", *words, timeout=500)
        expect("FAIL" not in r.out and r.out.rstrip().endswith(": verified"), r)
        hcgen("emit", spec, *words, "-o", tmp / "out")
        tokens = int(re.search(r"on (\d+) tokens", r.out)[1])
        rows = [line.split() for line in r.out.split("bytes of one launch")[1].splitlines()[1:] if len(line.split()) == 5]
        seen = 0
        for name, *counts in rows:
            loaded, load_issued, stored, store_issued = map(int, counts)
            expect(loaded <= load_issued, name)
            text = (tmp / "out/kernels" / (name + ".cu")).read_text()
            moves = re.search(r"// moves +per row +read (\d+) B +write (\d+) B", text)
            if not moves:
                continue
            seen += 1
            more, partials = beside_rows(text, tokens)
            # a shift by a row does not read the last row of a sequence, or part of it
            edge = int(moves[1]) * -(-tokens // 61) if "shift(" in text.split("// types")[0] else 0
            expect(-edge <= loaded - tokens * int(moves[1]) <= more, name, "loads", loaded, "of", moves[0], more)
            expect(stored == tokens * int(moves[2]) + partials, name, "stores", stored, "of", moves[0], partials)
            expect(stored == store_issued, name, "stores something twice:", stored, store_issued)
        expect(seen > 8, r)
    f.__name__ = "verify_" + spec.stem.replace("-", "_") + what
    return f


for path in SPECS:
    case(verified(path))
case(verified(ROOT / "tests/e2e/knobs.yaml"))
# kernels that are walked vector by vector, with sums that share registers
case(verified(ROOT / "specs/two-lane.yaml", "_with_five_learned_lanes",
              sets(hc__lanes=5, hc__res__learned="true", hc__pre__learned="true", model__layers=3)))

# products see the upper halves of NorMuon's parameters, and so do the kernels that scale matrices
case(verified(ROOT / "specs/baseline.yaml", "_with_bf16_parameters", sets(
    numerics__params="bf16", optim__groups="{m: {match: '*.qkv|*.attn.out|*.mlp.*', kind: normuon}}")))


@case
def verify_sequences_of_several_tiles(tmp):
    """150 positions are three tiles of keys and two of queries; documents, grouped heads, windows."""
    words = sets(model__width=64, model__heads=4, model__kv_heads=2, model__attention__window="[full, 70]",
                 data__bos=3, data__packing="documents", numerics__storage="bf16", numerics__gemm="bf16",
                 train__tokens_per_step=300, train__seq_len=150, train__micro_batches=1)
    r = hcgen("verify", SMALL, "--device", "simt", "--seq", 150, "--rows", 300, *words, timeout=500)
    expect("FAIL" not in r.out and r.out.rstrip().endswith(": verified"), r)
    expect("on 300 tokens" in r.out, r)


FEW = sets(train__tokens_per_step=256)      # a token is work for many fibers


def curves(tmp, *words):
    d = make_data(tmp)
    for out in ("cpu", "simt"):
        train(tmp / out, *d, *FEW, *words, "--device", out)
    return losses(tmp / "cpu"), losses(tmp / "simt")


@case
def trains_as_cpu_in_f32(tmp):
    """20 steps: sums in another order move a loss by 1e-7 of itself, AdamW's division by small second
    moments carries that to 1e-5 of later losses."""
    a, b = curves(tmp, *sets(train__clip=0.5, train__micro_batches=2))
    expect(len(a) == len(b) == 20 and a[-1] < a[0])
    for i, (x, y) in enumerate(zip(a, b)):
        expect(abs(x - y) <= 1e-4 * x, f"step {i + 1}: {x} on cpu, {y} on simt")


@case
def trains_as_cpu_in_bf16(tmp):
    """The kernels round to bf16 at the same places but attention, whose weights are bf16 for the matrix
    instructions: 2^-9 of each, which random signs average to below 1e-2 of a loss."""
    a, b = curves(tmp, *sets(numerics__storage="bf16", numerics__gemm="bf16"))
    for i, (x, y) in enumerate(zip(a, b)):
        expect(abs(x - y) <= 1e-2 * x, f"step {i + 1}: {x} on cpu, {y} on simt")


@case
def repeats_bit_for_bit(tmp):
    d = make_data(tmp)
    for out, threads in ("one", 1), ("two", 2):
        train(tmp / out, *d, *FEW, "--device", "simt", "--threads", threads)
    expect(losses(tmp / "one") == losses(tmp / "two"))
    expect((tmp / "one/run/final.safetensors").read_bytes() == (tmp / "two/run/final.safetensors").read_bytes())


@case
def edited_kernel_is_run_and_said(tmp):
    """emit, edit, train --kernels; --keep leaves the edit when it is emitted again."""
    d = make_data(tmp)
    out = tmp / "emitted"
    words = [SMALL, *d, *sets(train__steps=2), "--device", "simt"]
    hcgen("emit", *words, "-o", out)
    clip = out / "kernels/clip.cu"
    text = clip.read_text()
    half = text.replace("sched[3] = ", "sched[3] = 0.5f * ")
    expect(half != text, text)
    clip.write_text(half)
    r = hcgen("train", *words, "--kernels", out)
    expect("1 kernels differ" in r.out, r)
    expect(metrics(out)[0]["edited_kernels"] == 1, metrics(out)[0])
    again = hcgen("emit", *words, "-o", out, "--keep")
    expect("1 edited kernels kept" in again.out and clip.read_text() == half, again)
    (out / "manifest").rename(tmp / "away")
    lost = hcgen("emit", *words, "-o", out, "--keep", want=2)
    expect("clip.cu" in lost.err and clip.read_text() == half, lost)
    (tmp / "away").rename(out / "manifest")
    hcgen("emit", *words, *sets(train__clip=0, hc__lanes=3), "-o", out, "--keep")
    expect(clip.read_text() == half, "an edit was lost with another spec")
    (out / "kernels/mine.cu").write_text("mine")
    hcgen("emit", *words, "-o", out)
    expect(clip.read_text() == text and (out / "kernels/mine.cu").exists())


@case
def wrong_kernel_is_named_with_its_line(tmp):
    """What does not compile is the user's when he edited it: file and line, exit 2."""
    d = make_data(tmp)
    out = tmp / "emitted"
    words = [SMALL, *d, *sets(train__steps=1), "--device", "simt"]
    hcgen("emit", *words, "-o", out)
    clip = out / "kernels/clip.cu"
    n = len(clip.read_text().splitlines())
    clip.write_text(clip.read_text() + "nonsense;\n")
    r = hcgen("train", *words, "--kernels", out, want=2)
    expect(f"clip.cu:{n + 1}" in r.err, r)


if __name__ == "__main__":
    main()
