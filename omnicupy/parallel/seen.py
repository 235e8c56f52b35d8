"""What masks show of their tokens: the work of each row, where documents end, which rows runs of keys are seen by.

A plan weighs chunks of tokens. Everything here is O(tokens) once, and O(chunks) after that, for masks in interval
form; of a mask held as bits or tiles, rows are counted strip by strip. Where documents end is exact for all masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits
from omnicupy.masks.intervals import Intervals
from omnicupy.masks.mask import Mask

Whole: TypeAlias = NDArray[np.int64]
Real: TypeAlias = NDArray[np.float64]
Extent: TypeAlias = tuple[Any, Any]  # of each key, int32 (k_len,)

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


class _Extents(NamedTuple):
    """For each key the first row that sees it and the one after the last, (q_len, 0) where none does; int32: as wide as
    they may be, and as narrow, which differ where rows are counted in strips.

    keys: of each strip the keys [k0, k1) that its rows see; () of masks in interval form.
    """

    widest: Extent
    narrowest: Extent
    keys: tuple[tuple[int, int], ...] = ()


def documents(masks: Sequence[Mask]) -> Whole:
    """Bounds of the documents of square masks: the places that no pair of any of them crosses."""
    size = masks[0].shape[0]
    found = [_extents(mask) for mask in masks]
    free = _free([one.widest for one in found])
    if any(one.keys for one in found):
        # Strips leave some places open: there the rows themselves are looked at.
        places = np.flatnonzero(_free([one.narrowest for one in found]) & ~free) + 1
        for mask, one in zip(masks, found, strict=True):
            places = _uncrossed(mask, places, one.keys) if one.keys else places
        free[places - 1] = True
    return np.concatenate([[0], np.flatnonzero(free) + 1, [size]]).astype(np.int64)


def _free(extents: Sequence[Extent]) -> NDArray[np.bool_]:
    """Whether no pair of any mask crosses place i + 1, (keys - 1,)."""
    first, last = extents[0]
    for also in extents[1:]:
        first, last = np.minimum(first, also[0]), np.maximum(last, also[1])
    last = np.maximum.accumulate(last)
    first = np.minimum.accumulate(first[::-1])[::-1]
    inner = np.arange(1, len(first), dtype=np.int32)
    free: NDArray[np.bool_] = (last[:-1] <= inner) & (first[1:] >= inner)
    return free


def _extents(mask: Mask) -> _Extents:
    q_len = mask.shape[0]
    if mask.intervals is not None:
        start, stop = mask.intervals  # canonical: ascending, unused slots (0, 0) and last
        last = stop[0] if len(stop) == 1 else stop.max(axis=0)
        exact = np.where(stop[0] > 0, start[0], np.int32(q_len)), last
        return _Extents(exact, exact)
    first, stop = np.full(mask.shape[1], q_len, np.int32), np.zeros(mask.shape[1], np.int32)
    latest, soonest, keys = first.copy(), stop.copy(), []
    for a, b in pairwise(strips(q_len).tolist()):
        seen = mask.key_counts_of(a, b) > 0
        new = seen & (stop == 0)
        first[new], latest[new] = a, b - 1
        stop[seen], soonest[seen] = b, a + 1
        some = seen.any()
        keys.append((int(seen.argmax()), len(seen) - int(seen[::-1].argmax())) if some else (0, 1))
    return _Extents((first, stop), (latest, soonest), tuple(keys))


def _uncrossed(mask: Mask, places: Whole, keys: Sequence[tuple[int, int]]) -> Whole:
    """Those of these places, ascending, that no pair of the strip around them crosses. keys: as in `_Extents`."""
    edges, kept = strips(mask.shape[0]), [places[:0]]
    strip = np.searchsorted(edges, places, "right") - 1
    for one in np.unique(strip).tolist():
        here, (a, b) = places[strip == one], edges[one : one + 2].tolist()
        low, high = _keys_of_rows(mask, (a, b), keys[one])
        until, since = np.maximum.accumulate(high), np.minimum.accumulate(low[::-1])[::-1]
        kept.append(here[(until[here - a - 1] <= here) & (since[here - a] >= here)])
    return np.concatenate(kept)


def _keys_of_rows(mask: Mask, rows: tuple[int, int], keys: tuple[int, int]) -> tuple[Whole, Whole]:
    """The first key that each row sees and the one after the last; (k_len, 0) where it sees none. keys: all of them."""
    low, high = np.full(rows[1] - rows[0], mask.shape[1]), np.zeros(rows[1] - rows[0], np.int64)
    for q0, q1 in pairwise([*range(*rows, bits.ONE.step(keys[1] - keys[0])), rows[1]]):
        block = mask.dense(q0, q1, *keys)
        some, part = block.any(axis=1), slice(q0 - rows[0], q1 - rows[0])
        low[part][some] = keys[0] + block[some].argmax(axis=1)
        high[part][some] = keys[1] - block[some, ::-1].argmax(axis=1)
    return low, high


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
