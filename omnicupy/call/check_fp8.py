"""Argument checks of fp8 caches and their scales: the only module that words their errors."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NoReturn

import numpy as np

from omnicupy.call import check
from omnicupy.call.arrays import DTYPE_NAMES, E4M3, DeviceArray, overlap
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.call.problem import as_float, type_name
from omnicupy.errors import UnsupportedError
from omnicupy.serving.caches import AnyKV, PagedKV, names_of, pools_of, sizes_of

BYTES = np.dtype(np.uint8)  # e4m3 elements of libraries that have no such dtype
SCALE_DTYPE = np.dtype(np.float32)
WIDTH_STEP = 16  # columns: kernels read 16 bytes at a time
_SCALES = ("k_scale", "v_scale")


def is_fp8(kv: AnyKV) -> bool:
    """Whether keys and values are e4m3. Looks at dtypes alone; what is no array is left to other checks.

    Raises TypeError for bytes without scales, for scales of other dtypes than e4m3, and where one of keys and values is
    e4m3; UnsupportedError for other formats of eight bits and fewer.
    """
    given = [getattr(pool, "dtype", None) for pool in pools_of(kv)[:2]]
    if given[0] == given[1] and given[0] in DTYPE_NAMES and kv.k_scale is None and kv.v_scale is None:
        return False
    names = names_of(kv)
    for name, dtype in zip(names, given, strict=True):
        if _is_other_format(dtype):
            raise UnsupportedError(
                f"{name} must be float16, bfloat16 or float8_e4m3fn, got {dtype}; fp8 caches are e4m3 alone"
            )
    scales = [name for name in _SCALES if getattr(kv, name) is not None]
    for name, dtype in zip(names, given, strict=True):
        if dtype == BYTES and len(scales) < 2:
            missing = " and ".join(one for one in _SCALES if one not in scales)
            raise TypeError(
                f"{name} must not be uint8 without scales, which say that bytes are e4m3; pass {missing}, 1.0 for "
                "numbers as they are"
            )
    of_eight = [dtype in (E4M3, BYTES) for dtype in given]
    if all(of_eight):
        return True
    if any(of_eight) and None not in given:
        which, other = names if of_eight[0] else names[::-1]
        raise TypeError(f"{other} must be float8_e4m3fn like {which}, got {given[names.index(other)]}")
    if scales and None not in given:
        raise TypeError(
            f"{scales[0]} must be None where {names[0]} is {given[0]}: scales go with e4m3; multiply the numbers "
            "themselves, or pass float8_e4m3fn"
        )
    return False


def _is_other_format(dtype: Any) -> bool:
    return dtype not in (E4M3, BYTES) and str(dtype).startswith(
        ("float8", "float6", "float4", "int8", "int4")
    )


def check_widths(kv: AnyKV) -> None:
    """Raises ValueError for widths and layouts of a device's e4m3 arrays that kernels cannot read or write."""
    for name, pool in zip(names_of(kv), pools_of(kv)[:2], strict=True):
        if not is_on_gpu(pool) or len(pool.shape) != 4:
            continue
        if pool.shape[3] % WIDTH_STEP:
            raise ValueError(
                f"{name} must have a width that is a multiple of {WIDTH_STEP} where it is e4m3 on the GPU, got "
                f"{pool.shape[3]}; pad it with zero columns"
            )
        if not isinstance(kv, PagedKV):  # pages are checked with their pool
            check.check_layout(name, pool)


def check_scales(kv: AnyKV, like: Any) -> None:
    """The scales of e4m3 caches, whose shapes were checked, beside the array `like`. Arrays of scales that several
    tokens share are read on the host.
    """
    for name in _SCALES:
        scale = getattr(kv, name)
        if scale is None:
            continue
        if isinstance(scale, Real) and not isinstance(scale, (bool, np.bool_)):
            _check_value(name, as_float(scale))
        elif isinstance(scale, np.ndarray) or is_on_gpu(scale):
            _check_array(name, scale, kv, like)
        else:
            _refuse(name, type_name(scale))


def _check_array(name: str, scale: Any, kv: AnyKV, like: Any) -> None:
    check.check_place(name, scale, like)
    if scale.dtype != SCALE_DTYPE:
        raise TypeError(f"{name} must be float32, got {scale.dtype}; cast it")
    shapes = ((), (sizes_of(kv)[0],), token_shape(kv))
    if tuple(scale.shape) not in shapes:
        axes = "(pages, page_size, kv_heads)" if isinstance(kv, PagedKV) else "(batch, capacity, kv_heads)"
        raise ValueError(
            f"{name} must have the shape (), for all, {shapes[1]}, one a key head, or {shapes[2]}, one a token and "
            f"head, {axes}; got {tuple(scale.shape)}"
        )
    if is_on_gpu(scale):
        item = SCALE_DTYPE.itemsize
        if scale.data.ptr % item or any(step % item for step in scale.strides):
            raise ValueError(
                f"{name} must lie on multiples of {item} bytes, got strides {scale.strides} at {scale.data.ptr:#x}; "
                "copy it"
            )
    elif scale.ndim < 3:
        for value in scale.reshape(-1).tolist():
            _check_value(name, value)


def _check_value(name: str, value: float) -> None:
    with np.errstate(all="ignore"):
        held = float(np.float32(value))
    if not 0 < held < math.inf:  # not for NaN
        raise ValueError(f"{name} must be finite and above 0 in float32, got {value}")


def _refuse(name: str, kind: str) -> NoReturn:
    raise TypeError(
        f"{name} must be a number, or a float32 array of the library of the caches, got {kind}; pass float({name})"
    )


def token_shape(kv: AnyKV) -> tuple[int, ...]:
    """The shape of scales of tokens."""
    shape = pools_of(kv)[0].shape
    return tuple(shape[:3]) if isinstance(kv, PagedKV) else (shape[0], shape[2], shape[1])


def has_token_scales(scale: Any) -> bool:
    """Is there one scale a token and head?"""
    return len(getattr(scale, "shape", ())) == 3


def stand_in(q: Any, shape: tuple[int, ...]) -> Any:
    """An array as check.arrays takes one in the place of e4m3 keys: of the dtype of q, and never read. On a device it
    begins where no array does, so that it overlaps none.
    """
    if isinstance(q, np.ndarray):
        return np.broadcast_to(np.zeros((), q.dtype), shape)
    strides = (0, 0, 0, q.dtype.itemsize)
    return DeviceArray(q.dtype, check.ALIGN_BYTES, q.data.device_id, tuple(shape), strides)


def check_out(out: Any, q: Any, kv: AnyKV) -> None:
    """Raises ValueError where `out`, None for none, overlaps what is read."""
    if out is None or type(out) is not type(q):
        return
    read = {
        name: getattr(kv, name) for name in _SCALES if not isinstance(getattr(kv, name), (Real, type(None)))
    }
    read |= dict(zip(names_of(kv), pools_of(kv)[:2], strict=True))
    for name, array in read.items():
        if math.prod(array.shape) and overlap(out, array):
            raise ValueError(f"out must not overlap {name}: {check.READ_WHILE_WRITTEN}; pass another array")
