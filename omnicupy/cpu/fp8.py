"""e4m3 elements to numbers and back, on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.arrays import BFLOAT16, E4M3, narrow

LARGEST = 448.0  # of e4m3
_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)


def dequantised(elements: NDArray[Any], scale: Any, dtype: Any) -> NDArray[Any]:
    """float(e4m3) * scale in float32, rounded once to `dtype`; C-contiguous.

    elements: e4m3, or its bytes.  scale: a number, or a float32 array that broadcasts against elements.
    """
    with np.errstate(all="ignore"):  # of NaN where no token is, and beyond float16
        product = _VALUES[np.ascontiguousarray(elements).view(np.uint8)] * np.asarray(scale, np.float32)
        found: NDArray[Any] = product if dtype == np.float32 else narrow(product, dtype)
    return found


def quantised(values: NDArray[Any], scale: Any) -> NDArray[np.uint8]:
    """The bytes of values / scale, a float32 quotient, rounded to nearest, ties to even; beyond 448 it is 448.

    values: of any dtype that arrays have.  scale: as in `dequantised`.
    """
    with np.errstate(all="ignore"):
        quotient = as_float32(values) / np.asarray(scale, np.float32)
        found: NDArray[np.uint8] = np.clip(quotient, -LARGEST, LARGEST).astype(E4M3).view(np.uint8)
    return found


def scales_of_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """The scale of each row of the last axis that makes its largest magnitude 448; 1 where that would be zero."""
    scale = np.fmax.reduce(np.abs(as_float32(rows)), axis=-1) / np.float32(LARGEST)
    found: NDArray[np.float32] = np.where(
        scale > 0, scale, np.float32(1)
    )  # 1 for NaN, of rows that hold nothing else
    return found


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """values in float32."""
    if values.dtype == BFLOAT16:
        return (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(all="ignore"):
        return values.astype(np.float32)
