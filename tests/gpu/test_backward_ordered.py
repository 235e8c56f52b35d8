"""Gradients where sums of dQ have one order: the launches of the one kernel that makes all, and who takes its place."""

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
from omnicupy.gpu import backward as gpu_backward
from omnicupy.gpu import backward_planning
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.ordered_lists import ordered_lists

pytestmark = pytest.mark.usefixtures("one_kernel")

SPEC = backward_table.pick("sm_90", "bfloat16", 128)
ORDERED = SPEC.part("ordered")
ROWS = 2 * 4 * padded_rows(300)
SUMS_BYTES = 4 * ROWS * 128
TURNS_BYTES = -(-4 * (ROWS // ORDERED.br) // 256) * 256


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where no mask has so few additions, or so many, that another kernel would make dQ of the sums."""
    monkeypatch.setattr(backward_grid, "FEW_ADDITIONS", 0)
    monkeypatch.setattr(backward_grid, "MANY_ADDITIONS", 0)
    return fake_backward.device(monkeypatch)


def _call(**more: Any) -> Call:
    return Call(**{"head_dim": 128} | more)


def _grid(q_len: int) -> BackwardGrid:
    info = backward_planning.device_info(0)
    return BackwardGrid(
        ORDERED, Problem(2, 4, 2, q_len, q_len, 128, "bfloat16"), 1, info.sm_count, info.l2_bytes
    )


def _lists(mask: Mask) -> BlockLists:
    """Those of a call with this mask alone."""
    return ordered_lists([mask.key_blocks(ORDERED.br, ORDERED.bc)], _grid(mask.shape[0]).workers)


def test_one_kernel_makes_all_in_one_order_and_one_converts(device: Any) -> None:
    call, mask = _call(), oc.causal(300)
    dq, dk, dv = run(call, mask)
    _, ordered, convert = device.launches
    assert [launched["spec"] for launched in device.launches] == [
        SPEC.part(part) for part in ("prepare", "ordered", "convert")
    ]
    (scratch,) = device.scratch
    sums = scratch.data.ptr + 2 * 4 * ROWS  # behind lse2 and delta
    assert ordered["params"]["dq_sums"] == convert["params"]["dq_sums"] == sums
    for launched in (ordered, convert):
        assert [launched["params"][name] for name in ("dq", "dk", "dv")] == [x.data.ptr for x in (dq, dk, dv)]
    assert ordered["params"]["turns"] == sums + SUMS_BYTES
    assert ordered["params"]["counter"] == memory_of(0, device.streams[0]).counters
    assert sums + SUMS_BYTES + TURNS_BYTES <= scratch.data.ptr + scratch.nbytes


def test_its_thread_blocks_begin_together_and_no_later_than_the_gpu_holds_them(device: Any) -> None:
    """They wait for each other, so none of a launch may be left out until another has ended."""
    run(_call(q_len=4096, k_len=4096), oc.causal(4096))
    assert [launched.get("together", False) for launched in device.launches] == [False, True, False]
    assert not any("early" in launched for launched in device.launches)
    ordered = device.launches[1]
    assert ordered["params"]["work_items"] > 132
    assert ordered["grid"] == (132, 1, 1)


def test_sums_and_turns_are_zeroed_at_once_before_the_first_launch(device: Any) -> None:
    mask = oc.causal(300)
    run(_call(), mask)
    device.streams[0] = fake_device.Stream(48)
    run(_call(), mask)
    first, second = (launched["params"] for launched in device.launches if launched["spec"] == ORDERED)
    assert device.zeroed == [
        (int(first["dq_sums"]), SUMS_BYTES + TURNS_BYTES, 7, 0),
        (int(second["dq_sums"]), SUMS_BYTES + TURNS_BYTES, 48, 3),
    ]


def test_copies_partials_sums_and_turns_lie_apart(device: Any) -> None:
    q_len, k_len = 6000, 200
    call = _call(batch=1, heads=2, kv_heads=1, q_len=q_len, k_len=k_len)
    run(call, oc.ranges([(20, q_len, 0, 180)], q_len, k_len))
    p, rows = device.launches[1]["params"], 2 * padded_rows(q_len)
    assert p["n_slots"] > 0
    sizes = {
        "lse2": 4 * rows,
        "delta": 4 * rows,
        "q_copy": call.q.nbytes,
        "dout_copy": call.q.nbytes,
        "k_copy": call.k.nbytes,
        "v_copy": call.v.nbytes,
        "dq_sums": 4 * rows * 128,
        "turns": 4 * rows // ORDERED.br,
        "partials": int(p["n_slots"]) * 2 * 4 * ORDERED.bc * 128,
    }
    (scratch,) = device.scratch
    places = sorted((int(p[name]), size) for name, size in sizes.items())
    ends = [first + size for first, size in places]
    assert places[0][0] == scratch.data.ptr
    assert all(end <= first for end, (first, _) in zip(ends[:-1], places[1:], strict=True))
    assert ends[-1] <= scratch.data.ptr + scratch.nbytes
    ((zeroed, size, _, _),) = device.zeroed
    assert zeroed == p["dq_sums"]
    assert p["turns"] + sizes["turns"] <= zeroed + size <= p["partials"]
    assert p["arrivals"] == memory_of(0, device.streams[0]).workspace(Need(1, 0)).arrivals + 16


def test_ranks_and_the_section_come_from_the_lists(device: Any) -> None:
    mask = oc.causal(2048)
    run(_call(q_len=2048, k_len=2048), mask)
    p, lists = device.launches[1]["params"], _lists(mask)
    (buffer,) = device.uploads
    assert np.array_equal(buffer, lists.buffer)
    assert p["ranks"] - p["entries"] == lists.offsets["ranks"] - lists.offsets["entries"]
    assert lists.section != _grid(2048).section(lists.n_parts), "a mask for which the two differ"
    assert p["section"] == lists.section


@pytest.mark.parametrize(
    ("wanted", "launched"),
    [
        (("q",), ["prepare", "dq"]),
        (("k",), ["prepare", "dkdv"]),
        (("k", "v"), ["prepare", "dkdv"]),
        (("q", "k"), ["prepare", "ordered", "convert"]),
        (("v", "q"), ["prepare", "ordered", "convert"]),
    ],
)
def test_it_makes_dq_and_one_more_or_nothing(device: Any, wanted: Any, launched: list[str]) -> None:
    run(_call(), oc.causal(300), wanted=wanted)
    assert parts(device.launches) == launched
    assert bool(device.zeroed) == ("ordered" in launched)


def test_gradients_of_sinks_are_added_up_behind_it(device: Any) -> None:
    sinks = fake_device.ndarray((4,), np.float32)
    run(_call(), oc.causal(300), sink_logits=sinks, wanted=("q", "k", "v", "sink_logits"))
    assert parts(device.launches) == ["prepare", "ordered", "convert", "sinks"]


def test_sums_in_any_order_have_no_turns(device: Any) -> None:
    run(_call(), oc.causal(300), deterministic=False)
    assert parts(device.launches) == ["prepare", "fused", "convert"]
    assert not any(launched.get("together") for launched in device.launches)
    ((_, size, _, _),) = device.zeroed
    assert size == SUMS_BYTES


def test_kernels_without_one_in_order_are_two(device: Any) -> None:
    run(_call(), oc.causal(300), config=replace(SPEC, ordered=None))
    run(_call(head_dim=64), oc.causal(300))
    assert parts(device.launches) == 2 * ["prepare", "dkdv", "dq"]
    assert device.zeroed == []


@pytest.mark.parametrize("masks", [1, 2])
def test_more_tiles_than_ranks_are_left_to_two_kernels(
    device: Any, monkeypatch: pytest.MonkeyPatch, masks: int
) -> None:
    """Counted are the tiles of all distinct masks of a call."""
    made = [[oc.causal(300), oc.full(300)][:masks] for _ in range(2)]
    tiles = sum(int(one.blocks(ORDERED.br, ORDERED.bc).tiles.sum()) for one in made[0])
    for most, of in zip((tiles, tiles - 1), made, strict=True):
        monkeypatch.setattr(backward_grid, "MOST_RANKS", most)
        run(_call(), of if masks == 2 else of[0])
    assert parts(device.launches) == ["prepare", "ordered", "convert", "prepare", "dkdv", "dq"]
    assert len(device.zeroed) == 1


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_mask_that_allows_nothing_has_a_plan(device: Any, head_dim: int, deterministic: bool) -> None:
    dq, dk, dv = run(_call(head_dim=head_dim), ~oc.full(300), deterministic=deterministic)
    assert len(device.launches) == 3
    assert {tuple(one.shape) for one in (dq, dk, dv)} == {(2, 4, 300, head_dim), (2, 2, 300, head_dim)}


def test_a_soft_cap_keeps_it(device: Any) -> None:
    run(_call(), oc.causal(300), softcap=20.0)
    _, ordered, convert = (launched["spec"] for launched in device.launches)
    assert ordered == replace(ORDERED, softcap=True)
    assert convert == SPEC.part("convert")


def test_the_call_after_prepare_can_be_captured(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, call = oc.causal(300), _call()
    oc.prepare(call.q, call.k, call.v, mask, gradients=True)
    uploads, allocated = len(device.uploads), device.allocating.made
    graph = device.driver.begin(device.streams[0])
    monkeypatch.setattr(gpu_backward, "new_plan", None)  # nothing is planned
    run(call, mask)
    device.driver.end(graph)
    assert parts(device.launches) == ["prepare", "ordered", "convert"]
    assert device.launches[1]["together"]
    assert all(launched["stream"] is device.streams[0] for launched in device.launches)
    # Every replay begins with sums and turns of zero: they are zeroed in the graph.
    sums = int(device.launches[1]["params"]["dq_sums"])
    assert device.zeroed == [(sums, SUMS_BYTES + TURNS_BYTES, 7, 0)]
    assert (len(device.uploads), device.allocating.made) == (uploads, allocated)
    graph.end()
