"""Brute-force masks and tile kinds, written from the definitions alone, without the package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Dense = NDArray[np.bool_]

FULL, CAUSAL, PARTIAL = 1, 2, 3


def axes(q_len: int, k_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows as a column and keys as a row."""
    return np.arange(q_len)[:, None], np.arange(k_len)[None, :]


def causal(q_len: int, k_len: int) -> Dense:
    q, k = axes(q_len, k_len)
    return k <= q + k_len - q_len


def window(q_len: int, k_len: int, left: int, right: int) -> Dense:
    q, k = axes(q_len, k_len)
    away = k - (q + k_len - q_len)
    return (away >= -left) & (away <= right)


def sink(n: int, first: int, k_len: int) -> Dense:
    q, k = axes(n, k_len)
    return (k < first) & (q >= 0)


def prefix(n: int, p: int) -> Dense:
    q, k = axes(n, n)
    return ((q < p) & (k < p)) | (k <= q)


def segments(documents: Sequence[Sequence[tuple[str, int]]]) -> Dense:
    """Same document AND (k <= q OR same image or noise segment) AND NOT (k is noise of another segment)."""
    kinds, segment, document = [], [], []
    for number, sample in enumerate(documents):
        for kind, length in sample:
            segment += [segment[-1] + 1 if segment else 0] * length
            kinds += [kind] * length
            document += [number] * length
    kind, seg, doc = np.array(kinds), np.array(segment), np.array(document)
    q, k = axes(len(kinds), len(kinds))
    together = (seg[:, None] == seg[None]) & (kind != "text")[None]
    hidden = (kind == "noise")[None] & (seg[:, None] != seg[None])
    return (doc[:, None] == doc[None]) & ((k <= q) | together) & ~hidden


def described(spans: Sequence[tuple[str, int, int, int]]) -> Dense:
    """The same from (kind, first, stop, document) of each segment."""
    documents: dict[int, list[tuple[str, int]]] = {}
    for kind, first, stop, document in spans:
        documents.setdefault(document, []).append((kind, stop - first))
    return segments(list(documents.values()))


def rectangles(bounds: Sequence[tuple[int, int, int, int]], q_len: int, k_len: int) -> Dense:
    out = np.zeros((q_len, k_len), np.bool_)
    for q0, q1, k0, k1 in bounds:
        out[q0:q1, k0:k1] = True
    return out


def intervals(start: NDArray[np.int64], stop: NDArray[np.int64], q_len: int) -> Dense:
    out = np.zeros((q_len, start.shape[1]), np.bool_)
    for row in range(q_len):
        out[row] = ((start <= row) & (row < stop)).any(axis=0)
    return out


def tile_kinds(dense: Dense, br: int, bc: int, diagonal: int) -> NDArray[np.int64]:
    """Kind of every tile, (q_blocks, k_blocks), 0 where it must not be listed."""
    q_len, k_len = dense.shape
    q_blocks, k_blocks = -(-q_len // br), -(-k_len // bc)
    q, k = axes(q_len, k_len)

    def tiles(array: Dense) -> Dense:
        padded = np.zeros((q_blocks * br, k_blocks * bc), np.bool_)
        padded[:q_len, :k_len] = array
        return padded.reshape(q_blocks, br, k_blocks, bc).transpose(0, 2, 1, 3)

    complete = np.arange(1, k_blocks + 1) * bc <= k_len
    full = ~tiles(~dense).any(axis=(2, 3)) & complete
    causal = ~tiles(dense != (k <= q + diagonal)).any(axis=(2, 3)) & complete
    listed = tiles(dense).any(axis=(2, 3))
    return np.where(listed, np.where(full, FULL, np.where(causal, CAUSAL, PARTIAL)), 0)


def dead_blocks(dense: Dense, bc: int) -> Dense:
    """Key blocks that hold a key (of those that exist) that no row sees, (k_blocks,)."""
    dead = ~dense.any(axis=0)
    return np.array([dead[k0 : k0 + bc].any() for k0 in range(0, len(dead), bc)])
