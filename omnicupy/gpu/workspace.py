"""Device memory of launches beside their arrays: work counters of persistent kernels, and the parts of split rows.

Launches that run one after another may share it (stream_memory.py says which those are); here lies what nobody uses at
the moment. Counters are three integers, zero before and after each launch; parts of split rows leave their results in
a workspace.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import cupy
import numpy as np

from omnicupy.gpu.streams import allowing_unsafe_calls, using
from omnicupy.jit.spec import round_up

COUNTER_BYTES = 16  # of one set of counters
SPARES = 1  # workspaces that are kept for the next stream or capture
MOST_SPARE_BYTES = (
    64 << 20
)  # of one that is made before anybody needs it: copies of a backward pass may be far larger
_SETS = 256  # sets of counters made at once
_ALIGN = 256
_LEAST_PARTIAL_BYTES, _LEAST_ARRIVALS = 1 << 16, 1 << 8
_COARSE_BYTES = 32 << 20  # larger workspaces are multiples of it
_T = TypeVar("_T")

_own_streams: dict[int, Any] = {}  # by device
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Need:
    """What a launch needs. partial_bytes: of unfinished rows, or whatever it keeps from one kernel to the next.

    arrivals: counters, zero before and after it.
    """

    partial_bytes: int
    arrivals: int

    def rounded(self) -> Need:
        """Powers of two, so that many needs share few sizes; of large ones multiples, lest half lies idle."""
        size = self.partial_bytes
        size = _power_of_two(size) if size <= _COARSE_BYTES else round_up(size, _COARSE_BYTES)
        return Need(max(_LEAST_PARTIAL_BYTES, size), max(_LEAST_ARRIVALS, _power_of_two(self.arrivals)))

    def joined(self, other: Need) -> Need:
        """What holds both."""
        return Need(max(self.partial_bytes, other.partial_bytes), max(self.arrivals, other.arrivals))

    def within(self, other: Need) -> bool:
        """Does what `other` needs hold this as well?"""
        return self.partial_bytes <= other.partial_bytes and self.arrivals <= other.arrivals


class Workspace:
    """One allocation on the current device: counters of arrivals, then rows.

    need: what it holds.  arrivals, partials: addresses.  number: which no other has, at the same address either.  Its
    streams run on while it is made.
    """

    def __init__(self, need: Need) -> None:
        self.need = need
        self.number = next(_numbers)
        counters = round_up(4 * need.arrivals, _ALIGN)
        self._buffer = zeroed(counters + need.partial_bytes, counters)
        self.arrivals = int(self._buffer.data.ptr)
        self.partials = self.arrivals + counters

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""
        return int(self._buffer.nbytes)


class Pool:
    """Counters and workspaces of one device, which must be current, that no launch to come uses.

    Each is kept with the event after which its last launch has ended, None where that is known to be so. For one
    thread at a time.
    """

    def __init__(self) -> None:
        self._arrays: list[Any] = []  # with all counters, of those who have them as well; never freed
        self._counters: list[tuple[int, Any]] = []
        self._workspaces: list[tuple[Workspace, Any]] = []

    def take_counters(self) -> int:
        """The address of counters that nothing on the device uses."""
        _settle(self._counters)
        found = self._take_idle(self._counters, lambda _: True)
        if found is None:
            self._make_counters()
            found, _ = self._counters.pop()
        return found

    def take_workspace(self, need: Need, stream: Any) -> Workspace:
        """A workspace that holds `need`. stream: which uses it next, after all who had it; None where that cannot be
        said, so that nothing on the device may use it any more.
        """
        _settle(self._workspaces)
        for i, (one, last) in enumerate(self._workspaces):
            # First those in use: else captures would find none, and streams that come and go would need ever more.
            if stream is not None and last is not None and need.within(one.need):
                stream.wait_event(last)
                del self._workspaces[i]
                return one
        found = self._take_idle(self._workspaces, lambda one: need.within(one.need))
        return found or Workspace(need.rounded())

    def give_back(self, counters: int | None, workspaces: list[Workspace], last: Any) -> None:
        """Take over what no launch to come uses. last: the event after the last launch, None where all have ended."""
        if counters is not None:
            self._counters.append((counters, last))
        self._workspaces += [(one, last) for one in workspaces]
        self._trim()

    def prepare(self, need: Need | None) -> None:
        """Have ready what a capture takes: counters, and a workspace that holds `need`. A large one is made when it is
        taken, in a capture too.
        """
        if not self._arrays:
            self._make_counters()
        self._trim()
        idle = [one.need for one, last in self._workspaces if last is None]
        if need is None or need.partial_bytes > MOST_SPARE_BYTES:
            return
        if not any(map(need.within, idle)):
            for other in idle:
                need = need.joined(other)
            self._workspaces.append((Workspace(need.rounded()), None))
            self._trim()

    @property
    def nbytes(self) -> int:
        """Device memory that is kept for whoever comes, in bytes."""
        counters = sum(int(array.nbytes) for array in self._arrays)
        return counters + sum(one.nbytes for one, _ in self._workspaces)

    def _make_counters(self) -> None:
        made = zeroed(_SETS * COUNTER_BYTES, _SETS * COUNTER_BYTES)
        self._arrays.append(made)
        self._counters += [(int(made.data.ptr) + i * COUNTER_BYTES, None) for i in reversed(range(_SETS))]

    def _take_idle(self, kept: list[tuple[_T, Any]], fits: Callable[[_T], bool]) -> _T | None:
        for i, (one, last) in enumerate(kept):
            if last is None and fits(one):
                del kept[i]
                return one
        return None

    def _trim(self) -> None:
        """Free the smallest of those that nothing uses; in the end the smallest come first."""
        _settle(self._workspaces)
        self._workspaces.sort(key=lambda kept: kept[0].nbytes)
        idle = [kept for kept in self._workspaces if kept[1] is None]
        for surplus in idle[: max(0, len(idle) - SPARES)]:
            self._workspaces.remove(surplus)


def zeroed(size: int, zeros: int) -> Any:
    """`size` bytes on the current device for any stream, the first `zeros` of them 0 before this returns.

    Waits for these zeros alone: what streams were given may run on. No capture sees it.
    """
    with allowing_unsafe_calls(), using(_own_stream()) as stream:
        found = cupy.empty(size, np.uint8)
        found.data.memset_async(0, zeros, stream)
        stream.synchronize()
    return found


def _own_stream() -> Any:
    """A stream of the current device for memory that any stream may use. One for all: CuPy's pool hands what it freed
    only to the stream that had it before.
    """
    device = int(cupy.cuda.runtime.getDevice())
    if device not in _own_streams:
        _own_streams[device] = cupy.cuda.Stream(non_blocking=True)
    return _own_streams[device]


def _settle(kept: list[tuple[_T, Any]]) -> None:
    """Note whose last launch has ended."""
    if any(last is not None for _, last in kept):  # asking for events is one of these calls
        with allowing_unsafe_calls():
            kept[:] = [(one, None if last is None or last.done else last) for one, last in kept]


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
