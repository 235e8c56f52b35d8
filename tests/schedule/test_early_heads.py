"""schedule/ordered_lists.py: heads that come before the tiers of others, and that nobody waits for ever there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ordered_play
import pytest

import omnicupy as oc
from omnicupy.schedule.ordered_lists import ordered_lists
from omnicupy.schedule.ranks import OrderedWorkers

BR, BC = ordered_play.BR, ordered_play.BC


@pytest.mark.parametrize("seed", range(25))
def test_nobody_waits_for_ever_where_heads_come_before_the_tiers_of_others(seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    heads, sm_count = int(rng.integers(17, 90)), int(rng.choice([1, 2, 5, 16, 40]))
    blocks = [mask.key_blocks(BR, BC) for mask in ordered_play.some_masks(seed)]
    workers = OrderedWorkers(
        *(heads, sm_count, 0, int(rng.integers(1, 3))),
        side_by_side=int(rng.integers(1, 9)),
        ordered_sums=True,
        places=1 << 30,
        background=True,
    )
    lists = ordered_lists(blocks, workers)
    assert lists.struct_fields["early_heads"] == lists.early_heads
    plain = ordered_lists(blocks, replace(workers, background=False))
    assert (plain.early_heads, plain.n_parts, plain.section) == (0, lists.n_parts, lists.section)
    assert lists.early_heads > 0
    walks = ordered_play.walks_of(lists)
    for part in range(lists.n_parts):
        tiles = [
            [tile for tile, _ in walk]
            for walk in (walks[part], walks[lists.n_parts + part], ordered_play.walks_of(plain)[part])
        ]
        assert tiles[0] == tiles[1] == tiles[2]
    total = sum(len(walk) for walk in walks[: lists.n_parts]) * heads * workers.repeats
    assert [ordered_play.play(lists, workers, again) for again in range(3)] == [total] * 3


def test_most_heads_come_before_the_tiers_of_the_last_ones() -> None:
    """128 heads of causal 2,048: the last 48 take three times as long as the longest part."""
    blocks = [oc.causal(2048).key_blocks(BR, BC)]
    workers = OrderedWorkers(
        128, 132, 0, 1, side_by_side=12, ordered_sums=True, places=1 << 20, background=True
    )
    lists = ordered_lists(blocks, workers)
    assert (lists.early_heads, lists.section, lists.n_parts) == (80, 8, 16)
    assert lists.tiers == (8, 13, 15, 16)
    for less in ({"background": False}, {"heads": 40}):
        assert ordered_lists(blocks, replace(workers, **less)).early_heads == 0
    full = ordered_lists([oc.full(2048).key_blocks(BR, BC)], workers)  # parts alike have one tier
    assert full.early_heads == 0
