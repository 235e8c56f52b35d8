"""Packed bits: the exact form of masks that have no short interval form, and the way back to intervals.

`bits` is uint8 (q_len, ceil(k_len / 8)) in NumPy's little bit order; bits past k_len are 0. Rows come in
chunks, so that no function here holds q_len x k_len booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.intervals import BoolArray, Intervals, from_encoded

ByteArray: TypeAlias = NDArray[np.uint8]
Rows: TypeAlias = Callable[[int, int], BoolArray]  # rows [q0, q1) of a mask as booleans (q1 - q0, k_len)

MAX_INTERVALS = 4  # a mask with more intervals on some key is kept as bits when it comes dense
CHUNK_PAIRS = 1 << 20  # booleans held at a time


def chunks(q_len: int, k_len: int) -> Iterator[tuple[int, int]]:
    """Row ranges that cover [0, q_len), each of at most CHUNK_PAIRS pairs (and at least one row)."""
    step = max(1, CHUNK_PAIRS // k_len)
    return ((q0, min(q0 + step, q_len)) for q0 in range(0, q_len, step))


def from_rows(rows: Rows, q_len: int, k_len: int) -> ByteArray:
    """The bits of the mask whose rows `rows` gives."""
    bits = np.empty((q_len, -(-k_len // 8)), np.uint8)
    for q0, q1 in chunks(q_len, k_len):
        bits[q0:q1] = np.packbits(rows(q0, q1), axis=1, bitorder="little")
    return bits


def unpacked(bits: ByteArray, rows: tuple[int, int], keys: tuple[int, int]) -> BoolArray:
    """Booleans of rows [q0, q1) and keys [k0, k1); only the bytes that hold them are read."""
    first = keys[0] // 8
    block = np.unpackbits(bits[rows[0] : rows[1], first : -(-keys[1] // 8)], axis=1, bitorder="little")
    return block[:, keys[0] - 8 * first : keys[1] - 8 * first].astype(np.bool_)


def inverted(bits: ByteArray, k_len: int) -> ByteArray:
    """The complement; bits past k_len stay 0."""
    out = ~bits
    if k_len % 8:
        out[:, -1] &= np.uint8((1 << k_len % 8) - 1)
    return out


def key_counts(bits: ByteArray, k_len: int) -> NDArray[np.int64]:
    """Rows that see each key, (k_len,)."""
    counts = np.zeros(k_len, np.int64)
    for q0, q1 in chunks(len(bits), k_len):
        counts += unpacked(bits, (q0, q1), (0, k_len)).sum(axis=0)
    return counts


def short_intervals(rows: Rows, q_len: int, k_len: int) -> Intervals | None:
    """Canonical intervals of the mask, or None as soon as one key needs more than MAX_INTERVALS of them."""
    before = np.zeros(k_len, np.bool_)
    counts = np.zeros(k_len, np.int64)
    starts: list[NDArray[np.int64]] = []
    stops: list[NDArray[np.int64]] = []
    for q0, q1 in chunks(q_len, k_len):
        block = rows(q0, q1)
        changed = np.empty(block.shape, np.bool_)
        np.not_equal(block[0], before, out=changed[0])
        np.not_equal(block[1:], block[:-1], out=changed[1:])
        q, k = np.nonzero(changed)
        rising = block[q, k]
        counts += np.bincount(k[rising], minlength=k_len)
        if counts.max() > MAX_INTERVALS:
            return None
        bounds = k * (q_len + 1) + q + q0
        starts.append(bounds[rising])
        stops.append(bounds[~rising])
        before = block[-1].copy()
    stops.append(np.flatnonzero(before) * (q_len + 1) + q_len)
    return from_encoded(np.sort(np.concatenate(starts)), np.sort(np.concatenate(stops)), q_len, k_len)
