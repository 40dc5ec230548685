#!/usr/bin/env python3
"""Every intrinsic on the GPU against its definition, and goldens of what the GPU gave.

    intrinsics.py DIR [NAME…]        rows of the table in intrinsics.h; writes DIR/NAME.txt, prints a line of JSON for each
    intrinsics.py --compile [ARCH]   compiles every text with NVRTC, which needs no GPU

The table of launches is read from intrinsics.h; recipes, hash, tolerances and the format of goldens are those of
intrinsics.h once more, and tests/e2e/gpu_run.py holds the two against each other.  A row whose kernel hangs or kills
the context ends the process: what is left is started anew by a process of its own."""
import ctypes
import json
import math
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys

import device

HERE = pathlib.Path(__file__).resolve().parent
PRELUDE = HERE.parents[1] / "templates/cuda/prelude_2intrin.cuh"
ROW_SECONDS = 10        # arbitrary; a row takes milliseconds, its compilation a tenth of a second


# ---- 32-bit words ---------------------------------------------------------

def f32(x):
    """x rounded to a float"""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def float_bits(x):
    if math.isnan(x):
        return 0x7fc00000
    return struct.unpack("<I", struct.pack("<f", f32(x)))[0]


def bits_float(u):
    return struct.unpack("<f", struct.pack("<I", u & 0xffffffff))[0]


def mixed(i):
    i &= 0xffffffff
    i = (i ^ i >> 16) * 0x7feb352d & 0xffffffff
    i = (i ^ i >> 15) * 0x846ca68b & 0xffffffff
    return i ^ i >> 16


def words_hash(words):
    h = 0
    for i, w in enumerate(words):
        h = mixed(h ^ w) + i & 0xffffffff
    return h


# ---- recipes --------------------------------------------------------------

def word_bits(i):
    return mixed(i + 77)


def word_mma_integers(i):
    r = mixed(i + 1)
    if i % 10 < 6:
        return float_bits(r % 15 - 7) >> 16 | float_bits(r // 16 % 15 - 7) & 0xffff0000
    return float_bits(r % 201 - 100)


def word_mma_floats(i):
    r = mixed(i + 2)
    e = mixed(r)
    if i % 10 < 6:
        return r & 0x807f807f | 120 + e % 14 << 7 | 120 + e // 16 % 14 << 23
    return r & 0x807fffff | 119 + e % 16 << 23


def word_ldmatrix(i):
    return mixed(i + 3) if i < 128 else (5 * (i % 32) + 11 * (i // 32)) % 32


def word_matmul(i):
    w = 0
    for h in range(2):
        j = 2 * i + h
        if j >= 384:
            j = 256 + (j - 384) % 16 * 8 + (j - 384) // 16
        w |= float_bits(mixed(j + 4) % 15 - 7) >> 16 << 16 * h
    return w


def word_cp_async(i):
    w = mixed(i + 5)
    return int(w % 4 != 0) if i < 192 else w


PACK = [0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0xff80ffff, 0x7f7fffff, 0xff7f7fff,
        0x7f7f8000, 0x3f808000, 0x3f818000, 0x3f808001, 0x3f817fff, 1, 0x80000001, 0x00008000, 0x00018000, 0x00008001,
        0x007fffff, 0x807f8000, 0x7f7f7fff, 0xffffffff]


def word_pack(i):
    if i < len(PACK):
        return PACK[i]
    w = mixed(i + 6)
    return w & 0xffff0000 | 0x8000 if i % 3 == 0 else w


FP8 = [0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0x7f7fffff, 0xff7fffff, 1, 0x80000001,
       0x007fffff, 0x43e80000, 0xc3e80000, 0x47700000, 0xc7700000, 0x3a800000, 0x37000000]


def fp8_value(code, nexp):
    nman, bias = 7 - nexp, 2**(nexp - 1) - 1
    e, m = code >> nman, code & (1 << nman) - 1
    return (2**nman + m) * 2.**(e - bias - nman) if e else m * 2.**(1 - bias - nman)


def word_fp8(i):
    if i < 1024:
        code, nexp, kind = i // 8 % 128, 4 + i // 4 % 2, i % 4
        at = fp8_value(code, nexp)
        w = float_bits(at if kind == 0 else (at + fp8_value(code + 1, nexp)) / 2)
        return w + (kind == 3) - (kind == 2) | (i // 16 % 2) << 31
    w = mixed(i + 13)
    if i < 1024 + len(FP8):
        return FP8[i - 1024]
    return w & 0x807fffff | 100 + w // 8192 % 50 << 23 if i % 3 else w


EXP2 = [0, -0., 1, -1, 10, 127, f32(127.99999), 128, 129, f32(3e38), f32(-3e38), -125.5, -126.5, -150, f32(1e-40),
        f32(-1e-40), f32(1e-30), math.inf, -math.inf, math.nan]


def word_exp2(i):
    x = (mixed(i + 7) % 0x960001 - 0x4b0000) * 2.**-15
    if i < len(EXP2):
        x = EXP2[i]
    elif i % 4 == 0:
        x *= 2.**-8
    return 0 if abs(f32(x + 126)) < f32(.001) else float_bits(x)


LOG2 = [0, -0., 1, .5, 2, -1, f32(-1e-40), f32(1e-40), 2.**-126, f32(3.4028235e38), math.inf, -math.inf, math.nan,
        f32(.99999994), f32(1.0000001), 1024]


def word_log2(i):
    if i < len(LOG2):
        return float_bits(LOG2[i])
    r = mixed(i + 8)
    if i % 3 == 0:
        return 0x3f800000 - 0x8000 + r % 0x10000
    return r & 0x7fffff | 1 + mixed(r) % 254 << 23


def word_shuffle(i):
    w = mixed(i + 9)
    return w % 80 - 16 & 0xffffffff if i >= 32 else w & 0x807fffff | 0x3f800000


def word_doubles(i):
    w = mixed(i + 10)
    return w & 0x800fffff | 0x3ff00000 if i % 2 else w


def word_vote(i):
    r = mixed(i + 11) % 8
    return [0, int(i % 32 == 19), r + 1, r][min(i // 32, 3)]


def word_warp_max(i):
    w = mixed(i + 12) & 0x807fffff | (0x42000000 if i // 32 == i % 32 else 0x3f800000)
    if i // 32 == i % 32:
        w &= 0x7fffffff
    if i // 32 == 32:
        w |= 0x80000000
    elif i // 32 == 33 and i % 3:
        w = 0x7fc00000
    return w


# ---- the table ------------------------------------------------------------

class Row:
    def __init__(self, name, text, threads, grid, n, nin, nout, smem, word, near):
        product = lambda s: math.prod(int(x) for x in s.split("*"))
        self.name, self.text, self.word, self.near = name, text, word, near
        self.threads, self.grid, self.n, self.nin, self.nout, self.smem = map(
            product, (threads, grid, n, nin, nout, smem))

    def fill(self):
        return [globals()[self.word](i) for i in range(self.nin)]

    def source(self):
        return PRELUDE.read_text() + "\n" + (HERE / f"intrinsics/{self.text}.cu").read_text()


def table():
    text = (HERE / "intrinsics.h").read_text().split("intrinsics[] = {")[1].split("};")[0]
    found = re.findall(r'\{ "(\w+)",\s*"(\w+)",([\d\s*]+),([\d\s*]+),([\d\s*]+),([\d\s*]+),([\d\s*]+),([\d\s*]+),'
                       r'\s*(\w+),\s*(\w+) \}', text)
    if len(found) != text.count("{"):
        raise device.Fault("intrinsics.h: a row of the table does not read as one")
    return [Row(*f) for f in found]


# ---- what is expected, by the definitions ---------------------------------

def halves(words):
    """the bf16 numbers of words, the lower half first"""
    return [bits_float(x) for w in words for x in (w << 16, w & 0xffff0000)]


def mma_terms(lanes):
    """of each of the 128 words out of one product: c, and the 16 products a b"""
    A = [[0.] * 16 for _ in range(16)]
    B = [[0.] * 8 for _ in range(16)]
    C = [[0.] * 8 for _ in range(16)]
    for lane in range(32):
        w, g, t = lanes[10 * lane:10 * lane + 10], lane // 4, lane % 4
        for i, x in enumerate(halves(w[:4])):
            A[g + i // 2 % 2 * 8][2 * t + i % 2 + i // 4 * 8] = x
        for i, x in enumerate(halves(w[4:6])):
            B[2 * t + i % 2 + i // 2 * 8][g] = x
        for i, x in enumerate(w[6:]):
            C[g + i // 2 * 8][2 * t + i % 2] = bits_float(x)
    for o in range(128):
        row, col = o // 16 + o % 4 // 2 * 8, o // 4 % 4 * 2 + o % 2
        yield C[row][col], [A[row][k] * B[k][col] for k in range(16)]


def want_mma(t, w):
    return [float_bits(math.fsum([c] + ab)) for p in range(t.n) for c, ab in mma_terms(w[320 * p:320 * p + 320])]


def want_ldmatrix(t, w):
    def element(warp, m, row, col):
        word = w[4 * w[128 + 32 * warp + 8 * m + row] + col // 2]
        return word >> 16 if col % 2 else word & 0xffff
    out = []
    for warp in range(4):
        for lane in range(32):
            for m in range(4 if "x4" in t.name else 2):
                a, b = lane // 4, 2 * (lane % 4)
                at = [(b, a), (b + 1, a)] if "trans" in t.name else [(a, b), (a, b + 1)]
                out.append(element(warp, m, *at[0]) | element(warp, m, *at[1]) << 16)
    return out


def want_matmul(t, w):
    A, B = halves(w[:128]), halves(w[128:192])
    one = [float_bits(math.fsum(A[16 * i + k] * B[8 * k + j] for k in range(16))) for i in range(16) for j in range(8)]
    return one * t.n


def want_cp_async(t, w):
    return [w[192 + 4 * (i ^ 1) + j] if w[i ^ 1] else 0 for i in range(192) for j in range(4)]


def nearest_bf16(u):
    """Upper half of the float nearest among those with 16 zeros below; ties to even; a NaN is 0x7fff."""
    if u & 0x7fffffff > 0x7f800000:
        return 0x7fff
    up, rest = u >> 16, u & 0xffff
    return up + (rest > 0x8000 or (rest == 0x8000 and up % 2))


def want_pack(t, w):
    return [nearest_bf16(w[2 * i]) | nearest_bf16(w[2 * i + 1]) << 16 for i in range(t.n)]


def nearest_fp8(u, nexp):
    """Of the finite numbers the nearest, of two the even one; a NaN is 0x7f."""
    x = bits_float(u)
    if math.isnan(x):
        return 0x7f
    a, most = min(abs(x), 1e6), 0x7e if nexp == 4 else 0x7b
    return min(range(most + 1), key=lambda c: (abs(a - fp8_value(c, nexp)), c % 2)) | u >> 24 & 0x80


def want_pack_fp8(t, w):
    return [nearest_fp8(w[2 * i], 4) | nearest_fp8(w[2 * i + 1], 4) << 8 | nearest_fp8(w[2 * i], 5) << 16
            | nearest_fp8(w[2 * i + 1], 5) << 24 for i in range(t.n) for _ in range(2)]


def flushed(x):
    return math.copysign(0., x) if abs(x) < 2.**-126 else x


def true_exp2(u):
    x = flushed(bits_float(u))
    return math.inf if x > 1000 else 2.**x


def true_log2(u):
    x = flushed(bits_float(u))
    return -math.inf if x == 0 else math.nan if x < 0 else x if math.isinf(x) else math.log2(x)


def want_exp2(t, w):
    return [float_bits(flushed(f32(true_exp2(x)))) for x in w]


def want_log2(t, w):
    return [float_bits(true_log2(x)) for x in w]


def want_stream(t, w):
    return [w[4 * i + (j + 1) % 4] for i in range(t.n) for j in range(4)]


def want_dynamic_smem(t, w):
    return [w[b * t.n + t.n - 1 - i] for b in range(t.grid) for i in range(t.n)] + [0] * t.grid


def source_lane(form, lane, asked, width):
    """up and down stay in the segment, xor may reach an earlier one but no later one, idx is modulo width"""
    base = lane // width * width
    if form < 2:
        return base + (asked if form else 5) % width
    step = [1, 3, 1, 3, 1, 5][form - 2]
    to = lane - step if form < 4 else lane + step if form < 6 else lane ^ step
    return lane if (to < base if form < 4 else to >= base + width) else to


def want_shuffle(t, w):
    signed = [x - 2**32 if x >> 31 else x for x in w]
    return [w[source_lane(form, lane, signed[32 + lane], 32 >> k)]
            for k in range(t.n) for form in range(8) for lane in range(32)]


def want_shuffle_double(t, w):
    out = []
    for form in range(4):
        for i in range(32):
            at = [7, i if i < 2 else i - 2, i if i > 29 else i + 2, i ^ 16][form]
            out += w[2 * at:2 * at + 2]
    return out


def want_vote(t, w):
    out = []
    for warp in range(t.n):
        x = w[32 * warp:32 * warp + 32]
        ballot = sum((v != 0) << i for i, v in enumerate(x))
        low = sum((x[i] & 1) << i for i in range(16))
        high = sum((x[i] >> 1 & 1) << i for i in range(16, 32))
        total = sum(x[:16]), sum(x[16:])
        for i in range(32):
            s = total[i // 16]
            out += [ballot, ballot != 0, ballot == 0xffffffff, high if i > 15 else low,
                    s + (i % 16 == 0 and s % 2)]
    return [int(v) for v in out]


def want_warp_max(t, w):
    out = []
    for warp in range(t.n):
        x = [bits_float(v) for v in w[32 * warp:32 * warp + 32]]
        out += [float_bits(max(v for v in x if not math.isnan(v)))] * 32
    return out


def want(t, w):
    return globals()["want_" + {"pack_bf16x2": "pack", "exp2_approx": "exp2", "log2_approx": "log2"}.get(
        t.text, "ldmatrix" if t.text.startswith("ldmatrix") else t.text)](t, w)


# ---- comparison -----------------------------------------------------------

def ulps(a, b):
    a, b = ((-1 if u >> 31 else 1) * (u & 0x7fffffff) for u in (a, b))
    return abs(a - b)


def mma_magnitudes(w):
    return [abs(c) + math.fsum(map(abs, ab)) for p in range(len(w) // 320)
            for c, ab in mma_terms(w[320 * p:320 * p + 320])]


def near_word(near, x, magnitude, got, expected):
    """x: the word in.  As near_word() of intrinsics.h."""
    g, e = bits_float(got), bits_float(expected)
    if got == expected or near == "NearExact":
        return got == expected
    if math.isnan(g) or math.isnan(e):
        return math.isnan(g) and math.isnan(e)
    if math.isinf(g) or math.isinf(e):
        return False
    if near == "NearExp2":
        return ulps(got, expected) <= 3
    if near == "NearLog2":
        return abs(g - e) <= (2.**-22 + 2.**-24 if 0x3f000000 < x < 0x40000000 else abs(e) * (2.**-22 + 2.**-23))
    return abs(g - e) <= 2.**-18 * magnitude


def finite(*words):
    return all(w & 0x7f800000 != 0x7f800000 for w in words)


def worst(values):
    return max(values, default=0.)


def observed(t, w, got, expected, magnitude):
    """[(what, number, unit)]: how far the GPU is from what is expected, however far is allowed"""
    out = [("words that differ", sum(a != b for a, b in zip(got, expected)), f"of {t.nout}")]
    at = [i for i in range(t.nout) if finite(got[i], expected[i])]
    if t.near == "NearMma":
        off = {i: abs(bits_float(got[i]) - bits_float(expected[i])) for i in at}
        out += [("largest error", worst(off[i] / magnitude[i] * 2.**18 for i in at), "of the tolerance 2^-18 S"),
                ("largest error", worst(ulps(got[i], expected[i]) for i in at), "ulp")]
    elif t.near == "NearExp2":
        out.append(("largest error", worst(ulps(got[i], expected[i]) for i in at), "ulp (3 allowed)"))
    elif t.near == "NearLog2":
        inside = [i for i in at if 0x3f000000 < w[i] < 0x40000000]
        true = {i: true_log2(w[i]) for i in at}
        off = {i: abs(bits_float(got[i]) - true[i]) for i in at}
        out += [("largest error in (1/2, 2)", worst(off[i] for i in inside) * 2.**22, "2^-22"),
                ("largest error elsewhere", worst(off[i] / abs(true[i]) for i in at if true[i] and i not in set(inside))
                 * 2.**22, "2^-22 of the value")]
    return out


# ---- goldens --------------------------------------------------------------

def golden_text(t, name, w, out):
    lines = [" ".join(f"{x:08x}" for x in out[i:i + 8]) for i in range(0, t.nout, 8)]
    return (f"# out of try_{t.text} on {name}; see tests/gpu/intrinsics.h\nin {words_hash(w):08x}\nout {t.nout}\n"
            + "\n".join(lines) + "\n")


# ---- on the GPU -----------------------------------------------------------

def pack(words):
    return struct.pack(f"<{len(words)}I", *words)


def run_row(gpu, nvrtc, t, w):
    """Words out of two launches, over a pattern each."""
    f = gpu.kernel(nvrtc.cubin(f"{t.text}.cu", t.source(), gpu.arch), f"try_{t.text}", t.smem)
    pattern = b"\xa5" * (4 * t.nout)
    out, given = gpu.memory(pattern), gpu.memory(pack(w))
    both = []
    for _ in range(2):
        gpu.write(out, pattern)
        gpu.launch(f, t.grid, t.threads, t.smem, out, given, ctypes.c_int64(t.n))
        both.append(list(struct.unpack(f"<{t.nout}I", gpu.read(out, 4 * t.nout))))
    gpu.free(out)
    gpu.free(given)
    return both


def judge(t, w, both):
    got, again = both
    expected = want(t, w)
    magnitude = mma_magnitudes(w) if t.near == "NearMma" else [0.] * t.nout
    bad = [i for i in range(t.nout) if not near_word(t.near, w[i] if i < t.nin else 0, magnitude[i], got[i], expected[i])]
    why = ""
    if bad:
        i = bad[0]
        why = (f"{len(bad)} words too far off; word {i} is {got[i]:08x} ({bits_float(got[i]):.9g}), "
               f"not {expected[i]:08x} ({bits_float(expected[i]):.9g})")
    elif got != again:
        why = "two launches gave different words"
    return why, observed(t, w, got, expected, magnitude)


def run_here(folder, rows):
    signal.alarm(ROW_SECONDS)
    try:
        gpu, nvrtc = device.Gpu(), device.Nvrtc()
    except device.Fault as e:
        print(json.dumps({"name": rows[0].name, "why": str(e), "fatal": True}), flush=True)
        return
    for t in rows:
        signal.alarm(ROW_SECONDS)       # its default ends this process even while it waits for the GPU
        found = {"name": t.name, "gpu": gpu.name, "arch": gpu.arch}
        try:
            w = t.fill()
            both = run_row(gpu, nvrtc, t, w)
            (folder / f"{t.name}.txt").write_text(golden_text(t, gpu.name, w, both[0]))
            found["why"], found["numbers"] = judge(t, w, both)
        except device.Fault as e:
            found["why"] = str(e)
        signal.alarm(0)
        print(json.dumps(found), flush=True)
        if "cu" == found["why"][:2]:    # the context may be dead
            os._exit(1)
    os._exit(0)     # without what the libraries would do at the end


def run_all(folder, names):
    """Each row answers, or is said to have ended its process; then the rest goes on in a new one."""
    rows = [t for t in table() if not names or t.name in names]
    while rows:
        words = [sys.executable, __file__, "--here", str(folder)] + [t.name for t in rows]
        p = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        lines = [x for x in p.stdout.splitlines() if x.startswith("{")]
        print("\n".join(lines), flush=True)
        if len(lines) == len(rows) or (lines and json.loads(lines[-1]).get("fatal")):
            return
        answered = len(lines)
        if not lines or json.loads(lines[-1])["why"][:2] != "cu":
            why = "no answer" if p.returncode == -signal.SIGALRM else f"its process ended with {p.returncode}"
            print(json.dumps({"name": rows[answered].name, "why": why}), flush=True)
            answered += 1
        rows = rows[answered:]


def compile_all(arch):
    nvrtc = device.Nvrtc()
    for text in sorted({t.text for t in table()}):
        try:
            row = next(t for t in table() if t.text == text)
            print("ok", text, len(nvrtc.cubin(f"{text}.cu", row.source(), arch)))
        except device.Fault as e:
            print("FAIL", text, e)


def main(words):
    if words[:1] == ["--compile"]:
        compile_all(words[1] if words[1:] else "sm_90a")
    elif words[:1] == ["--here"]:
        folder = pathlib.Path(words[1])
        run_here(folder, [t for t in table() if t.name in words[2:]])
    else:
        folder = pathlib.Path(words[0])
        folder.mkdir(parents=True, exist_ok=True)
        run_all(folder, words[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
