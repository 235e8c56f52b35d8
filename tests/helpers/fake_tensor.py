"""CUDA tensors for machines without a GPU: what omnicupy.torch reads of them, over fake_device's CuPy."""

from __future__ import annotations

from typing import Any

import fake_device
import pytest
import torch

from omnicupy.gpu import streams
from omnicupy.torch import cached, eager, memory, state


class Cuda(torch.Tensor):
    """A tensor that says it is on a CUDA device; shape, strides and dtype are a CPU tensor's.

    empties: what was made of such tensors, (shape, dtype, device) each.
    """

    empties: list[tuple[Any, ...]] = []  # noqa: RUF012  a new one by `install`

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def get_device(self) -> int:
        return int(self.index)

    def data_ptr(self) -> int:
        return self.address

    def contiguous(self) -> Any:  # type: ignore[override]
        return self if self.is_contiguous() else cuda(super().contiguous(), self.index)

    def new_empty(self, shape: Any, *, dtype: torch.dtype | None = None) -> Any:
        made = cuda(torch.empty(tuple(shape), dtype=dtype or self.dtype), self.index)
        self.empties.append((tuple(shape), made.dtype, made.device))
        return made


def cuda(like: torch.Tensor, index: int = 0) -> Any:
    """`like` as if it were on CUDA device `index`, at an address of its own."""
    tensor = like.as_subclass(Cuda)
    tensor.index, tensor.address = index, next(fake_device.addresses)  # type: ignore[attr-defined]
    return tensor


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake_device's fake; `fake.torch_streams` holds the handle of torch's current stream of each device."""
    fake: Any = fake_device.install(monkeypatch)
    fake.torch_streams = {0: 7, 1: 9}
    made: list[fake_device.Stream] = []
    fake.made = made
    fake.empties = []
    monkeypatch.setattr(Cuda, "empties", fake.empties)

    def external(handle: int) -> fake_device.Stream:
        made.append(fake_device.Stream(handle, fake.current))
        return made[-1]

    def empty_like(like: Any, *, memory_format: torch.memory_format) -> Any:
        assert memory_format is torch.contiguous_format
        return like.new_empty(like.shape)

    on_host = torch.empty

    def empty(*shape: Any, device: Any = None, **options: Any) -> Any:
        if device is None or device.type == "cpu":
            return on_host(*shape, device=device, **options)
        tensor = cuda(on_host(*shape, **options), device.index)
        fake.empties.append((tuple(tensor.shape), tensor.dtype, tensor.device))
        return tensor

    def new(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Any:
        assert type(shape) is type(strides) is tuple  # torch's own looks no further
        tensor = cuda(torch.empty_strided(shape, strides, dtype=dtype), fake.current)
        fake.empties.append((shape, dtype, tensor.device))
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(memory, "_empty_strided", new)
    monkeypatch.setattr(streams, "_external", {})
    monkeypatch.setattr(streams, "foreign_stream", external)
    monkeypatch.setattr(eager, "_gpu", None)
    monkeypatch.setattr(cached, "_gpu", None)
    monkeypatch.setattr(state, "PLAIN", (Cuda,))
    monkeypatch.setattr(eager, "raw_stream", lambda index: fake.torch_streams[index])
    monkeypatch.setattr(torch, "empty_like", empty_like)
    return fake
