"""The call inside torch.compile: one operator, to which a mask's handle is an integer input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from omnicupy.errors import UnsupportedError
from omnicupy.masks.handles import of_handle
from omnicupy.masks.mask import Mask
from omnicupy.torch import tensors
from omnicupy.torch.eager import run_eagerly

# No mask's handles: every row sees every key; what follows is a list of masks, one a batch element.
_LIST, _FULL = 0, 1


def through_operator(
    q: Any, k: Any, v: Any, mask: Any, *, scale: Any, return_lse: bool, out: Any, config: Any
) -> Any:
    """The call as an operator. Traced by torch.compile, to which a mask's handle is an integer input."""
    if config is not None:
        raise UnsupportedError("config must be None inside torch.compile; call attention outside of it")
    if mask is None:
        handles = [_FULL]  # no empty list: AOTInductor passes None for one
    elif isinstance(mask, Mask):
        handles = handles_of([mask])
    elif isinstance(mask, (list, tuple)) and all(isinstance(one, Mask) for one in mask):
        handles = [_LIST, *handles_of(mask)]
    else:
        raise TypeError(
            "mask must be a Mask, a list of one Mask per batch element, or None (full); "
            "a boolean array becomes one with from_dense"
        )
    if out is None:
        out, lse = _operator(q, k, v, handles, scale, return_lse)
    else:
        lse = _operator_out(q, k, v, out, handles, scale, return_lse)
    return (out, lse) if return_lse else out


def is_exporting() -> bool:
    """True in torch.export. `torch.compiler.is_exporting` is also true in torch.compile, up to 2.12."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def handles_of(masks: Sequence[Mask]) -> list[int]:
    """The masks as operators take them. Raises UnsupportedError in torch.export, whose programs outlive masks."""
    if is_exporting():
        raise UnsupportedError(
            "mask must be None in torch.export: a stored program would name a mask of this process; use torch.compile"
        )
    return [mask.handle for mask in masks]


def _masks_of(handles: Sequence[int]) -> Mask | list[Mask] | None:
    if not handles or handles[0] == _FULL:
        return None
    if handles[0] == _LIST:
        return [of_handle(handle) for handle in handles[1:]]
    found: Mask = of_handle(handles[0])
    return found


def _forward(*arguments: Any) -> Any:
    """(q, k, v, handles, scale, return_lse) -> (out, lse); lse has no elements when it is not wanted."""
    q, k, v, handles, scale, return_lse = arguments
    tensors.check_tangents(q=q, k=k, v=v)
    found = run_eagerly(
        q, k, v, _masks_of(handles), scale=scale, return_lse=return_lse, out=None, config=None
    )
    return found if return_lse else (found, _empty_lse(q, False))


def _forward_fake(*arguments: Any) -> Any:
    q, return_lse = arguments[0], arguments[-1]
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), _empty_lse(q, return_lse)


def _forward_out(*arguments: Any) -> Any:
    """(q, k, v, out, handles, scale, return_lse) -> lse."""
    q, k, v, out, handles, scale, return_lse = arguments
    tensors.check_tangents(q=q, k=k, v=v, out=out)
    found = run_eagerly(q, k, v, _masks_of(handles), scale=scale, return_lse=return_lse, out=out, config=None)
    return found[1] if return_lse else _empty_lse(q, False)


def _forward_out_fake(*arguments: Any) -> Any:
    return _empty_lse(arguments[0], arguments[-1])


def _empty_lse(q: Any, wanted: bool) -> Any:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape[:3] if wanted else (0,), dtype=dtype, device=q.device)


_REST = "SymInt[] masks, float? scale, bool return_lse"
_operator = torch.library.custom_op(
    "omnicupy::attention",
    _forward,
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_REST}) -> (Tensor, Tensor)",
)
_operator.register_fake(_forward_fake)
_operator_out = torch.library.custom_op(
    "omnicupy::attention_out",
    _forward_out,
    mutates_args=("out",),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor(a!) out, {_REST}) -> Tensor",
)
_operator_out.register_fake(_forward_out_fake)
