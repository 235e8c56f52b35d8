"""Several intervals a key: their starts and their stops sorted, key by key, which is all that the algebra needs.

Of intervals that are sorted by start and, on their own, by stop, s[0] <= s[1] <= ... and t[0] <= t[1] <= ...:

    their union      begins at s[0] and at each s[i] > t[i - 1], and ends at the last t and at each such t[i - 1]
    what two cover   (of sets that are disjoint themselves) is every [s[i], t[i - 1]) that is not empty
    two overlap      where some s[i] < t[i - 1]

so no start has to stay together with its stop while they are sorted. Rows of the arrays are slots, columns are
keys. Sorting is a network of minima and maxima of whole rows, some thousand keys at a time, so that all of it
stays in the caches. A slot that is not used holds EMPTY on both sides and so sorts last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int32]
Sides: TypeAlias = tuple[IntArray, IntArray]  # starts and stops, (slots, keys) each

EMPTY = np.int32(np.iinfo(np.int32).max)
CHUNK = 1 << 16  # slots times keys that are worked on together: 256 KiB a side


def chunks(slots: int, k_len: int) -> list[slice]:
    """Slices of the keys that are worked on together."""
    step = max(64, CHUNK // max(1, slots))
    return [slice(k0, min(k0 + step, k_len)) for k0 in range(0, k_len, step)]


def canonical(work: Callable[[slice], Sides], slots: int, k_len: int) -> Sides:
    """What work(keys) gives for slices of the keys, side by side: as few slots as all need, unused ones (0, 0).

    work returns intervals that are disjoint and do not touch, sorted, and EMPTY in unused slots.
    """
    parts = [(keys, *_trimmed(*work(keys))) for keys in chunks(slots, k_len)]
    if len(parts) == 1:
        return parts[0][1:]
    n = max(len(start) for _, start, _ in parts)
    start, stop = np.zeros((n, k_len), np.int32), np.zeros((n, k_len), np.int32)
    for keys, lo, hi in parts:
        start[: len(lo), keys] = lo
        stop[: len(hi), keys] = hi
    return start, stop


def _trimmed(start: IntArray, stop: IntArray) -> Sides:
    used = start != EMPTY
    n = max(1, int(np.count_nonzero(used.any(axis=1))))
    start *= used  # unused slots become (0, 0)
    stop *= used
    return start[:n], stop[:n]


def marked(start: IntArray, stop: IntArray) -> Sides:
    """Copies of both sides, EMPTY in the slots that are not used (start >= stop)."""
    used = start < stop
    return np.where(used, start, EMPTY), np.where(used, stop, EMPTY)


def covered(start: IntArray, stop: IntArray) -> Sides:
    """The union of sorted sides, which are changed."""
    begins = start[1:] > stop[:-1]
    np.logical_not(begins, out=begins)
    np.copyto(start[1:], EMPTY, where=begins)
    np.copyto(stop[:-1], EMPTY, where=begins)
    return in_order(start), in_order(stop)


def covered_twice(start: IntArray, stop: IntArray) -> Sides:
    """What two of the sorted sides cover, where never more than two do."""
    if len(start) == 1:
        return np.full_like(start, EMPTY), np.full_like(stop, EMPTY)
    lo, hi = start[1:], stop[:-1]
    nothing = lo >= hi
    np.copyto(lo, EMPTY, where=nothing)
    np.copyto(hi, EMPTY, where=nothing)
    return in_order(lo), in_order(hi)


def in_order(side: IntArray) -> IntArray:
    """The rows sorted, key by key."""
    if len(side) == 1 or (side[1:] >= side[:-1]).all():
        return side
    rows = _padded(side, 1 << (len(side) - 1).bit_length())
    size = 2
    while size <= len(rows):
        _join_halves(rows, size)
        size *= 2
    return rows[: len(side)]


def merged(a: IntArray, b: IntArray) -> IntArray:
    """The rows of two sides, each of which is in order, in one order."""
    half = 1 << (max(len(a), len(b)) - 1).bit_length()
    rows = np.full((2 * half, a.shape[1]), EMPTY)
    rows[: len(a)] = a
    rows[half : half + len(b)] = b
    _join_halves(rows, 2 * half)
    return rows[: len(a) + len(b)]


def _padded(side: IntArray, rows: int) -> IntArray:
    out = np.full((rows, side.shape[1]), EMPTY)
    out[: len(side)] = side
    return out


def _join_halves(rows: IntArray, size: int) -> None:
    """In place: each `size` rows, whose two halves are in order, in one order (a bitonic merge)."""
    blocks = rows.reshape(-1, size, rows.shape[1])
    _compare(blocks[:, : size // 2], blocks[:, : size // 2 - 1 : -1])
    step = size // 4
    while step:
        pairs = rows.reshape(-1, 2, step, rows.shape[1])
        _compare(pairs[:, 0], pairs[:, 1])
        step //= 2


def _compare(low: IntArray, high: IntArray) -> None:
    least = np.minimum(low, high)
    np.maximum(low, high, out=high)
    low[...] = least
