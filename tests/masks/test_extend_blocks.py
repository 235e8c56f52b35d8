"""Mask.extend: what is appended is cut into the tiles of the mask built whole, causal ones among them."""

from __future__ import annotations

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.masks.block_mask import CAUSAL


@pytest.mark.parametrize("q_len", [256, 320, 512])
def test_causal_tiles_stay_causal(q_len: int) -> None:
    """Rows that begin anywhere among the keys: the diagonal is not the first key's."""
    whole = oc.causal(q_len, 512)
    grown = whole.rows(0, 128, 512).extend(whole.rows(128, q_len))
    assert grown == whole
    assert grown.diagonal == whole.diagonal == 512 - q_len
    of_whole, of_grown = (mask.blocks(64, 64).kinds for mask in (whole, grown))
    assert (of_whole == CAUSAL).sum() >= q_len // 64
    assert np.array_equal(of_grown, of_whole)
