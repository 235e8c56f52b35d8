"""Cuts whose tiles, numbered row by row, need more than 32 bits: which are listed, and in which order."""

from __future__ import annotations

import numpy as np

import omnicupy as oc
from omnicupy.masks.block_mask import PARTIAL

TOKENS = 1 << 20


def test_a_fine_cut_of_a_long_window_lists_the_tiles_on_its_band() -> None:
    """2**17 blocks of rows by 2**15 blocks of keys; a window of four keys crosses one block of keys or two."""
    blocks = oc.sliding_window(TOKENS, left=3).blocks(8, 32)
    row = np.arange(TOKENS // 8)
    first, last = np.maximum(8 * row - 3, 0) // 32, (8 * row + 7) // 32
    counts = last - first + 1
    assert blocks.row_offsets.tolist() == [0, *np.cumsum(counts).tolist()]
    keys = np.repeat(first, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    assert np.array_equal(blocks.entries[:, 2], 32 * keys)
    assert (blocks.entries[:, 3] == 32).all()
    assert set(blocks.kinds.tolist()) == {PARTIAL}
