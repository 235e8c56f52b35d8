"""Whose memory a launch uses beside its arrays: that of its stream, or that of its stream in the capture at hand.

Launches of one stream run one after another, and so do those that one capture takes from one stream; a graph's launches
run beside anything. So no two of (stream, capture) ever have work counters or a workspace in common. A stream is known
by a number that never comes again, and what a capture uses is its own until every graph made of it has ended: counters,
workspaces, and the block lists that its kernels read. (Two executable graphs of one capture have these in common, as
they have their outputs: they are for one after the other.)
"""

from __future__ import annotations

import threading
from typing import Any

import cupy
import numpy as np

from omnicupy.gpu import bindings
from omnicupy.gpu.device_blocks import DeviceCopy
from omnicupy.gpu.graph_end import GraphEnd
from omnicupy.gpu.streams import (
    LEGACY_STREAM,
    allowing_unsafe_calls,
    is_unusable,
    key_in_capture,
    number_of,
    using,
)
from omnicupy.gpu.workspace import Need, Pool, Workspace, zeroed

MAX_STREAMS = 32  # of a device; another one takes over what the one that came first had

# Of the three below and of what they hold. Nobody who has it asks for a StreamMemory's lock.
_lock = threading.Lock()
_pools: dict[int, Pool] = {}
_of_stream: dict[int, StreamMemory] = {}
_captures: dict[int, Capture] = {}


class StreamMemory:
    """What launches of one stream of one device share outside of captures.

    lock: held from the look at what is here until the launch is given to the stream.  closed: given back meanwhile; ask
    for another.  counters: address of the work counters.  user: what DeviceCopy.users knows the stream by.  latest: the
    workspace that `workspace` gave last.
    """

    def __init__(self, device: int, stream: Any, number: int | None) -> None:
        self.lock = threading.Lock()
        self.closed = False
        self.device = device
        self.user = number
        self._pool = _pool_of(device)
        self._workspaces: list[Workspace] = []
        self.latest: Workspace | None = None
        self._stream = stream  # kept: a stream that was destroyed could not be waited for
        self.counters = self._pool.take_counters()

    def reads(self, blocks: DeviceCopy) -> None:
        """Order the launch that follows after the copy of `blocks`, and their end after the launch."""
        if self.user is not None and self.user not in blocks.users:
            blocks.add_user(self.user, self._stream)

    def workspace(self, need: Need) -> Workspace:
        """A workspace that holds `need`; the last one, once there is one."""
        found = self.latest
        if found is None or not need.within(found.need):
            if found is not None:
                need = need.joined(found.need)  # else two needs that neither holds the other would take turns
            with _lock:
                self._replace(need)
            found = self.latest = self._workspaces[-1]
        return found

    def own(self, size: int, stream: Any) -> Any:
        """`size` bytes, uninitialised, for what is to outlive a launch: freed, they go to what `stream` does next."""
        with using(stream), allowing_unsafe_calls():  # another one may be captured
            return cupy.empty(size, np.uint8)

    def keep(self, lists: Any) -> None:
        """Lists that were written by a launch of this stream: whoever made them keeps them."""

    def close(self) -> None:
        """Give all back; what the stream was given may still run."""
        with self.lock:
            last = self._end()
            self.closed = True
            with _lock:
                self._pool.give_back(self.counters, self._workspaces, last)

    def is_busy(self) -> bool:
        """May it not be closed now?"""
        return is_unusable(self._stream)

    def _replace(self, need: Need) -> None:
        last = self._end() if self._workspaces else None
        found = self._pool.take_workspace(need, self._stream)
        self._pool.give_back(None, self._workspaces, last)
        self._workspaces = [found]
        self._pool.prepare(need)  # for a capture, which had better not allocate

    def _end(self) -> Any:
        """The event after what the stream was given so far, None where that has ended."""
        event = cupy.cuda.Event(disable_timing=True)
        try:
            event.record(self._stream)
        except cupy.cuda.runtime.CUDARuntimeError:  # a stream that its owner destroyed meanwhile
            with allowing_unsafe_calls():
                cupy.cuda.Device(self.device).synchronize()
            return None
        return event


class CapturedMemory(StreamMemory):
    """What launches of one stream share in one capture. Workspaces that became too small stay with their launches."""

    def __init__(self, capture: Capture, device: int) -> None:
        super().__init__(device, None, None)  # no copy knows it by a number: a graph's launches have no order
        self._capture = capture

    def reads(self, blocks: DeviceCopy) -> None:
        """Keep `blocks` for the graph, which has no order after their copy: so that has to be over."""
        self._capture.pin(blocks)

    def own(self, size: int, stream: Any) -> Any:
        """Memory that nothing on the device uses: a graph's launches have no order after what had it before."""
        return zeroed(size, 0)

    def keep(self, lists: Any) -> None:
        """Lists that the graph's own launches write: it keeps them."""
        self._capture.pin(lists)

    def give_back(self) -> None:
        """The graph has ended. Called under the lock of this file."""
        self._pool.give_back(self.counters, self._workspaces, None)

    def _replace(self, need: Need) -> None:
        self._workspaces.append(self._pool.take_workspace(need, None))


class Capture:
    """What one capture uses. memory: by streams.key_in_capture."""

    def __init__(self, graph: Any) -> None:
        self.memory: dict[int, CapturedMemory] = {}
        self.end = GraphEnd(graph)
        self._blocks: dict[int, DeviceCopy] = {}

    def pin(self, blocks: DeviceCopy) -> None:
        """Keep the device copy until the graph has ended."""
        if id(blocks) not in self._blocks:
            blocks.wait_for_copy()
            self._blocks[id(blocks)] = blocks

    def give_back(self) -> None:
        """The graph has ended. Called under the lock of this file."""
        for memory in self.memory.values():
            memory.give_back()
        self.memory.clear()  # they name this
        self._blocks.clear()


def memory_of(device: int, stream: Any) -> StreamMemory:
    """What a launch on a stream of `device`, which is current, uses.

    Raises RuntimeError on a stream whose capture failed, CUDA's errors where there is no memory.
    """
    if stream.ptr <= LEGACY_STREAM:
        number = -1 - device  # what number_of says, without the call
    elif stream.is_capturing():
        return _captured(device, stream)
    else:
        number = number_of(device, stream)
    return _of_stream.get(number) or _new(device, stream, number)


def prepare(device: int, need: Need | None) -> None:
    """Have ready what a launch takes that is captured next; `device` is current. need: None where no rows are split."""
    with _lock:
        _return_of_ended()
        _pool_of(device).prepare(need)


def _new(device: int, stream: Any, number: int) -> StreamMemory:
    with _lock:
        _return_of_ended()
        found = _of_stream.get(number)
        if found is None:
            found = _of_stream[number] = StreamMemory(device, stream, number)
        others = [(key, one) for key, one in _of_stream.items() if one.device == device and one is not found]
        surplus = None
        if len(others) >= MAX_STREAMS:
            key, surplus = next((pair for pair in others if not pair[1].is_busy()), (0, None))
            if surplus is not None:
                del _of_stream[key]
    if surplus is not None:
        surplus.close()
    return found


def _captured(device: int, stream: Any) -> CapturedMemory:
    place = key_in_capture(stream)
    status, _, key, graph = bindings.driver().cuStreamGetCaptureInfo(stream.ptr)[:4]
    bindings.check(status)
    capture = _captures.get(int(key))
    found = None if capture is None else capture.memory.get(place)
    if found is None:
        with _lock:
            _return_of_ended()
            capture = _captures.get(int(key))
            if capture is None:
                capture = _captures[int(key)] = Capture(graph)
            found = capture.memory.get(place)
            if found is None:
                found = capture.memory[place] = CapturedMemory(capture, device)
    return found


def _return_of_ended() -> None:
    """Take back what captures used whose graphs have ended."""
    for key, capture in list(_captures.items()):
        if capture.end.has_come():
            del _captures[key]
            capture.give_back()


def _pool_of(device: int) -> Pool:
    return _pools.setdefault(device, Pool())
