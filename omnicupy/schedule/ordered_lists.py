"""Lists by blocks of keys for the kernel that adds to each sum of dQ in one order: the rank of each addition.

Blocks of keys that see the same queries add to the same sums. Floats added in another order give other bits, so each
addition has a *rank*, and waits until as many have come before it. So that they hardly ever wait, ranks are those of a
schedule that is played ahead: multiprocessors take the parts in their order, and each tile takes as long as any other.

Every wait ends if all thread blocks of the launch run at the same time. A part is handed out when one before it has
ended, in the play as on the device, so among all additions that are still to come the one that was played first finds
its part handed out and all additions before it done. The play may be slower than the device in one way: it ends a
section of heads, and a tier of parts, before it begins the next, so that the ranks of one head are those of all.

Where dQ is made in the background, most heads come before the tiers of the last ones, section by section: their sums
have had all additions soon, and are read while they lie in the L2 cache. Either kind of head has ranks of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.intervals import IntArray
from omnicupy.masks.transpose import KeyBlocks
from omnicupy.schedule.block_lists import BlockLists, places
from omnicupy.schedule.even_tiers import even_tiers
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.parts import LONG_SHARE, Workers
from omnicupy.schedule.ranks import OrderedWorkers, walk_of
from omnicupy.schedule.sections import SIDE_BY_SIDE

MOST_SHARERS = 2**10  # of a place, one after the other: place_turns.cuh counts them beside ranks
PLAYED_ITEM = 2  # what a part takes beside its tiles, in tiles
# Where no tier has so many parts a worker, sections of heads run into each other: ranks are those of the fourth one.
OVERLAPPING, PLAYED_SECTIONS = 1.75, 4
# What the heads with tiers take where others come before all tiers, in longest parts: enough for even ends.
LATE_PARTS = 3


@dataclass(frozen=True)
class OrderedLists(BlockLists):
    """head_ranks: how far behind those of one query head of a group the ranks of the next one are; 0: the same ones.
    turn_heads: heads of keys whose sums of dQ have places at a time, which others' have behind them; all heads, where
    each sum has its own; 0 before it is known.
    early_heads: heads of keys that come before the tiers of the others, with the first half of all parts, and the
    others with the second half; 0: all have the same parts, and tiers.
    """

    head_ranks: int = 0
    turn_heads: int = 0
    early_heads: int = 0

    @property
    def n_parts(self) -> int:
        """As of BlockLists: each head works on one half of them, where some heads are early."""
        return self.tiers[-1]

    @property
    def struct_fields(self) -> dict[str, Any]:
        """As BlockLists."""
        return super().struct_fields | {
            name: getattr(self, name) for name in ("head_ranks", "turn_heads", "early_heads")
        }

    def with_ranks_of_heads(self, count: int) -> OrderedLists:
        """The same arrays with room for the ranks of so many heads, which are the last of them."""
        apart = self.shapes["ranks"][0]
        shapes = self.shapes | {"ranks": (count * apart,)}
        buffer, offsets = places(shapes)
        rest = offsets["ranks"]
        buffer[:rest] = self.buffer[:rest]
        return replace(self, buffer=buffer, offsets=offsets, shapes=shapes, head_ranks=apart)

    def with_halves(self, early_heads: int, ranks: Sequence[IntArray]) -> OrderedLists:
        """Lists whose entries, parts and ranks stand there twice: for the early heads, and for those with tiers. ranks:
        of either.
        """
        twice = ("entries", "parts", "splits", "ranks")
        shapes = self.shapes | {name: (2 * self.shapes[name][0], *self.shapes[name][1:]) for name in twice}
        lists = replace(self, shapes=shapes, early_heads=early_heads)
        buffer, offsets = places(shapes)
        lists = replace(lists, buffer=buffer, offsets=offsets)
        for name in shapes:
            one = self.array(name)
            lists.array(name)[...] = np.concatenate([one, one]) if name in twice else one
        n_entries, n_ranks = self.shapes["entries"][0], self.shapes["ranks"][0]
        lists.array("entries")[n_entries:, 3] += n_ranks
        lists.array("parts")[self.n_parts :, 2] += n_entries
        np.concatenate(ranks, out=lists.array("ranks"))
        return lists


def ordered_lists(blocks: Sequence[KeyBlocks], workers: Workers) -> OrderedLists:
    """As key_lists, but the tiles of a part are walked from the last query to the first, the entries stand in that
    order, and an entry's fourth word is the place in `ranks` of its first tile, that of its least query.

    ranks: (tiles,) int32, a meaningless one where there are no tiles, for all query heads of a group alike, which
    follow each other in a tile. Where their sums would leave the L2 cache meanwhile, a part goes head by head, and
    there are ranks for each, `head_ranks` further on than those of the head before; else that is 0.
    workers: of a kernel that makes all gradients. With `places` the last rank of each sum has LAST_ADDITION. Where
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
    if heads <= 2 * SIDE_BY_SIDE and costs.max() > LONG_SHARE * whole:  # such parts must not begin late
        section, tiers = heads, (len(parts),) * len(lists.tiers)
    else:
        section, tiers = lists.section, lists.tiers
    turn_heads = _turn_heads(blocks, workers)
    section = min(section, turn_heads)
    lists = OrderedLists(**vars(lists) | {"tiers": tiers, "section": section, "turn_heads": turn_heads})
    early = early_heads(lists, costs, workers) if workers.background else 0
    if not early and turn_heads == heads:
        tiers = even_tiers(costs, tiers, section, workers)
        lists = replace(lists, tiers=tiers)
    starts = _starts_of_heads(costs, tiers, section, heads, workers)
    walk = walk_of(lists, blocks[0].q_blocks)
    by_sum = walk.ranks_by_sum(workers.places > 0)
    if walk.is_head_by_head(starts, workers, section):
        lists = lists.with_ranks_of_heads(workers.repeats)
        of_head = lists.array("parts")[:, 3].astype(np.int64)  # tiles of the part
        for head, ranks in enumerate(lists.array("ranks").reshape(workers.repeats, -1)):
            ranks[...] = walk.ranks(walk.times(starts, 1, head * of_head), by_sum)
    elif early:
        late = _starts_of_heads(costs, tiers, section, heads - early, workers)
        starts = _starts_of_heads(costs, (len(parts),), section, early, workers)
        halves = [walk.ranks(walk.times(of, workers.repeats), by_sum) for of in (starts, late)]
        lists = lists.with_halves(early, halves)
    elif len(walk.query):
        lists.array("ranks")[...] = walk.ranks(walk.times(starts, workers.repeats), by_sum)
    return lists


def early_heads(lists: OrderedLists, costs: NDArray[np.int64], workers: Workers) -> int:
    """How many heads of keys come before the tiers of the others: whole sections. costs: of parts, in tiles."""
    if lists.n_split_rows or lists.tiers[0] == lists.n_parts:  # one tier
        return 0
    if not len(lists.array("entries")):
        return 0
    late = LATE_PARTS * int(costs.max()) * workers.sm_count / int(costs.sum())
    return max(0, int(workers.heads - late) // lists.section * lists.section)


def _starts_of_heads(
    costs: NDArray[np.int64], tiers: Sequence[int], section: int, heads: int, workers: Workers
) -> NDArray[np.int64]:
    """When each part of a head begins, of so many, where `section` are worked on side by side."""
    sections = min(-(-heads // section), PLAYED_SECTIONS)
    longest_tier = max(end - first for first, end in pairwise((0, *tiers)))
    if section * longest_tier < OVERLAPPING * workers.sm_count and sections > 1:
        starts = _starts(
            np.repeat(costs, section), [section * end for end in tiers], workers.sm_count, sections
        )
        return starts[section - 1 :: section]
    return _starts(costs, tiers, max(1, workers.sm_count // section))


def _turn_heads(blocks: Sequence[KeyBlocks], workers: OrderedWorkers) -> int:
    """For how many heads of keys there are places of sums of dQ at a time."""
    of_head = workers.repeats * sum(block.q_blocks for block in blocks)  # sums, under all masks
    return min(workers.heads, workers.places // of_head or workers.heads)


def _tiles_of(block: KeyBlocks) -> int:
    return int(block.tiles.sum())


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
