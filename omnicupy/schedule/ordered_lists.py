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

from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.intervals import IntArray
from omnicupy.schedule.block_lists import BlockLists, places
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import LONG_SHARE, Workers, number_in_run

MOST_RANKS = 2**22  # of a mask, a tile each: 16 MiB; longer masks are worked on by kernels that need none
# In a rank: no addition to its sum comes later. kernels/omni/sm90/backward/finish.cuh has the same one.
LAST_ADDITION = 1 << 30
MOST_SHARERS = 2**10  # of a place, one after the other: turns.cuh counts them beside ranks
FAR_SHARE = 0.5  # of additions that find their sum in the L2 cache only head by head
ASKED = 8  # one in so many sums is asked for that
PLAYED_ITEM = 2  # what a part takes beside its tiles, in tiles
# Below so many parts a worker, sections of heads run into each other: the ranks are those of the fourth section then.
OVERLAPPING, PLAYED_SECTIONS = 1.75, 4


@dataclass(frozen=True)
class OrderedWorkers(Workers):
    """kept: tiles of Q, dO and sums that the L2 cache holds, 0 where the kernel cannot go head by head.  places: most
    sums of dQ that memory is meant for; 0 for all.
    """

    kept: int = 0
    places: int = 0


@dataclass(frozen=True)
class OrderedLists(BlockLists):
    """head_ranks: how far behind those of one query head of a group the ranks of the next one are; 0: the same ones.
    turn_heads: heads of keys whose sums of dQ have places at a time, which others' have behind them; all heads, where
    each sum has its own.
    """

    head_ranks: int = 0
    turn_heads: int = 1

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


def ordered_lists(blocks: Sequence[BlockMask], workers: Workers) -> OrderedLists:
    """As key_lists, but the tiles of a part are walked from the last query to the first, the entries stand in that
    order, and an entry's fourth word is the place in `ranks` of its first tile, that of its least query.

    ranks: (tiles,) int32, the last ones of their sums with LAST_ADDITION, a meaningless one where there are no tiles,
    for all query heads of a group alike, which follow each other in a tile. Where their sums would leave the L2 cache
    meanwhile, a part goes head by head, and there are ranks for each, `head_ranks` further on than those of the head
    before; else that is 0. `section` is the number of heads that the ranks want side by side.
    workers: `side_by_side` says how many heads may be. Where there are more sums than `places`, heads take turns: as
    many at a time as these serve, and all their work comes before any of the next turn. Where one head has more, all
    sums have places of their own.
    """
    lists = key_lists(blocks, workers, n_ranks=max(1, sum(map(_tiles_of, blocks))))
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
    walk = _walk(lists, _turned(lists), blocks[0].q_blocks)
    lists = OrderedLists(**vars(lists) | {"tiers": tiers, "section": section, "turn_heads": turn_heads})
    if walk.is_head_by_head(starts, workers, section):
        lists = lists.with_ranks_of_heads(workers.repeats)
        of_head = lists.array("parts")[:, 3].astype(np.int64)  # tiles of the part
        for head, ranks in enumerate(lists.array("ranks").reshape(workers.repeats, -1)):
            ranks[...] = walk.ranks(walk.times(starts, 1, head * of_head))
    elif len(walk.query):
        lists.array("ranks")[...] = walk.ranks(walk.times(starts, workers.repeats))
    return lists


def _turn_heads(blocks: Sequence[BlockMask], workers: Workers) -> int:
    """For how many heads of keys there are places of sums of dQ at a time."""
    most = workers.places if isinstance(workers, OrderedWorkers) else 0
    of_head = workers.repeats * sum(block.q_blocks for block in blocks)  # sums, under all masks
    return min(workers.heads, most // of_head or workers.heads)


def _tiles_of(block: BlockMask) -> int:
    return int(block.tiles.sum())


def _turned(lists: BlockLists) -> NDArray[np.intp]:
    """Turn the entries of each part round; the part that each entry is of."""
    entries, parts = lists.array("entries"), lists.array("parts")
    with_tiles = np.flatnonzero(parts[:, 3])
    order = with_tiles[np.argsort(parts[with_tiles, 2])]
    first = parts[order, 2]
    counts = np.diff(first, append=np.int32(len(entries)))
    ends = np.repeat(first + counts, counts)
    entries[:, 0] &= ~LAST
    entries[...] = entries.take(ends - 1 - number_in_run(counts), axis=0)
    entries[first + counts - 1, 0] |= LAST
    return np.repeat(order, counts)


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
        free = [begin] * workers
        for _ in range(sections):
            starts[first:end] = [heapq.heapreplace(free, free[0] + cost) for cost in taken[first:end]]
        begin, first = max(free), end
    return starts


@dataclass(frozen=True)
class Walk:
    """The tiles in the order of entries, of each from the first query to the last.

    part: whose an entry is, (E,).  tiles: of each entry.  walked: tiles of its part that are walked before the first
    tile of an entry, which is its last in the walk.  number: of a tile in its entry, (T,).  query: which sum it adds
    to, those of one mask after those of another.  additions: to each sum.
    """

    part: NDArray[np.intp]
    tiles: IntArray
    walked: NDArray[np.int64]
    number: NDArray[Any]
    query: NDArray[Any]
    additions: NDArray[np.int64]

    def times(
        self, starts: NDArray[np.int64], repeats: int, head: NDArray[np.int64] | int = 0
    ) -> NDArray[Any]:
        """When each tile is played. starts: of parts.  repeats: heads that are worked on in each tile.  head: of each
        part, tiles that come before its first one.
        """
        first = (starts + head)[self.part] + (self.walked + 1) * repeats
        kind = _kind(first.max(initial=0))
        times: NDArray[Any] = np.repeat(first.astype(kind), self.tiles)
        times -= self.number.astype(kind) * kind(repeats)
        return times

    def ranks(self, times: NDArray[Any]) -> NDArray[np.int32]:
        """Of each addition among those to its sum, the last one flagged."""
        ranks = number_in_run(self.additions)
        ranks[np.cumsum(self.additions[self.additions > 0]) - 1] |= LAST_ADDITION
        found = np.empty(len(times), np.int32)
        found[np.lexsort((times, self.query))] = ranks
        return found

    def is_head_by_head(self, starts: NDArray[np.int64], workers: Workers, section: int) -> bool:
        """Do parts go so, that what they add to stays in the L2 cache? section: heads of keys side by side."""
        repeats = workers.repeats
        if not isinstance(workers, OrderedWorkers) or not workers.kept or repeats == 1:
            return False
        if not 1 < len(self.query) * repeats <= MOST_RANKS:
            return False
        if np.count_nonzero(self.additions) * repeats * section < 2 * workers.kept:  # whatever the walk
            return False
        asked = np.flatnonzero(self.query % ASKED == 0)
        apart, innermost = (self._far(asked, self.times(starts, every), workers) for every in (1, repeats))
        return innermost - apart > FAR_SHARE

    def _far(self, asked: NDArray[np.intp], times: NDArray[Any], workers: OrderedWorkers) -> float:
        """The share of additions before which so many others come, since the one before to their sum, that the L2 cache
        does not hold it any more. asked: the tiles that are looked at.
        """
        query, times = self.query[asked], times[asked]
        order = np.lexsort((times, query))
        gaps = np.diff(times[order])  # of 16 bits: means nothing from sum to sum
        return float(np.mean((gaps > workers.kept // workers.sm_count) & (np.diff(query[order]) == 0)))


def _kind(most: int) -> type[Any]:
    """Of numbers from 0 to `most`. NumPy sorts 16 bits several times as fast, by radix."""
    return np.uint16 if most < 2**16 else np.int64


def _walk(lists: BlockLists, part: NDArray[np.intp], q_blocks: int) -> Walk:
    """The walk, and in each entry where its own ranks begin. part: of each entry.  q_blocks: of a mask."""
    entries, parts = lists.array("entries"), lists.array("parts")
    tiles = -(-(entries[:, 0] >> 8) // np.int32(lists.br))
    before = np.cumsum(tiles) - tiles
    entries[:, 3] = before
    first = np.full(len(parts), before.max(initial=0) + 1)
    np.minimum.at(first, part, before)  # tiles before each part
    query = parts[part, 1] * np.int64(q_blocks) + entries[:, 2] // np.int32(lists.br)
    sums = lists.mask_batch * q_blocks
    begin, end = (np.bincount(one, minlength=sums + 1) for one in (query, query + tiles))
    number = number_in_run(tiles).astype(_kind(q_blocks))
    of_tiles = np.repeat(query.astype(_kind(sums)), tiles) + number
    walked = before - first[part] + tiles - 1
    return Walk(part, tiles, walked, number, of_tiles, np.cumsum(begin - end)[:sums])
