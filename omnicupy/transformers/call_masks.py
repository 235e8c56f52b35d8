"""The masks of a call, made of all that a layer of transformers says about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from omnicupy.masks.mask import Mask
from omnicupy.transformers.dense import from_tensor
from omnicupy.transformers.kept import MAX_KEPT, kept
from omnicupy.transformers.sequences import packed, without_bounds

Masks = Sequence[Mask] | None


def masks_for(shape: tuple[int, int, int, int], masks: Masks, tensor: Any, read: dict[str, Any]) -> Masks:
    """The masks of a call: one, or one for each batch element; None is full. shape: (batch, heads, rows, keys)."""
    if masks is None and tensor is None:
        rows, keys = shape[2:]
        found = (
            packed(read, shape)
            if bounded(read)
            else without_bounds(rows, keys, read["is_causal"], read["sliding_window"])
        )
        return None if found is None else [found]
    if masks is None:
        masks = from_tensor(tensor, shape)
    if bounded(read):  # the mask has the windows and is causal where it is to be
        together = packed({**read, "sliding_window": None, "is_causal": False}, shape)
        masks = [_both(mask, together) for mask in masks]
    return list(masks)


def bounded(read: dict[str, Any]) -> bool:
    """Whether the bounds of packed sequences are given."""
    return read["cu_seq_lens_q"] is not None or read["cu_seq_lens_k"] is not None


@lru_cache(maxsize=MAX_KEPT)  # masks are immutable and compared by their pairs
def _both(one: Mask, other: Mask) -> Mask:
    return kept(one & other)


def one_or_all(masks: Masks) -> Any:
    """The masks as `attention` takes them."""
    return masks[0] if masks is not None and len(masks) == 1 else masks
