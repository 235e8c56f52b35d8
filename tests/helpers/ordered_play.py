"""Lists with ranks of additions (schedule/ordered_lists.py): walked, and played by thread blocks of random speed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from heapq import heappop, heappush

import numpy as np

import omnicupy as oc
from omnicupy.masks.mask import Mask
from omnicupy.schedule.order import LAST
from omnicupy.schedule.ordered_lists import OrderedLists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ranks import LAST_ADDITION

BR, BC = 64, 128
Walk = list[tuple[int, int]]  # of a part: tile of queries and rank, in the order in which they are walked


def walks_of(lists: OrderedLists, head: int = 0) -> list[Walk]:
    """As the producer of the kernel walks them: entry after entry, of each the tiles from the last to the first.

    head: of a group.
    """
    entries, ranks = lists.array("entries").tolist(), (lists.array("ranks") & ~LAST_ADDITION).tolist()
    found = []
    for _, _, entry, tiles in lists.array("parts").tolist():
        walk: Walk = []
        while tiles:
            flags, _, query, first_rank = entries[entry]
            count = -(-(flags >> 8) // BR)
            first_rank += head * lists.head_ranks
            walk += [(query // BR + i, ranks[first_rank + i]) for i in reversed(range(count))]
            entry += 1
            if flags & LAST:
                break
        assert len(walk) == tiles
        found.append(walk)
    return found


def ranks_of_sums(lists: OrderedLists) -> dict[tuple[int, int], list[int]]:
    """Of each mask and tile of queries, those of all additions."""
    ranks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for mask, walk in zip(lists.array("parts")[:, 1].tolist(), walks_of(lists), strict=True):
        for tile, rank in walk:
            ranks[mask, tile].append(rank)
    return ranks


def _items(lists: OrderedLists, workers: Workers) -> list[tuple[int, int]]:
    """Part and head of each item, in the order in which they are handed out."""
    if lists.early_heads:
        return _items_with_early_heads(lists, workers)
    items = []
    for turn in range(0, workers.heads, lists.turn_heads):
        begin, stop = 0, min(workers.heads, turn + lists.turn_heads)
        for end in lists.tiers:
            for first in range(turn, stop, lists.section):
                heads = range(first, min(stop, first + lists.section))
                items += [(part, head) for part in range(begin, end) for head in heads]
            begin = end
    return items


def _items_with_early_heads(lists: OrderedLists, workers: Workers) -> list[tuple[int, int]]:
    """The heads before the others section by section, each with all parts of the first half; the others' tier by tier,
    of the second half.
    """
    early, half = lists.early_heads, lists.n_parts
    assert 0 < early <= workers.heads
    assert early % lists.section == 0
    assert len(lists.array("parts")) == 2 * half
    assert lists.turn_heads == workers.heads
    items = [
        (part, first + i)
        for first in range(0, early, lists.section)
        for part in range(half)
        for i in range(lists.section)
    ]
    for begin, end in zip((0, *lists.tiers), lists.tiers, strict=False):
        for first in range(early, workers.heads, lists.section):
            heads = range(first, min(workers.heads, first + lists.section))
            items += [(half + part, head) for part in range(begin, end) for head in heads]
    return items


def play(lists: OrderedLists, workers: Workers, seed: int, ahead: int = 0) -> int:
    """Additions that are made by thread blocks that take random times; fewer than all if they wait for each other.

    ahead: additions of an item that are still to come when its thread block takes the next one.
    """
    rng = random.Random(seed)
    of_heads = [walks_of(lists, head) for head in range(workers.repeats)]
    walks, masks = of_heads[0], lists.array("parts")[:, 1].tolist()
    half = list(zip(masks, walks, strict=True))[: lists.n_parts]
    additions = Counter((mask, tile) for mask, walk in half for tile, _ in walk)
    waiting: dict[tuple[int, ...], int] = {}
    added: dict[tuple[int, ...], int] = defaultdict(int)
    clock: list[tuple[float, int]] = []
    at: dict[int, tuple[int, int, int]] = {}  # of each thread block: part, head, additions so far
    made, taken = 0, iter([item for item in _items(lists, workers) if walks[item[0]]])
    behind: dict[int, tuple[int, int]] = {}  # the item that a thread block has taken beside the one at hand

    def take(block: int, now: float) -> None:
        item = behind.pop(block, None) or next(taken, None)
        if item is not None:
            at[block] = (*item, 0)
            heappush(clock, (now + rng.expovariate(1.0), block))

    def turn(block: int) -> tuple[tuple[int, ...], int]:
        part, head, done = at[block]
        step, repeat = divmod(done, workers.repeats)
        if lists.head_ranks:
            repeat, step = divmod(done, len(walks[part]))
        tile, rank = of_heads[repeat][part][step]
        turn, place = divmod(head, lists.turn_heads)  # a sum has its place behind those of the turns before
        return (masks[part], place, repeat, tile), turn * additions[masks[part], tile] + rank

    for block in range(workers.sm_count):
        take(block, 0.0)
    while clock:
        now, block = heappop(clock)
        which, rank = turn(block)
        if added[which] != rank:
            waiting[(*which, rank)] = block
            continue
        added[which] += 1
        made += 1
        other = waiting.pop((*which, added[which]), None)
        if other is not None:
            heappush(clock, (now, other))
        part, head, done = at[block]
        left = len(walks[part]) * workers.repeats - done - 1
        if 0 < left <= ahead and block not in behind and (item := next(taken, None)) is not None:
            behind[block] = item
        if not left:
            take(block, now)
        else:
            at[block] = (part, head, done + 1)
            heappush(clock, (now + rng.expovariate(1.0), block))
    return made


def some_masks(seed: int) -> list[Mask]:
    rng = np.random.default_rng(seed)
    kind = seed % 5
    if kind == 0:
        return [oc.causal(1500, 1700)]
    if kind == 1:
        tiles = rng.random((12, 9)) < 0.4
        return [oc.from_dense(np.kron(tiles, np.ones((BR, BC), bool))[:740, :1100]) for _ in range(2)]
    if kind == 2:
        return [
            oc.segments([[("text", 300), ("image", 500), ("noise", 700), ("text", 200)], [("image", 900)]])
        ]
    if kind == 3:
        return [oc.sliding_window(3000, 3000, left=300) | oc.sink(3000, 100, 3000)]
    return [oc.full(700, 900), oc.from_dense(np.zeros((700, 900), bool))][:: (-1) ** seed]
