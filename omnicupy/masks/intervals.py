"""Interval algebra: sets of (query, key) pairs held as up to n row ranges per key.

A set is a pair of int32 arrays `start`, `stop`, (n, k_len): key k is visible to rows [start[i, k], stop[i,
k]) for any i. *Canonical* means: per key the intervals ascend, are disjoint and do not touch; unused slots
are (0, 0) and come last; n is minimal and at least 1. Every function here takes and returns canonical sets
unless it says otherwise.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int32]
BoolArray: TypeAlias = NDArray[np.bool_]
Intervals: TypeAlias = tuple[IntArray, IntArray]


def tidy(start: IntArray, stop: IntArray) -> Intervals:
    """Canonical form of intervals that ascend per key, disjoint and not touching, but leave slots empty.

    start, stop: (n, k_len), a slot with start >= stop is empty. The arrays may be changed in place.
    """
    empty = start >= stop
    if not empty.any():
        return start, stop
    start[empty] = 0
    stop[empty] = 0
    if len(start) == 1:
        return start, stop
    if (empty[:-1] & ~empty[1:]).any():  # a used slot after an unused one
        order = np.argsort(empty, axis=0, kind="stable")
        start = np.take_along_axis(start, order, axis=0)
        stop = np.take_along_axis(stop, order, axis=0)
    n = max(1, int((stop > 0).any(axis=1).sum()))
    return start[:n], stop[:n]


def first_overlapping_key(start: IntArray, stop: IntArray) -> int | None:
    """The first key with two overlapping intervals (touching is no overlap), None without one; any order."""
    if len(start) == 1:
        return None
    last = np.iinfo(np.int32).max
    order = np.argsort(np.where(start < stop, start, last), axis=0, kind="stable")
    lo, hi = np.take_along_axis(start, order, axis=0), np.take_along_axis(stop, order, axis=0)
    bad = ((lo[1:] < hi[:-1]) & (lo[1:] < hi[1:])).any(axis=0)
    return int(np.argmax(bad)) if bad.any() else None


def _encoded(start: IntArray, stop: IntArray, q_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bounds of the non-empty intervals as integers key * (q_len + 1) + row: one sort keeps keys apart."""
    slot, key = np.nonzero(start < stop)
    base = key * (q_len + 1)
    return base + start[slot, key], base + stop[slot, key]


def sweep(
    start: NDArray[np.int64], stop: NDArray[np.int64], depth: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The maximal ranges covered by at least `depth` of the encoded, non-empty intervals, ascending."""
    events = np.sort(
        np.concatenate([start * 2, stop * 2 + 1])
    )  # at one place starts come first, so touching merges
    leaving = events & 1
    covered = np.cumsum(1 - 2 * leaving)
    lo = events[(leaving == 0) & (covered == depth)] >> 1
    hi = events[(leaving == 1) & (covered == depth - 1)] >> 1
    keep = lo < hi
    return lo[keep], hi[keep]


def from_encoded(lo: NDArray[np.int64], hi: NDArray[np.int64], q_len: int, k_len: int) -> Intervals:
    """Canonical arrays from ascending, disjoint, not touching encoded intervals."""
    key = lo // (q_len + 1)
    counts = np.bincount(key, minlength=k_len)
    slot = np.arange(len(key)) - np.repeat(np.cumsum(counts) - counts, counts)
    n = max(1, int(counts.max(initial=0)))
    start, stop = np.zeros((n, k_len), np.int32), np.zeros((n, k_len), np.int32)
    start[slot, key] = lo - key * (q_len + 1)
    stop[slot, key] = hi - key * (q_len + 1)
    return start, stop


def canonical(start: IntArray, stop: IntArray, q_len: int) -> Intervals:
    """Canonical form of any intervals (any order, overlapping or touching); they are not changed."""
    if len(start) == 1:
        return tidy(start.copy(), stop.copy())
    return from_encoded(*sweep(*_encoded(start, stop, q_len), 1), q_len, start.shape[1])


def rectangles(bounds: NDArray[np.int64], q_len: int, k_len: int) -> Intervals:
    """The union of rectangles (q_start, q_stop, k_start, k_stop), (r, 4), each not empty."""
    widths = bounds[:, 3] - bounds[:, 2]
    first = np.repeat(bounds[:, 2] - (np.cumsum(widths) - widths), widths)
    base = (first + np.arange(len(first))) * (q_len + 1)
    lo, hi = base + np.repeat(bounds[:, 0], widths), base + np.repeat(bounds[:, 1], widths)
    return from_encoded(*sweep(lo, hi, 1), q_len, k_len)


def union(a: Intervals, b: Intervals, q_len: int) -> Intervals:
    """Pairs in a or b."""
    if len(a[0]) == len(b[0]) == 1:
        joint = np.maximum(a[0], b[0]) <= np.minimum(a[1], b[1])  # they overlap or touch
        only_a, only_b = b[0] >= b[1], a[0] >= a[1]
        if (joint | only_a | only_b).all():  # no key needs a second interval, so nothing is sorted
            start = np.where(only_a, a[0], np.where(only_b, b[0], np.minimum(a[0], b[0])))
            return start, np.maximum(a[1], b[1])
    return canonical(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]), q_len)


def intersection(a: Intervals, b: Intervals, q_len: int) -> Intervals:
    """Pairs in a and b."""
    if len(a[0]) == 1 or len(b[0]) == 1:  # each piece lies in a slot of the longer one: already in order
        return tidy(np.maximum(a[0], b[0]), np.minimum(a[1], b[1]))
    (a_lo, a_hi), (b_lo, b_hi) = _encoded(*a, q_len), _encoded(*b, q_len)
    lo, hi = sweep(np.concatenate([a_lo, b_lo]), np.concatenate([a_hi, b_hi]), 2)
    return from_encoded(lo, hi, q_len, a[0].shape[1])


def complement(a: Intervals, q_len: int) -> Intervals:
    """Pairs of the whole rectangle that are not in a: the gaps between the intervals of each key."""
    used = a[0] < a[1]
    ends = np.full((1, a[0].shape[1]), q_len, np.int32)
    start = np.concatenate([np.zeros_like(ends), np.where(used, a[1], q_len)])
    stop = np.concatenate([np.where(used, a[0], q_len), ends])
    return tidy(start.astype(np.int32, copy=False), stop.astype(np.int32, copy=False))


def crop(a: Intervals, rows: tuple[int, int], keys: tuple[int, int]) -> Intervals:
    """The set seen through rows [q0, q1) and keys [k0, k1), both renumbered from 0."""
    (q0, q1), (k0, k1) = rows, keys
    start = np.clip(a[0][:, k0:k1], q0, q1) - np.int32(q0)
    stop = np.clip(a[1][:, k0:k1], q0, q1) - np.int32(q0)
    return tidy(start, stop)


def stacked(above: Intervals, below: Intervals, q_len: int) -> Intervals:
    """The q_len rows of `above`, then those of `below`, which has the keys of `above` or more."""
    n, old = above[0].shape
    used = below[0] < below[1]
    start, stop = (np.zeros((n + len(used), used.shape[1]), np.int32) for _ in range(2))
    for side, upper, lower in ((start, above[0], below[0]), (stop, above[1], below[1])):
        side[:n, :old] = upper
        side[n:] = np.where(used, lower + np.int32(q_len), 0)
    key = np.flatnonzero((above[1].max(axis=0) == q_len) & used[0, :old] & (below[0][0, :old] == 0))
    last = (above[0] < above[1]).sum(axis=0)[key] - 1
    stop[last, key] = stop[n, key]  # touching: one interval
    start[n, key] = stop[n, key] = 0
    return tidy(start, stop)


def dense(a: Intervals, rows: tuple[int, int], keys: tuple[int, int]) -> BoolArray:
    """Boolean array (q1 - q0, k1 - k0) of rows [q0, q1) and keys [k0, k1)."""
    start, stop = a[0][:, keys[0] : keys[1]], a[1][:, keys[0] : keys[1]]
    q = np.arange(rows[0], rows[1], dtype=np.int32)[:, None]
    out: BoolArray = (q >= start[0]) & (q < stop[0])
    for lo, hi in zip(start[1:], stop[1:], strict=True):
        out |= (q >= lo) & (q < hi)
    return out


def key_counts(a: Intervals) -> NDArray[np.int64]:
    """Rows that see each key, (k_len,)."""
    counts: NDArray[np.int64] = np.subtract(a[1], a[0]).sum(axis=0, dtype=np.int64)
    return counts
