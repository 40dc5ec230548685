#!/usr/bin/python3
"""make bench: tokens per second against the oracle's eager PyTorch model, in one run.

Prints Markdown.  Every ratio compares two programs run one after the other on the same cores; each pair
is measured ROUNDS times, alternating, and the median ratio is shown with the extremes.
"""
import json, os, re, statistics, subprocess, sys, time

ROUNDS = int(os.environ.get("ROUNDS", "3"))
HCGEN, ORACLE = "build/hcgen", ["/usr/bin/python3", "tests/oracle/oracle.py"]
SPECS = ["specs/tiny.yaml", "specs/bench-384.yaml", "tests/bench-baseline.yaml"]
F32 = ["--set", "numerics.storage=f32", "--set", "numerics.gemm=f32"]


def hcgen(spec, sets):
    out = subprocess.run([HCGEN, "bench", spec, "-n", "4", *sets, "-o", "/tmp/hcgen-bench"],
                         check=True, capture_output=True, text=True).stdout
    return float(re.search(r"(\d+) tokens/s", out).group(1))


def oracle(spec):
    run = subprocess.run([*ORACLE, "bench", spec, "--steps", "3", "--dtype", "float32",
                          "--threads", str(os.cpu_count())], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"the oracle cannot be measured: {run.stderr.strip()}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def row(name, ratios, ours, theirs, floor):
    med = statistics.median(ratios)
    print(f"| {name} | {statistics.median(ours):.0f} | {statistics.median(theirs):.0f} | **{med:.2f}** "
          f"({min(ratios):.2f} to {max(ratios):.2f}) | {floor} |")
    return med >= floor


def machine():
    info = open("/proc/cpuinfo").read()
    model = re.search(r"model name\s*: (.*)", info).group(1)
    flags = re.search(r"flags\s*: (.*)", info).group(1).split()
    isa = [f for f in ("avx2", "avx512f", "avx512_bf16") if f in flags]
    return f"{model}, {os.cpu_count()} cores, {', '.join(isa)}"


def main():
    ok = True
    print("# CPU: hcgen against eager PyTorch\n")
    print(f"`make bench`, {time.strftime('%Y-%m-%d')}, {machine()}.")
    print("One training step: forward, backward, optimizers. PyTorch is the oracle's model (tests/oracle/), eager, float32, OpenBLAS,")
    print(f"all cores; ratios are medians of {ROUNDS} alternating runs, extremes in brackets.\n")
    print("| spec and dtype | hcgen tokens/s | PyTorch f32 tokens/s | ratio | wanted |\n|---|---|---|---|---|")
    for spec in SPECS:
        f32, bf16, torch, gf = [], [], [], 0
        for _ in range(ROUNDS):
            o = oracle(spec)
            torch.append(o["tokens_per_s"])
            gf = max(gf, o["matmul_gflops"])
            f32.append(hcgen(spec, F32))
            bf16.append(hcgen(spec, []))
        name = os.path.basename(spec)
        ok &= row(f"{name} f32 storage, f32 GEMM", [a / b for a, b in zip(f32, torch)], f32, torch, 2.0)
        ok &= row(f"{name} bf16 storage, bf16 GEMM", [a / b for a, b in zip(bf16, torch)], bf16, torch, 3.0)
    print(f"\nPyTorch's own 1024 x 1024 float32 matmul reaches {gf:.0f} GFLOP/s here.\n")
    emit = []
    for _ in range(10):
        t = time.perf_counter()
        subprocess.run([HCGEN, "emit", "specs/gpt-2lane-768.yaml", "-o", "/tmp/hcgen-bench-emit", "--quiet"], check=True)
        emit.append(time.perf_counter() - t)
    med = statistics.median(emit)
    print(f"`hcgen emit specs/gpt-2lane-768.yaml` (11 layers, width 768): {1e3 * med:.0f} ms "
          f"({1e3 * min(emit):.0f} to {1e3 * max(emit):.0f}), wanted at most 100 ms.")
    ok &= med <= 0.1
    print("\nWhere the time of a step goes is `hcgen bench SPEC`.")
    return 0 if ok else 1


sys.exit(main())
