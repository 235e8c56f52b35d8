"""append() on NumPy arrays: where tokens go, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import paged_calls
import pytest
from numpy.typing import NDArray

import omnicupy as oc

HEADS, CAPACITY, HEAD_DIM = 2, 40, 8


def _empty(
    batch: int,
    page_size: int | None,
    layout: str = "tokens-first",
    widths: tuple[int, int] = (HEAD_DIM, HEAD_DIM),
) -> Any:
    arrays = (np.full((batch, HEADS, CAPACITY, width), np.nan) for width in widths)
    kv = oc.CachedKV(*arrays, np.full(batch, CAPACITY, np.int32))
    if page_size is not None:
        kv = paged_calls.paged(kv, page_size, layout=layout)
    kv.lengths[:] = 0
    return kv


def _new(rng: np.random.Generator, *shape: int) -> tuple[NDArray[Any], NDArray[Any]]:
    k, v = (rng.standard_normal((*shape, HEAD_DIM)) for _ in "kv")
    return k, v


@pytest.mark.parametrize("page_size", [None, 1, 5, 16])
@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
def test_a_loop_that_grows_equals_one_call(layout: str, page_size: int | None) -> None:
    """Chunks of 5 and 3 tokens, then one at a time; rows of q that have no token get 0."""
    rng = np.random.default_rng(0)
    kv = _empty(2, page_size, layout)
    k, v = _new(rng, 2, HEADS, CAPACITY)
    q = rng.standard_normal((2, 4, CAPACITY, HEAD_DIM))
    wanted = oc.attention(q, k, v, oc.causal(CAPACITY))
    at = 0
    for tokens in (5, 3, *[1] * (CAPACITY - 8)):
        kv.lengths += tokens
        here = slice(at, at + tokens)
        oc.append(kv, k[:, :, here], v[:, :, here])
        found = oc.attention(q[:, :, here], kv, mask=oc.cached())
        np.testing.assert_allclose(found, wanted[:, :, here], rtol=1e-12, atol=1e-13)
        at += tokens


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("layout", paged_calls.UNEQUAL)
def test_values_of_another_width(layout: str, page_size: int | None) -> None:
    rng, kv = np.random.default_rng(3), _empty(2, page_size, layout, (192, 128))
    k, v = (rng.standard_normal((2, HEADS, 20, width)) for width in (192, 128))
    q = rng.standard_normal((2, 4, 1, 192))
    kv.lengths[:] = 20
    oc.append(kv, k, v)
    found = oc.attention(q, kv, mask=oc.cached())
    np.testing.assert_allclose(found, oc.attention(q, k, v), rtol=1e-12, atol=1e-13)
    assert found.shape == (2, 4, 1, 128)
    with pytest.raises(ValueError, match=r"v_new must have the axes .* and 2 heads of 128, none empty"):
        oc.append(kv, k, k)
    with pytest.raises(ValueError, match=r"k_new must have the axes .* and 2 heads of 192, none empty"):
        oc.append(kv, v, v)


@pytest.mark.parametrize("page_size", [None, 5])
def test_slots(page_size: int | None) -> None:
    rng, kv = np.random.default_rng(1), _empty(2, page_size)
    k, v = _new(rng, 4, HEADS)
    size = CAPACITY if page_size is None else page_size
    k_pool, v_pool = (kv.k, kv.v) if page_size is None else (kv.k_pages, kv.v_pages)
    slots = np.array([size + 3, -1, 0, 4])
    before = k_pool.copy()
    oc.append(kv, k, v, slots.astype(np.int32))
    for pool, new in ((k_pool, k), (v_pool, v)):
        for slot, token in zip(slots, new, strict=True):
            if slot < 0:
                continue
            page, row = divmod(slot, size)
            here = pool[page, :, row] if page_size is None else pool[page, row]
            np.testing.assert_array_equal(here, token)
    changed = (before.view(np.uint64) != k_pool.view(np.uint64)).sum()
    assert changed == 3 * HEADS * HEAD_DIM
    assert not kv.lengths.any()


def test_tokens_without_a_place_are_left_out() -> None:
    """An empty sequence, and one with fewer keys than tokens."""
    rng, kv = np.random.default_rng(2), _empty(3, 16)
    kv.page_table[0] = -1
    kv.lengths[:] = [0, 2, 30]
    k, v = _new(rng, 3, HEADS, 3)
    oc.append(kv, k, v)
    np.testing.assert_array_equal(kv.k_pages[kv.page_table[1, 0], :2], k[1, :, 1:].swapaxes(0, 1))
    np.testing.assert_array_equal(kv.v_pages[kv.page_table[2, 1], 11:14], v[2].swapaxes(0, 1))
    written = np.isfinite(kv.k_pages).sum()
    assert written == 5 * HEADS * HEAD_DIM


def _call(**changes: Any) -> None:
    given: dict[str, Any] = {name: np.zeros((3, 4, 1, 8)) for name in ("k_pages", "v_pages")}
    given |= {"page_table": np.array([[0, 1], [2, -1]], np.int32), "lengths": np.array([8, 3], np.int32)}
    new = {name: changes.pop(name, np.zeros((2, 1, 2, 8))) for name in ("k_new", "v_new")}
    slots, kv = changes.pop("slots", None), changes.pop("kv", None)
    before = given["k_pages"].copy()
    try:
        oc.append(oc.PagedKV(**(given | changes)) if kv is None else kv, **new, slots=slots)
    finally:
        assert (given["k_pages"] == before).all(), "nothing is written"


ONE = np.zeros((1, 1, 8))
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"kv": 3}, TypeError, "append: kv must be a CachedKV or PagedKV, got int"),
    (
        {"lengths": np.array([9, 3], np.int32)},
        ValueError,
        "lengths[0] must be from 0 to the capacity 8, with the new tokens counted, got 9",
    ),
    (
        {"lengths": np.array([8, 5], np.int32)},
        ValueError,
        "page_table[1, 1] must be from 0 to 2, a page for the last tokens of the 5 of sequence 1, got -1",
    ),
    ({"lengths": np.array([8, 3])}, ValueError, "lengths must be int32 of shape (2,), one for each sequence, got int"),
    (
        {"k_new": np.zeros((2, 1, 2, 4))},
        ValueError,
        "k_new must have the axes (batch, kv_heads, tokens, head_dim) without slots, 2 sequences and 1 heads of 8, "
        "none empty, as many tokens in k_new as in v_new, got shape (2, 1, 2, 4)",
    ),
    ({"v_new": np.zeros((2, 1, 1, 8))}, ValueError, "v_new must have the axes (batch, kv_heads, tokens, head_dim)"),
    ({"k_new": ONE}, ValueError, "k_new must have the axes (batch, kv_heads, tokens, head_dim) without slots"),
    ({"slots": np.zeros(2, np.int64)}, ValueError, "k_new must have the axes (tokens, kv_heads, head_dim) with slots"),
    ({"k_new": np.zeros((2, 1, 2, 8), np.float32)}, TypeError, "k_new must have the dtype of the caches (float64)"),
    ({"k_new": [1]}, TypeError, "k_new must be a CuPy or NumPy array, got list"),
    ({"k_new": ONE, "v_new": ONE, "slots": np.zeros(1)}, TypeError, "slots must be int64 or int32, got float64"),
    ({"k_new": ONE, "v_new": ONE, "slots": np.zeros(2, np.int64)}, ValueError, "slots must have one entry per token"),
    ({"k_new": ONE, "v_new": ONE, "slots": np.array([12])}, ValueError, "slots[0] must be from 0 to 11, or -1 for"),
    ({"k_new": ONE, "v_new": ONE, "slots": np.array([-2])}, ValueError, "slots[0] must be from 0 to 11, or -1 for"),
    (
        {"v_pages": np.broadcast_to(np.zeros((3, 4, 1, 1)), (3, 4, 1, 8))},
        ValueError,
        "v_pages must be writeable, got a read-only array",
    ),
    ({"page_table": np.zeros((2, 2), np.int64)}, TypeError, "page_table must be int32, got int64"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_it_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        _call(**dict(changes))


def test_what_is_read_may_not_be_written() -> None:
    pool = np.zeros((3, 4, 1, 8))
    table, lengths = np.array([[0, 1]], np.int32), np.array([3], np.int32)
    with pytest.raises(ValueError, match="v_pages must not overlap k_pages: both are written"):
        oc.append(oc.PagedKV(pool, pool, table, lengths), np.zeros((1, 1, 1, 8)), np.zeros((1, 1, 1, 8)))
    with pytest.raises(ValueError, match="k_new must not overlap the caches"):
        oc.append(
            oc.PagedKV(pool, pool.copy(), table, lengths), pool[:1, :1].swapaxes(1, 2), np.zeros((1, 1, 1, 8))
        )
