"""Argument checks of rows and max_rows, where sequences have numbers of rows of their own."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from omnicupy.call import check, check_paged
from omnicupy.call.arrays import DeviceArray
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import at_least_one, plain_array
from omnicupy.serving.caches import AnyKV, names_of, pools_of
from omnicupy.serving.rule import CachedRule

STARTS_DTYPE = np.dtype(np.int32)


def refuse_without_caches() -> NoReturn:
    """Raises ValueError for rows= or max_rows= of a call without caches."""
    raise ValueError(
        "rows and max_rows go with a CachedKV or PagedKV; leave them out, and pass oc.documents as the mask of packed "
        "sequences"
    )


def stand_in(q: Any, rows: Any, max_rows: Any, rule: Any) -> Any:
    """What the other checks take for q: (sequences, heads, most rows of one, head_dim), never read.

    Checks q, rows and max_rows; rows on the host also for their values.
    """
    check_paged.check_array("q", q)
    if rows is None or max_rows is None:
        missing, given = ("rows", "max_rows") if rows is None else ("max_rows", "rows")
        raise ValueError(
            f"{missing} must be given where {given} is: rows says where each sequence begins in q, max_rows how many "
            "rows a sequence may have"
        )
    most = at_least_one("attention", "max_rows", max_rows)
    shape = tuple(q.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"q must have 3 axes (rows of all sequences, heads, head_dim) where rows is given, none empty, got shape "
            f"{shape}"
        )
    if isinstance(rule, CachedRule) and rule.tail is not None:
        raise UnsupportedError(
            "mask: a tail goes with q of equally many rows a sequence; leave rows out, or the tail"
        )
    _check_starts(q, rows, min(most, shape[0]))
    if is_on_gpu(q):
        check.check_layout("q", as_tensor(q))
    total, heads, head_dim = shape
    sizes, steps = (rows.shape[0] - 1, heads, min(most, total), head_dim), (0, q.strides[1], q.strides[0])
    if isinstance(q, np.ndarray):
        return np.lib.stride_tricks.as_strided(q, sizes, (*steps, q.strides[2]), writeable=False)
    return DeviceArray(q.dtype, q.data.ptr, q.data.device_id, sizes, (*steps, q.strides[2]))


def _check_starts(q: Any, rows: Any, most: int) -> None:
    """rows: int32 (sequences + 1,) beside q; on the host also its values."""
    check.check_place("rows", rows, q)
    if rows.dtype != STARTS_DTYPE:
        raise TypeError(f"rows must be int32, got {rows.dtype}; cast it")
    if len(rows.shape) != 1 or rows.shape[0] < 2:
        raise ValueError(
            f"rows must say where each sequence begins in q, and where the last one ends, shape (sequences + 1,), got "
            f"{tuple(rows.shape)}"
        )
    if rows.strides[0] != STARTS_DTYPE.itemsize:
        raise ValueError(f"rows must be contiguous (a stride of 4 bytes), got {rows.strides[0]}; copy it")
    if is_on_gpu(rows):
        if rows.data.ptr % STARTS_DTYPE.itemsize:
            raise ValueError(f"rows must start on a multiple of 4 bytes, got {rows.data.ptr:#x}; copy it")
        return
    plain_array("rows", rows)
    counts = np.diff(rows.astype(np.int64))
    if rows[0] < 0 or (counts < 0).any() or rows[-1] > q.shape[0]:
        raise ValueError(
            f"rows must not decrease, from 0 on and up to the {q.shape[0]} rows of q, got {rows.tolist()}"
        )
    if (counts > most).any():
        at = int(counts.argmax())
        raise ValueError(
            f"max_rows must be at least the rows of every sequence, got {most} for {counts[at]} of {at}"
        )


def check_out(out: Any, q: Any, kv: AnyKV, value_dim: int) -> None:
    """Raises TypeError or ValueError unless `out` takes what rows of q give."""
    check.check_place("out", out, q)
    wanted = (*q.shape[:2], value_dim)
    if tuple(out.shape) != wanted:
        raise ValueError(
            f"out must have the shape of q with the width of v where rows is given, {wanted}, got {tuple(out.shape)}"
        )
    like = as_tensor(q)
    read = [("q", like), *zip(names_of(kv), pools_of(kv)[:2], strict=True)]
    check.check_target("out", as_tensor(out), ("q", like), read, shape=(1, wanted[1], wanted[0], value_dim))


def as_tensor(array: Any) -> Any:
    """(rows, heads, columns) as (1, heads, rows, columns), of the same memory."""
    if isinstance(array, np.ndarray):
        return array.transpose(1, 0, 2)[None]
    (rows, heads, columns), (of_row, of_head, of_column) = array.shape, array.strides
    shape, strides = (1, heads, rows, columns), (rows * of_row, of_head, of_row, of_column)
    return DeviceArray(array.dtype, array.data.ptr, array.data.device_id, shape, strides)
