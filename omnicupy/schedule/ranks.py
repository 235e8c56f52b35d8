"""Ranks of additions to sums of dQ: the order of the times at which tiles are played (ordered_lists.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.intervals import IntArray
from omnicupy.masks.stretches import spread
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import Workers

MOST_RANKS = 2**22  # of a mask, a tile each: 16 MiB; longer masks are worked on by kernels that need none
# In a rank: no addition to its sum comes later. kernels/omni/sm90/backward/finish.cuh has the same one.
LAST_ADDITION = 1 << 30
CHUNK = 1 << 13  # ranks that are stored together: new memory costs more than the work
FAR_SHARE = 0.5  # of additions that find their sum in the L2 cache only head by head
ASKED = 8  # one in so many sums is asked for that


@dataclass(frozen=True)
class OrderedWorkers(Workers):
    """kept: tiles of Q, dO and sums that the L2 cache holds, 0 where the kernel cannot go head by head.  places: where
    the kernel makes dQ of sums, most of these that memory is meant for; else 0.  background: it does so in the
    background, and gains where sums have had all additions long before the launch ends.
    """

    kept: int = 0
    places: int = 0
    background: bool = False


@dataclass(frozen=True)
class Walk:
    """The entries as they are walked, each from its last tile to its first one.

    part: whose an entry is, (E,).  tiles: of each entry.  before: tiles of the entries before it.  walked: tiles of its
    part that are walked up to its first one, that one too.  query: which sum its first tile adds to, those of one mask
    after those of another.  additions: to each sum.
    """

    part: NDArray[np.intp]
    tiles: NDArray[np.int64]
    before: NDArray[np.int64]
    walked: NDArray[np.int64]
    query: NDArray[np.int64]
    additions: NDArray[np.int64]

    def times(
        self, starts: NDArray[np.int64], repeats: int, head: NDArray[np.int64] | int = 0
    ) -> NDArray[np.int64]:
        """When each entry would be played at query 0, if it were so long: all walks are as fast, so two entries play
        what they add to one sum in the order of these times, and as far apart. starts: of parts.  repeats: heads that
        are worked on in each tile.  head: of each part, tiles that come before its first one.
        """
        return (starts + head).take(self.part) + (self.walked + self.query) * repeats

    def ranks(self, times: NDArray[np.int64], by_sum: IntArray) -> IntArray:
        """Of each addition among those to its sum. times: of entries.  by_sum: of all additions, one sum's after the
        other's.
        """
        order = _order(times)
        tiles = self.tiles.take(order)
        both, bits = _by_sum(self.query.take(order), tiles, len(self.additions))
        both &= both.dtype.type((1 << bits) - 1)
        place = spread(self.before.take(order), tiles, np.int32)
        found = np.empty(len(place), np.int32)
        for first in range(0, len(place), CHUNK):
            some = slice(first, first + CHUNK)
            at = place.take(both[some]).astype(np.intp)  # far faster than what an assignment does with others
            found[at] = by_sum[some]
        return found

    def ranks_by_sum(self, flagged: bool) -> IntArray:
        """Of all additions, one sum's after the other's. flagged: with LAST_ADDITION the last one of each."""
        found = spread(np.zeros_like(self.additions), self.additions, np.int32)
        if flagged:
            found[np.cumsum(self.additions[self.additions > 0]) - 1] |= LAST_ADDITION
        return found

    def numbers(self) -> IntArray:
        """Of each tile, where its rank would lie, how many additions its sum has."""
        return self.additions.astype(np.int32).take(spread(self.query, self.tiles, np.int32))

    def is_head_by_head(self, starts: NDArray[np.int64], workers: OrderedWorkers, section: int) -> bool:
        """Do parts go so, that what they add to stays in the L2 cache? section: heads of keys side by side."""
        repeats = workers.repeats
        if not workers.kept or repeats == 1:
            return False
        if not 1 < int(self.tiles.sum()) * repeats <= MOST_RANKS:
            return False
        if np.count_nonzero(self.additions) * repeats * section < 2 * workers.kept:  # whatever the walk
            return False
        innermost = self._far(self.times(starts, repeats), workers)
        return innermost > FAR_SHARE and innermost - self._far(self.times(starts, 1), workers) > FAR_SHARE

    def _far(self, times: NDArray[np.int64], workers: OrderedWorkers) -> float:
        """The share of additions before which so many others come, since the one before to their sum, that the L2 cache
        does not hold it any more. One in ASKED sums is looked at.
        """
        order = _order(times)
        query, tiles = self.query.take(order), self.tiles.take(order)
        first = (query + (ASKED - 1)) // ASKED
        count = (query + tiles + (ASKED - 1)) // ASKED - first
        both, bits = _by_sum(first, count, len(self.additions))
        played = np.repeat(times.take(order), count).take(both & both.dtype.type((1 << bits) - 1))
        far = played[1:] - played[:-1] > workers.kept // workers.sm_count
        both >>= both.dtype.type(bits)
        far &= both[1:] == both[:-1]
        return np.count_nonzero(far) / max(1, len(far))


def _order(times: NDArray[np.int64]) -> NDArray[np.intp]:
    """The entries by their times, equal ones as they stand."""
    return times.astype(_kind(times.max(initial=0))).argsort(kind="stable")


def _by_sum(first: NDArray[np.int64], counts: NDArray[np.int64], sums: int) -> tuple[NDArray[Any], int]:
    """All additions, sum after sum and else as they stand: of each the sum, and in as many lower bits as are returned
    which of them all it is. first: the first sum that each entry adds to.  counts: to so many it adds.  sums: a bound.
    """
    ahead = counts.cumsum()
    ahead -= counts
    bits = int(counts.sum()).bit_length()
    kind: type[Any] = np.uint32 if sums << bits <= 2**32 else np.uint64
    # Plain numbers are what NumPy sorts fastest. What wraps below 0 wraps back.
    found = np.repeat((first - ahead << bits).astype(kind), counts)
    found += np.arange(len(found), dtype=kind) * kind((1 << bits) + 1)
    found.sort()
    return found, bits


def _kind(most: int) -> type[Any]:
    """Of numbers from 0 to `most`. NumPy sorts 16 bits several times as fast, by radix."""
    return np.uint16 if most < 2**16 else np.int64


def walk_of(lists: BlockLists, q_blocks: int) -> Walk:
    """The walk of entries that are turned round, and in each entry where its own ranks begin. q_blocks: of a mask."""
    entries, parts = lists.array("entries"), lists.array("parts")
    order, counts = _turned(lists)
    part = np.repeat(order, counts)
    tiles = (-(-(entries[:, 0] >> 8) // np.int32(lists.br))).astype(np.int64)
    ends = tiles.cumsum()
    before = ends - tiles
    entries[:, 3] = before
    of_part = before.take(counts.cumsum() - counts)  # tiles before each part
    query: NDArray[Any] = parts[:, 1].take(part) * np.int64(q_blocks) + entries[:, 2] // np.int32(lists.br)
    sums = lists.mask_batch * q_blocks
    begin, end = (np.bincount(one, minlength=sums + 1) for one in (query, query + tiles))
    additions = np.cumsum(begin - end)[:sums]
    return Walk(part, tiles, before, ends - np.repeat(of_part, counts), query, additions)


def _turned(lists: BlockLists) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Turn the entries of each part round. Returns the parts in the order of their entries, and how many each has."""
    entries, parts = lists.array("entries"), lists.array("parts")
    with_tiles = np.flatnonzero(parts[:, 3])
    first = parts[:, 2].take(with_tiles).astype(np.int64)
    by_entry = first.argsort()
    order, first = with_tiles.take(by_entry), first.take(by_entry)
    ends = np.append(first, len(entries))[1:]
    counts = ends - first
    entries[:, 0] &= ~LAST
    entries[...] = entries.take(np.repeat(first + ends - 1, counts) - np.arange(len(entries)), axis=0)
    entries[ends - 1, 0] |= LAST
    return order, counts
