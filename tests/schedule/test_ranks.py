"""schedule/ranks.py: ranks are the order of the times at which tiles are played, counted tile by tile."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np
import pytest
from mask_cases import random_case

import omnicupy as oc
from omnicupy.schedule import ordered_lists as module
from omnicupy.schedule import ranks as ranks_module
from omnicupy.schedule.ordered_lists import OrderedLists, ordered_lists
from omnicupy.schedule.ranks import LAST_ADDITION, OrderedWorkers, Walk

BR, BC = 64, 128


def _starts(lists: OrderedLists, workers: OrderedWorkers) -> list[int]:
    """When each part begins: side by side the heads of a section, and of few parts several sections in turn."""
    parts, heads = lists.array("parts")[:, 3].tolist(), workers.heads
    section, least = lists.section, module.OVERLAPPING * workers.sm_count
    overlap = section * len(parts) < least and -(-heads // section) > 1
    turns = min(-(-heads // section), module.PLAYED_SECTIONS) if overlap else 1
    copies, free = (section, workers.sm_count) if overlap else (1, max(1, workers.sm_count // section))
    found, begin, first = [0] * len(parts), 0, 0
    for end in lists.tiers:
        clock = [(begin, i) for i in range(free)]
        for _ in range(turns):
            for part in range(first, end):
                for _ in range(copies):
                    now, worker = heappop(clock)
                    found[part] = now
                    heappush(clock, (now + parts[part] * workers.repeats + module.PLAYED_ITEM, worker))
        begin, first = max(now for now, _ in clock), end
    return found


def _expected(lists: OrderedLists, workers: OrderedWorkers, q_blocks: int) -> list[Any]:
    """The ranks, from the time of each tile."""
    entries, starts = lists.array("entries").tolist(), _starts(lists, workers)
    apart = lists.head_ranks
    every = 1 if apart else workers.repeats
    ranks = np.full(len(lists.array("ranks")), -1)
    for head in range(workers.repeats if apart else 1):
        played: dict[int, list[tuple[int, int]]] = {}
        for (_, mask, entry, tiles), start in zip(lists.array("parts").tolist(), starts, strict=True):
            time, left = start + head * tiles * bool(apart), tiles
            while left:
                flags, _, query, first = entries[entry]
                count = -(-(flags >> 8) // BR)
                for i in reversed(range(count)):
                    time += every
                    played.setdefault(mask * q_blocks + query // BR + i, []).append((time, first + i))
                entry, left = entry + 1, left - count
        for additions in played.values():
            for rank, (_, place) in enumerate(sorted(additions)):
                last = LAST_ADDITION if workers.places and rank == len(additions) - 1 else 0
                ranks[head * apart + place] = rank | last
    return ranks.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_ranks_are_the_order_of_times(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    head_by_head = seed % 3 == 0
    monkeypatch.setattr(Walk, "is_head_by_head", lambda *_: head_by_head)
    monkeypatch.setattr(ranks_module, "CHUNK", 50)
    first = (
        random_case(rng).mask if seed % 2 else oc.segments([[("text", 700), ("image", 900), ("text", 90)]])
    )
    masks = [first, *(random_case(rng, *first.shape).mask for _ in range(seed % 3))]
    heads, repeats = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    workers = OrderedWorkers(
        heads,
        int(rng.choice([2, 9, 60])),
        8,
        repeats,
        ordered_sums=True,
        side_by_side=int(rng.integers(1, heads + 1)),
        places=10**6 * (seed % 2),
    )
    lists = ordered_lists([mask.key_blocks(BR, BC) for mask in masks], workers)
    if lists.array("parts")[:, 3].any():
        assert lists.array("ranks").tolist() == _expected(lists, workers, -(-first.shape[0] // BR))


@pytest.mark.parametrize("sums", [5, 2**31])
def test_additions_are_sorted_in_the_fewest_bits(sums: int) -> None:
    first, counts = np.array([3, 0, 2, 1, 4]), np.array([2, 3, 1, 0, 1])
    found, bits = ranks_module._by_sum(first, counts, sums)
    assert found.dtype == (np.uint32 if sums == 5 else np.uint64)
    added = [i for a, n in zip(first.tolist(), counts.tolist(), strict=True) for i in range(a, a + n)]
    expected = sorted((i, place) for place, i in enumerate(added))
    both = found.astype(np.int64)
    assert list(zip((both >> bits).tolist(), (both & (1 << bits) - 1).tolist(), strict=True)) == expected
