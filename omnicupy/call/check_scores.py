"""Argument checks of what changes scores: `softcap` and `sink_logits`, of both passes."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.call.problem import LOG2_E, as_float, check_scale_kind, type_name


def softcap_of(softcap: Any, scale: float, dtype: str) -> float | None:
    """`softcap` as a float, or None. scale: the factor of the scores.  dtype: that of the inputs.

    Raises TypeError when it is not a real number; ValueError where it, its product with log2(e) or scale / softcap, by
    which engines multiply, is not a normal, positive number in the dtype that scores are computed in.
    """
    if softcap is None:
        return None
    _check_softcap_kind(softcap)
    limits = np.finfo(np.float64 if dtype == "float64" else np.float32)
    least, most = float(limits.tiny), float(limits.max) / LOG2_E
    cap = as_float(softcap)
    if not least <= cap <= most or not least <= scale / cap <= most:  # not for NaN
        raise ValueError(
            f"softcap must be finite and above 0 in {limits.dtype}, and scale / softcap too, got {softcap} with scale "
            f"{scale}; pass None for scores that are not capped"
        )
    return cap


def check_kinds(scale: Any, softcap: Any) -> None:
    """Raises TypeError where one is neither None nor a real number; for callers that look at values later."""
    if scale is not None:
        check_scale_kind(scale)
    if softcap is not None:
        _check_softcap_kind(softcap)


def _check_softcap_kind(softcap: Any) -> None:
    if isinstance(softcap, (bool, np.bool_)) or not isinstance(softcap, Real):
        raise TypeError(
            f"softcap must be a number or None (scores are not capped), got {type_name(softcap)}; pass float(softcap)"
        )


def check_sink_logits(sink_logits: Any, q: Any) -> None:
    """Raises TypeError or ValueError unless `sink_logits`, an array of q's library on its device, has a number for each
    head of q.

    Elements are read on the CPU alone: there NaN and +inf raise ValueError. A GPU's are not read.
    """
    dtype = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    if sink_logits.dtype != dtype:
        raise TypeError(f"sink_logits must be {dtype} where q is {q.dtype}, got {sink_logits.dtype}; cast it")
    if sink_logits.shape != q.shape[1:2]:
        raise ValueError(
            f"sink_logits must have the shape (q heads,) = {tuple(q.shape[1:2])}, got {sink_logits.shape}; pass one "
            "logit a query head"
        )
    if is_on_gpu(sink_logits):
        _check_layout(sink_logits)
    elif not (sink_logits < np.inf).all():  # not for NaN
        raise ValueError(
            f"sink_logits must hold numbers below infinity, got {sink_logits[~(sink_logits < np.inf)][0]}; pass -inf "
            "for a head without a sink"
        )


def _check_layout(sink_logits: Any) -> None:
    size, copy_with = sink_logits.dtype.itemsize, getattr(sink_logits, "copy_with", "cupy.ascontiguousarray")
    if sink_logits.strides[0] != size and sink_logits.shape[0] > 1:
        raise ValueError(
            f"sink_logits must be contiguous (a stride of {size} bytes), got {sink_logits.strides[0]}; copy it with "
            f"{copy_with}"
        )
    if sink_logits.data.ptr % size:
        raise ValueError(
            f"sink_logits must start on a multiple of {size} bytes, got address {sink_logits.data.ptr:#x}; copy it "
            f"with {copy_with}"
        )
