"""attention() on a PagedKV of NumPy arrays: the bits of the same keys one behind the other, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import paged_calls
import pytest
from cached_cases import TAILS, WINDOWS
from numpy.typing import NDArray

import omnicupy as oc

Q_HEADS, KV_HEADS, CAPACITY, HEAD_DIM = 6, 2, 300, 16
SIZES = (1, 8, 16, 17, 32, 64, 128, 256)


def _caches(
    lengths: Any, dtype: Any = np.float32, seed: int = 0, widths: tuple[int, int] = (HEAD_DIM, HEAD_DIM)
) -> oc.CachedKV:
    rng, held = np.random.default_rng(seed), np.array(lengths, np.int32)
    arrays = [rng.standard_normal((len(held), KV_HEADS, CAPACITY, width)).astype(dtype) for width in widths]
    for array in arrays:
        for b, keys in enumerate(held):
            array[b, :, keys:] = np.nan
    return oc.CachedKV(*arrays, held)


def _queries(batch: int, q_len: int, dtype: Any = np.float32, q_heads: int = Q_HEADS) -> NDArray[Any]:
    rng = np.random.default_rng(q_len)
    return rng.standard_normal((batch, q_heads, q_len, HEAD_DIM)).astype(dtype)


def _same(q: Any, kv: oc.CachedKV, in_pages: oc.PagedKV, rule: oc.CachedRule, **options: Any) -> None:
    wanted = oc.attention(q, kv, mask=rule, return_lse=True, **options)
    for mask in (rule, oc.plan(q, in_pages, rule, softcap=options.get("softcap"))):
        found = oc.attention(q, in_pages, mask=mask, return_lse=True, **options)
        for mine, other in zip(found, wanted, strict=True):
            assert mine.tobytes() == other.tobytes()
    assert np.isfinite(wanted[0].astype(np.float32)).all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("window", "sink"), WINDOWS)
def test_rules(window: int | None, sink: int, tail: str) -> None:
    kv = _caches([0, 1, 5, 300])
    rule = oc.cached(window=window, sink=sink, tail=TAILS[tail](4))
    _same(_queries(4, 4), kv, paged_calls.paged(kv, 16), rule)


@pytest.mark.parametrize("page_size", SIZES)
def test_lengths_at_the_edges_of_pages(page_size: int) -> None:
    lengths = [n for n in (0, 1, page_size - 1, page_size, page_size + 1, 63, 65, 300) if n <= CAPACITY]
    kv = _caches(lengths)
    for q_len in (1, 3):
        _same(
            _queries(len(lengths), q_len), kv, paged_calls.paged(kv, page_size), oc.cached(window=70, sink=3)
        )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
def test_layouts_of_engines(layout: str, dtype: Any) -> None:
    kv = _caches([300, 17, 64], dtype)
    _same(_queries(3, 2, dtype), kv, paged_calls.paged(kv, 16, layout=layout), oc.cached())


def test_a_ragged_batch_that_shares_a_prefix() -> None:
    lengths = np.random.default_rng(1).integers(48, CAPACITY + 1, 37)
    kv = _caches(lengths)
    for array in (kv.k, kv.v):
        array[1:, :, :48] = array[0, :, :48]
    in_pages = paged_calls.paged(kv, 16, shared=3)
    assert (in_pages.page_table[:, :3] == in_pages.page_table[0, :3]).all()
    _same(_queries(37, 5), kv, in_pages, oc.cached(window=100))


@pytest.mark.parametrize("group", range(1, 9))
def test_groups(group: int) -> None:
    kv = _caches([300, 64, 0])
    _same(_queries(3, 1, q_heads=KV_HEADS * group), kv, paged_calls.paged(kv, 32), oc.cached())


@pytest.mark.parametrize("layout", paged_calls.UNEQUAL)
def test_values_of_another_width(layout: str) -> None:
    kv = _caches([300, 0, 17], widths=(192, 128))
    q = np.random.default_rng(2).standard_normal((3, Q_HEADS, 2, 192)).astype(np.float32)
    _same(q, kv, paged_calls.paged(kv, 16, layout=layout), oc.cached(window=70, sink=3))


def test_score_changes_and_splits() -> None:
    kv, q = _caches([300, 0, 17]), 3 * _queries(3, 2)
    sinks = np.array([-np.inf, 0, 30, -2, 1e4, 1], np.float32)
    in_pages = paged_calls.paged(kv, 16)
    for options in (
        {"sink_logits": sinks},
        {"softcap": 2.0},
        {"sink_logits": sinks, "softcap": 2.0, "split": 64},
    ):
        _same(q, kv, in_pages, oc.cached(), **options)
        assert (
            oc.attention(q, in_pages, mask=oc.cached(), **options)
            != oc.attention(q, in_pages, mask=oc.cached())
        ).any()
    oc.prepare(q, in_pages, mask=oc.cached(), sink_logits=sinks, softcap=2.0, split=64)
    with pytest.raises(ValueError, match="split must be a multiple of 32 keys"):
        oc.attention(q, in_pages, mask=oc.cached(), split=65)


def test_pages_that_another_sequence_gets() -> None:
    """A table and lengths that change in place, as between replays of a graph."""
    for lengths in ([5, 5], [300, 3], [0, 64], [64, 0]):
        kv = _caches(lengths, seed=sum(lengths))
        _same(_queries(2, 1), kv, paged_calls.paged(kv, 16, seed=lengths[0]), oc.cached())


def test_pages_that_a_window_has_left_behind_may_be_gone() -> None:
    kv = _caches([300, 40])
    in_pages = paged_calls.paged(kv, 16)
    in_pages.page_table[0, 1:12] = -1
    _same(_queries(2, 1), kv, in_pages, oc.cached(window=100, sink=16))
    with pytest.raises(ValueError, match=re.escape("page_table[0, 11] must be from 0 to")):
        oc.attention(_queries(2, 1), in_pages, mask=oc.cached(window=110, sink=16))


def _call(**changes: Any) -> Any:
    given: dict[str, Any] = {name: np.zeros((5, 4, 1, 8), np.float32) for name in ("k_pages", "v_pages")}
    given |= {"page_table": np.array([[0, 1], [4, 2]], np.int32), "lengths": np.array([3, 8], np.int32)}
    options = {name: changes.pop(name) for name in ("out", "config", "v") if name in changes}
    q = changes.pop("q", np.zeros((2, 2, 1, 8), np.float32))
    return oc.attention(q, oc.PagedKV(**(given | changes)), mask=changes.pop("mask", oc.cached()), **options)


def _pages(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.zeros(shape, dtype)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lengths": np.array([3, 9], np.int32)}, ValueError, "lengths[1] must be from 0 to the capacity 8, got 9"),
    (
        {"page_table": np.array([[0, 1], [4, -1]], np.int32)},
        ValueError,
        "page_table[1, 1] must be from 0 to 4, a page of the pool, for the 8 keys of sequence 1, got -1",
    ),
    (
        {"page_table": np.array([[5, 1], [4, 2]], np.int32)},
        ValueError,
        "page_table[0, 0] must be from 0 to 4, a page of the pool, for the 3 keys of sequence 0, got 5",
    ),
    ({"page_table": np.array([[0, 1], [4, 2]])}, TypeError, "page_table must be int32, got int64; cast it"),
    ({"page_table": [[0, 1], [4, 2]]}, TypeError, "page_table must be a CuPy or NumPy array, got list"),
    (
        {"page_table": np.zeros((3, 2), np.int32)},
        ValueError,
        "page_table must have a row of pages for each sequence, shape (2, max_pages), got (3, 2)",
    ),
    (
        {"page_table": np.zeros((2, 0), np.int32)},
        ValueError,
        "page_table must have a row of pages for each sequence, shape (2, max_pages), got (2, 0)",
    ),
    (
        {"page_table": np.zeros((2, 2), np.int32).T},
        ValueError,
        "page_table must have contiguous rows (steps of 4 bytes, from row to row of 0 or more), got strides (4, 8)",
    ),
    (
        {"k_pages": _pages(5, 4, 8)},
        ValueError,
        "k_pages must have 4 axes (pages, page_size, kv_heads, head_dim), none empty, got shape (5, 4, 8)",
    ),
    (
        {"k_pages": _pages(5, 257, 1, 8), "v_pages": _pages(5, 257, 1, 8)},
        ValueError,
        "k_pages must have pages of 1 to 256 tokens, got 257",
    ),
    (
        {"v_pages": _pages(5, 4, 2, 8)},
        ValueError,
        "v_pages must have the pages, tokens and heads of k_pages (5, 4, 1), got (5, 4, 2); its shape is (5, 4, 2, 8)",
    ),
    (
        {"k_pages": _pages(5, 4, 1, 8, dtype=np.float16)},
        TypeError,
        "k_pages must have the dtype of q (float32), got float16; cast it",
    ),
    (
        {"k_pages": _pages(5, 4, 1, 4), "v_pages": _pages(5, 4, 1, 4)},
        ValueError,
        "k_pages must have the head_dim of q (8), got 4; its shape is (5, 4, 1, 4)",
    ),
    (
        {"k_pages": _pages(5, 4, 3, 8), "v_pages": _pages(5, 4, 3, 8)},
        ValueError,
        "k_pages must have a number of heads that divides those of q (2), got 3; its axes are (pages, page_size, kv_",
    ),
    ({"q": [[1.0]]}, TypeError, "q must be a CuPy or NumPy array, got list"),
    ({"v": _pages(2, 1, 8, 8)}, TypeError, "v must be left out where k is a PagedKV, which holds the values"),
    ({"out": _pages(2, 2, 1, 8, dtype=np.float64)}, TypeError, "out must have the dtype of q (float32), got float64"),
    ({"config": 3}, TypeError, "config must be an AttnSpec or None"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_it_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        _call(**dict(changes))


def test_out_may_not_lie_in_a_page() -> None:
    pool = _pages(5, 4, 1, 8)
    with pytest.raises(ValueError, match="out must not overlap k_pages"):
        _call(k_pages=pool, out=pool[3].reshape(2, 2, 1, 8))


def test_other_masks_are_refused() -> None:
    kv = paged_calls.paged(_caches([5, 7]), 16)
    with pytest.raises(
        TypeError, match=r"mask must be a rule of cached\(\) where k is a PagedKV, got omnicupy.Mask"
    ):
        oc.attention(_queries(2, 1), kv, mask=oc.full(1, 304))


def test_prepare_checks_and_repr_reads_nothing() -> None:
    kv = paged_calls.paged(_caches([5, 7]), 16)
    oc.prepare(_queries(2, 1), kv, mask=oc.cached(), max_length=304)
    with pytest.raises(ValueError, match="max_length must be from 1 to the capacity 304, got 305"):
        oc.prepare(_queries(2, 1), kv, mask=oc.cached(), max_length=305)
    assert repr(kv) == (
        "PagedKV(k_pages=float32(41, 16, 2, 16), v_pages=float32(41, 16, 2, 16), page_table=int32(2, 19), "
        "lengths=int32(2,))"
    )
