"""append() on tensors."""

from __future__ import annotations

from typing import Any

import torch

from omnicupy import caches
from omnicupy.call.arrays import DeviceArray
from omnicupy.errors import UnsupportedError
from omnicupy.serving.caches import CACHES, AnyKV, CachedKV, PagedKV, pools_of
from omnicupy.torch import eager, state, tensors


def append(kv: AnyKV, k_new: Any, v_new: Any, slots: Any = None) -> None:
    """`omnicupy.append` on torch tensors: same meaning, shapes, promises and errors; on CUDA tensors on torch's current
    stream of their device. Raises UnsupportedError inside torch.compile and its like, and where a gradient is needed.
    """
    if not isinstance(kv, CACHES):
        caches.append(kv, k_new, v_new, slots)
    k, v, table = pools_of(kv)
    given = {
        "k": k,
        "v": v,
        "k_new": k_new,
        "v_new": v_new,
        "lengths": kv.lengths,
        "page_table": table,
        "slots": slots,
    }
    held = {name: one for name, one in given.items() if one is not None}
    for name, one in held.items():
        if not isinstance(one, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(one).__name__}")
        if one.device != k.device:
            raise ValueError(
                f"{name} must be on the device of the caches ({k.device}), got {one.device}; move it there"
            )
    plain = all(type(one) in state.PLAIN for one in held.values())
    if (
        not plain
        or torch.compiler.is_compiling()
        or state.transform() is not None
        or state.modes()
        or state.jit_traces()
    ):
        raise UnsupportedError(
            "append is served eagerly alone, of plain tensors; call it outside of torch.compile"
        )
    if tensors.need_gradients(k, v, k_new, v_new):
        raise UnsupportedError("append has no gradients; call under torch.no_grad()")
    if k.is_cuda:
        from omnicupy.gpu import append as gpu_append
        from omnicupy.gpu.streams import external_stream

        index = k.get_device()
        arrays = {name: _on_device(name, one) for name, one in held.items()}
        stream = external_stream(index, eager.raw_stream(index))
        gpu_append.append(*_call_of(kv, arrays), stream)
    else:
        caches.append(*_call_of(kv, {name: _on_host(name, one) for name, one in held.items()}))
    for pool in (k, v):
        torch.autograd.graph.increment_version(pool)


def _call_of(kv: AnyKV, arrays: dict[str, Any]) -> tuple[AnyKV, Any, Any, Any]:
    """The arguments of append, of arrays in the tensors' places."""
    pools = arrays["k"], arrays["v"]
    new = arrays["k_new"], arrays["v_new"], arrays.get("slots")
    if isinstance(kv, PagedKV):
        return PagedKV(*pools, arrays["page_table"], arrays["lengths"]), *new
    return CachedKV(*pools, arrays["lengths"]), *new


def _on_host(name: str, tensor: Any) -> Any:
    return tensor.detach().numpy() if _is_integer(tensor) else tensors.on_host(name, tensor)


def _on_device(name: str, tensor: Any) -> Any:
    if not _is_integer(tensor):
        return tensors.on_device(name, tensor)
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    strides = tuple(dtype.itemsize * stride for stride in tensor.stride())
    return DeviceArray(dtype, tensor.data_ptr(), tensor.get_device(), tuple(tensor.shape), strides)


def _is_integer(tensor: Any) -> bool:
    return not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
