"""Caches of tensors as caches of the arrays that the library takes, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch

from omnicupy.call.arrays import E4M3, DeviceArray
from omnicupy.serving.caches import AnyKV, names_of, pools_of, with_arrays
from omnicupy.torch import tensors

# Elements of eight bits that a cache may be given in; the checks refuse all but e4m3 by name.
_EIGHT = {torch.float8_e4m3fn: E4M3, torch.uint8: np.dtype(np.uint8), torch.int8: np.dtype(np.int8)}
_EIGHT |= {
    getattr(torch, name): np.dtype(getattr(ml_dtypes, name))
    for name in ("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
}
_INTEGERS = {
    getattr(torch, name): np.dtype(name)
    for name in ("bool", "int16", "int32", "int64", "uint16", "uint32", "uint64")
}


def mapped(kv: AnyKV, to: Callable[[str, Any], Any]) -> AnyKV:
    """The same caches of other arrays. to: of a name and a tensor; `on_host` or `on_device`."""
    k, v, table = pools_of(kv)
    scales = ("k_scale", kv.k_scale), ("v_scale", kv.v_scale)
    arrays = [to(name, pool) for name, pool in zip(names_of(kv), (k, v), strict=True)]
    numbers = None if table is None else to("page_table", table)
    of_scales = [to(name, one) if isinstance(one, torch.Tensor) else one for name, one in scales]
    return with_arrays(
        kv, (arrays[0], arrays[1]), numbers, to("lengths", kv.lengths), (of_scales[0], of_scales[1])
    )


def on_host(name: str, tensor: Any) -> Any:
    """The NumPy array of a CPU tensor's own memory: numbers, elements of a cache, or integers."""
    dtype = _dtype_of(name, tensor)
    if dtype is None:
        return tensors.on_host(name, tensor)
    if tensor.dtype in _EIGHT:
        return tensor.detach().view(torch.uint8).numpy().view(dtype)
    return tensor.detach().numpy()


def on_device(name: str, tensor: Any) -> DeviceArray:
    """The same of a CUDA tensor."""
    return tensors.on_device(name, tensor, _dtype_of(name, tensor))


def _dtype_of(name: str, tensor: Any) -> np.dtype[Any] | None:
    """NumPy's dtype of elements of eight bits and of integers, None of other numbers."""
    found = _EIGHT.get(tensor.dtype) or _INTEGERS.get(tensor.dtype)
    if found is None and not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        raise TypeError(f"{name} must have a dtype that NumPy has, too, got {tensor.dtype}; convert it")
    return found


def scales_of(kv: AnyKV, device: Any) -> dict[str, Any]:
    """The scales that are tensors. Raises ValueError for one on another device."""
    if kv.k_scale is None and kv.v_scale is None:
        return {}
    held = {name: getattr(kv, name) for name in ("k_scale", "v_scale")}
    held = {name: scale for name, scale in held.items() if isinstance(scale, torch.Tensor)}
    for name, scale in held.items():
        if scale.device != device:
            raise ValueError(
                f"{name} must be on the device of the caches ({device}), got {scale.device}; move it there"
            )
    return held


def key_of(scale: Any) -> Any:
    """What plans and launches depend on of an array of scales, but for where it lies."""
    if isinstance(scale, torch.Tensor):
        return scale.shape, scale.stride(), scale.dtype
    return type(scale), scale  # which the checks refuse


def address_of(scale: Any) -> int:
    """Where an array of scales lies."""
    return int(scale.data_ptr()) if isinstance(scale, torch.Tensor) else 0
