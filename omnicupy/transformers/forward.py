"""The attention function that transformers' layers call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

import torch

from omnicupy import torch as front
from omnicupy.errors import UnsupportedError
from omnicupy.masks.mask import Mask
from omnicupy.presets import varlen
from omnicupy.transformers.closures import array
from omnicupy.transformers.masking import MaskTensor, derived, from_tensor, kept
from omnicupy.transformers.rules import Band, View

# Arguments of transformers that change the result, and what asks for them.
UNSUPPORTED = {
    "softcap": "a soft cap of the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "indices": "sparse attention by indices",
    "block_indices": "sparse attention by indices",
    "head_mask": "a mask of heads",
    "output_attentions": "the attention weights",
}


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
    **options: Any,
) -> tuple[Any, None]:
    """Attention as transformers' layers ask for it; rows that see nothing (padding) give zeros.

    query: (batch, heads, rows, head_dim).  key, value: (batch, kv_heads, keys, head_dim).  attention_mask: a
    MaskTensor, a tensor (batch, 1, rows, keys), or None: causal where is_causal, or the module's, says so, or
    the sequences that cu_seq_lens_q bounds.
    Returns (out, None), out (batch, rows, heads, head_dim), contiguous. No tensor is copied.
    Raises UnsupportedError for what the result would depend on and omnicupy does not compute.
    """
    _check(module, (query, key, value), dropout, options)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    masks = _masks(module, query, key, attention_mask, bool(is_causal), options)
    batch, heads, rows, head_dim = query.shape
    out = torch.empty((batch, rows, heads, head_dim), dtype=query.dtype, device=query.device)
    front.attention(query, key, value, masks, scale=scaling, out=out.transpose(1, 2))
    return out, None


def _masks(
    module: Any, query: Any, key: Any, given: Any, is_causal: bool, options: dict[str, Any]
) -> Mask | list[Mask] | None:
    """The mask of a call as omnicupy.torch takes it."""
    if isinstance(given, MaskTensor):
        masks = given.masks
        if given.shape[0] not in (1, query.shape[0]):
            raise ValueError(
                f"attention_mask must have the batch size of the inputs ({query.shape[0]}) or 1, got {given.shape[0]}; "
                "pass one mask an element"
            )
    elif given is not None:
        masks = from_tensor(given)
    elif options.get("cu_seq_lens_q") is not None:
        return _packed(query, key, is_causal, options)
    else:
        rows, keys = query.shape[2], key.shape[2]
        if (window := options.get("sliding_window")) is not None and window < keys:
            _refuse(module, "a window without a mask", "sliding_window", window)
        return _causal(rows, keys) if is_causal and rows > 1 else None
    return masks[0] if len(masks) == 1 else list(masks)


@lru_cache(maxsize=64)
def _causal(rows: int, keys: int) -> Mask:
    # Aligned at the top left: without a mask, transformers means an empty cache that is longer than its tokens.
    return Band(low=0).mask(View(0, rows, 0, keys), 0)


def _packed(query: Any, key: Any, is_causal: bool, options: dict[str, Any]) -> Mask:
    """The mask of sequences one after the other, in a batch of one."""
    bounds, of_keys = options["cu_seq_lens_q"], options.get("cu_seq_lens_k")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"cu_seq_lens_q goes with a batch of one and as many keys as rows, got {tuple(query.shape)} and "
            f"{tuple(key.shape)}; put all sequences in one row"
        )
    if of_keys is not None and of_keys is not bounds and not torch.equal(bounds, of_keys):
        raise UnsupportedError(
            "cu_seq_lens_k other than cu_seq_lens_q is not supported; use attn_implementation='sdpa'"
        )
    return derived(bounds, ("packed", is_causal), lambda found: (kept(varlen(array(found), is_causal)),))[0]


def _check(module: Any, tensors: tuple[Any, Any, Any], dropout: float, options: dict[str, Any]) -> None:
    if dropout:
        _refuse(module, "dropout", "dropout", dropout)
    for name, feature in UNSUPPORTED.items():
        if (value := options.get(name)) is not None and value is not False:
            _refuse(module, feature, name, value)
    if type(options.get("cache")).__name__ == "PagedAttentionCache":
        _refuse(module, "continuous batching", "cache", options["cache"])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise UnsupportedError(
            f"{_name(module)} asks for gradients (query, key or value requires one), but attention has no backward "
            "pass yet; call the model under torch.no_grad() or torch.inference_mode()"
        )
    query, _, value = tensors
    if value.shape[3] != query.shape[3]:
        _refuse(
            module,
            f"a head_dim of the values other than that of the queries ({query.shape[3]})",
            "value",
            value,
        )


def _refuse(module: Any, feature: str, argument: str, value: Any) -> NoReturn:
    shown = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    raise UnsupportedError(
        f"{_name(module)} asks for {feature} ({argument}: {shown}), which omnicupy does not compute; load the "
        "model with attn_implementation='eager'"
    )


def _name(module: Any) -> str:
    return type(module).__name__
