"""Token shards and their packing into sequences of seq_len + 1 tokens, unshuffled."""
import glob
import os

import numpy as np
import torch

from spec import SpecError

MAGIC, VERSION, HEADER = 20240520, 1, 256


def read_shard(path):
    """The tokens of one .bin file, uint16."""
    with open(path, "rb") as f:
        head = np.frombuffer(f.read(4 * HEADER), "<i4")
        if len(head) != HEADER or head[0] != MAGIC or head[1] != VERSION:
            raise SpecError(f"{path}: not a token shard")
        tokens = np.frombuffer(f.read(2 * int(head[2])), "<u2")
    if len(tokens) != head[2]:
        raise SpecError(f"{path}: {len(tokens)} of {head[2]} tokens")
    return tokens


def write_shard(path, tokens):
    head = np.zeros(HEADER, "<i4")
    head[:3] = MAGIC, VERSION, len(tokens)
    with open(path, "wb") as f:
        f.write(head.tobytes() + np.asarray(tokens, "<u2").tobytes())


def shard_paths(spec, patterns):
    """Files of a list of paths and globs, sorted within each glob."""
    out = []
    for pattern in patterns:
        if pattern == "auto":
            raise SpecError("data: `auto` is not for the oracle, give it shards")
        found = sorted(glob.glob(os.path.join(spec.folder, pattern)))
        if not found:
            raise SpecError(f"data: no file {pattern}")
        out += found
    return out


def stream(spec, patterns):
    """All tokens in order, int64."""
    return np.concatenate([read_shard(p) for p in shard_paths(spec, patterns)]).astype(np.int64)


def pack_stream(tokens, seq_len):
    """[sequences, seq_len + 1]; neighbours share a token."""
    count = max(len(tokens) - 1, 0) // seq_len
    at = np.arange(count)[:, None] * seq_len + np.arange(seq_len + 1)
    return tokens[at]


def pack_documents(tokens, seq_len, bos, max_doc):
    """[sequences, seq_len + 1]: whole documents until full, the rest of the last one dropped."""
    starts = np.flatnonzero(tokens == bos)
    ends = np.append(starts[1:], len(tokens))
    if max_doc:
        ends = np.minimum(ends, starts + max_doc)
    rows, row, room = [], [], seq_len + 1
    for a, b in zip(starts, ends):
        take = min(b - a, room)
        row.append(tokens[a:a + take])
        room -= take
        if room == 0:
            rows.append(np.concatenate(row))
            row, room = [], seq_len + 1
    return np.stack(rows) if rows else np.empty((0, seq_len + 1), np.int64)


def sequences(spec, patterns):
    """The data as an int64 tensor [sequences, seq_len + 1]."""
    tokens, seq_len = stream(spec, patterns), spec.train.seq_len
    if spec.data.packing == "documents":
        rows = pack_documents(tokens, seq_len, spec.data.bos, spec.data.max_doc)
    else:
        rows = pack_stream(tokens, seq_len)
    if not len(rows):
        raise SpecError("data: not one whole sequence")
    if rows.max() >= spec.model.vocab:
        raise SpecError(f"data: token {rows.max()} is outside the vocabulary")
    return torch.from_numpy(rows)


def batch(rows, first, count):
    """Tokens and targets, each [count, seq_len]; past the end it starts over."""
    picked = rows[torch.arange(first, first + count) % len(rows)]
    return picked[:, :-1], picked[:, 1:]
