"""The attention function that transformers' layers call."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from omnicupy import torch as front
from omnicupy.call.check_widths import fits_gpu
from omnicupy.torch import key_tables, tensors
from omnicupy.torch.call import with_gradients
from omnicupy.transformers import options as transformers_options
from omnicupy.transformers.call_masks import Masks, bounded, masks_for, one_or_all
from omnicupy.transformers.mask_tensor import MaskTensor
from omnicupy.transformers.operator import through_operator


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

    query: (batch, heads, rows, head_dim).  key: (batch, kv_heads, keys, head_dim).  value: (batch, kv_heads, keys,
    value_dim), as wide or not (multi-head latent attention has 192 and 128 columns).  attention_mask: a MaskTensor, a
    tensor that broadcasts to (batch, heads, rows, keys), or None: causal where is_causal, or the module's, says so,
    within sliding_window. cu_seq_lens_q and cu_seq_lens_k bound packed sequences, within the mask
    where there is one. s_aux: a logit a head, (heads,), in any dtype, the sink_logits of attention. softcap: as there.
    ignored: names of further options that change nothing.
    Returns (out, None), out (batch, rows, heads, value_dim), contiguous. No tensor is copied, but under torch.autocast,
    where query, key and value are cast as those of scaled_dot_product_attention are, and single rows of query whose
    heads are not neighbours.
    Raises UnsupportedError for what the result would depend on and omnicupy does not compute.
    """
    query, key, value = tensors.autocast(query, key, value)
    check(module, (query, key, value), dropout, options, ignored)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    read = {name: options.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k", "sliding_window")}
    read["is_causal"] = bool(is_causal)
    inputs = query, key, value, sinks_of(module, options.get("s_aux"), query)
    scores = scaling, options.get("softcap")
    if isinstance(attention_mask, MaskTensor) and attention_mask.held.keys is not None:
        if torch.compiler.is_compiling():
            _make_masks(attention_mask)
        elif not bounded(read) and (out := _by_table(attention_mask, inputs, scores)) is not None:
            return out, None
    masks, tensor = _given(attention_mask, query.shape[0])
    if torch.compiler.is_compiling() and (masks is None or bounded(read)):
        return through_operator(inputs, masks, tensor, scores, read), None
    masks = masks_for((*query.shape[:3], key.shape[2]), masks, tensor, read)
    return _run(inputs, masks, scores), None


def _by_table(mask: MaskTensor, inputs: tuple[Any, Any, Any, Any], scores: tuple[Any, Any]) -> Any:
    """The output for one row each, whose keys a table names; None where masks serve the call."""
    held = mask.held
    if held.keys is None or held.dense is not None or mask.shape[0] not in (1, inputs[0].shape[0]):
        return None
    return held.keys.attention(*inputs, scores) if key_tables.serves(*inputs) else None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the host reads which keys a row sees
def _make_masks(mask: MaskTensor) -> None:
    """Make the masks of a MaskTensor that was made ahead of the first torch.compile of this process."""
    _ = mask.held.masks


def _run(inputs: tuple[Any, Any, Any, Any], masks: Masks, scores: tuple[Any, Any]) -> Any:
    """inputs: query, key, value and sinks.  scores: scale and softcap."""
    query, key, value, sinks = inputs
    mask, (scale, softcap) = one_or_all(masks), scores
    if tensors.need_gradients(*inputs):
        options = (scale, softcap, False, None, None, True)  # no lse, config or split, always the same bits
        return with_gradients(inputs, mask, options, tokens_first=True).transpose(1, 2)
    batch, heads, rows, _ = query.shape
    out = torch.empty((batch, rows, heads, value.shape[3]), dtype=query.dtype, device=query.device)
    changes = {"sink_logits": sinks, "softcap": softcap}
    front.attention(query, key, value, mask, scale=scale, out=out.transpose(1, 2), **changes)
    return out


def sinks_of(module: Any, logits: Any, query: Any) -> Any:
    """s_aux in the dtype of attention's sink_logits, through which gradients reach it."""
    if logits is None:
        return None
    if not isinstance(logits, torch.Tensor) or logits.shape != query.shape[1:2]:
        transformers_options.refuse(module, "sinks other than a logit a head", "s_aux", logits)
    return logits.to(torch.float64 if query.dtype == torch.float64 else torch.float32)


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


def check(
    module: Any,
    inputs: tuple[Any, Any, Any],
    dropout: float,
    options: dict[str, Any],
    ignored: Collection[str],
) -> None:
    if dropout:
        transformers_options.refuse(module, "dropout", "dropout", dropout)
    transformers_options.check(module, options, ignored)
    if (compressor := getattr(module, "compressor", None)) is not None:
        # Its keys' mask is numbers to add, which the layer casts to the mask's dtype: booleans that say the opposite.
        kind = type(compressor).__name__
        transformers_options.refuse(module, "attention to compressed keys", "compressor", kind)
    query, _, value = inputs
    if query.is_cuda and not fits_gpu(query.shape[3], value.shape[3]):
        what = f"a head_dim of the values other than that of the queries ({query.shape[3]}), so wide on a GPU"
        transformers_options.refuse(module, what, "value", value)
