"""Caches that stand in the place of k in a call: keys and values of which only the first ones of a sequence exist."""

from __future__ import annotations

from typing import Any


class CachedKV:
    """Keys and values of sequences that grow in place: `attention(q, CachedKV(k, v, lengths), mask=cached())`.

    k: (batch, kv_heads, capacity, head_dim).  v: the same, or with value_dim columns.  Of one dtype, in any strides
        that `attention` takes.
    lengths: int32 (batch,), contiguous, on the device of k and v. Sequence b has lengths[b] keys, the first ones of its
        capacity; the last q_len of them are those of the rows of q. On a device they are read when the work runs there,
        in a replayed graph at each replay; nothing on the host depends on them.

    What lies past a sequence's length may hold NaN or Inf and reaches nothing. An empty sequence (length 0) gives rows
    of 0 with lse = -inf. A length below 0 or above the capacity is an error where the host knows lengths (NumPy arrays,
    tensors on the CPU), and an empty sequence on a device. The arrays are held as given and checked by the call.
    """

    __slots__ = ("k", "lengths", "v")

    def __init__(self, k: Any, v: Any, lengths: Any) -> None:
        self.k = k
        self.v = v
        self.lengths = lengths

    def __repr__(self) -> str:
        parts = (f"{name}={_shown(getattr(self, name))}" for name in ("k", "v", "lengths"))
        return f"CachedKV({', '.join(parts)})"


def _shown(array: Any) -> str:
    """Dtype and shape of an array; what is none as its type. Reads no element."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    return type(array).__name__ if shape is None else f"{dtype}{tuple(shape)}"
