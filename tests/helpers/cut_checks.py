"""Everything the contract says of a mask and of its cut into tiles, against the brute-force oracle."""

from __future__ import annotations

import mask_oracle as oracle
import numpy as np
from mask_cases import Case

from omnicupy.masks.block_mask import DEAD, FULL, KIND, PARTIAL, BlockMask


def kinds_of(blocks: BlockMask) -> np.ndarray:
    """Kind of every tile, (q_blocks, k_blocks), from the lists."""
    grid = np.zeros((blocks.q_blocks, blocks.k_blocks), np.int64)
    for row, (kind, _, first, keys) in zip(blocks.rows_of_entries(), blocks.entries.tolist(), strict=True):
        tiles = slice(first // blocks.bc, -(-(first + keys) // blocks.bc))
        assert not grid[row, tiles].any()
        grid[row, tiles] = kind & KIND
    return grid


def check_cut(case: Case, br: int, bc: int) -> None:
    """Everything the contract says of one cut."""
    blocks = case.mask.blocks(br, bc)
    where = f"{case.label} {case.dense.shape} at {br} x {bc}"
    np.testing.assert_array_equal(blocks.to_dense(), case.dense, err_msg=where)
    expected = oracle.tile_kinds(case.dense, br, bc, case.mask.diagonal)
    np.testing.assert_array_equal(kinds_of(blocks), expected, err_msg=where)
    rows, kind = blocks.rows_of_entries(), blocks.kinds
    offset = blocks.entries[:, 2]
    place = list(zip(rows.tolist(), (kind == FULL).tolist(), offset.tolist(), strict=True))
    assert place == sorted(place), where
    check_lengths(blocks, where)
    assert blocks.tiles.sum() == (expected > 0).sum(), where
    dead = oracle.dead_blocks(case.dense, bc)[offset // bc]
    np.testing.assert_array_equal((blocks.entries[:, 0] & DEAD) != 0, dead, err_msg=where)
    check_payloads(case, blocks)


def check_lengths(blocks: BlockMask, where: str) -> None:
    """Masked entries are one tile; FULL ones whole tiles, and all that are neighbours."""
    rows, full = blocks.rows_of_entries(), blocks.kinds == FULL
    first, keys = blocks.entries[:, 2:].T
    assert (keys[~full] == np.minimum(blocks.bc, blocks.k_len - first[~full])).all(), where
    assert (keys[full] % blocks.bc == 0).all(), where
    assert (first % blocks.bc == 0).all(), where
    assert (blocks.tiles[~full] == 1).all(), where
    assert (blocks.tiles[full] * blocks.bc == keys[full]).all(), where
    ends = set(zip(rows[full].tolist(), (first + keys)[full].tolist(), strict=True))
    assert not ends & set(zip(rows[full].tolist(), first[full].tolist(), strict=True)), where


def check_payloads(case: Case, blocks: BlockMask) -> None:
    """Bit tiles for PARTIAL entries of masks held as bits, no two equal; none elsewhere."""
    payload = blocks.entries[:, 1]
    by_bits = (blocks.kinds == PARTIAL) & (case.mask.intervals is None)
    assert (payload[~by_bits] == -1).all()
    assert set(payload[by_bits].tolist()) == set(range(len(blocks.bit_tiles)))
    assert blocks.bit_tiles.shape[1:] == (blocks.br, blocks.bc // 32)
    assert len({tile.tobytes() for tile in blocks.bit_tiles}) == len(blocks.bit_tiles)


def check_mask(case: Case) -> None:
    """The pairs of the mask itself."""
    mask, dense = case.mask, case.dense
    np.testing.assert_array_equal(mask.to_dense(), dense, err_msg=case.label)
    assert mask.shape == dense.shape
    assert mask.pairs == dense.sum()
    np.testing.assert_array_equal(mask.dead_keys(), ~dense.any(axis=0))
    assert sum(form is not None for form in (mask.intervals, mask.bits, mask.tiles)) == 1
    if mask.intervals is not None:
        check_canonical(mask.intervals, dense)


def check_canonical(intervals: tuple[np.ndarray, np.ndarray], dense: np.ndarray) -> None:
    """Exactly the runs of each column, in order, with n minimal."""
    start, stop = intervals
    edges = np.diff(np.pad(dense.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    runs = (edges == 1).sum(axis=0)
    assert len(start) == max(1, runs.max())
    key, row = np.nonzero((edges == 1).T)
    end = np.nonzero((edges == -1).T)[1]
    slot = np.arange(len(key)) - np.repeat(np.cumsum(runs) - runs, runs)
    expected = np.zeros((2, *start.shape), np.int32)
    expected[0, slot, key], expected[1, slot, key] = row, end
    np.testing.assert_array_equal(start, expected[0])
    np.testing.assert_array_equal(stop, expected[1])
    for array in intervals:
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
        assert not array.flags.writeable
