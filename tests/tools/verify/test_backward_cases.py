"""The cases of the backward pass are what they promise, and their judges find what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from omnicupy.api import attention_backward
from omnicupy.call.arrays import widen
from omnicupy.jit import archs
from omnicupy.jit.backward_kernel import ORDERED_PARTS
from omnicupy.jit.finishing import FINISHING_PARTS
from omnicupy.jit.widths import kernel_widths
from omnicupy.tools.verify import backward_inputs, backward_special, on_cpu
from omnicupy.tools.verify.backward_cases import (
    BACKWARD_FIXED,
    CPU_SIZED_BACKWARD,
    DOUTS,
    WANTED,
    BackwardCase,
    backward_of,
    backward_sweep,
)
from omnicupy.tools.verify.backward_judges import GradientJudge
from omnicupy.tools.verify.case_kernels import BACKWARD_DEFAULT, backward_variants, serves
from omnicupy.tools.verify.case_masks import MASK_KINDS
from omnicupy.tools.verify.cases import BASE, BROADCAST, BSHD, FIXED, OPTIONS, PER_BATCH, POISON, REVERSED
from omnicupy.tools.verify.random_cases import DEFAULT

EVERY = (*BACKWARD_FIXED, *backward_special.CASES, *backward_sweep(DEFAULT))
SMALL = replace(
    backward_of(replace(BASE, group="x", q_len=70, k_len=90, head_dim=16, q_heads=4), 0), dlse=True
)
POISONED = replace(SMALL, options=(POISON,), batch=2, mask="segments")


def test_there_are_more_than_1500_with_ids_of_their_own() -> None:
    assert len(EVERY) >= 1500
    ids = {case.id for case in EVERY}
    assert len(ids) == len(EVERY)
    assert not ids & {case.id for case in FIXED}
    assert all(case.id.startswith("bwd-") for case in EVERY)
    assert BACKWARD_FIXED[0].id == "bwd-d8-bf16-segments-q150k190-h4g2-dlse"
    assert sum(serves("sm90", case) for case in EVERY) >= 1200


def test_every_kind_of_gradient_occurs() -> None:
    assert sum(case.dlse for case in EVERY) * 3 >= len(EVERY)
    assert {tuple(one for one in case.wanted if one != "sink_logits") for case in EVERY} == set(WANTED)
    assert {"sink_logits" in case.wanted for case in EVERY if case.sinks} == {False, True}
    assert len(set(WANTED)) == 7
    assert {case.dout for case in EVERY} == set(DOUTS)
    assert {case.given for case in EVERY} == {False, True}
    assert {case.mask for case in EVERY} == set(MASK_KINDS)
    assert {option for case in EVERY for option in case.options} == set(OPTIONS)
    assert {1, 2, 7, 8} <= {case.q_heads // case.kv_heads for case in EVERY}
    assert set(range(8, 257, 8)) <= {case.head_dim for case in EVERY}
    assert sum(case.head_dim > 256 for case in EVERY) >= 100
    for option in (POISON, PER_BATCH, BSHD):
        assert sum(option in case.options for case in EVERY) >= 50, option
    for head_dim in (64, 128, 256, 512):
        assert {case.dtype for case in EVERY if case.head_dim == head_dim} == {"bfloat16", "float16"}


def test_some_have_more_items_than_any_device_has_multiprocessors() -> None:
    cases = [case for case in BACKWARD_FIXED if case.group == "many items"]
    assert len(cases) >= 10
    assert min(case.batch * case.kv_heads * -(-case.k_len // 192) for case in cases) > 132 / 2
    assert max(case.batch * case.kv_heads * -(-case.k_len // 192) for case in cases) > 2 * 132
    assert min(case.batch * case.q_heads * -(-case.q_len // 192) for case in cases) > 132


def test_a_dout_whose_rows_are_one_row_cannot_be_poisoned() -> None:
    with pytest.raises(ValueError, match="rows of a dout that is 'ones' cannot be poisoned"):
        replace(POISONED, dout="ones")
    with pytest.raises(ValueError, match="case: dout must be one of plain, ones"):
        replace(SMALL, dout="some")


@pytest.mark.parametrize("dout", DOUTS)
def test_layouts_of_dout_are_what_they_say(dout: str) -> None:
    array = backward_inputs.dout_of(replace(SMALL, dout=dout, batch=2), np)
    assert array.shape == (2, 4, 70, 16)
    item = array.dtype.itemsize
    expected = {
        "plain": (item * 4 * 70 * 16, item * 70 * 16, item * 16, item),
        "ones": (0, 0, 0, 0),
        "rows": (item * 4 * 16, item * 16, 0, item),
        "tokens-first": (item * 4 * 70 * 16, item * 16, item * 16 * 4, item),
        "columns-first": (item * 4 * 70 * 16, item * 70 * 16, item, item * 70),
        "sliced": (item * 4 * 70 * 25, item * 70 * 25, item * 25, item),
    }
    assert array.strides == expected[dout]
    values = widen(array, np.float64)
    assert (values == 1).all() if dout == "ones" else 0.8 < values.std() < 1.2


@pytest.mark.parametrize("options", [(POISON,), (POISON, BSHD), (POISON, PER_BATCH), (POISON, BROADCAST)])
@pytest.mark.parametrize("dout", ["plain", "tokens-first", "columns-first", "sliced"])
def test_poison_stands_in_rows_and_keys_that_see_nothing(options: tuple[str, ...], dout: str) -> None:
    case = replace(POISONED, options=options, dout=dout, mask="full")
    masks = case.masks()
    made = backward_inputs.inputs_of(case, masks, np)
    for batch in range(2):
        seen = masks[batch % len(masks)].dense(0, 70, 0, 90)
        rows = seen.any(axis=1)
        assert 0 < rows.sum() < 70
        for array in (made.q, made.dout, made.out, made.lse, made.dlse):
            bad = ~np.isfinite(widen(array, np.float64)[batch])
            shown = rows[:, None] if bad.ndim == 3 else rows
            assert (bad == ~shown).all()
        if BROADCAST not in options:
            bad = ~np.isfinite(widen(made.k, np.float64)[batch])
            assert (bad == ~seen.any(axis=0)[:, None]).all()


def test_cpu_engine_passes_a_case_of_every_group() -> None:
    groups = {case.group: case for case in sorted(CPU_SIZED_BACKWARD, key=lambda case: -case.work)}
    assert set(groups) == {case.group for case in BACKWARD_FIXED} - {"long", "many items", "many heads"}
    for case in groups.values():
        outcome = on_cpu.run_case(case)
        assert outcome.passed, str(outcome)
        assert outcome.kernel == "CPU engine, gradients"


def test_the_cpu_is_asked_for_gradients_in_every_dtype() -> None:
    cases = [case for case in on_cpu.cases() if isinstance(case, BackwardCase)]
    assert {case.dtype for case in cases} == {"float16", "bfloat16", "float32", "float64"}


def _judged(case: BackwardCase, change: Any) -> str:
    """What the judge says of gradients that `change` has changed."""

    def call(*arrays: Any, **options: Any) -> Any:
        return change(attention_backward(*arrays, **options))

    with np.errstate(all="ignore"):
        of_case = GradientJudge(case, case.masks(), np, call=call)
        return of_case.judge(of_case.gradients())[1]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_wrong_element_is_found(number: int) -> None:
    def change(found: Any) -> Any:
        token = np.flatnonzero(widen(found[number], np.float64)[0, 1].any(axis=1))[0]
        found[number][0, 1, token, 3] += found[number].dtype.type(0.5)
        return found

    assert _judged(SMALL, lambda found: found) == ""
    assert f"worst {('dq', 'dk', 'dv')[number]} at batch 0, head 1" in _judged(SMALL, change)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_anything_but_zero_where_nothing_is_seen_is_found(number: int) -> None:
    def change(found: Any) -> Any:
        token = np.flatnonzero(~widen(found[number], np.float64)[1, 0].any(axis=1))[0]
        found[number][1, 0, token, 5] = found[number].dtype.type(1e-6)
        return found

    assert _judged(POISONED, lambda found: found) == ""
    assert "allowed 0 (ratio inf)" in _judged(POISONED, change)


def test_what_was_not_wanted_must_be_none() -> None:
    case = replace(SMALL, wanted=("q", "v"))
    assert _judged(case, lambda found: found) == ""
    assert _judged(case, lambda found: (found[0], found[0], found[2])) == "dk is an array, though not wanted"
    assert _judged(case, lambda found: (None, None, found[2])) == "dq is None, though wanted"


def test_given_arrays_must_be_written_and_returned() -> None:
    case = replace(SMALL, given=True)
    assert _judged(case, lambda found: found) == ""
    with pytest.raises(AssertionError, match="given arrays must be returned"):
        _judged(case, lambda found: tuple(array.copy() for array in found))

    def forgetful(*arrays: Any, out_grads: Any, **options: Any) -> Any:
        made = attention_backward(*arrays, **options)
        for target, array in zip(out_grads, made, strict=True):
            target[..., :-1] = array[..., :-1]
        return out_grads

    of_case = GradientJudge(case, case.masks(), np, call=forgetful)
    assert "ratio inf" in of_case.judge(of_case.gradients())[1]


def test_changing_bits_are_found() -> None:
    calls: list[int] = []

    def restless(*arrays: Any, **options: Any) -> Any:
        found = attention_backward(*arrays, **options)
        calls.append(1)
        if len(calls) == 3:
            found[1][0, 0, 5, 0] = found[1][0, 0, 5, 1]
        return found

    of_case = GradientJudge(SMALL, SMALL.masks(), np, call=restless)
    assert of_case.repeated(of_case.gradients(), 10) == "1 elements differ over 10 repetitions"


@pytest.mark.parametrize("arch", archs.ARCHES)
@pytest.mark.parametrize("head_dim", [8, 64, 128, 192, 256, 264, 1024])
def test_variants_hold_the_plain_kernels_every_row_and_the_default(arch: str, head_dim: int) -> None:
    found = backward_variants(replace(SMALL, head_dim=head_dim), arch)
    names = [variant.name for variant in found]
    assert names[0] == "bwd naive"
    assert names[-1] == BACKWARD_DEFAULT
    assert len(set(names)) == len(names)
    assert all("bwd" in name for name in names)
    kernels = {variant.spec.kernel for variant in found}
    assert kernels == {"naive", "sm80", *(["sm90"] if arch == "sm_90" and head_dim <= 256 else [])}
    assert "attention_bwd_delta.cu" in found[0].sources
    assert len(found[0].kernels) == 3
    loose = [variant.spec.kernel for variant in found if not variant.deterministic]
    hopper = ["sm90"] * (2 if head_dim == 64 else 1)  # with the tile for sums of few additions
    assert loose == ([*hopper, "sm80"] if arch == "sm_90" else ["sm80"]) * (head_dim <= 128)


def test_widths_of_values_reach_the_kernels_of_a_case() -> None:
    pairs = {
        (case.head_dim, case.value_columns) for case in BACKWARD_FIXED if case.group == "widths of values"
    }
    assert {(192, 128), (64, 128), (56, 64)} <= pairs
    for head_dim, value_dim in pairs:
        found = backward_variants(replace(SMALL, head_dim=head_dim, value_dim=value_dim), "sm_90")
        kinds = {one.spec.kernel for one in found}
        assert kinds == {"naive", "sm80", "sm90"}
        fused = sum(not one.deterministic for one in found)
        assert fused == (2 if max(head_dim, value_dim) <= 128 else 0)
        widths = {(kernel.head_dim, kernel.value_dim) for one in found for kernel in one.kernels}
        assert widths == {kernel_widths(head_dim, value_dim)}


def test_a_case_runs_the_kernels_of_the_gradients_that_it_wants() -> None:
    wanted = {
        ("q", "k", "v"): {"delta", "dkdv_sm90", "dq_sm90", "naive", "sm80", "sm90", "fused_sm80", "convert"},
        ("k", "q"): {"delta", "dkdv_sm90", "dq_sm90", "naive", "sm80", "sm90", "fused_sm80", "convert"},
        ("q",): {"delta", "dq_sm90", "naive", "sm80"},
        ("v",): {"delta", "dkdv_sm90", "naive", "sm80"},
    }
    for names, parts in wanted.items():
        found = backward_variants(replace(SMALL, wanted=names), "sm_90")
        sources = {source for variant in found for source in variant.sources}
        assert sources == {f"attention_bwd_{part}.cu" for part in parts}
    loose = [one for one in backward_variants(SMALL, "sm_90") if not one.deterministic]
    for free, part in zip(loose, ("sm90", "fused_sm80"), strict=True):
        assert free.sources == tuple(f"attention_bwd_{name}.cu" for name in ("delta", part, "convert"))
        assert free.options == {"config": free.spec, "deterministic": False}


@pytest.mark.parametrize("arch", archs.ARCHES)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 144])
@pytest.mark.parametrize("wanted", [("q", "k", "v"), ("v", "q"), ("q",), ("k", "v")])
def test_a_kernel_in_one_order_is_named_where_a_call_runs_it(
    arch: str, head_dim: int, wanted: tuple[str, ...]
) -> None:
    found = backward_variants(replace(SMALL, head_dim=head_dim, wanted=wanted), arch)
    runs = arch == "sm_90" and head_dim <= 128 and "q" in wanted and len(wanted) > 1
    in_order = [one for one in found if "ordered" in one.parts]
    named = [True] * (2 if head_dim == 64 else 1)  # with the tile for full masks
    assert [one.name.startswith("bwd sm90 ordered ") for one in in_order] == [*named, False] * runs
    for one in in_order:
        assert one.deterministic
        two = () if one.explicit else ("dkdv", "dq")  # for sums of a few additions
        assert one.parts == ("prepare", *two, *ORDERED_PARTS, *tuple(FINISHING_PARTS) * (head_dim > 64))
    assert ("ordered" in found[-1].parts) == runs  # of the default
    for one in found:  # what runs two kernels has none that a call would take in their place
        if one.explicit and one.deterministic and {"dkdv", "dq"} <= set(one.parts):
            assert one.spec.ordered is None


def test_sums_in_any_order_may_differ_in_bits_but_not_in_size() -> None:
    scale = [1.0]

    def restless(*arrays: Any, deterministic: bool = True, **options: Any) -> Any:
        found = attention_backward(*arrays, **options)
        return tuple((array * array.dtype.type(scale[0])).astype(array.dtype) for array in found)

    of_case = GradientJudge(SMALL, SMALL.masks(), np, call=restless)
    first = of_case.gradients()
    scale[0] = 1.004
    assert "elements differ over 3 repetitions" in of_case.repeated(first, 3)
    free = {"deterministic": False}
    assert of_case.repeated(first, 3, free) == ""
    scale[0] = 1.5
    assert "worst d" in of_case.repeated(first, 3, free)


def test_kernels_for_hopper_take_all_strides() -> None:
    assert serves("sm90", replace(SMALL, options=(BROADCAST,)))
    assert serves("sm90", replace(SMALL, options=(REVERSED,)))
    assert not serves("sm90", replace(SMALL, head_dim=264))
