"""Work counters of persistent kernels: three integers a (device, stream), zero before and after each launch."""

from __future__ import annotations

import threading
from typing import Any

import cupy
import numpy as np

from omnicupy.upload import identity

_STREAMS = 256  # counters made at once, so that a stream that is being captured finds one ready
BYTES = 16  # of one stream's counters

_blocks: dict[int, list[Any]] = {}  # device -> arrays of counters, never freed
_addresses: dict[tuple[int, int], int] = {}
_lock = threading.Lock()


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


def prepare(device: int) -> None:
    """Make the first counters of `device`, which must be current; waits for their zeros, once a device."""
    if device not in _blocks:
        with _lock:
            if device not in _blocks:
                _blocks[device] = [_zeros()]


def address(device: int, stream: Any) -> int:
    """Device address of the counters of a stream of `device`, which must be current and prepared."""
    key = (device, identity(stream))
    found = _addresses.get(key)
    if found is None:
        with _lock:
            found = _addresses.get(key)
            if found is None:
                found = _addresses[key] = _next(device)
    return found


def _next(device: int) -> int:
    used = sum(1 for of_device, _ in _addresses if of_device == device)
    block, index = divmod(used, _STREAMS)
    if block == len(_blocks[device]):
        _blocks[device].append(_zeros())
    return int(_blocks[device][block].data.ptr) + index * BYTES


def _zeros() -> Any:
    return zeroed(_STREAMS * BYTES, _STREAMS * BYTES)
