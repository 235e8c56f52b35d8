"""Masks that are made once and kept for the calls that need them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from omnicupy.errors import UnsupportedError
from omnicupy.masks.mask import Mask
from omnicupy.torch.state import captures

MAX_KEPT = 32  # masks that stay for calls with equal ones, with their block lists and device copies
MAX_READINGS = 8  # of one tensor: parts of it that are read, and what is made of a part


@lru_cache(maxsize=MAX_KEPT)
def kept(mask: Mask) -> Mask:
    """The first mask that was equal to this one, so that equal masks share what was made for them."""
    # The key is the mask: immutable, hashed and compared by its pairs.
    return mask


@dataclass
class _Reading:
    """A part of a tensor as it was read, and what was made of it."""

    copy: Any
    made: OrderedDict[object, Any] = field(default_factory=OrderedDict)


# The tensor -> {part of its storage: reading}. The value is determined by the elements alone, which anybody may write
# without a trace (through .data, NumPy, another library), so they are compared with the copy each time; the tensor and
# the part only say which copy to compare with. The tensor is that which owns the view, since a model that slices its
# mask makes a new view for each layer. A reading dies with the tensor.
_readings: Any = WeakIdKeyDictionary()


def derived(tensor: Any, what: object, make: Callable[[Any], Any], instead: str) -> Any:
    """make(tensor), kept while the tensor lives and its elements are the same: every layer gets the same masks.

    what: determines `make`, whatever it closes over included. make gets a copy of the tensor, in which axes that
    repeat one element are of length 1. instead: what to pass in place of the tensor, for the error.
    A call compares the tensor with the copy: one pass over it and, on a GPU, one synchronisation.
    Raises UnsupportedError while a CUDA graph is captured, in which nothing can be read.
    """
    check_readable(tensor.device, instead)
    owner = tensor._base if tensor._is_view() and tensor._base is not None else tensor
    parts = _readings.setdefault(owner, OrderedDict())
    part = (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device)
    elements = _distinct(tensor)
    reading: _Reading | None = parts.get(part)
    if reading is None or not torch.equal(reading.copy, elements):
        _drop_oldest(parts)
        reading = parts[part] = _Reading(elements.clone())
    made = reading.made.get(what)
    if made is None:
        _drop_oldest(reading.made)
        made = reading.made[what] = make(reading.copy)
    return made


def check_readable(device: Any, instead: str) -> None:
    """Raises UnsupportedError where a CUDA graph is captured of this device. instead: as of `derived`."""
    if captures(device):
        raise UnsupportedError(
            "a tensor cannot be read for its mask while a CUDA graph is captured, since a replay would not see what it "
            f"holds then; pass {instead}"
        )


def _distinct(tensor: Any) -> Any:
    """A view of a tensor in which axes that repeat one element are of length 1."""
    tensor = tensor.detach()
    for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and length > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _drop_oldest(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) >= MAX_READINGS:
        entries.popitem(last=False)  # in one step, whatever other threads do
