"""prepare: all of a first call but its launch, so that the call itself can be captured into a graph."""

from __future__ import annotations

from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray
from fake_device import inputs as _inputs

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.gpu import attention as gpu_attention
from omnicupy.jit.spec import AttnSpec

NAIVE = AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    fake = fake_device.install(monkeypatch)
    fake.streams[0] = fake_device.Stream(7)
    check_masks._full.cache_clear()  # what calls without a mask share, device copies included
    return fake


def _masks() -> dict[str, Any]:
    return {"none": None, "one": oc.causal(300), "each": [oc.causal(300), oc.random(300, 1)]}


@pytest.mark.parametrize("options", [{}, {"scale": 0.25}, {"config": NAIVE}, {"out": True}], ids=str)
@pytest.mark.parametrize("what", ["none", "one", "each"])
def test_the_call_after_it_can_be_captured(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch, what: str, options: dict[str, Any]
) -> None:
    mask, made = _masks()[what], dict(options)
    if "out" in made:
        made["out"] = ndarray(_inputs()[0].shape, BF16)
    assert oc.prepare(*_inputs(), mask, **made) is None
    assert (device.launches, len(device.kernels), len(device.uploads)) == ([], 1, 1)
    device.driver.begin(device.streams[0])
    monkeypatch.setattr(gpu_attention, "new_plan", None)  # nothing is planned
    q, k, v = _inputs()
    if "out" in made:
        made["out"] = ndarray(q.shape, BF16)
    oc.attention(q, k, v, mask, return_lse=True, **made)
    (launched,) = device.launches
    assert launched["params"]["q"] == q.data.ptr
    assert launched["stream"] is device.streams[0]
    assert len(device.uploads) == 1


def test_without_it_the_capture_refuses_the_copy(device: fake_device.Device) -> None:
    device.driver.begin(device.streams[0])
    with pytest.raises(
        oc.UnsupportedError, match="call prepare or attention with these shapes and this mask"
    ):
        oc.attention(*_inputs(), oc.causal(300))


def test_other_shapes_are_another_call(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    oc.prepare(*_inputs(), mask)
    oc.prepare(*_inputs(), mask)
    assert len(device.kernels) == 1
    oc.prepare(*_inputs(heads=8), mask)
    assert (len(device.kernels), len(device.uploads)) == (2, 2)  # other heads, another order of work


def test_the_current_device_stays(device: fake_device.Device) -> None:
    oc.prepare(*_inputs(device=1), oc.causal(300))
    assert device.current == 0
    assert device.launches == []


def test_bad_arguments_are_those_of_attention(device: fake_device.Device) -> None:
    wanted = "mask must have the shape (q tokens, k tokens) = (300, 300), got (299, 299)"
    for call in (
        lambda: oc.prepare(*_inputs(), oc.causal(299)),
        lambda: oc.prepare(*[np.zeros((1, 2, 300, 16), np.float32)] * 3, oc.causal(299)),
    ):
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value).startswith(wanted)
    with pytest.raises(TypeError, match="q must be a CuPy or NumPy array, got list"):
        oc.prepare([1], *_inputs()[1:])


def test_numpy_arrays_are_checked_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from omnicupy import api

    monkeypatch.setattr(api, "cpu_attention", None)
    mask, x = oc.causal(30), np.zeros((1, 2, 30, 16), np.float32)
    assert oc.prepare(x, x, x, mask) is None
    assert not mask._blocks


def test_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import fake_tensor

    x = torch.zeros(1, 2, 30, 16, requires_grad=True)
    assert oc.torch.prepare(x, x, x, oc.causal(30), out=torch.empty(1, 2, 30, 16)) is None
    with pytest.raises(ValueError, match=r"mask must have the shape \(q tokens, k tokens\) = \(30, 30\)"):
        oc.torch.prepare(x, x, x, oc.causal(29))
    with pytest.raises(TypeError, match=r"k must be a torch.Tensor, got list"):
        oc.torch.prepare(x, [], x)
    with pytest.raises(ValueError, match="q must be on a CPU or a CUDA device, got meta"):
        oc.torch.prepare(*[x.to("meta")] * 3)

    fake = fake_tensor.install(monkeypatch)
    shapes, mask = ((2, 4, 300, 64), (2, 2, 300, 64), (2, 2, 300, 64)), oc.causal(300)
    tensors = [fake_tensor.cuda(torch.zeros(shape, dtype=torch.bfloat16)) for shape in shapes]
    assert oc.torch.prepare(*tensors, mask) is None
    assert (fake.launches, fake.empties, len(fake.uploads)) == ([], [], 1)
    assert fake.made[0].used  # the copy was given to torch's stream
    monkeypatch.setattr(gpu_attention, "new_plan", None)
    oc.torch.attention(*tensors, mask)
    assert len(fake.launches) == 1
