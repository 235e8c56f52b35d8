"""Inputs of many layers of one problem: other queries, keys and values each, also as caches of e4m3; and what their
results are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from omnicupy.call.arrays import E4M3, module_of, narrow, widen
from omnicupy.call.problem import scale_of
from omnicupy.masks.mask import Mask
from omnicupy.tools.random_arrays import DTYPES, normals, random_bits
from omnicupy.tools.workloads.workload import Workload

# Exponents of float16 and of e4m3 have the biases 15 and 7; three bits of fraction lie below them.
BIASES_APART = (15 - 7) << 3


class Layer(NamedTuple):
    """q (batch, q_heads, rows, head_dim), k and v (batch, kv_heads, keys, head_dim)."""

    q: Any
    k: Any
    v: Any


@dataclass(frozen=True)
class E4M3Cache:
    """Bytes of keys and values, and a scale for each head."""

    k: Any
    v: Any
    k_scale: Any
    v_scale: Any

    def meant(self, dtype: Any) -> tuple[Any, Any]:
        """The keys and values that these stand for."""
        return _meant(self.k, self.k_scale, dtype), _meant(self.v, self.v_scale, dtype)


def make_layers(workload: Workload, mask: Mask, dtype: str, count: int) -> list[Layer]:
    """Random normal inputs on the current device."""
    import cupy

    rows, keys = mask.shape
    shapes = [(workload.batch, workload.q_heads, rows, workload.head_dim)]
    shapes += [(workload.batch, workload.kv_heads, keys, workload.head_dim)] * 2
    return [
        Layer(
            *(
                random_bits(shape, 1 + 3 * i + seed, dtype, 1.0, cupy).view(DTYPES[dtype])
                for seed, shape in enumerate(shapes)
            )
        )
        for i in range(count)
    ]


def e4m3_cache(layer: Layer, seed: int) -> E4M3Cache:
    """A cache of a layer's shape: normal numbers cut to three bits of fraction, scales of heads from 0.5 to 1.5."""
    xp = module_of(layer.q)
    rng = np.random.default_rng(seed)
    k_scale, v_scale = (
        xp.asarray(rng.uniform(0.5, 1.5, layer.k.shape[1]).astype(np.float32)) for _ in range(2)
    )
    return E4M3Cache(
        _e4m3(layer.k.shape, 2 * seed + 1, xp), _e4m3(layer.v.shape, 2 * seed + 2, xp), k_scale, v_scale
    )


def _e4m3(shape: tuple[int, ...], seed: int, xp: Any) -> Any:
    """Bytes of normal numbers: bits of float16, cut; CuPy has no such dtype. Numbers below 2^-6 become other ones."""
    bits = narrow(normals(int(np.prod(shape)), seed, xp), DTYPES["float16"]).view(np.uint16)
    size = ((bits & 0x7FFF) >> 7).astype(np.int16) - np.int16(BIASES_APART)
    return (xp.maximum(size, 0).astype(np.uint8) | (bits >> 8 & 0x80).astype(np.uint8)).reshape(shape)


def _meant(elements: Any, scale: Any, dtype: Any) -> Any:
    xp = module_of(elements)
    numbers = xp.asarray(np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32))
    return narrow(numbers[elements.astype(np.int32)] * scale[None, :, None, None], dtype)


class LayerJudge:
    """All rows of a layer against float64, sequences and heads at once, which `reference` takes one by one."""

    def __init__(self, layer: Layer, mask: Mask) -> None:
        self._xp = module_of(layer.q)
        self._exact = _attention(layer, mask, np.float64, lambda weights: weights)

        def rounding(weights: Any) -> Any:
            return widen(narrow(weights, layer.q.dtype), np.float32, self._xp)

        near = narrow(_attention(layer, mask, np.float32, rounding), layer.q.dtype)
        self._unit = self._largest(near) or float(np.finfo(np.float32).eps)

    def error(self, out: Any) -> float:
        """The largest error of an output over that of the same-precision reference; inf for NaN."""
        found = self._largest(out)
        return found / self._unit if np.isfinite(found) else float("inf")

    def _largest(self, out: Any) -> float:
        return float(self._xp.abs(widen(out, np.float64, self._xp) - self._exact).max())


def _attention(layer: Layer, mask: Mask, dtype: Any, rounding: Callable[[Any], Any]) -> Any:
    """The layer's result in `dtype`. rounding: of weights.  mask: each row sees a key."""
    xp = module_of(layer.q)
    q, k, v = (widen(array, dtype, xp) for array in layer)
    batch, heads, _, head_dim = q.shape
    scores = q.reshape(batch, k.shape[1], -1, head_dim) @ k.swapaxes(2, 3)
    scores *= np.dtype(dtype).type(scale_of(None, head_dim))
    if mask.pairs < mask.shape[0] * mask.shape[1]:
        shown = xp.asarray(np.tile(mask.to_dense(), (heads // k.shape[1], 1)))
        scores = xp.where(shown, scores, scores.dtype.type(-np.inf))
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return (rounding(weights) @ v / total).reshape(q.shape)
