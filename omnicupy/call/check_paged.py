"""Argument checks of pages and their table: the only module that words their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.call import check, check_fp8
from omnicupy.call.arrays import DeviceArray, overlap
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.serving.caches import MOST_PAGE, AnyKV, PagedKV, names_of, pools_of
from omnicupy.serving.rule import CachedRule

TABLE_DTYPE = np.dtype(np.int32)
_AXES = ("pages", "tokens", "heads")
_SHAPE = "(pages, page_size, kv_heads, head_dim)"


def arrays_of(q: Any, kv: AnyKV, out: Any) -> tuple[Any, Any]:
    """k and v as check.arrays takes them: of a PagedKV, whose own arrays are checked here, stand-ins that are never
    read.
    """
    fp8 = check_fp8.is_fp8(kv)
    if not isinstance(kv, PagedKV):
        return _e4m3_of(q, kv, out) if fp8 else (kv.k, kv.v)
    check_array("q", q)
    check.check_axes("q", q)
    check_pages(q, kv)
    check_table(q, kv.page_table)
    if kv.k_pages.shape[3] != q.shape[3]:
        raise ValueError(
            f"k_pages must have the head_dim of q ({q.shape[3]}), got {kv.k_pages.shape[3]}; its shape is "
            f"{kv.k_pages.shape}; v_pages alone may have another"
        )
    if q.shape[1] % kv.k_pages.shape[2]:
        raise ValueError(
            f"k_pages must have a number of heads that divides those of q ({q.shape[1]}), got {kv.k_pages.shape[2]}; "
            f"its axes are {_SHAPE}: transpose pages with heads ahead of tokens"
        )
    if fp8:
        return _e4m3_of(q, kv, out)
    for name, pages in (("k_pages", kv.k_pages), ("v_pages", kv.v_pages)):
        if pages.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q ({q.dtype}), got {pages.dtype}; cast it")
        if out is not None and type(out) is type(q) and overlap(out, pages):
            raise ValueError(f"out must not overlap {name}: {check.READ_WHILE_WRITTEN}; pass another array")
    return _stand_in(kv.k_pages, kv), _stand_in(kv.v_pages, kv)


def _e4m3_of(q: Any, kv: AnyKV, out: Any) -> tuple[Any, Any]:
    """The same of e4m3 caches: stand-ins, in the place of arrays that are checked here."""
    check_array("q", q)
    pools = pools_of(kv)[:2]
    for name, pool in zip(names_of(kv), pools, strict=True):
        check.check_place(name, pool, q)
        if len(pool.shape) != 4 or 0 in pool.shape:
            raise ValueError(f"{name} must have 4 axes, none empty, got shape {tuple(pool.shape)}")
    check_fp8.check_widths(kv)
    check_fp8.check_scales(kv, q)
    check_fp8.check_out(out, q, kv)
    k, v = (check_fp8.stand_in(q, _shape(pool, kv)) for pool in pools)
    return k, v


def _shape(pages: Any, kv: AnyKV) -> tuple[int, ...]:
    """(batch, kv_heads, keys that a sequence may have, columns)."""
    if not isinstance(kv, PagedKV):
        return tuple(pages.shape)
    _, size, heads, head_dim = pages.shape
    batch, most = kv.page_table.shape
    return batch, heads, most * size, head_dim


def _stand_in(pages: Any, kv: PagedKV) -> Any:
    """An array of one row that repeats: keys of all sequences, one behind the other."""
    shape = _shape(pages, kv)
    if isinstance(pages, np.ndarray):
        return np.lib.stride_tricks.as_strided(pages, shape, (0, 0, 0, pages.strides[3]), writeable=False)
    strides = (0, 0, 0, pages.dtype.itemsize)
    return DeviceArray(pages.dtype, pages.data.ptr, pages.data.device_id, shape, strides)


def check_array(name: str, array: Any) -> None:
    """Raises TypeError for what is no NumPy or CuPy array."""
    if not isinstance(array, np.ndarray) and not is_on_gpu(array):
        check.refuse_non_array(name, array)


def check_pages(like: Any, kv: PagedKV) -> None:
    """Pages that kernels read and write, beside the array `like`. Their dtype is the caller's to check."""
    for name, pages in (("k_pages", kv.k_pages), ("v_pages", kv.v_pages)):
        check.check_place(name, pages, like)
        shape = tuple(pages.shape)
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"{name} must have 4 axes {_SHAPE}, none empty, got shape {shape}")
        if shape[1] > MOST_PAGE:
            raise ValueError(
                f"{name} must have pages of 1 to {MOST_PAGE} tokens, got {shape[1]}; the axes are {_SHAPE}"
            )
        if shape[0] * shape[1] >= 1 << 31:
            raise ValueError(f"{name} must hold fewer than 2**31 tokens, got {shape[0]} pages of {shape[1]}")
        if is_on_gpu(pages):
            check.check_layout(name, pages, _AXES)
    if kv.v_pages.shape[:3] != kv.k_pages.shape[:3]:
        raise ValueError(
            f"v_pages must have the pages, tokens and heads of k_pages {kv.k_pages.shape[:3]}, got "
            f"{kv.v_pages.shape[:3]}; its shape is {kv.v_pages.shape}"
        )


def check_table(like: Any, table: Any) -> None:
    """The table of pages: int32 (batch, max_pages) beside `like`, of as many sequences."""
    check.check_place("page_table", table, like)
    if table.dtype != TABLE_DTYPE:
        raise TypeError(f"page_table must be int32, got {table.dtype}; cast it")
    shape, item = tuple(table.shape), TABLE_DTYPE.itemsize
    if len(shape) != 2 or shape[0] != like.shape[0] or shape[1] == 0:
        rows = like.shape[0] if like.shape else "batch"
        raise ValueError(
            f"page_table must have a row of pages for each sequence, shape ({rows}, max_pages), got {shape}"
        )
    row, step = table.strides
    if (shape[1] > 1 and step != item) or (shape[0] > 1 and not 0 <= row < 1 << 31) or row % item:
        raise ValueError(
            f"page_table must have contiguous rows (steps of {item} bytes, from row to row of 0 or more), got "
            f"strides {table.strides}; copy it"
        )
    if is_on_gpu(table) and table.data.ptr % item:
        raise ValueError(f"page_table must start on a multiple of 4 bytes, got {table.data.ptr:#x}; copy it")


def check_entries(kv: PagedKV, rule: CachedRule, rows: Sequence[int]) -> None:
    """On the host: the entries of all keys that some row may see name pages. rows: of each sequence. Lengths were
    checked.
    """
    pages, size = kv.k_pages.shape[:2]
    for b, keys in enumerate(kv.lengths.tolist()):
        if rows[b] == 0:
            continue
        sink, first = rule.seen_keys(keys, rows[b])
        entries = np.arange(-(-keys // size))
        read = (entries * size < sink) | ((entries + 1) * size > first)
        bad = entries[
            read & ((kv.page_table[b, : len(entries)] < 0) | (kv.page_table[b, : len(entries)] >= pages))
        ]
        if len(bad):
            raise ValueError(
                f"page_table[{b}, {bad[0]}] must be from 0 to {pages - 1}, a page of the pool, for the {keys} keys of "
                f"sequence {b}, got {kv.page_table[b, bad[0]]}"
            )
