"""Gradients where a kernel makes dQ of sums itself: its launches, places of sums, and which calls it serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import fake_backward
import fake_device
import pytest
from fake_backward import Call, parts, run

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.ordered_lists import ordered_lists

pytestmark = pytest.mark.usefixtures("one_kernel")

SPEC = backward_table.pick("sm_90", "bfloat16", 128)
FINISHING = SPEC.part("finishing")
ROWS = 2 * 4 * padded_rows(300)
SUMS = 2 * 4 * -(-300 // FINISHING.br)
SUMS_BYTES = SUMS * FINISHING.sum_bytes
TURNS_BYTES = 256


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_backward.device(monkeypatch)


def _call(**more: Any) -> Call:
    return Call(**{"head_dim": 128} | more)


def test_one_kernel_makes_all_in_one_order_behind_the_one_that_prepares(device: Any) -> None:
    call, mask = _call(), oc.causal(300)
    dq, dk, dv = run(call, mask)
    prepare, ordered = device.launches
    assert [launched["spec"] for launched in device.launches] == [SPEC.part("prepare"), FINISHING]
    (scratch,) = device.scratch
    sums = scratch.data.ptr + 2 * 4 * ROWS  # behind lse2 and delta
    assert ordered["params"]["dq_sums"] == sums
    for launched in (prepare, ordered):
        assert [launched["params"][name] for name in ("dq", "dk", "dv")] == [x.data.ptr for x in (dq, dk, dv)]
    assert ordered["params"]["turns"] == sums + SUMS_BYTES
    assert ordered["params"]["counter"] == memory_of(0, device.streams[0]).counters
    assert sums + SUMS_BYTES + TURNS_BYTES <= scratch.data.ptr + scratch.nbytes


def test_turns_are_zeroed_before_the_first_launch(device: Any) -> None:
    """Sums need no zeros: the first addition to one stores."""
    mask = oc.causal(300)
    run(_call(), mask)
    device.streams[0] = fake_device.Stream(48)
    run(_call(), mask)
    first, second = (launched["params"] for launched in device.launches if launched["spec"] == FINISHING)
    assert device.zeroed == [
        (int(first["turns"]), TURNS_BYTES, 7, 0),
        (int(second["turns"]), TURNS_BYTES, 48, 2),
    ]


@pytest.mark.parametrize(
    ("options", "zeroes"), [({}, True), ({"deterministic": False}, False), ({"wanted": ("k", "v")}, False)]
)
def test_who_prepares_zeroes_rows_of_dq_that_nobody_comes_to(
    device: Any, options: dict[str, Any], zeroes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_grid, "any_order_part", lambda *_: "fused")
    run(_call(), oc.causal(300), **options)
    assert bool(device.launches[0]["params"]["zeroes_dead_rows"]) == zeroes


@pytest.mark.parametrize(
    "options", [{"deterministic": False}, {"wanted": ("k", "v")}, {"wanted": ("q",)}], ids=str
)
def test_kernels_that_make_no_dq_of_sums_are_told_nothing_of_them(
    device: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_grid, "any_order_part", lambda *_: "fused")
    run(_call(), oc.causal(300), **options)
    told = [one["params"] for one in device.launches if "head_sums" in (one["params"].dtype.names or ())]
    assert told
    for name in ("head_sums", "kv_sums", "batch_sums", "places"):
        assert not any(int(params[name]) for params in told)


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
    monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", (most + 1) * FINISHING.sum_bytes)
    made = [oc.causal(300), oc.full(300)][:masks]
    run(_call(), made if masks == 2 else made[0])
    _, ordered = (launched["params"] for launched in device.launches)
    assert ordered["places"] == most
    assert ordered["section"] == ordered["turn_heads"] == 1
    assert (int(ordered["turns"]) - int(ordered["dq_sums"])) == most * FINISHING.sum_bytes
    order = heads if masks == 1 else [(batch, head) for head in range(2) for batch in range(2)]
    assert _sums(ordered, order) == list(range(SUMS))


def test_copies_partials_sums_and_turns_lie_apart(device: Any) -> None:
    q_len, k_len = 6000, 200
    call = _call(batch=1, heads=2, kv_heads=1, q_len=q_len, k_len=k_len)
    run(call, oc.ranges([(20, q_len, 0, 180)], q_len, k_len))
    p, rows = device.launches[1]["params"], 2 * padded_rows(q_len)
    assert p["places"] == 2 * -(-q_len // FINISHING.br)
    assert p["n_slots"] > 0
    sizes = {
        "lse2": 4 * rows,
        "delta": 4 * rows,
        "q_copy": call.q.nbytes,
        "dout_copy": call.q.nbytes,
        "k_copy": call.k.nbytes,
        "v_copy": call.v.nbytes,
        "dq_sums": int(p["places"]) * FINISHING.sum_bytes,
        "turns": 4 * int(p["places"]),
        "partials": int(p["n_slots"]) * 2 * 4 * FINISHING.bc * 128,
    }
    (scratch,) = device.scratch
    places = sorted((int(p[name]), size) for name, size in sizes.items())
    ends = [first + size for first, size in places]
    assert places[0][0] == scratch.data.ptr
    assert all(end <= first for end, (first, _) in zip(ends[:-1], places[1:], strict=True))
    assert ends[-1] <= scratch.data.ptr + scratch.nbytes
    assert p["arrivals"] == memory_of(0, device.streams[0]).workspace(Need(1, 0)).arrivals + 16


def _part(mask: Mask, heads: tuple[int, int] = (4, 2), batch: int = 2, head_dim: int = 128) -> str:
    ordered = backward_table.pick("sm_90", "bfloat16", head_dim).part("ordered")
    problem = Problem(batch, *heads, *mask.shape, head_dim, "bfloat16")
    return backward_grid.ordered_part(ordered, problem, [mask])


def test_it_serves_sums_of_few_additions() -> None:
    """A sum of 64 queries has an addition for each block of 128 keys that they see."""
    assert _part(oc.full(640, 3 * 128)) == "finishing"
    assert _part(oc.full(640, 4 * 128)) == "background"
    assert _part(oc.causal(768)) == "finishing"  # 3.5 a sum
    assert _part(oc.causal(896)) == "background"  # 4
    assert _part(oc.full(640, 39 * 128)) == "background"
    assert _part(oc.full(640, 40 * 128)) == "ordered"
    assert _part(oc.full(640, 128), head_dim=64) == "ordered"  # three warpgroups leave no warp


@pytest.mark.parametrize("finishes", ["at_once", "background"])
@pytest.mark.parametrize("part", ["dkdv", "dq", "prepare", "convert"])
def test_no_other_kernel_makes_dq_of_sums(part: str, finishes: str) -> None:
    spec = backward_table.pick("sm_90", "bfloat16", 128)
    with pytest.raises(ValueError, match=r"config: finishes needs part='ordered', or .* with two warpgroups"):
        replace(spec.kernels()[part], finishes=finishes)


@pytest.mark.parametrize("head_dim", [80, 128])
def test_it_serves_sums_that_would_take_too_much_memory(head_dim: int) -> None:
    """More than 1 GiB, in places of 128 MiB; where one head of keys has more, two kernels take its place."""
    of_head = 4 * head_dim * 16384  # bytes of a query head
    most = (1 << 30) // (4 * head_dim * padded_rows(16384))  # sums that are converted are padded
    window = oc.sliding_window(16384, left=2048)
    assert _part(window, (most, most), 1, head_dim) == "background"
    assert _part(window, (most + 1, most + 1), 1, head_dim) == "finishing"
    of_group = (128 << 20) // of_head
    assert _part(window, (8 * of_group, 8), 2, head_dim) == "finishing"
    assert _part(window, (8 * (of_group + 1), 8), 2, head_dim) == "dkdv"
    assert (
        _part(oc.sliding_window(16384, left=2048), (1024 * of_group, 1024), 2, head_dim) == "dkdv"
    )  # shared too often


@pytest.mark.parametrize("length", [36864, 131_072, 262_144, 1_000_000])
@pytest.mark.parametrize(("heads", "kv_heads", "batch"), [(28, 4, 1), (32, 8, 2), (64, 64, 8), (64, 1, 1)])
@pytest.mark.parametrize("head_dim", [96, 128])
def test_sums_never_take_more_than_1_gib_and_shared_ones_128_mib(
    length: int, heads: int, kv_heads: int, batch: int, head_dim: int
) -> None:
    spec = backward_table.pick("sm_90", "bfloat16", head_dim)
    problem = Problem(batch, heads, kv_heads, length, length, head_dim, "bfloat16")
    mask = oc.sliding_window(length, length, left=512)
    part = spec.part(backward_grid.ordered_part(spec.part("ordered"), problem, [mask]))
    if part.part == "dkdv":
        assert heads // kv_heads * -(-length // 64) * FINISHING.br * 4 * head_dim > 128 << 20
        return
    grid = BackwardGrid(part, problem, 1, 132, 50 << 20)
    lists = ordered_lists([mask.key_blocks(part.br, part.bc)], grid.workers)
    assert grid.sum_fields(lists)["places"] * part.sum_bytes <= (
        128 << 20 if part.finishes == "at_once" else 1 << 30
    )


def test_gradients_of_sinks_are_added_up_behind_it(device: Any) -> None:
    sinks = fake_device.ndarray((4,), "float32")
    run(_call(), oc.causal(300), sink_logits=sinks, wanted=("q", "k", "v", "sink_logits"))
    assert parts(device.launches) == ["prepare", "ordered", "sinks"]


def test_a_soft_cap_keeps_it(device: Any) -> None:
    run(_call(), oc.causal(300), softcap=20.0)
    _, finishing = (launched["spec"] for launched in device.launches)
    assert finishing == replace(FINISHING, softcap=True)
