"""The CPU engine against the float64 reference, within the error budget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from omnicupy.call.check import call
from omnicupy.cpu import attention as cpu_attention
from omnicupy.cpu.blas import BLAS
from omnicupy.masks import constructors, segment_masks
from omnicupy.masks.block_mask import DEAD, FULL
from omnicupy.masks.mask import Mask
from omnicupy.reference import attention as reference_attention
from omnicupy.reference import budget

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
LENGTHS = [1, 2, 63, 127, 129, 255, 300]
LARGE = 40.0  # makes scores of some thousands, which take the long way


def bits(q_len: int, k_len: int) -> Mask:
    return constructors.from_dense(np.random.default_rng(3).random((q_len, k_len)) < 0.3)


def trailing(q_len: int, k_len: int) -> Mask:
    """Rows see the first half of the keys; the first quarter of the rows sees nothing."""
    return constructors.ranges([(q_len // 4, q_len, 0, max(1, k_len // 2))], q_len, k_len)


MASKS: dict[str, Callable[[int, int], Mask]] = {
    "full": constructors.full,
    "causal": constructors.causal,
    "window": lambda n, m: constructors.sliding_window(n, m, left=20, right=3),
    "bits": bits,
    "trailing": trailing,
    "random": lambda n, m: segment_masks.random(max(n, m), 5, text=(3, 9), image=(9, 80)).rows(0, n, m),
}


def inputs(
    shape: tuple[int, int, int, int, int, int], dtype: Any, large: float = 1.0, value_dim: int | None = None
) -> list[np.ndarray]:
    """q, k, v for (batch, kv_heads, group, q_len, k_len, head_dim). value_dim: of v, None for head_dim."""
    batch, heads, group, q_len, k_len, head_dim = shape
    rng = np.random.default_rng(q_len * 1000 + k_len)
    q = large * rng.standard_normal((batch, heads * group, q_len, head_dim))
    k, v = rng.standard_normal((2, batch, heads, k_len, head_dim))
    if value_dim is not None:
        v = rng.standard_normal((batch, heads, k_len, value_dim))
    return [x.astype(dtype) for x in (q, k, v)]


def run(arrays: list[np.ndarray], masks: list[Mask], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    given = masks if len(masks) > 1 else masks[0]
    found = cpu_attention.attention(call(*arrays, given), *arrays, return_lse=True, **options)
    assert isinstance(found, tuple)
    return found


def check(arrays: list[np.ndarray], masks: list[Mask], **options: Any) -> None:
    expected = budget.budget(*arrays, masks)
    out, lse = run(arrays, masks, **options)
    assert (out.shape, out.dtype) == ((*arrays[0].shape[:3], arrays[2].shape[3]), arrays[0].dtype)
    assert lse.dtype == (np.float64 if arrays[0].dtype == np.float64 else np.float32)
    worst = budget.compare(out, lse, expected)
    assert worst.ok, worst


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("large", [1.0, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKS)
def test_masks_and_dtypes(kind: str, dtype: Any, large: float) -> None:
    for q_len, k_len in ((129, 129), (70, 200), (200, 70)):
        for value_dim in (16, 1, 24):
            arrays = inputs((2, 2, 2, q_len, k_len, 16), dtype, large, value_dim)
            check(arrays, [MASKS[kind](q_len, k_len)], br=32, bc=64)


@pytest.mark.parametrize("q_len", LENGTHS)
@pytest.mark.parametrize("k_len", LENGTHS)
def test_ragged_lengths(q_len: int, k_len: int) -> None:
    for kind in ("causal", "window", "trailing"):
        check(inputs((1, 1, 2, q_len, k_len, 8), np.float32), [MASKS[kind](q_len, k_len)], br=64, bc=128)
    check(inputs((1, 1, 1, q_len, k_len, 24), np.float16), [constructors.causal(q_len, k_len)])


ALIKE = ["keys", "values", "keys values", "queries keys values", "zero keys", "positive values"]


@pytest.mark.parametrize("alike", ALIKE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_terms_that_are_alike_and_small_head_dims(dtype: Any, alike: str) -> None:
    """Sums whose additions all round to one side; random normal inputs never show that."""
    for k_len, head_dim, large in ((1, 1, 1.0), (7, 2, 1.0), (300, 1, 1.0), (2000, 1, 1.0), (2000, 8, LARGE)):
        q_len = min(k_len, 24)
        q, k, v = (x.astype(np.float64) for x in inputs((1, 1, 2, q_len, k_len, head_dim), dtype, large))
        for name, array in (("queries", q), ("keys", k), ("values", v)):
            if name in alike.split():
                array[...] = array[:, :, :1]
        if alike == "zero keys":
            k[...] = 0
        if alike == "positive values":
            v = 1 / 3 + np.abs(v)
        arrays = [x.astype(dtype) for x in (q, k, v)]
        for mask in (constructors.full(q_len, k_len), constructors.causal(q_len, k_len)):
            for br, bc in ((256, 256), (16, 32)):
                check(arrays, [mask], br=br, bc=bc)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
def test_heads(group: int) -> None:
    """Groups larger and smaller than what one product takes."""
    check(inputs((2, 2, group, 300, 300, 8), np.float16), [segment_masks.random(300, 1, image=(32, 99))])


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: Any) -> None:
    """Transposed, reversed, broadcast and column views give what their copies give."""
    mask = segment_masks.random(150, 2, text=(3, 30), image=(20, 50))
    q, k, v = inputs((2, 2, 2, 150, 150, 16), dtype)
    copies = run([q, k, v], [mask])
    views = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    views[1] = np.ascontiguousarray(views[1][:, :, ::-1])[:, :, ::-1]
    views[2] = np.asfortranarray(views[2])
    for found, copy in zip(run(views, [mask]), copies, strict=True):
        np.testing.assert_allclose(found.astype(float), copy.astype(float), rtol=1e-2, atol=1e-2)
    check(views, [mask])
    check([q, np.broadcast_to(k[:1], k.shape), np.broadcast_to(v[:, :1], v.shape)], [mask])


@pytest.mark.parametrize("large", [1.0, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_poison_in_dead_keys(dtype: Any, large: float) -> None:
    tiles = 0
    for q_len, k_len, kind in ((96, 100, "trailing"), (50, 90, "window"), (64, 70, "trailing")):
        mask = MASKS[kind](q_len, k_len)
        if kind == "window":
            mask = mask & constructors.ranges([(0, q_len, 0, 60), (0, q_len, 75, k_len)], q_len, k_len)
        tiles += np.count_nonzero(mask.blocks(32, 32).entries[:, 0] & DEAD)
        dead = np.flatnonzero(mask.dead_keys())
        q, k, v = inputs((1, 2, 1, q_len, k_len, 8), dtype, large)
        clean = run([q, k, v], [mask], br=32, bc=32)
        for array in (k, v):
            array[:, :, dead[0::2]] = np.nan
            array[:, :, dead[1::2]] = -np.inf
        before = v.copy()
        for found, wanted in zip(run([q, k, v], [mask], br=32, bc=32), clean, strict=True):
            assert np.array_equal(found, wanted)
        assert np.array_equal(v, before, equal_nan=True)
        check([q, k, v], [mask], br=32, bc=32)
    assert tiles >= 3


def test_visible_nan_reaches_its_rows() -> None:
    q, k, v = inputs((1, 1, 1, 8, 8, 8), np.float32)
    k[0, 0, 5, 0] = np.nan
    out, lse = run([q, k, v], [constructors.causal(8)])
    assert np.isnan(out[0, 0, 5:]).all()
    assert np.isnan(lse[0, 0, 5:]).all()
    assert np.isfinite(out[0, 0, :5]).all()


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("large", [1.0, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_other_rows_see_leaves_empty_rows_empty(dtype: Any, large: float, poison: float) -> None:
    """Rows without keys in tiles with infinite keys and values that others see; the reference agrees."""
    mask = constructors.ranges([(10, 20, 0, 30)], 40, 30)
    empty = ~mask.to_dense().any(axis=1)
    for place in (1, 2):  # in the keys, in the values
        arrays = inputs((1, 1, 2, 40, 30, 8), dtype, large)
        arrays[place][:, :, 4] = poison
        with np.errstate(all="ignore"):
            results = [run(arrays, [mask], br=br, bc=32) for br in (8, 64)]
            results += [
                reference_attention.attention64(*arrays, mask),
                reference_attention.attention_emulated(*arrays, mask),
            ]
        for out, lse in results:
            assert (out[:, :, empty] == 0).all()
            assert (lse[:, :, empty] == -np.inf).all()
            if place == 2:
                assert not np.isfinite(out[:, :, ~empty].astype(np.float64)).any()


def test_rows_without_keys() -> None:
    mask = constructors.ranges([(10, 20, 0, 30)], 40, 30)
    for large in (1.0, LARGE):
        out, lse = run(inputs((1, 1, 2, 40, 30, 8), np.float16, large), [mask], br=8, bc=32)
        empty = ~mask.to_dense().any(axis=1)
        assert empty.sum() == 30
        assert (out[:, :, empty] == 0).all()
        assert (lse[:, :, empty] == -np.inf).all()
        assert np.isfinite(lse[:, :, ~empty]).all()


def test_values_too_large_for_the_short_way() -> None:
    """Scores are small enough for it (2**20 or so), but their products with V are not."""
    _, k, v = inputs((1, 1, 1, 20, 20, 8), np.float32)
    check([k * np.float32(2.5), k, v * np.float32(1e37)], [constructors.causal(20)])


def test_one_mask_per_batch_element() -> None:
    masks = [
        constructors.causal(90),
        constructors.full(90),
        segment_masks.random(90, 0, text=(3, 9), image=(9, 20)),
    ]
    check(inputs((3, 2, 1, 90, 90, 8), np.float16), masks, br=32, bc=32)


def test_out_is_filled_and_returned() -> None:
    arrays = inputs((2, 2, 2, 40, 40, 8), np.float16)
    out = np.full((2, 40, 4, 8), np.nan, np.float16).swapaxes(1, 2)
    checked = call(*arrays, constructors.causal(40), scale=0.5)
    assert cpu_attention.attention(checked, *arrays, out=out) is out
    assert np.array_equal(out, cpu_attention.attention(checked, *arrays))


def test_same_call_gives_the_same_bits() -> None:
    arrays = inputs((2, 2, 2, 300, 300, 16), np.float16)
    mask = segment_masks.random(300, 4, image=(32, 99))
    first = run(arrays, [mask])
    for _ in range(3):
        for one, other in zip(first, run(arrays, [mask]), strict=True):
            assert np.array_equal(one, other)


def test_blas_threads_are_restored() -> None:
    """Also where two calls overlap in time."""
    with BLAS.single() as before:
        pass
    arrays = inputs((1, 4, 1, 300, 300, 16), np.float32)
    threads = [threading.Thread(target=run, args=(arrays, [constructors.causal(300)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with BLAS.single() as after:
        assert after == before


def test_an_error_in_a_task_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(cpu_attention, "_block_row", fail)
    for length in (8, 600):
        with pytest.raises(MemoryError, match="no room"):
            run(inputs((1, 1, 1, length, length, 8), np.float32), [constructors.full(length)])


@pytest.mark.parametrize("seed", range(8))
def test_block_rows_are_worked_on_longest_first(seed: int) -> None:
    """A permutation by descending cost, rows of equal cost as they stand."""
    blocks = segment_masks.random(700, seed).blocks(64, 64)
    cost = np.zeros(blocks.q_blocks)
    weights = blocks.entries[:, 3] * np.where(blocks.kinds == FULL, 10, 11)
    np.add.at(cost, blocks.rows_of_entries(), weights)
    order = cpu_attention._longest_first(blocks)
    assert sorted(order.tolist()) == list(range(blocks.q_blocks))
    assert (np.diff(cost[order]) <= 0).all()
    assert cpu_attention._longest_first(constructors.full(200).blocks(64, 64)).tolist() == [0, 1, 2, 3]
