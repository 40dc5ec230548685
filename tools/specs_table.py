#!/usr/bin/python3
"""The experiments of specs/ as a table, from their files.

    specs_table.py            prints it
    specs_table.py --write    puts it between the markers of specs/README.md

A file with a `log` has a row: its base, the keys that it sets beside it, in words, and what the log says.
"""
import pathlib
import re
import sys

import yaml

SPECS = pathlib.Path(__file__).resolve().parents[1] / "specs"
PAGE = SPECS / "README.md"
BEGIN, END = "<!-- experiments -->\n", "<!-- /experiments -->"
HEAD = ["spec", "base", "differs in", "val_loss", "steps", "step_ms", "verdict"]


# what the last part of a key says of what stands before it; {} is the value
WORDS = {
    "attn_out zero": "output of attention from zero", "betas": "betas {}", "cooldown": "cooldown {}",
    "detach true": "detached",
    "first both": "twice at sublayer 0", "first in_place": "in place at sublayer 0",
    "first lane_init": "of sublayer 0 in the lane init", "granularity lane": "per lane",
    "granularity layer": "per layer", "granularity sublayer": "per sublayer", "init": "from {}", "kind x0": "a source",
    "lane": "lane {}", "layers": "in layers {}", "learned false": "frozen", "learned true": "learned",
    "leave keep": "lanes stay", "lr": "rate {}", "lr_mul": "rate times {}", "share": "{} parts of the steps",
    "shared true": "shared by the lanes", "site at_write": "at the write", "site before_read": "before the read",
    "site on_branch": "on the branch's output", "lane all": "in every lane", "sublayers all": "everywhere",
    "layers all": "in all layers", "outside true": "on one stream too", "split": "split in layers {}",
    "steps": "{} steps", "sublayer": "sublayer {}", "sublayers": "at {}",
}
WHOLE = {
    "hc.lanes": "{} lanes", "hc.lanes 1": "one lane", "hc.layers": "lanes in layers {}", "hc.layers all": "lanes in all layers",
    "hc.coef_dtype": "coefficients in {}", "hc.output": "output {}", "plan.sources precompute": "sums of sources first",
}


def flat(tree, path=""):
    """Nested maps -> dotted key, value as YAML; a map that is an init or a selection is a value"""
    for key, value in tree.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and (name == "model.init" or not re.search(r"(^|\.)(init|layers|sublayers)$", name)):
            yield from flat(value, name)
        else:
            yield name, yaml.safe_dump(value, default_flow_style=True, width=9999).splitlines()[0]


def spoken(value):
    """A value that is a map or a list, in words"""
    value = value if value != "attn" else "attention"
    for pattern, words in ((r"{first: (\d+), last: (\d+)}", r"\1 to \2"), (r"{ramp: \[(.*), (.*)\]}", r"\1 to \2 by depth"),
                           (r"{attn: (.*), mlp: (.*)}", r"\1 on attention and \2 on the MLP"),
                           (r"{except: \[(.*)\]}", r"all but \1"), (r"\[([^,]*,){8,}.*\]", "numbers of its own"),
                           (r"\[(.*)\]", r"\1")):
        value = re.sub(f"^{pattern}$", words, value)
    return value


def phrase(key, value):
    """(what a key is of, what it says)"""
    for k in f"{key} {value}", key:
        if k in WHOLE:
            return "", WHOLE[k].format(spoken(value))
    of, _, last = key.rpartition(".")
    of = re.sub(r"^(train\.stages|train|hc\.sources|hc\.skips|hc\.backouts|hc|model\.init)(\.|$)", "", of)
    of = re.sub(r"\.(from|to)$", lambda m: " " + m[1], of)
    if value == "none":
        return "", f"no {last}"
    for k in f"{last} {value}", last:
        if k in WORDS:
            return of, WORDS[k].format(spoken(value))
    return of, f"{last} {value}"


def differences(spec):
    said = {}
    for key, value in flat({k: v for k, v in spec.items() if k not in ("extends", "log", "name")}):
        of, words = phrase(key, value)
        # what is of nothing stands by itself
        said.setdefault(of or (words,), []).append(words)
    return "; ".join(", ".join(w) if isinstance(of, tuple) else f"{of} {', '.join(w)}" for of, w in said.items()) \
        or "nothing"


def number(stem):
    """exp07b behind exp07, and what is no experiment first"""
    return stem.startswith("exp"), stem.startswith("exp-"), stem


def row(path):
    text = path.read_text()
    spec = yaml.safe_load(text)
    log = spec.get("log")
    if not log:
        return None
    base = spec.get("extends", "").removesuffix(".yaml")
    says = "; ".join(x for x in (log.get("verdict"), log.get("note")) if x)
    loss = f"{log['val_loss']:.4f}" if "val_loss" in log else ""
    return [path.stem, base, differences(spec) if base else "", loss, str(log.get("steps", "")),
            str(log.get("step_ms", "")), says]


def table():
    rows = [row(p) for p in sorted(SPECS.glob("*.yaml"), key=lambda p: number(p.stem))]
    lines = [HEAD, ["---"] * len(HEAD)] + [r for r in rows if r]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main():
    if sys.argv[1:] != ["--write"]:
        print(table(), end="")
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
