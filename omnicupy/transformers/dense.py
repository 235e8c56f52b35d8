"""Masks of the mask tensors that models take from their callers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnicupy.errors import UnsupportedError
from omnicupy.masks.constructors import from_dense
from omnicupy.masks.mask import Mask
from omnicupy.transformers.closures import array
from omnicupy.transformers.kept import derived, kept
from omnicupy.transformers.rules import Keys, View

HIDDEN = -1e4  # an additive mask hides by this or less: exp(-1e4) is zero in every dtype

INSTEAD = "a mask made by omnicupy.transformers.attention_mask"  # of a tensor, where none can be read
_REST = "load the model with attn_implementation='eager'"


def from_tensor(tensor: Any, shape: tuple[int, int, int, int]) -> tuple[Mask, ...]:
    """The masks of a tensor that broadcasts to `shape` (batch, heads, rows, keys): one, or one for each element.

    Boolean (True is visible), floating point (0 is visible, -1e4 and less is hidden), or integers: 0 and 1 as booleans,
    0 and -1e4 or less as floating point. Heads may repeat one mask.
    Raises TypeError for other dtypes and ranks, ValueError for other shapes, UnsupportedError for biases and for heads
    with masks of their own.
    """
    if tensor.ndim != 4:
        raise TypeError(
            f"attention_mask must have 4 axes (batch, heads, rows, keys), got shape {tuple(tensor.shape)}; pass a "
            "mask of shape (batch, tokens) to the model, which makes one of it"
        )
    if any(one not in (1, wanted) for one, wanted in zip(tensor.shape, shape, strict=True)):
        raise ValueError(
            f"attention_mask must broadcast to (batch, heads, rows, keys) = {shape}, got shape "
            f"{tuple(tensor.shape)}; build it for these lengths"
        )
    rows, keys = shape[2:]
    masks: tuple[Mask, ...] = derived(
        tensor,
        ("dense", rows, keys),
        lambda one: _masks_of(one, rows, keys),
        INSTEAD,
    )
    return masks


def _masks_of(tensor: Any, rows: int, keys: int) -> tuple[Mask, ...]:
    visible = _visible(tensor)
    if visible.shape[1] > 1 and (visible != visible[:, :1]).any():
        raise UnsupportedError(
            f"attention_mask: a mask for each head, of shape {tuple(tensor.shape)}, is not supported; {_REST}"
        )
    return tuple(kept(_mask(one, rows, keys)) for one in array(visible[:, 0], np.bool_))


def _mask(visible: NDArray[np.bool_], rows: int, keys: int) -> Mask:
    """visible: (1 or rows, 1 or keys)."""
    if len(visible) == 1:  # all rows see the same keys
        return Keys(np.broadcast_to(visible, (1, keys))).mask(View(0, rows, 0, keys), 0)
    return from_dense(np.broadcast_to(visible, (rows, keys)))


def _visible(tensor: Any) -> Any:
    """Which elements of a mask tensor are visible, as booleans."""
    if tensor.dtype == torch.bool:
        return tensor
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(
            f"attention_mask must be boolean, floating point or integers, got {tensor.dtype}; pass a boolean mask"
        )
    if not tensor.is_floating_point() and not (tensor < 0).any():
        return _of_integers(tensor)
    floating = tensor if tensor.is_floating_point() else tensor.double()
    shown = floating == 0
    # As this dtype rounds it. A number on the CPU goes with a tensor of any device.
    hidden = floating <= torch.tensor(HIDDEN, dtype=floating.dtype, device="cpu")
    if not (shown | hidden).all():
        raise UnsupportedError(
            f"attention_mask: biases are not supported, only 0 (visible) and -1e4 or less (hidden); {_REST}"
        )
    return shown


def _of_integers(tensor: Any) -> Any:
    ones = tensor == 1
    if not (ones | (tensor == 0)).all():
        raise UnsupportedError(
            f"attention_mask: integers must be 0 and 1, or 0 (visible) and -1e4 or less (hidden); {_REST}"
        )
    if not ones.any():
        raise TypeError(
            "attention_mask: integers that are all 0 can mean that everything is visible, or nothing; pass booleans"
        )
    return ones
