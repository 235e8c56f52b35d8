"""Conversions of arrays: bfloat16 by bits against ml_dtypes, bit for bit."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from omnicupy.call.arrays import (
    BFLOAT16,
    OVERLAP_WORK,
    ROUNDED,
    bfloat16_bits,
    is_cupy,
    module_of,
    narrow,
    overlap,
    widen,
)


def test_every_bfloat16_widens_as_ml_dtypes_does() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16)
    assert np.array_equal(widen(every, np.float32).view(np.uint32), every.astype(np.float32).view(np.uint32))
    with np.errstate(invalid="ignore"):  # signalling NaNs
        assert np.array_equal(widen(every, np.float64), every.astype(np.float64), equal_nan=True)


def test_float32_rounds_as_ml_dtypes_does() -> None:
    """Around every bfloat16: the ties, their neighbours, and the values next to infinity and zero."""
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (high[:, None] | low).ravel().view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(bfloat16_bits(values), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_widen_and_narrow_are_inverse(dtype: type) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    wide = widen(values.T, np.float64)
    assert wide.flags.c_contiguous
    assert not np.shares_memory(wide, values)
    assert np.array_equal(narrow(wide, dtype), values.T)


def test_widen_reads_strided_bfloat16() -> None:
    values = np.random.default_rng(0).standard_normal((4, 6)).astype(BFLOAT16)
    view = values[::-1].T[1::2]
    assert np.array_equal(widen(view, np.float32), view.astype(np.float32))
    assert np.array_equal(narrow(widen(values, np.float32), BFLOAT16), values)


def test_overlap_is_exact() -> None:
    values = np.zeros((8, 4))
    assert not overlap(values[:, :2], values[:, 2:])
    assert overlap(values[:, :3], values[:, 2:])


def test_what_is_too_hard_to_tell_counts_as_overlap() -> None:
    """Strides without a common divisor: to find a common element is a search without an end in sight."""
    room = np.zeros(192163377, np.int8)  # never touched, so it takes no memory
    strided = np.lib.stride_tricks.as_strided
    first = strided(room, (1049,) * 3, (36674, 61119, 85569))
    second = strided(room[64023025:], (1049, 1049, 1), (12223, 12224, 1))
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(first, second, max_work=OVERLAP_WORK)
    assert overlap(first, second)


def test_kinds() -> None:
    assert module_of(np.zeros(1)) is np
    assert not is_cupy(np.zeros(1))
    assert not is_cupy("cupy")


def test_the_rounding_of_devices_is_that_of_numpy() -> None:
    """Its expression, read as Python: every pattern of the upper half, with lower halves around a tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).astype(np.uint32)
    condition, rest = re.sub(r"\b(0x[0-9A-F]+|\d+)u?\b", r"np.uint32(\1)", ROUNDED).split(" ? ")
    found = np.where(*(eval(part, {"np": np, "bits": bits}) for part in (condition, *rest.split(" : "))))
    assert np.array_equal(found.astype(np.uint16), bfloat16_bits(bits.view(np.float32)))
