"""append() on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from omnicupy import serving_api
from omnicupy.errors import UnsupportedError
from omnicupy.serving.caches import CACHES, AnyKV, names_of, pools_of
from omnicupy.torch import eager, pools, state, tensors

_OPTIONAL = ("page_table", "slots")


def append(kv: AnyKV, k_new: Any, v_new: Any, slots: Any = None) -> None:
    """`omnicupy.append` on torch tensors: same arguments, shapes, promises and errors; CUDA tensors on torch's current
    stream of their device. Raises UnsupportedError inside torch.compile and its like, and where a gradient is needed.
    """
    if not isinstance(kv, CACHES):
        serving_api.append(kv, k_new, v_new, slots)
    k, v, table = pools_of(kv)
    given = dict(zip(names_of(kv), (k, v), strict=True))
    given |= {"k_new": k_new, "v_new": v_new, "lengths": kv.lengths, "page_table": table, "slots": slots}
    given |= {
        name: scale for name in ("k_scale", "v_scale") if isinstance(scale := getattr(kv, name), torch.Tensor)
    }
    held = {name: one for name, one in given.items() if one is not None or name not in _OPTIONAL}
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
    if not tensors.lie_in_memory(*held.values()):
        tensors.check_storage(**held)
    if torch.is_grad_enabled() and any(map(tensors.needs_gradient, held.values())):
        raise UnsupportedError("append has no gradients; call under torch.no_grad()")
    if k.is_cuda:
        from omnicupy.gpu import append as gpu_append
        from omnicupy.gpu.streams import external_stream

        index = k.get_device()
        stream = external_stream(index, eager.raw_stream(index))
        gpu_append.append(pools.mapped(kv, pools.on_device), *_new(held, pools.on_device), stream)
    else:
        serving_api.append(pools.mapped(kv, pools.on_host), *_new(held, pools.on_host))
    of_tokens = [held[name] for name in ("k_scale", "v_scale") if name in held and held[name].dim() == 3]
    for written in (k, v, *of_tokens):
        torch.autograd.graph.increment_version(written)


def _new(held: dict[str, Any], to: Callable[[str, Any], Any]) -> tuple[Any, Any, Any]:
    """k_new, v_new and slots, or None, as arrays."""
    k_new, v_new, slots = (
        to(name, held[name]) if name in held else None for name in ("k_new", "v_new", "slots")
    )
    return k_new, v_new, slots
