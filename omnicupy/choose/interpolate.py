"""Speeds at a head_dim that none was fitted at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def at_head_dim(
    fitted: Sequence[Any], names: Sequence[str], head_dim: int, growing: Sequence[str]
) -> dict[str, float]:
    """The fields `names`, interpolated between what was fitted at the head_dims around.

    fitted: one or more, each with its head_dim.  growing: fields that above the greatest head_dim grow in proportion to
    it. Else, below the least one too, a field is what it is at the nearest.
    """
    found = sorted(fitted, key=lambda one: one.head_dim)
    dims = [one.head_dim for one in found]
    values = np.array([[getattr(one, name) for name in names] for one in found])
    columns = (float(np.interp(head_dim, dims, column)) for column in values.T)
    picked = dict(zip(names, columns, strict=True))
    for name in growing:
        picked[name] *= max(1.0, head_dim / dims[-1])
    return picked
