"""Device copies of block masks: made once per (device, tile size), kept on the mask, freed with it.

CuPy's memory pool hands a freed block to the next allocation on the stream that allocated it, without waiting
for other streams. So a copy remembers which other streams read it, and its allocating stream waits for them
before the memory goes back.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import cupy

from omnicupy.errors import UnsupportedError
from omnicupy.masks import Mask
from omnicupy.packing import Packed, pack
from omnicupy.schedule import Crew

MAX_STACKS = 32  # device copies of different batches that start with one mask
MAX_USERS = 32  # foreign streams remembered before they are joined early
_LEGACY_STREAM = 1  # cudaStreamLegacy: ordered with every thread's per-thread stream
_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, another stream in each thread


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


class DeviceBlocks:
    """Packed block masks on one device. Made on the device's current stream; the copy is asynchronous.

    packed: sizes and offsets (its host buffer is dropped).  pointers: device address of each array.
    Raises UnsupportedError while the stream is captured into a graph: the copy would become part of the
    graph.
    """

    def __init__(self, packed: Packed, device: int) -> None:
        self.device = device
        self._users: dict[int, Any] = {}
        self.home = cupy.cuda.get_current_stream(device)
        if self.home.ptr > _PER_THREAD_STREAM and self.home.is_capturing():
            raise UnsupportedError(
                "mask: its block lists are not on the device yet and cannot be copied while the stream is "
                "captured; call prepare or attention with these shapes and this mask before the capture"
            )
        # asarray stages through CuPy's pinned pool, which keeps the staging memory until the copy is done.
        self._buffer = cupy.asarray(packed.buffer)
        self._uploaded = cupy.cuda.Event(disable_timing=True)
        self._uploaded.record(self.home)
        self._arrived = False
        self._home = identity(self.home)
        self.sizes = packed.without_buffer()
        self.pointers = {name: self._buffer.data.ptr + offset for name, offset in packed.offsets.items()}

    @property
    def nbytes(self) -> int:
        """Device memory of the copy, in bytes."""
        return int(self._buffer.nbytes)

    def use(self, stream: Any) -> None:
        """Order `stream` (of this device) after the copy, and the copy's end after the work of `stream`."""
        handle = stream.ptr
        if handle == self._home:
            return
        if handle == _PER_THREAD_STREAM and (handle := identity(stream)) == self._home:
            return
        if not self._arrived:
            # A capture forbids both calls below, and its graph is launched later, after the copy was given.
            if handle > _PER_THREAD_STREAM and stream.is_capturing():
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
            goal = foreign_stream(_LEGACY_STREAM)
        for handle, stream in users.items():
            if handle >= 0:
                _wait(goal, stream)
        if through_legacy and self._home >= 0:
            _wait(self.home, goal)
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


class DeviceCache:
    """What a mask or a batch of masks keeps for the GPU. blocks: by (device, br, bc, crew).  plans: launch.py's."""

    __slots__ = ("_others", "blocks", "plans")

    def __init__(self, others: Sequence[weakref.ref[Mask]] = ()) -> None:
        self.blocks: dict[tuple[int, int, int, Crew], DeviceBlocks] = {}
        self.plans: dict[Any, Any] = {}
        self._others = tuple(others)


def find_cache(mask: Any) -> DeviceCache | None:
    """The cache of a mask or of a list of masks if there is one, None for what is neither; a cheap look-up, for the
    warm path. Raises AttributeError for a list of something else.
    """
    found: DeviceCache | None = None
    if isinstance(mask, Mask):
        found = mask._device.get(())
    elif isinstance(mask, (list, tuple)) and mask:
        found = mask[0]._device.get(() if len(mask) == 1 else tuple(map(id, mask)))
    return found


def cache_of(masks: Sequence[Mask]) -> DeviceCache:
    """The cache of one mask (kept on it), or of a batch (kept on its first mask until any is dropped)."""
    first = masks[0]
    if len(masks) == 1:
        only: DeviceCache = first._device.setdefault((), DeviceCache())
        return only
    key = tuple(map(id, masks))
    found: DeviceCache | None = first._device.get(key)
    if found is None:
        # Weak, so that a batch keeps none of its masks alive; an id is not used again before its entry is
        # gone.
        owner = weakref.ref(first)
        # At exit this module's names may be gone already: the callback holds what it calls.
        forget = partial(_forget, owner, key)
        others = [weakref.ref(m, forget) for m in masks if m is not first]
        stacks = [k for k in list(first._device) if k]
        for old in stacks[: max(0, len(stacks) - MAX_STACKS + 1)]:
            first._device.pop(old, None)
        found = first._device.setdefault(key, DeviceCache(others))
    return found


def device_blocks(masks: Sequence[Mask], tile: tuple[int, int], crew: Crew, device: int) -> DeviceBlocks:
    """The device copy of one mask, or of one per batch element, cut at tile = (br, bc). `device` must be current.

    crew: who works on it.  Raises UnsupportedError when it has to be made while the stream is captured.
    """
    blocks = cache_of(masks).blocks
    found = blocks.get((device, *tile, crew))
    if found is None:
        found = DeviceBlocks(pack([mask.blocks(*tile) for mask in masks], crew), device)
        found = blocks.setdefault((device, *tile, crew), found)
    return found


def _forget(owner: weakref.ref[Mask], key: tuple[int, ...], _: object = None) -> None:
    first = owner()
    if first is not None:
        first._device.pop(key, None)


def _wait(waiter: Any, stream: Any) -> None:
    """Order what `waiter` does next after what `stream` has been given so far."""
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    waiter.wait_event(event)


def identity(stream: Any) -> int:
    """A number for the stream: its handle, or minus the thread's id for the per-thread stream."""
    handle = int(stream.ptr)
    return -threading.get_ident() if handle == _PER_THREAD_STREAM else handle
