"""Lists by blocks of keys for the kernel that adds to each sum of dQ in one order: the rank of each addition.

Blocks of keys that see the same queries add to the same sums. Floats added in another order give other bits, so each
addition has a *rank*, and waits until as many have come before it. So that they hardly ever wait, ranks are those of a
schedule that is played ahead: multiprocessors take the parts in their order, and each tile takes as long as any other.

Every wait ends if all thread blocks of the launch run at the same time. A part is handed out when one before it has
ended, in the play as on the device, so among all additions that are still to come the one that was played first finds
its part handed out and all additions before it done. The play may be slower than the device in one way: it ends a
section of heads, and a tier of parts, before it begins the next, so that the ranks of one head are those of all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.intervals import IntArray
from omnicupy.masks.stretches import spread
from omnicupy.masks.transpose import KeyBlocks
from omnicupy.schedule.block_lists import BlockLists, places
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import LONG_SHARE, Workers

MOST_RANKS = 2**22  # of a mask, a tile each: 16 MiB; longer masks are worked on by kernels that need none
# In a rank: no addition to its sum comes later. kernels/omni/sm90/backward/finish.cuh has the same one.
LAST_ADDITION = 1 << 30
MOST_SHARERS = 2**10  # of a place, one after the other: place_turns.cuh counts them beside ranks
CHUNK = 1 << 13  # ranks that are stored together: new memory costs more than the work
FAR_SHARE = 0.5  # of additions that find their sum in the L2 cache only head by head
ASKED = 8  # one in so many sums is asked for that
PLAYED_ITEM = 2  # what a part takes beside its tiles, in tiles
# Below so many parts a worker, sections of heads run into each other: the ranks are those of the fourth section then.
OVERLAPPING, PLAYED_SECTIONS = 1.75, 4


@dataclass(frozen=True)
class OrderedWorkers(Workers):
    """kept: tiles of Q, dO and sums that the L2 cache holds, 0 where the kernel cannot go head by head.  places: where
    the kernel makes dQ of sums, most of these that memory is meant for; else 0.
    """

    kept: int = 0
    places: int = 0


@dataclass(frozen=True)
class OrderedLists(BlockLists):
    """head_ranks: how far behind those of one query head of a group the ranks of the next one are; 0: the same ones.
    turn_heads: heads of keys whose sums of dQ have places at a time, which others' have behind them; all heads, where
    each sum has its own; 0 before it is known.
    """

    head_ranks: int = 0
    turn_heads: int = 0

    @property
    def struct_fields(self) -> dict[str, Any]:
        """As BlockLists."""
        return super().struct_fields | {"head_ranks": self.head_ranks, "turn_heads": self.turn_heads}

    def with_ranks_of_heads(self, count: int) -> OrderedLists:
        """The same arrays with room for the ranks of so many heads, which are the last of them."""
        apart = self.shapes["ranks"][0]
        shapes = self.shapes | {"ranks": (count * apart,)}
        buffer, offsets = places(shapes)
        rest = offsets["ranks"]
        buffer[:rest] = self.buffer[:rest]
        return replace(self, buffer=buffer, offsets=offsets, shapes=shapes, head_ranks=apart)


def ordered_lists(blocks: Sequence[KeyBlocks], workers: Workers) -> OrderedLists:
    """As key_lists, but the tiles of a part are walked from the last query to the first, the entries stand in that
    order, and an entry's fourth word is the place in `ranks` of its first tile, that of its least query.

    ranks: (tiles,) int32, a meaningless one where there are no tiles, for all query heads of a group alike, which
    follow each other in a tile. Where their sums would leave the L2 cache meanwhile, a part goes head by head, and
    there are ranks for each, `head_ranks` further on than those of the head before; else that is 0. `section` is the
    number of heads that the ranks want side by side.
    workers: `side_by_side` says how many heads may be. With `places` the last rank of each sum has LAST_ADDITION. Where
    there are more sums, heads take turns: as many at a time as places serve, and all their work comes before any of the
    next turn. Where one head has more, all sums have places of their own.
    """
    lists = key_lists(blocks, workers, n_ranks=max(1, sum(map(_tiles_of, blocks))))
    if not isinstance(workers, OrderedWorkers):
        workers = OrderedWorkers(**vars(workers))
    parts = lists.array("parts")
    heads = workers.heads
    costs = parts[:, 3] * workers.repeats + PLAYED_ITEM
    whole = float(costs.sum()) * heads / workers.sm_count
    if costs.max() > LONG_SHARE * whole:  # such parts must not begin late, whatever their heads
        section, tiers = heads, (len(parts),) * len(lists.tiers)
    else:
        section = min(heads, max(1, round(workers.sm_count / len(parts))), workers.side_by_side)
        tiers = lists.tiers
    turn_heads = _turn_heads(blocks, workers)
    section = min(section, turn_heads)
    sections = min(-(-heads // section), PLAYED_SECTIONS)
    if section * len(parts) < OVERLAPPING * workers.sm_count and sections > 1:
        starts = _starts(
            np.repeat(costs, section), [section * end for end in tiers], workers.sm_count, sections
        )
        starts = starts[section - 1 :: section]
    else:
        starts = _starts(costs, tiers, max(1, workers.sm_count // section))
    walk = _walk(lists, blocks[0].q_blocks)
    lists = OrderedLists(**vars(lists) | {"tiers": tiers, "section": section, "turn_heads": turn_heads})
    by_sum = walk.ranks_by_sum(workers.places > 0)
    if walk.is_head_by_head(starts, workers, section):
        lists = lists.with_ranks_of_heads(workers.repeats)
        of_head = lists.array("parts")[:, 3].astype(np.int64)  # tiles of the part
        for head, ranks in enumerate(lists.array("ranks").reshape(workers.repeats, -1)):
            ranks[...] = walk.ranks(walk.times(starts, 1, head * of_head), by_sum)
    elif len(walk.query):
        lists.array("ranks")[...] = walk.ranks(walk.times(starts, workers.repeats), by_sum)
    return lists


def _turn_heads(blocks: Sequence[KeyBlocks], workers: OrderedWorkers) -> int:
    """For how many heads of keys there are places of sums of dQ at a time."""
    of_head = workers.repeats * sum(block.q_blocks for block in blocks)  # sums, under all masks
    return min(workers.heads, workers.places // of_head or workers.heads)


def _tiles_of(block: KeyBlocks) -> int:
    return int(block.tiles.sum())


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


def _starts(
    costs: NDArray[np.int64], tiers: Sequence[int], workers: int, sections: int = 1
) -> NDArray[np.int64]:
    """When each part begins: so many workers take the parts in their order, a tier after the other.

    costs: of parts, in tiles.  sections: how often a tier is taken; the last time counts, when workers become free one
    by one.
    """
    starts, taken = np.zeros(len(costs), np.int64), costs.tolist()
    begin, first = 0, 0
    for end in tiers:
        late = min(end, first + workers)  # those before it begin at once, as all workers are free
        free = [begin + cost for cost in taken[first:late]]
        starts[first:end] = begin
        if late < end or sections > 1:
            free += [begin] * (workers - len(free))
            heapq.heapify(free)
            starts[late:end] = [heapq.heapreplace(free, free[0] + cost) for cost in taken[late:end]]
        for _ in range(1, sections):
            starts[first:end] = [heapq.heapreplace(free, free[0] + cost) for cost in taken[first:end]]
        begin, first = max(free, default=begin), end
    return starts


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


def _walk(lists: BlockLists, q_blocks: int) -> Walk:
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
