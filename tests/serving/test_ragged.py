"""attention() on caches of NumPy arrays whose sequences have numbers of rows of their own: as a call for each."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import paged_calls
import pytest
from numpy.typing import NDArray

import omnicupy as oc

KV_HEADS, Q_HEADS, CAPACITY, HEAD_DIM = 2, 6, 300, 16
COUNTS, LENGTHS = [1, 0, 9, 33, 1, 5], [300, 20, 64, 40, 0, 3]
TOTAL = sum(COUNTS) + 4  # rows of no sequence at the end


def _starts(counts: list[int] = COUNTS) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _inputs(dtype: Any = np.float32) -> tuple[NDArray[Any], oc.CachedKV]:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((TOTAL, Q_HEADS, HEAD_DIM)).astype(dtype)
    q[sum(COUNTS) :] = np.nan
    k, v = (rng.standard_normal((len(COUNTS), KV_HEADS, CAPACITY, HEAD_DIM)).astype(dtype) for _ in "kv")
    for array in (k, v):
        for b, keys in enumerate(LENGTHS):
            array[b, :, keys:] = np.nan
    return q, oc.CachedKV(k, v, np.array(LENGTHS, np.int32))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("size", [None, 1, 16])
@pytest.mark.parametrize("rule", [oc.cached(), oc.cached(window=20, sink=3)], ids=["all", "window"])
def test_each_sequence_is_a_call_of_its_own(rule: oc.CachedRule, size: int | None, dtype: Any) -> None:
    (q, kv), starts = _inputs(dtype), _starts()
    held = kv if size is None else paged_calls.paged(kv, size)
    out = np.full(q.shape, np.nan, dtype)
    scores: dict[str, Any] = {"softcap": 4.0, "sink_logits": np.arange(Q_HEADS).astype(out.dtype)}
    if dtype != np.float64:
        scores["sink_logits"] = np.arange(Q_HEADS, dtype=np.float32)
    how: dict[str, Any] = {"rows": starts, "max_rows": 33, "return_lse": True, **scores}
    found, lse = oc.attention(q, held, mask=rule, out=out, **how)
    assert found is out
    assert lse.shape == (Q_HEADS, TOTAL)
    for b, (first, stop) in enumerate(pairwise(starts)):
        if first == stop:
            continue
        one = oc.CachedKV(kv.k[b : b + 1], kv.v[b : b + 1], kv.lengths[b : b + 1])
        of_q = q[first:stop].transpose(1, 0, 2)[None]
        wanted, of_lse = oc.attention(of_q, one, mask=rule, return_lse=True, **scores)
        assert found[first:stop].transpose(1, 0, 2).tobytes() == wanted[0].tobytes()
        assert lse[:, first:stop].tobytes() == of_lse[0].tobytes()
    assert not found[starts[4] : starts[5]].any()  # an empty sequence
    assert np.isnan(found[starts[-1] :].astype(np.float64)).all()
    step = oc.plan(q, held, rule, rows=starts, max_rows=33, softcap=4.0)
    again = oc.attention(q, held, mask=step, return_lse=True, **scores)
    assert again[0][: starts[-1]].tobytes() == found[: starts[-1]].tobytes()
    oc.prepare(q, held, mask=rule, max_length=CAPACITY, **how)


def test_a_step_holds_its_rows() -> None:
    (q, kv), starts = _inputs(), _starts()
    step = oc.plan(q, kv, oc.cached(), rows=starts, max_rows=33)
    assert repr(step) == (
        "<CachedStep of cached(window=None, sink=0, tail=None): 6 sequences, 53 rows, up to 33 each, capacity 300>"
    )
    wanted = oc.attention(q, kv, mask=oc.cached(), rows=starts, max_rows=33)[: starts[-1]]
    other = starts.copy()
    starts[...] = 0
    for given in ({}, {"rows": starts}, {"rows": starts, "max_rows": 33}):
        assert (oc.attention(q, kv, mask=step, **given)[: len(wanted)] == wanted).all()
    with pytest.raises(ValueError, match="the step was made of another array of rows"):
        oc.attention(q, kv, mask=step, rows=other)
    with pytest.raises(
        ValueError, match=re.escape("max_rows 33 and caches of (heads, capacity) (2, 300), got")
    ):
        oc.attention(q, kv, mask=step, rows=starts, max_rows=34)
    equal = oc.plan(q[:6].transpose(1, 0, 2)[None].repeat(6, 0), kv, oc.cached())
    with pytest.raises(ValueError, match="the step was made for q of shape"):
        oc.attention(q, kv, mask=equal, rows=starts, max_rows=33)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_rows": None}, ValueError, "max_rows must be given where rows is"),
    ({"rows": None}, ValueError, "rows must be given where max_rows is"),
    ({"rows": _starts().astype(np.int64)}, TypeError, "rows must be int32, got int64; cast it"),
    ({"rows": _starts().tolist()}, TypeError, "rows must be a CuPy or NumPy array, got list"),
    ({"rows": _starts()[:1]}, ValueError, "shape (sequences + 1,), got (1,)"),
    ({"rows": _starts().repeat(2)[::2]}, ValueError, "rows must be contiguous (a stride of 4 bytes), got 8"),
    ({"rows": _starts()[:-1]}, ValueError, "k must have the batch size of q (5), got 6"),
    ({"rows": _starts()[::-1].copy()}, ValueError, "rows must not decrease, from 0 on and up to the 53 rows of q"),
    ({"rows": _starts() + np.int32(5)}, ValueError, "rows must not decrease, from 0 on and up to the 53 rows of q"),
    ({"rows": _starts() - np.int32(1)}, ValueError, "rows must not decrease, from 0 on and up to the 53 rows of q"),
    ({"max_rows": 32}, ValueError, "max_rows must be at least the rows of every sequence, got 32 for 33 of 3"),
    ({"max_rows": 0}, ValueError, "max_rows must be at least 1, got 0"),
    ({"max_rows": "33"}, TypeError, "max_rows must be an integer"),
    ({"q": np.zeros((6, 6, 1, 16), np.float32)}, ValueError, "q must have 3 axes (rows of all sequences, heads, head"),
    ({"q": np.zeros((0, 6, 16), np.float32)}, ValueError, "none empty, got shape (0, 6, 16)"),
    ({"q": [[1.0]]}, TypeError, "q must be a CuPy or NumPy array, got list"),
    ({"out": np.zeros((53, 6, 17), np.float32)}, ValueError, "out must have the shape of q with the width of v where"),
    ({"out": np.zeros((53, 6, 16))}, TypeError, "out must have the dtype of q (float32), got float64"),
    ({"mask": oc.cached(tail=oc.full(33))}, oc.UnsupportedError, "a tail goes with q of equally many rows a sequence"),
    ({"mask": oc.full(53)}, TypeError, "mask must be a rule of cached() where k is a CachedKV"),
    ({"k": np.zeros((6, 2, 300, 16), np.float32)}, TypeError, "k must be a CachedKV or PagedKV where mask is a"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_it_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    q, kv = _inputs()
    given: dict[str, Any] = {
        "q": q,
        "k": kv,
        "mask": oc.cached(),
        "rows": _starts(),
        "max_rows": 33,
    } | changes
    with pytest.raises(error, match=re.escape(message)):
        oc.attention(given.pop("q"), given.pop("k"), **given)


@pytest.mark.parametrize("function", [oc.attention, oc.prepare])
@pytest.mark.parametrize("name", ["rows", "max_rows"])
def test_without_caches_they_are_refused_by_name(name: str, function: Any) -> None:
    q = np.zeros((1, 1, 4, 8), np.float32)
    with pytest.raises(ValueError, match="rows and max_rows go with a CachedKV or PagedKV"):
        function(q, q, q, **{name: 3})


def test_out_may_not_overlap() -> None:
    q, kv = _inputs()
    with pytest.raises(ValueError, match="out must not overlap q"):
        oc.attention(q, kv, mask=oc.cached(), rows=_starts(), max_rows=33, out=q)


def test_pages_of_a_sequence_without_rows_are_not_looked_at() -> None:
    (q, kv), starts = _inputs(), _starts()
    in_pages = paged_calls.paged(kv, 16)
    in_pages.page_table[1] = -1
    wanted = oc.attention(q, kv, mask=oc.cached(), rows=starts, max_rows=33)
    found = oc.attention(q, in_pages, mask=oc.cached(), rows=starts, max_rows=33)
    assert found[: starts[-1]].tobytes() == wanted[: starts[-1]].tobytes()
    in_pages.page_table[2, 0] = -1
    with pytest.raises(ValueError, match=re.escape("page_table[2, 0] must be from 0 to")):
        oc.attention(q, in_pages, mask=oc.cached(), rows=starts, max_rows=33)
