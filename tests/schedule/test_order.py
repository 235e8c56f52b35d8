"""The order of tiles: FULL ones first, skipped ones last; flagged where, and only where, no row of a group sees one."""

from __future__ import annotations

import numpy as np
import pytest
from entry_walk import tile_by_tile
from mask_cases import random_case

import omnicupy as oc
from omnicupy.masks.block_mask import DEAD, FULL, KIND, PARTIAL, BlockMask
from omnicupy.schedule.order import GROUP_ROWS, SKIP_SHIFT, arrange, ordered, shares
from omnicupy.schedule.parts import tiles_before
from omnicupy.schedule.pieces import LAZY_KEYS, Pieces, pieces

SKIP = 7 << SKIP_SHIFT  # flags of all groups
TILES = ((128, 32), (128, 64), (192, 96), (192, 32))


def _sees(block: BlockMask, dense: np.ndarray, entry: int, row: int) -> list[bool]:
    """Of each group of the entry's block, whether any of its rows sees any key of the entry."""
    offset, length = block.entries[entry, 2:]
    first = range(row * block.br, (row + 1) * block.br, GROUP_ROWS)
    return [bool(dense[q0 : q0 + GROUP_ROWS, offset : offset + length].any()) for q0 in first]


def _flags(word: int, groups: int) -> list[bool]:
    return [bool(word >> (SKIP_SHIFT + group) & 1) for group in range(groups)]


def _as_multiset(block: BlockMask) -> list[tuple[int, ...]]:
    rows = block.rows_of_entries()
    return sorted(
        (int(row), int(e[0] & ~SKIP), *map(int, e[1:])) for row, e in zip(rows, block.entries, strict=True)
    )


@pytest.mark.parametrize("seed", range(60))
def test_flags_are_safe_and_the_entries_stay(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(1, 700, 2))
    case = random_case(rng, q_len, k_len)
    block = case.mask.blocks(*TILES[seed % len(TILES)])
    found = ordered(block)
    assert _as_multiset(found) == _as_multiset(block)
    assert np.array_equal(found.to_dense(), case.dense)
    groups = block.br // GROUP_ROWS
    for entry, row in enumerate(found.rows_of_entries()):
        word = int(found.entries[entry, 0])
        skipped = _flags(word, groups)
        sees = _sees(found, case.dense, entry, int(row))
        assert not any(skip and see for skip, see in zip(skipped, sees, strict=True)), case.label
        assert not (word & DEAD and any(skipped))
        if found.entries[entry, 1] >= 0 and word & KIND == PARTIAL and not word & DEAD:
            assert skipped == [not see for see in sees]  # bit tiles tell exactly


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    "mask",
    [
        oc.causal(1000),
        oc.sliding_window(1000, left=300),
        oc.segments([("text", 90), ("image", 333), ("noise", 200), ("text", 177)]),
        oc.ranges([(0, 300, 0, 250), (300, 611, 250, 640)], 611, 640),
    ],
    ids=["causal", "window", "segments", "cross"],
)
def test_what_one_range_a_key_allows_is_told_exactly(mask: oc.Mask, tile: tuple[int, int]) -> None:
    """Each key's rows are one range here, and those of a tile's keys overlap: the bounds say all there is to say."""
    found = ordered(mask.blocks(*tile))
    dense, groups = mask.to_dense(), found.br // GROUP_ROWS
    masked = 0
    for entry, row in enumerate(found.rows_of_entries()):
        if found.entries[entry, 0] & DEAD:
            continue
        sees = _sees(found, dense, entry, int(row))
        assert _flags(int(found.entries[entry, 0]), groups) == [not see for see in sees]
        masked += not all(sees)
    assert masked


@pytest.mark.parametrize("seed", range(30))
def test_full_tiles_come_first_and_skipped_ones_last(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(rng, *(int(n) for n in rng.integers(200, 700, 2)))
    block = case.mask.blocks(*((128, 32), (192, 64), (64, 32))[seed % 3])
    found = ordered(block)
    unskipped, places = arrange(block).unskipped, tiles_before(found.tiles)
    for row in range(found.q_blocks):
        first, end = found.row_offsets[row : row + 2]
        flags = found.entries[first:end, 0]
        skipped, full = (flags & SKIP) != 0, (flags & KIND) == FULL
        place = np.where(skipped, 2, np.where(full, 0, 1))
        assert (np.diff(place) >= 0).all()
        count = int(found.tiles[first:end][~skipped].sum())
        ahead = places[first:end] - places[first]
        assert unskipped[first:end].tolist() == np.maximum(0, count - ahead).tolist()
        if block.br == 64:
            assert not skipped.any()
        before = block.entries[first:end]
        unmoved = before[(before[:, 0] & KIND) == FULL, 2]
        if not skipped.any():  # else FULL ones of rows past the end may be among them
            assert found.entries[first:end][full, 2].tolist() == unmoved.tolist()


def test_skipped_entries_alternate() -> None:
    """Two documents that meet inside a block of rows: each half looks at its own keys, and they take turns."""
    mask = oc.ranges([(0, 64, 0, 640), (64, 128, 640, 1280)], 128, 1280)
    found = ordered(mask.blocks(128, 64))
    flags = found.entries[:, 0] >> SKIP_SHIFT
    assert flags.tolist() == [1, 2] * 10
    assert arrange(mask.blocks(128, 64)).unskipped.tolist() == [0] * 20
    assert shares(found).tolist() == [0.5] * 20


def test_a_block_on_the_diagonal_ends_with_what_its_first_rows_skip() -> None:
    found = tile_by_tile(ordered(oc.causal(768).blocks(192, 64)))
    for row in range(found.q_blocks):
        first, end = found.row_offsets[row : row + 2]
        flags = found.entries[first:end, 0] >> SKIP_SHIFT & 7
        assert flags.tolist() == [0] * (3 * row + 1) + [3, 1]
        assert (found.entries[first : end - 3, 0] & KIND == FULL).all()


def test_spans_of_a_key_are_looked_at_one_by_one() -> None:
    """Keys that two far ranges of rows see: between them nobody does."""
    mask = oc.ranges([(0, 10, 0, 64), (380, 384, 0, 64), (100, 150, 64, 128)], 384, 128)
    assert mask.intervals is not None
    assert len(mask.intervals[0]) == 2
    found = ordered(mask.blocks(192, 64))
    assert sorted((found.entries[:, 0] >> SKIP_SHIFT & 7).tolist()) == [1, 3, 6]


def test_rows_past_the_end_look_at_nothing() -> None:
    found = tile_by_tile(ordered(oc.full(200, 256).blocks(192, 64)))
    last = found.entries[found.row_offsets[1] :, 0] >> SKIP_SHIFT & 7
    assert last.tolist() == [6] * 4  # eight rows: the first group's
    assert not (found.entries[: found.row_offsets[1], 0] & SKIP).any()


@pytest.mark.parametrize("tile", [(64, 64), (96, 32), (32, 32), (256, 64)])
def test_blocks_of_other_heights_skip_nothing(tile: tuple[int, int]) -> None:
    found = ordered(oc.causal(500).blocks(*tile))
    assert not (found.entries[:, 0] & SKIP).any()
    assert (shares(found) == 1).all()


def test_rescaling_is_lazy_in_a_last_block_that_groups_without_rows_skip() -> None:
    found = ordered(oc.full(184, 512).blocks(128, 64))
    last = tile_by_tile(found).entries[8:, 0]
    assert (last >> SKIP_SHIFT & 7).tolist() == [2] * 8
    cut = pieces(found.entries[:, 0], found.tiles, tiles_before(found.tiles)[found.row_offsets], 64)
    assert _lazy_tiles(cut)[8:] == [False] + [True] * 7


def _lazy_tiles(cut: Pieces) -> list[bool]:
    """Of each tile, whether rescaling may be lazy there."""
    lazy: list[bool] = np.repeat(cut.lazy, cut.tiles).tolist()
    return lazy


@pytest.mark.parametrize("seed", range(20))
def test_rescaling_is_lazy_after_full_keys_of_the_same_part(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flags = rng.choice([FULL, PARTIAL, FULL | 1 << SKIP_SHIFT], 40).astype(np.int32)
    firsts = rng.permutation(np.append(rng.integers(0, 41, 9), 0)).astype(np.int32)  # some twice: empty parts
    found = pieces(flags, np.ones(40, np.int32), firsts, 32)
    assert found.entry.tolist() == list(range(40))
    for entry in range(40):
        begin = max(first for first in firsts if first <= entry)
        assert found.lazy[entry] == (int((flags[begin:entry] & KIND == FULL).sum()) * 32 >= LAZY_KEYS)


def test_an_empty_mask_stays_empty() -> None:
    empty = (~oc.full(384, 384)).blocks(128, 128)
    assert len(ordered(empty).entries) == 0


@pytest.mark.parametrize("seed", range(8))
def test_one_row_is_ordered_as_the_first_of_two(seed: int) -> None:
    """A mask of one block row takes a shorter way; as a row of a longer mask it takes the long one."""
    lone = oc.random(64, seed, text=(3, 20), image=(5, 40))[40:64, 0:64]
    assert lone.intervals is not None
    both = oc.intervals(*lone.intervals, 25)  # one row more than the block has
    alone, first = arrange(lone.blocks(24, 32)), arrange(both.blocks(24, 32))
    count = len(alone.entry)
    assert count == both.blocks(24, 32).row_offsets[1]
    assert alone.entry.tolist() == first.entry[:count].tolist()
    assert alone.flags.tolist() == first.flags[:count].tolist()
    assert alone.unskipped.tolist() == first.unskipped[:count].tolist()
