"""What an order of additions costs: launches that are played."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, backward_waits
from omnicupy.choose.backward_waits import Play
from omnicupy.masks.mask import Mask
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.ordered_lists import OrderedLists, ordered_lists
from omnicupy.schedule.ranks import OrderedWorkers
from omnicupy.tools.workloads.workload import by_name

ORDERED = backward_table.pick("sm_90", "bfloat16", 128).part("ordered")


def _lists(
    mask: Mask, heads: tuple[int, int] = (4, 2), sm_count: int = 6, places: int | None = None
) -> tuple[OrderedLists, OrderedWorkers]:
    """places: of sums of dQ, None for one a sum."""
    problem = Problem(1, *heads, *mask.shape, 128, "bfloat16")
    workers = BackwardGrid(ORDERED, problem, 1, sm_count, 50 << 20).workers
    assert isinstance(workers, OrderedWorkers)
    if places is not None:
        workers = replace(workers, places=places)
    return ordered_lists([mask.key_blocks(ORDERED.br, ORDERED.bc)], workers), workers


MASKS = {
    "full": oc.full(1024),
    "causal": oc.causal(1500),
    "window": oc.sliding_window(1300, left=200),
    "mixed": oc.segments([("text", 300), ("image", 250), ("noise", 190), ("text", 500)]),
    "few keys": oc.full(2048, 100),
    "documents": oc.documents([300, 700, 90, 410]),
}


def test_nobody_waits_where_additions_come_in_order() -> None:
    items = [[(0, 0, 1.0), (1, 0, 1.0)], [(1, 1, 1.0), (0, 1, 1.0)]]
    for addition in (None, 0.1):
        assert Play(items, 2, 0.0, addition).end() == pytest.approx(2.0 if addition is None else 2.1)


def test_who_comes_early_goes_on_until_both_warpgroups_wait() -> None:
    """The second one's first two tiles wait for the first one's last; it holds them, and stops before its third."""
    first = [(place, 0, 1.0) for place in (5, 6, 7, 0, 1)]
    second = [(0, 1, 1.0), (1, 1, 1.0), (8, 0, 1.0)]
    assert Play([first, second], 2, 0.0, None).end() == pytest.approx(5.0)
    # Its first tile is taken at 4.5, and then its third one begins.
    assert Play([first, second], 2, 0.0, 0.5).end() == pytest.approx(5.5)
    assert Play([first, [*second, (9, 0, 1.0)]], 2, 0.0, 0.5).end() == pytest.approx(6.5)


def test_additions_to_one_sum_take_turns() -> None:
    items = [[(0, rank, 1.0)] for rank in range(4)]
    assert Play(items, 4, 0.0, 3.0).end() == pytest.approx(1 + 3 * 3.0)


def test_items_go_to_whoever_is_free_first_and_cost_a_time_of_their_own() -> None:
    items = [[(place, 0, float(cost))] for place, cost in enumerate((5, 1, 1, 4))]
    assert Play(items, 2, 0.5, None).end() == pytest.approx(1.5 + 1.5 + 4.5)
    assert Play([[], []], 2, 0.5, None).end() == 0.0


def test_what_can_never_end_is_said() -> None:
    with pytest.raises(AssertionError, match="1 additions wait for ever"):
        Play([[(0, 1, 1.0)]], 1, 0.0, 0.1).end()


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (7, 1)])
def test_every_wait_ends_and_no_order_is_faster_than_none(name: str, heads: tuple[int, int]) -> None:
    lists, workers = _lists(MASKS[name], heads)
    items = backward_waits.items_of(lists, workers.heads, workers.repeats)
    tiles = int(MASKS[name].blocks(ORDERED.br, ORDERED.bc).tiles.sum())
    assert sum(map(len, items)) == tiles * heads[0]
    free = Play(items, workers.sm_count, 2.0, None).end()
    ends = [Play(items, workers.sm_count, 2.0, addition).end() for addition in (0.0, 0.6, 5.0)]
    assert free <= ends[0] * (1 + 1e-9)
    assert max(map(sum, ([cost for _, _, cost in of] for of in items))) <= free
    assert ends[0] <= ends[1] <= ends[2]


@pytest.mark.parametrize("name", MASKS)
def test_sums_of_a_turn_have_the_places_of_those_before(name: str) -> None:
    """Their ranks count on, and every wait ends."""
    of_head = -(-MASKS[name].shape[0] // ORDERED.br)
    lists, workers = _lists(MASKS[name], (8, 8), places=2 * of_head)
    alone, _ = _lists(MASKS[name], (8, 8))
    assert (lists.turn_heads, alone.turn_heads) == (2, 8)
    items = backward_waits.items_of(lists, 8, 1)
    additions = sorted((place, rank) for item in items for place, rank, _ in item)
    assert len(additions) == len(set(additions)) == sum(map(len, backward_waits.items_of(alone, 8, 1)))
    assert len({place for place, _ in additions}) <= 2 * of_head
    of_place = [rank for place, rank in additions if place == additions[0][0]]
    assert of_place == list(range(len(of_place)))
    free = Play(items, workers.sm_count, 2.0, None).end()
    assert Play(items, workers.sm_count, 2.0, 0.6).end() >= free * (1 - 1e-9)


@pytest.mark.parametrize("name", MASKS)
def test_each_sum_has_every_rank_once(name: str) -> None:
    lists, workers = _lists(MASKS[name])
    ranks: dict[int, list[int]] = {}
    for item in backward_waits.items_of(lists, workers.heads, workers.repeats):
        for place, rank, _ in item:
            ranks.setdefault(place, []).append(rank)
    counts = np.bincount([len(of) for of in ranks.values()])
    assert all(sorted(of) == list(range(len(of))) for of in ranks.values())
    assert counts.sum() == len(ranks)


def test_items_of_a_turn_are_taken_before_those_of_the_next() -> None:
    plain = _lists(oc.causal(1500), (8, 8), 132)[0]
    lists = _lists(oc.causal(1500), (8, 8), 132, places=4 * 24)[0]
    taken = list(backward_waits.taken(lists, 8))
    assert len(taken) == len(set(taken)) == 8 * len(lists.array("parts"))
    assert [
        head // 3 for _, head in list(backward_waits.taken(replace(lists, turn_heads=3, section=2), 8))
    ] == [turn for turn, heads in enumerate((3, 3, 2)) for _ in range(heads * len(lists.array("parts")))]
    assert (lists.turn_heads, plain.turn_heads) == (4, 8)


def test_items_are_taken_section_by_section_in_each_tier() -> None:
    lists = _lists(oc.causal(1500), (8, 8), 132)[0]
    taken = list(backward_waits.taken(lists, 8))
    assert len(taken) == len(set(taken)) == 8 * len(lists.array("parts"))
    first = 0
    for end in lists.tiers:
        tier = [pair for pair in taken if first <= pair[0] < end]
        assert taken[8 * first : 8 * end] == tier
        sections = [head // lists.section for _, head in tier]
        assert sections == sorted(sections)
        first = end


def test_the_share_is_that_of_the_whole_and_of_few_heads_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lists, workers = _lists(MASKS["documents"], (16, 4), 132)
    items = backward_waits.items_of(lists, 4, 4)
    ends = [Play(items, 132, 2.0, addition).end() for addition in (None, backward_waits.ADDITION)]
    assert backward_waits.waited_share(lists, workers) == pytest.approx(ends[1] / ends[0] - 1)
    tiles = int(lists.array("parts")[:, 3].sum())
    played = []

    def noted(lists: BlockLists, heads: int, repeats: int) -> list[list[backward_waits.Step]]:
        played.append((heads, repeats))
        return []

    monkeypatch.setattr(backward_waits, "items_of", noted)
    monkeypatch.setattr(Play, "end", lambda self: 1.0)
    for most in (tiles * 4 * 4, tiles * 4 * 4 - 1, tiles * lists.section - 1):
        monkeypatch.setattr(backward_waits, "MOST_STEPS", most)
        assert backward_waits.waited_share(lists, workers) == 0.0
    assert lists.section == 4
    assert played == [(4, 4), (4, 1)]  # and nothing where not one section would be


def test_an_empty_mask_waits_for_nothing() -> None:
    lists, workers = _lists(~oc.full(256))
    assert backward_waits.waited_share(lists, workers) == 0.0


@pytest.mark.parametrize(
    "name",
    ["random-d128-s4096-seed42-h32-k8-b2", "sparse-d128-s16384-p250-seed0-h28-k4-b1", "W6b", "W9", "W11"],
)
def test_sections_that_run_into_each_other_wait_little(name: str) -> None:
    """Of an H100. With ranks of sections that each begin alone the first three waited for 0.30 to 0.44 of the time."""
    workload = by_name(name)
    mask = workload.mask()
    workers = BackwardGrid(ORDERED, workload.problem(mask, "bfloat16"), 1, 132, 50 << 20).workers
    lists = ordered_lists([mask.key_blocks(ORDERED.br, ORDERED.bc)], workers)
    assert backward_waits.waited_share(lists, workers) < 0.1


def test_an_item_is_taken_when_all_additions_of_the_last_one_have_had_their_turn() -> None:
    """The first one's addition waits until 5.5; the second one, free at 5.0, takes the third item."""
    items = [[(0, 1, 1.0)], [(0, 0, 5.0)], [(9, 0, 1.0)]]
    assert Play(items, 2, 0.0, None).end() == pytest.approx(5.0)
    assert Play(items, 2, 0.0, 0.5).end() == pytest.approx(6.0)


def test_what_was_played_is_not_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[BlockLists, object, int]] = []

    def share(lists: BlockLists, workers: object, warpgroups: int = 2) -> float:
        played.append((lists, workers, warpgroups))
        return float(len(played))

    monkeypatch.setattr(backward_waits, "waited_share", share)
    once = backward_waits.PlayedOnce()
    lists, workers = _lists(MASKS["mixed"])
    again, _ = _lists(MASKS["mixed"])
    assert once(lists, workers) == once(again, workers) == 1.0
    changed = replace(again, buffer=again.buffer.copy())
    changed.array("ranks")[0] += 1
    others = [
        (changed, workers, 2),
        (replace(lists, section=lists.section + 1), workers, 2),
        (lists, replace(workers, sm_count=7), 2),
        (lists, workers, 3),
    ]
    assert [once(*one) for one in others] == [2.0, 3.0, 4.0, 5.0]
    assert [once(*one) for one in others] == [2.0, 3.0, 4.0, 5.0]
    assert backward_waits.PlayedOnce()(lists, workers) == 6.0
