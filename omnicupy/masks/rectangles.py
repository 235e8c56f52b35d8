"""Lists of rectangles of a mask, (q_start, q_stop, k_start, k_stop) in tokens, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.arguments import integer, plain

Bounds = NDArray[np.int64]  # (n, 4): q_start, q_stop, k_start, k_stop


def checked(
    where: str, name: str, rectangles: object, q_len: int, k_len: int, *, keep_empty: bool = False
) -> Bounds:
    """`rectangles`, a list or an integer array (n, 4), within the mask.

    Those without rows or keys are left out, unless keep_empty.

    Raises TypeError or ValueError for other types, and for rectangles that are reversed or outside.
    """
    given = plain(where, name, rectangles)
    if isinstance(given, np.ndarray) and given.ndim == 2 and given.shape[1] == 4:
        bounds = given.astype(np.int64)
        wrong = (bounds < 0) | (bounds > [q_len, q_len, k_len, k_len])
        wrong |= np.repeat(bounds[:, 0::2] > bounds[:, 1::2], 2, axis=1)
        for i in np.flatnonzero(wrong.any(axis=1)):
            _checked_one(f"{where}: {name}[{i}]", given[i], q_len, k_len)
    else:
        rows = [_checked_one(f"{where}: {name}[{i}]", one, q_len, k_len) for i, one in enumerate(given)]
        bounds = np.array(rows, np.int64).reshape(-1, 4)
    if keep_empty:
        return bounds
    return bounds[(bounds[:, 0] < bounds[:, 1]) & (bounds[:, 2] < bounds[:, 3])]


def holds(given: object, count: int) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list or an array of so many, and no text."""
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        return False
    return (not isinstance(given, np.ndarray) or given.ndim > 0) and len(given) == count


def _checked_one(where: str, rectangle: object, q_len: int, k_len: int) -> list[int]:
    if not holds(rectangle, 4):
        raise ValueError(
            f"{where} must be (q_start, q_stop, k_start, k_stop), got {rectangle!r}; give four numbers"
        )
    caller, _, name = where.partition(": ")
    q0, q1, k0, k1 = bounds = [integer(caller, name, bound) for bound in rectangle]
    if not (0 <= q0 <= q1 <= q_len and 0 <= k0 <= k1 <= k_len):
        raise ValueError(
            f"{where} must satisfy 0 <= q_start <= q_stop <= {q_len} and 0 <= k_start <= k_stop <= {k_len}, "
            f"got {tuple(bounds)}; clip or drop it"
        )
    return bounds
