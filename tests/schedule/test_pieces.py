"""schedule/pieces.py: runs are cut where parts begin and flags change, and mean what their tiles one by one mean."""

from __future__ import annotations

import numpy as np
import pytest
from entry_walk import Tile, tile_by_tile, tiles_of_part, tiles_of_row
from mask_cases import random_case

import omnicupy as oc
from omnicupy.masks.block_mask import FULL, KIND, PARTIAL
from omnicupy.schedule import pieces as schedule_pieces
from omnicupy.schedule.block_lists import BlockLists, block_lists
from omnicupy.schedule.order import LAZY
from omnicupy.schedule.parts import Workers, schedule, tiles_before
from omnicupy.schedule.pieces import LAZY_KEYS, MOST_KEYS, pieces


def _parts(lists: BlockLists) -> list[tuple[int, int, list[Tile]]]:
    """First query, mask and tiles of each part, longest first."""
    found = lists.array("parts")
    return [(int(one[0]), int(one[1]), tiles_of_part(lists, i)) for i, one in enumerate(found)]


def _without_last(tiles: list[Tile]) -> list[Tile]:
    """Without the flag of the part's last entry, which may be a run or its last tile."""
    return [tile._replace(flags=tile.flags & 127) for tile in tiles]


@pytest.mark.parametrize("workers", [Workers(3, 4), Workers(1, 40, split_slots=60)], ids=["whole", "split"])
@pytest.mark.parametrize("seed", range(20))
def test_parts_walk_the_tiles_that_lists_of_single_tiles_have(seed: int, workers: Workers) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(1, 900, 2))
    cases = [random_case(rng, q_len, k_len) for _ in range(int(rng.integers(1, 4)))]
    tile = ((64, 64), (64, 32), (32, 96))[seed % 3]  # heights of one group: skipping sorts entries
    runs = block_lists([case.mask.blocks(*tile) for case in cases], workers)
    single = block_lists([tile_by_tile(case.mask.blocks(*tile)) for case in cases], workers)
    for (query, mask, tiles), (*where, wanted) in zip(_parts(runs), _parts(single), strict=True):
        assert [query, mask] == where
        assert _without_last(tiles) == _without_last(wanted)
    assert runs.shapes["entries"][0] <= single.shapes["entries"][0]
    assert (runs.array("splits") == single.array("splits")).all()
    assert runs.tiers == single.tiers


@pytest.mark.parametrize("bc", [32, 64, 96, 128])
def test_a_run_is_cut_where_parts_begin_and_rescaling_turns_lazy(bc: int) -> None:
    lists = block_lists([oc.full(64, 64 * bc).blocks(64, bc)], Workers(1, 8, split_slots=64))
    parts = lists.array("parts")
    assert len(parts) > 3
    entries = lists.array("entries")
    ahead = max(1, LAZY_KEYS // bc)
    assert len(entries) == 2 * len(parts)  # tiles before rescaling is lazy, and the others of the part
    for _, _, first, tiles in parts:
        (head, _, key, unskipped), (rest, _, behind, _) = entries[first : first + 2].tolist()
        assert (head >> 8, rest >> 8) == (ahead * bc, (int(tiles) - ahead) * bc)
        assert behind == key + ahead * bc
        assert (head & LAZY, rest & LAZY) == (0, LAZY)
        assert unskipped == 64 - key // bc  # to the end of the row


@pytest.mark.parametrize("seed", range(30))
def test_pieces_hold_all_tiles_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flags = rng.choice([FULL, PARTIAL], 30).astype(np.int32)
    tiles = np.where(flags == FULL, rng.integers(1, 9, 30), 1).astype(np.int32)
    total = int(tiles.sum())
    firsts = np.append(rng.integers(0, total + 1, 12), 0)
    bc = (32, 64, 128)[seed % 3]
    found = pieces(flags, tiles, firsts, bc)
    assert np.repeat(found.entry, found.tiles).tolist() == np.repeat(np.arange(30), tiles).tolist()
    places = [
        ahead + i for ahead, count in zip(found.tiles_ahead, found.tiles, strict=True) for i in range(count)
    ]
    assert places == [i for count in tiles for i in range(count)]
    full = np.repeat(flags, tiles) & KIND == FULL
    lazy = np.repeat(found.lazy, found.tiles)
    for place in range(total):
        begin = max(first for first in firsts if first <= place)
        assert lazy[place] == (full[begin:place].sum() * bc >= LAZY_KEYS)
    assert set(firsts[firsts < total].tolist()) <= set(found.place.tolist())
    assert (found.place[found.first_from(firsts[firsts < total])] == firsts[firsts < total]).all()


def test_runs_of_more_keys_than_a_word_holds_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.full(64, 4096)
    wanted = list(tiles_of_row(block_lists([mask.blocks(64, 64)], Workers(1, 1)), 0))
    monkeypatch.setattr(schedule_pieces, "MOST_KEYS", 64 * 5 + 1)
    lists = block_lists([mask.blocks(64, 64)], Workers(1, 1))
    keys = lists.array("entries")[:, 0] >> 8
    assert keys.max() == 64 * 5
    assert keys.sum() == 4096
    assert _without_last(tiles_of_part(lists, 0)) == _without_last(wanted)


def test_the_longest_run_fits_into_a_word() -> None:
    """16 million keys and more, which one block of query rows may see."""
    for bc in (32, 96, 128, 256):
        tiles = np.array([1, 3 * (MOST_KEYS // bc) + 5], np.int32)
        found = pieces(np.array([PARTIAL, FULL], np.int32), tiles, np.array([0]), bc)
        words = found.tiles.astype(np.int64) * bc << 8 | 255
        assert words.max() < 2**31
        assert found.tiles.sum() == tiles.sum()
        assert (np.diff(found.place) == found.tiles[:-1]).all()
        assert len(found.tiles) <= 7


def test_tiles_are_counted_past_what_an_int32_holds() -> None:
    """Rows of 2^30 tiles each, as a causal mask of hundreds of millions of tokens has."""
    tiles = np.full(6, 1 << 30, np.int32)
    assert tiles_before(tiles)[-1] == 6 << 30
    found = schedule(np.arange(7, dtype=np.int32), tiles.astype(float), Workers(1, 4), tiles)
    assert sorted(found.first.tolist()) == [i << 30 for i in range(6)]
    assert (found.end - found.first == 1 << 30).all()
    cut = pieces(np.full(6, FULL, np.int32), tiles, found.first, 128)
    assert cut.tiles.sum(dtype=np.int64) == 6 << 30
    assert cut.first_from(found.first).max() < len(cut.tiles)
