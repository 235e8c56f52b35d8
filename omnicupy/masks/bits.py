"""Packed bits: the exact form of masks that have no short interval form, and the way back to intervals.

`bits` is uint8 (q_len, ceil(k_len / 8)) in NumPy's little bit order; bits past k_len are 0. Rows come in
chunks, so that no function here holds q_len x k_len booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import strips
from omnicupy.masks.intervals import BoolArray, Intervals, from_encoded

ByteArray: TypeAlias = NDArray[np.uint8]
WholeArray: TypeAlias = NDArray[np.int64]
Rows: TypeAlias = Callable[[int, int], BoolArray]  # rows [q0, q1) of a mask as booleans (q1 - q0, k_len)

MAX_INTERVALS = 4  # a mask with more intervals on some key is kept as bits when it comes dense
CHUNK_PAIRS = (
    1 << 19
)  # booleans held at a time: larger arrays are new memory each time, which costs more than rules
CHUNK_PAIRS_GPU = 1 << 26
WORD = 8  # bytes of a row that are compared at a time


@dataclass(frozen=True)
class Way:
    """How rows are read. xp: the module of their arrays.  threads: 1 or 2.  progress: see strips.run."""

    xp: Any = np
    threads: int = 1
    progress: strips.Progress | None = None

    def step(self, k_len: int) -> int:
        """Rows read at a time."""
        return max(1, (CHUNK_PAIRS if self.xp is np else CHUNK_PAIRS_GPU) // k_len)

    def to_host(self, array: Any) -> NDArray[Any]:
        """The array as a NumPy array."""
        return array if self.xp is np else self.xp.asnumpy(array)  # type: ignore[no-any-return]


ONE = Way()


def chunks(q_len: int, k_len: int) -> Iterator[tuple[int, int]]:
    """Row ranges that cover [0, q_len), each of at most CHUNK_PAIRS pairs (and at least one row)."""
    return _pieces(0, q_len, ONE.step(k_len))


def _pieces(first: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    return ((q0, min(q0 + step, stop)) for q0 in range(first, stop, step))


def from_rows(rows: Rows, q_len: int, k_len: int, way: Way = ONE) -> ByteArray:
    """The bits of the mask whose rows `rows` gives."""
    bits = np.empty((q_len, -(-k_len // 8)), np.uint8)
    step = way.step(k_len)

    def strip(first: int, stop: int) -> None:
        for q0, q1 in _pieces(first, stop, step):
            bits[q0:q1] = way.to_host(_words(rows(q0, q1), way.xp))[:, : bits.shape[1]]

    for _ in strips.run(strip, q_len, step, threads=way.threads, progress=way.progress):
        pass
    return bits


def unpacked(bits: ByteArray, rows: tuple[int, int], keys: tuple[int, int]) -> BoolArray:
    """Booleans of rows [q0, q1) and keys [k0, k1); only the bytes that hold them are read."""
    first = keys[0] // 8
    block = np.unpackbits(bits[rows[0] : rows[1], first : -(-keys[1] // 8)], axis=1, bitorder="little")
    return block[:, keys[0] - 8 * first : keys[1] - 8 * first].view(np.bool_)


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


def short_intervals(rows: Rows, q_len: int, k_len: int, way: Way = ONE) -> Intervals | None:
    """Canonical intervals of the mask, or None as soon as one key needs more than MAX_INTERVALS of them."""
    return _short(lambda q0, q1: _words(rows(q0, q1), way.xp), (q_len, k_len), way)


def short_intervals_of(bits: ByteArray, k_len: int) -> Intervals | None:
    """`short_intervals` of a mask that is there as bits."""
    width = -(-bits.shape[1] // WORD) * WORD

    def words(q0: int, q1: int) -> ByteArray:
        if width == bits.shape[1]:
            return bits[q0:q1]
        out = np.zeros((q1 - q0, width), np.uint8)
        out[:, : bits.shape[1]] = bits[q0:q1]
        return out

    return _short(words, (len(bits), k_len), ONE)


def _words(block: Any, xp: Any) -> Any:
    """Rows of booleans as bits, (rows, whole words in bytes)."""
    width = -(-block.shape[1] // (8 * WORD)) * WORD
    if xp is np:
        out = np.zeros((len(block), width), np.uint8)
        out[:, : -(-block.shape[1] // 8)] = np.packbits(block, axis=1, bitorder="little")
        return out
    padded = xp.zeros((len(block), 8 * width), bool)
    padded[:, : block.shape[1]] = block
    return xp.packbits(padded.reshape(-1), bitorder="little").reshape(len(block), width)


def _short(words: Callable[[int, int], Any], shape: tuple[int, int], way: Way) -> Intervals | None:
    """The intervals of the rows that `words` gives, packed in whole words; a row may be read twice."""
    q_len, k_len = shape
    step = way.step(k_len)
    too_many = False  # read by the other thread, which then gives up its strip

    def strip(first: int, stop: int) -> tuple[WholeArray, WholeArray] | None:
        counts = np.zeros(k_len, np.int64)
        edges: list[tuple[WholeArray, WholeArray]] = []
        before = words(first - 1, first)[0] if first else None
        for q0, q1 in _pieces(first, stop, step):
            block = words(q0, q1)
            rising, falling = _edges(block, before, way)
            before = block[-1]
            counts += np.bincount(rising[1], minlength=k_len)
            if too_many or counts.max() > MAX_INTERVALS:
                return None
            edges.append(tuple(key * (q_len + 1) + row + q0 for row, key in (rising, falling)))  # type: ignore[arg-type]
        return np.concatenate([up for up, _ in edges]), np.concatenate([down for _, down in edges])

    counts = np.zeros(k_len, np.int64)
    starts: list[WholeArray] = []
    stops: list[WholeArray] = []
    for found in strips.run(strip, q_len, step, threads=way.threads, progress=way.progress):
        if found is not None:
            counts += np.bincount(found[0] // (q_len + 1), minlength=k_len)
        if found is None or counts.max() > MAX_INTERVALS:
            too_many = True
            return None
        starts.append(found[0])
        stops.append(found[1])
    rising, falling = np.sort(np.concatenate(starts)), np.sort(np.concatenate(stops))
    open_ends = np.flatnonzero(counts > np.bincount(falling // (q_len + 1), minlength=k_len))
    ends = np.sort(np.concatenate([falling, open_ends * (q_len + 1) + q_len]))
    return from_encoded(rising, ends, q_len, k_len)


def _edges(
    block: Any, before: Any, way: Way
) -> tuple[tuple[WholeArray, WholeArray], tuple[WholeArray, WholeArray]]:
    """(row, key) of the pairs that are visible under a hidden one, and the other way round.

    before: the row above the block, None for all hidden.
    """
    xp = way.xp
    joined = xp.empty((len(block) + 1, block.shape[1]), xp.uint8)
    joined[0] = 0 if before is None else before
    joined[1:] = block
    seen = joined.view(xp.uint64)
    changed = (seen[1:] ^ seen[:-1]).reshape(-1)
    place = xp.flatnonzero(changed)
    flipped, now = (way.to_host(part.reshape(-1)[place]) for part in (changed, seen[1:]))
    row, word = np.divmod(way.to_host(place), seen.shape[1])
    bits, values = (
        np.unpackbits(part.view(np.uint8).reshape(-1, WORD), axis=1, bitorder="little")
        for part in (flipped, now)
    )
    at, bit = np.nonzero(bits)
    up = values[at, bit].view(np.bool_)
    row, key = row[at], word[at] * (8 * WORD) + bit
    return (row[up], key[up]), (row[~up], key[~up])
