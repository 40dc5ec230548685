"""gpu.json -> the page.  It says what was measured, and of everything else that it was not and why."""


def number(x):
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return "-" if x is None else str(x)
    if isinstance(x, int) or (abs(x) >= 1000 and x == int(x)):
        return f"{int(x):,}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}" if abs(x) >= .001 or x == 0 else f"{x:.2e}"


def cell(x):
    return number(x).replace("|", "\\|").replace("\n", " ")


def table(columns, rows):
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)] + [
        "| " + " | ".join(map(cell, row)) + " |" for row in rows] + [""]


def library(found, key):
    lib = found.get("libraries", {}).get(key, {})
    return lib.get("version") or "missing"


def machine(r):
    d = r["doctor"]
    gpu, smi = d.get("gpu"), r["nvidia_smi"]
    rows = []
    if gpu:
        rows.append(["GPU", f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['multiprocessors']} multiprocessors, "
                            f"{gpu['memory'] / 1e9:.1f} GB"])
    if smi:
        rows.append(["nvidia-smi", ", ".join(f"{k} {v}" for k, v in smi.items() if k != "name")])
    if d:
        rows += [["CPU", f"{d['cpu']}, {d['usable']} cores, {d['memory'] / 1e9:.0f} GB"],
                 ["CUDA", ", ".join(f"{what} {library(d, key)}" for what, key in (
                     ("driver", "cuda"), ("NVRTC", "nvrtc"), ("cuBLASLt", "cublaslt")))]]
    return rows + [["hcgen", r["commit"]], ["date", r["date"]], ["command", f"`{r['command']}`"]]


def headline(r):
    if r["no_gpu"]:
        return f"**Nothing was measured on a GPU yet.** Not run: {r['no_gpu']}."
    if r["stand_in"]:
        return ("**Nothing here was measured on a GPU**: the libraries were stand-ins (tests/standin), whose GPU is this CPU. "
                "It shows that the script works, and nothing else.")
    if r["quick"]:
        return "Small sizes, to try the script: no time here says anything about speed."
    return "Where a step did not run or failed, its section says so; no figure here is from anywhere but this run."


def section(s):
    out = [f"## {s['title']}", ""]
    if s["outcome"] != "ok":
        out += [f"**{s['outcome'].capitalize()}**: {s['why']}", ""]
    if s["commands"]:
        out += [f"    {s['commands'][0]['command']}", ""]
    if len(s["commands"]) > 1:
        out += [f"and {len(s['commands']) - 1} more, which gpu.json lists.", ""]
    shown = [[n["what"], n["value"], n["unit"]] for n in s["numbers"] if not n["hide"]]
    if shown:
        out += table(["", "", ""], shown)
    for t in s["tables"]:
        out += [t["title"] + ":", ""] + table([f"{c} {u}".strip() for c, u in t["columns"]], t["rows"])
    for n in s["notes"]:
        out.append(f"- {n}")
    return out + ([""] if s["notes"] else [])


def text(r):
    d = r["doctor"]
    name = d["gpu"]["name"] if d.get("gpu") else "none yet"
    out = [f"# GPU: {name}", "", headline(r), ""] + table(["", ""], machine(r))
    if not r["finished"] and not r["no_gpu"]:
        out += ["**The run did not come to its end**: what is missing below was not run.", ""]
    if r["no_gpu"]:
        out += ["What it would run, and for how many seconds at most:", ""]
        out += table(["step", "s"], [[s["title"], s["limit_s"]] for s in r["steps"]])
    else:
        why = {s["name"]: f": {s['why']}" if s["outcome"] == "not run" else "" for s in r["steps"]}
        out += table(["step", "outcome", "s"], [[s["title"], s["outcome"] + why[s["name"]], s["seconds"]] for s in r["steps"]])
        for s in r["steps"]:
            if s["name"] != "doctor" and s["outcome"] != "not run":
                out += section(s)
    return "\n".join(out).rstrip() + "\n"
