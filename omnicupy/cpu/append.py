"""append() on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnicupy.call.check_append import AppendCall
from omnicupy.serving.caches import AnyKV, PagedKV, pools_of


def append(call: AppendCall, kv: AnyKV, k_new: Any, v_new: Any, slots: Any) -> None:
    """Write new keys and values. call: what `check_append.call` made of these arguments."""
    if slots is None:
        kept, page, row = _last(call, kv)
        k_new, v_new = (array.swapaxes(1, 2).reshape(-1, *array.shape[1::2]) for array in (k_new, v_new))
    else:
        kept = slots >= 0
        page, row = np.divmod(slots[kept], call.page_size)
    for pool, array in zip(pools_of(kv)[:2], (k_new[kept], v_new[kept]), strict=True):
        if isinstance(kv, PagedKV):
            pool[page, row] = array
        else:
            pool[page, :, row] = array


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
