"""The oracle's own reading of a spec: YAML in, a tree of resolved values out.

    read(path, settings) -> Node      spec.model.width, spec.hc.pre.init, ...

Stages: parse one document strictly; bring it into the shape of the schema
(dotted keys and shorthands expanded); merge it over what it extends, then the
settings; check types and fill in defaults; resolve selections to sets and
inits to tables.  Checks are those the model needs to be well defined, not
those a user would like to be told about.
"""
import os
import re

import numpy as np
import yaml


class SpecError(Exception):
    pass


class Node(dict):
    """A section: a dict whose keys also read as attributes."""

    def __getattr__(self, key):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


# ---- YAML -----------------------------------------------------------------

_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
_IDENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")


def parse(text, where):
    """One YAML document as dicts, lists, bool, int, float, str.

    BaseLoader resolves nothing, so the YAML 1.1 readings of `yes`, `1_000`,
    `0x10` or `1e-3` (a string there) do not leak in."""
    try:
        events = list(yaml.parse(text, Loader=yaml.BaseLoader))
        _refuse(events, where)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeError) as e:
        raise SpecError(f"{where}: {e}") from None
    return {} if node is None else _value(node, where)


def _refuse(events, where):
    documents = sum(isinstance(e, yaml.DocumentStartEvent) for e in events)
    if documents > 1:
        raise SpecError(f"{where}: more than one document")
    for e in events:
        if getattr(e, "anchor", None) is not None or isinstance(e, yaml.AliasEvent):
            raise SpecError(f"{where}: anchors and aliases are refused")
        if getattr(e, "tag", None) is not None:
            raise SpecError(f"{where}: tags are refused")


def _value(node, where):
    if isinstance(node, yaml.MappingNode):
        out = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise SpecError(f"{where}: a key must be a name")
            if key.value in out:
                raise SpecError(f"{where}: duplicate key {key.value}")
            out[key.value] = _value(value, where)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_value(v, where) for v in node.value]
    return node.value if node.style else _scalar(node.value, where)


def _scalar(text, where):
    if text in ("true", "false"):
        return text == "true"
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        value = float(text)
        if not np.isfinite(value):
            raise SpecError(f"{where}: {text} is not finite")
        return value
    return text


# ---- leaves ---------------------------------------------------------------

def fail(path, value, want):
    raise SpecError(f"{path}: {value!r}: wanted {want}")


def integer(low=0, high=None):
    def read(path, v):
        if isinstance(v, bool) or not isinstance(v, int) or v < low:
            fail(path, v, f"an integer of at least {low}")
        if high is not None and v > high:
            fail(path, v, f"an integer of at most {high}")
        return v
    return read


def number(path, v):
    if isinstance(v, bool) or not isinstance(v, (int, float)):
        fail(path, v, "a number")
    return float(v)


def bounded(low, high=float("inf"), ends="[]"):
    """A number from low to high, as in an interval: "(" and ")" leave the end out."""
    def read(path, v):
        x = number(path, v)
        inside = (low < x if ends[0] == "(" else low <= x) and \
            (x < high if ends[1] == ")" else x <= high)
        if not inside:
            fail(path, v, f"a number in {ends[0]}{low}, {high}{ends[1]}")
        return x
    return read


def positive(path, v):
    return bounded(0, ends="(]")(path, v)


def boolean(path, v):
    if not isinstance(v, bool):
        fail(path, v, "true or false")
    return v


def string(path, v):
    if not isinstance(v, str):
        fail(path, v, "a text")
    return v


def ident(path, v):
    if not isinstance(v, str) or not _IDENT.match(v):
        fail(path, v, "a name")
    return v


def choice(*words):
    def read(path, v):
        if not isinstance(v, str) or v not in words:
            fail(path, v, " or ".join(words))
        return v
    return read


def word_or(words, other):
    def read(path, v):
        return v if isinstance(v, str) and v in words else other(path, v)
    return read


def list_of(item):
    def read(path, v):
        return [item(path, x) for x in (v if isinstance(v, list) else [v])]
    return read


def pair(path, v):
    if not isinstance(v, list) or len(v) != 2:
        fail(path, v, "two numbers")
    return [number(path, x) for x in v]


def lane_or(*words):
    """A word, or {lane: j} as the integer j."""
    def read(path, v):
        if isinstance(v, dict) and list(v) == ["lane"]:
            return integer()(path, v["lane"])
        return choice(*words)(path, v)
    return read


def selection(path, v):
    """Kept as written; resolve_selection knows how many there are."""
    if isinstance(v, dict):
        if not v or not (set(v) <= {"first", "last"} or set(v) == {"except"}):
            fail(path, v, "first and last, or except")
        for k, x in v.items():
            list_of(integer())(path, x) if k == "except" else integer()(path, x)
        return v
    if isinstance(v, list):
        return list_of(integer())(path, v)
    return choice("all", "none", "attn", "mlp")(path, v)


def init(path, v):
    """Kept as written; resolve_init knows the shape of the table."""
    if isinstance(v, dict):
        if list(v) == ["ramp"]:
            return {"ramp": pair(path, v["ramp"])}
        if list(v) == ["identity"]:
            return {"identity": number(path, v["identity"])}
        if set(v) == {"attn", "mlp"}:
            return {k: number(path, v[k]) for k in v}
        fail(path, v, "ramp, identity, or attn and mlp")
    if isinstance(v, list):
        return list_of(number)(path, v)
    return word_or(("identity", "round_robin"), number)(path, v)


# ---- the schema -----------------------------------------------------------

REQUIRED = object()
ABSENT = object()       # no default: the key is simply missing


class Section:
    def __init__(self, keys, shorthand=None, words=None, nullable=False):
        self.keys = keys            # name -> Section, Named or (reader, default)
        self.shorthand = shorthand  # the key that a scalar or a list sets
        self.words = words or {}    # a scalar that sets another key instead
        self.nullable = nullable    # `none` removes it


class Named:
    """A map from free names to sections."""

    def __init__(self, section):
        self.section = section


def coefficient(init_default, learned=False, **more):
    keys = {"init": (init, init_default), "learned": (boolean, learned),
            "sublayers": (selection, "all"), "layers": (selection, "all"),
            "lr_mul": (number, 1.0), "betas": (pair, ABSENT)}
    return {**keys, **more}


SITE = (choice("at_write", "before_read"), "at_write")
SOURCE_SITE = (choice("at_write", "before_read", "on_branch"), "at_write")

SOURCE = Section(coefficient(
    0.0, True, kind=(choice("x0", "bigram"), REQUIRED), rows=(integer(2), 1024),
    table_std=(number, 0.0), hash=(choice("clean", "quirk"), "clean"),
    signs=(integer(0, 1 << 30), 0),
    granularity=(choice("layer", "sublayer"), "sublayer"), shared=(boolean, False),
    lane=(word_or(("all",), integer(0, 7)), "all"), site=SOURCE_SITE, detach=(boolean, False),
    first=(choice("in_place", "lane_init", "both"), "in_place")), nullable=True)

WHEN = choice("before", "after")
FROM = Section({"sublayer": (integer(), REQUIRED),
                "lane": (word_or(("mean",), integer()), 0), "when": (WHEN, "after")})
TO = Section({"sublayer": (integer(), REQUIRED),
              "lane": (word_or(("all",), integer()), "all"), "when": (WHEN, "before")})
GATE = Section({"kind": (choice("scalar", "sigmoid", "token"), "scalar"),
                "init": (number, 0.0), "learned": (boolean, True),
                "channels": (integer(1), 12)}, "init")


WINDOWS = list_of(word_or(("full",), integer(1)))
LONG_WINDOW = word_or(("full",), integer(1))
OPTIMIZER = choice("adamw", "cautious_adam", "normuon")
PACKING = choice("stream", "documents")

STAGE = Section({
    "share": (positive, 1.0), "steps": (integer(1), ABSENT),
    "tokens_per_step": (integer(1), ABSENT), "micro_batches": (integer(1, 4096), ABSENT),
    "seq_len": (integer(1, 1 << 20), ABSENT), "max_doc": (integer(), ABSENT),
    "window": (WINDOWS, ABSENT), "long_window": (LONG_WINDOW, ABSENT),
    "lr_mul": (bounded(0), 1.0), "targets": (list_of(bounded(0)), ABSENT),
    "targets_end": (list_of(bounded(0)), ABSENT)}, nullable=True)


def some_layers(**keys):
    """A part of the attention branch that the layers of a selection have."""
    return Section({"layers": (selection, "none"), **keys}, "layers")


SCHEMA = Section({
    "name": (ident, ABSENT),
    "model": Section({
        "layers": (integer(1), REQUIRED), "width": (integer(1), REQUIRED),
        "heads": (integer(1), REQUIRED), "kv_heads": (integer(1), ABSENT),
        "head_dim": (integer(1), ABSENT), "vocab": (integer(1), REQUIRED),
        "vocab_multiple": (integer(1), 64), "tied": (boolean, False),
        "embed_norm": (boolean, True), "norm_weight": (boolean, False),
        "norm_eps": (number, 1e-6),
        "smear": Section({"channels": (integer(), 0)}, "channels"),
        "attention": Section({
            "layers": (selection, "all"), "qk_norm": (boolean, True),
            "scale": (word_or(("auto",), number), "auto"),
            "window": (list_of(word_or(("full",), integer())), ["full"]),
            "long_layers": (selection, "none"), "long_window": (LONG_WINDOW, "full"),
            "document_mask": (boolean, True), "paired": (selection, "none"),
            "gate": some_layers(channels=(integer(1), 12)),
            "sa_lambda": some_layers(init=(pair, [1.0, 1.0])),
            "key_offset": some_layers(first=(integer(), ABSENT))}),
        "value_embed": some_layers(channels=(integer(1), 12), split=(selection, "none"),
                                   std=(number, 0.0)),
        "rotary": Section({"kind": (choice("none", "half", "adjacent"), "half"),
                           "base": (number, 10000.0), "dims": (integer(2), ABSENT),
                           "frequencies": (choice("power", "endpoint"), "power"),
                           "dtype": (choice("f32", "bf16"), "f32"),
                           "yarn": Section({"on": (boolean, False), "alpha": (bounded(0), 1.0),
                                            "beta": (positive, 32.0),
                                            "growth": (bounded(0), 0.2)}, "on")}, "kind"),
        "mlp": Section({"kind": (choice("relu2", "gelu", "swiglu"), "relu2"),
                        "hidden": (integer(1), ABSENT), "layers": (selection, "all")}, "kind"),
        "softcap": Section({"kind": (choice("none", "tanh", "sigmoid"), ABSENT),
                            "cap": (number, ABSENT), "shift": (number, 5.0),
                            "temperature": (number, 7.5)}, "cap", {"none": "kind"}),
        "init": Section({"std": (word_or(("auto",), number), "auto"),
                         "kind": (choice("normal", "uniform"), "normal"),
                         "out": (choice("zero", "random"), "zero"),
                         "attn_out": (choice("zero", "random"), ABSENT),
                         "mlp_out": (choice("zero", "random"), ABSENT),
                         "embed_std": (number, 1.0), "head_std": (number, 0.005)}),
    }),
    "hc": Section({
        "lanes": (integer(1), 1), "layers": (selection, "all"),
        "enter": (choice("copy"), "copy"), "leave": (lane_or("mean", "sum", "keep"), "mean"),
        "lane_init": Section({"kind": (choice("copy", "split", "first"), "copy"),
                              "learned": (boolean, False)}, "kind"),
        "output": (lane_or("mean", "sum", "learned"), "mean"),
        "coef_dtype": (choice("f32", "bf16"), "f32"), "dead": (list_of(integer()), []),
        "res": Section(coefficient("identity"), "init"),
        "pre": Section(coefficient("round_robin"), "init"),
        "post": Section(coefficient(1.0, outside=(boolean, False)), "init"),
        "resid_lambda": Section(coefficient(
            1.0, True, granularity=(choice("none", "layer", "sublayer", "lane"), "none"),
            site=SITE), "granularity"),
        "sources": Named(SOURCE),
        "skips": Named(Section({"from": FROM, "to": TO, "gate": GATE}, nullable=True)),
        "backouts": Named(Section({"from": FROM, "gate": GATE}, nullable=True)),
        "reads": Named(Section({"from": FROM, "sublayers": (selection, REQUIRED)},
                               nullable=True)),
    }),
    "train": Section({
        "steps": (integer(), 1000), "tokens_per_step": (integer(1), REQUIRED),
        "seq_len": (integer(1), REQUIRED), "micro_batches": (integer(1), 1),
        "lr": (number, 1e-3), "warmup": (integer(), 0), "cooldown": (number, 0.4),
        "cooldown_kind": (choice("constant", "linear", "cosine"), "linear"),
        "floor": (number, 0.1), "clip": (number, 0.0),
        "loss_scale": (word_or(("mean",), positive), "mean"), "untie": (ident, ABSENT),
        "val_every": (integer(), 0), "val_tokens": (integer(), 0),
        "val_batch": (integer(1), ABSENT), "val_seq_len": (integer(1, 1 << 20), ABSENT),
        "log_every": (integer(), 1), "seed": (integer(), 0),
        "final": Section({"window": (WINDOWS, ABSENT), "long_window": (LONG_WINDOW, ABSENT)}),
        "stages": Named(STAGE)}),
    "optim": Section({
        "kind": (OPTIMIZER, "adamw"), "every": (integer(1, 1024), 1),
        "betas": (pair, [0.9, 0.95]), "eps": (number, 1e-8), "weight_decay": (number, 0.0),
        "normuon": Section({"momentum": (bounded(0, 1, "[)"), 0.95),
                            "momentum_start": (bounded(0, 1, "[)"), 0.85),
                            "momentum_warmup": (integer(), 0),
                            "momentum_cooldown": (integer(), 0)}),
        "groups": Named(Section({
            "match": (string, REQUIRED), "kind": (OPTIMIZER, ABSENT),
            "every": (integer(1, 1024), ABSENT), "lr": (bounded(0), ABSENT),
            "lr_mul": (number, ABSENT), "betas": (pair, ABSENT),
            "eps": (number, ABSENT), "weight_decay": (number, ABSENT)}, nullable=True))}),
    "data": Section({
        "train": (list_of(string), []), "val": (list_of(string), []),
        "packing": (PACKING, "stream"), "val_packing": (PACKING, ABSENT),
        "shuffle": (boolean, True), "bos": (integer(), ABSENT), "max_doc": (integer(), 0)},
        "train"),
    "numerics": Section({"storage": (choice("f32", "bf16"), "bf16"),
                         "gemm": (choice("f32", "bf16"), "bf16"),
                         "params": (choice("f32", "bf16"), "f32"),
                         "head": (choice("auto", "fp8"), "auto"),
                         "fp8": Section({"x": (positive, 100.0), "w": (positive, 1.6),
                                         "grad": (positive, 0.75)})}),
    "target": (choice("h200", "h100", "cpu"), "h200"),
    "plan": Section({"search": (choice("auto", "naive"), "auto"),
                     "store": (choice("auto", "lanes", "parts", "none"), "auto"),
                     "form": (choice("auto", "raw", "normed"), "auto"),
                     "sources": (choice("auto", "inline", "precompute"), "auto"),
                     "gradients": (choice("auto", "now", "deferred"), "auto"),
                     "identities": (choice("auto", "none"), "auto"),
                     "collapse": (choice("auto", "none"), "auto"),
                     "scales": (choice("auto", "stream", "weights"), "auto"),
                     "recompute": (choice("auto", "none", "act"), "auto"),
                     "memory": (number, 0.0),
                     "risky": Section({"divide": (boolean, False)}),
                     "lock": (string, ABSENT),
                     "head_chunk": (word_or(("auto",), integer(1)), "auto")}),
    "log": Section({"val_loss": (number, ABSENT), "steps": (integer(), ABSENT), "step_ms": (number, ABSENT),
                    "train_ms": (number, ABSENT), "gpus": (integer(), ABSENT), "verdict": (string, ABSENT),
                    "note": (string, ABSENT)}),
})


# ---- shape and merge ------------------------------------------------------

def shape(value, schema, path=""):
    """Raw YAML in the shape of the schema: {key: ...} at every section."""
    if isinstance(schema, tuple):
        return _undot(value, path)
    if isinstance(schema, Section) and not isinstance(value, dict):
        return _shorthand(value, schema, path)
    if not isinstance(value, dict):
        fail(path, value, "a map")
    out = {}
    for key, v in value.items():
        head, _, rest = key.partition(".")
        inner = schema.section if isinstance(schema, Named) else schema.keys.get(head)
        if inner is None:
            raise SpecError(f"{path}{head}: unknown key")
        if isinstance(schema, Named):
            ident(path, head)
        new = shape({rest: v} if rest else v, inner, f"{path}{head}.")
        out[head] = _join(out[head], new, path + head) if head in out else new
    return out


def _shorthand(value, schema, path):
    word = value if isinstance(value, str) else None
    if schema.nullable and word == "none":
        return None
    key = schema.words.get(word, schema.shorthand)
    if key is None:
        fail(path, value, "a section")
    return {key: value}


def _undot(value, path):
    """A leaf that is a map ({lane: 1}, {ramp: ...}) may be dotted as well."""
    if not isinstance(value, dict):
        return value
    out = {}
    for key, v in value.items():
        head, _, rest = key.partition(".")
        new = _undot({rest: v} if rest else v, path)
        out[head] = _join(out[head], new, path + head) if head in out else new
    return out


def _join(a, b, path):
    """Two mentions in one document may meet in sections, not in values."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        raise SpecError(f"{path}: duplicate key")
    out = dict(a)
    for k, v in b.items():
        out[k] = _join(out[k], v, f"{path}.{k}") if k in out else v
    return out


def merge(base, over, schema=SCHEMA):
    """`over` on top of `base`: maps merge, everything else replaces."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if isinstance(schema, tuple):
        # the only map value with two keys is a range; any other form replaces
        ranged = set(base) | set(over) <= {"first", "last"}
        return {**base, **over} if ranged else over
    out = dict(base)
    for key, v in over.items():
        inner = schema.section if isinstance(schema, Named) else schema.keys[key]
        out[key] = merge(out[key], v, inner) if key in out else v
    return out


def load(path, chain=()):
    """The file at path over everything it extends, in the schema's shape."""
    path = os.path.realpath(path)
    if path in chain or len(chain) >= 16:
        raise SpecError(f"{path}: extends itself, or too long a chain")
    try:
        with open(path, encoding="utf-8") as f:
            raw = parse(f.read(), path)
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"{path}: {e}") from None
    if not isinstance(raw, dict):
        fail(path, raw, "a map")
    base = raw.pop("extends", None)
    tree = shape(raw, SCHEMA)
    if base is None:
        return tree
    return merge(load(os.path.join(os.path.dirname(path), base), chain + (path,)), tree)


# ---- defaults and types ---------------------------------------------------

def typed(tree, schema, path=""):
    """Values read by their types, defaults filled in; removed sections gone."""
    if isinstance(schema, Named):
        return Node({k: typed(v, schema.section, f"{path}{k}.")
                     for k, v in tree.items() if v is not None})
    out = Node()
    for key, inner in schema.keys.items():
        here = path + key
        if not isinstance(inner, tuple):
            out[key] = typed(tree.get(key, {}), inner, here + ".")
        elif key in tree:
            out[key] = inner[0](here, tree[key])
        elif inner[1] is REQUIRED:
            raise SpecError(f"{here}: required")
        elif inner[1] is not ABSENT:
            out[key] = inner[1]
    return out


def derive(spec, path):
    """Defaults that depend on other values."""
    m = spec.model
    spec.setdefault("name", os.path.splitext(os.path.basename(path))[0])
    m.setdefault("kv_heads", m.heads)
    m.setdefault("head_dim", m.width // m.heads)
    m.rotary.setdefault("dims", m.head_dim)
    m.attention.key_offset.setdefault("first", m.rotary.dims)
    m.mlp.setdefault("hidden", 4 * m.width)
    m.init.setdefault("attn_out", m.init.out)
    m.init.setdefault("mlp_out", m.init.out)
    t = spec.train
    t.setdefault("val_batch", t.tokens_per_step // t.micro_batches)
    t.setdefault("val_seq_len", t.seq_len)
    spec.data.setdefault("val_packing", spec.data.packing)
    m.softcap.setdefault("kind", "tanh" if "cap" in m.softcap else "none")
    m.softcap.setdefault("cap", 15.0)
    spec.data.setdefault("bos", 256 if spec.data.train == ["auto"] else 50256)
    # data paths are relative to the spec that is run, not to the file of a
    # base in which they may be written
    spec["folder"] = os.path.dirname(os.path.realpath(path))
    spec["sublayers"] = 2 * m.layers
    spec["padded_vocab"] = -(-m.vocab // m.vocab_multiple) * m.vocab_multiple


def check(spec):
    """What must hold for the model to be defined at all."""
    m, t = spec.model, spec.train
    rules = [
        (m.heads % m.kv_heads == 0, "model.kv_heads: does not divide heads"),
        (m.rotary.kind == "none" or (m.rotary.dims % 2 == 0 and m.rotary.dims <= m.head_dim),
         "model.rotary.dims: must be even and at most head_dim"),
        (m.smear.channels <= m.width, "model.smear.channels: more than width"),
        (t.tokens_per_step % (t.micro_batches * t.seq_len) == 0,
         "train.tokens_per_step: not micro_batches whole batches of seq_len"),
        (t.val_batch % t.val_seq_len == 0, "train.val_batch: not whole sequences of val_seq_len"),
        ("untie" not in t or t.untie in t.stages, "train.untie: no such stage"),
        ("untie" not in t or not m.tied, "train.untie: model.tied leaves nothing to untie"),
        (all(s < spec.sublayers for s in spec.hc.dead), "hc.dead: no such sublayer"),
        (not isinstance(spec.hc.leave, int) or spec.hc.leave < spec.hc.lanes,
         "hc.leave: no such lane"),
        (not isinstance(spec.hc.output, int) or spec.hc.output < spec.hc.lanes,
         "hc.output: no such lane"),
        (all(src.lane == "all" or src.lane < spec.hc.lanes for src in spec.hc.sources.values()),
         "hc.sources: no such lane"),
    ]
    for good, message in rules:
        if not good:
            raise SpecError(message)


def order(point):
    """Points in the order of the computation."""
    return (point.sublayer, point.when == "after")


def lanes_at(spec, sublayer):
    """How many lanes there are while this sublayer runs."""
    hc, i = spec.hc, sublayer // 2
    inside = hc.layers and hc.layers[0] <= i
    return hc.lanes if inside and (i <= hc.layers[-1] or hc.leave == "keep") else 1


def _check_reads(spec):
    """Every branch reads one value, which is there before it reads."""
    taken = set()
    for name, read_ in spec.hc.reads.items():
        where, point = f"hc.reads.{name}", read_["from"]
        if any((s, True) <= order(point) for s in read_.sublayers):
            raise SpecError(f"{where}: from is not before its sublayers")
        if taken & read_.sublayers:
            raise SpecError(f"{where}: another reads at the same sublayer")
        taken |= read_.sublayers


def _check_points(spec):
    for kind in ("skips", "backouts", "reads"):
        for name, skip in spec.hc[kind].items():
            where = f"hc.{kind}.{name}"
            points = [skip["from"]] + ([skip.to] if kind == "skips" else [])
            if any(p.sublayer >= spec.sublayers for p in points):
                raise SpecError(f"{where}: no such sublayer")
            if any(isinstance(p.lane, int) and p.lane >= lanes_at(spec, p.sublayer)
                   for p in points):
                raise SpecError(f"{where}: no such lane")
            if len(points) == 2 and not order(points[0]) < order(points[1]):
                raise SpecError(f"{where}: from is not before to")
            if kind == "reads":
                continue
            if skip.gate.kind == "token" and skip.gate.channels > spec.model.width:
                raise SpecError(f"{where}.gate.channels: more than width")


# ---- resolution -----------------------------------------------------------

def resolve_selection(sel, count, path, of_sublayers=False):
    """The set of selected indices among 0 .. count - 1."""
    every = frozenset(range(count))
    if sel in ("attn", "mlp"):
        if not of_sublayers:
            raise SpecError(f"{path}: {sel} selects sublayers, not layers")
        return frozenset(range(sel == "mlp", count, 2))
    if isinstance(sel, str):
        return every if sel == "all" else frozenset()
    if isinstance(sel, list):
        chosen, named = frozenset(sel), sel
    elif "except" in sel:
        named = sel["except"] if isinstance(sel["except"], list) else [sel["except"]]
        chosen = every - frozenset(named)
    else:
        named = [sel.get("first", 0), sel.get("last", count - 1)]
        chosen = frozenset(range(named[0], named[1] + 1))
    if any(i >= count for i in named):
        raise SpecError(f"{path}: only {count} to select from")
    return chosen


def resolve_init(value, dims, path, kind):
    """The table as float64 of shape dims = (rows, ...), every entry rounded to float32.

    kind: "res", "pre" or "other"; res is [S, n, n] with the output lane first."""
    rows, lanes = dims[0], dims[-1] if len(dims) > 1 else 1
    table = np.empty(dims)
    if isinstance(value, list):
        table[...] = _explicit(value, dims, path)
    elif value == "identity" or isinstance(value, dict) and "identity" in value:
        if kind != "res":
            raise SpecError(f"{path}: identity is for hc.res")
        table[...] = np.eye(lanes) * (1.0 if value == "identity" else value["identity"])
    elif value == "round_robin":
        if kind != "pre":
            raise SpecError(f"{path}: round_robin is for hc.pre")
        table[...] = np.arange(lanes) == np.arange(rows)[:, None] % lanes
    elif isinstance(value, dict) and "attn" in value:
        table[0::2], table[1::2] = value["attn"], value["mlp"]
    elif isinstance(value, dict):
        a, b = value["ramp"]
        ramp = a + (b - a) * np.arange(rows) / max(rows - 1, 1)
        table[...] = ramp.reshape((rows,) + (1,) * (len(dims) - 1))
    else:
        table[...] = value
    return table.astype(np.float32).astype(np.float64)


def _explicit(values, dims, path):
    per_row = int(np.prod(dims[1:], dtype=int))
    if len(values) == per_row:
        return np.array(values).reshape(dims[1:])
    if len(values) == per_row * dims[0]:
        return np.array(values).reshape(dims)
    raise SpecError(f"{path}: {len(values)} values for a table {list(dims)}")


def _resolve_coefficient(spec, coef, dims, path, kind="other"):
    S, L = spec.sublayers, spec.model.layers
    coef["sublayers"] = resolve_selection(coef.sublayers, S, path + ".sublayers", True)
    coef["layers"] = resolve_selection(coef.layers, L, path + ".layers")
    coef["shape"] = dims
    if dims and dims[0] != S and isinstance(coef.init, dict) and "attn" in coef.init:
        raise SpecError(path + ".init: attn and mlp are of tables with a row per sublayer")
    coef["init"] = resolve_init(coef.init, dims, path + ".init", kind) if dims else None


def _resolve_parts(m):
    """The layers of the attention branch's parts: of those selected, the ones that have the
    branch.  A bound on a key holds only where some layer has the part: the default of 12
    channels does not ask anything of a narrow model without gates."""
    for name, part, key, bound in (
            ("attention.gate", m.attention.gate, "channels", "width"),
            ("attention.sa_lambda", m.attention.sa_lambda, None, None),
            ("attention.key_offset", m.attention.key_offset, "first", "head_dim"),
            ("value_embed", m.value_embed, "channels", "width")):
        path = "model." + name
        chosen = resolve_selection(part.layers, m.layers, path + ".layers")
        part["layers"] = chosen & m.attention.layers
        if key and part.layers and part[key] > m[bound]:
            raise SpecError(f"{path}.{key}: more than {bound}")


def _resolve_split(m):
    """Half the channels of such a gate are the table's, which may be narrower than the stream."""
    ve, path = m.value_embed, "model.value_embed.split"
    ve["split"] = resolve_selection(ve.split, m.layers, path) & ve.layers
    if ve.split and (ve.channels % 2 or ve.channels // 2 > m.kv_heads * m.head_dim):
        raise SpecError(f"{path}: channels must be even, half of them in the table's row")


def _resolve_paired(m):
    """Of the layers selected those with an attention branch; only they ask for pairs of heads."""
    a, path = m.attention, "model.attention.paired"
    a["paired"] = resolve_selection(a.paired, m.layers, path) & a.layers
    if a.paired and (m.heads % 2 or m.kv_heads != m.heads):
        raise SpecError(f"{path}: heads must be even and kv_heads the same")


def resolve(spec):
    m, hc, S, L, n = spec.model, spec.hc, spec.sublayers, spec.model.layers, spec.hc.lanes
    m.attention["layers"] = resolve_selection(m.attention.layers, L, "model.attention.layers")
    _resolve_parts(m)
    _resolve_split(m)
    _resolve_paired(m)
    m.attention["long_layers"] = resolve_selection(m.attention.long_layers, L,
                                                   "model.attention.long_layers")
    m.mlp["layers"] = resolve_selection(m.mlp.layers, L, "model.mlp.layers")
    hc["layers"] = sorted(resolve_selection(hc.layers, L, "hc.layers"))
    if hc.layers and hc.layers[-1] - hc.layers[0] + 1 != len(hc.layers):
        raise SpecError("hc.layers: not one contiguous range")
    _resolve_coefficient(spec, hc.res, (S, n, n), "hc.res", "res")
    _resolve_coefficient(spec, hc.pre, (S, n), "hc.pre", "pre")
    _resolve_coefficient(spec, hc.post, (S, n), "hc.post")
    lam = {"none": None, "layer": (L,), "sublayer": (S,), "lane": (S, n)}
    _resolve_coefficient(spec, hc.resid_lambda, lam[hc.resid_lambda.granularity],
                         "hc.resid_lambda")
    for name, src in hc.sources.items():
        rows = L if src.granularity == "layer" else S
        one = src.shared or src.lane != "all" or src.site == "on_branch"
        _resolve_coefficient(spec, src, (rows, 1 if one else n), f"hc.sources.{name}")
    for name, read_ in hc.reads.items():
        read_["sublayers"] = resolve_selection(read_.sublayers, S, f"hc.reads.{name}.sublayers",
                                               True)


def read(path, settings=()):
    """The spec at path with `a.b=v` settings on top, resolved."""
    tree = load(path)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise SpecError(f"--set {setting}: wanted a.b=v")
        tree = merge(tree, shape({key: parse(text, "--set " + key)}, SCHEMA))
    spec = typed(tree, SCHEMA)
    derive(spec, path)
    check(spec)
    resolve(spec)
    _check_points(spec)
    _check_reads(spec)
    return spec
