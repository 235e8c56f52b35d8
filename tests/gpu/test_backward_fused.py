"""Gradients where sums may have any order: one kernel and one that converts; split blocks of keys; scratch memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_backward
import fake_device
import pytest
from fake_backward import Call, map_of, parts
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, classes, saved
from omnicupy.gpu import backward as gpu_backward
from omnicupy.gpu import backward_planning
from omnicupy.gpu.backward_plan import Addresses
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows

SPEC = backward_table.pick("sm_90", "bfloat16", 64)
ROWS = 2 * 4 * padded_rows(300)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    check_masks._full.cache_clear()
    return fake_backward.install(monkeypatch)


def _run(call: Call, mask: Any = None, **options: Any) -> Any:
    return oc.attention_backward(*call.arrays, mask, **{"deterministic": False} | options)


def test_one_kernel_makes_all_and_one_converts(device: Any) -> None:
    call = Call()
    dq, dk, dv = _run(call, oc.causal(300))
    _, fused, convert = device.launches
    assert [launched["spec"] for launched in device.launches] == [
        SPEC.part(part) for part in ("prepare", "fused", "convert")
    ]
    (scratch,) = device.scratch
    sums = scratch.data.ptr + 2 * 4 * ROWS  # behind lse2 and delta
    for launched in (fused, convert):
        assert launched["params"]["dq_sums"] == sums
        assert [launched["params"][name] for name in ("dq", "dk", "dv")] == [x.data.ptr for x in (dq, dk, dv)]
    assert device.zeroed == [(sums, 4 * ROWS * 64, device.streams[0].ptr, 0)]  # before the first launch
    assert convert["grid"] == (2 * 4 * 5, 1, 1)
    assert fused["params"]["counter"] == memory_of(0, device.streams[0]).counters
    assert map_of(fused, "dout_map")["pointer"] == call.dout.data.ptr
    assert sums + 4 * ROWS * 64 <= scratch.data.ptr + scratch.nbytes
    assert len(device.uploads) == 1  # lists by block rows are not needed


def test_so_it_is_with_mma_sync(device: Any) -> None:
    row = next(row for row in backward_table.TABLE if row.kernel == "sm80" and row.serves("sm_90", 64))
    spec, call = row.spec("sm_90", "bfloat16", 64), Call(kv_heads=2)
    dq, dk, dv = _run(call, oc.causal(300), config=spec)
    _, fused, convert = device.launches
    assert [launched["spec"] for launched in device.launches] == [
        spec.part(part) for part in ("prepare", "fused", "convert")
    ]
    (scratch,) = device.scratch
    sums = scratch.data.ptr + 2 * 4 * ROWS
    for launched in (fused, convert):
        assert launched["params"]["dq_sums"] == sums
        assert [launched["params"][name] for name in ("dq", "dk", "dv")] == [x.data.ptr for x in (dq, dk, dv)]
    assert device.zeroed == [(sums, 4 * ROWS * 64, device.streams[0].ptr, 0)]
    assert fused["grid"] == (2 * 2 * 3, 1, 1)  # a block of 128 keys of a head each
    assert convert["grid"] == (2 * 4 * 5, 1, 1)
    assert len(device.uploads) == 1


@pytest.mark.parametrize(
    ("wanted", "launched"),
    [
        (("q",), ["prepare", "dq"]),
        (("k", "v"), ["prepare", "dkdv"]),
        (("q", "v"), ["prepare", "fused", "convert"]),
    ],
)
def test_one_gradient_is_made_by_its_own_kernel(device: Any, wanted: Any, launched: list[str]) -> None:
    _run(Call(), oc.causal(300), wanted=wanted)
    assert parts(device.launches) == launched
    assert bool(device.zeroed) == ("fused" in launched)


def test_kernels_without_a_fused_one_keep_their_order(device: Any) -> None:
    without = BackwardSpec(
        arch=SPEC.arch, kernel=SPEC.kernel, dtype=SPEC.dtype, head_dim=64, dkdv=SPEC.dkdv, dq=SPEC.dq
    )
    _run(Call(), oc.causal(300), config=without)
    _run(Call(head_dim=256), oc.causal(300))
    assert parts(device.launches) == 2 * ["prepare", "dkdv", "dq"]
    assert device.zeroed == []


def test_sums_are_zeroed_in_each_call_on_its_stream(device: Any) -> None:
    mask = oc.causal(300)
    _run(Call(), mask)
    device.streams[0] = fake_device.Stream(48)
    _run(Call(), mask)
    assert [stream for _, _, stream, _ in device.zeroed] == [0, 48]
    assert [launches for *_, launches in device.zeroed] == [0, 3]
    assert device.zeroed[0][0] != device.zeroed[1][0]


def test_copies_and_sums_lie_apart(device: Any) -> None:
    call = Call()
    _run(call, oc.ranges([(20, 300, 0, 250)], 300, 300))
    p = device.launches[1]["params"]
    sizes = {"lse2": 4 * ROWS, "delta": 4 * ROWS, "dq_sums": 4 * ROWS * 64}
    sizes |= {
        "q_copy": call.q.nbytes,
        "dout_copy": call.q.nbytes,
        "k_copy": call.k.nbytes,
        "v_copy": call.v.nbytes,
    }
    places = sorted((int(p[name]), size) for name, size in sizes.items())
    ends = [first + size for first, size in places]
    assert all(end <= first for end, (first, _) in zip(ends[:-1], places[1:], strict=True))
    ((address, size, _, _),) = device.zeroed
    assert address == p["dq_sums"]
    assert size == 4 * ROWS * 64


def _few_keys() -> tuple[Call, Any]:
    call = Call(batch=1, heads=2, kv_heads=1, q_len=6000, k_len=200)
    return call, oc.full(6000, 200)


@pytest.mark.parametrize("deterministic", [True, False])
def test_split_blocks_of_keys_get_memory_and_counters(device: Any, deterministic: bool) -> None:
    call, mask = _few_keys()
    _run(call, mask, deterministic=deterministic)
    _, keys, last = device.launches
    p, kernel = keys["params"], keys["spec"]
    slots, split = int(p["n_slots"]), int(p["n_split_rows"])
    assert 0 < split < slots
    space = memory_of(0, device.streams[0]).workspace(Need(1, 0))
    assert p["arrivals"] == space.arrivals + 16
    assert space.need.arrivals >= 4 + split * 2 * kernel.bc // 16
    start = int(p["partials"])
    assert start % 16 == 0
    rows = 2 * padded_rows(6000)
    (scratch,) = device.scratch
    assert start == scratch.data.ptr + 2 * 4 * rows + (0 if deterministic else 4 * rows * 64)
    assert start + slots * 2 * 4 * kernel.bc * 64 <= scratch.data.ptr + scratch.nbytes
    assert p["splits"] != 0
    assert p["work_items"] > -(-200 // kernel.bc)
    if deterministic:
        assert last["params"]["n_split_rows"] == 0


def test_a_launch_may_bring_its_memory(device: Any) -> None:
    """scratch: of whoever launches a plan, in place of memory that stays with the stream."""
    call, mask = Call(), oc.ranges([(20, 300, 0, 250)], 300, 300)
    plan = gpu_backward._plan_of(call.arrays, mask, {"deterministic": False})
    scratch = ndarray((plan.scratch_bytes // 2,), BF16).data.ptr
    device.launches.clear()
    dout, q, k, v, out, lse = (array.data.ptr for array in call.arrays)
    plan.launch(
        Addresses(q, k, v, out, lse, dout, 0, *(1 << 40, 2 << 40, 3 << 40)), device.streams[0], scratch
    )
    p = device.launches[1]["params"]
    assert p["lse2"] == scratch
    for name in ("delta", "q_copy", "dout_copy", "k_copy", "v_copy", "dq_sums"):
        assert scratch < p[name] < scratch + plan.scratch_bytes
    assert device.zeroed == [(int(p["dq_sums"]), 4 * ROWS * 64, 0, 0)]
    space = memory_of(0, device.streams[0]).workspace(Need(0, 0))
    assert p["arrivals"] == space.arrivals + 16  # zero before and after, so the stream's own


def test_prepare_may_be_for_any_order_of_sums(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call, mask = Call(), oc.causal(300)
    gpu_backward.prepare_backward(call.q, call.k, call.v, mask, deterministic=False)
    monkeypatch.setattr(gpu_backward, "new_plan", None)
    _run(call, mask)
    assert parts(device.launches) == ["prepare", "fused", "convert"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_call_gets_the_kernels_that_tune_saved(
    device: Any, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    here, mask, call = saved.Machine("Fake H100", "13.0", "12.9"), oc.causal(300), Call()
    monkeypatch.setattr(saved, "current_machine", lambda: here)
    other = replace(SPEC, ordered=None, dq=TileShape(128, 64, 4, 12), fused=TileShape(64, 128, 2, 12))
    problem = Problem(2, 4, 2, 300, 300, 64, "bfloat16")
    sms = backward_planning.device_info(0).sm_count
    of = classes.class_of(problem, (mask,), sms, classes.BACKWARD, deterministic=deterministic)
    saved.keep(here, of, other, {"ms": 1.0})
    for asked in (True, False):
        device.launches.clear()
        _run(call, mask, deterministic=asked, scale=0.5 if asked else 0.25)
        spec = other if asked == deterministic else SPEC
        part = "dq" if asked else "fused"
        (found,) = (one["spec"] for one in device.launches if one["spec"].part == part)
        assert found == spec.part(part)
