"""Device memory that launches share on a stream: work counters, and the parts of split rows. Never freed.

Work counters of persistent kernels are three integers a (device, stream), zero before and after each launch. The parts
of split rows leave their results in one piece a (device, stream). Graphs that were captured on a stream keep reading
theirs, so a larger piece replaces it only for later launches.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from omnicupy.errors import UnsupportedError
from omnicupy.gpu.streams import identity, is_capturing
from omnicupy.jit.spec import round_up

_ALIGN = 256


@dataclass(frozen=True)
class Need:
    """What a launch needs. partial_bytes: of unfinished rows.  arrivals: counters, zero before and after it."""

    partial_bytes: int
    arrivals: int


class Workspace:
    """One allocation: counters, then rows. Made on the current device, whose streams run on meanwhile."""

    def __init__(self, need: Need) -> None:
        self.need = need
        counters = round_up(4 * need.arrivals, _ALIGN)
        self._buffer = zeroed(counters + need.partial_bytes, counters)
        self.arrivals = int(self._buffer.data.ptr)
        self.partials = self.arrivals + counters

    def holds(self, need: Need) -> bool:
        """Is it large enough?"""
        return need.partial_bytes <= self.need.partial_bytes and need.arrivals <= self.need.arrivals


_of_stream: dict[tuple[int, int], Workspace] = {}
_spares: dict[int, Workspace] = {}  # device -> one for the next stream, which may be captured just then
_replaced: list[Workspace] = []  # what captured graphs may still use
_lock = threading.Lock()


def prepare_space(device: int, need: Need) -> None:
    """Have a piece ready for the next stream of `device`, which must be current."""
    with _lock:
        _refill(device, need)


def space_of(device: int, stream: Any, need: Need) -> Workspace:
    """The piece of a stream of `device`, which must be current.

    Raises UnsupportedError where one has to be made while the stream is captured.
    """
    key = (device, identity(stream))
    found = _of_stream.get(key)
    if found is not None and found.holds(need):
        return found
    with _lock:
        capturing = is_capturing(stream)
        if not capturing:
            _refill(device, need)
        spare = _spares.get(device)
        if spare is None or not spare.holds(need):
            raise UnsupportedError(
                "mask: this call splits rows over several thread blocks and has no memory for that on this stream "
                "yet; call attention once on it before the capture"
            )
        if found is not None:
            _replaced.append(found)
        _of_stream[key] = _spares.pop(device)
        if not capturing:
            _refill(device, need)
    return spare


def _refill(device: int, need: Need) -> None:
    spare = _spares.get(device)
    if spare is None or not spare.holds(need):
        largest = Need(
            max(need.partial_bytes, spare.need.partial_bytes if spare else 0),
            max(need.arrivals, spare.need.arrivals if spare else 0),
        )
        _spares[device] = Workspace(largest)


_STREAMS = 256  # counters made at once, so that a stream that is being captured finds one ready
COUNTER_BYTES = 16  # of one stream's counters

_counter_arrays: dict[int, list[Any]] = {}  # device -> arrays of counters, never freed
_counter_addresses: dict[tuple[int, int], int] = {}
_counter_lock = threading.Lock()


def zeroed(size: int, zeros: int) -> Any:
    """`size` bytes on the current device for any stream, the first `zeros` of them 0 before this returns.

    Waits for these zeros alone: what the current stream was given may run on.
    """
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        found = cupy.empty(size, np.uint8)
        found.data.memset_async(0, zeros, stream)
    stream.synchronize()
    return found


def prepare_counters(device: int) -> None:
    """Make the first counters of `device`, which must be current; waits for their zeros, once a device."""
    if device not in _counter_arrays:
        with _counter_lock:
            if device not in _counter_arrays:
                _counter_arrays[device] = [_zero_counters()]


def counters_of(device: int, stream: Any) -> int:
    """Device address of the counters of a stream of `device`, which must be current and prepared."""
    key = (device, identity(stream))
    found = _counter_addresses.get(key)
    if found is None:
        with _counter_lock:
            found = _counter_addresses.get(key)
            if found is None:
                found = _counter_addresses[key] = _next_counters(device)
    return found


def _next_counters(device: int) -> int:
    used = sum(1 for of_device, _ in _counter_addresses if of_device == device)
    block, index = divmod(used, _STREAMS)
    if block == len(_counter_arrays[device]):
        _counter_arrays[device].append(_zero_counters())
    return int(_counter_arrays[device][block].data.ptr) + index * COUNTER_BYTES


def _zero_counters() -> Any:
    return zeroed(_STREAMS * COUNTER_BYTES, _STREAMS * COUNTER_BYTES)
