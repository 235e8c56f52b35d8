"""Interval algebra: sets of (query, key) pairs held as up to n row ranges per key.

A set is a pair of int32 arrays `start`, `stop`, (n, k_len): key k is visible to rows [start[i, k], stop[i,
k]) for any i. *Canonical* means: per key the intervals ascend, are disjoint and do not touch; unused slots
are (0, 0) and come last; n is minimal and at least 1. Every function here takes and returns canonical sets
unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import columns
from omnicupy.masks.columns import IntArray as IntArray

BoolArray: TypeAlias = NDArray[np.bool_]
Intervals: TypeAlias = tuple[IntArray, IntArray]

MOST_RUNS = 1 << 14  # rectangles times runs of keys that are swept at once


def tidy(start: IntArray, stop: IntArray) -> Intervals:
    """Canonical form of intervals that ascend per key, disjoint and not touching, but leave slots empty.

    start, stop: (n, k_len), a slot with start >= stop is empty. The arrays may be changed in place.
    """
    empty = start >= stop
    if not empty.any():
        return start, stop
    np.copyto(start, 0, where=empty)
    np.copyto(stop, 0, where=empty)
    if len(start) == 1:
        return start, stop
    if (empty[:-1] & ~empty[1:]).any():  # a used slot after an unused one

        def work(keys: slice) -> Intervals:
            lo, hi = columns.marked(start[:, keys], stop[:, keys])
            return columns.in_order(lo), columns.in_order(hi)

        return columns.canonical(work, len(start), start.shape[1])
    n = max(1, int((stop > 0).any(axis=1).sum()))
    return start[:n], stop[:n]


def first_overlapping_key(start: IntArray, stop: IntArray) -> int | None:
    """The first key with two overlapping intervals (touching is no overlap), None without one; any order."""
    for keys in columns.chunks(len(start), start.shape[1]) if len(start) > 1 else []:
        lo, hi = map(columns.in_order, columns.marked(start[:, keys], stop[:, keys]))
        bad = (lo[1:] < hi[:-1]).any(axis=0)
        if bad.any():
            return int(keys.start + np.argmax(bad))
    return None


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


def canonical(start: IntArray, stop: IntArray) -> Intervals:
    """Canonical form of any intervals (any order, overlapping or touching); they are not changed."""
    if len(start) == 1:
        return tidy(start.copy(), stop.copy())

    def work(keys: slice) -> Intervals:
        lo, hi = columns.marked(start[:, keys], stop[:, keys])
        return columns.covered(columns.in_order(lo), columns.in_order(hi))

    return columns.canonical(work, len(start), start.shape[1])


def rectangles(bounds: NDArray[np.int64], q_len: int, k_len: int) -> Intervals:
    """The union of rectangles (q_start, q_stop, k_start, k_stop), (r, 4), each not empty.

    Between two neighbouring edges all keys have the same intervals: these are found once and repeated.
    """
    edges, pairs = _of_rectangles(bounds[np.argsort(bounds[:, 2], kind="stable")], q_len, k_len)
    widths = np.diff(edges)
    start, stop = (np.repeat(side, widths, axis=1) for side in pairs)
    return start, stop


def _of_rectangles(bounds: NDArray[np.int64], q_len: int, k_len: int) -> tuple[NDArray[np.int64], Intervals]:
    """The bounds of the runs of keys that rectangles, in order of their first keys, see alike, and their sets."""
    edges = np.unique(np.concatenate([[0, k_len], bounds[:, 2], bounds[:, 3]]))
    first, stop = np.searchsorted(edges, bounds[:, 2]), np.searchsorted(edges, bounds[:, 3])
    runs = stop - first
    if int(runs.sum()) <= MOST_RUNS or len(bounds) == 1:
        run = np.arange(int(runs.sum())) + np.repeat(first - (np.cumsum(runs) - runs), runs)
        base = run * (q_len + 1)
        lo, hi = base + np.repeat(bounds[:, 0], runs), base + np.repeat(bounds[:, 1], runs)
        return edges, from_encoded(*sweep(lo, hi, 1), q_len, len(edges) - 1)
    half = len(bounds) // 2  # nested ones: each half is short once it is one set
    parts = [_of_rectangles(part, q_len, k_len) for part in (bounds[:half], bounds[half:])]
    edges = np.unique(np.concatenate([own for own, _ in parts]))
    place = [np.searchsorted(own, edges[:-1], side="right") - 1 for own, _ in parts]
    a, b = ((start[:, at], stop[:, at]) for at, (_, (start, stop)) in zip(place, parts, strict=True))
    lo, hi = union(a, b)
    changed = np.ones(lo.shape[1], np.bool_)
    changed[1:] = (lo[:, 1:] != lo[:, :-1]).any(axis=0) | (hi[:, 1:] != hi[:, :-1]).any(axis=0)
    return np.concatenate([edges[:-1][changed], edges[-1:]]), (lo[:, changed], hi[:, changed])


def union(a: Intervals, b: Intervals) -> Intervals:
    """Pairs in a or b."""
    if len(a[0]) == len(b[0]) == 1:
        joint = np.maximum(a[0], b[0]) <= np.minimum(a[1], b[1])  # they overlap or touch
        only_a, only_b = b[0] >= b[1], a[0] >= a[1]
        if (joint | only_a | only_b).all():  # no key needs a second interval, so nothing is sorted
            start = np.where(only_a, a[0], np.where(only_b, b[0], np.minimum(a[0], b[0])))
            return start, np.maximum(a[1], b[1])
    return _merged(a, b, columns.covered)


def intersection(a: Intervals, b: Intervals) -> Intervals:
    """Pairs in a and b."""
    if len(a[0]) == 1 or len(b[0]) == 1:  # each piece lies in a slot of the longer one: already in order
        return tidy(np.maximum(a[0], b[0]), np.minimum(a[1], b[1]))
    return _merged(a, b, columns.covered_twice)


def _merged(a: Intervals, b: Intervals, join: Callable[[IntArray, IntArray], Intervals]) -> Intervals:
    """`join` of the sorted starts and stops of both."""

    def work(keys: slice) -> Intervals:
        (a0, a1), (b0, b1) = (columns.marked(start[:, keys], stop[:, keys]) for start, stop in (a, b))
        return join(columns.merged(a0, b0), columns.merged(a1, b1))

    return columns.canonical(work, len(a[0]) + len(b[0]), a[0].shape[1])


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
    start, stop = (np.clip(side[:, k0:k1], np.int32(q0), np.int32(q1)) for side in a)
    if q0:
        start -= np.int32(q0)  # in place: new memory costs more than the sums
        stop -= np.int32(q0)
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
