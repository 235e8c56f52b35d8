"""What a call takes under tiles that compete, without a schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.choose import prediction
from omnicupy.choose.ceilings import TileCost


def _cost(**numbers: float) -> TileCost:
    known = {"pair_ps": 1e6, "partial_ps": 1e7, "block_us": 1000.0, "launch_us": 7.0}
    return TileCost("sm90", (16, 128), 32, 32, **{**known, **numbers})


def test_the_cost_of_a_mask_counts_tiles_by_kind() -> None:
    blocks = oc.causal(96).blocks(32, 32)  # 3 FULL and 3 CAUSAL tiles
    assert prediction.tile_us(_cost(), [blocks], 1.0) == 7 + 6 * 1024 + 3 * 1000.0
    assert prediction.tile_us(_cost(), [blocks, blocks], 0.5) == 7 + 6 * 1024 + 3 * 1000.0
    blocks = oc.sliding_window(96, left=31).blocks(32, 32)
    assert prediction.tile_us(_cost(), [blocks], 1.0) == 7 + 1024 * (3 + 2 * 10.0) + 3 * 1000.0


def test_no_cut_costs_less_than_the_least() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        mask = oc.random(int(rng.integers(1, 3000)), seed)
        for br, bc in ((64, 64), (128, 128), (192, 96)):
            cost = replace(_cost(), br=br, bc=bc)
            assert prediction.least_tile_us(cost, [mask], 0.3) <= prediction.tile_us(
                cost, [mask.blocks(br, bc)], 0.3
            )
    cost = replace(_cost(), br=128, bc=64)
    exact = prediction.tile_us(cost, [oc.full(256).blocks(128, 64)], 1.0)
    assert prediction.least_tile_us(cost, [oc.full(256)], 1.0) == pytest.approx(exact)
