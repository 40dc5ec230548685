"""Numbers out of what hcgen and other tools print.  All that knows their text is here."""
import json
import re


def doctor(text):
    """The object of `doctor --json`, or {}."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


def verify(text):
    """What `hcgen verify` says at its end, worst errors over all gradients included."""
    out = {}
    m = re.search(r"(\d+) steps of program \w+ on (\d+) tokens", text)
    if m:
        out["steps"], out["tokens"] = map(int, m.groups())
    for kind in "f32", "bf16":
        m = re.search(rf"([\d.e+-]+|inf|-?nan) \({kind} results, at most ([\d.e+-]+)\)", text)
        if m:
            out[kind], out[kind + "_limit"] = map(float, m.groups())
    gradients = re.findall(r"^(\S+) +([\d.]+e[+-]\d+|inf|-?nan) +([\d.]+e[+-]\d+|inf|-?nan)( +FAIL)?$", text, re.M)
    if gradients:
        for i, key in (1, "gradient_of_steps"), (2, "gradient_of_graph"):
            out[key], out[key + "_at"] = max((float(g[i]), g[0]) for g in gradients)
    m = re.search(r"^loss ([^\s,]+), graph in double (\S+)", text, re.M)
    if m:
        out["loss"], out["loss_in_double"] = map(float, m.groups())
    out["fails"] = [line.strip() for line in text.splitlines() if "FAIL" in line]
    out["verified"] = bool(re.search(r": verified$", text, re.M))
    return out


def bench(text):
    """The table of `hcgen bench --device cuda` by the words of its head, and the lines below it."""
    out = {"columns": [], "rows": []}
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("kernel or gemm"):
            out["columns"] = line[len("kernel or gemm"):].split()
            break
    n = len(out["columns"])
    for line in lines:
        words = line.rsplit(None, n)
        if len(words) != n + 1 or not re.fullmatch(r"[\d.]+", words[1]):
            break
        out["rows"].append([words[0]] + [float(w) if re.fullmatch(r"[\d.]+(e[+-]\d+)?", w) else None for w in words[1:]])
    for key, pattern in (("copy_gbs", r"copy on this GPU reads and writes ([\d.]+) GB/s"),
                         ("forward_ms", r"forward ([\d.]+) ms"), ("backward_ms", r"backward ([\d.]+) ms"),
                         ("update_ms", r"update ([\d.]+) ms"), ("step_ms", r": ([\d.]+) ms per step"),
                         ("tokens_per_second", r"([\d.]+) tokens/s"), ("tokens", r"steps of (\d+) tokens on")):
        m = re.search(pattern, text)
        if m:
            out[key] = float(m.group(1))
    return out


def bench_class(name):
    """of a row: product, attention or row kernel"""
    if re.search(r" (fwd|bwd)$", name):
        return "products"
    return "attention" if re.match(r"attn_(fwd|bwd)", name) else "other kernels"


def metrics(lines):
    """losses, norms, ms of the steps of `train --json` or metrics.jsonl, and the losses of validations"""
    out = {"loss": [], "norm": [], "ms": [], "val": []}
    for line in lines:
        try:
            m = json.loads(line)
        except ValueError:
            continue
        if "loss" in m:
            for key in "loss", "norm", "ms":
                out[key].append(m[key])
        elif "val_tokens" in m:
            out["val"].append(m["val_loss"])
    return out


def sanitizer(text):
    """(errors, the summary lines) of compute-sanitizer; errors is None if it did not come to an end"""
    lines = [re.sub(r"^=+ *", "", x) for x in text.splitlines() if "SUMMARY:" in x]
    found = re.findall(r"(\d+) (?:error|hazard)", " ".join(lines))
    return (max(map(int, found)) if found else None), lines


def smi(text):
    """the first line of nvidia-smi --query-gpu=… --format=csv,noheader"""
    return [w.strip() for w in text.strip().splitlines()[0].split(",")] if text.strip() else []
