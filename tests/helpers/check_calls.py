"""Calls of check.call, good but for what a test changes, and stand-ins for arrays of other libraries."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from omnicupy.call import check, problem
from omnicupy.jit.spec import AttnSpec


class ndarray:  # noqa: N801 - the name by which a CuPy array is known
    """The attributes of a CuPy array that the checks read; there is no memory behind the address."""

    def __init__(
        self,
        shape: tuple[int, ...] = (2, 4, 8, 16),
        dtype: Any = np.float16,
        *,
        strides: tuple[int, ...] | None = None,
        ptr: int = 1 << 20,
        device: int = 0,
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        packed = [self.dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape))]
        self.strides = strides or tuple(packed)
        self.data = SimpleNamespace(ptr=ptr, device_id=device)


ndarray.__module__ = "cupy._core.core"


class Tensor:
    """An array of another library."""

    __module__ = "torch"

    def __dlpack__(self) -> None: ...


def host(shape: tuple[int, ...] = (2, 4, 8, 16), dtype: Any = np.float16) -> np.ndarray:
    return np.zeros(shape, dtype)


def call(**changed: Any) -> problem.Problem:
    """A good call on the CPU with some arguments changed."""
    arguments: dict[str, Any] = {
        "q": host(),
        "k": host((2, 2, 8, 16)),
        "v": host((2, 2, 8, 16)),
        "mask": None,
    }
    arguments |= changed
    return check.call(**arguments).problem


def gpu(**changed: Any) -> problem.Problem:
    """A good call on the GPU with some arguments changed."""
    near: dict[str, Any] = {
        "q": ndarray(),
        "k": ndarray((2, 2, 8, 16), ptr=2 << 20),
        "v": ndarray((2, 2, 8, 16), ptr=3 << 20),
    }
    return call(**(near | changed))


def spec(**changed: Any) -> AttnSpec:
    fields: dict[str, Any] = {
        "arch": "sm_80",
        "kernel": "naive",
        "dtype": "float16",
        "head_dim": 16,
        "br": 1,
        "bc": 128,
    }
    return AttnSpec(**(fields | changed))
