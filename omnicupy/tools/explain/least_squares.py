"""Least squares whose numbers are times, and so never below zero."""

from __future__ import annotations

import numpy as np

from omnicupy.choose.ceilings import FloatArray


def not_negative(rows: FloatArray, target: FloatArray) -> FloatArray:
    """Least squares without negative numbers: the most negative one is held at zero until none is left."""
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq((rows / scale)[:, kept], target, rcond=None)[0]
        if found.min(initial=0.0) >= 0:
            out = np.zeros(rows.shape[1])
            out[kept] = found / scale[kept]
            return out
        kept.pop(int(found.argmin()))
