"""The model of a spec as PyTorch operations, in any dtype.

    model = Model(spec, torch.float64)
    model.enter(stage)                              # else it is in the first one
    loss = model.loss(params, tokens, targets)      # name -> tensor, [B, N], [B, N]

Lanes are a Python list of [B, N, C] tensors: n of them inside the range of
hc.layers (and after it with `leave: keep`), one elsewhere.  A coefficient is
a float where it is frozen, and then 0 and 1 cost nothing, or a 0-dimensional
tensor where it is learned.
"""
import numpy as np
import torch
import torch.nn.functional as F

import branches
import fp8
from branches import rmsnorm
from parameters import parameters
from stages import stages


class _RoundBf16(torch.autograd.Function):
    """Round to bfloat16, staying in the type; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, x):
        return x.float().bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g


def combine(terms):
    """Sum of coefficient * tensor over (coefficient, tensor) pairs; None if nothing is left."""
    total = None
    for c, x in terms:
        if isinstance(c, float) and c == 0:
            continue
        term = x if isinstance(c, float) and c == 1 else x * c
        total = term if total is None else total + term
    return total


def acting(spec, coef, per_layer=False):
    """The live sublayers at which a coefficient acts; per layer, the first of each."""
    chosen = [s for s in live(spec) if s in coef.sublayers and s // 2 in coef.layers]
    if per_layer:
        firsts = {}
        for s in chosen:
            firsts.setdefault(s // 2, s)
        chosen = firsts.values()
    return frozenset(chosen)


def live(spec):
    """Sublayers that do anything, in order."""
    layers = (spec.model.attention.layers, spec.model.mlp.layers)
    return [s for s in range(spec.sublayers)
            if s // 2 in layers[s % 2] and s not in spec.hc.dead]


def wrapped(x):
    """int64 values as 32-bit signed integers have them."""
    return (x + 2 ** 31) % 2 ** 32 - 2 ** 31


def bigram_rows(tokens, rows, quirk=False):
    """[B, N] row numbers of the bigram table; tokens are int64 [B, N]."""
    g = torch.full_like(tokens, rows - 1)
    before = tokens[:, :-1].clone()
    if quirk:
        before[:, :1] = rows - 1        # what row 0's number has overwritten
    # products stay below 2^45: int64 agrees with uint64
    own, before = 36313 * tokens[:, 1:], 27191 * before
    if quirk:
        own, before = wrapped(own), wrapped(before)
    g[:, 1:] = (own ^ before) % (rows - 1)
    return g


def mix32(h):
    """The 32-bit integer mix of an array of uint32."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85ebca6b)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xc2b2ae35)
    return h ^ (h >> np.uint32(16))


def bigram_signs(tokens, count, width):
    """[B, N, width] of +-1, each position's row of the fixed table [count, width]."""
    p = torch.zeros_like(tokens)
    p[:, 1:] = (tokens[:, 1:] ^ tokens[:, :-1]) % count
    # tokens have 16 bits and a width is at most 2^14: entries have numbers below 2^30
    entry = p[..., None] * width + torch.arange(width)
    odd = mix32(entry.numpy().astype(np.uint32)) & np.uint32(1)
    return 1 - 2 * torch.from_numpy(odd.astype(np.int8))


class Coefficients:
    """Rows of a table as lists of floats (frozen) or 0-dim tensors (learned)."""

    def __init__(self, spec, params, name, coef, per_layer=False):
        self.at = acting(spec, coef, per_layer)
        self.per_layer = per_layer
        self.lane = coef.get("lane", "all")
        rounded = spec.hc.coef_dtype == "bf16"
        table = params[name] if coef.learned else torch.from_numpy(coef.init)
        table = _RoundBf16.apply(table) if rounded else table
        flat = table.reshape(-1)
        flat = list(flat.unbind()) if coef.learned else flat.tolist()
        width = len(flat) // coef.shape[0]
        self.rows = [flat[i:i + width] for i in range(0, len(flat), width)]

    def row(self, s, n):
        """The row of sublayer s, one entry per lane (a single entry serves all)."""
        row = self.rows[s // 2 if self.per_layer else s]
        if self.lane != "all":
            return [row[0] if k == self.lane else 0.0 for k in range(n)]
        return (row * n if len(row) == 1 else row)[:n]

    def single(self, s):
        """The one entry of sublayer s, of a source that no lane has."""
        return self.rows[s // 2 if self.per_layer else s][0]

    def matrix(self, s, n):
        """The row of `res` as n lists, the output lane first."""
        row = self.rows[s]
        return [row[k * n:(k + 1) * n] for k in range(n)]


class Run:
    """What one forward pass carries from sublayer to sublayer."""

    def __init__(self, params, tokens):
        self.params = params
        self.tokens = tokens
        self.masks = {}         # (window, paired) -> term of the scores
        self.documents = None   # [B, N]
        self.x0 = None          # [B, N, C]
        self.sources = {}       # name -> [B, N, C], detached where the spec says so
        self.tables = {}        # res, pre, post, resid_lambda, sources.NAME
        self.values = {}        # (skips, backouts or reads, name) -> [B, N, C]


class Model:
    def __init__(self, spec, dtype=torch.float64):
        self.spec = spec
        self.dtype = dtype
        self.params = parameters(spec)
        self.live = frozenset(live(spec))
        self.readers = {s: name for name, read in spec.hc.reads.items() for s in read.sublayers}
        self.enter(stages(spec)[0])

    # ---- entry points

    def enter(self, stage):
        """Windows, frequencies and scale are those of this stage."""
        self.stage = stage
        self._rotary = {}       # paired -> tables of one length, kept between batches

    def loss(self, params, tokens, targets, weights=(1.0,)):
        """Mean over the positions of the row losses as training has them; tokens, targets
        int64 [B, N], weights those of the tokens that follow."""
        y, weights = self._normed(params, tokens), list(weights)
        if self.spec.numerics.head == "fp8":
            total = fp8.loss_sum(y, self._head(params), targets, weights, self.spec)
        else:
            total = branches.loss_sum(self._scores(params, y), targets, weights)
        return total / targets.numel()

    def validation_loss(self, params, tokens, targets):
        """The mean cross entropy of the next token, no product in FP8."""
        z = self._scores(params, self._normed(params, tokens))
        return branches.loss_sum(z, targets, [1.0]) / targets.numel()

    def logits(self, params, tokens):
        """[B, N, V] of training, after the softcap, at least float32."""
        y = self._normed(params, tokens)
        if self.spec.numerics.head != "fp8":
            return self._scores(params, y)
        l = fp8.logits(y, self._head(params), self.spec.numerics.fp8)
        return branches.softcap(l, self.spec.model.softcap)

    def _normed(self, params, tokens):
        """What the head reads."""
        out = self.trunk(self._cast(params), tokens)
        return rmsnorm(out, self.spec.model.norm_eps, params.get("final_norm"))

    def _head(self, params):
        """The rows of tokens, in the parameter's own type."""
        m = self.spec.model
        table = params["embed" if m.tied else "head"]
        return table[:m.vocab] if m.vocab < self.spec.padded_vocab else table

    def _scores(self, params, y):
        l = F.linear(y, self._matrix(self._head(params)))
        return branches.softcap(l.float() if l.dtype == torch.bfloat16 else l,
                                self.spec.model.softcap)

    def _matrix(self, t):
        return t.to(self.dtype)

    def _cast(self, params):
        """Matrices in the run's type; coefficients and norm weights as they are."""
        if self.dtype != torch.bfloat16:
            return params
        cast = {p.name for p in self.params if p.role in ("matrix", "gate_weight")}
        cast.add("hc.lane_init")
        return {k: self._matrix(v) if k in cast else v for k, v in params.items()}

    # ---- the stream

    def trunk(self, params, tokens):
        """[B, N, C] from the embedding to before the final norm."""
        spec, first, last = self.spec, *self._range()
        run = self._start(params, tokens)
        lanes = self._lane_init(run, spec.hc.lanes if first == 0 else 1)
        for s in range(spec.sublayers):
            if s == 2 * first and s > 0:
                lanes = lanes * spec.hc.lanes       # enter: copy
            lanes = self._sublayer(run, s, lanes)
            if s == 2 * last + 1 and s + 1 < spec.sublayers:
                lanes = self._leave(lanes)
        return self._finish(run, lanes, last)

    def _range(self):
        """First and last layer with n lanes; -1, -1, which matches no layer, if there is none."""
        inside = self.spec.hc.layers
        return (inside[0], inside[-1]) if inside else (-1, -1)

    def _start(self, params, tokens):
        """The embedding, the sources and the tables of coefficients."""
        spec, m, run = self.spec, self.spec.model, Run(params, tokens)
        if m.attention.document_mask:
            run.documents = (tokens == spec.data.bos).cumsum(1)
        x = F.embedding(tokens, params["embed"])
        if m.smear.channels:
            x = branches.smear(x, params["smear.weight"], params["smear.lambda"][0])
        run.x0 = rmsnorm(x, m.norm_eps) if m.embed_norm else x
        for name, src in spec.hc.sources.items():
            run.sources[name] = self._source(run, name, src)
            run.tables["sources." + name] = Coefficients(
                spec, params, f"hc.sources.{name}.coef", src, src.granularity == "layer")
        for key in ("res", "pre", "post", "resid_lambda"):
            coef = spec.hc[key]
            if coef.shape:
                run.tables[key] = Coefficients(spec, params, "hc." + key, coef,
                                               coef.get("granularity") == "layer")
        return run

    def _source(self, run, name, src):
        """The source's vectors [B, N, C]."""
        if src.kind == "x0":
            x = run.x0
        else:
            x = F.embedding(bigram_rows(run.tokens, src.rows, src.hash == "quirk"),
                            run.params[f"hc.sources.{name}.table"])
            if src.signs:
                x = x * bigram_signs(run.tokens, src.signs, x.shape[-1]).to(x.dtype)
        return x.detach() if src.detach else x

    def _lane_init(self, run, n):
        hc = self.spec.hc
        share = {"copy": [1.0] * n, "split": [1.0 / n] * n, "first": [1.0] + [0.0] * (n - 1)}
        lanes = []
        for k, c in enumerate(share[hc.lane_init.kind]):
            terms = [(c, run.x0)]
            if hc.lane_init.learned:
                terms.append((1.0, run.params["hc.lane_init"][k]))
            terms += [(row[k], x) for row, x in self._first_terms(run, n)]
            total = combine(terms)
            total = run.x0 * 0.0 if total is None else total
            lanes.append(total.expand_as(run.x0))
        return lanes

    def _first_terms(self, run, n):
        """(row, vectors) of the sources that sublayer 0 adds in the lane init."""
        for name, src in self.spec.hc.sources.items():
            table = run.tables["sources." + name]
            if src.first != "in_place" and 0 in table.at:
                yield table.row(0, n), run.sources[name]

    def _leave(self, lanes):
        leave = self.spec.hc.leave
        return lanes if leave == "keep" else [self._reduce(lanes, leave)]

    def _reduce(self, lanes, how):
        if isinstance(how, int):
            return lanes[how]
        return combine([(1 / len(lanes) if how == "mean" else 1.0, x) for x in lanes])

    def _finish(self, run, lanes, last):
        """The output reduction, where lanes reach the end, and the backouts."""
        spec, out = self.spec, lanes[0]
        if last >= 0 and (last == spec.model.layers - 1 or spec.hc.leave == "keep"):
            if spec.hc.output == "learned":
                out = combine(list(zip(run.params["hc.output"].unbind(), lanes)))
            else:
                out = self._reduce(lanes, spec.hc.output)
        for name, backout in spec.hc.backouts.items():
            gate = self._gate(run, "backouts", name, backout.gate)
            out = out - run.values["backouts", name] * gate
        return out

    # ---- a sublayer

    def _sublayer(self, run, s, lanes):
        """Steps 1 to 6 of sublayer s; a dead one only lets skips look at the lanes."""
        alive = s in self.live
        self._capture(run, "backouts", s, "before", lanes)
        self._capture(run, "reads", s, "before", lanes)
        for name, skip in self.spec.hc.skips.items():
            self._take(run, "skips", name, skip, s, "before", lanes)
            lanes = self._enter(run, name, skip, s, "before", lanes) if alive else lanes
        if alive:
            lanes = self._terms(run, s, "before_read", lanes)
            h = self._branch(run, s, self._read(run, s, lanes))
            h = combine([(1.0, h), *self._branch_terms(run, s)])
            lanes = self._write(run, s, lanes, h)
            for name, skip in self.spec.hc.skips.items():
                lanes = self._enter(run, name, skip, s, "after", lanes)
        self._capture(run, "skips", s, "after", lanes)
        self._capture(run, "backouts", s, "after", lanes)
        self._capture(run, "reads", s, "after", lanes)
        return lanes

    def _tables_act(self, s, key):
        """Whether res, pre or post speak at the layer of s at all."""
        first, last = self._range()
        inside = first >= 0 and first <= s // 2 <= last
        kept = first >= 0 and s // 2 > last and self.spec.hc.leave == "keep"
        if not inside and not kept and key == "post":
            return self.spec.hc.post.outside
        return inside or kept and key == "pre"

    def _row(self, run, key, s, n):
        """The row of pre or post, or None where it does not act."""
        if not self._tables_act(s, key) or s not in run.tables[key].at:
            return None
        return run.tables[key].row(s, n)

    def _read(self, run, s, lanes):
        if s in self.readers:
            return run.values["reads", self.readers[s]]
        n = len(lanes)
        pre = self._row(run, "pre", s, n) or [1 / n] * n
        u = combine(zip(pre, lanes))
        return lanes[0] * 0.0 if u is None else u

    def _write(self, run, s, lanes, h):
        n = len(lanes)
        post = self._row(run, "post", s, n) or [1.0] * n
        mixed = lanes
        if self._tables_act(s, "res") and s in run.tables["res"].at:
            mixed = [combine(zip(row, lanes)) for row in run.tables["res"].matrix(s, n)]
        added = [[(post[k], h)] for k in range(n)]
        return self._terms(run, s, "at_write", mixed, added)

    def _terms(self, run, s, site, lanes, added=None):
        """lambda_k * X_k + added_k + sum of the sources' terms, for what acts at this site.

        A lane may be None, that is zero."""
        n, hc = len(lanes), self.spec.hc
        lam = [1.0] * n
        if hc.resid_lambda.site == site and "resid_lambda" in run.tables \
                and s in run.tables["resid_lambda"].at:
            lam = run.tables["resid_lambda"].row(s, n)
        sources = self._source_terms(run, s, site, n)
        out = []
        for k in range(n):
            terms = [] if lanes[k] is None else [(lam[k], lanes[k])]
            terms += added[k] if added else []
            total = combine(terms + [(row[k], x) for row, x in sources])
            out.append(run.x0 * 0.0 if total is None else total)
        return out

    def _acting_sources(self, run, s, site):
        """(table, vectors) of the sources that are added at this site of s."""
        for name, src in self.spec.hc.sources.items():
            table = run.tables["sources." + name]
            moved = s == 0 and src.first == "lane_init"
            if src.site == site and s in table.at and not moved:
                yield table, run.sources[name]

    def _source_terms(self, run, s, site, n):
        return [(table.row(s, n), x) for table, x in self._acting_sources(run, s, site)]

    def _branch_terms(self, run, s):
        return [(table.single(s), x) for table, x in self._acting_sources(run, s, "on_branch")]

    def _branch(self, run, s, u):
        """F_s of the normed read, [B, N, C]."""
        m, i, p = self.spec.model, s // 2, run.params
        prefix = f"layers.{i}.{'mlp' if s % 2 else 'attn'}."
        w = {k[len(prefix):]: v for k, v in p.items() if k.startswith(prefix)}
        a = rmsnorm(u, m.norm_eps, w.get("norm"))
        if s % 2:
            return branches.mlp(a, w["up"], w["down"], m.mlp.kind)
        return self._attention(run, i, a, w)

    def _attention(self, run, i, a, w):
        """The attention branch of layer i with parameters w."""
        m, window = self.spec.model, self.stage.windows[i]
        offset, paired = m.attention.key_offset, i in m.attention.paired
        return branches.attention(
            a, w, m, self.stage.scale, self._mask(run, window, paired),
            self._rotary_tables(run, paired), run.tokens,
            offset.first if i in offset.layers else None, paired, i in m.value_embed.split)

    def _mask(self, run, window, paired):
        """Over positions, or over the two rows of each; the window is the same number of either."""
        if (window, paired) not in run.masks:
            rows, documents = 2 if paired else 1, run.documents
            if documents is not None:
                documents = documents.repeat_interleave(rows, 1)
            run.masks[window, paired] = branches.mask(rows * run.tokens.shape[1], window,
                                                      documents, self.dtype)
        return run.masks[window, paired]

    def _rotary_tables(self, run, paired):
        length, m = run.tokens.shape[1], self.spec.model
        if paired not in self._rotary or self._rotary[paired][0].shape[0] != length:
            f, heads = self.stage.frequencies, m.heads + m.kv_heads
            self._rotary[paired] = (
                branches.paired_tables(f, m.rotary, length, heads, self.dtype)
                if paired else branches.rotary_tables(f, m.rotary, length, self.dtype))
        return self._rotary[paired]

    # ---- skips, backouts and reads

    def _capture(self, run, kind, s, when, lanes):
        for name, skip in self.spec.hc[kind].items():
            self._take(run, kind, name, skip, s, when, lanes)

    def _take(self, run, kind, name, skip, s, when, lanes):
        """Keep the value if this is the point it is taken from."""
        point = skip["from"]
        if (point.sublayer, point.when) != (s, when):
            return
        if point.lane == "mean":
            value = self._reduce(lanes, "mean")
        else:
            value = lanes[point.lane]
        run.values[kind, name] = value

    def _enter(self, run, name, skip, s, when, lanes):
        """Lanes with gate * value added, if this is where the skip enters."""
        point = skip.to
        if (point.sublayer, point.when) != (s, when):
            return lanes
        lane = point.lane
        targets = range(len(lanes)) if lane == "all" else [range(len(lanes))[lane]]
        value = run.values["skips", name] * self._gate(run, "skips", name, skip.gate)
        return [x + value if k in targets else x for k, x in enumerate(lanes)]

    def _constant(self, value):
        """A frozen number as a 0-dim tensor, rounded to float32 as a stored one would be."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return torch.tensor(value, dtype=torch.float32).to(wide)

    def _gate(self, run, kind, name, gate):
        """A float, a 0-dim tensor, or [B, N, 1] for a gate per token."""
        base = f"hc.{kind}.{name}.gate"
        g = run.params[base][0] if gate.learned else self._constant(gate.init)
        if gate.kind == "scalar":
            return g
        if gate.kind == "sigmoid":
            return g.sigmoid()
        per_token = torch.mv(run.x0[..., :gate.channels].flatten(0, 1),
                             run.params[base + "_weight"]).view(*run.tokens.shape, 1)
        return 2 * per_token.sigmoid() * g.sigmoid()
