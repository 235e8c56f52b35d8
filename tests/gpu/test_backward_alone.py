"""Gradients where one kernel makes lse2 and delta, too: when it does, and what else is launched then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_backward
import fake_device
import pytest
from fake_backward import Call, parts, run, with_strides

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.schedule import backward_grid
from omnicupy.schedule import ordered_lists as ordered_lists_module
from omnicupy.schedule.backward_grid import BackwardGrid, lists_of
from omnicupy.schedule.ordered_lists import ordered_lists

SPEC = backward_table.pick("sm_90", "bfloat16", 128)
ALONE = SPEC.part("alone")
LENGTH, HEADS = 2048, 32


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_backward.device(monkeypatch)


def _call(**more: Any) -> Call:
    return Call(
        **{"heads": HEADS, "kv_heads": HEADS, "head_dim": 128, "q_len": LENGTH, "k_len": LENGTH} | more
    )


def test_one_launch_makes_all(device: Any) -> None:
    call = _call()
    dlse = call.dlse()
    dq, dk, dv = run(call, oc.causal(LENGTH), dlse=dlse)
    (launched,) = device.launches
    assert (launched["spec"], launched["together"]) == (ALONE, True)
    (scratch,) = device.scratch
    rows = 4 * 2 * HEADS * padded_rows(LENGTH)
    p = launched["params"]
    assert (p["lse2"], p["delta"]) == (scratch.data.ptr, scratch.data.ptr + rows)
    arrays = {"out": call.out, "lse": call.lse, "dout": call.dout, "dlse": dlse, "dq": dq, "dk": dk, "dv": dv}
    assert {name: int(p[name]) for name in arrays} == {name: x.data.ptr for name, x in arrays.items()}
    assert p["dout_column"] == 1
    turns = 4 * 2 * HEADS * LENGTH // ALONE.br
    assert device.zeroed == [(int(p["turns"]), turns, 7, 0)]


def test_copies_are_made_by_a_launch(device: Any) -> None:
    """Where rows see no key, where a key is seen by no row, and of dO that lies otherwise."""
    some_rows = oc.ranges([(128, LENGTH, 0, LENGTH)], LENGTH, LENGTH)
    some_keys = oc.ranges([(0, LENGTH, 128, LENGTH)], LENGTH, LENGTH)
    for mask in (some_rows, some_keys):
        device.launches.clear()
        run(_call(), mask)
        assert parts(device.launches) == ["prepare", "ordered"]
        assert not device.launches[1]["spec"].prepares
    call = _call()
    with_strides(call.dout, None, None, None, 4)
    device.launches.clear()
    run(call, oc.causal(LENGTH))
    assert parts(device.launches) == ["prepare", "ordered"]


def test_sinks_have_a_launch(device: Any) -> None:
    sinks = fake_device.ndarray((HEADS,), "float32")
    run(_call(), oc.causal(LENGTH), sink_logits=sinks)
    assert parts(device.launches) == ["prepare", "ordered"]


def test_soft_caps_have_none(device: Any) -> None:
    run(_call(), oc.causal(LENGTH), softcap=20.0)
    assert [one["spec"] for one in device.launches] == [replace(ALONE, softcap=True)]


@pytest.mark.parametrize(("kv_heads", "beside"), [(16, True), (8, True), (2, False)])
def test_what_is_worked_on_first_is_less_than_half(
    kv_heads: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of query heads of large groups all may be."""
    monkeypatch.setattr(BackwardGrid, "_keeps_up", lambda *_: True)
    mask, problem = oc.causal(LENGTH), Problem(8, 16, kv_heads, LENGTH, LENGTH, 128, "bfloat16")
    grid = BackwardGrid(ALONE, problem, 1, 132, 50 << 20)
    lists = ordered_lists([mask.key_blocks(ALONE.br, ALONE.bc)], grid.workers)
    assert grid.prepares_beside(lists) == beside


@pytest.mark.parametrize("early", [True, False])
def test_longer_work_has_a_launch_ahead(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BackwardGrid, "_keeps_up", lambda *_: True)
    if not early:
        monkeypatch.setattr(ordered_lists_module, "early_heads", lambda *_: 0)
    mask, problem = oc.causal(LENGTH), Problem(8, 16, 16, LENGTH, LENGTH, 128, "bfloat16")
    grid = BackwardGrid(ALONE, problem, 1, 132, 50 << 20)
    lists = ordered_lists([mask.key_blocks(ALONE.br, ALONE.bc)], grid.workers)
    assert (lists.early_heads > 0) == early
    for most, beside in ((8.5, True), (8.4, False)):  # additions of a mean sum
        monkeypatch.setattr(backward_grid, "PREPARING_ADDITIONS", most)
        assert grid.prepares_beside(lists) == beside


@pytest.mark.parametrize(
    ("sizes", "mask", "beside"),
    [
        ((4, 16, 16), oc.causal(1024), True),  # 4.5 additions, 1,024 sums
        ((16, 16, 16), oc.causal(1024), False),  # 4,096 of them
        ((8, 16, 16), oc.causal(2304), True),  # 9.5 additions
        ((8, 16, 8), oc.causal(2304), False),  # eight heads of two side by side
        ((1, 32, 8), oc.sliding_window(16384, left=1800), True),  # one head of four, 16 additions
        ((1, 32, 8), oc.sliding_window(16384, left=700), False),  # 7
    ],
)
@pytest.mark.parametrize("part", ["alone", "tickets_alone"])
def test_a_launch_prepares_where_the_warp_would_not_keep_up(
    sizes: tuple[int, int, int], mask: oc.Mask, beside: bool, part: str
) -> None:
    kernel = SPEC.part(part)
    grid = BackwardGrid(kernel, Problem(*sizes, *mask.shape, 128, "bfloat16"), 1, 132, 50 << 20)
    assert grid.prepares_beside(lists_of(kernel, [mask], grid.workers)) == beside


@pytest.mark.parametrize("finishes", ["", "at_once"])
def test_it_needs_a_warp_in_the_background(finishes: Any) -> None:
    with pytest.raises(ValueError, match="prepares needs finishes='background', got"):
        replace(ALONE, finishes=finishes)


def test_its_name_and_macros_say_so() -> None:
    background = SPEC.part("background")
    assert replace(background, prepares=True) == ALONE
    assert [one.defines()["OMNI_PREPARES"] for one in (background, ALONE)] == [0, 1]
    assert str(ALONE) == f"{background} prepares"
    assert [name for name, part in SPEC.kernels().items() if part.prepares] == ["tickets_alone", "alone"]
