"""The float64 gradients against sums of Python floats and finite differences; the emulation's rounding points."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from omnicupy.call.arrays import narrow, widen
from omnicupy.masks import constructors, segment_masks
from omnicupy.masks.mask import Mask
from omnicupy.reference import attention as reference_attention
from omnicupy.reference import backward as reference_backward

MASKS = [constructors.causal(9, 7), constructors.full(5, 12), constructors.ranges([(2, 5, 0, 4)], 7, 6)]
Arrays = list[np.ndarray]


def inputs(mask: Mask, dtype: Any = np.float64, heads: tuple[int, int, int] = (2, 2, 2)) -> Arrays:
    """dout, q, k, v and dlse."""
    (q_len, k_len), (batch, kv_heads, group) = mask.shape, heads
    rng = np.random.default_rng(q_len)
    dout, q = rng.standard_normal((2, batch, kv_heads * group, q_len, 6)).astype(dtype)
    k, v = rng.standard_normal((2, batch, kv_heads, k_len, 6)).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    return [dout, q, k, v, rng.standard_normal(q.shape[:3]).astype(wide)]


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def by_sums(arrays: Arrays, dense: np.ndarray, scale: float) -> list[np.ndarray]:
    """Gradients pair by pair: dS = P * (dP - sum over the row of P * dP + dlse)."""
    dout, q, k, v, dlse = (x.astype(np.float64) for x in arrays)
    grads = [np.zeros(x.shape) for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    for b, h, i in np.ndindex(q.shape[:3]):
        kv, seen = h // group, np.flatnonzero(dense[i])
        if not len(seen):
            continue
        scores = [scale * dot(q[b, h, i], k[b, kv, j]) for j in seen]
        weights = [math.exp(s - max(scores)) for s in scores]
        weights = [w / math.fsum(weights) for w in weights]
        dp = [dot(dout[b, h, i], v[b, kv, j]) for j in seen]
        mean = dot(np.array(weights), np.array(dp))
        for w, d, j in zip(weights, dp, seen, strict=True):
            ds = scale * w * (d - mean + dlse[b, h, i])
            grads[0][b, h, i] += ds * k[b, kv, j]
            grads[1][b, kv, j] += ds * q[b, h, i]
            grads[2][b, kv, j] += w * dout[b, h, i]
    return grads


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("mask", MASKS)
def test_against_sums_pair_by_pair(mask: Mask, scale: float | None) -> None:
    for dtype in (np.float64, np.float16):
        *arrays, dlse = inputs(mask, dtype)
        found = reference_backward.gradients64(*arrays, mask, scale, dlse=dlse)
        for one, wanted in zip(
            found, by_sums([*arrays, dlse], mask.to_dense(), scale or 6**-0.5), strict=True
        ):
            assert one.dtype == np.float64
            np.testing.assert_allclose(one, wanted, rtol=1e-11, atol=1e-13)


def test_against_finite_differences() -> None:
    mask = constructors.causal(5, 6)
    dout, *arrays, dlse = inputs(mask, heads=(1, 1, 2))

    def loss(given: Arrays) -> float:
        out, lse = reference_attention.attention64(*given, mask)
        return float((out * dout).sum() + (lse * dlse).sum())

    for i, gradient in enumerate(reference_backward.gradients64(dout, *arrays, mask, dlse=dlse)):
        for at in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in arrays]
                moved[i][at] += sign * 1e-5
                ends.append(loss(moved))
            assert gradient[at] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = segment_masks.random(60, 1, text=(3, 9), image=(9, 20))
    *arrays, dlse = inputs(mask)
    whole = reference_backward.gradients64(*arrays, mask, dlse=dlse)
    monkeypatch.setattr(reference_backward, "CHUNK_CPU", 700)
    for one, other in zip(whole, reference_backward.gradients64(*arrays, mask, dlse=dlse), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_what_nobody_sees_does_not_matter() -> None:
    mask = constructors.ranges([(0, 6, 0, 6), (4, 8, 8, 9)], 10, 12)
    dout, q, k, v, dlse = inputs(mask)
    out, lse = reference_attention.attention64(q, k, v, mask)
    dead, empty = mask.dead_keys(), ~mask.to_dense().any(axis=1)

    def run() -> tuple[Any, ...]:
        return reference_backward.gradients64(dout, q, k, v, mask, dlse=dlse, whole=(out, lse))

    before = run()
    assert not before[0][:, :, empty].any()
    assert not before[1][:, :, dead].any()
    assert not before[2][:, :, dead].any()
    for array in (k, v):
        array[:, :, dead] = np.nan
    for array in (dout, q, dlse, out, lse):
        array[:, :, empty] = np.nan
    for one, other in zip(run(), before, strict=True):
        assert np.array_equal(one, other)
    lse[:, :, empty] = -np.inf
    assert np.array_equal(run()[0], before[0])


def test_an_lse_of_no_key_is_no_weight() -> None:
    """Also of a row that sees some, as of a part of keys whose scores are all -inf."""
    mask = constructors.full(3, 4)
    dout, q, k, v, _ = inputs(mask)
    out, lse = reference_attention.attention64(q, k, v, mask)
    lse[:, :, 1] = -np.inf
    dq, dk, _ = reference_backward.gradients64(dout, q, k, v, mask, whole=(out, lse))
    assert not dq[:, :, 1].any()
    assert np.isfinite(dk).all()


def test_per_batch_masks() -> None:
    masks = [constructors.causal(12), constructors.full(12)]
    *arrays, dlse = inputs(masks[0])
    found = reference_backward.gradients64(*arrays, masks, dlse=dlse)
    for b, mask in enumerate(masks):
        alone = reference_backward.gradients64(*(x[b : b + 1] for x in arrays), mask, dlse=dlse[b : b + 1])
        for one, other in zip(found, alone, strict=True):
            assert np.array_equal(one[b], other[0])


def test_parts_add_up_to_the_whole() -> None:
    mask = constructors.causal(10, 14)
    dout, q, k, v, dlse = inputs(mask)
    results = reference_attention.attention64(q, k, v, mask)
    whole = reference_backward.gradients64(dout, q, k, v, mask, dlse=dlse)
    parts = [
        reference_backward.gradients64(
            *(dout, q, k[:, :, keys], v[:, :, keys]), mask[:, keys], dlse=dlse, whole=results
        )
        for keys in (slice(0, 5), slice(5, 14))
    ]
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], rtol=1e-11, atol=1e-13)
    for i in (1, 2):
        joined = np.concatenate([part[i] for part in parts], axis=2)
        np.testing.assert_allclose(joined, whole[i], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_rounding_points_of_the_emulation(dtype: Any) -> None:
    """P is rounded for dv alone, dS for dq and dk, each gradient once at the end; delta is of the rounded out."""
    mask = constructors.causal(40, 38)
    dout, q, k, v, dlse = inputs(mask, dtype, (1, 1, 1))
    out, lse = reference_attention.attention_emulated(q, k, v, mask)
    found, _ = reference_backward.gradients_emulated(dout, q, k, v, mask, out=out, lse=lse, dlse=dlse)
    do, q32, k32, v32, o = (widen(x[0, 0], np.float32) for x in (dout, q, k, v, out))
    scale = np.float32(6**-0.5)
    level = np.where(np.isinf(lse[0, 0]), 0, lse[0, 0])[:, None]
    p = np.where(mask.to_dense(), np.exp(q32 @ k32.T * scale - level), np.float32(0))
    ds = p * (do @ v32.T - ((do * o).sum(axis=1) - dlse[0, 0])[:, None])
    p16, ds16 = (widen(narrow(np.ascontiguousarray(x), dtype), np.float32) for x in (p, ds))
    for one, wanted in zip(found, (ds16 @ k32 * scale, ds16.T @ q32 * scale, p16.T @ do), strict=True):
        assert one.dtype == np.dtype(dtype)
        unit = 2.0**-10 if dtype == np.float16 else 2.0**-7
        np.testing.assert_allclose(widen(one[0, 0], np.float64), wanted, rtol=1.1 * unit, atol=1e-5)
        # Most numbers are the same to the bit: nothing else was rounded.
        assert (widen(one[0, 0], np.float32) == widen(narrow(wanted, dtype), np.float32)).mean() > 0.97


def test_the_emulation_of_float64_rounds_nothing() -> None:
    mask = constructors.causal(9)
    dout, q, k, v, dlse = inputs(mask)
    out, lse = reference_attention.attention64(q, k, v, mask)
    emulated, _ = reference_backward.gradients_emulated(dout, q, k, v, mask, out=out, lse=lse, dlse=dlse)
    for one, other in zip(
        emulated, reference_backward.gradients64(dout, q, k, v, mask, dlse=dlse), strict=True
    ):
        assert np.array_equal(one, other)


def test_both_emulations_are_what_each_is_alone() -> None:
    """One pass over the pairs makes both: of each the bits that a pass of its own would give."""
    rng = np.random.default_rng(3)
    dout, q, k, v = (rng.standard_normal((2, 2, 40, 8)).astype(np.float16) for _ in range(4))
    mask = constructors.causal(40)
    out, lse = reference_attention.attention64(q, k, v, mask)
    given = reference_backward.given_of((dout, q, k, v), (out, lse, None), mask, None)
    rounding = lambda x: x.astype(np.float16).astype(np.float32)  # noqa: E731
    both = reference_backward.sums(given, np.dtype(np.float32), rounding, (False, True))
    emulated = reference_backward.gradients_emulated(dout, q, k, v, mask, out=out, lse=lse)
    for scaled, found, narrowed in zip((False, True), both, emulated, strict=True):
        (alone,) = reference_backward.sums(given, np.dtype(np.float32), rounding, (scaled,))
        for a, b, c in zip(found, alone, narrowed, strict=True):
            assert np.array_equal(a, b)
            assert np.array_equal(a.astype(np.float16), c)
    assert not np.array_equal(both[0][0], both[1][0])
