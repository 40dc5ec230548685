#!/usr/bin/python3
"""--device cuda on the stand-ins of tests/standin: it trains as the other devices do, whenever the GPU does
its work, keeps the rules that the stand-ins enforce, and every fault has its message and exit code."""
import ctypes
import re
import shutil
import signal

from lib import *

BUILD = pathlib.Path(os.environ.get("STANDIN_BUILD") or ROOT / "build")
LIBS = BUILD / "standin"
BF16 = sets(numerics__storage="bf16", numerics__gemm="bf16")
SHORT = sets(train__steps=1, train__tokens_per_step=128, train__warmup=0, train__val_tokens=64)
# The matrices of one shape are one batch in NorMuon's products.
BATCHES = sets(optim__groups="{matrices: {match: 'layers.*.mlp.*', kind: normuon, lr: 0.02}}")
# Attention takes more than the 48 KiB of shared memory that a kernel has without asking.
WIDE_HEAD = [*BF16, *sets(model__heads=1)]
KERNEL = "mlp_glue_fwd__n2_C64_f32"
DATA = []                               # --set words, made once
HOME = tempfile.TemporaryDirectory(prefix="hcgen-e2e-cuda-")


def data():
    if not DATA:
        DATA.extend(make_data(pathlib.Path(HOME.name)))
    return DATA


def log_of(tmp):
    """What the stand-ins noted."""
    log = tmp / "standin.log"
    return log.read_text() if log.exists() else ""


def stand_in(tmp, faults="", libs=LIBS, **more):
    return {"HCGEN_CUDA_PATH": str(libs), "HCGEN_STANDIN": faults, "HCGEN_STANDIN_LOG": str(tmp / "standin.log"),
            "HCGEN_NO_TUNE": None, "HCGEN_CUDA_SYNC": None, **more}


def run_cuda(tmp, out, *words, faults="", want=0, libs=LIBS, env={}):
    return hcgen("train", SMALL, "-o", tmp / out, "--quiet", "--device", "cuda", *data(), *words, want=want,
                 env=stand_in(tmp, faults, libs, **env))


def cache_with(tmp, *suffixes):
    """A cache of its own, that holds what the usual one has of some kinds: compiling takes its time."""
    usual, own = os.environ.get("HCGEN_CACHE"), tmp / "cache"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(mode=0o700)
    run_cuda(tmp, "out", *SHORT)
    for f in pathlib.Path(usual).iterdir() if usual else []:
        if f.suffix in suffixes:
            shutil.copy2(f, own / f.name)
    return {"HCGEN_CACHE": str(own)}


def same(a, b):
    for x, y in zip(numbers(a)[1:], numbers(b)[1:]):
        expect(x == y, x, "against", y)
    expect(len(numbers(a)) == len(numbers(b)))
    expect((a / "run/final.safetensors").read_bytes() == (b / "run/final.safetensors").read_bytes(),
           "same losses, other final.safetensors")


def clean(tmp):
    expect(not log_of(tmp), "rules were broken:", log_of(tmp))


# ---- correct use ----------------------------------------------------------

def as_on(devices, tmp, bound, *words):
    """Losses of 20 steps, relative, with more micro-batches than there are buffers for batches. Sums of
    products are in other orders: in f32 the eight orders tried (oneDNN's on two devices, the stand-in's five,
    one of them through a workspace) differ by 3e-5 after 20 steps of AdamW, whose first steps turn signs of
    tiny gradients into whole steps."""
    words = [*sets(train__tokens_per_step=256, train__micro_batches=4, train__clip=0.5, train__val_tokens=128), *words]
    run_cuda(tmp, "cuda", *words, faults="leaks")
    clean(tmp)
    for device in devices:
        train(tmp / device, *data(), *words, "--device", device)
        worst = max(abs(x - y) / y for x, y in zip(losses(tmp / "cuda") + val_losses(tmp / "cuda"),
                                                   losses(tmp / device) + val_losses(tmp / device)))
        expect(len(losses(tmp / device)) == 20 and worst < bound, device, worst)
    expect(metrics(tmp / "cuda")[0]["device"] != metrics(tmp / "cpu")[0]["device"], metrics(tmp / "cuda")[0])


@case
def trains_as_cpu_in_f32(tmp):
    """And so as simt, which simt.py holds against cpu."""
    as_on(["cpu"], tmp, 3e-4)


@case
def trains_as_cpu_in_bf16(tmp):
    as_on(["cpu"], tmp, 1e-3, *BF16)


@case
def stages_as_on_other_devices(tmp):
    """Rows, sequences, windows and frequencies that change on the way, validation in sequences of its own."""
    as_on(["simt", "cpu"], tmp, 3e-4, *sets(
        train__steps=17, train__stages="{one: {tokens_per_step: 256, seq_len: 32, long_window: 16}, two: {lr_mul: 0.5}, "
        "three: {steps: 3, long_window: 50}}", train__val_batch=128, train__val_seq_len=128, train__val_every=8,
        train__final__long_window=100, model__attention__window=8, model__attention__long_layers="[1]",
        model__attention__long_window=30, model__rotary__yarn="true"))


@case
def repeats_bit_for_bit(tmp):
    """Algorithms are chosen by time, once: what the cache holds is taken again."""
    cache = cache_with(tmp, ".so", ".cubin")
    for out in "one", "two", "three":
        run_cuda(tmp, out, *BF16, *sets(train__steps=5), env=cache)
        same(tmp / "one", tmp / out)
    expect(list((tmp / "cache").glob("*.gemm")), "no choice was kept")
    clean(tmp)


@case
def repeats_whenever_work_is_done(tmp):
    words = sets(train__steps=4, train__warmup=1, train__clip=0.5, train__micro_batches=4, train__val_every=2,
                 train__val_tokens=128)
    for order in "lazy", "eager", "random:1", "random:2":
        run_cuda(tmp, order, *words, faults=f"order={order},leaks")
        same(tmp / "lazy", tmp / order)
    clean(tmp)


@case
def repeats_whatever_threads_run_first(tmp):
    for seed in 0, 1, 2:
        run_cuda(tmp, f"seed{seed}", *sets(train__steps=3), faults=f"seed={seed}")
        same(tmp / "seed0", tmp / f"seed{seed}")


@case
def kernels_pass_the_checks_of_the_executor(tmp):
    for words in [], BF16:
        run_cuda(tmp, "out", *SHORT, *words, faults="check,leaks")
    clean(tmp)


@case
def more_shared_memory_than_kernels_have_unasked(tmp):
    run_cuda(tmp, "cuda", *SHORT, *WIDE_HEAD, faults="leaks")
    clean(tmp)
    smem = [int(s.split()[-1]) for s in (tmp / "cuda/manifest").read_text().splitlines() if s.startswith("kernel")]
    expect(max(smem) > 48 << 10, "this test tests nothing", smem)
    train(tmp / "simt", *data(), *SHORT, *WIDE_HEAD, "--device", "simt")
    a, b = losses(tmp / "cuda")[0], losses(tmp / "simt")[0]
    expect(abs(a - b) < 1e-3 * b, a, b)


@case
def reference_spec(tmp):
    """Small, with every static feature on."""
    r = Random(1)
    for name in "train", "val":
        write_shard(tmp / f"{name}.bin", [r.below(101) for _ in range(4000)])
    words = [*data_at(tmp), *sets(train__steps=3, train__warmup=0)]
    for device in "cuda", "simt":
        hcgen("train", REFERENCE, "-o", tmp / device, "--quiet", "--device", device, *words,
              env=stand_in(tmp, "leaks"))
    clean(tmp)
    for x, y in zip(losses(tmp / "cuda"), losses(tmp / "simt")):
        expect(abs(x - y) < 1e-3 * y, x, y)


@case
def waiting_behind_each_step_changes_nothing(tmp):
    run_cuda(tmp, "a", *sets(train__steps=3))
    run_cuda(tmp, "b", *sets(train__steps=3), env={"HCGEN_CUDA_SYNC": "1"})
    same(tmp / "a", tmp / "b")


@case
def starts_from_parameters_of_another_device(tmp):
    initial(tmp / "p.safetensors", *data())
    train(tmp / "cpu", *data(), *SHORT, "--params", tmp / "p.safetensors")
    run_cuda(tmp, "cuda", *SHORT, "--params", tmp / "p.safetensors")
    a, b = losses(tmp / "cpu")[0], losses(tmp / "cuda")[0]
    expect(abs(a - b) < 1e-5 * a, a, b)


@case
def samples(tmp):
    run_cuda(tmp, "out", *SHORT)
    r = hcgen("sample", tmp / "out/run", "--prompt", "ab", "-n", 20, "--device", "cuda", env=stand_in(tmp, "leaks"))
    expect(r.out.startswith("ab") and len(r.out) > 10, r)
    clean(tmp)


@case
def verifies_and_sees_a_wrong_product(tmp):
    words = ["verify", SMALL, "--device", "cuda"]
    hcgen(*words, env=stand_in(tmp))
    clean(tmp)
    r = hcgen(*words, want=4, env=stand_in(tmp, "wrong_gemm"))
    expect("gemm" in r.out + r.err or "product" in r.out + r.err, r)


@case
def auto_is_cuda_where_it_works(tmp):
    for faults, device in ("", "stand-in"), ("no_device", None):
        hcgen("train", SMALL, "-o", tmp / "out", "--quiet", "--device", "auto", *data(), *SHORT,
              env=stand_in(tmp, faults))
        seen = metrics(tmp / "out")[0]["device"]
        expect(("cuda" in seen) == (device is not None), faults, seen)


@case
def doctor_knows_the_device(tmp):
    r = hcgen("doctor", env=stand_in(tmp))
    expect(re.search(r"device cuda +works", r.out) and "stand-in" in r.out, r)
    r = run(HCGEN, "doctor", env=stand_in(tmp, "old_driver=12020"))
    expect(not re.search(r"device cuda +works", r.out) and "12.2" in r.out, r)


# ---- a machine that lacks something ---------------------------------------

def fails(tmp, faults, want, *words, **more):
    """Exit code and words of the message."""
    r = run_cuda(tmp, "out", *SHORT, faults=faults, want=want, **more)
    for w in words:
        expect(w in r.err, faults, "says no", repr(w), r)
    expect("hcgen: " in r.err, r)
    return r


@case
def no_driver(tmp):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        raise Skip("there is one")
    fails(tmp, "", 2, "device cuda: ", "libcuda.so.1", libs=tmp)


@case
def machines_that_do_not_do(tmp):
    for faults, *words in [
        ("no_device", "no GPU"),
        ("devices=0", "no GPU"),
        ("stub", "stub"),
        ("old_driver=12020", "12.2", "12.4 or later"),
        ("missing=cuLibraryLoadData", "has no cuLibraryLoadData"),
        ("missing=cuFuncLoad", "has no cuFuncLoad"),
        ("cc=7.5", "compute capability 7.5", "8.0 or later"),
        ("nvrtc_version=12.2", "NVRTC", "12.2", "12.4 or later"),
        ("lt_version=120205", "cuBLASLt", "12.2", "12.4 or later"),
        ("old_driver=12080", "CUDA 13", "12.8"),
        ("no_lt", "cuBLASLt does not start"),
    ]:
        fails(tmp, faults, 2, *words)
    expect("names have no" not in log_of(tmp), log_of(tmp))


@case
def older_gpus(tmp):
    """8.0 is enough, and code for it is asked for."""
    run_cuda(tmp, "out", *SHORT, faults="cc=8.0")
    clean(tmp)


def copy_libs(tmp, leave_out=None, without=None):
    """The stand-ins, less a library or a symbol of one."""
    to = tmp / "libs"
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for f in LIBS.glob("*.so.*"):
        if f.name == leave_out:
            continue
        b = f.read_bytes()
        if without:             # the name in the table of symbols no longer fits its hash
            b = b.replace(b"\0" + without.encode() + b"\0", b"\0" + without.encode()[:-1] + b"?\0")
        (to / f.name).write_bytes(b)
        (to / f.name).chmod(0o755)
    return to


@case
def libraries_that_lack_something(tmp):
    for name, words in ("libnvrtc.so.13", "NVRTC"), ("libcublasLt.so.13", "cuBLASLt"):
        fails(tmp, "", 2, words, "libnvrtc.so.13" if "nvrtc" in name else "libcublasLt.so.13",
              libs=copy_libs(tmp, leave_out=name))
    for symbol in "nvrtcGetCUBIN", "cublasLtMatmulAlgoCheck", "cuGetProcAddress_v2":
        fails(tmp, "", 2, "has no " + symbol, libs=copy_libs(tmp, without=symbol))


# ---- faults ---------------------------------------------------------------

@case
def out_of_memory(tmp):
    for faults in "memory=3000000", "oom_after=0", "oom_after=4":
        fails(tmp, faults, 2, "stand-in has no room for", "MiB", "params", "acts")
    clean(tmp)


@case
def kernel_that_does_not_compile(tmp):
    cache = cache_with(tmp, ".so")
    r = fails(tmp, f"compile_fail={KERNEL}", 3, f"kernels/{KERNEL}.cu(1): error: ", "bug: ", env=cache)
    expect("layers.0" in r.err, "no site", r)
    run_cuda(tmp, "out", *SHORT, env=cache)         # nothing of it was kept


@case
def edited_kernel_that_does_not_compile(tmp):
    hcgen("emit", SMALL, "-o", tmp / "e", "--device", "cuda", *data())
    kernel = tmp / f"e/kernels/{KERNEL}.cu"
    text = kernel.read_text()
    line = text[:text.index("{", text.index("__global__"))].count("\n") + 2
    at = text.index("{", text.index("__global__")) + 2
    kernel.write_text(text[:at] + "\tno such thing;\n" + text[at:])
    r = run(HCGEN, "train", SMALL, "--kernels", tmp / "e", "--run", tmp / "run", "--device", "cuda", *data(),
            env=stand_in(tmp))
    expect(r.rc == 2 and f"{KERNEL}.cu({line}): error: " in r.err, line, r)


@case
def kernel_that_spills_is_told(tmp):
    r = run_cuda(tmp, "out", *SHORT, faults=f"spill={KERNEL}", env=cache_with(tmp, ".so"))
    told = r.err + "".join(f.read_text() for f in (tmp / "out/run").glob("*.txt"))
    line = [s for s in told.splitlines() if KERNEL in s]
    expect(line and " 128 " in line[0], "stores and loads, 64 bytes each:", line)


@case
def launches_that_fail(tmp):
    for fault, code in ("launch_fail", "CUDA_ERROR_LAUNCH_FAILED"), ("illegal", "CUDA_ERROR_ILLEGAL_ADDRESS"):
        fails(tmp, f"{fault}={KERNEL}", 3, code, "HCGEN_CUDA_SYNC=1", "the last one queued was")
        fails(tmp, f"{fault}={KERNEL}", 3, code, f"it is {KERNEL} at layers.0", env={"HCGEN_CUDA_SYNC": "1"})
    fails(tmp, f"refuse={KERNEL}", 3, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", KERNEL)


@case
def edited_kernel_that_writes_outside(tmp):
    """What the text does wrong kills the context, as on a GPU, and the stand-in says where."""
    hcgen("emit", SMALL, "-o", tmp / "e", "--device", "cuda", *data(), *SHORT)
    kernel = tmp / "e/kernels/sqsum.cu"
    text = kernel.read_text()
    at = text.rindex("}")
    pointer = re.search(r"(\w+),? *//", text[text.index("__global__"):]).group(1)
    kernel.write_text(text[:at] + f"\t((float *){pointer})[1l << 40] = 1;\n" + text[at:])
    for faults in "check", "":
        r = run(HCGEN, "train", SMALL, "--kernels", tmp / "e", "--run", tmp / "run", "--device", "cuda", *data(),
                *SHORT, env=stand_in(tmp, faults))
        expect(r.rc == 2 and "CUDA_ERROR_ILLEGAL_ADDRESS" in r.err, faults, r)
        expect("sqsum" in log_of(tmp), log_of(tmp))


@case
def broken_hardware(tmp):
    for n in 1, 30, 90:
        fails(tmp, f"ecc_after={n}", 2, "CUDA_ERROR_ECC_UNCORRECTABLE")


@case
def products_without_algorithm(tmp):
    fails(tmp, "no_algo", 2, "cuBLASLt", " at ", env=cache_with(tmp, ".so", ".cubin"))


@case
def kept_algorithm_of_another_library(tmp):
    """What cuBLASLt no longer takes is chosen again."""
    cache = cache_with(tmp, ".so", ".cubin")
    run_cuda(tmp, "out", *SHORT, env=cache)
    run_cuda(tmp, "out", *SHORT, faults="stale_algo", env=cache)
    for f in (tmp / "cache").glob("*.gemm"):
        b = bytearray(f.read_bytes())
        b[0] ^= 1
        f.write_bytes(b)
    run_cuda(tmp, "out", *SHORT, env=cache)
    clean(tmp)


@case
def damaged_cubin(tmp):
    cache = cache_with(tmp, ".so", ".cubin", ".gemm")
    run_cuda(tmp, "a", *SHORT, env=cache)
    for f in (tmp / "cache").glob("*.cubin"):
        b = bytearray(f.read_bytes())
        b[len(b) // 2] ^= 1
        f.write_bytes(b)
    run_cuda(tmp, "b", *SHORT, env=cache)
    same(tmp / "a", tmp / "b")
    clean(tmp)


def entries():
    return re.findall(r"^FN\((\w+), (\w+), \d+, (\w+),", (ROOT / "runtime/api.def").read_text(), re.M)


@case
def every_call_may_fail(tmp):
    """Each entry point that returns a result fails at its first call, some at a later one: a message and an
    exit code, or, for what is only released or only told to people, none."""
    harmless = re.compile("Destroy|Free|Release|Unload|GetError|TotalMem|GetInfo|AlgoCheck|ProgramLog|"
                          "MemcpyDtoD")      # copies within the device: of large arenas alone
    twice = re.compile("Alloc|Memcpy|LaunchKernel|EventRecord|CompileProgram|LtMatmul$|LoadData")
    words = [*SHORT, *WIDE_HEAD, *BATCHES]
    run_cuda(tmp, "out", *words)
    cache = cache_with(tmp, ".so", ".gemm")
    run_cuda(tmp, "out", *words, env=cache)
    cubins = sorted((tmp / "cache").glob("*.cubin"))[:3]
    for library, name, result in entries():
        if result not in ("CUresult", "nvrtcResult", "cublasStatus_t"):
            continue
        code = {"DRIVER": 999, "NVRTC": 11, "CUBLASLT": 14}[library]
        for n in (1, 3) if twice.search(name) else (1,):
            # so that kernels are compiled, algorithms chosen
            for f in cubins if library == "NVRTC" else (tmp / "cache").glob("*.gemm"):
                if library != "DRIVER" or "Event" in name:
                    f.unlink(missing_ok=True)
            r = run(HCGEN, "train", SMALL, "-o", tmp / "out", "--quiet", "--device", "cuda", *data(), *words,
                    env=stand_in(tmp, f"fail={name}:{code}:{n}", **cache))
            expect(r.rc in (0, 2, 3), name, n, r)
            expect(r.rc == 0 or "hcgen: " in r.err, name, n, "fails without a word", r)
            expect(r.rc != 0 or n > 1 or harmless.search(name), name, "failed and nobody saw it", r)


@case
def stops_by_a_signal(tmp):
    env = environment(stand_in(tmp, "leaks"))
    p = subprocess.Popen([HCGEN, "train", SMALL, "-o", tmp / "out", "--device", "cuda", *data(),
                          *sets(train__steps=2000)], env=env, stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith("step 2"):
            p.send_signal(signal.SIGTERM)
            break
    p.stdout.read()
    expect(p.wait(60) == 75, p.returncode)
    expect((tmp / "out/run/stopped.safetensors").exists(), "nothing saved")
    clean(tmp)


if __name__ == "__main__":
    r = run("sh", ROOT / "tests/standin/build.sh", BUILD, timeout=300)
    if r.rc != 0:
        print("FAIL build", r)
        sys.exit(1)
    main()
