#!/usr/bin/python3
"""tests/gpu/run.sh where there is no GPU: on the stand-ins, on a made-up hcgen that hangs or fails, and on nothing.
And what it says of intrinsics against tests/gpu/intrinsics.h, in whose words goldens are replayed."""
import re
import signal
import tarfile
import time

from lib import *

sys.path.insert(0, str(ROOT / "tests/gpu"))
sys.dont_write_bytecode = True
import files        # noqa: E402
import intrinsics   # noqa: E402
import parse        # noqa: E402
import steps        # noqa: E402

RUN = ROOT / "tests/gpu/run.sh"
BUILD = pathlib.Path(os.environ.get("STANDIN_BUILD") or ROOT / "build")
FORGET = {k: None for k in os.environ if k.startswith("HCGEN_GPU") or k in ("HCGEN_STANDIN", "HCGEN_CUDA_PATH", "HCGEN_COMMIT")}

HELPER = r"""
#include "../../tests/gpu/intrinsics.h"

/* table: every row and its words in.  check DIR: the golden of each row against the words out that come as
 * lines on stdin.  near: lines "row word got want", each answered. */
int
main(int argc, char **argv)
{
	static uint32_t in[8192], out[8192];
	unsigned row, word, got, want;
	char err[200] = "";
	long i;

	for (row = 0; row < NIntrinsics && argv[1][0] != 'n'; row++) {
		const Intrinsic *t = &intrinsics[row];

		intrinsic_fill(t, in);
		if (argv[1][0] == 't')
			printf("%s %s %d %ld %ld %ld %ld %zu %d %08x\n", t->name, t->text, t->threads, t->grid, t->n,
			       t->nin, t->nout, t->smem, t->near, words_hash(in, t->nin));
		for (i = 0; i < (argv[1][0] == 't' ? t->nin : t->nout); i++)
			if (argv[1][0] == 't')
				printf("%08x\n", in[i]);
			else if (scanf("%x", &out[i]) != 1)
				return 1;
		if (argv[1][0] == 'c')
			printf("%s %d %s\n", t->name, golden_check(argv[2], t, in, out, err), err);
	}
	while (argc == 2 && argv[1][0] == 'n' && scanf("%u %u %x %x", &row, &word, &got, &want) == 4) {
		intrinsic_fill(&intrinsics[row], in);
		printf("%d\n", near_word(&intrinsics[row], in, word, got, want));
	}
	return 0;
}
"""


def helper(tmp):
    (tmp / "helper.c").write_text(HELPER.replace("../..", str(ROOT)))
    r = run(os.environ.get("CC", "gcc"), "-std=gnu11", "-Wall", "-o", tmp / "helper", tmp / "helper.c", "-lm")
    expect(r.rc == 0, r)
    return tmp / "helper"


def answers(exe, *words, given=""):
    return subprocess.run([str(w) for w in (exe, *words)], input=given, capture_output=True, text=True, check=True).stdout


@case
def table_and_recipes_are_those_of_the_header(tmp):
    kinds = ["NearExact", "NearExp2", "NearLog2", "NearMma"]
    ours = []
    for t in intrinsics.table():
        w = t.fill()
        ours.append(f"{t.name} {t.text} {t.threads} {t.grid} {t.n} {t.nin} {t.nout} {t.smem} {kinds.index(t.near)} "
                    f"{intrinsics.words_hash(w):08x}")
        ours += [f"{x:08x}" for x in w]
    theirs = answers(helper(tmp), "table").splitlines()
    for a, b in zip(ours, theirs):
        expect(a == b, a, "in Python,", b, "in C")
    expect(len(ours) == len(theirs), len(ours), len(theirs))


@case
def comparison_is_that_of_the_header(tmp):
    """Of words that are right, off by few or by many of the last bits, and of another kind."""
    r, lines, ours = Random(5), [], []
    for row, t in enumerate(intrinsics.table()):
        w = t.fill()
        expected = intrinsics.want(t, w)
        magnitude = intrinsics.mma_magnitudes(w) if t.near == "NearMma" else [0] * t.nout
        for _ in range(20 if t.near == "NearExact" else 200):
            i, want = r.below(t.nout), None
            want = expected[i]
            got = [want, want ^ 1, want + r.below(10) - 5 & 0xffffffff, want + r.below(1 << 14) & 0xffffffff,
                   0x7f800000, 0x7fc00001, want ^ 0x80000000][r.below(7)]
            lines.append(f"{row} {i} {got:x} {want:x}")
            ours.append(int(intrinsics.near_word(t.near, w[i] if i < t.nin else 0, magnitude[i], got, want)))
    theirs = [int(x) for x in answers(helper(tmp), "near", given="\n".join(lines)).split()]
    for a, b, line in zip(ours, theirs, lines):
        expect(a == b, "row, word, got, want", line, f"{a} in Python, {b} in C")
    expect(len(ours) == len(theirs) and 0 < sum(ours) < len(ours))


def damaged(t, words):
    """one bit of a word that is a number, as far up as every tolerance notices"""
    at = next(i for i in range(t.nout // 2, t.nout) if words[i] & 0x7f800000 != 0x7f800000)
    return words[:at] + [words[at] ^ (1 if t.near == "NearExact" else 1 << 20)] + words[at + 1:]


@case
def goldens_replay(tmp):
    """Goldens of what is expected are near what is expected, and not near what is damaged."""
    good, bad = [], []
    for t in intrinsics.table():
        expected = intrinsics.want(t, t.fill())
        (tmp / f"{t.name}.txt").write_text(intrinsics.golden_text(t, "this", t.fill(), expected))
        good += expected
        bad += damaged(t, expected)
    exe = helper(tmp)
    for words, verdict in (good, "1"), (bad, "-1"):
        for line in answers(exe, "check", tmp, given="\n".join(f"{x:x}" for x in words)).splitlines():
            expect(line.split()[1] == verdict, line)


@case
def damaged_words_are_told(tmp):
    for t in intrinsics.table():
        w = t.fill()
        expected = intrinsics.want(t, w)
        expect(not intrinsics.judge(t, w, (expected, expected))[0], t.name)
        bad = damaged(t, expected)
        expect("too far off" in intrinsics.judge(t, w, (bad, bad))[0], t.name)
        expect("different words" in intrinsics.judge(t, w, (expected, bad))[0], t.name)


@case
def texts_compile(tmp):
    r = run("python3", ROOT / "tests/gpu/intrinsics.py", "--compile", env=FORGET)
    if "not there" in r.err:
        raise Skip("no NVRTC")
    expect(r.rc == 0 and "FAIL" not in r.out and r.out.count("ok ") == 17, r)


# ---- whole runs -----------------------------------------------------------

def gpu_run(out, want, **env):
    """(gpu.json, gpu.md) of a run that ends with exit code want"""
    r = run("sh", RUN, out, env={**FORGET, "HCGEN": HCGEN, "HCGEN_COMMIT": "abc", **env}, timeout=300)
    expect(r.rc == want, f"wanted exit {want}, got", r)
    return result(out)


def result(out):
    report, text = json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()
    with tarfile.open(out / "gpu.tar.gz") as t:
        expect({"gpu.md", "gpu.json", "log"} <= set(t.getnames()), t.getnames())
    expect(not (out / "tmp").exists(), "DIR/tmp is still there")
    for path in str(ROOT), str(out):
        expect(path not in text and path not in json.dumps(report), "a path of this machine:", path)
    return report, text


def outcomes(report):
    return {s["name"]: s["outcome"] for s in report["steps"]}


def step(report, name):
    return next(s for s in report["steps"] if s["name"] == name)


def value(report, name, what):
    return next(n["value"] for n in step(report, name)["numbers"] if n["what"] == what)


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def stand_ins(**more):
    r = run("sh", ROOT / "tests/standin/build.sh", BUILD, timeout=300)
    expect(r.rc == 0, r)
    return {"HCGEN_CUDA_PATH": str(BUILD / "standin"), "HCGEN_GPU_QUICK": "1", **more}


SANITIZER = """#!/bin/sh
shift 4
"$@" || exit 1
echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
"""


@case
def runs_on_stand_ins(tmp):
    (tmp / "bin").mkdir()
    script(tmp / "bin/compute-sanitizer", SANITIZER)
    report, text = gpu_run(tmp / "out", 0, **stand_ins(PATH=f"{tmp}/bin:{os.environ['PATH']}"))
    got = outcomes(report)
    expect(list(got) == [s[0] for s in steps.STEPS] + ["random"], got)
    wrong = {k: step(report, k) for k, v in got.items() if v != "ok" and k not in steps.NOT_QUICK and k != "torch"}
    expect(not wrong, wrong)
    expect(report["stand_in"] and report["finished"] and report["commit"] == "abc", report)
    expect("Nothing here was measured on a GPU" in text and "commit" not in text and "| abc |" in text, text[:800])
    expect(value(report, "verify-reference", "worst error of a step's f32 results") < 1e-5)
    expect(value(report, "curve", "f32, two runs") == "the same bits")
    expect(0 < value(report, "start", "full cache: command to the end of the first step")
           < value(report, "start", "empty cache: command to the end of the first step"))
    expect(value(report, "racecheck", "errors") == 0)
    kinds, table = step(report, "bench-two-lane")["tables"]
    expect({r[0] for r in kinds["rows"]} == {"products", "attention", "other kernels"}, kinds)
    expect(len(table["rows"]) > 20 and all(len(r) == len(table["columns"]) for r in table["rows"]))
    expect({"adamw", "mlp.up fwd"} <= {r[0] for r in table["rows"]}, table["rows"])
    replays(tmp, tmp / "out/intrinsics")


def replays(tmp, folder):
    """What the stand-ins gave is near what is expected, for the C of intrinsics.h too."""
    expect(sorted(p.stem for p in folder.iterdir()) == sorted(steps.QUICK_ROWS), list(folder.iterdir()))
    words = [f"{x:x}" for t in intrinsics.table() for x in intrinsics.want(t, t.fill())]
    lines = answers(helper(tmp), "check", folder, given="\n".join(words)).splitlines()
    verdicts = {line.split()[0]: line.split()[1] for line in lines}
    expect(verdicts == {t.name: "1" if t.name in steps.QUICK_ROWS else "0" for t in intrinsics.table()}, lines)


@case
def says_that_there_is_no_driver(tmp):
    if (json.loads(hcgen("doctor", "--json", env=FORGET).out)["libraries"]["cuda"]["soname"]):
        raise Skip("there is a driver")
    report, text = gpu_run(tmp / "out", 2)
    expect(outcomes(report).pop("doctor") == "failed" and set(outcomes(report).values()) == {"failed", "not run"})
    expect("**Nothing was measured on a GPU yet.**" in text and "libcuda.so.1" in text, text)
    expect(not re.search(r"TFLOP|GB/s|tokens/s", text), text)


@case
def says_that_there_is_no_device(tmp):
    report, text = gpu_run(tmp / "out", 2, **stand_ins(HCGEN_STANDIN="no_device"))
    expect("**Nothing was measured on a GPU yet.**" in text and "no GPU" in report["no_gpu"], text)


@case
def a_wrong_product_is_told(tmp):
    report, text = gpu_run(tmp / "out", 1, **stand_ins(HCGEN_STANDIN="wrong_gemm", HCGEN_GPU_STEPS="verify-reference long"))
    expect(outcomes(report)["verify-reference"] == outcomes(report)["long"] == "failed", outcomes(report))
    expect("lines say FAIL" in text and "off by" in text, text)


@case
def a_kernel_that_dies_is_named(tmp):
    """and the intrinsics behind one that dies still run"""
    broken = "illegal=adamw,illegal=try_ldmatrix_x4_trans"
    report, text = gpu_run(tmp / "out", 1, **stand_ins(HCGEN_STANDIN=broken, HCGEN_GPU_STEPS="intrinsics curve"))
    expect(any("adamw" in n for n in step(report, "curve")["notes"]), step(report, "curve"))
    rows = {r[0]: r[1] for r in step(report, "intrinsics")["tables"][0]["rows"]}
    expect([k for k, v in rows.items() if v != "as expected"] == ["ldmatrix_x4_trans"], rows)
    expect(list(rows) == steps.QUICK_ROWS or sorted(rows) == sorted(steps.QUICK_ROWS), rows)


# ---- a made-up hcgen ------------------------------------------------------

FAKE = r"""#!/usr/bin/python3
import json, os, sys, time
open(os.environ["FAKE_LOG"], "a").write(json.dumps(sys.argv[1:]) + "\n")
verb = sys.argv[1]
if verb in os.environ.get("FAKE_HANGS", "").split():
    time.sleep(60)
if verb == "doctor":
    lib = {"needed": False, "soname": "x.so", "version": "13.0", "error": None}
    print(json.dumps({"cpu": "c", "cores": 1, "usable": 1, "memory": 1, "compiler": None, "cuda": None, "simt": None,
                      "libraries": {k: lib for k in ("onednn", "cuda", "nvrtc", "cublaslt")},
                      "gpu": {"name": "a GPU", "capability": "9.0", "multiprocessors": 1, "memory": 1}}))
elif verb == "train" and "--json" in sys.argv:
    for i in range(1, 8):
        print(json.dumps({"step": i, "loss": 1 / i, "norm": 1.5, "ms": 2.5}, separators=(",", ":")), flush=True)
    time.sleep(60)
elif verb != "--help":
    print("nothing that reads")
    sys.exit(3)
"""


def fake(tmp, **env):
    script(tmp / "fake", FAKE)
    return {"HCGEN": str(tmp / "fake"), "FAKE_LOG": str(tmp / "log"), "HCGEN_GPU_STEPS": " ".join(
        s[0] for s in [*steps.STEPS, steps.REST] if s[0] not in ("intrinsics", "racecheck", "memcheck", "torch")), **env}


@case
def steps_behind_one_that_hangs_or_fails_still_run(tmp):
    report, text = gpu_run(tmp / "out", 1, **fake(tmp, FAKE_HANGS="verify", HCGEN_GPU_SCALE="0.05"))
    got = outcomes(report)
    expect(got["verify-reference"] == got["verify-two-lane"] == "out of time", got)
    expect(got["start"] == "ok" and got["bench-two-lane"] == "failed" and got["random"] == "not run", got)
    expect(value(report, "start", "full cache: training") == 393216 / 2.5e-3, step(report, "start"))
    expect(report["seconds"] < 30 and report["finished"], report["seconds"])
    expect("**Out of time**" in text and "nothing that reads" in text, text)
    spec_words_are_good(tmp / "log")


def spec_words_are_good(log):
    """What a GPU is to run is a spec that hcgen takes, with settings that it takes."""
    seen = 0
    for words in map(json.loads, open(log)):
        if words[0] in ("verify", "train", "bench"):
            keep = [w for a, w in zip([""] + words, words) if a == "--set"]
            hcgen("check", words[1], *[x for w in keep for x in ("--set", w)])
            seen += 1
    expect(seen > 8, seen)
    for kind in steps.BF16, []:
        hcgen("check", steps.LONG, *kind)


@case
def the_page_is_there_when_told_to_end(tmp):
    env = environment({**FORGET, **fake(tmp, FAKE_HANGS="verify")})
    p = subprocess.Popen(["sh", str(RUN), str(tmp / "out")], env=env, stdout=subprocess.DEVNULL)
    for _ in range(200):
        if (tmp / "log").exists() and "verify" in (tmp / "log").read_text():
            break
        time.sleep(.05)
    p.send_signal(signal.SIGTERM)
    expect(p.wait(20) == 143)
    report, text = result(tmp / "out")
    expect(not report["finished"] and outcomes(report)["verify-reference"] == "stopped", outcomes(report))
    expect("did not come to its end" in text and "**Stopped**" in text, text)


@case
def a_binary_that_does_not_start_is_told(tmp):
    (tmp / "bin").mkdir()
    script(tmp / "bin/make", "#!/bin/sh\necho no compiler >&2\nexit 2\n")
    exe = script(tmp / "dead", "#!/bin/sh\necho libyaml is missing >&2\nexit 127\n")
    report, text = gpu_run(tmp / "out", 2, HCGEN=str(exe), PATH=f"{tmp}/bin:{os.environ['PATH']}")
    expect("libyaml is missing" in text and "no compiler" in text, text)


# ---- parsing --------------------------------------------------------------

@case
def reads_what_sanitizers_say(tmp):
    for text, errors in (("========= ERROR SUMMARY: 0 errors\n", 0), ("========= ERROR SUMMARY: 12 errors\n", 12),
                         ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n", 2), ("killed\n", None)):
        expect(parse.sanitizer(text)[0] == errors, text, parse.sanitizer(text))


@case
def tensors_read_back(tmp):
    x = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(3, "f4")}
    write_params(tmp / "x", x)
    mine = files.read_tensors(tmp / "x")
    files.write_tensors(tmp / "y", mine)
    back = read_params(tmp / "y")
    expect(all((back[k] == x[k]).all() and back[k].shape == x[k].shape for k in x), back)
    mine["a"][2][5] = 5.5
    off = files.relative_errors(mine, files.read_tensors(tmp / "x"))
    expect(abs(off["a"] - .5 / 55**.5) < 1e-7 and off["b"] == 0, off)
    mine["b"][2][0] = float("nan")
    expect(files.relative_errors(mine, files.read_tensors(tmp / "x"))["b"] == float("inf"))


if __name__ == "__main__":
    main()
