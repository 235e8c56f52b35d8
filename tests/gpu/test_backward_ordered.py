"""Gradients where sums of dQ have one order: the launches of the one kernel that makes all, and who takes its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, parts

import omnicupy as oc
from omnicupy.call import check_masks
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

SPEC = backward_table.pick("sm_90", "bfloat16", 128)
ORDERED, FINISHING = SPEC.part("ordered"), SPEC.part("finishing")
ROWS = 2 * 4 * padded_rows(300)
SUMS = 2 * 4 * -(-300 // ORDERED.br)
SUMS_BYTES = SUMS * 4 * ORDERED.br * 128
TURNS_BYTES = 256


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    check_masks._full.cache_clear()
    fake = fake_backward.install(monkeypatch)
    fake.streams[0] = fake_device.Stream(7)
    return fake


def _call(**more: Any) -> Call:
    return Call(**{"head_dim": 128} | more)


def _run(call: Call, mask: Any = None, **options: Any) -> Any:
    return oc.attention_backward(*call.arrays, mask, **options)


def _grid(q_len: int) -> BackwardGrid:
    info = backward_planning.device_info(0)
    return BackwardGrid(
        ORDERED, Problem(2, 4, 2, q_len, q_len, 128, "bfloat16"), 1, info.sm_count, info.l2_bytes
    )


def _lists(mask: Mask) -> BlockLists:
    """Those of a call with this mask alone."""
    return ordered_lists([mask.key_blocks(ORDERED.br, ORDERED.bc)], _grid(mask.shape[0]).workers)


def test_one_kernel_makes_all_in_one_order_behind_the_one_that_prepares(device: Any) -> None:
    call, mask = _call(), oc.causal(300)
    dq, dk, dv = _run(call, mask)
    prepare, ordered = device.launches
    assert [launched["spec"] for launched in device.launches] == [SPEC.part("prepare"), ORDERED]
    (scratch,) = device.scratch
    sums = scratch.data.ptr + 2 * 4 * ROWS  # behind lse2 and delta
    assert ordered["params"]["dq_sums"] == sums
    for launched in (prepare, ordered):
        assert [launched["params"][name] for name in ("dq", "dk", "dv")] == [x.data.ptr for x in (dq, dk, dv)]
    assert ordered["params"]["turns"] == sums + SUMS_BYTES
    assert ordered["params"]["counter"] == memory_of(0, device.streams[0]).counters
    assert sums + SUMS_BYTES + TURNS_BYTES <= scratch.data.ptr + scratch.nbytes


def test_its_thread_blocks_begin_together_and_no_later_than_the_gpu_holds_them(device: Any) -> None:
    """They wait for each other, so none of a launch may be left out until another has ended."""
    _run(_call(q_len=4096, k_len=4096), oc.causal(4096))
    assert [launched.get("together", False) for launched in device.launches] == [False, True]
    assert not any("early" in launched for launched in device.launches)
    ordered = device.launches[1]
    assert ordered["params"]["work_items"] > 132
    assert ordered["grid"] == (132, 1, 1)


def test_turns_are_zeroed_before_the_first_launch(device: Any) -> None:
    """Sums need no zeros: the first addition to one stores."""
    mask = oc.causal(300)
    _run(_call(), mask)
    device.streams[0] = fake_device.Stream(48)
    _run(_call(), mask)
    first, second = (launched["params"] for launched in device.launches if launched["spec"] == ORDERED)
    assert device.zeroed == [
        (int(first["turns"]), TURNS_BYTES, 7, 0),
        (int(second["turns"]), TURNS_BYTES, 48, 2),
    ]


@pytest.mark.parametrize(
    ("options", "zeroes"), [({}, True), ({"deterministic": False}, False), ({"wanted": ("k", "v")}, False)]
)
def test_who_prepares_zeroes_rows_of_dq_that_nobody_comes_to(
    device: Any, options: dict[str, Any], zeroes: bool
) -> None:
    _run(_call(), oc.causal(300), **options)
    assert bool(device.launches[0]["params"]["zeroes_dead_rows"]) == zeroes


def _sums(p: Any, heads: Iterable[tuple[int, int]]) -> list[int]:
    """Numbers of the sums of heads of keys, (batch, head), as the producer of the kernel works them out."""
    firsts = [batch * p["batch_sums"] + head * p["kv_sums"] for batch, head in heads]
    of_head, group = int(p["head_sums"]), int(p["group"])
    return [int(first) + i for first in firsts for i in range(group * of_head)]


@pytest.mark.parametrize("masks", [1, 2])
def test_sums_share_places_where_they_would_take_too_much_memory(
    device: Any, monkeypatch: pytest.MonkeyPatch, masks: int
) -> None:
    """Heads of a section have places of their own, and a later one's sums those of the same queries."""
    of_head, heads = 2 * SUMS // 8, [(batch, head) for batch in range(2) for head in range(2)]
    most = of_head * masks
    monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", (most + 1) * ORDERED.sum_bytes)
    made = [oc.causal(300), oc.full(300)][:masks]
    _run(_call(), made if masks == 2 else made[0])
    _, ordered = (launched["params"] for launched in device.launches)
    assert ordered["places"] == most
    assert ordered["section"] == ordered["turn_heads"] == 1
    assert (int(ordered["turns"]) - int(ordered["dq_sums"])) == most * ORDERED.sum_bytes
    order = heads if masks == 1 else [(batch, head) for head in range(2) for batch in range(2)]
    assert _sums(ordered, order) == list(range(SUMS))


@pytest.mark.parametrize("masks", [1, 2])
def test_heads_whose_sums_would_take_too_much_memory_are_left_to_two_kernels(
    device: Any, monkeypatch: pytest.MonkeyPatch, masks: int
) -> None:
    """The sums of the query heads of one head of keys are all in use at the same time, those of all masks, too."""
    most = 2 * SUMS // 8 * masks * ORDERED.sum_bytes
    for size in (most, most - 1):
        monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", size)
        made = [oc.causal(300), oc.full(300)][:masks]  # new ones: plans stay with masks
        _run(_call(), made if masks == 2 else made[0])
    assert parts(device.launches) == ["prepare", "ordered", "prepare", "dkdv", "dq"]


@pytest.mark.parametrize("length", [36864, 131_072, 262_144, 1_000_000])
@pytest.mark.parametrize(("heads", "kv_heads", "batch"), [(28, 4, 1), (32, 8, 2), (64, 64, 16), (64, 1, 1)])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_sums_never_take_more_than_128_mib(
    length: int, heads: int, kv_heads: int, batch: int, head_dim: int
) -> None:
    part = backward_table.pick("sm_90", "bfloat16", head_dim).part("ordered")
    problem = Problem(batch, heads, kv_heads, length, length, head_dim, "bfloat16")
    mask = oc.sliding_window(length, length, left=512)
    if not backward_grid.may_be_ordered(part, problem, [mask]):
        assert heads // kv_heads * -(-length // 64) * part.sum_bytes > 128 << 20
        return
    grid = BackwardGrid(part, problem, 1, 132, 50 << 20)
    lists = ordered_lists([mask.key_blocks(part.br, part.bc)], grid.workers)
    assert grid.sum_fields(lists)["places"] * part.sum_bytes <= 128 << 20


def test_copies_partials_sums_and_turns_lie_apart(device: Any) -> None:
    q_len, k_len = 6000, 200
    call = _call(batch=1, heads=2, kv_heads=1, q_len=q_len, k_len=k_len)
    _run(call, oc.ranges([(20, q_len, 0, 180)], q_len, k_len))
    p, rows = device.launches[1]["params"], 2 * padded_rows(q_len)
    assert p["places"] == 2 * -(-q_len // ORDERED.br)
    assert p["n_slots"] > 0
    sizes = {
        "lse2": 4 * rows,
        "delta": 4 * rows,
        "q_copy": call.q.nbytes,
        "dout_copy": call.q.nbytes,
        "k_copy": call.k.nbytes,
        "v_copy": call.v.nbytes,
        "dq_sums": int(p["places"]) * ORDERED.sum_bytes,
        "turns": 4 * int(p["places"]),
        "partials": int(p["n_slots"]) * 2 * 4 * ORDERED.bc * 128,
    }
    (scratch,) = device.scratch
    places = sorted((int(p[name]), size) for name, size in sizes.items())
    ends = [first + size for first, size in places]
    assert places[0][0] == scratch.data.ptr
    assert all(end <= first for end, (first, _) in zip(ends[:-1], places[1:], strict=True))
    assert ends[-1] <= scratch.data.ptr + scratch.nbytes
    assert p["arrivals"] == memory_of(0, device.streams[0]).workspace(Need(1, 0)).arrivals + 16


def test_ranks_and_the_section_come_from_the_lists(device: Any) -> None:
    mask = oc.causal(2048)
    _run(_call(q_len=2048, k_len=2048), mask)
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
        (("q", "k"), ["prepare", "ordered"]),
        (("v", "q"), ["prepare", "ordered"]),
    ],
)
def test_it_makes_dq_and_one_more_or_nothing(device: Any, wanted: Any, launched: list[str]) -> None:
    _run(_call(), oc.causal(300), wanted=wanted)
    assert parts(device.launches) == launched
    assert bool(device.zeroed) == ("ordered" in launched)


def test_gradients_of_sinks_are_added_up_behind_it(device: Any) -> None:
    sinks = fake_device.ndarray((4,), np.float32)
    _run(_call(), oc.causal(300), sink_logits=sinks, wanted=("q", "k", "v", "sink_logits"))
    assert parts(device.launches) == ["prepare", "ordered", "sinks"]


def test_sums_in_any_order_have_no_turns(device: Any) -> None:
    _run(_call(), oc.causal(300), deterministic=False)
    assert parts(device.launches) == ["prepare", "fused", "convert"]
    assert not any(launched.get("together") for launched in device.launches)
    ((_, size, _, _),) = device.zeroed
    assert size == 4 * ROWS * 128


def test_kernels_without_one_in_order_are_two(device: Any) -> None:
    _run(_call(), oc.causal(300), config=replace(SPEC, ordered=None))
    _run(_call(head_dim=64), oc.causal(300))
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
        _run(_call(), of if masks == 2 else of[0])
    assert parts(device.launches) == ["prepare", "ordered", "prepare", "dkdv", "dq"]


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_mask_that_allows_nothing_has_a_plan(device: Any, head_dim: int, deterministic: bool) -> None:
    dq, dk, dv = _run(_call(head_dim=head_dim), ~oc.full(300), deterministic=deterministic)
    assert len(device.launches) == (2 if deterministic and head_dim == 128 else 3)
    assert {tuple(one.shape) for one in (dq, dk, dv)} == {(2, 4, 300, head_dim), (2, 2, 300, head_dim)}


def test_a_soft_cap_keeps_it(device: Any) -> None:
    _run(_call(), oc.causal(300), softcap=20.0)
    _, ordered = (launched["spec"] for launched in device.launches)
    assert ordered == replace(ORDERED, softcap=True)


def test_the_call_after_prepare_can_be_captured(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, call = oc.causal(300), _call()
    oc.prepare(call.q, call.k, call.v, mask, gradients=True)
    uploads, allocated = len(device.uploads), device.allocating.made
    graph = device.driver.begin(device.streams[0])
    monkeypatch.setattr(gpu_backward, "new_plan", None)  # nothing is planned
    _run(call, mask)
    device.driver.end(graph)
    assert parts(device.launches) == ["prepare", "ordered"]
    assert device.launches[1]["together"]
    assert all(launched["stream"] is device.streams[0] for launched in device.launches)
    # Every replay begins with turns of zero: they are zeroed in the graph.
    assert device.zeroed == [(int(device.launches[1]["params"]["turns"]), TURNS_BYTES, 7, 0)]
    assert (len(device.uploads), device.allocating.made) == (uploads, allocated)
    graph.end()
