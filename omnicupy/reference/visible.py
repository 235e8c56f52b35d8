"""The pairs that masks allow, written out, kept for the passes of a reference that look at them in turn."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from omnicupy.masks.mask import Mask

Array = Any  # NumPy or CuPy
KEPT = 12  # masks: those of a batch and of a case or two, or the parts of one with a million rows
MOST_PAIRS = 1 << 25  # of a mask that is kept whole; a larger one is written out as it is asked for
STEP = 1 << 22  # pairs written out at a time

# The mask is kept beside its pairs, so that its identity stays its own.
_kept: OrderedDict[tuple[int, str], tuple[Mask, Array]] = OrderedDict()


def visible(mask: Mask, q0: int, q1: int, xp: Any) -> Array:
    """Boolean (q1 - q0, k_len), an array of the module `xp`: which keys the rows [q0, q1) see. Not to be changed."""
    q_len, k_len = mask.shape
    if q_len * k_len > MOST_PAIRS:
        return xp.asarray(mask.dense(q0, q1, 0, k_len))
    key = (id(mask), xp.__name__)
    found = _kept.pop(key, None)
    if found is None:
        found = (mask, xp.asarray(mask.dense(0, q_len, 0, k_len)))
    _kept[key] = found
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return found[1][q0:q1]


def counts(mask: Mask, xp: Any) -> Array:
    """How many keys each row sees, float64 (q_len,), an array of the module `xp`."""
    q_len, k_len = mask.shape
    step = max(1, STEP // max(1, k_len))
    if q_len * k_len <= MOST_PAIRS:
        return visible(mask, 0, q_len, xp).sum(axis=1).astype(np.float64)
    found = np.empty(q_len)
    for q0 in range(0, q_len, step):
        found[q0 : q0 + step] = mask.dense(q0, min(q_len, q0 + step), 0, k_len).sum(axis=1)
    return xp.asarray(found)
