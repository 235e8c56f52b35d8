"""Argument checks of append: the only module that words its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from types import NoneType
from typing import Any

import numpy as np

from omnicupy.call import check, check_fp8, check_paged
from omnicupy.call.arrays import DTYPE_NAMES, overlap, overlaps_itself
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.call.problem import type_name
from omnicupy.masks.arguments import plain_array
from omnicupy.serving.caches import CACHES, AnyKV, PagedKV, names_of, pools_of, sizes_of

SLOT_DTYPES = (np.dtype(np.int32), np.dtype(np.int64))
_AXES = {False: "(batch, kv_heads, tokens, head_dim)", True: "(tokens, kv_heads, head_dim)"}


@dataclass(frozen=True, slots=True)
class AppendCall:
    """A call of append that was checked. batch: sequences, 1 with slots.  tokens: new ones of each.

    pages, page_size: of the pools; of a CachedKV its sequences and its capacity.  capacity: keys a sequence may have.
    fp8: the caches are e4m3, and new keys and values are quantised.
    """

    batch: int
    kv_heads: int
    tokens: int
    head_dim: int
    value_dim: int
    pages: int
    page_size: int
    capacity: int
    fp8: bool = False


def call(kv: AnyKV, k_new: Any, v_new: Any, slots: Any) -> AppendCall:
    """Check the arguments of `append` before any work. On the host also every place that is written.

    Raises TypeError for an argument of a wrong type or dtype, ValueError for a wrong shape, value or layout.
    """
    if not isinstance(kv, CACHES):
        raise TypeError(
            f"append: kv must be a CachedKV or PagedKV, got {type_name(kv)}; make one of the caches"
        )
    _check_places(kv, k_new=k_new, v_new=v_new, slots=slots)
    fp8 = check_fp8.is_fp8(kv)
    found = _check_caches(kv, fp8)
    call = _check_new(kv, k_new, v_new, slots is not None, found)
    if fp8:
        check_fp8.check_widths(kv)
        check_fp8.check_scales(kv, pools_of(kv)[0])
        _check_written_scales(kv, k_new, v_new)
        call = replace(call, fp8=True)
    if isinstance(k_new, np.ndarray):  # on a device no warm call looks at these
        _check_apart(kv, slots)
    if slots is not None:
        _check_slots(slots, call)
    elif isinstance(kv.lengths, np.ndarray):
        _check_room(kv, call)
    return call


def _check_places(kv: AnyKV, **new: Any) -> None:
    """All arrays are of the kind of the keys, and on their device."""
    k, v, table = pools_of(kv)
    names = names_of(kv)
    of_keys = names[0]
    given = {of_keys: k, names[1]: v, "page_table": table, "lengths": kv.lengths, **new}
    for name, array in given.items():
        if array is None and name in ("page_table", "slots"):
            continue
        check_paged.check_array(name, array)
        if is_on_gpu(array) != is_on_gpu(k):
            kinds = ("CuPy", "NumPy") if is_on_gpu(k) else ("NumPy", "CuPy")
            raise TypeError(f"{name} must be a {kinds[0]} array like {of_keys}, got a {kinds[1]} array")
        if is_on_gpu(k) and array.data.device_id != k.data.device_id:
            raise ValueError(
                f"{name} must be on the device of {of_keys} (device {k.data.device_id}), got device "
                f"{array.data.device_id}; copy it there"
            )
        if not is_on_gpu(array):
            plain_array(name, array)


def _check_caches(kv: AnyKV, fp8: bool) -> tuple[int, int, int]:
    """(sequences, pages, page_size) of caches that can be written."""
    k, _, table = pools_of(kv)
    if isinstance(kv, PagedKV):
        check_paged.check_pages(k, kv)
        check_paged.check_table(table, table)
        batch, (pages, page_size) = table.shape[0], k.shape[:2]
    else:
        for name, array in (("k", kv.k), ("v", kv.v)):
            if len(array.shape) != 4 or 0 in array.shape or array.shape[:3] != k.shape[:3]:
                raise ValueError(
                    f"{name} must have 4 axes (batch, kv_heads, capacity, head_dim), none empty, the first three as k "
                    f"has them, got shape {tuple(array.shape)}"
                )
            if is_on_gpu(array):
                check.check_layout(name, array)
        batch = pages = k.shape[0]
        page_size = k.shape[2]
    _check_writable(kv, fp8)
    if kv.lengths.dtype != np.int32 or tuple(kv.lengths.shape) != (batch,):
        raise ValueError(
            f"lengths must be int32 of shape ({batch},), one for each sequence, got {kv.lengths.dtype} of shape "
            f"{tuple(kv.lengths.shape)}"
        )
    if batch > 1 and kv.lengths.strides[0] != 4:
        raise ValueError(
            f"lengths must be contiguous, got a stride of {kv.lengths.strides[0]} bytes; copy it"
        )
    _check_start("lengths", kv.lengths)
    return batch, pages, page_size


def _check_writable(kv: AnyKV, fp8: bool) -> None:
    k, v, _ = pools_of(kv)
    names = names_of(kv)
    for name, pool in zip(names, (k, v), strict=True):
        if not fp8:
            _check_dtype(name, pool)
        if is_on_gpu(pool) and pool.shape[3] % 8:
            raise ValueError(
                f"{name} must have a head_dim that is a multiple of 8 on the GPU, got {pool.shape[3]}"
            )
        if isinstance(pool, np.ndarray) and not pool.flags.writeable:
            raise ValueError(f"{name} must be writeable, got a read-only array; pass a copy")
        if overlaps_itself(pool):
            raise ValueError(
                f"{name} must not repeat elements, got strides {pool.strides} for shape {pool.shape}"
            )
    if overlap(k, v):
        raise ValueError(f"{names[1]} must not overlap {names[0]}: both are written; pass another array")


def _check_dtype(name: str, array: Any) -> None:
    wanted = check.GPU_DTYPES if is_on_gpu(array) else tuple(DTYPE_NAMES.values())
    if DTYPE_NAMES.get(array.dtype) not in wanted:
        raise TypeError(f"{name} must be {' or '.join(wanted)}, got {array.dtype}")


def _check_written_scales(kv: AnyKV, k_new: Any, v_new: Any) -> None:
    """New tokens of e4m3 caches, and scales of tokens, which are written."""
    for name, array in (("k_new", k_new), ("v_new", v_new)):
        _check_dtype(name, array)
    if k_new.dtype != v_new.dtype:
        raise TypeError(f"v_new must have the dtype of k_new ({k_new.dtype}), got {v_new.dtype}; cast it")
    scales = [(n, s) for n in ("k_scale", "v_scale") if not isinstance(s := getattr(kv, n), (Real, NoneType))]
    for i, (name, scale) in enumerate(scales):
        others = [*pools_of(kv)[:2], *(s for _, s in scales[:i] if check_fp8.has_token_scales(s))]
        if check_fp8.has_token_scales(scale):
            if isinstance(scale, np.ndarray) and not scale.flags.writeable:
                raise ValueError(f"{name} must be writeable, as append writes scales of tokens; pass a copy")
            if overlaps_itself(scale):
                raise ValueError(
                    f"{name} must not repeat elements, got strides {scale.strides}: it is written"
                )
            others += [k_new, v_new, *(s for _, s in scales[:i])]
        if any(overlap(scale, other) for other in others):
            raise ValueError(
                f"{name} must not overlap keys, values or other scales: append writes these, of scales those of tokens"
            )


def _check_apart(kv: AnyKV, slots: Any) -> None:
    """What says where tokens go is read while keys, values and scales of tokens are written."""
    read = {"lengths": kv.lengths, "page_table": pools_of(kv)[2]} if slots is None else {"slots": slots}
    written = dict(zip(names_of(kv), pools_of(kv)[:2], strict=True))
    scales = {name: getattr(kv, name) for name in ("k_scale", "v_scale")}
    written |= {name: scale for name, scale in scales.items() if check_fp8.has_token_scales(scale)}
    for name, array in written.items():
        check.check_apart(name, array, read, "it is read while the caches are written; pass a copy")


def _check_new(kv: AnyKV, k_new: Any, v_new: Any, has_slots: bool, found: tuple[int, int, int]) -> AppendCall:
    batch, pages, page_size = found
    k, v, _ = pools_of(kv)
    heads, capacity = sizes_of(kv)
    head_dim, value_dim = k.shape[3], v.shape[3]
    for name, array, width in (("k_new", k_new, head_dim), ("v_new", v_new, value_dim)):
        if k.dtype in DTYPE_NAMES and (array.dtype != k.dtype or v.dtype != k.dtype):
            raise TypeError(
                f"{name} must have the dtype of the caches ({k.dtype}), got {array.dtype}; cast it"
            )
        shape = tuple(array.shape)
        tokens = 0 if len(shape) != (3 if has_slots else 4) else shape[0 if has_slots else 2]
        wanted = (tokens, heads, width) if has_slots else (batch, heads, tokens, width)
        if tokens == 0 or shape != wanted or shape[:-1] != tuple(k_new.shape[:-1]):
            given = "with slots, " if has_slots else f"without slots, {batch} sequences and "
            raise ValueError(
                f"{name} must have the axes {_AXES[has_slots]} {given}{heads} heads of {width}, none empty, as many "
                f"tokens in k_new as in v_new, got shape {shape}"
            )
        for pool in (k, v):
            if overlap(array, pool):
                raise ValueError(
                    f"{name} must not overlap the caches: it is read while they are written; pass a copy"
                )
        if is_on_gpu(array):
            check.check_layout(name, array, ("tokens", "heads") if has_slots else check.AXES)
    return AppendCall(
        1 if has_slots else batch, heads, tokens, head_dim, value_dim, pages, page_size, capacity
    )


def _check_start(name: str, numbers: Any) -> None:
    size = numbers.dtype.itemsize
    if is_on_gpu(numbers) and numbers.data.ptr % size:
        raise ValueError(
            f"{name} must start on a multiple of {size} bytes, got address {numbers.data.ptr:#x}; copy it"
        )


def _check_slots(slots: Any, call: AppendCall) -> None:
    if slots.dtype not in SLOT_DTYPES:
        raise TypeError(f"slots must be int64 or int32, got {slots.dtype}; cast it")
    if tuple(slots.shape) != (call.tokens,):
        raise ValueError(
            f"slots must have one entry per token, shape ({call.tokens},), got {tuple(slots.shape)}"
        )
    if call.tokens > 1 and slots.strides[0] != slots.dtype.itemsize:
        raise ValueError(f"slots must be contiguous, got a stride of {slots.strides[0]} bytes; copy it")
    _check_start("slots", slots)
    if is_on_gpu(slots):
        return
    bad = np.flatnonzero((slots < -1) | (slots >= call.pages * call.page_size))
    if len(bad):
        raise ValueError(
            f"slots[{bad[0]}] must be from 0 to {call.pages * call.page_size - 1}, or -1 for a token that is left out, "
            f"got {slots[bad[0]]}"
        )


def _check_room(kv: AnyKV, call: AppendCall) -> None:
    """On the host: each sequence has room for its keys, the new ones among them, in pages that there are."""
    bad = np.flatnonzero((kv.lengths < 0) | (kv.lengths > call.capacity))
    if len(bad):
        raise ValueError(
            f"lengths[{bad[0]}] must be from 0 to the capacity {call.capacity}, with the new tokens counted, got "
            f"{kv.lengths[bad[0]]}; make the cache larger"
        )
    if not isinstance(kv, PagedKV):
        return
    for b, length in enumerate(kv.lengths.tolist()):
        entries = np.arange(max(0, length - call.tokens) // call.page_size, -(-length // call.page_size))
        of_new = kv.page_table[b, entries]
        missing = np.flatnonzero((of_new < 0) | (of_new >= call.pages))
        if len(missing):
            raise ValueError(
                f"page_table[{b}, {entries[missing[0]]}] must be from 0 to {call.pages - 1}, a page for the last "
                f"tokens of the {length} of sequence {b}, got {of_new[missing[0]]}"
            )
