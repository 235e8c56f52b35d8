"""Stretches of neighbouring keys whose intervals go on alike: their bounds stay, or move on by a row with each key.

Text, images, noise and windows are such, so a mask has few stretches for its keys. What follows from them needs no look
at each key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.cut import CHUNK_KEYS
from omnicupy.masks.intervals import Intervals

KeyArray = NDArray[np.int64]


def spread(first: KeyArray, lengths: KeyArray, kind: type[Any] = np.int64) -> NDArray[Any]:
    """Each of these numbers, and those that follow it, so many in all."""
    ends = lengths.cumsum()
    found: NDArray[Any] = np.repeat((first - ends + lengths).astype(kind), lengths)  # wraps below 0, and back
    found += np.arange(len(found), dtype=kind)
    return found


@dataclass(frozen=True)
class Stretches:
    """Of one slot and one block of keys each; int64 (S,).

    key, keys: the first key and their number.  start, stop: the rows of its interval, (0, 0) for none.  rises, grows:
    by how many rows start and stop of each next key are further on, 0 or 1; 0 for a single key.  slot: 0 or more,
    where the intervals have several.
    """

    key: KeyArray
    keys: KeyArray
    start: KeyArray
    stop: KeyArray
    rises: KeyArray
    grows: KeyArray
    slot: KeyArray

    def of(self, some: NDArray[np.intp]) -> Stretches:
        """These alone."""
        return Stretches(*(one.take(some) for one in vars(self).values()))


def stretches(intervals: Intervals, keys: tuple[int, int], bc: int, most: int) -> Stretches | None:
    """Those of a range of whole blocks of bc keys (but for the last key); None where they are more than `most`."""
    first = _begins(intervals, keys, bc, most, grows=False)
    if first is None:
        first = _begins(intervals, keys, bc, most, grows=True)
    if first is None:
        return None
    slots, k_len = intervals[0].shape
    number = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=number[:-1])
    number[-1:] = (keys[1] - keys[0]) * slots - first[-1:]
    slot, key = np.zeros_like(first), first
    if slots > 1:
        step = _step(slots, bc)
        chunk, ahead = np.divmod(first, step * slots)
        slot, key = np.divmod(ahead, np.minimum(step, keys[1] - keys[0] - chunk * step))
        key += chunk * step
    key = key + keys[0]
    at = slot * k_len + key
    behind = at + (number > 1)
    starts, stops = (side.reshape(-1) for side in intervals)
    start, stop = starts.take(at).astype(np.int64), stops.take(at).astype(np.int64)
    return Stretches(key, number, start, stop, starts.take(behind) - start, stops.take(behind) - stop, slot)


def _step(slots: int, bc: int) -> int:
    """Keys that are looked at together."""
    return max(1, CHUNK_KEYS // (slots * bc)) * bc


def _begins(
    intervals: Intervals, keys: tuple[int, int], bc: int, most: int, *, grows: bool
) -> NDArray[np.intp] | None:
    """Where stretches begin in a list of all bounds: chunk after chunk, of each slot after slot. None where they are
    more than `most`. grows: may stops move on, too?
    """
    slots, found, count = len(intervals[0]), [], 0
    step = _step(slots, bc)
    for key in range(*keys, step):
        starts, stops = (side[:, key : min(key + step, keys[1])] for side in intervals)
        goes_on = np.empty(starts.shape, np.bool_)
        rise = starts[:, 1:] - starts[:, :-1]
        np.less_equal(rise.view(np.uint32), 1, out=goes_on[:, 1:])
        turns = rise[:, 1:] != rise[:, :-1]
        if grows:
            growth = stops[:, 1:] - stops[:, :-1]
            goes_on[:, 1:] &= growth.view(np.uint32) <= 1
            used = stops > 0
            goes_on[:, 1:] &= used[:, 1:] == used[:, :-1]  # (0, 0) is no interval that grows
            turns |= growth[:, 1:] != growth[:, :-1]
        else:
            goes_on[:, 1:] &= stops[:, 1:] == stops[:, :-1]
        goes_on[:, ::bc] = False
        turns &= goes_on[:, 1:-1]  # a stretch that has begun takes its second key as it comes
        begins = ~goes_on
        begins[:, 2:] |= turns
        first = begins.reshape(-1).nonzero()[0]
        count += len(first)
        if count > most:
            return None
        found.append(first + (key - keys[0]) * slots)
    return found[0] if len(found) == 1 else np.concatenate(found)
