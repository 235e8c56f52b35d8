"""The CPU engine on caches: each sequence is an ordinary call on the keys that it can see.

What lies outside, past a sequence's length or behind its window, is never read, so that a step costs what its windows
hold, not the cache; masks are kept by the rule (serving/rule.py).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.check import Call
from omnicupy.call.check_cached import CachedCall
from omnicupy.call.check_widths import out_shape
from omnicupy.cpu import attention as of_arrays
from omnicupy.cpu import fp8
from omnicupy.serving.caches import AnyKV, PagedKV

Array = NDArray[Any]


def attention(
    checked: CachedCall,
    q: Array,
    kv: AnyKV,
    *,
    sink_logits: Array | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    rows: NDArray[np.int32] | None = None,
) -> Array | tuple[Array, Array]:
    """Attention of NumPy arrays over a CachedKV or PagedKV, as `cpu.attention.attention` gives it.

    checked: what `check_cached.call` made of these arguments.  rows: as in `attention`; rows of no sequence stay as
    they are.
    """
    of_lse = np.float64 if q.dtype == np.float64 else np.float32
    if rows is not None:
        out = np.empty((*q.shape[:2], checked.problem.value_dim), q.dtype) if out is None else out
        lse = np.empty((q.shape[1], q.shape[0]), of_lse)
        for b, (first, stop) in enumerate(pairwise(rows.tolist())):
            if first == stop:
                continue
            here = slice(first, stop)
            of_q, of_out = (array[here].transpose(1, 0, 2)[None] for array in (q, out))
            lse[:, here] = _of_sequence(checked, kv, b, (of_q, of_out, sink_logits))[0]
        return (out, lse) if return_lse else out
    out = np.empty(out_shape(checked.problem), q.dtype) if out is None else out
    lse = np.empty(q.shape[:3], of_lse)
    for b in range(len(q)):
        lse[b : b + 1] = _of_sequence(checked, kv, b, (q[b : b + 1], out[b : b + 1], sink_logits))
    return (out, lse) if return_lse else out


def _of_sequence(
    checked: CachedCall, kv: AnyKV, sequence: int, arrays: tuple[Array, Array, Array | None]
) -> Array:
    """lse of a sequence. arrays: its rows of q, (1, q_heads, rows, head_dim), those of out, which are written, and
    sink_logits.
    """
    q, out, sink_logits = arrays
    problem, rule, keys = checked.problem, checked.rule, int(kv.lengths[sequence])
    if keys == 0:
        out[...] = 0
        return np.full(q.shape[:3], -np.inf, np.float32)
    sink, first = rule.seen_keys(keys, q.shape[2])
    mask = rule.seen_mask(keys, q.shape[2], sequence)
    sizes = replace(problem, batch=1, q_len=q.shape[2], k_len=mask.shape[1])
    one = Call(sizes, (mask,), checked.scale, checked.softcap)
    k, v = _keys_and_values(kv, sequence, (sink, first, keys), q.dtype)
    _, lse = of_arrays.attention(one, q, k, v, return_lse=True, sink_logits=sink_logits, out=out)
    return lse


def _keys_and_values(kv: AnyKV, sequence: int, seen: tuple[int, int, int], dtype: Any) -> tuple[Array, Array]:
    """What can be seen of a sequence, numbers of `dtype`."""
    if isinstance(kv, PagedKV):
        pools = _in_pages(kv, sequence, seen)
    else:
        pools = _seen(kv.k[sequence : sequence + 1], *seen), _seen(kv.v[sequence : sequence + 1], *seen)
    if pools[0].dtype == dtype:
        return pools
    k, v = (
        fp8.dequantised(pool, _scales(scale, kv, sequence, seen), dtype)
        for pool, scale in zip(pools, (kv.k_scale, kv.v_scale), strict=True)
    )
    return k, v


def _scales(scale: Any, kv: AnyKV, sequence: int, seen: tuple[int, int, int]) -> Any:
    """Scales of what can be seen of a sequence, to be multiplied with (1, kv_heads, keys, columns)."""
    if scale is None or np.ndim(scale) == 0:
        return 1.0 if scale is None else scale
    if np.ndim(scale) == 1:
        return scale[None, :, None, None]
    positions = _positions(seen)
    if isinstance(kv, PagedKV):
        page, row = _places(kv, sequence, positions)
        return scale[page, row].T[None, :, :, None]
    return scale[sequence, positions].T[None, :, :, None]


def _positions(seen: tuple[int, int, int]) -> NDArray[np.int64]:
    sink, first, keys = seen
    return np.concatenate([np.arange(sink), np.arange(first, keys)])


def _places(kv: PagedKV, sequence: int, positions: NDArray[np.int64]) -> tuple[Array, Array]:
    """Page and row of each position of a sequence."""
    entry, row = np.divmod(positions, kv.k_pages.shape[1])
    return kv.page_table[sequence, entry], row


def _in_pages(kv: PagedKV, sequence: int, seen: tuple[int, int, int]) -> tuple[Array, Array]:
    """What can be seen of a sequence of a PagedKV: copies, laid out as those of a CachedKV."""
    page, row = _places(kv, sequence, _positions(seen))
    k, v = (
        np.ascontiguousarray(pages[page, row].transpose(1, 0, 2))[None] for pages in (kv.k_pages, kv.v_pages)
    )
    return k, v


def _seen(array: Array, sink: int, first: int, keys: int) -> Array:
    """Keys [0, sink) and [first, keys) of (1, heads, capacity, columns): a view where there is no sink apart."""
    behind = array[:, :, first:keys]
    return behind if sink == 0 else np.concatenate([array[:, :, :sink], behind], axis=2)
