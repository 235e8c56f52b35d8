"""Bits that change between calls are found, in any of them, in any array, NaN and signs of zero included."""

from __future__ import annotations

import numpy as np
import pytest

from omnicupy.tools.verify.changed_bits import ChangedBits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("call", range(3))
def test_a_change_in_any_call_counts_once(dtype: type, call: int) -> None:
    first = [np.arange(12, dtype=dtype).reshape(3, 4), None, np.zeros((2, 2), dtype)]
    of_calls = ChangedBits(first)
    for turn in range(3):
        again = [first[0].copy(), None, first[2].T.copy().T]
        if turn == call:
            again[0][1, 2] = np.nextafter(again[0][1, 2], dtype(99))
            again[2][0, 1] = -0.0
        of_calls.add(again)
    assert of_calls.count() == 2
    assert of_calls.problem(4) == "2 elements differ over 4 repetitions"


def test_equal_bits_are_no_problem() -> None:
    first = [np.array([np.nan, np.inf, -0.0], np.float32)]
    of_calls = ChangedBits(first)
    assert of_calls.problem(1) == ""
    of_calls.add([first[0].copy()])
    assert (of_calls.count(), of_calls.problem(2)) == (0, "")


def test_a_change_back_is_a_change() -> None:
    first = [np.ones(3, np.float16)]
    of_calls = ChangedBits(first)
    for value in (2, 2, 1):
        of_calls.add([np.full(3, value, np.float16)])
    assert of_calls.count() == 3
