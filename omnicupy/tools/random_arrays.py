"""Seeded normal inputs, made as the bits of their dtype."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from omnicupy.call.arrays import BFLOAT16, narrow

POOL = 2**25  # random numbers kept on a GPU, from which its inputs are cut: drawing them anew takes longer
DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")} | {"bfloat16": BFLOAT16}


def normals(count: int, seed: int, xp: Any) -> Any:
    """`count` standard normal numbers, float32 (count,); on a GPU cut from one pool, which repeats after
    POOL.
    """
    if xp is np:
        return np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    pool = _pool(xp, int(xp.cuda.runtime.getDevice()))
    first = seed * 7919 % POOL
    if first + count <= POOL:
        return pool[first : first + count]
    pieces, left = [pool[first:]], count - (POOL - first)
    while left > 0:
        pieces.append(pool[:left])
        left -= POOL
    return xp.concatenate(pieces)


def random_bits(shape: tuple[int, ...], seed: int, dtype: str, factor: float, xp: Any) -> Any:
    """Standard normal numbers times `factor`, rounded to `dtype`, as unsigned integers of its size."""
    values = normals(int(np.prod(shape)), seed, xp).reshape(shape)
    if factor != 1.0:
        values = values * np.float32(factor)
    return narrow(values, DTYPES[dtype]).view(unsigned(dtype))


@lru_cache(maxsize=1)
def _pool(xp: Any, device: int) -> Any:
    return xp.asarray(np.random.default_rng(0).standard_normal(POOL, dtype=np.float32))


def unsigned(dtype: str) -> Any:
    return np.dtype(f"u{DTYPES[dtype].itemsize}")
