"""The mask of one rank: its rows against its own keys and those that it is sent."""

from __future__ import annotations

import numpy as np

from omnicupy.masks import bits as masks_bits
from omnicupy.masks import intervals as masks_intervals
from omnicupy.masks.intervals import BoolArray
from omnicupy.masks.mask import Mask, from_bits
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Whole


def local_mask(mask: Mask, rows: Owners, rank: int, keys: Whole) -> Mask:
    """The rows of `rank`, ascending, against these keys, in their order; exact, and intervals stay intervals.

    A bound x of an interval becomes the number of the rank's rows below x: its rows ascend, so that what was one
    interval stays one.
    """
    count = int(rows.counts[rank])
    if mask.intervals is not None:
        bounds = [side.take(keys, axis=1) for side in mask.intervals]
        # Intervals that other ranks' rows held apart may touch now.
        pairs = masks_intervals.canonical(*rows.below(rank, bounds))
        return Mask((count, len(keys)), intervals=pairs)
    places = rows.of(rank)

    def strip(first: int, stop: int) -> BoolArray:
        wanted = places[first:stop]
        out = np.empty((len(wanted), len(keys)), np.bool_)
        cuts = np.flatnonzero(np.diff(wanted) != 1) + 1
        for at, run in zip([0, *cuts.tolist()], np.split(wanted, cuts), strict=True):
            dense = mask.dense(int(run[0]), int(run[-1]) + 1, 0, mask.shape[1])
            out[at : at + len(run)] = dense[:, keys]
        return out

    bits = masks_bits.from_rows(strip, count, len(keys))
    return from_bits(bits, (count, len(keys)))
