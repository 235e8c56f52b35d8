"""The budget of gradients against results that are right, computed as kernels do, and against wrong ones."""

from __future__ import annotations

from typing import Any

import gradient_cases
import ml_dtypes
import numpy as np
import pytest
import tiled_gradients
from gradient_cases import DTYPES, KINDS, made

import omnicupy as oc
from omnicupy.masks.mask import Mask
from omnicupy.reference import gradient_budget

SIXTEEN = [np.float16, ml_dtypes.bfloat16]


def one_key_a_row(length: int) -> Mask:
    """Every weight is exactly 1."""
    dense = np.zeros((length, length), bool)
    dense[np.arange(length), np.random.default_rng(length).integers(0, length, length)] = True
    return oc.from_dense(dense)


def masks(length: int, seed: int) -> list[Mask]:
    sparse = np.random.default_rng(seed).random((length, length)) < 3 / length
    return [
        oc.random(length, seed, text=(3, 9), image=(5, 40)),
        oc.sliding_window(length, left=2),
        oc.from_dense(sparse),
        one_key_a_row(length),
        oc.ranges([(2, length // 2, 1, 5), (length // 2, length, 4, length)], length, length + 9),
    ]


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_correct_tiled_results_are_accepted(dtype: Any, kind: str) -> None:
    """Every kind of input, few columns, dlse, both places of the scale; the emulation is exact on some rows."""
    worst = 0.0
    for seed, (length, head_dim) in enumerate(((20, 1), (43, 2), (66, 8), (89, 64))):
        for mask in masks(length, seed):
            rest = {
                "kind": kind,
                "with_dlse": seed % 2 == 1,
                "seed": seed,
                "value_dim": (None, 5, 8, 24)[seed],
            }
            case = made([mask], (1, 1, 2), head_dim, dtype, **rest)
            expected = case.budget()
            for scale_first in (False, True):
                found = gradient_budget.compare(
                    tiled_gradients.gradients(case, 16 if seed % 2 else 32, scale_first=scale_first), expected
                )
                assert found.ok, (case.label, found)
                worst = max(worst, found.ratio)
    assert worst > 0.05  # a budget that nothing can exceed would accept as well


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("kind", ["normal", "peaky", "dout of ones"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", tiled_gradients.FAULTS)
def test_faults_are_found(fault: str, dtype: Any, kind: str) -> None:
    """In each gradient that the fault is in."""
    if fault == "dout rounded to bfloat16" and (dtype == ml_dtypes.bfloat16 or kind == "dout of ones"):
        return  # that changes nothing
    # A sum of few terms may as well be rounded at each: it takes many to tell.
    mask = oc.full(24, 1500) if fault == "dq summed in 16 bits" else oc.causal(60, 62)
    for value_dim in (
        (16,) if fault == "dq summed in 16 bits" else (16, 24)
    ):  # one more draw of it is a close call
        case = made([mask], (2, 2, 2), 16, dtype, kind=kind, with_dlse=True, value_dim=value_dim)
        _fault_is_found(case, fault)


def _fault_is_found(case: gradient_cases.GradientCase, fault: str) -> None:
    expected = case.budget()
    assert gradient_budget.compare(tiled_gradients.gradients(case), expected).ok
    wrong = tiled_gradients.gradients(case, fault=fault)
    for i, name in enumerate("qkv"):
        alone = [one if j == i else None for j, one in enumerate(wrong)]
        found = gradient_budget.compare(alone, expected)
        assert found.what == f"d{name}"
        if name in tiled_gradients.FAULTS[fault]:
            assert found.ratio > 1, found


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_wrong_rows_and_keys(dtype: Any) -> None:
    """A scaled row, a NaN, an infinity, and numbers where there must be zeros, each by its place."""
    mask = oc.ranges([(3, 40, 2, 30), (10, 20, 33, 36)], 42, 40)
    case = made([mask], (2, 2, 2), 8, dtype, with_dlse=True)
    expected, right = case.budget(), tiled_gradients.gradients(case)
    assert gradient_budget.compare(right, expected).ok
    assert gradient_budget.compare([None, right[1], None], expected).what == "dk"
    empty, dead = 1, 31  # see nothing
    for i, (what, zero) in enumerate((("dq", empty), ("dk", dead), ("dv", dead))):
        assert not expected.allowed[i][:, :, zero].any()
        for change, token in ((1 + 2.0**-4, 12), (np.nan, 13), (np.inf, 14), (None, zero)):
            wrong = [one.copy() for one in right]
            row = wrong[i][1, 1, token]
            row[...] = dtype(1e-4) if change is None else (row.astype(np.float64) * change).astype(dtype)
            found = gradient_budget.compare(wrong, expected)
            assert (found.what, found.where) == (what, (1, 1, token))
            assert found.ratio > 1
            assert (found.ratio == np.inf) == (change is None or not np.isfinite(change))
            assert str(found).startswith(
                f"worst {what} at batch 1, head 1, {'row' if i == 0 else 'key'} {token}: "
            )


def test_zeros_are_exact() -> None:
    """The smallest number where there must be none."""
    case = made([oc.ranges([(3, 9, 2, 6)], 12, 12)])
    for i in range(3):
        wrong = tiled_gradients.gradients(case)
        wrong[i][0, 0, 0, 0] = np.float32(1e-45)
        found = gradient_budget.compare(wrong, case.budget())
        assert (found.ratio, found.where) == (np.inf, (0, 0, 0))


def test_a_wrong_shape_is_refused() -> None:
    case = made([oc.causal(6)], (1, 1, 2))
    dq, dk, dv = tiled_gradients.gradients(case)
    with pytest.raises(
        ValueError, match=r"^dk must have the shape \(1, 1, 6, 8\), got \(1, 6, 1, 8\); transpose it"
    ):
        gradient_budget.compare([dq, dk.swapaxes(1, 2), dv], case.budget())


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_the_budget_is_of_the_size_of_the_rounding(dtype: Any) -> None:
    """Not a blank cheque: on usual inputs a few roundings of the largest gradient of the head, in every row."""
    unit = 2.0**-11 if dtype == np.float16 else 2.0**-8
    for kind, most in (("normal", 12), ("peaky", 30)):
        case = made([oc.causal(200)], (1, 1, 2), 32, dtype, kind=kind)
        expected = case.budget()
        for exact, allowed in zip(expected.exact, expected.allowed, strict=True):
            assert allowed.max() < most * unit * np.abs(exact).max()


def test_the_budget_does_not_depend_on_what_nobody_sees() -> None:
    case = made([oc.ranges([(3, 9, 2, 6)], 12, 12)], (1, 1, 2), with_dlse=True)
    before = case.budget()
    for i, array in enumerate(case.arrays):
        seen = slice(2, 6) if i in (2, 3) else slice(3, 9)
        kept = array.copy()
        array[...] = np.nan
        array[:, :, seen] = kept[:, :, seen]
    after = case.budget()
    for one, other in zip((*before.exact, *before.allowed), (*after.exact, *after.allowed), strict=True):
        assert np.array_equal(one, other)


def test_the_kinds_of_inputs_are_what_they_say() -> None:
    large = made([oc.full(9)], kind="large").arrays
    scores = large.q[0, 0] @ large.k[0, 0].T * 8**-0.5
    assert np.abs(scores).max() > 1e3
    for layout in gradient_cases.LAYOUTS:
        strides = made([oc.full(9)], layout=layout).arrays.dout.strides
        assert (0 in strides) == (layout == "expanded")
        assert (strides[3] < 0) == (layout == "reversed")
