"""Gradients in any order on a device where a kernel makes dQ of sums in the background: right, and they end."""

from __future__ import annotations

from typing import Any

import pytest
from busy_gpu import HalfHeld
from gradients_gpu import Gradients, config_of, field_of, launches_of, poison_work_memory

import omnicupy as oc
from omnicupy.schedule import backward_grid

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")
NEAR = 1e-3  # of the norm: another order, rounded to float16


def _mask() -> Any:
    return oc.random(1500, 1, text=(20, 90), image=(60, 400))


def _holes() -> Any:
    """Rows that see no key, a whole tile of them, too."""
    return oc.ranges([(30, 650, 0, 800), (800, 1460, 410, 1490)], 1500, 1500)


def _ticketed(mask: Any) -> list[Any]:
    return [one for one in launches_of(mask) if one.kernel.part == "fused" and one.kernel.finishes]


def _check_again(call: Gradients, made: Any) -> None:
    """Over poisoned memory: near what was made before."""
    poison_work_memory(cp, call.mask)
    again = call.run(out_grads=call.targets(), deterministic=False)
    for one, other in zip(again, made, strict=True):
        assert float(cp.linalg.norm((one - other).astype(cp.float32))) < NEAR * float(
            cp.linalg.norm(other.astype(cp.float32))
        )


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize(("head_dim", "kv_heads"), [(128, 2), (128, 8), (96, 8), (80, 8)])
def test_gradients_are_right_over_poisoned_memory(
    head_dim: int, kv_heads: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config_of(cp, "sm90", head_dim) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    monkeypatch.setattr(backward_grid, "FEW_ADDITIONS", 0)
    with cp.cuda.Stream(non_blocking=True):
        call = Gradients(
            cp, [_mask(), _holes()] if masks == 2 else _holes(), (2, 8, 1500, head_dim), kv_heads
        )
        made = call.run(deterministic=False)
        assert len(_ticketed(call.mask)) == 1
        call.check(made)
        for _ in range(30):
            _check_again(call, made)


@pytest.mark.parametrize(("batch", "kv_heads"), [(8, 16), (24, 4)])
def test_one_launch_makes_all(batch: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the warp that makes lse2 and delta does not keep up."""
    if config_of(cp, "sm90", 128) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    monkeypatch.setattr(backward_grid.BackwardGrid, "_keeps_up", lambda *_: True)
    with cp.cuda.Stream(non_blocking=True):
        call = Gradients(cp, _mask(), (batch, 16, 1500, 128), kv_heads)
        made = call.run(deterministic=False)
        (launch,) = launches_of(call.mask)
        assert launch.kernel.prepares
        assert field_of(launch, "early_heads") > 0
        call.check(made)
        for _ in range(30):
            _check_again(call, made)


def test_parts_of_a_cut_block_of_keys_are_merged() -> None:
    if config_of(cp, "sm90", 128) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    mask = oc.sliding_window(8192, left=600) | oc.ranges([(0, 8192, 0, 4)], 8192)  # all see the first keys
    call = Gradients(cp, mask, (1, 8, 8192, 128), 2)
    made = call.run(deterministic=False)
    (launch,) = _ticketed(call.mask)
    assert launch.blocks.sizes.n_split_rows == 1
    call.check(made)
    for _ in range(10):
        _check_again(call, made)


def test_it_ends_where_half_of_the_device_is_held() -> None:
    if config_of(cp, "sm90", 128) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    other, hold = cp.cuda.Stream(non_blocking=True), HalfHeld(cp)
    with cp.cuda.Stream(non_blocking=True):
        call = Gradients(cp, _mask(), (8, 16, 1500, 128))
        made = call.run(deterministic=False)
        cp.cuda.Device().synchronize()
        for _ in range(4):
            with other:
                hold()
            _check_again(call, made)
    assert int(hold.ended) > 0
