"""The stand-in device of fake_device.py, for gradients too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray
from fake_driver import Function

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.choose import backward_table
from omnicupy.gpu import attention as gpu_attention
from omnicupy.gpu import backward, backward_plan, backward_planning, planning


def install(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    """fake_device.install, and the same in the place of what the backward pass uses. Up to head_dim 64 calls get two
    kernels by default, as wide heads do: these tests are about both ways.

    copied: what was made compact.  zeroed: address, bytes, stream and launches before each.  scratch: the memory
    that launches outside of captures brought, the last one last.
    """
    fake = fake_device.install(monkeypatch)
    fake.copied = []  # type: ignore[attr-defined]

    def ascontiguousarray(array: ndarray) -> ndarray:
        made = ndarray(array.shape, array.dtype, fake.current)
        fake.copied.append((array, made))  # type: ignore[attr-defined]
        return made

    def made(shape: Any, dtype: Any) -> ndarray:
        array = ndarray(shape, dtype, fake.current)
        for _ in range(array.nbytes >> 20):
            next(fake_device.addresses)
        if array.dtype == np.uint8:
            fake.scratch.append(array)  # type: ignore[attr-defined]
        return array

    rows = backward_table.TABLE
    narrow = tuple(replace(row, ordered=None) if row.head_dims[1] <= 64 else row for row in rows)
    monkeypatch.setattr(backward_table, "TABLE", narrow)
    fake.scratch = []  # type: ignore[attr-defined]
    cupy = gpu_attention.cupy
    cupy.ndarray = made
    cupy.ascontiguousarray = ascontiguousarray
    monkeypatch.setattr(backward, "cupy", cupy)
    monkeypatch.setattr(backward, "_unmasked", {})
    monkeypatch.setattr(backward_plan, "tensor_map", fake_device._tensor_map)
    monkeypatch.setattr(backward_planning, "device_info", planning.device_info)
    monkeypatch.setattr(backward_planning, "kernel", fake.kernel)
    for name, word in (("launcher_behind", "early"), ("together", "together")):
        launcher = partial(_With, fake, word)
        monkeypatch.setattr(backward_planning, name, lambda found, made=launcher: made(found.function))
    monkeypatch.setattr(backward_plan, "cupy", cupy)
    monkeypatch.setattr(backward_plan, "OWN_BYTES", 0)  # small calls bring their work memory as large ones do
    fake.zeroed = []  # type: ignore[attr-defined]

    def memset(address: int, value: int, size: int, stream: int) -> None:
        assert value == 0
        fake.zeroed.append((address, size, stream, len(fake.launches)))  # type: ignore[attr-defined]

    cupy.cuda.runtime.memsetAsync = memset
    return fake


class _With(Function):
    """Launches with an attribute: "early", what may come up while the kernel ahead runs, or "together"."""

    def __init__(self, fake: fake_device.Device, attribute: str, function: Any) -> None:
        self.fake, self.attribute, self.function = fake, attribute, function

    def __call__(self, *arguments: Any) -> None:
        self.function(*arguments)
        self.fake.launches[-1][self.attribute] = True


class Call:
    """The arrays of a backward pass. more: as fake_device.inputs takes it."""

    def __init__(self, **more: Any) -> None:
        self.q, self.k, self.v = fake_device.inputs(**more)
        at = more.get("device", 0)
        self.dout, self.out = (ndarray(self.q.shape, BF16, at) for _ in range(2))
        self.lse = ndarray(self.q.shape[:3], np.float32, at)

    @property
    def arrays(self) -> tuple[ndarray, ...]:
        """In the order of attention_backward."""
        return self.dout, self.q, self.k, self.v, self.out, self.lse

    def dlse(self, strides: Any = None) -> ndarray:
        return ndarray(self.lse.shape, np.float32, self.lse.data.device_id, strides)

    def targets(self) -> tuple[ndarray, ndarray, ndarray]:
        """For out_grads."""
        dq, dk, dv = (ndarray(x.shape, x.dtype, x.data.device_id) for x in (self.q, self.k, self.v))
        return dq, dk, dv


def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    """`install` with a stream of its own, and nothing left of masks that calls without one share."""
    check_masks._full.cache_clear()
    fake = install(monkeypatch)
    fake.streams[0] = fake_device.Stream(7)
    return fake


def run(call: Call, mask: Any = None, **options: Any) -> Any:
    """The gradients of a call."""
    return oc.attention_backward(*call.arrays, mask, **options)


def with_strides(array: ndarray, *strides: int) -> ndarray:
    """The array, its strides replaced; None keeps one."""
    array.strides = tuple(
        own if new is None else new for own, new in zip(array.strides, strides, strict=True)
    )
    return array


def parts(launches: list[dict[str, Any]]) -> list[str]:
    """Which kernels were launched, in turn."""
    return [launched["spec"].part for launched in launches]


def map_of(launched: dict[str, Any], name: str) -> dict[str, Any]:
    """What a fake tensor map says that it was made of."""
    words = [int(word) for word in launched["params"][name].astype(np.int64)]
    return {"pointer": words[0], "shape": words[1:5], "strides": words[5:9], "box": words[9:11]}
