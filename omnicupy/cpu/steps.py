"""The key ranges that a block row visits, as NumPy works on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, FULL, KIND, BlockMask

Array = NDArray[Any]
# Key range; where some pairs of it are hidden, words: all ones = visible.
Step = tuple[int, int, Array | None]


def steps_of(blocks: BlockMask, row: int, width: int, dtype: np.dtype[Any]) -> Iterator[Step]:
    """The visited key ranges of a block row; of runs of FULL tiles at most `width` keys (bc or more) at a time."""
    q0, q1 = row * blocks.br, min((row + 1) * blocks.br, blocks.q_len)
    most = width // blocks.bc * blocks.bc
    for e in range(blocks.row_offsets[row], blocks.row_offsets[row + 1]):
        kind, _, k0, length = (int(x) for x in blocks.entries[e])
        if kind & KIND == FULL:
            for first in range(k0, k0 + length, most):
                yield first, min(first + most, k0 + length), None
        elif kind & KIND == CAUSAL:
            visible = np.arange(k0, k0 + length) <= np.arange(q0, q1)[:, None] + blocks.diagonal
            yield k0, k0 + length, words_of(visible, dtype)
        else:
            yield k0, k0 + length, words_of(blocks.mask.dense(q0, q1, k0, k0 + length), dtype)


def words_of(visible: Array, dtype: np.dtype[Any]) -> Array:
    """Unsigned words as wide as dtype: all ones where visible, else zero."""
    words: Array = -visible.view(np.int8).astype(f"i{dtype.itemsize}")
    return words.view(f"u{dtype.itemsize}")
