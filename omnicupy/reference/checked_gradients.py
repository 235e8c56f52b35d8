"""Correctness inside a benchmark: some rows of dq and some keys of dk and dv of a large problem against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.call.arrays import module_of, widen
from omnicupy.masks.mask import Mask
from omnicupy.reference.backward import gradients64, gradients_emulated
from omnicupy.reference.checked_rows import runs

NAMES = ("dq", "dk", "dv")


class CheckedGradients:
    """The reference of a few runs of rows and of keys, all heads and batch elements of the inputs.

    inputs: dout, q, k, v; gradients may have more batch elements behind those.  out, lse: of the forward pass, which
    the reference takes as they are.
    """

    def __init__(self, inputs: tuple[Any, Any, Any, Any], mask: Mask, out: Any, lse: Any) -> None:
        dout, q, k, v = inputs
        self._xp, self._batch = module_of(q), q.shape[0]
        self._parts: list[tuple[int, slice, Any]] = []  # which gradient, where, and what it is there
        self._units = [0.0, 0.0, 0.0]
        for first, stop in runs(mask.shape[0]):
            rows = slice(first, stop)
            of_rows = (dout[:, :, rows], q[:, :, rows], k, v)
            self._add(of_rows, mask[rows, :], (out[:, :, rows], lse[:, :, rows]), {0: rows})
        for first, stop in runs(mask.shape[1]):
            keys = slice(first, stop)
            self._add((dout, q, k[:, :, keys], v[:, :, keys]), mask[:, keys], (out, lse), {1: keys, 2: keys})

    def _add(
        self, inputs: tuple[Any, Any, Any, Any], mask: Mask, whole: tuple[Any, Any], kept: dict[int, slice]
    ) -> None:
        exact = gradients64(*inputs, mask, whole=whole)
        near, _ = gradients_emulated(*inputs, mask, out=whole[0], lse=whole[1])
        for number, at in kept.items():
            self._parts.append((number, at, exact[number]))
            error = float(self._xp.abs(widen(near[number], np.float64, self._xp) - exact[number]).max())
            self._units[number] = max(self._units[number], error)

    def error(self, gradients: Sequence[Any]) -> float:
        """The largest error of dq, dk and dv, each over that of the same-precision reference; inf for NaN.

        gradients: the three, None for one that was not wanted.
        """
        xp, found = self._xp, 0.0
        for number, at, exact in self._parts:
            if gradients[number] is None:
                continue
            error = float(
                xp.abs(widen(gradients[number][: self._batch, :, at], np.float64, xp) - exact).max()
            )
            unit = self._units[number] or float(np.finfo(np.float32).eps)
            found = max(found, error / unit if np.isfinite(error) else float("inf"))
        return found
