"""What a plan must know of a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as cache_forever

import cupy


@dataclass(frozen=True)
class DeviceInfo:
    """What a plan needs to know of a device. l2_bytes: size of its L2 cache."""

    major: int
    minor: int
    sm_count: int
    l2_bytes: int


@cache_forever
def device_info(device: int) -> DeviceInfo:
    """Properties of a CUDA device by its index."""
    handle = cupy.cuda.Device(device)
    capability = handle.compute_capability  # "90", "120"
    of = handle.attributes
    return DeviceInfo(int(capability[:-1]), int(capability[-1]), of["MultiProcessorCount"], of["L2CacheSize"])
