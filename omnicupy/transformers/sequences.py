"""Masks of calls that come without one: causal, windows, and packed sequences given by their bounds."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnicupy.errors import UnsupportedError
from omnicupy.masks.intervals import tidy
from omnicupy.masks.mask import Mask
from omnicupy.transformers.closures import array
from omnicupy.transformers.kept import derived, kept
from omnicupy.transformers.rules import Band, View

Bounds = NDArray[np.int64]


@lru_cache(maxsize=64)  # the arguments determine the mask
def without_bounds(rows: int, keys: int, is_causal: bool, window: int | None) -> Mask | None:
    """The mask of a call without mask and bounds. None: every row sees every key.

    Aligned at the top left: without a mask, transformers means an empty cache that is longer than its tokens. A window
    is that of its flash attention: |row - key| < window. Raises UnsupportedError for a window over other keys than the
    rows, whose place among them nothing says.
    """
    is_causal = is_causal and rows > 1
    if window is None or window >= keys:
        return Band(low=0).mask(View(0, rows, 0, keys), 0) if is_causal else None
    if rows != keys:
        raise UnsupportedError(
            f"sliding_window={window} without a mask goes with as many keys as rows, got {rows} rows and {keys} keys; "
            "pass attention_mask"
        )
    return Band(0 if is_causal else 1 - window, window - 1).mask(View(0, rows, 0, keys), 0)


def packed(read: dict[str, Any], shape: tuple[int, int, int, int]) -> Mask:
    """The mask of sequences one after the other, by cu_seq_lens_q, cu_seq_lens_k, sliding_window and is_causal.

    shape: (batch, heads, rows, keys). Causal and windows are aligned at the end of each sequence, as in flash
    attention.
    Raises TypeError and ValueError for bounds that do not cut the rows and the keys.
    """
    batch, _, rows, keys = shape
    of_rows, of_keys = read["cu_seq_lens_q"], read["cu_seq_lens_k"]
    window, is_causal = read["sliding_window"], read["is_causal"]
    for name, bounds in (("cu_seq_lens_q", of_rows), ("cu_seq_lens_k", of_keys)):
        if bounds is not None:
            check_integers(name, bounds)
    if of_rows is None:
        of_rows = of_keys
    if batch != 1:
        raise ValueError(f"cu_seq_lens_q goes with a batch of one, got {batch}; put all sequences in one row")
    instead = "a mask made by omnicupy.transformers.attention_mask"
    known = None
    if of_keys is not None and of_keys is not of_rows:
        known = derived(of_keys, ("bounds", keys), lambda one: _numbers("cu_seq_lens_k", one, keys), instead)

    def made(bounds: Any) -> tuple[Mask, ...]:
        q = _cut("cu_seq_lens_q", array(bounds), rows)
        k = q if known is None else np.asarray(known, np.int64)
        if known is None:
            _cut("cu_seq_lens_k", q, keys)
        return (kept(of_bounds(q, k, is_causal, window)),)

    what = ("packed", rows, keys, known, is_causal, window)
    masks: tuple[Mask] = derived(of_rows, what, made, instead)
    return masks[0]


def check_integers(name: str, bounds: Any) -> None:
    """Raises TypeError for what is no tensor of integers, whose numbers would be cut off."""
    if not isinstance(bounds, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {type(bounds).__name__}; convert it")
    dtype = bounds.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool or bounds.is_quantized:
        raise TypeError(f"{name} must be a tensor of integers, got {dtype}; cast it")


def _numbers(name: str, bounds: Any, tokens: int) -> tuple[int, ...]:
    return tuple(_cut(name, array(bounds), tokens).tolist())


def _cut(name: str, bounds: Bounds, tokens: int) -> Bounds:
    """The bounds, where they cut so many tokens into sequences."""
    good = bounds.ndim == 1 and len(bounds) > 1 and bounds[0] == 0 and bounds[-1] == tokens
    if not good or (np.diff(bounds) < 0).any():
        raise ValueError(
            f"{name} must rise from 0 to the {tokens} tokens, got {bounds.tolist()}; pass the cumulative lengths of "
            "all sequences"
        )
    return bounds


def of_bounds(rows: Bounds, keys: Bounds, is_causal: bool, window: int | None) -> Mask:
    """Sequence i has rows [rows[i], rows[i + 1]) and keys [keys[i], keys[i + 1])."""
    if len(rows) != len(keys):
        raise ValueError(
            f"cu_seq_lens_q and cu_seq_lens_k must bound as many sequences, got {len(rows) - 1} and {len(keys) - 1}; "
            "an empty one repeats a bound"
        )
    of_rows, of_keys = rows.astype(np.int32), keys.astype(np.int32)
    lengths = np.diff(keys)
    lo, hi = np.repeat(of_rows[:-1], lengths), np.repeat(of_rows[1:], lengths)
    if is_causal or window is not None:
        # The row that stands where a key stands, both counted from the end of their sequence.
        place = np.arange(keys[-1], dtype=np.int32)
        place -= np.repeat(of_keys[1:] - of_rows[1:], lengths)
        if window is not None:
            width = np.int32(min(window, int(rows[-1]) + int(keys[-1])))  # nothing is further apart
            np.minimum(hi, place + width, out=hi)
            np.maximum(lo, place - (width - np.int32(1)), out=lo)
        if is_causal:
            np.maximum(lo, place, out=lo)
    return Mask((int(rows[-1]), int(keys[-1])), intervals=tidy(lo[None], hi[None]))
