"""Copy bandwidth and products through PyTorch, a line of JSON each; the argument is a list of [name, m, n, k]."""
import json
import statistics
import sys


def median_us(torch, f, runs=10):
    for _ in range(3):
        f()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for a, b in marks:
        a.record()
        f()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * a.elapsed_time(b) for a, b in marks)


def say(**what):
    print(json.dumps(what), flush=True)


def main(shapes):
    try:
        import torch
    except ImportError:
        return say(absent="PyTorch is not on this machine")
    if not torch.cuda.is_available():
        return say(absent="PyTorch sees no GPU")
    say(version=torch.__version__)
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    say(gbs=2e-3 * a.numel() / median_us(torch, lambda: b.copy_(a)))
    for name, m, n, k in shapes:
        x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
        y = torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
        us = median_us(torch, lambda: x @ y.t())
        say(name=name, m=m, n=n, k=k, us=us, tflops=2e-6 * m * n * k / us)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]) if sys.argv[1:] else [])
