"""The CPU engine on caches: each sequence is an ordinary call on the keys that it can see.

What lies outside, past a sequence's length or behind its window, is never read, so that a step costs what its windows
hold, not the cache; masks are kept by the rule (serving/rule.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.check import Call
from omnicupy.call.check_cached import CachedCall
from omnicupy.call.check_widths import out_shape
from omnicupy.cpu import attention as of_arrays
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
) -> Array | tuple[Array, Array]:
    """Attention of NumPy arrays over a CachedKV or PagedKV, as `cpu.attention.attention` gives it.

    checked: what `check_cached.call` made of these arguments.
    """
    problem, rule = checked.problem, checked.rule
    out = np.empty(out_shape(problem), q.dtype) if out is None else out
    lse = np.empty(q.shape[:3], np.float64 if q.dtype == np.float64 else np.float32)
    for b, keys in enumerate(kv.lengths.tolist()):
        if keys == 0:
            out[b], lse[b] = 0, -np.inf
            continue
        sink, first = rule.seen_keys(keys, problem.q_len)
        mask = rule.seen_mask(keys, problem.q_len, b)
        one = Call(replace(problem, batch=1, k_len=mask.shape[1]), (mask,), checked.scale, checked.softcap)
        k, v = _keys_and_values(kv, b, (sink, first, keys))
        rest: dict[str, Any] = {"sink_logits": sink_logits, "out": out[b : b + 1]}
        _, lse[b : b + 1] = of_arrays.attention(one, q[b : b + 1], k, v, return_lse=True, **rest)
    return (out, lse) if return_lse else out


def _keys_and_values(kv: AnyKV, sequence: int, seen: tuple[int, int, int]) -> tuple[Array, Array]:
    """What can be seen of a sequence."""
    if isinstance(kv, PagedKV):
        return _in_pages(kv, sequence, seen)
    k, v = (_seen(array[sequence : sequence + 1], *seen) for array in (kv.k, kv.v))
    return k, v


def _in_pages(kv: PagedKV, sequence: int, seen: tuple[int, int, int]) -> tuple[Array, Array]:
    """What can be seen of a sequence of a PagedKV: copies, laid out as those of a CachedKV."""
    sink, first, keys = seen
    positions = np.concatenate([np.arange(sink), np.arange(first, keys)])
    page, row = np.divmod(positions, kv.k_pages.shape[1])
    of_key = kv.page_table[sequence, page]
    k, v = (
        np.ascontiguousarray(pages[of_key, row].transpose(1, 0, 2))[None]
        for pages in (kv.k_pages, kv.v_pages)
    )
    return k, v


def _seen(array: Array, sink: int, first: int, keys: int) -> Array:
    """Keys [0, sink) and [first, keys) of (1, heads, capacity, columns): a view where there is no sink apart."""
    behind = array[:, :, first:keys]
    return behind if sink == 0 else np.concatenate([array[:, :, :sink], behind], axis=2)
