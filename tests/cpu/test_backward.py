"""The CPU engine's gradients: within the budget of float64, exact zeros, the same bits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import gradient_cases
import mask_cases
import numpy as np
import preset_cases
import pytest
from gradient_cases import DTYPES, GradientCase, made

import omnicupy as oc
from omnicupy.cpu import backward as cpu_backward
from omnicupy.cpu.blas import BLAS, BlasThreads
from omnicupy.masks.block_mask import FULL, KIND, BlockMask
from omnicupy.masks.mask import Mask

SUBSETS = [names for n in (1, 2, 3) for names in combinations("qkv", n)]
TILES = [(256, 256), (32, 64), (8, 32)]
CASES = 56  # of each kind of mask; there are 37
MOST = 90  # rows and keys
NAMES = [*mask_cases.LEAVES, "combined", *preset_cases.CASES]


def test_the_random_cases_are_as_many_as_they_should_be() -> None:
    assert len(NAMES) * CASES >= 2000
    assert {name.partition(",")[0] for name in NAMES} >= set(oc.presets.__all__)


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("name", NAMES)
def test_random_cases(name: str) -> None:
    """Every constructor and preset: sizes, heads, widths, dtypes, kinds of inputs, strides of dout, dlse, subsets,
    tiles.
    """
    rng = np.random.default_rng(NAMES.index(name))
    for turn in range(CASES):
        if name in preset_cases.CASES:
            masks = [preset_cases.CASES[name](rng)[0]]
        else:
            q_len, k_len = (int(n) for n in rng.integers(1, MOST, 2, endpoint=True))
            batch = int(rng.choice([1, 1, 1, 3]))
            masks = [mask_cases.random_case(rng, q_len, k_len, name).mask for _ in range(batch)]
        case = gradient_cases.drawn(rng, masks, DTYPES[turn % 4], (1, 3, 8, 16, 40) if turn % 2 else ())
        br, bc = TILES[int(rng.integers(3))]
        case.check(
            SUBSETS[int(rng.integers(len(SUBSETS)))] if turn % 3 == 0 else ["q", "k", "v"], br=br, bc=bc
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_longer_sequences(dtype: Any) -> None:
    """More than one block row, part and width of a product."""
    for mask, heads in (
        (oc.causal(700), (1, 1, 2)),
        (oc.random(600, 3, image=(100, 300)), (2, 2, 1)),
        (oc.full(30, 1500), (1, 1, 3)),
    ):
        made([mask], heads, 16, dtype, with_dlse=True).check()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_subsets_give_the_bits_of_all_three(dtype: Any) -> None:
    case = made([oc.random(200, 1, image=(20, 60))], (2, 2, 2), 16, dtype, with_dlse=True)
    every = dict(zip("qkv", case.run(), strict=True))
    for names in SUBSETS:
        for name, found in zip("qkv", case.run(names), strict=True):
            assert found is None if name not in names else np.array_equal(found, every[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", gradient_cases.LAYOUTS)
def test_strides_of_dout(dtype: Any, layout: str) -> None:
    case = made([oc.causal(150, 170)], (2, 1, 2), 8, dtype, layout=layout)
    copied = GradientCase(case.arrays._replace(dout=case.arrays.dout.copy()), case.masks)
    for found, wanted in zip(case.run(), copied.run(), strict=True):
        assert np.array_equal(found, wanted)
    case.check()


def test_strides_of_all_inputs() -> None:
    case = made([oc.causal(60)], (2, 2, 2), 8, with_dlse=True)
    views = [np.asfortranarray(array) for array in case.arrays]
    views[0] = views[0][::-1, :, ::-1][::-1, :, ::-1]
    strided = GradientCase(cpu_backward.Arrays(*views), case.masks)
    for found, wanted in zip(strided.run(), case.run(), strict=True):
        assert np.array_equal(found, wanted)
        assert found.flags.c_contiguous


@pytest.mark.parametrize("dtype", DTYPES)
def test_given_arrays_are_written(dtype: Any) -> None:
    case = made([oc.causal(70, 90)], (2, 2, 2), 8, dtype)
    wanted = case.run()
    given = [np.full(like.shape[::-1], 7, dtype).T for like in wanted]
    given[1] = np.full((*wanted[1].shape[:3], 16), 7, dtype)[..., ::-2]
    for found, to, like in zip(case.run(out_grads=tuple(given)), given, wanted, strict=True):
        assert found is to
        assert np.array_equal(found, like)
    only = case.run(("k",), out_grads=(None, given[1], None))
    assert [one is given[1] for one in only] == [False, True, False]


def loss(case: GradientCase, q: Any, k: Any, v: Any) -> float:
    out, lse = oc.attention(q, k, v, case.mask, return_lse=True)
    seen = lse != -np.inf
    dlse = case.arrays.dlse
    assert dlse is not None
    return float((out * case.arrays.dout).sum() + (lse[seen] * dlse[seen]).sum())


@pytest.mark.parametrize(
    "mask", [oc.causal(9, 7), oc.ranges([(1, 6, 2, 5), (4, 7, 6, 9)], 8, 11), oc.full(1, 5)]
)
def test_finite_differences(mask: Mask) -> None:
    """Of each of q, k and v in random directions."""
    case = made([mask], (2, 2, 2), 5, np.float64, with_dlse=True)
    arrays, found = list(case.arrays[1:4]), case.run()
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(found):
        for _ in range(5):
            step = rng.standard_normal(gradient.shape)
            ends = [[*arrays[:i], arrays[i] + sign * 1e-5 * step, *arrays[i + 1 :]] for sign in (1, -1)]
            slope = (loss(case, *ends[0]) - loss(case, *ends[1])) / 2e-5
            assert (gradient * step).sum() == pytest.approx(slope, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "large"])
def test_poison_in_dead_keys_and_empty_rows(dtype: Any, kind: str) -> None:
    """NaN and infinity there leave every bit as it was, and zeros where nothing is seen."""
    shape = (50, 75)
    mask = oc.ranges([(4, 20, 0, 30), (12, 30, 40, 64), (41, 42, 60, 61)], *shape)
    bits = mask & oc.from_dense(np.random.default_rng(0).random(shape) < 0.3)
    for one in (mask, bits, oc.ranges([], *shape)):
        case = made([one], (2, 2, 2), 8, dtype, kind=kind, with_dlse=True)
        clean = case.run(br=16, bc=32)
        dead, empty = one.dead_keys(), ~one.to_dense().any(axis=1)
        assert dead.any()
        assert empty.any()
        arrays = [array.copy() for array in case.arrays]
        for i, array in enumerate(arrays):
            places = np.flatnonzero(dead if i in (2, 3) else empty)
            array[:, :, places[0::2]] = np.nan
            array[:, :, places[1::2]] = -np.inf
        poisoned = GradientCase(cpu_backward.Arrays(*arrays), [one])
        before = [array.copy() for array in arrays]
        for found, wanted in zip(poisoned.run(br=16, bc=32), clean, strict=True):
            assert np.array_equal(found, wanted)
        for array, kept in zip(arrays, before, strict=True):
            assert np.array_equal(array, kept, equal_nan=True)
        dq, dk, dv = clean
        assert not dq[:, :, empty].any()
        assert not dk[:, :, dead].any()
        assert not dv[:, :, dead].any()
        poisoned.check(br=16, bc=32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_lse_of_no_key_is_no_weight(dtype: Any) -> None:
    """Also of a row that sees some: -inf is what a row without keys has, of whatever it was merged."""
    case = made([oc.causal(20, 24)], (1, 1, 2), 8, dtype, with_dlse=True)
    case.arrays.lse[:, :, 7] = -np.inf
    dq, dk, dv = case.run(br=8, bc=32)
    assert not dq[:, :, 7].any()
    assert np.isfinite(dk).all()
    assert np.isfinite(dv).all()
    case.check(br=8, bc=32)


def test_visible_nan_reaches_what_it_belongs_to() -> None:
    case = made([oc.causal(8)], (1, 1, 1), 8)
    case.arrays.k[0, 0, 5, 0] = np.nan
    dq, dk, dv = case.run(br=8, bc=32)
    assert np.isnan(dq[0, 0, 5:]).all()
    assert np.isnan(dk[0, 0, 5]).any()
    assert np.isnan(dv[0, 0, 5]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_with_the_results_of_the_whole(dtype: Any) -> None:
    """Keys in two parts, each with out, lse and dlse of all: dk and dv are slices, dq is the sum."""
    case = made([oc.causal(40, 50)], (2, 1, 3), 8, dtype, with_dlse=True)
    whole = case.run()
    a = case.arrays
    parts = []
    for first, stop in ((0, 20), (20, 50)):
        arrays = a._replace(k=a.k[:, :, first:stop], v=a.v[:, :, first:stop])
        parts.append(GradientCase(arrays, [case.masks[0][:, first:stop]]).run())
    limit = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-13}
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], **limit)
    for i in (1, 2):
        np.testing.assert_allclose(np.concatenate([p[i] for p in parts], axis=2), whole[i], **limit)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_number_of_threads_changes_no_bit(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backward, "MIN_PARALLEL_SCORES", 0)
    single = BlasThreads.single
    allowed = [1]

    @contextmanager
    def allowing(blas: BlasThreads) -> Iterator[int]:
        with single(blas):
            yield allowed[0]

    monkeypatch.setattr(BlasThreads, "single", allowing)
    for heads in ((1, 1, 2), (2, 3, 1), (1, 12, 1)):
        case = made([oc.random(700, 4, image=(32, 99))], heads, 8, dtype, with_dlse=True)
        first: Any = None
        for allowed[0] in (1, 2, 3, 5, 1):
            found = case.run(br=64, bc=64)
            first = found if first is None else first
            for one, other in zip(found, first, strict=True):
                assert np.array_equal(one, other)


def runs_of_full_tiles(blocks: BlockMask) -> BlockMask:
    """The same block mask with neighbouring FULL tiles joined to one entry."""
    entries: list[list[int]] = []
    offsets = [0]
    for row in range(blocks.q_blocks):
        for one in blocks.entries[blocks.row_offsets[row] : blocks.row_offsets[row + 1]].tolist():
            last = entries[-1] if len(entries) > offsets[-1] else None
            if last is not None and one[0] & KIND == FULL == last[0] & KIND and sum(last[2:]) == one[2]:
                last[3] += one[3]
            else:
                entries.append(one)
        offsets.append(len(entries))
    return replace(
        blocks, entries=np.array(entries, np.int32).reshape(-1, 4), row_offsets=np.array(offsets, np.int32)
    )


def test_entries_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FULL entry that covers several tiles is what these are, and is cut to the memory of a product."""
    case = made([oc.causal(700, 900)], (1, 1, 2), 8, np.float32)
    wanted, cut = case.run(br=32, bc=32), Mask.blocks
    joined = runs_of_full_tiles(case.masks[0].blocks(32, 32))
    assert joined.entries[:, 3].max() > 600
    monkeypatch.setattr(Mask, "blocks", lambda mask, br, bc: runs_of_full_tiles(cut(mask, br, bc)))
    for found, like in zip(case.run(br=32, bc=32), wanted, strict=True):
        assert np.array_equal(found, like)
    monkeypatch.setattr(cpu_backward, "SCORES", 1 << 10)
    case.check(br=32, bc=32)


def test_memory_is_bounded_by_tiles() -> None:
    length = 3000
    case = made([oc.full(length)], (1, 2, 2), 8, np.float32)
    case.masks[0].blocks(cpu_backward.DEFAULT_BR, cpu_backward.DEFAULT_BC)
    tracemalloc.start()
    try:
        case.run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < length * length  # bytes; the scores of one head alone would be four times as many


def test_an_error_in_a_task_is_raised_and_blas_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with BLAS.single() as before:
        pass
    monkeypatch.setattr(cpu_backward._Task, "_block_row", fail)
    for length in (8, 600):
        with pytest.raises(MemoryError, match="no room"):
            made([oc.full(length)], (1, 2, 1)).run()
    with BLAS.single() as after:
        assert after == before
