"""Masks in which some blocks of text and images see each other and others do not: lists of blocks, not intervals.

Intervals of such a mask are as many for each key as there are images. Lists of its blocks hold a number for each pair
of blocks that see each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omnicupy.masks.bits import MAX_INTERVALS
from omnicupy.masks.intervals import IntArray
from omnicupy.masks.mask import Mask
from omnicupy.masks.tiles import Tiles, Whole

MOST_INTERVALS = 1 << 22  # 32 MiB of them; more take longer to cut and to pack than lists of blocks do


def joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, disjoint [start, stop); those that touch become one."""
    found: list[tuple[int, int]] = []
    for first, stop in spans:
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], stop
        else:
            found.append((first, stop))
    return found


def need_lists(spans: Sequence[tuple[int, int]], total: int) -> bool:
    """Whether an interval for each span and each of `total` keys is too much."""
    return len(spans) > MAX_INTERVALS and len(spans) * total > MOST_INTERVALS


def blocks(spans: Sequence[tuple[int, int]], total: int, *cuts: int) -> tuple[Whole, Whole]:
    """The bounds of spans and of what lies between them, also cut at `cuts`, and the numbers of the blocks of spans."""
    bounds = np.unique(np.array([0, total, *np.ravel(spans), *cuts], np.int64))
    firsts, stops = np.array(spans, np.int64).T
    span = np.searchsorted(firsts, bounds[:-1], "right") - 1
    inside: Whole = np.flatnonzero((span >= 0) & (bounds[:-1] < stops[span]))
    return bounds, inside


def listed(bounds: tuple[Whole, Whole], seen: Sequence[tuple[IntArray, ...]], inner: Mask) -> Mask:
    """The pairs of `inner` in these blocks. seen: for each block of rows the blocks of keys, ascending, in parts."""
    counts = [sum(map(len, parts)) for parts in seen]
    offsets = np.append(0, np.cumsum(counts))
    keys = np.empty(int(offsets[-1]), np.int32)
    for parts, first, stop in zip(seen, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        np.concatenate(parts, out=keys[first:stop])
    return Mask(inner.shape, tiles=Tiles(inner.shape, bounds, offsets, keys, inner))
