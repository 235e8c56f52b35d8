"""The sizes of one call, and its default scale."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from numbers import Real

import numpy as np


@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes of one attention call: q (batch, q_heads, q_len, head_dim), k and v (batch, kv_heads, k_len,
    head_dim). dtype: "float16", "bfloat16", and on the CPU also "float32" or "float64".
    """

    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    k_len: int
    head_dim: int
    dtype: str

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.q_heads // self.kv_heads


def scale_of(scale: float | None, head_dim: int) -> float:
    """The factor of the scores as a float: `scale`, or 1/sqrt(head_dim) for None.

    Raises TypeError when scale is not a real number, ValueError when it is not finite and above zero.
    """
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if isinstance(scale, (bool, np.bool_)) or not isinstance(scale, Real):
        raise TypeError(
            f"scale must be a number or None (1/sqrt(head_dim)), got {type_name(scale)}; pass float(scale)"
        )
    if not 0 < scale <= sys.float_info.max:  # not for NaN, nor for integers beyond any float
        raise ValueError(f"scale must be finite and above 0, got {scale}; pass None for 1/sqrt(head_dim)")
    return float(scale)


def type_name(value: object) -> str:
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__qualname__ if package == "builtins" else f"{package}.{kind.__qualname__}"
