"""The sizes of one call, and its default scale."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Real

import numpy as np

LEAST_SPLIT = 32  # keys: the tiles of all kernels hold a multiple of so many


@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes of one attention call: q (batch, q_heads, q_len, head_dim), k (batch, kv_heads, k_len, head_dim), v
    (batch, kv_heads, k_len, value_dim); None for values as wide as keys, and value_dim is head_dim then. dtype:
    "float16", "bfloat16", and on the CPU also "float32" or "float64". softcap: are scores capped?
    """

    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    k_len: int
    head_dim: int
    dtype: str
    softcap: bool = False
    value_dim: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.value_dim is None:
            object.__setattr__(self, "value_dim", self.head_dim)

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.q_heads // self.kv_heads


def scale_of(scale: float | None, head_dim: int, dtype: str = "float32") -> float:
    """The factor of the scores as a float: `scale`, or 1/sqrt(head_dim) for None. dtype: that of the inputs.

    Raises TypeError when scale is not a real number, ValueError where `checked_scale` does.
    """
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    check_scale_kind(scale)
    return checked_scale(scale, dtype)  # type: ignore[arg-type]


def check_scale_kind(scale: object) -> None:
    """Raises TypeError for what is no real number, a tensor among others, whose gradient would be lost."""
    if isinstance(scale, (bool, np.bool_)) or not isinstance(scale, Real):
        raise TypeError(
            f"scale must be a number or None (1/sqrt(head_dim)), got {type_name(scale)}; pass float(scale)"
        )


def split_of(split: object) -> int | None:
    """Keys of a part of each row as an int, None for None.

    Raises TypeError for what is no whole number, ValueError for one that is not a positive multiple of LEAST_SPLIT.
    """
    if split is None:
        return None
    try:
        keys = operator.index(split)  # type: ignore[arg-type]
    except TypeError:
        keys = None
    if keys is None or isinstance(split, (bool, np.bool_)):
        raise TypeError(f"split must be a number of keys or None, got {type_name(split)}; pass int(split)")
    if keys <= 0 or keys % LEAST_SPLIT:
        raise ValueError(
            f"split must be a multiple of {LEAST_SPLIT} keys (on a GPU of its kernel's tile), got {keys}; "
            "pass None for parts that fill the device"
        )
    return keys


def type_name(value: object) -> str:
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__qualname__ if package == "builtins" else f"{package}.{kind.__qualname__}"


LOG2_E = math.log2(math.e)


def as_float(number: Real) -> float:
    """`number` as a float, an infinity for an integer beyond any."""
    try:
        return float(number)
    except OverflowError:
        return -math.inf if number < 0 else math.inf


def checked_scale(scale: Real, dtype: str) -> float:
    """`scale` as a float. dtype: that of the inputs; all but float64 are computed in float32.

    Raises ValueError where it, or its product with log2(e), by which engines multiply, is not a normal, positive
    number there: an infinite factor makes every score NaN, one that vanishes makes every key count alike.
    """
    limits = np.finfo(np.float64 if dtype == "float64" else np.float32)
    factor = as_float(scale)
    if not float(limits.tiny) <= factor <= float(limits.max) / LOG2_E:  # not for NaN
        raise ValueError(
            f"scale must be finite and above 0 in {limits.dtype}, got {scale}; pass None for 1/sqrt(head_dim)"
        )
    return factor
