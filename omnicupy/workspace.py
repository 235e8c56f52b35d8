"""Device memory in which the parts of split rows leave their results: one piece a (device, stream), never freed.

Graphs that were captured on a stream keep reading their piece, so a larger one replaces it only for later launches.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from omnicupy.counters import zeroed
from omnicupy.errors import UnsupportedError
from omnicupy.spec import round_up
from omnicupy.upload import identity

_ALIGN = 256
_LEGACY_STREAMS = 2  # handles up to this one name streams that cannot be captured


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


def prepare(device: int, need: Need) -> None:
    """Have a piece ready for the next stream of `device`, which must be current."""
    with _lock:
        _refill(device, need)


def of_stream(device: int, stream: Any, need: Need) -> Workspace:
    """The piece of a stream of `device`, which must be current.

    Raises UnsupportedError where one has to be made while the stream is captured.
    """
    key = (device, identity(stream))
    found = _of_stream.get(key)
    if found is not None and found.holds(need):
        return found
    with _lock:
        capturing = stream.ptr > _LEGACY_STREAMS and stream.is_capturing()
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
