#!/usr/bin/python3
"""What is wrong from outside: the exit code of docs/design.md, a message that names the thing, and
nothing half written.

Exit codes: 1 the spec, 2 environment, data or usage, 3 a fault of ours, 4 numerics, 75 stopped by a
signal after saving."""
import shutil
import signal
import time

from lib import *

def refused(tmp, code, says, *words, **how):
    """hcgen says what is wrong, in few lines, and leaves nothing unfinished below tmp."""
    r = hcgen(*words, want=code, **how)
    for part in [says] if isinstance(says, str) else says:
        expect(part in r.err, f"{words[0]}: no {part!r} in", r)
    expect("hcgen: bug" not in r.err or code == 3, r)
    expect(len(r.err.splitlines()) <= 61, "more than 20 errors of 3 lines", r)
    expect("Traceback" not in r.err and "\x1b" not in r.err, r)
    whole(tmp)
    return r


def whole(tmp):
    """No temporary is left, no result of a run that failed, and a manifest only with all it names."""
    for p in tmp.rglob("*"):
        expect(".tmp" not in p.name, "left behind:", p)
        expect(p.name != "final.safetensors", "left behind:", p)
        if p.name == "manifest":
            text = p.read_text()
            expect(text.endswith("\n"), p, "is cut off")
            for line in text.splitlines():
                if line.startswith("kernel "):
                    expect((p.parent / line.split()[2]).exists(), p, "names", line)


def shards(tmp, **values):
    """--set words for a train.bin of random bytes, and the same as val.bin"""
    (tmp / "data").mkdir(exist_ok=True)
    r = Random(1)
    tokens = [256] + [r.below(256) for _ in range(4000)]
    for name in ("train.bin", "val.bin"):
        write_shard(tmp / "data" / name, **{"tokens": tokens, **values})
    return data_at(tmp / "data")


# ---- usage ----------------------------------------------------------------

@case
def usage(tmp):
    refused(tmp, 2, '"frobnicate" is no verb', "frobnicate", SMALL)
    refused(tmp, 2, '"" is no verb', "")
    for verb in ("check", "emit", "plan", "verify", "train"):
        refused(tmp, 2, "--frobnicate", verb, SMALL, "--frobnicate", cwd=tmp)
        refused(tmp, 2, "SPEC", verb, cwd=tmp)
    for verb in ("emit", "plan", "verify", "train"):
        refused(tmp, 2, "one SPEC", verb, SMALL, SMALL, cwd=tmp)
    for option in ("--set", "-o", "--threads", "--seed", "--params"):
        refused(tmp, 2, option, "train", SMALL, option, cwd=tmp)
    for option in ("--threads", "--seed"):
        for value in ("x", "-1", "1.5", "", "99999999999999999999"):
            refused(tmp, 2, option, "train", SMALL, option, value, cwd=tmp)
    refused(tmp, 2, "--device", "train", SMALL, "--device", "tpu", cwd=tmp)
    refused(tmp, 2, "--params", "verify", SMALL, "--params", "p", cwd=tmp)
    expect(not os.listdir(tmp), os.listdir(tmp))


@case
def no_verb_prints_the_usage(tmp):
    r = hcgen(want=2)
    expect(r.err.startswith("usage: hcgen VERB") and not r.out, r)
    r = hcgen("--help")
    expect(r.out.startswith("usage: hcgen VERB") and not r.err, r)


@case
def too_many_threads(tmp):
    """Not a crash; few enough to be refused or done."""
    r = run(HCGEN, "train", SMALL, *shards(tmp), "--threads", 10**9, "-o", tmp / "a", "--quiet")
    expect(r.rc in (0, 2) and (r.rc == 0 or "thread" in r.err), r)


@case
def output_that_cannot_be_written(tmp):
    for words in (["check", SMALL], ["plan", SMALL], ["check", "--schema"]):
        with open("/dev/full", "w") as full:
            p = subprocess.run([HCGEN, *map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True)
        expect(p.returncode == 2 and "No space" in p.stderr, words, p.returncode, p.stderr)


# ---- specs ----------------------------------------------------------------

@case
def wrong_spec(tmp):
    bad = tmp / "bad.yaml"
    bad.write_text(SMALL.read_text().replace("width: 64", "width: 63").replace("seq_len", "seq_length"))
    for verb in ("check", "emit", "plan", "verify", "train"):
        refused(tmp, 1, [f"{bad}:11:", "seq_length", "did you mean", "hcgen: "], verb, bad, cwd=tmp)
    expect(os.listdir(tmp) == ["bad.yaml"], os.listdir(tmp))


@case
def what_no_model_has(tmp):
    """Keys that are well formed and do not fit each other: the numbers are in the message."""
    for says, words in [
            ("33 channels of 32", sets(model__attention__gate="{layers: [1], channels: 33}")),
            ("40 channels of 32", sets(model__smear=40)),
            ("33 channels of 32", sets(model__value_embed="{layers: all, channels: 33}")),
            ("first channel 8 is not an even one below head_dim 8", sets(model__attention__key_offset="all")),
            ("first channel 5 is not an even one", sets(model__attention__key_offset="{layers: [0], first: 5}")),
            ("layer 7 does not exist", sets(model__value_embed="[0, 7]")),
            ("layer 7 does not exist", sets(model__value_embed="{layers: [0], split: [7]}")),
            ("5 channels cannot be split in halves", sets(model__value_embed="{layers: [0], split: [1], channels: 5}")),
            ("half of 18 channels of a table row of 8",
             sets(model__kv_heads=1, model__value_embed="{layers: [0], split: [0], channels: 18}")),
            ("lane 2 does not exist: there are 2", sets(hc="{lanes: 2, sources: {a: {kind: x0, lane: 2}}}")),
            ("lane 1 does not exist: there is 1", sets(hc="{lanes: 1, sources: {a: {kind: x0, lane: 1}}}")),
            ("lane 1 of a source that is added on the branch",
             sets(hc="{lanes: 2, sources: {a: {kind: x0, lane: 1, site: on_branch}}}")),
            ("a table of one row per layer", sets(hc="{resid_lambda: {granularity: layer, init: {attn: 1, mlp: 0.9}}}")),
            ("a table of one row per layer",
             sets(hc="{sources: {a: {kind: x0, granularity: layer, init: {attn: 1, mlp: 0.9}}}}")),
            ("2 numbers, expected 1 (one row) or 4",
             sets(hc="{lanes: 2, sources: {a: {kind: x0, site: on_branch, init: [1, 2]}}}")),
            ("sublayer 2 is not behind sublayer 2 after", sets(hc__reads="{a: {from: {sublayer: 2}, sublayers: [3, 2]}}")),
            ("sublayer 1 is not behind sublayer 2 before",
             sets(hc__reads="{a: {from: {sublayer: 2, when: before}, sublayers: [1]}}")),
            ("sublayer 3 reads a already",
             sets(hc__reads="{a: {from: {sublayer: 0}, sublayers: [3]}, b: {from: {sublayer: 1}, sublayers: [2, 3]}}")),
            ("lane 1 does not exist: there is one stream", sets(hc="{lanes: 1, reads: {a: {from: {sublayer: 0, lane: 1}, sublayers: [3]}}}")),
            ("sublayer 4 does not exist", sets(hc__reads="{a: {from: {sublayer: 4}, sublayers: none}}")),
            ("sublayer 9 does not exist", sets(hc__reads="{a: {from: {sublayer: 0}, sublayers: [9]}}"))]:
        spec = sets(model__width=32, model__heads=4, model__head_dim=8)
        refused(tmp, 1, says, "check", SMALL, *spec, *words)
        refused(tmp, 1, says, "train", SMALL, *spec, *words, "-o", tmp / "out")


@case
def wrong_set(tmp):
    for value, says in (("model.layerz=3", "layers"), ("model.layers", "path=value"), ("model.layers=x", "integer"),
                        ("=3", "--set"), ("model.layers=[3", "--set"), ("hc.lanes=9", "8"), ("", "--set")):
        for verb in ("check", "train"):
            refused(tmp, 1, says, verb, SMALL, "--set", value, cwd=tmp)
    expect(not os.listdir(tmp), os.listdir(tmp))


@case
def unreadable_spec(tmp):
    for verb in ("check", "emit", "plan", "verify", "train"):
        refused(tmp, 2, ["nowhere.yaml", "No such file"], verb, tmp / "nowhere.yaml", cwd=tmp)
        refused(tmp, 2, ["directory"], verb, tmp, cwd=tmp)
    base = tmp / "base.yaml"
    base.write_text("extends: gone.yaml\n")
    refused(tmp, 1, "gone.yaml", "check", base)


@case
def hostile_spec(tmp):
    """Whatever the bytes, an ordinary message."""
    for i, text in enumerate((b"", b"\0" * 100, b"\xff\xfe", b"a: &a [*a, *a]\n", b"[" * 5000, b"a" * (2 << 20),
                              b"? {a: b}\n: c\n", b"--- 1\n--- 2\n", b"model: {" + b"a: " * 50, os.urandom(3000))):
        (tmp / "x.yaml").write_bytes(text)
        refused(tmp, 1, "error", "check", tmp / "x.yaml")


# ---- data -----------------------------------------------------------------

@case
def no_data(tmp):
    refused(tmp, 2, ["data.train"], "train", SMALL, "-o", tmp / "a")
    d = shards(tmp)
    refused(tmp, 2, ["data.val"], "train", SMALL, *d[:2], "-o", tmp / "a")


@case
def missing_shard(tmp):
    refused(tmp, 2, ["nowhere.bin", "hcgen data"], "train", SMALL,
            *sets(data__train="[nowhere.bin]", data__val="[nowhere.bin]"), "-o", tmp / "a")
    refused(tmp, 2, ["none*.bin", "hcgen data"], "train", SMALL,
            *sets(data__train="['none*.bin']", data__val="[nowhere.bin]"), "-o", tmp / "a")


def bad_shard(tmp, says, change=None, **values):
    d = shards(tmp, **values)
    if change:
        change(tmp / "data/train.bin")
    refused(tmp, 2, [str(tmp / "data/train.bin")] + says, "train", SMALL, *d, "-o", tmp / "a")
    initial(tmp / "p")
    for p in tmp.glob("p.out"):
        shutil.rmtree(p)
    refused(tmp, 2, [str(tmp / "data/train.bin")] + says, "verify", SMALL, "--params", tmp / "p",
            "--tokens", tmp / "data/train.bin", "--dump", tmp / "dump")
    expect(not (tmp / "dump").exists())


@case
def truncated_shard(tmp):
    bad_shard(tmp, ["truncated", "4001 tokens"], lambda p: os.truncate(p, 5000))


@case
def shard_without_header(tmp):
    bad_shard(tmp, ["1000 bytes", "header"], lambda p: os.truncate(p, 1000))


@case
def empty_shard(tmp):
    bad_shard(tmp, ["empty"], lambda p: os.truncate(p, 0))


@case
def shard_of_zeros(tmp):
    """What a machine that lost its power may leave."""
    bad_shard(tmp, ["first word is 0"], lambda p: p.write_bytes(bytes(9026)))


@case
def too_long_shard(tmp):
    bad_shard(tmp, ["too long"], lambda p: p.write_bytes(p.read_bytes() + b"xx"))


@case
def wrong_magic(tmp):
    bad_shard(tmp, ["20240520", "first word is 20240521"], magic=20240521)


@case
def wrong_version(tmp):
    bad_shard(tmp, ["version is 7"], version=7)


@case
def negative_count(tmp):
    bad_shard(tmp, ["-5 tokens"], count=-5)


@case
def token_outside_the_vocabulary(tmp):
    bad_shard(tmp, ["token 3 is 257", "vocab is 257"], tokens=[256, 1, 2, 257] + [5] * 4000)


@case
def too_few_tokens(tmp):
    d = shards(tmp, tokens=[1] * 60)
    refused(tmp, 2, ["60 tokens", "65"], "train", SMALL, *d, "-o", tmp / "a")


@case
def shard_that_is_no_file(tmp):
    d = shards(tmp)
    os.unlink(tmp / "data/train.bin")
    os.mkfifo(tmp / "data/train.bin")
    refused(tmp, 2, ["train.bin", "not a regular file"], "train", SMALL, *d, "-o", tmp / "a", timeout=20)
    os.unlink(tmp / "data/train.bin")
    os.mkdir(tmp / "data/train.bin")
    refused(tmp, 2, ["train.bin", "directory"], "train", SMALL, *d, "-o", tmp / "a")


@case
def data_bytes(tmp):
    (tmp / "a.txt").write_text("hello")
    (tmp / "empty.txt").write_text("")
    refused(tmp, 2, "bytes FILE", "data")
    refused(tmp, 2, "bytes FILE", "data", "bytes", tmp / "a.txt")
    refused(tmp, 2, "bytes FILE", "data", "frobnicate")
    refused(tmp, 2, "nowhere", "data", "bytes", tmp / "nowhere", "-o", tmp / "d")
    refused(tmp, 2, "-r", "data", "bytes", tmp, "-o", tmp / "d")
    refused(tmp, 2, "only document", "data", "bytes", tmp / "a.txt", "-o", tmp / "d")
    refused(tmp, 2, "no text", "data", "bytes", tmp / "empty.txt", "-o", tmp / "d", "--val", 0)
    refused(tmp, 2, "--val", "data", "bytes", tmp / "a.txt", "-o", tmp / "d", "--val", 100)
    refused(tmp, 2, str(tmp / "a.txt"), "data", "bytes", tmp / "a.txt", "-o", tmp / "a.txt/d", "--val", 0)
    refused(tmp, 2, "a.txt", "data", "show", tmp / "a.txt")
    expect(not (tmp / "d").exists())


# ---- parameters -----------------------------------------------------------

def bad_params(tmp, says, change, code=2):
    """Parameters that verify, train and sample must refuse."""
    d = shards(tmp)
    params = read_params(initial(tmp / "p"))
    shutil.rmtree(tmp / "p.out")
    change(params)
    write_params(tmp / "p", params)
    refused(tmp, code, says, "train", SMALL, *d, "--params", tmp / "p", "-o", tmp / "a", "--quiet")
    expect(not (tmp / "a/run/stopped.safetensors").exists())
    words = "verify", SMALL, "--params", tmp / "p", "--tokens", tmp / "data/train.bin"
    if code == 4:
        hcgen(*words, want=4)
    else:
        refused(tmp, code, says, *words)


@case
def parameter_missing(tmp):
    bad_params(tmp, ["layers.1.mlp.up"], lambda p: p.pop("layers.1.mlp.up"))


@case
def parameter_extra(tmp):
    bad_params(tmp, ["layers.7.mlp.up"], lambda p: p.update({"layers.7.mlp.up": np.zeros(3)}))


@case
def parameter_misshapen(tmp):
    bad_params(tmp, ["hc.post"], lambda p: p.update({"hc.post": p["hc.post"].T}))


@case
def parameter_nan(tmp):
    def change(p):
        p["head"] = p["head"].copy()
        p["head"][5, 7] = np.nan
    bad_params(tmp, ["step 1", "nan", "no parameters"], change, code=4)
    m = metrics(tmp / "a")
    expect([*m[-1]][0] == "failed" and m[-1]["file"] is None, m[-1])


@case
def parameter_infinite(tmp):
    def change(p):
        p["layers.0.attn.qkv"] = p["layers.0.attn.qkv"] * np.float32(np.inf)
    bad_params(tmp, ["step 1", "nan", "no parameters"], change, code=4)


@case
def learning_rate_that_diverges(tmp):
    refused(tmp, 4, ["step ", "train.lr"], "train", SMALL, *shards(tmp), *sets(train__lr=1e30, train__steps=60),
            "-o", tmp / "a", "--quiet")


@case
def parameters_that_are_no_file(tmp):
    d = shards(tmp)
    (tmp / "junk").write_bytes(os.urandom(5000))
    (tmp / "short").write_bytes(b"1234")
    good = initial(tmp / "p").read_bytes()
    shutil.rmtree(tmp / "p.out")
    (tmp / "cut").write_bytes(good[:-10])
    (tmp / "long").write_bytes(good + b"x")
    for name in ("nowhere", "junk", "short", "cut", "long"):
        refused(tmp, 2, str(tmp / name), "train", SMALL, *d, "--params", tmp / name, "-o", tmp / "a", "--quiet")


@case
def verify_leaves_nothing_in_tmp(tmp):
    """Its emitted directory there goes, whatever the end.  The spec's name tells it from those of others."""
    name = f"e2e_{os.getpid()}"
    words = ["verify", SMALL, *sets(name=name)]

    def left():
        return [p for p in pathlib.Path("/tmp").glob("hcgen-*/manifest") if f"name {name}\n" in p.read_text()]

    shards(tmp)
    write_params(tmp / "p", {"embed": np.zeros(3)})
    hcgen(*words)
    expect(not left(), "after success:", left())
    hcgen(*words, "--params", tmp / "p", "--tokens", tmp / "data/train.bin", want=2)
    expect(not left(), "after a wrong parameter:", left())
    hcgen(*words, want=2, env={"CC": "nowhere-cc"})
    expect(not left(), "without a compiler:", left())


# ---- compiler and libraries -----------------------------------------------

def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@case
def no_compiler(tmp):
    d, cache = shards(tmp), {"HCGEN_CACHE": str(tmp / "cache"), "CC": None}
    (tmp / "empty").mkdir()
    nothing = {**cache, "PATH": str(tmp / "empty")}
    for words in (["train", SMALL, *d, "-o", tmp / "a"], ["verify", SMALL]):
        refused(tmp, 2, ["no C compiler", "apt-get install gcc"], *words, env=nothing)
        refused(tmp, 2, ["nowhere-cc"], *words, env={**cache, "CC": "nowhere-cc -O1"})
    r = hcgen("doctor", want=2, env=nothing)
    expect("compiler     missing" in r.out, r)


@case
def compiler_that_fails(tmp):
    """Its words are shown, its leavings removed.  That emitted text does not compile is a fault of ours."""
    cc = script(tmp / "cc", 'case "$*" in *--version*|*-E*) exec cc "$@";; esac\n'
                            'while [ "$1" != -o ]; do shift; done; echo junk >"$2"; echo ouch-ouch >&2; exit 1\n')
    d, env = shards(tmp), {"HCGEN_CACHE": str(tmp / "cache"), "CC": cc}
    r = run(HCGEN, "train", SMALL, *d, "-o", tmp / "a", "--quiet", env=env)
    expect(r.rc == 3 and "ouch-ouch" in r.err and "does not compile with " + cc in r.err, r)
    whole(tmp)
    expect(not os.listdir(tmp / "cache"), os.listdir(tmp / "cache"))
    train(tmp / "b", *d, env={**env, "CC": None})


@case
def compiler_that_is_none(tmp):
    env = {"HCGEN_CACHE": str(tmp / "cache"), "CC": script(tmp / "cc", "exit 1\n")}
    refused(tmp, 2, [str(tmp / "cc"), "no C compiler"], "train", SMALL, *shards(tmp), "-o", tmp / "a", env=env)


@case
def compiler_that_writes_nothing(tmp):
    env = {"HCGEN_CACHE": str(tmp / "cache"), "CC": script(tmp / "cc", "exit 0\n")}
    refused(tmp, 2, ["cannot compile"], "train", SMALL, *shards(tmp), "-o", tmp / "a", env=env)


@case
def killed_while_compiling(tmp):
    """The cache is as good as before, and what the dead process left harms nobody."""
    cc = script(tmp / "cc", 'case "$*" in *--version*|*-E*) exec cc "$@";; esac\n'
                            f'touch {tmp}/compiling; sleep 1; exec cc "$@"\n')
    d, env = shards(tmp), {"HCGEN_CACHE": str(tmp / "cache")}
    p = subprocess.Popen([HCGEN, "train", str(SMALL), *d, "-o", str(tmp / "a"), "--quiet"],
                         env=environment({**env, "CC": cc}))
    until(lambda: (tmp / "compiling").exists())
    p.terminate()
    expect(p.wait(20) in (-signal.SIGTERM, 143, 75), p.returncode)
    expect(not list(tmp.rglob("*.safetensors")))
    train(tmp / "a", *d, env=env)


@case
def damaged_cache(tmp):
    """A kernel that lost a byte, or its end, is compiled again; the result is the same."""
    d, env = shards(tmp), {"HCGEN_CACHE": str(tmp / "cache")}
    train(tmp / "a", *d, env=env)
    entries = sorted((tmp / "cache").glob("*.so"))
    expect(len(entries) > 10, len(entries))
    raw = bytearray(entries[0].read_bytes())
    raw[len(raw) // 2] ^= 1
    entries[0].write_bytes(raw)
    os.truncate(entries[1], 3000)
    os.truncate(entries[2], 0)
    entries[3].write_bytes(b"x" * 100)
    r = train(tmp / "b", *d, env=env)
    for e in entries[:4]:
        expect(f"{e} is damaged: compiling it again" in r.err, e.name, r)
    expect(len(r.err.splitlines()) == 4, r)
    expect(numbers(tmp / "a") == numbers(tmp / "b"))
    expect(train(tmp / "c", *d, env=env).err == "")


@case
def cache_that_others_may_write(tmp):
    (tmp / "cache").mkdir()
    (tmp / "cache").chmod(0o777)
    refused(tmp, 2, [str(tmp / "cache"), "chmod 700"], "train", SMALL, *shards(tmp), "-o", tmp / "a",
            env={"HCGEN_CACHE": str(tmp / "cache")})


@case
def no_onednn(tmp):
    """A file that is no library stands before the real one on the path."""
    (tmp / "lib").mkdir()
    (tmp / "lib/libdnnl.so.2").write_text("no library")
    env = {"LD_LIBRARY_PATH": str(tmp / "lib")}
    if "missing" not in run(HCGEN, "doctor", env=env).out.split("oneDNN", 1)[1].split("\n")[0]:
        raise Skip("this loader goes on to the next libdnnl")
    d = shards(tmp)
    for words in (["train", SMALL, *d, "-o", tmp / "a", "--quiet"], ["verify", SMALL]):
        refused(tmp, 2, ["oneDNN", "apt-get install"], *words, env=env)
    hcgen("doctor", want=2, env=env)
    hcgen("emit", SMALL, "-o", tmp / "b", env=env)


# ---- places ---------------------------------------------------------------

@case
def places_that_cannot_be_written(tmp):
    d = shards(tmp)
    (tmp / "file").write_text("")
    for place in ("/proc/nowhere/a", tmp / "file", tmp / "file/a"):
        refused(tmp, 2, str(place), "emit", SMALL, "-o", place)
        refused(tmp, 2, str(place), "train", SMALL, *d, "-o", place)
        refused(tmp, 2, str(place), "train", SMALL, *d, "-o", tmp / "a", "--run", place)
        refused(tmp, 2, str(place), "data", "bytes", SMALL, "-o", place, "--val", 0)
        refused(tmp, 2, str(place), "train", SMALL, *d, "-o", tmp / "a", env={"HCGEN_CACHE": str(place)})
    initial(tmp / "p")
    shutil.rmtree(tmp / "p.out")
    refused(tmp, 2, "/proc/nowhere", "verify", SMALL, "--params", tmp / "p", "--tokens", tmp / "data/train.bin",
            "--dump", "/proc/nowhere/dump")


@case
def a_directory_where_a_file_goes(tmp):
    d = shards(tmp)
    for name in ("manifest", "kernels/clip.c", "run/metrics.jsonl", "run/run.txt"):
        shutil.rmtree(tmp / "a", ignore_errors=True)
        (tmp / "a" / name).mkdir(parents=True)
        r = run(HCGEN, "train", SMALL, *d, "-o", tmp / "a", "--quiet")
        expect(r.rc == 2 and name in r.err, name, r)
        expect(not [p for p in tmp.rglob("*") if ".tmp" in p.name], "left behind")
    shutil.rmtree(tmp / "a")
    (tmp / "a/run/final.safetensors").mkdir(parents=True)
    r = run(HCGEN, "train", SMALL, *d, "-o", tmp / "a", "--quiet")
    expect(r.rc == 2 and "final.safetensors" in r.err, r)
    expect(not [p for p in tmp.rglob("*") if ".tmp" in p.name], "left behind")


def small_disk(tmp, size):
    """Words before a command that give it a file system of that many KiB at tmp/disk, where mounting one
    is allowed; else none of its files may be longer."""
    (tmp / "disk").mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o mode=700,size={size}k none {tmp}/disk && "
    for begin in (["unshare", "-m"], ["unshare", "-rm"]):
        if not os.environ.get("NO_MOUNT") and run(*begin, "sh", "-c", mount + "true").rc == 0:
            return begin, mount
    return [], f"trap '' XFSZ; ulimit -f {size // 2}; "     # blocks of 512 bytes: a quarter of size


def full(tmp, size, says, *words, env={}):
    """hcgen meets the end of the disk.  That is gone afterwards, so what is on it is listed."""
    begin, line = small_disk(tmp, size)
    line += f"timeout 100 {HCGEN} \"$@\"; rc=$?; find {tmp}/disk -type f; exit $rc"
    r = run(*begin, "sh", "-c", line, "sh", *words, env=env)
    expect(r.rc == 2 and any(x in r.err for x in ("No space left", "no space left", "File too large")), r)
    expect(str(says) in r.err, says, r)
    left = [x for x in r.out.splitlines() if x.startswith(str(tmp))]
    expect(not [x for x in left if ".tmp" in x or x.endswith((".safetensors", ".bin", "manifest"))], left)


@case
def full_disk(tmp):
    d, disk = shards(tmp), tmp / "disk"
    full(tmp, 64, disk, "emit", SMALL, "-o", disk / "a")
    (tmp / "text").write_text("some text " * 10000)
    full(tmp, 64, disk, "data", "bytes", tmp / "text", "--val", 0, "-o", disk)
    if not small_disk(tmp, 64)[0]:
        return      # a limit on all files stops training before it gets to those
    full(tmp, 64, disk, "train", SMALL, *d, "-o", tmp / "a", "--run", disk, "--quiet")
    full(tmp, 16, "cannot compile", "train", SMALL, *d, "-o", tmp / "a", "--quiet", env={"HCGEN_CACHE": str(disk)})
    initial(tmp / "p")
    full(tmp, 64, disk, "verify", SMALL, "--params", tmp / "p", "--tokens", tmp / "data/train.bin",
         "--dump", disk / "dump.safetensors")


# ---- what a run leaves ----------------------------------------------------

@case
def damaged_manifest(tmp):
    train(tmp / "a", *shards(tmp))
    os.rename(tmp / "a/run/final.safetensors", tmp / "a/run/stopped.safetensors")   # for whole()
    path, words = tmp / "a/manifest", ["sample", tmp / "a/run", "--prompt", "a", "-n", 1]
    good = path.read_text()
    lines = good.splitlines()

    def says(*parts):
        r = hcgen(*words, want=2)
        expect(all(x in r.err for x in parts) and not r.out, parts, r)

    def damage(start, old, new, *parts):
        """Changes the first line that begins so."""
        n = next(i for i, x in enumerate(lines) if x.startswith(start))
        expect(old in lines[n], lines[n])
        path.write_text("\n".join(lines[:n] + [lines[n].replace(old, new)] + lines[n + 1:]) + "\n")
        says(f"manifest:{n + 1}: ", *parts)

    damage("hcgen-manifest", "2", "1", "hcgen emit")
    damage("hcgen-manifest", "hcgen-manifest 2", "GIF89a", "hcgen-manifest")
    damage("target", "cpu", "gpu", "gpu")
    damage("model", "width 64", "width -64", "width")
    damage("stage", "seq 64", "seq 63", "63")
    damage("param ", "params+0", "params+999999999", "params+999999999")
    damage("param ", "params+0", "params+1", "params+1")
    damage("param ", " f32 ", " f31 ", "f31")
    damage("launch ", "launch ", "launch no_", "no_")
    damage("launch ", "launch ", "lunch ", "lunch")
    damage("kernel ", " kernels/", " ../kernels/", "../kernels")
    for keep in (len(good) // 2, len(good) - 1, 0, 10):
        path.write_text(good[:keep])
        says("manifest")
    for i in range(20):
        path.write_bytes(Random(i).below(1 << 31).to_bytes(4, "little") * 1000)
        says("manifest")
    path.write_text(good)
    kernel = next(x.split()[2] for x in lines if x.startswith("kernel "))
    os.unlink(tmp / "a" / kernel)
    says(kernel)


@case
def sample_of_nothing(tmp):
    refused(tmp, 2, "sample", "sample")
    refused(tmp, 2, str(tmp), "sample", tmp, "--prompt", "a")
    train(tmp / "a", *shards(tmp))
    run_dir = tmp / "a/run"
    for words, says in ((["-n", "x"], "-n"), (["--temperature", "-1"], "--temperature"), (["-n", 1 << 40], "sample")):
        r = run(HCGEN, "sample", run_dir, "--prompt", "a", *words)
        expect(r.rc == 2 and says in r.err, words, r)
    shutil.rmtree(tmp / "a/kernels")
    r = run(HCGEN, "sample", run_dir, "--prompt", "a")
    expect(r.rc == 2 and "kernels/" in r.err, r)


# ---- signals --------------------------------------------------------------

def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        expect(time.monotonic() < end, "waited in vain")
        time.sleep(0.02)


def start(tmp, *words):
    p = subprocess.Popen([HCGEN, "train", str(SMALL), *words, "-o", str(tmp / "a"), "--quiet"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    file = tmp / "a/run/metrics.jsonl"
    until(lambda: p.poll() is not None or (file.exists() and file.read_text().count("\n") > 2))
    expect(p.poll() is None, "ended too soon", p.returncode)
    return p


def stopped(tmp, sig):
    """What is saved are the parameters after a whole step: a run of just so many has the same."""
    d, schedule = shards(tmp), sets(train__warmup=0, train__cooldown=0)
    p = start(tmp, *d, *schedule, *sets(train__steps=1000000))
    p.send_signal(sig)
    out, err = p.communicate(timeout=30)
    expect(p.returncode == 75, p.returncode, out, err)
    lines = metrics(tmp / "a")
    steps = lines[-1].get("stopped")
    expect(steps and lines[-2]["step"] == steps, lines[-2:])
    expect(lines[-1]["file"] == str(tmp / "a/run/stopped.safetensors"), lines[-1])
    whole(tmp)
    hcgen("sample", tmp / "a/run", "--prompt", "a", "-n", 2)
    train(tmp / "b", *d, *schedule, *sets(train__steps=steps))
    expect((tmp / "a/run/stopped.safetensors").read_bytes() == (tmp / "b/run/final.safetensors").read_bytes())


@case
def ctrl_c_saves(tmp):
    stopped(tmp, signal.SIGINT)


@case
def sigterm_saves(tmp):
    stopped(tmp, signal.SIGTERM)


@case
def signals_at_any_moment(tmp):
    """A handler may run while oneDNN has the stack pointer in a heap block: it needs a stack of its own."""
    r = run("cc", "-shared", "-fPIC", "-o", tmp / "storm.so", ROOT / "tests/e2e/storm.c", "-ldl")
    expect(r.rc == 0, r)
    d = shards(tmp)
    train(tmp / "a", *d, *sets(train__steps=200))
    train(tmp / "b", *d, *sets(train__steps=200), env={"LD_PRELOAD": str(tmp / "storm.so")})
    expect(numbers(tmp / "a") == numbers(tmp / "b"), "other numbers")


@case
def second_signal_ends_at_once(tmp):
    """In a step of half a second.  Where that ended between the two signals, the first had its way: again."""
    d = shards(tmp, tokens=[1] * 70000)
    for i in range(5):
        (tmp / str(i)).mkdir()
        p = start(tmp / str(i), *d, *sets(train__steps=1000, train__tokens_per_step=65536))
        p.send_signal(signal.SIGINT)
        time.sleep(0.05)
        p.send_signal(signal.SIGTERM)
        p.communicate(timeout=30)
        if p.returncode != 75:
            break
    expect(p.returncode == 128 + signal.SIGTERM, p.returncode)
    expect(not list((tmp / str(i)).rglob("*.safetensors")))
    whole(tmp)


if __name__ == "__main__":
    main()
