"""Gradients of CUDA tensors, on a fake device: addresses, streams, devices, allocations, what is handed to the GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("cupy", reason="CuPy is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.gpu import streams  # noqa: E402
from omnicupy.torch import backward  # noqa: E402

BF16 = torch.bfloat16


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake_tensor's device; `backwards` holds what the GPU's backward pass was asked for."""
    import cupy

    fake = fake_tensor.install(monkeypatch)
    fake.backwards = []

    def record(**given: Any) -> None:
        fake.backwards.append(given | {"device": fake.current, "stream": fake.streams[fake.current].ptr})

    gpu = SimpleNamespace(
        attention_backward=record,
        prepare_backward=lambda *arrays, **given: fake.backwards.append(given | {"arrays": arrays}),
        external_stream=streams.external_stream,
        on_device=streams.on_device,
        cupy=cupy,
    )
    monkeypatch.setattr(backward, "_gpu", gpu)
    return fake


def _tensors(index: int = 0) -> dict[str, Any]:
    """dout, q, k, v, out and lse; q, k and v as views of (batch, tokens, heads, head_dim) tensors."""
    shapes = {"q": (2, 300, 4, 64), "k": (2, 300, 2, 64), "v": (2, 300, 2, 64), "out": (2, 300, 4, 64)}
    made = {
        name: cuda(torch.zeros(shape, dtype=BF16).transpose(1, 2), index) for name, shape in shapes.items()
    }
    dout = cuda(torch.zeros((), dtype=BF16).expand(2, 4, 300, 64), index)  # as out.sum().backward() makes it
    return made | {"dout": dout, "lse": cuda(torch.zeros(2, 4, 300), index)}


def _gradients(
    given: dict[str, Any], wanted: Any = (True, True, True), dlse: Any = None, **options: Any
) -> Any:
    saved = tuple(given[name] for name in ("q", "k", "v", "out", "lse"))
    how = {"mask": None, "scale": None, "deterministic": True} | options
    return backward.gradients(
        (given["dout"], dlse), saved, how["mask"], how["scale"], wanted, how["deterministic"]
    )


def test_the_gpu_gets_the_tensors_own_memory(device: Any) -> None:
    given, mask = _tensors(), oc.causal(300)
    dlse = cuda(torch.zeros(2, 4, 300))
    made = _gradients(given, mask=mask, scale=0.5, deterministic=False, dlse=dlse)
    (call,) = device.backwards
    for name, tensor in (given | {"dlse": dlse}).items():
        array = call[name]
        assert (array.data.ptr, array.shape) == (tensor.data_ptr(), tuple(tensor.shape)), name
        assert array.strides == tuple(array.dtype.itemsize * stride for stride in tensor.stride()), name
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch."), name
    assert (call["mask"], call["scale"], call["deterministic"], call["config"]) == (mask, 0.5, False, None)
    assert call["wanted"] == ("q", "k", "v")
    assert [array.data.ptr for array in call["out_grads"]] == [x.data_ptr() for x in made]
    assert [(tuple(x.shape), x.dtype) for x in made] == [(tuple(given[name].shape), BF16) for name in "qkv"]
    assert len(device.empties) == 3


def test_only_what_is_wanted_is_allocated(device: Any) -> None:
    dq, dk, dv = _gradients(_tensors(), (False, True, False))
    assert dq is dv is None
    (call,) = device.backwards
    assert call["wanted"] == ("k",)
    assert call["out_grads"][1].data.ptr == dk.data_ptr()
    assert call["out_grads"][0] is call["out_grads"][2] is None
    assert len(device.empties) == 1


def test_it_runs_on_the_stream_and_the_device_of_the_calling_thread(device: Any) -> None:
    _gradients(_tensors())
    device.torch_streams[0] = 8
    _gradients(_tensors())
    _gradients(_tensors(1))
    assert [(call["device"], call["stream"]) for call in device.backwards] == [(0, 7), (0, 8), (1, 9)]
    assert device.current == 0


def test_memory_that_is_none_is_named(device: Any) -> None:
    given = _tensors()
    given["dout"].address = 0
    with pytest.raises(oc.UnsupportedError, match=r"^dout holds no memory of its own"):
        _gradients(given)
    given = _tensors()
    given["out"] = _tensors(1)["out"]
    with pytest.raises(ValueError, match=r"^out must be on the device of q \(cuda:0\), got cuda:1"):
        _gradients(given)
    assert device.backwards == []


def test_prepare_prepares_the_gradients_as_well(device: Any) -> None:
    given, mask = _tensors(), oc.causal(300)
    inputs = [given[name] for name in "qkv"]
    oc.torch.prepare(*inputs, mask, scale=0.5)
    assert device.backwards == []
    oc.torch.prepare(*inputs, mask, scale=0.5, gradients=True)
    (call,) = device.backwards
    *arrays, last = call["arrays"]
    assert [array.data.ptr for array in arrays] == [x.data_ptr() for x in inputs]
    assert (last, call["scale"], call["config"]) == (mask, 0.5, None)
