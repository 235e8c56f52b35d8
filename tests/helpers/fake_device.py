"""Stands in for CuPy's device side, so that planning and launching run where there is no GPU."""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_driver import RELAXED, Driver, Function
from fake_streams import CurrentStreams, Stream

from omnicupy.choose import pick, table
from omnicupy.gpu import append as gpu_append
from omnicupy.gpu import attention as gpu_attention
from omnicupy.gpu import (
    bindings,
    cached_planning,
    device_blocks,
    plan,
    planning,
    stream_memory,
    streams,
    workspace,
)
from omnicupy.gpu import cached as gpu_cached
from omnicupy.gpu.device import DeviceInfo
from omnicupy.gpu.modules import Kernel
from omnicupy.jit.panels import PANEL
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec

BF16 = np.dtype(ml_dtypes.bfloat16)
addresses = itertools.count(1 << 20, 1 << 20)


class Memory:
    def __init__(self, address: int, device: int) -> None:
        self.ptr, self.device_id = address, device


class ndarray:  # noqa: N801 - check.py knows CuPy's arrays by this name
    """Shape, strides, dtype and address of a device array; no elements."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: int = 0, strides: Any = None) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.strides = strides or np.empty(shape, self.dtype).strides
        self.data = Memory(next(addresses), device)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize

    @property
    def flags(self) -> Any:
        whole = np.empty(self.shape, self.dtype).strides
        pairs = zip(self.shape, self.strides, whole, strict=True)
        return SimpleNamespace(c_contiguous=all(n == 1 or mine == own for n, mine, own in pairs))


ndarray.__module__ = "cupy"


def inputs(batch: int = 2, heads: int = 4, q_len: int = 300, k_len: int = 300, **more: Any) -> list[ndarray]:
    """q, k and v of a call."""
    kv_heads, head_dim, at = more.get("kv_heads", 2), more.get("head_dim", 64), more.get("device", 0)
    return [
        ndarray((batch, heads, q_len, head_dim), BF16, at),
        ndarray((batch, kv_heads, k_len, head_dim), BF16, at),
        ndarray((batch, kv_heads, k_len, head_dim), BF16, at),
    ]


class CUDARuntimeError(RuntimeError):
    """status: CUDA's number of the error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA error {status}")
        self.status = status


class Event:
    """done: what every event of the class answers.  synchronized: those that were waited for."""

    done = False
    made: list[Event] = []  # noqa: RUF012 - reset by the fixture
    synchronized: list[Event] = []  # noqa: RUF012

    def __init__(self, disable_timing: bool = False) -> None:
        assert disable_timing
        self.recorded: Any = None
        Event.made.append(self)

    def record(self, stream: Any) -> None:
        self.recorded = stream

    def synchronize(self) -> None:
        Event.synchronized.append(self)


class Device:
    """The fake of the whole module: current device and streams, and what was launched."""

    def __init__(self) -> None:
        self.current = 0
        self.streams = {0: Stream(), 1: Stream(100)}
        self.launches: list[dict[str, Any]] = []
        self.uploads: list[np.ndarray] = []
        self.switches: list[int] = []
        self.kernels: list[AttnSpec] = []
        self.synchronized: list[int] = []
        self.driver = Driver()
        self.allocating = Allocating(self)

    def set(self, device: int) -> None:
        self.switches.append(device)
        self.current = device

    def kernel(self, spec: AttnSpec, device: int) -> Kernel:
        assert device == self.current
        self.kernels.append(spec)

        def function(grid: Any, block: Any, args: Any, smem: int, stream: Any) -> None:
            (packed,) = args
            assert type(packed) is bytearray, "passed by its address, and nobody else's"
            (params,) = np.frombuffer(bytes(packed), PARAMS[spec.params])
            launch = {"grid": grid, "block": block, "smem": smem, "stream": stream, "device": self.current}
            self.launches.append(launch | {"params": params, "argument": packed, "spec": spec})

        return Kernel(None, Function(function))


class Allocating:
    """What workspace.py uses of CuPy: buffers full of ones; `waited`: the streams that it waited for, in turn.

    Its module says nothing of the current stream: waiting for it would be waiting for a user's work.
    nbytes: of the buffers that live.
    """

    def __init__(self, fake: Device) -> None:
        self.made = 0
        self.buffers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by address
        self.waited: list[Any] = []
        allocating = self

        class Own(Stream):
            def __init__(self, *, non_blocking: bool) -> None:
                assert non_blocking
                super().__init__(next(addresses), fake.current)

            def synchronize(self) -> None:
                assert fake.driver.mode == RELAXED, "a wait that a capture forbids"
                allocating.waited.append(self)

        self.fake, self.own = fake, Own
        self.cuda = SimpleNamespace(Stream=Own, runtime=SimpleNamespace(getDevice=lambda: fake.current))

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def empty(self, size: int, dtype: Any) -> Any:
        assert isinstance(self.fake.streams[self.fake.current], self.own)
        assert self.fake.driver.mode == RELAXED, "an allocation that a capture forbids"
        buffer = np.ones(size, dtype).view(_Buffer)
        buffer.address = next(addresses)
        for _ in range(size >> 20):
            next(addresses)
        self.made += 1
        self.buffers[buffer.address] = buffer
        return buffer


class _Buffer(np.ndarray):
    address: int

    @property
    def data(self) -> Any:
        def memset_async(value: int, size: int, stream: Any) -> None:
            self.view(np.ndarray)[:size] = value

        return SimpleNamespace(ptr=self.address, memset_async=memset_async)


def _tensor_map(
    pointer: int, shape: Any, strides: Any, dtype: str, box: tuple[int, int], width: int = PANEL
) -> bytes:
    """Tells what it was made of, in the 128 bytes of a map."""
    assert len(shape) == len(strides) == 4
    return np.array([pointer, *shape, *strides, *box] + [0] * 4 + [width], np.int64).tobytes()


def _packed_map(
    pointer: int, shape: Any, strides: Any, dtype: str, group: int, box: tuple[int, int]
) -> bytes:
    """The same of a packed map, with the heads of a group behind the box."""
    assert len(shape) == len(strides) == 4
    return np.array([pointer, *shape, *strides, *box, group] + [0] * 4, np.int64).tobytes()


def _cupy(fake: Device) -> Any:
    """What omnicupy.gpu uses of CuPy, over the fake."""

    class Current:
        def __init__(self, device: int) -> None:
            self.device = device

        def __enter__(self) -> Current:
            self.before, fake.current = fake.current, self.device
            return self

        def __exit__(self, *_: object) -> None:
            fake.current = self.before

        def synchronize(self) -> None:
            fake.synchronized.append(self.device)

    def asarray(host: np.ndarray) -> ndarray:
        fake.uploads.append(host)
        return ndarray(host.shape, host.dtype, fake.current)

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDevice=lambda: fake.current, setDevice=fake.set
    )
    cuda = SimpleNamespace(
        Device=Current,
        Event=Event,
        Stream=SimpleNamespace(from_external=lambda owner: Stream(owner.__cuda_stream__()[1], fake.current)),
        get_current_stream=lambda device=-1: fake.streams[fake.current if device == -1 else device],
        runtime=runtime,
    )
    return SimpleNamespace(
        asarray=asarray,
        cuda=cuda,
        ndarray=lambda shape, dtype: ndarray(shape, dtype, fake.current),
        empty=lambda size, dtype: ndarray((size,), np.dtype(dtype), fake.current),
    )


def install(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Replace what omnicupy.gpu uses of CuPy. Two devices: an H100 and a small older one."""
    fake = Device()
    infos = {0: DeviceInfo(9, 0, 132, 50 << 20), 1: DeviceInfo(8, 6, 20, 4 << 20)}
    cupy = _cupy(fake)
    Event.done, Event.made, Event.synchronized = False, [], []
    Stream.current = CurrentStreams(fake, fake.streams)
    for module in (gpu_attention, gpu_cached, gpu_append, device_blocks, streams, stream_memory):
        monkeypatch.setattr(module, "cupy", cupy)
    monkeypatch.setattr(bindings, "driver", lambda: fake.driver)
    monkeypatch.setattr(workspace, "cupy", fake.allocating)
    monkeypatch.setattr(workspace, "_own_streams", {})
    for name in ("_pools", "_of_stream", "_captures"):
        monkeypatch.setattr(stream_memory, name, {})
    monkeypatch.setattr(device_blocks, "_waiting", [])
    monkeypatch.setattr(streams, "_runtime", cupy.cuda.runtime)
    for module in (gpu_attention, gpu_cached):
        monkeypatch.setattr(module, "_current_stream", cupy.cuda.get_current_stream)
    monkeypatch.setattr(plan, "tensor_map", _tensor_map)
    monkeypatch.setattr(plan, "packed_map", _packed_map)
    for module in (planning, cached_planning, gpu_append):
        monkeypatch.setattr(module, "device_info", infos.__getitem__)
        monkeypatch.setattr(module, "kernel", fake.kernel)
    monkeypatch.setattr(gpu_cached, "_plans", {})
    monkeypatch.setattr(gpu_append, "_plans", {})
    monkeypatch.setattr(gpu_attention, "_unmasked", {})
    monkeypatch.setattr(pick, "SERVED", frozenset(row.kernel for row in table.TABLE))
    return fake
