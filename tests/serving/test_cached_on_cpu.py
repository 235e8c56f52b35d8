"""attention() on a CachedKV of NumPy arrays, against float64 on the ordinary masks; unused slots hold NaN."""

from __future__ import annotations

from typing import Any

import cached_cases
import ml_dtypes
import numpy as np
import pytest
from cached_cases import TAILS, WINDOWS
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.reference.attention import attention64

BATCH, Q_HEADS, KV_HEADS, CAPACITY, HEAD_DIM = 4, 6, 2, 300, 16


def _caches(rng: np.random.Generator, lengths: NDArray[np.int32], dtype: Any) -> tuple[oc.CachedKV, Any]:
    """A cache with NaN and infinity past each length, and the same with zeros there."""
    shape = (len(lengths), KV_HEADS, CAPACITY, HEAD_DIM)
    clean = [rng.standard_normal(shape).astype(dtype) for _ in "kv"]
    dirty = [array.copy() for array in clean]
    for b, keys in enumerate(lengths):
        for array in clean:
            array[b, :, keys:] = 0
        for array in dirty:
            array[b, :, keys:] = np.nan
            array[b, :, keys::2] = np.inf
    return oc.CachedKV(*dirty, lengths), clean


def _reference(q: Any, clean: Any, rule: oc.CachedRule, lengths: NDArray[np.int32]) -> tuple[Any, Any]:
    masks = [
        oc.from_dense(cached_cases.dense(rule, int(keys), q.shape[2], CAPACITY, b))
        for b, keys in enumerate(lengths)
    ]
    return attention64(q, *clean, masks)


def _agree(found: tuple[Any, Any], wanted: tuple[Any, Any], tolerance: float) -> None:
    for mine, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine.astype(np.float64), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("window", "sink"), WINDOWS)
@pytest.mark.parametrize("q_len", [1, 4, 33])
def test_against_float64(q_len: int, window: int | None, sink: int, tail: str) -> None:
    rule = oc.cached(window=window, sink=sink, tail=TAILS[tail](q_len))
    rng = np.random.default_rng(q_len)
    for some in ([0, 1, 5, 300], [q_len, q_len - 1, q_len + 1, 299], [64, 65, 128, 257]):
        lengths = np.array(some, np.int32)
        q = rng.standard_normal((BATCH, Q_HEADS, q_len, HEAD_DIM))
        kv, clean = _caches(rng, lengths, np.float64)
        found = oc.attention(q, kv, mask=rule, return_lse=True)
        _agree(found, _reference(q, clean, rule, lengths), 1e-12)
        clean_kv = oc.CachedKV(*clean, lengths)
        assert (oc.attention(q, clean_kv, mask=rule) == found[0]).all(), (
            "what unused slots hold must not count"
        )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2)]
)
def test_dtypes_strides_and_out(dtype: Any, tolerance: float) -> None:
    rng, lengths = np.random.default_rng(0), np.array([0, 17, 300, 64], np.int32)
    rule = oc.cached(window=50, sink=3)
    q = rng.standard_normal((BATCH, 2, Q_HEADS, HEAD_DIM)).astype(dtype).transpose(0, 2, 1, 3)
    kv, clean = _caches(rng, lengths, dtype)
    kv = oc.CachedKV(
        *(array.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3) for array in (kv.k, kv.v)), lengths
    )
    out = np.full(q.shape, np.nan, dtype)
    found, lse = oc.attention(q, kv, mask=rule, return_lse=True, out=out)
    assert found is out
    _agree((found, lse), _reference(q, clean, rule, lengths), tolerance)
    assert not found[0].astype(np.float32).any()
    assert np.isneginf(lse[0]).all()


def test_a_ragged_batch_of_37_with_one_tail_each() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, CAPACITY + 1, 37).astype(np.int32)
    tails = [TAILS[list(TAILS)[1 + i % 5]](9) for i in range(37)]
    rule = oc.cached(window=70, sink=2, tail=tails)
    q = rng.standard_normal((37, Q_HEADS, 9, HEAD_DIM))
    kv, clean = _caches(rng, lengths, np.float64)
    _agree(oc.attention(q, kv, mask=rule, return_lse=True), _reference(q, clean, rule, lengths), 1e-12)


def test_a_loop_that_grows_equals_ordinary_calls() -> None:
    rng = np.random.default_rng(2)
    k, v = (rng.standard_normal((1, KV_HEADS, 40, HEAD_DIM)) for _ in "kv")
    q = rng.standard_normal((1, Q_HEADS, 40, HEAD_DIM))
    lengths = np.zeros(1, np.int32)
    for length in range(1, 41):
        lengths[0] = length
        found = oc.attention(
            q[:, :, length - 1 : length], oc.CachedKV(k, v, lengths), mask=oc.cached(window=8)
        )
        wanted = oc.attention(q, k, v, oc.sliding_window(40, left=7))[:, :, length - 1 : length]
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


def test_a_step_holds_the_lengths_it_was_planned_with() -> None:
    rng = np.random.default_rng(3)
    lengths = np.array([5, 9], np.int32)
    q = rng.standard_normal((2, Q_HEADS, 1, HEAD_DIM))
    kv, _ = _caches(rng, lengths, np.float64)
    step = oc.plan(q, kv, oc.cached(window=4))
    wanted = oc.attention(q, kv, mask=oc.cached(window=4))
    assert (oc.attention(q, kv, mask=step) == wanted).all()
    lengths += 1
    kv.k[:], kv.v[:] = np.nan_to_num(kv.k, posinf=1), np.nan_to_num(kv.v, posinf=1)
    assert (oc.attention(q, kv, mask=step) == wanted).all()
    assert (oc.attention(q, kv, mask=oc.cached(window=4)) != wanted).any()
    with pytest.raises(ValueError, match="the step was made of another array of lengths"):
        oc.attention(q, oc.CachedKV(kv.k, kv.v, lengths.copy()), mask=step)
    with pytest.raises(ValueError, match=r"the step was made for q of shape \(2, 6, 1, 16\)"):
        oc.attention(np.concatenate([q, q], axis=2), kv, mask=step)
    assert repr(step) == (
        "<CachedStep of cached(window=4, sink=0, tail=None): 2 sequences, 1 row each, capacity 300>"
    )


def _call(**changes: Any) -> Any:
    arrays = {name: np.zeros((2, 1, 8, 4), np.float32) for name in "kv"}
    given: dict[str, Any] = {"lengths": np.array([3, 4], np.int32), "mask": oc.cached(), **arrays, **changes}
    q, extra = np.zeros((2, 1, 1, 4), np.float32), given.get("extra")
    kv = given["kv"] if "kv" in given else oc.CachedKV(given["k"], given["v"], given["lengths"])
    options = {name: given[name] for name in ("config", "out") if name in given}
    return oc.attention(q, kv, extra, given["mask"], **options)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"lengths": np.array([3, 9], np.int32)},
        ValueError,
        r"lengths\[1\] must be from 0 to the capacity 8, got 9",
    ),
    (
        {"lengths": np.array([-1, 2], np.int32)},
        ValueError,
        r"lengths\[0\] must be from 0 to the capacity 8, got -1",
    ),
    ({"lengths": np.array([3, 4])}, TypeError, "lengths must be int32, got int64; cast it"),
    ({"lengths": np.array([3], np.int32)}, ValueError, r"one entry per sequence, shape \(2,\), got \(1,\)"),
    ({"lengths": np.array([3, 0, 4], np.int32)[::2]}, ValueError, "lengths must be contiguous"),
    ({"lengths": [3, 4]}, TypeError, "lengths must be a CuPy or NumPy array, got list"),
    (
        {"v": np.zeros((2, 1, 9, 4), np.float32)},
        ValueError,
        r"v must have the batch, heads and tokens of k \(2, 1, 8\)",
    ),
    (
        {"mask": None},
        TypeError,
        r"mask must be a rule of cached\(\) where k is a CachedKV, got None; pass mask=",
    ),
    ({"mask": oc.full(1, 8)}, TypeError, "its lengths live in arrays, which a Mask cannot follow"),
    (
        {"mask": oc.cached(tail=oc.full(2))},
        ValueError,
        r"mask: tail must have the shape .* \(1, 1\), got \(2, 2\)",
    ),
    ({"mask": oc.cached(tail=[oc.full(1)] * 3)}, ValueError, r"one Mask per sequence \(2\), got 3"),
    ({"extra": np.zeros((2, 1, 8, 4), np.float32)}, TypeError, "v must be left out where k is a CachedKV"),
    ({"extra": oc.cached()}, TypeError, r"which holds the values, got omnicupy.CachedRule; pass it as mask="),
    (
        {"kv": np.zeros((2, 1, 8, 4), np.float32)},
        TypeError,
        r"k must be a CachedKV or PagedKV where mask is a rule of cached\(\)",
    ),
    ({"config": 3}, TypeError, "config must be an AttnSpec or None"),
    ({"out": np.zeros((2, 1, 1, 4))}, TypeError, r"out must have the dtype of q \(float32\), got float64"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_it_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _call(**changes)


def test_prepare_checks() -> None:
    kv = oc.CachedKV(*(np.zeros((1, 1, 8, 4), np.float32) for _ in "kv"), np.array([8], np.int32))
    q = np.zeros((1, 1, 1, 4), np.float32)
    oc.prepare(q, kv, mask=oc.cached(), max_length=8)
    with pytest.raises(ValueError, match="max_length must be from 1 to the capacity 8, got 9"):
        oc.prepare(q, kv, mask=oc.cached(), max_length=9)
    with pytest.raises(oc.UnsupportedError, match="has no gradients"):
        oc.prepare(q, kv, mask=oc.cached(), gradients=True)
    with pytest.raises(ValueError, match="max_length goes with a CachedKV"):
        oc.prepare(q, kv.k, kv.v, max_length=9)
    assert repr(kv) == "CachedKV(k=float32(1, 1, 8, 4), v=float32(1, 1, 8, 4), lengths=int32(1,))"


def test_lengths_that_change_in_place_leave_nothing_behind() -> None:
    """Growing, shrinking, half of the sequences gone, and slots of others in between: as in replays of a graph."""
    rng = np.random.default_rng(4)
    lengths, rule = np.full(BATCH, 5, np.int32), oc.cached(window=90, sink=2)
    q = rng.standard_normal((BATCH, Q_HEADS, 2, HEAD_DIM))
    kv, _ = _caches(rng, lengths, np.float64)
    for some in ([5] * 4, [6, 64, 65, 300], [3] * 4, [0, 0, 200, 300], [0] * 4, [5] * 4):
        lengths[:] = some
        fresh, clean = _caches(rng, lengths, np.float64)
        kv.k[:], kv.v[:] = fresh.k, fresh.v
        _agree(oc.attention(q, kv, mask=rule, return_lse=True), _reference(q, clean, rule, lengths), 1e-12)


SINKS = (-np.inf, 0.0, 30.0, -2.0, 1e4, 1.0)
SCORES: list[dict[str, Any]] = [
    {"softcap": 5.0},
    {"sink_logits": np.array(SINKS)},
    {"softcap": 5.0, "sink_logits": np.array(SINKS), "split": 64},
]


@pytest.mark.parametrize("scores", SCORES, ids=lambda one: "-".join(one))
@pytest.mark.parametrize("tail", ["causal", "random"])
def test_score_changes_against_float64(scores: dict[str, Any], tail: str) -> None:
    rng, rule = np.random.default_rng(6), oc.cached(window=70, sink=3, tail=TAILS[tail](3))
    lengths = np.array([0, 2, 65, 300], np.int32)
    q = 3 * rng.standard_normal((BATCH, Q_HEADS, 3, HEAD_DIM))
    kv, clean = _caches(rng, lengths, np.float64)
    masks = [oc.from_dense(cached_cases.dense(rule, int(n), 3, CAPACITY, b)) for b, n in enumerate(lengths)]
    wanted = attention64(q, *clean, masks, **{name: scores[name] for name in scores if name != "split"})
    found = oc.attention(q, kv, mask=rule, return_lse=True, **scores)
    _agree(found, wanted, 1e-12)
    assert (found[0] != oc.attention(q, kv, mask=rule)).any()
    step = oc.plan(q, kv, rule, softcap=scores.get("softcap"), split=64)
    assert step.split == 64
    if "softcap" in scores:
        for other in (None, 7.0):
            with pytest.raises(
                ValueError, match=rf"^softcap must be that of the step, 5.0, got {other}; name it in"
            ):
                oc.attention(q, kv, mask=step, softcap=other)
    assert (oc.attention(q, kv, mask=step, **scores) == found[0]).all()
    oc.prepare(q, kv, mask=rule, **scores)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (
            {"softcap": 0.0},
            ValueError,
            "softcap must be finite and above 0 in float32, and scale / softcap too",
        ),
        ({"softcap": "50"}, TypeError, "softcap must be a number or None"),
        (
            {"sink_logits": np.zeros(3, np.float32)},
            ValueError,
            r"sink_logits must have the shape \(q heads,\)",
        ),
        ({"sink_logits": np.zeros(2)}, TypeError, "sink_logits must be float32 where q is float32"),
        ({"sink_logits": np.array([0, np.nan], np.float32)}, ValueError, "must hold numbers below infinity"),
        ({"split": 65}, ValueError, "split must be a multiple of 32 keys"),
        ({"split": 64.0}, TypeError, "split must be a number of keys or None"),
    ],
)
@pytest.mark.parametrize("function", [oc.attention, oc.prepare])
def test_bad_score_changes_and_splits(
    function: Any, option: dict[str, Any], error: type[Exception], message: str
) -> None:
    q, k = np.zeros((1, 2, 1, 16), np.float32), np.zeros((1, 2, 40, 16), np.float32)
    with pytest.raises(error, match=message):
        function(q, oc.CachedKV(k, k, np.array([3], np.int32)), mask=oc.cached(), **option)
