"""Tensor maps as cpu_threads/ptx_sm90.cuh reads them: {address, rank, lengths (5), strides in bytes (4), box (5)}."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from omnicupy.gpu import tensor_maps


@contextmanager
def encoded_for_the_host() -> Iterator[None]:
    """gpu/tensor_maps.py makes such maps, of what it gives the driver."""

    def encoded(
        pointer: int, lengths: Sequence[int], strides: Sequence[int], dtype: str, box: Sequence[int]
    ) -> bytes:
        words = np.zeros(16, np.uint64)
        words[:2] = pointer, len(lengths)
        words[2 : 2 + len(lengths)] = lengths
        words[7 : 7 + len(strides)] = strides
        words[11 : 11 + len(box)] = box
        return words.tobytes()

    before = tensor_maps._encoded
    tensor_maps._encoded = encoded
    try:
        yield
    finally:
        tensor_maps._encoded = before
