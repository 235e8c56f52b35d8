"""CUDA streams: their numbers, their order, and those that another library owns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import cupy

from omnicupy.gpu import bindings

MAX_EXTERNAL = 256  # streams of other libraries that are kept
LEGACY_STREAM = 1  # cudaStreamLegacy: ordered with every thread's per-thread stream; 0 names it, too
PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, another stream in each thread
# cudaErrorStreamCaptureImplicit: a blocking stream is captured, which makes the legacy stream unusable.
CAPTURE_IMPLICIT = 906
_T = TypeVar("_T")

_runtime = cupy.cuda.runtime
_external: dict[tuple[int, int], Any] = {}  # (device, handle) -> stream, which knows no more than its handle


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
        found = _external[device, handle] = on_device(device, foreign_stream, handle)
    return found


class using:  # noqa: N801 - reads as a statement
    """Makes `stream`, of the current device, CuPy's current one in this thread, and at the end the one that was.

    CuPy's own `with stream:` ends otherwise: with the stream of the with statement around it, so that it forgets what
    stream.use() chose. A stream that is current already, by its handle, costs no change. None changes nothing. For one
    with statement at a time.
    """

    __slots__ = ("_before", "_device", "_stream")

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._before: Any = None  # where another one was current
        self._device = -1

    def __enter__(self) -> Any:
        stream = self._stream
        if stream is not None:
            self._device = _runtime.getDevice()
            before = cupy.cuda.get_current_stream(self._device)
            if before.ptr != stream.ptr:
                stream.use()
                self._before = before
        return stream

    def __exit__(self, *_: object) -> None:
        before, self._before = self._before, None
        if before is not None:
            on_device(self._device, before.use)


def number_of(device: int, stream: Any) -> int:
    """The number of a stream of `device`, which no other stream of this process ever has.

    A handle does for none of this: a new stream may get that of a destroyed one, whose work still runs, and the
    per-thread stream has one handle in all threads. Below zero for the legacy stream, which has no number of its own
    while a blocking stream is captured. A stream that is captured itself has none that can be asked for.
    """
    handle = stream.ptr
    if handle <= LEGACY_STREAM:
        return -1 - device
    status, number = bindings.driver().cuStreamGetId(handle)
    if status:  # maybe for the sake of a capture elsewhere
        with allowing_unsafe_calls():
            status, number = bindings.driver().cuStreamGetId(handle)
        bindings.check(status)
    return number  # type: ignore[no-any-return]


def key_in_capture(stream: Any) -> int:
    """What tells a stream from others of the same capture, which none of them can leave before it ends."""
    handle = int(stream.ptr)
    return -threading.get_ident() if handle == PER_THREAD_STREAM else handle


def is_capturing(stream: Any) -> bool:
    """True while `stream` is captured into a graph; the legacy stream never is."""
    return bool(stream.ptr > LEGACY_STREAM and stream.is_capturing())


def is_unusable(stream: Any) -> bool:
    """May `stream` not be recorded or made to wait now? So it is while it is captured, where that would become part of
    the graph, and for the legacy stream while a blocking stream is captured.
    """
    try:
        return bool(stream.is_capturing())
    except _runtime.CUDARuntimeError as error:
        # Another error is that of a stream that its owner destroyed: whoever uses it finds out.
        return bool(error.status == CAPTURE_IMPLICIT)
    except RuntimeError:  # a capture that failed and has not ended yet
        return True


@contextmanager
def allowing_unsafe_calls() -> Iterator[None]:
    """Lets this thread allocate, query and wait while a stream is captured, by this thread or another one.

    The capture sees nothing of it, so it must stand outside of what the graph does (CUDA driver API,
    cuThreadExchangeStreamCaptureMode).
    """
    driver = bindings.driver()
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    status, before = driver.cuThreadExchangeStreamCaptureMode(relaxed)
    bindings.check(status)
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(before)


class _Handle:
    """A stream of somebody else, as CUDA's stream protocol names it."""

    __slots__ = ("_handle",)

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def foreign_stream(handle: int) -> Any:
    """CuPy's stream for the handle of one that somebody else owns, of the current device: later versions of CuPy than
    14 take note of it.
    """
    return cupy.cuda.Stream.from_external(_Handle(handle))


def wait_for(waiter: Any, stream: Any) -> None:
    """Order what `waiter` does next after what `stream` has been given so far."""
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    waiter.wait_event(event)
