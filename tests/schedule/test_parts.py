"""schedule/parts.py: every entry is in one part, long ones first, and cutting rows ends sooner where rows are few."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest

from omnicupy.schedule.parts import (
    ENOUGH,
    ITEM,
    LEAST_TILES,
    LEAVE,
    Schedule,
    Workers,
    ends,
    parts_of_one_row,
    schedule,
)


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)


def _made(counts: list[int], workers: Workers) -> Schedule:
    return schedule(_offsets(counts), np.ones(sum(counts)), workers)


def _costs(found: Schedule) -> np.ndarray:
    return found.end - found.first + ITEM + np.where(found.splits[:, 0] >= 0, LEAVE, 0.0)


def _played(found: Schedule, workers: Workers) -> float:
    """When the last multiprocessor ends, each taking the next part as soon as it is free."""
    free = [0.0] * workers.sm_count
    first = 0
    for end in found.tiers:
        for cost in np.repeat(_costs(found)[first:end], workers.heads):
            heapq.heapreplace(free, free[0] + cost)
        first = end
    return max(free)


@pytest.mark.parametrize("seed", range(60))
def test_every_entry_is_in_one_part_of_its_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 40, int(rng.integers(1, 30))).tolist()
    workers = Workers(int(rng.integers(1, 40)), int(rng.integers(1, 140)), int(rng.integers(0, 200)))
    found = _made(counts, workers)
    offsets = _offsets(counts)
    taken = np.zeros(sum(counts), np.int64)
    for row, first, end in zip(found.rows, found.first, found.end, strict=True):
        assert offsets[row] <= first <= end <= offsets[row + 1]
        taken[first:end] += 1
    assert (taken == 1).all()
    assert set(found.rows) == set(range(len(counts)))
    assert found.tiers[-1] == len(found.rows)
    assert list(found.tiers) == sorted(found.tiers)
    size = found.end - found.first
    assert (np.diff(size) <= 0).all()
    assert found.n_slots <= workers.split_slots


@pytest.mark.parametrize("seed", range(60))
def test_splits_number_the_parts_of_a_row_in_the_order_of_its_entries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 200, int(rng.integers(1, 6))).tolist()
    found = _made(counts, Workers(2, 132, 300))
    split = found.splits[:, 0] >= 0
    assert (found.splits[~split, 2] == 1).all()
    slots = found.splits[split, 3] + found.splits[split, 1]
    assert sorted(slots) == list(range(found.n_slots))
    assert sorted(set(found.splits[split, 0])) == list(range(found.n_split_rows))
    for row in set(found.rows[split]):
        mine = np.flatnonzero(found.rows == row)
        mine = mine[np.argsort(found.first[mine])]
        assert found.splits[mine, 1].tolist() == list(range(len(mine)))
        assert (found.splits[mine, 2] == len(mine)).all()
        assert len(set(found.splits[mine, 3])) == len(set(found.splits[mine, 0])) == 1
        assert (found.end[mine] - found.first[mine] >= min(LEAST_TILES, counts[row])).all()


@pytest.mark.parametrize(
    ("counts", "heads"),
    [([64] * 4, 8), ([65], 32), ([100, 3, 3, 3], 16), ([30] * 9, 4), ([500], 1)],
)
def test_few_rows_are_cut_and_end_sooner(counts: list[int], heads: int) -> None:
    whole = _made(counts, Workers(heads, 132))
    cut = _made(counts, Workers(heads, 132, 1000))
    assert whole.n_slots == 0
    assert cut.n_split_rows > 0
    assert _played(cut, Workers(heads, 132)) < 0.7 * _played(whole, Workers(heads, 132))


@pytest.mark.parametrize("seed", range(40))
def test_a_row_that_is_alone_is_cut_as_one_of_many_is(seed: int) -> None:
    """The short way that decoding takes: no way that is tried for many rows ends sooner."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 300))
    workers = Workers(int(rng.integers(1, 80)), 132, int(rng.integers(1, 80)))
    cost = np.array([1.1 * count])
    tried = [
        parts
        for parts in range(1, min(max(count // LEAST_TILES, 1), workers.split_slots, 64) + 1)
        if parts in (1, 2, 3, 4, 6)
    ]
    of_parts = {parts: ends(cost, np.array([parts]), workers) for parts in tried}
    found = parts_of_one_row(float(cost[0]), count, workers)
    assert 1 <= found <= max(1, count // LEAST_TILES)
    assert found == 1 or found <= workers.split_slots
    end = ends(cost, np.array([found]), workers)
    least = (cost[0] + ITEM) * workers.heads / workers.sm_count
    assert ENOUGH * end <= least or end <= min(of_parts.values()) + 1e-9


def test_enough_rows_are_left_whole() -> None:
    assert _made([30] * 132, Workers(8, 132, 1000)).n_slots == 0
    assert _made(list(range(1, 129)), Workers(64, 132, 1000)).n_slots == 0


def test_short_parts_of_all_sections_come_last() -> None:
    """Causal: without tiers the last section's long rows would start last."""
    found = _made(list(range(1, 129)), Workers(16, 132))
    assert 0 < found.tiers[0] < found.tiers[1] < found.tiers[2] < found.tiers[3]
    ideal = _costs(found).sum() * 16 / 132
    assert (_costs(found)[found.tiers[2] :] <= ideal / 64).all()
    assert _played(found, Workers(16, 132)) < 1.02 * ideal


@pytest.mark.parametrize(("longest", "divisors"), [(60, (2, 4, 8)), (30, (16, 32, 64))])
def test_tiers_are_of_long_parts_where_one_takes_half_of_the_time(
    longest: int, divisors: tuple[int, ...]
) -> None:
    """As blocks of keys that a whole group of heads works on."""
    counts = [longest, *[12] * 20, *[3] * 30]
    workers = Workers(heads=2, sm_count=10)
    found = _made(counts, workers)
    ideal = _costs(found).sum() * workers.heads / workers.sm_count
    assert (_costs(found)[0] > ideal / 2) == (divisors[0] == 2)
    for end, divisor in zip(found.tiers, divisors, strict=False):
        assert end == (_costs(found) > ideal / divisor).sum()


def test_the_estimate_is_near_what_is_played() -> None:
    for counts, heads in (([30] * 20, 16), (list(range(1, 60)), 8), ([100] + [5] * 40, 12)):
        workers = Workers(heads, 132)
        found = _made(counts, workers)
        estimate = ends(np.array(counts, float), np.ones(len(counts), np.int64), workers)
        assert estimate <= _played(found, workers) <= 1.2 * estimate


def test_a_mask_without_entries() -> None:
    found = _made([0, 0, 0], Workers(3, 132, 100))
    assert found.rows.tolist() == [0, 1, 2]
    assert (found.first == found.end).all()
    assert found.n_slots == 0


@pytest.mark.parametrize("heads", [1, 7, 500])
def test_a_split_depends_on_the_row_alone(heads: int) -> None:
    counts = [0, 1, 4, 5, 8, 23]
    for sm_count in (8, 132):
        found = _made(counts, Workers(heads, sm_count, 1, split_tiles=4))
        lengths = {row: [] for row in range(len(counts))}
        for row, first, end, split in zip(found.rows, found.first, found.end, found.splits, strict=True):
            lengths[int(row)].append((int(split[1]), int(end - first), int(split[2])))
        assert {row: [n for _, n, _ in sorted(parts)] for row, parts in lengths.items()} == {
            **{0: [0], 1: [1], 2: [4], 3: [4, 1], 4: [4, 4]},
            5: [4, 4, 4, 4, 4, 3],
        }
        assert all(of == len(parts) for parts in lengths.values() for _, _, of in parts)
        assert (found.n_slots, found.n_split_rows) == (10, 3)


def test_a_split_makes_as_many_parts_as_it_takes() -> None:
    found = _made([1000], Workers(1, 132, 1, split_tiles=1))
    assert (found.n_slots, found.n_split_rows, len(found.rows)) == (1000, 1, 1000)


def test_one_row_of_heads_that_do_not_divide_the_device_is_cut_to_fill_it_once() -> None:
    assert parts_of_one_row(64.0, 64, Workers(8, 132, 999, leave=1.0)) == 16
    assert parts_of_one_row(1024.0, 1024, Workers(4, 132, 999, leave=1.0)) == 33
    assert parts_of_one_row(64.0, 64, Workers(512, 132, 999, leave=1.0)) == 1


def test_long_rows_are_cut_further_where_sums_have_an_order() -> None:
    """What waits for such a row would wait long. How many heads the L2 cache holds says nothing of that."""
    counts, workers = [2000, *[2] * 5], Workers(1, 132, 2000)
    plain, ordered = (_made(counts, replace(workers, ordered_sums=waits)) for waits in (False, True))
    assert (plain.n_slots, ordered.n_slots) == (64, 1000)
    assert _made(counts, replace(workers, side_by_side=4)).n_slots == plain.n_slots
