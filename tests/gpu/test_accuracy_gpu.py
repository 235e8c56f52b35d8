"""What lazy rescaling may cost: errors of rows that are nearly one key's, beside those of an exact row_max."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call.arrays import narrow, widen
from omnicupy.choose import table
from omnicupy.tools.random_arrays import DTYPES, random_bits

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

LENGTH = 2048


def _error(found: Any, exact: Any) -> float:
    return float(cupy.linalg.norm(widen(found, np.float64, cupy) - exact) / cupy.linalg.norm(exact))


@pytest.mark.parametrize("kernel", ["sm80", "sm90"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("factor", [1.0, 4.0, 8.0])
def test_a_lazy_row_max_costs_peaky_rows_little(kernel: str, head_dim: int, factor: float) -> None:
    specs = [spec for spec in table.rows() if spec.kernel == kernel and spec.arch in ("sm_90", "sm_90a")]
    spec = next(spec for spec in specs if spec.head_dim == head_dim and spec.dtype == "bfloat16")
    shape = (1, 2, LENGTH, head_dim)
    q, k, v = (
        random_bits(shape, seed, "bfloat16", factor if seed == 1 else 1.0, cupy).view(DTYPES["bfloat16"])
        for seed in (1, 2, 3)
    )
    wide = [widen(one, np.float64, cupy) for one in (q, k, v)]
    scores = wide[0] @ wide[1].swapaxes(2, 3) / np.sqrt(head_dim)
    weights = cupy.exp(scores - scores.max(axis=-1, keepdims=True))
    sums = weights.sum(axis=-1, keepdims=True)
    exact = weights @ wide[2] / sums
    rounded = widen(narrow(weights.astype(np.float32), DTYPES["bfloat16"]), np.float64, cupy)
    emulated = narrow((rounded @ wide[2] / sums).astype(np.float32), DTYPES["bfloat16"])
    found = oc.attention(q, k, v, config=spec)
    assert _error(found, exact) <= 1.08 * _error(emulated, exact)
