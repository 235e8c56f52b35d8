"""schedule/ticket_lists.py: the lists of ordered_lists.py with numbers of additions in place of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import ordered_play
import pytest

import omnicupy as oc
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.ordered_lists import ordered_lists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ticket_lists import ticket_lists

BR, BC = ordered_play.BR, ordered_play.BC


@pytest.mark.parametrize("seed", range(12))
def test_each_addition_knows_how_many_its_sum_has(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [mask.key_blocks(BR, BC) for mask in ordered_play.some_masks(seed)]
    heads, sm_count, repeats = (int(rng.integers(1, most)) for most in (60, 40, 3))
    workers = Workers(heads, sm_count, 0, repeats, side_by_side=int(rng.integers(1, 9)))
    lists = ticket_lists(blocks, workers)
    walks = ordered_play.walks_of(replace(lists, head_ranks=0))
    masks = lists.array("parts")[:, 1].tolist()
    whole = list(zip(masks, walks, strict=True))
    for half in (whole[: lists.n_parts], whole[lists.n_parts :]):  # of early heads, and of others
        counts = Counter((mask, tile) for mask, walk in half for tile, _ in walk)
        assert all(number == counts[mask, tile] for mask, walk in half for tile, number in walk)
    tiles = sum(len(walk) for _, walk in whole[: lists.n_parts])
    assert lists.head_ranks == tiles
    assert (len(whole) > lists.n_parts) == (lists.early_heads > 0)
    plain = key_lists(blocks, workers)
    assert (lists.section, lists.tiers) == (plain.section, plain.tiers)


def test_early_heads_are_those_of_additions_in_one_order() -> None:
    blocks = [oc.causal(2048).key_blocks(BR, BC)]
    lists = ticket_lists(blocks, Workers(128, 132, side_by_side=12))
    assert (lists.early_heads, lists.section, lists.n_parts) == (80, 8, 16)
    assert lists.turn_heads == 128


def test_masks_without_a_pair_have_lists() -> None:
    blocks = [oc.ranges([], 100, 200).key_blocks(BR, BC)]
    workers = Workers(4, 132, side_by_side=4)
    lists = ticket_lists(blocks, workers)
    assert (lists.head_ranks, lists.early_heads) == (1, 0)
    assert lists.array("parts").tolist() == ordered_lists(blocks, workers).array("parts").tolist()
