"""CUDA through ctypes: text -> cubin -> launches, with libcuda and libnvrtc alone.

Libraries are looked for as the runtime does (runtime/api.c): HCGEN_CUDA_PATH, which holds directories with
colons between them, then the loader's own places, then /usr/local/cuda/lib64.  Of the driver only entry points
are used that CUDA 12.0 has, by the names of their present ABI."""
import ctypes
import glob
import os

NVRTC = ["libnvrtc.so.13", "libnvrtc.so.12"]
DRIVER = ["libcuda.so.1"]
PLACES = ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
CC_MAJOR, CC_MINOR, SMEM_OPTIN = 75, 76, 97      # CUdevice_attribute
MAX_DYNAMIC_SMEM = 8                             # CUfunction_attribute


class Fault(Exception):
    pass


def own_places():
    return [d for d in os.environ.get("HCGEN_CUDA_PATH", "").split(":") if d]


def open_library(sonames, driver=False):
    own = own_places()
    tries = [os.path.join(d, s) for s in sonames for d in own]
    if driver or not own:
        tries += sonames
    if not driver and not own:
        tries += [os.path.join(d, s) for s in sonames for d in PLACES]
    for path in tries:
        try:
            if "nvrtc" in path and "/" in path and os.path.exists(path):    # it opens these by name alone
                for b in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*")):
                    ctypes.CDLL(b)
            return ctypes.CDLL(path)
        except OSError:
            pass
    raise Fault(f"{' and '.join(sonames)}: not there")


class Nvrtc:
    def __init__(self):
        self.so = open_library(NVRTC)
        self.so.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.must(self.so.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = major.value, minor.value

    def must(self, e, log=""):
        if e:
            raise Fault(f"NVRTC: {self.so.nvrtcGetErrorString(e).decode()} {log}".strip())

    def bytes_of(self, size, get, program):
        n = ctypes.c_size_t()
        self.must(getattr(self.so, size)(program, ctypes.byref(n)))
        buf = ctypes.create_string_buffer(n.value + 1)
        self.must(getattr(self.so, get)(program, buf))
        return buf.raw[:n.value]

    def cubin(self, name, text, arch):
        """The options are the runtime's (runtime/nvrtc.c)."""
        words = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", "--modify-stack-limit=false"]
        if self.version >= (12, 9):
            words.append("--no-cache")
        options = (ctypes.c_char_p * len(words))(*[w.encode() for w in words])
        program = ctypes.c_void_p()
        self.must(self.so.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
        try:
            e = self.so.nvrtcCompileProgram(program, len(words), options)
            if e:
                log = self.bytes_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
                self.must(e, log.rstrip(b"\0").decode(errors="replace"))
            return self.bytes_of("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
        finally:
            self.so.nvrtcDestroyProgram(ctypes.byref(program))


class Gpu:
    """The first GPU, its primary context, stream 0."""

    def __init__(self):
        self.so = open_library(DRIVER, driver=True)
        self.must("cuInit", 0)
        self.device = ctypes.c_int()
        self.must("cuDeviceGet", ctypes.byref(self.device), 0)
        name = ctypes.create_string_buffer(256)
        self.must("cuDeviceGetName", name, 256, self.device)
        self.name = name.value.decode()
        major, minor = self.attribute(CC_MAJOR), self.attribute(CC_MINOR)
        self.arch = f"sm_{major}{minor}{'a' if major == 9 else ''}"
        context = ctypes.c_void_p()
        self.must("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.must("cuCtxSetCurrent", context)

    def must(self, entry, *args):
        e = getattr(self.so, entry)(*args)
        if e:
            text = ctypes.c_char_p()
            self.so.cuGetErrorName(e, ctypes.byref(text))
            raise Fault(f"{entry}: {text.value.decode() if text.value else e}")

    def attribute(self, which):
        v = ctypes.c_int()
        self.must("cuDeviceGetAttribute", ctypes.byref(v), which, self.device)
        return v.value

    def memory(self, data):
        p = ctypes.c_uint64()
        self.must("cuMemAlloc_v2", ctypes.byref(p), ctypes.c_size_t(len(data)))
        self.write(p, data)
        return p

    def write(self, p, data):
        self.must("cuMemcpyHtoD_v2", p, data, ctypes.c_size_t(len(data)))

    def read(self, p, nbytes):
        buf = ctypes.create_string_buffer(nbytes)
        self.must("cuMemcpyDtoH_v2", buf, p, ctypes.c_size_t(nbytes))
        return buf.raw

    def free(self, p):
        self.must("cuMemFree_v2", p)

    def kernel(self, cubin, name, smem=0):
        library, kernel, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self.must("cuLibraryLoadData", ctypes.byref(library), cubin, None, None, 0, None, None, 0)
        self.must("cuLibraryGetKernel", ctypes.byref(kernel), library, name.encode())
        if smem:
            self.must("cuKernelSetAttribute", MAX_DYNAMIC_SMEM, smem, kernel, self.device)
        self.must("cuKernelGetFunction", ctypes.byref(function), kernel)
        return function

    def launch(self, function, grid, threads, smem, *args):
        """args: of 8 bytes each, as the kernel ABI has it"""
        pointers = (ctypes.c_void_p * len(args))(*[ctypes.addressof(a) for a in args])
        self.must("cuLaunchKernel", function, grid, 1, 1, threads, 1, 1, smem, None, pointers, None)
        self.must("cuCtxSynchronize")
