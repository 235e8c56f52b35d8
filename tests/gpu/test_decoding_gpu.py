"""Few query rows on a Hopper GPU: groups packed into tiles against heads of their own, and rows cut by `split`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.choose import table
from omnicupy.gpu import attention as gpu_attention
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.verify.case_masks import build

SPLIT = 384
OPTIONS: dict[str, Any] = dict.fromkeys(("scale", "sink_logits", "softcap", "out", "config", "split"))
PACKED = next(row for row in table.TABLE if row.shape == "packed" and row.head_dims[1] == 128)
DTYPE = "bfloat16"


def _inputs(batch: int, heads: int, kv_heads: int, q_len: int, k_len: int) -> list[Any]:
    """q, k and v of 128 columns with memory (batch, tokens, heads, 128)."""
    import cupy

    shapes = [(batch, q_len, heads, 128), *[(batch, k_len, kv_heads, 128)] * 2]
    bits = [random_bits(shape, i, DTYPE, 1.0, cupy).copy() for i, shape in enumerate(shapes)]
    return [array.view(DTYPES[DTYPE]).transpose(0, 2, 1, 3) for array in bits]


def _hopper() -> None:
    import cupy

    if cupy.cuda.Device().compute_capability != "90":
        pytest.skip("not a Hopper GPU")


def _same(a: Any, b: Any) -> bool:
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return bool((a.view(bits) == b.view(bits)).all())


@pytest.mark.gpu
@pytest.mark.parametrize("q_len", [1, 5, 9, 63])
@pytest.mark.parametrize("group", [1, 3, 4, 5, 7, 8, 71])
def test_a_group_has_the_bits_of_heads_of_their_own(group: int, q_len: int) -> None:
    """Keys repeated for each query head; the same tiles and parts while a tile holds all rows."""
    import cupy

    _hopper()
    spec = PACKED.spec("sm_90", DTYPE, 128)
    mask = build("tree", q_len, 3000, np.random.default_rng(q_len))
    q, k, v = _inputs(2, 2 * group, 2, q_len, 3000)
    wide = [cupy.repeat(x.view(np.uint16), group, axis=1).view(x.dtype) for x in (k, v)]
    options: dict[str, Any] = {"config": spec, "split": SPLIT, "return_lse": True}
    out, lse = oc.attention(q, k, v, mask, **options)
    other, other_lse = oc.attention(q, *wide, mask, **options)
    assert spec.tokens(group) < q_len or (_same(out, other) and _same(lse, other_lse))
    if spec.tokens(group) < q_len:  # other tiles are whole, and come in another order
        assert float(cupy.abs(lse - other_lse).max()) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("q_len", [1, 4, 70])
def test_a_split_makes_results_independent_of_the_batch(q_len: int) -> None:
    _hopper()
    mask = oc.causal(q_len, 5000)
    q, k, v = _inputs(9, 14, 2, q_len, 5000)
    out, lse = oc.attention(q, k, v, mask, split=SPLIT, return_lse=True)
    for i in (0, 4, 8):
        one = slice(i, i + 1)
        alone, lse_alone = oc.attention(q[one], k[one], v[one], mask, split=SPLIT, return_lse=True)
        assert _same(alone, out[one])
        assert _same(lse_alone, lse[one])
    plan = gpu_attention.plan_of(q, k, v, mask, OPTIONS | {"split": SPLIT})
    assert plan.spec.pack == (q_len < 64)
    assert plan.blocks.sizes.n_split_rows > 0


@pytest.mark.gpu
def test_parts_are_merged_alike_in_every_launch() -> None:
    _hopper()
    mask = oc.full(1, 100_000)
    q, k, v = _inputs(1, 28, 4, 1, 100_000)
    first = oc.attention(q, k, v, mask)
    assert gpu_attention.plan_of(q, k, v, mask, OPTIONS).blocks.sizes.n_slots > 16
    for _ in range(50):
        assert _same(oc.attention(q, k, v, mask), first)
