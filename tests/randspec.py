"""Random valid specs: a seed in, the YAML of a small model out.

    randspec.py SEED [COUNT]        prints it, or several as YAML documents

Every feature of docs/spec.md has its chance, and the rules between keys are
kept: what `hcgen check` refuses here is a bug in one of the two.
"""
import copy
import random
import sys


def text(seed):
    """The spec of a seed, as YAML."""
    rng = random.Random(seed)
    tree = Spec(rng).tree(seed)
    return "".join(line + "\n" for line in layout(tree, rng))


# ---- values ---------------------------------------------------------------

class Flow(dict):
    """A map that is a value, such as {lane: 1}: never spread over lines."""


def rounded(x):
    return float(f"{x:.4g}")


def selection(rng, count, sublayers=False):
    """A selection of `count` things in any of its forms; most often everything."""
    if rng.random() < 0.45:
        return "all"
    some = sorted(rng.sample(range(count), rng.randint(1, max(1, (count + 1) // 2))))
    first = rng.randrange(count)
    forms = ["all", some, Flow({"first": first, "last": rng.randrange(first, count)}),
             Flow({"except": some})]
    if sublayers:
        forms += ["attn", "mlp"]
    if rng.random() < 0.1:
        forms += ["none", [], Flow({"except": []})]
    return rng.choice(forms)


def contiguous(rng, count):
    """(first, last, selection) of a contiguous range, in any form that can say it."""
    if count == 1 or rng.random() < 0.5:
        return 0, count - 1, "all"
    first = rng.randrange(count)
    last = rng.randrange(first, count)
    outside = [i for i in range(count) if not first <= i <= last]
    return first, last, rng.choice([Flow({"first": first, "last": last}),
                                    list(range(first, last + 1)),
                                    Flow({"except": outside})])


def chosen(sel, count):
    """The indices that a selection of layers holds."""
    if isinstance(sel, str):
        return set(range(count)) if sel == "all" else set()
    if isinstance(sel, list):
        return set(sel)
    if "except" in sel:
        return set(range(count)) - set(sel["except"])
    return set(range(sel["first"], sel["last"] + 1))


# ---- the spec -------------------------------------------------------------

class Spec:
    """One spec in the making: what later keys must agree with are attributes."""

    def __init__(self, rng):
        self.rng = rng
        self.L = rng.choice([1, 2, 2, 3, 3, 3, 4, 5])
        self.S = 2 * self.L
        self.C = 8 * rng.randint(1, 8)
        self.V = rng.randint(5, 130)
        self.n = rng.choice([1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8])
        self.first, self.last, self.range = contiguous(rng, self.L)
        self.leave = "mean"
        self.places = []        # of skips
        self.yarn = False
        self.every = False      # some parameter is updated less often

    def chance(self, p):
        return self.rng.random() < p

    def number(self, low, high):
        return rounded(self.rng.uniform(low, high))

    def tree(self, seed):
        tree = {"name": f"random_{seed}", "model": self.model(), "hc": self.hc(),
                "train": self.train(), "optim": self.optim(), "data": self.data(),
                "numerics": self.numerics(), "plan": self.plan()}
        if self.every:
            tree["train"].pop("clip", None)
        if "stages" in tree["train"] and not tree["model"].get("tied") and self.chance(0.3):
            tree["train"]["untie"] = self.rng.choice(list(tree["train"]["stages"]))
            tree["train"].pop("clip", None)
        if self.chance(0.7):
            tree["target"] = self.rng.choice(["cpu", "cpu", "h100", "h200"])
        return {k: v for k, v in tree.items() if v != {}}

    def some(self, **keys):
        """Of optional keys those that fortune gives: key=(chance, function of no argument)."""
        return {k: make() for k, (p, make) in keys.items() if self.chance(p)}

    # ---- model

    def model(self):
        rng, pick = self.rng, self.rng.choice
        D = pick([8, 8, 16, 24])
        H = pick([1, 2, 2, 3, 4])
        out = {"layers": self.L, "width": self.C, "heads": H, "vocab": self.V}
        if H * D != self.C or self.chance(0.5):
            out["head_dim"] = D
        kv = [k for k in range(1, H + 1) if H % k == 0]
        out.update(self.some(
            kv_heads=(0.6, lambda: pick(kv)),
            vocab_multiple=(0.7, lambda: pick([1, 2, 8, 16, 64])),
            tied=(0.4, lambda: self.chance(0.8)),
            embed_norm=(0.4, lambda: self.chance(0.3)),
            norm_weight=(0.5, lambda: self.chance(0.8)),
            norm_eps=(0.3, lambda: pick([1e-6, 1e-5, 1e-3])),
            softcap=(0.6, self.softcap),
            rotary=(0.8, lambda: self.rotary(D)),
            init=(0.6, lambda: self.some(
                std=(0.5, lambda: pick(["auto", 0.1, 0.02])),
                kind=(0.4, lambda: pick(["normal", "uniform"])),
                out=(0.8, lambda: pick(["zero", "random"])),
                attn_out=(0.2, lambda: pick(["zero", "random"])),
                embed_std=(0.3, lambda: pick([1.0, 0.5])),
                head_std=(0.4, lambda: pick([0.005, 0.2, 0]))))))
        out["attention"] = self.some(
            layers=(0.35, lambda: selection(rng, self.L)),
            qk_norm=(0.4, lambda: self.chance(0.4)),
            scale=(0.4, lambda: pick(["auto", 0.12, 0.3, 0.5])),
            window=(0.6, self.window),
            long_layers=(0.4, lambda: selection(rng, self.L)),
            long_window=(1 if self.yarn else 0.6, lambda: rng.randint(2 * self.yarn, 12) or "full"),
            document_mask=(0.4, lambda: self.chance(0.4)),
            gate=(0.3, lambda: self.layered(channels=(0.6 if self.C >= 12 else 1, self.gate_channels))),
            sa_lambda=(0.3, lambda: self.layered(init=(0.7, lambda: [self.number(0.3, 1.5), self.number(0.3, 1.5)]))),
            key_offset=(0.3, lambda: {"layers": selection(rng, self.L), "first": 2 * rng.randrange(D // 2)}))
        if H % 2 == 0 and out.get("kv_heads", H) == H:
            out["attention"].update(self.some(paired=(0.4, lambda: selection(rng, self.L))))
        out.update(self.some(smear=(0.3, lambda: self.gate_channels()),
                             value_embed=(0.3, lambda: self.value_embed(out.get("kv_heads", H) * D))))
        out["mlp"] = self.mlp()
        return {k: v for k, v in out.items() if v != {}}

    def softcap(self):
        form = self.rng.randrange(5)
        cap = self.rng.choice([5, 15, 23.5])
        if form == 0:
            return "none"
        if form == 1:
            return cap
        if form == 2:
            return {"kind": "tanh", **self.some(cap=(0.7, lambda: cap))}
        return {"kind": "sigmoid", **self.some(
            cap=(0.7, lambda: cap), shift=(0.5, lambda: self.number(-2, 5)),
            temperature=(0.5, lambda: self.number(2, 8)))}

    def rotary(self, D):
        kind = self.rng.choice(["none", "half", "half", "adjacent", "adjacent"])
        self.yarn = kind != "none" and self.chance(0.25)
        more = self.some(yarn=(self.yarn, lambda: self.rng.choice([True, {"on": True, "beta": 4, "growth": 0.5}])),
                         frequencies=(0.3, lambda: self.rng.choice(["power", "endpoint"])),
                         dtype=(0.3, lambda: self.rng.choice(["f32", "bf16"])),
                         base=(0.5, lambda: self.rng.choice([100, 1024.5, 10000, 500000])),
                         dims=(0.5, lambda: 2 * self.rng.randint(1, D // 2)))
        return {"kind": kind, **more} if more else kind

    def gate_channels(self):
        return self.rng.randint(1, min(self.C, 20))

    def layered(self, **more):
        """A section of which a selection of layers is the shorthand."""
        layers, more = selection(self.rng, self.L), self.some(**more)
        return {"layers": layers, **more} if more or isinstance(layers, dict) else layers

    def value_embed(self, row):
        """row: channels of a row of a table"""
        out = self.layered(channels=(0.6 if self.C >= 12 else 1, self.gate_channels), std=(0.8, lambda: 1.0))
        if not self.chance(0.4):
            return out
        out = out if isinstance(out, dict) and "except" not in out else {"layers": out}
        out["channels"] = min(2 * self.rng.randint(1, min(self.C, 20) // 2), 2 * row)
        return {**out, "split": selection(self.rng, self.L)}

    def window(self):
        one = lambda: "full" if self.chance(0.3) else self.rng.randint(1, 12)
        return one() if self.chance(0.4) else [one() for _ in range(self.rng.randint(1, 4))]

    def mlp(self):
        kind = self.rng.choice(["relu2", "gelu", "swiglu"])
        hidden = self.rng.choice([8, 13, 24, 40, 64, 96])
        more = self.some(hidden=(1 if self.C > 32 else 0.7, lambda: hidden),
                         layers=(0.35, lambda: selection(self.rng, self.L)))
        if more:
            return {"kind": kind, **more}
        return kind if self.chance(0.5) else {"kind": kind}

    # ---- lanes

    def hc(self):
        rng, pick, n = self.rng, self.rng.choice, self.n
        out = {"lanes": n}
        if n == 1 and self.chance(0.6):
            self.first, self.last, self.range = 0, self.L - 1, "all"
        if self.range != "all" or self.chance(0.1):
            out["layers"] = self.range
        elif n == 1 and self.chance(0.1):
            out["layers"] = "none"
            self.first = self.last = self.L
        if self.chance(0.7):
            self.leave = pick(["mean", "sum", Flow({"lane": rng.randrange(n)}), "keep", "keep"])
            out["leave"] = self.leave
        atend = self.lanes_at(self.S - 1)
        out.update(self.some(
            enter=(0.05, lambda: "copy"),
            output=(0.7, lambda: pick(["mean", "sum", Flow({"lane": rng.randrange(atend)}),
                                       "learned", "learned"])),
            coef_dtype=(0.5, lambda: pick(["f32", "bf16"])),
            dead=(0.25, lambda: sorted(rng.sample(range(self.S), rng.randint(0, (self.S + 1) // 2)))),
            lane_init=(0.5, self.lane_init)))
        for key in ("res", "pre", "post"):
            if self.chance(0.7 if n > 1 else 0.35):
                out[key] = self.table(key)
        if self.chance(0.6):
            out["resid_lambda"] = self.resid_lambda()
        self.reading = set()
        for key, most, make in (("sources", 3, self.source), ("skips", 3, self.skip),
                                ("backouts", 2, self.backout), ("reads", 2, self.read)):
            made = []
            for _ in range(rng.randint(0, most) if self.chance(0.65) else 0):
                # twins give equal values in the graph
                made.append(copy.deepcopy(made[-1]) if made and key != "reads" and self.chance(0.12) else make())
            if made:
                out[key] = {self.name(key, i): x for i, x in enumerate(made)}
                if self.chance(0.05):
                    out[key]["removed"] = "none"
        return out

    def name(self, key, i):
        return self.rng.choice([f"{key[0]}{i}", f"{key}_{chr(65 + i)}", "_" * (i + 1)])

    def lanes_at(self, sublayer):
        """How many lanes there are while this sublayer runs."""
        i = sublayer // 2
        return self.n if self.first <= i and (i <= self.last or self.leave == "keep") else 1

    def lane_init(self):
        kind = self.rng.choice(["copy", "split", "first"])
        return {"kind": kind, "learned": self.chance(0.7)} if self.chance(0.6) else kind

    def init(self, rows, columns, center, word=None, kinds=False):
        """Any form of init for a table; `columns` entries per row; kinds: of a row per sublayer."""
        exact = 0.5 if self.chance(0.1) else 0      # numbers that fold away

        def around():
            if self.chance(exact):
                return self.rng.choice([0, 0, 1, -1, 2])
            return self.number(center - 0.3, center + 0.3)

        forms = [around, around,
                 lambda: Flow({"ramp": [around(), around()]}),
                 lambda: [around() for _ in range(columns)],
                 lambda: [around() for _ in range(rows * columns)]]
        if kinds:
            forms += [lambda: Flow({"attn": around(), "mlp": around()})]
        if word:
            forms += [lambda: word] * 3
        if word == "identity":
            forms += [lambda: Flow({"identity": self.number(0.8, 1.1)})]
        return self.rng.choice(forms)()

    def coefficient(self, learned):
        """The keys that all coefficients share, without `init`."""
        return self.some(
            learned=(0.75, lambda: self.chance(learned)),
            sublayers=(0.35, lambda: selection(self.rng, self.S, True)),
            layers=(0.2, lambda: selection(self.rng, self.L)),
            lr_mul=(0.2, lambda: self.number(0, 5)),
            betas=(0.2, lambda: [self.number(0, 0.95), self.number(0.5, 0.999)]))

    def table(self, key):
        n = self.n
        columns = n * n if key == "res" else n
        center = {"res": 1 / n, "pre": 1 / n, "post": 1.0}[key]
        word = {"res": "identity", "pre": "round_robin", "post": None}[key]
        init = self.init(self.S, columns, center, word, kinds=True)
        if self.chance(0.2) and not isinstance(init, dict):
            return init
        out = self.coefficient(0.8)
        if self.chance(0.8):
            out["init"] = init
        if key == "post":
            out.update(self.some(outside=(0.3, lambda: self.chance(0.8))))
        return out

    def resid_lambda(self):
        granularity = self.rng.choice(["none", "layer", "sublayer", "lane", "lane"])
        rows, columns = {"layer": (self.L, 1), "lane": (self.S, self.n)}.get(
            granularity, (self.S, 1))
        if self.chance(0.15):
            return granularity
        out = {"granularity": granularity, **self.coefficient(0.75), **self.some(
            site=(0.6, lambda: self.rng.choice(["at_write", "before_read"])))}
        # without a table no list has the right length
        if granularity != "none" and self.chance(0.8):
            out["init"] = self.init(rows, columns, 1.0, kinds=granularity != "layer")
        return out

    def source(self):
        rng, pick = self.rng, self.rng.choice
        kind = pick(["x0", "bigram"])
        out = {"kind": kind, **self.coefficient(0.8), **self.some(
            granularity=(0.5, lambda: pick(["layer", "sublayer"])),
            shared=(0.5, lambda: self.chance(0.6)),
            site=(0.6, lambda: pick(["at_write", "before_read", "on_branch"])),
            detach=(0.4, lambda: self.chance(0.6)),
            first=(0.6, lambda: pick(["in_place", "lane_init", "both"])))}
        if kind == "bigram":
            # the default has 1024 rows
            out.update(self.some(rows=(0.95, lambda: pick([2, 3, 17, 64, 101])),
                                 table_std=(0.4, lambda: pick([0, 0.5])),
                                 hash=(0.4, lambda: pick(["clean", "quirk", "quirk"])),
                                 signs=(0.4, lambda: pick([0, 1, 5, 8192]))))
        if out.get("site") != "on_branch":
            out.update(self.some(lane=(0.25, lambda: pick(["all", rng.randrange(self.n), rng.randrange(self.n)]))))
        layer = out.get("granularity") == "layer"
        one = out.get("shared") or out.get("site") == "on_branch" or isinstance(out.get("lane"), int)
        if self.chance(0.8):
            out["init"] = self.init(self.L if layer else self.S, 1 if one else self.n, 0.1, kinds=not layer)
        return out

    # ---- skips

    def gate(self):
        init = self.number(-1.5, 1.5)
        if self.chance(0.25):
            return init
        kind = self.rng.choice(["scalar", "sigmoid", "token", "token"])
        out = {"kind": kind, **self.some(init=(0.8, lambda: init),
                                         learned=(0.5, lambda: self.chance(0.6)))}
        if kind == "token" and (self.C < 12 or self.chance(0.7)):
            out["channels"] = self.rng.randint(1, self.C)
        return out

    def point(self, place, words, when):
        """The point that is number `place` in the order of the computation."""
        s = place // 2
        lane = self.rng.choice(words + [self.rng.randrange(self.lanes_at(s))] * 2)
        out = {"sublayer": s, "lane": lane, "when": ("before", "after")[place % 2]}
        if out["lane"] in (0, "all") and lane == (0 if words == ["mean"] else "all") \
                and self.chance(0.5):
            del out["lane"]
        if out["when"] == when and self.chance(0.5):
            del out["when"]
        return Flow(out)

    def skip(self):
        last = 2 * self.S - 1
        a = self.rng.randrange(last)
        if self.places and self.chance(0.4):    # where another skip begins or ends
            a = self.rng.choice(self.places)
        if a == last or self.places and self.chance(0.2):
            b = self.rng.choice([p for p in self.places if p > 0])
            a = self.rng.randrange(b)
        else:
            b = self.rng.randrange(a + 1, last + 1)
        self.places += [a, b]
        out = {"from": self.point(a, ["mean"], "after"), "to": self.point(b, ["all"], "before")}
        if self.chance(0.85):
            out["gate"] = self.gate()
        elif self.C < 12:
            out["gate"] = 0.5
        return out

    def backout(self):
        out = {"from": self.point(self.rng.randrange(2 * self.S), ["mean"], "after")}
        if self.chance(0.85):
            out["gate"] = self.gate()
        return out

    def read(self):
        """A value for some of the sublayers behind it that no other read has."""
        place = self.rng.randrange(2 * self.S - 1)
        behind = [s for s in range(self.S) if s >= place // 2 + place % 2 and s not in self.reading]
        some = sorted(self.rng.sample(behind, self.rng.randint(0, min(4, len(behind)))))
        self.reading |= set(some)
        return {"from": self.point(place, ["mean"], "after"), "sublayers": some}

    # ---- the rest

    def stage(self, extends):
        rng = self.rng
        out = {"steps": rng.randint(1, 3)} if extends else self.some(share=(0.4, lambda: rng.choice([1, 2, 1.5])))
        out.update(self.some(lr_mul=(0.4, lambda: self.number(0.3, 2)), max_doc=(0.2, lambda: rng.randint(0, 30))))
        seq = self.seq
        if self.chance(0.6):
            seq, micro = rng.randint(1, 40), rng.choice([1, 2])
            out.update(seq_len=seq, micro_batches=micro, tokens_per_step=seq * micro * rng.randint(1, 3))
        window = lambda: rng.randint(1, seq)
        out.update(self.some(window=(0.4, lambda: [window(), window()]), long_window=(0.5, window)))
        if self.chance(0.5):
            weight = lambda: rng.randint(0, 64) / 64        # what float32 holds
            out["targets"] = [weight() for _ in range(rng.randint(1, 4))]
            out.update(self.some(targets_end=(0.6, lambda: [weight() for _ in out["targets"]])))
        return out

    def stages(self):
        count = self.rng.randint(1, 3)
        parts = {f"part{i}": self.stage(False) for i in range(count)}
        return {**parts, **({"more": self.stage(True)} if self.chance(0.4) else {})}

    def validation(self, seq):
        length = self.rng.choice([seq, self.rng.randint(1, 40)])
        out = {"val_seq_len": length, "val_batch": length * self.rng.randint(1, 3)}
        return {**out, **self.some(final=(0.5, lambda: {"long_window": self.rng.randint(1, length)}))}

    def train(self):
        rng = self.rng
        seq, micro = rng.randint(1, 40), rng.choice([1, 1, 2])
        steps = rng.randint(2, 20)
        self.seq = seq
        stages = self.stages() if self.chance(0.4) else None
        if stages:
            steps = max(steps, 7)       # a step for every share
        return {**({"stages": stages} if stages else {}), **(self.validation(seq) if self.chance(0.3) else {}),
                **self.some(loss_scale=(0.2, lambda: rng.choice(["mean", 0.25, 0.01]))),
                "seq_len": seq, "tokens_per_step": seq * rng.randint(1, 3) * micro,
                "steps": steps,
                **({"micro_batches": micro} if micro > 1 or self.chance(0.3) else {}),
                **self.some(
                    lr=(0.5, lambda: rng.choice([1e-3, 3e-3, 0.01])),
                    warmup=(0.4, lambda: rng.randint(0, steps)),
                    cooldown=(0.4, lambda: self.number(0, 1)),
                    cooldown_kind=(0.5, lambda: rng.choice(["constant", "linear", "cosine"])),
                    floor=(0.3, lambda: self.number(0, 1)),
                    clip=(0.5, lambda: rng.choice([0, 0.1, 1.0])),
                    seed=(0.4, lambda: rng.randrange(1 << 40)))}

    def optim(self):
        match = ["*", "embed", "hc.*", "layers.?.attn.*", "*norm", "hc.s*.gate*", "*.coef",
                 "*e*", "layers.0.*", "nothing"]
        rng = self.rng
        matrices = ["layers.*.attn.qkv|layers.*.attn.out", "layers.*.mlp.up|layers.*.mlp.down", "layers.0.*.down"]
        group = lambda: {"match": rng.choice(match), **self.some(
            kind=(0.2, lambda: rng.choice(["adamw", "cautious_adam"])),
            lr=(0.2, lambda: rng.choice([1e-3, 0.02])),
            lr_mul=(0.5, lambda: self.number(0, 4)),
            betas=(0.4, lambda: [self.number(0, 0.95), self.number(0.5, 0.999)]),
            eps=(0.3, lambda: self.rng.choice([1e-8, 1e-10, 1e-6])),
            weight_decay=(0.4, lambda: self.number(0, 0.2)))}
        groups = {f"g{i}": group() for i in range(self.rng.randint(0, 3))}
        if self.chance(0.4):
            groups["muon"] = {"match": rng.choice(matrices), "kind": "normuon", "lr": 0.02,
                              **self.some(weight_decay=(0.5, lambda: rng.choice([0, 1.2])), lr_mul=(0.3, lambda: 2))}
        self.every = self.chance(0.25)
        if self.every and "muon" in groups:
            groups["muon"].update(self.some(every=(0.6, lambda: rng.choice([1, 3]))))
        return {**self.some(kind=(0.3, lambda: rng.choice(["adamw", "cautious_adam"])),
                            every=(self.every, lambda: rng.choice([2, 2, 3])),
                            normuon=(0.3, lambda: {"momentum": 0.9, "momentum_warmup": rng.randint(0, 5),
                                                   "momentum_cooldown": rng.randint(0, 3)}),
                            betas=(0.4, lambda: [self.number(0, 0.95), self.number(0.5, 0.999)]),
                            eps=(0.3, lambda: self.rng.choice([1e-8, 1e-10])),
                            weight_decay=(0.5, lambda: self.number(0, 0.2))),
                **({"groups": groups} if groups else {})}

    def data(self):
        inside = self.chance(0.8)
        out = {"train": "train.bin", "shuffle": False}
        if inside:
            out["bos"] = self.rng.randrange(self.V)
            out.update(self.some(packing=(0.4, lambda: self.rng.choice(["stream", "documents"])),
                                 val_packing=(0.2, lambda: self.rng.choice(["stream", "documents"])),
                                 max_doc=(0.2, lambda: self.rng.randint(0, 30))))
        return out

    def numerics(self):
        return self.some(storage=(0.7, lambda: self.rng.choice(["f32", "bf16"])),
                         gemm=(0.7, lambda: self.rng.choice(["f32", "bf16"])),
                         params=(0.2, lambda: self.rng.choice(["f32", "bf16"])))

    def plan(self):
        return self.some(search=(0.2, lambda: self.rng.choice(["auto", "naive"])),
                         store=(0.2, lambda: self.rng.choice(["auto", "lanes", "parts", "none"])),
                         form=(0.2, lambda: self.rng.choice(["auto", "raw", "normed"])),
                         sources=(0.3, lambda: self.rng.choice(["auto", "inline", "precompute"])),
                         gradients=(0.2, lambda: self.rng.choice(["auto", "now", "deferred"])),
                         identities=(0.1, lambda: "none"),
                         collapse=(0.1, lambda: "none"),
                         scales=(0.5, lambda: self.rng.choice(["auto", "stream", "weights", "weights"])),
                         recompute=(0.3, lambda: self.rng.choice(["auto", "none", "act"])),
                         head_chunk=(0.5, lambda: self.rng.choice(["auto", 1, 2, 5, 7, 16, 33])))


# ---- YAML -----------------------------------------------------------------

def scalar(v):
    if isinstance(v, bool):
        return "true" if v else "false"
    return f'"{v}"' if isinstance(v, str) and set(v) & set("*?") else str(v)


def flow(v):
    if isinstance(v, dict):
        return "{" + ", ".join(f"{k}: {flow(x)}" for k, x in v.items()) + "}"
    if isinstance(v, list):
        return "[" + ", ".join(map(flow, v)) + "]"
    return scalar(v)


def layout(tree, rng, indent="", prefix=""):
    """Lines of a map: sections as blocks, in one line, or with dotted keys."""
    for key, v in tree.items():
        key = prefix + key
        if not isinstance(v, dict) or isinstance(v, Flow) or not v:
            yield f"{indent}{key}: {flow(v)}"
            continue
        style = rng.choice(["block", "block", "block", "flow", "dotted"] if indent
                           else ["block", "block", "block", "dotted"])
        if style == "flow":
            yield f"{indent}{key}: {flow(v)}"
        elif style == "dotted":
            yield from layout(v, rng, indent, key + ".")
        else:
            yield f"{indent}{key}:"
            yield from layout(v, rng, indent + "  ")


if __name__ == "__main__":
    first = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for number in range(first, first + count):
        print(("---\n" if number > first else "") + text(number), end="")
