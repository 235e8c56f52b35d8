"""How a warp finds the bits of its mask (kernels/omni/mask/keep.cuh), in NumPy: lanes ask for keys, get rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

LANES = np.arange(32)
Words = NDArray[np.uint32]


def _transpose_over_lanes(x: Words) -> Words:
    for step, lower in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F)):
        odd = (LANES // 4 & step) != 0
        keep = np.where(odd, ~np.uint32(lower), np.uint32(lower))
        got = x[LANES ^ (4 * step)]
        turn = np.where(odd, 32 - step, step).astype(np.uint32)
        x = (x & keep) | ((got << turn | got >> (np.uint32(32) - turn)) & ~keep)
    return x


def _rows_from(first: NDArray[np.int64]) -> Words:
    """Bits of the rows from `first` on, of 32."""
    rows = np.arange(32)
    return ((rows >= first[:, None]) << rows).sum(axis=1).astype(np.uint32)


def _first_key(group: int, blocks: int) -> NDArray[np.int64]:
    return 8 * np.minimum(8 * group + LANES // 4, blocks - 1) + 2 * (LANES % 4)


@pytest.mark.parametrize("columns", [32, 64, 96, 128, 160, 192])
@pytest.mark.parametrize("strips", [1, 2])
def test_every_element_of_the_tile_gets_its_own_bit(columns: int, strips: int) -> None:
    rng = np.random.default_rng(columns + strips)
    start = rng.integers(-20, 40, columns)
    stop = start + rng.integers(0, 40, columns)
    rows = np.arange(16 * strips)[:, None]
    wanted = (rows >= start) & (rows < stop)
    found = np.zeros_like(wanted)
    for group in range(-(-columns // 64)):
        key = _first_key(group, columns // 8)
        x, y = (_rows_from(start[key + e]) & ~_rows_from(stop[key + e]) for e in (0, 1))
        for m in range(strips):
            words = (x >> np.uint32(16 * m) & 0xFFFF) | (y >> np.uint32(16 * m) << np.uint32(16))
            bits = _transpose_over_lanes(words.astype(np.uint32))
            for i in range(min(8, columns // 8 - 8 * group)):
                for e in range(2):
                    for h in range(2):
                        row = 16 * m + 8 * h + LANES // 4
                        column = 8 * (8 * group + i) + 2 * (LANES % 4) + e
                        found[row, column] = bits >> np.uint32(16 * e + 8 * h + i) & 1
    np.testing.assert_array_equal(found, wanted)


def test_four_bits_of_a_word_are_gathered() -> None:
    """set_bit_tile: bit 0 of each byte, by one multiplication."""
    bits = np.arange(16, dtype=np.uint32)
    spread = sum((bits >> np.uint32(i) & 1) << np.uint32(8 * i) for i in range(4)).astype(np.uint32)
    np.testing.assert_array_equal(spread * np.uint32(0x01020408) >> np.uint32(24), bits)
