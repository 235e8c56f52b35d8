"""lse of large scores: rounded to float32 once, from the level and the sum in float64."""

from __future__ import annotations

import math

import numpy as np

import omnicupy as oc


def test_the_sum_and_the_level_are_added_in_float64() -> None:
    """Scores that are whole numbers in base 2, of which each row sees some equal ones: nothing else is rounded."""
    rows, keys = 400, 7
    q, k = (np.zeros((1, 1, n, 16), np.float32) for n in (rows, keys))
    levels = np.arange(2000, 2000 + 5 * rows, 5)
    q[0, 0, :, 0], k[..., 0] = levels, 1
    count = np.arange(rows) % keys + 1
    mask = oc.from_dense(np.arange(keys) < count[:, None])
    _, lse = oc.attention(q, k, k, mask, scale=math.log(2), return_lse=True)
    wanted = (levels + np.log2(count)) * math.log(2)
    assert np.array_equal(lse[0, 0], wanted.astype(np.float32))
