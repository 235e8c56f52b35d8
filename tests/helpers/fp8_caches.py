"""e4m3 by its definition (OCP 8-bit floating point, E4M3), and caches of it beside caches of the numbers they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc

Array = NDArray[Any]
NAN = (0x7F, 0xFF)
SCALES = ("tensor", "array", "head", "token")


def _number(byte: int) -> float:
    sign, exponent, fraction = (-1.0) ** (byte >> 7), byte >> 3 & 15, byte & 7
    if exponent == 15 and fraction == 7:
        return float("nan")
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


NUMBERS = np.array([_number(byte) for byte in range(256)])


def meant(elements: Array, scale: Any, dtype: Any) -> Array:
    """float(e4m3) * scale in float32, rounded once to `dtype`. scale broadcasts against elements."""
    with np.errstate(all="ignore"):
        return (NUMBERS[elements.view(np.uint8)].astype(np.float32) * np.asarray(scale, np.float32)).astype(
            dtype
        )


def nearest(value: float) -> int:
    """The byte of the number of e4m3 that is nearest, of two the even one; beyond 448 it is 448."""
    if np.isnan(value):
        return 0x7F
    distance = np.abs(NUMBERS[:0x7F] - min(abs(value), 448.0))
    found = np.flatnonzero(distance == distance.min())
    byte = int(found[0] if len(found) == 1 or found[0] % 2 == 0 else found[1])
    return byte | (0x80 if np.signbit(value) else 0)


def elements(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Bytes of numbers of many magnitudes, none of them NaN."""
    found = aligned(shape, np.uint8)
    found[...] = rng.integers(0, 256, shape, dtype=np.uint8)
    found[np.isin(found, NAN)] = 0x38
    return found


def scales(rng: np.random.Generator, kind: str, batch: int, heads: int, capacity: int) -> Any:
    """Scales of a CachedKV, from 0.001 to 0.1, none a power of two."""
    if kind == "tensor":
        return float(rng.uniform(0.001, 0.02))
    shape = {"array": (), "head": (heads,), "token": (batch, capacity, heads)}[kind]
    found = aligned(shape, np.float32)
    found[...] = 10.0 ** rng.uniform(-3, -1.5, shape)
    return found


def along(scale: Any) -> Any:
    """The scale of a CachedKV as it broadcasts against (batch, heads, capacity, columns)."""
    if np.ndim(scale) == 1:
        return scale[None, :, None, None]
    return scale.transpose(0, 2, 1)[..., None] if np.ndim(scale) == 3 else scale


def pair(
    lengths: list[int],
    *,
    kind: str = "head",
    heads: int = 2,
    capacity: int = 240,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: Any = np.float32,
    seed: int = 0,
) -> tuple[oc.CachedKV, oc.CachedKV]:
    """A cache of e4m3 and the one of `dtype` that it means; past lengths all is NaN, scales of tokens too."""
    rng, batch = np.random.default_rng(seed), len(lengths)
    held = aligned(batch, np.int32)
    held[...] = lengths
    pools, numbers, of_pools = [], [], []
    for width in (head_dim, value_dim or head_dim):
        pool, scale = (
            elements(rng, (batch, heads, capacity, width)),
            scales(rng, kind, batch, heads, capacity),
        )
        for b, keys in enumerate(lengths):
            pool[b, :, max(keys, 0) :] = NAN[b % 2]
            if kind == "token":
                scale[b, max(keys, 0) :] = np.nan
        number = aligned(pool.shape, dtype)
        number[...] = meant(pool, along(scale), dtype)
        pools.append(pool)
        numbers.append(number)
        of_pools.append(scale)
    return oc.CachedKV(*pools, held, k_scale=of_pools[0], v_scale=of_pools[1]), oc.CachedKV(*numbers, held)


def in_pages(kv: oc.CachedKV, page_size: int, seed: int = 0) -> oc.PagedKV:
    """The same keys in pages of any order; all else NaN, scales of tokens too; entries past lengths name none."""
    rng = np.random.default_rng(seed)
    batch, heads, capacity, _ = kv.k.shape
    most = -(-capacity // page_size)
    count = batch * most + 3
    table = aligned((batch, most), np.int32)
    table[...] = rng.permutation(count)[: batch * most].reshape(batch, most)

    def scattered(array: Array, nothing: Any) -> Array:
        """array: (batch, capacity, heads, ...)."""
        found = aligned((count, page_size, heads, *array.shape[3:]), array.dtype)
        found[...] = nothing
        for b, keys in enumerate(np.clip(kv.lengths, 0, capacity).tolist()):
            for i in range(-(-keys // page_size)):
                here = array[b, i * page_size : min((i + 1) * page_size, keys)]
                found[table[b, i], : len(here)] = here
        return found

    pools = [scattered(pool.transpose(0, 2, 1, 3), NAN[0]) for pool in (kv.k, kv.v)]
    k_scale, v_scale = (
        scattered(scale, np.nan) if np.ndim(scale) == 3 else scale for scale in (kv.k_scale, kv.v_scale)
    )
    for b, keys in enumerate(np.clip(kv.lengths, 0, capacity).tolist()):
        table[b, -(-keys // page_size) :] = (2**31 - 1, -1)[b % 2]
    return oc.PagedKV(*pools, table, kv.lengths, k_scale=k_scale, v_scale=v_scale)


def queries(batch: int, heads: int, q_len: int, head_dim: int, dtype: Any) -> Array:
    """Random normal ones, tokens first in memory."""
    q = aligned((batch, q_len, heads, head_dim), dtype).transpose(0, 2, 1, 3)
    q[...] = np.random.default_rng(5).standard_normal(q.shape)
    return q
