"""Whether calls that are repeated give the same bits: kept on their device, looked at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from omnicupy.call.arrays import is_cupy


class ChangedBits:
    """The results of a first call, and which of their bits any later call gave otherwise.

    first: NumPy or CuPy arrays of any strides, None for those that are left out.
    """

    def __init__(self, first: Sequence[Any]) -> None:
        self._first = [None if one is None else _bits(one) for one in first]
        self._changed: list[Any] = [None] * len(self._first)

    def add(self, again: Sequence[Any]) -> None:
        """The results of another call, in the order of the first one's. Enqueues work, waits for nothing."""
        for at, (first, one) in enumerate(zip(self._first, again, strict=True)):
            if first is None:
                continue
            before = self._changed[at]
            if before is None:
                self._changed[at] = first ^ _bits(one)
            elif is_cupy(before):
                _adding_on_device()(first, _bits(one), before, before)
            else:
                before |= first ^ _bits(one)

    def count(self) -> int:
        """Elements that any call gave otherwise. Waits for the device."""
        counts = [(one != 0).sum() for one in self._changed if one is not None]
        return int(sum(counts[1:], counts[0])) if counts else 0

    def problem(self, repeats: int) -> str:
        """What is wrong, "" where nothing is. repeats: calls, the first one counted."""
        count = self.count()
        return f"{count} elements differ over {repeats} repetitions" if count else ""


@cache
def _adding_on_device() -> Any:
    """One launch in place of two: with other processes beside this one a launch costs more than what it does."""
    import cupy

    return cupy.ElementwiseKernel(
        "T first, T again, T before", "T after", "after = before | (first ^ again);", "changed_bits"
    )


def _bits(array: Any) -> Any:
    """An array of any strides as the unsigned integers that its elements are, in the same memory."""
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))
