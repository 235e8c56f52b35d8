"""The attention function that transformers' layers call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch

from omnicupy import torch as front
from omnicupy.errors import UnsupportedError
from omnicupy.masks.handles import of_handle
from omnicupy.masks.mask import Mask
from omnicupy.torch import tensors
from omnicupy.torch.operator import handles_of
from omnicupy.transformers import options as transformers_options
from omnicupy.transformers.dense import from_tensor
from omnicupy.transformers.kept import MAX_KEPT, kept
from omnicupy.transformers.mask_tensor import MaskTensor
from omnicupy.transformers.sequences import packed, without_bounds

Masks = Sequence[Mask] | None


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    ignored: Collection[str] = (),
    **options: Any,
) -> tuple[Any, None]:
    """Attention as transformers' layers ask for it; rows that see nothing (padding) give zeros.

    query: (batch, heads, rows, head_dim).  key, value: (batch, kv_heads, keys, head_dim).  attention_mask: a
    MaskTensor, a tensor that broadcasts to (batch, heads, rows, keys), or None: causal where is_causal, or the
    module's, says so, within sliding_window. cu_seq_lens_q and cu_seq_lens_k bound packed sequences, within the mask
    where there is one. ignored: names of further options that change nothing.
    Returns (out, None), out (batch, rows, heads, head_dim), contiguous. No tensor is copied, but under torch.autocast,
    where query, key and value are cast as those of scaled_dot_product_attention are.
    Raises UnsupportedError for what the result would depend on and omnicupy does not compute.
    """
    query, key, value = tensors.autocast(query, key, value)
    _check(module, (query, key, value), dropout, options, ignored)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    read = {name: options.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k", "sliding_window")}
    read["is_causal"] = bool(is_causal)
    masks, tensor = _given(attention_mask, query.shape[0])
    if torch.compiler.is_compiling() and (masks is None or _bounded(read)):
        handles = None if masks is None else handles_of(masks)
        return _operator(query, key, value, tensor, handles, scaling, *read.values()), None
    return _run(
        query, key, value, _masks((*query.shape[:3], key.shape[2]), masks, tensor, read), scaling
    ), None


def _run(query: Any, key: Any, value: Any, masks: Masks, scaling: float | None) -> Any:
    batch, heads, rows, head_dim = query.shape
    out = torch.empty((batch, rows, heads, head_dim), dtype=query.dtype, device=query.device)
    mask = masks[0] if masks is not None and len(masks) == 1 else masks
    front.attention(query, key, value, mask, scale=scaling, out=out.transpose(1, 2))
    return out


def _given(mask: Any, batch: int) -> tuple[Masks, Any]:
    """The masks that attention_mask holds, or the tensor that it is: one of them, or neither."""
    if not isinstance(mask, MaskTensor):
        return None, mask
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"attention_mask must have the batch size of the inputs ({batch}) or 1, got {mask.shape[0]}; "
            "pass one mask an element"
        )
    return (mask.held.masks, None) if mask.held.dense is None else (None, mask.held.dense)


def _masks(shape: tuple[int, int, int, int], masks: Masks, tensor: Any, read: dict[str, Any]) -> Masks:
    """The masks of a call: one, or one for each batch element; None is full. shape: (batch, heads, rows, keys)."""
    if masks is None and tensor is None:
        rows, keys = shape[2:]
        found = (
            packed(read, shape)
            if _bounded(read)
            else without_bounds(rows, keys, read["is_causal"], read["sliding_window"])
        )
        return None if found is None else [found]
    if masks is None:
        masks = from_tensor(tensor, shape)
    if _bounded(read):  # the mask has the windows and is causal where it is to be
        together = packed({**read, "sliding_window": None, "is_causal": False}, shape)
        masks = [_both(mask, together) for mask in masks]
    return list(masks)


def _bounded(read: dict[str, Any]) -> bool:
    return read["cu_seq_lens_q"] is not None or read["cu_seq_lens_k"] is not None


@lru_cache(maxsize=MAX_KEPT)  # masks are immutable and compared by their pairs
def _both(one: Mask, other: Mask) -> Mask:
    return kept(one & other)


def _check(
    module: Any,
    inputs: tuple[Any, Any, Any],
    dropout: float,
    options: dict[str, Any],
    ignored: Collection[str],
) -> None:
    if dropout:
        transformers_options.refuse(module, "dropout", "dropout", dropout)
    transformers_options.check(module, options, ignored)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        raise UnsupportedError(
            f"{type(module).__name__} asks for gradients (query, key or value requires one), but attention has no "
            "backward pass yet; call the model under torch.no_grad() or torch.inference_mode()"
        )
    query, _, value = inputs
    if value.shape[3] != query.shape[3]:
        transformers_options.refuse(
            module,
            f"a head_dim of the values other than that of the queries ({query.shape[3]})",
            "value",
            value,
        )


def _forward(*arguments: Any) -> Any:
    """The call inside of torch.compile, whose graph holds the tensors that say the mask: they are read when it runs."""
    query, key, value, tensor, handles, scaling, *rest = arguments
    read = dict(zip(("cu_seq_lens_q", "cu_seq_lens_k", "sliding_window", "is_causal"), rest, strict=True))
    masks = None if handles is None else [of_handle(handle) for handle in handles]
    shape = (*query.shape[:3], key.shape[2])
    return _run(query, key, value, _masks(shape, masks, tensor, read), scaling)


def _forward_fake(*arguments: Any) -> Any:
    query = arguments[0]
    batch, heads, rows, head_dim = query.shape
    return torch.empty((batch, rows, heads, head_dim), dtype=query.dtype, device=query.device)


_operator = torch.library.custom_op(
    "omnicupy::attention_of_tensors",
    _forward,
    mutates_args=(),
    schema=(
        "(Tensor query, Tensor key, Tensor value, Tensor? mask, SymInt[]? masks, float? scale, Tensor? bounds, "
        "Tensor? key_bounds, SymInt? window, bool is_causal) -> Tensor"
    ),
    tags=[tag] if (tag := getattr(torch.Tag, "cudagraph_unsafe", None)) else None,  # the host reads the mask
)
_operator.register_fake(_forward_fake)
