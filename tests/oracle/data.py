"""Token shards, their packing into sequences of seq_len + 1 tokens, and the order of training."""
import glob
import hashlib
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


def documents(tokens, bos):
    """Where each document starts and where it ends."""
    starts = np.flatnonzero(tokens == bos)
    return starts, np.append(starts[1:], len(tokens))


def next_sequence(pieces, seq_len):
    """seq_len + 1 tokens of an iterator over documents: whole ones until full, the rest of the
    last one dropped.  None where they run out."""
    row, room = [], seq_len + 1
    while room:
        piece = next(pieces, None)
        if piece is None:
            return None
        row.append(piece[:room])
        room -= len(row[-1])
    return np.concatenate(row)


def pack_documents(tokens, seq_len, bos, max_doc):
    """[sequences, seq_len + 1]"""
    pieces = (tokens[a:b][:max_doc or None] for a, b in zip(*documents(tokens, bos)))
    rows = []
    while (row := next_sequence(pieces, seq_len)) is not None:
        rows.append(row)
    return np.stack(rows) if rows else np.empty((0, seq_len + 1), np.int64)


def checked(spec, rows):
    """The tokens as a tensor."""
    if not len(rows):
        raise SpecError("data: not one whole sequence")
    if rows.max() >= spec.model.vocab:
        raise SpecError(f"data: token {rows.max()} is outside the vocabulary")
    return torch.from_numpy(rows)


def sequences(spec, patterns, packing=None, seq_len=None):
    """The data in the shards' order as an int64 tensor [sequences, seq_len + 1]."""
    tokens, seq_len = stream(spec, patterns), seq_len or spec.train.seq_len
    if (packing or spec.data.packing) == "documents":
        return checked(spec, pack_documents(tokens, seq_len, spec.data.bos, spec.data.max_doc))
    return checked(spec, pack_stream(tokens, seq_len))


def validation(spec):
    """The sequences of a validation: whole batches, at least one."""
    t, d = spec.train, spec.data
    rows = sequences(spec, d.val, d.val_packing, t.val_seq_len)
    count = max(t.val_tokens // t.val_batch, 1) * (t.val_batch // t.val_seq_len)
    if len(rows) < count:
        raise SpecError(f"data.val: {len(rows)} of {count} sequences")
    return rows[:count]


def order(spec, epoch, count):
    """The units of an epoch in order.  Which permutation a seed gives is the oracle's choice."""
    if not spec.data.shuffle:
        return range(count)
    digest = hashlib.sha256(f"{spec.train.seed}/epoch {epoch}".encode()).digest()
    return np.random.default_rng(list(digest)).permutation(count)


class Reader:
    """Training data, epoch after epoch, as sequences of a length that may change between two.

    What is put in order is documents, or sequences of one length: documents go on where they
    are, while sequences of another length begin a new epoch."""

    def __init__(self, spec, tokens=None):
        self.spec = spec
        self.tokens = stream(spec, spec.data.train) if tokens is None else tokens
        self.epoch, self.seq_len, self.max_doc = -1, None, None
        self.units, self.pieces = 0, iter(())
        if spec.data.packing == "documents":
            self.bounds = documents(self.tokens, spec.data.bos)
            self.units = len(self.bounds[0])

    def take(self, count, seq_len, max_doc):
        """Tokens and targets, each [count, seq_len], of the next sequences."""
        self.max_doc = max_doc
        if self.spec.data.packing == "stream" and seq_len != self.seq_len:
            self.units, self.pieces = max(len(self.tokens) - 1, 0) // seq_len, iter(())
        self.seq_len = seq_len
        rows = checked(self.spec, np.stack([self._next() for _ in range(count)]))
        return rows[:, :-1], rows[:, 1:]

    def _next(self):
        for fresh in (False, True):     # what is left of an epoch, then a whole one
            if fresh:
                self.epoch += 1
                self.pieces = map(self._piece, order(self.spec, self.epoch, self.units))
            row = self._packed()
            if row is not None:
                return row
        raise SpecError("data: not one whole sequence")

    def _packed(self):
        if self.spec.data.packing == "documents":
            return next_sequence(self.pieces, self.seq_len)
        return next(self.pieces, None)

    def _piece(self, unit):
        """A document as far as it is kept, or a sequence."""
        if self.spec.data.packing == "documents":
            start, end = (bound[unit] for bound in self.bounds)
            return self.tokens[start:end][:self.max_doc or None]
        return self.tokens[unit * self.seq_len:][:self.seq_len + 1]


def batch(rows, first, count):
    """Tokens and targets, each [count, seq_len], of rows in their order; past the end it starts over."""
    picked = rows[torch.arange(first, first + count) % len(rows)]
    return picked[:, :-1], picked[:, 1:]
