"""schedule/ordered_lists.py: the ranks of additions to sums of dQ, and that nobody waits for ever."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import ordered_play
import pytest

import omnicupy as oc
from omnicupy.jit.source import kernels_dir
from omnicupy.schedule import ordered_lists as module
from omnicupy.schedule import ranks, sections
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.ordered_lists import ordered_lists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ranks import LAST_ADDITION, MOST_RANKS, OrderedWorkers
from omnicupy.schedule.ranks import Walk as Walked

BR, BC = ordered_play.BR, ordered_play.BC


def _tiles(lists: BlockLists) -> list[list[int]]:
    """The tiles of each part of lists without ranks."""
    entries = lists.array("entries").tolist()
    found = []
    for _, _, entry, tiles in lists.array("parts").tolist():
        walk: list[int] = []
        while len(walk) < tiles:
            flags, _, query, _ = entries[entry]
            walk += range(query // BR, query // BR + -(-(flags >> 8) // BR))
            entry += 1
        found.append(walk)
    return found


@pytest.mark.parametrize("seed", range(25))
def test_each_sum_has_each_rank_once_and_nobody_waits_for_ever(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    heads, sm_count = int(rng.integers(1, 9)), int(rng.choice([1, 2, 5, 16, 40]))
    split_slots, repeats, side_by_side = (int(rng.integers(1, top)) for top in (20, 4, 9))
    blocks = [mask.key_blocks(BR, BC) for mask in ordered_play.some_masks(seed)]
    of_head = repeats * sum(one.q_blocks for one in blocks)  # sums
    turn_heads = int(rng.integers(1, heads + 1))
    workers = OrderedWorkers(
        *(heads, sm_count, split_slots, repeats),
        side_by_side=side_by_side,
        ordered_sums=True,
        places=turn_heads * of_head + int(rng.integers(of_head)),
    )
    lists = ordered_lists(blocks, workers)
    assert lists.turn_heads == turn_heads
    assert all(sorted(of) == list(range(len(of))) for of in ordered_play.ranks_of_sums(lists).values())
    total = sum(len(walk) for walk in ordered_play.walks_of(lists)) * heads * repeats
    assert [ordered_play.play(lists, workers, again) for again in range(3)] == [total] * 3


@pytest.mark.parametrize(("places", "turn_heads"), [(0, 6), (23, 6), (24, 1), (71, 2), (143, 5), (144, 6)])
def test_heads_take_turns_where_there_are_more_sums_than_places(places: int, turn_heads: int) -> None:
    """24 sums a head of keys: of two query heads, under two masks. Fewer places than those are none."""
    blocks = [mask.key_blocks(BR, BC) for mask in (oc.causal(384), oc.full(384))]
    workers = OrderedWorkers(6, 4, 0, 2, side_by_side=6, ordered_sums=True, places=places)
    lists = ordered_lists(blocks, workers)
    assert lists.turn_heads == lists.struct_fields["turn_heads"] == turn_heads
    assert lists.section <= turn_heads


def test_the_last_addition_to_each_sum_is_flagged() -> None:
    blocks = [oc.causal(1500).key_blocks(BR, BC)]
    lists = ordered_lists(blocks, OrderedWorkers(2, 7, side_by_side=1, ordered_sums=True, places=1))
    flagged = lists.array("ranks")[lists.array("ranks") >= LAST_ADDITION] & ~LAST_ADDITION
    assert sorted(flagged.tolist()) == sorted(
        len(of) - 1 for of in ordered_play.ranks_of_sums(lists).values()
    )


@pytest.mark.parametrize("repeats", [2, 4])
def test_a_window_of_grouped_heads_goes_head_by_head_where_else_sums_would_leave_the_cache(
    repeats: int,
) -> None:
    blocks = [oc.sliding_window(12000, 12000, left=1500).key_blocks(BR, BC)]
    workers = OrderedWorkers(3, 32, 0, repeats, side_by_side=1, ordered_sums=True)
    plain = ordered_lists(blocks, workers)
    assert plain.head_ranks == 0
    # Neighbouring blocks of keys are two tiles apart.
    lists = ordered_lists(blocks, replace(workers, kept=3 * 32))
    assert lists.head_ranks == plain.array("ranks").size
    assert lists.array("ranks").size == repeats * lists.head_ranks
    for name in ("entries", "parts", "spans"):
        assert np.array_equal(lists.array(name), plain.array(name))
    total = 3 * lists.array("ranks").size
    assert [ordered_play.play(lists, workers, seed) for seed in range(5)] == [total] * 5
    assert ordered_lists(blocks, replace(workers, kept=1000)).head_ranks == 0  # all stays there


def test_items_that_are_taken_early_may_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the kernel takes the next one when all additions of the one at hand have their turn (key_producer.cuh)."""
    monkeypatch.setattr(sections, "SIDE_BY_SIDE", 1)
    stuck = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        tiles = rng.random((int(rng.integers(6, 14)), int(rng.integers(3, 9)))) < 0.5
        mask = oc.from_dense(np.kron(tiles, np.ones((BR, BC), bool)))
        workers = Workers(2, 3, side_by_side=1, ordered_sums=True)
        lists = ordered_lists([mask.key_blocks(BR, BC)], workers)
        assert ordered_play.play(lists, workers, seed) == 2 * tiles.sum()
        stuck += ordered_play.play(lists, workers, seed, ahead=4) < 2 * tiles.sum()
    assert stuck


def test_parts_hold_the_tiles_of_lists_without_ranks_the_last_ones_first() -> None:
    blocks = [oc.causal(4000, 4000).key_blocks(BR, BC)]
    workers = Workers(2, 132, 40, 2, side_by_side=2, ordered_sums=True)
    lists = ordered_lists(blocks, workers)
    plain = key_lists(blocks, workers)
    assert lists.array("parts")[:, :2].tolist() == plain.array("parts")[:, :2].tolist()
    assert [[tile for tile, _ in walk] for walk in ordered_play.walks_of(lists)] == [
        walk[::-1] for walk in _tiles(plain)
    ]


def test_few_rows_that_are_far_longer_than_others_are_cut() -> None:
    """One block of keys that all queries see, which 8 heads would work on until long after all else has ended."""
    mask = oc.sliding_window(16384, 16384, left=256) | oc.sink(16384, 100, 16384)
    workers = Workers(8, 132, 64, 4, side_by_side=1, ordered_sums=True)
    lists = ordered_lists([mask.key_blocks(BR, BC)], workers)
    tiles = lists.array("parts")[:, 3]
    assert tiles.max() <= 64
    assert (
        tiles.sum()
        == ordered_lists([mask.key_blocks(BR, BC)], Workers(1, 1, 0, 1, side_by_side=1, ordered_sums=True))
        .array("ranks")
        .size
    )


def test_long_parts_of_all_heads_are_side_by_side() -> None:
    blocks = [oc.causal(2048, 2048).key_blocks(BR, BC)]
    lists = ordered_lists(blocks, Workers(8, 132, 0, 1, side_by_side=1, ordered_sums=True))
    assert lists.section == 8
    assert set(lists.tiers) == {lists.n_parts}


@pytest.mark.parametrize("masks", [1, 2])
def test_masks_that_hide_all_have_parts_and_no_tiles(masks: int) -> None:
    """Gradients of zero have to be written all the same."""
    hidden = oc.from_dense(np.zeros((300, 200), bool))
    lists = ordered_lists(
        [hidden.key_blocks(64, 128)] * masks, Workers(132, 4, 2, side_by_side=4, ordered_sums=True)
    )
    assert len(lists.array("parts")) == masks * 2
    assert not lists.array("parts")[:, 3].any()
    assert len(lists.array("ranks")) == 1


@pytest.mark.parametrize("head_by_head", [False, True])
def test_ranks_are_the_same_whatever_numbers_they_are_made_with(
    head_by_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tiles are sorted by numbers of 16 bits, many by ones of 64."""
    mask = oc.random(3000, 5, documents=3)
    workers = OrderedWorkers(4, 7, 64, repeats=3, ordered_sums=True, side_by_side=2, kept=1)
    monkeypatch.setattr(Walked, "is_head_by_head", lambda *_: head_by_head)
    short = ordered_lists([mask.key_blocks(BR, BC)], workers)
    monkeypatch.setattr(ranks, "_kind", lambda _: np.int64)
    long = ordered_lists([mask.key_blocks(BR, BC)], workers)
    assert bool(short.head_ranks) == head_by_head
    assert short.buffer.tobytes() == long.buffer.tobytes()


def test_kernels_have_the_same_constants() -> None:
    """A place counts the sums that had it in the bits above those that ranks need."""
    folder = kernels_dir() / "omni" / "sm90" / "backward"
    last = re.search(r"constexpr int kLastAddition = 1 << (\d+);", (folder / "finish.cuh").read_text())
    shift = re.search(r"constexpr int kGenerationShift = (\d+);", (folder / "place_turns.cuh").read_text())
    assert last
    assert shift
    assert 1 << int(last[1]) == LAST_ADDITION
    assert 1 << int(shift[1]) == MOST_RANKS
    assert 1 << 32 - int(shift[1]) >= module.MOST_SHARERS
