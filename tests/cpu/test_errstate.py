"""Numbers of the caller, NaN and infinity among them, raise and warn of nothing, whatever NumPy is told to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
import omnicupy.parallel

DTYPES: list[Any] = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
ROWS, DIM = 40, 8
MASK = oc.causal(ROWS) & oc.sliding_window(ROWS, left=20)
LARGEST = {
    "largest": lambda dtype: ml_dtypes.finfo(dtype).max,
    "least": lambda dtype: ml_dtypes.finfo(dtype).tiny,
}
NUMBERS: dict[str, Callable[[Any], Any]] = LARGEST | {
    "NaN": lambda _: np.nan,
    "infinity": lambda _: np.inf,
    "both infinities": lambda _: [np.inf, -np.inf],
}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def arrays(dtype: Any, number: str) -> list[Any]:
    """dout, q, k and v with some of that number in each."""
    rng = np.random.default_rng(3)
    with np.errstate(all="ignore"):
        found = [rng.standard_normal((1, heads, ROWS, DIM)).astype(dtype) for heads in (4, 4, 2, 2)]
        given = np.asarray(NUMBERS[number](dtype)).astype(dtype)
    for array in found:
        array[..., 3:30, 1:3] = given
    return found


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda one: np.dtype(one).name)
def test_both_passes(dtype: Any, number: str) -> None:
    dout, q, k, v = arrays(dtype, number)
    wide = np.float64 if dtype == np.float64 else np.float32
    sinks = np.array([-np.inf, 0, np.finfo(wide).max, -np.finfo(wide).max], wide)
    scores: dict[str, Any]
    for scores in ({}, {"softcap": 3.0}, {"sink_logits": sinks}):
        out, lse = oc.attention(q, k, v, MASK, return_lse=True, **scores)
        wanted = ("q", "k", "v", *(("sink_logits",) if "sink_logits" in scores else ()))
        grads = oc.attention_backward(dout, q, k, v, out, lse, MASK, dlse=lse, wanted=wanted, **scores)
        assert (grads[0].dtype, lse.dtype) == (dtype, wide)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda one: np.dtype(one).name)
def test_ranks(dtype: Any, number: str) -> None:
    plan = oc.parallel.plan(MASK, 2, rows="zigzag")
    dout, q, k, v = ([plan.shard(one, rank) for rank in range(2)] for one in arrays(dtype, number))
    out, lse = oc.parallel.attention_of_ranks(q, k, v, plan, return_lse=True)
    oc.parallel.attention_backward_of_ranks(dout, q, k, v, out, lse, plan=plan)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("scale", [None, 1e-30, "tokens"])
def test_caches(scale: Any, number: str) -> None:
    _, q, k, v = arrays(np.float16, number)
    lengths = np.array([ROWS], np.int32)
    plain = oc.CachedKV(k.copy(), v.copy(), lengths)
    oc.append(plain, k[:, :, -2:].copy(), v[:, :, -2:].copy())
    oc.attention(q[:, :, -2:], plain, mask=oc.cached())
    pools = [np.zeros(k.shape, ml_dtypes.float8_e4m3fn) for _ in range(2)]
    scales = [np.ones((1, ROWS, 2), np.float32) if scale == "tokens" else scale for _ in range(2)]
    eighths = oc.CachedKV(*pools, lengths, k_scale=scales[0], v_scale=scales[1])
    oc.append(eighths, k, v)
    oc.attention(q[:, :, -2:], eighths, mask=oc.cached(window=8, sink=2))


@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", [1e300, 1e-320, np.inf, np.nan, 5e-324, np.float64(1e39)])
def test_numbers_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    _, q, k, v = arrays(np.float32, "least")
    with pytest.raises(ValueError, match=f"^{name} "):
        oc.attention(q, k, v, MASK, **{name: value})
