"""What the library needs to know about arrays, for NumPy and CuPy alike, without importing CuPy.

bfloat16 is converted by integer operations on its bits, because array libraries differ in what they can do
with `ml_dtypes.bfloat16`. `xp` is the array module, numpy or cupy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)  # of caches alone: no NaN but 0x7f and 0xff, no infinity
DTYPE_NAMES = {
    np.dtype(np.float16): "float16",
    BFLOAT16: "bfloat16",
    np.dtype(np.float32): "float32",
    np.dtype(np.float64): "float64",
}
# Steps NumPy may spend on proving that two strided arrays are disjoint; views of one buffer take a few dozen.
OVERLAP_WORK = 100_000


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """Memory on a CUDA device that another library owns, with what checks and plans read of a CuPy array.

    ptr: address.  shape, strides: in elements and in bytes.
    """

    dtype: np.dtype[Any]
    ptr: int
    device_id: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    copy_with: ClassVar[str] = ".clone(memory_format=torch.contiguous_format)"

    @property
    def data(self) -> DeviceArray:
        """Itself: the address and the device stand where CuPy has them."""
        return self


def on_gpu(array: object) -> bool:
    """True for arrays whose elements are on a CUDA device: CuPy's, and other libraries' as DeviceArray."""
    return isinstance(array, DeviceArray) or is_cupy(array)


def is_cupy(array: object) -> bool:
    """True for a CuPy array, or one of a class derived from it."""
    kind: Any = type(array)
    return _is_cupy_class(kind)


@lru_cache(256)
def _is_cupy_class(kind: type) -> bool:
    return any(c.__name__ == "ndarray" and c.__module__.partition(".")[0] == "cupy" for c in kind.__mro__)


def module_of(array: object) -> Any:
    """The array module of an array: cupy for CuPy arrays, else numpy."""
    if is_cupy(array):
        import cupy  # only CuPy users have CuPy arrays, so this never is the first import

        return cupy
    return np


def overlap(a: Any, b: Any) -> bool:
    """True when two arrays share an element in memory, or when that is too costly to exclude."""
    left, right = _stand_in(a), _stand_in(b)
    if not np.may_share_memory(left, right):
        return False
    try:
        return np.shares_memory(left, right, max_work=OVERLAP_WORK)  # type: ignore[arg-type]  # stubs know 0 and -1
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: Any) -> bool:
    """True when two elements share memory, or when strides are so interwoven that this is not plain."""
    used = [(abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1]
    reach = array.dtype.itemsize  # bytes that the axes so far span
    for stride, length in sorted(used):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


def _stand_in(array: Any) -> NDArray[Any]:
    # NumPy decides from addresses, shapes and strides alone, so it can do so for device memory as well. The
    # elements of the stand-in must never be read.
    return array if isinstance(array, np.ndarray) else np.asarray(_Layout(array))


class _Layout:
    def __init__(self, array: Any) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{array.dtype.itemsize}",
            "data": (array.data.ptr, True),
            "shape": tuple(array.shape),
            "strides": tuple(array.strides),
        }


def widen(array: Any, dtype: Any, xp: Any = np) -> Any:
    """A copy of a float16, bfloat16, float32 or float64 array in `dtype` (float32 or float64), C-contiguous.

    Exact where `dtype` is at least as wide as the array's own.
    """
    if array.dtype == BFLOAT16:
        bits = xp.array(array.view(np.uint16), dtype=np.uint32, order="C")
        bits <<= np.uint32(16)
        array = bits.view(np.float32)
        if array.dtype == dtype:
            return array
    return xp.array(array, dtype=dtype, order="C")


# As bfloat16_bits, in CUDA.
ROUNDED = (
    "(bits & 0x7FFFFFFFu) > 0x7F800000u ? ((bits >> 16) & 0x8000u) | 0x7FC0u "
    ": (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16"
)


def bfloat16_bits(array: Any) -> Any:
    """The bits (uint16) of a float32 array rounded to bfloat16, to nearest, ties to even; NaN stays NaN."""
    bits = array.view(np.uint32)
    if is_cupy(bits):
        return _rounding_on_device()(bits)
    # Adding half a unit, less one when the kept part is even, carries exactly where rounding goes up. A NaN
    # could carry into infinity, so it is kept apart.
    rounded = (bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded[nan] = ((bits[nan] >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7FC0)
    return rounded.astype(np.uint16)


@cache
def _rounding_on_device() -> Any:
    """The same in one pass, which does not wait for the device to count the NaN."""
    import cupy

    return cupy.ElementwiseKernel("uint32 bits", "uint16 rounded", f"rounded = {ROUNDED};", "bfloat16_bits")


def narrow(array: Any, dtype: Any) -> Any:
    """A copy of a C-contiguous float32 or float64 array, rounded to `dtype` (bfloat16 from float32 only)."""
    if np.dtype(dtype) == BFLOAT16:
        return bfloat16_bits(array).view(BFLOAT16)
    return array.astype(dtype)
