"""What api.py has for calls on caches alone. append(): new keys and values go into caches; plan(): what a step of
decoding needs of their lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omnicupy.call import check_append, check_cached, check_paged
from omnicupy.call.arrays import is_cupy
from omnicupy.cpu import append as cpu_append
from omnicupy.jit.spec import AttnSpec
from omnicupy.serving.caches import AnyKV
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep, HostLists


def append(kv: AnyKV, k_new: Any, v_new: Any, slots: Any = None) -> None:
    """Write the keys and values of new tokens into caches, on a GPU by one launch:

        kv.lengths += 1                        # once a step: lengths count the new tokens, as attention wants them
        for layer in layers:
            oc.append(layer.kv, k_new, v_new)  # (batch, kv_heads, 1, head_dim)
            out = oc.attention(q, layer.kv, mask=oc.cached())

    kv: a CachedKV or PagedKV, whose keys and values are written; lengths and table are only read.
    k_new, v_new: of the caches' dtype (of e4m3 ones any that q may have), each as wide as they are. Without slots
        (batch, kv_heads, tokens, head_dim), and they become the last `tokens` keys of each sequence, in the pages that
        the table names for them: token i is key lengths[b] - tokens + i, as row i of q is in `attention`. On a device
        any strides that `attention` takes.
    slots: None, or int64 or int32 (tokens,), contiguous: where each token goes, as engines keep it; k_new and v_new are
        then (tokens, kv_heads, head_dim), and lengths and table are not read. Row r of page p is slot
        p * page_size + r; of a CachedKV key i of sequence b is slot b * capacity + i. -1 leaves a token out. Name a
        slot once: on a device one that is named twice may hold parts of several tokens.

    Into e4m3 caches go values / scale, a float32 quotient, rounded to nearest, ties to even, and beyond 448 (infinity
    too) 448; NaN stays NaN. Scales of all and of heads are only read. Scales of tokens are written: the largest
    magnitude of a token's row (NaN left aside) / 448, or 1 where that is zero. A row that holds an infinity gets an
    infinite scale then, and reads as NaN.

    Lengths stay as they are: layers share them, and the caller adds the new tokens once a step, ahead of the first one.
    Where a sequence has fewer keys than tokens the first ones have no place and are left out; of an empty one, all.
    What lies outside is not written: on a device a token of a sequence whose length is beyond its capacity or below 0,
    or for which table or slot name no page of the pool; where the host knows, that raises ValueError, and nothing is
    written.
    CuPy arrays are written on CuPy's current stream of their device, without a synchronisation; before a capture into a
    CUDA graph call this once with such arrays. A page of several sequences is written for all of them.
    Raises TypeError and ValueError, before any work, for arguments of the wrong kind, shape, dtype, device or layout.
    """
    if isinstance(k_new, np.ndarray):
        cpu_append.append(check_append.call(kv, k_new, v_new, slots), kv, k_new, v_new, slots)
        return
    if not is_cupy(k_new):
        check_append.call(kv, k_new, v_new, slots)  # refuses it, without importing CuPy
    from omnicupy.gpu import append as gpu_append

    gpu_append.append(kv, k_new, v_new, slots)


def plan(
    q: Any,
    kv: AnyKV,
    mask: CachedRule,
    *,
    softcap: float | None = None,
    config: AttnSpec | None = None,
    split: int | None = None,
    rows: Any = None,
    max_rows: int | None = None,
) -> CachedStep:
    """What a step of decoding needs of its lengths, worked out once and passed as `mask` to each layer:

        step = oc.plan(q, kv, oc.cached())
        for layer in layers:
            out = oc.attention(layer.q, layer.kv, mask=step)

    q, kv: those of any layer; the others have q and caches of the same shapes, and the very same lengths array, else
        `attention` raises.  mask: a rule of `cached`.  softcap: that of the layers, which must name it again, else they
        raise: it may call for another kernel.  config, split, rows, max_rows: as in `attention`; layers that name none
        get the same.

    The step holds what the lengths were: where they change, plan anew. On a GPU that is one small launch, on CuPy's
    current stream, which the layers must run on as well; in a capture it becomes part of the graph, and a replay reads
    the lengths anew. Without a step, a call of `attention` plans for itself. Raises what `attention` raises.
    """
    check_cached.check_is_cache(kv)
    given: dict[str, Any] = {"softcap": softcap, "config": config, "split": split}
    given |= {"rows": rows, "max_rows": max_rows}
    if not isinstance(q, np.ndarray):
        step: CachedStep = load_cached(q).plan(q, kv, mask, **given)
        step.softcap = softcap
        return step
    call = check_cached.call(q, kv, None, mask, **given)
    shapes = check_cached.step_shapes(q, kv, max_rows)
    lists = HostLists(kv.lengths.copy(), None if rows is None else rows.copy())
    return CachedStep(call.rule, kv.lengths, shapes, lists, split=split, rows=rows, softcap=softcap)


def load_cached(q: Any) -> Any:
    """The GPU path of calls on caches."""
    if not is_cupy(q):
        check_paged.check_array("q", q)  # refuses it, without importing CuPy
    from omnicupy.gpu import cached as gpu_cached

    return gpu_cached
