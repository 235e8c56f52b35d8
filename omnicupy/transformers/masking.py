"""Masks as transformers hands them from its mask functions to its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers.masking_utils import causal_mask_function

from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import at_least_one
from omnicupy.masks.constructors import from_dense
from omnicupy.masks.mask import Mask
from omnicupy.transformers import rules
from omnicupy.transformers.closures import Reader, array, known
from omnicupy.transformers.rules import Keys, View

MAX_KEPT = 32  # masks that stay for calls with equal ones, with their block lists and device copies

_aten = torch.ops.aten
_MOVES = {_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten._to_copy.default}


class MaskTensor(torch.Tensor):  # type: ignore[misc]  # no types where torch is missing
    """A boolean tensor (batch, 1, rows, keys) that holds masks instead of elements.

    masks: one for all batch elements, or one for each. It can be moved, copied and asked for its shape; whatever
    else is done to it raises UnsupportedError.
    """

    masks: tuple[Mask, ...]

    @staticmethod
    def __new__(cls, masks: Sequence[Mask], batch: int, device: Any) -> MaskTensor:
        shape = (batch, 1, *masks[0].shape)
        made: MaskTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        made.masks = tuple(masks)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _MOVES and options.get("dtype") in (None, torch.bool):
            moved = args[0]
            return cls(moved.masks, moved.shape[0], options.get("device") or moved.device)
        raise UnsupportedError(
            f"attention_mask: {func} computes with the elements of a mask, which omnicupy does not make; use "
            "attn_implementation='sdpa' for this model"
        )

    def __repr__(self) -> str:
        return f"MaskTensor({', '.join(map(repr, self.masks))}, batch={self.shape[0]}, device={str(self.device)!r})"


def attention_mask(masks: Mask | Sequence[Mask], batch: int = 1, device: Any = "cpu") -> MaskTensor:
    """A mask of your own as the `attention_mask` of a model: model(ids, attention_mask=attention_mask(mask)).

    masks: one for all of `batch` elements, or a list with one for each. Models with several kinds of layers
    (Gemma 3) take a dict of these by kind. device: where the model is. For `forward`; `generate` makes its
    own masks.
    Raises TypeError for other types, ValueError for an empty list, masks of several shapes and another `batch` than
    the list's.
    """
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
    **_: Any,
) -> MaskTensor:
    """What transformers calls once a forward pass and kind of layer to make a mask.

    Row i stands at q_offset + i, key j at kv_offset + j; attention_mask: boolean (batch, positions), False
    for padding. The mask is what mask_function and the padding allow, exactly.
    """
    view = View(int(q_offset), int(q_length), int(kv_offset), int(kv_length))
    reader = Reader(view, known(), device, use_vmap)
    rule = reader.rule(mask_function)
    if attention_mask is not None:
        visible = array(attention_mask, np.bool_)
        keys = visible[:, view.k0 : view.k0 + view.k_len]
        if keys.shape[1] < view.k_len or not keys.all():
            rule = rules.both(rule, Keys(visible))
    masks = rules.masks_of(rule, view, int(batch_size))
    return MaskTensor([kept(mask) for mask in masks], int(batch_size), device)


@lru_cache(maxsize=MAX_KEPT)
def kept(mask: Mask) -> Mask:
    """The first mask that was equal to this one, so that equal masks share what was made for them."""
    return mask


_derived: Any = WeakIdKeyDictionary()  # tensor -> {what: (version, masks)}


def derived(tensor: Any, what: object, make: Callable[[Any], tuple[Mask, ...]]) -> tuple[Mask, ...]:
    """make(tensor), kept while the tensor lives and is not written: every layer gets the same one.

    what: names `make`. Tensors made in inference mode do not say when they are written: nothing is kept.
    """
    if tensor.is_inference():
        return make(tensor)
    found = _derived.setdefault(tensor, {})
    if what not in found or found[what][0] != tensor._version:
        found[what] = tensor._version, make(tensor)
    masks: tuple[Mask, ...] = found[what][1]
    return masks


def from_tensor(tensor: Any) -> tuple[Mask, ...]:
    """The masks of a tensor (1 or batch, 1 or heads, rows, keys), boolean or 0 and -inf, one for each element.

    Raises TypeError for other dtypes and ranks, UnsupportedError for biases and for heads with masks of their
    own.
    """
    if tensor.ndim != 4:
        raise TypeError(
            f"attention_mask must have 4 axes (batch, heads, rows, keys), got shape {tuple(tensor.shape)}; pass a "
            "mask of shape (batch, tokens) to the model, which makes one of it"
        )
    return derived(tensor, "dense", _masks_of)


def _masks_of(tensor: Any) -> tuple[Mask, ...]:
    if (tensor != tensor[:, :1]).any():
        raise UnsupportedError(
            f"attention_mask: a mask for each head, of shape {tuple(tensor.shape)}, is not supported; use "
            "attn_implementation='sdpa' for this model"
        )
    visible = tensor[:, 0]
    if tensor.is_floating_point():
        hidden = visible <= torch.finfo(tensor.dtype).min / 2
        visible = visible == 0
        if not (visible | hidden).all():
            raise UnsupportedError(
                "attention_mask: biases are not supported, only 0 (visible) and -inf (hidden); use "
                "attn_implementation='sdpa' for this model"
            )
    elif tensor.dtype != torch.bool:
        raise TypeError(
            f"attention_mask must be boolean or 0 and -inf, got {tensor.dtype}; pass attention_mask.bool()"
        )
    return tuple(kept(from_dense(array(one, np.bool_))) for one in visible)
