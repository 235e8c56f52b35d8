"""Memory for what calls on CUDA tensors make: torch's allocator, on the current device and its current stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

# (shape, strides in elements, dtype) -> a tensor on the current CUDA device, uninitialised. Past the dispatcher, which
# takes more than half of an allocation's time; older versions have torch.empty_strided alone.
_empty_strided: Callable[[tuple[int, ...], tuple[int, ...], Any], Any] = getattr(
    torch._C._dynamo.guards,
    "_empty_strided_cuda",
    lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device="cuda"),
)


def new(shape: tuple[int, ...], dtype: Any) -> Any:
    """A C-contiguous tensor on the current CUDA device, uninitialised: for what a kernel writes in full."""
    return _empty_strided(*_layout(shape), dtype)


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape as a plain tuple, which torch.Size is not, and its strides in elements, as torch.empty gives them."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(shape), tuple(reversed(strides))
