"""Sorting key by key, and the algebra on many intervals, many keys and many rectangles, within their memory."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable

import mask_oracle as oracle
import numpy as np
import pytest
from mask_cases import random_case

import omnicupy as oc
from omnicupy.masks import columns


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 11, 16, 23])
def test_columns_are_sorted(rows: int) -> None:
    rng = np.random.default_rng(rows)
    side = rng.integers(0, 9, (rows, 50)).astype(np.int32)
    side[rng.random(side.shape) < 0.3] = columns.EMPTY
    assert np.array_equal(columns.in_order(side.copy()), np.sort(side, axis=0))
    for more in (1, 2, 6, 9):
        other = rng.integers(0, 9, (more, 50)).astype(np.int32)
        both = columns.merged(np.sort(side, axis=0), np.sort(other, axis=0))
        assert np.array_equal(both, np.sort(np.concatenate([side, other]), axis=0))


@pytest.fixture
def few_keys_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", 1)  # 64 keys
    module = importlib.import_module("omnicupy.masks.intervals")
    monkeypatch.setattr(module, "MOST_RUNS", 20)


@pytest.mark.usefixtures("few_keys_at_a_time")
@pytest.mark.parametrize("seed", range(40))
def test_the_algebra_in_pieces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = int(rng.integers(1, 80)), int(rng.integers(65, 400))
    a, b = (random_case(rng, q_len, k_len) for _ in range(2))
    for mask, dense in ((a.mask & b.mask, a.dense & b.dense), (a.mask | b.mask, a.dense | b.dense)):
        assert np.array_equal(mask.to_dense(), dense)
        assert mask == oc.from_dense(dense)
    assert np.array_equal((~a.mask).to_dense(), ~a.dense)
    assert np.array_equal(a.mask[:, 3:].to_dense(), a.dense[:, 3:])


@pytest.mark.usefixtures("few_keys_at_a_time")
@pytest.mark.parametrize("slots", [1, 2, 5, 9])
def test_unordered_intervals_in_pieces(slots: int) -> None:
    rng = np.random.default_rng(slots)
    bounds = np.sort(rng.integers(0, 60, (2 * slots, 300)), axis=0)
    order = np.argsort(rng.random((slots, 300)), axis=0)
    start, stop = (np.take_along_axis(bounds[side::2], order, axis=0) for side in (0, 1))
    mask = oc.intervals(start, stop, 60)
    assert np.array_equal(mask.to_dense(), oracle.intervals(start, stop, 60))
    assert mask == oc.from_dense(mask.to_dense())
    if slots > 1:
        stop[:, 271] = [30] * slots
        start[:, 271] = [20] * slots
        with pytest.raises(ValueError, match=r"those of key 271 do: start \[20, "):
            oc.intervals(start, stop, 60)


@pytest.mark.usefixtures("few_keys_at_a_time")
@pytest.mark.parametrize("seed", range(40))
def test_many_rectangles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = int(rng.integers(1, 60)), int(rng.integers(1, 90))
    q, k = (np.sort(rng.integers(0, n, (40, 2), endpoint=True), axis=1) for n in (q_len, k_len))
    if seed % 2:  # short ones
        q[:, 1], k[:, 1] = np.minimum(q[:, 0] + 3, q_len), np.minimum(k[:, 0] + 5, k_len)
    bounds = np.concatenate([q, k], axis=1)[: int(rng.integers(1, 41))]
    mask = oc.ranges(bounds, q_len, k_len)
    dense = oracle.rectangles([tuple(one) for one in bounds.tolist()], q_len, k_len)
    assert np.array_equal(mask.to_dense(), dense)
    again = oc.from_dense(dense)
    assert again.intervals is None or all(map(np.array_equal, mask.intervals or (), again.intervals))


LONG = 1 << 18
MIB = 1 << 20


def two(shift: int) -> oc.Mask:
    key = np.arange(LONG)
    start = np.stack([np.maximum(key // 3 - shift, 0), key // 2 + LONG // 2 - shift])
    return oc.intervals(start, start + 999, LONG + 999)


# What is made, and the MiB that it may take on the way: a little more than the result and what the call holds.
BOUNDED: dict[str, tuple[Callable[[], oc.Mask], int]] = {
    "rectangles over all keys": (lambda: oc.ranges([(9 * i, 9 * i + 5, 0, LONG) for i in range(64)], LONG), 160),
    "nested rectangles": (lambda: oc.ranges([(i, LONG - i, 50 * i, LONG - 50 * i) for i in range(2500)], LONG), 24),
    "and of two": (lambda: two(0) & two(500), 32),
    "or of two": (lambda: two(0) | two(5000), 32),
    "not of two": (lambda: ~two(0), 32),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
def test_memory_is_bounded(name: str) -> None:
    make, most = BOUNDED[name]
    make()
    tracemalloc.start()
    try:
        mask = make()
        assert tracemalloc.get_traced_memory()[1] < most * MIB
    finally:
        tracemalloc.stop()
    assert mask.intervals is not None
