"""attention() and append() on caches of e4m3, NumPy arrays: the bits of caches that hold the numbers they mean, and
what is refused.
"""

from __future__ import annotations

import re
from typing import Any

import fp8_caches
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.cpu import fp8

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LENGTHS = [0, 1, 5, 64, 150]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def _queries(batch: int, q_len: int = 2, dtype: Any = np.float32, head_dim: int = 64) -> NDArray[Any]:
    return np.random.default_rng(q_len).standard_normal((batch, 6, q_len, head_dim)).astype(dtype)


def _same(q: Any, kv: Any, numbers: oc.CachedKV, rule: oc.CachedRule, **options: Any) -> None:
    with np.errstate(all="ignore"):
        wanted = oc.attention(q, numbers, mask=rule, return_lse=True, **options)
        for mask in (rule, oc.plan(q, kv, rule)):
            found = oc.attention(q, kv, mask=mask, return_lse=True, **options)
            for mine, other in zip(found, wanted, strict=True):
                assert mine.dtype == other.dtype
                assert mine.tobytes() == other.tobytes()
    assert np.isfinite(wanted[0].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", fp8_caches.SCALES)
def test_scales(kind: str, dtype: Any) -> None:
    kv, numbers = fp8_caches.pair(LENGTHS, kind=kind, dtype=dtype, capacity=150)
    q = _queries(5, dtype=dtype)
    for caches in (kv, fp8_caches.in_pages(kv, 16), fp8_caches.in_pages(kv, 7)):
        _same(q, caches, numbers, oc.cached())
        _same(q, caches, numbers, oc.cached(window=9, sink=3))


def test_all_numbers_and_their_rounding() -> None:
    """Every byte, with scales that round up, down, and beyond float16."""
    every = np.arange(256, dtype=np.uint8)
    for scale in (1.0, 0.0123, 1e-7, 3.3, 100.0, 1e30):
        for dtype in DTYPES:
            found, wanted = fp8.dequantised(every, scale, dtype), fp8_caches.meant(every, scale, dtype)
            assert found.dtype == wanted.dtype == dtype
            np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))
    np.testing.assert_array_equal(every.view(E4M3).astype(np.float64), fp8_caches.NUMBERS)


@pytest.mark.parametrize("kind", ["tensor", "head", "token"])
def test_the_dtype_of_ml_dtypes(kind: str) -> None:
    kv, numbers = fp8_caches.pair(LENGTHS, kind=kind, capacity=150)
    kv.k, kv.v = kv.k.view(E4M3), kv.v.view(E4M3)
    _same(_queries(5), kv, numbers, oc.cached())
    one = oc.CachedKV(kv.k, kv.v, kv.lengths)  # no scale is a scale of 1
    plain = oc.CachedKV(*(fp8_caches.meant(pool, 1.0, np.float32) for pool in (kv.k, kv.v)), kv.lengths)
    _same(_queries(5), one, plain, oc.cached())


def test_values_of_another_width_and_score_changes() -> None:
    kv, numbers = fp8_caches.pair(LENGTHS, kind="token", head_dim=192, value_dim=128, capacity=150)
    options = {"softcap": 20.0, "sink_logits": np.linspace(-1, 30, 6, dtype=np.float32)}
    for caches in (kv, fp8_caches.in_pages(kv, 16)):
        _same(_queries(5, 3, head_dim=192), caches, numbers, oc.cached(window=70), **options)


def test_a_key_in_the_past_is_found_among_many() -> None:
    """Sharp scores: one key of 20,000 matches."""
    kv, numbers = fp8_caches.pair([20_000], kind="token", heads=1, capacity=20_000)
    q = 60 * numbers.k[:, :, 77:78] / np.square(numbers.k[:, :, 77:78]).sum() * 8
    _same(np.repeat(q, 2, axis=1), kv, numbers, oc.cached())


@pytest.mark.parametrize("kind", fp8_caches.SCALES)
@pytest.mark.parametrize("page_size", [None, 16])
def test_append(kind: str, page_size: int | None) -> None:
    """Each element is the nearest of e4m3, the rest as it was; a scale of a token makes its largest element 448."""
    kv, _ = fp8_caches.pair([40, 3, 0], kind=kind, capacity=48)
    caches: Any = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    rng = np.random.default_rng(1)
    k_new, v_new = (rng.standard_normal((3, 2, 2, 64)).astype(np.float32) for _ in "kv")
    k_new[0, 0, 0, :4] = np.nan, 1e9, -np.inf, 0
    k_new[1, 1, 1] = 0
    k, v = (caches.k, caches.v) if page_size is None else (caches.k_pages, caches.v_pages)
    before = k.copy(), v.copy()
    oc.append(caches, k_new, v_new)
    for pool, old, new, scale in (
        (k, before[0], k_new, caches.k_scale),
        (v, before[1], v_new, caches.v_scale),
    ):
        expected = old.copy()
        for b, length in ((0, 40), (1, 3)):
            for token in range(2):
                at = length - 2 + token
                page, row = (b, at) if page_size is None else (caches.page_table[b, at // 16], at % 16)
                for head in range(2):
                    values = new[b, head, token]
                    if kind == "token":
                        largest = np.nanmax(np.abs(values))
                        wanted = np.float32(largest) / np.float32(448) if largest else 1.0
                        assert scale[page, row, head] == np.float32(wanted)
                    factor = np.float32(
                        scale if np.ndim(scale) == 0 else scale[head] if kind == "head" else wanted
                    )
                    with np.errstate(all="ignore"):
                        row_of = [fp8_caches.nearest(float(x)) for x in values / factor]
                    place = (page, head, row) if page_size is None else (page, row, head)
                    expected[place] = row_of
        nan = np.isin(expected, fp8_caches.NAN)
        assert (nan == np.isin(pool, fp8_caches.NAN)).all()
        assert (pool[~nan] == expected[~nan]).all()


@pytest.mark.parametrize("tiny", [1e-45, 1e-44, 6e-43, 1e-42, 1e-38, 0.0])
def test_rows_whose_scale_would_vanish_are_zeros(tiny: float) -> None:
    """A scale of 0 would make NaN of the zeros beside a subnormal number."""
    k, scale = np.zeros((1, 1, 4, 4), np.uint8), np.ones((1, 4, 1), np.float32)
    kv = oc.CachedKV(k, k.copy(), np.array([1], np.int32), k_scale=scale, v_scale=scale.copy())
    new = np.array([[[[tiny, 0.0, -tiny, 0.0]]]], np.float32)
    oc.append(kv, new, new)
    assert scale[0, 0] > 0
    out = oc.attention(np.ones((1, 1, 1, 4), np.float32), kv, mask=oc.cached())
    assert np.allclose(out, new, rtol=0.1, atol=1e-42)


def test_append_at_slots_of_the_dtype_of_ml_dtypes() -> None:
    kv, _ = fp8_caches.pair([5], kind="head", capacity=32)
    kv.k, kv.v = kv.k.view(E4M3), kv.v.view(E4M3)
    new = np.random.default_rng(0).standard_normal((3, 2, 64)).astype(ml_dtypes.bfloat16)
    oc.append(kv, new, new, np.array([7, -1, 2]))
    for token, at in ((0, 7), (2, 2)):
        wanted = [
            [fp8_caches.nearest(x) for x in row]
            for row in new[token].astype(np.float32) / kv.k_scale[:, None]
        ]
        assert (kv.k.view(np.uint8)[0, :, at] == wanted).all()


def _call(**changes: Any) -> Any:
    pages: dict[str, Any] = {name: np.zeros((5, 4, 2, 16), np.uint8) for name in ("k_pages", "v_pages")}
    pages |= {"page_table": np.zeros((1, 2), np.int32), "lengths": np.array([3], np.int32)}
    pages |= {"k_scale": 1.0, "v_scale": 0.5}
    q = changes.pop("q", np.zeros((1, 2, 1, 16), np.float32))
    options = {name: changes.pop(name) for name in ("out", "rows", "max_rows") if name in changes}
    return oc.attention(q, oc.PagedKV(**(pages | changes)), mask=oc.cached(), **options)


def _of(dtype: Any) -> dict[str, Any]:
    return {name: np.zeros((5, 4, 2, 16), dtype) for name in ("k_pages", "v_pages")}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"k_scale": None},
        TypeError,
        "k_pages must not be uint8 without scales, which say that bytes are e4m3; pass k_scale",
    ),
    ({"k_scale": None, "v_scale": None}, TypeError, "pass k_scale and v_scale, 1.0 for numbers as they are"),
    (
        _of(ml_dtypes.float8_e5m2),
        oc.UnsupportedError,
        "k_pages must be float16, bfloat16 or float8_e4m3fn, got float8_e5m2",
    ),
    (_of(np.int8), oc.UnsupportedError, "got int8; fp8 caches are e4m3 alone"),
    (_of(np.float32), TypeError, "k_scale must be None where k_pages is float32: scales go with e4m3"),
    (
        {"v_pages": np.zeros((5, 4, 2, 16), np.float32)},
        TypeError,
        "v_pages must be float8_e4m3fn like k_pages, got float32",
    ),
    (
        {"k_pages": np.zeros((5, 4, 2, 16), np.float32)},
        TypeError,
        "k_pages must be float8_e4m3fn like v_pages, got float32",
    ),
    ({"k_scale": 0.0}, ValueError, "k_scale must be finite and above 0 in float32, got 0.0"),
    ({"v_scale": float("nan")}, ValueError, "v_scale must be finite and above 0 in float32, got nan"),
    ({"k_scale": 1e-60}, ValueError, "k_scale must be finite and above 0 in float32, got 1e-60"),
    ({"v_scale": 1e39}, ValueError, "v_scale must be finite and above 0 in float32, got 1e+39"),
    (
        {"k_scale": np.array([1, -1], np.float32)},
        ValueError,
        "k_scale must be finite and above 0 in float32, got -1.0",
    ),
    (
        {"k_scale": True},
        TypeError,
        "k_scale must be a number, or a float32 array of the library of the caches, got bool",
    ),
    ({"k_scale": [1.0, 2.0]}, TypeError, "k_scale must be a number, or a float32 array"),
    ({"k_scale": np.ones(2)}, TypeError, "k_scale must be float32, got float64; cast it"),
    (
        {"k_scale": np.ones(3, np.float32)},
        ValueError,
        "k_scale must have the shape (), for all, (2,), one a key head, or",
    ),
    (
        {"v_scale": np.ones((5, 2, 4), np.float32)},
        ValueError,
        "(5, 4, 2), one a token and head, (pages, page_size, kv_heads)",
    ),
    (
        {"q": np.zeros((1, 2, 1, 16), E4M3)},
        TypeError,
        "q must be float16, bfloat16, float32 or float64, got float8_e4m3fn",
    ),
    (
        {"q": np.zeros((1, 2, 1, 8), np.float32)},
        ValueError,
        "k_pages must have the head_dim of q (8), got 16",
    ),
    (
        {"q": np.zeros((1, 3, 1, 16), np.float32)},
        ValueError,
        "k_pages must have a number of heads that divides those of q (3), got 2",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_it_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        _call(**dict(changes))


def test_out_may_not_lie_in_a_cache() -> None:
    pool = np.zeros((5, 4, 2, 16), np.uint8)
    with pytest.raises(ValueError, match="out must not overlap k_pages"):
        _call(k_pages=pool, out=pool.reshape(-1).view(np.float32)[:32].reshape(1, 2, 1, 16))
    scale = np.ones((5, 4, 2), np.float32)
    with pytest.raises(ValueError, match="out must not overlap v_scale"):
        _call(v_scale=scale, out=scale.reshape(-1)[:32].reshape(1, 2, 1, 16))
    of_rows = {"q": np.zeros((1, 2, 16), np.float32), "rows": np.array([0, 1], np.int32), "max_rows": 1}
    with pytest.raises(ValueError, match="out must not overlap v_scale"):
        _call(v_scale=scale, out=scale.reshape(-1)[:32].reshape(1, 2, 16), **of_rows)
    with pytest.raises(ValueError, match="out must not overlap k_pages"):
        _call(k_pages=pool, out=pool.reshape(-1).view(np.float32)[:32].reshape(1, 2, 16), **of_rows)


def test_arrays_outside_of_caches_are_refused() -> None:
    q, k = np.zeros((1, 2, 1, 16), np.float32), np.zeros((1, 2, 5, 16), E4M3)
    with pytest.raises(TypeError, match="k must have the dtype of q"):
        oc.attention(q, k, k, oc.full(1, 5))
    with pytest.raises(oc.UnsupportedError, match="a CachedKV has no gradients"):
        oc.prepare(q, oc.CachedKV(k, k, np.array([5], np.int32)), mask=oc.cached(), gradients=True)


def test_what_append_refuses() -> None:
    kv, _ = fp8_caches.pair([5], kind="token", capacity=32)
    new = np.zeros((1, 2, 1, 64), np.float32)
    with pytest.raises(TypeError, match="k_new must be float16 or bfloat16 or float32 or float64, got uint8"):
        oc.append(kv, new.astype(np.uint8), new)
    with pytest.raises(TypeError, match="v_new must have the dtype of k_new"):
        oc.append(kv, new, new.astype(np.float16))
    kv.k_scale.flags.writeable = False
    with pytest.raises(ValueError, match="k_scale must be writeable, as append writes scales of tokens"):
        oc.append(kv, new, new)
    kv.k_scale = kv.v_scale
    written = kv.v_scale[0, :2, 0]
    kv.v[...] = 0x3C  # so that its bytes are numbers that a scale may be
    for scales in (
        {},
        {"v_scale": written},
        {"k_scale": written},
        {"v_scale": kv.v.reshape(-1)[:8].view(np.float32)},
    ):
        mine = oc.CachedKV(
            **{name: getattr(kv, name) for name in ("k", "v", "lengths", "k_scale", "v_scale")} | scales
        )
        with pytest.raises(ValueError, match="must not overlap"):
            oc.append(mine, new.copy(), new.copy())


def test_repr() -> None:
    kv, _ = fp8_caches.pair([5], kind="head", capacity=32)
    kv.v_scale = 0.5
    assert repr(kv) == (
        "CachedKV(k=uint8(1, 2, 32, 64), v=uint8(1, 2, 32, 64), lengths=int32(1,), k_scale=float32(2,), v_scale=0.5)"
    )
