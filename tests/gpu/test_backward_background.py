"""Gradients where a kernel makes dQ of sums in the background: its launches, and what must be zero before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, parts

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.schedule import backward_grid
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.ordered_lists import ordered_lists
from omnicupy.schedule.ranks import LAST_ADDITION

SPEC = backward_table.pick("sm_90", "bfloat16", 128)
BACKGROUND = SPEC.part("background")
LENGTH = 2048
ROWS = 2 * 4 * padded_rows(LENGTH)
SUMS = 2 * 4 * LENGTH // BACKGROUND.br
SUMS_BYTES = SUMS * BACKGROUND.sum_bytes
TURNS_BYTES = 4 * SUMS


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_backward.device(monkeypatch)


def _run(mask: Any = None, **options: Any) -> Any:
    call = Call(head_dim=128, q_len=LENGTH, k_len=LENGTH)
    return oc.attention_backward(*call.arrays, mask, **options)


def test_one_kernel_makes_all_behind_the_one_that_prepares(device: Any) -> None:
    dq, dk, dv = _run(oc.causal(LENGTH))
    prepare, ordered = device.launches
    assert [launched["spec"] for launched in device.launches] == [SPEC.part("prepare"), BACKGROUND]
    (scratch,) = device.scratch
    sums = scratch.data.ptr + 2 * 4 * ROWS  # behind lse2 and delta
    p = ordered["params"]
    assert (p["dq_sums"], p["turns"]) == (sums, sums + SUMS_BYTES)
    assert p["turns"] + TURNS_BYTES <= scratch.data.ptr + scratch.nbytes
    assert p["counter"] == memory_of(0, device.streams[0]).counters
    for launched in (prepare, ordered):
        assert [launched["params"][name] for name in ("dq", "dk", "dv")] == [x.data.ptr for x in (dq, dk, dv)]
        assert launched["params"]["zeroes_dead_rows"] == (launched is prepare)


def test_its_thread_blocks_begin_together(device: Any) -> None:
    _run(oc.causal(LENGTH))
    assert [launched.get("together", False) for launched in device.launches] == [False, True]
    assert device.launches[1]["grid"] == (min(132, int(device.launches[1]["params"]["work_items"])), 1, 1)


def test_only_turns_are_zeroed(device: Any) -> None:
    mask = oc.causal(LENGTH)
    _run(mask)
    device.streams[0] = fake_device.Stream(48)
    _run(mask)
    first, second = (launched["params"] for launched in device.launches if launched["spec"] == BACKGROUND)
    assert device.zeroed == [
        (int(first["turns"]), TURNS_BYTES, 7, 0),
        (int(second["turns"]), TURNS_BYTES, 48, 2),
    ]


def test_rows_that_see_no_key_are_told_to_it(device: Any) -> None:
    """So that it waits for no addition to their sums."""
    _run(oc.causal(LENGTH))
    _run(oc.ranges([(128, LENGTH, 0, LENGTH)], LENGTH, LENGTH))
    every, some = (launched["params"] for launched in device.launches if launched["spec"] == BACKGROUND)
    assert every["dead_rows"] == 0
    assert some["dead_rows"] != 0
    assert some["q_padded"] == padded_rows(LENGTH)


@pytest.mark.parametrize("masks", [1, 2])
def test_each_sum_has_a_place(device: Any, masks: int) -> None:
    made = [oc.causal(LENGTH), oc.full(LENGTH)][:masks]
    _run(made if masks == 2 else made[0])
    p = device.launches[1]["params"]
    assert (p["places"], p["head_sums"]) == (SUMS, LENGTH // BACKGROUND.br)
    heads = [(batch, head) for batch in range(2) for head in range(2)]
    firsts = {int(batch * p["batch_sums"] + head * p["kv_sums"]) for batch, head in heads}
    assert firsts == set(range(0, SUMS, 2 * LENGTH // BACKGROUND.br))
    assert p["turn_heads"] == 4 // masks  # all of them


def test_ranks_are_those_of_sums_that_are_converted() -> None:
    """The same bits: only the last addition of each sum is told."""
    mask, problem = oc.causal(LENGTH), Problem(2, 4, 2, LENGTH, LENGTH, 128, "bfloat16")
    lists = []
    for part in ("ordered", "background"):
        kernel = SPEC.part(part)
        grid = BackwardGrid(kernel, problem, 1, 132, 50 << 20)
        lists.append(ordered_lists([mask.key_blocks(kernel.br, kernel.bc)], grid.workers))
    plain, flagged = lists
    ranks = flagged.array("ranks")
    assert np.array_equal(plain.array("ranks"), ranks & LAST_ADDITION - 1)
    assert np.count_nonzero(ranks & LAST_ADDITION) == LENGTH // BACKGROUND.br
    for name in ("entries", "parts", "splits"):
        assert np.array_equal(plain.array(name), flagged.array(name))
    assert (plain.section, plain.tiers, plain.head_ranks) == (
        flagged.section,
        flagged.tiers,
        flagged.head_ranks,
    )


def test_sums_of_many_additions_are_converted(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    additions = 8.5  # of a mean sum, of causal 2,048
    for many, expected in ((9, ["prepare", "ordered"]), (additions, ["prepare", "ordered", "convert"])):
        device.launches.clear()
        monkeypatch.setattr(backward_grid, "MANY_ADDITIONS", many)
        _run(oc.causal(LENGTH))
        assert parts(device.launches) == expected


def test_soft_caps_and_sinks_keep_it(device: Any) -> None:
    sinks = fake_device.ndarray((4,), "float32")
    _run(oc.causal(LENGTH), softcap=20.0, sink_logits=sinks, wanted=("q", "k", "v", "sink_logits"))
    assert parts(device.launches) == ["prepare", "ordered", "sinks"]
    assert device.launches[1]["spec"] == replace(BACKGROUND, softcap=True)


@pytest.mark.parametrize("finishes", ["later", True, None])
def test_other_ways_to_make_dq_of_sums_are_refused(finishes: Any) -> None:
    with pytest.raises(ValueError, match="finishes must be '' or one of at_once, background, got"):
        replace(BACKGROUND, finishes=finishes)
