"""What masks show of their tokens: the work of each row, where documents end, which rows runs of keys are seen by.

A plan weighs chunks of tokens. Everything here is O(tokens) once, and O(chunks) after that, for masks in interval
form; of a mask held as bits or tiles, rows are counted strip by strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.intervals import Intervals
from omnicupy.masks.mask import Mask

Whole: TypeAlias = NDArray[np.int64]
Real: TypeAlias = NDArray[np.float64]

MOST_STRIPS = 512  # of a mask without interval form, in which its rows are counted


@dataclass(frozen=True)
class Rectangles:
    """Rows [first, stop) that see keys of a run of keys: it is the least range for them and may hold others.

    key_edges: bounds of the runs of keys.  run, first, stop: of each rectangle.
    """

    key_edges: Whole
    run: Whole
    first: Whole
    stop: Whole


def chunk_edges(bounds: Whole, chunk: int) -> Whole:
    """Bounds of chunks of at most `chunk` tokens that end with their document. bounds: of the documents."""
    lengths = np.diff(bounds)
    counts = -(-lengths // chunk)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(bounds[:-1], counts) + (np.arange(int(counts.sum())) - first) * chunk
    return np.append(starts, bounds[-1])


def strips(q_len: int) -> Whole:
    """Bounds of the strips of rows in which masks without interval form are counted."""
    width = max(1, -(-q_len // MOST_STRIPS))
    return np.append(np.arange(0, q_len, width), q_len)


def row_work(mask: Mask) -> NDArray[Any]:
    """Keys that each row sees, (q_len,); for masks without interval form the mean of its strip."""
    q_len = mask.shape[0]
    if mask.intervals is None:
        edges = strips(q_len)
        pairs = [int(mask.key_counts_of(a, b).sum()) for a, b in pairwise(edges.tolist())]
        return np.repeat(np.array(pairs) / np.diff(edges), np.diff(edges))
    change = np.zeros(q_len + 1, np.int64)
    for start, stop in zip(*mask.intervals, strict=True):
        change += np.bincount(start, minlength=q_len + 1)
        change -= np.bincount(stop, minlength=q_len + 1)
    return np.cumsum(change[:q_len], out=change[:q_len])


def documents(masks: Sequence[Mask]) -> Whole:
    """Bounds of the documents of square masks: the places that no pair of any of them crosses."""
    size = masks[0].shape[0]
    first, last = _extent(masks[0])
    for mask in masks[1:]:
        also = _extent(mask)
        first, last = np.minimum(first, also[0]), np.maximum(last, also[1])
    last = np.maximum.accumulate(last)
    first = np.minimum.accumulate(first[::-1])[::-1]
    inner = np.arange(1, size, dtype=np.int32)
    free = np.flatnonzero((last[:-1] <= inner) & (first[1:] >= inner)) + 1
    return np.concatenate([[0], free, [size]]).astype(np.int64)


def _extent(mask: Mask) -> tuple[Any, Any]:
    """For each key the first row that sees it and the one after the last, (q_len, 0) where none does; int32."""
    q_len = mask.shape[0]
    if mask.intervals is not None:
        start, stop = mask.intervals  # canonical: ascending, unused slots (0, 0) and last
        last = stop[0] if len(stop) == 1 else stop.max(axis=0)
        return np.where(stop[0] > 0, start[0], np.int32(q_len)), last
    first, stop = np.full(mask.shape[1], q_len, np.int32), np.zeros(mask.shape[1], np.int32)
    edges = strips(q_len)
    for a, b in pairwise(edges.tolist()):
        seen = mask.key_counts_of(a, b) > 0
        stop[seen] = b
        np.minimum(first, np.where(seen, np.int32(a), np.int32(q_len)), out=first)
    return first, stop


def rectangles(mask: Mask, key_edges: Whole) -> Rectangles:
    """Which rows see keys of each run of keys, as ranges."""
    if mask.intervals is not None:
        return _of_intervals(mask.intervals, mask.shape[0], key_edges)
    edges, found = strips(mask.shape[0]), []
    for a, b in pairwise(edges.tolist()):
        counts = np.add.reduceat(mask.key_counts_of(a, b), key_edges[:-1])
        found.append((np.flatnonzero(counts), a, b))
    run = np.concatenate([one for one, _, _ in found])
    widths = [len(one) for one, _, _ in found]
    bounds = [np.repeat([one[side] for one in found], widths) for side in (1, 2)]
    return Rectangles(key_edges, run, *(one.astype(np.int64) for one in bounds))


def _of_intervals(pairs: Intervals, q_len: int, key_edges: Whole) -> Rectangles:
    runs, firsts, stops = [], [], []
    for start, stop in zip(*pairs, strict=True):
        last = np.maximum.reduceat(stop, key_edges[:-1])
        # An unused slot holds (0, 0), which must not count as row 0; only then is a copy made.
        unused = start >= stop
        at = np.where(unused, q_len, start) if unused.any() else start
        first = np.minimum.reduceat(at, key_edges[:-1])
        run = np.flatnonzero(first < last)
        runs.append(run)
        firsts.append(first[run].astype(np.int64))
        stops.append(last[run].astype(np.int64))
    return Rectangles(key_edges, *(np.concatenate(one) for one in (runs, firsts, stops)))
