"""gpu/attention.py: plans, parameters, devices and streams, on a fake device."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray
from fake_device import inputs as _inputs

import omnicupy as oc
from omnicupy.gpu import attention as gpu_attention
from omnicupy.gpu import plan as gpu_plan
from omnicupy.jit import cache
from omnicupy.jit.spec import AttnSpec


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def test_the_parameters_of_a_call(device: fake_device.Device) -> None:
    q, k, v = _inputs(head_dim=40)
    mask = oc.causal(300)
    spec = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=48, br=64, bc=64)
    out, lse = oc.attention(q, k, v, mask, scale=0.5, return_lse=True, config=spec)
    (launched,) = device.launches
    p = launched["params"]
    assert device.kernels == [spec]
    assert [int(p[name]) for name in ("q", "k", "v", "out", "lse")] == [
        x.data.ptr for x in (q, k, v, out, lse)
    ]
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, BF16, (2, 4, 300), np.float32)
    for name, array in (("q", q), ("k", k), ("v", v), ("out", out)):
        assert list(p[f"{name}_strides"]) == [stride // 2 for stride in array.strides[:3]]
    blocks = mask.blocks(spec.br, spec.bc)
    for name, value in (
        *(("q_len", 300), ("k_len", 300), ("head_dim", 40), ("batch", 2), ("q_heads", 4), ("group", 2)),
        *(
            ("q_blocks", blocks.q_blocks),
            ("mask_batch", 1),
            ("diagonal", 0),
            ("n_spans", 1),
            ("k_padded", 512),
        ),
        *(("section", 8), ("scale", 0.5)),
    ):
        assert p[name] == value, name
    assert p["scale_log2"] == np.float32(0.5 * math.log2(math.e))
    assert launched["grid"] == (blocks.q_blocks * 8, 1, 1)
    assert launched["block"] == (spec.threads, 1, 1)
    assert launched["smem"] == spec.smem_bytes


def test_the_mask_s_arrays_are_one_copy(device: fake_device.Device) -> None:
    q, k, v = _inputs()
    oc.attention(q, k, v, oc.causal(300))
    (packed,) = device.uploads
    p = device.launches[0]["params"]
    start = int(p["row_offsets"])
    names = ("entries", "parts", "splits", "bit_tiles", "spans", "dead")
    assert all(start < int(p[name]) <= start + packed.nbytes and int(p[name]) % 16 == 0 for name in names)


def test_no_lse_is_a_null_pointer(device: fake_device.Device) -> None:
    out = oc.attention(*_inputs(), oc.causal(300))
    assert isinstance(out, ndarray)
    assert device.launches[0]["params"]["lse"] == 0


def test_a_warm_call_plans_nothing(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(), mask)
    monkeypatch.setattr(gpu_attention, "new_plan", None)
    monkeypatch.setattr(gpu_attention.check, "call", None)
    q, k, v = _inputs()
    oc.attention(q, k, v, mask, return_lse=True)
    assert device.launches[1]["params"]["q"] == q.data.ptr
    assert len(device.uploads) == 1


def _other_calls() -> dict[str, tuple[list[ndarray], dict[str, Any]]]:
    wide = [ndarray(x.shape, BF16, strides=(2 * x.strides[0], *x.strides[1:])) for x in _inputs()]
    half = [ndarray(x.shape, np.float16) for x in _inputs()]
    other = AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)
    return {
        "batch": (_inputs(batch=3), {}),
        "heads": (_inputs(heads=8), {}),
        "head_dim": (_inputs(head_dim=128), {}),
        "strides": (wide, {}),
        "dtype": (half, {}),
        "scale": (_inputs(), {"scale": 0.25}),
        "config": (_inputs(), {"config": other}),
        "out strides": (_inputs(), {"out": ndarray(wide[0].shape, BF16, strides=wide[0].strides)}),
        "device": (_inputs(device=1), {}),
    }


@pytest.mark.parametrize("what", _other_calls())
def test_whatever_decides_a_launch_is_in_the_key(device: fake_device.Device, what: str) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(), mask)
    before = len(device.kernels)
    arrays, options = _other_calls()[what]
    oc.attention(*arrays, mask, **options)
    assert len(device.kernels) == before + 1
    oc.attention(*arrays, mask, **options)
    assert len(device.kernels) == before + 1


def test_other_cubins_make_other_plans(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(), mask)
    monkeypatch.setattr(cache, "epoch", cache.epoch + 1)
    oc.attention(*_inputs(), mask)
    assert len(device.kernels) == 2


def test_plans_are_bounded(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_attention, "MAX_PLANS", 3)
    mask = oc.causal(300)
    for i in range(1, 8):
        oc.attention(*_inputs(), mask, scale=float(i))
    (kept,) = mask._device.values()
    assert len(kept.plans) == 3


def test_plans_and_copies_die_with_the_mask(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(), mask)
    (kept,) = mask._device.values()
    plan = weakref.ref(next(iter(kept.plans.values())).blocks)
    del kept
    gc.disable()
    try:
        del mask
        assert plan() is None
    finally:
        gc.enable()


def test_without_a_mask_the_plan_is_found_by_shape(device: fake_device.Device) -> None:
    oc.attention(*_inputs())
    oc.attention(*_inputs())
    oc.attention(*_inputs(k_len=200))
    assert len(device.kernels) == 2
    assert [launched["params"]["k_len"] for launched in device.launches] == [300, 300, 200]


def test_the_current_device_is_switched_only_when_it_differs(device: fake_device.Device) -> None:
    oc.attention(*_inputs())
    assert device.switches == []
    oc.attention(*_inputs(device=1))
    assert device.switches == [1, 0]
    assert (device.launches[1]["device"], device.current) == (1, 0)
    assert device.launches[1]["stream"] is device.streams[1]
    assert device.kernels[1].arch == "sm_86"


def test_the_device_is_restored_after_a_failure(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(device=1), mask)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(gpu_plan.Plan, "launch", fail)
    with pytest.raises(MemoryError):
        oc.attention(*_inputs(device=1), mask)
    assert device.current == 0


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_a_warm_call_checks_addresses(device: fake_device.Device, name: str) -> None:
    mask = oc.causal(300)
    q, k, v = _inputs()
    out = ndarray(q.shape, BF16)
    oc.attention(q, k, v, mask, out=out)
    arrays = {"q": q, "k": k, "v": v, "out": out}
    arrays[name].data.ptr += 2
    with pytest.raises(ValueError, match=f"{name} must start on a multiple of 16 bytes, got address"):
        oc.attention(q, k, v, mask, out=out)
    assert len(device.launches) == 1


def test_a_warm_call_refuses_an_out_that_overlaps(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    q, k, v = _inputs()
    out = ndarray(q.shape, BF16)
    oc.attention(q, k, v, mask, out=out)
    out.data.ptr = q.data.ptr + 16
    with pytest.raises(ValueError, match="out must not overlap q"):
        oc.attention(q, k, v, mask, out=out)


def test_threads_have_their_own_parameters(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    calls = [_inputs() for _ in range(40)]
    oc.attention(*calls[0], mask)
    threads = [threading.Thread(target=oc.attention, args=(*call, mask)) for call in calls[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = {tuple(int(launched["params"][name]) for name in ("q", "k", "v")) for launched in device.launches}
    assert seen == {tuple(x.data.ptr for x in call) for call in calls}


def test_one_mask_for_each_batch_element(device: fake_device.Device) -> None:
    masks = [oc.causal(300), oc.full(300)]
    oc.attention(*_inputs(), masks)
    oc.attention(*_inputs(), list(masks))
    assert len(device.kernels) == 1
    assert device.launches[0]["params"]["mask_batch"] == 2
    assert device.launches[0]["params"]["section"] == 4
    oc.attention(*_inputs(), masks[::-1])
    assert len(device.uploads) == 2


def test_a_list_that_repeats_one_mask_shares_its_copy(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(), mask)
    oc.attention(*_inputs(), [mask, mask])
    oc.attention(*_inputs(), [mask, mask])
    assert len(device.uploads) == 1
    assert device.launches[1]["params"]["mask_batch"] == 1


def test_config_for_another_architecture_is_refused(device: fake_device.Device) -> None:
    config = AttnSpec(arch="sm_120", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)
    with pytest.raises(ValueError) as error:
        oc.attention(*_inputs(), config=config)
    assert str(error.value) == (
        "config: code for sm_120 does not run on this device (compute capability 9.0); use arch='sm_90'"
    )


@pytest.mark.parametrize("mask", ["causal", 3, [1, 2], [], object()])
def test_what_is_no_mask_is_refused(device: fake_device.Device, mask: object) -> None:
    with pytest.raises((TypeError, ValueError), match="mask"):
        oc.attention(*_inputs(), mask)
    assert device.launches == []
