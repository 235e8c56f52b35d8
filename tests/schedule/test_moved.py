"""Tiles moved to where the keys of a block row begin: the same pairs, fewer tiles."""

from __future__ import annotations

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.masks.block_mask import BlockMask
from omnicupy.schedule.block_lists import key_range
from omnicupy.schedule.moved import moved, moved_lists
from omnicupy.schedule.parts import Workers


def _moved(mask: oc.Mask, br: int, bc: int) -> tuple[BlockMask, BlockMask]:
    """The cut of a mask, and the moved one, which allows the same pairs in tiles that end where spans do."""
    block = mask.blocks(br, bc)
    stop = sum(key_range([block]))
    found = moved(block, stop)
    assert np.array_equal(found.to_dense(), mask.to_dense())
    assert (np.diff(found.row_offsets) <= np.diff(block.row_offsets)).all()
    assert (found.entries[:, 2] + bc <= max(stop, bc)).all()
    assert (found.entries[:, 2] % 2 == 0).all()
    assert (found.entries[:, 3] <= mask.shape[1] - found.entries[:, 2]).all()
    return block, found


def _windows(*lengths: int) -> oc.Mask:
    return oc.presets.varlen([0, *np.cumsum(lengths).tolist()])


def test_windows_of_a_tile_take_two_in_place_of_three() -> None:
    block, found = _moved(_windows(24, *[64] * 8), 64, 64)
    assert np.diff(block.row_offsets)[1:-1].tolist() == [3] * 7
    assert np.diff(found.row_offsets)[1:-1].tolist() == [2] * 7
    assert found.entries[found.row_offsets[1] : found.row_offsets[2], 2].tolist() == [24, 88]


def test_windows_take_one_tile_of_twice_their_length() -> None:
    block, found = _moved(_windows(24, *[64] * 8), 64, 128)
    assert len(block.entries) == 17
    assert len(found.entries) == found.q_blocks == 9


@pytest.mark.parametrize("bc", [32, 64, 96, 128])
@pytest.mark.parametrize("seed", range(6))
def test_random_masks_allow_the_same_pairs(seed: int, bc: int) -> None:
    rng = np.random.default_rng(seed)
    _moved(_windows(*rng.integers(1, 100, 12).tolist()), 64, bc)
    _moved(oc.sliding_window(500, left=int(rng.integers(1, 90))), 64, bc)
    _moved(oc.random(400, seed, text=(4, 60), image=(20, 200), documents=3), 64, bc)
    visible = np.zeros((300, 410), bool)
    for row in range(0, 300, 50):
        key = int(rng.integers(0, 360))
        visible[row : row + 50, key : key + 50] = True
    _moved(oc.from_dense(visible), 64, bc)


def test_what_is_left_as_it_is() -> None:
    """Taller blocks, whose groups skip tiles; masks held as bits; rows of FULL, CAUSAL or dead tiles."""
    tall = _windows(24, *[64] * 8).blocks(128, 64)
    assert moved(tall, 1024) is tall
    scattered = oc.from_dense(np.random.default_rng(0).random((200, 300)) < 0.4).blocks(64, 64)
    assert moved(scattered, 512) is scattered
    for mask in (oc.full(300), oc.causal(300)):
        block, found = _moved(mask, 64, 64)
        assert np.array_equal(block.entries, found.entries)


def test_no_tile_reaches_past_the_spans() -> None:
    """The last keys of 256, of which a moved tile would need more."""
    block, found = _moved(_windows(40, 64, 64, 88), 64, 64)
    assert np.diff(found.row_offsets)[-1] == np.diff(block.row_offsets)[-1]


def test_lists_hold_the_moved_tiles() -> None:
    mask = _windows(24, *[64] * 8)
    lists = moved_lists([mask.blocks(64, 64)] * 2, Workers(4, 8))
    assert len(lists.array("entries")) == 2 * len(_moved(mask, 64, 64)[1].entries)
    assert lists.mask_batch == 2
