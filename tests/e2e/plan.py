#!/usr/bin/python3
"""What the planner finds, says and pins: `hcgen plan` and `hcgen diff`."""
import re

from lib import *

SINGLE, TWO = ROOT / "specs/single.yaml", ROOT / "specs/two-lane.yaml"
NO_SOURCES = "{x0: none, e: none}"
KNOBS = {"store": ["lanes", "parts", "none"], "form": ["raw", "normed"], "sources": ["inline", "precompute"],
         "gradients": ["now", "deferred"], "identities": ["none"], "collapse": ["none"],
         "scales": ["stream", "weights"], "recompute": ["none", "act"],
         "search": ["naive"], "risky": ["{divide: true}"]}


def glue(*words):
    """U per steady layer, forward and backward, and bytes per token of the net."""
    out = hcgen("plan", *words).out
    m = re.search(r"^lane glue +forward +([\d.]+) +backward +([\d.]+) +U per steady layer +total (\d+) bytes/token", out, re.M)
    expect(m, out)
    return float(m[1]), float(m[2]), int(m[3])


@case
def lanes_cost_what_the_algebra_demands(tmp):
    """Counts at or under the hand plans; the hundredths are numbers per row.  All learned
    has 0.28 of the embedding's kernel spread over the layers (docs/bench/plan.md)."""
    learned = sets(hc__res__learned="true", hc__pre__learned="true")
    for what, words, forward, backward in [
            ("one lane", [SINGLE], 8.02, 9.40),
            ("two lanes", [TWO], 11.02, 16.40),
            ("sources everywhere", [TWO, *sets(hc__sources__x0__sublayers="all", hc__sources__e__sublayers="all")], 11.02, 16.40),
            ("four lanes, no sources", [TWO, *sets(hc__lanes=4, hc__sources=NO_SOURCES)], 11, 18.3),
            ("four lanes", [TWO, *sets(hc__lanes=4)], 13, 20.4),
            ("all learned", [TWO, *learned, *sets(hc__sources=NO_SOURCES)], 12.02, 18.3)]:
        f, b, total = glue(*words)
        expect(f <= forward and b <= backward, what, f, b)
        naive = glue(*words, *sets(plan__search="naive"))
        expect(total < naive[2], what, total, naive)


@case
def sources_cost_the_same_wherever_they_enter(tmp):
    """On the branch of a single stream what they cost at its write, forward and backward; of two lanes no more,
    and one lane's less.  Mixed sites take no vectors that one of them would not."""
    both = lambda site: sets(hc__sources__x0__site=site, hc__sources__e__site=site)
    once = sets(hc__resid_lambda__site="at_write", hc__post="{init: 1.0, learned: true}", hc__sources__x0__sublayers="attn",
                hc__sources__e__sublayers="attn")
    for scales in "stream", "weights":
        one = [glue(SINGLE, *once, *both(site), *sets(plan__scales=scales)) for site in ("at_write", "on_branch")]
        expect(one[1] <= one[0], scales, one)
    two = glue(TWO)
    for words in both("on_branch"), sets(hc__sources__x0__site="on_branch"), sets(hc__sources__e__site="on_branch"):
        f, b, total = glue(TWO, *words)
        expect(f <= two[0] and b <= two[1] + 0.1 and total <= 1.01 * two[2], words, f, b, two)
    f, b, total = glue(TWO, *sets(hc__sources__x0__lane=0, hc__sources__e__lane=0))
    expect(f <= two[0] - 1 and b <= two[1] - 0.9, f, b, two)


@case
def branches_that_read_one_value_share_its_norm(tmp):
    """Four attentions that read what the lane was after layer 3: three norms fewer to write, and lanes between them
    that nobody reads but the end are not laid down."""
    plan = hcgen("plan", SINGLE, *sets(hc__reads="{c: {from: {sublayer: 7}, sublayers: [8, 10, 12, 14]}}")).out
    train = plan[plan.index("program train"):plan.index("program eval")]
    norms = {int(i) for i in re.findall(r"layers\.(\d+) lanes_(?:mlp_to_)?attn_fwd", train)}
    expect(4 in norms and not norms & {5, 6, 7}, norms)
    for spec, words in (SINGLE, []), (TWO, []):
        f, b, total = glue(spec, *sets(hc__reads="{c: {from: {sublayer: 7}, sublayers: [8, 10, 12, 14]}}"))
        g = glue(spec)
        expect(f <= g[0] - 1 and b <= g[1] - 1 and total < g[2], spec, (f, b, total), g)


@case
def nothing_forced_is_better(tmp):
    """Of all single choices forced, none moves less than what the search found."""
    for spec in SINGLE, TWO, ROOT / "specs/tiny.yaml":
        best = glue(spec)[2]
        for key, words in KNOBS.items():
            for word in words:
                if key not in ("recompute", "risky"):
                    expect(best <= 1.002 * glue(spec, *sets(**{"plan__" + key: word}))[2], spec.name, key, word)


@case
def every_forced_choice_is_the_same_model(tmp):
    for key, words in KNOBS.items():
        for word in words:
            r = hcgen("verify", REFERENCE, "--device", "cpu", *sets(**{"plan__" + key: word}))
            expect(r.out.rstrip().endswith(": verified"), key, word, r)


@case
def factors_of_products_in_the_matrices(tmp):
    """One lane, scaled down, with lambda and post both learned, and so two factors in a matrix."""
    small = sets(model__layers=4, model__width=64, model__heads=2, model__vocab=256, model__rotary__dims=16, data__bos=0,
                 hc__sources__e__rows=1000, hc__post="{learned: true, init: 0.9}", hc__coef_dtype="bf16")
    for device in "cpu", "simt":
        out = {}
        for word in "stream", "weights":
            out[word] = hcgen("verify", SINGLE, *small, "--rows", 64, "--seq", 32, "--device", device, *sets(plan__scales=word)).out
            expect(out[word].rstrip().endswith("verified"), device, word, out[word][-500:])
    # a spec that scales its matrices itself: the versions are told apart
    baseline = ROOT / "specs/baseline.yaml"
    expect(re.search(r"^plan.scales +stream +[\d.]+ +\+\d", hcgen("plan", baseline, "--why").out, re.M), baseline)
    expect("program train scales weights" in lock(tmp, baseline).read_text(), baseline)
    plan = hcgen("plan", SINGLE, *small, *sets(plan__scales="weights")).out
    expect(len(re.findall(r"down scaled bwd +scaled_bwd__2 ", plan)) == 3, re.findall(".*scaled.*", plan))
    expect("scaled" not in hcgen("plan", SINGLE, *small, *sets(plan__scales="stream")).out)


@case
def why_shows_winner_and_runner_up(tmp):
    out = hcgen("plan", TWO, "--why").out
    rows = re.findall(r"^plan\.(\w+) +(\w+) +([\d.]+) +([+-][\d.]+)$", out, re.M)
    expect(len(rows) >= 10, out)
    expect(all(float(more) >= -0.01 * float(u) for _, _, u, more in rows), out)
    expect(max(float(r[3]) for r in rows) > 100, out)
    expect(re.search(r"^  bwd whole +dlane0 of layers\.\d+\.attn +\+\d", out, re.M), out)


@case
def dot_draws_the_plan(tmp):
    out = hcgen("plan", REFERENCE, "--dot").out
    steps = int(re.search(r"program train: (\d+) steps", hcgen("plan", REFERENCE).out)[1])
    expect(len(re.findall(r"^  s\d+ \[label", out, re.M)) == steps, out)
    edges = [(int(a), int(b)) for a, b in re.findall(r"^  s(\d+) -> s(\d+)", out, re.M)]
    expect(len(edges) > steps and all(a < b < steps for a, b in edges), edges[:5])
    expect(out.startswith("//") and out.rstrip().endswith("}"), out[-200:])


def lock(tmp, spec, *words):
    path = tmp / "plan.lock"
    hcgen("plan", spec, "--lock", path, *words)
    return path


def kernels(spec, out, *words):
    hcgen("emit", spec, "-o", out, *words)
    return {p.name: p.read_bytes() for p in (out / "kernels").iterdir()}


@case
def a_lock_pins_the_plan(tmp):
    """Also one that no search would find."""
    for n, words in enumerate(([], sets(plan__store="lanes"), sets(plan__sources="precompute"))):
        path = lock(tmp, TWO, *words)
        want = kernels(TWO, tmp / f"want{n}", *words)
        expect(kernels(TWO, tmp / f"locked{n}", *sets(plan__lock=f'"{path}"')) == want, words)


@case
def a_lock_of_another_model_is_refused(tmp):
    path = lock(tmp, TWO)
    r = hcgen("plan", SINGLE, *sets(plan__lock=f'"{path}"'), want=2)
    expect("plan.lock is of another model" in r.err and "slots" in r.err, r)
    text = path.read_text()
    for bad in "", text.replace("lock 2", "lock 1"), text.replace("program eval", "program evil"), text.replace("part", "prat"), \
            text.replace("store\n", "store\n9999 1 part\n", 1), text[:len(text) // 2], text.replace("slots", "slits"):
        path.write_text(bad)
        r = hcgen("plan", TWO, *sets(plan__lock=f'"{path}"'), want=2)
        expect("plan.lock" in r.err, bad[:80], r)
    expect("cannot read" in hcgen("plan", TWO, *sets(plan__lock='"/nowhere/lock"'), want=2).err)


@case
def a_limit_on_memory_is_kept(tmp):
    def together(*words):
        return int(re.search(r"^ +(\d+)  acts$", hcgen("plan", TWO, *words).out, re.M)[1])
    free = together()
    full = int(re.search(r"^ +(\d+)  together$", hcgen("plan", TWO).out, re.M)[1])
    tight = together(*sets(plan__memory=(full - 2e9) / 1e9))
    expect(tight <= free - 2e9, free, tight)
    expect(together(*sets(plan__memory=2 * full / 1e9)) == free)
    r = hcgen("plan", TWO, *sets(plan__memory=1), want=2)
    expect(re.search(r"plan.memory is 1 GB; the program train needs [\d.]+ GB at least", r.err), r)
    # of two versions of a program the one that fits, unless the other is asked for
    stream, weights = (float(re.search(r"needs ([\d.]+) GB at least", hcgen("plan", SINGLE, *sets(
        plan__memory=1, plan__scales=word), want=2).err)[1]) for word in ("stream", "weights"))
    expect(weights < stream, weights, stream)
    between = sets(plan__memory=(stream + weights) / 2)
    expect(glue(SINGLE, *between) == glue(SINGLE, *between, *sets(plan__scales="weights")))
    hcgen("plan", SINGLE, *between, *sets(plan__scales="stream"), want=2)


@case
def diff_tells_rounding_from_model(tmp):
    def spec(name, text, base=TWO):
        (tmp / base.name).write_text(base.read_text())
        (tmp / SINGLE.name).write_text(SINGLE.read_text())
        (tmp / name).write_text(f"name: {name[:-5]}\nextends: {base.name}\n{text}\n")
        return tmp / name
    a, b = spec("a.yaml", ""), spec("b.yaml", "plan: {store: lanes}")
    c, d = spec("c.yaml", "plan: {head_chunk: 9984}"), spec("d.yaml", "hc.post.betas: [0.8, 0.95]")
    r = hcgen("diff", a, a).out
    expect("same model, same kernels" in r, r)
    r = hcgen("diff", a, b).out
    expect("same model, other rounding" in r and "+ plan.store: lanes" in r and "~ lanes_" in r, r)
    expect("model\n" not in r.split("beside the model")[0].split("\n", 1)[1], r)
    expect("same model, same kernels" in hcgen("diff", a, c).out)
    r = hcgen("diff", a, d).out
    expect("other model" in r and "- hc.post.betas: [0.9, 0.95]" in r and "+ hc.post.betas: [0.8, 0.95]" in r, r)
    expect(len([x for x in r.splitlines() if "hc." in x]) == 2, r)


@case
def one_spec_has_one_plan(tmp):
    expect(hcgen("plan", TWO).out == hcgen("plan", TWO).out)
    expect(lock(tmp, TWO).read_bytes() == lock(tmp, TWO).read_bytes())


main()
