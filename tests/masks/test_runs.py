"""Runs of FULL tiles as one entry: they mean the tiles that an independent look at the pairs finds, one by one."""

from __future__ import annotations

import time
import tracemalloc

import mask_oracle as oracle
import numpy as np
import pytest
from entry_walk import tile_by_tile
from mask_cases import random_case

import omnicupy as oc
from omnicupy.masks import picture
from omnicupy.masks.block_mask import FULL, BlockMask
from omnicupy.masks.mask import Mask

TILES = ((8, 32), (24, 96), (64, 64), (40, 32))


def _listed(dense: np.ndarray, mask: Mask, br: int, bc: int) -> list[list[int]]:
    """Block of query rows, kind, first key and keys of each tile, in the order of the lists, from the pairs."""
    kinds = oracle.tile_kinds(dense, br, bc, mask.diagonal)
    found = [
        (row, int(kind == FULL), int(block), int(kind))
        for row, of_row in enumerate(kinds)
        for block, kind in enumerate(of_row)
        if kind
    ]
    k_len = dense.shape[1]
    return [[row, kind, block * bc, min(bc, k_len - block * bc)] for row, _, block, kind in sorted(found)]


def _expanded(blocks: BlockMask) -> list[list[int]]:
    tiles = tile_by_tile(blocks)
    rows = tiles.rows_of_entries()
    return [
        [int(row), kind & 3, first, keys]
        for row, (kind, _, first, keys) in zip(rows, tiles.entries.tolist(), strict=True)
    ]


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("seed", range(60))
def test_expanded_runs_are_the_tiles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(1, 600, 2))
    case = random_case(rng, q_len, k_len)
    for br, bc in TILES:
        blocks = case.mask.blocks(br, bc)
        assert _expanded(blocks) == _listed(case.dense, case.mask, br, bc), case.label
        assert np.array_equal(blocks.to_dense(), case.dense), case.label
        assert np.array_equal(tile_by_tile(blocks).to_dense(), case.dense), case.label


@pytest.mark.parametrize("br", [8, 16, 56])
def test_runs_end_where_a_tile_is_not_full(br: int) -> None:
    """Random holes of whole tiles: runs of any length, at any place."""
    rng = np.random.default_rng(br)
    for _ in range(20):
        grid = rng.random((7, 13)) < 0.7
        spans = [
            (row * br, (row + 1) * br, key * 32, (key + 1) * 32) for row, key in np.argwhere(grid).tolist()
        ]
        mask = oc.ranges(spans, 7 * br + 3, 13 * 32 + 5)
        blocks = mask.blocks(br, 32)
        runs = (np.diff(grid.astype(int), axis=1, prepend=0) == 1).sum()
        assert (blocks.kinds == FULL).all()
        assert len(blocks.entries) == runs
        assert blocks.tiles.sum() == grid.sum()
        assert np.array_equal(blocks.to_dense(), mask.to_dense())


def test_forms_that_are_not_intervals_have_runs_too() -> None:
    dense = np.zeros((64, 320), np.bool_)
    dense[:, 64:256] = True
    dense[:, 300:] = np.random.default_rng(0).random((64, 20)) < 0.5
    bits = oc.from_dense(dense)
    assert bits.bits is not None
    assert bits.blocks(64, 64).entries[:, 2:].tolist() == [[256, 64], [64, 192]]
    lists = oc.from_tiles([[0, 1, 2, 4], [3]], 128, 320, 64, 64)
    assert lists.tiles is not None
    found = lists.blocks(64, 64)
    assert found.entries[:, 2:].tolist() == [[0, 192], [256, 64], [192, 64]]
    assert np.array_equal(found.to_dense(), lists.to_dense())
    coarse = (lists & oc.full(128, 320)).blocks(32, 32)
    assert coarse.entries[coarse.row_offsets[0] : coarse.row_offsets[1], 2:].tolist() == [[0, 192], [256, 64]]


@pytest.mark.parametrize("seed", range(20))
def test_a_block_of_query_rows_alone(seed: int) -> None:
    """Decoding: its cut goes another way."""
    rng = np.random.default_rng(seed)
    k_len = int(rng.integers(1, 1000))
    first, stop = sorted(int(n) for n in rng.integers(0, k_len + 1, 2))
    rows = int(rng.integers(1, 9))
    some = int(rng.integers(0, rows))
    mask = oc.ranges([(0, rows, first, stop), (some, rows, stop, min(stop + 40, k_len))], rows, k_len)
    for br, bc in ((16, 32), (64, 96)):
        assert _expanded(mask.blocks(br, bc)) == _listed(mask.to_dense(), mask, br, bc)


def test_a_million_tokens_cost_their_entries() -> None:
    """33.5 million FULL tiles of a causal mask are 8,191 runs."""
    mask = oc.causal(1 << 20)
    tracemalloc.start()
    begin = time.perf_counter()
    blocks = mask.blocks(128, 128)
    took = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(blocks.entries) == 8192 + 8191
    assert took < 1.0
    assert peak < 64 << 20
    stats = mask.stats(128, 128)
    assert (stats.full, stats.causal) == (8192 * 8191 // 2, 8192)
    assert stats.tiles == 8192 * 8193 // 2


def test_cells_of_a_picture_are_the_kinds_of_their_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles a cell: PARTIAL over CAUSAL over FULL."""
    monkeypatch.setattr(picture, "MOST_CELLS", 7)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        case = random_case(rng, *(int(n) for n in rng.integers(100, 600, 2)))
        blocks = case.mask.blocks(16, 32)
        kinds = oracle.tile_kinds(case.dense, 16, 32, case.mask.diagonal)
        step = -(-max(kinds.shape) // 7)
        padded = np.zeros([-(-n // step) * step for n in kinds.shape], np.int64)
        padded[: kinds.shape[0], : kinds.shape[1]] = kinds
        height, width = (n // step for n in padded.shape)
        wanted = padded.reshape(height, step, width, step).max(axis=(1, 3))
        assert np.array_equal(picture._grid(blocks)[0], wanted)
