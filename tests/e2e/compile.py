#!/usr/bin/python3
"""Every kernel of every spec that is no experiment through NVRTC, and `hcgen show`.

No GPU takes part.  Registers, spills and shared memory are read from the cubins."""
import re

from lib import *


def compiled(tmp, spec, arch="sm_90a", words=()):
    r = run(HCGEN, "compile", spec, *words, "--arch", arch, "-o", tmp / "out", "--json", timeout=500)
    if r.rc == 2 and "libnvrtc" in r.err:
        raise Skip("no NVRTC here: " + r.err.strip())
    expect(r.rc == 0, r)
    return [json.loads(line) for line in r.out.splitlines()]


def gate(tmp, spec, arch="sm_90a"):
    """No spills, no stack, and at least one block of the launch fits a multiprocessor.  Row kernels of
    models 768 wide keep 5 blocks of 96 threads: 65536 / (5 * 96) registers.  One with more, such as the kernel that
    reads all lane gradients at the end of the backward pass, must have enough loads under way to hide memory:
    4.3 TB/s for a microsecond over 132 multiprocessors is 33 KB each."""
    kernels = compiled(tmp, spec, arch)
    expect(len(kernels) > 20, spec)
    for k in kernels:
        say = f"{k['kernel']} for {k['arch']}: {k}"
        expect(k["spills"] == 0 and k["stack"] == 0, "spills:", say)
        expect(k["registers"] <= 255 and k["registers"] * k["threads"] <= 65536, "does not fit:", say)
        expect(k["static_smem"] + k["dynamic_smem"] <= 227 * 1024, "shared memory:", say)
        if "_C768_" in k["kernel"] and re.match("lanes_|attn_glue|mlp_glue", k["kernel"]):
            blocks = 65536 // (k["threads"] * -(-k["registers"] // 8) * 8)
            loads = (tmp / "out/kernels" / (k["kernel"] + ".cu")).read_text().count(" = ld8(")
            expect(k["registers"] <= 136 or blocks * k["threads"] * 16 * loads >= 33e3, "over budget:", say, loads)


def gated(spec):
    def f(tmp):
        gate(tmp, spec)
    f.__name__ = "compiles_" + spec.stem.replace("-", "_")
    return f


for path in SPECS:
    case(gated(path))


@case
def every_optimizer_compiles(tmp):
    """In f32, and in bf16 with parameters of bf16 numbers, two of them one at first."""
    spec = ROOT / "tests/e2e/update.yaml"
    gate(tmp, spec)
    kernels = compiled(tmp / "bf16", spec, words=sets(numerics__storage="bf16", numerics__gemm="bf16", numerics__params="bf16"))
    expect(sum("normuon" in k["kernel"] for k in kernels) == 10, [k["kernel"] for k in kernels])   # five a shape
    for k in kernels:
        expect(k["spills"] == 0 and k["stack"] == 0, "spills:", k)


@case
def reference_compiles_for_sm_80(tmp):
    gate(tmp, REFERENCE, "sm_80")


@case
def reference_compiles_for_sm_100(tmp):
    gate(tmp, REFERENCE, "sm_100")


@case
def learned_lanes_do_not_spill(tmp):
    """Up to eight lanes with every coefficient learned, at widths from 256 to 2048, eleven layers."""
    for lanes, width in (2, 256), (3, 1536), (4, 256), (4, 2048), (5, 768), (6, 256), (6, 1280), (7, 1024), (8, 256), (8, 768), (8, 2048):
        words = sets(hc__lanes=lanes, hc__res__learned="true", hc__pre__learned="true", model__width=width,
                     model__heads=width // 128, model__attention__window=128)
        r = run(HCGEN, "compile", ROOT / "specs/two-lane.yaml", *words, "-o", tmp / f"{lanes}-{width}", "--json", timeout=500)
        if r.rc == 2 and "libnvrtc" in r.err:
            raise Skip("no NVRTC here: " + r.err.strip())
        for k in map(json.loads, r.out.splitlines()):
            expect(k["spills"] == 0 and k["stack"] == 0, f"{lanes} lanes of {width}:", k)


@case
def a_spill_is_seen(tmp):
    """The figures are the compiler's: a kernel given too few registers says so."""
    compiled(tmp, SMALL)
    kernel = sorted((tmp / "out/kernels").glob("attn_fwd*"))[0]
    text = kernel.read_text()
    kernel.write_text(re.sub(r"__launch_bounds__\((\d+)[^)]*\)", r"__launch_bounds__(\1, 2048 / \1)", text))
    expect(kernel.read_text() != text)
    r = hcgen("compile", SMALL, "--kernels", tmp / "out", "--json")
    row = [json.loads(x) for x in r.out.splitlines() if kernel.stem in x][0]
    expect(row["spills"] > 0 and row["stack"] > 0, row)


@case
def show_tells_registers_and_launches(tmp):
    r = hcgen("show", ROOT / "specs/two-lane.yaml", "lanes_attn_fwd_at5__")
    for word in ("// computes", "// moves", "// launched", "__global__", "st8("):
        expect(word in r.out, word, r)
    try:
        compiled(tmp, SMALL)
    except Skip:
        return
    expect(re.search(r"// compiled  \d+ registers, 0 bytes spilled", r.out), r)


@case
def architectures_are_names(tmp):
    for bad in "", ",", "sm_1", "sm_90a,,sm_80", "sm_90a;rm", "90":
        r = hcgen("compile", SMALL, "--arch", bad, "-o", tmp / "out", want=2)
        expect("--arch" in r.err, bad, r)


@case
def many_coefficients_are_several_kernels(tmp):
    """Thousands of gradients of coefficients in one kernel take a compiler minutes."""
    words = sets(hc__lanes=8, model__layers=6, hc__res="{learned: true, init: 0.125}", hc__pre="{learned: true}")
    hcgen("emit", SMALL, *words, "--device", "cuda", "-o", tmp / "out")
    tails = sorted((tmp / "out/kernels").glob("coef_grads*"))
    expect(len(tails) > 2, tails)
    for t in tails:
        expect(t.read_text().count("threadIdx.x ==") <= 256, t)
    r = hcgen("verify", SMALL, *words, "--device", "simt", "--rows", 64, timeout=500)
    expect(r.out.rstrip().endswith(": verified"), r)


@case
def show_names_what_it_cannot_find(tmp):
    r = hcgen("show", ROOT / "specs/two-lane.yaml", "nonsense", want=2)
    expect("no kernel is named" in r.err and "lanes_attn_fwd" in r.err, r)
    r = hcgen("show", ROOT / "specs/two-lane.yaml", "lanes_", want=2)
    expect("may be" in r.err, r)


if __name__ == "__main__":
    main()
