"""Device copies of block masks: made once per (device, tile size), kept on the mask, freed with it.

CuPy's memory pool hands a freed block to the next allocation on the stream that allocated it, without waiting
for other streams. So a copy remembers which other streams read it, and its allocating stream waits for them
before the memory goes back. A captured graph that reads it keeps it (stream_memory.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from omnicupy.errors import UnsupportedError
from omnicupy.gpu.streams import (
    LEGACY_STREAM,
    PER_THREAD_STREAM,
    allowing_unsafe_calls,
    foreign_stream,
    is_capturing,
    is_unusable,
    number_of,
    wait_for,
)
from omnicupy.schedule.block_lists import SPAN_BYTES, BlockLists

MAX_USERS = 32  # streams remembered before they are joined early

# Device, streams and memory of copies that could not be freed yet.
_waiting: list[tuple[int, list[Any], Any]] = []


class DeviceCopy:
    """A host buffer on one device. Made on the device's current stream; the copy is asynchronous.

    home: the stream that makes it.  users: streams that are ordered after the copy, by their numbers.
    Raises UnsupportedError while the stream is captured into a graph: the copy would become part of the
    graph.
    """

    def __init__(self, buffer: NDArray[np.uint8], device: int) -> None:
        self.device = device
        self.users: dict[int, Any] = {}
        self.home = cupy.cuda.get_current_stream(device)
        if is_capturing(self.home):
            raise UnsupportedError(
                "mask: its block lists are not on the device yet and cannot be copied while the stream is "
                "captured; call prepare or attention with these shapes and this mask before the capture, for gradients "
                "prepare(..., gradients=True) or attention_backward"
            )
        free_waiting()
        # asarray stages through CuPy's pinned pool, which keeps the staging memory until the copy is done. It may
        # allocate while another thread captures.
        with allowing_unsafe_calls():
            self._buffer = cupy.asarray(buffer)
        self._uploaded = cupy.cuda.Event(disable_timing=True)
        self._uploaded.record(self.home)
        self._is_over = False
        self._home_number = number_of(device, self.home)
        self.users[self._home_number] = self.home

    @property
    def address(self) -> int:
        """Of the buffer on the device."""
        return int(self._buffer.data.ptr)

    @property
    def nbytes(self) -> int:
        """Device memory of the copy, in bytes."""
        return int(self._buffer.nbytes)

    def add_user(self, number: int, stream: Any) -> None:
        """Order `stream`, of this device and under no capture, after the copy, and the copy's end after its work."""
        stream.wait_event(self._uploaded)
        if len(self.users) > MAX_USERS and not any(map(is_unusable, self.users.values())):
            _join(list(self.users.values()))
            self.users = {self._home_number: self.home}
        self.users[number] = stream  # kept: a destroyed stream could not be waited for

    def wait_for_copy(self) -> None:
        """Return when the copy is over."""
        if not self._is_over:
            with allowing_unsafe_calls():
                self._uploaded.synchronize()
            self._is_over = True

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At exit this module's names may be gone already, and the driver frees all memory anyway.
        if is_finalizing() or not getattr(self, "users", None):
            return
        kept = (self.device, list(self.users.values()), self._buffer)
        if not _freed(*kept):
            _waiting.append(kept)


class DeviceBlocks(DeviceCopy):
    """Block lists on one device.

    lists: sizes and offsets (its host buffer is dropped).  pointers: device address of each array, of the per-key ones
    of key 0, of which there may be no memory.
    """

    def __init__(self, lists: BlockLists, device: int) -> None:
        super().__init__(lists.buffer, device)
        self.sizes = lists.without_buffer()
        self.pointers = {name: self.address + offset for name, offset in lists.offsets.items()}
        self.pointers["spans"] -= SPAN_BYTES * lists.k_first
        self.pointers["dead"] -= lists.k_first // 8


def free_waiting() -> None:
    """Free copies that died while one of their streams was captured, where that is over."""
    for _ in range(len(_waiting)):
        kept = _waiting.pop(0)
        if not _freed(*kept):
            _waiting.append(kept)


def _freed(device: int, streams: list[Any], memory: Any) -> bool:
    """Make the first of the streams wait for the others, after which `memory` may go back to it.

    False where one of them is captured: the order would become part of the graph.
    """
    if any(map(is_unusable, streams)):
        return False
    if len(streams) > 1:
        with suppress(cupy.cuda.runtime.CUDARuntimeError), cupy.cuda.Device(device) as current:
            try:
                _join(streams)
            except cupy.cuda.runtime.CUDARuntimeError:  # a stream that its owner destroyed meanwhile
                current.synchronize()
    return True


def _join(streams: list[Any]) -> None:
    """Make the first stream wait for the work of the others."""
    home, *others = streams
    goal = home
    through_legacy = any(stream.ptr == PER_THREAD_STREAM for stream in streams)
    if through_legacy:
        # Another thread's stream cannot be named from here; the legacy stream is ordered with them all.
        goal = foreign_stream(LEGACY_STREAM)
    for stream in others:
        if stream.ptr != PER_THREAD_STREAM:
            wait_for(goal, stream)
    if through_legacy and home.ptr != PER_THREAD_STREAM:
        wait_for(home, goal)
    elif through_legacy:
        cupy.cuda.Event(disable_timing=True).record(goal)  # what the home thread does next comes after it
