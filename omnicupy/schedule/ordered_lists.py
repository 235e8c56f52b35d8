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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import BlockMask
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import LONG_SHARE, Workers, number_in_run

MOST_RANKS = 2**22  # of a mask, a tile each: 16 MiB; longer masks are worked on by kernels that need none
PLAYED_ITEM = 2.0  # what a part takes beside its tiles, in tiles
# Below so many parts a worker, sections of heads run into each other: the ranks are those of the fourth section then.
OVERLAPPING, PLAYED_SECTIONS = 1.75, 4


def ordered_lists(blocks: Sequence[BlockMask], workers: Workers) -> BlockLists:
    """As key_lists, but the tiles of a part are walked from the last query to the first, the entries stand in that
    order, and an entry's fourth word is the place in `ranks` of its first tile, that of its least query.

    ranks: (tiles,) int32, a meaningless one where there are no tiles. `section` is the number of heads that the ranks
    want side by side.
    workers: `side_by_side` says how many heads may be.
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
    sections = min(-(-heads // section), PLAYED_SECTIONS)
    if section * len(parts) < OVERLAPPING * workers.sm_count and sections > 1:
        starts = _starts(
            np.repeat(costs, section), [section * end for end in tiers], workers.sm_count, sections
        )
        starts = starts[section - 1 :: section]
    else:
        starts = _starts(costs, tiers, max(1, workers.sm_count // section))
    _fill_ranks(lists, _turned(lists), starts, workers.repeats)
    return replace(lists, tiers=tiers, section=section)


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
    costs: NDArray[np.float64], tiers: Sequence[int], workers: int, sections: int = 1
) -> NDArray[np.float64]:
    """When each part begins: so many workers take the parts in their order, a tier after the other.

    sections: how often a tier is taken; the last time counts, when workers become free one by one.
    """
    starts = np.zeros(len(costs))
    begin, first = 0.0, 0
    for end in tiers:
        free = [begin] * workers
        for _ in range(sections):
            for part, cost in enumerate(costs[first:end].tolist(), first):
                starts[part] = free[0]
                heapq.heapreplace(free, free[0] + cost)
        begin, first = max(free), end
    return starts


def _fill_ranks(lists: BlockLists, part: NDArray[np.intp], starts: NDArray[np.float64], repeats: int) -> None:
    """The ranks, and in each entry where its own begin. part: of each entry.  repeats: a tile is worked on so often."""
    entries = lists.array("entries")
    tiles = -(-(entries[:, 0] >> 8) // np.int32(lists.br))
    before = np.cumsum(tiles) - tiles
    entries[:, 3] = before
    own = np.repeat(np.arange(len(entries)), tiles)  # the entry of each tile
    number = number_in_run(tiles)
    first = np.full(len(lists.array("parts")), len(number))
    np.minimum.at(first, part, before)  # tiles before each part
    walked = before[own] - first[part[own]] + tiles[own] - 1 - number
    time = starts[part[own]] + repeats * (walked + 1.0)
    mask = lists.array("parts")[part, 1]
    query = mask[own] * np.int64(2**32) + entries[own, 2] // lists.br + number
    order = np.lexsort((time, query))
    same = np.flatnonzero(np.diff(query[order], prepend=-1))
    lists.array("ranks")[order] = number_in_run(np.diff(same, append=len(order)))
