"""The planner of cached calls, its own source run on the CPU: what its lists mean for random lengths and rules."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cached_cases
import cuda_on_cpu
import numpy as np
import planned
import pytest
from numpy.typing import NDArray
from planned import Planned

import omnicupy as oc
from omnicupy.schedule import cached_lists
from omnicupy.schedule.cached_lists import CachedLists
from omnicupy.schedule.parts import LEAVE

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

TILES = ((64, 128), (64, 64), (128, 96), (16, 32), (8, 256), (21, 64))  # br (queries, any number) and bc
ROUNDS = 300  # of each seed


@pytest.fixture(scope="module")
def library() -> Any:
    return planned.build()


def _check(found: Planned, lengths: NDArray[np.int32]) -> None:
    lists = found.lists
    assert len(found.parts) <= lists.most_parts
    for sequence, length in enumerate(lengths.tolist()):
        keys = length if 0 <= length <= lists.capacity else 0
        wanted = cached_cases.dense(lists.rule, keys, lists.q_len, lists.capacity, sequence)
        assert (planned.counts(found, sequence, lengths) == wanted).all(), (sequence, length)
        looked_at, dead = planned.dead_where_looked_at(found, sequence)
        exists = looked_at < lists.capacity
        assert (dead[exists] == ~wanted.any(axis=0)[looked_at[exists]]).all(), (sequence, length)
    _check_splits(found)


def _check_splits(found: Planned) -> None:
    """Each block of rows once, in whole; parts of split ones in the order of tiles, slots of their own."""
    lists = found.lists
    rows: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for (first_row, mask, _, tiles), split in zip(found.parts.tolist(), found.splits.tolist(), strict=True):
        rows.setdefault((mask, first_row // lists.br), []).append((tiles, *split))
    assert len(rows) == lists.rows
    slots: list[int] = []
    for (mask, block), parts in rows.items():
        tiles, among, number, of, slot = (list(column) for column in zip(*parts, strict=True))
        assert set(of) == {len(parts)}
        assert number == list(range(len(parts)))
        assert set(among) == {block if len(parts) > 1 else -1}
        if lists.split_tiles:
            assert set(tiles[:-1]) <= {lists.split_tiles}
            assert tiles[-1] <= lists.split_tiles
        if len(parts) > 1:
            assert len(set(slot)) == 1
            assert min(tiles) >= 1
            assert lists.split_tiles or max(tiles) - min(tiles) <= 1
            begin = slot[0] + mask * lists.heads * lists.slots
            slots += range(begin, begin + len(parts))
    assert len(set(slots)) == len(slots)
    assert all(0 <= slot < lists.slots for slot in slots)


def _random(rng: np.random.Generator, leave: float) -> tuple[CachedLists, NDArray[np.int32]]:
    br, bc = TILES[rng.integers(len(TILES))]
    q_len = int(rng.choice([1, 1, 2, 7, 9, 33, 64, 65, 150]))
    batch = int(rng.integers(1, 8))
    capacity = int(rng.choice([q_len, 40, 100, 257, 700, 1500]))
    rule = cached_cases.random_rule(rng, q_len, batch)
    edges = np.array([-5, 0, 1, q_len - 1, q_len, q_len + 1, bc - 1, bc, bc + 1, capacity, capacity + 1])
    lengths = np.where(
        rng.random(batch) < 0.4, rng.choice(edges, batch), rng.integers(0, capacity + 1, batch)
    ).astype(np.int32)
    slots = int(rng.choice([0, 40, 200, 200]))
    sizes: dict[str, Any] = {
        "br": br,
        "bc": bc,
        "heads": int(rng.choice([1, 1, 4])),
        "sm_count": int(rng.choice([8, 132])),
    }
    kind = rng.random()
    sizes |= {"leave": leave, "split_slots": slots, "in_order": bool(kind < 0.2)}
    if kind > 0.8:
        sizes |= {"split_slots": 0, "split_tiles": int(rng.integers(1, 5))}
    return CachedLists(rule, batch, q_len, capacity, **sizes), lengths


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("seed", range(8))
def test_random_lengths_and_rules(seed: int, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    split = 0
    for _ in range(ROUNDS):
        cheap = rng.random() < 0.7  # rows as short as these are cut where that costs nothing
        monkeypatch.setattr(cached_lists, "ITEM", 0.01 if cheap else 1.2)
        monkeypatch.setattr(cached_lists, "LEAST_TILES", 1 if cheap else 2)
        lists, lengths = _random(rng, 0.01 if cheap else 6.0)
        found = planned.run(library, lists, lengths)
        _check(found, lengths)
        split += len(found.parts) > lists.rows
    assert split > ROUNDS // 10


def test_rows_of_their_own(library: Any) -> None:
    """Each sequence has the tiles that it has alone, at its rows; blocks without rows have none."""
    ragged, rng = planned.build(ragged=True), np.random.default_rng(11)
    for _ in range(40):
        batch, most, capacity = int(rng.integers(1, 6)), int(rng.choice([1, 9, 70])), 400
        counts = rng.integers(0, most + 1, batch)
        lengths = rng.integers(0, capacity + 1, batch).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        sizes: dict[str, Any] = {
            "br": 16,
            "bc": 32,
            "heads": 2,
            "sm_count": 8,
            "in_order": bool(rng.random() < 0.3),
        }
        rule = oc.cached(window=int(rng.integers(1, 90)), sink=3) if rng.random() < 0.5 else oc.cached()
        lists = CachedLists(rule, batch, most, capacity, **sizes, total_rows=int(starts[-1]) + 3)
        found = planned.run(ragged, lists, lengths, starts)
        assert found.array("row_ranges").tolist() == [list(pair) for pair in pairwise(starts.tolist())]
        for b in range(batch):
            mine = sorted((first, tiles) for first, mask, _, tiles in found.parts.tolist() if mask == b)
            alone = []
            if counts[b]:
                one = CachedLists(rule, 1, int(counts[b]), capacity, **sizes)
                parts = planned.run(library, one, lengths[b : b + 1]).parts.tolist()
                alone = [tiles for _, _, _, tiles in sorted(parts)]
            assert [first for first, _ in mine] == [starts[b] + 16 * i for i in range(lists.q_blocks)]
            assert [tiles for _, tiles in mine] == alone + [0] * (lists.q_blocks - len(alone))


def test_rows_in_order_have_offsets(library: Any) -> None:
    rule = oc.cached(window=70, sink=3)
    lists = CachedLists(rule, 3, 80, 400, br=16, bc=32, heads=2, sm_count=8, in_order=True)
    found = planned.run(library, lists, np.array([399, 0, 17], np.int32))
    assert (found.array("row_offsets") == np.arange(lists.rows + 1) * lists.most_entries).all()
    entries = found.array("entries").reshape(lists.rows, lists.most_entries, 4)
    held = (entries[..., 0] >> 8).sum(axis=1)
    for row, (first, sequence, _, _) in enumerate(found.parts.tolist()):
        assert (first, sequence) == (row % 5 * 16, row // 5)
        assert (held[row] > 0) == (found.parts[row, 3] > 0)


def _schedule(library: Any, lengths: list[int], **more: Any) -> Planned:
    sizes = {"br": 64, "bc": 128, "heads": 8, "sm_count": 132, "split_slots": 127, **more}
    rule = sizes.pop("rule", oc.cached())
    lists = CachedLists(rule, len(lengths), 1, 200_000, **sizes)
    return planned.run(library, lists, np.array(lengths, np.int32))


def test_one_long_sequence_fills_the_device_once(library: Any) -> None:
    found = _schedule(library, [131_072])
    assert len(found.parts) == 16  # times 8 heads: 128 of 132 multiprocessors
    assert set(found.parts[:, 3]) == {64}


def test_many_sequences_are_not_cut(library: Any) -> None:
    found = _schedule(library, [4096] * 64)
    assert len(found.parts) == 64


def test_a_long_one_among_short_ones_is_cut(library: Any) -> None:
    found = _schedule(library, [1000] * 20 + [100_000] + [1000] * 20)
    tiles = found.parts[found.parts[:, 1] == 20, 3]
    assert 6 <= len(tiles) <= 64
    assert (np.diff(found.parts[:, 3]) <= 1).all(), "the longest come first"


def test_few_tiles_are_not_cut(library: Any) -> None:
    assert len(_schedule(library, [100]).parts) == 1
    assert len(_schedule(library, [0]).parts) == 1


def test_a_window_bounds_the_work(library: Any) -> None:
    found = _schedule(library, [150_000] * 4, rule=oc.cached(window=1024, sink=4))
    assert set(found.parts[:, 3]) <= {9, 10, 11} or found.parts[:, 3].sum() <= 44


def test_a_split_depends_on_a_sequence_alone(library: Any) -> None:
    lengths, found = [5000, 0, 384, 385, 70_000, 129, 1], {}
    for some in (lengths, lengths[::-1], [5000] * 30 + lengths):
        plan = _schedule(library, some, split_slots=0, split_tiles=3)
        for sequence, length in enumerate(some):
            tiles = [p[3] for p in plan.parts.tolist() if p[1] == sequence]
            assert found.setdefault(length, tiles) == tiles
    assert found[5000] == [3] * 13 + [1]
    assert (found[384], found[385], found[1], found[0]) == ([3], [3, 1], [1], [0])


def test_many_rows_of_any_lengths(library: Any) -> None:
    """Beside the rows that a warp's lanes hold at once, and thread blocks enough for each multiprocessor."""
    rng = np.random.default_rng(2)
    for rows in (33, 65, 200, 1024):
        lengths = rng.integers(0, 200_000, rows)
        found = _schedule(library, lengths.tolist())
        _check_splits(found)
        tiles = np.bincount(found.parts[:, 1], found.parts[:, 3], rows)
        assert (tiles == -(-lengths // 128)).all()
        parts = np.bincount(found.parts[:, 1], minlength=rows)
        cost = (tiles / parts + np.where(parts > 1, LEAVE, 0))[found.parts[:, 1]]
        assert (np.diff(cost) <= 1e-3).all(), "the longest come first"


def test_the_same_lengths_give_the_same_lists(library: Any) -> None:
    one, two = (_schedule(library, [5000, 100, 70_000]) for _ in range(2))
    assert (one.buffer == two.buffer).all()


def test_bounds() -> None:
    rule = oc.cached()
    sizes = {"br": 64, "bc": 128, "heads": 8, "sm_count": 132}
    with pytest.raises(oc.UnsupportedError, match="1025 sequences exceeds the 1024"):
        CachedLists(rule, 1025, 1, 100, **sizes)
    with pytest.raises(oc.UnsupportedError, match="5000000 keys exceeds 4194303"):
        CachedLists(rule, 1, 1, 5_000_000, **sizes)
    with pytest.raises(oc.UnsupportedError, match="split: 3000 blocks of 64 rows exceed the 2048"):
        CachedLists(rule, 1000, 150, 400, **sizes, split_tiles=1)
    with pytest.raises(oc.UnsupportedError, match="cannot be counted in 32 bits; take a larger split"):
        CachedLists(rule, 1000, 1, 400_000, **sizes, split_tiles=1)
    with pytest.raises(oc.UnsupportedError, match="bytes of block lists, more than"):
        CachedLists(oc.cached(tail=oc.full(20_000)), 64, 20_000, 40_000, **sizes)
