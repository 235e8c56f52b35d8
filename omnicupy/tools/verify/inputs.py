"""Inputs of the verification cases and benchmarks, as NumPy or CuPy arrays (`xp` is the module).

Arrays are written as raw bits, because array libraries differ in what they can do with bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.masks.mask import Mask
from omnicupy.tools.random_arrays import DTYPES, random_bits, unsigned
from omnicupy.tools.verify.cases import (
    BROADCAST,
    BSHD,
    LARGE,
    POISON,
    REVERSED,
    SAME_KEYS,
    SAME_VALUES,
    SINKS,
    Case,
)

LARGE_FACTOR = 40.0  # of Q and of K: with unit normals, scores reach about 1e4
# Quiet NaN and infinity of each dtype, as bits.
NAN_BITS = {
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float32": 0x7FC00000,
    "float64": 0x7FF8000000000000,
}
INF_BITS = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F800000,
    "float64": 0x7FF0000000000000,
}


@dataclass(frozen=True)
class Inputs:
    """q, k, v as attention takes them, an output array filled with NaN, and what changes scores."""

    q: Any
    k: Any
    v: Any
    out: Any
    changes: dict[str, Any]  # sink_logits and softcap


def inputs_of(case: Case, masks: Sequence[Mask], xp: Any) -> Inputs:
    """The inputs of a case whose masks were built by case.masks()."""
    factor = LARGE_FACTOR if LARGE in case.options else 1.0
    shape = (case.batch, case.q_heads, case.q_len, case.head_dim)
    q = _bits(case, "q", shape, factor * case.factor, xp)
    kv_batch = 1 if BROADCAST in case.options else case.batch
    shape = (kv_batch, case.kv_heads, case.k_len, case.head_dim)
    k = _bits(case, "k", shape, factor, xp)
    v = _bits(case, "v", (*shape[:3], case.value_columns), 1.0, xp)
    for option, array in ((SAME_KEYS, k), (SAME_VALUES, v)):
        if option in case.options:
            array[:] = array[:, :, :1]
    if POISON in case.options:
        for batch in range(kv_batch):
            dead = np.flatnonzero(masks[batch % len(masks)].dead_keys())
            for first, pattern in ((0, NAN_BITS), (1, INF_BITS)):
                if len(dead) <= first:
                    continue
                chosen = xp.asarray(dead[first::2])
                k[batch][:, chosen] = pattern[case.dtype]
                v[batch][:, chosen] = pattern[case.dtype]
    q, k, v = (_placed(case, bits, xp) for bits in (q, k, v))
    return Inputs(q, k, v, nan_output(case, xp), changes_of(case, xp))


def changes_of(case: Case, xp: Any) -> dict[str, Any]:
    """sink_logits and softcap of a case, for attention and attention_backward."""
    dtype = np.float64 if case.dtype == "float64" else np.float32
    sinks = xp.asarray(np.resize(np.array(SINKS, dtype), case.q_heads)) if case.sinks else None
    return {"sink_logits": sinks, "softcap": case.softcap}


def nan_output(case: Case, xp: Any) -> Any:
    """An output array with the case's memory layout, every element NaN."""
    batch, heads, tokens, columns = case.batch, case.q_heads, case.q_len, case.value_columns
    bshd = BSHD in case.options
    shape = (batch, tokens, heads, columns) if bshd else (batch, heads, tokens, columns)
    storage = xp.empty(shape, unsigned(case.dtype))
    storage.fill(NAN_BITS[case.dtype])
    out = storage.view(DTYPES[case.dtype])
    return out.transpose(0, 2, 1, 3) if bshd else out


def _bits(case: Case, name: str, shape: tuple[int, ...], factor: float, xp: Any) -> Any:
    seed = int(case.generator(f"input {name}").integers(2**31))
    return random_bits(shape, seed, case.dtype, factor, xp)


def _placed(case: Case, bits: Any, xp: Any) -> Any:
    """An array of the case's dtype and memory layout that holds these bits."""
    dtype = DTYPES[case.dtype]
    if BSHD in case.options:
        return xp.ascontiguousarray(bits.transpose(0, 2, 1, 3)).view(dtype).transpose(0, 2, 1, 3)
    if REVERSED in case.options:
        return xp.ascontiguousarray(bits[:, :, ::-1]).view(dtype)[:, :, ::-1]
    array = bits.copy().view(dtype)
    if array.shape[0] < case.batch:
        return xp.broadcast_to(array, (case.batch, *array.shape[1:]))
    return array
