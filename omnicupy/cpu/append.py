"""append() on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnicupy.call import check_fp8
from omnicupy.call.check_append import AppendCall
from omnicupy.cpu import fp8
from omnicupy.serving.caches import AnyKV, PagedKV, pools_of


def append(call: AppendCall, kv: AnyKV, k_new: Any, v_new: Any, slots: Any) -> None:
    """Write new keys and values. call: what `check_append.call` made of these arguments."""
    if slots is None:
        kept, page, row = _last(call, kv)
        k_new, v_new = (array.swapaxes(1, 2).reshape(-1, *array.shape[1::2]) for array in (k_new, v_new))
    else:
        kept = slots >= 0
        page, row = np.divmod(slots[kept], call.page_size)
    new = (k_new[kept], v_new[kept])
    for pool, array, scale in zip(pools_of(kv)[:2], new, (kv.k_scale, kv.v_scale), strict=True):
        elements = _quantised(array, scale, page, row).view(pool.dtype) if call.fp8 else array
        if isinstance(kv, PagedKV):
            pool[page, row] = elements
        else:
            pool[page, :, row] = elements


def _quantised(rows: Any, scale: Any, page: Any, row: Any) -> Any:
    """Bytes of (tokens, kv_heads, columns). Scales of tokens are those of their rows, and written."""
    if check_fp8.has_token_scales(scale):
        of_rows = fp8.scales_of_rows(rows)
        scale[page, row] = of_rows
        return fp8.quantised(rows, of_rows[:, :, None])
    if scale is None:
        scale = 1.0
    return fp8.quantised(rows, scale if np.ndim(scale) == 0 else scale[:, None])


def _last(call: AppendCall, kv: AnyKV) -> tuple[Any, Any, Any]:
    """Which of the new tokens have a place, sequence by sequence, and page and row of these."""
    sequence = np.repeat(np.arange(call.batch), call.tokens)
    position = (kv.lengths[:, None] - call.tokens + np.arange(call.tokens)).reshape(-1)
    kept = position >= 0
    sequence, position = sequence[kept], position[kept]
    if not isinstance(kv, PagedKV):
        return kept, sequence, position
    entry, row = np.divmod(position, call.page_size)
    return kept, kv.page_table[sequence, entry], row
