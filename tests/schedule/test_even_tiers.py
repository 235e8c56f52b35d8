"""schedule/even_tiers.py: tiers by which launches of a few long parts a head end evenly."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import ordered_play
import pytest

import omnicupy as oc
from omnicupy.schedule.even_tiers import MOST, even_tiers
from omnicupy.schedule.ordered_lists import ordered_lists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ranks import OrderedWorkers

SMS = 132
# Blocks of keys of three documents, in tiles of four heads: the longest take 0.41 of the time of eight heads of keys.
TILES = [np.arange(2, 72, 2), np.arange(2, 72, 2), np.arange(2, 34, 2)]
LONG = np.sort(4 * np.concatenate(TILES))[::-1].astype(np.int64)


def _end(costs: np.ndarray, tiers: Sequence[int], section: int, heads: int) -> float:
    """Of a launch whose multiprocessors take parts tier by tier, each section by section; over even work."""
    free, first = [0] * SMS, 0
    for stop in tiers:
        for begin in range(0, heads, section):
            for cost in costs[first:stop].repeat(min(section, heads - begin)).tolist():
                heapq.heapreplace(free, free[0] + cost)
        first = stop
    return max(free) * SMS / (float(costs.sum()) * heads)


@pytest.mark.parametrize(("heads", "section"), [(8, 1), (9, 2), (12, 1)])
def test_the_launch_ends_evenly_where_it_ended_late(heads: int, section: int) -> None:
    parts = len(LONG)
    tiers = (parts - 10, parts - 4, parts, parts)
    found = even_tiers(LONG, tiers, section, Workers(heads, SMS))
    assert found[-1] == parts
    assert list(found) == sorted(found)
    assert len(found) == len(tiers)
    assert _end(LONG, found, section, heads) < MOST < _end(LONG, tiers, section, heads)


def test_tiers_stay_where_they_serve_or_others_do_not() -> None:
    short = np.sort(np.arange(2, 64, dtype=np.int64).repeat(4))[::-1]
    tiers = (120, 200, 240, 248)
    assert even_tiers(short, tiers, 1, Workers(8, SMS)) == tiers
    alike = np.full(20, 300, np.int64)  # too few long parts for any order
    assert even_tiers(alike, (20,) * 4, 1, Workers(8, SMS)) == (20,) * 4
    late = (len(LONG),) * 4
    assert [even_tiers(LONG, late, section, Workers(8, SMS)) == late for section in (8, 2, 1)] == [
        True,
        True,
        False,
    ]


def test_lists_have_them_and_nobody_waits_for_ever() -> None:
    ends = [0, 5600, 7700, 8192]
    mask = oc.presets.packed(np.diff(ends).tolist())
    workers = OrderedWorkers(8, 24, 0, 2, side_by_side=1, ordered_sums=True, places=1 << 20)
    lists = ordered_lists([mask.key_blocks(ordered_play.BR, ordered_play.BC)], workers)
    assert len(set(lists.tiers)) > 1
    costs = lists.array("parts")[:, 3] * 2
    assert costs[0] > costs[lists.tiers[0]]
    total = sum(len(walk) for walk in ordered_play.walks_of(lists)) * 8 * 2
    assert [ordered_play.play(lists, workers, again) for again in range(3)] == [total] * 3
