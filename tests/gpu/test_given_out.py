"""A given `out`: its strides reach the kernel, decide the plan, and nothing of it lies in an input."""

from __future__ import annotations

import fake_device
import pytest
from fake_device import BF16, ndarray
from fake_device import inputs as _inputs

import omnicupy as oc

SHAPE = (2, 4, 300, 64)
CONTIGUOUS = (4 * 300 * 128, 300 * 128, 128, 2)
LAYOUTS = [CONTIGUOUS, (300 * 512, 128, 512, 2), (4 * 300 * 256, 300 * 256, 256, 2)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _out(strides: tuple[int, ...]) -> ndarray:
    return ndarray(SHAPE, BF16, strides=strides)


def test_its_strides_reach_the_kernel_and_decide_the_plan(device: fake_device.Device) -> None:
    """The first call of each layout, and a warm one after the others."""
    mask, arrays = oc.causal(300), _inputs()
    for strides in (*LAYOUTS, *LAYOUTS):
        oc.attention(*arrays, mask, out=_out(strides))
        assert list(device.launches[-1]["params"]["out_strides"]) == [stride // 2 for stride in strides[:3]]
    assert len(device.kernels) == len(LAYOUTS)


def _reach(array: ndarray) -> tuple[int, int]:
    """The first byte of the array and the one after its last."""
    steps = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    first = array.data.ptr + sum(step for step in steps if step < 0)
    return first, array.data.ptr + sum(step for step in steps if step > 0) + 2


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_warm_call_refuses_an_out_that_meets_an_input(
    device: fake_device.Device, which: int, backward: bool, side: str
) -> None:
    """Also where the input runs backward in memory, below its address."""
    mask, arrays, out = oc.causal(300), _inputs(), _out(CONTIGUOUS)
    for array in arrays:
        array.data.ptr <<= 8  # far apart
        if backward:
            array.strides = (array.strides[0], -array.strides[1], -array.strides[2], 2)
    oc.attention(*arrays, mask, out=out)
    first, stop = _reach(arrays[which])
    size = _reach(out)[1] - out.data.ptr
    out.data.ptr = {"before": first - size + 16, "after": stop - 16}[side]
    with pytest.raises(ValueError, match=f"out must not overlap {'qkv'[which]}"):
        oc.attention(*arrays, mask, out=out)
    out.data.ptr += {"before": -16, "after": 16}[side]
    oc.attention(*arrays, mask, out=out)
    assert len(device.launches) == 2
    assert len(device.kernels) == 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_out_that_runs_backward_is_refused_where_it_meets_an_input(
    device: fake_device.Device, which: int
) -> None:
    mask, arrays = oc.causal(300), _inputs()
    out = _out((CONTIGUOUS[0], -CONTIGUOUS[1], -CONTIGUOUS[2], 2))
    for array in (*arrays, out):
        array.data.ptr <<= 8
    oc.attention(*arrays, mask, out=out)
    out.data.ptr += _reach(arrays[which])[1] - 16 - _reach(out)[0]
    assert out.data.ptr > _reach(arrays[which])[1]
    with pytest.raises(ValueError, match=f"out must not overlap {'qkv'[which]}"):
        oc.attention(*arrays, mask, out=out)
