"""What masks show of their tokens: the work of each row, where documents end, which rows runs of keys are seen by.

A plan weighs chunks of tokens. For masks in interval form everything here is one pass over the tokens, and O(pieces and
chunks) after that; of a mask held as bits or tiles, rows are counted strip by strip. Where documents end is exact for
all masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits
from omnicupy.masks.mask import Mask
from omnicupy.parallel.pieces import Pieces
from omnicupy.parallel.runs import Whole, sums_before

Extent: TypeAlias = tuple[Any, Any]  # of each key, int32 (k_len,)

MOST_STRIPS = 512  # of a mask without interval form, in which its rows are counted
FEW = 8  # keys a piece, from which on pieces are faster than rows one by one


@dataclass(frozen=True, eq=False)
class Shown:
    """A mask, and its pieces where it is in interval form."""

    mask: Mask
    pieces: Pieces | None

    @staticmethod
    def of(mask: Mask) -> Shown:
        return Shown(mask, None if mask.intervals is None else Pieces.of(mask.intervals, mask.shape[0]))

    @property
    def few(self) -> Pieces | None:
        """The pieces, where they are few."""
        pieces = self.pieces
        return pieces if pieces is not None and FEW * len(pieces.edges) <= self.mask.shape[1] else None


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
    lengths = bounds[1:] - bounds[:-1]
    counts = -(-lengths // chunk)
    ends = counts.cumsum()
    edges = np.arange(ends[-1] + 1) * chunk
    edges[:-1] += (bounds[:-1] - (ends - counts) * chunk).repeat(counts)
    edges[-1] = bounds[-1]
    return edges


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


def chunk_work(shown: Shown, edges: Whole) -> NDArray[Any]:
    """Keys that the rows of each chunk see. edges: bounds of the chunks, of all rows."""
    if shown.few is not None:
        before = shown.few.pairs_before(edges)
        return before[1:] - before[:-1]
    return np.add.reduceat(row_work(shown.mask), edges[:-1])


def pairs_before(shown: Shown, rows: Whole) -> NDArray[Any]:
    """Allowed pairs of the rows before each of these; of masks without interval form by the mean of a row's strip."""
    few = shown.few
    return sums_before(row_work(shown.mask))[rows] if few is None else few.pairs_before(rows)


class _Extents(NamedTuple):
    """Of a mask in strips: for each key the first row that sees it and the one after the last, (q_len, 0) where none
    does, int32: as wide as they may be, and as narrow.

    keys: of each strip the keys [k0, k1) that its rows see.
    """

    widest: Extent
    narrowest: Extent
    keys: tuple[tuple[int, int], ...]


def documents(masks: Sequence[Shown]) -> Whole:
    """Bounds of the documents of square masks: the places that no pair of any of them crosses."""
    size = masks[0].mask.shape[0]
    exact = [one.pieces.free() for one in masks if one.pieces is not None]
    inside = exact[0] if len(exact) == 1 else np.logical_and.reduce([*exact, np.ones(size - 1, np.bool_)])
    free, strips_of = inside, [(one.mask, _extents(one.mask)) for one in masks if one.pieces is None]
    if strips_of:
        # Strips leave some places open: there the rows themselves are looked at.
        free = np.logical_and.reduce([inside, *(_free(one.widest) for _, one in strips_of)])
        unclear = np.logical_and.reduce([inside, ~free, *(_free(one.narrowest) for _, one in strips_of)])
        places = np.flatnonzero(unclear) + 1
        for mask, one in strips_of:
            places = _uncrossed(mask, places, one.keys)
        free[places - 1] = True
    return np.concatenate([[0], free.nonzero()[0] + 1, [size]])


def _free(extent: Extent) -> NDArray[np.bool_]:
    """Whether no pair crosses place i + 1, (keys - 1,)."""
    first, last = extent
    last = np.maximum.accumulate(last)
    first = np.minimum.accumulate(first[::-1])[::-1]
    inner = np.arange(1, len(first), dtype=np.int32)
    free: NDArray[np.bool_] = (last[:-1] <= inner) & (first[1:] >= inner)
    return free


def _extents(mask: Mask) -> _Extents:
    q_len = mask.shape[0]
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


def rectangles(shown: Shown, key_edges: Whole) -> Rectangles:
    """Which rows see keys of each run of keys, as ranges."""
    if shown.pieces is not None:
        return Rectangles(key_edges, *shown.pieces.rows_of(key_edges))
    mask, found = shown.mask, []
    for a, b in pairwise(strips(mask.shape[0]).tolist()):
        counts = np.add.reduceat(mask.key_counts_of(a, b), key_edges[:-1])
        found.append((np.flatnonzero(counts), a, b))
    run = np.concatenate([one for one, _, _ in found])
    widths = [len(one) for one, _, _ in found]
    bounds = [np.repeat([one[side] for one in found], widths) for side in (1, 2)]
    return Rectangles(key_edges, run, *(one.astype(np.int64) for one in bounds))
