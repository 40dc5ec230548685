#!/usr/bin/python3
"""The binary and the pages say the same; the binary needs no more than it says."""
import re

from lib import *

PAGE = (ROOT / "docs/spec.md").read_text()


@case
def needs_only_these_libraries(tmp):
    """So that one binary runs on a bare machine; all else is opened at run time.  libm, libdl and
    libpthread are part of libc where that is new."""
    r = run("readelf", "-d", HCGEN)
    expect(r.rc == 0, r)
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\.so", r.out)
    expect(set(needed) <= {"libc", "libm", "libdl", "libpthread", "libyaml-0"}, needed)
    expect("libc" in needed, needed)
    expect("RUNPATH" not in r.out and "RPATH" not in r.out, "a path of the machine that built it")


@case
def key_table_is_the_schemas(tmp):
    table = PAGE.split("<!-- keys -->\n")[1].split("<!-- /keys -->")[0]
    schema = hcgen("check", "--schema").out
    for x, y in zip(table.splitlines(), schema.splitlines()):
        expect(x == y, f"\n- {x}\n+ {y}\n`make bless` if this is meant")
    expect(table == schema, "other lengths")


@case
def experiments_table_is_that_of_the_specs(tmp):
    page = (ROOT / "specs/README.md").read_text()
    shown = page.split("<!-- experiments -->\n")[1].split("<!-- /experiments -->")[0]
    made = run("/usr/bin/python3", ROOT / "tools/specs_table.py").out
    expect(len(made.splitlines()) > 60, made)
    for x, y in zip(shown.splitlines(), made.splitlines()):
        expect(x == y, f"\n- {x}\n+ {y}\n`make docs` if this is meant")
    expect(shown == made, "other lengths")


@case
def parameter_names_are_documented(tmp):
    """Every name that check --params prints for a spec of specs/ stands in docs/spec.md, indices and
    names of the user's as there."""
    known = set(re.findall(r"`([a-z][\w.]*)`", PAGE))
    expect(len(SPECS) >= 2, SPECS)
    for spec in SPECS:
        lines = hcgen("check", spec, "--params").out.splitlines()
        expect(len(lines) > 5, lines)
        for line in lines:
            name = line.split()[0]
            name = re.sub(r"^layers\.\d+\.", "layers.i.", name)
            name = re.sub(r"^hc\.(sources|skips|backouts)\.\w+\.", r"hc.\1.NAME.", name)
            # docs/spec.md: "(`hc.backouts.NAME.…` for backouts.)"
            expect(name in known or name.replace("backouts", "skips") in known, f"{spec.name}: {line}")


@case
def parameter_names_are_the_oracles(tmp):
    for spec in SPECS:
        ours = hcgen("check", spec, "--params").out
        expect(sorted(ours.splitlines()) == sorted(python("oracle.py", "names", spec).out.splitlines()), spec.name, ours)


KERNEL = "kernels/lanes_attn_fwd_at2__n2_C256_bf16.c"


@case
def readme_shows_the_kernel_that_is_emitted(tmp):
    text = hcgen("show", ROOT / "specs/tiny.yaml", "lanes_attn_fwd_at2__n2_C256_bf16").out
    shown = (ROOT / "README.md").read_text().split("```c\n")[1].split("```")[0].splitlines()
    expect(len(shown) > 20, shown)
    for line in shown:
        if line.strip() != "...":
            expect(line in text, f"README.md shows a line that is not emitted: {line}")


@case
def emitted_page_explains_the_kernel_that_is_emitted(tmp):
    hcgen("emit", ROOT / "specs/tiny.yaml", "-o", tmp / "tiny", "--quiet", "--device", "cpu")
    text = (tmp / "tiny" / KERNEL).read_text()
    page = (ROOT / "docs/emitted.md").read_text()
    shown = page.split("<!-- kernel -->\n")[1].split("<!-- /kernel -->")[0].splitlines()
    expect(len(shown) > 40, shown)
    for line in shown:
        expect(line.removeprefix("    ") in text, f"`make docs` if this is meant: {line}")


@case
def emitted_page_shows_the_cuda_kernel_that_is_emitted(tmp):
    text = hcgen("show", ROOT / "specs/two-lane.yaml", "lanes_attn_fwd_at5__n2_C768_bf16").out
    page = (ROOT / "docs/emitted.md").read_text()
    shown = page.split("<!-- cuda -->\n")[1].split("<!-- /cuda -->")[0].splitlines()
    expect(len(shown) > 40, shown)
    for line in shown:
        expect(line.removeprefix("    ") in text, f"`make docs` if this is meant: {line}")


@case
def readme_spec_is_tiny(tmp):
    """The spec in README.md means what specs/tiny.yaml means, its comments and training aside."""
    spec = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp / "tiny.yaml").write_text(spec)
    ours = hcgen("check", tmp / "tiny.yaml", "--params").out
    expect(ours == hcgen("check", ROOT / "specs/tiny.yaml", "--params").out, ours)


@case
def every_spec_is_checked_planned_and_emitted(tmp):
    for spec in SPECS:
        hcgen("check", spec)
        hcgen("plan", spec)
        hcgen("emit", spec, "-o", tmp / spec.stem)


@case
def help_names_every_verb(tmp):
    verbs = re.findall(r"^  (\w+)", hcgen("--help").out.split("\noptions")[0], re.M)
    expect(len(verbs) > 5, verbs)
    for verb in verbs:
        r = run(HCGEN, verb, cwd=tmp)
        expect("is no verb" not in r.err, verb, r)
    page = set(re.findall(r"`hcgen (\w+)", "".join(p.read_text() for p in (ROOT / "docs").glob("*.md"))))
    expect(page <= set(verbs), "documented, but no verbs:", page - set(verbs))


@case
def manifest_words_are_documented(tmp):
    """Every kind of line of the reference's manifest stands in docs/emitted.md."""
    block = (ROOT / "docs/emitted.md").read_text()
    known = {line.split()[0] for line in block.splitlines() if line.startswith("    ")}
    kinds = {line.split()[0] for line in (ROOT / "tests/golden/reference/manifest").read_text().splitlines()}
    expect(kinds <= known | {"output"}, kinds - known)


if __name__ == "__main__":
    main()
