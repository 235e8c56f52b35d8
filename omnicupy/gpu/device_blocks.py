"""Device copies of block masks: made once per (device, tile size), kept on the mask, freed with it.

CuPy's memory pool hands a freed block to the next allocation on the stream that allocated it, without waiting
for other streams. So a copy remembers which other streams read it, and its allocating stream waits for them
before the memory goes back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cupy

from omnicupy.errors import UnsupportedError
from omnicupy.gpu.streams import (
    LEGACY_STREAM,
    PER_THREAD_STREAM,
    foreign_stream,
    identity,
    is_capturing,
    wait_for,
)
from omnicupy.schedule.block_lists import BlockLists

MAX_USERS = 32  # foreign streams remembered before they are joined early


class DeviceBlocks:
    """BlockLists block masks on one device. Made on the device's current stream; the copy is asynchronous.

    lists: sizes and offsets (its host buffer is dropped).  pointers: device address of each array.
    Raises UnsupportedError while the stream is captured into a graph: the copy would become part of the
    graph.
    """

    def __init__(self, lists: BlockLists, device: int) -> None:
        self.device = device
        self._users: dict[int, Any] = {}
        self.home = cupy.cuda.get_current_stream(device)
        if is_capturing(self.home):
            raise UnsupportedError(
                "mask: its block lists are not on the device yet and cannot be copied while the stream is "
                "captured; call prepare or attention with these shapes and this mask before the capture"
            )
        # asarray stages through CuPy's pinned pool, which keeps the staging memory until the copy is done.
        self._buffer = cupy.asarray(lists.buffer)
        self._uploaded = cupy.cuda.Event(disable_timing=True)
        self._uploaded.record(self.home)
        self._arrived = False
        self._home = identity(self.home)
        self.sizes = lists.without_buffer()
        self.pointers = {name: self._buffer.data.ptr + offset for name, offset in lists.offsets.items()}

    @property
    def nbytes(self) -> int:
        """Device memory of the copy, in bytes."""
        return int(self._buffer.nbytes)

    def use(self, stream: Any) -> None:
        """Order `stream` (of this device) after the copy, and the copy's end after the work of `stream`."""
        handle = stream.ptr
        if handle == self._home:
            return
        if handle == PER_THREAD_STREAM and (handle := identity(stream)) == self._home:
            return
        if not self._arrived:
            # A capture forbids both calls below, and its graph is launched later, after the copy was given.
            if is_capturing(stream):
                pass
            elif self._uploaded.done:
                self._arrived = True
            else:
                stream.wait_event(self._uploaded)
        if handle not in self._users:
            if len(self._users) >= MAX_USERS:
                self.join()
            self._users[handle] = stream  # kept: a destroyed stream could not be waited for

    def join(self) -> None:
        """Make the allocating stream wait for the work of every other stream that used the copy."""
        users, self._users = self._users, {}
        goal = self.home
        through_legacy = any(handle < 0 for handle in (self._home, *users))
        if through_legacy:
            # Another thread's stream cannot be named from here; the legacy stream is ordered with them all.
            goal = foreign_stream(LEGACY_STREAM)
        for handle, stream in users.items():
            if handle >= 0:
                wait_for(goal, stream)
        if through_legacy and self._home >= 0:
            wait_for(self.home, goal)
        elif through_legacy:
            cupy.cuda.Event(disable_timing=True).record(goal)  # what the home thread does next comes after it

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At exit this module's names may be gone already, and the driver frees all memory anyway.
        if is_finalizing() or not getattr(self, "_users", None):
            return
        with suppress(cupy.cuda.runtime.CUDARuntimeError), cupy.cuda.Device(self.device) as device:
            try:
                self.join()
            except cupy.cuda.runtime.CUDARuntimeError:  # a stream that its owner destroyed meanwhile
                device.synchronize()
