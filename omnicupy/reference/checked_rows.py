"""Correctness inside a benchmark: some rows of a large problem against float64, before anything is timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnicupy.call.arrays import module_of, widen
from omnicupy.call.problem import scale_of
from omnicupy.masks.mask import Mask
from omnicupy.reference import attention as reference_attention

BLOCKS = 6  # runs of rows that are compared
ROWS = 32  # rows of one run
# Largest error over all checked rows, over the same-precision reference's largest error there. Rivals round
# in other places than we do; a wrong mask or a wrong tile gives tens to thousands.
TOLERANCE = 4.0


class CheckedRows:
    """The reference of a few runs of rows: the first, the last, and seeded random ones, all heads and
    batches. options: sink_logits and softcap, as of attention.
    """

    def __init__(self, arrays: tuple[Any, Any, Any], mask: Mask, **options: Any) -> None:
        q, k, v = arrays
        self._xp = module_of(q)
        self._parts = []
        scale = scale_of(None, q.shape[3])
        for q0, q1 in runs(mask.shape[0]):
            rows = mask.rows(q0, q1)
            given = q[:, :, q0:q1], k, v, [rows], scale
            exact = reference_attention.attention64(*given, **options)[0]
            near = reference_attention.attention_emulated(*given, **options)[0]
            scale_of_errors = float(self._xp.abs(widen(near, np.float64, self._xp) - exact).max())
            self._parts.append((q0, q1, exact, scale_of_errors))

    def error(self, out: Any) -> float:
        """The largest error of an output over that of the same-precision reference; inf for NaN."""
        xp = self._xp
        worst = 0.0
        unit = max(part[3] for part in self._parts) or float(np.finfo(np.float32).eps)
        for q0, q1, exact, _ in self._parts:
            found = float(xp.abs(widen(out[:, :, q0:q1], np.float64, xp) - exact).max())
            worst = max(worst, found if np.isfinite(found) else float("inf"))
        return worst / unit


def runs(q_len: int) -> list[tuple[int, int]]:
    """Runs of rows of a problem: [first, stop) each, disjoint where q_len allows, ascending."""
    if q_len <= BLOCKS * ROWS:
        return [(0, q_len)]
    starts = {0, q_len - ROWS}
    starts.update(np.random.default_rng(0).integers(0, q_len - ROWS, BLOCKS - 2).tolist())
    return [(first, first + ROWS) for first in sorted(starts)]
