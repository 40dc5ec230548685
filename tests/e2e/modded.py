#!/usr/bin/python3
"""Checkpoints of modded-nanogpt under hcgen's names: every parameter is there, and lies where the net looks for it."""
import torch

from lib import *

SIZE = sets(model__width=96, model__head_dim=16, model__rotary__dims=8, model__vocab=64, model__vocab_multiple=16,
            hc__sources__bigram__rows=320, data__bos=7)
D, V, L, HEADS, A = 96, 64, 11, 6, 10


def state(net):
    """A state dict in the original's shapes, every entry a number of its own."""
    shapes = {"embed.weight": (V, D), "lm_head.weight": (D, V), "attn_bank": (A, 4 * D, D), "mlp_bank": (L + 1, 2, 4 * D, D),
              "attn_gate_bank": (A, HEADS, 12), "ve_gate_bank": (5, HEADS, 12), "value_embeds": (5 * V, D),
              "bigram_embed.weight": (5 * V, D), "smear_gate.weight": (1, 12), "skip_gate.weight": (1, 12)}
    shapes.update({"baseline": {"scalars": (47,), "x0_lambdas": (L,)},
                   "parallel-residuals": {"scalars": (2 * L + 3 + 7,), "w_post": (2 * L, 2, 1), "resid_lambda": (2 * L,),
                                          "x0_lambda": (2 * L,), "bigram_lambda": (2 * L,)},
                   "flatten-forward": {"scalars": (2 * L + 3,), "post_lambdas": (L, 2, 2), "resid_lambdas": (L, 2),
                                       "x0_lambdas": (L,), "bigram_lambdas": (L,)},
                   "simplify-hc": {"scalars": (2 * L + 3,), "post_lambdas": (L, 2), "resid_lambdas": (L, 2),
                                   "x0_lambdas": (L,), "bigram_lambdas": (L,)}}[net])
    draw = torch.Generator().manual_seed(1)
    return {k: torch.randn(s, generator=draw) for k, s in shapes.items()}


def converted(tmp, net):
    there = state(net)
    torch.save({"model": {"_orig_mod." + k: v for k, v in there.items()}}, tmp / "c.pt")
    r = run("/usr/bin/python3", ROOT / "tools/modded.py", tmp / "c.pt", tmp / "w.st", "--net", net)
    expect(r.rc == 0, r)
    return there, {k: torch.tensor(v) for k, (_, v) in pairs(tmp / "w.st").items()}


def pairs(path):
    return {k: (v.shape, v.copy()) for k, v in read_params(path).items()}


def names_are_all(net):
    def f(tmp):
        _, here = converted(tmp, net)
        want = hcgen("check", ROOT / f"specs/{net}.yaml", *SIZE, "--params").out.split("\n")
        want = {w.split()[0]: w.split()[1] for w in want if w}
        have = {k: "x".join(map(str, v.shape)) for k, v in here.items()}
        expect(have == want, {k: (have.get(k), want.get(k)) for k in set(have) | set(want) if have.get(k) != want.get(k)})
    f.__name__ = f"{net}_has_every_parameter".replace("-", "_")
    return f


for net in ("baseline", "parallel-residuals", "flatten-forward", "simplify-hc"):
    case(names_are_all(net))


@case
def entries_lie_where_they_are_looked_for(tmp):
    """One entry of each kind, by the original's own words for it."""
    there, here = converted(tmp, "baseline")
    scalars = there["scalars"]
    for name, at, want in (
            ("head", (5, 7), there["lm_head.weight"][7, 5]),
            ("layers.5.attn.qkv", (200, 3), there["attn_bank"][5, 200, 3]),             # v of layer 5
            ("layers.7.attn.out", (4, 9), there["attn_bank"][6, 3 * D + 4, 9]),         # behind the layer without
            ("layers.6.mlp.down", (30, 2), there["mlp_bank"][6, 1, 30, 2]),
            ("layers.9.attn.value_embed", (11, 8), there["value_embeds"][3 * V + 11, 8]),
            ("layers.8.attn.value_gate", (2, 1), there["ve_gate_bank"][2, 2, 1]),
            ("layers.10.attn.gate", (1, 0), there["attn_gate_bank"][9, 1, 0]),
            ("hc.resid_lambda", (4,), scalars[4]), ("layers.7.attn.sa_lambda", (1,), scalars[11 + 15]),
            ("hc.sources.bigram.coef", (3, 0), scalars[36]), ("hc.sources.x0.coef", (3, 0), there["x0_lambdas"][3]),
            ("smear.lambda", (0,), scalars[44]), ("hc.backouts.backout.gate", (0,), scalars[45]),
            ("hc.skips.skip.gate", (0,), scalars[46])):
        expect(here[name][at] == want, name, at, here[name][at], want)
    _, lanes = converted(tmp, "flatten-forward")
    post = state("flatten-forward")["post_lambdas"]
    expect(lanes["hc.post"][15, 1] == post[7, 1, 1], "the MLP of layer 7, lane 1")


@case
def what_is_no_such_checkpoint_is_refused(tmp):
    there = state("baseline")
    for change in ({"attn_bank": None}, {"more.weight": torch.ones(2)}):
        torch.save({k: v for k, v in {**there, **change}.items() if v is not None}, tmp / "c.pt")
        r = run("/usr/bin/python3", ROOT / "tools/modded.py", tmp / "c.pt", tmp / "w.st")
        expect(r.rc == 1 and next(iter(change)) in r.err, r)


if __name__ == "__main__":
    main()
