"""masks/transpose.py: both directions of a block mask hold the same pairs, each once, against dense arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mask_cases import Case, random_case

import omnicupy as oc
from omnicupy.masks.block_mask import CAUSAL, DEAD, FULL, KIND, PARTIAL, BlockMask
from omnicupy.masks.transpose import KeyBlocks, by_key_blocks, dead_rows

Dense = np.ndarray
TILES = ((64, 64), (32, 96), (96, 32), (64, 192), (256, 64))


def pairs_of(turned: KeyBlocks) -> Dense:
    """How many entries allow each pair, (q_len, k_len), by a walk over the blocks of keys."""
    mask, bc = turned.mask, turned.bc
    q_len, k_len = mask.shape
    count = np.zeros((q_len, k_len), np.int64)
    diagonal = np.arange(k_len) <= np.arange(q_len)[:, None] + mask.diagonal
    for block in range(len(turned.offsets) - 1):
        keys = slice(block * bc, min((block + 1) * bc, k_len))
        for word, payload, first, queries in turned.entries[
            turned.offsets[block] : turned.offsets[block + 1]
        ]:
            rows = slice(first, first + queries)
            if word & KIND == FULL:
                rule: Dense = np.ones((queries, keys.stop - keys.start), bool)
            elif word & KIND == CAUSAL:
                rule = diagonal[rows, keys]
            elif payload < 0:
                rule = mask.dense(rows.start, rows.stop, keys.start, keys.stop)
            else:
                bits = np.unpackbits(turned.bit_tiles[payload].view(np.uint8), axis=1, bitorder="little")
                assert not bits[keys.stop - keys.start :].any()
                assert not bits[:, queries:].any()
                rule = bits[: keys.stop - keys.start, :queries].T
            count[rows, keys] += rule
    return count


def check(block: BlockMask, dense: Dense, label: str = "") -> KeyBlocks:
    turned = by_key_blocks(block)
    where = f"{label} {dense.shape} at {block.br} x {block.bc}"
    np.testing.assert_array_equal(pairs_of(turned), dense.astype(np.int64), err_msg=where)
    q_len, k_len = dense.shape
    assert turned.offsets.shape == (-(-k_len // block.bc) + 1,)
    assert (turned.offsets[0], turned.offsets[-1]) == (0, len(turned.entries))
    first, queries = turned.entries[:, 2], turned.entries[:, 3]
    assert not (first % block.br).any()
    stop = first + queries
    assert (stop <= q_len).all()
    assert not (stop % block.br * (stop < q_len)).any()
    several = turned.tiles > 1
    assert np.array_equal(turned.tiles, -(-queries // block.br))
    assert (turned.kinds[several] == FULL).all()
    column = np.repeat(np.arange(len(turned.offsets) - 1), np.diff(turned.offsets))
    places = list(zip(column.tolist(), first.tolist(), strict=True))
    assert places == sorted(set(places)), (
        f"{where}: queries ascend in each block of keys, no tile comes twice"
    )
    goes_on = (column[1:] == column[:-1]) & (stop[:-1] == first[1:])
    full = turned.kinds == FULL
    assert not (goes_on & full[1:] & full[:-1]).any(), f"{where}: a run ends where it ends"
    for array in (turned.offsets, turned.entries, turned.bit_tiles):
        assert not array.flags.writeable
    assert np.array_equal(turned.kinds, turned.entries[:, 0] & KIND)
    return turned


@pytest.mark.parametrize("seed", range(60))
def test_both_directions_hold_the_same_pairs(seed: int) -> None:
    case = random_case(np.random.default_rng(seed))
    for br, bc in TILES:
        check(case.mask.blocks(br, bc), case.dense, case.label)


def _bits(rng: np.random.Generator, q_len: int, k_len: int) -> Case:
    dense = rng.random((q_len, k_len)) < 0.4
    dense[:, k_len // 3 : k_len // 2] = False
    mask = oc.from_dense(dense)
    assert mask.bits is not None
    return Case(mask, dense, "bits")


def _tiles(rng: np.random.Generator, q_len: int, k_len: int) -> Case:
    grid = rng.random((-(-q_len // 40), -(-k_len // 24))) < 0.4
    mask = oc.from_tiles(grid, q_len, k_len, 40, 24)
    assert mask.tiles is not None
    return Case(mask, mask.to_dense(), "tiles")


@pytest.mark.parametrize("make", [_bits, _tiles])
@pytest.mark.parametrize("tile", TILES)
def test_forms_without_intervals(make: object, tile: tuple[int, int]) -> None:
    rng = np.random.default_rng(tile)
    for q_len, k_len in ((64, 3), (31, 65), (333, 257), (500, 129)):
        case = make(rng, q_len, k_len)  # type: ignore[operator]
        turned = check(case.mask.blocks(*tile), case.dense, case.label)
        assert turned.bit_tiles.shape[1:] == (tile[1], tile[0] // 32)


def test_bit_tiles_are_turned() -> None:
    """Bit b of word w of a row is query 32 * w + b; more tiles than are turned at once."""
    rng = np.random.default_rng(5)
    dense = rng.random((640, 2000)) < 0.5
    block = oc.from_dense(dense).blocks(64, 64)
    assert len(block.bit_tiles) > 256
    turned = by_key_blocks(block)
    for of_tile, tile in zip(turned.bit_tiles, block.bit_tiles, strict=True):
        there = np.unpackbits(np.ascontiguousarray(tile).view(np.uint8), axis=1, bitorder="little")
        back = (of_tile[:, np.arange(64) // 32] >> (np.arange(64) % 32).astype(np.uint32)) & 1
        np.testing.assert_array_equal(back, there.T)


@pytest.mark.parametrize("number", [1, 2, 256, 257])
def test_any_number_of_bit_tiles(number: int) -> None:
    """257 are one more than are turned at once."""
    rng = np.random.default_rng(number)
    dense = rng.random((64, 32 * number)) < 0.5
    case = Case(oc.from_dense(dense), dense, "bits")
    assert len(case.mask.blocks(64, 32).bit_tiles) == number
    check(case.mask.blocks(64, 32), dense)


def _with_runs(block: BlockMask) -> tuple[BlockMask, int]:
    """The same block mask with neighbouring FULL tiles of a row joined, and how many entries hold several."""
    rows, entries = block.rows_of_entries(), block.entries
    kept: list[np.ndarray] = []
    of_row: list[int] = []
    for row, entry in zip(rows.tolist(), entries, strict=True):
        before = kept[-1] if kept and of_row[-1] == row else None
        if (
            before is not None
            and before[0] == entry[0] == FULL
            and before[2] + before[3] == entry[2]
            and entry[3] == block.bc
        ):
            before[3] += entry[3]
        else:
            kept.append(entry.copy())
            of_row.append(row)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(of_row, minlength=block.q_blocks))])
    joined = np.array(kept, np.int32).reshape(-1, 4)
    made = replace(block, entries=joined, row_offsets=offsets.astype(np.int32))
    return made, int((joined[:, 3] > block.bc).sum())


@pytest.mark.parametrize("tile", [(64, 32), (32, 64), (128, 96)])
def test_an_entry_may_hold_a_run_of_full_tiles(tile: tuple[int, int]) -> None:
    masks = [
        oc.causal(500, 700),
        oc.full(130, 384),
        oc.segments([("text", 200), ("image", 190), ("text", 110)]),
        oc.sliding_window(400, left=200),
        oc.prefix(300, 170),
    ]
    several = 0
    for mask in masks:
        joined, runs = _with_runs(mask.blocks(*tile))
        several += runs
        turned = check(joined, mask.to_dense())
        plain = by_key_blocks(mask.blocks(*tile))
        np.testing.assert_array_equal(turned.entries, plain.entries)
        np.testing.assert_array_equal(turned.offsets, plain.offsets)
    assert several > 5


def test_flags_stay_with_their_tiles() -> None:
    dense = np.ones((200, 300), bool)
    dense[:, 70:75] = False  # dead
    dense[:10, 250:] = False
    turned = by_key_blocks(oc.from_dense(dense).blocks(64, 64))
    column = np.repeat(np.arange(5), np.diff(turned.offsets))
    assert np.array_equal((turned.entries[:, 0] & DEAD) != 0, column == 1)
    assert (turned.kinds[column == 0] == FULL).all()
    assert (turned.kinds[(column == 4) & (turned.entries[:, 2] == 0)] == PARTIAL).all()


def test_a_mask_without_pairs() -> None:
    mask = ~oc.full(100, 70)
    turned = check(mask.blocks(32, 32), np.zeros((100, 70), bool))
    assert turned.offsets.tolist() == [0, 0, 0, 0]
    assert turned.entries.shape == (0, 4)


def test_more_blocks_of_keys_than_16_bits_count() -> None:
    k_len = 32 * (1 << 16) + 32
    turned = by_key_blocks(oc.full(40, k_len).blocks(32, 32))
    assert np.array_equal(turned.offsets, np.arange((1 << 16) + 2))
    assert (turned.entries[:, 2:] == [0, 40]).all()


@pytest.mark.parametrize("br", [16, 48, 80])
def test_rows_come_in_whole_words(br: int) -> None:
    with pytest.raises(ValueError) as raised:
        by_key_blocks(oc.causal(100).blocks(br, 32))
    assert str(raised.value) == (
        f"by_key_blocks: br must be a multiple of 32, got {br}; cut the mask for another tile"
    )


@pytest.mark.parametrize("seed", range(60))
def test_dead_rows_of_random_masks(seed: int) -> None:
    case = random_case(np.random.default_rng(1000 + seed))
    for tile in ((64, 64), (32, 96)):
        found = dead_rows(case.mask.blocks(*tile))
        np.testing.assert_array_equal(found, ~case.dense.any(axis=1), err_msg=case.label)


@pytest.mark.parametrize("make", [_bits, _tiles])
@pytest.mark.parametrize("tile", [(64, 64), (32, 32), (96, 160)])
def test_dead_rows_of_other_forms(make: object, tile: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    case = make(rng, 300, 200)  # type: ignore[operator]
    holes = oc.ranges([(0, 120, 0, 200), (170, 300, 30, 110)], 300, 200)
    for hidden in (oc.full(300, 200), holes, oc.causal(300, 200), holes & oc.causal(300, 200)):
        mask = case.mask & hidden
        wanted = ~(case.dense & hidden.to_dense()).any(axis=1)
        np.testing.assert_array_equal(dead_rows(mask.blocks(*tile)), wanted)


@pytest.mark.parametrize("more", [-100, -70, -1, 0, 1, 33, 90])
def test_dead_rows_above_causal_tiles(more: int) -> None:
    """Lists of tiles under a diagonal: rows see the first key of their first tile, or nothing."""
    rows, keys = 256, 256 + more
    grid = np.random.default_rng(more + 100).random((8, -(-keys // 32))) < 0.3
    mask = oc.from_tiles(grid, rows, keys, 32, 32) & oc.causal(rows, keys)
    assert mask.tiles is not None
    dense = mask.to_dense()
    assert np.array_equal(
        dense, np.tri(rows, keys, more, bool) & np.kron(grid, np.ones((32, 32), bool))[:, :keys]
    )
    np.testing.assert_array_equal(dead_rows(mask.blocks(32, 32)), ~dense.any(axis=1))
