"""safetensors files: 8 bytes of header length, a JSON header, raw little-endian data.

Only what the oracle exchanges: F32, F64, BF16.  numpy has no bfloat16, so
BF16 is kept as a torch tensor on both sides; the bytes are moved as int16.
"""
import json
import struct

import numpy as np
import torch

_NUMPY = {"F32": "<f4", "F64": "<f8", "BF16": "<i2"}
_TORCH = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16"}
_HEADER_MAX = 100 << 20     # the limit of the public format


def load(path):
    """The file's tensors as a dict name -> CPU tensor, in file order."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        if size > _HEADER_MAX:
            raise ValueError(f"{path}: header of {size} bytes")
        header = json.loads(f.read(size))
        data = f.read()
    header.pop("__metadata__", None)
    return {name: _decode(path, name, entry, data) for name, entry in header.items()}


def _decode(path, name, entry, data):
    if entry["dtype"] not in _NUMPY:
        raise ValueError(f"{path}: {name} has type {entry['dtype']}")
    kind = np.dtype(_NUMPY[entry["dtype"]])
    begin, end = entry["data_offsets"]
    count = int(np.prod(entry["shape"], dtype=np.int64))
    if not 0 <= begin <= end <= len(data) or end - begin != count * kind.itemsize:
        raise ValueError(f"{path}: {name} has offsets {begin}..{end}")
    # frombuffer is read-only and may be unaligned: copy
    values = torch.from_numpy(np.frombuffer(data[begin:end], kind).copy())
    if entry["dtype"] == "BF16":
        values = values.view(torch.bfloat16)
    return values.reshape(entry["shape"])


def save(path, tensors):
    """Write a dict name -> tensor (f32, f64 or bf16)."""
    header, blobs, offset = {}, [], 0
    for name, t in tensors.items():
        t = t.detach().contiguous()
        raw = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().tobytes()
        header[name] = {"dtype": _TORCH[t.dtype], "shape": list(t.shape),
                        "data_offsets": [offset, offset + len(raw)]}
        blobs.append(raw)
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)         # data starts 8-byte aligned
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        f.writelines(blobs)
