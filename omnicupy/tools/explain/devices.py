"""Whose speeds a fit is of: the device that records were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnicupy.choose.ceilings import Device


def one_device(contents: Sequence[dict[str, Any]]) -> Device:
    """The device of records. Raises ValueError for those of several, and as device_of."""
    devices = list(dict.fromkeys(device_of(content) for content in contents))
    if len(devices) != 1:
        raise ValueError(
            f"--fit: expected records of one device, got {', '.join(one.name for one in devices)}"
        )
    return devices[0]


def device_of(content: dict[str, Any]) -> Device:
    """The device of a record. Raises ValueError for a record without a GPU, or that lacks its sizes."""
    name = content.get("device")
    if name and content.get("multiprocessors"):
        return Device(name, int(content["multiprocessors"]), int(content["l2_bytes"]))
    raise ValueError(
        f"record: expected one of a GPU with its multiprocessors, got device {name!r}; measure it anew"
    )
