"""Masks as transformers hands them from its mask functions to its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from transformers.masking_utils import causal_mask_function

from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import MAX_LENGTH, at_least_one
from omnicupy.masks.mask import Mask
from omnicupy.torch import tensors
from omnicupy.torch.state import is_exporting
from omnicupy.transformers import on_device, one_row, options, rules
from omnicupy.transformers.closures import Reader, array, known
from omnicupy.transformers.mask_tensor import MaskTensor
from omnicupy.transformers.rules import Keys, View


def attention_mask(masks: Mask | Sequence[Mask], batch: int = 1, device: Any = "cpu") -> MaskTensor:
    """A mask of your own as the `attention_mask` of a model: model(ids, attention_mask=attention_mask(mask)).

    masks: one for all of `batch` elements, or a list with one for each. Models with several kinds of layers
    (Gemma 3) take a dict of these by kind. device: where the model is. For `forward`; `generate` makes its
    own masks.
    Raises TypeError for other types, ValueError for an empty list, masks of several shapes and another `batch` than
    the list's.
    """
    if not isinstance(masks, (Mask, list, tuple)):
        raise TypeError(
            f"attention_mask: masks must be a Mask or a list of masks, got {type(masks).__name__}; build it with "
            "omnicupy"
        )
    given = [masks] if isinstance(masks, Mask) else list(masks)
    for i, mask in enumerate(given):
        if not isinstance(mask, Mask):
            raise TypeError(
                f"attention_mask: masks[{i}] must be a Mask, got {type(mask).__name__}; build it with omnicupy"
            )
        if mask.shape != given[0].shape:
            raise ValueError(
                f"attention_mask: masks must have one shape, got {given[0].shape} and masks[{i}] of "
                f"{mask.shape}; pad them with presets.padding"
            )
    if not given:
        raise ValueError("attention_mask: masks must hold at least one mask, got none; pass one an element")
    elements = at_least_one("attention_mask", "batch", batch)
    if elements > MAX_LENGTH:
        raise ValueError(
            f"attention_mask: batch must be at most {MAX_LENGTH}, got {elements}; pass that of the tokens"
        )
    tensors.check_device("attention_mask", device, "the model's")
    if not isinstance(masks, Mask) and elements not in (1, len(given)):
        raise ValueError(
            f"attention_mask: batch must be the number of masks ({len(given)}) or left out, got {batch}; pass a single "
            "mask to share it"
        )
    return MaskTensor(given, elements if isinstance(masks, Mask) else len(given), device)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Any = None,
    use_vmap: bool = False,
    device: Any = "cpu",
    ignored: Collection[str] = (),
    **rest: Any,
) -> MaskTensor:
    """What transformers calls once a forward pass and kind of layer to make a mask.

    Row i stands at q_offset + i, key j at kv_offset + j; attention_mask: boolean (batch, positions), False
    for padding. The mask is what mask_function and the padding allow, exactly. ignored: names of further options
    that change nothing. Raises UnsupportedError for an option that is not known, ValueError for an attention_mask of
    other axes, or of fewer elements than the batch.
    """
    options.check_mask_options(rest, ignored)
    if not (batch_size and q_length and kv_length):
        raise ValueError(
            f"a mask is asked for with an empty axis, (batch, rows, keys) = "
            f"{(int(batch_size), int(q_length), int(kv_length))}; skip the call when it is empty"
        )
    if is_exporting():
        raise UnsupportedError(
            "torch.export cannot store a mask that is made while the model runs; load the "
            "model with attn_implementation='sdpa'"
        )
    if q_length == 1 and on_device.serves(device):
        sizes, offsets = (q_length, kv_length), (q_offset, kv_offset)
        how = {"device": device, "use_vmap": use_vmap}
        seen = on_device.keys_of(batch_size, sizes, offsets, mask_function, attention_mask, **how)
        if seen is not None:
            return MaskTensor.of_keys(seen, int(batch_size))
    view = View(int(q_offset), int(q_length), int(kv_offset), int(kv_length))
    reader = Reader(view, known(), device, use_vmap)
    rule = reader.rule(mask_function)
    if attention_mask is not None:
        visible = array(attention_mask, np.bool_)
        if visible.ndim != 2 or len(visible) < batch_size:
            raise ValueError(
                f"attention_mask must have shape (batch, tokens) or 4 axes (batch, heads, rows, keys), for a batch of "
                f"{int(batch_size)}, got shape {visible.shape}; add the axes and elements that are missing"
            )
        keys = visible[:, view.k0 : view.k0 + view.k_len]
        if keys.shape[1] < view.k_len or not keys.all():
            rule = rules.both(rule, Keys(visible))
    return MaskTensor(one_row.masks_of(rule, view, int(batch_size)), int(batch_size), device)
