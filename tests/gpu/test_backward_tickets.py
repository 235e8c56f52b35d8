"""Gradients in any order where a kernel makes dQ of sums in the background: when it does, and what it is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, parts, run

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.block_lists import BlockLists

SPEC = backward_table.pick("sm_90", "bfloat16", 128)
TICKETS, ALONE = SPEC.part("tickets"), SPEC.part("tickets_alone")
LENGTH = 2048
SUMS = 2 * 2 * LENGTH // TICKETS.br


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_backward.device(monkeypatch)


def _run(mask: Any, **options: Any) -> Any:
    call = Call(heads=2, kv_heads=2, head_dim=128, q_len=LENGTH, k_len=LENGTH)
    return run(call, mask, deterministic=False, **options)


def test_one_kernel_makes_all_behind_the_one_that_prepares(device: Any) -> None:
    _run(oc.causal(LENGTH))
    prepare, all_three = device.launches
    assert [launched["spec"] for launched in device.launches] == [SPEC.part("prepare"), TICKETS]
    assert all_three["together"]  # its thread blocks wait for each other
    p = all_three["params"]
    assert device.zeroed == [(int(p["turns"]), 4 * SUMS, 7, 0)]  # no sum
    assert p["turns"] == p["dq_sums"] + SUMS * TICKETS.sum_bytes
    assert (p["places"], p["head_sums"]) == (SUMS, LENGTH // TICKETS.br)
    assert p["ranks"] != 0
    assert p["head_ranks"] > 0  # head by head
    assert prepare["params"]["zeroes_dead_rows"] == 1


def test_one_launch_makes_all(device: Any) -> None:
    call = Call(heads=32, kv_heads=32, head_dim=128, q_len=LENGTH, k_len=LENGTH)
    run(call, oc.causal(LENGTH), deterministic=False)
    (launched,) = device.launches
    assert (launched["spec"], launched["together"]) == (ALONE, True)


def test_the_default_and_any_order_have_plans_of_their_own(device: Any) -> None:
    call, mask = Call(heads=2, kv_heads=2, head_dim=128, q_len=LENGTH, k_len=LENGTH), oc.causal(LENGTH)
    for deterministic, spec in ((True, SPEC.part("background")), (False, TICKETS)) * 2:
        device.launches.clear()
        run(call, mask, deterministic=deterministic)
        assert device.launches[-1]["spec"] == spec


def _part(mask: Mask, heads: int = 4, head_dim: int = 128) -> str:
    parts = backward_table.pick("sm_90", "bfloat16", head_dim).kernels()
    problem = Problem(2, heads, 2, *mask.shape, head_dim, "bfloat16")
    return backward_grid.makes_all_part(parts, problem, [mask], deterministic=False)


def test_it_serves_sums_of_some_additions() -> None:
    """A sum of 64 queries has an addition for each block of 128 keys that they see."""
    assert _part(oc.full(640, 3 * 128)) == "finishing"
    assert _part(oc.full(640, 4 * 128)) == "tickets"
    assert _part(oc.full(640, 39 * 128), head_dim=80) == "tickets"
    assert _part(oc.full(640, 40 * 128)) == "fused"
    assert _part(oc.full(640, 8 * 128), head_dim=64) == "fused"  # no warp is left
    window = oc.sliding_window(16384, left=2048)
    most = (1 << 30) // (2 * 4 * 128 * (16384 + 256))  # heads whose sums take 1 GiB
    assert (_part(window, most // 2 * 2), _part(window, most // 2 * 2 + 2)) == ("tickets", "fused")


@pytest.mark.usefixtures("one_kernel")
def test_sums_of_few_additions_have_the_kernel_of_one_order(device: Any) -> None:
    call, mask = Call(heads=2, kv_heads=2, head_dim=128, q_len=300, k_len=300), oc.causal(300)
    for deterministic in (False, True):
        run(call, mask, deterministic=deterministic)
    assert [one["spec"] for one in device.launches] == [SPEC.part("prepare"), SPEC.part("finishing")] * 2
    alone = replace(SPEC, ordered=None).kernels()  # of a spec without one
    problem = Problem(1, 2, 2, 300, 300, 128, "bfloat16")
    assert backward_grid.makes_all_part(alone, problem, [mask], deterministic=False) == "fused"
    assert backward_grid.makes_all_part(alone, problem, [mask], deterministic=True) == "dkdv"


def _prepares(mask: Mask, heads: int, kv_heads: int, batch: int) -> bool:
    """Does the kernel make what it reads of queries itself?"""
    problem = Problem(batch, heads, kv_heads, *mask.shape, 128, "bfloat16")
    grid = backward_grid.BackwardGrid(TICKETS, problem, 1, 132, 50 << 20)
    return grid.prepares_beside(backward_grid.lists_of(TICKETS, [mask], grid.workers))


def test_a_launch_prepares_where_heads_begin_long_before_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long blocks of keys of all heads come first, and what they want of queries would come head by head."""
    monkeypatch.setattr(BackwardGrid, "_keeps_up", lambda *_: True)
    long_and_short = oc.ranges([(0, 2048, 0, 256), (0, 512, 256, 2048)], 2048)
    assert _prepares(long_and_short, 16, 16, 8)  # heads are early
    assert not _prepares(long_and_short, 28, 4, 8)
    assert _prepares(oc.full(2048), 32, 8, 8)  # one tier


def _lists(part: BackwardKernel, mask: Mask, heads: int, kv_heads: int) -> tuple[BackwardGrid, BlockLists]:
    problem = Problem(1, heads, kv_heads, *mask.shape, 128, "bfloat16")
    grid = BackwardGrid(part, problem, 1, 132, 50 << 20)
    return grid, backward_grid.lists_of(part, [mask], grid.workers)


def _window_and_first_keys(length: int, left: int) -> Mask:
    return oc.sliding_window(length, left=left) | oc.ranges([(0, length, 0, 4)], length)


def test_a_long_block_is_cut_in_one_order_alone() -> None:
    """In any order nobody waits for it. It begins first, of all heads, and with queries of the last ones, too."""
    mask = _window_and_first_keys(32768, left=2000)
    grid, lists = _lists(TICKETS, mask, 32, 8)
    assert (lists.n_split_rows, lists.tiers[0]) == (0, 1)
    assert not grid.prepares_beside(lists)
    assert _lists(SPEC.part("background"), mask, 32, 8)[1].n_split_rows == 1


def test_a_block_that_takes_longer_than_all_work_together_is_cut() -> None:
    _, lists = _lists(TICKETS, _window_and_first_keys(8192, left=600), 8, 2)
    assert (lists.n_split_rows, lists.n_slots) == (1, 6)


def test_other_sums_are_converted(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_grid, "MANY_ADDITIONS", 8)
    _run(oc.causal(LENGTH))
    assert parts(device.launches) == ["prepare", "fused", "convert"]
    assert [launched.get("together", False) for launched in device.launches] == [False] * 3


def test_soft_caps_and_sinks_keep_it(device: Any) -> None:
    sinks = fake_device.ndarray((2,), "float32")
    _run(oc.causal(LENGTH), softcap=20.0, sink_logits=sinks, wanted=("q", "k", "v", "sink_logits"))
    assert parts(device.launches) == ["prepare", "fused", "sinks"]
    assert device.launches[1]["spec"] == replace(TICKETS, softcap=True)


def test_who_adds_last_is_known_in_one_order_alone() -> None:
    with pytest.raises(
        ValueError, match=r"part='fused' in the background, .* got part='fused', finishes='at_once'"
    ):
        replace(TICKETS, finishes="at_once")
    of_ampere = backward_table.pick("sm_80", "bfloat16", 128).part("fused")
    with pytest.raises(ValueError, match="config: finishes needs part='ordered'"):
        replace(of_ampere, finishes="background")


def test_a_grid_is_not_larger_than_the_device(device: Any) -> None:
    _run(oc.causal(LENGTH))
    launched = device.launches[1]
    assert launched["grid"] == (min(132, int(launched["params"]["work_items"])), 1, 1)
    assert np.all(launched["params"]["tiers"] > 0)
