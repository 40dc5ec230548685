"""Token shards and parameter files, with Python's own library alone."""
import array
import json
import math
import random
import struct

MAGIC, VERSION = 20240520, 1
FORMATS = {"F32": "f", "F64": "d"}


def write_shard(path, tokens):
    head = struct.pack("<3i", MAGIC, VERSION, len(tokens)).ljust(1024, b"\0")
    path.write_bytes(head + array.array("H", tokens).tobytes())


def random_tokens(n, vocab, bos, mean, seed):
    """Documents of 1 to 2·mean tokens, each begun by bos."""
    r = random.Random(seed)
    out = array.array("H", r.randbytes(2 * n))
    out = array.array("H", [x % vocab for x in out])
    at = 0
    while at < n:
        out[at] = bos
        at += r.randrange(1, 2 * mean)
    return out


def read_tensors(path):
    """name -> (dtype, shape, array)"""
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    head, body = json.loads(raw[8:8 + n]), memoryview(raw)[8 + n:]
    out = {}
    for name, t in head.items():
        if name != "__metadata__":
            x = array.array(FORMATS[t["dtype"]])
            x.frombytes(body[slice(*t["data_offsets"])])
            out[name] = t["dtype"], t["shape"], x
    return out


def write_tensors(path, tensors):
    head, blobs, at = {}, [], 0
    for name, (dtype, shape, x) in tensors.items():
        blobs.append(x.tobytes())
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def add_noise(tensors, amplitude, seed):
    """So that no gradient vanishes behind what starts as 0."""
    r = random.Random(seed)
    for _, _, x in tensors.values():
        noise = array.array("H", r.randbytes(2 * len(x)))
        for i, u in enumerate(noise):
            x[i] += amplitude * (u / 32768 - 1)


def relative_errors(got, reference):
    """name -> norm of the difference by the norm of the reference; inf where one is not finite"""
    out = {}
    for name, (_, _, ref) in reference.items():
        x = got[name][2]
        norm = math.fsum(a * a for a in ref)
        off = sum((a - b) ** 2 for a, b in zip(x, ref))
        out[name] = math.inf if not math.isfinite(off) else math.sqrt(off / norm) if norm else math.inf if off else 0.
    return out
