"""Gradients on a device where a kernel makes dQ of sums in the background: right, and always the same bits."""

from __future__ import annotations

from typing import Any

import pytest
from gradients_gpu import Gradients, bits, config_of, field_of, launches_of, poison_work_memory

import omnicupy as oc
from omnicupy.schedule import backward_grid

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")


def _mask() -> Any:
    return oc.random(1500, 1, text=(20, 90), image=(60, 400))


def _holes() -> Any:
    """Rows that see no key, a whole tile of them, too."""
    return oc.ranges([(30, 650, 0, 800), (800, 1460, 410, 1490)], 1500, 1500)


def _ways(mask: Any) -> list[str]:
    """How the kernels that were planned make dQ of sums."""
    return [launch.kernel.finishes for launch in _ordered(mask)]


def _ordered(mask: Any) -> list[Any]:
    return [launch for launch in launches_of(mask) if launch.kernel.part == "ordered"]


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize(("head_dim", "kv_heads"), [(128, 2), (128, 8), (96, 8), (80, 8)])
def test_the_bits_are_those_of_sums_that_are_converted(
    head_dim: int, kv_heads: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config_of(cp, "sm90", head_dim) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    monkeypatch.setattr(backward_grid, "FEW_ADDITIONS", 0)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        found = []
        for most, way in ((0, ""), (1 << 20, "background")):
            monkeypatch.setattr(backward_grid, "MANY_ADDITIONS", most)
            call = Gradients(
                cp, [_mask(), _holes()] if masks == 2 else _holes(), (2, 8, 1500, head_dim), kv_heads
            )
            made = call.run()
            assert _ways(call.mask) == [way]
            found.append(bits(cp, made))
        call.check(made)
        assert found[0] == found[1]
        for _ in range(30):
            poison_work_memory(cp, call.mask)
            assert bits(cp, call.run(out_grads=call.targets())) == found[1]


@pytest.mark.parametrize(("batch", "kv_heads"), [(8, 16), (24, 4)])
def test_heads_come_before_the_tiers_of_others(batch: int, kv_heads: int) -> None:
    if config_of(cp, "sm90", 128) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        call = Gradients(cp, _mask(), (batch, 16, 1500, 128), kv_heads)
        made = call.run()
        assert _ways(call.mask) == ["background"]
        assert field_of(_ordered(call.mask)[0], "early_heads") > 0
        call.check(made)
        first = bits(cp, made)
        for _ in range(30):
            poison_work_memory(cp, call.mask)
            assert bits(cp, call.run(out_grads=call.targets())) == first
