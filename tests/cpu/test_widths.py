"""Values of another width than keys on NumPy arrays, both passes, with all that a call may ask for."""

from __future__ import annotations

from typing import Any

import cached_cases
import gradient_cases
import mask_cases
import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
from omnicupy.reference import budget, gradient_budget
from omnicupy.reference.attention import attention64

DTYPES: list[Any] = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
PAIRS = [(24, 16), (16, 24), (192, 128), (1, 5), (7, 3), (96, 64)]
SUBSETS = (("q",), ("v",), ("k", "v"), ("q", "k", "v"))


def wide(dtype: Any) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def inputs(rng: np.random.Generator, sizes: tuple[int, ...], widths: tuple[int, int], dtype: Any) -> Any:
    """q, k, v and dout. sizes: batch, key heads, group, rows and keys."""
    batch, kv_heads, group, rows, keys = sizes
    shapes = {
        "q": (kv_heads * group, rows, widths[0]),
        "k": (kv_heads, keys, widths[0]),
        "v": (kv_heads, keys, widths[1]),
        "dout": (kv_heads * group, rows, widths[1]),
    }
    return [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes.values()]


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda one: np.dtype(one).name)
@pytest.mark.parametrize("widths", PAIRS, ids=str)
def test_both_passes_keep_their_budgets(widths: tuple[int, int], dtype: Any) -> None:
    """Random masks, one for all or one a batch element, heads, sinks, soft caps, dlse and subsets of gradients."""
    rng = np.random.default_rng(PAIRS.index(widths))
    for turn in range(12):
        batch, (rows, keys) = 1 + turn % 3, (int(n) for n in rng.integers(1, 150, 2))
        kinds = rng.choice(list(mask_cases.LEAVES), batch if turn % 2 else 1)
        masks = [mask_cases.random_case(rng, rows, keys, str(kind)).mask for kind in kinds]
        mask: Any = masks[0] if len(masks) == 1 else masks
        sizes = (batch, int(rng.integers(1, 3)), int(rng.choice([1, 2, 7])), rows, keys)
        q, k, v, dout = inputs(rng, sizes, widths, dtype)
        sinks = rng.standard_normal(q.shape[1]).astype(wide(dtype)) if turn % 3 else None
        options: dict[str, Any] = {"sink_logits": sinks, "softcap": 3.0 if turn % 4 > 1 else None}
        out = np.full((*q.shape[:3], widths[1]), np.nan, dtype) if turn % 2 else None
        found, lse = oc.attention(q, k, v, mask, return_lse=True, out=out, split=384, **options)
        assert out is None or found is out
        assert found.dtype == dtype
        assert (worst := budget.compare(found, lse, budget.budget(q, k, v, mask, **options))).ok, str(worst)
        dlse = rng.standard_normal(lse.shape).astype(lse.dtype) if turn % 2 else None
        wanted = (*SUBSETS[turn % 4], *(() if sinks is None else ("sink_logits",)))
        grads = oc.attention_backward(dout, q, k, v, found, lse, mask, dlse=dlse, wanted=wanted, **options)
        for name, like, grad in zip("qkv", (q, k, v), grads, strict=False):
            assert (grad is None) == (name not in wanted)
            assert grad is None or (grad.shape, grad.dtype) == (like.shape, dtype)
        expected = gradient_budget.budget(dout, q, k, v, mask, out=found, lse=lse, dlse=dlse, **options)
        assert (result := gradient_budget.compare(grads, expected)).ok, str(result)


@pytest.mark.parametrize("widths", PAIRS, ids=str)
def test_columns_of_zeros_change_nothing(widths: tuple[int, int]) -> None:
    """What padding v, or q and k, to one width gives, which is how the pair was served before."""
    rng, mask = np.random.default_rng(0), oc.causal(60, 90)
    q, k, v, dout = inputs(rng, (2, 2, 2, 60, 90), widths, np.float64)
    scale = widths[0] ** -0.5
    out, lse = oc.attention(q, k, v, mask, return_lse=True)
    most = max(widths)
    padded = [np.pad(one, [(0, 0)] * 3 + [(0, most - one.shape[3])]) for one in (q, k, v, dout)]
    wanted, of_lse = oc.attention(*padded[:3], mask, scale=scale, return_lse=True)
    assert out.shape == (2, 4, 60, widths[1])
    np.testing.assert_allclose(out, wanted[..., : widths[1]], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, of_lse, rtol=1e-12)
    grads = oc.attention_backward(dout, q, k, v, out, lse, mask)
    others = oc.attention_backward(padded[3], *padded[:3], wanted, of_lse, mask, scale=scale)
    for grad, other in zip(grads, others, strict=True):
        np.testing.assert_allclose(grad, other[..., : grad.shape[3]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("widths", [(5, 3), (3, 5)])
def test_finite_differences(widths: tuple[int, int]) -> None:
    """Of each of q, k, v and the sinks in random directions, of a sum over out and lse."""
    rng, mask = np.random.default_rng(1), oc.causal(9, 11)
    *arrays, dout = inputs(rng, (2, 2, 2, 9, 11), widths, np.float64)
    arrays.append(rng.standard_normal(4))
    dlse = rng.standard_normal((2, 4, 9))

    def loss(q: Any, k: Any, v: Any, sinks: Any) -> float:
        out, lse = oc.attention(q, k, v, mask, return_lse=True, sink_logits=sinks, softcap=2.0)
        return float((out * dout).sum() + (lse * dlse).sum())

    q, k, v, sinks = arrays
    out, lse = oc.attention(q, k, v, mask, return_lse=True, sink_logits=sinks, softcap=2.0)
    rest: dict[str, Any] = {"dlse": dlse, "sink_logits": sinks, "softcap": 2.0}
    names = ("q", "k", "v", "sink_logits")
    found = oc.attention_backward(dout, q, k, v, out, lse, mask, wanted=names, **rest)
    for i, gradient in enumerate(found):
        for _ in range(4):
            step = rng.standard_normal(gradient.shape)
            ends = [[*arrays[:i], arrays[i] + sign * 1e-5 * step, *arrays[i + 1 :]] for sign in (1, -1)]
            slope = (loss(*ends[0]) - loss(*ends[1])) / 2e-5
            assert (gradient * step).sum() == pytest.approx(slope, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda one: np.dtype(one).name)
def test_poison_in_dead_keys_and_empty_rows(dtype: Any) -> None:
    mask = oc.ranges([(4, 20, 0, 30), (12, 30, 40, 64), (41, 42, 60, 61)], 50, 75)
    case = gradient_cases.made([mask], (2, 2, 2), 24, dtype, with_dlse=True, value_dim=16)
    clean = case.run(br=16, bc=32)
    dead, empty = mask.dead_keys(), ~mask.to_dense().any(axis=1)
    arrays = [array.copy() for array in case.arrays]
    for i, array in enumerate(arrays):
        array[:, :, np.flatnonzero(dead if i in (2, 3) else empty)] = np.nan
    poisoned = gradient_cases.GradientCase(type(case.arrays)(*arrays), [mask])
    for found, wanted in zip(poisoned.run(br=16, bc=32), clean, strict=True):
        assert np.array_equal(found, wanted)
    out, lse = oc.attention(case.arrays.q, *arrays[2:4], mask, return_lse=True)
    assert np.array_equal(out, case.arrays.out)
    assert np.array_equal(lse, case.arrays.lse)
    assert (out[:, :, empty] == 0).all()
    assert (lse[:, :, empty] == -np.inf).all()


def test_given_gradients_are_written() -> None:
    case = gradient_cases.made([oc.causal(70, 90)], (2, 2, 2), 24, np.float32, value_dim=8)
    wanted = case.run()
    given = tuple(np.full(like.shape[::-1], 7, np.float32).T for like in wanted)
    for found, to, like in zip(case.run(out_grads=given), given, wanted, strict=True):
        assert found is to
        assert np.array_equal(found, like)


@pytest.mark.parametrize("widths", [(24, 16), (16, 40)])
@pytest.mark.parametrize("q_len", [1, 5])
def test_caches(q_len: int, widths: tuple[int, int]) -> None:
    rng, lengths = np.random.default_rng(q_len), np.array([0, 17, 90, 64], np.int32)
    q, k, v, _ = inputs(rng, (4, 2, 3, q_len, 90), widths, np.float64)
    for window, sink in cached_cases.WINDOWS:
        rule = oc.cached(window=window, sink=sink)
        masks = [oc.from_dense(cached_cases.dense(rule, int(n), q_len, 90, b)) for b, n in enumerate(lengths)]
        exact = attention64(q, k, v, masks)
        kv = oc.CachedKV(k, v, lengths)
        step = oc.plan(q, kv, rule)
        for mask in (rule, step):
            for to in (None, np.full((*q.shape[:3], widths[1]), np.nan)):
                found = oc.attention(q, kv, mask=mask, return_lse=True, out=to)
                assert to is None or found[0] is to
                for mine, wanted in zip(found, exact, strict=True):
                    np.testing.assert_allclose(mine, wanted, rtol=1e-12, atol=1e-12)
