"""The verification cases are what they promise: stable, unique, and hard where they say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from omnicupy.call.arrays import widen
from omnicupy.jit.spec import MAX_ONE_PIECE
from omnicupy.tools import random_arrays
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.case_kernels import serves
from omnicupy.tools.verify.case_masks import MASK_KINDS, build
from omnicupy.tools.verify.cases import (
    BASE,
    BROADCAST,
    BSHD,
    CPU_SIZED,
    FIXED,
    LARGE,
    OPTIONS,
    PER_BATCH,
    POISON,
    REVERSED,
    Case,
)
from omnicupy.tools.verify.on_gpu import Target
from omnicupy.tools.verify.random_cases import DEFAULT, sweep
from omnicupy.tools.verify.width_cases import MORE_WIDTHS, ONE_TILE

TILES = ((64, 64), (128, 64), (128, 128), (64, 32), (64, 128), (192, 64), (192, 96), (192, 128))


def test_ids_are_unique_and_stable() -> None:
    every = [*FIXED, *sweep(DEFAULT)]
    assert len({case.id for case in every}) == len(every)
    assert FIXED[0].id == "d8-bf16-segments-q150k190-h4g2"
    assert sweep(3)[2].id == sweep(100)[2].id


def test_every_option_head_dim_and_mask_occurs() -> None:
    assert {option for case in FIXED for option in case.options} == set(OPTIONS)
    assert {case.mask for case in FIXED} == set(MASK_KINDS)
    assert set(range(8, 257, 8)) <= {case.head_dim for case in FIXED}
    assert max(case.head_dim for case in FIXED) == 1024
    for head_dim in (64, 128, 256, 512):
        assert {case.dtype for case in FIXED if case.head_dim == head_dim} == {"bfloat16", "float16"}


def test_the_sweep_is_drawn_as_documented() -> None:
    cases = sweep(DEFAULT)
    assert len(cases) >= 1100
    assert sum(serves("sm90", case) for case in cases) >= 1000
    assert sum(case.q_len != case.k_len for case in cases) * 3 >= len(cases)
    assert {case.q_heads // case.kv_heads for case in cases} == {1, 2, 3, 4, 7, 8}
    assert {case.head_dim for case in cases if case.head_dim <= 256} == set(range(8, 257, 8))
    assert sum(case.head_dim > 256 for case in cases) >= 50
    assert max(max(case.q_len, case.k_len) for case in cases) <= 4096
    assert min(min(case.q_len, case.k_len) for case in cases) < 128


def _dead_tiles(case: Case, br: int, bc: int) -> int:
    """Visited tiles that hold a dead key, of all masks of a case cut at (br, bc)."""
    return sum(mask.stats(br, bc).dead for mask in case.masks())


@pytest.mark.in_turn(4)
def test_at_least_two_hundred_random_cases_hold_dead_keys_inside_visited_tiles() -> None:
    poisoned = [case for case in sweep(DEFAULT) if POISON in case.options]
    inside = [case for case in poisoned if min(_dead_tiles(case, *tile) for tile in TILES) > 0]
    assert sum(serves("sm90", case) for case in inside) >= 200
    assert sum(case.head_dim > MAX_ONE_PIECE for case in inside) >= 50


def test_masks_follow_from_the_id() -> None:
    case = replace(BASE, group="x", mask="ranges", options=(PER_BATCH, POISON), batch=2)
    first, again = case.masks(), case.masks()
    assert first == again
    assert len(first) == 2
    assert first[0] != first[1]
    assert replace(case, seed=1).masks() != first


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_every_kind_takes_any_shape(kind: str) -> None:
    for number, shape in enumerate([(1, 1), (1, 50), (50, 1), (2, 3), (90, 40), (40, 90)]):
        assert build(kind, *shape, np.random.default_rng(number)).shape == shape


def test_unknown_masks_and_options_raise() -> None:
    with pytest.raises(ValueError, match="case: mask must be one of full, causal"):
        replace(BASE, mask="diagonal")
    with pytest.raises(ValueError, match="case: options must be of poison, bshd"):
        replace(BASE, options=("shuffled",))


def _made(**changes: object) -> tuple[Case, inputs.Inputs]:
    case = replace(BASE, batch=2, q_len=20, k_len=30, head_dim=16, **changes)  # type: ignore[arg-type]
    return case, inputs.inputs_of(case, case.masks(), np)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_inputs_have_the_dtype_and_normal_values(dtype: str) -> None:
    case, made = _made(dtype=dtype)
    assert made.q.shape == (2, 2, 20, 16)
    assert made.q.dtype == random_arrays.DTYPES[dtype]
    assert 0.8 < widen(made.k, np.float64).std() < 1.2
    assert np.isnan(widen(made.out, np.float64)).all()
    again = inputs.inputs_of(case, case.masks(), np)
    assert np.array_equal(widen(made.q, np.float64), widen(again.q, np.float64))


def test_poison_stands_in_dead_keys_alone() -> None:
    case, made = _made(mask="full", options=(POISON,))
    dead = case.masks()[0].dead_keys()
    assert 0 < dead.sum() < 30
    for array in (made.k, made.v):
        bad = ~np.isfinite(widen(array, np.float64))
        assert (bad == dead[:, None]).all()
    assert np.isnan(widen(made.k, np.float64)).any()
    assert np.isinf(widen(made.k, np.float64)).any()


def test_layouts_are_views_with_the_same_values() -> None:
    plain = widen(_made()[1].k, np.float64)
    for option in (BSHD, REVERSED):
        case, made = _made(options=(option,))
        assert not made.k.flags.c_contiguous
        assert made.k.shape == plain.shape
        assert made.k.strides[3] == 2
    assert made.k.strides[2] < 0
    assert _made(options=(BROADCAST,))[1].k.strides[0] == 0
    assert case.id.endswith("-b2-reversed")


def test_large_scores_are_large() -> None:
    _, made = _made(options=(LARGE,))
    q, k = widen(made.q, np.float64)[0, 0], widen(made.k, np.float64)[0, 0]
    assert np.abs(q @ k.T / 4).max() > 3000


def test_cpu_sized_cases_cover_every_group_but_the_long_one() -> None:
    assert {case.group for case in CPU_SIZED} == {case.group for case in FIXED} - {"long"}


def test_more_widths_cost_few_kernels() -> None:
    """Each pair has one tile of each kind of kernel, in one dtype, packed ones of one warpgroup, of two, and of two
    that take keys in turn, where those are; all pairs together have several tiles of each.
    """
    target = Target("sm_90", 132, ())
    tiles: dict[tuple[str, bool], set[tuple[int, ...]]] = {}
    for widths in MORE_WIDTHS:
        cases = [case for case in FIXED if case.tag == ONE_TILE and (case.head_dim, case.value_dim) == widths]
        specs = target.specs(cases)
        kinds = [(spec.kernel, spec.pack) for spec in specs]
        packed = [("sm90", True)] * (1 + (max(widths) <= 128) + (72 < max(widths) <= 128))
        assert sorted(kinds) == [("naive", False), ("sm80", False), ("sm90", False), *packed]
        for spec, kind in zip(specs, kinds, strict=True):
            tiles.setdefault(kind, set()).add((spec.br, spec.bc, spec.stages, spec.warps))
    assert {kind: len(found) > 1 for kind, found in tiles.items()} == {
        kind: kind[0] != "naive" for kind in tiles
    }
