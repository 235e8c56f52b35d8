"""CUDA streams: their names, their order, and those that another library owns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import cupy

MAX_EXTERNAL = 256  # streams of other libraries that are kept
_T = TypeVar("_T")

_runtime = cupy.cuda.runtime
_external: dict[tuple[int, int], Any] = {}  # (device, handle) -> stream


def on_device(device: int, call: Callable[..., _T], *arguments: Any) -> _T:
    """call(*arguments) while `device` is current."""
    current = _runtime.getDevice()
    if current == device:
        return call(*arguments)
    _runtime.setDevice(device)
    try:
        return call(*arguments)
    finally:
        _runtime.setDevice(current)


def external_stream(device: int, handle: int) -> Any:
    """The CuPy stream for a stream of another library; kept, so that a warm call makes none."""
    found = _external.get((device, handle))
    if found is None:
        if len(_external) >= MAX_EXTERNAL:
            _external.clear()
        found = _external[device, handle] = foreign_stream(handle)
    return found


LEGACY_STREAM = 1  # cudaStreamLegacy: ordered with every thread's per-thread stream
PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, another stream in each thread


def is_capturing(stream: Any) -> bool:
    """True while `stream` is captured into a graph; the default streams, of small handles, never are."""
    return bool(stream.ptr > PER_THREAD_STREAM and stream.is_capturing())


class _Handle:
    """A stream of somebody else, as CUDA's stream protocol names it."""

    __slots__ = ("_handle",)

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def foreign_stream(handle: int) -> Any:
    """CuPy's stream for the handle of one that somebody else owns; of the device that is current where it is used."""
    return cupy.cuda.Stream.from_external(_Handle(handle))


def wait_for(waiter: Any, stream: Any) -> None:
    """Order what `waiter` does next after what `stream` has been given so far."""
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    waiter.wait_event(event)


def identity(stream: Any) -> int:
    """A number for the stream: its handle, or minus the thread's id for the per-thread stream."""
    handle = int(stream.ptr)
    return -threading.get_ident() if handle == PER_THREAD_STREAM else handle
