"""The cost model of the backward pass: what its launches read and write."""

from __future__ import annotations

from typing import Any

import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_prediction, backward_table
from omnicupy.choose.backward_prediction import PassWork
from omnicupy.choose.ceilings import Device
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid


def _work(mask: Mask, head_dim: int, batch: int = 1, **how: Any) -> PassWork:
    problem = Problem(batch, 4, 2, *mask.shape, head_dim, "bfloat16")
    spec = backward_table.pick("sm_90", "bfloat16", head_dim)
    return backward_prediction.work_of(spec, problem, mask, Device("Fake", 4, 50 << 20), **how)


def test_megabytes_of_the_launches_ahead_and_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.causal(256)
    rows = 4 * 256  # of all query heads
    padded = 4 * -(-(256 + 255) // 64) * 64
    with monkeypatch.context() as patch:
        patch.setattr(backward_grid, "any_order_part", lambda *_: "fused")
        converting = {head_dim: _work(mask, head_dim, deterministic=False) for head_dim in (64, 128)}
    for head_dim, one in converting.items():
        assert one.prepared == pytest.approx(
            (2 * 2 * rows * head_dim + 12 * rows + 4 * head_dim * padded) / 1e6
        )
        assert one.converted == pytest.approx(6 * head_dim * rows / 1e6)
        operands = 2 * (rows + 2 * 256) * 2 * head_dim
        sums = 4 * head_dim * padded  # of dQ, which each addition reads and writes in L2
        assert one.megabytes == pytest.approx((operands + 2 * 2 * 256 * 2 * head_dim + sums) / 1e6)
    finishing, one = _work(mask, 128), converting[128]
    assert (finishing.converted, one.beside) == (0, 0)
    assert finishing.beside == one.converted
    assert finishing.prepared == pytest.approx(one.prepared - 4 * 128 * padded / 1e6)
    assert finishing.megabytes == pytest.approx(one.megabytes + 2 * rows * 128 / 1e6)
    monkeypatch.setattr(backward_grid, "FEW_ADDITIONS", 0)
    background = _work(mask, 128)
    assert background.kernels[0].kernel.finishes == "background"
    assert [background.converted, background.prepared] == [finishing.converted, finishing.prepared]
    assert [background.megabytes, background.beside] == [finishing.megabytes, finishing.beside]
    monkeypatch.setattr(backward_grid.BackwardGrid, "_keeps_up", lambda *_: True)
    alone = _work(mask, 128, batch=8)
    assert alone.kernels[0].kernel.prepares
    assert alone.beside == pytest.approx(8 * (background.beside + background.prepared))
    assert (alone.prepared, alone.megabytes) == (
        0,
        pytest.approx(8 * (background.megabytes + background.prepared)),
    )
    two = _work(mask, 256)
    assert two.converted == 0
    assert two.prepared == pytest.approx((2 * 2 * rows * 256 + 12 * rows) / 1e6)
    assert two.megabytes == pytest.approx((2 * (rows + 512) * 512 + 2 * (512 * 512 + rows * 256)) / 1e6)


def test_copies_of_dead_rows_and_keys_count() -> None:
    plain = _work(oc.full(256), 64).prepared
    rows = oc.ranges([(0, 256, 0, 128)], 256)  # half of the keys have no row
    keys = oc.ranges([(0, 128, 0, 256)], 256)
    copy = 2 * 2 * 128 * 256 / 1e6  # two arrays of a head, read and written
    of_keys, of_rows = (_work(mask, 64).prepared - plain for mask in (rows, keys))
    assert of_keys == pytest.approx(2 * copy)  # two heads of keys
    assert of_rows == pytest.approx(4 * copy)
