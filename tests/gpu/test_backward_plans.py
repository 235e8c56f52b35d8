"""Plans of the backward pass: kept, found again, bounded, dropped, shared by threads; on a fake device."""

from __future__ import annotations

import gc
import threading
import weakref

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, map_of, run

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.gpu import backward as gpu_backward
from omnicupy.jit import cache


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    check_masks._full.cache_clear()
    return fake_backward.install(monkeypatch)


def test_threads_have_their_own_parameters(device: fake_device.Device) -> None:
    mask, calls = oc.causal(300), [Call() for _ in range(30)]
    made = {0: run(calls[0], mask)}

    def run_one(i: int) -> None:
        made[i] = run(calls[i], mask)

    threads = [threading.Thread(target=run_one, args=(i,)) for i in range(1, len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = {
        tuple(int(launched["params"][name]) for name in ("dout", "q", "lse", "dq", "dv"))
        for launched in device.launches
    }
    assert seen == {
        tuple(x.data.ptr for x in (call.dout, call.q, call.lse, made[i][0], made[i][2]))
        for i, call in enumerate(calls)
    }
    of_dq = [launched for launched in device.launches if launched["spec"].part == "dq"]
    assert {map_of(launched, "q_map")["pointer"] for launched in of_dq} == {c.q.data.ptr for c in calls}


def test_threads_that_make_the_plan_at_once(device: fake_device.Device) -> None:
    mask, calls = oc.causal(300), [Call() for _ in range(12)]
    threads = [threading.Thread(target=run, args=(call, mask)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(device.launches) == 3 * len(calls)
    (kept,) = mask._device.values()
    assert len(kept.plans) == 1
    assert len(kept.blocks) == 2


def test_plans_and_copies_die_with_the_mask(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    run(Call(), mask)
    (kept,) = mask._device.values()
    copies = [weakref.ref(blocks) for blocks in kept.blocks.values()]
    assert len(copies) == 2
    del kept
    gc.disable()
    try:
        del mask
        assert [copy() for copy in copies] == [None, None]
    finally:
        gc.enable()


def test_forward_and_backward_keep_their_plans_on_one_mask(device: fake_device.Device) -> None:
    call, mask = Call(), oc.causal(300)
    for _ in range(3):
        oc.attention(call.q, call.k, call.v, mask)
        run(call, mask)
    assert len(device.kernels) == 4
    assert len(device.launches) == 12
    (kept,) = mask._device.values()
    assert len(kept.plans) == 2
    assert len(kept.blocks) == len(device.uploads) <= 3


def test_one_mask_for_each_batch_element(device: fake_device.Device) -> None:
    masks = [oc.causal(300), oc.sliding_window(300, left=20)]
    run(Call(), masks)
    run(Call(), tuple(masks))
    assert len(device.kernels) == 3
    assert {int(launched["params"]["mask_batch"]) for launched in device.launches} == {2}
    run(Call(), masks[::-1])
    assert len(device.uploads) == 4


def test_the_device_of_the_arrays_runs_it(device: fake_device.Device) -> None:
    run(Call(device=1), oc.causal(300))
    assert [launched["device"] for launched in device.launches] == [1, 1, 1]
    assert {launched["spec"].arch for launched in device.launches} == {"sm_86"}
    assert device.current == 0
    made = run(Call(device=1), wanted=("q",))
    assert made[0].data.device_id == 1


def test_each_stream_has_counters_of_its_own(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    for handle in (16, 32, 16):
        device.streams[0] = fake_device.Stream(handle)
        run(Call(), mask)
    for part in ("dkdv", "dq"):
        found = [one["params"] for one in device.launches if one["spec"].part == part]
        for name in ("counter", "arrivals"):
            assert found[0][name] == found[2][name] != found[1][name]


def test_other_cubins_make_other_plans(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.causal(300)
    run(Call(), mask)
    monkeypatch.setattr(cache, "epoch", cache.epoch + 1)
    run(Call(), mask)
    assert len(device.kernels) == 6


def test_plans_are_bounded(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_backward, "MAX_PLANS", 3)
    mask = oc.causal(300)
    for i in range(1, 8):
        run(Call(), mask, scale=float(i))
        run(Call(), scale=float(i))
    (kept,) = mask._device.values()
    assert len(kept.plans) == len(gpu_backward._unmasked) == 3


def test_a_warm_call_plans_nothing(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.causal(300)
    run(Call(), mask)
    run(Call())
    monkeypatch.setattr(gpu_backward, "new_plan", None)
    monkeypatch.setattr(gpu_backward.check_backward, "call", None)
    call = Call()
    run(call, mask)
    run(call, mask, out_grads=call.targets())
    run(call, mask, out_grads=(None, call.targets()[1], None), dlse=call.dlse())
    run(call)
    assert device.launches[-1]["params"]["q"] == call.q.data.ptr


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 192, 256, 320])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("masks", ["all", "one of two"])
def test_masks_that_hide_all_are_served(
    device: fake_device.Device, masks: str, deterministic: bool, head_dim: int
) -> None:
    """Their gradients are zeros, which kernels write: as many launches as for other masks."""
    hidden, seen = oc.from_dense(np.zeros((300, 300), bool)), oc.causal(300)
    call = Call(head_dim=head_dim)
    dq, dk, dv = run(call, hidden if masks == "all" else [hidden, seen], deterministic=deterministic)
    assert all(made is not None for made in (dq, dk, dv))
    assert len(device.launches) >= 2
