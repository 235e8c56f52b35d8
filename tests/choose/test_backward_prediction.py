"""The cost model of the backward pass: work items from its kernels' lists, and what a pass is predicted to take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_ceilings import BACKWARD

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_ceilings, backward_prediction, backward_table
from omnicupy.choose.backward_ceilings import BackwardCeilings, KernelCeiling
from omnicupy.choose.backward_prediction import KernelWork, PassWork
from omnicupy.choose.ceilings import Device
from omnicupy.errors import UnsupportedError
from omnicupy.masks.block_mask import CAUSAL, PARTIAL
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid
from omnicupy.schedule.order import ordered, shares

DEVICE = Device("Fake", 4, 50 << 20)
MIXED = oc.segments([("text", 300), ("image", 250), ("noise", 190), ("text", 77)])
FORMS: tuple[tuple[int, bool], ...] = ((64, True), (64, False), (128, True), (128, False), (256, True))


def _work(
    mask: Mask,
    head_dim: int = 128,
    heads: tuple[int, int] = (4, 2),
    batch: int = 1,
    device: Device = DEVICE,
    **how: Any,
) -> PassWork:
    problem = Problem(batch, *heads, *mask.shape, head_dim, "bfloat16")
    spec = backward_table.pick("sm_90", "bfloat16", head_dim)
    return backward_prediction.work_of(spec, problem, mask, device, **how)


def _us(mask: Mask, head_dim: int = 128, ceilings: BackwardCeilings = BACKWARD, **how: Any) -> float:
    return backward_prediction.predict(_work(mask, head_dim, **how), ceilings).us


def _parts(work: PassWork) -> list[str]:
    return [one.kernel.part for one in work.kernels]


def test_each_form_has_its_kernels() -> None:
    assert _parts(_work(MIXED, 128)) == ["ordered"]
    assert _parts(_work(MIXED, 128, deterministic=False)) == ["fused"]
    assert _parts(_work(MIXED, 64)) == ["ordered"]
    assert _parts(_work(MIXED, 64, deterministic=False)) == ["fused"]
    assert _parts(_work(MIXED, 256)) == ["dkdv", "dq"]
    assert _parts(_work(MIXED, 256, deterministic=False)) == ["dkdv", "dq"]
    assert _parts(_work(MIXED, 128, wanted=("q",))) == ["dq"]
    assert _parts(_work(MIXED, 128, wanted=("k",))) == ["dkdv"]
    assert _parts(_work(MIXED, 128, wanted=("q", "v"))) == ["ordered"]


def test_masks_of_too_many_tiles_have_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_grid, "MOST_RANKS", int(MIXED.blocks(64, 128).tiles.sum()))
    assert _parts(_work(MIXED)) == ["ordered"]
    monkeypatch.setattr(backward_grid, "MOST_RANKS", int(MIXED.blocks(64, 128).tiles.sum()) - 1)
    assert _parts(_work(MIXED)) == ["dkdv", "dq"]
    assert _parts(_work(MIXED, deterministic=False)) == ["fused"]


def test_heads_whose_sums_would_fill_memory_have_two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four query heads and two of keys: two heads have their sums at the same time."""
    most = 2 * -(-MIXED.shape[0] // 64) * 64 * 4 * 128
    monkeypatch.setattr(backward_grid, "MOST_UNSHARED_BYTES", 0)
    monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", most)
    assert _parts(_work(MIXED)) == ["ordered"]
    monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", most - 1)
    assert _parts(_work(MIXED)) == ["dkdv", "dq"]
    assert _parts(_work(MIXED, deterministic=False)) == ["fused"]


@pytest.mark.parametrize(("head_dim", "deterministic"), FORMS)
@pytest.mark.parametrize("device", [DEVICE, replace(DEVICE, sm_count=132)], ids=["4", "132"])
def test_all_items_together_are_charged_for_all_tiles(
    head_dim: int, deterministic: bool, device: Device
) -> None:
    work = _work(MIXED, head_dim, batch=3, device=device, deterministic=deterministic)
    for one in work.kernels:
        kernel = one.kernel
        blocks = MIXED.blocks(kernel.br, kernel.bc)
        pairs = blocks.tiles * kernel.br * kernel.bc * 4.0 * 3  # of all query heads
        skipped = np.zeros(len(pairs))
        kinds = blocks.kinds
        if kernel.part == "dq":
            turned = ordered(blocks)
            kinds, pairs = turned.kinds, turned.tiles * kernel.br * kernel.bc * 4.0 * 3
            skipped = pairs * (1 - shares(turned))
        seen = pairs - skipped
        expected = [seen.sum(), seen[kinds == PARTIAL].sum(), seen[kinds == CAUSAL].sum(), skipped.sum()]
        assert one.total[:4].tolist() == pytest.approx(expected)
        assert one.total[4] == len(one.order)
        assert set(one.order.tolist()) == set(range(len(one.charges)))
    assert any(one.total[3] > 0 for one in work.kernels if one.kernel.part == "dq") == ("dq" in _parts(work))


def test_parts_of_split_blocks_are_counted() -> None:
    few_keys = oc.full(4096, 60)
    device = replace(DEVICE, sm_count=132)
    (work,) = _work(few_keys, 128, (8, 1), device=device, deterministic=False).kernels
    assert len(work.charges) > 1
    assert work.charges[:, 5].tolist() == [1.0] * len(work.charges)
    (whole,) = _work(few_keys, 128, (8, 1), device=replace(device, sm_count=1), deterministic=False).kernels
    assert whole.charges[:, 5].tolist() == [0.0]


def test_an_ordered_pass_walks_the_same_tiles_and_waits() -> None:
    device = replace(DEVICE, sm_count=132)
    mask = oc.segments([("image", 3000), ("text", 500)])
    (in_order,), (free,) = (_work(mask, device=device, deterministic=of).kernels for of in (True, False))
    assert in_order.total[:4].tolist() == free.total[:4].tolist()
    assert (in_order.waits > 0, free.waits) == (True, 0.0)


def _made(costs: list[list[float]], slots: int, waits: float = 0.0) -> PassWork:
    spec = backward_table.pick("sm_90", "bfloat16", 128)
    kernels = tuple(
        KernelWork(
            spec.part(part),
            np.column_stack([np.array(of) * 1e6, np.zeros((len(of), 5))]),
            np.arange(len(of)),
            waits,
        )
        for part, of in zip(("dkdv", "dq"), costs, strict=False)
    )
    return PassWork(kernels, slots, 0, 0.0, 0.0, 0.0, 0.0)


ONE = BackwardCeilings(
    tuple(KernelCeiling("sm90", part, 128, 128, 1.0, *[0.0] * 5) for part in ("dkdv", "dq")),
    0.0,
    0.0,
    0.0,
    0.0,
)


def test_dq_takes_the_places_that_dk_and_dv_leave() -> None:
    work = _made([[5.0, 4.0, 3.0], [2.0, 2.0, 2.0]], 3)
    weights = [one.weights_us for one in backward_prediction.ceilings_of(work, ONE)]
    slots = backward_prediction.assign(work, weights)
    assert [of.tolist() for of in slots] == [[0, 1, 2], [2, 1, 0]]
    found = backward_prediction.predict(work, ONE)
    assert found.us == pytest.approx(7.0)
    assert found.parts_us["imbalance"] == pytest.approx(1.0)
    assert found.kernels_us == pytest.approx({"dkdv": 4.0, "dq": 2.0})
    assert found.balance == pytest.approx(6 / 7)


def test_waits_lengthen_what_multiprocessors_do() -> None:
    found = backward_prediction.predict(_made([[4.0, 4.0]], 2, waits=0.25), ONE)
    assert found.us == pytest.approx(5.0)
    assert found.parts_us["waits"] == pytest.approx(1.0)


def test_a_prediction_adds_up() -> None:
    # 8 blocks of keys, 2 heads of keys, on 4 places: four each. dQ is made beside them.
    work = _work(oc.full(1024), 128, deterministic=False)
    found = backward_prediction.predict(work, BACKWARD)
    tiles = 4 * 2 * 16 * 64 * 128 * 275e-6
    ends = 0.4 * (work.prepared + work.converted)
    memory = 0.35 * work.megabytes
    busy = tiles + 4 * 3.0 + 0.2 * work.beside
    assert found.us == pytest.approx((busy**3 + memory**3) ** (1 / 3) + 12.0 + ends)
    assert sum(found.parts_us.values()) == pytest.approx(found.us)
    assert found.parts_us["tiles"] == pytest.approx(tiles)
    assert (found.balance, found.slots, found.items) == (pytest.approx(1.0), 4, 16)
    assert found.bound_us == pytest.approx(tiles + ends)  # all pairs of a full mask are allowed


def test_what_a_warp_does_beside_tiles_lengthens_the_kernel() -> None:
    work = _work(oc.causal(2560), 128, heads=(4, 4), batch=8)
    assert work.kernels[0].kernel.prepares
    found = backward_prediction.predict(work, replace(BACKWARD, beside_us=0.5))
    none = backward_prediction.predict(work, replace(BACKWARD, beside_us=0.0))
    assert found.parts_us["beside"] == pytest.approx(0.5 * work.beside)
    assert none.us < found.us < none.us + found.parts_us["beside"]  # the longer it is, the less memory adds
    assert found.bound_us == none.bound_us


@pytest.mark.parametrize(("head_dim", "deterministic"), FORMS)
def test_what_is_more_takes_longer(head_dim: int, deterministic: bool) -> None:
    how = {"deterministic": deterministic, "device": replace(DEVICE, sm_count=132)}
    base = _us(oc.causal(2048), head_dim, **how)
    assert base < _us(oc.full(2048), head_dim, **how)
    assert base > _us(oc.causal(1024), head_dim, **how)
    assert base < _us(oc.causal(2048), head_dim, batch=40, **how)
    assert base < _us(oc.causal(2048), head_dim, heads=(128, 2), **how)
    assert base > _us(oc.sliding_window(2048, left=200), head_dim, **how)
    slower = replace(BACKWARD, of=tuple(replace(one, pair_ps=2 * one.pair_ps) for one in BACKWARD.of))
    assert base < _us(oc.causal(2048), head_dim, slower, **how) < 2 * base
    for name in ("launch_us", "memory_us"):
        assert base < _us(oc.causal(2048), head_dim, replace(BACKWARD, **{name: 20.0}), **how)
    many = oc.full(2560)  # additions, so that statistics have a launch of their own
    assert _us(many, head_dim, **how) < _us(many, head_dim, replace(BACKWARD, megabyte_us=20.0), **how)


@pytest.mark.parametrize(("head_dim", "deterministic"), FORMS)
@pytest.mark.parametrize("mask", [oc.full(4096), oc.causal(4096), MIXED], ids=["full", "causal", "mixed"])
def test_no_prediction_is_below_its_bound(mask: Mask, head_dim: int, deterministic: bool) -> None:
    work = _work(mask, head_dim, device=replace(DEVICE, sm_count=132), deterministic=deterministic)
    found = backward_prediction.predict(work, BACKWARD)
    assert found.us >= found.bound_us > 0


def test_an_empty_mask_takes_its_items_and_the_launches() -> None:
    work = _work(~oc.full(256), 64)
    found = backward_prediction.predict(work, BACKWARD)
    assert found.parts_us["tiles"] == 0
    assert found.us > found.parts_us["launch"] == 12.0


def test_other_kernels_are_refused() -> None:
    problem = Problem(1, 2, 2, 64, 64, 64, "bfloat16")
    for spec in (backward_table.pick("sm_80", "bfloat16", 64), backward_table.naive("sm_90", "bfloat16", 64)):
        with pytest.raises(UnsupportedError, match=f"describes kernel 'sm90', got '{spec.kernel}'"):
            backward_prediction.work_of(spec, problem, oc.full(64), DEVICE)
    with pytest.raises(UnsupportedError, match="no ceilings of kernel 'sm90' for ordered are known"):
        backward_prediction.predict(_work(MIXED), ONE)


@pytest.mark.parametrize(
    ("part", "head_dim", "owned", "expected"),
    [
        ("dkdv", 128, 128, 190.0),
        ("dkdv", 104, 128, 170.0),
        ("dkdv", 16, 192, 110.0),  # below the least one
        ("dkdv", 192, 64, 450.0),
        ("fused", 160, 128, 275 * 160 / 128),  # above the greatest one
        ("dq", 192, 128, 195.5),
        ("dq", 64, 128, 100.0),
        ("dkdv", 128, 64, 450.0),  # 64 keys were fitted at 256 alone
        ("fused", 128, 64, 275.0),  # 64 keys were not fitted: 128 are nearer than 192
    ],
)
def test_ceilings_between_and_beyond_what_was_fitted(
    part: str, head_dim: int, owned: int, expected: float
) -> None:
    found = BACKWARD.at("sm90", part, head_dim, owned)
    assert (found.part, found.head_dim, found.owned) == (part, head_dim, owned)
    assert found.pair_ps == pytest.approx(expected)


def test_a_file_keeps_the_ceilings() -> None:
    assert backward_ceilings.from_json(BACKWARD.as_json()) == BACKWARD
    rounded = replace(BACKWARD, launch_us=1.2345678).as_json()
    assert rounded["launch_us"] == 1.2346
    with pytest.raises(KeyError):
        backward_ceilings.from_json({"kernels": []})


def test_rates_count_the_products_of_each_kernel() -> None:
    for part, products in (("dkdv", 4), ("dq", 3), ("fused", 5)):
        one = BACKWARD.at("sm90", part, 128, 128)
        assert one.full_tflops(132) == pytest.approx(2 * products * 128 * 132 / one.pair_ps)
